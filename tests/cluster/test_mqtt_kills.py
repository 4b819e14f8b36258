"""Workers that die while devices publish and subscribe with QoS 1 and 2; `tests/support/mqtt_counts.py` counts the messages."""

import itertools
import time

import pytest

from push1st.protocols.mqtt.packets import MQTT_5, MQTT_311
from tests.cluster.machine import GONE_SECONDS, kill
from tests.cluster.mqtt_sites import mqtt_server, mqtt_servers, settle, settle_group
from tests.support.mqtt_devices import Fleet
from tests.support.process import wait_until
from tests.support.valkey import Valkey

REPEAT_SECONDS = 1.0
"""the seconds before the end of a worker whose messages may arrive twice: two periods of 250 ms, and a busy machine"""
BOTH = (1, 2)


def test_messages_arrive_when_the_worker_of_their_publisher_is_killed(valkey: Valkey, devices: Fleet, channel: str) -> None:
    """The publishers reconnect to the other worker, and send the messages again that were not acknowledged."""
    topics = [f"{channel}/a", f"{channel}/b"]
    with mqtt_servers(valkey) as (one, two):
        receivers = [
            devices.device([two.port], "three", dict.fromkeys(topics, 2), version=MQTT_311),
            devices.device([two.port], "five", dict.fromkeys(topics, 2)),
            devices.device([two.port], "one", {topics[0]: 1}, expiry=0),
        ]
        publishers = [devices.device([one.port, two.port], f"p{number}") for number in range(2)]
        devices.until_ready()
        devices.publish_often(publishers, topics, 100, BOTH)
        time.sleep(1)
        one.kill()
        wait_until(lambda: all(len(publisher.connections) > 1 for publisher in publishers), "the publishers are back")
        time.sleep(1)
        settle(devices, receivers, publishers, repeat_seconds=0)
        one.start()


@pytest.mark.parametrize("version", [MQTT_5, pytest.param(MQTT_311, marks=pytest.mark.long)])
def test_messages_arrive_when_the_worker_of_their_subscriber_is_killed(
    valkey: Valkey, devices: Fleet, channel: str, version: int
) -> None:
    """The subscribers reconnect to the other worker; one of them returns later, when all messages are published."""
    with mqtt_servers(valkey) as (one, two):
        ports = [two.port, one.port]
        receivers = [
            devices.device(ports, f"r{number}", {filter: 1 + number % 2}, version=version)
            for number, filter in enumerate([f"{channel}/a", f"{channel}/a", f"{channel}/+", "#"])
        ]
        late = devices.device(ports, "late", {f"{channel}/#": 2}, version=version)
        publishers = [devices.device([one.port], f"p{number}") for number in range(2)]
        devices.until_ready()
        devices.publish_often(publishers, [f"{channel}/a", f"{channel}/b"], 100, BOTH)
        time.sleep(2)
        late.may_connect = False
        at = time.monotonic()
        two.kill()
        devices.until_ready(receivers)
        time.sleep(1)
        devices.until_acknowledged()
        late.may_connect = True
        settle(devices, [*receivers, late], publishers, repeat_seconds=REPEAT_SECONDS, faults=[at])
        assert all(device.connections[1].is_present for device in [*receivers, late])
        two.start()


def test_messages_to_an_absent_client_are_kept_when_its_last_worker_is_killed(
    valkey: Valkey, devices: Fleet, channel: str
) -> None:
    with mqtt_servers(valkey) as (one, two):
        absent = devices.device([two.port, one.port], "absent", {f"{channel}/+": 1, f"{channel}/a": 2})
        publisher = devices.device([one.port], "p")
        devices.until_ready()
        devices.publish_often([publisher], [f"{channel}/a", f"{channel}/b"], 100, BOTH)
        time.sleep(0.5)
        devices.do(absent.leave)
        wait_until(lambda: absent.ends, "the client has left")
        time.sleep(0.5)
        two.kill()
        time.sleep(0.5)
        devices.until_acknowledged()
        absent.may_connect = True
        settle(devices, [absent], [publisher], repeat_seconds=0)
        assert absent.connections[-1].is_present
        two.start()


def test_messages_of_a_shared_group_arrive_when_the_worker_of_a_member_is_killed(
    valkey: Valkey, devices: Fleet, channel: str
) -> None:
    """Members of the group that live on other workers get the messages that the dead worker had taken."""
    with mqtt_servers(valkey) as (one, two):
        group = [
            devices.device([port], f"m{number}", {f"$share/g/{channel}/#": 2})
            for number, port in enumerate([one.port, two.port, one.port, two.port])
        ]
        other = devices.device([one.port], "other", {f"$share/other/{channel}/a": 1})
        publishers = [devices.device([one.port], f"p{number}") for number in range(2)]
        devices.until_ready()
        devices.publish_often(publishers, [f"{channel}/a", f"{channel}/b"], 50, BOTH)
        time.sleep(2)
        assert all(member.arrivals for member in group)
        at = time.monotonic()
        two.kill()
        time.sleep(2)
        for members in (group, [other]):
            settle_group(devices, members, publishers, at + GONE_SECONDS + 3 - time.monotonic())
        two.start()


@pytest.mark.long
@pytest.mark.timeout(300)
def test_no_message_is_lost_while_workers_are_killed_one_after_the_other(devices: Fleet, channel: str) -> None:
    """Two workers of one server, 500 messages a second, and twelve ends of a worker."""
    with mqtt_server(None, 2) as site:
        topics = [f"{channel}/{number}" for number in range(5)]
        receivers = [
            devices.device([site.port], f"r{number}", {filter: 1 + number % 2})
            for number, filter in enumerate([*topics, *topics, f"{channel}/+", f"{channel}/#"])
        ]
        group = [devices.device([site.port], f"m{number}", {f"$share/g/{topics[0]}": 1}) for number in range(6)]
        absent = devices.device([site.port], "absent", {topics[1]: 2})
        publishers = [devices.device([site.port], f"p{number}") for number in range(10)]
        devices.until_ready()
        devices.publish_often(publishers, topics, 50, BOTH)
        faults = []
        for number in range(12):
            time.sleep(4)
            if number % 2:
                absent.may_connect = True
            else:
                devices.do(absent.leave)
            pid = site.pids[number % 2]
            faults.append(time.monotonic())
            kill(pid)
            wait_until(lambda pid=pid: pid not in site.pids and len(site.pids) == 2, "another worker runs", 30)  # type: ignore[misc]
        absent.may_connect = True
        settle(devices, [*receivers, absent], publishers, 60, repeat_seconds=REPEAT_SECONDS, faults=faults)
        settle_group(devices, group, publishers, 60)
        ends = list(itertools.chain.from_iterable(device.ends for device in devices.devices))
        assert {end.reason for end in ends} <= {None, 0x88, 0x89, 0x8B}, ends
