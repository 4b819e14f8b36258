"""TLS connections that cost a turn of the event loop no more than others (see `turn`).

uvloop decrypts input when it arrives, before a connection processes the input. A client may send records of a few bytes, which
cost a multiple of their size, and key updates (RFC 8446 §4.6.3), which contain no data at all. uvloop gives OpenSSL up to
256 KiB at once, and up to 32 times in a row while the client keeps up. So this module bounds the decryption:

- A connection decrypts for `SLICE_SECONDS` in a turn, and all connections together for `INPUT_SECONDS`. The rest stays encrypted
  for a later turn. uvloop stops reading a socket while 256 KiB of its input are encrypted.
- A client may send at most `MAX_WITHOUT_DATA` bytes of records without data in a row.
- A client may send at most `MAX_AFTER_CLOSE` bytes after the server has closed the connection. uvloop would decrypt and discard
  them for 30 seconds.

Input of up to `PIECE` bytes is not measured.
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from typing import Any

from push1st.transports.turn import INPUT_SECONDS, SLICE_SECONDS

PIECE = 4096
"""bytes that OpenSSL gets at once"""
MAX_WITHOUT_DATA = 20_480
"""bytes that a client may send without any data in them; a record has 18 KiB at most (RFC 8446 §5.2, RFC 5246 §6.2.3)"""
MAX_AFTER_CLOSE = 262_144
"""bytes that a client may send after the server has closed the connection"""
MAX_RESUMED = round(INPUT_SECONDS / SLICE_SECONDS)
"""connections that continue to decrypt in one turn"""


class Decryption:
    """The time that a worker's TLS connections may decrypt in a turn.

    flooded: counts a client whose connection fails because of a bound. call_soon: of the event loop. clock: seconds that never go
    back.
    """

    def __init__(
        self,
        flooded: Callable[[], None],
        call_soon: Callable[[Callable[[], None]], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.flooded = flooded
        self.clock = clock
        self.turn = 0
        """number of the current turn"""
        self.left = INPUT_SECONDS
        self._call_soon = call_soon
        self._waiting: dict[Records, None] = {}
        self._scheduled = False

    def spend(self, seconds: float) -> None:
        self.left -= seconds
        self._schedule()

    def wait(self, records: "Records") -> None:
        """Adds a connection that continues to decrypt in a later turn, in rotation."""
        self._waiting[records] = None
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._call_soon(self._begin_turn)

    def _begin_turn(self) -> None:
        self._scheduled = False
        self.turn += 1
        self.left = INPUT_SECONDS
        for _ in range(min(MAX_RESUMED, len(self._waiting))):
            records = next(iter(self._waiting))
            del self._waiting[records]
            records.resume()
        if self._waiting:
            self._schedule()


class Records(ssl.SSLObject):
    """A server's side of a TLS connection."""

    _incoming: ssl.MemoryBIO
    _decryption: Decryption
    _transport: asyncio.Transport | None = None
    """whose reading resumes in a later turn; None before the handshake ends, and after the connection is lost"""
    _rest = memoryview(b"")
    """bytes of a slice that OpenSSL gets after those in `_incoming`; `read` waits for the client only when none are left"""
    _start = 0.0
    """beginning of the slice, on the clock; 0: no slice has begun"""
    _turn = -1
    """number of the turn in which the last slice began"""
    _without_data = 0
    _after_close = 0
    _has_failed = False

    def follow(self, incoming: ssl.MemoryBIO, decryption: Decryption) -> None:
        """Begins to count. incoming: the bytes received, which the object reads."""
        self._incoming, self._decryption = incoming, decryption

    def attach(self, transport: asyncio.Transport) -> None:
        """Begins to bound the decryption. transport: decrypts again whenever its reading resumes."""
        self._transport = transport

    def resume(self) -> None:
        """Decrypts the next slice in the next turn."""
        transport = self._transport
        if transport is not None and transport.is_reading():  # otherwise the connection resumes reading later
            transport.pause_reading()
            transport.resume_reading()

    def unread(self, most: int) -> bytes:
        """Returns the data of a connection that is lost which was not read yet, about `most` bytes of it."""
        self._transport = None
        self._start = 0.0
        data = bytearray()
        try:
            while len(data) < most and (piece := self.read(most)):
                data += piece
        except OSError:  # nothing is left, or a record is damaged or incomplete
            pass
        return bytes(data)

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        incoming = self._incoming
        before = incoming.pending
        if before > PIECE:
            self._begin_slice(before)
            self._rest = memoryview(incoming.read())
            before = self._feed()
        while True:
            try:
                data = super().read(len, buffer)
            except ssl.SSLWantReadError:
                self._without_data += before - incoming.pending
                if self._without_data > MAX_WITHOUT_DATA:
                    raise self._fail("too many TLS records without data") from None
                if not self._rest or self._is_over():
                    self._end_slice()
                    raise
                before = self._feed()
            else:
                self._without_data = 0
                if not incoming.pending:  # uvloop reads on while bytes are in `incoming`
                    if self._rest and not self._is_over():
                        self._feed()
                    elif self._start:
                        self._end_slice()
                return data

    def _begin_slice(self, size: int) -> None:
        """Raises SSLWantReadError if this turn has no time for a slice; SSLError if the connection has been closed long ago."""
        decryption, transport = self._decryption, self._transport
        if transport is None:
            return
        if transport.is_closing():
            self._after_close += size
            if self._after_close > MAX_AFTER_CLOSE:
                raise self._fail("too much input after the end of the connection")
            return
        if self._turn == decryption.turn or decryption.left <= 0:
            decryption.wait(self)
            raise ssl.SSLWantReadError
        self._turn = decryption.turn
        self._start = decryption.clock()

    def _is_over(self) -> bool:
        return self._start > 0 and self._decryption.clock() >= self._start + SLICE_SECONDS

    def _end_slice(self) -> None:
        if self._start:
            self._decryption.spend(self._decryption.clock() - self._start)
            self._start = 0.0
            if self._rest:
                self._incoming.write(self._rest)
                self._rest = memoryview(b"")
                self._decryption.wait(self)

    def _fail(self, why: str) -> ssl.SSLError:
        self._rest = memoryview(b"")
        if not self._has_failed:
            self._has_failed = True
            self._decryption.flooded()
        return ssl.SSLError(why)

    def _feed(self) -> int:
        """Gives OpenSSL more bytes; returns how many bytes OpenSSL has not read."""
        self._incoming.write(self._rest[:PIECE])
        self._rest = self._rest[PIECE:]
        return self._incoming.pending
