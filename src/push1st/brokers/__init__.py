"""The ports (interfaces for messages and state that workers and machines share), and the registry of their implementations.

A `Broker` carries messages, and caches the newest event of each cache channel. A `Roster` contains the subscriptions and members
of channels, `Users` the signed-in users, and `Quotas` the numbers of connections. `HookEvents` takes events for hooks. A new
implementation needs a module in this package, a line in `BROKERS`, and a line in `tests/contract`.

Most methods are `async`, because most implementations wait for a network.
`publish` is called for every message. To save time, it returns an awaitable only if the implementation must wait.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple, Protocol

import msgspec

from push1st.brokers.history import HistoryPage, Replay, ReplayRequest
from push1st.brokers.pages import PageBounds, PageRecord
from push1st.brokers.retained import Retain, Retained
from push1st.brokers.sessions import Sessions
from push1st.channels import kind_of
from push1st.config.history import HistorySection
from push1st.eager import MaybeAwaitable
from push1st.messages import API, INTERNAL, HookEvent, Member, Message, Published
from push1st.positions import Position

BROKERS = {"memory": "push1st.brokers.memory:Memory", "redis": "push1st.brokers.redis:Redis"}

CACHE_TTL_SECONDS = 1800
"""the seconds for which the newest event of a cache channel is cached (Pusher protocol, section 8)"""
KEY_SECONDS = 300
"""the seconds for which the broker keeps the result of a publish with an idempotency key"""
REQUEST_SECONDS = 0.5
"""the seconds for which `Broker.request` waits for replies"""


def is_cached(message: Message) -> bool:
    """Returns whether the broker caches a message: an event from the API to all subscribers of a cache channel."""
    return (
        message.sender == API
        and message.delivery == "broadcast"
        and not message.event.startswith(INTERNAL)
        and kind_of(message.channel).cache
    )


Receive = Callable[[Message], int]
"""a function that delivers a message to the subscribers on this worker and returns their number"""
GroupEntry = int
"""the number of a message that a group has given to this worker; 0 for a message that is lost with the worker"""
ReceiveOfGroup = Callable[[str, GroupEntry, Message], bool]
"""a function that takes the name of a group, the number of a message, and the message. It returns whether a client on this worker
receives the message as a member of the group."""
OnEvent = Callable[[HookEvent], None]
"""a function that takes a hook event"""
OnRequest = Callable[[str, str, bytes], bytes]
"""a function that takes an app's id, a channel and a request, and returns this worker's reply"""
Recount = Callable[[str, str], None]
"""a function that takes an app's id and a channel, and queues the channel's subscription count for publishing"""


ALL_WORKERS = "#filters"
"""the channel, of the app "", on which `Broker.request` sends a request to all workers. Redis also sends the changes of filters
on this topic."""


class CachedEvent(msgspec.Struct, frozen=True, gc=False):
    """The newest event of a cache channel. `ttl` is the number of seconds for which the event stays cached."""

    message: Message
    ttl: int


class Peers(NamedTuple):
    """The other nodes of this node's broker.

    nodes: the names of the other living nodes.
    away: why this node may not publish now; "" if it may.
    queued: the number of bytes that wait until a slow broker reads them; with several servers, for the slowest one.
    """

    nodes: Collection[str] = ()
    away: str = ""
    queued: int = 0


class Broker(Protocol):
    """Carries messages between workers. A topic is the pair of an app's id and a channel's name.

    For each cache channel, the newest event from the API is cached for 30 minutes (Pusher protocol, section 3).
    An event is published and cached in one step.
    """

    @property
    def shared(self) -> bool:
        """Returns whether other workers may use the same broker."""

    @property
    def history(self) -> "History": ...

    @property
    def pages(self) -> "Pages": ...

    @property
    def channel_lists(self) -> "ChannelLists": ...

    @property
    def filters(self) -> "NodeFilters | None":
        """Returns the filters of this worker; None if no other worker publishes, so that filters need no registration."""

    @property
    def groups(self) -> "NodeGroups | None":
        """Returns the groups of this worker; None if no other worker has members of a group."""

    @property
    def retained(self) -> Retained: ...

    @property
    def sessions(self) -> Sessions | None:
        """Returns the sessions of MQTT clients; None if the broker keeps no sessions."""

    async def open(self, receive: Receive, on_event: OnEvent, on_request: OnRequest, recount: Recount) -> None:
        """Connects to the broker, which then passes all messages of the subscribed topics to `receive`, in order.

        on_event: a function that takes hook events. Each event goes to only one worker; events of one channel arrive in order.
        on_request: a function that replies to the requests of other workers about topics to which this worker is subscribed.
        recount: a function that the broker calls for each channel whose count may have changed. The reason is the eviction of a
        dead node, or a repeated registration of this worker's subscriptions.
        """

    async def close(self) -> None:
        """Sends all queued messages, then disconnects."""

    def peers(self) -> Peers:
        """Returns the other living nodes, according to the last renewal of this node's lease, and why the broker is away."""

    async def subscribe(self, app: str, channel: str) -> None:
        """Subscribes this worker to a topic; returns when the broker has confirmed the subscription."""

    async def unsubscribe(self, app: str, channel: str) -> None: ...

    def publish(
        self, message: Message, section: HistorySection | None = None, key: str = "", retain: Retain | None = None
    ) -> MaybeAwaitable[Published]:
        """Sends a message to all workers, including this worker. The result contains the number of subscriptions to the topic.

        The number of subscriptions may include the excluded connection (`message.exclude`). The number includes all subscribers
        even if the message is for some connections only. `Controller.reach` returns the exact number of receivers.

        Messages of the same turn of the event loop are sent in the order of the calls. Raises Refused(503, …) if the broker is
        unreachable or does not confirm within 2 s; some subscribers may have received the message nevertheless.

        section: the settings of the channel's history if the broker keeps the message, else None. Then the message is a
        `KeptMessage`, and the broker publishes it, keeps it, and gives it the channel's next offset in one step.
        key: an idempotency key, or "". If a message with the same key was published on the channel in the last `KEY_SECONDS`, the
        broker does nothing, and returns the first result (`Published.repeats`).
        retain: the publisher, if the message becomes the retained message of its channel in the same step; else None. A message
        without data removes the retained message instead. Raises LimitReached if a bound would be exceeded.
        """

    async def cached(self, app: str, channel: str) -> CachedEvent | None:
        """Returns the cached event of a cache channel."""

    async def request(self, app: str, channel: str, request: bytes) -> Sequence[bytes]:
        """Returns the replies of the workers that are subscribed to a topic and reply within `REQUEST_SECONDS`."""


class History(Protocol):
    """The kept messages of the channels of apps with a history."""

    async def read(self, app: str, channel: str, since: Position | None, limit: int, reverse: bool) -> HistoryPage:
        """Returns up to `limit` kept messages of a channel.

        since: the position after which the messages begin, or, if `reverse` is true, before which they end. If `since` is None
        or belongs to another epoch, the messages begin with the oldest, or, in reverse, with the latest. If the message after
        `since` is not kept any more, the messages begin with the oldest; in reverse, there are none.
        """

    async def clear(self, app: str, channel: str) -> None:
        """Drops a channel's history. The next message begins a new epoch."""

    def tick(self) -> None:
        """Drops some of the expired messages. Called once a second."""


ALL_CHANNELS, PUBLIC_CHANNELS = 1, 2
"""the values of a filter of a worker. With `PUBLIC_CHANNELS`, no subscriber of the filter may read channels that need rights, so
the other workers send no messages of these channels"""


class NodeFilters(Protocol):
    """The filters with wildcards of this worker, and its groups, which the other workers must know before they publish.

    The name of a filter is the filter itself, written as a channel name. The name of a group is `$share/GROUP/FILTER`.

    A publisher sends a message to the topic of its channel, and one copy to each worker with a matching filter. So a worker with
    a subscriber of the channel and a matching filter gets the message twice. It may also get more copies.

    receive: a function that delivers a copy to the subscribers of filters, unless they have the message; it returns their number.
    """

    receive: Receive

    @property
    def cost(self) -> int:
        """Returns the work of all searches for matching filters since the start: a search happens while `publish` is called."""

    def check_room(self, app: str, name: str, is_anonymous: bool) -> None:
        """Raises LimitReached if the app may not have the filter or group on all workers together."""

    def set(self, app: str, name: str, value: int) -> None:
        """Sets the value of a filter or group; 0 if this worker does not need it.

        The value of a filter is `ALL_CHANNELS` or `PUBLIC_CHANNELS`. The value of a group is the number of its members here.

        The method sends the value, and does not wait. The broker repeats a value that was lost with a connection.
        """

    async def confirmed(self, app: str, name: str) -> None:
        """Returns when each later message of a matching channel reaches this worker. Raises Refused(503)."""


class NodeGroups(Protocol):
    """The groups of shared filters with members on this worker, if other workers may have members of the same groups.

    The name of a group is `$share/GROUP/FILTER`. The broker gives each message with QoS 1 and 2 to one worker, which has the
    message until it calls `end` or `pass_on`. If the worker ends before, another worker gets the message.

    receive: see `ReceiveOfGroup`. If it returns false, the broker gives the message to another worker, or keeps it in the log of
    the group (`Logs.read_shared`).
    """

    receive: ReceiveOfGroup

    def check_room(self, app: str, name: str, is_anonymous: bool) -> None:
        """Raises LimitReached if the app may not have the group on all workers together."""

    def set_members(self, app: str, name: str, count: int, is_first: bool = False) -> None:
        """Sets the number of the members on this worker. is_first: whether the group is new on this worker."""

    async def confirmed(self, app: str, name: str) -> None:
        """Returns when the group, which is new on this worker, gets messages. Raises Refused(503)."""

    def has_others(self, app: str, name: str) -> bool:
        """Returns whether other workers have members of a group."""

    def end(self, entries: Iterable[GroupEntry]) -> None:
        """Ends messages: a client has acknowledged them, or they are dropped, or stored with a session."""

    def pass_on(self, entries: Iterable[GroupEntry]) -> None:
        """Gives messages to other workers, or keeps them in the logs of their groups: no client on this worker may get them."""


class Pages(Protocol):
    """The records of pages (`brokers/pages.py`), for all workers together."""

    async def remember(
        self, app: str, page: str, socket_id: str, record: PageRecord, bounds: PageBounds, merged: Collection[str] = ()
    ) -> bool:
        """Stores the record of a connection of a page, and returns whether the record is stored. Raises Refused(503).

        The record is not stored if `forget` has deleted the connection's record in the last `FORGOTTEN_SECONDS`, or if the page
        is new and would exceed a bound. The record of a closed connection is stored only if it replaces an earlier record.

        merged: earlier connections of the page, whose records are deleted in the same step if the record is stored.
        """

    async def recall(self, app: str, page: str) -> dict[str, PageRecord]:
        """Returns the records of a page by the ids of its connections. Raises Refused(503)."""

    async def forget(self, app: str, page: str, socket_ids: Collection[str]) -> None:
        """Deletes the records of connections of a page. These connections then store no record for `FORGOTTEN_SECONDS`.

        Raises Refused(503).
        """


class Occupancy(msgspec.Struct, frozen=True, gc=False):
    """The numbers of connections and users on a channel. `users` counts distinct users, on presence channels only."""

    channel: str
    subscriptions: int
    users: int = 0


AcceptsChannel = Callable[[str], bool]
"""a function that takes the name of a channel, and returns whether a page may contain this channel"""


class ChannelPage(msgspec.Struct, frozen=True, gc=False):
    """A page of channels. next: the cursor of the next page; "" after the last one. examined: the number of examined channels."""

    channels: tuple[Occupancy, ...]
    next: str
    examined: int


class ChannelLists(Protocol):
    """Reads parts of a roster that may be very long, for operators."""

    async def some(
        self, app: str, prefix: str, accepts: AcceptsChannel, after: str, most: int, has_users: bool = True
    ) -> ChannelPage:
        """Returns at most `most` occupied channels that begin with `prefix` and are accepted, in no particular order.

        A page examines about `MAX_EXAMINED` channels at most (`brokers/listing.py`), so it may have fewer channels, or none.
        A channel that is occupied during all pages is in one of the pages at least.

        after: the cursor of an earlier page; "": from the beginning. Raises ValueError if it is not a cursor, and Refused(503).
        has_users: whether the page has the numbers of users; otherwise they are 0.
        """

    async def some_members(self, app: str, channel: str, most: int) -> tuple[Member, ...]:
        """Returns at most `most` members of a presence channel. Raises Refused(503)."""


class Joined(msgspec.Struct, frozen=True, gc=False):
    """The state of a channel at the moment when a subscription was added.

    members: the members of a presence channel, including a new member; None for other channels.
    cached: the cached event of a cache channel.
    replay: the channel's position, and the messages that the subscriber receives before later messages; None if the subscriber
    made no `ReplayRequest`.
    """

    members: tuple[Member, ...] | None = None
    cached: CachedEvent | None = None
    replay: Replay | None = None


class Roster(Protocol):
    """The subscriptions and members of all channels, for all workers together.

    Each change of a roster is one atomic step. The step also publishes the edge that it causes (occupied, vacated, member-added
    or member-removed), and reports the edge as a hook event. If several workers share a roster, the broker holds back leaving
    edges (vacated, member-removed) from hooks that do not request every edge, because most clients return at once. The broker
    keeps the held-back edges, because a worker may stop before they are due. `HookEvent.phase` shows how an edge was debounced.
    """

    async def join(
        self, app: str, channel: str, socket_id: str, member: Member | None, limit: int, request: ReplayRequest | None = None
    ) -> Joined:
        """Adds a subscription to a topic. This worker must already be subscribed to the topic.

        The caller of `join` resumes before the broker delivers any message that the topic receives after the join. So a caller
        that adds the subscriber at once, before its next `await`, neither loses a message nor delivers a message twice.

        limit: the maximum number of members (0: unlimited). Raises LimitReached if a new member would exceed the limit.
        request: the part of the channel's history that the subscriber requests; None if the channel keeps no history.
        """

    async def leave(self, app: str, channel: str, socket_id: str, user_id: str | None) -> None:
        """Removes a subscription that `join` added. If the member is unknown, this method changes nothing."""

    async def channels(self, app: str, prefix: str = "") -> Sequence[Occupancy]:
        """Returns the occupied channels whose names begin with `prefix`, sorted by name."""

    async def channel(self, app: str, channel: str) -> Occupancy | None:
        """Returns the numbers of subscriptions and users of a channel; None if the channel has no subscription."""

    async def members(self, app: str, channel: str, *, local_view: bool = False) -> tuple[Member, ...]:
        """Returns the members of a presence channel.

        local_view: whether to return the members that were reported to this worker's clients; no effect without such clients.
        """

    async def claim(self, app: str, channel: str, seconds: int) -> bool:
        """Claims the right to publish a channel's count, for `seconds`. Returns False if any worker already has it."""


class Users(Protocol):
    """The signed-in users of all workers. An edge is the first connection of a user, or the end of the user's last connection."""

    async def sign_in(self, app: str, user_id: str, socket_id: str) -> None: ...

    async def sign_out(self, app: str, user_id: str, socket_id: str) -> None: ...

    async def online(self, app: str, user_ids: Sequence[str]) -> frozenset[str]:
        """Returns the users in `user_ids` that have a connection.

        If an edge of these users happens after this reply, the broker delivers the edge after the caller has resumed.
        """


class Quotas(Protocol):
    """The numbers of connections of apps, for all workers together. Connections are counted only if the app has a limit."""

    async def connect(self, app: str, limit: int) -> bool:
        """Counts a connection. Returns False, without counting, if the app already has `limit` connections."""

    async def disconnect(self, app: str) -> None:
        """Removes a connection from the count; `connect` must have counted the connection."""


class HookEvents(Protocol):
    """Passes hook events to the hooks. New edges of a roster need no call of `report`: the roster reports them itself."""

    def report(self, event: HookEvent) -> None:
        """Passes the hook event to `on_event`, once, on one worker of the cluster. This method never waits.

        An event has the phase `held` if it was still held back when an earlier process stopped, which saved the event. A shared
        broker holds back such an event again.
        """


class Purged(msgspec.Struct, frozen=True):
    """The result of a purge.

    in_use: the number of channels with subscribers, signed-in users and MQTT sessions with a connection. If it is not 0, only
    sessions of absent clients are deleted.
    sessions, retained, histories: the numbers of deleted sessions, retained messages and histories.
    """

    in_use: int
    sessions: int = 0
    retained: int = 0
    histories: int = 0


class Purge(Protocol):
    """Deletes the stored data of a removed app. The broker of a single worker has no purge: its data end with the process."""

    async def purge(self, app: str) -> Purged:
        """Deletes the sessions of MQTT clients, the retained messages, the cached events and the histories of an app."""
