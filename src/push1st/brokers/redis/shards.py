"""Divides the channels of all apps among shards: one shard on a single server, several shards in a cluster."""

import asyncio
import contextlib
import time
from binascii import crc_hqx
from collections.abc import Callable, Collection
from functools import partial

import hiredis

from push1st.brokers import Peers
from push1st.brokers.redis.context import NodeContext
from push1st.brokers.redis.resp import ConnectionLost
from push1st.brokers.redis.servers import tags
from push1st.brokers.redis.shard import Shard
from push1st.config.brokerurl import Address
from push1st.errors import Refused
from push1st.status import BrokerServer, BrokerStatus

TICK_SECONDS = 0.25
"""the seconds between two checks of deadlines and leases"""


class Shards:
    """The shards of a node. `on_push` takes the index of a shard and a message; `numbered` is called with this node's number."""

    def __init__(
        self,
        address: Address,
        context: NodeContext,
        on_push: Callable[[int, bytes], None],
        numbered: Callable[[int], None],
    ) -> None:
        self._metrics = context.metrics
        self._timer: asyncio.TimerHandle | None = None
        self.on_tick: Callable[[float], None] = lambda _: None
        """a function that is called at each tick with the loop's clock"""
        self.all: list[Shard] = []
        for index, tag in enumerate(tags(address)):
            self.all.append(
                Shard(
                    address,
                    tag,
                    context,
                    partial(on_push, index),
                    partial(self._owns, index),
                    None if index else numbered,
                )
            )

    def _owns(self, index: int, app: str, channel: str) -> bool:
        return self.of(app, channel) is self.all[index]

    def of(self, app: str, channel: str) -> Shard:
        """Returns the shard of a channel."""
        count = len(self.all)
        return self.all[0 if count == 1 else crc_hqx(f"{app}/{channel}".encode(), 0) % count]

    async def open(self) -> None:
        """Connects all shards. Raises Refused(503)."""
        for shard in self.all:
            shard.connection.start()
        self._tick()
        for shard in self.all:
            try:
                await shard.connection.usable()
            except Refused:
                await self.close()
                raise Refused(503, f"the broker cannot be used: {shard.address}: {shard.connection.reason}") from None

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(TICK_SECONDS, self._tick)
        now = loop.time()
        if any(shard.connection.publish_connection is None for shard in self.all):
            self._metrics.broker_away += TICK_SECONDS
        for shard in self.all:
            shard.tick(now)
        self.on_tick(now)

    async def close(self) -> None:
        for shard in self.all:
            await shard.close()
        if self._timer is not None:
            self._timer.cancel()

    def workers(self, nodes: Collection[str]) -> None:
        """See `Redis.workers`."""
        for shard in self.all:
            shard.lease.workers(nodes)

    def peers(self) -> Peers:
        """See `Broker.peers`. A node is living if it has a lease on one of the shards."""
        away = next(
            (one.connection.reason or "no connection" for one in self.all if one.connection.publish_connection is None), ""
        )
        connections = [shard.connection.publish_connection for shard in self.all]
        queued = max(0 if one is None else one.queued for one in connections)
        return Peers({name for shard in self.all for name in shard.lease.others}, away, queued)

    async def state(self) -> BrokerStatus:
        """Returns the state of the broker for operators. Sends a command to the server of each shard."""
        servers: dict[str, BrokerServer] = {}
        for run_id, server in await asyncio.gather(*map(_server, self.all)):
            servers.setdefault(run_id, server)
        away = [shard.connection for shard in self.all if shard.connection.publish_connection is None]
        nodes = max(len(shard.lease.others) for shard in self.all) + 1
        return BrokerStatus(not away, away[0].reason if away else "", nodes, list(servers.values()))


async def _server(shard: Shard) -> tuple[str, BrokerServer]:
    """Returns the run id, version, role and round trip of a shard's server; without a connection, empty values."""
    resp = shard.connection.established
    if resp is not None:
        began = time.perf_counter()  # the loop's clock counts whole milliseconds
        with contextlib.suppress(hiredis.ReplyError, ConnectionLost):
            about = await resp.call("HELLO")
            version, role = (str(about.get(name, b""), "utf-8", "replace") for name in (b"version", b"role"))
            return resp.run_id, BrokerServer(version, role, time.perf_counter() - began)
    return "", BrokerServer("", "", None)
