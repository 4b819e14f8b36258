"""The messages that an absent client has missed: how its return reads the logs, in several turns of the loop."""

import asyncio
from typing import Any

import pytest
import structlog

from push1st.brokers.memory_logs import MemoryLogs
from push1st.brokers.sessions import LogPage
from push1st.messages import MqttFields
from push1st.protocols.mqtt.packets import MQTT_5, ConnectPacket, FilterOptions
from push1st.transports.mqtt import resuming
from tests.support import mqtt_packets as packets
from tests.support.loop import turns
from tests.support.mqtt_site import MqttClient, MqttSite

SHARED = "$share/g/b"


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "TURN_MESSAGES", 2)


async def absent(site: MqttSite, *filters: str, client_id: str = "c", qos_0: tuple[str, ...] = ()) -> None:
    """Stores the session of a client with filters, whose subscription ids count from 1. qos_0: further filters with QoS 0."""
    client = site.client(MQTT_5)
    await client.connect(client_id, clean=False, session_expiry=60)
    for number, filter in enumerate((*filters, *qos_0), 1):
        await client.subscribe(FilterOptions(filter, int(number <= len(filters))), subscription_id=number)
    client.lose()
    await turns()


def publish(site: MqttSite, channel: str, *payloads: int) -> None:
    for payload in payloads:
        site.world.publish(channel, b"%d" % payload, mqtt=MqttFields(1))


def returning(site: MqttSite, client_id: str = "c", expiry: int | None = 60) -> MqttClient:
    """Returns a client whose session is not restored yet."""
    client = site.client(MQTT_5)
    packet = ConnectPacket(MQTT_5, client_id, clean=False, session_expiry=expiry)
    client.connection.data_received(packets.connect(packet))
    return client


async def received(client: MqttClient) -> list[bytes]:
    """Returns the properties and the payloads of the messages that follow CONNACK."""
    await turns(100)
    data = client.take()
    return [payload for _, _, _, payload in packets.publishes(data[2 + data[1] :])]


def is_restored(client: MqttClient) -> bool:
    session = client.connection._session
    return session is not None and session.lasting is not None and session.lasting.resumed is None


async def test_other_connections_have_a_turn_after_each_page() -> None:
    site = MqttSite(queue=5)
    await absent(site, "#")
    publish(site, "a", 1)
    publish(site, "private-a", *range(20))
    client, passed = returning(site), 0
    while not is_restored(client):
        await turns(1)
        passed += 1
        assert passed < 50
    assert passed >= 10
    assert [one[-1:] for one in await received(client)] == [b"1"]


async def test_filters_together_get_no_longer_turns() -> None:
    site = MqttSite()
    await absent(site, *"abcdefgh")
    for channel in "abcdefgh":
        publish(site, channel, 1)
    client, passed = returning(site), 0
    while not is_restored(client):
        await turns(1)
        passed += 1
    assert passed >= 4
    assert len(await received(client)) == 8


async def test_filters_with_qos_0_are_compared_in_several_turns() -> None:
    site = MqttSite()
    await absent(site, "a", qos_0=("+", "b"))
    publish(site, "a", *range(6))
    client, passed = returning(site), 0
    while not is_restored(client):
        await turns(1)
        passed += 1
    assert passed >= 8
    found = await received(client)
    assert len(found) == 6
    assert all(one[:-1].endswith(b"\x0b\x01\x0b\x02") for one in found)


async def test_number_of_sessions_that_read_logs_at_once_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    read, reading, most = MemoryLogs.read, 0, 0

    async def slow(*arguments: Any) -> LogPage:
        nonlocal reading, most
        reading += 1
        most = max(most, reading)
        await turns(3)
        reading -= 1
        return await read(*arguments)

    monkeypatch.setattr(MemoryLogs, "read", slow)
    site = MqttSite()
    site.clients.reading = asyncio.Semaphore(2)
    for number in range(5):
        await absent(site, "a", client_id=f"c{number}")
    publish(site, "a", 1)
    clients = [returning(site, f"c{number}") for number in range(5)]
    assert [[one[-1:] for one in await received(client)] for client in clients] == [[b"1"]] * 5
    assert most == 2


async def test_part_of_a_log_that_is_too_long_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "MAX_READ", 6)
    site = MqttSite(queue=5)
    await absent(site, "#")
    publish(site, "a", 1)
    publish(site, "private-a", *range(20))
    publish(site, "a", 2)
    with structlog.testing.capture_logs() as logged:
        client = returning(site)
        assert [one[-1:] for one in await received(client)] == [b"2"]
    assert [one["event"] for one in logged if one["log_level"] == "warning"] == ["messages for an absent client were dropped"]


@pytest.mark.parametrize("count", range(1, 5))
@pytest.mark.parametrize("is_taken_over", [True, False])
async def test_connection_that_ends_while_logs_are_read_loses_and_doubles_nothing(count: int, is_taken_over: bool) -> None:
    site = MqttSite()
    await absent(site, "a", SHARED, "c")
    for number, channel in enumerate("aaabbbccc", 1):
        publish(site, channel, number)
    client = returning(site)
    await turns(count)
    assert not is_restored(client)
    if is_taken_over:
        client.connection.take_over()
    else:
        client.lose()
    await turns()
    publish(site, "a", 0)
    assert [one[-1:] for one in await received(returning(site))] == [b"%d" % number for number in (*range(1, 10), 0)]


async def test_message_while_logs_are_read_comes_once_for_all_filters() -> None:
    site = MqttSite()
    await absent(site, "b", "a", "+")
    publish(site, "a", 1, 2, 3)
    client = returning(site)
    await turns(2)
    assert not is_restored(client)
    publish(site, "b", 4)
    *_, last = found = await received(client)
    assert [one[-1:] for one in found] == [b"1", b"2", b"3", b"4"]
    assert last.endswith(b"\x0b\x01\x0b\x034")


async def test_messages_of_a_group_above_the_bound_stay_for_other_members() -> None:
    site = MqttSite(queue=2)
    await absent(site, SHARED, "a")
    await absent(site, SHARED, client_id="other")
    publish(site, "b", 1, 2)
    publish(site, "a", 3, 4)
    client = returning(site)
    assert [one[-1:] for one in await received(client)] == [b"3", b"4"]
    client.lose()
    assert [one[-1:] for one in await received(returning(site, "other"))] == [b"1", b"2"]


async def test_message_that_another_member_takes_first_is_not_delivered(monkeypatch: pytest.MonkeyPatch) -> None:
    async def take(*_: Any) -> tuple[int, ...]:
        return (2,)

    site = MqttSite()
    await absent(site, SHARED)
    publish(site, "b", 1, 2)
    monkeypatch.setattr(MemoryLogs, "take", take)
    assert [one[-1:] for one in await received(returning(site))] == [b"2"]


@pytest.mark.parametrize("is_taken_over", [True, False])
async def test_member_that_leaves_before_its_restoration_takes_no_message_along(is_taken_over: bool) -> None:
    """One message is in flight when the member becomes absent, and one is published while it returns."""
    site = MqttSite()
    client = site.client(MQTT_5)
    await client.connect("c", clean=False, session_expiry=60)
    await client.subscribe(FilterOptions(SHARED, 1), FilterOptions("a", 1))
    publish(site, "b", 1)
    await turns()
    client.lose()
    await turns()
    publish(site, "a", *range(6))
    await absent(site, SHARED, client_id="other")
    client = returning(site, expiry=None)
    await turns(2)
    assert not is_restored(client)
    publish(site, "b", 2)
    if is_taken_over:
        client.connection.take_over()
    else:
        client.lose()
    await turns()
    await site.clients.tick()
    assert sorted(one[-1:] for one in await received(returning(site, "other"))) == [b"1", b"2"]
