"""Sends events to a webhook that is down half of the time; checks for lost events, memory growth, and delays of clients.

    python bench/hooks_soak.py                              50,000 events in 60 s; the same without hooks before and after
    python bench/hooks_soak.py --seconds 4 --events 1600    a short one, which the tests run

Clients publish numbered client events on private channels. The receiver, a process of its own, receives the webhooks; in every
other period of `PERIOD` seconds it stops listening and breaks its connections. At the same time the API publishes to a subscriber
that measures the latency. The program prints its counters; the exit code is 1 if an event was lost, or arrived out of order on
its channel.
"""

import argparse
import asyncio
import hashlib
import hmac
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from websockets.asyncio.client import ClientConnection, connect

PERIOD = 2.5
CHANNELS = 20
PROBES = 50
"""publishes a second whose latency is measured"""
DRAIN_SECONDS = 90
APP, KEY, SECRET = "soak", "soak-key", "soak-secret"


class Receiver(asyncio.Protocol):
    """Answers 200 to every POST, and stores its events."""

    seen: ClassVar[dict[str, list[int]]] = {}
    requests = 0
    doubles = 0
    disorder = 0
    open: ClassVar[set[asyncio.BaseTransport]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.data = b""
        self.open.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open.discard(self.transport)

    def data_received(self, data: bytes) -> None:
        self.data += data
        while (end := self.data.find(b"\r\n\r\n") + 4) > 3:
            length = int(self.data[:end].lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            if len(self.data) < end + length:
                return
            self.note(self.data[end : end + length])
            self.data = self.data[end + length :]
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    @classmethod
    def note(cls, body: bytes) -> None:
        cls.requests += 1
        for event in json.loads(body).get("events", ()):
            if event["name"] != "client_event":
                continue
            seen = cls.seen.setdefault(event["channel"], [])
            number = int(event["data"])
            if number < len(seen):
                cls.doubles += 1
            elif number > len(seen):
                cls.disorder += 1
            else:
                seen.append(number)


async def receive(port: int, always: bool) -> None:
    """Listens in every other period, or always; prints the received events on SIGTERM."""
    loop = asyncio.get_running_loop()
    end = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, end.set)
    loop.add_signal_handler(signal.SIGUSR1, lambda: print(sum(map(len, Receiver.seen.values())), flush=True))
    stay = asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR2, stay.set)
    if always:
        stay.set()
    while not end.is_set():
        server = await loop.create_server(Receiver, "127.0.0.1", port)
        with suppress(TimeoutError):
            await asyncio.wait_for(end.wait(), None if stay.is_set() else PERIOD)
        server.close()
        for transport in list(Receiver.open):
            transport.abort()  # type: ignore[attr-defined]  # a socket's
        if not end.is_set() and not stay.is_set():
            await asyncio.sleep(PERIOD)
    print(json.dumps({"requests": Receiver.requests, "doubles": Receiver.doubles, "disorder": Receiver.disorder}), flush=True)


class Sender:
    """A client that publishes on one channel; a second client subscribes to the channel."""

    def __init__(self, socket: ClientConnection, channel: str) -> None:
        self.socket = socket
        self.channel = channel
        self.sent = 0

    async def send(self) -> None:
        await self.socket.send(json.dumps({"event": "client-n", "channel": self.channel, "data": str(self.sent)}))
        self.sent += 1


async def joined(url: str, channel: str) -> ClientConnection:
    client = await connect(url, compression=None, ping_interval=None)
    socket_id = json.loads(json.loads(await client.recv())["data"])["socket_id"]
    auth = hmac.new(SECRET.encode(), f"{socket_id}:{channel}".encode(), hashlib.sha256).hexdigest()
    await client.send(json.dumps({"event": "pusher:subscribe", "data": {"channel": channel, "auth": f"{KEY}:{auth}"}}))
    await client.recv()
    return client


async def load(port: int, api: int, seconds: float, events: int) -> dict[str, float]:
    """Sends the events evenly; returns latencies in milliseconds."""
    url = f"ws://127.0.0.1:{port}/app/{KEY}?protocol=7"
    channels = [f"private-{number}" for number in range(CHANNELS)]
    senders = [Sender(await joined(url, channel), channel) for channel in channels]
    listener = await joined(url, "private-probe")
    latencies: list[float] = []

    async def listen() -> None:
        while True:
            sent = float(json.loads(json.loads(await listener.recv())["data"]))
            latencies.append((time.perf_counter() - sent) * 1000)

    async def probe() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", api)
        while True:
            body = json.dumps({"name": "p", "channels": ["private-probe"], "data": repr(time.perf_counter())}).encode()
            head = f"POST /apps/{APP}/events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            head_read = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head_read.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]))
            await asyncio.sleep(1 / PROBES)

    tasks = [asyncio.create_task(listen()), asyncio.create_task(probe())]
    begin = time.perf_counter()
    for number in range(events):
        await senders[number % CHANNELS].send()
        ahead = begin + (number + 1) * seconds / events - time.perf_counter()
        if ahead > 0.002:
            await asyncio.sleep(ahead)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for client in (listener, *(sender.socket for sender in senders)):
        await client.close()
    latencies.sort()
    return {
        "probes": len(latencies),
        "median": statistics.median(latencies),
        "p99": latencies[int(len(latencies) * 0.99)],
        "max": latencies[-1],
    }


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def rss(pid: int) -> float:
    """Megabytes."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return 0.0


def soak(seconds: float, events: int, hooks: bool) -> bool:
    """Performs one run; returns whether no event was lost or out of order."""
    port, api, hook = free_ports(3)
    with tempfile.TemporaryDirectory(prefix="push1st-soak-") as name:
        folder = Path(name)
        server_yml = f"server: {{ listen: 'tcp://127.0.0.1:{port}', drain: 0 }}\napi: {{ listen: 'tcp://127.0.0.1:{api}' }}\n"
        (folder / "server.yml").write_text(server_yml + "credentials: [ app.yml ]\n")
        app = f"{APP}: {{ key: {KEY}, secret: {SECRET}, options: {{ client-messages: true }}, limits: {{ client-events: 0 }}"
        webhook = f", webhooks: [ {{ url: 'http://127.0.0.1:{hook}/', events: [ client_event ], batch: 20 }} ]" if hooks else ""
        (folder / "app.yml").write_text(app + webhook + " }\n")
        command = [sys.executable, "-m", "push1st", "serve", "-c", str(folder / "server.yml")]
        server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        receiver = subprocess.Popen(
            [sys.executable, __file__, "--receive", str(hook)], stdout=subprocess.PIPE, text=True, bufsize=1
        )
        try:
            until_open(port)
            before = rss(server.pid)
            latencies = asyncio.run(sampled(server.pid, load(port, api, seconds, events)))
            peak = latencies.pop("rss")
            print(f"hooks {'on ' if hooks else 'off'}  " + "  ".join(f"{key} {value:.2f}" for key, value in latencies.items()))
            print(f"           memory: {before:.0f} MiB before, {peak:.0f} at most, {rss(server.pid):.0f} after")
            return drained(receiver, events) if hooks else True
        finally:
            for process in (server, receiver):
                process.terminate()
                process.wait()


async def sampled(pid: int, what: Any) -> dict[str, float]:
    """Returns the result, and the maximum memory of a process during the run."""
    task = asyncio.ensure_future(what)
    most = 0.0
    while not task.done():
        most = max(most, rss(pid))
        await asyncio.wait((task,), timeout=0.2)
    return {**task.result(), "rss": most}


def until_open(port: int) -> None:
    for _ in range(500):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise SystemExit("the server did not start")


def drained(receiver: subprocess.Popen[str], events: int) -> bool:
    """Waits until the receiver has all events; returns the received events."""
    assert receiver.stdout is not None
    os.kill(receiver.pid, signal.SIGUSR2)
    begin = time.monotonic()
    came = 0
    while came < events and time.monotonic() - begin < DRAIN_SECONDS:
        os.kill(receiver.pid, signal.SIGUSR1)
        came = int(receiver.stdout.readline())
        time.sleep(0.1)
    receiver.terminate()
    counted = json.loads(receiver.stdout.readline())
    seconds = time.monotonic() - begin
    print(f"           {came} of {events} events came, the last {seconds:.1f} s after the load ended; {counted}")
    return came == events and not counted["disorder"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--events", type=int, default=50_000)
    parser.add_argument("--receive", type=int, metavar="PORT", help=argparse.SUPPRESS)
    parser.add_argument(
        "--sink", type=int, metavar="PORT", help="only take what comes there, until SIGTERM: for bench.py --hooks"
    )
    options = parser.parse_args()
    if options.receive or options.sink:
        asyncio.run(receive(options.receive or options.sink, bool(options.sink)))
        return 0
    soak(options.seconds, options.events, hooks=False)
    well = soak(options.seconds, options.events, hooks=True)
    soak(options.seconds, options.events, hooks=False)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
