"""A broker's URL: which server it means, and that a password never shows."""

import pytest

from push1st.brokerurl import Address, parse


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://h", Address("server", (("h", 6379),))),
        ("valkey://h:1/", Address("server", (("h", 1),))),
        ("redis://u:p%40x@h:6380/2?prefix=shop", Address("server", (("h", 6380),), "", False, "u", "p@x", 2, "", "shop")),
        ("rediss://:p@[::1]:6379/0", Address("server", (("::1", 6379),), "", True, "", "p")),
        ("valkeys://h", Address("server", (("h", 6379),), "", True)),
        ("unix:///run/v.sock?db=3&prefix=a.b", Address("server", (), "/run/v.sock", database=3, prefix="a.b")),
        ("unix://:p@/run/v.sock", Address("server", (), "/run/v.sock", password="p")),
        ("redis+sentinel://a,b:1/main/1", Address("sentinel", (("a", 26379), ("b", 1)), database=1, master="main")),
        ("rediss+sentinel://a/main", Address("sentinel", (("a", 26379),), tls=True, master="main")),
        ("redis+cluster://a:1,b:2", Address("cluster", (("a", 1), ("b", 2)))),
    ],
)
def test_a_url_says_where_the_broker_is(url, address):
    assert parse(url) == address


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h",
        "http://h",
        "redis://",
        "redis://h:x",
        "redis://h:70000",
        "redis://a,b",
        "redis://h/x",
        "redis://h/0/1",
        "redis://h?timeout=1",
        "redis://h?prefix=",
        "redis://h?prefix=a%20b",
        "unix://relative",
        "redis+sentinel://a",
        "redis+cluster://a/1",
        "redis+other://a",
        "redis://h/0#x",
    ],
)
def test_what_is_no_such_url_is_refused_with_what_is_allowed(url):
    with pytest.raises(ValueError, match="redis://HOST:6379/0"):
        parse(url)


def test_an_address_does_not_show_its_password():
    address = parse("redis://u:hunter2@h/0")
    assert "hunter2" not in f"{address} {address!r}"
    assert str(address) == "server h:6379"
