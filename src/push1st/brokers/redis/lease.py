"""Renews this node's lease in a shard, and evicts other nodes whose lease has expired.

The broker measures leases on its own clock. A node renews its lease every `Timings.renew` seconds. The reply to a renewal lists
the nodes without a lease. Every living node may evict these nodes. Each eviction step removes up to `MAX_EVICTED` entries.
"""

import asyncio
from collections.abc import Callable, Collection
from typing import Any

from push1st import logs
from push1st.brokers.redis import bounds
from push1st.brokers.redis.connection import STATE_LOST, ShardConnection
from push1st.brokers.redis.context import NodeContext
from push1st.brokers.redis.hook_events import HookEventStream
from push1st.brokers.redis.keys import Keys
from push1st.brokers.redis.resp import Argument, RespConnection, pack
from push1st.brokers.redis.scripts import EVICT_NODE, FLUSH_DEFERRED, RENEW

EVICT_FROM_START = b"m0"
"""the value of `ARGV[4]` with which `lua/evict_node.lua` starts an eviction"""
MARGIN_SECONDS = 0.1
"""the seconds between the end of a recovery (`BASE:recovering`) and the comparison of the views with the roster"""

log = logs.get("push1st.broker")


def milliseconds(seconds: float) -> int:
    return int(seconds * 1000)


class Lease:
    """See the module.

    generation: a function that returns `ShardHistory.stored_generation`.
    renewed: a function that is called after each renewal, and may repair the broker's copy of the entries.
    log_bounds: `bounds` of `give_to_group` in `lua/helpers.lua`, as a text.
    """

    def __init__(
        self,
        context: NodeContext,
        keys: Keys,
        connection: ShardConnection,
        hook_events: HookEventStream,
        generation: Callable[[], str],
        renewed: Callable[[], None],
        log_bounds: str,
    ) -> None:
        self._context = context
        self._keys = keys
        self._connection = connection
        self._hook_events = hook_events
        self._generation = generation
        self._on_renewed = renewed
        self._log_bounds = log_bounds
        self.epoch = ""
        """the epoch of the server's state at this node's last registration (`BASE:epoch` in `scripts.py`)"""
        self.renews_at = 0.0
        self.recovered_at: float | None = None
        """the time (loop's clock) from which the views may be compared with the roster; None if no comparison is due"""
        self.least = 0
        """a lease that ends in fewer milliseconds was not renewed in time (`nodes_not_here` in `lua/helpers.lua`)"""
        self._evicts_at = 0.0
        """the time (loop's clock) from which this node may evict nodes without a lease"""
        self.abandons_at = 0.0
        """the time (loop's clock) from which this node may make the sessions of nodes without a lease absent"""
        self._evicting: set[str] = set()
        """the nodes that this node is evicting now"""
        self._alive: set[str] = set()
        """the other living nodes, according to the server"""
        self._listed: set[str] | None = None
        """the other living nodes, according to the supervisor; None if the supervisor has sent no list"""

    @property
    def others(self) -> list[str]:
        """The other living nodes, for the registration with a server that may have lost the leases of these nodes."""
        return sorted(self._alive if self._listed is None else self._listed)

    @property
    def may_abandon(self) -> bool:
        """Whether this node may make the sessions of nodes without a lease absent."""
        return asyncio.get_running_loop().time() >= max(self._evicts_at, self.abandons_at)

    @property
    def is_first(self) -> bool:
        """Whether this node has the first name of all living nodes, so that it reports the figures of the whole cluster."""
        return all(self._context.node < other for other in self._alive)

    def workers(self, nodes: Collection[str]) -> None:
        """See `Redis.workers`."""
        self._listed = {*nodes} - {self._context.node}
        self._connection.retry()

    def node_subscribed(self, node: str) -> None:
        """Handles the message that another node has subscribed to its topics."""
        self._alive.add(node)
        if self._connection.publish_connection is None:
            self.renew()

    # Renewing

    def registered(self, recovery: int, late: int) -> None:
        """Sends the first renewal after a registration, and postpones evictions if all leases may have expired.

        recovery: the milliseconds during which nodes may still register their entries again after the server has lost its
        state; 0 or less if nodes need not register again.
        late: 1 if this node's lease had expired but the server kept its state, so that other leases may have expired too.
        """
        now = asyncio.get_running_loop().time()
        if late:
            self._evicts_at = now + self._context.timings.lease
        if self.recovered_at is None:  # a new node: the broker may have been away, and the other nodes have no lease yet
            self.abandons_at = now + self._context.timings.lease
        self.recovered_at = now + recovery / 1000 + MARGIN_SECONDS if recovery > 0 else now
        self.renews_at = now + self._context.timings.renew
        self.renew(just_subscribed=True)

    def tick(self, now: float) -> None:
        """Renews the lease when due. While publishing waits for missing nodes, each tick renews: the reply counts these nodes."""
        if self.renews_at <= now or self._connection.publish_connection is None:
            self.renews_at = now + self._context.timings.renew
            self.renew()

    def renew(self, *, just_subscribed: bool = False) -> None:
        """Sends a renewal. `just_subscribed`: whether this is the first renewal after this node subscribed to its topics."""
        connection = self._connection
        if connection.registered_on is not None:
            least = "" if connection.publish_connection is not None else self.least
            lease, term = milliseconds(self._context.timings.lease), self._hook_events.ledger_term
            subscribed = "1" if just_subscribed else "0"
            arguments = self._context.node, lease, term, subscribed, least, self._generation()
            connection.send(connection.registered_on, RENEW, self._renewed, *arguments)

    def _renewed(self, reply: Any) -> None:
        connection = self._connection
        if isinstance(reply, Exception):
            connection.check(reply)
            return
        epoch, recovery, term, dead, deferred, missing, alive = reply
        if (epoch or b"").decode() != self.epoch:
            connection.fault(f"{STATE_LOST} the broker has lost its state")
            return
        now = asyncio.get_running_loop().time()
        connection.nodes_missing(missing)
        alive = {node.decode() for node in alive}
        if recovery > 0:
            self.recovered_at = now + recovery / 1000 + MARGIN_SECONDS
            alive |= self._alive  # during a recovery, some living nodes have not registered again yet
        if self._alive - alive:
            self._hook_events.node_ended()
        self._alive = alive
        self._on_renewed()
        self._hook_events.renewed(term)
        for name in dead if now >= self._evicts_at else ():
            node = name.decode()
            if node not in self._evicting:
                self._evicting.add(node)
                log.warning("a node without a lease is evicted", node=node)
                self._evict(node, (EVICT_FROM_START, ()))
        self._flush_deferred(deferred)

    # Evictions and deferred leaves

    def _evict(self, node: str, reply: Any) -> None:
        """Sends the next step of an eviction. `reply` is the reply to the previous step."""
        if isinstance(reply, Exception):
            self._evicting.discard(node)
            self._connection.check(reply)
            return
        place, fewer = reply
        for app, channel in zip(fewer[::2], fewer[1::2], strict=True):
            self._context.recount(app.decode(), channel.decode())
        resp = self._connection.registered_on
        if place is None or resp is None:
            self._evicting.discard(node)
        else:
            resp.send(pack(self._eviction(node, place)), lambda reply: self._evict(node, reply))

    def _eviction(self, node: str, place: bytes) -> tuple[Argument, ...]:
        """Returns the command for one step of an eviction. `place`: where this step continues (`lua/evict_node.lua`)."""
        hooked = "/".join(("", *map("\n".join, self._context.hooked().items()), ""))
        ids = [self._context.stamp()[0] for _ in range(bounds.MAX_EVICTED)]
        return self._keys.command(EVICT_NODE, node, self._context.stamp()[1], hooked, place, self._log_bounds, *ids)

    def _flush_deferred(self, reply: Any) -> None:
        """Publishes leaves that were deferred during a recovery. `reply`: 0 if the server has no more deferred leaves."""
        if isinstance(reply, Exception):
            self._connection.check(reply)
        elif reply and self._connection.registered_on is not None:
            self._connection.send(self._connection.registered_on, FLUSH_DEFERRED, self._flush_deferred, bounds.MAX_EVICTED)

    async def release(self, resp: RespConnection) -> None:
        """Ends this node's lease, and removes this node's entries from the broker. Raises ConnectionLost, ReplyError."""
        state_lost = await resp.call("GET", self._keys.key("epoch")) != self.epoch.encode()
        await self._hook_events.save_ledger(resp, state_lost=state_lost)
        await resp.call("DEL", self._keys.key("lease", self._context.node))
        place: bytes | None = EVICT_FROM_START
        while place is not None:
            place, _ = await resp.call(*self._eviction(self._context.node, place))
