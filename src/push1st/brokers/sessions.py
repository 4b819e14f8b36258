"""The ports for the sessions of MQTT clients, and for the messages of absent clients. Pure.

A *session* outlives its connections. While a client is connected, its worker has the session. When the connection ends, the
worker saves the session in the broker; the session is then *absent*. A session ends `SavedSession.expiry` seconds later.

Each new connection of a client claims the session, and gets a *generation*. The broker ignores calls with an earlier generation,
so a worker that has lost a client to another worker changes nothing.

A shared broker also has copies of the sessions of connected clients (`Sessions.shared`). If a worker dies, its sessions become
absent, and other workers continue them from the copies. A copy may lack the changes of the last `STORE_SECONDS`.

A *log* contains the messages of one filter for all absent sessions that watch the filter. A session watches the filters of its
subscriptions with QoS 1 and 2. The broker appends a message to its logs in the step that publishes the message. A log contains
messages that some of its readers may not read: the reader checks its rights, and `Message.exclude`. A log may have several parts,
whose messages have positions of their own.

A filter has the form of a channel's name: its levels are separated by dots. The members of a shared group have one log, whose
filter is `$share/GROUP/FILTER`. The first member that returns, and may read a message, takes the message out of this log.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Literal, Protocol, TypeAlias

import msgspec

from push1st.messages import Message, MqttMessage
from push1st.positions import Position

Cursor: TypeAlias = tuple[Position, ...]
"""a position in each part of a log"""

SHARE = "$share/"
STORE_SECONDS = 0.25
"""the seconds between two copies of the progress of connected clients (`Sessions.store_progress`)"""
RETURN_SECONDS = 3
"""the minimum seconds between the end of a worker and the publication of the wills of its clients, which may return meanwhile"""
DUE_CONFIRM_SECONDS = 10
"""the seconds after which a due session is given to another worker if its worker has not called `Sessions.confirm`"""
MAX_ABSENT = 100_000
"""the maximum number of absent sessions of an app; its anonymous clients have 1 / `retained.ANONYMOUS_PART` of this number"""
MAX_ADDRESS_ABSENT = 100
"""the maximum number of absent sessions of the anonymous clients at one address"""
MAX_LOGS_OF_MESSAGE = 64
"""the maximum number of logs to which one message is appended"""
MAX_LOG_BYTES = 16 << 20
"""the maximum number of bytes of a log; above this number, the broker drops the oldest messages of the log"""
MAX_APP_BYTES = 256 << 20
"""the maximum number of bytes of an app's logs; above this number, the broker drops the oldest messages of the app's logs. The
subscriptions, wills and messages of the app's absent sessions have a bound of the same size."""
MAX_LISTED_FILTERS = 50
"""the maximum number of filters of a session in a list"""
MIN_LOG_MESSAGES = 10_000
LOG_QUEUES = 10
"""a log has at most `LOG_QUEUES` times the messages that may wait for one client, but `MIN_LOG_MESSAGES` or more"""


class Owner(msgspec.Struct, frozen=True, gc=False):
    """The owner of a client id: only clients with an equal owner may use the session of the client id.

    kind: the proof that determines the owner. An anonymous client has proved no identity.
    name: the id of the user, the hash of the channels in a token without a user, or the name that the backend has accepted.
    """

    kind: Literal["user", "token", "name", "anonymous"]
    name: str = ""

    def may_end(self, other: "Owner") -> bool:
        """Whether a client of this owner may use a client id of the other owner. The session of a different owner then ends.

        Otherwise an anonymous client could lock out a device by using the client id of the device.
        """
        return other == self or other.kind == "anonymous"


class SavedMessage(msgspec.Struct, frozen=True, gc=False):
    """A message that the client has not acknowledged.

    qos: the quality of service of the delivery.
    retain: whether the client receives the message with RETAIN.
    subscription_ids: the Subscription Identifiers of the subscriptions that match the message.
    group: the shared filter through which the client gets the message, as in `SavedSubscription.filter`; "" for a message of
    other subscriptions.
    """

    message: MqttMessage
    qos: int
    retain: bool = False
    subscription_ids: tuple[int, ...] = ()
    group: str = ""


class SavedFlow(msgspec.Struct, frozen=True, gc=False):
    """The deliveries of a session. The fields are those of `protocols.mqtt.flow.FlowState`."""

    next_id: int = 1
    inflight: tuple[tuple[int, SavedMessage | None], ...] = ()
    waiting: tuple[SavedMessage, ...] = ()
    received: tuple[tuple[int, int], ...] = ()

    @property
    def returned(self) -> tuple[SavedMessage, ...]:
        """The messages that other members of their groups get if the session ends. A message with QoS 2 whose delivery has begun
        ends with the session [MQTT-4.8.2-5].
        """
        inflight = [one for _, one in self.inflight if one is not None and one.qos == 1]
        return tuple([one for one in (*inflight, *self.waiting) if one.group])


class SavedSubscription(msgspec.Struct, frozen=True, gc=False):
    """A subscription of a session.

    filter: the filter, as the module describes.
    qos: the granted quality of service. With QoS 0, no message is kept for the absent session.
    subscription_id: the Subscription Identifier; 0 without one.
    wants_retained: whether the client has not received all retained messages of the filter yet.
    cursor: the positions up to which the session has received the messages of the filter's log. None stands for all messages up
    to the call of `save`. The broker then replaces None, unless `qos` is 0 or the filter is shared.
    """

    filter: str
    qos: int = 0
    no_local: bool = False
    retain_as_published: bool = False
    subscription_id: int = 0
    cursor: Cursor | None = None
    wants_retained: bool = False

    @property
    def is_logged(self) -> bool:
        """Whether messages are kept for the absent session."""
        return self.qos > 0


class SavedWill(msgspec.Struct, frozen=True, gc=False):
    """The will of a session. The first fields are those of `protocols.mqtt.packets.Will`.

    delay: the seconds between the end of the connection and the publication. The will is also due when the session ends.
    patterns: the channel patterns of the access token with which the client has connected; None without a token.
    socket_id, ip: the id of the connection's session, and the address of the client.
    """

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    delay: int = 0
    properties: bytes = b""
    expiry: int | None = None
    event: str | None = None
    patterns: tuple[str, ...] | None = None
    socket_id: str = ""
    ip: str = ""


class SavedSession(msgspec.Struct, frozen=True, gc=False):
    """The state of a session, from which any worker continues the session.

    expiry: the seconds for which the absent session waits for its client (Session Expiry Interval).
    will: the will that is not published yet; None without one. The broker does not publish the will: see `Sessions.due`.
    """

    expiry: int
    subscriptions: tuple[SavedSubscription, ...] = ()
    flow: SavedFlow = SavedFlow()
    will: SavedWill | None = None

    @property
    def watched(self) -> tuple[str, ...]:
        """The filters whose logs keep messages for the session."""
        return tuple([one.filter for one in self.subscriptions if one.is_logged])


class SavedProgress(msgspec.Struct, frozen=True, gc=False):
    """The part of a connected session that changes with its messages.

    cursors: the cursors of the logged subscriptions, by filter.
    flow: the deliveries without messages: the packet ids of the messages with QoS 2 that are in flight, each with None.
    has_saved: whether messages of the last call of `save` may be unacknowledged. If not, the broker drops these messages.
    """

    cursors: dict[str, Cursor]
    flow: SavedFlow = SavedFlow()
    has_saved: bool = False


class Progress(msgspec.Struct, frozen=True, gc=False):
    """The progress of a connection. generation: the generation of its claim."""

    app: str
    client_id: str
    generation: int
    saved: SavedProgress


class Claim(msgspec.Struct, frozen=True, gc=False):
    """A new connection of a client.

    address: the address or network of an anonymous client; "" if the bound for addresses does not apply.
    clean: whether an absent session ends instead of being resumed (Clean Start).
    expiry: the seconds for which the session outlives the connection; 0: the session ends with the connection.
    will: the will of the connection, which is due if the worker dies; None without one.
    """

    owner: Owner
    address: str = ""
    clean: bool = False
    expiry: int = 0
    will: SavedWill | None = None


class DueSession(msgspec.Struct, frozen=True, gc=False):
    """An absent session whose will is due, or which has ended.

    will: the will to publish; None if no will is due.
    ended: whether the session has ended.
    is_early: whether the session has ended before its expiry, because the absent sessions exceeded a bound.
    generation: the generation of the session's last connection.
    returned: the messages of the session that other members of their groups get.
    watched: the filters of the ended session that are still in logs; `Sessions.confirm` removes them.
    """

    app: str
    client_id: str
    owner: Owner
    will: SavedWill | None
    ended: bool
    is_early: bool = False
    generation: int = 0
    returned: tuple[SavedMessage, ...] = ()
    watched: tuple[str, ...] = ()


class Claimed(msgspec.Struct, frozen=True, gc=False):
    """The result of `Sessions.claim`.

    generation: a number that is greater than those of all earlier connections of the client.
    session: the absent session that the connection resumes; None if the connection begins a new session. The claim cancels the
    session's will. If the connection ends before CONNACK, it saves the session again, with the will.
    crashed: whether the state of the session is older than the end of its last connection.
    ended: the session that the claim has ended, with its will; None if there was no such session. The caller confirms it as it
    confirms those of `Sessions.due`.
    """

    generation: int
    session: SavedSession | None = None
    crashed: bool = False
    ended: DueSession | None = None


class LogPage(msgspec.Struct, frozen=True, gc=False):
    """A part of a log.

    messages: messages with QoS 1 and 2, the oldest first. Some messages may have expired.
    before: the positions with which the reader requests the messages before this part; None if there are no such messages.
    trimmed: whether the log has dropped messages after the reader's cursor.
    """

    messages: tuple[Message, ...] = ()
    before: Cursor | None = None
    trimmed: bool = False


NO_MESSAGES = LogPage()


class AbsentSession(msgspec.Struct, frozen=True, gc=False):
    """The session of an absent MQTT client.

    since, until: when it became absent, and when it ends, in seconds since 1970.
    expiry: the seconds for which the absent session waits for its client.
    filters: at most `MAX_LISTED_FILTERS` filters in the form of a channel's name, each with its quality of service.
    count: the number of filters; None if the session has too many to read them for a list.
    waiting: the number of messages in the session, without the messages in the logs of its filters.
    """

    client_id: str
    owner: Owner
    since: float
    until: float
    expiry: int
    filters: tuple[tuple[str, int], ...]
    count: int | None
    waiting: int


class AbsentPage(msgspec.Struct, frozen=True, gc=False):
    """Sessions. next: the cursor of the next page; "" after the last one. examined: the number of examined sessions."""

    sessions: tuple[AbsentSession, ...]
    next: str
    examined: int


class Sessions(Protocol):
    """The sessions of MQTT clients with an expiry, for all workers together. A client is a pair of an app's id and a client id.

    A connection claims its session, and restores the subscriptions. The connection unwatches the filters that it may not use any
    more, subscribes to the others, and then reads their logs. Then it calls `attach`, after which the logs keep nothing for the
    session. A message may arrive twice with the same id: live and from a log. A connection that ends before `attach` saves the
    subscriptions with the cursors of the claimed session. A connection that ends after `attach` saves the subscriptions with the
    cursor None.

    shared: whether several workers use the sessions. Then the broker needs copies of the sessions of connected clients.
    on_taken_over: a function that takes an app's id, a client id and a generation. It ends the client's connection on this worker
    if the connection has this generation or an earlier one, and returns when the session is saved. The broker calls the function
    when another worker claims the session, and when the broker has ignored a call because of an earlier generation.
    copy_of: a function that takes an app's id, a client id and a generation. It returns a copy of the session if this worker has
    the connection with this generation. The broker calls the function after it has lost its state.
    """

    shared: bool
    on_taken_over: Callable[[str, str, int], Awaitable[None]]
    copy_of: Callable[[str, str, int], SavedSession | None]

    def __len__(self) -> int:
        """The number of absent sessions, as far as this worker knows; the method does not wait for the broker."""

    @property
    def logs(self) -> "Logs": ...

    async def claim(self, app: str, client_id: str, claim: Claim) -> Claimed:
        """Gives the client id and its session to a new connection.

        With a shared broker, the worker of an earlier connection closes this connection and saves the session before the method
        returns. If both connections are on one worker, the caller closes the earlier connection before the call.

        An identified client resumes no session of an anonymous client: this session ends.

        Raises Refused(403) if the client id has a session of another owner, and Refused(503) if the broker is unreachable. Raises
        LimitReached if a new session would exceed a bound for absent sessions.
        """

    async def attach(self, app: str, client_id: str, generation: int) -> bool:
        """Completes the resumption of a session: all later messages of its filters arrive live. Returns whether the generation is
        valid."""

    async def store(self, app: str, client_id: str, generation: int, session: SavedSession) -> bool:
        """Stores a copy of the session of a connected client. Returns as `save`. Does nothing if `shared` is false."""

    def store_progress(self, changed: Sequence[Progress]) -> None:
        """Stores the progress of connected clients, in addition to their copies. Does nothing if `shared` is false.

        The method does not wait. Progress that the broker does not store, because it is unreachable, is replaced by the next one.
        """

    async def save(self, app: str, client_id: str, generation: int, session: SavedSession, will: SavedWill | None = None) -> int:
        """Stores the session of a connection that ends. From this step on, the logs of its filters keep messages for the session.

        The expiry may be 0 if the worker stops and the session has a will: the will is due later, unless the client returns.

        will: the will that the caller publishes now, and then confirms (`confirm`) with the result of this method as generation.
        Otherwise the will of a shared broker is due later.

        Returns the generation; 0 if it is not valid: a later connection has the client id, and nothing is stored.
        """

    async def end(
        self, app: str, client_id: str, generation: int, filters: Collection[str], will: SavedWill | None = None
    ) -> int:
        """Ends the session of a connection that ends. Returns as `save`, with the same `will`.

        filters: the filters that the session watches. They are removed now, or by `confirm` if there is a will.

        If the connection has not called `attach`, `due` returns the messages of the session's groups.
        """

    async def due(self, now: int) -> list[DueSession]:
        """Returns the sessions that have ended since the last call, and the wills that are due. Called once a second.

        Each session and each will is returned on one worker of the cluster. If this worker does not confirm it, it is returned
        again, on any worker. A session that `claim` has returned is due if it is not confirmed. A session may be returned without
        a will, because of the messages of its groups. A call returns some thousand sessions at most, and fewer sessions with many
        subscriptions or messages of groups.

        now: the wall clock in nanoseconds. A shared broker uses its own clock instead. When a worker with the only copy of the
        sessions stops, the worker passes a distant time, and repeats the call until nothing is due.
        """

    async def absent(self, app: str, prefix: str, after: str, most: int) -> AbsentPage:
        """Returns absent sessions whose client ids begin with `prefix`, at most `most`.

        after: the cursor of an earlier page; "": from the beginning. A page examines a bounded number of sessions, so it may be
        empty although its cursor is not. Raises ValueError if `after` is not a cursor, and Refused(503).
        """

    async def confirm(self, due: Collection[DueSession]) -> None:
        """Confirms sessions that `due` or `claim` has returned: their wills are published, or rejected.

        Does not raise: a broker that is away gets the confirmation later.
        """


class Logs(Protocol):
    """The logs of the filters of sessions, for all workers together.

    gaps: the number of times at which this worker lost the broker, and so perhaps live messages that are in logs.
    on_recovering: a function that is called after such a time, before the first later message arrives. It takes a function that
    takes an app and a channel, and returns whether earlier messages of the channel may be lost, until `on_recovered` is called.
    on_recovered: a function that is called when all later messages arrive. It takes whether the logs may have the lost ones.
    is_served: a function that takes a message and a matching shared filter. It returns whether a connected member of the group
    may receive the message. If so, the message is not appended to the log of the group.
    """

    gaps: int
    on_recovering: Callable[[Callable[[str, str], bool]], None]
    on_recovered: Callable[[bool], None]
    is_served: Callable[[Message, str], bool]

    async def watch(
        self, app: str, client_id: str, generation: int, filter: str, is_anonymous: bool, is_known: bool = False
    ) -> Cursor | None:
        """Adds a filter to a session, which calls the method once for each subscription with QoS 1 or 2.

        Returns the end of the log in the step that adds the filter; None if the log keeps nothing while the client is connected.

        is_anonymous: whether the session belongs to an anonymous client.
        is_known: whether an earlier connection of the session has added the filter. Then the bounds are not checked.

        Raises LimitReached if a message could then be in more than `MAX_LOGS_OF_MESSAGE` logs, or if the filters have too many
        levels. The filters of anonymous clients count separately, with 1 / `retained.ANONYMOUS_PART` of both bounds.
        """

    async def unwatch(self, app: str, client_id: str, generation: int, filter: str, is_anonymous: bool) -> None:
        """Removes a filter that `watch` has added with the same `is_anonymous`.

        Does nothing if a later connection of the client has added the filter.
        """

    async def read(self, app: str, filter: str, cursor: Cursor, limit: int, before: Cursor | None = None) -> LogPage:
        """Returns the last messages of a log, at most `limit`, that are after a cursor.

        before: the positions before which the messages end (`LogPage.before`); None: they end with the last message of the log.
        """

    async def ends(self, filters: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], Cursor]:
        """Returns the ends of logs, by the id of the app and the filter; without logs that do not exist. Raises Refused(503).

        All messages up to these ends that were sent to this worker have arrived. Only for a shared broker.
        """

    async def read_shared(self, app: str, filter: str, after: int, limit: int) -> tuple[tuple[int, Message], ...]:
        """Returns the oldest messages in the log of a shared group, at most `limit`: pairs of an offset and a message.

        after: the offset after which the messages begin; 0: they begin with the oldest message.
        """

    async def take(self, app: str, client_id: str, generation: int, filter: str, offsets: Collection[int]) -> Collection[int]:
        """Removes messages from the log of a shared group. Only the member that has removed a message delivers the message.

        Returns the offsets of the messages that this call has removed; none if the generation is not valid.
        """

    async def give_back(self, app: str, filter: str, messages: Sequence[Message]) -> None:
        """Appends messages to the log of a shared group: the last connected member has left before it received the messages.

        Does nothing if no session of the group is absent. If several workers have members, they get the messages instead.
        Raises Refused(503).
        """


def storable(message: Message) -> MqttMessage:
    """Returns a message in the form that `SavedMessage` needs, without its position in the history."""
    if type(message) is MqttMessage:
        return message
    fields = (*msgspec.structs.astuple(message)[: len(Message.__struct_fields__)], message.mqtt)
    return MqttMessage(*fields)


decode_session = msgspec.msgpack.Decoder(SavedSession).decode
encode_session = msgspec.msgpack.Encoder().encode


async def ignore_takeover(app: str, client_id: str, generation: int) -> None:
    """The value of `Sessions.on_taken_over` before the clients of the worker set a function."""


def no_copy(_app: str, _client_id: str, _generation: int) -> SavedSession | None:
    """The value of `Sessions.copy_of` before the clients of the worker set a function."""
    return None
