"""Creates the parts of a shard, and links them with each other. A shard serves the keys of one hash slot.

| part | subject |
| --- | --- |
| `connection.py`, `states.py` | reconnecting, and the commands that are allowed in each state of the connection |
| `topics.py`, `requests.py` | subscriptions to topics, and requests to other nodes |
| `presence.py`, `joining.py` | the roster: joins, leaves, members, users, quotas |
| `publishing.py`, `appending.py` | publishes, in batches of one topic and one turn of the event loop |
| `history.py` | the kept messages of channels |
| `following.py` | the channels with a history that have subscribers on this node |
| `lease.py` | this node's lease, and the eviction of dead nodes |
| `reconcile.py` | registration, and comparison of this node's entries with the broker's copy |
| `hook_events.py` | hook events, and the consumer that delivers them |
"""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import hiredis

from push1st import logs
from push1st.brokers.redis.appending import append_arguments, results
from push1st.brokers.redis.connection import FAULTS, ShardConnection
from push1st.brokers.redis.context import NodeContext
from push1st.brokers.redis.following import Following
from push1st.brokers.redis.history import ShardHistory
from push1st.brokers.redis.hook_events import HookEventStream
from push1st.brokers.redis.keys import Keys
from push1st.brokers.redis.lease import Lease
from push1st.brokers.redis.presence import ShardRoster
from push1st.brokers.redis.publishing import CONFIRM_SECONDS, Batch, PublishBatcher
from push1st.brokers.redis.reconcile import Reconciler
from push1st.brokers.redis.requests import Requests
from push1st.brokers.redis.resp import ConnectionLost, OnPush, RespConnection, pack
from push1st.brokers.redis.scripts import APPEND, PUBLISH_CACHED
from push1st.brokers.redis.topics import ShardTopics
from push1st.config.brokerurl import Address

log = logs.get("push1st.broker")


class Shard:
    """tag: the hash tag of the shard's keys.

    on_push: a function that takes the messages of topics.
    owns: a function that returns whether the keys of an app's channel are in this shard.
    numbered: a function that the shard calls with this node's number in the cluster; None if another shard numbers the node.
    """

    def __init__(
        self,
        address: Address,
        tag: str,
        context: NodeContext,
        on_push: OnPush,
        owns: Callable[[str, str], bool],
        numbered: Callable[[int], None] | None,
    ) -> None:
        self.address = address
        self.tag = tag
        self._timings = context.timings
        keys = self.keys = Keys(address.prefix, tag, address.how == "cluster")
        self.connection = ShardConnection(
            address, tag, context.node, keys, on_push, self._register, self._suspend, context.log_dedup, context.timings
        )
        self._publishing = PublishBatcher(self._send_batch, context.metrics)
        self.publish = self._publishing.publish
        self.connection.on_publish_connection = self._set_publish_connection
        self.topics = ShardTopics(keys, self.connection, context.node)
        self.requests = Requests(keys, self.connection, self.topics.inbox)
        self.history = ShardHistory(keys, self.connection, lambda: context.stamp()[1])
        self.following = Following(context, keys, self.connection, self.history)
        self.roster = ShardRoster(*(context, keys, self.connection, self.topics, self._publishing, self.history, self.following))
        self.hook_events = HookEventStream(address, tag, context, keys, self.connection)
        self.lease = Lease(context, keys, self.connection, self.hook_events, lambda: self.history.stored_generation, self._repair)
        number = random.randrange(1024)  # noqa: S311 - the first number that the node requests
        self.reconciler = Reconciler(
            *(
                context,
                keys,
                self.connection,
                self.topics,
                self.roster,
                self.lease,
                self.hook_events,
                self.history,
                self.following,
            ),
            *(owns, numbered, number),
        )

    async def _register(self, resp: RespConnection) -> None:
        await self.reconciler.register(resp)

    def _suspend(self) -> None:
        self.hook_events.suspend()

    def _repair(self) -> None:
        self.reconciler.repair_if_needed()

    def _set_publish_connection(self, resp: RespConnection | None) -> None:
        self._publishing.connection = resp

    def _send_batch(self, resp: RespConnection, batch: Batch, data: bytes, cached: bytes | None) -> None:
        app, channel, keys = batch.app, batch.channel, self.keys
        if batch.section is not None or batch.key:
            self._append(resp, batch, data, cached)
        elif cached is None:
            resp.send(pack((keys.publish, keys.topic(app, channel), data)), batch.published)
            resp.send(pack(("HGET", keys.key("i", app), channel)), batch.counted)
        else:
            self.connection.send(resp, PUBLISH_CACHED, batch.counted, app, channel, data, cached, batch.milliseconds)

    def _append(self, resp: RespConnection, batch: Batch, data: bytes, cached: bytes | None) -> None:
        generation = self.history.generation

        def on_reply(reply: Any) -> None:
            if isinstance(reply, Exception):
                batch.published(reply)
                if str(reply).startswith(FAULTS):  # at once, because the next renewal of the lease may be seconds away
                    self.connection.fault(reply)
            else:
                batch.resolve(results(reply, generation, len(batch.messages)))

        self.connection.send(resp, APPEND, on_reply, *append_arguments(batch, data, cached, generation, self.history.new_word()))

    def tick(self, now: float) -> None:
        """Checks deadlines, and starts due renewals and comparisons. `Shards` calls this method several times a second."""
        self._publishing.tick(now)
        self.connection.tick(now)
        if self.connection.registered_on is not None:
            self.reconciler.tick(now)
            self.lease.tick(now)

    async def close(self) -> None:
        """Removes this node's entries from the broker, and disconnects."""
        resp = await self.connection.close()
        await self.hook_events.stop()
        if resp is None:
            return
        try:
            async with asyncio.timeout(CONFIRM_SECONDS):
                await self.lease.release(resp)
            async with asyncio.timeout(self._timings.last_node):
                await self.hook_events.deliver_last(resp)
        except (TimeoutError, ConnectionLost, hiredis.ReplyError) as exc:
            log.info("the entries of this node remain until its lease expires", reason=str(exc))
        resp.close()
