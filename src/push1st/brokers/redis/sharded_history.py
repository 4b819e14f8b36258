"""Implements the port `History` for the channels of all shards."""

import asyncio

from push1st.brokers.history import HistoryPage
from push1st.brokers.redis.shards import Shards
from push1st.positions import Position


class ShardedHistory:
    """See the module."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    async def read(self, app: str, channel: str, since: Position | None, limit: int, reverse: bool) -> HistoryPage:
        return await self._shards.of(app, channel).history.read(app, channel, since, limit, reverse)

    async def clear(self, app: str, channel: str) -> None:
        await self._shards.of(app, channel).history.clear(app, channel)

    def tick(self) -> None:
        now = asyncio.get_running_loop().time()
        for shard in self._shards.all:
            shard.following.tick(now)
