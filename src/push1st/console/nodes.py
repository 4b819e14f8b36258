"""Display names of the nodes that have a console, and the successor of each replaced node. This module is pure."""

from collections.abc import Collection
from contextlib import suppress

import msgspec

MAX_KNOWN = 2000
"""the number of known nodes above which all of them are forgotten"""
LEASE_SECONDS = 15.0
"""the maximum number of seconds after which other workers detect the end of a node: its lease, and some time for slow machines"""


class NodeAbout(msgspec.Struct, frozen=True, array_like=True):
    """The report of a node about itself.

    machine, worker: the display name of the node: its machine, and the number of the worker.
    server: the random name of the node's supervisor; "" for a worker without a supervisor. A supervisor gives the number of a
        worker to another worker only after the process of the first worker has ended.
    began: the time at which the node started, in seconds since 1970.
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
        """the encoded report that this worker sends to other nodes"""
        self._about: dict[str, NodeAbout] = {}
        self._places = {own.place: name}
        """the newest node of each place"""

    def __contains__(self, node: object) -> bool:
        return node in self._about

    def learn(self, node: str, packed: bytes) -> str:
        """Stores the report of a node. Returns the other node whose place this node has taken; "" without such a node."""
        self._make_room()
        with suppress(msgspec.DecodeError, UnicodeDecodeError):  # a worker of another version
            about = self._about[node] = _about.decode(packed)
            before, self._places[about.place] = self._places.get(about.place, node), node
            return before if self.has_ended(before) else ""
        return ""

    def learn_lost(self, node: str, about: NodeAbout) -> None:
        """Stores the report of a node that another worker has reported as lost."""
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
        """Returns the time at which the successor of a node started; 0 without a successor.

        missed: the time at which other workers detected the loss of the node.

        Two workers without a supervisor may have the same place. So a node is the successor of such a worker only if the node
        started at most `LEASE_SECONDS` before `missed`, or later.
        """
        if about is None:
            return 0
        found = [self._own, *(one for node in living if (one := self._about.get(node)))]
        least = 0 if about.server else missed - LEASE_SECONDS
        return max((one.began for one in found if one.place == about.place and one.began >= least), default=0)


_about = msgspec.msgpack.Decoder(NodeAbout)
