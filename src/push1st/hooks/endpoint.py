"""One endpoint: what it wants is queued, sent, tried again, given up. It delays nobody but itself.

It has no task and no timer while it has nothing to send. What it logs is bounded: the first failure of a row, and what
is lost at most once in `LOG_SECONDS`, with how much.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from push1st import logs
from push1st.hooks import HookTransport, NotDelivered, Reach, Status, shown
from push1st.hooks.formats import Wanted, body
from push1st.hooks.queue import Delivery, Queue
from push1st.messages import HookEvent

LOG_SECONDS = 10.0
JITTER = 0.1
"""the part by which a wait is shorter at most, so that those who failed together do not come back together"""

log = logs.get("push1st.hooks")


class Clock(Protocol):
    def monotonic(self) -> float: ...

    def wall(self) -> int: ...


class HookContext(Protocol):
    """What endpoints share."""

    @property
    def clock(self) -> Clock: ...
    @property
    def random(self) -> Callable[[int], int]: ...
    @property
    def reach(self) -> Reach: ...
    @property
    def events(self) -> Counter[str]: ...
    @property
    def attempts(self) -> Counter[str]: ...

    def bury(self, app: str, endpoint: str, reason: str, events: Sequence[bytes]) -> None:
        """Keeps what is lost, where that is configured."""


class Endpoint:
    """most_events, most_bytes: that may wait."""

    def __init__(self, wanted: Wanted, around: HookContext, most_events: int, most_bytes: int) -> None:
        self.wanted = wanted
        self.name = shown(wanted.target.url)
        self.queue = Queue(wanted.concurrency, wanted.batch, most_events, most_bytes)
        self._around = around
        self._way: HookTransport | None = None
        self._tasks: dict[asyncio.Task[None], Delivery] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._scheduled = False
        self._stopped = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._sent = 0
        self._failed = 0
        self._failing = False
        self._last_error: str | None = None
        self._last_error_at: int | None = None
        self._lost: Counter[str] = Counter()
        self._said_lost_at = -LOG_SECONDS

    def wants(self, hook_event: HookEvent) -> bool:
        return hook_event.kind in self.wanted.kinds and bool(self.wanted.filter(hook_event.channel))

    def put(self, channel: str, event: bytes, source: str = "") -> None:
        """Queues an event. Counts the events that gave way to it as lost; counts the event itself as lost if it is not queued.

        source: the connection that caused the event.
        """
        is_queued = self.queue.put(channel, event, source)
        if self.queue.gave_way:
            lost, self.queue.gave_way = self.queue.gave_way, []
            self._lose("overflowed", lost)
        if not is_queued:
            self._lose("overflowed", [event])
            return
        self._around.events["queued"] += 1
        self.wake()

    def wake(self) -> None:
        """Sends what can be sent, at the end of the loop's turn."""
        if not self._scheduled and not self._stopped:
            self._scheduled = True
            self._idle.clear()
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._scheduled = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._stopped:
            return
        loop = asyncio.get_running_loop()
        now = self._around.clock.monotonic()
        while (delivery := self.queue.next(now)) is not None:
            if not delivery.id:  # before its task runs: a stop may come first, and keeps what has an id as a whole
                delivery.id = f"{self._around.random(128):032x}"
                delivery.body = body(self.wanted.format, delivery.events, self._around.clock.wall())
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
        around, queue, wanted = self._around, self.queue, self.wanted
        try:
            if self._way is None:
                self._way = around.reach(wanted.target)
            await self._way.tell(delivery.id, delivery.body)
        except NotDelivered as failure:
            self._fail(delivery, failure.kind, failure.text)
        except Exception as defect:  # of ours: the delivery must not be lost by it
            log.exception("internal error", where="hooks", endpoint=self.name)
            self._fail(delivery, "internal-error", type(defect).__name__)
        else:
            queue.done(delivery)
            around.attempts["delivered"] += 1
            around.events["sent"] += delivery.count
            self._sent += delivery.count
            if self._failing:
                self._failing = False
                log.info("hook endpoint takes events again", app=wanted.target.app, endpoint=self.name)

    def _fail(self, delivery: Delivery, kind: str, text: str) -> None:
        around = self._around
        around.attempts[kind] += 1
        self._last_error, self._last_error_at = text, around.clock.wall() // 1_000_000_000
        if not self._failing:
            self._failing = True
            app = self.wanted.target.app
            log.warning("hook endpoint does not take events", app=app, endpoint=self.name, reason=text, delivery=delivery.id)
        jitter = 1 - JITTER * around.random(16) / 65536
        if not self.queue.failed(delivery, around.clock.monotonic(), jitter):
            self._lose("expired", delivery.events)

    def _lose(self, reason: str, events: Sequence[bytes]) -> None:
        around = self._around
        app = self.wanted.target.app
        around.events[reason] += len(events)
        self._failed += len(events)
        self._lost[reason] += len(events)
        around.bury(app, self.name, reason, events)
        now = around.clock.monotonic()
        if now - self._said_lost_at >= LOG_SECONDS:
            self._said_lost_at = now
            for what, count in self._lost.items():
                log.error(
                    "hook events are lost", app=app, endpoint=self.name, reason=what, events=count, last_error=self._last_error
                )
            self._lost.clear()

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

    async def drained(self) -> None:
        """Returns when nothing is queued any more."""
        while not self.queue.idle:
            self._idle.clear()
            await self._idle.wait()

    async def stop(self) -> None:
        """Breaks off what is under way; it stays in the queue."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._way is not None:
            await self._way.close()

    def give_up(self) -> None:
        """Counts what is left as lost: the server stops, and there is nowhere to keep it."""
        left = [event for one in self.queue.tried() for event in one.events]
        left += (event for _, event, _ in self.queue.untried())
        if left:
            self._said_lost_at = -LOG_SECONDS
            self._lose("stopped", left)
