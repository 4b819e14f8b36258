"""The queue of one endpoint: the queue limits its size, and keeps the order of events on each channel.

The queue is pure: it sends nothing, and gets the time as an argument. An event waits, or is part of a delivery. A delivery is
current (the server is sending the delivery), or waits for a retry. Until a delivery is done, it blocks the channels of its
events, so that later events on these channels wait. Events on other channels need not wait. If the endpoint fails and
`concurrency` deliveries are not done, the queue throttles new deliveries: it begins only one in each second. So a failed endpoint
receives few requests.

The endpoint fails from a failed attempt until the next successful attempt. If the last attempt of a delivery began while the
endpoint failed, the queue retries the delivery after the endpoint has accepted another delivery; such early retries alternate
with new deliveries. If the attempt began while the endpoint accepted deliveries, the failure is probably due to this delivery.
So the queue retries this delivery only when its wait is over, and rarely retries an event that the endpoint never accepts.

The source of an event is the connection that caused the event; all subscription counts share one source. If the queue is full,
the queue drops an event of the source that occupies the largest part of the queue: that source's newest event. If the new event
is from that source, the queue drops the new event instead. So a client that publishes without end loses its own events, not the
events of other clients. While the queue has room, a single source can fill the whole queue.
"""

import heapq
from collections import deque
from collections.abc import Iterator
from itertools import chain, islice

RETRIES_SECONDS = 300.0
"""how long the queue retries a delivery after the first attempt (Pusher protocol, section 9)"""
MAX_WAIT_SECONDS = 60.0
THROTTLE_SECONDS = 1.0
"""the time between the starts of two new deliveries while the queue throttles deliveries"""
OVERHEAD = 250
"""the estimated number of bytes of memory that an event needs in addition to its text"""
MAX_BODY = 1 << 20
"""the maximum number of bytes in the body of a delivery with several events"""
MAX_EXAMINED = 1000
"""the maximum number of channels that `Queue.oldest` examines"""
LARGE_PART = 0.02
"""a source whose `part` exceeds this fraction is large; a full queue drops only events of large sources"""


def wait(attempts: int) -> float:
    """Returns the time to wait before a retry, in seconds: 1, 2, 4 … 60. `attempts` is the number of failed attempts."""
    return min(MAX_WAIT_SECONDS, 2.0 ** min(attempts - 1, 10))


class Source:
    """The waiting events of one connection.

    part: the number of events divided by `max_events`, plus the bytes of these events divided by `max_bytes`.
    waiting: the events, with the oldest event first.
    """

    __slots__ = ("name", "part", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.part = 0.0
        self.waiting: dict[QueuedEvent, None] = {}


class QueuedEvent:
    """An event that waits.

    event: the event as JSON text; b"" if the queue has dropped the event.
    source: the source of the event; None if no connection caused the event.
    at: the time at which the event was queued, in seconds.
    time_ms: the original time of a redriven or saved event (see `letters.Dead`), in milliseconds since 1970; 0 for a new event.
    """

    __slots__ = ("at", "event", "source", "time_ms")

    def __init__(self, event: bytes, source: Source | None, at: float, time_ms: int) -> None:
        self.event = event
        self.source = source
        self.at = at
        self.time_ms = time_ms


class Delivery:
    """Events that the server sends together, in one request.

    events: the events as JSON texts.
    id, body: the id and the body of the delivery, which are set at the first attempt.
    time_ms: the time in the body, in milliseconds since 1970; 0 before the first attempt. A redriven event keeps its time.
    first: the time of the first attempt, in seconds.
    queued: when the oldest event was queued, in seconds.
    rejected: the number of failed attempts that began while the endpoint accepted deliveries.
    in_outage: whether the endpoint failed when the last attempt began.
    """

    __slots__ = (
        "attempts",
        "body",
        "channels",
        "count",
        "events",
        "first",
        "id",
        "in_outage",
        "queued",
        "rejected",
        "size",
        "time_ms",
    )

    def __init__(self, channels: tuple[str, ...], events: list[bytes], queued: float = 0.0, time_ms: int = 0) -> None:
        self.queued = queued
        self.time_ms = time_ms
        self.channels = channels
        self.events = events
        self.count = len(events)
        self.size = sum(map(len, events)) + OVERHEAD * len(events)
        self.id = ""
        self.body = b""
        self.attempts = 0
        self.first = 0.0
        self.rejected = 0
        self.in_outage = False

    def __lt__(self, other: "Delivery") -> bool:
        return self.first < other.first


class Retries:
    """The deliveries that wait for a retry, in two heaps. An entry of a heap is the time of the retry, and the delivery."""

    def __init__(self) -> None:
        self._rejected: list[tuple[float, Delivery]] = []
        self._in_outage: list[tuple[float, Delivery]] = []
        """the deliveries whose last attempt began while the endpoint failed"""

    def __len__(self) -> int:
        return len(self._rejected) + len(self._in_outage)

    def __iter__(self) -> Iterator[Delivery]:
        return (one for _, one in chain(self._rejected, self._in_outage))

    def add(self, delivery: Delivery, at: float) -> None:
        heapq.heappush(self._in_outage if delivery.in_outage else self._rejected, (at, delivery))

    def when(self, is_failing: bool) -> float | None:
        """Returns when the next delivery is due: immediately (0) after an outage; None if no delivery waits."""
        if self._in_outage and not is_failing:
            return 0.0
        return min((heap[0][0] for heap in (self._rejected, self._in_outage) if heap), default=None)

    def take(self, now: float) -> Delivery | None:
        """Removes and returns a delivery whose time has come."""
        for heap in (self._in_outage, self._rejected):
            if heap and heap[0][0] <= now:
                return heapq.heappop(heap)[1]
        return None

    def take_early(self, is_failing: bool) -> Delivery | None:
        """If the outage has ended, removes and returns a delivery that failed in it, even if its retry is not due yet."""
        return heapq.heappop(self._in_outage)[1] if self._in_outage and not is_failing else None

    def try_now(self, now: float, is_failing: bool) -> None:
        """Makes the next delivery due. If the endpoint was failing and accepts this delivery, all others become due."""
        if is_failing:
            self._rejected, self._in_outage = [], sorted((*self._rejected, *self._in_outage))
        heaps = [heap for heap in (self._in_outage, self._rejected) if heap]
        if heaps:
            heap = min(heaps)
            heap[0] = min(now, heap[0][0]), heap[0][1]


class Queue:
    """Queues events and combines queued events into deliveries.

    concurrency: the maximum number of deliveries that the server sends at the same time.
    batch: the maximum number of events in a delivery.
    max_events, max_bytes: the limits of the queue. Events in deliveries count towards the limits.
    """

    def __init__(self, concurrency: int, batch: int, max_events: int, max_bytes: int) -> None:
        self._concurrency = concurrency
        self._batch = min(batch, max(1, max_events // (2 * concurrency)))
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._waiting: dict[str, deque[QueuedEvent]] = {}
        """the waiting events by channel; a channel without waiting events is not in the mapping"""
        self._sources: dict[str, Source] = {}
        self._large: dict[str, Source] = {}
        """sources whose part exceeds `LARGE_PART`: at most 2 / `LARGE_PART` sources, because the sum of all parts is at most 2"""
        self._gaps = 0
        """the number of entries in `_waiting` whose event the queue has dropped"""
        self.dropped: list[tuple[bytes, int, float]] = []
        """the event, `time_ms` and `at` of each `QueuedEvent` that a call of `put` dropped; the caller empties this list"""
        self._ready: deque[str] = deque()
        """channels that have waiting events and that no delivery blocks"""
        self._busy: set[str] = set()
        """channels that a delivery blocks"""
        self._current: set[Delivery] = set()
        self.retries = Retries()
        self._restored: list[Delivery] = []
        """deliveries of an earlier process that wait while other deliveries block their channels"""
        self.failing = False
        """whether the attempt that ended last has failed"""
        self._was_early = False
        """whether the last delivery was a retry whose time had not come"""
        self._next_at = 0.0
        self.events = 0
        self.bytes = 0
        self._tried_events = 0
        self._tried_bytes = 0
        """the number of events in deliveries, and the number of their bytes; a full queue never drops these events"""

    @property
    def retrying(self) -> int:
        """The number of events whose delivery has failed and will be retried."""
        waiting = chain(self.retries, self._restored)
        return sum(one.count for one in waiting) + sum(one.count for one in self._current if one.attempts)

    @property
    def idle(self) -> bool:
        return not self.events

    @property
    def oldest(self) -> float | None:
        """When the oldest event was queued; None without an event.

        Events that wait for a delivery to end are newer than the events of the delivery. Of the other channels with waiting
        events, only the first `MAX_EXAMINED` are examined, which wait for the longest time.
        """
        tried = [one.queued for one in chain(self._current, self.retries, self._restored)]
        heads = (self._waiting[channel] for channel in islice(self._ready, MAX_EXAMINED))
        return min((*tried, *(entry.at for waiting in heads for entry in islice(waiting, 1))), default=None)

    @property
    def next_retry(self) -> float | None:
        """When the next failed delivery is retried, in seconds; None if none waits."""
        return self.retries.when(self.failing)

    def put(self, channel: str, event: bytes, source: str = "", now: float = 0.0, time_ms: int = 0) -> bool:
        """Queues an event; returns whether the event is queued. To make room, the queue may drop other events (see `dropped`).

        source: the connection that caused the event; "" if no connection caused it.
        now: the time in seconds.
        time_ms: see `QueuedEvent`.
        """
        size = len(event) + OVERHEAD
        if not self._fits(size) and not self._make_room(size, source):
            return False
        self.events += 1
        self.bytes += size
        entry = QueuedEvent(event, self._add_to_source(source, size) if source else None, now, time_ms)
        if entry.source is not None:
            entry.source.waiting[entry] = None
        waiting = self._waiting.get(channel)
        if waiting is None:
            self._waiting[channel] = deque((entry,))
            if channel not in self._busy:
                self._ready.append(channel)
        else:
            waiting.append(entry)
        return True

    # Sources

    def _fits(self, size: int) -> bool:
        return self.events < self._max_events and self.bytes + size <= self._max_bytes

    def _part(self, size: int) -> float:
        return 1 / self._max_events + size / self._max_bytes

    def _add_to_source(self, name: str, size: int) -> Source:
        source = self._sources.get(name)
        if source is None:
            source = self._sources[name] = Source(name)
        source.part += self._part(size)
        if source.part > LARGE_PART:
            self._large[name] = source
        return source

    def _remove_from_source(self, entry: QueuedEvent) -> None:
        """Removes an event from its source, because the queue drops the event or puts it into a delivery."""
        source = entry.source
        if source is None:
            return
        del source.waiting[entry]
        source.part -= self._part(len(entry.event) + OVERHEAD)
        if source.part <= LARGE_PART:
            self._large.pop(source.name, None)
        if not source.waiting:
            del self._sources[source.name]

    def _make_room(self, size: int, name: str) -> bool:
        """Drops events of the source with the largest `part` until an event of `size` bytes fits; returns whether the event fits.

        name: the source of the new event. If no other source has a larger `part` than this one with the event, returns False.
        """
        own = self._sources.get(name)
        part = self._part(size) + (0.0 if own is None else own.part)
        while not self._fits(size):
            largest = max(self._large.values(), key=_part_of, default=None)
            if largest is None or largest.part <= part:
                return False
            entry = next(reversed(largest.waiting))
            self._remove_from_source(entry)
            self.dropped.append((entry.event, entry.time_ms, entry.at))
            self.events -= 1
            self.bytes -= len(entry.event) + OVERHEAD
            entry.event = b""
            self._gaps += 1
        if self._gaps > self.events:
            self._remove_gaps()
        return True

    def _remove_gaps(self) -> None:
        left = {channel: deque(entry for entry in entries if entry.event) for channel, entries in self._waiting.items()}
        self._waiting = {channel: entries for channel, entries in left.items() if entries}
        self._ready = deque(channel for channel in self._ready if channel in self._waiting)
        self._gaps = 0

    # Deliveries

    def next(self, now: float) -> Delivery | None:
        """Returns the next delivery to send, or None. The caller reports the result of the delivery to `done` or `failed`."""
        if len(self._current) >= self._concurrency:
            return None
        # Early retries take turns with new events, because the endpoint may reject the retries again.
        delivery = self.retries.take(now)
        if delivery is None:
            early = None if self._was_early else self.retries.take_early(self.failing)
            self._was_early = early is not None
            delivery = early or self._begin(now) or self.retries.take_early(self.failing)
        if delivery is None:
            return None
        delivery.in_outage = self.failing
        self._current.add(delivery)
        return delivery

    def _is_throttled(self) -> bool:
        return self.failing and len(self._current) + len(self.retries) >= self._concurrency

    def _is_half_full(self) -> bool:
        """Returns whether the endpoint fails and deliveries occupy at least half of the maximum size of the queue.

        Such a queue begins no new delivery. A full queue can drop only waiting events, so half of the queue is kept for them.
        """
        return self.failing and (2 * self._tried_events >= self._max_events or 2 * self._tried_bytes >= self._max_bytes)

    def _begin(self, now: float) -> Delivery | None:
        """Makes a delivery of the next events, with the same `time_ms`; returns None if no new delivery may begin."""
        if not self._ready or self._is_half_full():
            return None
        if self._is_throttled():
            if now < self._next_at:
                return None
            self._next_at = now + THROTTLE_SECONDS
        events: list[bytes] = []
        channels = []
        size = time_ms = 0
        queued: list[float] = []
        while self._ready and len(events) < self._batch:
            channel = self._ready[0]
            waiting = self._waiting[channel]
            self._skip_gaps(waiting)
            if events and waiting and (waiting[0].time_ms != time_ms or size + len(waiting[0].event) > MAX_BODY):
                break
            self._ready.popleft()
            if waiting:
                channels.append(channel)
                self._busy.add(channel)
            while waiting and len(events) < self._batch:
                if events and (waiting[0].time_ms != time_ms or size + len(waiting[0].event) > MAX_BODY):
                    break
                entry = waiting.popleft()
                self._remove_from_source(entry)
                size += len(entry.event)
                time_ms = entry.time_ms
                events.append(entry.event)
                queued.append(entry.at)
                self._skip_gaps(waiting)
            if waiting:
                break
            del self._waiting[channel]
        if not events:  # the queue has dropped all waiting events
            return None
        delivery = Delivery(tuple(channels), events, min(queued), time_ms)
        delivery.first = now
        self._tried_events += delivery.count
        self._tried_bytes += delivery.size
        return delivery

    def _skip_gaps(self, waiting: deque[QueuedEvent]) -> None:
        while waiting and not waiting[0].event:
            waiting.popleft()
            self._gaps -= 1

    def done(self, delivery: Delivery) -> None:
        """Removes a delivery after the endpoint has accepted it."""
        self.failing = False
        self._remove(delivery)

    def failed(self, delivery: Delivery, now: float, jitter: float) -> bool:
        """Schedules the retry of a delivery, or removes the delivery; returns whether the queue will retry the delivery.

        jitter: a factor near 1 by which the wait before the retry is multiplied.
        """
        self.failing = True
        delivery.attempts += 1
        delivery.rejected += not delivery.in_outage
        end = delivery.first + RETRIES_SECONDS
        at = min(end, now + wait(delivery.attempts if delivery.in_outage else delivery.rejected) * jitter)
        if now >= end:
            self._remove(delivery)
            return False
        self._current.discard(delivery)
        self.retries.add(delivery, at)
        return True

    def _remove(self, delivery: Delivery) -> None:
        self._current.discard(delivery)
        self.events -= delivery.count
        self.bytes -= delivery.size
        self._tried_events -= delivery.count
        self._tried_bytes -= delivery.size
        self._busy.difference_update(delivery.channels)
        if self._restored:
            self._claim_channels()
        self._ready.extend(channel for channel in delivery.channels if channel in self._waiting and channel not in self._busy)

    def when(self) -> float | None:
        """Returns when the next delivery can begin if the queue does not change; None if no delivery can begin."""
        if len(self._current) >= self._concurrency:
            return None
        at = self.next_retry
        if self._ready and not self._is_half_full():
            new = self._next_at if self._is_throttled() else 0.0
            at = new if at is None else min(at, new)
        return at

    # Between two processes

    def tried(self) -> Iterator[Delivery]:
        """Yields the current deliveries and the deliveries that wait for a retry; the oldest delivery is first."""
        yield from sorted(chain(self._current, self.retries))
        yield from self._restored

    def untried(self) -> Iterator[tuple[str, bytes, str, int]]:
        """Yields the channel, event, source and `time_ms` of each waiting event; the events of each channel are in order."""
        for channel, waiting in self._waiting.items():
            for entry in waiting:
                if entry.event:
                    yield channel, entry.event, "" if entry.source is None else entry.source.name, entry.time_ms

    def restore(self, delivery: Delivery, now: float) -> None:
        """Adds a delivery of an earlier process. A restored delivery precedes the waiting events of its channels."""
        delivery.first = delivery.queued = now
        self.events += delivery.count
        self.bytes += delivery.size
        self._tried_events += delivery.count
        self._tried_bytes += delivery.size
        self._restored.append(delivery)
        self._claim_channels()

    def _claim_channels(self) -> None:
        """Schedules the restored deliveries whose channels are not blocked by another delivery."""
        left = []
        for delivery in self._restored:
            if self._busy.isdisjoint(delivery.channels):
                self._busy.update(delivery.channels)
                for channel in self._waiting.keys() & delivery.channels:
                    if channel in self._ready:
                        self._ready.remove(channel)
                self.retries.add(delivery, delivery.first)
            else:
                left.append(delivery)
        self._restored = left


def _part_of(source: Source) -> float:
    return source.part
