"""TLS without a flood of records that carry no data.

A client may send key updates (RFC 8446 §4.6.3) without a pause. Each has 27 bytes and costs the server about 15 µs.
None of them reaches a connection, so no slice of a turn bounds them. OpenSSL processes all that it has in one call, and uvloop
gives it 256 KiB.
"""

import ssl
from collections.abc import Callable
from typing import Any

PIECE = 4096
"""bytes that OpenSSL gets at once"""
MAX_WITHOUT_DATA = 20_480
"""bytes that a client may send without any data in them; a record has 18 KiB at most (RFC 8446 §5.2, RFC 5246 §6.2.3)"""


class Records(ssl.SSLObject):
    """A server's side of a TLS connection, which fails if the client sends only records without data."""

    _incoming: ssl.MemoryBIO
    _flooded: Callable[[], None]
    _rest = memoryview(b"")
    """bytes that OpenSSL gets after those in `_incoming`; `read` waits for the client only when none are left"""
    _without_data = 0
    _has_failed = False

    def follow(self, incoming: ssl.MemoryBIO, flooded: Callable[[], None]) -> None:
        """Begins to count. incoming: the bytes received, which the object reads. flooded: counts a connection that fails."""
        self._incoming, self._flooded = incoming, flooded

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        incoming = self._incoming
        before = incoming.pending
        if before > PIECE:
            self._rest = memoryview(incoming.read())
            before = self._feed()
        while True:
            try:
                data = super().read(len, buffer)
            except ssl.SSLWantReadError:
                self._without_data += before - incoming.pending
                if self._without_data > MAX_WITHOUT_DATA:
                    self._rest = memoryview(b"")
                    if not self._has_failed:
                        self._has_failed = True
                        self._flooded()
                    raise ssl.SSLError("too many TLS records without data") from None
                if not self._rest:
                    raise
                before = self._feed()
            else:
                self._without_data = 0
                if self._rest and not incoming.pending:  # uvloop reads on while bytes are in `incoming`
                    self._feed()
                return data

    def _feed(self) -> int:
        """Gives OpenSSL more bytes; returns how many bytes OpenSSL has not read."""
        self._incoming.write(self._rest[:PIECE])
        self._rest = self._rest[PIECE:]
        return self._incoming.pending
