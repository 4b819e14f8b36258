"""Writes the state of a server as text for people: at most a screen for a normal server. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

from push1st.config.settings import DEFAULT
from push1st.printable import readable
from push1st.status import AppSummary, BrokerSummary, ServerStatus, WorkerFigures

MAX_APPS = 10
MAX_SETTINGS = 12
MAX_VALUE = 60
"""the maximum number of characters of a value"""
_UNITS = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))


def lines(status: ServerStatus) -> Iterator[str]:
    """Yields the lines of the text."""
    state = "ready" if status.ready else "NOT READY"
    yield f"push1st {status.version}  {state}  up {duration(status.uptime)}  pid {status.pid}  {status.config or 'no file'}"
    for one in status.listeners:
        yield f"  {one.role} on {one.address}{' with TLS' * one.tls}"
    yield ""
    yield from _table(
        ("worker", "pid", "up", "state", "connections", "events in", "messages out", "refusals", "lag", "memory", "files"),
        [*map(_worker, status.workers), *((str(number), "-", "-", "does not answer") for number in status.unanswered)],
    )
    yield "  connections by protocol: " + (_counts(status.connections) or "none")
    yield ""
    busiest = sorted(status.apps, key=lambda one: -one.connections)[:MAX_APPS]
    yield from _table(
        ("app", "connections", "channels", "subscriptions", "events in", "messages out", "refusals", "secret"), map(_app, busiest)
    )
    if status.apps_total > len(busiest):
        yield f"  and {status.apps_total - len(busiest)} more apps"
    yield ""
    yield f"  broker: {_broker(status.broker)}"
    for certificate in status.certificates:
        yield f"  certificate of {certificate.listener}: {certificate.days} days left ({certificate.file})"
        if certificate.refused:
            yield f"    the newest files are refused: {certificate.refused}"
    if status.reload is not None:
        result = "; ".join(status.reload.problems) or "good"
        yield f"  last reload: {duration(status.at - status.reload.at)} ago: {result}"
    for warning in status.warnings:
        yield f"  warning: {warning}"
    changed = [one for one in status.settings if one.origin != DEFAULT]
    if changed:
        yield ""
        yield from _table(
            ("key", "value", "origin"), ((one.key, _value(one.value), one.origin) for one in changed[:MAX_SETTINGS])
        )
    more = len(changed) - MAX_SETTINGS
    yield f"  {f'and {more} more keys; ' if more > 0 else ''}all keys: push1st status --json"


def duration(seconds: float) -> str:
    """Returns a duration in its largest unit, rounded down."""
    unit, size = next(((unit, size) for unit, size in _UNITS if seconds >= size), ("s", 1))
    return f"{max(0, int(seconds // size))} {unit}"


def date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _worker(one: WorkerFigures) -> Sequence[str]:
    counters = one.counters
    return (
        str(one.worker),
        str(one.pid),
        duration(one.uptime),
        "draining" if one.draining else "ready" if one.ready else "not ready",
        str(sum(one.connections.values())),
        *(str(counters.get(name, 0)) for name in ("events_in", "messages_out", "refusals")),
        f"{one.loop_lag * 1000:.1f} ms",
        "-" if one.rss is None else readable(one.rss),
        f"{'-' if one.fds is None else one.fds}/{one.fds_most}",
    )


def _app(one: AppSummary) -> Sequence[str]:
    figures = (one.connections, one.channels, one.subscriptions, one.events_in, one.messages_out, one.refusals)
    secret = f"set, {' and '.join(map(str, one.secrets))} bytes" if one.secrets else "none"
    return one.id + ("" if one.enable else " (disabled)"), *("-" if one is None else str(one) for one in figures), secret


def _broker(broker: BrokerSummary) -> str:
    if broker.kind == "memory":
        return "memory (one worker)"
    where = "embedded engine" if broker.kind == "embedded" else broker.url
    state = "connected" if broker.connected else f"AWAY: {broker.reason or 'the worker is not registered'}"
    servers = [
        f"{one.version} {one.role}" + ("" if one.round_trip is None else f", round trip {one.round_trip * 1000:.1f} ms")
        for one in broker.servers
        if one.version
    ]
    away = f"{broker.nodes} nodes, away {broker.away_seconds:.0f} s, unconfirmed {broker.unconfirmed}"
    return "; ".join([where, state, *servers, away])


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()) if count)


def _value(value: object) -> str:
    """Returns a value as in a configuration file."""
    text = (
        ", ".join(map(str, value)) if isinstance(value, list) else str(value).lower() if isinstance(value, bool) else str(value)
    )
    return text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}…"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yields the lines of a table. A row may have fewer cells than the head."""
    cells = [head, *rows]
    widths = [max(len(row[column]) for row in cells if column < len(row)) for column in range(len(head))]
    for row in cells:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
