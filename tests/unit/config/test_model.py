"""The typed configuration: addresses, networks, the demo, and values that are never printed."""

import ipaddress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from push1st.channels import type_names
from push1st.config.addresses import Listen, Networks, network
from push1st.config.model import AppConfig, Config, Hook, Webhook, demo, strictness, unserved, weak_secrets
from push1st.limits import Limits


def app(**fields):
    return AppConfig(**{"id": "a", "key": "k", "secret": "s" * 32, **fields})


# Listen


@pytest.mark.parametrize(
    ("text", "listen", "again"),
    [
        ("tcp://127.0.0.1:6001", Listen("tcp", "127.0.0.1", 6001), "tcp://127.0.0.1:6001"),
        ("tcp://*:6002/", Listen("tcp", "", 6002), "tcp://*:6002"),
        ("tcp://:0", Listen("tcp", "", 0), "tcp://*:0"),
        ("tcp://node-1.example.com:65535", Listen("tcp", "node-1.example.com", 65535), "tcp://node-1.example.com:65535"),
        ("tcp://[::1]:6001", Listen("tcp", "::1", 6001), "tcp://[::1]:6001"),
        ("tcp://[0:0::1]:6001/", Listen("tcp", "::1", 6001), "tcp://[::1]:6001"),
        ("unix:///run/push1st.api", Listen("unix", path="/run/push1st.api"), "unix:///run/push1st.api"),
        ("unix:////run/./push1st.api", Listen("unix", path="/run/push1st.api"), "unix:///run/push1st.api"),
        ("unix://opt/push1st.api", Listen("unix", path="opt/push1st.api"), "unix://opt/push1st.api"),
    ],
)
def test_an_address_is_read_and_written(text, listen, again):
    assert Listen.parse(text) == listen
    assert str(listen) == again


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "tcp://",
            "6001",
            "127.0.0.1:6001",
            "tcp://127.0.0.1",
            "tcp://*:6001/app",
            "tcp://*:x",
            "udp://*:1",
        ),
        *("tcp://::1:6001", "tcp://[1.2.3.4]:1", "tcp://[::g]:1", "tcp://999.1.1.1:1", "tcp://a b:1", "tcp://*a:1", "tcp://*:-1"),
        *("unix://", "unix:///", "unix://opt/", "unix://..", "unix://.", "unix:///a\nb", "unix:///a\0b", "unix:///" + "a" * 107),
    ],
)
def test_invalid_address_is_rejected(text):
    with pytest.raises(ValueError, match=r"tcp://HOST:PORT|at most 107 bytes"):
        Listen.parse(text)


@pytest.mark.parametrize(
    ("apps", "said"),
    [
        ([], "no app is configured"),
        ([AppConfig(id="a", key="k", secret="s", enable=False)], "every app is disabled"),
        ([AppConfig(id="a", key="k", secret="", channels=frozenset())], "no enabled app has channels"),
        ([AppConfig(id="a", key="k", secret="s"), AppConfig(id="b", key="l", secret="s", enable=False)], ""),
    ],
)
def test_configuration_without_a_usable_app_is_rejected(apps, said):
    found = unserved(Config(apps=tuple(apps)))
    assert found.startswith(said) if said else not found


def test_configuration_without_protocols_or_addresses_is_rejected():
    config = demo()
    assert not unserved(config)
    proto = msgspec.structs.replace(config.server, proto=frozenset())
    assert unserved(msgspec.structs.replace(config, server=proto)).startswith("server.proto has none of pusher, websocket, mqtt")
    for protocol in ("pusher", "websocket", "mqtt", "sse"):
        one = msgspec.structs.replace(config.server, proto=frozenset({protocol}))
        assert not unserved(msgspec.structs.replace(config, server=one))
    off = msgspec.structs.replace(config.server, listen=())
    assert not unserved(msgspec.structs.replace(config, server=off))
    nowhere = msgspec.structs.replace(config, server=off, api=msgspec.structs.replace(config.api, listen=()))
    assert unserved(nowhere).startswith("server.listen and api.listen are both switched off")


def test_a_port_above_65535_is_refused_as_a_port():
    with pytest.raises(ValueError, match="a port from 0 to 65535"):
        Listen.parse("tcp://*:65536")


def test_a_relative_socket_starts_at_a_folder():
    assert str(Listen.parse("unix://opt/push1st.api").under("/etc/push1st")) == "unix:///etc/push1st/opt/push1st.api"
    assert str(Listen.parse("unix://../run/api").under("/etc/push1st")) == "unix:///etc/run/api"
    assert str(Listen.parse("unix:///run/api").under("/etc/push1st")) == "unix:///run/api"
    assert str(Listen.parse("tcp://*:6001").under("/etc/push1st")) == "tcp://*:6001"


def test_a_socket_path_that_gets_too_long_under_its_folder_is_refused():
    with pytest.raises(ValueError, match="107"):
        Listen.parse("unix://api").under("/" + "a" * 107)


hosts = st.one_of(
    st.just("*"),
    st.just(""),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda ip: f"[{ip}]"),
    st.from_regex(r"[a-z][a-z0-9-]{0,20}(\.[a-z]{1,5})?", fullmatch=True),
)
addresses = st.one_of(
    st.builds("tcp://{}:{}{}".format, hosts, st.integers(0, 65535), st.sampled_from(["", "/"])),
    st.from_regex(r"unix://[a-z./ä-]{1,40}", fullmatch=True),
)


@given(addresses)
def test_an_address_written_out_is_read_back_the_same(text):
    try:
        listen = Listen.parse(text)
    except ValueError:
        assert text.startswith("unix://")  # of the generated texts, only paths such as /.. are invalid
        return
    assert Listen.parse(str(listen)) == listen


@given(st.text())
def test_address_parser_rejects_any_invalid_text_with_a_hint(text):
    for candidate in (text, "tcp://" + text, "unix://" + text, f"tcp://[{text}]:1"):
        try:
            assert isinstance(Listen.parse(candidate), Listen)
        except ValueError as error:
            said = str(error)
            assert "HOST" in said or "107" in said


# Networks


def test_networks_hold_addresses_networks_and_unix_peers():
    trust = Networks.parse(["127.0.0.0/8", "::1", "unix"])
    assert [trust.contains(ip) for ip in ("127.9.9.9", "::1", "")] == [True, True, True]
    assert [trust.contains(ip) for ip in ("128.0.0.1", "::2", "nonsense", "127.0.0.1:80")] == [False] * 4
    assert not Networks.parse(["127.0.0.0/8"]).contains("")


def test_an_ipv4_address_inside_ipv6_counts_as_ipv4():
    assert Networks.parse(["10.0.0.0/8"]).contains("::ffff:10.1.2.3")
    assert not Networks.parse(["10.0.0.0/8"]).contains("::ffff:11.1.2.3")
    assert Networks.parse(["::ffff:10.0.0.0/104"]).contains("10.1.2.3")
    assert Networks.parse(["::ffff:10.0.0.0/104"]).nets == (ipaddress.ip_network("10.0.0.0/8"),)


def test_the_interface_after_a_link_local_address_does_not_matter():
    assert Networks.parse(["fe80::/10"]).contains("fe80::1%eth0")


def test_networks_are_true_when_they_hold_something():
    assert not Networks()
    assert Networks.parse(["unix"])
    assert Networks.parse(["::/0"])


def test_networks_are_compared_hashed_and_printed_by_their_addresses():
    one, other = Networks.parse(["10.0.0.0/8", "unix"]), Networks.parse(["10.0.0.0/8", "unix"])
    one.contains("10.0.0.1")
    assert one == other
    assert hash(one) == hash(other)
    assert one != Networks.parse(["10.0.0.0/8"])
    assert one != "10.0.0.0/8, unix"
    assert str(one) == "10.0.0.0/8, unix"
    assert repr(one) == "Networks(10.0.0.0/8, unix)"


@pytest.mark.parametrize("text", ["", "localhost", "10.0.0.0/33", "10.0.0", "::g", "10.0.0.0/", "unix"])
def test_invalid_network_is_rejected(text):
    with pytest.raises(ValueError, match="an IP address, or a network"):
        network(text)


def test_a_network_with_bits_after_its_prefix_is_refused_with_the_right_one():
    with pytest.raises(ValueError, match=r"10\.0\.0\.0/8"):
        network("10.1.0.0/8")


def test_networks_remember_a_bounded_number_of_addresses():
    net = Networks.parse(["10.0.0.0/8"])
    for number in range(Networks.MAX_KNOWN + 2):
        net.contains(str(ipaddress.IPv4Address(number)))
    assert len(net._known) <= Networks.MAX_KNOWN


def plain(ip):
    return getattr(ip, "ipv4_mapped", None) or ip


@given(st.lists(st.ip_addresses(network="10.0.0.0/12") | st.ip_addresses(v=6), max_size=5), st.data())
def test_networks_of_single_addresses_contain_only_these(members, data):
    nets = Networks.parse(map(str, members))
    ip = data.draw(st.sampled_from(members) | st.ip_addresses() if members else st.ip_addresses())
    expected = plain(ip) in map(plain, members)
    assert nets.contains(str(ip)) == expected
    assert nets.contains(str(ip)) == expected  # from memory


@given(st.text())
def test_no_text_makes_networks_fail(text):
    assert Networks.parse(["0.0.0.0/0", "::/0"]).contains(text) in (True, False)
    try:
        network(text)
    except ValueError:
        return


# Structs


def test_the_demo_is_the_app_of_the_documentation_for_this_machine_only():
    config = demo()
    (app,) = config.apps
    assert (app.id, app.key, app.secret, app.client_messages) == ("app-test", "app-key", "secret", True)
    assert app.channels == set(type_names)
    assert [str(listen) for listen in config.server.listen] == ["tcp://127.0.0.1:6001"]
    assert [str(listen) for listen in config.api.listen] == ["tcp://127.0.0.1:6002"]
    assert config.demo


def test_a_configuration_has_good_defaults_and_no_demo():
    config = Config()
    server, api = config.server, config.api
    assert [str(listen) for listen in (*server.listen, *api.listen)] == ["tcp://*:6001", "tcp://*:6002"]
    assert (config.apps, config.demo, config.broker) == ((), False, "memory")
    assert (config.log.format, config.log.level) == ("text", "info")
    assert (server.app_path, api.path, api.keep_alive_timeout) == ("/app/", "/apps/", 10)
    assert (server.drain, server.workers, server.outbox, server.max_payload) == (10, 1, 1_048_576, 65_400)
    assert server.proto == {"pusher", "websocket", "sse"}
    protocols = [(p.path, p.activity_timeout) for p in (server.pusher, server.websocket, server.mqtt)]
    assert protocols == [("/pusher/", 120), ("/ws/", 3600), ("/mqtt/", 3600)]
    assert server.pusher.push == {"public", "private", "presence"}
    assert not server.pusher.whitelist
    assert not server.proxies
    assert not api.whitelist
    assert [api.trust.contains(ip) for ip in ("127.0.0.1", "::1", "", "10.0.0.1")] == [True, True, True, False]


def test_client_messages_are_off_by_default():
    assert not app().client_messages


def test_secrets_are_never_printed():
    hidden = "hunter2-" * 4
    config = Config(
        broker=f"redis://:{hidden}@host/0",
        apps=(
            app(
                secret=hidden,
                hook=Hook(endpoint=(f"http://u:{hidden}@host/",)),
                webhooks=(Webhook(url=f"http://u:{hidden}@host/", headers=(("Authorization", hidden),)),),
            ),
        ),
    )
    for text in (repr(config), str(config), str(config.__rich_repr__()), repr(config.apps[0]), f"{config.apps[0]}"):
        assert "hunter2" not in text
    assert "key='k'" in repr(config)


def test_the_configuration_does_not_change():
    for struct, field in ((app(), "secret"), (Config(), "demo"), (Config().server, "listen"), (Config().api, "trust")):
        with pytest.raises(AttributeError):
            setattr(struct, field, getattr(struct, field))


# Strictness


def test_limits_stricter_than_push1st_are_one_line_for_all_equal_apps():
    own = Limits(payload=65_400, members=0)
    same, other = strictness(Config(apps=(app(id="one"), app(id="two", limits=own), app(id="three"))))
    assert same.startswith(
        "one, three: only if you move from the original Push1st, the server in C++: these limits are lower here: "
        "payload 10.0 KiB instead of 63.9 KiB, members 100 instead of unlimited, "
    )
    assert other.startswith("two: ")
    assert "payload" not in other
    assert "members" not in other


def test_an_app_without_stricter_limits_is_not_listed():
    free = Limits(payload=100_000, members=0, subscriptions=0, channels_per_event=0, client_events=0)
    assert strictness(Config(apps=(app(limits=free), app(id="off", enable=False)))) == []


def test_short_secrets_are_one_line_except_for_the_demo():
    (line,) = weak_secrets(Config(apps=(app(secret="short"), app(id="long"), app(id="none", secret=""))))
    assert line.startswith("a: the secret is shorter than 32 bytes, so ")
    (many,) = weak_secrets(Config(apps=tuple(app(id=f"shop-{number}", secret="short") for number in range(1007))))
    assert many.startswith("shop-0, shop-1, shop-2, shop-3, shop-4 and 1,002 more apps: the secret is")
    assert weak_secrets(demo()) == []
    assert len(weak_secrets(msgspec.structs.replace(demo(), demo=False))) == 1
