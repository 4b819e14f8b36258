"""The typed units that all layers exchange: messages on the data road, commands and replies of clients, HTTP requests.

A codec decodes bytes into commands, and encodes replies and messages as bytes. A session handles commands and returns replies.
The session knows no bytes, and the codec knows no session. All structs are frozen. Data stays the JSON text that arrived, so a
message is parsed once, and a wire that sends JSON needs no other encoding of its data.
"""

from typing import Literal

import msgspec

DeliveryMode = Literal["broadcast", "multicast", "unicast"]

API = "api"
"""The sender of a message that was published over HTTP (`#msg-from`)."""
INTERNAL = "pusher_internal:"
WATCHLIST_EVENTS = INTERNAL + "watchlist_events"
SUBSCRIPTION_COUNT = INTERNAL + "subscription_count"
TERMINATE = INTERNAL + "terminate"
"""Never sent to clients: makes every worker close the connections of a signed-in user."""
NODE_MESSAGE = INTERNAL + "told"
"""Never sent to clients: the event of messages between workers (`core/controller.py`)."""
MAX_HEADERS_BYTES = 4096
"""the maximum number of bytes of an event's `headers`; in a raw frame, of `headers`, `options` and `extra` together"""
MEMBER_ADDED = INTERNAL + "member_added"
MEMBER_REMOVED = INTERNAL + "member_removed"


class Message(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """An event on one channel, which workers deliver to the subscribers.

    data: JSON text.
    id: 64 bits; increases on each worker, and is unique in the cluster.
    received: wall clock, nanoseconds.
    exclude: the id of a connection that does not receive the message, or "".
    delivery, target: the receivers (Push1st API, section 3). A broadcast does not reach its target. A broadcast has
    a target only if `exclude` is set.
    user_id: of the member that published a client event on a presence channel.
    headers: JSON text of an object, or b"".
    """

    app: str
    channel: str
    event: str
    data: bytes
    id: int
    received: int
    sender: str = API
    exclude: str = ""
    delivery: DeliveryMode = "broadcast"
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
    """The receivers of an event (Push1st API, section 3). ttl: seconds; it has no effect on live delivery."""

    ttl: float = 0
    delivery: DeliveryMode = "broadcast"
    session: str = ""

    def error(self) -> str | None:
        """Returns why the options are not valid; None if they are."""
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
    """The user that has signed in on a connection.

    info: JSON text.
    watchlist: ids of the users whose status the connection receives.
    """

    id: str
    info: bytes = b"null"
    watchlist: tuple[str, ...] = ()


class Member(msgspec.Struct, frozen=True, gc=False):
    """A user on a presence channel. info: JSON text; `null` if the user has no info."""

    user_id: str
    info: bytes = b"null"


def member_added(app: str, channel: str, member: Member, id: int, received: int, exclude: str) -> Message:
    """Returns the event that notifies a presence channel of a new member (Pusher protocol, section 3)."""
    data = b'{"user_id":' + msgspec.json.encode(member.user_id)
    data += b"}" if member.info == b"null" else b',"user_info":' + member.info + b"}"
    return Message(app, channel, MEMBER_ADDED, data, id, received, exclude=exclude)


def member_removed(app: str, channel: str, user_id: str, id: int, received: int, exclude: str) -> Message:
    """Returns the event that notifies a presence channel of a member that has left."""
    data = b'{"user_id":' + msgspec.json.encode(user_id) + b"}"
    return Message(app, channel, MEMBER_REMOVED, data, id, received, exclude=exclude)


def status_changed(app: str, user_id: str, online: bool, id: int, received: int, exclude: str) -> Message:
    """Returns the event that notifies the watchers of a user that the user is online or offline (Pusher protocol, section 5)."""
    data = msgspec.json.encode({"events": [{"name": "online" if online else "offline", "user_ids": [user_id]}]})
    return Message(app, watch_topic(user_id), WATCHLIST_EVENTS, data, id, received, exclude=exclude)


def subscription_count(app: str, channel: str, count: int, id: int, received: int) -> Message:
    """Returns the event that notifies a channel's subscribers of their number."""
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
"""the time for which leaving edges are held, because most members return in this time (Pusher protocol, section 9)"""


class HookEvent(msgspec.Struct, frozen=True, gc=False):
    """An event on a channel for hooks. The broker reports it once in the cluster, and in order for each channel.

    at: wall clock, nanoseconds.
    socket_id: of the connection that caused the event, or "".
    user_id, user_info: of the member; the info is JSON text.
    event, data: of a client event; the data is JSON text.
    count: of subscriptions.
    id, delivery, expires, given: of a client event, as in `Publish`. expires: seconds since 1970; 0: never.
    phase: of an edge. `new`: the broker does not debounce edges, so the dispatcher does (`hooks/debounce.py`). A broker that
    debounces reports an edge as `at-once` for hooks that want every edge, and as `settled` for other hooks. It reports an edge
    as `held` if the last process stops while it holds the edge.
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
    delivery: DeliveryMode = "broadcast"
    expires: int = 0
    given: bytes = b""
    phase: Phase = "new"


# Topics of users. `#` is reserved, so clients cannot subscribe to these topics by name, except to `#server-to-user-`.


def user_channel(user_id: str) -> str:
    """Returns the channel on which a backend sends events to a signed-in user (Pusher protocol, section 5)."""
    return f"#server-to-user-{user_id}"


def watch_topic(user_id: str) -> str:
    """Returns the topic of changes of a user's status."""
    return f"#watch-{user_id}"


def session_topic(user_id: str) -> str:
    """Returns the topic of commands to all connections of a user."""
    return f"#user-{user_id}"


class ClientRequest(msgspec.Struct, frozen=True, gc=False):
    """The query and the headers of a client that connects, for the app's backend.

    query: as in the URL.
    origin, cookie, authorization: headers; None if the client did not send the header.
    """

    query: str = ""
    origin: str | None = None
    cookie: str | None = None
    authorization: str | None = None


# Commands of clients.


class Subscribe(msgspec.Struct, frozen=True, gc=False):
    channel: str
    auth: str = ""
    channel_data: str = ""


class Unsubscribe(msgspec.Struct, frozen=True, gc=False):
    channel: str


class Publish(msgspec.Struct, frozen=True, gc=False):
    """A client publishes an event.

    data: JSON text.
    ttl: seconds.
    headers: as in `Message`.
    given: `headers`, `options` and `extra` of the frame, for hooks: JSON text of the members, each after a comma.
    """

    channel: str
    event: str
    data: bytes
    delivery: DeliveryMode = "broadcast"
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


# Replies of a session to its client. Ping and Pong are sent in both directions.


class Established(msgspec.Struct, frozen=True, gc=False):
    socket_id: str
    activity_timeout: int


class Subscribed(msgspec.Struct, frozen=True, gc=False):
    """The client is subscribed. members: of a presence channel, including the client's own user."""

    channel: str
    members: tuple[Member, ...] | None = None


class SubscriptionRefused(msgspec.Struct, frozen=True, gc=False):
    """The subscription is rejected.

    kind: a word for programs, such as AuthError.
    status: an HTTP status.
    """

    channel: str
    kind: str
    text: str
    status: int


class SignedIn(msgspec.Struct, frozen=True, gc=False):
    """The user is signed in. user_data: as it was signed, but the id is always a text."""

    user_data: str


class WatchlistStatus(msgspec.Struct, frozen=True, gc=False):
    """The users of a watchlist that are online or offline at the sign-in."""

    online: tuple[str, ...]
    offline: tuple[str, ...]


class Replayed(msgspec.Struct, frozen=True, gc=False):
    """The last event of a cache channel, for a new subscriber. now: wall clock, nanoseconds."""

    message: Message
    now: int


class CacheMissed(msgspec.Struct, frozen=True, gc=False):
    channel: str


class Failure(msgspec.Struct, frozen=True, gc=False):
    """A command is rejected. The connection stays open.

    code: an HTTP status, which a codec may translate, or a Pusher code from 4300 on; None if Pusher sends no code.
    channel: of the command; "" if the command has none.
    """

    code: int | None
    text: str
    channel: str = ""


class Ending(msgspec.Struct, frozen=True, gc=False):
    """The server closes the connection next, with this WebSocket close code."""

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


# Requests and responses between the HTTP transport and the API.


class Request(msgspec.Struct, frozen=True, gc=False):
    """An HTTP request for the API.

    path, query: as in the request line.
    distrust: the reason why the request must be signed; "" if the API accepts it unsigned (Push1st API, section 6).
    started: nanoseconds on the performance counter.
    """

    method: str
    path: str
    query: str
    body: bytes
    distrust: str
    started: int


class Response(msgspec.Struct, frozen=True, gc=False):
    """An HTTP response. headers: whole lines, each with its CRLF."""

    status: int
    body: bytes
    content_type: bytes = b"application/json; charset=utf-8"
    headers: bytes = b""
