"""The metrics of several workers in one scrape."""

import msgspec

from push1st.api.server import merged
from push1st.metrics import SUPERVISOR, Family


def packed(*families: Family) -> bytes:
    return msgspec.msgpack.encode(families)


def test_each_metric_family_is_listed_once_with_a_series_for_each_worker():
    one = Family("push1st_x", "x", "counter", [("push1st_x_total", {"source": "api"}, 3)])
    (family,) = merged([(0, packed(one)), (2, packed(one))])
    assert (family.name, family.type, family.documentation) == ("push1st_x", "counter", "x")
    assert [(sample.name, sample.labels, sample.value) for sample in family.samples] == [
        ("push1st_x_total", {"source": "api", "worker": "0"}, 3),
        ("push1st_x_total", {"source": "api", "worker": "2"}, 3),
    ]


def test_metrics_of_the_supervisor_have_no_worker_label():
    (family,) = merged([(SUPERVISOR, packed(Family("push1st_workers", "w", "gauge", [("push1st_workers", {}, 2)])))])
    assert family.samples[0].labels == {}
