"""Requests between workers: whether the client of an earlier connection of a page is alive.

A connection whose record is not closed may be a *zombie*, whose client is gone, or a *twin*: another live connection with the
same page name. The worker of a new connection sends a `PageProbe` to the worker of the earlier connection, which sends a
`pusher:ping` to its client. When the client answers, or when the earlier connection has ended, its worker sends a `ProbeResult`.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from push1st.brokers.pages import PageRecord
from push1st.core.app import App
from push1st.core.controller import Controller, TopicHandler
from push1st.errors import Refused

PONG_SECONDS = 1
"""the seconds for which a new connection waits for the answers of the clients of earlier connections"""
PATIENCE_SECONDS = 5
"""the seconds for which a request is repeated while this worker may not publish"""
RETRY_SECONDS = 0.25
GONE, PINGED = b"gone", b"pinged"
"""the replies to a `PageProbe`: the worker does not know the connection; the worker will send a `ProbeResult`"""


class PageProbe(msgspec.Struct, frozen=True, array_like=True):
    """A request to the worker of an earlier connection.

    by, number: the topic of the worker that sends the request, and the number of the request.
    """

    socket_id: str
    by: str
    number: int


class ProbeResult(msgspec.Struct, frozen=True, array_like=True):
    """The answer to a `PageProbe`. is_alive: whether the client has answered; false if the earlier connection has ended."""

    number: int
    is_alive: bool


_decode_probe = msgspec.msgpack.Decoder(PageProbe).decode
_decode_result = msgspec.msgpack.Decoder(ProbeResult).decode
_encode = msgspec.msgpack.encode


class Probed(Protocol):
    def probe(self, by: str, number: int) -> None:
        """Sends a ping to the client, and the result to the worker with the topic `by`."""


class PageProbes:
    """The requests that this worker sends and receives.

    new_id: a function that returns a random id, for the topic on which this worker receives requests and results.
    find: a function that returns the connection of a page with this socket id; None if the connection is gone.
    """

    __slots__ = ("_apps", "_controller", "_find", "_last_number", "_new_id", "_searches", "_topic")

    def __init__(self, controller: Controller, new_id: Callable[[], str], find: Callable[[str], Probed | None]) -> None:
        self._controller = controller
        self._new_id = new_id
        self._topic = ""
        self._find = find
        self._apps: set[str] = set()
        """the ids of the apps in which this worker is subscribed to its topic"""
        self._searches: dict[int, TwinSearch] = {}
        self._last_number = 0

    def topic(self, app: App) -> str:
        """Returns the topic of this worker; "" if the worker is not subscribed to the topic yet."""
        return self._topic if app.config.id in self._apps else ""

    async def own_topic(self, app: App) -> str:
        """Subscribes to the topic of this worker, and returns the topic. Raises Refused(503)."""
        if not self._topic:
            self._topic = f"#page-at-{self._new_id()}"
        if app.config.id not in self._apps:
            await self._controller.handle_topic(app, self._topic, TopicHandler(self._on_probe, self._on_result))
            self._apps.add(app.config.id)
        return self._topic

    def _on_probe(self, data: bytes) -> bytes:
        probe = _decode_probe(data)
        page = self._find(probe.socket_id)
        if page is None:
            return GONE
        page.probe(probe.by, probe.number)
        return PINGED

    def _on_result(self, data: bytes) -> None:
        result = _decode_result(data)
        search = self._searches.pop(result.number, None)
        if search is not None:
            search.on_result(result.number, result.is_alive)

    def answer(self, app: App, by: str, number: int, *, is_alive: bool) -> None:
        """Sends the result of a request. by, number: see `PageProbe`."""
        self._controller.send_to_topic(app, by, _encode(ProbeResult(number, is_alive)), lambda: None)

    async def request(self, app: App, search: "TwinSearch", socket_id: str, worker: str) -> int:
        """Sends a request to the topic `worker`. Returns the number of the request; 0 if no result will arrive."""
        topic = await self.own_topic(app)
        self._last_number += 1
        number = self._last_number
        self._searches[number] = search
        search.numbers.append(number)
        data = _encode(PageProbe(socket_id, topic, number))
        deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
        while True:
            try:
                replies = await self._controller.request(app, worker, data)
            except Refused:  # this worker may not publish for some seconds after it has reconnected to the broker
                if asyncio.get_running_loop().time() >= deadline:
                    raise
                await asyncio.sleep(RETRY_SECONDS)
                continue
            # A worker that hangs sends no reply in time, and may still send a result. So `_searches` keeps the number.
            return number if PINGED in replies and number in self._searches else 0

    def forget(self, search: "TwinSearch") -> None:
        """Drops the results that arrive later."""
        for number in search.numbers:
            self._searches.pop(number, None)


class TwinSearch:
    """The requests of one new connection.

    on_late: a function that is called if a client answers after `run` has returned.
    """

    __slots__ = ("_done", "_on_late", "_probes", "_waiting", "is_twin", "numbers")

    def __init__(self, probes: PageProbes, on_late: Callable[[], None]) -> None:
        self._probes = probes
        self._on_late = on_late
        self._waiting: set[int] = set()
        self._done: asyncio.Future[None] | None = None
        self.numbers: list[int] = []
        """the numbers of the requests"""
        self.is_twin = False
        """whether the client of an earlier connection is alive"""

    async def run(self, app: App, live: Mapping[str, PageRecord]) -> None:
        """Sends the requests, and waits until all results have arrived, or a client has answered, for at most `PONG_SECONDS`.

        Raises Refused(503) if the requests cannot be sent.

        live: the records of the earlier connections that have not ended.
        """
        loop = asyncio.get_running_loop()
        done = self._done = loop.create_future()
        timer = None
        try:
            requests = (self._probes.request(app, self, socket_id, record.worker) for socket_id, record in live.items())
            self._waiting.update(filter(None, await asyncio.gather(*requests)))
            timer = loop.call_later(PONG_SECONDS, self._end_wait)
            if self.is_twin or not self._waiting:
                self._end_wait()
            await done
        finally:
            if timer is not None:
                timer.cancel()
            self._done = None

    def _end_wait(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def on_result(self, number: int, is_alive: bool) -> None:
        self._waiting.discard(number)
        if is_alive:
            self.is_twin = True
            if self._done is None:
                self._on_late()
        if self.is_twin or not self._waiting:
            self._end_wait()
