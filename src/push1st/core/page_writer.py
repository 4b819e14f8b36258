"""Writes the records of pages to the broker. A connection has at most one write at a time, and at most one in each turn.

All changes of a turn are in one record. If the broker is away, the record is written again after `RETRY_SECONDS`.
"""

from collections.abc import Callable, Collection
from math import inf
from typing import Protocol

from push1st.brokers import Pages
from push1st.brokers.pages import PageBounds, PageRecord
from push1st.core.app import App
from push1st.eager import spawn
from push1st.errors import Refused

RETRY_SECONDS = 5


class RecordClient(Protocol):
    """The session of a connection."""

    @property
    def app(self) -> App: ...
    @property
    def id(self) -> str: ...


class RecordOwner(Protocol):
    """The connection of a page."""

    @property
    def client(self) -> "RecordClient": ...
    @property
    def name(self) -> str:
        """The name of the page."""

    @property
    def address(self) -> str:
        """See `PageBounds`."""

    async def record(self, *, closed: bool) -> PageRecord:
        """Returns the present record. Raises Refused(503)."""

    def on_written(self, *, is_rejected: bool) -> None:
        """Called after each write. `is_rejected`: whether the broker has not stored the record, because of a bound."""

    def on_closed(self) -> None:
        """Called after the last write, or when this write has failed."""


class WriterContext(Protocol):
    """The functions and the port that all writers of a worker share."""

    @property
    def port(self) -> Pages: ...

    def call_soon(self, run: Callable[[], None]) -> object:
        """Calls a function at the end of the turn."""

    def monotonic(self) -> float:
        """Returns the time in seconds."""


class RecordWriter:
    """Writes the records of one connection."""

    __slots__ = (
        "_context",
        "_is_begun",
        "_is_closed",
        "_is_dirty",
        "_is_scheduled",
        "_is_writing",
        "_owner",
        "is_stored",
        "merged",
        "write_at",
    )

    def __init__(self, owner: RecordOwner, context: WriterContext, merged: Collection[str]) -> None:
        self._owner = owner
        self._context = context
        self._is_begun = self._is_dirty = self._is_scheduled = self._is_writing = self._is_closed = False
        self.is_stored = False
        """whether the broker has stored a record of this connection"""
        self.merged = merged
        """the earlier connections whose records are deleted with the next write"""
        self.write_at = inf
        """the time at which the record must be written again; infinity before the first write"""

    def soon(self) -> None:
        """Writes the record at the end of this turn."""
        self._is_begun = self._is_dirty = True
        if not self._is_scheduled:
            self._is_scheduled = True
            self._context.call_soon(self._start)

    def changed(self) -> None:
        """Writes the record at the end of this turn, unless `soon` was never called."""
        if self._is_begun:
            self.soon()

    def close(self) -> None:
        """Writes the last record after all earlier writes."""
        self._is_closed = True
        if not self._is_writing:
            spawn(self._close())

    def _start(self) -> None:
        self._is_scheduled = False
        if self._is_dirty and not self._is_writing and not self._is_closed:
            spawn(self._write())

    async def _write(self) -> None:
        self._is_writing = True
        try:
            while self._is_dirty and not self._is_closed:
                self._is_dirty = False
                await self._store(closed=False)
        except Refused:
            self.write_at = self._context.monotonic() + RETRY_SECONDS
            self._owner.on_written(is_rejected=False)
        finally:
            self._is_writing = False
        if self._is_closed:
            await self._close()

    async def _close(self) -> None:
        try:
            if self.is_stored:
                await self._store(closed=True)
        except Refused:
            pass  # then the next connection of the page finds out that this connection has ended
        self._owner.on_closed()
        del self._owner  # it refers to this object; a cycle would keep both until the garbage collector runs

    async def _store(self, *, closed: bool) -> None:
        """Stores the record in the broker. Raises Refused(503)."""
        owner, client = self._owner, self._owner.client
        resume = client.app.config.resume
        if not resume.seconds:
            self.write_at = inf
            return
        record = await owner.record(closed=closed)
        merged = self.merged
        bounds = PageBounds(resume.seconds, resume.pages, owner.address)
        is_stored = await self._context.port.remember(client.app.config.id, owner.name, client.id, record, bounds, merged)
        if is_stored:
            self.is_stored = True
            self.merged = ()
        self.write_at = self._context.monotonic() + resume.seconds / 3
        if not closed:
            owner.on_written(is_rejected=not is_stored)
