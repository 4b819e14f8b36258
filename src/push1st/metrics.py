"""The counters of a worker: plain integers, which the hot path increments, and which `/metrics` and tests read.

The counters have the names of the Prometheus metrics, without the prefix. A counter with a label is a dictionary from the label's
value to the count. `api/metrics.py` writes Prometheus' text format, and reads gauges from the hub.
"""

from collections import Counter
from typing import Final

import msgspec

STATUSES: Final = ("200", "202", "400", "401", "403", "404", "405", "408", "413", "429", "500", "503")
REFUSALS: Final = (
    *("400", "401", "403", "404", "413", "429", "503"),
    *("4001", "4003", "4004", "4005", "4006", "4007", "4009", "4100"),
    *("AuthError", "Invalid", "Forbidden", "LimitReached", "Unavailable", "access-token", "page"),
)
CUT_OFFS: Final = (
    "crowded",
    "flood",
    "gone",
    "internal-error",
    "not-authorized",
    "queue-full",
    "refused-by-app",
    "silent",
    "slow",
    "slow-request",
    "token-expired",
    "whitelist",
)
HOOK_EVENTS: Final = ("queued", "sent", "overflowed", "expired", "stopped", "endpoint-gone", "unburied")
HOOK_ATTEMPTS: Final = ("delivered", "refused", "timed-out", "unreachable", "untrusted", "raised", "crashed", "internal-error")
DECISIONS: Final = (
    *("allowed", "refused", "cached", "malformed", "failed"),
    *("timed-out", "unreachable", "untrusted", "raised", "crashed"),
)
"""from `STATUSES` to `DECISIONS`: the label values that `/metrics` shows with 0 from the start, because
Prometheus' `rate` ignores the first value of a series"""

SUPERVISOR = -1
"""the number that identifies the supervisor in metrics, in place of a worker's number"""


class Family(msgspec.Struct, frozen=True):
    """A metric that one process sends to another.

    `text`: the help text of the metric.
    `samples`: the name, the labels and the value of each series.
    """

    name: str
    text: str
    type: str
    samples: list[tuple[str, dict[str, str], float]]


class Metrics:
    """The counters since the start of the worker."""

    __slots__ = (
        "acknowledgements",
        "broker_away",
        "broker_unconfirmed",
        "bytes_in",
        "bytes_out",
        "connections",
        "cut_offs",
        "decisions",
        "events_in",
        "gaps_healed",
        "gaps_reported",
        "history_bytes",
        "history_channels",
        "history_evicted",
        "hook_attempts",
        "hook_events",
        "idempotent_repeats",
        "messages_out",
        "opened",
        "pages",
        "refusals",
        "replayed_messages",
        "requests",
        "resumes",
    )

    def __init__(self) -> None:
        self.connections: Counter[str] = Counter()
        """the number of open connections, by protocol (a gauge)"""
        self.opened: Counter[str] = Counter()
        """the number of accepted connections, by protocol"""
        self.events_in: Counter[str] = Counter()
        """the number of published events, by source: api, pusher, websocket"""
        self.messages_out = 0
        """the number of messages queued for subscribers; an event counts once for each subscriber"""
        self.bytes_in = 0
        """the number of bytes received on WebSockets"""
        self.bytes_out = 0
        """the number of bytes queued for WebSockets"""
        self.requests: Counter[int] = Counter()
        """the number of API requests, by HTTP status"""
        self.refusals: Counter[str] = Counter()
        """the number of rejected requests and commands, by reason"""
        self.cut_offs: Counter[str] = Counter()
        """the number of connections that the server closed, by reason"""
        self.broker_away = 0.0
        """the number of seconds without a connection to the broker"""
        self.broker_unconfirmed = 0
        """the number of messages that the broker did not confirm in time"""
        self.hook_events: Counter[str] = Counter()
        """the number of hook events, by state: `queued`, and later `sent` or the reason why the event is lost"""
        self.hook_attempts: Counter[str] = Counter()
        """the number of attempts to deliver to a hook, by result"""
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
        self.pages = 0
        """the number of open connections whose URL names a page (a gauge)"""
        self.acknowledgements = 0
        """the number of acknowledgements of pages"""
