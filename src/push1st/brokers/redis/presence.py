"""Implements the roster of a shard: joins, leaves, members, signed-in users, and the number of connections of each app.

For each change, the node sends its new number or state, such as its number of subscriptions to a channel. The node never sends a
difference, so a script may run twice (`scripts.py`). The node changes its own entries first, then sends the change. If the broker
does not confirm a join, the node removes the subscription again.
"""

import time
from typing import Any

import hiredis

from push1st.brokers import CACHE_TTL_SECONDS, CachedEvent, Joined
from push1st.brokers.history import ReplayRequest
from push1st.brokers.redis.connection import FAULTS, ShardConnection
from push1st.brokers.redis.context import NodeContext
from push1st.brokers.redis.entries import Entries
from push1st.brokers.redis.following import Following
from push1st.brokers.redis.history import ShardHistory
from push1st.brokers.redis.joining import ADDED, REFUSED, JoinBatch, JoinBatcher, PendingJoin
from push1st.brokers.redis.keys import ChannelKey, Keys
from push1st.brokers.redis.publishing import PublishBatcher
from push1st.brokers.redis.resp import Argument, ConnectionLost, RespConnection, pack
from push1st.brokers.redis.retained import decode_stored
from push1st.brokers.redis.scripts import CACHED, CONNECT, JOIN, LEAVE, SIGN_IN, SIGN_OUT, Script
from push1st.brokers.redis.topics import ShardTopics
from push1st.brokers.redis.wire import Edge
from push1st.channels import kind_of
from push1st.errors import LimitReached, Refused
from push1st.messages import Member, watch_topic

Left = tuple[str, str, str, str]
"""a leave: `m` (a member left), `c` (a channel was vacated) or `u` (a user signed out); then the app; then the channel, which is
empty for `u`; then the user, which is empty for `c`"""


class ShardRoster:
    """See the module."""

    def __init__(
        self,
        context: NodeContext,
        keys: Keys,
        connection: ShardConnection,
        topics: ShardTopics,
        publishing: PublishBatcher,
        history: ShardHistory,
        following: Following,
    ) -> None:
        self._context = context
        self._keys = keys
        self._connection = connection
        self._topics = topics
        self._publishing = publishing
        self._history = history
        self._following = following
        self._joining = JoinBatcher(self._send_joins)
        self.entries = Entries()
        self.unconfirmed_leaves: dict[Left, tuple[str, bytes]] = {}
        """leaves that the server may not have received → socket id and user info; sent again if the server has lost its state"""

    # Joining

    async def join(
        self, app: str, channel: str, socket_id: str, member: Member | None, limit: int, request: ReplayRequest | None = None
    ) -> Joined:
        """See `Roster.join`. Raises LimitReached, Refused(503)."""
        kind, key = kind_of(channel), (app, channel)
        want = "k" if kind.cache else ""
        entry = self._context.local_roster.join(app, channel, socket_id, member)
        if entry.subscriptions == 1 and kind.presence:
            want += "m"  # this join starts the view; later joins on this node read the members from the view
        try:

            async def attempt(resp: RespConnection) -> tuple[JoinBatch, PendingJoin]:
                if request is not None:
                    self._history.check()
                batch, pending = self._joining.join(resp, key, member, socket_id, self._context.stamp(), limit, want, request)
                await pending.done
                return batch, pending

            while True:
                batch, pending = await self._connection.until_done(attempt)
                if kind.presence:
                    self._deliver_joins(batch)
                if pending.result == REFUSED:
                    raise LimitReached(403, f"{channel} has {limit} members, which is this app's limit")
                if not kind.presence or batch.members is not None:
                    break
                # The first join of this node on the channel failed, so there is no view yet. The members, the history and the
                # following messages must be of one step, so the script runs again.
                want += "m"
            self._context.local_roster.confirm(app, channel, None if member is None else member.user_id)
        except BaseException:
            self.leave(app, channel, socket_id, None if member is None else member.user_id)
            raise
        replay = None
        if request is not None and batch.history is not None:
            replay = self._history.replay(batch.history, request)
            self._following.begin(key, batch.history.position, request.counter_seconds, request.max_bytes)
        return Joined(batch.members, _cached_event(batch.cached, batch.left, self._context.stamp()[1]), replay)

    def _deliver_joins(self, batch: JoinBatch) -> None:
        """Delivers the joins of a batch to the members on this node, and collects the member list for the new members.

        The first coroutine of the batch that resumes calls this method. `JoinBatch.on_reply` would be too early, because some
        connections of earlier batches may not be on the channel yet. The connections of this batch are added to the channel
        after this call. When the topic later delivers the edges of this batch, the view contains these edges and drops them.
        """
        if batch.delivered:
            return
        batch.delivered = True
        key, views = batch.key, self._context.views
        is_followed = views.members(key) is not None
        for one in batch.pending:
            if one.member is not None and (one.result == ADDED or (is_followed and one.result != REFUSED)):
                edge = Edge("+", *key, one.member.user_id, one.socket_id, one.id, one.received, one.member.info)
                views.edge(edge, here=True)
        if batch.found is not None:
            views.begin(key, members_of(batch.found))
        view = views.members(key)
        if view is not None:
            batch.members = tuple(view.values())

    def _send_joins(self, batch: JoinBatch) -> None:
        if not batch.resp.alive:
            batch.on_reply(ConnectionLost("the connection to the broker is lost"))
            return
        batch.decode = self._history.decoder()
        requests = self._history.join_argument([one.request for one in batch.pending])
        arguments: list[Argument] = [self._context.node, *self.join_arguments(batch.key, batch.limit, batch.want, requests)]
        for one in batch.pending:
            arguments += join_of(one.member, one.socket_id, one.id, one.received)
        seconds, started = self._context.metrics.broker_seconds["join"], time.monotonic()

        def on_reply(reply: Any) -> None:
            seconds.observe(time.monotonic() - started)
            batch.on_reply(reply)

        batch.resp.send_ordered(pack(self._keys.command(JOIN, *arguments)), on_reply)

    def join_arguments(
        self, key: ChannelKey, limit: int = 0, want: str = "", requests: str = "", *, registers_again: bool = False
    ) -> tuple[Argument, ...]:
        """Returns the arguments of `lua/join.lua` that describe a channel. `requests`: see `ShardHistory.join_argument`."""
        edges = self._context.hook_edges(key[0])
        return *key, self._context.local_roster.subscriptions(*key), limit, want, edges, "1" if registers_again else "0", requests

    # Leaving

    def leave(self, app: str, channel: str, socket_id: str, user_id: str | None) -> None:
        key = app, channel
        self._joining.send(key)
        departure = self._context.local_roster.leave(app, channel, socket_id, user_id)
        if departure is None:
            return
        self._publishing.send(key)
        left: dict[Left, tuple[str, bytes]] = {}
        gone = departure.member
        if gone is not None and departure.member_confirmed:
            left["m", app, channel, gone.user_id] = socket_id, gone.info
        if departure.vacated:
            self._context.views.end(key)
            self._following.end(key)
            if app in self._context.hooked() and departure.channel_confirmed:
                left["c", app, channel, ""] = socket_id, b"null"
        self._send_leave(left, LEAVE, *self.leave_arguments(key, "" if gone is None else gone.user_id, socket_id))

    def leave_arguments(self, key: ChannelKey, user_id: str, socket_id: str) -> tuple[Argument, ...]:
        """Returns the arguments of `lua/leave.lua`. `user_id`: the user, or empty if other connections of the user remain."""
        edges = self._context.hook_edges(key[0])
        return *key, self._context.local_roster.subscriptions(*key), user_id, socket_id, *self._context.stamp(), edges

    def _send_leave(self, left: dict[Left, tuple[str, bytes]], script: Script, *arguments: Argument) -> None:
        """Sends a leave; stores `left` in `unconfirmed_leaves` if the server may not have received the command."""
        connection = self._connection
        seconds, started = self._context.metrics.broker_seconds["leave"], time.monotonic()

        def confirmed(reply: Any) -> None:
            seconds.observe(time.monotonic() - started)
            if isinstance(reply, ConnectionLost) or (isinstance(reply, hiredis.ReplyError) and str(reply).startswith(FAULTS)):
                self.unconfirmed_leaves |= left
            connection.check(reply)

        if connection.registered_on is None:
            self.unconfirmed_leaves |= left
        else:
            connection.send(connection.registered_on, script, confirmed, self._context.node, *arguments)

    # Queries

    def is_here(self, edge: Edge) -> bool:
        """Returns whether the user of an edge (a member or a signed-in user) has a connection to this node."""
        if edge.kind in ("+", "-"):
            return self._context.local_roster.has_member(edge.app, edge.channel, edge.user_id)
        return self.entries.is_signed_in((edge.app, edge.user_id))

    async def subscriptions(self, app: str, channel: str) -> int:
        return int(await self._connection.call("HGET", self._keys.key("i", app), channel) or 0)

    async def user_count(self, app: str, channel: str) -> int:
        return int(await self._connection.call("HLEN", self._keys.key("m", f"{app}/{channel}")))

    async def members(self, app: str, channel: str) -> dict[str, Member]:
        """Returns the members of a presence channel by user id."""
        return members_of(await self._connection.call("HGETALL", self._keys.key("m", f"{app}/{channel}"), ordered=True))

    async def channels(self, app: str, prefix: str) -> dict[str, int]:
        """Returns the channels whose names begin with `prefix`: channel → number of subscriptions."""
        pattern = "".join(f"\\{char}" if char in "*?[]\\^-" else char for char in prefix) + "*"
        found: dict[str, int] = {}
        key, cursor = self._keys.key("i", app), "0"
        while True:
            following, pairs = await self._connection.call("HSCAN", key, cursor, "MATCH", pattern, "COUNT", 1000)
            found |= {name.decode(): int(count) for name, count in zip(pairs[::2], pairs[1::2], strict=True)}
            cursor = following.decode()
            if cursor == "0":
                return found

    async def cached(self, app: str, channel: str) -> CachedEvent | None:
        """Returns the cached event of a cache channel, or None."""
        found = await self._connection.call(*self._keys.command(CACHED, self._keys.key("k", f"{app}/{channel}")))
        return _cached_event(found[0], found[1], self._context.stamp()[1])

    async def claim(self, app: str, channel: str, seconds: int) -> bool:
        """See `Roster.claim`."""
        key = self._keys.key("claim", f"{app}/{channel}")
        return await self._connection.call("SET", key, self._context.node, "NX", "EX", seconds) is not None

    # Users

    async def sign_in(self, app: str, user_id: str, socket_id: str) -> None:
        self.entries.sign_in((app, user_id), socket_id)
        try:
            arguments = self._context.node, app, user_id, socket_id, *self._context.stamp()
            await self._connection.call(*self._keys.command(SIGN_IN, *arguments), ordered=True)
            self.entries.signed_in((app, user_id))
        except BaseException:
            self.sign_out(app, user_id, socket_id)
            raise

    def sign_out(self, app: str, user_id: str, socket_id: str) -> None:
        confirmed = self.entries.is_signed_in((app, user_id))
        if self.entries.sign_out((app, user_id), socket_id):
            left: dict[Left, tuple[str, bytes]] = {("u", app, "", user_id): (socket_id, b"")} if confirmed else {}
            self._send_leave(left, SIGN_OUT, app, user_id, socket_id, *self._context.stamp())

    async def online(self, app: str, user_ids: list[str]) -> dict[str, bool]:
        """Returns whether each user is online; starts the view of a user if this node is subscribed to the user's watch topic."""
        found = await self._connection.call("HMGET", self._keys.key("u", app), *user_ids, ordered=True)
        online = {user: count is not None for user, count in zip(user_ids, found, strict=True)}
        for user, is_online in online.items():
            if self._keys.topic(app, watch_topic(user)) in self._topics:
                self._context.views.watch(app, user, is_online)
        return online

    # Connections of apps

    async def connect(self, app: str, limit: int) -> bool:
        """Counts a connection; returns False if the app's limit is reached.

        Also returns True if the broker is away for longer than `Timings.patience` or replies with an error, because clients must
        be able to connect during an outage. The next repair sends the number of connections to the broker.
        """

        async def attempt(resp: RespConnection) -> bool:
            self.entries.connect(app)
            try:
                arguments = self._context.node, app, self.entries.connections(app), limit
                reply = await resp.call(*self._keys.command(CONNECT, *arguments))
            except BaseException:
                self.entries.disconnect(app)  # a new registration must not count a connection that was not admitted
                raise
            return bool(reply)

        try:
            admitted: bool = await self._connection.until_done(attempt)
        except Refused:
            self.entries.connect(app)
            self._connection.repair_needed = True
            return True
        if not admitted:
            self.disconnect(app)
        return admitted

    def disconnect(self, app: str) -> None:
        self.entries.disconnect(app)
        self._connection.send_change(CONNECT, app, self.entries.connections(app), 0)


def members_of(found: dict[bytes, bytes] | list[bytes]) -> dict[str, Member]:
    """Returns the members by user id. `found` is the content of a key `BASE:m:APP/CHANNEL`, as a mapping or as a flat list."""
    pairs = found.items() if isinstance(found, dict) else zip(found[::2], found[1::2], strict=True)
    return {(id := user.decode()): Member(id, held.partition(b":")[2]) for user, held in pairs}


def join_of(member: Member | None, socket_id: str, id: int, received: int) -> tuple[Argument, ...]:
    """Returns the arguments of `lua/join.lua` that describe one subscription."""
    user_id, info = ("", b"") if member is None else (member.user_id, member.info)
    return user_id, info, socket_id, id, received


def _cached_event(message: bytes | None, left: int, now: int) -> CachedEvent | None:
    """Returns the cached event with its time to live, or None.

    left: the remaining time to live in milliseconds; -1 for a retained message that does not expire. now: the wall clock in
    nanoseconds.
    """
    if message is None or not left:
        return None
    return CachedEvent(decode_stored(message, left, now), CACHE_TTL_SECONDS if left < 0 else -(-left // 1000))
