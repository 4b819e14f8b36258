"""A broker that is away, that comes back without its data, that fails over, that is full, and that one server does not reach."""

import contextlib
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from push1st.protocols.mqtt.packets import ReasonCode
from tests.cluster.mqtt_sites import MqttServer, mqtt_server, mqtt_servers, settle, settle_group
from tests.cluster.road import road
from tests.support.mqtt_devices import Device, Fleet
from tests.support.process import wait_until
from tests.support.servers import Cluster, Watched
from tests.support.valkey import Valkey

UNCONFIRMED_SECONDS = 2
"""the seconds after which a worker ends the connection of a client whose message the broker does not confirm"""
STORE_SECONDS = 8
"""the longest time for which a stopping worker waits for the broker, after it has disconnected its clients"""
BOTH = (1, 2)


class Traffic:
    """Publishers at both servers, subscribers at both that stay, and a session whose client is absent.

    `lasting` have sessions, `clean` have none.
    """

    def __init__(self, devices: Fleet, sites: list[MqttServer], channel: str) -> None:
        self.devices = devices
        self.topics = [f"{channel}/a", f"{channel}/b"]
        ports = [site.port for site in sites]
        turned = ports[::-1]
        self.lasting = [
            devices.device(turned, "exact", {self.topics[0]: 1}),
            devices.device(ports, "plus", {f"{channel}/+": 2}),
            devices.device(turned, "all", {"#": 1}, version=4),
        ]
        self.clean = [devices.device(ports, "clean", dict.fromkeys(self.topics, 1), expiry=0)]
        self.absent = devices.device(ports, "absent", {f"{channel}/a": 1, f"{channel}/#": 2})
        self.publishers = [devices.device([*ports[number:], *ports[:number]], f"p{number}") for number in range(2)]
        devices.until_ready()
        devices.publish_often(self.publishers, self.topics, 50, BOTH)
        time.sleep(0.5)
        devices.do(self.absent.leave)
        time.sleep(1)

    def until_published(self, count: int = 50, deadline: float = 30) -> None:
        """Waits until each publisher has received further acknowledgements."""
        before = [sum(sent.acknowledged is not None for sent in one.sent) for one in self.publishers]

        def are_published() -> bool:
            now = [sum(sent.acknowledged is not None for sent in list(one.sent)) for one in self.publishers]
            return all(new >= old + count for old, new in zip(before, now, strict=True))

        wait_until(are_published, "publishing goes on", deadline)

    def return_absent(self) -> None:
        self.absent.may_connect = True
        wait_until(lambda: len(self.absent.connections) == 2, "the absent client is back")

    def reasons(self) -> set[int | None]:
        return {end.reason for device in self.devices.devices for end in device.ends if device is not self.absent}


def test_no_acknowledged_message_is_lost_while_the_broker_is_away(valkey: Valkey, devices: Fleet, channel: str) -> None:
    """Publishers are disconnected (89) two seconds after the first message that is not confirmed, and send it again."""
    with road(valkey.path) as way, mqtt_servers(way.url) as both:
        traffic = Traffic(devices, both, channel)
        at = time.monotonic()
        way.refuse()
        wait_until(lambda: all(publisher.ends for publisher in traffic.publishers), "the publishers are disconnected", 10)
        assert all(publisher.ends[0].at - at < UNCONFIRMED_SECONDS + 1.5 for publisher in traffic.publishers)
        assert {end.reason for publisher in traffic.publishers for end in publisher.ends} <= {ReasonCode.SERVER_BUSY}
        away = max(sent.acknowledged or 0 for publisher in traffic.publishers for sent in publisher.sent)
        assert away < at + 0.5
        time.sleep(1)
        way.open()
        devices.until_ready([*traffic.lasting, *traffic.clean, *traffic.publishers], 20)
        traffic.until_published()
        traffic.return_absent()
        settle(devices, [*traffic.lasting, *traffic.clean, traffic.absent], traffic.publishers)
        assert traffic.absent.connections[1].is_present


@pytest.mark.parametrize("fault", ["emptied", "restarted"])
def test_connected_clients_receive_all_acknowledged_messages_when_the_broker_loses_its_data(
    valkey: Valkey, devices: Fleet, channel: str, fault: str
) -> None:
    with mqtt_servers(valkey) as both:
        traffic = Traffic(devices, both, channel)
        if fault == "emptied":
            valkey.ask("FLUSHALL")
        else:
            valkey.kill()
            time.sleep(0.5)
            valkey.start()
        traffic.until_published()
        devices.until_ready([*traffic.lasting, *traffic.clean, *traffic.publishers])
        traffic.until_published()
        traffic.return_absent()
        second = traffic.lasting[1]
        before = len(second.connections)
        devices.do(second.lose)  # its session is in the broker again
        wait_until(lambda: len(second.connections) > before and second.is_ready, "it is back")
        assert second.connections[-1].is_present
        traffic.until_published(20)
        settle(devices, [*traffic.lasting, *traffic.clean], traffic.publishers)
        assert not traffic.absent.connections[1].is_present


def test_no_acknowledged_message_is_lost_when_a_persistent_broker_restarts(devices: Fleet, channel: str) -> None:
    """The broker writes each command to its file before it confirms the command (`appendfsync always`)."""
    with (
        contextlib.closing(Valkey("--appendonly", "yes", "--appendfsync", "always")) as valkey,
        mqtt_servers(valkey) as both,
    ):
        traffic = Traffic(devices, both, channel)
        valkey.kill()
        time.sleep(0.5)
        valkey.start()
        traffic.until_published()
        traffic.return_absent()
        settle(devices, [*traffic.lasting, *traffic.clean, traffic.absent], traffic.publishers)
        assert traffic.absent.connections[1].is_present


def fail_over(broker: str, devices: Fleet, channel: str, fail: Callable[[], None]) -> None:
    """Lets a replica take over. Replication is asynchronous, so the replica may lack the last changes of the sessions."""
    with mqtt_servers(broker) as both:
        traffic = Traffic(devices, both, channel)
        fail()
        traffic.until_published(50, 40)
        traffic.return_absent()
        settle(devices, [*traffic.lasting, *traffic.clean, traffic.absent], traffic.publishers)
        assert traffic.absent.connections[1].is_present


def test_no_acknowledged_message_is_lost_when_sentinel_replaces_the_master(devices: Fleet, channel: str, tmp_path: Path) -> None:
    with contextlib.closing(Watched(tmp_path)) as watched:
        fail_over(watched.url, devices, channel, watched.master.kill)


@pytest.mark.long
@pytest.mark.timeout(180)
def test_no_acknowledged_message_is_lost_when_all_masters_of_a_cluster_are_replaced(devices: Fleet, channel: str) -> None:
    with contextlib.closing(Cluster(replicas=True)) as cluster:

        def kill_each() -> None:
            for master in list(cluster.servers):
                replica = cluster.replica_of(master)
                time.sleep(1)
                master.kill()
                wait_until(lambda replica=replica: cluster.is_master(replica), "the replica is a master", 30)  # type: ignore[misc]
                master.start()
                time.sleep(3)

        fail_over(cluster.url, devices, channel, kill_each)


def test_full_broker_acknowledges_nothing_that_it_does_not_keep(valkey: Valkey, devices: Fleet, channel: str) -> None:
    """Publishers are disconnected, as if the broker were away."""
    with mqtt_servers(valkey) as both:
        traffic = Traffic(devices, both, channel)
        at = time.monotonic()
        valkey.ask("CONFIG", "SET", "maxmemory", "1")
        wait_until(lambda: all(one.ends for one in traffic.publishers), "the publishers are disconnected", 10)
        full = time.monotonic()
        valkey.ask("CONFIG", "SET", "maxmemory", "0")
        late = [one.acknowledged for publisher in traffic.publishers for one in list(publisher.sent) if one.acknowledged]
        assert not [one for one in late if at + 0.5 < one < full]
        traffic.until_published()
        traffic.return_absent()
        settle(devices, [*traffic.lasting, *traffic.clean, traffic.absent], traffic.publishers)
        assert traffic.absent.connections[1].is_present


@pytest.mark.parametrize(
    "seconds", [4, pytest.param(16, marks=[pytest.mark.long, pytest.mark.timeout(120)])], ids=["shorter than a lease", "longer"]
)
def test_clients_of_a_server_that_does_not_reach_the_broker_miss_nothing(
    valkey: Valkey, devices: Fleet, channel: str, seconds: int
) -> None:
    """No byte passes between one server and the broker. The clients with a session stay at their servers."""
    with road(valkey.path) as way, mqtt_server(valkey) as near, mqtt_server(way.url) as far:
        near_port, far_port = near.port, far.port
        traffic = Traffic(devices, [near, far], channel)
        staying: list[Device] = [
            devices.device([far_port], "staying1", {traffic.topics[0]: 1, f"{channel}/+": 1}),
            devices.device([far_port], "staying2", {"#": 2}),
            devices.device([near_port], "staying3", {"#": 2}),
        ]
        group = [devices.device([port], f"g{port}", {f"$share/g/{channel}/#": 1}) for port in (near_port, far_port)]
        devices.until_ready([*staying, *group])
        time.sleep(0.5)
        at = time.monotonic()
        way.swallow()
        time.sleep(seconds)
        way.open()
        traffic.until_published()
        devices.until_ready([*staying, *group, *traffic.lasting], 20)
        traffic.return_absent()
        settle(devices, [*traffic.lasting, *staying, traffic.absent], traffic.publishers, 30)
        settle_group(devices, group, traffic.publishers)
        late = [sent for sent in traffic.publishers[1].sent if sent.acknowledged and at + 0.5 < sent.acknowledged < at + 2]
        assert late == []


def waiting(devices: Fleet, valkey: Valkey, site: MqttServer, channel: str) -> tuple[list[Device], Device]:
    """Pauses the broker while clients with sessions receive messages, and while another CONNECT waits for the broker.

    Returns the receivers and the publisher.
    """
    receivers = [devices.device([site.port], f"d{number}", {f"{channel}/#": 1 + number % 2}) for number in range(6)]
    publisher = devices.device([site.port], "publisher")
    devices.until_ready()
    devices.do(receivers[-1].leave)
    devices.publish_often([publisher], [f"{channel}/a"], 100, BOTH)
    wait_until(lambda: len(receivers[0].arrivals) > 50, "messages arrive")
    valkey.pause()
    receivers[-1].may_connect = True
    wait_until(lambda: receivers[-1]._link is not None, "its CONNECT is sent")
    return receivers, publisher


@pytest.mark.parametrize("workers", [1, 2])
def test_server_stops_in_time_while_the_broker_does_not_answer(
    valkey: Valkey, devices: Fleet, channel: str, workers: int
) -> None:
    """The broker keeps earlier copies of the sessions, with which the clients receive their messages after the next start."""
    with mqtt_server(valkey, workers) as site:
        receivers, publisher = waiting(devices, valkey, site, channel)
        site.server.signal(signal.SIGTERM)
        assert site.server.wait(STORE_SECONDS + 3) == 0
        assert [one.ends[-1].reason for one in receivers[:-1]] == [ReasonCode.SERVER_SHUTTING_DOWN] * 5
        assert "some sessions or wills are not confirmed" in site.server.output
        assert "worker killed" not in site.server.output
        site.server.assert_quiet()
        valkey.go_on()
        site.start()
        devices.until_ready(deadline=20)
        settle(devices, receivers, [publisher])
        assert all(one.connections[-1].is_present for one in receivers)


def test_second_signal_stops_a_server_at_once_while_the_broker_does_not_answer(
    valkey: Valkey, devices: Fleet, channel: str
) -> None:
    with mqtt_server(valkey) as site:
        waiting(devices, valkey, site, channel)
        site.server.signal(signal.SIGTERM)
        wait_until(lambda: "waiting for sessions and wills to be stored" in site.server.output, "the wait begins")
        site.server.signal(signal.SIGTERM)
        assert site.server.wait(STORE_SECONDS / 2) == 0
