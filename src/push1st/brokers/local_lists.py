"""Lists the channels and members of the local roster. With the memory broker, these are all channels and members."""

import asyncio

from push1st.brokers import AcceptsChannel, ChannelPage, Occupancy
from push1st.brokers.listing import MAX_EXAMINED
from push1st.brokers.local_roster import LocalRoster
from push1st.messages import Member

SLICE = 2000
"""the approximate number of channels that are examined in one turn of the event loop"""


class LocalLists:
    """Implements the port `ChannelLists`.

    roster: the local roster, which begins to store the names of its channels when a first page is requested, unless it already
    stores them (`LocalRoster.keep_names`).
    """

    def __init__(self, roster: LocalRoster) -> None:
        self._roster = roster

    async def some(
        self, app: str, prefix: str, accepts: AcceptsChannel, after: str, most: int, has_users: bool = True
    ) -> ChannelPage:
        found: list[Occupancy] = []
        examined = 0
        while True:
            names, after, count = self._roster.names(app).page(prefix, accepts, after, most - len(found), SLICE)
            entries = self._roster.channels(app)
            counts = [(name, entries[name].subscriptions, len(entries[name].members)) for name in names]
            found += [Occupancy(name, count, users if has_users else 0) for name, count, users in counts]
            examined += count
            if not after or len(found) >= most or examined >= MAX_EXAMINED:
                return ChannelPage(tuple(found), after, examined)
            await asyncio.sleep(0)

    async def some_members(self, app: str, channel: str, most: int) -> tuple[Member, ...]:
        entry = self._roster.channel(app, channel)
        found: list[Member] = []
        for user in () if entry is None else entry.members.values():
            if user.confirmed and len(found) < most:
                found.append(user.member)
        return tuple(found)
