"""Positions as text."""

import pytest

from push1st.positions import MAX_POSITION_BYTES, Position, word


@pytest.mark.parametrize("text", ["k3F9aQx2bT:0", "k3F9aQx2bT:1042", "a:1", "Z9:18446744073709551615"])
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
