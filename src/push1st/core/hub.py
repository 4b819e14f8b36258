"""Who is subscribed on this worker: apps → channels → lanes → subscribers.

Pure and synchronous: it holds sets and answers questions; it sends nothing and knows no protocol. A *lane* is the
subscribers of one channel that share a wire, because those share their frames: the fan-out keeps a channel's pending
frames in its lanes. The order in a lane is the order of joining.

Whoever changes a channel's subscribers settles its pending frames first (invariant 2); `node.py` does.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Protocol

from push1st.channels import Kind, kind_of
from push1st.messages import Message

Write = Callable[[bytes], object]
MAX_PREFIX_PARTS = 8
"""parts of a session prefix, separated by dots, that are indexed; for longer targets multicast compares connection ids"""


class Wire(Protocol):
    """How messages look to a kind of client: codec and framing in one. One instance a kind, shared by all."""

    @property
    def name(self) -> str: ...

    def message(self, message: Message, now: int) -> bytes:
        """The frame every subscriber on this wire gets. now: wall clock, nanoseconds."""


class Subscriber(Protocol):
    """What the hub and the fan-out need of a session."""

    @property
    def id(self) -> str: ...
    @property
    def wire(self) -> Wire: ...
    @property
    def write(self) -> Write: ...
    @property
    def lanes(self) -> Collection["Lane"]: ...


class Slice:
    """The rest of a long flush: a buffer, and those who have not got it yet."""

    __slots__ = ("buffer", "remaining")

    def __init__(self, buffer: bytes, remaining: dict[Subscriber, Write]) -> None:
        self.buffer = buffer
        self.remaining = remaining


class Lane:
    """The subscribers of a channel on one wire, and what is due to them.

    frames: for all subscribers, in order. overrides: the frames of subscribers that get other frames (excluded or targeted),
    in place of `frames`. slices: earlier flushes of which a part is not written yet.
    """

    __slots__ = ("frames", "overrides", "size", "slices", "wire", "writes")

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.writes: dict[Subscriber, Write] = {}
        self.frames: list[bytes] = []
        self.size = 0
        self.overrides: dict[Subscriber, list[bytes]] = {}
        self.slices: list[Slice] = []

    @property
    def due(self) -> bool:
        return bool(self.frames or self.overrides or self.slices)


class Channel:
    """A channel with at least one subscriber on this worker."""

    __slots__ = ("kind", "lanes", "name")

    def __init__(self, name: str, kind: Kind) -> None:
        self.name = name
        self.kind = kind
        self.lanes: list[Lane] = []

    def lane(self, wire: Wire) -> Lane | None:
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
        """A connection opens; `prefix` is the first part of its id, by which multicast finds it."""
        self.sessions[subscriber.id] = subscriber
        if prefix:
            for part in _parts(prefix):
                self.prefixes.setdefault(part, set()).add(subscriber)

    def disconnect(self, subscriber: Subscriber, prefix: str = "") -> None:
        self.sessions.pop(subscriber.id, None)
        for part in _parts(prefix):
            group = self.prefixes.get(part)
            if group is not None:
                group.discard(subscriber)
                if not group:
                    del self.prefixes[part]

    def subscribe(self, subscriber: Subscriber, name: str) -> Lane:
        """Adds a subscriber to a channel, which is made if it is the first. Twice is once."""
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
        """Takes a subscriber off a channel; says whether the channel has none left (it is gone then)."""
        channel = self.channels.get(name)
        if channel is None:
            return False
        lane = channel.lane(subscriber.wire)
        if lane is None or lane.writes.pop(subscriber, None) is None:
            return False
        if not lane.writes and not lane.due:
            channel.lanes.remove(lane)
        if any(lane.writes for lane in channel.lanes):
            return False
        del self.channels[name]
        return True

    def targets(self, message: Message) -> Iterable[Subscriber]:
        """Returns the target connections of a unicast or multicast, subscribed or not."""
        target = message.target
        if message.delivery == "unicast":
            one = self.sessions.get(target)
            return () if one is None else (one,)
        *_, known = _parts(target)
        found = self.prefixes.get(known, ())
        return found if known == target else [one for one in found if one.id.startswith(f"{target}.")]

    def reach(self, message: Message) -> int:
        """How many subscribers here a message goes to."""
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
    """Yields the prefixes under which a session prefix is indexed: `a` and `a.b` for `a.b`. At most `MAX_PREFIX_PARTS`."""
    at = -1
    for _ in range(MAX_PREFIX_PARTS):
        at = prefix.find(".", at + 1)
        if at < 0:
            yield prefix
            return
        yield prefix[:at]
