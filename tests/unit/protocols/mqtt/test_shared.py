"""The messages that the groups of shared filters receive."""

import pytest

from push1st.messages import Message
from push1st.protocols.mqtt.packets import MQTT_5
from push1st.protocols.mqtt.shared import GROUP_WIRE, group_message


def message(id: int = 1, event: str = "e", channel: str = "a") -> Message:
    return Message("app", channel, event, b'"x"', id, 0, "api")


def test_frames_are_joined_in_order() -> None:
    one, two = message(1), message(2)
    joined = GROUP_WIRE.join([GROUP_WIRE.message(one, 5), GROUP_WIRE.message(two, 6)])
    assert joined.messages == (one, two)
    assert (len(joined), joined.now) == (2 * len(GROUP_WIRE.message(one, 5)), 6)


@pytest.mark.parametrize(("event", "channel"), [("pusher:ping", "a"), ("pusher_internal:x", "a"), ("e", "a/+")])
def test_message_that_mqtt_clients_do_not_get_is_dropped(event: str, channel: str) -> None:
    frames = GROUP_WIRE.message(message(1, event, channel), 5)
    assert (frames.messages, len(frames)) == ((), 0)


def test_message_of_a_member_belongs_to_its_group() -> None:
    own = group_message(message(), "$share/g/a", MQTT_5, 1, False, (7,), 0)
    assert own.group == "$share/g/a"
    assert (own.qos, own.subscription_ids, own.message) == (1, (7,), message())
