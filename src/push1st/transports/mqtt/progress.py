"""Stores the progress of connected clients in a shared broker: twice in `STORE_SECONDS`, for all clients of a worker together.

If the worker dies, another worker continues the sessions from this progress, and sends the messages after the stored cursors
again. A client marks its session when it acknowledges messages. At the next tick, the worker asks for the ends of the session's
logs, which gives a checkpoint (`protocols.mqtt.checkpoints`). The session's cursors move to the ends when the checkpoint is
reached, and are stored at the tick after that. So the cursors of a client are at most `STORE_SECONDS` old.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Protocol

from push1st.brokers.sessions import STORE_SECONDS, Cursor, Progress, SavedProgress
from push1st.core.node import Node
from push1st.core.session import Session
from push1st.eager import spawn
from push1st.errors import Refused
from push1st.protocols.mqtt.checkpoints import Deliveries
from push1st.protocols.mqtt.own import OwnMessage
from push1st.transports.mqtt.lasting import LastingSession

TICK_SECONDS = STORE_SECONDS / 2
SESSIONS_A_TURN = 200
"""the number of sessions that are handled before other connections have a turn"""

Ends = Mapping[tuple[str, str], Cursor]
"""the ends of logs, by the id of the app and the filter"""


class StoredSender(Protocol):
    """The messages to a client."""

    @property
    def deliveries(self) -> Deliveries:
        """The messages that the client has not acknowledged."""

    @property
    def is_holding(self) -> bool:
        """Whether messages wait that are not in `deliveries` yet."""

    def hold(self, waits: Callable[[OwnMessage], bool]) -> None:
        """Holds live messages. waits: a function that returns whether a message waits."""

    def release(self) -> None:
        """Sends the messages that `hold` has kept."""


class StoredSession(Protocol):
    """The session of a connection, which the broker stores."""

    client_id: str
    generation: int
    lasting: LastingSession | None

    @property
    def sender(self) -> StoredSender | None: ...

    @property
    def client(self) -> Session: ...

    def progress(self) -> SavedProgress:
        """Returns the part of the session that changes with messages."""


class SessionProgress:
    """See the module."""

    __slots__ = ("_acknowledged", "_is_ticking", "_node", "_reached", "_timer")

    def __init__(self, node: Node) -> None:
        self._node = node
        self._acknowledged: set[StoredSession] = set()
        """the sessions whose clients have acknowledged messages since the last tick"""
        self._reached: set[StoredSession] = set()
        """the other sessions whose progress is not stored yet: a checkpoint was reached at once, or the progress is large"""
        self._timer: asyncio.TimerHandle | None = None
        self._is_ticking = False

    def mark(self, session: StoredSession) -> None:
        """Stores the progress of a session soon, if the broker needs copies of the session."""
        lasting = session.lasting
        if lasting is not None and lasting.needs_copies:
            self._acknowledged.add(session)
            self._start()

    def store(self, session: StoredSession) -> None:
        """Stores the progress of a session at once."""
        assert self._node.sessions is not None
        self._node.sessions.store_progress([_progress(session)])

    def _start(self) -> None:
        if self._timer is None and not self._is_ticking:
            self._timer = asyncio.get_running_loop().call_later(TICK_SECONDS, self._begin)

    def _begin(self) -> None:
        self._timer = None
        self._is_ticking = True
        spawn(self._tick())

    async def _tick(self) -> None:
        acknowledged, self._acknowledged = self._acknowledged, set()
        reached, self._reached = self._reached, set()
        try:
            await self._store(acknowledged | reached)
            await self._check(acknowledged)
        except Refused:  # the broker is away
            self._acknowledged |= acknowledged
        finally:
            self._is_ticking = False
            if self._acknowledged or self._reached:
                self._start()

    async def _store(self, changed: Iterable[StoredSession]) -> None:
        """Stores the progress of sessions."""
        sessions = self._node.sessions
        assert sessions is not None
        now = self._node.clock.monotonic()
        for some in _slices(changed):
            found: list[Progress] = []
            for session in some:
                lasting = session.lasting
                if lasting is not None and lasting.resumed is None and not session.client.closed:
                    if not lasting.may_store_progress(now):
                        self._reached.add(session)
                        continue
                    lasting.move(_deliveries(session))
                    found.append(_progress(session))
            sessions.store_progress(found)
            await asyncio.sleep(0)

    async def _check(self, acknowledged: Iterable[StoredSession]) -> None:
        """Adds a checkpoint to sessions. Raises Refused(503)."""
        sessions = self._node.sessions
        assert sessions is not None
        ready = [one for one in acknowledged if self._is_ready(one)]
        ends = await sessions.logs.ends({key for one in ready for key in _logs(one)})
        for some in _slices(ready):
            for session in some:
                lasting = session.lasting
                if lasting is None or not self._is_ready(session):
                    continue
                self._node.fanout.flush_subscriber(session.client)
                own = _own(session, ends)
                if lasting.check(own, _deliveries(session)):
                    self._reached.add(session)
                for filter in [one for one in lasting.cursors or () if one not in own]:
                    with suppress(Refused):
                        await lasting.watch_lost(filter, session.client)
            await asyncio.sleep(0)

    def _is_ready(self, session: StoredSession) -> bool:
        """Returns whether a session may have a checkpoint: all its messages are in its deliveries.

        A session that holds messages is checked at the next tick. A doubtful session ends as soon as the broker is reachable.
        """
        lasting = session.lasting
        if lasting is None or lasting.resumed is not None or session.client.closed or lasting.is_doubtful:
            return False
        if session.sender is not None and session.sender.is_holding:
            self._acknowledged.add(session)
            return False
        return True

    async def settle(self, session: StoredSession) -> None:
        """Moves the cursors of a session whose connection has ended to the ends of its logs. Raises Refused(503).

        The session has received all messages up to these ends, and stores those that its client has not acknowledged.
        """
        lasting, sessions = session.lasting, self._node.sessions
        if lasting is None or sessions is None or not lasting.needs_copies or lasting.resumed is not None:
            return
        if keys := _logs(session):
            ends = await sessions.logs.ends(keys)
            if lasting.is_doubtful:
                return
            self._node.fanout.flush_subscriber(session.client)
            lasting.settle(_own(session, ends))


def _progress(session: StoredSession) -> Progress:
    return Progress(session.client.app.config.id, session.client_id, session.generation, session.progress())


def _slices(sessions: Iterable[StoredSession]) -> Iterable[Sequence[StoredSession]]:
    rest = iter(sessions)
    while some := list(islice(rest, SESSIONS_A_TURN)):
        yield some


def _logs(session: StoredSession) -> list[tuple[str, str]]:
    """Returns the logs of a session: pairs of the app's id and a filter."""
    lasting = session.lasting
    cursors = None if lasting is None else lasting.cursors
    return [(session.client.app.config.id, filter) for filter in cursors or ()]


def _own(session: StoredSession, ends: Ends) -> dict[str, Cursor]:
    """Returns the ends of the logs of a session, by filter."""
    return {filter: ends[app, filter] for app, filter in _logs(session) if (app, filter) in ends}


def _deliveries(session: StoredSession) -> Deliveries | None:
    return None if session.sender is None else session.sender.deliveries
