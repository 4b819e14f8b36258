"""Which keys of a changed configuration need new workers, and the lines about the changes."""

import msgspec
import pytest

from push1st.config.addresses import Listen, Networks
from push1st.config.model import (
    ApiConfig,
    AppConfig,
    Config,
    ConsoleConfig,
    HooksConfig,
    LogConfig,
    MetricsConfig,
    ProtocolConfig,
    ServerConfig,
    Ssl,
    Webhook,
)
from push1st.config.mqtt import Mqtt, MqttSsl
from push1st.errors import ConfigError
from push1st.limits import Limits
from push1st.process.changes import MAX_LINES, described, require_served, restart_keys

SECRET = "canary-secret"
APP = AppConfig(id="shop", key="canary-key", secret=SECRET)
BASE = Config(apps=(APP,))


def with_app(**changes: object) -> Config:
    return msgspec.structs.replace(BASE, apps=(msgspec.structs.replace(APP, **changes),))


@pytest.mark.parametrize(
    "changes",
    [
        {"apps": ()},
        {"apps": (APP, AppConfig(id="blog", key="k", secret="s"))},
        {"log": LogConfig(level="debug", format="json")},
        {"server": ServerConfig(ssl=Ssl(key="/a", cert="/b"))},
        {"server": ServerConfig(mqtt=Mqtt(ssl=MqttSsl(key="/a", cert="/b", ca="/c", verify="optional")))},
        {"files": ("a",), "warnings": ("w",)},
    ],
)
def test_apps_certificates_and_the_log_need_no_new_workers(changes: dict) -> None:
    assert restart_keys(BASE, msgspec.structs.replace(BASE, **changes)) == []


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"server": ServerConfig(drain=1, listen=(Listen("tcp", port=1),))}, ["server.listen", "server.drain"]),
        ({"server": ServerConfig(ssl=Ssl(enable=True, key="/a", cert="/b"))}, ["server.ssl.enable"]),
        (
            {"server": ServerConfig(websocket=ProtocolConfig(path="/ws/", max_payload=9))},
            ["server.websocket.max-request-payload"],
        ),
        ({"api": ApiConfig(trust=Networks())}, ["api.trust"]),
        ({"broker": "redis://user:canary-secret@h/"}, ["broker"]),
        ({"hooks": HooksConfig(folder="/f")}, ["hooks.folder"]),
    ],
)
def test_other_keys_need_new_workers_and_are_named_without_values(changes: dict, keys: list[str]) -> None:
    assert restart_keys(BASE, msgspec.structs.replace(BASE, **changes)) == keys


def test_a_changed_app_is_described_by_its_keys() -> None:
    new = with_app(
        secret="other",
        client_messages=True,
        limits=Limits(connections=5, publishes=7),
        webhooks=(Webhook(url=f"http://h/{SECRET}"),),
    )
    (line,) = described(BASE, new)
    assert line == "app shop: secret, limits.connections, limits.publishes, options.client-messages, webhooks"


def test_added_removed_and_disabled_apps_are_named() -> None:
    more = AppConfig(id="blog", key="k", secret=SECRET)
    assert described(BASE, msgspec.structs.replace(BASE, apps=(more,))) == [
        "app shop: removed, its clients are disconnected",
        "app blog: added",
    ]
    assert described(BASE, with_app(enable=False)) == ["app shop: disabled, its clients are disconnected"]
    disabled = msgspec.structs.replace(BASE, apps=(msgspec.structs.replace(APP, enable=False),))
    assert described(disabled, BASE) == ["app shop: enabled"]


def test_nothing_is_said_about_equal_configurations() -> None:
    assert described(BASE, msgspec.structs.replace(BASE, files=("a",))) == []


def test_the_number_of_lines_is_limited() -> None:
    many = tuple(AppConfig(id=f"app-{number}", key=f"k{number}", secret="s") for number in range(100))
    lines = described(BASE, msgspec.structs.replace(BASE, apps=(APP, *many)))
    assert len(lines) == MAX_LINES + 1
    assert lines[-1] == "and 80 more apps"


def test_a_configuration_that_serves_nobody_is_refused() -> None:
    with pytest.raises(ConfigError, match="no app is configured"):
        require_served(BASE, msgspec.structs.replace(BASE, apps=()))
    require_served(msgspec.structs.replace(BASE, apps=()), msgspec.structs.replace(BASE, apps=()))


def test_all_apps_may_be_disabled_and_then_removed() -> None:
    disabled = msgspec.structs.replace(BASE, apps=(msgspec.structs.replace(APP, enable=False),))
    require_served(BASE, disabled)
    require_served(disabled, msgspec.structs.replace(BASE, apps=()))


def test_a_changed_log_is_named() -> None:
    assert described(BASE, msgspec.structs.replace(BASE, log=LogConfig(level="debug"))) == ["log.level"]


def test_addresses_and_token_of_the_metrics_need_new_workers_and_are_only_named() -> None:
    metrics = MetricsConfig(listen=(Listen("tcp", "127.0.0.1", 9601),), token="0123456789abcdef")
    assert restart_keys(Config(), Config(metrics=metrics)) == ["metrics.listen", "metrics.token"]


def test_keys_of_the_console_need_new_workers_except_its_certificate() -> None:
    before = Config(console=ConsoleConfig(password=SECRET))
    after = Config(console=ConsoleConfig(password="another", origin="https://a.example", ssl=Ssl(cert="/new")))
    assert restart_keys(before, after) == ["console.password", "console.origin"]
    assert described(before, after) == ["console.ssl.cert"]


def test_a_key_that_moved_to_another_line_has_not_changed() -> None:
    before, after = (Config(places=(("server.drain", place),)) for place in ("server.yml:2", "server.yml:3"))
    assert restart_keys(before, after) == []
