"""Metrics as text, in both formats, as Prometheus' own parsers read them."""

import time

from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from push1st.exposition import AppLabels, Family, counter, counters, gauge, gauges, histogram, histograms, join, write
from push1st.metrics import Histogram

FAMILIES = [
    counter("seen", "things seen", 3),
    counters("answers", "answers", "status", {200: 2}, ("200", "404")),
    gauge("open", "open things", 1.5),
    gauges("sizes", "sizes", "app", {"one": 1, 'an "odd"\\name\n': 2}),
    histogram("wait_seconds", "waits", Histogram()),
    histograms("step_seconds", "steps", "step", {"join": Histogram(), "leave": Histogram()}),
]


def text_of(*families: Family, more: str = "", is_openmetrics: bool = False) -> str:
    return join([[write(one, more) for one in families]], is_openmetrics).decode()


def series(text: str, parse=prometheus):
    return {(sample.name, *sample.labels.values()): sample.value for family in parse(text) for sample in family.samples}


def test_both_formats_contain_the_same_series():
    found = series(text_of(*FAMILIES))
    assert found == series(text_of(*FAMILIES, is_openmetrics=True), openmetrics)
    assert found["push1st_seen_total",] == 3
    assert (found["push1st_answers_total", "200"], found["push1st_answers_total", "404"]) == (2, 0)
    assert found["push1st_open",] == 1.5
    assert found["push1st_sizes", 'an "odd"\\name\n'] == 2


def test_openmetrics_ends_with_eof_and_names_a_counter_without_its_suffix():
    text = text_of(FAMILIES[0], is_openmetrics=True)
    assert text == "# HELP push1st_seen things seen\n# TYPE push1st_seen counter\npush1st_seen_total 3.0\n# EOF\n"
    assert text_of(FAMILIES[0]).startswith("# HELP push1st_seen_total things seen\n# TYPE push1st_seen_total counter\n")


def test_buckets_are_cumulative():
    waits = Histogram((0.5, 1))
    for value in (0.1, 0.7, 0.8, 3):
        waits.observe(value)
    found = series(text_of(histogram("wait_seconds", "waits", waits)))
    buckets = {name[1]: value for name, value in found.items() if name[0] == "push1st_wait_seconds_bucket"}
    assert buckets == {"0.5": 1, "1.0": 3, "+Inf": 4}
    assert (found["push1st_wait_seconds_count",], found["push1st_wait_seconds_sum",]) == (4, 4.6)


def test_the_series_of_several_processes_follow_each_other():
    one, two = ([write(family, f'worker="{number}"') for family in FAMILIES] for number in (0, 2))
    for is_openmetrics, parse in ((False, prometheus), (True, openmetrics)):
        text = join([one, two, [write(gauge("workers", "workers", 2))]], is_openmetrics).decode()
        found = series(text, parse)
        assert (found["push1st_seen_total", "0"], found["push1st_seen_total", "2"], found["push1st_workers",]) == (3, 3, 2)
        assert text.count("# TYPE push1st_seen") == 1


def test_apps_above_the_maximum_share_one_label():
    labels = AppLabels(["one", "two", "three"], 2)
    assert labels.add({"three": 1, "one": 2, "two": 3, "four": 4}) == {"one": 2, "two": 3, "other": 5}
    assert labels.largest({"three": 1, "one": 2, "four": 4}) == {"one": 2, "other": 4}


def test_an_app_whose_id_is_other_is_added_to_the_rest():
    assert AppLabels(["other", "one"], 1).add({"other": 1, "one": 2}) == {"other": 3}


def test_eight_workers_with_200_apps_take_little_time():
    """The bound is for all workers together, and for one core; each worker writes only its own lines."""
    values = {f"app-{number}": float(number) for number in range(200)}
    families = [*(gauges(f"app_{number}", "x", "app", values) for number in range(13)), *FAMILIES * 8]
    best = 1.0
    for _ in range(5):
        start = time.thread_time()
        written = [[write(family, f'worker="{number}"') for family in families] for number in range(8)]
        join(written, False)
        best = min(best, time.thread_time() - start)
    assert best < 0.05
