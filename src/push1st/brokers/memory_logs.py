"""The logs of the filters of absent sessions, in the memory of one worker.

A log exists while an absent session watches its filter, so connected sessions cost a publish nothing. `MemorySessions` calls
`hold` when a session becomes absent, and `release` when the session receives its messages live again or ends.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count, islice
from typing import TypeAlias

from push1st.brokers.memory_history import OBJECT_BYTES
from push1st.brokers.retained import ANONYMOUS_PART
from push1st.brokers.sessions import LOG_QUEUES, MAX_APP_BYTES, MAX_LOG_BYTES, MIN_LOG_MESSAGES, SHARE, Cursor, LogPage
from push1st.brokers.watched import AppFilters, group_and_filter, is_exact
from push1st.config.mqtt import Mqtt
from push1st.filters import FilterTrie, has_wildcard
from push1st.messages import INTERNAL, Message, qos_of
from push1st.metrics import Metrics
from push1st.positions import Position

MAX_CACHED_CHANNELS = 10_000
"""the maximum number of channels of an app whose logs are cached; above this number, all are dropped"""
SECOND = 1_000_000_000


def size_of(message: Message) -> int:
    """Returns the number of bytes that count for a message in a log."""
    fields = message.mqtt
    return len(message.data) + (OBJECT_BYTES if fields is None else OBJECT_BYTES + len(fields.properties))


class Budget:
    """The bytes of some logs of an app, which have a common bound."""

    __slots__ = ("_heap", "_numbers", "bytes", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self._heap: list[tuple[int, int, AnyLog]] = []
        """for each log with messages: a time at or before the time of its oldest message, a number, and the log"""
        self._numbers = count()

    def queue(self, log: "AnyLog") -> None:
        """Registers a log with messages, so that `oldest` finds the log."""
        if log.queued is not self:
            log.queued = self
            heappush(self._heap, (log.oldest.received, next(self._numbers), log))

    def oldest(self) -> "AnyLog | None":
        """Returns the log with the oldest message."""
        heap = self._heap
        while heap:
            at, number, log = heap[0]
            if log.queued is not self:
                heappop(heap)
            elif not log:
                heappop(heap)
                log.queued = None
            elif log.oldest.received > at:
                heapreplace(heap, (log.oldest.received, number, log))
            else:
                return log
        return None

    def tidy(self, count: int) -> None:
        """Removes the entries of logs that have ended or moved, and further entries of a log. count: the number of all logs."""
        if len(self._heap) > 2 * count + 1000:
            entries = {one[2]: one for one in self._heap if one[2].queued is self}
            self._heap = list(entries.values())
            heapify(self._heap)


NOTHING: deque[Message] = deque()
"""the messages of all new logs, because an empty deque needs 600 bytes"""


class Log:
    """The messages of one filter. Their offsets have no gaps.

    budget: the bound for the log's bytes. queued: the budget in which the log is registered; None if it never had messages.
    identified, anonymous: the numbers of absent sessions that watch the filter, of identified and of anonymous clients.
    last: the offset of the last message.
    """

    __slots__ = ("_end", "anonymous", "budget", "bytes", "filter", "identified", "last", "messages", "queued")

    is_shared = False

    def __init__(self, filter: str, epoch: str, budget: Budget) -> None:
        self.filter = filter
        self.budget = budget
        self.queued: Budget | None = None
        self.identified = self.anonymous = 0
        self.last = 0
        self.bytes = 0
        self.messages = NOTHING
        self._end: Cursor = (Position(epoch, 0),)

    @property
    def end(self) -> Cursor:
        """The end of the log. Sessions that become absent between two messages share the object."""
        if self._end[0].offset != self.last:
            self._end = (Position(self._end[0].epoch, self.last),)
        return self._end

    def __len__(self) -> int:
        return len(self.messages)

    @property
    def oldest(self) -> Message:
        return self.messages[0]

    def add(self, message: Message) -> None:
        self.last += 1
        if self.messages is NOTHING:
            self.messages = deque()
        self.messages.append(message)

    def drop(self) -> Message:
        """Removes and returns the oldest message."""
        return self.messages.popleft()

    def read(self, cursor: Cursor, limit: int, before: Cursor | None) -> LogPage:
        (since,) = cursor
        epoch, last, count = self._end[0].epoch, self.last, len(self.messages)
        if since.epoch != epoch:
            return LogPage(trimmed=True)
        kept = last + 1 - count
        first = max(since.offset + 1, kept)
        end = last if before is None else before[0].offset - 1
        start = max(first, end - limit + 1)
        skipped = last - end
        messages = tuple(islice(reversed(self.messages), skipped, skipped + max(0, end - start + 1)))[::-1]
        following = (Position(epoch, start),) if first < start <= end else None
        return LogPage(messages, following, since.offset + 1 < kept)


class SharedLog:
    """The messages of a shared group that no member has taken, by offset; the oldest first. The fields are those of `Log`."""

    __slots__ = ("anonymous", "budget", "bytes", "filter", "identified", "last", "messages", "queued")

    is_shared = True

    def __init__(self, filter: str, budget: Budget) -> None:
        self.filter = filter
        self.budget = budget
        self.queued: Budget | None = None
        self.identified = self.anonymous = 0
        self.last = 0
        self.bytes = 0
        self.messages: OrderedDict[int, Message] = OrderedDict()

    def __len__(self) -> int:
        return len(self.messages)

    @property
    def oldest(self) -> Message:
        return next(iter(self.messages.values()))

    def add(self, message: Message) -> None:
        self.last += 1
        self.messages[self.last] = message

    def drop(self) -> Message:
        """Removes and returns the oldest message."""
        return self.messages.popitem(last=False)[1]


AnyLog: TypeAlias = Log | SharedLog


class AppLogs:
    """The logs of one app.

    exact: the logs of filters without wildcards, by channel. trie: the logs of the other filters; None without such logs.
    logs: all logs by filter.
    """

    __slots__ = ("_cached", "anonymous", "exact", "identified", "logs", "trie")

    def __init__(self) -> None:
        self.exact: dict[str, tuple[AnyLog, ...]] = {}
        self.trie: FilterTrie[list[AnyLog]] | None = None
        self.logs: dict[str, AnyLog] = {}
        self.identified = Budget(MAX_APP_BYTES)
        self.anonymous = Budget(MAX_APP_BYTES // ANONYMOUS_PART)
        """the budget of the logs that only anonymous clients watch"""
        self._cached: dict[str, tuple[AnyLog, ...]] = {}
        """channel → logs of filters with wildcards"""

    def add(self, log: AnyLog) -> None:
        self.logs[log.filter] = log
        _, name = group_and_filter(log.filter)
        if is_exact(name):
            self.exact[name] = (*self.exact.get(name, ()), log)
            return
        self._cached.clear()
        if self.trie is None:
            self.trie = FilterTrie()
        found = self.trie.get(name)
        if found is None:
            self.trie[name] = [log]
        else:
            found.append(log)

    def remove(self, log: AnyLog) -> None:
        del self.logs[log.filter]
        log.budget.bytes -= log.bytes
        log.queued = None
        _, name = group_and_filter(log.filter)
        if is_exact(name):
            others = tuple(one for one in self.exact[name] if one is not log)
            if others:
                self.exact[name] = others
            else:
                del self.exact[name]
        elif self.trie is not None:
            self._cached.clear()
            of_filter = self.trie.get(name)
            assert of_filter is not None
            of_filter.remove(log)
            if not of_filter:
                del self.trie[name]
                if not self.trie:
                    self.trie = None
        log.budget.tidy(len(self.logs))

    def charge(self, log: AnyLog) -> None:
        """Moves a log to the budget of its absent sessions."""
        budget = self.identified if log.identified else self.anonymous
        if budget is not log.budget:
            log.budget.bytes -= log.bytes
            budget.bytes += log.bytes
            log.budget.tidy(len(self.logs))
            log.budget = budget
            if log:
                budget.queue(log)

    def of(self, channel: str) -> Sequence[AnyLog]:
        """Returns the logs whose filters match a channel."""
        exact = self.exact.get(channel, ())
        # A user's channel begins with `#`. A name with another wildcard is no topic, so it matches no filter (`core.filters`).
        if self.trie is None or has_wildcard(channel):
            return exact
        found = self._cached.get(channel)
        if found is None:
            if len(self._cached) >= MAX_CACHED_CHANNELS:
                self._cached.clear()
            found = self._cached[channel] = tuple(log for logs in self.trie.match(channel)[0] for log in logs)
        return (*exact, *found) if exact else found


class MemoryLogs:
    """Implements the port `Logs`.

    random: a function that takes a number of bits, and returns an unpredictable integer of this length.
    is_valid: a function that takes an app's id, a client id and a generation, and returns whether the generation is valid.
    """

    __slots__ = (
        "_epochs",
        "_is_valid",
        "_max_messages",
        "_metrics",
        "_nanoseconds",
        "_watched",
        "apps",
        "gaps",
        "is_served",
        "on_recovered",
        "on_recovering",
    )

    def __init__(
        self,
        random: Callable[[int], int],
        metrics: Metrics,
        settings: Mqtt,
        is_valid: Callable[[str, str, int], bool],
    ) -> None:
        self._epochs = map(str, count(random(64)))
        self._metrics = metrics
        self._is_valid = is_valid
        self._max_messages = max(LOG_QUEUES * settings.queue, MIN_LOG_MESSAGES)
        self._nanoseconds = settings.session_expiry * SECOND
        self._watched: dict[str, AppFilters] = {}
        self.apps: dict[str, AppLogs] = {}
        """the apps with logs; empty if no session is absent, so that a publish costs only one test"""
        self.gaps = 0
        self.on_recovering: Callable[[Callable[[str, str], bool]], None] = lambda _: None
        self.on_recovered: Callable[[bool], None] = lambda _: None
        self.is_served: Callable[[Message, str], bool] = lambda *_: False
        """see `Logs`; the clients of the worker set this function"""

    def append(self, message: Message) -> int:
        """Appends a message to its logs, and returns their number."""
        app = self.apps.get(message.app)
        if app is None or message.delivery != "broadcast" or message.event.startswith(INTERNAL) or not qos_of(message):
            return 0
        logs = app.of(message.channel)
        if not logs:
            return 0
        size, found = size_of(message), 0
        for log in logs:
            if log.is_shared and self.is_served(message, log.filter):
                continue
            found += 1
            self._add(log, message, size)
        return found

    def _add(self, log: AnyLog, message: Message, size: int) -> None:
        """Appends a message to a log. size: see `size_of`."""
        log.add(message)
        log.bytes += size
        budget = log.budget
        budget.bytes += size
        if log.queued is not budget:
            budget.queue(log)
        while len(log.messages) > self._max_messages or log.bytes > MAX_LOG_BYTES:
            self._drop(log, "trimmed")
        while budget.bytes > budget.limit and (oldest := budget.oldest()) is not None:
            self._drop(oldest, "trimmed")

    def _drop(self, log: AnyLog, reason: str) -> None:
        """Drops the oldest message of a log."""
        size = size_of(log.drop())
        log.bytes -= size
        log.budget.bytes -= size
        self._metrics.mqtt_dropped[reason] += 1

    def hold(self, app: str, filter: str, is_anonymous: bool) -> Cursor | None:
        """Keeps the messages of a filter for one more absent session. Returns the end of the log; None for a shared filter.

        is_anonymous: whether the session belongs to an anonymous client.
        """
        logs = self.apps.get(app)
        if logs is None:
            logs = self.apps[app] = AppLogs()
        log = logs.logs.get(filter)
        if log is None:
            budget = logs.anonymous if is_anonymous else logs.identified
            log = SharedLog(filter, budget) if filter.startswith(SHARE) else Log(filter, next(self._epochs), budget)
            logs.add(log)
        if is_anonymous:
            log.anonymous += 1
        else:
            log.identified += 1
            logs.charge(log)
        return log.end if isinstance(log, Log) else None

    def release(self, app: str, filter: str, is_anonymous: bool) -> None:
        """Reverses a call of `hold`. The log ends after its last session."""
        logs = self.apps[app]
        log = logs.logs[filter]
        if is_anonymous:
            log.anonymous -= 1
        else:
            log.identified -= 1
        if log.identified or log.anonymous:
            logs.charge(log)
            return
        logs.remove(log)
        if not logs.logs:
            del self.apps[app]

    def unwatch_ended(self, app: str, filter: str, is_anonymous: bool) -> None:
        """Removes a filter of a session that has ended. is_anonymous: see `watch`."""
        watched = self._watched.get(app)
        if watched is not None:
            watched.remove(filter, is_anonymous)
            if not watched:
                del self._watched[app]

    async def watch(
        self, app: str, client_id: str, generation: int, filter: str, is_anonymous: bool, is_known: bool = False
    ) -> None:
        watched = self._watched.get(app)
        if watched is None:
            watched = self._watched[app] = AppFilters()
        watched.add(filter, is_anonymous)

    async def unwatch(self, app: str, client_id: str, generation: int, filter: str, is_anonymous: bool) -> None:
        self.unwatch_ended(app, filter, is_anonymous)

    async def read(self, app: str, filter: str, cursor: Cursor, limit: int, before: Cursor | None = None) -> LogPage:
        log = self._find(app, filter)
        return log.read(cursor, limit, before) if isinstance(log, Log) else LogPage(trimmed=True)

    async def ends(self, filters: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], Cursor]:
        return {}  # the logs keep nothing for connected clients

    async def read_shared(self, app: str, filter: str, after: int, limit: int) -> tuple[tuple[int, Message], ...]:
        log = self._find(app, filter)
        if not isinstance(log, SharedLog):
            return ()
        return tuple(islice((one for one in log.messages.items() if one[0] > after), limit))

    async def take(self, app: str, client_id: str, generation: int, filter: str, offsets: Collection[int]) -> Collection[int]:
        log = self._find(app, filter)
        if not isinstance(log, SharedLog) or not self._is_valid(app, client_id, generation):
            return ()
        taken = [offset for offset in offsets if offset in log.messages]
        for offset in taken:
            size = size_of(log.messages.pop(offset))
            log.bytes -= size
            log.budget.bytes -= size
        return taken

    async def give_back(self, app: str, filter: str, messages: Sequence[Message]) -> None:
        log = self._find(app, filter)
        if isinstance(log, SharedLog):
            for message in messages:
                self._add(log, message, size_of(message))

    def _find(self, app: str, filter: str) -> AnyLog | None:
        logs = self.apps.get(app)
        return None if logs is None else logs.logs.get(filter)

    def tick(self, now: int) -> None:
        """Drops the messages that are older than the longest expiry of a session. Called once a second.

        now: the wall clock in nanoseconds.
        """
        since = now - self._nanoseconds
        for app in self.apps.values():
            for budget in (app.identified, app.anonymous):
                while (log := budget.oldest()) is not None and log.oldest.received <= since:
                    self._drop(log, "expired")
