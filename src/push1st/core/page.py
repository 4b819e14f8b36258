"""The state of one connection of a page: the positions that the page has acknowledged, and from which it resumes. Pure.

A *page* is one instance of a client, such as one `new Pusher(…)`. Its URL contains a random name, which stays the same when the
client reconnects. Each connection of a page has a record in the broker (`brokers/pages.py`). The rules:

- A position moves only by an acknowledgement. The server sends `pusher:ping`, and remembers the positions of the connection's
  channels in this moment. The client's JavaScript answers with `pusher:pong` after it has handled all earlier messages. A pong
  has no number, so the k-th pong of a connection answers its k-th ping.
- The echo of the server's close frame, with the code of this frame, acknowledges everything before the close frame.
- A new connection resumes a channel from the *smallest* position in the records of all earlier connections. A position that is
  too small costs repeats; a position that is too large would be a gap. Positions of two epochs cannot be compared: `state-lost`.
- A subscription that was resumed keeps the position from which it was resumed, until the first acknowledgement. A subscription
  that was not resumed has no position until then: if the notification of this failure is lost with the connection, the next
  connection must send this notification again.
- An inherited position counts for `INHERITED_SECONDS`. A client that subscribes to the channel later gets `unknown`.
- If two live connections have the same page name, the name is *shared*. Then the server uses no position of the page.
"""

from collections.abc import Mapping, Sequence
from math import inf
from typing import Protocol

import msgspec

from push1st.brokers.history import Reason
from push1st.brokers.pages import PageRecord, bounded
from push1st.positions import Position

INHERITED_SECONDS = 30
"""the seconds in which a new connection can resume the channels of earlier connections"""
MAX_SOCKETS = 8
"""the maximum number of earlier connections whose own messages are not replayed"""
MAX_PINGS = 64
"""the maximum number of unanswered pings. Above this number, the server assumes that the client answers no pings, so the client
can acknowledge nothing."""


_NONE: dict[str, Position | None] = {}
"""the inherited positions of all connections that inherit none; always empty"""


class Positioned(Protocol):
    """A channel (`hub.Channel`)."""

    @property
    def position(self) -> Position | None:
        """The position of the last message that the subscribers have received; None for a channel that keeps no history."""


class Inherited(msgspec.Struct, frozen=True, gc=False):
    """The data that a new connection inherits from the records of the page's earlier connections.

    positions: the position from which each channel is resumed; None if the records have positions of two epochs.
    exact: the channels of which the page has certainly received no message after the position.
    sockets: the ids of the latest earlier connections.
    closed: the ids of the earlier connections that have ended. Their records are deleted when this connection stores its record.
    is_shared: whether two live connections have used the page's name.
    """

    positions: Mapping[str, Position | None]
    exact: frozenset[str]
    sockets: tuple[str, ...]
    closed: tuple[str, ...]
    is_shared: bool


_NOTHING = Inherited({}, frozenset(), (), (), False)


def inherit(records: Mapping[str, PageRecord]) -> Inherited:
    """Merges the records of a page, which are given by the ids of their connections."""
    if not records:
        return _NOTHING
    positions: dict[str, Position | None] = {}
    inexact: set[str] = set()
    sockets: dict[str, None] = {}

    def age(item: tuple[str, PageRecord]) -> tuple[int, int]:
        """Returns a sort key: the oldest record is first.

        A record contains the ids of the earlier connections, so a connection that many records name is old. `written` alone is
        not sufficient, because an old connection may write its last record late.
        """
        return -sum(item[0] in other.sockets for other in records.values()), item[1].written

    for socket_id, record in sorted(records.items(), key=age):
        for one in (*record.sockets, socket_id):
            sockets.pop(one, None)  # the latest connections are last
            sockets[one] = None
        for channel, position in record.positions.items():
            if position is None:
                continue
            if channel in positions:
                if position != positions[channel]:
                    inexact.add(channel)
                position = _smaller(positions[channel], position)
            positions[channel] = position
            if not record.is_exact:
                inexact.add(channel)
    # A connection without a position may have received any message, so the position of another connection is not exact.
    inexact.update(one for record in records.values() for one, position in record.positions.items() if position is None)
    return Inherited(
        positions,
        frozenset(positions).difference(inexact),
        tuple(sockets)[-MAX_SOCKETS:],
        tuple(one for one, record in records.items() if record.is_closed),
        any(record.is_shared for record in records.values()),
    )


def _smaller(one: Position | None, other: Position) -> Position | None:
    """Returns the smaller of two positions; None if their epochs differ, or if the epochs of earlier positions differed."""
    if one is None or one.epoch != other.epoch:
        return None
    return one if one.offset <= other.offset else other


class SentPing:
    """A `pusher:ping` that the client has not answered.

    positions: the positions of the channels when the ping was sent; the answer acknowledges them. None for a keepalive ping.
    sent: the time of the ping in seconds.
    probes: the requests of other workers that wait for the answer (`page_probes.py`).
    """

    __slots__ = ("positions", "probes", "sent")

    def __init__(self, sent: float, positions: dict[str, Position] | None) -> None:
        self.sent = sent
        self.positions = positions
        self.probes: Sequence[tuple[str, int]] = ()


class PageState:
    """See the module.

    inherited: the data of the earlier connections.
    now: the time at which the records of the earlier connections were read, in seconds. All times are on the same clock.
    """

    __slots__ = ("_exact", "_inherited", "_pings", "_until", "is_mute", "is_shared", "positions", "sockets")

    def __init__(self, inherited: Inherited, now: float) -> None:
        self._inherited = dict(inherited.positions) if inherited.positions else _NONE
        self._exact = inherited.exact
        self._until = now + INHERITED_SECONDS if inherited.positions else 0.0
        self._pings: Sequence[SentPing] = ()
        """the unanswered pings; an empty tuple for most clients at most times, to save memory"""
        self.sockets = inherited.sockets
        self.is_shared = inherited.is_shared
        self.is_mute = False
        """whether the client does not answer pings"""
        self.positions: dict[str, Position | None] = {}
        """the acknowledged positions of the channels to which the client is subscribed"""

    # Subscriptions

    def since(self, channel: str, now: float) -> Position | None:
        """Returns the position from which a channel is resumed; None if no position is known."""
        self.expire(now)
        return None if self.is_shared else self._inherited.get(channel)

    def reason(self, channel: str, reason: Reason | None, now: float) -> Reason | None:
        """Returns why a channel cannot be resumed; None if it can. `reason`: the broker's answer for the position `since`."""
        self.expire(now)
        if self.is_shared:
            return "shared"
        if channel in self._inherited and self._inherited[channel] is None:
            return "state-lost"
        return reason

    def subscribed(self, channel: str, since: Position | None) -> bool:
        """Stores that the client is subscribed. Returns whether the replay may repeat messages that the page has received.

        since: the position from which the channel was resumed; None if the channel was not resumed.
        """
        is_exact = channel in self._exact
        self._disinherit(channel)
        self.positions[channel] = since
        return not is_exact

    def unsubscribed(self, channel: str) -> None:
        """Drops the position of a channel, because the client has left the channel on purpose."""
        self.positions.pop(channel, None)
        self._disinherit(channel)
        for ping in self._pings:
            if ping.positions is not None:
                ping.positions.pop(channel, None)

    def expire(self, now: float) -> bool:
        """Drops the inherited positions after `INHERITED_SECONDS`. Returns whether this call has dropped any."""
        if not self._inherited or now < self._until:
            return False
        self._inherit_nothing()
        return True

    def _disinherit(self, channel: str) -> None:
        self._inherited.pop(channel, None)
        if not self._inherited:
            self._inherit_nothing()

    def _inherit_nothing(self) -> None:
        """Frees the memory of the inherited positions."""
        self._inherited, self._exact = _NONE, _NOTHING.exact

    def may_have_resumed(self, now: float) -> bool:
        """Returns whether the positions of earlier connections counted for this connection less than `INHERITED_SECONDS` ago."""
        return now < self._until

    @property
    def expires(self) -> float:
        """The time at which inherited positions are dropped; infinity if there are none."""
        return self._until if self._inherited else inf

    def share(self) -> None:
        """Stores that another live connection has the same page name."""
        self.is_shared = True
        self._inherit_nothing()

    # Acknowledgements

    def moved(self, channels: Mapping[str, Positioned]) -> dict[str, Position]:
        """Returns the positions of the subscribed channels that have moved since the last acknowledgement.

        channels: the channels of the worker, with their present positions.
        """
        found: dict[str, Position] = {}
        for name, known in self.positions.items():
            channel = channels.get(name)
            position = None if channel is None else channel.position
            if position is not known and position is not None and position != known:
                found[name] = position
        return found

    @property
    def is_waiting(self) -> bool:
        """Whether an acknowledgement is requested, and the client has not answered."""
        return any(ping.positions is not None for ping in self._pings)

    def pinged(self, now: float, positions: dict[str, Position] | None = None) -> SentPing:
        """Stores that the server sends a `pusher:ping`. `positions`: the positions that the answer acknowledges."""
        if len(self._pings) == MAX_PINGS:
            self.is_mute = True
            self._pings = ()
        ping = SentPing(now, positions)
        if not self.is_mute:
            self._pings = (*self._pings, ping)
        return ping

    def probed(self, now: float, by: str, number: int, most: int = MAX_PINGS // 4) -> bool:
        """Stores a request of another worker, which is answered with the next pong. Returns whether a ping must be sent.

        by, number: the worker's topic, and the number of its request. most: the maximum number of pings for such requests.
        """
        probes = [ping for ping in self._pings if ping.probes]
        ping = probes[-1] if len(probes) >= most else self.pinged(now)
        ping.probes = (*ping.probes, (by, number))
        return len(probes) < most

    def ponged(self) -> SentPing | None:
        """Handles a `pusher:pong`; returns the answered ping, or None if the client answers no ping."""
        if self.is_mute or not self._pings:
            return None
        ping = self._pings[0]
        self._pings = self._pings[1:] or ()
        if ping.positions is not None:
            self.acknowledge(ping.positions)
        return ping

    def unanswered(self) -> list[tuple[str, int]]:
        """Returns the requests of other workers that no pong has answered."""
        return [probe for ping in self._pings for probe in ping.probes]

    def acknowledge(self, positions: Mapping[str, Position]) -> None:
        """Replaces the positions of the channels to which the client is still subscribed."""
        for channel, position in positions.items():
            if channel in self.positions:
                self.positions[channel] = position

    # Records

    def record(self, now: float, written: int, worker: str, *, closed: bool = False, exact: bool = False) -> PageRecord:
        """Returns the record of this connection.

        written: the time of the record, in milliseconds on the wall clock.
        worker: the topic of this connection's worker.
        exact: whether the client has acknowledged everything that the connection has sent.
        """
        self.expire(now)
        if self.is_shared:
            return PageRecord(written, worker, {}, self.sockets, closed, False, True)
        positions = self.positions.copy()
        if self._inherited:
            positions.update(item for item in self._inherited.items() if item[1] is not None)
        is_exact = closed and exact and self._exact.issuperset(self._inherited)
        return PageRecord(written, worker, bounded(positions), self.sockets, closed, is_exact, False)
