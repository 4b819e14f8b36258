"""The connection of an MQTT client: its first packet, slices of input, deadlines, and the end."""

import asyncio
import contextlib
import socket
from itertools import count

import pytest
import structlog

from push1st.brokers.memory import Memory
from push1st.config.addresses import Networks
from push1st.config.model import Authorize
from push1st.protocols.mqtt import encode
from push1st.protocols.mqtt.decode import PacketDecoder
from push1st.protocols.mqtt.packets import (
    MQTT_5,
    MQTT_31,
    MQTT_311,
    ConnectPacket,
    FilterOptions,
    PublishPacket,
    SubscribePacket,
    Will,
)
from push1st.transports.turn import ROUND
from tests.support import mqtt_packets as encoded
from tests.support.loop import turns
from tests.support.mqtt_site import MqttClient, MqttSite, published
from tests.support.node import app_config
from tests.support.transport import Transport

PING = b"\xc0\0"
PONG = b"\xd0\0"
DISCONNECT = b"\xe0\0"


@pytest.fixture
def site() -> MqttSite:
    return MqttSite()


async def test_connack_of_each_version(site: MqttSite) -> None:
    for version in (MQTT_31, MQTT_311):
        assert await site.client(version).connect("c") == bytes.fromhex("20 02 00 00")
    answer = await site.client(MQTT_5).connect("c", keep_alive=60)
    assert answer == bytes.fromhex("20 0e 00 00 0b 22 00 0a 27 00 00 ff 78 21 00 14")
    assert site.metrics.opened == {"mqtt": 2, "mqtt5": 1}
    assert site.metrics.connections == {"mqtt": 0, "mqtt5": 1}  # each connection took over the client id


class SlowConnection:
    """A new connection whose first input takes a second."""

    def __init__(self, site: MqttSite) -> None:
        self.site = site
        self.is_new = True

    def process(self, data: bytes) -> bool:
        self.site.clock.advance(1)
        return False

    def keep(self, data: bytes) -> None: ...

    def hold_reading(self, hold: bool) -> None: ...

    def abort(self) -> None: ...


async def test_connect_that_waited_until_its_client_gave_up_is_discarded(site: MqttSite) -> None:
    with contextlib.ExitStack() as stack:
        pairs = [tuple(map(stack.enter_context, socket.socketpair())) for _ in range(2)]
        waiting, gone = (MqttClient(site, MQTT_311, Transport(number=server.fileno())) for server, _ in pairs)
        pairs[1][1].close()
        for _ in range(2 * ROUND):
            site.context.turn.arrived(SlowConnection(site), b"x")
        for number, client in enumerate((waiting, gone)):
            client.connection.data_received(encoded.connect(ConnectPacket(MQTT_311, f"c{number}")))
        await turns(10)
        assert waiting.take() == bytes.fromhex("20 02 00 00")
        assert gone.take() == b""
        assert gone.transport.aborted
        gone.lose()
        assert site.metrics.connections == {"mqtt": 1}


async def test_longer_keep_alive_is_replaced_in_mqtt_5_only(site: MqttSite) -> None:
    assert b"\x13\x0e\x10" in await site.client(MQTT_5).connect("a", keep_alive=3601)
    assert b"\x13\x0e\x10" in await site.client(MQTT_5).connect("b", keep_alive=0)
    assert b"\x13" not in await site.client(MQTT_5).connect("c", keep_alive=3600)
    assert await site.client().connect("d", keep_alive=65_535) == bytes.fromhex("20 02 00 00")


async def test_session_expiry_is_lowered_to_the_maximum(site: MqttSite) -> None:
    assert b"\x11\0\x09\x3a\x80" in await site.client(MQTT_5).connect("a", session_expiry=604_801)
    assert b"\x11\0\x09\x3a\x80" in await site.client(MQTT_5).connect("b", session_expiry=0xFFFF_FFFF)
    assert b"\x11" not in (await site.client(MQTT_5).connect("c", session_expiry=604_800))[2:]


async def test_client_without_an_id_gets_one(site: MqttSite) -> None:
    answer = await site.client(MQTT_5).connect("")
    assert b"\x12\x00\x1bauto-" in answer
    other = await site.client(MQTT_5).connect("")
    assert answer != other


@pytest.mark.parametrize("requested", [0, 1])
async def test_connack_has_no_response_information(site: MqttSite, requested: int) -> None:
    connect = bytes.fromhex("10 10 00 04 4d 51 54 54 05 02 00 3c 02 19") + bytes((requested,)) + bytes.fromhex("00 01 63")
    assert await site.client().send(connect) == bytes.fromhex("20 0e 00 00 0b 22 00 0a 27 00 00 ff 78 21 00 14")


async def test_other_first_byte_closes_before_anything_is_kept(site: MqttSite) -> None:
    client = site.client()
    assert await client.send(b"GET / HTTP/1.1\r\n\r\n") == b""
    assert client.is_closed()
    assert sum(site.metrics.refusals.values()) == 1


async def test_huge_first_packet_closes_at_its_fifth_byte(site: MqttSite) -> None:
    client = site.client()
    assert await client.send(b"\x10\xff\xff\xff\x7f") == b""
    assert client.is_closed()
    assert isinstance(client.connection._decoder, PacketDecoder)
    assert client.connection._decoder._rest is None


async def test_connect_must_be_whole_in_time(site: MqttSite) -> None:
    client = site.client()
    await client.send(b"\x10")
    site.pass_seconds(9)
    assert not client.is_closed()
    site.pass_seconds(3)
    assert client.is_closed()
    assert site.metrics.cut_offs["silent"] == 1


async def test_client_whose_connect_waits_in_a_crowd_is_not_silent(site: MqttSite) -> None:
    client, turn = site.client(), site.clients.context.turn
    turn._postpone([(client.connection, encoded.connect(ConnectPacket(MQTT_311, "c")))])
    site.pass_seconds(15)
    assert not client.is_closed()
    turn._schedule()
    await turns()
    assert client.take() == b"\x20\2\0\0"
    assert not site.metrics.cut_offs["silent"]


async def test_pipelined_packets_follow_connack(site: MqttSite) -> None:
    client = site.client()
    connect = encoded.connect(ConnectPacket(MQTT_311, "c"))
    subscribe = encoded.subscribe(SubscribePacket(1, (FilterOptions("a"),)), MQTT_311)
    answer = await client.send(connect + subscribe + PING)
    assert answer == bytes.fromhex("20 02 00 00") + bytes.fromhex("90 03 00 01 00") + PONG


async def test_packets_behind_a_rejected_connect_are_ignored(site: MqttSite) -> None:
    client = site.client()
    connect = encoded.connect(ConnectPacket(MQTT_311, "c", username="x", password=b"y"))
    assert await client.send(connect + PING) == bytes.fromhex("20 02 00 04")
    assert client.is_closed()
    assert await client.send(PING) == b""
    site.pass_seconds(3)
    assert client.transport.aborted


async def test_input_in_single_bytes(site: MqttSite) -> None:
    client = site.client()
    data = encoded.connect(ConnectPacket(MQTT_311, "c")) + PING
    answer = b""
    for at in range(len(data)):
        answer += await client.send(data[at : at + 1])
    assert answer == bytes.fromhex("20 02 00 00") + PONG


async def test_violation_ends_mqtt_5_with_disconnect_and_older_versions_without(site: MqttSite) -> None:
    new, old = await site.connected(MQTT_5, "new"), await site.connected(MQTT_311, "old")
    assert await new.send(b"\x80\x02\0\1") == bytes.fromhex("e0 01 81")
    assert await old.send(b"\x80\x02\0\1") == b""
    assert new.is_closed()
    assert old.is_closed()
    assert site.metrics.connections == {"mqtt": 0, "mqtt5": 0}


async def test_nothing_follows_the_disconnect_of_the_server(site: MqttSite) -> None:
    client, other = await site.connected(MQTT_5, "client"), await site.connected(MQTT_5, "other")
    await client.subscribe("a")
    assert await client.send(b"\xc1\0" + PING) == bytes.fromhex("e0 01 81")
    await other.publish("a")
    assert await client.send(PING) == b""
    assert client.is_closed()


async def test_second_connect_is_a_protocol_error(site: MqttSite) -> None:
    client = await site.connected(MQTT_5)
    assert await client.connect() == bytes.fromhex("e0 01 82")


async def test_client_leaves_with_disconnect(site: MqttSite) -> None:
    client = await site.connected()
    await client.subscribe("a")
    assert await client.send(DISCONNECT) == b""
    assert client.transport.closed
    assert site.world.app.tenant.channels == {}
    assert site.world.app.tenant.sessions == {}


async def test_lost_client_leaves_its_channels(site: MqttSite) -> None:
    client = await site.connected()
    await client.subscribe("a")
    client.lose()
    await turns()
    assert site.world.app.tenant.channels == {}
    assert site.context.open == set()


async def test_messages_before_the_end_of_the_input_are_published(site: MqttSite) -> None:
    sender, receiver = await site.connected(client_id="s"), await site.connected(client_id="r")
    await receiver.subscribe("a")
    message = published("a", b"x")
    sender.connection.data_received(message * 2)
    assert not sender.connection.eof_received()  # the transport closes
    await turns()
    assert receiver.take() == message * 2


async def test_connection_with_unfinished_input_outlives_the_end_of_the_input() -> None:
    site = MqttSite(publishes=1)
    sender, receiver = await site.connected(client_id="s"), await site.connected(client_id="r")
    await receiver.subscribe("a")
    message = published("a", b"x")
    sender.connection.data_received(message * 3)
    assert sender.connection.eof_received()
    site.clock.advance(1)
    sender.connection._pay()
    await turns()
    assert receiver.take() == message * 3
    assert not sender.is_closed()
    site.clock.advance(1)
    sender.connection._pay()
    await turns()
    assert sender.transport.closed


async def test_rate_does_not_delay_the_end_of_a_lost_connection() -> None:
    site = MqttSite(publishes=1)
    sender, receiver = await site.connected(client_id="s"), await site.connected(client_id="r")
    await receiver.subscribe("a")
    message = published("a", b"x")
    await sender.send(message * 9)
    sender.lose()
    assert receiver.take() == message * 2
    sender.connection._pay()
    await turns(8)
    assert receiver.take() == message * 7
    assert len(site.context.open) == 1


async def test_messages_of_a_lost_connection_are_published() -> None:
    site = MqttSite(publishes=0)
    sender, receiver = await site.connected(client_id="s"), await site.connected(client_id="r")
    await receiver.subscribe("a")
    message = published("a", b"x")
    sender.connection.data_received(message * 20_000)
    sender.lose()
    for _ in range(400):
        await turns()
    assert receiver.take() == message * 20_000
    assert len(site.context.open) == 1


async def test_second_connection_with_a_client_id_ends_the_first(site: MqttSite) -> None:
    first, second = await site.connected(MQTT_5), await site.connected(MQTT_5)
    assert first.take() == bytes.fromhex("e0 01 8e")
    assert first.is_closed()
    assert await second.send(PING) == PONG
    first.lose()
    await site.connected(MQTT_5)
    assert second.take() == bytes.fromhex("e0 01 8e")


async def test_keep_alive_is_enforced_after_one_and_a_half_of_its_time(site: MqttSite) -> None:
    new, old = await site.connected(MQTT_5, "new", keep_alive=10), await site.connected(MQTT_311, "old", keep_alive=10)
    site.pass_seconds(14)
    assert await new.send(PING) == PONG
    assert await old.send(PING) == PONG
    site.pass_seconds(15)
    assert not new.is_closed()
    site.pass_seconds(2)
    assert new.take() == bytes.fromhex("e0 01 8d")
    assert old.take() == b""
    assert old.is_closed()
    assert site.metrics.cut_offs["silent"] == 2


@pytest.mark.parametrize("keep_alive", [0, 60])
async def test_server_keep_alive_is_enforced(keep_alive: int) -> None:
    site = MqttSite(activity_timeout=10)
    client = await site.connected(MQTT_5, keep_alive=keep_alive)
    site.pass_seconds(15)
    assert not client.is_closed()
    site.pass_seconds(2)
    assert client.take() == bytes.fromhex("e0 01 8d")


async def test_client_without_keep_alive_has_no_deadline(site: MqttSite) -> None:
    client = await site.connected(MQTT_311)
    site.pass_seconds(10_000)
    assert await client.send(PING) == PONG


async def test_incomplete_packets_are_no_sign_of_life(site: MqttSite) -> None:
    client = await site.connected(MQTT_311, keep_alive=10)
    for byte in encoded.message(PublishPacket("topic", b"x" * 100), MQTT_311)[:17]:
        await client.send(bytes((byte,)))
        site.pass_seconds(1)
    assert client.is_closed()


async def test_expired_token_ends_the_connection(site: MqttSite) -> None:
    client = await site.connected(MQTT_5, username="x", password=site.token("private-*", ttl=30))
    site.pass_seconds(29)
    assert not client.is_closed()
    site.pass_seconds(3)
    assert client.take() == bytes.fromhex("e0 01 a0")
    assert site.metrics.cut_offs["token-expired"] == 1


async def test_slice_ends_after_a_packet_that_takes_long(site: MqttSite, monkeypatch: pytest.MonkeyPatch) -> None:
    client, seconds = await site.connected(MQTT_5), count()
    monkeypatch.setattr(site.context.turn, "clock", lambda: next(seconds))
    packet = encoded.message(PublishPacket("t", b"", properties=encode.user_property("k", "v" * 9000)), MQTT_5)
    assert client.connection.process(packet * 10)
    assert site.metrics.events_in["mqtt5"] == 2


async def test_client_over_its_rate_is_not_read() -> None:
    site = MqttSite(publishes=5)
    sender, receiver = await site.connected(client_id="s"), await site.connected(client_id="r")
    await receiver.subscribe("a")
    message = published("a", b"x")
    await sender.send(message * 8)
    assert receiver.take() == message * 6  # the token of the sixth is paid later
    assert sender.is_held()
    site.clock.advance(0.2)
    sender.connection._pay()
    await turns()
    assert receiver.take() == message
    site.clock.advance(10)
    sender.connection._pay()
    await turns()
    assert receiver.take() == message
    assert not sender.is_held()
    assert not sender.is_closed()


async def test_unlimited_rate() -> None:
    site = MqttSite(publishes=0)
    sender = await site.connected()
    await sender.subscribe("a")
    message = published("a", b"x")
    sender.connection.data_received(message * 5000)
    for _ in range(100):
        await turns()
    assert sender.take() == message * 5000


async def test_client_that_does_not_read_is_disconnected(site: MqttSite) -> None:
    client = await site.connected(MQTT_5)
    client.connection.pause_writing()
    assert client.take() == b""
    await turns()
    assert client.take() == bytes.fromhex("e0 01 97")
    assert site.metrics.cut_offs["slow"] == 1


async def test_flood_of_pings_is_disconnected(site: MqttSite) -> None:
    client = await site.connected(MQTT_5)
    client.connection.data_received(PING * 7000)
    for _ in range(100):
        await turns()
    assert client.take().endswith(bytes.fromhex("e0 01 97"))
    assert site.metrics.cut_offs["flood"] == 1


async def test_stopping_server_announces_the_end(site: MqttSite) -> None:
    new, old, mute = await site.connected(MQTT_5, "new"), await site.connected(MQTT_311, "old"), site.client()
    for one in list(site.context.open):
        one.leave(4200, "Server is stopping, reconnect")
    assert new.take() == bytes.fromhex("e0 01 8b")
    assert old.take() == b""
    assert old.is_closed()
    assert mute.take() == b""  # no DISCONNECT before CONNACK
    assert mute.is_closed()


async def test_draining_server_rejects_clients(site: MqttSite) -> None:
    site.node.draining = True
    assert await site.client().connect() == bytes.fromhex("20 02 00 03")
    assert (await site.client(MQTT_5).connect())[3] == 0x88


async def test_terminated_user_gets_administrative_action(site: MqttSite) -> None:
    client = await site.connected(MQTT_5, username="x", password=site.token("a", sub="ann"))
    await site.node.terminate(site.world.app, "ann")
    await turns()
    assert client.take() == bytes.fromhex("e0 01 98")


async def test_whitelist() -> None:
    site = MqttSite(whitelist=Networks.parse(["192.0.2.0/24"]))
    assert not site.client().is_closed()
    assert site.client(peer=("198.51.100.1", 4)).transport.aborted
    assert site.metrics.cut_offs["whitelist"] == 1


async def test_address_with_most_connections_is_rejected(site: MqttSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(site.context.addresses), "most", 1)
    await site.connected()
    assert await site.client().connect("d") == bytes.fromhex("20 02 00 03")
    assert (await site.client(MQTT_5).connect("e"))[3] == 0x97


async def test_connack_longer_than_the_maximum_packet_size_closes(site: MqttSite) -> None:
    client = site.client(MQTT_5)
    assert await client.connect(maximum_packet_size=10) == b""
    assert client.is_closed()


async def test_quota_of_connections() -> None:
    site = MqttSite(app_config({"connections": 1}))
    await site.connected(client_id="a")
    assert await site.client().connect("b") == bytes.fromhex("20 02 00 03")
    assert (await site.client(MQTT_5).connect("c"))[3] == 0x97


async def accepted(site: MqttSite, *client_ids: str) -> list[bool]:
    """Connects clients; returns which of them the server accepts."""
    return [await site.client().connect(one) == bytes.fromhex("20020000") for one in client_ids]


@pytest.mark.parametrize("version", [MQTT_311, MQTT_5])
async def test_client_replaces_its_own_connection_at_the_quota(version: int) -> None:
    site = MqttSite(app_config({"connections": 2}))
    other, first = await site.connected(client_id="other"), await site.connected(version, "device")
    for _ in range(3):
        second = await site.connected(version, "device")
        assert first.is_closed()
        assert await accepted(site, "new") == [False]
        first = second
    for client in (other, first):
        client.lose()
    await turns()
    assert await accepted(site, "a", "b", "c") == [True, True, False]


async def test_stranger_with_a_known_client_id_does_not_exceed_the_quota() -> None:
    site = MqttSite(app_config({"connections": 1}))
    device = await site.connected(client_id="device", username="app-key", password=site.token("a", sub="ann"))
    assert await site.client().connect("device") == bytes.fromhex("20020005")
    assert await accepted(site, "new") == [False]
    assert not device.is_closed()
    device.lose()
    await turns()
    assert await accepted(site, "new", "newer") == [True, False]


async def replaced(*versions: int) -> tuple[MqttSite, "asyncio.Future[None]", list[MqttClient]]:
    """Another client takes the only place of a device, while the backend decides about new connections of the device.

    Returns the pending decision and the new connections.
    """
    authorize = (Authorize(url="http://127.0.0.1/", on=frozenset({"connect"})),)
    site = MqttSite(app_config({"connections": 1}, authorize=authorize))
    device = await site.connected(client_id="device")
    decision = site.world.hooks.waits = asyncio.get_running_loop().create_future()
    late = [site.client(version) for version in versions]
    for client in late:
        assert await client.connect("device") == b""
    device.lose()
    await turns()
    site.world.hooks.waits = None
    assert await accepted(site, "new") == [True]
    return site, decision, late


async def test_place_of_a_connection_that_has_ended_is_not_taken_twice() -> None:
    site, decision, late = await replaced(MQTT_311, MQTT_5)
    decision.set_result(None)
    await turns(10)
    assert [client.take()[3] for client in late] == [3, 0x97]
    assert await accepted(site, "newer") == [False]


async def test_connections_that_the_broker_counts_late_replace_each_other_at_the_quota(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = MqttSite(app_config({"connections": 1}))
    first = await site.connected(client_id="device")
    waits, connect = asyncio.get_running_loop().create_future(), Memory.connect

    async def slow(broker: Memory, app: str, limit: int) -> bool:
        admitted = await connect(broker, app, limit)
        await asyncio.shield(waits)
        return admitted

    monkeypatch.setattr(Memory, "connect", slow)
    second, third = site.client(), site.client()
    for client in (second, third):
        assert await client.connect("device") == b""
    assert first.is_closed()
    assert second.take() == bytes.fromhex("20020003")
    waits.set_result(None)
    await turns(10)
    assert third.take() == bytes.fromhex("20020000")
    assert await accepted(site, "new") == [False]
    third.lose()
    await turns()
    assert await accepted(site, "new", "newer") == [True, False]


async def test_connection_that_was_never_counted_leaves_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    _, decision, late = await replaced(MQTT_311, MQTT_311)
    count, connect = asyncio.get_running_loop().create_future(), Memory.connect

    async def slow(broker: Memory, app: str, limit: int) -> bool:
        await asyncio.shield(count)
        return await connect(broker, app, limit)

    monkeypatch.setattr(Memory, "connect", slow)
    decision.set_result(None)
    await turns(10)
    count.set_result(None)
    await turns(10)
    assert [client.take() for client in late] == [bytes.fromhex("20020003")] * 2


async def test_client_replaces_its_own_connection_after_the_quota_was_lowered() -> None:
    site = MqttSite(app_config({"connections": 3}))
    assert await accepted(site, "a", "b", "c") == [True] * 3
    site.node.configure(app_config({"connections": 1}))
    assert await accepted(site, "a", "d") == [True, False]


async def test_rejected_connect_is_counted_and_logged(site: MqttSite, monkeypatch: pytest.MonkeyPatch) -> None:
    site.node.refusals.enable(site.clock.monotonic, ())
    await site.connected(client_id="taken", username="app-key", password=site.token("a"))
    monkeypatch.setattr("push1st.brokers.memory_sessions.MAX_ABSENT", 0)
    for reason, text, client_id, fields in (
        ("not-authorized", "another client uses this client id", "taken", {}),
        ("not-authorized", "the topic of the will is not permitted", "c", {"will": Will("private-a", b"")}),
        ("quota-exceeded", "absent", "c", {"clean": False}),
        ("bad-user-name-or-password", "the password is not an access token", "c", {"password": b"my-password"}),
    ):
        before = site.metrics.refusals[reason]
        with structlog.testing.capture_logs() as lines:
            await site.client().connect(client_id, username="app-key", **fields)
        assert site.metrics.refusals[reason] == before + 1
        (line,) = lines
        assert text in line["reason"]
        where = {name: line[name] for name in ("event", "app", "client_id", "ip")}
        assert where == {"event": "connection refused", "app": "app-test", "client_id": client_id, "ip": "192.0.2.1"}
        assert "my-password" not in str(line)
    assert sum(site.metrics.refusals.values()) == 4


async def test_rejected_connect_without_an_app_is_logged_without_app() -> None:
    site = MqttSite(app="")
    site.node.refusals.enable(site.clock.monotonic, ())
    with structlog.testing.capture_logs() as lines:
        await site.client().connect("c", username="stranger")
    assert "app" not in lines[0]
    assert "stranger" not in str(lines)


async def test_will_without_the_right_to_publish_is_rejected(site: MqttSite) -> None:
    assert await site.client().connect(will=Will("private-a", b"")) == bytes.fromhex("20 02 00 05")
    assert (await site.client(MQTT_5).connect(will=Will("private-a", b"")))[3] == 0x87
    assert await site.client().connect(will=Will("a", b"")) == bytes.fromhex("20 02 00 00")
