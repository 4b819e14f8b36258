"""One app on this worker: its configuration, and the state that this worker keeps for it."""

from typing import Protocol

from push1st.config.model import AppConfig
from push1st.core.held import Held
from push1st.core.hub import Subscriber, Tenant
from push1st.hooks.authorize import operations
from push1st.hooks.formats import kinds
from push1st.limits import Bucket


class Client(Subscriber, Protocol):
    """What the node needs of a session."""

    @property
    def prefix(self) -> str: ...
    @property
    def ip(self) -> str: ...
    @property
    def closed(self) -> bool: ...

    def disconnect(self, code: int, reason: str) -> None: ...


class App:
    """An app on this worker: its configuration, and what the worker knows of it.

    reported: the hook events its hooks want. asks: what its backend has a say in, each with whether it is about a channel.
    """

    __slots__ = ("asks", "config", "held", "publishes", "reads", "reported", "tenant", "uncounted")

    def __init__(self, config: AppConfig, now: float) -> None:
        self.config = config
        self.tenant = Tenant()
        self.held: Held | None = None
        """events for clients that have just signed in; None while there are no such clients"""
        self.uncounted: set[Client] = set()
        """connections for which the broker has not yet confirmed or rejected a place in the quota of the app"""
        self.publishes = Bucket(config.limits.publishes, now)
        self.reads = Bucket(config.limits.reads, now)
        self.reported = kinds(config)
        self.asks = operations(config)

    def sessions(self, channel: str) -> list[Client]:
        """Returns the connections of this worker that are subscribed to a channel."""
        found = self.tenant.channels.get(channel)
        return [] if found is None else list(found.subscribers())  # type: ignore[arg-type]  # every subscriber is a Client
