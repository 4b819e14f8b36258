"""Subscription counts: the number of a channel's subscribers, sent to these subscribers (Pusher protocol, section 3).

`Counts.tick` runs once a second. If the worker has not sent a channel's count since the start of the last tick, it sends the
count immediately after a change. Otherwise, the next tick sends one count for all changes. So a worker sends few counts even if
thousands of clients subscribe. For a channel of more than `LARGE_CHANNEL` subscribers, all workers together send one count per
`COUNT_SECONDS`.
"""

from asyncio import sleep
from collections.abc import Callable

from push1st.brokers import Broker, HookEvents, Roster
from push1st.channels import kind_of
from push1st.clock import Clock
from push1st.core.app import App
from push1st.eager import resolve
from push1st.errors import Refused
from push1st.messages import HookEvent, subscription_count

LARGE_CHANNEL = 100
"""above this number of subscribers, a channel gets at most one count per `COUNT_SECONDS` in place of one each second"""
COUNT_SECONDS = 5
"""the seconds between two counts of a large channel; other channels get a count every second (Pusher protocol, section 3)"""
MAX_COUNTED = 1000
"""after this number of deliveries between two ticks, further counts wait for the next tick. A tick pauses each time
after it has made this number of deliveries, so that other tasks of the event loop run."""


class Counts:
    """Sends subscription counts. `stamp`: a function that returns the id and the time of a new message."""

    __slots__ = ("_broker", "_clock", "_counted", "_deliveries", "_due", "_hook_events", "_is_ticking", "_roster", "_stamp")

    def __init__(self, clock: Clock, stamp: Callable[[], tuple[int, int]]) -> None:
        self._clock = clock
        self._stamp = stamp
        self._broker: Broker
        self._roster: Roster
        self._hook_events: HookEvents
        self._due: dict[tuple[str, str], App] = {}
        """the channels whose count the next tick sends, each with its app"""
        self._counted: set[tuple[str, str]] = set()
        """the channels whose subscribers have received a count since the last tick"""
        self._deliveries = 0
        """the number of subscribers to which counts were sent since the last tick"""
        self._is_ticking = False

    def open(self, broker: Broker, roster: Roster, hook_events: HookEvents) -> None:
        self._broker, self._roster, self._hook_events = broker, roster, hook_events

    async def send(self, app: App, name: str) -> None:
        """Sends a channel's changed count now, or in the next tick. Called only if the app enables `subscription-count`."""
        if name.startswith("#") or kind_of(name).presence:
            return
        key = app.config.id, name
        if key in self._counted or self._deliveries >= MAX_COUNTED:
            self._due[key] = app
        else:
            self._deliveries += await self._send(app, key)

    def later(self, app: App, name: str) -> None:
        """Queues the count of a channel for the next tick. Called only if the app enables `subscription-count`."""
        self._due[app.config.id, name] = app

    async def _send(self, app: App, key: tuple[str, str]) -> int:
        """Sends a channel's count, or queues it for the next tick; returns the number of subscribers that receive the count."""
        self._counted.add(key)
        try:
            occupancy = await self._roster.channel(*key)
            if occupancy is not None and occupancy.subscriptions > LARGE_CHANNEL:
                if not await self._roster.claim(*key, COUNT_SECONDS):
                    self._due[key] = app
                    return 0
                occupancy = await self._roster.channel(*key)
            self._due.pop(key, None)
            if occupancy is None:
                return 0
            sent = occupancy.subscriptions
            await resolve(self._broker.publish(subscription_count(*key, sent, *self._stamp())))
            if "counted" in app.hook_kinds:
                self._hook_events.report(HookEvent("counted", *key, self._clock.wall(), count=sent))
            occupancy = await self._roster.channel(*key)
            if occupancy is not None and occupancy.subscriptions != sent:  # clients may get `sent` after a newer count
                self._due[key] = app
            return sent
        except Refused:
            self._due[key] = app
            return 0

    async def tick(self) -> None:
        """Sends the queued counts. Called once a second.

        Returns at once if the previous call still waits for the broker.
        """
        if self._is_ticking:
            return
        self._is_ticking = True
        try:
            self._counted.clear()
            self._deliveries = sent = 0
            for key, app in list(self._due.items()):
                if not app.config.subscription_count:  # a new configuration has disabled the counts
                    self._due.pop(key, None)
                    continue
                sent += 1 + await self._send(app, key)
                if sent >= MAX_COUNTED:  # lets other tasks of the event loop run
                    sent = 0
                    await sleep(0)
        finally:
            self._is_ticking = False
