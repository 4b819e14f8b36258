"""An app on one worker: the app's configuration and state, and the interfaces of a client's session (`Client`, `Outlet`)."""

from collections.abc import Iterable
from typing import Protocol, cast

from push1st.config.model import AppConfig
from push1st.core.held import Held
from push1st.core.histories import histories
from push1st.core.hub import Subscriber, Tenant
from push1st.hooks.authorize import operations
from push1st.hooks.formats import kinds
from push1st.limits import Bucket
from push1st.messages import Reply


class Client(Subscriber, Protocol):
    """The properties and methods of a session that the node uses."""

    @property
    def prefix(self) -> str: ...
    @property
    def ip(self) -> str: ...
    @property
    def closed(self) -> bool: ...
    @property
    def resumption(self) -> object | None:
        """The way in which the client resumes its channels; None for a client that cannot resume."""

    def disconnect(self, code: int, reason: str) -> None: ...


class Outlet(Protocol):
    """The object that sends a session's replies: the session's connection, or the owner of the session's outbox."""

    def send(self, reply: Reply) -> None: ...

    def close(self, code: int, reason: str) -> None: ...

    def has_room(self, size: int) -> bool:
        """Returns whether the client may receive `size` more bytes, and stay below `server.outbox`.

        Frames that the fan-out has not written yet do not count, so the caller writes them first.
        """

    def fail(self) -> None:
        """Logs the unexpected exception that is being handled, with its trace, and ends the connection."""


class App:
    """An app on this worker: its configuration, the values derived from the configuration, and the app's clients.

    The configuration may change while the worker runs (`Node.configure`), so other objects read `App.config` at each use,
    and keep no copy. Functions in `Node.on_configured` update values that other objects have derived from the configuration.

    `version`: a number that is incremented with each change of the configuration.
    `hook_kinds`: the kinds of hook events that the app's hooks receive.
    `backend_decides`: for each operation that the app's backend may decide about, a function that takes a channel's name and
    returns whether the backend decides about this operation on the channel.
    `history`: a function that takes a channel's name and returns the settings of its history, or None; None if the app keeps no
    history.
    `publishes`, `reads`: the token buckets that enforce `limits.publishes` and `limits.reads`.
    `counts_connections`: whether the broker counts the connections of this app.
    `held`: the events that are held for clients that have just signed in; None while there are no such clients.
    `uncounted`: the connections that the broker has not counted; when one of them ends, the broker's count must not change.
    """

    __slots__ = (
        "backend_decides",
        "config",
        "counts_connections",
        "held",
        "history",
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

        After the first configuration that limits the number of connections, the broker counts every new connection, even if a
        later configuration has no such limit. Older connections stay uncounted, and `uncounted` contains them until they end.

        `now`: the time in seconds on `Clock.monotonic`.
        """
        self.config = config
        self.version += 1
        self.hook_kinds = kinds(config)
        self.backend_decides = operations(config)
        self.history = histories(config.history)
        self.publishes = Bucket(config.limits.publishes, now)
        self.reads = Bucket(config.limits.reads, now)
        if config.limits.connections and not self.counts_connections:
            self.counts_connections = True
            self.uncounted.update(cast(Iterable[Client], self.tenant.sessions.values()))

    def sessions(self, channel: str) -> list[Client]:
        """Returns the connections of this worker that are subscribed to a channel."""
        found = self.tenant.channels.get(channel)
        return [] if found is None else list(found.subscribers())  # type: ignore[arg-type]  # every subscriber is a Client
