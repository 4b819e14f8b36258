"""Corrects the broker's copy of this node's entries when the node registers, and after the broker rejected a change.

A node's entries are authoritative for the node's own clients. Each command of the node updates the broker's copy. After the node
has reconnected, its lease has expired, or the server has lost its state, the copy may differ from the entries. Then the node
reads the copy, and sends a change for each difference. In the same way, the node compares the views of its clients (`views.py`)
with the roster, and delivers each difference to its clients.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import hiredis

from push1st import __version__
from push1st.brokers.redis.connection import ShardConnection
from push1st.brokers.redis.context import NodeContext
from push1st.brokers.redis.entries import Difference
from push1st.brokers.redis.following import Following
from push1st.brokers.redis.history import ShardHistory
from push1st.brokers.redis.hook_events import HookEventStream
from push1st.brokers.redis.interest import Interest
from push1st.brokers.redis.keys import ChannelKey, Keys, UserKey
from push1st.brokers.redis.lease import Lease, milliseconds
from push1st.brokers.redis.presence import ShardRoster, join_of, members_of
from push1st.brokers.redis.resp import ConnectionLost, RespConnection
from push1st.brokers.redis.scripts import (
    CONNECT,
    DEFER_LEAVE,
    JOIN,
    LEAVE,
    READ_IF_EPOCH,
    REGISTER,
    SCHEMA,
    SIGN_IN,
    SIGN_OUT,
)
from push1st.brokers.redis.servers import Unusable
from push1st.brokers.redis.states import ConnectionState
from push1st.brokers.redis.topics import ShardTopics
from push1st.eager import spawn

OTHER_SCHEMA = "SCHEMA"
"""the first word of the error reply if the node and the keys have different schemas; the second word is the schema of the keys"""


class Reconciler:
    """See the module.

    owns: a function that returns whether the keys of an app's channel are in this shard.
    numbered: a function that is called with this node's number in the cluster; None if another shard numbers the node.
    """

    def __init__(
        self,
        context: NodeContext,
        keys: Keys,
        connection: ShardConnection,
        topics: ShardTopics,
        roster: ShardRoster,
        lease: Lease,
        hook_events: HookEventStream,
        history: ShardHistory,
        following: Following,
        interest: Interest,
        owns: Callable[[str, str], bool],
        numbered: Callable[[int], None] | None,
        number: int,
    ) -> None:
        self._context = context
        self._keys = keys
        self._connection = connection
        self._topics = topics
        self._roster = roster
        self._lease = lease
        self._hook_events = hook_events
        self._history = history
        self._following = following
        self._interest = interest
        self._owns = owns
        self._numbered = numbered
        self._number = number
        self._state_lost = False
        """whether the server has lost its state and the node has not sent its unconfirmed leaves yet"""

    # Registering

    async def register(self, resp: RespConnection) -> None:
        """Registers this node on a connection. Raises ConnectionLost, ReplyError, Unusable."""
        missing, late, recovery = await self._send_registration(resp)
        topics: list[str] = []
        if self._connection.state is ConnectionState.REGISTERING:  # in other states, the node is already subscribed to its topics
            self._following.hold(tuple(self._following.channels))
            topics = await self._topics.subscribe_all(resp)
            await self._interest.load(resp)
        else:
            self._following.hold(self._following.of_other_generations())
            self._interest.is_doubtful |= self._state_lost
        await self._following.heal(resp)
        stored = await self._stored(resp)
        # There is no await from here to the end, so changes that clients cause are sent after all repairs.
        self._connection.registered(missing)
        self._topics.drop_unneeded(resp, topics)
        self._repair(stored)
        self._send_unconfirmed_leaves()
        self._hook_events.report_kept()
        self._lease.registered(recovery, late)

    async def _send_registration(self, resp: RespConnection) -> tuple[int, int, int]:
        """Returns the number of missing nodes, 1 if the lease had expired (else 0), and the recovery's remaining milliseconds."""
        node, lease = self._context.node, self._lease
        new_epoch = f"{node}-{self._context.stamp()[0]}"
        wanted = self._number if self._numbered else -1
        seconds = self._context.timings.lease - self._context.timings.silent
        lease.least = max(1, milliseconds(seconds)) if lease.epoch else 0
        times = milliseconds(self._context.timings.lease), milliseconds(self._context.timings.recovery)
        described = node, new_epoch, lease.epoch, *times, wanted, lease.least, SCHEMA
        run_id = resp.run_id, self._history.proposed_generation(resp.run_id)
        try:
            reply = await resp.call(*self._keys.command(REGISTER, *described, *run_id, *lease.others))
        except hiredis.ReplyError as exc:
            word, _, found = str(exc).partition(" ")
            if word != OTHER_SCHEMA:
                raise
            raise Unusable(
                f"the keys {self._keys.base}:* have schema {found}, and push1st {__version__} uses schema {SCHEMA}: install a"
                f" version of push1st that uses schema {found}, or set another prefix (?prefix=NAME) in `broker`"
            ) from None
        epoch, recovery, number, missing, late, generation = reply
        self._history.registered(resp.run_id, generation.decode())
        if self._numbered:
            self._number = number
            self._numbered(number)
        if lease.epoch not in ("", epoch.decode()):
            self._state_lost = True
            self._context.metrics.broker_lost_at = self._context.stamp()[1] / 1_000_000_000
            await self._hook_events.state_lost()
        if lease.epoch:
            self._hook_events.registered_again()
        lease.epoch = epoch.decode()
        return missing, late, recovery

    async def _stored(self, resp: RespConnection) -> dict[str, str]:
        """Returns the broker's copy of this node's entries."""
        stored: dict[str, str] = {}
        has_filters = self._interest.known.apps or self._context.filters.values
        for name, kind in (("n", ""), ("nf", "f/")) if has_filters else (("n", ""),):
            key, cursor = self._keys.key(name, self._context.node), b"0"
            while True:
                cursor, found = await resp.call("HSCAN", key, cursor, "COUNT", 1000)
                texts = [one.decode() for one in found]
                stored |= {kind + field: value for field, value in zip(texts[::2], texts[1::2], strict=True)}
                if cursor == b"0":
                    break
        return stored

    def _send_unconfirmed_leaves(self) -> None:
        """Sends the unconfirmed leaves to a server that has lost its state. The server publishes these leaves after the recovery.

        A server that still has its state does not need these leaves, because the repair publishes the edges of the leaves.
        """
        left, self._roster.unconfirmed_leaves = self._roster.unconfirmed_leaves, {}
        if not self._state_lost:
            return
        self._state_lost = False
        for wanted in ("m", "c", "u"):  # members first: a channel is vacated after its members were removed
            for (kind, app, channel, user_id), (socket_id, info) in left.items():
                if kind == wanted:
                    edges, stamp = self._context.hook_edges(app), self._context.stamp()
                    leave = kind, app, channel, user_id, socket_id, *stamp, edges, info
                    self._connection.send_change(DEFER_LEAVE, *leave)

    # Repairing

    def repair_if_needed(self) -> None:
        """Repairs the broker's copy if the server has rejected a change."""
        connection = self._connection
        if connection.repair_needed and connection.registered_on is not None:
            connection.repair_needed = False
            spawn(self._read_and_repair(connection.registered_on))

    async def _read_and_repair(self, resp: RespConnection) -> None:
        """Sends rejected changes again. A change by a client may be sent twice: scripts allow this (`scripts.py`)."""
        try:
            stored = await self._stored(resp)
        except (ConnectionLost, hiredis.ReplyError) as exc:
            self._connection.check(exc)
            return
        if self._connection.registered_on is resp:
            self._repair(stored)

    def _repair(self, stored: dict[str, str]) -> None:
        """Sends a change for each difference between the entries and the broker's copy."""
        context = self._context
        authoritative = context.local_roster, context.filters.values, self._owns
        for difference in self._roster.entries.differences(stored, *authoritative):
            self._send_repair(difference)

    def _send_repair(self, of: Difference) -> None:
        roster, send, stamp = self._roster, self._connection.send_change, self._context.stamp
        key = of.app, of.channel
        if of.what in ("more", "less"):
            self._context.recount(*key)
        match of.what:
            case "more":
                send(JOIN, *roster.join_arguments(key, registers_again=True), *join_of(of.member, "", *stamp()))
            case "less":
                send(LEAVE, *roster.leave_arguments(key, of.user_id, ""))
            case "signed in":
                send(SIGN_IN, of.app, of.user_id, "", *stamp())
            case "signed out":
                send(SIGN_OUT, of.app, of.user_id, "", *stamp())
            case "connections":
                send(CONNECT, of.app, roster.entries.connections(of.app), 0)
            case "filter":
                self._interest.send(of.app, of.channel)

    # Comparing the views of clients with the roster

    def tick(self, now: float) -> None:
        """Compares the views with the roster, when all nodes have had time to register their entries again."""
        lease, resp = self._lease, self._connection.registered_on
        if lease.recovered_at is not None and lease.recovered_at <= now and resp is not None:
            lease.recovered_at = None
            self._compare_views(resp)
            if self._interest.is_doubtful:
                spawn(self._load_filters(resp))

    async def _load_filters(self, resp: RespConnection) -> None:
        """Drops known filters that the server does not have: their nodes ended when the server lost its state."""
        try:
            await self._interest.load(resp)
        except (ConnectionLost, hiredis.ReplyError) as exc:
            self._connection.check(exc)

    def _compare_views(self, resp: RespConnection) -> None:
        """Requests the members and users of all views. The handlers of the replies deliver the differences as edges."""
        send, views, epoch = self._connection.send, self._context.views, self._lease.epoch
        for key in views.of(self._owns):
            send(resp, READ_IF_EPOCH, partial(self._compare_members, key), epoch, self._keys.key("m", "/".join(key)), "")
        for key in views.watched(self._owns):
            send(resp, READ_IF_EPOCH, partial(self._compare_status, key), epoch, self._keys.key("u", key[0]), key[1])

    def _compare_members(self, key: ChannelKey, reply: Any) -> None:
        if isinstance(reply, Exception):
            self._connection.check(reply)
            return
        local = self._context.local_roster
        members = members_of(reply) | local.members(*key)  # if this node was evicted, the reply lacks its members
        self._context.views.compare(key, members, local.single_connections(*key), self._context.stamp)

    def _compare_status(self, key: UserKey, reply: Any) -> None:
        if isinstance(reply, Exception):
            self._connection.check(reply)
            return
        is_online = reply is not None or self._roster.entries.is_signed_in(key)
        self._context.views.compare_status(key, is_online, self._context.stamp)
