"""Applies the messages that a fallback session receives by `xhr_send`.

A session applies its messages in slices, as a WebSocket does (`turn.py`). While `MAX_WAITING` commands of the
session wait for the broker or a backend, further messages are queued. The answer to an `xhr_send` waits
until the messages of the request are applied. So a client cannot send messages faster than the worker applies them.
"""

import asyncio
from collections import deque
from typing import Protocol

from push1st.core.session import MAX_WAITING_COMMANDS, Session
from push1st.errors import Refused
from push1st.protocols import Codec
from push1st.transports.handlers import Outcome
from push1st.transports.turn import MAX_WAITING, SLICE_SECONDS, Turn

MAX_MESSAGES_A_SLICE = 32
"""the maximum number of messages in a slice (see `turn`)"""


class InputOwner(Protocol):
    """The fallback session that receives the messages."""

    input: "XhrInput | None"
    is_slow: bool
    """whether the session ends at the end of the turn, and applies no further command"""

    @property
    def codec(self) -> Codec: ...

    def fail(self) -> None:
        """Ends the session, because applying a message raised an unexpected exception."""

    def abort(self) -> None:
        """Ends the session at once."""


class XhrInput:
    """The queue of messages that are not applied yet. The turn processes this queue like a connection (`turn.Connection`)."""

    __slots__ = ("_is_done", "_owner", "_queue", "_session", "_turn")

    def __init__(self, owner: InputOwner, session: Session, turn: Turn, texts: list[str]) -> None:
        self._owner = owner
        self._session = session
        self._turn = turn
        self._queue: deque[str | asyncio.Future[None]] = deque(texts)
        """messages, and futures that are done when all messages before them are applied"""
        self._is_done = False

    def start(self) -> None:
        """Applies a slice of the messages now, and the remaining messages in the next turns."""
        if self.process(b""):
            self._turn.resume(self)

    def add(self, texts: list[str]) -> bool:
        """Adds messages to the queue. Returns whether the queue is longer than its bound."""
        self._queue.extend(texts)
        return len(self._queue) > MAX_WAITING_COMMANDS

    @property
    def is_new(self) -> bool:
        """See `turn.Connection`."""
        return False

    def process(self, data: bytes) -> bool:
        """Applies a slice of the messages; returns whether more messages can be applied now."""
        queue, session = self._queue, self._session
        clock = self._turn.clock
        left, until = MAX_MESSAGES_A_SLICE, clock() + SLICE_SECONDS
        try:
            while queue:
                message = queue.popleft()
                if not isinstance(message, str):
                    _set_done(message)
                    continue
                self._apply(message)
                if session.waiting and len(session.waiting) >= MAX_WAITING:
                    session.is_busy(self._resume)
                    return False
                left -= 1
                if queue and (not left or clock() > until):
                    return True
        except Exception:
            self._owner.fail()
        self.drop()
        return False

    def _apply(self, text: str) -> None:
        session = self._session
        if session.closed or self._owner.is_slow:
            return
        try:
            command = self._owner.codec.decode(text)
        except Refused as refused:
            session.refuse(refused)
        else:
            session.handle(command)

    def _resume(self) -> None:
        if not self._is_done:
            self._turn.resume(self)

    def drop(self) -> None:
        """Discards messages that are not applied, so that answers do not wait for these messages any more."""
        self._is_done = True
        if self._owner.input is self:
            self._owner.input = None
        while self._queue:
            if not isinstance(message := self._queue.popleft(), str):
                _set_done(message)

    async def when_applied(self, outcome: Outcome) -> Outcome:
        """Returns `outcome` when all messages received so far are applied."""
        if not self._is_done:
            applied: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._queue.append(applied)
            await applied
        return outcome

    def keep(self, data: bytes) -> None:
        """Does nothing, because input arrives by `add`."""

    def hold_reading(self, hold: bool) -> None:
        """Does nothing, because answers wait until the messages are applied (`when_applied`)."""

    def abort(self) -> None:
        self._owner.abort()


def _set_done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
