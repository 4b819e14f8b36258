"""Measures the CPU time of the MQTT codec, without sockets. It takes a few seconds.

    python bench/mqtt_codec.py

A figure is the fastest of the repetitions, in microseconds for each packet. A read has 100 packets, or one packet. Payloads have
100 bytes, and topics 20 bytes.

The goals are 1 µs for a PUBLISH, and 0.4 µs for a PUBACK, among 100 packets. The exit code is 1 if a goal is missed.
"""

import sys
import time
from collections.abc import Callable

from report import grid

from push1st.protocols.mqtt import encode
from push1st.protocols.mqtt.decode import PacketDecoder
from push1st.protocols.mqtt.packets import MQTT_5, MQTT_311, ConnectPacket
from push1st.protocols.mqtt.payload import data_of, payload_of
from push1st.protocols.mqtt.topics import exchange
from tests.support.mqtt_packets import connect

TOPIC = "sensors/kitchen/temp"
PAYLOAD = b"x" * 100
PACKETS = 100
REPETITIONS = 300
MOST_US_PUBLISH = 1.0
MOST_US_PUBACK = 0.4


def fastest(work: Callable[[], object], packets: int = 1) -> float:
    """Returns the time of one packet in µs."""
    times = []
    for _ in range(REPETITIONS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times) / packets * 1e6


def many(work: Callable[[], object]) -> float:
    """Returns the time of one call in µs; each repetition calls 100 times."""

    def calls() -> None:
        for _ in range(PACKETS):
            work()

    return fastest(calls, PACKETS)


def decoding(version: int, data: bytes, packets: int) -> float:
    decoder = PacketDecoder(65_400, 10)
    decoder.feed(connect(ConnectPacket(version, "bench")))
    return fastest(lambda: decoder.feed(data), packets)


def publishes(version: int, qos: int, topics: int = 1, properties: bytes = b"") -> bytes:
    templates = [
        encode.publish(version, f"{TOPIC}{number or ''}", PAYLOAD, qos, properties=properties) for number in range(topics)
    ]
    several = [templates[number % topics] for number in range(PACKETS)]
    return b"".join(one.frame(number + 1) if qos else one.head for number, one in enumerate(several))


def main() -> int:
    rows = [["µs for each packet", "3.1.1", "5.0"]]
    goals: list[tuple[float, float]] = []

    def both(title: str, figure: Callable[[int], float], most: float = 0) -> None:
        figures = [figure(version) for version in (MQTT_311, MQTT_5)]
        rows.append([title, *(f"{value:.2f}" for value in figures)])
        if most:
            goals.extend((value, most) for value in figures)

    def same(title: str, figure: float) -> None:
        rows.append([title, f"{figure:.2f}", ""])

    user = encode.user_property("event", "opened")
    both("decode 100 PUBLISH, QoS 0", lambda version: decoding(version, publishes(version, 0), PACKETS), MOST_US_PUBLISH)
    both("decode 100 PUBLISH, QoS 1", lambda version: decoding(version, publishes(version, 1), PACKETS), MOST_US_PUBLISH)
    both("the same, 100 topics", lambda version: decoding(version, publishes(version, 1, PACKETS), PACKETS))
    both(
        "the same, one topic, a user property in 5.0", lambda version: decoding(version, publishes(version, 1, 1, user), PACKETS)
    )
    acknowledgements = encode.acknowledgements(encode.PUBACK, range(1, PACKETS + 1))
    both("decode 100 PUBACK", lambda version: decoding(version, acknowledgements, PACKETS), MOST_US_PUBACK)
    both("decode 1 PUBLISH, QoS 0", lambda version: decoding(version, encode.publish(version, TOPIC, PAYLOAD).head, 1))
    both("decode 1 PUBACK", lambda version: decoding(version, acknowledgements[:4], 1))
    both("encode the template of a PUBLISH, QoS 1", lambda version: many(lambda: encode.publish(version, TOPIC, PAYLOAD, 1)))
    template = encode.publish(MQTT_311, TOPIC, PAYLOAD, 1)
    same("add the packet id to a template", many(lambda: template.frame(7)))
    ids = range(1, PACKETS + 1)
    same("encode 100 PUBACK", fastest(lambda: encode.acknowledgements(encode.PUBACK, ids), PACKETS))
    same("exchange / and . in a topic", many(lambda: exchange(TOPIC)))
    same("payload to data: 21.5", many(lambda: data_of(b"21.5")))
    same("payload to data: text", many(lambda: data_of(PAYLOAD)))
    same("payload to data: bytes", many(lambda: data_of(b"\xff" * 100)))
    data = data_of(PAYLOAD)
    same("data to payload: text", many(lambda: payload_of(data)))
    print(grid(rows))
    return int(any(value > most for value, most in goals))


if __name__ == "__main__":
    sys.exit(main())
