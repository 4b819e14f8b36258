"""The rule that concerns the listeners of all sections: each address belongs to one of them.

The kernel would accept two sockets at one address, and divide the connections between them.
"""

from collections.abc import Iterator
from itertools import combinations

from push1st.config.addresses import Listen
from push1st.config.model import Config
from push1st.config.tree import Value

_LOCALHOST = frozenset(("127.0.0.1", "::1", "0.0.0.0", "::"))  # noqa: S104 - compared only
"""the addresses at which a client may reach a listener of localhost"""


def clashes(config: Config, root: Value) -> Iterator[str]:
    """Yields a line for each address that another listener has too. root: the values of the whole configuration."""
    for first, second in combinations(_addresses(config), 2):
        if (first[0] != second[0] or first[1].scheme != second[1].scheme) and _overlap(first[1], second[1]):
            place = _place(root, second[0])
            if place is None:
                first, second, place = second, first, _place(root, first[0]) or root
            yield f"{place}: found {second[1]}, allowed: an address that {first[0]} ({first[1]}) does not have"


def _addresses(config: Config) -> Iterator[tuple[str, Listen]]:
    """Yields all addresses, each with the configuration key that contains it."""
    server = config.server
    for path, addresses in (
        ("server.listen", server.listen),
        ("api.listen", config.api.listen),
        ("server.mqtt.listen", server.mqtt_listen),
        ("metrics.listen", config.metrics.listen),
        ("console.listen", config.console.listens),
    ):
        for address in addresses:
            yield path, address


def _place(root: Value, path: str) -> Value | None:
    """Returns the value of a key, or the value of the section that leaves the key out."""
    keys = path.split(".")
    return next((found for end in (len(keys), -1) if (found := root.at(*keys[:end])) is not None), None)


def _overlap(one: Listen, other: Listen) -> bool:
    """Returns whether a client may reach both listeners at one address. Names other than localhost are not resolved."""
    if (one.scheme == "unix") != (other.scheme == "unix") or one.port != other.port:
        return False
    if one.scheme == "unix":
        return one.path == other.path
    if not one.port:  # any free port
        return False
    hosts = {one.host, other.host}
    if "" in hosts or len(hosts) == 1:
        return True
    if "localhost" in hosts:
        return bool(hosts & _LOCALHOST)
    is_ipv6 = [":" in host for host in hosts]
    return ("::" in hosts and all(is_ipv6)) or ("0.0.0.0" in hosts and not any(is_ipv6))  # noqa: S104 - compared only
