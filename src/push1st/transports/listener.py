"""One listening address: which addresses may connect, which requests may be unsigned, and which handlers serve them."""

from typing import get_args

from push1st.config.model import Networks
from push1st.transports.answers import keeping
from push1st.transports.caller import Headers, distrust
from push1st.transports.context import EdgeContext
from push1st.transports.handlers import Handlers
from push1st.transports.places import Crowded

CROWDED_SECONDS = 2
"""for a request on a connection that is over the bound (`crowded`), and between two requests"""


class Listener:
    """One listening address. trusting: whether unsigned calls are considered at all; whitelist: empty means everybody.

    Whitelists are about addresses: access to a Unix socket is a matter of the permissions of the socket and its folder.
    crowded: why its connections get answers, but cannot become WebSockets. `crowds`: the listeners for such connections, by
    reason.
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
        # A connection uses these for each request: one attribute is faster than two.
        self.arrived = context.arrived
        self.turn = context.turn
        self.serve = handlers.serve

    def distrust(self, peer: str, headers: Headers) -> str:
        """Returns why a request must be signed; "" if it need not be. peer: the address of its connection."""
        if not self.trusting:
            return "it came to an address of server.listen"
        config = self.context.config
        return distrust(peer, headers, config.api.trust, config.server.proxies)
