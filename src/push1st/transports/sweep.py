"""One timer for all deadlines and keepalives of a worker (invariant 6).

The sweep has a table of connections by the second of their next deadline. At that second the sweep calls `due` of the
connection, which returns the time of the next call. Activity of a client only sets a time in its connection. So an idle
connection costs one call in each activity timeout, and has no timer of its own.

The sweep enforces a deadline only after the server has read all bytes that clients sent in time. So the event loop reads all
sockets between the tick of the timer and the calls of `due`. If the process did not run for some time (stopped, swapped out,
starved), the next tick calls no `due`.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from math import ceil
from typing import Protocol

LOOKS = 1000
"""calls of `due` in one turn of the event loop"""
AGAIN_SECONDS = 10
"""time until `due` of a connection is called again after it raised an exception"""
NEVER = 1 << 62
LATE_SECONDS = 2
"""time between two ticks; if it is longer, the process did not run in between"""
READ_TURNS = 3
"""turns of the event loop from a tick until all input is processed: the rest of the timer's turn, one to read, one to process"""


class Watched(Protocol):
    due_at: int
    """the second of the next call of `due`; set by the sweep only, and NEVER at first"""

    def due(self, now: float) -> float | None:
        """Does whatever is due; returns the time of the next call, in seconds on the sweep's clock; None for no further call."""


class Sweep:
    """A worker's sweep.

    clock: seconds that never go back. each_second: called at each tick. on_error: called in the handler of an exception.

    `now`: the time of the last tick, for deadlines that need no better resolution.
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
        """Calls `due` of `watched` at the time `at`, which replaces the time set before."""
        self.forget(watched)
        second = max(ceil(at), self._done + 1)
        watched.due_at = second
        bucket = self._buckets.get(second)
        if bucket is None:
            bucket = self._buckets[second] = {}
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
        self._was_late = self.now - before >= LATE_SECONDS and not self._was_late
        if self._was_late:  # never at two ticks in a row, because a slow process may be late at each tick
            self._each_second()
        else:
            self._after(READ_TURNS)

    def _after(self, turns: int) -> None:
        if turns:
            asyncio.get_running_loop().call_soon(self._after, turns - 1)
        else:
            self.run()

    def run(self) -> None:
        """Calls `due` of all connections whose second has passed, at most `LOOKS` of them in a turn of the event loop."""
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
            if watched.due_at > self._done:  # its time was changed, or it was removed, in the meantime
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
