"""The samples of a worker's figures."""

from push1st.console.samples import EVERY_SECONDS, FIELDS, MAX_SAMPLES, Samples


def test_samples_of_ten_minutes_are_kept():
    samples = Samples()
    for second in range(1000, 1000 + 2 * MAX_SAMPLES * EVERY_SECONDS):
        if samples.is_due(second):
            samples.add(second, [second] * len(FIELDS))
    series = samples.series()
    assert len(series["samples"]) == MAX_SAMPLES
    assert series["samples"][-1][0] == series["at"]
    assert {after[0] - before[0] for before, after in zip(series["samples"], series["samples"][1:], strict=False)} == {10}


def test_samples_before_a_pause_are_dropped():
    samples = Samples()
    samples.add(1000, [1] * len(FIELDS))
    samples.add(1030, [2] * len(FIELDS))
    assert samples.series()["samples"] == [(2,) * len(FIELDS)]
