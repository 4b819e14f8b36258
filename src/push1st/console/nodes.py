"""The nodes that have a console: their names for people, and which of them has replaced which. Pure."""

from collections.abc import Collection
from contextlib import suppress

import msgspec

MAX_KNOWN = 2000
"""the number of known nodes above which all of them are forgotten"""
LEASE_SECONDS = 15.0
"""the maximum number of seconds after which a node that has ended is missed: its lease, and some time for slow machines"""


class NodeAbout(msgspec.Struct, frozen=True, array_like=True):
    """What a node reports about itself.

    machine, worker: its name for people: its machine, and the number of the worker.
    server: the random name of its supervisor. A supervisor gives the number of a worker to another one only after the process of
    the first one has ended. "" for a worker without a supervisor.
    began: the time of its start, in seconds since 1970.
    """

    machine: str
    worker: int
    server: str
    began: float

    @property
    def place(self) -> tuple[str, int, str]:
        """The place of a node, which its successor takes."""
        return self.machine, self.worker, self.server


class KnownNodes:
    """The reports of this worker and of the other nodes that have a console. name, own: this worker and its report."""

    __slots__ = ("_about", "_name", "_own", "_places", "own")

    def __init__(self, name: str, own: NodeAbout) -> None:
        self._name = name
        self._own = own
        self.own = msgspec.msgpack.encode(own)
        """the report of this worker, as other nodes learn it"""
        self._about: dict[str, NodeAbout] = {}
        self._places = {own.place: name}
        """the newest node of each place"""

    def __contains__(self, node: object) -> bool:
        return node in self._about

    def learn(self, node: str, packed: bytes) -> str:
        """Keeps the report of a node. Returns the node that has ended, because this node has its place; "" if there is none."""
        self._make_room()
        with suppress(msgspec.DecodeError, UnicodeDecodeError):  # a worker of another version
            about = self._about[node] = _about.decode(packed)
            before, self._places[about.place] = self._places.get(about.place, node), node
            return before if self.has_ended(before) else ""
        return ""

    def learn_lost(self, node: str, about: NodeAbout) -> None:
        """Keeps the report of a node that another worker has lost."""
        self._make_room()
        self._about.setdefault(node, about)

    def _make_room(self) -> None:
        if len(self._about) >= MAX_KNOWN:
            self._about.clear()
            self._places = {self._own.place: self._name}

    def get(self, node: str) -> NodeAbout | None:
        return self._about.get(node)

    def has_ended(self, node: str) -> bool:
        """Returns whether a node has ended, because another node has its place."""
        about = self._about.get(node)
        return about is not None and bool(about.server) and self._places.get(about.place, node) != node

    def successor(self, about: NodeAbout | None, missed: float, living: Collection[str]) -> float:
        """Returns the time at which the successor of a node began; 0 if no node has its place.

        missed: the time at which the node was missed. Workers without a supervisor may have the same place. So a successor of
        such a worker must be younger than the last lease of this worker.
        """
        if about is None:
            return 0
        found = [self._own, *(one for node in living if (one := self._about.get(node)))]
        least = 0 if about.server else missed - LEASE_SECONDS
        return max((one.began for one in found if one.place == about.place and one.began >= least), default=0)


_about = msgspec.msgpack.Decoder(NodeAbout)
