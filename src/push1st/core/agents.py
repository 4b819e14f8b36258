"""The headers `User-Agent` and `Origin` of clients, for operators. Pure. Kept only if the worker has a console."""

from typing import Protocol
from weakref import WeakValueDictionary

MAX_AGENTS = 1000
"""the maximum number of different pairs of these headers that are kept for connected clients"""
MAX_LENGTH = 255
"""the maximum number of characters of a header that are kept"""


class ClientAgent:
    """The headers `User-Agent` and `Origin` of a handshake; "" without the header. Clients with equal headers share an object."""

    __slots__ = ("__weakref__", "origin", "user_agent")

    def __init__(self, user_agent: str, origin: str) -> None:
        self.user_agent = user_agent
        self.origin = origin


OTHER = ClientAgent("other", "other")
"""the headers of clients that connect while the table is full"""


class AgentRequest(Protocol):
    """The part of a client's handshake with these headers."""

    @property
    def user_agent(self) -> str | None: ...
    @property
    def origin(self) -> str | None: ...


class ClientAgents:
    """The table of a worker. An entry is removed with its last client."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[tuple[str, str], ClientAgent] = WeakValueDictionary()

    def of(self, request: AgentRequest) -> ClientAgent:
        """Returns the headers of a client."""
        key = (request.user_agent or "")[:MAX_LENGTH], (request.origin or "")[:MAX_LENGTH]
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= MAX_AGENTS:
                return OTHER
            found = self._known[key] = ClientAgent(*key)
        return found
