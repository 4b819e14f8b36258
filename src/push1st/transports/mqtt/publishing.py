"""Publishes the messages of an MQTT client.

A message may wait for the broker or for the app's backend (`Waiting`). While a message waits for the backend, the connection
reads no further packet, so messages are published in order, and no queue is needed. The broker gets messages in the order in
which this module publishes them, so several messages of a connection may wait for the broker at once.
"""

from collections.abc import Coroutine
from typing import Any, NamedTuple

from push1st.brokers.retained import Retain
from push1st.core import decisions, rights
from push1st.eager import MaybeAwaitable
from push1st.errors import Refused
from push1st.messages import DEFAULT_OPTIONS, Member, MqttFields, Options, Publish, Published
from push1st.protocols.mqtt.packets import MQTT_5, PublishPacket, ReasonCode
from push1st.protocols.mqtt.topics import CONTROL, SHARE, SYS, channel_of
from push1st.protocols.mqtt.wire import SECOND
from push1st.transports.mqtt import reasons
from push1st.transports.mqtt.commands import command_of, is_bridge_state
from push1st.transports.mqtt.session import MqttSession

PLAIN = MqttFields()
"""the fields of a message with QoS 0, without RETAIN, expiry and properties"""
IDENTIFIED = Retain()
"""a publisher that has proved its identity"""


class Waiting(NamedTuple):
    """A message that waits. `rest`: a coroutine that returns the reason code. `for_backend`: whether the backend decides."""

    rest: Coroutine[Any, Any, ReasonCode]
    for_backend: bool


def publish(session: MqttSession, packet: PublishPacket) -> ReasonCode | Waiting:
    """Publishes a message. Returns the reason code of its acknowledgement; a rejected message is counted and logged.

    The reason code is `SERVER_BUSY` if the broker is away, so that the message must not be acknowledged.
    """
    try:
        if packet.topic[:1] == "$" and (reason := _reserved(packet.topic)) is not None:
            return reason
        command = _command(session, packet)
        decides = session.client.app.backend_decides.get("publish")
        rights.to_publish_topic(session.client.claims, session.push, session.client.app.config, command.channel, decides)
        if decides is not None and decides(command.channel):
            return Waiting(_publish_decided(session, packet, command), True)
        sent = _send(session, packet, command, command.data)
        return sent if isinstance(sent, ReasonCode) else Waiting(sent, False)
    except Refused as refused:
        return _reject(session, refused, packet)


def may_publish(session: MqttSession, topic: str) -> bool:
    """Returns whether the client has the right to publish to a topic, for its will."""
    app = session.client.app
    if topic.startswith((SYS, SHARE, CONTROL)):
        return is_bridge_state(topic)
    try:
        decides = app.backend_decides.get("publish")
        rights.to_publish_topic(session.client.claims, session.push, app.config, channel_of(topic), decides)
    except Refused:
        return False
    return True


def _reserved(topic: str) -> ReasonCode | None:
    """Returns the reason code for a topic that is not a channel; None for other topics. Raises Refused."""
    if topic.startswith(SYS):
        if is_bridge_state(topic):
            return ReasonCode.NO_MATCHING_SUBSCRIBERS
        raise Refused(403, "only the server publishes to $SYS/")
    if topic.startswith((SHARE, CONTROL)):
        raise Refused(403, f"topics that begin with {SHARE} or {CONTROL} are reserved")
    return None


def _command(session: MqttSession, packet: PublishPacket) -> Publish:
    """Returns the event of a message. Raises Refused for an event that is not valid."""
    config, size = session.client.app.config, len(packet.payload)
    if size > config.limits.payload:
        session.clients.log_too_large(config.id, size, config.limits.payload, session.client_id)
    return command_of(packet, config, session.clients.settings)


async def _publish_decided(session: MqttSession, packet: PublishPacket, command: Publish) -> ReasonCode:
    """Publishes a message if the app's backend permits it."""
    client, is_lasting = session.client, session.lasting is not None
    try:
        member = _member(session, command.channel)
        user_id = member.user_id if member is not None else client.user.id if client.user is not None else None
        data = await decisions.publish(client.node.hooks, client.app, client, command, user_id)
        if packet.qos == 2 and is_lasting and client.closed:
            # [MQTT-4.4.0-1]: the client repeats the message on its next connection, where the message counts as a new one.
            return ReasonCode.SERVER_BUSY
        sent = _send(session, packet, command, data)
        return sent if isinstance(sent, ReasonCode) else await sent
    except Refused as refused:
        return _reject(session, refused, packet)


def _send(session: MqttSession, packet: PublishPacket, command: Publish, data: bytes) -> MaybeAwaitable[ReasonCode]:
    client = session.client
    node, app, channel = client.node, client.app, command.channel
    stamp = node.stamp()
    fields, retain = PLAIN, None
    if packet.qos or packet.retain or packet.properties or packet.expiry is not None:
        expires = 0 if packet.expiry is None else stamp[1] + packet.expiry * SECOND
        fields = MqttFields(packet.qos, packet.retain, expires, packet.properties)
        if packet.retain:  # [MQTT-3.3.1-5], [MQTT-3.3.1-8]
            retain = _retain(session)
    own = client.subscriptions.get(channel)
    member = None if own is None else own.member
    published = node.publish(
        app,
        channel,
        command.event,
        data,
        stamp,
        client.id,
        options=Options(command.ttl) if command.ttl else DEFAULT_OPTIONS,
        user_id=None if member is None else member.user_id,
        mqtt=fields,
        retain=retain,
    )
    app.counts.events_in[client.wire.name] += 1
    if "client-event" in app.hook_kinds:
        node.reports.client_event(app, command, data, stamp, client.id, member)
    if not isinstance(published, Published):
        return _confirmed(session, published, packet)
    reason = _reason(published)
    if packet.qos == 1 and reason == ReasonCode.SUCCESS and not published.logs and session.version == MQTT_5:
        return reason if session.clients.groups.has_receiver(app, channel) else ReasonCode.NO_MATCHING_SUBSCRIBERS
    return reason


async def _confirmed(session: MqttSession, published: Coroutine[Any, Any, Published], packet: PublishPacket) -> ReasonCode:
    try:
        return _reason(await published)
    except Refused as refused:
        return _reject(session, refused, packet, ReasonCode.SERVER_BUSY)


def _reason(published: Published) -> ReasonCode:
    is_received = published.count or published.filters or published.logs
    return ReasonCode.SUCCESS if is_received else ReasonCode.NO_MATCHING_SUBSCRIBERS


def _retain(session: MqttSession) -> Retain:
    """Returns the publisher of a retained message, whose bounds apply."""
    if not session.is_anonymous:
        return IDENTIFIED
    return Retain(is_anonymous=True, address=session.clients.context.shared_address(session.client.ip))


def _member(session: MqttSession, channel: str) -> Member | None:
    found = session.client.subscriptions.get(channel)
    return None if found is None else found.member


def _reject(
    session: MqttSession, refused: Refused, packet: PublishPacket, unavailable: ReasonCode = ReasonCode.UNSPECIFIED_ERROR
) -> ReasonCode:
    """Counts and logs a rejected message; returns the reason code of its acknowledgement.

    unavailable: the reason code if the broker or the app's backend does not answer.
    """
    reason = reasons.of_refused(refused, reasons.PUBLISH_CODES) if refused.code != 503 else unavailable
    session.count("message refused", reason, refused.text, packet.topic)
    return reason
