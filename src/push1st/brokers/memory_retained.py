"""The retained messages and the cached events of all channels in the memory of one worker, within bounds."""

import heapq
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence

from push1st.brokers.listing import RetainedPage, chosen
from push1st.brokers.retained import (
    LISTED_BYTES,
    MAX_CACHED_EVENTS,
    NO_DATA,
    Bound,
    Retain,
    RetainedBounds,
    expires,
    fitting,
    size_of,
)
from push1st.errors import LimitReached
from push1st.messages import Message

MAX_CACHED_BYTES = 64 << 20
"""the maximum size of all cached events; above this limit, or above `MAX_CACHED_EVENTS`, the cache drops the oldest events"""
MAX_EXPIRED = 1000
"""the maximum number of expired messages that one call of `tick` drops"""
SPARE_EXPIRIES = 1000
"""the number of outdated times of expiry that are kept, in addition to one for each message, before they are removed together"""

BOUNDS = RetainedBounds()

Key = tuple[str, str]
"""the pair of an app's id and a channel's name"""


class RetainedMessage:
    """A retained message. `size`: its size in bytes. `holder`: the publisher for which the message counts."""

    __slots__ = ("holder", "message", "size")

    def __init__(self, message: Message, size: int, holder: Retain) -> None:
        self.message = message
        self.size = size
        self.holder = holder


class Share:
    """The number and the size of the messages that count for a bound."""

    __slots__ = ("bytes", "count")

    def __init__(self) -> None:
        self.count = self.bytes = 0

    def add(self, stored: RetainedMessage, sign: int = 1) -> None:
        self.count += sign
        self.bytes += sign * stored.size


class AppRetained:
    """The retained messages of an app by channel, and the parts of the bounds that are in use."""

    __slots__ = ("addresses", "all", "anonymous", "messages")

    def __init__(self) -> None:
        self.messages: dict[str, RetainedMessage] = {}
        self.all = Share()
        self.anonymous = Share()
        self.addresses: Counter[str] = Counter()

    def add(self, stored: RetainedMessage) -> None:
        self.messages[stored.message.channel] = stored
        self._count(stored, 1)

    def remove(self, channel: str) -> RetainedMessage | None:
        stored = self.messages.pop(channel, None)
        if stored is not None:
            self._count(stored, -1)
        return stored

    def _count(self, stored: RetainedMessage, sign: int) -> None:
        self.all.add(stored, sign)
        holder = stored.holder
        if holder.is_anonymous:
            self.anonymous.add(stored, sign)
            if holder.address:
                self.addresses[holder.address] += sign
                if not self.addresses[holder.address]:
                    del self.addresses[holder.address]

    def exceeded(self, size: int, holder: Retain) -> Bound | None:
        """Returns the bound that another message would exceed; None if there is room. `size`: the message's size in bytes."""
        if self.all.count >= BOUNDS.count:
            return "count"
        if self.all.bytes + size > BOUNDS.bytes:
            return "bytes"
        if not holder.is_anonymous:
            return None
        if self.anonymous.count >= BOUNDS.anonymous_count:
            return "anonymous-count"
        if self.anonymous.bytes + size > BOUNDS.anonymous_bytes:
            return "anonymous-bytes"
        return "address" if holder.address and self.addresses[holder.address] >= BOUNDS.address else None


class MemoryRetained:
    """Implements the port `Retained`, and stores the cached events.

    wall: a function that returns the time on the wall clock in nanoseconds.
    nanoseconds: the time for which an event is cached.
    """

    __slots__ = ("_apps", "_cache", "_cached_bytes", "_expiries", "_nanoseconds", "_wall")

    def __init__(self, wall: Callable[[], int], nanoseconds: int) -> None:
        self._wall = wall
        self._nanoseconds = nanoseconds
        self._apps: dict[str, AppRetained] = {}
        self._expiries: list[tuple[int, int, Key]] = []
        """a heap: for each message that expires, the time, the message's id and its channel. An entry is outdated if the channel
        has another message."""
        self._cache: OrderedDict[Key, Message] = OrderedDict()
        self._cached_bytes = 0

    # Written in the step that publishes a message

    def retain(self, message: Message, holder: Retain) -> None:
        """Makes a message the retained message of its channel. Raises LimitReached if a bound would be exceeded.

        A message always replaces an earlier retained message of its channel that is at least as large. The new message then
        counts for the publisher of the earlier one.
        """
        app = self._apps.get(message.app)
        if message.data == NO_DATA:  # [MQTT-3.3.1-6], [MQTT-3.3.1-7]
            self._drop_cached((message.app, message.channel))
            if app is not None:
                self._remove(message.app, app, message.channel)
            return
        if app is None:
            app = self._apps[message.app] = AppRetained()
        size = size_of(message)
        old = app.remove(message.channel)
        if old is not None and size <= old.size:
            holder = old.holder
        elif bound := app.exceeded(size, holder):
            if old is not None:
                app.add(old)
            if not app.messages:
                del self._apps[message.app]
            raise LimitReached(403, BOUNDS.error(bound))
        self._drop_cached((message.app, message.channel))
        app.add(RetainedMessage(message, size, holder))
        if until := expires(message):
            heapq.heappush(self._expiries, (until, message.id, (message.app, message.channel)))
            if len(self._expiries) > sum(one.all.count for one in self._apps.values()) + SPARE_EXPIRIES:
                self._expiries = [one for one in self._expiries if self._is_due(one)]
                heapq.heapify(self._expiries)

    def cache(self, message: Message) -> None:
        """Caches the newest event of a cache channel, in place of the channel's retained message."""
        key = message.app, message.channel
        app = self._apps.get(message.app)
        if app is not None:
            self._remove(message.app, app, message.channel)
        self._drop_cached(key)
        self._cache[key] = message
        self._cached_bytes += len(message.data)
        while len(self._cache) > MAX_CACHED_EVENTS or self._cached_bytes > MAX_CACHED_BYTES:
            self._drop_cached(next(iter(self._cache)))

    def _drop_cached(self, key: Key) -> None:
        message = self._cache.pop(key, None)
        if message is not None:
            self._cached_bytes -= len(message.data)

    def _remove(self, id: str, app: AppRetained, channel: str) -> None:
        app.remove(channel)
        if not app.messages:
            del self._apps[id]

    def _is_due(self, expiry: tuple[int, int, Key]) -> bool:
        """Returns whether a time of expiry belongs to the retained message of its channel."""
        _, id, (name, channel) = expiry
        app = self._apps.get(name)
        stored = None if app is None else app.messages.get(channel)
        return stored is not None and stored.message.id == id

    def tick(self, now: int) -> None:
        """Drops expired messages. Called once a second. `now`: the wall clock in nanoseconds."""
        expiries = self._expiries
        for _ in range(MAX_EXPIRED):
            if not expiries or expiries[0][0] > now:
                return
            expiry = heapq.heappop(expiries)
            if self._is_due(expiry):
                name, channel = expiry[2]
                self._remove(name, self._apps[name], channel)

    def clear(self) -> None:
        """Drops everything, because the worker stops."""
        self._apps.clear()
        self._expiries.clear()
        self._cache.clear()
        self._cached_bytes = 0

    # Read

    def counts(self) -> Mapping[str, int]:
        return {id: app.all.count for id, app in self._apps.items()}

    def find(self, app: str, channel: str) -> tuple[Message, int] | None:
        """Returns the retained or cached message of a channel, and the nanoseconds until it expires; 0 if it does not expire."""
        now = self._wall()
        message = self._cache.get((app, channel))
        if message is not None:
            left = message.received + self._nanoseconds - now
            if left <= 0:
                self._drop_cached((app, channel))
                return None
            return message, left
        retained = self._apps.get(app)
        stored = None if retained is None else retained.messages.get(channel)
        if stored is None:
            return None
        until = expires(stored.message)
        if not until:
            return stored.message, 0
        return (stored.message, until - now) if until > now else None

    async def names(self, app: str) -> Sequence[str]:
        retained = self._apps.get(app)
        found = [] if retained is None else [(one.message.id, name) for name, one in retained.messages.items()]
        found += [(message.id, name) for (id, name), message in self._cache.items() if id == app]
        return [name for _, name in sorted(found)]

    async def listed(self, app: str, prefix: str, after: str, most: int) -> RetainedPage:
        retained = self._apps.get(app)
        names = [] if retained is None else list(retained.messages)
        names += [name for id, name in self._cache if id == app]
        names.sort()  # because each new message of a channel has another place in these dictionaries
        found, following, examined = chosen(names, prefix, after, most)
        messages = await self.read(app, [name for name, _ in found], LISTED_BYTES)
        if len(messages) < len(found):
            following = found[len(messages) - 1][1]
        return RetainedPage(tuple([one for one in messages if one is not None]), following, examined)

    async def drop(self, app: str, channel: str) -> bool:
        found = self.find(app, channel)
        self._drop_cached((app, channel))
        retained = self._apps.get(app)
        if retained is not None:
            self._remove(app, retained, channel)
        return found is not None

    async def read(self, app: str, channels: Sequence[str], size: int) -> Sequence[Message | None]:
        stored = (self.find(app, channel) for channel in channels)
        return fitting((None if one is None or one[0].data == NO_DATA else one[0] for one in stored), size)
