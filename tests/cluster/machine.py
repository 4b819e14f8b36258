"""A server with several workers as seen from outside: `ps` lists its processes, and the metrics show the state of each worker."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import yaml

from tests.support.process import PUSH1ST, ServerProcess, merged, program, running, wait_until
from tests.support.pusher_socket import PusherSocket, pusher_socket

Opened = TypeVar("Opened")

ROOM = "presence-room"
GONE_SECONDS = 13
"""time until the entries of a dead machine are evicted (docs/scaling.md): a lease of 10 seconds, and a check every 3 seconds"""

SAMPLE = re.compile(r'(?m)^(\w+)\{(?:[^}]*,)?worker="(\d+)"[^}]*\} ([0-9.e+]+)$')
MAX_TRIES = 60
"""connections until one reaches the wanted worker; by chance none does in one of 2 ** 60 runs"""


@contextlib.contextmanager
def machine(
    workers: int = 2, config: Mapping[str, Any] | None = None, apps: Mapping[str, Any] | None = None
) -> Iterator[ServerProcess]:
    """Runs a server with this number of workers, all ready."""
    with running(merged({"server": {"workers": workers}}, config or {}), apps) as server:
        until_workers(server, workers)
        yield server


def until_workers(server: ServerProcess, count: int) -> None:
    wait_until(lambda: figure(server, "push1st_workers") == count, f"{count} workers", 20)


def figure(server: ServerProcess, name: str) -> float:
    """Returns a metric without labels."""
    text = server.get("/metrics").body.decode()
    found = re.search(rf"(?m)^{name} ([0-9.e+]+)$", text)
    assert found, text
    return float(found[1])


def by_worker(server: ServerProcess, name: str) -> dict[int, float]:
    """Returns a metric of each worker, summed over its other labels."""
    found: dict[int, float] = {}
    for metric, worker, value in SAMPLE.findall(server.get("/metrics").body.decode()):
        if metric == name:
            found[int(worker)] = found.get(int(worker), 0) + float(value)
    return found


def children(pid: int) -> dict[int, str]:
    """Returns the command lines of a process's children."""
    listed = subprocess.run(
        [program("ps", "procps"), "-A", "-ww", "-o", "pid=,ppid=,command="], capture_output=True, text=True, check=True
    ).stdout
    rows = (line.split(None, 2) for line in listed.splitlines())
    return {int(row[0]): row[2] for row in rows if len(row) == 3 and int(row[1]) == pid and "defunct" not in row[2]}


def supervisor(server: ServerProcess) -> int:
    assert server.process is not None
    return server.process.pid


def workers(server: ServerProcess) -> dict[int, int]:
    """Returns the process ids of the running workers by their numbers."""
    there = children(supervisor(server))
    ready = re.findall(r"worker ready .*pid=(\d+) worker=(\d+)", server.output)
    return {int(number): int(pid) for pid, number in ready if int(pid) in there}


def engine(server: ServerProcess) -> int:
    """Returns the process id of the embedded engine."""
    (pid,) = [pid for pid, command in children(supervisor(server)).items() if "engine.sock" in command]
    return pid


def exists(pid: int) -> bool:
    """Returns whether a process runs; a zombie does not."""
    state = subprocess.run(
        [program("ps", "procps"), "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.strip()
    return bool(state) and not state.startswith("Z")


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    os.kill(pid, number)


def on_worker(
    server: ServerProcess, number: int, stack: contextlib.ExitStack, connect: Callable[[], AbstractContextManager[Opened]]
) -> Opened:
    """Connects a client to one worker. connect: returns a new connection as a context."""
    deadline = time.monotonic() + 30  # a worker that has just been killed has to start again
    while time.monotonic() < deadline:
        before = by_worker(server, "push1st_connections_opened_total").get(number, 0)
        with contextlib.ExitStack() as attempt:
            client = attempt.enter_context(connect())
            if by_worker(server, "push1st_connections_opened_total").get(number, 0) > before:
                stack.push(attempt.pop_all())
                return client
    raise AssertionError(f"no connection reaches worker {number}")


def connect_to(server: ServerProcess, number: int, stack: contextlib.ExitStack) -> PusherSocket:
    """Connects a Pusher client to one worker."""
    return on_worker(server, number, stack, lambda: pusher_socket(server))


def reconfigure(server: ServerProcess, change: Mapping[str, Any]) -> None:
    """Merges a change into the configuration file of a running server."""
    file = server.folder / "server.yml"
    file.write_text(yaml.safe_dump(merged(yaml.safe_load(file.read_text()), change)))


def start_reload(server: ServerProcess, *arguments: str) -> "subprocess.Popen[str]":
    """Starts the command `push1st reload` for the server."""
    start = [*PUSH1ST, "reload", "-c", str(server.folder / "server.yml"), *arguments]
    return subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def command(server: ServerProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command `push1st reload` for the server."""
    with start_reload(server, *arguments) as process:
        out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def reload(server: ServerProcess, outcome: str = "reloaded") -> None:
    """Makes the server read its configuration again and replace its workers, and waits until its log has the outcome."""
    before = server.output.count(outcome)
    command(server, "--workers")
    wait_until(lambda: server.output.count(outcome) > before, f"the log says: {outcome}", 30)


def until_delivered(server: ServerProcess, channel: str, clients: Sequence[PusherSocket], deadline: float = 15) -> None:
    """Publishes repeatedly until each client has received an event; without the engine the answer is 503."""
    end = time.monotonic() + deadline
    waiting = list(clients)
    while waiting:
        answer = server.post("/apps/app-test/events", {"name": "e", "channels": [channel], "data": 1})
        assert answer.status in (200, 503), answer
        for client in list(waiting):
            with contextlib.suppress(TimeoutError):
                assert client.receive(0.05)["event"] == "e"
                waiting.remove(client)
        assert time.monotonic() < end, answer


def copy(source: socket.socket, sink: socket.socket) -> None:
    """Copies one direction of a connection, as a proxy does, until either side ends it."""
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
    for one in (source, sink):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
    source.close()


@contextlib.contextmanager
def again_and_again(action, failures: list[str]) -> Iterator[list[int]]:
    """Repeats an action in a thread until the end of the block; counts the successes and stores the failures."""
    done = [0]
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            try:
                action()
                done[0] += 1
            except Exception as exc:
                failures.append(repr(exc))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield done
    finally:
        over.set()
        thread.join(20)


def users_of(server: ServerProcess) -> set[str]:
    return {user["id"] for user in server.signed("GET", f"/apps/app-test/channels/{ROOM}/users").json["users"]}
