"""MQTT over WebSockets: handshakes, packets across frames, control frames, and the end of the connection."""

import pytest
from websockets.frames import Opcode

from push1st.config.addresses import Networks
from push1st.protocols.mqtt.packets import MQTT_5, MQTT_311, ConnectPacket, PublishPacket
from push1st.transports.mqtt.websocket import FramedPackets
from tests.support import mqtt_packets as encoded
from tests.support.frames import close, masked
from tests.support.http import Answer, handshake
from tests.support.loop import turns
from tests.support.mqtt_site import MqttSite, MqttWebSocketClient, published
from tests.support.node import KEY, app_config
from tests.support.transport import Site

PING = b"\xc0\0"
PONG = b"\xd0\0"
ACCEPTED = bytes.fromhex("20 02 00 00")
CONNECT = encoded.connect(ConnectPacket(MQTT_311, "c"))


@pytest.fixture
def site() -> MqttSite:
    return MqttSite()


async def rejected(site: Site, path: str = "/mqtt", *headers: str, subprotocol: str = "mqtt") -> tuple[int, str]:
    """Sends a handshake that must be rejected; returns the status and the error text."""
    transport = await site.ask(handshake(path, *([f"Sec-WebSocket-Protocol: {subprotocol}"] if subprotocol else []), *headers))
    answer = Answer(transport.data)
    return answer.status, answer.json["error"]


async def connected(site: MqttSite, version: int = MQTT_311) -> MqttWebSocketClient:
    client = await site.websocket_client(version=version)
    assert (await client.connect())[:4:3] == b"\x20\0"
    return client


# The handshake


@pytest.mark.parametrize("path", ["/mqtt", "/mqtt/", f"/mqtt/app/{KEY}", f"/mqtt/app/{KEY}/", "//mqtt"])
async def test_paths(site: MqttSite, path: str) -> None:
    client = await site.websocket_client(path=path)
    assert await client.connect() == ACCEPTED


@pytest.mark.parametrize(
    "path", ["/mqttx", "/mqtt/x", "/mqtt/app", "/mqtt/app/", f"/mqtt/app/{KEY}/channel", "/resume/page/mqtt"]
)
async def test_other_paths_are_not_found(site: MqttSite, path: str) -> None:
    assert (await rejected(site, path))[0] == 404


async def test_path_is_not_served_without_the_protocol() -> None:
    assert (await rejected(Site()))[0] == 404


@pytest.mark.parametrize(
    ("offered", "chosen"), [("mqtt", "mqtt"), ("mqttv3.1", "mqttv3.1"), ("x, mqttv3.1,mqtt", "mqtt"), ("mqtt,x", "mqtt")]
)
async def test_subprotocol_is_mqtt_if_the_client_offers_it(site: MqttSite, offered: str, chosen: str) -> None:
    client = await site.websocket_client(subprotocol=offered)
    assert f"Sec-WebSocket-Protocol: {chosen}" in client.answer
    assert not any("Extensions" in line for line in client.answer)


@pytest.mark.parametrize("offered", ["", "mqttv5", "MQTT", "x,y"])
async def test_handshake_without_a_subprotocol_of_mqtt_is_rejected(site: MqttSite, offered: str) -> None:
    assert await rejected(site, subprotocol=offered) == (400, "MQTT needs the WebSocket subprotocol mqtt")


async def test_invalid_handshake_is_rejected(site: MqttSite) -> None:
    assert (await rejected(site, "/mqtt", "Sec-WebSocket-Version: 8"))[0] == 426


async def test_whitelist_applies_at_the_handshake() -> None:
    site = MqttSite(whitelist=Networks.parse(("10.0.0.0/8",)))
    assert await rejected(site) == (403, "this address is not in server.mqtt.whitelist")


async def test_origin_is_checked_at_the_handshake_if_the_path_names_the_app() -> None:
    site = MqttSite(app_config(origins=("https://shop.example",)))
    assert await rejected(site, f"/mqtt/app/{KEY}", "Origin: https://evil.example") == (403, "this origin is not allowed")
    client = await site.websocket_client("Origin: https://shop.example", path=f"/mqtt/app/{KEY}")
    assert await client.connect() == ACCEPTED


async def test_origin_is_checked_at_connect_if_the_path_names_no_app() -> None:
    site = MqttSite(app_config(origins=("https://shop.example",)))
    client = await site.websocket_client("Origin: https://evil.example")
    assert await client.connect() == bytes.fromhex("20 02 00 05")
    client = await site.websocket_client("Origin: https://shop.example")
    assert await client.connect() == ACCEPTED


async def test_token_of_an_origin_is_for_its_pages(site: MqttSite) -> None:
    password = site.token("private-a", origin="https://shop.example")
    client = await site.websocket_client("Origin: https://evil.example", version=MQTT_5)
    assert (await client.connect(username=KEY, password=password))[3] == 0x87
    client = await site.websocket_client("Origin: https://shop.example", version=MQTT_5)
    assert (await client.connect(username=KEY, password=password))[3] == 0


async def test_key_in_the_path_precedes_the_user_name() -> None:
    site = MqttSite(app_config(), app_config(id="other", key="other-key", enable=False))
    client = await site.websocket_client(path=f"/mqtt/app/{KEY}")
    assert await client.connect(username="other-key:pump") == ACCEPTED
    client = await site.websocket_client(path="/mqtt/app/other-key")
    assert await client.connect(username=KEY) == bytes.fromhex("20 02 00 05")


async def test_key_of_no_app_in_the_path_is_rejected_at_connect(site: MqttSite) -> None:
    client = await site.websocket_client(path="/mqtt/app/nobody", version=MQTT_5)
    answer = await client.connect(username=KEY)
    assert answer[3] == 0x86
    assert b"the path of the WebSocket does not contain the key of an app" in answer


# Packets and frames


async def test_packets_need_not_align_with_frames(site: MqttSite) -> None:
    client = await site.websocket_client()
    packets = CONNECT + PING + PING
    sent = b"".join(masked(Opcode.BINARY, packets[at : at + 1]) for at in range(len(packets)))
    found = b""
    for at in range(len(sent)):
        found += await client.send_frames(sent[at : at + 1])
    assert found == ACCEPTED + PONG + PONG


async def test_packets_across_fragments(site: MqttSite) -> None:
    client = await site.websocket_client()
    parts = masked(Opcode.BINARY, CONNECT[:5], False), masked(Opcode.CONT, CONNECT[5:], False), masked(Opcode.CONT, PING)
    assert await client.send_frames(parts[0] + masked(Opcode.PING, "x") + parts[1] + parts[2]) == ACCEPTED + PONG


async def test_answers_to_one_read_are_one_frame(site: MqttSite) -> None:
    client = await connected(site)
    client.connection.data_received(masked(Opcode.BINARY, PING * 2) + masked(Opcode.BINARY, PING))
    await turns()
    assert client.frames() == [(Opcode.BINARY, PONG * 3)]


async def test_messages_of_one_turn_are_one_frame(site: MqttSite) -> None:
    first, second = await connected(site), await site.websocket_client()
    await second.connect("other")
    for client in (first, second):
        await client.subscribe("a/b")
    sender = await site.connected(client_id="sender")
    await sender.send(b"".join(encoded.message(PublishPacket("a/b", text), MQTT_311) for text in (b"1", b"2")))
    assert first.frames() == second.frames() == [(Opcode.BINARY, published("a/b", b"1") + published("a/b", b"2"))]


async def test_long_message_is_one_frame(site: MqttSite) -> None:
    client = await connected(site)
    await client.subscribe("a")
    payload = b"x" * 9000
    assert await client.publish("a", payload) == published("a", payload)


async def test_huge_frame_costs_nothing(site: MqttSite) -> None:
    client = await site.websocket_client()
    head = b"\x82\xff" + (1 << 40).to_bytes(8, "big") + b"\0\0\0\0"
    await client.send_frames(head + b"\x10\xff\xff\xff\x7f")
    assert client.is_closed()


async def test_first_byte_that_begins_no_connect_ends_the_connection(site: MqttSite) -> None:
    client = await site.websocket_client()
    await client.send(b"GET / HTTP/1.1\r\n\r\n")
    assert client.is_closed()
    assert sum(site.metrics.refusals.values()) == 1


# Control frames, and violations


async def test_ping_is_answered_and_is_no_sign_of_life(site: MqttSite) -> None:
    client = await site.websocket_client()
    await client.connect(keep_alive=10)
    for _ in range(20):
        client.connection.data_received(masked(Opcode.PING, "hi"))
        await turns()
        if client.is_closed():
            break
        assert client.frames() == [(Opcode.PONG, b"hi")]
        site.pass_seconds(1)
    assert client.is_closed()
    assert site.metrics.cut_offs["silent"] == 1


async def test_ping_before_connect_is_answered(site: MqttSite) -> None:
    client = await site.websocket_client()
    client.connection.data_received(masked(Opcode.PING, ""))
    await turns()
    assert client.frames() == [(Opcode.PONG, b"")]


@pytest.mark.parametrize("version", [MQTT_311, MQTT_5])
async def test_text_closes_with_1003(site: MqttSite, version: int) -> None:
    client = await connected(site, version)
    client.connection.data_received(masked(Opcode.TEXT, "hello"))
    await turns()
    *packets, (opcode, payload) = client.frames()
    assert (opcode, payload[:2]) == (Opcode.CLOSE, (1003).to_bytes(2, "big"))
    assert packets == ([(Opcode.BINARY, bytes.fromhex("e0 01 82"))] if version == MQTT_5 else [])
    assert client.transport.ended


async def test_unmasked_frame_closes_with_1002(site: MqttSite) -> None:
    client = await site.websocket_client()
    client.connection.data_received(b"\x82\x02\xc0\0")
    await turns()
    assert client.frames()[-1][1][:2] == (1002).to_bytes(2, "big")


@pytest.mark.parametrize("opcode", [Opcode.PING, Opcode.BINARY, Opcode.PONG])
async def test_flood_of_frames_without_packets_ends_the_connection(site: MqttSite, opcode: Opcode) -> None:
    client, piece = await connected(site), masked(opcode, "")
    for _ in range(300):
        client.connection.data_received(piece * 100)
        await turns()
        if client.is_closed():
            break
    assert client.is_closed()
    assert site.metrics.cut_offs["flood"] == 1


# The end


async def test_close_frame_of_the_client_is_answered(site: MqttSite) -> None:
    client = await connected(site)
    client.connection.data_received(masked(Opcode.BINARY, PING) + close(1001))
    await turns()
    assert client.frames() == [(Opcode.BINARY, PONG), (Opcode.CLOSE, (1001).to_bytes(2, "big"))]
    assert client.transport.closed
    assert site.metrics.connections["mqtt"] == 0


async def test_disconnect_of_the_client_closes_with_1000(site: MqttSite) -> None:
    client = await connected(site)
    client.connection.data_received(masked(Opcode.BINARY, b"\xe0\0"))
    await turns()
    assert client.frames() == [(Opcode.CLOSE, (1000).to_bytes(2, "big"))]
    assert client.transport.closed


async def test_stopping_server_closes_with_4200(site: MqttSite) -> None:
    client, silent = await connected(site, MQTT_5), await site.websocket_client()
    for one in (client, silent):
        one.connection.leave(4200, "Server is stopping, reconnect")
    expected = (Opcode.CLOSE, (4200).to_bytes(2, "big") + b"Server is stopping, reconnect")
    assert client.frames() == [(Opcode.BINARY, bytes.fromhex("e0 01 8b")), expected]
    assert silent.frames() == [expected]


async def test_rejected_client_gets_connack_and_a_close_frame(site: MqttSite) -> None:
    client = await site.websocket_client()
    client.connection.data_received(
        masked(Opcode.BINARY, encoded.connect(ConnectPacket(MQTT_311, "c", username=KEY, password=b"wrong")))
    )
    await turns()
    assert client.frames() == [(Opcode.BINARY, bytes.fromhex("20 02 00 04")), (Opcode.CLOSE, (1008).to_bytes(2, "big"))]


async def test_slow_client_is_disconnected(site: MqttSite) -> None:
    client = await connected(site)
    assert client.transport.high == site.config.server.outbox
    client.connection.pause_writing()
    await turns()
    assert client.is_closed()
    assert site.metrics.cut_offs["slow"] == 1


async def test_connection_without_connect_ends_in_time(site: MqttSite) -> None:
    client = await site.websocket_client()
    site.pass_seconds(12)
    assert client.is_closed()
    assert site.metrics.cut_offs["silent"] == 1


async def test_lost_connection_is_removed_from_all_counts(site: MqttSite) -> None:
    client = await connected(site)
    assert client.connection in site.context.open
    client.lose()
    await turns()
    assert client.connection not in site.context.open
    assert site.metrics.connections["mqtt"] == 0


async def test_idle_connection_keeps_no_decoder_of_frames(site: MqttSite) -> None:
    client = await connected(site)
    assert isinstance(client.connection._decoder, FramedPackets)
    assert client.connection._decoder._frames is None
    assert client.connection._peer is None
