"""What every connection of a listener shares: who may connect, whom to trust, and where requests go."""

import re
from collections.abc import Callable
from typing import Protocol

from push1st import logs
from push1st.config import Config, Networks, ProtocolConfig
from push1st.eager import Soon
from push1st.messages import Request, Response
from push1st.node import Node
from push1st.protocols import Codec
from push1st.transports.descriptors import Descriptors
from push1st.transports.sweep import Sweep
from push1st.transports.turn import Turn
from push1st.transports.xhr import Fallbacks

Serve = Callable[[Request], Soon[Response]]
Line = tuple[str, str, str]
MOST_LINES = 1024
MOST_LINE = 256
"""request lines that are remembered, and bytes one of them may have"""
LINGER_SECONDS = 2
LINGER_BYTES = 16 << 20
"""for a client to stop sending what is not read, and read why: a socket closed before that throws away the answer"""
CROWDED_SECONDS = 2
"""for a request on a connection that is only answered, and between two of them"""

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
        self._full = logs.Seldom()
        self.heads: dict[bytes, int] = {}
        """the bytes of headers seen before that say nothing but a request's length, and that length"""
        self.fallbacks = Fallbacks(self)
        self._line = re.compile(rb"(GET|POST) (?!%b)(/[!-~]*+) HTTP/1\.1\r\n\Z" % self.fallbacks.start.encode())
        self._lines: dict[bytes, Line] = {}
        self.turn = Turn(node.clock.monotonic, self._write, failed)
        self.arrived = self.turn.arrived
        payload = max((app.limits.payload for app in config.apps), default=0)
        batch = max((app.limits.batch for app in config.apps), default=0)
        self.most_body = max(config.server.max_payload, 2 * payload * max(batch, 1) + 65_536)
        """bytes a request body may have: a full batch, JSON-escaped"""
        self._most_event = 2 * payload + 4096

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
            if not query and len(line) <= MOST_LINE:
                if len(self._lines) >= MOST_LINES:
                    self._lines.clear()
                self._lines[line] = known
        return known

    def _write(self) -> None:
        """Writes this turn's deliveries. With a broker that confirms later, they have a turn of their own."""
        if not self.node.shared:
            self.node.fanout.turn()

    def refuse_crowded(self) -> None:
        """Counts a client that there was no file descriptor for; logs the first one, then at most one line a minute."""
        self.node.metrics.cut_offs["crowded"] += 1
        if times := self._full.times(self.node.clock.monotonic()):
            log.warning(
                "no file descriptors for more clients",
                connections_possible=self.descriptors.possible,
                refused=times,
                hint="raise the limit of open files (ulimit -n, LimitNOFILE= of a unit), or add workers or machines",
            )

    def most_message(self, protocol: ProtocolConfig) -> int:
        """Bytes a WebSocket message may have: at least the largest event, JSON-escaped."""
        return max(protocol.max_payload, self._most_event)


class Listener:
    """One listening address. trusting: whether unsigned calls are considered at all; whitelist: empty means everybody.

    Whitelists are about addresses: who may open a Unix socket is said by its folder's and its own permissions.
    crowded: what it is for clients that there is no file descriptor for: they are answered, and become no WebSockets.
    """

    def __init__(self, worker: Worker, trusting: bool, whitelist: Networks, keep_alive: int, is_crowded: bool = False) -> None:
        self.worker = worker
        self.trusting = trusting
        self.whitelist = whitelist
        self.keep_alive = keep_alive
        self.is_crowded = is_crowded
        self.crowded = self if is_crowded else Listener(worker, trusting, whitelist, CROWDED_SECONDS, True)
