"""A server with a single worker, in this process: it has no supervisor, and reloads its own configuration."""

import asyncio
import signal
import time
from collections.abc import Callable

import msgspec
import uvloop

from push1st import logs
from push1st.config.model import Config
from push1st.errors import ConfigError
from push1st.process.changes import described, require_served, restart_keys
from push1st.process.controlsocket import ControlSocket, Report
from push1st.process.reloads import Applied, Load, Reloads
from push1st.process.rundir import RunDir
from push1st.process.server import Server
from push1st.process.serverfacts import facts
from push1st.process.sockets import ROLES, BoundSocket, addresses, bind, close, wait_until_free, with_ports
from push1st.process.system import raise_file_limit
from push1st.status import ServerStatus, assembled

log = logs.get("push1st.server")


def run(load: Load, config: Config, file: str | None, started: Callable[[Config, int], None]) -> None:
    """Runs a server with a single worker until a signal stops it. Raises ConfigError if the worker cannot start.

    load: the function that reads the configuration again at a reload.
    file: the path of the configuration file, by which `push1st reload` finds the server; None if there is no such file.
    started: a function to call when the worker listens. Its arguments are the configuration with the real ports,
    and the number of connections that the worker can hold.
    """
    raise_file_limit()
    wait_until_free(config, lambda why: log.warning("address in use, waiting until the other server stops", reason=why))
    sockets = [one for role in ROLES for address in addresses(config, role) for one in bind(role, address)]
    directory = _run_dir(file)

    async def main() -> None:
        await SingleWorker(load, config, sockets).run(directory, started)

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
    finally:
        close(sockets)
        if directory is not None:
            directory.close()


def _run_dir(file: str | None) -> RunDir | None:
    """Returns the run folder; None if the system permits none, since the worker itself needs no folder."""
    try:
        return RunDir(file)
    except ConfigError as exc:
        log.warning("push1st reload cannot find this server", reason=str(exc))
        return None


class SingleWorker:
    """The worker, and the reloads of its configuration.

    config: the configuration as the files contain it, without the real ports.
    """

    def __init__(self, load: Load, config: Config, sockets: list[BoundSocket]) -> None:
        self._config = config
        self._sockets = tuple(sockets)
        self._began = time.monotonic()
        self._is_starting = True
        self._server = Server(with_ports(config, sockets), sockets)
        self.reloads = Reloads(load, self._apply)

    async def run(self, directory: RunDir | None, started: Callable[[Config, int], None]) -> None:
        """Starts the worker, and serves until a signal stops it. Raises ConfigError."""
        server, reloads = self._server, self.reloads
        control = None if directory is None else ControlSocket(directory.path, reloads.run, self._status)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloads.on_hangup(server.stop))
        async with reloads.lock:
            if control is not None:
                try:
                    await control.open()
                except ConfigError as exc:
                    log.warning("push1st reload cannot find this server", reason=str(exc))
            await server.start()
            server.node.metrics.reloads = reloads.counts
            server.node.status = self._status_json
            self._is_starting = False
            started(server.config, server.context.descriptors.possible)
        await server.run()
        if control is not None:
            control.close()

    async def _status(self) -> ServerStatus:
        config = with_ports(self._config, self._sockets)
        reports, missing = ([], {0}) if self._is_starting else ([await self._server.report()], set())
        return assembled(config, facts(config, self._began, self._is_starting, self.reloads.last), reports, missing)

    async def _status_json(self) -> bytes:
        return msgspec.json.encode(await self._status())

    async def _apply(self, config: Config, workers: bool, report: Report) -> Applied:
        """Applies a configuration (`reloads.Apply`)."""
        require_served(self._config, config)
        keys = restart_keys(self._config, config)
        if keys or workers:
            why = f"a restart is needed for {', '.join(keys)}" if keys else "one worker cannot be replaced while it serves"
            raise ConfigError(f"nothing was changed: {why}; restart the server, or run several workers (server.workers)")
        changes = await asyncio.to_thread(described, self._config, config)
        await self._server.live.prepare(with_ports(config, self._sockets))
        lines = self._server.live.apply()
        self._config = config
        return Applied("applied", (*changes, *lines, "reloaded in place: 1 worker"))
