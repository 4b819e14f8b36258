"""Who sends a request, by its peer and its headers: addresses behind proxies, and whom to believe."""

import pytest

from push1st.config import Networks
from push1st.transports.caller import client_ip, is_own_name, is_trusted, shared_address, visitor_ip

PROXIES = Networks.parse(("10.0.0.0/8",))
TRUST = Networks.parse(("127.0.0.0/8", "::1", "192.168.0.0/16"))
NOBODY = Networks()


def forwarded(addresses: str) -> dict[bytes, bytes]:
    return {b"x-forwarded-for": addresses.encode()}


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("localhost", True),
        ("LocalHost:6002", True),
        ("app.localhost", True),
        ("127.0.0.1:6002", True),
        ("[::1]:6002", True),
        ("", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("127.0.0.1@evil.example", False),
        ("localhost\n", False),
    ],
)
def test_a_name_of_this_machine_is_told_from_others(host, own):
    assert is_own_name(host.encode()) is own


@pytest.mark.parametrize(
    ("peer", "headers", "ip"),
    [
        ("203.0.113.9", {}, "203.0.113.9"),
        ("", {}, ""),
        ("10.0.0.1", forwarded("203.0.113.9"), "203.0.113.9"),
        ("10.0.0.1", forwarded("6.6.6.6, 203.0.113.9, 10.0.0.2"), "203.0.113.9"),
        ("10.0.0.1", forwarded("10.0.0.3, 10.0.0.2"), "10.0.0.3"),
        ("10.0.0.1", forwarded("203.0.113.9, "), None),
        ("10.0.0.1", {b"forwarded": b"for=203.0.113.9"}, None),
        ("203.0.113.9", forwarded("127.0.0.1"), None),
    ],
)
def test_the_client_is_the_last_that_is_no_proxy_of_ours(peer, headers, ip):
    assert client_ip(peer, headers, PROXIES) == ip


@pytest.mark.parametrize(("peer", "ip"), [("203.0.113.9", "203.0.113.9"), ("10.0.0.1", "unknown"), ("", "unknown")])
def test_who_forwards_what_is_not_believed_is_known_by_its_own_address_unless_it_is_a_proxy(peer, ip):
    assert visitor_ip(peer, {b"forwarded": b"for=127.0.0.1"}, PROXIES) == ip


@pytest.mark.parametrize(
    ("peer", "headers", "trusted"),
    [
        ("127.0.0.1", {b"host": b"localhost:6002"}, True),
        ("127.0.0.1", {b"host": b"rebound.example"}, False),
        ("192.168.1.7", {b"host": b"api.internal"}, True),
        ("203.0.113.9", {b"host": b"localhost"}, False),
        ("127.0.0.1", {b"host": b"localhost", b"origin": b"http://localhost"}, False),
        ("127.0.0.1", {b"host": b"localhost", **forwarded("127.0.0.1")}, False),
        ("10.0.0.1", forwarded("127.0.0.1"), False),
        ("10.0.0.1", forwarded("192.168.1.7"), True),
        ("10.0.0.1", forwarded("203.0.113.9"), False),
        ("::ffff:127.0.0.1", {b"host": b"evil.example"}, False),
    ],
)
def test_an_unsigned_call_is_believed_from_near_and_by_nobody_s_word(peer, headers, trusted):
    assert is_trusted(peer, headers, TRUST, PROXIES) is trusted
    assert not is_trusted(peer, headers, NOBODY, PROXIES)


@pytest.mark.parametrize(
    ("ip", "shared"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("127.0.0.1", ""),
        ("127.4.4.4", ""),
        ("::1", ""),
        ("::ffff:127.0.0.1", ""),
        ("unknown", ""),
        ("1" * 10_000, ""),
    ],
)
def test_a_bound_per_address_counts_networks_of_ipv6_and_never_loopback(ip, shared):
    assert shared_address(ip) == shared
