"""The HTTP fallbacks of pusher-js: `xhr_streaming` and `xhr_polling` in Node without WebSockets, and plain requests."""

import contextlib
import http.client
import json
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.clients.apps import APPS
from tests.support.nodejs import NodeProcess
from tests.support.process import DEADLINE, ServerProcess, running, wait_until
from tests.support.wire import Wire

ROADS = ("xhr_streaming", "xhr_polling")
SESSION = "/pusher/app/app-key/7/01234567"
QUERY = "?protocol=7&client=by-hand&version=1"


@pytest.fixture(params=ROADS)
def road(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pusher_js(server: ServerProcess, node: Callable[..., NodeProcess], road: str) -> Callable[..., NodeProcess]:
    """Makes connected pusher-js clients with only this fallback."""

    def start(**more: Any) -> NodeProcess:
        process = start_pusher_js(node, server, road, **more)
        process.next(on="state", state="connected")
        return process

    return start


def start_pusher_js(
    node: Callable[..., NodeProcess],
    server: ServerProcess,
    road: str,
    key: str = "app-key",
    authorize: str = "server",
    **more: Any,
) -> NodeProcess:
    """Makes a pusher-js client that is about to connect."""
    options = {"httpHost": "127.0.0.1", "httpPort": server.ws_port, "enabledTransports": [road], **more.pop("client", {})}
    return node("pusher_js.mjs", key=key, client=options, api=server.api, authorize=authorize, secret="secret", **more)


def subscribed(client: NodeProcess, channel: str, *events: str) -> dict[str, Any]:
    client.tell("subscribe", channel=channel, events=events)
    report: dict[str, Any] = client.next(on="subscribed", channel=channel)
    return report


def metric(server: ServerProcess, line: str) -> float:
    """Returns the value of a metric; 0 if it is not listed."""
    for one in server.get("/metrics").body.decode().splitlines():
        name, _, value = one.rpartition(" ")
        if name == line:
            return float(value)
    return 0.0


def rejected(body: bytes) -> int:
    """Returns the code that rejects a handshake, which is in an error frame and then in the close frame."""
    opened, error, closed = body.splitlines()
    assert opened == b"o"
    data = json.loads(json.loads(error.removeprefix(b"a"))[0])["data"]
    assert json.loads(closed.removeprefix(b"c")) == [data["code"], data["message"]]
    return int(data["code"])


# -- connecting


@pytest.mark.parametrize("path", ["", "/pusher"])
def test_connects_on_both_paths(server: ServerProcess, node: Callable[..., NodeProcess], road: str, path: str) -> None:
    client = start_pusher_js(node, server, road, client={"httpPath": path} if path else {})
    left, right = client.next(on="state", state="connected")["socket_id"].split(".")
    assert left.isdecimal()
    assert right.isdecimal()


def test_connects_below_the_path_of_apps(server: ServerProcess) -> None:
    with opened(server, "/app/app-key/7/below-app-path/xhr" + QUERY) as response:
        assert response.readline() == b"o\n"


@pytest.mark.parametrize(
    ("key", "code"), [("nobodys-key", 4001), ("off-key", 4003)], ids=["an unknown key", "the key of a disabled app"]
)
def test_stops_reconnecting_with(server: ServerProcess, node: Callable[..., NodeProcess], road: str, key: str, code: int) -> None:
    client = start_pusher_js(node, server, road, key=key)
    client.next(on="error", code=code)
    client.next(on="state", state="disconnected")
    assert client.ask("connection") == {"state": "disconnected", "retries": False}


def test_stops_reconnecting_over_the_quota_of_the_app(node: Callable[..., NodeProcess], road: str) -> None:
    with running(apps=APPS) as server:
        first = start_pusher_js(node, server, road, key="quota-key")
        first.next(on="state", state="connected")
        second = start_pusher_js(node, server, road, key="quota-key")
        second.next(on="error", code=4004)
        second.next(on="state", state="disconnected")
        second.close()
        first.close()


def test_is_counted_as_a_protocol_of_its_own(server: ServerProcess, pusher_js: Callable[..., NodeProcess]) -> None:
    before = metric(server, 'push1st_connections_opened_total{protocol="pusher-xhr"}')
    pusher_js()
    assert metric(server, 'push1st_connections_opened_total{protocol="pusher-xhr"}') == before + 1


# -- channels


def test_receives_published_events_at_once(server: ServerProcess, pusher_js: Callable[..., NodeProcess], channel: str) -> None:
    client = pusher_js()
    subscribed(client, channel, "paid")
    assert server.publish(channel, "paid", {"id": 7}).json["channels"] == {channel: 1}
    assert client.next(on="event", event="paid")["data"] == {"id": 7}
    server.publish(channel, "paid", "plain words — ünïcödé \U0001f980")
    assert client.next(on="event", event="paid")["data"] == "plain words — ünïcödé \U0001f980"


@pytest.mark.parametrize("authorize", ["server", "self"])
def test_subscribes_to_a_private_channel(
    server: ServerProcess, pusher_js: Callable[..., NodeProcess], channel: str, authorize: str
) -> None:
    client = pusher_js(authorize=authorize)
    subscribed(client, f"private-{channel}", "paid")
    server.publish(f"private-{channel}", "paid", {"id": 7})
    assert client.next(on="event", event="paid")["data"] == {"id": 7}


def test_gets_an_error_for_a_wrong_signature_and_stays(
    server: ServerProcess, pusher_js: Callable[..., NodeProcess], channel: str
) -> None:
    client = pusher_js(authorize="wrongly")
    client.tell("subscribe", channel=f"private-{channel}")
    assert client.next(on="subscription_error", channel=f"private-{channel}")["error"]["status"] == 401
    subscribed(client, channel)


def test_receives_member_changes(pusher_js: Callable[..., NodeProcess], channel: str) -> None:
    presence = f"presence-{channel}"
    ada, bob = {"user_id": "ada", "user_info": {"name": "Ada"}}, {"user_id": "bob", "user_info": {"name": "Bob"}}
    first = pusher_js(user=ada)
    assert subscribed(first, presence)["members"] == {"ada": {"name": "Ada"}}
    second = pusher_js(user=bob)
    assert subscribed(second, presence)["count"] == 2
    assert first.next(on="member_added")["member"] == {"id": "bob", "info": {"name": "Bob"}}
    second.tell("unsubscribe", channel=presence)
    assert first.next(on="member_removed")["member"]["id"] == "bob"


def test_silently_lost_session_is_removed_after_some_seconds(
    server: ServerProcess, pusher_js: Callable[..., NodeProcess], channel: str
) -> None:
    client = pusher_js()
    subscribed(client, channel)
    client.close()
    assert server.session_count(channel) == 1
    wait_until(lambda: server.session_count(channel) == 0, "its session ends", 20)


def test_exchanges_client_events_with_others(pusher_js: Callable[..., NodeProcess], channel: str) -> None:
    private = f"private-{channel}"
    first, second = pusher_js(), pusher_js()
    for client in (first, second):
        subscribed(client, private, "client-typing")
    first.tell("trigger", channel=private, event="client-typing", data={"n": 1})
    assert second.next(on="event", event="client-typing")["data"] == {"n": 1}
    second.tell("trigger", channel=private, event="client-typing", data={"n": 2})
    assert first.next(on="event", event="client-typing")["data"] == {"n": 2}


def test_exchanges_events_with_a_client_on_a_websocket(
    server: ServerProcess, pusher_js: Callable[..., NodeProcess], node: Callable[..., NodeProcess], channel: str
) -> None:
    private = f"private-{channel}"
    here = pusher_js()
    there = start_pusher_js(node, server, "ws", client={"wsHost": "127.0.0.1", "wsPort": server.ws_port})
    for client in (here, there):
        subscribed(client, private, "client-typing")
    here.tell("trigger", channel=private, event="client-typing", data={"n": 1})
    assert there.next(on="event", event="client-typing")["data"] == {"n": 1}
    there.tell("trigger", channel=private, event="client-typing", data={"n": 2})
    assert here.next(on="event", event="client-typing")["data"] == {"n": 2}


# -- long responses


IN_FLIGHT = 100
"""events on their way to the client: several responses, but less than `server.outbox`, so that a slow client stays connected"""


@pytest.mark.parametrize("text", ["x" * 6000, "ü\u4e16\U0001f980" * 700], ids=["ASCII", "other scripts"])
def test_loses_no_event_when_it_drops_long_responses(
    server: ServerProcess, pusher_js: Callable[..., NodeProcess], channel: str, text: str
) -> None:
    """After 256 KiB pusher-js ends a response within the sent data, and requests another."""
    client = pusher_js()
    subscribed(client, channel, "n")
    received = []
    for n in range(300):
        event = {"name": "n", "channels": [channel], "data": {"n": n, "text": text}}
        assert server.post("/apps/app-test/events", json.dumps(event, ensure_ascii=False).encode()).status == 200
        if n >= IN_FLIGHT:
            received.append(client.next(on="event", event="n")["data"]["n"])
    received += [client.next(on="event", event="n")["data"]["n"] for _ in range(IN_FLIGHT)]
    assert received == list(range(300))
    assert not [seen for seen in client.seen if seen["on"] == "state" and seen["state"] != "connected"]


# -- ends


def test_reconnects_when_the_server_announces_a_restart(node: Callable[..., NodeProcess], road: str) -> None:
    with running() as server:
        client = start_pusher_js(node, server, road)
        client.next(on="state", state="connected")
        server.signal()
        client.next(on="state", state="connecting")
        assert {seen["code"] for seen in client.seen if seen["on"] == "error"} == {4200}
        server.wait()
        client.close()


def test_stays_connected_when_idle_for_longer_than_the_activity_timeout(node: Callable[..., NodeProcess], road: str) -> None:
    with running({"server": {"pusher": {"activity-timeout": 2}}}) as server:
        client = start_pusher_js(node, server, road, client={"pongTimeout": 3000})
        client.next(on="state", state="connected")
        end = time.monotonic() + 5
        wait_until(lambda: time.monotonic() > end, "two activity timeouts and a half")
        assert client.ask("connection")["state"] == "connected"
        assert metric(server, 'push1st_connections_opened_total{protocol="pusher-xhr"}') == 1
        client.close()


# -- raw requests


@contextlib.contextmanager
def opened(server: ServerProcess, path: str, **headers: str) -> Iterator[http.client.HTTPResponse]:
    """Opens the response to an empty POST."""
    connection = http.client.HTTPConnection("127.0.0.1", server.ws_port, timeout=DEADLINE)
    try:
        connection.request("POST", path, b"", headers)
        with connection.getresponse() as response:
            yield response
    finally:
        connection.close()


def frame(response: http.client.HTTPResponse) -> Any:
    """Returns the next message on a stream."""
    line = response.readline()
    assert line[:1] == b"a", line
    (message,) = json.loads(line[1:])
    return json.loads(message)


def test_browsers_may_call_from_other_pages(server: ServerProcess) -> None:
    ask = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    answer = server.request("OPTIONS", SESSION + "/xhr_send", headers=ask, port=server.ws_port)
    assert answer.status == 200
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert answer.headers["Access-Control-Allow-Methods"] == "POST"
    assert answer.headers["Access-Control-Allow-Headers"] == "Content-Type"
    assert server.post(SESSION + "/xhr_send", b"[]", port=server.ws_port).headers["Access-Control-Allow-Origin"] == "*"


def test_origins_are_checked(server: ServerProcess) -> None:
    path = "/pusher/app/origins-key/7/from-a-page/xhr_streaming" + QUERY
    with opened(server, path, Origin="https://bad.example") as response:
        assert response.status == 200
        assert rejected(response.read()) == 4009
    with opened(server, path, Origin="https://good.example") as response:
        assert response.readline() == b"o\n"


def test_session_is_available_only_to_its_client(server: ServerProcess) -> None:
    """A page of another origin that knows the session id, and another app, get 404."""
    path = "/pusher/app/app-key/7/of-one-page"
    with opened(server, path + "/xhr_streaming" + QUERY, Origin="https://page.example") as response:
        assert response.readline() == b"o\n"
        send = {"Origin": "https://other.example"}
        assert server.post(path + "/xhr_send", b"[]", headers=send, port=server.ws_port).status == 404
        assert server.post(path + "/xhr_send", b"[]", port=server.ws_port).status == 404
        assert server.post(path.replace("app-key", "sdk-key") + "/xhr_send", b"[]", port=server.ws_port).status == 404
        send = {"Origin": "https://page.example"}
        assert server.post(path + "/xhr_send", b"[]", headers=send, port=server.ws_port).status == 200


def test_stream_requested_again_continues_without_a_second_welcome(server: ServerProcess, channel: str) -> None:
    path = f"/pusher/app/app-key/7/{channel}"
    with opened(server, path + "/xhr_streaming" + QUERY) as first:
        assert first.readline() == b"o\n"
        assert frame(first)["event"] == "pusher:connection_established"
        wanted = {"event": "pusher:subscribe", "data": {"channel": channel}}
        assert server.post(path + "/xhr_send", [json.dumps(wanted)], port=server.ws_port).status == 200
        assert frame(first)["event"] == "pusher_internal:subscription_succeeded"
        with opened(server, path + "/xhr_streaming" + QUERY) as second:
            assert first.read() == b""
            server.publish(channel, "e", 1)
            assert frame(second)["event"] == "e"
        server.publish(channel, "e", 2)
        with opened(server, path + "/xhr" + QUERY) as poll:
            assert json.loads(frame(poll)["data"]) == 2


def test_a_proxy_that_speaks_http_1_0_gets_a_stream(server: ServerProcess) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.ws_port, timeout=DEADLINE)
    connection._http_vsn_str = "HTTP/1.0"  # type: ignore[attr-defined]
    connection.request("POST", "/pusher/app/app-key/7/through-nginx/xhr_streaming" + QUERY, b"")
    response = connection.getresponse()
    assert response.getheader("Transfer-Encoding") is None
    assert response.readline() == b"o\n"
    assert frame(response)["event"] == "pusher:connection_established"
    connection.close()


def test_a_stream_over_tls() -> None:
    with running({"server": {"ssl": {"enable": True}}}) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection("127.0.0.1", server.ws_port, timeout=DEADLINE, context=context)
        connection.request("POST", SESSION + "/xhr_streaming" + QUERY, b"")
        with connection.getresponse() as response:
            assert response.readline() == b"o\n"
            assert frame(response)["event"] == "pusher:connection_established"
            server.signal()
            assert response.readline().startswith(b"c[4200,")
            assert response.read() == b""
        connection.close()
        server.wait()


@pytest.mark.parametrize(("query", "code"), [("?protocol=x", 4006), ("?protocol=3", 4007)], ids=["no number", "too old"])
def test_protocol_versions_are_checked(server: ServerProcess, query: str, code: int) -> None:
    answer = server.post(f"/pusher/app/app-key/7/version{code}/xhr{query}", b"", port=server.ws_port)
    assert answer.status == 200
    assert rejected(answer.body) == code


@pytest.mark.parametrize("body", [b"", b"{}", b'["a"', b"[1]", b'["\xff"]', b"[" * 50_000])
def test_body_that_is_not_an_array_of_strings_is_rejected_and_the_session_stays(
    server: ServerProcess, body: bytes, channel: str
) -> None:
    path = f"/pusher/app/app-key/7/{channel}"
    with opened(server, path + "/xhr_streaming" + QUERY) as response:
        assert response.readline() == b"o\n"
        assert server.post(path + "/xhr_send", body, port=server.ws_port).status == 400
        assert server.post(path + "/xhr_send", ['{"event":"pusher:ping","data":{}}'], port=server.ws_port).status == 200
        frame(response)
        assert frame(response)["event"] == "pusher:pong"


def test_message_to_an_unknown_session_is_404(server: ServerProcess) -> None:
    assert server.post("/pusher/app/app-key/7/never-seen/xhr_send", b"[]", port=server.ws_port).status == 404
    assert server.post("/pusher/app/app-key/7/short/xhr_send", b"[]", port=server.ws_port).status == 400
    assert server.get("/pusher/app/app-key/7/never-seen/xhr", port=server.ws_port).status == 405


def test_one_address_cannot_take_all_sessions() -> None:
    """The address starts 5,100 sessions and continues none; a known proxy forwards it."""
    with running({"server": {"proxies": ["127.0.0.1"]}}, APPS) as server:

        def first_post(name: str, address: str) -> bytes:
            path = f"/pusher/app/app-key/7/{name}/xhr{QUERY}"
            answer = server.post(path, b"", headers={"X-Forwarded-For": address}, port=server.ws_port)
            assert answer.status == 200
            return answer.body

        with Wire(server.ws_port) as wire:
            codes: Counter[str | int] = Counter()
            for group in range(0, 5100, 10):
                requests = [
                    f"POST /pusher/app/app-key/7/flood-{n:05}/xhr{QUERY} HTTP/1.1\r\nHost: localhost\r\n"
                    f"X-Forwarded-For: 203.0.113.9\r\nContent-Length: 0\r\n\r\n"
                    for n in range(group, group + 10)
                ]
                wire.send("".join(requests).encode())
                for _ in requests:
                    size = 0
                    while (line := wire.reader.readline()) != b"\r\n":
                        assert line, "the server ended the connection"
                        name, _, value = line.lower().partition(b":")
                        size = int(value) if name == b"content-length" else size
                    codes[json.loads(wire.reader.read(size).splitlines()[-1][1:])[0]] += 1
        assert codes[4100] == 100
        assert b"connection_established" in first_post("another-0", "203.0.113.10")
        assert b"[4100," in first_post("another-1", "203.0.113.9")
        (logged,) = (one for one in server.output.splitlines() if "too many HTTP fallback sessions" in one)
        assert "203.0.113.9" in logged
        assert "server.proxies" in logged
