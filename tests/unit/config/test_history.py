"""The keys of an app's history, of the recovery of pages, and of server-sent events."""

import pytest

from push1st.config.addresses import Networks
from push1st.config.history import HistoryBounds, HistorySection, Resume
from push1st.config.model import SseConfig


def of(keys: str) -> str:
    return f"a: {{ key: k, secret: s, {keys} }}"


def test_an_app_keeps_no_history_by_default(app):
    assert app(of("name: a")).history == ()
    assert app(of("history: [ ]")).history == ()
    assert app("a:\n  key: k\n  secret: s\n  history:\n").history == ()


def test_section_of_a_history_has_defaults(app):
    (section,) = app(of("history: [ { filter: chat- } ]")).history
    assert section == HistorySection(filter=("chat-",), size=100, ttl=300, client_events=True, rewind=None)


def test_sections_of_a_history_keep_their_order(app):
    sections = app(of("history: [ { filter: [ b-*, a- ], rewind: 0 }, { size: 1 } ]")).history
    assert [(section.filter, section.size, section.rewind) for section in sections] == [(("b-*", "a-"), 100, 0), ((), 1, None)]


def test_a_single_section_of_a_history_needs_no_list(app):
    assert app(of("history: { ttl: 1 }")).history == (HistorySection(ttl=1),)


@pytest.mark.parametrize(
    ("section", "found"),
    [
        ("size: 1, ttl: 1, rewind: 0", HistorySection(size=1, ttl=1, rewind=0)),
        ("size: 10000, ttl: 2592000, rewind: 100", HistorySection(size=10_000, ttl=2_592_000, rewind=100)),
    ],
)
def test_bounds_of_a_section_are_allowed(app, section, found):
    assert app(of(f"history: [ {{ {section} }} ]")).history == (found,)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (
            "history: [ { size: 0 } ]",
            'a.history.size: found "0" (a whole number), allowed: a whole number of messages from 1 to 10000',
        ),
        (
            "history: [ { size: 10001 } ]",
            'a.history.size: found "10001" (a whole number), allowed: a whole number of messages from 1 to 10000',
        ),
        (
            "history: [ { ttl: 0 } ]",
            'a.history.ttl: found "0" (a whole number), allowed: a whole number of seconds from 1 to 2592000',
        ),
        (
            "history: [ { ttl: 2592001 } ]",
            'a.history.ttl: found "2592001" (a whole number), allowed: a whole number of seconds from 1 to 2592000',
        ),
        (
            "history: [ { rewind: 101 } ]",
            'a.history.rewind: found "101" (a whole number), allowed: a whole number of messages from 0 to 100',
        ),
        ("history: [ { client-events: 5 } ]", 'a.history.client-events: found "5" (a whole number), allowed: true or false'),
        ('history: [ { filter: "" } ]', 'a.history.filter: found "" (text), allowed: a prefix, or a pattern with *'),
        ("history: [ { sizes: 5 } ]", "a.history.sizes: unknown key, did you mean size?"),
        (
            "history: true",
            'a.history: found "true" (true or false), allowed: a list of sections, such as history: [ { filter: [ chat-* ], ',
        ),
        ("history: [ chat-* ]", "a.history: found text, allowed: a list of sections, such as history: "),
        (
            "resume: { seconds: 29 }",
            'a.resume.seconds: found "29" (a whole number), allowed: 0, or a whole number of seconds from 30',
        ),
        ("resume: { seconds: 86401 }", 'a.resume.seconds: found "86401" (a whole number), allowed: 0, or a whole number of '),
        (
            "resume: { seconds: on }",
            'a.resume.seconds: found "on" (true or false), allowed: 0, or a whole number of seconds from ',
        ),
        (
            "resume: { acknowledge: 0 }",
            'a.resume.acknowledge: found "0" (a whole number), allowed: a whole number of seconds from 1',
        ),
        ("resume: { acknowledge: 61 }", 'a.resume.acknowledge: found "61" (a whole number), allowed: a whole number of seconds'),
        (
            "resume: { seconds: 59, acknowledge: 20 }",
            "a.resume.acknowledge: found 20, allowed: a whole number of seconds from 1 to 19, a third of resume.seconds (59)",
        ),
        ("resume: { pages: 0 }", 'a.resume.pages: found "0" (a whole number), allowed: a whole number from 1 to 2147483647'),
        ("resume: 300", "a.resume: found a whole number, allowed: a section with the keys seconds, acknowledge, pages"),
    ],
)
def test_error_names_line_key_found_and_allowed_value(wrong, keys, line):
    (found,) = wrong("", of(keys))
    assert found.startswith(f"apps/0.yml:1: {line}")


def test_a_dash_without_a_section_keeps_nothing_and_is_an_error(wrong):
    assert wrong("", "a:\n  key: k\n  secret: s\n  history:\n    - { ttl: 5 }\n    -\n") == [
        "apps/0.yml:6: a.history: found nothing, allowed: a section, such as { filter: [ chat-* ] }"
    ]


def test_all_errors_of_all_sections_are_listed(wrong):
    lines = wrong("", of("history: [ { size: 0, ttl: 0 }, { size: 0 } ], resume: { seconds: 1, pages: 0 }"))
    assert [line.split(": found")[0].rpartition(" ")[2] for line in lines] == [
        *("a.history.size", "a.history.ttl", "a.history.size", "a.resume.seconds", "a.resume.pages")
    ]


# Recovery of pages


def test_recovery_of_pages_has_defaults_and_bounds(app):
    assert app(of("name: a")).resume == Resume(seconds=300, acknowledge=10, pages=100_000)
    assert app(of("resume: { seconds: 30 }")).resume == Resume(seconds=30)
    assert app(of("resume: { seconds: 180, acknowledge: 60, pages: 1 }")).resume == Resume(seconds=180, acknowledge=60, pages=1)


def test_recovery_of_pages_can_be_switched_off(app):
    assert app(of("resume: { seconds: 0, acknowledge: 60 }")).resume.seconds == 0


def test_variables_set_the_recovery_of_pages(app, wrong):
    text = of("resume: { acknowledge: 60, seconds: 180 }")
    assert app(text, env={"PUSH1ST_APP_RESUME_ACKNOWLEDGE": "5"}).resume == Resume(seconds=180, acknowledge=5)
    (line,) = wrong("", text, env={"PUSH1ST_APP_RESUME_SECONDS": "60"})
    assert line.startswith("apps/0.yml:1: a.resume.acknowledge: found 60, allowed: a whole number of seconds from 1 to 20")


def test_no_variable_sets_the_sections_of_a_history(wrong):
    (line,) = wrong("", of("name: a"), env={"PUSH1ST_APP_HISTORY": "chat-"})
    assert line.startswith("PUSH1ST_APP_HISTORY: unknown variable")


# The server


def test_bounds_of_the_memory_broker_have_defaults_and_can_be_set(reading):
    assert reading("").server.history == HistoryBounds(bytes=268_435_456, channels=100_000)
    env = {"PUSH1ST_SERVER_HISTORY_CHANNELS": "7"}
    assert reading("server: { history: { bytes: 5 } }", env=env).server.history == HistoryBounds(bytes=5, channels=7)


@pytest.mark.parametrize("key", ["bytes", "channels"])
def test_bounds_of_the_memory_broker_are_at_least_one(wrong, key):
    (line,) = wrong(f"server: {{ history: {{ {key}: 0 }} }}")
    assert line.startswith(f'server.yml:1: server.history.{key}: found "0" (a whole number), allowed: a whole number ')


def test_event_streams_are_served_by_default(reading):
    server = reading("").server
    assert server.sse == SseConfig(path="/sse/", whitelist=Networks())
    assert server.bases("sse") == ("/sse/app/",)


def test_event_streams_can_be_configured(reading):
    server = reading("server: { app-path: /v1/, sse: { path: events, whitelist: 10.0.0.0/8 } }").server
    assert server.bases("sse") == ("/events/v1/",)
    assert server.sse.whitelist == Networks.parse(["10.0.0.0/8"])


def test_disabled_event_streams_have_no_paths(reading):
    server = reading("server: { proto: [ pusher, websocket ] }").server
    assert server.bases("sse") == ()
    assert server.bases("pusher") == ("/pusher/app/", "/app/")
    assert server.bases("websocket") == ("/ws/app/",)


def test_the_environment_can_select_event_streams_only(reading):
    assert reading("", env={"PUSH1ST_SERVER_PROTO": "sse", "PUSH1ST_SERVER_SSE_PATH": "/e/"}).server.bases("sse") == ("/e/app/",)


def test_event_streams_need_a_path_of_their_own(wrong):
    assert wrong("server: { sse: { path: /ws/ } }") == [
        'server.yml:1: server.websocket.path: found "/ws/", as for sse, allowed: a path of its own'
    ]


@pytest.mark.parametrize("key", ["activity-timeout", "push", "max-request-payload"])
def test_event_streams_have_no_keys_for_messages_of_clients(wrong, key):
    (line,) = wrong(f"server: {{ sse: {{ {key}: 5 }} }}")
    assert line == f"server.yml:1: server.sse.{key}: unknown key, allowed: path, whitelist"
