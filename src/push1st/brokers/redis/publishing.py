"""Sends messages to the broker in batches. One command sends all messages that a topic gets in one turn of the event loop.

A batch contains only messages with a history, or only messages without. A message with an idempotency key is a batch of its own.

While the broker is away, publishing is rejected at once. A publish that the broker does not confirm within `CONFIRM_SECONDS`
fails.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from push1st.brokers.redis.resp import ConnectionLost, RespConnection
from push1st.brokers.redis.wire import encode_kept, encode_message, encode_messages
from push1st.config.history import HistorySection
from push1st.errors import Refused
from push1st.messages import Message, Published
from push1st.metrics import Metrics

CONFIRM_SECONDS = 2
"""the seconds within which the broker must confirm a publish"""
MAX_QUEUED = 8 << 20
"""the maximum number of bytes that may wait for a slow broker; with more bytes, publishing is rejected"""
MAX_KEPT_MESSAGES = 100
MAX_KEPT_BYTES = 32 << 10
"""the bounds of a batch with a history, above which the next message begins another batch. A replay contains whole batches, so a
long batch would make a replay too large, although the client misses only the end of the batch."""
AWAY = "the broker is away: nothing was published"
UNCONFIRMED = "the broker has not confirmed in time: the event may have been delivered to some"


class Batch:
    """The messages that are published to one topic in one turn of the event loop.

    section: the settings of the channel's history; None if the broker does not keep the messages.
    key: the idempotency key of the only message, or "".
    size: the bytes of the data of messages with a history.
    cached: the message that the broker caches for `milliseconds`; None if no message is cached.
    waiting: one future for each message, because coroutines without an asyncio task (`eager.py`) cannot share a future.
    """

    __slots__ = ("app", "at", "cached", "channel", "done", "key", "messages", "milliseconds", "section", "size", "waiting")

    def __init__(self, app: str, channel: str, at: float, section: HistorySection | None, key: str) -> None:
        self.app = app
        self.channel = channel
        self.messages: list[Message] = []
        self.waiting: list[asyncio.Future[Published]] = []
        self.section = section
        self.key = key
        self.size = 0
        self.cached: Message | None = None
        self.milliseconds = 0
        self.done = False
        self.at = at

    @property
    def is_full(self) -> bool:
        """Whether the next message with a history needs another batch."""
        return self.size >= MAX_KEPT_BYTES or len(self.messages) >= MAX_KEPT_MESSAGES

    def fail(self, refused: Refused) -> None:
        if not self.done:
            self.done = True
            for future in self.waiting:
                if not future.done():
                    future.set_exception(refused)
                    future.exception()  # without this call, asyncio logs the exception if no coroutine waits

    def published(self, reply: Any) -> None:
        if isinstance(reply, ConnectionLost):
            self.fail(Refused(503, UNCONFIRMED))
        elif isinstance(reply, Exception):
            self.fail(Refused(503, f"the broker refused: {reply}"))

    def counted(self, reply: Any) -> None:
        if isinstance(reply, Exception):
            self.published(reply)
        elif not self.done:
            self.resolve((Published(int(reply or 0)),) * len(self.waiting))

    def resolve(self, results: Sequence[Published]) -> None:
        """Returns the results of the messages to the publishers, unless the batch has failed before."""
        if self.done:
            return
        self.done = True
        for future, result in zip(self.waiting, results, strict=True):
            if not future.done():
                future.set_result(result)


Send = Callable[[RespConnection, Batch, bytes, bytes | None], None]
"""a function that sends the messages and the cached event of a batch; the methods `published` and `counted` handle the replies"""


class PublishBatcher:
    """Collects messages in batches. `connection` is the connection for publishes; without it, publishing is rejected."""

    def __init__(self, send: Send, metrics: Metrics) -> None:
        self._send = send
        self._metrics = metrics
        self.connection: RespConnection | None = None
        self._batches_on: RespConnection | None = None
        """the connection on which the batches of this turn of the event loop are sent"""
        self._batches: dict[tuple[str, str], Batch] = {}
        self._unconfirmed: deque[Batch] = deque()

    def publish(
        self, message: Message, milliseconds: int | None = None, section: HistorySection | None = None, idempotency_key: str = ""
    ) -> "asyncio.Future[Published]":
        """Queues a message; the future returns the result. Raises Refused(503).

        milliseconds: the time for which the broker caches the message; None if the broker does not cache the message.
        section, idempotency_key: see `Broker.publish`.
        """
        resp = self.connection
        if resp is None:
            raise Refused(503, AWAY)
        loop = asyncio.get_running_loop()
        key = message.app, message.channel
        batch = self._batches.get(key)
        if batch is not None and (batch.section is not section or batch.key or idempotency_key or (section and batch.is_full)):
            self._finish(key, batch)
            batch = None
        if batch is None:
            if resp.queued > MAX_QUEUED:
                raise Refused(503, "the broker is too slow: nothing was published")
            if not self._batches:
                self._batches_on = resp
                loop.call_soon(self._flush)
            batch = self._batches[key] = Batch(*key, loop.time(), section, idempotency_key)
        batch.messages.append(message)
        if section is not None:
            batch.size += len(message.data)
        if milliseconds is not None:
            batch.cached, batch.milliseconds = message, milliseconds
        future: asyncio.Future[Published] = loop.create_future()
        batch.waiting.append(future)
        return future

    def _flush(self) -> None:
        """Sends all batches at the end of a turn of the event loop."""
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
        self.tick(batch.at)  # removes confirmed batches now, because freeing thousands at once takes milliseconds
        self._unconfirmed.append(batch)
        cached = None if batch.cached is None else encode_message(batch.cached)
        data = encode_messages(batch.messages) if batch.section is None else encode_kept(batch.messages)
        self._send(resp, batch, data, cached)

    def _finish(self, key: tuple[str, str], batch: Batch) -> None:
        """Sends a batch before the end of the turn, because the next message of the channel needs another batch."""
        self.send(key)
        if self._batches.get(key) is batch:  # the connection has ended
            del self._batches[key]
            batch.fail(Refused(503, AWAY))

    def send(self, key: tuple[str, str]) -> None:
        """Sends the batch of a channel before a client's leave, so that other clients receive the client's events first."""
        if key in self._batches and self._batches_on is not None and self._batches_on.alive:
            self._dispatch(self._batches_on, self._batches.pop(key))

    def tick(self, now: float) -> None:
        """Removes confirmed batches from memory; rejects batches that the broker has not confirmed in time."""
        unconfirmed = self._unconfirmed
        while unconfirmed and (unconfirmed[0].done or unconfirmed[0].at + CONFIRM_SECONDS <= now):
            batch = unconfirmed.popleft()
            self._metrics.broker_unconfirmed += not batch.done
            batch.fail(Refused(503, UNCONFIRMED))
