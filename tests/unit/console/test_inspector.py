"""The inspector: watches of operators on one worker and on several workers."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from push1st.console import inspector
from push1st.console.inspector import Inspector
from push1st.core import tap
from push1st.eager import resolve
from push1st.errors import Refused
from tests.support.node import World
from tests.support.process import DEADLINE

FAST = 0.01
"""the time between two batches in these tests, in seconds"""


class Bus:
    """The wires of several workers. away: whether messages to other workers are lost."""

    def __init__(self) -> None:
        self.handlers: dict[str, dict[str, Callable[[bytes], None]]] = {}
        self.away = False


class BusWire:
    """The wire of one worker (`ConsoleWire`), of which the inspector uses two methods."""

    def __init__(self, bus: Bus, name: str) -> None:
        self._bus = bus
        self._name = name
        bus.handlers[name] = {}

    def handle(self, kind: str, handler: Callable[[bytes], None]) -> None:
        self._bus.handlers[self._name][kind] = handler

    def send(self, kind: str, data: bytes, node: str = "") -> int:
        names = [node] if node else list(self._bus.handlers)
        reached = [name for name in names if name == self._name or not self._bus.away]
        for name in reached:
            self._bus.handlers[name][kind](data)
        return len(reached)


class Worker:
    """A worker with a node and an inspector."""

    def __init__(self, bus: Bus, name: str) -> None:
        self.world = World()
        self.node = self.world.node
        config = SimpleNamespace(apps=[self.world.app.config])
        context: Any = SimpleNamespace(
            node=self.node, wire=BusWire(bus, name), name=name, worker="web-1:0", config=lambda: config
        )
        self.inspector: Any = Inspector(context)

    async def publish(self, channel: str = "news", count: int = 1) -> None:
        for _ in range(count):
            await resolve(self.node.publish(self.world.app, channel, "e", b"1", self.node.stamp()))


class Socket:
    """The WebSocket of an operator."""

    def __init__(self) -> None:
        self.closed = False
        self.unsent = 0
        self.messages: list[dict[str, Any]] = []
        self.came = asyncio.Event()

    def send(self, text: bytes) -> None:
        self.messages.append(msgspec.json.decode(text))
        self.came.set()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [event for message in self.messages for event in message.get("events", ())]

    async def until(self, is_so: Callable[["Socket"], object]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not is_so(self):
                self.came.clear()
                await self.came.wait()


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspector, "TICK_SECONDS", FAST)


async def until(is_so: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not is_so():  # noqa: ASYNC110 - the taps set no event
            await asyncio.sleep(FAST / 10)


async def test_operator_sees_the_events_of_all_workers() -> None:
    bus = Bus()
    here, there = Worker(bus, "here"), Worker(bus, "there")
    socket = Socket()
    here.inspector.watch(socket, {"watch": "inspector", "filter": {"channel": "n"}})
    assert socket.messages == [{"events": [], "dropped": {}, "worker": "web-1:0"}]
    await there.publish()
    await here.publish()
    await here.publish("other")
    await socket.until(lambda one: len(one.events) == 2)
    assert {event["worker"] for event in socket.events} == {"here", "there"}


async def test_tap_is_none_before_and_after_a_watch() -> None:
    bus = Bus()
    workers = [Worker(bus, "here"), Worker(bus, "there")]
    socket = Socket()

    def taps() -> set[bool]:
        nodes = [one.node for one in workers]
        found = [[node.tap, node.signins.tap, node.refusals.tap, node.hooks.tap] for node in nodes]
        return {one is None for tap in found for one in tap}

    assert taps() == {True}
    workers[0].inspector.watch(socket, {})
    assert taps() == {False}
    workers[0].inspector.unwatch(socket)
    assert taps() == {True}


async def test_next_watch_of_a_socket_replaces_the_earlier_one() -> None:
    worker, socket = Worker(Bus(), "here"), Socket()
    worker.inspector.watch(socket, {"filter": {"channel": "a"}})
    worker.inspector.watch(socket, {"filter": {"channel": "b"}})
    await worker.publish("a")
    await worker.publish("b")
    await socket.until(lambda one: one.events)
    assert [event["channel"] for event in socket.events] == ["b"]


async def test_filter_that_is_not_valid_changes_nothing() -> None:
    worker, socket = Worker(Bus(), "here"), Socket()
    worker.inspector.watch(socket, {"filter": {"channel": "a"}})
    with pytest.raises(Refused):
        worker.inspector.watch(socket, {"filter": {"nothing": 1}})
    await worker.publish("a")
    await socket.until(lambda one: one.events)


async def test_fifth_watch_is_rejected() -> None:
    bus = Bus()
    here, there = Worker(bus, "here"), Worker(bus, "there")
    for _ in range(tap.MAX_WATCHES):
        here.inspector.watch(Socket(), {})
    for worker in (here, there):
        with pytest.raises(Refused) as refused:
            worker.inspector.watch(Socket(), {})
        assert refused.value.code == 429


@pytest.mark.parametrize("unsent", [0, inspector.MAX_UNSENT + 1], ids=["a page that reads", "a page that is behind"])
async def test_worker_that_has_no_room_reports_it_to_the_operator(unsent: int) -> None:
    bus = Bus()
    here, there = Worker(bus, "here"), Worker(bus, "there")
    bus.away = True
    for _ in range(tap.MAX_WATCHES):
        there.inspector.watch(Socket(), {})
    bus.away = False
    socket = Socket()
    socket.unsent = unsent
    here.inspector.watch(socket, {})
    assert "4 inspectors are watching" in socket.messages[-1]["error"]


async def test_watch_of_a_closed_socket_makes_room() -> None:
    worker = Worker(Bus(), "here")
    sockets = [Socket() for _ in range(tap.MAX_WATCHES)]
    for socket in sockets:
        worker.inspector.watch(socket, {})
    sockets[2].closed = True
    worker.inspector.watch(Socket(), {})


async def test_watch_ends_if_the_worker_of_the_operator_is_lost() -> None:
    bus = Bus()
    here, there = Worker(bus, "here"), Worker(bus, "there")
    here.inspector.watch(Socket(), {})
    await there.publish()
    assert there.node.tap is not None
    there.world.clock.advance(tap.WATCH_SECONDS)
    await until(lambda: there.node.tap is None)


async def test_watch_is_renewed_while_its_socket_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspector, "FIRST_RENEWAL_SECONDS", FAST)
    monkeypatch.setattr(inspector, "RENEW_SECONDS", FAST)
    bus = Bus()
    here, there, socket = Worker(bus, "here"), Worker(bus, "there"), Socket()
    here.inspector.watch(socket, {})
    watch = there.node.tap.watches[0] if there.node.tap is not None else None
    assert watch is not None
    there.world.clock.advance(tap.WATCH_SECONDS - 1)
    await until(lambda: watch.until > there.world.clock.monotonic() + tap.WATCH_SECONDS - 1)
    late = Worker(bus, "late")
    await until(lambda: late.node.tap is not None)
    socket.closed = True
    await until(lambda: here.node.tap is None and there.node.tap is None and late.node.tap is None)


async def test_events_wait_until_the_worker_of_the_operator_can_be_reached() -> None:
    bus = Bus()
    here, there, socket = Worker(bus, "here"), Worker(bus, "there"), Socket()
    here.inspector.watch(socket, {})
    bus.away = True
    await there.publish(count=3)
    for _ in range(5):
        await asyncio.sleep(FAST)
    await there.publish()
    bus.away = False
    await socket.until(lambda one: len(one.events) == 4)
    assert not any(message["dropped"] for message in socket.messages)


@pytest.mark.parametrize("is_quiet", [False, True], ids=["more events", "a renewal"])
async def test_slow_page_gets_counts_in_place_of_events(monkeypatch: pytest.MonkeyPatch, is_quiet: bool) -> None:
    monkeypatch.setattr(inspector, "FIRST_RENEWAL_SECONDS", FAST)
    worker, socket = Worker(Bus(), "here"), Socket()
    worker.inspector.watch(socket, {})
    socket.unsent = inspector.MAX_UNSENT + 1
    await worker.publish(count=tap.MAX_RATE + 5)
    await until(lambda: sum(sum(one.values()) for one in worker.inspector._missed.values()) == tap.MAX_RATE + 5)
    assert socket.events == []
    socket.unsent = 0
    if not is_quiet:
        await worker.publish()
        await socket.until(lambda one: one.events)
    await socket.until(lambda one: any(message["dropped"] for message in one.messages))
    assert [one["dropped"] for one in socket.messages if one["dropped"]] == [{"published": tap.MAX_RATE + 5}]
    worker.inspector.unwatch(socket)


async def test_many_events_that_cannot_be_sent_are_counted() -> None:
    bus = Bus()
    here, there, socket = Worker(bus, "here"), Worker(bus, "there"), Socket()
    here.inspector.watch(socket, {})
    bus.away = True
    await there.publish(count=tap.MAX_BATCH + 2)
    bus.away = False
    await socket.until(lambda one: one.messages[-1].get("dropped"))
    assert socket.messages[-1]["dropped"] == {"published": tap.MAX_BATCH}
    assert len(socket.events) == 2
