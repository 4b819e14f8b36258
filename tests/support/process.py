"""A real `push1st serve` in a process of its own: starts it, sends requests, stops it, and searches its log for traces.

This module uses only the command line and the configuration files of `push1st`, and imports nothing of the package.
"""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml

from tests.support.signing import signed_query

PUSH1ST = [str(Path(sys.executable).with_name("push1st"))]

DEADLINE = 10.0
"""maximum seconds of any wait before a test fails"""
START_SECONDS = 30.0
"""maximum seconds until a server is ready; more, because tests that run side by side start their servers at the same time"""

T = TypeVar("T")

MIN_PORT, MAX_PORT, PORT_PARTS = 10_000, 32_000, 8
"""the ports of these tests, divided among the processes of pytest"""
APP: dict[str, Any] = {
    "enable": True,
    "name": "Default Application for tests",
    "key": "app-key",
    "secret": "secret",
    "options": {"client-messages": True, "statistic": False},
    "channels": ["public", "private", "presence", "protected"],
}
"""the app of the API page; each server of these tests has it as `app-test`"""


def wait_until(condition: Callable[[], T], what: str, deadline: float = DEADLINE) -> T:
    """Calls `condition` until it returns a true value; returns that value. Fails after `deadline` seconds."""
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not within {deadline} s: {what}"
        time.sleep(0.01)


def program(name: str, package: str = "") -> str:
    """Returns the path of a program of the machine or of .venv; without it, skips the test and names the package to install."""
    places = os.pathsep.join((str(Path(sys.prefix) / "bin"), os.environ["PATH"], "/usr/sbin", "/usr/local/sbin"))
    found = shutil.which(name, path=places)
    if found is None:
        pytest.skip(f"{name} is not on this machine: apt-get install {package or name}")
    return found


def _own_ports() -> Iterator[int]:
    """Yields the ports of this process in rotation.

    The kernel gives other ports to outgoing connections (Linux: from 32768), and another process of these tests has other ports.
    So a port is still free when a server binds it later.
    """
    name = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    first_part = int(os.environ.get("TESTS_PORT_PART", "0"))  # `make test` runs two sets of processes
    part = (first_part + int(name.removeprefix("gw"))) % PORT_PARTS
    size = (MAX_PORT - MIN_PORT) // PORT_PARTS
    first, start = MIN_PORT + part * size, time.time_ns() % size  # two runs on one machine begin at different ports
    while True:
        for number in range(size):
            yield first + (start + number) % size


_ports = _own_ports()


def free_ports(count: int) -> list[int]:
    """Returns free TCP ports, which no other test of this run gets soon."""
    found: list[int] = []
    while len(found) < count:
        port = next(_ports)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            found.append(port)
    return found


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `base` with the values of `over`; merges mappings key by key."""
    result = dict(base)
    for key, value in over.items():
        there = result.get(key)
        result[key] = merged(there, value) if isinstance(there, dict) and isinstance(value, dict) else value
    return result


class Answer:
    """A response of the API."""

    def __init__(self, status: int, headers: http.client.HTTPMessage, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def __repr__(self) -> str:
        return f"<{self.status} {self.body[:300]!r}>"

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=DEADLINE)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


class ServerProcess:
    """One server, its two ports, its Unix socket and its two output files. files: its limit of open files; 0: ours."""

    def __init__(self, config: Mapping[str, Any] | None = None, apps: Mapping[str, Any] | None = None, files: int = 0) -> None:
        self.files = files
        self.folder = Path(tempfile.mkdtemp(prefix="p1-"))  # short: the path of a Unix socket has at most 107 bytes
        self.unix = self.folder / "push1st.api"
        self.ws_port, self.api_port = free_ports(2)
        base = {
            "server": {
                "proto": ["pusher", "websocket"],
                "listen": f"tcp://127.0.0.1:{self.ws_port}",
                "drain": 1,
                "pusher": {"path": "/pusher/", "activity-timeout": 20},
                "websocket": {"path": "/ws/", "activity-timeout": 3600, "push": ["public", "private", "presence"]},
            },
            "api": {
                "keep-alive-timeout": 10,
                "interface": "pusher",
                "path": "/apps/",
                "listen": [f"tcp://127.0.0.1:{self.api_port}/", f"unix://{self.unix}"],
            },
            "credentials": ["apps/*.yml"],
        }
        (self.folder / "apps").mkdir()
        (self.folder / "server.yml").write_text(yaml.safe_dump(merged(base, config or {})))
        (self.folder / "apps" / "apps.yml").write_text(yaml.safe_dump({"app-test": APP, **(apps or {})}))
        self.outputs = ("stdout", "stderr")
        """output files in the folder"""
        self.process: subprocess.Popen[bytes] | None = None
        self.told_to_stop = False

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.api_port}"

    @property
    def ws(self) -> str:
        return f"ws://127.0.0.1:{self.ws_port}"

    @property
    def output(self) -> str:
        return "".join((self.folder / name).read_text("utf-8", "replace") for name in self.outputs)

    def start(self) -> "ServerProcess":
        """Starts the server and waits until it is ready."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PUSH1ST_")}
        out_file, err_file = (self.folder / name for name in self.outputs)
        with open(out_file, "wb") as out, open(err_file, "wb") as err:
            limited = ["sh", "-c", f'ulimit -n {self.files} && exec "$@"', "sh"] if self.files else []
            self.process = subprocess.Popen(
                [
                    *limited,
                    sys.executable,
                    "-W",
                    "default",
                    "-X",
                    "faulthandler",
                    "-m",
                    "push1st",
                    "serve",
                    "-c",
                    str(self.folder / "server.yml"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=self.folder,
                env=environment,
            )
        try:
            wait_until(self._is_ready, "GET /ready answers 200 on the Unix socket", START_SECONDS)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        return self

    def _is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the server ended with {self.process.returncode}:\n{self.output}"
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.get("/ready", port=self.unix).status == 200
        return False

    def signal(self, number: int = signal.SIGTERM) -> None:
        assert self.process is not None
        self.told_to_stop = True
        self.process.send_signal(number)

    def wait(self, deadline: float = DEADLINE) -> int:
        """Waits until the server has ended; returns its exit code."""
        assert self.process is not None
        try:
            return self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the server did not end within {deadline} s:\n{self.output}") from None

    def stop(self) -> None:
        """Stops the server as an operator does; checks that its exit code is 0 and its log has no trace."""
        assert self.process is not None
        if self.process.poll() is None:
            self.signal()
            self.wait()
        assert self.told_to_stop, f"the server stopped by itself, or was stopped by somebody else:\n{self.output}"
        assert self.process.returncode == 0, self.output
        self.assert_quiet()

    def stop_at_once(self) -> None:
        """Stops the server with two signals, so that it does not wait for queued data."""
        self.signal()
        wait_until(lambda: " stopping " in self.output, "the server logs the first signal")
        self.signal()
        self.wait()

    def assert_quiet(self) -> None:
        """Checks that the log has no trace of an exception and no warning of Python."""
        complaint = re.search(r"Traceback|internal error|Task exception|never (awaited|retrieved)|\w*Warning: ", self.output)
        assert complaint is None, self.output

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        *,
        port: int | Path | None = None,
    ) -> Answer:
        """Sends one request on a connection of its own. `body`: bytes are sent unchanged, other values as JSON.

        port: a TCP port, by default the API's, or the path of a Unix socket.
        """
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if isinstance(port, Path):
            connection: http.client.HTTPConnection = UnixConnection(port)
        else:
            connection = http.client.HTTPConnection("127.0.0.1", port or self.api_port, timeout=DEADLINE)
        try:
            sent = {"Content-Type": "application/json", **(headers or {})} if body is not None else dict(headers or {})
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            return Answer(response.status, response.msg, response.read())
        finally:
            connection.close()

    def get(self, path: str, **more: Any) -> Answer:
        return self.request("GET", path, **more)

    def post(self, path: str, body: Any = None, **more: Any) -> Answer:
        return self.request("POST", path, body, **more)

    def signed(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, str] | None = None,
        key: str = "app-key",
        secret: str = "secret",
        at: float | None = None,
        port: int | None = None,
    ) -> Answer:
        """Sends one request with Pusher's signature. `at`: Unix time; None: now."""
        raw = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        signature = signed_query(method, path, raw, query or {}, key, secret, time.time() if at is None else at)
        return self.request(method, f"{path}?{signature}", raw or None, port=port)

    def publish(self, channel: str, event: str, data: Any, **more: Any) -> Answer:
        """Publishes with the unsigned call of the API page; fails if the server rejects it."""
        answer = self.post("/apps/app-test/events", {"name": event, "channels": [channel], "data": data, **more})
        assert answer.status == 200, answer
        return answer

    def resident_bytes(self, *pids: int) -> int:
        """Returns the resident memory of the server's first process, or of other processes together."""
        assert self.process is not None
        return sum(map(self._resident_bytes, pids or (self.process.pid,)))

    @staticmethod
    def _resident_bytes(pid: int) -> int:
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        assert found is not None
        return int(found[1]) * 1024

    def session_count(self, channel: str, app: str = "app-test") -> int:
        """Returns the number of subscribers of `channel` in Push1st's list of channels."""
        listed = self.get(f"/apps/{app}/channels/").json
        return next((entry["sess_count"] for entry in listed if entry["channel"] == channel), 0)

    def until_sessions(self, channel: str, count: int, app: str = "app-test") -> None:
        wait_until(lambda: self.session_count(channel, app) == count, f"{count} subscribers of {channel}")

    def assert_alive(self) -> None:
        """Checks that the server answers on both ports."""
        assert self.get("/health").status == 200
        assert self.get("/health", port=self.ws_port).status == 200


@contextlib.contextmanager
def running(
    config: Mapping[str, Any] | None = None, apps: Mapping[str, Any] | None = None, files: int = 0
) -> Iterator[ServerProcess]:
    """Runs a server for the length of a `with` block."""
    server = ServerProcess(config, apps, files)
    try:
        server.start()
        yield server
        server.stop()
    except BaseException:
        if server.process is not None and server.process.poll() is None:
            server.process.kill()
            server.process.wait()
        print(server.output)  # pytest shows it with the failure
        raise
    finally:
        shutil.rmtree(server.folder)


def push1st(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end; checks its exit code."""
    done = subprocess.run([*PUSH1ST, *arguments], check=False, capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr, done
    return done
