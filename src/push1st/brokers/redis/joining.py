"""Subscriptions on their way to the broker: those that are made to a channel within a turn of the loop are made in one step.

So the clients that are there are told of all new members by one write, and the list of members is made once. Knows
nothing of what the broker keeps; `shard.py` says what is sent.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from push1st.brokers.redis.entries import Key
from push1st.brokers.redis.resp import RespConnection
from push1st.messages import Member

MOST = 500
"""subscriptions made in one step, which the broker does not interrupt: some milliseconds"""
ADDED, REFUSED = 1, 2
"""a member that is new to the cluster, one that is one too many; anything else needs nothing done"""


class PendingJoin:
    """One subscription. way: `ADDED`, `REFUSED` or 0, once the broker has answered."""

    __slots__ = ("done", "id", "member", "received", "socket_id", "way")

    def __init__(self, member: Member | None, socket_id: str, id: int, received: int, done: "asyncio.Future[None]") -> None:
        self.member = member
        self.socket_id = socket_id
        self.id = id
        self.received = received
        self.done = done
        self.way = 0


class JoinBatch:
    """Subscriptions to one channel. most: members it may have. want: what the script is to answer besides.

    found, kept, left: what it did answer. everyone: all members, once they are known; see `Shard.join`.
    """

    __slots__ = ("coming", "everyone", "found", "kept", "key", "left", "link", "most", "seen", "want")

    def __init__(self, link: RespConnection, key: Key, most: int) -> None:
        self.link = link
        self.key = key
        self.most = most
        self.want = ""
        self.coming: list[PendingJoin] = []
        self.found: Any = None
        self.kept: bytes | None = None
        self.left = 0
        self.seen = False
        self.everyone: tuple[Member, ...] | None = None

    def answered(self, reply: Any) -> None:
        waiting = [one for one in self.coming if not one.done.done()]
        if isinstance(reply, Exception):
            for one in waiting:
                one.done.set_exception(reply)
                one.done.exception()  # whoever subscribed may be gone: then nobody asks
            return
        _, self.found, self.kept, self.left, ways = reply
        for one, way in zip(self.coming, ways, strict=True):
            one.way = way
        for one in waiting:
            one.done.set_result(None)


class JoinBatcher:
    """send: sends a step, ordered, and has `answered` called with the reply."""

    def __init__(self, send: Callable[[JoinBatch], None]) -> None:
        self._send = send
        self._steps: dict[Key, JoinBatch] = {}

    def join(
        self, link: RespConnection, key: Key, member: Member | None, socket_id: str, stamp: tuple[int, int], most: int, want: str
    ) -> tuple[JoinBatch, PendingJoin]:
        """A subscription that is sent at the end of the turn, and those that are sent with it."""
        loop = asyncio.get_running_loop()
        step = self._steps.get(key)
        if step is not None and (step.link is not link or len(step.coming) >= MOST):
            self.send(key)
            step = None
        if step is None:
            if not self._steps:
                loop.call_soon(self._flush)
            step = self._steps[key] = JoinBatch(link, key, most)
        step.want += want
        coming = PendingJoin(member, socket_id, *stamp, loop.create_future())
        step.coming.append(coming)
        return step, coming

    def send(self, key: Key) -> None:
        """Sends what there is of a channel: before somebody leaves it, who may be among those."""
        step = self._steps.pop(key, None)
        if step is not None:
            self._send(step)

    def _flush(self) -> None:
        """The end of a turn."""
        steps, self._steps = self._steps, {}
        for step in steps.values():
            self._send(step)
