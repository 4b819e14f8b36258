"""HTTP fallbacks of pusher-js on fake sockets: displaced requests, stored frames, heartbeats, bounds, ends."""

import asyncio
import json
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from push1st.config.model import Networks, ProtocolConfig, ServerConfig
from push1st.core.session import WAITING
from push1st.messages import Response
from push1st.transports import xhr_stream
from push1st.transports.http import HttpConnection
from push1st.transports.places import Places
from push1st.transports.turn import MAX_WAITING
from push1st.transports.xhr_input import MAX_MESSAGES_A_SLICE
from push1st.transports.xhr_session import (
    FULL_SECONDS,
    GAP_SECONDS,
    HEARTBEAT_SECONDS,
    MAX_MESSAGES,
    PONG_SECONDS,
    QUIET_SECONDS,
)
from push1st.transports.xhr_stream import CLOSE_SECONDS
from tests.support.http import Answer, answers, request, statuses
from tests.support.loop import turns
from tests.support.node import APP, KEY, app_config, token
from tests.support.transport import Site, Transport

PATH = f"/pusher/app/{KEY}/7/session0"
STREAM = PATH + "/xhr_streaming?protocol=7"
POLL = PATH + "/xhr?protocol=7"
SEND = PATH + "/xhr_send"
TIMEOUT = 120
DIGITS = "0123456789"


@pytest.fixture
def site():
    return Site()


def events(lines: bytes) -> list:
    """Returns frames as pusher-js reads them: single letters, the names of events, and the data of events named `e`."""
    found: list = []
    assert not lines or lines.endswith(b"\n")
    for line in lines.splitlines():
        match line[:1]:
            case b"a":
                for one in json.loads(line[1:]):
                    frame = json.loads(one)
                    found.append(frame["data"] if frame["event"] == "e" else frame["event"].rpartition(":")[2])
            case b"c":
                found.append(json.loads(line[1:])[0])
            case _:
                assert len(line) == 1
                found.append(line.decode())
    return found


WELCOME = ["o", "connection_established"]


async def ask(site: Site, path: str, body: bytes | str = b"", *headers: str) -> Transport:
    return await site.ask(request("POST", path, body, *headers))


async def stream(site: Site, *headers: str, path: str = STREAM) -> Transport:
    """Opens a stream; removes the head of its response."""
    transport = await ask(site, path, b"", *headers)
    head, separator, rest = transport.take().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert separator
    transport.writes.append(rest)
    return transport


def heard(transport: Transport) -> list:
    """Returns the frames of a stream since the last call."""
    return events(transport.take())


async def send(site: Site, *texts: object, path: str = SEND) -> int:
    body = json.dumps([one if isinstance(one, str) else json.dumps(one) for one in texts])
    return Answer((await ask(site, path, body)).data).status


async def subscribe(site: Site, channel: str = "c", auth: str = "") -> None:
    wanted = {"event": "pusher:subscribe", "data": {"channel": channel, "auth": auth}}
    assert await send(site, wanted) == 200


async def publish(site: Site, *data: str) -> None:
    for one in data:
        site.world.publish("c", json.dumps(one, ensure_ascii=False).encode())
    await turns()


async def subscribed(site: Site) -> Transport:
    """Opens a stream subscribed to the channel `c`, and reads its first frames."""
    transport = await stream(site)
    await subscribe(site)
    assert heard(transport) == [*WELCOME, "subscription_succeeded"]
    return transport


PROTOCOL_PING = {"event": "pusher:ping", "data": {}}


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


async def test_messages_of_a_request_are_applied_in_slices(site):
    transport = await stream(site)
    transport.take()
    connection, sending = site.connect()
    body = json.dumps([json.dumps(PROTOCOL_PING)] * MAX_MESSAGES)
    connection.data_received(request("POST", SEND, body) + request("POST", SEND, body))
    site.context.turn.catch_up()
    assert heard(transport) == ["pong"] * MAX_MESSAGES_A_SLICE
    assert sending.data == b""
    await turns(20)
    assert statuses(sending.data) == [200, 200]
    assert len(heard(transport)) == 2 * MAX_MESSAGES - MAX_MESSAGES_A_SLICE


async def test_requests_wait_while_commands_wait():
    site = Site(slow=True)
    transport = await stream(site)
    site.world.broker.held = {"subscribe"}
    wanted = [{"event": "pusher:subscribe", "data": {"channel": f"c{number}"}} for number in range(3 * MAX_MESSAGES)]
    assert await send(site, *wanted[:MAX_MESSAGES]) == 200
    connection, sending = site.connect()
    for at in (MAX_MESSAGES, 2 * MAX_MESSAGES):
        body = json.dumps([json.dumps(one) for one in wanted[at : at + MAX_MESSAGES]])
        connection.data_received(request("POST", SEND, body))
    await turns(10)
    assert sending.data == b""
    assert len(session_of(site).waiting) == MAX_WAITING
    await site.world.broker.let_all()
    await turns(30)
    assert statuses(sending.data) == [200, 200]
    await site.world.broker.let_all()
    await turns(30)
    assert len(session_of(site).subscriptions) == len(wanted)
    assert not transport.closed


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_requests_that_wait_are_answered_when_their_session_ends(how):
    site = Site(slow=True)
    await stream(site)
    site.world.broker.held = {"subscribe"}
    wanted = [json.dumps({"event": "pusher:subscribe", "data": {"channel": f"c{n}"}}) for n in range(MAX_MESSAGES)]
    connection, sending = site.connect()
    connection.data_received(request("POST", SEND, json.dumps(wanted)) + request("POST", SEND, json.dumps(wanted)))
    await turns(20)
    assert statuses(sending.data) == [200]
    (client,) = site.fallbacks._clients.values()
    client.close(4009, "bye") if how == "close" else client.abort()
    await turns(5)
    assert statuses(sending.data) == [200, 200]
    await site.world.broker.let_all()
    assert site.failures == []


async def test_session_with_too_many_messages_that_wait_is_ended():
    site = Site(slow=True)
    transport = await stream(site)
    site.world.broker.held = {"subscribe"}
    (client,) = site.fallbacks._clients.values()
    body = json.dumps([json.dumps(PROTOCOL_PING)] * MAX_MESSAGES).encode()
    await subscribe(site)
    for _ in range(WAITING // MAX_MESSAGES + 3):
        client.receive(body)
    await turns(5)
    assert heard(transport)[-1] == 4100
    assert site.metrics.cut_offs == {"queue-full": 1}
    await site.world.broker.let_all()


async def polled(site: Site) -> list:
    """Returns the frames of a poll that does not wait."""
    answer = Answer((await ask(site, POLL)).data)
    assert answer.status == 200
    return events(answer.body)


def session_of(site: Site):
    (session,) = site.world.app.tenant.sessions.values()
    return session


# New sessions


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


@pytest.mark.parametrize("path", ["/app/", "/pusher/app/"])
@pytest.mark.parametrize("endpoint", ["xhr", "xhr_streaming"])
async def test_both_paths_and_both_roads_are_served(site, path, endpoint):
    transport = await ask(site, f"{path}{KEY}/999/abcdefgh/{endpoint}?protocol=7&t=1&n=2")
    assert transport.data.endswith(b"\n")
    assert events(transport.data.partition(b"\r\n\r\n")[2]) == WELCOME


REFUSALS = {
    "an unknown app": ("/app/unknown/7/abcdefgh/xhr?protocol=7", 4001),
    "a version that is no number": (f"/app/{KEY}/7/abcdefgh/xhr?protocol=seven", 4006),
    "an old version": (f"/app/{KEY}/7/abcdefgh/xhr?protocol=3", 4007),
}


@pytest.mark.parametrize(("path", "code"), REFUSALS.values(), ids=REFUSALS)
@pytest.mark.parametrize("endpoint", ["xhr", "xhr_streaming"])
async def test_rejected_client_gets_a_close_code(site, path, code, endpoint):
    """The code follows a welcome, because without one pusher-js would reconnect forever."""
    answer = Answer((await ask(site, path.replace("/xhr", f"/{endpoint}"))).data)
    assert (answer.status, events(answer.body)) == (200, ["o", "error", code])
    assert site.metrics.refusals == {str(code): 1}
    assert site.fallbacks.detached.taken == 0


async def test_limits_and_origins_of_the_app_hold():
    site = Site(app_config({"connections": 1}, origins=("https://good.example",)))
    answer = Answer((await ask(site, POLL, b"", "Origin: https://bad.example")).data)
    assert events(answer.body) == ["o", "error", 4009]
    await stream(site, "Origin: https://good.example")
    answer = Answer((await ask(site, POLL, b"", "Origin: https://www.good.example")).data)
    assert events(answer.body) == ["o", "error", 4009]
    answer = Answer((await ask(site, POLL)).data)
    assert events(answer.body) == ["o", "error", 4004]
    assert site.fallbacks.detached.taken == 0


async def test_stopping_server_rejects_sessions(site):
    site.node.draining = True
    assert await polled(site) == ["o", "error", 4100]


async def test_stream_is_counted(site):
    await stream(site)
    assert (site.metrics.connections["pusher-xhr"], site.metrics.opened["pusher-xhr"]) == (1, 1)
    site.pass_seconds(1)
    session_of(site).disconnect(4009, "go")
    assert site.metrics.connections["pusher-xhr"] == 0


OFFICE, HOME, ELSEWHERE = "203.0.113.9", "198.51.100.7", "2001:db8::7"


async def polled_as(site: Site, n: int, peer: object = ("127.0.0.1", 40_000), key: str = KEY) -> list:
    """Returns the frames of the first poll of a session. n: the number of the session."""
    path = POLL.replace("session0", f"session{n}").replace(KEY, key)
    return events(Answer((await site.ask(request("POST", path, b""), peer)).data).body)


def bounded(max_detached: int, *apps: Any, **more: Any) -> Site:
    """Makes a site with this bound of sessions without a request."""
    site = Site(*apps, **more)
    site.fallbacks.detached = Places(max_detached)
    return site


async def test_sessions_between_requests_are_bounded():
    site = bounded(4, app_config(), app_config(id="other", key="other-key"), app_config(id="third", key="third-key"))
    for n in range(2):
        assert await polled_as(site, n) == WELCOME
        assert await polled_as(site, n, key="other-key") == WELCOME
    assert await polled_as(site, 2, key="third-key") == ["o", "error", 4100]
    site.pass_seconds(GAP_SECONDS + 1)
    assert await polled_as(site, 3) == WELCOME
    assert site.fallbacks.detached.taken == 1


async def test_an_app_has_three_quarters_of_the_sessions_between_requests():
    site = bounded(8, app_config(), app_config(id="other", key="other-key"))
    for n in range(6):
        assert await polled_as(site, n) == WELCOME
    for n in range(6, 20):
        assert await polled_as(site, n) == ["o", "error", 4100]
    for n in range(2):
        assert await polled_as(site, n, key="other-key") == WELCOME
    site.pass_seconds(GAP_SECONDS + 1)
    assert await polled_as(site, 0) == WELCOME


async def test_an_address_has_half_of_the_sessions_between_requests():
    site = bounded(8)
    for n in range(20):
        assert await polled_as(site, n, (OFFICE, 1)) == (WELCOME if n < 4 else ["o", "error", 4100])
    assert await polled_as(site, 20, (HOME, 1)) == WELCOME
    site.pass_seconds(GAP_SECONDS + 1)
    assert await polled_as(site, 21, (OFFICE, 1)) == WELCOME


async def test_the_bound_of_an_address_leaves_its_established_sessions_alone():
    site = bounded(4)
    streaming = await site.ask(request("POST", STREAM, b""), (OFFICE, 1))
    for n in range(1, 9):
        await polled_as(site, n, (OFFICE, 1))
    assert await polled_as(site, 9, (OFFICE, 1)) == ["o", "error", 4100]
    streaming.take()
    await subscribe(site)
    await publish(site, "1")
    assert heard(streaming) == ["subscription_succeeded", "1"]
    streaming.protocol.connection_lost(None)
    await publish(site, "2")
    again = await site.ask(request("POST", STREAM, b""), (OFFICE, 1))
    assert events(again.data.partition(b"\r\n\r\n")[2]) == ["2"]


@pytest.mark.parametrize("peer", ["", ("127.0.0.1", 1), ("127.8.0.1", 1), ("::1", 1, 0, 0), ("::ffff:127.0.0.1", 1, 0, 0)])
async def test_loopback_and_unix_sockets_have_no_bound_per_address(peer):
    site = bounded(8)
    assert [await polled_as(site, n, peer) for n in range(6)] == [WELCOME] * 6


async def test_clients_of_a_known_proxy_have_addresses_of_their_own():
    site = bounded(8, server=ServerConfig(proxies=Networks.parse(("10.0.0.1",))))
    for n in range(6):
        path = POLL.replace("session0", f"session{n}")
        asked = request("POST", path, b"", f"X-Forwarded-For: 203.0.113.{n}")
        assert events(Answer((await site.ask(asked, ("10.0.0.1", 1))).data).body) == WELCOME


async def test_the_first_session_over_a_bound_is_logged_and_those_after_it_once_a_minute():
    site = bounded(4)
    with capture_logs() as logged:
        for n in range(30):
            await polled_as(site, n, (OFFICE, 1))
    (line,) = logged
    assert (line["log_level"], line["bound"], line["most"], line["address"]) == ("warning", "address", 2, OFFICE)
    assert "server.proxies" in line["hint"]
    assert site.metrics.refusals == {"4100": 28}
    with capture_logs() as logged:
        site.pass_seconds(5)
        await polled_as(site, 30, (OFFICE, 1))
        assert logged == []
        for n in range(31, 40):
            site.pass_seconds(10)
            for more in range(3):
                await polled_as(site, 10 * n + more, (OFFICE, 1))
    assert 1 <= len(logged) <= 2


async def test_no_path_of_theirs_reaches_the_api(site):
    """This holds even after headers that are remembered from calls of the API."""
    connection, transport = site.connect()
    connection.data_received(request("POST", f"/apps/{APP}/events", '{"name":"e","channel":"c","data":1}'))
    await turns()
    assert site.handlers.heads
    connection.data_received(request("POST", SEND, '[""]'.ljust(35)))
    connection.data_received(request("GET", SEND))
    connection.data_received(request("OPTIONS", SEND))
    await turns()
    first, missing, wrong, preflight = answers(transport.data)
    assert first.status == 200
    assert (missing.status, missing.json["error"]) == (404, "no session has this id")
    assert (wrong.status, wrong.headers["allow"]) == (405, "POST, OPTIONS")
    assert (preflight.status, preflight.headers["access-control-allow-methods"]) == (200, "POST")


async def test_fallbacks_are_off_without_the_pusher_protocol():
    site = Site(server=ServerConfig(proto=frozenset({"websocket"})))
    assert Answer((await ask(site, STREAM)).data).json["error"].startswith("nothing is at")


@pytest.mark.parametrize("id", ["7/short", "7/" + "x" * 65, "1234/abcdefgh", "x/abcdefgh", "7/abcdefg%20"])
async def test_ids_that_no_client_makes_are_refused(site, id):
    answer = Answer((await ask(site, f"/app/{KEY}/{id}/xhr?protocol=7")).data)
    assert answer.status == 400
    assert answer.headers["access-control-allow-origin"] == "*"


# One session, many requests


async def test_a_second_stream_displaces_the_first(site):
    first = await subscribed(site)
    second = await stream(site)
    assert first.closed
    assert not second.closed
    await publish(site, "1")
    assert heard(second) == ["1"]
    assert heard(first) == []
    first.protocol.connection_lost(None)
    await publish(site, "2")
    assert heard(second) == ["2"]
    assert len(site.world.app.tenant.sessions) == 1


async def test_a_second_poll_displaces_the_first(site):
    await polled(site)
    first, second = await ask(site, POLL), await ask(site, POLL)
    assert statuses(first.data) == [409]
    assert second.data == b""
    await subscribe(site)
    assert events(Answer(second.data).body) == ["subscription_succeeded"]


async def test_polls_that_displace_each_other_end(site):
    """Two connections have queued polls: each poll is answered or waits, and none is lost."""
    await polled(site)
    both = [site.connect(), site.connect()]
    for connection, _ in both:
        connection.data_received(request("POST", POLL, b"") * 5)
    await turns(50)
    found = [statuses(transport.data) for _, transport in both]
    assert {status for one in found for status in one} == {409}
    assert sum(map(len, found)) in (5, 6, 7, 8, 9)
    await subscribe(site)
    assert sum(statuses(transport.data).count(200) for _, transport in both) == 1


async def test_session_continues_from_stream_to_polls_and_back(site):
    transport = await subscribed(site)
    poll = await ask(site, POLL)
    assert transport.closed
    await publish(site, "1")
    assert events(Answer(poll.data).body) == ["1"]
    transport = await stream(site)
    await publish(site, "2")
    assert heard(transport) == ["2"]


async def test_frames_between_requests_are_stored(site):
    transport = await subscribed(site)
    transport.protocol.connection_lost(None)
    await publish(site, "1", "2")
    await publish(site, "3")
    assert await polled(site) == ["1", "2", "3"]
    await publish(site, "4")
    assert heard(await stream(site)) == ["4"]


@pytest.mark.parametrize("how", ["eof", "lost"])
async def test_frames_after_a_lost_poll_are_stored(site, how):
    await polled(site)
    await subscribe(site)
    await polled(site)
    poll = await ask(site, POLL)
    if how == "eof":
        assert not poll.protocol.eof_received()
    poll.protocol.connection_lost(None)
    await publish(site, "1")
    assert poll.data == b""
    assert await polled(site) == ["1"]
    assert site.failures == []


async def test_another_origin_or_app_is_another_session():
    site = Site(app_config(), app_config(id="b", key="b-key"))
    await stream(site, "Origin: https://page.example")
    for path, *headers in (
        (SEND,),
        (SEND, "Origin: https://other.example"),
        (SEND.replace(KEY, "b-key"), "Origin: https://page.example"),
    ):
        assert Answer((await ask(site, path, "[]", *headers)).data).status == 404
    assert Answer((await ask(site, SEND, "[]", "Origin: https://page.example")).data).status == 200


async def test_an_address_may_change(site):
    await stream(site)
    transport = await site.ask(request("POST", SEND, "[]"), ("198.51.100.7", 1))
    assert statuses(transport.data) == [200]


# Client to server


@pytest.mark.parametrize("body", ["", "{}", "[1]", '["a', '"a"', "[null]"])
async def test_body_that_is_not_an_array_of_strings_is_rejected(site, body):
    transport = await subscribed(site)
    answer = Answer((await ask(site, SEND, body)).data)
    assert answer.status == 400
    assert answer.headers["access-control-allow-origin"] == "*"
    assert not transport.closed


async def test_messages_are_applied_in_order_and_bad_ones_answered(site):
    transport = await stream(site)
    heard(transport)
    wanted = {"event": "pusher:subscribe", "data": {"channel": "c"}}
    assert await send(site, wanted, "no JSON", {"event": "pusher:ping", "data": {}}) == 200
    assert heard(transport) == ["subscription_succeeded", "error", "pong"]


async def test_a_message_has_the_size_a_websockets_may_have(site):
    await stream(site)
    most = site.context.most_message(site.config.server.pusher, site.world.app.config.limits)
    assert await send(site, "x" * (most + 1)) == 413
    assert await send(site, "x" * most) == 200


async def test_client_that_sends_only_errors_is_disconnected(site):
    transport = await stream(site)
    for _ in range(2):
        assert await send(site, *["?"] * MAX_MESSAGES) == 200
    assert heard(transport)[-1] == 1008
    assert transport.closed
    assert await send(site, "?") == 404


async def test_a_request_has_a_bounded_number_of_messages(site):
    await stream(site)
    assert await send(site, *["?"] * (MAX_MESSAGES + 1)) == 413


async def test_a_defect_ends_that_one_session(site, monkeypatch):
    transport = await stream(site)
    monkeypatch.setattr(session_of(site).node, "subscribe", None)
    await subscribe(site)
    assert heard(transport)[-1] == 1011
    assert len(site.failures) == 1


# Responses that grow too long


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


@settings(max_examples=60, deadline=None)
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

    with patch.object(xhr_stream, "LONGEST", 300):
        asyncio.run(go())


async def test_full_stream_gets_only_heartbeats(site, monkeypatch):
    monkeypatch.setattr(xhr_stream, "LONGEST", 500)
    transport = await subscribed(site)
    await publish(site, *["x" * 100] * 5)
    assert len(heard(transport)) < 5
    await publish(site, "later")
    assert heard(transport) == []
    site.pass_seconds(HEARTBEAT_SECONDS)
    assert heard(transport) == ["h"]
    rest = await stream(site)
    assert transport.closed
    assert heard(rest)[-1] == "later"


async def test_client_that_does_not_continue_after_a_full_response_must_reconnect(site, monkeypatch):
    monkeypatch.setattr(xhr_stream, "LONGEST", 300)
    transport = await subscribed(site)
    await publish(site, "x" * 200, "more")
    for _ in range(FULL_SECONDS // 10 + 1):
        site.pass_seconds(10)
        await send(site)
    await turns()
    assert heard(transport)[-2:] == ["error", 4200]
    assert transport.closed
    assert await polled(site) == ["more", "error", 4200]


async def test_a_poll_is_cut_where_the_client_drops_it(site, monkeypatch):
    monkeypatch.setattr(xhr_stream, "LONGEST", 100)
    await polled(site)
    await subscribe(site)
    await publish(site, *DIGITS)
    found: list = []
    while len(found) < 11:
        part = await polled(site)
        assert len(part) < 3
        found += part
    assert found == ["subscription_succeeded", *DIGITS]


# Heartbeats


async def test_a_silent_stream_gets_heartbeats(site):
    transport = await subscribed(site)
    site.pass_seconds(HEARTBEAT_SECONDS - 1)
    assert heard(transport) == []
    site.pass_seconds(1)
    assert heard(transport) == ["h"]
    site.pass_seconds(HEARTBEAT_SECONDS)
    assert heard(transport) == ["h"]


async def test_a_heartbeat_ends_a_poll(site):
    await polled(site)
    poll = await ask(site, POLL)
    site.pass_seconds(HEARTBEAT_SECONDS)
    await turns()
    assert events(Answer(poll.data).body) == ["h"]
    assert await send(site) == 200


async def test_heartbeats_are_more_frequent_with_a_short_activity_timeout():
    site = Site(server=ServerConfig(pusher=ProtocolConfig(path="/pusher/", activity_timeout=20)))
    transport = await stream(site)
    heard(transport)
    site.pass_seconds(10)
    assert heard(transport) == ["h"]


async def test_a_question_is_answered_only_after_silence(site):
    """pusher-js replies to a heartbeat with a request; an answer to that would make an endless loop."""
    transport = await subscribed(site)
    assert await send(site) == 200
    assert heard(transport) == []
    site.pass_seconds(QUIET_SECONDS)
    assert await send(site) == 200
    assert await send(site) == 200
    assert heard(transport) == ["h"]


async def test_silent_client_is_disconnected(site):
    transport = await subscribed(site)
    site.pass_seconds(TIMEOUT + PONG_SECONDS - 1)
    assert set(heard(transport)) == {"h"}
    site.pass_seconds(1)
    assert heard(transport) == ["error", 4201]
    assert site.metrics.cut_offs == {"silent": 1}
    assert not site.world.app.tenant.sessions
    site.pass_seconds(2 * GAP_SECONDS)
    assert site.fallbacks.detached.taken == 0


async def test_client_of_a_busy_stream_is_pinged(site):
    transport = await subscribed(site)
    for n in range(TIMEOUT + PONG_SECONDS):
        await publish(site, str(n))
        site.pass_seconds(1)
    found = heard(transport)
    assert found.count("h") == 1
    assert found[-1] == 4201


async def test_a_client_that_answers_stays(site):
    transport = await subscribed(site)
    for _ in range(40):
        site.pass_seconds(HEARTBEAT_SECONDS)
        assert heard(transport) == ["h"]
        await send(site)
    assert not transport.closed


# Ends


async def test_client_without_a_request_is_disconnected(site):
    transport = await subscribed(site)
    transport.protocol.connection_lost(None)
    site.pass_seconds(GAP_SECONDS - 1)
    assert len(site.world.app.tenant.channels) == 1
    site.pass_seconds(2)
    assert not site.world.app.tenant.channels
    assert site.metrics.cut_offs == {"gone": 1}
    assert await send(site) == 404
    assert site.fallbacks.detached.taken == 0
    assert await polled(site) == WELCOME


async def test_slow_stream_is_ended(site):
    transport = await subscribed(site)
    assert transport.high == site.config.server.outbox
    transport.bound = 0
    await publish(site, "1")
    assert heard(transport) == ["1", "error", 4100]
    assert transport.closed
    assert site.metrics.cut_offs == {"slow": 1}
    site.pass_seconds(CLOSE_SECONDS + 1)
    assert transport.aborted


async def test_slow_displaced_stream_does_not_end_its_successor(site):
    first = await subscribed(site)
    second = await stream(site)
    first.protocol.pause_writing()
    await publish(site, "1")
    assert heard(second) == ["1"]


async def test_stored_frames_are_bounded():
    site = Site(server=ServerConfig(outbox=1000))
    transport = await subscribed(site)
    transport.protocol.connection_lost(None)
    await publish(site, "x" * 600, "x" * 600)
    assert site.metrics.cut_offs == {"slow": 1}
    assert not site.world.app.tenant.sessions
    assert await polled(site) == ["error", 4100]
    assert await polled(site) == WELCOME


async def test_client_disconnected_between_requests_gets_the_code_with_the_next(site):
    transport = await subscribed(site)
    transport.protocol.connection_lost(None)
    await publish(site, "1")
    session_of(site).disconnect(4009, "Terminated by the app")
    assert await send(site) == 404
    second = await stream(site)
    assert heard(second) == ["1", "error", 4009]
    assert second.closed
    assert site.fallbacks.detached.taken == 0


async def test_disconnected_session_without_further_requests_is_removed(site):
    transport = await subscribed(site)
    transport.protocol.connection_lost(None)
    session_of(site).disconnect(4009, "Terminated by the app")
    site.pass_seconds(GAP_SECONDS + 1)
    assert site.fallbacks.detached.taken == 0
    assert await polled(site) == WELCOME
    assert site.metrics.cut_offs == {}


async def test_pending_poll_gets_the_close_code(site):
    await polled(site)
    poll = await ask(site, POLL)
    session_of(site).disconnect(4009, "Terminated by the app")
    await turns()
    assert events(Answer(poll.data).body) == ["error", 4009]
    assert site.fallbacks.detached.taken == 0


async def test_stopping_server_sends_the_close_code_to_all_sessions(site):
    transport = await subscribed(site)
    poll = await ask(site, POLL.replace("session0", "session1"))
    poll.take()
    poll.protocol.data_received(request("POST", POLL.replace("session0", "session1"), b""))
    await turns()
    site.node.draining = True
    for connection in list(site.context.open):
        connection.leave(4200, "Server is stopping, reconnect")
    await turns()
    assert heard(transport) == [4200]
    assert transport.closed
    answer = Answer(poll.data)
    assert events(answer.body) == [4200]
    assert poll.closed
    transport.protocol.connection_lost(None)
    poll.protocol.connection_lost(None)
    assert {type(one) for one in site.context.open} <= {HttpConnection}


async def test_all_that_is_left_is_aborted(site):
    transport = await subscribed(site)
    for connection in list(site.context.open):
        connection.abort()
    assert transport.aborted
    assert not site.world.app.tenant.sessions


async def test_client_that_must_sign_in_has_time():
    site = Site(app_config(authorized_only=True))
    transport = await stream(site)
    heard(transport)
    site.pass_seconds(11)
    assert heard(transport)[-2:] == ["error", 4009]
    transport = await stream(site, path=STREAM.replace("session0", "session1"))
    session = session_of(site)
    wanted = {"event": "pusher:subscribe", "data": {"channel": "private-c", "auth": token(session, "private-c")}}
    assert await send(site, wanted, path=SEND.replace("session0", "session1")) == 200
    site.pass_seconds(20)
    assert not transport.closed


# On the connection


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


async def test_a_stream_without_keep_alive_is_the_same(site):
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


# Any sequence of requests

steps = st.lists(
    st.tuples(
        st.sampled_from(["stream", "poll", "send", "subscribe", "publish", "lose", "eof", "disconnect", "bound", "seconds"]),
        st.integers(0, 2),
    ),
    min_size=5,
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(steps)
def test_counters_stay_correct_and_all_sessions_end(taken):
    """The requests of three clients, in any order and with any end, some seconds apart."""

    async def go():
        site = Site(server=ServerConfig(outbox=2000))
        fallbacks = site.fallbacks
        requests: list[Transport] = []
        for step, n in taken:
            path = PATH.replace("session0", f"session{n}")
            match step:
                case "stream" | "poll":
                    endpoint = "xhr_streaming" if step == "stream" else "xhr"
                    requests.append(await ask(site, f"{path}/{endpoint}?protocol=7"))
                case "send":
                    await send(site, path=path + "/xhr_send")
                case "subscribe":
                    wanted = {"event": "pusher:subscribe", "data": {"channel": "c"}}
                    await send(site, wanted, path=path + "/xhr_send")
                case "publish":
                    await publish(site, *["x" * 150] * (n + 1))
                case "lose" | "eof" if requests:
                    lost = requests.pop(n % len(requests))
                    if step == "eof":
                        lost.protocol.eof_received()
                    lost.protocol.connection_lost(None)
                case "disconnect":
                    for session in list(site.world.app.tenant.sessions.values())[n:]:
                        session.disconnect(4009, "go")  # type: ignore[attr-defined]
                case "bound" if requests:
                    requests[n % len(requests)].bound = 0
                case "seconds":
                    site.pass_seconds((1, GAP_SECONDS, TIMEOUT)[n])
            await turns()
            clients = list(fallbacks._clients.values())
            assert fallbacks.detached.taken == sum(one.current is None for one in clients)
            sessions = sum(not one.closing for one in clients)
            assert len(site.world.app.tenant.sessions) == sessions == site.metrics.connections["pusher-xhr"]
            assert site.failures == []
        for lost in requests:
            lost.protocol.connection_lost(None)
        site.pass_seconds(2 * GAP_SECONDS)
        assert not fallbacks._clients
        assert fallbacks.detached.taken == 0
        assert not site.world.app.tenant.channels

    with patch.object(xhr_stream, "LONGEST", 500):
        asyncio.run(go())
