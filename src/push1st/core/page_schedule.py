"""The times at which the connections of pages are checked, in whole seconds (`pages.PageConnection.check`).

A check may request an acknowledgement from the client. The frame of this request is written after the pending frames of all the
client's channels. So the checks wait until no frame is pending (`Fanout.after_flush`), at most `HOLD_SECONDS`. Otherwise, the
checks of many connections would make the fan-out write the frames of large channels early.
"""

from collections import deque
from collections.abc import Callable
from math import ceil
from typing import Protocol

from push1st.core.fanout import Fanout

MAX_CHECKS = 200
"""the maximum number of checks in one turn of the event loop"""
HOLD_SECONDS = 1
"""the maximum seconds for which checks that are due wait until no frame is pending"""


class Checked(Protocol):
    due_at: int
    """the time of the next call of `check`, in whole seconds; 0 if no call is scheduled; only the schedule sets this time"""

    def check(self) -> None:
        """Does what is due at the present time."""


class PageSchedule:
    """See the module. monotonic: a function that returns the seconds of a monotonic clock."""

    __slots__ = ("_buckets", "_done", "_due", "_fanout", "_monotonic", "_waits_since")

    def __init__(self, fanout: Fanout, monotonic: Callable[[], float]) -> None:
        self._fanout = fanout
        self._monotonic = monotonic
        self._buckets: dict[int, dict[Checked, None]] = {}
        self._done = int(monotonic())
        self._due: deque[Checked] = deque()
        self._waits_since = 0.0

    def watch(self, page: Checked, at: float) -> None:
        """Schedules the next check, and cancels the check that was scheduled before."""
        self.forget(page)
        page.due_at = second = max(ceil(at), self._done + 1)
        bucket = self._buckets.get(second)
        if bucket is None:
            bucket = self._buckets[second] = {}
        bucket[page] = None

    def forget(self, page: Checked) -> None:
        """Cancels the next check."""
        bucket = self._buckets.get(page.due_at)
        if bucket is not None:
            bucket.pop(page, None)
        page.due_at = 0

    def tick(self) -> None:
        """Makes the checks that are due. Called once a second."""
        now = int(self._monotonic())
        if not self._due:
            self._waits_since = now
        while self._done < now:
            self._done += 1
            self._due.extend(self._buckets.pop(self._done, ()))
        self._check()

    def _check(self) -> None:
        """Makes some checks now if no frame is pending, or if the checks have waited for a long time."""
        due = self._due
        if due and self._fanout.has_lanes and self._monotonic() - self._waits_since < HOLD_SECONDS:
            self._fanout.after_flush = self._check
            return
        for _ in range(min(MAX_CHECKS, len(due))):
            page = due.popleft()
            if 0 < page.due_at <= self._done:
                page.due_at = 0
                page.check()
        if due:
            self._fanout.call_soon(self._check)
