"""Measures how long pages need to resume after a worker was killed, and whether they miss events.

    python bench/resumption.py                          10,000 pages on two workers, of which one is killed
    python bench/resumption.py --kill all               both workers are killed, so all pages resume at once
    python bench/resumption.py --channels 100 --rate 100

The pages are subscribed to a channel with history, on which events are published all the time. After some seconds, workers are
killed (SIGKILL). Like pusher-js, a page whose connection is lost connects again after one second. The time counts from the kill
until all pages have resumed. Then each page must have received each event in order; a page may receive events of the last
seconds before the kill again, because it had not acknowledged them.

The exit code is 1 if a page resumes too late, does not recover, or misses an event.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from installing import HERE, CannotRun, compiled
from servers import (
    REALTIME,
    Peer,
    Running,
    broker_version,
    machine,
    peers,
    raise_file_limit,
    running,
    stop_on_signals,
    write_requests,
)

MOST_SECONDS = 10.0
WARM_SECONDS = 5
"""the time between the connections of the pages and the kill"""
SECONDS = 15
"""the minimum time between the kill and the end of the publishes"""


def workers(server: Running) -> list[int]:
    """Returns the process ids of the workers."""
    return [pid for pid in server.pids if b"push1st.process.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def measure(peer: Peer, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    count = (WARM_SECONDS + SECONDS + 60) * options.rate
    with running(peer, realtime=options.realtime) as server:
        killed = workers(server)
        killed = killed if options.kill == "all" else killed[:1]
        words = {
            "port": server.port,
            "api": server.api,
            "path": peer.path,
            **peer.client,
            "n": options.pages,
            "channels": options.channels,
            "burst": options.burst,
            "rate": options.rate,
            "warm": WARM_SECONDS,
            "seconds": SECONDS,
            "least": 100,
            "kill": ":".join(map(str, killed)),
            "file": write_requests(folder / "requests", peer, options.channels, count - count % options.channels, signed=False),
        }
        command = [str(compiled(HERE / "load.c")), "resume", *(f"{key}={value}" for key, value in words.items())]
        if options.realtime:
            command = [*REALTIME, *command]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    if done.returncode:
        raise CannotRun(done.stderr.strip().replace("\n", "; ") or f"load ended with {done.returncode}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def shown(found: dict[str, float]) -> str:
    return (
        f"{found['lost']:,.0f} of {found['pages']:,.0f} pages lost their connection; first after {found['first_s']:.2f} s, "
        f"half after {found['half_s']:.2f} s, all after {found['all_s']:.2f} s; {found['recovered']:,.0f} recovered, "
        f"{found['unrecovered']:,.0f} not; {found['published']:,.0f} events, {found['missed']:,.0f} missed, "
        f"{found['behind']:,.0f} pages behind at the end; repeats: {found['repeats'] / max(1, found['lost']):.1f} a page, "
        f"at most {found['most_repeats']:.0f}; load generator {found['load_cpu']:.2f} cores"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Let pages resume after the end of a worker.")
    parser.add_argument("--pages", type=int, default=10_000, metavar="N")
    parser.add_argument("--channels", type=int, default=1, metavar="N", help="the pages are distributed on them")
    parser.add_argument("--rate", type=int, default=5, metavar="N", help="publishes a second, over all channels")
    parser.add_argument("--workers", type=int, default=2, metavar="N")
    parser.add_argument("--kill", choices=("one", "all"), default="one", help="the workers that are killed")
    parser.add_argument("--burst", type=int, default=1000, metavar="N", help="connections under way at a time")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--realtime", action="store_true", help="as in bench.py")
    options = parser.parse_args()
    stop_on_signals()
    options.pages = min(options.pages, raise_file_limit() - 200)
    ready, left_out = peers(["pages"], options.workers)
    if not ready:
        print(f"resumption: {left_out}", file=sys.stderr)
        return 2
    about = machine()
    print(
        f"{about['date']}; {about['cpu']}, {about['cores']} cores; Linux {about['kernel']}; {ready[0].label} {ready[0].version}"
    )
    print(f"{broker_version()}; {options.rate} publishes/s; load average {os.getloadavg()[0]:.2f}")
    rounds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="push1st-bench-") as folder:
        for number in range(1, options.rounds + 1):
            try:
                rounds.append(measure(ready[0], options, Path(folder)))
            except (CannotRun, subprocess.TimeoutExpired) as error:
                print(f"resumption: {error}", file=sys.stderr)
                return 1
            print(f"round {number}: {shown(rounds[-1])}")
    slowest = max(one["all_s"] if one["all_s"] >= 0 else float("inf") for one in rounds)
    wrong = sum(one["missed"] + one["behind"] + one["unrecovered"] + (one["recovered"] != one["lost"]) for one in rounds)
    print(f"all pages have resumed after {statistics.median(one['all_s'] for one in rounds):.2f} s (median)")
    print(f"- {'reached' if slowest <= MOST_SECONDS else 'MISSED '}: slowest round: {slowest:.2f} s, wanted ≤ {MOST_SECONDS:g}")
    print(f"- {'reached' if not wrong else 'MISSED '}: every page recovered, and received every event in order")
    return 0 if slowest <= MOST_SECONDS and not wrong else 1


if __name__ == "__main__":
    sys.exit(main())
