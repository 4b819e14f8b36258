"""The dispatcher of hook events: it debounces edges, and queues each event for the endpoints that want the kind of this event.

The broker calls `on_event` in one worker only, so only this worker has queues. A hook event contains all
data that its endpoints get, so the dispatcher sends no queries to the broker.
"""

import asyncio
import importlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import msgspec

from push1st import logs
from push1st.clock import Clock
from push1st.config.model import AppConfig, HooksConfig
from push1st.hooks import TRANSPORTS, Format, HookTap, HookTransport, Status, Target
from push1st.hooks.authorize import Authorizer
from push1st.hooks.debounce import Debounce
from push1st.hooks.endpoint import HookEndpoint
from push1st.hooks.formats import ENCODERS, Wanted, kinds, wanted
from push1st.hooks.letters import Dead
from push1st.hooks.operations import Operations
from push1st.hooks.queue import Delivery
from push1st.hooks.store import Saved, Store
from push1st.messages import HookEvent, HookEventKind
from push1st.metrics import Histogram

log = logs.get("push1st.hooks")


def transport_class(url: str) -> type[HookTransport]:
    """Returns the class of the transport for an endpoint's URL, from the registry."""
    module, _, attribute = TRANSPORTS[url.partition("://")[0]].partition(":")
    transport: type[HookTransport] = getattr(importlib.import_module(module), attribute)
    return transport


def open_transport(target: Target) -> HookTransport:
    """Returns an endpoint's transport. `HookDispatcher` has imported the transport's module, so no event waits for the import."""
    return transport_class(target.url)(target)  # type: ignore[call-arg]  # `HookTransport` declares no constructor


class SaveTimings(msgspec.Struct, frozen=True, kw_only=True):
    """Durations in seconds. No option changes these durations, but tests shorten them.

    load: the time between two searches for saved events; the search repeats, because the previous process may save events late.
    save: the time for which a stopping process retries to save its events, if the folder is not writable.
    retry: the time between two attempts to save events.
    """

    load: float = 10.0
    save: float = 2.0
    retry: float = 0.1


TIMINGS = SaveTimings()
LOST_SECONDS = 600
"""the seconds for which the app of lost events is remembered"""


class HookDispatcher:
    """Implements the interfaces `Hooks` and `HookContext`.

    folder: the base folder of relative paths.
    random: a function that returns a random number with a given number of bits.
    events, attempts, decisions, seconds: the counters of events, deliveries and decisions, and the duration of deliveries
    (`Metrics`).
    open_transport: the function that makes the transport of an endpoint.
    timings: the durations for loading and saving events.
    Raises OSError if the process cannot write to `config.folder`.
    """

    def __init__(
        self,
        apps: Sequence[AppConfig],
        config: HooksConfig,
        folder: str,
        clock: Clock,
        random: Callable[[int], int],
        events: Counter[str],
        attempts: Counter[str],
        decisions: Counter[str],
        seconds: Histogram,
        open_transport: Callable[[Target], HookTransport] = open_transport,
        timings: SaveTimings = TIMINGS,
    ) -> None:
        self.clock = clock
        self.random = random
        self.open_transport = open_transport
        self.events = events
        self.attempts = attempts
        self.seconds = seconds
        self._config = config
        self._timings = timings
        self._folder = folder
        self._store = Store(config.folder) if config.folder else None
        self.operations = Operations(self._store, self._of, self._removed, self._give_up)
        self._authorizer = Authorizer(apps, folder, clock, decisions, open_transport)
        self.decide = self._authorizer.decide
        self._debounce = Debounce()
        self._release_at: asyncio.TimerHandle | None = None
        self._load_at: asyncio.TimerHandle | None = None
        self._lost = "", 0.0
        """the app of the events that were lost last, and the time of the loss"""
        self._failing = False
        """whether the last attempt to load saved events failed"""
        self._endpoints: dict[str, tuple[HookEndpoint, ...]] = {}
        self._kinds: dict[str, frozenset[HookEventKind]] = {}
        self._retired: dict[HookEndpoint, asyncio.Task[None]] = {}
        """removed endpoints, each with the task that waits until the queue of the endpoint is empty"""
        for app in apps:
            self._configure(app)

    @property
    def tap(self) -> HookTap | None:
        """See `Hooks`."""
        return self._authorizer.tap

    @tap.setter
    def tap(self, tap: HookTap | None) -> None:
        self._authorizer.tap = tap

    def configure(self, app: AppConfig) -> None:
        """Applies a changed configuration of an app.

        An endpoint keeps its queue if its URL and settings have not changed; a changed secret signs from the next attempt on. A
        removed or changed endpoint gets no further events, and sends its queued events with its previous settings.
        """
        self._authorizer.configure(app)
        self._configure(app)

    def _configure(self, app: AppConfig) -> None:
        known: dict[tuple[object, ...], list[HookEndpoint]] = {}  # a list, because several endpoints may have equal settings
        for endpoint in self._endpoints.pop(app.id, ()):
            known.setdefault(_settings(endpoint.wanted), []).append(endpoint)
        before = self._kinds.pop(app.id, frozenset())
        if app.enable:
            found = []
            for one in wanted(app, self._folder):
                same = known.get(_settings(one))
                endpoint = same.pop(0) if same else HookEndpoint(one, self, self._config.events, self._config.bytes)
                endpoint.configure(one)
                found.append(endpoint)
            self._endpoints[app.id], self._kinds[app.id] = tuple(found), kinds(app)
        if before - (now := self._kinds.get(app.id, frozenset())):
            self._debounce.forget(app.id, now)
        for endpoint in chain.from_iterable(known.values()):
            self._retired[endpoint] = asyncio.get_running_loop().create_task(self._retire(endpoint))
        for url in (*(one.wanted.target.url for one in self._endpoints.get(app.id, ())), *(one.url for one in app.authorize)):
            transport_class(url)

    async def _retire(self, endpoint: HookEndpoint) -> None:
        """Closes an endpoint after its queue becomes empty."""
        await endpoint.drained()
        await endpoint.stop()
        del self._retired[endpoint]

    def _all(self) -> Iterator[HookEndpoint]:
        yield from self._retired
        for endpoints in self._endpoints.values():
            yield from endpoints

    def open(self, report: Callable[[HookEvent], None]) -> None:
        """Loads the events that other processes have saved, and repeats this periodically.

        report: a function to call with each saved edge that an earlier process held; the function passes the edge to the broker.
        """
        if self._store is None:
            return
        try:
            self._load_saved(self._store, report)
        except OSError as exc:
            if not self._failing:
                log.error("saved hook events cannot be loaded, retrying", reason=str(exc), seconds=self._timings.load)
            self._failing = True
        else:
            self._failing = False
        self._load_at = asyncio.get_running_loop().call_later(self._timings.load, self.open, report)

    def _load_saved(self, store: Store, report: Callable[[HookEvent], None]) -> None:
        """Queues saved events again. If the configuration has no endpoint for an event, the event becomes a dead letter."""
        known = {one.hook: one for one in self._all()}
        count = gone = 0
        try:
            for line in store.saved():
                count += 1
                endpoint = known.get(line.endpoint)
                if line.held is not None:
                    report(msgspec.structs.replace(line.held, phase="held"))
                elif endpoint is None:
                    gone += 1
                    self._give_up(line.app, line.endpoint, line.events, line.endpoint, line.time_ms)
                elif line.id:
                    delivery = Delivery(line.channels, [bytes(event) for event in line.events], time_ms=line.time_ms)
                    delivery.id, delivery.body = line.id, line.body.encode()
                    endpoint.queue.restore(delivery, self.clock.monotonic())
                    endpoint.wake()
                else:
                    endpoint.put(line.channels[0], bytes(line.events[0]), line.source, line.time_ms)
        finally:
            if count:
                log.info("saved hook events are loaded", lines=count, endpoints_gone=gone)

    def on_event(self, event: HookEvent) -> None:
        """Queues a hook event for the endpoints that want its kind. The broker calls this method, which never waits."""
        if event.kind not in self._kinds.get(event.app, ()) or event.channel.startswith("#"):
            return
        if event.phase in ("new", "at-once"):
            self._queue("push1st", event)  # endpoints with Push1st's format receive edges without delay (Push1st API, section 8)
        if event.phase == "settled":
            self._queue("pusher", event)
        elif event.phase == "held":
            self._debounce.hold((event,), self.clock.monotonic())
        elif event.phase == "new":
            for passed in self._debounce.feed(event, self.clock.monotonic()):
                self._queue("pusher", passed)
        if self._debounce.is_holding:
            self._release_later()

    def _release_later(self) -> None:
        if self._release_at is None:
            self._release_at = asyncio.get_running_loop().call_later(1, self._release)

    def _release(self) -> None:
        self._release_at = None
        for hook_event in self._debounce.due(self.clock.monotonic()):
            self._queue("pusher", hook_event)
        if self._debounce.is_holding:
            self._release_later()

    def _queue(self, format: Format, hook_event: HookEvent) -> None:
        """Encodes a hook event in `format` once, and queues the event for endpoints of this format that want the event."""
        event = b""
        # No single connection causes a hook event with a subscription count, so all such events share one source (see `queue`).
        source = hook_event.kind if hook_event.kind == "counted" else hook_event.socket_id
        for one in self._endpoints.get(hook_event.app, ()):
            if one.wanted.format == format and one.wants(hook_event):
                event = event or ENCODERS[format](hook_event)
                one.put(hook_event.channel, event, source)

    def add_dead_letter(self, dead: Dead) -> int:
        """See `HookContext`. Counts the events that the store rejects."""
        self._lost = dead.app, self.clock.monotonic()
        if self._store is None:
            return len(dead.events)
        unwritten = self._store.add_dead_letter(dead)
        if unwritten:
            self.events["unburied"] += unwritten
        return unwritten

    def _give_up(self, app: str, endpoint: str, events: tuple[msgspec.Raw, ...], hook: str, time_ms: int) -> None:
        """Counts events of an endpoint that was removed, and writes a dead letter."""
        self.events["endpoint-gone"] += len(events)
        at = self.clock.wall() / 1_000_000_000
        self.add_dead_letter(Dead(at, app, endpoint, "endpoint-gone", events, hook, time_ms=time_ms or int(at * 1000)))

    def _of(self, app: str) -> Sequence[HookEndpoint]:
        return self._endpoints.get(app, ())

    def _removed(self, app: str) -> Sequence[HookEndpoint]:
        return [one for one in self._retired if one.wanted.target.app == app]

    @property
    def lost_app(self) -> str:
        """The app whose events were lost last, if this was in the last ten minutes; else ""."""
        app, at = self._lost
        return app if self.clock.monotonic() - at < LOST_SECONDS else ""

    def status(self, app: str) -> list[Status]:
        """Returns the states of an app's endpoints, in the order of the app's configuration."""
        return [one.status() for one in self._endpoints.get(app, ())]

    def queued(self) -> dict[str, int]:
        """Returns the number of queued events of each app."""
        queued = {app: 0 for app, endpoints in self._endpoints.items() if endpoints}
        for one in self._all():
            app = one.wanted.target.app
            queued[app] = queued.get(app, 0) + one.queue.events
        return queued

    def oldest(self) -> dict[str, float]:
        """Returns the age of the oldest queued event of each app, in seconds; 0 if no event is queued."""
        now = self.clock.monotonic()
        ages = {app: 0.0 for app, endpoints in self._endpoints.items() if endpoints}
        for one in self._all():
            since = one.queue.oldest
            if since is not None:
                app = one.wanted.target.app
                ages[app] = max(ages.get(app, 0.0), now - since)
        return ages

    async def close(self, seconds: float, enough: asyncio.Event | None = None) -> None:
        """Delivers queued events for at most `seconds`, and then saves the remaining events.

        Saves held edges for the next process. If the configuration has no folder, delivers the held edges now. If several workers
        share a broker, the broker holds the edges, and this process has no held edges.

        enough: an asyncio event; when another task sets it, this method ends the delivery before `seconds` have passed.
        """
        for timer in (self._release_at, self._load_at, *self._retired.values()):
            if timer is not None:
                timer.cancel()
        await self.operations.close()
        held = self._debounce.held()
        if self._store is None:
            for hook_event in held:
                self._queue("pusher", hook_event)
            held = []
        endpoints = list(self._all())
        draining = [asyncio.ensure_future(one.drained()) for one in endpoints if not one.queue.idle]
        if draining:
            log.info("waiting for hook events to be sent", endpoints=len(draining), seconds_at_most=seconds)
            drained = asyncio.gather(*draining)
            future: list[asyncio.Future[Any]] = [drained] if enough is None else [drained, asyncio.ensure_future(enough.wait())]
            await asyncio.wait(future, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            for wait in future:
                wait.cancel()
            await asyncio.gather(*future, return_exceptions=True)
        await asyncio.gather(self._authorizer.close(), *(one.stop() for one in endpoints))
        if self._store is None:
            for one in endpoints:
                one.give_up()
            return
        if not await self._save(self._store, endpoints, held, enough):
            for one in endpoints:
                one.give_up()
        if lost := await self._store.close():
            log.error("dead letters are lost", letters=lost)

    async def _save(
        self, store: Store, endpoints: list[HookEndpoint], held: list[HookEvent], enough: asyncio.Event | None
    ) -> bool:
        """Saves the remaining events; returns whether they are saved. Retries a failed save, because the disk may be full."""
        time = asyncio.get_running_loop().time
        deadline = time() + self._timings.save
        while True:
            try:
                count = store.save(self._rest(endpoints, held))
            except OSError as exc:
                if time() >= deadline or (enough is not None and enough.is_set()):
                    log.error("hook events cannot be saved", reason=str(exc))
                    return False
            else:
                if count:
                    log.info("hook events are saved for the next start", lines=count)
                return True
            await asyncio.sleep(self._timings.retry)

    def _rest(self, endpoints: Iterable[HookEndpoint], held: Iterable[HookEvent]) -> Iterator[Saved]:
        # An event without an attempt gets the time of the stop, because another worker may send newer events before it.
        now_ms = self.clock.wall() // 1_000_000
        for one in endpoints:
            name, app = one.hook, one.wanted.target.app
            for delivery in one.queue.tried():
                events = tuple(map(msgspec.Raw, delivery.events))
                body, time_ms = delivery.body.decode(), delivery.time_ms
                yield Saved(name, delivery.channels, events, delivery.id, body, app=app, time_ms=time_ms)
            for channel, event, source, time_ms in one.queue.untried():
                yield Saved(name, (channel,), (msgspec.Raw(event),), source=source, app=app, time_ms=time_ms or now_ms)
        for hook_event in held:
            yield Saved(held=hook_event)


def _settings(wanted: Wanted) -> tuple[object, ...]:
    """Returns the settings of an endpoint's queue and deliveries, without the secret and the settings that only select events."""
    target = msgspec.structs.replace(wanted.target, secret="signed" if wanted.target.secret else "")
    return target, wanted.format, wanted.batch, wanted.concurrency
