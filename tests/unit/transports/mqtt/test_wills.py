"""The wills of MQTT clients: when they are published, with which fields, and with which rights."""

import asyncio
import re
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import structlog

from push1st.apps.files import Files
from push1st.brokers import memory_sessions
from push1st.brokers.sessions import DueSession, Owner, SavedWill
from push1st.config.model import Authorize, Webhook
from push1st.errors import Refused
from push1st.hooks import Decision
from push1st.hooks.events import Publishing
from push1st.protocols.mqtt import encode
from push1st.protocols.mqtt.packets import MQTT_5, MQTT_311, ConnectPacket, FilterOptions, Will
from push1st.transports.mqtt import wills
from push1st.transports.mqtt.wills import MAX_PENDING
from tests.support import mqtt_packets as packets
from tests.support.loop import Ticking, turns
from tests.support.mqtt_site import MqttClient, MqttSite, published
from tests.support.node import APP, app_config

DISCONNECT = b"\xe0\0"
BYE = encode.user_property("event", "bye")


@pytest.fixture
def site() -> MqttSite:
    return MqttSite()


async def reader(site: MqttSite, version: int = MQTT_311, **fields: Any) -> MqttClient:
    """Returns a client that may read all channels, and is subscribed to public ones."""
    client = await site.connected(version, "reader", username="x", password=site.token("*"), **fields)
    await client.subscribe("#")
    client.take()
    return client


def reconfigure(site: MqttSite, **changes: Any) -> None:
    config = app_config(**changes)
    site.node.apps = Files([config])
    site.node.configure(config)


async def keep_silent(site: MqttSite, client: MqttClient) -> None:
    site.pass_seconds(20)


async def stop(site: MqttSite, client: MqttClient) -> None:
    client.connection.leave(4200, "Server is stopping, reconnect")


async def abort(site: MqttSite, client: MqttClient) -> None:
    client.connection.abort()
    client.lose()


async def take_over(site: MqttSite, client: MqttClient) -> None:
    await site.connected(MQTT_5, "c", username="x", password=site.token("*", sub="ann"))


async def terminate(site: MqttSite, client: MqttClient) -> None:
    await site.node.terminate(site.world.app, "ann")


async def exceed_outbox(site: MqttSite, client: MqttClient) -> None:
    client.connection.pause_writing()


async def lose(site: MqttSite, client: MqttClient) -> None:
    client.lose()


async def close_output(site: MqttSite, client: MqttClient) -> None:
    client.connection.eof_received()


async def fail(site: MqttSite, client: MqttClient) -> None:
    client.connection.fail()


def sending(data: str) -> Callable[[MqttSite, MqttClient], Any]:
    async def send(site: MqttSite, client: MqttClient) -> None:
        await client.send(bytes.fromhex(data))

    return send


ENDS = {
    "the socket is lost": lose,
    "the client closes the socket": close_output,
    "the keep alive passes": keep_silent,
    "the client sends an invalid packet": sending("f0 00"),
    "the client breaks the protocol": sending("62 02 00 01 " + "32 06 00 01 61 00 00 00"),
    "DISCONNECT requests the will": sending("e0 01 04"),
    "DISCONNECT has another reason code": sending("e0 01 80"),
    "the client does not read": exceed_outbox,
    "the user is terminated": terminate,
    "another connection takes over": take_over,
    "the server stops": stop,
    "the server stops at once": abort,
    "the server fails": fail,
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
async def test_will_is_published_once(site: MqttSite, end: Callable[[MqttSite, MqttClient], Any]) -> None:
    witness = await reader(site, keep_alive=0)
    fields = {"keep_alive": 10, "username": "x", "password": site.token("*", sub="ann"), "will": Will("w", b"gone")}
    client = await site.connected(MQTT_5, "c", **fields)
    await end(site, client)
    await turns()
    client.lose()
    await turns()
    assert witness.take().count(published("w", b"gone")) == 1


@pytest.mark.parametrize("version", [MQTT_311, MQTT_5])
async def test_normal_disconnect_discards_the_will(site: MqttSite, version: int) -> None:
    witness = await reader(site)
    client = await site.connected(version, will=Will("w", b"gone"))
    await client.send(DISCONNECT)
    client.lose()
    await turns()
    assert witness.take() == b""


async def test_will_of_a_rejected_client_is_not_published() -> None:
    site = MqttSite(app_config(authorize=(Authorize(url="http://127.0.0.1/", on=frozenset(("connect",))),)))
    witness = await reader(site)
    site.world.hooks.decision = Decision(Refused(403, "no"))
    client = site.client()
    await client.connect("c", will=Will("w", b"gone"))
    client.lose()
    await turns()
    assert witness.take() == b""


async def test_will_has_its_fields(site: MqttSite) -> None:
    witness = await site.connected(MQTT_5, "reader")
    await witness.subscribe(FilterOptions("w", 2, retain_as_published=True))
    properties = b"\x03" + encode.string("text/plain") + BYE
    will = Will("w", b"\xff", 2, True, 0, properties, 30)
    client = await site.connected(MQTT_5, will=will)
    client.lose()
    await turns()
    sent = published("w", b"\xff", MQTT_5, qos=2, retain=True, packet_id=1, properties=properties, expiry=30)
    assert witness.take() == sent
    assert (
        await (await site.connected(MQTT_5, "late")).subscribe(FilterOptions("w", 2)) == bytes.fromhex("90 04 00 01 00 02") + sent
    )


async def test_old_connection_ends_before_the_new_one_begins(site: MqttSite) -> None:
    witness = await reader(site)
    await site.connected(MQTT_311, "c", will=Will("state", b"offline", 0, True))
    client = await site.connected(MQTT_311, "c", will=Will("state", b"offline", 0, True))
    await client.publish("state", b"online", retain=True)
    assert witness.take() == published("state", b"offline") + published("state", b"online")


async def test_hooks_get_the_will_of_the_ended_client() -> None:
    site = MqttSite(app_config(webhooks=(Webhook(url="http://127.0.0.1/", events=("client_event",)),)))
    client = await site.connected(MQTT_5, will=Will("w", b"gone", expiry=30, properties=BYE))
    id = client.connection._session.client.id  # type: ignore[union-attr]
    client.lose()
    (event,) = [one for one in site.world.hooks.hook_events if one.kind == "client-event"]
    assert (event.channel, event.socket_id, event.event, event.data) == ("w", id, "bye", b'"gone"')


# Rights


@pytest.mark.parametrize(
    ("changes", "code", "reason"),
    [
        ({"enable": False}, 0x87, "App is disabled"),
        ({"channels": frozenset(("public",))}, 0x87, "this app has no private channels"),
        ({"limits": {"payload": 3}}, 0x97, "the payload has 4 bytes, the limit is 3"),
        ({"limits": {"event_name": 2}}, 0x83, "an event name has 1 to 2 characters, and does not begin with pusher:"),
    ],
)
async def test_will_needs_the_right_when_it_is_published(site: MqttSite, changes: dict[str, Any], code: int, reason: str) -> None:
    witness = await reader(site)
    site.node.refusals.enable(site.clock.monotonic, ())
    password = site.token("private-w")
    client = await site.connected(MQTT_5, password=password, will=Will("private-w", b"gone", properties=BYE))
    reconfigure(site, **changes)
    with structlog.testing.capture_logs() as lines:
        client.lose()
    await turns()
    assert witness.take() == b""
    (line,) = [one for one in lines if one["event"] == "will refused"]
    assert (line["code"], line["reason"], line["topic"], line["client_id"]) == (code, reason, "private-w", "c")
    assert sum(site.metrics.refusals.values()) == 1
    assert not site.failures


async def test_will_of_a_removed_app_is_not_published(site: MqttSite) -> None:
    client = await site.connected(will=Will("w", b"gone"))
    site.node.apps = Files([])
    client.lose()
    assert site.metrics.refusals["not-authorized"] == 1


async def test_will_of_an_anonymous_client_needs_the_setting_for_anonymous_clients() -> None:
    site = MqttSite(anonymous_push=frozenset())
    assert await site.client().connect(will=Will("w", b"gone")) == bytes.fromhex("20 02 00 05")
    witness = await reader(site)
    client = await site.connected(username="x", password=site.token("a"), will=Will("w", b"gone"))
    client.lose()
    await turns()
    assert witness.take() == published("w", b"gone")


async def test_backend_decides_about_the_will() -> None:
    site = MqttSite(app_config(authorize=(Authorize(url="http://127.0.0.1/", on=frozenset(("publish",))),)))
    witness = await reader(site)
    site.world.hooks.decision = Decision(data=b'"changed"')
    will = Will("private-w", b"gone")
    password = site.token("a", sub="ann")
    first = await site.connected(MQTT_311, "1", username="x", password=password, will=will)
    second = await site.connected(MQTT_311, "2", username="x", password=password, will=will)
    id = first.connection._session.client.id  # type: ignore[union-attr]
    first.lose()
    await turns()
    assert witness.take() == published("private-w", b"changed")
    assert site.world.hooks.asked == [
        Publishing("app-test", id, "192.0.2.1", "private-w", "message", msgspec.Raw(b'"gone"'), "ann")
    ]
    site.world.hooks.decision = Decision(Refused(403, "no"))
    second.lose()
    await turns()
    assert witness.take() == b""
    assert site.metrics.refusals["not-authorized"] == 1


async def test_state_of_a_bridge_is_dropped(site: MqttSite) -> None:
    witness = await reader(site)
    client = await site.connected(MQTT_311, "bridge", will=Will("$SYS/broker/connection/x/state", b"0", 1, True))
    client.lose()
    await turns()
    assert witness.take() == b""
    assert not site.metrics.refusals
    will = SavedWill("$SYS/broker/connection/x/state", b"0", 1, True)
    due = DueSession(APP, "bridge", Owner("anonymous"), will, True)
    site.clients.wills.publish(APP, "bridge", due.owner, will, due)
    assert site.clients.wills.published == [due]  # otherwise the broker would return the session again and again


async def test_will_is_dropped_if_the_broker_is_away() -> None:
    site = MqttSite(slow=True)
    client = await site.connected(will=Will("w", b"gone"))
    site.world.broker.fail["publish"] = Refused(503, "the broker is away")
    client.lose()
    await turns()
    assert site.metrics.refusals["unspecified-error"] == 1
    assert not site.failures


# Many wills


def topics(data: bytes) -> list[int]:
    """Returns the numbers of the topics `w/NUMBER!` in the packets of a client."""
    return [int(one) for one in re.findall(rb"w/(\d+)!", data)]


async def devices(site: MqttSite, count: int, **fields: Any) -> list[MqttClient]:
    return [await site.connected(MQTT_311, f"d{n}", will=Will(f"w/{n}!", b""), **fields) for n in range(count)]


async def test_turns_share_the_wills_of_many_clients(site: MqttSite) -> None:
    witness = await reader(site)
    lost = await devices(site, 100)
    site.context.turn.clock = Ticking()
    for client in lost:
        client.lose()
    site.node.fanout.flush()
    assert topics(witness.take()) == list(range(5))
    await turns()
    found = topics(witness.take())
    while len(found) < 95:
        await turns()
        found += topics(witness.take())
    assert found == list(range(5, 100))


async def test_waiting_will_comes_before_the_messages_of_the_next_connection(site: MqttSite) -> None:
    witness = await reader(site)
    lost = await devices(site, 50)
    site.context.turn.clock = Ticking()
    for client in lost:
        client.lose()
    client = site.client()
    data = packets.connect(ConnectPacket(MQTT_311, "d49")) + published("w/49!", b"online")
    client.connection.data_received(data)
    site.context.turn._run()
    site.node.fanout.flush()
    found = witness.take()
    assert topics(found) == [0, 1, 2, 3, 4, 49, 49]
    assert found.endswith(published("w/49!", b"") + published("w/49!", b"online"))
    await site.clients.close()
    site.node.fanout.flush()
    assert topics(witness.take()) == list(range(5, 49))


async def test_few_wills_wait_for_the_backend_at_once() -> None:
    site = MqttSite(app_config(authorize=(Authorize(url="http://127.0.0.1/", on=frozenset(("publish",))),)))
    witness = await reader(site)
    lost = await devices(site, 250)
    hooks = site.world.hooks
    hooks.waits = asyncio.get_running_loop().create_future()
    for client in lost:
        client.lose()
    await turns()
    assert len(hooks.asked) == MAX_PENDING
    hooks.waits.set_result(None)
    hooks.waits = None
    found: list[int] = []
    while len(found) < 250:
        await turns()
        found += topics(witness.take())
    assert sorted(found) == list(range(250))


async def test_wills_that_wait_have_a_bound(site: MqttSite, monkeypatch: pytest.MonkeyPatch) -> None:
    witness = await reader(site)
    monkeypatch.setattr(wills, "MAX_BYTES", 20_000)
    lost = await devices(site, 50)
    site.context.turn.clock = Ticking()
    for client in lost:
        client.lose()
    await site.clients.close()
    await turns()
    assert topics(witness.take()) == list(range(25))
    assert site.metrics.refusals["quota-exceeded"] == 25


async def test_defect_in_a_will_is_logged(site: MqttSite, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await site.connected(will=Will("w", b"gone"))
    monkeypatch.setattr(wills, "command_of", None)
    client.lose()
    assert isinstance(site.failures.pop(), TypeError)
    assert site.metrics.connections["mqtt"] == 0


async def test_all_wills_that_are_due_are_published_in_the_same_second(site: MqttSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_sessions, "DUE_WORK", 3)
    witness = await reader(site)
    for number in range(20):
        will = Will(f"w/{number}!", b"", delay=5)
        client = await site.connected(MQTT_5, f"d{number}", clean=False, session_expiry=60, will=will)
        client.lose()
    site.pass_seconds(4)
    await turns(20)
    assert witness.take() == b""
    site.pass_seconds(1)
    await turns(20)
    assert topics(witness.take()) == list(range(20))
