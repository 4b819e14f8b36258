"""Forwards the requests of sessions to the workers that own these sessions.

A session that outlives its connections stays on the worker where the session began: the *owner* of the session. Further
requests of the session may arrive at any worker. The owner subscribes to the session's topic. A worker that does not own the
session publishes the request on this topic, and the owner replies. If no worker replies, no worker owns the session, and the
worker that received the request may begin the session.

The owner replies with the response. If the response is not complete yet, the owner replies with another topic, on which it
receives probes (see below). While a response is not complete, each of the two workers has an object for its side of the request.
The owner has a `RemoteRequest`, and the worker with the socket has a `RemoteSession`. The two objects exchange `ForwardFrame`s.

A killed worker cannot send the frame that ends a request, and frames are lost while the broker is away. So each worker regularly
sends a `Probe` to every worker that has the other side of a request. If a worker replies to none of `MAX_MISSES` probes, the
sender assumes that this worker is gone. The sender ends a request that is unknown to the other worker in two successive probes.

This module depends on no protocol. The handler of a protocol provides the topics, and serves forwarded requests (`Accept`).
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Literal, Protocol

import msgspec

from push1st.core.app import App
from push1st.core.controller import TopicHandler
from push1st.core.hub import Write
from push1st.eager import spawn
from push1st.errors import Refused
from push1st.messages import Response
from push1st.transports.context import EdgeContext
from push1st.transports.handlers import Exchange
from push1st.transports.sweep import NEVER

PROBE_SECONDS = 2
MAX_MISSES = 3
"""the number of successive probes without a reply after which the sender assumes that the other worker is gone"""

FrameKind = Literal["write", "finish", "end", "lost", "slow", "leave"]


class ForwardedRequest(msgspec.Struct, frozen=True, array_like=True):
    """A request that a worker forwards to the worker that owns the request's session.

    `number`: the request's number, which is unique on the forwarding worker. `to`: the topic for frames to the forwarding worker.
    `query`: the query of the request.
    """

    endpoint: str
    body: bytes
    number: int
    to: str
    query: str = ""


class ForwardFrame(msgspec.Struct, frozen=True, array_like=True):
    """A message about a forwarded request, between the request's two workers.

    The owner sends `write`, `finish` and `end`. The worker with the socket sends `lost`, `slow` and `leave`.

    `index`: the number of the owner's frame in its request: 1, 2, 3 …; 0 for a frame to the owner.
    """

    kind: FrameKind
    number: int
    by: str
    """the topic of the worker with the socket"""
    data: bytes = b""
    response: Response | None = None
    index: int = 0


class Probe(msgspec.Struct, frozen=True, array_like=True):
    """Checks whether another worker is alive, and which requests in `here` and `there` are unknown to the other worker.

    `by`: the sender's topic. `here`: the numbers of the requests whose sockets the sender has.
    `there`: the numbers of the requests that the other worker has forwarded to sessions of the sender.
    """

    by: str
    here: list[int]
    there: list[int]


_decode_request = msgspec.msgpack.Decoder(ForwardedRequest).decode
_decode_frame = msgspec.msgpack.Decoder(ForwardFrame).decode
_decode_probe = msgspec.msgpack.Decoder(Probe).decode
_decode_response = msgspec.msgpack.Decoder(Response).decode
_encode = msgspec.msgpack.encode


class StreamWriter(Protocol):
    """A response that ends only when `close` is called."""

    @property
    def write(self) -> Write: ...

    def close(self) -> None: ...


class OwnedSession(Protocol):
    """A session that this worker owns, and whose requests other workers may forward to this worker."""

    def lost(self, request: object) -> None:
        """Handles a request whose socket has closed."""

    def too_slow(self, request: object) -> None:
        """Ends the session, because its client does not read a stream."""

    def leave(self, code: int, reason: str) -> None:
        """Ends the session, because the worker that has the socket of the current request stops."""

    def close(self, code: int, reason: str) -> None:
        """Ends the session, because a frame to its client is lost."""


class RemoteRequest:
    """A poll or a stream that another worker has forwarded to a session of this worker. `by`: the topic of the other worker."""

    __slots__ = ("_forwarding", "_sent", "app", "by", "number", "session")

    def __init__(self, forwarding: "Forwarding", app: App, number: int, by: str) -> None:
        self._forwarding = forwarding
        self.app = app
        self.number = number
        self.by = by
        self.session: OwnedSession | None = None
        self._sent = 0
        """the number of frames that were sent"""

    def write(self, data: bytes) -> None:
        self._send("write", data)

    def finish(self, response: Response) -> None:
        self._send("finish", b"", response)
        self._forwarding.forget(self)

    def close(self) -> None:
        self._send("end")
        self._forwarding.forget(self)

    def _send(self, kind: FrameKind, data: bytes = b"", response: Response | None = None) -> None:
        self._sent += 1
        self._forwarding.send(self, ForwardFrame(kind, self.number, self.by, data, response, self._sent))


Accept = Callable[[ForwardedRequest, RemoteRequest], Response | OwnedSession]
"""Serves a forwarded request. Returns the response, or the session that will respond through the `RemoteRequest`."""


class RemoteSession:
    """Represents a session of another worker, for one poll or stream whose socket this worker has.

    `by`: the topic of this worker. `send`: a function that sends a frame to the owner of the session.
    `ended`: a function that is called once, when the request ends.
    `gone`: the response to a poll if the owner is gone; a stream gets the body of `gone` as its last output.
    `owner`: the topic of the owner; "" before the owner has replied.
    """

    __slots__ = (
        "_by",
        "_ended",
        "_gone",
        "_is_over",
        "_kept",
        "_number",
        "_poll",
        "_send",
        "_stream",
        "_written",
        "app",
        "owner",
    )

    def __init__(
        self,
        app: App,
        number: int,
        by: str,
        send: Callable[[ForwardFrame], None],
        ended: Callable[[], object],
        gone: Response,
    ) -> None:
        self.app = app
        self.owner = ""
        self._number = number
        self._by = by
        self._send = send
        self._ended = ended
        self._gone = gone
        self._kept: list[ForwardFrame] = []
        self._written = 0
        """the number of frames that the stream has received"""
        self._is_over = False
        self._poll: Exchange | None = None
        self._stream: StreamWriter | None = None

    def on_frame(self, frame: ForwardFrame) -> None:
        """Handles a frame from the owner. A frame that arrives before the call of `hold` or `stream` is kept until this call.

        A stream ends if a frame is missing, because this worker was not connected to the broker when the owner sent the frame.
        """
        if frame.kind == "finish" and frame.response is not None and self._poll is not None:
            self._end()
            self._poll.finish(frame.response)
            return
        if self._stream is None:
            self._kept.append(frame)
            return
        self._written += 1
        if frame.index not in (self._written, 0):  # workers of earlier versions send no index
            self.abandon()
        elif frame.kind == "write":
            self._stream.write(frame.data)
        else:
            self._end()
            self._stream.close()

    def hold(self, poll: Exchange) -> "RemoteSession | Response":
        """Returns the response of a poll if the owner has sent it. Otherwise returns this object, and the poll waits."""
        self._poll = poll
        for frame in self._kept:
            if frame.response is not None:
                self._end()
                return frame.response
        return self

    def stream(self, stream: StreamWriter) -> None:
        """Attaches a new stream, and writes the frames that have arrived."""
        self._stream = stream
        kept, self._kept = self._kept, []
        for frame in kept:
            self.on_frame(frame)

    def lost(self, request: object) -> None:
        """Notifies the owner that the socket of the request has closed."""
        self._send_to_owner("lost")
        self._end()

    def too_slow(self, request: object) -> None:
        """Notifies the owner that the client does not read the stream."""
        self._send_to_owner("slow")

    def leave(self, code: int, reason: str) -> None:
        """Notifies the owner that this worker stops, so that the owner ends the session."""
        self._send_to_owner("leave")

    def abandon(self) -> None:
        """Ends the request, because the session's owner cannot continue it. The client then begins a new session."""
        if self._is_over:
            return
        self._send_to_owner("lost")  # the owner is still alive if only the broker was unavailable
        self._end()
        if self._stream is not None:
            self._stream.write(self._gone.body)
            self._stream.close()
        elif self._poll is not None:
            self._poll.finish(self._gone)

    def _send_to_owner(self, kind: FrameKind) -> None:
        if not self._is_over:
            self._send(ForwardFrame(kind, self._number, self._by))

    def _end(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._ended()


class Forwarding:
    """The requests that a worker forwards to other workers, and the requests that other workers forward to this worker.

    `prefix`: the text with which the topics of all workers begin. `gone`: see `RemoteSession`.
    """

    def __init__(self, context: EdgeContext, prefix: str, gone: Response) -> None:
        self._context = context
        self._controller = context.node.controller
        self._prefix = prefix
        self._gone = gone
        self._name = ""
        """the topic on which this worker receives frames and probes; "" before it first forwards a request or owns a session"""
        self._apps: set[str] = set()
        """the ids of the apps in which this worker is subscribed to the topic `_name`"""
        self._numbers = 0
        self._remote_sessions: dict[int, RemoteSession] = {}
        self._remote_requests: dict[tuple[str, int], RemoteRequest] = {}
        self._misses: Counter[tuple[str, str]] = Counter()
        self._suspects: set[tuple[str, int, bool]] = set()
        """the requests that the other workers did not know when they replied to the previous probe"""
        self._is_probing = False
        self.due_at = NEVER

    # Requests whose sockets this worker has

    async def forward(self, app: App, topic: str, endpoint: str, body: bytes, query: str) -> Response | RemoteSession | None:
        """Forwards a request to the owner of a session. Returns the response, or the session that will respond.

        Returns None if no worker owns the session. `topic`: the topic of the session. Raises Refused(503) if the broker is away.
        """
        name = await self._own_topic(app)
        self._numbers += 1
        number = self._numbers
        forget = partial(self._remote_sessions.pop, number, None)
        remote = RemoteSession(app, number, name, partial(self._send_to_owner, app, topic), forget, self._gone)
        self._remote_sessions[number] = remote
        try:
            replies = await self._controller.request(app, topic, _encode(ForwardedRequest(endpoint, body, number, name, query)))
        except Refused:
            forget()
            raise
        if replies and replies[0].startswith(self._prefix.encode()):
            remote.owner = replies[0].decode()
            self._probe_later()
            return remote
        forget()
        return _decode_response(replies[0]) if replies else None

    async def _own_topic(self, app: App) -> str:
        """Subscribes to the topic on which this worker receives frames, and returns the topic."""
        if not self._name:
            self._name = self._prefix + self._context.node.new_id()
        if app.config.id not in self._apps:
            await self._controller.handle_topic(app, self._name, TopicHandler(self._answer_probe, self._on_owner_frame))
            self._apps.add(app.config.id)
        return self._name

    def _send_to_owner(self, app: App, topic: str, frame: ForwardFrame) -> None:
        lost = partial(asyncio.get_running_loop().call_soon, self._abandon, frame.number)
        self._controller.send_to_topic(app, topic, _encode(frame), lost)

    def _on_owner_frame(self, data: bytes) -> None:
        """Handles a frame for a request whose socket this worker has."""
        frame = _decode_frame(data)
        remote = self._remote_sessions.get(frame.number)
        if remote is not None:
            remote.on_frame(frame)

    def _abandon(self, number: int) -> None:
        """Ends a request, because a frame to its owner is lost, or the owner does not know the request."""
        remote = self._remote_sessions.get(number)
        if remote is not None:
            remote.abandon()

    # Requests of sessions that this worker owns

    async def own(self, app: App, topic: str, accept: Accept) -> None:
        """Makes this worker the owner of a session, so that requests of the session reach this worker. Raises Refused(503)."""
        await self._own_topic(app)
        await self._controller.handle_topic(
            app, topic, TopicHandler(partial(self._on_request, app, accept), self._on_request_frame)
        )

    async def disown(self, app: App, topic: str) -> None:
        """Ends the ownership of a session, so that other workers do not forward its requests to this worker any more."""
        await self._controller.release_topic(app, topic)

    def _on_request(self, app: App, accept: Accept, data: bytes) -> bytes:
        """Returns the reply to a forwarded request: the response, or this worker's topic if the response is not complete yet."""
        request = _decode_request(data)
        remote = RemoteRequest(self, app, request.number, request.to)
        self._remote_requests[remote.by, remote.number] = remote
        served = accept(request, remote)
        if isinstance(served, Response):
            self.forget(remote)
            return _encode(served)
        remote.session = served
        self._probe_later()
        return self._name.encode()

    def send(self, remote: RemoteRequest, frame: ForwardFrame) -> None:
        """Sends a frame to the worker that has the socket of a request.

        A flush of the fan-out may call this method, and a flush must not end a session. So, if the frame is lost, the session
        ends in a later turn.
        """
        lost = partial(asyncio.get_running_loop().call_soon, self._on_frame_lost, remote, frame)
        self._controller.send_to_topic(remote.app, remote.by, _encode(frame), lost)

    def _on_frame_lost(self, remote: RemoteRequest, frame: ForwardFrame) -> None:
        """Ends the request whose frame is lost. Ends the session too, unless the frame is an `end`, which contains no output."""
        self._lose(remote.by, remote.number)
        if frame.kind != "end" and remote.session is not None:
            remote.session.close(4200, "The broker is away, reconnect")

    def _on_request_frame(self, data: bytes) -> None:
        """Handles a frame from the worker that has the socket of a request."""
        frame = _decode_frame(data)
        remote = self._remote_requests.get((frame.by, frame.number))
        if remote is None or remote.session is None:
            return
        if frame.kind == "lost":
            self._lose(frame.by, frame.number)
        elif frame.kind == "slow":
            remote.session.too_slow(remote)
        else:
            remote.session.leave(4200, "Server is stopping, reconnect")

    def forget(self, remote: RemoteRequest) -> None:
        """Removes a request that has ended."""
        self._remote_requests.pop((remote.by, remote.number), None)

    def _lose(self, by: str, number: int) -> None:
        """Handles a request whose socket has closed."""
        remote = self._remote_requests.pop((by, number), None)
        if remote is not None and remote.session is not None:
            remote.session.lost(remote)

    # Probes

    def _probe_later(self) -> None:
        if self.due_at == NEVER:
            self._context.sweep.watch(self, self._context.sweep.now + PROBE_SECONDS)

    def due(self, now: float) -> float | None:
        """Sends probes while there are forwarded requests (`sweep.Watched`)."""
        if not self._remote_sessions and not self._remote_requests:
            self._misses.clear()
            self._suspects.clear()
            return None
        if not self._is_probing:
            spawn(self._probe())
        return now + PROBE_SECONDS

    async def _probe(self) -> None:
        """Sends probes to the workers that have the other side of a request; ends requests unknown in two successive probes."""
        self._is_probing = True
        suspects: set[tuple[str, int, bool]] = set()
        try:
            others = {(one.app.config.id, one.owner): one.app for one in self._remote_sessions.values() if one.owner}
            others |= {(one.app.config.id, one.by): one.app for one in self._remote_requests.values()}
            self._misses = Counter({other: count for other, count in self._misses.items() if other in others})
            for (id, topic), app in others.items():
                here = [number for number, one in self._remote_sessions.items() if one.app is app and one.owner == topic]
                there = [one.number for one in self._remote_requests.values() if one.app is app and one.by == topic]
                replies = await self._controller.request(app, topic, _encode(Probe(self._name, here, there)))
                if replies:
                    del self._misses[id, topic]
                    unknown = _decode_probe(replies[0])
                    suspects |= {(topic, number, True) for number in unknown.here}
                    suspects |= {(topic, number, False) for number in unknown.there}
                else:
                    self._misses[id, topic] += 1
                    if self._misses[id, topic] >= MAX_MISSES:
                        self._end_all(app, topic)
            for topic, number, is_here in self._suspects & suspects:
                if is_here:
                    self._abandon(number)
                else:
                    self._lose(topic, number)
        except Refused:  # the broker is away, so no probe reaches another worker
            pass
        finally:
            self._suspects = suspects
            self._is_probing = False

    def _answer_probe(self, data: bytes) -> bytes:
        """Returns the reply to a probe: the requests that this worker does not know."""
        probe = _decode_probe(data)
        here = [number for number in probe.here if (probe.by, number) not in self._remote_requests]
        return _encode(Probe("", here, [number for number in probe.there if number not in self._remote_sessions]))

    def _end_all(self, app: App, topic: str) -> None:
        """Ends all requests that this worker shares with a worker that is gone. `topic`: the topic of the gone worker."""
        for remote in [one for one in self._remote_sessions.values() if one.app is app and one.owner == topic]:
            remote.abandon()
        for request in [one for one in self._remote_requests.values() if one.app is app and one.by == topic]:
            self._lose(request.by, request.number)
