"""Which connections there are file descriptors for.

The kernel gives the lowest free number to a new descriptor (POSIX open(2)), so the number of an accepted connection says
how many are in use, by whatever part of the process. Clients stop `SPARE` numbers below the limit. The next quarter of
these is for clients that are answered and sent away, so that `/health` works and a refusal has words; two further quarters
are for the API's listeners, and the last one for the process itself: its broker, its hooks, its files.

The limit is read each time: `prlimit` changes it while the process runs.
"""

import os
import resource
from collections.abc import Callable
from typing import Literal

SPARE = 64
"""descriptors below the limit that clients leave alone, or half of all there are if that is less"""
UNLIMITED = 1 << 20
"""a limit that some systems call infinite"""

Room = Literal["serve", "answer", "none"]


def file_limit() -> int:
    """How many descriptors the process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return UNLIMITED if soft == resource.RLIM_INFINITY else soft


def lowest_free() -> int:
    """The number of the next descriptor; the limit when there is none."""
    try:
        number = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return file_limit()
    os.close(number)
    return number


class Descriptors:
    """The worker's descriptors."""

    __slots__ = ("_limit", "_lowest", "_own")

    def __init__(self, limit: Callable[[], int] = file_limit, lowest: Callable[[], int] = lowest_free) -> None:
        self._limit = limit
        self._lowest = lowest
        self.count_own()

    def count_own(self) -> None:
        """Counts what is open as the process's own: to be called when it listens, and has no connections yet."""
        self._own = self._lowest()

    def _spare(self, limit: int) -> int:
        return max(0, min(SPARE, (limit - self._own) // 2))

    @property
    def possible(self) -> int:
        """How many clients may be connected."""
        limit = self._limit()
        return max(0, limit - self._own - self._spare(limit))

    def room(self, number: int, api: bool) -> Room:
        """What becomes of a connection with this number. api: whether it came to a listener of the API."""
        limit = self._limit()
        spare = self._spare(limit)
        if number < limit - (spare // 4 if api else spare):
            return "serve"
        return "answer" if not api and number < limit - spare + spare // 4 else "none"

    def has_room_for_last(self, api: bool) -> bool:
        """Whether the connection that was just accepted may begin TLS. Its number is below the lowest that is still free."""
        return self.room(self._lowest() - 1, api) != "none"
