"""Encodes and decodes the data on topics: batches of messages, edges, requests, replies, and node names (`decode_node`). Pure.

A batch of messages is a MessagePack array; each element is an array of the fields of a `Message`. Other data begins with a byte
with which no MessagePack array begins.
"""

from typing import NamedTuple

import msgspec

from push1st.messages import HookEvent, Message

EDGE, REQUEST, REPLY, NODE = 1, 2, 3, 4

_encoder = msgspec.msgpack.Encoder()
_messages = msgspec.msgpack.Decoder(list[Message])
_message = msgspec.msgpack.Decoder(Message)

_reply = msgspec.msgpack.Decoder(tuple[int, bytes])
_event = msgspec.msgpack.Decoder(HookEvent)

encode_event = _encoder.encode
decode_event = _event.decode
encode_messages = _encoder.encode
decode_messages = _messages.decode
encode_message = _encoder.encode
decode_message = _message.decode


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
