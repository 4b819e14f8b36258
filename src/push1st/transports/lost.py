"""Processes the input that arrived before a connection was lost, and discards the output of lost connections.

A client may send requests, and then close its socket without reading the answers. The worker notices the closed socket when a
write fails, or when the input ends. At this time some input may still be unprocessed, because each turn processes only a slice of
the input (decision 0013). The lost connection gets the transport `LOST`, and processes its input as usual.
"""

import asyncio
import os
import select
from contextlib import suppress
from fcntl import ioctl
from termios import FIONREAD

MAX_UNREAD = 262_144
"""maximum number of bytes that the worker reads from a socket after its connection is lost"""
_NONE = bytes(4)
_ENDED = getattr(select, "POLLRDHUP", select.POLLHUP)  # Linux reports the end of the input


class Lost(asyncio.Transport):
    """The transport of a lost connection, which discards all output."""

    def write(self, data: object) -> None:
        pass

    def is_closing(self) -> bool:
        return True

    def close(self) -> None:
        pass

    def abort(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def can_write_eof(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0


LOST = Lost()


def detach(transport: asyncio.Transport) -> None:
    """Removes the reference to the transport from the connection's TLS object, so that no cycle of references remains.

    `connection_lost` calls this function first. A connection that gets the transport `LOST` earlier must call it then.
    """
    tls = transport.get_extra_info("ssl_object")
    if tls is not None:
        tls.detach()


def unread(transport: asyncio.Transport) -> bytes:
    """Returns the unread bytes that arrived before a connection was lost.

    Must be called only in `connection_lost`. After a failed write asyncio ends a connection without reading its socket to the
    end. With TLS, uvloop treats the end of the input as the end of the connection, and drops the bytes that arrived while
    reading was paused.
    """
    tls = transport.get_extra_info("ssl_object")
    if tls is not None:
        found: bytes = tls.unread(MAX_UNREAD)
        return found
    with suppress(OSError, ValueError):
        socket = transport.get_extra_info("socket")
        return b"" if socket is None else os.read(socket.fileno(), MAX_UNREAD)
    return b""


def is_ended(transport: asyncio.Transport) -> bool:
    """Returns whether the client has ended a connection, which the worker does not notice while it does not read the socket."""
    socket = transport.get_extra_info("socket")
    if socket is None:
        return transport is LOST
    poll = select.poll()
    try:
        poll.register(socket.fileno(), _ENDED)
        return bool(poll.poll(0))
    except (OSError, ValueError):  # the socket has just been closed
        return True


def has_unread(transport: asyncio.Transport) -> bool:
    """Returns whether the socket or the TLS object of a connection has unread bytes from the client.

    Closing a socket with unread bytes resets the connection, so that the client may lose answers. Closing a
    TLS connection drops input that is still encrypted.
    """
    tls = transport.get_extra_info("ssl_object")
    if tls is not None and tls.has_unread:
        return True
    socket = transport.get_extra_info("socket")
    try:
        return socket is not None and ioctl(socket.fileno(), FIONREAD, _NONE) != _NONE
    except (OSError, ValueError):  # the socket has just been closed
        return False
