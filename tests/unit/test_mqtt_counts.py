"""The counter of `tests/support/mqtt_counts.py` finds messages that are missing, doubled, reordered or unknown."""

import pytest

from tests.support.mqtt_counts import Counts, matches, verify
from tests.support.mqtt_devices import Arrival, Device, Sent


def publisher(count: int, topic: str = "a", acknowledged: bool = True) -> Device:
    """Returns a device that has published messages at the times 1, 2, and so on."""
    device = Device([], "p")
    for number in range(1, count + 1):
        sent = Sent("p", number, topic, 1)
        sent.began, sent.attempts = number, 1
        sent.acknowledged = number + 0.5 if acknowledged else None
        device.sent.append(sent)
    return device


def receiver(*arrivals: tuple[float, int], filter: str = "a", ready_at: float = 0.5) -> Device:
    """Returns a device that has received messages. arrivals: the times and the numbers."""
    device = Device([], "r", {filter: 1})
    device.ready_at = ready_at
    device.arrivals += [Arrival(at, "p", number, "a", 1, False, 1) for at, number in arrivals]
    return device


def test_all_messages_in_order_are_accepted() -> None:
    (counts,) = verify([receiver((1, 1), (2, 2))], [publisher(2)], repeat_seconds=0)
    assert repr(counts) == "r: published 2, acknowledged 2, rejected 0, delivered 2, missing 0, doubled 0, reordered 0"


def test_missing_message_is_found() -> None:
    with pytest.raises(AssertionError, match="missing 1"):
        verify([receiver((1, 1))], [publisher(2)])


def test_message_that_was_not_acknowledged_is_not_missing() -> None:
    verify([receiver((1, 1))], [publisher(2, acknowledged=False)])


def test_message_before_the_subscription_is_not_missing() -> None:
    verify([receiver((2, 2), ready_at=1.5)], [publisher(2)])


def test_member_of_a_group_receives_for_the_others() -> None:
    verify([[receiver((1, 1), filter="$share/g/a"), receiver((2, 2), filter="$share/g/a")]], [publisher(2)], repeat_seconds=0)


def test_message_on_another_topic_is_unknown() -> None:
    with pytest.raises(AssertionError, match=r"\('p', 1\)"):
        verify([receiver((1, 1))], [publisher(1, "b")])


def test_reordered_message_is_found() -> None:
    with pytest.raises(AssertionError, match="reordered 1"):
        verify([receiver((1, 2), (2, 1))], [publisher(2)])


def test_repeat_of_earlier_messages_is_not_reordered() -> None:
    assert Counts([receiver((1, 1), (2, 2), (3, 1), (4, 2))], [publisher(2)]).reordered == []


def test_doubled_message_needs_a_fault_after_its_first_arrival() -> None:
    verify([receiver((1, 1), (3, 1))], [publisher(1)], repeat_seconds=0.5, faults=[1.4])
    for fault in (1.6, 3.1):
        with pytest.raises(AssertionError, match="doubled 1"):
            verify([receiver((1, 1), (3, 1))], [publisher(1)], repeat_seconds=0.5, faults=[fault])


def test_message_that_was_published_twice_may_arrive_twice_and_not_three_times() -> None:
    sender = publisher(1)
    sender.sent[0].attempts = 2
    verify([receiver((1, 1), (2, 1))], [sender], repeat_seconds=0)
    with pytest.raises(AssertionError, match="doubled 2"):
        verify([receiver((1, 1), (2, 1), (3, 1))], [sender], repeat_seconds=0)


@pytest.mark.parametrize(
    ("filter", "topic", "expected"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a", False),
        ("a/+", "a/b", True),
        ("a/+", "a/b/c", False),
        ("#", "a/b", True),
        ("a/#", "a", True),
        ("a/#", "b", False),
        ("a/#", "a/b/c", True),
    ],
)
def test_filters_match_topics(filter: str, topic: str, expected: bool) -> None:
    assert matches(filter, topic) == expected
