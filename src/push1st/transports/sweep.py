"""Checks all deadlines and keepalives of a worker with one timer (ARCHITECTURE.md, invariant 6).

The sweep has a table of connections. The key of this table is the next deadline in whole seconds. At the deadline the sweep
calls the method `due` of the connection, which returns the time of the next call. When a client sends input, the connection only
stores the time of the input. So an idle connection costs one call of `due` per activity timeout, and has no timer of its own.

The sweep enforces a deadline only after the server has read all bytes that clients sent before the deadline. So the event loop
reads all sockets between the tick of the timer and the calls of `due`. If the process did not run for some time (because it was
stopped, swapped out or starved), the next tick does not call `due`.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from math import ceil
from typing import Protocol

from push1st.metrics import Histogram

LOOK_SECONDS = 0.005
"""the seconds after which a turn of the event loop calls no further `due`, because `due` may end a session"""
AGAIN_SECONDS = 10
"""seconds from an exception in a connection's method `due` to the next call of this method"""
NEVER = 1 << 62
LATE_SECONDS = 2
"""seconds; if two ticks are at least so far apart, the sweep assumes that the process did not run in the meantime"""
READ_TURNS = 3
"""turns of the event loop from a tick until all input is processed: one for the tick, one for reading, and one for processing"""


class Watched(Protocol):
    due_at: int
    """the time of the next call of `due`, in whole seconds; only the sweep sets this time; the first value is `NEVER`"""

    def due(self, now: float) -> float | None:
        """Enforces the connection's deadlines; returns the time of the next call, or None if no call must follow."""


class Deadline(dict[Watched, None]):
    """The connections with the same deadline. second: the deadline. All these connections share one integer, to save memory."""

    __slots__ = ("second",)

    def __init__(self, second: int) -> None:
        super().__init__()
        self.second = second


class Sweep:
    """The sweep of a worker.

    clock: a function that returns the seconds of a monotonic clock.
    on_error: a function that the sweep calls while it handles an exception that `due` raised.
    each_second: a function that the sweep calls at each tick.
    lag: the seconds by which each tick was late; the event loop was busy for this time.
    now: the time of the newest tick, for deadlines that do not need an exact time.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        on_error: Callable[[], None],
        each_second: Callable[[], None],
        lag: Histogram | None = None,
    ) -> None:
        self._clock = clock
        self._lag = lag or Histogram()
        self._each_second = each_second
        self._on_error = on_error
        self._buckets: dict[int, Deadline] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.now = clock()
        self._tick_at = self.now + 1
        self.late = 0.0
        """the seconds by which the last tick was late"""
        self._done = int(self.now)
        self._waiting: deque[Watched] = deque()
        self._was_late = False

    def start(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(1, self._tick)
        self._tick_at = self._clock() + 1

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def watch(self, watched: Watched, at: float) -> None:
        """Schedules the next call of the method `due` of `watched` at the time `at`, and cancels the call scheduled before."""
        self.forget(watched)
        second = max(ceil(at), self._done + 1)
        bucket = self._buckets.get(second)
        if bucket is None:
            bucket = self._buckets[second] = Deadline(second)
        watched.due_at = bucket.second
        bucket[watched] = None

    def forget(self, watched: Watched) -> None:
        """Removes `watched` from the table."""
        bucket = self._buckets.get(watched.due_at)
        if bucket is not None:
            bucket.pop(watched, None)
        watched.due_at = NEVER

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(1, self._tick)
        before, self.now = self.now, self._clock()
        self.late = max(0.0, self.now - self._tick_at)
        self._lag.observe(self.late)
        self._tick_at = self.now + 1
        self._was_late = self.now - before >= LATE_SECONDS and not self._was_late
        if self._was_late:  # the next tick always calls `due`, because each tick of a slow process may be late
            self._each_second()
        else:
            self._after(READ_TURNS)

    def _after(self, turns: int) -> None:
        if turns:
            asyncio.get_running_loop().call_soon(self._after, turns - 1)
        else:
            self.run()

    def run(self) -> None:
        """Calls `due` of each connection whose deadline has come, for about `LOOK_SECONDS` in a turn of the event loop."""
        self.now = self._clock()
        while self._done < int(self.now):
            self._done += 1
            self._waiting.extend(self._buckets.pop(self._done, ()))
        self._each_second()
        self._look()

    def _look(self) -> None:
        waiting, until = self._waiting, self._clock() + LOOK_SECONDS
        while waiting and self._clock() < until:
            watched = waiting.popleft()
            if watched.due_at > self._done:  # the time of the next call has changed, or the connection was removed
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
