"""The interface between the console and its parts: the context of a part, its endpoints, and the calls that endpoints serve.

A call has passed all guards: it comes from a signed-in operator. An endpoint refuses a call with `Refused(status, text)`.
"""

import re
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec

from push1st import logs
from push1st.config.model import Config
from push1st.console.wire import ConsoleWire
from push1st.core.node import Node
from push1st.eager import MaybeAwaitable
from push1st.errors import Refused
from push1st.status import BrokerDetails, WorkerReports
from push1st.transports.context import EdgeContext
from push1st.transports.mqtt.clients import MqttClients

MAX_BODY = 1 << 20
"""the maximum number of bytes of the body of a call"""
MAX_PARAMS = 50
_NUMBER = re.compile(r"[0-9]{1,10}\Z")
_FLAGS = {"": True, "1": True, "true": True, "0": False, "false": False}

log = logs.get("push1st.console")


class ConsoleCall(msgspec.Struct, frozen=True):
    """A request of a signed-in operator.

    args: the values of the groups of the endpoint's pattern, without percent-encoding.
    params: the parameters of the query.
    body: at most `MAX_BODY` bytes.
    ip: the address of the operator.
    """

    method: str
    args: tuple[str, ...]
    params: Mapping[str, str]
    body: bytes
    ip: str

    def number(self, name: str, default: int, most: int) -> int:
        """Returns a parameter, a whole number from 0 to `most`; `default` without the parameter. Raises Refused(400)."""
        text = self.params.get(name, "")
        if not text:
            return default
        if not _NUMBER.match(text) or int(text) > most:
            raise Refused(400, f"{name} must be a whole number from 0 to {most}")
        return int(text)

    def text(self, name: str, most_bytes: int = 255) -> str:
        """Returns a parameter of at most `most_bytes` bytes of UTF-8; "" without the parameter. Raises Refused(400)."""
        text = self.params.get(name, "")
        if len(text.encode("utf-8", "surrogatepass")) > most_bytes:
            raise Refused(400, f"{name} must have at most {most_bytes} bytes")
        return text

    def flag(self, name: str) -> bool:
        """Returns whether a parameter is `1`, `true` or without a value; false without the parameter. Raises Refused(400)."""
        text = self.params.get(name, "false")
        if text not in _FLAGS:
            raise Refused(400, f"{name} must be 1 or 0")
        return _FLAGS[text]


class ConsoleEndpoint(NamedTuple):
    """An endpoint below `api/`.

    method: GET, POST or DELETE. HEAD is served as GET.
    pattern: a regular expression for the whole path after `api/`. The path is not percent-decoded before the match, so
    `[^/]+` matches one segment, even if the segment contains an encoded slash.
    serve: the function that serves a call. The returned object is encoded as JSON.
    """

    method: str
    pattern: str
    serve: Callable[[ConsoleCall], MaybeAwaitable[object]]


class ConsolePart(Protocol):
    """A part of the console, such as the list of apps. Its class takes a `ConsoleContext`."""

    @property
    def endpoints(self) -> Sequence[ConsoleEndpoint]:
        """The endpoints of the part."""


class BrokerReports(Protocol):
    """The servers of a shared broker. Both methods wait for the servers without a time limit."""

    async def details(self) -> list[BrokerDetails]:
        """Returns what the servers report about themselves."""

    async def leases(self, nodes: Sequence[str]) -> dict[str, float]:
        """Returns the seconds until the expiry of the leases of nodes, by name; nodes without a lease are missing."""


class ConsoleContext:
    """What all parts of the console share.

    config: a function that returns the current configuration.
    name: the name of this worker's node in the broker.
    number: the number of this worker.
    reports: the functions that report the state of this worker.
    broker: the servers of the broker; None with the memory broker.
    clients: the MQTT clients of this worker.
    """

    def __init__(
        self,
        node: Node,
        edge: EdgeContext,
        wire: ConsoleWire,
        name: str,
        number: int,
        reports: WorkerReports,
        broker: BrokerReports | None = None,
        clients: MqttClients | None = None,
    ) -> None:
        self.node = node
        self.edge = edge
        self.config: Callable[[], Config] = lambda: edge.config
        self.wire = wire
        self.name = name
        self.number = number
        self.reports = reports
        self.broker = broker
        self.clients = clients

    @property
    def worker(self) -> str:
        """The name of this worker for people: its machine and its number."""
        return f"{socket.gethostname()}:{self.number}"

    def require_broker(self) -> None:
        """Raises Refused(503) at once while the broker is away, because a read would wait for it for seconds."""
        if self.wire.peers().away:
            raise Refused(503, "the broker is away, try again")

    def action(self, call: ConsoleCall, action: str, app: str, target: str) -> None:
        """Logs an action of an operator, such as the end of a connection."""
        log.info("console action", ip=call.ip, action=action, app=app, target=target)


def decoded(values: Sequence[str]) -> tuple[str, ...]:
    """Removes the percent-encoding of segments of a path. Raises Refused(400) if a segment is not UTF-8."""
    try:
        return tuple(unquote_to_bytes(value.encode("latin-1")).decode() for value in values)
    except UnicodeDecodeError:
        raise Refused(400, "the path is not UTF-8") from None


def params_of(query: str) -> dict[str, str]:
    """Returns the parameters of a query. Raises Refused(400) if the query has more than `MAX_PARAMS` parameters."""
    try:
        return dict(parse_qsl(query, keep_blank_values=True, max_num_fields=MAX_PARAMS))
    except ValueError:
        raise Refused(400, f"a query has at most {MAX_PARAMS} parameters") from None


def json(value: Any) -> bytes:
    """Encodes an answer."""
    return msgspec.json.encode(value)
