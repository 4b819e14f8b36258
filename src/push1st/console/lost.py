"""The nodes that disappeared without a graceful stop, as one worker knows them. This module knows no clock."""

from collections.abc import Collection, Mapping

import msgspec

from push1st.console.nodes import KnownNodes, NodeAbout

KEPT_SECONDS = 600.0
"""the seconds for which a lost node is remembered: the time that the charts of the overview show"""
MAX_LOST = 20


class LostNode(msgspec.Struct, frozen=True, array_like=True):
    """A lost node.

    at: the time at which other workers detected the loss, in seconds since 1970.
    about: the report of the node about itself; None if the report is not known.
    replaced: the time at which its successor began, in seconds since 1970; 0 without a successor.
    """

    at: float
    about: NodeAbout | None = None
    replaced: float = 0


class LostNodes:
    """The nodes that were killed, hang or have no network.

    These nodes sent no farewell, and either their lease has expired, or another node has taken their place.
    """

    __slots__ = ("_known", "_living", "_lost")

    def __init__(self, known: KnownNodes) -> None:
        self._known = known
        self._living: set[str] = set()
        self._lost: dict[str, LostNode] = {}

    def look(self, living: Collection[str], left: Collection[str], now: float) -> None:
        """Compares the living nodes with those of the last call.

        left: the nodes that have sent a farewell. now: the time in seconds since 1970.
        """
        for node in self._living.difference(living, left):
            self._lost[node] = LostNode(now, self._known.get(node))
        self._living = set(living)
        for node, one in list(self._lost.items()):
            if node in self._living or not 0 <= now - one.at < KEPT_SECONDS:
                del self._lost[node]
            elif not one.replaced and (began := self._known.successor(one.about, one.at, living)):
                self._lost[node] = msgspec.structs.replace(one, replaced=began)
        self._bound()

    def learn(self, lost: Mapping[str, LostNode]) -> None:
        """Adds the lost nodes that another worker reports.

        The other worker may be older than this worker, or may have detected the loss earlier.
        """
        for node, one in lost.items():
            own = self._lost.get(node, one)
            if one.about is not None:
                self._known.learn_lost(node, one.about)
            if node not in self._living:
                self._lost[node] = LostNode(min(own.at, one.at), own.about or one.about, own.replaced or one.replaced)
        self._bound()

    def _bound(self) -> None:
        if len(self._lost) > MAX_LOST:
            self._lost = dict(sorted(self._lost.items(), key=lambda item: item[1].at)[-MAX_LOST:])

    def found(self) -> dict[str, LostNode]:
        """Returns the lost nodes."""
        return dict(self._lost)


class LatestLoss:
    """The latest loss of the broker's state.

    reported: its time on the clock of the worker that detected it, which may be ahead. at: the time for this worker, at most the
    time at which it learned of the loss. Both in seconds since 1970; 0 without a loss.
    """

    __slots__ = ("at", "reported")

    def __init__(self) -> None:
        self.at = self.reported = 0.0

    def learn(self, reported: float, now: float) -> None:
        """Keeps a loss that a worker reports, if it is a later one."""
        if reported > self.reported:
            self.reported, self.at = reported, min(reported, now)
