"""The metrics of MQTT clients, as `GET /metrics` shows them."""

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from push1st.core.tap import Answered, Tap, TapFilter
from push1st.eager import resolve
from push1st.errors import Refused
from push1st.messages import Request
from push1st.protocols.mqtt import encode
from push1st.protocols.mqtt.packets import MQTT_5, MQTT_311, FilterOptions
from push1st.transports.mqtt import resuming
from push1st.transports.mqtt.session import MqttSession
from tests.support.mqtt_site import MqttClient, MqttSite


@pytest.fixture
def site() -> MqttSite:
    return MqttSite()


async def read(site: MqttSite) -> dict[tuple[str, ...], float]:
    """Returns the value of each series whose name begins with `push1st_mqtt_`, without this prefix."""
    answer = await resolve(site.serve(Request("GET", "/metrics", "", b"", "", 0)))
    return {
        (sample.name.removeprefix("push1st_mqtt_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
        if sample.name.startswith("push1st_mqtt_")
    }


async def subscriber(site: MqttSite, topic: str = "t", qos: int = 1, **fields: Any) -> MqttClient:
    client = await site.connected(MQTT_5, "subscriber", **fields)
    await client.subscribe(FilterOptions(topic, qos))
    return client


async def test_messages_in_flight_and_waiting_messages_are_counted(site: MqttSite) -> None:
    client, publisher = await subscriber(site, receive_maximum=2), await site.connected(client_id="publisher")
    for _ in range(5):
        await publisher.publish("t", qos=1, packet_id=1)
    found = await read(site)
    assert (found["sessions", "connected"], found["inflight",], found["queued",]) == (2, 2, 3)
    await client.send(encode.acknowledgements(encode.PUBACK, (1, 2)))
    found = await read(site)
    assert (found["inflight",], found["queued",]) == (2, 1)
    client.lose()
    found = await read(site)
    assert (found["sessions", "connected"], found["inflight",], found["queued",]) == (1, 0, 0)


async def test_absent_sessions_and_repeated_packets_are_counted(site: MqttSite) -> None:
    client, publisher = await subscriber(site, session_expiry=60), await site.connected(client_id="publisher")
    for _ in range(2):
        await publisher.publish("t", qos=1, packet_id=1)
    client.lose()
    found = await read(site)
    assert (found["sessions", "connected"], found["sessions", "absent"], found["resent_total",]) == (1, 1, 0)
    client = site.client(MQTT_5)
    await client.connect("subscriber", clean=False, session_expiry=60)
    found = await read(site)
    assert (found["sessions", "connected"], found["sessions", "absent"], found["resent_total",]) == (2, 0, 2)
    assert found["inflight",] == 2


async def test_message_that_expires_before_its_client_returns_is_dropped(site: MqttSite) -> None:
    client, publisher = await subscriber(site, session_expiry=60), await site.connected(MQTT_5, "publisher")
    client.lose()
    await publisher.publish("t", qos=1, packet_id=1, expiry=1)
    site.clock.advance(2)
    await site.client(MQTT_5).connect("subscriber", clean=False, session_expiry=60)
    assert (await read(site))["dropped_total", "expired"] == 1


async def test_message_beyond_the_queue_is_dropped() -> None:
    site = MqttSite(queue=1)
    await subscriber(site, receive_maximum=1)
    publisher = await site.connected(client_id="publisher")
    for _ in range(4):
        await publisher.publish("t", qos=1, packet_id=1)
    assert (await read(site))["dropped_total", "queue-full"] == 2


async def test_message_that_expires_while_it_waits_is_dropped(site: MqttSite) -> None:
    client, publisher = await subscriber(site, receive_maximum=1), await site.connected(MQTT_5, "publisher")
    await publisher.publish("t", qos=1, packet_id=1)
    await publisher.publish("t", qos=1, packet_id=1, expiry=1)
    site.clock.advance(2)
    await client.send(encode.acknowledgements(encode.PUBACK, (1,)))
    assert (await read(site))["dropped_total", "expired"] == 1


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("aliases", [0, 1])
async def test_message_over_the_maximum_packet_size_is_dropped(site: MqttSite, qos: int, aliases: int) -> None:
    await subscriber(site, qos=qos, maximum_packet_size=64, topic_alias_maximum=aliases)
    publisher, before = await site.connected(client_id="publisher"), await read(site)
    await publisher.publish("t", b"x" * 100, qos=1, packet_id=1)
    found = await read(site)
    assert found["dropped_total", "too-large"] == before["dropped_total", "too-large"] + 1
    assert found["inflight",] == 0


async def test_event_of_a_channel_that_no_topic_names_is_counted_once(site: MqttSite) -> None:
    for number, version in enumerate((MQTT_311, MQTT_5)):
        await (await site.connected(version, f"c{number}")).subscribe("#")
    before = await read(site)
    site.world.publish("a+b", b"1")
    assert (await read(site))["dropped_total", "untranslatable"] == before["dropped_total", "untranslatable"] + 1


async def test_takeover_is_counted(site: MqttSite) -> None:
    await site.connected()
    await site.connected()
    found = await read(site)
    assert (found["takeovers_total",], found["sessions", "connected"]) == (1, 1)


async def test_all_reasons_exist_from_the_start(site: MqttSite) -> None:
    found = await read(site)
    assert {reason for name, *labels in found if name == "dropped_total" for reason in labels} >= {
        "expired",
        "over-limit",
        "queue-full",
        "too-large",
        "trimmed",
        "untranslatable",
    }
    assert found["resent_total",] == 0


@pytest.mark.parametrize(
    ("end", "label"),
    [
        (b"\xe0\0", "normal-disconnection"),
        (b"\xe0\1\4", "disconnect-with-will-message"),
        (b"\xe0\1\x8b", "malformed-packet"),
        (b"\xe0\1\x80", "unspecified-error"),
        (b"\xe0\1\x83", "other"),
        (b"\x30", 1006),
        (b"\xf1\0", "protocol-error"),
    ],
)
async def test_the_end_of_a_connection_is_counted_by_its_reason_code(site: MqttSite, end: bytes, label: int | str) -> None:
    client = await site.connected(MQTT_5)
    await client.send(end)
    client.lose()
    assert site.metrics.closed == {("mqtt5", label): 1}
    assert sum(site.metrics.connection_seconds.counts) == 1


async def test_a_client_that_is_taken_over_is_counted(site: MqttSite) -> None:
    await site.connected(MQTT_5)
    await site.connected(MQTT_5)
    assert site.metrics.closed == {("mqtt5", "session-taken-over"): 1}


async def test_subscriptions_are_counted_by_type_of_channel(site: MqttSite) -> None:
    client = await site.connected(MQTT_5)
    await client.subscribe("t", "u")
    await client.unsubscribe("t")
    assert (site.metrics.subscribes, site.metrics.unsubscribes) == ({"public": 2}, {"public": 1})
    client.lose()
    assert site.metrics.unsubscribes == {"public": 2}


async def test_a_rejected_message_counts_for_its_app(site: MqttSite) -> None:
    client = await site.connected(MQTT_5)
    await client.publish("$SYS/x", qos=1, packet_id=1)
    assert site.world.app.counts.refusals == 1


async def test_duration_of_a_connection_does_not_depend_on_the_ticks_of_the_sweep(site: MqttSite) -> None:
    site.clock.advance(0.4)
    client = await site.connected(MQTT_5)
    site.clock.advance(0.603)
    client.lose()
    assert site.metrics.connection_seconds.sum == pytest.approx(0.603)


async def test_client_whose_session_is_not_restored_is_shown_with_its_end(
    site: MqttSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(session: MqttSession) -> None:
        raise Refused(503, "the broker is away")

    client = await site.connected(MQTT_5, "c", session_expiry=60)
    client.lose()
    node = site.world.node
    node.tap = Tap("node-1", site.clock, node.used, lambda *_: Answered(0), lambda _: None)
    node.tap.watch("1", TapFilter())
    monkeypatch.setattr(resuming, "restore", fail)
    await site.client(MQTT_5).connect("c", clean=False, session_expiry=60)
    assert [event.what for event in node.tap.watches[0].events] == ["connected", "disconnected"]
    assert site.metrics.closed == {("mqtt5", 1006): 1}
