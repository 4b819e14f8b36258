"""Implements the port `Retained` for the channels of all shards.

A worker reads the names of an app at most once in `NAMES_SECONDS`. All subscribers that wait for the names share one read, which
begins after their calls. So a subscriber gets the name of each message that was retained before its subscription.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain, takewhile
from operator import itemgetter
from typing import Any

import msgspec

from push1st import logs
from push1st.brokers.listing import RetainedPage
from push1st.brokers.redis.listing import names_in
from push1st.brokers.redis.retained import decode_stored
from push1st.brokers.redis.scripts import COUNT_RETAINED, DROP_RETAINED, READ_RETAINED
from push1st.brokers.redis.shard import Shard
from push1st.brokers.redis.shards import Shards
from push1st.brokers.retained import LISTED_BYTES, NO_DATA, fitting
from push1st.errors import Refused
from push1st.messages import Message

RETAINED_NAMES, CACHED_NAMES = "kn", "kc"
"""the keys with the names of channels (`scripts.py`)"""
NAMES_SECONDS = 0.25
"""the minimum number of seconds between two reads of the names of an app"""
COUNT_SECONDS = 10
"""the seconds between two counts of the retained messages, for the metrics"""

log = logs.get("push1st.broker")


class NameReads:
    """The calls that wait for the names of an app.

    waiting: one future for each call, because coroutines without an asyncio task (`eager.py`) cannot share a future.
    begins_at: the time on the loop's clock from which the names may be read again.
    """

    __slots__ = ("begins_at", "waiting")

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[Sequence[str]]] = []
        self.begins_at = 0.0


class ShardedRetained:
    """See the module. wall: a function that returns the wall clock's time in nanoseconds."""

    def __init__(self, shards: Shards, wall: Callable[[], int]) -> None:
        self._shards = shards
        self._wall = wall
        self._reads: dict[str, NameReads] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._counts: dict[Shard, dict[str, int]] = {}
        self._counts_at = 0.0
        shards.on_tick = self.tick

    # Names

    async def names(self, app: str) -> Sequence[str]:
        loop = asyncio.get_running_loop()
        reads = self._reads.get(app)
        if reads is None:
            reads = self._reads[app] = NameReads()
        if not reads.waiting:
            loop.call_at(reads.begins_at, self._begin, app, reads)
        future: asyncio.Future[Sequence[str]] = loop.create_future()
        reads.waiting.append(future)
        return await future

    def _begin(self, app: str, reads: NameReads) -> None:
        loop = asyncio.get_running_loop()
        waiting, reads.waiting = reads.waiting, []
        reads.begins_at = loop.time() + NAMES_SECONDS
        task = loop.create_task(self._read_names(app, waiting))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read_names(self, app: str, waiting: Sequence["asyncio.Future[Sequence[str]]"]) -> None:
        """Reads the names of an app from all shards, and gives them to the calls that wait."""
        try:
            lists = [(shard, shard.keys.key(key, app)) for shard in self._shards.all for key in (RETAINED_NAMES, CACHED_NAMES)]
            parts = await asyncio.gather(*(shard.connection.call("ZRANGE", key, 0, -1, "WITHSCORES") for shard, key in lists))
        except Refused as refused:
            for future in waiting:
                if not future.done():
                    future.set_exception(refused)
            return
        names = _names([part for part in parts if part])
        for future in waiting:
            if not future.done():
                future.set_result(names)

    # Messages

    async def read(self, app: str, channels: Sequence[str], size: int) -> Sequence[Message | None]:
        if len(self._shards.all) > 1 and len(channels) > 1:
            channels = await self._fitting(app, channels, size)
        stored: dict[str, tuple[bytes | None, int]] = {}
        for names, reply in await self._call(app, channels, size):
            stored |= dict(zip(names, zip(reply[::2], reply[1::2], strict=True), strict=False))
        now = self._wall()
        sent = takewhile(stored.__contains__, channels)  # further messages did not fit
        return fitting((_message(app, *stored[channel], now) for channel in sent), size)

    async def _fitting(self, app: str, channels: Sequence[str], size: int) -> Sequence[str]:
        """Returns the first channels whose messages fit, so that no shard sends messages that do not fit."""
        sizes: dict[str, int] = {}
        for names, reply in await self._call(app, channels, 0):
            sizes |= zip(names, reply, strict=True)
        for index, channel in enumerate(channels):
            size -= max(sizes[channel], 0)
            if size < 0 and any(sizes[one] > 0 for one in channels[:index]):
                return channels[:index]
        return channels

    async def _call(self, app: str, channels: Sequence[str], size: int) -> list[tuple[Sequence[str], Any]]:
        """Runs `lua/read_retained.lua` in the shards of channels. Returns, for each shard, its channels and its reply."""
        parts: dict[Shard, list[str]] = {}
        for channel in channels:
            parts.setdefault(self._shards.of(app, channel), []).append(channel)
        calls = [shard.connection.call(*shard.keys.command(READ_RETAINED, app, size, *names)) for shard, names in parts.items()]
        replies = [await calls[0]] if len(calls) == 1 else await asyncio.gather(*calls)
        return list(zip(parts.values(), replies, strict=True))

    # Lists

    async def listed(self, app: str, prefix: str, after: str, most: int) -> RetainedPage:
        sets = [(shard, shard.keys.key(key, app)) for shard in self._shards.all for key in (RETAINED_NAMES, CACHED_NAMES)]
        found, following, examined = await names_in(sets, prefix, after, most)
        messages: Sequence[Message | None] = ()
        if found:
            messages = await self.read(app, [one.name for one in found], LISTED_BYTES)
        if len(messages) < len(found):
            following = found[len(messages) - 1].after
        return RetainedPage(tuple([one for one in messages if one is not None]), following, examined)

    async def drop(self, app: str, channel: str) -> bool:
        found = await self.read(app, [channel], LISTED_BYTES)
        shard = self._shards.of(app, channel)
        await shard.connection.call(*shard.keys.command(DROP_RETAINED, app, channel))
        return found[0] is not None

    # Metrics

    def counts(self) -> Mapping[str, int]:
        found: Counter[str] = Counter()
        for counts in self._counts.values():
            found.update(counts)
        return found

    def tick(self, now: float) -> None:
        """Counts the retained messages if this node is the one that reports them. `now`: the loop's clock."""
        if now < self._counts_at:
            return
        self._counts_at = now + COUNT_SECONDS
        for shard in self._shards.all:
            resp = shard.connection.registered_on
            if resp is None or not shard.lease.is_first:
                self._counts.pop(shard, None)
            else:
                shard.connection.send(resp, COUNT_RETAINED, partial(self._counted, shard))

    def _counted(self, shard: Shard, reply: Any) -> None:
        if isinstance(reply, Exception):
            shard.connection.check(reply)
        else:
            self._counts[shard] = {app.decode(): n for app, n in zip(reply[::2], reply[1::2], strict=True)}


def _names(parts: Sequence[Any]) -> Sequence[str]:
    """Returns the channels in the order of the ids. parts: lists of pairs of a channel and an id, each in this order."""
    pairs = parts[0] if len(parts) == 1 else sorted(chain.from_iterable(parts), key=itemgetter(1))
    return [name.decode() for name, _ in pairs]


def _message(app: str, data: bytes | None, left: int, now: int) -> Message | None:
    """Returns a stored message; None without one, and for a message without data."""
    if data is None:
        return None
    try:
        message = decode_stored(data, left, now)
    except msgspec.DecodeError as exc:  # another version of push1st stored it
        log.error("a retained message cannot be decoded", app=app, reason=str(exc))
        return None
    return None if message.data == NO_DATA else message
