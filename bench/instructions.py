"""Counts the instructions that this server executes for each publish, delivery and connection, with valgrind's callgrind.

    python bench/bench.py --instructions                      this build: about two minutes
    python bench/bench.py --instructions --before ../old      compare with an earlier build

The count of instructions in user mode hardly depends on other programs of the machine, so it shows differences of one percent,
which times on a busy machine do not show. It does not include the kernel's work, and a cache miss costs nothing in it. A server
under callgrind is about fifty times slower. So a client in this process sends each request when the previous request is answered.
"""

import re
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from installing import HERE, CannotRun
from publishes import PAYLOAD, Request, signed_event, unsigned_event
from servers import PUSHER_PATH, Peer, Running, push1st, running

SUBSCRIBERS = 100
"""the number of subscribers whose deliveries are counted"""
TIMEOUT_SECONDS = 180


@dataclass(frozen=True, slots=True)
class Counted:
    """A server under callgrind, and the folder into which callgrind writes its counts."""

    server: Running
    folder: Path
    pid: int

    def dump(self) -> int:
        """Returns the instructions since the last call."""
        known = set(self.folder.glob("callgrind.*"))
        control = ("callgrind_control", "--dump", str(self.pid))
        subprocess.run(control, check=True, capture_output=True, timeout=TIMEOUT_SECONDS)
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            for path in set(self.folder.glob("callgrind.*")) - known:
                if found := re.search(r"^totals: (\d+)$", path.read_text(errors="replace"), re.MULTILINE):
                    return int(found[1])
            time.sleep(0.05)
        raise CannotRun("callgrind wrote no counts")

    def count(self, work: Callable[[], object], times: int) -> float:
        """Runs six groups of `times` calls, and returns the instructions of one call: the median of the last five groups."""
        groups = []
        for _ in range(6):
            self.dump()
            for _ in range(times):
                work()
            groups.append(self.dump() / times)
        return statistics.median(groups[1:])


@contextmanager
def counted(peer: Peer) -> Iterator[Counted]:
    """Runs a server under callgrind."""
    if shutil.which("valgrind") is None:
        raise CannotRun("valgrind: not found (Debian: apt-get install valgrind)")
    folder = Path(tempfile.mkdtemp(prefix="push1st-callgrind-"))
    valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/callgrind.%p", "--trace-children=no", "--quiet"]
    plain = peer.command

    def command(files: Path, port: int, api: int, broker: int, mqtt: int) -> list[str]:
        return [*valgrind, *plain(files, port, api, broker, mqtt)]

    try:
        slow = replace(peer, command=command, environment=peer.environment | {"PYTHONHASHSEED": "0"})
        with running(slow, patience=TIMEOUT_SECONDS) as server:
            yield Counted(server, folder, server.pids[0])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def opened(port: int) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port), TIMEOUT_SECONDS)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def read_until(connection: socket.socket, text: bytes) -> None:
    """Reads until the data contain a text."""
    data = b""
    while text not in data:
        more = connection.recv(65536)
        if not more:
            raise CannotRun(f"the server closed the connection: {data[-300:]!r}")
        data += more


def subscriber(port: int, channel: str) -> socket.socket:
    """Returns a connection that is subscribed to a channel."""
    made = opened(port)
    made.sendall(
        f"GET {PUSHER_PATH} HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    read_until(made, b"connection_established")
    body = f'{{"event":"pusher:subscribe","data":{{"channel":"{channel}"}}}}'.encode()
    made.sendall(bytes((0x81, 0x80 | len(body), 0, 0, 0, 0)) + body)
    read_until(made, b"subscription_succeeded")
    return made


class Publisher:
    """Publishes over one connection, and waits for the answer and for the deliveries."""

    def __init__(self, port: int) -> None:
        self._connection = opened(port)
        self._number = 0

    def publish(self, make: Request, channel: str, subscribers: list[socket.socket], batch: int = 1) -> None:
        """Publishes `batch` messages in one write."""
        requests = []
        for _ in range(batch):
            self._number += 1
            requests.append(make(channel, f"~{self._number:08d}~".ljust(PAYLOAD, "x")))
        self._connection.sendall(b"".join(requests))
        last = f"~{self._number:08d}~".encode()
        for one in subscribers:
            read_until(one, last)
        answered = 0
        while answered < batch:
            answered += self._connection.recv(65536).count(b"HTTP/1.1 200 OK")


def figures(checkout: Path) -> dict[str, float]:
    """Returns the instructions of each kind of work, for the build in a checkout."""
    with counted(push1st(1, "", checkout=checkout)) as server:
        ports = server.server
        publisher = Publisher(ports.api)
        alone = subscriber(ports.port, "one")
        crowd = [subscriber(ports.port, "crowd") for _ in range(1 + SUBSCRIBERS)]

        def connect() -> None:
            subscriber(ports.port, "coming").close()

        def publishing(make: Request, channel: str, subscribers: list[socket.socket], batch: int = 1) -> Callable[[], None]:
            return lambda: publisher.publish(make, channel, subscribers, batch)

        found = {
            "publish, unsigned": server.count(publishing(unsigned_event, "none", []), 100),
            "publish, signed": server.count(publishing(signed_event, "none", []), 100),
            "publish, one subscriber": server.count(publishing(unsigned_event, "one", [alone]), 100),
        }
        one, eight = (server.count(publishing(unsigned_event, "crowd", crowd, batch), 20) for batch in (1, 8))
        single = server.count(publishing(unsigned_event, "one", [alone], 8), 40)
        return found | {
            "delivery, one message a turn": (one - found["publish, one subscriber"]) / SUBSCRIBERS,
            "delivery, eight messages a turn": (eight - single) / SUBSCRIBERS / 8,
            "connection with a subscription": server.count(connect, 50),
        }


def counts(before: Path | None) -> str:
    """Returns a table of all figures. before: the checkout of an earlier build to compare with."""
    new = figures(HERE.parent)
    if before is None:
        lines = [f"| {name} | {value:,.0f} |" for name, value in new.items()]
        return "\n".join(("| instructions in user mode | this build |", "| --- | ---: |", *lines))
    old = figures(before.resolve())
    lines = [f"| {name} | {value:,.0f} | {old[name]:,.0f} | {value / old[name]:.3f} |" for name, value in new.items()]
    return "\n".join(("| instructions in user mode | this build | before | ratio |", "| --- | ---: | ---: | ---: |", *lines))
