"""What a session stores in a shared broker while its client is connected: cursors, copies, and watched filters."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from push1st.brokers.sessions import Claim, Claimed, LogPage, Progress, SavedFlow, SavedSession, SavedSubscription
from push1st.core.session import Session
from push1st.errors import LimitReached, Refused
from push1st.positions import Position
from push1st.protocols.mqtt.outgoing import BLOCK_IDS
from push1st.transports.mqtt import progress
from push1st.transports.mqtt.lasting import LastingSession
from push1st.transports.mqtt.progress import SessionProgress
from tests.support.loop import turns
from tests.support.mqtt_site import MqttSite
from tests.support.node import APP

END = (Position("e", 9),)


class SharedLogs:
    """The logs of a broker that several workers share. calls: the watched and unwatched filters."""

    def __init__(self) -> None:
        self.gaps = 0
        self.calls: list[tuple[str, str]] = []
        self.refused: Refused | None = None
        self.lost: set[str] = set()
        self.when_watched: Callable[[], None] = lambda: None

    def check(self) -> None:
        if self.refused is not None:
            raise self.refused

    async def watch(self, _app: str, _client: str, _generation: int, filter: str, *_: Any, is_known: bool = False) -> Any:
        self.calls.append(("known" if is_known else "watch", filter))
        self.when_watched()
        self.check()
        return END

    async def unwatch(self, _app: str, _client: str, _generation: int, filter: str, *_: Any) -> None:
        self.calls.append(("unwatch", filter))

    async def read(self, *_: Any) -> LogPage:
        return LogPage()

    async def ends(self, keys: Any) -> Any:
        self.check()
        return {key: END for key in keys if key[1] not in self.lost}


class SharedSessions:
    """The sessions of a broker that several workers share."""

    shared = True

    def __init__(self) -> None:
        self.logs = SharedLogs()
        self.progress: list[Progress] = []
        self.copies: list[SavedSession] = []
        self.saved: tuple[SavedSubscription, ...] = ()
        self.flow = SavedFlow()
        self.crashed = False

    async def claim(self, _app: str, _client: str, claim: Claim) -> Claimed:
        return Claimed(5, SavedSession(claim.expiry, self.saved, self.flow), self.crashed)

    async def attach(self, *_: Any) -> bool:
        return True

    def store_progress(self, changed: list[Progress]) -> None:
        self.progress += changed

    async def store(self, _app: str, _client: str, _generation: int, session: SavedSession) -> bool:
        self.logs.check()
        self.copies.append(session)
        return True


@pytest.fixture
def sessions() -> SharedSessions:
    return SharedSessions()


def lasting_session(sessions: SharedSessions, expiry: int = 60) -> LastingSession:
    return LastingSession(sessions, APP, "c", Claimed(1), expiry, False)  # type: ignore[arg-type]


class Connected:
    """A client of a worker whose broker is shared. both: the sessions of this client and of another one."""

    def __init__(
        self,
        sessions: SharedSessions,
        client: Session,
        lasting: LastingSession,
        reports: SessionProgress,
        both: list[Any],
    ) -> None:
        self.sessions = sessions
        self.client = client
        self.lasting = lasting
        self.reports = reports
        self.both = both
        self.session = both[0]

    def cursors(self) -> list[Any]:
        found = [one.saved.cursors for one in self.sessions.progress]
        self.sessions.progress = []
        return found


@pytest.fixture
def connect(sessions: SharedSessions, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Awaitable[Connected]]:
    monkeypatch.setattr(progress, "TICK_SECONDS", 0)
    return lambda: _connected(sessions, monkeypatch)


async def _connected(sessions: SharedSessions, monkeypatch: pytest.MonkeyPatch) -> Connected:
    site = MqttSite()
    for client_id in "cd":
        await site.connected(client_id=client_id)
    monkeypatch.setattr(site.node, "sessions", sessions)
    both = [session for session, _ in site.clients._connections.values()]
    for session in both:
        session.lasting = lasting_session(sessions)
        session.lasting.cursors = {"a": (Position("e", 1),)}
    assert both[0].lasting is not None
    return Connected(sessions, both[0].client, both[0].lasting, SessionProgress(site.node), both)


# Progress


async def test_acknowledged_messages_move_the_cursor(connect: Callable[[], Awaitable[Connected]]) -> None:
    connected = await connect()
    connected.reports.mark(connected.session)
    await turns(20)
    assert connected.cursors() == [{"a": (Position("e", 1),)}, {"a": END}]


async def test_cursor_moves_after_the_broker_was_away_for_a_while(connect: Callable[[], Awaitable[Connected]]) -> None:
    """The client may acknowledge nothing more for a long time."""
    connected = await connect()
    connected.sessions.logs.refused = Refused(503, "away")
    connected.reports.mark(connected.session)
    await turns(20)
    connected.sessions.logs.refused = None
    await turns(20)
    assert connected.lasting.cursors == {"a": END}


async def test_large_progress_is_stored_slowly_and_completely(connect: Callable[[], Awaitable[Connected]]) -> None:
    connected = await connect()
    connected.lasting.cursors = {f"{number}" * 300: (Position("e", 1),) for number in range(1000)}
    connected.reports.mark(connected.session)
    await turns(20)
    assert [set(cursors.values()) for cursors in connected.cursors()] == [{(Position("e", 1),)}]
    connected.session.client.node.clock.advance(5)
    await turns(20)
    assert [set(cursors.values()) for cursors in connected.cursors()] == [{END}]


async def test_cursor_moves_after_the_session_has_held_messages(connect: Callable[[], Awaitable[Connected]]) -> None:
    connected = await connect()
    sender = connected.session.sending()
    sender.hold()
    connected.reports.mark(connected.session)
    await turns(20)
    assert connected.lasting.cursors == {"a": (Position("e", 1),)}
    sender.held = None
    await turns(20)
    assert connected.lasting.cursors == {"a": END}


async def test_doubtful_session_does_not_use_the_broker(connect: Callable[[], Awaitable[Connected]]) -> None:
    connected = await connect()
    connected.lasting.gaps = -1
    connected.sessions.logs.refused = Refused(503, "away")
    connected.reports.mark(connected.session)
    await turns(20)
    assert connected.reports._acknowledged == set()


async def test_lost_log_that_is_refused_does_not_stop_other_sessions(connect: Callable[[], Awaitable[Connected]]) -> None:
    connected = await connect()
    logs = connected.sessions.logs
    logs.lost = {"a"}
    logs.when_watched = lambda: setattr(logs, "refused", LimitReached(403, "too many"))
    for session in connected.both:
        session.lasting.cursors = {"a": (), "b": ()}
        connected.reports.mark(session)
    await turns(20)
    assert [session.lasting.cursors["b"] for session in connected.both] == [END, END]


async def test_filter_that_has_ended_meanwhile_is_not_watched_again(connect: Callable[[], Awaitable[Connected]]) -> None:
    connected = await connect()
    logs, lasting = connected.sessions.logs, connected.lasting
    assert lasting.cursors is not None
    logs.when_watched = lasting.cursors.clear
    await lasting.watch_lost("a", connected.client)
    assert logs.calls == [("known", "a"), ("unwatch", "a")]
    assert lasting.cursors == {}


# Watched filters


async def test_filter_that_the_broker_has_not_confirmed_is_unwatched(sessions: SharedSessions) -> None:
    sessions.logs.refused = Refused(503, "away")
    lasting = lasting_session(sessions)
    with pytest.raises(Refused):
        await lasting.watch("a.+")
    assert sessions.logs.calls == [("watch", "a.+"), ("unwatch", "a.+")]


async def test_session_that_ends_with_its_connection_watches_nothing(sessions: SharedSessions) -> None:
    lasting = lasting_session(sessions, expiry=0)
    await lasting.watch("a")
    assert (sessions.logs.calls, lasting.cursors) == ([], {})


async def test_resumed_filter_is_watched_without_a_check_of_the_bounds(sessions: SharedSessions) -> None:
    await lasting_session(sessions).watch_again(["a", "b"])
    assert sessions.logs.calls == [("known", "a"), ("known", "b")]


# Copies


class Time:
    """A clock in seconds, which waits instead of `asyncio.sleep`."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


async def test_copy_is_stored_only_if_the_subscriptions_have_changed(sessions: SharedSessions) -> None:
    lasting, clock = lasting_session(sessions), Time()
    clock.now = 10
    found = [SavedSubscription("a", 1)]
    for _ in range(2):
        await lasting.store_changed(lambda: SavedSession(60, tuple(found)), clock)  # type: ignore[arg-type]
        found[0] = SavedSubscription("a", 1, cursor=END)
        clock.now += 1
    assert len(sessions.copies) == 1
    found[0] = SavedSubscription("a", 2, cursor=END)
    sessions.logs.refused = Refused(503, "away")
    with pytest.raises(Refused):
        await lasting.store_changed(lambda: SavedSession(60, tuple(found)), clock)  # type: ignore[arg-type]
    sessions.logs.refused = None
    clock.now += 1
    await lasting.store_changed(lambda: SavedSession(60, tuple(found)), clock)  # type: ignore[arg-type]
    assert sessions.copies[1:] == [SavedSession(60, tuple(found))]


async def test_connection_that_has_not_claimed_its_client_id_has_no_copy(connect: Callable[[], Awaitable[Connected]]) -> None:
    """The broker would store an empty session for the client's last connection, whose session is not saved yet."""
    session = (await connect()).session
    session.generation = 5
    assert session.clients.copy_of(APP, "c", 5) is not None
    session.generation = 0
    assert session.clients.copy_of(APP, "c", 5) is None


async def test_large_copies_are_stored_slowly(sessions: SharedSessions, monkeypatch: pytest.MonkeyPatch) -> None:
    lasting, clock = lasting_session(sessions), Time()
    monkeypatch.setattr(asyncio, "sleep", clock.sleep)
    subscriptions = [SavedSubscription("x" * 1000 + str(number), 1) for number in range(1000)]
    for number in range(5):
        subscriptions.append(SavedSubscription(str(number), 1))
        await lasting.store_changed(lambda: SavedSession(60, tuple(subscriptions)), clock)  # type: ignore[arg-type]
    assert len(sessions.copies) == 5
    assert 4 <= clock.now < 4.5


@pytest.mark.parametrize("saved", [(SavedSubscription("a", 2, cursor=END),), ()])
async def test_packet_ids_after_a_crash_are_stored_with_the_resumption(
    sessions: SharedSessions, monkeypatch: pytest.MonkeyPatch, saved: tuple[SavedSubscription, ...]
) -> None:
    """Otherwise the next worker would use the same ids again if this one died before the next tick."""
    site = MqttSite()
    monkeypatch.setattr(site.node, "sessions", sessions)
    monkeypatch.setattr(progress, "TICK_SECONDS", 60)
    sessions.saved, sessions.flow, sessions.crashed = saved, SavedFlow(next_id=2), True
    await site.connected(client_id="c", clean=False)
    assert [one.saved.flow.next_id for one in sessions.progress] == [BLOCK_IDS + 1]


@pytest.mark.parametrize("is_permitted", [True, False])
async def test_subscription_that_is_removed_at_the_resumption_is_not_in_the_copy(
    sessions: SharedSessions, monkeypatch: pytest.MonkeyPatch, is_permitted: bool
) -> None:
    """Otherwise another worker would restore the subscription if the client had the right again."""
    site = MqttSite()
    monkeypatch.setattr(site.node, "sessions", sessions)
    names = ("+", "b", "a") if is_permitted else ("+", "private-b", "a")
    sessions.saved = tuple([SavedSubscription(name, 1, cursor=END) for name in names])
    await site.connected(client_id="c", clean=False)
    await turns(20)
    copied = [[one.filter for one in copy.subscriptions] for copy in sessions.copies]
    assert copied == ([] if is_permitted else [["a", "+"]])
