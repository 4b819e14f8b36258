"""Messages on their way to the broker: one broker message a topic and loop turn, each confirmed, refused or given up.

Publishing never waits for the broker to come back: it is refused at once when it is away, and given up after
`CONFIRM_SECONDS` without an answer.
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
"""for the broker to confirm a publish"""
MAX_QUEUED = 8 << 20
"""bytes a slow broker may be behind before publishing is refused"""
AWAY = "the broker is away: nothing was published"
UNCONFIRMED = "the broker has not confirmed in time: the event may have been delivered to some"


class Batch:
    """What one topic gets within one turn of the loop. kept: what a cache channel keeps of it, and for how many ms.

    waiting: a future for each message; several coroutines that were begun without a task cannot wait for one.
    """

    __slots__ = ("app", "at", "channel", "done", "kept", "messages", "milliseconds", "waiting")

    def __init__(self, app: str, channel: str, at: float) -> None:
        self.app = app
        self.channel = channel
        self.messages: list[Message] = []
        self.waiting: list[asyncio.Future[int]] = []
        self.kept: Message | None = None
        self.milliseconds = 0
        self.done = False
        self.at = at

    def fail(self, refused: Refused) -> None:
        if not self.done:
            self.done = True
            for future in self.waiting:
                if not future.done():
                    future.set_exception(refused)
                    future.exception()  # whoever published may be gone: then nobody asks

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
"""Sends a batch: its messages, and what is kept of it. Its `published` and `counted` get the replies."""


class PublishBatcher:
    """send: see `Send`. connection: on which publishes are sent; None: publishing is refused."""

    def __init__(self, send: Send, metrics: Metrics) -> None:
        self._send = send
        self._metrics = metrics
        self.connection: RespConnection | None = None
        self._batches_on: RespConnection | None = None
        """the connection at the time of the first publish of this turn"""
        self._batches: dict[tuple[str, str], Batch] = {}
        self._unconfirmed: deque[Batch] = deque()

    def publish(self, message: Message, milliseconds: int | None = None) -> "asyncio.Future[int]":
        """The subscribers of the message's channel, once they are known. Raises Refused(503).

        milliseconds: how long a cache channel keeps it, if it does.
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
            batch.kept, batch.milliseconds = message, milliseconds
        future: asyncio.Future[int] = loop.create_future()
        batch.waiting.append(future)
        return future

    def _flush(self) -> None:
        """The end of a turn."""
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
        self.tick(batch.at)  # what is confirmed goes bit by bit: thousands at once are a pause of milliseconds
        self._unconfirmed.append(batch)
        kept = None if batch.kept is None else encode_message(batch.kept)
        self._send(resp, batch, encode_messages(batch.messages), kept)

    def send(self, key: tuple[str, str]) -> None:
        """Sends what a channel got in this turn so far: before somebody leaves it, who may have published it."""
        if key in self._batches and self._batches_on is not None and self._batches_on.alive:
            self._dispatch(self._batches_on, self._batches.pop(key))

    def tick(self, now: float) -> None:
        """Lets go of what is confirmed, and gives up what was not in time."""
        unconfirmed = self._unconfirmed
        while unconfirmed and (unconfirmed[0].done or unconfirmed[0].at + CONFIRM_SECONDS <= now):
            batch = unconfirmed.popleft()
            self._metrics.broker_unconfirmed += not batch.done
            batch.fail(Refused(503, UNCONFIRMED))
