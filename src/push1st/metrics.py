"""A worker's counters: plain integers that the hot path adds to, read by `/metrics` and by tests.

Names are Prometheus', without their prefix; labelled counters are dictionaries from label value to count. The text
format is made in `api/metrics.py`. Gauges that are sizes of something (channels, subscriptions) are read there when
asked, not kept here.
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
ASKED: Final = (
    *("allowed", "refused", "cached", "malformed", "failed"),
    *("timed-out", "unreachable", "untrusted", "raised", "crashed"),
)
"""labels that are shown before their first count: a rate over a series that only now appears misses what made it appear"""

SUPERVISOR = -1
"""in place of a worker's number: what the process above the workers has counted"""


class Family(msgspec.Struct, frozen=True):
    """A metric on its way from one process to another. samples: name, labels and value."""

    name: str
    text: str
    type: str
    samples: list[tuple[str, dict[str, str], float]]


class Metrics:
    """Counters since the start of the worker."""

    __slots__ = (
        "asked",
        "broker_away",
        "broker_unconfirmed",
        "bytes_in",
        "bytes_out",
        "connections",
        "cut_offs",
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
        """messages queued to subscribers: one an event and subscriber"""
        self.bytes_in = 0
        """bytes received on WebSockets"""
        self.bytes_out = 0
        """bytes queued to WebSockets"""
        self.requests: Counter[int] = Counter()
        """API requests by status"""
        self.refusals: Counter[str] = Counter()
        """what was answered with an error, by reason"""
        self.cut_offs: Counter[str] = Counter()
        """connections ended by the server, by reason"""
        self.broker_away = 0.0
        """seconds without a broker"""
        self.broker_unconfirmed = 0
        """broker messages that were not confirmed in time"""
        self.hook_events: Counter[str] = Counter()
        """events for hooks, by what became of them: queued, then sent or lost in some way"""
        self.hook_attempts: Counter[str] = Counter()
        """deliveries tried, by result"""
        self.asked: Counter[str] = Counter()
        """questions to the apps' backends, by answer"""
