"""Measures the CPU time of deliveries with QoS 1 to 1000 MQTT clients, without sockets. It takes a few seconds.

    python bench/mqtt_deliver.py

A figure is the fastest of the repetitions, in microseconds for each delivery. The messages of a batch are published in one turn.

- **QoS 0**: the same deliveries with shared frames, as a comparison.
- **deliver**: the clients' packet ids are added, and the packets are passed to the transports.
- **acknowledge**: each client's PUBACKs of a batch arrive in one read, and are applied.
- The packet ids of the clients are equal, as after a restart, or different.

The goal is 1.5 µs for deliver and acknowledge together, in batches of 8 and more. The exit code is 1 if the goal is missed.
"""

import asyncio
import sys
import time
from collections.abc import Callable

from report import grid

from push1st.protocols.mqtt import encode
from push1st.protocols.mqtt.packets import MQTT_311, FilterOptions
from push1st.transports.mqtt.session import MqttSession
from tests.support.mqtt_site import MqttClient, MqttSite

CLIENTS = 1000
BATCHES = (1, 8, 20)
REPETITIONS = 30
GOAL = 1.5
DATA = b'"' + 100 * b"x" + b'"'


def drop(data: bytes) -> None:
    """Replaces the `write` of a transport."""


def session_of(client: MqttClient) -> MqttSession:
    session = client.connection._session
    assert session is not None
    return session


async def clients(site: MqttSite, qos: int) -> list[MqttClient]:
    found = []
    for number in range(CLIENTS):
        client = await site.connected(MQTT_311, f"client-{number}", keep_alive=0)
        client.transport.write = drop  # type: ignore[method-assign]
        session_of(client).client.write = drop
        await client.subscribe(FilterOptions("bench", qos))
        found.append(client)
    return found


def fastest(repetitions: int, *steps: Callable[[], object]) -> list[float]:
    """Returns the time of each step in seconds; the steps are repeated together."""
    best = [float("inf")] * len(steps)
    for _ in range(repetitions):
        for at, step in enumerate(steps):
            began = time.process_time()
            step()
            best[at] = min(best[at], time.process_time() - began)
    return best


async def measure(qos: int, batch: int, are_equal: bool) -> list[float]:
    """Returns the microseconds of `deliver` and of `acknowledge` for each delivery."""
    site = MqttSite()
    found = await clients(site, qos)
    next_ids = [1] * CLIENTS
    if qos and not are_equal:
        for number, client in enumerate(found):
            session_of(client).sending()._outgoing._next_id = next_ids[number] = 1 + 60 * number
    reads: list[bytes] = []

    def publish() -> None:
        for _ in range(batch):
            site.world.publish("bench", DATA)

    def flush() -> None:
        site.world.fanout.flush()

    def prepare() -> None:
        reads[:] = [
            encode.acknowledgements(encode.PUBACK, [(first + at - 1) % 65_535 + 1 for at in range(batch)]) for first in next_ids
        ]
        next_ids[:] = [(first + batch - 1) % 65_535 + 1 for first in next_ids]

    def acknowledge() -> None:
        for client, data in zip(found, reads, strict=True):
            client.connection.process(data)

    steps = [publish, flush, prepare, acknowledge] if qos else [publish, flush]
    times = [one / CLIENTS / batch * 1e6 for one in fastest(REPETITIONS, *steps)]
    if qos:
        for client in found:
            assert session_of(client).sending()._outgoing.inflight == 0
    return [times[1], times[3] if qos else 0.0]


async def main() -> int:
    rows = [["µs for each delivery", *(f"batches of {batch}" for batch in BATCHES)]]
    shared = [(await measure(0, batch, True))[0] for batch in BATCHES]
    rows.append(["QoS 0", *(f"{one:.2f}" for one in shared)])
    is_slow = False
    for are_equal in (True, False):
        found = [await measure(1, batch, are_equal) for batch in BATCHES]
        ids = "equal ids" if are_equal else "different ids"
        rows.append([f"deliver, {ids}", *(f"{one[0]:.2f}" for one in found)])
        rows.append([f"acknowledge, {ids}", *(f"{one[1]:.2f}" for one in found)])
        rows.append(["both", *(f"{sum(one):.2f}" for one in found)])
        is_slow = is_slow or max(sum(one) for one in found[1:]) > GOAL
    print(grid(rows))
    return int(is_slow)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
