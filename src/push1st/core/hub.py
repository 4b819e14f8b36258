"""The register of this worker's subscriptions: apps → channels → lanes → subscribers.

The hub is pure and synchronous: it sends nothing, and depends on no protocol. A *wire* encodes messages for one kind of client. A
*lane* is the subscribers of one channel that share a wire. The subscribers of a lane get the same frames, so the fan-out keeps
pending frames in lanes. A lane keeps its subscribers in the order in which they joined.

`Fanout.subscribe` and the node flush a channel's pending frames before the channel's subscribers change (invariant 2).
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

from push1st.channels import Kind, kind_of
from push1st.messages import Member, Message
from push1st.metrics import AppCounts
from push1st.positions import Position

Frame = Any
"""the encoded form of messages: bytes, or for an `OwnWire` any object with a length, which is its number of bytes"""
Write = Callable[[Frame], object]
MAX_PREFIX_PARTS = 8
"""the hub indexes up to this number of parts of a session prefix (dots separate the parts); a multicast to a longer prefix finds
the sessions by the indexed parts, and compares their ids with the whole prefix"""


class Wire(Protocol):
    """Encodes messages as frames for one kind of client. All clients of this kind share one instance."""

    @property
    def name(self) -> str: ...

    def message(self, message: Message, now: int) -> Frame:
        """Returns the frame of a message for all subscribers on this wire. `now`: the wall clock in nanoseconds."""


class OwnWire(Wire, Protocol):
    """Encodes messages for subscribers that cannot share bytes, because each subscriber adds something, such as a packet id.

    The fan-out passes the frames of a flush, joined to one frame, to the subscriber's function `deliver` (`Tenant.subscribe`).
    """

    def join(self, frames: Sequence[Frame]) -> Frame:
        """Returns one frame with the messages of several frames, in order."""


class CountedApp(Protocol):
    """The property of an app that the fan-out uses."""

    @property
    def counts(self) -> AppCounts: ...


class Subscriber(Protocol):
    """The properties of a session that the hub and the fan-out use."""

    @property
    def id(self) -> str: ...
    @property
    def wire(self) -> Wire: ...
    @property
    def write(self) -> Write: ...
    @property
    def lanes(self) -> Collection["Lane"]: ...
    @property
    def app(self) -> "CountedApp": ...


class Slice:
    """The unfinished part of a long flush: a buffer, and the subscribers that have not received this buffer."""

    __slots__ = ("buffer", "remaining")

    def __init__(self, buffer: Frame, remaining: dict[Subscriber, Write]) -> None:
        self.buffer = buffer
        self.remaining = remaining


class Lane:
    """The subscribers of a channel that share one wire, and the pending frames of these subscribers.

    `frames`: the pending frames of the subscribers that are not in `overrides`, in order.
    `overrides`: the pending frames of each subscriber that a pending event excludes or targets.
    `slices`: the earlier flushes that are not finished.
    `join`: a function that joins frames.
    `counts`: the counters of the channel's app.
    """

    __slots__ = ("_subscription", "counts", "frames", "join", "overrides", "size", "slices", "wire", "writes")

    def __init__(self, counts: AppCounts, wire: Wire, join: Callable[[Sequence[Frame]], Frame] = b"".join) -> None:
        self.counts = counts
        self.wire = wire
        self.join = join
        self.writes: dict[Subscriber, Write] = {}
        self.frames: list[Frame] = []
        self.size = 0
        self.overrides: dict[Subscriber, list[Frame]] = {}
        self._subscription: Subscription | None = None
        """the one `Subscription` object of all subscribers that are not members of a presence channel"""
        self.slices: list[Slice] = []

    @property
    def due(self) -> bool:
        """Whether frames are pending, or a slice is not finished."""
        return bool(self.frames or self.overrides or self.slices)

    def subscription(self, member: Member | None) -> "Subscription":
        """Returns a subscriber's subscription. `member`: the subscriber's user on a presence channel, or None."""
        if member is not None:
            return Subscription(self, member)
        if self._subscription is None:
            self._subscription = Subscription(self, None)
        return self._subscription

    def end(self) -> None:
        """Ends the lane. Without this call, the lane and its subscription would keep each other in memory."""
        self._subscription = None


class Subscription:
    """A client's subscription to a channel. The client's session stores the subscription under the channel's name.

    `lane`: the channel's lane that contains the client. `member`: the client's user on a presence channel, or None.
    To save memory, the clients of a lane that are not presence members share one `Subscription` object.
    """

    __slots__ = ("lane", "member")

    def __init__(self, lane: Lane, member: Member | None) -> None:
        self.lane = lane
        self.member = member


class LanesOf(Collection[Lane]):
    """The lanes of a client's subscriptions, as a view and not a copy, because a client may have thousands of subscriptions.

    `others`: further lanes by name, such as those of the client's filters.
    """

    __slots__ = ("_others", "_subscriptions")

    def __init__(self, subscriptions: Mapping[str, Subscription], others: Sequence[Mapping[str, Lane]] = ()) -> None:
        self._subscriptions = subscriptions
        self._others = others

    def __len__(self) -> int:
        return len(self._subscriptions) + sum(map(len, self._others))

    def __iter__(self) -> Iterator[Lane]:
        for one in self._subscriptions.values():
            yield one.lane
        for lanes in self._others:
            yield from lanes.values()

    def __contains__(self, lane: object) -> bool:
        return any(one is lane for one in self)


class Channel:
    """A channel with at least one subscriber on this worker.

    `epoch`, `offset`: the position of the last message that the subscribers have received; "" and 0 for a channel that keeps no
    history.
    """

    __slots__ = ("_position", "epoch", "kind", "lanes", "name", "offset")

    def __init__(self, name: str, kind: Kind) -> None:
        self.name = name
        self.kind = kind
        self.lanes: list[Lane] = []
        self.epoch = ""
        self.offset = 0
        self._position: Position | None = None

    @property
    def position(self) -> Position | None:
        """The position of the last message; None for a channel that keeps no history.

        To save memory and time, all callers get the same object until the position changes.
        """
        position = self._position
        if position is None or position.offset != self.offset or position.epoch != self.epoch:
            position = self._position = Position(self.epoch, self.offset) if self.epoch else None
        return position

    def begin_at(self, position: Position) -> None:
        """Stores the position at which a subscriber joined. The earlier subscribers have received all messages before it.

        The position has another epoch than the last message if the broker has dropped the channel's history since this message.
        """
        if self.epoch != position.epoch or self.offset < position.offset:
            self.epoch, self.offset = position.epoch, position.offset

    def lane(self, wire: Wire) -> Lane | None:
        """Returns the lane of a wire, or None if the channel has no subscriber on this wire."""
        for lane in self.lanes:
            if lane.wire is wire:
                return lane
        return None

    def lane_of(self, subscriber: Subscriber) -> Lane | None:
        """Returns the lane that contains a subscriber, or None."""
        for lane in self.lanes:
            if subscriber in lane.writes:
                return lane
        return None

    def __len__(self) -> int:
        return sum(len(lane.writes) for lane in self.lanes)

    def subscribers(self) -> Iterator[Subscriber]:
        for lane in self.lanes:
            yield from lane.writes

    def drop_unused(self, lane: Lane) -> None:
        """Removes a lane that has neither subscribers nor frames."""
        if not lane.writes and not lane.due:
            self.lanes.remove(lane)
            lane.end()


class FilterIndex(Protocol):
    """The subscribers of an app's filters with wildcards (`core/filters.py`)."""

    receivers: Callable[[Message], Sequence[Lane]]
    """a function that works like `lanes`, but returns no lane for a further copy of a message"""

    def lanes(self, message: Message) -> Sequence[Lane]:
        """Returns the lanes whose filters match a message's channel, and whose subscribers may read the channel."""


class Tenant:
    """One app's connections and channels on this worker.

    `counts`: the counters of the app.
    `filters`: None while no subscriber has a filter with wildcards.
    """

    __slots__ = ("channels", "counts", "filters", "prefixes", "sessions")

    def __init__(self, counts: AppCounts) -> None:
        self.counts = counts
        self.filters: FilterIndex | None = None
        self.sessions: dict[str, Subscriber] = {}
        self.channels: dict[str, Channel] = {}
        self.prefixes: dict[str, Subscriber | set[Subscriber]] = {}
        """the sessions by their prefix; to save memory, a prefix of one session has no set"""

    def connect(self, subscriber: Subscriber, prefix: str = "") -> None:
        """Registers a session. `prefix`: the first part of the session's id, by which a multicast finds the session."""
        self.sessions[subscriber.id] = subscriber
        if prefix:
            for part in _parts(prefix):
                found = self.prefixes.setdefault(part, subscriber)
                if isinstance(found, set):
                    found.add(subscriber)
                elif found is not subscriber:
                    self.prefixes[part] = {found, subscriber}

    def disconnect(self, subscriber: Subscriber, prefix: str = "") -> None:
        """Removes a session from the register. The session's subscriptions stay; `unsubscribe` removes them."""
        self.sessions.pop(subscriber.id, None)
        for part in _parts(prefix) if prefix else ():
            found = self.prefixes.get(part)
            if isinstance(found, set):
                found.discard(subscriber)
            if not found or found is subscriber:
                self.prefixes.pop(part, None)

    def subscribe(self, subscriber: Subscriber, name: str, wire: Wire | None = None, deliver: Write | None = None) -> Lane:
        """Adds a subscriber to a channel, and returns the subscriber's lane. Repeating the call changes nothing.

        `wire`: the wire of this subscription; None: the wire of the subscriber.
        `deliver`: the subscriber's function that takes the frames of an `OwnWire`; None: the wire is not an `OwnWire`, and the
        subscriber's `write` takes the frames.
        """
        wire = wire or subscriber.wire
        channel = self.channels.get(name)
        if channel is None:
            channel = self.channels[name] = Channel(name, kind_of(name))
        lane = channel.lane(wire)
        if lane is None:
            lane = Lane(self.counts, wire) if deliver is None else Lane(self.counts, wire, cast(OwnWire, wire).join)
            channel.lanes.append(lane)
        lane.writes[subscriber] = deliver or subscriber.write
        return lane

    def unsubscribe(self, subscriber: Subscriber, name: str) -> bool:
        """Removes a subscriber from a channel. If the channel is then empty, removes it from the register, and returns true."""
        channel = self.channels.get(name)
        if channel is None:
            return False
        lane = channel.lane_of(subscriber)
        if lane is None:
            return False
        del lane.writes[subscriber]
        channel.drop_unused(lane)
        if any(lane.writes for lane in channel.lanes):
            return False
        for lane in channel.lanes:
            lane.end()
        del self.channels[name]
        return True

    def move(self, subscriber: Subscriber, name: str, wire: Wire, deliver: Write | None = None) -> Lane:
        """Moves a subscriber of a channel to the lane of another wire, and returns this lane. `deliver`: as in `subscribe`."""
        channel = self.channels[name]
        old = channel.lane_of(subscriber)
        assert old is not None
        del old.writes[subscriber]
        lane = self.subscribe(subscriber, name, wire, deliver)
        channel.drop_unused(old)
        return lane

    def lanes(self, message: Message) -> Sequence[Lane]:
        """Returns the lanes of a message's channel, and of the filters that match this channel."""
        channel = self.channels.get(message.channel)
        mine = () if channel is None else channel.lanes
        matched = None if self.filters is None else self.filters.lanes(message)
        return [*mine, *matched] if matched else mine

    def receivers(self, message: Message) -> Sequence[Lane]:
        """Returns the lanes to which a message is delivered now. The filters' subscribers receive only the first copy."""
        channel = self.channels.get(message.channel)
        mine = () if channel is None else channel.lanes
        matched = None if self.filters is None else self.filters.receivers(message)
        return [*mine, *matched] if matched else mine

    def of_filters(self) -> "Tenant":
        """Returns the same connections without channels, for messages that only the subscribers of filters receive."""
        tenant = Tenant(self.counts)
        tenant.filters, tenant.sessions, tenant.prefixes = self.filters, self.sessions, self.prefixes
        return tenant

    def targets(self, message: Message) -> Iterable[Subscriber]:
        """Returns the target connections of a unicast or multicast, even if they are not subscribed to the message's channel."""
        target = message.target
        if message.delivery == "unicast":
            one = self.sessions.get(target)
            return () if one is None else (one,)
        return self.with_prefix(target)

    def with_prefix(self, prefix: str) -> Collection[Subscriber]:
        """Returns the sessions with a session prefix, and those whose prefix begins with it and a dot."""
        *_, known = _parts(prefix)
        found = self.prefixes.get(known, ())
        sessions = found if isinstance(found, set | tuple) else (found,)
        return sessions if known == prefix else [one for one in sessions if one.id.startswith(f"{prefix}.")]

    def reach(self, message: Message) -> int:
        """Returns the number of this worker's subscribers that a message would reach."""
        lanes = self.lanes(message)
        if message.delivery == "broadcast":
            excluded = [*filter(None, map(self.sessions.get, {message.exclude, message.target}))]
            return sum(len(lane.writes) - sum(one in lane.writes for one in excluded) for lane in lanes)
        receivers = (one for one in self.targets(message) if one.id != message.exclude) if lanes else ()
        return sum(one in lane.writes for one in receivers for lane in lanes)


def _parts(prefix: str) -> Iterator[str]:
    """Yields the prefixes under which a session prefix is indexed: `a` and `a.b` for `a.b`. Yields at most `MAX_PREFIX_PARTS`."""
    at = -1
    for _ in range(MAX_PREFIX_PARTS):
        at = prefix.find(".", at + 1)
        if at < 0:
            yield prefix
            return
        yield prefix[:at]
