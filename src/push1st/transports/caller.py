"""Who sends a request: the client's address behind proxies, and whether it may go unsigned (Push1st API, section 6).

It knows addresses and headers, and nothing of sockets. peer: the address a connection comes from, "" on a Unix socket.
headers: names in lower case.
"""

import ipaddress
import re
from collections.abc import Mapping
from functools import lru_cache

from push1st.config import Networks

Headers = Mapping[bytes, bytes]
_OWN_NAME = re.compile(rb"(?:(?:[a-z0-9-]+\.)*localhost|[0-9.]+|\[[0-9a-f:.]+\])?(?::[0-9]+)?\Z", re.IGNORECASE)


def is_own_name(host: bytes) -> bool:
    """Whether a Host header names this machine as such: an address or `localhost`.

    A page whose name was made to point at 127.0.0.1 (DNS rebinding) calls as its own origin, without `Origin`; but it
    cannot hide its name.
    """
    return _OWN_NAME.match(host) is not None


def is_trusted(peer: str, headers: Headers, trust: Networks, proxies: Networks) -> bool:
    """Whether a request may go unsigned, on a listener where any may."""
    if b"origin" in headers:
        return False
    if b"x-forwarded-for" not in headers and b"forwarded" not in headers:
        return trust.contains(peer) and (is_own_name(headers.get(b"host", b"")) or not _is_loopback(peer))
    # What a proxy forwards came from elsewhere, whatever it says of itself.
    ip = client_ip(peer, headers, proxies)
    return bool(ip) and not _is_loopback(ip or "") and trust.contains(ip or "")


def client_ip(peer: str, headers: Headers, proxies: Networks) -> str | None:
    """The client's address: the peer's, or what a configured proxy says; None when an unknown proxy says something."""
    forwarded = headers.get(b"x-forwarded-for")
    if forwarded is None and b"forwarded" not in headers:
        return peer
    if not proxies or not proxies.contains(peer) or forwarded is None:
        return None
    ip = peer
    for hop in reversed(forwarded.decode("latin-1").split(",")):
        ip = hop.strip()
        if not ip:
            return None
        if not proxies.contains(ip):
            break
    return ip


def visitor_ip(peer: str, headers: Headers, proxies: Networks) -> str:
    """The same, of who is no caller of the API."""
    ip = client_ip(peer, headers, proxies)
    if ip is not None:
        return ip
    # Somebody forwards what is not believed: who forwards is known by its own address, unless it has none or is a proxy.
    return "unknown" if not peer or proxies.contains(peer) else peer


def shared_address(ip: str) -> str:
    """The name under which a bound per address counts a client: its IPv4 address, or the /64 network of its IPv6 address.

    An IPv6 client has a whole network to choose from. "" stands for those without such a bound: loopback, Unix sockets,
    and clients whose address is not known.
    """
    return _shared_address(ip) if len(ip) <= 64 else ""  # no address is that long, but a forwarded header may be


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
