"""The effective values and the origins of all keys."""

from pathlib import Path
from typing import Any

import msgspec

from push1st.config.load import demo, load
from push1st.config.model import Config
from push1st.config.schema import Table
from push1st.config.settings import MAX_APPS, app_settings, app_sources, settings
from push1st.config.tables import ROOT

EVERYTHING = Path(__file__).parent / "examples" / "everything" / "server.yml"


def found(config: Config) -> dict[str, tuple[Any, str]]:
    return {one.key: (one.value, one.origin) for one in settings(config)}


def test_the_origin_is_a_line_a_variable_or_the_default(reading):
    keys = found(reading("server:\n  drain: 3\n  outbox: 5000\nlog: { level: }", env={"PUSH1ST_SERVER_OUTBOX": "6000"}))
    assert keys["server.drain"] == (3, "server.yml:2")
    assert keys["server.outbox"] == (6000, "PUSH1ST_SERVER_OUTBOX")
    assert keys["log.level"] == ("info", "default")
    assert keys["server.pusher.activity-timeout"] == (120, "default")


def test_every_key_that_has_an_effect_is_listed_once():
    def leaves(table: Table, above: str = ""):
        for name, key in table.items():
            if not key.note and not key.dropped:
                yield from [above + name] if key.table is None else leaves(key.table, f"{above}{name}.")

    assert [one.key for one in settings(Config())] == list(leaves(ROOT))


def test_values_are_those_that_a_file_may_contain(reading):
    keys = found(reading("server: { listen: [ 'tcp://*:1' ], proxies: [ 10.0.0.0/8 ], proto: [ sse, pusher ] }"))
    assert keys["server.listen"][0] == ["tcp://*:1"]
    assert keys["server.proxies"][0] == ["10.0.0.0/8"]
    assert keys["server.proto"][0] == ["pusher", "sse"]
    assert keys["api.trust"][0] == ["127.0.0.0/8", "::1/128", "unix"]


def test_a_secret_is_only_its_length(reading):
    config = reading("broker: redis://me:hunter2@host/0", "shop: { key: k, secret: hunter2-hunter2 }")
    assert found(config)["broker"][0] == "server host:6379, user me, with a password, database 0, prefix push1st"
    keys = {one.key: (one.value, one.origin) for one in app_settings(config)["shop"]}
    assert keys == {"key": ("k", "apps/0.yml:1"), "secret": ("set, 15 bytes", "apps/0.yml:1")}


def test_the_length_of_each_secret_is_listed(reading):
    config = reading("", "shop: { key: k, secret: [ hunter2-hunter2, hunter2-hunter2-hunter2 ] }")
    assert app_settings(config)["shop"][1].value == "set, 15 and 23 bytes"


def test_no_value_contains_a_secret():
    config = load(EVERYTHING, {})
    text = repr([msgspec.to_builtins(one) for one in settings(config)]) + repr(msgspec.to_builtins(app_settings(config)))
    assert "hunter2" in EVERYTHING.read_text()
    assert "hunter2" not in text
    for app in config.apps:
        for secret in (app.secret, *(one.url for one in app.webhooks), *(one.url for one in app.authorize)):
            assert not secret or secret not in text


def test_an_app_lists_the_keys_that_are_set_and_their_origins(reading):
    config = reading("", "shop:\n  key: k\n  limits: { members: 5 }\n  options: { client-messages: true }")
    assert app_sources(config) == {"shop": "apps/0.yml:1"}
    assert {one.key: (one.value, one.origin) for one in app_settings(config)["shop"]} == {
        "key": ("k", "apps/0.yml:2"),
        "limits.members": (5, "apps/0.yml:3"),
        "options.client-messages": (True, "apps/0.yml:4"),
    }


def test_the_demo_has_no_origins():
    config = demo({})
    assert {one.origin for one in settings(config)} == {"default"}
    assert app_settings(config) == {"app-test": []}


def test_the_places_of_many_apps_are_bounded(reading):
    config = reading("", "\n".join(f"a{number}: {{ key: k{number} }}" for number in range(MAX_APPS + 5)))
    assert len(app_sources(config)) == len(app_settings(config)) == MAX_APPS
