"""Retained messages: publishing them, and sending them to new subscribers."""

import asyncio
from typing import Any

import msgspec
import pytest

from push1st.brokers.retained import MAX_ADDRESS_RETAINED
from push1st.errors import Refused
from push1st.messages import Message
from push1st.protocols.mqtt import encode
from push1st.protocols.mqtt.packets import MQTT_5, MQTT_311, FilterOptions, SubackPacket, SubscribePacket
from push1st.protocols.mqtt.wire import MqttWire
from push1st.transports.mqtt import retained as module
from push1st.transports.mqtt import subscribing
from tests.support import mqtt_packets as packets
from tests.support.loop import turns
from tests.support.mqtt_site import MqttClient, MqttSite, published
from tests.support.node import APP


@pytest.fixture
def site() -> MqttSite:
    return MqttSite()


async def kept(site: MqttSite, channel: str) -> Message | None:
    """Returns the retained message of a channel."""
    return (await site.world.node.retained.read(APP, [channel], 1))[0]


async def retain(client: MqttClient, topic: str, payload: bytes = b"1") -> None:
    await client.publish(topic, payload, retain=True)


# Publishing


async def test_message_with_retain_is_retained(site: MqttSite) -> None:
    client = await site.connected()
    await retain(client, "a/b", b"21.5")
    found = await kept(site, "a.b")
    assert found is not None
    assert found.data == b"21.5"
    for qos in (0, 1, 2):
        await client.publish("a/b", b"22", qos=qos, packet_id=qos)
        assert await kept(site, "a.b") == found
    await retain(client, "a/b", b"")
    assert await kept(site, "a.b") is None


async def test_rejected_message_is_not_retained(site: MqttSite) -> None:
    client = await site.connected()
    await retain(client, "private-a")
    assert await kept(site, "private-a") is None


async def test_anonymous_clients_of_an_address_have_a_bound(site: MqttSite) -> None:
    client = await site.connected()
    subscriber = await site.connected(client_id="s")
    await subscriber.subscribe("t/new")
    for number in range(MAX_ADDRESS_RETAINED):
        await retain(client, f"t/{number}")
    await retain(client, "t/new")
    assert await kept(site, "t.new") is None
    assert subscriber.take() == b""
    assert site.metrics.refusals["quota-exceeded"] == 1
    other = await site.connected(client_id="d", password=site.token("*"), username="x")
    await retain(other, "t/new")
    assert await kept(site, "t.new") is not None


async def test_clients_at_proxies_have_no_bound_of_an_address(site: MqttSite) -> None:
    client = site.client(peer="")
    await client.connect()
    for number in range(MAX_ADDRESS_RETAINED + 1):
        await retain(client, f"t/{number}")
    assert await kept(site, f"t.{MAX_ADDRESS_RETAINED}") is not None


async def test_retained_message_of_a_cache_channel_is_replayed_to_pusher_clients(site: MqttSite) -> None:
    client = await site.connected()
    await retain(client, "cache-c", b'{"a":1}')
    cached = await site.world.node.cached(site.world.app, "cache-c")
    assert cached is not None
    assert cached.message.data == b'{"a":1}'


# Sending


def suback(version: int = MQTT_311, *codes: int) -> bytes:
    packet = SubackPacket(1, codes or (0,))
    return encode.suback(packet, version)


def sent(topic: str, payload: bytes = b"1", version: int = MQTT_311, **fields: Any) -> bytes:
    return published(topic, payload, version, retain=True, **fields)


async def test_new_subscription_gets_the_retained_message_after_suback(site: MqttSite) -> None:
    client = await site.connected()
    await retain(client, "a/b", b"21.5")
    assert await client.subscribe("a/b") == suback() + sent("a/b", b"21.5")
    assert await client.publish("a/b", b"22", retain=True) == published("a/b", b"22")
    assert await client.subscribe("c") == suback()


async def test_shared_frames_are_used_after_the_retained_message(site: MqttSite) -> None:
    one, other = await site.connected(), await site.connected(client_id="d")
    await retain(one, "a")
    await one.subscribe("a")
    await other.subscribe("a")
    (lane,) = site.world.app.tenant.channels["a"].lanes
    assert isinstance(lane.wire, MqttWire)


@pytest.mark.parametrize(("handling", "expected"), [(0, True), (1, False), (2, False)])
async def test_retain_handling_decides_about_repeated_subscriptions(site: MqttSite, handling: int, expected: bool) -> None:
    client = await site.connected(MQTT_5)
    await retain(client, "a")
    options = FilterOptions("a", retain_handling=handling)
    first = await client.subscribe(options)
    assert first == suback(MQTT_5) + (sent("a", version=MQTT_5) if handling < 2 else b"")
    site.clock.advance(2)
    again = await client.subscribe(options)
    assert again == suback(MQTT_5) + (sent("a", version=MQTT_5) if expected else b"")


async def test_repeated_subscription_waits_for_a_second(site: MqttSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REPEAT_SECONDS", 1000)
    client = await site.connected()
    await retain(client, "a")
    await client.subscribe("a")
    await client.unsubscribe("a")
    assert await client.subscribe("a") == b""
    assert client.is_held()
    other = await site.connected(client_id="d")
    assert await other.subscribe("a") == suback() + sent("a")


async def test_retained_message_has_the_lower_qos_and_the_subscription_id(site: MqttSite) -> None:
    client = await site.connected(MQTT_5)
    await client.publish("a", b"1", retain=True, qos=2, packet_id=7)
    await client.send(bytes.fromhex("6202 0007"))
    answer = await client.subscribe(FilterOptions("a", qos=1), subscription_id=5)
    template = encode.publish(MQTT_5, "a", b"1", 1, True, subscription_ids=(5,))
    assert answer == suback(MQTT_5, 1) + template.frame(1)


async def test_expiry_is_the_remaining_time(site: MqttSite) -> None:
    client = await site.connected(MQTT_5)
    await client.publish("a", b"1", retain=True, expiry=30)
    site.clock.advance(10)
    assert await client.subscribe("a") == suback(MQTT_5) + sent("a", version=MQTT_5, expiry=20)
    other = await site.connected(MQTT_5, "d")
    site.clock.advance(20)
    assert await other.subscribe("a") == suback(MQTT_5)


async def test_own_retained_message_is_not_sent_with_no_local(site: MqttSite) -> None:
    client, other = await site.connected(MQTT_5), await site.connected(MQTT_5, "d")
    await retain(client, "a")
    options = FilterOptions("a", no_local=True)
    assert await client.subscribe(options) == suback(MQTT_5)
    assert await other.subscribe(options) == suback(MQTT_5) + sent("a", version=MQTT_5)
    again = await site.connected(MQTT_5)
    assert await again.subscribe(options) == suback(MQTT_5)


async def test_rejected_subscription_gets_no_retained_message(site: MqttSite) -> None:
    publisher = await site.connected(client_id="p", password=site.token("*"), username="x")
    await retain(publisher, "private-a")
    client = await site.connected()
    assert await client.subscribe("private-a") == suback(MQTT_311, 0x80)
    assert await publisher.subscribe("private-a") == suback() + sent("private-a")


async def test_cached_event_is_sent_as_a_retained_message(site: MqttSite) -> None:
    site.world.publish("cache-c", b'"v"')
    client = await site.connected()
    answer = await client.subscribe(FilterOptions("cache-c", qos=1))
    assert answer == suback(MQTT_311, 1) + encode.publish(MQTT_311, "cache-c", b"v", 1, True).frame(1)


async def slow_client(site: MqttSite, *topics: str, qos: int = 0) -> tuple[MqttClient, MqttClient]:
    """Returns a client whose socket has taken only SUBACK and the first retained message, and another client."""
    publisher, client = await site.connected(client_id="p"), await site.connected()
    for topic in topics:
        await retain(publisher, topic, topic.encode() * 9_000)
    client.transport.unsent = 1
    assert await client.subscribe(*(FilterOptions(topic, qos) for topic in topics)) == suback(MQTT_311, *(qos for _ in topics))
    return client, publisher


def pending(client: MqttClient) -> module.RetainedPages:
    """Returns the retained messages that the server has not sent to a client yet."""
    session = client.connection._session
    assert session is not None
    pages = module.pages_of(session)
    assert pages is not None
    return pages


async def drained(site: MqttSite, client: MqttClient) -> bytes:
    """Returns the pages that the server sends after the socket has taken all output."""
    client.transport.unsent = 0
    pending(client)._turn()
    await turns(20)
    return client.take()


async def test_pages_wait_for_the_socket(site: MqttSite) -> None:
    client, _ = await slow_client(site, "a", "b", "c")
    assert client.take() == b""
    whole = b"".join(sent(topic, topic.encode() * 9_000) for topic in "abc")
    assert await drained(site, client) == whole
    assert client.connection._session.sender.pages is None  # type: ignore[union-attr]


async def test_live_messages_follow_their_retained_message(site: MqttSite) -> None:
    client, publisher = await slow_client(site, "a", "b")
    await client.subscribe("c")
    await publisher.publish("b", b"live")
    assert client.take() == b""
    await publisher.publish("c", b"other")
    assert client.take() == published("c", b"other")
    expected = sent("b", b"b" * 9_000) + sent("a", b"a" * 9_000) + published("b", b"live")
    assert await drained(site, client) == expected


async def test_message_retained_meanwhile_is_sent_once(site: MqttSite) -> None:
    client, publisher = await slow_client(site, "a")
    await retain(publisher, "a", b"new")
    assert await drained(site, client) == published("a", b"new")


async def test_message_removed_meanwhile_is_not_sent(site: MqttSite) -> None:
    client, publisher = await slow_client(site, "a", "b")
    await retain(publisher, "a", b"")
    assert await drained(site, client) == sent("b", b"b" * 9_000) + published("a", b"")


async def test_unsubscribing_ends_the_pages(site: MqttSite) -> None:
    client, publisher = await slow_client(site, "a", "b")
    await publisher.publish("a", b"live")
    await client.unsubscribe("a")
    assert await drained(site, client) == sent("b", b"b" * 9_000)
    await publisher.publish("b", b"live")
    assert client.take() == published("b", b"live")


async def test_end_of_the_connection_ends_the_pages(site: MqttSite) -> None:
    client, _ = await slow_client(site, "a", "b")
    pages = pending(client)
    client.lose()
    client.transport.unsent = 0
    pages._turn()
    await turns()
    assert client.take() == b""


async def test_client_that_reads_no_live_messages_is_disconnected(site: MqttSite) -> None:
    client, publisher = await slow_client(site, "a")
    for _ in range(150):
        await publisher.publish("a", b"x" * 9_000)
    assert client.is_closed()
    assert site.metrics.cut_offs["slow"] == 1


async def test_retained_messages_never_exceed_the_window() -> None:
    site = MqttSite(inflight=2, queue=1)
    publisher, client = await site.connected(client_id="p"), await site.connected()
    for number in range(5):
        await publisher.publish(f"t/{number}", b"1", retain=True, qos=1, packet_id=1)
    answer = await client.subscribe(*(FilterOptions(f"t/{number}", 1) for number in range(5)))
    template = [encode.publish(MQTT_311, f"t/{number}", b"1", 1, True) for number in range(5)]
    assert answer == suback(MQTT_311, *[1] * 5) + template[0].frame(1) + template[1].frame(2)
    client.take()
    assert await client.send(bytes.fromhex("4002 0001")) == template[2].frame(3)
    assert await client.send(bytes.fromhex("4002 0002 4002 0003")) == template[3].frame(4) + template[4].frame(5)
    assert site.clients.counts.queue_full == 0


# Filters with wildcards


async def test_retained_messages_that_are_too_large_do_not_stop_the_others(site: MqttSite) -> None:
    sender = await site.connected(client_id="sender", password=site.token("*"), username="x")
    await retain(sender, "a")
    for number in range(25):
        await retain(sender, f"b/{number:02}", b"x" * 100)
    await retain(sender, "b/99", b"small")
    client = await site.connected(MQTT_5, maximum_packet_size=64)
    data = await client.subscribe(FilterOptions("a"), FilterOptions("b/#", 1))
    await turns(20)
    assert b"small" in data + client.take()


async def test_filter_gets_the_retained_messages_that_match_in_order(site: MqttSite) -> None:
    publisher, client = await site.connected(client_id="p"), await site.connected()
    for topic in ("a/2", "b/1", "a/1", "a/2", "a/1/x"):
        await retain(publisher, topic, topic.encode())
    assert await client.subscribe("a/+") == suback() + sent("a/1", b"a/1") + sent("a/2", b"a/2")
    (lane,) = site.world.app.open_filters().lanes_of("a.+")
    assert isinstance(lane.wire, MqttWire)
    await publisher.publish("a/1", b"live")
    assert client.take() == published("a/1", b"live")
    assert client.connection._session is not None
    assert module.pages_of(client.connection._session) is None


async def test_filters_of_one_packet_get_one_copy(site: MqttSite) -> None:
    client = await site.connected(MQTT_5)
    await client.publish("a/b", b"1", retain=True, qos=2, packet_id=7)
    await client.send(bytes.fromhex("6202 0007"))
    answer = await client.subscribe(FilterOptions("a/#", 0), FilterOptions("+/b", 1), subscription_id=3)
    template = encode.publish(MQTT_5, "a/b", b"1", 1, True, subscription_ids=(3,))
    assert answer == suback(MQTT_5, 0, 1) + template.frame(1)


@pytest.mark.parametrize("filter", ["#", "+", "+/1", "private-a/#"])
async def test_filter_gets_only_messages_that_the_client_may_read(site: MqttSite, filter: str) -> None:
    publisher = await site.connected(client_id="p", password=site.token("*"), username="x")
    for topic in ("private-a/1", "presence-a/1", "protected-a/1", "private-a", "public/1", "$a/1"):
        await retain(publisher, topic)
    client = await site.connected()
    expected = {"#": ["public/1"], "+/1": ["public/1"]}.get(filter, [])
    assert await client.subscribe(filter) == suback() + b"".join(map(sent, expected))
    other = await site.connected(client_id="d", password=site.token("private-a.*"), username="x")
    private = {"#": ["private-a/1", "public/1"], "+/1": ["private-a/1", "public/1"], "private-a/#": ["private-a/1"]}
    assert await other.subscribe(filter) == suback() + b"".join(map(sent, private.get(filter, [])))


async def test_live_messages_wait_until_all_channels_are_compared(site: MqttSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MATCHED_A_TURN", 1)
    publisher, client = await site.connected(client_id="p"), await site.connected()
    for number in range(12):
        await retain(publisher, f"a/{number}")
    client.connection.data_received(packets.subscribe(SubscribePacket(1, (FilterOptions("a/#"),)), MQTT_311))
    await turns(2)
    await publisher.publish("a/11", b"live")
    await turns(20)
    kept = [sent(f"a/{number}") for number in range(12)]
    assert client.take() == suback() + b"".join(kept) + published("a/11", b"live")


async def test_unsubscribing_a_filter_ends_its_pages(site: MqttSite) -> None:
    publisher, client = await site.connected(client_id="p"), await site.connected()
    for topic in ("a/1", "a/2", "b"):
        await retain(publisher, topic)
    client.transport.unsent = 1
    await client.subscribe("a/+", "b")
    await client.unsubscribe("a/+")
    assert await drained(site, client) == sent("b")


async def test_repeated_filter_with_retain_handling_1_gets_nothing(site: MqttSite) -> None:
    client = await site.connected(MQTT_5)
    await retain(client, "a/1")
    options = FilterOptions("a/+", retain_handling=1)
    assert await client.subscribe(options) == suback(MQTT_5) + sent("a/1", version=MQTT_5)
    site.clock.advance(2)
    assert await client.subscribe(options) == suback(MQTT_5)


# A shared broker


@pytest.fixture
def shared(site: MqttSite, monkeypatch: pytest.MonkeyPatch) -> MqttSite:
    """A worker whose broker counts as shared, and which accepts wildcards."""
    monkeypatch.setattr(type(site.world.node.controller), "shared", True)
    monkeypatch.setattr(subscribing, "_check_filter", lambda *_: None)
    return site


async def test_live_messages_wait_until_a_shared_broker_has_answered(shared: MqttSite, monkeypatch: pytest.MonkeyPatch) -> None:
    client, other = await shared.connected(), await shared.connected(client_id="d")
    await retain(client, "t/a", b"1")
    node, answers = shared.world.node, asyncio.Event()
    names = node.retained.names

    async def slow(app: str) -> Any:
        found = await names(app)
        await answers.wait()
        return found

    monkeypatch.setattr(type(node.retained), "names", lambda _, app: slow(app))
    assert await client.subscribe("t/#") == b""
    await other.publish("t/a", b"2")
    assert client.take() == b""
    answers.set()
    await turns()
    assert client.take() == suback() + sent("t/a", b"1") + published("t/a", b"2")


async def test_live_messages_keep_their_order_until_suback(shared: MqttSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session is stored in the broker before SUBACK; meanwhile later messages must not overtake those that were held."""
    client, other = await shared.connected(), await shared.connected(client_id="d")
    names, stored = asyncio.Event(), asyncio.Event()

    async def slow_names(_: object, app: str) -> list[str]:
        await names.wait()
        return []

    async def slow_store(_: object) -> bool:
        return await stored.wait()

    monkeypatch.setattr(type(shared.world.node.retained), "names", slow_names)
    monkeypatch.setattr(subscribing, "_store", slow_store)
    await client.subscribe("t/#")
    await other.publish("t/a", b"1")
    names.set()
    await turns()
    await other.publish("t/a", b"2")
    stored.set()
    await turns()
    assert client.take() == published("t/a", b"1") + published("t/a", b"2") + suback()


async def test_subscription_without_retained_messages_is_answered_and_uses_shared_frames(shared: MqttSite) -> None:
    client = await shared.connected()
    assert await client.subscribe("a") == suback()
    assert await client.publish("a", b"1") == published("a", b"1")
    (lane,) = shared.world.app.tenant.channels["a"].lanes
    assert isinstance(lane.wire, MqttWire)


async def test_late_copy_of_a_retained_message_is_dropped(shared: MqttSite) -> None:
    client = await shared.connected()
    await retain(client, "t/a", b"1")
    message = await kept(shared, "t.a")
    assert message is not None
    assert await client.subscribe("t/#") == suback() + sent("t/a", b"1")
    shared.world.node.receive(message)
    await turns()
    assert client.take() == b""
    assert await client.publish("t/a", b"2") == published("t/a", b"2")


async def late_copies(site: MqttSite, client: MqttClient) -> bytes:
    """Delivers late copies of the retained message of `t/a`, "2", and of two earlier messages of the same worker.

    Returns what the client receives.
    """
    message = await kept(site, "t.a")
    assert message is not None
    assert message.data == b"2"
    for data, before in ((b"0", 2048), (b"1", 1024), (b"2", 0)):
        site.world.node.receive(msgspec.structs.replace(message, id=message.id - before, data=data))
    await turns()
    return client.take()


async def test_late_copies_of_messages_before_the_subscription_are_dropped(shared: MqttSite) -> None:
    client = await shared.connected()
    await retain(client, "t/a", b"2")
    assert await client.subscribe("t/#") == suback() + sent("t/a", b"2")
    assert await late_copies(shared, client) == b""
    assert await client.publish("t/a", b"3") == published("t/a", b"3")


async def test_late_earlier_messages_are_followed_by_the_retained_one_if_another_filter_matches(shared: MqttSite) -> None:
    client = await shared.connected()
    await client.subscribe("+/a")
    await retain(client, "t/a", b"2")
    client.take()
    assert await client.subscribe("t/#") == suback() + sent("t/a", b"2")
    assert await late_copies(shared, client) == published("t/a", b"0") + published("t/a", b"1") + published("t/a", b"2")


async def test_late_earlier_messages_are_followed_by_the_retained_one_if_it_was_read_after_suback(
    shared: MqttSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await shared.connected()
    for channel in ("t/0", "t/a"):
        await retain(client, channel, b"2")
    monkeypatch.setattr(module, "MAX_PAGE_CHANNELS", 1)
    assert await client.subscribe("t/#") == suback() + sent("t/0", b"2") + sent("t/a", b"2")
    assert await late_copies(shared, client) == published("t/a", b"0") + published("t/a", b"1") + published("t/a", b"2")


async def test_late_earlier_message_of_another_worker_is_followed_by_the_retained_one(shared: MqttSite) -> None:
    client = await shared.connected()
    await retain(client, "t/a", b"2")
    message = await kept(shared, "t.a")
    assert message is not None
    assert await client.subscribe("t/#") == suback() + sent("t/a", b"2")
    for one in (msgspec.structs.replace(message, id=message.id - 1023, data=b"1"), message):
        shared.world.node.receive(one)
    await turns()
    assert client.take() == published("t/a", b"1") + published("t/a", b"2")


@pytest.mark.parametrize("had_filter", [False, True])
async def test_late_copy_that_arrives_before_the_page_is_not_the_last_value(
    shared: MqttSite, monkeypatch: pytest.MonkeyPatch, had_filter: bool
) -> None:
    client = await shared.connected()
    if had_filter:
        await client.subscribe("+/a")
    await retain(client, "t/a", b"2")
    client.take()
    message = await kept(shared, "t.a")
    assert message is not None
    node, read = shared.world.node, shared.world.node.retained.read

    async def slow(*asked: Any) -> Any:
        found = await read(*asked)
        node.receive(msgspec.structs.replace(message, id=message.id - 1024, data=b"1"))
        return found

    monkeypatch.setattr(type(node.retained), "read", lambda _, *asked: slow(*asked))
    data = await client.subscribe("t/#")
    node.receive(message)
    await turns()
    data += client.take()
    earlier = published("t/a", b"1") + published("t/a", b"2") if had_filter else b""
    assert data == suback() + sent("t/a", b"2") + earlier


async def test_late_copies_are_dropped_after_an_unsubscribe_from_another_filter(shared: MqttSite) -> None:
    client = await shared.connected()
    await client.subscribe("other")
    await retain(client, "t/a", b"2")
    assert await client.subscribe("t/#") == suback() + sent("t/a", b"2")
    await client.unsubscribe("other")
    client.take()
    assert await late_copies(shared, client) == b""


async def group_members(shared: MqttSite) -> tuple[MqttClient, MqttClient, MqttClient]:
    """Returns two members of a group, of which the first one gets all messages, and a publisher."""
    one, other, publisher = [await shared.connected(client_id=name) for name in ("one", "other", "publisher")]
    await one.subscribe(FilterOptions("$share/g/t/#", 1))
    return one, other, publisher


async def test_group_message_is_no_late_copy(shared: MqttSite) -> None:
    """A member gets a message that another member has not acknowledged, after a later retained one of the same channel."""
    one, other, publisher = await group_members(shared)
    await publisher.publish("t/a", b"1", qos=1, packet_id=1)
    await other.subscribe(FilterOptions("$share/g/t/#", 1))
    await retain(publisher, "t/a", b"2")
    other.take()
    await other.subscribe("t/#")
    one.lose()
    await turns()
    assert b"t/a" in other.take()


async def test_group_copy_of_the_retained_message_is_no_late_copy(shared: MqttSite) -> None:
    one, other, publisher = await group_members(shared)
    await publisher.publish("t/a", b"1", qos=1, packet_id=1, retain=True)
    await other.subscribe(FilterOptions("$share/g/t/#", 1))
    other.take()
    assert await other.subscribe("t/#") == suback() + sent("t/a", b"1")
    one.lose()
    await turns()
    assert b"t/a" in other.take()


async def test_retained_message_is_sent_beside_its_group_copy(shared: MqttSite, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other, publisher = await group_members(shared)
    await publisher.publish("t/a", b"1", qos=1, packet_id=1, retain=True)
    await other.subscribe(FilterOptions("$share/g/t/#", 1))
    other.take()
    names, answers = shared.world.node.retained.names, asyncio.Event()

    async def slow(app: str) -> Any:
        found = await names(app)
        await answers.wait()
        return found

    monkeypatch.setattr(type(shared.world.node.retained), "names", lambda _, app: slow(app))
    await other.subscribe("t/#")
    one.lose()
    await turns()
    answers.set()
    await turns()
    assert other.take().count(b"t/a") == 2


async def test_first_page_is_read_again_if_the_broker_is_away_before_suback(
    shared: MqttSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await shared.connected()
    await retain(client, "t/a", b"1")

    async def away(*_: object) -> Any:
        raise Refused(503, "the broker is away")

    monkeypatch.setattr(module, "MAX_POLL_SECONDS", 0)
    with monkeypatch.context() as patched:
        patched.setattr(type(shared.world.node.retained), "read", away)
        assert await client.subscribe("t/#") == suback()
    await turns()
    assert client.take() == sent("t/a", b"1")


async def test_live_copy_of_a_missed_message_is_dropped_before_retained_messages_are_sent(
    shared: MqttSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, other = await shared.connected(MQTT_5, session_expiry=60), await shared.connected(client_id="d")
    await retain(other, "t/a", b"0")
    node = shared.world.node
    assert node.sessions is not None
    logs, read = node.sessions.logs, node.sessions.logs.read
    with monkeypatch.context() as patched:
        patched.setattr(type(node.retained), "read", lambda *_: asyncio.Event().wait())
        await client.subscribe(FilterOptions("t/a", 1))
        client.lose()
        await turns()
    await other.publish("t/a", b"1", qos=1, packet_id=1)

    async def with_live_copies(*args: Any) -> Any:
        page = await read(*args)
        for message in page.messages:
            node.receive(message)
        return page

    monkeypatch.setattr(type(logs), "read", lambda _, *args: with_live_copies(*args))
    client = shared.client(MQTT_5)
    data = await client.connect(clean=False, session_expiry=60)
    await turns(20)
    assert (data + client.take()).count(b"t/a") == 2


async def test_copies_are_late_for_a_bounded_time(shared: MqttSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LATE_SECONDS", 0)
    client = await shared.connected()
    await retain(client, "t/a", b"1")
    message = await kept(shared, "t.a")
    assert message is not None
    await client.subscribe("t/#")
    await turns()
    shared.world.node.receive(message)
    await turns()
    assert client.take() == published("t/a", b"1")


async def test_subscription_is_rejected_and_ends_if_the_names_cannot_be_read(
    shared: MqttSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await shared.connected()
    await retain(client, "t/a")

    async def away(*_: object) -> Any:
        raise Refused(503, "the broker is away")

    monkeypatch.setattr(type(shared.world.node.retained), "names", away)
    assert await client.subscribe("t/#") == suback(MQTT_311, 0x80)
    assert await client.publish("t/a", b"2") == b""
    assert not shared.world.app.filters
