"""Warnings about networks that are trusted, but contain large parts of the internet.

Requests from `api.trust` need no signature, and a proxy in `proxies` names the address of a client. Pure.
"""

import ipaddress
from collections.abc import Iterator

from push1st.config.addresses import Net, Networks, is_loopback
from push1st.config.model import Config
from push1st.config.tree import Value

_LOCAL = tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "127.0.0.0/8", "fc00::/7", "fe80::/10")))
"""large networks whose addresses do not exist in the internet"""
_PREFIX = {4: 8, 6: 24}
"""the longest prefix of a network that is too large to belong to an operator"""

EVERYBODY = "everybody in it may call the API without a signature: name only the networks of your backends and monitoring"
FORGED = "each client in it may claim any address, also one in api.trust: name only the addresses of your proxies"


def warnings(config: Config, root: Value) -> Iterator[str]:
    """Yields a line for each key that trusts a network which is too large. root: the values of the whole configuration."""
    api, proxies = config.api, config.server.proxies
    is_reached = bool(proxies) or any(one.scheme != "unix" and not is_loopback(one.host) for one in api.listen)
    if api.listen and is_reached and (not api.whitelist or _too_large(api.whitelist)):
        yield from _lines(api.trust, root.at("api", "trust"), EVERYBODY)
    yield from _lines(proxies, root.at("server", "proxies"), FORGED)
    yield from _lines(config.console.proxies, root.at("console", "proxies"), FORGED)


def _lines(networks: Networks, where: Value | None, text: str) -> Iterator[str]:
    if where is not None and (found := _too_large(networks)):
        yield f"{where}: found {', '.join(map(str, found))}; {text}"


def _too_large(networks: Networks) -> list[Net]:
    return [one for one in networks.nets if one.prefixlen <= _PREFIX[one.version] and not any(_is_in(one, net) for net in _LOCAL)]


def _is_in(one: Net, other: Net) -> bool:
    return one.prefixlen >= other.prefixlen and one.network_address in other
