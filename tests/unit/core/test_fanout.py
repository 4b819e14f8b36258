"""The fan-out: invariants 2 to 5 of ARCHITECTURE.md, one by one, then together against a model."""

import contextlib
from unittest.mock import patch

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from push1st.core import fanout
from push1st.messages import Options
from tests.support.book import Book
from tests.support.frames import Wire
from tests.support.node import Listening, Stage


@pytest.fixture
def stage():
    return Stage()


@pytest.fixture
def small(monkeypatch):
    """Sets the bounds of a turn."""

    def set_to(**bounds: int) -> None:
        for name, value in bounds.items():
            monkeypatch.setattr(fanout, name, value)

    return set_to


# One turn, one write


def test_nothing_is_written_before_the_end_of_the_turn(stage):
    one = stage.client("c")
    stage.publish("c", b"1")
    assert one.writes == []
    stage.turns.end()
    assert one.writes == [b"1"]


def test_messages_of_a_turn_are_one_write_to_each_subscriber(stage):
    one, two = stage.client("c"), stage.client("c")
    for n in range(9):
        stage.publish("c", b"%d" % n)
    stage.turns.end()
    assert one.writes == two.writes == [b"012345678"]


def test_the_buffer_is_shared_by_all_subscribers(stage):
    one, two = stage.client("c"), stage.client("c")
    stage.publish("c", b"one")
    stage.publish("c", b"two")
    stage.turns.end()
    assert one.writes[0] is two.writes[0]


def test_a_single_frame_is_written_as_it_is(stage):
    one = stage.client("c")
    frame = b"alone"
    stage.publish("c", frame)
    stage.turns.end()
    assert one.writes[0] is frame


def test_a_message_is_encoded_once_a_wire(stage):
    other = Wire("other")
    for wire in (stage.wire, stage.wire, other, other, other):
        stage.client("c", wire=wire)
    stage.publish("c", b"1")
    assert (stage.wire.encoded, other.encoded) == (1, 1)


def test_a_wire_without_subscribers_is_not_encoded_for(stage):
    other = Wire("other")
    one, _ = stage.client("c", wire=other), stage.client("c")
    stage.leave(one, "c")
    stage.publish("c", b"1")
    assert other.encoded == 0


def test_a_flush_is_scheduled_once_a_turn(stage):
    one = stage.client("a", "b")
    stage.publish("a", b"1")
    stage.publish("b", b"2")
    stage.direct(one, b"3")
    assert len(stage.turns.due) == 1


def test_an_idle_fan_out_schedules_nothing(stage):
    stage.client("c")
    stage.publish("c", b"1")
    stage.turns.end()
    assert stage.turns.due == []


def test_turns_are_written_in_order(stage):
    one = stage.client("c")
    for n in range(3):
        stage.publish("c", b"%d" % n)
        stage.turns.end()
    assert one.writes == [b"0", b"1", b"2"]


# Counts and metrics


def test_publish_returns_the_number_of_subscribers(stage):
    stage.client("c")
    stage.client("c", wire=Wire("other"))
    assert stage.publish("c", b"1") == 2
    assert stage.metrics.messages_out == 2


def test_publish_to_a_channel_without_subscribers_counts_0(stage):
    stage.client("other")
    assert stage.publish("c", b"1") == 0
    assert stage.turns.due == []


def test_an_excluded_subscriber_is_not_counted(stage):
    one, _ = stage.client("c"), stage.client("c")
    assert stage.publish("c", b"1", exclude=one) == 1
    assert stage.metrics.messages_out == 1


def test_broadcast_excluding_two_subscribers_is_one_write_to_each_other_subscriber(stage):
    """A raw client may send as many of these as of any other events."""
    other = Wire("other")
    clients = [stage.client("c", wire=other if number == 1 else None) for number in range(100)]
    one, two, elsewhere = clients[0], clients[1], stage.client("d")
    target = Options(0, "broadcast", two.session.id)
    assert stage.publish("c", b"1", exclude=one, how=target) == 98
    assert stage.publish("c", b"2", exclude=one) == 99
    assert stage.publish("c", b"3", exclude=two, how=target) == 99
    assert stage.publish("c", b"4", exclude="9.9", how=target) == 99
    assert stage.publish("c", b"5", exclude=elsewhere, how=target) == 99
    assert stage.publish("c", b"6", exclude=two, how=Options(0, "broadcast", "9.9")) == 99
    stage.turns.drain()
    assert (one.received, two.received) == (b"3456", b"2")
    assert {tuple(client.writes) for client in clients[2:]} == {(b"123456",)}
    assert stage.metrics.messages_out == 98 + 5 * 99


def test_bytes_out_are_the_bytes_written(stage, small):
    small(SLICE_WRITES=2)
    clients = [stage.client("c") for _ in range(5)]
    stage.publish("c", b"one")
    stage.publish("c", b"two", exclude=clients[0])
    stage.unicast("c", b"three", clients[1])
    stage.direct(clients[2], b"four")
    stage.turns.drain()
    assert stage.metrics.bytes_out == sum(len(one.received) for one in clients)


def test_pending_bytes_and_slices_are_properties(stage, small):
    small(SLICE_WRITES=1)
    stage.client("c"), stage.client("c")
    stage.publish("c", b"four")
    assert (stage.fanout.pending, stage.fanout.slices) == (4, 0)
    stage.turns.end()
    assert (stage.fanout.pending, stage.fanout.slices) == (0, 1)
    stage.turns.drain()
    assert (stage.fanout.pending, stage.fanout.slices) == (0, 0)


# Joining and leaving


def test_new_subscriber_gets_only_later_frames(stage):
    one = stage.client("c")
    stage.publish("c", b"1")
    two = stage.client("c")
    stage.publish("c", b"2")
    stage.turns.end()
    assert (one.received, two.received) == (b"12", b"2")


def test_leaving_subscriber_gets_pending_frames_and_no_later_ones(stage):
    one, two = stage.client("c"), stage.client("c")
    stage.publish("c", b"1")
    stage.leave(one, "c")
    stage.publish("c", b"2")
    stage.turns.end()
    assert (one.received, two.received) == (b"1", b"12")


def test_new_subscriber_on_another_wire_gets_only_later_frames(stage):
    one = stage.client("c")
    stage.publish("c", b"1")
    two = stage.client("c", wire=Wire("other"))
    stage.publish("c", b"2")
    stage.turns.end()
    assert (one.received, two.received) == (b"12", b"2")


def test_subscriber_that_leaves_and_returns_misses_the_frames_between(stage):
    one, _ = stage.client("c"), stage.client("c")
    for step, data in ((stage.leave, b"1"), (stage.join, b"2"), (stage.leave, b"3"), (stage.join, b"4")):
        stage.publish("c", data)
        step(one, "c")
    stage.publish("c", b"5")
    stage.turns.end()
    assert one.received == b"135"


def test_lost_connection_gets_no_further_frames(stage):
    one, two = stage.client("c"), stage.client("c")
    stage.publish("c", b"1")
    stage.direct(one, b"2")
    stage.publish("c", b"3")
    stage.lose(one)
    written = list(one.writes)
    stage.publish("c", b"4")
    stage.turns.drain()
    assert one.writes == written
    assert two.received == b"134"


@pytest.mark.parametrize("how", ["excluded", "unicast"])
def test_lost_connection_with_frames_of_its_own_does_not_stop_the_flush(stage, how):
    one, two = stage.client("c"), stage.client("c")
    stage.publish("c", b"1")
    if how == "excluded":
        stage.publish("c", b"2", exclude=one)
    else:
        stage.unicast("c", b"2", one)
    stage.lose(one)
    stage.publish("c", b"3")
    stage.turns.drain()
    assert two.received == (b"123" if how == "excluded" else b"13")
    assert one.writes == []


def test_channel_left_by_all_has_no_frames_for_the_next_subscriber(stage):
    one = stage.client("c")
    stage.publish("c", b"1")
    stage.lose(one)
    two = stage.client("c")
    stage.publish("c", b"2")
    stage.turns.drain()
    assert two.received == b"2"


# Exclusion, unicast, multicast


def test_excluded_subscriber_misses_only_that_frame(stage):
    one, two = stage.client("c"), stage.client("c")
    stage.publish("c", b"1")
    stage.publish("c", b"2", exclude=one)
    stage.publish("c", b"3")
    stage.turns.end()
    assert (one.writes, two.writes) == ([b"13"], [b"123"])


def test_several_may_be_excluded_in_one_turn(stage):
    one, two, three = stage.client("c"), stage.client("c"), stage.client("c")
    stage.publish("c", b"1", exclude=one)
    stage.publish("c", b"2", exclude=two)
    stage.publish("c", b"3", exclude=one)
    stage.publish("c", b"4")
    stage.turns.end()
    assert (one.received, two.received, three.received) == (b"24", b"134", b"1234")


def test_excluding_an_unsubscribed_connection_changes_nothing(stage):
    one, elsewhere = stage.client("c"), stage.client("other")
    assert stage.publish("c", b"1", exclude=elsewhere) == 1
    assert stage.publish("c", b"2", exclude="9.9") == 1
    stage.turns.end()
    assert one.received == b"12"


def test_exclusion_affects_only_the_wire_of_the_excluded_subscriber(stage):
    one, two = stage.client("c"), stage.client("c", wire=Wire("other"))
    assert stage.publish("c", b"1", exclude=one) == 1
    stage.turns.end()
    assert (one.received, two.received) == (b"", b"1")


@pytest.mark.parametrize("count", [3, 100])
def test_a_broadcast_that_excludes_two_connections_reaches_the_others_in_order(stage, count):
    one, two, *others = [stage.client("c") for _ in range(count)]
    stage.publish("c", b"1")
    assert stage.publish("c", b"2", one, Options(0, "broadcast", two.session.id)) == count - 2
    stage.publish("c", b"3")
    stage.turns.drain()
    assert (one.received, two.received) == (b"13", b"13")
    assert {other.received for other in others} == {b"123"}


def test_unicast_reaches_its_target_in_order_with_broadcasts(stage):
    one, two = stage.client("c"), stage.client("c")
    stage.publish("c", b"1")
    assert stage.unicast("c", b"2", one) == 1
    stage.publish("c", b"3")
    stage.turns.end()
    assert (one.writes, two.writes) == ([b"123"], [b"13"])


def test_unicast_to_an_unsubscribed_connection_is_not_delivered(stage):
    stage.client("c")
    elsewhere = stage.client("other")
    assert stage.unicast("c", b"1", elsewhere) == 0
    assert stage.unicast("c", b"1", "9.9") == 0
    assert stage.unicast("nowhere", b"1", elsewhere) == 0
    stage.turns.drain()
    assert elsewhere.received == b""


def test_unicast_to_a_wire_without_subscribers_is_not_delivered(stage):
    stage.client("c")
    assert stage.unicast("c", b"1", stage.client("other", wire=Wire("other"))) == 0


def test_multicast_reaches_connections_with_the_prefix(stage):
    one, two, three = stage.client("c", prefix="a"), stage.client("c", prefix="a.b"), stage.client("c", prefix="b")
    elsewhere = stage.client("other", prefix="a")
    assert stage.multicast("c", b"1", "a") == 2
    assert stage.multicast("c", b"2", "a.b") == 1
    stage.turns.end()
    assert [each.received for each in (one, two, three, elsewhere)] == [b"1", b"12", b"", b""]


def test_a_targeted_message_is_encoded_once_a_wire(stage):
    for _ in range(3):
        stage.client("c", prefix="a")
    stage.multicast("c", b"1", "a")
    assert stage.wire.encoded == 1


def test_targeted_message_may_exclude_a_connection(stage):
    one, two = stage.client("c", prefix="a"), stage.client("c", prefix="a")
    assert stage.publish("c", b"1", one, Options(0, "multicast", "a")) == 1
    assert stage.publish("c", b"2", one, Options(0, "unicast", one.session.id)) == 0
    stage.turns.end()
    assert (one.received, two.received) == (b"", b"1")


def test_new_subscriber_gets_no_frames_of_other_subscribers(stage):
    one = stage.client("c")
    stage.publish("c", b"1", exclude=one)
    two = stage.client("c")
    stage.publish("c", b"2")
    stage.turns.end()
    assert (one.received, two.received) == (b"2", b"2")


# Direct replies


def test_direct_frames_of_a_turn_are_one_write(stage):
    one = stage.client()
    stage.direct(one, b"1")
    stage.direct(one, b"2")
    stage.turns.end()
    assert one.writes == [b"12"]


def test_direct_reply_is_written_after_pending_frames_of_channels(stage):
    one = stage.client("a", "b")
    stage.publish("a", b"1")
    stage.publish("b", b"2")
    stage.direct(one, b"3")
    stage.turns.end()
    assert one.received[-1:] == b"3"
    assert sorted(one.received) == sorted(b"123")


def test_frame_ahead_is_written_before_pending_frames_of_channels(stage):
    one = stage.client("a")
    stage.direct(one, b"1")
    stage.publish("a", b"3")
    stage.ahead(one, b"2")
    stage.turns.end()
    assert one.received == b"123"


def test_later_frames_are_written_after_a_direct_reply(stage):
    one = stage.client("c")
    stage.direct(one, b"1")
    stage.publish("c", b"2")
    stage.direct(one, b"3")
    stage.publish("c", b"4")
    stage.turns.end()
    assert one.received == b"1234"


def test_direct_reply_to_another_connection_does_not_move_frames_before_this_reply(stage):
    one, two = stage.client("c"), stage.client("c")
    stage.direct(two, b"subscribed ")
    stage.publish("c", b"event")
    stage.direct(one, b" pong")
    stage.turns.end()
    assert two.received == b"subscribed event"
    assert one.received == b"event pong"


def test_settling_one_connection_does_not_move_frames_before_the_reply_of_another(stage):
    one, two = stage.client("c"), stage.client("c")
    stage.direct(two, b"subscribed ")
    stage.publish("c", b"event")
    stage.settle(one)
    stage.turns.end()
    assert two.received == b"subscribed event"


def test_settling_writes_all_pending_frames_of_a_connection(stage):
    one = stage.client("c")
    stage.publish("c", b"1")
    stage.direct(one, b"2")
    stage.publish("c", b"3")
    stage.settle(one)
    assert one.received == b"123"
    stage.turns.drain()
    assert one.received == b"123"


def test_a_change_of_subscribers_writes_direct_frames_first(stage):
    one = stage.client("c")
    stage.direct(one, b"1")
    stage.publish("c", b"2")
    stage.client("c")
    assert one.received == b"12"


# Flushing early


def test_a_lane_is_flushed_early_when_it_holds_too_many_bytes(stage, small):
    small(MAX_PENDING_BYTES=5)
    one = stage.client("c")
    stage.publish("c", b"123")
    assert one.writes == []
    stage.publish("c", b"456")
    assert one.writes == [b"123456"]
    stage.turns.drain()
    assert one.received == b"123456"


def test_a_lane_is_flushed_early_when_too_many_have_frames_of_their_own(stage, small):
    small(MAX_OVERRIDES=2)
    clients = [stage.client("c") for _ in range(4)]
    for one in clients[:2]:
        stage.publish("c", b"x", exclude=one)
    assert clients[3].writes == []
    stage.publish("c", b"y", exclude=clients[2])
    assert clients[3].writes == [b"xxy"]
    stage.turns.drain()
    assert [one.received for one in clients] == [b"xy", b"xy", b"xx", b"xxy"]


def test_an_early_flush_writes_direct_frames_first(stage, small):
    small(MAX_PENDING_BYTES=1)
    one = stage.client("c")
    stage.direct(one, b"1")
    stage.publish("c", b"22")
    assert one.received == b"122"


def test_multicast_to_more_subscribers_than_a_lane_may_override_reaches_all(stage, small):
    small(MAX_OVERRIDES=2)
    clients = [stage.client("c", prefix="a") for _ in range(7)]
    stage.publish("c", b"1")
    assert stage.multicast("c", b"2", "a") == 7
    stage.publish("c", b"3")
    stage.turns.drain()
    assert [one.received for one in clients] == [b"123"] * 7


def test_turn_continues_after_an_early_flush(stage, small):
    small(MAX_PENDING_BYTES=2)
    one = stage.client("c")
    for n in range(7):
        stage.publish("c", b"%d" % n)
    stage.turns.drain()
    assert one.received == b"0123456"


# Slices


def written(clients: list[Listening]) -> int:
    return sum(bool(one.writes) for one in clients)


def test_a_long_flush_is_written_in_slices_a_turn_each(stage, small):
    small(SLICE_WRITES=3)
    clients = [stage.client("c") for _ in range(7)]
    stage.publish("c", b"1")
    most = 0
    before = 0
    while stage.turns.due:
        stage.turns.end()
        most, before = max(most, written(clients) - before), written(clients)
    assert most == 3
    assert [one.received for one in clients] == [b"1"] * 7


def sliced(stage, small, slice_writes: int, subscribers: int) -> list[Listening]:
    """Publishes to subscribers of `c`, and ends a turn, which writes the first slice of the flush; returns the subscribers."""
    small(SLICE_WRITES=slice_writes)
    clients = [stage.client("c") for _ in range(subscribers)]
    stage.publish("c", b"1")
    stage.turns.end()
    return clients


def test_a_slice_keeps_its_subscribers(stage, small):
    clients = sliced(stage, small, 2, 5)
    stage.turns.end()
    newcomer = stage.client("c")
    stage.leave(clients[4], "c")
    stage.turns.drain()
    assert [one.received for one in clients] == [b"1"] * 5
    assert newcomer.received == b""


def test_later_frames_are_written_after_a_slice(stage, small):
    clients = sliced(stage, small, 2, 5)
    stage.publish("c", b"2", exclude=clients[4])
    stage.turns.end()
    stage.publish("c", b"3")
    stage.unicast("c", b"4", clients[4])
    stage.turns.drain()
    assert [one.received for one in clients] == [b"123"] * 4 + [b"134"]


def test_a_direct_reply_within_a_slice_overtakes_nothing(stage, small):
    clients = sliced(stage, small, 1, 4)
    stage.publish("c", b"2")
    stage.direct(clients[3], b"3")
    stage.publish("c", b"4")
    stage.turns.drain()
    assert [one.received for one in clients] == [b"124"] * 3 + [b"1234"]


def test_a_direct_reply_within_a_slice_of_a_channel_that_was_left_overtakes_nothing(stage, small):
    clients = sliced(stage, small, 1, 4)
    stage.leave(clients[3], "c")
    stage.direct(clients[3], b"2")
    stage.turns.drain()
    assert clients[3].received == b"12"


def test_subscriber_that_joins_within_a_slice_gets_only_later_frames(stage, small):
    clients = sliced(stage, small, 1, 3)
    stage.publish("c", b"2")
    newcomer = stage.client("c")
    stage.publish("c", b"3")
    stage.turns.drain()
    assert [one.received for one in clients] == [b"123"] * 3
    assert newcomer.received == b"3"


def test_connection_lost_within_a_slice_gets_no_further_frames(stage, small):
    clients = sliced(stage, small, 1, 4)
    stage.lose(clients[3])
    stage.turns.drain()
    assert [one.received for one in clients] == [b"1", b"1", b"1", b""]


def test_connection_that_left_and_was_lost_within_a_slice_gets_no_further_frames(stage, small):
    clients = sliced(stage, small, 1, 4)
    stage.leave(clients[3], "c")
    stage.lose(clients[3])
    before = clients[3].received
    stage.turns.drain()
    assert [one.received for one in clients] == [b"1", b"1", b"1", before]


def test_all_may_leave_within_a_slice_and_come_back_in_order(stage, small):
    clients = sliced(stage, small, 1, 3)
    for one in clients:
        stage.leave(one, "c")
    for one in clients:
        stage.join(one, "c")
    stage.publish("c", b"2")
    stage.turns.drain()
    assert [one.received for one in clients] == [b"12"] * 3


def test_subscriber_that_moves_to_another_wire_gets_all_frames_in_order(stage, small):
    small(SLICE_WRITES=1)
    other, one = stage.client("c"), stage.client("c")
    stage.publish("c", b"1")
    stage.turns.end()
    stage.publish("c", b"2")
    stage.fanout.move(stage.tenant, one.session, "c", Wire("another"))
    stage.publish("c", b"3")
    stage.turns.drain()
    assert one.received == other.received == b"123"


def test_when_slices_are_many_the_oldest_is_finished_at_once(stage, small):
    small(SLICE_WRITES=1, MAX_SLICES=2, MAX_PENDING_BYTES=0)
    clients = [stage.client("c") for _ in range(3)]
    for n in range(4):
        stage.publish("c", b"%d" % n)
    assert stage.fanout.slices == 2
    assert clients[2].received == b"01"
    stage.turns.drain()
    assert [one.received for one in clients] == [b"0123"] * 3


def test_a_long_flush_does_not_hold_back_other_channels(stage, small):
    small(SLICE_WRITES=2)
    for _ in range(20):
        stage.client("large")
    one = stage.client("small")
    stage.publish("large", b"1")
    stage.publish("small", b"2")
    for _ in range(3):
        stage.turns.end()
    assert one.received == b"2"


def test_busy_large_channel_does_not_starve_a_small_channel(stage, small):
    small(SLICE_WRITES=2)
    clients = [stage.client("large") for _ in range(6)]
    one = stage.client("small")
    stage.publish("large", b"x")
    stage.publish("small", b"1")
    for _ in range(50):
        stage.publish("large", b"x")
        stage.turns.end()
    assert one.received == b"1"
    stage.turns.drain()
    assert [client.received for client in clients] == [b"x" * 51] * 6


def test_direct_replies_do_not_wait_for_a_long_flush(stage, small):
    small(SLICE_WRITES=2)
    for _ in range(20):
        stage.client("large")
    one = stage.client()
    stage.publish("large", b"1")
    stage.turns.end()
    stage.direct(one, b"2")
    stage.turns.end()
    assert one.received == b"2"


# Slow consumers


def test_connection_that_ends_within_its_write_is_removed_after_the_flush(stage):
    one, two, three = (stage.client("c") for _ in range(3))
    two.on_write = lambda client: stage.turns.call_soon(lambda: stage.lose(client))
    stage.publish("c", b"1")
    stage.turns.end()
    assert [each.received for each in (one, two, three)] == [b"1", b"1", b"1"]
    stage.publish("c", b"2")
    stage.turns.drain()
    assert [each.received for each in (one, two, three)] == [b"12", b"1", b"12"]


def test_all_may_be_cut_in_one_flush(stage, small):
    small(SLICE_WRITES=2)
    clients = [stage.client("c") for _ in range(5)]
    for one in clients:
        one.on_write = lambda client: stage.turns.call_soon(lambda: stage.lose(client))
    stage.publish("c", b"1")
    stage.turns.drain()
    assert [one.received for one in clients] == [b"1"] * 5
    assert stage.tenant.channels == {}


# Everything together

CHANNELS = ("a", "b")
# Flushes that wait for more messages

MANY = 100
"""number of subscribers from which a flush may wait"""


def flushed(stage, merged, subscribers=MANY):
    """Delivers this number of messages to some clients in one flush; returns the first client."""
    one, *_ = [stage.client("c") for _ in range(subscribers)]
    for _ in range(merged):
        stage.publish("c", b".")
    stage.turns.drain()
    one.writes.clear()
    return one


def test_after_a_flush_of_several_messages_to_many_the_next_waits_for_as_many(stage):
    one = flushed(stage, 3)
    for n in b"123":
        stage.turns.end()
        assert one.writes == []
        stage.publish("c", b"%c" % n)
    stage.turns.end()
    assert one.writes == [b"123"]
    assert stage.turns.timers == []


@pytest.mark.parametrize(("subscribers", "seconds"), [(100, 0.0016), (400, 0.0064), (1000, fanout.MAX_HOLD_SECONDS)])
def test_flush_waits_longer_after_a_larger_flush_up_to_a_bound(stage, subscribers, seconds):
    one = flushed(stage, 3, subscribers)
    stage.publish("c", b"1")
    stage.turns.end()
    (timer,) = stage.turns.timers
    assert timer.seconds == pytest.approx(seconds)
    stage.turns.elapse()
    assert one.writes == [b"1"]


def test_size_of_a_flush_that_waited_in_vain_is_the_next_threshold(stage):
    one = flushed(stage, 3)
    stage.publish("c", b"1")
    stage.turns.end()
    stage.turns.elapse()
    stage.publish("c", b"2")
    stage.turns.end()
    assert one.writes == [b"1", b"2"]


@pytest.mark.parametrize(("merged", "subscribers"), [(1, MANY), (3, 20)])
def test_flush_after_one_message_or_few_subscribers_does_not_wait(stage, merged, subscribers):
    one = flushed(stage, merged, subscribers)
    stage.publish("c", b"1")
    stage.turns.end()
    assert one.writes == [b"1"]


def test_flush_after_messages_on_many_channels_does_not_wait(stage):
    clients = [stage.client(f"c{n}") for n in range(2 * MANY)]
    for n in range(2 * MANY):
        stage.publish(f"c{n}", b"1")
    stage.turns.end()
    stage.publish("c0", b"2")
    stage.turns.end()
    assert clients[0].writes == [b"1", b"2"]


def test_flush_after_a_pause_does_not_wait(stage):
    one = flushed(stage, 3)
    stage.world.clock.advance(0.01)
    stage.publish("c", b"1")
    stage.turns.end()
    assert one.writes == [b"1"]


def test_direct_frames_do_not_wait(stage):
    flushed(stage, 3)
    other = stage.client("d")
    stage.publish("c", b"1")
    stage.turns.end()
    stage.direct(other, b"now")
    stage.turns.end()
    assert other.writes == [b"now"]


def test_a_wait_that_lost_its_messages_does_not_stop_the_next(stage):
    one = flushed(stage, 3)
    stage.publish("c", b"1")
    stage.turns.end()
    stage.settle(one)
    stage.turns.elapse()
    stage.publish("c", b"2")
    stage.turns.end()
    stage.turns.elapse()
    assert one.writes == [b"1", b"2"]


ids = st.integers(0, 5)
channels = st.sampled_from(CHANNELS)


class Deliveries(RuleBasedStateMachine):
    """Six connections with random commands on two channels and two wires; the model has the frames that each must read."""

    def __init__(self):
        super().__init__()
        self.stage = Stage()
        self.book = Book()
        self.wires = (Wire("one"), Wire("two"))
        self.bounds = contextlib.ExitStack()
        self.clients = [self.newcomer(n) for n in range(6)]

    def newcomer(self, n: int) -> Listening:
        prefix = ("", "p", "p.q")[n % 3]
        one = self.stage.client(wire=self.wires[n // 4], prefix=prefix)
        self.book.connect(one, prefix)
        return one

    @initialize(
        SLICE_WRITES=st.sampled_from((1, 2, 3, 2048)),
        MAX_PENDING_BYTES=st.sampled_from((0, 6, 20, 262_144)),
        MAX_OVERRIDES=st.sampled_from((0, 1, 2, 32)),
        MAX_SLICES=st.sampled_from((1, 2, 4)),
        subscribed=st.lists(st.tuples(ids, channels)),
        HOLD_SECONDS_PER_WRITE=st.sampled_from((fanout.HOLD_SECONDS_PER_WRITE, 0.001)),
    )
    def begin(self, subscribed, **bounds):
        self.bounds.enter_context(patch.multiple(fanout, **bounds))
        for n, channel in subscribed:
            self.join(n, channel)

    def teardown(self):
        try:
            self.stage.turns.drain()
            self.book.check_all(strict_end=True)
            assert (self.stage.fanout.pending, self.stage.fanout.slices) == (0, 0)
        finally:
            self.bounds.close()

    @rule(n=ids, channel=channels)
    def join(self, n, channel):
        one = self.clients[n]
        if channel not in one.on:
            self.stage.join(one, channel)
            self.book.join(one, channel)

    @rule(n=ids, channel=channels)
    def leave(self, n, channel):
        one = self.clients[n]
        if channel in one.on:
            self.stage.leave(one, channel)
            self.book.leave(one, channel)

    @rule(n=ids, settled=st.booleans())
    def lose(self, n, settled):
        one = self.clients[n]
        if settled:
            self.stage.settle(one)
            self.book.check(one, complete=True)
        self.stage.lose(one)
        self.book.lose(one)
        self.clients[n] = self.newcomer(n)

    @rule(channel=channels)
    def broadcast(self, channel):
        frame = self.book.frame()
        assert self.stage.publish(channel, frame) == self.book.publish(channel, frame)

    @rule(channel=channels, n=ids)
    def exclude(self, channel, n):
        frame = self.book.frame()
        assert self.stage.publish(channel, frame, self.clients[n]) == self.book.publish(channel, frame, self.clients[n])

    @rule(channel=channels, n=ids)
    def unicast(self, channel, n):
        frame = self.book.frame()
        assert self.stage.unicast(channel, frame, self.clients[n]) == self.book.unicast(channel, frame, self.clients[n])

    @rule(channel=channels, prefix=st.sampled_from(("p", "p.q", "none")))
    def multicast(self, channel, prefix):
        frame = self.book.frame()
        assert self.stage.multicast(channel, frame, prefix) == self.book.multicast(channel, frame, prefix)

    @rule(n=ids)
    def direct(self, n):
        frame = self.book.frame()
        self.stage.direct(self.clients[n], frame)
        self.book.direct(self.clients[n], frame)

    @rule(n=ids)
    def settle(self, n):
        self.stage.settle(self.clients[n])
        self.book.check(self.clients[n], complete=True)

    @rule(n=ids)
    def becomes_slow(self, n):
        """Makes each later write end its connection at the end of the turn, like a full buffer."""

        def cut(client):
            if self.clients[n] is client:
                self.lose(n, settled=False)

        self.clients[n].on_write = lambda client: self.stage.turns.call_soon(lambda: cut(client))

    @rule()
    def end_turn(self):
        self.stage.turns.end()

    @rule()
    def elapse(self):
        self.stage.turns.elapse()

    @precondition(lambda self: self.stage.turns.due or self.stage.turns.timers)
    @rule()
    def drain(self):
        self.stage.turns.drain()
        for one in self.clients:
            self.book.check(one, complete=True)

    @invariant()
    def nobody_reads_what_it_should_not(self):
        self.book.check_all()


TestDeliveries = Deliveries.TestCase
TestDeliveries.settings = settings(max_examples=120, stateful_step_count=40)
