"""Creates the parts of a shard, and links them with each other. A shard serves the keys of one hash slot.

| part | subject |
| --- | --- |
| `connection.py`, `states.py` | reconnecting, and the commands that are allowed in each state of the connection |
| `topics.py`, `requests.py` | subscriptions to topics, and requests to other nodes |
| `presence.py`, `joining.py` | the roster: joins, leaves, members, users, quotas |
| `publishing.py`, `appending.py` | publishes, in batches of one topic and one turn of the event loop |
| `history.py` | the kept messages of channels |
| `shard_logs.py` | the logs of filters, for sessions of MQTT clients |
| `shard_groups.py` | the messages of groups, which several MQTT clients share |
| `following.py` | the channels with a history that have subscribers on this node |
| `interest.py`, `known_filters.py` | the filters with wildcards of all nodes |
| `lease.py` | this node's lease, and the eviction of dead nodes |
| `reconcile.py` | registration, and comparison of this node's entries with the broker's copy |
| `hook_events.py` | hook events, and the consumer that delivers them |
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import hiredis
import msgspec

from push1st import logs
from push1st.brokers.redis.appending import append_arguments, key_of, mqtt_arguments, results, trimmed
from push1st.brokers.redis.connection import FAULTS, ShardConnection
from push1st.brokers.redis.context import NodeContext
from push1st.brokers.redis.following import Following
from push1st.brokers.redis.history import ShardHistory
from push1st.brokers.redis.hook_events import HookEventStream
from push1st.brokers.redis.interest import Interest
from push1st.brokers.redis.keys import Keys
from push1st.brokers.redis.lease import Lease
from push1st.brokers.redis.presence import ShardRoster
from push1st.brokers.redis.publishing import CONFIRM_SECONDS, Batch, PublishBatcher
from push1st.brokers.redis.reconcile import Reconciler
from push1st.brokers.redis.requests import Requests
from push1st.brokers.redis.resp import Argument, ConnectionLost, OnPush, RespConnection, pack
from push1st.brokers.redis.retained import exceeded_bound
from push1st.brokers.redis.scripts import APPEND, APPEND_ALL, APPEND_LOGS, CLUSTER_SHARDS, PUBLISH_CACHED
from push1st.brokers.redis.shard_groups import ShardGroups
from push1st.brokers.redis.shard_logs import CLUSTER_PART, ShardLogs
from push1st.brokers.redis.topics import ShardTopics
from push1st.brokers.redis.wire import copy_of
from push1st.brokers.retained import bounds_of
from push1st.config.brokerurl import Address
from push1st.eager import timeout
from push1st.errors import LimitReached

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
        self.on_registering: Callable[[Shard], None] = lambda _: None
        """a function that is called before each registration, and before messages arrive on a new connection"""
        self.on_registered: Callable[[Shard], None] = lambda _: None
        """a function that is called after each registration of the node"""
        self.on_suspended: Callable[[Shard], None] = lambda _: None
        """a function that is called when the connection or the lease is lost"""
        self._timings = context.timings
        self._metrics = context.metrics
        self._bounds = bounds_of(CLUSTER_SHARDS if address.how == "cluster" else 1)
        keys = self.keys = Keys(address.prefix, tag, address.how == "cluster")
        self.connection = ShardConnection(
            address, tag, context.node, keys, on_push, self._register, self._suspend, context.log_dedup, context.timings
        )
        self.interest = Interest(keys, self.connection, context.filters)
        part = CLUSTER_PART if address.how == "cluster" else 1
        self.groups = ShardGroups(keys, self.connection, self.interest.known, context, part)
        self._publishing = PublishBatcher(
            *(self._send_batch, self._send_copies, self.groups.send_late, self.interest.known, context.metrics)
        )
        self.publish = self._publishing.publish
        self.connection.on_publish_connection = self._set_publish_connection
        self.topics = ShardTopics(keys, self.connection, context.node)
        self.requests = Requests(keys, self.connection, self.topics.inbox, context.metrics.broker_seconds["ask"])
        self.history = ShardHistory(keys, self.connection, lambda: context.stamp()[1])
        self.logs = ShardLogs(context, keys, self.connection, self.history, self.interest.known, part)
        self.following = Following(context, keys, self.connection, self.history)
        self.roster = ShardRoster(*(context, keys, self.connection, self.topics, self._publishing, self.history, self.following))
        self.hook_events = HookEventStream(address, tag, context, keys, self.connection)
        self.lease = Lease(
            *(context, keys, self.connection, self.hook_events),
            *(lambda: self.history.stored_generation, self._repair, self.groups.bounds),
        )
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
                self.interest,
            ),
            *(owns, numbered, number),
        )

    async def _register(self, resp: RespConnection) -> None:
        self.on_registering(self)
        await self.reconciler.register(resp)
        self.on_registered(self)
        self.groups.repair(resp)

    def _suspend(self) -> None:
        self.hook_events.suspend()
        self.on_suspended(self)

    def _repair(self) -> None:
        if self.connection.repair_needed and self.connection.registered_on is not None:
            self.groups.repair(self.connection.registered_on)
        self.reconciler.repair_if_needed()

    def _set_publish_connection(self, resp: RespConnection | None) -> None:
        self._publishing.connection = resp

    def _send_batch(self, resp: RespConnection, batch: Batch, data: bytes, cached: bytes | None) -> None:
        app, channel, keys = batch.app, batch.channel, self.keys
        if batch.section is not None or batch.is_single or batch.copies is not None:
            self._send_with_more(resp, batch, data, cached)
        elif cached is None:
            resp.send(pack((keys.publish, keys.topic(app, channel), data)), batch.published)
            resp.send(pack(("HGET", keys.key("i", app), channel)), batch.counted)
        else:
            assert batch.cached is not None
            arguments = app, channel, data, cached, batch.milliseconds, batch.cached.id
            self.connection.send(resp, PUBLISH_CACHED, batch.counted, *arguments)

    def _send_with_more(self, resp: RespConnection, batch: Batch, data: bytes, cached: bytes | None) -> None:
        """Sends a batch that the broker keeps, or that may have copies for nodes or belong to logs."""
        copies, keys = batch.copies, self.keys
        nodes = () if copies is None else copies.nodes
        logged = () if copies is None else self.logs.arguments(batch, data)
        given = () if copies is None or not copies.groups else self.groups.send(resp, batch, copies)
        copy = copy_of(data, batch.section is not None) if nodes else b""
        if batch.section is not None or batch.is_single or cached is not None or logged or given:
            inboxes: tuple[Argument, ...] = (copy, *nodes) if nodes else ()
            self._append(resp, batch, data, cached, mqtt_arguments(inboxes, given, logged))
            return
        resp.send(pack((keys.publish, keys.topic(batch.app, batch.channel), data)), batch.published)
        for node in nodes:
            resp.send(pack((keys.publish, keys.topic("", node), copy)), batch.published)
        resp.send(pack(("HGET", keys.key("i", batch.app), batch.channel)), batch.counted)

    def _append(self, resp: RespConnection, batch: Batch, data: bytes, cached: bytes | None, mqtt: Sequence[Argument]) -> None:
        generation = self.history.generation

        def on_reply(reply: Any) -> None:
            if isinstance(reply, Exception):
                if (bound := exceeded_bound(reply)) is not None:
                    batch.fail(LimitReached(403, self._bounds.error(bound)))
                batch.published(reply)
                if str(reply).startswith(FAULTS):  # at once, because the next renewal of the lease may be seconds away
                    self.connection.fault(reply)
            else:
                copies = batch.copies
                if isinstance(reply, bytes):
                    self._repeat_copies(resp, batch, reply)
                else:
                    batch.complete_copies()
                    if copies is not None and copies.late_groups:
                        self._publishing.accepted(resp, batch, copies)
                batch.resolve(results(reply, generation, len(batch.messages), 0 if copies is None else len(copies.nodes)))
                self._metrics.mqtt_dropped["trimmed"] += trimmed(reply)

        word = "" if batch.section is None else self.history.new_word()
        arguments = append_arguments(batch, data, cached, generation, word, mqtt)
        script = APPEND if batch.retain is None and cached is None and not mqtt else APPEND_ALL
        self.connection.send(resp, script, on_reply, *arguments)

    def _send_copies(self, resp: RespConnection, batch: Batch, nodes: Sequence[str]) -> None:
        """Sends copies of a batch that was sent before, to nodes and to logs. Without nodes, only new logs get the messages.

        If the batch has only one message, the broker may have refused it. Then the script sends no copies.
        """
        logged = self.logs.late_arguments(batch, nodes)
        if logged or nodes:
            id = batch.messages[0].id if batch.is_single else ""
            key = key_of(batch) if batch.key else ""
            copy = batch.copy if nodes else b""
            arguments = batch.app, batch.channel, self.history.generation, copy, id, key, len(nodes), *nodes, *logged
            self.connection.send(resp, APPEND_LOGS, batch.copied, *arguments)
        else:
            batch.copied(None)

    def _repeat_copies(self, resp: RespConnection, batch: Batch, reply: bytes) -> None:
        """Sends the copies of a message again, because its idempotency key was used before.

        The node that used the key may have ended before it sent the copies for new filters. A filter drops a second copy with the
        same id, so each copy has the id of the first message. reply: see `results`.
        """
        copies = batch.copies
        if copies is not None:
            copies.complete = None
            batch.messages = [msgspec.structs.replace(batch.messages[0], id=int(reply.rpartition(b" ")[2]))]
            for node in self.interest.known.match(batch.app, batch.channel).nodes:
                copies.unconfirmed += 1
                resp.send(pack((self.keys.publish, self.keys.topic("", node), batch.copy)), batch.copied)

    def tick(self, now: float) -> None:
        """Checks deadlines, and starts due renewals and comparisons. `Shards` calls this method several times a second."""
        self._publishing.tick(now)
        self.connection.tick(now)
        if self.connection.registered_on is not None:
            self.logs.tick(now)
            self.reconciler.tick(now)
            self.lease.tick(now)

    async def close(self) -> None:
        """Removes this node's entries from the broker, and disconnects."""
        self.groups.flush()
        resp = await self.connection.close()
        await self.hook_events.stop()
        if resp is None:
            return
        try:
            async with timeout(CONFIRM_SECONDS):
                await self.lease.release(resp)
            async with timeout(self._timings.last_node):
                await self.hook_events.deliver_last(resp)
        except (TimeoutError, ConnectionLost, hiredis.ReplyError) as exc:
            log.info("the entries of this node remain until its lease expires", reason=str(exc))
        resp.close()
