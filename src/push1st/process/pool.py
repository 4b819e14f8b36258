"""The worker processes of a supervisor, each in a slot.

A slot owns the sockets of its worker. They outlive the worker, so the next worker of the slot accepts the connections
that wait in them. To replace a worker, the pool starts the new one on the same sockets; when the new worker is ready,
the old one retires. The pool starts another worker if one ends by itself, and kills a worker that hangs.

Workers request each other's counters through the pool, which adds its own.
"""

import asyncio
import contextlib
import itertools
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from push1st import logs
from push1st.config.model import Config, Ssl
from push1st.errors import ConfigError
from push1st.metrics import SUPERVISOR, Family
from push1st.process.children import Backoff, Process, Processes, interpreter_options
from push1st.process.control import (
    Alive,
    ControlConnection,
    ControlReply,
    ControlRequest,
    Failed,
    Ready,
    Retire,
    StartWorker,
    Workers,
    pack,
)
from push1st.process.engine import Engine
from push1st.process.sockets import BoundSocket, Place, SocketTable, close_own, flat, with_ports

START_SECONDS = 60
"""the time limit for a worker to start"""
PROBE_SECONDS = 3
"""the time between two probes of a worker"""
MAX_PROBES = 4
"""The pool kills a worker after so many probes in a row without a reply. That is within 15 seconds, just after other nodes have
evicted the node of the worker (`brokers/redis`)."""
GATHER_SECONDS = 1
"""the time limit for the replies of workers, and for the message of a worker that cannot start"""
END_SECONDS = 15
"""the time limit for a worker to end, in addition to its drain"""

log = logs.get("push1st.supervisor")


class Tasks:
    """Keeps tasks until they are done, and logs their exceptions."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            log.error("internal error", exc_info=exc)


class WorkerProcess:
    """A worker's process and the control connection to it. on_engine: whether the worker uses the embedded engine."""

    def __init__(self, number: int, process: Process, connection: ControlConnection, on_engine: bool) -> None:
        self.on_engine = on_engine
        self.number = number
        self.process = process
        self.connection = connection
        self.ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """done when the worker listens; its result is the number of connections that the worker can hold"""
        self.node = ""
        """the worker's name in the broker; "" until the worker is ready"""
        self.requests: dict[int, asyncio.Future[ControlReply]] = {}
        self.problem = ""
        """the reason why the worker cannot start"""
        self.disconnected = asyncio.Event()
        """an event that is set when the pool has read all messages of the worker"""
        self.unanswered = 0
        """probes without a reply"""


class Slot:
    """The place of one worker, and its sockets."""

    def __init__(self) -> None:
        self.sockets: Mapping[Place, Sequence[BoundSocket]] = {}
        self.worker: WorkerProcess | None = None
        self.problem = ""
        """the reason why the last new worker of this slot did not start"""
        self.config: Config
        self.changing = asyncio.Lock()
        """a lock that is held while a new worker starts in the slot"""
        self.keeper: asyncio.Task[None] | None = None
        """the task that replaces a worker that ends by itself"""


class Pool:
    """The slots of a supervisor, and every worker process, including those that retire.

    processes: starts workers.
    sockets: of all addresses in the configuration.
    folder: for the certificate that all workers share.
    probe_seconds: the time between two probes of a worker.
    """

    def __init__(
        self,
        processes: Processes,
        sockets: SocketTable,
        tasks: Tasks,
        folder: Path,
        probe_seconds: float = PROBE_SECONDS,
    ) -> None:
        self._processes = processes
        self._sockets = sockets
        self._tasks = tasks
        self._folder = folder
        self._probe_seconds = probe_seconds
        self._workers: set[WorkerProcess] = set()
        self._ids = itertools.count()
        self._certificate: tuple[str, str] | None = None
        self._restarts = 0
        self.slots: list[Slot] = []
        self.drain = 0
        """seconds that a retiring worker has to disconnect its clients"""
        self.engine: Engine | None = None
        self.stopping = False

    # Slots

    async def open(self, slot: Slot, config: Config) -> bool:
        """Adds a slot and starts its worker; returns whether the worker is ready."""
        self.slots.append(slot)
        done = await self.fill(slot, config)
        if done and not self.stopping:
            slot.keeper = self._tasks.spawn(self._keep(slot))
        return done

    async def _keep(self, slot: Slot) -> None:
        """Starts another worker each time the slot's worker ends by itself."""
        backoff = Backoff()
        while (worker := slot.worker) is not None:
            await asyncio.wait((worker.process.ended,))
            lived = time.monotonic() - worker.process.started
            while slot.worker is worker:
                wait = backoff.after(lived)
                lived = 0
                self._restarts += 1
                log.error("worker ended", worker=worker.number, how=worker.process.how, again_in=wait)
                if wait:  # new connections go to the other workers; connections that wait in the slot's sockets are lost
                    async with slot.changing:  # a reload may be giving the sockets to another worker at this moment
                        if slot.worker is worker:
                            close_own(flat(slot.sockets))
                            slot.sockets = {}
                await asyncio.sleep(wait)
                try:
                    await self.fill(slot, None, worker)
                except (ConfigError, OSError) as exc:  # for example, no memory or no descriptors for another process
                    log.error("worker cannot be started", reason=str(exc))

    async def fill(
        self, slot: Slot, config: Config | None, ended: WorkerProcess | None = None, ready: Callable[[], None] | None = None
    ) -> bool:
        """Starts a worker in a slot. The previous worker retires when the new one is ready. Returns whether the slot has
        a worker that is ready.

        config: of the new worker; None: the slot's configuration, and no worker starts if another one has replaced `ended`.
        ready: called when the new worker listens.
        """
        async with slot.changing:
            old = slot.worker
            if config is None:
                if old is not ended:
                    return True
                config = slot.config
            sockets = self._sockets.for_slot(slot.sockets, config)
            worker = await self._start(config, flat(sockets))
            await asyncio.wait((worker.ready, worker.process.ended), timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not worker.ready.done():
                worker.process.send(signal.SIGKILL)
                await asyncio.wait((worker.process.ended,))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(worker.disconnected.wait(), GATHER_SECONDS)
                log.error("worker did not start", worker=worker.number, how=worker.process.how)
                slot.problem = worker.problem or f"worker {worker.number} did not start: {worker.process.how}"
                close_own(one for place, those in sockets.items() if place not in slot.sockets for one in those)
                return False
            unused = [one for place, those in slot.sockets.items() if place not in sockets for one in those]
            slot.worker, slot.config, slot.sockets = worker, config, sockets
            log.info("worker ready", worker=worker.number, pid=worker.process.pid)
        if ready is not None:
            ready()
        await self._retire(old)
        close_own(unused)
        return True

    async def remove(self, slot: Slot) -> None:
        """Removes a slot: its worker retires, and its own sockets close."""
        self.slots.remove(slot)
        if slot.keeper is not None:
            slot.keeper.cancel()
        async with slot.changing:
            await self._retire(slot.worker)
            close_own(flat(slot.sockets))

    async def _retire(self, worker: WorkerProcess | None) -> None:
        """Makes a worker end gracefully, and kills it if it does not."""
        if worker is not None and not worker.process.ended.done():
            worker.connection.send(Retire())
            if not await worker.process.end_within(self.drain + END_SECONDS):
                log.error("worker killed, because it did not end", worker=worker.number)
            self._workers.discard(worker)

    # Stopping

    def interrupt(self) -> None:
        """Begins the graceful stop of workers that are still starting; the second call makes all workers end at once.

        The two calls send different signals. The kernel merges a pending signal with a second one of the same number.
        """
        for worker in self._workers:
            if self.stopping:
                worker.process.send(signal.SIGINT)
            elif not worker.ready.done():
                worker.process.send(signal.SIGTERM)
        self.stopping = True

    def terminate(self) -> list[asyncio.Future[int]]:
        """Makes all workers end gracefully, and replaces none of them. Returns a future for the end of each process."""
        for slot in self.slots:
            if slot.keeper is not None:
                slot.keeper.cancel()
        for worker in self._workers:
            worker.process.send(signal.SIGTERM)
        return [worker.process.ended for worker in self._workers]

    def close_sockets(self) -> None:
        """Closes the slots' own sockets."""
        for slot in self.slots:
            close_own(flat(slot.sockets))

    async def kill(self, seconds: float) -> None:
        """Kills the workers that do not end within some seconds."""
        for worker in list(self._workers):
            if not await worker.process.end_within(seconds):
                log.error("worker killed, because it did not end", worker=worker.number)

    # Worker processes

    async def _start(self, config: Config, sockets: Sequence[BoundSocket]) -> WorkerProcess:
        ours, theirs = socket.socketpair()
        with theirs:
            inherited = [theirs.fileno(), *(one.socket.fileno() for one in sockets)]
            command = [sys.executable, *interpreter_options(), "-m", "push1st.process.worker", str(theirs.fileno())]
            process = self._processes.start(command, inherited)
        connection = await ControlConnection.on(ours)
        taken = {worker.number for worker in self._workers}
        number = next(number for number in itertools.count() if number not in taken)
        worker = WorkerProcess(number, process, connection, not config.has_broker)
        self._workers.add(worker)
        order = StartWorker(
            number,
            pack(self._for_workers(with_ports(config, sockets))),
            [(one.role, str(one.address), one.socket.fileno()) for one in sockets],
            str(self.engine.path) if self.engine and worker.on_engine else "",
            [one.node for one in self._on_engine()],
        )
        worker.connection.send(order)
        self._tasks.spawn(self._receive(worker))
        self._tasks.spawn(self._watch(worker))
        return worker

    def _for_workers(self, config: Config) -> Config:
        """Returns the configuration with the engine's address, and with the one certificate that all workers share."""
        if not config.has_broker and self.engine is not None:
            config = msgspec.structs.replace(config, broker=f"unix://{quote(str(self.engine.path))}")
        server = msgspec.structs.replace(config.server, ssl=self._with_certificate(config.server.ssl))
        api = msgspec.structs.replace(config.api, ssl=self._with_certificate(config.api.ssl))
        return msgspec.structs.replace(config, server=server, api=api)

    def _with_certificate(self, ssl: Ssl) -> Ssl:
        if not ssl.enable or ssl.cert:
            return ssl
        if self._certificate is None:
            from push1st.process.tls import NOTE, self_signed  # here, because the library is large and few servers need it

            self._certificate = self_signed(self._folder)
            log.warning(NOTE)
        return Ssl(True, *self._certificate)

    async def _receive(self, worker: WorkerProcess) -> None:
        """Handles the messages of a worker until its end of the connection closes."""
        while (message := await worker.connection.receive()) is not None:
            worker.unanswered = 0
            match message:
                case Ready(connections, node):
                    worker.node = node
                    worker.ready.set_result(connections)
                    self.notify_workers()
                case Failed(reason):
                    worker.problem = reason
                case ControlRequest(id, app):
                    self._tasks.spawn(self._gather(worker, id, app))
                case ControlReply(id) if id in worker.requests:
                    worker.requests.pop(id).set_result(message)
        worker.disconnected.set()
        await worker.connection.close()
        await worker.process.end_within(END_SECONDS)
        self._workers.discard(worker)

    async def _watch(self, worker: WorkerProcess) -> None:
        """Kills a worker that hangs: one that leaves `MAX_PROBES` probes without a reply.

        The pool counts probes, not seconds: while the machine is suspended, time passes, but no worker can reply.
        """
        await asyncio.wait((worker.ready, worker.process.ended), return_when=asyncio.FIRST_COMPLETED)  # `fill` has a deadline
        while not worker.process.ended.done():
            if worker.unanswered >= MAX_PROBES:
                log.error("worker hangs", worker=worker.number)
                worker.process.send(signal.SIGKILL)
            worker.unanswered += 1
            worker.connection.send(Alive())
            await asyncio.wait((worker.process.ended,), timeout=self._probe_seconds)
        self.notify_workers()

    # Messages to workers

    def _on_engine(self) -> list[WorkerProcess]:
        """Returns the living workers that use the embedded engine and may have clients."""
        return [one for one in self._workers if one.on_engine and one.ready.done() and not one.process.ended.done()]

    def notify_workers(self) -> None:
        """Sends the names of all workers on the engine to each of them. The workers wait
        for these nodes only."""
        workers = self._on_engine()
        nodes = [worker.node for worker in workers]
        for worker in workers:
            worker.connection.send(Workers(nodes))

    async def _gather(self, requester: WorkerProcess, id: int, app: str | None) -> None:
        """Replies to a worker with the counters of all others, or with their states of an app's hooks."""
        replies = []
        for worker in self._workers:
            if worker is not requester and worker.ready.done():
                own_id = next(self._ids)
                reply = worker.requests[own_id] = asyncio.get_running_loop().create_future()
                worker.connection.send(ControlRequest(own_id, app))
                replies.append(reply)
        done = (await asyncio.wait(replies, timeout=GATHER_SECONDS))[0] if replies else ()
        packed = [snapshot for reply in done for snapshot in reply.result().packed]
        if app is None:
            packed.append((SUPERVISOR, self._counters()))
        requester.connection.send(ControlReply(id, packed))

    def _counters(self) -> bytes:
        """Returns the pool's own metrics, packed."""
        ready = sum(worker.ready.done() for worker in self._workers)
        engine_restarts = self.engine.restarts if self.engine else 0
        figures = (
            ("push1st_workers", "", "gauge", "workers that serve", ready),
            ("push1st_worker_restarts", "_total", "counter", "workers that ended by themselves", self._restarts),
            ("push1st_engine_restarts", "_total", "counter", "embedded engines that ended by themselves", engine_restarts),
        )
        return msgspec.msgpack.encode(
            [Family(name, text, type, [(name + end, {}, float(value))]) for name, end, type, text, value in figures]
        )
