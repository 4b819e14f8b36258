"""Debounces edges: drops edges if a channel is empty only for a moment, or if a member reloads the web page.

An edge is a change: a channel becomes occupied or vacated, a member is added or removed. The module holds a leaving edge
(`vacated`, `member-removed`) for `HOLD_SECONDS`, and drops it if the opposite edge arrives within this time (Pusher
protocol, section 9). So the entering and the leaving edges of each channel and member alternate. For each cache channel, the
module passes at most one `cache-missed` in `HOLD_SECONDS`.

This module is for brokers that do not debounce edges. If several workers share a broker, the one worker that consumes hook events
debounces the edges in another module (`brokers/redis/events_consumer.py`).

The module is pure: its input is only hook events and the time. A channel may have become occupied before this process started. So
the module also passes a leaving edge of a channel or member whose entering edge it has not seen.
"""

from collections import OrderedDict
from collections.abc import Container, Iterable

from push1st.messages import ENTERING, HOLD_SECONDS, HookEvent, HookEventKind

MAX_ABSENT = 10_000
"""the maximum number of absent channels and members that the module remembers, to drop repeated leaving edges"""

LEAVING = {leaving: entering for entering, leaving in ENTERING.items()}

EdgeKey = tuple[str, str, str | None]
"""the id of the app, the name of the channel, and the id of the member or None"""


class Debounce:
    """Holds leaving edges. The methods `feed` and `due` return the hook events that the caller delivers now, in this order."""

    def __init__(self) -> None:
        self._present: set[EdgeKey] = set()
        """channels and members that are present, or whose leaving edge is still held"""
        self._absent: OrderedDict[EdgeKey, None] = OrderedDict()
        """channels and members whose last edge was a leaving edge"""
        self._held: OrderedDict[EdgeKey, tuple[float, HookEvent]] = OrderedDict()
        """held leaving edges, each with the time at which it passes; the edge with the earliest time is first"""
        self._missed: OrderedDict[EdgeKey, float] = OrderedDict()
        """cache channels with a recent `cache-missed`, each with the time until which the module drops another `cache-missed`"""

    def feed(self, event: HookEvent, now: float) -> list[HookEvent]:
        """Takes a hook event; returns the hook events that pass now. `now` is the time of a monotonic clock in seconds."""
        passed = self.due(now) if self._held or self._missed else []
        if event.kind in ENTERING:
            key = _key(event)
            if self._held.pop(key, None) is None and key not in self._present:
                self._present.add(key)
                self._absent.pop(key, None)
                passed.append(event)
        elif event.kind in LEAVING:
            key = _key(event)
            if key not in self._held and key not in self._absent:
                self._present.add(key)
                self._held[key] = now + HOLD_SECONDS, event
        elif event.kind == "cache-missed":
            key = event.app, event.channel, None
            if key not in self._missed:
                self._missed[key] = now + HOLD_SECONDS
                passed.append(event)
        else:
            passed.append(event)
        return passed

    def due(self, now: float) -> list[HookEvent]:
        """Removes and returns the edges that were held for `HOLD_SECONDS`."""
        passed = []
        held, missed = self._held, self._missed
        while held and next(iter(held.values()))[0] <= now:
            passed.append(self._leave(*held.popitem(last=False)))
        while missed and next(iter(missed.values())) <= now:
            missed.popitem(last=False)
        return passed

    @property
    def is_holding(self) -> bool:
        return bool(self._held)

    def held(self) -> list[HookEvent]:
        """Removes and returns all held edges. A later process passes these edges to `hold`."""
        events = [event for _, event in self._held.values()]
        self._held.clear()
        return events

    def hold(self, events: Iterable[HookEvent], now: float) -> None:
        """Holds edges that an earlier process held, except edges of channels and members that already have a newer edge."""
        for event in events:
            key = _key(event)
            if key not in self._present and key not in self._absent:
                self._present.add(key)
                self._held[key] = now + HOLD_SECONDS, event

    def forget(self, app: str, kinds: Container[HookEventKind]) -> None:
        """Forgets channels of an app if no endpoint wants edges of channels, and members if no endpoint wants edges of members.

        Drops the held edges of forgotten channels and members, too. If an endpoint wants such edges later, the module passes the
        next edge of each channel or member.

        kinds: the kinds of hook events that the endpoints want.
        """
        for key in [*self._present, *self._absent]:
            if key[0] == app and ("occupied" if key[2] is None else "member-added") not in kinds:
                self._present.discard(key)
                self._absent.pop(key, None)
                self._held.pop(key, None)

    def _leave(self, key: EdgeKey, held: tuple[float, HookEvent]) -> HookEvent:
        self._present.discard(key)
        self._absent[key] = None
        if len(self._absent) > MAX_ABSENT:
            self._absent.popitem(last=False)
        return held[1]


def _key(event: HookEvent) -> EdgeKey:
    return event.app, event.channel, event.user_id
