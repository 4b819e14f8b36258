"""One timer a worker for all deadlines and keepalives (invariant 6).

A connection is kept under the second at which something may be due for it. It is looked at then, not before: activity
only writes down its time, and when the second comes the connection says when to look next. So an idle connection
costs one look per activity timeout, and owns no timer.

A deadline is enforced only after the server has read everything that clients sent in time. So the sockets are read between the
timer and the looks; and if the process stood still (stopped, swapped out, starved), the next tick does not look.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from math import ceil
from typing import Protocol

LOOKS = 1000
"""connections looked at in one loop turn"""
AGAIN_SECONDS = 10
"""until a connection whose look failed is looked at again"""
NEVER = 1 << 62
LATE_SECONDS = 2
"""between two ticks; after a longer time the process stood still"""
READ_TURNS = 3
"""loop turns from the timer until all input is processed: the rest of the timer's own turn, one to read, one to process"""


class Watched(Protocol):
    due_at: int
    """the second it is kept under; the sweep's own (NEVER at first)"""

    def due(self, now: float) -> float | None:
        """Does what is due; returns when to look next (seconds on the sweep's clock), None for never."""


class Sweep:
    """clock: seconds that never go back. each_second: done once a tick. on_error: called in an exception's handler.

    `now` is that clock as of the last second, for those who need no better.
    """

    def __init__(self, clock: Callable[[], float], on_error: Callable[[], None], each_second: Callable[[], None]) -> None:
        self._clock = clock
        self._each_second = each_second
        self._on_error = on_error
        self._buckets: dict[int, dict[Watched, None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.now = clock()
        self._done = int(self.now)
        self._waiting: deque[Watched] = deque()
        self._was_late = False

    def start(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(1, self._tick)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def watch(self, watched: Watched, at: float) -> None:
        """Looks at `watched` at `at`, and no more at the time before."""
        self.forget(watched)
        second = max(ceil(at), self._done + 1)
        watched.due_at = second
        bucket = self._buckets.get(second)
        if bucket is None:
            bucket = self._buckets[second] = {}
        bucket[watched] = None

    def forget(self, watched: Watched) -> None:
        """Never looks at `watched` again."""
        bucket = self._buckets.get(watched.due_at)
        if bucket is not None:
            bucket.pop(watched, None)
        watched.due_at = NEVER

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(1, self._tick)
        before, self.now = self.now, self._clock()
        self._was_late = self.now - before >= LATE_SECONDS and not self._was_late
        if self._was_late:  # never twice in a row, since a slow process may be late at each tick
            self._each_second()
        else:
            self._after(READ_TURNS)

    def _after(self, turns: int) -> None:
        if turns:
            asyncio.get_running_loop().call_soon(self._after, turns - 1)
        else:
            self.run()

    def run(self) -> None:
        """Looks at what is due by now, at most `LOOKS` a loop turn."""
        self.now = self._clock()
        while self._done < int(self.now):
            self._done += 1
            self._waiting.extend(self._buckets.pop(self._done, ()))
        self._each_second()
        self._look()

    def _look(self) -> None:
        waiting = self._waiting
        for _ in range(min(LOOKS, len(waiting))):
            watched = waiting.popleft()
            if watched.due_at > self._done:  # it moved, or is gone, since it was put in line
                continue
            watched.due_at = NEVER
            try:
                again = watched.due(self.now)
            except Exception:
                self._on_error()
                again = self.now + AGAIN_SECONDS
            if again is not None:
                self.watch(watched, again)
        if waiting:
            asyncio.get_running_loop().call_soon(self._look)
