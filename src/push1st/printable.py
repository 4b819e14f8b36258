"""Text from outside on a terminal: what clients, servers and files contain must not move the cursor or forge a line."""

import re

# Control characters, what ends a line, what changes the order of the text around it (UAX #9), and halves of surrogate pairs.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff]")


def printable(text: str) -> str:
    r"""The text as one line, with escapes such as `\x1b` for what is not safe to print."""
    return _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)


def printable_lines(text: str) -> str:
    """The same for a text of our own with lines in it, into which text from outside was put."""
    return "\n".join(map(printable, text.split("\n")))
