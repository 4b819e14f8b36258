"""Measures how long many clients need to reconnect at once, and the delay of clients that are already connected.

    python bench/storm.py                            10,000 clients, two workers
    python bench/storm.py --clients 2000 --workers 1

Some clients are already connected and receive an event every 50 ms. Then all others connect at the same moment, as after an
absence of the server, and subscribe to one of 100 channels each. The exit code is 1 if a client cannot connect, or if an event
is lost.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time

from installing import HERE, CannotRun, compiled
from publishes import APP
from servers import Running, machine, peers, raise_file_limit, running
from websockets.asyncio.client import ClientConnection, connect

CHANNEL = "steady"
EVERY = 0.05
"""seconds between two events to those who are there"""


async def listener(server: Running) -> ClientConnection:
    url = f"ws://127.0.0.1:{server.port}{server.peer.path}"
    connection = await connect(url, compression=None, ping_interval=None, open_timeout=30)
    await connection.send(json.dumps({"event": "pusher:subscribe", "data": {"channel": CHANNEL}}))
    while json.loads(await connection.recv())["event"] != "pusher_internal:subscription_succeeded":
        pass
    return connection


async def listen(connection: ClientConnection, arrivals: list[tuple[float, float]]) -> None:
    async for text in connection:
        arrivals.append((float(json.loads(json.loads(text)["data"])), time.monotonic()))  # noqa: PERF401 - as they come


async def publish(server: Running, over: asyncio.Event) -> int:
    """Publishes the time repeatedly; returns the number of publishes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.api)
    sent = 0
    while not over.is_set():
        body = json.dumps({"name": "tick", "channels": [CHANNEL], "data": time.monotonic()}).encode()
        writer.write(
            b"POST /apps/%b/events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (APP.encode(), len(body), body)
        )
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        await reader.readexactly(length)
        sent += head.startswith(b"HTTP/1.1 200")
        await asyncio.sleep(EVERY)
    writer.close()
    return sent


async def storm(server: Running, options: argparse.Namespace) -> dict[str, float]:
    arrivals: list[tuple[float, float]] = []
    there = [await listener(server) for _ in range(options.steady)]
    listening = [asyncio.create_task(listen(connection, arrivals)) for connection in there]
    over = asyncio.Event()
    publishing = asyncio.create_task(publish(server, over))
    await asyncio.sleep(2)
    began = time.monotonic()
    words = {
        "port": server.port,
        "api": server.api,
        "path": server.peer.path,
        "pusher": 1,
        "pids": ":".join(map(str, server.pids)),
        "n": options.clients,
        "burst": options.clients,
        "base": options.clients,
        "channels": 100,
    }
    process = await asyncio.create_subprocess_exec(
        str(compiled(HERE / "load.c")), "hold", *(f"{key}={value}" for key, value in words.items()), stdout=subprocess.PIPE
    )
    output, _ = await process.communicate()
    over.set()
    sent = await publishing
    await asyncio.sleep(0.5)
    for connection, task in zip(there, listening, strict=True):
        await connection.close()
        await task
    if process.returncode:
        raise CannotRun(f"load ended with {process.returncode}")
    counted = json.loads(output)
    took = options.clients / counted["connects_per_s"]
    before = [1000 * (got - at) for at, got in arrivals if at < began]
    during = [1000 * (got - at) for at, got in arrivals if began <= at < began + took + 0.5]
    return {
        "took": took,
        "lost": sent * options.steady - len(arrivals),
        "before_p50": statistics.median(before),
        "before_max": max(before),
        "during_p50": statistics.median(during),
        "during_p99": statistics.quantiles(during, n=100)[-1],
        "during_max": max(during),
        "server_cpu": counted["server_cpu"],
        "load_cpu": counted["load_cpu"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Let many clients return at once.")
    parser.add_argument("--clients", type=int, default=10_000, metavar="N")
    parser.add_argument("--steady", type=int, default=20, metavar="N", help="clients that are there already")
    parser.add_argument("--workers", type=int, default=2, metavar="N")
    options = parser.parse_args()
    options.clients = min(options.clients, raise_file_limit() - 200)
    ready, left_out = peers(["push1st"], options.workers)
    if not ready:
        print(f"storm: {left_out}", file=sys.stderr)
        return 2
    try:
        with running(ready[0]) as server:
            found = asyncio.run(storm(server, options))
    except CannotRun as error:
        print(f"storm: {error}", file=sys.stderr)
        return 1
    print(
        f"{ready[0].label} {ready[0].version}: {options.clients:,} clients at once, all subscribed after {found['took']:.2f} s "
        f"({options.clients / found['took']:,.0f}/s; server {found['server_cpu']:.2f} cores, load {found['load_cpu']:.2f})\n"
        f"{options.steady} who were there, an event every {EVERY * 1000:.0f} ms: median {found['before_p50']:.1f} ms before "
        f"(longest {found['before_max']:.1f}), {found['during_p50']:.1f} ms during the storm "
        f"(99 of 100 within {found['during_p99']:.1f}, longest {found['during_max']:.1f}), {found['lost']:.0f} lost\n"
        + "{date}; {cpu}, {cores} cores; Linux {kernel}".format(**machine())
    )
    return 1 if found["lost"] else 0


if __name__ == "__main__":
    sys.exit(main())
