"""A session of another worker, as a request on this worker uses it."""

import pytest

from push1st.messages import Response
from push1st.transports.forwarding import ForwardFrame, RemoteSession
from push1st.transports.xhr_stream import Stream

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


def test_stream_ends_with_a_reconnect_code_when_the_owner_is_gone(remote, sent):
    stream = Request()
    remote.stream(stream)
    remote.abandon()
    remote.abandon()
    assert stream.received == [GONE.body, "end"]
    assert sent == ["lost", "forgotten"]


def test_poll_is_answered_with_a_reconnect_code_when_the_owner_is_gone(remote, sent):
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
