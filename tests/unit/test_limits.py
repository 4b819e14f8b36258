"""Limits, and the token bucket of limits per second."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from push1st.limits import Bucket, Limits


def test_the_defaults_are_those_of_pusher():
    # Pusher protocol, section 8
    assert Limits() == Limits(
        connections=0,
        subscriptions=5_000,
        members=100,
        payload=10_240,
        channel_name=164,
        event_name=200,
        channels_per_event=100,
        batch=10,
        client_events=10,
        publishes=0,
        reads=0,
    )


def test_limits_are_written_with_dashes_in_a_configuration():
    # Push1st API, section 9
    text = b'{"connections":1,"channel-name":2,"event-name":3,"channels-per-event":4,"client-events":5}'
    limits = msgspec.json.decode(text, type=Limits)
    assert limits == Limits(connections=1, channel_name=2, event_name=3, channels_per_event=4, client_events=5)


def test_limits_do_not_change():
    with pytest.raises(AttributeError):
        Limits().payload = 1  # type: ignore[misc]  # that it cannot be set is what is tested


def test_a_new_bucket_is_full():
    bucket = Bucket(3, now=100.0)
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]


def test_a_bucket_fills_up_evenly():
    bucket = Bucket(10, now=0.0)
    assert bucket.take(0.0, 10)
    assert not bucket.take(0.0625)
    assert bucket.take(0.125)
    assert not bucket.take(0.125)


def test_a_bucket_holds_no_more_than_a_second_gives():
    bucket = Bucket(2, now=0.0)
    assert [bucket.take(1000.0) for _ in range(3)] == [True, True, False]


def test_rejected_cost_takes_nothing():
    bucket = Bucket(5, now=0.0)
    assert bucket.take(0.0, 3)
    assert not bucket.take(0.0, 3)
    assert bucket.take(0.0, 2)


def test_a_cost_beyond_the_rate_never_fits():
    bucket = Bucket(5, now=0.0)
    assert not bucket.take(1000.0, 6)
    assert bucket.take(1000.0, 5)


def test_clock_that_goes_back_leaves_the_bucket_unchanged():
    bucket = Bucket(2, now=100.0)
    assert bucket.take(100.0, 2)
    assert not bucket.take(50.0)
    assert bucket.take(100.5)
    assert not bucket.take(100.5)


@given(st.integers(1, 50), st.lists(st.tuples(st.floats(0, 3), st.integers(1, 5)), max_size=50))
def test_no_more_passes_than_the_rate_and_one_burst(rate, steps):
    bucket, now, passed = Bucket(rate, now=0.0), 0.0, 0
    for pause, cost in steps:
        now += pause
        passed += cost if bucket.take(now, cost) else 0
    assert passed <= rate + now * rate + 1e-6


@given(st.integers(1, 50), st.integers(1, 100))
def test_client_within_the_rate_is_never_rejected(rate, count):
    bucket = Bucket(rate, now=0.0)
    assert all(bucket.take(i / rate) for i in range(count))


def test_charged_bucket_gives_nothing_until_it_has_earned_the_rest():
    bucket = Bucket(10, 0.0)
    bucket.charge(0.0, 25)
    assert not bucket.take(1.5)
    assert bucket.take(1.6)
