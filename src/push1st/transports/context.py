"""The context of a worker's connections: the node, the configuration and the bounds that all protocols share.

Listeners, handlers and connections get the context as an argument. This module imports no listener, handler or connection.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol, get_args

from push1st import logs
from push1st.config.model import Config, ProtocolConfig
from push1st.core.node import Node
from push1st.limits import Limits
from push1st.protocols import Codec
from push1st.transports.caller import PROXY_HINT, shared_address
from push1st.transports.descriptors import Descriptors
from push1st.transports.ends import Ends
from push1st.transports.places import Addresses, Crowded
from push1st.transports.sweep import Sweep
from push1st.transports.turn import Turn

LINGER_SECONDS = 2
LINGER_BYTES = 16 << 20
"""maximum number of bytes that this worker reads and discards after a rejection; if the worker closed a socket with unread input,
the client could lose the answer
"""
VISITED = 2048
"""maximum number of connections whose unsent bytes are counted in one turn of the event loop"""
FILES_HINT = "raise the limit of open files (ulimit -n, LimitNOFILE= of a unit), or add workers or machines"

log = logs.get("push1st.transports")


class Open(Protocol):
    """A connection that this worker ends when the worker stops."""

    @property
    def unsent(self) -> int:
        """The number of bytes that wait until the client reads."""

    def leave(self, code: int, reason: str) -> None:
        """Ends the connection as soon as the requests in progress are answered."""

    def abort(self) -> None:
        """Ends the connection at once."""


class EdgeContext:
    """The node, the configuration, the codecs, the timers and the counts that all connections of a worker share.

    node: the node, which is connected to its broker.

    codecs: the codec of each protocol, by the protocol's name.
    failed: a function that logs the current exception with its trace.
    open: the open connections of the worker.
    """

    def __init__(
        self, node: Node, config: Config, codecs: Mapping[str, Codec], sweep: Sweep, failed: Callable[[str], None]
    ) -> None:
        self.node = node
        self.config = config
        self.codecs = codecs
        self.sweep = sweep
        self.failed = failed
        self.open: set[Open] = set()
        self.descriptors = Descriptors()
        self.addresses = Addresses(lambda: self.descriptors.possible)
        # If workers share a broker, the fan-out schedules the writes itself.
        self.turn = Turn(node.clock.monotonic, _nothing if node.controller.shared else node.fanout.turn, failed)
        self.ends = Ends(node.clock.monotonic, failed)
        node.metrics.unsent = self.unsent
        self.arrived = self.turn.arrived
        self._exhausted = logs.Seldom()
        self._full = {why: logs.Seldom() for why in get_args(Crowded)}

    async def unsent(self) -> tuple[int, int]:
        """Returns the number of unsent bytes of all connections, and the number of connections with unsent bytes.

        A turn of the event loop visits at most `VISITED` connections.
        """
        size = count = 0
        connections = list(self.open)
        for at in range(0, len(connections), VISITED):
            sizes = [one.unsent for one in connections[at : at + VISITED]]
            size += sum(sizes)
            count += len(sizes) - sizes.count(0)
            await asyncio.sleep(0)
        return size, count

    def shared_address(self, ip: str) -> str:
        """Returns the address or network whose bound applies to clients at `ip`; "" if none applies, as in `server.proxies`."""
        return "" if self.config.server.proxies.contains(ip) else shared_address(ip)

    def refuse_crowded(self, why: Crowded, ip: str = "") -> None:
        """Counts a client that is rejected because the bound `why` is reached.

        Logs the first rejection for each bound at once, and then at most one line a minute for each bound.
        """
        self.ends.finish()  # lost connections count until their sessions end
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
        """Logs, at most once a minute, that no file descriptor is free. Without a free descriptor the kernel rejects new
        connections, and does not notify the process.

        Descriptors run out if the limit is lowered below the number in use, or if the whole machine has no free descriptor.
        """
        if self.descriptors.exhausted and self._exhausted.times(self.node.clock.monotonic()):
            log.error("no file descriptors are left", hint=FILES_HINT)

    def max_message(self, protocol: ProtocolConfig, limits: Limits) -> int:
        """Returns the maximum bytes of a message. Escapes make JSON longer, so it is over twice the app's bound for an event."""
        return max(protocol.max_payload, 2 * limits.payload + 4096)


def _nothing() -> None:
    pass
