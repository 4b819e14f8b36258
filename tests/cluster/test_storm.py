"""Many clients reconnect at once: the server accepts them, and connected clients keep receiving.

This is a small storm for each test run. `bench/storm.py` makes a large one and prints its duration.
"""

import asyncio
import json
import threading
import time

from websockets.asyncio.client import ClientConnection, connect

from tests.cluster.machine import by_worker
from tests.support.process import ServerProcess
from tests.support.pusher_socket import QUERY

MANY = 500
STEADY = 6
SECONDS = 20
"""maximum time for all clients: ten times the usual duration on two busy cores"""


async def subscribed(server: ServerProcess, channel: str) -> ClientConnection:
    connection = await connect(f"{server.ws}/app/app-key?{QUERY}", compression=None, ping_interval=None, open_timeout=SECONDS)
    await connection.send(json.dumps({"event": "pusher:subscribe", "data": {"channel": channel}}))
    while json.loads(await connection.recv())["event"] != "pusher_internal:subscription_succeeded":
        pass
    return connection


def test_storm_of_connections_is_accepted_while_others_receive(shared: ServerProcess, channel: str) -> None:
    async def receive_in_a_storm() -> None:
        steady = [await subscribed(shared, channel) for _ in range(STEADY)]
        over = threading.Event()
        sent = 0

        def publish() -> None:  # the event loop of the clients is busy
            nonlocal sent
            while not over.wait(0.05):
                shared.publish(channel, "e", sent)
                sent += 1

        publishing = asyncio.create_task(asyncio.to_thread(publish))
        began = time.monotonic()
        try:
            storm = asyncio.gather(*(subscribed(shared, f"{channel}-{n % 50}") for n in range(MANY)))
            many = await asyncio.wait_for(storm, SECONDS)
            assert sent > time.monotonic() - began, "at least one event a second is acknowledged"
        finally:
            over.set()
        await publishing
        for client in steady:
            got = [json.loads(json.loads(await asyncio.wait_for(client.recv(), 5))["data"]) for _ in range(sent)]
            assert got == list(range(sent))
        await asyncio.gather(*(client.close() for client in (*steady, *many)))

    asyncio.run(receive_in_a_storm())
    opened = by_worker(shared, "push1st_connections_opened_total")
    assert all(count > MANY / 4 for count in opened.values()), opened
