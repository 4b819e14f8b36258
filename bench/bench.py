"""Measures this server and its peers, one after another on this machine, and prints one table.

    python bench/bench.py                        everything: about twelve minutes
    python bench/bench.py --quick                one short round, to find large regressions
    python bench/bench.py --only push1st,uws     some of the servers
    python bench/bench.py --before ../old        compare with an earlier build, which runs twice; more --rounds reduce noise
    python bench/bench.py --cluster              clusters of two nodes and a broker, compared with soketi: about four minutes
    python bench/bench.py --suite history        the cost of history and of pages: about seven minutes
    python bench/bench.py --suite pages          the cost of the acknowledgements of 10,000 pages: about six minutes
    python bench/bench.py --suite sse            server-sent events, compared with WebSockets and nchan: about seven minutes
    python bench/bench.py --instructions         instructions of a publish, a delivery and a connection: two minutes
    python bench/bench.py --mqtt                 MQTT, compared with mosquitto: about ten minutes

A `Suite` is a set of measurements (suites.py). A run starts one server under one kind of load, and the load
generator (bench/load.c) prints its counters. A round runs all kinds of load, and each kind of load with all servers, so that
neighbours in the table ran within the same minute. A figure is the median over the rounds. A ratio compares a server with the
reference server of its suite (for single servers: uWebSockets.js) within a round; the table has the median of these ratios. For
single servers, on two cores or more, the server is pinned to the first core and the load generator to the last one.

bench/README.md explains each figure.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import instructions
from installing import HERE, CannotRun
from measuring import Bench
from report import comparison, conditions, draw, goals, table
from servers import EARLIER, machine, peers, raise_file_limit, stop_on_signals
from suites import SUITES


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure this server and its peers.")
    parser.add_argument("--quick", action="store_true", help="one round of one second, 2,000 idle connections")
    parser.add_argument("--suite", choices=SUITES, default="alone", help="what to measure; alone: single servers")
    parser.add_argument("--cluster", action="store_true", help="the same as --suite cluster: two nodes and a broker each")
    parser.add_argument("--mqtt", action="store_true", help="the same as --suite mqtt")
    parser.add_argument("--mqtt5", action="store_true", help="MQTT clients speak 5.0 instead of 3.1.1")
    words = {name: (",".join(suite.names), ",".join(run.name for run in suite.runs)) for name, suite in SUITES.items()}
    kinds, loads = ("; ".join(f"{suite}: {word[number]}" for suite, word in words.items()) for number in (0, 1))
    parser.add_argument("--only", metavar="NAMES", help=f"some servers of the suite; {kinds}")
    parser.add_argument("--runs", metavar="RUNS", help=f"some loads of the suite; {loads}")
    parser.add_argument("--rounds", type=int, metavar="N")
    parser.add_argument("--seconds", type=float, metavar="S", help="how long each run measures")
    parser.add_argument("--subscribers", type=int, default=1000, metavar="N")
    parser.add_argument("--connections", type=int, metavar="N", help="for memory and connects; as many as allowed up to 10,000")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="of this server")
    parser.add_argument("--burst", type=int, default=64, metavar="N", help="joins of members under way at a time")
    parser.add_argument("--hooks", default="", metavar="URL", help="this server tells it of all but what clients publish")
    parser.add_argument(
        "--instructions", action="store_true", help="count instructions with valgrind, instead of measuring times"
    )
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="compare with this earlier build in the same rounds")
    parser.add_argument(
        "--realtime",
        action="store_true",
        help="real-time priority for servers and load generator, if other programs run; needs root",
    )
    parser.add_argument(
        "--slices",
        action="store_true",
        help="run all servers at the same time, each with a load in its own slices of time: less noise in ratios of CPU times",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run, and the medians")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write bars as SVG")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (1.0 if options.quick else 5.0)
    options.connections = min(options.connections or (2_000 if options.quick else 10_000), raise_file_limit() - 100)
    suite = options.suite = SUITES["cluster" if options.cluster else "mqtt" if options.mqtt else options.suite]
    if options.before and suite.compared[2] != "before":
        parser.error("--before compares single servers or clusters")
    names = [name for name in suite.names if not name.endswith("alone") or options.workers > 1]
    options.only = [name for name in names if not options.only or name in options.only.split(",")]
    options.only += list(EARLIER) if options.before else []
    options.runs = [run for run in suite.runs if not options.runs or run.name in options.runs.split(",")]
    return options


def main() -> int:
    options = arguments()
    stop_on_signals()
    if options.instructions:
        try:
            print(instructions.counts(options.before))
        except CannotRun as error:
            print(f"bench: the instructions cannot be counted: {error}", file=sys.stderr)
            return 2
        return 0
    if options.realtime:  # what stops and continues the load generators must not wait for them
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(6))
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
                bench.measure_all(ready if number % 2 else ready[::-1], run, number)  # no server is always the first
    if not bench.results:
        print("bench: nothing could be measured", file=sys.stderr)
        return 1
    caption = conditions(bench, ready, left_out)
    print(table(bench, ready))
    print(
        f"\nMedians over rounds; (n×): times {bench.suite.base_label}, the median of the rounds\n"
        + "\n".join(f"- {line}" for line in caption)
    )
    if compared := comparison(bench):
        print(f"\n{'Against the earlier build' if options.before else 'Comparison'}\n\n{compared}")
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
