"""The settings of an app in words."""

from pathlib import Path

from push1st.config.load import demo, load
from push1st.config.model import AppConfig, Config
from push1st.config.schema import Table
from push1st.config.tables import APP
from push1st.console.appsettings import LABELS, LIMITS, app_settings_in_words
from push1st.limits import Limits

EVERYTHING = Path(__file__).parents[1] / "config" / "examples" / "everything" / "server.yml"
ELSEWHERE = {"enable", "name", "key", "secret", "options.statistic"}
"""the keys that the dialog shows elsewhere, and a key without effect"""


def words(config: Config, app: AppConfig, connections: int | None = None) -> dict[str, list[tuple[str, str]]]:
    found = app_settings_in_words(config, app, connections)
    return {one.key: [(line.endpoint, line.text) for line in one.lines] for one in found}


def test_every_key_of_an_app_has_a_label() -> None:
    def leaves(table: Table, above: str = "") -> list[str]:
        found: list[str] = []
        for name, key in table.items():
            if not key.note and not key.dropped:
                found += [above + name] if key.table is None else leaves(key.table, f"{above}{name}.")
        return found

    assert {*LABELS, *(f"limits.{name}" for name in LIMITS), *ELSEWHERE} == {*leaves(APP)}


def test_limits_have_units_and_their_use() -> None:
    config = demo({})
    app = config.apps[0]
    found = words(config, app, 12_345)
    assert found["limits.connections"] == [("", "12,345 now, no limit")]
    assert found["limits.payload"] == [("", "10.0 KiB")]
    assert found["limits.client-events"] == [("", "10 a second")]
    assert found["limits.channel-name"][0][1].startswith("164 characters for Pusher clients and signed API calls; 255 bytes")
    assert found["resume.seconds"] == [("", "300 s")]
    assert (found["origins"], found["webhooks"], found["history"]) == ([("", "all")], [("", "none")], [("", "none")])
    limited = AppConfig(id="a", key="k", secret="s", limits=Limits(connections=100))
    assert words(config, limited, 5)["limits.connections"] == [("", "5 of 100")]
    assert words(config, limited)["limits.connections"] == [("", "100")]
    assert "hook.trigger" not in found


def test_no_setting_contains_a_secret() -> None:
    config = load(EVERYTHING, {})
    text = repr([words(config, app) for app in config.apps])
    assert "webhooks" in text
    assert "hunter2" in EVERYTHING.read_text()
    assert "hunter2" not in text
