"""Messages to clients: packet ids, the window, waiting messages, acknowledgements, and what is sent again."""

import sys
from collections.abc import Sequence

import msgspec
import pytest

from push1st.protocols.mqtt.flow import RELEASE, FlowBounds, FlowCounts, FlowState, FlowViolation, Sent
from push1st.protocols.mqtt.outgoing import BLOCK_IDS, Outgoing
from push1st.protocols.mqtt.packets import MAX_PACKET_ID, ReasonCode
from tests.support.mqtt_flow import BOUNDS, NOW, Note


def notes(texts: str, qos: int = 1, expires: int = 0, size: int = 10) -> list[Note]:
    return [Note(text, qos, size, expires) for text in texts]


def line(sent: Sequence[Sent[Note]]) -> str:
    """Returns sent packets as text: `1a`, `1a+` with DUP, `1!` for a PUBREL."""
    parts = []
    for packet_id, item, dup in sent:
        text = "!" if item is RELEASE else item.text  # type: ignore[union-attr]  # all other items are notes
        parts.append(f"{packet_id}{text}{'+' * dup}")
    return " ".join(parts)


def outgoing(receive_maximum: int = 100, bounds: FlowBounds = BOUNDS) -> Outgoing[Note]:
    one: Outgoing[Note] = Outgoing(bounds, FlowCounts())
    assert one.attach(receive_maximum, NOW) == []
    return one


# -- packet ids


def test_packet_ids_count_up_from_one():
    one = outgoing()
    assert line(one.send(notes("ab"), NOW)) == "1a 2b"
    one.puback([1, 2])
    assert line(one.send(notes("c"), NOW)) == "3c"


def test_packet_ids_begin_again_after_the_last_one_of_their_block():
    one: Outgoing[Note] = Outgoing.restore(FlowState(next_id=BLOCK_IDS), BOUNDS, FlowCounts(), after_crash=False)
    one.attach(100, NOW)
    assert line(one.send(notes("ab"), NOW)) == f"{BLOCK_IDS}a 1b"


def test_a_packet_id_in_use_is_skipped():
    state = FlowState(next_id=BLOCK_IDS, inflight=((1, Note("a")),))
    one: Outgoing[Note] = Outgoing.restore(state, BOUNDS, FlowCounts(), after_crash=False)
    one.attach(100, NOW)
    assert line(one.send(notes("bc"), NOW)) == f"{BLOCK_IDS}b 2c"


@pytest.mark.parametrize("inflight", [1, 20, 124, 126, 5_000, 30_000, 40_000, MAX_PACKET_ID])
@pytest.mark.parametrize("next_id", [1, BLOCK_IDS, BLOCK_IDS + 1, MAX_PACKET_ID - 1, MAX_PACKET_ID])
@pytest.mark.parametrize("after_crash", [False, True])
def test_a_block_has_enough_packet_ids_for_the_window(inflight: int, next_id: int, after_crash: bool):
    bounds = FlowBounds(inflight=inflight, queue=10, queue_size=100)
    one: Outgoing[Note] = Outgoing.restore(FlowState(next_id=next_id), bounds, FlowCounts(), after_crash)
    one.attach(MAX_PACKET_ID, NOW)
    ids = [packet_id for packet_id, _, _ in one.send([Note("a")] * (inflight + 1), NOW)]
    assert len({*ids}) == inflight
    assert 1 <= min(ids) <= max(ids) <= MAX_PACKET_ID


def test_a_waiting_message_skips_a_packet_id_in_use():
    state = FlowState(next_id=1, inflight=((1, Note("a")),), waiting=(Note("b"),))
    one: Outgoing[Note] = Outgoing.restore(state, BOUNDS, FlowCounts(), after_crash=False)
    assert line(one.attach(100, NOW)) == "1a+ 2b"


def test_packet_ids_continue_on_the_next_connection():
    one = outgoing()
    one.send(notes("a"), NOW)
    one.puback([1])
    one.detach()
    one.attach(100, NOW)
    assert line(one.send(notes("b"), NOW)) == "2b"


# -- the window


def test_messages_beyond_the_window_wait():
    one = outgoing()
    assert line(one.send(notes("abcde"), NOW)) == "1a 2b 3c"
    assert (one.inflight, one.waiting) == (3, 2)


def test_a_receive_maximum_below_the_bound_of_the_server_is_obeyed():
    one = outgoing(receive_maximum=2)
    assert line(one.send(notes("abc"), NOW)) == "1a 2b"


def test_qos_1_and_2_share_the_window():
    one = outgoing()
    assert line(one.send([*notes("ab", qos=2), *notes("cd")], NOW)) == "1a 2b 3c"


def test_qos_0_passes_a_full_window():
    one = outgoing()
    one.send(notes("abcd"), NOW)
    assert line(one.send(notes("ef", qos=0), NOW)) == "0e 0f"


def test_waiting_messages_are_sent_in_order_when_the_window_has_room():
    one = outgoing()
    one.send(notes("abcdef"), NOW)
    one.puback([1, 2])
    assert line(one.fill(NOW)) == "4d 5e"
    one.puback([3, 4, 5])
    assert line(one.fill(NOW)) == "6f"


def test_new_messages_follow_waiting_messages():
    one = outgoing()
    one.send(notes("abcde"), NOW)
    one.puback([1])
    assert line(one.send(notes("f"), NOW)) == "4d"
    one.puback([2, 3])
    assert line(one.send(notes("g"), NOW)) == "5e 6f"


def test_a_message_counts_in_the_window_until_pubcomp():
    one = outgoing()
    one.send(notes("abcd", qos=2), NOW)
    one.pubrec((1,))
    assert one.fill(NOW) == []
    one.pubcomp([1])
    assert line(one.fill(NOW)) == "4d"


# -- the queue


def test_a_full_queue_drops_its_oldest_message():
    one = outgoing()
    one.send(notes("abcdefgh"), NOW)
    assert (one.waiting, one._counts.queue_full) == (4, 1)
    one.puback([1])
    assert line(one.fill(NOW)) == "4e"


def test_a_queue_with_too_many_bytes_drops_its_oldest_messages():
    one = outgoing()
    one.send(notes("abcdef"), NOW)
    one.send(notes("g", size=85), NOW)
    assert (one.waiting, one._counts.queue_full) == (2, 2)
    one.puback([1, 2, 3])
    assert line(one.fill(NOW)) == "4f 5g"


def test_the_bytes_of_sent_messages_do_not_count():
    one = outgoing()
    one.send(notes("abc"), NOW)
    for _ in range(20):
        one.send(notes("d", size=60), NOW)
        one.puback([one._next_id - 3])
        one.fill(NOW)
    assert one._counts.queue_full == 0


def test_a_message_larger_than_the_queue_is_dropped():
    one = outgoing()
    one.send(notes("abc"), NOW)
    one.send(notes("d", size=101), NOW)
    assert (one.waiting, one._counts.queue_full) == (0, 1)


def test_an_expired_message_that_leaves_a_full_queue_counts_as_expired():
    one = outgoing()
    one.send([*notes("abc"), *notes("d", expires=NOW + 1), *notes("efg")], NOW)
    one.send(notes("h"), NOW + 1)
    assert (one._counts.expired, one._counts.queue_full) == (1, 0)


# -- expiry


def test_a_waiting_message_expires():
    one = outgoing()
    one.send([*notes("abc"), *notes("d", expires=NOW + 5), *notes("e", expires=NOW + 6)], NOW)
    one.puback([1, 2])
    assert line(one.fill(NOW + 5)) == "4e"
    assert one._counts.expired == 1


def test_a_message_that_expires_at_once_is_sent_if_the_window_has_room():
    assert line(outgoing().send(notes("a", expires=NOW), NOW)) == "1a"


def test_a_message_that_was_sent_does_not_expire():
    one = outgoing()
    one.send(notes("a", expires=NOW + 5), NOW)
    one.detach()
    assert line(one.attach(100, NOW + 5)) == "1a+"
    assert one._counts.expired == 0


# -- acknowledgements


def test_puback_of_unknown_ids_is_ignored():
    one = outgoing()
    one.send(notes("a"), NOW)
    one.puback([7, 1, 1])
    assert one.inflight == 0


@pytest.mark.parametrize("code", [ReasonCode.SUCCESS, ReasonCode.NO_MATCHING_SUBSCRIBERS])
def test_pubrec_is_answered_with_pubrel(code):
    one = outgoing()
    one.send(notes("ab", qos=2), NOW)
    assert one.pubrec((1, 2), code) == (1, 2)


def test_pubrec_again_is_answered_with_pubrel_again():
    one = outgoing()
    one.send(notes("a", qos=2), NOW)
    one.pubrec((1,))
    assert one.pubrec((1,)) == (1,)
    one.pubcomp([1])
    assert one.inflight == 0


def test_pubrec_of_an_unknown_id_is_answered_with_pubrel():
    assert outgoing().pubrec((9,)) == (9,)


def test_pubrec_with_an_error_ends_the_message():
    one = outgoing()
    one.send(notes("abcd", qos=2), NOW)
    assert one.pubrec((1,), ReasonCode.QUOTA_EXCEEDED) == ()
    assert line(one.fill(NOW)) == "4d"


def test_pubrec_with_an_error_after_pubrel_ends_the_message():
    one = outgoing()
    one.send(notes("a", qos=2), NOW)
    one.pubrec((1,))
    assert one.pubrec((1,), ReasonCode.UNSPECIFIED_ERROR) == ()
    assert one.inflight == 0


def test_pubrec_of_an_unknown_id_with_an_error_is_ignored():
    assert outgoing().pubrec((9,), ReasonCode.UNSPECIFIED_ERROR) == ()


def test_pubcomp_of_an_unknown_id_is_ignored():
    outgoing().pubcomp([9])


@pytest.mark.parametrize("after", [(), ("pubrec",)])
def test_puback_for_qos_2_is_a_violation(after):
    one = outgoing()
    one.send(notes("a", qos=2), NOW)
    for _ in after:
        one.pubrec((1,))
    with pytest.raises(FlowViolation, match="PUBACK for packet 1, which has QoS 2") as raised:
        one.puback([1])
    assert raised.value.reason == ReasonCode.PROTOCOL_ERROR
    assert one.inflight == 1


@pytest.mark.parametrize("code", [ReasonCode.SUCCESS, ReasonCode.UNSPECIFIED_ERROR])
def test_pubrec_for_qos_1_is_a_violation(code):
    one = outgoing()
    one.send(notes("a"), NOW)
    with pytest.raises(FlowViolation, match="PUBREC for packet 1, which has QoS 1"):
        one.pubrec((1,), code)
    assert one.inflight == 1


@pytest.mark.parametrize("qos", [1, 2])
def test_pubcomp_before_pubrel_is_a_violation(qos):
    one = outgoing()
    one.send(notes("a", qos=qos), NOW)
    with pytest.raises(FlowViolation, match="PUBCOMP for packet 1, which had no PUBREL"):
        one.pubcomp([1])
    assert one.inflight == 1


def test_acknowledgements_before_a_violation_hold():
    one = outgoing()
    one.send([*notes("a"), *notes("b", qos=2)], NOW)
    with pytest.raises(FlowViolation):
        one.puback([1, 2])
    one.detach()
    assert line(one.attach(100, NOW)) == "2b+"


# -- the next connection


def test_unacknowledged_packets_are_sent_again_before_new_messages():
    one = outgoing()
    one.send([*notes("a"), *notes("b", qos=2), *notes("cde")], NOW)
    one.detach()
    assert one.send(notes("f"), NOW) == []
    assert line(one.attach(100, NOW)) == "1a+ 2b+ 3c+"
    assert one._counts.resent == 3
    one.puback([1, 3])
    assert line(one.fill(NOW)) == "4d 5e"


def test_pubrel_is_sent_again_instead_of_the_message():
    one = outgoing()
    one.send(notes("abc", qos=2), NOW)
    one.pubrec((1,))
    one.detach()
    assert line(one.attach(100, NOW)) == "2b+ 3c+ 1!"


def test_pubrels_are_sent_again_in_the_order_of_their_pubrecs():
    one = outgoing()
    one.send(notes("ab", qos=2), NOW)
    one.pubrec((2,))
    one.pubrec((1,))
    one.detach()
    assert line(one.attach(100, NOW)) == "2! 1!"


def test_a_repeated_pubrec_does_not_change_the_order_of_pubrels():
    one = outgoing()
    one.send(notes("ab", qos=2), NOW)
    one.pubrec((1, 2))
    one.pubrec((1,))
    one.detach()
    assert line(one.attach(100, NOW)) == "1! 2!"


def test_nothing_is_sent_twice_on_one_connection():
    one = outgoing()
    one.send(notes("ab"), NOW)
    assert one.fill(NOW) == []
    one.detach()
    one.attach(100, NOW)
    assert one.fill(NOW) == []


def test_messages_wait_without_a_connection():
    one: Outgoing[Note] = Outgoing(BOUNDS, FlowCounts())
    assert one.send(notes("ab"), NOW) == []
    assert line(one.attach(100, NOW)) == "1a 2b"


def test_qos_0_is_not_kept_without_a_connection():
    one: Outgoing[Note] = Outgoing(BOUNDS, FlowCounts())
    assert one.send(notes("a", qos=0), NOW) == []
    assert one.attach(100, NOW) == []


def test_a_smaller_receive_maximum_on_the_next_connection_is_obeyed():
    one = outgoing()
    one.send([*notes("a", qos=2), *notes("bcd")], NOW)
    one.detach()
    assert line(one.attach(1, NOW)) == "1a+"
    assert one.fill(NOW) == []
    one.pubrec((1,))
    assert one.fill(NOW) == []
    one.pubcomp([1])
    assert line(one.fill(NOW)) == "2b+"
    one.puback([2])
    assert line(one.send(notes("e"), NOW)) == "3c+"
    one.puback([3])
    assert line(one.fill(NOW)) == "4d"
    assert one._counts.resent == 3


def test_pubrels_are_sent_again_even_if_they_fill_the_window():
    one = outgoing()
    one.send(notes("abc", qos=2), NOW)
    one.pubrec((1, 2))
    one.detach()
    assert line(one.attach(1, NOW)) == "1! 2!"
    one.pubcomp([1])
    assert one.fill(NOW) == []
    one.pubcomp([2])
    assert line(one.fill(NOW)) == "3c+"


def test_a_message_that_the_client_acknowledges_late_is_not_sent_again():
    one = outgoing()
    one.send([*notes("ab"), *notes("c", qos=2)], NOW)
    one.detach()
    one.attach(1, NOW)
    one.puback([2])
    assert one.pubrec((3,)) == (3,)
    one.puback([1])
    assert one.fill(NOW) == []
    one.pubcomp([3])
    assert one.inflight == 0


# -- messages that are not sent


def test_messages_of_an_ended_subscription_are_discarded_unless_they_are_in_flight():
    one = outgoing()
    one.send(notes("abc"), NOW)
    one.send([*notes("a", size=40), *notes("d", size=50), *notes("a")], NOW)
    one.discard(lambda note: note.text == "a")
    one.send(notes("efg"), NOW)
    assert one._counts.queue_full == 0
    one.puback([1, 2, 3])
    assert line(one.fill(NOW)) == "4d 5e 6f"


def test_discarding_all_messages_leaves_an_empty_queue():
    one = outgoing()
    one.discard(lambda _: True)
    one.send(notes("abcd"), NOW)
    one.discard(lambda _: True)
    one.puback([1])
    assert (one.waiting, one.fill(NOW)) == (0, [])


def test_a_message_that_is_too_large_counts_as_delivered():
    one = outgoing()
    one.send([*notes("ab", qos=2), *notes("cd")], NOW)
    one.drop([1, 9])
    assert line(one.fill(NOW)) == "4d"
    one.detach()
    assert line(one.attach(100, NOW)) == "2b+ 3c+ 4d+"


# -- saved sessions


def saved() -> FlowState[Note]:
    one = outgoing()
    one.send([*notes("ab", qos=2), *notes("cde")], NOW)
    one.pubrec((1,))
    return one.save(((8, 80), (9, 90)))


def test_the_saved_state_contains_all_messages():
    assert saved() == FlowState(
        next_id=4,
        inflight=((2, Note("b", 2)), (3, Note("c")), (1, None)),
        waiting=(Note("d"), Note("e")),
        received=((8, 80), (9, 90)),
    )


def test_the_saved_state_can_be_stored():
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(saved()), type=FlowState[Note]) == saved()


def test_a_restored_session_continues():
    one: Outgoing[Note] = Outgoing.restore(saved(), BOUNDS, FlowCounts(), after_crash=False)
    assert line(one.attach(100, NOW)) == "2b+ 3c+ 1!"
    one.pubcomp([1])
    one.puback([3])
    assert line(one.fill(NOW)) == "4d 5e"


def test_a_session_that_is_restored_with_a_smaller_queue_drops_its_oldest_messages():
    counts = FlowCounts()
    one: Outgoing[Note] = Outgoing.restore(saved(), FlowBounds(inflight=2, queue=1, queue_size=100), counts, after_crash=False)
    assert counts.queue_full == 1
    assert line(one.attach(100, NOW)) == "2b+ 1!"
    one.pubcomp([1])
    assert line(one.fill(NOW)) == "3c+"
    one.puback([3])
    assert line(one.fill(NOW)) == "4e"


def test_after_a_crash_new_messages_get_ids_that_the_client_has_not_seen():
    one: Outgoing[Note] = Outgoing.restore(saved(), BOUNDS, FlowCounts(), after_crash=True)
    assert line(one.attach(100, NOW)) == "2b+ 3c+ 1!"
    one.puback([3])
    assert line(one.fill(NOW)) == f"{BLOCK_IDS + 1}d"


def test_ids_that_the_client_holds_since_an_earlier_crash_are_not_used_again():
    """Nothing releases these ids. The client discards a later message with such an id as a repetition."""
    held: set[int] = set()
    state: FlowState[Note] = FlowState()
    for crash in range(12):
        one: Outgoing[Note] = Outgoing.restore(state, BOUNDS, FlowCounts(), after_crash=crash > 0)
        one.attach(100, NOW)
        for number in range(4_660):
            if number == 4_500:
                state = one.save()
            ((packet_id, _, _),) = one.send(notes("a", 2), NOW)
            assert packet_id not in held, (crash, number)
            if number < 4_657:
                one.pubrec([packet_id])
                one.pubcomp([packet_id])
            else:
                held.add(packet_id)
                one._inflight.clear()  # the client has sent PUBREC, and the worker dies before PUBREL
    assert len(held) == 36


def test_packet_ids_of_all_blocks_are_in_their_range():
    state: FlowState[Note] = FlowState()
    firsts = []
    for _ in range(MAX_PACKET_ID // BLOCK_IDS):
        one: Outgoing[Note] = Outgoing.restore(state, BOUNDS, FlowCounts(), after_crash=True)
        state = one.save()
        firsts.append(state.next_id)
    assert len({*firsts}) == len(firsts)
    assert max(firsts) + BLOCK_IDS <= MAX_PACKET_ID
    assert firsts[-1] == 1


# -- memory


def test_an_idle_session_is_small():
    one = outgoing(bounds=FlowBounds(inflight=100, queue=1000, queue_size=100_000))
    for _ in range(3):
        one.send(notes("a" * 300), NOW)
        while one.inflight:
            one.puback([*one._inflight])
            one.fill(NOW)
    own = [getattr(one, name) for name in one.__slots__ if name not in ("_bounds", "_counts")]
    assert sum(map(sys.getsizeof, (one, *own))) < 512


# -- messages for another client


def test_withdrawn_messages_are_those_that_have_no_receipt():
    one = outgoing()
    one.send([*notes("ab"), *notes("c", qos=2), *notes("def"), *notes("g", qos=2)], NOW)
    withdrawn = one.withdraw(lambda note: note.text != "e", with_sent=True)
    assert "".join(note.text for note in withdrawn) == "abdfg"
    assert (one.inflight, one.waiting) == (1, 1)
    assert line(one.fill(NOW)) == "4e"


def test_sent_messages_may_stay():
    one = outgoing()
    one.send([*notes("abcd"), *notes("e", size=50)], NOW)
    assert [note.text for note in one.withdraw(lambda _: True, with_sent=False)] == ["d", "e"]
    assert (one.inflight, one.waiting, one.is_behind) == (3, 0, False)
    one.send(notes("fgh"), NOW)
    assert one._counts.queue_full == 0


def test_release_is_not_withdrawn():
    one = outgoing()
    one.send(notes("a", qos=2), NOW)
    one.pubrec([1])
    assert one.withdraw(lambda _: True, with_sent=True) == []
    one.pubcomp([1])
    assert one.inflight == 0
