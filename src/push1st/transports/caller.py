"""Finds the address of a client that connects through proxies, and decides whether an unsigned API request is accepted.

The rules for unsigned requests are those of the Push1st API, section 6.

This module has addresses and headers as arguments, and no socket. peer: the address a connection comes from, "" on a Unix socket.
headers: names in lower case.
"""

import ipaddress
import re
from collections.abc import Callable, Mapping
from functools import lru_cache

from push1st.config.model import Networks
from push1st.messages import ClientRequest

PROXY_HINT = "if the address is your proxy, add it to server.proxies, so that its clients are counted one by one"
Headers = Mapping[bytes, bytes]
FORWARDING = frozenset(
    (
        b"cdn-loop",
        b"cf-connecting-ip",
        b"fastly-client-ip",
        b"fly-client-ip",
        b"forwarded",
        b"true-client-ip",
        b"via",
        b"x-azure-clientip",
        b"x-client-ip",
        b"x-cluster-client-ip",
        b"x-envoy-external-address",
        b"x-forwarded",
        b"x-forwarded-by",
        b"x-forwarded-client-cert",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-prefix",
        b"x-forwarded-proto",
        b"x-forwarded-scheme",
        b"x-forwarded-server",
        b"x-forwarded-ssl",
        b"x-original-forwarded-for",
        b"x-original-host",
        b"x-real-ip",
    )
)
"""headers that only proxies add"""
_OWN_NAME = re.compile(rb"(?:(?:[a-z0-9-]+\.)*localhost|[0-9.]+|\[[0-9a-f:.]+\])?(?::[0-9]+)?\Z", re.IGNORECASE)
_NAME = re.compile(rb"([a-z0-9_.-]++)(?::[0-9]+)?\Z")
_PRIVATE = (b".internal", b".local", b".home.arpa", b".svc")
_PAIR = re.compile(r'[ \t]*+([A-Za-z0-9-]++)=("(?:[^"\\]|\\.)*+"|[^\s;,"]*+)[ \t]*+(;|,|\Z)')
_PORT = re.compile(r"\[([0-9A-Fa-f:.%\w]++)\](?::\w++)?\Z|([0-9.]++):\w++\Z")


def is_own_name(host: bytes) -> bool:
    """Returns whether a Host header is an IP address or `localhost`, and not a name that DNS resolves.

    An attacker can let a domain resolve to 127.0.0.1 (DNS rebinding). Requests from a web page of that domain have no `Origin`
    header, but they have the domain in the Host header.
    """
    return _OWN_NAME.match(host) is not None


def is_private_name(host: bytes) -> bool:
    """Returns whether a Host header has a name that cannot exist in public DNS. A web page of the internet cannot have such a
    host.
    """
    found = _NAME.match(host.lower())
    name = b"." if found is None else found[1].removesuffix(b".")
    return b"." not in name or name.endswith(_PRIVATE)


def distrust(peer: str, headers: Headers, trust: Networks, proxies: Networks) -> str:
    """Returns the reason why a request must be signed, on a listener that accepts unsigned requests; "" if it need not be signed.

    The rules are the same for every trusted network.
    """
    if b"origin" in headers:
        return "it has an Origin header, as web pages send it"
    ip = peer
    if marks := FORWARDING.intersection(headers):
        # The client of a forwarded request has another address than the connection.
        if not proxies.contains(peer):
            return f"a proxy that is not in server.proxies forwarded it, as its header {min(marks).decode()} shows"
        found = {_last_client(peer, headers[name], read, proxies) for name, read in _READERS.items() if name in headers}
        if len(found) != 1 or None in found:
            return f"the proxy does not name one client in {min(marks).decode()}"
        ip = str(found.pop())
        if _is_loopback(ip):
            return "the proxy names a loopback address as the client"
    if not trust.contains(ip):
        return f"{ip or 'a Unix socket'} is not in api.trust"
    host = headers.get(b"host", b"")
    # No web page can reach a Unix socket.
    if ip and not is_own_name(host) and (_is_loopback(ip) or not is_private_name(host)):
        return f"its Host {host[:64].decode('latin-1')!r} may be a web page's: call by address, or as localhost"
    return ""


def trusted_ip(peer: str, headers: Headers, proxies: Networks) -> str | None:
    """Returns the client's address: that of the peer, or the one in the header of a configured proxy.

    Returns None if a peer that is not a configured proxy sent such a header.

    A proxy sets either `X-Forwarded-For` or `Forwarded`, and may forward the other header unchanged from its client.
    `X-Forwarded-For` takes precedence.
    """
    for name, read in _READERS.items():
        if name in headers:
            return _last_client(peer, headers[name], read, proxies) if proxies and proxies.contains(peer) else None
    return peer


def _last_client(peer: str, value: bytes, read: Callable[[str], list[str]], proxies: Networks) -> str | None:
    """Reads a forwarding header from its end; returns the first address that is not in `proxies`.

    Returns None if a value that comes before it from the end is not an address.
    """
    ip = peer
    for hop in reversed(read(value.decode("latin-1"))):
        ip = address(hop)
        if not ip:
            return None
        if not proxies.contains(ip):
            break
    return ip


def _listed(value: str) -> list[str]:
    """Returns the addresses in an `X-Forwarded-For` header, one for each proxy."""
    return [hop.strip() for hop in value.split(",")]


def _forwarded(value: str) -> list[str]:
    """Returns the client addresses in a `Forwarded` header, one for each proxy (RFC 7239 §4). An element without a client
    address is "". A header with a syntax error ends with such an element.
    """
    hops, at, hop = [], 0, ""
    while found := _PAIR.match(value, at):
        name, text, end = found.groups()
        if name.lower() == "for":
            hop = re.sub(r"\\(.)", r"\1", text[1:-1]) if text.startswith('"') else text
        at = found.end()
        if end != ";":
            hops.append(hop)
            hop = ""
        if not end:
            return hops
    return [*hops, ""]


_READERS = {b"x-forwarded-for": _listed, b"forwarded": _forwarded}


@lru_cache(1024)
def address(hop: str) -> str:
    """Returns an address of a forwarding header without port and brackets; "" if the text is not an address.

    Proxies write 1.2.3.4, 1.2.3.4:567, 2001:db8::1, [2001:db8::1] or [2001:db8::1]:567, with or without quotes (RFC 7239 §6).
    """
    if len(hop) > 64:
        return ""
    if len(hop) > 1 and hop[0] == hop[-1] == '"':
        hop = hop[1:-1]
    if found := _PORT.match(hop):
        hop = found[1] or found[2]
    try:
        return str(ipaddress.ip_address(hop))
    except ValueError:
        return ""


def client_ip(peer: str, headers: Headers, proxies: Networks) -> str:
    """Returns the client's address for logs, whitelists and bounds, also if a forwarding header is not trusted."""
    ip = trusted_ip(peer, headers, proxies)
    if ip is not None:
        return ip
    # The header is not trusted, so the peer counts as the client. The peer's address cannot stand for one client if the peer is
    # a Unix socket or a configured proxy.
    return "unknown" if not peer or proxies.contains(peer) else peer


def client_of(headers: Headers, query: str) -> ClientRequest:
    """Returns what a client brings with its first request. query: the path's query."""
    origin, cookie, authorization = headers.get(b"origin"), headers.get(b"cookie"), headers.get(b"authorization")
    return ClientRequest(
        query,
        None if origin is None else origin.decode("latin-1"),
        None if cookie is None else cookie.decode("latin-1"),
        None if authorization is None else authorization.decode("latin-1"),
    )


def shared_address(ip: str) -> str:
    """Returns the name under which bounds per address count a client: its IPv4 address, or the /64 network of its IPv6 address.

    An IPv6 client can use every address of its /64 network. Returns "" for loopback addresses, Unix sockets and unknown
    addresses, which have no bound.
    """
    return _shared_address(ip) if len(ip) <= 64 else ""  # a longer text from a forwarding header is not an address


@lru_cache(4096)
def _shared_address(ip: str) -> str:
    try:
        address = ipaddress.ip_address(ip.partition("%")[0])
    except ValueError:
        return ""
    address = getattr(address, "ipv4_mapped", None) or address
    if address.is_loopback:
        return ""
    if address.version == 4:
        return str(address)
    return str(ipaddress.IPv6Network((int(address), 64), strict=False))


def _is_loopback(ip: str) -> bool:
    try:
        address = ipaddress.ip_address(ip.partition("%")[0])
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
