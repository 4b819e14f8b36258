"""The frames of messages for MQTT clients that share them."""

import pytest

from push1st.messages import KeptMessage, Message, MqttFields, MqttMessage
from push1st.protocols.mqtt import encode
from push1st.protocols.mqtt.packets import MQTT_5, MQTT_31, MQTT_311
from push1st.protocols.mqtt.wire import SECOND, wire_of

OLD, NEW = wire_of(MQTT_311), wire_of(MQTT_5)


def message(data: bytes = b'"x"', event: str = "e", channel: str = "a.b") -> Message:
    return Message("app", channel, event, data, 1, 0)


def from_mqtt(fields: MqttFields) -> Message:
    return MqttMessage("app", "a.b", "message", b'"x"', 1, 0, mqtt=fields)


def test_equal_properties_have_one_wire() -> None:
    assert wire_of(MQTT_31) is OLD
    assert wire_of(MQTT_5, subscription_id=7) is wire_of(MQTT_5, subscription_id=7)
    others = (
        wire_of(MQTT_5, True),
        wire_of(MQTT_5, subscription_id=1),
        wire_of(MQTT_5, max_size=1),
    )
    assert len({NEW, *others}) == 4
    assert (OLD.name, NEW.name) == ("mqtt", "mqtt5")


def test_message_of_another_protocol_has_its_event_in_mqtt_5() -> None:
    assert OLD.message(message(), 0) == b"\x30\x06\0\3a/bx"
    assert NEW.message(message(), 0) == b"\x30\x12\0\3a/b\x0b\x26\0\5event\0\1ex"


def test_message_of_mqtt_has_its_own_properties() -> None:
    given = encode.user_property("k", "v")
    assert NEW.message(from_mqtt(MqttFields(properties=given)), 0) == b"\x30\x0e\0\3a/b\x07" + given + b"x"
    assert NEW.message(from_mqtt(MqttFields()), 0) == b"\x30\x07\0\3a/b\0x"
    assert OLD.message(from_mqtt(MqttFields(properties=given)), 0) == b"\x30\x06\0\3a/bx"
    kept = KeptMessage("app", "a.b", "message", b'"x"', 1, 0, mqtt=MqttFields())
    assert NEW.message(kept, 0) == b"\x30\x07\0\3a/b\0x"


@pytest.mark.parametrize(("now", "seconds"), [(0, 10), (1, 10), (SECOND, 9), (10 * SECOND - 1, 1), (11 * SECOND, 0)])
def test_remaining_expiry_is_rounded_up(now: int, seconds: int) -> None:
    frame = NEW.message(from_mqtt(MqttFields(expires=10 * SECOND)), now)
    assert frame == b"\x30\x0c\0\3a/b\x05\x02\0\0\0" + bytes((seconds,)) + b"x"


def test_events_for_other_protocols_are_skipped() -> None:
    for event in ("pusher_internal:member_added", "pusher_internal:subscription_count", "pusher:resumed"):
        assert OLD.message(message(event=event), 0) == NEW.message(message(event=event), 0) == b""


def test_channel_without_a_topic_is_skipped() -> None:
    assert OLD.message(message(channel="a+b"), 0) == b""


def test_retain_as_published() -> None:
    fields = MqttFields(retain=True)
    assert OLD.message(from_mqtt(fields), 0)[0] == 0x30
    assert wire_of(MQTT_311, retain_as_published=True).message(from_mqtt(fields), 0)[0] == 0x31


def test_packet_over_the_maximum_size_is_skipped() -> None:
    size = len(OLD.message(message(), 0))
    assert wire_of(MQTT_311, max_size=size).message(message(), 0)
    assert wire_of(MQTT_311, max_size=size - 1).message(message(), 0) == b""


def test_messages_one_after_another() -> None:
    first, second = message(b"1"), message(b"2")
    frames = [wire.message(one, 0) for one in (first, second, first) for wire in (OLD, NEW)]
    assert [frame[-1:] for frame in frames] == [b"1", b"1", b"2", b"2", b"1", b"1"]
