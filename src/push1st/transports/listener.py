"""One listening address: the addresses that may connect, the rules for unsigned requests, and the handlers of requests."""

from typing import get_args

from push1st.config.model import Networks
from push1st.transports.answers import keeping
from push1st.transports.caller import Headers, distrust
from push1st.transports.context import EdgeContext
from push1st.transports.handlers import Handlers
from push1st.transports.places import Crowded

CROWDED_SECONDS = 2
"""time for each request on a connection that exceeds a bound, and between two such requests"""


class Listener:
    """One listening address.

    trusting: whether unsigned API requests may be accepted. whitelist: networks that may connect; empty: all.
    keep_alive: seconds that a connection may be idle.

    crowded: the bound that all connections of this listener exceed; they get answers, but cannot become WebSockets. `crowds`: a
    listener for each such bound, which takes connections over.

    The whitelist does not concern Unix sockets: the permissions of the socket and its folder restrict these.
    """

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
        self.whitelist = whitelist
        self.keep_alive = keep_alive
        self.kept = keeping(keep_alive)
        self.crowded = crowded
        self.crowds: dict[Crowded, Listener] = {}
        if crowded is None:
            self.crowds = {
                why: Listener(context, handlers, trusting, whitelist, CROWDED_SECONDS, why) for why in get_args(Crowded)
            }
        # Copies for connections, which read these for each request: one attribute is faster than two.
        self.arrived = context.arrived
        self.turn = context.turn
        self.serve = handlers.serve

    def distrust(self, peer: str, headers: Headers) -> str:
        """Returns the reason why a request must be signed; "" if it need not be signed. peer: the address of its connection."""
        if not self.trusting:
            return "it came to an address of server.listen"
        config = self.context.config
        return distrust(peer, headers, config.api.trust, config.server.proxies)
