"""Push1st's raw WebSocket protocol: one JSON text frame a message (Push1st API, section 7)."""

import msgspec

from push1st.errors import Disconnect, Refused
from push1st.jsontext import encode
from push1st.messages import DEFAULT_OPTIONS, Command, Failure, Message, Options, Publish, Replayed, Reply
from push1st.protocols.websocket import text_frame


class Frame(msgspec.Struct, gc=False):
    channel: str
    event: str
    data: msgspec.Raw = msgspec.Raw(b"null")
    options: Options | None = None


_frame = msgspec.json.Decoder(Frame)


class Raw:
    """The codec; see `protocols.Codec`."""

    name = "websocket"

    def message(self, message: Message, now: int) -> bytes:
        return text_frame(
            b'{"event":%b,"channel":%b,"data":%b,"#msg-id":%d,"#msg-from":"%b","#msg-time":%d}'
            % (
                encode(message.event),
                encode(message.channel),
                message.data,
                message.id,
                message.sender.encode(),
                max(0, now - message.received),
            )
        )

    def decode(self, text: str) -> Command:
        try:
            frame = _frame.decode(text)
        except msgspec.ValidationError as error:
            raise Refused(400, f"not a message: {error}") from error
        except (msgspec.DecodeError, RecursionError) as error:
            raise Disconnect(1002, f"not JSON: {error}") from error
        options = frame.options or DEFAULT_OPTIONS
        wrong = options.error()
        if wrong:
            raise Refused(400, wrong)
        return Publish(frame.channel, frame.event, bytes(frame.data).strip(), options.delivery, options.session)

    def reply(self, reply: Reply) -> bytes:
        match reply:
            case Failure(code, text):
                data = msgspec.json.encode({"code": code, "message": text})
                return text_frame(b'{"event":"error","data":' + data + b"}")
            case Replayed(message, now):
                return self.message(message, now)
            case _:
                return b""

    def slow(self) -> tuple[int, str]:
        return 1008, "this client does not read what it is sent"
