"""Counts the messages between MQTT devices: published, acknowledged, delivered, missing, doubled and reordered. Pure.

A message is *missing* if the server has acknowledged it and a subscriber of its topic has not received it. A message is *doubled*
each time it arrives again. A message is *reordered* if its first arrival follows the first arrival of a later message of the
same publisher on the same topic with the same QoS (MQTT 5.0, section 4.6).
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from tests.support.mqtt_devices import Arrival, Device

Key = tuple[str, int]
"""the publisher and the number of a message"""


class Counts:
    """The counts of one subscriber, or of the members of a shared group together.

    receivers: devices with the same filters. publishers: all publishers. since: the time from which messages are due; by default
    the time at which the first receiver was ready.
    """

    def __init__(self, receivers: Sequence[Device], publishers: Iterable[Device], since: float | None = None) -> None:
        ready = min((one.ready_at for one in receivers if one.ready_at is not None), default=float("inf"))
        start = ready if since is None else since
        self.name = ", ".join(one.client_id for one in receivers)
        self.filters = [_unshared(one) for one in receivers[0].filters]
        self.published = [sent for one in publishers for sent in list(one.sent) if self._matches(sent.topic)]
        self.acknowledged = [sent for sent in self.published if sent.acknowledged is not None]
        self.rejected = [sent for sent in self.published if sent.reason]
        self.arrivals = sorted(arrival for one in receivers for arrival in list(one.arrivals))
        first: dict[Key, Arrival] = {}
        self.doubles: list[tuple[Arrival, Arrival]] = []
        """the first arrival and a later arrival of the same message"""
        for arrival in self.arrivals:
            key = arrival.publisher, arrival.number
            if key in first:
                self.doubles.append((first[key], arrival))
            else:
                first[key] = arrival
        self.first = first
        self.missing = [one for one in self.acknowledged if one.began >= start and (one.publisher, one.number) not in first]
        self.unknown = sorted(set(first) - {(one.publisher, one.number) for one in self.published})
        """arrivals that no publisher has published on a matching topic"""

    def _matches(self, topic: str) -> bool:
        return any(matches(filter, topic) for filter in self.filters)

    @property
    def delivered(self) -> int:
        return len(self.first)

    @property
    def reordered(self) -> list[tuple[Arrival, Arrival]]:
        """Pairs of a later message, and an earlier one that arrived after it."""
        newest: dict[tuple[str, str, int], Arrival] = {}
        found = []
        for arrival in self.first.values():
            place = arrival.publisher, arrival.topic, arrival.qos
            if place in newest and newest[place].number > arrival.number:
                found.append((newest[place], arrival))
            else:
                newest[place] = arrival
        return found

    def doubled_without_reason(self, seconds: float, faults: Sequence[float]) -> list[tuple[Arrival, Arrival]]:
        """Returns the doubles that no fault explains.

        A publisher that lost its connection may have published the message several times. Otherwise, the first arrival must be at
        most `seconds` before a fault, or after it, and the second one after this fault.
        """
        attempts = Counter[Key]()
        for sent in self.published:
            attempts[sent.publisher, sent.number] = sent.attempts - 1
        found = []
        for first, second in self.doubles:
            key = first.publisher, first.number
            if attempts[key] > 0:
                attempts[key] -= 1
            elif not any(at - seconds <= first.at and second.at >= at for at in faults):
                found.append((first, second))
        return found

    def __repr__(self) -> str:
        return (
            f"{self.name}: published {len(self.published)}, acknowledged {len(self.acknowledged)}, "
            f"rejected {len(self.rejected)}, delivered {self.delivered}, missing {len(self.missing)}, "
            f"doubled {len(self.doubles)}, reordered {len(self.reordered)}"
        )


def _unshared(filter: str) -> str:
    """Returns a filter without the name of its shared group."""
    return filter.split("/", 2)[2] if filter.startswith("$share/") else filter


def matches(filter: str, topic: str) -> bool:
    """Returns whether a filter matches a topic (MQTT 5.0, section 4.7)."""
    wanted, levels = filter.split("/"), topic.split("/")
    if wanted[-1] == "#":
        wanted, levels = wanted[:-1], levels[: len(wanted) - 1]
    return len(wanted) == len(levels) and all(one in ("+", level) for one, level in zip(wanted, levels, strict=True))


def verify(
    receivers: Iterable[Device | Sequence[Device]],
    publishers: Sequence[Device],
    *,
    repeat_seconds: float | None = None,
    faults: Sequence[float] = (),
    missing: bool = False,
    in_order: bool = True,
) -> list[Counts]:
    """Checks the counts of each receiver or group; returns the counts.

    repeat_seconds: how long before a fault a message may have arrived that arrives again after the fault; None: any message may
    be doubled. faults: the times of the faults. missing: whether acknowledged messages may be missing. in_order: whether the
    messages must not be reordered.
    """
    found = []
    for one in receivers:
        counts = Counts([one] if isinstance(one, Device) else list(one), publishers)
        assert counts.unknown == [], counts.unknown[:10]
        assert missing or not counts.missing, (counts, [(sent.publisher, sent.number) for sent in counts.missing[:10]])
        assert not in_order or not counts.reordered, (counts, counts.reordered[:10])
        if repeat_seconds is not None:
            unexplained = counts.doubled_without_reason(repeat_seconds, faults)
            assert not unexplained, (counts, faults, unexplained[:10])
        found.append(counts)
    return found


def pending(receivers: Iterable[Device | Sequence[Device]], publishers: Sequence[Device]) -> int:
    """Returns the number of acknowledged messages that a receiver or group has not received yet."""
    return sum(len(Counts([one] if isinstance(one, Device) else list(one), publishers).missing) for one in receivers)
