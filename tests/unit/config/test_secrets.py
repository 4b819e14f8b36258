"""An app's secrets: one text, or a list of which the first signs; a list in the environment has brackets."""

import pytest

from push1st.config.model import MAX_SECRETS

LIST = f"a text, or a list of 1 to {MAX_SECRETS} different texts, of which the first signs"


@pytest.mark.parametrize(
    ("secret", "expected"),
    [
        ("one", ("one",)),
        ("[ one ]", ("one",)),
        ("[ new, old ]", ("new", "old")),
        ("[ new, 2345, 'o, l' ]", ("new", "2345", "o, l")),
        ("12345", ("12345",)),
        ("'a,b'", ("a,b",)),
        ("''", ()),
    ],
)
def test_an_app_has_one_secret_or_a_list(reading, secret, expected):
    (app,) = reading("", f"a: {{ key: k, secret: {secret} }}").apps
    assert app.secrets == expected
    assert (app.secret, app.older_secrets) == ((expected or ("",))[0], expected[1:])


@pytest.mark.parametrize("secret", ["[ ]", "[ '' ]", "[ hunter2, '' ]", "[ hunter2, hunter2 ]", "[ hunter2, b, c, d ]"])
def test_a_list_of_secrets_has_one_to_three_different_texts(wrong, secret):
    assert wrong("", f"a: {{ key: k, secret: {secret} }}") == [f"apps/0.yml:1: a.secret: found a list, allowed: {LIST}"]


def test_an_item_that_is_no_text_is_rejected_without_its_content(wrong):
    (line,) = wrong("", "a: { key: k, secret: [ { hunter2: x } ] }")
    assert line == f"apps/0.yml:1: a.secret: found a section of keys, allowed: {LIST}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[new, old]", ("new", "old")),
        ("[new]", ("new",)),
        ("a,secret", ("a,secret",)),
        ("[half", ("[half",)),
    ],
)
def test_a_list_in_the_environment_has_brackets(reading, text, expected):
    (app,) = reading("", "a: { key: k, secret: [ x, y ] }", env={"PUSH1ST_APP_SECRET": text}).apps
    assert app.secrets == expected


def test_a_wrong_list_in_the_environment_is_not_shown(wrong):
    lines = wrong("", "a: { key: k }", env={"PUSH1ST_APP_SECRET": "[hunter2,hunter2]"})
    assert lines == [f"PUSH1ST_APP_SECRET: a.secret: found text, allowed: {LIST}"]


def test_no_secret_is_shown_in_the_repr(reading):
    config = reading("", "a: { key: k, secret: [ hunter2, hunter3 ] }")
    assert "hunter" not in repr(config)
