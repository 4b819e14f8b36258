"""The number of an app's connections, with clients of several protocols, and with Pusher's library for Node."""

import json
from collections.abc import Callable

from tests.support.nodejs import NodeProcess
from tests.support.paho import V5, paho_client
from tests.support.process import APP, ServerProcess, free_ports, merged, running, wait_until
from tests.support.pusher_socket import pusher_socket
from tests.support.raw_socket import raw_socket
from tests.support.signing import access_token


def connections(server: ServerProcess, app: str = "app-test") -> int:
    answer = server.get(f"/apps/{app}/connections")
    assert answer.status == 200, answer
    (count,) = answer.json.values()
    return int(count)


def test_clients_of_all_protocols_are_counted_while_they_are_connected(channel: str) -> None:
    (port,) = free_ports(1)
    mqtt = {"listen": f"tcp://127.0.0.1:{port}", "push": ["public"]}
    other = merged(APP, {"key": "other-key"})
    with running({"server": {"proto": ["pusher", "websocket", "mqtt"], "mqtt": mqtt}}, {"app-other": other}) as server:
        assert connections(server) == 0
        with pusher_socket(server), raw_socket(server, channel):
            token = access_token({"app": "app-test", "channel": "*"})
            with paho_client(port, V5, "device", username="app-key", password=token, clean=False):
                assert (connections(server), connections(server, "app-other")) == (3, 0)
            wait_until(lambda: connections(server) == 2, "the absent MQTT session is no connection")
        wait_until(lambda: connections(server) == 0, "no client is connected")


def test_library_for_node_reads_the_number_of_connections(
    server: ServerProcess, connect: Callable[..., object], node: Callable[..., NodeProcess]
) -> None:
    address = {"host": "127.0.0.1", "port": server.ws_port, "useTLS": False}
    sdk = node("pusher_server.mjs", appId="app-test", key="app-key", secret="secret", **address)
    connect()
    answer = sdk.ask("call", method="get", args=[{"path": "/connections"}])
    assert answer["status"] == 200
    assert json.loads(answer["body"])["connections"] >= 1


def test_unsigned_call_on_the_clients_port_is_401(server: ServerProcess) -> None:
    assert server.get("/apps/app-test/connections", port=server.ws_port).status == 401
    assert server.signed("GET", "/apps/app-test/connections", port=server.ws_port).status == 200
