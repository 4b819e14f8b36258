"""Publishes the wills of MQTT clients: the messages of clients whose connections end without a normal DISCONNECT (§3.1.2.5).

A client has no connection and often no session any more when the server publishes its will. So the will contains the rights
of the client. When the server publishes the will, it checks these rights again, with the present configuration and with the app's
backend.

Thousands of connections may end in one turn. So each turn publishes some wills, and further wills wait (`TurnWork`).
"""

from collections import OrderedDict
from typing import NamedTuple

from push1st import auth
from push1st.brokers.retained import Retain
from push1st.brokers.sessions import DueSession, Owner, SavedWill
from push1st.core import decisions, rights
from push1st.core.session import Session
from push1st.eager import join_background, resolve, spawn
from push1st.errors import LimitReached, Refused
from push1st.messages import DEFAULT_OPTIONS, MqttFields, Options
from push1st.protocols.mqtt.packets import Will
from push1st.protocols.mqtt.topics import channel_of
from push1st.protocols.mqtt.wire import SECOND
from push1st.transports.context import EdgeContext
from push1st.transports.ends import TurnWork
from push1st.transports.mqtt import reasons
from push1st.transports.mqtt.commands import command_of, is_bridge_state

MAX_PENDING = 100
"""the maximum number of wills that wait for the app's backend or the broker at once"""
MAX_BYTES = 64 << 20
"""the maximum number of bytes of the wills that wait for a turn; the worker drops further wills"""
WILL_BYTES = 1000
"""the bytes that a will needs in addition to its payload and its properties"""


class EndedClient(NamedTuple):
    """A client whose connection has ended. id: the id of its session, which was its socket id. ip: its address."""

    id: str
    ip: str


def saved_will(will: Will, client: Session) -> SavedWill:
    """Returns the will of a client with the properties of the client, which the server needs to publish the will."""
    patterns = None if client.claims is None else client.claims.channels
    return SavedWill(
        will.topic,
        will.payload,
        will.qos,
        will.retain,
        will.delay,
        will.properties,
        will.expiry,
        will.event,
        patterns,
        client.id,
        client.ip,
    )


class Wills:
    """The wills that a worker publishes."""

    __slots__ = ("_bytes", "_context", "_pending", "_turns", "_waiting", "published")

    def __init__(self, context: EdgeContext) -> None:
        self._context = context
        self._turns = TurnWork(lambda: context.turn.clock(), self._work_off)
        self._waiting: OrderedDict[tuple[str, str], tuple[Owner, SavedWill, DueSession | None]] = OrderedDict()
        """(app, client id) → the will that waits for a later turn, with its owner; `due`: see `publish`; `Ends` explains
        the type"""
        self.published: list[DueSession] = []
        """the due sessions whose wills are published or rejected, until `MqttClients` confirms them"""
        self._bytes = 0
        self._pending = 0

    def publish(self, app: str, client_id: str, owner: Owner, will: SavedWill, due: DueSession | None = None) -> None:
        """Publishes a will in this turn or a later one, if the client may still publish it.

        A rejected will is counted and logged.

        app: the id of the app. owner: the owner of the client id.
        due: the session that is confirmed when the will is published. If it is not confirmed, it is due again later.
        """
        if is_bridge_state(will.topic):
            if due is not None:
                self.published.append(due)
            return
        self.hasten(app, client_id)
        if self._has_time() and not self._waiting:
            self._publish(app, client_id, owner, will, due)
        elif self._bytes + _size(will) > MAX_BYTES:
            if due is None:
                self._refuse(LimitReached(403, "too many wills wait"), app, client_id, will)
        else:
            self._waiting[app, client_id] = owner, will, due
            self._bytes += _size(will)
        self._turns.schedule()

    def hasten(self, app: str, client_id: str) -> None:
        """Publishes a waiting will of a client now, because the client has connected again and may publish."""
        if self._waiting:
            found = self._waiting.pop((app, client_id), None)
            if found is not None:
                self._bytes -= _size(found[1])
                self._publish(app, client_id, *found)

    async def close(self) -> None:
        """Publishes all wills that wait."""
        while self._waiting:
            self.hasten(*next(iter(self._waiting)))
            if self._pending >= MAX_PENDING:
                await join_background()

    def _has_time(self) -> bool:
        return self._turns.has_time and self._pending < MAX_PENDING

    def _work_off(self) -> bool:
        if not self._waiting or self._pending >= MAX_PENDING:
            return False
        self.hasten(*next(iter(self._waiting)))
        return True

    def _publish(self, app: str, client_id: str, owner: Owner, will: SavedWill, due: DueSession | None) -> None:
        self._turns.do(lambda: spawn(self._finish(app, client_id, owner, will, due)))

    async def _finish(self, app: str, client_id: str, owner: Owner, will: SavedWill, due: DueSession | None) -> None:
        self._pending += 1
        is_done = True
        try:
            await _publish_permitted(self._context, app, owner, will)
        except Refused as refused:
            is_done = refused.code != 503
            self._refuse(refused, app, client_id, will)
        except Exception:
            self._context.failed("will")
        self._pending -= 1
        if due is not None and is_done:
            self.published.append(due)
        if self._waiting:
            self._turns.schedule()

    def _refuse(self, refused: Refused, app: str, client_id: str, will: SavedWill) -> None:
        """Counts and logs a rejected will."""
        reason, node = reasons.of_refused(refused, reasons.PUBLISH_CODES), self._context.node
        node.metrics.refusals[reasons.label(reason)] += 1
        node.metrics.of(app).refusals += 1
        where = {"topic": will.topic, "app": app, "client_id": client_id[:64], "ip": will.ip}
        node.refusals.log("will refused", reason, refused.text, **where)


def _size(will: SavedWill) -> int:
    return len(will.payload) + len(will.properties) + WILL_BYTES


async def _publish_permitted(context: EdgeContext, app_id: str, owner: Owner, will: SavedWill) -> None:
    """Publishes a will. Raises Refused."""
    node, settings, config = context.node, context.config.server.mqtt, context.node.apps.by_id(app_id)
    if config is None or not config.enable:
        raise Refused(403, "App is disabled")
    app, client, is_anonymous = node.app(config), EndedClient(will.socket_id, will.ip), owner.kind == "anonymous"
    decides, claims = app.backend_decides.get("publish"), None
    if will.patterns is not None:
        claims = auth.Claims(app_id, "*", will.patterns, None)
    push = settings.anonymous_push if is_anonymous else settings.push
    rights.to_publish_topic(claims, push, config, channel_of(will.topic), decides)
    command = command_of(will, config, settings)
    data = command.data
    if decides is not None and decides(command.channel):
        data = await decisions.publish(node.hooks, app, client, command, owner.name if owner.kind == "user" else None)
    stamp, retain = node.stamp(), None
    expires = 0 if will.expiry is None else stamp[1] + will.expiry * SECOND
    if will.retain:  # [MQTT-3.1.2-15]
        retain = Retain(is_anonymous, context.shared_address(will.ip) if is_anonymous else "")
    published = node.publish(
        app,
        command.channel,
        command.event,
        data,
        stamp,
        client.id,
        options=Options(command.ttl) if command.ttl else DEFAULT_OPTIONS,
        mqtt=MqttFields(will.qos, will.retain, expires, will.properties),
        retain=retain,
    )
    if "client-event" in app.hook_kinds:
        node.reports.client_event(app, command, data, stamp, client.id, None)
    await resolve(published)
