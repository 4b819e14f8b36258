"""Measures the latency of other clients while a few connections flood the server.

    python bench/fairness.py                         every flood, one worker: about four minutes
    python bench/fairness.py --workers 2             the same with two
    python bench/fairness.py --mqtt                  the floods over MQTT
    python bench/fairness.py --only pings,health     some of the floods
    python bench/fairness.py --connections 2000      the same from many connections
    python bench/fairness.py --command OLD/push1st   another build

The others are 20 subscribers of a channel (10 with the Pusher protocol, 10 with raw WebSockets), a publisher that sends 40 events
a second, and a client that calls `/health` 40 times a second. The first measurement is without a flood. The latency of a
delivery counts from the time at which its publish was due, so a pause of the server counts for every event that it delays.

`floods.py` has the floods. The goals: no other client is disconnected, no event is lost, no worker is replaced, and the p99 of
the others is at most `EXTRA_MS` above their p99 without a flood. The exit code is 1 if a goal is missed.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from floods import APP, FLOODS, KEY, MQTT_FLOODS, frame, handshake, post
from installing import HERE
from servers import accepts, family, free_port, machine, raise_file_limit

SUBSCRIBERS = 20
PERIOD = 0.025
"""seconds between two events, and between two calls of /health"""
MQTT = ", proto: [ pusher, websocket, mqtt ], mqtt: {{ listen: [ 'tcp://127.0.0.1:{0}' ], push: [ public ], publishes: 0 }}"
WARM_UP = 0.5
START_SECONDS = 20
EXTRA_MS = 100
LATE_SECONDS = 20
"""for the last deliveries after a flood ends"""
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Noticed:
    """The measurements of the other clients.

    deliveries, health: milliseconds. cut_off: connections that ended. lost: deliveries and answers that never arrived.
    """

    deliveries: list[float] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    cut_off: int = 0
    lost: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    noticed: Noticed
    replaced: int
    megabytes: float
    opened: int
    cpu_seconds: float
    seconds: float


def configuration(folder: Path, websocket: int, api: int, tls: bool, mqtt: int, workers: int) -> None:
    (folder / "app.yml").write_text(
        f"{APP}:\n  key: {KEY}\n  secret: secret\n  options: {{ client-messages: true, subscription-count: true }}\n"
        "  channels: [ public, private, presence ]\n"
    )
    (folder / "server.yml").write_text(
        f"server: {{ listen: 'tcp://127.0.0.1:{websocket}', drain: 0, workers: {workers},"
        f" ssl: {{ enable: {str(tls).lower()} }}" + (MQTT.format(mqtt) if mqtt else "") + " }\n"
        f"api: {{ listen: 'tcp://127.0.0.1:{api}' }}\ncredentials: [ app.yml ]\n"
    )


class Server:
    """A server of the build under test."""

    def __init__(self, command: str, tls: bool, mqtt: bool, workers: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="push1st-fairness-"))
        self.websocket, self.api = free_port(), free_port()
        self.mqtt = free_port() if mqtt else 0
        self.tls = tls
        configuration(self.folder, self.websocket, self.api, tls, self.mqtt, workers)
        self.log = (self.folder / "log").open("wb")
        pinned = ["taskset", "-c", "0"] if workers == 1 and shutil.which("taskset") else []
        self.process = subprocess.Popen(
            [*pinned, command, "serve", "-c", str(self.folder / "server.yml")],
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_SECONDS
        while b"] ready " not in (self.folder / "log").read_bytes():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server did not start: {(self.folder / 'log').read_text()[-500:]}")
            time.sleep(0.05)
        if self.mqtt and not accepts(self.mqtt):
            self.stop()
            raise SystemExit("the server opens no MQTT port")

    def pids(self) -> set[int]:
        return set(family(self.process.pid))

    def stop(self) -> None:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(self.process.pid, sign)
                self.process.wait(5)
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def cpu_seconds(pids: set[int]) -> float:
    """User and system time of processes, by /proc."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return total / TICKS


class Others:
    """The clients that do not flood."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.noticed = Noticed()
        self.measuring = False
        self.over = False
        self.due: dict[int, float] = {}
        self.expected = 0

    async def connect(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        context = None
        if self.server.tls and port == self.server.websocket:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return await asyncio.open_connection("127.0.0.1", port, ssl=context)

    async def subscriber(self, pusher: bool, ready: asyncio.Event) -> None:
        reader, writer = await self.connect(self.server.websocket)
        writer.write(handshake(f"/app/{KEY}?protocol=7" if pusher else f"/ws/app/{KEY}/others"))
        await reader.readuntil(b"\r\n\r\n")
        if pusher:
            writer.write(frame(1, b'{"event":"pusher:subscribe","data":{"channel":"others"}}'))
        try:
            async for opcode, payload in frames(reader):
                if opcode == 9:
                    writer.write(frame(10, payload))
                elif opcode == 8:
                    break
                elif b"subscription_succeeded" in payload or not pusher:
                    ready.set()
                now = time.monotonic()
                _, found, rest = payload.partition(b"~")
                number = int(rest.partition(b"~")[0]) if found else -1
                if number in self.due:
                    self.noticed.deliveries.append((now - self.due[number]) * 1000)
        except (OSError, asyncio.IncompleteReadError):
            pass
        if not self.over:
            self.noticed.cut_off += 1

    async def caller(self, port: int, make: Callable[[int, float], bytes], latencies: list[float] | None) -> None:
        """Sends requests when they are due, without waiting for earlier answers."""
        sent: list[float] = []
        reader, writer = await self.connect(port)
        answers = asyncio.ensure_future(self._answers(reader, sent, latencies))
        start, number = time.monotonic(), 0
        while not self.over:
            due = start + number * PERIOD
            number += 1
            sent.append(due)
            writer.write(make(number, due))
            await asyncio.sleep(max(0.0, due + PERIOD - time.monotonic()))
        if sent and not answers.done():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(answers), LATE_SECONDS if sent else 0)
        self.noticed.lost += len(sent)
        answers.cancel()

    async def _answers(self, reader: asyncio.StreamReader, sent: list[float], latencies: list[float] | None) -> None:
        try:
            while not (self.over and not sent):
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                await reader.readexactly(size)
                due = sent.pop(0)
                if self.measuring and latencies is not None:
                    latencies.append((time.monotonic() - due) * 1000)
        except (OSError, asyncio.IncompleteReadError):
            if not self.over:
                self.noticed.cut_off += 1

    def event(self, number: int, due: float) -> bytes:
        if self.measuring:
            self.due[number] = due
        return post(f"/apps/{APP}/events", json.dumps({"name": "e", "channels": ["others"], "data": f"~{number}~"}).encode())


async def frames(reader: asyncio.StreamReader) -> AsyncIterator[tuple[int, bytes]]:
    """Parses frames of a server: never masked, and in this bench never longer than 64 KiB."""
    while True:
        first, size = await reader.readexactly(2)
        if size == 126:
            size = int.from_bytes(await reader.readexactly(2), "big")
        yield first & 15, await reader.readexactly(size)


def health(_number: int, _due: float) -> bytes:
    return b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def measure(name: str, server: Server, seconds: float, warm_up: float, connections: int) -> Row:
    others = Others(server)
    tasks = []
    for number in range(SUBSCRIBERS):
        ready = asyncio.Event()
        tasks.append(asyncio.ensure_future(others.subscriber(number % 2 == 0, ready)))
        if number % 2 == 0:
            await asyncio.wait_for(ready.wait(), 10)
    callers = [
        asyncio.ensure_future(others.caller(server.api, others.event, None)),
        asyncio.ensure_future(others.caller(server.websocket, health, others.noticed.health)),
    ]
    await asyncio.sleep(warm_up)
    flood = None
    if name:
        ports = [str(server.websocket), str(server.api), str(server.websocket), str(server.mqtt)]
        program = sys.executable, str(HERE / "floods.py"), name, *ports, *([str(connections)] if connections else [])
        flood = await asyncio.create_subprocess_exec(*program, stdout=subprocess.PIPE)
        await asyncio.sleep(WARM_UP)
    before, cpu, start = server.pids(), cpu_seconds(server.pids()), time.monotonic()
    others.measuring = True
    await asyncio.sleep(seconds)
    others.measuring = False
    lasted, pids = time.monotonic() - start, server.pids()
    cpu = cpu_seconds(pids) - cpu
    told = {"sent": 0, "opened": 0}
    if flood is not None:
        flood.terminate()
        told = json.loads((await flood.communicate())[0] or b"{}") or told
    deadline = time.monotonic() + LATE_SECONDS
    expected = len(others.due) * SUBSCRIBERS
    while len(others.noticed.deliveries) < expected and time.monotonic() < deadline and not others.noticed.cut_off:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    others.over = True
    others.noticed.lost += max(0, expected - len(others.noticed.deliveries))
    await asyncio.gather(*callers)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    total = lasted + WARM_UP
    return Row(name, others.noticed, len(before - pids), told["sent"] / 1e6 * lasted / total, told["opened"], cpu, lasted)


def p(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


def line(row: Row, base: Row | None) -> tuple[str, bool]:
    """Returns a row of the table, and whether its goals are met."""
    noticed = row.noticed
    good = not (noticed.cut_off or row.replaced or noticed.lost)
    if base is not None:
        for mine, before in ((noticed.deliveries, base.noticed.deliveries), (noticed.health, base.noticed.health)):
            good = good and p(mine, 0.99) <= p(before, 0.99) + EXTRA_MS
    figures = " | ".join(
        " · ".join(f"{p(values, share):.1f}" for share in (0.5, 0.99, 1)) for values in (noticed.deliveries, noticed.health)
    )
    cost = ""
    if base is not None and row.megabytes >= 1:
        cost = f"{(row.cpu_seconds - base.cpu_seconds * row.seconds / base.seconds) / row.megabytes * 1000:.0f}"
    what = FLOODS[row.name].what if row.name else "no flood"
    ends = f"{noticed.cut_off} · {noticed.lost} · {row.replaced}"
    rate = f"{row.megabytes / row.seconds:.1f}"
    return f"| {what} | {figures} | {ends} | {rate} | {row.opened} | {cost} | {'' if good else 'missed'} |", good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="floods, separated by commas: " + ", ".join(FLOODS))
    parser.add_argument("--mqtt", action="store_true", help="the floods over MQTT, instead of the others")
    parser.add_argument("--workers", type=int, default=1, help="processes of the server")
    parser.add_argument("--seconds", type=float, default=4, help="of each flood")
    parser.add_argument("--connections", type=int, default=0, help="of each flood")
    parser.add_argument("--command", default=str(HERE.parent / ".venv" / "bin" / "push1st"), help="the server to start")
    options = parser.parse_args()
    names = [name for name in options.only.split(",") if name] or [
        name for name in FLOODS if (name in MQTT_FLOODS) == options.mqtt
    ]
    unknown = [name for name in names if name not in FLOODS]
    if unknown:
        parser.error(f"no such flood: {', '.join(unknown)}; there are {', '.join(FLOODS)}")
    raise_file_limit()
    if options.workers == 1 and hasattr(os, "sched_setaffinity") and len(os.sched_getaffinity(0)) > 1:
        os.sched_setaffinity(0, os.sched_getaffinity(0) - {0})
    facts = machine()
    print(f"{facts['date']}, {facts['cpu']}, {facts['cores']} cores, Python {facts['python']}, workers: {options.workers}\n")
    print(
        "| flood | deliveries p50 · p99 · worst, ms | /health p50 · p99 · worst, ms | others cut off · lost · workers replaced |",
        end="",
    )
    print(" MB/s | connections | CPU ms a MB | goal |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    missed = 0
    for tls, mqtt in ((False, False), (True, False), (False, True)):
        chosen = [name for name in names if (FLOODS[name].port == "tls", FLOODS[name].port == "mqtt") == (tls, mqtt)]
        if not chosen:
            continue
        base: Row | None = None
        for name in ("", *chosen):
            server = Server(options.command, tls, mqtt, options.workers)
            try:
                row = asyncio.run(measure(name, server, options.seconds, WARM_UP, options.connections))
            finally:
                server.stop()
            shown, good = line(row, base)
            print(shown, flush=True)
            base = base or row
            missed += not good
    if missed:
        raise SystemExit(f"{missed} of {len(names)} goals are missed")


if __name__ == "__main__":
    main()
