"""The tables, goals and bars that the bench prints."""

import statistics

import plot
from measuring import Bench
from publishes import PAYLOAD
from servers import Peer, broker_version, machine
from suites import LATENCY_LOAD, Figure


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
        if goal.alone and bench.options.workers > 1:
            continue
        figure = next(figure for figure in bench.suite.figures if (figure.run, figure.field) == (goal.run, goal.field))
        if goal.other_run:
            ratio = bench.ratio_of_runs(goal.run, goal.field, goal.ours, goal.other_run)
        elif goal.other and goal.difference:
            ratio = bench.difference(goal.run, goal.field, goal.ours, goal.other)
        elif goal.other:
            ratio = bench.ratio(goal.run, goal.field, goal.ours, goal.other)
        else:
            ratio = bench.median(goal.run, goal.field, goal.ours)
        if ratio is None:
            continue
        if goal.difference or not (goal.other or goal.other_run):
            ratio *= figure.scale
        bound = goal.bound
        if goal.noisy and goal.other:
            bound = round(max(bound, 1 + spread(bench, figure, bench.suite.compared[1], goal.other)), 3)
        reached = ratio >= bound if goal.at_least else ratio <= bound
        other = f"its own {goal.other_run}" if goal.other_run else goal.other
        unit = f"{figure.unit} more than {other}" if goal.difference else f"× {other}" if other else figure.unit
        who = "" if goal.ours in ("push1st", "mqtt") else f" ({goal.ours})"
        lines.append(
            f"- {'reached' if reached else 'MISSED '}: {figure.title}{who}: {ratio:.2f} {unit}, "
            f"wanted {'≥' if goal.at_least else '≤'} {bound:g}"
        )
    return lines


def spread(bench: Bench, figure: Figure, again: str, base: str) -> float:
    """Returns the largest deviation of a server from its second run in the same round; 0 without a second run."""
    return max((abs(ratio - 1) for ratio in bench.ratios(figure.run, figure.field, again, base)), default=0)


def comparison(bench: Bench) -> str:
    """Returns a table: ratios of a server to another one, and of the other one to its second run (`Suite.compared`).

    Each cell has the median of the rounds, the minimum and the maximum. Returns "" if not all three servers were measured.
    """
    ours, again, base = bench.suite.compared
    new_name, old_name = ("this build", "the earlier one") if base == "before" else (ours, base)
    rows = [["", f"{new_name} × {old_name}", f"{old_name} × itself", "worse by more than 2 % and more than the spread"]]
    for figure in bench.suite.figures:
        new, same = (bench.ratios(figure.run, figure.field, who, base) for who in (ours, again))
        if new and same:
            noise = max(0.02, spread(bench, figure, again, base))
            median = statistics.median(new)
            worse = 1 - median if figure.more_is_better else median - 1
            shown = [f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})" for ratios in (new, same)]
            rows.append([f"{figure.title}, {figure.unit}", *shown, "yes" if worse > noise else "no"])
    return grid(rows) if len(rows) > 1 else ""


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
                bars.append(plot.Bar(peer.label, value * figure.scale, ratio, figure.digits, peer.name in ("push1st", "mqtt")))
        if bars:
            panels.append(plot.Panel(figure.title, figure.unit, figure.more_is_better, bars))
    return plot.bars(bench.suite.title, panels, caption)
