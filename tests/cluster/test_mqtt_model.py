"""MQTT clients on several nodes and a real server, with random commands and failures, like `test_model.py`.

A client must receive each confirmed message that its subscriptions with QoS 1 or 2 match, at least once as long as its session
lasts, and exactly once without failures. `mqtt_places.py` checks at each message that nothing else arrives. The retained message
of a topic is the last confirmed one.

`make model-cluster` runs many more examples and prints the seed; `ARGS=--hypothesis-seed=N` repeats a run.
"""

import asyncio
import os
import time
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, note, settings
from hypothesis import strategies as st

from push1st.errors import Refused
from tests.cluster.mqtt_places import Clock, Device, MqttPlace, Published, confirm, oblige
from tests.cluster.places import fast, until
from tests.support.valkey import Valkey

NODES, DEVICES = 3, 4
TOPICS = ("a/x", "a/y", "b")
FILTERS = (*TOPICS, "a/+", "#")
TIMINGS = fast(recovery=0.3, backoff=0.05)
CONNECT_SECONDS = 0.02
"""the longest time for which a step waits for its answer"""
REST_SECONDS = 0.6
"""the seconds in which nodes store the progress of their clients"""
EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "6"))

devices = st.integers(0, DEVICES - 1)
nodes = st.integers(0, NODES - 1)
topics = st.sampled_from(TOPICS)
qos = st.integers(0, 2)
connect = st.tuples(
    st.just("connect"), devices, nodes, st.sampled_from((False, False, False, True)), st.sampled_from((0, 60, 60))
)
subscribe = st.tuples(st.just("subscribe"), devices, st.sampled_from(FILTERS), st.sampled_from((0, 1, 1, 2)))
publish = st.tuples(st.just("publish"), devices, topics, st.sampled_from((0, 1, 1, 2)), st.booleans())
burst = st.tuples(st.just("burst"), devices, topics, st.sampled_from((1, 1, 2)))
step = st.one_of(
    connect,
    connect,
    connect,
    subscribe,
    subscribe,
    st.tuples(st.just("unsubscribe"), devices, st.sampled_from(FILTERS)),
    publish,
    publish,
    burst,
    burst,
    st.tuples(st.just("clear"), devices, topics),
    st.tuples(st.just("publish by API"), nodes, topics),
    st.tuples(st.just("publish by API"), nodes, topics),
    st.tuples(st.just("hold"), devices),
    st.tuples(st.just("acknowledge"), devices, st.sampled_from((1, 3, 100))),
    st.tuples(st.just("lose"), devices),
    st.tuples(st.just("lose"), devices),
    st.tuples(st.just("turn")),
    st.tuples(st.just("pause")),
    st.tuples(st.just("rest")),
    st.tuples(st.just("settle")),
    st.tuples(st.just("crash"), nodes),
    st.tuples(st.just("cut"), nodes),
    st.tuples(st.just("heal"), nodes),
    st.tuples(st.just("flush")),
)
plans = st.lists(step, min_size=15, max_size=60)


class World:
    """The nodes, the devices, and the retained messages."""

    def __init__(self, valkey: Valkey, url: str) -> None:
        self.valkey = valkey
        self.url = url
        self.clock = Clock()
        self.numbers = count(1)
        self.places: list[MqttPlace] = []
        self.devices = [Device(f"device{n}", self.clock) for n in range(DEVICES)]
        self.retained = {topic: [Published(0, topic, 0, True, None, 0, True)] for topic in TOPICS}
        """the retained messages that a topic may have"""
        self.tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self.places = [await MqttPlace(self.url, TIMINGS).open() for _ in range(NODES)]
        await until(self.in_step)

    async def step(self, what: str, *args: Any) -> None:
        assert [place.failures for place in self.places] == [[]] * NODES
        match what, *args:
            case "connect", n, k, clean, expiry:
                self.devices[n].connect(self.places[k], clean, expiry)
                await self.answered(lambda: self.devices[n].is_connected)
            case "subscribe", n, filter, qos:
                if (link := self.devices[n].link) is not None and link.is_connected:
                    self.devices[n].subscribe(filter, qos)
                    await self.answered(lambda: not link.subscribing)
            case "unsubscribe", n, filter:
                if self.devices[n].is_connected:
                    self.devices[n].unsubscribe(filter)
            case "publish", n, topic, qos, retain:
                self.publish(self.devices[n], topic, qos, retain)
            case "burst", n, topic, qos:
                for _ in range(8):
                    self.publish(self.devices[n], topic, qos)
            case "clear", n, topic:
                self.publish(self.devices[n], topic, 1, True, b"")
            case "publish by API", k, topic:
                task = asyncio.create_task(self.publish_by_api(self.places[k], topic))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
            case "hold", n:
                self.devices[n].holds = True
            case "acknowledge", n, most:
                if self.devices[n].is_connected:
                    self.devices[n].acknowledge(most)
            case "lose", n:
                self.devices[n].lose()
            case ("turn",):
                await asyncio.sleep(0)
            case ("pause",):
                await asyncio.sleep(0.01)
            case ("rest",):
                await self.rest()
            case ("settle",):
                await self.settle()
            case "crash", k:
                await self.crash(k)
            case "cut", k:
                self.cut(self.places[k])
            case "heal", k:
                self.places[k].heal()
            case ("flush",):
                self.lose_state()
                self.valkey.ask("FLUSHALL")

    async def answered(self, true: Any) -> None:
        """Waits a short time for a condition."""
        end = time.monotonic() + CONNECT_SECONDS
        while not true():
            if time.monotonic() > end:
                return
            await asyncio.sleep(0.001)

    def publish(self, device: Device, topic: str, qos: int, retain: bool = False, payload: bytes | None = None) -> None:
        if device.may_publish:
            message = self.message(topic, qos, retain, device.link, is_empty=payload is not None)
            device.publish(message, str(message.number).encode() if payload is None else payload)

    async def publish_by_api(self, place: MqttPlace, topic: str) -> None:
        message = self.message(topic, 1, False, place)
        try:
            await place.publish(topic.replace("/", "."), str(message.number).encode())
        except Refused as refused:
            if not self.clock.is_faulty:
                place.failures.append(str(refused))
        else:
            confirm(message, self.clock)

    def message(self, topic: str, qos: int, retain: bool, publisher: object, is_empty: bool = False) -> Published:
        message = Published(next(self.numbers), topic, qos, retain, publisher, self.clock.now(), is_empty)
        self.clock.published[message.number] = message
        if retain:
            self.retained[topic].append(message)
        if not is_empty:
            oblige(message, self.devices, self.clock)
        return message

    def lose_state(self) -> None:
        """Handles the loss of the broker's state."""
        self.clock.is_faulty = self.clock.is_state_lost = True
        for device in self.devices:
            device.session.void()
            device.session.expects = None
        for topic in TOPICS:
            nothing = Published(0, topic, 0, True, None, self.clock.now(), True)
            self.retained[topic].append(nothing)

    def cut(self, place: MqttPlace) -> None:
        """Cuts a node off from the broker."""
        self.clock.is_faulty = True
        self.clock.cut.add(place)
        for device in self.devices:
            if device.link is not None and device.link.place is place and not device.session.lasting:
                device.session.void()
        place.cut()

    async def crash(self, k: int) -> None:
        """Ends a node, whose lease expires; another node replaces it."""
        gone = self.places[k]
        self.clock.is_faulty = True
        gone.crash()
        for device in self.devices:
            if device.link is not None and device.link.place is gone:
                device.lost()
        self.valkey.ask("DEL", f"{gone.shards[0].keys.base}:lease:{gone.name}")
        place = self.places[k] = MqttPlace(self.url, TIMINGS)
        names = [one.name for one in self.places]
        for one in self.places:
            one.broker.workers(names)  # the supervisor sends this list
        await place.open()

    async def rest(self) -> None:
        """Waits until the nodes have stored the progress of their clients."""
        before = [(device.link, set(device.session.acknowledged)) for device in self.devices]
        await asyncio.sleep(REST_SECONDS)
        if self.clock.is_faulty:
            return
        for device, (link, acknowledged) in zip(self.devices, before, strict=True):
            if device.link is link is not None and link.is_connected and not link.unacknowledged:
                device.session.stored |= acknowledged

    def in_step(self) -> bool:
        """Returns whether each node is registered on the server in its present state."""
        epoch = self.valkey.ask("GET", f"{self.places[0].shards[0].keys.base}:epoch").split(b"\r\n")[1:2]
        return all(place.connected and place.publishes and [place.epoch] == epoch for place in self.places)

    async def settle(self) -> None:
        """Waits until all messages have arrived, then compares."""
        for place in self.places:
            place.heal()
        await until(self.in_step)
        await until(lambda: not self.tasks and not any(self.is_busy(one) for one in self.devices), self.state)
        if self.clock.is_state_lost or self.clock.cut:
            await asyncio.sleep(REST_SECONDS)  # nodes store the sessions of their clients again
        self.clock.is_state_lost = False
        self.clock.cut.clear()
        for device in self.devices:
            device.holds = False
        await until(self.have_all, self.state)
        await self.compare_retained()
        assert [place.failures for place in self.places] == [[]] * NODES
        for device in self.devices:
            device.session.is_void = False
        self.clock.is_faulty = False
        self.clock.settled = self.clock.now()

    def have_all(self) -> bool:
        """Returns whether all devices have received their messages, and connects those whose sessions last."""
        for n, device in enumerate(self.devices):
            session = device.session
            if device.link is None and (session.is_ambiguous or session.lasting):
                device.connect(self.places[n % NODES], session.is_ambiguous, 60)
            elif device.is_connected:
                if session.is_ambiguous:
                    device.lose()
                else:
                    device.acknowledge(1 << 30)
        return not any(self.is_busy(one) or one.session.due or one.session.is_ambiguous for one in self.devices)

    def is_busy(self, device: Device) -> bool:
        link = device.link
        return link is not None and (
            not link.is_connected or bool(link.unconfirmed) or bool(link.subscribing) or bool(link.unsubscribing)
        )

    def state(self) -> str:
        """Describes the devices, for failures."""
        lines = [str([place.failures for place in self.places])]
        for one in self.devices:
            link, session = one.link, one.session
            lines.append(
                f"{one.name}: link {link and (self.places.index(link.place), link.is_connected, link.end, link.unconfirmed)} "
                f"{session.lasting=} {session.expects=} {session.is_void=} due {sorted(session.due)} "
                f"subscriptions {[(sub.filter, sub.qos, sub.active) for sub in session.subscriptions.values()]} "
                f"seen {sorted(session.seen)[-40:]}"
            )
        return "\n".join(lines)

    async def compare_retained(self) -> None:
        """Checks that a new subscriber receives the last confirmed retained message of each topic."""
        now = self.clock.now()
        for messages in self.retained.values():
            for one in messages:
                one.done = done = one.done or now
                one.is_replaced = any(other.confirmed and other.sent > done for other in messages)
            messages[:] = [one for one in messages if not one.is_replaced]
        for place in self.places:
            probe = Device("probe", self.clock)
            probe.connect(place, True, 0)
            await until(lambda p=probe: p.is_connected, self.state)  # type: ignore[misc]
            for topic in TOPICS:
                probe.subscribe(topic, 1)
            await until(lambda p=probe: not p.link.subscribing, self.state)  # type: ignore[misc]
            await until(lambda p=probe: self.retained_as_expected(p), lambda p=probe: f"{p.retained}\n{self.expected()}")  # type: ignore[misc]
            probe.lose()

    def expected(self) -> dict[str, list[bytes]]:
        """Returns the possible retained messages of each topic; b"" stands for none."""
        return {topic: [b"" if one.is_empty else b"%d" % one.number for one in self.retained[topic]] for topic in TOPICS}

    def retained_as_expected(self, probe: Device) -> bool:
        return all(probe.retained.get(topic, b"") in possible for topic, possible in self.expected().items())

    async def close(self) -> None:
        for device in self.devices:
            device.lose()
        for place in self.places:
            await place.close()
        await asyncio.sleep(0.01)  # time for transports to close


async def run(valkey: Valkey, url: str, plan: list[tuple[Any, ...]]) -> None:
    world = World(valkey, url)
    await world.open()
    try:
        for one in (*CONNECTED, *plan):
            await world.step(*one)
        await world.settle()
    finally:
        await world.close()


CONNECTED = [
    *(("connect", n, n % NODES, False, 60) for n in range(DEVICES)),
    *(("subscribe", n, filter, 1) for n in range(DEVICES - 1) for filter in FILTERS[n:]),
]
"""the first steps of each plan: all devices have lasting sessions, and all but one have subscriptions"""
BURST = ("burst", DEVICES - 1, "a/x", 1)
CRASH = [("hold", 1), BURST, ("pause",), ("acknowledge", 1, 3), ("crash", 1), BURST, ("connect", 1, 0, False, 60)]
LOSS = [BURST, ("flush",), BURST, ("settle",), BURST, ("lose", 0), BURST, ("crash", 1)]


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(plan=plans, prefix=st.integers(0, 1 << 60))
@example([BURST, ("lose", 0), BURST, ("lose", 1), ("connect", 0, 2, False, 60), BURST, ("pause",), BURST], 0)
@example(CRASH, 1)
@example([("settle",), BURST, ("rest",), ("crash", 0), ("crash", 1)], 2)
@example(LOSS, 3)
@example([("lose", 3), ("connect", 3, 0, True, 60), ("crash", 0), ("settle",)], 6)
@example([BURST, ("cut", 0), BURST, ("pause",), ("heal", 0), BURST, ("settle",), BURST], 4)
@example([BURST, ("cut", 1), BURST, ("connect", 1, 2, False, 60), BURST, ("heal", 1), BURST], 5)
def model(valkey: Valkey, plan: list[tuple[Any, ...]], prefix: int) -> None:
    note(f"{plan}")
    valkey.ask("FLUSHALL")
    asyncio.run(run(valkey, f"{valkey.url}?prefix=m{prefix}", plan))


@pytest.mark.long
@pytest.mark.timeout(300 + 15 * EXAMPLES)
def test_each_mqtt_client_receives_its_messages_after_any_faults() -> None:
    valkey = Valkey()
    try:
        model(valkey)
    finally:
        valkey.close()


@pytest.mark.parametrize("plan", [CRASH, LOSS], ids=["crash", "loss of the state"])
def test_each_mqtt_client_receives_its_messages_after_a_fixed_plan(valkey: Valkey, plan: list[tuple[Any, ...]]) -> None:
    asyncio.run(run(valkey, valkey.url, plan))
