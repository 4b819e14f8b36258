"""The guarantee of status 200: an acknowledged publish reaches each subscriber, even if the broker is away or loses its state.

Each test counts published, acknowledged and delivered events, and fails if one acknowledged event is missing anywhere.
"""

import asyncio
import contextlib
import http.client
import itertools
import json
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from push1st.brokers.redis.bounds import Timings
from tests.cluster.machine import again_and_again, by_worker, connect_to, engine, exists, figure, kill, workers
from tests.cluster.places import Client, Place, on, status, until
from tests.support.process import DEADLINE, ServerProcess, wait_until
from tests.support.pusher_socket import PusherSocket
from tests.support.valkey import Valkey

CHANNEL = "c"
PUBLISHES_PER_SECOND = 200
AWAY_SECONDS = 1.5
KILLS = 3
"""outages in the short form; the long form has ten"""
Fault = Callable[[Valkey], Awaitable[None]]


# Two nodes with a Valkey


class Traffic:
    """Each node publishes continuously, and has a client on the channel."""

    def __init__(self, places: list[Place], clients: list[Client]) -> None:
        self.clients = clients
        self.published = 0
        self.acknowledged: list[str] = []
        self.refused = 0
        self._places = places
        self._over = False
        self._tasks: list[asyncio.Task[None]] = []
        self._publisher = asyncio.ensure_future(self._publish())

    async def _publish(self) -> None:
        for number, place in enumerate(itertools.cycle(self._places)):
            if self._over:
                return
            self._tasks.append(asyncio.ensure_future(self._one(place, str(number))))
            await asyncio.sleep(1 / PUBLISHES_PER_SECOND)

    async def _one(self, place: Place, data: str) -> None:
        self.published += 1
        if await status(place.publish(CHANNEL, data.encode())) == 200:
            self.acknowledged.append(data)
        else:
            self.refused += 1

    async def flows(self) -> None:
        """Waits until each node publishes again."""
        for _ in self._places:
            done = len(self.acknowledged)
            await until(lambda: len(self.acknowledged) > done + 5, lambda: self.refused)  # noqa: B023 - used at once

    async def end(self) -> None:
        self._over = True
        await self._publisher
        await asyncio.gather(*self._tasks)

    @property
    def lost(self) -> list[list[str]]:
        """Returns the acknowledged events that were not delivered, for each client."""
        return [sorted(set(self.acknowledged) - set(client.messages[CHANNEL]), key=int) for client in self.clients]


@asynccontextmanager
async def traffic(**seconds: float) -> AsyncIterator[tuple[Valkey, Traffic]]:
    valkey = Valkey()
    places: list[Place] = []
    try:
        places += [await Place(valkey.url, Timings(renew=0.2, recovery=1, **seconds)).open() for _ in range(2)]
        one = Traffic(places, [await on(place, CHANNEL) for place in places])
        await one.flows()
        yield valkey, one
        await one.flows()
        await one.end()
        for place in places:
            await place.broker.settled()
            assert place.failures == []
        print(f"published {one.published}, acknowledged {len(one.acknowledged)}, refused {one.refused}")
    finally:
        valkey.go_on()
        for place in places:
            await place.close()
        await asyncio.sleep(0.01)
        valkey.close()


async def restarts(valkey: Valkey) -> None:
    valkey.kill()
    valkey.start()


async def is_away(valkey: Valkey) -> None:
    valkey.kill()
    await asyncio.sleep(AWAY_SECONDS)
    valkey.start()


async def is_emptied(valkey: Valkey) -> None:
    valkey.ask("FLUSHALL")
    await asyncio.sleep(0.3)


async def stands_still(valkey: Valkey) -> None:
    valkey.pause()
    await asyncio.sleep(AWAY_SECONDS)
    valkey.go_on()


async def ends_all_connections(valkey: Valkey) -> None:
    valkey.ask("CLIENT", "KILL", "TYPE", "pubsub")


@pytest.mark.parametrize("fault", [restarts, is_away, is_emptied, stands_still, ends_all_connections])
async def test_acknowledged_events_are_delivered_when_the_broker(fault: Fault) -> None:
    async with traffic() as (valkey, one):
        for _ in range(1 if fault in (is_away, stands_still) else 3):
            await fault(valkey)
            await one.flows()
    assert one.lost == [[], []]


async def test_acknowledged_events_are_delivered_when_the_broker_hangs_until_its_connection_is_dropped() -> None:
    """The server still has the old connections when the first node has reconnected."""
    async with traffic(silent=0.5, lease=30) as (valkey, one):
        for _ in range(2):
            await stands_still(valkey)
            await one.flows()
    assert one.lost == [[], []]


# Two workers, whose engine is killed


class Backend:
    """Publishes to one worker on a kept connection, at a fixed rate; records the acknowledged events."""

    def __init__(self, server: ServerProcess, worker: int, rate: float) -> None:
        self.published: list[str] = []
        self.acknowledged: list[str] = []
        self.statuses: set[int] = set()
        self._name = f"worker{worker}-"
        self._period = 1 / rate
        self._next = time.monotonic()
        for _ in range(60):
            before = by_worker(server, "push1st_events_in_total").get(worker, 0)
            self._connection = http.client.HTTPConnection("127.0.0.1", server.api_port, timeout=DEADLINE)
            assert self._publish("other", "") == 200
            if by_worker(server, "push1st_events_in_total").get(worker, 0) > before:
                return
            self.close()
        raise AssertionError(f"no connection reaches worker {worker}")

    def _publish(self, channel: str, data: str) -> int:
        self._connection.request("POST", "/apps/app-test/events", json.dumps({"name": "e", "channels": [channel], "data": data}))
        with self._connection.getresponse() as answer:
            answer.read()
            return answer.status

    def __call__(self) -> None:
        time.sleep(max(0.0, self._next - time.monotonic()))
        self._next = max(self._next + self._period, time.monotonic() - 0.1)
        data = f"{self._name}{len(self.published)}"
        self.published.append(data)
        code = self._publish(CHANNEL, data)
        self.statuses.add(code)
        if code == 200:
            self.acknowledged.append(data)

    def close(self) -> None:
        self._connection.close()


class Reading:
    """A client that stores its events."""

    def __init__(self, client: PusherSocket) -> None:
        self.delivered: set[str] = set()
        self._client = client

    def __call__(self) -> None:
        try:
            self.delivered.add(self._client.receive(0.2)["data"])
        except TimeoutError:
            return


@contextlib.contextmanager
def counted(server: ServerProcess) -> Iterator[list[Backend]]:
    """Publishes 200 events a second at both workers, each with two subscribers; fails if one acknowledged event is missing."""
    failures: list[str] = []
    with contextlib.ExitStack() as stack:
        clients = [connect_to(server, number, stack) for number in (0, 1, 0, 1)]
        for client in clients:
            client.subscribe(CHANNEL)
        readings = [Reading(client) for client in clients]
        backends = [
            stack.enter_context(contextlib.closing(Backend(server, number, PUBLISHES_PER_SECOND / 4))) for number in (0, 1, 0, 1)
        ]
        with contextlib.ExitStack() as reading:
            for one in readings:
                reading.enter_context(again_and_again(one, failures))
            with contextlib.ExitStack() as publishing:
                for backend in backends:
                    publishing.enter_context(again_and_again(backend, failures))
                yield backends
            wait_until(lambda: server.publish(CHANNEL, "e", "last").status == 200, "publishing works")
            wait_until(lambda: all("last" in one.delivered for one in readings), "what came before is there")
        assert failures == []
        assert all(client.connection.close_code is None for client in clients)
        published = [data for backend in backends for data in backend.published]
        acknowledged = {data for backend in backends for data in backend.acknowledged}
        lost = [sorted(acknowledged - one.delivered) for one in readings]
        print(f"published {len(published)}, acknowledged {len(acknowledged)}, lost {[len(one) for one in lost]}")
        assert lost == [[], [], [], []]
        assert set().union(*(backend.statuses for backend in backends)) <= {200, 503}


def kill_engine(server: ServerProcess, backends: list[Backend]) -> float:
    """Returns the seconds in which publishing was rejected although an engine ran.

    Publishing continues for a while before the function returns.
    """
    before, ready = engine(server), server.output.count("engine ready")
    kill(before)
    wait_until(lambda: not exists(before) and server.output.count("engine ready") > ready, "another engine is there", 40)
    there = time.monotonic()
    seconds = 0.0
    for more in (2, 30):
        done = [len(backend.acknowledged) + more for backend in backends]
        wait_until(
            lambda: all(len(backend.acknowledged) > count for backend, count in zip(backends, done, strict=True)),  # noqa: B023
            "all publish again",
            15,
        )
        seconds = seconds or time.monotonic() - there
    return seconds


def test_acknowledged_events_are_delivered_when_the_engine_is_killed(own: ServerProcess) -> None:
    with counted(own) as backends:
        seconds = [kill_engine(own, backends) for _ in range(KILLS)]
    assert figure(own, "push1st_engine_restarts_total") == KILLS
    print("publishing was back after", seconds)
    assert max(seconds) < 3, "the workers were not back at once"


@pytest.mark.long
@pytest.mark.timeout(600)
def test_acknowledged_events_are_delivered_when_the_engine_is_killed_ten_times(own: ServerProcess) -> None:
    """The supervisor increases its delay before each start, up to half a minute."""
    with counted(own) as backends:
        for _ in range(10):
            kill_engine(own, backends)
            time.sleep(3)
    assert figure(own, "push1st_engine_restarts_total") == 10


# A worker that stands still after its engine was killed


@pytest.mark.long
@pytest.mark.timeout(120)
def test_worker_that_hangs_after_the_engine_was_killed_sends_no_false_edges(
    own: ServerProcess, stack: contextlib.ExitStack
) -> None:
    room = "presence-room"
    clients = [connect_to(own, number, stack) for number in (0, 0, 1)]
    for number, client in enumerate(clients):
        client.subscribe(room, {"user_id": str(number)})
    before = engine(own)
    kill(before)
    wait_until(lambda: not exists(before) and own.output.count("engine ready") == 2, "another engine is there")
    wait_until(lambda: own.session_count(room) == 3, "both workers are subscribed")
    time.sleep(2)
    stopped = workers(own)[0]
    kill(stopped, signal.SIGSTOP)
    time.sleep(11)
    kill(stopped, signal.SIGCONT)
    wait_until(lambda: own.session_count(room) == 3, "the worker has registered again", 15)
    time.sleep(1)
    for client in clients[:2]:
        client.round_trip()
        told = [frame for frame in client.frames if frame["event"] == "pusher_internal:member_removed"]
        assert told == []
    assert own.output.count("worker ready") == 2, "it was replaced"
