"""THE HOT PATH: delivers messages, and joins a subscriber's frames of one turn of the event loop into one write.

`receive` encodes a message once for each *lane*: the subscribers of a channel that share a wire (an encoder). `receive` adds the
frame to the lane's pending frames. At the end of the loop turn, `flush` joins the pending frames of each lane to a buffer, and
writes the buffer to the lane's subscribers. A delivery spends nearly all its time in the kernel's `send`.

The rules of the fan-out (invariants 2 to 5), and the functions that keep these rules:
- A message goes to the subscribers that its channel had when the message arrived. So pending frames of a lane are written before
  the subscribers of the lane change (`flush_lanes`).
- A direct frame, which is for one connection, is written after the earlier frames of the connection's channels. So `direct` first
  writes the connection's pending frames (`flush_subscriber`). If these channels' lanes hold frames at the next flush,
  these frames are newer than the direct frame. So the flush writes direct frames first.
- Under load, several messages to a subscriber share one write. So after a flush with many deliveries, the next flush waits for
  more messages (decision 0012). The wait ends when the pending deliveries reach the number of deliveries of the previous flush,
  or, at the latest, after `MAX_HOLD_SECONDS`. Direct frames do not wait.
- A flush to a lane with many subscribers takes several loop turns. A `Slice` keeps the buffer of the flush, and the subscribers
  that have not received the buffer. Later frames of the lane are queued after the slice.
- No function of this module waits for a connection. A transport that cannot send keeps the bytes in its buffer. If the buffer is
  full, the transport ends its connection in the next turn. So no write removes a subscriber during a loop over subscribers.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Protocol

from push1st.clock import Clock
from push1st.core.hub import Frame, Lane, Slice, Subscriber, Tenant, Wire, Write
from push1st.messages import Message

SLICE_WRITES = 2048
"""the maximum number of writes in one loop turn (about 15 ms of work); further writes wait for the next turn"""
MAX_PENDING_BYTES = 262_144
"""the number of pending bytes of a lane, or of a connection's direct frames, above which these frames are flushed at once"""
MAX_OVERRIDES = 32
"""above this number of subscribers in `Lane.overrides`, a lane is flushed at once, because each message goes to every override"""
MAX_SLICES = 4
"""the maximum number of slices of a lane; when a new slice exceeds this maximum, the oldest slice is written at once"""
HOLD_SECONDS_PER_WRITE = 0.000_016
"""the maximum wait of a flush, in seconds per write of the previous flush: two to three times the duration of a write"""
MIN_HOLD_SECONDS, MAX_HOLD_SECONDS = 0.001, 0.008
"""minimum and maximum seconds that a flush waits: a shorter wait is not worth a timer, and users would notice a longer wait"""


class Timer(Protocol):
    def cancel(self) -> object: ...


class Turns(Protocol):
    """The functions of the event loop that the fan-out uses."""

    def call_soon(self, run: Callable[[], None]) -> object:
        """Calls a function at the end of this turn of the event loop, or soon after this turn."""

    def call_later(self, seconds: float, run: Callable[[], None]) -> Timer: ...


class DirectFrames:
    """The pending frames for a single connection, which are written at the end of the loop turn."""

    __slots__ = ("frames", "size", "write")

    def __init__(self, write: Write) -> None:
        self.write = write
        self.frames: list[bytes] = []
        self.size = 0


class Fanout:
    """See the module.

    `failed`: a function that is called when a write raises an exception. All other subscribers still get their frames.
    """

    __slots__ = (
        "_clock",
        "_delivered",
        "_direct",
        "_due_deliveries",
        "_ended",
        "_failed",
        "_lanes",
        "_monotonic",
        "_scheduled",
        "_timer",
        "_wrote",
        "after_flush",
        "call_later",
        "call_soon",
    )

    def __init__(self, turns: Turns, clock: Clock, failed: Callable[[], None]) -> None:
        self._failed = failed
        self.call_soon = turns.call_soon
        self.after_flush: list[Callable[[], None]] = []
        """functions that are called once, after the next flush after which no frame is pending"""
        self.call_later = turns.call_later
        self._clock = clock.wall
        self._monotonic = clock.monotonic
        self._lanes: dict[Lane, None] = {}
        self._direct: dict[Subscriber, DirectFrames] = {}
        self._scheduled = False
        self._due_deliveries = 0
        """the number of pending deliveries: a pending message counts once for each of its subscribers"""
        self._delivered = self._wrote = 0
        """the numbers of deliveries and of writes of the previous flush"""
        self._ended = 0.0
        """the time at which the previous flush ended, in seconds on `Clock.monotonic`"""
        self._timer: Timer | None = None

    def receive(self, tenant: Tenant, message: Message) -> int:
        """Queues a message for its channel's subscribers on this worker; returns the number of these subscribers."""
        channel = tenant.channels.get(message.channel)
        if tenant.filters is not None:
            receivers = tenant.receivers(message)
        elif channel is not None:
            receivers = channel.lanes
        else:
            return 0
        if message.delivery != "broadcast":
            return self._receive_targeted(tenant, message, receivers)
        count = 0
        excluded = also = None
        if message.exclude:
            excluded = tenant.sessions.get(message.exclude)
            if message.target and message.target != message.exclude:
                also = tenant.sessions.get(message.target)
        now = self._clock()
        lanes = self._lanes
        for lane in receivers:
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
        tenant.counts.messages_out += count
        return count

    def _receive_targeted(self, tenant: Tenant, message: Message, receivers: Sequence[Lane]) -> int:
        count = 0
        now = self._clock()
        frames: dict[Lane, Frame] = {}
        for target in tenant.targets(message):
            if target.id == message.exclude:
                continue
            for lane in receivers:
                if target not in lane.writes:
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
        tenant.counts.messages_out += count
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
            self.call_soon(self.turn)

    def direct(self, subscriber: Subscriber, frame: bytes, is_ahead: bool = False) -> None:
        """Queues a frame for one connection, after all pending frames of the channels to which the connection is subscribed.

        `is_ahead`: whether the frame is queued before the frames that are pending in lanes, and not after them.
        """
        if self._lanes and not is_ahead:
            self.flush_subscriber(subscriber)
        direct = self._direct.get(subscriber)
        if direct is None:
            direct = self._direct[subscriber] = DirectFrames(subscriber.write)
            self._schedule()
        direct.frames.append(frame)
        direct.size += len(frame)
        if direct.size > MAX_PENDING_BYTES:
            self._flush_direct_to(subscriber)

    def flush_subscriber(self, subscriber: Subscriber) -> None:
        """Writes all pending frames of a connection now."""
        # A connection may have thousands of subscriptions, and each answer to a ping calls this method. So the search
        # loops over `mine` or `due`, depending on which of them is shorter.
        mine, due = subscriber.lanes, self._lanes
        lanes = (
            [lane for lane in mine if lane in due]
            if len(mine) <= len(due)
            else [lane for lane in due if subscriber in lane.writes]
        )
        if lanes:
            self._flush_direct()  # frames of lanes are newer than direct frames
        else:
            self._flush_direct_to(subscriber)
        for lane in lanes:
            self._flush_lane(lane)
            for part in lane.slices:
                write = part.remaining.pop(subscriber, None)
                if write is not None:
                    self._write((write,), part.buffer)

    def flush_lanes(self, lanes: list[Lane]) -> None:
        """Writes the pending frames of lanes to the lanes' current subscribers. Called before these subscribers change."""
        for lane in lanes:
            if lane in self._lanes:
                self._flush_direct()
                self._flush_lane(lane)

    def subscribe(
        self, tenant: Tenant, subscriber: Subscriber, name: str, wire: Wire | None = None, deliver: Write | None = None
    ) -> Lane:
        """Writes a channel's pending frames to its current subscribers; then adds a subscriber. Returns the subscriber's lane.

        `wire`, `deliver`: see `Tenant.subscribe`.
        """
        channel = tenant.channels.get(name)
        if channel is not None:
            self.flush_lanes(channel.lanes)
        return tenant.subscribe(subscriber, name, wire, deliver)

    def move(self, tenant: Tenant, subscriber: Subscriber, name: str, wire: Wire, deliver: Write | None = None) -> Lane:
        """Moves a subscriber of a channel to another wire: later messages have the frames of this wire. Returns the new lane.

        `deliver`: see `Tenant.subscribe`.
        """
        self.flush_lanes(tenant.channels[name].lanes)
        self.flush_subscriber(subscriber)
        return tenant.move(subscriber, name, wire, deliver)

    def forget(self, subscriber: Subscriber, lanes: Iterable[Lane]) -> None:
        """Drops the pending frames of a connection that has ended. `lanes`: the lanes of the connection's subscriptions."""
        self._direct.pop(subscriber, None)
        for lane in lanes:
            if lane in self._lanes:
                lane.overrides.pop(subscriber, None)
                for part in lane.slices:
                    part.remaining.pop(subscriber, None)

    def turn(self) -> None:
        """Called at the end of a loop turn: flushes the pending frames, or waits for more messages (decision 0012)."""
        if self._due_deliveries < self._delivered and self._lanes and self._holds():
            self._scheduled = False
            self._flush_direct()
        else:
            self.flush()

    def _holds(self) -> bool:
        """Returns whether the pending frames wait for more messages, and starts the timer that ends the wait.

        The frames wait only if the previous flush has just ended, made many writes, and joined two or more messages per write
        on average.
        """
        if self._timer is None:
            seconds = min(HOLD_SECONDS_PER_WRITE * self._wrote, MAX_HOLD_SECONDS)
            if seconds < MIN_HOLD_SECONDS or self._delivered < 2 * self._wrote or self._monotonic() - self._ended > seconds:
                return False
            self._timer = self.call_later(seconds, self.flush)
        return True

    def flush(self) -> None:
        """Writes all pending frames. Frames that exceed the writes of one turn (`SLICE_WRITES`) wait for the next turn."""
        self._scheduled = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._direct:
            self._flush_direct()
        lanes = self._lanes
        if not lanes:
            if self.after_flush:
                self._call_waiting()
            return
        self._delivered, self._due_deliveries = self._due_deliveries, 0
        budget = SLICE_WRITES
        long: list[Lane] = []
        for lane in list(lanes):
            writes = lane.writes
            frames = lane.frames
            if frames and not lane.slices and not lane.overrides and len(writes) <= budget:
                # The common case: every subscriber of the lane gets the same buffer in this turn.
                buffer = frames[0] if len(frames) == 1 else lane.join(frames)
                lane.frames, lane.size = [], 0
                del lanes[lane]
                budget -= len(writes)
                lane.counts.bytes_out += len(buffer) * len(writes)
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
        # All lanes with slices share the remaining writes of this turn. If few remain, they share `SLICE_WRITES / 2` writes.
        each = max(budget, SLICE_WRITES // 2) // max(1, len(long)) or 1
        self._wrote = SLICE_WRITES - budget
        for lane in long:
            self._wrote += self._flush_slices(lane, each)
            if not lane.due:
                del lanes[lane]
        self._ended = self._monotonic()
        if lanes and not self._scheduled:
            self._scheduled = True
            self.call_soon(self.flush)
        elif self.after_flush and not lanes:
            self._call_waiting()

    def _call_waiting(self) -> None:
        waiting, self.after_flush = self.after_flush, []
        for run in waiting:
            run()

    def _write(self, writes: Iterable[Write], buffer: bytes) -> None:
        rest = iter(writes)
        while True:
            try:
                for write in rest:
                    write(buffer)
                return
            except Exception:
                self._failed()  # the iterator is past the failed write, so the loop goes on with the next subscriber

    @property
    def has_lanes(self) -> bool:
        """Whether frames of a lane are pending."""
        return bool(self._lanes)

    @property
    def pending(self) -> int:
        """The number of bytes that are pending in all lanes."""
        return sum(lane.size for lane in self._lanes)

    @property
    def slices(self) -> int:
        """The number of slices that wait for later turns of the event loop."""
        return sum(len(lane.slices) for lane in self._lanes)

    def _flush_direct(self) -> None:
        if self._direct:
            queued = self._direct
            self._direct = {}
            for subscriber, direct in queued.items():
                frames = direct.frames
                buffer = frames[0] if len(frames) == 1 else b"".join(frames)
                subscriber.app.counts.bytes_out += len(buffer)
                self._write((direct.write,), buffer)

    def _flush_direct_to(self, subscriber: Subscriber) -> None:
        direct = self._direct.pop(subscriber, None)
        if direct is not None:
            buffer = b"".join(direct.frames)
            subscriber.app.counts.bytes_out += len(buffer)
            self._write((direct.write,), buffer)

    def _flush_lane(self, lane: Lane) -> None:
        """Writes a lane's pending frames; makes a slice of them if the lane has slices, or too many subscribers for one turn."""
        frames, overrides, writes = lane.frames, lane.overrides, lane.writes
        if not frames and not overrides:
            return
        lane.frames, lane.overrides, lane.size = [], {}, 0
        counts = lane.counts
        for subscriber, own in overrides.items():
            if own:
                buffer = lane.join(own)
                for part in lane.slices:
                    late = part.remaining.pop(subscriber, None)
                    if late is not None:
                        self._write((late,), part.buffer)
                counts.bytes_out += len(buffer)
                self._write((writes[subscriber],), buffer)
        if not frames:
            return
        buffer = frames[0] if len(frames) == 1 else lane.join(frames)
        counts.bytes_out += len(buffer) * (len(writes) - len(overrides))
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
        """Makes up to `budget` writes of a lane's first slice; returns the number of writes."""
        part = lane.slices[0]
        remaining, buffer = part.remaining, part.buffer
        some = [remaining.pop(subscriber) for subscriber in list(islice(remaining, budget))]
        self._write(some, buffer)
        if not remaining:
            lane.slices.pop(0)
        return len(some)
