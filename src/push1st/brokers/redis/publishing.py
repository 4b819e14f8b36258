"""Messages on the way to the broker: all messages of a topic within one loop turn are one command, which the broker confirms.

Publishing never waits until the broker is back. While the broker is away, publishing is refused at once. A command without a
reply fails after `CONFIRM_SECONDS`.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from push1st.brokers.redis.resp import ConnectionLost, RespConnection
from push1st.brokers.redis.wire import encode_message, encode_messages
from push1st.errors import Refused
from push1st.messages import Message
from push1st.metrics import Metrics

CONFIRM_SECONDS = 2
"""time for the broker to confirm a publish"""
MAX_QUEUED = 8 << 20
"""bytes queued for a slow broker, over which publishing is refused"""
AWAY = "the broker is away: nothing was published"
UNCONFIRMED = "the broker has not confirmed in time: the event may have been delivered to some"


class Batch:
    """The messages of one topic within one turn of the loop. cached: the message that the broker caches, for `milliseconds`.

    waiting: a future for each message, because several coroutines without a task cannot wait for the same future.
    """

    __slots__ = ("app", "at", "cached", "channel", "done", "messages", "milliseconds", "waiting")

    def __init__(self, app: str, channel: str, at: float) -> None:
        self.app = app
        self.channel = channel
        self.messages: list[Message] = []
        self.waiting: list[asyncio.Future[int]] = []
        self.cached: Message | None = None
        self.milliseconds = 0
        self.done = False
        self.at = at

    def fail(self, refused: Refused) -> None:
        if not self.done:
            self.done = True
            for future in self.waiting:
                if not future.done():
                    future.set_exception(refused)
                    future.exception()  # marks it as retrieved: the client may have left, and then no coroutine waits

    def published(self, reply: Any) -> None:
        if isinstance(reply, ConnectionLost):
            self.fail(Refused(503, UNCONFIRMED))
        elif isinstance(reply, Exception):
            self.fail(Refused(503, f"the broker refused: {reply}"))

    def counted(self, reply: Any) -> None:
        if isinstance(reply, Exception):
            self.published(reply)
        elif not self.done:
            self.done = True
            count = int(reply or 0)
            for future in self.waiting:
                if not future.done():
                    future.set_result(count)


Send = Callable[[RespConnection, Batch, bytes, bytes | None], None]
"""Sends a batch: its messages, and the event to cache. `published` and `counted` of the batch take the replies."""


class PublishBatcher:
    """send: see `Send`. connection: the connection for publishes; None: publishing is refused."""

    def __init__(self, send: Send, metrics: Metrics) -> None:
        self._send = send
        self._metrics = metrics
        self.connection: RespConnection | None = None
        self._batches_on: RespConnection | None = None
        """the connection at the time of the first publish of this turn"""
        self._batches: dict[tuple[str, str], Batch] = {}
        self._unconfirmed: deque[Batch] = deque()

    def publish(self, message: Message, milliseconds: int | None = None) -> "asyncio.Future[int]":
        """Sends a message at the end of the turn; returns the number of the channel's subscriptions. Raises Refused(503).

        milliseconds: for which a cache channel caches the message; None if it does not.
        """
        resp = self.connection
        if resp is None:
            raise Refused(503, AWAY)
        loop = asyncio.get_running_loop()
        key = message.app, message.channel
        batch = self._batches.get(key)
        if batch is None:
            if resp.queued > MAX_QUEUED:
                raise Refused(503, "the broker is too slow: nothing was published")
            if not self._batches:
                self._batches_on = resp
                loop.call_soon(self._flush)
            batch = self._batches[key] = Batch(*key, loop.time())
        batch.messages.append(message)
        if milliseconds is not None:
            batch.cached, batch.milliseconds = message, milliseconds
        future: asyncio.Future[int] = loop.create_future()
        batch.waiting.append(future)
        return future

    def _flush(self) -> None:
        """Sends all batches at the end of a turn."""
        batches, self._batches = self._batches, {}
        resp = self._batches_on
        if resp is None or not resp.alive:
            for batch in batches.values():
                batch.fail(Refused(503, AWAY))
            return
        for batch in batches.values():
            self._dispatch(resp, batch)
        resp.flush()

    def _dispatch(self, resp: RespConnection, batch: Batch) -> None:
        self.tick(batch.at)  # releases confirmed batches bit by bit: thousands at once would take milliseconds
        self._unconfirmed.append(batch)
        cached = None if batch.cached is None else encode_message(batch.cached)
        self._send(resp, batch, encode_messages(batch.messages), cached)

    def send(self, key: tuple[str, str]) -> None:
        """Sends the batch of a channel before a client leaves the channel, because the client may have published in it."""
        if key in self._batches and self._batches_on is not None and self._batches_on.alive:
            self._dispatch(self._batches_on, self._batches.pop(key))

    def tick(self, now: float) -> None:
        """Releases confirmed batches, and fails those that were not confirmed in time."""
        unconfirmed = self._unconfirmed
        while unconfirmed and (unconfirmed[0].done or unconfirmed[0].at + CONFIRM_SECONDS <= now):
            batch = unconfirmed.popleft()
            self._metrics.broker_unconfirmed += not batch.done
            batch.fail(Refused(503, UNCONFIRMED))
