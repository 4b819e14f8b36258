"""The caller of a request, by its peer and its headers: addresses behind proxies, and proxies that are trusted."""

import pytest

from push1st.config.addresses import Networks
from push1st.transports.caller import (
    FORWARDING,
    address,
    client_ip,
    distrust,
    is_own_name,
    is_private_name,
    shared_address,
    trusted_ip,
)

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
def test_host_name_of_this_machine_is_recognized(host, own):
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
        ("10.0.0.1", forwarded("203.0.113.9:51008"), "203.0.113.9"),
        ("10.0.0.1", forwarded("[2001:db8::1]:443"), "2001:db8::1"),
        ("10.0.0.1", forwarded("[2001:DB8::1]"), "2001:db8::1"),
        ("10.0.0.1", forwarded("2001:db8::1"), "2001:db8::1"),
        ("10.0.0.1", forwarded('"[2001:db8::1]:443"'), "2001:db8::1"),
        ("10.0.0.1", forwarded("6.6.6.6, 203.0.113.9:80, 10.0.0.2:80"), "203.0.113.9"),
        ("10.0.0.1", forwarded("203.0.113.9, unknown"), None),
        ("10.0.0.1", forwarded("unknown"), None),
        ("10.0.0.1", forwarded("localhost"), None),
        ("10.0.0.1", forwarded("[203.0.113.9"), None),
        ("10.0.0.1", {b"forwarded": b"for=203.0.113.9"}, "203.0.113.9"),
        ("10.0.0.1", {b"forwarded": b"For=203.0.113.9:51008;Proto=https;by=10.0.0.1"}, "203.0.113.9"),
        ("10.0.0.1", {b"forwarded": b'proto=https ;for="[2001:db8::1]:443"'}, "2001:db8::1"),
        ("10.0.0.1", {b"forwarded": b"for=[2001:db8::1]:443"}, "2001:db8::1"),
        ("10.0.0.1", {b"forwarded": b'for=6.6.6.6, for="203.0.113.9", for=10.0.0.2'}, "203.0.113.9"),
        ("10.0.0.1", {b"forwarded": b'for="6.6.6.6, for=7.7.7.7", for=203.0.113.9'}, "203.0.113.9"),
        ("10.0.0.1", {b"forwarded": b'for="203.0.113.\\9"'}, "203.0.113.9"),
        ("10.0.0.1", {b"forwarded": b"for=203.0.113.9, proto=https"}, None),
        ("10.0.0.1", {b"forwarded": b"for=203.0.113.9, for=unknown"}, None),
        ("10.0.0.1", {b"forwarded": b"for=_hidden;for=_SEVKISEK"}, None),
        ("10.0.0.1", {b"forwarded": b'for="203.0.113.9'}, None),
        ("10.0.0.1", {b"forwarded": b"for=203.0.113.9,"}, None),
        ("10.0.0.1", {b"forwarded": b"203.0.113.9"}, None),
        ("10.0.0.1", {b"forwarded": b""}, None),
        ("10.0.0.1", forwarded("203.0.113.9") | {b"forwarded": b"for=6.6.6.6"}, "203.0.113.9"),
        ("10.0.0.1", {b"x-real-ip": b"6.6.6.6", b"via": b"1.1 proxy"}, "10.0.0.1"),
        ("203.0.113.9", forwarded("127.0.0.1"), None),
    ],
)
def test_the_client_is_the_last_that_is_no_proxy_of_ours(peer, headers, ip):
    assert trusted_ip(peer, headers, PROXIES) == ip


@pytest.mark.parametrize(("peer", "ip"), [("203.0.113.9", "203.0.113.9"), ("10.0.0.1", "unknown"), ("", "unknown")])
def test_caller_with_an_unknown_forwarded_address_has_its_own_address_unless_it_is_a_proxy(peer, ip):
    assert client_ip(peer, {b"forwarded": b"for=unknown"}, PROXIES) == ip


@pytest.mark.parametrize("hop", ["", '"', '""', "1.2.3.4:", ":80", "1.2.3", "1.2.3.4.5", "[]", "[1.2.3.4", "x" * 9999, "[::1]x"])
def test_text_that_is_not_an_address_is_rejected(hop):
    assert address(hop) == ""


def test_a_header_of_any_length_is_read_in_time_that_grows_with_it():
    for value in (
        b'for="' + b"\\x" * 8000,
        b"for=" * 4000,
        b"for=1.2.3.4;" * 1300,
        b'for="' * 3000,
        b"," * 16_000,
        b"a" * 16_000,
    ):
        assert trusted_ip("10.0.0.1", {b"forwarded": value}, PROXIES) is None
    assert trusted_ip("10.0.0.1", forwarded("[" + "1:" * 8000), PROXIES) is None


NEAR = {b"host": b"localhost:6002"}
LOCAL = "127.0.0.1"
FAR = "192.168.1.7"


@pytest.mark.parametrize(
    ("peer", "headers", "why"),
    [
        (LOCAL, NEAR, ""),
        (LOCAL, {}, ""),
        (LOCAL, {b"host": b"rebound.example"}, "its Host 'rebound.example' may be"),
        (LOCAL, {b"host": b"push1st"}, "its Host 'push1st' may be"),
        ("::ffff:127.0.0.1", {b"host": b"evil.example"}, "its Host 'evil.example' may be"),
        (LOCAL, NEAR | {b"origin": b"http://localhost"}, "it has an Origin header"),
        (FAR, NEAR, ""),
        (FAR, {b"host": b"192.168.1.1:6002"}, ""),
        (FAR, {b"host": b"api.internal"}, ""),
        (FAR, {b"host": b"push1st:6002"}, ""),
        (FAR, {b"host": b"push1st.realtime.svc.cluster.local"}, ""),
        (FAR, {b"host": b"evil.example:6002"}, "its Host 'evil.example:6002' may be"),
        (FAR, {b"host": b"local.evil.example"}, "its Host"),
        (FAR, NEAR | {b"origin": b"null"}, "it has an Origin header"),
        ("203.0.113.9", NEAR, "203.0.113.9 is not in api.trust"),
        ("", {b"host": b"evil.example"}, "a Unix socket is not in api.trust"),
        (
            LOCAL,
            NEAR | forwarded("127.0.0.1"),
            "a proxy that is not in server.proxies forwarded it, as its header x-forwarded-for",
        ),
        ("10.0.0.1", forwarded("127.0.0.1"), "the proxy names a loopback address as the client"),
        ("10.0.0.1", forwarded("192.168.1.7"), ""),
        ("10.0.0.1", forwarded("192.168.1.7") | {b"via": b"1.1 x", b"x-real-ip": b"192.168.1.7"}, ""),
        ("10.0.0.1", forwarded("192.168.1.7") | {b"host": b"evil.example"}, "its Host 'evil.example' may be"),
        ("10.0.0.1", forwarded("203.0.113.9"), "203.0.113.9 is not in api.trust"),
        ("10.0.0.1", forwarded("unknown"), "the proxy does not name one client in x-forwarded-for"),
        ("10.0.0.1", {b"via": b"1.1 x"}, "the proxy does not name one client in via"),
        ("10.0.0.1", forwarded("192.168.1.7") | {b"forwarded": b"for=192.168.1.8"}, "the proxy does not name one client"),
    ],
)
def test_an_unsigned_call_is_trusted_or_the_reason_is_given(peer, headers, why):
    found = distrust(peer, headers, TRUST, PROXIES)
    assert found.startswith(why)
    assert bool(found) is bool(why)
    assert distrust(peer, headers, NOBODY, PROXIES)


@pytest.mark.parametrize("name", sorted(FORWARDING))
@pytest.mark.parametrize("peer", [LOCAL, FAR])
def test_a_request_with_a_header_of_an_unknown_proxy_is_not_trusted(peer, name):
    found = distrust(peer, NEAR | {name: b"192.168.1.7"}, TRUST, PROXIES)
    assert found == f"a proxy that is not in server.proxies forwarded it, as its header {name.decode()} shows"


def test_a_unix_socket_is_trusted_with_any_host():
    assert distrust("", {b"host": b"push.example.com"}, Networks.parse(["unix"]), PROXIES) == ""


@pytest.mark.parametrize(
    ("host", "private"),
    [
        ("push1st", True),
        ("Push1st_1:6002", True),
        ("a.b.internal", True),
        ("printer.local.", True),
        ("router.home.arpa", True),
        ("push1st.realtime.svc:6002", True),
        ("evil.example", False),
        ("internal.example", False),
        ("evil.example@local", False),
        ("evil.example\n", False),
        ("a" * 9000 + ".", True),
        ("a." * 9000, False),
    ],
)
def test_names_outside_public_dns_are_private(host, private):
    assert is_private_name(host.encode()) is private


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
