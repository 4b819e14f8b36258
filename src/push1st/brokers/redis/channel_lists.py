"""Lists the channels and members in the server: of each shard, the hash of an app's channels (`scripts.py`).

HSCAN returns each entry that stays in a hash during the whole scan, some perhaps twice. A page therefore uses whole replies. If
the channels of a reply do not fit, the page requests a shorter reply. Only the shortest reply can still be too long: the server
always sends a small hash as a whole. Of such a reply, a page contains the channels after the last one of the page before.

A cursor has three parts: the shard, the cursor of HSCAN in this shard, and the last channel of an unfinished reply.
"""

import asyncio
import re
from typing import Any

from push1st.brokers import AcceptsChannel, ChannelPage, Occupancy
from push1st.brokers.listing import MAX_EXAMINED
from push1st.brokers.redis.listing import MAX_POSITION
from push1st.brokers.redis.presence import members_of
from push1st.brokers.redis.shards import Shards
from push1st.channels import kind_of
from push1st.messages import Member

STEP = 1000
"""the maximum number of entries that a command examines, approximately"""
_CURSOR = re.compile(r"([0-9]{1,4}):([0-9]{1,20}):(.*)\Z", re.DOTALL)


class RedisLists:
    """Implements the port `ChannelLists`."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    async def some(
        self, app: str, prefix: str, accepts: AcceptsChannel, after: str, most: int, has_users: bool = True
    ) -> ChannelPage:
        match = _CURSOR.match(after or "0:0:")
        if match is None or int(match[1]) >= len(self._shards.all) or int(match[2]) > MAX_POSITION:
            raise ValueError(after)
        place, position, last = int(match[1]), match[2], match[3]
        pattern = ("MATCH", re.sub(r"([\\*?\[\]^-])", r"\\\1", prefix) + "*") if prefix else ()
        found: dict[str, int] = {}
        examined, count = 0, 1 if last else min(most, STEP)
        following = ""
        while place < len(self._shards.all):
            if len(found) >= most or examined >= MAX_EXAMINED:
                following = f"{place}:{position}:{last}"
                break
            shard = self._shards.all[place]
            reply: Any = await shard.connection.call("HSCAN", shard.keys.key("i", app), position, *pattern, "COUNT", count)
            pairs = zip(reply[1][::2], reply[1][1::2], strict=True)
            channels = {name: int(number) for key, number in pairs if accepts(name := key.decode()) and name > last}
            examined += max(count if reply[0] != b"0" else 0, len(reply[1]) // 2)
            room = most - len(found)
            if len(channels) > room and count > 1:
                count = min(count - 1, count * room // len(channels)) or 1
                continue
            if len(channels) > room:
                if not found:
                    found = {name: channels[name] for name in sorted(channels)[:room]}
                    last = max(found)
                following = f"{place}:{position}:{last}"
                break
            found |= channels
            count = min(STEP, 2 * count if 2 * len(channels) < room else count)
            position, last = reply[0].decode(), ""
            if position == "0":
                place += 1
        presence = [name for name in found if has_users and kind_of(name).presence]
        return ChannelPage(await self._with_users(app, found, presence), following, examined)

    async def _with_users(self, app: str, found: dict[str, int], presence: list[str]) -> tuple[Occupancy, ...]:
        """Returns the numbers of subscriptions, and of users on presence channels. found: channel → number of subscriptions."""
        counts = await asyncio.gather(*(self._shards.of(app, name).roster.user_count(app, name) for name in presence))
        users = dict(zip(presence, counts, strict=True))
        return tuple([Occupancy(name, count, users.get(name, 0)) for name, count in found.items()])

    async def some_members(self, app: str, channel: str, most: int) -> tuple[Member, ...]:
        shard = self._shards.of(app, channel)
        members: dict[str, Member] = {}
        position = b"0"
        while len(members) < most:
            position, found = await shard.connection.call(
                "HSCAN", shard.keys.key("m", f"{app}/{channel}"), position, "COUNT", most
            )
            members |= members_of(found)
            if position == b"0":
                break
        return tuple(members.values())[:most]
