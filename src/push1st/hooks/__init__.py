"""What tells a backend of what happens, and asks it: the ports, and the registry of ways to reach an endpoint.

A hook event (`messages.HookEvent`) comes to `on_event` of a `HookDispatcher`; edges are held back and cancelled (`debounce`),
what an endpoint wants is encoded in its format (`formats`) and queued for it (`queue`); an `Endpoint` sends, retries and gives up
(`endpoint`), by a `HookTransport`. Questions go the same ways, without a queue (`authorize`).

None of this knows nodes, sessions or transports; the node calls it. A further kind of endpoint is one file here with a
`HookTransport`, and one line in `TRANSPORTS`.
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
    """An endpoint did not take a delivery, or did not answer. kind: a word for metrics; text: for people, without secrets."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(kind, text)
        self.kind = kind
        self.text = text


class Target(msgspec.Struct, frozen=True):
    """One endpoint of an app, and how to speak to it.

    key, secret: what requests are signed with; no secret: they are not. timeout: seconds of a delivery or an answer.
    processes: for those that run in some. folder: where relative paths start.
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
    """How an endpoint is reached. Both raise NotDelivered."""

    async def tell(self, id: str, body: bytes) -> None:
        """Returns when the endpoint has taken a delivery. id: the same each time it is tried."""

    async def ask(self, body: bytes) -> bytes:
        """The answer, a JSON text."""

    async def close(self) -> None: ...


Reach = Callable[[Target], HookTransport]


class Decision(msgspec.Struct, frozen=True):
    """What a backend decided. user_info: JSON text; data: JSON text instead of the event's."""

    refused: Refused | None = None
    user_id: str | None = None
    user_info: bytes = b"null"
    data: bytes | None = None


class Hooks(Protocol):
    """What the node and its sessions need of all hooks."""

    def on_event(self, event: HookEvent) -> None:
        """Takes a hook event to the endpoints that want it. Never waits."""

    async def ask(self, question: Question) -> Decision:
        """What the app's backend decides. A backend that does not answer refuses."""

    def status(self, app: str) -> "list[Status]":
        """The endpoints of an app, in the order of its configuration."""

    def queued(self) -> dict[str, int]:
        """How many events wait, by app."""


class Status(msgspec.Struct, frozen=True):
    """An endpoint, as `GET /apps/{app}/hooks` shows it. Counts are of events, since the start.

    failed: given up. retrying: of those queued, the ones that have been tried. last_error: of the last failure, with its
    time in seconds since 1970.
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
    """A URL without what may be secret in it: user, password and query."""
    scheme, _, rest = url.partition("://")
    rest, question, _ = rest.partition("?")
    host, slash, path = rest.partition("/")
    _, at, host = host.rpartition("@")
    return f"{scheme}://{'…@' if at else ''}{host}{slash}{path.partition('#')[0]}{'?…' if question else ''}"
