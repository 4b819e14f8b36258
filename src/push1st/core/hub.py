"""The register of this worker's subscriptions: apps → channels → lanes → subscribers.

The hub is pure and synchronous: it sends nothing, and depends on no protocol. A *wire* encodes messages for one kind of client. A
*lane* is the subscribers of one channel that share a wire. The subscribers of a lane get the same frames, so the fan-out keeps
pending frames in lanes. A lane keeps its subscribers in the order in which they joined.

`Fanout.subscribe` and the node flush a channel's pending frames before the channel's subscribers change (invariant 2).
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Protocol

from push1st.channels import Kind, kind_of
from push1st.messages import Member, Message
from push1st.positions import Position

Write = Callable[[bytes], object]
MAX_PREFIX_PARTS = 8
"""the hub indexes up to this number of parts of a session prefix (dots separate the parts); a multicast to a longer prefix finds
the sessions by the indexed parts, and compares their ids with the whole prefix"""


class Wire(Protocol):
    """Encodes messages as frames for one kind of client. All clients of this kind share one instance."""

    @property
    def name(self) -> str: ...

    def message(self, message: Message, now: int) -> bytes:
        """Returns the frame of a message for all subscribers on this wire. `now`: the wall clock in nanoseconds."""


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


class Slice:
    """The unfinished part of a long flush: a buffer, and the subscribers that have not received this buffer."""

    __slots__ = ("buffer", "remaining")

    def __init__(self, buffer: bytes, remaining: dict[Subscriber, Write]) -> None:
        self.buffer = buffer
        self.remaining = remaining


class Lane:
    """The subscribers of a channel that share one wire, and the pending frames of these subscribers.

    `frames`: the pending frames of the subscribers that are not in `overrides`, in order.
    `overrides`: the pending frames of each subscriber that a pending event excludes or targets.
    `slices`: the earlier flushes that are not finished.
    """

    __slots__ = ("_subscription", "frames", "overrides", "size", "slices", "wire", "writes")

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.writes: dict[Subscriber, Write] = {}
        self.frames: list[bytes] = []
        self.size = 0
        self.overrides: dict[Subscriber, list[bytes]] = {}
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
    """The lanes of a client's subscriptions, as a view and not a copy, because a client may have thousands of subscriptions."""

    __slots__ = ("_subscriptions",)

    def __init__(self, subscriptions: Mapping[str, Subscription]) -> None:
        self._subscriptions = subscriptions

    def __len__(self) -> int:
        return len(self._subscriptions)

    def __iter__(self) -> Iterator[Lane]:
        return (one.lane for one in self._subscriptions.values())

    def __contains__(self, lane: object) -> bool:
        return any(one.lane is lane for one in self._subscriptions.values())


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

    def __len__(self) -> int:
        return sum(len(lane.writes) for lane in self.lanes)

    def subscribers(self) -> Iterator[Subscriber]:
        for lane in self.lanes:
            yield from lane.writes


class Tenant:
    """One app's connections and channels on this worker."""

    __slots__ = ("channels", "prefixes", "sessions")

    def __init__(self) -> None:
        self.sessions: dict[str, Subscriber] = {}
        self.channels: dict[str, Channel] = {}
        self.prefixes: dict[str, set[Subscriber]] = {}

    def connect(self, subscriber: Subscriber, prefix: str = "") -> None:
        """Registers a session. `prefix`: the first part of the session's id, by which a multicast finds the session."""
        self.sessions[subscriber.id] = subscriber
        if prefix:
            for part in _parts(prefix):
                self.prefixes.setdefault(part, set()).add(subscriber)

    def disconnect(self, subscriber: Subscriber, prefix: str = "") -> None:
        """Removes a session from the register. The session's subscriptions stay; `unsubscribe` removes them."""
        self.sessions.pop(subscriber.id, None)
        for part in _parts(prefix):
            group = self.prefixes.get(part)
            if group is not None:
                group.discard(subscriber)
                if not group:
                    del self.prefixes[part]

    def subscribe(self, subscriber: Subscriber, name: str) -> Lane:
        """Adds a subscriber to a channel, and returns the subscriber's lane. Repeating the call changes nothing."""
        channel = self.channels.get(name)
        if channel is None:
            channel = self.channels[name] = Channel(name, kind_of(name))
        lane = channel.lane(subscriber.wire)
        if lane is None:
            lane = Lane(subscriber.wire)
            channel.lanes.append(lane)
        lane.writes[subscriber] = subscriber.write
        return lane

    def unsubscribe(self, subscriber: Subscriber, name: str) -> bool:
        """Removes a subscriber from a channel. If the channel is then empty, removes it from the register, and returns true."""
        channel = self.channels.get(name)
        if channel is None:
            return False
        lane = channel.lane(subscriber.wire)
        if lane is None or lane.writes.pop(subscriber, None) is None:
            return False
        if not lane.writes and not lane.due:
            channel.lanes.remove(lane)
            lane.end()
        if any(lane.writes for lane in channel.lanes):
            return False
        for lane in channel.lanes:
            lane.end()
        del self.channels[name]
        return True

    def targets(self, message: Message) -> Iterable[Subscriber]:
        """Returns the target connections of a unicast or multicast, even if they are not subscribed to the message's channel."""
        target = message.target
        if message.delivery == "unicast":
            one = self.sessions.get(target)
            return () if one is None else (one,)
        *_, known = _parts(target)
        found = self.prefixes.get(known, ())
        return found if known == target else [one for one in found if one.id.startswith(f"{target}.")]

    def reach(self, message: Message) -> int:
        """Returns the number of this worker's subscribers that a message would reach."""
        channel = self.channels.get(message.channel)
        if channel is None:
            return 0
        if message.delivery == "broadcast":
            excluded = filter(None, map(self.sessions.get, {message.exclude, message.target}))
            return len(channel) - sum(one in lane.writes for one in excluded for lane in channel.lanes)
        found = 0
        for target in self.targets(message):
            lane = channel.lane(target.wire)
            found += lane is not None and target in lane.writes and target.id != message.exclude
        return found


def _parts(prefix: str) -> Iterator[str]:
    """Yields the prefixes under which a session prefix is indexed: `a` and `a.b` for `a.b`. Yields at most `MAX_PREFIX_PARTS`."""
    at = -1
    for _ in range(MAX_PREFIX_PARTS):
        at = prefix.find(".", at + 1)
        if at < 0:
            yield prefix
            return
        yield prefix[:at]
