"""PUSH1ST_… variables override files and the demo."""

import os
from pathlib import Path

import pytest

from push1st.config import model as plain
from push1st.config.addresses import Listen, Networks
from push1st.config.load import APP_VARIABLES, ROOT_VARIABLES, demo, with_env
from push1st.config.model import Config
from push1st.errors import ConfigError

APP_TEXT = "a: { key: a-key, secret: a-secret }\n"


def demo_error(env):
    with pytest.raises(ConfigError) as error:
        demo(env)
    return str(error.value).split("\n")


def test_environment_overrides_the_file(reading):
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


def test_unrelated_variables_are_ignored():
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
        "PUSH1ST_APP_SECRET: found apps: a, b, allowed: exactly one, or PUSH1ST_APP_ID to select one"
    ]
    assert wrong("credentials: []", env={"PUSH1ST_APP_SECRET": "hunter2"}) == [
        "PUSH1ST_APP_SECRET: found apps: none, allowed: exactly one, or PUSH1ST_APP_ID to select one"
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


def test_error_never_shows_a_secret_of_the_environment(wrong):
    for name in ("PUSH1ST_APP_SECRET", "PUSH1ST_APP_SECRT", "PUSH1ST_APP_KEY", "PUSH1ST_APP_HOOK_ENDPOINT"):
        assert "hunter2" not in "".join(wrong("", APP_TEXT, env={name: "hunter2 \n"}))
    assert "hunter2" not in "".join(wrong("", APP_TEXT, env={"PUSH1ST_APP_SECRET": "hunter2", "PUSH1ST_APP_ENABLE": "x"}))


def test_environment_overrides_the_demo():
    config = demo({"PUSH1ST_SERVER_LISTEN": "tcp://127.0.0.1:0", "PUSH1ST_APP_ORIGINS": "x.com"})
    assert config.server.listen == (Listen("tcp", "127.0.0.1", 0),)
    assert config.api == plain.demo().api
    assert (config.apps[0].key, config.apps[0].origins, config.demo) == ("app-key", ("x.com",), True)
    assert with_env(plain.demo(), {}) == demo({}) == plain.demo()


def test_app_of_the_environment_replaces_the_demo():
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


def test_a_warning_lists_variables_of_soketi_without_their_values(reading):
    env = {f"SOKETI_{name}": "hidden" for name in ("DEFAULT_APP_ID", "DEFAULT_APP_KEY", "DEFAULT_APP_SECRET", "PORT")}
    text = (
        "SOKETI_DEFAULT_APP_ID, SOKETI_DEFAULT_APP_KEY, SOKETI_DEFAULT_APP_SECRET and 1 more: "
        "variables of soketi have no effect; docs/moving-from-soketi.md lists those of push1st"
    )
    assert demo(env).warnings == (text,)
    assert text in reading("", env=env).warnings
