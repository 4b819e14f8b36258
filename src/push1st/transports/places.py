"""Bounds per app and per address, smaller than the bound of a worker.

With a bound of the worker alone, one client could exhaust the worker for all others. The bounds here are generous, because an
office or a proxy is one address too. They are checked when a client connects, and never end established connections.

Pure: this module counts names, and does not know what is counted.
"""

from collections import Counter
from collections.abc import Callable
from typing import Literal

from push1st.transports.descriptors import Room

Bound = Literal["worker", "app", "address"]
Crowded = Literal["server", "address"]
"""why there is no room for a client"""


class Places:
    """A bounded number of places: an app has three quarters of them at most, an address half.

    bound: the number of places. `taken`: the number that is in use.
    """

    __slots__ = ("_addresses", "_apps", "_bounds", "taken")

    def __init__(self, bound: int) -> None:
        self._bounds: dict[Bound, int] = {"worker": bound, "app": bound * 3 // 4, "address": -(-bound // 2)}
        self._apps: Counter[str] = Counter()
        self._addresses: Counter[str] = Counter()
        self.taken = 0

    def full(self, app: str, address: str) -> tuple[Bound, int] | None:
        """Returns the bound that is reached, and its number; None if there is a place.

        address: "" has no bound per address.
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
    """Counts connections by address: an address has seven eighths of a worker's connections at most.

    possible: the number of connections that the worker can have.
    """

    ANSWERED = 16
    """connections over the bound that are answered before they are closed"""

    def __init__(self, possible: Callable[[], int]) -> None:
        self._possible = possible
        self._counts: Counter[str] = Counter()

    @property
    def most(self) -> int:
        """The number of connections that an address may have."""
        return max(1, self._possible() * 7 // 8)

    def enter(self, address: str) -> Room:
        """Returns the room for one more connection, which counts until `leave`, unless the result is "none".

        address: "" has no bound, and is not counted.
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
    """Subtracts one; a name without a count leaves the table."""
    counts[name] -= 1
    if not counts[name]:
        del counts[name]
