"""The typed units every part speaks: messages on the data road, commands from clients and replies, HTTP calls.

A codec turns bytes into commands and replies and messages into bytes; a session turns commands into replies. Neither
knows the other's representation. All of them are frozen; data is kept as the JSON text it came in, so that a message
is parsed once and never re-encoded for a wire that takes it as it is.
"""

from typing import Literal

import msgspec

Delivery = Literal["broadcast", "multicast", "unicast"]

API = "api"
"""The sender of what came in over HTTP (`#msg-from`)."""
INTERNAL = "pusher_internal:"
WATCHLIST_EVENTS = INTERNAL + "watchlist_events"
SUBSCRIPTION_COUNT = INTERNAL + "subscription_count"
TERMINATE = INTERNAL + "terminate"
"""Never sent to clients: it ends the connections of a signed-in user, on every worker."""
NODE_MESSAGE = INTERNAL + "told"
"""Never sent to clients: the event of messages between workers (`core/controller.py`)."""
MAX_HEADERS_BYTES = 4096
"""bytes of an event's `headers`; in a raw frame, of `headers`, `options` and `extra` together"""
MEMBER_ADDED = INTERNAL + "member_added"
MEMBER_REMOVED = INTERNAL + "member_removed"


class Message(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One event on one channel, on its way to the subscribers.

    data: JSON text. id: 64 bits, increasing per worker, unique everywhere. received: wall clock, nanoseconds.
    exclude: the id of a connection that does not receive the message, or "". delivery and target: the receivers (Push1st API,
    section 3). A broadcast also excludes its target; it has a target only if `exclude` is set.
    user_id: of the member who sent a client event on a presence channel. headers: JSON text of an object, b"" without one.
    """

    app: str
    channel: str
    event: str
    data: bytes
    id: int
    received: int
    sender: str = API
    exclude: str = ""
    delivery: Delivery = "broadcast"
    target: str = ""
    user_id: str | None = None
    headers: bytes = b""


class KeptMessage(Message, frozen=True, gc=False, array_like=True):
    """A message of a channel with history, at its place in the history.

    The publisher does not know the place, because the broker gives it: only a `Message` goes to the broker and to other workers.
    Each worker that receives the message, or reads it from the history, makes the `KeptMessage` (`at`).

    offset: 1, 2, 3 … for each channel, without holes. epoch: a word that changes when offsets may have lost their meaning.
    """

    offset: int = 0
    epoch: str = ""

    @classmethod
    def at(cls, message: Message, offset: int, epoch: str) -> "KeptMessage":
        """Returns a message with its place in the history of its channel."""
        return cls(**msgspec.structs.asdict(message), offset=offset, epoch=epoch)


class Published(msgspec.Struct, frozen=True, gc=False):
    """The result of publishing a message.

    The broker has accepted the message when there is a result, and every living worker with subscribers receives it.

    count: the subscribers of the channel on all workers, as `Broker.publish` describes.
    offset, epoch: the place of the message in the history of its channel, as in `KeptMessage`; 0 and "" if the message is not
    kept.
    """

    count: int
    offset: int = 0
    epoch: str = ""


class Options(msgspec.Struct, frozen=True, gc=False):
    """How far an event goes (Push1st API, section 3). ttl: seconds; valid, and without effect on live delivery."""

    ttl: float = 0
    delivery: Delivery = "broadcast"
    session: str = ""

    def error(self) -> str | None:
        """What is wrong with them, or None."""
        if self.ttl < 0:
            return "options.ttl is negative"
        if self.delivery != "broadcast" and not self.session:
            return f"options.session is missing, {self.delivery} needs it"
        return None

    def with_socket_id(self, socket_id: str) -> "tuple[str, Options]":
        """Returns the id that an event excludes, and the options with its target.

        A broadcast excludes both `socket_id` and `session`. The target of any other delivery is `session`, or `socket_id` if
        there is no session.
        """
        if self.delivery == "broadcast":
            return (socket_id, self) if socket_id else (self.session, Options(self.ttl))
        return (socket_id, self) if self.session else ("", Options(self.ttl, self.delivery, socket_id))


DEFAULT_OPTIONS = Options()


class SignedInUser(msgspec.Struct, frozen=True, gc=False):
    """Who has signed in on a connection. info: JSON text. watchlist: ids of the users it wants to know of."""

    id: str
    info: bytes = b"null"
    watchlist: tuple[str, ...] = ()


class Member(msgspec.Struct, frozen=True, gc=False):
    """A user on a presence channel. info: JSON text, `null` when the user has none."""

    user_id: str
    info: bytes = b"null"


def member_added(app: str, channel: str, member: Member, id: int, received: int, exclude: str) -> Message:
    """The edge that tells a presence channel of a new member (Pusher protocol, section 3)."""
    data = b'{"user_id":' + msgspec.json.encode(member.user_id)
    data += b"}" if member.info == b"null" else b',"user_info":' + member.info + b"}"
    return Message(app, channel, MEMBER_ADDED, data, id, received, exclude=exclude)


def member_removed(app: str, channel: str, user_id: str, id: int, received: int, exclude: str) -> Message:
    """The edge that tells a presence channel that a member is gone."""
    data = b'{"user_id":' + msgspec.json.encode(user_id) + b"}"
    return Message(app, channel, MEMBER_REMOVED, data, id, received, exclude=exclude)


def status_changed(app: str, user_id: str, online: bool, id: int, received: int, exclude: str) -> Message:
    """The edge that tells those who watch a user that it came online or went offline (Pusher protocol, section 5)."""
    data = msgspec.json.encode({"events": [{"name": "online" if online else "offline", "user_ids": [user_id]}]})
    return Message(app, watch_topic(user_id), WATCHLIST_EVENTS, data, id, received, exclude=exclude)


def subscription_count(app: str, channel: str, count: int, id: int, received: int) -> Message:
    """What a channel's subscribers are told of their number."""
    return Message(app, channel, SUBSCRIPTION_COUNT, b'{"subscription_count":%d}' % count, id, received)


HookEventKind = Literal[
    "occupied",
    "vacated",
    "member-added",
    "member-removed",
    "joined",
    "left",
    "client-event",
    "cache-missed",
    "counted",
]
Phase = Literal["new", "at-once", "settled", "held"]

ENTERING: dict[HookEventKind, HookEventKind] = {"occupied": "vacated", "member-added": "member-removed"}
"""entering edges, and the leaving edges that cancel them"""
HOLD_SECONDS = 3.0
"""for which leaving edges are held back from hooks, because most members return within them (Pusher protocol, section 9)"""


class HookEvent(msgspec.Struct, frozen=True, gc=False):
    """Something that happened on a channel, for hooks: each is reported once in a cluster, in order per channel.

    at: wall clock, nanoseconds. socket_id: of the connection that caused it, where one did. user_id and user_info (JSON
    text): of the member it is about. event and data (JSON text): of a client event. count: of subscriptions. id, delivery,
    expires (seconds since 1970; 0: never) and given (see `Publish`): of a client event.

    phase: of an edge. `new`: the broker does not debounce, so hooks hold the edge back (`debounce`). The other phases are for
    brokers that debounce: `at-once`, for hooks that want every edge; `settled`, for the others; `held`, if the edge is still held
    back when the last process stops.
    """

    kind: HookEventKind
    app: str
    channel: str
    at: int
    socket_id: str = ""
    user_id: str | None = None
    user_info: bytes = b"null"
    event: str = ""
    data: bytes = b""
    count: int = 0
    id: int = 0
    delivery: Delivery = "broadcast"
    expires: int = 0
    given: bytes = b""
    phase: Phase = "new"


# Topics of users. Clients cannot subscribe to them by name: `#` is reserved, and only `#server-to-user-` is let through.


def user_channel(user_id: str) -> str:
    """The channel on which a backend reaches a signed-in user (Pusher protocol, section 5)."""
    return f"#server-to-user-{user_id}"


def watch_topic(user_id: str) -> str:
    """Where the edges of a user's status go."""
    return f"#watch-{user_id}"


def session_topic(user_id: str) -> str:
    """Where what concerns the connections of a user goes."""
    return f"#user-{user_id}"


class ClientRequest(msgspec.Struct, frozen=True, gc=False):
    """What a client that connects has shown, for the app's backend. query: as in the URL; headers: None without one."""

    query: str = ""
    origin: str | None = None
    cookie: str | None = None
    authorization: str | None = None


# Commands: what a client asks for.


class Subscribe(msgspec.Struct, frozen=True, gc=False):
    channel: str
    auth: str = ""
    channel_data: str = ""


class Unsubscribe(msgspec.Struct, frozen=True, gc=False):
    channel: str


class Publish(msgspec.Struct, frozen=True, gc=False):
    """An event from a client. data: JSON text. ttl: seconds. headers: see `Message`.

    given: the `headers`, `options` and `extra` of its frame for hooks: JSON text of the members, each after a comma.
    """

    channel: str
    event: str
    data: bytes
    delivery: Delivery = "broadcast"
    target: str = ""
    ttl: float = 0
    headers: bytes = b""
    given: bytes = b""


class SignIn(msgspec.Struct, frozen=True, gc=False):
    auth: str
    user_data: str


class Ping(msgspec.Struct, frozen=True, gc=False):
    pass


class Pong(msgspec.Struct, frozen=True, gc=False):
    pass


Command = Subscribe | Unsubscribe | Publish | SignIn | Ping | Pong


# Replies: what a session tells its own client. Ping and Pong go both ways.


class Established(msgspec.Struct, frozen=True, gc=False):
    socket_id: str
    activity_timeout: int


class Subscribed(msgspec.Struct, frozen=True, gc=False):
    """members: of a presence channel, a new member included."""

    channel: str
    members: tuple[Member, ...] | None = None


class SubscriptionRefused(msgspec.Struct, frozen=True, gc=False):
    """status: an HTTP status; kind: a word for programs, such as AuthError."""

    channel: str
    kind: str
    text: str
    status: int


class SignedIn(msgspec.Struct, frozen=True, gc=False):
    """user_data: as it was signed, but the id is always a text."""

    user_data: str


class WatchlistStatus(msgspec.Struct, frozen=True, gc=False):
    """Who of a watchlist is online, and who is not, at sign-in."""

    online: tuple[str, ...]
    offline: tuple[str, ...]


class Replayed(msgspec.Struct, frozen=True, gc=False):
    """The last event of a cache channel, for one new subscriber. now: wall clock, nanoseconds."""

    message: Message
    now: int


class CacheMissed(msgspec.Struct, frozen=True, gc=False):
    channel: str


class Failure(msgspec.Struct, frozen=True, gc=False):
    """An answer to a bad command; the connection stays.

    code: an HTTP status, which a codec may translate, or a Pusher code from 4300 on; None if Pusher sends no code. channel: the
    channel of the command, "" if the command has none.
    """

    code: int | None
    text: str
    channel: str = ""


class Ending(msgspec.Struct, frozen=True, gc=False):
    """The connection is about to be closed with this WebSocket close code."""

    code: int
    reason: str


Reply = (
    Established
    | Subscribed
    | SubscriptionRefused
    | SignedIn
    | WatchlistStatus
    | Replayed
    | CacheMissed
    | Failure
    | Ending
    | Ping
    | Pong
)


# What HTTP transports and the API exchange.


class Request(msgspec.Struct, frozen=True, gc=False):
    """An HTTP request for the API. started: nanoseconds on the performance counter.

    path and query: as on the request line. distrust: why the request must be signed, "" if it need not (Push1st API, section 6).
    """

    method: str
    path: str
    query: str
    body: bytes
    distrust: str
    started: int


class Response(msgspec.Struct, frozen=True, gc=False):
    """headers: whole lines, each with its CRLF."""

    status: int
    body: bytes
    content_type: bytes = b"application/json; charset=utf-8"
    headers: bytes = b""
