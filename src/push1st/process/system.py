"""Functions of the operating system and of asyncio: clock, random numbers, turns of the event loop, limit of open files."""

import asyncio
import os
import resource
import time
from collections.abc import Callable
from contextlib import suppress


class SystemClock:
    """The clock of a worker (`clock.Clock`)."""

    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time_ns)


class Random:
    """Generates unpredictable numbers for session ids. Reads many bytes at once from the system, because each read takes time."""

    BYTES = 4096

    def __init__(self) -> None:
        self._bytes = b""
        self._at = 0

    def bits(self, count: int) -> int:
        """Returns a random number of `count` bits. `count` is at most 8 × `BYTES`."""
        size = (count + 7) // 8
        start, self._at = self._at, self._at + size
        if self._at > len(self._bytes):
            self._bytes, start, self._at = os.urandom(self.BYTES), 0, size
        return int.from_bytes(self._bytes[start : start + size], "big") >> size * 8 - count


class DeferTwoTurns:
    """Calls functions two turns of the event loop later, so an API request is answered before its event is delivered.

    The answer to a request that waits for the broker is sent one turn after the broker's confirmation (decision 0004).
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.call_later = loop.call_later

    def call_soon(self, run: Callable[[], None]) -> None:
        self._loop.call_soon(self._loop.call_soon, run)


def raise_file_limit() -> None:
    """Raises the limit of open files to the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # some systems report the limit "unlimited", but reject this value
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
