"""Measures what the history of a channel adds to a publish: in a worker with the memory broker, and in a Redis or Valkey server.

    python bench/appends.py                    about one minute
    python bench/appends.py --only broker      only the server; `--only node`: only the worker
    BROKER_SERVER=/usr/bin/redis-server python bench/appends.py    another server

The kinds of publish alternate within each round. A figure is the median over the rounds, and a ratio or difference is the median
of the ratios or differences within each round. The exit code is 1 if a goal is missed.

- **node**: `Node.publish` with the memory broker in this process, on 1000 channels without subscribers. The figure is the CPU
  time of a publish without the HTTP request.
- **broker**: publishes of the broker's client in this process, on 100 subscribed channels whose history is full. The figure is
  the server's own account of its commands (`INFO commandstats`). The messages of a batch are published to one channel in one
  turn of the event loop. The server is pinned to the first core, and this process to the last one. The CPU time from
  /proc is that of the whole server process, including its sockets.
"""

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import uvloop
from publishes import APP, EVENT, PAYLOAD
from report import grid
from servers import broker_version, machine, stop_on_signals

from push1st.brokers.local_roster import LocalRoster
from push1st.brokers.redis import Redis
from push1st.config.history import HistorySection
from push1st.messages import KeptMessage, Message
from push1st.metrics import Metrics
from tests.support.node import World, app_config
from tests.support.valkey import Valkey

SECTION = HistorySection(size=100, ttl=300)
DATA = b'"' + b"x" * PAYLOAD + b'"'
NODE_CHANNELS = 1000
NODE_PUBLISHES = 50_000
BROKER_CHANNELS = 100
BATCHES = (1, 8)
MOST_MORE_US = 2.0
"""the maximum of the CPU time that a history adds to a publish with the memory broker"""
MOST_TIMES_CACHED = 3.5
"""the maximum of the server's time for a kept message, as a multiple of its time for an event of a cache channel"""
MOST_IN_BATCH_US = 4.0
"""the maximum of the server's time for a kept message in a batch of eight"""


@dataclass(frozen=True, slots=True)
class Measured:
    """µs for each message. server: the account of the server. cpu: the CPU time of the server process."""

    server: float
    cpu: float


# ---- a worker with the memory broker ---------------------------------------------------------------------------------------


def node_publisher(history: tuple[HistorySection, ...]) -> Callable[[], float]:
    """Returns a function that publishes many events, and returns the µs of CPU time for each."""
    world = World(app_config(history=history))
    node, app = world.node, world.app
    names = [f"channel-{number}" for number in range(NODE_CHANNELS)]

    def publish() -> float:
        started = time.process_time()
        for number in range(NODE_PUBLISHES):
            node.publish(app, names[number % NODE_CHANNELS], EVENT, DATA, node.stamp())
        return (time.process_time() - started) * 1e6 / NODE_PUBLISHES

    return publish


def measure_node(rounds: int) -> bool:
    without, again, kept = node_publisher(()), node_publisher(()), node_publisher((SECTION,))
    while_filling = [kept(), kept()]  # 100 messages for each channel
    found = [(without(), again(), kept()) for _ in range(rounds)]
    plain, twin, full = (statistics.median(one) for one in zip(*found, strict=True))
    more = statistics.median(three[2] - three[0] for three in found)
    noise = max(abs(three[1] - three[0]) for three in found)
    print(
        grid(
            [
                ["Node.publish with the memory broker", "µs of CPU"],
                ["without history", f"{plain:.2f}"],
                ["the same again", f"{twin:.2f}"],
                ["with history, while it grows", f"{statistics.median(while_filling):.2f}"],
                ["with history, full", f"{full:.2f}"],
            ]
        )
    )
    print(f"\na history adds {more:.2f} µs (the same code differs by up to {noise:.2f} µs between its two runs of a round)")
    return goal("CPU that a history adds to a publish", more, MOST_MORE_US, "µs")


def goal(what: str, value: float, most: float, unit: str) -> bool:
    print(f"- {'reached' if value <= most else 'MISSED '}: {what}: {value:.2f} {unit}, wanted ≤ {most:g}")
    return value <= most


# ---- a Redis or Valkey server ----------------------------------------------------------------------------------------------


def command_time(server: Valkey, names: Sequence[str]) -> float:
    """Returns the µs that the server has spent in these commands since its statistics were reset."""
    total = 0.0
    for line in server.ask("INFO", "commandstats").decode().splitlines():
        name, _, fields = line.partition(":")
        if name.removeprefix("cmdstat_") in names:
            total += float(dict(word.split("=") for word in fields.split(","))["usec"])
    return total


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Kind:
    """A kind of publish. commands: those in which the server spends its time."""

    label: str
    prefix: str
    section: HistorySection | None
    keyed: bool
    commands: Sequence[str]
    sent: int = 0

    def message(self, number: int, id: int) -> Message:
        fields = (APP, f"{self.prefix}{number}", EVENT, DATA, id, time.time_ns())
        return Message(*fields) if self.section is None else KeptMessage(*fields)


def kinds() -> list[Kind]:
    script = ("evalsha", "eval", "fcall")
    return [
        Kind("without history", "plain-", None, False, ("publish", "hget")),
        Kind("cache channel", "cache-", None, False, script),
        Kind("with history", "kept-", SECTION, False, script),
        Kind("with history and an idempotency key", "keyed-", SECTION, True, script),
    ]


class Publisher:
    """Publishes with the broker's client, and measures the server."""

    def __init__(self, server: Valkey) -> None:
        self._server = server
        self._ids = 0
        self._broker = Redis(f"{server.url}?prefix=bench", self._stamp, "bench", Metrics(), LocalRoster(), dict, lambda _: None)

    def _stamp(self) -> tuple[int, int]:
        self._ids += 1024
        return self._ids, time.time_ns()

    async def open(self) -> None:
        await self._broker.open(lambda _: 0, lambda _: None, lambda *_: b"", lambda *_: None)
        for kind in kinds():
            for number in range(BROKER_CHANNELS):
                await self._broker.subscribe(APP, f"{kind.prefix}{number}")
                await self._broker.join(APP, f"{kind.prefix}{number}", f"1.{number}", None, 0)

    async def close(self) -> None:
        await self._broker.close()

    async def _turn(self, kind: Kind, batch: int) -> int:
        """Publishes a batch to each of ten channels in one turn of the event loop; returns the number of messages."""
        waiting = []
        for _ in range(10):
            kind.sent += 1
            for _ in range(batch):
                id, _ = self._stamp()
                key = f"key-{id}" if kind.keyed else ""
                waiting.append(self._broker.publish(kind.message(kind.sent % BROKER_CHANNELS, id), kind.section, key))
        await asyncio.gather(*waiting)
        return len(waiting)

    async def fill(self, kind: Kind) -> None:
        """Fills the histories of all channels."""
        for _ in range(BROKER_CHANNELS * SECTION.size // 80 + BROKER_CHANNELS):
            await self._turn(kind, 8)

    async def measure(self, kind: Kind, batch: int, seconds: float) -> Measured:
        self._server.ask("CONFIG", "RESETSTAT")
        sent, before, until = 0, cpu_seconds(self._server.pid), time.monotonic() + seconds
        while time.monotonic() < until:
            sent += await self._turn(kind, batch)
        used = cpu_seconds(self._server.pid) - before
        return Measured(command_time(self._server, kind.commands) / sent, used * 1e6 / sent)


async def measure_broker(rounds: int, seconds: float, stack: ExitStack) -> bool:
    server = Valkey()
    stack.callback(server.close)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(server.pid, cores[:1])
    os.sched_setaffinity(0, cores[-1:])
    publisher = Publisher(server)
    await publisher.open()
    found: dict[tuple[str, int], list[Measured]] = {}
    every = kinds()
    for kind in every:
        await publisher.fill(kind)
    for _ in range(rounds):
        for batch in BATCHES:
            for kind in every:
                if batch == 1 or not kind.keyed:  # a message with a key is a batch of its own
                    found.setdefault((kind.label, batch), []).append(await publisher.measure(kind, batch, seconds))
    await publisher.close()
    rows = [["µs of the server for each message", *(f"batches of {batch}: commands | CPU" for batch in BATCHES)]]
    for kind in every:
        rows.append([kind.label])
        for batch in BATCHES:
            if one := found.get((kind.label, batch)):
                middle = [statistics.median(values) for values in ([x.server for x in one], [x.cpu for x in one])]
                rows[-1].append(f"{middle[0]:.2f} | {middle[1]:.2f}")
            else:
                rows[-1].append("–")
    print("\n" + grid(rows).replace(" | CPU", " · CPU") + "\n")
    reached = []
    for batch in BATCHES:
        plain, cached, kept = (found[label, batch] for label in ("without history", "cache channel", "with history"))
        times = statistics.median(mine.server / its.server for mine, its in zip(kept, cached, strict=True))
        of_plain = statistics.median(mine.server / its.server for mine, its in zip(kept, plain, strict=True))
        print(f"batches of {batch}: with history {of_plain:.2f} × without history")
        reached.append(goal(f"kept message in batches of {batch}", times, MOST_TIMES_CACHED, "× cache channel"))
    in_batch = statistics.median(one.server for one in found["with history", 8])
    reached.append(goal("kept message in batches of 8", in_batch, MOST_IN_BATCH_US, "µs"))
    return all(reached)


def main() -> int:
    parser = argparse.ArgumentParser(description="What a history adds to a publish.")
    parser.add_argument("--only", choices=("node", "broker"))
    parser.add_argument("--rounds", type=int, default=7, metavar="N")
    parser.add_argument("--seconds", type=float, default=1, metavar="S", help="how long each kind of publish is measured")
    options = parser.parse_args()
    stop_on_signals()
    about = machine()
    print(f"{about['date']}; {about['cpu']}, {about['cores']} cores; Linux {about['kernel']}; Python {about['python']}")
    print(f"{broker_version()}; {options.rounds} rounds; {PAYLOAD}-byte payloads; load average {os.getloadavg()[0]:.2f}\n")
    reached = True
    if options.only != "broker":
        reached &= measure_node(options.rounds)
    if options.only != "node":
        with ExitStack() as stack:
            reached &= uvloop.run(measure_broker(options.rounds, options.seconds, stack))
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
