"""Holds events on users' channels for clients that have signed in but have not subscribed yet (Pusher protocol, section 5).

A client subscribes to its user's channel after it has read `signin_success`. An event that is published between the sign-in and
this subscription would otherwise be lost. So the worker subscribes to the channel's topic before it sends `signin_success`, and
holds the events until the client subscribes. Until then, the hub, the roster, the counts and the hook events of the channel
do not include the client.

This module is pure and synchronous: the caller (`SignIns`) passes the time, and a function that delivers a frame.
"""

from collections.abc import Callable

from push1st.core.hub import Subscriber
from push1st.messages import KeptMessage, Message
from push1st.positions import Position

MAX_HELD = 100
MAX_HELD_BYTES = 65_536
"""maximum numbers of frames and bytes held for a client. If a new frame would exceed one of them, the held frames are delivered,
or dropped (`Hold.drops`). Then the new frame is held."""
HELD_SECONDS = 10
"""after these seconds, a client's held frames are delivered and the hold ends, even if the client has not subscribed"""


class Hold:
    """The frames held for a client, each with its message's position in the history of the channel, or None.

    `until`: the end of the hold, in seconds on `Clock.monotonic`.
    `drops`: whether frames with positions are dropped when a bound is exceeded. A client that resumes receives the dropped
    messages from the history, or a notification that it has missed messages.
    """

    __slots__ = ("channel", "drops", "frames", "size", "until")

    def __init__(self, channel: str, until: float, drops: bool) -> None:
        self.channel = channel
        self.until = until
        self.drops = drops
        self.frames: list[tuple[bytes, Position | None]] = []
        self.size = 0


class Held:
    """The holds of an app's clients. `deliver`: a function that sends a frame to a client."""

    __slots__ = ("_channels", "_deliver", "_holds")

    def __init__(self, deliver: Callable[[Subscriber, bytes], None]) -> None:
        self._deliver = deliver
        self._holds: dict[Subscriber, Hold] = {}
        self._channels: dict[str, dict[Subscriber, Hold]] = {}

    def __len__(self) -> int:
        return len(self._holds)

    def __contains__(self, channel: str) -> bool:
        """Whether events on a channel are held for at least one client."""
        return channel in self._channels

    def add(self, client: Subscriber, channel: str, now: float, drops: bool = False) -> None:
        """Begins to hold the events of a channel for a client. Does nothing if the client already has a hold.

        `drops`: see `Hold`.
        """
        if client not in self._holds:
            hold = self._holds[client] = Hold(channel, now + HELD_SECONDS, drops)
            self._channels.setdefault(channel, {})[client] = hold

    def receive(self, message: Message, now: int) -> None:
        """Holds an event for each receiver with a hold on the event's channel. `now`: the wall clock in nanoseconds."""
        for client, hold in self._channels[message.channel].items():
            is_target = message.target == client.id  # a broadcast excludes its target; a unicast goes only to its target
            if message.exclude == client.id or is_target == (message.delivery == "broadcast"):
                continue
            frame = client.wire.message(message, now)
            if len(hold.frames) >= MAX_HELD or hold.size + len(frame) > MAX_HELD_BYTES:
                self._flush(client, hold, drops=hold.drops)
            position = Position(message.epoch, message.offset) if isinstance(message, KeptMessage) else None
            hold.frames.append((frame, position))
            hold.size += len(frame)

    def deliver(self, client: Subscriber, replayed: Position | None = None) -> str:
        """Delivers the frames held for a client, and ends the hold. Returns the channel, or "" if there was no hold.

        `replayed`: the position up to which the client has received the messages from the history; None without a replay.
        """
        hold = self._holds.get(client)
        if hold is None:
            return ""
        if replayed is not None:
            hold.frames = [(frame, position) for frame, position in hold.frames if not _is_before(position, replayed)]
        self._flush(client, hold)
        return self.drop(client)

    def drop(self, client: Subscriber) -> str:
        """Drops the frames held for a client, and ends the hold. Returns the channel, or "" if there was no hold."""
        hold = self._holds.pop(client, None)
        if hold is None:
            return ""
        clients = self._channels[hold.channel]
        del clients[client]
        if not clients:
            del self._channels[hold.channel]
        return hold.channel

    def due(self, now: float) -> list[Subscriber]:
        """Returns the clients that have not subscribed in time."""
        due = []
        for client, hold in self._holds.items():  # holds are in the order of `until`
            if hold.until > now:
                break
            due.append(client)
        return due

    def _flush(self, client: Subscriber, hold: Hold, drops: bool = False) -> None:
        frames, hold.frames, hold.size = hold.frames, [], 0
        for frame, position in frames:
            if position is None or not drops:
                self._deliver(client, frame)


def _is_before(position: Position | None, replayed: Position) -> bool:
    return position is not None and position.epoch == replayed.epoch and position.offset <= replayed.offset
