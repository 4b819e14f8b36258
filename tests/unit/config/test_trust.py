"""Warnings about trusted networks that contain large parts of the internet."""

import pytest

from push1st.config.model import Config

API = "api: { listen: tcp://*:6002, trust: [ %s ] }"


def trusting(config: Config) -> list[str]:
    return [line for line in config.warnings if "in it may" in line]


@pytest.mark.parametrize(
    ("trust", "shown"),
    [("0.0.0.0/0", "0.0.0.0/0"), ("'::/0', 127.0.0.1", "::/0"), ("0.0.0.0/1, 128.0.0.0/1", "0.0.0.0/1, 128.0.0.0/1")],
)
def test_internet_in_api_trust_has_a_warning(reading, trust: str, shown: str) -> None:
    (line,) = trusting(reading(API % trust))
    assert line.startswith(f"server.yml:1: api.trust: found {shown}; everybody in it may call the API without a signature")


@pytest.mark.parametrize(
    "trust", ["10.0.0.0/8, 127.0.0.0/8, '::1', unix", "192.0.2.0/24, 'fc00::/7', 'fd00::/8', '2001:db8::/32'"]
)
def test_networks_of_an_operator_have_no_warning(reading, trust: str) -> None:
    assert trusting(reading(API % trust)) == []


@pytest.mark.parametrize(
    ("api", "count"),
    [
        ("listen: tcp://127.0.0.1:6002", 0),
        ("listen: unix://s", 0),
        ("listen: false", 0),
        ("listen: tcp://*:6002, whitelist: [ 192.0.2.0/24 ]", 0),
        ("listen: tcp://*:6002, whitelist: [ 0.0.0.0/0 ]", 1),
        ("listen: tcp://127.0.0.1:6002 }\nserver: { proxies: [ 127.0.0.1 ]", 1),
    ],
)
def test_api_that_other_machines_do_not_reach_has_no_warning(reading, api: str, count: int) -> None:
    assert len(trusting(reading(f"api: {{ trust: [ 0.0.0.0/0 ], {api} }}"))) == count


def test_internet_as_a_proxy_has_a_warning(reading) -> None:
    console = "console: { password: a-password-of-people, proxies: [ '::/0' ] }"
    first, second = trusting(reading(f"server: {{ proxies: [ 0.0.0.0/0 ] }}\n{console}"))
    assert first.startswith("server.yml:1: server.proxies: found 0.0.0.0/0; each client in it may claim any address")
    assert second.startswith("server.yml:2: console.proxies: found ::/0; each client in it may claim any address")
