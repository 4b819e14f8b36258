"""Positions as text."""

import pytest

from push1st.positions import MAX_LIST_BYTES, MAX_POSITION_BYTES, Position, parse_list, word, write_list


@pytest.mark.parametrize("text", ["k3F9aQx2bT:0", "k3F9aQx2bT:1042", "a:1", "Z9:999999999999999"])
def test_a_position_is_parsed_and_written_as_the_same_text(text):
    assert str(Position.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "k3F9aQx2bT",
        "k3F9aQx2bT:",
        ":5",
        "k3F9aQx2bT:-1",
        "k3F9aQx2bT:01",
        "k3F9aQx2bT:1.5",
        "k3F9aQx2bT:1 ",
        " k3F9aQx2bT:1",
        "k3F9aQx2bT:1\n",
        "k3F9\x00:1",
        "k3F9aQ-2bT:1",
        "ж:1",
        "k3F9aQx2bT:\u0661",
        "k:1000000000000000",
        "k3F9aQx2bT:" + "1" * MAX_POSITION_BYTES,
        "k" * 10_000 + ":1",
    ],
)
def test_other_texts_are_rejected(text):
    with pytest.raises(ValueError, match="a position such as"):
        Position.parse(text)


def test_a_word_has_five_letters_and_depends_on_the_number():
    words = {word(number << 20 | 7) for number in range(1000)}
    assert len(words) == 1000
    assert all(len(one) == 5 and one.isalnum() and one.isascii() for one in words)


A, B = Position("a", 1), Position("b", 20)


@pytest.mark.parametrize(
    ("text", "positions"),
    [
        ("a:1,b:20", (A, B)),
        ("-,b:20", (None, B)),
        ("a:1,-", (A, None)),
        ("a:1,", (A, None)),
        ("a:1,\x00", (A, None)),
        ("a:1,b:" + "9" * 31, (A, None)),
        ("a:1, b:20", (A, None)),
        ("a:1", (None, None)),
        ("a:1,b:20,b:20", (None, None)),
        ("", (None, None)),
        ("," * 10_000, (None, None)),
        ("a:1," + "x" * MAX_LIST_BYTES, (None, None)),
    ],
)
def test_a_list_has_a_position_or_nothing_for_each_channel(text, positions):
    assert parse_list(text, 2) == positions


def test_a_written_list_is_parsed_as_the_same_positions():
    assert write_list((A, None, B)) == "a:1,-,b:20"
    assert parse_list(write_list((A, None, B)), 3) == (A, None, B)


def test_the_longest_list_of_100_positions_is_not_too_long():
    longest = Position("e" * (MAX_POSITION_BYTES - 16), 10**15 - 1)
    assert parse_list(write_list([longest] * 100), 100) == (longest,) * 100
