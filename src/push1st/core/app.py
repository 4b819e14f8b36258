"""An app on one worker: the app's configuration and state, and the interfaces of a client's session (`Client`, `Outlet`)."""

from collections.abc import Collection, Iterable, Mapping
from functools import partial
from typing import Protocol, cast

from push1st import auth
from push1st.config.model import AppConfig
from push1st.core.filters import Filters, SeenMessages
from push1st.core.held import Held
from push1st.core.histories import histories
from push1st.core.hub import Lane, Subscriber, Subscription, Tenant
from push1st.core.secret_use import SecretUse
from push1st.errors import Disconnect
from push1st.hooks.authorize import operations
from push1st.hooks.formats import kinds
from push1st.limits import Bucket
from push1st.messages import Reply, SignedInUser
from push1st.metrics import AppCounts


class Client(Subscriber, Protocol):
    """The properties and methods of a session that the node uses."""

    @property
    def prefix(self) -> str: ...
    @property
    def ip(self) -> str: ...
    @property
    def closed(self) -> bool: ...
    @property
    def claims(self) -> auth.Claims | None: ...
    @property
    def user(self) -> SignedInUser | None: ...
    @property
    def subscriptions(self) -> Mapping[str, Subscription]: ...

    authorized: bool
    """whether the client has presented a valid sign-in, or has subscribed to a channel that is not public"""

    @property
    def resumption(self) -> object | None:
        """The way in which the client resumes its channels; None for a client that cannot resume."""

    @property
    def filters(self) -> dict[str, Lane] | None:
        """The lanes of the client's filters with wildcards, by filter; None if the client never had such a filter."""

    @filters.setter
    def filters(self, lanes: dict[str, Lane] | None) -> None: ...

    def disconnect(self, code: int, reason: str) -> None: ...


def prefix_of(id: str) -> str:
    """Returns the part of a session's id that the client chose; "" if the client chose none."""
    return id.rpartition(".")[0].rpartition(".")[0]


def user_of(client: Client) -> str:
    """Returns the user id of a signed-in client; "" for other clients."""
    return "" if client.user is None else client.user.id


def client_id_of(client: Client) -> str:
    """Returns the client id of an MQTT client; "" for other clients."""
    return client.prefix if client.wire.name.startswith("mqtt") else ""


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
    `history`: a function that takes a channel's name and returns the settings of the channel's history; the function returns None
    for a channel without a history. The attribute is None if the app keeps no history.
    `publishes`, `reads`: the token buckets that enforce `limits.publishes` and `limits.reads`.
    `check_request`: `auth.check_request` with the key and the secrets of the app.
    `secret_use`: the clients that rely on each of the app's secrets; None while the app has at most one secret.
    `counts_connections`: whether the broker counts the connections of this app.
    `held`: the events that are held for clients that have just signed in; None while there are no such clients.
    `filters`: the filters with wildcards of the app's clients; None while there are no such filters.
    `counts`: the counters of this app.
    `copies`: the receivers of messages that a shared broker sends to this worker because of its filters; None without filters.
    `groups`: the number of groups that need `filters` for the rights of their members (`Wildcards.hold`).
    `uncounted`: the connections that the broker has not counted; when one of them ends, the broker's count must not change.
    """

    __slots__ = (
        "backend_decides",
        "check_request",
        "config",
        "copies",
        "counts",
        "counts_connections",
        "filters",
        "groups",
        "held",
        "history",
        "hook_kinds",
        "publishes",
        "reads",
        "secret_use",
        "tenant",
        "uncounted",
        "version",
    )

    def __init__(self, config: AppConfig, now: float, counts: AppCounts) -> None:
        self.counts = counts
        self.tenant = Tenant(counts)
        self.held: Held | None = None
        self.filters: Filters | None = None
        self.groups = 0
        self.copies: Tenant | None = None
        self.uncounted: set[Client] = set()
        self.counts_connections = False
        self.secret_use: SecretUse[Client] | None = None
        self.version = 0
        self.config = config
        self.configure(config, now)

    def configure(self, config: AppConfig, now: float) -> Collection[Client]:
        """Applies a configuration. Clients stay connected, and their next commands follow the new configuration.

        Returns the clients that rely on a secret which the app has no longer.

        After the first configuration that limits the number of connections, the broker counts every new connection, even if a
        later configuration has no such limit. Older connections stay uncounted, and `uncounted` contains them until they end.

        `now`: the time in seconds on `Clock.monotonic`.
        """
        leaving = self._change_secrets(self.config.secrets, config)
        self.config = config
        self.version += 1
        self.hook_kinds = kinds(config)
        self.backend_decides = operations(config)
        self.history = histories(config.history)
        if self.filters is not None:
            self.filters.configure(config, self.backend_decides.get("subscribe"))
        self.publishes = Bucket(config.limits.publishes, now)
        self.reads = Bucket(config.limits.reads, now)
        if config.limits.connections and not self.counts_connections:
            self.counts_connections = True
            self.uncounted.update(cast(Iterable[Client], self.tenant.sessions.values()))
        return leaving

    def _change_secrets(self, before: tuple[str, ...], config: AppConfig) -> Collection[Client]:
        """Applies changed secrets. Returns the clients that rely on a removed secret. `before`: the earlier secrets."""
        after, use, leaving = config.secrets, self.secret_use, set[Client]()
        if use is None and (after != before or len(after) > 1):
            # With one secret, nothing is recorded: every client with a token or a signature relies on this secret.
            clients = cast(Iterable[Client], self.tenant.sessions.values())
            use = SecretUse(before, (one for one in clients if one.authorized or one.claims is not None))
        if use is not None:
            leaving = use.change(after)
        self.secret_use = use if len(after) > 1 else None
        self.check_request = partial(auth.check_request, config.key, config.secret)
        if self.secret_use is not None:
            self.check_request = partial(self.check_request, older=config.older_secrets, used=self.secret_use.count)
        return leaving

    def over_quota(self, most: int) -> Disconnect:
        """Counts a connection above the app's limit, and returns the reason for its end."""
        self.counts.refusals += 1
        return Disconnect(4004, f"Over connection quota: this app may have {most}")

    def authorize(self, client: Client, place: int | None) -> None:
        """Records that a client is authorised. `place`: the place of the secret that signed its request; None: no secret did."""
        client.authorized = True
        if place is not None and self.secret_use is not None:
            self.secret_use.add(client, place)

    def open_filters(self, seen: SeenMessages | None = None) -> Filters:
        """Returns the filters of the app's clients, for a new subscription. `seen`: see `Filters`."""
        if self.filters is None:
            self.filters = self.tenant.filters = Filters(self.config, self.backend_decides.get("subscribe"), self.counts, seen)
            self.copies = self.tenant.of_filters()
        return self.filters

    def close_unused_filters(self) -> None:
        """Makes publishing as fast as before the first filter, if no client has a filter any more."""
        if not self.filters and not self.groups:
            self.filters = self.tenant.filters = self.copies = None

    def sessions(self, channel: str) -> list[Client]:
        """Returns the connections of this worker that are subscribed to a channel."""
        found = self.tenant.channels.get(channel)
        return [] if found is None else list(found.subscribers())  # type: ignore[arg-type]  # every subscriber is a Client
