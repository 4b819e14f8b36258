"""The header of the PROXY protocol, versions 1 and 2: a proxy sends the address of its client before the client's data.

The specification is https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt. This module only parses. The caller decides
which peers may send a header. A header is never optional, because otherwise any client could send a header with an address of
its choice.
"""

import ipaddress
import re

import msgspec

MIN_V1_BYTES = 15
"""the number of bytes of the shortest header of version 1, which is shorter than each header of version 2"""
MAX_V1_BYTES = 107
"""the maximum number of bytes of a header of version 1, with its end of line (section 2.1)"""
MAX_V2_BYTES = 4096
"""The maximum number of bytes of a header of version 2. The protocol allows 65,551 bytes, but proxies send a few hundred."""

_V2 = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_FIXED = len(_V2) + 4
_V1 = b"PROXY "
_V1_LINE = re.compile(
    rb"PROXY (?:UNKNOWN(?: [^\r\n]*)?|(TCP4|TCP6) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4}))\Z"
)
_LOCAL, _PROXY = 0x20, 0x21
_UNSPECIFIED, _TCP4, _TCP6, _UNIX_STREAM = 0x00, 0x11, 0x21, 0x31
_ADDRESS_BYTES = {_UNSPECIFIED: 0, _TCP4: 12, _TCP6: 36, _UNIX_STREAM: 216}
"""the number of bytes of both addresses and ports, by the family and the transport of a connection (section 2.2)"""


class ProxyError(ValueError):
    """The data begins with no valid header. The caller must close the connection (section 2)."""


class ProxyHeader(msgspec.Struct, frozen=True, gc=False):
    """A complete header.

    ip: the address of the client; None if the header names no address. Then the address of the peer applies.
    size: the number of bytes of the header. The data of the client follows the header.
    """

    ip: str | None
    size: int


def read_proxy_header(data: bytes) -> ProxyHeader | None:
    """Returns the header at the beginning of `data`; None if more data is needed. Raises ProxyError.

    data: all bytes since the beginning of the connection. If the result is None, `data` has less than `MAX_V2_BYTES` bytes.
    """
    if data[:1] == _V2[:1]:
        return _version_2(data)
    return _version_1(data)


def missing_bytes(data: bytes) -> int:
    """Returns how many bytes a reader may read at once without reading a byte that follows the header.

    data: the beginning of an incomplete header. Each header with this beginning has at least this many further bytes.
    """
    size = len(data)
    if data[:1] == _V2[:1]:
        return (_V2_FIXED if size < _V2_FIXED else _V2_FIXED + int.from_bytes(data[14:16])) - size
    if size < MIN_V1_BYTES:
        return MIN_V1_BYTES - size
    if data[-1:] == b"\r":
        return 1
    fields = 5 - data.count(b" ") if data.startswith((b"PROXY TCP4 ", b"PROXY TCP6 ")) else 0
    return 2 * max(0, fields) + 2  # a space and a character for each field, and the end of the line


def _version_1(data: bytes) -> ProxyHeader | None:
    if data[: len(_V1)] != _V1[: len(data)]:
        raise ProxyError("the connection begins with no PROXY header")
    end = data.find(b"\r\n", 0, MAX_V1_BYTES)
    if end < 0:
        if len(data) >= MAX_V1_BYTES:
            raise ProxyError(f"the PROXY header has more than {MAX_V1_BYTES} bytes")
        return None
    line = _V1_LINE.match(data[:end])
    if line is None:
        raise ProxyError("the line of the PROXY header is malformed")
    family, source, destination, *ports = line.groups()
    if family is None:  # UNKNOWN: "the receiver must ignore anything presented before the CRLF" (section 2.1)
        return ProxyHeader(None, end + 2)
    if any(int(port) > 65_535 for port in ports):
        raise ProxyError("the PROXY header has a port above 65535")
    address = ipaddress.IPv4Address if family == b"TCP4" else ipaddress.IPv6Address
    try:
        address(destination.decode())
        return ProxyHeader(str(address(source.decode())), end + 2)
    except ValueError:
        raise ProxyError("the PROXY header has no valid address") from None


def _version_2(data: bytes) -> ProxyHeader | None:
    if data[: len(_V2)] != _V2[: len(data)]:
        raise ProxyError("the connection begins with no PROXY header")
    if len(data) < _V2_FIXED:
        return None
    command, family = data[12], data[13]
    size = _V2_FIXED + int.from_bytes(data[14:16])
    if command not in (_LOCAL, _PROXY):
        raise ProxyError("the PROXY header has an unknown version or command")
    if size > MAX_V2_BYTES:
        raise ProxyError(f"the PROXY header has more than {MAX_V2_BYTES} bytes")
    if command == _PROXY:
        if family not in _ADDRESS_BYTES:
            raise ProxyError("the PROXY header is for a connection that is not a stream")
        if size < _V2_FIXED + _ADDRESS_BYTES[family]:
            raise ProxyError("the PROXY header is shorter than its addresses")
    if len(data) < size:
        return None
    ip = None  # LOCAL: the proxy has no client, for example for a health check (section 2.2)
    if command == _PROXY and family == _TCP4:
        ip = str(ipaddress.IPv4Address(data[16:20]))
    elif command == _PROXY and family == _TCP6:
        ip = str(ipaddress.IPv6Address(data[16:32]))
    return ProxyHeader(ip, size)
