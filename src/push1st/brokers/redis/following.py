"""The channels with a history that have subscribers on this node: heals gaps in their messages, and renews their counters.

A node that loses its connection misses messages. When the node is connected again, it reads the missed messages from the history,
and delivers them before later messages. The node also reads if a batch arrives that does not follow the last received message. If
messages cannot be read, the node reports the gap to the subscribers, once for each channel (`messages.gap`).

While the node reads, it holds the batches that arrive. Each channel holds a bounded number of messages; with more, it drops them,
and reports the gap.

A channel without messages has a counter that expires soon. A client that lost its connection could not resume such a channel. So
the nodes with subscribers of a channel renew the channel's counter.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any

from push1st.brokers import Receive
from push1st.brokers.history import IDLE_COUNTER_SECONDS, Reason, size_of
from push1st.brokers.redis.connection import ShardConnection
from push1st.brokers.redis.context import NodeContext
from push1st.brokers.redis.history import HistoryState, ShardHistory
from push1st.brokers.redis.keys import ChannelKey, Keys
from push1st.brokers.redis.resp import Argument, ConnectionLost, RespConnection, pack
from push1st.brokers.redis.scripts import HEAL, RENEW_COUNTERS
from push1st.messages import KeptMessage, Message, gap
from push1st.positions import WORD_CHARACTERS, Position

MIN_CHECKED = 500
"""the minimum number of channels whose counters one call of `tick` checks, if there are so many"""
ROUND_CALLS = 20
"""the number of calls of `tick` in which the counters of all channels are checked"""
RENEWED_MS = 1500
"""the milliseconds for which a renewal keeps a counter, for each of its `counter_seconds`. A renewal follows after a quarter of
the seconds and a round of `tick`, so the seconds are left whenever the last subscriber leaves."""
MAX_READ_CHANNELS = 200
"""the maximum number of channels whose missed messages one script call reads"""
MAX_READ_BYTES = 4 << 20
"""the number of bytes of missed messages after which a script call reads no further channel"""
MAX_HELD_MESSAGES = 1000
MAX_HELD_BYTES = 1 << 20
"""the maximum number of bytes of messages that a channel holds while the node reads the missed messages"""
MAX_ALL_HELD_BYTES = 64 << 20
"""the number of bytes that all channels share after a reconnect. A channel that drops messages early loses nothing, because the
later read of the channel contains these messages."""


class FollowedChannel:
    """A channel with a history and with subscribers on this node.

    epoch, last: the position of the last message that this node has delivered.
    counter_seconds: the seconds for which the broker keeps the counter of the channel without messages.
    max_bytes: the maximum number of bytes of missed messages. More bytes at once would exceed the outbox of slow subscribers.
    renews_at: the time (loop's clock) from which the counter is renewed.
    held: the messages that arrived while the node reads missed messages; None while the node does not read.
    held_bytes, max_held_bytes: the size of the held messages (`size_of`), and its maximum.
    copies: functions that deliver messages to filters. They hold the copies that arrived while the node reads missed messages.
    A filter drops a copy of a message that it has already received.
    dropped: the position of the last message that was dropped because too many messages were held; None if none was dropped.
    """

    __slots__ = (
        "copies",
        "counter_seconds",
        "dropped",
        "epoch",
        "held",
        "held_bytes",
        "last",
        "max_bytes",
        "max_held_bytes",
        "renews_at",
    )

    def __init__(self, position: Position, counter_seconds: int, max_bytes: int) -> None:
        self.move_to(position)
        self.counter_seconds = counter_seconds
        self.max_bytes = max_bytes
        self.renews_at = 0.0
        self.held: list[Sequence[KeptMessage]] | None = None
        self.held_bytes = 0
        self.max_held_bytes = MAX_HELD_BYTES
        self.copies: list[Callable[[], int]] = []
        self.dropped: Position | None = None

    def move_to(self, position: Position) -> None:
        self.epoch, self.last = position.epoch, position.offset

    def begin_to_hold(self, max_bytes: int = MAX_HELD_BYTES) -> None:
        """Begins to hold messages. Messages held before are dropped, because the history contains them."""
        self.held, self.held_bytes, self.dropped = [], 0, None
        self.max_held_bytes = max_bytes

    def hold(self, messages: Sequence[KeptMessage]) -> None:
        assert self.held is not None
        self.held_bytes += sum(map(size_of, messages))
        if self.dropped is None and self.held_bytes <= self.max_held_bytes:
            self.held.append(messages)
            if sum(map(len, self.held)) <= MAX_HELD_MESSAGES:
                return
        self.held.clear()
        self.dropped = position_of(messages[-1])


class Following:
    """See the module."""

    def __init__(self, context: NodeContext, keys: Keys, connection: ShardConnection, history: ShardHistory) -> None:
        self._context = context
        self._keys = keys
        self._connection = connection
        self._history = history
        self.channels: dict[ChannelKey, FollowedChannel] = {}
        self._unchecked: Iterator[ChannelKey] = iter(())
        """the channels that `tick` has not checked yet in its current round"""

    def begin(self, key: ChannelKey, position: Position, counter_seconds: int, max_bytes: int = MAX_READ_BYTES) -> None:
        """Follows a channel from the position at which a subscriber joined.

        If the node already follows the channel, it must have received all messages before this position. If it has not, the node
        reports the gap to the earlier subscribers. The new subscriber is not on the channel yet.

        counter_seconds, max_bytes: see `FollowedChannel`.
        """
        followed = self.channels.get(key)
        if followed is None:
            self.channels[key] = FollowedChannel(position, counter_seconds, max_bytes)
            return
        followed.counter_seconds = max(followed.counter_seconds, counter_seconds)  # a reload may have increased the seconds
        if followed.held is not None or (followed.epoch == position.epoch and followed.last < position.offset):
            followed.held = None
            self._report(key, followed, "trimmed", position)
            self._release_copies(followed)
        elif followed.epoch != position.epoch:
            if position.offset:
                self._report(key, followed, "state-lost", position)
            elif followed.epoch[:WORD_CHARACTERS] == position.epoch[:WORD_CHARACTERS]:
                followed.move_to(position)  # the history was dropped, and no message has followed

    def end(self, key: ChannelKey) -> None:
        """Ends the following of a channel that has no more subscribers here."""
        followed = self.channels.pop(key, None)
        if followed is not None:
            self._release_copies(followed)

    # Live messages

    def receive(self, messages: Sequence[KeptMessage]) -> None:
        """Delivers a batch of messages of one channel, or holds the batch until missed messages are delivered."""
        first = messages[0]
        key = first.app, first.channel
        followed = self.channels.get(key)
        if followed is None:
            if self._context.local_roster.channel(*key) is not None:
                # The subscribers joined before a reload turned the history on, or their join waits for its reply.
                self.begin(key, position_of(messages[-1]), IDLE_COUNTER_SECONDS)
            self._deliver(messages)
        elif followed.held is not None:
            followed.hold(messages)
        elif first.epoch == followed.epoch and first.offset == followed.last + 1:
            followed.last = messages[-1].offset
            self._deliver(messages)
        else:
            self._receive_unexpected(key, followed, messages)

    def hold_copy(self, messages: Sequence[Message], receive: Receive) -> bool:
        """Holds a copy of a batch for filters, if the channel holds its batches; returns whether the copy is held.

        So filters receive the missed messages of the channel first. receive: see `NodeFilters`.
        """
        followed = self.channels.get((messages[0].app, messages[0].channel))
        if followed is None or followed.held is None or followed.dropped is not None or len(followed.copies) >= MAX_HELD_MESSAGES:
            return False
        followed.copies += [partial(receive, one) for one in messages]
        return True

    def _release_copies(self, followed: FollowedChannel) -> None:
        copies, followed.copies = followed.copies, []
        for deliver in copies:
            deliver()

    def _receive_unexpected(self, key: ChannelKey, followed: FollowedChannel, messages: Sequence[KeptMessage]) -> None:
        first, last = messages[0], position_of(messages[-1])
        if first.epoch != followed.epoch:
            # The connection was not interrupted. So nothing was missed if this is the first message of the new epoch, and the
            # server has not changed.
            if first.offset != 1 or first.epoch[:WORD_CHARACTERS] != followed.epoch[:WORD_CHARACTERS]:
                self._report(key, followed, "state-lost", Position(first.epoch, first.offset - 1))
        elif first.offset > followed.last + 1:
            followed.begin_to_hold()
            followed.hold(messages)
            self._read_gap(key)
            return
        else:
            messages = messages[followed.last + 1 - first.offset :]
        if messages:
            followed.move_to(last)
            self._deliver(messages)

    def _deliver(self, messages: Sequence[KeptMessage]) -> None:
        receive = self._context.receive
        for one in messages:
            receive(one)

    def _report(self, key: ChannelKey, followed: FollowedChannel, reason: Reason, position: Position) -> None:
        """Notifies the subscribers of a channel that they may have missed messages before a position."""
        followed.move_to(position)
        self._context.metrics.gaps_reported += 1
        self._context.receive(gap(*key, reason, position, *self._context.stamp()))

    # Missed messages

    def hold(self, keys: Collection[ChannelKey]) -> None:
        """Begins to hold the messages of channels, until `heal` has read their missed messages."""
        each = min(MAX_HELD_BYTES, MAX_ALL_HELD_BYTES // max(1, len(keys)))
        for key in keys:
            self.channels[key].begin_to_hold(each)

    def of_other_generations(self) -> list[ChannelKey]:
        """Returns the channels whose last message belongs to another generation than the current one."""
        generation = self._history.generation
        return [key for key, followed in self.channels.items() if followed.epoch[:WORD_CHARACTERS] != generation]

    async def heal(self, resp: RespConnection) -> None:
        """Delivers the missed messages of all channels that hold messages. Raises ConnectionLost, ReplyError."""
        waiting = [key for key, followed in self.channels.items() if followed.held is not None]
        while waiting:
            keys = [key for key in waiting[:MAX_READ_CHANNELS] if key in self.channels]
            if not keys or not self._history.generation:
                for key in keys:
                    self._end_reading(key, None)
                waiting = waiting[MAX_READ_CHANNELS:]
                continue
            decode = self._history.decoder()
            replies = await resp.call(*self._command(keys))
            for key, reply in zip(keys, replies, strict=False):
                self._end_reading(key, decode(reply))
            waiting = keys[len(replies) :] + waiting[MAX_READ_CHANNELS:]

    def _read_gap(self, key: ChannelKey) -> None:
        """Reads the missed messages of one channel. If the connection ends first, `heal` reads them on the next connection."""
        resp, decode = self._connection.established, self._history.decoder()
        if resp is None:
            return

        def on_reply(reply: Any) -> None:
            if isinstance(reply, ConnectionLost):
                return
            if isinstance(reply, Exception):
                self._connection.check(reply)
                self._end_reading(key, None)
            else:
                self._end_reading(key, decode(reply[0]))

        resp.send(pack(self._command([key])), on_reply)

    def _command(self, keys: Sequence[ChannelKey]) -> tuple[Argument, ...]:
        """Returns the command that reads the missed messages of channels."""
        most = max(self.channels[key].max_bytes for key in keys)  # a worker has one maximum for all channels
        arguments: list[Argument] = [self._history.generation, self._history.new_word(), most, MAX_READ_BYTES]
        for key in keys:
            followed = self.channels[key]
            arguments += *key, followed.counter_seconds * 1000, followed.epoch, followed.last
        return self._keys.command(HEAL, *arguments)

    def _end_reading(self, key: ChannelKey, state: HistoryState | None) -> None:
        """Delivers the missed messages of a channel, and then the held messages.

        state: the channel's history, with the missed messages; None if the server rejected the read.
        """
        followed = self.channels.get(key)
        if followed is None or followed.held is None:
            return
        held, followed.held = followed.held, None
        if state is None:
            self._report(key, followed, "trimmed", before(held) or followed.dropped or Position(followed.epoch, followed.last))
        elif state.epoch != followed.epoch or state.last < followed.last:
            self._report(key, followed, "state-lost", state.position)
        elif state.last > followed.last:
            missed = state.run.messages
            if missed and missed[0].offset <= followed.last + 1:
                missed = missed[followed.last + 1 - missed[0].offset :]
                followed.last = state.last
                self._context.metrics.gaps_healed += 1
                self._deliver(missed)
            else:
                self._report(key, followed, "trimmed" if followed.last + 1 < state.first else "too-large", state.position)
        dropped = followed.dropped
        if dropped is not None and (dropped.epoch != followed.epoch or dropped.offset > followed.last):
            self._report(key, followed, "trimmed", dropped)
        for messages in held:
            self.receive(messages)
        if followed.held is None:
            self._release_copies(followed)

    # Counters

    def tick(self, now: float) -> None:
        """Renews the counters that are due, of some of the channels. Called once a second. `now`: the loop's clock."""
        resp = self._connection.registered_on
        if resp is None or not self.channels:
            return
        arguments: list[Argument] = []
        for _ in range(max(MIN_CHECKED, len(self.channels) // ROUND_CALLS + 1)):
            key = next(self._unchecked, None)
            if key is None:
                self._unchecked = iter(tuple(self.channels))
                break
            followed = self.channels.get(key)
            if followed is not None and followed.renews_at <= now:
                followed.renews_at = now + followed.counter_seconds / 4
                arguments += *key, followed.counter_seconds * RENEWED_MS
        for at in range(0, len(arguments), 3 * MIN_CHECKED):
            self._connection.send(resp, RENEW_COUNTERS, self._connection.check, *arguments[at : at + 3 * MIN_CHECKED])


def position_of(message: KeptMessage) -> Position:
    return Position(message.epoch, message.offset)


def before(held: Sequence[Sequence[KeptMessage]]) -> Position | None:
    """Returns the position before the first held message; None if no message is held."""
    return Position(held[0][0].epoch, held[0][0].offset - 1) if held else None
