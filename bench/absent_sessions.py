"""Measures the cost of absent MQTT sessions for a publish, and the memory of the sessions. It takes some seconds.

    python bench/absent_sessions.py

A figure is the fastest of the repetitions, in microseconds for `Memory.publish` of one message with QoS 1, without sockets and
without subscribers.

- **none**: no session is absent.
- **elsewhere**: 10,000 sessions are absent, and none of their filters matches the message.
- **exact**, **wildcard**: the filter of 10,000 absent sessions matches the message, whose log is full.

The goal is that 10,000 absent sessions add 2 µs, a fifth of the CPU time of a publish with QoS 1 and one subscriber. The exit
code is 1 if the goal is missed.
"""

import gc
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

from report import grid

from push1st.brokers.local_roster import LocalRoster
from push1st.brokers.memory import Memory
from push1st.brokers.memory_history import MemoryHistory
from push1st.brokers.memory_sessions import MemorySessions
from push1st.brokers.sessions import Claim, Claimed, Owner, SavedSession, SavedSubscription
from push1st.config.history import HistoryBounds
from push1st.config.mqtt import Mqtt
from push1st.eager import run_eagerly
from push1st.messages import MqttFields, MqttMessage
from push1st.metrics import Metrics

APP, CHANNEL = "app", "sensors.kitchen"
ABSENT = 10_000
STORED = 100_000
MESSAGES = 20_000
REPETITIONS = 7
GOAL = 2.0
EXPIRY = 3600
QOS_1 = MqttFields(1)


def broker() -> Memory:
    numbers, metrics = count(1 << 40), Metrics()
    history = MemoryHistory(HistoryBounds(), time.time_ns, lambda _: next(numbers), metrics)
    sessions = MemorySessions(time.time_ns, lambda _: next(numbers), metrics, Mqtt())
    return Memory(lambda: (next(numbers), time.time_ns()), LocalRoster(), history, sessions)


def add_absent(memory: Memory, number: int, filter: Callable[[int], str]) -> None:
    """Makes sessions absent, each with one subscription."""
    for index in range(number):
        client, name = f"device-{index}", filter(index)
        claimed = run_eagerly(memory.sessions.claim(APP, client, Claim(Owner("user", f"user-{index}"), expiry=EXPIRY)))
        assert isinstance(claimed, Claimed)
        run_eagerly(memory.sessions.logs.watch(APP, client, claimed.generation, name, False))
        session = SavedSession(EXPIRY, (SavedSubscription(name, 1),))
        run_eagerly(memory.sessions.save(APP, client, claimed.generation, session))


def publish_time(memory: Memory) -> float:
    """Returns the microseconds of one publish."""
    started = time.process_time()
    for number in range(MESSAGES):
        memory.publish(MqttMessage(APP, CHANNEL, "message", b'"%d"' % number, number, number, "1.1", mqtt=QOS_1))
    return (time.process_time() - started) / MESSAGES * 1e6


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def stored_bytes(filter: Callable[[int], str]) -> float:
    """Returns the bytes of memory for each absent session."""
    memory = broker()
    gc.collect()
    before = resident()
    add_absent(memory, STORED, filter)
    gc.collect()
    return (resident() - before) / STORED


def main() -> int:
    sizes = [
        ["sessions with one filter", f"{stored_bytes(lambda _: CHANNEL):,.0f}"],
        ["sessions with a filter each", f"{stored_bytes(lambda index: f'devices.{index}.commands'):,.0f}"],
    ]
    cases = {"none": broker(), "elsewhere": broker(), "exact": broker(), "wildcard": broker()}
    add_absent(cases["elsewhere"], ABSENT, lambda index: f"devices.{index}")
    add_absent(cases["exact"], ABSENT, lambda _: CHANNEL)
    add_absent(cases["wildcard"], ABSENT, lambda _: "sensors.#")
    figures = {name: float("inf") for name in cases}
    for _ in range(REPETITIONS):
        for name, memory in cases.items():
            figures[name] = min(figures[name], publish_time(memory))
    print(grid([["absent sessions", "µs a publish"], *([name, f"{figure:.2f}"] for name, figure in figures.items())]))
    print()
    print(grid([["100,000 absent sessions", "bytes each"], *sizes]))
    return int(max(figures["exact"], figures["wildcard"]) - figures["none"] > GOAL)


if __name__ == "__main__":
    sys.exit(main())
