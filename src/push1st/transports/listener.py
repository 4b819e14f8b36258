"""What every connection of a listener shares: who may connect, whom to trust, and where requests go."""

from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from push1st.config import Config, Networks, ProtocolConfig
from push1st.messages import Request, Response
from push1st.node import Node
from push1st.protocols import Codec
from push1st.transports.sweep import Sweep

Serve = Callable[[Request], Coroutine[Any, Any, Response]]


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
        payload = max((app.limits.payload for app in config.apps), default=0)
        batch = max((app.limits.batch for app in config.apps), default=0)
        self.most_body = max(config.server.max_payload, 2 * payload * max(batch, 1) + 65_536)
        """bytes a request body may have: a full batch, JSON-escaped"""
        self._most_event = 2 * payload + 4096

    def most_message(self, protocol: ProtocolConfig) -> int:
        """Bytes a WebSocket message may have: at least the largest event, JSON-escaped."""
        return max(protocol.max_payload, self._most_event)


class Listener:
    """One listening address. trusting: whether unsigned calls are considered at all; whitelist: empty means everybody.

    Whitelists are about addresses: who may open a Unix socket is said by its folder's and its own permissions.
    """

    def __init__(self, worker: Worker, trusting: bool, whitelist: Networks, keep_alive: int) -> None:
        self.worker = worker
        self.trusting = trusting
        self.whitelist = whitelist
        self.keep_alive = keep_alive
