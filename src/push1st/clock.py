"""The interface of the clock. Code that needs the time gets the clock as an argument, so that tests can set the time."""

from typing import Protocol


class Clock(Protocol):
    """Returns the time. The clock of a worker is `process.system.SystemClock`."""

    def monotonic(self) -> float:
        """Returns the time in seconds from an arbitrary start; this time never goes back."""

    def wall(self) -> int:
        """Returns the time in nanoseconds since 1970."""
