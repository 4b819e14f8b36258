"""Many pages at once, clocks that jump, and closing handshakes that cross."""

import contextlib
import time
from collections.abc import Callable

import pytest

from tests.cluster.machine import by_worker, kill, machine, start_reload, until_workers, workers
from tests.support.blackhole import blackhole
from tests.support.process import merged, running, wait_until
from tests.support.recovering import (
    ACKNOWLEDGE,
    BOUND,
    CONFIG,
    Clients,
    NodePages,
    PageClient,
    Publisher,
    RawClient,
    StreamClient,
    kept,
    page_name,
    together,
    until_joined,
    updated,
    verify,
)
from tests.support.valkey import Valkey

RETURN_SECONDS = 10
"""the seconds in which all pages of a killed worker must be back; pusher-js waits for one of them"""


# Crowds


@pytest.mark.parametrize(
    ("count", "rate"), [(120, 10), pytest.param(1500, 1, marks=[pytest.mark.long, pytest.mark.timeout(300)])], ids=["120", "1500"]
)
def test_all_pages_of_a_channel_recover_at_once(channel: str, count: int, rate: int) -> None:
    """The worker that is left joins them in steps, and reads the history once for each step.

    rate: the publishes a second; all pages are in one process of Node.js, which receives about 1500 events a second.
    """
    with machine(2, CONFIG, kept()) as server:
        client = NodePages(server.ws_port, {page_name(): [channel] for _ in range(count)})
        publisher = Publisher([server.api_port], [channel], rate)
        with together(client, publisher):
            until_joined([client])
            time.sleep(2 * ACKNOWLEDGE)
            lost = by_worker(server, "push1st_connections")[0]
            at = time.monotonic()
            kill(workers(server)[0])
            wait_until(
                lambda: sum(len(log.answers(channel)) > 1 for log in updated([client])) >= lost, "all are back", RETURN_SECONDS
            )
            until_workers(server, 2)
            time.sleep(1)
            verify([client], [publisher], recovered=range(2), repeat_seconds=BOUND, cuts=[at])
            assert lost > count / 10


# Clocks


@pytest.mark.parametrize("broker", ["memory", pytest.param("Valkey", marks=pytest.mark.long)])
def test_clock_that_is_set_back_half_an_hour_loses_nothing(
    valkey: Valkey, clock: Callable[[str], Callable[[int], object]], channel: str, broker: str
) -> None:
    """Offsets, and not times, order the messages."""
    config = CONFIG if broker == "memory" else CONFIG | {"broker": f"{valkey.url}?prefix=shop"}
    shift = clock("one")
    with running(config, kept()) as server, blackhole(server.ws_port) as proxy:
        clients: list[Clients] = [kind(proxy.port, [channel]) for kind in (PageClient, RawClient, StreamClient)]
        publisher = Publisher([server.api_port], [channel], 20)
        with together(*clients, publisher):
            until_joined(clients)
            time.sleep(2 * ACKNOWLEDGE)
            shift(-1800)
            time.sleep(1)
            cuts = [proxy.cut()]
            until_joined(clients, 2)
            time.sleep(2 * ACKNOWLEDGE)
            shift(-1790)
            cuts.append(proxy.cut())
            until_joined(clients, 3)
            verify(clients, [publisher], recovered=2, repeat_seconds=BOUND, cuts=cuts)


def test_machines_whose_clocks_differ_by_five_seconds_resume_each_other_s_clients(
    valkey: Valkey, clock: Callable[[str], Callable[[int], object]], channel: str
) -> None:
    config = CONFIG | {"broker": f"{valkey.url}?prefix=shop"}
    with contextlib.ExitStack() as stack:
        clock("one")
        one = stack.enter_context(running(config, kept()))
        clock("two")(-5)
        two = stack.enter_context(running(config, kept()))
        proxy = stack.enter_context(blackhole(one.ws_port))
        clients: list[Clients] = [kind(proxy.port, [channel]) for kind in (PageClient, RawClient, StreamClient)]
        publisher = Publisher([one.api_port], [channel], 20)
        with together(*clients, publisher):
            until_joined(clients)
            cuts = []
            for times, port in enumerate((two.ws_port, one.ws_port), 2):
                time.sleep(2 * ACKNOWLEDGE)
                proxy.target = port
                cuts.append(proxy.cut())
                until_joined(clients, times)
            verify(clients, [publisher], recovered=2, repeat_seconds=BOUND, cuts=cuts)


# Closing handshakes


def test_page_that_closes_while_the_server_closes_misses_nothing(channel: str) -> None:
    """The two close frames cross, so the client's frame is no answer to the server's frame."""
    with machine(2, merged(CONFIG, {"server": {"drain": 1}}), kept()) as server:
        client = NodePages(server.ws_port, {page_name(): [channel] for _ in range(4)})
        publisher = Publisher([server.api_port], [channel], 100)
        with together(client, publisher):
            until_joined([client])
            time.sleep(2 * ACKNOWLEDGE)
            before = server.output.count("reloaded")
            with start_reload(server, "--workers"):
                end = time.monotonic() + 20
                while server.output.count("reloaded") == before and time.monotonic() < end:
                    for log in client.logs:
                        client.process.tell("disconnect", page=log.name)
                        client.process.tell("connect", page=log.name)
                    time.sleep(1.3)
            time.sleep(2)
            answers = max(len(log.answers(channel)) for log in updated([client]))
            verify([client], [publisher], recovered=range(1, answers), repeat_seconds=BOUND + 1)
