"""The interface through which a worker reaches the other workers of its machine, which have the same supervisor."""

from collections.abc import Sequence
from typing import Protocol


class Siblings(Protocol):
    """The other workers of this machine.

    `number`: the number of this worker among all workers of the machine.
    `server`: the random name of the supervisor of these workers.
    """

    number: int
    server: str

    async def metrics(self) -> Sequence[tuple[int, bytes]]:
        """Returns a pair for each worker that replies in time: the worker's number, and the result of `api.metrics.snapshot`."""

    async def hooks(self, app: str) -> Sequence[bytes]:
        """Returns the result of `api.hooks.states` for an app, from each worker that replies in time."""
