"""The pool of a supervisor's worker processes. Each worker has a slot.

A slot owns the sockets of its worker. The sockets outlive the worker, so the slot's next worker accepts the connections that
wait in the sockets. To replace a worker, the pool starts a new worker on the same sockets. When the new worker is ready, the
old worker retires. The pool starts another worker if a worker ends by itself, and kills a worker that hangs.

A worker requests the counters of the other workers through the pool. The pool adds its own counters to the reply.
"""

import asyncio
import contextlib
import itertools
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from push1st import logs, usage
from push1st.config.model import Config, Ssl
from push1st.config.mqtt import MqttSsl
from push1st.errors import ConfigError
from push1st.exposition import counter, counters, gauge, write
from push1st.metrics import RELOADED_TEXT, RELOADS, RELOADS_TEXT, SUPERVISOR, ReloadCounts
from push1st.process.changes import restart_keys
from push1st.process.children import Backoff, Process, Processes, interpreter_options
from push1st.process.control import (
    Alive,
    ApplyChange,
    ChangeReply,
    ControlConnection,
    ControlReply,
    ControlRequest,
    Failed,
    PrepareChange,
    Ready,
    Retire,
    StartWorker,
    Workers,
    pack,
)
from push1st.process.controlsocket import ReadStatus
from push1st.process.engine import Engine
from push1st.process.sockets import ROLES, BoundSocket, Place, SocketTable, close_own, flat, tls_settings, with_ports
from push1st.process.tls import NOTE, self_signed
from push1st.status import WorkerStatus

START_SECONDS = 60
"""the time limit for a worker to start"""
PROBE_SECONDS = 3
"""the time between two probes of a worker"""
MAX_PROBES = 4
"""The pool kills a worker that replies to none of this many successive probes. So the pool kills the worker at most
`PROBE_SECONDS` × (`MAX_PROBES` + 1) = 15 seconds after its newest reply. Shortly before the kill, other nodes evict the worker's
node (`brokers/redis`)."""
GATHER_SECONDS = 1
"""the time limit for the workers' replies to a request, and for the error message of a worker that ended during its start"""
CHANGE_SECONDS = 10
"""the time limit for a worker to check a changed configuration, and again to apply it"""
END_SECONDS = 15
"""the time limit for the end of a worker, in addition to the time that `drain` allows"""

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
    """A worker process, and the control connection to it. `config`: the configuration of the worker."""

    def __init__(self, number: int, process: Process, connection: ControlConnection, config: Config) -> None:
        self.config = config
        self.on_engine = not config.has_broker
        self.number = number
        self.process = process
        self.connection = connection
        self.ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """a future that is done when the worker listens; its result is the number of connections that the worker can hold"""
        self.node = ""
        """the worker's name in the broker; "" until the worker is ready"""
        self.requests: dict[int, asyncio.Future[ControlReply]] = {}
        self.changes: dict[int, asyncio.Future[ChangeReply]] = {}
        """the requests of `Pool.change` to which the worker has not replied"""
        self.problem = ""
        """the reason why the worker cannot start"""
        self.disconnected = asyncio.Event()
        """an event that is set when the pool has read all messages of the worker"""
        self.unanswered = 0
        """the number of probes in a row without a reply"""


class Slot:
    """A slot for one worker, with the sockets of the slot."""

    def __init__(self) -> None:
        self.sockets: Mapping[Place, Sequence[BoundSocket]] = {}
        self.worker: WorkerProcess | None = None
        self.problem = ""
        """the reason why the most recently started worker of this slot did not become ready"""
        self.config: Config
        self.changing = asyncio.Lock()
        """a lock that is held while a new worker starts in the slot"""
        self.keeper: asyncio.Task[None] | None = None
        """the task that replaces a worker that ends by itself"""


class Pool:
    """Contains the slots of a supervisor and all worker processes, including the workers that retire.

    processes: the object that starts worker processes.
    sockets: the bound sockets of all addresses in the configuration.
    folder: the folder for the certificate that all workers share.
    probe_seconds: the time between two probes of a worker, in seconds.
    change_seconds: the time limit for a reply of a worker to a changed configuration, in seconds.
    """

    def __init__(
        self,
        processes: Processes,
        sockets: SocketTable,
        tasks: Tasks,
        folder: Path,
        probe_seconds: float = PROBE_SECONDS,
        change_seconds: float = CHANGE_SECONDS,
    ) -> None:
        self._processes = processes
        self._sockets = sockets
        self._tasks = tasks
        self._folder = folder
        self._probe_seconds = probe_seconds
        self._change_seconds = change_seconds
        self._workers: set[WorkerProcess] = set()
        self._ids = itertools.count()
        self._server = secrets.token_hex(8)
        self._certificate: tuple[str, str] | None = None
        self._restarts = 0
        self.slots: list[Slot] = []
        self.reloads = ReloadCounts()
        self.status: ReadStatus
        """the function that returns the state of the server"""
        self.drain = 0
        """the time in which a retiring worker disconnects its clients, in seconds"""
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
                if wait:  # The slot's sockets close, so that new connections reach other workers. Waiting connections are lost.
                    async with slot.changing:  # A reload may be starting a new worker on the same sockets.
                        if slot.worker is worker:
                            close_own(flat(slot.sockets))
                            slot.sockets = {}
                await asyncio.sleep(wait)
                try:
                    await self.fill(slot, None, worker)
                except (ConfigError, OSError) as exc:  # the system may have no memory for another process
                    log.error("worker cannot be started", reason=str(exc))

    async def fill(
        self, slot: Slot, config: Config | None, ended: WorkerProcess | None = None, ready: Callable[[], None] | None = None
    ) -> bool:
        """Starts a worker in a slot, and retires the old worker if the new worker is ready. Returns whether a worker is ready.

        config: the new worker's configuration; None: the slot keeps its configuration.
        ended: if `config` is None, the worker that has ended. If a reload has already replaced this worker, no worker starts.
        ready: a function to call when the new worker listens.
        """
        async with slot.changing:
            old = slot.worker
            is_reload = config is not None and old is not None
            if config is None:
                if old is not ended:
                    return True
                config = slot.config
            sockets = self._sockets.for_slot(slot.sockets, config)
            worker = await self._start(config, flat(sockets), is_reload, ended)
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
        """Removes a slot: the slot's worker retires, and the slot's own sockets close."""
        self.slots.remove(slot)
        if slot.keeper is not None:
            slot.keeper.cancel()
        async with slot.changing:
            await self._retire(slot.worker)
            close_own(flat(slot.sockets))

    async def _retire(self, worker: WorkerProcess | None) -> None:
        """Makes a worker end gracefully, and kills the worker if it does not end in time."""
        if worker is not None and not worker.process.ended.done():
            worker.connection.send(Retire())
            if not await worker.process.end_within(self.drain + END_SECONDS):
                log.error("worker killed, because it did not end", worker=worker.number)
            self._workers.discard(worker)

    # Changes of the configuration

    def restart_keys(self, config: Config) -> list[str]:
        """Returns the keys for which the running workers must be replaced, if they are to have a configuration."""
        keys = [key for slot in self.slots if slot.worker is not None for key in restart_keys(slot.worker.config, config)]
        return list(dict.fromkeys(keys))

    async def change(self, config: Config) -> tuple[list[str], list[str]]:
        """Makes all workers apply a configuration in place. No worker applies it before all workers have checked it.

        Returns the effects, and the problems of workers that did not apply the configuration.
        Raises ConfigError if a worker cannot use the configuration or does not reply; then the workers run as before.
        """
        async with contextlib.AsyncExitStack() as stack:
            for slot in self.slots:  # no worker may start with the old configuration during the reload
                await stack.enter_async_context(slot.changing)
            workers = [slot.worker for slot in self.slots if slot.worker is not None]
            packed = pack(self._for_workers(with_ports(config, self._sockets.all())))
            _, problems = await self._request_change(workers, lambda id: PrepareChange(id, packed))
            if problems:
                raise ConfigError("\n".join(problems))
            for slot in self.slots:
                slot.config = config
            for worker in workers:
                worker.config = config
            return await self._request_change(workers, ApplyChange)

    async def _request_change(
        self, workers: Sequence[WorkerProcess], request: Callable[[int], PrepareChange | ApplyChange]
    ) -> tuple[list[str], list[str]]:
        """Sends a request to workers; returns the lines and the problems in their replies. A problem of all workers has one line.

        A worker that ends has no problem, because another worker starts with the new configuration.
        """
        replies = []
        for worker in workers:
            id = next(self._ids)
            reply = worker.changes[id] = asyncio.get_running_loop().create_future()
            worker.connection.send(request(id))
            replies.append((worker, id, reply))

        async def wait(worker: WorkerProcess, reply: asyncio.Future[ChangeReply]) -> None:
            await asyncio.wait((reply, worker.process.ended), return_when=asyncio.FIRST_COMPLETED, timeout=self._change_seconds)

        await asyncio.gather(*(wait(worker, reply) for worker, _, reply in replies))
        lines: dict[str, None] = {}
        problems: list[str] = []
        reasons = [reply.result().problem for _, _, reply in replies if reply.done()]
        is_common = len(reasons) > 1 and len(replies) == len(reasons) and len(set(reasons)) == 1
        for worker, id, reply in replies:
            worker.changes.pop(id, None)
            if reply.done():
                lines.update(dict.fromkeys(reply.result().lines))
                lines_of = reply.result().problem.splitlines()
                problems += lines_of if is_common else [f"worker {worker.number}: {line}" for line in lines_of]
            elif not worker.process.ended.done():
                problems.append(f"worker {worker.number} did not answer within {self._change_seconds:g} s")
        return list(lines), list(dict.fromkeys(problems))

    # Stopping

    def interrupt(self) -> None:
        """At the first call, stops the workers that are still starting; at the second call, makes all workers end at once.

        The two calls send different signals, because the kernel merges two pending signals of the same number.
        """
        for worker in self._workers:
            if self.stopping:
                worker.process.send(signal.SIGINT)
            elif not worker.ready.done():
                worker.process.send(signal.SIGTERM)
        self.stopping = True

    def terminate(self) -> list[asyncio.Future[int]]:
        """Makes all workers end gracefully, and starts no new workers. Returns a future for the end of each process."""
        for slot in self.slots:
            if slot.keeper is not None:
                slot.keeper.cancel()
        for worker in self._workers:
            worker.process.send(signal.SIGTERM)
        return [worker.process.ended for worker in self._workers]

    def close_sockets(self) -> None:
        """Closes the sockets that the slots own."""
        for slot in self.slots:
            close_own(flat(slot.sockets))

    async def kill(self, seconds: float) -> None:
        """Kills the workers that do not end within `seconds`."""
        for worker in list(self._workers):
            if not await worker.process.end_within(seconds):
                log.error("worker killed, because it did not end", worker=worker.number)

    # Worker processes

    async def _start(
        self, config: Config, sockets: Sequence[BoundSocket], is_reload: bool, ended: WorkerProcess | None
    ) -> WorkerProcess:
        """Starts a worker. Its number is the number of the worker that ended in its slot, or otherwise the lowest free number."""
        ours, theirs = socket.socketpair()
        with theirs:
            inherited = [theirs.fileno(), *(one.socket.fileno() for one in sockets)]
            command = [sys.executable, *interpreter_options(), "-m", "push1st.process.worker", str(theirs.fileno())]
            process = self._processes.start(command, inherited)
        connection = await ControlConnection.on(ours)
        taken = {worker.number for worker in self._workers if not worker.process.ended.done()}
        taken |= {slot.worker.number for slot in self.slots if slot.worker is not None and slot.worker is not ended}
        first = [] if ended is None else [ended.number]
        number = next(number for number in itertools.chain(first, itertools.count()) if number not in taken)
        worker = WorkerProcess(number, process, connection, config)
        self._workers.add(worker)
        order = StartWorker(
            number,
            pack(self._for_workers(with_ports(config, sockets))),
            [(one.role, one.address, one.socket.fileno()) for one in sockets],
            str(self.engine.path) if self.engine and worker.on_engine else "",
            [one.node for one in self._on_engine()],
            is_reload,
            self._server,
        )
        worker.connection.send(order)
        self._tasks.spawn(self._receive(worker))
        self._tasks.spawn(self._watch(worker))
        return worker

    def _for_workers(self, config: Config) -> Config:
        """Returns the configuration for the workers, with the engine's address and the certificate that all workers share."""
        if not config.has_broker and self.engine is not None:
            config = msgspec.structs.replace(config, broker=f"unix://{quote(str(self.engine.path))}")
        own = {role: self._with_certificate(ssl) for role in ROLES if (ssl := tls_settings(config, role)) is not None}
        mqtt = msgspec.structs.replace(config.server.mqtt, ssl=own.get("server.mqtt", config.server.mqtt.ssl))
        server = msgspec.structs.replace(config.server, ssl=own.get("server", config.server.ssl), mqtt=mqtt)
        api = msgspec.structs.replace(config.api, ssl=own.get("api", config.api.ssl))
        return msgspec.structs.replace(config, server=server, api=api)

    def _with_certificate(self, ssl: Ssl | MqttSsl) -> Ssl | MqttSsl:
        if ssl.cert:
            return ssl
        if self._certificate is None:
            self._certificate = self_signed(self._folder)
            log.warning(NOTE)
        key, cert = self._certificate
        return msgspec.structs.replace(ssl, key=key, cert=cert)

    async def _receive(self, worker: WorkerProcess) -> None:
        """Handles the messages of a worker until the worker closes the control connection."""
        while (message := await worker.connection.receive()) is not None:
            worker.unanswered = 0
            match message:
                case Ready(connections, node):
                    worker.node = node
                    worker.ready.set_result(connections)
                    self.notify_workers()
                case Failed(reason):
                    worker.problem = reason
                case ControlRequest(id, _, True):
                    self._tasks.spawn(self._send_status(worker, id))
                case ControlRequest(id, app):
                    self._tasks.spawn(self._gather(worker, id, app))
                case ControlReply(id) if id in worker.requests:
                    worker.requests.pop(id).set_result(message)
                case ChangeReply(id) if id in worker.changes:
                    worker.changes.pop(id).set_result(message)
        worker.disconnected.set()
        await worker.connection.close()
        await worker.process.end_within(END_SECONDS)
        self._workers.discard(worker)

    async def _watch(self, worker: WorkerProcess) -> None:
        """Kills a worker that hangs, which means that the worker has not replied to `MAX_PROBES` probes in a row.

        The pool counts probes and not seconds, because time also passes while the machine is suspended.
        """
        await asyncio.wait((worker.ready, worker.process.ended), return_when=asyncio.FIRST_COMPLETED)  # `fill` limits this time
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
        """Returns the workers that are alive and ready, and that use the embedded engine."""
        return [one for one in self._workers if one.on_engine and one.ready.done() and not one.process.ended.done()]

    def notify_workers(self) -> None:
        """Sends the names of all workers that use the engine to each of these workers. A worker that has
        connected to the engine publishes only after all workers with these names have subscribed."""
        workers = self._on_engine()
        nodes = [worker.node for worker in workers]
        for worker in workers:
            worker.connection.send(Workers(nodes))

    async def _gather(self, requester: WorkerProcess, id: int, app: str | None) -> None:
        """Replies to a worker with the counters of all other workers, or with the states of an app's hooks in these workers."""
        others = [one for one in self._workers if one is not requester and one.ready.done()]
        packed = await self._request(others, lambda own: ControlRequest(own, app))
        if app is None:
            packed.append((SUPERVISOR, self._counters()))
        requester.connection.send(ControlReply(id, packed))

    async def _request(
        self, workers: Sequence[WorkerProcess], request: Callable[[int], ControlRequest]
    ) -> list[tuple[int, bytes]]:
        """Sends a request to workers; returns the content of the replies that arrive in time."""
        replies = []
        for worker in workers:
            id = next(self._ids)
            reply = worker.requests[id] = asyncio.get_running_loop().create_future()
            worker.connection.send(request(id))
            replies.append(reply)
        done = (await asyncio.wait(replies, timeout=GATHER_SECONDS))[0] if replies else ()
        return [packed for reply in done for packed in reply.result().packed]

    async def reports(self) -> tuple[list[WorkerStatus], set[int]]:
        """Returns the reports of the workers in all slots, and the numbers of workers that do not reply in time."""
        workers = [slot.worker for slot in self.slots if slot.worker is not None]
        ready = [one for one in workers if one.ready.done()]
        packed = await self._request(ready, lambda id: ControlRequest(id, status=True))
        reports = [msgspec.msgpack.decode(report, type=WorkerStatus) for _, report in packed]
        return reports, {one.number for one in workers} - {number for number, _ in packed}

    async def _send_status(self, requester: WorkerProcess, id: int) -> None:
        requester.connection.send(ControlReply(id, [(SUPERVISOR, msgspec.json.encode(await self.status()))]))

    def _counters(self) -> bytes:
        """Returns the pool's own metrics, encoded with MessagePack."""
        ready = sum(worker.ready.done() for worker in self._workers)
        engine_restarts = self.engine.restarts if self.engine else 0
        families = [
            gauge("workers", "workers that serve", ready),
            counter("worker_restarts", "workers that ended by themselves", self._restarts),
            gauge("last_reload_success_timestamp_seconds", RELOADED_TEXT, self.reloads.succeeded_at),
            counters("reloads", RELOADS_TEXT, "result", self.reloads.results, RELOADS),
            counter("engine_restarts", "embedded engines that ended by themselves", engine_restarts),
            counters("log_messages", "lines in the log, by level", "level", logs.messages, logs.LEVELS),
            *usage.families("supervisor"),
            *(usage.families("engine", self.engine.pid) if self.engine and self.engine.pid else ()),
        ]
        return msgspec.msgpack.encode([write(family) for family in families])
