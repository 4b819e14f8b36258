"""The log: two formats, the same for all loggers, without secrets."""

import io
import json
import logging
import sys
import time
import warnings

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from push1st import logs


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restored():
    """Restores the logging, which is global."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.captureWarnings(False)
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def text():
    stream = io.StringIO()
    logs.setup("text", "info", stream)
    return stream


@pytest.fixture
def lines():
    """Sets JSON logging up; returns a function that returns the objects logged so far."""
    stream = io.StringIO()
    logs.setup("json", "info", stream)
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def fail():
    raise RuntimeError("GET /ws/app/k/x?token=s3cr3t failed")


# Formats


def test_json_is_one_object_a_line_with_event_fields_level_logger_and_utc_time(lines):
    logs.get("push1st.node").info("listening", address="127.0.0.1:6001", workers=2)
    (line,) = lines()
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "listening", "address": "127.0.0.1:6001", "workers": 2, "level": "info", "logger": "push1st.node"}


def test_text_is_one_readable_line_without_colour_if_the_stream_is_no_terminal(text):
    logs.get("push1st.node").info("listening", address="127.0.0.1:6001")
    line = text.getvalue()
    assert line.count("\n") == 1
    assert "\x1b" not in line
    for part in ("info", "listening", "push1st.node", "address=127.0.0.1:6001"):
        assert part in line


def test_text_is_coloured_on_a_terminal():
    stream = Terminal()
    logs.setup("text", "info", stream)
    logs.get("x").info("listening")
    assert "\x1b[" in stream.getvalue()


def test_json_is_never_coloured():
    stream = Terminal()
    logs.setup("json", "info", stream)
    logs.get("x").info("listening")
    assert "\x1b" not in stream.getvalue()


def test_json_keeps_a_trace_as_a_field(lines):
    try:
        fail()
    except RuntimeError:
        logs.get("x").exception("broken")
    (line,) = lines()
    assert line["event"] == "broken"
    assert line["level"] == "error"
    assert line["exception"].startswith("Traceback (most recent call last):\n")
    assert "RuntimeError: GET /ws/app/k/x?token=*** failed" in line["exception"]


def test_text_shows_a_trace_with_its_lines(text):
    try:
        fail()
    except RuntimeError:
        logs.get("x").exception("broken")
    assert "\nTraceback (most recent call last):\n" in text.getvalue()
    assert "\nRuntimeError: GET /ws/app/k/x?token=*** failed" in text.getvalue()


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), b"\xff", object, {1, 2}, {1: {2: (3,)}}, "\ud800", ValueError("x")]
)
def test_json_is_valid_for_any_logged_value(lines, value):
    logs.get("x").info("odd", value=value)
    (line,) = lines()
    assert "value" in line
    json.dumps(line, allow_nan=False)


def test_a_value_that_contains_itself_is_cut_off(lines):
    value: list[object] = []
    value.append(value)
    logs.get("x").info("odd", value=value)
    assert "***" in json.dumps(lines())


def test_text_of_a_client_cannot_begin_a_line_or_move_the_cursor(text):
    logs.get("x").info("refused\nfake", channel="a\x1b[2J\r\nfake", other="\x9b\u2028\u202e\u2066\ud800")
    assert text.getvalue().count("\n") == 1
    assert not set("\x1b\x9b\r\u2028\u202e\u2066\ud800") & set(text.getvalue())
    assert r"\x1b[2J\r\nfake" in text.getvalue()


def test_text_of_a_client_in_a_trace_cannot_move_the_cursor_or_reorder_a_line(text):
    try:
        raise RuntimeError("\x1b[2J\u202e\u2066")
    except RuntimeError:
        logs.get("x").exception("refused")
    assert r"RuntimeError: \x1b[2J\u202e\u2066" in text.getvalue()


# Levels


def test_events_below_the_level_are_dropped_for_all_loggers(lines):
    logs.get("x").debug("ours")
    logging.getLogger("asyncio").debug("theirs")
    assert lines() == []


@pytest.mark.parametrize("level", ["debug", "DEBUG"])
def test_a_level_may_be_written_in_any_case(level):
    stream = io.StringIO()
    logs.setup("json", level, stream)
    logs.get("x").debug("seen")
    assert "seen" in stream.getvalue()


def test_an_unknown_level_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match="log level 'loud' is none of debug, info"):
        logs.setup("text", "loud", io.StringIO())


def test_a_second_setup_replaces_the_first(lines):
    second = io.StringIO()
    log = logs.get("x")
    log.info("one")
    logs.setup("text", "info", second)
    log.info("two")
    assert [line["event"] for line in lines()] == ["one"]
    assert "two" in second.getvalue()
    assert "one" not in second.getvalue()


def test_a_logger_made_before_setup_follows_it():
    log = logs.get("early")
    stream = io.StringIO()
    logs.setup("json", "info", stream)
    log.info("seen")
    assert json.loads(stream.getvalue())["logger"] == "early"


# Loggers of libraries


def test_log_records_of_libraries_have_the_same_form(lines):
    try:
        fail()
    except RuntimeError:
        logging.getLogger("asyncio").exception("task %s, token=%s", "t1", "s3cr3t", extra={"auth": "k:x", "n": 1})
    (line,) = lines()
    assert line["event"] == "task t1, token=***"
    assert (line["level"], line["logger"], line["auth"], line["n"]) == ("error", "asyncio", "***", 1)
    assert "token=*** failed" in line["exception"]


def test_warnings_have_the_same_form(lines):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    (line,) = lines()
    assert line["logger"] == "py.warnings"
    assert "DeprecationWarning: old" in line["event"]


# Secrets


@pytest.mark.parametrize(
    "name",
    [
        "secret",
        "token",
        "auth",
        "authorization",
        "password",
        "Authorization",
        "access_token",
        "app-secret",
        "auth_signature",
        "accessToken",
    ],
)
def test_a_field_named_like_a_secret_is_masked(lines, name):
    logs.get("x").info("event", **{name: "s3cr3t"}, nested={"headers": [{name: ["s3cr3t"]}]})
    (line,) = lines()
    assert line[name] == "***"
    assert "s3cr3t" not in json.dumps(line)


@pytest.mark.parametrize("name", ["author", "auth_key", "app", "tokens", "channel", "socket_id"])
def test_another_field_is_not_masked(lines, name):
    logs.get("x").info("event", **{name: "plain"})
    assert lines()[0][name] == "plain"


MASKED = [
    ("/ws/app/key/private-x?session=1&token=s3cr3t", "/ws/app/key/private-x?session=1&token=***"),
    ("/apps/1/events?auth_key=k&auth_signature=s3cr3t&body_md5=1", "/apps/1/events?auth_key=k&auth_signature=***&body_md5=1"),
    ("?auth=key:s3cr3t HTTP/1.1", "?auth=*** HTTP/1.1"),
    ("?access_token=s3cr3t", "?access_token=***"),
    ("?password=s3,c;r(3)t#", "?password=***"),
    ("Authorization: Bearer s3cr3t", "Authorization: ***"),
    ("authorization: Basic s3cr3t\r\nHost: x", "authorization: ***\r\nHost: x"),
    ("{'auth': 'key:s3cr3t', 'x': 1}", "{'auth': ***, 'x': 1}"),
    ('{"auth":"key:s3cr3t","x":1}', '{"auth":***,"x":1}'),
    ('{"data":"{\\"auth\\":\\"key:s3cr3t\\",\\"x\\":1}"}', '{"data":"{\\"auth\\":***,\\"x\\":1}"}'),
    ('{"auth":"key:s3cr3t', '{"auth":***'),
    ("App(key='k', secret='s3 \\'c & r\\' 3t', enable=True)", "App(key='k', secret=***, enable=True)"),
    ("secret: s3cr3t", "secret: ***"),
    ("cannot reach redis://user:s3cr3t@host:6379/0", "cannot reach redis://user:***@host:6379/0"),
    ("cannot reach redis://:s3cr3t@host:6379/0", "cannot reach redis://:***@host:6379/0"),
    ("got eyJhbGciOiJIUzI1NiJ9.eyJhcHAiOiJhIn0.c2lnbmF0dXJl here", "got *** here"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "shown"), MASKED)
def test_a_secret_within_a_text_is_masked_and_the_rest_is_kept(lines, given, shown):
    logs.get("x").info(given, url=given, values=[given], exception_value=ValueError(given))
    (line,) = lines()
    assert (line["event"], line["url"], line["values"]) == (shown, shown, [shown])
    assert "s3cr3t" not in json.dumps(line)
    assert "eyJ" not in json.dumps(line)


@pytest.mark.parametrize(
    "plain",
    [
        "401: auth_signature is wrong",
        "auth_timestamp is 601 s in the past",
        "author=me",
        "redis://host:6379/0?prefix=push1st",
        "token",
        "https://example.com/a:b@c",
        "presence-a=@,.;",
    ],
)
def test_a_text_without_a_secret_is_kept(lines, plain):
    logs.get("x").info("event", value=plain)
    assert lines()[0]["value"] == plain


@pytest.mark.parametrize(
    "part", ["auth", "auth\\", 'token"', "eyJ", "eyJ-", "eyJa.", "://a:", "://", "a_", 'secret="', 'auth\\":\\"', "auth :"]
)
def test_masking_a_long_hostile_text_takes_no_long_time(part):
    hostile = part * (100_000 // len(part))
    began = time.process_time()
    logs.mask_secrets(None, "info", {"event": hostile})
    assert time.process_time() - began < 1


@given(
    st.text(),
    st.text("abcdef0123456789", min_size=8),
    st.sampled_from(["token=", "auth=", "auth_signature=", "&token="]),
    st.text(),
)
def test_token_in_a_query_is_masked_in_any_text(before, token, name, after):
    shown = logs.mask_secrets(None, "info", {"event": f"{before}?{name}zz{token}&{after}"})["event"]
    assert f"zz{token}" not in shown


def test_logging_to_a_closed_stream_does_not_raise(monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)
    stream = io.StringIO()
    logs.setup("text", "info", stream)
    stream.close()
    logs.get("x").info("lost")
    assert sys.exc_info() == (None, None, None)
