"""Positions in the history of a channel, as text that clients store and send back.

A position is `EPOCH:OFFSET`, such as `k3F9aQx2bT:1042`: the client has all messages of the epoch up to this offset. `EPOCH:0` is
the position before the first message. Clients do not interpret a position.
"""

import re

import msgspec

MAX_POSITION_BYTES = 32
"""the maximum number of bytes of a position's text"""
EPOCH_CHARACTERS = 10
"""the number of characters of an epoch: 5 for the generation of the broker's state, 5 for the channel"""
WORD_CHARACTERS = EPOCH_CHARACTERS // 2
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

_POSITION = re.compile(r"([A-Za-z0-9]+):(0|[1-9][0-9]*)\Z", re.ASCII)


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


def word(random: int) -> str:
    """Returns half of an epoch, made from a random integer of 30 or more bits."""
    letters = []
    for _ in range(WORD_CHARACTERS):
        random, letter = divmod(random, len(ALPHABET))
        letters.append(ALPHABET[letter])
    return "".join(letters)
