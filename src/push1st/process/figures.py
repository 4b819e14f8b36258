"""Makes the report of a worker for `push1st status`. Nothing is measured unless a report is requested."""

import asyncio
import os
import resource
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import push1st
from push1st.config.model import Config
from push1st.config.settings import MAX_APPS
from push1st.core.figures import app_figures
from push1st.core.node import Node
from push1st.process.sockets import ROLES, tls_settings
from push1st.status import BrokerStatus, CertificateStatus, WorkerFigures, WorkerStatus
from push1st.transports.descriptors import file_limit

BROKER_SECONDS = 0.7
"""the time limit for the broker's reply: a report must be ready within a second"""
LAG_SECONDS = 0.02
"""the duration of the timer that measures the loop's lag"""


class Measured(NamedTuple):
    """The figures that are read from files. rss: resident memory in bytes. fds: open file descriptors. None: unknown."""

    rss: int | None
    fds: int | None


async def report(
    node: Node,
    config: Config,
    name: str,
    began: float,
    number: int,
    state: Callable[[], Awaitable[BrokerStatus]] | None,
) -> WorkerStatus:
    """Returns the report of this worker.

    name: the name of the worker in the broker.
    began: the time of the worker's start on the monotonic clock, in seconds.
    number: the number of the worker.
    state: a function that returns the state of the broker; None if the worker needs no broker.
    """
    broker = None
    if state is not None:
        asked = asyncio.ensure_future(state())  # a task of its own, because this coroutine may have none yet (`eager.py`)
        if (await asyncio.wait((asked,), timeout=BROKER_SECONDS))[0]:
            broker = asked.result()
        else:
            asked.cancel()
            broker = BrokerStatus(False, "the broker does not answer", 1, [])
    due = time.perf_counter() + LAG_SECONDS
    await asyncio.sleep(LAG_SECONDS)
    lag = max(0.0, time.perf_counter() - due)
    worker = worker_figures(node, name, began, number, lag, await asyncio.to_thread(measure))
    certificates = [
        CertificateStatus(role, settings.cert, node.metrics.certificates[role], node.metrics.refused_certificates.get(role, ""))
        for role in ROLES
        if (settings := tls_settings(config, role)) is not None and role in node.metrics.certificates
    ]
    wanted = {app.id for app in config.apps[:MAX_APPS]}
    apps = app_figures([app for app in node.live() if app.config.id in wanted])
    return WorkerStatus(worker, apps, broker, certificates)


def worker_figures(node: Node, name: str, began: float, number: int, lag: float, measured: Measured) -> WorkerFigures:
    """Returns the figures of this worker, without reading a file. Parameters: see `report` and `WorkerFigures`."""
    count = node.metrics
    used = resource.getrusage(resource.RUSAGE_SELF)
    return WorkerFigures(
        worker=number,
        pid=os.getpid(),
        node=name,
        version=push1st.__version__,
        uptime=time.monotonic() - began,
        ready=not node.draining,
        draining=node.draining,
        cpu_seconds=used.ru_utime + used.ru_stime,
        rss=measured.rss,
        fds=measured.fds,
        fds_most=file_limit(),
        loop_lag=lag,
        connections={protocol: open for protocol, open in count.connections.items() if open},
        counters={
            "events_in": sum(count.events_in.values()),
            "messages_out": count.messages_out,
            "bytes_in": count.bytes_in,
            "bytes_out": count.bytes_out,
            "refusals": sum(count.refusals.values()),
            "cut_offs": sum(count.cut_offs.values()),
            "api_requests": sum(count.requests.values()),
            "connections_opened": sum(count.opened.values()),
            "hook_events_lost": sum(events for state, events in count.hook_events.items() if state not in ("queued", "sent")),
        },
        pending_bytes=node.fanout.pending,
        away_seconds=count.broker_away,
        unconfirmed=count.broker_unconfirmed,
    )


def measure() -> Measured:
    """Reads files, so it must run in a thread if the event loop waits for the result."""
    return Measured(resident_bytes(), _open_files())


def resident_bytes() -> int | None:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # only Linux has this file
        return None


def _open_files() -> int | None:
    try:
        return len(os.listdir("/dev/fd")) - 1  # without the descriptor of the folder itself
    except OSError:
        return None
