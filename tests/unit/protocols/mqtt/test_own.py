"""The frames of messages for MQTT clients that add a packet id or a topic alias."""

import pytest

from push1st.messages import Message, MqttFields, MqttMessage
from push1st.protocols.mqtt import encode
from push1st.protocols.mqtt.own import OwnFrames, own_message, own_wire
from push1st.protocols.mqtt.packets import MQTT_5, MQTT_31, MQTT_311
from push1st.protocols.mqtt.wire import SECOND

OLD, NEW = own_wire(MQTT_311, 1), own_wire(MQTT_5, 1)


def message(sender: str = "api", event: str = "e", channel: str = "a") -> Message:
    return Message("app", channel, event, b'"x"', 1, 0, sender)


def from_mqtt(qos: int = 0, retain: bool = False, expires: int = 0, properties: bytes = b"") -> Message:
    return MqttMessage("app", "a", "message", b'"x"', 1, 0, "1.2", mqtt=MqttFields(qos, retain, expires, properties))


def test_equal_properties_have_one_wire() -> None:
    assert own_wire(MQTT_31, 1) is OLD
    assert own_wire(MQTT_5, 1, subscription_id=7) is own_wire(MQTT_5, 1, subscription_id=7)
    others = (
        own_wire(MQTT_5, 2),
        own_wire(MQTT_5, 1, no_local=True),
        own_wire(MQTT_5, 1, retain_as_published=True),
        own_wire(MQTT_5, 1, subscription_id=1),
        own_wire(MQTT_5, 1, max_size=1),
    )
    assert len({OLD, NEW, *others}) == 7
    assert (OLD.name, NEW.name) == ("mqtt", "mqtt5")


@pytest.mark.parametrize("granted", [0, 1, 2])
def test_message_has_the_lower_qos(granted: int) -> None:
    wire = own_wire(MQTT_311, granted)
    for qos in (0, 1, 2):
        (own,) = wire.message(from_mqtt(qos), 0).messages
        assert own.qos == min(qos, granted)
    assert wire.message(message(), 0).messages[0].qos == min(1, granted)
    assert wire.message(message("1.2"), 0).messages[0].qos == 0


def test_frame_is_a_template_without_packet_id() -> None:
    (own,) = OLD.message(message(), 0).messages
    assert own.head + b"\0\x09" + own.tail == b"\x32\6\0\1a\0\x09x"
    (own,) = NEW.message(from_mqtt(2), 0).messages
    assert own.head + b"\0\x09" + own.tail == b"\x32\7\0\1a\0\x09\0x"
    (own,) = OLD.message(from_mqtt(0), 0).messages
    assert (own.head, own.tail) == (b"\x30\4\0\1ax", b"")


def test_length_of_frames_is_their_number_of_bytes() -> None:
    one, two = OLD.message(message(), 0), OLD.message(from_mqtt(0), 5)
    assert (len(one), len(two)) == (8, 6)
    both = OLD.join([one, two])
    assert (both.messages, len(both), both.now) == ((*one.messages, *two.messages), 14, 5)


def test_retain_and_subscription_identifier_are_options_of_the_wire() -> None:
    wire = own_wire(MQTT_5, 1, retain_as_published=True, subscription_id=300)
    (own,) = wire.message(from_mqtt(1, retain=True), 0).messages
    assert own.head + own.tail == b"\x33\x0a\0\1a\x03\x0b\xac\x02x"
    assert (own.retain, own.subscription_ids) == (True, (300,))
    (own,) = NEW.message(from_mqtt(1, retain=True), 0).messages
    assert not own.retain


def test_no_local_is_an_option_of_the_wire() -> None:
    assert own_wire(MQTT_5, 1, no_local=True).message(message(), 0).no_local
    assert not NEW.message(message(), 0).no_local


def test_wires_share_an_encoded_message() -> None:
    sent = message()
    first = own_wire(MQTT_5, 1).message(sent, 0).messages[0]
    assert own_wire(MQTT_5, 2, no_local=True).message(sent, 0).messages[0] is first
    assert own_message(sent, MQTT_5, 1, False, (), 0) is first
    assert own_wire(MQTT_5, 0).message(sent, 0).messages[0] is not first
    assert own_wire(MQTT_5, 1).message(message(), 0).messages[0] is not first


def test_packets_above_the_maximum_size_are_left_out() -> None:
    assert own_wire(MQTT_311, 1, max_size=8).message(message(), 0).messages
    assert own_wire(MQTT_311, 1, max_size=7).message(message(), 0).messages == ()
    assert len(own_wire(MQTT_311, 1, max_size=7).message(message(), 0)) == 0


def test_messages_that_mqtt_clients_do_not_get_are_left_out() -> None:
    for one in (message(event="pusher_internal:member_added"), message(event="pusher:resumed"), message(channel="a+b")):
        assert OLD.message(one, 0).messages == NEW.message(one, 0).messages == ()
    assert OLD.join([OLD.message(message(channel="a+b"), 0), OLD.message(message(), 0)]).messages != ()


def seconds(frames: OwnFrames) -> int:
    (own,) = frames.messages
    return own.tail[5]


def test_remaining_expiry_is_encoded_again_when_it_changes() -> None:
    wire = own_wire(MQTT_5, 1)
    frames = wire.message(from_mqtt(1, expires=10 * SECOND), 0)
    (own,) = frames.messages
    assert (own.expires, seconds(frames)) == (10 * SECOND, 10)
    for now, remaining in ((1, 10), (SECOND - 1, 10), (SECOND, 9), (9 * SECOND, 1), (10 * SECOND - 1, 1), (11 * SECOND, 0)):
        own.refresh(now)
        assert seconds(frames) == remaining, now


def test_template_is_kept_within_a_second() -> None:
    (own,) = own_wire(MQTT_5, 1).message(from_mqtt(1, expires=10 * SECOND), 5 * SECOND).messages
    tail = own.tail
    own.refresh(6 * SECOND - 1)
    assert own.tail is tail


def test_older_versions_and_messages_without_expiry_are_not_encoded_again() -> None:
    for own in (
        *own_wire(MQTT_311, 1).message(from_mqtt(1, expires=10 * SECOND), 0).messages,
        *own_wire(MQTT_5, 1).message(from_mqtt(1), 0).messages,
    ):
        tail = own.tail
        own.refresh(9 * SECOND)
        assert own.tail is tail


def test_size_of_a_message_is_that_of_its_packet() -> None:
    (own,) = NEW.message(from_mqtt(1, properties=encode.user_property("k", "v")), 0).messages
    assert own.size == len(encode.PublishTemplate(own.head, own.tail).frame(1))
