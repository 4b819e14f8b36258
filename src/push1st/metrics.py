"""The counters of a worker: plain integers, which the hot path increments, and which `/metrics` and tests read.

The names are those of Prometheus' metrics, without the prefix. A counter with a label is a dictionary from the label's value to
the count. `api/metrics.py` makes Prometheus' text format, and reads gauges such as the number of channels from the hub.
"""

from collections import Counter
from typing import Final

import msgspec

STATUSES: Final = ("200", "202", "400", "401", "403", "404", "405", "408", "413", "429", "500", "503")
REFUSALS: Final = (
    *("400", "401", "403", "404", "413", "429", "503"),
    *("4001", "4003", "4004", "4005", "4006", "4007", "4009", "4100"),
    *("AuthError", "Invalid", "Forbidden", "LimitReached", "Unavailable", "access-token"),
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
"""label values that `/metrics` shows from the start, with 0: Prometheus' `rate` ignores the first count of a new series"""

SUPERVISOR = -1
"""takes the place of a worker's number for metrics of the supervisor"""


class Family(msgspec.Struct, frozen=True):
    """A metric that one process sends to another.

    text: the help text.
    samples: name, labels and value of each series.
    """

    name: str
    text: str
    type: str
    samples: list[tuple[str, dict[str, str], float]]


class Metrics:
    """The counters since the start of the worker."""

    __slots__ = (
        "broker_away",
        "broker_unconfirmed",
        "bytes_in",
        "bytes_out",
        "connections",
        "cut_offs",
        "decisions",
        "events_in",
        "hook_attempts",
        "hook_events",
        "messages_out",
        "opened",
        "refusals",
        "requests",
    )

    def __init__(self) -> None:
        self.connections: Counter[str] = Counter()
        """open connections by protocol (a gauge)"""
        self.opened: Counter[str] = Counter()
        """connections accepted, by protocol"""
        self.events_in: Counter[str] = Counter()
        """events published, by source: api, pusher, websocket"""
        self.messages_out = 0
        """messages queued to subscribers: one for each event and subscriber"""
        self.bytes_in = 0
        """bytes received on WebSockets"""
        self.bytes_out = 0
        """bytes queued to WebSockets"""
        self.requests: Counter[int] = Counter()
        """API requests by status"""
        self.refusals: Counter[str] = Counter()
        """requests rejected with an error, by reason"""
        self.cut_offs: Counter[str] = Counter()
        """connections that the server closed, by reason"""
        self.broker_away = 0.0
        """seconds without a connection to the broker"""
        self.broker_unconfirmed = 0
        """messages that the broker did not confirm in time"""
        self.hook_events: Counter[str] = Counter()
        """events for hooks, by state: queued, then sent, or the reason why they are lost"""
        self.hook_attempts: Counter[str] = Counter()
        """attempts of deliveries to hooks, by result"""
        self.decisions: Counter[str] = Counter()
        """requests for decisions to the apps' backends, by result"""
