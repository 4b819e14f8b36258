"""Measures the server's memory while clients connect and leave for ten minutes; the memory must not grow.

    python bench/churn.py                                   ten minutes
    python bench/churn.py --minutes 1 --only uws            a minute, another server

Every 1/rate of a second one client leaves, another one connects and subscribes, and an event is published to one of the
channels. Clients leave in three ways, in turn: by a WebSocket close frame (RFC 6455), by FIN, and by RST. A straight line through
the samples after the first third must not rise by more than 2 % of the mean, or by 1 MiB if that is more. At the default rate,
this finds a leak of 9 bytes for each connection. The exit code is 1 if the memory rises more, or if the server rejected
publishes or closed connections.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import plot
from installing import HERE, CannotRun, compiled
from servers import Running, machine, peers, raise_file_limit, running, write_requests

SETTLE = 1 / 3
"""of the time: caches fill, the allocator finds its level"""
ALLOWED_SHARE = 0.02
ALLOWED_KIB = 1024.0


def memory(pids: list[int]) -> float:
    """Returns the memory (PSS) of these processes together, in KiB."""
    total = 0.0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += next(float(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def churn(server: Running, options: argparse.Namespace, folder: Path) -> tuple[list[tuple[float, float]], dict[str, float]]:
    """Runs the load; returns the memory at each moment (seconds, KiB) and what the load counted."""
    seconds = options.minutes * 60
    requests = write_requests(folder / "requests", server.peer, options.channels, options.channels, server.peer.plain is None)
    words: dict[str, object] = {
        "port": server.port,
        "api": server.api,
        "path": server.peer.path,
        "pusher": int(server.peer.pusher),
        "n": options.clients,
        "channels": options.channels,
        "publishers": 4,
        "rate": options.rate,
        "seconds": seconds,
        "least": 100,
        "file": requests,
    }
    samples: list[tuple[float, float]] = []
    start = time.monotonic()
    with subprocess.Popen(
        [str(compiled(HERE / "load.c")), "churn", *(f"{key}={value}" for key, value in words.items())],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as load:
        while load.poll() is None:
            samples.append((time.monotonic() - start, memory(server.pids)))
            if samples[-1][0] > seconds + 60:
                load.kill()
            time.sleep(max(0.25, seconds / 600))
        output, errors = load.communicate()
    if errors:
        print(f"churn: {errors.strip()}", file=sys.stderr)
    if load.returncode:
        raise CannotRun(f"load ended with {load.returncode}")
    return [sample for sample in samples if 1 <= sample[0] <= seconds], json.loads(output)


def rise(samples: list[tuple[float, float]]) -> tuple[float, float]:
    """Returns the rise in KiB of a straight line through the samples after the first third, and their mean."""
    settled = [sample for sample in samples if sample[0] >= samples[-1][0] * SETTLE]
    times, sizes = zip(*settled, strict=True)
    return statistics.linear_regression(times, sizes).slope * (times[-1] - times[0]), statistics.fmean(sizes)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Watch a server's memory while clients come and go.")
    parser.add_argument("--minutes", type=float, default=10, metavar="M")
    parser.add_argument("--only", default="push1st", metavar="NAME", help="which server: push1st, uws, soketi or nchan")
    parser.add_argument("--clients", type=int, default=500, metavar="N", help="connected at a time, about")
    parser.add_argument("--channels", type=int, default=50, metavar="N")
    parser.add_argument("--rate", type=int, default=300, metavar="N", help="clients that come, and publishes, a second")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="of this server")
    parser.add_argument("--csv", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the line as SVG")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    raise_file_limit()
    ready, left_out = peers([options.only], options.workers)
    if not ready:
        print(f"churn: {left_out}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="push1st-bench-") as folder, running(ready[0]) as server:
        samples, counted = churn(server, options, Path(folder))
    risen, mean = rise(samples)
    allowed = max(ALLOWED_KIB, ALLOWED_SHARE * mean)
    unwanted = {key: counted[key] for key in ("refused", "failed", "closed") if counted[key]}
    flat = risen <= allowed
    each = risen * 1024 / max(counted["came"] * (1 - SETTLE), 1)
    verdict = "flat" if flat else "NOT FLAT"
    lines = [
        f"{ready[0].label} {ready[0].version}, {options.minutes:g} minutes: {counted['came']:,.0f} clients came and went",
        f"{counted['answered']:,.0f} publishes, {counted['received']:,.0f} deliveries",
        f"mean {mean / 1024:.1f} MiB; after the first third it rose by {risen:.0f} KiB ({each:.1f} bytes a client)",
        f"allowed are {allowed:.0f} KiB: {verdict}",
        "{date}; {cpu}, {cores} cores; Linux {kernel}".format(**machine()),
    ]
    if unwanted:
        lines.append("unwanted: " + ", ".join(f"{count:.0f} {what}" for what, count in unwanted.items()))
    print("\n".join(lines))
    if options.csv:
        options.csv.write_text("seconds,pss_kib\n" + "".join(f"{at:.1f},{size:.0f}\n" for at, size in samples))
    if options.plot:
        points = [(at / 60, size / 1024) for at, size in samples]
        options.plot.write_text(plot.line("Memory while clients come and go", points, "minutes", "MiB", lines))
    return 0 if flat and not unwanted else 1


if __name__ == "__main__":
    sys.exit(main())
