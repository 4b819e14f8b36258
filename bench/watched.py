"""Measures what an inspector of the console costs a server with one worker that publishes as fast as it can.

    python bench/watched.py                three minutes
    python bench/watched.py --rounds 3     faster

In each round the same server publishes without an inspector, and then with an inspector without a filter, so that each event
passes the watch. A figure is the median over the rounds, and the factor (×) is the median of the factors within each round. The
figures "later" are measured `PAUSE_SECONDS` after the end of the last inspector. The server is pinned to the first core; the load
generator and the inspector share the last one. On a machine with other work, the CPU time of a publish is the better figure. The
exit code is 1 if an inspector costs more than `MOST_LOSS` by both figures.
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

from installing import HERE, compiled
from publishes import KEY, PAYLOAD, access_token, mqtt_packet
from report import grid
from servers import MQTT, Peer, Running, free_port, machine, push1st, running, stop_on_signals, write_requests
from websockets.sync.client import connect

PASSWORD = "a password of the bench"
MOST_LOSS = 0.03
"""the maximum part of the publishes that an inspector may cost"""
PAUSE_SECONDS = 30
SECONDS, WARM_SECONDS = 2, 1
LATER_ROUNDS = 5
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
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {"Origin": f"http://127.0.0.1:{port}", "Push1st-Console": "1"}
    connection.request("POST", "/api/login", json.dumps({"password": PASSWORD}), headers)
    return str(connection.getresponse().headers["Set-Cookie"]).partition(";")[0]


@contextlib.contextmanager
def watching(port: int, cookie: str) -> Iterator[list[int]]:
    """Watches everything. Yields a list with the number of received bytes, which are not decoded."""
    headers = {"Origin": f"http://127.0.0.1:{port}", "Cookie": cookie}
    with connect(f"ws://127.0.0.1:{port}/api/live", additional_headers=headers, compression=None) as page:
        page.send('{"watch":"inspector","filter":{}}')
        page.recv()
        raw, received = socket.socket(fileno=os.dup(page.socket.fileno())), [0]
        page.socket.settimeout(None)
        reader = threading.Thread(target=_read, args=(raw, received), daemon=True)
        reader.start()
        try:
            yield received
            if not reader.is_alive():
                sys.exit("watched: the server has ended the inspector, so there is no figure")
        finally:
            with contextlib.suppress(OSError):
                raw.shutdown(socket.SHUT_RDWR)
            reader.join()
            raw.close()


def _read(raw: socket.socket, received: list[int]) -> None:
    with contextlib.suppress(OSError):
        while data := raw.recv(1 << 20):
            received[0] += len(data)


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
                alone.append(run(server, load, folder))
                with watching(port, cookie) as received:
                    watched.append(run(server, load, folder))
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


def main() -> int:
    stop_on_signals()
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=8, metavar="N")
    rounds = options.parse_args().rounds
    print(", ".join(f"{key}: {value}" for key, value in machine().items()))
    names = ["alone", "watched", f"{PAUSE_SECONDS} s later", "watched ×", "later ×"]
    heads = ["", *(f"publishes/s {name}" for name in names), *(f"µs of CPU {name}" for name in names), f"at most {MOST_LOSS:.0%}"]
    rows = measure(rounds)
    print(grid([heads, *rows]))
    return int(any("no" in row[-1] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
