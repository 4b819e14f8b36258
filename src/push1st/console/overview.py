"""The overview: the figures of all workers, with the last ten minutes, and the facts about this machine's server.

Each worker reports its own figures. A worker reuses an answer for a second, so ten tabs cost as much as one. For each tab that
watches, a task sends an answer every few seconds.
"""

import asyncio
import platform
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from push1st import logs
from push1st.config.model import Config, all_warnings
from push1st.console.endpoints import ConsoleContext, ConsoleEndpoint
from push1st.console.live import LiveSocket
from push1st.console.lost import LostNodes
from push1st.console.samples import FIELDS, GAUGE, Samples, Series, added
from push1st.console.wire import Replies
from push1st.errors import Refused
from push1st.status import CertificateSummary, ReloadStatus, WorkerFigures

KIND = "overview"
KEEP_SECONDS = 1.0
"""the seconds for which a worker keeps an answer"""
FACTS_SECONDS = 5.0
"""the seconds for which a worker keeps the facts about the server, and the bytes that slow clients have not read"""
MAX_EVERY, MIN_EVERY, EVERY = 60, 1, 2
"""the most, the fewest, and the usual seconds between two answers to a tab that watches"""
WITH_SERIES, WITHOUT = b"1", b""

log = logs.get("push1st.console")


class NodeOverview(WorkerFigures, frozen=True, kw_only=True):
    """The figures of a worker, with its machine.

    id: the name of the node in the broker.
    behind_bytes: the bytes that wait until slow clients read them.
    hook_oldest: the age in seconds of the oldest event that waits for a hook endpoint. hook_app: the app of this event.
    hook_lost_app: the app of the hook events that were lost last; "" if none were.
    """

    id: str
    machine: str
    python: str
    behind_bytes: int
    hook_oldest: float
    hook_app: str
    hook_lost_app: str = ""


class OverviewReply(msgspec.Struct, frozen=True, array_like=True):
    """The reply of a worker. A tab gets the figures of each worker, but one list of lost nodes and one series for all of them.

    figures: the figures of the worker.
    lost: the nodes that disappeared without a graceful stop, in the view of this worker (`LostNodes.found`).
    series: the samples; None if they were not requested.
    """

    figures: NodeOverview
    lost: dict[str, float]
    series: Series | None


class Facts(msgspec.Struct, frozen=True):
    """The facts about the server of this machine (`ServerStatus`)."""

    certificates: list[CertificateSummary] = []
    reload: ReloadStatus | None = None


_replies = msgspec.msgpack.Decoder(OverviewReply)
_facts = msgspec.json.Decoder(Facts)


class Overview:
    """The endpoint `overview`, and the live updates with the same name (`live.Watchable`)."""

    name = KIND

    def __init__(self, context: ConsoleContext) -> None:
        self._context = context
        self._clock = context.node.clock
        self._samples = Samples()
        self._watches: dict[LiveSocket, tuple[float, asyncio.Task[None]]] = {}
        """the sockets of the tabs that watch, each with the seconds between two answers, and the task that sends them"""
        self._answers: dict[tuple[bytes, bool], tuple[float, asyncio.Task[dict[str, Any]]]] = {}
        """the last answers, by whether they have the samples, and whether the broker was away"""
        self._facts = Facts()
        self._warnings: tuple[Config | None, int] = None, 0
        """the number of warnings, and the configuration for which they are counted"""
        self._facts_at = self._behind_at = -FACTS_SECONDS
        self._behind = 0
        self._lost = LostNodes()
        context.wire.serve(KIND, self._own)
        self.endpoints = (ConsoleEndpoint("GET", "overview", lambda _: self._answer(WITH_SERIES)),)

    def tick(self) -> None:
        """Takes a sample if one is due, and looks for lost nodes. Called once a second."""
        now = self._clock.wall() / 1_000_000_000
        if self._samples.is_due(now):
            self._samples.add(now, self._values())
        if not self._context.wire.peers().away:
            self._lost.look(self._context.wire.consoles(), self._context.wire.left, now)

    def _values(self) -> list[float]:
        figures = self._context.reports.quick()
        values: dict[str, Any] = {
            **figures.counters,
            GAUGE: sum(figures.connections.values()),
            "cpu_seconds": figures.cpu_seconds,
        }
        return [values[field] for field in FIELDS]

    async def _own(self, data: bytes) -> bytes:
        """Returns the figures of this worker. data: whether the samples are requested (`WITH_SERIES`)."""
        now = self._clock.monotonic()
        if now - self._behind_at >= FACTS_SECONDS:
            self._behind_at = now
            self._behind, _ = await self._context.edge.unsent()
        figures = await self._context.reports.figures()
        ages = self._context.node.hooks.oldest()
        hook_app = max(ages, key=ages.__getitem__, default="")
        shown = NodeOverview(
            **msgspec.structs.asdict(figures),
            id=self._context.name,
            machine=socket.gethostname(),
            python=platform.python_version(),
            behind_bytes=self._behind,
            hook_oldest=ages.get(hook_app, 0.0),
            hook_app=hook_app,
            hook_lost_app=self._context.node.hooks.lost_app,
        )
        series = self._samples.series() if data == WITH_SERIES else None
        return msgspec.msgpack.encode(OverviewReply(shown, self._lost.found(), series))

    async def _answer(self, data: bytes) -> dict[str, Any]:
        """Returns the answer of all workers; the same answer to all requests within `KEEP_SECONDS`."""
        now = self._clock.monotonic()
        kind = data, bool(self._context.wire.peers().away)
        found = self._answers.get(kind)
        if found is None or now - found[0] >= KEEP_SECONDS:
            found = self._answers[kind] = now, asyncio.create_task(self._collect(data))
        return await asyncio.shield(found[1])

    async def _collect(self, data: bytes) -> dict[str, Any]:
        replies = await self._context.wire.request(KIND, data)
        found = [reply for _, reply in replies.decoded(_replies.decode)]
        facts, lost = await self._server_facts(), self._all_lost(found)
        wire, answered = self._context.wire, {node for node, _ in replies.found}
        silent = sorted(set(wire.consoles()) - answered) if replies.away else replies.missing
        return {
            "at": self._clock.wall() / 1_000_000_000,
            "here": self._context.name,
            "nodes": sorted((one.figures for one in found), key=lambda node: (node.machine, node.worker, node.id)),
            "series": added([one.series for one in found if one.series is not None]) if data == WITH_SERIES else None,
            "missing": replies.missing,
            "silent": silent,
            "lost": lost,
            "without_console": self._without_console(replies),
            "about": wire.described([*silent, *(one["id"] for one in lost)]),
            "away": replies.away,
            "certificates": facts.certificates,
            "reload": facts.reload,
            "warnings": self._warning_count(),
        }

    def _without_console(self, replies: Replies) -> int:
        """Returns the number of living nodes that have no console."""
        wire = self._context.wire
        nodes = set(wire.peers().nodes).difference(
            wire.consoles(), wire.left, replies.missing, (node for node, _ in replies.found)
        )
        return 0 if replies.away else len(nodes)

    def _all_lost(self, replies: Sequence[OverviewReply]) -> list[dict[str, Any]]:
        """Returns the lost nodes that have not answered, the latest first, each with the first time at which it was missed."""
        missed: dict[str, float] = {}
        answered = {reply.figures.id for reply in replies}
        for reply in replies:
            for one, at in reply.lost.items():
                if one not in answered:
                    missed[one] = min(at, missed.get(one, at))
        return [{"id": one, "at": at} for one, at in sorted(missed.items(), key=lambda lost: -lost[1])]

    def _warning_count(self) -> int:
        """Returns the number of warnings that the screen of the configuration shows. They are counted once: apps can be many."""
        config = self._context.config()
        if self._warnings[0] is not config:
            self._warnings = config, len(all_warnings(config))
        return self._warnings[1]

    async def _server_facts(self) -> Facts:
        now = self._clock.monotonic()
        if now - self._facts_at >= FACTS_SECONDS and self._context.node.status is not None:
            self._facts_at = now
            if found := await self._context.node.status():
                self._facts = _facts.decode(found)
        return self._facts

    def _failure(self) -> Refused:
        return Refused(500, f"the overview failed: see the log of the worker {self._context.worker}")

    # The watch

    def watch(self, socket: LiveSocket, request: Mapping[str, Any]) -> None:
        """See `live.Watchable`. `every`: the seconds between two answers."""
        every = request.get("every", EVERY)
        if not isinstance(every, int | float) or not MIN_EVERY <= every <= MAX_EVERY:
            raise Refused(400, f"every must be a number from {MIN_EVERY} to {MAX_EVERY}")
        kept = self._watches.get(socket)
        if kept is None or kept[0] != every or kept[1].done():
            self.unwatch(socket)
            self._watches[socket] = every, asyncio.create_task(self._send(socket, every))

    def unwatch(self, socket: LiveSocket) -> None:
        """See `live.Watchable`."""
        found = self._watches.pop(socket, None)
        if found is not None:
            found[1].cancel()

    async def _send(self, socket: LiveSocket, every: float) -> None:
        """Sends answers to a tab that watches. The tab gets no further answer before it has read the earlier ones."""
        data, has_failed = WITH_SERIES, False
        while True:
            if not socket.is_behind:
                try:
                    text = msgspec.json.encode({KIND: await self._answer(data)})
                    data, has_failed = WITHOUT, False
                except Refused as exc:
                    text = msgspec.json.encode({"error": exc.text})
                except Exception:
                    if not has_failed:
                        log.exception("console overview failed")
                    text, has_failed = msgspec.json.encode({"error": self._failure().text}), True
                socket.send(text)
            await asyncio.sleep(every)
