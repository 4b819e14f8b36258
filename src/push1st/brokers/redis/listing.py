"""Reads lists on the server in pages: sorted sets, in each shard one or several.

A cursor has three parts: the set, the server's cursor in this set, and the place after this cursor (`brokers.listing`) that the
earlier pages have reached. The server returns each entry that stays in the set during all pages, some perhaps twice.
"""

import re
from collections.abc import Sequence

import msgspec

from push1st.brokers.listing import MAX_EXAMINED, digest_of, place_of
from push1st.brokers.redis.shard import Shard

STEP = 500
"""the approximate number of entries that one command examines"""
_CURSOR = re.compile(r"([0-9]{1,4}):([0-9]{1,20}):(|[0-9]{1,9}:[0-9a-f]{1,8})\Z")


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
    match = _CURSOR.match(cursor or "0:0:")
    if match is None or int(match[1]) >= max(1, len(sets)):
        raise ValueError(cursor)
    place, position, reached = int(match[1]), match[2], match[3]
    pattern = ("MATCH", re.sub(r"([\\*?\[\]^])", r"\\\1", prefix) + "*") if prefix else ()
    found: dict[tuple[int, str], ListedName] = {}
    examined = 0
    while place < len(sets):
        shard, key = sets[place]
        following, items = await shard.connection.call("ZSCAN", key, position, *pattern, "COUNT", STEP)
        pairs = [(name.decode(), float(score)) for name, score in zip(items[::2], items[1::2], strict=True)]
        all_names = [name for name, _ in pairs]
        begin = place_of(all_names, reached)
        examined += max(STEP if following != b"0" else 0, len(pairs))
        for index, (name, score) in enumerate(pairs[begin:], begin + 1):
            after = f"{place}:{position}:{index}:{digest_of(name)}"
            found.setdefault((place, name), ListedName(shard, name, score, after))
            if len(found) == most:
                is_last = place + 1 == len(sets) and following == b"0" and index == len(pairs)
                return [*found.values()], "" if is_last else after, examined
        reached, position = "", following.decode()
        if position == "0":
            place += 1
        if examined >= MAX_EXAMINED and place < len(sets):
            return [*found.values()], f"{place}:{position}:", examined
    return [*found.values()], "", examined
