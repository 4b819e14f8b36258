"""Connections with the client id of another connection, and sessions that move between workers whose clocks differ."""

import contextlib
import itertools
import time
from collections.abc import Callable

import pytest

from push1st.protocols.mqtt.packets import MQTT_5, MQTT_311, ReasonCode, Will
from tests.cluster.mqtt_sites import mqtt_server, mqtt_servers, settle, until_total
from tests.support.mqtt_devices import Device, Fleet
from tests.support.process import wait_until
from tests.support.valkey import Valkey

COUNT = 100


@pytest.mark.parametrize("expiry", [3600, pytest.param(0, marks=pytest.mark.long)])
def test_one_of_a_hundred_racing_clients_with_one_id_stays_connected(
    valkey: Valkey, devices: Fleet, channel: str, expiry: int
) -> None:
    with mqtt_servers(valkey) as both:
        ports = [site.port for site in both]
        racing = [
            Device([ports[number % 2]], "same", {channel: 1}, expiry=expiry, reconnects=False, version=4 + (number // 2) % 2)
            for number in range(COUNT)
        ]
        devices.start(*racing)
        wait_until(lambda: sum(device.is_over for device in racing) == COUNT - 1, "all but one have ended", 20)
        (last,) = [device for device in racing if not device.is_over]
        wait_until(lambda: last.is_ready, "the last one is subscribed")
        reasons = {end.reason for device in racing for end in device.ends if device.version == MQTT_5}
        assert reasons <= {ReasonCode.SESSION_TAKEN_OVER}
        until_total(both, 'push1st_mqtt_sessions{state="connected"', 1)
        publisher = devices.device(ports, "p")
        devices.until_ready([publisher])
        devices.do(lambda: publisher.publish(channel))
        wait_until(lambda: last.arrivals, "the message arrives")
        time.sleep(0.5)
        assert sum(len(device.arrivals) for device in racing) == 1
        devices.do(last.leave)
        until_total(both, 'push1st_mqtt_sessions{state="connected"', 1)  # the publisher
        after = devices.device(ports, "same", {channel: 1}, expiry=expiry)
        wait_until(lambda: after.is_ready, "the session is there")
        assert after.connections[0].is_present == bool(expiry)


def test_worker_that_stood_still_during_a_takeover_changes_nothing(valkey: Valkey, devices: Fleet, channel: str) -> None:
    """The worker stands still for five seconds; meanwhile the client has a new connection to another worker, and is published to.

    When the worker runs again, it ends the old connection (8E), and neither saves its session nor publishes its will.
    """
    topics = [f"{channel}/a", f"{channel}/b"]
    filters = {topics[0]: 1, f"{channel}/+": 2}
    with mqtt_servers(valkey) as (one, two):
        watcher = devices.device([one.port], "watcher", {f"{channel}-will": 1})
        publisher = devices.device([one.port], "p")
        old = devices.device([two.port], "same", filters, reconnects=False, will=Will(f"{channel}-will", b"old", 1))
        devices.until_ready()
        devices.publish_often([publisher], topics, 100, (1, 2))
        time.sleep(1)
        two.pause()
        at = time.monotonic()
        new = devices.device([one.port, two.port], "same", filters)
        try:
            devices.until_ready([new])
            ready = time.monotonic()
            time.sleep(max(0.0, at + 5 - ready))
            devices.do(lambda: old.publish(f"{channel}/late"))
        finally:
            two.go_on()
        wait_until(lambda: old.is_over, "the old connection ends")
        assert [end.reason for end in old.ends] == [ReasonCode.SESSION_TAKEN_OVER]
        assert ready - at < 3
        time.sleep(1)
        assert new.is_ready
        assert new.connections[0].is_present
        cut = time.monotonic()
        devices.do(new.lose)  # the session is continued on the worker that stood still
        wait_until(lambda: len(new.connections) == 2 and new.is_ready, "the client is back")
        assert new.connections[1].is_present
        time.sleep(0.5)
        settle(devices, [[old, new]], [publisher, old])
        new_only = settle(devices, [[new]], [publisher, old], repeat_seconds=1, faults=[cut], missing=True)
        assert new_only[0].delivered > 400
        assert len(watcher.arrivals) <= 1


@pytest.mark.parametrize("version", [MQTT_5, pytest.param(MQTT_311, marks=pytest.mark.long)])
def test_sessions_move_between_workers_whose_clocks_differ_by_five_seconds(
    valkey: Valkey, devices: Fleet, channel: str, clock: Callable[[str], Callable[[int], object]], version: int
) -> None:
    topics = [f"{channel}/a", f"{channel}/b"]
    with contextlib.ExitStack() as stack:
        clock("one")
        one = stack.enter_context(mqtt_server(valkey))
        clock("two")(-5)
        two = stack.enter_context(mqtt_server(valkey))
        ports = [one.port, two.port]
        moving = [
            devices.device(ports, f"m{number}", filters, first=number % 2, version=version)
            for number, filters in enumerate([{f"{channel}/+": 2}, {topics[0]: 2}, {topics[0]: 1, "#": 1}])
        ]
        publishers = [devices.device([port], f"p{port}") for port in ports]
        devices.until_ready()
        devices.publish_often(publishers, topics, 50, (1, 2))
        cuts = []
        for times in range(2, 8):
            time.sleep(0.4)
            cuts.append(time.monotonic())
            devices.do(lambda: [device.lose() for device in moving])  # type: ignore[func-returns-value]
            wait_until(lambda times=times: all(len(one.connections) == times and one.is_ready for one in moving), "all are back")  # type: ignore[misc]
        found = settle(devices, moving, publishers, repeat_seconds=1, faults=cuts)
        assert all(link.is_present for device in moving for link in device.connections[1:])
        twice = [pair for counts in found for pair in counts.doubles if pair[0].qos == 2]
        assert twice == []


def test_session_lives_as_long_as_the_client_wants_on_workers_whose_clocks_differ(
    valkey: Valkey, devices: Fleet, channel: str, clock: Callable[[str], Callable[[int], object]]
) -> None:
    """The clock of the broker decides about the ends of sessions and about wills."""
    with contextlib.ExitStack() as stack:
        clock("one")
        one = stack.enter_context(mqtt_server(valkey))
        clock("two")(-5)
        two = stack.enter_context(mqtt_server(valkey))
        watcher = devices.device([one.port], "watcher", {f"{channel}/will": 1})
        pairs = list(itertools.permutations([one.port, two.port]))
        short = [devices.device(pair, f"short{pair[0]}", {channel: 1}, expiry=3) for pair in pairs]
        long = [devices.device(pair, f"long{pair[0]}", {channel: 1}, expiry=10) for pair in pairs]
        wills = [
            devices.device([port], f"w{port}", will=Will(f"{channel}/will", f"w{port}".encode(), 1, delay=2), reconnects=False)
            for port in pairs[0]
        ]
        devices.until_ready()
        away = time.monotonic()
        for device in (*short, *long):
            devices.do(device.leave)
        for device in wills:
            devices.do(device.lose)
        wait_until(lambda: len(watcher.arrivals) == 2, "both wills are published")
        assert all(1.9 < arrival.at - away < 4 for arrival in watcher.arrivals), watcher.arrivals
        assert sorted(arrival.publisher for arrival in watcher.arrivals) == sorted(f"w{port}" for port in pairs[0])
        time.sleep(max(0.0, away + 5 - time.monotonic()))
        for device in (*short, *long):
            device.may_connect = True
        wait_until(lambda: all(len(device.connections) == 2 for device in (*short, *long)), "all are back")
        assert [device.connections[1].is_present for device in (*short, *long)] == [False, False, True, True]
