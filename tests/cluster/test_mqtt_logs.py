"""MQTT clients with sessions, whose messages lie in the logs of the shared broker; `mqtt_counts` counts the messages."""

import contextlib
import time
from collections.abc import Callable

from push1st.protocols.mqtt.packets import MQTT_311
from tests.cluster.mqtt_sites import mqtt_server, mqtt_servers, settle
from tests.support.mqtt_devices import Device, Fleet
from tests.support.process import wait_until
from tests.support.valkey import Valkey

BOTH = (1, 2)
LONG_QUEUE = {"server": {"mqtt": {"queue": 50_000}}}
REPEAT_SECONDS = 0.3
"""messages that a client has acknowledged in this time before the death of its worker may arrive again: 0.25 s, and the time of
the acknowledgements on their way"""


def absent(devices: Fleet, ports: list[int], name: str, filters: dict[str, int]) -> Device:
    """Makes a client with a session that has left."""
    one = devices.device(ports, name, filters)
    devices.until_ready([one])
    devices.do(one.leave)
    wait_until(lambda: len(one.ends) == 1, "the client is absent")
    return one


def come(devices: Fleet, *returning: Device) -> None:
    for one in returning:
        one.may_connect = True
    devices.until_ready(returning)


def test_messages_arrive_when_the_worker_of_their_subscriber_is_killed(valkey: Valkey, devices: Fleet, channel: str) -> None:
    """1,000 messages a second. Only messages of the last quarter of a second arrive twice; the absent client gets each once."""
    topics = [f"{channel}/a", f"{channel}/b"]
    with mqtt_servers(valkey, config=LONG_QUEUE) as (one, two):
        away = absent(devices, [one.port, two.port], "away", {f"{channel}/+": 2})
        receivers = [
            devices.device([one.port, two.port], "three", dict.fromkeys(topics, 1), version=MQTT_311),
            devices.device([one.port, two.port], "five", {f"{channel}/#": 2}),
        ]
        publishers = [devices.device([two.port], f"p{number}") for number in range(4)]
        devices.until_ready([*receivers, *publishers])
        devices.publish_often(publishers, topics, 250, BOTH)
        time.sleep(2)
        killed = time.monotonic()
        one.kill()
        wait_until(lambda: all(len(receiver.connections) > 1 for receiver in receivers), "the subscribers are back")
        time.sleep(1)
        come(devices, away)
        counts = settle(devices, [*receivers, away], publishers, repeat_seconds=REPEAT_SECONDS, faults=[killed])
        assert all(connection.is_present for receiver in receivers for connection in receiver.connections[1:])
        assert counts[-1].doubles == []
        assert len(counts[0].acknowledged) > 1000
        one.start()


def test_client_that_moves_between_workers_receives_each_message_once(valkey: Valkey, devices: Fleet, channel: str) -> None:
    topics = [f"{channel}/a", f"{channel}/b"]
    with mqtt_servers(valkey) as (one, two):
        mover = devices.device([one.port, two.port], "mover", dict.fromkeys(topics, 2))
        publishers = [devices.device([port], f"p{port}") for port in (one.port, two.port)]
        devices.until_ready()
        devices.publish_often(publishers, topics, 200, BOTH)
        for number in range(1, 16):
            time.sleep(0.15)
            devices.do(mover.lose)
            wait_until(lambda number=number: len(mover.connections) > number and mover.is_ready, "the client is back")  # type: ignore[misc]
        (counts,) = settle(devices, [mover], publishers)
        assert [first for first, _ in counts.doubles if first.qos == 2] == []
        assert {connection.port for connection in mover.connections} == {one.port, two.port}


def test_absent_client_gets_messages_in_order_although_the_clocks_of_workers_differ(
    valkey: Valkey, devices: Fleet, channel: str, clock: Callable[[str], Callable[[int], object]]
) -> None:
    topics = [f"{channel}/a", f"{channel}/b"]
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(mqtt_server(valkey))
        clock("behind")(-5)
        two = stack.enter_context(mqtt_server(valkey))
        away = absent(devices, [one.port, two.port], "away", dict.fromkeys(topics, 1))
        mover = devices.device([one.port, two.port], "publisher")
        devices.until_ready([mover])
        for number in range(60):
            devices.do(lambda number=number: mover.publish(topics[number % 2], 1))  # type: ignore[misc]
            if number % 6 == 5:
                wait_until(lambda: mover.is_idle, "the messages are acknowledged")
                devices.do(mover.lose)
        come(devices, away)
        (counts,) = settle(devices, [away], [mover])
        assert counts.delivered == 60
        assert [arrival.number for arrival in away.arrivals if arrival.topic == topics[0]] == list(range(1, 61, 2))


def test_messages_arrive_when_only_the_worker_of_their_subscriber_loses_the_broker(
    valkey: Valkey, devices: Fleet, channel: str
) -> None:
    """The server ends the connections of clients that may lack messages, so that they get these messages from the logs."""
    topics = [f"{channel}/a", f"{channel}/b"]
    with mqtt_servers(valkey, config=LONG_QUEUE) as (one, two):
        receiver = devices.device([one.port], "receiver", {topics[0]: 2, f"{channel}/+": 1})
        publisher = devices.device([two.port], "publisher")
        devices.until_ready()
        devices.publish_often([publisher], topics, 300, BOTH)
        node = ""
        for number in range(1, 4):
            time.sleep(0.5)
            connections = [line for line in valkey.ask("CLIENT", "LIST").decode().splitlines() if " name=push1st-" in line]
            first = min(int(line.split("id=")[1].split(" ")[0]) for line in connections if " sub=0" not in line)
            if number == 1:
                node = next(line.split("name=")[1].split(" ")[0] for line in connections if f"id={first} " in line)
            of_node = [line.split("id=")[1].split(" ")[0] for line in connections if f"name={node} " in line]
            for id in of_node:
                valkey.ask("CLIENT", "KILL", "ID", id)
            wait_until(lambda number=number: len(receiver.connections) > number, "the client is back")  # type: ignore[misc]
        settle(devices, [receiver], [publisher])
        assert [connection.is_present for connection in receiver.connections] == [False, True, True, True]
        assert {end.reason for end in receiver.ends} == {0x89}


def test_broker_keeps_messages_as_long_as_sessions(valkey: Valkey, devices: Fleet, channel: str) -> None:
    seconds = 30 * 86_400
    with mqtt_server(valkey, config={"server": {"mqtt": {"session-expiry": seconds}}}) as server:
        subscriber = devices.device([server.port], "subscriber", {channel: 1})
        publisher = devices.device([server.port], "publisher")
        devices.until_ready()
        devices.do(lambda: publisher.publish(channel))
        wait_until(lambda: len(subscriber.arrivals) == 1, "the message arrives")
        (log,) = [key for key in valkey.ask("KEYS", f"*:l:*/{channel}").split(b"\r\n") if key.endswith(channel.encode())]
        assert int(valkey.ask("TTL", log.decode()).strip(b":\r\n")) >= seconds
