"""The codec of the Pusher Channels protocol, version 7, on WebSocket frames.

Every frame is a JSON object with a field `event`. In frames of the server, `data` is a JSON *string*, except in `pusher:error`
(Pusher protocol, sections 2 and 3). Where real SDKs differ from each other, the codec accepts the frames of all of them.
"""

from collections.abc import Callable

import msgspec

from push1st.errors import Refused
from push1st.jsontext import as_string, decode, encode
from push1st.messages import (
    RESUMED,
    WATCHLIST_EVENTS,
    CacheMissed,
    Command,
    Ending,
    Established,
    Failure,
    Member,
    Message,
    Ping,
    Pong,
    Publish,
    Replayed,
    Reply,
    Resumed,
    SignedIn,
    SignIn,
    Subscribe,
    Subscribed,
    SubscriptionRefused,
    Unsubscribe,
    WatchlistStatus,
    resumed_data,
)
from push1st.protocols.websocket import text_head

CODES = {429: 4301}
"""the codes of `pusher:error` for rejected commands, by HTTP status (Pusher protocol, section 4). No code is below 4300, because
libraries disconnect after an error with a code below 4300."""
NOTICE = 4300
"""the code of `pusher:error` for every other rejected command; after this code, libraries keep the connection"""


class PusherFrame(msgspec.Struct, gc=False):
    event: str
    channel: str = ""
    data: msgspec.Raw = msgspec.Raw(b"null")


class SubscribeData(msgspec.Struct, gc=False):
    channel: str
    auth: str | None = None
    channel_data: str | None = None


class SignInData(msgspec.Struct, gc=False):
    user_data: str
    auth: str | None = None


class UnsubscribeData(msgspec.Struct, gc=False):
    channel: str


_frame = msgspec.json.Decoder(PusherFrame)
_subscribe = msgspec.json.Decoder(SubscribeData)
_sign_in = msgspec.json.Decoder(SignInData)
_unsubscribe = msgspec.json.Decoder(UnsubscribeData)
_ESTABLISHED = '{"event":"pusher:connection_established","data":"{\\"socket_id\\":\\"%s\\",\\"activity_timeout\\":%d}"}'
_SUBSCRIBED = b'{"event":"pusher_internal:subscription_succeeded","channel":%b,"data":"{}"}'
_EVENT = b'%b{"event":%b,"channel":%b,"data":%b%b}'
_EVENT_BYTES = len(_EVENT % (b"", b"", b"", b"", b""))
_PING = b'{"event":"pusher:ping","data":"{}"}'
_PONG = b'{"event":"pusher:pong","data":"{}"}'


class Pusher:
    """The codec (`protocols.Codec`). `head`: a function that returns a frame's header for a text of the given length."""

    name = "pusher"
    binary = False

    def __init__(self, head: Callable[[int], bytes] = text_head) -> None:
        self._head = head
        self._ping = self._framed(_PING)
        self._subscribed = Subscribed("")
        self._frame = b""
        """the newest frame that lists a channel's members; clients that join the channel at the same time share this frame"""

    def message(self, message: Message, now: int) -> bytes:
        if message.event == WATCHLIST_EVENTS:
            return self._framed(_plain(message.event, message.data))
        event, channel, data = encode(message.event), encode(message.channel), as_string(message.data)
        user = b"" if message.user_id is None else b',"user_id":' + encode(message.user_id)
        head = self._head(_EVENT_BYTES + len(event) + len(channel) + len(data) + len(user))
        return _EVENT % (head, event, channel, data, user)

    def decode(self, text: str) -> Command:
        try:
            try:
                frame = _frame.decode(text)
            except msgspec.DecodeError:
                frame = decode(_frame, text)
            match frame.event:
                case "pusher:subscribe":
                    wanted = decode(_subscribe, _unwrapped(frame.data))
                    return Subscribe(wanted.channel, wanted.auth or "", wanted.channel_data or "")
                case "pusher:unsubscribe":
                    return Unsubscribe(decode(_unsubscribe, _unwrapped(frame.data)).channel)
                case "pusher:signin":
                    user = decode(_sign_in, _unwrapped(frame.data))
                    return SignIn(user.auth or "", user.user_data)
                case "pusher:ping":
                    return Ping()
                case "pusher:pong":
                    return Pong()
        except (msgspec.DecodeError, RecursionError) as error:
            raise Refused(400, f"not a frame of the Pusher protocol: {error}") from error
        if not frame.event.startswith("client-"):
            raise Refused(
                400,
                f"unknown event {frame.event[:80]!r}: clients may send pusher: commands and client- events",
                frame.channel,
            )
        return Publish(frame.channel, frame.event, bytes(frame.data).strip())

    def reply(self, reply: Reply) -> bytes:
        if isinstance(reply, Ping):
            return self._ping
        if isinstance(reply, Replayed):
            return self.message(reply.message, reply.now)
        if isinstance(reply, Ending) and not 4000 <= reply.code < 4300:
            return b""  # if this error came before `connection_established`, pusher-js would not reconnect
        if isinstance(reply, SubscriptionRefused):
            return b"".join(map(self._framed, refusal(reply)))
        if isinstance(reply, Subscribed) and reply.members:
            last = self._subscribed
            if reply.members is not last.members or reply.channel != last.channel:
                self._subscribed, self._frame = reply, self._framed(_reply(reply))
            return self._frame
        return self._framed(_reply(reply))

    def _framed(self, text: bytes) -> bytes:
        return self._head(len(text)) + text

    def slow(self) -> tuple[int, str]:
        return 4100, "Over capacity: this client does not read its messages"


def _reply(
    reply: Established | Subscribed | Resumed | SignedIn | WatchlistStatus | CacheMissed | Failure | Ending | Pong,
) -> bytes:
    match reply:
        case Subscribed(channel, None):
            return _SUBSCRIBED % encode(channel)
        case Subscribed(channel, members):
            return _event("pusher_internal:subscription_succeeded", channel, _presence(members or ()))
        case Established(socket_id, activity_timeout):
            return (_ESTABLISHED % (socket_id, activity_timeout)).encode()
        case Pong():
            return _PONG
        case Resumed(channel):
            return _event(RESUMED, channel, resumed_data(reply))
        case SignedIn(user_data):
            return _plain("pusher:signin_success", msgspec.json.encode({"user_data": user_data}))
        case WatchlistStatus(online, offline):
            named = (("online", online), ("offline", offline))
            events = [{"name": name, "user_ids": ids} for name, ids in named if ids]
            return _plain(WATCHLIST_EVENTS, msgspec.json.encode({"events": events}))
        case CacheMissed(channel):
            return _event("pusher:cache_miss", channel, b"{}")
        case Failure(code, text, channel):
            return _error(code if code is None or code >= NOTICE else CODES.get(code, NOTICE), text, channel)
        case Ending(code, reason):
            return _error(code, reason)


def refusal(refused: SubscriptionRefused) -> tuple[bytes, bytes]:
    """Returns two frames for a rejected subscription. pusher-js reads the first frame, other libraries read the second."""
    data = msgspec.json.encode({"type": refused.kind, "error": refused.text, "status": refused.status})
    return _event("pusher:subscription_error", refused.channel, data), _error(None, refused.text, refused.channel)


def _error(code: int | None, text: str, channel: str = "") -> bytes:
    on = b',"channel":' + encode(channel) if channel else b""
    return b'{"event":"pusher:error","data":' + msgspec.json.encode({"code": code, "message": text}) + on + b"}"


def _plain(event: str, data: bytes) -> bytes:
    """Encodes an event that belongs to no channel."""
    return b'{"event":"%b","data":%b}' % (event.encode(), encode(data.decode()))


def _event(event: str, channel: str, data: bytes) -> bytes:
    head = b'{"event":"' + event.encode() + b'","channel":' + encode(channel)
    return head + b',"data":' + encode(data.decode()) + b"}"


def _presence(members: tuple[Member, ...]) -> bytes:
    ids = msgspec.json.encode([member.user_id for member in members])
    entries = b",".join(encode(member.user_id) + b":" + member.info for member in members)
    return b'{"presence":{"ids":%b,"hash":{%b},"count":%d}}' % (ids, entries, len(members))


def _unwrapped(data: msgspec.Raw) -> bytes:
    """Returns the object in a command's `data`; some clients send the object as a JSON string (Pusher protocol, section 2)."""
    raw = bytes(data).strip()
    return msgspec.json.decode(raw, type=str).encode() if raw[:1] == b'"' else raw
