"""Implements the port `Logs` for the logs of all shards. A log with wildcards has a part in each shard (`shard_logs.py`).

A cursor has a position for each part, in the order of the shards. The messages of a part are in the order of their positions.
The messages of several parts are merged in the order of their arrival.
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial

from push1st.brokers.redis.log_sweep import LogSweep
from push1st.brokers.redis.shard import Shard
from push1st.brokers.redis.shard_groups import MAX_STEP, ShardGroups
from push1st.brokers.redis.shard_logs import LogKey, PartPage, ShardLogs
from push1st.brokers.redis.shards import Shards
from push1st.brokers.sessions import SHARE, Cursor, LogPage
from push1st.brokers.watched import AppFilters, group_and_filter, is_exact
from push1st.errors import LimitReached
from push1st.messages import Message
from push1st.positions import Position

NOWHERE = Position("", 0)
"""the position before all messages of a part, for a reader whose position is unknown"""


IDENTIFIED = 1
"""the value of a log in `BASE:f` that identified clients watch; the value of the others is 2"""


class CountedLogs:
    """The logs with wildcards of an app, and the bounds for the logs of one message (`watched.py`)."""

    def __init__(self) -> None:
        self._filters = AppFilters()
        self._known: dict[str, int] = {}

    def update(self, known: dict[str, int]) -> None:
        """Counts exactly these logs. known: filter → value in `BASE:f`."""
        for filter, value in self._known.items() - known.items():
            self._filters.remove(filter, value != IDENTIFIED)
            del self._known[filter]
        for filter, value in known.items() - self._known.items():
            with suppress(LimitReached):  # several nodes have added logs at once
                self._filters.add(filter, value != IDENTIFIED)
                self._known[filter] = value

    def check(self, filter: str, is_anonymous: bool) -> None:
        """Raises LimitReached if another log would exceed a bound."""
        self._filters.add(filter, is_anonymous)
        self._filters.remove(filter, is_anonymous)


class ShardedLogs:
    """See the module."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._apps: dict[str, CountedLogs] = {}
        self.sweep = LogSweep(shards)
        self.gaps = 0
        self.on_recovering: Callable[[Callable[[str, str], bool]], None] = lambda _: None
        self.on_recovered: Callable[[bool], None] = lambda _: None
        self._lost: dict[Shard, str] = {}
        """the shards whose connection or lease was lost, with the epochs of their state"""
        self._recovering: set[Shard] = set()
        """the shards that have begun to register since the last call of `on_recovered`"""
        for shard in shards.all:
            shard.on_suspended = self._suspended
            shard.on_registering = self._registering
            shard.logs.sweep = partial(self.sweep.start, shard)
        self.is_served: Callable[[Message, str], bool] = lambda *_: False

    def _suspended(self, shard: Shard) -> None:
        self.gaps += 1
        self._lost.setdefault(shard, shard.lease.epoch)

    def _registering(self, shard: Shard) -> None:
        if shard in self._lost:
            self._recovering.add(shard)
            self.on_recovering(lambda app, channel: self._shards.of(app, channel) in self._recovering)

    def recovered(self, shard: Shard) -> None:
        """Handles the registration of this node in a shard."""
        epoch = self._lost.pop(shard, None)
        has_messages = epoch == shard.lease.epoch
        if has_messages or (epoch is not None and not self._lost):  # else the logs of another shard may have messages
            self._recovering &= self._lost.keys()
            self.on_recovered(has_messages)

    def _parts(self, app: str, filter: str) -> list[ShardLogs]:
        name = group_and_filter(filter)[1]
        if is_exact(name):
            return [self._shards.of(app, name).logs]
        return [shard.logs for shard in self._shards.all]

    def check(self, app: str, filter: str, is_anonymous: bool) -> None:
        """Raises LimitReached if another log would exceed a bound. Nodes that add logs at once may exceed the bound.

        The log of a filter without wildcards does not count, because a message has only one.
        """
        if not filter.startswith(SHARE) and is_exact(filter):
            return
        known = self._shards.all[0].interest.known
        value = known.value(app, filter)
        if value == IDENTIFIED or (value and is_anonymous):
            return
        if app not in known.apps:
            self._apps.pop(app, None)
        counted = self._apps.setdefault(app, CountedLogs())
        counted.update({one.name: one.nodes[""] for one in known.logs(app)})
        counted.check(filter, is_anonymous)

    async def watch(
        self, app: str, client_id: str, generation: int, filter: str, is_anonymous: bool, is_known: bool = False
    ) -> Cursor | None:
        if not is_known:
            self.check(app, filter, is_anonymous)
        parts = self._parts(app, filter)
        return tuple(await asyncio.gather(*(one.watch((app, filter), client_id, generation, is_anonymous) for one in parts)))

    async def unwatch(self, app: str, client_id: str, generation: int, filter: str, is_anonymous: bool) -> None:
        parts = self._parts(app, filter)
        await asyncio.gather(*(one.unwatch((app, filter), client_id, generation, is_anonymous) for one in parts))

    async def ends(self, filters: Collection[LogKey]) -> dict[LogKey, Cursor]:
        """Returns the ends of logs; without the logs that do not exist in each of their shards. Raises Refused(503).

        All copies of messages up to these ends that were sent to this worker have arrived when the method returns.
        """
        wanted: dict[ShardLogs, list[LogKey]] = {}
        for key in filters:
            for part in self._parts(*key):
                wanted.setdefault(part, []).append(key)
        replies = await asyncio.gather(*(part.ends(keys) for part, keys in wanted.items()))
        found: dict[LogKey, list[Position]] = {key: [] for key in filters}
        for keys, ends in zip(wanted.values(), replies, strict=True):
            for key, end in zip(keys, ends, strict=True):
                if end is None:
                    found.pop(key, None)
                elif key in found:
                    found[key].append(end)
        return {key: tuple(ends) for key, ends in found.items()}

    async def read(self, app: str, filter: str, cursor: Cursor, limit: int, before: Cursor | None = None) -> LogPage:
        parts = self._parts(app, filter)
        since = cursor if len(cursor) == len(parts) else (NOWHERE,) * len(parts)
        until = (None,) * len(parts) if before is None else before
        reads = [one.read((app, filter), since[i], limit, until[i], len(parts)) for i, one in enumerate(parts)]
        pages = await asyncio.gather(*reads)
        if len(pages) == 1:
            (page,) = pages
            return LogPage(tuple(one for _, one in page.messages), None if page.more is None else (page.more,), page.trimmed)
        return _merged(pages, until, limit)

    # The logs of groups. The number of a message is that of its entry (`groups.py`): id times number of shards, plus the shard.

    async def read_shared(self, app: str, filter: str, after: int, limit: int) -> tuple[tuple[int, Message], ...]:
        shards, (id, begin) = self._shards.all, divmod(after, len(self._shards.all))
        found: list[tuple[int, Message]] = []
        for index, shard in enumerate(shards):
            if index >= begin and len(found) < limit and shard.logs in self._parts(app, filter):
                page = await shard.groups.read(app, filter, id if index == begin else 0, limit - len(found))
                found += [(one * len(shards) + index, message) for one, message in page]
        return tuple(found)

    async def take(self, app: str, client_id: str, generation: int, filter: str, offsets: Collection[int]) -> Collection[int]:
        shards, taken = self._shards.all, []
        for index, shard in enumerate(shards):
            ids = [offset // len(shards) for offset in offsets if offset % len(shards) == index]
            for at in range(0, len(ids), MAX_STEP):
                found = await shard.groups.take(app, filter, ids[at : at + MAX_STEP])
                taken += [id * len(shards) + index for id in found]
        return taken

    async def give_back(self, app: str, filter: str, messages: Sequence[Message]) -> None:
        parts: dict[ShardGroups, list[Message]] = {}
        for one in messages:
            parts.setdefault(self._shards.of(app, one.channel).groups, []).append(one)
        for part, some in parts.items():
            for at in range(0, len(some), MAX_STEP):
                await part.give(app, filter, some[at : at + MAX_STEP])


def _merged(pages: Sequence[PartPage], until: Sequence[Position | None], limit: int) -> LogPage:
    """Returns the newest messages of all parts.

    until: the positions before which the pages end; None: they end with the last messages.
    """
    left = [len(page.messages) for page in pages]
    found: list[Message] = []
    while len(found) < limit and any(left):
        newest = max((i for i, count in enumerate(left) if count), key=lambda i: pages[i].messages[left[i] - 1][1].received)
        left[newest] -= 1
        found.append(pages[newest].messages[left[newest]][1])
    before: list[Position] = []
    is_more = False
    for i, page in enumerate(pages):
        is_more |= left[i] > 0 or page.more is not None
        if left[i] < len(page.messages):
            before.append(page.messages[left[i]][0])
        else:
            before.append(until[i] or _after(page))
    return LogPage(tuple(reversed(found)), tuple(before) if is_more else None, any(page.trimmed for page in pages))


def _after(page: PartPage) -> Position:
    """Returns the position after the last message of a page."""
    if not page.messages:
        return NOWHERE
    last, _ = page.messages[-1]
    return Position(last.epoch, last.offset + 1)
