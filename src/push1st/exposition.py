"""Writes metrics as text: Prometheus' text format 0.0.4, and OpenMetrics 1.0 (decision 0029).

A worker has thousands of series if it has hundreds of apps. So each process writes the lines of its own series (`write`). The
worker that answers a scrape only joins the lines of all processes (`join`). The lines of both formats are equal; only the
lines before them, with the type and the help text of a metric, differ.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from push1st.metrics import OTHER, Histogram

Sample = tuple[str, str, float]
"""a series: the suffix after the name of its metric, its labels as text, and its value"""


class Family(msgspec.Struct, frozen=True):
    """A metric and its series.

    name: the name of the metric, without the suffix `_total` of counters.
    """

    name: str
    type: Literal["counter", "gauge", "histogram"]
    text: str
    samples: Sequence[Sample]


class Lines(msgspec.Struct, frozen=True):
    """A metric, and its series of one process as lines of text. The other fields are those of `Family`."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    text: str
    lines: str


def counter(name: str, text: str, value: float) -> Family:
    return Family(f"push1st_{name}", "counter", text, (("_total", "", value),))


def gauge(name: str, text: str, value: float) -> Family:
    return Family(f"push1st_{name}", "gauge", text, (("", "", value),))


def counters(
    name: str, text: str, label: str, values: Mapping[str, float] | Mapping[int, float], known: Iterable[object] = ()
) -> Family:
    """Returns a counter with a label. `known`: label values; each of them that is missing in `values` gets the count 0."""
    counts = dict.fromkeys(map(str, known), 0.0) | {str(value): count for value, count in values.items()}
    return Family(
        f"push1st_{name}", "counter", text, [("_total", f'{label}="{escape(value)}"', count) for value, count in counts.items()]
    )


def gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Family:
    """Returns a gauge with a label."""
    return Family(
        f"push1st_{name}", "gauge", text, [("", f'{label}="{escape(value)}"', count) for value, count in values.items()]
    )


def histogram(name: str, text: str, found: Histogram) -> Family:
    return Family(f"push1st_{name}", "histogram", text, _buckets(found, ""))


def histograms(name: str, text: str, label: str, values: Mapping[str, Histogram]) -> Family:
    """Returns a histogram with a label."""
    samples: list[Sample] = []
    for value, found in values.items():
        samples += _buckets(found, f'{label}="{escape(value)}"')
    return Family(f"push1st_{name}", "histogram", text, samples)


def _buckets(found: Histogram, labels: str) -> list[Sample]:
    before = f"{labels}," if labels else ""
    samples: list[Sample] = []
    total = 0
    for bound, count in zip((*map(float, found.bounds), "+Inf"), found.counts, strict=True):
        total += count
        samples.append(("_bucket", f'{before}le="{bound}"', total))
    return [*samples, ("_count", labels, total), ("_sum", labels, found.sum)]


class AppLabels:
    """The labels of apps. The apps after the first `most` share the label `OTHER`, so that the number of series is bounded.

    apps: the ids of all apps, in the order of first use.
    """

    def __init__(self, apps: Iterable[str], most: int) -> None:
        self._most = most
        self._labels: dict[str, str] = {}
        for app in apps:
            self.of(app)

    def of(self, app: str) -> str:
        label = self._labels.get(app)
        if label is None:
            label = self._labels[app] = app if len(self._labels) < self._most else OTHER
        return label

    def add(self, values: Mapping[str, float]) -> dict[str, float]:
        """Returns values by the labels of their apps; the values of apps with the same label are added."""
        found: dict[str, float] = {}
        for app, value in values.items():
            label = self.of(app)
            found[label] = found.get(label, 0) + value
        return found

    def largest(self, values: Mapping[str, float]) -> dict[str, float]:
        """Returns values by the labels of their apps; of apps with the same label, the largest value counts."""
        found: dict[str, float] = {}
        for app, value in values.items():
            label = self.of(app)
            found[label] = max(found.get(label, 0), value)
        return found


def escape(value: str) -> str:
    r"""Escapes the value of a label. Only `\`, `"` and the end of a line need an escape."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def write(family: Family, more: str = "") -> Lines:
    """Writes the series of a metric. `more`: labels that are added to those of each series, as text."""
    name, after = family.name, f",{more}" if more else ""
    whole = f"{{{more}}}" if more else ""
    lines = "".join(
        [
            f"{name}{suffix}{{{labels}{after}}} {float(value)}\n" if labels else f"{name}{suffix}{whole} {float(value)}\n"
            for suffix, labels, value in family.samples
        ]
    )
    return Lines(name, family.type, family.text, lines)


def join(written: Iterable[Sequence[Lines]], is_openmetrics: bool) -> bytes:
    """Returns the text of a scrape: all series of a metric follow each other, from whichever process they come."""
    found: dict[str, list[str]] = {}
    for one in written:
        for family in one:
            if family.name not in found:
                shown = family.name if is_openmetrics or family.type != "counter" else f"{family.name}_total"
                found[family.name] = [f"# HELP {shown} {family.text}\n# TYPE {shown} {family.type}\n"]
            found[family.name].append(family.lines)
    end = "# EOF\n" if is_openmetrics else ""
    return "".join([*("".join(parts) for parts in found.values()), end]).encode()
