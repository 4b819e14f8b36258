"""The supervisor of several workers: it binds the sockets, starts the workers, and replaces the workers at a reload.

The supervisor serves no client and implements no protocol, so few defects are possible in it.
On Linux each slot of the pool has its own socket for every TCP address, and the kernel distributes new connections over these
sockets (SO_REUSEPORT). On other systems, and for Unix sockets, all slots share one socket.
A reload replaces the workers one by one. A new worker listens on the same sockets before the old worker stops.

The workers and the engine end when the supervisor ends. On Linux the kernel kills the workers and the engine. On other systems
a worker stops the engine and ends when its control connection closes.
"""

import asyncio
import signal
import sys
import time
from collections.abc import Callable

from push1st import logs
from push1st.config.model import Config
from push1st.errors import ConfigError
from push1st.process import engine
from push1st.process.changes import described, require_served
from push1st.process.children import Processes
from push1st.process.controlsocket import ControlSocket, Report
from push1st.process.cpus import worker_count
from push1st.process.engine import Engine
from push1st.process.pool import END_SECONDS, Pool, Slot, Tasks
from push1st.process.reloads import Applied, Load, Reloads
from push1st.process.rundir import RunDir
from push1st.process.serverfacts import facts
from push1st.process.sockets import BACKLOG, GRACE, SocketTable, flat, wait_until_free, with_ports
from push1st.status import ServerStatus, assembled

KILL_SECONDS = END_SECONDS / 3
"""the time limit for a worker to end after a second signal to the supervisor"""
Started = Callable[[Config, int], None]
"""A function that gets the configuration with the real ports, and the number of connections that all workers can hold."""

log = logs.get("push1st.supervisor")


def run(load: Load, config: Config, file: str | None, started: Started) -> None:
    """Runs several workers until a signal stops the supervisor. Raises ConfigError if the workers cannot start.

    load: the function that reads the configuration again at a reload.
    file: the path of the configuration file, by which `push1st reload` finds the supervisor; None if there is no such file.
    started: a function to call when all workers listen.
    """
    wait_until_free(config, lambda why: log.warning("address in use, waiting until the other server stops", reason=why))
    directory = RunDir(file)

    async def main() -> None:
        await Supervisor(load, directory).run(config, started)

    try:
        asyncio.run(main())
    finally:
        directory.close()


class Supervisor:
    """Starts and stops the pool and the engine, and reloads the configuration.

    load: the function that reads the configuration again at a reload.
    directory: the run folder, with the control socket, the engine's socket and the certificate.
    """

    def __init__(self, load: Load, directory: RunDir) -> None:
        self._directory = directory
        self._processes = Processes()
        self._sockets = SocketTable()
        self._tasks = Tasks()
        self._pool = Pool(self._processes, self._sockets, self._tasks, directory.path)
        self._stop = asyncio.Event()
        self._now = asyncio.Event()
        """an asyncio event that the second call of `stop` sets"""
        self._config: Config
        self._reloads = Reloads(load, self._apply)
        self._pool.reloads = self._reloads.counts
        self._control = ControlSocket(directory.path, self._reloads.run, self._status)
        self._pool.status = self._status
        self._began = time.monotonic()
        self._is_starting = True

    # From start to stop

    async def run(self, config: Config, started: Started) -> None:
        """Starts the engine and the workers, and returns when all of them have ended. Raises ConfigError if the start fails."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.stop)
        loop.add_signal_handler(signal.SIGINT, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._reloads.on_hangup(self.stop))
        try:
            async with self._reloads.lock:
                self._config = config
                await self._control.open()
                await self._start(config)
                self._is_starting = False
                if not self._stop.is_set():
                    connections = sum(slot.worker.ready.result() for slot in self._pool.slots if slot.worker is not None)
                    started(with_ports(config, self._sockets.all()), connections)
            await self._stop.wait()
        finally:
            self._control.close()
            await self._end()

    def stop(self) -> None:
        """Begins a graceful stop; the second call stops at once."""
        self._pool.interrupt()
        if self._stop.is_set():
            self._now.set()
        self._stop.set()

    async def _start(self, config: Config) -> None:
        self._pool.drain = config.server.drain
        self._sockets.bind_missing(config)
        if not config.has_broker:
            await self._start_engine(config)
        first, *others = (Slot() for _ in range(worker_count(config)))
        # The first worker starts alone, so that a problem that all workers have is reported only once. Then the other sockets
        # listen before their workers start: otherwise all clients that reconnect now would connect to the first worker.
        for some in ([first], others):
            for slot in others if some is others else ():
                slot.sockets = self._sockets.for_slot(slot.sockets, config)
                for one in flat(slot.sockets):
                    one.socket.listen(BACKLOG)
            if not all(await asyncio.gather(*(self._pool.open(slot, config) for slot in some))) and not self._stop.is_set():
                raise ConfigError("a worker did not start, so none runs")

    async def _end(self) -> None:
        """Ends the workers gracefully, then the engine. All listening sockets close after a grace period, `GRACE` × `drain`."""
        ends = self._pool.terminate()
        now = asyncio.ensure_future(self._now.wait())
        if ends:
            drain = self._pool.drain
            all_ended = asyncio.gather(*ends)
            await asyncio.wait((all_ended, now), timeout=drain * GRACE, return_when=asyncio.FIRST_COMPLETED)
            self._pool.close_sockets()
            self._sockets.close()  # the sockets close before clients are disconnected, so that a new server can listen
            await asyncio.wait((all_ended, now), timeout=drain + END_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        await self._pool.kill(KILL_SECONDS if self._now.is_set() else 0)
        now.cancel()
        self._sockets.close()
        await self._stop_engine()

    async def _status(self) -> ServerStatus:
        reports, missing = await self._pool.reports()
        config = with_ports(self._config, self._sockets.all())
        return assembled(config, facts(config, self._began, self._is_starting, self._reloads.last), reports, missing)

    # Reloads

    async def _apply(self, config: Config, workers: bool, report: Report) -> Applied:
        """Applies a configuration (`reloads.Apply`): in place, or with new workers if the configuration needs them."""
        pool, before = self._pool, self._config
        require_served(before, config)
        keys = pool.restart_keys(config)
        if worker_count(config) != len(pool.slots):
            keys = list(dict.fromkeys((*keys, "server.workers")))
        if not keys and not workers:
            lines, problems = await pool.change(config)
            self._set(config)
            count = len(pool.slots)
            end = f"reloaded in place: {count} worker{'s' * (count != 1)}"
            return Applied("applied", (*described(before, config), *lines, end), tuple(problems))
        if keys:
            report(f"new workers are needed for {', '.join(keys)}")
        replaced = "the configuration is good: workers are replaced one by one, each drains for server.drain seconds"
        problems = await self._replace_all(config, lambda: report(replaced))
        count = len(pool.slots)
        return Applied("replaced", (f"reloaded: {count} worker{'s' * (count != 1)}",), tuple(problems))

    def _set(self, config: Config) -> None:
        self._config = config
        self._pool.drain = config.server.drain
        logs.setup(config.log.format, config.log.level, sys.stderr)

    async def _replace_all(self, config: Config, accepted: Callable[[], None]) -> list[str]:
        """Replaces the workers one by one; returns the reasons why workers were not replaced.

        The server uses the old configuration until the first new worker listens, and then uses the new configuration.

        accepted: a function to call when the first new worker listens.
        Raises ConfigError or OSError if the first new worker does not start.
        """
        pool = self._pool
        log.info("reloading", workers=worker_count(config), keys=self._pool.restart_keys(config))
        had_engine = pool.engine is not None
        added = self._sockets.bind_missing(config)
        try:
            if not config.has_broker and not had_engine:
                await self._start_engine(config)
            if not await pool.fill(pool.slots[0], config, ready=accepted):
                raise ConfigError(pool.slots[0].problem)
        except (ConfigError, OSError):
            self._sockets.remove(added)
            if not had_engine:
                await self._stop_engine()
            raise
        self._set(config)
        count = worker_count(config)
        problems = []
        for slot in pool.slots[1:count]:
            slot.config = config
            if not await pool.fill(slot, config):
                problems.append(slot.problem)
        for _ in range(len(pool.slots), count):
            slot = Slot()
            if not await pool.open(slot, config):
                problems.append(slot.problem)
        for slot in pool.slots[count:]:
            await pool.remove(slot)
        self._sockets.remove_others(config)
        if had_engine and config.has_broker:
            await self._stop_engine()
        return problems

    # The engine

    async def _start_engine(self, config: Config) -> None:
        program, path = engine.program(config.broker), self._directory.path / "engine.sock"
        self._pool.engine = Engine(self._processes, program, path, self._pool.notify_workers)
        self._tasks.spawn(self._pool.engine.keep())
        await self._pool.engine.ready()

    async def _stop_engine(self) -> None:
        if self._pool.engine is not None:
            await self._pool.engine.stop()
            self._pool.engine = None
