"""Counters start at 0 and count by label."""

from push1st.metrics import Metrics


def test_every_counter_starts_at_0():
    metrics = Metrics()
    assert not any(getattr(metrics, name) for name in Metrics.__slots__)


def test_workers_do_not_share_counters():
    one, two = Metrics(), Metrics()
    one.refusals["401"] += 1
    assert two.refusals["401"] == 0


def test_reading_an_unknown_label_does_not_create_it():
    metrics = Metrics()
    assert metrics.cut_offs["slow"] == 0
    assert list(metrics.cut_offs) == []
