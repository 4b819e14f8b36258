"""Sessions of MQTT clients that outlive their connections: resumption, takeover, expiry, and rights at the resumption."""

import asyncio
from typing import Any

import msgspec
import pytest
import structlog

from push1st.brokers import memory_sessions
from push1st.brokers.retained import ANONYMOUS_PART
from push1st.brokers.sessions import MAX_LOGS_OF_MESSAGE
from push1st.config.model import AppConfig, Authorize
from push1st.errors import Refused
from push1st.hooks import Decision
from push1st.messages import MqttFields
from push1st.protocols.mqtt import encode
from push1st.protocols.mqtt.packets import MQTT_5, MQTT_31, MQTT_311, FilterOptions, Will
from push1st.protocols.mqtt.wire import wire_of
from push1st.transports.mqtt.progress import SessionProgress
from tests.support import mqtt_packets as packets
from tests.support.loop import turns
from tests.support.mqtt_site import MqttClient, MqttSite, published
from tests.support.node import APP, app_config

PRESENT, NEW = b"\x20\x02\x01\x00", b"\x20\x02\x00\x00"
VERSIONS = pytest.mark.parametrize("version", [MQTT_311, MQTT_5])


@pytest.fixture
def site() -> MqttSite:
    return MqttSite()


def lasting(version: int) -> dict[str, Any]:
    """Returns the fields of a CONNECT whose session outlives the connection."""
    return {"clean": False, "session_expiry": 60} if version == MQTT_5 else {"clean": False}


def decided(on: str, *filter: str) -> AppConfig:
    """Returns an app whose backend decides about some channels."""
    return app_config(authorize=(Authorize(url="http://127.0.0.1/", on=frozenset({on}), filter=filter),))


async def opened(site: MqttSite, version: int = MQTT_311, client_id: str = "c", **fields: Any) -> tuple[MqttClient, bytes]:
    """Connects a client whose session outlives the connection. Returns what follows CONNACK, too."""
    client = site.client(version)
    answer = await client.connect(client_id, **(lasting(version) | fields))
    assert answer[0] == 0x20
    return client, answer


async def undecided(site: MqttSite, version: int = MQTT_311, **fields: Any) -> MqttClient:
    """Returns a client that waits for CONNACK, because the backend does not decide until `decide` is called."""
    site.world.hooks.waits = asyncio.get_running_loop().create_future()
    client = site.client(version)
    assert await client.connect("c", **(lasting(version) | fields)) == b""
    return client


async def decide(site: MqttSite) -> None:
    assert site.world.hooks.waits is not None
    site.world.hooks.waits.set_result(None)
    await turns(10)
    site.world.hooks.waits = None


def after(answer: bytes) -> bytes:
    """Returns the bytes that follow CONNACK."""
    return answer[2 + answer[1] :]


def is_present(answer: bytes) -> bool:
    assert answer[3] == 0, answer.hex(" ")
    return bool(answer[2])


# Resumption


@VERSIONS
async def test_absent_client_gets_its_messages_when_it_returns(site: MqttSite, version: int) -> None:
    client, answer = await opened(site, version)
    assert not is_present(answer)
    await client.subscribe(FilterOptions("a", 1))
    client.lose()
    other = await site.connected(MQTT_5, "other")
    assert (await other.publish("a", b"1", qos=1, packet_id=1))[:4] == b"\x40\x02\0\1"
    await other.publish("a", b"2", qos=1, packet_id=2)
    await other.publish("a", b"lost", qos=0)
    _, answer = await opened(site, version)
    assert is_present(answer)
    assert after(answer) == b"".join(
        published("a", payload, version, qos=1, packet_id=number) for number, payload in ((1, b"1"), (2, b"2"))
    )


async def test_saved_messages_are_stored_until_they_are_acknowledged_although_others_follow(site: MqttSite) -> None:
    """Otherwise the broker would send them again after each later crash."""
    client, _ = await opened(site)
    await client.subscribe(FilterOptions("a", 1))
    client.lose()
    site.world.publish("a", b'"1"')
    client, _ = await opened(site)
    client.lose()
    client, answer = await opened(site)
    assert b"\x32" <= after(answer)[:1] <= b"\x3a"
    session, _ = site.clients._connections[APP, "c"]
    site.world.publish("a", b'"2"')
    await turns()
    assert session.progress().has_saved
    await client.send(b"\x40\x02\0\1")
    assert not session.progress().has_saved


async def test_published_message_with_qos_2_is_progress_of_the_session(site: MqttSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise another worker would publish the repetition of a message whose PUBREC was lost."""
    client, _ = await opened(site)
    marked: list[Any] = []
    monkeypatch.setattr(SessionProgress, "mark", lambda _, session: marked.append(session.receiver.save()))
    await client.publish("a", qos=1, packet_id=1)
    await client.publish("a", qos=2, packet_id=2)
    assert [[packet_id for packet_id, _ in received] for received in marked] == [[2]]


async def test_session_present_is_not_sent_in_mqtt_31(site: MqttSite) -> None:
    client, _ = await opened(site, MQTT_31)
    await client.subscribe(FilterOptions("a", 1))
    client.lose()
    assert (await opened(site, MQTT_31))[1] == NEW


@VERSIONS
async def test_resumed_subscription_gets_live_messages(site: MqttSite, version: int) -> None:
    client, _ = await opened(site, version)
    await client.subscribe(FilterOptions("a", 1), FilterOptions("b", 0))
    client.lose()
    client, _ = await opened(site, version)
    site.world.publish("a", b'"1"')
    site.world.publish("b", b'"2"')
    await turns()
    assert client.take().count(b"1") >= 1
    assert site.world.publish("b", b'"2"') == 1


@VERSIONS
async def test_unacknowledged_message_is_sent_again_with_dup_and_its_packet_id(site: MqttSite, version: int) -> None:
    client, _ = await opened(site, version)
    await client.subscribe(FilterOptions("a", 1), FilterOptions("b", 2))
    other = await site.connected(MQTT_311, "other")
    for number in (1, 2, 3):
        await other.publish("a", b"%d" % number, qos=1, packet_id=number)
    await other.publish("b", b"4", qos=2, packet_id=4)
    await other.send(b"\x62\x02\0\4")
    await client.send(b"\x40\x02\0\2")
    client.lose()
    await other.publish("a", b"5", qos=1, packet_id=5)
    _, answer = await opened(site, version)
    assert after(answer) == (
        published("a", b"1", version, qos=1, packet_id=1, dup=True)
        + published("a", b"3", version, qos=1, packet_id=3, dup=True)
        + published("b", b"4", version, qos=2, packet_id=4, dup=True)
        + published("a", b"5", version, qos=1, packet_id=5)
    )


@VERSIONS
async def test_pubrel_is_sent_again(site: MqttSite, version: int) -> None:
    client, _ = await opened(site, version)
    await client.subscribe(FilterOptions("a", 2))
    other = await site.connected(MQTT_311, "other")
    await other.publish("a", b"1", qos=2, packet_id=1)
    assert await client.send(b"\x50\x02\0\1") == published("a", b"1", version, qos=2, packet_id=1) + b"\x62\x02\0\1"
    client.lose()
    client, answer = await opened(site, version)
    assert after(answer) == b"\x62\x02\0\1"
    await client.send(b"\x70\x02\0\1")
    client.lose()
    assert after((await opened(site, version))[1]) == b""


@VERSIONS
async def test_message_with_qos_2_is_not_published_again_after_a_resumption(site: MqttSite, version: int) -> None:
    other = await site.connected(MQTT_311, "other")
    await other.subscribe("a")
    client, _ = await opened(site, version)
    assert await client.publish("a", b"1", qos=2, packet_id=7) == b"\x50\x02\0\7"
    assert other.take() == published("a", b"1")
    client.lose()
    client, _ = await opened(site, version)
    assert await client.publish("a", b"1", qos=2, packet_id=7, dup=True) == b"\x50\x02\0\7"
    assert other.take() == b""
    assert await client.send(b"\x62\x02\0\7") == b"\x70\x02\0\7"


async def test_session_is_resumed_in_the_other_version(site: MqttSite) -> None:
    client, _ = await opened(site, MQTT_5)
    await client.subscribe(FilterOptions("a", 1), subscription_id=9)
    site.world.publish("a", b'"1"')
    await turns()
    client.lose()
    site.world.publish("a", b'"2"')
    client, answer = await opened(site, MQTT_311)
    first, second = packets.publishes(after(answer))
    assert (first, second) == ((0x3A, 1, b"a", b"1"), (0x32, 2, b"a", b"2"))
    client.lose()
    _, answer = await opened(site, MQTT_5)
    event = encode.user_property("event", "e")
    assert b"\x0b\x09" + event + b"1" in answer
    assert b"\x0b\x09" + event + b"2" in answer


async def test_waiting_messages_come_before_those_of_the_absence(site: MqttSite) -> None:
    site = MqttSite(inflight=2)
    client, _ = await opened(site)
    await client.subscribe(FilterOptions("a", 1))
    for number in range(1, 5):
        site.world.publish("a", b'"%d"' % number)
    await turns()
    client.lose()
    site.world.publish("a", b'"5"')
    client, answer = await opened(site)
    assert list(packets.publishes(after(answer))) == [(0x3A, 1, b"a", b"1"), (0x3A, 2, b"a", b"2")]
    found: list[tuple[int, int, bytes, bytes]] = []
    for number in range(1, 6):
        found += packets.publishes(await client.send(b"\x40\x02\0" + bytes((number,))))
    assert found == [(0x32, number, b"a", b"%d" % number) for number in (3, 4, 5)]


async def test_pending_messages_of_a_lost_connection_are_kept(site: MqttSite) -> None:
    client, _ = await opened(site)
    await client.subscribe(FilterOptions("a", 1))
    site.world.publish("a", b'"1"')  # the fan-out has not written the message yet
    client.lose()
    _, answer = await opened(site)
    assert [payload for _, _, _, payload in packets.publishes(after(answer))] == [b"1"]


async def test_message_of_several_filters_comes_once_with_all_subscription_ids_and_the_highest_qos(site: MqttSite) -> None:
    client, _ = await opened(site, MQTT_5)
    await client.subscribe(FilterOptions("a/b", 1), subscription_id=1)
    await client.subscribe(FilterOptions("a/+", 2), subscription_id=2)
    await client.subscribe(FilterOptions("#", 1), subscription_id=3)
    client.lose()
    other = await site.connected(MQTT_5, "other")
    await other.publish("a/b", b"x", qos=2, packet_id=1)
    await other.publish("a/c", b"y", qos=2, packet_id=2)
    _, answer = await opened(site, MQTT_5)
    found = after(answer)
    first = b"\x34\x0f\0\3a/b\0\1\x06\x0b\1\x0b\2\x0b\3x"
    second = b"\x34\x0d\0\3a/c\0\2\x04\x0b\2\x0b\3y"
    assert found == first + second


async def test_messages_of_several_filters_come_in_order_of_arrival(site: MqttSite) -> None:
    client, _ = await opened(site)
    await client.subscribe(FilterOptions("a", 1), FilterOptions("b", 1), FilterOptions("c/#", 1))
    client.lose()
    wanted = []
    for number in range(12):
        topic = ("a", "b", "c.d")[number * 7 % 3]
        site.world.publish(topic, b'"%d"' % number)
        wanted.append(b"%d" % number)
    _, answer = await opened(site)
    assert [payload for _, _, _, payload in packets.publishes(after(answer))] == wanted


async def test_only_the_last_messages_are_kept(site: MqttSite) -> None:
    site = MqttSite(queue=5, inflight=20)
    client, _ = await opened(site)
    await client.subscribe(FilterOptions("a", 1))
    client.lose()
    for number in range(9):
        site.world.publish("a", b'"%d"' % number)
    _, answer = await opened(site)
    assert [payload for _, _, _, payload in packets.publishes(after(answer))] == [b"4", b"5", b"6", b"7", b"8"]


async def test_unreadable_messages_of_a_log_do_not_replace_readable_ones(site: MqttSite) -> None:
    site = MqttSite(queue=3)
    client, _ = await opened(site)
    await client.subscribe(FilterOptions("#", 1))
    client.lose()
    for number in range(3):
        site.world.publish("a", b'"%d"' % number)
    for _ in range(8):
        site.world.publish("private-a", b'"secret"')
    _, answer = await opened(site)
    assert [payload for _, _, _, payload in packets.publishes(after(answer))] == [b"0", b"1", b"2"]


async def test_expired_messages_are_dropped(site: MqttSite) -> None:
    client, _ = await opened(site, MQTT_5)
    await client.subscribe(FilterOptions("a", 1))
    client.lose()
    other = await site.connected(MQTT_5, "other")
    await other.publish("a", b"short", qos=1, packet_id=1, expiry=10)
    await other.publish("a", b"long", qos=1, packet_id=2, expiry=50)
    site.clock.advance(20)
    _, answer = await opened(site, MQTT_5)
    assert after(answer) == published("a", b"long", MQTT_5, qos=1, packet_id=1, expiry=30)


@pytest.mark.parametrize("qos", [1, 2])
async def test_message_in_flight_does_not_expire(site: MqttSite, qos: int) -> None:
    client, _ = await opened(site, MQTT_5)
    await client.subscribe(FilterOptions("a", qos))
    other = await site.connected(MQTT_5, "other")
    await other.publish("a", b"1", qos=qos, packet_id=1, expiry=10)
    client.lose()
    site.clock.advance(20)
    _, answer = await opened(site, MQTT_5)
    assert after(answer) == published("a", b"1", MQTT_5, qos=qos, packet_id=1, dup=True, expiry=0)


async def test_excluded_client_does_not_get_the_message_after_its_return(site: MqttSite) -> None:
    client, _ = await opened(site)
    await client.subscribe(FilterOptions("a", 1))
    session = client.connection._session
    assert session is not None
    excluded = session.client.id
    client.lose()
    site.world.publish("a", b'"not for c"', exclude=excluded)
    site.world.publish("a", b'"for c"')
    _, answer = await opened(site)
    assert [payload for _, _, _, payload in packets.publishes(after(answer))] == [b"for c"]


async def test_retained_messages_are_not_sent_again(site: MqttSite) -> None:
    client, _ = await opened(site)
    other = await site.connected(MQTT_311, "other")
    await other.publish("a", b"kept", qos=1, packet_id=1, retain=True)
    assert b"kept" in await client.subscribe(FilterOptions("a", 0))
    client.lose()
    assert (await opened(site))[1] == PRESENT


async def test_topics_without_messages_stay_subscribed(site: MqttSite) -> None:
    client, _ = await opened(site, MQTT_5)
    await client.subscribe("$SYS/uptime", "$user/+")
    client.lose()
    client, _ = await opened(site, MQTT_5)
    assert await client.unsubscribe("$SYS/uptime", "$user/+") == b"\xb0\x05\0\2\0\0\0"


async def test_thousand_messages_arrive_in_order_and_once(site: MqttSite) -> None:
    client, _ = await opened(site)
    await client.subscribe(FilterOptions("a", 1))
    client.lose()
    for number in range(1000):
        site.world.publish("a", b'"%d"' % number)
    client, answer = await opened(site)
    found = list(packets.publishes(after(answer)))
    acknowledged = 0
    while acknowledged < len(found):
        ids = [number for _, number, _, _ in found[acknowledged:]]
        acknowledged = len(found)
        found += packets.publishes(await client.send(b"".join(b"\x40\x02" + number.to_bytes(2, "big") for number in ids)))
    assert [payload for _, _, _, payload in found] == [b"%d" % number for number in range(1000)]


async def test_topic_aliases_begin_again(site: MqttSite) -> None:
    client, _ = await opened(site, MQTT_5, topic_alias_maximum=5)
    await client.subscribe(FilterOptions("a", 1))
    site.world.publish("a", b'"1"')
    await turns()
    assert b"\0\1a" in client.take()
    client.lose()
    _, answer = await opened(site, MQTT_5, topic_alias_maximum=5)
    assert after(answer)[:1] == b"\x3a"
    assert after(answer)[2:5] == b"\0\1a"


# The end of a session


@VERSIONS
async def test_session_ends_at_its_expiry(site: MqttSite, version: int) -> None:
    site = MqttSite(session_expiry=60)
    client, _ = await opened(site, version)
    await client.subscribe(FilterOptions("a", 1))
    client.lose()
    site.pass_seconds(59)
    client, answer = await opened(site, version)
    assert is_present(answer)
    client.lose()
    site.pass_seconds(61)
    assert len(site.world.sessions) == 0
    assert not site.world.sessions.logs.apps
    assert not is_present((await opened(site, version))[1])


@VERSIONS
async def test_session_of_a_connected_client_does_not_expire(version: int) -> None:
    site = MqttSite(session_expiry=60)
    client, _ = await opened(site, version, keep_alive=3600)
    await client.subscribe(FilterOptions("a", 1))
    site.world.publish("a", b'"1"')
    site.pass_seconds(100)
    client.lose()
    _, answer = await opened(site, version)
    assert is_present(answer)
    assert [(first, payload[-1:]) for first, _, _, payload in packets.publishes(after(answer))] == [(0x3A, b"1")]


async def test_rejected_client_with_a_session_gets_no_session_present(site: MqttSite) -> None:
    client, _ = await opened(site, MQTT_5)
    client.lose()
    for version, reason in ((MQTT_311, 5), (MQTT_5, 0x87)):
        rejected = site.client(version)
        answer = await rejected.connect("c", will=Will("private-a", b""), **lasting(version))
        assert (answer[0], answer[2], answer[3]) == (0x20, 0, reason)
        assert rejected.is_closed()
    assert is_present((await opened(site, MQTT_5))[1])


async def test_session_without_expiry_ends_with_the_connection(site: MqttSite) -> None:
    for fields in ({"clean": True}, {"clean": False, "session_expiry": 0}):
        client = await site.connected(MQTT_5, **fields)
        await client.subscribe(FilterOptions("a", 1))
        client.lose()
        assert not is_present(await site.client(MQTT_5).connect("c", clean=False))


async def test_clean_start_with_an_expiry_keeps_the_new_session(site: MqttSite) -> None:
    client, _ = await opened(site, MQTT_5)
    await client.subscribe(FilterOptions("old", 1))
    client.lose()
    client, answer = await opened(site, MQTT_5, clean=True)
    assert not is_present(answer)
    await client.subscribe(FilterOptions("new", 1))
    client.lose()
    site.world.publish("old", b'"1"')
    site.world.publish("new", b'"2"')
    _, answer = await opened(site, MQTT_5)
    assert is_present(answer)
    assert after(answer).endswith(b"2")
    assert b"old" not in answer


async def test_resumed_session_without_expiry_ends_with_the_connection(site: MqttSite) -> None:
    client, _ = await opened(site, MQTT_5)
    await client.subscribe(FilterOptions("a", 1))
    client.lose()
    client, answer = await opened(site, MQTT_5, session_expiry=0)
    assert is_present(answer)
    client.lose()
    assert not is_present((await opened(site, MQTT_5))[1])
    assert not site.world.sessions.logs.apps


async def test_disconnect_changes_the_expiry(site: MqttSite) -> None:
    client, _ = await opened(site, MQTT_5)
    await client.send(b"\xe0\x07\0\x05\x11\0\0\0\x0a")
    site.pass_seconds(11)
    client, answer = await opened(site, MQTT_5)
    assert not is_present(answer)
    await client.send(b"\xe0\x07\0\x05\x11\0\0\0\0")
    client, answer = await opened(site, MQTT_5)
    assert not is_present(answer)
    await client.send(b"\xe0\x02\0\0")
    assert is_present((await opened(site, MQTT_5))[1])


async def test_disconnect_does_not_prolong_a_session_without_expiry(site: MqttSite) -> None:
    client = await site.connected(MQTT_5)
    assert await client.send(b"\xe0\x07\0\x05\x11\0\0\0\x0a") == b"\xe0\1\x82"
    assert client.is_closed()


async def test_unsubscribed_filter_is_not_kept(site: MqttSite) -> None:
    client, _ = await opened(site)
    await client.subscribe(FilterOptions("a", 1), FilterOptions("b/#", 1))
    await client.unsubscribe("a", "b/#")
    client.lose()
    assert not site.world.sessions.logs.apps
    site.world.publish("a", b'"1"')
    assert (await opened(site))[1] == PRESENT


async def test_waiting_messages_of_an_unsubscribed_filter_are_discarded() -> None:
    site = MqttSite(inflight=1)
    client = await site.connected()
    await client.subscribe(FilterOptions("a", 1), FilterOptions("b", 1), FilterOptions("c/#", 1))
    for channel in ("b", "a", "c.d", "b"):
        site.world.publish(channel, b'"1"')
        await turns()
    client.take()
    await client.unsubscribe("a")
    assert [topic for _, _, topic, _ in packets.publishes(await client.send(b"\x40\x02\0\1"))] == [b"c/d"]
    await client.unsubscribe("c/#")
    assert [topic for _, _, topic, _ in packets.publishes(await client.send(b"\x40\x02\0\2"))] == [b"b"]


async def test_filter_whose_qos_becomes_0_is_not_kept(site: MqttSite) -> None:
    client, _ = await opened(site)
    await client.subscribe(FilterOptions("a", 1))
    await client.subscribe(FilterOptions("a", 0))
    client.lose()
    assert not site.world.sessions.logs.apps


@pytest.mark.parametrize("is_anonymous", [False, True])
async def test_filter_that_would_write_too_many_logs_is_rejected(site: MqttSite, is_anonymous: bool) -> None:
    most = MAX_LOGS_OF_MESSAGE // ANONYMOUS_PART if is_anonymous else MAX_LOGS_OF_MESSAGE
    fields: dict[str, Any] = {} if is_anonymous else {"username": "", "password": site.token("*")}
    filters = [".".join("+" if number >> bit & 1 else "x" for bit in range(7)) for number in range(most)]
    for number, filter in enumerate(filters):
        client, _ = await opened(site, client_id=f"c{number}", **fields)
        assert await client.subscribe(FilterOptions(filter.replace(".", "/"), 1)) == b"\x90\x03\0\1\1"
    client, _ = await opened(site, MQTT_5, "last", **fields)
    assert await client.subscribe(FilterOptions("x/x/x/x/x/x/+", 1)) == b"\x90\x04\0\1\0\x97"
    assert await client.subscribe(FilterOptions("x/x/x/x/x/x/+", 0)) == b"\x90\x04\0\1\0\0"
    other, _ = await opened(site, MQTT_5, "other", username="", password=site.token("*"))
    assert await other.subscribe(FilterOptions("x/x/x/x/x/x/+", 1)) == b"\x90\x04\0\1\0" + (b"\1" if is_anonymous else b"\x97")


# Takeover


@VERSIONS
async def test_takeover_hands_over_the_state(site: MqttSite, version: int) -> None:
    client, _ = await opened(site, version)
    await client.subscribe(FilterOptions("a", 1))
    site.world.publish("a", b'"1"')
    await turns()
    client.take()
    site.world.publish("a", b'"2"')
    other, answer = await opened(site, version)
    event = {"properties": encode.user_property("event", "e")}
    assert client.take() == published("a", b"2", version, qos=1, packet_id=2, **event) + (
        b"\xe0\1\x8e" if version == MQTT_5 else b""
    )
    assert client.is_closed()
    assert is_present(answer)
    assert after(answer) == b"".join(
        published("a", payload, version, qos=1, packet_id=number, dup=True, **event) for number, payload in ((1, b"1"), (2, b"2"))
    )
    site.world.publish("a", b'"3"')
    await turns()
    assert other.take() == published("a", b"3", version, qos=1, packet_id=3, **event)


async def test_clean_start_ends_the_session_of_a_connected_client(site: MqttSite) -> None:
    client, _ = await opened(site)
    await client.subscribe(FilterOptions("a", 1))
    assert await site.client().connect("c") == NEW
    assert client.is_closed()
    assert not site.world.sessions.logs.apps
    assert not is_present((await opened(site))[1])


async def test_replaced_connections_leave_one_session(site: MqttSite) -> None:
    clients = [(await opened(site))[0] for _ in range(3)]
    await clients[-1].subscribe(FilterOptions("a", 1))
    for client in clients:
        client.lose()
    assert len(site.world.sessions) == 1
    assert site.world.sessions.logs.apps["app-test"].logs["a"].anonymous == 1


# Owners and rights


async def test_session_of_another_owner_is_neither_resumed_nor_ended(site: MqttSite) -> None:
    def user(name: str) -> dict[str, Any]:
        return {"username": "", "password": site.token("*", sub=name)}

    client, _ = await opened(site, MQTT_5, **user("ada"))
    await client.subscribe(FilterOptions("private-a", 1))
    for is_absent in (False, True):
        if is_absent:
            client.lose()
        for clean in (False, True):
            for fields in (user("eve"), {}, {"username": "", "password": site.token("*")}):
                stranger = site.client(MQTT_5)
                assert (await stranger.connect("c", clean=clean, session_expiry=60, **fields))[3] == 0x87
                old = site.client(MQTT_311)
                assert await old.connect("c", clean=clean, **fields) == b"\x20\x02\0\5"
        assert client.is_closed() is False
    site.world.publish("private-a", b'"1"')
    _, answer = await opened(site, MQTT_5, **user("ada"))
    assert is_present(answer)
    assert after(answer).endswith(b"1")


async def test_lost_right_ends_the_subscription_and_discards_all_its_messages(site: MqttSite) -> None:
    site = MqttSite(inflight=4)

    def allowed(*channels: str) -> dict[str, Any]:
        return {"username": "", "password": site.token(*channels, sub="ada")}

    client, _ = await opened(site, **allowed("private-*"))
    await client.subscribe(*(FilterOptions(one, 2) for one in ("private-a", "private-b", "private-c/+", "d")))
    for name in ("private-a", "private-b", "private-c.1", "private-c.2"):
        await publish(site, name, 2)
    await client.send(b"\x50\x02\0\2")
    for name in ("private-a", "private-b", "private-c.1", "d"):
        await publish(site, name, 2)
    client.lose()
    for name in ("private-a", "private-b", "private-c.1", "private-c.2", "d"):
        await publish(site, name, 2)
    client, answer = await opened(site, **allowed("private-b", "private-c.2"))
    assert is_present(answer)
    again = published("private-c/2", b"1", qos=2, packet_id=4, dup=True)
    assert after(answer) == b"\x62\x02\0\1\x62\x02\0\3" + again + b"\x62\x02\0\2"
    received = await client.send(b"".join(b"\x70\x02\0" + bytes((number,)) for number in (1, 2, 3)))
    for number in range(4, 10):
        received += await client.send(b"\x50\x02\0" + bytes((number,)) + b"\x70\x02\0" + bytes((number,)))
    for name in ("private-a", "private-c.1"):
        await publish(site, name, 2)
    received += client.take()
    assert b"private-a" not in received
    assert b"private-c/1" not in received
    assert [received.count(name) for name in (b"private-b", b"private-c/2", b"\0\1d")] == [2, 1, 2]
    assert await client.unsubscribe("private-b") == b"\xb0\x02\0\2"
    client.lose()
    assert list(site.world.sessions.logs.apps["app-test"].logs) == ["d", "private-c.+"]


async def publish(site: MqttSite, channel: str, qos: int) -> None:
    """Publishes a message of another MQTT client."""
    site.world.publish(channel, b'"1"', sender="1.1", mqtt=MqttFields(qos))
    await turns()


async def test_backend_decides_again_at_each_resumption() -> None:
    site = MqttSite(decided("subscribe"))
    client, _ = await opened(site)
    await client.subscribe(FilterOptions("private-a", 1), FilterOptions("b", 1))
    client.lose()
    site.world.publish("private-a", b'"secret"')
    site.world.hooks.decision = Decision(refused=Refused(403, "no"))
    _, answer = await opened(site)
    assert answer == PRESENT
    assert [one.channel for one in site.world.hooks.asked[2:]] == ["private-a", "b"]  # type: ignore[union-attr]


async def test_live_messages_wait_while_the_backend_decides() -> None:
    site = MqttSite(decided("subscribe", "private-b"))
    client, _ = await opened(site)
    await client.subscribe(FilterOptions("a", 1), FilterOptions("private-b", 1))
    client.lose()
    site.world.publish("a", b'"1"')
    client = await undecided(site)
    site.world.publish("a", b'"2"')
    await turns()
    assert client.take() == b""
    assert await client.subscribe(FilterOptions("later", 0)) == b""
    site.world.publish("a", b'"3"')
    await decide(site)
    data = client.take()
    assert data.startswith(PRESENT)
    assert data.endswith(b"\x90\x03\0\1\0")
    assert [payload for _, _, _, payload in packets.publishes(data[4:-5])] == [b"1", b"2", b"3"]


@VERSIONS
@pytest.mark.parametrize("filter", ["private-b/1", "private-b/+"])
async def test_message_with_qos_0_after_connack_reaches_a_subscription_of_the_backend(version: int, filter: str) -> None:
    site = MqttSite(decided("subscribe", "private-b"))
    client, _ = await opened(site, version)
    await client.subscribe("a", filter)
    client.lose()
    client = await undecided(site, version)
    site.world.publish("private-b.1", b'"secret"', mqtt=MqttFields())  # the backend has not decided yet
    site.world.publish("a", b'"1"', mqtt=MqttFields())
    await turns()
    site.world.hooks.waits.set_result(None)  # type: ignore[union-attr]
    while not (answer := client.take()):
        await turns(1)
    assert is_present(answer)
    site.world.publish("private-b.1", b'"2"', mqtt=MqttFields())
    await turns()
    found = after(answer) + client.take()
    assert found == published("a", b"1", version) + published("private-b/1", b"2", version)
    assert client.connection._session is not None
    wires = {one.lane.wire for one in client.connection._session.client.subscriptions.values()}
    assert wires == {wire_of(version)}  # with shared frames again


async def test_backend_decides_about_all_subscriptions_at_once() -> None:
    site = MqttSite(decided("subscribe"))
    client, _ = await opened(site)
    names = ["private-b/1", "private-b/+", "$share/g/c", "+/public"]
    await client.subscribe(*names, *(f"d/{number}" for number in range(40)))
    client.lose()
    site.world.hooks.asked.clear()
    client = await undecided(site)
    asked = [one.channel for one in site.world.hooks.asked]  # type: ignore[union-attr]
    assert {"private-b.1", "d.0"} < {*asked}
    assert len(asked) > 20
    await decide(site)
    await turns(10)
    assert is_present(client.take())
    asked = [one.channel for one in site.world.hooks.asked]  # type: ignore[union-attr]
    assert len(asked) == len({*asked}) == 43


async def test_rejected_connection_changes_nothing_in_the_session(site: MqttSite) -> None:
    site = MqttSite(decided("subscribe"))
    client, _ = await opened(site, MQTT_5)
    await client.subscribe(FilterOptions("a", 1))
    client.lose()
    site.world.hooks.decision = Decision(refused=Refused(503, "away"))
    rejected = site.client(MQTT_5)
    assert (await rejected.connect("c", clean=False))[:4:3] == b"\x20\x88"
    site.world.hooks.decision = Decision()
    await publish(site, "a", 1)
    assert after((await opened(site, MQTT_5))[1]).endswith(b"1")


async def test_connection_that_ends_while_the_backend_decides_keeps_everything() -> None:
    site = MqttSite(decided("subscribe", "private-b"))
    client, _ = await opened(site)
    await client.subscribe(FilterOptions("a", 1), FilterOptions("private-b", 1))
    site.world.publish("a", b'"1"')
    await turns()
    client.lose()
    site.world.publish("a", b'"2"')
    client = await undecided(site)
    site.world.publish("a", b'"3"')
    client.connection.take_over()
    assert client.take() == b"\x20\2\0\3"
    await decide(site)
    site.world.publish("a", b'"4"')
    _, answer = await opened(site)
    await turns(4)
    assert [(first, payload) for first, _, _, payload in packets.publishes(after(answer))] == [
        (0x3A, b"1"),
        (0x32, b"2"),
        (0x32, b"3"),
        (0x32, b"4"),
    ]


@VERSIONS
@pytest.mark.parametrize("qos", [0, 1])
async def test_returning_client_gets_the_retained_messages_that_were_not_sent(version: int, qos: int) -> None:
    site = MqttSite()
    sender = await site.connected(client_id="sender")
    topics = [b"cfg/%d" % number for number in range(9)]
    for topic in topics:
        await sender.publish(topic.decode(), b"x", retain=True)
    client, _ = await opened(site, version)
    client.transport.unsent = 1  # the client does not read
    await client.subscribe(FilterOptions("cfg/#", qos))
    assert client.take() == b""
    client.lose()
    client, answer = await opened(site, version)
    await turns(20)
    assert is_present(answer)
    assert [topic for _, _, topic, _ in packets.publishes(after(answer) + client.take())] == topics


async def test_message_that_waits_for_the_backend_is_published_once_if_the_client_repeats_it() -> None:
    site = MqttSite(decided("publish"), push=frozenset({"public"}))
    receiver = await site.connected(client_id="receiver")
    await receiver.subscribe(FilterOptions("a", 2))
    first, _ = await opened(site)
    waits = site.world.hooks.waits = asyncio.get_running_loop().create_future()
    await first.publish("a", b"1", qos=2, packet_id=7)
    first.lose()
    site.world.hooks.waits = None
    second, _ = await opened(site)
    await second.publish("a", b"1", qos=2, packet_id=7, dup=True)
    waits.set_result(None)
    await turns(10)
    assert [payload for _, _, _, payload in packets.publishes(receiver.take())] == [b"1"]


async def test_lost_connection_that_the_backend_admits_late_does_not_replace_a_newer_one() -> None:
    site = MqttSite(decided("connect"))
    waits = site.world.hooks.waits = asyncio.get_running_loop().create_future()
    old = site.client()
    await old.connect()
    old.lose()
    site.world.hooks.waits = None
    new = await site.connected()
    waits.set_result(None)
    await turns(10)
    assert not new.is_closed()
    assert await new.send(b"\xc0\0") == b"\xd0\0"


async def test_backend_without_an_answer_ends_the_connection_and_not_the_subscription() -> None:
    site = MqttSite(decided("subscribe"))
    client, _ = await opened(site, MQTT_5)
    await client.subscribe(FilterOptions("a", 1))
    client.lose()
    site.world.publish("a", b'"1"')
    site.world.hooks.decision = Decision(refused=Refused(503, "away"))
    client, answer = await opened(site, MQTT_5)
    assert answer[3] == 0x88
    assert client.is_closed()
    site.world.hooks.decision = Decision()
    assert after((await opened(site, MQTT_5))[1]).endswith(b"1")


# Absent clients


async def test_absent_client_is_in_no_count_and_uses_no_connection() -> None:
    site = MqttSite(app_config({"connections": 1}))
    client, _ = await opened(site)
    await client.subscribe(FilterOptions("a", 1))
    client.lose()
    await turns()
    assert await site.node.channel(site.world.app, "a") is None
    assert site.world.publish("a", b'"1"') == 0
    assert await site.client().connect("other") == NEW


async def test_publisher_gets_success_if_only_an_absent_client_has_the_filter(site: MqttSite) -> None:
    client, _ = await opened(site)
    await client.subscribe(FilterOptions("a", 1))
    client.lose()
    other = await site.connected(MQTT_5, "other")
    assert await other.publish("a", qos=1, packet_id=1) == b"\x40\x02\0\1"
    assert await other.publish("b", qos=1, packet_id=2) == b"\x40\x03\0\2\x10"


async def test_slow_client_keeps_its_messages(site: MqttSite) -> None:
    client, _ = await opened(site, MQTT_5)
    await client.subscribe(FilterOptions("a", 1))
    client.transport.bound = 10
    site.world.publish("a", b'"1"')
    site.world.publish("a", b'"2"')
    await turns()
    assert client.take().endswith(b"\xe0\1\x97")
    _, answer = await opened(site, MQTT_5)
    assert after(answer).count(b"\x3a") == 2


@pytest.mark.parametrize("overlapping", [(), (FilterOptions("+", 1),)])
async def test_input_of_a_lost_connection_is_applied_and_its_messages_wait(overlapping: tuple[FilterOptions, ...]) -> None:
    site = MqttSite(decided("publish", "slow"))
    client, _ = await opened(site)
    await client.subscribe(FilterOptions("a", 1), FilterOptions("b", 0), *overlapping)
    for number in (1, 2):
        site.world.publish("a", b'"%d"' % number)
    await turns()
    site.world.hooks.waits = asyncio.get_running_loop().create_future()
    await client.send(published("slow", b"x", qos=1, packet_id=9) + b"\x40\x02\0\1")
    client.lose()
    site.world.publish("a", b'"3"')
    if not overlapping:
        site.world.publish("b", b'"lost"')
    await turns()
    site.world.hooks.waits.set_result(None)
    await turns(10)
    _, answer = await opened(site)
    found = [(first, payload) for first, _, _, payload in packets.publishes(after(answer)) if payload != b"x"]
    assert found == [(0x3A, b"2"), (0x32, b"3")]


async def test_session_that_ends_early_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_sessions, "MAX_APP_BYTES", 1)
    site = MqttSite()
    client, _ = await opened(site)
    client.lose()
    with structlog.testing.capture_logs() as lines:
        site.pass_seconds(1)
        await turns()
    assert [(line["client_id"], line["ended"]) for line in lines if line["event"] == "absent sessions ended early"] == [("c", 1)]


async def test_messages_that_were_dropped_from_a_log_are_logged() -> None:
    site = MqttSite()
    client, _ = await opened(site)
    await client.subscribe(FilterOptions("a", 1))
    client.lose()
    for _ in range(10_001):
        site.world.publish("a", b'"1"')
    with structlog.testing.capture_logs() as lines:
        await opened(site)
    assert [line for line in lines if line["event"] == "messages for an absent client were dropped"] == [
        {
            "event": "messages for an absent client were dropped",
            "app": "app-test",
            "client_id": "c",
            "clients": 1,
            "log_level": "warning",
        }
    ]


# Wills

WILL = Will("wills", b"gone", 1)


async def witness(site: MqttSite) -> MqttClient:
    """Connects another client, which receives the wills."""
    client = await site.connected(MQTT_311, "other")
    await client.subscribe("wills")
    return client


@VERSIONS
async def test_will_is_published_when_the_connection_is_lost(site: MqttSite, version: int) -> None:
    other = await witness(site)
    for fields in ({}, lasting(version)):
        client = site.client(version)
        await client.connect("c", will=WILL, **fields)
        client.lose()
        await turns()
        assert other.take() == published("wills", b"gone")
    site.pass_seconds(120)
    await turns()
    assert other.take() == b""


async def test_will_is_not_published_after_disconnect(site: MqttSite) -> None:
    other = await witness(site)
    client, _ = await opened(site, MQTT_5, will=WILL)
    await client.send(b"\xe0\0")
    site.pass_seconds(120)
    await turns()
    assert other.take() == b""
    client, _ = await opened(site, MQTT_5, will=WILL)
    await client.send(b"\xe0\1\4")
    await turns()
    assert other.take() == published("wills", b"gone")


async def test_will_of_a_taken_over_connection_is_published_only_if_its_session_ends(site: MqttSite) -> None:
    other = await witness(site)
    await opened(site, will=WILL)
    await opened(site, will=WILL)
    site.pass_seconds(2)
    await turns()
    assert other.take() == b""
    client = await site.connected(will=WILL)
    await client.publish("wills", b"here")
    assert other.take() == published("wills", b"gone") + published("wills", b"here")
    await site.client().connect("c")
    await turns()
    assert other.take() == published("wills", b"gone")


async def test_delayed_will_is_published_unless_the_client_returns(site: MqttSite) -> None:
    will = msgspec.structs.replace(WILL, delay=10)
    other = await witness(site)
    client, _ = await opened(site, MQTT_5, will=will)
    client.lose()
    site.pass_seconds(9)
    client, _ = await opened(site, MQTT_5, will=will)
    site.pass_seconds(5)
    client.lose()
    site.pass_seconds(9)
    await turns()
    assert other.take() == b""
    site.pass_seconds(2)
    await turns()
    assert other.take() == published("wills", b"gone")
    site.pass_seconds(100)
    await turns()
    assert other.take() == b""


@pytest.mark.parametrize("is_rejected", [True, False])
async def test_connection_that_ends_before_connack_does_not_cancel_a_delayed_will(is_rejected: bool) -> None:
    site = MqttSite(decided("subscribe", "private-b"))
    other = await witness(site)
    client, _ = await opened(site, MQTT_5, will=msgspec.structs.replace(WILL, delay=10))
    await client.subscribe("private-b")
    client.lose()
    if is_rejected:
        site.world.hooks.decision = Decision(refused=Refused(503, "away"))
        assert (await site.client(MQTT_5).connect("c", **lasting(MQTT_5)))[3] == 0x88
    else:
        (await undecided(site, MQTT_5)).connection.take_over()
        await decide(site)
    site.pass_seconds(9)
    await turns()
    assert other.take() == b""
    site.pass_seconds(2)
    await turns()
    assert other.take() == published("wills", b"gone")


async def test_delayed_will_is_published_when_the_worker_stops(site: MqttSite) -> None:
    other = await witness(site)
    client, _ = await opened(site, MQTT_5, will=msgspec.structs.replace(WILL, delay=10))
    client.lose()
    await site.clients.close()
    await turns()
    assert other.take() == published("wills", b"gone")
    assert len(site.world.sessions) == 0


# Shared filters


@VERSIONS
async def test_absent_member_gets_the_messages_of_its_group(site: MqttSite, version: int) -> None:
    client, _ = await opened(site, version)
    await client.subscribe(FilterOptions("$share/g/a/+", 1))
    client.lose()
    for number in range(3):
        site.world.publish("a.b", b'"%d"' % number, sender="1.1", mqtt=MqttFields(1))
    client, answer = await opened(site, version)
    assert after(answer) == b"".join(
        published("a/b", b"%d" % number, version, qos=1, packet_id=number + 1) for number in range(3)
    )
    await publish(site, "a.b", 1)
    assert client.take() == published("a/b", b"1", version, qos=1, packet_id=4)
    assert await client.unsubscribe("$share/g/a/+") != b""
    client.lose()
    assert not site.world.sessions.logs.apps


async def test_first_member_that_returns_takes_the_messages(site: MqttSite) -> None:
    for name in ("one", "two"):
        client, _ = await opened(site, client_id=name)
        await client.subscribe(FilterOptions("$share/g/a", 1))
        client.lose()
    await publish(site, "a", 1)
    _, answer = await opened(site, client_id="two")
    assert after(answer) == published("a", b"1", qos=1, packet_id=1)
    await publish(site, "a", 1)
    _, answer = await opened(site, client_id="one")
    assert answer == PRESENT, "the connected member got the message"


async def test_member_leaves_unreadable_messages_to_the_next_member(site: MqttSite) -> None:
    def token(*channels: str) -> dict[str, Any]:
        return {"username": "", "password": site.token(*channels, sub="ada")}

    for name in ("one", "two"):
        client, _ = await opened(site, client_id=name, **token("private-a"))
        await client.subscribe(FilterOptions("$share/g/+", 1))
        client.lose()
    await publish(site, "private-a", 1)
    await publish(site, "b", 1)
    one, answer = await opened(site, client_id="one", **token("other"))
    assert after(answer) == published("b", b"1", qos=1, packet_id=1)
    one.lose()
    _, answer = await opened(site, client_id="two", **token("private-a"))
    assert after(answer) == published("private-a", b"1", qos=1, packet_id=1)


async def test_unacknowledged_messages_of_the_last_member_stay_in_its_session(site: MqttSite) -> None:
    client, _ = await opened(site)
    await client.subscribe(FilterOptions("$share/g/a", 1))
    await publish(site, "a", 1)
    site.world.publish("a", b'"2"')  # the fan-out has not written the message yet
    client.connection.take_over()
    _, answer = await opened(site)
    assert [payload for _, _, _, payload in packets.publishes(after(answer))] == [b"1", b"2"]


async def test_messages_of_a_group_survive_a_connection_that_ends_while_the_backend_decides() -> None:
    site = MqttSite(decided("subscribe", "private-b"))
    client, _ = await opened(site)
    await client.subscribe(FilterOptions("$share/g/a", 1), FilterOptions("$share/g/private-b", 1))
    client.lose()
    client = await undecided(site)
    await publish(site, "a", 1)
    client.connection.take_over()
    await decide(site)
    _, answer = await opened(site)
    assert [payload for _, _, _, payload in packets.publishes(after(answer))] == [b"1"]


# Live messages while the session is restored


@pytest.mark.parametrize("qos", [[0, 1, 1, 0, 1], [1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]])
@pytest.mark.parametrize("is_long", [True, False])
async def test_live_messages_wait_in_a_bounded_queue(qos: list[int], is_long: bool) -> None:
    site = MqttSite(decided("subscribe", "private-b"), queue=1000 if is_long else 3)
    if is_long:
        site.clients.bounds = msgspec.structs.replace(site.clients.bounds, queue_size=3 * 108)
    client, _ = await opened(site)
    await client.subscribe(FilterOptions("a", 1), FilterOptions("private-b", 1))
    client.lose()
    client = await undecided(site)
    session = client.connection._session
    assert session is not None
    sender = session.sending()
    for number, one in enumerate(qos):
        site.world.publish("a", b'"%d%s"' % (number, b"x" * 99 if is_long else b""), sender="1.1", mqtt=MqttFields(one))
        if number % 2:
            await turns()
    await turns()
    assert sender.held is not None
    dropped = [*(number for number, one in enumerate(qos) if not one), *(number for number, one in enumerate(qos) if one)]
    kept = sorted(dropped[len(qos) - 3 :])
    assert [one.message.data[1:2] for one in sender.held.messages] == [b"%d" % number for number in kept]
    assert site.clients.counts.queue_full == len(qos) - 3


# Overlapping filters


async def test_filter_with_qos_0_adds_its_subscription_id_to_a_missed_message(site: MqttSite) -> None:
    client, _ = await opened(site, MQTT_5)
    await client.subscribe(FilterOptions("a", 1), subscription_id=1)
    await client.subscribe(FilterOptions("#", 0), subscription_id=2)
    client.lose()
    await publish(site, "a", 1)
    client, answer = await opened(site, MQTT_5)
    copy = b"\x0b\1\x0b\2" + b"1"
    assert after(answer).count(b"\0\1a") == 1
    assert after(answer).endswith(copy)
    await publish(site, "a", 1)
    live = client.take()
    assert live.count(b"\0\1a") == 1
    assert live.endswith(copy)


async def test_own_messages_of_an_earlier_connection_are_not_sent_with_no_local(site: MqttSite) -> None:
    client, _ = await opened(site, MQTT_5)
    await client.subscribe(FilterOptions("a", 1, no_local=True))
    client.lose()
    site.world.publish("a", b'"own"', sender="c.1.2", mqtt=MqttFields(1))
    site.world.publish("a", b'"other"', sender="d.1.2", mqtt=MqttFields(1))
    _, answer = await opened(site, MQTT_5)
    assert after(answer) == published("a", b"other", MQTT_5, qos=1, packet_id=1)


async def test_message_in_flight_of_an_ended_subscription_needs_the_backend() -> None:
    for app, expected in ((decided("subscribe", "a"), b""), (app_config(), published("a", b"1", qos=1, packet_id=1, dup=True))):
        site = MqttSite(app)
        client, _ = await opened(site)
        await client.subscribe(FilterOptions("a", 1))
        await publish(site, "a", 1)
        await client.unsubscribe("a")
        client.lose()
        _, answer = await opened(site)
        assert after(answer) == expected


async def test_removed_filter_is_not_watched_any_more() -> None:
    site = MqttSite(decided("subscribe"))
    client, _ = await opened(site)
    await client.subscribe(FilterOptions("a", 1))
    client.lose()
    site.world.hooks.decision = Decision(refused=Refused(403, "no"))
    client, _ = await opened(site)
    assert not site.world.sessions.logs._watched
    client.lose()


async def test_resumed_client_of_old_versions_has_no_receive_maximum() -> None:
    site = MqttSite(inflight=2)
    client, _ = await opened(site)
    await client.publish("a", qos=2, packet_id=1)
    client.lose()
    client, _ = await opened(site)
    answers = b"".join([await client.publish("a", qos=2, packet_id=number) for number in range(2, 6)])
    assert answers == b"".join(b"\x50\x02\0" + bytes((number,)) for number in range(2, 6))


async def test_new_session_beyond_a_bound_is_rejected(site: MqttSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_sessions, "MAX_ADDRESS_ABSENT", 1)
    client, _ = await opened(site, client_id="one")
    client.lose()
    assert (await site.client(MQTT_5).connect("two", clean=False, session_expiry=60))[3] == 0x97
    assert await site.client().connect("two", clean=False) == b"\x20\x02\0\3"
    assert is_present((await opened(site, client_id="one"))[1])
    assert await site.client().connect("two") == NEW
    elsewhere = site.client(peer=("198.51.100.1", 40_000))
    assert await elsewhere.connect("two", clean=False) == NEW


# A broker that waits


class SlowClaim:
    """Lets `MemorySessions.claim` wait until `go` is called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._waits: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        claim, waits = memory_sessions.MemorySessions.claim, self._waits

        async def slow(*arguments: Any) -> Any:
            found = await claim(*arguments)
            await asyncio.shield(waits)
            return found

        monkeypatch.setattr(memory_sessions.MemorySessions, "claim", slow)

    async def go(self) -> None:
        self._waits.set_result(None)
        await turns(10)


async def test_connection_that_ends_before_connack_gives_the_session_back(
    site: MqttSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, _ = await opened(site)
    await client.subscribe(FilterOptions("a", 1))
    client.lose()
    await publish(site, "a", 1)
    slow = SlowClaim(monkeypatch)
    old, new = site.client(), site.client()
    for one, name in ((old, "c"), (new, "new")):
        assert await one.connect(name, clean=False) == b""
        one.connection.close(4200, "stopping")
        assert one.take() == b"\x20\x02\0\3"
    await slow.go()
    assert len(site.world.sessions) == 1
    assert list(site.world.sessions._apps["app-test"].entries) == ["c"]
    _, answer = await opened(site)
    assert is_present(answer)
    assert after(answer) == published("a", b"1", qos=1, packet_id=1)
    assert not is_present((await opened(site, client_id="new"))[1])


async def test_connection_without_connack_is_replaced(site: MqttSite, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowClaim(monkeypatch)
    old, new = site.client(MQTT_5), site.client(MQTT_5)
    assert await old.connect("c", session_expiry=60) == b""
    assert await new.connect("c", session_expiry=60) == b""
    assert old.take()[:4:3] == b"\x20\x88"
    await slow.go()
    assert new.take()[:4:3] == b"\x20\0"


async def test_worker_that_has_lost_the_client_ends_the_connection(site: MqttSite, monkeypatch: pytest.MonkeyPatch) -> None:
    async def attach(*_: Any) -> bool:
        return False

    client, _ = await opened(site, MQTT_5)
    await client.subscribe(FilterOptions("a", 1))
    client.lose()
    monkeypatch.setattr(memory_sessions.MemorySessions, "attach", attach)
    client, answer = await opened(site, MQTT_5)
    assert after(answer) == b"\xe0\1\x8e"
    assert client.is_closed()
