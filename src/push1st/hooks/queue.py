"""The queue of one endpoint: bounded, in order per channel, with what is under way and what waits to be tried again.

Pure: the time is an argument, and it sends nothing. A delivery holds the channels of its events until it is done, so that
what is behind it on those channels stays behind it; other channels go past. While an endpoint fails, deliveries are not
begun beyond its concurrency but for one a second, so that one that is down is not knocked at by everything that waits.
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
MOST_BODY = 1 << 20
"""bytes of events in a batch, if it has more than one"""


def wait(attempts: int) -> float:
    """Seconds after so many failed attempts: 1, 2, 4 … 60."""
    return min(LONGEST_WAIT, 2.0 ** min(attempts - 1, 10))


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
        self._batch = batch
        self._most_events = most_events
        self._most_bytes = most_bytes
        self._waiting: dict[str, deque[bytes]] = {}
        """by channel; none is empty"""
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

    @property
    def retrying(self) -> int:
        """Events that have been tried, and will be again."""
        waiting = (*(one for _, one in self._retries), *self._restored)
        return sum(one.count for one in waiting) + sum(one.count for one in self._under_way if one.attempts)

    @property
    def idle(self) -> bool:
        return not self.events

    def put(self, channel: str, event: bytes) -> bool:
        """Whether there was room."""
        size = len(event) + OVERHEAD
        if self.events >= self._most_events or self.bytes + size > self._most_bytes:
            return False
        self.events += 1
        self.bytes += size
        waiting = self._waiting.get(channel)
        if waiting is None:
            self._waiting[channel] = deque((event,))
            if channel not in self._busy:
                self._ready.append(channel)
        else:
            waiting.append(event)
        return True

    def next(self, now: float) -> Delivery | None:
        """What is to be sent now; to be followed by `done` or `failed`."""
        if len(self._under_way) >= self._concurrency:
            return None
        if self._retries and self._retries[0][0] <= now:
            delivery = heapq.heappop(self._retries)[1]
        elif not self._ready:
            return None
        else:
            if self._is_held():
                if now < self._fresh_at:
                    return None
                self._fresh_at = now + FRESH_SECONDS
            delivery = self._begin()
            delivery.first = now
        self._under_way.add(delivery)
        return delivery

    def _is_held(self) -> bool:
        return self._failing and len(self._under_way) + len(self._retries) >= self._concurrency

    def _begin(self) -> Delivery:
        events: list[bytes] = []
        channels = []
        size = 0
        while self._ready and len(events) < self._batch:
            channel = self._ready[0]
            waiting = self._waiting[channel]
            if events and size + len(waiting[0]) > MOST_BODY:
                break
            self._ready.popleft()
            channels.append(channel)
            self._busy.add(channel)
            while waiting and len(events) < self._batch and (not events or size + len(waiting[0]) <= MOST_BODY):
                size += len(waiting[0])
                events.append(waiting.popleft())
            if waiting:
                break
            del self._waiting[channel]
        return Delivery(tuple(channels), events)

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
        self._busy.difference_update(delivery.channels)
        if self._restored:
            self._go_on()
        self._ready.extend(channel for channel in delivery.channels if channel in self._waiting and channel not in self._busy)

    def when(self) -> float | None:
        """When `next` should be asked again, if nothing else happens before."""
        if len(self._under_way) >= self._concurrency:
            return None
        at = self._retries[0][0] if self._retries else None
        if self._ready:
            fresh = self._fresh_at if self._is_held() else 0.0
            at = fresh if at is None else min(at, fresh)
        return at

    # Between two processes

    def tried(self) -> Iterator[Delivery]:
        """What is under way or waits to be tried again, the oldest first."""
        yield from sorted((*self._under_way, *(one for _, one in self._retries)))
        yield from self._restored

    def untried(self) -> Iterator[tuple[str, bytes]]:
        """The rest, in order per channel."""
        for channel, waiting in self._waiting.items():
            yield from ((channel, event) for event in waiting)

    def restore(self, delivery: Delivery, now: float) -> None:
        """Takes up what another process has tried: before what waits, behind what is under way on its channels."""
        delivery.first = now
        self.events += delivery.count
        self.bytes += delivery.size
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
