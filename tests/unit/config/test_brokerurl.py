"""A broker URL names servers, and its password never shows."""

import pytest

from push1st.config.brokerurl import Address, parse


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
def test_broker_url_names_the_servers(url, address):
    assert parse(url) == address


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "a text with another beginning"),
        ("h", "a host without redis:// before it"),
        ("127.0.0.1:6379", "a host without redis:// before it"),
        ("redis:127.0.0.1:6379", "a URL without // after its first colon"),
        ("redis:/:p@h", "a URL without // after its first colon"),
        ("http://h", "a text with another beginning"),
        ("redis+other://a", "a text with another beginning"),
        ("redis://", "no host"),
        ("redis:///0", "no host"),
        ("redis://h:x", "a host or port that is not valid"),
        ("redis://h:70000", "a port above 65535"),
        ("redis://a,b", "more than one host"),
        ("redis://h/x", "a database that is not a number"),
        ("redis://h/0/1", "more than one database"),
        ("redis+cluster://a/1", "a database, but a cluster has no databases"),
        ("redis+sentinel://a", "no name of a master"),
        ("redis://h?timeout=1", "an option other than prefix= and db="),
        ("redis://h?prefix=", "a prefix that is not"),
        ("redis://h?prefix=a%20b", "a prefix that is not"),
        ("unix://relative", "no absolute path"),
        ("redis://:p@ss@h", "which must be written %40"),
        ("redis://:p/ss@h", "which must be written %40"),
        ("redis://:p#ss@h", "which must be written %40"),
        ("redis://h/0#x", "which must be written %40"),
    ],
)
def test_invalid_broker_url_is_rejected_with_the_reason(url, said):
    with pytest.raises(ValueError, match=said):
        parse(url)


@pytest.mark.parametrize("url", ["redis://:hunt@er2@h", "redis://:hunt/er2@h", "redis://:hunt#er2@h", "redis://:er2@h:x"])
def test_rejected_broker_url_does_not_show_its_password(url):
    with pytest.raises(ValueError, match=r"\S") as refused:
        parse(url)
    assert "er2" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://h", "server h:6379, without a password, database 0, prefix push1st"),
        ("rediss://u:p@h/2?prefix=shop", "server h:6379, TLS, user u, with a password, database 2, prefix shop"),
        ("redis+sentinel://a/main", "sentinel a:26379, master main, without a password, database 0, prefix push1st"),
        ("redis+cluster://:p@a:1,b:2", "cluster a:1,b:2, with a password, prefix push1st"),
    ],
)
def test_broker_address_is_printed_with_its_kind(url, said):
    assert parse(url).all == said


def test_an_address_does_not_show_its_password():
    address = parse("redis://u:hunter2@h/0")
    assert "hunter2" not in f"{address} {address!r}"
    assert str(address) == "server h:6379"
