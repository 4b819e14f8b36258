"""Forwarded requests: both ends of a request, and the frames and probes between two workers."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from push1st.core.app import App
from push1st.core.controller import TopicHandler
from push1st.errors import Refused
from push1st.messages import Response
from push1st.metrics import AppCounts
from push1st.transports.forwarding import (
    MAX_MISSES,
    PROBE_SECONDS,
    ForwardedRequest,
    ForwardFrame,
    Forwarding,
    RemoteRequest,
    RemoteSession,
)
from push1st.transports.sweep import Sweep
from push1st.transports.xhr_stream import Stream
from tests.support.loop import Clock, turns
from tests.support.node import app_config

GONE = Response(200, b"gone")


class Request:
    """A poll or a stream that records what it receives."""

    def __init__(self) -> None:
        self.received: list[object] = []

    def finish(self, response: Response) -> None:
        self.received.append(response.body)

    def write(self, data: bytes) -> None:
        self.received.append(data)

    def close(self) -> None:
        self.received.append("end")


@pytest.fixture
def sent() -> list[str]:
    return []


@pytest.fixture
def remote(sent: list[str]) -> RemoteSession:
    def send(frame: ForwardFrame) -> None:
        sent.append(frame.kind)

    return RemoteSession(None, 1, "#xhr-at-here", send, lambda: sent.append("forgotten"), GONE)  # type: ignore[arg-type]


def test_stream_ends_with_a_reconnect_code_when_the_owner_has_ended(remote, sent):
    stream = Request()
    remote.stream(stream)
    remote.abandon()
    remote.abandon()
    assert stream.received == [GONE.body, "end"]
    assert sent == ["lost", "forgotten"]


def test_poll_is_answered_with_a_reconnect_code_when_the_owner_has_ended(remote, sent):
    poll = Request()
    remote.hold(poll)
    remote.abandon()
    assert poll.received == [GONE.body]
    assert sent == ["lost", "forgotten"]


def test_stream_that_the_owner_ended_is_not_ended_again(remote):
    stream = Request()
    remote.stream(stream)
    remote.on_frame(ForwardFrame("end", 1, "#xhr-at-here"))
    remote.abandon()
    assert stream.received == ["end"]


def test_stream_that_never_started_is_reported_lost_to_the_owner(remote, sent):
    Stream(remote, None).lost(None)  # type: ignore[arg-type]
    assert sent == ["lost", "forgotten"]


# Two workers

TOPIC = "#session"


class Broker:
    """The connection between the workers. is_away: whether it rejects requests and loses messages."""

    def __init__(self) -> None:
        self.workers: list[Controller] = []
        self.is_away = False


class Controller:
    """The controller of a worker. is_hung: whether the worker receives nothing."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.handlers: dict[str, TopicHandler] = {}
        self.is_hung = False
        broker.workers.append(self)

    def _handlers_of(self, topic: str) -> list[TopicHandler]:
        return [one.handlers[topic] for one in self.broker.workers if topic in one.handlers and not one.is_hung]

    async def handle_topic(self, app: App, topic: str, handler: TopicHandler) -> None:
        self.handlers[topic] = handler

    async def release_topic(self, app: App, topic: str) -> None:
        del self.handlers[topic]

    async def request(self, app: App, topic: str, request: bytes) -> Sequence[bytes]:
        if self.broker.is_away:
            raise Refused(503, "the broker is away")
        return [handler.on_request(request) for handler in self._handlers_of(topic)]

    def send_to_topic(self, app: App, topic: str, data: bytes, lost: Callable[[], object]) -> None:
        if self.broker.is_away:
            lost()
            return
        for handler in self._handlers_of(topic):
            handler.on_message(data)


class WorkerSession:
    """A session of a worker, and the worker. reply: its response to a forwarded request; None if the request waits."""

    def __init__(self, broker: Broker, clock: Clock, name: str) -> None:
        self.controller = Controller(broker)
        self.sweep = Sweep(clock.monotonic, self._fail, lambda: None)
        node = SimpleNamespace(controller=self.controller, new_id=lambda: name)
        context: Any = SimpleNamespace(node=node, sweep=self.sweep)
        self.forwarding = Forwarding(context, "#worker-", GONE)
        self.app = App(app_config(), 0.0, AppCounts())
        self.reply: Response | None = None
        self.requests: list[ForwardedRequest] = []
        self.remote: RemoteRequest
        self.calls: list[tuple[object, ...]] = []

    def _fail(self) -> None:
        raise AssertionError("the sweep failed")

    async def own(self) -> None:
        await self.forwarding.own(self.app, TOPIC, self.accept)

    async def forward(self) -> RemoteSession:
        remote = await self.forwarding.forward(self.app, TOPIC, "read", b"body", "n=1")
        assert isinstance(remote, RemoteSession)
        return remote

    def accept(self, request: ForwardedRequest, remote: RemoteRequest) -> "Response | WorkerSession":
        self.requests.append(request)
        self.remote = remote
        return self if self.reply is None else self.reply

    def lost(self, request: object) -> None:
        assert request is self.remote
        self.calls.append(("lost",))

    def too_slow(self, request: object) -> None:
        assert request is self.remote
        self.calls.append(("slow",))

    def leave(self, code: int, reason: str) -> None:
        self.calls.append(("leave", code))

    def close(self, code: int, reason: str) -> None:
        self.calls.append(("close", code))


class Pair:
    """An owner of a session, and a worker that receives a request of this session."""

    def __init__(self) -> None:
        self.broker = Broker()
        self.clock = Clock()
        self.owner = WorkerSession(self.broker, self.clock, "owner")
        self.other = WorkerSession(self.broker, self.clock, "other")

    async def stream(self) -> tuple[RemoteSession, Request]:
        """A stream at the other worker, of a session of the owner."""
        await self.owner.own()
        remote, stream = await self.other.forward(), Request()
        remote.stream(stream)
        return remote, stream

    async def probe(self, times: int = 1) -> None:
        for _ in range(times):
            self.clock.advance(PROBE_SECONDS)
            for one in (self.owner, self.other):
                one.sweep.run()
            await turns()


@pytest.fixture
def pair() -> Pair:
    return Pair()


async def test_request_of_a_session_without_an_owner_is_not_forwarded(pair):
    assert await pair.other.forwarding.forward(pair.other.app, TOPIC, "read", b"", "n=1") is None


async def test_request_is_answered_by_the_owner(pair):
    await pair.owner.own()
    pair.owner.reply = Response(200, b"answer")
    answer = await pair.other.forwarding.forward(pair.other.app, TOPIC, "send", b"body", "n=1")
    assert answer == pair.owner.reply
    assert [(one.endpoint, one.body) for one in pair.owner.requests] == [("send", b"body")]


async def test_released_session_receives_no_requests(pair):
    await pair.owner.own()
    await pair.owner.forwarding.disown(pair.owner.app, TOPIC)
    assert await pair.other.forwarding.forward(pair.other.app, TOPIC, "read", b"", "n=1") is None


async def test_poll_waits_for_the_response_of_the_owner(pair):
    await pair.owner.own()
    remote, poll = await pair.other.forward(), Request()
    assert remote.hold(poll) is remote
    pair.owner.remote.finish(Response(200, b"later"))
    assert poll.received == [b"later"]
    remote.lost(poll)
    assert pair.owner.calls == []


async def test_poll_returns_a_response_that_arrived_before_it_waits(pair):
    await pair.owner.own()
    remote = await pair.other.forward()
    pair.owner.remote.finish(Response(200, b"early"))
    assert remote.hold(Request()) == Response(200, b"early")


async def test_stream_writes_frames_of_the_owner_in_order(pair):
    await pair.owner.own()
    remote, stream = await pair.other.forward(), Request()
    pair.owner.remote.write(b"1")
    remote.stream(stream)
    pair.owner.remote.write(b"2")
    pair.owner.remote.close()
    assert stream.received == [b"1", b"2", "end"]


@pytest.mark.parametrize("early", [False, True])
async def test_stream_that_lacks_a_frame_ends(pair, early):
    await pair.owner.own()
    remote, stream = await pair.other.forward(), Request()
    pair.owner.remote.write(b"1")
    if not early:
        remote.stream(stream)
    pair.other.controller.is_hung = True
    pair.owner.remote.write(b"2")
    pair.other.controller.is_hung = False
    pair.owner.remote.write(b"3")
    pair.owner.remote.write(b"4")
    if early:
        remote.stream(stream)
    assert stream.received == [b"1", GONE.body, "end"]
    assert pair.owner.calls == [("lost",)]


async def test_stream_of_an_owner_that_sends_no_indexes_goes_on(remote):
    stream = Request()
    remote.stream(stream)
    for data in (b"1", b"2"):
        remote.on_frame(ForwardFrame("write", 1, "#xhr-at-here", data))
    assert stream.received == [b"1", b"2"]


async def test_owner_handles_the_end_of_a_socket_once(pair):
    remote, stream = await pair.stream()
    remote.lost(stream)
    remote.lost(stream)
    assert pair.owner.calls == [("lost",)]


async def test_owner_handles_a_slow_client_and_a_worker_that_stops(pair):
    remote, stream = await pair.stream()
    remote.too_slow(stream)
    remote.leave(4200, "")
    assert pair.owner.calls == [("slow",), ("leave", 4200)]


async def test_session_ends_when_a_frame_to_its_client_is_lost(pair):
    _, stream = await pair.stream()
    pair.broker.is_away = True
    pair.owner.remote.write(b"1")
    await turns()
    assert pair.owner.calls == [("lost",), ("close", 4200)]
    assert stream.received == []


async def test_request_ends_when_a_frame_to_its_owner_is_lost(pair):
    remote, stream = await pair.stream()
    pair.broker.is_away = True
    remote.too_slow(stream)
    await turns()
    assert stream.received == [GONE.body, "end"]


async def test_request_is_rejected_while_the_broker_is_away(pair):
    await pair.stream()
    pair.broker.is_away = True
    with pytest.raises(Refused):
        await pair.other.forwarding.forward(pair.other.app, TOPIC, "read", b"", "n=1")


async def test_probes_keep_requests_that_both_workers_know(pair):
    _, stream = await pair.stream()
    await pair.probe(5 * MAX_MISSES)
    assert (stream.received, pair.owner.calls) == ([], [])


async def test_requests_end_when_their_owner_does_not_reply_to_probes(pair):
    _, stream = await pair.stream()
    pair.owner.controller.is_hung = True
    await pair.probe(MAX_MISSES - 1)
    assert stream.received == []
    await pair.probe()
    assert stream.received == [GONE.body, "end"]


async def test_session_loses_its_request_when_the_other_worker_does_not_reply_to_probes(pair):
    await pair.stream()
    pair.other.controller.is_hung = True
    await pair.probe(MAX_MISSES)
    assert pair.owner.calls == [("lost",)]


async def test_a_reply_to_a_probe_resets_the_misses(pair):
    _, stream = await pair.stream()
    for _ in range(3):
        pair.owner.controller.is_hung = True
        await pair.probe(MAX_MISSES - 1)
        pair.owner.controller.is_hung = False
        await pair.probe()
    assert stream.received == []


async def test_request_unknown_to_its_owner_in_two_probes_ends(pair):
    """The owner sent the last frame while the broker was away."""
    _, stream = await pair.stream()
    pair.owner.forwarding.forget(pair.owner.remote)
    await pair.probe()
    assert stream.received == []
    await pair.probe()
    assert stream.received == [GONE.body, "end"]


async def test_request_unknown_to_the_other_worker_in_two_probes_is_lost(pair):
    remote, _ = await pair.stream()
    pair.other.forwarding._remote_sessions.clear()
    await pair.probe()
    assert pair.owner.calls == []
    await pair.probe()
    assert pair.owner.calls == [("lost",)]
    assert not remote.owner.startswith(TOPIC)


async def test_probes_end_no_request_while_the_broker_is_away(pair):
    _, stream = await pair.stream()
    pair.broker.is_away = True
    await pair.probe(2 * MAX_MISSES)
    pair.broker.is_away = False
    await pair.probe()
    assert (stream.received, pair.owner.calls) == ([], [])


async def test_workers_without_forwarded_requests_do_not_probe(pair):
    remote, stream = await pair.stream()
    remote.lost(stream)
    await pair.probe(2)
    assert pair.owner.sweep._buckets == pair.other.sweep._buckets == {}
