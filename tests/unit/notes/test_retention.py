"""The lines and notes of `push1st check` about the history of apps."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from push1st.cli import check, configuration
from push1st.config.history import HistorySection, Resume
from push1st.config.model import AppConfig, Config, ServerConfig
from push1st.limits import Limits
from push1st.notes.retention import lines, notes

SMALL = Limits(payload=100)


def app(*history: HistorySection, **changes: Any) -> AppConfig:
    values: dict[str, Any] = {"id": "a", "key": "k", "secret": "s", "limits": SMALL, "history": history}
    return AppConfig(**(values | changes))


def noted(*history: HistorySection, outbox: int = 1_048_576, **changes: Any) -> list[str]:
    return list(notes(Config(server=ServerConfig(outbox=outbox), apps=(app(*history, **changes),))))


def test_an_app_without_history_has_no_lines_and_no_notes() -> None:
    assert lines(app()) == []
    assert noted() == []


def test_each_section_has_a_line_with_its_memory_for_each_channel() -> None:
    sections = (
        HistorySection(filter=("chat-*", "private-orders-*"), size=200, ttl=600),
        HistorySection(filter=("presence-game-*",), size=10_000, ttl=60, client_events=False),
        HistorySection(),
    )
    assert lines(app(*sections, limits=Limits())) == [
        "keeps 200 events for 600 s on chat-*, private-orders-*: at most 2.0 MiB for each channel",
        "keeps 10000 events without client events for 60 s on presence-game-*: at most 99.6 MiB for each channel",
        "keeps 100 events for 300 s on all channels: at most 1,020 KiB for each channel",
        "keeps the positions of pages for 300 s",
    ]


def test_the_lines_show_that_pages_do_not_recover() -> None:
    assert lines(app(HistorySection(), resume=Resume(seconds=0)))[-1] == "does not keep the positions of pages"


def test_a_ttl_below_the_seconds_of_resume_has_a_note() -> None:
    assert noted(HistorySection(filter=("b-",), ttl=299)) == [
        (
            "a: history section 1 (b-) keeps events for 299 s only, but pages may return after 300 s (resume.seconds), "
            "and would then miss events: set ttl to 300 or more"
        )
    ]
    assert noted(HistorySection(ttl=300)) == []
    assert noted(HistorySection(ttl=1), resume=Resume(seconds=0)) == []


def test_a_history_that_may_be_too_large_for_a_replay_has_a_note() -> None:
    assert noted(HistorySection(size=101), outbox=4 * 30_000) == [
        (
            "a: history section 1 (all channels) may keep up to 29.6 KiB a channel, but a client that returns gets at most "
            "29.3 KiB of it (a quarter of server.outbox); if it missed more, the server answers too-large, and it must load its "
            "data again: raise server.outbox, or lower limits.payload or the section's size"
        )
    ]
    assert noted(HistorySection(size=100), outbox=4 * 30_000) == []


def test_default_settings_cause_no_note_about_large_replays() -> None:
    assert noted(HistorySection(), limits=Limits()) == []
    assert len(noted(HistorySection(size=101), limits=Limits())) == 1
    assert len(noted(HistorySection(), limits=Limits(payload=20_000))) == 1
    assert len(noted(HistorySection(), limits=Limits(), outbox=1_000_000)) == 1


@pytest.mark.parametrize("filters", [(), ("*",), ("x-", "*")])
def test_a_section_after_one_for_all_channels_has_a_note(filters: tuple[str, ...]) -> None:
    (line,) = noted(HistorySection(filter=("a-",)), HistorySection(filter=filters), HistorySection(filter=("b-",), ttl=1))
    reason = "because section 2 already has all its channels: remove it, or put it first"
    assert line == f"a: history section 3 (b-) has no effect, {reason}"


@pytest.mark.parametrize(
    ("earlier", "later", "sections"),
    [
        (["chat-"], "chat-", "1"),
        (["chat-"], "chat-1", "1"),
        (["chat-*"], "chat-", "1"),
        (["chat-"], "chat-*-log", "1"),
        (["chat-*-log"], "chat-*-a-log", "1"),
        (["chat-1"], "chat-", ""),
        (["*-log"], "chat-log", ""),
        (["chat-*-log"], "chat-*", ""),
        (["x-", "chat-"], ("chat-1", "x-*"), "1 or section 2"),
        (["x-", "chat-"], ("chat-1", "y-"), ""),
        (["chat-"], (), ""),
    ],
)
def test_a_section_whose_filters_are_covered_by_earlier_filters_has_a_note(
    earlier: list[str], later: str | tuple[str, ...], sections: str
) -> None:
    filters = (later,) if isinstance(later, str) else later
    found = noted(*(HistorySection(filter=(one,)) for one in earlier), HistorySection(filter=filters))
    reasons = [f" because section {sections} already has all its channels" in line for line in found]
    assert reasons == ([True] if sections else [])


def test_apps_with_the_same_sections_share_a_line() -> None:
    apps = tuple(app(HistorySection(ttl=1), id=f"shop-{number}") for number in range(10_000))
    (line,) = notes(Config(apps=apps))
    assert line.startswith("shop-0, shop-1, shop-2, shop-3, shop-4 and 9,995 more apps: history section 1 (all channels) keeps")


def test_a_disabled_app_has_no_notes() -> None:
    assert noted(HistorySection(ttl=1), enable=False) == []


def test_check_prints_the_history_of_each_app(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "server.yml").write_text("server: { listen: false }\napi: { listen: unix://api }\ncredentials: apps.yml\n")
    (tmp_path / "apps.yml").write_text(f"shop: {{ key: k, secret: {'s' * 32}, history: [ {{ filter: chat-*, ttl: 60 }} ] }}\n")
    assert check.run(Namespace(config=str(tmp_path / "server.yml"), json=False)) == 0
    printed = capsys.readouterr().out
    assert "\n    keeps 100 events for 60 s on chat-*: at most 1,020 KiB for each channel\n" in printed
    assert "\n  note: shop: history section 1 (chat-*) keeps events for 60 s only, " in printed


@pytest.mark.parametrize(
    ("proto", "first", "second"),
    [
        (
            {"pusher", "websocket", "sse"},
            "WebSockets (pusher and websocket), server-sent events and signed API calls on ws://*:6001",
            "; WebSockets and server-sent events too",
        ),
        ({"websocket", "mqtt"}, "WebSockets (mqtt and websocket) and signed API calls on ws://*:6001", "; WebSockets too"),
        (
            {"websocket", "mqtt", "pusher"},
            "WebSockets (mqtt, pusher and websocket) and signed API calls on ws://*:6001",
            "; WebSockets too",
        ),
        ({"sse"}, "server-sent events and signed API calls on http://*:6001", "; server-sent events too"),
        (set(), "signed API calls on http://*:6001", ", unix"),
    ],
)
def test_the_listeners_show_the_protocols(proto: set[str], first: str, second: str) -> None:
    public, private = configuration.listening(Config(server=ServerConfig(proto=frozenset(proto))))
    assert public == first
    assert private.endswith(second)
