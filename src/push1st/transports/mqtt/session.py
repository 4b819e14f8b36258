"""The session of an MQTT client. `publishing` and `subscribing` apply its packets.

An `MqttSession` owns a session of the core (`core/session.py`), which has the client's subscriptions, user and limits. The core's
session gets no commands: packets need other answers than commands, and several rights differ.
"""

from functools import partial

import msgspec

from push1st.brokers.sessions import (
    RETURN_SECONDS,
    SHARE,
    SavedFlow,
    SavedProgress,
    SavedSession,
    SavedSubscription,
    SavedWill,
)
from push1st.core.app import Outlet
from push1st.core.hub import Wire, Write
from push1st.core.session import Session
from push1st.messages import Message
from push1st.protocols.mqtt import encode
from push1st.protocols.mqtt.own import MqttOwnWire, own_wire
from push1st.protocols.mqtt.packets import (
    MQTT_5,
    ConnectPacket,
    FilterOptions,
    PubackPacket,
    PubcompPacket,
    PubrecPacket,
    PubrelPacket,
    ReasonCode,
)
from push1st.protocols.mqtt.topics import filter_of
from push1st.protocols.mqtt.wire import wire_of
from push1st.transports.lost import LOST
from push1st.transports.mqtt import reasons
from push1st.transports.mqtt.clients import MqttClients
from push1st.transports.mqtt.groups import SharedGroup
from push1st.transports.mqtt.identity import ANONYMOUS, MqttIdentity
from push1st.transports.mqtt.lasting import LastingSession, subscriptions_of
from push1st.transports.mqtt.overlaps import is_own
from push1st.transports.mqtt.receiving import MqttReceiver
from push1st.transports.mqtt.sending import MqttSender
from push1st.transports.mqtt.wills import saved_will


class MqttSession:
    """A client of one connection.

    client_id: the client id, which the server has made if the client has none.
    packet: the client's CONNECT.
    Raises Disconnect(4004) if the app has reached its limit of connections, unless a connection has the client id.
    """

    __slots__ = (
        "client",
        "client_id",
        "clients",
        "generation",
        "has_place",
        "is_anonymous",
        "lasting",
        "max_aliases",
        "max_size",
        "owner",
        "push",
        "receive_maximum",
        "receiver",
        "retained_at",
        "sender",
        "shared",
        "silent",
        "version",
        "will",
    )

    def __init__(
        self,
        clients: MqttClients,
        identity: MqttIdentity,
        outlet: Outlet,
        write: Write,
        ip: str,
        client_id: str,
        packet: ConnectPacket,
    ) -> None:
        settings = clients.settings
        self.clients = clients
        self.is_anonymous = identity.is_anonymous
        """whether the client has proved no identity"""
        self.version = packet.version
        """the protocol level of the client"""
        self.client_id = client_id
        self.max_size = packet.maximum_packet_size or 0
        """the maximum size of a packet to the client, in bytes; 0: no maximum"""
        self.max_aliases = min(packet.topic_alias_maximum, settings.topic_aliases)
        """the maximum number of topic aliases of messages to the client"""
        self.receive_maximum = packet.receive_maximum
        self.sender: MqttSender | None = None
        self.receiver: MqttReceiver | None = None
        self.retained_at: dict[str, float] | None = None
        """filter → the time until which its retained messages are not sent again, in seconds on `Clock.monotonic`"""
        self.push = settings.anonymous_push if identity.is_anonymous else settings.push
        """the types of channels to which the client may publish"""
        self.owner = ANONYMOUS
        """the owner of the client id; valid when the server has accepted the client"""
        self.shared: dict[str, SharedGroup] | None = None
        """the groups of the client's shared filters, by whole filter"""
        self.generation = 0
        """the generation of the connection (`Claimed`); 0 before the broker has given the client id to the connection"""
        self.lasting: LastingSession | None = None
        """the part of the session that outlives the connection; None if the session ends with the connection"""
        self.silent: set[str] | None = None
        """granted filters for which nothing is ever sent"""
        wire = wire_of(packet.version, max_size=self.max_size)
        app, is_new = identity.app, not clients.is_connected(identity.app.config.id, client_id)
        self.has_place = is_new
        """whether the app's limit of connections permits the connection, or permitted a connection that this one replaces"""
        # A client that may replace its earlier connection is counted when the server knows its owner (`MqttConnection._open`).
        self.client = Session(
            clients.context.node,
            app,
            outlet,
            wire,
            write,
            ip,
            client_id,
            identity.claims,
            self.push,
            lenient=True,
            is_counted=is_new,
        )
        self.will: SavedWill | None = None if packet.will is None else saved_will(packet.will, self.client)

    def send(self, frame: bytes) -> None:
        """Sends a packet after the pending messages to the client."""
        if not self.client.closed and not 0 < self.max_size < len(frame):  # [MQTT-3.1.2-24]
            self.client.node.fanout.direct(self.client, frame)

    def wire(self, options: FilterOptions, subscription_id: int, overlaps: bool) -> tuple[Wire, Write | None]:
        """Returns the wire of a subscription, and the function that takes its frames if the session adds bytes of its own.

        overlaps: whether the filter overlaps other filters of the client.
        """
        version, as_published, size = self.version, options.retain_as_published, self.max_size
        if overlaps:
            wire = own_wire(version, options.qos, options.no_local, as_published, subscription_id)
            return wire, self.sending().deliver_merged
        sender = self.sender
        if self.is_shared(options) and (sender is None or (sender.held is None and sender.pages is None)):
            return wire_of(version, as_published, subscription_id, size), None
        if self.max_aliases:
            size = 0  # the size depends on the alias
        wire = own_wire(version, options.qos, options.no_local, as_published, subscription_id, size)
        return wire, self.sending().deliver

    def is_shared(self, options: FilterOptions) -> bool:
        """Returns whether the frames of a subscription are the same for all clients."""
        return not options.qos and not options.no_local and not self.max_aliases

    def move(self, filter: str, wire: Wire, deliver: Write | None) -> None:
        """Moves a subscription to another wire; no message is lost [MQTT-3.8.4-4]. Does nothing without the subscription.

        filter: the filter, written as a channel name. deliver: see `wire`.
        """
        client = self.client
        own = client.subscriptions.get(filter)
        if own is not None:
            if own.lane.wire is not wire or own.lane.writes[client] != (deliver or client.write):
                lane = client.node.fanout.move(client.app.tenant, client, filter, wire, deliver)
                client.subscriptions[filter] = lane.subscription(own.member)
        elif client.filters is not None and filter in client.filters:
            client.node.wildcards.move(client.app, client, filter, wire, deliver)

    def overlaps(self, filter: str) -> bool:
        """Returns whether a filter of the client overlaps others, or did before they ended. filter: written as a channel name."""
        overlaps = None if self.sender is None else self.sender.overlaps
        return overlaps is not None and filter in overlaps.filters

    def sending(self) -> MqttSender:
        """Returns the state of the messages to the client, which is created when it is first needed."""
        if self.sender is None:
            self.sender = MqttSender(
                self.clients, self.client, self.version, self.receive_maximum, self.max_size, self.max_aliases
            )
        return self.sender

    def receiving(self) -> MqttReceiver:
        """Returns the state of the client's own messages, which is created when it is first needed."""
        if self.receiver is None:
            self.receiver = MqttReceiver(self.clients, self.client, self.version)
        return self.receiver

    def answer(self) -> None:
        """Sends the acknowledgements of the client's messages that the broker has confirmed."""
        if self.receiver is not None:
            self.receiver.answer()

    def acknowledge(self, packet: PubackPacket | PubrecPacket | PubcompPacket) -> None:
        """Handles acknowledgements of the client. Raises FlowViolation."""
        if self.lasting is not None:
            self.clients.progress.mark(self)
        sender = self.sender
        if sender is None and type(packet) is PubrecPacket:
            sender = self.sending()  # a PUBREC is always answered
        if sender is None or not sender.acknowledge(packet):
            self.client.charge()

    def release(self, packet: PubrelPacket) -> None:
        """Answers PUBRELs of the client."""
        if self.lasting is not None:
            self.clients.progress.mark(self)
        if not self.receiving().release(packet.packet_ids):
            self.client.charge()

    def ping(self) -> None:
        """Answers a PINGREQ [MQTT-3.12.4-1]."""
        self.send(encode.PINGRESP)
        self.client.charge()

    def count(self, event: str, reason: ReasonCode, text: str, topic: str) -> None:
        client = self.client
        client.node.metrics.refusals[reasons.label(reason)] += 1
        client.app.counts.refusals += 1
        where = {"topic": topic, "app": client.app.config.id, "client_id": self.client_id[:64], "ip": client.ip}
        client.node.refusals.log(event, reason, text, **where, socket_id=client.id)

    # Sessions that outlive the connection

    @property
    def expiry(self) -> int:
        """The seconds for which the session outlives the connection."""
        return 0 if self.lasting is None else self.lasting.expiry

    def is_logged(self, filter: str) -> bool:
        """Returns whether the client has a filter with QoS 1 or 2. filter: written as a channel name."""
        one = self.client.subscriptions.get(filter)
        group = (self.shared or {}).get(filter_of(filter)) if filter.startswith(SHARE) else None
        if group is not None:
            return group.member(self.sending()).options.qos > 0
        lane = one.lane if one is not None else (self.client.filters or {}).get(filter)
        return lane is not None and isinstance(lane.wire, MqttOwnWire) and lane.wire.qos > 0

    def is_excluded(self, message: Message) -> bool:
        """Returns whether the publisher of a message has excluded the client."""
        return bool(message.exclude) and (is_own(self.client, message.exclude) or is_own(self.client, message.target))

    def mute(self) -> None:
        """Discards further output, because the connection is lost. If the session outlives the connection, it keeps messages
        with QoS 1 and 2.
        """
        client, sender = self.client, self.sender
        if self.lasting is None or sender is None:
            client.mute(LOST.write)
            return
        own = sender.deliver, sender.deliver_merged
        shared = [lane for lane in client.lanes if lane.writes.get(client) not in own]
        client.write = LOST.write
        client.node.fanout.forget(client, shared)
        for lane in shared:
            lane.writes[client] = LOST.write
        sender.detach()
        client.node.fanout.flush_subscriber(client)

    def leave(self, has_will: bool, is_taken_over: bool = False) -> None:
        """Ends the session, or stores the session if it outlives the connection.

        has_will: whether the will is published. is_taken_over: whether another connection of the client replaces this one. In
        this case, the will is published only if the new connection does not resume the session.
        """
        lasting, client, will = self.lasting, self.client, self.will if has_will else None
        is_due = will is not None and (not self.expiry or (not will.delay and not is_taken_over))  # [MQTT-3.1.2-8]
        is_shared = client.node.sessions is not None and client.node.sessions.shared
        if will is not None and is_shared and client.node.draining and not is_taken_over:
            # the client may return to another worker
            is_due, will = False, msgspec.structs.replace(will, delay=max(will.delay, RETURN_SECONDS))
        shared: tuple[SavedSubscription, ...] = ()
        if lasting is not None:
            self.mute()
            shared = self._shared_subscriptions()
        for group in (self.shared or {}).values():
            sender = self.sending()
            sender.detach()
            self.clients.groups.leave(group, sender, is_ended=True, is_kept=self.expiry > 0)
        if self.sender is not None and not self.expiry:  # the client may have left the groups of further messages
            items = self.sender.withdraw(lambda _: True, with_sent=True)
            self.clients.groups.give_back(client.app.config.id, [(one.group, one.message, one.entry) for one in items])
        if lasting is not None or (is_shared and self.generation):
            ended = partial(self._ended, shared, None if is_due else will)
            self.clients.finish(self, ended, will if is_due else None, self.sender)
            return
        self.clients.groups.end_all(self.sender)
        client.detach()
        if will is not None and is_due:
            self.clients.wills.publish(client.app.config.id, self.client_id, self.owner, will)

    def _ended(self, shared: tuple[SavedSubscription, ...], will: SavedWill | None) -> SavedSession:
        """Ends the session of the core. Returns the session in the form that the broker stores.

        shared: the subscriptions with shared filters. will: the will to store.
        """
        saved = SavedSession(0) if self.lasting is None else self._saved(self.lasting, self._subscriptions() + shared)
        self.client.detach()
        return msgspec.structs.replace(saved, will=will or saved.will)

    def _subscriptions(self) -> tuple[SavedSubscription, ...]:
        """Returns the subscriptions of the client, without shared filters, in the form that the broker stores."""
        found = subscriptions_of(self.client, self.silent or ())
        unsent = frozenset() if self.sender is None else self.sender.unsent
        if unsent:
            found = tuple([msgspec.structs.replace(one, wants_retained=filter_of(one.filter) in unsent) for one in found])
        return found

    def _shared_subscriptions(self) -> tuple[SavedSubscription, ...]:
        """Returns the subscriptions with shared filters in the form that the broker stores."""
        found: list[SavedSubscription] = []
        for group in (self.shared or {}).values():
            options = group.member(self.sending()).options
            id = options.subscription_ids[0] if options.subscription_ids else 0
            found.append(SavedSubscription(group.name, options.qos, False, options.retain_as_published, id))
        return tuple(found)

    def _saved(self, lasting: LastingSession, subscriptions: tuple[SavedSubscription, ...]) -> SavedSession:
        """Returns the session without its will, in the form that the broker stores."""
        resumed = lasting.resumed
        if resumed is not None:  # the session is not restored yet
            waiting = () if self.sender is None else self.sender.held_of_groups()
            flow = msgspec.structs.replace(resumed.flow, waiting=resumed.flow.waiting + waiting)
            return msgspec.structs.replace(resumed, expiry=lasting.expiry, flow=flow)
        received = () if self.receiver is None else self.receiver.save()
        flow = SavedFlow(received=received) if self.sender is None else self.sender.save(received)
        return SavedSession(lasting.expiry, lasting.with_cursors(subscriptions), flow)

    def copy(self) -> SavedSession:
        """Returns a copy of the session while the client is connected, without messages: the logs have the messages."""
        lasting = self.lasting
        if lasting is None:
            return SavedSession(0, will=self.will)
        if lasting.resumed is not None:
            return msgspec.structs.replace(lasting.resumed, expiry=lasting.expiry, will=self.will)
        return SavedSession(
            lasting.expiry,
            lasting.with_cursors(self._subscriptions() + self._shared_subscriptions()),
            self.progress().flow,
            self.will,
        )

    def progress(self) -> SavedProgress:
        """Returns the part of the copy that changes with messages. The session is restored."""
        lasting, sender = self.lasting, self.sender
        assert lasting is not None
        lasting.has_saved &= sender is not None and not lasting.has_received_saved(sender.deliveries)
        received = () if self.receiver is None else self.receiver.save()
        flow = SavedFlow(received=received) if sender is None else sender.save(received, with_messages=False)
        return SavedProgress(dict(lasting.cursors or {}), flow, lasting.has_saved)

    # The end

    def disconnect_frame(self, reason: ReasonCode) -> bytes:
        """Returns the last packet to the client; b"" in versions without DISCONNECT from the server."""
        return encode.disconnect(reason) if self.version == MQTT_5 else b""
