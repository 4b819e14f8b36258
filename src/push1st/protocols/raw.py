"""The codec of Push1st's raw WebSocket protocol: each message is one text frame with JSON (Push1st API, section 7)."""

import msgspec

from push1st.errors import Disconnect, Refused
from push1st.jsontext import decode, encode, object_text
from push1st.messages import (
    DEFAULT_OPTIONS,
    MAX_HEADERS_BYTES,
    RESUMED,
    Command,
    Failure,
    Message,
    Options,
    Publish,
    Replayed,
    Reply,
)
from push1st.protocols.websocket import text_frame


class RawFrame(msgspec.Struct, gc=False):
    channel: str
    event: str
    data: msgspec.Raw = msgspec.Raw(b"null")
    socket_id: str | None = None
    headers: msgspec.Raw = msgspec.Raw(b"")
    options: msgspec.Raw = msgspec.Raw(b"")
    extra: msgspec.Raw = msgspec.Raw(b"")


_frame = msgspec.json.Decoder(RawFrame)
_options = msgspec.json.Decoder(Options)


def message_frame(message: Message, now: int, position: bytes) -> bytes:
    """Returns the frame of a message. `position`: a field with the message's position, after a comma; or b""."""
    return text_frame(
        b'{"event":%b,"channel":%b,"data":%b,"#msg-id":%d,"#msg-from":%b,"#msg-time":%d%b%b}'
        % (
            encode(message.event),
            encode(message.channel),
            message.data,
            message.id,
            encode(message.sender),
            max(0, now - message.received),
            position,
            message.headers and b',"headers":' + message.headers,
        )
    )


class Raw:
    """The codec; see `protocols.Codec`."""

    name = "websocket"
    binary = True

    def message(self, message: Message, now: int) -> bytes:
        if message.event == RESUMED:  # clients that do not use positions have no use for this event
            return b""
        return message_frame(message, now, b"")

    def decode(self, text: str) -> Command:
        try:
            try:
                frame = _frame.decode(text)
            except msgspec.DecodeError:
                frame = decode(_frame, text)
        except msgspec.ValidationError as error:
            raise Refused(400, f"not a message: {error}") from error
        except (msgspec.DecodeError, RecursionError) as error:
            raise Disconnect(1002, f"not JSON: {error}") from error
        data = bytes(frame.data).strip()
        if not (frame.headers or frame.options or frame.extra or frame.socket_id):
            return Publish(frame.channel, frame.event, data)
        headers = object_text("headers", frame.headers, MAX_HEADERS_BYTES)
        given = object_text("options", frame.options, MAX_HEADERS_BYTES)
        options = DEFAULT_OPTIONS
        if given:
            try:
                options = _options.decode(given)
            except msgspec.ValidationError as exc:
                place = str(exc).replace("`$", "`$.options")
                raise Refused(400, f"not a message: {place}") from exc
        options = Options(options.ttl, options.delivery, options.session or frame.socket_id or "")
        if wrong := options.error():
            raise Refused(400, wrong)
        rest = ((b"headers", headers), (b"options", given), (b"extra", bytes(frame.extra).strip()))
        members = b"".join(b',"%b":%b' % (name, text) for name, text in rest if text)
        if sum(len(text) for _, text in rest) > MAX_HEADERS_BYTES:
            raise Refused(413, f"headers, options and extra have more than {MAX_HEADERS_BYTES} bytes together")
        return Publish(frame.channel, frame.event, data, options.delivery, options.session, options.ttl, headers, members)

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
        return 1008, "this client does not read its messages"
