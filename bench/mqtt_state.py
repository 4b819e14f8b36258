"""Measures what sessions, filters and retained messages of MQTT cost a Valkey: CPU time for a step, and memory.

A figure is the median over the rounds: the CPU time of the server's process divided by the number of steps, with sockets and
scripts, and the memory that the server allocates for one object. One node sends `BATCH` steps at once.
"""

import argparse
import asyncio
import statistics
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable

from push1st.brokers import ALL_CHANNELS
from push1st.brokers.local_roster import LocalRoster
from push1st.brokers.redis import Redis
from push1st.brokers.retained import NO_DATA, Retain
from push1st.brokers.sessions import Claim, Owner, Progress, SavedProgress, SavedSession, SavedSubscription
from push1st.messages import Message, MqttFields, MqttMessage
from push1st.metrics import Metrics
from tests.support.valkey import Valkey

APP = "app"
BATCH = 100
EXPIRY = 3600
FILTER = "sensors.#"


class Server:
    """A Valkey with one node. times: the step → microseconds of each round. sizes: the object → bytes of each round."""

    def __init__(self) -> None:
        self.valkey = Valkey()
        self._number = 0
        self._round = 0
        self.broker = Redis(self.valkey.url, self.stamp, "node", Metrics(), LocalRoster(), dict, lambda _: None)
        self.times: dict[str, list[float]] = defaultdict(list)
        self.sizes: dict[str, list[float]] = defaultdict(list)

    def stamp(self) -> tuple[int, int]:
        self._number += 1
        return self._number, time.time_ns()

    def microseconds(self) -> float:
        """Returns the CPU time that the server has used."""
        fields = dict(line.split(":") for line in self.valkey.ask("INFO", "cpu").decode().split() if line.startswith("used_cpu"))
        return 1e6 * (float(fields["used_cpu_user"]) + float(fields["used_cpu_sys"]))

    async def measure(self, step: str, count: int, run: Callable[[int], Awaitable[object]]) -> None:
        """Runs a step for each number up to `count`."""
        before = self.microseconds()
        for begin in range(0, count, BATCH):
            await asyncio.gather(*(run(number) for number in range(begin, min(count, begin + BATCH))))
        await self.broker.settled()
        self.times[step].append((self.microseconds() - before) / count)

    async def sessions(self, count: int) -> None:
        """A session with one subscription connects, gets progress, ends its connection, returns, and ends."""
        sessions, logs = self.broker.sessions, self.broker.logs
        generations: dict[int, int] = {}
        self._round += 1

        def name(number: int) -> str:
            return f"device-{self._round:02}-{number:05}"

        subscription = SavedSubscription(FILTER, 1, cursor=await logs.watch(APP, "first", 1, FILTER, False))
        session = SavedSession(EXPIRY, (subscription,))

        async def claim(number: int) -> None:
            claimed = await sessions.claim(APP, name(number), Claim(Owner("user", f"user-{number:08}"), expiry=EXPIRY))
            generations[number] = claimed.generation

        async def subscribe(number: int) -> None:
            await logs.watch(APP, name(number), generations[number], FILTER, False)
            await sessions.store(APP, name(number), generations[number], session)

        async def save(number: int) -> None:
            await sessions.save(APP, name(number), generations[number], session)

        async def resume(number: int) -> None:
            await claim(number)
            await sessions.attach(APP, name(number), generations[number])

        async def end(number: int) -> None:
            await sessions.end(APP, name(number), generations[number], (FILTER,))
            if number == count - 1:
                while due := await sessions.due(0):
                    await sessions.confirm(due)

        before = self.valkey.used_memory
        await self.measure("session: CONNECT of a new client", count, claim)
        await self.measure("session: SUBSCRIBE with one filter", count, subscribe)
        self.sizes["connected session"].append((self.valkey.used_memory - before) / count)
        progress = SavedProgress({FILTER: subscription.cursor or ()})
        all_progress = [Progress(APP, name(number), generations[number], progress) for number in range(count)]
        started = self.microseconds()
        sessions.store_progress(all_progress)
        await self.broker.settled()
        await sessions.claim(APP, "last", Claim(Owner("user", "last"), clean=True))  # the replies have arrived
        self.times["session: progress (4 times a second while messages arrive)"].append((self.microseconds() - started) / count)
        await self.measure("session: end of the connection", count, save)
        self.sizes["absent session"].append((self.valkey.used_memory - before) / count)
        await self.measure("session: CONNECT of a returning client", count, resume)
        await self.measure("session: end of the session", count, end)

    async def filters(self, count: int) -> None:
        filters = self.broker.filters

        async def add(number: int) -> None:
            filters.set(APP, f"sensors.{number:08}.+", ALL_CHANNELS)
            await filters.confirmed(APP, f"sensors.{number:08}.+")

        async def remove(number: int) -> None:
            filters.set(APP, f"sensors.{number:08}.+", 0)

        before = self.valkey.used_memory
        await self.measure("filter: registration", count, add)
        self.sizes["filter"].append((self.valkey.used_memory - before) / count)
        await self.measure("filter: removal", count, remove)

    async def retained(self, count: int) -> None:
        def message(number: int, data: bytes, retained: bool) -> Message:
            id, at = self.stamp()
            return MqttMessage(APP, f"states.{number:08}", "message", data, id, at, "1.1", mqtt=MqttFields(1, retained))

        async def publish(number: int) -> None:
            await self.broker.publish(message(number, b'"' + b"x" * 98 + b'"', False))

        async def retain(number: int) -> None:
            await self.broker.publish(message(number, b'"' + b"x" * 98 + b'"', True), retain=Retain())

        async def remove(number: int) -> None:
            await self.broker.publish(message(number, NO_DATA, True), retain=Retain())

        async def read(number: int) -> None:
            await self.broker.retained.read(APP, [f"states.{number:08}"], 1 << 16)

        await self.measure("publish without RETAIN, for comparison", count, publish)
        before = self.valkey.used_memory
        await self.measure("retained message: publish to a new topic", count, retain)
        self.sizes["retained message of 100 bytes"].append((self.valkey.used_memory - before) / count)
        await self.measure("retained message: publish to the same topic", count, retain)
        await self.measure("retained message: read for a topic", count, read)
        await self.measure("retained message: removal", count, remove)


async def main(rounds: int, count: int) -> None:
    server = Server()
    await server.broker.open(lambda _: 1, lambda _: None, lambda *_: b"", lambda *_: None)
    for _ in range(rounds + 1):
        await server.sessions(count)
        await server.filters(count)
        await server.retained(count)
    for figures, unit in ((server.times, "µs"), (server.sizes, "bytes")):
        for name, values in figures.items():
            print(f"{name}: {statistics.median(values[1:]):.0f} {unit} ({min(values[1:]):.0f} to {max(values[1:]):.0f})")
    await server.broker.close()
    server.valkey.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds; one more round warms up")
    parser.add_argument("--count", type=int, default=5000, help="sessions, filters and retained messages; at most 9000")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.rounds, arguments.count))
