"""Sessions that may lack messages, because the worker lost the broker: the order of their messages (`Logs.on_recovering`)."""

import pytest

from push1st.brokers.sessions import SavedFlow, SavedMessage, Sessions
from push1st.messages import MqttFields, MqttMessage
from push1st.protocols.mqtt.own import OwnMessage, own_message
from push1st.protocols.mqtt.packets import MQTT_311, ConnectPacket, FilterOptions
from push1st.transports.mqtt.lasting import LastingSession
from tests.support import mqtt_packets as packets
from tests.support.loop import turns
from tests.support.mqtt_site import MqttClient, MqttSite
from tests.support.node import APP


@pytest.fixture
def site() -> MqttSite:
    return MqttSite()


def sessions_of(site: MqttSite) -> Sessions:
    assert site.world.node.sessions is not None
    return site.world.node.sessions


async def opened(site: MqttSite, client_id: str = "c") -> MqttClient:
    client = site.client(MQTT_311)
    client.connection.data_received(packets.connect(ConnectPacket(MQTT_311, client_id, clean=False)))
    await turns()
    return client


def lasting_of(client: MqttClient) -> LastingSession:
    assert client.connection._session is not None
    assert client.connection._session.lasting is not None
    return client.connection._session.lasting


async def doubtful(site: MqttSite, client_id: str = "c") -> MqttClient:
    """Returns a client whose session has cursors, as with a shared broker, after the worker has lost the broker."""
    client = await opened(site, client_id)
    await client.subscribe(FilterOptions("a", 1))
    lasting_of(client).cursors = {"a": ()}
    await publish(site, 1)
    assert payloads(client) == [b"1"]
    sessions_of(site).logs.gaps += 1
    return client


async def publish(site: MqttSite, payload: int, qos: int = 1, channel: str = "a") -> None:
    site.world.publish(channel, b"%d" % payload, mqtt=MqttFields(qos))
    await turns()


def payloads(client: MqttClient) -> list[bytes]:
    """Returns the payloads of the messages that the client has received since the last call, without CONNACK and SUBACK."""
    data = client.take()
    while data[:1] in (b"\x20", b"\x90"):
        data = data[2 + data[1] :]
    return [payload for _, _, _, payload in packets.publishes(data)]


async def test_live_message_waits_until_the_connection_ends(site: MqttSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LastingSession, "with_cursors", lambda _, subscriptions: subscriptions)  # the memory broker sets them
    client = await doubtful(site)
    sessions_of(site).logs.on_recovering(lambda _, channel: channel == "a")
    await publish(site, 2)
    assert payloads(client) == []
    sessions_of(site).logs.on_recovered(True)
    await turns()
    assert client.is_closed()
    await publish(site, 3)
    again = await opened(site)
    assert payloads(again) == [b"1", b"2", b"3"]


async def test_live_message_is_sent_if_the_logs_have_no_earlier_ones(site: MqttSite) -> None:
    client = await doubtful(site)
    sessions_of(site).logs.on_recovering(lambda _, channel: channel == "a")
    await publish(site, 2)
    assert payloads(client) == []
    sessions_of(site).logs.on_recovered(False)
    assert payloads(client) == [b"2"]
    await publish(site, 3)
    assert payloads(client) == [b"3"]
    assert not client.is_closed()


async def test_live_message_with_qos_0_does_not_wait(site: MqttSite) -> None:
    client = await doubtful(site)
    sessions_of(site).logs.on_recovering(lambda _, channel: channel == "a")
    await publish(site, 2)
    await publish(site, 3, qos=0)
    assert payloads(client) == [b"3"]


async def test_live_message_of_another_shard_does_not_wait(site: MqttSite) -> None:
    client = await doubtful(site)
    await client.subscribe(FilterOptions("b", 1))
    sessions_of(site).logs.on_recovering(lambda _, channel: channel == "a")
    await publish(site, 2)
    await publish(site, 3, channel="b")
    assert payloads(client) == [b"3"]


async def test_client_without_logged_filters_receives_held_messages_and_stays(site: MqttSite) -> None:
    client = await doubtful(site)
    sessions_of(site).logs.on_recovering(lambda _, channel: channel == "a")
    await publish(site, 2)
    lasting_of(client).cursors = {}  # as after UNSUBSCRIBE
    sessions_of(site).logs.on_recovered(True)
    await turns()
    assert payloads(client) == [b"2"]
    assert not client.is_closed()
    assert not lasting_of(client).is_doubtful


async def test_recovery_of_another_shard_does_not_end_the_doubt(site: MqttSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("push1st.transports.mqtt.clients.ENDED_A_TURN", 1)
    await doubtful(site)
    client = await doubtful(site, "d")
    lasting = lasting_of(client)
    sessions_of(site).logs.on_recovering(lambda _, channel: channel == "a")
    sessions_of(site).logs.on_recovered(True)
    assert not client.is_closed()
    sessions_of(site).logs.on_recovered(False)
    assert lasting.is_doubtful
    await turns()
    assert client.is_closed()


async def test_saved_message_that_is_in_a_log_keeps_the_order_of_the_log(site: MqttSite) -> None:
    client = await opened(site)
    assert client.connection._session is not None
    messages = [
        MqttMessage(APP, "a", "message", b"%d" % number, number, 1, sender="1.1", mqtt=MqttFields(1)) for number in range(6)
    ]
    logged: list[OwnMessage] = []
    for one in messages[2:]:
        item = own_message(one, MQTT_311, 1, False, (), 0)
        assert item is not None
        logged.append(item)
    inflight, early, late = [SavedMessage(messages[number], 1) for number in (3, 1, 5)]
    sender = client.connection._session.sending()
    sender.hold()
    sender.resume(SavedFlow(2, ((1, inflight),), (early, late)), False, 100, logged)
    await turns()
    assert payloads(client) == [b"3", b"1", b"2", b"4", b"5"]
