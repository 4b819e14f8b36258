"""The history of all channels in the memory of one worker, within bounds.

A *counter* is the epoch and the last offset of a channel. A channel has a counter from its first subscription or message on. The
counter outlives the messages, so that the server can decide whether a client with a position of the channel missed messages.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from itertools import islice

from push1st.brokers.history import (
    COUNTER_SECONDS,
    NO_MESSAGES,
    READ_COUNTER_SECONDS,
    HistoryPage,
    KeptRun,
    Replay,
    ReplayRequest,
    page,
    replay,
    start_of,
)
from push1st.config.history import HistoryBounds, HistorySection
from push1st.messages import KeptMessage
from push1st.metrics import Metrics
from push1st.positions import Position, word

Key = tuple[str, str]
"""the pair of an app's id and a channel's name"""
SWEPT = 1000
"""the number of channels that one call of `tick` checks; more if a round would otherwise need more than `ROUND_CALLS`
calls"""
ROUND_CALLS = 30
"""the maximum number of calls of `tick`, one a second, for a round over all channels. A round renews the counters of channels
with subscribers, so it must be shorter than `IDLE_COUNTER_SECONDS`."""
MAX_RUNS = 16
"""the maximum number of runs that later replays share; each has at most the size of one replay"""
OBJECT_BYTES = 450
"""the bytes of memory that a kept message needs in addition to its data; measured with 8,000 messages of 10 bytes, with short
names of apps, channels and events"""
SECOND = 1_000_000_000


class ChannelHistory:
    """The counter and the messages of one channel.

    until: when the messages expire, or the counter if there are no messages; in nanoseconds on the wall clock.
    idle_seconds: the seconds for which the counter without messages is kept after the last subscription has ended.
    """

    __slots__ = ("bytes", "epoch", "idle_seconds", "last", "messages", "until")

    def __init__(self, epoch: str) -> None:
        self.epoch = epoch
        self.last = 0
        self.messages: deque[KeptMessage] = deque()
        self.bytes = 0
        self.until = 0
        self.idle_seconds = 0


class MemoryHistory:
    """Implements the port `History`.

    bounds: the bounds of all histories together.
    wall: a function that returns the time on the wall clock in nanoseconds.
    random: a function that takes a number of bits, and returns an unpredictable integer of this length.
    """

    __slots__ = (
        "_bounds",
        "_generation",
        "_idle",
        "_kept",
        "_metrics",
        "_random",
        "_runs",
        "_unswept",
        "_wall",
        "bytes",
        "is_subscribed",
        "on_tick",
    )

    def __init__(self, bounds: HistoryBounds, wall: Callable[[], int], random: Callable[[int], int], metrics: Metrics) -> None:
        self._bounds = bounds
        self._wall = wall
        self._random = random
        self._metrics = metrics
        self._generation = word(random(32))
        self._kept: OrderedDict[Key, ChannelHistory] = OrderedDict()
        """the channels with messages, in the order of their last messages"""
        self._idle: OrderedDict[Key, ChannelHistory] = OrderedDict()
        """the channels whose counter has no messages, in the order of their last use"""
        self._unswept: Iterator[Key] = iter(())
        """the channels that `tick` has not checked yet in its current round over all channels"""
        self._runs: dict[Key, KeptRun] = {}
        """the runs of the latest replays, for at most a second: clients that reconnect together share their encoded frames"""
        self.bytes = 0
        """the number of bytes of all messages, as the bounds count them"""
        self.is_subscribed: Callable[[str, str], bool] = lambda *_: False
        """whether a channel of an app has subscribers, whose position must stay valid; the broker sets this function"""
        self.on_tick: Callable[[int], None] = lambda _: None
        """A function that the broker sets. Each `tick` calls it with the time; it drops the broker's other expired data."""

    def __len__(self) -> int:
        """The number of channels with messages."""
        return len(self._kept)

    def _new(self) -> ChannelHistory:
        return ChannelHistory(self._generation + word(self._random(32)))

    def append(self, message: KeptMessage, section: HistorySection) -> None:
        """Keeps a message, and gives the message its position."""
        key, now = (message.app, message.channel), self._wall()
        history = self._kept.get(key)
        if history is None or history.until <= now:
            history = self._find(key, now) or self._new()
            self._idle.pop(key, None)
            self._kept[key] = history
            if len(self._kept) + len(self._idle) > self._bounds.channels:
                self._stay_within_bounds()
        else:
            self._kept.move_to_end(key)
        message.epoch = history.epoch
        message.offset = history.last = history.last + 1
        history.until = now + section.ttl * SECOND
        messages = history.messages
        messages.append(message)
        size = len(message.data) + OBJECT_BYTES
        while len(messages) > section.size:
            size -= len(messages.popleft().data) + OBJECT_BYTES
        history.bytes += size
        self.bytes += size
        if self.bytes > self._bounds.bytes:
            self._stay_within_bounds()

    def _stay_within_bounds(self) -> None:
        """Drops the counters without messages first, and then the channels whose last message is the oldest."""
        bounds = self._bounds
        while self._idle and len(self._kept) + len(self._idle) > bounds.channels:
            self._idle.popitem(last=False)
        while self._kept and (len(self._kept) > bounds.channels or self.bytes > bounds.bytes):
            _, history = self._kept.popitem(last=False)
            self.bytes -= history.bytes
            self._metrics.history_evicted += 1

    def _find(self, key: Key, now: int) -> ChannelHistory | None:
        """Returns the history of a channel, without expired messages; None if the channel has no counter."""
        history = self._kept.get(key)
        if history is not None:
            if now < history.until:
                return history
            self._expire(key, history, now)
            return history
        history = self._idle.get(key)
        if history is not None and history.until <= now and not self._renew(key, history, now):
            del self._idle[key]
            return None
        return history

    def _renew(self, key: Key, history: ChannelHistory, now: int) -> bool:
        """If a channel without messages has subscribers, keeps its counter for longer. Returns whether it has subscribers."""
        if not self.is_subscribed(*key):
            return False
        history.until = max(history.until, now + history.idle_seconds * SECOND)
        return True

    def _expire(self, key: Key, history: ChannelHistory, now: int) -> None:
        """Drops the messages of a channel, and keeps its counter."""
        del self._kept[key]
        self.bytes -= history.bytes
        history.messages.clear()
        history.bytes = 0
        history.until = now + COUNTER_SECONDS * SECOND
        self._idle[key] = history

    def _counter(self, key: Key, seconds: int, now: int) -> ChannelHistory:
        """Returns the history of a channel, and creates a missing counter. `seconds`: how long the new counter is kept."""
        history = self._find(key, now)
        if history is None:
            history = self._new()
        history.idle_seconds = max(history.idle_seconds, seconds)
        if not history.messages:
            history.until = max(history.until, now + seconds * SECOND)
            self._idle[key] = history
            self._idle.move_to_end(key)
            self._stay_within_bounds()
        return history

    def replay(self, key: Key, request: ReplayRequest) -> Replay:
        now = self._wall()
        history = self._counter(key, request.counter_seconds, now)
        messages, epoch, last = history.messages, history.epoch, history.last
        first = last + 1 - len(messages)
        _, after = start_of(request, epoch, first, last)
        run = self._runs.get(key)
        if after >= last:
            run = NO_MESSAGES
        elif run is None or not _contains(run, epoch, after + 1, last):
            # Only the messages that the subscriber may get, because its session encodes all messages of the run.
            run = KeptRun(tuple(islice(messages, after + 1 - first, None)))
        found = replay(request, epoch, last, run, now, first)
        if found.run is run and not found.start and run.messages:
            if len(self._runs) >= MAX_RUNS:
                self._runs.clear()
            self._runs[key] = run
        return found

    async def read(self, app: str, channel: str, since: Position | None, limit: int, reverse: bool) -> HistoryPage:
        now = self._wall()
        history = self._counter((app, channel), READ_COUNTER_SECONDS, now)
        return page(history.epoch, history.last, tuple(history.messages), since, limit, reverse, now)

    async def clear(self, app: str, channel: str) -> None:
        self._idle.pop((app, channel), None)
        history = self._kept.pop((app, channel), None)
        if history is not None:
            self.bytes -= history.bytes

    def tick(self) -> None:
        """Drops expired messages and counters of some channels. A later call checks other channels."""
        now = self._wall()
        self.on_tick(now)
        self._metrics.history_bytes, self._metrics.history_channels = self.bytes, len(self._kept)
        self._runs.clear()
        keys = list(islice(self._unswept, max(SWEPT, (len(self._kept) + len(self._idle)) // ROUND_CALLS + 1)))
        if not keys:
            self._unswept = iter((*self._kept, *self._idle))
        for key in keys:
            history = self._find(key, now)
            if history is not None and not history.messages:
                self._renew(key, history, now)


def _contains(run: KeptRun, epoch: str, first: int, last: int) -> bool:
    """Returns whether a run ends with the message `last`, and contains all messages from `first` on."""
    return run.messages[0].offset <= first and run.messages[-1].offset == last and run.messages[-1].epoch == epoch
