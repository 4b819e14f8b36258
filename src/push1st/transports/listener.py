"""Defines the settings of a listening address: a whitelist of clients, rules for unsigned requests, and the handlers."""

from typing import get_args

from push1st.config.addresses import Networks
from push1st.transports.answers import keeping
from push1st.transports.caller import Headers, distrust
from push1st.transports.context import EdgeContext
from push1st.transports.handlers import Handlers
from push1st.transports.places import Crowded

CROWDED_SECONDS = 2
"""maximum seconds of a request, and of a pause between two requests, on a connection that exceeds a bound (`Crowded`)"""


EVERYWHERE = Networks.parse(("0.0.0.0/0", "::/0", "unix"))


class Listener:
    """The settings for the connections to an address on which the server listens.

    trusting: whether this listener may accept unsigned API requests. Connections to a trusting listener are not bounded for each
        address, and may use the file descriptors that are reserved for the API.
    keeps_headers: whether requests contain their headers.
    whitelist: the networks that may connect; an empty whitelist allows all networks, and Unix sockets are always allowed.
    keep_alive: the seconds that a connection may be idle.
    crowded: the bound that all connections of this listener exceed; None if the connections exceed no bound.
    crowds: for each bound, another `Listener` for connections that exceed this bound. It rejects WebSocket clients.

    The permissions of a Unix socket and of its folder restrict the processes that may connect to this socket.
    """

    NEEDS_HEADERS = False
    headers = b""
    """encoded headers of each answer that rejects a request before a handler has it"""

    def __init__(
        self,
        context: EdgeContext,
        handlers: Handlers,
        trusting: bool,
        whitelist: Networks,
        keep_alive: int,
        crowded: Crowded | None = None,
    ) -> None:
        self.context = context
        self.handlers = handlers
        self.trusting = trusting
        self.keeps_headers = trusting or self.NEEDS_HEADERS
        self.whitelist = whitelist
        self.keep_alive = keep_alive
        self.kept = keeping(keep_alive)
        self.crowded = crowded
        self.crowds: dict[Crowded, Listener] = {}
        if crowded is None:
            self.crowds = {
                why: type(self)(context, handlers, trusting, whitelist, CROWDED_SECONDS, why) for why in get_args(Crowded)
            }
        # Connections read these attributes for each request. These copies save one attribute access for each read.
        self.arrived = context.arrived
        self.turn = context.turn
        self.serve = handlers.serve
        self.answered = handlers.answered
        self.requests = context.node.metrics.requests

    @property
    def proxies(self) -> Networks:
        """The addresses of the proxies whose forwarding headers name the client."""
        return self.context.config.server.proxies

    def distrust(self, peer: str, headers: Headers) -> str:
        """Returns the reason why a request from the address `peer` must be signed; "" if the request may be unsigned."""
        if not self.trusting:
            return "it came to an address of server.listen"
        config = self.context.config
        return distrust(peer, headers, config.api.trust, config.server.proxies)


class MetricsListener(Listener):
    """The settings for the connections to an address of `metrics.listen`.

    Every network may send unsigned requests. The rules for the headers of unsigned requests apply, so that web pages and the
    clients of a proxy cannot read the metrics. Every network may connect, so the bounds of clients apply to the connections.
    """

    NEEDS_HEADERS = True

    def distrust(self, peer: str, headers: Headers) -> str:
        return distrust(peer, headers, EVERYWHERE, self.context.config.server.proxies)
