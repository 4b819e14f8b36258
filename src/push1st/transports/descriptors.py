"""Divides the file descriptors of the process between clients, the API and the process itself.

A new descriptor has the lowest free number (POSIX open(2)). So the descriptor of a new connection shows how many descriptors the
whole process uses. The last `SPARE` descriptors below the limit are reserved:

- A client whose descriptor is in the first quarter of the reserved descriptors gets an answer, for example to `/health`, and is
  then disconnected.
- Connections to the API may use the first three quarters of the reserved descriptors.
- The last quarter of the reserved descriptors is for the process itself: its files, its connections to the broker, and
  the connections and child processes of its hooks.

The limit of open files is read for each new connection, because `prlimit` can change this limit while the process runs.
"""

import os
import resource
from collections.abc import Callable
from typing import Literal

SPARE = 64
"""maximum number of reserved descriptors; of the descriptors that the process itself does not use, at most half are reserved"""
UNLIMITED = 1 << 20
"""number of open files that the worker assumes as the limit if the operating system sets no limit"""

Room = Literal["serve", "answer", "none"]


def file_limit() -> int:
    """Returns the limit of open files, which is the number of descriptors that the process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return UNLIMITED if soft == resource.RLIM_INFINITY else soft


_ANY = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
"""an open descriptor that `lowest_free` duplicates, because `dup` takes a fifth of the time of opening a file"""


def lowest_free() -> int:
    """Returns the number of the next new descriptor; the limit of open files if no descriptor is free."""
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
        """Counts the descriptors of the process itself.

        Must be called after the process begins to listen, and before the process accepts connections.
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
        """Returns whether a new connection is served ("serve"), answered and closed ("answer"), or closed at once ("none").

        find_number: a function that returns the descriptor of the connection.
        connections: the number of open connections of the worker.
        api: whether the connection is on a listener of the API.

        This method calls `find_number` only if at least half of the possible connections are open, because the call makes uvloop
        keep 72 bytes until the connection ends.
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
        """Returns whether the newest connection may begin its TLS handshake.

        The descriptor of the newest connection is not known yet, but is lower than the lowest free descriptor. So this method
        uses the number below the lowest free descriptor.
        """
        last = self._lowest() - 1
        return self.room(lambda: last, last, api) != "none"
