"""Collects subscriptions in batches: one script call adds all subscriptions to a channel from one turn of the event loop.

So each existing member receives all new members in one write to the socket. The member list is built once for all new members.
This module does not know the keys of the broker; `presence.py` sends the batches.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from push1st.brokers.history import ReplayRequest
from push1st.brokers.redis.history import HistoryState
from push1st.brokers.redis.keys import ChannelKey
from push1st.brokers.redis.resp import RespConnection
from push1st.messages import Member

MAX_JOINS = 500
"""the maximum number of subscriptions in one batch; other commands wait some milliseconds while the server adds a batch"""
ADDED, REFUSED = 1, 2
"""the results of a join: `ADDED` if the member is new in the cluster, `REFUSED` if the member would exceed the limit; else 0"""


class PendingJoin:
    """One subscription in a batch. After the broker has replied, `result` is `ADDED`, `REFUSED`, or 0 for other results."""

    __slots__ = ("done", "id", "member", "received", "request", "result", "socket_id")

    def __init__(
        self,
        member: Member | None,
        socket_id: str,
        id: int,
        received: int,
        request: ReplayRequest | None,
        done: "asyncio.Future[None]",
    ) -> None:
        self.member = member
        self.socket_id = socket_id
        self.id = id
        self.received = received
        self.request = request
        self.done = done
        self.result = 0


class JoinBatch:
    """The subscriptions to one channel that one script call adds.

    limit: the maximum number of members of the channel; 0 stands for no limit.
    want: the data that the script must return in addition to the results, as letters (`lua/join.lua`).
    found, cached, left: from the script's reply: the members, the cached event, and the milliseconds until this event expires.
    history: the channel's history, which all subscriptions share; None if no subscription requests a part of it.
    decode: a function that decodes the history in the script's reply.
    delivered: whether this node has delivered the joins to the members on this node.
    members: all members of the channel; None until `ShardRoster` has a member list.
    """

    __slots__ = (
        "cached",
        "decode",
        "delivered",
        "found",
        "history",
        "key",
        "left",
        "limit",
        "members",
        "pending",
        "resp",
        "want",
    )

    def __init__(self, resp: RespConnection, key: ChannelKey, limit: int) -> None:
        self.resp = resp
        self.key = key
        self.limit = limit
        self.want = ""
        self.pending: list[PendingJoin] = []
        self.found: Any = None
        self.cached: bytes | None = None
        self.left = 0
        self.history: HistoryState | None = None
        self.decode: Callable[[Any], HistoryState]
        self.delivered = False
        self.members: tuple[Member, ...] | None = None

    def on_reply(self, reply: Any) -> None:
        """Handles the reply of the script, or the error that arrived instead of a reply."""
        waiting = [one for one in self.pending if not one.done.done()]
        if isinstance(reply, Exception):
            for one in waiting:
                one.done.set_exception(reply)
                one.done.exception()  # without this call, asyncio logs the exception if no coroutine waits
            return
        _, self.found, self.cached, self.left, results, history = reply
        if history is not None:
            self.history = self.decode(history)
        for one, result in zip(self.pending, results, strict=True):
            one.result = result
        for one in waiting:
            one.done.set_result(None)


class JoinBatcher:
    """Collects subscriptions in batches. `send` sends a batch as an ordered command (`resp.py`) with the batch's `on_reply`."""

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
        request: ReplayRequest | None = None,
    ) -> tuple[JoinBatch, PendingJoin]:
        """Adds a subscription to the batch of its channel; returns the batch and the subscription. `_flush` sends the batch."""
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
        pending = PendingJoin(member, socket_id, *stamp, request, loop.create_future())
        batch.pending.append(pending)
        return batch, pending

    def send(self, key: ChannelKey) -> None:
        """Sends the batch of a channel before a client's leave, because the batch may contain the client's join."""
        batch = self._batches.pop(key, None)
        if batch is not None:
            self._send(batch)

    def _flush(self) -> None:
        """Sends all batches at the end of a turn of the event loop."""
        batches, self._batches = self._batches, {}
        for batch in batches.values():
            self._send(batch)
