"""Keeps what is due to a session while the session has no connection, or while its connection has no room.

A session may outlive its connections: a client of the HTTP fallbacks has none between two requests, and an MQTT client may be
offline for days. Such a session has an outbox, and an *owner*: an object of its transport that lives as long as the session.

An outbox holds *items* and knows no bytes. The owner chooses what an item is. For example, an item may be some whole frames, or
a message that gets its packet id only when a connection takes it. The owner provides:

- a policy: the bounds, the size of an item, and what happens when an item passes a bound;
- `on_full`, if the policy ends the session then;
- a connection for `Session.attach`, which turns items into bytes (`AttachedConnection`);
- a timer that calls `Session.expire` when `until` is over (`transports.sweep` in the worker).

A session without an outbox ends with its connection. It does not use this module.
"""

from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

Item = TypeVar("Item")


class AttachedConnection(Protocol[Item]):
    """A connection, as the outbox of its session uses it."""

    def take(self, item: Item) -> Item | None:
        """Sends a new item. Returns the part that the connection has no room for, or None. May be called within a flush."""

    def resume(self, items: list[Item]) -> list[Item]:
        """Sends items that the outbox kept, oldest first. Returns those that the connection has no room for, in order."""


class OutboxOwner(Protocol):
    """The owner of a session with an outbox."""

    def on_full(self) -> None:
        """Ends the session, because an item passed a bound. May be called within a flush, so the end must wait for the turn's."""


class OutboxPolicy(Generic[Item]):
    """The bounds of outboxes, and what happens when an item passes one. One object serves all sessions of a kind.

    max_size: bytes of all items together. max_items: their number; 0 is no bound. size_of: returns the bytes of an item.
    drops_oldest: whether the outbox drops its oldest items then. Otherwise the session ends: that item is the last one that the
    outbox keeps, and the owner gets `on_full`.
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
        """whether an item has passed a bound, so that the session must end: the outbox refuses all further items"""
        self.dropped = 0
        """items that the policy dropped"""
        self.until = 0.0
        """when the session expires without a connection, in seconds on `Clock.monotonic`"""

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    @property
    def is_attached(self) -> bool:
        return self._connection is not None

    def write(self, item: Item) -> None:
        """Sends an item after all that wait, and keeps what the connection has no room for."""
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
        """Sends what waits on a connection, and then all that follows."""
        self._connection = connection
        self.resume()

    def resume(self) -> None:
        """Sends what waits, because the connection has room again."""
        if self._items and self._connection is not None:
            self.restore(self._connection.resume(self.take_all()))

    def detach(self, until: float) -> None:
        """Keeps all that follows. until: when the session expires, unless a connection is attached before."""
        self._connection = None
        self.until = until

    def take_all(self) -> list[Item]:
        """Removes and returns what waits, oldest first."""
        items, self._items, self.size = self._items, [], 0
        return items

    def restore(self, items: list[Item]) -> None:
        """Puts items back before all others, because no connection took them."""
        self._items[:0] = items
        self.size += sum(map(self._policy.size_of, items))

    def clear(self) -> None:
        """Drops what waits, and takes items again after one passed a bound."""
        self._items, self.size, self.is_full = [], 0, False
