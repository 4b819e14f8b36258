"""Several workers under a flood: the supervisor considers none of them hung, and other clients stay connected."""

import contextlib
import threading
import time

import pytest

from tests.cluster.machine import connect_to, machine, until_delivered, workers
from tests.support.floods import FLOODING, FLOODS, flood

FLOOD_SECONDS = 25
"""longer than the time after which the supervisor kills a silent worker"""


@pytest.mark.long
@pytest.mark.parametrize("name", ["pings", "subscribing", "requests"])
def test_no_flood_makes_the_supervisor_replace_a_worker(stack: contextlib.ExitStack, name: str) -> None:
    server = stack.enter_context(machine())
    clients = [connect_to(server, number, stack) for number in (0, 1)]
    for client in clients:
        client.subscribe("c")
    before = workers(server)
    over = threading.Event()
    threads = [threading.Thread(target=flood, args=(server.ws_port, *FLOODS[name], over)) for _ in range(FLOODING)]
    for thread in threads:
        thread.start()
    try:
        end = time.monotonic() + FLOOD_SECONDS
        while time.monotonic() < end:
            until_delivered(server, "c", clients)
            time.sleep(0.5)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert workers(server) == before
