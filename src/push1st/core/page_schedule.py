"""The times at which the connections of pages are checked (`pages.PageConnection.check`).

A second has `SLOTS` slots. The schedule makes the checks of each slot at the beginning of the next slot, so that the messages of
other clients do not wait for the checks of a whole second. While no check is scheduled, the schedule has no timer.

A check may request an acknowledgement from the client. The frame of this request is written after the pending frames of all the
client's channels. So the checks wait until no frame is pending (`Fanout.after_flush`), at most `HOLD_SECONDS`. Otherwise, the
checks of many connections would make the fan-out write the frames of large channels early.
"""

from collections import deque
from collections.abc import Callable
from math import ceil, inf
from typing import Protocol
from zlib import crc32

from push1st.core.fanout import Fanout, Timer

SLOTS = 20
"""the number of slots of a second"""
MAX_CHECKS = 50
"""the maximum number of checks in one turn of the event loop"""
HOLD_SECONDS = 1
"""the maximum seconds for which checks that are due wait until no frame is pending"""
NEVER = inf
PHASES = 1024
"""the number of different phases of pages (`next_phase`)"""


def next_phase(page: str, interval: float, now: float) -> float:
    """Returns the time of the page's next periodic check after `now`, in seconds.

    The checks of a page have a phase that depends on its name. So pages that have reconnected at the same time are not checked at
    the same time.

    page: the name of the page.
    interval: the seconds between two checks.
    """
    phase = crc32(page.encode()) % PHASES * interval / PHASES
    return now + interval - (now - phase) % interval


class Checked(Protocol):
    due_at: int
    """the time of the next call of `check`, in slots; 0 if no call is scheduled; only the schedule sets this time"""

    def check(self) -> None:
        """Makes all checks of the connection that are due now."""


class PageSchedule:
    """See the module. monotonic: a function that returns the seconds of a monotonic clock."""

    __slots__ = ("_buckets", "_continues", "_done", "_due", "_fanout", "_left", "_monotonic", "_timer", "_waits_since")

    def __init__(self, fanout: Fanout, monotonic: Callable[[], float]) -> None:
        self._fanout = fanout
        self._monotonic = monotonic
        self._buckets: dict[int, dict[Checked, None]] = {}
        self._done = int(monotonic() * SLOTS)
        self._due: deque[Checked] = deque()
        self._waits_since = 0.0
        self._continues = False
        """whether the next turn makes further checks"""
        self._timer: Timer | None = None
        self._left = 0
        """the number of slots until the next tick"""

    def watch(self, page: Checked, at: float) -> None:
        """Schedules a check at the time `at`, in seconds or `NEVER`, unless an earlier check is scheduled."""
        if at == NEVER:
            return
        slot = max(ceil(at * SLOTS), self._done + 1)
        if page.due_at:
            if page.due_at <= slot:
                return
            self.forget(page)
        page.due_at = slot
        bucket = self._buckets.get(slot)
        if bucket is None:
            bucket = self._buckets[slot] = {}
        bucket[page] = None

    def forget(self, page: Checked) -> None:
        """Cancels the next check."""
        bucket = self._buckets.get(page.due_at)
        if bucket is not None:
            bucket.pop(page, None)
            if not bucket:
                del self._buckets[page.due_at]
        page.due_at = 0

    def tick(self) -> None:
        """Makes the checks that are due now, and starts a timer for the checks of the slots before the next call.

        Called once a second.
        """
        self._left = SLOTS
        self._begin_slot()

    def _begin_slot(self) -> None:
        self._left -= 1
        now = self._monotonic()
        if not self._due:
            self._waits_since = now
        while self._done < int(now * SLOTS):
            self._done += 1
            self._due.extend(self._buckets.pop(self._done, ()))
        if not self._continues:
            self._check()
        if self._left > 0 and self._buckets and self._timer is None:
            self._timer = self._fanout.call_later(1 / SLOTS, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._begin_slot()

    def _check(self) -> None:
        """Makes up to `MAX_CHECKS` checks, unless frames are pending and the checks have waited less than `HOLD_SECONDS`."""
        self._continues = False
        due = self._due
        if due and self._fanout.has_lanes and self._monotonic() - self._waits_since < HOLD_SECONDS:
            if self._check not in self._fanout.after_flush:
                self._fanout.after_flush.append(self._check)
            return
        for _ in range(min(MAX_CHECKS, len(due))):
            page = due.popleft()
            if 0 < page.due_at <= self._done:
                page.due_at = 0
                page.check()
        if due:
            self._continues = True
            self._fanout.call_soon(self._check)
