"""A bounded number of places, of which no app and no address takes all.

What is bounded for a worker alone is used up by one stranger for everybody. So an app has three quarters of the places at
most, and an address half of them: an office or a proxy is one address too. A bound is looked at when somebody comes. It
never takes a place away.

Pure: it counts names, and knows nothing of what a place is.
"""

from collections import Counter
from collections.abc import Callable
from typing import Literal

from push1st.transports.descriptors import Room

Bound = Literal["worker", "app", "address"]


class Places:
    """bound: of the worker. `taken`: how many places are taken."""

    __slots__ = ("_addresses", "_apps", "_bounds", "taken")

    def __init__(self, bound: int) -> None:
        self._bounds: dict[Bound, int] = {"worker": bound, "app": bound * 3 // 4, "address": -(-bound // 2)}
        self._apps: Counter[str] = Counter()
        self._addresses: Counter[str] = Counter()
        self.taken = 0

    def full(self, app: str, address: str) -> tuple[Bound, int] | None:
        """The bound that leaves no place to a further one, and how many it allows; None where there is a place.

        address: "" is bound by its app and the worker only.
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
    """The connections of each address, of which one has seven eighths of a worker's at most. possible: how many there may be.

    A few more are answered and sent away. A connection that is counted is left alone.
    """

    ANSWERED = 16

    def __init__(self, possible: Callable[[], int]) -> None:
        self._possible = possible
        self._counts: Counter[str] = Counter()

    @property
    def most(self) -> int:
        """How many an address may have."""
        return max(1, self._possible() * 7 // 8)

    def enter(self, address: str) -> Room:
        """What becomes of a further connection; but for "none" it counts until `leave`. address: "" is not counted."""
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
    """The table has no more entries than there are places taken."""
    counts[name] -= 1
    if not counts[name]:
        del counts[name]
