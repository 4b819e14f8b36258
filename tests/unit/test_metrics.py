"""Counters start at 0 and count by label; histograms count in buckets."""

import pytest

from push1st.metrics import CONNECTION_SECONDS, Histogram, Metrics


def test_every_counter_starts_at_0():
    metrics = Metrics()
    for found in (getattr(metrics, name) for name in Metrics.__slots__ if name != "reloads"):
        values = found.values() if isinstance(found, dict) else [found]
        assert not any(sum(one.counts) if isinstance(one, Histogram) else one for one in values)
    assert (metrics.events_in, metrics.messages_out, metrics.bytes_out) == ({}, 0, 0)
    assert (metrics.reloads.results, metrics.reloads.succeeded_at) == ({}, 0)


def test_workers_do_not_share_counters():
    one, two = Metrics(), Metrics()
    one.refusals["401"] += 1
    one.api_seconds["events"].observe(1)
    assert two.refusals["401"] == 0
    assert two.api_seconds["events"].sum == 0


def test_reading_an_unknown_label_does_not_create_it():
    metrics = Metrics()
    assert metrics.cut_offs["slow"] == 0
    assert list(metrics.cut_offs) == []


@pytest.mark.parametrize(("value", "bucket"), [(0, 0), (1, 0), (1.1, 1), (10, 1), (86400, 5), (1e9, 6)])
def test_a_value_counts_in_the_first_bucket_whose_bound_it_does_not_exceed(value, bucket):
    found = Histogram(CONNECTION_SECONDS)
    found.observe(value)
    assert found.counts == [int(number == bucket) for number in range(7)]
    assert found.sum == value


def test_totals_are_the_sums_of_all_apps():
    metrics = Metrics()
    one, two = metrics.of("one"), metrics.of("two")
    assert metrics.of("one") is one
    one.events_in["api"] += 2
    two.events_in.update(("api", "pusher"))
    one.messages_out, two.messages_out, one.bytes_out, two.bytes_out = 3, 4, 5, 6
    assert (metrics.events_in, metrics.messages_out, metrics.bytes_out) == ({"api": 3, "pusher": 1}, 7, 11)


def test_the_end_of_a_connection_counts_its_code_and_its_duration():
    metrics = Metrics()
    metrics.opened["pusher"] += 2
    assert metrics.connections["pusher"] == 2
    metrics.end("pusher", 4201, 7)
    metrics.end("pusher", 2999, 70)
    assert (metrics.connections["pusher"], metrics.opened["pusher"]) == (0, 2)
    assert metrics.closed == {("pusher", 4201): 1, ("pusher", "other"): 1}
    assert metrics.connection_seconds.counts == [0, 1, 0, 1, 0, 0, 0]
