"""Any input loads as a configuration or raises a ConfigError."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from push1st.config.load import APP_VARIABLES, ROOT_VARIABLES, demo, load
from push1st.config.schema import Table
from push1st.config.tables import APP, HISTORY, ROOT
from push1st.errors import ConfigError


def places(table: Table, *path):
    for name, key in table.items():
        yield (*path, name)
        yield from places(key.table, *path, name) if key.table else ()


PLACES = [
    *places(ROOT),
    *(("app", *path) for path in places(APP)),
    ("app", "webhooks", "url"),
    ("app", "webhooks", "headers"),
    *(("app", "history", *path) for path in places(HISTORY)),
]
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


def problems(read):
    try:
        read()
    except ConfigError as error:
        return str(error).split("\n")
    return []


def attempt(folder, server, app):
    (folder / "server.yml").write_bytes(server)
    (folder / "app.yml").write_bytes(app)
    lines = problems(lambda: load(folder / "server.yml", {}))
    assert all(line.startswith(("server.yml", "app.yml")) for line in lines), lines


@given(place=st.sampled_from(PLACES), value=structures)
def test_any_value_of_any_key_loads_or_is_a_list_of_errors(folder, place, value):
    for key in reversed(place):
        value = {key: value}
    server, app = ("credentials: app.yml", yaml.safe_dump(value)) if place[0] == "app" else (yaml.safe_dump(value), "")
    attempt(folder, server.encode(), app.encode())


@given(place=st.sampled_from(PLACES), text=st.text(alphabet="ab:*&!{}[],-#'\"\\\n <~?|>@%1.", max_size=40))
def test_any_text_of_any_key_loads_or_is_a_list_of_errors(folder, place, text):
    value = "".join(f"{'  ' * depth}{key}:\n" for depth, key in enumerate(place)).rstrip("\n") + " " + text
    server, app = ("credentials: app.yml", value) if place[0] == "app" else (value, "")
    attempt(folder, server.encode(), app.encode())


@given(st.binary(max_size=200))
def test_any_bytes_load_or_are_a_list_of_errors(folder, data):
    attempt(folder, data, b"")
    attempt(folder, b"credentials: app.yml", data)


@given(st.dictionaries(st.sampled_from([*ROOT_VARIABLES, *APP_VARIABLES, "PUSH1ST_APP_ID"]), st.text(max_size=20), max_size=5))
def test_any_environment_loads_or_is_a_list_of_errors(env):
    lines = problems(lambda: demo(env))
    assert all(line.startswith("PUSH1ST_") for line in lines), lines
