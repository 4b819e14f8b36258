"""THE HOT PATH: from a message to one write a subscriber and loop turn.

`receive` encodes a message once per wire and keeps the frame as pending for the channel; at the end of the loop turn
`flush` joins what each lane got into one buffer and writes that buffer to every subscriber of the lane. Nearly all of
a delivery is the kernel's `send`, so the loops here do nothing but call it.

The rules (invariants 2 to 5), and where they are kept:
- A channel's pending frames go to the subscribers they were meant for: whoever changes a lane's subscribers calls
  `settle_lanes` first.
- What is sent to one connection directly queues behind what its channels owe it: `direct` calls `settle` first, and
  every flush writes the direct frames first.
- What many get is not written message by message while more comes: after a flush that wrote many of them at once, the
  next one waits for as many, for some milliseconds at most (decision 0012). Direct frames do not wait.
- A lane with many subscribers is written in slices, one a loop turn. A slice keeps its subscribers; later frames
  queue behind it.
- Nothing here waits: a transport that cannot send buffers up to its bound, then tells its connection, which cuts
  itself off in the next turn. So no write changes the set it is called from.
"""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Protocol

from push1st.clock import Clock
from push1st.core.hub import Lane, Slice, Subscriber, Tenant, Write
from push1st.messages import Message
from push1st.metrics import Metrics

SLICE_WRITES = 2048
"""writes a loop turn before the rest waits for the next: about 15 ms"""
MAX_PENDING_BYTES = 262_144
"""bytes that a lane, or the direct frames of a connection, may keep before they are flushed early"""
MAX_OVERRIDES = 32
"""subscribers with frames of their own that a lane may keep before it is flushed early"""
MAX_SLICES = 4
"""slices a lane may queue before the oldest is finished at once"""
HOLD_SECONDS_PER_WRITE = 0.000_016
"""seconds a flush may wait for each write of the last one: two to three times what that takes"""
MIN_HOLD_SECONDS, MAX_HOLD_SECONDS = 0.001, 0.008
"""seconds a flush may wait: less is not worth a timer, more would be felt"""


class Timer(Protocol):
    def cancel(self) -> object: ...


class Turns(Protocol):
    """The event loop, as far as the fan-out needs it."""

    def call_soon(self, run: Callable[[], None]) -> object:
        """Runs a function at the end of this loop turn, or of one soon after it."""

    def call_later(self, seconds: float, run: Callable[[], None]) -> Timer: ...


class DirectFrames:
    """Frames for one connection only, kept for the end of the turn."""

    __slots__ = ("frames", "size", "write")

    def __init__(self, write: Write) -> None:
        self.write = write
        self.frames: list[bytes] = []
        self.size = 0


class Fanout:
    """failed: called in the handler of an exception that a write raised; the other subscribers get theirs all the same."""

    __slots__ = (
        "_call_later",
        "_call_soon",
        "_clock",
        "_delivered",
        "_direct",
        "_due_deliveries",
        "_ended",
        "_failed",
        "_lanes",
        "_metrics",
        "_monotonic",
        "_scheduled",
        "_timer",
        "_wrote",
    )

    def __init__(self, turns: Turns, clock: Clock, metrics: Metrics, failed: Callable[[], None]) -> None:
        self._failed = failed
        self._call_soon = turns.call_soon
        self._call_later = turns.call_later
        self._clock = clock.wall
        self._monotonic = clock.monotonic
        self._metrics = metrics
        self._lanes: dict[Lane, None] = {}
        self._direct: dict[Subscriber, DirectFrames] = {}
        self._scheduled = False
        self._due_deliveries = 0
        """messages that wait for the flush, each as often as it has subscribers"""
        self._delivered = self._wrote = 0
        """such messages of the last flush, and its writes"""
        self._ended = 0.0
        """when it ended"""
        self._timer: Timer | None = None

    def receive(self, tenant: Tenant, message: Message) -> int:
        """Queues a message to its channel's subscribers on this worker; returns how many that are."""
        channel = tenant.channels.get(message.channel)
        if channel is None:
            return 0
        if message.delivery != "broadcast":
            return self._receive_targeted(tenant, message)
        count = 0
        excluded = also = None
        if message.exclude:
            excluded = tenant.sessions.get(message.exclude)
            if message.target and message.target != message.exclude:
                also = tenant.sessions.get(message.target)
        now = self._clock()
        lanes = self._lanes
        for lane in channel.lanes:
            size = len(lane.writes)
            if not size:
                continue
            frame = lane.wire.message(message, now)
            overrides = lane.overrides
            if also is not None and also in lane.writes:
                size -= 1
                if also not in overrides:
                    overrides[also] = lane.frames.copy()
            if excluded is not None and excluded in lane.writes:
                size -= 1
                if excluded not in overrides:
                    overrides[excluded] = lane.frames.copy()
            if overrides:
                for other, frames in overrides.items():
                    if other is not excluded and other is not also:
                        frames.append(frame)
            lane.frames.append(frame)
            lane.size += len(frame)
            count += size
            if lane not in lanes or lane.size > MAX_PENDING_BYTES or overrides:
                self._due(lane)
        self._due_deliveries += count
        if self._timer is not None and self._due_deliveries >= self._delivered:
            self._timer.cancel()
            self._timer = None
            self._schedule()
        self._metrics.messages_out += count
        return count

    def _receive_targeted(self, tenant: Tenant, message: Message) -> int:
        count = 0
        now = self._clock()
        frames: dict[Lane, bytes] = {}
        for target in tenant.targets(message):
            lane = tenant.channels[message.channel].lane(target.wire)
            if lane is None or target not in lane.writes or target.id == message.exclude:
                continue
            if lane not in frames:
                frames[lane] = lane.wire.message(message, now)
            if target not in lane.overrides:
                lane.overrides[target] = lane.frames.copy()
            lane.overrides[target].append(frames[lane])
            lane.size += len(frames[lane])
            count += 1
            self._due(lane)
        self._due_deliveries += count
        self._metrics.messages_out += count
        return count

    def _due(self, lane: Lane) -> None:
        if lane.size > MAX_PENDING_BYTES or len(lane.overrides) > MAX_OVERRIDES:
            self._flush_direct()
            self._flush_lane(lane)
            if not lane.due:
                self._lanes.pop(lane, None)
                return
        self._lanes[lane] = None
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._call_soon(self.turn)

    def direct(self, subscriber: Subscriber, frame: bytes) -> None:
        """Queues a frame for one connection, behind what its channels owe it."""
        if self._lanes:
            self.settle(subscriber)
        direct = self._direct.get(subscriber)
        if direct is None:
            direct = self._direct[subscriber] = DirectFrames(subscriber.write)
            self._schedule()
        direct.frames.append(frame)
        direct.size += len(frame)
        if direct.size > MAX_PENDING_BYTES:
            self._flush_direct_to(subscriber)

    def settle(self, subscriber: Subscriber) -> None:
        """Writes what is due to this connection now."""
        # A connection may have thousands of subscriptions, so a ping must not check the lane of each subscription.
        mine, due = subscriber.lanes, self._lanes
        lanes = (
            [lane for lane in mine if lane in due]
            if len(mine) <= len(due)
            else [lane for lane in due if subscriber in lane.writes]
        )
        if lanes:
            self._flush_direct()  # what others are to get before these lanes' frames
        else:
            self._flush_direct_to(subscriber)
        for lane in lanes:
            self._flush_lane(lane)
            for part in lane.slices:
                write = part.remaining.pop(subscriber, None)
                if write is not None:
                    self._write((write,), part.buffer)

    def settle_lanes(self, lanes: list[Lane]) -> None:
        """Fixes who gets the pending frames of a channel, before its subscribers change."""
        for lane in lanes:
            if lane in self._lanes:
                self._flush_direct()
                self._flush_lane(lane)

    def subscribe(self, tenant: Tenant, subscriber: Subscriber, name: str) -> Lane:
        """Adds a subscriber to a channel, after the channel's pending frames went to the subscribers before it."""
        channel = tenant.channels.get(name)
        if channel is not None:
            self.settle_lanes(channel.lanes)
        return tenant.subscribe(subscriber, name)

    def forget(self, subscriber: Subscriber, lanes: Iterable[Lane]) -> None:
        """A connection that was on these lanes is gone: nothing more is written to it."""
        self._direct.pop(subscriber, None)
        for lane in lanes:
            if lane in self._lanes:
                lane.overrides.pop(subscriber, None)
                for part in lane.slices:
                    part.remaining.pop(subscriber, None)

    def turn(self) -> None:
        """The end of a loop turn: a flush, unless it is better to wait for more."""
        if self._due_deliveries < self._delivered and self._lanes and self._holds():
            self._scheduled = False
            self._flush_direct()
        else:
            self.flush()

    def _holds(self) -> bool:
        """Whether a flush waits that has less than the last one, which ended just now and wrote much, several messages each."""
        if self._timer is None:
            seconds = min(HOLD_SECONDS_PER_WRITE * self._wrote, MAX_HOLD_SECONDS)
            if seconds < MIN_HOLD_SECONDS or self._delivered < 2 * self._wrote or self._monotonic() - self._ended > seconds:
                return False
            self._timer = self._call_later(seconds, self.flush)
        return True

    def flush(self) -> None:
        """Everything pending goes out, or as much of it as a turn may take."""
        self._scheduled = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._direct:
            self._flush_direct()
        lanes = self._lanes
        if not lanes:
            return
        self._delivered, self._due_deliveries = self._due_deliveries, 0
        budget = SLICE_WRITES
        long: list[Lane] = []
        for lane in list(lanes):
            writes = lane.writes
            frames = lane.frames
            if frames and not lane.slices and not lane.overrides and len(writes) <= budget:
                # What nearly every lane is: one buffer, for all, at once.
                buffer = frames[0] if len(frames) == 1 else b"".join(frames)
                lane.frames, lane.size = [], 0
                del lanes[lane]
                budget -= len(writes)
                self._metrics.bytes_out += len(buffer) * len(writes)
                rest = iter(writes.values())
                try:
                    for write in rest:
                        write(buffer)
                except Exception:
                    self._failed()
                    self._write(rest, buffer)
                continue
            if not lane.slices and budget > 0:
                self._flush_lane(lane)
                budget -= 0 if lane.slices else len(lane.writes)
            if lane.slices:
                long.append(lane)
            elif not lane.due:
                del lanes[lane]
        # Long flushes share what is left, but at least half a turn, and take turns.
        each = max(budget, SLICE_WRITES // 2) // max(1, len(long)) or 1
        self._wrote = SLICE_WRITES - budget
        for lane in long:
            self._wrote += self._flush_slices(lane, each)
            if not lane.due:
                del lanes[lane]
        self._ended = self._monotonic()
        if lanes and not self._scheduled:
            self._scheduled = True
            self._call_soon(self.flush)

    def _write(self, writes: Iterable[Write], buffer: bytes) -> None:
        rest = iter(writes)
        while True:
            try:
                for write in rest:
                    write(buffer)
                return
            except Exception:
                self._failed()  # and on with the next one

    @property
    def pending(self) -> int:
        """Bytes that wait for the end of the turn."""
        return sum(lane.size for lane in self._lanes)

    @property
    def slices(self) -> int:
        """Parts of long flushes that wait for further turns."""
        return sum(len(lane.slices) for lane in self._lanes)

    def _flush_direct(self) -> None:
        if self._direct:
            queued = self._direct
            self._direct = {}
            for direct in queued.values():
                frames = direct.frames
                buffer = frames[0] if len(frames) == 1 else b"".join(frames)
                self._metrics.bytes_out += len(buffer)
                self._write((direct.write,), buffer)

    def _flush_direct_to(self, subscriber: Subscriber) -> None:
        direct = self._direct.pop(subscriber, None)
        if direct is not None:
            buffer = b"".join(direct.frames)
            self._metrics.bytes_out += len(buffer)
            self._write((direct.write,), buffer)

    def _flush_lane(self, lane: Lane) -> None:
        """Writes a lane's pending frames, or makes a slice of them when that would take too long."""
        frames, overrides, writes = lane.frames, lane.overrides, lane.writes
        if not frames and not overrides:
            return
        lane.frames, lane.overrides, lane.size = [], {}, 0
        metrics = self._metrics
        for subscriber, own in overrides.items():
            if own:
                buffer = b"".join(own)
                for part in lane.slices:
                    late = part.remaining.pop(subscriber, None)
                    if late is not None:
                        self._write((late,), part.buffer)
                metrics.bytes_out += len(buffer)
                self._write((writes[subscriber],), buffer)
        if not frames:
            return
        buffer = frames[0] if len(frames) == 1 else b"".join(frames)
        metrics.bytes_out += len(buffer) * (len(writes) - len(overrides))
        if len(writes) > SLICE_WRITES or lane.slices:
            remaining = {s: write for s, write in writes.items() if s not in overrides} if overrides else writes.copy()
            lane.slices.append(Slice(buffer, remaining))
            while len(lane.slices) > MAX_SLICES:
                oldest = lane.slices.pop(0)
                self._write(oldest.remaining.values(), oldest.buffer)
        elif overrides:
            self._write([write for subscriber, write in writes.items() if subscriber not in overrides], buffer)
        else:
            self._write(writes.values(), buffer)

    def _flush_slices(self, lane: Lane, budget: int) -> int:
        """Writes up to `budget` of a lane's slices; returns how many it wrote."""
        part = lane.slices[0]
        remaining, buffer = part.remaining, part.buffer
        some = [remaining.pop(subscriber) for subscriber in list(islice(remaining, budget))]
        self._write(some, buffer)
        if not remaining:
            lane.slices.pop(0)
        return len(some)
