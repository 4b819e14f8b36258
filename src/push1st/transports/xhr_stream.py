"""The responses of a fallback session: a stream, which stays open, and the answer to a poll, which contains the waiting frames.

When the frames of a response exceed `MAX_RESPONSE` characters, pusher-js drops this response, and sends its next request.
pusher-js reads no further frame of a dropped response, and acknowledges no frame. So a response is *full* after the first frame
that exceeds `MAX_RESPONSE`, and the session's outbox keeps all further frames for the next request. `OpenStream` and `OpenPoll`
apply this rule. A session is attached to an `OpenStream` or an `OpenPoll`.
"""

import asyncio
from typing import Protocol

from push1st.core.hub import Write
from push1st.core.outbox import Outbox
from push1st.messages import Response
from push1st.protocols.pusher_xhr import MAX_RESPONSE, RequestNumbers, whole_frames
from push1st.transports.answers import endless
from push1st.transports.context import EdgeContext
from push1st.transports.forwarding import StreamWriter
from push1st.transports.handlers import Exchange, Takeover
from push1st.transports.lost import detach
from push1st.transports.sweep import NEVER

CLOSE_SECONDS = 5
"""the seconds in which a client must read the unsent bytes of a stream that the server ended"""
TYPE = b"text/plain; charset=utf-8"
HEADERS = (
    b"Access-Control-Allow-Origin: *\r\n"  # safe: the protocol has no cookies, and the server checks the origin of a new session
    b"Cache-Control: no-store, no-transform\r\n"
    b"X-Content-Type-Options: nosniff\r\n"  # a browser delays a response whose type it must guess
    b"X-Accel-Buffering: no\r\n"
)


class StreamOwner(Protocol):
    """The session of a stream: a session of this worker, or a `RemoteSession`."""

    def stream(self, stream: StreamWriter) -> None:
        """Attaches the session to a new stream."""

    def lost(self, request: object) -> None:
        """Handles a request whose socket has closed."""

    def too_slow(self, request: object) -> None:
        """Ends the session, because its client does not read the stream."""

    def leave(self, code: int, reason: str) -> None:
        """Ends the session, because this worker stops."""


class Stream(Takeover):
    """The response to one `xhr_streaming` request. Owns the socket. Ends at a call of `close`, or when the client disconnects."""

    __slots__ = ("_context", "_owner", "_transport", "due_at")

    def __init__(self, owner: StreamOwner, context: EdgeContext) -> None:
        self._owner = owner
        self.address = ""
        self._context = context
        self._transport: asyncio.Transport
        self.due_at = NEVER

    def start(self, transport: asyncio.Transport, before: bytes) -> None:
        """Begins the response without chunked encoding, so that all subscribers of a channel can get the same bytes."""
        self._transport = transport
        transport.set_protocol(self)  # before `write`, which may call `pause_writing` of the protocol
        transport.set_write_buffer_limits(high=self._context.config.server.outbox)
        transport.write(before + endless(self._context.sweep.now, TYPE, HEADERS))
        self._context.open.add(self)
        self._owner.stream(self)

    @property
    def write(self) -> Write:
        return self._transport.write

    def close(self) -> None:
        """Ends the response. The client has `CLOSE_SECONDS` to read the bytes that are not sent yet."""
        if not self._transport.is_closing():
            self._transport.close()
            self._context.sweep.watch(self, self._context.sweep.now + CLOSE_SECONDS)

    def process(self, data: bytes) -> bool:
        """Discards input, because no request can follow a response that does not end."""
        return False

    def keep(self, data: bytes) -> None:
        """Does nothing, because `process` discards all input."""

    def hold_reading(self, hold: bool) -> None:
        """Does nothing, because `process` discards all input."""

    def data_received(self, data: bytes) -> None:
        pass

    def eof_received(self) -> bool:
        self._owner.lost(self)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        detach(self._transport)
        self._owner.lost(self)
        self._context.addresses.leave(self.address)
        self._context.open.discard(self)
        self._context.sweep.forget(self)

    def pause_writing(self) -> None:
        self._owner.too_slow(self)

    def resume_writing(self) -> None:
        pass

    def lost(self, request: object) -> None:
        """Handles a client that disconnected before the stream began."""
        self._owner.lost(self)

    def leave(self, code: int, reason: str) -> None:
        self._owner.leave(code, reason)

    def abort(self) -> None:
        self._transport.abort()

    def due(self, now: float) -> float | None:
        self._transport.abort()
        return None


class ResponseOwner(Protocol):
    """The session of a response. `wrote_at`: the time of the last write to a response, on the clock of the sweep."""

    wrote_at: float

    def answer(self, poll: "OpenPoll") -> None:
        """Answers a poll with frames of the outbox."""


class OpenStream:
    """A stream to which a session is attached (`outbox.AttachedConnection`). `request`: a `Stream` or a `RemoteRequest`."""

    __slots__ = ("_context", "_owner", "_room", "_write", "full_since", "request")

    def __init__(self, owner: ResponseOwner, context: EdgeContext, request: StreamWriter) -> None:
        self._owner = owner
        self._context = context
        self.request = request
        self._write = request.write
        self._room = MAX_RESPONSE
        """`MAX_RESPONSE` minus the number of characters that the response contains; negative if the response is full"""
        self.full_since = 0.0

    @property
    def is_full(self) -> bool:
        """Whether the written frames exceed `MAX_RESPONSE`; the client drops such a response."""
        return self._room < 0

    def take(self, item: bytes) -> bytes | None:
        """Writes frames until the response is full, and returns the remaining frames; None if no frame remains."""
        if self._room < 0:
            return item
        self._owner.wrote_at = now = self._context.sweep.now
        size, self._room = whole_frames(item, self._room)
        self._write(item[:size])
        if self._room < 0:
            self.full_since = now
        return item[size:] if size < len(item) else None

    def resume(self, items: list[bytes]) -> list[bytes]:
        rest = self.take(b"".join(items))
        return [] if rest is None else [rest]

    def write_after_end(self, frames: bytes) -> None:
        """Writes frames to a full response. The client does not need them, but a proxy may close a connection without output."""
        self._write(frames)

    def displace(self) -> None:
        """Ends the response, because another request of the session displaces it."""
        self.request.close()


class OpenPoll:
    """A poll to which a session is attached (`outbox.AttachedConnection`). The answer contains the frames of one turn."""

    __slots__ = ("_is_scheduled", "_owner", "request")

    def __init__(self, owner: ResponseOwner, request: Exchange) -> None:
        self._owner = owner
        self.request = request
        self._is_scheduled = False

    def take(self, item: bytes) -> bytes:
        """Schedules the answer for the end of the turn. Returns `item`; the outbox keeps each item that `take` returns."""
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._answer)
        return item

    def resume(self, items: list[bytes]) -> list[bytes]:
        """Returns all items, because the session sends waiting items in the answer to the poll."""
        return items

    def _answer(self) -> None:
        self._is_scheduled = False
        self._owner.answer(self)

    def displace(self) -> None:
        """Ends the poll, because another request of the session displaces it."""
        self.request.finish(Response(409, b"another request has this session now\n", TYPE, HEADERS))


class PageDelivery:
    """Whether the client of a page has received all frames of the ended responses of a session.

    is_lossy: whether some frames may not have arrived, so that the session must end; always false for a client without a page.
    """

    __slots__ = ("_numbers", "is_lossy")

    def __init__(self) -> None:
        self._numbers: RequestNumbers | None = None
        """the numbers of the client's requests; None for a client without a page"""
        self.is_lossy = False

    def begin(self) -> None:
        """Begins the checks for the client of a page."""
        self._numbers = RequestNumbers()

    def requested(self, query: str) -> None:
        """Handles the arrival of a request. `query`: the query of the request.

        If a request is repeated, the client may not have received the frames of the first response. A repeated `xhr_send` may
        contain a second `pusher:pong`, with which the client would acknowledge frames that it has not received.
        """
        if self._numbers is not None and self._numbers.is_repeated(query):
            self.is_lossy = True

    def ended(self, response: "OpenPoll | OpenStream") -> None:
        """Handles a response that ends because its socket has closed, or because another request displaces it.

        When a client sends its next request after a full stream, the client has read all frames of the stream. After a stream
        that ends earlier, the client may have lost frames.
        """
        if self._numbers is not None and isinstance(response, OpenStream) and not response.is_full:
            self.is_lossy = True


def take_response(outbox: Outbox[bytes]) -> bytes:
    """Removes from an outbox as many frames as one response can contain (`whole_frames`), and returns these frames."""
    kept = b"".join(outbox.take_all())
    size, _ = whole_frames(kept, MAX_RESPONSE)
    if size < len(kept):
        outbox.restore([kept[size:]])
    return kept[:size]


def replace_frames(outbox: Outbox[bytes], frames: bytes) -> None:
    """Replaces all frames of an outbox, because the client may lack earlier frames, and must get these before any other frame."""
    outbox.detach(outbox.until)
    outbox.clear()
    outbox.write(frames)
