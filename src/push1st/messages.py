"""The types of the values that all layers exchange: messages, commands and replies of clients, HTTP requests and responses.

A codec decodes bytes into commands, and encodes replies and messages as bytes. A session handles commands and returns replies.
The session does not use bytes, and the codec does not use sessions. All structs are frozen. The data of a message is JSON text,
which the server does not change. So the data is parsed once, and is not encoded again for connections that use JSON.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

from push1st.positions import Position

DeliveryMode = Literal["broadcast", "multicast", "unicast"]
API = "api"
"""the sender (`#msg-from`) of a message that was published over HTTP"""
INTERNAL = "pusher_internal:"
WATCHLIST_EVENTS = INTERNAL + "watchlist_events"
SUBSCRIPTION_COUNT = INTERNAL + "subscription_count"
TERMINATE = INTERNAL + "terminate"
"""the event that makes every worker close the connections of a signed-in user; never sent to clients"""
RESUMED = "pusher:resumed"
"""the event that shows on a channel whether a client has received all messages; other codecs than Pusher's rename the event"""
NODE_MESSAGE = INTERNAL + "told"
"""the event of messages between workers (`core/controller.py`); never sent to clients"""
MAX_HEADERS_BYTES = 4096
"""the maximum number of bytes of `headers` in an API call, and of `headers`, `options` and `extra` together in a raw frame"""
MEMBER_ADDED = INTERNAL + "member_added"
MEMBER_REMOVED = INTERNAL + "member_removed"


class MqttFields(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The fields of a message that MQTT clients publish and receive, and that other clients do not have.

    `qos`: the quality of service with which the message was published.
    `retain`: whether the publisher has set RETAIN.
    `expires`: when the message expires, on the wall clock in nanoseconds; 0 if it does not expire.
    `properties`: the encoded properties of MQTT 5.0 that receivers get unchanged.
    """

    qos: int = 0
    retain: bool = False
    expires: int = 0
    properties: bytes = b""


class Message(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """An event on one channel, which workers deliver to the subscribers.

    `data`: the event's data as JSON text.
    `id`: a 64-bit number, which is unique in the cluster, and greater than the numbers of the worker's earlier messages.
    `received`: when the message was published, on the wall clock in nanoseconds.
    `exclude`: the id of a connection that does not receive the message, or "".
    `delivery`, `target`: the receivers of the message (Push1st API, section 3). The target of a broadcast is a second excluded
    connection, and is set only if `exclude` is set.
    `user_id`: the id of the member that published a client event on a presence channel; None for other events.
    `headers`: a JSON object as text, or b"".
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

    @property
    def mqtt(self) -> MqttFields | None:
        """The fields that only MQTT clients use; None for a message that no MQTT client has published."""
        return None


class MqttMessage(Message, frozen=True, gc=False, array_like=True):
    """A message that an MQTT client has published. The other messages have no such field, so their encoded form has none."""

    mqtt: MqttFields | None = None


class KeptMessage(Message, frozen=False, gc=False, array_like=True):  # type: ignore[misc]  # msgspec allows this
    """A message of a channel that keeps a history, with the message's position in the history.

    The publisher creates the message without a position. The broker sets the position once, before it passes the message on.

    `expires`: when the `ttl` that the publisher gave to the message ends, on the wall clock in nanoseconds; 0 without a `ttl`.
    `offset`: the number of the message in its channel: 1, 2, 3 … without gaps; 0 before the broker has assigned the number.
    `epoch`: an id of the history, which changes when earlier offsets become invalid.
    """

    expires: int = 0
    offset: int = 0
    epoch: str = ""
    mqtt: MqttFields | None = None


def qos_of(message: Message) -> int:
    """Returns the quality of service of a message: 1 for an event of the API, which the broker confirms, 0 for a client event."""
    fields = message.mqtt
    return fields.qos if fields is not None else int(message.sender == API)


class Published(msgspec.Struct, frozen=True, gc=False):
    """The result of publishing a message. The broker has accepted it, and delivers it to all running workers with subscribers.

    `count`: the number of the channel's subscribers on all workers, as `Broker.publish` describes.
    `offset`, `epoch`: the message's position in its channel's history (`KeptMessage`); 0 and "" if the message is not kept.
    `repeats`: if the publisher has published with the same idempotency key before, the id of the first message; else 0. Then the
    other fields are those of the first result, and the broker has delivered nothing.
    `logs`: the number of logs that keep the message for absent MQTT clients.
    `filters`: the number of workers with filters that match the channel; 0 if `count` includes the subscribers of filters.
    """

    count: int
    offset: int = 0
    epoch: str = ""
    repeats: int = 0
    logs: int = 0
    filters: int = 0


class Options(msgspec.Struct, frozen=True, gc=False):
    """The receivers of an event (Push1st API, section 3).

    `ttl`: the time to live in seconds. Hooks receive this time, and the history does not replay the event later than this time.
    """

    ttl: float = 0
    delivery: DeliveryMode = "broadcast"
    session: str = ""

    def error(self) -> str | None:
        """Returns why the options are not valid; None if the options are valid."""
        if self.ttl < 0:
            return "options.ttl is negative"
        if self.delivery != "broadcast" and not self.session:
            return f"options.session is missing, {self.delivery} needs it"
        return None

    def with_socket_id(self, socket_id: str) -> "tuple[str, Options]":
        """Combines the options with the field `socket_id` of an API call; returns a value for `Message.exclude` and new options.

        A broadcast excludes both `socket_id` and `session`. Any other delivery goes to `session`, and excludes `socket_id`.
        If `session` is empty, the delivery goes to `socket_id` instead, and excludes no connection.

        `socket_id`: "" if the call has no such field.
        """
        if self.delivery == "broadcast":
            return (socket_id, self) if socket_id else (self.session, Options(self.ttl))
        return (socket_id, self) if self.session else ("", Options(self.ttl, self.delivery, socket_id))


DEFAULT_OPTIONS = Options()


class SignedInUser(msgspec.Struct, frozen=True, gc=False):
    """The user that has signed in on a connection.

    `info`: the user's info as JSON text.
    `watchlist`: the ids of the users whose online status the client watches.
    """

    id: str
    info: bytes = b"null"
    watchlist: tuple[str, ...] = ()


class Member(msgspec.Struct, frozen=True, gc=False):
    """A user on a presence channel. `info`: the user's info as JSON text; `null` if the user has no info."""

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
    """Returns the event that notifies a user's watchers that the user is now online or offline (Pusher protocol, section 5)."""
    data = msgspec.json.encode({"events": [{"name": "online" if online else "offline", "user_ids": [user_id]}]})
    return Message(app, watch_topic(user_id), WATCHLIST_EVENTS, data, id, received, exclude=exclude)


def subscription_count(app: str, channel: str, count: int, id: int, received: int) -> Message:
    """Returns the event that notifies a channel's subscribers of the number of subscribers."""
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
"""maps each hook event for an arrival (an entering edge) to the opposite hook event, for a departure (a leaving edge)"""
HOLD_SECONDS = 3.0
"""the seconds for which a leaving edge is held; an opposite edge in this time cancels it (Pusher protocol, section 9)"""


class HookEvent(msgspec.Struct, frozen=True, gc=False):
    """An event that hooks receive. The broker reports each hook event once, and a channel's hook events in order.

    `at`: the time of the event, on the wall clock in nanoseconds.
    `socket_id`: the id of the connection that caused the event, or "".
    `user_id`, `user_info`: the id and the info of the member; the info is JSON text.
    `event`, `data`: the name and the data of a client event; the data is JSON text.
    `count`: the number of the channel's subscriptions, in an event of the kind `counted`.
    `id`, `delivery`, `given`: the fields of a client event, as in `Message` and `Publish`.
    `expires`: when a client event expires, in seconds since 1970; 0 if it does not expire.
    `phase`: the state of an entering or leaving edge (`ENTERING`). If the phase is `new`, the broker does not debounce edges, so
    the dispatcher debounces the edge (`hooks/debounce.py`). A broker that debounces edges reports an edge as `at-once` for hooks
    that request every edge, and as `settled` for other hooks. When the last process of the cluster stops, it gets
    the edges that the broker still holds, with the phase `held`. The process saves them, and reports them after its next start.
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


# Topics of users. Clients cannot subscribe to topics that begin with `#`, except to `#server-to-user-ID` of their own user.


def user_channel(user_id: str) -> str:
    """Returns the channel on which a backend sends events to a signed-in user (Pusher protocol, section 5)."""
    return f"#server-to-user-{user_id}"


def watch_topic(user_id: str) -> str:
    """Returns the topic for events about changes of a user's online status."""
    return f"#watch-{user_id}"


def session_topic(user_id: str) -> str:
    """Returns the topic for commands to all connections of a user."""
    return f"#user-{user_id}"


class ClientRequest(msgspec.Struct, frozen=True, gc=False):
    """The query and the headers of a client's handshake, which the server sends to the app's backend.

    `query`: the query of the URL.
    `origin`, `cookie`, `authorization`, `user_agent` (only for the console): the values of these headers; None without one.
    """

    query: str = ""
    origin: str | None = None
    cookie: str | None = None
    authorization: str | None = None
    user_agent: str | None = None

    @property
    def user(self) -> SignedInUser | None:
        """The user that the client has proved to be before the backend decides; None without such a proof."""
        return None


# Commands of clients.


class Subscribe(msgspec.Struct, frozen=True, gc=False):
    """A client subscribes to a channel.

    `since`: the position after which the client needs all messages of the channel; None if the client gave no valid position.
    `rewind`, `rewind_seconds`: the number and the maximum age of the latest messages that the client requests (`ReplayRequest`).
    """

    channel: str
    auth: str = ""
    channel_data: str = ""
    since: Position | None = None
    rewind: int = 0
    rewind_seconds: int = 0


class Unsubscribe(msgspec.Struct, frozen=True, gc=False):
    channel: str


class Publish(msgspec.Struct, frozen=True, gc=False):
    """A client publishes an event.

    `data`: the event's data as JSON text.
    `ttl`: the time to live in seconds.
    `headers`: a JSON object as text, or b"".
    `given`: for hooks, the fields `headers`, `options` and `extra` of the client's frame, as JSON text, with a comma before each.
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
    """The client is subscribed. `members`: all members of a presence channel, including this client's user; otherwise None."""

    channel: str
    members: tuple[Member, ...] | None = None


class Resumed(msgspec.Struct, frozen=True, gc=False):
    """Whether a new subscriber has received all messages of a channel since its earlier position.

    `reason`: why messages may be missing, such as `trimmed`; None if the subscriber gets all of them.
    `replayed`: the number of earlier messages that follow this reply.
    `repeats`: whether the client may have received some of these messages before.
    `position`: the position of the channel, after which the live messages follow; None if the channel keeps no history.
    `skipped`: the number of earlier messages that are not replayed because their `ttl` is over, or they exclude the client.
    """

    channel: str
    reason: str | None
    replayed: int = 0
    repeats: bool = False
    position: Position | None = None
    skipped: int = 0


def resumed_data(reply: Resumed) -> bytes:
    """Returns the data of the event that notifies a client of a `Resumed`, as JSON text."""
    if reply.reason is None:
        found: dict[str, object] = {"recovered": True, "replayed": reply.replayed, "repeats": reply.repeats}
    else:
        found = {"recovered": False, "reason": reply.reason}
        if reply.replayed:
            found["replayed"] = reply.replayed
    if reply.position is not None:
        found["position"] = str(reply.position)
    return msgspec.json.encode(found)


def gap(app: str, channel: str, reason: str, position: Position, id: int, received: int) -> KeptMessage:
    """Returns the event that notifies all subscribers of a channel that they may have missed messages before `position`."""
    data = resumed_data(Resumed(channel, reason, position=position))
    return KeptMessage(app, channel, RESUMED, data, id, received, offset=position.offset, epoch=position.epoch)


class SubscriptionRefused(msgspec.Struct, frozen=True, gc=False):
    """The subscription is rejected.

    `kind`: the error type that the client receives, such as AuthError.
    `status`: an HTTP status.
    """

    channel: str
    kind: str
    text: str
    status: int


class SignedIn(msgspec.Struct, frozen=True, gc=False):
    """The user is signed in. `user_data`: the JSON that the backend signed, but with the user's id as a JSON string."""

    user_data: str


class WatchlistStatus(msgspec.Struct, frozen=True, gc=False):
    """The users of a watchlist that are online, and those that are offline, at the time of the sign-in."""

    online: tuple[str, ...]
    offline: tuple[str, ...]


class Replayed(msgspec.Struct, frozen=True, gc=False):
    """The last event of a cache channel, for a new subscriber. `now`: the current time on the wall clock, in nanoseconds."""

    message: Message
    now: int


class CacheMissed(msgspec.Struct, frozen=True, gc=False):
    channel: str


class Failure(msgspec.Struct, frozen=True, gc=False):
    """A command is rejected. The connection stays open.

    `code`: an HTTP status, which a codec may translate, or a Pusher code from 4300 on; None: the error has no code.
    `channel`: the channel of the command; "" if the command has no channel.
    """

    code: int | None
    text: str
    channel: str = ""


class Ending(msgspec.Struct, frozen=True, gc=False):
    """The server closes the connection after this reply, with the WebSocket close code `code`."""

    code: int
    reason: str


Reply = (
    Established
    | Subscribed
    | Resumed
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


class Request(msgspec.Struct, frozen=True, gc=False):
    """An HTTP request for the API.

    `path`, `query`: the path and the query in the request line.
    `distrust`: the reason why the request must be signed; "" if the API accepts the request unsigned (Push1st API, section 6).
    `started`: when the first byte of the request arrived, in nanoseconds on the performance counter.
    `idempotency_key`: the value of the header `Idempotency-Key`; None if the request does not have this header.
    `headers`: the needed headers (`protocols.http`), with lower-case names; None for remembered headers and on `server.listen`.
    """

    method: str
    path: str
    query: str
    body: bytes
    distrust: str
    started: int
    idempotency_key: bytes | None = None
    headers: Mapping[bytes, bytes] | None = None


class Response(msgspec.Struct, frozen=True, gc=False):
    """An HTTP response. `headers`: complete header lines, each with its CRLF."""

    status: int
    body: bytes
    content_type: bytes = b"application/json; charset=utf-8"
    headers: bytes = b""
