"""Clients recover when workers are killed or reloaded, and on another machine."""

import signal
import time

import pytest

from tests.cluster.machine import by_worker, kill, machine, reload, supervisor, until_workers, workers
from tests.support.blackhole import blackhole
from tests.support.process import merged, running, wait_until
from tests.support.recovering import (
    ACKNOWLEDGE,
    BOUND,
    CONFIG,
    Publisher,
    channels_of,
    clients_of,
    kept,
    rejoined,
    together,
    until_joined,
    verify,
)
from tests.support.valkey import Valkey

# Workers


def test_clients_of_a_killed_worker_recover(channel: str) -> None:
    channels = channels_of(channel)
    with machine(2, CONFIG, kept()) as server:
        clients = clients_of([server.ws_port], channels)
        publisher = Publisher([server.api_port], channels, 40)
        with together(*clients, publisher):
            until_joined(clients)
            time.sleep(2 * ACKNOWLEDGE)
            at = time.monotonic()
            kill(workers(server)[0])
            wait_until(lambda: rejoined(clients) > 0, "a client returns")
            until_workers(server, 2)
            time.sleep(1.5)
            lost = rejoined(clients)
            verify(clients, [publisher], recovered=range(2), repeat_seconds=BOUND, cuts=[at])
            assert lost > 0
            assert publisher.statuses <= {200, 503}


@pytest.mark.parametrize("reloads", [1, pytest.param(3, marks=pytest.mark.long)])
@pytest.mark.timeout(180)
def test_clients_of_a_server_that_reloads_recover_without_repeats(channel: str, reloads: int) -> None:
    """The echo of the close frame shows what each client has received."""
    channels = channels_of(channel)[:3]
    with machine(2, merged(CONFIG, {"server": {"drain": 5}}), kept()) as server:
        clients = clients_of([server.ws_port], channels, 1)
        publisher = Publisher([server.api_port], channels, 40)
        with together(*clients, publisher):
            until_joined(clients)
            for times in range(2, reloads + 2):
                time.sleep(2 * ACKNOWLEDGE)
                reload(server)
                until_joined(clients, times)
            time.sleep(1)
            # A client may return to a worker that is about to stop, and then returns once more.
            assert verify(clients, [publisher], recovered=range(reloads, 3 * reloads + 1)) == 0


@pytest.mark.long
@pytest.mark.timeout(600)
def test_five_minutes_without_a_failure_notify_no_client(channel: str) -> None:
    channels = channels_of(channel)
    with machine(2, CONFIG, kept()) as server:
        clients = clients_of([server.ws_port], channels)
        publisher = Publisher([server.api_port], channels, 10)
        with together(*clients, publisher):
            until_joined(clients)
            time.sleep(300)
            assert verify(clients, [publisher], recovered=0) == 0
        for name in ("push1st_gaps_healed_total", "push1st_gaps_reported_total"):
            assert by_worker(server, name) == {0: 0, 1: 0}


# Machines


def test_clients_of_a_machine_that_stops_recover_on_another_without_repeats(valkey: Valkey, channel: str) -> None:
    channels = channels_of(channel)[:3]
    broker = merged(CONFIG, {"broker": f"{valkey.url}?prefix=shop", "server": {"drain": 3}})
    with running(broker, kept()) as one, running(broker, kept()) as two, blackhole(one.ws_port) as proxy:
        clients = clients_of([proxy.port], channels)
        publisher = Publisher([two.api_port], channels, 40)
        with together(*clients, publisher):
            until_joined(clients)
            time.sleep(2 * ACKNOWLEDGE)
            proxy.target = two.ws_port
            one.signal()
            until_joined(clients, 2)
            one.wait()
            assert verify(clients, [publisher], recovered=1) == 0


def test_pages_recover_on_another_machine(valkey: Valkey, channel: str) -> None:
    """Each client moves to another machine and back, while the other machine stands still."""
    channels = channels_of(channel)[:2]
    broker = CONFIG | {"broker": f"{valkey.url}?prefix=shop"}
    with running(broker, kept()) as one, running(broker, kept()) as two, blackhole(one.ws_port) as proxy:
        clients = clients_of([proxy.port], channels, 1)
        publisher = Publisher([one.api_port], channels, 20)
        with together(*clients, publisher):
            until_joined(clients)
            time.sleep(2 * ACKNOWLEDGE)
            proxy.target = two.ws_port
            first = proxy.cut()
            until_joined(clients, 2)
            time.sleep(2 * ACKNOWLEDGE)
            kill(supervisor(two), signal.SIGSTOP)
            proxy.target = one.ws_port
            second = proxy.cut()
            until_joined(clients, 3)
            kill(supervisor(two), signal.SIGCONT)
            verify(clients, [publisher], recovered=2, repeat_seconds=BOUND, cuts=[first, second])
