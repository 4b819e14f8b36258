"""Responses of the HTTP fallbacks: streams and polls, the length at which pusher-js drops them, and the socket."""

import asyncio
import json
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from push1st.messages import Response
from push1st.transports import xhr_stream
from push1st.transports.xhr_session import (
    FULL_SECONDS,
    GAP_SECONDS,
    HEARTBEAT_SECONDS,
)
from push1st.transports.xhr_stream import CLOSE_SECONDS
from tests.support.http import Answer, request
from tests.support.loop import turns
from tests.support.transport import Site
from tests.support.xhr import (
    POLL,
    STREAM,
    WELCOME,
    ask,
    events,
    frames_of,
    polled,
    publish,
    send,
    stream,
    subscribe,
    subscribed,
)

DIGITS = "0123456789"


async def test_stream_after_unread_answers_ends_the_connection():
    """The socket of a client that reads no answers is not read. A stream would never read it again, and would miss its end."""
    waiting: asyncio.Future[Response] = asyncio.get_running_loop().create_future()

    async def serve(_: object) -> Response:
        return await waiting

    site = Site(serve=serve)
    connection, transport = site.connect()
    connection.data_received(request("GET", "/wait") + request("POST", STREAM))
    await turns()
    connection.pause_writing()
    waiting.set_result(Response(200, b"x" * 1000))
    await turns()
    assert transport.aborted
    connection.connection_lost(None)
    await turns()
    assert connection not in site.context.open
    assert len(site.fallbacks._clients) == 1
    site.pass_seconds(GAP_SECONDS + 1)
    assert not site.fallbacks._clients
    assert not site.failures


async def test_a_stream_begins_with_a_welcome_and_does_not_end(site):
    transport = await ask(site, STREAM)
    head, _, rest = transport.data.partition(b"\r\n\r\n")
    names = head.decode().lower().split("\r\n")
    assert "connection: close" in names
    assert not [name for name in names if name.startswith(("content-length", "transfer-encoding"))]
    assert events(rest) == WELCOME
    assert not transport.closed


async def test_poll_ends_with_the_frames_of_the_turn(site):
    transport = await ask(site, POLL)
    answer = Answer(transport.data)
    assert events(answer.body) == WELCOME
    assert answer.keeps
    assert not transport.closed


async def test_polls_continue_on_one_connection(site):
    connection, transport = site.connect()
    connection.data_received(request("POST", POLL, b""))
    await turns()
    await subscribe(site)
    transport.take()
    connection.data_received(request("POST", POLL, b""))
    await turns()
    assert events(Answer(transport.take()).body) == ["subscription_succeeded"]
    connection.data_received(request("POST", POLL, b""))
    await turns()
    assert transport.data == b""
    await publish(site, "1", "2")
    assert events(Answer(transport.data).body) == ["1", "2"]


class PusherJs:
    """Reads a response like pusher-js: takes whole frames, and drops the response if a frame ends after `longest` characters.

    Characters that it has received and not taken by then are lost.
    """

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.text = ""
        self.at = 0
        self.got: list = []

    def read(self, more: str) -> bool:
        """Returns whether pusher-js still reads the response."""
        self.text += more
        end = self.text.rfind("\n") + 1
        self.got += events(self.text[self.at : end].encode())
        self.at = end
        length = len(self.text.encode("utf-16-le")) // 2
        return not (end == len(self.text) and length > self.longest)

    def fresh(self) -> None:
        self.text, self.at = "", 0


@settings(max_examples=60)
@given(
    texts=st.lists(st.text(st.sampled_from("xü世🦀"), max_size=40), min_size=4, max_size=30),
    cuts=st.lists(st.tuples(st.integers(1, 400), st.booleans()), min_size=1, max_size=20),
    turns_after=st.sets(st.integers(0, 29)),
    kept=st.integers(0, 30),
    endpoint=st.sampled_from([STREAM, POLL]),
)
def test_nothing_is_lost_or_doubled_when_the_client_drops_a_response(texts, cuts, turns_after, kept, endpoint):
    """This holds for any split of the bytes on their way, and for frames that were stored or sent while the response was open."""

    async def go():
        site = Site()
        client = PusherJs(300)
        transport = await subscribed(site)
        transport.protocol.connection_lost(None)
        numbered = [f"{n} {text}" for n, text in enumerate(texts)]

        async def publish_some(start: int, end: int) -> None:
            for n, one in enumerate(numbered[start:end]):
                site.world.publish("c", json.dumps(one, ensure_ascii=False).encode())
                if n in turns_after:
                    await turns()
            await turns()

        await publish_some(0, kept)
        for n in range(100):
            if len(client.got) == len(texts):
                break
            client.fresh()
            transport = await ask(site, endpoint)
            if not n:
                await publish_some(kept, len(texts))
            data = transport.take().partition(b"\r\n\r\n")[2].decode()
            piece, wanted = 0, True
            while data:
                size, whole = cuts[piece % len(cuts)]
                size = data.find("\n", size) + 1 or len(data) if whole else size
                piece += 1
                wanted = client.read(data[:size])
                data = data[size:]
                if not wanted:
                    break
            assert not wanted or endpoint == POLL or client.got == numbered, "it waits for a request that never comes"
            transport.protocol.connection_lost(None)
        assert client.got == numbered
        assert site.failures == []

    with patch.object(xhr_stream, "MAX_RESPONSE", 300):
        asyncio.run(go())


async def test_full_stream_gets_only_heartbeats(site, monkeypatch):
    monkeypatch.setattr(xhr_stream, "MAX_RESPONSE", 500)
    transport = await subscribed(site)
    await publish(site, *["x" * 100] * 5)
    assert len(frames_of(transport)) < 5
    await publish(site, "later")
    assert frames_of(transport) == []
    site.pass_seconds(HEARTBEAT_SECONDS)
    assert frames_of(transport) == ["h"]
    rest = await stream(site)
    assert transport.closed
    assert frames_of(rest)[-1] == "later"


async def test_client_that_does_not_continue_after_a_full_response_must_reconnect(site, monkeypatch):
    monkeypatch.setattr(xhr_stream, "MAX_RESPONSE", 300)
    transport = await subscribed(site)
    await publish(site, "x" * 200, "more")
    for _ in range(FULL_SECONDS // 10 + 1):
        site.pass_seconds(10)
        await send(site)
    await turns()
    assert frames_of(transport)[-2:] == ["error", 4200]
    assert transport.closed
    assert await polled(site) == ["more", "error", 4200]


async def test_poll_response_ends_with_the_frame_at_which_the_client_drops_it(site, monkeypatch):
    monkeypatch.setattr(xhr_stream, "MAX_RESPONSE", 100)
    await polled(site)
    await subscribe(site)
    await publish(site, *DIGITS)
    found: list = []
    while len(found) < 11:
        part = await polled(site)
        assert len(part) < 3
        found += part
    assert found == ["subscription_succeeded", *DIGITS]


async def test_slow_stream_is_ended(site):
    transport = await subscribed(site)
    assert transport.high == site.config.server.outbox
    transport.bound = 0
    await publish(site, "1")
    assert frames_of(transport) == ["1", "error", 4100]
    assert transport.closed
    assert site.metrics.cut_offs == {"slow": 1}
    site.pass_seconds(CLOSE_SECONDS + 1)
    assert transport.aborted


async def test_slow_displaced_stream_does_not_end_its_successor(site):
    first = await subscribed(site)
    second = await stream(site)
    first.protocol.pause_writing()
    await publish(site, "1")
    assert frames_of(second) == ["1"]


async def test_bytes_after_a_stream_request_are_ignored(site):
    transport = await site.ask(request("POST", STREAM, b"") + request("GET", "/health"))
    transport.protocol.data_received(b"\0garbage")
    await turns()
    assert transport.data.count(b"HTTP/1.1") == 1
    assert site.failures == []
    site.pass_seconds(HEARTBEAT_SECONDS)
    assert transport.data.endswith(b"h\n")


async def test_requests_before_a_stream_are_answered_first(site):
    transport = await site.ask(request("GET", "/health") + request("POST", STREAM, b""))
    first = Answer(transport.data)
    assert first.json == {"status": "ok"}
    assert events(first.rest.partition(b"\r\n\r\n")[2]) == WELCOME


@pytest.mark.parametrize("path", [STREAM, POLL])
async def test_fallback_request_waits_for_earlier_answers(path):
    waits = asyncio.get_running_loop().create_future()

    async def serve(_):
        return await waits

    site = Site(serve=serve)
    connection, transport = site.connect()
    connection.data_received(request("GET", "/slow") + request("POST", path, b"") + request("GET", "/never"))
    await turns()
    assert transport.data == b""
    waits.set_result(Response(200, b"{}"))
    await turns(8)
    first = Answer(transport.data)
    assert first.json == {}
    assert events(first.rest.partition(b"\r\n\r\n")[2].partition(b"HTTP")[0]) == WELCOME
    assert site.failures == []


async def test_stream_starts_without_keep_alive(site):
    transport = await site.ask(request("POST", STREAM, b"", version="1.0"))
    assert events(transport.data.partition(b"\r\n\r\n")[2]) == WELCOME
    assert not transport.closed


async def test_stream_request_with_another_upgrade_is_a_stream(site):
    transport = await site.ask(request("POST", STREAM, b"", "Connection: Upgrade", "Upgrade: h2c"))
    await turns()
    assert events(transport.data.partition(b"\r\n\r\n")[2]) == WELCOME
    assert site.failures == []
    transport.protocol.connection_lost(None)
    assert not [one for one in site.context.open if one is transport.protocol]
