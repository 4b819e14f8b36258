"""One turn of the event loop: reads all input, then processes it, then writes the answers (decision 0004).

A turn also bounds what one connection may cost the others (decision 0013):

- A connection processes a *slice* of its input: some frames, or some requests. The rest is the connection's backlog.
- The worker does not read a connection with a backlog, so the kernel slows down its client.
- In each turn connections with a backlog process one slice each, in rotation. They get as much time as the new input of the
  turn took, and `BACKLOG_SECONDS` at least.
- The worker does not read a connection again in the same turn if the last read returned `LONG_READ` bytes or more. Otherwise
  the event loop would read on as long as the client keeps up.

This module knows no protocol: the connection's `process` decides what a slice is.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

BACKLOG_SECONDS = 0.002
"""least time of each turn for connections that have a backlog"""
LONG_READ = 65_536
"""bytes of a read after which a connection is not read again in the same turn"""


class Answering(Protocol):
    """A connection with answers to write."""

    def flush(self) -> None: ...

    def abort(self) -> None: ...


class Connection(Protocol):
    """A connection that reads."""

    def process(self, data: bytes) -> bool:
        """Processes one slice of the input, which ends with `data`; returns whether input is left."""

    def hold_reading(self, hold: bool) -> None:
        """Stops or resumes reading from the socket. Both may be called twice."""

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
        self._backlog: dict[Connection, None] = {}
        self.answering: list[Answering] = []
        """connections that write their answers in this turn's last phase"""

    def arrived(self, connection: Connection, data: bytes) -> None:
        """Keeps bytes of a connection for the end of the turn.

        A turn has three phases: it reads all sockets that are ready, processes all input, and writes all output, answers before
        deliveries. So the interpreter runs the same code many times without a system call in between, which halves its time, and
        a waiting client is woken once. Answers come first so that publishers send their next request while the deliveries of
        this one are written.
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
        if self._backlog:
            start = self.clock()
            self._work()
            now = self.clock()
            self._work_off(now + max(BACKLOG_SECONDS, now - start))
        else:
            self._work()
        self._finish()

    def catch_up(self) -> None:
        """Processes the input so far, before a connection ends."""
        self._work()
        self._finish()

    def _work(self) -> None:
        arrived, self._arrived = self._arrived, []
        for connection, data in arrived:
            try:
                if connection.process(data):
                    connection.hold_reading(True)
                    self.resume(connection)
                elif len(data) >= LONG_READ:
                    connection.hold_reading(False)
            except Exception:
                self._abandon(connection)

    def _work_off(self, until: float) -> None:
        """Lets each connection of the backlog process a slice, in rotation, until the time `until`."""
        backlog = self._backlog
        while backlog:
            connection = next(iter(backlog))
            del backlog[connection]
            try:
                if connection.process(b""):
                    backlog[connection] = None
                else:
                    connection.hold_reading(False)
            except Exception:
                self._abandon(connection)
            if self.clock() >= until:
                break
        if backlog and not self._scheduled:
            self._schedule()

    def _abandon(self, connection: Connection) -> None:
        self._failed("connection")
        self._backlog.pop(connection, None)
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
