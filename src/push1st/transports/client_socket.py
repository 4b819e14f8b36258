"""The part of a connection that WebSockets and MQTT share: the bounds of its output and input, and the loss of its socket."""

import asyncio

from push1st.core.hub import Write
from push1st.transports.context import EdgeContext
from push1st.transports.handlers import SocketOwner
from push1st.transports.lost import LOST


class ClientSocket(SocketOwner):
    """The connection of a client, whose session may end later than its socket (`Ends`). See `LostConnection`."""

    __slots__ = ("_closing", "_context", "_linger", "_slow", "_transport", "due_at")

    _context: EdgeContext
    _transport: asyncio.Transport
    _closing: bool
    _slow: bool
    """whether the unsent output has exceeded its bound"""
    _linger: int
    """the number of bytes that the server still discards before it aborts the connection; 0 before the end"""
    due_at: int

    # Output

    @property
    def write(self) -> Write:
        return self._transport.write

    def has_room(self, size: int) -> bool:
        return self._transport.get_write_buffer_size() + size <= self._context.config.server.outbox

    def pause_writing(self) -> None:
        """Disconnects a client whose unsent output exceeds the bound. The event loop may call this method during a flush, and
        a flush must not end a session. So the connection ends after the turn.
        """
        self._slow = True
        asyncio.get_running_loop().call_soon(self._cut)

    def resume_writing(self) -> None:
        pass

    def _cut(self) -> None:
        """Disconnects the client, because it does not read its output."""
        raise NotImplementedError

    # Input

    def _discard(self, size: int) -> None:
        """Discards input at the end of the connection."""
        self._linger -= size
        if self._linger <= 0:
            self._linger = 1
            self._transport.abort()

    # The loss of the socket

    def _lose(self) -> None:
        """Ends the session of the lost connection, in this turn or in a later one."""
        if self._closing:
            self._release()
            return
        self._transport = LOST
        if not self._context.ends.add(self):
            self._outlive()

    def finish(self) -> None:
        """See `LostConnection`."""
        if self._transport is LOST:
            self._release()
        elif not self._closing:
            self._ended_by_client()

    def _ended_by_client(self) -> None:
        """Ends the connection after the end of the client's input."""
        raise NotImplementedError

    def _outlive(self) -> None:
        """Begins to discard output, because the connection was lost before all input was applied."""
        raise NotImplementedError

    def _release(self) -> None:
        """Ends the session, and removes the connection from all counts."""
        raise NotImplementedError
