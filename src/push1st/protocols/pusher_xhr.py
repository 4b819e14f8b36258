"""The Pusher Channels protocol in the frames of pusher-js' HTTP fallbacks (protocol, section 10).

A frame is a line: a letter, JSON text, and a newline. The JSON text contains no newline, and is missing after the letters `o`
and `h`. After the letter `a`, the JSON text is an array of strings. Each string is the text of a WebSocket frame, which the
codec of the Pusher protocol encodes.
"""

import re

import msgspec

from push1st.errors import Refused
from push1st.jsontext import decode, encode
from push1st.messages import Command, Ending, Message, Ping, Pong, Reply, SubscriptionRefused
from push1st.protocols.pusher import Pusher, refusal

OPEN_FRAME = b"o\n"
HEARTBEAT = b"h\n"
MAX_RESPONSE = 262_144
"""the maximum length of a response in UTF-16 characters; pusher-js ends a response after the frame that exceeds this length"""

MAX_OLDER = 1024
"""a request counts as repeated if its number is at least `MAX_OLDER` lower than the highest number so far"""

_NUMBER = re.compile("(?:^|&)n=([0-9]{1,15})(?:&|$)")
_messages = msgspec.json.Decoder(list[str])
_pusher = Pusher(lambda _: b"")


class PusherXhr:
    """The codec; see `protocols.Codec`."""

    name = "pusher-xhr"

    def message(self, message: Message, now: int) -> bytes:
        return _frame(_pusher.message(message, now))

    def decode(self, text: str) -> Command:
        return _pusher.decode(text)

    def reply(self, reply: Reply) -> bytes:
        match reply:
            case Ping():
                return _PING
            case Pong():
                return _PONG
            case SubscriptionRefused():
                return b"".join(map(_frame, refusal(reply)))
        return _frame(_pusher.reply(reply))

    def slow(self) -> tuple[int, str]:
        return _pusher.slow()


class RequestNumbers:
    """The numbers of a client's requests, with which the server finds a repeated request.

    pusher-js counts its requests, and puts the number into the parameter `n` of the query. If the connection of a request ends
    before the response, a browser or a proxy may repeat the request with the same number, without notifying pusher-js. Requests
    on several connections may arrive in another order, so the class stores a window of numbers, like RFC 4303 §3.4.3.
    """

    __slots__ = ("_highest", "_seen")

    def __init__(self) -> None:
        self._highest = 0
        self._seen = 0
        """the bit 2**i is set if the number `_highest` - i has arrived"""

    def is_repeated(self, query: str) -> bool:
        """Stores the number of a request, and returns whether the request may be a repetition. `query`: the request's query."""
        found = _NUMBER.search(query)
        if found is None:
            return False
        ahead = int(found[1]) - self._highest
        if ahead > 0:
            self._highest += ahead
            self._seen = (self._seen << min(ahead, MAX_OLDER) | 1) % (1 << MAX_OLDER)
            return False
        if -ahead >= MAX_OLDER or self._seen >> -ahead & 1:
            return True
        self._seen |= 1 << -ahead
        return False


def end_frames(code: int, reason: str, announced: bool = True) -> bytes:
    """Returns the last frames of a session: an error if `announced` is true and the code is 4000 to 4299, then a close frame."""
    error = _frame(_pusher.reply(Ending(code, reason))) if announced else b""
    return error + b"c[%d,%b]\n" % (code, encode(reason))


def decode_messages(body: bytes) -> list[str]:
    """Returns the messages in the body of a client's request. Raises Refused(400)."""
    try:
        return decode(_messages, body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise Refused(400, f"the body must be a JSON array of strings: {exc}") from exc


def whole_frames(data: bytes, room: int) -> tuple[int, int]:
    """Returns how many bytes of `data` must be written to a response, and the room that the response has after these bytes.

    `data`: complete frames. `room`: `MAX_RESPONSE` minus the number of characters in the response so far. The first frame that
    exceeds the room is the last frame of the response, because pusher-js ends the response after this frame. After such a
    frame, the remaining room is negative.
    """
    if data.isascii():
        end = data.find(b"\n", room) + 1 if len(data) > room else len(data)
        return end, room - end
    end = 0
    while end < len(data) and room >= 0:
        start, end = end, data.index(b"\n", end) + 1
        room -= len(data[start:end].decode().encode("utf-16-le")) // 2
    return end, room


def _frame(text: bytes) -> bytes:
    return b"a[%b]\n" % encode(text.decode()) if text else b""


_PING = _frame(_pusher.reply(Ping()))
_PONG = _frame(_pusher.reply(Pong()))
