"""Addresses to listen on, and sets of the addresses of clients. The module parses texts, and opens no sockets.

A parser raises a ValueError that describes the allowed values.
"""

import ipaddress
import re
from collections.abc import Iterable
from posixpath import join, normpath
from typing import Literal

import msgspec

Net = ipaddress.IPv4Network | ipaddress.IPv6Network

_LISTEN = "tcp://HOST:PORT (HOST may be *), or unix://PATH"
_LISTEN_TLS = "tcp://HOST:PORT or tls://HOST:PORT (HOST may be *), or unix://PATH"
_TCP = re.compile(r"(tcp|tls)://(?:\[([^\]]+)\]|([A-Za-z0-9_.-]*|\*)):([0-9]{1,5})/?\Z")
_UNIX = re.compile(r"unix://[^\x00-\x1f\x7f-\x9f\ud800-\udfff]+\Z")
_DIGITS_ONLY = re.compile(r"[0-9.]+\Z")
_SOCKET_BYTES = 107  # `sun_path` has 108 bytes, and the last byte is zero: unix(7)


class Listen(msgspec.Struct, frozen=True):
    """An address to listen on. `str` returns the text that `parse` accepts.

    scheme: `tls` is a TCP address whose connections always use TLS.
    host: the host of a TCP address; "" stands for all interfaces.
    port: the port of a TCP address; 0 stands for any free port.
    path: the path of a Unix socket.
    """

    scheme: Literal["tcp", "tls", "unix"]
    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: str, *, tls: bool = False) -> "Listen":
        """Parses `tcp://HOST:PORT` or `unix://PATH`. Raises ValueError.

        A TCP address may end with a slash. The path of `unix://a/b` is relative; the path of `unix:///a/b` is absolute.

        tls: whether `tls://HOST:PORT` is allowed too.
        """
        allowed = _LISTEN_TLS if tls else _LISTEN
        if _UNIX.match(text):
            path = normpath(text.removeprefix("unix://"))
            if text.endswith("/") or path.rpartition("/")[2] in ("", ".", ".."):
                raise ValueError(allowed)
            return cls("unix", path="/" + path.lstrip("/") if path.startswith("/") else path)._short_enough()
        match = _TCP.match(text)
        if not match or (match[1] == "tls" and not tls):
            raise ValueError(allowed)
        if int(match[4]) > 65535:
            raise ValueError("a port from 0 to 65535")
        try:
            host = str(ipaddress.IPv6Address(match[2])) if match[2] else match[3]
            if _DIGITS_ONLY.match(host):
                ipaddress.IPv4Address(host)
        except ValueError:
            raise ValueError(allowed) from None
        return cls("tls" if match[1] == "tls" else "tcp", "" if host == "*" else host, int(match[4]))

    def under(self, folder: str) -> "Listen":
        """Returns the address with an absolute path. A relative path starts at `folder`."""
        return Listen("unix", path=normpath(join(folder, self.path)))._short_enough() if self.scheme == "unix" else self

    def _short_enough(self) -> "Listen":
        if len(self.path.encode()) > _SOCKET_BYTES:
            raise ValueError(f"a path of at most {_SOCKET_BYTES} bytes for a Unix socket")
        return self

    def __str__(self) -> str:
        if self.scheme == "unix":
            return f"unix://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host or "*"
        return f"{self.scheme}://{host}:{self.port}"


def network(text: str) -> Net:
    """Parses an IP address or a network. Raises ValueError.

    An IPv4-mapped IPv6 network, such as ::ffff:10.0.0.0/104, becomes the IPv4 network 10.0.0.0/8.
    """
    try:
        net = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError("an IP address, or a network such as 10.0.0.0/8 or fd00::/8") from None
    if "/" in text and net.network_address != ipaddress.ip_address(text.partition("/")[0]):
        raise ValueError(f"a network whose address has no bits after the prefix: {net}")
    if net.version == 6 and net.prefixlen >= 96 and net.network_address.ipv4_mapped is not None:
        return ipaddress.IPv4Network((net.network_address.ipv4_mapped, net.prefixlen - 96))
    return net


def is_loopback(host: str) -> bool:
    """Returns whether only this machine can connect to a host. "" stands for all interfaces."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Networks:
    """A set of networks. The set can also include all clients on Unix sockets.

    An empty set is false in a condition. The meaning of an empty set depends on the key: an empty `whitelist` admits all
    addresses, but an empty `trust` or `proxies` trusts no address.
    """

    __slots__ = ("_known", "nets", "unix")
    MAX_KNOWN = 4096

    def __init__(self, nets: Iterable[Net] = (), unix: bool = False) -> None:
        self.nets = tuple(nets)
        self.unix = unix
        self._known: dict[str, bool] = {}

    @classmethod
    def parse(cls, words: Iterable[str]) -> "Networks":
        """Parses addresses, networks, and the word `unix`. Raises ValueError."""
        words = tuple(words)
        return cls((network(word) for word in words if word != "unix"), "unix" in words)

    def contains(self, ip: str) -> bool:
        """Returns whether the set contains an address; ::ffff:1.2.3.4 counts as 1.2.3.4. No set contains an invalid address.

        ip: an IP address; "" stands for a client on a Unix socket.
        """
        if len(ip) > 64:  # no IP address has more than 64 characters, but the text of a forwarded header may have more
            return False
        known = self._known.get(ip)
        if known is None:
            if len(self._known) >= self.MAX_KNOWN:
                self._known.clear()
            known = self._known[ip] = self._look(ip)
        return known

    def _look(self, ip: str) -> bool:
        if not ip:
            return self.unix
        try:
            address = ipaddress.ip_address(ip.partition("%")[0])  # fe80::1%eth0
        except ValueError:
            return False
        if address.version == 6 and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in net for net in self.nets)

    def __bool__(self) -> bool:
        return self.unix or bool(self.nets)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Networks) and (self.nets, self.unix) == (other.nets, other.unix)

    def __hash__(self) -> int:
        return hash((self.nets, self.unix))

    def __str__(self) -> str:
        return ", ".join([*map(str, self.nets), *(["unix"] if self.unix else [])])

    def __repr__(self) -> str:
        return f"Networks({self})"
