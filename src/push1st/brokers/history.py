"""Requests for the kept messages of a channel, their results, and the rules for recovery. Pure.

Both brokers keep the messages of a channel with consecutive offsets. This module decides which of these messages a client or a
reader of the API gets, so that both brokers give the same answers.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec

from push1st.config.history import HistorySection
from push1st.messages import KeptMessage
from push1st.positions import Position

Reason = Literal["unknown", "trimmed", "state-lost", "shared", "too-large", "no-history"]
"""why a client did not get all messages after its position (the reasons of `Resumed`)"""
REASONS: tuple[Reason, ...] = ("unknown", "trimmed", "state-lost", "shared", "too-large", "no-history")
COUNTER_SECONDS = 7 * 86_400
"""the seconds for which a channel's epoch and last offset are kept after its last message"""
IDLE_COUNTER_SECONDS = 60
"""the seconds for which the counter of a channel without messages outlives the longest possible recovery"""
READ_COUNTER_SECONDS = 600
"""the minimum number of seconds for which a counter is kept after the API has read it. A client may use the position that the API
returned."""
MESSAGE_BYTES = 200
"""the number of bytes that are added to the size of a message's data, for its other fields"""


class ReplayRequest(msgspec.Struct, frozen=True, gc=False):
    """The part of a channel's history that a new subscriber requests.

    section: the settings of the channel's history.
    max_bytes: the maximum size of the replayed messages (`size_of`); a larger replay is rejected with the reason `too-large`.
    since: the position after which the subscriber needs all messages; None if the subscriber has no position.
    rewind: the number of latest messages that the subscriber gets if it has no position, or if its position is not valid.
    rewind_seconds: the maximum age of these latest messages; 0 stands for any age.
    counter_seconds: the seconds for which the broker keeps the counter of a channel without messages.
    """

    section: HistorySection
    max_bytes: int
    since: Position | None = None
    rewind: int = 0
    rewind_seconds: int = 0
    counter_seconds: int = IDLE_COUNTER_SECONDS


class KeptRun:
    """Consecutive messages of a channel, oldest first. The subscribers that join in one step share a run.

    frames: the frames of the messages by wire. The first subscriber on a wire encodes the messages for all others.
    """

    __slots__ = ("frames", "messages")

    def __init__(self, messages: Sequence[KeptMessage]) -> None:
        self.messages = messages
        self.frames: dict[object, list[bytes]] = {}


NO_MESSAGES = KeptRun(())


class Replay(msgspec.Struct, frozen=True, gc=False):
    """The answer to a `ReplayRequest`.

    position: the position of the channel at the time of the join. Live messages begin after this position.
    reason: why the subscriber does not get all messages after its position; None if it gets all of them.
    run, start: the replayed messages are those of `run` from the index `start` on.
    """

    position: Position
    reason: Reason | None
    run: KeptRun = NO_MESSAGES
    start: int = 0

    @property
    def messages(self) -> Sequence[KeptMessage]:
        return self.run.messages[self.start :]


class HistoryPage(msgspec.Struct, frozen=True, gc=False):
    """A part of a channel's history, for a reader of the API.

    position: the position of the channel.
    first: the offset of the oldest kept message; one more than the last offset if no message is kept.
    recovered: whether the part begins at the position that the reader gave.
    messages: the messages, in the order of the request.
    next: the position with which the reader requests the next part; None after the last part.
    """

    position: Position
    first: int
    recovered: bool
    messages: tuple[KeptMessage, ...]
    next: Position | None


def size_of(message: KeptMessage) -> int:
    """Returns the number of bytes that count for a kept message."""
    return len(message.data) + MESSAGE_BYTES


def lost_reason(since: Position | None, epoch: str, first: int, last: int) -> Reason | None:
    """Returns why the messages after the position `since` are not all kept; None if all of them are kept.

    epoch, first, last: the epoch of the channel, the offset of its oldest kept message, and its last offset.
    """
    if since is None:
        return "unknown"
    if since.epoch != epoch or since.offset > last:
        return "state-lost"
    if since.offset + 1 < first and since.offset != last:
        return "trimmed"
    return None


def start_of(request: ReplayRequest, epoch: str, first: int, last: int) -> tuple[Reason | None, int]:
    """Returns the reason of `lost_reason`, and the offset after which the messages are replayed; `last` if there is no replay."""
    reason = lost_reason(request.since, epoch, first, last)
    if reason is None and request.since is not None:
        return None, request.since.offset
    return reason, max(first - 1, last - request.rewind) if request.rewind else last


def replay(request: ReplayRequest, epoch: str, last: int, run: KeptRun, now: int, first: int | None = None) -> Replay:
    """Returns the replay for a request.

    A client without a valid position gets as many of the latest messages as fit, because it does not know how many there are. A
    client with a valid position gets all messages or none, because it would assume that an incomplete replay is complete.

    run: the latest kept messages up to the offset `last`. The caller may leave out the oldest messages, if they and the messages
    after them are more than the request may replay, or if the request needs none of them.
    now: the wall clock in nanoseconds.
    first: the offset of the oldest kept message; None if `run` contains all kept messages.
    """
    messages = run.messages
    begin = messages[0].offset if messages else last + 1
    reason, after = start_of(request, epoch, begin if first is None else first, last)
    start = after + 1 - begin
    if reason is not None and request.rewind_seconds:
        oldest, young = now - request.rewind_seconds * 1_000_000_000, max(start, 0)
        while young < len(messages) and messages[young].received < oldest:
            young += 1
        if young:
            start = young
    size = sum(size_of(one) for one in messages[max(start, 0) :])
    if reason is None:
        if start < 0 or size > request.max_bytes:
            return Replay(Position(epoch, last), "too-large")
    else:
        start = max(start, 0)
        while size > request.max_bytes:
            size -= size_of(messages[start])
            start += 1
    return Replay(Position(epoch, last), reason, run, start)


def is_expired(message: KeptMessage, now: int) -> bool:
    """Returns whether the `ttl` of a message is over. `now`: the wall clock in nanoseconds."""
    return 0 < message.expires <= now


def page(
    epoch: str,
    last: int,
    messages: Sequence[KeptMessage],
    since: Position | None,
    limit: int,
    reverse: bool,
    now: int,
    first: int | None = None,
) -> HistoryPage:
    """Returns a part of a history (Push1st's history API).

    messages: consecutive kept messages, oldest first, with those of the part; all kept messages if `first` is None. If the caller
    leaves out some messages of the part, the part is shorter, and `next` continues it.
    now: the wall clock in nanoseconds.
    first: the offset of the oldest kept message.
    """
    begin = messages[0].offset if messages else last + 1
    if first is None:
        first = begin
    position = Position(epoch, last)
    is_known = since is None or (since.epoch == epoch and since.offset <= last + reverse)
    if reverse:
        end = min(since.offset, last + 1) if since is not None and is_known else last + 1
        chosen = messages[max(0, end - begin - limit) : max(0, end - begin)][::-1]
        more = bool(chosen) and chosen[-1].offset > first
    else:
        after = since.offset if since is not None and is_known else 0
        is_known = is_known and (since is None or after + 1 >= first or after == last)
        start = max(0, after + 1 - begin) if is_known else 0
        chosen = messages[start : start + limit]
        more = bool(chosen) and chosen[-1].offset < last
    following = Position(epoch, chosen[-1].offset) if more else None
    return HistoryPage(position, first, is_known, tuple(one for one in chosen if not is_expired(one, now)), following)
