"""With `log.level: debug` the log has a line for each rejection, with the text of the answer and without secrets."""

import re
import socket
from collections.abc import Callable, Iterator

import pytest

from push1st.refusals import MAX_LINES
from tests.support.paho import V5, paho_client
from tests.support.process import APP, ServerProcess, free_ports, merged, running, wait_until
from tests.support.pusher_socket import dialled, pusher_socket
from tests.support.raw_socket import raw_socket
from tests.support.signing import access_token

SECRET = "canary-secret-of-more-than-32-bytes-0123456789"
APPS = {
    "app-off": merged(APP, {"key": "off-key", "secret": SECRET, "enable": False}),
    "app-origins": merged(APP, {"key": "origins-key", "secret": SECRET, "origins": ["https://good.example"]}),
    "app-full": merged(APP, {"key": "full-key", "secret": SECRET, "limits": {"connections": 1}}),
    "app-small": merged(APP, {"key": "small-key", "secret": SECRET, "limits": {"subscriptions": 1, "client-events": 1}}),
}


@pytest.fixture
def talking() -> Iterator[ServerProcess]:
    with running({"log": {"level": "debug"}}, APPS) as server:
        yield server
        assert SECRET not in server.output


def refused(server: ServerProcess, event: str, code: int, *words: str) -> str:
    """Waits for the log line of a rejection; returns it."""
    line = re.compile(rf"^.*\[debug *\] {event} .*\bcode={code}\b.*$", re.MULTILINE)

    def found() -> str:
        return next((one for one in line.findall(server.output) if all(word in one for word in words)), "")

    return wait_until(found, f"a line {event!r} with {code} and {words}")


@pytest.mark.parametrize(
    ("key", "options", "code", "text"),
    [
        ("wrong-key", {}, 4001, "App key wrong-key does not exist"),
        ("off-key", {}, 4003, "App is disabled"),
        ("origins-key", {"origin": "https://bad.example"}, 4009, "Connection is unauthorized: this origin is not allowed"),
    ],
)
def test_a_rejected_handshake_is_logged(talking: ServerProcess, key: str, options: dict[str, str], code: int, text: str) -> None:
    with dialled(talking, f"/app/{key}", **options) as client:
        assert client.close_code() == code
    line = refused(talking, "handshake refused", code, text, f"path=/app/{key}", "ip=127.0.0.1")
    assert ("origin=https://bad.example" in line) == bool(options)


def test_a_rejected_handshake_of_a_raw_client_is_logged(talking: ServerProcess) -> None:
    status = talking.request("GET", "/ws/app/wrong-key/c", headers=UPGRADE, port=talking.ws_port).status
    assert status == 403
    refused(talking, "handshake refused", 403, "App key wrong-key does not exist")
    talking.request("GET", "/nowhere", headers=UPGRADE, port=talking.ws_port)
    refused(talking, "handshake refused", 404, "no WebSocket is served at /nowhere")


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


def test_a_connection_over_the_quota_is_logged(talking: ServerProcess) -> None:
    with pusher_socket(talking, "full-key"), dialled(talking, "/app/full-key") as second:
        code = second.close_code()
        assert code is not None
        refused(talking, "handshake refused", code, "Over connection quota")


def test_a_rejected_subscription_and_a_rejected_client_event_are_logged(talking: ServerProcess) -> None:
    with pusher_socket(talking, "small-key") as client:
        client.send("pusher:subscribe", {"channel": "private-c", "auth": "small-key:" + "0" * 64})
        line = refused(talking, "subscription refused", 401, "Invalid signature", "channel=private-c", "app=app-small")
        assert "socket_id=" in line
        client.send("client-x", {}, "private-c")
        refused(talking, "command refused", 403, "not subscribed to private-c", "channel=private-c")


def test_a_subscription_over_a_limit_is_logged(talking: ServerProcess) -> None:
    with pusher_socket(talking, "small-key") as client:
        client.subscribe("c")
        client.send("pusher:subscribe", {"channel": "d"})
        refused(talking, "subscription refused", 403, "channel=d")


@pytest.mark.parametrize(
    ("call", "code", "text"),
    [
        (lambda server: server.signed("GET", "/apps/app-test/channels", secret="wrong"), 401, "auth_signature"),
        (lambda server: server.signed("GET", "/apps/no-app/channels"), 404, "there is no app 'no-app'"),
        (lambda server: server.get("/apps/app-test/channels", port=server.ws_port), 401, "this call must be signed"),
        (lambda server: server.post("/apps/app-test/events", b"{"), 400, ""),
        (lambda server: server.request("PUT", "/apps/app-test/events", b"{}"), 405, "PUT is not allowed here"),
        (lambda server: server.get("/nothing"), 404, "nothing is at /nothing"),
    ],
)
def test_a_rejected_call_is_logged(talking: ServerProcess, call: Callable[[ServerProcess], object], code: int, text: str) -> None:
    call(talking)
    line = refused(talking, "request refused", code, text)
    assert "auth_signature=" not in line, "no query"


def test_a_rejected_access_token_is_logged(talking: ServerProcess, channel: str) -> None:
    with raw_socket(talking, channel, query="token=no.token.here"):
        refused(talking, "access token refused", 401, "app=app-test")


def test_a_secret_in_place_of_a_key_is_masked_in_the_log(talking: ServerProcess) -> None:
    with dialled(talking, f"/app/{SECRET}") as client:
        assert client.close_code() == 4001
    refused(talking, "handshake refused", 4001, "App key *** does not exist")


def test_rejections_of_mqtt_clients_are_logged_without_user_names_and_passwords() -> None:
    (port,) = free_ports(1)
    mqtt = {"listen": f"tcp://127.0.0.1:{port}"}
    with running({"log": {"level": "debug"}, "server": {"proto": ["mqtt"], "mqtt": mqtt}}) as server:
        token = access_token({"app": "app-test", "channel": "private-a", "sub": "canary-user"})
        name, password = "app-key:canary-name", "canary-password"
        client_id = "pump " + "x" * 100
        for given in (password, token[:-1]):
            with paho_client(port, V5, client_id, name, given, accepted=False):
                pass
        refused(server, "connection refused", 134, "the password is not an access token", f"client_id='pump {'x' * 59}'")
        with paho_client(port, V5, client_id, name, token) as client:
            client.subscribe("private-b")
            client.publish("private-c", "canary-payload", qos=1)
            client.until_acknowledged()
            client.publish("a" * 1025, "canary-payload")
            client.expect_end()
        refused(server, "subscription refused", 135, "topic=private-b", f"client_id='pump {'x' * 59}'")
        refused(server, "message refused", 135, "topic=private-c")
        refused(server, "connection closed", 129)
        assert "canary" not in server.output
        assert token[:20] not in server.output


def test_a_flood_of_refusals_logs_a_few_lines_and_the_number_left_out(talking: ServerProcess) -> None:
    for _ in range(10 * MAX_LINES):
        talking.get("/nothing")
    assert talking.output.count("nothing is at /nothing") < 5 * MAX_LINES
    talking.get("/nothing/more")
    wait_until(lambda: (talking.get("/nothing"), "left_out=" in talking.output)[1], "the number of those that were left out")


def test_refusals_are_not_logged_at_level_info(server: ServerProcess) -> None:
    server.get("/nothing/at/info")
    with socket.create_connection(("127.0.0.1", server.ws_port)) as raw:
        raw.sendall(b"no http\r\n\r\n")
        raw.recv(1000)
    assert "refused" not in server.output
