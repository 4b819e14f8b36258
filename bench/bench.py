"""Measures this server and its peers, one after another on this machine, and prints one table.

    python bench/bench.py                        everything: about twelve minutes
    python bench/bench.py --quick                one short round, to find large regressions
    python bench/bench.py --only push1st,uws     some of the servers
    python bench/bench.py --before ../old        compare with an earlier build, which runs twice; more --rounds reduce noise
    python bench/bench.py --cluster              clusters of two nodes and a broker, compared with soketi: about four minutes

A `Suite` is a set of measurements: single servers, or clusters. A run starts one server under one kind of load, and the load
generator (bench/load.c) prints its counters. A round runs all kinds of load, and each kind of load with all servers, so that
neighbours in the table ran within the same minute. A figure is the median over the rounds. A ratio compares a server with the
reference server of its suite (for single servers: uWebSockets.js) within a round; the table has the median of these ratios. For
single servers, on two cores or more, the server is pinned to the first core and the load generator to the last one.

bench/README.md explains each figure.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plot
from servers import (
    CLUSTER_NAMES,
    EARLIER,
    HERE,
    KEY,
    NAMES,
    PAYLOAD,
    SECRET,
    CannotRun,
    Peer,
    Running,
    broker_version,
    compiled,
    machine,
    peers,
    raise_file_limit,
    running,
    write_requests,
)

LATENCY_LOAD = 50_000
"""deliveries/s at which latency is measured: about half of what a server does with one publish at a time"""
IDS = 1024
"""publishes that can be told apart at a time, for latency"""


@dataclass(frozen=True, slots=True)
class Run:
    """One kind of load."""

    name: str
    mode: str
    options: dict[str, int]
    signed: bool | None = None
    """publish signed, publish unsigned, or (None) as the server prefers: unsigned where it is allowed"""
    many: bool = False
    """one channel for each subscriber, rather than one for all"""
    with_floor: bool = False
    """the bare C loop takes part"""


ALONE_RUNS = (
    Run("one", "publish", {"publishers": 1, "backlog": 1}, with_floor=True),
    Run("eight", "publish", {"publishers": 8, "backlog": 64}),
    Run("unsigned", "publish", {"publishers": 16, "backlog": 4096}, signed=False, many=True),
    Run("signed", "publish", {"publishers": 16, "backlog": 4096}, signed=True, many=True),
    Run("latency", "publish", {"publishers": 16}),
    Run("idle", "hold", {}),
)
CLUSTER_RUNS = (Run("eight", "publish", {"publishers": 8, "backlog": 64}, signed=True), Run("presence", "presence", {}))


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the table: a field of what the load generator prints."""

    run: str
    field: str
    title: str
    unit: str
    more_is_better: bool = True
    scale: float = 1
    digits: int = 0


ALONE_FIGURES = (
    Figure("eight", "deliveries_per_s", "fan-out, 8 publishers at once", "deliveries/s"),
    Figure("one", "deliveries_per_s", "fan-out, one publish at a time", "deliveries/s"),
    Figure("eight", "server_us_per_delivery", "server CPU, 8 publishers", "µs a delivery", False, digits=2),
    Figure("one", "server_us_per_delivery", "server CPU, one publish at a time", "µs a delivery", False, digits=2),
    Figure("unsigned", "publishes_per_s", "unsigned publishes, one subscriber each", "publishes/s"),
    Figure("signed", "publishes_per_s", "signed publishes, one subscriber each", "publishes/s"),
    Figure("latency", "p50_us", "latency at half load, median", "ms", False, 0.001, 2),
    Figure("latency", "p99_us", "latency at half load, 99 of 100", "ms", False, 0.001, 2),
    Figure("idle", "kib_per_connection", "memory of an idle connection", "KiB", False, digits=2),
    Figure("idle", "connects_per_s", "new connections", "connects/s"),
)
CLUSTER_FIGURES = (
    Figure("eight", "deliveries_per_s", "fan-out, 8 publishers at once", "deliveries/s"),
    Figure("eight", "server_us_per_delivery", "CPU of nodes and broker, 8 publishers", "µs a delivery", False, digits=2),
    Figure("presence", "joins_per_s", "members joining one presence channel", "joins/s"),
    Figure("presence", "server_us_per_join", "CPU of nodes and broker, joins", "ms a join", False, 0.001, 2),
)


@dataclass(frozen=True, slots=True)
class Goal:
    """What this server's figure must be, as a multiple of another's, or (no other) as it stands."""

    run: str
    field: str
    other: str | None
    bound: float
    at_least: bool
    ours: str = "push1st"


ALONE_GOALS = (
    Goal("eight", "deliveries_per_s", "alone", 1.6, True),
    Goal("eight", "server_us_per_delivery", "alone", 1.15, False),
    Goal("eight", "deliveries_per_s", "uws", 0.95, True),
    Goal("eight", "deliveries_per_s", "soketi", 5, True),
    Goal("eight", "deliveries_per_s", "nchan", 3, True),
    Goal("one", "server_us_per_delivery", "uws", 1.2, False),
    Goal("one", "server_us_per_delivery", "csend", 1.4, False),
    Goal("unsigned", "publishes_per_s", "uws", 1.0, True),
    Goal("signed", "publishes_per_s", "soketi", 4, True),
    Goal("idle", "kib_per_connection", None, 6, False),
    Goal("idle", "connects_per_s", "uws", 0.4, True),
)
CLUSTER_GOALS = tuple(
    Goal(run, field, "soketi", 5, True, ours)
    for run, field in (("eight", "deliveries_per_s"), ("presence", "joins_per_s"))
    for ours in ("push1st", "embedded")
)


@dataclass(frozen=True, slots=True)
class Suite:
    """What is measured together. base: whom ratios are against. busy: runs whose CPU shares are shown, and what to call them."""

    title: str
    names: Sequence[str]
    runs: Sequence[Run]
    figures: Sequence[Figure]
    goals: Sequence[Goal]
    base: str
    base_label: str
    busy: Sequence[tuple[str, str]]
    nodes: int


ALONE = Suite(
    "Push1st and its peers",
    NAMES,
    ALONE_RUNS,
    ALONE_FIGURES,
    ALONE_GOALS,
    "uws",
    "uWebSockets.js",
    (("one", "one publish at a time"), ("eight", "8 publishers")),
    1,
)
CLUSTER = Suite(
    "Push1st and soketi, two nodes each",
    CLUSTER_NAMES,
    CLUSTER_RUNS,
    CLUSTER_FIGURES,
    CLUSTER_GOALS,
    "soketi",
    "soketi",
    (("eight", "8 publishers"), ("presence", "joins")),
    2,
)

Result = dict[str, Any]


class Bench:
    """Starts servers, loads them, keeps the results."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.suite: Suite = options.suite
        self.folder = folder
        self.load = compiled(HERE / "load.c")
        self.results: list[Result] = []
        self.notes: dict[str, str] = {}
        self.cores = sorted(os.sched_getaffinity(0))

    def server_cores(self, peer: Peer) -> set[int] | None:
        """Those of a server that leaves one to the load generator; None: all share all."""
        return set(self.cores[: peer.workers]) if self.suite.nodes == 1 and peer.workers < len(self.cores) else None

    def signs(self, peer: Peer, run: Run) -> bool | None:
        """Whether the server publishes signed in this run; None: it does not take part."""
        if peer.name == "csend" and not run.with_floor:
            return None
        if run.signed is not None:
            return run.signed if (peer.signed if run.signed else peer.plain) else None
        return peer.plain is None

    def command(self, server: Running, run: Run, signed: bool) -> list[str]:
        options, peer = self.options, server.peer
        words: dict[str, object] = {
            "port": ":".join(map(str, server.ports)),
            "api": ":".join(map(str, server.apis)),
            "path": peer.path,
            "pusher": int(peer.pusher),
            "pids": ":".join(map(str, server.pids)),
            "seconds": options.seconds,
            "warm": min(1.0, options.seconds / 2),
            "least": PAYLOAD,
            "n": options.connections if run.mode == "hold" else options.subscribers,
            **run.options,
        }
        if run.mode == "presence":
            words |= {"key": KEY, "secret": SECRET, "burst": options.burst}
        if run.mode == "publish":
            channels = options.subscribers if run.many else 1
            latency = run.name == "latency"
            words["channels"] = channels
            words["file"] = write_requests(self.folder / "requests", peer, channels, IDS if latency else channels, signed)
            if latency:
                words["rate"] = max(1, round(LATENCY_LOAD / options.subscribers))
        prefix = ["taskset", "-c", str(self.cores[-1])] if self.server_cores(peer) else []
        return [*prefix, str(self.load), run.mode, *(f"{key}={value}" for key, value in words.items())]

    def measure(self, peer: Peer, run: Run, number: int) -> None:
        signed = self.signs(peer, run)
        if signed is None:
            return
        try:
            with running(peer, self.server_cores(peer)) as server:
                before = Use.now(server.pids)
                done = subprocess.run(
                    self.command(server, run, signed),
                    capture_output=True,
                    text=True,
                    timeout=self.options.seconds + 120,
                    check=False,
                )
                others = Use.now(server.pids).others_since(before)
            if done.returncode:
                raise CannotRun(done.stderr.strip().replace("\n", "; ") or f"load ended with {done.returncode}")
            if done.stderr:
                self.notes[f"{peer.label}, {run.name}, round {number}"] = done.stderr.strip().replace("\n", "; ")
            result: Result = {"round": number, "run": run.name, "peer": peer.name, "others": others, **json.loads(done.stdout)}
        except (CannotRun, subprocess.TimeoutExpired) as error:
            self.notes[f"{peer.label}, {run.name}"] = str(error)
            print(f"bench: round {number}: {run.name:9}{peer.label:15} FAILED: {error}", file=sys.stderr)
            return
        self.results.append(result)
        for field, meaning in (
            ("lost", "deliveries lost"),
            ("refused", "publishes refused"),
            ("closed", "connections closed"),
            ("uneven", "clients that did not get exactly what they should"),
        ):
            if result.get(field):
                self.notes[f"{peer.label}, {run.name}, round {number}"] = f"{result[field]} {meaning}"
        if result["load_cpu"] > 0.95:
            self.notes[f"{peer.label}, {run.name}, round {number}, load"] = "the load generator was the bottleneck"
        shown = ", ".join(
            f"{result[figure.field] * figure.scale:,.{figure.digits}f} {figure.unit}"
            for figure in self.suite.figures
            if figure.run == run.name
        )
        busy = f"server {result['server_cpu']:.0%}, load {result['load_cpu']:.0%}, others {others:.0%}"
        print(f"bench: round {number}: {run.name:9}{peer.label:15} {shown} ({busy})", file=sys.stderr)

    def median(self, run: str, field: str, peer: str) -> float | None:
        values = [result[field] for result in self.results if result["run"] == run and result["peer"] == peer]
        return statistics.median(values) if values else None

    def ratio(self, run: str, field: str, peer: str, other: str) -> float | None:
        """The median of the ratios within each round: what ran in the same minute, since machines drift between rounds."""
        ratios = self.ratios(run, field, peer, other)
        return statistics.median(ratios) if ratios else None

    def ratios(self, run: str, field: str, peer: str, other: str) -> list[float]:
        rounds: dict[int, dict[str, float]] = {}
        for result in self.results:
            if result["run"] == run:
                rounds.setdefault(result["round"], {})[result["peer"]] = result[field]
        return [one[peer] / one[other] for one in rounds.values() if peer in one and one.get(other)]


@dataclass(frozen=True, slots=True)
class Use:
    """CPU seconds used so far: by the whole machine, and by the server and the load generator."""

    at: float
    machine: float
    ours: float

    @classmethod
    def now(cls, pids: Sequence[int]) -> "Use":
        tick = os.sysconf("SC_CLK_TCK")
        fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        ours = 0.0
        for pid in pids:
            try:
                words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            ours += (int(words[11]) + int(words[12])) / tick
        for who in (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF):
            used = resource.getrusage(who)
            ours += used.ru_utime + used.ru_stime
        return cls(time.monotonic(), (sum(fields) - fields[3] - fields[4]) / tick, ours)

    def others_since(self, before: "Use") -> float:
        """Cores kept busy by anybody else meanwhile."""
        return round(max(0.0, (self.machine - before.machine - self.ours + before.ours) / (self.at - before.at)), 3)


# ---- what is shown ---------------------------------------------------------------------------------------------------------


def grid(rows: list[list[str]]) -> str:
    """A Markdown table that also reads well as it stands: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for row in (rows[0], rule, *rows[1:]):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(figure: Figure, value: float | None, ratio: float | None) -> str:
    if value is None:
        return "–"
    text = f"{value * figure.scale:,.{figure.digits}f}"
    return f"{text} ({ratio:.2f}×)" if ratio else text


def table(bench: Bench, ready: list[Peer]) -> str:
    rows = [["", *(peer.label for peer in ready)]]
    suite = bench.suite
    for figure in suite.figures:
        values = {peer.name: bench.median(figure.run, figure.field, peer.name) for peer in ready}
        if any(value is not None for value in values.values()):
            cells = (
                cell(
                    figure,
                    values[peer.name],
                    None if peer.name == suite.base else bench.ratio(figure.run, figure.field, peer.name, suite.base),
                )
                for peer in ready
            )
            rows.append([f"{figure.title}, {figure.unit}", *cells])
    for run, how in suite.busy:
        for field, who in (("server_cpu", "server" if suite.nodes == 1 else "nodes and broker"), ("load_cpu", "load generator")):
            shares = [bench.median(run, field, peer.name) for peer in ready]
            if all(share is None for share in shares):
                continue
            rows.append([f"busy: {who}, {how}", *("–" if share is None else f"{share:.0%}" for share in shares)])
    return grid(rows)


def goals(bench: Bench) -> list[str]:
    lines = []
    for goal in bench.suite.goals:
        figure = next(figure for figure in bench.suite.figures if (figure.run, figure.field) == (goal.run, goal.field))
        if goal.other:
            ratio = bench.ratio(goal.run, goal.field, goal.ours, goal.other)
        else:
            ratio = bench.median(goal.run, goal.field, goal.ours)
        if ratio is None:
            continue
        reached = ratio >= goal.bound if goal.at_least else ratio <= goal.bound
        unit = f"× {goal.other}" if goal.other else figure.unit
        who = "" if goal.ours == "push1st" else f" ({goal.ours})"
        lines.append(
            f"- {'reached' if reached else 'MISSED '}: {figure.title}{who}: {ratio:.2f} {unit}, "
            f"wanted {'≥' if goal.at_least else '≤'} {goal.bound:g}"
        )
    return lines


def comparison(bench: Bench) -> str:
    """Returns a table: ratios of this build to the earlier one, and of the earlier one to its second run.

    Each cell has the median of the rounds, the minimum and the maximum.
    """
    rows = [["", "this build × the earlier one", "the earlier one × itself", "worse by more than 2 % and more than the spread"]]
    for figure in bench.suite.figures:
        new, same = (bench.ratios(figure.run, figure.field, who, "before") for who in ("push1st", "again"))
        if new and same:
            spread = max(0.02, max(abs(ratio - 1) for ratio in same))
            median = statistics.median(new)
            worse = 1 - median if figure.more_is_better else median - 1
            shown = [f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})" for ratios in (new, same)]
            rows.append([f"{figure.title}, {figure.unit}", *shown, "yes" if worse > spread else "no"])
    return grid(rows)


def conditions(bench: Bench, ready: list[Peer], left_out: dict[str, str]) -> list[str]:
    options, about = bench.options, machine()
    others = statistics.median(result["others"] for result in bench.results) if bench.results else 0.0
    placed = {peer.label: bench.server_cores(peer) for peer in ready}
    pinned = sorted({core for cores in placed.values() for core in cores or ()})
    where = f"servers on core {', '.join(map(str, pinned))}, load generator on {bench.cores[-1]}" if pinned else "not pinned"
    if pinned and None in placed.values():
        where += f"; not pinned: {', '.join(label for label, cores in placed.items() if cores is None)}"
    lines = [
        f"{about['date']}; {about['cpu']}, {about['cores']} cores; Linux {about['kernel']}; {where}",
        f"{options.rounds} × {options.seconds:g} s, alternating; {options.subscribers:,} subscribers, {PAYLOAD}-byte payloads",
        f"latency at {LATENCY_LOAD:,} deliveries/s; memory and connects at {options.connections:,} connections"
        if bench.suite.nodes == 1
        else f"two nodes each, and a broker of their own ({broker_version()}): with nodes on TCP, with workers on a Unix socket; "
        f"as many members as subscribers, at most {options.burst} joins under way at a time",
        "; ".join(f"{peer.label}: {peer.version}" for peer in ready),
        f"everything else on the machine kept {others:.2f} cores busy (median)"
        + (": too much for figures worth quoting" if others > 0.1 else ""),
    ]
    lines += [f"left out: {name}: {why}" for name, why in left_out.items()]
    lines += [f"note: {where}: {what}" for where, what in bench.notes.items()]
    return lines


def draw(bench: Bench, ready: list[Peer], caption: list[str]) -> str:
    panels = []
    for figure in bench.suite.figures:
        bars = []
        for peer in ready:
            value = bench.median(figure.run, figure.field, peer.name)
            if value is not None:
                base = bench.suite.base
                ratio = None if peer.name == base else bench.ratio(figure.run, figure.field, peer.name, base)
                bars.append(plot.Bar(peer.label, value * figure.scale, ratio, figure.digits, peer.name == "push1st"))
        if bars:
            panels.append(plot.Panel(figure.title, figure.unit, figure.more_is_better, bars))
    return plot.bars(bench.suite.title, panels, caption)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure this server and its peers.")
    parser.add_argument("--quick", action="store_true", help="one round of one second, 2,000 idle connections")
    parser.add_argument("--cluster", action="store_true", help="two nodes and a broker each, instead of servers alone")
    parser.add_argument("--only", metavar="NAMES", help=f"some of {','.join(NAMES)}; of clusters: {','.join(CLUSTER_NAMES)}")
    kinds = [",".join(run.name for run in runs) for runs in (ALONE_RUNS, CLUSTER_RUNS)]
    parser.add_argument("--runs", metavar="RUNS", help=f"some of {kinds[0]}; of clusters: {kinds[1]}")
    parser.add_argument("--rounds", type=int, metavar="N")
    parser.add_argument("--seconds", type=float, metavar="S", help="how long each run measures")
    parser.add_argument("--subscribers", type=int, default=1000, metavar="N")
    parser.add_argument("--connections", type=int, metavar="N", help="for memory and connects; as many as allowed up to 10,000")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="of this server")
    parser.add_argument("--burst", type=int, default=64, metavar="N", help="joins of members under way at a time")
    parser.add_argument("--hooks", default="", metavar="URL", help="this server tells it of all but what clients publish")
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="compare with this earlier build in the same rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run, and the medians")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write bars as SVG")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (1.0 if options.quick else 5.0)
    options.connections = min(options.connections or (2_000 if options.quick else 10_000), raise_file_limit() - 100)
    suite = options.suite = CLUSTER if options.cluster else ALONE
    names = [name for name in suite.names if name != "alone" or options.workers > 1]
    options.only = [name for name in names if not options.only or name in options.only.split(",")]
    options.only += list(EARLIER) if options.before else []
    options.runs = [run for run in suite.runs if not options.runs or run.name in options.runs.split(",")]
    return options


def main() -> int:
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="push1st-bench-") as folder:
        try:
            bench = Bench(options, Path(folder))
        except CannotRun as error:
            print(f"bench: the load generator cannot be compiled: {error}", file=sys.stderr)
            return 2
        ready, left_out = peers(options.only, options.workers, options.hooks, options.suite.nodes, options.before or HERE.parent)
        for name, why in left_out.items():
            print(f"bench: {name} is left out: {why}", file=sys.stderr)
        for number in range(1, options.rounds + 1):
            for run in options.runs:
                for peer in ready:
                    bench.measure(peer, run, number)
    if not bench.results:
        print("bench: nothing could be measured", file=sys.stderr)
        return 1
    caption = conditions(bench, ready, left_out)
    print(table(bench, ready))
    print(
        f"\nMedians over rounds; (n×): times {bench.suite.base_label}, the median of the rounds\n"
        + "\n".join(f"- {line}" for line in caption)
    )
    if options.before:
        print(f"\nAgainst the earlier build\n\n{comparison(bench)}")
    if reached := goals(bench):
        print("\nGoals\n" + "\n".join(reached))
    if options.json:
        medians = {
            f"{figure.run}.{figure.field}": {peer.name: bench.median(figure.run, figure.field, peer.name) for peer in ready}
            for figure in bench.suite.figures
        }
        everything = {
            "conditions": machine() | {"lines": caption},
            "medians": medians,
            "runs": bench.results,
            "left_out": left_out,
        }
        options.json.write_text(json.dumps(everything, indent=1, ensure_ascii=False) + "\n")
    if options.plot:
        options.plot.write_text(draw(bench, ready, caption[:4]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
