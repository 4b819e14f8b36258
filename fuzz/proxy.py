"""Fuzzes the parser of PROXY headers: the result does not depend on the data after the header, and errors are ProxyErrors."""

import ipaddress
from random import Random

from fuzz.runner import main
from push1st.protocols.proxy import MAX_V2_BYTES, ProxyError, ProxyHeader, read_proxy_header

_V2 = "0d0a0d0a000d0a515549540a"
SEEDS = [
    b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
    b"PROXY TCP6 2001:db8::1 ::1 56324 443\r\n",
    b"PROXY UNKNOWN ::1 ::1 1 2\r\n",
    bytes.fromhex(_V2 + "20 00 0000"),
    bytes.fromhex(_V2 + "21 11 000c c0a80001 c0a8000b dc04 01bb"),
    bytes.fromhex(_V2 + "21 21 0024" + "20010db8000000000000000000000001" + "00" * 15 + "01 dc04 22b3"),
    bytes.fromhex(_V2 + "21 11 0013 c0a80001 c0a8000b dc04 01bb 010004 6d717474"),
    bytes.fromhex(_V2 + "21 31 00d8") + bytes(216),
]


def run(data: bytes, random: Random) -> None:
    found = read(data)
    cut = random.randrange(len(data) + 1)
    assert read(data[:cut]) in (None, found), "an earlier decision differs"
    if found is None:
        assert len(data) < MAX_V2_BYTES
    elif isinstance(found, ProxyHeader):
        assert 0 < found.size <= len(data)
        assert read(data[: found.size]) == found
        if found.ip is not None:
            assert str(ipaddress.ip_address(found.ip)) == found.ip


def read(data: bytes) -> ProxyHeader | str | None:
    try:
        return read_proxy_header(data)
    except ProxyError:
        return "rejected"


if __name__ == "__main__":
    main(run, SEEDS, __doc__)
