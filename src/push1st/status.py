"""The state of a server for operators: the answer of `push1st status`, which a console can show too. Pure.

Each worker reports a `WorkerStatus`. The supervisor, or the only worker, makes the `ServerStatus` from the reports of all workers
(`assembled`). Names and types of all fields are stable (docs/howto-start.md). No field contains a secret.
"""

import platform
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, NamedTuple

import msgspec

import push1st
from push1st.config.model import AppConfig, Config
from push1st.config.settings import MAX_APPS, Setting, app_settings, app_sources, settings

SECONDS_A_DAY = 86_400


class AppFigures(msgspec.Struct, frozen=True):
    """The figures of an app on one worker: gauges, and counters since the start of the worker.

    subscriptions: None if the worker has too many channels to count their subscriptions.
    """

    connections: int = 0
    channels: int = 0
    subscriptions: int | None = 0
    events_in: int = 0
    messages_out: int = 0
    refusals: int = 0


class BrokerServer(msgspec.Struct, frozen=True):
    """A server of the broker. round_trip: the seconds between a command and its reply. "" and None: there is no connection."""

    version: str
    role: str
    round_trip: float | None


class BrokerStatus(msgspec.Struct, frozen=True):
    """The broker, as one worker sees it.

    connected: whether the worker may publish.
    reason: the reason for the last failed attempt to connect; "" if there was none.
    nodes: the number of living workers of all machines.
    servers: the server, or the servers of a cluster.
    """

    connected: bool
    reason: str
    nodes: int
    servers: list[BrokerServer]


class BrokerDetails(msgspec.Struct, frozen=True):
    """A server of the broker, with what its command INFO reports.

    rtt_ms: the milliseconds between a command and its reply. memory, memory_most: bytes; 0 stands for no limit.
    policy: the policy when the memory is full. persistence: how the server saves its data.
    ops: the commands a second. slots: the number of hash slots; None without a cluster.
    """

    address: str
    version: str
    role: str
    rtt_ms: float
    memory: int
    memory_most: int
    policy: str
    persistence: str
    clients: int
    ops: int
    slots: int | None


class CertificateStatus(msgspec.Struct, frozen=True):
    """The certificate of a listener.

    expires: in seconds since 1970.
    refused: the reason why the worker does not use the newest files; "" if it uses them.
    """

    listener: str
    file: str
    expires: float
    refused: str = ""


class WorkerFigures(msgspec.Struct, frozen=True):
    """The figures of a worker.

    node: the name of the worker in the broker.
    uptime: the seconds since the start of the worker.
    ready: whether the worker accepts clients. draining: whether the worker is about to stop.
    cpu_seconds: the CPU time that the process has used. rss: the bytes of its resident memory; None if the system has no figure.
    fds, fds_most: the number of open file descriptors, and their limit.
    loop_lag: the seconds by which a timer was late while the worker made this report.
    connections: the number of open connections by protocol.
    counters: counters since the start of the worker.
    pending_bytes: the bytes that wait for the next flush.
    away_seconds: the seconds without a connection to the broker. unconfirmed: the messages that the broker did not confirm.
    """

    worker: int
    pid: int
    node: str
    version: str
    uptime: float
    ready: bool
    draining: bool
    cpu_seconds: float
    rss: int | None
    fds: int | None
    fds_most: int
    loop_lag: float
    connections: dict[str, int]
    counters: dict[str, int]
    pending_bytes: int
    away_seconds: float
    unconfirmed: int


class WorkerStatus(msgspec.Struct, frozen=True):
    """The report of a worker. apps: the figures of apps, by the app's id. broker: None if the worker needs no broker."""

    figures: WorkerFigures
    apps: dict[str, AppFigures]
    broker: BrokerStatus | None
    certificates: list[CertificateStatus]


class WorkerReports(NamedTuple):
    """The functions that make the reports of a worker.

    quick: the figures without the number of open file descriptors, for samples: it reads a file in the event loop.
    figures: the figures. report: the whole report.
    """

    quick: Callable[[], WorkerFigures]
    figures: Callable[[], Awaitable[WorkerFigures]]
    report: Callable[[], Awaitable[WorkerStatus]]


class ReloadStatus(msgspec.Struct, frozen=True):
    """The last reload. at: in seconds since 1970. problems: the reasons why it failed; empty if it succeeded."""

    at: float
    problems: tuple[str, ...]


class ListenerSummary(msgspec.Struct, frozen=True):
    """A listener. role: `server`, `api` or another section of the configuration."""

    role: str
    address: str
    tls: bool


class AppSummary(msgspec.Struct, frozen=True):
    """An app, with the sums of its figures on all workers.

    secrets: the lengths of its secrets in bytes.
    source: the place of the app in the configuration; None if it is not known.
    settings: the keys that a file or the environment sets.
    """

    id: str
    name: str
    enable: bool
    key: str
    secrets: list[int]
    source: str | None
    connections: int
    channels: int
    subscriptions: int | None
    events_in: int
    messages_out: int
    refusals: int
    settings: list[Setting]


class BrokerSummary(msgspec.Struct, frozen=True):
    """The broker of all workers.

    kind: `memory`, `embedded` or `shared`. url: the address without its password; "" for the first two kinds.
    connected: whether all workers may publish.
    away_seconds, unconfirmed: the sums of all workers.
    """

    kind: str
    url: str
    connected: bool
    reason: str
    nodes: int
    servers: list[BrokerServer]
    away_seconds: float
    unconfirmed: int


class CertificateSummary(msgspec.Struct, frozen=True):
    """The certificate of a listener.

    days: the whole days until the certificate expires; negative if it has expired.
    refused: the reason why a worker does not use the newest files; "" if all workers use them.
    """

    listener: str
    file: str
    expires: float
    days: int
    refused: str = ""


class ServerStatus(msgspec.Struct, frozen=True):
    """The state of a server.

    at: the time of this state, in seconds since 1970.
    config: the path of the configuration file; "" without such a file.
    pid: the id of the server's first process, and uptime: the seconds since its start.
    ready: whether all workers have answered and accept clients.
    complete: whether all workers have answered, and `apps` contains all apps.
    workers: the workers that have answered within a second. unanswered: the numbers of the other workers.
    connections, counters: the sums of all workers.
    apps: the first 200 apps of the configuration. apps_total: the number of all apps.
    reload: the last reload; None if there was none since the start.
    warnings: settings that have no effect or are probably mistakes.
    """

    at: float
    version: str
    python: str
    config: str
    pid: int
    uptime: float
    ready: bool
    complete: bool
    workers: list[WorkerFigures]
    unanswered: list[int]
    connections: dict[str, int]
    counters: dict[str, int]
    apps: list[AppSummary]
    apps_total: int
    broker: BrokerSummary
    certificates: list[CertificateSummary]
    listeners: list[ListenerSummary]
    reload: ReloadStatus | None
    settings: list[Setting]
    warnings: tuple[str, ...]


class ServerFacts(msgspec.Struct, frozen=True):
    """The facts that the server's first process knows.

    starting: whether the start of the server has not ended.
    listeners: the listeners with their real ports.
    """

    at: float
    config: str
    pid: int
    uptime: float
    starting: bool
    listeners: list[ListenerSummary]
    reload: ReloadStatus | None


def assembled(config: Config, facts: ServerFacts, reports: Sequence[WorkerStatus], missing: Collection[int]) -> ServerStatus:
    """Returns the state of a server.

    reports: the reports of the workers that have answered. missing: the numbers of the other workers.
    """
    workers = sorted((one.figures for one in reports), key=lambda one: one.worker)
    connections: Counter[str] = Counter()
    counters: Counter[str] = Counter()
    for one in workers:
        connections.update(one.connections)
        counters.update(one.counters)
    certificates = {(one.listener, one.file): one for report in reports for one in report.certificates}
    refused = {one.listener: one.refused for report in reports for one in report.certificates if one.refused}
    return ServerStatus(
        at=facts.at,
        version=push1st.__version__,
        python=platform.python_version(),
        config=facts.config,
        pid=facts.pid,
        uptime=facts.uptime,
        ready=bool(workers) and not facts.starting and not missing and all(one.ready for one in workers),
        complete=not missing and len(config.apps) <= MAX_APPS,
        workers=workers,
        unanswered=sorted(missing),
        connections=dict(connections),
        counters=dict(counters),
        apps=_apps(config, reports),
        apps_total=len(config.apps),
        broker=_broker(config, reports),
        certificates=[
            CertificateSummary(
                one.listener, one.file, one.expires, int((one.expires - facts.at) // SECONDS_A_DAY), refused.get(one.listener, "")
            )
            for one in certificates.values()
        ],
        listeners=facts.listeners,
        reload=facts.reload,
        settings=settings(config),
        warnings=config.warnings,
    )


def _apps(config: Config, reports: Sequence[WorkerStatus]) -> list[AppSummary]:
    own, sources = app_settings(config), app_sources(config)
    return [_app(app, sources.get(app.id), reports, own[app.id]) for app in config.apps[:MAX_APPS]]


def _app(app: AppConfig, source: str | None, reports: Sequence[WorkerStatus], own: list[Setting]) -> AppSummary:
    figures = [found for one in reports if (found := one.apps.get(app.id)) is not None]
    sums = {field: sum_of([getattr(one, field) for one in figures]) for field in AppFigures.__struct_fields__}
    secrets = [len(secret.encode()) for secret in app.secrets]
    return AppSummary(
        id=app.id,
        name=app.name,
        enable=app.enable,
        key=app.key,
        secrets=secrets,
        source=source,
        settings=own,
        **sums,
    )


def sum_of(values: Sequence[int | None]) -> Any:
    """Returns the sum of the values; None if one of them is not known."""
    return None if None in values else sum(filter(None, values))


def _broker(config: Config, reports: Sequence[WorkerStatus]) -> BrokerSummary:
    seen = [one.broker for one in reports if one.broker is not None]
    first = seen[0] if seen else BrokerStatus(True, "", len(reports), [])
    kind = "shared" if config.has_broker else "embedded" if seen else "memory"
    return BrokerSummary(
        kind=kind,
        url=next((str(one.value) for one in settings(config) if one.key == "broker"), "") if kind == "shared" else "",
        connected=all(one.connected for one in seen),
        reason=next((one.reason for one in seen if not one.connected), ""),
        nodes=max((one.nodes for one in seen), default=first.nodes),
        servers=first.servers,
        away_seconds=sum(one.figures.away_seconds for one in reports),
        unconfirmed=sum(one.figures.unconfirmed for one in reports),
    )
