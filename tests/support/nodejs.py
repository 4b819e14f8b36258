"""A process of Node.js that runs a JavaScript client. It reads one JSON command a line and writes one JSON report a line."""

import base64
import json
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.process import DEADLINE, ServerProcess, program

MASTER_KEY = base64.b64encode(bytes(range(32))).decode()

CLIENTS = Path(__file__).parent.parent / "clients"
SCRIPTS = CLIENTS / "node"
MODULES = CLIENTS / "node_modules"
ANSWER_SECONDS = 30.0
"""maximum seconds until a script replies to a command: a script with a thousand clients reads no command while they connect"""


def node_program() -> str:
    """Returns the path of Node.js; skips the test without Node.js, or if `make test` has not fetched the clients."""
    if not (MODULES / ".installed").exists():
        pytest.skip(f"{MODULES} has no clients: make test fetches them, and needs Node.js for it")
    return program("node", "nodejs")


class NodeProcess:
    """One script of `tests/clients/node`. A thread reads its reports; `next` returns a report by its fields.

    flags: options of Node.js itself. prefix: a command that runs Node.js, such as `ip netns exec NAME`.
    """

    def __init__(self, script: str, options: Any, flags: Sequence[str] = (), prefix: Sequence[str] = ()) -> None:
        self.script = script
        self.process = subprocess.Popen(
            [*prefix, node_program(), *flags, str(SCRIPTS / script), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=SCRIPTS,
        )
        self.seen: list[dict[str, Any]] = []
        """all reports that `next` has read, for the message of a failure"""
        self._reports: queue.Queue[dict[str, Any]] = queue.Queue()
        self._errors = b""
        self._threads = [threading.Thread(target=self._read), threading.Thread(target=self._read_errors)]
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._reports.put(json.loads(line))
        self._reports.put({"on": "exit"})

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self._errors = self.process.stderr.read()

    def tell(self, do: str, **what: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **what}).encode() + b"\n")
        self.process.stdin.flush()

    def ask(self, do: str, **what: Any) -> Any:
        """Sends a command and returns the reply of the script."""
        self.tell(do, **what)
        return self.next(ANSWER_SECONDS, on="answer")["answer"]

    def next(self, deadline: float = DEADLINE, /, **fields: Any) -> dict[str, Any]:
        """Returns the next report that has all of `fields`; skips earlier reports. `deadline`: the seconds before it fails."""
        end = time.monotonic() + deadline
        while True:
            try:
                report = self._reports.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"{self.script} did not report {fields}; it reported {self.seen}") from None
            self.seen.append(report)
            if all(report.get(name) == value for name, value in fields.items()):
                return report
            assert report["on"] != "exit", f"{self.script} ended before it reported {fields}: {self.seen} {self._errors!r}"

    def close(self) -> None:
        """Ends the process; fails if the script raised an exception."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdin.close()
        try:
            self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for thread in self._threads:
            thread.join()
        self.process.stdout.close()
        self.process.stderr.close()
        assert self.process.returncode == 0, f"{self.script} ended with {self.process.returncode}: {self._errors!r}"


def start_pusher_js(
    node: Callable[..., NodeProcess],
    server: ServerProcess,
    key: str = "app-key",
    client: dict[str, Any] | None = None,
    **more: Any,
) -> NodeProcess:
    """Starts a pusher-js client that connects to the server."""
    options = {"wsHost": "127.0.0.1", "wsPort": server.ws_port, **(client or {})}
    return node("pusher_js.mjs", key=key, client=options, api=server.api, **{"secret": "secret", "masterKey": MASTER_KEY, **more})


def subscribed(client: NodeProcess, channel: str, *events: str) -> dict[str, Any]:
    client.tell("subscribe", channel=channel, events=events)
    return client.next(on="subscribed", channel=channel)
