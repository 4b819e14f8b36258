"""Shared filters of MQTT over TCP, with paho-mqtt and with bytes: turns, rights, and members that leave."""

from collections.abc import Iterator
from typing import Any

import pytest

from push1st.protocols.mqtt.packets import MQTT_5, MQTT_311, FilterOptions, SubscribePacket
from tests.support import mqtt_packets as packets
from tests.support.mqtt_rights import FILTERS, MODULE, PUBLIC, TOPICS, token
from tests.support.mqtt_socket import connected
from tests.support.paho import V5, V31, V311, PahoClient, paho_client
from tests.support.process import APP, DEADLINE, ServerProcess, free_ports, merged, running

VERSIONS = pytest.mark.parametrize("version", [V31, V311, V5])
LEVELS = pytest.mark.parametrize("level", [MQTT_311, MQTT_5])


@pytest.fixture(scope="module")
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def server(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Runs a server with apps whose backends decide about subscriptions."""
    folder = tmp_path_factory.mktemp("backend")
    (folder / "filtering.py").write_text(MODULE)
    mqtt = {"listen": f"tcp://127.0.0.1:{port}", "push": ["public", "private", "presence"], "publishes": 0}
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


def numbers(client: PahoClient, count: int) -> list[int]:
    """Returns the payloads of the next messages."""
    return [int(client.messages.get(timeout=DEADLINE).payload) for _ in range(count)]


# Turns


@VERSIONS
@pytest.mark.parametrize("filter", ["turns/1", "turns/+", "turns/#"])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_members_take_turns(server: ServerProcess, port: int, version: Any, filter: str, qos: int) -> None:
    with (
        paho_client(port, version) as one,
        paho_client(port, V5) as two,
        paho_client(port, version) as three,
        paho_client(port, version) as all,
        paho_client(port, V5) as sender,
    ):
        for client in (one, two, three):
            assert client.subscribe(f"$share/workers/{filter}", qos=qos) == [qos]
        assert all.subscribe(filter, qos=qos) == [qos]
        for number in range(30):
            sender.publish("turns/1", str(number), qos=qos)
        assert [numbers(client, 10) for client in (one, two, three)] == [[*range(first, 30, 3)] for first in range(3)]
        assert numbers(all, 30) == [*range(30)]
        assert one.messages.empty()


def test_events_of_the_api_take_turns(server: ServerProcess, port: int) -> None:
    with paho_client(port, V5) as one, paho_client(port, V311) as two:
        for client in (one, two):
            client.subscribe("$share/workers/jobs", qos=1)
        for number in range(4):
            server.publish("jobs", "e", str(number))
        assert (numbers(one, 2), numbers(two, 2)) == ([0, 2], [1, 3])


@LEVELS
def test_bytes_of_a_member(server: ServerProcess, port: int, level: int) -> None:
    with connected(port, level, "one") as one, connected(port, level, "two") as two:
        one.subscribe("$share/g/bytes", 1)
        two.subscribe("$share/g/bytes", 2)
        for packet_id in (1, 2):
            two.publish("bytes", bytes((packet_id,)), qos=2, packet_id=packet_id)
            two.expect(bytes((0x50, 2, 0, packet_id)))
        one.expect(one.message("bytes", b"\1", qos=1, packet_id=1))
        two.expect(two.message("bytes", b"\2", qos=2, packet_id=1))
        for client in (one, two):
            client.expect_nothing()


def test_no_local_of_a_shared_filter_ends_the_connection(server: ServerProcess, port: int) -> None:
    with connected(port, MQTT_5) as client:
        client.send(packets.subscribe(SubscribePacket(1, (FilterOptions("$share/g/a", no_local=True),)), MQTT_5))
        client.expect_end(bytes.fromhex("e00182"))


def test_retained_message_is_not_sent_to_a_group(server: ServerProcess, port: int) -> None:
    with paho_client(port, V5) as sender, paho_client(port, V5) as client:
        sender.publish("kept/1", b"kept", qos=1, retain=True)
        sender.until_acknowledged()
        client.subscribe("$share/g/kept/#", qos=1)
        sender.publish("kept/2", b"live", qos=1)
        assert client.expect() == ("kept/2", b"live")
        sender.publish("kept/1", b"", qos=1, retain=True)


# Members that leave


@VERSIONS
def test_unacknowledged_messages_reach_another_member(server: ServerProcess, port: int, version: Any) -> None:
    level = MQTT_5 if version == V5 else MQTT_311
    with paho_client(port, version) as other, paho_client(port, V5) as sender:
        with connected(port, level, "lost") as lost:
            lost.subscribe("$share/g/again", 1)
            other.subscribe("$share/g/again", qos=1)
            for number in range(10):
                sender.publish("again", str(number), qos=1)
            assert numbers(other, 5) == [1, 3, 5, 7, 9]
            lost.expect(lost.message("again", b"0", qos=1, packet_id=1))
        assert numbers(other, 5) == [0, 2, 4, 6, 8]
        sender.publish("again", "10", qos=1)
        assert numbers(other, 1) == [10]


def test_unsubscribed_member_gets_nothing_more(server: ServerProcess, port: int) -> None:
    with paho_client(port, V5) as one, paho_client(port, V5) as two:
        for client in (one, two):
            client.subscribe("$share/g/left/+", qos=1)
        assert one.unsubscribe("$share/g/left/+", "$share/h/left/+") == [0, 0x11]
        for number in range(4):
            server.publish("left.1", "e", str(number))
        assert numbers(two, 4) == [0, 1, 2, 3]
        assert one.messages.empty()


def test_members_that_come_and_go_lose_no_message(server: ServerProcess, port: int) -> None:
    """A member is killed again and again; the other members acknowledge all messages with QoS 1, some of them twice."""
    with paho_client(port, V311) as one, paho_client(port, V5) as two, paho_client(port, V5) as sender:
        for client in (one, two):
            client.subscribe("$share/g/busy/#", qos=1)
        for begin in range(0, 200, 20):
            with connected(port, MQTT_311, "lost") as lost:
                lost.subscribe("$share/g/busy/#", 1)
                for number in range(begin, begin + 20):
                    sender.publish(f"busy/{number}", str(number), qos=1)
                sender.until_acknowledged()
        found: set[int] = set()
        while len(found) < 200:
            for client in (one, two):
                if not client.messages.empty():
                    found.update(numbers(client, 1))
        assert found == set(range(200))


# Rights: a member without the right gets nothing


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("app", ["app-test", "app-naive", "app-orders"])
def test_member_gets_only_channels_that_it_may_read(server: ServerProcess, port: int, app: str, filter: str, qos: int) -> None:
    """A stranger and the holder of a token are in one group: the secrets reach only the holder, and public topics both."""
    key = {"app-test": "app-key", "app-naive": "naive:x", "app-orders": "orders"}[app]
    password = token(server, app, "private-orders.*", "presence-room.2", "end.1")
    with (
        paho_client(port, V5, username=key, password="any" if app == "app-naive" else None) as stranger,
        paho_client(port, V311, username=key, password=password) as holder,
    ):
        for client in (stranger, holder):
            assert client.subscribe(f"$share/g/{filter}", qos=qos) == [qos]
            assert client.subscribe("end/1", qos=qos) == [qos]
        for _ in range(2):
            for topic in TOPICS:
                body = {"name": "e", "channels": [topic.replace("/", ".")], "data": "secret"}
                assert server.post(f"/apps/{app}/events", body).status == 200
        body = {"name": "e", "channels": ["end.1"], "data": "end"}
        assert server.post(f"/apps/{app}/events", body).status == 200
        found = [until_end(client) for client in (stranger, holder)]
        allowed = {"app-test": PUBLIC, "app-naive": set(), "app-orders": PUBLIC - {"vip/1"}}[app]
        if app == "app-orders":
            allowed = allowed | {
                "private-orders/+": {"private-orders/1"},
                "private-orders/#": {"private-orders", "private-orders/1", "private-orders/1/2"},
            }.get(filter, set())
        if (app, filter) == ("app-naive", "presence-room/+"):
            allowed = {"presence-room/1"}
        assert found[0] <= allowed, filter
        assert found[1] <= allowed | {"private-orders/1", "private-orders/1/2"}


def until_end(client: PahoClient) -> set[str]:
    """Returns the topics of the messages before the payload `end`."""
    found = set()
    while (message := client.expect())[1] != b"end":
        found.add(message[0])
    return found


def test_shared_filters_leak_to_no_stranger(server: ServerProcess, port: int) -> None:
    """All filters in one group each, of an anonymous client, with a naive backend that allows all other names."""
    with paho_client(port, V5, username="naive:x", password="any") as client:
        assert client.subscribe(*(f"$share/g/{one}" for one in ("#", "+/+", "+/1", "private-orders/1"))) == [0, 0, 0, 0x87]
        client.subscribe("presence-end/1")
        for topic in TOPICS:
            body = {"name": "e", "channels": [topic.replace("/", ".")], "data": "secret"}
            assert server.post("/apps/app-naive/events", body).status == 200
        assert server.post("/apps/app-naive/events", {"name": "e", "channels": ["presence-end.1"], "data": "end"}).status == 200
        assert until_end(client) == set()


# Members whose sessions outlive their connections


@LEVELS
def test_first_member_that_returns_gets_the_messages(server: ServerProcess, port: int, level: int) -> None:
    fields: dict[str, Any] = {"clean": False} | ({"session_expiry": 60} if level == MQTT_5 else {})
    with connected(port, level, f"absent-{level}", **fields) as client:
        client.subscribe("$share/g/absent/+", 1)
        client.send(bytes.fromhex("e000"))
        client.expect_end()
    with paho_client(port, V5) as sender:
        for number in range(3):
            sender.publish("absent/1", str(number), qos=1)
        sender.until_acknowledged()
    with connected(port, level, f"absent-{level}", **fields) as client:
        for number in range(3):
            client.expect(client.message("absent/1", b"%d" % number, qos=1, packet_id=number + 1))
        client.expect_nothing()
