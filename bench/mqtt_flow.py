"""Measures the CPU time of the QoS bookkeeping of MQTT, without bytes and sockets. It takes a few seconds.

    python bench/mqtt_flow.py

A figure is the fastest of the repetitions, in microseconds for each message.

- **QoS 1 out**, **QoS 2 out**: `Outgoing` assigns a packet id to each message of a batch, and handles the acknowledgements.
- **waiting**: the same for QoS 1 with a full window, so that each message first waits.
- **QoS 1 in**, **QoS 2 in**: `Incoming` handles the messages of a batch, which the broker confirms at once.

The goal is 0.6 µs for QoS 1 out in batches of 8 to 40. The exit code is 1 if the goal is missed.
"""

import sys
import time
from collections.abc import Callable

import msgspec
from report import grid

from push1st.protocols.mqtt.flow import FlowBounds, FlowCounts
from push1st.protocols.mqtt.incoming import Incoming
from push1st.protocols.mqtt.outgoing import Outgoing

BATCHES = (1, 8, 20, 40)
GOAL = 0.6
MESSAGES = 4000
REPETITIONS = 30
BOUNDS = FlowBounds(inflight=40, queue=1000, queue_size=1 << 20)


class Template(msgspec.Struct, frozen=True, gc=False):
    """A message to clients (`flow.Sendable`)."""

    qos: int
    size: int = 114
    expires: int = 0


def outgoing() -> Outgoing[Template]:
    one: Outgoing[Template] = Outgoing(BOUNDS, FlowCounts())
    one.attach(65_535, 0)
    return one


def qos_1_out(batch: int) -> Callable[[], object]:
    one, items = outgoing(), (Template(1),) * batch

    def deliver() -> None:
        sent = one.send(items, 1)
        one.puback([packet_id for packet_id, _, _ in sent])
        one.fill(1)

    return deliver


def qos_2_out(batch: int) -> Callable[[], object]:
    one, items = outgoing(), (Template(2),) * batch

    def deliver() -> None:
        ids = one.pubrec([packet_id for packet_id, _, _ in one.send(items, 1)])
        one.pubcomp(ids)
        one.fill(1)

    return deliver


def waiting(batch: int) -> Callable[[], object]:
    one, items = outgoing(), (Template(1),) * batch
    ids = [packet_id for packet_id, _, _ in one.send((Template(1),) * BOUNDS.inflight, 1)]

    def deliver() -> None:
        one.send(items, 1)
        one.puback(ids[:batch])
        ids[:batch] = []
        ids.extend(packet_id for packet_id, _, _ in one.fill(1))

    return deliver


def arriving(qos: int, batch: int) -> Callable[[], object]:
    one, ids = Incoming(BOUNDS, FlowCounts()), range(1, batch + 1)

    def receive() -> None:
        for packet_id in ids:
            arrival = one.publish(packet_id, qos, False, packet_id)
            assert arrival is not None
            one.confirm(arrival)
        one.answers()
        if qos == 2:
            one.pubrel(ids)

    return receive


def measure(step: Callable[[], object], batch: int) -> float:
    """Returns the microseconds for each message."""
    best = float("inf")
    for _ in range(REPETITIONS):
        started = time.process_time()
        for _ in range(MESSAGES // batch):
            step()
        best = min(best, time.process_time() - started)
    return best / MESSAGES * 1e6


def main() -> int:
    loads: dict[str, Callable[[int], Callable[[], object]]] = {
        "QoS 1 out": qos_1_out,
        "QoS 2 out": qos_2_out,
        "waiting": waiting,
        "QoS 1 in": lambda batch: arriving(1, batch),
        "QoS 2 in": lambda batch: arriving(2, batch),
    }
    found = {name: [measure(load(batch), batch) for batch in BATCHES] for name, load in loads.items()}
    heads = ["µs for each message", *(f"batches of {batch}" for batch in BATCHES)]
    print(grid([heads, *([name, *(f"{figure:.2f}" for figure in figures)] for name, figures in found.items())]))
    return max(found["QoS 1 out"][1:]) > GOAL


if __name__ == "__main__":
    sys.exit(main())
