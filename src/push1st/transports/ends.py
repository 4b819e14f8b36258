"""Bounds the time in which a turn of the event loop ends the sessions of lost connections.

Thousands of connections may be lost in one turn, and one session may have a thousand subscriptions. So a turn ends sessions for
about `TURN_SECONDS`, and further sessions end in later turns. Until then they stay subscribed, and a session that outlives its
connection keeps its messages.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

TURN_SECONDS = 0.005
"""the seconds after which a turn begins no further piece of work"""


class TurnWork:
    """Spreads work over turns of the event loop: a turn works for about `TURN_SECONDS`, and the rest waits for later turns.

    clock: a function that returns the seconds of a monotonic clock.
    work_off: a function that does the piece of work that has waited longest. Returns false if no piece can be done.
    """

    __slots__ = ("_clock", "_is_scheduled", "_spent", "_work_off")

    def __init__(self, clock: Callable[[], float], work_off: Callable[[], bool]) -> None:
        self._clock = clock
        self._work_off = work_off
        self._spent = 0.0
        """the seconds in which this turn has worked"""
        self._is_scheduled = False

    @property
    def has_time(self) -> bool:
        """Whether this turn may do another piece of work."""
        return self._spent < TURN_SECONDS

    def do(self, piece: Callable[[], object]) -> None:
        """Does a piece of work in this turn."""
        start = self._clock()
        try:
            piece()
        finally:
            self._spent += self._clock() - start

    def schedule(self) -> None:
        """Continues in the next turn."""
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._begin_turn)

    def _begin_turn(self) -> None:
        self._is_scheduled = False
        self._spent = 0.0
        while self.has_time:
            if not self._work_off():
                return
        self.schedule()


class LostConnection(Protocol):
    """A connection whose client has closed the socket, or whose socket is lost."""

    def finish(self) -> None:
        """Ends the session of the connection, unless it has already ended."""


class Ends:
    """The lost connections of a worker.

    clock: a function that returns the seconds of a monotonic clock.
    failed: a function that logs the current exception with its trace.
    """

    __slots__ = ("_failed", "_turns", "_waiting")

    def __init__(self, clock: Callable[[], float], failed: Callable[[str], None]) -> None:
        self._failed = failed
        self._turns = TurnWork(clock, self._work_off)
        self._waiting: OrderedDict[LostConnection, None] = OrderedDict()
        """the connections whose sessions end in later turns; finding the first key of a `dict` visits all removed ones"""

    def add(self, connection: LostConnection) -> bool:
        """Ends the session of a lost connection. Returns false if the session ends in a later turn."""
        is_late = bool(self._waiting) or not self._turns.has_time
        if is_late:
            self._waiting[connection] = None
        else:
            self._finish(connection)
        self._turns.schedule()
        return not is_late

    def hasten(self, connection: LostConnection) -> bool:
        """Ends the session of a connection now if the connection waits. Returns whether the connection waited."""
        if connection not in self._waiting:
            return False
        del self._waiting[connection]
        self._finish(connection)
        return True

    def finish(self) -> None:
        """Ends the sessions of all connections that wait."""
        while self._waiting:
            self.hasten(next(iter(self._waiting)))

    def _finish(self, connection: LostConnection) -> None:
        try:
            self._turns.do(connection.finish)
        except Exception:
            self._failed("connection")

    def _work_off(self) -> bool:
        return bool(self._waiting) and self.hasten(next(iter(self._waiting)))
