"""One turn of the event loop: everything that arrived is read, then worked on, then answered (decision 0004).

A turn also bounds what one connection may cost the others (decision 0013):

- A connection works on a *slice* of what it sent: some frames, or some requests. What is left waits in the backlog.
- A connection with a backlog is not read, so the kernel holds back its client.
- The backlog is worked off in turns of the loop, one slice a connection in rotation. In each turn it gets as much time
  as the other connections took, and `BACKLOG_SECONDS` at least.
- A connection that brings `LONG_READ` bytes at once is not read again before the end of the turn, because the
  event loop would otherwise read on as long as the client keeps up.

This module knows no protocol: what a slice is, a connection decides in `process`.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

BACKLOG_SECONDS = 0.002
"""of each turn for connections that have a backlog, at least"""
LONG_READ = 65_536
"""bytes"""


class Answering(Protocol):
    """A connection with answers to write."""

    def flush(self) -> None: ...

    def abort(self) -> None: ...


class Connection(Protocol):
    """A connection that reads."""

    def process(self, data: bytes) -> bool:
        """Works on one slice of what arrived, `data` last; returns whether more is left."""

    def hold_reading(self, hold: bool) -> None:
        """Stops or resumes reading from the socket. Both may be called twice."""

    def abort(self) -> None: ...


class Turn:
    """A worker's turns.

    clock: seconds that never go back. write: writes what this turn owes to subscribers. failed: logs the exception being handled.
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

        A turn has three phases: all sockets that are ready are read, then all that came is worked on, then all that
        comes of it is written, answers before deliveries. So the interpreter stays in one piece of code without a system
        call between, which is worth half of its time, and a client that waits is woken once. Answers go first so that
        publishers make their next request while the deliveries of this one are written.
        """
        if not self._scheduled:
            self._schedule()
        self._arrived.append((connection, data))
        if len(data) >= LONG_READ:
            connection.hold_reading(True)

    def resume(self, connection: Connection) -> None:
        """Puts a connection into the backlog that can work on again."""
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
        """Works on what arrived so far, before a connection ends."""
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
        """Gives connections of the backlog a slice each, in rotation, until the time is over."""
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
