"""What connects workers and machines: the ports, and the registry of their implementations.

`Broker` carries messages and keeps the last of a cache channel; `Roster` knows who is on which channel, `Users` who has
signed in; `Facts` takes what happened to the hooks. An implementation is one file here, one line in `BROKERS`, and
one line in `tests/contract`. They are `async`, since most of them wait for a network; those that do not (memory)
finish in one step, which costs a publish nothing.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from push1st.channels import kind_of
from push1st.messages import API, INTERNAL, Fact, Member, Message

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
Happened = Callable[[Fact], None]
"""Takes what happened to the hooks."""


class Kept(msgspec.Struct, frozen=True, gc=False):
    """The last event of a cache channel. ttl: seconds it will still be kept."""

    message: Message
    ttl: int


class Broker(Protocol):
    """Messages between workers. A topic is an app's id and a channel's name.

    What the API publishes on a cache channel is kept, the last event of each, for 30 minutes (Pusher protocol,
    section 3); publishing and keeping are one step.
    """

    async def open(self, receive: Receive, happened: Happened) -> None:
        """Connects; from here on `receive` is called with every message of the topics subscribed to, in order.

        happened: called with every fact of the cluster, on one worker; in order per channel.
        """

    async def close(self) -> None:
        """Sends what is queued, then disconnects."""

    async def subscribe(self, app: str, channel: str) -> None:
        """Returns when the broker has confirmed that the topic's messages come here."""

    async def unsubscribe(self, app: str, channel: str) -> None: ...

    async def publish(self, message: Message) -> int:
        """Sends a message to all workers, this one included; returns the number of subscribers it goes to.

        Raises Refused(503, …) when the broker is away or has not confirmed within 2 s: the message may have been
        delivered to some.
        """

    async def last(self, app: str, channel: str) -> Kept | None:
        """The event kept for a cache channel."""


class Occupancy(msgspec.Struct, frozen=True, gc=False):
    """How many are on a channel. users: distinct users, on presence channels."""

    channel: str
    subscriptions: int
    users: int = 0


class Roster(Protocol):
    """Who is where, for all workers together.

    Each change is one atomic step that also publishes the edge it causes to the channel, and reports it as a fact:
    occupied, vacated, member-added, member-removed.
    """

    async def join(self, app: str, channel: str, socket_id: str, member: Member | None, most: int) -> tuple[Member, ...] | None:
        """Adds a subscription. On a presence channel returns the members, the new one included.

        most: members the channel may have (0: unlimited). Raises LimitReached when it would have more.
        """

    async def leave(self, app: str, channel: str, socket_id: str, user_id: str | None) -> None:
        """Takes off a subscription that was made by `join`; unknown members are ignored."""

    async def channels(self, app: str, prefix: str = "") -> Sequence[Occupancy]:
        """The occupied channels whose names begin with `prefix`, by name."""

    async def channel(self, app: str, channel: str) -> Occupancy | None:
        """None when nobody is subscribed."""

    async def members(self, app: str, channel: str) -> tuple[Member, ...]:
        """Who is on a presence channel."""


class Users(Protocol):
    """Who has signed in, for all workers together. The first connection of a user and the end of its last are edges."""

    async def sign_in(self, app: str, user_id: str, socket_id: str) -> None: ...

    async def sign_out(self, app: str, user_id: str, socket_id: str) -> None: ...

    async def online(self, app: str, user_ids: Sequence[str]) -> frozenset[str]:
        """Those of the users who have a connection."""


class Facts(Protocol):
    """What happens, for hooks. The roster reports its edges itself."""

    def report(self, fact: Fact) -> None:
        """Has `happened` called with the fact, once, on one worker of the cluster. Never waits."""
