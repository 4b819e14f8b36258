"""An endpoint of a hook: it queues and delivers events, retries failed deliveries, and drops events that fail for too long.

A slow endpoint delays only its own events. An endpoint without queued events has no task, and after `LOG_SECONDS` no timer. An
endpoint writes few log lines: one for the first of several failures in a row, and one for the next success. It logs the numbers
of lost events and of dead letters at most once in `LOG_SECONDS`.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Protocol

import msgspec

from push1st import logs
from push1st.clock import Clock
from push1st.eager import spawn
from push1st.hooks import Attempt, HookDetails, HookTap, HookTransport, NotDelivered, OpenTransport, Status, shown
from push1st.hooks.formats import Wanted, body, fingerprint
from push1st.hooks.letters import Dead
from push1st.hooks.queue import OVERHEAD, Delivery, Queue
from push1st.messages import HookEvent
from push1st.metrics import Histogram

LOG_SECONDS = 10.0
JITTER = 0.1
"""the maximum fraction by which a wait is randomly shortened; so deliveries that fail together are not retried together"""

DEAD, LOST = "hook events became dead letters", "hook events are lost"

log = logs.get("push1st.hooks")


class HookContext(Protocol):
    """The objects that all endpoints share: clock, random numbers, counters and the store of dead letters."""

    @property
    def clock(self) -> Clock: ...
    @property
    def random(self) -> Callable[[int], int]: ...
    @property
    def open_transport(self) -> OpenTransport: ...
    @property
    def events(self) -> Counter[str]: ...
    @property
    def attempts(self) -> Counter[str]: ...
    @property
    def seconds(self) -> Histogram: ...
    @property
    def tap(self) -> HookTap | None: ...

    def add_dead_letter(self, dead: Dead) -> int:
        """Writes events that the server gives up to the folder of dead letters.

        Returns the number of events that are not written: all of them, if the configuration has no folder.
        """


class HookEndpoint:
    """Delivers the events of one endpoint. `max_events` and `max_bytes` are the limits of the endpoint's queue."""

    def __init__(self, wanted: Wanted, context: HookContext, max_events: int, max_bytes: int) -> None:
        self.wanted = wanted
        self.name = shown(wanted.target.url)
        self.hook = fingerprint(wanted)
        self.queue = Queue(wanted.concurrency, wanted.batch, max_events, max_bytes)
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._context = context
        self._transport: HookTransport | None = None
        self._replaced: dict[HookTransport, asyncio.TimerHandle] = {}
        """transports with an earlier secret, each with the timer that closes the transport after its last deliveries"""
        self._tasks: dict[asyncio.Task[None], Delivery] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._scheduled = False
        self._stopped = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._sent = 0
        self._failed = 0
        self._tried_at = 0.0
        self._last_error: str | None = None
        self._last_error_at: int | None = None
        self._last_status: int | None = None
        self._lost: Counter[tuple[str, bool]] = Counter()
        """the events that were given up since the last log line, by the reason, and whether they are dead letters"""
        self._log_at: asyncio.TimerHandle | None = None

    def wants(self, hook_event: HookEvent) -> bool:
        return hook_event.kind in self.wanted.kinds and bool(self.wanted.filter(hook_event.channel))

    def put(self, channel: str, event: bytes, source: str = "", time_ms: int = 0) -> None:
        """Queues an event. If the queue is full, the queue drops other events or the new event. A dropped event is lost.

        source: the connection that caused the event; "" if no connection caused it.
        time_ms: the original time of the event (see `letters.Dead`), in milliseconds since 1970; 0 for a new event.
        """
        now = self._context.clock.monotonic()
        is_queued = self.queue.put(channel, event, source, now, time_ms)
        if self.queue.dropped:
            dropped, self.queue.dropped = self.queue.dropped[::-1], []  # the oldest first
            wall_ms = self._context.clock.wall() // 1_000_000
            self._lose_all("overflowed", ((one, ms or wall_ms - int((now - at) * 1000)) for one, ms, at in dropped))
        if not is_queued:
            self._lose("overflowed", [event], time_ms)
            return
        self._context.events["queued"] += 1
        self.wake()

    def has_room(self, count: int, size: int) -> bool:
        """Returns whether half of the queue still has room for `count` events with `size` bytes, or no event is queued."""
        queue, size = self.queue, size + OVERHEAD * count
        return queue.idle or (2 * (queue.events + count) <= self._max_events and 2 * (queue.bytes + size) <= self._max_bytes)

    def wake(self) -> None:
        """Begins all deliveries that the queue allows, in the next turn of the event loop."""
        if not self._scheduled and not self._stopped:
            self._scheduled = True
            self._idle.clear()
            asyncio.get_running_loop().call_soon(self._pump)

    def try_now(self) -> None:
        """Retries a waiting delivery immediately; if the endpoint accepts deliveries, all others follow immediately."""
        self.queue.retries.try_now(self._context.clock.monotonic(), self.queue.failing)
        self.wake()

    def _pump(self) -> None:
        self._scheduled = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._stopped:
            return
        loop = asyncio.get_running_loop()
        now = self._context.clock.monotonic()
        while (delivery := self.queue.next(now)) is not None:
            if not delivery.id:  # every attempt sends the same id and body, even after a restart of the server
                delivery.id = f"{self._context.random(128):032x}"
                delivery.time_ms = delivery.time_ms or self._context.clock.wall() // 1_000_000
                delivery.body = body(self.wanted.format, delivery.events, delivery.time_ms)
            task = loop.create_task(self._deliver(delivery))
            self._tasks[task] = delivery
            task.add_done_callback(self._finished)
        at = self.queue.when()
        if at is not None:
            self._timer = loop.call_later(max(0.001, at - now), self.wake)
        elif self.queue.idle:
            self._idle.set()

    def _finished(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        self.wake()

    async def _deliver(self, delivery: Delivery) -> None:
        context, queue, wanted = self._context, self.queue, self.wanted
        started, error = context.clock.monotonic(), ""
        try:
            if self._transport is None:
                self._transport = context.open_transport(wanted.target)
            try:
                await self._transport.deliver(delivery.id, delivery.body)
            finally:
                context.seconds.observe(context.clock.monotonic() - started)
        except NotDelivered as exc:
            error = exc.text
            self._fail(delivery, exc.kind, error, exc.status)
        except Exception as exc:  # the delivery must not be lost because of a defect of the server
            log.exception("internal error", where="hooks", endpoint=self.name)
            error = type(exc).__name__
            self._fail(delivery, "internal-error", error)
        else:
            was_failing = queue.failing
            queue.done(delivery)
            self._tried_at = context.clock.wall() / 1_000_000_000
            context.attempts["delivered"] += 1
            context.events["sent"] += delivery.count
            self._sent += delivery.count
            if was_failing:
                log.info("hook endpoint accepts events again", app=wanted.target.app, endpoint=self.name)
        if context.tap is not None:
            seconds, number = context.clock.monotonic() - started, delivery.attempts + (not error)
            app, channels, size = wanted.target.app, delivery.channels, len(delivery.body)
            context.tap.attempted(Attempt(app, self.name, channels, delivery.count, number, size, seconds, error))

    def _fail(self, delivery: Delivery, kind: str, text: str, status: int | None = None) -> None:
        context = self._context
        self._last_status = status
        context.attempts[kind] += 1
        self._tried_at = context.clock.wall() / 1_000_000_000
        self._last_error, self._last_error_at = text, int(self._tried_at)
        if not self.queue.failing:
            app = self.wanted.target.app
            log.warning("hook endpoint accepts no events", app=app, endpoint=self.name, reason=text, delivery=delivery.id)
        jitter = 1 - JITTER * context.random(16) / 65536
        if not self.queue.failed(delivery, context.clock.monotonic(), jitter):
            self._lose("expired", delivery.events, delivery.time_ms)

    def _lose_all(self, reason: str, events: Iterable[tuple[bytes, int]]) -> None:
        """Gives up events, each with its `time_ms`."""
        for time_ms, group in groupby(events, key=itemgetter(1)):
            self._lose(reason, [event for event, _ in group], time_ms)

    def _lose(self, reason: str, events: Sequence[bytes], time_ms: int) -> None:
        """Counts and logs events that the server gives up, and writes dead letters with these events.

        time_ms: the original time of the events; 0 for new events that the server has not tried to deliver.
        """
        context = self._context
        context.events[reason] += len(events)
        self._failed += len(events)
        error = (self._last_error or "") if self.queue.failing else ""
        at, app, raw = context.clock.wall() / 1_000_000_000, self.wanted.target.app, tuple(map(msgspec.Raw, events))
        dead = Dead(at, app, self.name, reason, raw, self.hook, error, time_ms or int(at * 1000))
        unwritten = context.add_dead_letter(dead)
        self._lost[reason, True] += len(events) - unwritten
        self._lost[reason, False] += unwritten
        if self._log_at is None and not self._stopped:
            self._log_lost()

    def _log_lost(self) -> None:
        """Logs the numbers of events that were given up. Schedules the next such log line after `LOG_SECONDS`."""
        self._log_at = None
        if not self._lost:
            return
        for (reason, is_written), count in (+self._lost).items():
            write, text = (log.warning, DEAD) if is_written else (log.error, LOST)
            write(text, app=self.wanted.target.app, endpoint=self.name, reason=reason, events=count, last_error=self._last_error)
        self._lost.clear()
        if not self._stopped:
            self._log_at = asyncio.get_running_loop().call_later(LOG_SECONDS, self._log_lost)

    def status(self) -> Status:
        return Status(
            endpoint=self.name,
            format=self.wanted.format,
            queued=self.queue.events,
            sent=self._sent,
            failed=self._failed,
            retrying=self.queue.retrying,
            last_error=self._last_error,
            last_error_at=self._last_error_at,
        )

    def details(self) -> HookDetails:
        now, oldest, retry = self._context.clock.monotonic(), self.queue.oldest, self.queue.next_retry
        return HookDetails(
            self.hook,
            self.status(),
            None if oldest is None else max(0.0, now - oldest),
            None if retry is None else max(0.0, retry - now),
            self._last_status,
            failing=self.queue.failing,
            tried_at=self._tried_at,
        )

    def configure(self, wanted: Wanted) -> None:
        """Applies changed settings. If the app's secret has changed, the next attempt is signed with the new secret."""
        if self._transport is not None and wanted.target != self.wanted.target:
            later = asyncio.get_running_loop().call_later
            self._replaced[self._transport] = later(wanted.target.timeout, self._close_replaced, self._transport)
            self._transport = None
        self.wanted = wanted

    def _close_replaced(self, transport: HookTransport) -> None:
        del self._replaced[transport]
        spawn(transport.close())

    async def drained(self) -> None:
        """Returns when the queue is empty."""
        while not self.queue.idle:
            self._idle.clear()
            await self._idle.wait()

    async def stop(self) -> None:
        """Cancels the current deliveries and closes the transport. The events of the cancelled deliveries stay in the queue."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        if self._log_at is not None:
            self._log_at.cancel()
            self._log_lost()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for timer in self._replaced.values():
            timer.cancel()
        for transport in (*self._replaced, *([self._transport] if self._transport is not None else [])):
            await transport.close()

    def give_up(self) -> None:
        """Counts the queued events as lost. A stopping server calls this method if it cannot save the events."""
        for delivery in self.queue.tried():
            self._lose("stopped", delivery.events, delivery.time_ms)
        self._lose_all("stopped", ((event, time_ms) for _, event, _, time_ms in self.queue.untried()))
        self._log_lost()
