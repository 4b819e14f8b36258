"""Golden packets of the server in each version of MQTT, and packets that survive a round trip."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from push1st.protocols.mqtt import encode
from push1st.protocols.mqtt.decode import PacketDecoder
from push1st.protocols.mqtt.fields import varint
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


def octets(text: str) -> bytes:
    return bytes.fromhex(text)


# -- golden packets


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "00"),
        (127, "7F"),
        (128, "8001"),
        (16_383, "FF7F"),
        (16_384, "808001"),
        (2_097_151, "FFFF7F"),
        (268_435_455, "FFFFFF7F"),
    ],
)
def test_variable_byte_integer(value: int, text: str):
    assert encode.varint(value) == octets(text)
    assert varint(octets(text), 0, 4) == (value, len(octets(text)))


@pytest.mark.parametrize(
    ("packet", "in_3_1", "in_3_1_1", "in_5_0"),
    [
        (ConnackPacket(), "20 02 00 00", "20 02 00 00", "20 03 00 00 00"),
        (ConnackPacket(session_present=True), "20 02 00 00", "20 02 01 00", "20 03 01 00 00"),
        (
            ConnackPacket(topic_alias_maximum=10, receive_maximum=20),
            "20 02 00 00",
            "20 02 00 00",
            "20 09 00 00 06 22 000A 21 0014",
        ),
        (
            ConnackPacket(ReasonCode.SUCCESS, True, 10, 60, "auto-1", 30, "r", 65_400, 20),
            "20 02 00 00",
            "20 02 01 00",
            "20 23 01 00 20 22 000A 11 0000003C 12 0006 6175746F2D31 13 001E 1F 0001 72 27 0000FF78 21 0014",
        ),
        (ConnackPacket(ReasonCode.UNSUPPORTED_PROTOCOL_VERSION), "20 02 00 01", "20 02 00 01", "20 03 00 84 00"),
        (ConnackPacket(ReasonCode.CLIENT_IDENTIFIER_NOT_VALID), "20 02 00 02", "20 02 00 02", "20 03 00 85 00"),
        (ConnackPacket(ReasonCode.SERVER_UNAVAILABLE), "20 02 00 03", "20 02 00 03", "20 03 00 88 00"),
        (ConnackPacket(ReasonCode.QUOTA_EXCEEDED), "20 02 00 03", "20 02 00 03", "20 03 00 97 00"),
        (ConnackPacket(ReasonCode.BAD_USER_NAME_OR_PASSWORD), "20 02 00 04", "20 02 00 04", "20 03 00 86 00"),
        (ConnackPacket(ReasonCode.NOT_AUTHORIZED), "20 02 00 05", "20 02 00 05", "20 03 00 87 00"),
        (ConnackPacket(ReasonCode.BANNED), "20 02 00 05", "20 02 00 05", "20 03 00 8A 00"),
        (
            ConnackPacket(ReasonCode.BAD_USER_NAME_OR_PASSWORD, reason_string="no such app"),
            "20 02 00 04",
            "20 02 00 04",
            "20 11 00 86 0E 1F 000B 6E6F2073756368206170 70",
        ),
    ],
)
def test_connack(packet: ConnackPacket, in_3_1: str, in_3_1_1: str, in_5_0: str):
    assert encode.connack(packet, 3) == octets(in_3_1)
    assert encode.connack(packet, 4) == octets(in_3_1_1)
    assert encode.connack(packet, 5) == octets(in_5_0)


def test_suback():
    packet = SubackPacket(7, (0, 1, 2, ReasonCode.NOT_AUTHORIZED, ReasonCode.QUOTA_EXCEEDED))
    assert encode.suback(packet, 3) == encode.suback(packet, 4) == octets("90 07 0007 00 01 02 80 80")
    assert encode.suback(packet, 5) == octets("90 08 0007 00 00 01 02 87 97")


def test_unsuback():
    packet = UnsubackPacket(7, (0, ReasonCode.NO_SUBSCRIPTION_EXISTED))
    assert encode.unsuback(packet, 3) == encode.unsuback(packet, 4) == octets("B0 02 0007")
    assert encode.unsuback(packet, 5) == octets("B0 05 0007 00 00 11")


def test_disconnect_is_short():
    assert encode.disconnect(ReasonCode.SESSION_TAKEN_OVER) == octets("E0 01 8E")


def test_pingresp():
    assert octets("D0 00") == encode.PINGRESP


@pytest.mark.parametrize(
    ("first", "packet_id", "reason", "text"),
    [
        (encode.PUBACK, 7, ReasonCode.SUCCESS, "40 02 0007"),
        (encode.PUBACK, 65_535, ReasonCode.NO_MATCHING_SUBSCRIBERS, "40 03 FFFF 10"),
        (encode.PUBREC, 256, ReasonCode.SUCCESS, "50 02 0100"),
        (encode.PUBREC, 1, ReasonCode.NOT_AUTHORIZED, "50 03 0001 87"),
        (encode.PUBREL, 7, ReasonCode.SUCCESS, "62 02 0007"),
        (encode.PUBCOMP, 7, ReasonCode.SUCCESS, "70 02 0007"),
    ],
)
def test_acknowledgement_is_as_short_as_possible(first: int, packet_id: int, reason: ReasonCode, text: str):
    assert encode.acknowledgement(first, packet_id, reason) == octets(text)


def test_acknowledgements_of_one_read_are_one_piece():
    assert encode.acknowledgements(encode.PUBACK, (1, 256)) == octets("40 02 0001 40 02 0100")


@pytest.mark.parametrize("version", [3, 4])
def test_publish_of_3_1_and_3_1_1(version: int):
    assert encode.publish(version, "a/b", b"on") == encode.PublishTemplate(octets("30 07 0003 612F62 6F6E"))
    once = encode.publish(version, "a/b", b"on", 1, True, b"ignored", 60, (1,), 2)
    assert once == encode.PublishTemplate(octets("33 09 0003 612F62"), b"on")
    assert once.frame(7) == octets("33 09 0003 612F62 0007 6F6E")
    assert once.frame(65_535, dup=True) == octets("3B 09 0003 612F62 FFFF 6F6E")


def test_publish_of_5_0():
    assert encode.publish(5, "a/b", b"on").head == octets("30 08 0003 612F62 00 6F6E")
    assert encode.publish(5, "a/b", b"on", 2).frame(7) == octets("34 0A 0003 612F62 0007 00 6F6E")


def test_properties_of_publish_have_the_order_of_mosquitto():
    template = encode.publish(5, "", b"on", 1, True, encode.user_property("event", "opt"), 60, (1, 128), 2)
    text = "33 21 0000 0007 1A 0B 01 0B 8001 23 0002 26 0005 6576656E74 0003 6F7074 02 0000003C 6F6E"
    assert template.frame(7) == octets(text)


# -- round trips


def decoded(version: int, data: bytes) -> list[ClientPacket]:
    decoder = PacketDecoder(100_000, 0)
    assert len(decoder.feed(client.connect(ConnectPacket(version, "p")))) == 1
    return decoder.feed(data)


@given(st.sampled_from([3, 4, 5]).flatmap(connects))
def test_connect_survives_a_round_trip(packet: ConnectPacket):
    assert PacketDecoder(1000, 0).feed(client.connect(packet)) == [packet]


@given(st.sampled_from([3, 4, 5]).flatmap(lambda version: st.tuples(st.just(version), st.lists(messages(version), max_size=4))))
def test_messages_survive_a_round_trip(case: tuple[int, list[PublishPacket]]):
    version, packets = case
    assert decoded(version, b"".join(client.message(packet, version) for packet in packets)) == packets


@given(
    st.sampled_from([PubackPacket, PubrecPacket, PubrelPacket, PubcompPacket]),
    st.lists(packet_ids, min_size=1, max_size=5),
    st.sampled_from([3, 4, 5]),
)
def test_acknowledgements_survive_a_round_trip(kind: Callable[..., PubackPacket], ids: list[int], version: int):
    packet = kind(tuple(ids))
    encoded = encode.acknowledgements(client.ACKNOWLEDGEMENTS[type(packet)], ids)
    assert client.acknowledgement(packet) == encoded == b"".join(encode.acknowledgement(encoded[0], id) for id in ids)
    assert decoded(version, encoded) == [packet]


@given(
    packet_ids,
    st.lists(
        st.builds(FilterOptions, filters.filter(lambda name: name[0] != "$"), qualities, st.booleans(), st.booleans(), qualities),
        min_size=1,
    ),
    st.integers(0, 268_435_455),
)
def test_subscriptions_survive_a_round_trip(packet_id: int, options: list[FilterOptions], subscription_id: int):
    packet = SubscribePacket(packet_id, tuple(options), subscription_id)
    assert decoded(5, client.subscribe(packet, 5)) == [packet]
    older = SubscribePacket(packet_id, tuple(FilterOptions(one.filter, one.qos) for one in options))
    for version in (3, 4):
        assert decoded(version, client.subscribe(older, version)) == [older]
    for version in (3, 4, 5):
        end = UnsubscribePacket(packet_id, tuple(one.filter for one in options))
        assert decoded(version, client.unsubscribe(end, version)) == [end]


@pytest.mark.parametrize("reason", [ReasonCode.SUCCESS, ReasonCode.DISCONNECT_WITH_WILL_MESSAGE, ReasonCode.QUOTA_EXCEEDED])
@pytest.mark.parametrize("session_expiry", [None, 0, 0xFFFFFFFF])
def test_disconnect_survives_a_round_trip(reason: ReasonCode, session_expiry: int | None):
    packet = DisconnectPacket(reason, session_expiry)
    assert decoded(5, client.disconnect(packet, 5)) == [packet]
