"""The nodes that disappeared without a graceful stop, in the view of one worker. This module knows no clock."""

from collections.abc import Collection

KEPT_SECONDS = 600.0
"""the seconds for which a lost node is remembered: the time that the charts of the overview show"""
MAX_LOST = 20


class LostNodes:
    """The nodes whose lease has expired without a farewell: they were killed, or hang, or have no network."""

    __slots__ = ("_living", "_lost")

    def __init__(self) -> None:
        self._living: set[str] = set()
        self._lost: dict[str, float] = {}

    def look(self, living: Collection[str], left: Collection[str], now: float) -> None:
        """Compares the living nodes with those of the last call.

        left: the nodes that have sent a farewell. now: the time in seconds since 1970.
        """
        for node in self._living.difference(living, left):
            self._lost[node] = now
        self._living = set(living)
        kept = [(node, at) for node, at in self._lost.items() if node not in self._living and 0 <= now - at < KEPT_SECONDS]
        self._lost = dict(kept[-MAX_LOST:])

    def found(self) -> dict[str, float]:
        """Returns the lost nodes, each with the time at which it was missed, in seconds since 1970."""
        return dict(self._lost)
