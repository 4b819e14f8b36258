"""Encodes and decodes the data on topics: batches of messages, edges, requests, replies, node names (`decode_node`), changes
of filters, and copies of batches for nodes with matching filters. Pure.

The batch of a channel with a history begins with `KEPT`, the epoch, and the offset of the first message. The messages of this
batch have all fields of a `KeptMessage` except the position, which the receiver derives from the first offset.

A batch of messages is a MessagePack array; each element is an array of the fields of a `Message`. Other data begins with a byte
with which no MessagePack array begins. In a batch with messages of MQTT clients, these messages have one more field. The header
of this array always has the long form, with four bytes for the length. From this form, nodes of this build know that the field
exists; nodes of earlier builds ignore the field.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from push1st.messages import HookEvent, KeptMessage, Message, MqttMessage

EDGE, REQUEST, REPLY, NODE, KEPT, FILTER, COPY = 1, 2, 3, 4, 5, 6, 7
TAKE_OVER, RELEASED = 8, 9
"""the kinds of the messages between nodes about a connection of an MQTT client"""
GROUP = 10
"""the kind of a message of a group, for a node with members"""
MESSAGES = 0x90
"""the smallest value of the first byte of a batch of messages; a batch is a MessagePack array"""
MQTT_MESSAGES = 0xDD
"""the first byte of a batch with messages of MQTT clients"""
KEPT_FIELDS = KeptMessage.__struct_fields__.index("offset")
"""the number of fields of a `KeptMessage` that the publisher knows"""

_encoder = msgspec.msgpack.Encoder()
_messages = msgspec.msgpack.Decoder(list[Message])
_mqtt_messages: msgspec.msgpack.Decoder[Sequence[Message]] = msgspec.msgpack.Decoder(list[MqttMessage])
_kept = msgspec.msgpack.Decoder(list[KeptMessage])

_reply = msgspec.msgpack.Decoder(tuple[int, bytes])
_event = msgspec.msgpack.Decoder(HookEvent)

encode_event = _encoder.encode
decode_event = _event.decode
decode_messages = _messages.decode
decode_mqtt_messages = _mqtt_messages.decode


def encode_messages(messages: Sequence[Message]) -> bytes:
    """Encodes the messages of a batch. The first byte is `MQTT_MESSAGES` if there is a message of an MQTT client."""
    data = _encoder.encode(messages)
    if MqttMessage not in map(type, messages):
        return data
    length = len(messages)
    return b"\xdd" + length.to_bytes(4, "big") + data[1 if length < 16 else 3 if length < 65_536 else 5 :]


def encode_kept(messages: Sequence[Message]) -> bytes:
    """Encodes the messages of a channel with a history, which are all of the type `KeptMessage`."""
    fields = [msgspec.structs.astuple(one) for one in messages]
    return _encoder.encode([one if one[-1] is not None else one[:KEPT_FIELDS] for one in fields])


def decode_kept(data: bytes, first: int, epoch: str) -> list[KeptMessage]:
    """Decodes messages of a channel with a history. `first`, `epoch`: the position of the first message."""
    messages = _kept.decode(data)
    for offset, one in enumerate(messages, first):
        one.offset, one.epoch = offset, epoch
    return messages


def split_kept(data: bytes) -> tuple[str, int, bytes]:
    """Returns the epoch and the offset of the first message of a batch with positions, and the rest, for `decode_kept`."""
    epoch, first, messages = data[1:].split(b"\0", 2)
    return epoch.decode(), int(first), messages


def copy_of(messages: bytes, is_kept: bool) -> bytes:
    """Returns the copy of a batch for a node with a matching filter. The messages have no positions.

    messages: the encoded messages of the batch. is_kept: whether the channel has a history.
    """
    return (b"\x07\x05\x000\x00" if is_kept else b"\x07") + messages


def decode_copy(data: bytes) -> Sequence[Message]:
    """Returns the messages of a copy."""
    rest = data[1:]
    if rest[0] == KEPT:
        epoch, first, messages = split_kept(rest)
        return decode_kept(messages, first, epoch)
    return (decode_mqtt_messages if rest[0] == MQTT_MESSAGES else decode_messages)(rest)


class Edge(NamedTuple):
    """An edge from a script: a member joined (`+`) or left (`-`) a presence channel; a user signed in (`on`) or out (`off`)."""

    kind: str
    app: str
    channel: str
    user_id: str
    socket_id: str
    id: int
    received: int
    info: bytes


def decode_edge(data: bytes) -> Edge:
    *texts, info = data[1:].split(b"\0", 7)
    kind, app, channel, user, socket, id, received = (one.decode() for one in texts)
    return Edge(kind, app, channel, user, socket, int(id), int(received), info)


def decode_node(data: bytes) -> str:
    """Returns the name of a node that has just subscribed to its topics."""
    return data[1:].decode()


def decode_filter(data: bytes) -> tuple[str, str, str, int]:
    """Returns an app, the name of a filter or group, a node, and the new value (`known_filters.py`)."""
    app, node, name, value = data[1:].decode().split("\0")
    return app, name, node, int(value)


def decode_take_over(data: bytes) -> tuple[str, int, str, str]:
    """Returns the node that claims a client, the generation of the earlier connection, the app's id, and the client id."""
    node, generation, app, client_id = data[1:].decode().split("\0")
    return node, int(generation), app, client_id


def decode_released(data: bytes) -> tuple[int, str, str]:
    """Returns the generation of a connection that has ended, the app's id, and the client id."""
    generation, app, client_id = data[1:].decode().split("\0")
    return int(generation), app, client_id


class GroupDelivery(NamedTuple):
    """A message of a group, for a node with members of the group.

    id: the id of the entry; 0 if no entry exists; then the message is lost if the node dies.
    tried: the nodes whose members may not receive the message, each one after a slash; and a slash at the end.
    data: a batch with the message.
    """

    app: str
    name: str
    id: int
    tried: str
    data: bytes


def encode_group_delivery(delivery: GroupDelivery) -> bytes:
    *texts, data = delivery
    return bytes((GROUP,)) + b"\0".join([*(str(one).encode() for one in texts), data])


def decode_group_delivery(data: bytes) -> GroupDelivery:
    app, name, id, tried, message = data[1:].split(b"\0", 4)
    return GroupDelivery(app.decode(), name.decode(), int(id), tried.decode(), message)


class TopicRequest(msgspec.Struct, frozen=True, array_like=True):
    """A request to all nodes that are subscribed to a topic. `inbox` is the topic for replies; each reply contains `number`."""

    inbox: str
    number: int
    app: str
    channel: str
    request: bytes


_request = msgspec.msgpack.Decoder(TopicRequest)


def encode_request(request: TopicRequest) -> bytes:
    return bytes((REQUEST,)) + _encoder.encode(request)


def decode_request(data: bytes) -> TopicRequest:
    return _request.decode(memoryview(data)[1:])


def encode_reply(number: int, reply: bytes) -> bytes:
    return bytes((REPLY,)) + _encoder.encode((number, reply))


def decode_reply(data: bytes) -> tuple[int, bytes]:
    return _reply.decode(memoryview(data)[1:])
