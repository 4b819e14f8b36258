"""Where hook events come in: from here each goes, debounced, to the endpoints of its app that want it.

It is the one end of `on_event`: whichever worker's broker calls that has the queues. It asks nobody who is where.
"""

import asyncio
import hashlib
import importlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from push1st import logs
from push1st.config.model import AppConfig, HooksConfig
from push1st.hooks import TRANSPORTS, Format, HookTransport, Status, Target
from push1st.hooks.authorize import Authorizer
from push1st.hooks.debounce import Debounce
from push1st.hooks.endpoint import Clock, Endpoint
from push1st.hooks.formats import ENCODERS, Wanted, kinds, wanted
from push1st.hooks.queue import Delivery
from push1st.hooks.store import Saved, Store
from push1st.messages import HookEvent

TAKE_UP_SECONDS = 10.0
"""between two searches for saved events: the process that this one replaces saves its events after this one has started"""
SAVE_SECONDS = 2.0
"""for which saving is retried at a stop, if the folder is not writable"""
SAVE_AGAIN_SECONDS = 0.1

log = logs.get("push1st.hooks")


def way_to(url: str) -> type[HookTransport]:
    """The class for an endpoint, from the registry."""
    module, _, attribute = TRANSPORTS[url.partition("://")[0]].partition(":")
    way: type[HookTransport] = getattr(importlib.import_module(module), attribute)
    return way


def reach(target: Target) -> HookTransport:
    """The way to an endpoint. It has been loaded before: the first event does not wait for that."""
    return way_to(target.url)(target)  # type: ignore[call-arg]  # the port does not say how it is made


class HookDispatcher:
    """folder: where relative paths start. events, attempts, asked: counters (`Metrics`). Raises OSError for `config.folder`."""

    def __init__(
        self,
        apps: Sequence[AppConfig],
        config: HooksConfig,
        folder: str,
        clock: Clock,
        random: Callable[[int], int],
        events: Counter[str],
        attempts: Counter[str],
        asked: Counter[str],
        reach: Callable[[Target], HookTransport] = reach,
    ) -> None:
        self.clock = clock
        self.random = random
        self.reach = reach
        self.events = events
        self.attempts = attempts
        self._config = config
        self._folder = folder
        self._store = Store(config.folder) if config.folder else None
        self._authority = Authorizer(apps, folder, clock, asked, reach)
        self.ask = self._authority.ask
        self._debounce = Debounce()
        self._settled_at: asyncio.TimerHandle | None = None
        self._look_at: asyncio.TimerHandle | None = None
        self._failing = False
        """whether the last attempt to load saved events failed"""
        self._endpoints = {app.id: self._of(wanted(app, folder)) for app in apps if app.enable}
        self._kinds = {app.id: kinds(app) for app in apps if app.enable}
        for app in apps:
            for url in (*(one.wanted.target.url for one in self._endpoints.get(app.id, ())), *(one.url for one in app.authorize)):
                way_to(url)

    def _of(self, wanted: Iterable[Wanted]) -> tuple[Endpoint, ...]:
        return tuple(Endpoint(one, self, self._config.events, self._config.bytes) for one in wanted)

    def _all(self) -> Iterator[Endpoint]:
        for endpoints in self._endpoints.values():
            yield from endpoints

    def open(self, report: Callable[[HookEvent], None]) -> None:
        """Loads the events that other processes have saved, now and every `TAKE_UP_SECONDS`.

        report: passes held edges among them to the broker.
        """
        if self._store is None:
            return
        try:
            self._take_up(self._store, report)
        except OSError as exc:
            if not self._failing:
                log.error("saved hook events cannot be loaded, retrying", reason=str(exc), seconds=TAKE_UP_SECONDS)
            self._failing = True
        else:
            self._failing = False
        self._look_at = asyncio.get_running_loop().call_later(TAKE_UP_SECONDS, self.open, report)

    def _take_up(self, store: Store, report: Callable[[HookEvent], None]) -> None:
        known = {fingerprint(one.wanted): one for one in self._all()}
        count = gone = 0
        try:
            for line in store.saved():
                count += 1
                endpoint = known.get(line.endpoint)
                if line.held is not None:
                    report(msgspec.structs.replace(line.held, phase="held"))
                elif endpoint is None:
                    gone += 1
                    self.events["endpoint-gone"] += len(line.events)
                    self.bury("", line.endpoint, "endpoint-gone", [bytes(event) for event in line.events])
                elif line.id:
                    delivery = Delivery(line.channels, [bytes(event) for event in line.events])
                    delivery.id, delivery.body = line.id, line.body.encode()
                    endpoint.queue.restore(delivery, self.clock.monotonic())
                    endpoint.wake()
                else:
                    endpoint.put(line.channels[0], bytes(line.events[0]), line.source)
        finally:
            if count:
                log.info("saved hook events are loaded", lines=count, endpoints_gone=gone)

    def on_event(self, event: HookEvent) -> None:
        """What the broker calls with each hook event. Never waits."""
        if event.kind not in self._kinds.get(event.app, ()) or event.channel.startswith("#"):
            return
        if event.phase in ("new", "at-once"):
            self._tell("push1st", event)  # this format gets edges at once (Push1st API, section 8)
        if event.phase == "settled":
            self._tell("pusher", event)
        elif event.phase == "held":
            self._debounce.hold((event,), self.clock.monotonic())
        elif event.phase == "new":
            for settled in self._debounce.feed(event, self.clock.monotonic()):
                self._tell("pusher", settled)
        if self._debounce.is_holding:
            self._settle_later()

    def _settle_later(self) -> None:
        if self._settled_at is None:
            self._settled_at = asyncio.get_running_loop().call_later(1, self._settle)

    def _settle(self) -> None:
        self._settled_at = None
        for hook_event in self._debounce.due(self.clock.monotonic()):
            self._tell("pusher", hook_event)
        if self._debounce.is_holding:
            self._settle_later()

    def _tell(self, format: Format, hook_event: HookEvent) -> None:
        event = b""
        # No single connection causes a count, so all counts together are one source.
        source = hook_event.kind if hook_event.kind == "counted" else hook_event.socket_id
        for one in self._endpoints.get(hook_event.app, ()):
            if one.wanted.format == format and one.wants(hook_event):
                event = event or ENCODERS[format](hook_event)
                one.put(hook_event.channel, event, source)

    def bury(self, app: str, endpoint: str, reason: str, events: Sequence[bytes]) -> None:
        if self._store is not None and not self._store.bury(app, endpoint, reason, events):
            self.events["unburied"] += len(events)

    def status(self, app: str) -> list[Status]:
        """The endpoints of an app, in the order of its configuration."""
        return [one.status() for one in self._endpoints.get(app, ())]

    def queued(self) -> dict[str, int]:
        """How many events wait, by app."""
        return {app: sum(one.queue.events for one in those) for app, those in self._endpoints.items() if those}

    async def close(self, seconds: float, enough: asyncio.Event | None = None) -> None:
        """Sends what it can for so long, or until it is told that it is enough; saves the rest.

        Saves held edges for the next start, or sends them now if there is no folder. If other workers continue, the broker holds
        the edges, and this process holds none.
        """
        for timer in (self._settled_at, self._look_at):
            if timer is not None:
                timer.cancel()
        held = self._debounce.held()
        if self._store is None:
            for hook_event in held:
                self._tell("pusher", hook_event)
            held = []
        endpoints = list(self._all())
        draining = [asyncio.ensure_future(one.drained()) for one in endpoints if not one.queue.idle]
        if draining:
            log.info("waiting for hook events to be sent", endpoints=len(draining), seconds_at_most=seconds)
            drained = asyncio.gather(*draining)
            waits: list[asyncio.Future[Any]] = [drained] if enough is None else [drained, asyncio.ensure_future(enough.wait())]
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        await asyncio.gather(self._authority.close(), *(one.stop() for one in endpoints))
        if self._store is None:
            for one in endpoints:
                one.give_up()
            return
        if not await self._save(self._store, endpoints, held, enough):
            for one in endpoints:
                one.give_up()
        if lost := await self._store.close():
            log.error("dead letters are lost", letters=lost)

    async def _save(self, store: Store, endpoints: list[Endpoint], held: list[HookEvent], enough: asyncio.Event | None) -> bool:
        """Saves the remaining events; returns whether it could. Retries for a while, since a folder may be full for a moment."""
        time = asyncio.get_running_loop().time
        deadline = time() + SAVE_SECONDS
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
            await asyncio.sleep(SAVE_AGAIN_SECONDS)

    def _rest(self, endpoints: Iterable[Endpoint], held: Iterable[HookEvent]) -> Iterator[Saved]:
        for one in endpoints:
            name = fingerprint(one.wanted)
            for delivery in one.queue.tried():
                yield Saved(
                    name, delivery.channels, tuple(map(msgspec.Raw, delivery.events)), delivery.id, delivery.body.decode()
                )
            for channel, event, source in one.queue.untried():
                yield Saved(name, (channel,), (msgspec.Raw(event),), source=source)
        for hook_event in held:
            yield Saved(held=hook_event)


def fingerprint(wanted: Wanted) -> str:
    """By which an endpoint is known again after a start, without its URL."""
    target = wanted.target
    return hashlib.sha256(f"{target.app}\n{target.url}\n{wanted.format}".encode()).hexdigest()[:32]
