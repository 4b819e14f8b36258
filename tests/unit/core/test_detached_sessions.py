"""Sessions that outlive their connections, in a protocol that numbers messages when a connection takes them, as MQTT does.

The last test drives such sessions in any order, and compares them with a model.
"""

from typing import ClassVar

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from push1st.core.outbox import Outbox, OutboxPolicy
from push1st.core.session import Session
from push1st.messages import Message, Subscribe, Unsubscribe
from tests.support.node import World

MAX_SIZE, MAX_ITEMS = 40, 6
GAP_SECONDS = 20
_lines = msgspec.msgpack.Decoder(Message)


class NumberedWire:
    """Frames are stored messages, each after its length."""

    name = "numbered"

    def message(self, message: Message, now: int) -> bytes:
        stored = msgspec.msgpack.encode(message)
        return len(stored).to_bytes(4) + stored


class NumberedSession:
    """The owner: the whole protocol. `window`: the messages that the connection has room for."""

    wire = NumberedWire()
    policies: ClassVar = {
        drops: OutboxPolicy[Message](MAX_SIZE, lambda message: len(message.data), MAX_ITEMS, drops) for drops in (True, False)
    }

    def __init__(self, world: World, drops_oldest: bool = True) -> None:
        self.world = world
        self.outbox: Outbox[Message] = Outbox(self.policies[drops_oldest], self)
        self.session = Session(world.node, world.app, self, self.wire, self.write, "", push=frozenset(), outbox=self.outbox)
        self.window = 0
        self.sent: list[tuple[int, bytes]] = []

    def write(self, frames: bytes) -> None:
        while frames:
            end = 4 + int.from_bytes(frames[:4])
            self.outbox.write(_lines.decode(frames[4:end]))
            frames = frames[end:]

    def take(self, message: Message) -> Message | None:
        if not self.window:
            return message
        self.window -= 1
        self.sent.append((len(self.sent) + 1, message.data))
        return None

    def resume(self, messages: list[Message]) -> list[Message]:
        while messages and self.take(messages[0]) is None:
            del messages[0]
        return messages

    def on_full(self) -> None:
        self.world.turns.call_soon(self.session.expire)

    def send(self, reply: object) -> None: ...

    def has_room(self, size: int) -> bool:
        return self.outbox.has_room(size)

    def close(self, code: int, reason: str) -> None:
        raise AssertionError(f"closed with {code}: {reason}")

    def fail(self) -> None:
        raise AssertionError("a command failed")


@pytest.fixture
def world() -> World:
    return World()


def attached(world: World, window: int, drops_oldest: bool = True) -> NumberedSession:
    one = NumberedSession(world, drops_oldest)
    one.window = window
    one.session.attach(one)
    one.session.handle(Subscribe("c"))
    return one


def publish(world: World, *texts: str) -> None:
    for text in texts:
        world.publish("c", text.encode())
    world.turns.drain()


def test_a_detached_session_stays_subscribed_and_gets_its_messages_at_attach(world):
    one = attached(world, 9)
    publish(world, "a")
    one.session.detach(world.clock.monotonic() + GAP_SECONDS)
    publish(world, "b", "c")
    assert one.sent == [(1, b"a")]
    assert not one.session.closed
    one.session.attach(one)
    assert one.sent == [(1, b"a"), (2, b"b"), (3, b"c")]


def test_messages_get_their_numbers_when_a_connection_takes_them(world):
    one = attached(world, 1)
    one.session.detach(world.clock.monotonic() + GAP_SECONDS)
    publish(world, *"abcdefgh")
    assert one.outbox.dropped == 2
    one.session.attach(one)
    assert one.sent == [(1, b"c")]
    assert [message.data for message in one.outbox] == [b"d", b"e", b"f", b"g", b"h"]


def test_a_session_without_an_outbox_expires_with_its_connection(world):
    session, _ = world.session()
    session.handle(Subscribe("c"))
    session.detach(world.clock.monotonic() + GAP_SECONDS)
    assert session.closed
    assert not world.app.tenant.channels


@pytest.mark.parametrize("seconds", [0, -1])
def test_detach_until_a_time_that_is_over_expires_a_session(world, seconds):
    one = attached(world, 9)
    one.session.detach(world.clock.monotonic() + seconds)
    assert one.session.closed
    assert not world.app.tenant.sessions


def test_an_expired_session_leaves_its_channels_and_keeps_its_outbox(world):
    one = attached(world, 9)
    one.session.detach(world.clock.monotonic() + GAP_SECONDS)
    publish(world, "a")
    one.session.expire()
    publish(world, "b")
    assert not world.app.tenant.channels
    assert [message.data for message in one.outbox] == [b"a"]


def test_a_session_ends_when_its_policy_ends_it(world):
    one = attached(world, 0, drops_oldest=False)
    publish(world, *"abcdefghi")
    assert one.session.closed
    assert len(one.outbox) == MAX_ITEMS + 1


def test_a_session_has_the_prefix_of_its_id(world):
    for prefix in ("", "a", "a.b", "."):
        session, _ = world.session(prefix=prefix)
        assert session.prefix == prefix


class Modelled:
    """The model of a session: the messages that it should have sent, and those that it should store."""

    def __init__(self, drops_oldest: bool, until: float) -> None:
        self.drops_oldest = drops_oldest
        self.until = until
        self.is_alive = True
        self.is_subscribed = False
        self.is_attached = False
        self.is_full = False
        self.window = 0
        self.sent: list[bytes] = []
        self.waiting: list[bytes] = []

    def deliver(self, data: bytes) -> None:
        if self.is_full:
            return
        self.waiting.append(data)
        if len(self.waiting) == 1:
            self.send()
        while sum(map(len, self.waiting)) > MAX_SIZE or len(self.waiting) > MAX_ITEMS:
            if not self.drops_oldest:
                self.is_full = True
                break
            del self.waiting[0]

    def send(self) -> None:
        while self.is_attached and self.waiting and self.window:
            self.window -= 1
            self.sent.append(self.waiting.pop(0))


class Both:
    """Three clients of the real node, and their models."""

    def __init__(self) -> None:
        self.world = World()
        self.pairs = [self.newcomer(n) for n in range(3)]
        self.pending: list[bytes] = []
        self.count = 0

    def newcomer(self, n: int) -> tuple[NumberedSession, Modelled]:
        drops_oldest = n != 1
        until = self.world.clock.monotonic() + GAP_SECONDS
        one = NumberedSession(self.world, drops_oldest)
        one.session.detach(until)
        return one, Modelled(drops_oldest, until)

    def run(self, step: str, n: int, number: int) -> None:
        one, model = self.pairs[n]
        now = self.world.clock.monotonic()
        match step:
            case "attach":
                if not model.is_alive:
                    one, model = self.pairs[n] = self.newcomer(n)
                one.window = model.window = number
                one.session.attach(one)
                model.is_attached = True
                model.send()
            case "detach":
                until = now + number * 5
                one.session.detach(until)
                model.is_attached, model.until = False, until
                self.expire_models(now)
            case "room":  # the outbox does not see it before `resume`
                one.window += number
                model.window += number
            case "resume":
                one.outbox.resume()
                model.send()
            case "publish":
                for size in (1, number, 5)[: n + 1]:
                    self.count += 1
                    data = (b"%d," % self.count) * size
                    self.world.publish("c", data)
                    self.pending.append(data)
            case "subscribe" | "unsubscribe" if model.is_alive:
                is_change = model.is_subscribed == (step == "unsubscribe")
                if is_change:
                    self.flush_models()
                    model.is_subscribed = not model.is_subscribed
                one.session.handle(Subscribe("c") if step == "subscribe" else Unsubscribe("c"))
            case "seconds":
                self.world.clock.advance(number * 5)
                now = self.world.clock.monotonic()
                for one, _ in self.pairs:
                    if not one.outbox.is_attached and one.outbox.until <= now:
                        one.session.expire()
                self.expire_models(now)
            case "turn":
                self.world.turns.drain()
                self.flush_models()
                for _, model in self.pairs:
                    model.is_alive &= not model.is_full

    def flush_models(self) -> None:
        """Delivers the pending messages, as a flush does."""
        pending, self.pending = self.pending, []
        for data in pending:
            for _, model in self.pairs:
                if model.is_alive and model.is_subscribed:
                    model.deliver(data)

    def expire_models(self, now: float) -> None:
        for _, model in self.pairs:
            if not model.is_attached and model.until <= now:
                model.is_alive = False

    def check(self) -> None:
        for one, model in self.pairs:
            assert one.session.closed == (not model.is_alive)
            assert one.sent == list(enumerate(model.sent, 1)), "a message is missing, or came twice, or in another order"
            assert [message.data for message in one.outbox] == model.waiting
            assert one.outbox.size == sum(map(len, model.waiting))
            assert one.outbox.is_attached == model.is_attached
        subscribed = sum(model.is_alive and model.is_subscribed for _, model in self.pairs)
        assert len(self.world.app.tenant.channels.get("c", ())) == subscribed
        assert len(self.world.app.tenant.sessions) == sum(model.is_alive for _, model in self.pairs)


STEPS = ("attach", "detach", "room", "resume", "publish", "publish", "subscribe", "unsubscribe", "seconds", "turn", "turn")
walks = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 2), st.integers(0, 6)), min_size=30, max_size=80)


def compare(taken: list[tuple[str, int, int]]) -> None:
    both = Both()
    for n in range(3):
        both.run("subscribe", n, 0)
    for step in taken:
        both.run(*step)
        both.check()


@settings(max_examples=150)
@given(walks)
def test_sessions_send_and_store_the_same_as_their_model(taken):
    compare(taken)


@pytest.mark.long
@pytest.mark.parametrize("part", range(4))  # `make test-long` runs the parts side by side
@settings(max_examples=5000)
@given(walks)
def test_sessions_send_and_store_the_same_as_their_model_in_many_walks(part, taken):
    compare(taken)
