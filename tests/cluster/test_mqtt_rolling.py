"""Servers that reload and restart while devices publish and subscribe: no message is lost, and QoS 2 stays exactly once."""

import signal
import time

import pytest

from push1st.protocols.mqtt.packets import ReasonCode
from tests.cluster.machine import reload
from tests.cluster.mqtt_sites import MqttServer, mqtt_server, mqtt_servers, settle, settle_group
from tests.support.mqtt_devices import Device, Fleet
from tests.support.process import wait_until
from tests.support.valkey import Valkey

REPEAT_SECONDS = 0.5
"""the seconds before the end of a connection in which the server may not receive an acknowledgement any more"""


class Traffic:
    """Publishers, subscribers, a shared group and an absent client, at all servers."""

    def __init__(self, devices: Fleet, sites: list[MqttServer], channel: str, per_second: float) -> None:
        self.devices = devices
        topics = [f"{channel}/a", f"{channel}/b"]
        ports = [site.port for site in sites]
        self.receivers = [
            devices.device(ports, f"r{number}", {filter: 2}, first=number)
            for number, filter in enumerate([*topics, *topics, f"{channel}/+", f"{channel}/+", "#", "#"])
        ]
        self.group = [devices.device(ports, f"m{number}", {f"$share/g/{channel}/#": 1}, first=number) for number in range(4)]
        self.absent = devices.device(ports, "absent", {f"{channel}/#": 1})
        self.publishers = [devices.device(ports, f"p{number}", first=number) for number in range(4)]
        devices.until_ready()
        devices.publish_often(self.publishers, topics, per_second / len(self.publishers), (1, 2))
        time.sleep(0.5)
        devices.do(self.absent.leave)
        time.sleep(0.5)

    def verify(self) -> None:
        self.devices.until_ready([*self.receivers, *self.group, *self.publishers], 20)
        time.sleep(0.5)
        self.absent.may_connect = True
        everybody: list[Device] = [*self.receivers, self.absent]
        cuts = [end.at for device in self.devices.devices for end in device.ends]
        found = settle(self.devices, everybody, self.publishers, repeat_seconds=REPEAT_SECONDS, faults=cuts)
        settle_group(self.devices, self.group, self.publishers)
        twice = [pair for counts in found for pair in counts.doubles if pair[0].qos == 2]
        assert twice == []
        devices = [*everybody, *self.group, *self.publishers]
        assert all(link.is_present for device in devices for link in device.connections[1:])
        assert {end.reason for device in devices if device is not self.absent for end in device.ends} == {
            ReasonCode.SERVER_SHUTTING_DOWN
        }


def test_reload_loses_no_message(devices: Fleet, channel: str) -> None:
    with mqtt_server(None, 2) as site:
        traffic = Traffic(devices, [site], channel, 200)
        reload(site.server)
        time.sleep(0.5)
        traffic.verify()


@pytest.mark.timeout(120)  # four starts of a server, on a busy machine
def test_rolling_restart_loses_no_message(valkey: Valkey, devices: Fleet, channel: str) -> None:
    with mqtt_servers(valkey) as both:
        traffic = Traffic(devices, both, channel, 200)
        for site in both:
            site.server.signal(signal.SIGTERM)
            assert site.server.wait() == 0
            site.start()
            time.sleep(0.5)
        traffic.verify()


@pytest.mark.long
@pytest.mark.timeout(300)
def test_many_rolling_restarts_and_reloads_lose_no_message(valkey: Valkey, devices: Fleet, channel: str) -> None:
    with mqtt_servers(valkey, workers=2) as both:
        traffic = Traffic(devices, both, channel, 300)
        for times in range(4):
            for site in both:
                if times % 2:
                    reload(site.server)
                else:
                    site.server.signal(signal.SIGTERM)
                    assert site.server.wait() == 0
                    site.start()
                time.sleep(3)
                wait_until(lambda: all(one.is_ready for one in traffic.receivers), "all are back", 20)
        traffic.verify()
