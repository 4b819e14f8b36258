"""The checks of Host, Origin and the Fetch metadata, and the console's cookie."""

import pytest

from push1st.console.guard import HEADERS, Guard
from push1st.errors import Refused

PLAIN = Guard("", False, "1a2b")
TLS = Guard("", True, "1a2b")
PROXIED = Guard("https://console.example", False, "1a2b")
OWN = {b"host": b"127.0.0.1:6003", b"origin": b"http://127.0.0.1:6003", b"push1st-console": b"1"}


def passes(check, headers) -> bool:
    try:
        check(headers)
    except Refused as exc:
        return exc.code != 403
    return True


@pytest.mark.parametrize("host", [b"127.0.0.1", b"127.0.0.1:6003", b"localhost:6003", b"LOCALHOST", b"[::1]:6003", b"10.0.0.5"])
def test_addresses_and_localhost_are_accepted_as_the_host(host):
    for guard in (PLAIN, TLS, PROXIED):
        assert passes(guard.check_host, {b"host": host})


@pytest.mark.parametrize(
    "host",
    [b"", b"evil.example", b"console", b"127.0.0.1.evil.example", b"localhost.evil.example:6003", b"a, b", b"console.exampl"],
)
def test_other_hosts_are_rejected(host):
    for guard in (PLAIN, PROXIED):
        assert not passes(guard.check_host, {b"host": host})
    assert not passes(PLAIN.check_host, {})


@pytest.mark.parametrize("host", [b"console.example", b"Console.Example", b"console.example:443"])
def test_host_of_the_configured_origin_is_accepted(host):
    assert passes(PROXIED.check_host, {b"host": host})
    assert not passes(PLAIN.check_host, {b"host": host})


def test_host_of_the_configured_origin_with_another_port_is_rejected():
    assert not passes(PROXIED.check_host, {b"host": b"console.example:80"})
    assert passes(Guard("http://c.example:81", False, "").check_host, {b"host": b"c.example:81"})


@pytest.mark.parametrize(
    ("site", "accepted"), [(b"same-origin", True), (b"none", True), (b"cross-site", False), (b"same-site", False)]
)
def test_requests_of_other_sites_are_rejected(site, accepted):
    assert passes(PLAIN.check_site, {b"sec-fetch-site": site}) is accepted


def test_clients_that_are_no_browsers_send_no_fetch_metadata():
    assert passes(PLAIN.check_site, {})


@pytest.mark.parametrize(
    ("guard", "host", "origin", "accepted"),
    [
        (PLAIN, b"127.0.0.1:6003", b"http://127.0.0.1:6003", True),
        (PLAIN, b"localhost:6003", b"http://localhost:6003", True),
        (PLAIN, b"127.0.0.1:6003", b"http://127.0.0.1:6004", False),
        (PLAIN, b"127.0.0.1:6003", b"http://localhost:6003", False),
        (PLAIN, b"127.0.0.1:6003", b"https://127.0.0.1:6003", False),
        (PLAIN, b"127.0.0.1:6003", b"null", False),
        (PLAIN, b"127.0.0.1:6003", b"", False),
        (TLS, b"127.0.0.1:6003", b"https://127.0.0.1:6003", True),
        (TLS, b"127.0.0.1:6003", b"http://127.0.0.1:6003", False),
        (PROXIED, b"127.0.0.1:6003", b"https://console.example", True),
        (PROXIED, b"console.example", b"https://console.example", True),
        (PROXIED, b"console.example", b"http://console.example", False),
        (PROXIED, b"127.0.0.1:6003", b"http://127.0.0.1:6003", False),
        (PROXIED, b"console.example", b"https://console.example, https://console.example", False),
        (PROXIED, b"console.example", b"https://console.example.evil.example", False),
    ],
)
def test_changes_need_the_origin_of_the_console(guard, host, origin, accepted):
    headers = {b"host": host, b"push1st-console": b"1"} | ({b"origin": origin} if origin else {})
    assert passes(guard.check_change, headers) is accepted
    assert passes(guard.check_origin, headers) is accepted


def test_changes_need_a_header_that_other_pages_cannot_add():
    assert passes(PLAIN.check_change, OWN)
    assert not passes(PLAIN.check_change, {**OWN, b"push1st-console": b"0"})
    assert not passes(PLAIN.check_change, {name: value for name, value in OWN.items() if name != b"push1st-console"})


def test_cookie_has_the_strictest_attributes_that_the_connection_permits():
    assert PLAIN.set_cookie("v", 9) == b"Set-Cookie: push1st-console-1a2b=v; Path=/; Max-Age=9; HttpOnly; SameSite=Strict\r\n"
    for guard in (TLS, PROXIED):
        found = guard.set_cookie("v", 9)
        assert found == b"Set-Cookie: __Host-push1st-1a2b=v; Path=/; Max-Age=9; HttpOnly; SameSite=Strict; Secure\r\n"


@pytest.mark.parametrize(
    ("header", "value"),
    [
        (None, ""),
        ("", ""),
        ("push1st-console-1a2b=v", "v"),
        ("a=b; push1st-console-1a2b=v;c=d", "v"),
        ("xpush1st-console-1a2b=v", ""),
        ("push1st-console-1a2b", ""),
        ("push1st-console-1a2c=v", ""),
        ("__Host-push1st-1a2b=v", ""),
        ("push1st-console-1a2b=v=w", "v=w"),
    ],
)
def test_value_of_the_cookie_is_found_among_others(header, value):
    assert PLAIN.cookie_of(header) == value


def test_headers_forbid_everything_that_the_page_does_not_need():
    text = HEADERS.decode()
    assert "default-src 'none'" in text
    assert "require-trusted-types-for 'script'" in text
    assert "unsafe" not in text
    assert text.endswith("\r\n")
