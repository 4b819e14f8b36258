"""Members of groups whose sessions outlive their connections: messages while no member is connected."""

from typing import Any

import pytest

from push1st.protocols.mqtt.packets import MQTT_5, MQTT_311, FilterOptions, PublishPacket
from push1st.transports.mqtt import subscribing
from tests.support import mqtt_packets as packets
from tests.support.loop import turns
from tests.support.mqtt_site import MqttClient, MqttSite, published

VERSIONS = pytest.mark.parametrize("version", [MQTT_311, MQTT_5])
FILTERS = pytest.mark.parametrize("filter", ["a/b", "a/+", "#"])
GROUP = "$share/g/a/b"


@pytest.fixture
def site() -> MqttSite:
    return MqttSite()


async def opened(site: MqttSite, client_id: str = "c", version: int = MQTT_311, **fields: Any) -> MqttClient:
    """Returns a client whose session outlives the connection. Its output still has what follows CONNACK."""
    expiry = {"session_expiry": 60} if version == MQTT_5 else {}
    client = site.client(version)
    answer = await client.connect(client_id, clean=False, **expiry, **fields)
    assert answer[0] == 0x20
    assert answer[3] == 0
    client.transport.write(answer[2 + answer[1] :])
    return client


async def absent(site: MqttSite, client_id: str = "c", filter: str = GROUP, qos: int = 1, **fields: Any) -> None:
    """Makes a client a member of a group, and ends its connection."""
    client = await opened(site, client_id, **fields)
    assert (await client.subscribe(FilterOptions(filter, qos)))[-1] == qos
    client.lose()
    await turns()


async def publish(site: MqttSite, *payloads: bytes, topic: str = "a/b") -> list[int]:
    """Publishes messages with QoS 1; returns the reason codes of their acknowledgements."""
    sender = await site.connected(MQTT_5, "sender")
    answers = [await sender.publish(topic, payload, qos=1, packet_id=1) for payload in payloads]
    sender.lose()
    return [0 if len(answer) == 4 else answer[4] for answer in answers]


def copies(*payloads: bytes, version: int = MQTT_311) -> bytes:
    """Returns PUBLISH packets with QoS 1, whose packet ids count from 1."""
    return b"".join(published("a/b", one, version, qos=1, packet_id=id) for id, one in enumerate(payloads, 1))


@VERSIONS
@FILTERS
async def test_first_member_that_returns_gets_the_messages(site: MqttSite, version: int, filter: str) -> None:
    for name in ("one", "two"):
        await absent(site, name, f"$share/g/{filter}", version=version)
    assert await publish(site, b"1", b"2") == [0, 0]
    one, two = await opened(site, "one", version), await opened(site, "two", version)
    assert (one.take(), two.take()) == (copies(b"1", b"2", version=version), b"")
    await publish(site, b"3", b"4")
    assert one.take() == published("a/b", b"3", version, qos=1, packet_id=3)
    assert two.take() == published("a/b", b"4", version, qos=1, packet_id=1)


async def test_connected_member_gets_all_messages(site: MqttSite) -> None:
    await absent(site, "absent")
    other = await site.connected(MQTT_311, "other")
    await other.subscribe(FilterOptions(GROUP, 1))
    await publish(site, b"1", b"2")
    assert other.take() == copies(b"1", b"2")
    assert (await opened(site, "absent")).take() == b""


async def test_message_that_excludes_the_connected_member_waits_for_the_absent_one(site: MqttSite) -> None:
    await absent(site, "absent")
    other = await opened(site, "other")
    await other.subscribe(FilterOptions(GROUP, 1))
    session = other.connection._session
    assert session is not None
    for exclude in (session.client.id, ""):
        site.world.publish("a.b", b'"%d"' % bool(exclude), exclude=exclude)
    await turns()
    assert other.take() == copies(b"0")
    assert (await opened(site, "absent")).take() == copies(b"1")


async def test_new_member_with_a_session_gets_the_messages_after_suback(site: MqttSite) -> None:
    await absent(site, "absent")
    await publish(site, b"1")
    other = await opened(site, "other")
    assert await other.subscribe(FilterOptions(GROUP, 1)) == bytes.fromhex("9003000101") + copies(b"1")
    assert (await opened(site, "absent")).take() == b""


async def test_member_without_a_session_leaves_the_messages(site: MqttSite) -> None:
    await absent(site, "absent")
    await publish(site, b"1")
    other = await site.connected(MQTT_311, "other")
    assert await other.subscribe(FilterOptions(GROUP, 1)) == bytes.fromhex("9003000101")
    other.lose()
    assert (await opened(site, "absent")).take() == copies(b"1")


@pytest.mark.parametrize("end", ["lost", "unsubscribed", "expiry 0"])
async def test_messages_of_the_last_member_return_to_the_absent_sessions(site: MqttSite, end: str) -> None:
    await absent(site, "absent")
    if end == "expiry 0":
        (await opened(site, "other", MQTT_5)).lose()
        await turns()
    other = await site.connected(MQTT_5, "other", clean=end != "expiry 0", receive_maximum=2)
    await other.subscribe(FilterOptions(GROUP, 1))
    assert await publish(site, b"1", b"2", b"3", b"4") == [0, 0, 0, 0]
    assert other.take() == copies(b"1", b"2", version=MQTT_5)
    if end == "unsubscribed":
        await other.unsubscribe(GROUP)
    other.lose()
    await turns()
    assert (await opened(site, "absent")).take() == copies(b"1", b"2", b"3", b"4")


@pytest.mark.parametrize("source", ["live", "log", "restored"])
@pytest.mark.parametrize("end", ["expiry", "clean", "another owner"])
@pytest.mark.parametrize("is_connected", [True, False])
async def test_messages_of_an_ended_session_reach_another_member(
    site: MqttSite, source: str, end: str, is_connected: bool
) -> None:
    """One message is in flight, and one waits for room in the window."""
    if source == "log":
        await absent(site, "one")
        await publish(site, b"1", b"2")
    client = await opened(site, "one", MQTT_5, receive_maximum=1)
    if source != "log":
        await client.subscribe(FilterOptions(GROUP, 1))
        await publish(site, b"1", b"2")
    if source == "restored":
        client.lose()
        await turns()
        client = await opened(site, "one", MQTT_5, receive_maximum=1)
    client.lose()
    await turns()
    site.clock.advance(30)
    other = await opened(site, "other", MQTT_5)
    await other.subscribe(FilterOptions(GROUP, 1))
    assert other.take() == b""
    if not is_connected:
        other.lose()
        await turns()
    if end == "expiry":
        site.clock.advance(31)
        await site.clients.tick()
    elif end == "clean":
        await site.connected(MQTT_5, "one")
    else:
        user = {"username": "app-key", "password": site.token("a.b", sub="ann")}
        await site.connected(MQTT_5, "one", clean=False, session_expiry=60, **user)
    if not is_connected:
        other = await opened(site, "other", MQTT_5)
    assert other.take() == copies(b"1", b"2", version=MQTT_5)


async def test_expired_message_of_an_ended_session_reaches_no_member(site: MqttSite) -> None:
    client, sender = await opened(site, "one", MQTT_5), await site.connected(MQTT_5, "sender")
    await client.subscribe(FilterOptions(GROUP, 1))
    await sender.publish("a/b", b"1", qos=1, packet_id=1, expiry=5)
    client.lose()
    await turns()
    other = await opened(site, "other")
    await other.subscribe(FilterOptions(GROUP, 1))
    site.clock.advance(61)
    await site.clients.tick()
    assert other.take() == b""


async def test_messages_that_the_client_may_not_receive_any_more_reach_another_member(site: MqttSite) -> None:
    token = site.token("private-a", sub="ann")
    client = await opened(site, "one", MQTT_5, receive_maximum=1, username="app-key", password=token)
    await client.subscribe(FilterOptions("$share/g/#", 1))
    for payload in (b"1", b"2"):
        site.node.publish(site.world.app, "private-a", "e", payload, site.node.stamp())
    client.lose()
    await turns()
    other = await opened(site, "other", username="app-key", password=token)
    await other.subscribe(FilterOptions("$share/g/#", 1))
    client = await opened(site, "one", MQTT_5, username="app-key", password=site.token("private-b", sub="ann"))
    assert client.take() == b""
    first, second = [published("private-a", b"%d" % id, qos=1, packet_id=id) for id in (1, 2)]
    assert other.take() == first + second


async def test_own_copy_of_a_message_is_separate_from_the_copy_of_the_group(site: MqttSite) -> None:
    client = await opened(site, "one")
    await client.subscribe(FilterOptions(GROUP, 1), FilterOptions("a/b", 1))
    client.lose()
    await turns()
    await publish(site, b"1")
    client = await opened(site, "one", MQTT_5, receive_maximum=1)
    assert client.take() == copies(b"1", version=MQTT_5)
    other = await opened(site, "other")
    await other.subscribe(FilterOptions(GROUP, 1))
    client.lose()
    await turns()
    assert other.take() == copies(b"1")


@pytest.mark.parametrize("qos", [1, 2])
async def test_messages_of_the_last_turn_return_to_the_absent_sessions(site: MqttSite, qos: int) -> None:
    await absent(site, "absent", qos=2)
    other, sender = await site.connected(MQTT_311, "other"), await site.connected(MQTT_311, "sender")
    await other.subscribe(FilterOptions(GROUP, 2))
    sender.connection.data_received(packets.message(PublishPacket("a/b", b"1", qos, packet_id=1), MQTT_311))
    other.connection.data_received(bytes.fromhex("e000"))
    await turns()
    assert (await opened(site, "absent")).take() == published("a/b", b"1", qos=qos, packet_id=1)


async def test_messages_that_no_other_member_may_read_return_to_the_absent_sessions(site: MqttSite) -> None:
    holder: dict[str, Any] = {"username": "app-key", "password": site.token("private-a", sub="ann")}
    await absent(site, "absent", "$share/g/#", **holder)
    other, stranger = await site.connected(MQTT_311, "other", **holder), await site.connected(MQTT_311, "stranger")
    for client in (other, stranger):
        await client.subscribe(FilterOptions("$share/g/#", 1))
    site.node.publish(site.world.app, "private-a", "e", b"1", site.node.stamp())
    await turns()
    other.lose()
    assert stranger.take() == b""
    assert (await opened(site, "absent", **holder)).take() == published("private-a", b"1", qos=1, packet_id=1)


async def test_messages_wait_for_a_member_with_the_right(site: MqttSite) -> None:
    password = site.token("private-a", sub="ann")
    await absent(site, "stranger", "$share/g/#")
    await absent(site, "holder", "$share/g/#", username="app-key", password=password)
    await publish(site, b"1", topic="open")
    site.node.publish(site.world.app, "private-a", "e", b"2", site.node.stamp())
    stranger = await opened(site, "stranger")
    assert stranger.take() == published("open", b"1", qos=1, packet_id=1)
    holder = await opened(site, "holder", username="app-key", password=password)
    assert holder.take() == published("private-a", b"2", qos=1, packet_id=1)


@pytest.mark.parametrize("is_alone", [True, False])
async def test_unacknowledged_messages_stay_with_the_session_of_the_only_member(site: MqttSite, is_alone: bool) -> None:
    one, other = await opened(site, "one"), await site.connected(MQTT_311, "other")
    await one.subscribe(FilterOptions(GROUP, 1))
    await publish(site, b"1")
    assert one.take() == copies(b"1")
    if not is_alone:
        await other.subscribe(FilterOptions(GROUP, 1))
    one.lose()
    await turns()
    again = published("a/b", b"1", qos=1, packet_id=1, dup=True)
    assert (await opened(site, "one")).take() == (again if is_alone else b"")
    assert other.take() == (b"" if is_alone else copies(b"1"))


async def test_message_with_qos_2_stays_with_its_session(site: MqttSite) -> None:
    """[MQTT-4.8.2-4]"""
    one, other, sender = await opened(site, "one"), await site.connected(MQTT_311, "x"), await site.connected(MQTT_311, "s")
    for client in (one, other):
        await client.subscribe(FilterOptions(GROUP, 2))
    await sender.publish("a/b", b"1", qos=2, packet_id=1)
    one.lose()
    await turns()
    assert other.take() == b""
    assert (await opened(site, "one")).take() == published("a/b", b"1", qos=2, packet_id=1, dup=True)


async def test_options_and_waiting_messages_are_restored(site: MqttSite) -> None:
    client = await opened(site, "one", MQTT_5, receive_maximum=1)
    await client.subscribe(FilterOptions(GROUP, 1, retain_as_published=True), subscription_id=7)
    await client.subscribe(FilterOptions("c", 1))
    sender = await site.connected(MQTT_5, "sender")
    for payload in (b"1", b"2"):
        await sender.publish("a/b", payload, qos=1, packet_id=1)
    await client.unsubscribe("c")  # discards the waiting messages of this filter only
    client.lose()
    await turns()
    client = await opened(site, "one", MQTT_5, receive_maximum=9)
    ids = b"\x0b\x07"
    assert client.take() == published("a/b", b"1", MQTT_5, qos=1, packet_id=1, dup=True, properties=ids) + published(
        "a/b", b"2", MQTT_5, qos=1, packet_id=2, properties=ids
    )
    await sender.publish("a/b", b"3", qos=1, packet_id=1, retain=True)
    assert client.take() == published("a/b", b"3", MQTT_5, qos=1, packet_id=3, retain=True, properties=ids)


@pytest.mark.parametrize("ended", ["unsubscribed", "clean"])
async def test_ended_member_keeps_no_messages(site: MqttSite, ended: str) -> None:
    await absent(site)
    client = await opened(site) if ended == "unsubscribed" else await site.connected(MQTT_311, "c")
    if ended == "unsubscribed":
        await client.unsubscribe(GROUP)
    client.lose()
    await turns()
    assert await publish(site, b"1") == [0x10]
    assert site.failures == []


async def test_member_with_qos_0_keeps_no_messages(site: MqttSite) -> None:
    await absent(site, qos=0)
    assert await publish(site, b"1") == [0x10]
    client = await opened(site)
    await publish(site, b"2")
    assert client.take() == published("a/b", b"2")


async def test_expired_message_is_not_delivered(site: MqttSite) -> None:
    await absent(site)
    sender = await site.connected(MQTT_5, "sender")
    for payload, expiry in ((b"1", 5), (b"2", 50)):
        await sender.publish("a/b", payload, qos=1, packet_id=1, expiry=expiry)
    site.clock.advance(10)
    assert (await opened(site)).take() == copies(b"2")


async def test_long_log_is_read_in_parts(site: MqttSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscribing, "LOGGED_A_TURN", 2)
    await absent(site)
    payloads = [b"%d" % number for number in range(7)]
    await publish(site, *payloads)
    client = await opened(site, "other")
    answer = await client.subscribe(FilterOptions(GROUP, 1))
    await turns(20)
    assert (answer + client.take())[5:] == copies(*payloads)
    assert (await opened(site)).take() == b""


async def test_member_that_is_restored_gets_messages_after_its_earlier_ones(site: MqttSite) -> None:
    one = await opened(site, "one")
    await one.subscribe(FilterOptions(GROUP, 1))
    await publish(site, b"1")
    one.lose()
    await publish(site, b"2")
    one = await opened(site, "one")
    await publish(site, b"3")
    assert one.take() == published("a/b", b"1", qos=1, packet_id=1, dup=True) + copies(b"1", b"2", b"3")[len(copies(b"1")) :]
