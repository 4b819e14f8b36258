"""MQTT over WebSockets, with paho-mqtt, with mqtt.js in Node and in Chromium, and with bytes."""

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Opcode
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol

from tests.clients.browser import Browser
from tests.support.frames import masked
from tests.support.http import handshake
from tests.support.nodejs import NodeProcess
from tests.support.paho import V5, V31, V311, paho_client
from tests.support.process import APP, DEADLINE, ServerProcess, free_ports, merged, running
from tests.support.pusher_socket import pusher_socket

CONNECT = bytes.fromhex("10 16 00 04 4d 51 54 54 04 82 00 3c 00 01 61 00 07 61 70 70 2d 6b 65 79")
ACCEPTED = bytes.fromhex("20 02 00 00")
MQTT = Subprotocol("mqtt")
PATHS = ("/mqtt", "/mqtt/", "/mqtt/app/app-key")


@pytest.fixture(scope="module")
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def server(port: int) -> Iterator[ServerProcess]:
    """Runs a server that accepts MQTT over WebSockets and over TCP."""
    mqtt = {"push": ["public", "private"], "listen": f"tcp://127.0.0.1:{port}"}
    apps = {"app-shop": merged(APP, {"key": "shop-key", "origins": ["https://shop.example"]})}
    with running({"server": {"proto": ["pusher", "mqtt"], "mqtt": mqtt}}, apps=apps) as process:
        yield process


def websocket(server: ServerProcess, path: str = "/mqtt", origin: str | None = None) -> ClientConnection:
    url = f"ws://127.0.0.1:{server.ws_port}{path}"
    return connect(url, subprotocols=[MQTT], origin=None if origin is None else Origin(origin), proxy=None)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("version", [V31, V311, V5])
def test_messages_between_websocket_tcp_and_pusher(server: ServerProcess, port: int, version: Any, path: str) -> None:
    name = f"web.{version}.{len(path)}"
    topic = name.replace(".", "/")
    with (
        pusher_socket(server) as pusher,
        paho_client(server.ws_port, version, path=path) as web,
        paho_client(port, version) as device,
    ):
        pusher.subscribe(name)
        server.until_sessions(name, 1)
        assert web.subscribe(topic) == device.subscribe(topic) == [0]
        for sender in (web, device):
            sender.publish(topic, b"21.5")
            assert web.expect() == device.expect() == (topic, b"21.5")
            assert pusher.expect("message", name) == 21.5
        server.publish(name, "changed", "paid")
        assert web.expect() == device.expect() == (topic, b"paid")


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("path", PATHS)
def test_messages_of_mqtt_js_in_node(server: ServerProcess, node: Callable[..., NodeProcess], path: str, version: int) -> None:
    options = {"username": "app-key", "protocolVersion": version}
    client = node("mqtt_js.mjs", url=f"ws://127.0.0.1:{server.ws_port}{path}", options=options)
    client.next(on="connect")
    assert client.ask("subscribe", topic="a/b") == [0]
    client.tell("publish", topic="a/b", payload="hello")
    assert client.next(on="message") == {"on": "message", "topic": "a/b", "payload": "hello"}
    server.publish("a.b", "changed", "paid")
    assert client.next(on="message")["payload"] == "paid"
    client.tell("end")
    client.next(on="close")


def test_wrong_password_of_mqtt_js_in_node(server: ServerProcess, node: Callable[..., NodeProcess]) -> None:
    options = {"username": "app-key", "password": "wrong", "protocolVersion": 5}
    client = node("mqtt_js.mjs", url=f"ws://127.0.0.1:{server.ws_port}/mqtt", options=options)
    assert client.next(on="error")["code"] == 0x86


def test_messages_of_mqtt_js_in_a_browser(server: ServerProcess, browser: Browser) -> None:
    url = f"ws://127.0.0.1:{server.ws_port}/mqtt"
    page = browser.tab("mqtt.html")
    page.do("connect", url, {"username": "app-key", "protocolVersion": 5})
    page.until("connect")
    page.do("subscribe", "page/a")
    page.until("subscribed", [0])
    page.do("publish", "page/a", "from the page")
    page.until("message", "page/a", "from the page")
    server.publish("page.a", "changed", "from the API")
    page.until("message", "page/a", "from the API")
    page.close()


def test_origin_of_a_page_is_checked(server: ServerProcess, browser: Browser) -> None:
    page = browser.tab("mqtt.html")
    url = f"ws://127.0.0.1:{server.ws_port}/mqtt"
    page.do("connect", url, {"username": "shop-key", "protocolVersion": 5})
    page.until("error", 0x87)
    page.do("connect", f"{url}/app/shop-key", {})
    page.until("close")
    assert ["connect"] not in page.seen
    page.close()


def test_payloads_of_all_sizes_are_unchanged(server: ServerProcess) -> None:
    payloads = [b"x" * size for size in (0, 100, 125, 126, 127, 4096, 10_000)]
    with paho_client(server.ws_port, path="/mqtt") as client:
        client.subscribe("sizes")
        for payload in payloads:
            client.publish("sizes", payload)
        assert [client.expect()[1] for _ in payloads] == payloads


def test_answers_of_one_read_come_in_one_message(server: ServerProcess) -> None:
    with websocket(server) as client:
        assert client.subprotocol == "mqtt"
        client.send(CONNECT + b"\xc0\0" * 3)
        assert client.recv(DEADLINE) == ACCEPTED + b"\xd0\0" * 3


def test_text_message_ends_the_connection(server: ServerProcess) -> None:
    with websocket(server) as client:
        client.send(CONNECT)
        assert client.recv(DEADLINE) == ACCEPTED
        client.send("text")
        with pytest.raises(ConnectionClosed):
            client.recv(DEADLINE)
        assert client.close_code == 1003


def test_ping_is_answered(server: ServerProcess) -> None:
    with websocket(server) as client:
        assert client.ping().wait(DEADLINE)


def test_close_handshake_of_the_client_ends_in_order(server: ServerProcess) -> None:
    with websocket(server) as client:
        client.send(CONNECT)
        client.recv(DEADLINE)
        client.close(1001)
        assert client.close_code == 1001


def test_handshake_without_the_subprotocol_is_rejected(server: ServerProcess) -> None:
    with pytest.raises(InvalidStatus) as raised:
        connect(f"ws://127.0.0.1:{server.ws_port}/mqtt", proxy=None)
    assert raised.value.response.status_code == 400


def test_origins_apply_to_web_pages(server: ServerProcess) -> None:
    with pytest.raises(InvalidStatus) as raised:
        websocket(server, "/mqtt/app/shop-key", "https://evil.example")
    assert raised.value.response.status_code == 403
    with websocket(server, "/mqtt/app/shop-key", "https://shop.example") as client:
        client.send(CONNECT)
        assert client.recv(DEADLINE) == ACCEPTED


def test_wrong_password_is_rejected(server: ServerProcess) -> None:
    with paho_client(server.ws_port, password="wrong", accepted=False, path="/mqtt") as client:
        assert client.reason == 0x86


def test_second_connection_with_a_client_id_ends_the_first(server: ServerProcess) -> None:
    with (
        paho_client(server.ws_port, client_id="page", path="/mqtt") as first,
        paho_client(server.ws_port, client_id="page", path="/mqtt"),
    ):
        assert first.expect_end() == 0x8E


def test_slow_client_is_disconnected_and_others_are_not() -> None:
    with (
        running({"server": {"proto": ["mqtt"], "outbox": 65_536, "mqtt": {"push": ["public"]}}}) as server,
        socket.socket() as slow,
        paho_client(server.ws_port, path="/mqtt") as client,
    ):
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # else the kernel may take all messages of this test
        slow.settimeout(DEADLINE)
        slow.connect(("127.0.0.1", server.ws_port))
        slow.sendall(handshake("/mqtt", "Sec-WebSocket-Protocol: mqtt"))
        subscribe = bytes.fromhex("82 0a 00 01 00 05 66 6c 6f 6f 64 00")
        slow.sendall(masked(Opcode.BINARY, CONNECT + subscribe))
        client.subscribe("flood")
        server.until_sessions("flood", 2)
        for number in range(2000):
            client.publish("flood", b"%d" % number * 2000)
            assert client.expect()[1] == b"%d" % number * 2000
            if number % 50 == 49 and 'push1st_cut_offs_total{reason="slow"} 1.0' in server.get("/metrics").body.decode():
                return
        pytest.fail("the server has not disconnected the slow client")


def test_stopping_server_ends_the_connections() -> None:
    with running({"server": {"proto": ["mqtt"], "drain": 0}}) as server, websocket(server) as client:
        client.send(CONNECT)
        assert client.recv(DEADLINE) == ACCEPTED
        metrics = server.get("/metrics").body.decode()
        assert 'push1st_connections{protocol="mqtt"} 1.0' in metrics
        server.signal()
        with pytest.raises(ConnectionClosed):
            client.recv(DEADLINE)
        assert client.close_code == 4200
        server.wait()
