"""Many devices with sessions reconnect at once: all sessions are continued, and connected devices keep receiving."""

import contextlib
import time

import pytest

from tests.cluster.mqtt_sites import mqtt_servers, settle
from tests.support.mqtt_devices import Device, Fleet
from tests.support.process import wait_until
from tests.support.signing import access_token
from tests.support.valkey import Valkey


@pytest.mark.parametrize(
    ("count", "seconds"),
    [(500, 10), pytest.param(10_000, 120, marks=[pytest.mark.long, pytest.mark.alone, pytest.mark.timeout(500)])],
    ids=["500", "10000"],
)
def test_sessions_of_devices_that_reconnect_at_once_are_continued(
    valkey: Valkey, devices: Fleet, channel: str, count: int, seconds: int
) -> None:
    """Each device moves to the other worker. seconds: the time in which all are connected again."""
    with mqtt_servers(valkey) as both:
        ports = [site.port for site in both]
        steady = [devices.device([port], f"steady{port}", {f"{channel}/tick": 1}) for port in ports]
        publisher = devices.device(ports, "p")
        devices.until_ready()
        many = [device_of(ports, number, channel) for number in range(count)]
        for at in range(0, count, 500):
            devices.start(*many[at : at + 500])
            devices.until_ready(many[at : at + 500], 30)
        devices.publish_often([publisher], [f"{channel}/tick"], 20, (1,))
        time.sleep(0.5)
        began = time.monotonic()
        devices.do(lambda: lose(many))
        until_back(many, seconds)
        took = time.monotonic() - began
        print(f"{count} devices were back after {took:.1f} s")
        assert all(link.is_present for device in many for link in device.connections[1:])
        devices.until_acknowledged()
        for number in range(count):
            devices.do(lambda number=number: publisher.publish(f"{channel}/d{number}"))  # type: ignore[misc]
        devices.do(lambda: publisher.publish(f"{channel}/all", 2))
        settle(devices, steady, [publisher])
        with contextlib.suppress(AssertionError):
            wait_until(lambda: sum(len(device.arrivals) for device in many) == 2 * count, "all messages arrive", seconds)
        assert [device.client_id for device in many if len(device.arrivals) != 2] == []
        late = [sent for sent in publisher.sent if sent.acknowledged is None or sent.acknowledged - sent.began > 5]
        assert late == [], took


def until_back(many: list[Device], seconds: int) -> None:
    """Waits until all devices are connected for the second time; fails with the number of the others."""
    end = time.monotonic() + seconds
    while away := sum(len(device.connections) < 2 or not device.is_ready for device in many):
        assert time.monotonic() < end, f"{away} devices are away after {seconds} s"
        time.sleep(0.1)


def device_of(ports: list[int], number: int, channel: str) -> Device:
    """Returns a device with a user of its own, because the bounds for the absent sessions of anonymous clients are lower."""
    token = access_token({"app": "app-test", "channel": "*", "sub": f"user{number}"})
    filters = {f"{channel}/d{number}": 1, f"{channel}/all": 1}
    return Device(ports, f"d{number}", filters, first=number, password=token)


def lose(many: list[Device]) -> None:
    for device in many:
        device.lose()
