"""A hung worker and a hung engine: the supervisor kills and replaces each within 15 seconds, and the other processes serve on.

Both hang at the same time, each on a machine of its own, so that the tests wait only once.
"""

import contextlib
import http.client
import json
import signal
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.cluster.machine import (
    by_worker,
    children,
    connect_to,
    engine,
    exists,
    figure,
    kill,
    machine,
    supervisor,
    until_delivered,
    until_workers,
    workers,
)
from tests.support.process import DEADLINE, ServerProcess, wait_until
from tests.support.pusher_socket import PusherSocket

NOTICED_SECONDS = 15
"""time until the hung process is killed (docs/scaling.md)"""
REPLACED_SECONDS = 5
"""time from then until its replacement works, on a busy machine"""


class Hung(NamedTuple):
    """A machine with a hung process, the time since when it hangs, and a client of each worker."""

    server: ServerProcess
    pid: int
    since: float
    clients: list[PusherSocket]
    backend: http.client.HTTPConnection
    """a kept connection to the API of worker 1"""


@pytest.fixture(scope="module")
def hung() -> Iterator[tuple[Hung, Hung]]:
    """Starts a machine whose worker 0 hangs, and a machine whose engine hangs."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(machine(config={"api": {"keep-alive-timeout": 60}})) for _ in range(2)]
        clients = [[connect_to(server, number, stack) for number in (0, 1)] for server in servers]
        for client in (*clients[0], *clients[1]):
            client.subscribe("c")
        backends = [stack.enter_context(contextlib.closing(backend(server, stack))) for server in servers]
        found = []
        for server, pid, those, kept in zip(
            servers, (workers(servers[0])[0], engine(servers[1])), clients, backends, strict=True
        ):
            kill(pid, signal.SIGSTOP)
            found.append(Hung(server, pid, time.monotonic(), those, kept))
        yield found[0], found[1]


def backend(server: ServerProcess, stack: contextlib.ExitStack) -> http.client.HTTPConnection:
    """Opens a kept connection to worker 1."""
    for _ in range(60):
        before = by_worker(server, "push1st_events_in_total").get(1, 0)
        connection = http.client.HTTPConnection("127.0.0.1", server.api_port, timeout=DEADLINE)
        assert publish(connection, "other", 0) == 200
        if by_worker(server, "push1st_events_in_total").get(1, 0) > before:
            return connection
        connection.close()
    raise AssertionError("no connection reaches worker 1")


def publish(connection: http.client.HTTPConnection, channel: str, data: int) -> int:
    connection.request("POST", "/apps/app-test/events", json.dumps({"name": "e", "channels": [channel], "data": data}))
    with connection.getresponse() as answer:
        answer.read()
        return answer.status


def killed_after(hung: Hung, said: str) -> float:
    """Returns the seconds until the supervisor has logged the hang and the process has ended."""
    wait_until(lambda: said in hung.server.output and not exists(hung.pid), said, NOTICED_SECONDS + 2)
    return time.monotonic() - hung.since


def test_hung_worker_is_replaced_without_effect_on_clients_of_the_other(hung: tuple[Hung, Hung]) -> None:
    one, _ = hung
    theirs, other = one.clients
    sent = 0
    while "worker hangs" not in one.server.output:
        assert publish(one.backend, "c", sent) == 200
        sent += 1
        assert time.monotonic() - one.since < NOTICED_SECONDS + 2
        time.sleep(0.2)
    assert sent > 20
    assert killed_after(one, "worker hangs") < NOTICED_SECONDS + 1
    assert theirs.close_code() == 1006
    assert [other.expect("e", "c") for _ in range(sent)] == list(range(sent))
    wait_until(lambda: len(workers(one.server)) == 2, "another worker runs", REPLACED_SECONDS)
    until_workers(one.server, 2)
    assert len(children(supervisor(one.server))) == 3, "something is left, or too much was started"
    assert figure(one.server, "push1st_worker_restarts_total") == 1
    with contextlib.ExitStack() as stack:
        connect_to(one.server, 0, stack).subscribe("c")
        wait_until(lambda: one.server.session_count("c") == 2, "what the dead one had is gone")


def test_hung_engine_is_replaced_without_effect_on_clients(hung: tuple[Hung, Hung]) -> None:
    _, two = hung
    began = time.monotonic()
    assert publish(two.backend, "c", 0) == 503 or "engine hangs" in two.server.output
    assert time.monotonic() - began < 2.5
    assert killed_after(two, "engine hangs") < NOTICED_SECONDS + REPLACED_SECONDS
    wait_until(lambda: two.server.output.count("engine ready") == 2, "another engine is there", REPLACED_SECONDS)
    until_delivered(two.server, "c", two.clients)
    assert two.server.session_count("c") == 2
    assert len(children(supervisor(two.server))) == 3
    assert figure(two.server, "push1st_engine_restarts_total") == 1
