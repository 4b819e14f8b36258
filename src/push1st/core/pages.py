"""The connections of pages on this worker, and the effects of the rules in `page.py`.

A connection reads the records of the page before its first subscription. If an earlier connection has not ended, the new
connection waits until the client of the earlier connection answers, at most `PONG_SECONDS` (`page_probes.py`):

- If the client answers, now or later, the name of the page is shared.
- Two connections that begin at the same time do not find each other in the records. So a connection reads the records again
  after its first write. If it finds another connection, it first sends a ping to its own client, which may be gone.
- If the client does not answer within `ZOMBIE_SECONDS`, its worker closes the earlier connection. The new connection deletes the
  earlier record itself, because the worker of the earlier connection may be gone.

A connection writes its own record (`page_writer.py`) when a subscription succeeded, an acknowledgement moved a position, or the
client left a channel. It writes its record again a third of `resume.seconds` after the latest write. A connection that never
subscribes writes no record, because pusher-js opens several connections at once, and drops all but one.

A session without a page does not use this module.
"""

import asyncio
from collections.abc import Callable, Collection, Container, Mapping
from typing import Protocol

from push1st.brokers import Pages
from push1st.brokers.history import Reason, ReplayRequest
from push1st.brokers.pages import PageRecord
from push1st.clock import Clock
from push1st.core.app import App, Client, Outlet
from push1st.core.controller import Controller
from push1st.core.fanout import Fanout
from push1st.core.page import PageState, SentPing, inherit
from push1st.core.page_probes import PONG_SECONDS, PageProbes, TwinSearch
from push1st.core.page_schedule import NEVER, PageSchedule, next_phase
from push1st.core.page_writer import RETRY_SECONDS, RecordWriter
from push1st.eager import spawn
from push1st.errors import Refused
from push1st.messages import Ping, Resumed, Subscribe
from push1st.metrics import Metrics
from push1st.positions import Position

ZOMBIE_SECONDS = 10
"""the seconds in which the client of an earlier connection must answer a ping; then its worker closes the connection"""
FIRST_SECONDS = 0.8
"""the seconds between a subscription that was not resumed and the server's request for an acknowledgement"""
REPLACED = "a newer connection of this page has replaced this connection"


class PageClient(Client, Protocol):
    """The properties of a session that this module uses."""

    @property
    def app(self) -> App: ...
    @property
    def outlet(self) -> Outlet: ...


class PageConnection:
    """One connection of a page, and the way in which its client resumes (`resuming.Resumption`).

    name: the name of the page, which is a secret of the client.
    address: the client's address or network, for which the broker counts pages; "" if the pages are not counted.
    """

    __slots__ = (
        "_acknowledge_at",
        "_early_pings",
        "_final",
        "_forget_at",
        "_has_sought",
        "_is_closed",
        "_is_exact",
        "_is_finished",
        "_is_over",
        "_on_closed",
        "_own_ping",
        "_probed_until",
        "_registry",
        "_search",
        "_state",
        "_waiters",
        "_writer",
        "_zombies",
        "address",
        "client",
        "due_at",
        "name",
    )

    def __init__(self, registry: "PageRegistry", name: str, address: str) -> None:
        self._registry = registry
        self.client: PageClient
        self.name = name
        self.address = address
        self._state: PageState | None = None
        """the positions of this connection; None before the records of the page are read"""
        self._writer: RecordWriter
        self._early_pings = 0
        """the number of unanswered pings that were sent before the records of the page are read"""
        self._search: TwinSearch | None = None
        self._own_ping: tuple[SentPing, asyncio.Future[bool]] | None = None
        """A ping to the connection's own client, and a future: true if the client answers, false if the connection ends first.
        None without such a ping."""
        self.due_at = 0
        self._acknowledge_at = NEVER
        self._probed_until = NEVER
        """the time until which the client must answer a ping, because another connection exists; `NEVER` without such a ping"""
        self._zombies: Collection[str] = ()
        """the earlier connections that have not ended, and whose clients have not answered"""
        self._forget_at = NEVER
        """the time at which the records of `_zombies` are deleted; `NEVER` if there are none"""
        self._is_over = self._is_finished = self._is_closed = self._is_exact = self._has_sought = False
        self._final: tuple[int, Mapping[str, Position]] | None = None
        """the code of the server's close frame, and the positions of all frames before it; None without a close frame"""
        self._waiters: Collection[tuple[str, int]] = ()
        """the requests of other workers that wait for the end of this connection"""
        self._on_closed: Callable[[], object] | None = None

    def begin(self, client: PageClient) -> None:
        """Stores the session of the connection."""
        self.client = client
        self._registry.add(client.id, self)

    @property
    def _now(self) -> float:
        return self._registry.monotonic()

    # Resuming

    @property
    def excluded(self) -> Container[str]:
        return (*(() if self._state is None else self._state.sockets), self.client.id)

    async def prepare(self) -> None:
        if self._state is not None or not self.client.app.config.resume.seconds:
            return
        registry, app = self._registry, self.client.app
        records = await registry.port.recall(app.config.id, self.name)
        live = {one: record for one, record in records.items() if not record.is_closed}
        if live and not any(record.is_shared for record in records.values()) and not self._is_over:
            await self._seek_twin(live)
            records = await registry.port.recall(app.config.id, self.name)
        if self._is_over:
            return
        inherited = inherit(records)
        state = self._state = PageState(inherited, self._now)
        for _ in range(self._early_pings):  # their pongs must not acknowledge later pings
            state.pinged(self._now)
        self._writer = RecordWriter(self, registry, inherited.closed)
        if self._search is not None and self._search.is_twin:  # the client may have answered during the second read
            state.share()
        elif not state.is_shared:
            # `_seek_again` finds the connections that wrote their first records during the search.
            self._zombies = tuple(one for one, record in records.items() if one in live and not record.is_closed)
            self._forget_at = self._now + ZOMBIE_SECONDS if self._zombies else NEVER

    async def _seek_twin(self, live: Mapping[str, PageRecord]) -> bool:
        """Returns whether the client of an earlier connection is alive (`TwinSearch.run`). Raises Refused(503)."""
        search = self._search
        if search is None:
            search = self._search = TwinSearch(self._registry.probes, lambda: self.share(notify=True))
        await search.run(self.client.app, live)
        if self._is_over:
            self._registry.probes.forget(search)
        return search.is_twin

    async def _seek_again(self) -> None:
        """Searches for connections that wrote their first records after this connection had read the records.

        If there are any, this connection first sends a ping to its own client. The client may have lost this connection, and
        begun the other connection; then only the other connection is alive.
        """
        assert self._state is not None
        try:
            if not await self._unknown_records() or self._is_over:
                return
            answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            self._own_ping = self._state.pinged(self._now), answer
            self.client.outlet.send(Ping())
            self._probed_until = min(self._probed_until, self._now + ZOMBIE_SECONDS)
            self._schedule()
            live = await self._unknown_records() if await answer else {}
            if not live or self._state.is_shared or self._is_over:
                return
            is_twin = await self._seek_twin(live)
            state = self._state
            if is_twin:
                self.share(notify=True)
            elif not state.is_shared and not self._is_over:
                self._zombies = (*self._zombies, *live)
                self._forget_at = self._now + ZOMBIE_SECONDS
                self._schedule()
        except Refused:  # the search is repeated after the next write
            self._has_sought = False
            self._writer.write_at = self._now + RETRY_SECONDS
            self._schedule()

    async def _unknown_records(self) -> dict[str, PageRecord]:
        """Returns the records of live connections that this connection does not know yet. Raises Refused(503)."""
        records = await self._registry.port.recall(self.client.app.config.id, self.name)
        known = {self.client.id, *self._zombies}
        return {one: record for one, record in records.items() if not record.is_closed and one not in known}

    def since(self, command: Subscribe) -> Position | None:
        return None if self._state is None else self._state.since(command.channel, self._now)

    def reason(self, channel: str, reason: Reason | None) -> Reason | None:
        return reason if self._state is None else self._state.reason(channel, reason, self._now)

    def subscribed(self, channel: str, request: ReplayRequest | None, reason: Reason | None) -> bool:
        state = self._state
        if state is None or reason == "no-history":
            return False
        since = None if request is None or reason is not None else request.since
        repeats = state.subscribed(channel, since)
        if since is None:
            self._acknowledge_at = min(self._acknowledge_at, self._now + FIRST_SECONDS)
        elif self._acknowledge_at == NEVER:
            self._acknowledge_at = next_phase(self.name, self.client.app.config.resume.acknowledge, self._now)
        self._writer.soon()
        self._schedule()
        return repeats

    def unsubscribed(self, channel: str) -> None:
        if self._state is not None:
            self._state.unsubscribed(channel)
            self._writer.changed()

    def share(self, *, notify: bool) -> None:
        """Stores that two live connections use the page's name.

        notify: whether the subscriptions of this connection may have had other answers than `shared`.
        """
        state = self._state
        if state is None or state.is_shared or self._is_over:
            return
        state.share()
        self._zombies, self._forget_at = (), NEVER
        self._writer.changed()
        if not notify:
            return
        channels = self.client.app.tenant.channels
        for name in state.positions:
            channel = channels.get(name)
            if channel is not None and channel.epoch:
                self._registry.metrics.resumes["shared"] += 1
                self.client.outlet.send(Resumed(name, "shared", position=Position(channel.epoch, channel.offset)))

    # Pings

    def pinged(self) -> None:
        """Stores that the server sends a `pusher:ping` that requests no acknowledgement."""
        if self._state is None:
            self._early_pings += 1
        else:
            self._state.pinged(self._now)

    def ponged(self) -> None:
        """Handles a `pusher:pong`."""
        state = self._state
        if state is None:
            self._early_pings = max(0, self._early_pings - 1)
            return
        ping = state.ponged()
        if ping is None:
            return
        if self._own_ping is not None and self._own_ping[0] is ping:
            self._probed_until = NEVER
            _answer(self._own_ping[1], True)
            self._own_ping = None
        if ping.positions:
            self._registry.metrics.acknowledgements += 1
            self._writer.changed()
        if ping.probes:
            self._probed_until = NEVER
            for by, number in ping.probes:
                self._registry.probes.answer(self.client.app, by, number, is_alive=True)
            # If this connection is new too, it may have resumed from the positions of its twin.
            self.share(notify=self._now - ping.sent > PONG_SECONDS or state.may_have_resumed(self._now))

    def probe(self, by: str, number: int) -> None:
        """Handles the request of a newer connection's worker (`page_probes.Probed`)."""
        state = self._state
        if self._is_over or state is None:
            self._waiters = (*self._waiters, (by, number))
            return
        now = self._now
        if state.probed(now, by, number):
            self.client.outlet.send(Ping())
        if self._probed_until == NEVER:
            self._probed_until = now + ZOMBIE_SECONDS
            self._schedule()

    # Times

    def check(self) -> None:
        """Makes all checks that are due now (`page_schedule.Checked`)."""
        state, now, writer = self._state, self._now, self._writer
        if state is None or self._is_over:
            return
        if now >= self._probed_until:
            self._registry.metrics.cut_offs["silent"] += 1
            self.client.disconnect(4201, REPLACED)
            return
        if now >= self._forget_at:
            self._forget_at = NEVER if writer.is_stored else now + RETRY_SECONDS
            if writer.is_stored:
                spawn(self._forget())
        if state.expire(now) or now >= writer.write_at:
            writer.changed()
        if now >= self._acknowledge_at and not state.is_shared:
            if state.is_waiting and None in state.positions.values():
                self._acknowledge_at = now + FIRST_SECONDS  # so that a subscription without a position soon has one
            else:
                self._acknowledge_at = next_phase(self.name, self.client.app.config.resume.acknowledge, now)
            moved = None if state.is_waiting or state.is_mute else state.moved(self.client.app.tenant.channels)
            if moved:
                state.pinged(now, moved)
                # The connection's pending frames are written before this frame, so the client has them when it answers.
                self.client.outlet.send(Ping())
        self._schedule()

    async def _forget(self) -> None:
        """Deletes the records of zombies, unless a record shows that a client has answered; the result may have been lost."""
        port, app = self._registry.port, self.client.app.config.id
        try:
            records = await port.recall(app, self.name)
            if any(record.is_shared for record in records.values()):
                self.share(notify=True)
            else:
                await port.forget(app, self.name, self._zombies)
        except Refused:
            self._forget_at = self._now + RETRY_SECONDS
            self._schedule()

    def _schedule(self) -> None:
        """Schedules the next call of `check`."""
        state = self._state
        if state is None or self._is_over:
            return
        acknowledge_at = NEVER if state.is_shared else self._acknowledge_at
        at = min(acknowledge_at, self._writer.write_at, self._forget_at, self._probed_until, state.expires)
        self._registry.schedule.watch(self, at)

    # The record

    async def record(self, *, closed: bool) -> PageRecord:
        assert self._state is not None
        probes, app = self._registry.probes, self.client.app
        topic = probes.topic(app) or await probes.own_topic(app)
        written = self._registry.wall() // 1_000_000
        return self._state.record(self._now, written, topic, closed=closed, exact=self._is_exact)

    def on_written(self, *, is_rejected: bool) -> None:
        if is_rejected and not self._is_over:
            self._registry.metrics.refusals["page"] += 1
        if self._writer.is_stored and not self._has_sought and not self._is_over:
            self._has_sought = True
            spawn(self._seek_again())
        if not self._is_over:
            self._registry.schedule.watch(self, self._writer.write_at)

    def closing(self, code: int) -> None:
        """Stores the present positions, because the server sends a close frame after all frames that it has sent so far.

        The transport must call `finish` when it has received the client's answer, or when the connection has ended. After an
        internal error (code 1011), some frames may be missing, so the client's answer proves nothing.
        """
        if self._state is not None and code != 1011:
            self._final = code, self._state.moved(self.client.app.tenant.channels)

    def ended(self) -> None:
        """Handles the end of the session."""
        self._is_over = True
        self._registry.end(self)
        if self._search is not None:
            self._registry.probes.forget(self._search)
        if self._own_ping is not None:
            _answer(self._own_ping[1], False)
            self._own_ping = None
        if self._final is None:
            self.finish()

    def finish(self, on_closed: Callable[[], object] | None = None, echo: int = 0) -> None:
        """Stores that the connection has ended.

        echo: the code with which the client has answered the server's close frame. If the code is the server's code, the client
        has received all frames before the close frame. 0 if the client has not answered.
        on_closed: a function that is called when the broker has confirmed the last record, or is away.
        """
        if on_closed is not None and self._is_closed:
            on_closed()
        elif on_closed is not None:
            self._on_closed = on_closed
        if self._is_finished:
            return
        self._is_finished = True
        if self._state is None:
            self.on_closed()
            return
        if self._final is not None and echo == self._final[0]:
            self._state.acknowledge(self._final[1])
            self._is_exact = True
        self._writer.close()

    def on_closed(self) -> None:
        registry = self._registry
        self._is_closed = True
        self._search = None
        registry.remove(self.client.id)
        for by, number in (*self._waiters, *(() if self._state is None else self._state.unanswered())):
            registry.probes.answer(self.client.app, by, number, is_alive=False)
        if self._on_closed is not None:
            self._on_closed()


def _answer(future: "asyncio.Future[bool]", is_there: bool) -> None:
    """Stores whether the connection's own client has answered, unless the task that waits for the answer was cancelled."""
    if not future.done():
        future.set_result(is_there)


class PageRegistry:
    """The connections of pages on one worker.

    new_id: a function that returns a random id, for the topic on which this worker receives requests about its pages.
    """

    def __init__(self, fanout: Fanout, controller: Controller, clock: Clock, metrics: Metrics, new_id: Callable[[], str]) -> None:
        self.call_soon = fanout.call_soon
        self.monotonic = clock.monotonic
        self.wall = clock.wall
        self.metrics = metrics
        self.port: Pages
        self._pages: dict[str, PageConnection] = {}
        """socket id → connection; a connection is removed when its last record is written"""
        self.probes = PageProbes(controller, new_id, self._pages.get)
        self.schedule = PageSchedule(fanout, clock.monotonic)

    def open(self, port: Pages) -> None:
        self.port = port

    def connection(self, name: str, address: str) -> PageConnection:
        """Returns a new connection of a page. `name`, `address`: see `PageConnection`."""
        return PageConnection(self, name, address)

    def add(self, socket_id: str, page: PageConnection) -> None:
        self._pages[socket_id] = page
        self.metrics.pages += 1

    def end(self, page: PageConnection) -> None:
        """Cancels the checks of a connection whose session has ended."""
        self.metrics.pages -= 1
        self.schedule.forget(page)

    def remove(self, socket_id: str) -> None:
        """Removes a connection whose last record is written."""
        self._pages.pop(socket_id, None)

    def tick(self) -> None:
        """Makes the checks that are due. Called once a second."""
        self.schedule.tick()
