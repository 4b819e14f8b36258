"""Text for people: sizes, and text of clients, servers and files, which must not move a terminal's cursor or forge a line."""

import json
import re
from typing import Any

import msgspec

# Control characters, line ends, characters that reorder text (UAX #9), and unpaired surrogates.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Returns a text as one line, with escapes such as `\x1b` for unsafe characters."""
    return _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)


def printable_lines(text: str) -> str:
    """Returns a text of several lines, with the escapes of `printable`. Line ends stay, even those that a client has sent."""
    return "\n".join(map(printable, text.split("\n")))


def printable_json(value: Any) -> str:
    """Returns a struct as JSON of several lines. The JSON is ASCII, so it contains none of the unsafe characters."""
    return json.dumps(msgspec.to_builtins(value), indent=2)


def readable(size: int) -> str:
    """Returns a number of bytes with its unit, as the pages of the console show it."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}" if size < 100 * factor else f"{size / factor:,.0f} {unit}"
    return f"{size} bytes"
