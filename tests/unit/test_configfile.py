"""Files and environment into the configuration: Push1st's own files, each rule, and every way to get it wrong."""

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from push1st import config as plain
from push1st.channels import type_names
from push1st.config import Config, Listen, Networks
from push1st.configfile import APP_VARIABLES, ROOT_VARIABLES, demo, load, with_env
from push1st.configfile import tree as trees
from push1st.configfile.keys import APP, ROOT, Table
from push1st.errors import ConfigError
from push1st.limits import Limits

CONFIGS = Path(__file__).parent / "configs"
APP_TEXT = "a: { key: a-key, secret: a-secret }\n"


@pytest.fixture
def reading(tmp_path):
    """Loads a server.yml of this text, with apps/N.yml for each further text."""

    def read(text="", *apps, env=None):
        (tmp_path / "apps").mkdir(exist_ok=True)
        for number, app in enumerate(apps):
            (tmp_path / "apps" / f"{number}.yml").write_text(app, encoding="utf-8")
        if apps:
            text += "\ncredentials: apps/*.yml\n"
        (tmp_path / "server.yml").write_text(text, encoding="utf-8")
        return load(tmp_path / "server.yml", env or {})

    return read


@pytest.fixture
def app(reading):
    """The one app of a text."""

    def read(text, server="", env=None):
        (found,) = reading(server, text, env=env).apps
        return found

    return read


@pytest.fixture
def wrong(reading):
    """The lines of the error that a configuration gives."""

    def read(text="", *apps, env=None):
        with pytest.raises(ConfigError) as error:
            reading(text, *apps, env=env)
        return str(error.value).split("\n")

    return read


def demo_error(env):
    with pytest.raises(ConfigError) as error:
        demo(env)
    return str(error.value).split("\n")


# Real files


def test_a_configuration_of_push1st_loads():
    config = load(CONFIGS / "push1st" / "server.yml", {})
    server, api = config.server, config.api
    assert server.proto == {"pusher", "mqtt", "websocket"}
    assert [str(listen) for listen in server.listen] == ["tcp://*:6001"]
    assert [str(listen) for listen in api.listen] == ["tcp://*:6002", f"unix://{CONFIGS}/push1st/opt/push1st.api"]
    assert (server.ssl.enable, server.ssl.key, server.ssl.cert) == (False, "", "")
    assert (server.app_path, server.max_payload, api.path, api.keep_alive_timeout) == ("/app/", 65_400, "/apps/", 10)
    assert (server.pusher.path, server.pusher.activity_timeout) == ("/pusher/", 20)
    assert (server.websocket.path, server.websocket.activity_timeout) == ("/ws/", 3600)
    assert server.websocket.push == {"public", "private", "presence"}
    assert not server.pusher.whitelist
    assert not config.demo
    assert [app.id for app in config.apps] == ["app-test", "devices", "4711"]


def test_an_app_of_push1st_loads():
    app = load(CONFIGS / "push1st" / "server.yml", {}).apps[0]
    assert (app.id, app.key, app.secret) == ("app-test", "app-key", "secret")
    assert (app.name, app.enable) == ("Default Application for tests", True)
    assert app.channels == {"public", "private", "presence"}
    assert app.origins == ()
    assert app.client_messages
    assert not app.statistic
    assert app.hook
    assert app.hook.trigger == {"register", "unregister", "join", "leave", "push"}
    assert app.hook.endpoint == ("http://127.0.0.1:8080/hook",)


def test_what_of_push1st_has_no_effect_is_said_once_each():
    assert load(CONFIGS / "push1st" / "server.yml", {}).warnings == (
        "server.yml:9: server.threads: has no effect here; use server.workers",
        "server.yml:46: api.module.smpp: has no effect here",
        "server.yml:29: cluster: does nothing yet; this server works alone",
        "server.yml:8: server.proto: mqtt does nothing yet",
        "apps/default.yml:9: app-test.hook: a hook does nothing yet",
        "apps/devices.yml:1: devices: found no secret, so the app has public channels only",
    )


def test_every_key_loads():
    config = load(CONFIGS / "everything" / "server.yml", {})
    server, api, (one, two) = config.server, config.api, config.apps
    assert server.listen == (Listen("tcp", "::1", 6001), Listen("tcp", "127.0.0.1", 6001))
    assert server.ssl.enable
    assert (server.ssl.key, server.ssl.cert) == tuple(
        str(CONFIGS / "everything" / "tls" / name) for name in ("server.key", "server.pem")
    )
    assert (server.drain, server.workers, server.outbox) == (3, "auto", 65_536)
    assert (server.app_path, server.pusher.path, server.websocket.path) == ("/sockets/", "/pusher/", "/")
    assert (server.max_payload, server.pusher.max_payload, server.websocket.max_payload) == (100_000, 2000, 100_000)
    assert server.proxies == Networks.parse(["10.0.0.0/8"])
    assert server.pusher.whitelist == Networks.parse(["192.168.0.0/16", "::1", "10.1.2.3"])
    assert server.websocket.whitelist == Networks.parse(["10.0.0.0/8"])
    assert (server.pusher.push, server.websocket.push) == ({"presence"}, {"public", "protected"})
    assert api.listen == (Listen("unix", path="/run/push1st/api.sock"),)
    assert (api.path, api.keep_alive_timeout) == ("/api/", 5)
    assert api.trust == Networks.parse(["127.0.0.0/8", "::1", "unix"])
    assert config.broker == "redis://:hunter2@host:6379/0?prefix=push1st"
    assert (config.log.format, config.log.level) == ("json", "warning")
    assert one.channels == {"public", "protected"}
    assert one.origins == ("https://example.com", "*")
    assert (one.client_messages, one.subscription_count, one.authorized_only, one.statistic) == (True,) * 4
    assert one.limits == Limits(*range(1, 12))
    assert one.hook
    assert (one.hook.trigger, one.hook.endpoint) == ({"join"}, ("lua://hook.lua",))
    first, second = one.webhooks
    assert (first.url, first.events, first.filter) == ("https://user:hunter2@example.com/hook", ("channel_occupied",), ("room-",))
    assert (first.headers, first.timeout, first.batch) == ((("Authorization", "Bearer hunter2"),), 2, 3)
    assert second.url == "http://example.com/"
    assert (two.name, two.hook, two.webhooks, two.limits.payload) == ("two", None, (), 100_000)


def test_every_key_without_effect_gives_one_note():
    notes = load(CONFIGS / "everything" / "server.yml", {}).warnings
    for path in (
        *("server.threads", "server.accept", "server.path", "api.threads", "api.accept", "api.module.smpp"),
        *("log.stdout", "log.file", "log.syslog", "log.remote", "broker", "server.workers", "one.hook", "one.webhooks"),
    ):
        assert len([note for note in notes if f" {path}: " in note]) == 1, path
    assert len(notes) == 14


def test_no_note_shows_a_secret():
    assert "hunter2" not in "".join(load(CONFIGS / "everything" / "server.yml", {}).warnings)


def test_a_configuration_without_apps_loads_with_a_warning_and_without_the_demo():
    config = load(CONFIGS / "container" / "server.yml", {})
    assert config.apps == ()
    assert config.warnings == ("server.yml:1: no app is configured, so every client will be refused",)
    assert not config.demo
    assert config.server.proto == {"pusher"}
    assert (config.server.pusher.path, config.server.app_path) == ("/", "/app/")


def test_an_empty_file_is_all_defaults(reading):
    config = reading("# nothing\n")
    assert config.server == Config().server
    assert config.api == Config().api


def test_every_key_of_the_tables_stands_in_the_test_files():
    def missing(table: Table, tree, path=""):
        for name, key in table.items():
            value = tree and tree.keys.get(name)
            if value is None:
                yield f"{path}{name}"
            elif key.table is not None:
                yield from missing(key.table, value, f"{path}{name}.")

    folder = CONFIGS / "everything"
    root = trees.read(folder / "server.yml", "server.yml", [])
    apps = trees.read(folder / "apps" / "all.yml", "all.yml", [])
    assert [*missing(ROOT, root), *missing(APP, apps.keys["one"])] == []


# Push1st's YAML


def test_an_alias_in_a_flow_mapping_merges_and_keys_beside_it_win(reading, tmp_path):
    for name in ("k", "c", "other"):
        (tmp_path / name).touch()
    definition = "ssl: [ &d { enable: true, key: k, cert: c } ]\n"
    ssl = reading(definition + "server: { ssl: { *d } }").server.ssl
    assert (ssl.enable, ssl.key, ssl.cert) == (True, str(tmp_path / "k"), str(tmp_path / "c"))
    for text in ("{ key: other, *d }", "{ *d , key: other }", "{ <<: *d, key: other }", "{ <<: [ { key: other }, *d ] }"):
        assert reading(f"{definition}server: {{ ssl: {text} }}").server.ssl.key == str(tmp_path / "other"), text


def test_an_alias_of_an_empty_section_merges_nothing(reading):
    assert not reading("ssl:\n  - &d\n    # key:\nserver: { ssl: { enable: false, *d } }").server.ssl.enable


def test_empty_keys_and_sections_are_the_same_as_none(reading):
    config = reading("server:\napi: { listen: , ssl: { key: , cert: }, path: ~ }\nlog: { format: }\ncredentials:\ncluster:")
    assert (config.server, config.api, config.log) == (Config().server, Config().api, Config().log)


def test_bare_words_in_a_flow_mapping_are_a_list(reading, app):
    assert reading("server: { websocket: { push: { public, protected } } }").server.websocket.push == {"public", "protected"}
    assert app("a: { key: k, secret: s, origins: { one.com, two.com } }").origins == ("one.com", "two.com")


def test_one_value_is_a_list_of_one(reading, app):
    assert reading("server: { proto: pusher, listen: tcp://*:1 }").server.proto == {"pusher"}
    assert app("a: { key: k, secret: s, hook: { endpoint: http://h/ } }").hook.endpoint == ("http://h/",)


def test_an_empty_endpoint_is_no_endpoint(app):
    assert app("a: { key: k, secret: s, hook: { trigger: [ join ], endpoint: } }").hook.endpoint == ()
    assert app("a:\n  key: k\n  hook:\n    endpoint:\n      -\n").hook.endpoint == ()


@pytest.mark.parametrize("word", ["false", "off", "disable", '"false"'])
def test_listening_can_be_switched_off(reading, word):
    config = reading(f"server: {{ listen: {word} }}\napi: {{ listen: {word} }}")
    assert config.server.listen == config.api.listen == ()


@pytest.mark.parametrize("word", ["false", "disable"])
def test_a_cluster_that_is_switched_off_gives_no_warning(reading, word):
    assert [note for note in reading(f"cluster: {{ listen: {word} }}", APP_TEXT).warnings if "cluster" in note] == []
    assert [note for note in reading("cluster: { listen: udp://*:8001 }", APP_TEXT).warnings if "cluster" in note]


def test_peers_may_be_a_bare_list_or_a_section_of_known_keys(reading, wrong):
    reading("cluster: { family: [ node1, node2 ] }")
    reading("cluster: { family: { adapter: peers, nodes: [ node1 ] } }")
    assert wrong("cluster: { family: { adaptr: peers } }") == [
        "server.yml:1: cluster.family.adaptr: unknown key, did you mean adapter?"
    ]


def test_an_ipv6_address_may_stand_unquoted_in_a_list(reading):
    config = reading('api: { trust: [ 127.0.0.0/8, ::1, unix ], whitelist: [::/0], "path":"/x/" }')
    assert config.api.trust == Config().api.trust
    assert config.api.whitelist == Networks.parse(["::/0"])


def test_whole_numbers_are_the_text_they_are_written_in_where_text_is_wanted(app):
    found = app("0123:\n  { key: 12345, secret: 0o17, name: 1_000 }")
    assert (found.id, found.key, found.secret, found.name) == ("0123", "12345", "0o17", "1_000")


def test_a_file_may_begin_with_a_byte_order_mark(reading):
    assert reading("\ufeffserver: { drain: 3 }").server.drain == 3


# Rules


@pytest.mark.parametrize("text", ["app/", "/app", "app", "/app/", "//app//"])
def test_a_path_gets_its_slashes_whatever_the_file_says(reading, text):
    assert reading(f"server: {{ app-path: {text} }}").server.app_path == "/app/"


def test_a_protocol_that_is_not_named_is_off(reading):
    assert reading("server: { proto: [ websocket ] }").server.proto == {"websocket"}
    assert reading("server: { proto: [] }").server.proto == set()


def test_mqtt_broker_and_workers_warn_that_they_do_nothing_yet(reading):
    text = "server: { proto: [ mqtt ], workers: 2 }\nbroker: redis://h/0\n"
    assert reading(text, APP_TEXT).warnings == (
        "server.yml:1: server.proto: mqtt does nothing yet",
        "server.yml:2: broker: does nothing yet; only memory works",
        "server.yml:1: server.workers: does nothing yet; there is one worker",
    )
    assert reading("server: { workers: 1 }\nbroker: memory", APP_TEXT).warnings == ()


def test_hooks_of_many_apps_give_one_warning(reading):
    text = "{0}: {{ key: {0}, secret: s, hook: {{ trigger: join, endpoint: http://h/ }}, webhooks: [ {{ url: http://h/ }} ] }}\n"
    assert reading("", text.format("a") + text.format("b")).warnings == (
        "apps/0.yml:1: a.hook: a hook does nothing yet",
        "apps/0.yml:1: a.webhooks: a webhook does nothing yet",
    )


def test_an_app_without_a_secret_has_public_channels_only_and_a_warning(reading):
    for text in ("a: { key: k }", 'a: { key: k, secret: "" }', "a:\n  key: k\n  secret:\n"):
        config = reading("", text)
        assert config.apps[0].channels == {"public"}
        assert config.warnings == ("apps/0.yml:1: a: found no secret, so the app has public channels only",)


def test_an_app_has_good_defaults(app):
    found = app("a: { key: k, secret: s }")
    assert (found.name, found.enable, found.channels, found.limits) == ("a", True, set(type_names), Limits())
    assert (found.client_messages, found.subscription_count, found.authorized_only, found.hook) == (False, False, False, None)


def test_an_app_may_be_disabled(app):
    assert not app("a: { key: k, secret: s, enable: false }").enable


def test_a_configured_request_size_raises_the_event_limit(app):
    assert app(APP_TEXT).limits.payload == 10_240
    assert app(APP_TEXT, "server: { max-request-payload: 65400 }").limits.payload == 65_400
    assert app(APP_TEXT, "server: { max-request-payload: 5000 }").limits.payload == 10_240
    limited = "a: { key: k, secret: s, limits: { payload: 100 } }"
    assert app(limited, "server: { max-request-payload: 65400 }").limits.payload == 100


def test_a_protocol_has_the_request_size_of_the_server_unless_it_has_its_own(reading):
    server = reading("server: { max-request-payload: 100, pusher: { max-request-payload: 200 } }").server
    assert (server.pusher.max_payload, server.websocket.max_payload, server.mqtt.max_payload) == (200, 100, 100)
    server = reading("server: { pusher: { max-request-payload: 200 } }").server
    assert (server.pusher.max_payload, server.websocket.max_payload, server.max_payload) == (200, 65_400, 65_400)


def test_zero_is_allowed_where_it_means_unlimited(app, wrong):
    assert app("a: { key: k, secret: s, limits: { members: 0 } }").limits.members == 0
    (line,) = wrong("", "a: { key: k, secret: s, limits: { payload: 0 } }")
    assert line.startswith('apps/0.yml:1: a.limits.payload: found "0" (a whole number), allowed: a whole number from 1')


def test_certificates_are_only_needed_where_they_are_used(reading, wrong, tmp_path):
    reading("server: { ssl: { enable: false, key: no.key, cert: no.pem } }")
    reading("server: { listen: false, ssl: { enable: true, key: no.key, cert: no.pem } }")
    reading("server: { ssl: { enable: true } }")
    lines = wrong(
        "server:\n  ssl:\n    enable: true\n    key: no.key\n    cert: no.pem\napi: { ssl: { enable: true, key: /no } }"
    )
    assert lines == [
        'server.yml:4: server.ssl.key: found "no.key" (text), allowed: the path of a file that is there',
        'server.yml:5: server.ssl.cert: found "no.pem" (text), allowed: the path of a file that is there',
        "server.yml:6: api.ssl: found key without cert, allowed: both, or none for a self-signed certificate",
    ]


def test_a_cert_without_a_key_is_refused(wrong):
    (line,) = wrong("server: { ssl: { enable: true, cert: c } }")
    assert "found cert without key" in line


def test_protocols_that_are_on_need_paths_of_their_own(reading, wrong):
    text = "server: {{ proto: [ {} ], pusher: {{ path: /x/ }}, websocket: {{ path: x }} }}"
    assert wrong(text.format("pusher, websocket")) == [
        'server.yml:1: server.websocket.path: found "/x/", as for pusher, allowed: a path of its own'
    ]
    reading(text.format("pusher"))


def test_a_socket_path_that_is_too_long_for_the_system_is_refused(wrong):
    (line,) = wrong(f"api: {{ listen: unix://{'a' * 105} }}")
    assert "at most 107 bytes" in line


# Files of apps


def test_apps_come_from_patterns_and_paths_beside_the_configuration_in_order(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("sub/2.yml", "sub/1.yml", "x.yml"):
        (tmp_path / name).write_text(f"{Path(name).stem}: {{ key: k{Path(name).stem}, secret: s }}")
    (tmp_path / "server.yml").write_text(f"credentials: [ x.yml, sub/*.yml, sub/1.yml, {tmp_path}/sub/2.yml ]")
    assert [app.id for app in load(tmp_path / "server.yml", {}).apps] == ["x", "1", "2"]


def test_a_pattern_does_not_take_the_configuration_for_apps(tmp_path):
    (tmp_path / "app.yml").write_text(APP_TEXT)
    (tmp_path / "server.yml").write_text("credentials: '*.yml'")
    assert [app.id for app in load(str(tmp_path / "server.yml"), {}).apps] == ["a"]


def test_a_pattern_without_files_warns_and_a_path_without_a_file_is_an_error(reading, wrong):
    assert 'server.yml:1: credentials: "no/*.yml" matches no file' in reading("credentials: [ no/*.yml ]").warnings
    assert wrong("credentials: [ no.yml ]") == [
        'server.yml:1: credentials: found "no.yml", which is not there, allowed: a file, or a pattern of files'
    ]


def test_two_apps_of_one_id_are_an_error_naming_both_places(wrong):
    assert wrong("", "a: { key: k1, secret: s }", "\na: { key: k2, secret: s }") == [
        "apps/1.yml:2: a: found a second app of this id, first at apps/0.yml:1, allowed: each id once"
    ]


def test_two_apps_of_one_key_are_an_error_naming_both_places(wrong):
    assert wrong("", "a: { key: 12, secret: s }", "\nb: { key: '12', secret: s, enable: false }") == [
        "apps/1.yml:2: b.key: found the key of another app, a.key at apps/0.yml:1, allowed: each key once"
    ]


def test_an_app_needs_a_key(wrong):
    assert wrong("", "a: { secret: s }\nb:\n") == [
        "apps/0.yml:1: a.key: found nothing, allowed: the key that clients connect with",
        "apps/0.yml:2: b.key: found nothing, allowed: the key that clients connect with",
    ]


@pytest.mark.parametrize("key", ["a/b", "a b", "a:b", "ä", "'a?b'", "'a%2f'", "x" * 129, '""'])
def test_a_key_fits_into_urls_and_signatures(wrong, key):
    (line,) = wrong("", f"a: {{ key: {key}, secret: s }}")
    assert line.startswith("apps/0.yml:1: a.key: found ")
    assert f'"{key}"' not in line


def test_an_id_fits_into_urls(wrong):
    (line,) = wrong("", "a/b: { key: k, secret: s }")
    assert line.startswith("apps/0.yml:1: a/b: found text, allowed: 1 to 128 visible")


# Errors


def test_all_problems_are_listed_in_order(wrong):
    lines = wrong(
        "server:\n  drain: x\n  pusher: { activity-timeout: 0, path: 5 }\n  proto: [ pusher, http, ws ]\nlog: 1\nbroker: x",
        "a: { key: [], limits: { members: -1 } }",
        "a b: 1\nc: { key: c, secret: [] }",
        "d: [",
    )
    assert [line.split(": found")[0] for line in lines] == [
        "apps/2.yml:1",
        "server.yml:2: server.drain",
        "server.yml:3: server.pusher.activity-timeout",
        "server.yml:3: server.pusher.path",
        "server.yml:4: server.proto",
        "server.yml:4: server.proto",
        "server.yml:5: log",
        "server.yml:6: broker",
        "apps/0.yml:1: a.key",
        "apps/0.yml:1: a.limits.members",
        "apps/1.yml:1: …",
        "apps/1.yml:2: c.secret",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "server:\n  pusher:\n    activity-timeout: x",
            '3: server.pusher.activity-timeout: found "x" (text), allowed: a whole number of seconds from 1 to 86400',
        ),
        (
            "server: { drain: 010 }",
            '1: server.drain: found "010" (a whole number), allowed: a whole number of seconds from 0 to 3600',
        ),
        (
            "server: { drain: 1.5 }",
            '1: server.drain: found "1.5" (a number or date), allowed: a whole number of seconds from 0 to 3600',
        ),
        ('server: { drain: "5" }', '1: server.drain: found "5" (text), allowed: a whole number of seconds from 0 to 3600'),
        (
            "server: { workers: 0 }",
            '1: server.workers: found "0" (a whole number), allowed: a whole number from 1 to 1024, or auto',
        ),
        ("server: { drain: [ 5 ] }", "1: server.drain: found a list, allowed: a whole number of seconds from 0 to 3600"),
        ("server: [ ]", "1: server: found a list, allowed: a section with the keys proto, listen, ssl, app-path, pusher, "),
        ("server: { proto: http }", '1: server.proto: found "http" (text), allowed: pusher or websocket or mqtt'),
        (
            "server: { proto: { a: 1 } }",
            "1: server.proto: found a section of keys, allowed: a list of pusher or websocket or mqtt",
        ),
        (
            "server: { pusher: { push: [ secret ] } }",
            '1: server.pusher.push: found "secret" (text), allowed: public or private or',
        ),
        ("server: { ssl: { enable: maybe } }", '1: server.ssl.enable: found "maybe" (text), allowed: true or false'),
        ('server: { ssl: { enable: "true" } }', '1: server.ssl.enable: found "true" (text), allowed: true or false'),
        (
            "server: { listen: 6001 }",
            '1: server.listen: found "6001" (a whole number), allowed: tcp://HOST:PORT, unix://PATH or false',
        ),
        ("server: { listen: true }", '1: server.listen: found "true" (true or false), allowed: tcp://HOST:PORT, unix://PATH or'),
        ("api:\n  listen:\n    - tcp://*:1\n    - http://x", '4: api.listen: found "http://x" (text), allowed: tcp://HOST:PORT'),
        ("server: { app-path: a b }", '1: server.app-path: found "a b" (text), allowed: a path such as /app/'),
        ("server: { proxies: [ 10.0.0.1/8 ] }", '1: server.proxies: found "10.0.0.1/8" (text), allowed: a network whose address'),
        ("server: { proxies: [ unix ] }", '1: server.proxies: found "unix" (text), allowed: an IP address, or a network'),
        ("api: { interface: other }", '1: api.interface: found "other" (text), allowed: pusher'),
        ("log: { format: xml }", '1: log.format: found "xml" (text), allowed: text or json'),
        ("log: { level: 5 }", '1: log.level: found "5" (a whole number), allowed: debug or info or warning or error'),
        ("log: { file: { verbos: 5 } }", "1: log.file.verbos: unknown key, did you mean verbose?"),
        ("server: { lisen: x }", "1: server.lisen: unknown key, did you mean listen?"),
        ("apis: 1", "1: apis: unknown key, did you mean api?"),
        ("xyz: 1", "1: xyz: unknown key, allowed: server, api, broker, log, credentials, cluster, ssl"),
        ("api: { module: { sms: 1 } }", "1: api.module.sms: unknown key, allowed: smpp"),
        ("server: { listen: !x tcp://*:1 }", '1: server.listen: found "tcp://*:1" (a number or date), allowed: tcp://HOST:PORT'),
        ("server: { app-path: 'a\\tb', proxies: \"\\u0007\" }", "1: server.app-path: found"),
        ("a\n", "1: found text, allowed: a section of keys"),
        ("[ a ]", "1: found a list, allowed: a section of keys"),
        ("{ [ a ]: 1 }", "1: found a list, allowed: text as a key"),
        ("server: { <<: 5 }", "1: server: found a whole number, allowed: a section of keys to merge"),
        ("---\na: 1\n---\nb: 2", "3: found no YAML (but found another document), allowed: YAML"),
        ("server: { listen: *:6001 }", "1: found no YAML ("),
        ("server: {\n", "2: found no YAML ("),
    ],
)
def test_an_error_names_place_path_what_was_found_and_what_is_allowed(wrong, text, line):
    assert wrong(text)[0].startswith("server.yml:" + line)


def test_characters_that_yaml_does_not_allow_are_an_error(wrong):
    assert wrong("a: \x01")[0].startswith("server.yml: found no YAML (characters that are not allowed), allowed: YAML")


def test_a_key_that_stands_twice_is_an_error_and_the_rest_is_still_checked(wrong):
    assert wrong("server:\n  drain: 1\n  drain: 2\n  outbox: x", "a: { key: k, secret: s, key: l }\na: { }") == [
        "server.yml:3: server.drain: found a second time, first at server.yml:2, allowed: each key once",
        "apps/0.yml:1: a.key: found a second time, first at apps/0.yml:1, allowed: each key once",
        "apps/0.yml:2: a: found a second time, first at apps/0.yml:1, allowed: each key once",
        'server.yml:4: server.outbox: found "x" (text), allowed: a whole number of bytes from 4096 to 1073741824',
    ]


def test_the_typing_error_of_push1sts_own_sample_is_named(wrong):
    assert wrong("", "app: { enbale: true, key: k, secret: s }") == [
        "apps/0.yml:1: app.enbale: unknown key, did you mean enable?"
    ]


def test_text_in_errors_is_short_and_printable(wrong):
    (line,) = wrong('server: { drain: "' + "a\\u202e\\x07" + "b" * 1000 + '" }')
    assert '"a\\u202e\\u0007bbb' in line
    assert len(line) < 200
    (line,) = wrong('? "a\\nb"\n: 1')
    assert line.startswith("server.yml:1: …: unknown key")


@pytest.mark.parametrize(
    "text",
    [
        "a: { key: k, secret: [ hunter2 ] }",
        "a: { key: k, secret: { hunter2: 1 } }",
        'a: { key: k, secret: "hunter2\\0" }',
        "a: { key: k, secret: 2.5 , secret hunter2 }",
        "a: { key: k, secret: *hunter2 }",
        "a: { key: k, secret: !hunter2!x y }",
        "a: { key: k, secret: 'hunter2 }",
        "a: { key: k, secret: @hunter2 }",
        "a:\n  key: k\n  secret:hunter2\n",
        "a:\n  key: k\n    secret:hunter2\n",
        "a: hunter2",
        "hunter2",
        "a: { key: k, secret: s, hook: { endpoint: ftp://u:hunter2@h/ } }",
        "a: { key: k, secret: s, webhooks: [ { url: ftp://u:hunter2@h/ } ] }",
        "a: { key: k, secret: s, webhooks: [ hunter2 ] }",
        "a: { key: k, secret: s, webhooks: [ { url: http://h/, headers: { Authorization: [ hunter2 ] } } ] }",
        "a: { key: k, secret: s, webhooks: [ { url: http://h/, headers: hunter2 } ] }",
    ],
)
def test_a_secret_never_stands_in_an_error(wrong, text):
    assert "hunter2" not in "".join(wrong("", text))


def test_a_broker_url_never_stands_in_an_error(wrong):
    assert "hunter2" not in "".join(wrong("broker: http://:hunter2@h/"))
    assert "hunter2" not in "".join(wrong("", env={"PUSH1ST_BROKER": "http://:hunter2@h/"}))


# Bounds


def test_a_file_that_is_not_there_or_not_readable_is_an_error(tmp_path):
    for path in (tmp_path / "no.yml", tmp_path, str(tmp_path / "a\0b")):
        with pytest.raises(ConfigError, match="cannot be read"):
            load(path, {})


def test_a_file_is_at_most_a_mebibyte(reading, wrong):
    reading("#" * (trees.MOST_BYTES - 1) + "\n")
    (line,) = wrong("#" * trees.MOST_BYTES + "\n")
    assert line == "server.yml: found more than 1048576 bytes, allowed: at most that many"


def test_a_file_is_utf_8(tmp_path):
    (tmp_path / "server.yml").write_bytes(b"server:\n  drain: \xff\n")
    with pytest.raises(ConfigError, match=r"server\.yml:2: found bytes that are not UTF-8"):
        load(tmp_path / "server.yml", {})


def test_aliases_cannot_make_a_file_mean_a_billion_values(wrong):
    bomb = "x0: &x0 [ a, a, a, a, a, a, a, a, a ]\n" + "".join(
        f"x{n}: &x{n} [ {', '.join([f'*x{n - 1}'] * 9)} ]\n" for n in range(1, 12)
    )
    assert any("aliases that repeat too much" in line for line in wrong(bomb))
    merges = "x0: &x0 { a: 1 }\n" + "".join(f"x{n}: &x{n} {{ <<: [ {', '.join([f'*x{n - 1}'] * 9)} ] }}\n" for n in range(1, 12))
    assert any("aliases that repeat too much" in line for line in wrong(merges))


@pytest.mark.parametrize("text", ["a: &a [ *a ]", "a: &a { b: *a }", "a: &a { <<: *a }", "a: &a { *a }"])
def test_an_alias_to_itself_is_an_error(wrong, text):
    assert any("aliases that repeat too much" in line for line in wrong(text))


@pytest.mark.parametrize("text", ["[" * 100_000, "a: " + "[" * 1000 + "]" * 1000, "{a: " * 1000 + "}" * 1000])
def test_deep_nesting_is_an_error(wrong, text):
    (line,) = wrong(text)
    assert "more than 20 levels" in line


def test_an_escape_that_breaks_the_parser_is_an_error(wrong):
    assert "found no YAML" in wrong('a: "\\UFFFFFFFF"')[0]


def test_many_apps_in_one_file_load(reading):
    assert len(reading("", "".join(f"a{n}: {{ key: k{n}, secret: s }}\n" for n in range(3000))).apps) == 3000


# Environment


def test_the_environment_stands_above_the_file(reading):
    env = {
        "PUSH1ST_SERVER_LISTEN": "tcp://*:1, unix://x.sock",
        "PUSH1ST_SERVER_DRAIN": "7",
        "PUSH1ST_SERVER_PUSHER_ACTIVITY_TIMEOUT": "33",
        "PUSH1ST_SERVER_PROTO": "pusher",
        "PUSH1ST_SERVER_WORKERS": "auto",
        "PUSH1ST_SERVER_SSL_ENABLE": "yes",
        "PUSH1ST_API_TRUST": "10.0.0.0/8,::1,unix",
        "PUSH1ST_API_LISTEN": "false",
        "PUSH1ST_BROKER": "memory",
        "PUSH1ST_LOG_FORMAT": "json",
        "PUSH1ST_SERVER_MAX_REQUEST_PAYLOAD": "50000",
    }
    config = reading("server: { drain: 3, outbox: 5000, pusher: { path: /p/ } }\nlog:\nbroker: redis://h/", APP_TEXT, env=env)
    server = config.server
    assert server.listen[0] == Listen("tcp", "", 1)
    assert server.listen[1].path.startswith("/")
    assert server.listen[1].path.endswith("/x.sock")
    assert (server.drain, server.outbox, server.workers, server.ssl.enable) == (7, 5000, "auto", True)
    assert (server.pusher.activity_timeout, server.pusher.path, server.proto) == (33, "/p/", {"pusher"})
    assert config.api.trust == Networks.parse(["10.0.0.0/8", "::1", "unix"])
    assert (config.api.listen, config.broker, config.log.format) == ((), "memory", "json")
    assert (server.websocket.max_payload, config.apps[0].limits.payload) == (50_000, 50_000)


def test_an_empty_variable_is_not_set_and_brackets_are_an_empty_list(reading):
    env = {"PUSH1ST_API_TRUST": "[]", "PUSH1ST_SERVER_LISTEN": "", "PUSH1ST_APP_ID": "", "PUSH1ST_APP_SECRET": ""}
    config = reading("", APP_TEXT, env=env)
    assert not config.api.trust
    assert config.server.listen == Config().server.listen
    assert config.apps[0].secret == "a-secret"


def test_an_error_in_the_environment_names_the_variable(wrong):
    assert wrong("", env={"PUSH1ST_SERVER_DRAIN": "x", "PUSH1ST_API_TRUST": "x", "PUSH1ST_SERVER_LISEN": "y"}) == [
        "PUSH1ST_SERVER_LISEN: unknown variable, did you mean PUSH1ST_SERVER_LISTEN?",
        'PUSH1ST_API_TRUST: api.trust: found "x" (text), allowed: an IP address, or a network such as 10.0.0.0/8 or fd00::/8',
        'PUSH1ST_SERVER_DRAIN: server.drain: found "x" (text), allowed: a whole number of seconds from 0 to 3600',
    ]


def test_the_variables_of_others_are_let_be():
    config = demo(
        {
            "PUSH1ST_CONFIG": "/etc/push1st/server.yml",
            "PUSH1ST_SERVICE_HOST": "10.0.0.1",
            "PUSH1ST_SERVICE_PORT": "6001",
            "PUSH1ST_SERVICE_PORT_HTTP": "6001",
            "PUSH1ST_PORT": "tcp://10.0.0.1:6001",
            "PUSH1ST_PORT_6001_TCP": "tcp://10.0.0.1:6001",
            "PUSH1ST_PORT_6001_TCP_ADDR": "10.0.0.1",
            "PUSH1ST_API_SERVICE_HOST": "10.0.0.1",
            "PUSH1ST_API_PORT": "tcp://10.0.0.1:6002",
            "PATH": "/bin",
            "push1st_x": "y",
        }
    )
    assert config == plain.demo()


def test_a_port_of_the_users_own_is_an_unknown_variable():
    assert demo_error({"PUSH1ST_PORT": "6001"})[0].startswith("PUSH1ST_PORT: unknown variable, did you mean PUSH1ST_")


def test_an_app_may_come_from_the_environment_alone(reading):
    env = {
        "PUSH1ST_APP_ID": "mine",
        "PUSH1ST_APP_KEY": "my-key",
        "PUSH1ST_APP_SECRET": "my,secret",
        "PUSH1ST_APP_NAME": "Mine",
        "PUSH1ST_APP_ORIGINS": "https://one.com, https://two.com",
        "PUSH1ST_APP_CLIENT_MESSAGES": "true",
        "PUSH1ST_APP_LIMITS_MEMBERS": "500",
        "PUSH1ST_APP_CHANNELS": "public,private",
    }
    config = reading("", APP_TEXT, env=env)
    other, mine = config.apps
    assert other.id == "a"
    assert (mine.id, mine.key, mine.secret, mine.name) == ("mine", "my-key", "my,secret", "Mine")
    assert mine.origins == ("https://one.com", "https://two.com")
    assert (mine.client_messages, mine.limits.members, mine.channels) == (True, 500, {"public", "private"})


def test_the_environment_changes_the_app_of_its_id_or_the_only_app(reading, wrong):
    assert reading("", APP_TEXT, env={"PUSH1ST_APP_SECRET": "other"}).apps[0].secret == "other"
    two = APP_TEXT + "b: { key: b-key, secret: b-secret, limits: { members: 5, batch: 6 } }"
    _, b = reading("", two, env={"PUSH1ST_APP_ID": "b", "PUSH1ST_APP_LIMITS_MEMBERS": "7"}).apps
    assert (b.key, b.limits.members, b.limits.batch) == ("b-key", 7, 6)
    assert wrong("", two, env={"PUSH1ST_APP_SECRET": "hunter2"}) == [
        "PUSH1ST_APP_SECRET: found apps: a, b, allowed: exactly one, or PUSH1ST_APP_ID to say which"
    ]
    assert wrong("credentials: []", env={"PUSH1ST_APP_SECRET": "hunter2"}) == [
        "PUSH1ST_APP_SECRET: found apps: none, allowed: exactly one, or PUSH1ST_APP_ID to say which"
    ]


def test_an_app_from_the_environment_is_checked_as_any_other(wrong):
    assert wrong("", APP_TEXT, env={"PUSH1ST_APP_ID": "b"}) == [
        "PUSH1ST_APP_ID: b.key: found nothing, allowed: the key that clients connect with"
    ]
    (line,) = wrong("", APP_TEXT, env={"PUSH1ST_APP_ID": "b", "PUSH1ST_APP_KEY": "a-key"})
    assert line == "PUSH1ST_APP_KEY: b.key: found the key of another app, a.key at apps/0.yml:1, allowed: each key once"
    (line,) = wrong("", APP_TEXT, env={"PUSH1ST_APP_ID": "b/c"})
    assert line.startswith("PUSH1ST_APP_ID: id: found text, allowed: 1 to 128")
    (line,) = wrong("", APP_TEXT, env={"PUSH1ST_APP_LIMITS_MEMBERS": "x"})
    assert line.startswith('PUSH1ST_APP_LIMITS_MEMBERS: a.limits.members: found "x" (text), allowed: a whole number')


def test_a_secret_of_the_environment_never_stands_in_an_error(wrong):
    for name in ("PUSH1ST_APP_SECRET", "PUSH1ST_APP_SECRT", "PUSH1ST_APP_KEY", "PUSH1ST_APP_HOOK_ENDPOINT"):
        assert "hunter2" not in "".join(wrong("", APP_TEXT, env={name: "hunter2 \n"}))
    assert "hunter2" not in "".join(wrong("", APP_TEXT, env={"PUSH1ST_APP_SECRET": "hunter2", "PUSH1ST_APP_ENABLE": "x"}))


def test_the_environment_stands_above_the_demo_too():
    config = demo({"PUSH1ST_SERVER_LISTEN": "tcp://127.0.0.1:0", "PUSH1ST_APP_ORIGINS": "x.com"})
    assert config.server.listen == (Listen("tcp", "127.0.0.1", 0),)
    assert config.api == plain.demo().api
    assert (config.apps[0].key, config.apps[0].origins, config.demo) == ("app-key", ("x.com",), True)
    assert with_env(plain.demo(), {}) == demo({}) == plain.demo()


def test_an_app_of_the_environment_takes_the_place_of_the_demo():
    config = demo({"PUSH1ST_APP_ID": "mine", "PUSH1ST_APP_KEY": "k", "PUSH1ST_APP_SECRET": "s"})
    assert [app.id for app in config.apps] == ["mine"]
    assert not config.demo
    assert config.server == Config().server


def test_the_demo_with_another_secret_is_no_demo():
    assert not demo({"PUSH1ST_APP_SECRET": "other"}).demo


def test_a_demo_that_other_machines_reach_is_warned_of():
    assert "secret everyone knows" in demo({"PUSH1ST_SERVER_LISTEN": "tcp://*:6001"}).warnings[0]
    assert demo({"PUSH1ST_SERVER_LISTEN": "tcp://[::1]:6001,unix:///run/x"}).warnings == ()
    assert demo({"PUSH1ST_SERVER_LISTEN": "tcp://*:6001", "PUSH1ST_APP_SECRET": "other"}).warnings == ()


def test_relative_paths_of_the_demo_start_at_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert demo({"PUSH1ST_API_LISTEN": "unix://x"}).api.listen[0].path == os.path.join(Path.cwd(), "x")


def test_the_environment_above_a_configuration_keeps_its_warnings(reading):
    config = reading("server: { threads: 5, workers: 2 }", "a: { key: k }")
    assert with_env(config, {"PUSH1ST_SERVER_DRAIN": "5"}).warnings[:2] == config.warnings[:2]


def test_each_variable_has_one_meaning():
    names = [*ROOT_VARIABLES, *APP_VARIABLES]
    assert len(set(names)) == len(names)
    assert "PUSH1ST_APP_CLIENT_MESSAGES" in names
    assert not [name for name in names if "THREADS" in name or "CLUSTER" in name]


# Whatever stands there, the answer is a configuration or a ConfigError


def places(table: Table, *path):
    for name, key in table.items():
        yield (*path, name)
        yield from places(key.table, *path, name) if key.table else ()


PLACES = [*places(ROOT), *(("app", *path) for path in places(APP)), ("app", "webhooks", "url"), ("app", "webhooks", "headers")]
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates() | st.binary(max_size=5)
scalars |= st.sampled_from(
    ["tcp://*:1", "unix://x", "::1", "10.0.0.0/8", "auto", "pusher", "public", "false", "/a/", "http://x/"]
)
structures = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("any")


def attempt(folder, server, app):
    (folder / "server.yml").write_bytes(server)
    (folder / "app.yml").write_bytes(app)
    try:
        assert isinstance(load(folder / "server.yml", {}), Config)
    except ConfigError as error:
        assert all(line.startswith(("server.yml", "app.yml")) for line in str(error).split("\n")), error


@given(place=st.sampled_from(PLACES), value=structures)
def test_any_value_under_any_key_gives_a_configuration_or_a_list_of_errors(folder, place, value):
    for key in reversed(place):
        value = {key: value}
    server, app = ("credentials: app.yml", yaml.safe_dump(value)) if place[0] == "app" else (yaml.safe_dump(value), "")
    attempt(folder, server.encode(), app.encode())


@given(place=st.sampled_from(PLACES), text=st.text(alphabet="ab:*&!{}[],-#'\"\\\n <~?|>@%1.", max_size=40))
def test_any_text_under_any_key_gives_a_configuration_or_a_list_of_errors(folder, place, text):
    value = "".join(f"{'  ' * depth}{key}:\n" for depth, key in enumerate(place)).rstrip("\n") + " " + text
    server, app = ("credentials: app.yml", value) if place[0] == "app" else (value, "")
    attempt(folder, server.encode(), app.encode())


@given(st.binary(max_size=200))
def test_any_bytes_give_a_configuration_or_a_list_of_errors(folder, data):
    attempt(folder, data, b"")
    attempt(folder, b"credentials: app.yml", data)


@given(st.dictionaries(st.sampled_from([*ROOT_VARIABLES, *APP_VARIABLES, "PUSH1ST_APP_ID"]), st.text(max_size=20), max_size=5))
def test_any_environment_gives_a_configuration_or_a_list_of_errors(env):
    try:
        assert isinstance(demo(env), Config)
    except ConfigError as error:
        assert all(line.startswith("PUSH1ST_") for line in str(error).split("\n"))
