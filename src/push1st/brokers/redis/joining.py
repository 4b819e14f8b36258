"""Subscriptions on the way to the broker: one step adds all that are made to a channel within one turn of the loop.

So the members that are on the channel already receive all new members by one write, and the list of members is made once. This
module knows no keys; `presence.py` sends the steps.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from push1st.brokers.redis.keys import ChannelKey
from push1st.brokers.redis.resp import RespConnection
from push1st.messages import Member

MAX_JOINS = 500
"""subscriptions in one step; the server runs no other command during the step, which takes some milliseconds"""
ADDED, REFUSED = 1, 2
"""results of a join: a new member of the cluster, or a member over the limit; any other result needs no action"""


class PendingJoin:
    """One subscription. result: `ADDED`, `REFUSED` or 0, as soon as the broker has replied."""

    __slots__ = ("done", "id", "member", "received", "result", "socket_id")

    def __init__(self, member: Member | None, socket_id: str, id: int, received: int, done: "asyncio.Future[None]") -> None:
        self.member = member
        self.socket_id = socket_id
        self.id = id
        self.received = received
        self.done = done
        self.result = 0


class JoinBatch:
    """Subscriptions to one channel.

    limit: members that the channel may have.
    want: what the script returns in addition to the results (`lua/join.lua`).
    found, cached, left: what the script returned.
    delivered: whether the joins were delivered to the members on this node.
    members: all members, as soon as they are known (`ShardRoster.join`).
    """

    __slots__ = ("cached", "delivered", "found", "key", "left", "limit", "members", "pending", "resp", "want")

    def __init__(self, resp: RespConnection, key: ChannelKey, limit: int) -> None:
        self.resp = resp
        self.key = key
        self.limit = limit
        self.want = ""
        self.pending: list[PendingJoin] = []
        self.found: Any = None
        self.cached: bytes | None = None
        self.left = 0
        self.delivered = False
        self.members: tuple[Member, ...] | None = None

    def on_reply(self, reply: Any) -> None:
        """Handles the reply of the script, or the error in its place."""
        waiting = [one for one in self.pending if not one.done.done()]
        if isinstance(reply, Exception):
            for one in waiting:
                one.done.set_exception(reply)
                one.done.exception()  # marks it as retrieved: the client may have left, and then no coroutine waits
            return
        _, self.found, self.cached, self.left, results = reply
        for one, result in zip(self.pending, results, strict=True):
            one.result = result
        for one in waiting:
            one.done.set_result(None)


class JoinBatcher:
    """send: sends a batch as an ordered command (`resp.py`) whose reply goes to `on_reply`."""

    def __init__(self, send: Callable[[JoinBatch], None]) -> None:
        self._send = send
        self._batches: dict[ChannelKey, JoinBatch] = {}

    def join(
        self,
        resp: RespConnection,
        key: ChannelKey,
        member: Member | None,
        socket_id: str,
        stamp: tuple[int, int],
        limit: int,
        want: str,
    ) -> tuple[JoinBatch, PendingJoin]:
        """Adds a subscription, which is sent at the end of the turn. Returns its batch, and the subscription."""
        loop = asyncio.get_running_loop()
        batch = self._batches.get(key)
        if batch is not None and (batch.resp is not resp or len(batch.pending) >= MAX_JOINS):
            self.send(key)
            batch = None
        if batch is None:
            if not self._batches:
                loop.call_soon(self._flush)
            batch = self._batches[key] = JoinBatch(resp, key, limit)
        batch.want += want
        pending = PendingJoin(member, socket_id, *stamp, loop.create_future())
        batch.pending.append(pending)
        return batch, pending

    def send(self, key: ChannelKey) -> None:
        """Sends the batch of a channel before a client leaves the channel, because the client may be in the batch."""
        batch = self._batches.pop(key, None)
        if batch is not None:
            self._send(batch)

    def _flush(self) -> None:
        """Sends all batches at the end of a turn."""
        batches, self._batches = self._batches, {}
        for batch in batches.values():
            self._send(batch)
