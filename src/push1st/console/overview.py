"""The overview: the figures of all workers, with the last ten minutes, and the facts about this machine's server.

Each worker reports its own figures. A worker reuses an answer for a second, so ten tabs cost as much as one. For each tab that
watches, a task sends an answer every few seconds.
"""

import asyncio
import platform
import socket
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

import msgspec

from push1st import logs
from push1st.config.model import Config, all_warnings
from push1st.console.endpoints import ConsoleContext, ConsoleEndpoint
from push1st.console.live import LiveSocket
from push1st.console.lost import KEPT_SECONDS, LatestLoss, LostNode, LostNodes
from push1st.console.nodes import NodeAbout
from push1st.console.sameness import AppsMark, OwnApps, groups
from push1st.console.samples import FIELDS, GAUGE, Samples, Series, added
from push1st.errors import Refused
from push1st.status import CertificateSummary, ReloadStatus, WorkerFigures

KIND = "overview"
LOST = "lost"
"""the kind of the request for the losses before a worker started"""
KEEP_SECONDS = 1.0
"""the seconds for which a worker keeps an answer"""
FACTS_SECONDS = 5.0
"""the seconds for which a worker keeps the facts about the server, and the bytes that slow clients have not read"""
MAX_EVERY, MIN_EVERY, EVERY = 60, 1, 2
"""the most, the fewest, and the usual seconds between two answers to a tab that watches"""
DECODED_A_TURN = 100
"""the number of replies that are decoded before other work gets its turn; with the samples, 2,000 replies take 0.1 s"""
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


class Losses(msgspec.Struct, frozen=True, array_like=True):
    """The nodes and the state of the broker that were lost in the last ten minutes, as one worker knows them.

    nodes: the nodes that disappeared without a graceful stop.
    broker_at: the time at which a worker detected the loss of the broker's state, in seconds since 1970; 0 without a loss.
    """

    nodes: dict[str, LostNode]
    broker_at: float


class OverviewReply(msgspec.Struct, frozen=True, array_like=True):
    """The reply of a worker. A tab receives the figures of each worker, and the losses and the series of all workers combined.

    figures: the figures of the worker.
    series: the samples; None if they were not requested.
    apps: the mark of the worker's apps; None from a worker of an older version.
    """

    figures: NodeOverview
    losses: Losses
    series: Series | None
    apps: AppsMark | None = None


class Facts(msgspec.Struct, frozen=True):
    """The facts about the server of this machine (`ServerStatus`)."""

    certificates: list[CertificateSummary] = []
    reload: ReloadStatus | None = None


_replies = msgspec.msgpack.Decoder(OverviewReply)
_losses = msgspec.msgpack.Decoder(Losses)
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
        self._lost = LostNodes(context.wire.nodes)
        self._apps = OwnApps(context.config, self._clock)
        context.wire.serve(KIND, self._own)
        self._broker_lost = LatestLoss()
        context.wire.serve(LOST, lambda _: msgspec.msgpack.encode(self._losses()))
        self.endpoints = (ConsoleEndpoint("GET", "overview", lambda _: self._answer(WITH_SERIES)),)

    async def open(self) -> None:
        """Requests the earlier losses from the other workers, because old workers end at a reload."""
        with suppress(Refused):
            for _, losses in (await self._context.wire.request(LOST)).decoded(_losses.decode):
                self._learn(losses)

    def _losses(self) -> Losses:
        return Losses(self._lost.found(), max(self._broker_lost.reported, self._context.node.metrics.broker_lost_at))

    def _learn(self, losses: Losses) -> None:
        self._lost.learn(losses.nodes)
        self._broker_lost.learn(losses.broker_at, self._now())

    def _now(self) -> float:
        return self._clock.wall() / 1_000_000_000

    def tick(self) -> None:
        """Takes a sample if one is due, and looks for lost nodes and for a new configuration. Called once a second."""
        now = self._now()
        if self._samples.is_due(now):
            self._samples.add(now, self._values())
        self._apps.look()
        self._look()

    def _look(self) -> None:
        wire = self._context.wire
        if not wire.peers().away:
            self._lost.look(wire.consoles(), wire.left, self._now())

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
        self._look()
        return msgspec.msgpack.encode(OverviewReply(shown, self._losses(), series, self._apps.mark()))

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
        found: list[OverviewReply] = []
        for part in replies.parts(DECODED_A_TURN):
            found += [reply for _, reply in part.decoded(_replies.decode)]
            await asyncio.sleep(0)
        facts, wire, now = await self._server_facts(), self._context.wire, self._now()
        answered = {reply.figures.id for reply in found}
        for reply in found:
            self._learn(reply.losses)
        silent = sorted(set(wire.consoles()) - answered) if replies.away else replies.missing
        series = [one.series for one in found if one.series is not None]
        return {
            "at": now,
            "here": self._context.name,
            "nodes": sorted((one.figures for one in found), key=lambda node: (node.machine, node.worker, node.id)),
            "series": await added(series, now) if data == WITH_SERIES else None,
            "missing": replies.missing,
            "silent": [self._silent(node) for node in silent],
            "lost": self._all_lost(answered),
            "broker_lost_at": self._broker_lost.at if self._now() - self._broker_lost.at < KEPT_SECONDS else None,
            "without_console": 0 if replies.away else len(wire.without_console()),
            "away": replies.away,
            "different_apps": _different_apps(found),
            "certificates": facts.certificates,
            "reload": facts.reload,
            "warnings": self._warning_count(),
        }

    def _silent(self, node: str) -> dict[str, Any]:
        """Returns a node that has not answered, with the time at which its successor began."""
        wire = self._context.wire
        about = wire.nodes.get(node)
        return _named(node, about, wire.nodes.successor(about, self._now(), [one for one in wire.consoles() if one != node]))

    def _all_lost(self, answered: Collection[str]) -> list[dict[str, Any]]:
        """Returns the lost nodes that have not answered, the latest first, each with the first time at which it was missed."""
        lost = sorted(self._lost.found().items(), key=lambda item: -item[1].at)
        return [{**_named(node, one.about, one.replaced), "at": one.at} for node, one in lost if node not in answered]

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


def _different_apps(replies: Collection[OverviewReply]) -> list[list[str]]:
    """Returns `groups` of the workers that are not draining, because a draining worker has old settings.

    The list is empty if the workers have different versions, because versions may differ in their settings.
    """
    if len({reply.figures.version for reply in replies}) > 1:
        return []
    compared = [(reply.figures, reply.apps) for reply in replies if reply.apps is not None and not reply.figures.draining]
    return groups((f"{node.machine}:{node.worker}", mark) for node, mark in compared)


def _named(node: str, about: NodeAbout | None, replaced: float) -> dict[str, Any]:
    """Returns a node with its display name, if known, and the time at which its successor started, if any."""
    return {
        "id": node,
        "machine": about and about.machine,
        "worker": about and about.worker,
        "replaced": replaced or None,
    }
