"""Bounds for each app and for each address, which are smaller than the bound of the whole worker.

Without these bounds one client could use up everything that the worker has for all clients. The bounds are large, because many
clients of an office or of a proxy have the same address. A bound is checked when a client connects, and never ends established
connections.

This module only counts names: it has no connection and no clock.
"""

from collections import Counter
from collections.abc import Callable
from typing import Literal

from push1st.transports.descriptors import Room

Bound = Literal["worker", "app", "address"]
Crowded = Literal["server", "address"]
"""the bound that leaves no room for a client: of the whole server, or of one address"""


class Places:
    """A bounded number of places. An app may take three quarters of them, and an address may take half.

    bound: the number of places of the worker. `taken`: the number of places in use.
    """

    __slots__ = ("_addresses", "_apps", "_bounds", "taken")

    def __init__(self, bound: int) -> None:
        self._bounds: dict[Bound, int] = {"worker": bound, "app": bound * 3 // 4, "address": -(-bound // 2)}
        self._apps: Counter[str] = Counter()
        self._addresses: Counter[str] = Counter()
        self.taken = 0

    def full(self, app: str, address: str) -> tuple[Bound, int] | None:
        """Returns the bound that is reached, and its number of places; None if there is a place.

        address: "" for a client without such a bound.
        """
        taken: dict[Bound, int] = {
            "address": self._addresses[address] if address else 0,
            "app": self._apps[app],
            "worker": self.taken,
        }
        return next(((what, self._bounds[what]) for what, count in taken.items() if count >= self._bounds[what]), None)

    def take(self, app: str, address: str) -> None:
        self.taken += 1
        self._apps[app] += 1
        if address:
            self._addresses[address] += 1

    def leave(self, app: str, address: str) -> None:
        self.taken -= 1
        _less(self._apps, app)
        if address:
            _less(self._addresses, address)


class Addresses:
    """Counts connections by address. An address may have seven eighths of the connections of a worker.

    possible: the number of connections that the worker can have.
    """

    ANSWERED = 16
    """connections of an address over its bound that get an answer before they are closed"""

    def __init__(self, possible: Callable[[], int]) -> None:
        self._possible = possible
        self._counts: Counter[str] = Counter()

    @property
    def most(self) -> int:
        """The number of connections that an address may have."""
        return max(1, self._possible() * 7 // 8)

    def enter(self, address: str) -> Room:
        """Returns whether one more connection of an address is served, only answered, or rejected.

        The connection counts until `leave`, unless the result is "none".

        address: "" for a connection that has no bound, and is not counted.
        """
        if not address:
            return "serve"
        count, most = self._counts[address], self.most
        if count >= most + self.ANSWERED:
            return "none"
        self._counts[address] = count + 1
        return "serve" if count < most else "answer"

    def leave(self, address: str) -> None:
        if address:
            _less(self._counts, address)


def _less(counts: Counter[str], name: str) -> None:
    """Subtracts one from the count of a name, and removes a name whose count is 0."""
    counts[name] -= 1
    if not counts[name]:
        del counts[name]
