"""What every connection of a listener shares: who may connect, whom to trust, and where requests go."""

import re
from collections.abc import Callable
from typing import Protocol, get_args
from urllib.parse import unquote

from push1st import logs
from push1st.config.model import Config, Networks, ProtocolConfig
from push1st.core.node import Node
from push1st.eager import MaybeAwaitable
from push1st.limits import Limits
from push1st.messages import Request, Response
from push1st.protocols import Codec
from push1st.transports.admission import Crowded
from push1st.transports.answers import keeping
from push1st.transports.caller import PROXY_HINT, shared_address
from push1st.transports.descriptors import Descriptors
from push1st.transports.places import Addresses
from push1st.transports.sweep import Sweep
from push1st.transports.turn import Turn
from push1st.transports.xhr import Fallbacks

Serve = Callable[[Request], MaybeAwaitable[Response]]
Line = tuple[str, str, str]
MAX_LINES = 1024
MAX_LINE = 256
"""request lines that are remembered, and bytes one of them may have"""
LINGER_SECONDS = 2
LINGER_BYTES = 16 << 20
"""for a client to stop sending, and to read the answer: closing the socket while unread bytes arrive would drop the answer"""
LEAST_BODY = 65_536
CROWDED_SECONDS = 2
"""for a request on a connection that is over the bound (`crowded`), and between two requests"""

_SLASHES = re.compile("//+")

FILES_HINT = "raise the limit of open files (ulimit -n, LimitNOFILE= of a unit), or add workers or machines"

log = logs.get("push1st.transports")


class Open(Protocol):
    """A connection, as the server sees it when it stops."""

    def leave(self, code: int, reason: str) -> None:
        """Ends the connection as soon as what is under way is done."""

    def abort(self) -> None:
        """Ends it now."""


class Worker:
    """What all listeners of a worker share. log_failure: logs the exception being handled, with its trace."""

    def __init__(
        self, node: Node, serve: Serve, config: Config, codecs: dict[str, Codec], sweep: Sweep, failed: Callable[[str], None]
    ):
        self.node = node
        self.serve = serve
        self.config = config
        self.codecs = codecs
        self.sweep = sweep
        self.failed = failed
        self.open: set[Open] = set()
        self.descriptors = Descriptors()
        self.addresses = Addresses(lambda: self.descriptors.possible)
        self._exhausted = logs.Seldom()
        self._full = {why: logs.Seldom() for why in get_args(Crowded)}
        self.heads: dict[bytes, int] = {}
        """the bytes of headers seen before that say nothing but a request's length, and that length"""
        self.fallbacks = Fallbacks(self)
        self._line = re.compile(rb"(GET|POST) (?!%b)(/[!-~]*+) HTTP/1\.1\r\n\Z" % self.fallbacks.start.encode())
        self._lines: dict[bytes, Line] = {}
        self.turn = Turn(node.clock.monotonic, self._write, failed)
        self.arrived = self.turn.arrived
        self.least_body = max(config.server.max_payload, LEAST_BODY)
        """bytes that the body of every request may have"""
        self._api_paths = tuple(dict.fromkeys((config.api.path, "/apps/")))

    def line(self, line: bytes) -> Line | None:
        """Method, path and query of a request line behind which headers may be known.

        None for those whose headers mean something to a fallback, and for what is better left to the parser.
        """
        known = self._lines.get(line)
        if known is None:
            found = self._line.match(line)
            if found is None:
                return None
            path, _, query = found[2].decode().partition("?")
            known = found[1].decode(), path, query
            if not query and len(line) <= MAX_LINE:
                if len(self._lines) >= MAX_LINES:
                    self._lines.clear()
                self._lines[line] = known
        return known

    def _write(self) -> None:
        """Writes this turn's deliveries. With a broker that confirms publishes later, the fan-out schedules its own writes."""
        if not self.node.shared:
            self.node.fanout.turn()

    def shared_address(self, ip: str) -> str:
        """Returns the name under which bounds per address count a client; "" for a proxy in `server.proxies`."""
        return "" if self.config.server.proxies.contains(ip) else shared_address(ip)

    def refuse_crowded(self, why: Crowded, ip: str = "") -> None:
        """Counts a client that is rejected for lack of room. Logs the first of each kind, then at most one line a minute."""
        self.node.metrics.cut_offs["crowded"] += 1
        times = self._full[why].times(self.node.clock.monotonic())
        if times and why == "server":
            log.warning(
                "no file descriptors for more clients",
                connections_possible=self.descriptors.possible,
                refused=times,
                hint=FILES_HINT,
            )
        elif times:
            log.warning(
                "too many connections of one address", address=ip, most=self.addresses.most, refused=times, hint=PROXY_HINT
            )

    def check_descriptors(self) -> None:
        """Logs that no descriptor is free, at most once a minute. The kernel then rejects connections, and the server gets none.

        This happens if the limit is lowered below the number in use, or if the whole machine has no more.
        """
        if self.descriptors.exhausted and self._exhausted.times(self.node.clock.monotonic()):
            log.error("no file descriptors are left", hint=FILES_HINT)

    def most_message(self, protocol: ProtocolConfig, limits: Limits) -> int:
        """Bytes a WebSocket message may have: at least the largest event of the client's app, JSON-escaped."""
        return max(protocol.max_payload, 2 * limits.payload + 4096)

    def most_body(self, path: str) -> int:
        """Returns the bytes that a request's body may have: at least a full batch, JSON-escaped, of the app in the path."""
        path = _SLASHES.sub("/", path)
        app = None
        for base in self._api_paths:
            if app is None and path.startswith(base):
                app = self.node.apps.by_id(unquote(path[len(base) :].partition("/")[0]))
        if app is None and (fallback := self.fallbacks.path.match(path)):
            app = self.node.apps.by_key(fallback[1])
        if app is None or not app.enable:
            return self.least_body
        return max(self.least_body, 2 * app.limits.payload * app.limits.batch + LEAST_BODY)


class Listener:
    """One listening address. trusting: whether unsigned calls are considered at all; whitelist: empty means everybody.

    Whitelists are about addresses: who may open a Unix socket is said by its folder's and its own permissions.
    crowded: why its connections get answers, but cannot become WebSockets. `crowds`: the listeners for such connections, by
    reason.
    """

    def __init__(
        self, worker: Worker, trusting: bool, whitelist: Networks, keep_alive: int, crowded: Crowded | None = None
    ) -> None:
        self.worker = worker
        self.trusting = trusting
        self.whitelist = whitelist
        self.keep_alive = keep_alive
        self.kept = keeping(keep_alive)
        self.crowded = crowded
        self.crowds: dict[Crowded, Listener] = {}
        if crowded is None:
            self.crowds = {why: Listener(worker, trusting, whitelist, CROWDED_SECONDS, why) for why in get_args(Crowded)}
