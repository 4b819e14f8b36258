"""Notifies backends of hook events, and requests decisions from them: the ports, and the registry of transports.

`HookDispatcher.on_event` takes a hook event (`messages.HookEvent`). Edges are held for a while, and dropped if the opposite
edge follows (`debounce`). An event is encoded in the format of each endpoint (`formats`) and queued (`queue`). An `HookEndpoint`
delivers events through a `HookTransport`, and retries failed deliveries (`endpoint`). Decisions are requested through the
same transports, without a queue (`authorize`).

These modules know neither nodes nor sessions nor transports of clients; the node calls them. A new kind of endpoint is one
module here with a `HookTransport`, and one line in `TRANSPORTS`.
"""

from collections.abc import Callable
from typing import Literal, Protocol

import msgspec

from push1st.errors import Refused
from push1st.hooks.events import Question
from push1st.messages import HookEvent

TRANSPORTS = {
    "http": "push1st.hooks.webhook:Web",
    "https": "push1st.hooks.webhook:Web",
    "py": "push1st.hooks.python:Python",
    "lua": "push1st.hooks.lua:Lua",
}

Format = Literal["pusher", "push1st"]


class NotDelivered(Exception):
    """An endpoint did not accept a delivery, or did not reply to a request.

    kind: a word for metrics.
    text: the reason for people, without secrets.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(kind, text)
        self.kind = kind
        self.text = text


class Target(msgspec.Struct, frozen=True):
    """An endpoint of an app, with the settings of its transport.

    key, secret: sign the requests; without a secret the requests are not signed.
    timeout: seconds that a delivery or a request may take.
    processes: the maximum number of child processes, for transports that use some.
    folder: the folder at which relative paths start.
    """

    app: str
    url: str
    key: str
    secret: str
    headers: tuple[tuple[str, str], ...]
    timeout: float
    processes: int
    folder: str

    def __repr__(self) -> str:
        return f"Target({self.app}, {shown(self.url)})"


class HookTransport(Protocol):
    """Reaches one endpoint. `deliver` and `request` raise NotDelivered."""

    async def deliver(self, id: str, body: bytes) -> None:
        """Returns when the endpoint has accepted a delivery. id: of the delivery, the same for each attempt."""

    async def request(self, body: bytes) -> bytes:
        """Returns the reply, a JSON text."""

    async def close(self) -> None: ...


OpenTransport = Callable[[Target], HookTransport]


class Decision(msgspec.Struct, frozen=True):
    """The decision of a backend.

    refused: the rejection; None if the operation is allowed.
    user_id: the user as which the client connects or subscribes.
    user_info: JSON text.
    data: JSON text that replaces the data of the event.
    """

    refused: Refused | None = None
    user_id: str | None = None
    user_info: bytes = b"null"
    data: bytes | None = None


class Hooks(Protocol):
    """The port through which the node uses hooks."""

    def on_event(self, event: HookEvent) -> None:
        """Queues a hook event for the endpoints that want it. Never waits."""

    async def decide(self, question: Question) -> Decision:
        """Returns the decision of the app's backend; a rejection if the backend does not reply."""

    def status(self, app: str) -> "list[Status]":
        """Returns the states of an app's endpoints, in the order of its configuration."""

    def queued(self) -> dict[str, int]:
        """Returns the number of queued events of each app."""


class Status(msgspec.Struct, frozen=True):
    """The state of an endpoint, as `GET /apps/{app}/hooks` shows it. The counts are numbers of events since the start.

    failed: events that are lost.
    retrying: queued events whose delivery has failed at least once.
    last_error: the reason of the last failure.
    last_error_at: its time, in seconds since 1970.
    """

    endpoint: str
    format: str
    queued: int
    sent: int
    failed: int
    retrying: int
    last_error: str | None
    last_error_at: int | None


def shown(url: str) -> str:
    """Returns a URL without the parts that may be secret: user, password and query."""
    scheme, _, rest = url.partition("://")
    rest, question, _ = rest.partition("?")
    host, slash, path = rest.partition("/")
    _, at, host = host.rpartition("@")
    return f"{scheme}://{'…@' if at else ''}{host}{slash}{path.partition('#')[0]}{'?…' if question else ''}"
