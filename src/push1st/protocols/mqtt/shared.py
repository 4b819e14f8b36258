"""Passes the messages of channels to the groups of shared filters without encoding them: each group chooses a client for each
message."""

from collections.abc import Sequence

from push1st.channels import RESERVED
from push1st.messages import Message
from push1st.protocols.mqtt.own import OwnMessage
from push1st.protocols.mqtt.topics import topic_of
from push1st.protocols.mqtt.wire import template

PACKET_BYTES = 8
"""the approximate number of bytes of a PUBLISH packet without its topic and its payload"""


class GroupMessage(OwnMessage):
    """A message for one member of a group. The group may withdraw the message, and choose another member.

    group: the name of the group (`SavedMessage.group`).
    entry: the number of the message (`brokers.GroupEntry`); 0 if the broker need not be notified of its end.
    """

    __slots__ = ("entry", "group")

    group: str
    entry: int


class GroupFrames:
    """The messages of one or more frames, in order. The length is about the number of bytes of their packets.

    now: when the last message arrived, on the wall clock in nanoseconds.
    """

    __slots__ = ("messages", "now", "size")

    def __init__(self, messages: tuple[Message, ...], size: int, now: int) -> None:
        self.messages = messages
        self.size = size
        self.now = now

    def __len__(self) -> int:
        return self.size


class GroupWire:
    """The wire of all groups (`hub.OwnWire`)."""

    __slots__ = ()

    name = "mqtt-group"

    def message(self, message: Message, now: int) -> GroupFrames:
        """See `hub.Wire`. The result is empty for a message that MQTT clients do not get."""
        if message.event.startswith(RESERVED) or topic_of(message.channel) is None:
            return GroupFrames((), 0, now)
        return GroupFrames((message,), len(message.channel) + len(message.data) + PACKET_BYTES, now)

    def join(self, frames: Sequence[GroupFrames]) -> GroupFrames:
        """See `hub.OwnWire`."""
        messages = tuple([message for one in frames for message in one.messages])
        return GroupFrames(messages, sum(map(len, frames)), frames[-1].now)


GROUP_WIRE = GroupWire()


def group_message(
    message: Message,
    group: str,
    version: int,
    qos: int,
    retain: bool,
    subscription_ids: tuple[int, ...],
    now: int,
    entry: int = 0,
) -> GroupMessage:
    """Returns a message for one member of a group. The parameters are those of `GroupMessage` and of `wire.template`."""
    found = template(message, version, qos, retain, subscription_ids, now)
    assert found is not None  # `GroupWire` drops the messages that MQTT clients do not get
    own = GroupMessage(message, version, qos, retain, subscription_ids, found.head, found.tail, now)
    own.group, own.entry = group, entry
    return own
