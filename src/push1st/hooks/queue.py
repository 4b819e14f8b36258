"""The queue of one endpoint: bounded, in order per channel, with what is under way and what waits to be tried again.

Pure: the time is an argument, and it sends nothing. A delivery holds the channels of its events until it is done, so that
what is behind it on those channels stays behind it; other channels go past. While an endpoint fails, deliveries are not
begun beyond its concurrency but for one a second, so that one that is down is not knocked at by everything that waits.

The source of an event is the connection that caused it; all subscription counts have one source. When the queue is full, a new
event replaces the newest event of the source that has the largest part of the queue, if the new event's source has less. So a
client that publishes without end loses its own events, and the events of others are queued. While there is room, one source may
use all of it.
"""

import heapq
from collections import deque
from collections.abc import Iterator

RETRIES_SECONDS = 300.0
"""from the first try to giving up (Pusher protocol, section 9)"""
LONGEST_WAIT = 60.0
FRESH_SECONDS = 1.0
"""between two beginnings while the endpoint fails"""
OVERHEAD = 250
"""bytes an event takes beside its own"""
MAX_BODY = 1 << 20
"""bytes of events in a batch, if it has more than one"""
HOG = 0.02
"""a source with more than this part of the queue gives way to others"""


def wait(attempts: int) -> float:
    """Seconds after so many failed attempts: 1, 2, 4 … 60."""
    return min(LONGEST_WAIT, 2.0 ** min(attempts - 1, 10))


class Source:
    """The events of one connection. part: its part of the queue's events plus its part of the bytes. waiting: oldest first."""

    __slots__ = ("name", "part", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.part = 0.0
        self.waiting: dict[Entry, None] = {}


class Entry:
    """An event that waits; b"" after it gave way. source: None where no connection caused it."""

    __slots__ = ("event", "source")

    def __init__(self, event: bytes, source: Source | None) -> None:
        self.event = event
        self.source = source


class Delivery:
    """Events that go together. events: JSON texts; id and body: set when it is first sent."""

    __slots__ = ("attempts", "body", "channels", "count", "events", "first", "id", "size")

    def __init__(self, channels: tuple[str, ...], events: list[bytes]) -> None:
        self.channels = channels
        self.events = events
        self.count = len(events)
        self.size = sum(map(len, events)) + OVERHEAD * len(events)
        self.id = ""
        self.body = b""
        self.attempts = 0
        self.first = 0.0

    def __lt__(self, other: "Delivery") -> bool:
        return self.first < other.first


class Queue:
    """most_events, most_bytes: that may wait, those under way included."""

    def __init__(self, concurrency: int, batch: int, most_events: int, most_bytes: int) -> None:
        self._concurrency = concurrency
        self._batch = min(batch, max(1, most_events // (2 * concurrency)))
        self._most_events = most_events
        self._most_bytes = most_bytes
        self._waiting: dict[str, deque[Entry]] = {}
        """by channel; none is empty"""
        self._sources: dict[str, Source] = {}
        self._hogs: dict[str, Source] = {}
        """sources over `HOG`: at most 100, because the sum of all parts is 2 at most"""
        self._gaps = 0
        """entries whose event gave way, and that are still in `_waiting`"""
        self.gave_way: list[bytes] = []
        """events that gave way; the caller of `put` takes them out"""
        self._ready: deque[str] = deque()
        """channels with something waiting and nothing under way"""
        self._busy: set[str] = set()
        self._under_way: set[Delivery] = set()
        self._retries: list[tuple[float, Delivery]] = []
        self._restored: list[Delivery] = []
        """what another process has tried, behind something that is on its channels already"""
        self._failing = False
        self._fresh_at = 0.0
        self.events = 0
        self.bytes = 0
        self._tried_events = 0
        self._tried_bytes = 0
        """events in deliveries, and their bytes; these never give way"""

    @property
    def retrying(self) -> int:
        """Events that have been tried, and will be again."""
        waiting = (*(one for _, one in self._retries), *self._restored)
        return sum(one.count for one in waiting) + sum(one.count for one in self._under_way if one.attempts)

    @property
    def idle(self) -> bool:
        return not self.events

    def put(self, channel: str, event: bytes, source: str = "") -> bool:
        """Queues an event; returns whether it is queued. Other events may give way to it (`gave_way`).

        source: the connection that caused it, or "".
        """
        size = len(event) + OVERHEAD
        if not self._fits(size) and not self._make_room(size, source):
            return False
        self.events += 1
        self.bytes += size
        entry = Entry(event, self._enter(source, size) if source else None)
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
        return self.events < self._most_events and self.bytes + size <= self._most_bytes

    def _part(self, size: int) -> float:
        return 1 / self._most_events + size / self._most_bytes

    def _enter(self, name: str, size: int) -> Source:
        source = self._sources.get(name)
        if source is None:
            source = self._sources[name] = Source(name)
        source.part += self._part(size)
        if source.part > HOG:
            self._hogs[name] = source
        return source

    def _forget(self, entry: Entry) -> None:
        """Removes an event from its source, because the event gave way or is in a delivery."""
        source = entry.source
        if source is None:
            return
        del source.waiting[entry]
        source.part -= self._part(len(entry.event) + OVERHEAD)
        if source.part <= HOG:
            self._hogs.pop(source.name, None)
        if not source.waiting:
            del self._sources[source.name]

    def _make_room(self, size: int, name: str) -> bool:
        """Drops events of the source with the largest part until an event of `size` fits; returns whether it fits.

        Stops if the part of source `name`, with the new event, would be at least as large.
        """
        own = self._sources.get(name)
        part = self._part(size) + (0.0 if own is None else own.part)
        while not self._fits(size):
            hog = max(self._hogs.values(), key=_part_of, default=None)
            if hog is None or hog.part <= part:
                return False
            entry = next(reversed(hog.waiting))
            self._forget(entry)
            self.gave_way.append(entry.event)
            self.events -= 1
            self.bytes -= len(entry.event) + OVERHEAD
            entry.event = b""
            self._gaps += 1
        if self._gaps > self.events:
            self._close_gaps()
        return True

    def _close_gaps(self) -> None:
        left = {channel: deque(entry for entry in entries if entry.event) for channel, entries in self._waiting.items()}
        self._waiting = {channel: entries for channel, entries in left.items() if entries}
        self._ready = deque(channel for channel in self._ready if channel in self._waiting)
        self._gaps = 0

    # Deliveries

    def next(self, now: float) -> Delivery | None:
        """What is to be sent now; to be followed by `done` or `failed`."""
        if len(self._under_way) >= self._concurrency:
            return None
        if self._retries and self._retries[0][0] <= now:
            delivery = heapq.heappop(self._retries)[1]
        elif not self._ready or self._is_half_tried():
            return None
        else:
            if self._is_held():
                if now < self._fresh_at:
                    return None
                self._fresh_at = now + FRESH_SECONDS
            delivery = self._begin()
            if not delivery.count:
                return None
            delivery.first = now
        self._under_way.add(delivery)
        return delivery

    def _is_held(self) -> bool:
        return self._failing and len(self._under_way) + len(self._retries) >= self._concurrency

    def _is_half_tried(self) -> bool:
        """Whether half of the queue is in deliveries of a failing endpoint. Then no more begin: their events cannot give way."""
        return self._failing and (2 * self._tried_events >= self._most_events or 2 * self._tried_bytes >= self._most_bytes)

    def _begin(self) -> Delivery:
        """Begins a delivery of the next events; the delivery is empty if all waiting events gave way."""
        events: list[bytes] = []
        channels = []
        size = 0
        while self._ready and len(events) < self._batch:
            channel = self._ready[0]
            waiting = self._waiting[channel]
            self._skip_gaps(waiting)
            if events and waiting and size + len(waiting[0].event) > MAX_BODY:
                break
            self._ready.popleft()
            if waiting:
                channels.append(channel)
                self._busy.add(channel)
            while waiting and len(events) < self._batch and (not events or size + len(waiting[0].event) <= MAX_BODY):
                entry = waiting.popleft()
                self._forget(entry)
                size += len(entry.event)
                events.append(entry.event)
                self._skip_gaps(waiting)
            if waiting:
                break
            del self._waiting[channel]
        delivery = Delivery(tuple(channels), events)
        self._tried_events += delivery.count
        self._tried_bytes += delivery.size
        return delivery

    def _skip_gaps(self, waiting: deque[Entry]) -> None:
        while waiting and not waiting[0].event:
            waiting.popleft()
            self._gaps -= 1

    def done(self, delivery: Delivery) -> None:
        """It has arrived."""
        self._failing = False
        self._drop(delivery)

    def failed(self, delivery: Delivery, now: float, jitter: float) -> bool:
        """It has not arrived: whether it will be tried again. jitter: a factor near 1."""
        self._failing = True
        delivery.attempts += 1
        at = now + wait(delivery.attempts) * jitter
        if at - delivery.first > RETRIES_SECONDS:
            self._drop(delivery)
            return False
        self._under_way.discard(delivery)
        heapq.heappush(self._retries, (at, delivery))
        return True

    def _drop(self, delivery: Delivery) -> None:
        self._under_way.discard(delivery)
        self.events -= delivery.count
        self.bytes -= delivery.size
        self._tried_events -= delivery.count
        self._tried_bytes -= delivery.size
        self._busy.difference_update(delivery.channels)
        if self._restored:
            self._go_on()
        self._ready.extend(channel for channel in delivery.channels if channel in self._waiting and channel not in self._busy)

    def when(self) -> float | None:
        """When `next` should be asked again, if nothing else happens before."""
        if len(self._under_way) >= self._concurrency:
            return None
        at = self._retries[0][0] if self._retries else None
        if self._ready and not self._is_half_tried():
            fresh = self._fresh_at if self._is_held() else 0.0
            at = fresh if at is None else min(at, fresh)
        return at

    # Between two processes

    def tried(self) -> Iterator[Delivery]:
        """What is under way or waits to be tried again, the oldest first."""
        yield from sorted((*self._under_way, *(one for _, one in self._retries)))
        yield from self._restored

    def untried(self) -> Iterator[tuple[str, bytes, str]]:
        """Yields channel, event and source of each waiting event, as arguments of `put`, in order per channel."""
        for channel, waiting in self._waiting.items():
            for entry in waiting:
                if entry.event:
                    yield channel, entry.event, "" if entry.source is None else entry.source.name

    def restore(self, delivery: Delivery, now: float) -> None:
        """Takes up what another process has tried: before what waits, behind what is under way on its channels."""
        delivery.first = now
        self.events += delivery.count
        self.bytes += delivery.size
        self._tried_events += delivery.count
        self._tried_bytes += delivery.size
        self._restored.append(delivery)
        self._go_on()

    def _go_on(self) -> None:
        """What was restored takes its channels as soon as they are free."""
        left = []
        for delivery in self._restored:
            if self._busy.isdisjoint(delivery.channels):
                self._busy.update(delivery.channels)
                for channel in self._waiting.keys() & delivery.channels:
                    if channel in self._ready:
                        self._ready.remove(channel)
                heapq.heappush(self._retries, (delivery.first, delivery))
            else:
                left.append(delivery)
        self._restored = left


def _part_of(source: Source) -> float:
    return source.part
