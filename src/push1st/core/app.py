"""One app on this worker: its configuration, the state that this worker keeps for it, and the interfaces of its clients."""

from collections.abc import Iterable
from typing import Protocol, cast

from push1st.config.model import AppConfig
from push1st.core.held import Held
from push1st.core.hub import Subscriber, Tenant
from push1st.hooks.authorize import operations
from push1st.hooks.formats import kinds
from push1st.limits import Bucket
from push1st.messages import Reply


class Client(Subscriber, Protocol):
    """The parts of a session that the node uses."""

    @property
    def prefix(self) -> str: ...
    @property
    def ip(self) -> str: ...
    @property
    def closed(self) -> bool: ...

    def disconnect(self, code: int, reason: str) -> None: ...


class Outlet(Protocol):
    """The connection of a session, or the owner of its outbox."""

    def send(self, reply: Reply) -> None: ...

    def close(self, code: int, reason: str) -> None: ...

    def fail(self) -> None:
        """Ends the connection after an unexpected exception, and logs the trace of the exception being handled."""


class App:
    """An app on this worker: its configuration, all that is derived from the configuration, and its clients.

    The configuration may change while the worker runs (`Node.configure`). Other objects read it from here. An object that must
    store a derived value is updated by `Node.on_configured`.

    version: grows with each change of the configuration.
    hook_kinds: the kinds of hook events that the app's hooks want.
    backend_decides: the operations about which the app's backend decides; each with a function that returns whether it decides
    about a channel.
    publishes, reads: the token buckets of the API's rates.
    counts_connections: whether the broker counts the connections of this app.
    held: events for clients that have just signed in; None while there are no such clients.
    uncounted: connections that the broker has not counted.
    """

    __slots__ = (
        "backend_decides",
        "config",
        "counts_connections",
        "held",
        "hook_kinds",
        "publishes",
        "reads",
        "tenant",
        "uncounted",
        "version",
    )

    def __init__(self, config: AppConfig, now: float) -> None:
        self.tenant = Tenant()
        self.held: Held | None = None
        self.uncounted: set[Client] = set()
        self.counts_connections = False
        self.version = 0
        self.configure(config, now)

    def configure(self, config: AppConfig, now: float) -> None:
        """Applies a configuration. Clients stay connected, and their next commands follow the new configuration.

        The broker counts new connections from the first configuration with a limit of connections on, even if a later one has no
        limit. So each connection that was counted is taken out of the count when it ends.

        now: seconds on `Clock.monotonic`.
        """
        self.config = config
        self.version += 1
        self.hook_kinds = kinds(config)
        self.backend_decides = operations(config)
        self.publishes = Bucket(config.limits.publishes, now)
        self.reads = Bucket(config.limits.reads, now)
        if config.limits.connections and not self.counts_connections:
            self.counts_connections = True
            self.uncounted.update(cast(Iterable[Client], self.tenant.sessions.values()))

    def sessions(self, channel: str) -> list[Client]:
        """Returns the connections of this worker that are subscribed to a channel."""
        found = self.tenant.channels.get(channel)
        return [] if found is None else list(found.subscribers())  # type: ignore[arg-type]  # every subscriber is a Client
