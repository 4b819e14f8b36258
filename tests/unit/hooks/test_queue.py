"""The queue of an endpoint: bounds, order, batches, retries. Time is an argument."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from push1st.hooks.queue import OVERHEAD, RETRIES_SECONDS, THROTTLE_SECONDS, Delivery, Queue, wait


def queue(concurrency: int = 10, batch: int = 1, events: int = 1000, bytes: int = 1 << 20) -> Queue:
    return Queue(concurrency, batch, events, bytes)


def fill(one: Queue, *events: str) -> None:
    """`a1` is an event of channel a."""
    for event in events:
        assert one.put(event[0], event.encode())


def taken(one: Queue, now: float = 0) -> list[str]:
    """Returns the deliveries that may be sent now, each with its events joined."""
    found = []
    while (delivery := one.next(now)) is not None:
        found.append(b" ".join(delivery.events).decode())
    return found


def first(one: Queue, now: float = 0) -> Delivery:
    delivery = one.next(now)
    assert delivery is not None
    return delivery


def test_channels_are_sent_concurrently_and_each_in_order():
    one = queue()
    fill(one, "a1", "a2", "b1")
    delivery = first(one)
    assert delivery.events == [b"a1"]
    assert taken(one) == ["b1"]
    one.done(delivery)
    assert taken(one) == ["a2"]


def test_concurrent_requests_are_bounded():
    one = queue(concurrency=2)
    fill(one, "a1", "b1", "c1")
    assert taken(one) == ["a1", "b1"]


def test_a_batch_takes_events_of_several_channels_in_order():
    one = queue(batch=4)
    fill(one, "a1", "b1", "a2", "b2", "c1")
    assert taken(one) == ["a1 a2 b1 b2", "c1"]


def test_remaining_events_of_a_channel_wait_for_its_batch():
    one = queue(batch=2)
    fill(one, "a1", "a2", "a3")
    delivery = first(one)
    assert taken(one) == []
    one.done(delivery)
    assert taken(one) == ["a3"]


def test_redriven_events_share_no_batch_with_events_of_another_time():
    one = queue(batch=10)
    for channel, event, time_ms in (("a", b"a1", 0), ("a", b"a2", 7), ("a", b"a3", 7), ("b", b"b1", 0), ("c", b"c1", 7)):
        one.put(channel, event, time_ms=time_ms)
    assert [time_ms for *_, time_ms in one.untried()] == [0, 7, 7, 0, 7]
    found = []
    while one.events:
        delivery = first(one)
        found.append((delivery.time_ms, b" ".join(delivery.events)))
        one.done(delivery)
    assert found == [(0, b"a1"), (0, b"b1"), (7, b"c1 a2 a3")]


def test_large_events_do_not_share_a_body():
    one = queue(batch=10, bytes=1 << 30)
    for channel in "ab":
        one.put(channel, b"x" * 700_000)
    assert len(first(one).events) == 1
    assert len(first(one).events) == 1


def test_retries_follow_after_1_2_4_and_at_most_60_seconds_for_five_minutes():
    one = queue()
    fill(one, "a1")
    delivery, now, times = first(one), 0.0, [0.0]
    while one.failed(delivery, now, 1.0):
        at = one.when()
        assert at is not None
        assert one.next(at - 0.001) is None
        now = at
        times.append(now)
        assert one.next(now) is delivery
    assert times == [0, 1, 3, 7, 15, 31, 63, 123, 183, 243, RETRIES_SECONDS]
    assert (one.events, one.bytes, one.idle) == (0, 0, True)


def test_a_failed_event_holds_back_its_channel_and_no_other():
    one = queue()
    fill(one, "a1", "a2", "b1")
    one.failed(first(one), 0, 1.0)
    assert taken(one, 0.5) == ["b1"]
    assert taken(one, 1) == ["a1"]


def test_abandoned_batch_does_not_block_its_channel():
    one = queue()
    fill(one, "a1", "a2")
    delivery = first(one)
    delivery.first = -400
    assert not one.failed(delivery, 0, 1.0)
    assert taken(one) == ["a2"]


def test_an_endpoint_that_is_down_is_not_knocked_at_by_all_that_waits():
    one = queue(concurrency=2, events=10_000)
    for number in range(100):
        one.put(str(number), b"x")
    tries = 0
    now = 0.0
    while now < 20:
        while (delivery := one.next(now)) is not None:
            tries += 1
            one.failed(delivery, now, 1.0)
        now += 0.25
    assert tries < 20 / THROTTLE_SECONDS * 6


def test_poisoned_events_do_not_stop_the_others():
    """Some deliveries always fail; while they wait, the queue starts others."""
    one = queue(concurrency=2, events=10_000)
    for number in range(4):
        one.put(f"bad{number}", b"bad")
    for number in range(200):
        one.put(f"good{number}", b"good")
    good, now = 0, 0.0
    while now < 30:
        while (delivery := one.next(now)) is not None:
            if delivery.events == [b"bad"]:
                one.failed(delivery, now, 1.0)
            else:
                good += 1
                one.done(delivery)
        now += 0.25
    assert good == 200


def in_outage(one: Queue, now: float) -> float:
    """Fails all attempts from `now` on, until the next retry would wait for some 30 seconds; returns the time."""
    while (retry := one.next_retry) is None or retry - now < 30:
        while (delivery := one.next(now)) is not None:
            assert one.failed(delivery, now, 1.0)
        now += 0.5
    return now


def test_deliveries_that_failed_in_an_outage_are_retried_when_the_endpoint_accepts_one():
    one = queue()
    fill(one, "a1", "b1", "c1")
    now = in_outage(one, 0)
    assert (one.failing, taken(one, now)) == (True, [])
    fill(one, "d1")
    one.done(first(one, now))
    assert (one.failing, one.when()) == (False, 0)
    assert sorted(taken(one, now)) == ["a1", "b1", "c1"]


def test_retries_after_an_outage_stop_when_the_endpoint_fails_again():
    one = queue(concurrency=2)
    for number in range(20):
        one.put(str(number), b"x")
    now = in_outage(one, 0)
    waiting = one.retrying
    one.retries.try_now(now, one.failing)
    one.done(first(one, now))
    early = first(one, now), first(one, now)
    for delivery in early:
        one.failed(delivery, now, 1.0)
    assert one.retrying == waiting - 1
    assert one.next(now) is None, "the others wait"
    assert one.next_retry is not None
    assert one.next_retry <= now + 2, "the early ones are retried soon"


def test_an_event_that_the_endpoint_rejects_is_retried_rarely_while_others_are_accepted():
    one = queue(events=10_000)
    tries: list[float] = []
    now = 0.0
    while now < 240:
        one.put("bad" if now == 0 else f"good{now}", b"bad" if now == 0 else b"good")
        while (delivery := one.next(now)) is not None:
            if delivery.events == [b"bad"]:
                tries.append(now)
                assert one.failed(delivery, now, 1.0)
            else:
                one.done(delivery)
        now += 0.25
    assert len(tries) <= 18


def test_retries_after_an_outage_do_not_wait_for_new_events():
    """The endpoint has recovered after 60 s, while 300 events arrive in each second. A request takes 20 ms."""
    one = queue(concurrency=10, events=100_000, bytes=1 << 30)
    now, number, waits = 0.0, 0, [0.0]
    current: list[tuple[float, Delivery]] = []
    while now < 70:
        while number <= 300 * now:
            number += 1
            one.put(f"c{number}", b"x", now=now)
        ended = [delivery for at, delivery in current if at <= now]
        current = [(at, delivery) for at, delivery in current if at > now]
        for delivery in ended:
            if now < 60:
                one.failed(delivery, now, 1.0)
            else:
                if delivery.attempts:
                    waits.append(now - 60)
                one.done(delivery)
        while (next_one := one.next(now)) is not None:
            current.append((now + 0.02, next_one))
        now += 0.02
    assert len(waits) > 60
    assert max(waits) < 3


@pytest.mark.parametrize(("earlier", "share"), [(200, 0), (0, 20)])
def test_events_that_the_endpoint_rejects_do_not_starve_the_others(earlier: int, share: int) -> None:
    """A request takes 20 ms. earlier: the number of rejected events at the beginning. One of `share` later ones is rejected."""
    one = queue(concurrency=10, events=10_000, bytes=1 << 28)
    for number in range(earlier):
        one.put(f"bad{number}", b"bad")
    now, number, accepted = 0.0, 0, 0
    current: list[tuple[float, Delivery]] = []
    while now < 250:
        if number <= 50 * now:
            number += 1
            one.put(f"c{number}", b"bad" if share and number % share == 0 else b"good", now=now)
        ended = [delivery for at, delivery in current if at <= now]
        current = [(at, delivery) for at, delivery in current if at > now]
        for delivery in ended:
            if delivery.events == [b"bad"]:
                one.failed(delivery, now, 1.0)
            else:
                accepted += 1
                one.done(delivery)
        while (next_one := one.next(now)) is not None:
            current.append((now + 0.02, next_one))
        now += 0.02
    good = number * (share - 1) // share if share else number
    assert accepted > 0.98 * good


def test_a_try_is_one_attempt_until_the_endpoint_accepts_it():
    one = queue()
    fill(one, "a1", "b1", "c1")
    now = in_outage(one, 0)
    one.retries.try_now(now, one.failing)
    delivery = first(one, now)
    assert one.next(now) is None
    one.failed(delivery, now, 1.0)
    assert taken(one, now + 1) == []
    one.retries.try_now(now, one.failing)
    one.done(first(one, now))
    assert len(taken(one, now)) == 2


def test_a_try_of_an_empty_queue_does_nothing():
    one = queue()
    one.retries.try_now(5, one.failing)
    assert (one.next(5), one.next_retry, one.when()) == (None, None, None)


@pytest.mark.parametrize(("events", "bytes"), [(3, 1 << 20), (1000, 3 * (OVERHEAD + 2))])
def test_event_over_the_bound_is_not_queued(events, bytes):
    one = queue(events=events, bytes=bytes)
    fill(one, "a1", "a2", "b1")
    assert not one.put("c", b"c1")
    one.done(first(one))
    assert one.put("c", b"c1")


@pytest.mark.parametrize(("events", "bytes"), [(100, 1 << 20), (10_000, 100 * (OVERHEAD + 5))])
def test_one_source_does_not_displace_the_others(events, bytes):
    """A source may fill the queue. When the queue is full, the source with the most events loses its newest ones."""
    one = queue(events=events, bytes=bytes)
    assert sum(one.put("flood", b"f%04d" % number, "1.1") for number in range(500)) == 100
    for number in range(40):
        assert one.put(f"c{number}", b"c%04d" % number, f"2.{number}")
        assert one.dropped == [(b"f%04d" % (99 - number), 0, 0)]
        one.dropped.clear()
        assert not one.put("flood", b"f9999", "1.1")
    for number in range(5):
        assert one.put("x", b"x%04d" % number)
    assert one.events == 100
    left = sorted(event for _, event, *_ in one.untried())
    assert left[-5:] == [b"x%04d" % number for number in range(5)]
    assert left[40:95] == [b"f%04d" % number for number in range(55)]


def test_two_sources_share_the_queue():
    one = queue(events=100)
    for number in range(200):
        one.put("a", b"a%d" % number, "1.1")
    for number in range(200):
        one.put("b", b"b%d" % number, "1.2")
    left = [channel for channel, *_ in one.untried()]
    assert (left.count("a"), left.count("b")) == (50, 50)


def test_sources_with_few_events_do_not_give_way():
    """This holds for any number of connections with one event each."""
    one = queue(events=100)
    for number in range(300):
        one.put("c", b"%d" % number, f"1.{number}")
    assert [event for _, event, *_ in one.untried()] == [b"%d" % number for number in range(100)]


def test_displaced_source_leaves_no_channel_in_the_queue():
    one = queue(events=100)
    for number in range(100):
        one.put(f"flood{number}", b"f", "1.1")
    for number in range(49):
        one.put("c", b"c%d" % number, f"2.{number}")
    for _ in range(100):
        delivery = one.next(0)
        if delivery is None:
            break
        one.done(delivery)
    assert (one.events, one.bytes, one.when()) == (0, 0, None)
    assert not one._waiting
    assert not one._sources
    assert not one._large


def test_gaps_are_bounded():
    """The endpoint accepts nothing for hours, while many sources displace each other."""
    one = queue(events=200)
    for number in range(20_000):
        one.put(f"c{number % 7}", b"x", f"1.{number // 150}")
    assert sum(map(len, one._waiting.values())) <= 2 * one.events + 1


def test_an_endpoint_that_fails_holds_half_of_the_queue_at_most():
    one = queue(concurrency=2, batch=1000, events=100)
    now = 0.0
    for number in range(200):
        one.put(f"flood{number}", b"f", "1.1")
    while now < 100:
        while (delivery := one.next(now)) is not None:
            one.failed(delivery, now, 1.0)
        for number in range(200):
            one.put(f"flood{number}", b"f", "1.1")
        now += 1
    assert one.retrying <= 75
    for number in range(20):
        assert one.put("c", b"c", f"2.{number}")
    assert one.when() is not None


@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from(("", "1", "2", "3", "4")), st.integers(1, 30), st.booleans()),
        max_size=150,
    ),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 60),
)
def test_the_counts_match_the_queue_whichever_source_gives_way(steps, concurrency, batch, events):
    one = queue(concurrency, batch, events, events * (OVERHEAD + 20))
    fate: dict[bytes, list[str]] = {}
    order: dict[str, list[bytes]] = {channel: [] for channel in "abcd"}
    for number, (channel, source, size, takes) in enumerate(steps):
        event = b"%s%d" % (channel.encode(), number) + b"." * size
        fate[event] = []
        if one.put(channel, event, source):
            order[channel].append(event)
        else:
            fate[event].append("refused")
        for lost, *_ in one.dropped:
            fate[lost].append("gave way")
            order[chr(lost[0])].remove(lost)
        one.dropped.clear()
        assert one.events <= events
        assert one.events == one._tried_events + sum(1 for _ in one.untried())
        if takes and (delivery := one.next(number)) is not None:
            for taken in delivery.events:
                fate[taken].append("sent")
                assert order[chr(taken[0])].pop(0) == taken
            one.done(delivery)
    while (delivery := one.next(1000)) is not None:
        for taken in delivery.events:
            fate[taken].append("sent")
            assert order[chr(taken[0])].pop(0) == taken
        one.done(delivery)
    assert all(len(found) == 1 for found in fate.values())
    assert (one.events, one.bytes, one._sources, one._large) == (0, 0, {}, {})


def test_when_returns_the_time_of_the_next_request():
    one = queue(concurrency=1)
    assert one.when() is None
    fill(one, "a1", "b1")
    assert one.when() == 0
    delivery = first(one)
    assert one.when() is None
    one.failed(delivery, 5, 1.0)
    assert one.when() == 0  # b1 may start now
    other = first(one, 5)
    one.failed(other, 5, 1.0)
    assert one.when() == 6


def test_tried_and_untried_events_can_be_given_to_another_queue():
    one = queue(concurrency=1)
    fill(one, "a1", "a2", "b1")
    delivery = first(one)
    delivery.id = "x"
    assert [found.id for found in one.tried()] == ["x"]
    assert list(one.untried()) == [("a", b"a2", "", 0), ("b", b"b1", "", 0)]
    two = queue(concurrency=1)
    for found in one.tried():
        two.restore(found, 100)
    for channel, event, source, _ in one.untried():
        two.put(channel, event, source)
    assert (two.events, two.bytes) == (one.events, one.bytes)
    again = first(two, 100)
    assert (again.id, again.events) == ("x", [b"a1"])
    two.done(again)
    assert first(two, 100).events == [b"b1"]


def tried(*events: str, id: str = "x") -> Delivery:
    """Makes a delivery that another process has started."""
    one = Delivery(tuple(dict.fromkeys(event[0] for event in events)), [event.encode() for event in events])
    one.id = id
    return one


def test_restored_batches_of_a_channel_are_sent_in_order_before_new_events():
    one = queue()
    fill(one, "a3")
    one.restore(tried("a1", id="x"), 0)
    one.restore(tried("a2", id="y"), 0)
    fill(one, "a4", "a5", "b1")
    assert one.events == 6
    delivery = first(one)
    assert (delivery.id, delivery.events) == ("x", [b"a1"])
    assert taken(one) == ["b1"]
    assert [found.id for found in one.tried()].count("y") == 1
    for expected in (b"a2", b"a3", b"a4", b"a5"):
        one.done(delivery)
        delivery = first(one)
        assert delivery.events == [expected]
        assert taken(one) == []
    one.done(delivery)
    assert one.events == 1


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.floats(0, 3)), max_size=80),
    st.integers(1, 3),
    st.integers(1, 4),
)
def test_failures_keep_the_order_of_each_channel_and_lose_no_event(steps, concurrency, batch):
    one = queue(concurrency, batch)
    under_way: list[Delivery] = []
    arrived: dict[str, list[int]] = {"a": [], "b": [], "c": []}
    put = dict.fromkeys("abc", 0)
    now = 0.0

    def arrive(delivery: Delivery) -> None:
        for event in delivery.events:
            arrived[event[:1].decode()].append(int(event[1:]))
        one.done(delivery)

    for channel, works, pause in steps:
        now += pause
        one.put(channel, f"{channel}{put[channel]}".encode())
        put[channel] += 1
        while (delivery := one.next(now)) is not None:
            under_way.append(delivery)
        assert len(under_way) <= concurrency
        if under_way:
            delivery = under_way.pop(0)
            if works:
                arrive(delivery)
            else:
                assert one.failed(delivery, now, 1.0) or now - delivery.first > RETRIES_SECONDS - 60
    for delivery in under_way:
        arrive(delivery)
    for _ in range(1000):
        at = one.when()
        if at is None:
            break
        now = max(now, at)
        while (delivery := one.next(now)) is not None:
            arrive(delivery)
    assert arrived == {channel: list(range(count)) for channel, count in put.items()}
    assert (one.events, one.bytes) == (0, 0)


def test_waits_double_up_to_a_minute():
    assert [wait(attempts) for attempts in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]


# Age


def test_the_oldest_event_waits_is_sent_or_is_retried():
    assert queue().oldest is None
    one = queue(concurrency=1)
    one.put("a", b"1", "", 10)
    one.put("a", b"2", "", 11)
    one.put("b", b"3", "", 12)
    assert one.oldest == 10
    delivery = first(one, 20)
    assert one.oldest == 10
    assert one.failed(delivery, 20, 1)
    assert one.oldest == 10
    one.done(first(one, 21))
    assert one.oldest == 11
    one.done(first(one, 22))
    assert one.oldest in (11, 12)
    one.done(first(one, 22))
    assert not one.oldest


def test_the_age_of_a_batch_is_that_of_its_oldest_event():
    one = queue(batch=2)
    one.put("a", b"1", "", 10)
    one.put("b", b"2", "", 5)
    assert first(one, 20).count == 2
    assert one.oldest == 5


def test_an_event_of_an_earlier_process_is_as_old_as_its_return():
    one = queue()
    one.restore(Delivery(("a",), [b"1"]), 30)
    assert one.oldest == 30
