"""The codec against the package mqtt5, another codec of MQTT 5.0, in both directions."""

from typing import Any

import mqtt5
import pytest
from hypothesis import given
from hypothesis import strategies as st

from push1st.protocols.mqtt import encode
from push1st.protocols.mqtt.decode import PacketDecoder
from push1st.protocols.mqtt.packets import (
    ClientPacket,
    ConnackPacket,
    ConnectPacket,
    DisconnectPacket,
    FilterOptions,
    PingreqPacket,
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
    Will,
)
from tests.support import mqtt_packets as client
from tests.support.mqtt_strategies import filters, names, packet_ids, pairs, qualities, texts

numbers = st.integers(0, 0xFFFFFFFF)
content_types = st.none() | texts


def members(codes: type) -> list[Any]:
    """Returns the members of an enumeration of mqtt5, which is not iterable."""
    return [value for value in vars(codes).values() if isinstance(value, codes)]


def decoded(theirs: Any) -> ClientPacket:
    """Decodes a packet of a client that mqtt5 encodes."""
    decoder = PacketDecoder(100_000, 10)
    if isinstance(theirs, mqtt5.ConnectPacket):
        (found,) = decoder.feed(theirs.write())
    else:
        assert len(decoder.feed(mqtt5.ConnectPacket("p").write())) == 1
        (found,) = decoder.feed(theirs.write())
    return found


def read(data: bytes) -> Any:
    """Decodes a packet with mqtt5."""
    packet, size = mqtt5.read(memoryview(data))
    assert size == len(data)
    return packet


def properties(content_type: str | None, response: str | None, data: bytes | None, user: list[tuple[str, str]]) -> bytes:
    """Encodes properties in the order of mqtt5."""
    encoded = b"" if content_type is None else b"\x03" + encode.string(content_type)
    encoded += b"" if response is None else b"\x08" + encode.string(response)
    encoded += b"" if data is None else b"\x09" + client.binary(data)
    return encoded + b"".join(encode.user_property(*pair) for pair in user)


def event_of(user: list[tuple[str, str]]) -> str | None:
    return next((value for name, value in user if name == "event"), None)


# -- mqtt5 encodes, the server decodes


@given(
    names, st.binary(), qualities, st.booleans(), packet_ids, st.none() | numbers, content_types, st.none() | st.binary(), pairs
)
def test_messages_of_mqtt5(topic, payload, qos, retain, packet_id, expiry, content_type, data, user):
    theirs = mqtt5.PublishPacket(
        topic,
        payload,
        qos=mqtt5.QoS(qos),
        retain=retain,
        packet_id=packet_id if qos else None,
        message_expiry_interval=expiry,
        content_type=content_type,
        response_topic="r/1",
        correlation_data=data,
        user_properties=user,
    )
    passed_on = properties(content_type, "r/1", data, user)
    assert decoded(theirs) == PublishPacket(
        topic, payload, qos, retain, packet_id if qos else 0, False, passed_on, expiry, event_of(user)
    )


@given(
    st.text("ab/é", min_size=1, max_size=9), st.booleans(), st.integers(0, 65_535), st.none() | texts, st.none() | st.binary(),
    numbers, st.integers(1, 65_535), st.none() | st.integers(1, 0xFFFFFFFF), st.integers(0, 65_535), st.booleans(), pairs,
)  # fmt: skip
def test_connects_of_mqtt5(id, clean, keep_alive, username, password, expiry, most, size, aliases, wants_reasons, user):
    theirs = mqtt5.ConnectPacket(
        id,
        username=username,
        password=password,
        clean_start=clean,
        will=mqtt5.Will("w", payload=b"off", qos=mqtt5.QoS(1), retain=True, content_type="c", will_delay_interval=5),
        keep_alive=keep_alive,
        session_expiry_interval=expiry,
        request_problem_info=wants_reasons,
        receive_max=most,
        topic_alias_max=aliases,
        max_packet_size=size,
        user_properties=user,
    )
    will = Will("w", b"off", 1, True, 5, properties("c", None, None, []))
    assert decoded(theirs) == ConnectPacket(
        5, id, clean, keep_alive, username, password, will, expiry, most, size, aliases, wants_reasons
    )


@given(
    packet_ids,
    st.lists(
        st.tuples(filters.filter(lambda name: name[0] != "$"), qualities, st.booleans(), st.booleans(), qualities), min_size=1
    ),
    st.none() | st.integers(1, 268_435_455),
)
def test_subscriptions_of_mqtt5(packet_id, options, subscription_id):
    theirs = [
        mqtt5.TopicFilter(
            name,
            max_qos=mqtt5.QoS(qos),
            no_local=no_local,
            retain_as_published=as_published,
            retain_handling=mqtt5.RetainHandling(handling),
        )
        for name, qos, no_local, as_published, handling in options
    ]
    assert decoded(mqtt5.SubscribePacket(packet_id, theirs, subscription_id=subscription_id)) == SubscribePacket(
        packet_id, tuple(FilterOptions(*one) for one in options), subscription_id or 0
    )
    names = [name for name, *_ in options]
    assert decoded(mqtt5.UnsubscribePacket(packet_id, names)) == UnsubscribePacket(packet_id, tuple(names))


@pytest.mark.parametrize(
    ("theirs", "codes", "ours"),
    [
        (mqtt5.PubAckPacket, mqtt5.PubAckReasonCode, PubackPacket),
        (mqtt5.PubRecPacket, mqtt5.PubRecReasonCode, PubrecPacket),
        (mqtt5.PubRelPacket, mqtt5.PubRelReasonCode, PubrelPacket),
        (mqtt5.PubCompPacket, mqtt5.PubCompReasonCode, PubcompPacket),
    ],
)
def test_acknowledgements_of_mqtt5(theirs, codes, ours):
    for code in members(codes):
        for text in (None, "no"):
            assert decoded(theirs(7, reason_code=code, reason_str=text)) == ours((7,), ReasonCode(int(code)))


def test_other_packets_of_mqtt5():
    assert decoded(mqtt5.PingReqPacket()) == PingreqPacket()
    assert decoded(mqtt5.DisconnectPacket()) == DisconnectPacket()
    will = mqtt5.DisconnectReasonCode.DISCONNECT_WITH_WILL_MESSAGE
    assert decoded(mqtt5.DisconnectPacket(reason_code=will, session_expiry_interval=9, reason_str="bye")) == DisconnectPacket(
        ReasonCode.DISCONNECT_WITH_WILL_MESSAGE, 9
    )


# -- the server encodes, mqtt5 decodes


@given(
    names, st.binary(), qualities, st.booleans(), packet_ids, st.none() | numbers, st.lists(st.integers(1, 268_435_455)),
    st.integers(0, 65_535), content_types, st.none() | st.binary(), pairs, st.booleans(),
)  # fmt: skip
def test_mqtt5_reads_messages(topic, payload, qos, retain, packet_id, expiry, ids, alias, content_type, data, user, dup):
    passed_on = properties(content_type, "r/1", data, user)
    template = encode.publish(5, topic, payload, qos, retain, passed_on, expiry, tuple(ids), alias)
    found = read(template.frame(packet_id, dup) if qos else template.head)
    assert (found.topic, found.payload, found.qos, found.retain) == (topic, payload, qos, retain)
    assert (found.packet_id, found.duplicate) == ((packet_id, dup) if qos else (None, False))
    assert (found.message_expiry_interval, found.subscription_ids, found.topic_alias) == (expiry, ids, alias or None)
    assert (found.content_type, found.response_topic, found.correlation_data) == (content_type, "r/1", data)
    assert found.user_properties == user


@given(
    st.sampled_from(members(mqtt5.ConnAckReasonCode)), st.booleans(), st.integers(0, 65_535), st.none() | numbers,
    st.none() | texts, st.none() | st.integers(0, 65_535), st.none() | texts, st.none() | st.integers(1, 0xFFFFFFFF),
    st.none() | st.integers(1, 65_535),
)  # fmt: skip
def test_mqtt5_reads_connack(code, present, aliases, expiry, id, keep_alive, reason, size, most):
    packet = ConnackPacket(ReasonCode(int(code)), present, aliases, expiry, id, keep_alive, reason, size, most)
    found = read(encode.connack(packet, 5))
    assert (found.reason_code, found.session_present, found.topic_alias_max) == (code, present, aliases)
    assert (found.session_expiry_interval, found.assigned_client_id, found.server_keep_alive) == (expiry, id, keep_alive)
    assert (found.reason_str, found.max_packet_size, found.receive_max) == (reason, size, most or 65_535)


def test_mqtt5_reads_other_packets():
    codes = tuple(members(mqtt5.SubAckReasonCode))
    found = read(encode.suback(SubackPacket(7, tuple(map(int, codes))), 5))
    assert (found.packet_id, tuple(found.reason_codes)) == (7, codes)
    codes = tuple(members(mqtt5.UnsubAckReasonCode))
    found = read(encode.unsuback(UnsubackPacket(7, tuple(map(int, codes))), 5))
    assert (found.packet_id, tuple(found.reason_codes)) == (7, codes)
    for code in members(mqtt5.DisconnectReasonCode):
        assert read(encode.disconnect(ReasonCode(int(code)))).reason_code == code
    assert isinstance(read(encode.PINGRESP), mqtt5.PingRespPacket)


@pytest.mark.parametrize(
    ("first", "theirs", "codes"),
    [
        (encode.PUBACK, mqtt5.PubAckPacket, mqtt5.PubAckReasonCode),
        (encode.PUBREC, mqtt5.PubRecPacket, mqtt5.PubRecReasonCode),
        (encode.PUBREL, mqtt5.PubRelPacket, mqtt5.PubRelReasonCode),
        (encode.PUBCOMP, mqtt5.PubCompPacket, mqtt5.PubCompReasonCode),
    ],
)
def test_mqtt5_reads_acknowledgements(first, theirs, codes):
    for code in members(codes):
        encoded = encode.acknowledgement(first, 7, ReasonCode(int(code)))
        assert read(encoded) == theirs(7, reason_code=code)
        assert int(code) or theirs(7).write() == encoded
