"""Messages with QoS 1 and 2 between MQTT clients, in both directions."""

import asyncio

import pytest

from push1st.brokers.sessions import Claim, Owner, SavedSession, SavedSubscription
from push1st.config.model import Authorize
from push1st.errors import Refused
from push1st.protocols.mqtt import encode
from push1st.protocols.mqtt.packets import MQTT_5, MQTT_311, FilterOptions
from tests.support.loop import turns
from tests.support.mqtt_packets import publishes
from tests.support.mqtt_site import MqttClient, MqttSite, published
from tests.support.node import APP, app_config

VERSIONS = pytest.mark.parametrize("version", [MQTT_311, MQTT_5])


@pytest.fixture
def site() -> MqttSite:
    return MqttSite()


def puback(*packet_ids: int) -> bytes:
    return encode.acknowledgements(encode.PUBACK, packet_ids)


def pubrec(*packet_ids: int) -> bytes:
    return encode.acknowledgements(encode.PUBREC, packet_ids)


def pubrel(*packet_ids: int) -> bytes:
    return encode.acknowledgements(encode.PUBREL, packet_ids)


def pubcomp(*packet_ids: int) -> bytes:
    return encode.acknowledgements(encode.PUBCOMP, packet_ids)


async def subscriber(site: MqttSite, version: int = MQTT_5, qos: int = 1, **fields: object) -> MqttClient:
    """Returns a client that is subscribed to the topic `a`."""
    client = await site.connected(version, "subscriber", **fields)
    assert (await client.subscribe(FilterOptions("a", qos)))[-1] == qos
    return client


# Messages to the client


@VERSIONS
@pytest.mark.parametrize("granted", [0, 1, 2])
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_message_has_the_lower_qos(site: MqttSite, version: int, granted: int, qos: int) -> None:
    receiver, sender = await subscriber(site, version, granted), await site.connected(version, "sender")
    await sender.publish("a", qos=qos, packet_id=9 if qos else 0)
    lower = min(qos, granted)
    assert receiver.take() == published("a", b"x", version, qos=lower, packet_id=1 if lower else 0)


@VERSIONS
async def test_packet_ids_count_up_and_the_window_is_obeyed(version: int) -> None:
    site = MqttSite(inflight=2)
    receiver, sender = await subscriber(site, version), await site.connected(version, "sender")
    for number in b"abcd":
        await sender.publish("a", bytes((number,)), qos=1, packet_id=1)
    first = [published("a", bytes((ord("a") + at,)), version, qos=1, packet_id=at + 1) for at in range(4)]
    assert receiver.take() == first[0] + first[1]
    assert await receiver.send(puback(1)) == first[2]
    assert await receiver.send(puback(3) + puback(2)) == first[3]
    assert await receiver.send(puback(4)) == b""


async def test_receive_maximum_of_the_client_is_obeyed(site: MqttSite) -> None:
    receiver, sender = await subscriber(site, receive_maximum=1), await site.connected(MQTT_5, "sender")
    for _ in range(2):
        await sender.publish("a", qos=1, packet_id=1)
    await sender.publish("a", b"zero")
    assert receiver.take() == published("a", b"x", MQTT_5, qos=1, packet_id=1) + published("a", b"zero", MQTT_5)
    assert await receiver.send(puback(1)) == published("a", b"x", MQTT_5, qos=1, packet_id=2)


async def test_full_window_delays_no_other_packets(site: MqttSite) -> None:
    client = await subscriber(site, receive_maximum=1)
    for number in (1, 2):
        await client.publish("a", qos=1, packet_id=number)
    assert await client.send(b"\xc0\0") == b"\xd0\0"
    assert await client.subscribe(FilterOptions("b", 1)) == bytes.fromhex("90 04 00 01 00 01")
    assert await client.publish("b", b"zero") == published("b", b"zero", MQTT_5)
    assert await client.publish("c", qos=2, packet_id=3) == pubrec(3)
    assert await client.send(pubrel(3) + pubrec(9)) == pubcomp(3) + pubrel(9)
    assert await client.unsubscribe("b") == bytes.fromhex("b0 04 00 02 00 00")
    assert await client.send(puback(1)) == published("a", b"x", MQTT_5, qos=1, packet_id=2)


async def test_new_options_of_a_subscription_lose_no_message() -> None:
    site = MqttSite(inflight=1)
    receiver, sender = await subscriber(site, MQTT_311), await site.connected(MQTT_311, "sender")
    received = b""
    for number in range(6):
        await sender.publish("a", b"%d" % number, qos=1, packet_id=1)
        sender.connection.data_received(published("a", b"%d+" % number, qos=1, packet_id=1))
        received += await receiver.subscribe(FilterOptions("a", 2 - number % 2))
    for number in range(1, 13):
        received += await receiver.send(puback(number))
    found = [payload for first, _, _, payload in publishes(received) if first == 0x32]
    assert found == [b"%d%s" % (number, end) for number in range(6) for end in (b"", b"+")]


@VERSIONS
async def test_message_with_qos_2_is_released(site: MqttSite, version: int) -> None:
    receiver, sender = await subscriber(site, version, 2), await site.connected(version, "sender")
    await sender.publish("a", qos=2, packet_id=1)
    assert receiver.take() == published("a", b"x", version, qos=2, packet_id=1)
    assert await receiver.send(pubrec(1)) == pubrel(1)
    assert await receiver.send(pubrec(1)) == pubrel(1)
    assert await receiver.send(pubcomp(1)) == b""


async def test_pubrec_with_an_error_ends_the_message() -> None:
    site = MqttSite(inflight=1)
    receiver, sender = await subscriber(site, qos=2), await site.connected(MQTT_311, "sender")
    for packet_id in (1, 2):
        await sender.publish("a", qos=2, packet_id=packet_id)
    receiver.take()
    assert await receiver.send(bytes.fromhex("50 03 00 01 80")) == published("a", b"x", MQTT_5, qos=2, packet_id=2)


@VERSIONS
async def test_unknown_acknowledgements_are_ignored(site: MqttSite, version: int) -> None:
    client = await site.connected(version)
    assert await client.send(puback(7) + pubcomp(7)) == b""
    assert await client.send(pubrec(7)) == pubrel(7)
    assert await client.send(pubrel(7)) == pubcomp(7)
    assert not client.is_closed()


@pytest.mark.parametrize(("qos", "wrong"), [(1, pubrec(1)), (2, puback(1)), (2, pubcomp(1)), (1, pubcomp(1))])
async def test_wrong_acknowledgement_ends_the_connection(site: MqttSite, qos: int, wrong: bytes) -> None:
    receiver, sender = await subscriber(site, qos=qos), await site.connected(MQTT_5, "sender")
    await sender.publish("a", qos=qos, packet_id=1)
    receiver.take()
    assert await receiver.send(wrong) == bytes.fromhex("e0 01 82")
    assert receiver.is_closed()


async def test_event_of_the_api_has_qos_1_and_a_client_event_has_qos_0(site: MqttSite) -> None:
    receiver = await subscriber(site, MQTT_311, 2)
    site.world.publish("a", b'"x"')
    assert await receiver.send(b"") == published("a", b"x", qos=1, packet_id=1)
    site.world.publish("a", b'"x"', sender="1.2")
    assert await receiver.send(b"") == published("a", b"x")


async def test_new_options_of_a_subscription_hold_for_later_messages(site: MqttSite) -> None:
    client = await subscriber(site, MQTT_311, 1)
    assert await client.subscribe(FilterOptions("a", 2)) == bytes.fromhex("90 03 00 01 02")
    site.world.publish("a", b'"x"')
    assert await client.send(b"\xc0\0") == published("a", b"x", qos=1, packet_id=1) + b"\xd0\0"
    assert await client.subscribe(FilterOptions("a", 0)) == bytes.fromhex("90 03 00 01 00")
    site.world.publish("a", b'"x"')
    assert await client.send(b"\xc0\0") == published("a", b"x") + b"\xd0\0"


# Messages of the client


@VERSIONS
async def test_own_copy_arrives_before_puback_and_after_pubrec(site: MqttSite, version: int) -> None:
    client = await subscriber(site, version, 2)
    copy = published("a", b"x", version, qos=1, packet_id=1)
    assert await client.publish("a", qos=1, packet_id=5) == copy + puback(5)
    copy = published("a", b"x", version, qos=2, packet_id=2)
    assert await client.publish("a", qos=2, packet_id=6) == pubrec(6) + copy
    assert await client.send(pubrel(6)) == pubcomp(6)


async def test_message_without_subscribers_has_its_own_reason_code(site: MqttSite) -> None:
    client = await site.connected(MQTT_5)
    assert await client.publish("a", qos=1, packet_id=1) == bytes.fromhex("40 03 00 01 10")
    assert await client.publish("a", qos=2, packet_id=2) == pubrec(2)
    old = await site.connected(MQTT_311, "old")
    assert await old.publish("a", qos=1, packet_id=1) == puback(1)


@VERSIONS
async def test_repeated_message_with_qos_2_is_published_once(site: MqttSite, version: int) -> None:
    receiver, sender = await subscriber(site, version, 0), await site.connected(version, "sender")
    for dup in (False, True, True):
        assert await sender.publish("a", qos=2, packet_id=1, dup=dup) == pubrec(1)
    assert receiver.take() == published("a", b"x", version)
    assert await sender.send(pubrel(1)) == pubcomp(1)
    assert await sender.publish("a", qos=2, packet_id=1) == pubrec(1)
    assert receiver.take() == published("a", b"x", version)


async def test_message_that_is_repeated_without_dup_ends_the_connection(site: MqttSite) -> None:
    client = await site.connected(MQTT_5)
    for _ in range(2):
        assert await client.publish("a", qos=2, packet_id=1) == pubrec(1)
    assert await client.publish("a", qos=2, packet_id=1) == bytes.fromhex("e0 01 82")


async def test_repeated_message_with_qos_1_is_published_again(site: MqttSite) -> None:
    receiver, sender = await subscriber(site, MQTT_311, 0), await site.connected(MQTT_311, "sender")
    for dup in (False, True):
        await sender.publish("a", qos=1, packet_id=1, dup=dup)
    assert receiver.take() == 2 * published("a", b"x")


async def test_dup_of_a_message_is_not_passed_on(site: MqttSite) -> None:
    receiver, sender = await subscriber(site, MQTT_5, 2), await site.connected(MQTT_5, "sender")
    for qos in (1, 2):
        await sender.publish("a", qos=qos, packet_id=qos, dup=True)
        assert receiver.take() == published("a", b"x", MQTT_5, qos=qos, packet_id=qos)


async def test_message_with_qos_2_is_completed_after_its_expiry(site: MqttSite) -> None:
    receiver, sender = await subscriber(site, qos=2), await site.connected(MQTT_5, "sender")
    assert await sender.publish("a", qos=2, packet_id=7, expiry=1) == pubrec(7)
    assert receiver.take() == published("a", b"x", MQTT_5, qos=2, packet_id=1, expiry=1)
    site.clock.advance(5)
    assert await sender.publish("a", qos=2, packet_id=7, expiry=1, dup=True) == pubrec(7)
    assert await sender.send(pubrel(7)) == pubcomp(7)
    assert await receiver.send(pubrec(1)) == pubrel(1)
    assert await receiver.send(pubcomp(1)) == b""


async def test_rejected_messages_are_acknowledged() -> None:
    site = MqttSite(app_config({"payload": 3}))
    new, old = await site.connected(MQTT_5, "new"), await site.connected(MQTT_311, "old")
    for topic, payload, reason in (("private-a", b"x", 0x87), ("a", b"long", 0x97), ("$SYS/a", b"x", 0x87)):
        assert await new.publish(topic, payload, qos=1, packet_id=1) == bytes((0x40, 3, 0, 1, reason))
        assert await new.publish(topic, payload, qos=2, packet_id=2) == bytes((0x50, 3, 0, 2, reason))
        assert await old.publish(topic, payload, qos=1, packet_id=1) == puback(1)
        assert await old.publish(topic, payload, qos=2, packet_id=2) == pubrec(2)
        assert await old.send(pubrel(2)) == pubcomp(2)
    assert await new.publish("a", b"x", qos=1, packet_id=3, properties=b"") == bytes.fromhex("40 03 00 03 10")


async def test_client_that_exceeds_the_receive_maximum_is_disconnected() -> None:
    site = MqttSite(inflight=2)
    client = await site.connected(MQTT_5)
    assert await client.publish("a", qos=2, packet_id=1) + await client.publish("a", qos=2, packet_id=2) == pubrec(1, 2)
    assert await client.publish("a", qos=2, packet_id=3) == bytes.fromhex("e0 01 93")


async def test_older_client_has_no_receive_maximum() -> None:
    site = MqttSite(inflight=2)
    client = await site.connected(MQTT_311)
    packets = [published("a", b"x", MQTT_311, qos=1 + number % 2, packet_id=number) for number in range(1, 12)]
    assert len(await client.send(b"".join(packets))) == 4 * 11
    assert not client.is_closed()


# Messages that wait


@VERSIONS
async def test_messages_wait_for_the_broker_together_and_are_acknowledged_in_order(version: int) -> None:
    site = MqttSite(slow=True, inflight=3)
    client, broker = await site.connected(version), site.world.broker
    broker.held.add("publish")
    packets = [published("a", b"x", version, qos=2, packet_id=number) for number in (1, 2, 3)]
    assert await client.send(b"".join(packets)) == b""
    assert broker.waiting == 3 * ["publish"]
    await broker.let_newest()
    assert client.take() == b""
    await broker.let_all()
    assert client.take() == pubrec(1, 2, 3)


@pytest.mark.parametrize(("version", "qos"), [(MQTT_311, 0), (MQTT_311, 1), (MQTT_5, 0)])
async def test_connection_reads_no_more_than_a_window_while_the_broker_is_slow(version: int, qos: int) -> None:
    site = MqttSite(slow=True, inflight=2)
    client, broker = await site.connected(version), site.world.broker
    broker.held.add("publish")
    packets = [published("a", b"x", version, qos=qos, packet_id=qos and number) for number in (1, 2, 3)]
    assert await client.send(b"".join(packets)) == b""
    assert (len(broker.waiting), client.is_held()) == (2, True)
    await broker.let("publish")
    assert (len(broker.waiting), client.is_held()) == (2, True)
    await broker.let_all()
    assert not client.is_held()
    assert client.take() == (puback(1, 2, 3) if qos else b"")


async def test_client_of_mqtt_5_obeys_its_window_while_the_broker_is_slow() -> None:
    site = MqttSite(slow=True, inflight=2)
    client = await site.connected(MQTT_5)
    site.world.broker.held.add("publish")
    packets = [published("a", b"x", MQTT_5, qos=1, packet_id=number) for number in (1, 2, 3)]
    assert await client.send(b"".join(packets)) == bytes.fromhex("e0 01 93")


async def test_connection_reads_nothing_while_the_backend_decides() -> None:
    authorize = Authorize(url="http://127.0.0.1/", on=frozenset({"publish"}), filter=("a",))
    site = MqttSite(app_config(authorize=(authorize,)))
    site.world.hooks.waits = waits = asyncio.get_running_loop().create_future()
    client = await site.connected(MQTT_5)
    packets = [published(topic, b"x", MQTT_5, qos=1, packet_id=number) for number, topic in ((1, "a"), (2, "b"))]
    assert await client.send(b"".join(packets)) == b""
    assert client.is_held()
    waits.set_result(None)
    await turns()
    assert client.take() == bytes.fromhex("40 03 00 01 10 40 03 00 02 10")
    assert not client.is_held()


@VERSIONS
async def test_message_is_not_acknowledged_while_the_broker_is_away(version: int) -> None:
    site = MqttSite(slow=True)
    client = await site.connected(version)
    site.world.broker.fail["publish"] = Refused(503, "away")
    answer = await client.publish("a", qos=1, packet_id=1)
    assert answer == (bytes.fromhex("e0 01 89") if version == MQTT_5 else b"")
    assert client.is_closed()


async def test_messages_of_a_lost_connection_are_published() -> None:
    site = MqttSite(slow=True, inflight=2)
    receiver, sender = await subscriber(site, MQTT_311, 0), await site.connected(MQTT_311, "sender")
    site.world.broker.held.add("publish")
    await sender.send(b"".join(published("a", b"x", qos=1, packet_id=number) for number in (1, 2, 3)))
    sender.lose()
    await site.world.broker.let_all()
    assert receiver.take() == 3 * published("a", b"x")


async def test_lost_client_gets_no_copies_of_its_last_messages() -> None:
    site = MqttSite(slow=True, inflight=2)
    client = await subscriber(site, MQTT_311, 1)
    site.world.broker.held.add("publish")
    await client.send(b"".join(published("a", b"x", qos=1, packet_id=number) for number in (1, 2, 3)))
    client.lose()
    await site.world.broker.let_all()
    assert (client.take(), site.world.failures) == (b"", [])
    assert site.world.broker.calls.count(("publish", "a")) == 3


async def test_messages_before_a_violation_are_acknowledged(site: MqttSite) -> None:
    client = await subscriber(site, MQTT_5, 1)
    sent = published("a", b"x", MQTT_5, qos=1, packet_id=1)
    assert await client.send(sent + bytes.fromhex("c1 00")) == sent + puback(1) + bytes.fromhex("e0 01 81")


async def test_messages_before_disconnect_are_acknowledged(site: MqttSite) -> None:
    client = await subscriber(site, MQTT_311, 1)
    sent = published("a", b"x", qos=1, packet_id=1)
    assert await client.send(sent + bytes.fromhex("e0 00")) == sent + puback(1)


async def test_acknowledgements_without_effect_are_charged(site: MqttSite) -> None:
    for packet in (puback(7), pubrec(7), pubrel(7), pubcomp(7)):
        client = await subscriber(site, MQTT_5)
        for _ in range(7000):
            client.connection.data_received(packet)
            client.connection._context.turn.catch_up()
        await turns()
        assert client.is_closed(), packet.hex()


# Options of MQTT 5.0


async def test_own_messages_are_left_out_with_no_local(site: MqttSite) -> None:
    one, two = await site.connected(MQTT_5, "one"), await site.connected(MQTT_5, "two")
    for client in (one, two):
        await client.subscribe(FilterOptions("a", 1, no_local=True))
    assert await one.publish("a", qos=1, packet_id=1) == puback(1)
    assert two.take() == published("a", b"x", MQTT_5, qos=1, packet_id=1)


@pytest.mark.parametrize("client_id", ["c", "c" * 256])
@pytest.mark.parametrize("filters", [("a",), ("a", "+")])
async def test_messages_of_an_earlier_connection_are_left_out_with_no_local(client_id: str, filters: tuple[str, ...]) -> None:
    site = MqttSite(slow=True)
    earlier, broker = await site.connected(MQTT_5, client_id), site.world.broker
    broker.held.add("publish")
    await earlier.publish("a", qos=1, packet_id=1)
    later, other = await site.connected(MQTT_5, client_id), await site.connected(MQTT_5, "c.1")
    for client in (later, other):
        await client.subscribe(*(FilterOptions(filter, 1, no_local=True) for filter in filters))
        client.take()
    await broker.let_all()
    assert (later.take(), other.take()) == (b"", published("a", b"x", MQTT_5, qos=1, packet_id=1))


async def test_retain_and_the_subscription_identifier_are_sent(site: MqttSite) -> None:
    client = await site.connected(MQTT_5)
    await client.subscribe(FilterOptions("a", 1, retain_as_published=True), subscription_id=7)
    copy = bytes.fromhex("33 09 00 01 61 00 01 02 0b 07 78")
    assert await client.publish("a", qos=1, packet_id=1, retain=True) == copy + puback(1)


async def test_remaining_expiry_is_sent() -> None:
    site = MqttSite(inflight=1)
    receiver, sender = await subscriber(site), await site.connected(MQTT_5, "sender")
    for expiry in (10, 10, 1, 20):
        await sender.publish("a", qos=1, packet_id=1, expiry=expiry)
    assert receiver.take() == published("a", b"x", MQTT_5, qos=1, packet_id=1, expiry=10)
    site.clock.advance(3.5)
    assert await receiver.send(puback(1)) == published("a", b"x", MQTT_5, qos=1, packet_id=2, expiry=7)
    assert await receiver.send(puback(2)) == published("a", b"x", MQTT_5, qos=1, packet_id=3, expiry=17)


async def test_topics_get_aliases(site: MqttSite) -> None:
    client = await site.connected(MQTT_5, topic_alias_maximum=1)
    await client.subscribe("a", FilterOptions("b", 1))
    assert await client.publish("a") == bytes.fromhex("30 08 00 01 61 03 23 00 01 78")
    assert await client.publish("a") == bytes.fromhex("30 07 00 00 03 23 00 01 78")
    assert await client.publish("b") == published("b", b"x", MQTT_5)
    assert await client.publish("b", qos=1, packet_id=1) == published("b", b"x", MQTT_5, qos=1, packet_id=1) + puback(1)


async def test_packets_above_the_maximum_size_are_left_out(site: MqttSite) -> None:
    for aliases in (0, 1):
        client = await site.connected(MQTT_5, "c", maximum_packet_size=32, topic_alias_maximum=aliases)
        await client.subscribe(FilterOptions("a", 1), FilterOptions("long", 1))
        assert await client.publish("long", 30 * b"x", qos=1, packet_id=1) == puback(1)
        assert await client.publish("a", 22 * b"x", qos=1, packet_id=1) == (
            published("a", 22 * b"x", MQTT_5, qos=1, packet_id=1 + aliases) + puback(1)
        )


async def test_excluded_client_gets_nothing(site: MqttSite) -> None:
    receiver = await subscriber(site)
    assert receiver.connection._session is not None
    site.world.publish("a", b'"x"', exclude=receiver.connection._session.client.id)
    assert await receiver.send(b"\xc0\0") == b"\xd0\0"


# Memory


async def test_flow_state_is_created_when_it_is_needed(site: MqttSite) -> None:
    client = await subscriber(site, MQTT_5, 0)
    await client.publish("a")
    assert client.connection._session is not None
    assert (client.connection._session.sender, client.connection._session.receiver) == (None, None)


async def test_puback_shows_that_an_absent_client_keeps_the_message(site: MqttSite) -> None:
    sender, sessions = await site.connected(MQTT_5, "sender"), site.world.node.sessions
    assert sessions is not None
    assert await sender.publish("a", qos=1, packet_id=1) == bytes.fromhex("40 03 0001 10")
    claimed = await sessions.claim(APP, "absent", Claim(Owner("anonymous"), expiry=60))
    await sessions.save(APP, "absent", claimed.generation, SavedSession(60, (SavedSubscription("a", 1),)))
    assert await sender.publish("a", qos=1, packet_id=2) == puback(2)


async def test_session_is_saved_when_the_broker_has_confirmed_messages_with_qos_2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the client's next worker would publish the repetition of such a message."""
    site = MqttSite(slow=True)
    broker, sessions = site.world.broker, site.world.node.sessions
    monkeypatch.setattr(type(sessions), "shared", True, raising=False)
    client = await site.connected(MQTT_5, session_expiry=100)
    broker.held.add("publish")
    await client.publish("a", qos=2, packet_id=1)
    client.lose()
    await turns()
    assert sessions is not None
    assert len(sessions) == 0
    await broker.let_all()
    await turns()
    assert len(sessions) == 1
    again = await site.connected(MQTT_5, clean=False, session_expiry=100)
    assert await again.publish("a", qos=2, packet_id=1, dup=True) == bytes.fromhex("50 02 00 01")
    assert [name for name, _ in broker.calls].count("publish") == 1
