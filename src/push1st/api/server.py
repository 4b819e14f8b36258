"""Endpoints about the server: `/health` (the process runs), `/ready` (the server accepts clients), `/metrics` (Prometheus text).

Only trusted callers get the metrics, because the metrics contain the names of apps.
"""

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

import push1st
from push1st.brokers.history import REASONS
from push1st.core.node import Node
from push1st.errors import Refused
from push1st.messages import API, Request, Response
from push1st.metrics import CUT_OFFS, DECISIONS, HOOK_ATTEMPTS, HOOK_EVENTS, REFUSALS, STATUSES, SUPERVISOR, Family
from push1st.protocols import PROTOCOLS


async def health(_node: Node, _request: Request) -> Response:
    return Response(200, b'{"status":"ok"}')


async def ready(node: Node, _request: Request) -> Response:
    if node.draining and not node.replaced:
        return Response(503, msgspec.json.encode({"error": "draining: this server is about to stop"}))
    return Response(200, b'{"status":"ready"}')


async def metrics(node: Node, request: Request) -> Response:
    if request.distrust:
        raise Refused(
            403,
            "metrics are for trusted callers: an unsigned call to an API listener, from a network in api.trust; "
            f"this one is not trusted: {request.distrust}",
        )
    families = list(_Collected(node).collect())
    if node.siblings is not None:
        families = merged([(node.siblings.number, snapshot(node)), *await node.siblings.metrics()])
    registry = CollectorRegistry()
    registry.register(_Fixed(families))
    return Response(200, generate_latest(registry), b"text/plain; version=0.0.4; charset=utf-8")


def snapshot(node: Node) -> bytes:
    """Encodes the metrics of this worker, for the worker that answers `GET /metrics`."""
    return msgspec.msgpack.encode(
        [
            Family(one.name, one.documentation, one.type, [(sample.name, sample.labels, sample.value) for sample in one.samples])
            for one in _Collected(node).collect()
        ]
    )


def merged(snapshots: Sequence[tuple[int, bytes]]) -> list[Metric]:
    """Returns the metrics of several workers. The label `worker` contains the number of the worker; metrics of the supervisor
    have no such label.
    """
    families: dict[str, Metric] = {}
    for number, packed in snapshots:
        more = {} if number == SUPERVISOR else {"worker": str(number)}
        for one in msgspec.msgpack.decode(packed, type=list[Family]):
            family = families.setdefault(one.name, Metric(one.name, one.text, one.type))
            for name, labels, value in one.samples:
                family.add_sample(name, labels | more, value)
    return list(families.values())


class _Fixed:
    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Sequence[Metric]:
        return self._families


class _Collected:
    """Converts the counters and gauges of a worker to metric families of Prometheus."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def collect(self) -> Iterator[Metric]:
        node, count = self._node, self._node.metrics
        build = GaugeMetricFamily("push1st_build_info", "the version that runs: always 1", labels=("version", "python"))
        build.add_metric((push1st.__version__, platform.python_version()), 1)
        yield build
        yield _gauge("connections", "open connections", "protocol", dict.fromkeys(PROTOCOLS, 0) | count.connections)
        yield _counter("connections_opened", "connections accepted", "protocol", count.opened, PROTOCOLS)
        yield _counter("events_in", "events published, by source", "source", count.events_in, (API, *PROTOCOLS))
        yield CounterMetricFamily("push1st_messages_out", "messages queued to subscribers", count.messages_out)
        yield CounterMetricFamily("push1st_bytes_in", "bytes received on WebSockets", count.bytes_in)
        yield CounterMetricFamily("push1st_bytes_out", "bytes queued to WebSockets", count.bytes_out)
        yield _counter("api_requests", "API requests", "status", count.requests, STATUSES)
        yield _counter("refusals", "what was answered with an error", "reason", count.refusals, REFUSALS)
        yield _counter("cut_offs", "connections ended by the server", "reason", count.cut_offs, CUT_OFFS)
        yield CounterMetricFamily("push1st_broker_away_seconds", "seconds without a broker", count.broker_away)
        yield CounterMetricFamily(
            "push1st_broker_unconfirmed", "messages that the broker did not confirm in time", count.broker_unconfirmed
        )
        yield _counter("hook_events", "events for hooks, by what became of them", "outcome", count.hook_events, HOOK_EVENTS)
        yield _counter("hook_attempts", "deliveries to hook endpoints, by result", "result", count.hook_attempts, HOOK_ATTEMPTS)
        yield _counter("asked", "questions to the backends of apps", "answer", count.decisions, DECISIONS)
        yield from self._history()
        yield _gauge("hook_events_queued", "events of an app that wait for its hook endpoints", "app", node.hooks.queued())
        yield GaugeMetricFamily("push1st_pending_bytes", "bytes waiting for the next flush", node.fanout.pending)
        yield GaugeMetricFamily("push1st_pending_slices", "parts of long flushes still to be written", node.fanout.slices)
        sizes: dict[str, dict[str, int]] = {"connections": {}, "channels": {}, "subscriptions": {}}
        for app in node.live():
            tenant = app.tenant
            sizes["connections"][app.config.id] = len(tenant.sessions)
            sizes["channels"][app.config.id] = len(tenant.channels)
            sizes["subscriptions"][app.config.id] = sum(len(channel) for channel in tenant.channels.values())
        for what, values in sizes.items():
            yield _gauge(f"app_{what}", f"{what} of an app on this worker", "app", values)

    def _history(self) -> Iterator[Metric]:
        count = self._node.metrics
        yield _counter("resumes", "subscriptions of clients that can resume", "result", count.resumes, ("recovered", *REASONS))
        yield CounterMetricFamily("push1st_replayed_messages", "kept messages sent to subscribers", count.replayed_messages)
        yield GaugeMetricFamily("push1st_history_bytes", "bytes of kept messages in the memory broker", count.history_bytes)
        yield GaugeMetricFamily(
            "push1st_history_channels", "channels with kept messages in the memory broker", count.history_channels
        )
        yield CounterMetricFamily(
            "push1st_history_evicted", "channels whose history the memory broker dropped for its bounds", count.history_evicted
        )
        yield CounterMetricFamily("push1st_gaps_healed", "gaps that were filled from the history", count.gaps_healed)
        yield CounterMetricFamily("push1st_gaps_reported", "gaps that were reported to subscribers", count.gaps_reported)
        yield GaugeMetricFamily("push1st_pages", "open connections whose URL names a page", count.pages)
        yield CounterMetricFamily("push1st_acknowledgements", "acknowledgements of pages", count.acknowledgements)
        yield CounterMetricFamily(
            "push1st_idempotent_repeats", "publishes that repeated an idempotency key", count.idempotent_repeats
        )


def _counter(name: str, text: str, label: str, values: Mapping[str, int] | Mapping[int, int], known: Iterable[str]) -> Metric:
    """Returns a counter. `known`: label values; each of them that is missing in `values` gets the count 0."""
    family = CounterMetricFamily(f"push1st_{name}", text, labels=[label])
    counts = dict.fromkeys(known, 0) | {str(value): count for value, count in values.items()}
    for value, count in counts.items():
        family.add_metric([value], count)
    return family


def _gauge(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(f"push1st_{name}", text, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family
