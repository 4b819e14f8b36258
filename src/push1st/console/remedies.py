"""Finds the remedy of an error message, and the section of docs/errors.md that describes the message.

`remedies.json` has the rows of the page; `python docs/generate.py` writes the file from the page.
"""

import re
from importlib.resources import files
from urllib.parse import quote

import msgspec

from push1st.core.tap import Answered
from push1st.protocols.pusher import CODES, NOTICE

PAGE = "docs/errors.md"
FILE = "remedies.json"
_LEAST_TEXT = 4
"""the least number of characters of a message that the link quotes"""


class Row(msgspec.Struct, array_like=True, frozen=True):
    """A row of the page. text: a message with `…` for values, or a code."""

    anchor: str
    text: str
    remedy: str

    @property
    def link(self) -> str:
        """The address of the row. Browsers search the page for the text after `:~:text=`."""
        longest = max(self.text.split("…"), key=len).strip()
        quoted = f":~:text={quote(longest, safe='').replace('-', '%2D')}" if len(longest) >= _LEAST_TEXT else ""
        return f"{PAGE}#{self.anchor}{quoted}"


class Remedies:
    """The rows of docs/errors.md."""

    def __init__(self) -> None:
        rows = msgspec.json.decode((files(__package__) / FILE).read_bytes(), type=list[Row])
        self._codes = {int(row.text): row for row in rows if row.text.isdecimal()}
        self._exact = {row.text: row for row in reversed(rows) if "…" not in row.text}
        self._rows = sorted((row for row in rows if "…" in row.text), key=_fixed, reverse=True)
        # The longest message is first, because shorter ones may match too: `… is missing` and `body_md5 is missing`.
        self._pattern = re.compile(
            "|".join(f"({'.*'.join(map(re.escape, row.text.split('…')))})" for row in self._rows), re.DOTALL
        )

    def answered(self, protocol: str, event: str, code: int, message: str) -> Answered:
        """Returns an error as the client received it.

        protocol: the protocol of the client; "" if it is unknown. event: the text of the log. code: the code in the log.
        message: a text whose length the caller bounds, because a long one takes milliseconds.
        """
        if protocol.startswith("pusher") and event == "sign-in refused":
            sent = 0  # the code of this error is null
        elif protocol.startswith("pusher") and event == "command refused" and code < NOTICE:
            sent = CODES.get(code, NOTICE)
        else:
            sent = code
        row = self._exact.get(message) or self._matching(message) or self._codes.get(code)
        return Answered(sent) if row is None else Answered(sent, row.remedy, row.link)

    def _matching(self, message: str) -> Row | None:
        found = self._pattern.fullmatch(message)
        return None if found is None or found.lastindex is None else self._rows[found.lastindex - 1]


def _fixed(row: Row) -> int:
    """Returns the number of characters of a message without its values."""
    return len(row.text.replace("…", ""))
