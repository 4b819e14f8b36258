"""What hangs is killed, and another takes its place: by a supervisor that asks more often (`hurried.py`)."""

import contextlib
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.process import ServerProcess, running, wait_until
from tests.cluster.machine import connect_to, engine, exists, figure, kill, until_delivered, until_workers, workers


@pytest.fixture
def hurried() -> Iterator[ServerProcess]:
    with running({"server": {"workers": 2}}, program=(str(Path(__file__).with_name("hurried.py")),)) as server:
        until_workers(server, 2)
        yield server


def test_a_worker_that_hangs_is_killed_and_replaced(hurried: ServerProcess, channel: str, stack: contextlib.ExitStack) -> None:
    lost, staying = (connect_to(hurried, number, stack) for number in (0, 1))
    staying.subscribe(channel)
    hung = workers(hurried)[0]
    kill(hung, signal.SIGSTOP)
    wait_until(lambda: not exists(hung), "it is killed")
    until_workers(hurried, 2)
    assert lost.close_code() == 1006
    assert re.findall(r"worker hangs .*worker=(\d)", hurried.output) == ["0"]
    assert figure(hurried, "push1st_worker_restarts_total") == 1
    connect_to(hurried, 0, stack).subscribe(channel)
    hurried.publish(channel, "e", 1)
    assert staying.expect("e", channel) == 1


def test_an_engine_that_hangs_is_killed_and_replaced(hurried: ServerProcess, channel: str, stack: contextlib.ExitStack) -> None:
    clients = [connect_to(hurried, number, stack) for number in (0, 1)]
    for client in clients:
        client.subscribe(channel)
    hung = engine(hurried)
    kill(hung, signal.SIGSTOP)
    wait_until(lambda: not exists(hung), "it is killed", 15)
    wait_until(lambda: hurried.output.count("engine ready") == 2, "another is there")
    until_delivered(hurried, channel, clients)
    assert "engine hangs" in hurried.output
