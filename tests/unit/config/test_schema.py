"""The conversion of a section to a struct, with a table of two levels."""

import msgspec
import pytest

from push1st.config import readers
from push1st.config.schema import Key, Table, fill, notes, suggestion, variables
from push1st.config.tree import Value, parse
from push1st.errors import ConfigError


class Inner(msgspec.Struct, frozen=True):
    size: int = 1


class Outer(msgspec.Struct, frozen=True):
    name: str = "default"
    inner: Inner | None = None
    depth: int = 0


INNER: Table = {"size": Key(read=readers.whole(1, 9))}
TABLE: Table = {
    "name": Key(read=readers.text("text"), unset={"none": "none means the default"}),
    "inner": Key(table=INNER, empty=Inner),
    "options": Key(table={"depth": Key(read=readers.whole(0, 9))}, flat=True),
    "checked": Key(read=readers.flag, dropped=True),
    "threads": Key(note="has no effect"),
    "secret": Key(read=readers.text("text", show=False), into="name", variable=False),
}


def tree(text: str) -> Value:
    problems: list[str] = []
    value = parse(text, "f.yml", problems)
    assert problems == []
    return value


def test_a_section_sets_the_fields_of_its_keys():
    found = fill(Outer(), TABLE, tree("name: a\ninner: { size: 2 }\noptions: { depth: 3 }\nchecked: true\nthreads: 4\n"))
    assert found == Outer("a", Inner(2), 3)


def test_a_key_without_a_value_and_an_unset_value_leave_the_default():
    assert fill(Outer("x"), TABLE, tree("name: none\ninner:\n")) == Outer("x")


def test_a_key_can_set_the_field_of_another_name():
    assert fill(Outer(), TABLE, tree("secret: s")).name == "s"


def test_every_problem_has_a_line_with_its_place():
    with pytest.raises(ConfigError) as caught:
        fill(Outer(), TABLE, tree("names: a\ninner: { size: 10 }\nchecked: maybe\n"))
    assert str(caught.value).splitlines() == [
        "f.yml:1: names: unknown key, did you mean name?",
        'f.yml:2: inner.size: found "10" (a whole number), allowed: a whole number from 1 to 9',
        'f.yml:3: checked: found "maybe" (text), allowed: true or false',
    ]


def test_keys_without_effect_are_noted():
    found = [(value.path, note) for value, note in notes(TABLE, tree("name: none\nthreads: 4\ninner: { size: 2 }\n"))]
    assert found == [("name", "none means the default"), ("threads", "has no effect")]


def test_environment_variables_follow_from_the_table():
    assert dict(variables(TABLE, "X")) == {
        "X_NAME": ("name",),
        "X_INNER_SIZE": ("inner", "size"),
        "X_DEPTH": ("options", "depth"),
    }


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("names", "did you mean name?"),
        ("size", "did you mean inner.size?"),
        ("zzz", "allowed: name, inner, options, checked, threads, secret"),
    ],
)
def test_an_unknown_key_gets_a_hint(name, hint):
    assert suggestion(name, TABLE) == hint
