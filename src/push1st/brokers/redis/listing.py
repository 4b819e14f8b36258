"""Reads lists on the server in pages: sorted sets, in each shard one or several.

A cursor has three parts: the set, the server's cursor in this set, and the place in the reply to this cursor (`brokers.listing`)
that the earlier pages have reached. The server returns each entry that stays in the set during all pages, some perhaps twice. It
returns a small set as a whole, in an order that changes with the scores and with the number of entries. Such a reply is sorted.
"""

import re
from collections.abc import Sequence

import msgspec

from push1st.brokers.listing import FIRST, MAX_EXAMINED, index_of, is_place, place_at
from push1st.brokers.redis.shard import Shard

STEP = 500
"""the approximate number of entries that one command examines"""
MAX_POSITION = (1 << 64) - 1
"""the largest cursor of a server"""
WHOLE = "*"
"""in place of the server's cursor: the place is in a reply that is the whole set"""
_CURSOR = re.compile(r"([0-9]{1,4}):([0-9]{1,20}|\*):(.*)\Z")


class ListedName(msgspec.Struct, frozen=True, gc=False):
    """An entry of a list. score: its score in the set. after: the cursor of the entries after this one."""

    shard: Shard
    name: str
    score: float
    after: str


async def names_in(sets: Sequence[tuple[Shard, str]], prefix: str, cursor: str, most: int) -> tuple[list[ListedName], str, int]:
    """Returns entries that begin with a prefix, at most `most`, the cursor of the next page, and the number of examined entries.

    sets: the keys of the sets with their shards, always in the same order. Raises ValueError and Refused(503).
    """
    match = _CURSOR.match(cursor or f"0:0:{FIRST}")
    if match is None or int(match[1]) >= max(1, len(sets)) or not is_place(match[3]):
        raise ValueError(cursor)
    place, reached, was_whole = int(match[1]), match[3], match[2] == WHOLE
    position = "0" if was_whole else match[2]
    if int(position) > MAX_POSITION:
        raise ValueError(cursor)
    pattern = ("MATCH", re.sub(r"([\\*?\[\]^])", r"\\\1", prefix) + "*") if prefix else ()
    found: dict[tuple[int, str], ListedName] = {}
    examined = 0
    while place < len(sets):
        shard, key = sets[place]
        following, items = await shard.connection.call("ZSCAN", key, position, *pattern, "COUNT", STEP)
        pairs = [(name.decode(), float(score)) for name, score in zip(items[::2], items[1::2], strict=True)]
        is_whole = position == "0" and following == b"0"
        if is_whole:
            pairs.sort()
        begin = index_of(pairs, reached, _name) if is_whole == was_whole else 0
        examined += max(STEP if following != b"0" else 0, len(pairs))
        for index, (name, score) in enumerate(pairs[begin:], begin + 1):
            after = f"{place}:{WHOLE if is_whole else position}:{place_at(pairs, index, _name)}"
            found.setdefault((place, name), ListedName(shard, name, score, after))
            if len(found) == most:
                is_last = place + 1 == len(sets) and following == b"0" and index == len(pairs)
                return [*found.values()], "" if is_last else after, examined
        reached, was_whole, position = FIRST, False, following.decode()
        if position == "0":
            place += 1
        if examined >= MAX_EXAMINED and place < len(sets):
            return [*found.values()], f"{place}:{position}:{FIRST}", examined
    return [*found.values()], "", examined


def _name(entry: tuple[str, float]) -> str:
    return entry[0]
