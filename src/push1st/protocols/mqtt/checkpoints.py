"""The positions to which a session may move while its client acknowledges messages.

A shared broker keeps the messages of a session in logs, whether its client is connected or absent. If the worker of the client
dies, another worker sends the messages after the last stored position again. A message has no position of its own on its way to
the session. Instead the worker asks for the ends of the logs from time to time. All messages up to these ends have arrived before
the reply. So a *checkpoint* is the ends, and the messages that the client had not acknowledged then. The session moves to the
ends when the client has received all messages of the checkpoint.
"""

from collections.abc import Collection
from typing import Generic, Protocol, TypeVar

MAX_CHECKPOINTS = 4
"""the maximum number of checkpoints of a session; a further one replaces the last one, so that the first one is reached"""

Ends = TypeVar("Ends")


class Deliveries(Protocol):
    """The part of `Outgoing` that checkpoints need."""

    @property
    def waiting(self) -> int: ...
    @property
    def entered(self) -> int: ...
    @property
    def unreceived(self) -> Collection[int]: ...


class Checkpoint(Generic[Ends]):
    """A checkpoint. deliveries: the deliveries at the time of the checkpoint.

    entered: `Outgoing.entered` at this time.
    packet_ids: the ids of the messages in flight that the client may not have received; None while messages of it wait.
    """

    __slots__ = ("ends", "entered", "packet_ids")

    def __init__(self, ends: Ends, deliveries: Deliveries) -> None:
        self.ends = ends
        self.entered = deliveries.entered
        self.packet_ids: set[int] | None = None
        self.is_reached(deliveries)  # stores the messages in flight

    def is_reached(self, deliveries: Deliveries) -> bool:
        """Returns whether the client has received all messages of the checkpoint, or the session has dropped them."""
        waiting = deliveries.waiting
        if self.packet_ids is None:
            if waiting and deliveries.entered - waiting < self.entered:
                return False
            # The messages that waited are in flight now, and perhaps also later ones, which delay the checkpoint.
            self.packet_ids = set(deliveries.unreceived)
        elif self.packet_ids:
            # An id may now belong to a later message, which delays the checkpoint.
            self.packet_ids.intersection_update(deliveries.unreceived)
        return not self.packet_ids


class Checkpoints(Generic[Ends]):
    """The checkpoints of a session that its client has not reached, the oldest first."""

    __slots__ = ("_checkpoints",)

    def __init__(self) -> None:
        self._checkpoints: list[Checkpoint[Ends]] = []

    def __len__(self) -> int:
        return len(self._checkpoints)

    def add(self, ends: Ends, deliveries: Deliveries) -> None:
        """Adds a checkpoint. ends: the ends of the logs. All messages up to these ends are in the deliveries, or were before."""
        del self._checkpoints[MAX_CHECKPOINTS - 1 :]
        self._checkpoints.append(Checkpoint(ends, deliveries))

    def reached(self, deliveries: Deliveries) -> Ends | None:
        """Returns the ends of the last checkpoint that is reached, and removes it with the earlier ones; None without one."""
        reached = [number for number, one in enumerate(self._checkpoints) if one.is_reached(deliveries)]
        if not reached:
            return None
        ends = self._checkpoints[reached[-1]].ends
        del self._checkpoints[: reached[-1] + 1]
        return ends
