"""Channel names and kinds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from push1st.channels import PUBLIC, RESERVED, Kind, kind_of, pusher_name_error, type_names, user_id_error, wide_name_error


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("news", Kind("public")),
        ("cache-news", Kind("public", cache=True)),
        ("private-x", Kind("private")),
        ("private-cache-x", Kind("private", cache=True)),
        ("private-encrypted-x", Kind("private", encrypted=True)),
        ("private-encrypted-cache-x", Kind("private", encrypted=True, cache=True)),
        ("presence-x", Kind("presence")),
        ("presence-cache-x", Kind("presence", cache=True)),
        ("protected-x", Kind("protected")),
    ],
)
def test_prefix_determines_the_kind(name, kind):
    assert kind_of(name) == kind
    assert kind.type in type_names


@pytest.mark.parametrize(
    "name", ["cachefoo", "privatex", "presencex", "protectedx", "xprivate-x", "Private-x", "", "#server-to-user-1"]
)
def test_a_name_without_an_exact_prefix_is_public(name):
    assert kind_of(name) is PUBLIC


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("private-cachefoo", Kind("private")),
        ("private-encrypted", Kind("private")),
        ("private-encryptedfoo", Kind("private")),
        ("private-encrypted-cachefoo", Kind("private", encrypted=True)),
        ("presence-cachefoo", Kind("presence")),
        ("presence-encrypted-x", Kind("presence")),
        ("protected-cache-x", Kind("protected")),
        ("cache-private-x", Kind("public", cache=True)),
        ("private-", Kind("private")),
    ],
)
def test_a_second_word_counts_only_with_its_dash_and_in_its_place(name, kind):
    assert kind_of(name) == kind


@pytest.mark.parametrize(("type_", "needs"), [("public", False), ("private", True), ("presence", True), ("protected", True)])
def test_every_kind_but_public_needs_authorisation(type_, needs):
    assert Kind(type_).needs_auth is needs
    assert Kind(type_).presence is (type_ == "presence")


# Pusher's rule


@pytest.mark.parametrize("name", ["a", "A-Za-z0-9_-=@,.;", "presence-user@example.com", "#server-to-user-1", "x" * 164])
def test_pushers_rule_accepts(name):
    assert pusher_name_error(name) is None


@pytest.mark.parametrize(
    "name", ["#", "##a", "a#b", "a b", "a:b", "a/b", "a\n", "\na", "a\x00", "é", "\u0661", "\ud800", "a+b", "a*", "a&b", "a%20"]
)
def test_pushers_rule_refuses_other_characters(name):
    assert "has characters outside A-Za-z0-9_-=@,.;" in (pusher_name_error(name) or "")


def test_pushers_rule_refuses_an_empty_name():
    assert pusher_name_error("") == "a channel name is empty"


def test_pushers_rule_has_a_limit_in_characters_that_can_be_changed():
    assert pusher_name_error("x" * 165) == "channel name is 165 characters long, the limit is 164"
    assert pusher_name_error("x" * 165, 200) is None
    assert pusher_name_error("xyz", 2) == "channel name is 3 characters long, the limit is 2"


def test_an_error_shows_no_more_than_80_characters_of_a_name():
    assert len(pusher_name_error("x" * 160 + " ") or "") < 160


# The wide rule


@pytest.mark.parametrize("name", ["a", "a b", "a:b", "sensor/1/+/temperature", "жук", "a#b", "x" * 255, "é" * 127, "\U0001f600"])
def test_the_wide_rule_accepts(name):
    assert wide_name_error(name) is None


@pytest.mark.parametrize("name", ["a\n", "\x00", "a\x1fb", "\x7f", "\x80", "é\x9f", "\r"])
def test_the_wide_rule_refuses_control_characters(name):
    assert "has control characters" in (wide_name_error(name) or "")


def test_the_wide_rule_counts_bytes():
    assert wide_name_error("x" * 256) == "channel name is 256 bytes long, the limit is 255"
    assert wide_name_error("é" * 128) == "channel name is 256 bytes long, the limit is 255"


@pytest.mark.parametrize("name", ["\ud800", "a\udfff", "\udc80x"])
def test_wide_rule_rejects_invalid_utf8(name):
    assert "is not valid UTF-8" in (wide_name_error(name) or "")


def test_the_wide_rule_refuses_an_empty_name():
    assert wide_name_error("") == "a channel name is empty"


@given(st.text() | st.text(st.characters(categories=["Cs", "Cc", "Ll"])))
def test_valid_name_can_be_encoded_and_is_one_line(name):
    if wide_name_error(name) is None:
        assert len(name.encode()) <= 255
        assert name.isprintable() or not any(ord(c) < 32 for c in name)
    if pusher_name_error(name) is None:
        assert wide_name_error(name) is None
        assert name.isascii()


@given(st.text())
def test_a_refused_name_is_shown_without_line_breaks(name):
    for error in (pusher_name_error(name), wide_name_error(name)):
        assert error is None or error.isprintable()


# Reserved events


@pytest.mark.parametrize("name", ["pusher:", "pusher:ping", "pusher_internal:member_added"])
def test_events_of_the_protocol_are_reserved(name):
    assert name.startswith(RESERVED)


@pytest.mark.parametrize(
    "name", ["", "pusher", "pusher_internal", "Pusher:ping", "client-pusher:ping", "order.paid", " pusher:x"]
)
def test_other_events_are_not_reserved(name):
    assert not name.startswith(RESERVED)


# Ids of users


@pytest.mark.parametrize(
    "id", ["1", "u-1", "auth0|1", "ann+shop@example.com", "a b", "жук", "a/b:c", "é" * 128, "\U0001f980" * 128, "-1"]
)
def test_the_id_of_a_user_may_be_any_text(id):
    assert user_id_error(id) is None


@pytest.mark.parametrize("id", ["", "u" * 129, "a\nb", "a\x00", "\x7f", "\x85", "\ud800", "a\n"])
def test_the_id_of_a_user_is_short_and_has_no_control_characters(id):
    error = user_id_error(id)
    assert error is not None
    assert error.endswith("must have 1 to 128 characters, and no control characters")
    assert error.encode()
