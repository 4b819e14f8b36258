"""The counters of a worker: plain integers, which the hot path increments, and which `/metrics` and tests read.

The counters have the names of the Prometheus metrics, without the prefix. A counter with a label is a dictionary from the label's
value to the count. `AppCounts` has the counters of one app, and the totals of all apps are computed when they are read. So a
count for each app takes no more time than a total. `api/metrics.py` reads the counters, and the gauges of the hub.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

import msgspec

STATUSES: Final = ("200", "202", "400", "401", "403", "404", "405", "408", "413", "429", "500", "503")
REFUSALS: Final = (
    *("400", "401", "403", "404", "413", "429", "503"),
    *("4001", "4003", "4004", "4005", "4006", "4007", "4009", "4100"),
    *("AuthError", "Invalid", "Forbidden", "LimitReached", "Unavailable", "access-token", "page"),
    *("bad-user-name-or-password", "malformed-packet", "not-authorized", "protocol-error", "quota-exceeded"),
    *("server-busy", "server-unavailable", "unspecified-error"),
)
CUT_OFFS: Final = (
    "crowded",
    "flood",
    "gone",
    "internal-error",
    "not-authorized",
    "proxy-header",
    "queue-full",
    "refused-by-app",
    "secret-retired",
    "silent",
    "slow",
    "slow-request",
    "tls",
    "token-expired",
    "whitelist",
)
HOOK_EVENTS: Final = ("queued", "sent", "overflowed", "expired", "stopped", "endpoint-gone", "unburied")
HOOK_ATTEMPTS: Final = ("delivered", "refused", "timed-out", "unreachable", "untrusted", "raised", "crashed", "internal-error")
RELOADS: Final = ("applied", "replaced", "refused", "failed", "renewed")
RELOADS_TEXT: Final = "reloads of the configuration, and renewed and refused certificates, by result"
RELOADED_TEXT: Final = "when the last reload succeeded, or the server started"
DECISIONS: Final = (
    *("allowed", "refused", "cached", "malformed", "failed"),
    *("timed-out", "unreachable", "untrusted", "raised", "crashed"),
)
MQTT_DROPPED: Final = ("expired", "over-limit", "queue-full", "too-large", "trimmed", "untranslatable")
"""from `STATUSES` to `MQTT_DROPPED`: the label values that `/metrics` shows with 0 from the start, because
Prometheus' `rate` ignores the first value of a series"""

ENDPOINTS: Final = ("events", "batch", "channels", "channel", "users", "terminate", "history", "token", "hooks", "other")
"""the label values of `api_request_seconds`"""
BROKER_STEPS: Final = ("publish", "join", "leave", "ask")
"""the label values of `broker_seconds`"""
CLOSE_CODES: Final = (
    *(1000, 1002, 1003, 1006, 1007, 1008, 1009, 1011),
    *(4001, 4003, 4004, 4005, 4006, 4007, 4009, 4100, 4200, 4201),
    *("normal-disconnection", "disconnect-with-will-message", "keep-alive-timeout", "session-taken-over"),
    *("administrative-action", "malformed-packet", "maximum-connect-time", "not-authorized", "packet-too-large"),
    *("protocol-error", "quota-exceeded", "receive-maximum-exceeded", "server-busy", "server-shutting-down"),
    *("topic-alias-invalid", "unspecified-error"),
)
"""the label values of `closed`: close codes, and names of reason codes of MQTT; other codes count as `OTHER`"""
NO_CLOSE_FRAME: Final = 1006
"""the close code of a connection that ended without a close frame, or without a DISCONNECT of MQTT (RFC 6455 §7.1.5)"""
OTHER: Final = "other"
SUPERVISOR = -1
"""the number that identifies the supervisor in metrics, in place of a worker's number"""
SHORT_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""the upper bounds of the buckets of most histograms, in seconds"""
HOOK_SECONDS: Final = (*SHORT_SECONDS, 5.0)
CONNECTION_SECONDS: Final = (1.0, 10.0, 60.0, 600.0, 3600.0, 86400.0)


class Histogram:
    """Counts values in buckets.

    bounds: the upper bound of each bucket, in ascending order; a value that is equal to a bound is in the bound's bucket.
    counts: the number of values in each bucket, and in the last bucket, which has no upper bound. Not cumulative.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float] = SHORT_SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class AppCounts:
    """The counters of one app.

    events_in: the number of published events, by source.
    messages_out: the number of messages queued for subscribers; an event counts once for each subscriber.
    bytes_out: the number of bytes queued for clients.
    refusals: the number of rejected requests and commands.
    subscribes, unsubscribes: the numbers of new and of ended subscriptions to channels, by type of channel.
    """

    __slots__ = ("bytes_out", "events_in", "messages_out", "refusals", "subscribes", "unsubscribes")

    def __init__(self) -> None:
        self.events_in: Counter[str] = Counter()
        self.subscribes: Counter[str] = Counter()
        self.unsubscribes: Counter[str] = Counter()
        self.messages_out = 0
        self.bytes_out = 0
        self.refusals = 0


class MqttFigures(msgspec.Struct, frozen=True):
    """The figures of MQTT clients that are computed when they are read.

    connected, absent: the number of connected clients, and of sessions that wait for their client to reconnect.
    inflight, queued: the number of messages to connected clients that are not acknowledged yet, and that are not sent yet.
    dropped: the number of messages that the worker dropped before a client received them, by reason.
    resent: the number of packets that the worker sent again on a new connection.
    """

    connected: int = 0
    absent: int = 0
    inflight: int = 0
    queued: int = 0
    dropped: Mapping[str, int] = {}
    resent: int = 0


class ReloadCounts:
    """The reloads of a server that this process has done, and the certificates that this process has renewed or refused.

    `results`: their numbers, by result.
    `succeeded_at`: the time of the last successful reload, or of the start of the server, in seconds on the wall clock. It is 0
    in a worker whose supervisor reloads.
    """

    __slots__ = ("results", "succeeded_at")

    def __init__(self) -> None:
        self.results: Counter[str] = Counter()
        self.succeeded_at = 0.0


class Metrics:
    """The counters since the start of the worker."""

    __slots__ = (
        "acknowledgements",
        "api_seconds",
        "apps",
        "broker_away",
        "broker_lag",
        "broker_lost_at",
        "broker_seconds",
        "broker_unconfirmed",
        "bytes_in",
        "certificates",
        "closed",
        "connection_seconds",
        "cut_offs",
        "decisions",
        "flush_delay",
        "gaps_healed",
        "gaps_reported",
        "history_bytes",
        "history_channels",
        "history_evicted",
        "hook_attempts",
        "hook_events",
        "hook_seconds",
        "idempotent_repeats",
        "loop_lag",
        "mqtt_dropped",
        "mqtt_figures",
        "mqtt_takeovers",
        "opened",
        "pages",
        "refusals",
        "refused_certificates",
        "reloads",
        "replayed_messages",
        "requests",
        "resumes",
        "unsent",
    )

    def __init__(self) -> None:
        self.opened: Counter[str] = Counter()
        """the number of accepted connections, by protocol"""
        self.closed: Counter[tuple[str, int | str]] = Counter()
        """the number of connections that ended, by protocol and by close code, or by the name of MQTT's reason code"""
        self.unsent: Callable[[], Coroutine[Any, Any, tuple[int, int]]] | None = None
        """counts the bytes that clients have not read yet, and these clients; None before the worker listens"""
        self.connection_seconds = Histogram(CONNECTION_SECONDS)
        """how long connections lasted"""
        self.apps: dict[str, AppCounts] = {}
        """the counters of each app, by the app's id, in the order of first use"""
        self.bytes_in = 0
        """the number of bytes received on WebSockets"""
        self.flush_delay = Histogram()
        """the seconds from the oldest pending frame of a flush to the last write of the flush"""
        self.loop_lag = Histogram()
        """the seconds by which the sweep's timer was late"""
        self.api_seconds = {endpoint: Histogram() for endpoint in ENDPOINTS}
        """the seconds from the first byte of an API request to its answer, by endpoint, for a sample of the requests"""
        self.broker_lag = Histogram()
        """the seconds from the publish of a message to its arrival from the broker, for a sample of the messages"""
        self.broker_seconds = {step: Histogram() for step in BROKER_STEPS}
        """the seconds from a command to the broker's reply, by step"""
        self.requests: Counter[int] = Counter()
        """the number of API requests, by HTTP status"""
        self.refusals: Counter[str] = Counter()
        """the number of rejected requests and commands, by reason"""
        self.cut_offs: Counter[str] = Counter()
        """the number of connections that the server closed, by reason"""
        self.broker_away = 0.0
        """the number of seconds without a connection to the broker"""
        self.broker_lost_at = 0.0
        """the time at which this worker last detected a loss of the broker's state, in seconds since 1970; 0 without a loss"""
        self.broker_unconfirmed = 0
        """the number of messages that the broker did not confirm in time"""
        self.hook_events: Counter[str] = Counter()
        """the number of hook events, by state: `queued`, and later `sent` or the reason why the event is lost"""
        self.hook_attempts: Counter[str] = Counter()
        """the number of attempts to deliver to a hook, by result"""
        self.hook_seconds = Histogram(HOOK_SECONDS)
        """the seconds of each attempt to deliver to a hook"""
        self.decisions: Counter[str] = Counter()
        """the number of decisions requested from the apps' backends, by result"""
        self.history_bytes = self.history_channels = 0
        """the number of bytes and of channels that the memory broker keeps as history (gauges)"""
        self.history_evicted = 0
        """the number of channels whose history the memory broker dropped to stay within its bounds"""
        self.idempotent_repeats = 0
        """the number of publishes that delivered nothing, because their idempotency key was used before"""
        self.resumes: Counter[str] = Counter()
        """the number of subscriptions of clients that can resume, by result: `recovered`, or the reason for missing messages"""
        self.replayed_messages = 0
        """the number of kept messages that were sent to new subscribers"""
        self.gaps_healed = self.gaps_reported = 0
        """the number of gaps in a channel's messages that the worker filled from the history, and that it reported to clients"""
        self.mqtt_dropped: Counter[str] = Counter()
        """the number of messages with QoS 1 and 2 that the broker dropped before an absent client received them, by reason"""
        self.mqtt_figures: Callable[[], MqttFigures] | None = None
        """computes the figures of MQTT clients; None if the worker serves no MQTT clients"""
        self.mqtt_takeovers = 0
        """the number of MQTT connections that ended because a newer connection has the same client id"""
        self.reloads = ReloadCounts()
        self.certificates: dict[str, float] = {}
        """the time in seconds at which the certificate of a listener expires, by listener"""
        self.refused_certificates: dict[str, str] = {}
        """the reason why the worker does not use the newest files of a listener, by listener"""
        self.pages = 0
        """the number of open connections whose URL names a page (a gauge)"""
        self.acknowledgements = 0
        """the number of acknowledgements of pages"""

    def of(self, app: str) -> AppCounts:
        """Returns the counters of an app, and creates them at the app's first use."""
        counts = self.apps.get(app)
        if counts is None:
            counts = self.apps[app] = AppCounts()
        return counts

    @property
    def connections(self) -> Counter[str]:
        """The number of open connections, by protocol."""
        found = self.opened.copy()
        for (protocol, _), count in self.closed.items():
            found[protocol] -= count
        return found

    @property
    def events_in(self) -> Counter[str]:
        """The number of published events, by source: api, pusher, websocket."""
        return self._total("events_in")

    @property
    def subscribes(self) -> Counter[str]:
        """The number of new subscriptions to channels, by type of channel."""
        return self._total("subscribes")

    @property
    def unsubscribes(self) -> Counter[str]:
        """The number of ended subscriptions to channels, by type of channel."""
        return self._total("unsubscribes")

    def _total(self, name: str) -> Counter[str]:
        total: Counter[str] = Counter()
        for one in self.apps.values():
            total.update(getattr(one, name))
        return total

    @property
    def messages_out(self) -> int:
        """The number of messages queued for subscribers; an event counts once for each subscriber."""
        return sum(one.messages_out for one in self.apps.values())

    @property
    def bytes_out(self) -> int:
        """The number of bytes queued for clients."""
        return sum(one.bytes_out for one in self.apps.values())

    def end(self, protocol: str, code: int | str, seconds: float) -> None:
        """Counts the end of an accepted connection.

        code: the close code, or the name of MQTT's reason code.
        seconds: how long the connection lasted.
        """
        self.closed[protocol, code if code in _CODES else OTHER] += 1
        self.connection_seconds.observe(seconds)


_CODES = frozenset(CLOSE_CODES)
