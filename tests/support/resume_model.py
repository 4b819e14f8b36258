"""A state machine that drives sessions on the memory broker through random publishes, cuts and resumptions. No sockets.

The machine predicts with a model of its own which subscriptions recover, and which messages each of them replays. The checker of
`tests/support/recovery.py` compares at the end what each client received with what was published.

A frame that the server has written is on its way until the client takes it; a cut loses the frames that are on their way.
"""

import json
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from push1st.brokers.history import COUNTER_SECONDS, IDLE_COUNTER_SECONDS, MESSAGE_BYTES
from push1st.brokers.memory_history import OBJECT_BYTES
from push1st.config.history import HistoryBounds, HistorySection, Resume
from push1st.core.resuming import BY_POSITION
from push1st.core.session import Session
from push1st.messages import RESUMED, KeptMessage, Message, Options, Resumed, Subscribe, Subscribed
from push1st.positions import Position
from tests.support.loop import done
from tests.support.node import APP, World, app_config
from tests.support.recovery import Answer, Joined, Log, Lost, Received, Sent, check

CHANNELS = ("a", "b", "cache-c")
CLIENTS = 3
DATA_BYTES = 6
KEPT_BYTES = DATA_BYTES + OBJECT_BYTES
REPLAYED_BYTES = DATA_BYTES + MESSAGE_BYTES
"""the number of bytes that count for each message"""
SECTIONS = (
    HistorySection(filter=("a",), size=3, ttl=30),
    HistorySection(filter=("b",), size=12, ttl=100, rewind=3),
    HistorySection(filter=("cache-",), size=8, ttl=60),
)
REWINDS = {"a": 100, "b": 3, "cache-c": 100}
MAX_REPLAYED = 7
"""the number of messages that one replay may contain; more are too large"""
MAX_KEPT = 18
"""the number of messages that fit into the bound of all histories"""
RESUME = Resume(seconds=300, acknowledge=2)
EVENT_SECONDS = 20
"""the time to live of some messages"""


class Kept:
    """The model of one channel's history.

    epoch: a number of the model's own. seqs: the sequence numbers of all messages of the epoch, kept or not.
    first: the index of the oldest kept message. until: when the messages expire, or the counter if there are none.
    """

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.seqs: list[int] = []
        self.first = 0
        self.until = 0.0
        self.idle_seconds = 0

    @property
    def kept(self) -> Sequence[int]:
        return self.seqs[self.first :]


class Histories:
    """The model of all histories. now: returns the time in seconds. has_subscribers: whether a channel has subscribers."""

    def __init__(self, now: Callable[[], float], has_subscribers: Callable[[str], bool]) -> None:
        self.now = now
        self.has_subscribers = has_subscribers
        self.epochs = count(1)
        self.channels: dict[str, Kept] = {}
        """in the order of their last messages"""

    def find(self, channel: str, section: HistorySection) -> Kept:
        """Returns the history of a channel; makes the counter if there is none."""
        found = self.channels.get(channel)
        if found is None:
            found = self.channels[channel] = Kept(next(self.epochs))
        found.idle_seconds = max(section.ttl, RESUME.seconds) + IDLE_COUNTER_SECONDS
        if not found.kept:
            found.until = max(found.until, self.now() + found.idle_seconds)
        return found

    def append(self, channel: str, section: HistorySection, seq: int) -> tuple[int, int]:
        """Keeps a message; returns its epoch and offset."""
        found = self.channels.pop(channel, None) or Kept(next(self.epochs))
        self.channels[channel] = found
        found.seqs.append(seq)
        found.first = max(found.first, len(found.seqs) - section.size)
        found.until = self.now() + section.ttl
        while sum(len(one.kept) for one in self.channels.values()) > MAX_KEPT:
            del self.channels[next(name for name, one in self.channels.items() if one.kept)]
        return found.epoch, len(found.seqs)

    def expire(self) -> None:
        for name, one in list(self.channels.items()):
            if one.kept and one.until <= self.now():
                one.first, one.until = len(one.seqs), self.now() + COUNTER_SECONDS
            elif not one.kept and one.until <= self.now() and not self.has_subscribers(name):
                del self.channels[name]
            if not one.kept and self.has_subscribers(name):
                one.until = max(one.until, self.now() + one.idle_seconds)

    def clear(self, channel: str) -> None:
        self.channels.pop(channel, None)


class Lines:
    """A codec whose frames are lines of JSON with the position of each message."""

    name = "lines"

    def message(self, message: Message, now: int) -> bytes:
        if message.event == RESUMED:
            told = json.loads(message.data)
            return line("resumed", message.channel, told["reason"], 0, False, told["position"])
        assert isinstance(message, KeptMessage)
        position = str(Position(message.epoch, message.offset))
        return line("event", message.channel, int(message.data), position)


def line(*fields: object) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def parsed(data: bytes) -> list[list[Any]]:
    return [json.loads(one) for one in data.splitlines()]


LINES = Lines()


class ModelClient:
    """A client, and the outlet of its sessions. It takes its frames in order, and resumes by the position of the last frame."""

    def __init__(self, name: str, machine: "ResumeMachine") -> None:
        self.name = name
        self.machine = machine
        self.session: Any = None
        self.frames: deque[list[Any]] = deque()
        """the frames that are on their way to the client"""
        self.logs = {channel: Log(name, [channel], receives_own=True) for channel in CHANNELS}
        self.positions: dict[str, str] = {}
        """channel → the position that the client knows"""
        self.joined: set[str] = set()
        """the channels that the client has joined at least once, as far as the client knows"""
        self.expected: dict[str, list[str | None]] = {channel: [] for channel in CHANNELS}
        """channel → the reasons that the model predicted for the answers that the client has received"""
        self.predicted: dict[str, deque[tuple[str | None, list[int]]]] = {channel: deque() for channel in CHANNELS}
        """channel → the predictions of the present connection: reason, and replayed sequence numbers"""

    # The outlet

    def write(self, data: bytes) -> None:
        self.frames.extend(parsed(data))

    def send(self, reply: Any) -> None:
        match reply:
            case Subscribed(channel):
                frame = line("subscribed", channel)
            case Resumed(channel, reason, replayed, repeats, position):
                frame = line("resumed", channel, reason, replayed, repeats, str(position))
            case _:
                return
        self.machine.world.fanout.direct(self.session, frame)

    def has_room(self, size: int) -> bool:
        return True

    def close(self, code: int, reason: str) -> None:
        raise AssertionError(f"closed with {code}: {reason}")

    def fail(self) -> None:
        raise AssertionError("a command failed")

    # The client

    @property
    def is_connected(self) -> bool:
        return self.session is not None

    def connect(self) -> None:
        world = self.machine.world
        self.session = Session(world.node, world.app, self, LINES, self.write, "192.0.2.1", resumption=BY_POSITION)

    def subscribe(self, channel: str, rewind: int) -> None:
        text = self.positions.get(channel)
        since = None if text is None else Position.parse(text)
        self.predicted[channel].append(self.machine.predict(self, channel, rewind))
        self.session.handle(Subscribe(channel, since=since, rewind=rewind))

    def cut(self) -> None:
        self.session.expire()
        self.session = None
        self.frames.clear()
        at = self.machine.tick()
        for channel, log in self.logs.items():
            self.predicted[channel].clear()
            log.entries.append(Lost(at))

    def take(self, most: int) -> None:
        """Takes frames that are on their way."""
        while self.frames and most:
            most -= 1
            kind, channel, *rest = self.frames.popleft()
            entries, at = self.logs[channel].entries, self.machine.tick()
            if kind == "subscribed":
                self.joined.add(channel)
                entries.append(Joined(at, channel))
            elif kind == "resumed":
                reason, replayed, repeats, position = rest
                entries.append(Answer(at, channel, reason, replayed, repeats, position))
                predicted, seqs = self.predicted[channel][0]
                assert (reason, replayed) == (predicted, len(seqs)), f"{self.name} on {channel}"
                self.expected[channel].append(reason)
                if reason is not None:
                    self.positions[channel] = position
            else:
                seq, position = rest
                entries.append(Received(at, channel, seq, position))
                self.positions[channel] = position
                if self.predicted[channel] and self.predicted[channel][0][1]:
                    expected = self.predicted[channel][0][1].pop(0)
                    assert seq == expected, f"{self.name} on {channel}: {expected} is the next message of the replay, not {seq}"


clients = st.integers(0, CLIENTS - 1)
channels = st.sampled_from(CHANNELS)


class ResumeMachine(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(app_config(history=SECTIONS, resume=RESUME))
        words = count(1)
        history = self.world.history
        history._random = lambda _: next(words)
        history._bounds = HistoryBounds(bytes=MAX_KEPT * KEPT_BYTES)
        self.world.node.max_replay_bytes = MAX_REPLAYED * REPLAYED_BYTES
        self.model = Histories(lambda: self.world.clock.seconds, self._has_subscribers)
        self.clients = [ModelClient(f"client{number}", self) for number in range(CLIENTS)]
        self.numbers = count(1)
        self.times = count(1)
        self.published: list[Sent] = []
        self.expiries: dict[int, float] = {}
        self.places: dict[int, tuple[int, int]] = {}
        """sequence number → epoch and offset of the model"""
        self.epochs: dict[int, str] = {}
        """epoch of the model → epoch of the broker"""
        for one in self.clients:
            one.connect()

    def tick(self) -> float:
        """Returns the time of an entry in a log. Each entry has a time of its own."""
        return next(self.times)

    def _has_subscribers(self, channel: str) -> bool:
        return any(one.is_connected and channel in one.session.subscriptions for one in self.clients)

    def _section(self, channel: str) -> HistorySection:
        history = self.world.app.history
        assert history is not None
        section = history(channel)
        assert section is not None
        return section

    def predict(self, client: ModelClient, channel: str, rewind: int) -> tuple[str | None, list[int]]:
        """Returns the reason and the replayed messages of a subscription that a client is about to make."""
        kept = self.model.find(channel, self._section(channel))
        last = len(kept.seqs)
        rewind = min(rewind, REWINDS[channel])
        text = client.positions.get(channel)
        reason: str | None = None
        start = last
        if text is None:
            reason = "unknown"
        else:
            epoch, _, digits = text.partition(":")
            offset = int(digits)
            if self.epochs.get(kept.epoch) != epoch or offset > last:
                reason = "state-lost"
            elif offset < kept.first and offset != last:
                reason = "trimmed"
            else:
                start = offset
        if reason is not None:
            start = max(kept.first, last - rewind)
        if last - start > MAX_REPLAYED:
            if reason is None:
                return "too-large", []
            start = last - MAX_REPLAYED
        now = self.world.clock.seconds
        return reason, [seq for seq in kept.seqs[start:] if self.expiries.get(seq, now + 1) > now]

    # Rules

    @rule(channel=channels, batch=st.integers(1, 4), excluded=st.none() | clients, is_short=st.booleans())
    def publish(self, channel: str, batch: int, excluded: int | None, is_short: bool) -> None:
        client = None if excluded is None else self.clients[excluded]
        if client is not None and not client.is_connected:
            client = None
        exclude = "" if client is None else client.session.id
        for _ in range(batch):
            seq, began = next(self.numbers), self.tick()
            options = Options(EVENT_SECONDS) if is_short else Options()
            if is_short:
                self.expiries[seq] = self.world.clock.seconds + EVENT_SECONDS
            place = self.model.append(channel, self._section(channel), seq)
            self.world.publish(channel, b"%06d" % seq, exclude=exclude, options=options)
            name = "" if client is None else client.name
            self.published.append(Sent(channel, seq, began, self.tick(), exclude=name, is_optional=is_short))
            self.places[seq] = place
            found = self.world.history._kept[APP, channel]
            assert (self.epochs.setdefault(place[0], found.epoch), place[1]) == (found.epoch, found.last)

    @rule(client=clients, channel=channels, rewind=st.sampled_from((0, 0, 2, 100)))
    def join(self, client: int, channel: str, rewind: int) -> None:
        one = self.clients[client]
        if one.is_connected and channel not in one.session.subscriptions:
            one.subscribe(channel, rewind)
            kept = self.model.find(channel, self._section(channel))
            history = self.world.history
            found = history._kept.get((APP, channel)) or history._idle[APP, channel]
            assert (self.epochs.setdefault(kept.epoch, found.epoch), len(kept.seqs)) == (found.epoch, found.last)

    @rule(client=clients, most=st.integers(1, 8))
    def take(self, client: int, most: int) -> None:
        self.world.turns.drain()
        self.clients[client].take(most)

    @rule(client=clients)
    def cut(self, client: int) -> None:
        if self.clients[client].is_connected:
            self.clients[client].cut()

    @rule(client=clients, rewind=st.sampled_from((0, 0, 0, 2, 100)))
    def resume(self, client: int, rewind: int) -> None:
        """Connects the client again; it subscribes to all channels on which it was."""
        one = self.clients[client]
        if one.is_connected:
            return
        one.connect()
        for channel in CHANNELS:
            if channel in one.joined:
                self.join(client, channel, rewind)

    @rule()
    def turn(self) -> None:
        self.world.turns.end()

    @rule(
        client=clients, channel=channels, missed=st.integers(1, 9), are_short=st.booleans(), seconds=st.sampled_from((0, 0, 25))
    )
    def miss(self, client: int, channel: str, missed: int, are_short: bool, seconds: int) -> None:
        """Lets a client that has all messages miss some of them."""
        self.resume(client, 0)
        self.join(client, channel, 0)
        self.take(client, -1)
        self.cut(client)
        self.publish(channel, missed, None, are_short)
        if seconds:
            self.advance(seconds)
        self.resume(client, 0)

    @rule(seconds=st.sampled_from((1, 5, 15, 25, 70, 200, 500, 8 * 86_400)))
    def advance(self, seconds: int) -> None:
        self.world.clock.advance(seconds)
        for _ in range(3):
            self.world.history.tick()
        self.model.expire()

    @rule(channel=channels)
    def clear(self, channel: str) -> None:
        done(self.world.history.clear(APP, channel))
        self.model.clear(channel)

    @rule()
    def settle(self) -> None:
        """Delivers everything, and checks the logs."""
        self.world.turns.drain()
        assert self.world.failures == []
        for one in self.clients:
            if one.is_connected:
                one.take(-1)
        for one in self.clients:
            for channel, log in one.logs.items():
                if one.is_connected and channel in one.joined and channel in one.session.subscriptions:
                    self._check(one, channel, log)

    def _check(self, one: ModelClient, channel: str, log: Log) -> None:
        told = one.expected[channel]
        reasons = {reason: told.count(reason) for reason in told if reason is not None}
        check(log, self.published, recovered=told.count(None), reasons=reasons)

    def teardown(self) -> None:
        for number, one in enumerate(self.clients):
            self.resume(number, 0)
            for channel in one.joined:
                self.join(number, channel, 0)
        self.settle()
