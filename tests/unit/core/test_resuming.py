"""What a new subscriber gets of a channel's history."""

import json

import pytest

from push1st.brokers.history import ReplayRequest
from push1st.brokers.redis.wire import encode_kept
from push1st.config.history import HistorySection
from push1st.core.resuming import BY_POSITION, CHARGED_BYTES, RESUMED_BYTES, ByPosition
from push1st.messages import CacheMissed, Options, Publish, Replayed, Resumed, Subscribe, Subscribed, Unsubscribe
from push1st.positions import Position
from tests.support.frames import Wire, frames
from tests.support.loop import done
from tests.support.node import RAW, World, app_config, token

SECTIONS = (HistorySection(filter=("c", "cache-", "#server-to-user-"), size=100), HistorySection(filter=("private-",), rewind=5))


@pytest.fixture
def world():
    return World(app_config(history=SECTIONS, client_messages=True))


class Client:
    """A client of the world, and the frames that it received after a step."""

    def __init__(self, world, resumption=BY_POSITION, wire=None):
        self.world = world
        self.session, self.outlet = world.session(wire, resumption=resumption)

    def subscribe(self, name="c", since=None, **more):
        """Subscribes to a channel; returns the replies to the client."""
        before = len(self.outlet.replies)
        auth = token(self.session, name) if name.startswith("private") else ""
        self.session.handle(Subscribe(name, auth, since=None if since is None else position(self.world, since, name), **more))
        return self.outlet.replies[before:]

    def data(self):
        """Returns the data of the events that were written since the last call."""
        self.world.turns.drain()
        events = [json.loads(payload) for _, payload in frames(b"".join(self.outlet.writes))]
        found = [json.loads(one["data"]) for one in events if one["event"] == "e"]
        self.outlet.writes.clear()
        return found


def position(world, offset, name="c"):
    """Returns the position with this offset in the present epoch of a channel."""
    request = ReplayRequest(HistorySection(), 0)
    return Position(world.history.replay((world.app.config.id, name), request).position.epoch, offset)


def publish(world, numbers, name="c", **more):
    for number in numbers:
        world.publish(name, b"%d" % number, **more)


def test_a_client_with_a_position_gets_the_later_messages_and_then_the_live_ones(world):
    publish(world, range(1, 6))
    client = Client(world)
    assert client.subscribe(since=3) == [Subscribed("c"), Resumed("c", None, 2, False, position(world, 5))]
    publish(world, [6])
    assert client.data() == [4, 5, 6]


def test_a_client_at_the_end_of_the_channel_missed_nothing(world):
    publish(world, range(1, 6))
    client = Client(world)
    assert client.subscribe(since=5)[1] == Resumed("c", None, 0, False, position(world, 5))
    assert client.data() == []


def test_a_client_without_a_position_gets_only_live_messages(world):
    publish(world, range(1, 6))
    client = Client(world)
    assert client.subscribe()[1] == Resumed("c", "unknown", 0, False, position(world, 5))
    publish(world, [6])
    assert client.data() == [6]


def test_a_partial_replay_is_not_sent(world):
    publish(world, range(1, 151))
    client = Client(world)
    assert client.subscribe(since=49)[1] == Resumed("c", "trimmed", 0, False, position(world, 150))
    assert client.data() == []


def test_a_rewind_follows_a_position_that_is_not_valid(world):
    publish(world, range(1, 151))
    client = Client(world)
    assert client.subscribe(since=49, rewind=3)[1] == Resumed("c", "trimmed", 3, False, position(world, 150))
    assert client.data() == [148, 149, 150]


def test_a_rewind_is_limited_by_the_section(world):
    publish(world, range(1, 11), "private-c")
    client = Client(world)
    assert client.subscribe("private-c", rewind=100)[1].replayed == 5
    assert client.data() == [6, 7, 8, 9, 10]


def test_a_rewind_in_seconds_takes_only_newer_messages(world):
    publish(world, [1])
    world.clock.advance(31)
    publish(world, [2, 3])
    client = Client(world)
    assert client.subscribe(rewind_seconds=30)[1].replayed == 2
    assert client.data() == [2, 3]


def test_a_channel_without_history_says_so(world):
    client = Client(world)
    assert client.subscribe("other") == [Subscribed("other"), Resumed("other", "no-history")]


def test_a_client_that_cannot_resume_gets_no_reply_about_it(world):
    publish(world, [1])
    client = Client(world, None)
    assert client.subscribe() == [Subscribed("c")]
    assert client.data() == []


def test_a_replay_that_is_too_large_is_not_sent(world):
    world.node.max_replay_bytes = 3 * 201
    publish(world, range(1, 5))
    client = Client(world)
    assert client.subscribe(since=0)[1] == Resumed("c", "too-large", 0, False, position(world, 4))
    assert client.data() == []


def test_a_rewind_that_is_too_large_contains_the_latest_messages(world):
    world.node.max_replay_bytes = 3 * 201
    publish(world, range(1, 6))
    client = Client(world)
    assert client.subscribe(rewind=100)[1] == Resumed("c", "unknown", 3, False, position(world, 5))
    assert client.data() == [3, 4, 5]


def test_a_replay_that_does_not_fit_into_the_outbox_is_not_sent(world):
    publish(world, [1])
    client = Client(world)
    client.outlet.has_room = lambda _: False
    assert client.subscribe(since=0)[1].reason == "too-large"
    assert client.data() == []


def test_a_replay_that_disconnects_the_client_is_charged_behind_its_last_frame(world):
    """Otherwise, the frames of the replay would follow the close frame."""
    world.node.max_replay_bytes = 1 << 20
    world.publish("c", b'"%b"' % (b"x" * CHARGED_BYTES))
    client = Client(world)
    written = []

    def charge(session):
        world.node.fanout.flush_subscriber(session)
        written.append(b"".join(client.outlet.writes))

    original, type(client.session).charge = type(client.session).charge, charge
    try:
        client.subscribe(since=0)
    finally:
        type(client.session).charge = original
    assert b"xxx" in written[0]


def test_a_long_replay_is_charged(world):
    world.node.max_replay_bytes = 1 << 20
    world.publish("c", b'"%b"' % (b"x" * 4 * CHARGED_BYTES))
    client = Client(world)
    charged = []
    type(client.session).charge, original = lambda session: charged.append(session), type(client.session).charge
    try:
        client.subscribe(since=0)
    finally:
        type(client.session).charge = original
    assert len(charged) == 4


def test_an_expired_message_is_not_replayed(world):
    publish(world, [1], options=Options(5))
    publish(world, [2])
    world.clock.advance(5)
    client = Client(world)
    assert client.subscribe(since=0)[1].replayed == 1
    assert client.data() == [2]


def test_a_cache_channel_sends_its_kept_event_only_if_messages_may_be_missing(world):
    publish(world, [1, 2], "cache-c")
    fresh, resumed = Client(world), Client(world)
    assert [type(one) for one in fresh.subscribe("cache-c")] == [Subscribed, Resumed, Replayed]
    assert [type(one) for one in resumed.subscribe("cache-c", since=1)] == [Subscribed, Resumed]
    assert resumed.data() == [2]
    assert [type(one) for one in Client(world).subscribe("cache-d")] == [Subscribed, Resumed, CacheMissed]


def test_messages_to_single_clients_and_internal_events_are_not_kept(world):
    client = Client(world)
    client.subscribe()
    world.publish("c", b"1", options=Options(0, "unicast", client.session.id))
    world.publish("c", b"2", event="pusher_internal:x")
    publish(world, [3])
    assert position(world, 0).offset == 0
    assert Client(world).subscribe(rewind=10)[1] == Resumed("c", "unknown", 1, False, position(world, 1))


def test_client_events_are_kept_unless_the_section_says_otherwise():
    world = World(app_config(history=(HistorySection(filter=("a",)), HistorySection(filter=("b",), client_events=False))))
    for name in ("a", "b"):
        publish(world, [1], name, sender="1.2")
    assert [Client(world).subscribe(name, rewind=9)[1].replayed for name in ("a", "b")] == [1, 0]


def test_subscribers_that_share_a_replay_encode_it_once(world):
    publish(world, range(1, 4))
    replay = world.history.replay((world.app.config.id, "c"), ReplayRequest(HistorySection(), 1 << 20, position(world, 0)))
    world.memory.history = Shared(world.history, replay)
    wire = Wire()
    clients = [Client(world, wire=wire) for _ in range(3)]
    for client in clients:
        client.subscribe(since=0)
    world.turns.drain()
    assert wire.encoded == 3
    assert [b"".join(client.outlet.writes) for client in clients] == [b"123"] * 3


class Shared:
    """A history whose answer is the same `Replay` for all clients that join in one step."""

    def __init__(self, history, replay):
        self._history, self._replay = history, replay

    def replay(self, key, request):
        return self._replay

    def __getattr__(self, name):
        return getattr(self._history, name)


def test_the_channel_stores_the_position_of_its_last_message(world):
    publish(world, [1, 2])
    Client(world, None).subscribe()
    channel = world.app.tenant.channels["c"]
    assert (channel.epoch, channel.offset) == (position(world, 0).epoch, 2)
    publish(world, [3])
    assert channel.offset == 3


def test_leaving_a_channel_is_reported_to_the_resumption(world):
    left: list[str] = []
    client = Client(world)
    client.session.resumption = Recorded(left)
    client.subscribe()
    client.session.handle(Unsubscribe("c"))
    assert left == ["c"]


class Recorded(ByPosition):
    def __init__(self, left):
        self._left = left

    def unsubscribed(self, channel):
        self._left.append(channel)


def test_replays_of_several_channels_in_one_turn_must_fit_together(world):
    """Frames that the fan-out still held did not count, so the client was disconnected as too slow after each reconnect."""
    for name in ("c1", "c2", "c3"):
        publish(world, [1], name)
    client = Client(world)
    written = client.outlet.writes
    replay = len(client.session.wire.message(world.history._kept["app-test", "c1"].messages[0], 0))
    client.outlet.has_room = lambda size: sum(map(len, written)) + size <= 2 * replay + RESUMED_BYTES
    found = [client.subscribe(name, since=0)[1].reason for name in ("c1", "c2", "c3")]
    assert found == [None, None, "too-large"]


def test_event_of_a_client_is_not_replayed_after_its_ttl(world):
    publisher, _ = world.session(RAW, push=frozenset({"public"}))
    publisher.handle(Subscribe("c"))
    for number, ttl in ((b"1", 30), (b"2", 32), (b"3", 0)):
        publisher.handle(Publish("c", "e", number, ttl=ttl))
    world.clock.advance(31)
    assert Client(world).subscribe(since=0)[1].replayed == 2


@pytest.mark.parametrize("ttl", [1e-12, 0.5, 1e18, 1e300])
def test_ttl_of_any_length_is_accepted(world, ttl):
    """A long `ttl` did not fit into the 64 bits of MessagePack, so no message of this turn reached the broker."""
    publish(world, [1], options=Options(ttl))
    (message,) = world.history._kept["app-test", "c"].messages
    assert 0 < message.expires < 1 << 63
    assert encode_kept([message])


def test_position_of_a_channel_follows_a_history_that_was_dropped(world):
    """The clients' positions were those of the dropped history, which a later subscription cannot resume."""
    publish(world, [1, 2])
    Client(world).subscribe()
    done(world.history.clear("app-test", "c"))
    expected = Client(world).subscribe()[1].position
    channel = world.app.tenant.channels["c"]
    assert Position(channel.epoch, channel.offset) == expected
