"""Sends a request to all nodes that are subscribed to a topic, and collects one reply from each of these nodes."""

import asyncio
import time
from collections.abc import Awaitable

from push1st.brokers.redis.connection import AWAY_FOR_LONG, ShardConnection
from push1st.brokers.redis.keys import Keys
from push1st.brokers.redis.resp import RespConnection, pack
from push1st.brokers.redis.wire import TopicRequest, encode_reply, encode_request
from push1st.errors import Refused
from push1st.metrics import Histogram


class PendingReplies:
    """Collects the replies to one request, until the expected number of replies has arrived."""

    __slots__ = ("_expected", "done", "replies")

    def __init__(self, done: "asyncio.Future[None]") -> None:
        self.done = done
        self.replies: list[bytes] = []
        self._expected = -1

    def expect(self, count: int) -> None:
        self._expected = count
        self._end_if_complete()

    def add(self, reply: bytes) -> None:
        self.replies.append(reply)
        self._end_if_complete()

    def _end_if_complete(self) -> None:
        if 0 <= self._expected <= len(self.replies):
            self.end()

    def end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class Requests:
    """Sends the requests and replies of this node. `inbox` is the topic on which this node receives replies.

    seconds: the durations until all replies have arrived.
    """

    def __init__(self, keys: Keys, connection: ShardConnection, inbox: str, seconds: Histogram) -> None:
        self._seconds = seconds
        self._keys = keys
        self._connection = connection
        self._inbox = inbox
        self._pending: dict[int, PendingReplies] = {}
        self._last_number = 0

    async def send(self, app: str, channel: str, request: bytes, seconds: float) -> list[bytes]:
        """Returns the replies that arrive within `seconds` after the server has confirmed the request. Raises Refused(503)."""
        self._last_number += 1
        number = self._last_number
        data = encode_request(TopicRequest(self._inbox, number, app, channel, request))

        def attempt(resp: RespConnection) -> Awaitable[int]:
            if (
                self._connection.publish_connection is not resp
            ):  # until publishing is allowed, some living nodes may miss requests
                raise Refused(503, AWAY_FOR_LONG)
            return resp.call(self._keys.publish, self._keys.topic(app, channel), data)

        loop = asyncio.get_running_loop()
        pending = self._pending[number] = PendingReplies(loop.create_future())
        timer = None
        started = time.monotonic()
        try:
            pending.expect(await self._connection.until_done(attempt))
            timer = loop.call_later(seconds, pending.end)
            await pending.done
            self._seconds.observe(time.monotonic() - started)
        finally:
            if timer is not None:
                timer.cancel()
            del self._pending[number]
        return pending.replies

    def reply(self, to: TopicRequest, reply: bytes) -> None:
        """Sends this node's reply to a request of another node, or of this node itself."""
        resp = self._connection.established
        if resp is not None:
            resp.send(pack((self._keys.publish, to.inbox, encode_reply(to.number, reply))), self._connection.check)

    def replied(self, number: int, reply: bytes) -> None:
        """Handles a reply to a request of this node."""
        pending = self._pending.get(number)
        if pending is not None:
            pending.add(reply)
