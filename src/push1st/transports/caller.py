"""Finds the address of a client that connects through proxies, and decides whether an unsigned API request is accepted.

The Push1st API (section 6) specifies the rules for unsigned requests. This module uses no socket.

peer: the address of the client or proxy at the other end of a connection; "" on a Unix socket.
headers: the headers of a request, with names in lower case.
"""

import ipaddress
import re
from collections.abc import Callable, Mapping
from functools import lru_cache

from push1st.config.addresses import Networks
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
"""names of the headers that only proxies add to requests"""
AGENT = b"user-agent"
"""the header with the user agent of a client, which only the console shows"""
_OWN_NAME = re.compile(rb"(?:(?:[a-z0-9-]+\.)*localhost|[0-9.]+|\[[0-9a-f:.]+\])?(?::[0-9]+)?\Z", re.IGNORECASE)
_NAME = re.compile(rb"([a-z0-9_.-]++)(?::[0-9]+)?\Z")
_PRIVATE = (b".internal", b".local", b".home.arpa", b".svc")
_PAIR = re.compile(r'[ \t]*+([A-Za-z0-9-]++)=("(?:[^"\\]|\\.)*+"|[^\s;,"]*+)[ \t]*+(;|,|\Z)')
_PORT = re.compile(r"\[([0-9A-Fa-f:.%\w]++)\](?::\w++)?\Z|([0-9.]++):\w++\Z")


def is_own_name(host: bytes) -> bool:
    """Returns whether a Host header contains an IP address or `localhost`, and not a name that DNS resolves.

    An attacker can make a domain resolve to 127.0.0.1 (DNS rebinding). The browser then treats this server as the
    own origin of a web page of this domain. Requests of this page may have no `Origin` header, but their Host header contains the
    domain.
    """
    return _OWN_NAME.match(host) is not None


def is_private_name(host: bytes) -> bool:
    """Returns whether a Host header contains a name that cannot exist in public DNS, so that no public web page has this name."""
    found = _NAME.match(host.lower())
    name = b"." if found is None else found[1].removesuffix(b".")
    return b"." not in name or name.endswith(_PRIVATE)


def distrust(peer: str, headers: Headers, trust: Networks, proxies: Networks) -> str:
    """Returns the reason why a request must be signed; "" if the request may be unsigned.

    trust: the networks whose clients may send unsigned requests, if these requests pass the other checks of this function.
    """
    if b"origin" in headers:
        return "it has an Origin header, as web pages send it"
    ip = peer
    if marks := FORWARDING.intersection(headers):
        # A proxy has forwarded the request, so the address of the client is not the address of the connection.
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
    # A web page cannot send a request to a Unix socket, so only requests with an IP address need this check of their Host.
    if ip and not is_own_name(host) and (_is_loopback(ip) or not is_private_name(host)):
        return f"its Host {host[:64].decode('latin-1')!r} may be a web page's: call by address, or as localhost"
    return ""


def trusted_ip(peer: str, headers: Headers, proxies: Networks) -> str | None:
    """Returns the client's address: the peer's address, or the address in a forwarding header from a proxy in `proxies`.

    Returns None if a forwarding header is invalid, or comes from a peer that is not in `proxies`.

    A proxy sets one of the headers `X-Forwarded-For` and `Forwarded`, and may forward the other header unchanged from its client.
    `X-Forwarded-For` takes precedence over `Forwarded`.
    """
    for name, read in _READERS.items():
        if name in headers:
            return _last_client(peer, headers[name], read, proxies) if proxies and proxies.contains(peer) else None
    return peer


def _last_client(peer: str, value: bytes, read: Callable[[str], list[str]], proxies: Networks) -> str | None:
    """Reads a forwarding header from its end, and returns the first address that is not in `proxies`.

    Returns None if a value on the way to this address is not an address.
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
    """Returns the client addresses in a `Forwarded` header, one for each proxy (RFC 7239 §4).

    The list contains "" for a proxy that has added no client address. The list ends with "" if the header has a syntax error.
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
    """Returns the address in a value of a forwarding header, without port and brackets; "" if the value is not an address.

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
    """Returns the client's address for logs, whitelists and bounds; "unknown" if only the address of a proxy is known."""
    ip = trusted_ip(peer, headers, proxies)
    if ip is not None:
        return ip
    # The forwarding header is not trusted, so only the peer's address is known. A Unix socket or a configured proxy can serve
    # many clients, so the address of such a peer identifies no client.
    return "unknown" if not peer or proxies.contains(peer) else peer


def client_of(headers: Headers, query: str) -> ClientRequest:
    """Returns the parts of a client's first request that the server sends to the app's backend: the query and some headers."""
    origin, cookie, authorization = headers.get(b"origin"), headers.get(b"cookie"), headers.get(b"authorization")
    agent = headers.get(AGENT)
    return ClientRequest(
        query,
        None if origin is None else origin.decode("latin-1"),
        None if cookie is None else cookie.decode("latin-1"),
        None if authorization is None else authorization.decode("latin-1"),
        None if agent is None else agent.decode("latin-1"),
    )


def shared_address(ip: str) -> str:
    """Returns the IPv4 address, or the /64 network of the IPv6 address, for which the server counts a client's connections.

    A client with IPv6 can use every address of its /64 network. Returns "" for loopback addresses, Unix sockets and unknown
    addresses, whose connections have no bound.
    """
    return _shared_address(ip) if len(ip) <= 64 else ""  # a text of more than 64 characters is not an address


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
