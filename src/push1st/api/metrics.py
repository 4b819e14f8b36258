"""The endpoint `/metrics`: the counters and gauges of this worker and of all other workers, as text.

A worker collects its figures on the event loop, because they must not change during the collection. A thread writes them as text.
A scrape of several workers requests the lines of each worker, so that no worker writes thousands of series of the others.

Only trusted callers get the metrics, because the metrics contain the names of apps.
"""

import asyncio
import gzip
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec
from prometheus_client.exposition import choose_encoder, gzip_accepted

import push1st
from push1st import logs, usage
from push1st.brokers.history import REASONS
from push1st.channels import type_names
from push1st.core.hub import Tenant
from push1st.core.node import Node
from push1st.errors import Refused
from push1st.exposition import (
    AppLabels,
    Family,
    Lines,
    counter,
    counters,
    escape,
    gauge,
    gauges,
    histogram,
    histograms,
    join,
    write,
)
from push1st.messages import API, Request, Response
from push1st.metrics import (
    CLOSE_CODES,
    CUT_OFFS,
    DECISIONS,
    HOOK_ATTEMPTS,
    HOOK_EVENTS,
    MQTT_DROPPED,
    OTHER,
    REFUSALS,
    RELOADED_TEXT,
    RELOADS,
    RELOADS_TEXT,
    STATUSES,
    AppCounts,
    MqttFigures,
)
from push1st.protocols import PROTOCOLS

TEXT = b"text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = b"application/openmetrics-text; version=1.0.0; charset=utf-8"
GZIP_LEVEL = 1
"""the level of compression: level 1 takes a tenth of the time of level 6, and the result is half as long again"""
ADDED = 500
"""the maximum number of apps whose counters are added in one turn of the event loop, which takes some milliseconds"""
SIZES = ("connections", "channels", "subscriptions")
TOTALS = {
    "events_in": "events published in an app",
    "messages_out": "messages queued to the subscribers of an app",
    "bytes_out": "bytes queued to the clients of an app",
    "refusals": "what was answered with an error in an app",
}
_lines = msgspec.msgpack.Decoder(list[Lines])


async def metrics(node: Node, request: Request) -> Response:
    if request.distrust:
        raise Refused(
            403,
            "metrics are for trusted callers of api.listen, for callers of metrics.listen and for callers with metrics.token; "
            f"this one is not trusted: {request.distrust}",
        )
    headers = request.headers or {}
    is_openmetrics = _wants_openmetrics(_text(headers, b"accept"))
    is_compressed = gzip_accepted(_text(headers, b"accept-encoding"))
    own = asyncio.ensure_future(snapshot(node))
    others = [] if node.siblings is None else [packed for _, packed in await node.siblings.metrics()]
    parts = [await own, *others]

    def body() -> bytes:
        text = join([_lines.decode(one) for one in parts], is_openmetrics)
        return gzip.compress(text, GZIP_LEVEL, mtime=0) if is_compressed else text

    encoding = b"Content-Encoding: gzip\r\n" if is_compressed else b""
    answer = await asyncio.to_thread(body)
    return Response(200, answer, OPENMETRICS if is_openmetrics else TEXT, encoding + b"Vary: Accept, Accept-Encoding\r\n")


def _wants_openmetrics(accept: str) -> bool:
    """Whether the caller prefers OpenMetrics. `accept`: the value of the header `Accept`."""
    try:
        return choose_encoder(accept)[1].startswith("application/openmetrics-text")
    except TypeError:  # the library compares a version that is no number
        return False


def _text(headers: Mapping[bytes, bytes], name: bytes) -> str:
    return headers.get(name, b"").decode("latin-1")


async def snapshot(node: Node) -> bytes:
    """Returns the lines of this worker, encoded with MessagePack, for the worker that answers the scrape.

    If there are several workers, each series has the label `worker` with the worker's number.
    """
    behind = (0, 0) if node.metrics.unsent is None else await node.metrics.unsent()
    families = collected(node, await sums(node), *behind)
    number = "" if node.siblings is None else f'worker="{node.siblings.number}"'
    return await asyncio.to_thread(_packed, families, number)


class Sums:
    """The sums of the counters of all apps.

    labels: the labels of the apps.
    by_app: for each metric with the label `app`, its values by label.
    events_in, subscribes, unsubscribes: see `AppCounts`. messages_out, bytes_out: as well.
    """

    def __init__(self, labels: AppLabels) -> None:
        self.labels = labels
        self.by_app: dict[str, dict[str, float]] = {name: {} for name in (*SIZES, *TOTALS)}
        self.events_in: Counter[str] = Counter()
        self.subscribes: Counter[str] = Counter()
        self.unsubscribes: Counter[str] = Counter()
        self.messages_out = self.bytes_out = 0

    def add(self, app: str, one: AppCounts, tenant: Tenant | None) -> None:
        """Adds the counters of an app. `tenant`: its connections and channels; None if the app was removed."""
        label, by_app = self.labels.of(app), self.by_app
        for total, counts in (
            (self.events_in, one.events_in),
            (self.subscribes, one.subscribes),
            (self.unsubscribes, one.unsubscribes),
        ):
            for key, count in counts.items():
                total[key] += count
        self.messages_out += one.messages_out
        self.bytes_out += one.bytes_out
        values = {
            "events_in": one.events_in.total(),
            "messages_out": one.messages_out,
            "bytes_out": one.bytes_out,
            "refusals": one.refusals,
        }
        if tenant is not None:
            subscriptions = one.subscribes.total() - one.unsubscribes.total()
            sizes = len(tenant.sessions), len(tenant.channels), subscriptions
            values |= dict(zip(SIZES, sizes, strict=True))
        for name, value in values.items():
            by_app[name][label] = by_app[name].get(label, 0) + value


async def sums(node: Node) -> Sums:
    """Returns the sums of the counters of all apps. A turn of the event loop adds at most `ADDED` apps."""
    counts = dict(node.metrics.apps)
    found = Sums(AppLabels(counts, node.max_metric_apps))
    for number, (app, one) in enumerate(counts.items(), 1):
        used = node.used.get(app)
        found.add(app, one, None if used is None else used.tenant)
        if not number % ADDED:
            await asyncio.sleep(0)
    return found


def collected(node: Node, found: Sums, behind_bytes: int = 0, behind_connections: int = 0) -> list[Family]:
    """Returns the figures of this worker. `behind_bytes`, `behind_connections`: see `EdgeContext.unsent`."""
    return list(_Collected(node, found, behind_bytes, behind_connections).collect())


def _packed(families: Sequence[Family], labels: str) -> bytes:
    return msgspec.msgpack.encode([write(family, labels) for family in (*families, *usage.families("worker"))])


class _Collected:
    """Reads the counters and gauges of a worker."""

    def __init__(self, node: Node, found: Sums, behind_bytes: int, behind_connections: int) -> None:
        self._node = node
        self._behind = behind_bytes, behind_connections
        self._sums = found
        self._labels = found.labels

    def collect(self) -> Iterator[Family]:
        node, count = self._node, self._node.metrics
        build = f'python="{platform.python_version()}",version="{push1st.__version__}"'
        yield Family("push1st_build_info", "gauge", "the version that runs: always 1", (("", build, 1),))
        yield gauges("connections", "open connections", "protocol", dict.fromkeys(PROTOCOLS, 0) | count.connections)
        yield counters("connections_opened", "connections accepted", "protocol", count.opened, PROTOCOLS)
        closed: Counter[str] = Counter()
        for (_, code), times in count.closed.items():
            closed[str(code)] += times
        yield counters("closed", "connections that ended, by close code", "code", closed, (*CLOSE_CODES, OTHER))
        yield histogram("connection_seconds", "seconds that connections lasted", count.connection_seconds)
        yield counters("subscribes", "new subscriptions, by type of channel", "type", self._sums.subscribes, type_names)
        yield counters("unsubscribes", "ended subscriptions, by type of channel", "type", self._sums.unsubscribes, type_names)
        yield counters("events_in", "events published, by source", "source", self._sums.events_in, (API, *PROTOCOLS))
        yield counter("messages_out", "messages queued to subscribers", self._sums.messages_out)
        yield counter("bytes_in", "bytes received from clients", count.bytes_in)
        yield counter("bytes_out", "bytes queued to clients", self._sums.bytes_out)
        yield counters("api_requests", "API requests", "status", count.requests, STATUSES)
        yield histograms("api_request_seconds", "seconds until an API request is answered", "endpoint", count.api_seconds)
        yield counters("refusals", "what was answered with an error", "reason", count.refusals, REFUSALS)
        yield counters("cut_offs", "connections ended by the server", "reason", count.cut_offs, CUT_OFFS)
        yield histogram("flush_delay_seconds", "seconds from the oldest pending frame to the last write", count.flush_delay)
        yield histogram("loop_lag_seconds", "seconds by which a timer of the event loop was late", count.loop_lag)
        yield counters("log_messages", "lines in the log, by level", "level", logs.messages, logs.LEVELS)
        yield from self._broker()
        yield from self._hooks()
        yield from self._history()
        yield gauge("pending_bytes", "bytes waiting for the next flush", node.fanout.pending)
        yield gauge("pending_slices", "parts of long flushes still to be written", node.fanout.slices)
        size, connections = self._behind
        yield gauge("behind_bytes", "bytes that clients have not read yet", size)
        yield gauge("behind_connections", "connections whose clients have not read all bytes yet", connections)
        yield from self._apps()
        yield from self._mqtt()
        yield from self._reloads()

    def _reloads(self) -> Iterator[Family]:
        count = self._node.metrics
        yield counters("reloads", RELOADS_TEXT, "result", count.reloads.results, RELOADS)
        if count.reloads.succeeded_at:
            yield gauge("last_reload_success_timestamp_seconds", RELOADED_TEXT, count.reloads.succeeded_at)
        text = "when the certificate of a listener expires"
        yield gauges("certificate_expiry_timestamp_seconds", text, "listener", count.certificates)

    def _broker(self) -> Iterator[Family]:
        count = self._node.metrics
        yield counter("broker_away_seconds", "seconds without a broker", count.broker_away)
        yield counter("broker_unconfirmed", "messages that the broker did not confirm in time", count.broker_unconfirmed)
        yield histogram("broker_lag_seconds", "seconds from a publish to its arrival from the broker", count.broker_lag)
        yield histograms("broker_seconds", "seconds until the broker replies, by step", "step", count.broker_seconds)

    def _hooks(self) -> Iterator[Family]:
        node, count = self._node, self._node.metrics
        yield counters("hook_events", "events for hooks, by what became of them", "outcome", count.hook_events, HOOK_EVENTS)
        yield counters("hook_attempts", "deliveries to hook endpoints, by result", "result", count.hook_attempts, HOOK_ATTEMPTS)
        yield histogram("hook_delivery_seconds", "seconds of each delivery to a hook endpoint", count.hook_seconds)
        queued, oldest = node.hooks.queued(), node.hooks.oldest()
        yield self._by_app("hook_events_queued", "events of an app that wait for its hook endpoints", queued)
        yield self._by_app("hook_oldest_seconds", "age of the oldest event that waits for a hook", oldest, self._labels.largest)
        yield counters("asked", "questions to the backends of apps", "answer", count.decisions, DECISIONS)

    def _history(self) -> Iterator[Family]:
        count = self._node.metrics
        yield counters("resumes", "subscriptions of clients that can resume", "result", count.resumes, ("recovered", *REASONS))
        yield counter("replayed_messages", "kept messages sent to subscribers", count.replayed_messages)
        yield gauge("history_bytes", "bytes of kept messages in the memory broker", count.history_bytes)
        yield gauge("history_channels", "channels with kept messages in the memory broker", count.history_channels)
        yield counter("history_evicted", "channels whose history the memory broker dropped for its bounds", count.history_evicted)
        yield counter("gaps_healed", "gaps that were filled from the history", count.gaps_healed)
        yield counter("gaps_reported", "gaps that were reported to subscribers", count.gaps_reported)
        yield gauge("pages", "open connections whose URL names a page", count.pages)
        yield counter("acknowledgements", "acknowledgements of pages", count.acknowledgements)
        yield counter("idempotent_repeats", "publishes that repeated an idempotency key", count.idempotent_repeats)

    def _apps(self) -> Iterator[Family]:
        node, by_app = self._node, self._sums.by_app
        for what in SIZES:
            yield gauges(f"app_{what}", f"{what} of an app on this worker", "app", by_app[what])
        for name, text in TOTALS.items():
            yield counters(f"app_{name}", text, "app", by_app[name])
        used: Counter[str] = Counter()
        for app in node.live():
            for place, times in enumerate(app.secret_use.counts if app.secret_use is not None else ()):
                used[f'app="{escape(self._labels.of(app.config.id))}",place="{place}"'] += times
        text = "signatures and tokens verified by each secret of an app"
        yield Family("push1st_secret_used", "counter", text, [("_total", labels, times) for labels, times in used.items()])

    def _mqtt(self) -> Iterator[Family]:
        node, compute = self._node, self._node.metrics.mqtt_figures
        figures = MqttFigures() if compute is None else compute()
        states = {"connected": figures.connected, "absent": figures.absent}
        yield gauges("mqtt_sessions", "sessions of MQTT clients", "state", states)
        yield gauge("mqtt_inflight", "messages that MQTT clients have not acknowledged", figures.inflight)
        yield gauge("mqtt_queued", "messages that wait for connected MQTT clients", figures.queued)
        dropped = figures.dropped
        yield counters("mqtt_dropped", "messages dropped before MQTT clients got them", "reason", dropped, MQTT_DROPPED)
        yield counter("mqtt_resent", "packets sent again to MQTT clients that returned", figures.resent)
        takeovers = node.metrics.mqtt_takeovers
        yield counter("mqtt_takeovers", "MQTT connections ended by newer ones with their client id", takeovers)
        counts = {app.config.id: 0 for app in node.live()} | dict(node.retained.counts())
        yield self._by_app("mqtt_retained", "retained messages of an app", counts)

    def _by_app(
        self,
        name: str,
        text: str,
        values: Mapping[str, float],
        join: Callable[[Mapping[str, float]], dict[str, float]] | None = None,
    ) -> Family:
        """Returns a gauge with the label `app`. `join`: see `AppLabels.add`, the default, and `AppLabels.largest`."""
        return gauges(name, text, "app", (join or self._labels.add)(values))
