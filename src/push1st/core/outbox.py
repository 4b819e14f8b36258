"""Keeps the output of a session while the session has no connection, or while the connection cannot take more output.

A session can outlive its connections. For example, a client of the HTTP fallbacks has no connection between two requests, and an
MQTT client may be offline for days. A session that outlives its connections has an outbox and an *owner*. The owner is an object
of the transport, and exists as long as the session.

An outbox holds *items* and does not depend on their content. The owner defines the type of an item, for example several whole
frames, or an MQTT message without its packet id. `Outbox.write` keeps any item that cannot be sent at once. So the owner must not
pass items to `Outbox.write` that would be wrong if they arrived later. The owner provides:

- a policy: the bounds of the outbox, the size of an item, and the reaction to an item that exceeds a bound;
- `on_full`, which ends the session when an item exceeds a bound, unless the policy drops items;
- a connection that turns items into bytes (`AttachedConnection`), for `Session.attach`;
- a timer, such as a worker's periodic sweep, that calls `Session.expire` at the time `Outbox.until`.

A session without an outbox ends with its connection, and does not use this module.
"""

from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

Item = TypeVar("Item")


class AttachedConnection(Protocol[Item]):
    """A connection to which a session with an outbox is attached."""

    def take(self, item: Item) -> Item | None:
        """Sends an item; returns the part of the item that cannot be sent yet, or None.

        A flush of the fan-out may call this method, so this method must not end the session.
        """

    def resume(self, items: list[Item]) -> list[Item]:
        """Sends items of the outbox, oldest first. Returns the items that the connection cannot take, in order."""


class OutboxOwner(Protocol):
    """The owner of a session with an outbox."""

    def on_full(self) -> None:
        """Called when an item exceeds a bound: ends the session, but only after this turn of the event loop.

        The caller may be a flush, during which subscribers must not change.
        """


class OutboxPolicy(Generic[Item]):
    """The bounds of an outbox, and the reaction to an item that exceeds a bound. All sessions of a protocol share one policy.

    `max_size`: the maximum number of bytes of all items together.
    `max_items`: the maximum number of items; 0 stands for no maximum.
    `size_of`: a function that returns the number of bytes of an item.
    `drops_oldest`: whether the outbox drops its oldest items to stay within its bounds. If `drops_oldest` is false, the outbox
    discards all items after the first item that exceeds a bound, and the owner ends the session (`OutboxOwner.on_full`).
    """

    __slots__ = ("drops_oldest", "max_items", "max_size", "size_of")

    def __init__(self, max_size: int, size_of: Callable[[Item], int], max_items: int = 0, drops_oldest: bool = False) -> None:
        self.max_size = max_size
        self.size_of = size_of
        self.max_items = max_items
        self.drops_oldest = drops_oldest


class Outbox(Generic[Item]):
    """The items that wait to be sent to the client of one session, in order."""

    __slots__ = ("_connection", "_items", "_owner", "_policy", "dropped", "is_full", "size", "until")

    def __init__(self, policy: OutboxPolicy[Item], owner: OutboxOwner) -> None:
        self._policy = policy
        self._owner = owner
        self._connection: AttachedConnection[Item] | None = None
        self._items: list[Item] = []
        self.size = 0
        """the number of bytes of all items"""
        self.is_full = False
        """whether an item has exceeded a bound, so that the session must end; all further items are discarded"""
        self.dropped = 0
        """the number of items that were dropped to stay within the bounds"""
        self.until = 0.0
        """the time at which a detached session expires, in seconds on `Clock.monotonic`"""

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    def has_room(self, size: int) -> bool:
        """Returns whether items of `size` more bytes would stay within the bound."""
        return self.size + size <= self._policy.max_size

    @property
    def is_attached(self) -> bool:
        return self._connection is not None

    def write(self, item: Item) -> None:
        """Sends an item after all waiting items, or keeps the part of the item that the connection cannot take."""
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
        """Sends all kept items, and then all further items, on a new connection."""
        self._connection = connection
        self.resume()

    def resume(self) -> None:
        """Sends the waiting items, because the connection can take output again."""
        if self._items and self._connection is not None:
            self.restore(self._connection.resume(self.take_all()))

    def detach(self, until: float) -> None:
        """Keeps all further items. `until`: the time at which the session expires, unless a connection attaches earlier."""
        self._connection = None
        self.until = until

    def take_all(self) -> list[Item]:
        """Removes and returns all items, oldest first."""
        items, self._items, self.size = self._items, [], 0
        return items

    def restore(self, items: list[Item]) -> None:
        """Puts unsent items back, before all other items."""
        self._items[:0] = items
        self.size += sum(map(self._policy.size_of, items))

    def clear(self) -> None:
        """Drops all items, and accepts new items, even if an earlier item has exceeded a bound."""
        self._items, self.size, self.is_full = [], 0, False
