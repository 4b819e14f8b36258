"""Forwards the requests of HTTP fallbacks that arrive at a worker other than the one that owns their session.

A session stays on the worker where it began, its *owner*. The owner subscribes to a topic of the session. A worker that receives
a request sends it to this topic; without a reply the session does not exist, and that worker may begin it.

An `xhr_send` is one request and one reply. For a poll or a stream, the owner uses a `RemoteRequest` in place of the request, and
publishes what to write on the topic of the forwarding worker. That worker uses a `RemoteSession` in place of the session.

Both workers probe each other (`xhr.Fallbacks`), because a killed worker sends no last frame, and frames are lost while the broker
is away.
"""

from collections.abc import Callable
from hashlib import blake2b
from typing import Literal, Protocol

import msgspec

from push1st.core.app import App
from push1st.messages import Response
from push1st.protocols.pusher_xhr import end_frames
from push1st.transports.handlers import Exchange

TYPE = b"text/plain; charset=utf-8"
HEADERS = (
    b"Access-Control-Allow-Origin: *\r\n"  # the wire has no cookies; origins are checked where the session begins
    b"Cache-Control: no-store, no-transform\r\n"
    b"X-Content-Type-Options: nosniff\r\n"  # browsers hold back what they first have to guess the type of
    b"X-Accel-Buffering: no\r\n"
)

FrameKind = Literal["write", "finish", "end", "lost", "slow", "leave"]
Send = Callable[["ForwardFrame"], None]


class ForwardedRequest(msgspec.Struct, frozen=True, array_like=True):
    """A request, as it is passed on. number and to: what is said of it goes to this topic, with this number."""

    endpoint: str
    body: bytes
    number: int
    to: str


class ForwardFrame(msgspec.Struct, frozen=True, array_like=True):
    """What one side says to the other of a request: the owner `write`, `finish`, `end`; the asking worker the rest."""

    kind: FrameKind
    number: int
    by: str
    """the asking worker's topic"""
    data: bytes = b""
    response: Response | None = None


class Probe(msgspec.Struct, frozen=True, array_like=True):
    """Whether a worker is there, and knows of these requests; its answer are those it does not know of.

    by: the topic of the worker that asks. here: requests to that one of sessions there. there: of its own sessions, there.
    """

    by: str
    here: list[int]
    there: list[int]


_request = msgspec.msgpack.Decoder(ForwardedRequest)
_frame = msgspec.msgpack.Decoder(ForwardFrame)
_probe = msgspec.msgpack.Decoder(Probe)
_response = msgspec.msgpack.Decoder(Response)
encode = msgspec.msgpack.encode
decode_request = _request.decode
decode_frame = _frame.decode
decode_probe = _probe.decode
decode_response = _response.decode


def topic_of(key: str, origin: str | None, id: str) -> str:
    """Where a session is asked for. Origins are as long as clients like."""
    return "#xhr-" + blake2b(repr((key, origin, id)).encode(), digest_size=16).hexdigest()


class Writer(Protocol):
    """A stream, as the session writes to it."""

    def write(self, data: bytes) -> None: ...

    def close(self) -> None: ...


class RemoteRequest:
    """A poll or a stream of a session here, on another worker. by: its topic. send: sends a frame there."""

    __slots__ = ("_ended", "_number", "_send", "app", "by")

    def __init__(self, app: App, number: int, by: str, send: Send, ended: Callable[[], object]) -> None:
        self.app = app
        self._number = number
        self.by = by
        self._send = send
        self._ended = ended

    def finish(self, response: Response) -> None:
        self._send(ForwardFrame("finish", self._number, self.by, b"", response))
        self._ended()

    def write(self, data: bytes) -> None:
        self._send(ForwardFrame("write", self._number, self.by, data))

    def close(self) -> None:
        self._send(ForwardFrame("end", self._number, self.by))
        self._ended()


class RemoteSession:
    """The session of another worker, as a poll or a stream here sees it. send: sends a frame to its owner.

    owner: that worker's topic, once it has answered.
    """

    __slots__ = ("_by", "_ended", "_kept", "_number", "_over", "_send", "app", "owner", "poll", "streams")

    def __init__(self, app: App, number: int, by: str, send: Send, ended: Callable[[], object]) -> None:
        self.app = app
        self.owner = ""
        self._number = number
        self._by = by
        self._send = send
        self._ended = ended
        self._kept: list[ForwardFrame] = []
        self._over = False
        self.poll: Exchange | None = None
        self.streams: Writer | None = None

    def on_frame(self, frame: ForwardFrame) -> None:
        """What the owner says; it may be here before the request knows that it is expected."""
        if frame.kind == "finish" and frame.response is not None and self.poll is not None:
            self._end()
            self.poll.finish(frame.response)
        elif self.streams is None:
            self._kept.append(frame)
        elif frame.kind == "write":
            self.streams.write(frame.data)
        else:
            self._end()
            self.streams.close()

    def hold(self, poll: Exchange) -> "RemoteSession | Response":
        """A poll waits, if it is not answered yet."""
        self.poll = poll
        for frame in self._kept:
            if frame.response is not None:
                self._end()
                return frame.response
        return self

    def stream(self, stream: Writer) -> None:
        """A stream has begun."""
        self.streams = stream
        kept, self._kept = self._kept, []
        for frame in kept:
            self.on_frame(frame)

    def lost(self, request: object) -> None:
        """The socket of the request is gone."""
        self._send_to_owner("lost")
        self._end()

    def too_slow(self, stream: Writer) -> None:
        self._send_to_owner("slow")

    def leave(self, code: int, reason: str) -> None:
        """This worker stops."""
        self._send_to_owner("leave")

    def abandon(self) -> None:
        """The owner is gone. The client is told to begin anew."""
        if self._over:
            return
        self._send_to_owner("lost")  # should the owner be there all the same
        self._end()
        frames = end_frames(4200, "The server of this session is gone, reconnect")
        if self.streams is not None:
            self.streams.write(frames)
            self.streams.close()
        elif self.poll is not None:
            self.poll.finish(Response(200, frames, TYPE, HEADERS))

    def _send_to_owner(self, kind: FrameKind) -> None:
        if not self._over:
            self._send(ForwardFrame(kind, self._number, self._by))

    def _end(self) -> None:
        if not self._over:
            self._over = True
            self._ended()
