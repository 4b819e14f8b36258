"""Finds the remedy of an error message, and the section of docs/errors.md that describes the message.

`remedies.json` has the rows of the page; `python docs/generate.py` writes the file from the page.
"""

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
        self._patterns = [(*_ends(row.text), row) for row in self._rows]

    def answered(self, protocol: str, event: str, code: int, message: str) -> Answered:
        """Returns an error as the client received it.

        protocol: the protocol of the client; "" if it is unknown. event: the text of the log. code: the code in the log.
        message: a text whose length the caller bounds; the time grows with its length.
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
        for start, end, row in self._patterns:
            if message.startswith(start) and message.endswith(end) and fits(row.text, message):
                return row
        return None


def fits(pattern: str, text: str) -> bool:
    """Returns whether a text is a pattern in which each `…` stands for any text.

    The first place of each part is the right one (if a text fits, it also fits with these places). So the time grows with the
    length of the text only. A regular expression would try all places: a client's text of 1,000 characters took 15 ms.
    """
    first, *middle, last = pattern.split("…")
    if not (text.startswith(first) and text.endswith(last)):
        return False
    at, end = len(first), len(text) - len(last)
    for part in middle:
        at = text.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return at <= end


def _ends(pattern: str) -> tuple[str, str]:
    first, *_, last = pattern.split("…")
    return first, last


def _fixed(row: Row) -> int:
    """Returns the number of characters of a message without its values."""
    return len(row.text.replace("…", ""))
