"""The last ten minutes of a worker: a sample of its figures every ten seconds, for the charts of the overview.

The worker that answers a tab adds the series of all workers, so the answer has the same size for any number of workers.
This module knows no clock.
"""

import asyncio
import operator
from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import msgspec

EVERY_SECONDS = 10
MAX_SAMPLES = 60
GAUGE = "connections"
"""the only field that is not a counter"""
MAX_APART_SECONDS = 60
"""the seconds by which the clocks of two workers may differ"""
ADDED_A_TURN = 100
"""the number of series that are added before other work gets its turn"""
FIELDS = (GAUGE, "events_in", "messages_out", "bytes_out", "cpu_seconds", "refusals", "hook_events_lost")


class Series(msgspec.Struct, frozen=True, array_like=True):
    """The samples of a worker.

    last: the time of the last one in `EVERY_SECONDS` since 1970.
    values: for each field of `FIELDS`, one value for each sample, the oldest first. For a counter, this is the mean rate a second
    since the sample before, and 0 for the first sample.
    """

    last: int
    values: list[list[float]]


class Samples:
    """The samples of a worker."""

    __slots__ = ("_at", "_next", "_samples")

    def __init__(self) -> None:
        self._samples: deque[tuple[float, ...]] = deque(maxlen=MAX_SAMPLES)
        """each sample is a tuple: the time, and then the values"""
        self._next = 0.0
        self._at = 0.0

    def is_due(self, now: float) -> bool:
        """Returns whether the next sample is due. Called once a second. now: the time in seconds since 1970."""
        return now >= self._next

    def add(self, now: float, values: Sequence[float]) -> None:
        """Adds a sample, whose values are those of `FIELDS`. After a pause of the process, the earlier samples are dropped."""
        if self._at and not 0 < now - self._at < 2 * EVERY_SECONDS:
            self._samples.clear()
        self._samples.append((now, *values))
        self._at = now
        self._next = now // EVERY_SECONDS * EVERY_SECONDS + EVERY_SECONDS

    def series(self) -> Series:
        """Returns all samples."""
        times, gauge, *counters = map(list, zip(*self._samples, strict=True)) if self._samples else [[] for _ in ("at", *FIELDS)]
        seconds = [after - before for before, after in pairwise(times)]
        return Series(round(self._at / EVERY_SECONDS), [gauge, *(_rates(counts, seconds) for counts in counters)])


def _rates(counts: list[float], seconds: list[float]) -> list[float]:
    """Returns the rates of a counter. seconds: the durations between the values. The first rate is 0."""
    grown = [max(0.0, after - before) for before, after in pairwise(counts)]
    return [0.0 for _ in counts[:1]] + list(map(operator.truediv, grown, seconds))


async def added(series: Sequence[Series], now: float) -> dict[str, Any]:
    """Returns the sums of the series of several workers.

    at: the time of the last values in seconds since 1970. values: see `Series`.
    The last sample of some workers may be due in a moment, so the sums end with the last sample that all workers have. The sums
    omit a worker whose clock differs by more than `MAX_APART_SECONDS` from the clock of this worker.

    now: the time of this worker in seconds since 1970.
    """
    series = [one for one in series if one.values[0] and abs(one.last * EVERY_SECONDS - now) <= MAX_APART_SECONDS]
    end = min((one.last for one in series), default=0)
    late = max((one.last - end for one in series), default=0)
    length = max((len(one.values[0]) - (one.last - end) for one in series), default=0)
    length = max(0, min(length, MAX_SAMPLES - late))  # all workers that are old enough have these samples
    sums = [[0.0] * length for _ in FIELDS]
    for number, one in enumerate(series):
        if number % ADDED_A_TURN == ADDED_A_TURN - 1:
            await asyncio.sleep(0)
        for column, values in enumerate(one.values):
            known = values[: max(0, len(values) - (one.last - end))][-length:] if length else []
            sums[column] = list(map(operator.add, sums[column], [0.0] * (length - len(known)) + known))
    rounded = [[round(value, 3) for value in column] for column in sums]
    return {"at": end * EVERY_SECONDS, "every": EVERY_SECONDS, "fields": FIELDS, "values": rounded}
