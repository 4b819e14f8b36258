"""Bounds the connections of a worker from one address. Also bounds a worker's detached HTTP fallback sessions: in total,
of one app, and of one address.

Without these bounds one client could use all connections of the worker. The bounds are large, because all clients in an office,
or all clients of a proxy, may have the same address. The server checks a bound only when a client connects, and ends no
established connections. This module counts by app id and by address, and uses no socket and no clock.
"""

from collections import Counter
from collections.abc import Callable
from typing import Literal

from push1st.transports.descriptors import Room

Bound = Literal["worker", "app", "address"]
Crowded = Literal["server", "address"]
"""the bound that the number of connections has reached: the file descriptors for clients, or the bound of one address"""


class Places:
    """A bounded number of places for sessions: at most three quarters of them for one app, and half for one address.

    bound: the total number of places on the worker.
    taken: the number of places in use.
    """

    __slots__ = ("_addresses", "_apps", "_bounds", "taken")

    def __init__(self, bound: int) -> None:
        self._bounds: dict[Bound, int] = {"worker": bound, "app": bound * 3 // 4, "address": -(-bound // 2)}
        self._apps: Counter[str] = Counter()
        self._addresses: Counter[str] = Counter()
        self.taken = 0

    def full(self, app: str, address: str) -> tuple[Bound, int] | None:
        """Returns which bound is reached, and how many places this bound allows; None if the client can take a place.

        address: the address or network of the client; "" if no bound for addresses applies to the client.
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
    """Counts the connections of each address. An address has at most seven eighths of a worker's possible connections.

    possible: a function that returns the number of connections that the worker can have.
    """

    ANSWERED = 16
    """maximum number of connections of one address, in addition to `most`, that the server answers and then closes"""

    def __init__(self, possible: Callable[[], int]) -> None:
        self._possible = possible
        self._counts: Counter[str] = Counter()

    @property
    def most(self) -> int:
        """The number of connections that one address may have."""
        return max(1, self._possible() * 7 // 8)

    def enter(self, address: str) -> Room:
        """Returns whether a new connection is served ("serve"), answered and closed ("answer"), or closed at once ("none").

        Counts the connection until a call of `leave`, unless the result is "none".

        address: the address or network of the client; "" for a connection to which no bound applies, and which is not counted.
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
