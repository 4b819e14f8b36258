"""Measures what an inspector of the console costs a server with one worker that publishes as fast as it can.

    python bench/watched.py                seven minutes
    python bench/watched.py --rounds 3     faster
    python bench/watched.py --instructions     instructions instead of times, with valgrind's callgrind; three minutes

In each round the same server publishes without an inspector and with an inspector without a filter, so that each event passes the
watch. Each second round begins with the inspector: a machine that becomes slower with time then favours neither. A figure is the
median over the rounds, and the factor (×) is the median of the factors within each round. The
figures "later" are measured `PAUSE_SECONDS` after the end of the last inspector. The server is pinned to the first core; the load
generator and the inspector share the last one. On a machine with other work, the CPU time of a publish is the better figure. The
exit code is 1 if an inspector costs more than `MOST_LOSS` by both figures.

The instructions in user mode (`instructions.py`) hardly depend on other work of the machine. An inspector takes `MAX_RATE` events
a second and counts the others, and a server under callgrind is slower than this rate. So the instructions are counted in two
servers without ticks: in the first, the inspector takes each event; in the second, it counts each event. The row of a rate has
the factor of a server that publishes so many events a second.
"""

import argparse
import contextlib
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from installing import HERE, CannotRun, compiled
from instructions import Counted, Publisher, counted, opened, read_until
from publishes import KEY, PAYLOAD, access_token, mqtt_packet, unsigned_event
from report import grid
from servers import MQTT, Peer, Running, free_port, machine, push1st, running, stop_on_signals, write_requests

PASSWORD = "a password of the bench"
MOST_LOSS = 0.03
"""the maximum part of the publishes that an inspector may cost"""
PAUSE_SECONDS = 30
SECONDS, WARM_SECONDS = 1, 1
LATER_ROUNDS = 15
WATCH = b'{"watch":"inspector","filter":{}}'
PONG, PONG_SECONDS = b"\x8a\x80\0\0\0\0", 5
"""a frame that shows the server that the inspector still reads; the pings of the server are not decoded"""
BATCH, BATCHES = 10, 50
"""the publishes in one write, and the writes in each group whose instructions are counted: in all `push1st.core.tap.MAX_BATCH`"""
TAKEN_RATE = 2000
"""`push1st.core.tap.MAX_RATE`"""
RATES = (10_000, 20_000, 40_000)
PROGRAM = "import push1st.core.tap as tap; tap.MAX_RATE = {}; tap.TICK_SECONDS = 9999; import push1st.__main__"
"""the program of a server whose inspectors take a number of events"""
LOADS: dict[str, dict[str, int | str]] = {
    "HTTP, unsigned": {"publishers": 16, "backlog": 4096},
    "MQTT, QoS 0": {
        "publishers": 8,
        "backlog": 4096,
        "publish_mqtt": 4,
        "qos": 0,
        "user": KEY,
        "password": access_token("bench*"),
    },
}


def peer(console: int) -> Peer:
    section = f"console: {{{{ listen: 'tcp://127.0.0.1:{console}', password: '{PASSWORD}' }}}}\n"
    return replace(push1st(1, "", protocols=", mqtt", server=MQTT + section), mqtt=True)


def run(server: Running, name: str, folder: Path) -> tuple[float, float]:
    """Runs the load generator. Returns the publishes a second, and the microseconds of CPU of the server for a publish."""
    is_mqtt = name.startswith("MQTT")
    make = partial(mqtt_packet, 4, 0) if is_mqtt else None
    words = {
        "port": server.ports[0],
        "api": server.mqtts[0] if is_mqtt else server.apis[0],
        "path": server.peer.path,
        "pids": ":".join(map(str, server.pids)),
        "seconds": SECONDS,
        "warm": WARM_SECONDS,
        "least": PAYLOAD,
        "n": 1,
        "channels": 1,
        "file": write_requests(folder / "requests", server.peer, 1, 1, False, make),
        **LOADS[name],
    }
    command = [str(compiled(HERE / "load.c")), "publish", *(f"{key}={value}" for key, value in words.items())]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS + 60)
    result = json.loads(done.stdout)
    if result["server_cpu"] < 0.9:
        print(f"watched: {name}: the server was not the bottleneck ({result['server_cpu']:.0%})", file=sys.stderr)
    return float(result["publishes_per_s"]), float(result["server_us_per_publish"])


def sign_in(port: int) -> str:
    """Returns a cookie of the console."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Origin": f"http://127.0.0.1:{port}", "Push1st-Console": "1"}
    connection.request("POST", "/api/login", json.dumps({"password": PASSWORD}), headers)
    return str(connection.getresponse().headers["Set-Cookie"]).partition(";")[0]


@contextlib.contextmanager
def watching(port: int, cookie: str) -> Iterator[list[int]]:
    """Watches everything. Yields a list with the number of received bytes, which are not decoded."""
    with opened(port) as page:
        page.sendall(
            f"GET /api/live HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nOrigin: http://127.0.0.1:{port}\r\nCookie: {cookie}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        read_until(page, b"\r\n\r\n")
        page.sendall(bytes((0x81, 0x80 | len(WATCH), 0, 0, 0, 0)) + WATCH)
        read_until(page, b'"dropped":{}')
        received, ended = [0], threading.Event()
        reader = threading.Thread(target=_read, args=(page, received, ended), daemon=True)
        reader.start()
        yield received
        if not reader.is_alive():
            sys.exit("watched: the server has ended the inspector, so there is no figure")
        ended.set()
        with contextlib.suppress(OSError):
            page.shutdown(socket.SHUT_RDWR)
        reader.join()


def _read(page: socket.socket, received: list[int], ended: threading.Event) -> None:
    """Reads until the end. Shows what the server sent last if the server ends the inspector."""
    pong_at, last = time.monotonic(), b""
    with contextlib.suppress(OSError):
        while data := page.recv(1 << 20):
            received[0] += len(data)
            last = data[-100:]
            if time.monotonic() > pong_at:
                page.sendall(PONG)
                pong_at += PONG_SECONDS
    if not ended.is_set():
        print(f"watched: the inspector ended after {last!r}", file=sys.stderr)


def measure(rounds: int) -> list[list[str]]:
    """Returns a row for each kind of load."""
    rows: list[list[str]] = []
    port, cores = free_port(), sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    with tempfile.TemporaryDirectory() as name, running(peer(port), {cores[0]}) as server:
        folder, cookie = Path(name), sign_in(port)
        found: dict[str, tuple[list[tuple[float, float]], list[tuple[float, float]]]] = {load: ([], []) for load in LOADS}
        for number in range(rounds):
            for load, (alone, watched) in found.items():
                if number % 2 == 0:
                    alone.append(run(server, load, folder))
                with watching(port, cookie) as received:
                    watched.append(run(server, load, folder))
                if number % 2:
                    alone.append(run(server, load, folder))
                rates = f"{alone[-1][0]:,.0f} alone, {watched[-1][0]:,.0f} watched"
                times = f"{alone[-1][1]:.2f} µs alone, {watched[-1][1]:.2f} µs watched"
                print(f"watched: round {number + 1}: {load:15} {rates}, {times}, {received[0]:,} bytes received", file=sys.stderr)
        time.sleep(PAUSE_SECONDS)
        for load, (alone, watched) in found.items():
            later = [run(server, load, folder) for _ in range(LATER_ROUNDS)]
            rate, cpu = (statistics.median(two[at] / one[at] for one, two in zip(alone, watched, strict=True)) for at in (0, 1))
            figures = [statistics.median(one[at] for one in some) for at in (0, 1) for some in (alone, watched, later)]
            row = [f"{figure:,.0f}" for figure in figures[:3]] + [f"{rate:.3f}", f"{figures[2] / figures[0]:.3f}"]
            row += [f"{figure:.2f}" for figure in figures[3:]] + [f"{cpu:.3f}", f"{figures[5] / figures[3]:.3f}"]
            rows.append([load, *row, "yes" if max(rate, 1 / cpu) >= 1 - MOST_LOSS else "**no**"])
    return rows


def limited(port: int, taken: int) -> Peer:
    """Returns a server whose inspectors take a number of events, and only count the others."""
    plain = peer(port)

    def command(*words: Any) -> list[str]:
        python, _, _, *rest = plain.command(*words)
        return [python, "-c", PROGRAM.format(taken), *rest]

    return replace(plain, command=command)


def instructions() -> str:
    """Returns a table of the instructions of a publish with the HTTP API: without an inspector, with one, and after its end."""
    found: list[tuple[float, float, float]] = []
    for most in (1_000_000, 0):
        port = free_port()
        with counted(limited(port, most)) as server:
            publisher, cookie = Publisher(server.server.api), sign_in(port)

            def count(publisher: Publisher = publisher, server: Counted = server) -> float:
                return server.count(lambda: publisher.publish(unsigned_event, "none", [], BATCH), BATCHES) / BATCH

            alone = count()
            with watching(port, cookie):
                watched = count()
            time.sleep(PAUSE_SECONDS)
            found.append((alone, watched, count()))
    heads = ["instructions in user mode of a publish", "alone", "watched", f"{PAUSE_SECONDS} s later", "watched ×", "later ×"]
    names = ("the inspector takes each event", "the inspector counts each event")
    rows = [
        [name, *(f"{one:,.0f}" for one in row), f"{row[1] / row[0]:.3f}", f"{row[2] / row[0]:.3f}"]
        for name, row in zip(names, found, strict=True)
    ]
    (alone, taken, _), (base, only_counted, _) = found
    for rate in RATES:
        part = TAKEN_RATE / rate
        factor = 1 + part * (taken / alone - 1) + (1 - part) * (only_counted / base - 1)
        rows.append([f"{rate:,} publishes/s", "", "", "", f"{factor:.3f}", ""])
    return grid([heads, *rows])


def main() -> int:
    stop_on_signals()
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=30, metavar="N")
    options.add_argument("--instructions", action="store_true", help="count the instructions in user mode instead")
    given = options.parse_args()
    print(", ".join(f"{key}: {value}" for key, value in machine().items()))
    if given.instructions:
        try:
            print(instructions())
        except CannotRun as error:
            print(f"watched: the instructions cannot be counted: {error}", file=sys.stderr)
            return 2
        return 0
    names = ["alone", "watched", f"{PAUSE_SECONDS} s later", "watched ×", "later ×"]
    heads = ["", *(f"publishes/s {name}" for name in names), *(f"µs of CPU {name}" for name in names), f"at most {MOST_LOSS:.0%}"]
    rows = measure(given.rounds)
    print(grid([heads, *rows]))
    return int(any("no" in row[-1] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
