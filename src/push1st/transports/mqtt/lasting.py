"""The part of an MQTT session that outlives the connection, and the session in the form that the broker stores.

While the client is connected, the core's session has its subscriptions, and the wire of each subscription has the options. So a
session that outlives its connection needs no second register of subscriptions.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Final

import msgspec

from push1st.brokers.sessions import Claimed, Cursor, SavedSession, SavedSubscription, Sessions
from push1st.clock import Clock
from push1st.core.hub import Wire
from push1st.core.session import Session
from push1st.errors import Refused
from push1st.hooks import Decision
from push1st.protocols.mqtt.checkpoints import Checkpoint, Checkpoints, Deliveries
from push1st.protocols.mqtt.own import MqttOwnWire
from push1st.protocols.mqtt.topics import name_of
from push1st.protocols.mqtt.wire import MqttWire

COPY_BYTES_A_SECOND = 1 << 20
"""the bytes of copies that one session stores in a second"""
PROGRESS_BYTES_A_SECOND = 1 << 18
"""the bytes of progress that one session stores in a second, if its progress is larger than the next number"""
SMALL_PROGRESS = 32 << 10
FILTER_BYTES = 50
"""the approximate number of bytes of a filter in a copy in addition to its name, and of a position in the progress"""
LACKING = -1
"""the value of `LastingSession.gaps` if the session lacks messages that are in its logs"""
NOTHING_DECIDED: Final[Mapping[str, Decision | Refused]] = {}


class LastingSession:
    """A session that the broker has given to a connection (`Sessions.claim`).

    expiry: the seconds for which the session outlives the connection; 0: the session ends with the connection.
    resumed: the saved session, until it is restored; None for a new session.
    decided: channel or filter → the decision of the app's backend, if the restoration has already requested it.
    is_anonymous: whether the client has proved no identity.
    cursors: the cursors of the logged subscriptions, by filter; None if the broker has no logs for connected clients.
    has_saved: whether messages of the resumed session may be unacknowledged (`SavedProgress`).
    """

    __slots__ = (
        "_app",
        "_checkpoints",
        "_client_id",
        "_is_anonymous",
        "_progress_at",
        "_sessions",
        "_stored",
        "crashed",
        "cursors",
        "decided",
        "expiry",
        "gaps",
        "generation",
        "has_saved",
        "resumed",
        "saved",
        "stores_at",
    )

    def __init__(self, sessions: Sessions, app: str, client_id: str, claimed: Claimed, expiry: int, is_anonymous: bool) -> None:
        self._sessions = sessions
        self._app = app
        self._client_id = client_id
        self._is_anonymous = is_anonymous
        self.generation = claimed.generation
        self.resumed: SavedSession | None = claimed.session
        self.crashed = claimed.crashed
        self.decided: Mapping[str, Decision | Refused] = NOTHING_DECIDED
        self.expiry = expiry
        self.cursors: dict[str, Cursor] | None = {} if sessions.shared else None
        self.gaps = sessions.logs.gaps
        """`Logs.gaps` when all earlier messages were in the session or after its cursors"""
        self._checkpoints: Checkpoints[dict[str, Cursor]] = Checkpoints()
        self.has_saved = False
        self.saved: Checkpoint[None] | None = None
        """the messages of the resumed session that the client had not acknowledged; None until the deliveries are restored"""
        self._stored: frozenset[SavedSubscription] | None = None
        """the subscriptions in the last copy, without cursors; None if they are unknown"""
        self._progress_at = 0.0
        self.stores_at = 0.0
        """the time before which no other copy is stored, in seconds on `Clock.monotonic`"""
        if claimed.session is not None:
            self.has_saved = bool(claimed.session.flow.inflight or claimed.session.flow.waiting)
            self._keep_cursors(claimed.session.subscriptions)
            self._stored = _without_cursors(claimed.session)

    def _keep_cursors(self, subscriptions: Iterable[SavedSubscription]) -> None:
        if self.cursors is not None:
            self.cursors.update({one.filter: one.cursor for one in subscriptions if one.cursor is not None})

    @property
    def needs_copies(self) -> bool:
        """Whether the broker needs copies of the session while the client is connected."""
        return self.cursors is not None

    def accept(self, expiry: int) -> None:
        """Handles CONNACK: the client has returned, so the will of the resumed session is never published. expiry: see above."""
        self.expiry = expiry
        if self.resumed is not None:
            self.resumed = msgspec.structs.replace(self.resumed, will=None)

    @property
    def is_doubtful(self) -> bool:
        """Whether the session may lack messages that are in its logs. Then the cursors must not move."""
        return self.gaps != self._sessions.logs.gaps

    def trust(self) -> bool:
        """Ends the doubt, because the logs have no messages that the session lacks. Returns false after `distrust`."""
        if self.gaps != LACKING:
            self.gaps = self._sessions.logs.gaps
        return self.gaps != LACKING

    def distrust(self) -> None:
        """Keeps the session doubtful until its connection ends."""
        self.gaps = LACKING

    async def watch(self, filter: str) -> None:
        """Adds a filter with QoS 1 or 2. Raises Refused."""
        if self.cursors is not None and not self.expiry:
            return  # the session needs no log of the shared broker, and is not stored if the worker dies
        key = self._app, self._client_id, self.generation, filter, self._is_anonymous
        try:
            end = await self._sessions.logs.watch(*key)
        except Refused as refused:
            if refused.code == 503:  # some parts of the log may have the client
                with suppress(Refused):
                    await self._sessions.logs.unwatch(*key)
            raise
        if self.cursors is not None and end is not None:
            self.cursors[filter] = end

    async def watch_lost(self, filter: str, client: Session) -> None:
        """Watches a filter again, whose log the shared broker has lost. Raises Refused. client: the client of the session."""
        key = self._app, self._client_id, self.generation, filter, self._is_anonymous
        end = await self._sessions.logs.watch(*key, is_known=True)
        if self.cursors is None or filter not in self.cursors or (client.closed and not self.expiry):
            await self._sessions.logs.unwatch(*key)  # the subscription has ended during the request
        elif end is not None:
            self.cursors[filter] = end

    async def unwatch(self, filter: str) -> None:
        if self.cursors is not None:
            self.cursors.pop(filter, None)
            self._checkpoints = Checkpoints()  # the filter may return with another cursor
        await self._sessions.logs.unwatch(self._app, self._client_id, self.generation, filter, self._is_anonymous)

    async def watch_again(self, filters: Iterable[str]) -> None:
        """Watches the filters of a resumed session with the generation of this connection, if the broker is shared."""
        if self.cursors is not None:
            watch, client = self._sessions.logs.watch, (self._app, self._client_id, self.generation)
            await asyncio.gather(*(watch(*client, filter, self._is_anonymous, is_known=True) for filter in filters))

    # Copies while the client is connected

    def has_received_saved(self, deliveries: Deliveries) -> bool:
        """Returns whether the client has received all messages that the session had when it was resumed."""
        return self.saved is not None and self.saved.is_reached(deliveries)

    async def store_changed(self, copy: Callable[[], SavedSession], clock: Clock) -> None:
        """Stores a copy of the session if its subscriptions have changed. Raises Refused(503).

        Each copy has all subscriptions. So large copies follow each other slowly. copy: a function that returns the copy.
        """
        session = copy()
        if _without_cursors(session) == self._stored:
            return
        pause = self.stores_at - clock.monotonic()
        if pause > 0:
            await asyncio.sleep(pause)
            session = copy()
        size = sum([FILTER_BYTES + len(one.filter) for one in session.subscriptions])
        self.stores_at = clock.monotonic() + size / COPY_BYTES_A_SECOND
        self._stored = None
        await self.store(session)
        self._stored = _without_cursors(session)

    def may_store_progress(self, now: float) -> bool:
        """Returns whether the progress is stored now. Large progress follows the last one slowly, because it has all cursors.

        now: the time in seconds on `Clock.monotonic`.
        """
        if now < self._progress_at:
            return False
        cursors = self.cursors or {}
        size = sum([len(filter) + FILTER_BYTES * len(cursor) for filter, cursor in cursors.items()])
        if size > SMALL_PROGRESS:
            self._progress_at = now + size / PROGRESS_BYTES_A_SECOND
        return True

    # Cursors while the client is connected

    def check(self, ends: dict[str, Cursor], deliveries: Deliveries | None) -> bool:
        """Adds a checkpoint. Returns whether it is reached at once. ends: the ends of the logs, by filter."""
        if deliveries is not None:
            self._checkpoints.add(ends, deliveries)
            return self.move(deliveries)
        self._move(ends)
        return True

    def move(self, deliveries: Deliveries | None) -> bool:
        """Moves the cursors to the last checkpoint that the client has reached. Returns whether there is one."""
        ends = None if deliveries is None else self._checkpoints.reached(deliveries)
        if ends is not None:
            self._move(ends)
        return ends is not None

    def settle(self, ends: dict[str, Cursor]) -> None:
        """Moves the cursors to the ends of logs, by filter, at the end of the connection."""
        self._checkpoints = Checkpoints()  # an earlier checkpoint would move the cursors back
        self._move(ends)

    def _move(self, ends: dict[str, Cursor]) -> None:
        if self.cursors is not None:
            self.cursors.update({filter: end for filter, end in ends.items() if filter in self.cursors})

    def with_cursors(self, subscriptions: tuple[SavedSubscription, ...]) -> tuple[SavedSubscription, ...]:
        """Returns the subscriptions with their cursors."""
        if not self.cursors:
            return subscriptions
        cursors = self.cursors
        return tuple([msgspec.structs.replace(one, cursor=cursors.get(one.filter)) for one in subscriptions])

    async def store(self, session: SavedSession) -> bool:
        """Stores a copy of the session. Returns false if a later connection has the client id. Raises Refused(503)."""
        return await self._sessions.store(self._app, self._client_id, self.generation, session)

    async def attach(self) -> bool:
        """Completes the resumption. Returns false if a later connection has the client id."""
        return await self._sessions.attach(self._app, self._client_id, self.generation)

    async def leave(self, session: SavedSession) -> bool:
        """Stores the session, or ends the session if it does not outlive the connection.

        Returns false if a later connection has the client id. Raises Refused(503).
        """
        if session.expiry:
            return bool(await self._sessions.save(self._app, self._client_id, self.generation, session))
        filters = [one.filter for one in session.subscriptions if one.is_logged]
        return bool(await self._sessions.end(self._app, self._client_id, self.generation, filters))


def _without_cursors(session: SavedSession) -> frozenset[SavedSubscription]:
    return frozenset([msgspec.structs.replace(one, cursor=None) for one in session.subscriptions])


def subscriptions_of(client: Session, silent: Iterable[str]) -> tuple[SavedSubscription, ...]:
    """Returns the subscriptions of a client. silent: see `MqttSession.silent`."""
    found = [_saved(channel, one.lane.wire) for channel, one in client.subscriptions.items()]
    found += [_saved(filter, lane.wire) for filter, lane in (client.filters or {}).items()]
    found += [SavedSubscription(name_of(filter)) for filter in silent]
    return tuple(found)


def _saved(filter: str, wire: Wire) -> SavedSubscription:
    if isinstance(wire, MqttOwnWire):
        ids = wire.subscription_ids
        return SavedSubscription(filter, wire.qos, wire.no_local, wire.retain_as_published, ids[0] if ids else 0)
    assert isinstance(wire, MqttWire)
    return SavedSubscription(filter, 0, False, wire.retain_as_published, wire.subscription_id)
