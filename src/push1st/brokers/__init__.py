"""The ports between workers and machines, and the registry of their implementations.

`Broker` carries messages and caches the last event of each cache channel. `Roster` has the subscriptions and members of
channels, `Users` the signed-in users, `Quotas` the numbers of connections. `HookEvents` takes events for hooks. An implementation
is one module here, one line in `BROKERS`, and one line in `tests/contract`.

Most methods are `async`, because most implementations wait for a network.
`publish` is on the data road, so it returns an awaitable only if the implementation must wait.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from push1st.channels import kind_of
from push1st.eager import MaybeAwaitable
from push1st.messages import API, INTERNAL, HookEvent, KeptMessage, Member, Message, Published

BROKERS = {"memory": "push1st.brokers.memory:Memory", "redis": "push1st.brokers.redis:Redis"}

CACHE_TTL_SECONDS = 1800
"""time for which the last event of a cache channel is cached (Pusher protocol, section 8)"""
REQUEST_SECONDS = 0.5
"""time for which `Broker.request` waits for replies"""


def is_cached(message: Message) -> bool:
    """Returns whether the broker caches a message: an event from the API to all subscribers of a cache channel."""
    return (
        message.sender == API
        and message.delivery == "broadcast"
        and not message.event.startswith(INTERNAL)
        and kind_of(message.channel).cache
    )


Receive = Callable[[Message], int]
"""Delivers a message to the subscribers on this worker; returns their number."""
OnEvent = Callable[[HookEvent], None]
"""Takes an event for the hooks."""
OnRequest = Callable[[str, str, bytes], bytes]
"""Returns the reply of this worker to a request about an app's channel."""
Recount = Callable[[str, str], None]
"""Takes an app's channel whose subscription count must be published again, because no other worker publishes it."""


class CachedEvent(msgspec.Struct, frozen=True, gc=False):
    """The last event of a cache channel. ttl: seconds for which it stays cached."""

    message: Message
    ttl: int


class Broker(Protocol):
    """Messages between workers. A topic is an app's id and a channel's name.

    For each cache channel, the last event that the API published is cached for 30 minutes (Pusher protocol, section 3).
    Publishing and caching an event is one step.
    """

    @property
    def shared(self) -> bool:
        """Whether there may be other workers."""

    async def open(self, receive: Receive, on_event: OnEvent, on_request: OnRequest, recount: Recount) -> None:
        """Connects. Afterwards the broker passes every message of the subscribed topics to `receive`, in order.

        on_event: takes every hook event of the cluster, on one worker; in order per channel.
        on_request: replies to requests of any worker about a topic that is subscribed to here.
        recount: called on the worker that evicted a dead node, and on a worker that registered its entries again.
        """

    async def close(self) -> None:
        """Sends what is queued, then disconnects."""

    async def subscribe(self, app: str, channel: str) -> None:
        """Subscribes this worker to a topic; returns when the broker has confirmed the subscription."""

    async def unsubscribe(self, app: str, channel: str) -> None: ...

    def publish(self, message: Message) -> MaybeAwaitable[Published]:
        """Sends a message to all workers, including this one; the result has the number of the topic's subscriptions.

        The number may include a connection that the message excludes, and it includes all connections if the message is for some
        of them only. `Controller.reach` returns the exact number.

        Messages of one loop turn are sent in the order of the calls. Raises Refused(503, …) if the broker is away, or has not
        confirmed within 2 s; the message may have been delivered to some subscribers.
        """

    async def cached(self, app: str, channel: str) -> CachedEvent | None:
        """Returns the cached event of a cache channel."""

    async def request(self, app: str, channel: str, request: bytes) -> Sequence[bytes]:
        """Returns the replies of the workers that are subscribed to a topic, as far as they arrive in `REQUEST_SECONDS`."""


class Occupancy(msgspec.Struct, frozen=True, gc=False):
    """The numbers of a channel. users: distinct users, on presence channels."""

    channel: str
    subscriptions: int
    users: int = 0


class Joined(msgspec.Struct, frozen=True, gc=False):
    """The state of a channel at the moment a subscription was added.

    members: of a presence channel, including a new member; None for other channels.
    cached: the event of a cache channel.
    history: messages of a channel with history; the subscriber receives them before the messages that its topic brings.
    """

    members: tuple[Member, ...] | None = None
    cached: CachedEvent | None = None
    history: Sequence[KeptMessage] = ()


class Roster(Protocol):
    """The subscriptions and members of all channels, for all workers together.

    Each change is one atomic step. The step also publishes the edge that it causes to the channel, and reports the edge as a hook
    event: occupied, vacated, member-added, member-removed. A roster that several workers share also holds back leaving edges for
    hooks, because the broker outlives each worker. `phase` of a hook event shows whether its edge was held back.
    """

    async def join(self, app: str, channel: str, socket_id: str, member: Member | None, limit: int) -> Joined:
        """Adds a subscription to a topic that this worker is subscribed to.

        The caller resumes before the broker delivers any message that the topic received after this step. So a caller that now
        adds the subscriber to the channel neither loses a message nor delivers one twice.

        limit: members that the channel may have (0: unlimited). Raises LimitReached if the new member would exceed the limit.
        """

    async def leave(self, app: str, channel: str, socket_id: str, user_id: str | None) -> None:
        """Removes a subscription that `join` added; unknown members are ignored."""

    async def channels(self, app: str, prefix: str = "") -> Sequence[Occupancy]:
        """Returns the occupied channels whose names begin with `prefix`, sorted by name."""

    async def channel(self, app: str, channel: str) -> Occupancy | None:
        """Returns None if the channel has no subscription."""

    async def members(self, app: str, channel: str, *, local_view: bool = False) -> tuple[Member, ...]:
        """Returns the members of a presence channel.

        local_view: as the clients of this worker know them at the moment, if any of them is on the channel.
        """

    async def claim(self, app: str, channel: str, seconds: int) -> bool:
        """Claims a channel for some seconds; returns False if another worker's claim has not expired."""


class Users(Protocol):
    """The signed-in users of all workers together. The first connection of a user and the end of its last one are edges."""

    async def sign_in(self, app: str, user_id: str, socket_id: str) -> None: ...

    async def sign_out(self, app: str, user_id: str, socket_id: str) -> None: ...

    async def online(self, app: str, user_ids: Sequence[str]) -> frozenset[str]:
        """Returns those of the users that have a connection.

        The caller resumes before the broker delivers any later edge of these users.
        """


class Quotas(Protocol):
    """The numbers of connections of apps, for all workers together. Only apps with a limit are counted."""

    async def connect(self, app: str, limit: int) -> bool:
        """Counts a connection. Returns False if the app has `limit` connections already; then it counts nothing."""

    async def disconnect(self, app: str) -> None:
        """Takes a connection that was counted out of the count."""


class HookEvents(Protocol):
    """Reports events to the hooks. The roster reports its own edges."""

    def report(self, event: HookEvent) -> None:
        """Passes the hook event to `on_event`, once, on one worker of the cluster. Never waits.

        An edge whose phase is `held` was held back by an earlier process when it stopped; the broker holds it back again.
        """
