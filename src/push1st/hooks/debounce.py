"""Debounces edges: drops those of a channel that is empty for a moment, and of a member that reloads its page.

Leaving edges (`vacated`, `member-removed`) are held for `HOLD_SECONDS`. If the opposite edge arrives in this time, both are
dropped (Pusher protocol, section 9). So the edges that pass alternate, for each channel and for each member, even if the
broker reports an edge twice. A cache channel passes one `cache-missed` in `HOLD_SECONDS`.

This module is for brokers that do not debounce edges. Workers that share a broker leave it to the consumer of hook
events (`brokers/redis/events_consumer.py`).

The module is pure: it sees only hook events and the time. Channels and members may be older than this process, so the
first edge of a channel or member passes, whether it is entering or leaving.
"""

from collections import OrderedDict
from collections.abc import Container, Iterable

from push1st.messages import ENTERING, HOLD_SECONDS, HookEvent, HookEventKind

MAX_ABSENT = 10_000
"""the maximum number of channels and members that are remembered as absent, so that a second leaving edge is dropped"""

LEAVING = {leaving: entering for entering, leaving in ENTERING.items()}

EdgeKey = tuple[str, str, str | None]
"""app, channel, member"""


class Debounce:
    """Holds leaving edges. `feed` and `due` return the hook events that pass now, in order."""

    def __init__(self) -> None:
        self._present: set[EdgeKey] = set()
        """channels and members for which no leaving edge has passed since the last entering edge"""
        self._absent: OrderedDict[EdgeKey, None] = OrderedDict()
        """channels and members whose last edge was leaving"""
        self._held: OrderedDict[EdgeKey, tuple[float, HookEvent]] = OrderedDict()
        """leaving edges, each with the time at which it passes; the earliest first"""
        self._missed: OrderedDict[EdgeKey, float] = OrderedDict()
        """cache channels that have passed a `cache-missed`, each with the time until which further ones are dropped"""

    def feed(self, event: HookEvent, now: float) -> list[HookEvent]:
        """Takes a hook event; returns those that pass now. now: seconds on a clock that does not go back."""
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
        """Returns the held edges whose time is over, and removes them."""
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
        """Returns all held edges, and removes them. A later process passes them to `hold`."""
        events = [event for _, event in self._held.values()]
        self._held.clear()
        return events

    def hold(self, events: Iterable[HookEvent], now: float) -> None:
        """Holds edges that an earlier process held. Drops those of channels and members that have newer edges."""
        for event in events:
            key = _key(event)
            if key not in self._present and key not in self._absent:
                self._present.add(key)
                self._held[key] = now + HOLD_SECONDS, event

    def forget(self, app: str, kinds: Container[HookEventKind]) -> None:
        """Forgets the channels and members of an app whose edges no longer arrive, and drops their held edges.

        kinds: the hook events of the app that still arrive. If the edges arrive again later, each first edge passes.
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
