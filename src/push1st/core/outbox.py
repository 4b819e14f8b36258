"""Keeps the output of a session while the session has no connection, or while its connection has no room.

A session may outlive its connections. For example, a client of the HTTP fallbacks has no connection between two requests, and an
MQTT client may be offline for days. Such a session has an outbox and an *owner*. The owner is an object of the transport that
exists as long as the session.

An outbox holds *items* and knows no bytes. The owner defines what an item is: for example some whole frames, or a message
that gets its packet id only when a connection takes it. An owner that keeps only some items passes only these to
`Outbox.write`. The owner provides:

- a policy: the bounds of the outbox, the size of an item, and what happens when an item exceeds a bound;
- `on_full`, which ends the session, if the policy does not drop items;
- a connection for `Session.attach`, which turns items into bytes (`AttachedConnection`);
- a timer that calls `Session.expire` at the time `until`, such as the sweep of a worker.

A session without an outbox ends with its connection, and does not use this module.
"""

from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

Item = TypeVar("Item")


class AttachedConnection(Protocol[Item]):
    """A connection to which a session with an outbox is attached."""

    def take(self, item: Item) -> Item | None:
        """Sends a new item. Returns the part for which the connection has no room, or None. May be called within a flush."""

    def resume(self, items: list[Item]) -> list[Item]:
        """Sends items of the outbox, oldest first. Returns the items for which the connection has no room, in order."""


class OutboxOwner(Protocol):
    """The owner of a session with an outbox."""

    def on_full(self) -> None:
        """Ends the session at the end of the turn, because an item exceeded a bound. May be called within a flush."""


class OutboxPolicy(Generic[Item]):
    """The bounds of an outbox, and what happens when an item exceeds a bound. All sessions of a protocol share one policy.

    max_size: the bytes of all items together.
    max_items: the number of items; 0 is no bound.
    size_of: returns the bytes of an item.
    drops_oldest: whether the outbox drops its oldest items to stay within its bounds. Otherwise the item that exceeds a bound
    is the last one that the outbox keeps, and the owner ends the session (`OutboxOwner.on_full`).
    """

    __slots__ = ("drops_oldest", "max_items", "max_size", "size_of")

    def __init__(self, max_size: int, size_of: Callable[[Item], int], max_items: int = 0, drops_oldest: bool = False) -> None:
        self.max_size = max_size
        self.size_of = size_of
        self.max_items = max_items
        self.drops_oldest = drops_oldest


class Outbox(Generic[Item]):
    """The items that are due to one session, in order."""

    __slots__ = ("_connection", "_items", "_owner", "_policy", "dropped", "is_full", "size", "until")

    def __init__(self, policy: OutboxPolicy[Item], owner: OutboxOwner) -> None:
        self._policy = policy
        self._owner = owner
        self._connection: AttachedConnection[Item] | None = None
        self._items: list[Item] = []
        self.size = 0
        """bytes of all items"""
        self.is_full = False
        """whether an item has exceeded a bound and the session must end; the outbox discards all further items"""
        self.dropped = 0
        """the number of items that were dropped to stay within the bounds"""
        self.until = 0.0
        """when a detached session expires, in seconds on `Clock.monotonic`"""

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    @property
    def is_attached(self) -> bool:
        return self._connection is not None

    def write(self, item: Item) -> None:
        """Sends an item after all items that wait, or keeps the part for which the connection has no room."""
        if self.is_full:
            return
        if self._connection is not None and not self._items:
            rest = self._connection.take(item)
            if rest is None:
                return
            item = rest
        self._items.append(item)
        self.size += self._policy.size_of(item)
        if self._is_over:
            self._pass_bound()

    @property
    def _is_over(self) -> bool:
        return self.size > self._policy.max_size or 0 < self._policy.max_items < len(self._items)

    def _pass_bound(self) -> None:
        if not self._policy.drops_oldest:
            self.is_full = True
            self._owner.on_full()
            return
        while self._is_over:
            self.size -= self._policy.size_of(self._items.pop(0))
            self.dropped += 1

    def attach(self, connection: AttachedConnection[Item]) -> None:
        """Sends all items that wait on a new connection, and then all further items."""
        self._connection = connection
        self.resume()

    def resume(self) -> None:
        """Sends items that wait, because the connection has room again."""
        if self._items and self._connection is not None:
            self.restore(self._connection.resume(self.take_all()))

    def detach(self, until: float) -> None:
        """Keeps all further items. until: when the session expires, unless it gets a connection earlier."""
        self._connection = None
        self.until = until

    def take_all(self) -> list[Item]:
        """Removes and returns all items, oldest first."""
        items, self._items, self.size = self._items, [], 0
        return items

    def restore(self, items: list[Item]) -> None:
        """Puts items back in front of all others, because no connection has taken them."""
        self._items[:0] = items
        self.size += sum(map(self._policy.size_of, items))

    def clear(self) -> None:
        """Drops all items, and accepts items again if one had exceeded a bound."""
        self._items, self.size, self.is_full = [], 0, False
