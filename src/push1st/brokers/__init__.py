"""What connects workers and machines: the ports, and the registry of their implementations.

`Broker` carries messages and keeps the last of a cache channel; `Roster` knows who is on which channel, `Users` who has
signed in, `Quotas` how many are connected; `HookEvents` takes what happened to the hooks. An implementation is one module
here, one line in `BROKERS`, and one line in `tests/contract`. They are `async`, since most of them wait for a network;
`publish`, on the data road, only where one does.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from push1st.channels import kind_of
from push1st.eager import MaybeAwaitable
from push1st.messages import API, INTERNAL, HookEvent, KeptMessage, Member, Message, Published

BROKERS = {"memory": "push1st.brokers.memory:Memory", "redis": "push1st.brokers.redis:Redis"}

KEEP_SECONDS = 1800
"""how long the last event of a cache channel is kept (Pusher protocol, section 8)"""


def keeps(message: Message) -> bool:
    """Whether a message becomes the last event of its channel: what the API publishes to all of a cache channel does."""
    return (
        message.sender == API
        and message.delivery == "broadcast"
        and not message.event.startswith(INTERNAL)
        and kind_of(message.channel).cache
    )


Receive = Callable[[Message], int]
"""Delivers a message to this worker's subscribers; returns how many there are."""
OnEvent = Callable[[HookEvent], None]
"""Takes what happened to the hooks."""
Answer = Callable[[str, str, bytes], bytes]
"""Answers a question about an app's channel, for this worker."""
Recount = Callable[[str, str], None]
"""Takes an app's channel that may have another number of subscriptions than was told, and nobody else will tell."""


class Kept(msgspec.Struct, frozen=True, gc=False):
    """The last event of a cache channel. ttl: seconds it will still be kept."""

    message: Message
    ttl: int


ASK_SECONDS = 0.5


class Broker(Protocol):
    """Messages between workers. A topic is an app's id and a channel's name.

    What the API publishes on a cache channel is kept, the last event of each, for 30 minutes (Pusher protocol,
    section 3); publishing and keeping are one step.
    """

    @property
    def shared(self) -> bool:
        """Whether there may be other workers."""

    async def open(self, receive: Receive, on_event: OnEvent, answer: Answer, recount: Recount) -> None:
        """Connects; from here on `receive` is called with every message of the topics subscribed to, in order.

        on_event: called with every hook event of the cluster, on one worker; in order per channel. answer: answers what any
        worker asks about a topic subscribed to here. recount: called on the worker that removed a dead one's subscriptions,
        and on one that had to announce its own again.
        """

    async def close(self) -> None:
        """Sends what is queued, then disconnects."""

    async def subscribe(self, app: str, channel: str) -> None:
        """Returns when the broker has confirmed that the topic's messages come here."""

    async def unsubscribe(self, app: str, channel: str) -> None: ...

    def publish(self, message: Message) -> MaybeAwaitable[Published]:
        """Sends a message to all workers, this one included; the result has the number of the topic's subscribers.

        A connection that is excluded may be counted in, and all of them for a message to some: `Node.reach` knows better.

        What is published in one turn goes out in that order. Raises Refused(503, …) when the broker is away or has not
        confirmed within 2 s: the message may have been delivered to some.
        """

    async def last(self, app: str, channel: str) -> Kept | None:
        """The event kept for a cache channel."""

    async def ask(self, app: str, channel: str, question: bytes) -> Sequence[bytes]:
        """What the workers that are subscribed to a topic answer, as far as they do within `ASK_SECONDS`."""


class Occupancy(msgspec.Struct, frozen=True, gc=False):
    """How many are on a channel. users: distinct users, on presence channels."""

    channel: str
    subscriptions: int
    users: int = 0


class Joined(msgspec.Struct, frozen=True, gc=False):
    """What was true when a subscription was added.

    members: of a presence channel, a new one included; None for any other. kept: the event of a cache channel.
    history: messages of a channel with history that the subscriber gets before those that its topic brings from now on.
    """

    members: tuple[Member, ...] | None = None
    kept: Kept | None = None
    history: Sequence[KeptMessage] = ()


class Roster(Protocol):
    """Who is where, for all workers together.

    Each change is one atomic step that also publishes the edge it causes to the channel, and reports it as a hook event:
    occupied, vacated, member-added, member-removed. A roster that several workers share also holds back leaving edges for
    hooks, because the broker outlives each worker. `phase` of a hook event shows whether its edge was held back.
    """

    async def join(self, app: str, channel: str, socket_id: str, member: Member | None, most: int) -> Joined:
        """Adds a subscription to a topic that this worker is subscribed to.

        What the topic brings behind this step is not received before whoever waits for it has gone on: so a new subscriber
        that is put on the channel then misses nothing, and gets nothing twice.

        most: members the channel may have (0: unlimited). Raises LimitReached when it would have more.
        """

    async def leave(self, app: str, channel: str, socket_id: str, user_id: str | None) -> None:
        """Takes off a subscription that was made by `join`; unknown members are ignored."""

    async def channels(self, app: str, prefix: str = "") -> Sequence[Occupancy]:
        """The occupied channels whose names begin with `prefix`, by name."""

    async def channel(self, app: str, channel: str) -> Occupancy | None:
        """None when nobody is subscribed."""

    async def members(self, app: str, channel: str, *, local_view: bool = False) -> tuple[Member, ...]:
        """Returns the members of a presence channel.

        local_view: the members that subscribers on this worker know of already; all of them if there are no such subscribers.
        """

    async def claim(self, app: str, channel: str, seconds: int) -> bool:
        """Whether nobody has claimed the channel for the last seconds; it is claimed now if so."""


class Users(Protocol):
    """Who has signed in, for all workers together. The first connection of a user and the end of its last are edges."""

    async def sign_in(self, app: str, user_id: str, socket_id: str) -> None: ...

    async def sign_out(self, app: str, user_id: str, socket_id: str) -> None: ...

    async def online(self, app: str, user_ids: Sequence[str]) -> frozenset[str]:
        """Those of the users who have a connection.

        Edges behind that are not received before whoever waits for it has gone on.
        """


class Quotas(Protocol):
    """How many connections apps have, for all workers together. Only apps with a limit are counted."""

    async def connect(self, app: str, most: int) -> bool:
        """Counts a connection, and says whether the app may have it: False is for one that is not counted."""

    async def disconnect(self, app: str) -> None:
        """Takes off a connection that was counted."""


class HookEvents(Protocol):
    """What happens, for hooks. The roster reports its edges itself."""

    def report(self, event: HookEvent) -> None:
        """Passes the hook event to `on_event`, once, on one worker of the cluster. Never waits.

        An edge whose phase is `held` was held back by an earlier process when it stopped; the broker holds it back again.
        """
