"""The checker of recoveries (tests/support/recovery.py) accepts what keeps the promise, and fails on each kind of fault."""

import re
from typing import Any

import pytest

from tests.support.recovery import Answer, Entry, Found, Joined, Log, Lost, Received, RecoveryError, Sent, check

C = "c"


def sent(count: int, **fields: Any) -> list[Sent]:
    """Returns publishes number 1 to `count`; number n is published between the seconds n and n + 0.5."""
    return [Sent(C, seq, seq, seq + 0.5)._replace(**fields) for seq in range(1, count + 1)]


def log(*entries: Entry, name: str = "client", **options: Any) -> Log:
    made = Log(name, [C], **options)
    made.entries += entries
    return made


def events(first: int, last: int, at: float = 0) -> list[Entry]:
    """Returns the events number `first` to `last`: live, 0.5 s after the publish; or all at the time `at`."""
    return [Received(at or seq + 0.5, C, seq) for seq in range(first, last + 1)]


BEGIN: list[Entry] = [Joined(0, C), Answer(0, C, "unknown")]


def again(at: float, replayed: int, repeats: bool = False) -> list[Entry]:
    """Returns a new subscription that recovers."""
    return [Joined(at, C), Answer(at, C, None, replayed, repeats)]


def fails(what: str, entries: list[Entry], published: list[Sent] | None = None, **options: Any) -> None:
    options = {"recovered": 0, **options}
    with pytest.raises(RecoveryError, match=re.escape(what)):
        check(log(*entries), sent(9) if published is None else published, **options)


def test_connection_without_a_cut_is_accepted() -> None:
    assert check(log(*BEGIN, *events(1, 9)), sent(9), recovered=0) == Found(9, 0)


def test_events_before_the_first_subscription_are_not_required() -> None:
    entries: list[Entry] = [Joined(3.2, C), Answer(3.2, C, "unknown"), *events(4, 9)]
    assert check(log(*entries), sent(9), recovered=0) == Found(6, 0)


def test_event_after_the_first_subscription_is_required() -> None:
    fails("is the first since 3.2; [4] are missing", [Joined(3.2, C), Answer(3.2, C, "unknown"), *events(5, 9)])


def test_recovery_without_and_with_repeats_is_accepted() -> None:
    cut = [*BEGIN, *events(1, 4), Lost(5)]
    assert check(log(*cut, *again(7.2, 3), *events(5, 7, 7.2), *events(8, 9)), sent(9), recovered=1) == Found(9, 0)
    entries = [*cut, *again(7.2, 5, repeats=True), *events(3, 7, 7.2), *events(8, 9)]
    assert check(log(*entries), sent(9), recovered=1, repeat_seconds=2) == Found(9, 2)


def test_hole_in_the_live_events_fails() -> None:
    fails("event 6 after 4: 5 is missing", [*BEGIN, *events(1, 4), *events(6, 9)])


def test_hole_before_a_replay_fails() -> None:
    fails("a replay from event 6", [*BEGIN, *events(1, 4), Lost(5), *again(7.2, 2), *events(6, 9, 8)], recovered=1)


def test_hole_within_a_replay_fails() -> None:
    entries = [*BEGIN, *events(1, 4), Lost(5), *again(7.2, 2), *events(5, 5, 8), *events(7, 9, 8)]
    fails("event 7 after 5", entries, recovered=1)


def test_hole_between_a_replay_and_the_live_events_fails() -> None:
    entries = [*BEGIN, *events(1, 4), Lost(5), *again(7.2, 2), *events(5, 6, 7.2), *events(8, 9)]
    fails("event 8 after 6", entries, recovered=1)


def test_hole_after_an_empty_replay_fails() -> None:
    fails("event 6 after 4", [*BEGIN, *events(1, 4), Lost(5), *again(7.2, 0), *events(6, 9, 8)], recovered=1)


def test_hole_after_an_idle_connection_fails() -> None:
    entries = [*BEGIN, Lost(0.5), *again(2.2, 0), *events(3, 9)]
    fails("event 3 is the first since 0; [1, 2] are missing", entries, recovered=1)


def test_events_missing_at_the_end_fail() -> None:
    fails("2 events at the end are missing, from 8 on", [*BEGIN, *events(1, 7)])
    fails("9 events at the end are missing, from 1 on", BEGIN)


def test_unconfirmed_publish_may_be_missing_or_not() -> None:
    published = sent(9)
    published[4] = published[4]._replace(confirmed=None)
    assert check(log(*BEGIN, *events(1, 9)), published, recovered=0) == Found(9, 0)
    assert check(log(*BEGIN, *events(1, 4), *events(6, 9)), published, recovered=0) == Found(8, 0)


def test_disorder_fails() -> None:
    fails("event 5 after 3", [*BEGIN, *events(1, 3), *events(5, 5), *events(4, 4), *events(6, 9)])
    cut = [*BEGIN, *events(1, 4), Lost(5)]
    entries = [*cut, *again(7, 4, True), *events(4, 5, 7), *events(4, 6, 7), *events(7, 9)]
    fails("event 4 again, or out of order", entries, recovered=1, repeat_seconds=9)


def test_live_repeat_fails() -> None:
    fails("event 4 again", [*BEGIN, *events(1, 4), *events(4, 9)])


def test_repeat_after_the_replay_fails() -> None:
    entries = [*BEGIN, *events(1, 4), Lost(5), *again(7, 1, True), *events(5, 5, 7), *events(4, 9, 8)]
    fails("event 4 again", entries, recovered=1, repeat_seconds=9)


def test_repeat_outside_of_its_bound_fails() -> None:
    entries = [*BEGIN, *events(1, 8), Lost(8.6), *again(9.6, 9, True), *events(1, 9, 9.6)]
    fails("event 1 again, after 7.10 connected seconds", entries, recovered=1, repeat_seconds=2)
    assert check(log(*entries), sent(9), recovered=1, repeat_seconds=6) == Found(9, 8)


def test_time_without_a_connection_does_not_count_for_the_bound() -> None:
    entries = [*BEGIN, *events(1, 2), Lost(100), *again(101, 9, True), *events(1, 9, 101)]
    fails("event 1 again, after 98.50", entries, recovered=1, repeat_seconds=2)
    assert check(log(*entries), sent(9), recovered=1, repeat_seconds=2, cuts=[2.6]) == Found(9, 2)


def test_repeat_without_a_notification_fails() -> None:
    entries = [*BEGIN, *events(1, 4), Lost(5), *again(7, 6), *events(4, 9, 7)]
    fails("event 4 again, after repeats: false", entries, recovered=1, repeat_seconds=9)


def test_replay_that_is_shorter_or_longer_than_announced_fails() -> None:
    entries = [*BEGIN, *events(1, 4), Lost(5), *again(7, 6), *events(5, 9, 7)]
    fails("1 replayed events did not come", entries, recovered=1)
    entries = [*BEGIN, *events(1, 4), Lost(5), *again(7, 2, True), *events(2, 3, 7), *events(4, 9, 7)]
    fails("the replay ends with event 3", entries, recovered=1, repeat_seconds=9)


def test_replay_that_a_cut_ends_is_accepted() -> None:
    cut = [*BEGIN, *events(1, 4), Lost(5), *again(7, 3), *events(5, 5, 7), Lost(7.1)]
    entries = [*cut, *again(8, 4, True), *events(5, 8, 8), *events(9, 9)]
    assert check(log(*entries), sent(9), recovered=2, repeat_seconds=1) == Found(9, 1)


def test_own_message_that_was_excluded_fails() -> None:
    published = sent(9)
    published[4] = published[4]._replace(exclude="client")
    entries = [*BEGIN, *events(1, 4), Lost(5), *again(7.2, 3), *events(5, 9, 8)]
    fails("event 5, from which the client was excluded", entries, published, recovered=1)
    found = check(log(*entries, receives_own=True), published, recovered=1)
    assert found == Found(9, 0)
    entries = [*BEGIN, *events(1, 4), Lost(5), *again(7.2, 2), *events(6, 9, 8)]
    for receives_own in (False, True):
        assert check(log(*entries, receives_own=receives_own), published, recovered=1) == Found(8, 0)
    with pytest.raises(RecoveryError, match="event 5, from which the client was excluded"):
        check(log(*BEGIN, *events(1, 9), receives_own=True), published, recovered=0)


def test_client_that_never_joins_fails() -> None:
    fails("the client never joined", [])
    with pytest.raises(RecoveryError, match="client on d: the client never joined"):
        check(Log("client", ["d"]), sent(9), recovered=0)


def test_subscription_without_an_answer_fails() -> None:
    fails("no answer to the last subscription", [*BEGIN, *events(1, 9), Lost(10), Joined(11, C)])
    fails("between a subscription and its answer", [Joined(0, C), *events(1, 9)])
    fails("a second subscription", [Joined(0, C), Joined(1, C)])


def test_needless_recovered_false_fails() -> None:
    entries = [*BEGIN, *events(1, 4), Lost(5), Joined(7, C), Answer(7, C, "trimmed"), *events(7, 9)]
    fails("0 times recovered: true, and not 1", entries, recovered=1)
    fails("recovered: false for the reasons {'unknown': 1, 'trimmed': 1}", entries)
    assert check(log(*entries), sent(9), recovered=0, reasons={"unknown": 1, "trimmed": 1}) == Found(7, 0)


def test_needed_recovered_false_permits_a_hole_at_its_place_only() -> None:
    entries = [*BEGIN, *events(1, 4), Lost(5), Joined(7, C), Answer(7, C, "trimmed"), *events(9, 9)]
    fails("event 9 is the first since 7; [8] are missing", entries, reasons={"unknown": 1, "trimmed": 1})


def test_notification_of_live_subscribers_permits_a_hole_at_its_place() -> None:
    entries = [*BEGIN, *events(1, 4), Answer(6.1, C, "state-lost"), *events(7, 9)]
    assert check(log(*entries), sent(9), recovered=0, reasons={"unknown": 1, "state-lost": 1}) == Found(7, 0)


def test_wrong_number_of_recoveries_fails() -> None:
    entries = [*BEGIN, *events(1, 4), Lost(5), *again(7, 5), *events(5, 9, 7)]
    for recovered in (0, 2, range(2, 4)):
        fails("1 times recovered: true", entries, recovered=recovered)
    assert check(log(*entries), sent(9), recovered=range(1, 3)) == Found(9, 0)


def test_recovery_of_a_first_subscription_fails_without_a_position() -> None:
    entries = [*again(2.2, 0), *events(3, 9)]
    fails("recovered: true for a first subscription", entries, recovered=1, reasons={})
    assert check(log(*entries, has_position=True), sent(9), recovered=1, reasons={}) == Found(7, 0)


def test_event_of_no_publisher_fails() -> None:
    fails("event 10, which was not published", [*BEGIN, *events(1, 10)])


def test_event_without_a_connection_fails() -> None:
    fails("before the first subscription", events(1, 9))
    fails("event 5 without a connection", [*BEGIN, *events(1, 4), Lost(5), *events(5, 9)])


def test_event_that_changes_its_position_fails() -> None:
    entries = [*BEGIN, Received(1.5, C, 1, "e:1"), Lost(2), *again(3, 1, True), Received(3, C, 1, "e:2")]
    fails("event 1 at e:2, and before at e:1", entries, sent(1), recovered=1, repeat_seconds=9)


def test_event_that_a_publisher_retried_may_come_twice_in_a_row() -> None:
    published = sent(9, attempts=2)
    assert check(log(*BEGIN, *events(1, 4), *events(4, 9)), published, recovered=0) == Found(9, 1)
    fails("event 4 after 2", [*BEGIN, *events(1, 2), *events(4, 4), *events(3, 9)], published)


def test_cached_event_may_repeat_after_recovered_false_only() -> None:
    cut = [*BEGIN, *events(1, 4), Lost(4.7)]
    entries = [*cut, Joined(4.9, C), Answer(4.9, C, "trimmed"), *events(4, 4, 4.9), *events(5, 9)]
    reasons = {"unknown": 1, "trimmed": 1}
    assert check(log(*entries), sent(9), recovered=0, reasons=reasons, cached=True) == Found(9, 1)
    fails("event 4 again, outside of a replay", entries, reasons=reasons)
    fails("event 4 again", [*cut, *again(4.9, 0), *events(4, 4, 4.9), *events(5, 9)], recovered=1, cached=True)


def test_optional_event_may_be_missing_in_a_replay() -> None:
    published = sent(9)
    published[5] = published[5]._replace(is_optional=True)
    entries = [*BEGIN, *events(1, 4), Lost(5), *again(7.2, 2), *events(5, 5, 7.2), *events(7, 7, 7.2), *events(8, 9)]
    assert check(log(*entries), published, recovered=1) == Found(8, 0)
