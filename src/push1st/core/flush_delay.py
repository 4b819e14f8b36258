"""Measures the delay of a sample of the flushes, without an instruction in the code of deliveries.

The delay is the time from the first pending frame of a flush to the last write of the flush. To measure a flush, this module
replaces the function `Fanout.call_soon` until the next frame becomes pending, and then waits for `Fanout.after_flush`. So a flush
that is not measured reads no clock. Two readings of the clock in each flush took 1.5 % of the instructions of a publish.
"""

from collections.abc import Callable

from push1st.core.fanout import Fanout
from push1st.metrics import Histogram

MAX_SECONDS = 1.0
"""the seconds after which a flush that is not finished counts, so that a worker that never catches up is visible"""


class FlushDelay:
    """See the module. `seconds`: the histogram of the delays."""

    __slots__ = ("_call_soon", "_fanout", "_is_armed", "_monotonic", "_seconds", "_since")

    def __init__(self, fanout: Fanout, monotonic: Callable[[], float], seconds: Histogram) -> None:
        self._fanout = fanout
        self._call_soon = fanout.call_soon
        self._monotonic = monotonic
        self._seconds = seconds
        self._is_armed = False
        self._since = 0.0
        """when the first frame of the measured flush became pending; 0 before"""

    def arm(self) -> None:
        """Measures the next flush, unless a flush is being measured. Its frames must not be pending yet.

        A flush whose first frame is a direct frame is not measured.
        """
        if not self._is_armed:
            self._is_armed = True
            if self._fanout.has_lanes:
                self._fanout.after_flush.append(self._install)
            else:
                self._install()

    def tick(self) -> None:
        """Measures a flush, and counts a measured flush that is not finished. Called once a second.

        If another function that waited for the measured flush has raised an exception, the measurement ends without a result.
        """
        if self._since and not self._fanout.has_lanes:
            self._is_armed, self._since = False, 0.0
        if self._since and self._monotonic() - self._since >= MAX_SECONDS:
            self._seconds.observe(self._monotonic() - self._since)
        self.arm()

    def _install(self) -> None:
        self._fanout.call_soon = self._begin

    def _begin(self, run: Callable[[], None]) -> object:
        """Called in place of `Fanout.call_soon`: begins the measurement if the first pending frame is the frame of a lane."""
        fanout = self._fanout
        fanout.call_soon = self._call_soon
        if fanout.has_lanes:
            self._since = self._monotonic()
            fanout.after_flush.append(self._end)
        else:  # only direct frames are pending
            self._is_armed = False
        return self._call_soon(run)

    def _end(self) -> None:
        if self._since:  # `tick` has not ended the measurement
            self._seconds.observe(self._monotonic() - self._since)
            self._is_armed, self._since = False, 0.0
