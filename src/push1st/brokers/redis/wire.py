"""What nodes and scripts say to each other on topics: several messages at once, edges, questions and their answers.

Messages are MessagePack, an array of arrays in the order of `Message`'s fields. The rest begins with a byte that no
such array begins with. Pure.
"""

from typing import NamedTuple

import msgspec

from push1st.messages import Message

EDGE, QUESTION, ANSWER = 1, 2, 3

_encoder = msgspec.msgpack.Encoder()
_messages = msgspec.msgpack.Decoder(list[Message])
_message = msgspec.msgpack.Decoder(Message)

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
