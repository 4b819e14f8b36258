"""The interfaces through which the server notifies backends and requests decisions from backends; the registry of transports.

`HookDispatcher.on_event` takes each hook event (`messages.HookEvent`). The module `debounce` delays events that report a vacated
channel or a removed member, and drops a delayed event if the opposite event arrives during the delay. The module `formats`
encodes an event for each endpoint. The module `queue` keeps the event until a `HookEndpoint` (`endpoint`) delivers the event
through a `HookTransport`. The module `authorize` requests decisions through the same transports, without a queue.

These modules depend on no nodes, sessions or client transports; the node calls these modules. A new kind of endpoint needs a
module in this package with a `HookTransport`, and a line in `TRANSPORTS`.
"""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol
from urllib.parse import urlsplit

import msgspec

from push1st.errors import Refused
from push1st.hooks.events import Question
from push1st.hooks.letters import LetterPage
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

    kind: the kind of failure, as a label for metrics.
    text: the reason in words for people, without secrets.
    status: the HTTP status of the answer; None without an answer.
    """

    def __init__(self, kind: str, text: str, status: int | None = None) -> None:
        super().__init__(kind, text)
        self.kind = kind
        self.text = text
        self.status = status


class Target(msgspec.Struct, frozen=True):
    """An endpoint of an app, with the settings of its transport.

    key, secret: the app's key and the secret that signs the requests; if the secret is "", the requests are not signed.
    timeout: the maximum duration of a delivery or request in seconds.
    processes: the maximum number of child processes, for transports that use child processes.
    folder: the base folder of relative paths.
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
    """Sends deliveries and requests to one endpoint. `deliver` and `request` raise NotDelivered."""

    async def deliver(self, id: str, body: bytes) -> None:
        """Waits until the endpoint has accepted a delivery. `id` identifies the delivery, and is the same in each attempt."""

    async def request(self, body: bytes) -> bytes:
        """Sends a request; returns the reply, a JSON text."""

    async def close(self) -> None: ...


OpenTransport = Callable[[Target], HookTransport]


class Decision(msgspec.Struct, frozen=True):
    """The decision of a backend.

    refused: the rejection of the operation; None if the operation is allowed.
    user_id: the id of the user; the client connects or subscribes with this id.
    user_info: the information about the user, as JSON text.
    data: a JSON text that replaces the data of the published event; None if the data does not change.
    """

    refused: Refused | None = None
    user_id: str | None = None
    user_info: bytes = b"null"
    data: bytes | None = None


class Attempt(msgspec.Struct, frozen=True):
    """An attempt to deliver hook events.

    endpoint: the URL of the endpoint, without secrets.
    channels, events: the channels of the events, and the number of events.
    number: 1 for the first attempt of a delivery, 2 for the first retry.
    size: the number of bytes of the body.
    error: why the endpoint did not accept the delivery; "" if it did.
    """

    app: str
    endpoint: str
    channels: tuple[str, ...]
    events: int
    number: int
    size: int
    seconds: float
    error: str


class HookTap(Protocol):
    """Shows deliveries and decisions to operators (`core/tap.py`)."""

    def attempted(self, attempt: Attempt) -> None:
        """Shows an attempt to deliver hook events."""

    def asked(self, question: Question, decision: Decision, seconds: float) -> None:
        """Shows a decision that a backend has made in `seconds`. A decision from the cache is not shown."""


class Hooks(Protocol):
    """The interface through which a worker's node uses hooks."""

    tap: HookTap | None
    """the object that shows deliveries and decisions; None while no operator watches"""

    def on_event(self, event: HookEvent) -> None:
        """Queues a hook event for the endpoints that want events of this kind. This method never waits."""

    async def decide(self, question: Question) -> Decision:
        """Returns the decision of the app's backend. The decision is a rejection if the backend does not reply."""

    def status(self, app: str) -> "list[Status]":
        """Returns the states of an app's endpoints, in the order of the app's configuration."""

    def queued(self) -> dict[str, int]:
        """Returns the number of queued events of each app."""

    def oldest(self) -> dict[str, float]:
        """Returns the age of the oldest queued event of each app, in seconds; 0 if no event is queued."""

    @property
    def lost_app(self) -> str:
        """The app whose events were lost last, if this was in the last ten minutes; else ""."""

    @property
    def operations(self) -> "HookOperations": ...


class Status(msgspec.Struct, frozen=True):
    """The state of an endpoint, as `GET /apps/{app}/hooks` shows it.

    queued: the number of events that are in the queue now.
    sent, failed: the numbers of delivered and of lost events since this worker created the endpoint.
    retrying: the number of queued events whose delivery has failed at least once.
    last_error: the reason of the most recent failure.
    last_error_at: the time of the most recent failure, in seconds since 1970.
    """

    endpoint: str
    format: str
    queued: int
    sent: int
    failed: int
    retrying: int
    last_error: str | None
    last_error_at: int | None


class HookDetails(msgspec.Struct, frozen=True):
    """The state of an endpoint for operators.

    hook: the fingerprint of the endpoint.
    oldest: the age of the oldest queued event in seconds; None without queued events.
    next_try: the seconds until the next retry of a failed delivery; None if no delivery waits for a retry.
    last_status: the HTTP status of the most recent failed delivery; None without an answer.
    removed: whether the configuration does not have the endpoint any more. It delivers the events that wait, and then ends.
    failing: whether the most recent attempt to deliver failed.
    tried_at: the time of this attempt, in seconds since 1970; 0 without an attempt.
    """

    hook: str
    status: Status
    oldest: float | None
    next_try: float | None
    last_status: int | None
    removed: bool = False
    failing: bool = False
    tried_at: float = 0.0


class HookOperations(Protocol):
    """The interface through which operators see hooks, and deliver dead letters again."""

    @property
    def folder(self) -> str:
        """A word for the folder with the dead letters, which all workers of a machine share; "" without a folder."""

    def details(self, app: str) -> "list[HookDetails]":
        """Returns the states of an app's endpoints, in the order of the app's configuration, and then of removed endpoints."""

    async def letters(self, app: str, hook: str, after: str, limit: int) -> LetterPage:
        """Returns the newest dead letters of an app (see `DeadLetters.page`). hook: only those of an endpoint; "": all.

        Raises OSError if the folder cannot be read, and ValueError if `after` is not a cursor.
        """

    async def redrive(self, app: str, hook: str, ids: Sequence[str]) -> "Redrive":
        """Queues dead letters again, after the waiting events, in the order of their original times (see `letters.Dead`).

        Retries a waiting delivery of each endpoint immediately.

        hook: only those of an endpoint; "": all. Raises OSError if the folder cannot be written; then nothing is queued.
        """


class Redrive(msgspec.Struct, frozen=True):
    """The result of `HookOperations.redrive`: the number of queued letters, and of the others by the reason."""

    queued: int
    refused: dict[str, int]


def _has_wrong_port(url: str) -> bool:
    try:
        urlsplit(url).port  # noqa: B018
    except ValueError:
        return True
    return False


def shown(url: str) -> str:
    """Returns a URL without the parts that may be secret: user, password and query."""
    scheme, _, rest = url.partition("://")
    if _has_wrong_port(url) and "@" in rest:  # the user or the password contains a character that ends the host
        rest = f"…@{rest.rpartition('@')[2]}"
    rest, question, _ = rest.partition("?")
    host, slash, path = rest.partition("/")
    _, at, host = host.rpartition("@")
    return f"{scheme}://{'…@' if at else ''}{host}{slash}{path.partition('#')[0]}{'?…' if question else ''}"
