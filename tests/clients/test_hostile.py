"""Input that no client should send: the server answers as documented, and continues to serve.

Each test ends with a check that the server answers. When the server stops, its log must have no trace of an exception.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.process import DEADLINE, ServerProcess, program, running, wait_until
from tests.support.pusher_socket import PusherSocket, dialled, pusher_socket
from tests.support.raw_socket import raw_socket
from tests.support.signing import hmac_hex, signed_query
from tests.support.wire import BINARY, CLOSE, HANDSHAKE, PING, PONG, TEXT, Gone, Wire, frame

FLOODS = Path(__file__).parents[2] / "bench" / "floods.py"


@pytest.fixture(autouse=True)
def survives(server: ServerProcess) -> Iterator[None]:
    """Checks that the server answers after each test."""
    yield
    server.assert_alive()


# -- frames


WRONG_FRAMES = {
    "not masked": (frame(TEXT, b"{}", masked=False), 1002),
    "reserved bits": (frame(TEXT, b"{}", rsv=4), 1002),
    "a reserved opcode": (frame(3, b"{}"), 1002),
    "a reserved control opcode": (frame(11, b"{}"), 1002),
    "a fragmented ping": (frame(PING, b"", fin=False), 1002),
    "a ping of 126 bytes": (frame(PING, b"x" * 126), 1002),
    "a continuation of nothing": (frame(0, b"{}"), 1002),
    "a message inside a message": (frame(TEXT, b"{", fin=False) + frame(TEXT, b"}"), 1002),
    "a close frame of one byte": (frame(CLOSE, b"x"), 1002),
    "a close code that may not be sent": (frame(CLOSE, b"\x03\xed"), 1002),
    "bad UTF-8": (frame(TEXT, b'"\xff"'), 1007),
    "bad UTF-8 in a message that does not end": (frame(TEXT, b'"\xff', fin=False), 1007),
    "bad UTF-8 in a frame that does not end": (frame(TEXT, b'"\xff' + b"x" * 1000)[:20], 1007),
    "a ping that declares 65,536 bytes": (b"\x89\xff" + (65_536).to_bytes(8, "big") + bytes(4), 1002),
    "a length that is not in its shortest form": (b"\x81\xfe\x00\x02" + bytes(4) + b"{}", 1002),
    "bad UTF-8 across fragments": (frame(TEXT, b'"\xc3', fin=False) + frame(0, b'"'), 1007),
    "a surrogate in UTF-8": (frame(TEXT, b'"\xed\xa0\x80"'), 1007),
    "bad UTF-8 in a close reason": (frame(CLOSE, b"\x03\xe8\xff"), 1007),
    "binary": (frame(BINARY, b"{}"), 1003),
    "a message of 8 MiB": (frame(TEXT, b"x" * (8 << 20)), 1009),
    "a header that promises 2^62 bytes": (b"\x81\xff\x40" + bytes(7 + 4), 1009),
    "a length with its highest bit": (b"\x81\xff\xff" + bytes(7 + 4), 1009),
    "fragments without end": (frame(TEXT, b"x", fin=False) + frame(0, b"x" * 4000, fin=False) * 1000, 1009),
}


@pytest.mark.parametrize("path", ["/app/app-key?protocol=7", "/ws/app/app-key/c"], ids=["pusher", "raw"])
@pytest.mark.parametrize("name", WRONG_FRAMES)
def test_a_connection_is_closed_for(server: ServerProcess, name: str, path: str) -> None:
    sent, code = WRONG_FRAMES[name]
    if name == "binary" and path.startswith("/ws/"):
        sent, code = frame(BINARY, b"hello"), 1002  # a raw client may send JSON in a binary frame, and these bytes are no JSON
    with Wire(server.ws_port).upgrade(path) as wire:
        with contextlib.suppress(Gone):  # the server need not read the bytes after the violation
            wire.send(sent)
        assert wire.close_code() == code


@pytest.mark.parametrize("name", ["a continuation of nothing", "binary", "bad UTF-8", "a header that promises 2^62 bytes"])
def test_the_server_ends_its_side_with_the_close_frame(server: ServerProcess, name: str) -> None:
    """The server waits for no answer to a close frame for a violation, because it reads nothing more (RFC 6455 §7.1.7)."""
    sent, code = WRONG_FRAMES[name]
    with Wire(server.ws_port).greet() as wire:
        wire.send(sent)
        began = time.monotonic()
        assert wire.close_code() == code
        assert wire.is_closed()
        assert time.monotonic() - began < 1
        with contextlib.suppress(Gone):
            wire.send(frame(CLOSE, code.to_bytes(2, "big")))  # discarded


def test_a_message_may_come_in_fragments_with_pings_between(server: ServerProcess) -> None:
    message = b'{"event":"pusher:ping","data":{}}'
    with Wire(server.ws_port).greet() as wire:
        wire.send(frame(TEXT, message[:1], fin=False))
        for byte in message[1:-1]:
            wire.send(frame(0, bytes([byte]), fin=False) + frame(PING, b"x"))
        wire.send(frame(0, message[-1:]))
        received = [wire.receive() for _ in range(len(message) - 1)]
    assert [opcode for opcode, _ in received] == [PONG] * (len(message) - 2) + [TEXT]
    assert json.loads(received[-1][1])["event"] == "pusher:pong"


def test_a_frame_may_come_byte_by_byte(server: ServerProcess) -> None:
    with Wire(server.ws_port).greet() as wire:
        for byte in frame(TEXT, b'{"event":"pusher:ping","data":{}}'):
            wire.send(bytes([byte]))
        assert wire.receive_json()["event"] == "pusher:pong"


def test_frames_after_the_handshake_are_served(server: ServerProcess) -> None:
    with Wire(server.ws_port) as wire:
        head = b"GET /app/app-key?protocol=7 HTTP/1.1\r\n" + HANDSHAKE + b"\r\n"
        wire.send(head + frame(TEXT, b'{"event":"pusher:ping","data":{}}'))
        assert wire.response()[0] == 101
        assert wire.receive_json()["event"] == "pusher:connection_established"
        assert wire.receive_json()["event"] == "pusher:pong"


# -- messages


WRONG_MESSAGES = [
    "",
    "{",
    "not json",
    "null",
    "7",
    '"text"',
    "[]",
    "{}",
    '{"event":7}',
    '{"event":null,"data":{}}',
    '{"event":"pusher:subscribe"}',
    '{"event":"pusher:subscribe","data":7}',
    '{"event":"pusher:subscribe","data":[]}',
    '{"event":"pusher:subscribe","data":"not json"}',
    '{"event":"pusher:subscribe","data":{}}',
    '{"event":"pusher:subscribe","data":{"channel":["c"]}}',
    '{"event":"pusher:subscribe","data":{"channel":"private-c","auth":7}}',
    '{"event":"pusher:subscribe","data":{"channel":"presence-c","auth":"a","channel_data":{}}}',
    '{"event":"pusher:subscribe","data":{"channel":"\\ud800"}}',
    '{"event":"pusher:unsubscribe"}',
    '{"event":"pusher:unsubscribe","data":{"channel":7}}',
    '{"event":"client-e"}',
    '{"event":"client-e","data":{}}',
    '{"event":"client-e","channel":7,"data":{}}',
    '{"event":"client-e","channel":"private-c","data":{}}',
    '{"event":"client-\\ud800","channel":"private-\\ud800","data":"\\ud80"}',
    '{"event":"client-e","channel":"private-c","data":NaN}',
    "[" * 60_000,
    '{"event":"client-e","channel":"private-c","data":' + "[" * 10_000 + "]" * 10_000 + "}",
    '{"a":' * 10_000 + "1" + "}" * 10_000,
    '{"event":"pusher:subscribe","data":' + "9" * 20_000 + "}",
    '{"event":"' + "e" * 60_000 + '","data":{}}',
]


@pytest.mark.parametrize("message", WRONG_MESSAGES, ids=lambda message: message[:60] or "empty")
def test_a_wrong_message_is_answered_and_the_connection_stays(
    server: ServerProcess, connect: Callable[..., PusherSocket], channel: str, message: str
) -> None:
    client = connect()
    client.connection.send(message)
    client.expect_refusal()
    client.subscribe(channel)
    server.publish(channel, "e", 1)
    assert client.expect("e", channel) == 1


ODD_DATA = ['"\\ud800"', '"\\u0000"', "1e999", "9" * 400, '{"a":1,"a":2}', "[" * 500 + "]" * 500, "-0.0"]


@pytest.mark.parametrize("data", ODD_DATA, ids=lambda data: data[:20])
def test_odd_but_valid_json_is_delivered_or_refused_whole(
    server: ServerProcess, connect: Callable[..., PusherSocket], channel: str, data: str
) -> None:
    client = connect()
    client.subscribe(channel)
    with raw_socket(server, channel) as raw:
        server.until_sessions(channel, 2)
        body = f'{{"name":"e","channels":["{channel}"],"data":{data}}}'.encode()
        answer = server.post("/apps/app-test/events", body)
        assert answer.status in {200, 400}, answer
        delivered = answer.status == 200
        assert len(client.round_trip()) == delivered
        assert len(raw.round_trip()) == delivered


# -- floods


def test_flood_of_subscribes_does_not_affect_other_clients(server: ServerProcess, channel: str) -> None:
    with raw_socket(server, channel) as other, Wire(server.ws_port).greet() as wire:
        server.until_sessions(channel, 1)
        subscribes = (json.dumps({"event": "pusher:subscribe", "data": {"channel": f"{channel}-{n}"}}) for n in range(5000))
        with contextlib.suppress(Gone):
            wire.send(b"".join(frame(TEXT, text.encode()) for text in subscribes))
        started = time.monotonic()
        server.publish(channel, "e", 1)
        assert other.expect("e", channel) == 1
        assert time.monotonic() - started < 5
    server.until_sessions(f"{channel}-0", 0)
    server.until_sessions(f"{channel}-4999", 0)


def test_a_flood_of_bad_messages_ends_its_connection(server: ServerProcess) -> None:
    with Wire(server.ws_port).greet() as wire:
        with contextlib.suppress(Gone):
            wire.send(frame(TEXT, b"{") * 20_000)
        assert wire.close_code() in {1008, 4100, 4301}


def test_a_flood_of_bad_raw_frames_ends_its_connection_with_1008(server: ServerProcess) -> None:
    with Wire(server.ws_port).upgrade("/ws/app/app-key/c") as wire:
        with contextlib.suppress(Gone):
            wire.send(frame(TEXT, b"[]") * 20_000)
        assert wire.close_code() == 1008


def test_flood_of_connections_leaves_places_for_others(server: ServerProcess) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(Wire(server.ws_port))
        with pusher_socket(server) as client:
            client.round_trip()


def test_a_flood_of_pings_is_answered_or_ended(server: ServerProcess) -> None:
    with Wire(server.ws_port).greet() as wire:
        wire.send(frame(PING, b"x") * 2000)
        with contextlib.suppress(Gone):
            for _ in range(2000):
                assert wire.receive() == (PONG, b"x")


# -- HTTP


HEAD = b"POST /apps/app-test/events HTTP/1.1\r\n"
WRONG_REQUESTS = {
    "nonsense": b"nonsense\r\n\r\n",
    "a TLS hello": bytes.fromhex("16030100c8010000c40303") + bytes(200),
    "bytes": bytes(range(256)),
    "no version": b"GET /health\r\n\r\n",
    "HTTP/9.9": b"GET /health HTTP/9.9\r\n\r\n",
    "a method nobody knows": b"BREW /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a header without a colon": b"GET /health HTTP/1.1\r\nHost\r\n\r\n",
    "a space in a header name": b"GET /health HTTP/1.1\r\nHo st: a\r\n\r\n",
    "a space before the colon": HEAD + b"Content-Length : 2\r\n\r\n{}",
    "a NUL in a header": b"GET /health HTTP/1.1\r\nHost: a\x00b\r\n\r\n",
    "a negative length": HEAD + b"Content-Length: -1\r\n\r\n",
    "a length in letters": HEAD + b"Content-Length: ten\r\n\r\n",
    "a length of 30 digits": HEAD + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a length and chunks": HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a chunk size in letters": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a header of 1 MiB": b"GET /health HTTP/1.1\r\nX-Big: " + b"x" * (1 << 20) + b"\r\n\r\n",
    "20,000 headers": b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    "a path of 1 MiB": b"GET /" + b"x" * (1 << 20) + b" HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("port", ["ws_port", "api_port"])
@pytest.mark.parametrize("name", WRONG_REQUESTS)
def test_a_request_is_refused_for(server: ServerProcess, name: str, port: str) -> None:
    with Wire(getattr(server, port)) as wire:
        with contextlib.suppress(Gone):
            wire.send(WRONG_REQUESTS[name])
        with contextlib.suppress(Gone):  # the client may lose the rejection because of the bytes that it still sends
            status, _, _ = wire.response()
            assert status in {400, 405, 413, 414, 431, 505}, status
            # No second response may follow: the bytes after a malformed request could be an attacker's request.
            assert wire.is_closed() or status == 405


@pytest.mark.parametrize("port", ["ws_port", "api_port"])
def test_a_giant_header_is_answered_with_431_or_400(server: ServerProcess, port: str) -> None:
    with Wire(getattr(server, port)) as wire:
        wire.send(b"GET /health HTTP/1.1\r\nX-Big: " + b"x" * 40_000)
        assert wire.response()[0] in {400, 431}


@pytest.mark.parametrize("port", ["ws_port", "api_port"])
def test_a_giant_body_is_answered_with_413_before_it_is_sent(server: ServerProcess, port: str) -> None:
    with Wire(getattr(server, port)) as wire:
        wire.send(b"POST /apps/app-test/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n")
        assert wire.response()[0] == 413


@pytest.mark.parametrize("port", ["ws_port", "api_port"])
def test_client_that_sends_a_giant_body_anyway_can_read_its_answer(server: ServerProcess, port: str) -> None:
    """The client reads only after it has sent all bytes; a reset would discard the answer."""
    with Wire(getattr(server, port)) as wire:
        wire.send(b"POST /apps/app-test/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000000\r\n\r\n")
        for _ in range(50):
            wire.send(b"x" * 100_000)
        status, headers, _ = wire.response()
        assert (status, headers["connection"]) == (413, "close")
        assert wire.is_closed()


def test_chunks_without_end_are_answered_with_413(server: ServerProcess) -> None:
    with Wire(server.api_port) as wire:
        wire.send(b"POST /apps/app-test/events HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(Gone):
            for _ in range(1000):
                wire.send(b"2000\r\n" + b"x" * 0x2000 + b"\r\n")
        with contextlib.suppress(Gone):  # the client may lose the answer because of the bytes that it still sends
            assert wire.response()[0] == 413


@pytest.mark.parametrize("body", [b"[" * 60_000, b'{"a":' * 10_000 + b"1" + b"}" * 10_000, b'{"name":"' + b"\\ud800" * 30 + b'"'])
@pytest.mark.parametrize("path", ["events", "token/session", "token/access"])
def test_a_body_that_is_hard_to_read_is_400(server: ServerProcess, path: str, body: bytes) -> None:
    assert server.post(f"/apps/app-test/{path}", body).status == 400


ODD_PATHS = ["/%", "/%zz", "/apps/%ff/channels", "/apps/app-test/channels/%ff", "/apps//channels", "//", "/apps/../metrics"]


@pytest.mark.parametrize("path", ODD_PATHS)
def test_an_odd_path_is_400_403_or_404(server: ServerProcess, path: str) -> None:
    assert server.get(path).status in {400, 403, 404}


KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
VERSION = b"Sec-WebSocket-Version: 13\r\n"
UPGRADE = b"Upgrade: websocket\r\nConnection: Upgrade\r\n"
HANDSHAKES = {
    "no key": UPGRADE + VERSION,
    "a short key": UPGRADE + VERSION + b"Sec-WebSocket-Key: c2hvcnQ=\r\n",
    "no version": UPGRADE + KEY,
    "version 8": UPGRADE + KEY + VERSION.replace(b"13", b"8"),
    "another protocol": b"Upgrade: h2c\r\nConnection: Upgrade\r\n",
    "no upgrade": b"",
}


@pytest.mark.parametrize("path", ["/app/app-key?protocol=7", "/ws/app/app-key/c"], ids=["pusher", "raw"])
@pytest.mark.parametrize("name", HANDSHAKES)
def test_a_handshake_is_refused_for(server: ServerProcess, name: str, path: str) -> None:
    with Wire(server.ws_port) as wire:
        wire.send(b"GET " + path.encode() + b" HTTP/1.1\r\nHost: localhost\r\n" + HANDSHAKES[name] + b"\r\n")
        assert 400 <= wire.response()[0] < 500


# -- signatures


def query_of(server: ServerProcess, body: bytes, path: str = "/apps/app-test/events", **over: Any) -> str:
    return signed_query("POST", path, body, {}, **{"key": "app-key", "secret": "secret", "at": time.time(), **over})


def without(query: str, name: str) -> str:
    return "&".join(part for part in query.split("&") if not part.startswith(name + "="))


def test_a_signature_does_not_fit_another_body(server: ServerProcess, channel: str) -> None:
    bodies = [json.dumps({"name": "e", "channels": [channel], "data": str(n)}).encode() for n in range(2)]
    query = query_of(server, bodies[0])
    assert server.post(f"/apps/app-test/events?{query}", bodies[0]).status == 200
    assert server.post(f"/apps/app-test/events?{query}", bodies[1]).status == 401


def test_a_signature_does_not_fit_another_app(server: ServerProcess, channel: str) -> None:
    body = json.dumps({"name": "e", "channels": [channel], "data": "1"}).encode()
    assert server.post(f"/apps/app-quiet/events?{query_of(server, body)}", body).status == 401


@pytest.mark.parametrize(
    "change",
    [
        lambda query: without(query, "auth_signature"),
        lambda query: without(query, "auth_key"),
        lambda query: without(query, "auth_timestamp"),
        lambda query: without(query, "auth_version"),
        lambda query: without(query, "body_md5"),
        lambda query: query + "&info=user_count",
        lambda query: query + "&auth_key=other",
        lambda query: query.replace("auth_version=1.0", "auth_version=2.0"),
        lambda query: query.replace("auth_signature=", "auth_signature=0"),
        lambda _: "auth_signature=",
        lambda _: "auth_key=app-key",
    ],
    ids=range(11),
)
def test_a_query_that_was_changed_after_signing_is_401(server: ServerProcess, channel: str, change: Callable[[str], str]) -> None:
    body = json.dumps({"name": "e", "channels": [channel], "data": "1"}).encode()
    query = change(query_of(server, body))
    for port in (server.ws_port, server.api_port):
        assert server.post(f"/apps/app-test/events?{query}", body, port=port).status == 401


@pytest.mark.parametrize("timestamp", ["", "now", "-1", "1e9", "9" * 40, "\uff11\uff17"], ids=ascii)
def test_a_timestamp_that_is_no_number_of_now_is_401(server: ServerProcess, timestamp: str) -> None:
    fields = f"auth_key=app-key&auth_timestamp={timestamp}&auth_version=1.0"
    signature = hmac_hex("secret", f"GET\n/apps/app-test/channels\n{fields}")
    query = f"auth_key=app-key&auth_timestamp={quote(timestamp)}&auth_version=1.0&auth_signature={signature}"
    assert server.get(f"/apps/app-test/channels?{query}").status == 401


# -- access


def test_a_whitelist_of_a_protocol_is_obeyed(channel: str) -> None:
    closed = {"whitelist": ["10.0.0.0/8", "fd00::/8"]}
    with running({"server": {"pusher": closed, "websocket": closed}}) as server:
        with dialled(server) as socket:
            assert socket.close_code() == 4009
        with Wire(server.ws_port) as wire:
            wire.send(f"GET /ws/app/app-key/{channel} HTTP/1.1\r\n".encode() + HANDSHAKE + b"\r\n")
            assert wire.response()[0] == 403


def test_the_client_s_address_is_taken_from_configured_proxies_only(channel: str) -> None:
    config = {"server": {"pusher": {"whitelist": ["203.0.113.0/24"]}, "proxies": ["127.0.0.0/8"]}}
    with running(config) as server:
        with dialled(server, additional_headers={"X-Forwarded-For": "203.0.113.7"}) as socket:
            socket.established().subscribe(channel)
            (session,) = server.get(f"/apps/app-test/channels/{channel}").json["sessions"]
            assert session["ip"] == "203.0.113.7"
        with dialled(server, additional_headers={"X-Forwarded-For": "203.0.113.7, 198.51.100.1"}) as socket:
            assert socket.close_code() == 4009
        with dialled(server) as socket:
            assert socket.close_code() == 4009


def test_address_forwarded_by_an_untrusted_caller_is_ignored(server: ServerProcess, channel: str) -> None:
    with dialled(server, additional_headers={"X-Forwarded-For": "203.0.113.7"}) as socket:
        socket.established().subscribe(channel)
        (session,) = server.get(f"/apps/app-test/channels/{channel}").json["sessions"]
        assert session["ip"] == "127.0.0.1"


def test_the_whitelist_of_the_api_is_obeyed() -> None:
    """The whitelist names networks, so it does not apply to the Unix socket, which this test uses for `/ready`."""
    with running({"api": {"whitelist": ["10.0.0.0/8"]}}) as server:
        with Wire(server.api_port) as wire, contextlib.suppress(Gone):
            wire.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert wire.response()[0] == 403
        assert server.get("/health", port=server.ws_port).status == 200


# -- slow consumers


@pytest.fixture(scope="module")
def narrow() -> Iterator[ServerProcess]:
    """Runs a server with a small buffer for a client that does not read."""
    with running({"server": {"outbox": 65_536}}) as process:
        yield process


def publish_until_cut_off(server: ServerProcess, channel: str, left: int) -> int:
    """Publishes until only `left` subscribers are left; returns the number of events."""
    for number in range(5000):
        server.publish(channel, "e", f"{number:06}" + "x" * 9000)
        if number % 20 == 0 and server.session_count(channel) == left:
            return number + 1
    raise AssertionError("nobody was cut off")


@pytest.mark.parametrize(
    ("path", "code"), [("/app/app-key?protocol=7", 4100), ("/ws/app/app-key/CHANNEL", 1008)], ids=["pusher", "raw"]
)
def test_subscriber_that_stops_reading_is_disconnected_without_effect_on_others(
    narrow: ServerProcess, channel: str, path: str, code: int
) -> None:
    with raw_socket(narrow, channel) as other, Wire(narrow.ws_port, receive_buffer=4096) as slow:
        slow.upgrade(path.replace("CHANNEL", channel))
        if "protocol" in path:
            slow.send(frame(TEXT, json.dumps({"event": "pusher:subscribe", "data": {"channel": channel}}).encode()))
        narrow.until_sessions(channel, 2)
        published = publish_until_cut_off(narrow, channel, 1)
        assert [int(other.expect("e", channel)[:6]) for _ in range(published)] == list(range(published))
        assert slow.close_code() == code


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to see the server's sockets")
def test_a_subscriber_that_never_reads_again_loses_its_socket(narrow: ServerProcess, channel: str) -> None:
    assert narrow.process is not None
    sockets = Path(f"/proc/{narrow.process.pid}/fd")

    def count() -> int:
        return sum(os.readlink(entry).startswith("socket:") for entry in list(sockets.iterdir()) if entry.is_symlink())

    before = wait_until(count, "sockets are counted")
    with Wire(narrow.ws_port, receive_buffer=4096) as slow:
        slow.upgrade(f"/ws/app/app-key/{channel}")
        narrow.until_sessions(channel, 1)
        publish_until_cut_off(narrow, channel, 0)
        wait_until(lambda: count() <= before, "the socket is destroyed", 3 * DEADLINE)


# -- TLS


def test_client_that_only_updates_its_keys_is_disconnected() -> None:
    """Key updates carry no data, and each costs the server as much as some messages (RFC 8446 §4.6.3)."""
    with running({"server": {"ssl": {"enable": True}}}) as server:
        command = [program("openssl"), "s_client", "-tls1_3", "-connect", f"127.0.0.1:{server.ws_port}"]
        client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert client.stdin is not None
        with client, client.stdin as commands:
            wait_until(lambda: "push1st_connections" in metrics(server), "the server answers")
            end = time.monotonic() + 3 * DEADLINE
            while client.poll() is None and time.monotonic() < end:
                with contextlib.suppress(BrokenPipeError):
                    commands.write(b"K\n")  # s_client reads only the first letter of each input as a command
                    commands.flush()
                time.sleep(0.0005)
            client.kill()
        assert 'push1st_cut_offs_total{reason="flood"} 1.0' in metrics(server)


def test_tiny_tls_records_do_not_stall_others() -> None:
    """Eight clients send an empty ping in each record, and continue after the server has closed their connections."""
    with running({"server": {"ssl": {"enable": True}}}) as server:
        ports = [str(server.ws_port), str(server.api_port), str(server.ws_port), "0"]
        flood = subprocess.Popen([sys.executable, str(FLOODS), "tls-pings", *ports], stdout=subprocess.PIPE)
        longest = 0.0
        with flood:
            opened = re.compile(r'push1st_connections_opened_total\{protocol="pusher"\} [1-9]')
            wait_until(lambda: opened.search(metrics(server)), "the flood has begun")
            end = time.monotonic() + 3
            while time.monotonic() < end:
                start = time.monotonic()
                assert server.get("/health").status == 200
                longest = max(longest, time.monotonic() - start)
                time.sleep(0.01)
            flood.terminate()
            sent = json.loads(flood.communicate()[0])["sent"]
        assert sent > 10_000
        assert longest < 1


def metrics(server: ServerProcess) -> str:
    return server.get("/metrics").body.decode()
