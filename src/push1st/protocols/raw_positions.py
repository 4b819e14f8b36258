"""The codec of raw WebSocket clients that can resume: the frames of `raw`, with the positions of the messages.

A message of a channel with a history has the field `#msg-pos`. The first frame of each channel is the event `resumed`, which
shows whether the client gets all messages since its earlier position. If a client may have missed messages later, it gets the
same event again.

A client can check its connection with the frame `{"event":"ping"}`, which the server answers with `{"event":"pong"}`. Scripts of
browsers need this, because browsers do not show them the pings of the WebSocket protocol.
"""

import msgspec

from push1st.jsontext import encode
from push1st.messages import (
    RESUMED,
    Command,
    KeptMessage,
    Message,
    Ping,
    Pong,
    Replayed,
    Reply,
    Resumed,
    SubscriptionRefused,
    resumed_data,
)
from push1st.protocols.raw import Raw, message_frame
from push1st.protocols.websocket import text_frame


class PingFrame(msgspec.Struct, tag_field="event", tag="ping", forbid_unknown_fields=True, gc=False):
    """The frame with which a client checks its connection."""


_ping = msgspec.json.Decoder(PingFrame)
_PONG = text_frame(b'{"event":"pong"}')
MAX_PING = 64
"""the maximum number of characters of a ping; longer frames are published without a further check"""


class RawPositions:
    """The codec; see `protocols.Codec`."""

    name = "websocket"
    binary = True

    def __init__(self) -> None:
        self._raw = Raw()

    def message(self, message: Message, now: int) -> bytes:
        if message.event == RESUMED:
            return _resumed(message.channel, message.data)
        position = b""
        if type(message) is KeptMessage and message.offset:  # a cached event has no offset
            position = b',"#msg-pos":"%b:%d"' % (message.epoch.encode(), message.offset)
        return message_frame(message, now, position)

    def decode(self, text: str) -> Command:
        if len(text) <= MAX_PING and _is_ping(text):
            return Ping()
        return self._raw.decode(text)

    def reply(self, reply: Reply) -> bytes:
        match reply:
            case Resumed(channel):
                return _resumed(channel, resumed_data(reply))
            case Replayed(message, now):
                return self.message(message, now)
            case SubscriptionRefused(channel, _, text, status):
                # Without this frame, the client would wait for the channel's `resumed`.
                data = msgspec.json.encode({"code": status, "message": text})
                return text_frame(b'{"event":"error","channel":%b,"data":%b}' % (encode(channel), data))
            case Pong():
                return _PONG
            case _:
                return self._raw.reply(reply)

    def slow(self) -> tuple[int, str]:
        return self._raw.slow()


def _is_ping(text: str) -> bool:
    try:
        _ping.decode(text)
    except msgspec.DecodeError:
        return False
    return True


def _resumed(channel: str, data: bytes) -> bytes:
    return text_frame(b'{"event":"resumed","channel":%b,"data":%b}' % (encode(channel), data))
