"""Requests and messages between the consoles of all workers."""

from collections.abc import Awaitable, Callable

import msgspec

from push1st.core.node import Node
from push1st.eager import MaybeAwaitable


class Replies(msgspec.Struct):
    """The replies of the workers to a request.

    found: the name of each node that replied, with its reply.
    missing: the living nodes that did not reply.
    away: the last error of the broker; "" if the broker is connected.
    """

    found: list[tuple[str, bytes]]
    missing: list[str]
    away: str


class ConsoleWire:
    """The connection of a worker's console with the consoles of all workers, this worker included."""

    def __init__(self, node: Node, name: str) -> None:
        self._node = node
        self._name = name
        self._served: dict[str, Callable[[bytes], MaybeAwaitable[bytes]]] = {}
        self._handled: dict[str, Callable[[bytes], None]] = {}

    def serve(self, kind: str, handler: Callable[[bytes], MaybeAwaitable[bytes]]) -> None:
        """Sets the function that replies to requests of a kind."""
        self._served[kind] = handler

    def handle(self, kind: str, handler: Callable[[bytes], None]) -> None:
        """Sets the function that handles messages of a kind, which have no reply."""
        self._handled[kind] = handler

    async def request(self, kind: str, data: bytes = b"", *, node: str = "", seconds: float = 0.5) -> Replies:
        """Sends a request to all workers, or to one node, and returns the replies that arrive within `seconds`."""
        found = self._served[kind](data)
        return Replies([(self._name, found if isinstance(found, bytes) else await found)], [], "")

    def send(self, kind: str, data: bytes, node: str = "") -> int | Awaitable[int]:
        """Sends a message to all workers, or to one node. Returns the number of workers that received it, if known."""
        self._handled[kind](data)
        return 1
