"""Edges in, settled hook events out: a channel that is empty for a moment, or a member that reloads its page, is not news.

`vacated` and `member-removed` are held back `HOLD_SECONDS`; when the opposite edge comes in that time both are dropped
(Pusher protocol, section 9). So what comes out alternates strictly, per channel and per member, even if an edge comes in
twice. Of a cache channel that is missed by many, one hook event is let through in `HOLD_SECONDS`.

For brokers that do not debounce edges. A broker that several workers share does it itself (`brokers/redis/events_consumer.py`).

Pure: it knows hook events and the time it is given, nothing of who is where. A channel or member it has not heard of may have
been there before this process was, so the first edge of it is believed, whichever it is.
"""

from collections import OrderedDict
from collections.abc import Iterable

from push1st.messages import ENTERING, HOLD_SECONDS, HookEvent

REMEMBERED = 10_000
"""channels and members of which it is known that they are gone, so that an edge that comes twice is told once"""

LEAVING = {leaving: entering for entering, leaving in ENTERING.items()}

Key = tuple[str, str, str | None]
"""app, channel, member"""


class Debounce:
    """`feed` and `due` return what is to be told now, in order."""

    def __init__(self) -> None:
        self._there: set[Key] = set()
        """of which it was last told that they are there"""
        self._gone: OrderedDict[Key, None] = OrderedDict()
        self._held: OrderedDict[Key, tuple[float, HookEvent]] = OrderedDict()
        """leaving edges with the time they are told at, the earliest first"""
        self._missed: OrderedDict[Key, float] = OrderedDict()

    def feed(self, event: HookEvent, now: float) -> list[HookEvent]:
        """now: seconds on a clock that does not go back."""
        settled = self.due(now) if self._held or self._missed else []
        if event.kind in ENTERING:
            key = _key(event)
            if self._held.pop(key, None) is None and key not in self._there:
                self._there.add(key)
                self._gone.pop(key, None)
                settled.append(event)
        elif event.kind in LEAVING:
            key = _key(event)
            if key not in self._held and key not in self._gone:
                self._there.add(key)
                self._held[key] = now + HOLD_SECONDS, event
        elif event.kind == "cache-missed":
            key = event.app, event.channel, None
            if key not in self._missed:
                self._missed[key] = now + HOLD_SECONDS
                settled.append(event)
        else:
            settled.append(event)
        return settled

    def due(self, now: float) -> list[HookEvent]:
        """The edges whose time has come."""
        settled = []
        held, missed = self._held, self._missed
        while held and next(iter(held.values()))[0] <= now:
            settled.append(self._leave(*held.popitem(last=False)))
        while missed and next(iter(missed.values())) <= now:
            missed.popitem(last=False)
        return settled

    @property
    def is_holding(self) -> bool:
        return bool(self._held)

    def held(self) -> list[HookEvent]:
        """The edges that are held back; taken out, to be kept for `hold`."""
        events = [event for _, event in self._held.values()]
        self._held.clear()
        return events

    def hold(self, events: Iterable[HookEvent], now: float) -> None:
        """Holds back edges that an earlier process had held back, except those of channels and members with newer edges."""
        for event in events:
            key = _key(event)
            if key not in self._there and key not in self._gone:
                self._there.add(key)
                self._held[key] = now + HOLD_SECONDS, event

    def _leave(self, key: Key, held: tuple[float, HookEvent]) -> HookEvent:
        self._there.discard(key)
        self._gone[key] = None
        if len(self._gone) > REMEMBERED:
            self._gone.popitem(last=False)
        return held[1]


def _key(event: HookEvent) -> Key:
    return event.app, event.channel, event.user_id
