"""Characters that a terminal must not receive unescaped."""

import pytest

from push1st.printable import printable, printable_lines, readable


@pytest.mark.parametrize("text", ["", "plain", "Größe 7 €", "日本語", "👨\u200d👩\u200d👧", r"\x1b"])
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    "code", [*range(0x20), *range(0x7F, 0xA0), 0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x2070), 0xD800]
)
def test_controls_line_ends_and_directions_are_escapes(code: int) -> None:
    shown = printable(f"a{chr(code)}b")
    assert shown.isprintable()
    assert shown[:2] + shown[-1] == "a\\b"


def test_our_own_lines_stay_lines() -> None:
    assert printable_lines("a\x1b\nb\r") == "a\\x1b\nb\\r"


@pytest.mark.parametrize(
    ("size", "text"),
    [(1023, "1023 bytes"), (1024, "1.0 KiB"), (102_400, "100 KiB"), (2_550_000, "2.4 MiB"), (10_737_418_240_000, "10,000 GiB")],
)
def test_a_number_of_bytes_is_readable(size: int, text: str) -> None:
    assert readable(size) == text
