"""The addresses of `metrics.listen`, and the token of `metrics.token`, on servers with one worker and with two workers."""

import contextlib
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.machine import machine, reconfigure, reload
from tests.support.process import ServerProcess, free_ports, running

TOKEN = "canary-of-the-metrics-token"
RIGHT = {"Authorization": f"Bearer {TOKEN}"}
WRONG = {"Authorization": f"Bearer {TOKEN[:-1]}"}
PAGE = {"Origin": "https://shop.example"}
FILES = 120
PUBLISH = {"name": "e", "channels": ["c"], "data": "x"}


@contextlib.contextmanager
def scraped(workers: int, **metrics: object) -> Iterator[tuple[ServerProcess, int, Path]]:
    """Runs a server that listens for scrapes; yields the port and the Unix socket for scrapes, too."""
    (port,) = free_ports(1)
    config = {"log": {"level": "debug"}, "metrics": {"listen": [f"tcp://127.0.0.1:{port}", "unix://metrics.sock"], **metrics}}
    with running(config) if workers == 1 else machine(workers, config) as server:
        yield server, port, server.folder / "metrics.sock"


def command(*words: str) -> str:
    """Returns the output of a command that succeeds."""
    done = subprocess.run([sys.executable, "-m", "push1st", *words], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done
    return done.stdout + done.stderr


def workers_in(text: bytes) -> set[str]:
    return set(re.findall(r'push1st_build_info\{.*worker="(\d+)"', text.decode()))


@pytest.mark.parametrize("workers", [1, 2])
def test_address_for_metrics_serves_the_metrics_of_all_workers_and_no_api(workers: int) -> None:
    with scraped(workers) as (server, port, unix):
        for place in (port, unix):
            answer = server.get("/metrics", port=place)
            assert answer.status == 200
            assert workers_in(answer.body) == (set() if workers == 1 else {"0", "1"})
            assert server.get("/health", port=place).status == server.get("/ready", port=place).status == 200
            assert server.post("/apps/app-test/events", PUBLISH, port=place).status == 404
            assert server.get("/apps/app-test/channels", port=place).status == 404
        assert server.signed("GET", "/apps/app-test/channels", port=port).status == 404
        assert server.get("/metrics", headers=PAGE, port=port).status == 403
        assert server.get("/metrics", headers={"Host": "shop.example"}, port=port).status == 403
        assert server.get("/metrics", headers={"X-Forwarded-For": "10.0.0.7"}, port=port).status == 403


def test_token_opens_the_metrics_and_is_never_shown() -> None:
    with scraped(2, token=TOKEN) as (server, port, unix):
        for place in (port, unix):
            assert server.get("/metrics", port=place).status == 401
            assert server.get("/metrics", headers=WRONG, port=place).status == 401
            assert server.get("/metrics", headers=RIGHT, port=place).status == 200
            assert server.get("/health", port=place).status == 200
        assert server.get("/metrics", headers=PAGE).status == 403
        assert server.get("/metrics", headers=PAGE | WRONG).status == 403
        assert server.get("/metrics", headers=PAGE | RIGHT).status == 200
        assert server.get("/metrics", headers=RIGHT, port=server.ws_port).status == 403
        assert server.post("/apps/app-test/events", PUBLISH, headers=PAGE | RIGHT).status == 401
        commands = (["check"], ["check", "--json"], ["status"], ["status", "--json"])
        shown = [command(*words, "-c", str(server.folder / "server.yml")) for words in commands]
        assert f"metrics on http://127.0.0.1:{port}/metrics, for callers with metrics.token" in shown[0]
        assert all("metrics" in text for text in shown[2:])
        metrics = server.get("/metrics").body.decode()
        assert all(TOKEN not in text for text in (server.output, *shown, metrics))


def test_reload_adds_changes_and_removes_the_address_for_metrics() -> None:
    first, second = free_ports(2)
    with machine() as server:
        reconfigure(server, {"metrics": {"listen": f"tcp://127.0.0.1:{first}"}})
        reload(server)
        assert workers_in(server.get("/metrics", port=first).body)
        reconfigure(server, {"metrics": {"listen": f"tcp://127.0.0.1:{second}", "token": TOKEN}})
        reload(server)
        assert server.get("/metrics", port=second).status == 401
        assert server.get("/metrics", headers=RIGHT, port=second).status == 200
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", first)).close()


def test_callers_of_the_address_for_metrics_cannot_take_the_descriptors_of_the_api(stack: contextlib.ExitStack) -> None:
    (port,) = free_ports(1)
    server = stack.enter_context(running({"metrics": {"listen": f"tcp://127.0.0.1:{port}"}}, files=FILES))
    for _ in range(FILES):
        stack.enter_context(socket.create_connection(("127.0.0.1", port)))
    assert server.post("/apps/app-test/events", PUBLISH).status == 200
    assert server.get("/metrics").status == 200
