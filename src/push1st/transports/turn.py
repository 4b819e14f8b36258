"""In each turn of the event loop the worker reads all input, then processes this input, then writes the answers (decision 0004).

A turn bounds the time that one connection may use (decision 0013):

- A connection processes one *slice* of its input in a turn: some frames, or some requests. The remaining input is the backlog of
  the connection.
- The worker does not read from a connection with a backlog, so the kernel slows down the client.
- In each turn, connections with a backlog process one slice each, in rotation. All backlogs together get the same time as the
  new input of the turn, but never less than `BACKLOG_SECONDS`.
- The worker does not read from a connection again in the same turn after a read of at least `LONG_READ` bytes. Without
  this rule the event loop would continue to read from a client that sends fast. All input of a long read becomes a backlog.

All connections together process new input for at most `INPUT_SECONDS` in a turn. The next turns process the remaining input
before newer input. So a turn stays short even if thousands of clients flood the worker at the same time.

The first input of a connection, such as a handshake, takes as much time as many messages. So the first inputs for which a turn
has no time wait in a queue of their own: while thousands of clients reconnect, messages of connected clients need not wait.
The newest connection comes first, because a client gives up after some seconds: with the oldest first, each client would be
served when it gives up, and none would stay connected.

A client may send input, and then close its socket. The worker still processes the backlog of such a lost connection, and discards
the answers (`lost.py`).

This module does not depend on a protocol: each connection's method `process` defines the slices of its protocol.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

SLICE_SECONDS = 0.001
"""maximum seconds of a slice; a maximum number of messages is not enough, because one subscribe may take as long as 1000 pings"""
MAX_WAITING = 100
"""number of a session's commands; while so many commands wait for the broker or a backend, its connection processes no message"""
NEW_SECONDS = 0.005
"""minimum seconds in each turn for the waiting first inputs of all new connections together"""
BACKLOG_SECONDS = 0.002
"""minimum seconds that all backlogs together get in each turn"""
INPUT_SECONDS = 0.01
"""maximum seconds in which a turn processes new input; the worker reads the clock after every `ROUND` connections"""
ROUND = 16
LONG_READ = 65_536
"""minimum bytes of a long read; after a long read, the worker does not read from the connection again in the same turn"""
MAX_BACKLOGS = 1000
"""while at least `MAX_BACKLOGS` connections have a backlog, the worker discards the input of each connection that gets lost"""


class Answering(Protocol):
    """A connection with answers to write."""

    def flush(self) -> None: ...

    def abort(self) -> None: ...


class Connection(Protocol):
    """A connection whose input a turn processes."""

    @property
    def is_new(self) -> bool:
        """Whether the next input is the first one. Called only if a turn has no time for all input."""

    def process(self, data: bytes) -> bool:
        """Processes one slice of the earlier input and of `data`, the newest input; returns whether some input remains."""

    def keep(self, data: bytes) -> None:
        """Stores `data` as input for a later call of `process`."""

    def hold_reading(self, hold: bool) -> None:
        """Stops or resumes reading from the socket. Repeated calls with the same argument are allowed."""

    def abort(self) -> None: ...


class Turn:
    """The turns of a worker.

    clock: a function that returns the seconds of a monotonic clock.
    write: a function that writes the deliveries of this turn.
    failed: a function that logs the current exception with its trace.
    """

    def __init__(self, clock: Callable[[], float], write: Callable[[], None], failed: Callable[[str], None]) -> None:
        self.clock = clock
        self._write = write
        self._failed = failed
        self._scheduled = False
        self._arrived: list[tuple[Connection, bytes]] = []
        self._late: OrderedDict[Connection, None] = OrderedDict()
        """connections with new input that an earlier turn had no time to process"""
        self._new: OrderedDict[Connection, None] = OrderedDict()
        """new connections whose first input an earlier turn had no time to process"""
        self._backlog: OrderedDict[Connection, None] = OrderedDict()
        self._spent = 0.0
        """seconds in which `catch_up` has already processed new input of this turn, before the call of `_run`"""
        self.answering: list[Answering] = []
        """connections that write their answers in the last phase of this turn"""

    def arrived(self, connection: Connection, data: bytes) -> None:
        """Keeps new input of a connection until the turn has read all sockets.

        A turn has three phases: it reads all sockets that are ready, processes all input, and writes all answers and deliveries.
        So the interpreter runs the same code many times without a system call in between, which halves the processing time. A
        client that waits for several answers receives them together. The worker writes the answers before the deliveries, so that
        publishers send their next requests while the worker writes the deliveries.
        """
        if not self._scheduled:
            self._schedule()
        self._arrived.append((connection, data))
        if len(data) >= LONG_READ:
            connection.hold_reading(True)

    def resume(self, connection: Connection) -> None:
        """Schedules the next slice of a connection that has a backlog and can process further input."""
        self._backlog[connection] = None
        if not self._scheduled:
            self._schedule()

    def _schedule(self) -> None:
        self._scheduled = True
        asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        self._scheduled = False
        spent, self._spent = self._spent, 0.0
        if self._backlog or self._late or self._new or spent:
            start = self.clock()
            until = start + INPUT_SECONDS - spent
            if self._late:
                self._work_off(self._late, until)
            self._work(until)
            now = self.clock()
            if self._new:
                self._work_off(self._new, max(until, now + NEW_SECONDS), is_newest_first=True)
                now = self.clock()
            if self._backlog:
                self._work_off(self._backlog, now + max(BACKLOG_SECONDS, now - start))
        else:
            self._work(0.0)
        self._finish()
        if (self._backlog or self._late or self._new) and not self._scheduled:
            self._schedule()

    def catch_up(self) -> None:
        """Processes all input of this turn before a connection ends. Input for which the turn has no time becomes a backlog."""
        if self._spent >= INPUT_SECONDS:
            arrived, self._arrived = self._arrived, []
            self._postpone(arrived)
        elif self._arrived:
            start = self.clock()
            self._work(start + INPUT_SECONDS - self._spent)
            self._spent += self.clock() - start
        self._finish()

    @property
    def has_crowd(self) -> bool:
        """Whether the first input of new connections waits."""
        return bool(self._new)

    def keeps_lost(self) -> bool:
        """Returns whether lost connections keep their backlogs: only while fewer than `MAX_BACKLOGS` connections have one."""
        return len(self._backlog) + len(self._late) < MAX_BACKLOGS

    def _work(self, until: float) -> None:
        """Processes a slice of each connection's new input. Postpones all input that is not reached before the time `until`.

        until: a time in seconds of the clock; 0 stands for `INPUT_SECONDS` from now.
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
            waiting = self._new if connection.is_new else self._late
            (self._backlog if len(data) >= LONG_READ else waiting)[connection] = None

    def _work_off(self, connections: OrderedDict[Connection, None], until: float, is_newest_first: bool = False) -> None:
        """Lets each connection in `connections` process a slice, in rotation, until the time `until`."""
        while connections:
            connection, _ = connections.popitem(last=is_newest_first)  # after many removals, a `dict` finds its first key slowly
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
        self._new.pop(connection, None)
        connection.abort()

    def _finish(self) -> None:
        """Writes the answers, and then the deliveries."""
        answering, self.answering = self.answering, []
        for one in answering:
            try:
                one.flush()
            except Exception:
                self._failed("answer")
                one.abort()
        self._write()
