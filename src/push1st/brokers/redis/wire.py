"""Encodes and decodes the data on topics: batches of messages, edges, requests, replies, and node names (`decode_node`). Pure.

The batch of a channel with a history begins with `KEPT`, the epoch, and the offset of the first message. The messages of this
batch have all fields of a `KeptMessage` except the position, which the receiver derives from the first offset.

A batch of messages is a MessagePack array; each element is an array of the fields of a `Message`. Other data begins with a byte
with which no MessagePack array begins.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from push1st.messages import HookEvent, KeptMessage, Message

EDGE, REQUEST, REPLY, NODE, KEPT = 1, 2, 3, 4, 5
MESSAGES = 0x90
"""the smallest value of the first byte of a batch of messages; a batch is a MessagePack array"""
MESSAGE_FIELDS = len(Message.__struct_fields__)
KEPT_FIELDS = KeptMessage.__struct_fields__.index("offset")
"""the number of fields of a `KeptMessage` that the publisher knows"""

_encoder = msgspec.msgpack.Encoder()
_messages = msgspec.msgpack.Decoder(list[Message])
_kept = msgspec.msgpack.Decoder(list[KeptMessage])
_message = msgspec.msgpack.Decoder(Message)

_reply = msgspec.msgpack.Decoder(tuple[int, bytes])
_event = msgspec.msgpack.Decoder(HookEvent)

encode_event = _encoder.encode
decode_event = _event.decode
encode_messages = _encoder.encode
decode_messages = _messages.decode
decode_message = _message.decode


def encode_message(message: Message) -> bytes:
    """Encodes a message of a cache channel."""
    return _encoder.encode(message if type(message) is Message else msgspec.structs.astuple(message)[:MESSAGE_FIELDS])


def encode_kept(messages: Sequence[Message]) -> bytes:
    """Encodes the messages of a channel with a history, which are all of the type `KeptMessage`."""
    return _encoder.encode([msgspec.structs.astuple(one)[:KEPT_FIELDS] for one in messages])


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
