"""The lines and notes of `push1st check` about the history of apps."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from push1st.cli import check, configuration
from push1st.config.history import HistorySection, Resume
from push1st.config.model import AppConfig, Config, ServerConfig
from push1st.limits import Limits
from push1st.notes.retention import lines, notes, readable

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
        "keeps 200 events for 600 s on chat-*, private-orders-*: at most 2.1 MB for each channel",
        "keeps 10000 events without client events for 60 s on presence-game-*: at most 104.4 MB for each channel",
        "keeps 100 events for 300 s on all channels: at most 1.0 MB for each channel",
        "keeps the positions of pages for 300 s",
    ]


def test_the_lines_show_that_pages_do_not_recover() -> None:
    assert lines(app(HistorySection(), resume=Resume(seconds=0)))[-1] == "does not keep the positions of pages"


def test_a_ttl_below_the_seconds_of_resume_has_a_note() -> None:
    assert noted(HistorySection(filter=("b-",), ttl=299)) == [
        (
            "a: history section 1 (b-): ttl is 299 s, but resume.seconds is 300 s: "
            "a page that returns later than the ttl often cannot recover such a channel"
        )
    ]
    assert noted(HistorySection(ttl=300)) == []
    assert noted(HistorySection(ttl=1), resume=Resume(seconds=0)) == []


def test_a_history_that_may_be_too_large_for_a_replay_has_a_note() -> None:
    assert noted(HistorySection(size=101), outbox=4 * 30_000) == [
        (
            "a: history section 1 (all channels): 101 events of the size limits.payload have 30.3 kB: "
            "the server rejects a replay above 30.0 kB, a quarter of server.outbox, with the reason too-large"
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
    assert line == "a: history section 3 (b-): the section never applies, because each of its channels belongs to section 2"


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
    assert [line.partition(" belongs to section ")[2] for line in found] == ([sections] if sections else [])


def test_a_disabled_app_has_no_notes() -> None:
    assert noted(HistorySection(ttl=1), enable=False) == []


@pytest.mark.parametrize(
    ("size", "text"), [(999, "999 bytes"), (1000, "1.0 kB"), (2_550_000, "2.5 MB"), (10_737_418_240_000, "10737.4 GB")]
)
def test_a_number_of_bytes_is_readable(size: int, text: str) -> None:
    assert readable(size) == text


def test_check_prints_the_history_of_each_app(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "server.yml").write_text("server: { listen: false }\napi: { listen: unix://api }\ncredentials: apps.yml\n")
    (tmp_path / "apps.yml").write_text(f"shop: {{ key: k, secret: {'s' * 32}, history: [ {{ filter: chat-*, ttl: 60 }} ] }}\n")
    assert check.run(Namespace(config=str(tmp_path / "server.yml"), json=False)) == 0
    printed = capsys.readouterr().out
    assert "\n    keeps 100 events for 60 s on chat-*: at most 1.0 MB for each channel\n" in printed
    assert "\n  note: shop: history section 1 (chat-*): ttl is 60 s, but resume.seconds is 300 s: " in printed


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
