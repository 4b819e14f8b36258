"""The process above several workers: it holds the sockets, starts workers, and puts another in the place of one that ends.

It serves nobody itself and knows nothing of clients, so there is little that could go wrong in it. Each worker has a
slot, whose sockets outlive it: what waits in them is accepted by the next. On Linux each slot has a socket of its own
for every TCP address, and the kernel spreads connections over them (SO_REUSEPORT); elsewhere, and for Unix sockets, all
share one. A reload fills one slot after another: the new worker listens before the old one stops, on the same socket.

Its children die with it: by the kernel's hand on Linux, elsewhere because their end of a socket pair ends.
"""

import asyncio
import contextlib
import itertools
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from push1st import logs
from push1st.config.model import Config, Listen, Ssl
from push1st.errors import ConfigError
from push1st.metrics import SUPERVISOR, Family
from push1st.process import engine
from push1st.process.children import Backoff, Process, Processes, interpreter_options
from push1st.process.control import Alive, Ask, ControlConnection, ControlReply, Failed, Ready, Retire, StartWorker, Workers, pack
from push1st.process.engine import Engine
from push1st.process.rundir import Reloads, RunDir
from push1st.process.sockets import (
    BACKLOG,
    BALANCED,
    GRACE,
    ROLES,
    BoundSocket,
    Role,
    addresses,
    again,
    bind,
    close,
    wait_until_free,
    with_ports,
)

MAX_WORKERS = 1024
START_SECONDS = 60
"""for a worker to be ready"""
BEAT_SECONDS = 3
MAX_BEATS = 4
"""how often a worker is asked whether it is alive, and how many times it may not answer: then it is killed, which is within
15 seconds, when the others have just taken its clients for gone (`brokers/redis/shard.py`)"""
GATHER_SECONDS = 1
"""for workers to say what they have counted, or why they cannot start"""
LAST_SECONDS = 15
"""for a worker to end, beyond its drain; the second stop leaves it a third of that"""
Load = Callable[[], Config]
"""Reads the configuration anew. Raises ConfigError."""
Started = Callable[[Config, int], None]
"""Gets the configuration as it runs, and how many connections may be open."""
Place = tuple[Role, Listen]

log = logs.get("push1st.supervisor")


def wanted(config: Config) -> int:
    """How many workers the configuration means; `auto` is one a core this process may use."""
    return cores() if config.server.workers == "auto" else config.server.workers


def cores() -> int:
    """CPUs this process may use: by its affinity, and by the quotas of its container or service (cgroup v2), rounded up."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(quota(Path("/"), count), MAX_WORKERS))


def quota(root: Path, count: int) -> int:
    """As many of `count` CPUs as the control groups below `root` let this process use."""
    for folder in _cgroups(root):
        with contextlib.suppress(OSError, ValueError):  # no such file, or `max`: no quota
            most, period = map(int, (folder / "cpu.max").read_text().split())
            count = min(count, math.ceil(most / period))
    return count


def _cgroups(root: Path) -> Iterator[Path]:
    """The folders of this process's control group and those above it, each of which may have a quota."""
    top = root / "sys/fs/cgroup"
    group = top
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::/") and ".." not in line:
                group = top / line[4:]
    while group != top:
        yield group
        group = group.parent
    yield top


def run(load: Load, config: Config, file: str | None, started: Started) -> None:
    """Runs several workers until told to stop. Raises ConfigError when they cannot start.

    load: reads the configuration of `file` (None: the demo) again, for a reload.
    """
    wait_until_free(config, lambda why: log.warning("waiting for the server that has the address to stop", why=why))
    directory = RunDir(file)

    async def main() -> None:
        await Supervisor(load, directory).run(config, started)

    try:
        asyncio.run(main())
    finally:
        directory.close()


class WorkerProcess:
    """A worker's process, and the line to it. on_engine: whether the worker uses the embedded engine."""

    def __init__(self, number: int, process: Process, line: ControlConnection, on_engine: bool) -> None:
        self.on_engine = on_engine
        self.number = number
        self.process = process
        self.line = line
        self.ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.node = ""
        """the worker's name in the broker; "" until it is ready"""
        self.asked: dict[int, asyncio.Future[ControlReply]] = {}
        self.problem = ""
        """why it cannot start"""
        self.silent = asyncio.Event()
        """set when it has said all"""
        self.beats = 0
        """questions whether it is alive that it has not answered yet"""


class Slot:
    """A place for a worker."""

    def __init__(self) -> None:
        self.doors: dict[Place, list[BoundSocket]] = {}
        self.worker: WorkerProcess | None = None
        self.problem = ""
        """why the last worker that was to come here did not"""
        self.config: Config
        self.changing = asyncio.Lock()
        self.keeper: asyncio.Task[None] | None = None


class Supervisor:
    """load: as in `run`. directory: also for the engine's socket and certificates."""

    def __init__(self, load: Load, directory: RunDir) -> None:
        self._load = load
        self._directory = directory
        self._folder = directory.path
        self._doors: dict[Place, list[BoundSocket]] = {}
        """what slots share, or make their own sockets from"""
        self._slots: list[Slot] = []
        self._drain = 0
        self._certificate: tuple[str, str] | None = None
        self._processes = Processes()
        self._workers: set[WorkerProcess] = set()
        self._engine: Engine | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._ids = itertools.count()
        self._stop = asyncio.Event()
        self._now = asyncio.Event()
        self._reload = asyncio.Event()
        self._reloading: asyncio.Task[None] | None = None
        self._restarts = 0

    # From start to stop

    async def run(self, config: Config, started: Started) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.stop)
        loop.add_signal_handler(signal.SIGINT, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._hung_up())
        try:
            await self._start(config)
            if not self._stop.is_set():
                connections = sum(slot.worker.ready.result() for slot in self._slots if slot.worker is not None)
                started(with_ports(config, _all(self._doors)), connections)
                self._reloading = self._spawn(self._reloads())
                await self._stop.wait()
        finally:
            await self._end()

    def stop(self) -> None:
        """Begins a graceful stop; the second call ends it at once.

        By another signal: a second one that is like the first is none while that has not been taken yet.
        """
        for worker in self._workers:
            if self._stop.is_set():
                worker.process.send(signal.SIGINT)
            elif not worker.ready.done():
                worker.process.send(signal.SIGTERM)
        if self._stop.is_set():
            self._now.set()
        self._stop.set()

    def _hung_up(self) -> Callable[[], None]:
        """SIGHUP is a reload, unless it says that the terminal is gone."""
        had_one = sys.stdin.isatty()

        def hung_up() -> None:
            if had_one and not sys.stdin.isatty():
                self.stop()
            else:
                self._reload.set()

        return hung_up

    async def _start(self, config: Config) -> None:
        self._drain = config.server.drain
        self._doors = self._bound(config)
        if _needs_engine(config):
            await self._start_engine(config)
        first, *others = (Slot() for _ in range(wanted(config)))
        # The first alone, so that what is wrong with all of them is said once. When it listens the others' sockets do too:
        # clients that have waited for the server to come back must not all become those of one worker.
        for some in ([first], others):
            for slot in others if some is others else ():
                slot.doors = self._doors_of(slot, config)
                for door in _all(slot.doors):
                    door.socket.listen(BACKLOG)
            if not all(await asyncio.gather(*(self._open(slot, config) for slot in some))) and not self._stop.is_set():
                raise ConfigError("a worker did not start, so none runs")

    async def _end(self) -> None:
        """Ends workers gracefully, then the engine. The sockets close when workers have had their grace to be not ready."""
        for task in (self._reloading, *(slot.keeper for slot in self._slots)):
            if task is not None:
                task.cancel()
        for worker in self._workers:
            worker.process.send(signal.SIGTERM)
        ends = [worker.process.ended for worker in self._workers]
        now = asyncio.ensure_future(self._now.wait())
        if ends:
            all_ended = asyncio.gather(*ends)
            await asyncio.wait((all_ended, now), timeout=self._drain * GRACE, return_when=asyncio.FIRST_COMPLETED)
            for slot in self._slots:
                self._close(_all(slot.doors))
            close(_all(self._doors))  # before clients leave, so that a new server can listen on the addresses
            self._doors = {}
            await asyncio.wait((all_ended, now), timeout=self._drain + LAST_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        for worker in list(self._workers):
            if not await worker.process.end_within(LAST_SECONDS / 3 if self._now.is_set() else 0):
                log.error("worker killed, because it did not end", worker=worker.number)
        now.cancel()
        close(_all(self._doors))
        await self._stop_engine()

    # Workers

    async def _open(self, slot: Slot, config: Config) -> bool:
        """Begins with a slot; returns whether it has a worker that works."""
        self._slots.append(slot)
        done = await self._fill(slot, config)
        if done and not self._stop.is_set():
            slot.keeper = self._spawn(self._keep(slot))
        return done

    async def _keep(self, slot: Slot) -> None:
        """Puts another worker in the place of one that ended, again and again."""
        backoff = Backoff()
        while (worker := slot.worker) is not None:
            await asyncio.wait((worker.process.ended,))
            lived = time.monotonic() - worker.process.born
            while slot.worker is worker:
                wait = backoff.after(lived)
                lived = 0
                self._restarts += 1
                log.error("worker ended", worker=worker.number, how=worker.process.how, again_in=wait)
                if wait:  # meanwhile new connections are for the others; what waits for this one is lost
                    async with slot.changing:  # a reload may be giving them to another worker just now
                        if slot.worker is worker:
                            self._close(_all(slot.doors))
                            slot.doors = {}
                await asyncio.sleep(wait)
                try:
                    await self._fill(slot, None, worker)
                except (ConfigError, OSError) as exc:  # such as no memory, or no descriptors, for one more
                    log.error("worker cannot be started", reason=str(exc))

    async def _fill(
        self, slot: Slot, config: Config | None, ended: WorkerProcess | None = None, ready: Callable[[], None] | None = None
    ) -> bool:
        """Starts a worker in the place of another, which retires when the new one listens; returns whether one works.

        config: of the new worker; None: the slot's configuration, and no worker starts if another one has replaced `ended`.
        ready: called when the new worker listens.
        """
        async with slot.changing:
            old = slot.worker
            if config is None:
                if old is not ended:
                    return True
                config = slot.config
            doors = self._doors_of(slot, config)
            worker = await self._begin(config, _all(doors))
            await asyncio.wait((worker.ready, worker.process.ended), timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not worker.ready.done():
                worker.process.send(signal.SIGKILL)
                await asyncio.wait((worker.process.ended,))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(worker.silent.wait(), GATHER_SECONDS)
                log.error("worker did not start", worker=worker.number, how=worker.process.how)
                slot.problem = worker.problem or f"worker {worker.number} did not start: {worker.process.how}"
                self._close(door for place, those in doors.items() if place not in slot.doors for door in those)
                return False
            left = [door for place, those in slot.doors.items() if place not in doors for door in those]
            slot.worker, slot.config, slot.doors = worker, config, doors
            log.info("worker ready", worker=worker.number, pid=worker.process.pid)
        if ready is not None:
            ready()
        await self._retire(old)
        self._close(left)
        return True

    async def _retire(self, worker: WorkerProcess | None) -> None:
        """Has a worker end whose place is taken, or is no more."""
        if worker is not None and not worker.process.ended.done():
            worker.line.send(Retire())
            if not await worker.process.end_within(self._drain + LAST_SECONDS):
                log.error("worker killed, because it did not end", worker=worker.number)
            self._workers.discard(worker)

    async def _begin(self, config: Config, doors: Sequence[BoundSocket]) -> WorkerProcess:
        ours, theirs = socket.socketpair()
        with theirs:
            inherited = [theirs.fileno(), *(door.socket.fileno() for door in doors)]
            command = [sys.executable, *interpreter_options(), "-m", "push1st.process.worker", str(theirs.fileno())]
            process = self._processes.start(command, inherited)
        line = await ControlConnection.on(ours)
        taken = {worker.number for worker in self._workers}
        number = next(number for number in itertools.count() if number not in taken)
        worker = WorkerProcess(number, process, line, _needs_engine(config))
        self._workers.add(worker)
        order = StartWorker(
            number,
            pack(self._as_run(with_ports(config, doors))),
            [(door.role, str(door.address), door.socket.fileno()) for door in doors],
            str(self._engine.path) if self._engine and worker.on_engine else "",
            [one.node for one in self._on_engine()],
        )
        worker.line.send(order)
        self._spawn(self._listen(worker))
        self._spawn(self._watch(worker))
        return worker

    def _as_run(self, config: Config) -> Config:
        """The configuration as workers need it: with the engine's address, and one certificate for all."""
        if _needs_engine(config) and self._engine is not None:
            config = msgspec.structs.replace(config, broker=f"unix://{quote(str(self._engine.path))}")

        def certified(ssl: Ssl) -> Ssl:
            if not ssl.enable or ssl.cert:
                return ssl
            if self._certificate is None:
                from push1st.process.tls import NOTE, self_signed  # here, because few need it, and it is large

                self._certificate = self_signed(self._folder)
                log.warning(NOTE)
            return Ssl(True, *self._certificate)

        server = msgspec.structs.replace(config.server, ssl=certified(config.server.ssl))
        return msgspec.structs.replace(
            config, server=server, api=msgspec.structs.replace(config.api, ssl=certified(config.api.ssl))
        )

    async def _listen(self, worker: WorkerProcess) -> None:
        while (word := await worker.line.receive()) is not None:
            worker.beats = 0
            match word:
                case Ready(connections, node):
                    worker.node = node
                    worker.ready.set_result(connections)
                    self._notify_workers()
                case Failed(reason):
                    worker.problem = reason
                case Ask(id, app):
                    self._spawn(self._gather(worker, id, app))
                case ControlReply(id) if id in worker.asked:
                    worker.asked.pop(id).set_result(word)
        worker.silent.set()
        await worker.line.close()
        await worker.process.end_within(LAST_SECONDS)
        self._workers.discard(worker)

    async def _watch(self, worker: WorkerProcess) -> None:
        """Kills a worker that hangs. What counts are questions, not time, which also passes while the machine stands still."""
        await asyncio.wait((worker.ready, worker.process.ended), return_when=asyncio.FIRST_COMPLETED)  # has its own deadline
        while not worker.process.ended.done():
            if worker.beats >= MAX_BEATS:
                log.error("worker hangs", worker=worker.number)
                worker.process.send(signal.SIGKILL)
            worker.beats += 1
            worker.line.send(Alive())
            await asyncio.wait((worker.process.ended,), timeout=BEAT_SECONDS)
        self._notify_workers()

    def _on_engine(self) -> list[WorkerProcess]:
        """Returns the living workers on the embedded engine that may have clients."""
        return [one for one in self._workers if one.on_engine and one.ready.done() and not one.process.ended.done()]

    def _notify_workers(self) -> None:
        """Sends these workers the names of all of them. They connect to the engine at once, and wait only for each other."""
        there = self._on_engine()
        nodes = [worker.node for worker in there]
        for worker in there:
            worker.line.send(Workers(nodes))

    async def _gather(self, asking: WorkerProcess, id: int, app: str | None) -> None:
        """Tells a worker what the others have counted, or how an app's hooks do there."""
        answers = []
        for worker in self._workers:
            if worker is not asking and worker.ready.done():
                question = next(self._ids)
                answer = worker.asked[question] = asyncio.get_running_loop().create_future()
                worker.line.send(Ask(question, app))
                answers.append(answer)
        done = (await asyncio.wait(answers, timeout=GATHER_SECONDS))[0] if answers else ()
        packed = [snapshot for answer in done for snapshot in answer.result().packed]
        if app is None:
            packed.append((SUPERVISOR, self._snapshot()))
        asking.line.send(ControlReply(id, packed))

    def _snapshot(self) -> bytes:
        working = sum(worker.ready.done() for worker in self._workers)
        figures = (
            ("push1st_workers", "", "gauge", "workers that serve", working),
            ("push1st_worker_restarts", "_total", "counter", "workers that ended by themselves", self._restarts),
            (
                "push1st_engine_restarts",
                "_total",
                "counter",
                "embedded engines that ended by themselves",
                self._engine.restarts if self._engine else 0,
            ),
        )
        return msgspec.msgpack.encode(
            [Family(name, text, type, [(name + end, {}, float(value))]) for name, end, type, text, value in figures]
        )

    # Reloads

    async def _reloads(self) -> None:
        last = Reloads()
        while True:
            await self._reload.wait()
            self._reload.clear()
            last = msgspec.structs.replace(last, begun=last.begun + 1)
            self._note(last)
            problems: tuple[str, ...] = ()

            def accepted() -> None:
                nonlocal last
                last = msgspec.structs.replace(last, accepted=last.begun)
                self._note(last)

            try:
                problems = await self._replace_all(accepted)
            except (ConfigError, OSError) as exc:
                problems = tuple(str(exc).splitlines())
                for problem in problems:
                    log.error("reload refused, all goes on as it was", problem=problem)
            except Exception:  # the next reload, and whoever waits for this one, must not suffer
                log.exception("internal error")
                problems = ("an internal error, which the server's log tells of",)
            last = msgspec.structs.replace(last, ended=last.ended + 1, workers=len(self._slots), problems=problems)
            self._note(last)

    def _note(self, reloads: Reloads) -> None:
        with contextlib.suppress(OSError):  # a full disk: whoever asked reads the log
            self._directory.note(reloads)

    async def _replace_all(self, accepted: Callable[[], None]) -> tuple[str, ...]:
        """Reads the configuration again and replaces the workers, one by one; returns why some were not replaced.

        The new configuration is in force when the first new worker listens; until then nothing has changed.
        accepted: called when that worker listens. Raises ConfigError or OSError if that worker does not start.
        """
        config = self._load()
        log.info("reloading", workers=wanted(config))
        for warning in config.warnings:
            log.warning(warning)
        had_engine = self._engine is not None
        fresh = self._bound(config)
        self._doors |= fresh
        try:
            if _needs_engine(config) and not had_engine:
                await self._start_engine(config)
            if not await self._fill(self._slots[0], config, ready=accepted):
                raise ConfigError(self._slots[0].problem)
        except (ConfigError, OSError):
            for place, doors in fresh.items():
                close(doors)
                del self._doors[place]
            if not had_engine:
                await self._stop_engine()
            raise
        self._drain = config.server.drain
        logs.setup(config.log.format, config.log.level, sys.stderr)
        count = wanted(config)
        problems = []
        for slot in self._slots[1:count]:
            slot.config = config
            if not await self._fill(slot, config):
                problems.append(slot.problem)
        for _ in range(len(self._slots), count):
            slot = Slot()
            if not await self._open(slot, config):
                problems.append(slot.problem)
        for slot in self._slots[count:]:
            self._slots.remove(slot)
            await self._vacate(slot)
        for place in self._doors.keys() - set(_places(config)):
            close(self._doors.pop(place))
        if had_engine and not _needs_engine(config):
            await self._stop_engine()
        log.info("reloaded", workers=len(self._slots))
        return tuple(problems)

    async def _vacate(self, slot: Slot) -> None:
        if slot.keeper is not None:
            slot.keeper.cancel()
        async with slot.changing:
            await self._retire(slot.worker)
            self._close(_all(slot.doors))

    # Sockets

    def _bound(self, config: Config) -> dict[Place, list[BoundSocket]]:
        """The addresses of a configuration that are not bound yet, bound. Raises ConfigError."""
        fresh: dict[Place, list[BoundSocket]] = {}
        try:
            for place in _places(config):
                if place not in self._doors:
                    fresh[place] = bind(*place, shared=BALANCED)
        except ConfigError:
            close(_all(fresh))
            raise
        return fresh

    def _doors_of(self, slot: Slot, config: Config) -> dict[Place, list[BoundSocket]]:
        return {
            place: slot.doors.get(place) or [again(door) if _is_balanced(door) else door for door in self._doors[place]]
            for place in _places(config)
        }

    def _close(self, doors: Iterable[BoundSocket]) -> None:
        """Closes the sockets that are a slot's own."""
        for door in doors:
            if _is_balanced(door):
                door.socket.close()

    # The engine

    async def _start_engine(self, config: Config) -> None:
        program, path = engine.program(config.broker), self._folder / "engine.sock"
        self._engine = Engine(self._processes, program, path, self._notify_workers)
        self._spawn(self._engine.keep())
        await self._engine.working()

    async def _stop_engine(self) -> None:
        if self._engine is not None:
            await self._engine.stop()
            self._engine = None

    # Tasks

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            log.error("internal error", exc_info=exc)


def _needs_engine(config: Config) -> bool:
    return not config.has_broker


def _places(config: Config) -> Iterator[Place]:
    return ((role, address) for role in ROLES for address in addresses(config, role))


def _all(doors: Mapping[Place, Sequence[BoundSocket]]) -> list[BoundSocket]:
    return [door for those in doors.values() for door in those]


def _is_balanced(door: BoundSocket) -> bool:
    return BALANCED and door.address.scheme == "tcp"
