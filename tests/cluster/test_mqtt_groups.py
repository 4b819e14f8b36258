"""Shared filters over several workers: each message reaches one member, also if a worker with members is killed."""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from push1st.protocols.mqtt.packets import MQTT_5
from tests.cluster.machine import GONE_SECONDS, kill, machine, on_worker, workers
from tests.support.mqtt_socket import connected
from tests.support.paho import V5, PahoClient, paho_client
from tests.support.process import ServerProcess, free_ports, merged, wait_until
from tests.support.servers import Cluster
from tests.support.signing import access_token

FILTER = "$share/g/a/+"
PASSWORD = access_token({"app": "app-test", "channel": "*"})


def settings(port: int) -> dict[str, Any]:
    mqtt = {"listen": f"tcp://127.0.0.1:{port}", "push": ["public", "private", "presence"], "publishes": 0}
    return {"server": {"proto": ["pusher", "websocket", "mqtt"], "mqtt": mqtt, "drain": 0}}


@pytest.fixture
def own() -> int:
    """A port for MQTT."""
    return free_ports(1)[0]


@pytest.fixture(params=["engine", "cluster"])
def config(request: pytest.FixtureRequest, own: int) -> Iterator[dict[str, Any]]:
    """A configuration with one shard (the embedded engine), or with 16 shards."""
    with contextlib.ExitStack() as stack:
        found = settings(own)
        if request.param == "cluster":
            servers = Cluster()
            stack.callback(servers.close)
            found = merged(found, {"broker": servers.url})
        yield found


def member(server: ServerProcess, number: int, stack: contextlib.ExitStack, port: int, client_id: str, **more: Any) -> PahoClient:
    """Connects a client to one worker."""
    return on_worker(server, number, stack, lambda: paho_client(port, V5, client_id, password=PASSWORD, **more))


def payloads(client: PahoClient) -> list[int]:
    """Returns the messages that have arrived."""
    return [int(client.messages.get().payload) for _ in range(client.messages.qsize())]


def publish(sender: PahoClient, numbers: range, qos: int = 1) -> None:
    for number in numbers:
        sender.publish(f"a/{number % 7}", str(number), qos=qos)
    sender.until_acknowledged()


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_each_message_reaches_one_of_the_members_of_three_workers(config: dict[str, Any], own: int, qos: int) -> None:
    with machine(3, config) as server, contextlib.ExitStack() as stack:
        members: list[PahoClient] = []
        for number, count in enumerate((1, 2, 3)):
            members += [member(server, number, stack, own, f"m{number}-{index}") for index in range(count)]
        for one in members:
            assert one.subscribe(FILTER, qos=qos) == [qos]
        sender = stack.enter_context(paho_client(own, V5, "sender"))
        publish(sender, range(1000), qos)
        wait_until(lambda: sum(one.messages.qsize() for one in members) >= 1000, "all messages have arrived")
        found = [payloads(one) for one in members]
        assert Counter(number for some in found for number in some) == Counter(range(1000))
        assert all(100 <= len(some) <= 240 for some in found), [len(some) for some in found]
        for some in found:
            for channel in range(7):
                assert (own_part := [one for one in some if one % 7 == channel]) == sorted(own_part)


def test_messages_of_a_killed_worker_reach_another_member_within_13_seconds(config: dict[str, Any], own: int) -> None:
    with machine(2, config) as server, contextlib.ExitStack() as stack:
        silent = on_worker(server, 0, stack, lambda: connected(own, MQTT_5, "silent", password=PASSWORD.encode()))
        silent.subscribe(FILTER, 1)  # this client acknowledges nothing
        other = member(server, 1, stack, own, "other")
        assert other.subscribe(FILTER, qos=1) == [1]
        sender = member(server, 1, stack, own, "sender")
        publish(sender, range(100))
        wait_until(lambda: other.messages.qsize() >= 30, "the other member has its part of the messages")
        killed_at = time.monotonic()
        kill(workers(server)[0])
        publish(sender, range(100, 200))
        wait_until(lambda: other.messages.qsize() >= 200, "all messages have arrived", 20)
        assert time.monotonic() - killed_at < GONE_SECONDS
        assert Counter(payloads(other)) == Counter(range(200))


def test_messages_wait_for_the_first_absent_member_that_returns(config: dict[str, Any], own: int) -> None:
    with machine(2, config) as server, contextlib.ExitStack() as stack:
        sender = stack.enter_context(paho_client(own, V5, "sender"))
        for number in range(2):
            with contextlib.ExitStack() as session:
                one = member(server, number, session, own, f"m{number}", clean=False)
                assert one.subscribe(FILTER, qos=1) == [1]
        publish(sender, range(30))
        # To any worker: a connection that `on_worker` gives up would receive the messages.
        one = stack.enter_context(paho_client(own, V5, "m1", password=PASSWORD, clean=False))
        assert one.is_present
        wait_until(lambda: one.messages.qsize() == 30, "all messages have arrived")
        assert sorted(payloads(one)) == list(range(30))
        two = stack.enter_context(paho_client(own, V5, "m0", password=PASSWORD, clean=False))
        publish(sender, range(30, 50))
        wait_until(lambda: one.messages.qsize() + two.messages.qsize() == 20, "all messages have arrived")
        assert sorted(payloads(one) + payloads(two)) == list(range(30, 50))


def test_unacknowledged_messages_of_a_lost_member_go_to_the_member_of_another_worker(own: int) -> None:
    with machine(2, settings(own)) as server, contextlib.ExitStack() as stack:
        with contextlib.ExitStack() as lost:
            silent = on_worker(server, 0, lost, lambda: connected(own, MQTT_5, "silent", password=PASSWORD.encode()))
            silent.subscribe(FILTER, 1)
            other = member(server, 1, stack, own, "other")
            assert other.subscribe(FILTER, qos=1) == [1]
            sender = stack.enter_context(paho_client(own, V5, "sender"))
            publish(sender, range(50))
        wait_until(lambda: other.messages.qsize() == 50, "all messages have arrived")
        assert sorted(payloads(other)) == list(range(50))


def test_member_receives_only_channels_that_it_may_read(own: int) -> None:
    with machine(2, settings(own)) as server, contextlib.ExitStack() as stack:
        limited = access_token({"app": "app-test", "channel": ["private-a.*"]})
        everyone: list[tuple[str, PahoClient]] = []
        for name, number, password in (
            ("public", 0, None),
            ("limited", 0, limited),
            ("public", 1, None),
            ("limited", 1, limited),
            ("all", 1, PASSWORD),
        ):
            connect = partial(paho_client, own, V5, f"{name}{number}", password=password)
            everyone.append((name, on_worker(server, number, stack, connect)))
            assert everyone[-1][1].subscribe("$share/g/#", qos=1) == [1]
        sender = member(server, 0, stack, own, "sender")
        expected: Counter[str] = Counter()
        for index in range(60):
            topic = ("a/1", "private-a/1", "private-b/1")[index % 3]
            sender.publish(topic, str(index), qos=index % 2)
            expected[topic] += 1
        sender.until_acknowledged()
        wait_until(lambda: sum(one.messages.qsize() for _, one in everyone) == 60, "all messages have arrived")
        found: Counter[str] = Counter()
        for name, one in everyone:
            topics = Counter(one.expect()[0] for _ in range(one.messages.qsize()))
            assert (
                topics.keys()
                <= {"public": {"a/1"}, "limited": {"a/1", "private-a/1"}, "all": {"a/1", "private-a/1", "private-b/1"}}[name]
            )
            found += topics
        assert found == expected
