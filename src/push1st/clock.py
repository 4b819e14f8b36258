"""The clock, as an argument of everything that needs the time."""

from typing import Protocol


class Clock(Protocol):
    """`process.server.SystemClock` in a worker; a clock that tests move in tests."""

    def monotonic(self) -> float:
        """Returns seconds that never go back."""

    def wall(self) -> int:
        """Returns nanoseconds since 1970."""
