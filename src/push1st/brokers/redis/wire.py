"""Encodings of what nodes and scripts publish on topics: batches of messages, edges, questions, answers, names of new nodes.

Messages are MessagePack, an array of arrays in the order of `Message`'s fields. The rest begins with a byte that no
such array begins with. Pure.
"""

from typing import NamedTuple

import msgspec

from push1st.messages import HookEvent, Message

EDGE, QUESTION, ANSWER, NODE = 1, 2, 3, 4

_encoder = msgspec.msgpack.Encoder()
_messages = msgspec.msgpack.Decoder(list[Message])
_message = msgspec.msgpack.Decoder(Message)

_answer = msgspec.msgpack.Decoder(tuple[int, bytes])
_event = msgspec.msgpack.Decoder(HookEvent)

encode_event = _encoder.encode
decode_event = _event.decode
encode_messages = _encoder.encode
decode_messages = _messages.decode
encode_message = _encoder.encode
decode_message = _message.decode


class Edge(NamedTuple):
    """A member (`+`, `-`) of a presence channel, or a signed-in user (`on`, `off`). Made by the scripts."""

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


class Question(msgspec.Struct, frozen=True, array_like=True):
    """What a node asks those that are subscribed to a topic. inbox: the topic where it is answered, with the number."""

    inbox: str
    number: int
    app: str
    channel: str
    question: bytes


_question = msgspec.msgpack.Decoder(Question)


def encode_question(question: Question) -> bytes:
    return bytes((QUESTION,)) + _encoder.encode(question)


def decode_question(data: bytes) -> Question:
    return _question.decode(memoryview(data)[1:])


def encode_answer(number: int, answer: bytes) -> bytes:
    return bytes((ANSWER,)) + _encoder.encode((number, answer))


def decode_answer(data: bytes) -> tuple[int, bytes]:
    return _answer.decode(memoryview(data)[1:])
