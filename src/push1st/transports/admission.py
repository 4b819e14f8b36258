"""Admits clients to apps, for all transports. The module checks the app key, the client's address and origin, and the version
of the Pusher protocol.

The module rejects a client with the exception `Disconnect`, which has a close code of the Pusher protocol (section 6). Each
transport encodes this rejection for its clients, for example as a close frame.
"""

import math
import re
from functools import lru_cache
from typing import Literal
from urllib.parse import parse_qsl

from push1st.config.model import ProtocolConfig, SseConfig
from push1st.config.mqtt import Mqtt
from push1st.core.app import App
from push1st.core.session import Session
from push1st.errors import Disconnect
from push1st.transports.context import EdgeContext
from push1st.transports.places import Crowded

EXPIRED = "access token has expired"
AUTHORIZE_SECONDS = 10
"""seconds in which a client of an app with `authorized_only` must sign in, or join a channel that needs a signature"""


def admit(
    context: EdgeContext,
    protocol: ProtocolConfig | SseConfig | Mqtt,
    key: str,
    origin: str | None,
    ip: str,
    crowded: Crowded | None,
) -> App:
    """Returns the app with the key `key`. Raises Disconnect to reject the client.

    origin: the `Origin` header of the client; None if the client is not a browser.
    ip: the address of the client; "" on a Unix socket.
    crowded: the bound that the number of connections has reached; None if no bound is reached.
    """
    found = context.node.apps.by_key(key)
    if found is None:
        raise Disconnect(4001, f"App key {key[:64]} does not exist")
    if not found.enable:
        raise Disconnect(4003, "App is disabled")
    if protocol.whitelist and ip and not protocol.whitelist.contains(ip):
        raise Disconnect(4009, "Connection is unauthorized: this address is not allowed")
    if not origin_allowed(origin, found.origins):
        raise Disconnect(4009, "Connection is unauthorized: this origin is not allowed")
    if context.node.draining:
        raise Disconnect(4100, "Server is going away, reconnect")
    if crowded is not None:
        context.refuse_crowded(crowded, ip)
        raise Disconnect(4100, capacity_error(crowded))
    app, most = context.node.app(found), found.limits.connections
    if most and (len(app.tenant.sessions) >= most or context.node.controller.shared):
        context.ends.finish()  # lost connections count until their sessions end
    return app


def token_seconds(session: Session) -> float:
    """Returns the seconds until a client's access token expires; infinity if the client has no token that expires."""
    claims = session.claims
    if claims is None or claims.exp is None:
        return math.inf
    return claims.exp - session.node.clock.wall() / 1_000_000_000


def capacity_error(crowded: Crowded) -> str:
    """Returns the close reason for a client that is rejected because the bound `crowded` is reached."""
    if crowded == "address":
        return "Over capacity: this address has most of the connections that this server may have"
    return "Over capacity: this server has no file descriptors for more connections"


def check_version(query: str) -> None:
    """Raises Disconnect if a query has an unsupported protocol version (Pusher protocol, section 1). The default version is 7."""
    version = _version(query)
    if version in ("7", ""):
        return
    if not re.fullmatch(r"\d{1,9}", version, re.ASCII):
        raise Disconnect(4006, "Invalid version string format")
    if not 4 <= int(version) <= 7:
        raise Disconnect(4007, "Unsupported protocol version: 4 to 7 are supported")


@lru_cache(256)
def _version(query: str) -> str:
    """Returns the protocol version in a query. Results are cached, because clients with the same library send the same query."""
    return params(query).get("protocol", "")


def params(query: str, *, plus: Literal[" ", "+"] = " ") -> dict[str, str]:
    """Returns a query's parameters. plus: the character that a `+` stands for. Without `%` and `+`, nothing is decoded."""
    if "%" in query or "+" in query:
        return dict(parse_qsl(query if plus == " " else query.replace("+", "%2B")))
    return {name: value for name, _, value in (pair.partition("=") for pair in query.split("&"))}


def origin_allowed(origin: str | None, allowed: tuple[str, ...]) -> bool:
    """Returns whether a web page of this origin may connect. A client without an origin is not a browser, and may connect.

    allowed: origins, or hosts with or without a port, or `*`; an empty tuple allows every origin.
    """
    if not allowed or origin is None or "*" in allowed:
        return True
    origin = origin.lower().rstrip("/")
    host = origin.partition("://")[2]
    name = host.rpartition(":")[0] if re.search(r":\d+\Z", host) else host
    return any(entry.lower().rstrip("/") in (origin, host, name) for entry in allowed)
