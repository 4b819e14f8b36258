"""The live channel on a fake socket: deadlines, the end of the session, slow pages, and the stop of the worker."""

from typing import Any

import pytest
from websockets.frames import Opcode

from push1st.console.endpoints import ConsoleContext
from push1st.console.live import CLOSE_SECONDS, MAX_UNSENT, PING_SECONDS, PONG_SECONDS, Live, LiveSocket
from push1st.console.sessions import OperatorSession
from push1st.console.wire import ConsoleWire
from push1st.messages import ClientRequest
from push1st.transports.handlers import Handshake
from tests.support.frames import close, close_of, frames, masked, text, texts
from tests.support.loop import turns
from tests.support.reports import REPORTS
from tests.support.transport import Site, Transport

HOUR = 3600


class Clock:
    """A part of the console that a page can watch."""

    name = "clock"
    endpoints = ()

    def __init__(self) -> None:
        self.watching: list[LiveSocket] = []

    def watch(self, socket: LiveSocket, _request: Any) -> None:
        self.watching.append(socket)

    def unwatch(self, socket: LiveSocket) -> None:
        self.watching.remove(socket)


class LiveSite(Site):
    """A worker with a live channel."""

    def __init__(self) -> None:
        super().__init__()
        wire = ConsoleWire(self.node, "node")
        self.part = Clock()
        self.live = Live(ConsoleContext(self.node, self.context, wire, "node", 0, REPORTS), [self.part])

    def open(self, seconds: float = HOUR) -> Transport:
        """Opens a socket that watches the part. seconds: the time until the session of the handshake expires."""
        transport = Transport()
        expires = int(self.clock.wall() / 1_000_000_000 + seconds)
        handshake = Handshake("GET", "/api/live", "dGhlIHNhbXBsZSBub25jZQ==", "13", ClientRequest(), "127.0.0.1")
        session = OperatorSession("nonce", expires, expires + HOUR)
        assert isinstance(self.live.upgrade(handshake, session, transport, text({"watch": "clock"}), b""), LiveSocket)
        transport.take()
        return transport


@pytest.fixture
def site() -> LiveSite:
    return LiveSite()


async def test_socket_ends_when_its_session_expires(site):
    transport = site.open(seconds=100)
    await turns()
    assert len(site.part.watching) == 1
    for _ in range(9):
        site.pass_seconds(10)
        transport.protocol.data_received(masked(Opcode.PONG, b""))
        await turns()
    transport.take()
    site.pass_seconds(12)
    assert close_of(transport.data)[0] == 4401
    assert not site.part.watching, "the watches end with the socket"


async def test_silent_page_is_pinged_and_then_ended(site):
    transport = site.open()
    await turns()
    site.pass_seconds(PING_SECONDS + 1)
    assert frames(transport.take()) == [(Opcode.PING, b"")]
    transport.protocol.data_received(masked(Opcode.PONG, b""))
    await turns()
    site.pass_seconds(PING_SECONDS)
    transport.take()
    site.pass_seconds(PONG_SECONDS + 1)
    assert close_of(transport.data)[0] == 4201
    site.pass_seconds(CLOSE_SECONDS + 1)
    assert transport.aborted
    assert not site.failures


async def test_page_that_does_not_read_is_ended_within_the_bound(site):
    transport = site.open()
    await turns()
    (socket,) = site.part.watching
    assert transport.high == MAX_UNSENT
    transport.bound = 1000
    for _ in range(3):
        socket.send(b"x" * 600)
    await turns()
    assert socket.closed
    assert transport.closed
    assert not site.part.watching
    socket.send(b"later")
    site.pass_seconds(CLOSE_SECONDS + 1)
    assert transport.aborted, "the page has no time to read what it did not read before"


async def test_stop_of_the_worker_ends_the_socket(site):
    transport = site.open()
    await turns()
    (connection,) = site.context.open
    connection.leave(4200, "the server stops")
    assert close_of(transport.data) == (4200, "the server stops")
    transport.protocol.connection_lost(None)
    assert not site.context.open


async def test_closing_page_gets_its_close_frame_and_lost_page_is_forgotten(site):
    closing, lost = site.open(), site.open()
    await turns()
    closing.protocol.data_received(close(1000))
    lost.protocol.connection_lost(ConnectionResetError())
    await turns()
    assert close_of(closing.data)[0] == 1000
    assert not site.part.watching
    site.pass_seconds(HOUR)
    assert not site.failures


async def test_ping_of_the_page_is_answered_and_unknown_names_are_errors(site):
    transport = site.open()
    await turns()
    transport.protocol.data_received(masked(Opcode.PING, b"1") + text({"unwatch": "other"}) + text({"unwatch": "clock"}))
    await turns()
    assert not site.part.watching
    assert frames(transport.data)[0] == (Opcode.PONG, b"1")
    (answer,) = texts(transport.data)
    assert "clock" in answer["error"]
