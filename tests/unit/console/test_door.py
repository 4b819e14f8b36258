"""Sessions that end on one worker, as the other workers learn of it."""

import asyncio
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
    """The wires of all workers. away: whether the broker is away; hung: the nodes that do not reply."""

    def __init__(self) -> None:
        self.wires: dict[str, Joined] = {}
        self.away = False
        self.hung: set[str] = set()


class Joined:
    """The wire of a worker (`ConsoleWire`), joined with those of the other workers of the cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.served: dict[str, Any] = {}
        self.requests = 0
        self.name = str(len(cluster.wires))
        cluster.wires[self.name] = self

    def serve(self, kind, handler) -> None:
        self.served[kind] = handler

    def handle(self, kind, handler) -> None:
        self.served[kind] = handler

    def consoles(self):
        return [] if self._cluster.away else [one for one in self._cluster.wires if one != self.name]

    async def request(self, kind, data=b"", *, node="") -> Replies:
        self.requests += 1
        asked = [one for one in ([node] if node else [self.name, *self.consoles()]) if one == self.name or not self._cluster.away]
        found = [(one, self._cluster.wires[one].served[kind](data)) for one in asked if one not in self._cluster.hung]
        await asyncio.sleep(0)
        return Replies(found, sorted(self._cluster.hung.intersection(asked)), "away" if self._cluster.away else "")


class Sockets:
    """The live channel of a worker; it records the sessions whose sockets it closes."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    def end_session(self, nonce: str) -> None:
        self.ended.append(nonce)


class Worker:
    def __init__(self, cluster):
        site = Site()
        self.clock = site.clock
        self.sockets = Sockets()
        self.sessions = OperatorSessions(b"k" * 32)
        self.wire = Joined(cluster)
        wire: Any = self.wire
        password: Any = None
        live: Any = self.sockets
        self.door = ConsoleDoor(
            ConsoleContext(site.node, site.context, wire, self.wire.name, 0, REPORTS), password, self.sessions, live
        )

    async def tick(self, seconds=door.AGAIN_SECONDS):
        self.clock.advance(seconds)
        self.door.tick()
        await turns()

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


async def test_end_of_a_session_is_sent_again_until_the_broker_is_back(cluster):
    one, other = Worker(cluster), Worker(cluster)
    session = one.sessions.begin(NONCE, one.door.now())
    cluster.away = True
    with structlog.testing.capture_logs() as logged:
        await one.door.sign_out(session)
    assert [line["event"] for line in logged] == ["console sign-out not confirmed by other workers"]
    assert not one.accepts(session)
    await one.tick()
    assert other.accepts(session)
    cluster.away = False
    await one.tick()
    assert not other.accepts(session)
    before = one.wire.requests
    await one.tick()
    assert one.wire.requests == before, "and not again"


async def test_end_of_a_session_is_sent_again_every_five_seconds_to_the_worker_that_has_not_replied(cluster):
    one, other, hung = Worker(cluster), Worker(cluster), Worker(cluster)
    session = one.sessions.begin(NONCE, one.door.now())
    cluster.hung = {hung.wire.name}
    with structlog.testing.capture_logs() as logged:
        await one.door.sign_out(session)
    assert [line["reason"] for line in logged] == [f"no reply from {hung.wire.name}"]
    assert not other.accepts(session)
    for _ in range(3):
        await one.tick(1)
    assert one.wire.requests == 2
    cluster.hung = set()
    await one.tick()
    assert one.wire.requests == 3
    assert not hung.accepts(session)


async def test_exchange_that_has_begun_before_a_session_ends_does_not_confirm_the_end(cluster):
    one, other = Worker(cluster), Worker(cluster)
    session = one.sessions.begin(NONCE, one.door.now())
    one.door.tick()
    await asyncio.sleep(0)
    assert one.wire.requests == 1
    cluster.hung = {other.wire.name}
    await one.door.sign_out(session)
    cluster.hung = set()
    assert other.accepts(session)
    await one.tick()
    assert not other.accepts(session)


@pytest.mark.parametrize("hung", [0, 1, 2], ids=["the first worker hangs", "the second worker hangs", "the last worker hangs"])
async def test_end_of_a_session_reaches_all_workers_if_the_worker_of_the_sign_out_dies(cluster, hung):
    workers = [Worker(cluster) for _ in range(4)]
    slow = workers.pop(hung)
    dead = workers.pop()
    for worker in (slow, dead, *workers):
        await worker.tick()
    session = slow.sessions.begin(NONCE, slow.door.now())
    cluster.hung = {slow.wire.name}
    await dead.door.sign_out(session)
    assert not any(worker.accepts(session) for worker in workers)
    assert slow.accepts(session)
    del cluster.wires[dead.wire.name]
    for worker in workers:
        await worker.tick()
    assert slow.accepts(session)
    cluster.hung = set()
    for worker in (*workers, slow):
        await worker.tick()
    assert not slow.accepts(session)


async def test_sign_out_causes_few_requests(cluster):
    workers = [Worker(cluster) for _ in range(20)]
    for worker in workers:
        await worker.tick()
    before = sum(worker.wire.requests for worker in workers)
    await workers[7].door.sign_out(workers[7].sessions.begin(NONCE, workers[7].door.now()))
    for worker in workers * 3:
        await worker.tick()
    assert all(len(worker.sessions.ended) == 1 for worker in workers)
    assert sum(worker.wire.requests for worker in workers) - before <= 3 * len(workers)


@pytest.mark.parametrize("ends_at", ["the worker that stayed", "the worker that was away"])
async def test_workers_exchange_ended_sessions_when_one_of_them_returns(cluster, ends_at):
    """The worker that stayed takes the other one for dead, so nobody waits for its reply."""
    stayed, was_away = Worker(cluster), Worker(cluster)
    await stayed.tick()
    del cluster.wires[was_away.wire.name]
    one, other = (stayed, was_away) if ends_at == "the worker that stayed" else (was_away, stayed)
    session = one.sessions.begin(NONCE, one.door.now())
    one.door._end({session.nonce: session.ends})
    await stayed.tick()
    assert other.accepts(session)
    cluster.wires[was_away.wire.name] = was_away.wire
    await stayed.tick()
    assert not other.accepts(session)


async def test_worker_that_opens_while_the_broker_is_away_learns_later_which_sessions_have_ended(cluster):
    one = Worker(cluster)
    session = one.sessions.begin(NONCE, one.door.now())
    await one.door.sign_out(session)
    cluster.away = True
    new = Worker(cluster)
    with structlog.testing.capture_logs() as logged:
        await new.door.open()
    assert [line["event"] for line in logged] == ["console does not know which sessions have ended"]
    await new.tick()
    assert new.accepts(session)
    cluster.away = False
    await new.tick()
    assert not new.accepts(session)
