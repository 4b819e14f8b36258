"""The console: web pages for the operators of a server, with a JSON API of their own (operations, section A).

`Console` builds it for a worker, if `console.password` is set; otherwise nothing of this package is imported. Each part of the
console is a class that takes a `ConsoleContext` and has `endpoints`.
"""

from collections.abc import Callable

from push1st.config.addresses import Networks
from push1st.console.endpoints import ConsoleContext, ConsolePart
from push1st.console.guard import Guard
from push1st.console.live import Live
from push1st.console.login import Login
from push1st.console.passwords import stored
from push1st.console.sessions import OperatorSessions
from push1st.console.site import KEEP_ALIVE_SECONDS, ConsoleDoor, ConsoleHandlers, ConsoleListener, Site
from push1st.console.version import Version
from push1st.console.wire import ConsoleWire
from push1st.core.node import Node
from push1st.transports.context import EdgeContext

PARTS: tuple[Callable[[ConsoleContext], ConsolePart], ...] = (Version,)


class Console:
    """The console of a worker. Parameters: see `ConsoleContext`."""

    def __init__(self, node: Node, edge: EdgeContext, name: str, number: int) -> None:
        config = edge.config.console
        self._origin = config.origin
        self._edge = edge
        context = ConsoleContext(node, edge, ConsoleWire(node, name), name, number)
        parts = [part(context) for part in PARTS]
        password = stored(config.password)
        login = Login(password, node.clock.monotonic)
        endpoints = [endpoint for part in parts for endpoint in part.endpoints]
        self._door = ConsoleDoor(context, login, OperatorSessions(password.key), Live(context, parts), endpoints)

    def listener(self, has_tls: bool) -> ConsoleListener:
        """Returns the settings for the connections to a listening address. `has_tls`: whether the address uses TLS."""
        site = Site(self._door, Guard(self._origin, has_tls))
        return ConsoleListener(self._edge, ConsoleHandlers(self._edge, site), False, Networks(), KEEP_ALIVE_SECONDS)
