"""Measures what a broker between workers costs: two servers of one worker each, on one Valkey, and a client of both.

    python bench/hop.py [--seconds 5] [--broker redis://…]

Events per second from 16 connections, singly and in batches of 10, to a subscriber on the other server; the time from a
publish to its arrival on the other server, beside that on a server with the memory broker; the memory a channel and a
member take in the broker. CPU is of each process, as a part of one core. The client is in Python and shares the machine,
so the figures are what is reached at least.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import uvloop
from servers import free_port

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.valkey import Valkey

CONNECTIONS = 16
RATE = 1000
"""publishes a second at which the time of the hop is measured"""
APP = "app: { key: key, secret: a-secret-of-thirty-two-bytes-or-more, limits: { members: 0 } }\n"
DATA = "x" * 100


class Server:
    """One server process. broker: `memory` or a URL."""

    def __init__(self, folder: Path, broker: str) -> None:
        self.port, self.api = free_port(), free_port()
        config = folder / f"{self.port}.yml"
        (folder / "app.yml").write_text(APP)
        config.write_text(
            f"server: {{ listen: 'tcp://127.0.0.1:{self.port}', drain: 0 }}\napi: {{ listen: 'tcp://127.0.0.1:{self.api}' }}\n"
            f"broker: '{broker}'\ncredentials: [ app.yml ]\nlog: {{ level: warning }}\n"
        )
        self.process = subprocess.Popen([sys.executable, "-m", "push1st", "serve", "-c", str(config)])

    def cpu(self) -> float:
        return cpu(self.process.pid)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)


def cpu(pid: int) -> float:
    """Seconds of CPU a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    deadline = time.monotonic() + 10
    while True:
        try:
            return await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)


async def subscriber(port: int, channel: str) -> asyncio.StreamReader:
    """A raw WebSocket client that is on a channel."""
    reader, writer = await connect(port)
    writer.write(
        f"GET /ws/app/key/{channel} HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: c2l4dGVlbiBieXRlcyBvaw==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    await reader.readuntil(b"\r\n\r\n")
    keep.append(writer)
    return reader


keep: list[asyncio.StreamWriter] = []


def request(path: str, body: object) -> bytes:
    text = json.dumps(body).encode()
    return f"POST /apps/app/{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text


async def answer(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]))


async def rate(publisher: Server, other: Server, body: bytes, events: int, seconds: float, pids: list[int]) -> None:
    """Events per second that arrive at the other server's subscriber."""
    reader = await subscriber(other.port, "c")
    arrived = 0
    published = 0
    until = time.monotonic() + seconds

    async def read() -> None:
        nonlocal arrived
        while data := await reader.read(1 << 20):
            arrived += data.count(b'"#msg-id"')

    async def post() -> None:
        nonlocal published
        answers, writer = await connect(publisher.api)
        while time.monotonic() < until:
            writer.write(body)
            await answer(answers)
            published += events

    reading = asyncio.create_task(read())
    before, started = [cpu(pid) for pid in pids], time.monotonic()
    await asyncio.gather(*(post() for _ in range(CONNECTIONS)))
    spent = time.monotonic() - started
    used = [round((cpu(pid) - then) / spent, 2) for pid, then in zip(pids, before, strict=True)]
    await asyncio.sleep(0.3)
    reading.cancel()
    print(f"{events:>4} a request: {published / spent:>9.0f} events/s published, {arrived / published:.1%} arrived, cores {used}")


async def latency(publisher: Server, other: Server, seconds: float, name: str) -> None:
    reader = await subscriber(other.port, "l")
    answers, writer = await connect(publisher.api)
    times: list[float] = []

    async def read() -> None:
        while True:
            frame = await reader.readuntil(b"}")
            times.append(time.perf_counter() - float(frame.split(b"@")[1]))

    async def drain() -> None:
        while True:
            await answer(answers)

    tasks = asyncio.create_task(read()), asyncio.create_task(drain())
    due = time.perf_counter()
    for _ in range(int(seconds * RATE)):
        due += 1 / RATE
        await asyncio.sleep(max(0, due - time.perf_counter()))
        data = f"@{time.perf_counter():.7f}@{DATA}"
        writer.write(request("events", {"name": "e", "channels": ["l"], "data": data}))
    await asyncio.sleep(0.3)
    for task in tasks:
        task.cancel()
    cuts = statistics.quantiles([1000 * one for one in times], n=100)
    print(f"{name}: {RATE}/s, p50 {cuts[49]:.3f} ms, p99 {cuts[98]:.3f} ms, {len(times)} arrived")


async def memory(valkey: Valkey) -> None:
    """Bytes an entry takes: 10,000 channels with one subscriber, then a presence channel of 10,000 members."""
    from push1st.brokers.redis import Redis
    from push1st.messages import Member
    from push1st.metrics import Metrics

    broker = Redis(f"{valkey.url}?prefix=m", lambda: (1, 1), "n", Metrics(), lambda: (), lambda _: None)
    await broker.open(lambda _: 0, lambda _: None, lambda *_: b"", lambda *_: None)

    def used() -> int:
        return int(valkey.ask("INFO", "memory").partition(b"used_memory:")[2].partition(b"\r")[0])

    async def grown(what: str, join: Callable[[int], Any], count: int = 10_000) -> None:
        before = used()
        for at in range(0, count, 500):
            await asyncio.gather(*(join(n) for n in range(at, at + 500)))
        print(f"{what}: {(used() - before) / count:.0f} bytes")

    await grown("a topic subscribed to", lambda n: broker.subscribe("app", f"channel-{n:08}"))
    await grown(
        "a channel with one subscriber, its topic apart", lambda n: broker.join("app", f"channel-{n:08}", f"1.{n}", None, 0)
    )
    await grown("one more subscriber", lambda n: broker.join("app", f"channel-{n:08}", f"2.{n}", None, 0))
    info = b'{"name":"Somebody","avatar":"https://example.com/1.png"}'
    await grown("a member", lambda n: broker.join("app", "presence-c", f"3.{n}", Member(f"user-{n:08}", info), 0))
    await broker.close()


@contextlib.asynccontextmanager
async def pair(broker: str, folder: Path) -> AsyncIterator[tuple[Server, Server]]:
    one, two = Server(folder, broker), Server(folder, broker)
    try:
        for server in (one, two):
            (await connect(server.api))[1].close()
        yield one, two
    finally:
        one.stop()
        two.stop()


async def main() -> None:
    parser = argparse.ArgumentParser(description="What a broker between workers costs.")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--broker", help="a URL; a Valkey of its own by default")
    options = parser.parse_args()
    valkey = Valkey()
    url = options.broker or valkey.url
    single = request("events", {"name": "e", "channels": ["c"], "data": DATA})
    batch = request("batch_events", {"batch": [{"name": "e", "channel": "c", "data": DATA}] * 10})
    spread = [{"name": "e", "channel": "c" if n == 0 else f"c{n}", "data": DATA} for n in range(10)]
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            async with pair("memory", folder) as (one, _):
                await latency(one, one, options.seconds, "memory broker")
            async with pair(f"{url}?prefix=hop", folder) as (one, two):
                await latency(one, one, options.seconds, "through the broker, same worker")
                await latency(one, two, options.seconds, "through the broker, other worker")
                pids = [one.process.pid, two.process.pid, valkey.pid]
                print("cores: publishing worker, other worker, Valkey")
                await rate(one, two, single, 1, options.seconds, pids)
                await rate(one, two, batch, 10, options.seconds, pids)
                print("the same to ten channels, of which one is listened to (a tenth arrives):")
                await rate(one, two, request("batch_events", {"batch": spread}), 10, options.seconds, pids)
            await memory(valkey)
    finally:
        valkey.close()


if __name__ == "__main__":
    uvloop.run(main())
