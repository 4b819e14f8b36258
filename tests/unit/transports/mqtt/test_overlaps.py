"""Filters of one client that match the same topics: the client gets one copy of each message."""

import asyncio
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from push1st import filters
from push1st.core import fanout
from push1st.core.hub import Lane
from push1st.messages import DeliveryMode, Options
from push1st.protocols.mqtt.own import MqttOwnWire
from push1st.protocols.mqtt.packets import MQTT_5, MQTT_311, FilterOptions, PublishPacket, SubscribePacket
from push1st.protocols.mqtt.topics import exchange
from push1st.transports.mqtt import overlaps
from push1st.transports.mqtt.overlaps import Overlaps
from tests.support import mqtt_packets as packets
from tests.support.loop import turns
from tests.support.mqtt_site import MqttClient, MqttSite, published

VERSIONS = pytest.mark.parametrize("version", [MQTT_311, MQTT_5])


@pytest.fixture
def site() -> MqttSite:
    return MqttSite()


def lanes(client: MqttClient) -> list[Lane]:
    session = client.connection._session
    assert session is not None
    return list(session.client.lanes)


def ids_of(*ids: int) -> bytes:
    """Returns the properties of a message with Subscription Identifiers."""
    return b"".join(bytes((0x0B, id)) for id in ids)


def state(client: MqttClient) -> Overlaps:
    """Returns the overlaps of a client that has overlapping filters."""
    session = client.connection._session
    assert session is not None
    assert session.sender is not None
    assert session.sender.overlaps is not None
    return session.sender.overlaps


def owned(client: MqttClient) -> list[bool]:
    """Returns for each subscription of a client whether its wire is an own one."""
    return [isinstance(lane.wire, MqttOwnWire) for lane in lanes(client)]


async def subscribed(site: MqttSite, *wanted: str | FilterOptions, version: int = MQTT_5) -> MqttClient:
    """Returns a client with one SUBSCRIBE for each filter; the Subscription Identifiers count from 1."""
    client = await site.connected(version, "c")
    for number, one in enumerate(wanted, 1):
        await client.subscribe(one, subscription_id=number if version == MQTT_5 else 0)
    return client


# One copy


@VERSIONS
@pytest.mark.parametrize("wanted", [("a/+", "a/b"), ("a/b", "a/+"), ("#", "+/b", "a/#"), ("a/b", "#", "+/+")])
async def test_client_gets_one_copy(site: MqttSite, version: int, wanted: Sequence[str]) -> None:
    client, sender = await subscribed(site, *wanted, version=version), await site.connected(version, "sender")
    ids = tuple(range(1, len(wanted) + 1)) if version == MQTT_5 else ()
    for payload in (b"1", b"2"):
        await sender.publish("a/b", payload)
        assert client.take() == published("a/b", payload, version, properties=ids_of(*ids))


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_copy_has_the_highest_granted_qos(site: MqttSite, qos: int) -> None:
    client = await subscribed(site, FilterOptions("a/b", 1), FilterOptions("#", 2), FilterOptions("+/b", 0))
    sender = await site.connected(MQTT_5, "sender")
    await sender.publish("a/b", qos=qos, packet_id=9 if qos else 0)
    assert client.take() == published("a/b", b"x", MQTT_5, qos=qos, packet_id=1 if qos else 0, properties=ids_of(1, 2, 3))


async def test_equal_subscription_ids_are_repeated(site: MqttSite) -> None:
    client = await site.connected(MQTT_5)
    await client.subscribe("a/b", "a/+", subscription_id=7)
    await client.subscribe("#")
    assert await client.publish("a/b") == published("a/b", b"x", MQTT_5, properties=ids_of(7, 7))


async def test_topic_of_one_filter_has_the_options_of_this_filter(site: MqttSite) -> None:
    client = await subscribed(site, FilterOptions("a/#", 1), "a/b")
    assert await client.publish("a/c", qos=1, packet_id=5) == (
        published("a/c", b"x", MQTT_5, qos=1, packet_id=1, properties=ids_of(1)) + bytes.fromhex("40020005")
    )


async def test_retain_is_as_published_if_one_filter_has_the_option(site: MqttSite) -> None:
    client = await subscribed(site, FilterOptions("a/b", retain_as_published=True), "#", "c/+", "c/d")
    assert await client.publish("a/b", retain=True) == published("a/b", b"x", MQTT_5, retain=True, properties=ids_of(1, 2))
    assert await client.publish("c/d", retain=True) == published("c/d", b"x", MQTT_5, properties=ids_of(2, 3, 4))


async def test_own_message_needs_a_filter_without_no_local(site: MqttSite) -> None:
    client = await subscribed(site, FilterOptions("#", 1, no_local=True), FilterOptions("+/b", no_local=True), "c/b")
    sender = await site.connected(MQTT_5, "sender")
    assert await client.publish("a/b") == b""
    assert await client.publish("c/b") == published("c/b", b"x", MQTT_5, properties=ids_of(3))
    await sender.publish("c/b")
    assert client.take() == published("c/b", b"x", MQTT_5, properties=ids_of(1, 2, 3))


@pytest.mark.parametrize(("largest", "is_sent"), [(13, True), (12, False)])
async def test_size_of_the_copy_counts(site: MqttSite, largest: int, is_sent: bool) -> None:
    copy = published("a/b", b"x", MQTT_5, properties=ids_of(1, 2))
    assert len(copy) == 13
    client = await site.connected(MQTT_5)
    assert client.connection._session is not None
    client.connection._session.max_size = largest  # a Maximum Packet Size is not shorter than a CONNACK
    await client.subscribe("a/b", subscription_id=1)
    await client.subscribe("#", subscription_id=2)
    assert await client.publish("a/b") == (copy if is_sent else b"")


async def test_copies_have_topic_aliases(site: MqttSite) -> None:
    client = await site.connected(MQTT_5, topic_alias_maximum=1)
    await client.subscribe("a/b", "#")
    assert await client.publish("a/b") == published("a/b", b"x", MQTT_5, properties=bytes.fromhex("230001"))
    assert await client.publish("a/b") == published("", b"x", MQTT_5, properties=bytes.fromhex("230001"))


async def test_event_with_several_channels_has_a_copy_for_each(site: MqttSite) -> None:
    client = await subscribed(site, "a/+", "#", "a/b", version=MQTT_311)
    stamp = site.node.stamp()
    for channel in ("a.b", "a.c"):
        site.node.publish(site.world.app, channel, "e", b"1", stamp)
    await asyncio.sleep(0)
    assert client.take() == published("a/b", b"1") + published("a/c", b"1")


@pytest.mark.parametrize("delivery", ["unicast", "multicast", "broadcast"])
async def test_targeted_event_comes_once(site: MqttSite, delivery: DeliveryMode) -> None:
    client, other = await subscribed(site, "a/b", "#", version=MQTT_311), await site.connected(MQTT_311, "other")
    await other.subscribe("a/b", "#")
    session = client.connection._session
    assert session is not None
    target = "" if delivery == "broadcast" else session.client.id if delivery == "unicast" else "c"
    for _ in range(2):
        site.node.publish(site.world.app, "a.b", "e", b"1", site.node.stamp(), options=Options(0, delivery, target))
    await asyncio.sleep(0)
    assert client.take() == 2 * published("a/b", b"1")
    assert other.take() == (2 * published("a/b", b"1") if delivery == "broadcast" else b"")
    assert not state(client)._further


async def test_excluded_client_gets_no_copy(site: MqttSite) -> None:
    client = await subscribed(site, "a/b", "#", version=MQTT_311)
    session = client.connection._session
    assert session is not None
    site.node.publish(site.world.app, "a.b", "e", b"1", site.node.stamp(), exclude=session.client.id)
    site.node.publish(site.world.app, "a.b", "e", b"2", site.node.stamp())
    await asyncio.sleep(0)
    assert client.take() == published("a/b", b"2")
    assert not state(client)._further


async def test_copies_of_long_flushes_are_dropped(site: MqttSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lanes of the filters are written in slices, so the copies of a message come in different turns."""
    monkeypatch.setattr(fanout, "SLICE_WRITES", 2)
    clients = [await site.connected(MQTT_311, f"c{number}") for number in range(5)]
    for client in clients:
        await client.subscribe("a/b", "#", "+/b")
    await clients[0].subscribe("x")
    sender = await site.connected(MQTT_311, "sender")
    for number in range(6):
        await sender.send(packets.message(PublishPacket("a/b", b"%d" % number), MQTT_311))
    await turns(50)
    for client in clients:
        assert client.take() == b"".join(published("a/b", b"%d" % number) for number in range(6))
        assert not state(client)._further


# Changes of the filters


async def test_only_overlapping_filters_leave_their_lanes(site: MqttSite) -> None:
    client = await subscribed(site, "a/b", "c/d", "x/y/#")
    assert owned(client) == [False, False, False]
    await client.subscribe("+/b")
    assert owned(client) == [True, False, False, True]
    assert state(client).filters == {"a.b", "+.b"}


async def test_topic_of_a_user_overlaps_no_filter(site: MqttSite) -> None:
    client = await site.connected(MQTT_5, username="app-key:x", password=site.token("private-*", sub="ann"))
    assert (await client.subscribe("#", "+/+", "$user/ann"))[-3:] == b"\0\0\0"
    assert owned(client)[0] is False


async def test_options_of_an_overlapping_filter_are_replaced(site: MqttSite) -> None:
    client = await subscribed(site, "a/b", "a/+")
    for one in (FilterOptions("a/b", 1), FilterOptions("a/+", no_local=True)):
        await client.subscribe(one, subscription_id=9)
    assert await client.publish("a/b") == published("a/b", b"x", MQTT_5, properties=ids_of(9))
    assert owned(client) == [True, True]


async def test_ended_filter_does_not_count(site: MqttSite) -> None:
    client = await subscribed(site, "a/b", "a/+", "#")
    await client.unsubscribe("a/b")
    assert await client.publish("a/b") == published("a/b", b"x", MQTT_5, properties=ids_of(2, 3))
    await client.unsubscribe("#")
    assert await client.publish("a/b") == published("a/b", b"x", MQTT_5, properties=ids_of(2))
    await client.subscribe("a/b", subscription_id=4)
    assert await client.publish("a/b") == published("a/b", b"x", MQTT_5, properties=ids_of(2, 4))


async def test_message_before_the_overlap_is_not_lost_or_repeated(site: MqttSite) -> None:
    client, sender = await subscribed(site, "a/b"), await site.connected(MQTT_5, "sender")
    message = packets.message(PublishPacket("a/b", b"1"), MQTT_5)
    sender.connection.data_received(message)  # pending in this turn
    assert await client.subscribe("#", subscription_id=2) == (
        published("a/b", b"1", MQTT_5, properties=ids_of(1)) + bytes.fromhex("900400010000")
    )
    await sender.send(message)
    assert client.take() == published("a/b", b"1", MQTT_5, properties=ids_of(1, 2))


async def test_changed_configuration_of_the_app_applies(site: MqttSite) -> None:
    client = await site.connected(MQTT_5, username="app-key", password=site.token("private-*"))
    await client.subscribe("#", subscription_id=1)
    await client.subscribe("private-a", subscription_id=2)
    assert await client.publish("private-a") == published("private-a", b"x", MQTT_5, properties=ids_of(1, 2))
    site.node.configure(msgspec.structs.replace(site.world.app.config, channels=frozenset({"public"})))
    site.node.publish(site.world.app, "private-a", "e", b"1", site.node.stamp())
    await asyncio.sleep(0)
    found = client.take()
    assert found.endswith(b"\x01e1")
    assert ids_of(2) in found
    assert ids_of(1) not in found
    assert not state(client)._further


# Bounds


async def test_number_of_kept_channels_is_bounded(site: MqttSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlaps, "MAX_CHANNELS", 3)
    client = await subscribed(site, "#", "a/+", version=MQTT_311)
    for number in range(10):
        assert await client.publish(f"a/{number}") == published(f"a/{number}", b"x")
    assert len(state(client)._matching) <= 3
    assert not state(client)._further


FILTERS = ["#", "a/#", "a/+", "+/b", "a/b", "a/c", "+/+", "c/b"]
TOPICS = ["a/b", "a/c", "c/b", "a"]
Step = tuple[str, str]


def by_topic(data: bytes) -> dict[bytes, list[bytes]]:
    """Returns the PUBLISH packets in the output of the server, each shorter than 128 bytes, by topic."""
    found: dict[bytes, list[bytes]] = {}
    while data:
        packet, data = data[: data[1] + 2], data[data[1] + 2 :]
        if packet[0] == 0x30:
            found.setdefault(packet[4 : 4 + packet[3]], []).append(packet)
    return found


async def run_steps(steps: Sequence[Step]) -> None:
    site = MqttSite()
    client, sender, other = [await site.connected(MQTT_5, name) for name in ("client", "sender", "other")]
    mine: dict[str, int] = {}
    received = expected = b""
    for number, (kind, name) in enumerate(steps, 1):
        if kind == "publish":
            ids = sorted(mine[one] for one in mine if filters.matches(exchange(one), exchange(name)))
            sender.connection.data_received(packets.message(PublishPacket(name, b"%d" % number), MQTT_5))
            expected += published(name, b"%d" % number, MQTT_5, properties=ids_of(*ids)) if ids else b""
        elif kind == "turn":
            await asyncio.sleep(0)
        elif kind == "join":
            await other.subscribe(FilterOptions(name, number % 3))
        elif kind == "leave":
            await other.unsubscribe(name)
        elif mine.pop(name, 0):
            received += await client.unsubscribe(name)
        else:
            received += await client.subscribe(FilterOptions(name, number % 3), subscription_id=number)
            mine[name] = number
    await asyncio.sleep(0)
    assert by_topic(received + client.take()) == by_topic(expected)
    session = client.connection._session
    assert session is not None
    assert session.sender is None or session.sender.overlaps is None or not session.sender.overlaps._further


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("publish"), st.sampled_from(TOPICS)),
            st.tuples(st.sampled_from(["change", "change", "join", "leave", "turn"]), st.sampled_from(FILTERS)),
        ),
        max_size=60,
    )
)
def test_every_message_arrives_once_and_in_order(steps: list[Step]) -> None:
    """Another client joins and leaves, so the lanes of the filters are flushed at different times."""
    asyncio.run(run_steps(steps))


# Retained messages


async def test_each_subscribe_brings_retained_messages_once(site: MqttSite) -> None:
    sender, client = await site.connected(MQTT_5, "sender"), await site.connected(MQTT_5, "client")
    await sender.publish("a/b", b"kept", retain=True)
    kept = published("a/b", b"kept", MQTT_5, retain=True, properties=ids_of(1))
    assert await client.subscribe("a/b", subscription_id=1) == bytes.fromhex("900400010000") + kept
    kept = published("a/b", b"kept", MQTT_5, retain=True, properties=ids_of(2))
    answer = await client.subscribe("a/+", "#", subscription_id=2)
    assert answer.startswith(bytes.fromhex("90050001000000"))
    assert (answer + client.take()).count(b"kept") == 1
    assert owned(client) == [True, True, True]
    await sender.publish("a/b", b"live")
    assert client.take() == published("a/b", b"live", MQTT_5, properties=ids_of(1, 2, 2))


async def test_overlap_stays_when_all_retained_messages_are_sent(site: MqttSite) -> None:
    """A filter with pending retained messages has an own wire, and would return to a shared wire."""
    sender, client = await site.connected(MQTT_5, "sender"), await site.connected(MQTT_5, "client")
    await sender.publish("a/b", b"kept", retain=True)
    subscribes = [packets.subscribe(SubscribePacket(1, (FilterOptions(one),), 0), MQTT_5) for one in ("a/b", "a/+")]
    client.connection.data_received(b"".join(subscribes))
    await turns()
    client.take()
    await sender.publish("a/b", b"live")
    assert client.take() == published("a/b", b"live", MQTT_5)
    assert owned(client) == [True, True]
