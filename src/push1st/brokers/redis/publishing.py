"""Sends messages to the broker in batches. One command sends all messages that a topic gets in one turn of the event loop.

A batch contains only messages with a history, or only messages without. A message with an idempotency key is a batch of its own,
and so is a message that the broker retains.

A batch is sent to the topic of its channel, and a copy of the batch to the inbox of each node with a matching filter.

While the broker is away, publishing is rejected at once. A publish that the broker does not confirm within `CONFIRM_SECONDS`
fails.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from push1st.brokers.redis.known_filters import KnownFilter, KnownFilters
from push1st.brokers.redis.resp import ConnectionLost, RespConnection
from push1st.brokers.redis.retained import encode_stored
from push1st.brokers.redis.wire import copy_of, encode_kept, encode_messages
from push1st.brokers.retained import Retain
from push1st.config.history import HistorySection
from push1st.errors import Refused
from push1st.messages import Message, Published
from push1st.metrics import Histogram, Metrics

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


class Copies:
    """The copies of a batch. nodes: the nodes with a matching filter, which get a copy.

    groups: the matching groups, each of which gets the batch.
    logs: the filters of the logs to which the batch is appended.
    late_groups: those of `groups` that get the batch when the broker has accepted it (`PublishBatcher.accepted`).
    complete: a function that sends missing copies of the batch; None if no filter was added since the last call.
    unconfirmed: the number of copies that were sent after the batch, and that the broker has not confirmed.
    results: the results of the messages, while copies are not confirmed.
    """

    __slots__ = ("complete", "groups", "late_groups", "logs", "nodes", "results", "unconfirmed")

    def __init__(self, nodes: tuple[str, ...] = (), groups: tuple[KnownFilter, ...] = ()) -> None:
        self.nodes = nodes
        self.groups = groups
        self.complete: Callable[[Batch, Copies], None] | None = None
        self.logs: tuple[str, ...] = ()
        self.late_groups: tuple[KnownFilter, ...] = ()
        self.unconfirmed = 0
        self.results: Sequence[Published] | None = None


class Batch(msgspec.Struct, eq=False):
    """The messages that are published to one topic in one turn of the event loop.

    section: the settings of the channel's history; None if the broker does not keep the messages.
    key: the idempotency key of the only message, or "".
    retain: the publisher of the only message if the broker retains the message, else None.
    is_single: whether the batch has only one message.
    copies: the copies of the batch; None if the app has no filters.
    size: the bytes of the data of messages with a history.
    cached: the message that the broker caches for `milliseconds`; None if no message is cached.
    seconds: the durations until the broker confirms a batch.
    waiting: one future for each message, because coroutines without an asyncio task (`eager.py`) cannot share a future.
    """

    app: str
    channel: str
    at: float
    section: HistorySection | None
    key: str
    retain: Retain | None
    is_single: bool = False
    copies: Copies | None = None
    size: int = 0
    cached: Message | None = None
    milliseconds: int = 0
    seconds: Histogram | None = None
    done: bool = False
    messages: list[Message] = []
    waiting: list[asyncio.Future[Published]] = []

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
            if self.copies is None:
                result = Published(int(reply or 0))
            else:
                self.complete_copies()
                result = Published(int(reply or 0), filters=len(self.copies.nodes))
            self.resolve((result,) * len(self.waiting))

    def complete_copies(self) -> None:
        """Sends the copies that are missing because filters were added after the batch was sent."""
        copies = self.copies
        if copies is not None and copies.complete is not None:
            complete, copies.complete = copies.complete, None
            complete(self, copies)

    def copied(self, reply: Any) -> None:
        """Handles the reply to a copy that was sent after the batch."""
        copies = self.copies
        assert copies is not None
        copies.unconfirmed -= 1
        if isinstance(reply, Exception):
            self.published(reply)
        elif copies.results is not None:
            self.resolve(copies.results)

    def resolve(self, results: Sequence[Published]) -> None:
        """Returns the results of the messages to the publishers, unless the batch has failed, or copies are not confirmed."""
        if self.done:
            return
        if self.copies is not None and self.copies.unconfirmed:
            self.copies.results = results
            return
        self.done = True
        if self.seconds is not None:
            self.seconds.observe(time.monotonic() - self.at)
        for future, result in zip(self.waiting, results, strict=True):
            if not future.done():
                future.set_result(result)

    @property
    def copy(self) -> bytes:
        """The data of a copy of the batch."""
        data = encode_messages(self.messages) if self.section is None else encode_kept(self.messages)
        return copy_of(data, self.section is not None)


Send = Callable[[RespConnection, Batch, bytes, bytes | None], None]
"""a function that sends the messages and the cached event of a batch; the methods `published` and `counted` handle the replies"""


class PublishBatcher:
    """Collects messages in batches.

    send_copies: a function that sends copies of a batch to some nodes and to logs that lack the batch; `Batch.copied` handles the
        reply.
    send_to_group: a function that gives a batch to a group, and returns the number of commands; the same method handles replies.
    known: the filters of all nodes.
    connection: the connection for publishes; without it, publishing is rejected.
    """

    def __init__(
        self,
        send: Send,
        send_copies: Callable[[RespConnection, Batch, tuple[str, ...]], None],
        send_to_group: Callable[[RespConnection, Batch, KnownFilter], int],
        known: KnownFilters,
        metrics: Metrics,
    ) -> None:
        self._send = send
        self._send_copies = send_copies
        self._send_to_group = send_to_group
        self._known = known
        known.on_added = self._filter_added
        self._incomplete: set[str] = set()
        """the apps with filters that were added since the last batch was sent; their unconfirmed batches may lack copies"""
        self._metrics = metrics
        self.connection: RespConnection | None = None
        self._batches_on: RespConnection | None = None
        """the connection on which the batches of this turn of the event loop are sent"""
        self._batches: dict[tuple[str, str], Batch] = {}
        self._unconfirmed: deque[Batch] = deque()

    def publish(
        self,
        message: Message,
        milliseconds: int | None = None,
        section: HistorySection | None = None,
        idempotency_key: str = "",
        retain: Retain | None = None,
    ) -> "asyncio.Future[Published]":
        """Queues a message; the future returns the result. Raises Refused(503).

        milliseconds: the time for which the broker caches the message; None if the broker does not cache the message.
        section, idempotency_key, retain: see `Broker.publish`.
        """
        resp = self.connection
        if resp is None:
            raise Refused(503, AWAY)
        loop = asyncio.get_running_loop()
        key = message.app, message.channel
        batch = self._batches.get(key)
        if batch is not None and (
            batch.section is not section or batch.is_single or idempotency_key or retain or (section and batch.is_full)
        ):
            self._finish(key, batch)
            batch = None
        if batch is None:
            if resp.queued > MAX_QUEUED:
                raise Refused(503, "the broker is too slow: nothing was published")
            if not self._batches:
                self._batches_on = resp
                loop.call_soon(self._flush)
            batch = self._batches[key] = Batch(*key, time.monotonic(), section, idempotency_key, retain)
            batch.seconds = self._metrics.broker_seconds["publish"]
            if idempotency_key or retain:
                batch.is_single = True
            if self._known.apps:
                self._known.match(*key)  # now, so that the caller of this method can measure the cost
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
        cached = None if batch.cached is None else encode_stored(batch.cached)
        data = encode_messages(batch.messages) if batch.section is None else encode_kept(batch.messages)
        if self._incomplete:
            self._complete_all()
        if batch.app in self._known.apps:
            found = self._known.match(batch.app, batch.channel)
            batch.copies = Copies(found.nodes, found.groups)
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

    def _filter_added(self, app: str) -> None:
        """Marks the unconfirmed batches of an app as incomplete, because a node has added a filter or group, or the broker a log.

        The broker may have added the filter before it ran these batches. The missing copies are sent before later batches, and
        are confirmed before the batches. They are not sent at once, because many filters may be added at once.
        """
        if app in self._incomplete or not self._unconfirmed:
            return
        self._incomplete.add(app)
        for batch in self._unconfirmed:
            if batch.app == app and not batch.done:
                if batch.copies is None:
                    batch.copies = Copies()
                if batch.copies.results is None:
                    batch.copies.complete = self._complete

    def _complete_all(self) -> None:
        for batch in self._unconfirmed:
            if batch.app in self._incomplete and not batch.done:
                batch.complete_copies()
        self._incomplete.clear()

    def _complete(self, batch: Batch, copies: Copies) -> None:
        """Sends a batch to the nodes with a matching filter that have not got it, and to groups and logs that lack it.

        The broker may reject a retained message, and does not publish a message whose idempotency key was used before. So groups
        get a message with RETAIN, or with an idempotency key, only when the broker has accepted the message.
        """
        resp, found = self._batches_on, self._known.match(batch.app, batch.channel)
        assert resp is not None
        nodes = tuple(node for node in found.nodes if node not in copies.nodes)
        copies.nodes += nodes
        copies.unconfirmed += 1
        self._send_copies(resp, batch, nodes)
        names = {one.name for one in copies.groups}
        groups = tuple(one for one in found.groups if one.name not in names)
        copies.groups += groups
        if batch.is_single:
            copies.late_groups += groups
            return
        for group in groups:
            copies.unconfirmed += self._send_to_group(resp, batch, group)

    def accepted(self, resp: RespConnection, batch: Batch, copies: Copies) -> None:
        """Gives a batch that the broker has accepted to its late groups. Called before `Batch.resolve`."""
        for group in copies.late_groups:
            copies.unconfirmed += self._send_to_group(resp, batch, group)

    def tick(self, now: float) -> None:
        """Removes confirmed batches from memory; rejects batches that the broker has not confirmed in time."""
        unconfirmed = self._unconfirmed
        while unconfirmed and (unconfirmed[0].done or unconfirmed[0].at + CONFIRM_SECONDS <= now):
            batch = unconfirmed.popleft()
            if not batch.done:
                self._metrics.broker_unconfirmed += 1
                batch.fail(Refused(503, UNCONFIRMED))
