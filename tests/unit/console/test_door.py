"""Sessions that end on one worker, as the other workers learn of it."""

from typing import Any

import pytest
import structlog

from push1st.console import door
from push1st.console.door import ConsoleDoor
from push1st.console.endpoints import ConsoleContext
from push1st.console.sessions import OperatorSessions
from push1st.console.wire import Replies
from push1st.errors import Refused
from tests.support.loop import turns
from tests.support.reports import REPORTS
from tests.support.transport import Site

NONCE = "0123456789abcdefABCDEF"


class Cluster:
    """The wires of all workers. away: whether the broker is away."""

    def __init__(self) -> None:
        self.wires: list[Joined] = []
        self.away = False


class Joined:
    """The wire of a worker (`ConsoleWire`), joined with those of the other workers of the cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.served: dict[str, Any] = {}
        self.requests = 0
        cluster.wires.append(self)

    def serve(self, kind, handler) -> None:
        self.served[kind] = handler

    def handle(self, kind, handler) -> None:
        self.served[kind] = handler

    async def request(self, kind, data=b"") -> Replies:
        reached = [self] if self._cluster.away else self._cluster.wires
        self.requests += 1
        return Replies([("node", wire.served[kind](data)) for wire in reached], [], "away" if self._cluster.away else "")


class Sockets:
    """The live channel of a worker; it records the sessions whose sockets it closes."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    def end_session(self, nonce: str) -> None:
        self.ended.append(nonce)


class Worker:
    def __init__(self, cluster):
        site = Site()
        self.sockets = Sockets()
        self.sessions = OperatorSessions(b"k" * 32)
        wire: Any = Joined(cluster)
        password: Any = None
        live: Any = self.sockets
        self.door = ConsoleDoor(ConsoleContext(site.node, site.context, wire, "node", 0, REPORTS), password, self.sessions, live)

    def accepts(self, session):
        try:
            return self.door.session(self.sessions.value(session)) == session
        except Refused as exc:
            return exc.code != 401


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


async def test_session_that_ends_on_one_worker_is_rejected_by_all(cluster):
    one, other = Worker(cluster), Worker(cluster)
    session = one.sessions.begin(NONCE, one.door.now())
    assert one.accepts(session)
    assert other.accepts(session)
    await one.door.sign_out(session)
    assert not one.accepts(session)
    assert not other.accepts(session)
    assert set(one.sockets.ended) == set(other.sockets.ended) == {NONCE}


async def test_new_worker_requests_the_sessions_that_ended_before_its_start(cluster):
    one = Worker(cluster)
    session = one.sessions.begin(NONCE, one.door.now())
    await one.door.sign_out(session)
    new = Worker(cluster)
    await new.door.open()
    assert not new.accepts(session)
    assert new.accepts(new.sessions.begin(NONCE + "2", new.door.now()))


async def test_end_of_a_session_is_sent_again_until_the_broker_is_back(cluster, monkeypatch):
    monkeypatch.setattr(door, "AGAIN_SECONDS", 0)
    one, other = Worker(cluster), Worker(cluster)
    session = one.sessions.begin(NONCE, one.door.now())
    cluster.away = True
    with structlog.testing.capture_logs() as logged:
        await one.door.sign_out(session)
    assert [line["event"] for line in logged] == ["console sign-out not confirmed by other workers"]
    assert not one.accepts(session)
    await turns()
    assert other.accepts(session)
    cluster.away = False
    await turns()
    assert not other.accepts(session)
    before = cluster.wires[0].requests
    await turns()
    assert cluster.wires[0].requests == before, "and not again"


async def test_worker_that_opens_while_the_broker_is_away_learns_later_which_sessions_have_ended(cluster, monkeypatch):
    monkeypatch.setattr(door, "AGAIN_SECONDS", 0)
    one, new = Worker(cluster), Worker(cluster)
    session = one.sessions.begin(NONCE, one.door.now())
    await one.door.sign_out(session)
    new.sessions = new.door._sessions = OperatorSessions(b"k" * 32)
    cluster.away = True
    with structlog.testing.capture_logs() as logged:
        await new.door.open()
    assert [line["event"] for line in logged] == ["console does not know which sessions have ended"]
    assert new.accepts(session)
    cluster.away = False
    await turns()
    assert not new.accepts(session)
