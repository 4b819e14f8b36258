"""The PROXY protocol: golden headers, and headers of any content in any chunks."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from push1st.protocols.proxy import MAX_V1_BYTES, MAX_V2_BYTES, ProxyError, ProxyHeader, missing_bytes, read_proxy_header

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
CONNECT = bytes.fromhex("100d 0004 4d515454 04 02 003c 0001 61")


def v2(command: int, family: int, body: bytes = b"") -> bytes:
    return SIGNATURE + bytes([command, family]) + len(body).to_bytes(2) + body


GOLDEN = {
    # the longest lines of each family in section 2.1 of the specification
    "v1 TCP4": (b"PROXY TCP4 255.255.255.255 255.255.255.254 65535 65535\r\n", "255.255.255.255"),
    "v1 TCP6": (
        b"PROXY TCP6 ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n".replace(b"ffff:f...f:ffff", b":".join([b"ffff"] * 8)),
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    ),
    "v1 UNKNOWN": (b"PROXY UNKNOWN\r\n", None),
    "v1 UNKNOWN with addresses": (
        b"PROXY UNKNOWN " + b" ".join([b":".join([b"ffff"] * 8)] * 2) + b" 65535 65535\r\n",
        None,
    ),
    "v1 haproxy": (b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n", "192.168.0.1"),
    "v1 TCP6 short": (b"PROXY TCP6 2001:DB8::1 ::1 0 1883\r\n", "2001:db8::1"),
    "v2 LOCAL of haproxy": (bytes.fromhex("0d0a0d0a000d0a515549540a 20 00 0000"), None),
    "v2 LOCAL with addresses": (bytes.fromhex("0d0a0d0a000d0a515549540a 20 11 000c 7f000001 7f000001 dc04 075b"), None),
    "v2 TCP4": (bytes.fromhex("0d0a0d0a000d0a515549540a 21 11 000c c0a80001 c0a8000b dc04 01bb"), "192.168.0.1"),
    "v2 TCP6": (
        bytes.fromhex("0d0a0d0a000d0a515549540a 21 21 0024" + "20010db8000000000000000000000001" + "00" * 15 + "01 dc04 22b3"),
        "2001:db8::1",
    ),
    # PP2_TYPE_ALPN "mqtt", PP2_TYPE_NOOP, and PP2_TYPE_CRC32C
    "v2 TCP4 with TLVs": (
        bytes.fromhex("0d0a0d0a000d0a515549540a 21 11 001d c0a80001 c0a8000b dc04 01bb 010004 6d717474 040000 030004 00000000"),
        "192.168.0.1",
    ),
    "v2 UNSPEC": (v2(0x21, 0x00, b"any"), None),
    "v2 UNIX": (v2(0x21, 0x31, bytes(216)), None),
}


@pytest.mark.parametrize(("header", "ip"), GOLDEN.values(), ids=GOLDEN)
def test_header_of_the_specification_is_read(header: bytes, ip: str | None) -> None:
    assert read_proxy_header(header + CONNECT) == ProxyHeader(ip, len(header))


@pytest.mark.parametrize("header", [header for header, _ in GOLDEN.values()], ids=GOLDEN)
def test_a_header_needs_its_last_byte(header: bytes) -> None:
    assert [read_proxy_header(header[:size]) for size in range(len(header))] == [None] * len(header)


@pytest.mark.parametrize("header", [header for header, _ in GOLDEN.values()], ids=GOLDEN)
def test_reader_of_missing_bytes_ends_at_the_end_of_the_header(header: bytes) -> None:
    stream, at, reads = header + CONNECT, 0, 0
    while read_proxy_header(stream[:at]) is None:
        assert missing_bytes(stream[:at]) > 0
        at, reads = at + missing_bytes(stream[:at]), reads + 1
    assert at == len(header)
    assert reads <= 50


@given(st.data())
def test_reader_of_missing_bytes_may_stop_anywhere(data: st.DataObject) -> None:
    header = data.draw(st.sampled_from([header for header, _ in GOLDEN.values()]))
    at = 0
    while read_proxy_header(header[:at]) is None:
        at += data.draw(st.integers(1, missing_bytes(header[:at])))
    assert at == len(header)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (CONNECT, "begins with no PROXY header"),
        (CONNECT[:1], "begins with no PROXY header"),
        (b"GET / HTTP/1.1\r\n\r\n", "begins with no PROXY header"),
        (b"PROXX", "begins with no PROXY header"),
        (b"\r\n\r\n\x01", "begins with no PROXY header"),
        (b"PROXY \r\n", "is malformed"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2", None),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n\r\n", "is malformed"),
        (b"PROXY TCP4  1.2.3.4 5.6.7.8 1 2\r\n", "is malformed"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 01 2\r\n", "is malformed"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n", "is malformed"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n", "is malformed"),
        (b"PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n", "is malformed"),
        (b"PROXY UNKNOWNS\r\n", "is malformed"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 65536\r\n", "a port above 65535"),
        (b"PROXY TCP4 01.2.3.4 5.6.7.8 1 2\r\n", "no valid address"),
        (b"PROXY TCP4 ::1 ::1 1 2\r\n", "no valid address"),
        (b"PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n", "no valid address"),
        (b"PROXY TCP4 1.2.3.4 5.6.7 1 2\r\n", "no valid address"),
        (b"PROXY UNKNOWN ".ljust(MAX_V1_BYTES - 1, b"x"), None),
        (b"PROXY UNKNOWN ".ljust(MAX_V1_BYTES, b"x"), f"more than {MAX_V1_BYTES} bytes"),
        (b"PROXY UNKNOWN ".ljust(MAX_V1_BYTES - 1, b"x") + b"\r\n", f"more than {MAX_V1_BYTES} bytes"),
        (v2(0x11, 0x11, bytes(12)), "unknown version or command"),
        (v2(0x22, 0x11, bytes(12)), "unknown version or command"),
        (v2(0x21, 0x12, bytes(12)), "not a stream"),
        (v2(0x21, 0x41, bytes(12)), "not a stream"),
        (v2(0x21, 0x11, bytes(11)), "shorter than its addresses"),
        (v2(0x21, 0x21, bytes(35)), "shorter than its addresses"),
        (v2(0x21, 0x31, bytes(215)), "shorter than its addresses"),
        (v2(0x20, 0x00, bytes(MAX_V2_BYTES))[:16], f"more than {MAX_V2_BYTES} bytes"),
    ],
)
def test_data_without_a_valid_header_is_rejected_as_early_as_possible(data: bytes, why: str | None) -> None:
    if why is None:
        assert read_proxy_header(data) is None
        return
    with pytest.raises(ProxyError, match=why):
        read_proxy_header(data)


def test_longest_header_of_version_2_is_read() -> None:
    header = v2(0x20, 0x00, bytes(MAX_V2_BYTES - 16))
    assert read_proxy_header(header) == ProxyHeader(None, MAX_V2_BYTES)


ports = st.integers(0, 65_535)


@given(st.ip_addresses(), st.data())
def test_client_address_of_any_header_is_read(ip: ipaddress.IPv4Address | ipaddress.IPv6Address, data: st.DataObject) -> None:
    to = data.draw(st.ip_addresses(v=ip.version))
    source, target = data.draw(ports), data.draw(ports)
    line = f"PROXY TCP{ip.version} {ip} {to} {source} {target}\r\n".encode()
    pair = source.to_bytes(2) + target.to_bytes(2)
    binary = v2(0x21, 0x11 if ip.version == 4 else 0x21, ip.packed + to.packed + pair + data.draw(st.binary(max_size=50)))
    rest = data.draw(st.binary(max_size=20))
    for header in (line, binary):
        assert read_proxy_header(header + rest) == ProxyHeader(str(ip), len(header))


starts = st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11\x00\x0c"])


@given(starts, st.binary(max_size=200))
def test_more_data_never_changes_a_decision(start: bytes, rest: bytes) -> None:
    data = start + rest
    decided: ProxyHeader | str | None = None
    for size in range(len(data) + 1):
        try:
            found: ProxyHeader | str | None = read_proxy_header(data[:size])
        except ProxyError:
            found = "rejected"
        assert decided is None or found == decided
        decided = found
    assert decided is not None or len(data) < MAX_V2_BYTES
