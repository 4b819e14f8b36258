"""The section `server.mqtt`: its addresses, its certificates, and the rules that concern other sections."""

import pytest

from push1st.config.addresses import Listen
from push1st.config.model import unserved
from push1st.config.mqtt import Mqtt

APP = "a: { key: a-key, secret: 0123456789abcdef0123456789abcdef }\n"


@pytest.fixture
def mqtt(reading):
    """Loads a section `server.mqtt` with the protocol enabled."""

    def read(section, rest="", env=None):
        return reading(f"server: {{ proto: [ pusher, mqtt ], mqtt: {{ {section} }}{rest} }}", APP, env=env).server.mqtt

    return read


@pytest.fixture
def mistakes(wrong):
    """Returns the lines of the error of a section `server.mqtt`, without the place in the file."""

    def read(section, rest=""):
        lines = wrong(f"server: {{ proto: [ pusher, mqtt ], mqtt: {{ {section} }}{rest} }}", APP)
        return [line.removeprefix("server.yml:1: server.mqtt.") for line in lines]

    return read


@pytest.fixture
def files(tmp_path):
    """Creates empty files."""

    def create(*names):
        for name in names:
            (tmp_path / name).touch()
        return [str(tmp_path / name) for name in names]

    return create


# Addresses


def test_mqtt_has_no_address_by_default_although_a_file_of_push1st_enables_it(reading):
    text = "server: { proto: [ pusher, mqtt ], mqtt: { path: /mqtt/, activity-timeout: 3600, push: { public }, whitelist: [] } }"
    assert reading(text, APP).server.mqtt_listen == ()


def test_each_address_has_its_scheme(mqtt, tmp_path):
    found = mqtt('listen: [ "tcp://*:1883", "tls://[::1]:8883", "unix://mqtt.sock" ]').listen
    assert found == (Listen("tcp", port=1883), Listen("tls", "::1", 8883), Listen("unix", path=str(tmp_path / "mqtt.sock")))
    assert [str(one) for one in found[:2]] == ["tcp://*:1883", "tls://[::1]:8883"]


def test_an_environment_variable_sets_the_addresses(mqtt):
    found = mqtt("", env={"PUSH1ST_SERVER_MQTT_LISTEN": "tcp://127.0.0.1:1883,tls://127.0.0.1:8883"})
    assert [one.scheme for one in found.listen] == ["tcp", "tls"]


def test_addresses_can_be_switched_off(mqtt):
    assert mqtt("listen: false").listen == ()


def test_other_sections_reject_tls_addresses(wrong):
    for section in ("server", "api"):
        (line,) = wrong(f"{section}: {{ listen: tls://*:1 }}")
        assert line.endswith('found "tls://*:1" (text), allowed: tcp://HOST:PORT (HOST may be *), or unix://PATH')


def test_an_address_without_the_protocol_has_no_effect_and_a_warning(reading):
    config = reading("server: { mqtt: { listen: tcp://*:1883 } }", APP)
    assert config.server.mqtt_listen == ()
    assert config.warnings == ("server.yml:1: server.mqtt.listen: has no effect, because server.proto does not contain mqtt",)


def test_a_server_with_addresses_for_mqtt_only_can_serve_clients(reading):
    text = "server: { proto: [ pusher, mqtt ], listen: false, mqtt: { listen: tcp://*:1883 } }\napi: { listen: false }\n"
    assert unserved(reading(text, APP)) == ""


# Values


def test_a_file_without_keys_of_mqtt_has_the_defaults(mqtt):
    assert mqtt("") == Mqtt()


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("listen: http://x", 'listen: found "http://x" (text), allowed: tcp://HOST:PORT or tls://HOST:PORT (HOST may be *), or'),
        ("listen: tls://*:70000", 'listen: found "tls://*:70000" (text), allowed: a port from 0 to 65535'),
        (
            "listen: 1883",
            'listen: found "1883" (a whole number), allowed: tcp://HOST:PORT, tls://HOST:PORT, unix://PATH or false',
        ),
        ("app: b", 'app: found "b" (text), allowed: the id of an app: a'),
        ("ssl: { verify: never }", 'ssl.verify: found "never" (text), allowed: required or optional'),
        ("ssl: { verify: optional }", "ssl: found verify without ca, allowed: both, or none for clients without certificates"),
        ("ssl: { key: a }", "ssl: found key without cert, allowed: both, or none for a self-signed certificate"),
        ("activity-timeout: 86401", "activity-timeout: found"),
        ("session-expiry: 31622401", "session-expiry: found"),
        ("inflight: 0", 'inflight: found "0" (a whole number), allowed: a whole number from 1 to 65535'),
        ("queue: 0", "queue: found"),
        ("topic-aliases: 65536", "topic-aliases: found"),
        ("publishes: -1", "publishes: found"),
        ("event: pusher:x", "event: found"),
        ('event: ""', "event: found"),
        ("proxy-protocol: maybe", "proxy-protocol: found"),
        (
            "listen: tcp://*:1, proxy-protocol: true",
            "proxy-protocol: found true without server.proxies, so every client will be refused, allowed: both, or false",
        ),
    ],
)
def test_a_value_that_cannot_work_is_a_mistake(mistakes, section, line):
    (found,) = mistakes(section)
    assert found.startswith(line)


def test_keep_alive_is_at_most_what_two_bytes_can_hold(mqtt):
    assert mqtt("activity-timeout: 86400").activity_timeout == 65_535


def test_anonymous_clients_publish_only_if_push_is_configured(mqtt):
    assert mqtt("").anonymous_push == set()
    assert mqtt("push:").anonymous_push == set()
    assert mqtt("push: [ public ]").anonymous_push == {"public"}
    assert mqtt("", env={"PUSH1ST_SERVER_MQTT_PUSH": "public"}).anonymous_push == {"public"}


def test_proxies_allow_the_proxy_protocol(mqtt):
    assert mqtt("listen: tcp://*:1, proxy-protocol: true", ", proxies: 10.0.0.0/8").proxy_protocol


# Certificates


def test_tls_addresses_have_the_certificate_of_the_server_even_without_its_tls(mqtt, files):
    key, cert = files("a.key", "a.pem")
    for enable in ("true", "false"):
        ssl = mqtt("listen: tls://*:1", f", ssl: {{ enable: {enable}, key: a.key, cert: a.pem }}").ssl
        assert (ssl.key, ssl.cert) == (key, cert)


def test_tls_addresses_can_have_a_certificate_of_their_own(mqtt, files):
    files("a.key", "a.pem")
    key, cert, ca = files("b.key", "b.pem", "ca.pem")
    ssl = mqtt(
        "listen: tls://*:1, ssl: { key: b.key, cert: b.pem, ca: ca.pem }", ", ssl: { enable: true, key: a.key, cert: a.pem }"
    ).ssl
    assert (ssl.key, ssl.cert, ssl.ca, ssl.verify) == (key, cert, ca, "required")


def test_certificate_of_the_server_without_its_tls_has_no_warning_if_mqtt_uses_it(reading, files):
    files("a.key", "a.pem")
    text = "server: {{ proto: [ pusher, mqtt ], mqtt: {{ listen: {}://*:1 }}, ssl: {{ key: a.key, cert: a.pem }} }}"
    warned = [[line for line in reading(text.format(scheme), APP).warnings if "enable" in line] for scheme in ("tls", "tcp")]
    assert [len(lines) for lines in warned] == [0, 1]


def test_files_of_certificates_must_exist_only_if_a_tls_address_needs_them(mqtt, mistakes):
    mqtt("listen: tcp://*:1, ssl: { key: no.key, cert: no.pem, ca: no.ca }", ", ssl: { key: no.key, cert: no.pem }")
    lines = mistakes("listen: tls://*:1, ssl: { key: no.key, cert: no.pem, ca: no.ca }")
    assert [line.partition(": found")[0] for line in lines] == ["ssl.key", "ssl.cert", "ssl.ca"]
    lines = mistakes("listen: tls://*:1", ", ssl: { key: no.key, cert: no.pem }")
    assert lines == [
        f'server.yml:1: server.ssl.{key}: found "no.{end}" (text), allowed: the path of a file that exists'
        for key, end in (("key", "key"), ("cert", "pem"))
    ]


def test_tls_settings_without_a_tls_address_have_a_warning(reading):
    text = "server: { proto: [ pusher, mqtt ], mqtt: { listen: tcp://*:1, ssl: { ca: ca.pem } } }"
    note = "server.yml:1: server.mqtt.ssl: has no effect without an address tls://… in server.mqtt.listen"
    assert note in reading(text, APP).warnings
