"""The port for retained messages: the last message of a channel that new MQTT subscribers receive. Pure.

A message with RETAIN becomes the retained message of its channel in the step that publishes it. A message without data removes
the retained message [MQTT-3.3.1-6]. The cached event of a cache channel is also its retained message: each replaces the other.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from push1st.brokers.history import MESSAGE_BYTES
from push1st.brokers.listing import RetainedPage
from push1st.messages import KeptMessage, Message

MAX_RETAINED = 10_000
MAX_RETAINED_BYTES = 64 << 20
"""the maximum number and size of an app's retained messages; cached events do not count. Above a bound, the broker rejects a
message that would be retained, instead of dropping the last value of another device."""
ANONYMOUS_PART = 10
"""all anonymous clients of an app together have 1 / `ANONYMOUS_PART` of the bounds"""
MAX_ADDRESS_RETAINED = 200
"""the maximum number of retained messages of the anonymous clients at one address"""
MAX_CACHED_EVENTS = 10_000
"""the maximum number of cached events that filters with wildcards receive as retained messages"""
LISTED_BYTES = 1 << 20
"""the number of bytes of the messages after which a page of `Retained.listed` ends"""
NO_DATA = b'""'
"""the data of a message whose payload is empty"""
SHARDS_OF_A_SHARE = 2
"""a shard of a cluster may have as many retained messages of an app as this number of shards with equal shares"""
Bound = Literal["count", "bytes", "anonymous-count", "anonymous-bytes", "address"]
"""the bound that a message would exceed"""


class Retain(msgspec.Struct, frozen=True, gc=False):
    """The publisher of a message that the broker retains.

    is_anonymous: whether the publisher has proved no identity, so that the bounds for anonymous clients apply.
    address: the address or network of an anonymous publisher; "" if the bound for addresses does not apply.
    """

    is_anonymous: bool = False
    address: str = ""


class RetainedBounds(msgspec.Struct, frozen=True, gc=False):
    """The maximum number and size of an app's retained messages, of those of anonymous clients, and of those of one address.

    `cached_events`: the maximum number of cached events that filters with wildcards receive as retained messages.
    """

    count: int = MAX_RETAINED
    bytes: int = MAX_RETAINED_BYTES
    anonymous_count: int = MAX_RETAINED // ANONYMOUS_PART
    anonymous_bytes: int = MAX_RETAINED_BYTES // ANONYMOUS_PART
    address: int = MAX_ADDRESS_RETAINED
    cached_events: int = MAX_CACHED_EVENTS

    def error(self, bound: Bound) -> str:
        """Returns why a message that would exceed a bound is rejected."""
        match bound:
            case "count":
                return f"the app has {self.count} retained messages"
            case "bytes":
                return f"the retained messages of the app would have over {self.bytes} bytes"
            case "anonymous-count":
                return f"the anonymous clients of the app have {self.anonymous_count} retained messages"
            case "anonymous-bytes":
                return f"the retained messages of anonymous clients would have over {self.anonymous_bytes} bytes"
            case _:
                return f"the anonymous clients at this address have {self.address} retained messages"


def bounds_of(shards: int) -> RetainedBounds:
    """Returns the bounds of one shard. shards: the number of shards.

    Channels are not divided equally, so a shard of several may have `SHARDS_OF_A_SHARE` times an equal share.
    """
    if shards == 1:
        return RetainedBounds()
    return RetainedBounds(*(-(-SHARDS_OF_A_SHARE * one // shards) for one in msgspec.structs.astuple(RetainedBounds())))


class Retained(Protocol):
    """The retained messages of all apps, with the cached events of their cache channels."""

    async def names(self, app: str) -> Sequence[str]:
        """Returns the channels that have a retained message, in the order of the ids of these messages. Raises Refused(503).

        The result contains all channels with a message that was retained before the call.
        """

    def counts(self) -> Mapping[str, int]:
        """Returns the numbers of retained messages by app, without the cached events.

        If several workers share the messages, only one of the workers returns numbers, which may be some seconds old.
        """

    async def read(self, app: str, channels: Sequence[str], size: int) -> Sequence[Message | None]:
        """Returns the retained message of each channel, or None for a channel without one. Raises Refused(503).

        The time of expiry of a message is on the clock of this worker. The result has fewer messages than `channels` if the
        messages would exceed `size` bytes (`size_of`), but at least one.
        """

    async def listed(self, app: str, prefix: str, after: str, most: int) -> RetainedPage:
        """Returns retained messages and cached events whose channels begin with `prefix`: `most` at most, or fewer large ones.

        after: the cursor of an earlier page; "": from the beginning. A page examines a bounded number of channels, so it may be
        empty although its cursor is not. Raises ValueError if `after` is not a cursor, and Refused(503).
        """

    async def drop(self, app: str, channel: str) -> bool:
        """Removes the retained message or the cached event of a channel; returns whether there was one. Raises Refused(503).

        Subscribers receive nothing.
        """


def expires(message: Message) -> int:
    """Returns when a retained message expires, on the wall clock in nanoseconds; 0: never."""
    fields = message.mqtt
    return 0 if fields is None else fields.expires


def size_of(message: Message) -> int:
    """Returns the number of bytes that count for a retained message."""
    fields = message.mqtt
    properties = b"" if fields is None else fields.properties
    return MESSAGE_BYTES + len(message.channel.encode()) + len(message.data) + len(properties)


def fitting(messages: Iterable[Message | None], size: int) -> list[Message | None]:
    """Returns the first messages, as `Retained.read` does. size: the maximum number of bytes."""
    found: list[Message | None] = []
    for message in messages:
        if message is not None:
            size -= size_of(message)
            if size < 0 and any(found):
                break
        found.append(message)
    return found


def without_position(message: Message) -> Message:
    """Returns a message that is not part of a history, because new subscribers get the latest position of the channel first."""
    if type(message) is KeptMessage:
        return Message(*msgspec.structs.astuple(message)[: len(Message.__struct_fields__)])
    return message
