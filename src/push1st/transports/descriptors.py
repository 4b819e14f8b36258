"""Divides the file descriptors of the process between clients, the API and the process itself.

A new descriptor has the lowest number that is free (POSIX open(2)). So the number of an accepted connection shows how many
descriptors are in use, by any part of the process. Clients are served while their descriptors are more than `SPARE` below the
limit. The first quarter of these `SPARE` descriptors is for clients that get an answer and are then disconnected. So `/health`
works, and a rejected client gets a reason. Connections to listeners of the API may use three quarters of the `SPARE`
descriptors. The last quarter of the `SPARE` descriptors is for the process itself: its broker, its hooks, its files.

While less than half of the possible connections exist, the number of a descriptor is not read. The limit of open files is read
each time, because `prlimit` can change it while the process runs.
"""

import os
import resource
from collections.abc import Callable
from typing import Literal

SPARE = 64
"""descriptors below the limit that are reserved; half of all descriptors if the limit is low"""
UNLIMITED = 1 << 20
"""the limit of open files that is assumed if the system has no limit"""

Room = Literal["serve", "answer", "none"]


def file_limit() -> int:
    """Returns the number of descriptors that the process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return UNLIMITED if soft == resource.RLIM_INFINITY else soft


_ANY = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
"""an open descriptor to duplicate: this takes a fifth of the time that opening a file takes"""


def lowest_free() -> int:
    """Returns the number that the next descriptor gets; the limit of open files if no descriptor is free."""
    try:
        number = os.dup(_ANY)
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
        """Counts the open descriptors as the process's own. Must be called when the process listens, and has no connections
        yet.
        """
        self._own = self._lowest()

    def _spare(self, limit: int) -> int:
        return max(0, min(SPARE, (limit - self._own) // 2))

    @property
    def possible(self) -> int:
        """The number of clients that can be connected at the same time."""
        limit = self._limit()
        return max(0, limit - self._own - self._spare(limit))

    @property
    def exhausted(self) -> bool:
        """Whether all descriptors are in use, including those for the process itself."""
        return self._lowest() >= self._limit()

    def room(self, find_number: Callable[[], int], connections: int, api: bool) -> Room:
        """Returns whether a new connection is served, only answered, or rejected.

        find_number: returns the connection's descriptor.
        connections: the number of connections that exist.
        api: whether the connection came to a listener of the API.

        The descriptor is read only if half of the possible connections exist, because uvloop then keeps an object of 72 bytes
        until the connection ends.
        """
        limit = self._limit()
        spare = self._spare(limit)
        if connections * 2 < limit - self._own - spare:
            return "serve"
        number = find_number()
        if number < limit - (spare // 4 if api else spare):
            return "serve"
        return "answer" if not api and number < limit - spare + spare // 4 else "none"

    def has_room_for_last(self, api: bool) -> bool:
        """Returns whether the connection that was accepted last may begin TLS.

        The descriptor of this connection is not known yet, but it is below the lowest free one.
        """
        last = self._lowest() - 1
        return self.room(lambda: last, last, api) != "none"
