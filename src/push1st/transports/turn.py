"""One turn of the event loop: reads all input, then processes it, then writes the answers (decision 0004).

A turn also bounds the time that one connection takes from all others (decision 0013):

- A connection processes one *slice* of its input in a turn: some frames, or some requests. The rest of its input is the
  connection's backlog.
- The worker does not read a connection with a backlog, so the kernel slows down its client.
- In each turn connections with a backlog process one slice each, in rotation. All backlogs together get as much time as the new
  input of the turn took, and `BACKLOG_SECONDS` at least.
- The worker does not read a connection again in the same turn if the last read returned `LONG_READ` bytes or more. Otherwise
  the event loop would continue to read from a client that sends fast. The whole input of such a read is a backlog.

A turn bounds all connections together, too: it processes new input for `INPUT_SECONDS`. The next turns process the remaining
input before newer input. So a turn stays short if thousands of clients flood the worker at once.

A client may send input, and then close its socket. A lost connection still processes its backlog, and its answers are discarded
(`lost.py`).

This module knows no protocol: the connection's `process` decides what a slice is.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

SLICE_SECONDS = 0.001
"""time of a slice, at most; the number of its messages has a bound too, but a join may take 1000 times as long as a ping"""
MAX_WAITING = 100
"""commands that may wait for a broker or for an app's backend; with more of them, a connection processes no messages"""
BACKLOG_SECONDS = 0.002
"""time of each turn for connections that have a backlog, at least"""
INPUT_SECONDS = 0.01
"""time of each turn for new input; the clock is read after each `ROUND` of connections"""
ROUND = 16
LONG_READ = 65_536
"""bytes of a read after which a connection is not read again in the same turn"""
MAX_BACKLOGS = 1000
"""connections that may have a backlog; with more of them, the backlog of a lost connection is discarded"""


class Answering(Protocol):
    """A connection with answers to write."""

    def flush(self) -> None: ...

    def abort(self) -> None: ...


class Connection(Protocol):
    """A connection that reads."""

    def process(self, data: bytes) -> bool:
        """Processes one slice of the input; returns whether input is left. data: the newest part of the input."""

    def keep(self, data: bytes) -> None:
        """Stores `data` as input for a later `process`."""

    def hold_reading(self, hold: bool) -> None:
        """Stops or resumes reading from the socket. Two calls with the same argument are allowed."""

    def abort(self) -> None: ...


class Turn:
    """A worker's turns.

    clock: seconds that never go back. write: writes this turn's deliveries. failed: logs the exception being handled.
    """

    def __init__(self, clock: Callable[[], float], write: Callable[[], None], failed: Callable[[str], None]) -> None:
        self.clock = clock
        self._write = write
        self._failed = failed
        self._scheduled = False
        self._arrived: list[tuple[Connection, bytes]] = []
        self._late: dict[Connection, None] = {}
        """connections whose new input an earlier turn had no time for"""
        self._backlog: dict[Connection, None] = {}
        self._spent = 0.0
        """seconds that new input has already taken in this turn, before `_run`"""
        self.answering: list[Answering] = []
        """connections that write their answers in this turn's last phase"""

    def arrived(self, connection: Connection, data: bytes) -> None:
        """Keeps new input of a connection until the turn has read all sockets.

        A turn has three phases: it reads all sockets that are ready, processes all input, and writes all output, answers before
        deliveries. So the interpreter runs the same code many times without a system call in between, which halves the time. A
        client that waits for several answers is woken once. Answers come first so that publishers send their next request while
        the deliveries of this one are written.
        """
        if not self._scheduled:
            self._schedule()
        self._arrived.append((connection, data))
        if len(data) >= LONG_READ:
            connection.hold_reading(True)

    def resume(self, connection: Connection) -> None:
        """Adds a connection to the backlog when it can process more of its input."""
        self._backlog[connection] = None
        if not self._scheduled:
            self._schedule()

    def _schedule(self) -> None:
        self._scheduled = True
        asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        self._scheduled = False
        spent, self._spent = self._spent, 0.0
        if self._backlog or self._late or spent:
            start = self.clock()
            until = start + INPUT_SECONDS - spent
            if self._late:
                self._work_off(self._late, until)
            self._work(until)
            now = self.clock()
            if self._backlog:
                self._work_off(self._backlog, now + max(BACKLOG_SECONDS, now - start))
        else:
            self._work(0.0)
        self._finish()
        if (self._backlog or self._late) and not self._scheduled:
            self._schedule()

    def catch_up(self) -> None:
        """Processes the input so far, before a connection ends. Input becomes a backlog if the turn has no time for it."""
        if self._spent >= INPUT_SECONDS:
            arrived, self._arrived = self._arrived, []
            self._postpone(arrived)
        elif self._arrived:
            start = self.clock()
            self._work(start + INPUT_SECONDS - self._spent)
            self._spent += self.clock() - start
        self._finish()

    def keeps_lost(self) -> bool:
        """Returns whether a lost connection may still process the input that arrived before the loss."""
        return len(self._backlog) + len(self._late) < MAX_BACKLOGS

    def _work(self, until: float) -> None:
        """Processes a slice of each connection's new input, and postpones the rest when the time is over.

        until: a time on the clock; 0 means `INPUT_SECONDS` from now.
        """
        arrived, self._arrived = self._arrived, []
        if len(arrived) <= ROUND:
            self._process(arrived)
            return
        until = until or self.clock() + INPUT_SECONDS
        for at in range(0, len(arrived), ROUND):
            if at and self.clock() >= until:
                self._postpone(arrived[at:])
                return
            self._process(arrived[at : at + ROUND])

    def _process(self, arrived: list[tuple[Connection, bytes]]) -> None:
        for connection, data in arrived:
            try:
                if len(data) >= LONG_READ:
                    connection.keep(data)
                    self.resume(connection)
                elif connection.process(data):
                    connection.hold_reading(True)
                    self.resume(connection)
            except Exception:
                self._abandon(connection)

    def _postpone(self, arrived: list[tuple[Connection, bytes]]) -> None:
        for connection, data in arrived:
            connection.hold_reading(True)
            connection.keep(data)
            (self._backlog if len(data) >= LONG_READ else self._late)[connection] = None

    def _work_off(self, connections: dict[Connection, None], until: float) -> None:
        """Lets each of these connections process a slice, in rotation, until the time `until`."""
        while connections:
            connection = next(iter(connections))
            del connections[connection]
            try:
                if connection.process(b""):
                    self._backlog[connection] = None
                else:
                    connection.hold_reading(False)
            except Exception:
                self._abandon(connection)
            if self.clock() >= until:
                break

    def _abandon(self, connection: Connection) -> None:
        self._failed("connection")
        self._backlog.pop(connection, None)
        self._late.pop(connection, None)
        connection.abort()

    def _finish(self) -> None:
        """Writes answers, then deliveries."""
        answering, self.answering = self.answering, []
        for one in answering:
            try:
                one.flush()
            except Exception:
                self._failed("answer")
                one.abort()
        self._write()
