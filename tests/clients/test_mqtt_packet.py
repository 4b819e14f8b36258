"""The MQTT codec against the package mqtt-packet, which mqtt.js uses, in both directions and in each version of MQTT."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from push1st.protocols.mqtt import encode
from push1st.protocols.mqtt.decode import PacketDecoder
from push1st.protocols.mqtt.packets import (
    ClientPacket,
    ConnackPacket,
    ConnectPacket,
    DisconnectPacket,
    FilterOptions,
    PubackPacket,
    PubcompPacket,
    PublishPacket,
    PubrecPacket,
    PubrelPacket,
    ReasonCode,
    SubackPacket,
    SubscribePacket,
    UnsubackPacket,
    UnsubscribePacket,
)
from tests.support import mqtt_packets as client
from tests.support.mqtt_strategies import connects, filters, messages, packet_ids, qualities
from tests.support.nodejs import NodeProcess

VERSIONS = st.sampled_from([3, 4, 5])
ACKNOWLEDGEMENTS = {"puback": PubackPacket, "pubrec": PubrecPacket, "pubrel": PubrelPacket, "pubcomp": PubcompPacket}
few = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def node() -> Iterator[NodeProcess]:
    process = NodeProcess("mqtt_packet.mjs", {})
    yield process
    process.close()


def decoded(data: bytes, version: int) -> list[ClientPacket]:
    decoder = PacketDecoder(100_000, 0)
    assert len(decoder.feed(client.connect(ConnectPacket(version, "p")))) == 1
    return decoder.feed(data)


def generated(node: NodeProcess, version: int, packets: list[dict[str, Any]]) -> bytes:
    return b"".join(map(bytes.fromhex, node.ask("generate", packets=packets, version=version)))


def parsed(node: NodeProcess, data: bytes, version: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = node.ask("parse", bytes=data.hex(), version=version)
    return found


def octets(data: bytes) -> dict[str, str]:
    return {"hex": data.hex()}


def fields(encoded: bytes) -> dict[str, Any]:
    """Returns encoded properties of a message as mqtt-packet represents them.

    mqtt-packet keeps no order between different names, and replaces an empty value by the next one of the same user property.
    """
    found: dict[str, Any] = {}
    users: dict[str, Any] = {}
    at = 0
    while at < len(encoded):
        id, at = encoded[at], at + 1
        size = int.from_bytes(encoded[at : at + 2], "big")
        first, at = encoded[at + 2 : at + 2 + size], at + 2 + size
        if id == 0x26:
            size = int.from_bytes(encoded[at : at + 2], "big")
            name, value = first.decode(), encoded[at + 2 : at + 2 + size].decode()
            earlier = users.get(name)
            users[name] = value if not earlier else [*earlier, value] if isinstance(earlier, list) else [earlier, value]
            at += 2 + size
        elif id == 0x03:
            found["contentType"] = first.decode()
        else:
            assert id == 0x09
            found["correlationData"] = octets(first)
    if users:
        found["userProperties"] = users
    return found


def as_message(packet: PublishPacket, version: int) -> dict[str, Any]:
    """Returns a message as mqtt-packet represents it."""
    found: dict[str, Any] = {
        "cmd": "publish",
        "topic": packet.topic,
        "payload": octets(packet.payload),
        "qos": packet.qos,
        "retain": packet.retain,
        "dup": packet.dup,
    }
    if packet.qos:
        found["messageId"] = packet.packet_id
    properties = fields(packet.properties)
    if packet.expiry is not None:
        properties["messageExpiryInterval"] = packet.expiry
    if version == 5 and properties:
        found["properties"] = properties
    return found


def as_connect(packet: ConnectPacket) -> dict[str, Any]:
    found: dict[str, Any] = {
        "cmd": "connect",
        "protocolId": "MQIsdp" if packet.version == 3 else "MQTT",
        "protocolVersion": packet.version,
        "clientId": packet.client_id,
        "clean": packet.clean,
        "keepalive": packet.keep_alive,
    }
    if packet.username is not None:
        found["username"] = packet.username
    if packet.password is not None:
        found["password"] = octets(packet.password)
    if packet.will is not None:
        will = packet.will
        found["will"] = {"topic": will.topic, "payload": octets(will.payload), "qos": will.qos, "retain": will.retain}
        properties = fields(will.properties)
        if will.delay:
            properties["willDelayInterval"] = will.delay
        if will.expiry is not None:
            properties["messageExpiryInterval"] = will.expiry
        if packet.version == 5:
            found["will"]["properties"] = properties
    if packet.version == 5:
        properties = {"receiveMaximum": packet.receive_maximum, "topicAliasMaximum": packet.topic_alias_maximum}
        properties |= {"sessionExpiryInterval": packet.session_expiry, "requestProblemInformation": packet.wants_reasons}
        if packet.maximum_packet_size is not None:
            properties["maximumPacketSize"] = packet.maximum_packet_size
        if packet.authentication_method is not None:
            properties["authenticationMethod"] = packet.authentication_method
        found["properties"] = properties
    return found


def without_order(packet: Any) -> Any:
    """Returns a packet with its properties as a map, because mqtt-packet changes their order."""
    return {**{name: getattr(packet, name) for name in packet.__struct_fields__}, "properties": fields(packet.properties)}


# -- mqtt-packet encodes, the server decodes


@few
@given(data=st.data(), version=VERSIONS)
def test_messages_of_mqtt_packet(node: NodeProcess, data: st.DataObject, version: int):
    packets = data.draw(st.lists(messages(version), max_size=3))
    found = decoded(generated(node, version, [as_message(packet, version) for packet in packets]), version)
    for packet, one in zip(packets, found, strict=True):
        expected = without_order(packet)
        # Of several user properties, mqtt-packet changes the order too, so another one may be the first.
        expected["event"] = one.event if isinstance(one, PublishPacket) and packet.event is not None else None
        assert without_order(one) == expected


@few
@given(data=st.data(), version=VERSIONS)
def test_connects_of_mqtt_packet(node: NodeProcess, data: st.DataObject, version: int):
    packet = data.draw(connects(version).filter(lambda one: one.username is not None or one.password is None))
    (found,) = PacketDecoder(1000, 0).feed(generated(node, version, [as_connect(packet)]))
    assert isinstance(found, ConnectPacket)
    for name in ConnectPacket.__struct_fields__:
        if name != "will":
            assert getattr(found, name) == getattr(packet, name), name
    if packet.will is None:
        assert found.will is None
    else:
        assert found.will is not None
        expected = without_order(packet.will)
        expected["event"] = found.will.event
        assert without_order(found.will) == expected


@few
@given(
    packet_ids,
    st.lists(
        st.builds(FilterOptions, filters.filter(lambda name: name[0] != "$"), qualities, st.booleans(), st.booleans(), qualities),
        min_size=1,
        max_size=5,
    ),
    st.integers(0, 268_435_455),
)
def test_subscriptions_of_mqtt_packet(node: NodeProcess, packet_id: int, options: list[FilterOptions], subscription_id: int):
    subscriptions = [
        {
            "topic": one.filter,
            "qos": one.qos,
            "nl": one.no_local,
            "rap": one.retain_as_published,
            "rh": one.retain_handling,
        }
        for one in options
    ]
    packet: dict[str, Any] = {"cmd": "subscribe", "messageId": packet_id, "subscriptions": subscriptions}
    end = {"cmd": "unsubscribe", "messageId": packet_id, "unsubscriptions": [one.filter for one in options]}
    names = tuple(one.filter for one in options)
    if subscription_id:
        packet["properties"] = {"subscriptionIdentifier": subscription_id}
    assert decoded(generated(node, 5, [packet, end]), 5) == [
        SubscribePacket(packet_id, tuple(options), subscription_id),
        UnsubscribePacket(packet_id, names),
    ]
    assert decoded(generated(node, 4, [packet, end]), 4) == [
        SubscribePacket(packet_id, tuple(FilterOptions(one.filter, one.qos) for one in options)),
        UnsubscribePacket(packet_id, names),
    ]


@pytest.mark.parametrize("version", [3, 4, 5])
def test_other_packets_of_mqtt_packet(node: NodeProcess, version: int):
    packets: list[dict[str, Any]] = [{"cmd": name, "messageId": 258} for name in ACKNOWLEDGEMENTS]
    packets += [{"cmd": "pingreq"}, {"cmd": "disconnect"}]
    found = decoded(generated(node, version, packets), version)
    assert [type(one) for one in found[:4]] == list(ACKNOWLEDGEMENTS.values())
    assert all(one.packet_ids == (258,) for one in found[:4] if isinstance(one, PubackPacket))
    assert found[5] == DisconnectPacket()


def test_reason_codes_of_mqtt_packet(node: NodeProcess):
    packets: list[dict[str, Any]] = [
        {"cmd": "puback", "messageId": 1, "reasonCode": 0x97, "properties": {"reasonString": "no"}},
        {"cmd": "disconnect", "reasonCode": 4, "properties": {"sessionExpiryInterval": 9}},
    ]
    assert decoded(generated(node, 5, packets), 5) == [
        PubackPacket((1,), ReasonCode.QUOTA_EXCEEDED),
        DisconnectPacket(ReasonCode.DISCONNECT_WITH_WILL_MESSAGE, 9),
    ]


# -- the server encodes, mqtt-packet decodes


@few
@given(data=st.data(), version=VERSIONS)
def test_mqtt_packet_reads_messages(node: NodeProcess, data: st.DataObject, version: int):
    packets = data.draw(st.lists(messages(version), max_size=3))
    found = parsed(node, b"".join(client.message(packet, version) for packet in packets), version)
    for packet, one in zip(packets, found, strict=True):
        expected = as_message(packet, version)
        assert {name: one.get(name) for name in expected} == expected


def test_mqtt_packet_reads_subscription_ids_and_topic_aliases(node: NodeProcess):
    template = encode.publish(5, "a", b"on", 0, False, b"", 60, (1, 300), 2)
    (found,) = parsed(node, template.head, 5)
    assert found["properties"] == {"subscriptionIdentifier": [1, 300], "topicAlias": 2, "messageExpiryInterval": 60}


@pytest.mark.parametrize("version", [3, 4, 5])
def test_mqtt_packet_reads_other_packets(node: NodeProcess, version: int):
    packet = ConnackPacket(ReasonCode.SUCCESS, True, 10, 60, "auto-1", 30, None, 65_400, 20)
    data = encode.connack(packet, version) + encode.suback(SubackPacket(7, (0, 1, 2, 0x80)), version)
    data += encode.unsuback(UnsubackPacket(8, (0, 0x11)), version)
    data += b"".join(encode.acknowledgement(first, 258) for first in (0x40, 0x50, 0x62, 0x70)) + encode.PINGRESP
    connack, suback, unsuback, *rest, pingresp = parsed(node, data, version)
    assert (connack["cmd"], connack["sessionPresent"]) == ("connack", version != 3)
    if version == 5:
        assert connack["reasonCode"] == 0
        assert connack["properties"] == {
            "topicAliasMaximum": 10,
            "sessionExpiryInterval": 60,
            "assignedClientIdentifier": "auto-1",
            "serverKeepAlive": 30,
            "maximumPacketSize": 65_400,
            "receiveMaximum": 20,
        }
    else:
        assert connack["returnCode"] == 0
    assert (suback["messageId"], suback["granted"]) == (7, [0, 1, 2, 0x80])
    assert unsuback["messageId"] == 8
    assert version != 5 or unsuback["granted"] == [0, 0x11]
    assert [(one["cmd"], one["messageId"]) for one in rest] == [(name, 258) for name in ACKNOWLEDGEMENTS]
    assert pingresp["cmd"] == "pingresp"


def test_mqtt_packet_reads_rejections(node: NodeProcess):
    rejection = ConnackPacket(ReasonCode.BAD_USER_NAME_OR_PASSWORD, reason_string="no such app")
    for version in (3, 4):
        (found,) = parsed(node, encode.connack(rejection, version), version)
        assert found["returnCode"] == 4
    refused = encode.acknowledgement(encode.PUBACK, 7, ReasonCode.NO_MATCHING_SUBSCRIBERS)
    data = encode.connack(rejection, 5) + refused * 2 + encode.disconnect(ReasonCode.SESSION_TAKEN_OVER)
    connack, *acknowledgements, disconnect = parsed(node, data, 5)
    assert (connack["reasonCode"], connack["properties"]["reasonString"]) == (0x86, "no such app")
    assert [(one["messageId"], one["reasonCode"]) for one in acknowledgements] == [(7, 0x10)] * 2
    assert disconnect["reasonCode"] == 0x8E
