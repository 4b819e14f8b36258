"""The codec of raw WebSocket clients that can resume: the frames of `raw`, with the positions of the messages.

A message of a channel with a history has the field `#msg-pos`. The first frame of each channel is the event `resumed`, which
shows whether the client gets all messages since its earlier position. If a client may have missed messages later, it gets the
same event again.
"""

import msgspec

from push1st.jsontext import encode
from push1st.messages import (
    RESUMED,
    Command,
    KeptMessage,
    Message,
    Replayed,
    Reply,
    Resumed,
    SubscriptionRefused,
    resumed_data,
)
from push1st.protocols.raw import Raw, message_frame
from push1st.protocols.websocket import text_frame


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
            case _:
                return self._raw.reply(reply)

    def slow(self) -> tuple[int, str]:
        return self._raw.slow()


def _resumed(channel: str, data: bytes) -> bytes:
    return text_frame(b'{"event":"resumed","channel":%b,"data":%b}' % (encode(channel), data))
