"""The connected MQTT clients of a worker by their client ids, and the settings that their connections share."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from push1st import logs
from push1st.brokers.sessions import DueSession, Owner, SavedSession, SavedWill
from push1st.config.mqtt import Mqtt
from push1st.core import filters
from push1st.eager import Suspended, join_background, run_eagerly, spawn
from push1st.errors import Refused
from push1st.metrics import MqttFigures
from push1st.protocols.mqtt.flow import FlowBounds, FlowCounts
from push1st.protocols.mqtt.own import OwnMessage
from push1st.protocols.mqtt.wire import DROPPED
from push1st.transports.context import EdgeContext
from push1st.transports.ends import LostConnection
from push1st.transports.mqtt.groups import GroupSender, SharedGroups, entries_of
from push1st.transports.mqtt.progress import SessionProgress, StoredSession
from push1st.transports.mqtt.wills import Wills

LOG_SECONDS = 10
"""the minimum seconds between two log lines about messages of an app that are too large"""

MAX_TAKEOVERS = 5
TAKEOVER_SECONDS = 10
"""after `MAX_TAKEOVERS` takeovers of a client id in this time, each new connection is delayed: two clients may have the id"""
DELAY_SECONDS = 1
"""the delay of such a connection"""
MAX_READING = 32
"""the maximum number of sessions that read their logs at once"""
ENDED_A_TURN = 100
"""the number of connections that are ended before other connections have a turn"""
DISTANT_TIME = 1 << 62
"""a time on the wall clock in nanoseconds after the end of all sessions"""

log = logs.get("push1st.transports")


class ClientConnection(LostConnection, Protocol):
    """A connection whose client may be replaced by a newer connection with the same client id."""

    @property
    def flow(self) -> tuple[int, int]:
        """The number of messages in flight to the client, and the number of waiting messages."""

    @property
    def has_place(self) -> bool:
        """See `MqttSession`."""

    @property
    def began(self) -> float:
        """The time at which the broker confirmed the client id for this connection, on `Clock.monotonic`; 0 before this time."""

    def take_over(self) -> None:
        """Ends the connection, because a newer connection has the client id."""

    def lose(self) -> None:
        """Ends the connection, because live messages may not have reached this worker."""


class ClientReceiver(Protocol):
    """The messages of a client."""

    async def published(self) -> None:
        """Returns when the broker has confirmed or rejected the messages with QoS 2."""


class ClientSession(StoredSession, Protocol):
    """The session of a connection.

    generation: the generation of the connection; 0 before the broker has given the client id to the connection.
    """

    owner: Owner

    @property
    def receiver(self) -> ClientReceiver | None: ...

    def copy(self) -> SavedSession:
        """Returns a copy of the session while the client is connected."""


class MqttClients:
    """The clients of all connections of a worker."""

    __slots__ = (
        "_connections",
        "_early",
        "_fights",
        "_is_ticking",
        "_saving",
        "_takeovers",
        "_too_large",
        "_trimmed",
        "_unsaved",
        "bounds",
        "context",
        "counts",
        "groups",
        "progress",
        "reading",
        "settings",
        "wills",
    )

    def __init__(self, context: EdgeContext) -> None:
        self.context = context
        self.settings: Mqtt = context.config.server.mqtt
        server = context.config.server
        self.bounds = FlowBounds(server.mqtt.inflight, server.mqtt.queue, server.outbox)
        self.counts = FlowCounts()
        self.groups = SharedGroups(context.node)
        if context.node.sessions is not None:
            context.node.sessions.logs.is_served = self.groups.is_served
            context.node.sessions.logs.on_recovering = self._recovering
            context.node.sessions.logs.on_recovered = lambda has_messages: spawn(self._recovered(has_messages))
            context.node.sessions.on_taken_over = self.take_over
            context.node.sessions.copy_of = self.copy_of
        self.progress = SessionProgress(context.node)
        self.wills = Wills(context)
        self.reading = asyncio.Semaphore(MAX_READING)
        """bounds the messages of logs in memory, and the load of the broker, when many clients return at once"""
        self._connections: dict[tuple[str, str], tuple[ClientSession, ClientConnection]] = {}
        self._too_large: dict[str, logs.Seldom] = {}
        self._trimmed = logs.Seldom(LOG_SECONDS)
        self._early = logs.Seldom(LOG_SECONDS)
        self._fights = logs.Seldom(LOG_SECONDS)
        self._unsaved = logs.Seldom(LOG_SECONDS)
        self._is_ticking = False
        self._saving: dict[tuple[str, str], set[asyncio.Future[None]]] = {}
        """the clients whose earlier connections store their sessions; the futures end when the sessions are stored"""
        self._takeovers: dict[tuple[str, str], list[float]] = {}
        """the times of the last takeovers of a client id, in seconds on `Clock.monotonic`"""
        context.node.metrics.mqtt_figures = self.figures

    def figures(self) -> MqttFigures:
        """Computes the figures of all clients."""
        node, counts = self.context.node, self.counts
        flows = [connection.flow for _, connection in self._connections.values()]
        dropped = node.metrics.mqtt_dropped + DROPPED + filters.DROPPED
        dropped.update({"expired": counts.expired, "queue-full": counts.queue_full, "too-large": counts.too_large})
        return MqttFigures(
            connected=len(flows),
            absent=0 if node.sessions is None else len(node.sessions),
            inflight=sum(inflight for inflight, _ in flows),
            queued=sum(waiting for _, waiting in flows),
            dropped=dropped,
            resent=counts.resent,
        )

    def log_too_large(self, app: str, size: int, limit: int, client_id: str) -> None:
        """Logs a message that is dropped because its payload is too large: at most one line in `LOG_SECONDS` for each app."""
        seldom = self._too_large.get(app)
        if seldom is None:
            seldom = self._too_large[app] = logs.Seldom(LOG_SECONDS)
        if dropped := seldom.times(self.context.node.clock.monotonic()):
            log.warning("message is too large", app=app, bytes=size, limit=limit, client_id=client_id[:64], dropped=dropped)

    def log_trimmed(self, app: str, client_id: str) -> None:
        """Logs that a client may miss messages, because too many were published while it was absent."""
        if clients := self._trimmed.times(self.context.node.clock.monotonic()):
            log.warning("messages for an absent client were dropped", app=app, client_id=client_id[:64], clients=clients)

    async def pace(self, app: str, client_id: str) -> None:
        """Delays the connection of a client whose client id is taken over too often. app: the id of the app."""
        key, now = (app, client_id), self.context.node.clock.monotonic()
        times = self._takeovers.get(key)
        sessions = self.context.node.sessions
        is_fight = key in self._connections or (sessions is not None and sessions.shared)  # another worker may have the client
        if times is None or not is_fight or now - times[0] >= TAKEOVER_SECONDS or len(times) < MAX_TAKEOVERS:
            return
        if fights := self._fights.times(now):
            log.warning("connections take over a client id too often", app=app, client_id=client_id[:64], delayed=fights)
        await asyncio.sleep(DELAY_SECONDS)

    def claim(self, app: str, session: ClientSession, connection: ClientConnection) -> bool:
        """Gives a client id to a connection; returns false if a client with another owner uses the id (`Owner.may_end`).

        An earlier connection with the client id ends [MQTT-3.1.4-3]. app: the id of the app.
        """
        client_id = session.client_id
        key = app, client_id
        found = self._connections.get(key)
        if found is not None and not self.context.ends.hasten(found[1]):
            known, earlier = found
            if not session.owner.may_end(known.owner):
                return False
            self._count_takeover(key)
            earlier.take_over()
        self.wills.hasten(app, client_id)
        self._connections[key] = session, connection
        return True

    def _count_takeover(self, key: tuple[str, str]) -> None:
        times = self._takeovers.setdefault(key, [])
        times.append(self.context.node.clock.monotonic())
        del times[:-MAX_TAKEOVERS]

    @property
    def connections(self) -> Mapping[tuple[str, str], tuple[ClientSession, ClientConnection]]:
        """The clients by the app's id and the client id."""
        return self._connections

    def is_connected(self, app: str, client_id: str) -> bool:
        """Returns whether a connection has a client id. app: the id of the app."""
        return (app, client_id) in self._connections

    def has_place(self, app: str, client_id: str) -> bool:
        """Returns whether a connection with a client id leaves its place to the next one (`MqttSession.has_place`)."""
        found = self._connections.get((app, client_id))
        return found is not None and found[1].has_place

    def release(self, app: str, client_id: str, connection: object) -> None:
        """Ends the use of a client id by a connection. Does nothing if another connection has the id."""
        found = self._connections.get((app, client_id))
        if found is not None and found[1] is connection:
            del self._connections[app, client_id]

    # Sessions in a shared broker

    def finish(
        self, session: ClientSession, ended: Callable[[], SavedSession], will: SavedWill | None, sender: GroupSender | None
    ) -> None:
        """Stores or ends the session of a connection that ends, and then publishes its will.

        If another worker has taken the client over, this worker changes nothing, and the other worker has the will.

        ended: a function that ends the session on this worker, and returns its state. sender: the messages to the client.
        """
        key = session.client.app.config.id, session.client_id
        rest = run_eagerly(self._save(session, ended, will, sender))
        if isinstance(rest, Suspended):
            done = asyncio.get_running_loop().create_future()
            self._saving.setdefault(key, set()).add(done)
            spawn(self._finish(key, rest, done))

    async def _save(
        self, session: ClientSession, ended: Callable[[], SavedSession], will: SavedWill | None, sender: GroupSender | None
    ) -> None:
        app, client_id, generation = session.client.app.config.id, session.client_id, session.generation
        sessions = self.context.node.sessions
        assert sessions is not None
        if sessions.shared and session.lasting is not None and session.lasting.expiry and session.receiver is not None:
            await session.receiver.published()  # otherwise another worker would publish repetitions of these messages
        with suppress(Refused):  # then the stored cursors are older, so the client receives some messages twice
            await self.progress.settle(session)
        entries = entries_of(sender)
        saved = ended()
        filters = saved.watched
        is_absent = saved.expiry > 0 or (saved.will is not None and sessions.shared)
        try:
            if is_absent:
                generation = await sessions.save(app, client_id, generation, saved, will)
            else:
                generation = await sessions.end(app, client_id, generation, filters, will)
        except Refused as refused:
            generation = 0  # the broker has the will of the connection, and returns it when the session has become absent
            if clients := self._unsaved.times(self.context.node.clock.monotonic()):
                log.warning("session was not saved", app=app, client_id=client_id[:64], reason=refused.text, clients=clients)
        if entries and (remote := self.groups.remote) is not None:
            (remote.end if generation else remote.pass_on)(entries)
        if generation and will is not None:
            due = DueSession(app, client_id, session.owner, will, not is_absent, generation=generation, watched=filters)
            self.wills.publish(app, client_id, session.owner, will, due if sessions.shared else None)

    async def _finish(self, key: tuple[str, str], rest: Suspended[None], done: "asyncio.Future[None]") -> None:
        try:
            await rest
        except Exception:
            self.context.failed("session")
        done.set_result(None)
        self._saving[key].discard(done)
        if not self._saving[key]:
            del self._saving[key]

    async def saved(self, app: str, client_id: str) -> None:
        """Waits until earlier connections of a client have stored the session. app: the id of the app."""
        while found := self._saving.get((app, client_id)):
            await next(iter(found))

    def _doubtful(self) -> list[tuple[ClientSession, ClientConnection]]:
        """Returns the clients that may lack messages (`LastingSession.is_doubtful`)."""
        return [
            (session, connection)
            for session, connection in self._connections.values()
            if session.lasting is not None and session.lasting.cursors is not None and session.lasting.is_doubtful
        ]

    def _recovering(self, is_recovering: Callable[[str, str], bool]) -> None:
        """Holds live messages to the clients that may lack earlier messages, until `_recovered` ends the connections.

        The recovery may take hours, for example while the broker's disk is full. So only those messages wait that may have
        earlier ones in a log. is_recovering: see `Logs.on_recovering`.
        """

        def waits(one: OwnMessage) -> bool:
            return one.qos > 0 and is_recovering(one.message.app, one.message.channel)

        for session, _ in self._doubtful():
            if session.sender is not None and session.lasting is not None and session.lasting.cursors:
                session.sender.hold(waits)

    async def _recovered(self, has_messages: bool) -> None:
        """Makes the clients that may lack messages reconnect, so that they receive these messages from the logs.

        has_messages: see `Logs.on_recovered`.
        """
        ended, losing = 0, list[tuple[ClientSession, ClientConnection]]()
        for session, connection in self._doubtful():
            lasting = session.lasting
            assert lasting is not None
            if has_messages and lasting.cursors:
                lasting.distrust()  # another shard may recover before the connection ends
                losing.append((session, connection))
            elif lasting.trust() and session.sender is not None and lasting.resumed is None:
                session.sender.release()
        for session, connection in losing:
            if not session.client.closed:
                connection.lose()
                ended += 1
                if ended % ENDED_A_TURN == 0:
                    await asyncio.sleep(0)
        if ended:
            log.info("clients reconnect because messages may be missing", clients=ended)

    async def take_over(self, app: str, client_id: str, generation: int) -> None:
        """See `Sessions.on_taken_over`."""
        found = self._connections.get((app, client_id))
        if found is not None and 0 < found[0].generation <= generation:
            self._count_takeover((app, client_id))
            found[1].take_over()
        await self.saved(app, client_id)

    def copy_of(self, app: str, client_id: str, generation: int) -> SavedSession | None:
        """See `Sessions.copy_of`."""
        found = self._connections.get((app, client_id))
        return found[0].copy() if found is not None and 0 < found[0].generation <= generation else None

    # Absent clients

    async def tick(self) -> None:
        """Ends sessions, and publishes wills, whose time has come. Called once a second."""
        node = self.context.node
        since = node.clock.monotonic() - TAKEOVER_SECONDS
        for key in [key for key, times in self._takeovers.items() if times[-1] <= since]:
            del self._takeovers[key]
        if self._is_ticking:
            return
        self._is_ticking = True
        try:
            with suppress(Refused):  # the broker is away
                is_any = await self._end_absent(node.clock.wall())
                while is_any:
                    await asyncio.sleep(0)
                    is_any = await self._end_absent(node.clock.wall())
        finally:
            self._is_ticking = False

    async def _end_absent(self, now: int) -> bool:
        """Publishes the wills that are due. Returns whether anything was due. now: the wall clock in nanoseconds."""
        sessions = self.context.node.sessions
        if sessions is None or (sessions.shared and "mqtt" not in self.context.config.server.proto):
            return False
        due = await sessions.due(now)
        for one in due:
            if one.is_early and (ended := self._early.times(self.context.node.clock.monotonic())):
                log.warning("absent sessions ended early", app=one.app, client_id=one.client_id[:64], ended=ended)
        await self.end(due)
        return bool(due)

    async def end(self, due: Sequence[DueSession]) -> None:
        """Publishes the wills of sessions, gives their messages of groups to other members, and confirms both.

        due: a result of `Sessions.due` or `Sessions.claim`.
        """
        sessions = self.context.node.sessions
        assert sessions is not None
        given = await self.groups.return_all(due)
        for one in given:
            if one.will is not None:
                self.wills.publish(one.app, one.client_id, one.owner, one.will, one if sessions.shared else None)
        await self._confirm([one for one in given if one.will is None])

    async def _confirm(self, due: Sequence[DueSession] = ()) -> None:
        """Confirms the sessions whose wills are published. due: further sessions to confirm."""
        done, self.wills.published = [*self.wills.published, *due], []
        if done and self.context.node.sessions is not None:
            await self.context.node.sessions.confirm(done)

    async def close(self) -> None:
        """Publishes all wills, because the worker stops. The sessions end with the worker, unless the broker is shared."""
        sessions = self.context.node.sessions
        while (sessions is None or not sessions.shared) and await self._end_absent(DISTANT_TIME):
            await self.wills.close()
        if sessions is None or not sessions.shared:
            await self.wills.close()
            return
        await join_background()  # the connections store their sessions
        await self.wills.close()
        await join_background()
        await self._confirm()
