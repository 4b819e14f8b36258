"""Filters of one MQTT client that match the same topics, over TCP: one copy of each message, and no message without a right."""

from collections.abc import Iterator
from typing import Any

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from push1st.protocols.mqtt.packets import MQTT_5, MQTT_311
from tests.support.mqtt_rights import FILTERS, MODULE, PUBLIC, TOPICS, received, token
from tests.support.mqtt_socket import connected
from tests.support.paho import V5, V31, V311, paho_client
from tests.support.process import APP, ServerProcess, free_ports, merged, running

VERSIONS = pytest.mark.parametrize("version", [V31, V311, V5])


@pytest.fixture(scope="module")
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def server(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Runs a server with an app whose backend decides about subscriptions."""
    folder = tmp_path_factory.mktemp("backend")
    (folder / "filtering.py").write_text(MODULE)
    mqtt = {"listen": f"tcp://127.0.0.1:{port}", "push": ["public", "private", "presence"], "publishes": 0}
    authorize = {"url": "py://filtering:orders", "on": ["subscribe"], "filter": ["private-", "vip"]}
    apps = {"app-orders": merged(APP, {"key": "orders", "authorize": authorize})}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(folder))
        with running({"server": {"proto": ["pusher", "websocket", "mqtt"], "mqtt": mqtt}}, apps=apps) as process:
            yield process


@VERSIONS
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_client_gets_each_message_once_and_in_order(server: ServerProcess, port: int, version: Any, qos: int) -> None:
    topics = ("once/a", "once/b", "once/a/b")
    with paho_client(port, version) as client, paho_client(port, version) as sender:
        for filter, granted in (("once/#", qos), ("once/+", 0), ("once/a", min(qos, 1)), ("+/+/b", 0)):
            assert client.subscribe(filter, qos=granted) == [granted]
        for number in range(300):
            sender.publish(topics[number % 3], str(number), qos=qos)
        found = [client.messages.get(timeout=10) for _ in range(300)]
        server.publish("once.end", "e", "end")
        assert client.expect() == ("once/end", b"end")
        for index, topic in enumerate(topics):
            mine = [message for message in found if message.topic == topic]
            assert [int(message.payload) for message in mine] == list(range(index, 300, 3))
            assert {message.qos for message in mine} == {qos}
        assert not any(message.dup for message in found)


def test_copy_has_all_subscription_identifiers(server: ServerProcess, port: int) -> None:
    with paho_client(port, V5) as client:
        for number, filter in enumerate(("ids/a", "ids/+", "#"), 1):
            properties = Properties(PacketTypes.SUBSCRIBE)
            properties.SubscriptionIdentifier = number
            client.subscribe(filter, properties=properties)
        server.publish("ids.a", "e", "1")
        server.publish("ids.b", "e", "2")
        found = [client.messages.get(timeout=10) for _ in range(2)]
        assert [one.properties.SubscriptionIdentifier for one in found] == [[1, 2, 3], [2, 3]]  # type: ignore[union-attr]


@VERSIONS
@pytest.mark.parametrize("qos", [0, 1])
def test_overlapping_filters_deliver_only_what_each_of_them_may(server: ServerProcess, port: int, version: Any, qos: int) -> None:
    """The filters are granted by the backend, by a token, or not at all; each topic arrives once."""
    password = token(server, "app-orders", "private-other.*")
    with paho_client(port, version, username="orders", password=password) as client:
        for filter in ("end/1", *FILTERS, "private-orders/1", "open/1"):
            assert client.subscribe(filter, qos=qos) == [qos]
        found = []
        for topic in (*TOPICS, "end/1"):
            body = {"name": "e", "channels": [topic.replace("/", ".")], "data": "secret"}
            assert server.post("/apps/app-orders/events", body).status == 200
        while (topic := client.expect()[0]) != "end/1":
            found.append(topic)
        allowed = {"private-orders", "private-orders/1", "private-orders/1/2", "private-other/1"}
        assert sorted(found) == sorted((PUBLIC - {"vip/1"}) | allowed)


def test_ended_right_of_one_filter_leaves_the_other(server: ServerProcess, port: int) -> None:
    with paho_client(port, V5, username="orders") as client:
        client.subscribe("#", qos=1)
        client.subscribe("private-orders/+")
        assert {one for one in received(server, client, "app-orders") if one.startswith("private")} == {"private-orders/1"}
        client.unsubscribe("private-orders/+")
        assert not {one for one in received(server, client, "app-orders") if one.startswith("private")}


@pytest.mark.parametrize("level", [MQTT_311, MQTT_5])
def test_bytes_of_the_one_copy(server: ServerProcess, port: int, level: int) -> None:
    with connected(port, level) as client:
        client.subscribe("bytes/a", 1)
        client.subscribe("bytes/#", 2)
        client.subscribe("+/a", 0)
        for packet_id in (1, 2):
            client.publish("bytes/a", qos=1, packet_id=packet_id)
            client.expect(client.message("bytes/a", qos=1, packet_id=packet_id) + bytes((0x40, 2, 0, packet_id)))
        client.publish("bytes/b", qos=2, packet_id=3)
        client.expect(bytes((0x50, 2, 0, 3)) + client.message("bytes/b", qos=2, packet_id=3))
        client.expect_nothing()
