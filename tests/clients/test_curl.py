"""The API with the commands of its page (Push1st API, sections 1 to 6): curl, and sockets for bytes that curl hides.

The commands are those of the page, with the port replaced.
"""

import contextlib
import datetime as dt
import gzip
import ipaddress
import json
import shlex
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.process import APP, DEADLINE, ServerProcess, merged, program, running
from tests.support.pusher_socket import PusherSocket, pusher_socket
from tests.support.raw_socket import raw_socket
from tests.support.wire import Wire

TOKEN_SESSION = """
    curl --location --request POST 'http://localhost:6002/apps/app-test/token/session/' \
      --header 'Content-Type: application/json' \
      --data-raw '{"session": "1234", "channel": "private-user.1", "data": ""}'
"""
TOKEN_ACCESS = """
    curl --location --request POST 'http://localhost:6002/apps/app-test/token/access/' \
      --header 'Content-Type: application/json' \
      --data-raw '{"origin": "*", "channel": "*", "ttl": 0}'
"""
EVENTS = """
    curl --location --request POST 'http://localhost:6002/apps/app-test/events' \
      --header 'Content-Type: application/json' \
      --data-raw '{"name":"event_name","channels":["channel2"],"socket_id":"","data":"event data payload"}'
"""
JSON = "application/json; charset=utf-8"


def curl(command: str, server: ServerProcess, *more: str, base: str | None = None) -> tuple[int, str, str]:
    """Runs a curl command of the page; returns status, content type and body."""
    program("curl")
    here = command.replace("http://localhost:6002", base or f"http://localhost:{server.api_port}")
    written = r"\n%{http_code} %{content_type}"
    done = subprocess.run(
        [*shlex.split(here), "--silent", "--show-error", "--max-time", str(DEADLINE), "--write-out", written, *more],
        check=True,
        capture_output=True,
        text=True,
    )
    body, _, last = done.stdout.rpartition("\n")
    status, _, content_type = last.partition(" ")
    return int(status), content_type, body


# -- the commands of the page


def test_the_session_token_call(server: ServerProcess) -> None:
    expected = "661daaab5d7269a3b7ebfe9154a5ade9bcab833a53fce3dba34ca2a41eab2a7d"
    status, _, body = curl(TOKEN_SESSION, server)
    assert (status, body) == (200, expected)


def test_the_session_token_call_without_data(server: ServerProcess) -> None:
    assert curl(TOKEN_SESSION.replace(', "data": ""', ""), server) == curl(TOKEN_SESSION, server)


def test_the_access_token_call(server: ServerProcess) -> None:
    status, _, body = curl(TOKEN_ACCESS, server)
    assert status == 200
    assert jwt.get_unverified_header(body)["alg"] == "HS256"
    claims = jwt.decode(body, options={"verify_signature": False})
    assert claims["app"] == "app-test"
    assert claims["channel"] == "*"
    assert "exp" not in claims


def test_the_access_token_of_a_ttl_expires(server: ServerProcess) -> None:
    _, _, body = curl(TOKEN_ACCESS.replace('"ttl": 0', '"ttl": 60'), server)
    claims = jwt.decode(body, options={"verify_signature": False})
    assert abs(claims["exp"] - time.time() - 60) < DEADLINE


def test_the_events_call(server: ServerProcess) -> None:
    with raw_socket(server, "channel2") as subscriber:
        server.until_sessions("channel2", 1)
        started = time.time_ns()
        status, content_type, body = curl(EVENTS, server)
        assert (status, content_type) == (200, JSON)
        answer = json.loads(body)
        assert set(answer) == {"channels", "msg-id", "time"}
        assert answer["channels"] == {"channel2": 1}
        assert 0 < answer["time"] < 10**10
        assert abs(answer["msg-id"] - started) < 600 * 10**9
        assert subscriber.expect("event_name", "channel2") == "event data payload"


def test_curl_may_offer_http_2(server: ServerProcess) -> None:
    """`--http2` sends `Upgrade: h2c` with the request. The server ignores the offer and serves the whole request."""
    written = ("--http2", "--write-out", r"\n%{http_code} %{content_type} %{http_version}", "--next", "--http2")
    more = ("--silent", "--write-out", r" %{http_code} %{num_connects}", f"http://localhost:{server.api_port}/health")
    status, content_type, body = curl(EVENTS, server, *written, *more)
    assert status == 200
    assert json.loads(body.splitlines()[0])["channels"] == {"channel2": 0}
    assert content_type.split() == ["application/json;", "charset=utf-8", '1.1{"status":"ok"}', "200", "0"]


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("path", ["token/session", "token/access", "events"])
def test_a_trailing_slash_is_optional(server: ServerProcess, path: str, slash: str) -> None:
    command = {"token/session": TOKEN_SESSION, "token/access": TOKEN_ACCESS, "events": EVENTS}[path]
    address = f"app-test/{path}"
    assert curl(command.replace(f"{address}/'", f"{address}'").replace(f"{address}'", f"{address}{slash}'"), server)[0] == 200


def test_the_list_of_channels(server: ServerProcess, connect: Callable[..., PusherSocket], channel: str) -> None:
    names = {prefix + channel: prefix.rstrip("-") or "public" for prefix in ("", "private-", "presence-", "protected-")}
    for _ in range(2):
        client = connect()
        for name, kind in names.items():
            client.subscribe(name, {"user_id": "u1"} if kind == "presence" else None)
    status, content_type, body = curl("curl http://localhost:6002/apps/app-test/channels/", server)
    assert (status, content_type) == (200, JSON)
    listed = {entry["channel"]: entry for entry in json.loads(body)}
    for name, kind in names.items():
        assert listed[name] == {"channel": name, "type": kind, "close": "auto", "sess_count": 2}


def test_the_list_of_no_channels(server: ServerProcess) -> None:
    assert curl("curl http://localhost:6002/apps/app-counting/channels/", server) == (200, JSON, "[]")


def test_one_channel(server: ServerProcess, connect: Callable[..., PusherSocket], channel: str) -> None:
    client = connect()
    client.subscribe(channel)
    status, content_type, body = curl(f"curl http://localhost:6002/apps/app-test/channels/{channel}/", server)
    assert (status, content_type) == (200, JSON)
    sessions = [{"id": client.socket_id, "ip": "127.0.0.1"}]
    assert json.loads(body) == {"channel": channel, "type": "public", "close": "auto", "sessions": sessions}


def test_one_channel_without_subscribers(server: ServerProcess, channel: str) -> None:
    status, content_type, body = curl(f"curl http://localhost:6002/apps/app-test/channels/{channel}/", server)
    assert (status, content_type) == (404, JSON)
    assert isinstance(json.loads(body)["error"], str)


# -- publishing


@pytest.mark.parametrize("spelling", [{"channel": "CHANNEL"}, {"channels": ["CHANNEL"]}])
def test_channel_may_stand_for_channels(
    server: ServerProcess, connect: Callable[..., PusherSocket], channel: str, spelling: dict[str, Any]
) -> None:
    client = connect()
    client.subscribe(channel)
    sent = json.loads(json.dumps(spelling).replace("CHANNEL", channel))
    assert server.post("/apps/app-test/events", {"name": "e", "data": 1, **sent}).json["channels"] == {channel: 1}
    assert client.expect("e", channel) == 1


@pytest.mark.parametrize(
    ("data", "text"),
    [("words", "words"), ({"a": [1, None]}, '{"a":[1,null]}'), (7, "7"), (None, "null"), ("", ""), ('{"a":1}', '{"a":1}')],
    ids=str,
)
def test_pusher_subscribers_receive_data_as_a_string(
    server: ServerProcess, connect: Callable[..., PusherSocket], channel: str, data: Any, text: str
) -> None:
    client = connect()
    client.subscribe(channel)
    server.publish(channel, "e", data)
    frame = client.receive()
    assert isinstance(frame["data"], str)
    assert frame["data"] == text or json.loads(frame["data"]) == data


def test_message_ids_increase(server: ServerProcess, channel: str) -> None:
    ids = [server.publish(channel, "e", 1).json["msg-id"] for _ in range(10)]
    assert ids == sorted(set(ids))
    assert all(identity < 2**63 for identity in ids)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b"null",
        b"\xff\xfe",
        b'{"name":"e","data":1}',
        b'{"name":"e","channels":[],"data":1}',
        b'{"name":"e","channels":"c","data":1}',
        b'{"name":"e","channels":[7],"data":1}',
        b'{"name":"e","channels":["c",""],"data":1}',
        b'{"name":"e","channel":7,"data":1}',
        b'{"name":7,"channels":["c"],"data":1}',
        b'{"name":"","channels":["c"],"data":1}',
        b'{"channels":["c"],"data":1}',
        b'{"name":"e","channels":["c"]}',
        b'{"name":"e","channels":["c\\u0000"],"data":1}',
        b'{"name":"pusher:e","channels":["c"],"data":1}',
        b'{"name":"pusher_internal:e","channels":["c"],"data":1}',
        b'{"name":"e","channels":["c"],"data":1,"socket_id":7}',
        b'{"name":"e","channels":["c"],"data":1,"socket_id":"nobody"}',
        b'{"name":"e","channels":["c"],"data":1,"options":7}',
        b'{"name":"e","channels":["c"],"data":1,"options":{"ttl":"soon"}}',
        b'{"name":"e","channels":["c"],"data":1,"options":{"ttl":-1}}',
        b'{"name":"e","channels":["c"],"data":1,"options":{"delivery":"pigeon"}}',
        b'{"name":"e","channels":["c"],"data":1,"options":{"delivery":"unicast"}}',
        b'{"name":"e","channels":["c"],"data":1,"options":{"delivery":"multicast","session":""}}',
        json.dumps({"name": "e", "channels": [f"c{n}" for n in range(101)], "data": 1}).encode(),
        json.dumps({"name": "e" * 201, "channels": ["c"], "data": 1}).encode(),
        json.dumps({"name": "e", "channels": ["c" * 256], "data": 1}).encode(),
        b'{"name":"e","channels":["private-encrypted-a","c"],"data":"{}"}',
    ],
)
def test_invalid_event_is_400_with_the_reason(server: ServerProcess, body: bytes) -> None:
    answer = server.post("/apps/app-test/events", body)
    assert answer.status == 400
    assert answer.headers["Content-Type"] == JSON
    assert answer.json["error"]


def test_nothing_is_published_when_one_channel_is_wrong(
    server: ServerProcess, connect: Callable[..., PusherSocket], channel: str
) -> None:
    client = connect()
    client.subscribe(channel)
    assert server.post("/apps/app-test/events", {"name": "e", "channels": [channel, "bad\u0001"], "data": 1}).status == 400
    assert client.round_trip() == []


def test_an_event_of_the_largest_payload_is_published(server: ServerProcess, channel: str) -> None:
    server.publish(channel, "e", "x" * 10_240)


def test_an_event_over_the_payload_limit_is_413(server: ServerProcess, channel: str) -> None:
    body = {"name": "e", "channels": [channel], "data": "x" * 10_241}
    assert server.post("/apps/app-test/events", body).status == 413


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"name": "e", "channels": ["c"], "data": "x" * 101}, 413),
        ({"name": "e" * 11, "channels": ["c"], "data": 1}, 400),
        ({"name": "e", "channels": ["c1", "c2", "c3"], "data": 1}, 400),
    ],
    ids=["payload", "event-name", "channels-per-event"],
)
def test_an_app_s_own_limit_binds(server: ServerProcess, body: dict[str, Any], status: int) -> None:
    assert server.post("/apps/app-small/events", body).status == status


def test_a_byte_order_mark_is_no_part_of_the_body(server: ServerProcess, channel: str) -> None:
    """Editors of Windows write a byte order mark; the signature includes it."""
    body = b"\xef\xbb\xbf" + json.dumps({"name": "e", "channel": channel, "data": "ж"}).encode()
    assert server.post("/apps/app-test/events", body).status == 200
    assert server.signed("POST", "/apps/app-test/events", body).status == 200


def test_a_compressed_body_is_415(server: ServerProcess, channel: str) -> None:
    body = gzip.compress(json.dumps({"name": "e", "channel": channel, "data": "x"}).encode())
    answer = server.post("/apps/app-test/events", body, headers={"Content-Encoding": "gzip"})
    assert (answer.status, answer.headers["Accept-Encoding"]) == (415, "identity")


# -- tokens


@pytest.mark.parametrize(
    "body",
    [
        {"session": "1.2", "channel": ':user::{"id":"admin"}'},
        {"session": "1.2", "channel": 'presence-r:{"user_id":"admin"}'},
        {"session": "1.2\nx", "channel": "private-x"},
        {"session": "POST\n/apps/app-test/events\nauth_key=app-key", "channel": "private-x"},
        {"session": "1.2", "channel": "private-x\n"},
        {"session": "1.2:private-x", "channel": "private-y"},
        {"session": "1.2:", "channel": "user"},
        {"session": "", "channel": "private-x"},
        {"session": "x" * 129, "channel": "private-x"},
        {"session": "1.2", "channel": ""},
        {"session": "1.2"},
        {"channel": "private-x"},
        {"session": 12, "channel": "private-x"},
        {"session": "1.2", "channel": "private-x", "data": 7},
    ],
    ids=str,
)
def test_the_session_token_is_no_signing_oracle(server: ServerProcess, body: dict[str, Any]) -> None:
    assert server.post("/apps/app-test/token/session", body).status == 400


@pytest.mark.parametrize(
    "body",
    [
        {"origin": "*", "channel": "*", "ttl": "long"},
        {"origin": "*", "channel": "*", "ttl": -1},
        {"origin": 7, "channel": "*", "ttl": 0},
        {"origin": "*", "channel": 7, "ttl": 0},
        [],
    ],
    ids=str,
)
def test_a_wrong_access_token_call_is_400(server: ServerProcess, body: Any) -> None:
    assert server.post("/apps/app-test/token/access", body).status == 400


# -- errors


@pytest.mark.parametrize(("app", "status"), [("nobodys-app", 404), ("app-off", 403)])
@pytest.mark.parametrize("path", ["events", "token/session", "token/access"])
def test_an_unknown_app_is_404_and_a_disabled_one_403(server: ServerProcess, app: str, status: int, path: str) -> None:
    answer = server.post(f"/apps/{app}/{path}", {"name": "e", "channels": ["c"], "data": 1})
    assert answer.status == status


@pytest.mark.parametrize("path", ["/", "/nowhere", "/apps", "/apps/app-test", "/apps/app-test/nothing", "/apps/app-test/token"])
def test_an_unknown_path_is_404(server: ServerProcess, path: str) -> None:
    answer = server.get(path)
    assert answer.status == 404
    assert answer.json["error"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/apps/app-test/events", "POST"),
        ("DELETE", "/apps/app-test/events", "POST"),
        ("GET", "/apps/app-test/token/session", "POST"),
        ("POST", "/apps/app-test/channels", "GET"),
        ("PUT", "/apps/app-test/channels/c", "GET"),
    ],
)
def test_wrong_method_is_405_and_names_the_allowed_methods(server: ServerProcess, method: str, path: str, allowed: str) -> None:
    answer = server.request(method, path)
    assert answer.status == 405
    assert allowed in answer.headers["Allow"]


# -- access


def test_an_unsigned_call_is_refused_on_the_websocket_port(server: ServerProcess, channel: str) -> None:
    answer = server.post("/apps/app-test/events", {"name": "e", "channels": [channel], "data": 1}, port=server.ws_port)
    assert answer.status == 401


@pytest.mark.parametrize("port", ["ws_port", "api_port"])
def test_a_signed_call_is_accepted_on_every_port(server: ServerProcess, channel: str, port: str) -> None:
    body = {"name": "e", "channels": [channel], "data": "1"}
    answer = server.signed("POST", "/apps/app-test/events", body, port=getattr(server, port))
    assert (answer.status, answer.body) == (200, b"{}")


UNTRUSTED = [
    ({"Origin": "http://localhost:3000"}, "Origin"),
    ({"Origin": "null"}, "Origin"),
    ({"Host": "evil.example"}, "Host 'evil.example'"),
    ({"X-Forwarded-For": "203.0.113.7"}, "x-forwarded-for"),
    ({"X-Forwarded-For": "127.0.0.1"}, "x-forwarded-for"),
    ({"Forwarded": "for=203.0.113.7"}, "forwarded"),
    ({"X-Real-IP": "127.0.0.1"}, "x-real-ip"),
    ({"Via": "1.1 proxy"}, "via"),
    ({"CF-Connecting-IP": "127.0.0.1"}, "cf-connecting-ip"),
]


@pytest.mark.parametrize(("headers", "why"), UNTRUSTED, ids=str)
@pytest.mark.parametrize("path", ["/apps/app-test/events", "/apps/app-test/token/access", "/apps/app-test/token/session"])
def test_an_unsigned_call_of_a_web_page_or_through_a_proxy_is_refused(
    server: ServerProcess, channel: str, path: str, headers: dict[str, str], why: str
) -> None:
    answer = server.post(path, {"name": "e", "channels": [channel], "data": 1}, headers=headers)
    assert answer.status == 401
    assert why in answer.json["error"].partition("; unsigned, it is not trusted: ")[2]


def test_rejected_unsigned_call_names_its_listener(server: ServerProcess) -> None:
    answer = server.post("/apps/app-test/events", {}, port=server.ws_port)
    assert (answer.status, answer.json["error"].endswith("it came to an address of server.listen")) == (401, True)


def test_metrics_are_for_trusted_callers_only(server: ServerProcess) -> None:
    assert server.get("/metrics").status == 200
    assert server.get("/metrics", headers={"X-Forwarded-For": "203.0.113.7"}).status in {401, 403, 404}
    assert server.get("/metrics", port=server.ws_port).status in {401, 403, 404}


def test_empty_whitelist_trusts_no_caller(channel: str) -> None:
    with running({"api": {"trust": []}}) as server:
        body = {"name": "e", "channels": [channel], "data": "1"}
        assert server.post("/apps/app-test/events", body).status == 401
        assert server.signed("POST", "/apps/app-test/events", body).status == 200


# -- other listeners


def test_the_events_call_over_the_unix_socket(server: ServerProcess) -> None:
    status, _, body = curl(EVENTS, server, "--unix-socket", str(server.unix))
    assert status == 200
    assert set(json.loads(body)) == {"channels", "msg-id", "time"}


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """Makes a key and a certificate for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    now = dt.datetime.now(dt.UTC)
    cert = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = tmp_path / "key.pem", tmp_path / "cert.pem"
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    files[0].write_bytes(key.private_bytes(serialization.Encoding.PEM, *plain))
    files[1].write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    return files


@pytest.mark.parametrize("own", [True, False], ids=["self-signed", "configured"])
def test_the_events_call_over_tls(certificate: tuple[Path, Path], own: bool) -> None:
    ssl_section = {"enable": True} if own else {"enable": True, "key": str(certificate[0]), "cert": str(certificate[1])}
    with running({"api": {"ssl": ssl_section}, "server": {"ssl": ssl_section}}) as server:
        status, _, _ = curl(EVENTS, server, "--insecure", base=f"https://localhost:{server.api_port}")
        assert status == 200
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if own:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        else:
            context.load_verify_locations(certificate[1])
        server_address = type("Address", (), {"ws": f"wss://127.0.0.1:{server.ws_port}"})
        with pusher_socket(server_address, ssl=context) as client:  # type: ignore[arg-type]  # only its `ws` is asked for
            client.subscribe("over-tls")


# -- HTTP/1.1


def published(channel: str, data: Any, *headers: str) -> bytes:
    body = json.dumps({"name": "e", "channels": [channel], "data": data}).encode()
    head = ["POST /apps/app-test/events HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def test_pipelined_requests_are_answered_in_order(
    server: ServerProcess, connect: Callable[..., PusherSocket], channel: str
) -> None:
    client = connect()
    client.subscribe(channel)
    with Wire(server.api_port) as wire:
        wire.send(b"".join(published(channel, number) for number in range(20)))
        answers = [json.loads(wire.response()[2]) for _ in range(20)]
    ids = [answer["msg-id"] for answer in answers]
    assert ids == sorted(set(ids))
    assert [client.expect("e", channel) for _ in range(20)] == list(range(20))


def test_pipelined_errors_keep_their_place(server: ServerProcess, channel: str) -> None:
    missing = b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with Wire(server.api_port) as wire:
        wire.send(published(channel, 1) + missing + published(channel, 2))
        assert [wire.response()[0] for _ in range(3)] == [200, 404, 200]


@pytest.mark.parametrize("port", ["ws_port", "api_port"])
def test_a_connection_is_kept_alive(server: ServerProcess, port: str) -> None:
    with Wire(getattr(server, port)) as wire:
        for _ in range(3):
            wire.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert wire.response()[0] == 200


def test_curl_reuses_its_connection(server: ServerProcess) -> None:
    address = f"http://localhost:{server.api_port}/health"
    done = subprocess.run(
        [program("curl"), "--silent", "--verbose", address, address], check=True, capture_output=True, text=True
    )
    assert "Re-using existing" in done.stderr


def test_connection_close_is_obeyed(server: ServerProcess, channel: str) -> None:
    with Wire(server.api_port) as wire:
        wire.send(published(channel, 1, "Connection: close"))
        status, headers, _ = wire.response()
        assert (status, headers["connection"].lower()) == (200, "close")
        assert wire.is_closed()


def test_a_body_may_come_in_chunks(server: ServerProcess, connect: Callable[..., PusherSocket], channel: str) -> None:
    client = connect()
    client.subscribe(channel)
    body = json.dumps({"name": "e", "channels": [channel], "data": 1}).encode()
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:10], body[10:])) + b"0\r\n\r\n"
    head = b"POST /apps/app-test/events HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with Wire(server.api_port) as wire:
        wire.send(head + chunks)
        assert wire.response()[0] == 200
    assert client.expect("e", channel) == 1


def test_expect_100_continue_is_answered(server: ServerProcess) -> None:
    status, _, _ = curl(EVENTS, server, "--header", "Expect: 100-continue", "--expect100-timeout", str(DEADLINE))
    assert status == 200


def test_an_idle_connection_is_closed_after_the_keep_alive_timeout() -> None:
    with running({"api": {"keep-alive-timeout": 1}}) as server, Wire(server.api_port) as wire:
        wire.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert wire.response()[0] == 200
        assert wire.is_closed()


# -- health


@pytest.mark.parametrize("path", ["/health", "/ready", "/up", "/accept-traffic"])
def test_a_running_server_is_alive_and_ready(server: ServerProcess, path: str) -> None:
    for port in (server.api_port, server.ws_port, server.unix):
        assert server.get(path, port=port).status == 200


def test_metrics_count_connections(server: ServerProcess, connect: Callable[..., PusherSocket]) -> None:
    connect()
    status, content_type, body = curl("curl http://localhost:6002/metrics", server)
    assert status == 200
    assert content_type.startswith("text/plain")
    lines = [line for line in body.splitlines() if "connections" in line and not line.startswith("#")]
    assert any(float(line.rsplit(" ", 1)[1]) >= 1 for line in lines), body


def test_no_secret_and_no_token_is_in_the_logs(channel: str) -> None:
    app = merged(APP, {"key": "logged-key", "secret": "a-secret-that-must-not-be-logged"})
    with running({"log": {"level": "debug"}}, {"app-logged": app}) as server:
        token = server.post("/apps/app-logged/token/access", {"origin": "*", "channel": "*", "ttl": 0}).body.decode()
        with contextlib.ExitStack() as stack:
            for query in (f"token={token}", "token=x" + token):
                stack.enter_context(raw_socket(server, channel, f"private-{channel}", query=query, key="logged-key"))
            server.until_sessions(channel, 2, "app-logged")
        server.signed("GET", "/apps/app-logged/channels", key="logged-key", secret="wrong")
        server.stop()
        assert app["secret"] not in server.output
        assert token.rsplit(".", 1)[1] not in server.output
