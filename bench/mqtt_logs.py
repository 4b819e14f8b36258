"""Measures what logs of MQTT sessions cost a publish with QoS 1 on a Valkey: publishes a second, server time and memory.

The cases alternate in each round, and the medians are printed. The absent sessions watch one filter with wildcards.
"""

import argparse
import asyncio
import statistics
import time
from typing import Any

from push1st.brokers.local_roster import LocalRoster
from push1st.brokers.redis import Redis
from push1st.messages import Message, MqttFields, MqttMessage
from push1st.metrics import Metrics
from tests.support.valkey import Valkey

APP = "app"
WINDOW = 20
CONNECTIONS = 8


class Case:
    """A broker under a prefix of its own. filters: the filters of the logs. sessions: the number of sessions for each filter."""

    def __init__(self, server: Valkey, name: str, filters: list[str], sessions: int) -> None:
        self.name = name
        self.filters = filters
        self.sessions = sessions
        self.rates: list[float] = []
        self.microseconds: list[float] = []
        self._number = 0
        self.broker = Redis(f"{server.url}?prefix={name}", self._stamp, name, Metrics(), LocalRoster(), dict, lambda _: None)

    def _stamp(self) -> tuple[int, int]:
        self._number += 1
        return self._number, time.time_ns()

    async def open(self) -> None:
        await self.broker.open(lambda _: 1, lambda _: None, lambda *_: b"", lambda *_: None)
        for filter in self.filters:
            for begin in range(0, self.sessions, 500):
                watch = self.broker.logs.watch
                await asyncio.gather(
                    *(watch(APP, f"device-{n}", 1, filter, False) for n in range(begin, begin + 500)[: self.sessions])
                )
        await self.broker.settled()

    def message(self, connection: int) -> Message:
        id, at = self._stamp()
        return MqttMessage(APP, f"bench.{connection}", "message", b'"' + b"x" * 98 + b'"', id, at, "1.1", mqtt=MqttFields(1))

    async def publish(self, count: int) -> None:
        async def connection(number: int) -> None:
            for _ in range(count // CONNECTIONS):
                await self.broker.publish(self.message(number))

        await asyncio.gather(*(connection(n % CONNECTIONS) for n in range(CONNECTIONS * WINDOW)))


def server_microseconds(server: Valkey) -> float:
    """Returns the time that the server has spent on commands."""
    text = server.ask("INFO", "commandstats").decode()
    return sum(float(line.split("usec=")[1].split(",")[0]) for line in text.splitlines() if "usec=" in line)


async def measure(rounds: int, count: int, sessions: int) -> None:
    server = Valkey()
    cases = [
        Case(server, "none", [], 0),
        Case(server, "one", ["bench.+"], sessions),
        Case(server, "four", ["bench.+", "bench.#", "+.+", "#"], 1),
    ]
    for case in cases:
        await case.open()
        await case.publish(CONNECTIONS * 200)
    for _ in range(rounds):
        for case in cases:
            before, began = server_microseconds(server), time.perf_counter()
            await case.publish(count)
            seconds = time.perf_counter() - began
            published = count // CONNECTIONS * CONNECTIONS * WINDOW
            case.rates.append(published / seconds)
            case.microseconds.append((server_microseconds(server) - before) / published)
    for case in cases:
        print(f"{case.name}: {statistics.median(case.rates):,.0f} publishes/s, {statistics.median(case.microseconds):.2f} µs")
    print(f"one log / none: {statistics.median(cases[1].rates) / statistics.median(cases[0].rates):.2f}")
    await memory(server, cases[1])
    for case in cases:
        await case.broker.close()
    server.close()


async def memory(server: Valkey, case: Case) -> None:
    """Prints the memory of a logged message that is published alone."""
    shard: Any = case.broker._shards.all[0]
    shard.logs._bounds = 1_000_000, 10**9, 1
    await case.broker.settled()
    before = server.used_memory
    for number in range(5000):
        await case.broker.publish(case.message(number % 8))
    print(f"memory of a message of 100 bytes in a log: {(server.used_memory - before) / 5000:.0f} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=400, help="publishes of a connection in a round")
    parser.add_argument("--sessions", type=int, default=10_000)
    arguments = parser.parse_args()
    asyncio.run(measure(arguments.rounds, arguments.count, arguments.sessions))
