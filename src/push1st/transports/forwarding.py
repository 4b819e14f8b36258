"""Forwards the requests of sessions that another worker owns.

A session that outlives its connections stays on the worker where it began, its *owner*. Its next request may arrive at any other
worker. The owner subscribes to a topic of the session. A worker without the session publishes the request there, and the owner
replies. Without a reply no worker owns the session, and the worker with the request may begin it.

A reply is the response, or the owner's own topic if the response is not complete. In the second case both workers keep one end of
the request: the owner a `RemoteRequest`, and the worker with the socket a `RemoteSession`. They exchange `ForwardFrame`s.

A killed worker sends no last frame, and frames are lost while the broker is away. So each worker probes the others regularly. A
worker that does not reply `MAX_MISSES` times is gone. A request that one end does not know in two probes in a row is over.

This module knows no protocol. The protocol's handler provides the topics, and decides about a forwarded request (`Accept`).
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
"""probes without a reply after which another worker is gone"""

FrameKind = Literal["write", "finish", "end", "lost", "slow", "leave"]


class ForwardedRequest(msgspec.Struct, frozen=True, array_like=True):
    """A request, as the owner of its session receives it. number: the request's, among those of the worker with the socket.

    to: the topic of that worker.
    """

    endpoint: str
    body: bytes
    number: int
    to: str


class ForwardFrame(msgspec.Struct, frozen=True, array_like=True):
    """What one end of a request sends to the other.

    The owner sends `write`, `finish` and `end`. The worker with the socket sends `lost`, `slow` and `leave`.
    """

    kind: FrameKind
    number: int
    by: str
    """the topic of the worker with the socket"""
    data: bytes = b""
    response: Response | None = None


class Probe(msgspec.Struct, frozen=True, array_like=True):
    """Checks that another worker is alive and knows certain requests. The reply has the requests that it does not know.

    by: the topic of the worker that probes. here: requests whose sockets that worker has. there: requests to its sessions.
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
    """A response that does not end by itself."""

    @property
    def write(self) -> Write: ...

    def close(self) -> None: ...


class OwnedSession(Protocol):
    """A session of this worker, as its requests at other workers use it."""

    def lost(self, request: object) -> None:
        """Handles the end of a request's socket."""

    def too_slow(self, request: object) -> None:
        """Handles that the client of a stream does not read."""

    def leave(self, code: int, reason: str) -> None:
        """Ends the session because a worker stops."""

    def close(self, code: int, reason: str) -> None:
        """Ends the session because of a failure."""


class RemoteRequest:
    """A poll or a stream of a session of this worker. Another worker has the socket. by: the topic of that worker."""

    __slots__ = ("_forwarding", "app", "by", "number", "session")

    def __init__(self, forwarding: "Forwarding", app: App, number: int, by: str) -> None:
        self._forwarding = forwarding
        self.app = app
        self.number = number
        self.by = by
        self.session: OwnedSession | None = None

    def write(self, data: bytes) -> None:
        self._forwarding.send(self, ForwardFrame("write", self.number, self.by, data))

    def finish(self, response: Response) -> None:
        self._forwarding.send(self, ForwardFrame("finish", self.number, self.by, b"", response))
        self._forwarding.forget(self)

    def close(self) -> None:
        self._forwarding.send(self, ForwardFrame("end", self.number, self.by))
        self._forwarding.forget(self)


Accept = Callable[[ForwardedRequest, RemoteRequest], Response | OwnedSession]
"""Serves a forwarded request. Returns the response, or the session that responds later by the `RemoteRequest`."""


class RemoteSession:
    """A session of another worker, as a poll or a stream on this worker uses it.

    by: this worker's topic. send: sends a frame to the owner. ended: called once, when the request is over. gone: the response
    of a poll whose owner is gone; its body ends a stream. owner: the owner's topic, after its reply.
    """

    __slots__ = ("_by", "_ended", "_gone", "_is_over", "_kept", "_number", "_poll", "_send", "_stream", "app", "owner")

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
        self._is_over = False
        self._poll: Exchange | None = None
        self._stream: StreamWriter | None = None

    def on_frame(self, frame: ForwardFrame) -> None:
        """Handles a frame of the owner. A frame that arrives before the request waits is kept."""
        if frame.kind == "finish" and frame.response is not None and self._poll is not None:
            self._end()
            self._poll.finish(frame.response)
        elif self._stream is None:
            self._kept.append(frame)
        elif frame.kind == "write":
            self._stream.write(frame.data)
        else:
            self._end()
            self._stream.close()

    def hold(self, poll: Exchange) -> "RemoteSession | Response":
        """Returns the response of a poll if the owner has sent it. Otherwise the poll waits for it."""
        self._poll = poll
        for frame in self._kept:
            if frame.response is not None:
                self._end()
                return frame.response
        return self

    def stream(self, stream: StreamWriter) -> None:
        """Begins a stream."""
        self._stream = stream
        kept, self._kept = self._kept, []
        for frame in kept:
            self.on_frame(frame)

    def lost(self, request: object) -> None:
        """Handles the end of the request's socket."""
        self._send_to_owner("lost")
        self._end()

    def too_slow(self, request: object) -> None:
        """Handles that the client of the stream does not read."""
        self._send_to_owner("slow")

    def leave(self, code: int, reason: str) -> None:
        """Ends the session because this worker stops."""
        self._send_to_owner("leave")

    def abandon(self) -> None:
        """Ends the request because its owner is gone. The client begins a new session."""
        if self._is_over:
            return
        self._send_to_owner("lost")  # the owner may be alive, and only the broker away
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
    """The forwarded requests of a worker, in both directions.

    prefix: what the topics of workers begin with. gone: see `RemoteSession`.
    """

    def __init__(self, context: EdgeContext, prefix: str, gone: Response) -> None:
        self._context = context
        self._controller = context.node.controller
        self._prefix = prefix
        self._gone = gone
        self._name = ""
        """this worker's topic"""
        self._apps: set[str] = set()
        """apps in which this worker has subscribed to its topic"""
        self._numbers = 0
        self._remote_sessions: dict[int, RemoteSession] = {}
        self._remote_requests: dict[tuple[str, int], RemoteRequest] = {}
        self._misses: Counter[tuple[str, str]] = Counter()
        self._suspects: set[tuple[str, int, bool]] = set()
        """requests that the other worker did not know in the last probe"""
        self._is_probing = False
        self.due_at = NEVER

    # Requests whose sockets this worker has

    async def forward(self, app: App, topic: str, endpoint: str, body: bytes) -> Response | RemoteSession | None:
        """Forwards a request to the owner of a session. Returns the response, or the session that will respond.

        None if no worker owns the session. topic: of the session. Raises Refused(503).
        """
        name = await self._own_topic(app)
        self._numbers += 1
        number = self._numbers
        forget = partial(self._remote_sessions.pop, number, None)
        remote = RemoteSession(app, number, name, partial(self._send_to_owner, app, topic), forget, self._gone)
        self._remote_sessions[number] = remote
        try:
            replies = await self._controller.request(app, topic, _encode(ForwardedRequest(endpoint, body, number, name)))
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
        """Returns the topic on which this worker receives frames, after it has subscribed to it."""
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
        """Ends a request, because its owner did not receive a frame or does not know the request."""
        remote = self._remote_sessions.get(number)
        if remote is not None:
            remote.abandon()

    # Requests of sessions that this worker owns

    async def own(self, app: App, topic: str, accept: Accept) -> None:
        """Receives the forwarded requests of a session that begins on this worker. Raises Refused(503)."""
        await self._own_topic(app)
        await self._controller.handle_topic(
            app, topic, TopicHandler(partial(self._on_request, app, accept), self._on_request_frame)
        )

    async def disown(self, app: App, topic: str) -> None:
        """Receives no more requests of a session."""
        await self._controller.release_topic(app, topic)

    def _on_request(self, app: App, accept: Accept, data: bytes) -> bytes:
        """Replies to a forwarded request: with the response, or with this worker's topic if the response is not complete."""
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
        """Sends a frame to the worker with the socket of a request. May be called within a flush."""
        lost = partial(asyncio.get_running_loop().call_soon, self._on_frame_lost, remote, frame)
        self._controller.send_to_topic(remote.app, remote.by, _encode(frame), lost)

    def _on_frame_lost(self, remote: RemoteRequest, frame: ForwardFrame) -> None:
        """Ends a session, because its client may miss what a frame had for it."""
        self._lose(remote.by, remote.number)
        if frame.kind != "end" and remote.session is not None:
            remote.session.close(4200, "The broker is away, reconnect")

    def _on_request_frame(self, data: bytes) -> None:
        """Handles a frame of the worker that has the socket of a request."""
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
        """Removes a request that is over."""
        self._remote_requests.pop((remote.by, remote.number), None)

    def _lose(self, by: str, number: int) -> None:
        """Handles the end of a request's socket."""
        remote = self._remote_requests.pop((by, number), None)
        if remote is not None and remote.session is not None:
            remote.session.lost(remote)

    # Probes

    def _probe_later(self) -> None:
        if self.due_at == NEVER:
            self._context.sweep.watch(self, self._context.sweep.now + PROBE_SECONDS)

    def due(self, now: float) -> float | None:
        """Probes the other workers, while there are forwarded requests (`sweep.Watched`)."""
        if not self._remote_sessions and not self._remote_requests:
            self._misses.clear()
            self._suspects.clear()
            return None
        if not self._is_probing:
            spawn(self._probe())
        return now + PROBE_SECONDS

    async def _probe(self) -> None:
        """Probes each worker at the other end of a forwarded request."""
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
        """Replies to a probe with the requests that this worker does not know."""
        probe = _decode_probe(data)
        here = [number for number in probe.here if (probe.by, number) not in self._remote_requests]
        return _encode(Probe("", here, [number for number in probe.there if number not in self._remote_sessions]))

    def _end_all(self, app: App, topic: str) -> None:
        """Ends all requests that have their other end at a worker that is gone. topic: of that worker."""
        for remote in [one for one in self._remote_sessions.values() if one.app is app and one.owner == topic]:
            remote.abandon()
        for request in [one for one in self._remote_requests.values() if one.app is app and one.by == topic]:
            self._lose(request.by, request.number)
