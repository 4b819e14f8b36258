"""Measures servers: starts a server, puts a load on it, and keeps what the load generator prints.

A figure is the median over the rounds. A ratio or a difference compares two servers within a round, because the speed of a
machine changes between rounds; the bench prints the median of these ratios or differences.
"""

import argparse
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from installing import HERE, CannotRun, compiled
from publishes import KEY, PAYLOAD, SECRET, mqtt_packet
from servers import REALTIME, Peer, Running, running, write_requests
from suites import IDS, LATENCY_LOAD, Run, Suite

Result = dict[str, Any]
SLICE_SECONDS = 1.0
"""the time for which one of several load generators runs. A connection that was idle acknowledges its first packets one by one,
which makes a delivery more expensive: with slices of 0.2 s, it costs twice as much."""


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
        if peer.name in run.without or ((run.mqtt_subscribers or run.mqtt_publishers) and not peer.mqtt):
            return None
        if run.mqtt_publishers:
            return False
        if run.signed is not None:
            return run.signed if (peer.signed if run.signed else peer.plain) else None
        return peer.plain is None

    def seconds(self, run: Run) -> float:
        return max(run.seconds, float(self.options.seconds))

    def command(self, server: Running, run: Run, signed: bool, turns: int = 1) -> list[str]:
        """Returns the command of the load generator. turns: the number of load generators that run in turn."""
        options, peer = self.options, server.peer
        level = 5 if options.mqtt5 else 4
        words: dict[str, object] = {
            "port": ":".join(map(str, server.mqtts if run.mqtt_subscribers else server.ports)),
            "api": ":".join(map(str, server.mqtts if run.mqtt_publishers else server.apis)),
            "path": peer.path,
            "pusher": int(peer.pusher),
            "pids": ":".join(map(str, server.pids)),
            "seconds": self.seconds(run) * turns,
            "warm": min(1.0, options.seconds / 2) * turns,
            "least": PAYLOAD,
            "n": options.connections if run.mode == "hold" else options.subscribers,
            "mqtt": level * run.mqtt_subscribers,
            "publish_mqtt": level * run.mqtt_publishers,
            "qos": run.qos,
            **peer.client,
            **run.options,
        }
        if run.mode == "presence":
            words |= {"key": KEY, "secret": SECRET, "burst": options.burst}
        if run.mode == "publish":
            channels = options.subscribers if run.many else run.groups * run.each
            latency = run.name == "latency"
            words |= {"channels": channels, "each": run.each}
            words["file"] = write_requests(
                self.folder / f"requests-{peer.name}",
                peer,
                channels,
                IDS if latency else channels,
                signed,
                partial(mqtt_packet, level, run.qos) if run.mqtt_publishers else None,
                run.prefix,
            )
            if latency:
                words["rate"] = max(1, round(LATENCY_LOAD / options.subscribers))
        prefix = ["taskset", "-c", str(self.cores[-1])] if self.server_cores(peer) else []
        if options.realtime:
            prefix = [*REALTIME, *prefix]
        return [*prefix, str(self.load), run.mode, *(f"{key}={value}" for key, value in words.items())]

    def measure_all(self, ready: Sequence[Peer], run: Run, number: int) -> None:
        """Measures all servers under a kind of load: one after another, or in slices."""
        if self.options.slices and run.mode == "publish" and "rate" not in run.options and run.name != "latency":
            self.measure_slices([peer for peer in ready if self.signs(peer, run) is not None], run, number)
        else:
            for peer in ready:
                self.measure(peer, run, number)

    def measure_slices(self, ready: Sequence[Peer], run: Run, number: int) -> None:
        """Measures servers that run at the same time, each with a load generator of its own.

        In each slice of `SLICE_SECONDS`, all load generators but one are stopped (SIGSTOP), and their servers are idle.
        """
        turns = len(ready)
        try:
            with ExitStack() as stack:
                servers = [stack.enter_context(running(peer, self.server_cores(peer), self.options.realtime)) for peer in ready]
                pids = [pid for server in servers for pid in server.pids]
                commands = [self.command(one, run, bool(self.signs(one.peer, run)), turns) for one in servers]
                loads: list[subprocess.Popen[str]] = []
                for command in commands:
                    pipe = subprocess.PIPE
                    loads.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True))
                    stack.callback(end, loads[-1])
                before = Use.now(pids)
                deadline = time.monotonic() + self.seconds(run) * turns + 120
                while any(load.poll() is None for load in loads):
                    if time.monotonic() > deadline:
                        raise CannotRun("the load generators did not end")
                    for load in loads:
                        take_turn(load, loads)
                outputs = [load.communicate() for load in loads]
                others = Use.now(pids).others_since(before)
        except CannotRun as error:
            self.notes[f"{run.name}, round {number}"] = str(error)
            print(f"bench: round {number}: {run.name:12}FAILED: {error}", file=sys.stderr)
            return
        for peer, load, (output, errors) in zip(ready, loads, outputs, strict=True):
            if load.returncode:
                self.notes[f"{peer.label}, {run.name}"] = errors.strip()
                continue
            if errors:
                self.notes[f"{peer.label}, {run.name}, round {number}"] = errors.strip().replace("\n", "; ")
            result: Result = json.loads(output)
            for name in ("publishes_per_s", "deliveries_per_s", "server_cpu", "load_cpu"):  # of the time in which it ran
                result[name] *= turns
            self.keep(peer, run, {"round": number, "run": run.name, "peer": peer.name, "others": others, **result})

    def measure(self, peer: Peer, run: Run, number: int) -> None:
        signed = self.signs(peer, run)
        if signed is None:
            return
        try:
            with running(peer, self.server_cores(peer), self.options.realtime) as server:
                before = Use.now(server.pids)
                done = subprocess.run(
                    self.command(server, run, signed),
                    capture_output=True,
                    text=True,
                    timeout=self.seconds(run) + 120,
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
            print(f"bench: round {number}: {run.name:12}{peer.label:15} FAILED: {error}", file=sys.stderr)
            return
        self.keep(peer, run, result)

    def keep(self, peer: Peer, run: Run, result: Result) -> None:
        """Stores and prints a result, and notes what is wrong with it."""
        number, others = result["round"], result["others"]
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
        print(f"bench: round {number}: {run.name:12}{peer.label:15} {shown} ({busy})", file=sys.stderr)

    def median(self, run: str, field: str, peer: str) -> float | None:
        values = [result[field] for result in self.results if result["run"] == run and result["peer"] == peer]
        return statistics.median(values) if values else None

    def ratio(self, run: str, field: str, peer: str, other: str) -> float | None:
        """The median of the ratios within each round: what ran in the same minute, since machines drift between rounds."""
        ratios = self.ratios(run, field, peer, other)
        return statistics.median(ratios) if ratios else None

    def ratio_of_runs(self, run: str, field: str, peer: str, other_run: str) -> float | None:
        """Returns the median of the ratios of a server's figure to its figure under another load of the same round."""
        values = {
            (result["run"], result["round"]): result[field]
            for result in self.results
            if result["peer"] == peer and result["run"] in (run, other_run)
        }
        ratios = [
            value / other
            for (name, number), value in values.items()
            if name == run and (other := values.get((other_run, number)))
        ]
        return statistics.median(ratios) if ratios else None

    def ratios(self, run: str, field: str, peer: str, other: str) -> list[float]:
        return [one[peer] / one[other] for one in self.rounds(run, field) if peer in one and one.get(other)]

    def rounds(self, run: str, field: str) -> Collection[dict[str, float]]:
        """Returns a figure of each server, by its name, for each round."""
        rounds: dict[int, dict[str, float]] = {}
        for result in self.results:
            if result["run"] == run:
                rounds.setdefault(result["round"], {})[result["peer"]] = result[field]
        return rounds.values()

    def difference(self, run: str, field: str, peer: str, other: str) -> float | None:
        """Returns the median of the differences within each round."""
        differences = [one[peer] - one[other] for one in self.rounds(run, field) if peer in one and other in one]
        return statistics.median(differences) if differences else None


def take_turn(load: "subprocess.Popen[str]", loads: Sequence["subprocess.Popen[str]"]) -> None:
    """Lets one load generator run for a slice, while the others are stopped."""
    for one in loads:
        with suppress(ProcessLookupError):
            os.killpg(one.pid, signal.SIGCONT if one is load else signal.SIGSTOP)
    if load.poll() is None:
        time.sleep(SLICE_SECONDS)


def end(load: "subprocess.Popen[str]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(load.pid, signal.SIGKILL)
    load.wait()


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
