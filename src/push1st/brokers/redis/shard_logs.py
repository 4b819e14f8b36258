"""The logs of filters in a shard: the messages with QoS 1 and 2 for the sessions of MQTT clients.

A log exists while a session watches its filter, whether the client of the session is connected or absent. `lua/append.lua`
appends the messages of a publish to all matching logs, in the step that publishes them. A log without wildcards is in the shard
of its channel. Other logs have a part in each shard, which contains the messages of the shard's channels.

The position of a message is an epoch and an offset. The epoch is the generation of the server's state (`history.py`) and the word
of the log. A log outlives a restart of a server that stores its state, although the server may lack the last messages. So
`lua/helpers.lua` keeps the offset at which each generation has begun (`log_of`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from push1st import logs
from push1st.brokers.redis.connection import ShardConnection
from push1st.brokers.redis.context import NodeContext
from push1st.brokers.redis.history import ShardHistory
from push1st.brokers.redis.keys import Keys
from push1st.brokers.redis.known_filters import KnownFilters
from push1st.brokers.redis.publishing import Batch
from push1st.brokers.redis.resp import Argument, RespConnection
from push1st.brokers.redis.scripts import EXPIRE_LOGS, LOG_ENDS, READ_LOG, UNWATCH_LOG, WATCH_LOG, Script
from push1st.brokers.redis.wire import MESSAGES, encode_messages
from push1st.brokers.sessions import LOG_QUEUES, MIN_LOG_MESSAGES, SHARE, storable
from push1st.brokers.watched import is_exact
from push1st.config.mqtt import Mqtt
from push1st.messages import INTERNAL, KeptMessage, Message, MqttMessage, qos_of
from push1st.positions import WORD_CHARACTERS, Position

CLUSTER_PART = 8
"""a shard of a cluster may use 1 / `CLUSTER_PART` of the bounds for bytes: twice its share, because channels differ"""
MAX_PAGE_BYTES = 4 << 20
"""the number of bytes after which one read of all parts of a log ends"""
MAX_ENDS = 1000
"""the maximum number of logs whose ends one command returns"""
EXPIRE_SECONDS = 60.0
"""the seconds between two searches of a node for expired messages"""
MAX_EXPIRED = 500
"""the maximum number of entries of an app's logs that one command drops"""
CLOCK_SECONDS = 60
"""the seconds by which the clocks of a message's publisher and of the node that drops the message may differ"""
SPARE_SECONDS = 600
"""the seconds for which the server keeps expired messages, if no node drops them"""

EXACT_LOGS = ""
"""the name in `BASE:f` of all logs of an app without wildcards"""

LogKey = tuple[str, str]
"""the pair of an app's id and a filter"""

log = logs.get("push1st.broker")
_decode = msgspec.msgpack.Decoder(list[MqttMessage]).decode


class PartPage(msgspec.Struct, frozen=True):
    """The newest messages of one part of a log, the oldest first, with their positions.

    more: the position before which the next read ends; None if there are no earlier messages after the cursor.
    """

    messages: Sequence[tuple[Position, Message]] = ()
    more: Position | None = None
    trimmed: bool = False


class ShardLogs:
    """See the module.

    known: the filters of all nodes.
    part: the shard may use 1 / part of the bounds for bytes.
    """

    def __init__(
        self,
        context: NodeContext,
        keys: Keys,
        connection: ShardConnection,
        history: ShardHistory,
        known: KnownFilters,
        part: int,
    ) -> None:
        self._context = context
        settings = context.mqtt
        self._milliseconds = (settings.session_expiry + CLOCK_SECONDS) * 1000
        self._expires_at = 0.0
        self.sweep: Callable[[], None] = lambda: None
        """a function that is called every `EXPIRE_SECONDS`, and begins a step of `LogSweep`"""
        self._keys = keys
        self._connection = connection
        self._history = history
        self._bounds: tuple[Argument, ...] = log_bounds(settings, part)
        self._known = known

    @property
    def generation(self) -> str:
        """The generation of the server's state; "" if the server does not report its run. Then a restart is not detected."""
        return self._history.generation

    # Publishes

    def arguments(self, batch: Batch, data: bytes) -> tuple[Argument, ...]:
        """Returns the arguments of `append_to_logs` for a batch; none if no log needs the batch. data: the encoded batch."""
        filters = self.filters(batch.app, batch.channel)
        if not filters:
            return ()
        messages = [one for one in batch.messages if is_logged(one)]
        if not messages:
            return ()
        if batch.copies is not None:
            batch.copies.logs = tuple(filters)
        is_same = len(messages) == len(batch.messages) and batch.section is None and data[0] >= MESSAGES
        logged = b"" if is_same else encode_logged(messages)
        return logged, len(messages), messages[-1].received // 1_000_000, *self._bounds, *filters

    def late_arguments(self, batch: Batch, nodes: Sequence[str]) -> tuple[Argument, ...]:
        """Returns the arguments of `append_to_logs` for a batch that was sent before; none if no log needs the batch again.

        nodes: the nodes that get a copy of the batch now. The end of a log covers the copy, so all logs get the messages again.
        Without nodes, only the logs that are new since then get the messages.
        """
        known = () if batch.copies is None else batch.copies.logs
        filters = [one for one in self.filters(batch.app, batch.channel) if nodes or one not in known]
        messages = [one for one in batch.messages if is_logged(one)] if filters else []
        if not messages:
            return ()
        if batch.copies is not None:
            batch.copies.logs = (*known, *(one for one in filters if one not in known))
        return encode_logged(messages), len(messages), messages[-1].received // 1_000_000, *self._bounds, *filters

    def filters(self, app: str, channel: str) -> Sequence[str]:
        """Returns the filters of the logs to which a channel's messages belong."""
        if app not in self._known.apps:
            return ()
        filters = self._known.match(app, channel).logs
        return (*filters, channel) if self._known.value(app, EXACT_LOGS) else filters

    async def _call(
        self, script: Script, before: Sequence[Argument], after: Sequence[Argument], ordered: bool = False
    ) -> tuple[str, Any]:
        """Runs a script; returns the generation of the server's state and the reply. Raises Refused(503).

        before, after: the arguments before and after the generation, which another run of the server changes between attempts.
        ordered: see `resp.py`.
        """

        async def attempt(resp: RespConnection) -> tuple[str, Any]:
            generation = self.generation
            return generation, await resp.call(*self._keys.command(script, *before, generation, *after), ordered=ordered)

        found: tuple[str, Any] = await self._connection.until_done(attempt)
        return found

    # Watching

    async def watch(self, key: LogKey, client_id: str, connection: int, is_anonymous: bool) -> Position:
        """Adds a client to those that watch a log; returns the end of the log in this shard. Raises Refused(503).

        connection: the generation of the client's connection.
        """
        rest = self._history.new_word(), _suffix(is_anonymous), listed_name(key[1]), self._connection.node
        generation, (word, last) = await self._call(WATCH_LOG, (*key, client_id, connection), rest, ordered=True)
        return Position(generation + word.decode(), last)

    async def unwatch(self, key: LogKey, client_id: str, connection: int, is_anonymous: bool) -> None:
        """Removes a client from those that watch a log. Raises Refused(503)."""
        arguments = *key, client_id, connection, _suffix(is_anonymous), listed_name(key[1])
        await self._connection.call(*self._keys.command(UNWATCH_LOG, *arguments))

    # Reading

    async def ends(self, keys: Sequence[LogKey]) -> list[Position | None]:
        """Returns the ends of logs in this shard; None for a log that does not exist. Raises Refused(503).

        All messages up to these ends that were sent to this node have arrived when the method returns.
        """
        found: list[Position | None] = []
        for at in range(0, len(keys), MAX_ENDS):
            names = ["/".join(key) for key in keys[at : at + MAX_ENDS]]
            generation, reply = await self._call(LOG_ENDS, (self._connection.node,), names, ordered=True)
            for word, last in zip(*[iter(reply)] * 2, strict=True):
                found.append(Position(generation + word.decode(), last) if word else None)
        return found

    async def read(self, key: LogKey, cursor: Position, limit: int, before: Position | None, parts: int) -> PartPage:
        """Returns the last messages of the log's part in this shard that are after a cursor. Raises Refused(503).

        before: the position before which the messages end; None: they end with the last message.
        parts: the number of parts of the log, which share the maximum number of bytes.
        """
        epoch = cursor.epoch[:-WORD_CHARACTERS], cursor.epoch[-WORD_CHARACTERS:]
        rest = *epoch, cursor.offset, 0 if before is None else before.offset, limit, MAX_PAGE_BYTES // parts
        generation, reply = await self._call(READ_LOG, key, rest)
        if not reply:
            return PartPage(trimmed=True)
        word, offset, trimmed, entries = reply
        return _page(generation + word.decode(), offset, bool(trimmed), entries, limit, before)

    # Expired messages

    def tick(self, now: float) -> None:
        """Drops expired messages from time to time. now: the loop's clock. The node is registered."""
        if now >= self._expires_at and self._known.apps:
            if self._expires_at:
                self.sweep()
            self._expires_at = now + EXPIRE_SECONDS
            until = self._context.stamp()[1] // 1_000_000 - self._milliseconds
            for app in self._known.apps:
                self.expire(app, until)

    def expire(self, app: str, until: int) -> None:
        """Drops the messages of an app up to a time in milliseconds."""

        def on_reply(reply: Any) -> None:
            if isinstance(reply, int):
                self._context.metrics.mqtt_dropped["expired"] += reply
                if reply >= MAX_EXPIRED:
                    self.expire(app, until)
            else:
                self._connection.check(reply)

        if self._connection.registered_on is not None:
            self._connection.send(self._connection.registered_on, EXPIRE_LOGS, on_reply, app, until, MAX_EXPIRED)


def log_bounds(settings: Mqtt, part: int) -> tuple[int, int, int]:
    """Returns the maximum number of messages of a log, the milliseconds for which a log keeps messages, and `part`."""
    return max(LOG_QUEUES * settings.queue, MIN_LOG_MESSAGES), (settings.session_expiry + SPARE_SECONDS) * 1000, part


def _page(epoch: str, after: int, trimmed: bool, entries: Sequence[bytes], limit: int, before: Position | None) -> PartPage:
    """Returns the messages of a reply, which has the newest entry first. after: the offset after which the messages begin."""
    found: list[tuple[Position, Message]] = []
    oldest = after + 1
    for id, data in zip(*[iter(entries)] * 2, strict=True):
        last, _, n = id.partition(b"-")
        oldest = int(last) - int(n) + 1
        try:
            messages = _decode(data)
        except msgspec.DecodeError as exc:  # another version of push1st wrote it, or somebody by hand
            log.error("a log of the broker cannot be decoded", reason=str(exc))
            trimmed = True
            continue
        numbered = [(Position(epoch, offset), one) for offset, one in enumerate(messages, oldest)]
        found += reversed(
            [one for one in numbered if one[0].offset > after and (before is None or one[0].offset < before.offset)]
        )
    is_more = len(found) > limit or oldest > after + 1
    del found[limit:]
    found.reverse()
    more = Position(epoch, found[0][0].offset if found else oldest) if entries and is_more else None
    return PartPage(found, more, trimmed)


def _suffix(is_anonymous: bool) -> str:
    return "a" if is_anonymous else ""


def listed_name(filter: str) -> str:
    """Returns the name of a log in `BASE:f`. All logs without wildcards share one entry, as nodes do not store them."""
    return EXACT_LOGS if not filter.startswith(SHARE) and is_exact(filter) else filter


def is_logged(message: Message) -> bool:
    """Returns whether a message belongs into logs."""
    return message.delivery == "broadcast" and not message.event.startswith(INTERNAL) and qos_of(message) > 0


def encode_logged(messages: Sequence[Message]) -> bytes:
    """Encodes messages for a log."""
    return encode_messages([storable(one) if type(one) is KeptMessage else one for one in messages])
