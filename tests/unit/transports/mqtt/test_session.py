"""The effects of the packets of an MQTT client: subscriptions, messages, rights, limits."""

import asyncio
from collections.abc import Iterable

import msgspec
import pytest
import structlog

from push1st.config.model import Authorize
from push1st.errors import Refused
from push1st.filters import matches
from push1st.hooks import Decision
from push1st.messages import Member, Options, Subscribe
from push1st.protocols.mqtt import encode
from push1st.protocols.mqtt.packets import MQTT_5, MQTT_311, FilterOptions, Will
from push1st.transports.mqtt import subscribing
from tests.support.loop import turns
from tests.support.mqtt_site import MqttClient, MqttSite, published
from tests.support.node import PUSHER, RAW, app_config


@pytest.fixture
def site() -> MqttSite:
    return MqttSite()


def suback(*codes: int) -> bytes:
    return bytes((0x90, 2 + len(codes), 0, 1, *codes))


def suback_5(*codes: int) -> bytes:
    return bytes((0x90, 3 + len(codes), 0, 1, 0, *codes))


def decided(*on: str, **more: object) -> Authorize:
    return Authorize(url="http://127.0.0.1/", on=frozenset(on), **more)  # type: ignore[arg-type]


# Messages


async def test_message_reaches_both_versions_and_its_publisher(site: MqttSite) -> None:
    old, new = await site.connected(MQTT_311, "old"), await site.connected(MQTT_5, "new")
    assert await old.subscribe("a/b") == suback(0)
    assert await new.subscribe("a/b") == suback_5(0)
    assert await old.publish("a/b", b"\xff\0") == published("a/b", b"\xff\0")
    assert new.take() == published("a/b", b"\xff\0", MQTT_5)
    assert site.metrics.events_in == {"mqtt": 1}


async def test_empty_message_is_delivered(site: MqttSite) -> None:
    client = await site.connected()
    await client.subscribe("a")
    assert await client.publish("a", b"") == published("a", b"")


async def test_properties_and_expiry_are_passed_on(site: MqttSite) -> None:
    client = await site.connected(MQTT_5)
    await client.subscribe("a")
    given = b"\x01\1" + b"\x03" + encode.string("text/plain") + encode.user_property("k", "v")
    answer = await client.publish("a", b"x", properties=given, expiry=30)
    assert answer == published("a", b"x", MQTT_5, properties=given, expiry=30)


async def test_event_of_a_message(site: MqttSite) -> None:
    sender = await site.connected(MQTT_5)
    session, outlet = site.world.session(RAW, push=frozenset())
    session.handle(Subscribe("a"))
    await sender.publish("a", b"1", properties=encode.user_property("event", "moved"))
    await sender.publish("a", b"2")
    await sender.publish("a", b"3", properties=encode.user_property("event", "pusher:ping"))
    frames = b"".join(outlet.writes)
    assert frames.count(b'"event":"moved","channel":"a","data":1') == 1
    assert frames.count(b'"event":"message","channel":"a","data":2') == 1
    assert b'"data":3' not in frames
    assert site.metrics.refusals["implementation-specific-error"] == 1


async def test_event_of_the_api_arrives_with_its_name_in_mqtt_5(site: MqttSite) -> None:
    old, new = await site.connected(MQTT_311, "old"), await site.connected(MQTT_5, "new")
    for client in (old, new):
        await client.subscribe("orders/1")
    site.world.publish("orders.1", b'"paid"', event="changed")
    await turns()
    assert old.take() == published("orders/1", b"paid")
    assert new.take() == published("orders/1", b"paid", MQTT_5, properties=encode.user_property("event", "changed"))


async def test_members_and_counts_are_not_sent(site: MqttSite) -> None:
    client = await site.connected(username="x", password=site.token("presence-*"))
    assert await client.subscribe("presence-a") == suback(0)
    session, _ = site.world.session(PUSHER)
    await site.node.subscribe(site.world.app, session, "presence-a", Member("ann"))
    await turns()
    assert client.take() == b""


async def test_excluded_connection_does_not_get_the_event(site: MqttSite) -> None:
    one, two = await site.connected(client_id="one"), await site.connected(client_id="two")
    for client in (one, two):
        await client.subscribe("a")
    assert one.connection._session is not None
    site.world.publish("a", b"1", exclude=one.connection._session.client.id)
    await turns()
    assert one.take() == b""
    assert two.take() == published("a", b"1")


async def test_no_local_subscription_does_not_get_own_messages(site: MqttSite) -> None:
    one, two = await site.connected(MQTT_5, "one"), await site.connected(MQTT_5, "two")
    for client in (one, two):
        await client.subscribe(FilterOptions("a", no_local=True))
    assert await one.publish("a") == b""
    assert two.take() == published("a", b"x", MQTT_5)
    assert await two.publish("a") == b""
    assert one.take() == published("a", b"x", MQTT_5)


async def test_retain_is_sent_only_as_published(site: MqttSite) -> None:
    one, two = await site.connected(MQTT_5, "one"), await site.connected(MQTT_5, "two")
    await one.subscribe(FilterOptions("a", retain_as_published=True))
    await two.subscribe("a")
    assert await one.publish("a", retain=True) == published("a", b"x", MQTT_5, retain=True)
    assert two.take() == published("a", b"x", MQTT_5)


async def test_subscription_identifier_is_sent(site: MqttSite) -> None:
    client = await site.connected(MQTT_5)
    await client.subscribe("a", subscription_id=300)
    assert await client.publish("a") == b"\x30\x08\0\1a\x03\x0b\xac\x02x"


async def test_message_over_the_maximum_packet_size_is_not_sent(site: MqttSite) -> None:
    client = await site.connected(MQTT_5, maximum_packet_size=64)
    await client.subscribe("a")
    assert await client.publish("a", b"x" * 60) == b""
    assert await client.publish("a", b"x" * 32) == published("a", b"x" * 32, MQTT_5)


async def test_answer_over_the_maximum_packet_size_is_not_sent(site: MqttSite) -> None:
    client = await site.connected(MQTT_5, maximum_packet_size=32)
    filters = [f"a/{number}" for number in range(28)]
    assert await client.subscribe(*filters) == b""
    assert await client.publish("a/27") == published("a/27", b"x", MQTT_5)
    assert await client.unsubscribe(*filters) == b""
    assert await client.publish("a/27") == b""
    assert await client.subscribe(*filters[1:]) == suback_5(*[0] * 27)


async def test_message_with_an_alias(site: MqttSite) -> None:
    client = await site.connected(MQTT_5)
    await client.subscribe("a")
    named = b"\x30\x08\0\1a\x03\x23\0\1x"
    unnamed = b"\x30\x07\0\0\x03\x23\0\1y"
    assert await client.send(named + unnamed) == published("a", b"x", MQTT_5) + published("a", b"y", MQTT_5)


# Rights


@pytest.mark.parametrize("topic", ["private-a", "presence-a", "protected-a", "private-encrypted-a"])
async def test_anonymous_client_reads_and_publishes_public_channels_only(site: MqttSite, topic: str) -> None:
    owner = await site.connected(client_id="owner", username="x", password=site.token("*"))
    assert await owner.subscribe(topic) == suback(0)
    client = await site.connected(client_id="anonymous")
    other = await site.connected(MQTT_5, "other")
    assert await client.subscribe(topic) == suback(0x80)
    assert await other.subscribe(topic) == suback_5(0x87)
    await client.publish(topic, b"forged")
    sent = await owner.publish(topic, b"secret")
    site.world.publish(topic, b"1")
    await turns()
    assert client.take() == b""
    assert other.take() == b""
    secret = b"" if "encrypted" in topic else published(topic, b"secret")
    assert sent == secret
    assert owner.take() == published(topic, b"1")


async def test_token_permits_its_channels_only(site: MqttSite) -> None:
    client = await site.connected(MQTT_5, username="x", password=site.token("private-a.*", "private-b"))
    assert await client.subscribe("private-a/1", "private-b", "private-c", "private-a", "public") == suback_5(0, 0, 0x87, 0x87, 0)
    assert await client.publish("private-a/1") == published("private-a/1", b"x", MQTT_5)
    assert await client.publish("private-c") == b""
    assert site.metrics.refusals["not-authorized"] == 3


async def test_push_names_the_types_to_which_clients_publish() -> None:
    site = MqttSite(push=frozenset({"private"}))
    client = await site.connected(username="x", password=site.token("*"))
    await client.subscribe("private-a", "a")
    assert await client.publish("private-a") == published("private-a", b"x")
    assert await client.publish("a") == b""


async def test_anonymous_client_publishes_only_if_push_is_configured() -> None:
    site = MqttSite(anonymous_push=frozenset())
    anonymous = await site.connected(client_id="anonymous")
    named = await site.connected(client_id="named", username="x", password=site.token("a"))
    await anonymous.subscribe("a")
    assert await anonymous.publish("a") == b""
    await named.publish("a")
    assert anonymous.take() == published("a", b"x")


async def test_encrypted_channel_can_be_read_and_not_written(site: MqttSite) -> None:
    client = await site.connected(username="x", password=site.token("*"))
    await client.subscribe("private-encrypted-a")
    assert await client.publish("private-encrypted-a") == b""


async def test_app_without_the_type_of_a_channel() -> None:
    site = MqttSite(app_config(channels=frozenset({"private"})))
    client = await site.connected(MQTT_5, username="x", password=site.token("*"))
    assert await client.subscribe("a", "private-a", "presence-a") == suback_5(0x87, 0, 0x87)
    assert await client.publish("a") == b""


async def test_topic_of_the_own_user(site: MqttSite) -> None:
    client = await site.connected(MQTT_5, username="x", password=site.token("a", sub="ann"))
    assert await client.subscribe("$user/ann", "$user/bob") == suback_5(0, 0x87)
    site.world.publish("#server-to-user-ann", b'"hello"')
    await turns()
    assert client.take() == published("$user/ann", b"hello", MQTT_5, properties=encode.user_property("event", "e"))
    assert await client.publish("$user/ann") == b""


async def test_reserved_topics(site: MqttSite) -> None:
    client = await site.connected(MQTT_5)
    assert await client.subscribe("$SYS/broker/uptime") == suback_5(0)
    for topic in ("$SYS/broker/uptime", "$SYS/broker/connection/x/state", "$CONTROL/x", "$share/g/a"):
        assert await client.publish(topic) == b""
    assert site.metrics.refusals["not-authorized"] == 3
    assert await client.unsubscribe("$SYS/broker/uptime", "$SYS/broker/uptime") == bytes.fromhex("b0 05 00 02 00 00 11")
    await client.subscribe("$other")
    assert await client.publish("$other") == published("$other", b"x", MQTT_5)


async def test_state_of_a_bridge_is_acknowledged_and_dropped(site: MqttSite) -> None:
    client = await site.connected(MQTT_5)
    answer = await client.publish("$SYS/broker/connection/x/state", b"1", qos=1, retain=True, packet_id=7)
    assert answer == bytes.fromhex("40 03 00 07 10")
    assert await client.subscribe("$SYS/broker/connection/x/state") == suback_5(0)
    await site.connected(MQTT_5, "bridge", will=Will("$SYS/broker/connection/x/state", b"0", 1, True))


# Filters with wildcards


async def test_filter_with_wildcards_receives_matching_topics(site: MqttSite) -> None:
    new, old = await site.connected(MQTT_5, "new"), await site.connected(MQTT_311, "old")
    assert await new.subscribe("a/+", "$SYS/#", "$user/+") == suback_5(0, 0, 0)
    assert await old.subscribe("+/b/#") == suback(0)
    other = await site.connected(MQTT_5, "other")
    for topic in ("a/b", "a", "x/b/c", "$SYS/x"):
        await other.publish(topic)
    site.world.publish("#server-to-user-7", b"1")
    site.world.publish("a.+", b"1")
    site.world.publish("$user.7", b"1")
    await turns()
    assert new.take() == published("a/b", b"x", MQTT_5)
    assert old.take() == published("a/b", b"x") + published("x/b/c", b"x")


async def test_unsubscribed_filter_receives_nothing_more(site: MqttSite) -> None:
    client = await site.connected(MQTT_5)
    await client.subscribe("a/+", "#")
    assert await client.unsubscribe("a/+", "a/#", "#", "#") == bytes.fromhex("b0 07 00 02 00 00 11 00 11")
    assert await client.publish("a/b") == b""
    assert site.world.app.filters is None


async def test_filter_of_a_lost_client_is_removed(site: MqttSite) -> None:
    client = await site.connected(MQTT_5)
    await client.subscribe("#")
    client.lose()
    await turns()
    assert site.world.app.filters is None
    assert site.world.publish("a", b"1") == 0


async def test_same_filter_again_takes_the_new_options(site: MqttSite) -> None:
    client = await site.connected(MQTT_5)
    await client.subscribe("a/#", subscription_id=7)
    assert await client.publish("a") == published("a", b"x", MQTT_5, properties=bytes.fromhex("0b 07"))
    assert await client.subscribe("a/#") == suback_5(0)
    assert await client.publish("a") == published("a", b"x", MQTT_5)


async def test_number_of_filters_with_wildcards_is_bounded(site: MqttSite) -> None:
    client = await site.connected(MQTT_5)
    assert await client.subscribe(*(f"{n}/+" for n in range(11)), "0/+", "a") == suback_5(*[0] * 10, 0x97, 0, 0)
    holder = await site.connected(MQTT_5, "holder", username="x", password=site.token("a"))
    await holder.subscribe(*(f"{n}/+" for n in range(101)))
    await turns()
    assert holder.take() == suback_5(*[0] * 100, 0x97)


async def test_number_of_pluses_in_a_filter_is_bounded(site: MqttSite) -> None:
    client = await site.connected(MQTT_5)
    assert await client.subscribe("a" + "/+" * 16, "a" + "/+" * 17) == suback_5(0, 0x97)


async def test_limit_of_subscriptions_includes_filters_with_wildcards() -> None:
    site = MqttSite(app_config({"subscriptions": 3}))
    client = await site.connected(MQTT_5)
    assert await client.subscribe("a", "a/#", "$SYS/#", "b", "b/#", "a/#") == suback_5(0, 0, 0, 0x97, 0x97, 0)


async def publishes_until_held(client: MqttClient, topics: Iterable[str]) -> int:
    """Returns the number of topics to which a client publishes before the server stops reading from it."""
    for number, topic in enumerate(topics):
        if client.is_held():
            return number
        await client.publish(topic)
    raise AssertionError("the server reads everything")


async def test_searches_through_filters_are_charged_to_the_publisher() -> None:
    site = MqttSite(publishes=100)
    holder = await site.connected(MQTT_5, "h", username="x", password=site.token("a"))
    await holder.subscribe(*("/".join(f"{n:012b}").replace("0", "a").replace("1", "+") for n in range(100)))
    await turns()
    one, two = await site.connected(client_id="one"), await site.connected(client_id="two")
    searched = "a/a/a/a/a/a/a/a/a/a/a/"
    assert await publishes_until_held(one, (searched + str(number) for number in range(200))) < 60
    assert await publishes_until_held(two, [searched + "1"] * 200) == 101, "lanes of a channel are searched once"


async def test_backend_decides_about_filters_with_a_literal_first_level_only() -> None:
    site = MqttSite(app_config(authorize=(decided("subscribe"),)))
    client = await site.connected(MQTT_5)
    assert await client.subscribe("#", "+/1", "open/+", "private-a/+") == suback_5(0, 0, 0, 0)
    assert [one.channel for one in site.world.hooks.asked] == ["private-a.+"]  # type: ignore[union-attr]
    for name in ("private-a.1", "private-b.1", "open.1"):
        site.world.publish(name, b"1")
    await turns()
    assert client.take() == published("private-a/1", b"1", MQTT_5, properties=encode.user_property("event", "e"))


async def test_filter_is_granted_even_if_the_backend_rejects_it() -> None:
    site = MqttSite(app_config(authorize=(decided("subscribe"),)))
    client = await site.connected(MQTT_5, username="x", password=site.token("private-a.2"))
    site.world.hooks.decision = Decision(Refused(403, "no"))
    assert await client.subscribe("private-a/+") == suback_5(0)
    assert site.world.publish("private-a.1", b"1") == 0
    assert site.world.publish("private-a.2", b"1") == 1
    await turns()
    client.take()
    site.world.hooks.decision = Decision(Refused(503, "away"))
    assert await client.subscribe("private-b/+") == suback_5(0x80)


# The app's backend


async def test_backend_decides_about_subscriptions() -> None:
    site = MqttSite(app_config(authorize=(decided("subscribe", filter=("private-", "open")),)))
    client = await site.connected(MQTT_5)
    assert await client.subscribe("private-a", "open", "other") == suback_5(0, 0, 0)
    assert [one.channel for one in site.world.hooks.asked] == ["private-a", "open"]  # type: ignore[union-attr]
    site.world.hooks.decision = Decision(Refused(403, "no"))
    assert await client.subscribe("private-b") == suback_5(0x87)
    site.world.hooks.decision = Decision(Refused(128, "no"))
    assert await client.subscribe("private-b") == suback_5(0x80)
    site.world.hooks.decision = Decision(Refused(503, "away"))
    assert await client.subscribe("private-b") == suback_5(0x80)


async def test_backend_decides_about_messages() -> None:
    site = MqttSite(app_config(authorize=(decided("publish", filter=("private-",)),)), anonymous_push=frozenset({"private"}))
    owner = await site.connected(client_id="owner", username="x", password=site.token("*"))
    await owner.subscribe("private-a")
    client = await site.connected()
    await client.publish("private-a", b"x")
    assert owner.take() == published("private-a", b"x")
    site.world.hooks.decision = Decision(data=b'"y"')
    await client.publish("private-a", b"x")
    assert owner.take() == published("private-a", b"y")
    site.world.hooks.decision = Decision(Refused(403, "no"))
    await client.publish("private-a", b"x")
    assert owner.take() == b""


async def test_later_packets_wait_for_the_backend() -> None:
    site = MqttSite(app_config(authorize=(decided("subscribe"),)))
    client = await site.connected()
    site.world.hooks.waits = asyncio.get_running_loop().create_future()
    assert await client.subscribe("a") == b""
    assert not client.transport.reading
    assert await client.send(b"\xc0\0") == b""
    site.world.hooks.waits.set_result(None)
    await turns(8)
    assert client.take() == suback(0) + b"\xd0\0"
    assert client.transport.reading


async def test_backend_is_asked_before_connack() -> None:
    site = MqttSite(app_config(authorize=(decided("connect"),)))
    site.world.hooks.decision = Decision(user_id="ann")
    client = await site.connected(MQTT_5, "device", username="app-key:name", password=b"secret")
    question = site.world.hooks.asked[0]
    assert (question.protocol, question.client_id, question.username) == ("mqtt", "device", "name")  # type: ignore[union-attr]
    assert (question.password, question.certificate) == ("secret", None)  # type: ignore[union-attr]
    assert b'"claims":null' in msgspec.json.encode(question)
    assert await client.subscribe("$user/ann") == suback_5(0)


# Subscriptions


async def test_same_filter_again_replaces_the_options(site: MqttSite) -> None:
    client = await site.connected(MQTT_5)
    await client.subscribe("a")
    assert await client.subscribe("a", subscription_id=5) == suback_5(0)
    assert await client.publish("a") == published("a", b"x", MQTT_5)[:1] + b"\x07\0\1a\x02\x0b\x05x"
    assert len(site.world.app.tenant.channels["a"].lanes) == 1
    await client.unsubscribe("a")
    assert site.world.app.tenant.channels == {}


async def test_unsubscribe(site: MqttSite) -> None:
    new, old = await site.connected(MQTT_5, "new"), await site.connected(MQTT_311, "old")
    for client in (new, old):
        await client.subscribe("a")
    assert await new.unsubscribe("a", "b") == bytes.fromhex("b0 05 00 02 00 00 11")
    assert await old.unsubscribe("a", "b") == bytes.fromhex("b0 02 00 02")
    assert await old.publish("a") == b""
    assert new.take() == b""


async def test_limit_of_subscriptions() -> None:
    site = MqttSite(app_config({"subscriptions": 2}))
    client = await site.connected(MQTT_5)
    assert await client.subscribe("a", "b", "c", "$SYS/x", "a") == suback_5(0, 0, 0x97, 0x97, 0)


async def test_a_thousand_filters(site: MqttSite) -> None:
    client = await site.connected(MQTT_5)
    await client.subscribe(*[f"a/{number}" for number in range(1001)])
    await turns(100)
    answer = client.take()
    assert answer[-1] == 0x97
    assert set(answer[6:-1]) == {0}


async def test_payload_over_the_limit_is_dropped_and_logged_at_most_every_ten_seconds() -> None:
    site = MqttSite(app_config({"payload": 100}))
    client = await site.connected()
    await client.subscribe("a")
    assert await client.publish("a", b"x" * 101) == b""
    assert await client.publish("a", b"x" * 100) == published("a", b"x" * 100)
    assert site.metrics.refusals["quota-exceeded"] == 1
    with structlog.testing.capture_logs() as lines:
        for _ in range(3):
            site.clock.advance(5)
            await client.publish("a", b"x" * 101)
    assert [(line["app"], line["bytes"], line["dropped"]) for line in lines] == [("app-test", 101, 2)]


async def test_user_is_a_member_of_a_presence_channel(site: MqttSite) -> None:
    named = await site.connected(client_id="n", username="x", password=site.token("presence-*", sub="ann"))
    unnamed = await site.connected(client_id="u", username="x", password=site.token("presence-*"))
    for client in (named, unnamed):
        assert await client.subscribe("presence-a") == suback(0)
    assert [one.user_id for one in await site.node.members(site.world.app, "presence-a")] == ["ann"]


async def test_multicast_finds_the_client_id(site: MqttSite) -> None:
    one, two = await site.connected(client_id="device-1"), await site.connected(client_id="device-2")
    for client in (one, two):
        await client.subscribe("a")
    site.world.publish("a", b"1", options=Options(0, "multicast", "device-1"))
    await turns()
    assert one.take() == published("a", b"1")
    assert two.take() == b""


async def test_message_while_the_broker_is_away_is_counted() -> None:
    site = MqttSite(slow=True)
    client = await site.connected(MQTT_5)
    site.world.broker.fail["publish"] = Refused(503, "away")
    assert await client.publish("a") == b""
    assert site.metrics.refusals == {"server-busy": 1}
    assert await client.send(b"\xc0\0") == b"\xd0\0"


async def test_subscription_while_the_broker_is_away() -> None:
    site = MqttSite(slow=True)
    client = await site.connected(MQTT_5)
    site.world.broker.fail["subscribe"] = Refused(503, "away")
    assert await client.subscribe("a") == suback_5(0x80)


async def test_unsubscribe_of_other_filters_does_not_search_the_waiting_messages(
    site: MqttSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await site.connected()
    await client.subscribe(*(FilterOptions(f"b{number}/+", 1) for number in range(5)), FilterOptions("x/+", 1))
    for _ in range(40):
        site.world.publish("x.1", b'"1"')
    await turns()
    searched: list[str] = []

    def counted(filter: str, channel: str) -> bool:
        searched.append(filter)
        return matches(filter, channel)

    monkeypatch.setattr(subscribing, "matches", counted)
    await client.unsubscribe("unknown", "unknown/+")
    assert searched == []
    await client.unsubscribe("b0/+")
    assert len(searched) <= 5  # once for each filter, and not for each of the 20 waiting messages
