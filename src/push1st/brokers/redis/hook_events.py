"""Reports this node's hook events to a shard of the broker, and runs the consumer of the shard if the server chooses this node.

One node of the cluster, the consumer, delivers the hook events of a shard to the hooks (`events_consumer.py`). When a node renews
its lease, the server decides whether this node is the consumer (`lua/renew.lua`).
"""

import asyncio
from collections import deque

from push1st.brokers.redis import bounds
from push1st.brokers.redis.connection import ShardConnection
from push1st.brokers.redis.context import NodeContext
from push1st.brokers.redis.events_consumer import Consumer, Ledger
from push1st.brokers.redis.keys import Keys
from push1st.brokers.redis.resp import RespConnection, pack
from push1st.brokers.redis.scripts import FLUSH_DEFERRED, HOLD, LAST_OUT, MAX_HOOK_EVENTS
from push1st.brokers.redis.wire import encode_event
from push1st.config.brokerurl import Address
from push1st.messages import HookEvent


class HookEventStream:
    """See the module."""

    def __init__(self, address: Address, tag: str, context: NodeContext, keys: Keys, connection: ShardConnection) -> None:
        self._address = address
        self._tag = tag
        self._context = context
        self._keys = keys
        self._connection = connection
        self.ledger = Ledger()
        self._term = 0
        """the term of the ledger, a number that grows with each renewal of the consumer's lease (`BASE:term` in `scripts.py`)"""
        self.consumer: Consumer | None = None
        self._unreported: deque[HookEvent] = deque(maxlen=bounds.MAX_UNREPORTED)

    # Reporting

    def report(self, event: HookEvent) -> None:
        """Sends a hook event to the broker. While the broker is away, this node keeps the newest `MAX_UNREPORTED` events."""
        connection, keys = self._connection, self._keys
        resp = connection.registered_on
        if resp is None:
            self._unreported.append(event)
        elif event.phase == "held":
            kind, user_id = ("c", "") if event.user_id is None else ("m", event.user_id)
            edge = kind, event.app, event.channel, user_id, event.socket_id, event.at, event.user_info
            connection.send_change(HOLD, *edge)
        else:
            command = ("XADD", keys.key("facts"), "MAXLEN", "~", MAX_HOOK_EVENTS, "*", "fact", encode_event(event))
            resp.send(pack(command), connection.check)

    def report_kept(self) -> None:
        """Sends the hook events that this node kept while the broker was away."""
        while self._unreported:
            self.report(self._unreported.popleft())

    # Reading

    @property
    def ledger_term(self) -> int:
        """The term of this node's ledger, an argument of `lua/renew.lua`: 0 if there is no ledger, -1 if no app has hooks."""
        if not self._context.hooked():
            return -1
        return self._term if self.ledger.there is not None else 0

    @property
    def is_reading(self) -> bool:
        """Whether a consumer runs on this node."""
        return self.consumer is not None and not self.consumer.ended

    def renewed(self, term: int) -> None:
        """Starts or stops the consumer after a renewal of the lease.

        term: 0 if this node is not the consumer. Otherwise, a number that grows with each renewal (`BASE:term` in `scripts.py`),
        with a minus sign if another node was the consumer before this renewal.
        """
        if term <= 0:
            self.ledger.forget()
        self._term = abs(term)
        if term and not self.is_reading:
            self.consumer = self._start()
        elif not term and self.is_reading:
            self.suspend()

    def _start(self, *, last: bool = False) -> Consumer:
        return Consumer(
            *(self._address, self._tag, self._context.node, self._keys.base, self._keys.command, self._context.timings),
            self.ledger,
            lambda: [app for app, edges in self._context.hooked().items() if "s" in edges],
            self._context.on_event,
            last=last,
        )

    def suspend(self) -> None:
        """Stops the consumer, because another node may become the consumer soon; does not wait for the end of the consumer."""
        if self.consumer is not None:
            asyncio.get_running_loop().create_task(self.consumer.stop())

    async def stop(self) -> None:
        consumer, self.consumer = self.consumer, None
        if consumer is not None:
            await consumer.stop()

    async def state_lost(self) -> None:
        """Stops the consumer and resets the place in the ledger, because the server lost its state."""
        await self.stop()
        self.ledger.state_lost()

    def registered_again(self) -> None:
        """Schedules a comparison of the ledger with the roster, because the server may have lost recent events."""
        self.ledger.compared_at = asyncio.get_running_loop().time() + self._context.timings.recovery

    def node_ended(self) -> None:
        """Schedules a comparison of the ledger with the roster, because the ended node may not have reported its edges."""
        self.ledger.checked_at = asyncio.get_running_loop().time() + self._context.timings.recovery

    # Stopping

    async def save_ledger(self, resp: RespConnection, *, state_lost: bool) -> None:
        """Saves the ledger for the next consumer, if a comparison of the ledger with the roster is still due.

        state_lost: whether the Redis server has lost its state since this node last registered; if so, the comparison is due.
        """
        if state_lost:
            self.ledger.compared_at = 0
        await self.ledger.leave(resp, self._keys.base)

    async def deliver_last(self, resp: RespConnection) -> None:
        """Delivers the remaining hook events if no other node is alive. Raises ConnectionLost, ReplyError."""
        keys, context = self._keys, self._context
        lease = int(self._context.timings.lease * 1000)
        if context.hooked() and await resp.call(*keys.command(LAST_OUT, context.node, lease)):
            while await resp.call(*keys.command(FLUSH_DEFERRED, bounds.MAX_EVICTED)):
                continue
            await self._start(last=True).end()
