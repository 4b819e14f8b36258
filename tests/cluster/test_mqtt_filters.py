"""Filters with wildcards over two workers: a message that is published after SUBACK reaches the subscriber of the filter."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest

from push1st.protocols.mqtt.packets import MQTT_5, FilterOptions, PublishPacket, SubscribePacket, UnsubscribePacket
from tests.cluster.machine import GONE_SECONDS, MAX_TRIES, kill, machine, on_worker, until_workers, workers
from tests.support import mqtt_packets as packets
from tests.support.mqtt_socket import Client, connected
from tests.support.process import ServerProcess, free_ports, merged, wait_until
from tests.support.servers import Cluster
from tests.support.signing import access_token

ROUNDS = 500
SUCCESS, NO_MATCHING_SUBSCRIBERS = 0, 0x10


def settings(port: int) -> dict[str, Any]:
    mqtt = {"listen": f"tcp://127.0.0.1:{port}", "push": ["public", "private", "presence"], "publishes": 0}
    return {"server": {"proto": ["pusher", "websocket", "mqtt"], "mqtt": mqtt, "drain": 0}}


@pytest.fixture
def own() -> int:
    """A port for MQTT."""
    return free_ports(1)[0]


@pytest.fixture(params=["engine", "cluster"])
def server(request: pytest.FixtureRequest, own: int) -> Iterator[ServerProcess]:
    """Runs two workers with an MQTT address: with one shard (the embedded engine), or with 16 shards."""
    with contextlib.ExitStack() as stack:
        config = settings(own)
        if request.param == "cluster":
            servers = Cluster()
            stack.callback(servers.close)
            config = merged(config, {"broker": servers.url})
        yield stack.enter_context(machine(2, config))


def connect_to_worker(
    server: ServerProcess, number: int, stack: contextlib.ExitStack, port: int, client_id: str, **fields: Any
) -> Client:
    """Connects a client to one worker."""
    return on_worker(server, number, stack, lambda: connected(port, MQTT_5, client_id, **fields))


def subscribe_and_publish(subscriber: Client, publisher: Client, numbers: range) -> None:
    """Subscribes, publishes one message, and ends the subscription; again and again. numbers: the payloads, which are numbers."""
    options = FilterOptions("a/+", 1, retain_handling=2)  # the server delays repeated requests for retained messages
    subscribe = packets.subscribe(SubscribePacket(1, (options,)), MQTT_5)
    unsubscribe = packets.unsubscribe(UnsubscribePacket(2, ("a/+",)), MQTT_5)
    for packet_id, number in enumerate(numbers, 1):
        payload = b"%d" % number
        subscriber.send(subscribe)
        subscriber.expect(b"\x90\x04\0\x01\0\x01")
        publisher.publish("a/b", payload, 1, 1)
        publisher.expect(b"\x40\x02\0\x01")  # PUBACK with Success, and not with No matching subscribers
        subscriber.expect(packets.message(PublishPacket("a/b", payload, 1, packet_id=packet_id), MQTT_5))
        subscriber.send(b"\x40\x02" + packet_id.to_bytes(2, "big") + unsubscribe)
        subscriber.expect(b"\xb0\x04\0\x02\0\0")


@pytest.mark.parametrize("rounds", [ROUNDS, pytest.param(10_000, marks=pytest.mark.long)])
def test_no_message_after_suback_is_missing(server: ServerProcess, own: int, rounds: int) -> None:
    with contextlib.ExitStack() as stack:
        publisher = connect_to_worker(server, 1, stack, own, "publisher")
        for first in range(0, rounds, ROUNDS):  # the server limits the number of UNSUBSCRIBEs of a connection
            with contextlib.ExitStack() as connection:
                subscriber = connect_to_worker(server, 0, connection, own, "subscriber")
                subscribe_and_publish(subscriber, publisher, range(first, first + ROUNDS))
        code = SUCCESS
        for _ in range(MAX_TRIES):  # UNSUBACK does not wait until the publisher's worker has received the end of the filter
            publisher.publish("a/b", b"x", 1, 1)
            code = publisher.read_puback()
            if code:
                break
        assert code == NO_MATCHING_SUBSCRIBERS


def test_searches_for_the_filters_of_another_worker_slow_down_their_publisher(own: int) -> None:
    """So a client cannot use up a worker by publishing to many topics that the worker compares with many filters."""
    config = merged(settings(own), {"server": {"mqtt": {"publishes": 100}}})
    with machine(2, config) as server, contextlib.ExitStack() as stack:
        password = access_token({"app": "app-test", "channel": "*"}).encode()
        holder = connect_to_worker(server, 0, stack, own, "holder", password=password)
        for number in range(100):
            holder.subscribe("/".join(f"{number:012b}").replace("0", "a").replace("1", "+"), 0)
        publisher = connect_to_worker(server, 1, stack, own, "publisher")

        def seconds(topics: list[str]) -> float:
            begin = time.monotonic()
            for topic in topics:
                publisher.publish(topic, qos=1, packet_id=1)
                publisher.expect(b"\x40\x03\0\x01\x10")
            return time.monotonic() - begin

        assert seconds([f"other/{number}" for number in range(120)]) < 2
        assert seconds([f"a/a/a/a/a/a/a/a/a/a/a/{number}/b" for number in range(120)]) > 2


def test_filters_of_a_killed_worker_do_not_remain(own: int) -> None:
    with machine(2, settings(own)) as server, contextlib.ExitStack() as stack:
        connect_to_worker(server, 0, stack, own, "killed").subscribe("a/+", 1)
        publisher = connect_to_worker(server, 1, stack, own, "publisher")
        kill(workers(server)[0])

        def reason() -> int:
            publisher.publish("a/b", qos=1, packet_id=1)
            return publisher.read_puback()

        wait_until(lambda: reason() == NO_MATCHING_SUBSCRIBERS, "the eviction of the worker", GONE_SECONDS + 5)
        until_workers(server, 2)
        connect_to_worker(server, 0, stack, own, "next").subscribe("a/+", 1)
        assert reason() == SUCCESS
