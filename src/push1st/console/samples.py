"""The last ten minutes of a worker: a sample of its figures every ten seconds, for the charts of the overview.

A sample contains the values of the counters; the browser computes a rate from two samples. This module knows no clock.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

EVERY_SECONDS = 10
MAX_SAMPLES = 60
FIELDS = (
    "connections",
    "events_in",
    "messages_out",
    "bytes_in",
    "bytes_out",
    "refusals",
    "cut_offs",
    "api_requests",
    "connections_opened",
    "cpu_seconds",
    "rss",
    "pending_bytes",
    "hook_events_lost",
)


class Samples:
    """The samples of a worker."""

    __slots__ = ("_at", "_next", "_samples")

    def __init__(self) -> None:
        self._samples: deque[tuple[float, ...]] = deque(maxlen=MAX_SAMPLES)
        self._next = 0.0
        self._at = 0.0

    def is_due(self, now: float) -> bool:
        """Returns whether the next sample is due. Called once a second. now: the time in seconds since 1970."""
        return now >= self._next

    def add(self, now: float, values: Sequence[float]) -> None:
        """Adds a sample, whose values are those of `FIELDS`. After a pause of the process, the earlier samples are dropped."""
        if self._at and not 0 <= now - self._at < 2 * EVERY_SECONDS:
            self._samples.clear()
        self._samples.append(tuple(values))
        self._at = now
        self._next = now // EVERY_SECONDS * EVERY_SECONDS + EVERY_SECONDS

    def series(self) -> dict[str, Any]:
        """Returns all samples. at: the time of the last one. Each sample has a value for each field."""
        return {"at": self._at, "every": EVERY_SECONDS, "fields": FIELDS, "samples": list(self._samples)}
