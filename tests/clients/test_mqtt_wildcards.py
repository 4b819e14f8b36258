"""MQTT filters with wildcards over TCP: messages of all protocols, rights of all kinds, hostile filters."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.mqtt_rights import FILTERS, MODULE, PUBLIC, received, token
from tests.support.paho import V5, V31, V311, paho_client
from tests.support.process import APP, ServerProcess, free_ports, merged, running
from tests.support.pusher_socket import pusher_socket


@pytest.fixture(scope="module")
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def server(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Runs a server with apps whose backends decide about subscriptions."""
    folder = tmp_path_factory.mktemp("backend")
    (folder / "filtering.py").write_text(MODULE)
    mqtt = {"listen": f"tcp://127.0.0.1:{port}", "push": ["public", "private", "presence"]}
    url = "py://filtering:"
    apps = {
        "app-naive": merged(APP, {"key": "naive", "authorize": {"url": url + "decide", "on": ["connect", "subscribe"]}}),
        "app-orders": merged(
            APP, {"key": "orders", "authorize": {"url": url + "orders", "on": ["subscribe"], "filter": ["private-", "vip"]}}
        ),
    }
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(folder))
        with running({"server": {"proto": ["pusher", "websocket", "mqtt"], "mqtt": mqtt}}, apps=apps) as process:
            yield process


# Between the protocols


@pytest.mark.parametrize("version", [V31, V311, V5])
def test_events_of_all_protocols_reach_a_filter(server: ServerProcess, port: int, version: Any) -> None:
    with (
        pusher_socket(server) as pusher,
        paho_client(port, V5) as sender,
        paho_client(port, version, password=token(server, "app-test", "private-*")) as client,
    ):
        assert client.subscribe("sensors/+/temp", "private-chat/#") == [0, 0]
        sender.publish("sensors/kitchen/temp", b"21.5")
        assert client.expect() == ("sensors/kitchen/temp", b"21.5")
        server.publish("sensors.cellar.temp", "e", "12")
        assert client.expect() == ("sensors/cellar/temp", b"12")
        pusher.subscribe("private-chat.1")
        pusher.send("client-say", {"text": "hi"}, "private-chat.1")
        assert client.expect() == ("private-chat/1", b'{"text": "hi"}')
        assert client.unsubscribe("sensors/+/temp", "sensors/#") == ([0, 0x11] if version == V5 else [])
        server.publish("sensors.cellar.temp", "e", "13")
        server.publish("private-chat.2", "e", "end")
        assert client.expect() == ("private-chat/2", b"end")


def test_filter_is_no_subscription_of_a_channel(server: ServerProcess, port: int) -> None:
    with paho_client(port) as client:
        client.subscribe("#")
        server.publish("seen", "e", "1")
        assert client.expect() == ("seen", b"1")
        assert server.get("/apps/app-test/channels?filter_by_prefix=seen").json == {"channels": {}}


@pytest.mark.parametrize("qos", [1, 2])
def test_filter_has_the_granted_qos(server: ServerProcess, port: int, qos: int) -> None:
    with paho_client(port, V5) as client, paho_client(port, V5) as sender:
        assert client.subscribe("qos/#", qos=qos) == [qos]
        sender.publish("qos/1", b"x", qos=2)
        message = client.messages.get(timeout=10)
        assert (message.topic, message.qos) == ("qos/1", qos)


# Rights: a client without the right gets nothing


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("filter", FILTERS)
def test_client_without_rights_gets_public_channels_only(server: ServerProcess, port: int, filter: str, qos: int) -> None:
    with paho_client(port, V5) as client:
        assert client.subscribe(filter, "end/1", qos=qos) == [qos, qos]
        assert received(server, client) <= PUBLIC


@pytest.mark.parametrize("filter", FILTERS)
def test_token_extends_a_filter_by_its_channels(server: ServerProcess, port: int, filter: str) -> None:
    with paho_client(port, V311, password=token(server, "app-test", "private-orders.*", "presence-room.2")) as client:
        assert client.subscribe(filter, "end/1") == [0, 0]
        found = received(server, client)
        assert found <= PUBLIC | {"private-orders/1", "private-orders/1/2"}
        assert ("private-orders/1" in found) == (filter in ("#", "+/+", "+/1", "private-orders/+", "private-orders/#"))


@pytest.mark.parametrize("filter", FILTERS)
def test_backend_that_allows_every_public_name_leaks_nothing(server: ServerProcess, port: int, filter: str) -> None:
    with paho_client(port, V5, username="naive:x", password="any") as client:
        assert client.subscribe(filter, "end/1") == [0, 0]
        assert received(server, client, "app-naive") == ({"presence-room/1"} if filter == "presence-room/+" else set())


@pytest.mark.parametrize("filter", FILTERS)
def test_backend_allows_a_filter_with_a_literal_first_level(server: ServerProcess, port: int, filter: str) -> None:
    with paho_client(port, V5, username="orders") as client:
        assert client.subscribe(filter, "end/1") == [0, 0]
        found = received(server, client, "app-orders")
        allowed = {"private-orders/+": {"private-orders/1"}}
        allowed["private-orders/#"] = {"private-orders", "private-orders/1", "private-orders/1/2"}
        assert found - (PUBLIC - {"vip/1"}) == allowed.get(filter, set())


def test_token_of_a_client_whose_backend_decides_extends_a_filter(server: ServerProcess, port: int) -> None:
    with paho_client(port, V5, username="orders", password=token(server, "app-orders", "vip.*")) as client:
        assert client.subscribe("#") == [0]
        assert received(server, client, "app-orders") == PUBLIC


# Hostile clients


def test_thousand_filters_and_deep_filters_are_bounded(server: ServerProcess, port: int) -> None:
    with (
        paho_client(port, V5, password=token(server, "app-test", "a")) as client,
        paho_client(port, V5) as anonymous,
    ):
        assert client.subscribe(*(f"+/{number}/#" for number in range(1000))) == [0] * 100 + [0x97] * 900
        deep = ("a" + "/+" * 16, "a" + "/+" * 17, "+" + "/a" * 199 + "/#", "b" + "/a" * 190 + "/#")
        assert anonymous.subscribe(*deep) == [0, 0x97, 0, 0]
        anonymous.publish("/".join(["a"] * 17), b"deep")
        assert anonymous.expect() == ("/".join(["a"] * 17), b"deep")


def test_hostile_filters_and_topics_do_not_stop_others(server: ServerProcess, port: int) -> None:
    filters = [f"{number:016b}".replace("0", "a").replace("1", "+") for number in range(0, 65_536, 656)]
    with (
        paho_client(port, V5, password=token(server, "app-test", "a")) as hostile,
        paho_client(port, V5) as flood,
        paho_client(port, V5) as client,
    ):
        assert hostile.subscribe(*("/".join(one) for one in filters)) == [0] * len(filters)
        client.subscribe("alive/#")
        for number in range(3000):
            flood.publish("a/" * 15 + f"{number}", b"x")
        server.publish("alive.1", "e", "1")
        assert client.expect() == ("alive/1", b"1")
