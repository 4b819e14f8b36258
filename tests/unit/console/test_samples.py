"""The samples of a worker's figures, and the sums of all workers."""

from push1st.console.samples import EVERY_SECONDS, FIELDS, MAX_SAMPLES, Samples, Series, added

COUNTERS = len(FIELDS) - 1


def sampled(first: int, last: int) -> Samples:
    """Returns the samples of the seconds from `first` to `last`: all figures are the time."""
    samples = Samples()
    for second in range(first, last + 1):
        if samples.is_due(second):
            samples.add(second, [second] * len(FIELDS))
    return samples


def test_samples_of_ten_minutes_are_kept():
    last = 1000 + 2 * MAX_SAMPLES * EVERY_SECONDS
    connections, *rates = sampled(1000, last).series().values
    assert connections == [float(last - EVERY_SECONDS * age) for age in reversed(range(MAX_SAMPLES))]
    assert rates == [[0.0, *[1.0] * (MAX_SAMPLES - 1)]] * COUNTERS, "counters grow by one a second"


def test_samples_before_a_pause_are_dropped():
    samples = Samples()
    samples.add(1000, [1] * len(FIELDS))
    samples.add(1030, [2] * len(FIELDS))
    assert samples.series() == Series(103, [[2], *[[0.0]] * COUNTERS])


async def test_series_of_workers_are_added_up_to_the_last_sample_that_all_have():
    early, late, young, new = sampled(100, 2000), sampled(100, 2010), sampled(1990, 2000), Samples()
    found = await added([one.series() for one in (early, late, young, new)], 2012)
    assert (found["at"], found["every"], found["fields"]) == (2000, EVERY_SECONDS, FIELDS)
    connections, *rates = found["values"]
    assert len(connections) == MAX_SAMPLES - 1, "the later worker has dropped its sample of the oldest time"
    assert connections[-3:] == [2 * 1980, 3 * 1990, 3 * 2000]
    assert connections[0] == 2 * (2000 - EVERY_SECONDS * (MAX_SAMPLES - 2))
    assert rates == [[1.0, *[2.0] * (MAX_SAMPLES - 3), 3.0]] * COUNTERS, "the page draws no rate of the first sample"
    assert (await added([], 2012))["values"] == [[]] * len(FIELDS)


async def test_series_of_a_worker_with_another_time_is_left_out():
    own, minutes_behind, seconds_ahead = sampled(100, 2000), sampled(100, 1700), sampled(100, 2030)
    found = await added([one.series() for one in (own, minutes_behind, seconds_ahead)], 2005)
    assert found["at"] == 2000
    assert found["values"][0][-2:] == [2 * 1990, 2 * 2000]


def test_rate_is_that_of_the_time_since_the_last_sample():
    samples = Samples()
    for at, count in ((9.5, 0), (10.5, 100), (30, 2050)):
        samples.add(at, [count] * len(FIELDS))
    assert samples.series().values[1] == [0, 100, 100]
