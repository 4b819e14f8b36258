"""Checks that no subscriber missed an event without a notification.

A test makes a record of every publish (`Sent`), and a log of what each client received (`Log`). All times are seconds on the
monotonic clock, which Python and Node.js share on one machine. `check` compares a log with the publishes.

The promise for each channel with a history: without repeats, a client has received exactly what was published since its first
subscription, in order and without a hole; or the server has sent `recovered: false` at the place of the hole. Repeats are
adjacent to a reconnection: they stand at the beginning of a replay, which ends where the live events begin.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

MARGIN_SECONDS = 2.0
"""the seconds that are added to the bound on repeats: a round trip, and the delays of a busy machine"""
FIRST: Mapping[str, int] = {"unknown": 1}
"""the reasons of a channel whose only `recovered: false` answers its first subscription"""


class RecoveryError(AssertionError):
    """A log breaks the promise."""


class Sent(NamedTuple):
    """One publish.

    began, confirmed: the times of the first request, and of the response with the status 200; `confirmed` is None without one.
    attempts: the number of requests with the same idempotency key.
    exclude: the name of the client that the publisher excluded from the delivery.
    is_optional: whether a replay may lack the event, because the time to live of the event is short.
    """

    channel: str
    seq: int
    began: float
    confirmed: float | None
    attempts: int = 1
    exclude: str = ""
    is_optional: bool = False


class Joined(NamedTuple):
    """The server confirmed a subscription."""

    at: float
    channel: str


class Answer(NamedTuple):
    """The event `resumed`. `reason`: None if the client recovers."""

    at: float
    channel: str
    reason: str | None
    replayed: int = 0
    repeats: bool = False
    position: str = ""


class Received(NamedTuple):
    """An event. `position`: its position in the history, if the client receives positions."""

    at: float
    channel: str
    seq: int
    position: str = ""


class Lost(NamedTuple):
    """The client noticed the end of its connection, or ended it."""

    at: float


Entry = Joined | Answer | Received | Lost


class Log:
    """What one client did and received, in order.

    name: the name with which publishers exclude the client (`Sent.exclude`).
    channels: the channels that the client must join.
    receives_own: whether a replay may contain messages that exclude the client, because the server cannot recognize the client.
    has_position: whether the client already had a position at its first subscription.
    """

    def __init__(self, name: str, channels: Collection[str], *, receives_own: bool = False, has_position: bool = False) -> None:
        self.name = name
        self.channels = channels
        self.receives_own = receives_own
        self.has_position = has_position
        self.entries: list[Entry] = []

    def count(self, channel: str, kind: type) -> int:
        return sum(isinstance(one, kind) and not isinstance(one, Lost) and one.channel == channel for one in list(self.entries))

    def seqs(self, channel: str) -> list[int]:
        return [one.seq for one in list(self.entries) if isinstance(one, Received) and one.channel == channel]

    def answers(self, channel: str) -> list[str | None]:
        """Returns the reasons of all answers on a channel; None for `recovered: true`."""
        return [one.reason for one in list(self.entries) if isinstance(one, Answer) and one.channel == channel]


class Found(NamedTuple):
    """The number of different events in a log, and the number of repeats."""

    received: int
    repeats: int


def check(
    log: Log,
    published: Sequence[Sent],
    *,
    recovered: int | range,
    reasons: Mapping[str, int] | Sequence[Mapping[str, int]] = FIRST,
    repeat_seconds: float = 0,
    cuts: Sequence[float] = (),
    cached: bool = False,
) -> Found:
    """Raises RecoveryError if a log breaks the promise.

    published: all publishes; those of one channel in the order in which the broker received them.
    recovered: the number of `recovered: true` on each channel.
    reasons: the number of `recovered: false` on each channel, by reason; or several of which one must be right.
    repeat_seconds: the seconds of connected time before a cut whose events a replay may repeat; 0 if there must be no repeats.
    cuts: the times at which the test cut the connections; a client notices a cut later (`Lost`).
    cached: whether the channels are cache channels, whose latest event follows a subscription that does not recover.
    """
    received = repeats = 0
    for channel in log.channels:
        right = [Counter(one) for one in ([reasons] if isinstance(reasons, Mapping) else reasons)]
        found = _Channel(log, channel, published, repeat_seconds, cuts, cached).walk(recovered, right)
        received, repeats = received + found.received, repeats + found.repeats
    return Found(received, repeats)


class _Channel:
    """The comparison of one log with the publishes on one channel.

    due: the publishes that the client may receive, in order. All indexes are indexes of `due`.
    seen: the highest index that the client has received without a hole; None at the beginning, and after a `recovered: false`.
    last: the index of the previous event; None if the next event is the first of a replay, and may repeat earlier events.
    since: the time after which no publish may be missing while `seen` is None.
    left: the number of replayed events that must still come.
    """

    def __init__(
        self, log: Log, channel: str, published: Sequence[Sent], repeat_seconds: float, cuts: Sequence[float], cached: bool
    ) -> None:
        self.log = log
        self.channel = channel
        mine = [one for one in published if one.channel == channel]
        self.due = [one for one in mine if one.exclude != log.name or log.receives_own]
        self.excluded = {one.seq for one in mine if one.exclude == log.name}
        self.index = {one.seq: number for number, one in enumerate(self.due)}
        self.repeat_seconds = repeat_seconds
        self.cached = cached
        self.seen: int | None = None
        self.last: int | None = None
        self.since = self.joined_at = 0.0
        self.left = 0
        self.answer: Answer | None = None
        self.joins = 0
        self.is_unanswered = False
        self.is_first = False
        """whether no event has come since the last answer"""
        self.is_connected = False
        self.arrived: dict[int, float] = {}
        """index → the time of the event's last arrival"""
        self.positions: dict[int, str] = {}
        """index → the position of the event"""
        self.repeated = 0
        self.stays = self._stays(cuts)

    def _stays(self, cuts: Sequence[float]) -> list[tuple[float, float]]:
        """Returns the begin and the end of each time in which the client was on the channel, and could receive."""
        stays: list[tuple[float, float]] = []
        began: float | None = None
        for one in [*self.log.entries, Lost(float("inf"))]:
            if isinstance(one, Joined) and one.channel == self.channel:
                began = one.at if began is None else began
            elif isinstance(one, Lost) and began is not None:
                stays.append((began, min([one.at, *(cut for cut in cuts if cut >= began)])))
                began = None
        return stays

    def _connected_seconds(self, begin: float, end: float) -> float:
        return sum(max(0.0, min(end, until) - max(begin, since)) for since, until in self.stays)

    def _fail(self, what: str, at: float | None = None) -> RecoveryError:
        around = [
            one
            for one in self.log.entries
            if (isinstance(one, Lost) or one.channel == self.channel) and (at is None or abs(one.at - at) < 1)
        ]
        shown = "\n  ".join(map(str, around[-30:]))
        return RecoveryError(f"{self.log.name} on {self.channel}: {what}\n  {shown}")

    def walk(self, recovered: int | range, reasons: Sequence[Counter[str]]) -> Found:
        answers: Counter[str | None] = Counter()
        for entry in self.log.entries:
            match entry:
                case Lost():
                    self.is_connected = self.is_unanswered = False
                    self.left = 0
                case Joined(at, self.channel):
                    self._join(at)
                case Answer(_, self.channel, reason):
                    answers[reason] += 1
                    self._resume(entry)
                case Received(at, self.channel, seq, position):
                    self._receive(seq, at, position)
                case _:
                    pass
        self._end()
        count = answers.pop(None, 0)
        if count not in (recovered if isinstance(recovered, range) else (recovered,)):
            raise self._fail(f"{count} times recovered: true, and not {recovered}; else {dict(answers)}")
        if answers not in reasons:
            raise self._fail(
                f"recovered: false for the reasons {dict(answers)}, and not {' or '.join(map(str, map(dict, reasons)))}"
            )
        return Found(len(self.arrived), self.repeated)

    def _join(self, at: float) -> None:
        if self.is_unanswered:
            raise self._fail("a second subscription before the answer to the first", at)
        self.joins += 1
        self.is_connected = self.is_unanswered = True
        self.joined_at = at

    def _resume(self, answer: Answer) -> None:
        if not self.joins:
            raise self._fail("an answer without a subscription", answer.at)
        if self.left:
            raise self._fail(f"{self.left} replayed events did not come", answer.at)
        is_live, joined_at = not self.is_unanswered, self.joined_at
        self.is_unanswered, self.is_first, self.answer = False, True, answer
        self.left = answer.replayed
        if answer.reason is not None:
            self.seen, self.last, self.since = None, None, answer.at if is_live else joined_at
            return
        if is_live:
            raise self._fail("recovered: true without a subscription", answer.at)
        if self.joins == 1 and not self.log.has_position:
            raise self._fail("recovered: true for a first subscription", answer.at)
        if self.joins == 1:
            self.since = joined_at
        self.last = None if answer.replayed else self.seen

    def _receive(self, seq: int, at: float, position: str) -> None:
        if not self.joins:
            raise self._fail(f"event {seq} before the first subscription", at)
        if self.is_unanswered:
            raise self._fail(f"event {seq} between a subscription and its answer", at)
        if not self.is_connected:
            raise self._fail(f"event {seq} without a connection", at)
        if seq in self.excluded and not (self.log.receives_own and self.left):
            raise self._fail(f"event {seq}, from which the client was excluded", at)
        index = self.index.get(seq)
        if index is None:
            raise self._fail(f"event {seq}, which was not published", at)
        if self.seen is None:
            self._begin(index, seq, at)
        elif self.last is None:
            if index > self._after(self.seen):
                raise self._fail(f"a replay from event {seq} on, though the client had no event after {self._seq(self.seen)}", at)
        elif index > self._after(self.last):
            missing = self._seq(self._after(self.last))
            raise self._fail(f"event {seq} after {self._seq(self.last)}: {missing} is missing", at)
        elif index <= self.last and not (index == self.last and self.due[index].attempts > 1):
            raise self._fail(f"event {seq} again, or out of order, after {self._seq(self.last)}", at)
        if index in self.arrived:
            self._repeat(index, seq, at)
        if self.positions.setdefault(index, position) != position and self.due[index].attempts == 1:
            raise self._fail(f"event {seq} at {position}, and before at {self.positions[index]}", at)
        self.arrived[index] = at
        self.last = index
        self.seen = index if self.seen is None else max(self.seen, index)
        self.is_first = False
        if self.left:
            self.left -= 1
            if not self.left and self._after(index) <= self.seen:
                raise self._fail(f"the replay ends with event {seq}, and the client had event {self._seq(self.seen)}", at)

    def _begin(self, index: int, seq: int, at: float) -> None:
        """Checks the first event after the first subscription, or after a `recovered: false`."""
        missing = [one.seq for one in self.due[:index] if one.began > self.since and self._is_needed(one)]
        if missing:
            raise self._fail(f"event {seq} is the first since {self.since}; {missing[:10]} are missing", at)

    def _repeat(self, index: int, seq: int, at: float) -> None:
        self.repeated += 1
        if self.due[index].attempts > 1 and index == self.last:
            return  # the broker lost the idempotency key between two attempts
        answer = self.answer
        if answer is not None and answer.reason is not None and self.is_first and self.cached:
            return
        if answer is None or not self.left:
            raise self._fail(f"event {seq} again, outside of a replay", at)
        if answer.reason is not None:
            return  # the client requested the latest events, whatever it has
        if not answer.repeats:
            raise self._fail(f"event {seq} again, after repeats: false", at)
        connected = self._connected_seconds(self.arrived[index], at)
        if connected > self.repeat_seconds + MARGIN_SECONDS * (self.repeat_seconds > 0):
            raise self._fail(f"event {seq} again, after {connected:.2f} connected seconds, not {self.repeat_seconds}", at)

    def _after(self, index: int) -> int:
        """Returns the index of the next event that must come."""
        index += 1
        while index < len(self.due) and not self._is_needed(self.due[index]):
            index += 1
        return index

    def _is_needed(self, one: Sent) -> bool:
        return one.confirmed is not None and not one.is_optional and one.seq not in self.excluded

    def _seq(self, index: int) -> int:
        return self.due[index].seq

    def _end(self) -> None:
        if not self.joins:
            raise self._fail("the client never joined")
        if self.is_unanswered:
            raise self._fail("no answer to the last subscription")
        if self.left:
            raise self._fail(f"{self.left} replayed events did not come")
        if self.seen is None:
            missing = [one.seq for one in self.due if one.began > self.since and self._is_needed(one)]
        else:
            missing = [one.seq for one in self.due[self.seen + 1 :] if self._is_needed(one)]
        if missing:
            raise self._fail(f"{len(missing)} events at the end are missing, from {missing[0]} on")
