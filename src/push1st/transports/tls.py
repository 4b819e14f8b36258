"""Bounds how long TLS connections decrypt input in each turn of the event loop (see `turn`).

uvloop decrypts input when the input arrives, before the connection processes it. A client may send TLS records of a few bytes,
which cost more time than their size suggests. Key updates (RFC 8446 §4.6.3) cost time, but have no data. While a client sends
fast, uvloop calls OpenSSL up to 32 times in a row, with up to 256 KiB of input in a call. So this module bounds the decryption:

- In a turn, each connection decrypts for at most `SLICE_SECONDS`, and all connections together for at most `INPUT_SECONDS`. The
  remaining input stays encrypted until a later turn. uvloop stops reading a socket while 256 KiB of input wait for decryption.
- Between two TLS records with data, a client may send at most `MAX_WITHOUT_DATA` bytes of TLS records without data.
- All lost connections together decrypt for at most `INPUT_SECONDS` in a turn. Further input of lost connections is discarded.
- Input that arrives after the server has closed the connection is discarded without decryption, up to `MAX_AFTER_CLOSE` bytes.
  Without this rule uvloop would decrypt and discard input for 30 seconds after the close.

If at most `PIECE` bytes wait for decryption, the worker decrypts them at once, without a measurement of the time.
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from typing import Any

from push1st.transports.turn import INPUT_SECONDS, SLICE_SECONDS

PIECE = 4096
"""maximum number of bytes of encrypted input that OpenSSL gets in one call"""
MAX_WITHOUT_DATA = 20_480
"""maximum bytes in consecutive TLS records without data; more than the longest record (18 KiB: RFC 8446 §5.2, RFC 5246 §6.2.3)"""
MAX_AFTER_CLOSE = 262_144
"""maximum number of bytes that a client may send after the server has closed the connection"""
MAX_RESUMED = round(INPUT_SECONDS / SLICE_SECONDS)
"""maximum number of connections that continue the decryption of earlier input in one turn"""


class Decryption:
    """Divides the time for decryption in a turn among the TLS connections of a worker.

    flooded: a function that counts a connection whose client has exceeded `MAX_WITHOUT_DATA` or `MAX_AFTER_CLOSE`.
    call_soon: a function that calls its argument in the next turn of the event loop.
    clock: a function that returns the seconds of a monotonic clock.
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
        self.left_for_lost = INPUT_SECONDS
        """seconds that lost connections may still use for decryption in this turn"""
        self._call_soon = call_soon
        self._waiting: dict[Records, None] = {}
        self._scheduled = False

    def spend(self, seconds: float) -> None:
        self.left -= seconds
        self._schedule()

    def spend_for_lost(self, seconds: float) -> None:
        self.left_for_lost -= seconds
        self._schedule()

    def wait(self, records: "Records") -> None:
        """Adds a connection to the waiting connections, which continue their decryption in later turns, in rotation."""
        self._waiting[records] = None
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._call_soon(self._begin_turn)

    def _begin_turn(self) -> None:
        self._scheduled = False
        self.turn += 1
        self.left = self.left_for_lost = INPUT_SECONDS
        for _ in range(min(MAX_RESUMED, len(self._waiting))):
            records = next(iter(self._waiting))
            del self._waiting[records]
            records.resume()
        if self._waiting:
            self._schedule()


class Records(ssl.SSLObject):
    """The server's side of a TLS connection."""

    _incoming: ssl.MemoryBIO
    _decryption: Decryption
    _transport: asyncio.Transport | None = None
    """uvloop's transport; None before the end of the TLS handshake, and after the end of the connection"""
    _rest = memoryview(b"")
    """encrypted bytes of the current slice that OpenSSL gets after the bytes in `_incoming`"""
    _start = 0.0
    """time at which the current slice began; 0 between slices"""
    _turn = -1
    """number of the turn in which the newest slice began"""
    _without_data = 0
    _after_close = 0
    _is_discarding = False
    """whether all further input is discarded, because OpenSSL cannot decrypt a TLS record after a discarded record"""
    _has_failed = False

    def follow(self, incoming: ssl.MemoryBIO, decryption: Decryption) -> None:
        """Sets the buffer of encrypted input, and the `Decryption` that bounds how long this connection decrypts."""
        self._incoming, self._decryption = incoming, decryption

    def attach(self, transport: asyncio.Transport) -> None:
        """Begins to bound the decryption. transport: the transport whose `resume_reading` makes uvloop decrypt more input."""
        self._transport = transport

    def detach(self) -> None:
        """Removes the reference to the transport when the connection ends.

        The transport has a reference to this object, and only the garbage collector could free such a cycle of references.
        """
        self._transport = None
        self._start = 0.0

    def resume(self) -> None:
        """Makes uvloop decrypt the connection's next slice of input in the next turn."""
        transport = self._transport
        if transport is not None and transport.is_reading():  # paused transports decrypt when their reading resumes
            transport.pause_reading()
            transport.resume_reading()

    @property
    def has_unread(self) -> bool:
        """Whether some input is still encrypted."""
        return self._incoming.pending > 0

    def unread(self, most: int) -> bytes:
        """Returns the unread data of a lost connection, but stops the decryption after about `most` bytes.

        Returns no data if other lost connections have used all time for decryption in this turn.
        """
        self.detach()
        decryption = self._decryption
        if decryption.left_for_lost <= 0:
            return b""
        start = decryption.clock()
        data = bytearray()
        try:
            while len(data) < most and (piece := self.read(most)):
                data += piece
        except OSError:  # no data are left, or a TLS record is damaged or incomplete
            pass
        decryption.spend_for_lost(decryption.clock() - start)
        return bytes(data)

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        incoming = self._incoming
        before = incoming.pending
        if before > PIECE or self._is_discarding:
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
                if not data:  # close_notify: OpenSSL decrypts no further input
                    self.detach()
                if not incoming.pending:  # uvloop calls `read` again only while bytes are in `incoming`
                    if self._rest and not self._is_over():
                        self._feed()
                    elif self._start:
                        self._end_slice()
                return data

    def _begin_slice(self, size: int) -> None:
        """Begins a slice. Raises SSLWantReadError if the turn has no time for the slice, or if the server has closed the
        connection. Raises SSLError if the client sends too much input after the server has closed the connection.
        """
        decryption, transport = self._decryption, self._transport
        if transport is None:
            return
        if transport.is_closing():
            self._is_discarding = True
            self._incoming.read()
            self._after_close += size
            if self._after_close > MAX_AFTER_CLOSE:
                raise self._fail("too much input after the end of the connection")
            raise ssl.SSLWantReadError
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
        """Gives OpenSSL the next piece of input; returns the number of bytes that OpenSSL has not read yet."""
        self._incoming.write(self._rest[:PIECE])
        self._rest = self._rest[PIECE:]
        return self._incoming.pending
