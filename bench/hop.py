"""Measures the delay, CPU and memory of a broker between two nodes, compared with a single server.

    python bench/hop.py [--rounds 5] [--seconds 5] [--rate 0] [--mqtt]

The delay of an event counts from the moment at which its publish was due until the subscriber has received it. It is measured
with a single server, and with two nodes of one worker each, where events are published to one node for subscribers of the other.
100 channels have one subscriber each, so only events of the same turn are merged. 16 connections publish one event at a time, at
the rate of `--rate`, or at half of the maximum rate of the two nodes, which each round measures. The delay of the broker is the
median of the differences within each round. The load generator is load.c; with two cores it shares them with the nodes and the
broker.

The program also measures events per second from 16 connections to a subscriber on the other node, singly and in batches of 10,
with the CPU of each process as a part of one core; this client is in Python, so the server may reach more. At the end it measures
the memory that channels and members need in the broker.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import uvloop
from installing import HERE, CannotRun, compiled
from publishes import APP, EVENT, KEY, PAYLOAD, mqtt_packet
from servers import Peer, Running, broker_version, machine, push1st, raise_file_limit, running, with_mqtt, write_requests

from push1st.brokers.local_roster import LocalRoster
from tests.support.valkey import Valkey

CONNECTIONS = 16
CHANNELS = 100
IDS = 10_000
"""publishes that can be told apart at a time"""
DATA = "x" * PAYLOAD

# ---- the time of the hop ---------------------------------------------------------------------------------------------------


def load(server: Running, folder: Path, seconds: float, **options: int) -> dict[str, float]:
    """Returns the counters of load.c for publishes to the first node and subscribers on the last one."""
    mqtt = server.peer.mqtt
    packet = partial(mqtt_packet, 4, 0) if mqtt else None
    words = {
        "port": (server.mqtts if mqtt else server.ports)[-1],
        "api": (server.mqtts if mqtt else server.apis)[0],
        "mqtt": 4 * mqtt,
        "publish_mqtt": 4 * mqtt,
        **server.peer.client,
        "path": server.peer.path,
        "pids": ":".join(map(str, server.pids)),
        "seconds": seconds,
        "warm": 1,
        "least": PAYLOAD,
        "n": CHANNELS,
        "channels": CHANNELS,
        "publishers": CONNECTIONS,
        "file": write_requests(folder / "requests", server.peer, CHANNELS, IDS, False, packet),
        **options,
    }
    command = [str(compiled(HERE / "load.c")), "publish", *(f"{key}={value}" for key, value in words.items())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
    if done.returncode:
        raise CannotRun(done.stderr.strip())
    counted: dict[str, float] = json.loads(done.stdout)
    return counted


def hop(alone: Peer, pair: Peer, options: argparse.Namespace, folder: Path) -> None:
    added: list[tuple[float, float]] = []
    for number in range(1, options.rounds + 1):
        with running(pair) as server:
            most = load(server, folder, options.seconds, backlog=CONNECTIONS * 4)
            rate = options.rate or round(most["publishes_per_s"] / 2)
            two = load(server, folder, options.seconds, rate=rate)
        with running(alone) as server:
            one = load(server, folder, options.seconds, rate=rate)
        print(f"round {number}: at most {most['publishes_per_s']:,.0f}/s to the other node ({busy(most)}); at {rate:,}/s:")
        for peer, found in ((alone, one), (pair, two)):
            p50, p99 = found["p50_us"] / 1000, found["p99_us"] / 1000
            print(f"  {peer.label:16} p50 {p50:.2f} ms, p99 {p99:.2f} ms ({busy(found)}; {found['lost']:.0f} lost)")
        added.append(((two["p50_us"] - one["p50_us"]) / 1000, (two["p99_us"] - one["p99_us"]) / 1000))
    p50, p99 = (statistics.median(one) for one in zip(*added, strict=True))
    print(f"the hop adds: p50 {p50:.2f} ms, p99 {p99:.2f} ms (medians of {options.rounds} rounds)")


def busy(found: dict[str, float]) -> str:
    return f"servers {found['server_cpu']:.2f} cores, load {found['load_cpu']:.2f}"


# ---- events a second -------------------------------------------------------------------------------------------------------


def cpu(pid: int) -> float:
    """Returns the CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def subscriber(port: int, channel: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Returns a raw WebSocket client that is subscribed to a channel."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"GET /ws/app/{KEY}/{channel} HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: c2l4dGVlbiBieXRlcyBvaw==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


def request(path: str, body: object) -> bytes:
    text = json.dumps(body).encode()
    return f"POST /apps/{APP}/{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text


async def answer(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]))


async def rate(server: Running, body: bytes, events: int, seconds: float) -> None:
    """Measures events per second that are published to the first node and received by a subscriber on the last one."""
    reader, client = await subscriber(server.ports[-1], "c")
    arrived = 0
    published = 0
    until = time.monotonic() + seconds

    async def read() -> None:
        nonlocal arrived
        while data := await reader.read(1 << 20):
            arrived += data.count(b'"#msg-id"')

    async def post() -> None:
        nonlocal published
        answers, writer = await asyncio.open_connection("127.0.0.1", server.api)
        while time.monotonic() < until:
            writer.write(body)
            await answer(answers)
            published += events
        writer.close()

    reading = asyncio.create_task(read())
    before, started = [cpu(pid) for pid in server.pids], time.monotonic()
    await asyncio.gather(*(post() for _ in range(CONNECTIONS)))
    spent = time.monotonic() - started
    used = [round((cpu(pid) - then) / spent, 2) for pid, then in zip(server.pids, before, strict=True)]
    await asyncio.sleep(0.3)
    reading.cancel()
    client.close()
    print(
        f"{events:>4} a request: {published / spent:>9,.0f} events/s published, {arrived / published:.1%} arrived, cores {used}"
    )


async def rates(server: Running, seconds: float) -> None:
    print("cores: Valkey, publishing node, other node")
    await rate(server, request("events", {"name": EVENT, "channels": ["c"], "data": DATA}), 1, seconds)
    batch = [{"name": EVENT, "channel": "c", "data": DATA}] * 10
    await rate(server, request("batch_events", {"batch": batch}), 10, seconds)
    print("the same to ten channels, of which one is listened to (a tenth arrives):")
    spread = [{"name": EVENT, "channel": "c" if n == 0 else f"c{n}", "data": DATA} for n in range(10)]
    await rate(server, request("batch_events", {"batch": spread}), 10, seconds)


# ---- memory ----------------------------------------------------------------------------------------------------------------


async def memory() -> None:
    """Returns the bytes of an entry, for 10,000 channels of one subscriber, and for a presence channel of 10,000 members."""
    from push1st.brokers.redis import Redis
    from push1st.messages import Member
    from push1st.metrics import Metrics

    between = Valkey()
    broker = Redis(f"{between.url}?prefix=m", lambda: (1, 1), "n", Metrics(), LocalRoster(), dict, lambda _: None)
    await broker.open(lambda _: 0, lambda _: None, lambda *_: b"", lambda *_: None)

    def used() -> int:
        return int(between.ask("INFO", "memory").partition(b"used_memory:")[2].partition(b"\r")[0])

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
    between.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="What a broker between nodes costs.")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--seconds", type=float, default=5, metavar="S", help="how long each measurement takes")
    parser.add_argument("--rate", type=int, default=0, metavar="N", help="publishes a second; half of the most by default")
    parser.add_argument("--mqtt", action="store_true", help="only the delay, with clients that speak MQTT 3.1.1, and QoS 0")
    options = parser.parse_args()
    raise_file_limit()
    alone, pair = (with_mqtt(1, "", nodes) if options.mqtt else push1st(1, "", nodes) for nodes in (1, 2))
    about = machine()
    print(f"{about['date']}; {about['cpu']}, {about['cores']} cores; Push1st {pair.version}; {broker_version()} on TCP; loopback")
    try:
        with tempfile.TemporaryDirectory(prefix="push1st-bench-") as folder:
            hop(alone, pair, options, Path(folder))
        if options.mqtt:
            return 0
        with running(pair) as server:
            uvloop.run(rates(server, options.seconds))
    except CannotRun as error:
        print(f"hop: {error}", file=sys.stderr)
        return 1
    uvloop.run(memory())
    return 0


if __name__ == "__main__":
    sys.exit(main())
