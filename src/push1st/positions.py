"""Positions in the history of a channel, as text that clients store and send back.

A position is `EPOCH:OFFSET`, such as `k3F9aQx2bT:1042`: the client has all messages of the epoch up to this offset. `EPOCH:0` is
the position before the first message. Clients do not interpret a position.
"""

import re
from collections.abc import Iterable

import msgspec

MAX_POSITION_BYTES = 32
"""the maximum number of bytes of a position's text"""
EPOCH_CHARACTERS = 10
"""the number of characters of an epoch: 5 for the generation of the broker's state, 5 for the channel"""
WORD_CHARACTERS = EPOCH_CHARACTERS // 2
MAX_LIST_BYTES = 4096
"""the maximum number of bytes of a list of positions"""
NO_POSITION = "-"
"""stands in a list of positions for a channel of which the client has no position"""
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

_POSITION = re.compile(r"([A-Za-z0-9]+):(0|[1-9][0-9]{0,14})\Z", re.ASCII)
"""a pattern for a position; brokers and clients store its offset as a floating-point number, which is exact up to 15 digits"""


class Position(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A position in the history of one channel. `str` returns the text.

    `epoch`: the identity of the history; offsets of different epochs have no relation.
    `offset`: the number of the last message that the client has; 0 if the client has no message of the epoch.
    """

    epoch: str
    offset: int

    @classmethod
    def parse(cls, text: str) -> "Position":
        """Parses the text of a position. Raises ValueError."""
        found = _POSITION.match(text) if len(text) <= MAX_POSITION_BYTES else None
        if found is None:
            raise ValueError(f"a position such as k3F9aQx2bT:1042, of at most {MAX_POSITION_BYTES} bytes")
        return cls(found[1], int(found[2]))

    def __str__(self) -> str:
        return f"{self.epoch}:{self.offset}"


def parse_list(text: str, count: int) -> tuple[Position | None, ...]:
    """Parses a list of positions that a client sends, one for each of its `count` channels, with commas between them.

    Returns None in place of a position that is `-` or not valid. If the list is too long, or if it has not `count` entries, no
    entry can be assigned to a channel; then all results are None.
    """
    entries = text.split(",") if len(text) <= MAX_LIST_BYTES else ()
    if len(entries) != count:
        return (None,) * count
    return tuple(map(_position_or_none, entries))


def _position_or_none(text: str) -> Position | None:
    try:
        return Position.parse(text)
    except ValueError:
        return None


def write_list(positions: Iterable[Position | None]) -> str:
    """Returns the text of a list of positions, which `parse_list` parses."""
    return ",".join(NO_POSITION if one is None else str(one) for one in positions)


def word(random: int) -> str:
    """Returns half of an epoch, made from a random integer of 30 or more bits."""
    letters = []
    for _ in range(WORD_CHARACTERS):
        random, letter = divmod(random, len(ALPHABET))
        letters.append(ALPHABET[letter])
    return "".join(letters)
