"""Messages from clients: acknowledgements in order, repetitions with QoS 2, and the window of the client."""

import sys

import pytest

from push1st.protocols.mqtt.flow import FlowBounds, FlowCounts, FlowState, FlowViolation
from push1st.protocols.mqtt.incoming import MAX_HELD_WINDOWS, Arrival, Incoming
from push1st.protocols.mqtt.packets import ReasonCode
from tests.support.mqtt_flow import BOUNDS

ERROR = ReasonCode.QUOTA_EXCEEDED


def incoming(bounds: FlowBounds = BOUNDS) -> Incoming:
    return Incoming(bounds, FlowCounts())


def new(one: Incoming, packet_id: int, qos: int, dup: bool = False, content: int = 0) -> Arrival:
    """Receives a message that the server publishes."""
    arrival = one.publish(packet_id, qos, dup, content)
    assert arrival is not None
    return arrival


def accept(one: Incoming, packet_id: int, qos: int, dup: bool = False, content: int = 0) -> None:
    """Receives a message that the broker confirms at once."""
    one.confirm(new(one, packet_id, qos, dup, content))
    assert one.answers() == [(packet_id, qos, ReasonCode.SUCCESS)]


# -- answers


def test_a_confirmed_message_is_acknowledged():
    one = incoming()
    arrival = new(one, 5, 1)
    assert one.answers() == []
    one.confirm(arrival, ReasonCode.NO_MATCHING_SUBSCRIBERS)
    assert one.answers() == [(5, 1, ReasonCode.NO_MATCHING_SUBSCRIBERS)]
    assert one.answers() == []


@pytest.mark.parametrize("qos", [1, 2])
def test_answers_have_the_order_of_arrival(qos):
    one = incoming()
    a, b, c = (new(one, packet_id, qos) for packet_id in (5, 6, 4))
    one.confirm(c)
    assert one.answers() == []
    one.confirm(a)
    assert one.answers() == [(5, qos, 0)]
    one.confirm(b)
    assert one.answers() == [(6, qos, 0), (4, qos, 0)]


def test_answers_for_qos_1_and_2_have_one_order():
    one = incoming()
    a, b = new(one, 1, 2), new(one, 2, 1)
    one.confirm(b)
    assert one.answers() == []
    one.confirm(a)
    assert one.answers() == [(1, 2, 0), (2, 1, 0)]


def test_a_confirmation_after_the_end_of_the_connection_is_not_sent():
    one = incoming()
    a, b = new(one, 1, 1), new(one, 2, 2)
    one.detach()
    one.confirm(a)
    one.confirm(b)
    assert one.answers() == []


# -- repetitions


def test_a_packet_with_qos_1_is_always_new():
    one = incoming()
    accept(one, 1, 1)
    accept(one, 1, 1, dup=True)


def test_a_held_id_is_acknowledged_and_not_published_again():
    one = incoming()
    accept(one, 1, 2, content=7)
    assert one.publish(1, 2, True, 7) is None
    assert one.answers() == [(1, 2, 0)]


def test_a_held_id_is_a_repetition_whatever_its_content():
    one = incoming()
    accept(one, 1, 2, content=7)
    for content in range(8, 12):
        assert one.publish(1, 2, False, content) is None
        assert one.answers() == [(1, 2, 0)]


def test_a_released_id_is_new():
    one = incoming()
    accept(one, 1, 2)
    one.pubrel((1,))
    accept(one, 1, 2)


def test_an_id_whose_message_was_rejected_is_new():
    one = incoming()
    one.confirm(new(one, 1, 2), ERROR)
    assert one.answers() == [(1, 2, ERROR)]
    accept(one, 1, 2, dup=True)


def test_a_repetition_before_the_confirmation_is_answered_once_after_it():
    one = incoming()
    arrival = new(one, 1, 2)
    assert one.publish(1, 2, True) is None
    assert one.answers() == []
    one.confirm(arrival)
    assert one.answers() == [(1, 2, 0)]
    assert one.answers() == []


def test_a_repetition_on_the_next_connection_waits_for_the_confirmation():
    one = incoming()
    arrival = new(one, 1, 2)
    one.detach()
    assert one.publish(1, 2, True) is None
    assert one.answers() == []
    one.confirm(arrival)
    assert one.answers() == [(1, 2, 0)]


def test_a_repetition_on_the_next_connection_gets_the_error_of_the_message():
    one = incoming()
    arrival = new(one, 1, 2)
    one.detach()
    assert one.publish(1, 2, True) is None
    one.confirm(arrival, ERROR)
    assert one.answers() == [(1, 2, ERROR)]
    assert one._unacknowledged == 0


def test_a_message_that_fails_after_the_end_of_its_connection_is_published_on_the_next_one():
    one = incoming()
    arrival = new(one, 1, 2)
    one.detach()
    one.confirm(arrival, ERROR)
    accept(one, 1, 2, dup=True)


def test_a_late_error_does_not_release_the_id_of_a_newer_message():
    one = incoming()
    old = new(one, 1, 2)
    one.detach()
    one.pubrel((1,))
    accept(one, 1, 2)
    one.confirm(old, ERROR)
    assert one.publish(1, 2, True) is None


def test_the_same_packet_a_third_time_without_dup_is_a_violation():
    one = incoming()
    accept(one, 1, 2, content=7)
    assert one.publish(1, 2, False, 7) is None
    with pytest.raises(FlowViolation, match="PUBLISH 1 is sent again and again without DUP") as raised:
        one.publish(1, 2, False, 7)
    assert raised.value.reason == ReasonCode.PROTOCOL_ERROR


def test_repetitions_with_dup_or_on_other_connections_do_not_count():
    one = incoming()
    accept(one, 1, 2, content=7)
    for _ in range(5):
        assert one.publish(1, 2, True, 7) is None
    for _ in range(5):
        one.detach()
        assert one.publish(1, 2, False, 7) is None


# -- PUBREL


def test_pubrel_of_an_unknown_id_is_ignored():
    one = incoming()
    accept(one, 1, 2)
    one.pubrel((9, 1, 1))
    assert one.save() == ()


def test_a_repetition_gets_no_pubrec_after_pubrel():
    one = incoming()
    accept(one, 1, 2)
    first = new(one, 2, 1)
    assert one.publish(1, 2, True) is None
    one.pubrel((1,))
    one.confirm(first)
    assert one.answers() == [(2, 1, 0)]
    accept(one, 1, 2)


def test_a_repetition_takes_no_place_in_the_window_after_pubrel():
    one = incoming()
    accept(one, 1, 2)
    new(one, 2, 1)
    assert one.publish(1, 2, True) is None
    one.pubrel((1,))
    new(one, 3, 1)
    new(one, 4, 1)


# -- the window of the client


@pytest.mark.parametrize("qos", [1, 2])
def test_one_message_more_than_the_window_is_a_violation(qos):
    one = incoming()
    for packet_id in (1, 2, 3):
        new(one, packet_id, qos)
    with pytest.raises(FlowViolation, match="more than 3 unacknowledged messages") as raised:
        one.publish(4, qos)
    assert raised.value.reason == ReasonCode.RECEIVE_MAXIMUM_EXCEEDED
    assert 4 not in one._held


def test_puback_and_pubrel_and_errors_free_a_place_in_the_window():
    one = incoming()
    for _ in range(3):
        a, b, c = new(one, 1, 1), new(one, 2, 2), new(one, 3, 2)
        one.confirm(a)
        one.confirm(b, ERROR)
        one.confirm(c)
        assert len(one.answers()) == 3
        one.pubrel((3,))
    assert one._unacknowledged == 0


def test_pubrec_does_not_free_a_place_in_the_window():
    one = incoming()
    for packet_id in (1, 2, 3):
        accept(one, packet_id, 2)
    with pytest.raises(FlowViolation):
        one.publish(4, 1)


def test_a_repetition_does_not_count_twice():
    one = incoming()
    accept(one, 1, 2)
    for _ in range(5):
        assert one.publish(1, 2, True) is None
    new(one, 2, 2)
    new(one, 3, 2)


def test_the_window_begins_again_with_each_connection():
    one = incoming()
    for packet_id in (1, 2, 3):
        accept(one, packet_id, 2)
    one.detach()
    for packet_id in (4, 5, 6):
        accept(one, packet_id, 2)
    one.pubrel((1, 2, 3))
    with pytest.raises(FlowViolation):
        one.publish(7, 2)


def test_a_repetition_on_the_next_connection_counts():
    one = incoming()
    accept(one, 1, 2)
    one.detach()
    assert one.publish(1, 2, True) is None
    new(one, 2, 1)
    new(one, 3, 1)
    with pytest.raises(FlowViolation):
        one.publish(4, 1)


def test_pubrel_before_pubrec_does_not_make_room_for_unconfirmed_messages():
    one = incoming()
    for _ in range(3):
        new(one, 1, 2)
        one.pubrel((1,))
    with pytest.raises(FlowViolation):
        one.publish(1, 2)


def test_a_message_that_was_released_before_its_error_frees_one_place():
    one = incoming()
    arrival = new(one, 1, 2)
    one.pubrel((1,))
    one.confirm(arrival, ERROR)
    assert one.answers() == []
    assert one._unacknowledged == 0


def test_held_ids_of_earlier_connections_have_a_bound():
    one = incoming()
    most = MAX_HELD_WINDOWS * BOUNDS.inflight
    for packet_id in range(1, most + 3):
        accept(one, packet_id, 2)
        one.detach()
    assert [packet_id for packet_id, _ in one.save()] == [*range(3, most + 3)]
    assert one._counts.forgotten == 2


def test_only_ids_of_earlier_connections_are_forgotten():
    one = incoming(FlowBounds(inflight=2, queue=4, queue_size=100))
    most = 2 * MAX_HELD_WINDOWS
    for packet_id in range(1, most + 1):
        accept(one, packet_id, 2)
        one.detach()
    assert one.publish(1, 2, True) is None
    assert one.answers() == [(1, 2, 0)]
    accept(one, most + 1, 2)
    assert [packet_id for packet_id, _ in one.save()] == [1, *range(3, most + 2)]


def test_client_without_a_window_has_many_unacknowledged_messages():
    one = Incoming(BOUNDS, FlowCounts(), has_window=False)
    most = MAX_HELD_WINDOWS * BOUNDS.inflight
    for packet_id in range(1, most + 1):
        accept(one, packet_id, 2)
    with pytest.raises(FlowViolation):
        one.publish(most + 1, 2)


def test_window_is_full_of_messages_without_answer():
    one = Incoming(BOUNDS, FlowCounts(), has_window=False)
    arrivals = [one.publish(packet_id, 1) for packet_id in range(1, BOUNDS.inflight + 1)]
    assert one.is_full
    assert arrivals[0] is not None
    one.confirm(arrivals[0])
    one.answers()
    assert not one.is_full


# -- saved sessions


def test_held_ids_are_saved_unless_their_messages_are_unconfirmed():
    one = incoming()
    accept(one, 1, 2, content=7)
    one.detach()
    accept(one, 2, 2, content=8)
    new(one, 3, 2, content=9)
    assert one.save() == ((1, 7), (2, 8))


def restored(after_crash: bool) -> Incoming:
    return Incoming.restore(FlowState(received=((1, 0), (2, 0))), BOUNDS, FlowCounts(), after_crash)


@pytest.mark.parametrize("dup", [False, True])
def test_a_restored_session_holds_its_ids(dup):
    assert restored(after_crash=False).publish(1, 2, dup) is None


def test_after_a_crash_a_held_id_without_dup_is_new():
    one = restored(after_crash=True)
    accept(one, 1, 2)
    assert one.publish(1, 2) is None


def test_after_a_crash_a_held_id_with_dup_is_a_repetition():
    one = restored(after_crash=True)
    assert one.publish(1, 2, True) is None
    assert one.answers() == [(1, 2, 0)]
    assert one.publish(1, 2) is None


def test_after_a_crash_a_held_id_with_dup_and_another_content_is_new():
    accept(restored(after_crash=True), 1, 2, dup=True, content=7)


def test_an_id_that_was_released_after_the_crash_is_held_as_usual():
    one = restored(after_crash=True)
    one.pubrel((1,))
    accept(one, 1, 2)
    one.detach()
    assert one.publish(1, 2) is None


# -- memory


def test_an_idle_session_is_small():
    one = incoming(FlowBounds(inflight=100, queue=1000, queue_size=100_000))
    for _ in range(3):
        for packet_id in range(100):
            accept(one, packet_id, 2)
        one.pubrel(tuple(range(100)))
    own = [getattr(one, name) for name in one.__slots__ if name not in ("_bounds", "_counts")]
    assert sum(map(sys.getsizeof, (one, *own))) < 512
