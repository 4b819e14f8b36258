"""Configuration files of the original Push1st, and the forms that they allow."""

import re
import sys
from pathlib import Path

import msgspec
import pytest

from push1st.channels import type_names
from push1st.config import tree
from push1st.config.addresses import Listen, Networks
from push1st.config.history import HistoryBounds, HistorySection, Resume
from push1st.config.load import BROKER_NOTE, CLUSTER_NOTE, load
from push1st.config.model import Config, HooksConfig, MetricsConfig, SseConfig, unserved
from push1st.config.mqtt import Mqtt, MqttSsl
from push1st.config.schema import Table
from push1st.config.tables import APP, ROOT
from push1st.errors import ConfigError
from push1st.limits import Limits

CONFIGS = Path(__file__).parent / "examples"
APP_TEXT = "a: { key: a-key, secret: a-secret }\n"


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


def test_each_key_of_push1st_without_effect_is_noted_once():
    assert load(CONFIGS / "push1st" / "server.yml", {}).warnings == (
        "server.yml:9: server.threads: has no effect here; use server.workers",
        "server.yml:46: api.module.smpp: has no effect here: there is no SMPP gateway",
        f"server.yml:29: cluster: {CLUSTER_NOTE}{BROKER_NOTE}",
        "apps/devices.yml:1: devices: found no secret, so the app has public channels only",
    )


def test_a_configuration_of_the_package_of_push1st_loads():
    config = load(CONFIGS / "package" / "server.yml", {})
    server = config.server
    assert [server.pusher.activity_timeout, server.websocket.activity_timeout] == [120, 3600]
    assert config.api.keep_alive_timeout == 10
    assert [(app.id, app.enable) for app in config.apps] == [("app-test", True)]
    timeout = "0 means the default here: 120 seconds for Pusher, 3600 for other protocols"
    assert config.warnings == (
        "apps/smpp.yml:1: smpp-test: has no effect here: it is an app of the SMPP gateway, which this server does not have",
        "server.yml:9: server.threads: has no effect here; use server.workers",
        f"server.yml:16: server.pusher.activity-timeout: {timeout}",
        f"server.yml:20: server.websocket.activity-timeout: {timeout}",
        "server.yml:28: server.smpp: has no effect here: there is no SMPP gateway",
        "server.yml:38: api.keep-alive-timeout: 0 means the default here: 10 seconds",
        "server.yml:39: api.interface: push1st has no effect here: there is one interface",
        "server.yml:44: log.syslog: has no effect here; see log.format and log.level",
        "server.yml:45: log.remote: has no effect here; see log.format and log.level",
        f"apps/app.yml:2: app-test.enbale: {APP['enbale'].note}",
    )


@pytest.mark.parametrize("channels", ["[ smpp, public ]", "[ ]"])
def test_only_an_app_of_the_smpp_gateway_alone_is_left_out(reading, wrong, channels):
    text = f"a: {{ key: k, secret: s, channels: {channels} }}"
    if "smpp" in channels:
        assert "a.channels: found" in wrong("", text)[0]
    else:
        assert [app.id for app in reading("", text).apps] == ["a"]


def test_an_app_is_disabled_by_enable_and_not_by_its_misspelling(app):
    assert app("a: { key: k, secret: s, enbale: false }").enable
    assert not app("a: { key: k, secret: s, enbale: true, enable: false }").enable


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
    assert server.pusher.push == {"presence"}
    assert server.websocket.push == {"public", "protected"}
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
    assert one.hook.trigger == {"join"}
    assert one.hook.endpoint == ("lua://hook.lua",)
    first, second = one.webhooks
    assert (first.url, first.events, first.filter) == ("https://user:hunter2@example.com/hook", ("channel_occupied",), ("room-",))
    assert (first.headers, first.timeout, first.batch) == ((("Authorization", "Bearer hunter2"),), 2, 3)
    assert (first.concurrency, first.format) == (4, "pusher")
    assert (second.url, second.batch, second.events) == ("http://example.com/", 1, ())
    assert one.hook.sign
    (ask,) = one.authorize
    assert (ask.url, ask.on) == ("https://user:hunter2@example.com/authorize", frozenset({"connect", "subscribe"}))
    assert (ask.filter, ask.timeout, ask.cache, ask.concurrency) == (("private-*-chat",), 1, 60, 2)
    assert config.hooks == HooksConfig(events=1000, bytes=1_000_000, folder=str(CONFIGS / "everything" / "hooks"))
    assert one.history == (
        HistorySection(filter=("chat-*", "private-orders-"), size=200, ttl=600, client_events=False, rewind=10),
        HistorySection(),
    )
    assert one.resume == Resume(seconds=60, acknowledge=5, pages=1000)
    assert server.history == HistoryBounds(bytes=1_000_000, channels=50)
    assert server.sse == SseConfig(path="/events/", whitelist=Networks.parse(["10.0.0.0/8"]))
    assert server.mqtt == Mqtt(
        listen=(
            Listen("tcp", "127.0.0.1", 1883),
            Listen("tls", port=8883),
            Listen("unix", path=str(CONFIGS / "everything" / "run" / "mqtt.sock")),
        ),
        ssl=MqttSsl(
            **{name: str(CONFIGS / "everything" / "tls" / f"{file}.pem") for name, file in (("cert", "mqtt"), ("ca", "ca"))},
            key=str(CONFIGS / "everything" / "tls" / "mqtt.key"),
            verify="optional",
        ),
        app="two",
        path="/devices/",
        activity_timeout=65_535,
        push=frozenset({"public"}),
        anonymous_push=frozenset({"public"}),
        whitelist=Networks.parse(["10.0.0.0/8"]),
        max_payload=3000,
        session_expiry=60,
        inflight=5,
        queue=6,
        topic_aliases=7,
        publishes=0,
        event="measured",
        proxy_protocol=True,
    )
    assert (two.history, two.resume) == ((), Resume())
    assert (two.name, two.hook, two.webhooks, two.limits.payload) == ("two", None, (), 100_000)


def test_every_key_without_effect_gives_one_note():
    notes = load(CONFIGS / "everything" / "server.yml", {}).warnings
    for path in (
        *("server.threads", "server.accept", "server.path", "server.smpp", "api.threads", "api.accept", "api.module.smpp"),
        *("log.stdout", "log.file", "log.syslog", "log.remote", "one.hook", "one.enbale", "server.mqtt.listen"),
    ):
        assert len([note for note in notes if f" {path}: " in note]) == 1, path
    assert len(notes) == 14


def test_no_note_shows_a_secret():
    assert "hunter2" not in "".join(load(CONFIGS / "everything" / "server.yml", {}).warnings)


def test_a_configuration_without_apps_loads_with_a_warning_and_without_the_demo():
    config = load(CONFIGS / "container" / "server.yml", {})
    assert config.apps == ()
    assert config.warnings == (f"server.yml:1: {unserved(config)}",)
    assert not config.demo
    assert config.server.proto == {"pusher"}
    assert (config.server.pusher.path, config.server.app_path) == ("/", "/app/")


def test_an_empty_file_is_all_defaults(reading):
    config = reading("# nothing\n")
    assert config.server == Config().server
    assert msgspec.structs.replace(config.api, listen=Config().api.listen) == Config().api


@pytest.mark.parametrize("text", ["# nothing\n", "api:\n", "server: { listen: tcp://*:1 }\n"])
def test_without_a_section_api_the_api_is_for_this_machine_only(reading, text):
    assert [str(one) for one in reading(text).api.listen] == ["tcp://127.0.0.1:6002"]


@pytest.mark.parametrize(("text", "env"), [("api: { trust: 10.0.0.0/8 }\n", {}), ("", {"PUSH1ST_API_TRUST": "10.0.0.0/8"})])
def test_a_section_api_without_addresses_listens_on_all(reading, text, env):
    assert [str(one) for one in reading(text, env=env).api.listen] == ["tcp://*:6002"]


def test_test_files_contain_every_key_of_the_tables():
    def missing(table: Table, tree, path=""):
        for name, key in table.items():
            value = tree and tree.keys.get(name)
            if value is None:
                yield f"{path}{name}"
            elif key.table is not None:
                yield from missing(key.table, value, f"{path}{name}.")

    folder = CONFIGS / "everything"
    root = tree.read(folder / "server.yml", "server.yml", [])
    apps = tree.read(folder / "apps" / "all.yml", "all.yml", [])
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


def test_no_broker_note_if_a_broker_is_configured(reading):
    (note,) = [one for one in reading("broker: redis://h\ncluster: { family: [ a ] }", APP_TEXT).warnings if "cluster" in one]
    assert note.endswith(CLUSTER_NOTE)


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


def test_number_is_read_as_the_text_it_was_written_in_where_text_is_expected(app):
    found = app("0123:\n  { key: 12345, secret: 0o17, name: 1_000 }")
    assert (found.id, found.key, found.secret, found.name) == ("0123", "12345", "0o17", "1_000")


def test_a_file_may_begin_with_a_byte_order_mark(reading):
    assert reading("\ufeffserver: { drain: 3 }").server.drain == 3


# Rules


@pytest.mark.parametrize("text", ["app/", "/app", "app", "/app/", "//app//"])
def test_path_gets_its_slashes_for_any_form_in_the_file(reading, text):
    assert reading(f"server: {{ app-path: {text} }}").server.app_path == "/app/"


def test_a_protocol_that_is_not_named_is_off(reading):
    assert reading("server: { proto: [ websocket ] }").server.proto == {"websocket"}
    assert reading("server: { proto: [] }").server.proto == set()


def test_certificate_without_enable_has_a_warning(reading):
    text = "server: { ssl: { cert: a.pem, key: a.key } }\n"
    assert reading(text, APP_TEXT).warnings == (
        "server.yml:1: server.ssl: cert and key have no effect without enable: true, so clients connect without TLS",
    )
    assert reading(text.replace("cert", "enable: false, cert"), APP_TEXT).warnings == ()


@pytest.mark.parametrize("broker", ["memory", "embedded:///usr/bin/valkey-server", "redis://10.0.0.1/0"])
def test_several_workers_and_what_connects_them_need_no_warning(reading, broker):
    config = reading(f"server: {{ workers: 2 }}\nbroker: {broker}", APP_TEXT)
    assert config.warnings == ()
    assert config.broker == broker


def test_an_embedded_broker_has_the_absolute_path_of_a_program(reading):
    with pytest.raises(ConfigError, match="embedded:///PATH"):
        reading("broker: embedded://valkey-server", APP_TEXT)


def test_a_hook_in_lua_without_lupa_is_noted_with_the_command_that_installs_it_here(reading, monkeypatch):
    monkeypatch.setitem(sys.modules, "lupa", None)
    text = "a: { key: k, secret: s, hook: { trigger: join, endpoint: lua://no.lua } }\n"
    place = "apps/0.yml:1: a.hook"
    note = f"{place}: hooks in Lua need the package lupa, which is not installed: {sys.executable} -m pip install 'lupa<3'"
    assert note in reading("", text).warnings


def test_an_origin_that_no_browser_sends_is_noted(reading):
    text = "a: { key: k, secret: s, origins: [ https://shop.example, 'https://*.shop.example', https://shop.example:443 ] }\n"
    place, hint = "apps/0.yml:1: a.origins", "such as https://shop.example, and the only pattern is *"
    assert reading("", text).warnings == (
        f'{place}: found "https://*.shop.example", but browsers send one whole origin, {hint}',
        f'{place}: found "https://shop.example:443", but browsers send "https://shop.example"',
    )


def test_hook_in_lua_without_its_file_is_noted(reading):
    text = "a: { key: k, secret: s, hook: { trigger: join, endpoint: lua://no.lua } }\n"
    assert reading("", text).warnings == (
        'apps/0.yml:1: a.hook: found "lua://no.lua", but this file does not exist, so the hook receives no events',
    )


def test_hooks_that_can_work_give_no_warning(reading):
    text = "a: { key: k, secret: s, hook: { trigger: join, endpoint: http://h/ }, webhooks: [ { url: http://h/ } ] }\n"
    assert reading("", text).warnings == ()


@pytest.mark.parametrize(
    ("webhook", "says"),
    [
        ("{ events: [ client_event ] }", "a.webhooks.url: found nothing"),
        ("{ url: http://h/, events: [ join ] }", "a.webhooks.events: found join, allowed: channel_occupied or"),
        ("{ url: http://h/, format: push1st, events: [ member_added ] }", "found member_added, allowed: register or"),
        ("{ url: http://h/, format: push1st, batch: 2 }", "a.webhooks.batch: found 2, allowed: 1"),
        ("{ url: lua://a.lua }", "allowed: that format, which is what Lua is called with"),
        ("{ url: 'py://a-b:c' }", "a.webhooks.url: found text, allowed: http://…"),
        ("{ url: http://h/, headers: { 'a b': c } }", "allowed: names such as X-Token"),
    ],
)
def test_a_webhook_that_cannot_work_is_a_mistake(reading, webhook, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        reading("", f"a: {{ key: k, secret: s, webhooks: [ {webhook} ] }}\n")


@pytest.mark.parametrize(
    "authorize", ["{ on: connect }", "{ url: http://h/ }", "{ url: http://h/, on: join }", "{ url: lua://x, on: publish }"]
)
def test_authorize_without_endpoint_or_event_is_an_error(reading, authorize):
    with pytest.raises(ConfigError, match=r"a\.authorize"):
        reading("", f"a: {{ key: k, secret: s, authorize: {authorize} }}\n")


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


def test_zero_is_allowed_for_limits_that_it_switches_off(app, wrong):
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
        'server.yml:4: server.ssl.key: found "no.key" (text), allowed: the path of a file that exists',
        'server.yml:5: server.ssl.cert: found "no.pem" (text), allowed: the path of a file that exists',
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
    for path in ("no.yml", "apps", "."):
        assert wrong(f"credentials: [ {path} ]") == [
            f'server.yml:1: credentials: found "{path}", which is no file, allowed: a file, or a pattern of files'
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


# Metrics


def test_metrics_have_no_address_and_no_token_by_default(reading):
    assert reading("").metrics == MetricsConfig()


def test_metrics_have_addresses_and_a_token(reading, tmp_path):
    metrics = reading("metrics: { listen: [ tcp://*:9601, unix://run/metrics ], token: 0123456789abcdef }").metrics
    assert [str(one) for one in metrics.listen] == ["tcp://*:9601", f"unix://{tmp_path}/run/metrics"]
    assert metrics.token == "0123456789abcdef"
    assert reading("metrics: { listen: false }").metrics.listen == ()


def test_variables_set_the_metrics(reading):
    env = {"PUSH1ST_METRICS_LISTEN": "tcp://127.0.0.1:9601", "PUSH1ST_METRICS_TOKEN": "0123456789abcdef"}
    metrics = reading("", env=env).metrics
    assert [str(one) for one in metrics.listen] == ["tcp://127.0.0.1:9601"]
    assert metrics.token == "0123456789abcdef"


def test_the_token_is_hidden_in_a_printed_configuration(reading):
    assert "0123456789abcdef" not in repr(reading("metrics: { token: 0123456789abcdef }"))
