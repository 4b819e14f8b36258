"""MQTT clients that are lost in one turn, so that the sessions of some of them end in later turns (`transports/ends.py`)."""

import re
from collections.abc import Callable

import pytest

from push1st.protocols.mqtt.packets import MQTT_311, FilterOptions, Will
from push1st.transports.ends import Ends
from push1st.transports.mqtt.clients import MAX_TAKEOVERS
from tests.support.loop import Ticking, turns
from tests.support.mqtt_site import MqttClient, MqttSite, published
from tests.support.node import app_config

PING, PONG = b"\xc0\0", b"\xd0\0"
AFTER = 100
"""the number of turns that the ends of other connections take"""


@pytest.fixture
def site() -> MqttSite:
    return MqttSite()


async def lasting(site: MqttSite, client_id: str, filter: str = "", will: Will | None = None) -> tuple[MqttClient, bytes]:
    """Returns a client whose session outlives its connection, and the answer to its CONNECT."""
    client = site.client(MQTT_311)
    answer = await client.connect(client_id, clean=False, will=will, username="x", password=site.token("*"))
    if filter:
        await client.subscribe(FilterOptions(filter, 1))
    return client, answer


def is_resumed(answer: bytes) -> bool:
    return answer[2] == 1


def lose(client: MqttClient) -> None:
    client.transport.abort()
    client.lose()


def end_input(client: MqttClient) -> None:
    if not client.connection.eof_received():
        client.transport.close()


def lose_after_the_input(client: MqttClient) -> None:
    end_input(client)
    lose(client)


class Idle:
    """A lost connection without a session."""

    def finish(self) -> None:
        pass


LOSSES = pytest.mark.parametrize("loss", [lose, end_input, lose_after_the_input])


def lose_all(site: MqttSite, *lost: MqttClient, loss: Callable[[MqttClient], None] = lose) -> None:
    """Loses connections. The session of the first one ends in this turn, and the others after `AFTER` turns."""
    site.context.ends = Ends(Ticking(1), site.context.failed)
    loss(lost[0])
    for _ in range(AFTER):
        site.context.ends.add(Idle())
    for client in lost[1:]:
        loss(client)


@LOSSES
async def test_messages_are_kept_until_the_session_is_stored(site: MqttSite, loss: Callable[[MqttClient], None]) -> None:
    first, _ = await lasting(site, "first", "a")
    second, _ = await lasting(site, "second", "a")
    lose_all(site, first, second, loss=loss)
    assert site.node.sessions is not None
    assert len(site.node.sessions) == 1
    assert site.world.publish("a", b"1") == 1  # a connected subscriber
    await turns(AFTER // 2)
    assert len(site.node.sessions) == 1
    await turns(AFTER)
    assert len(site.node.sessions) == 2
    site.world.publish("a", b"2")
    for client_id in ("first", "second"):
        _, answer = await lasting(site, client_id)
        assert is_resumed(answer)
        assert re.findall(rb"\0\x01a\0.(\d)", answer) == [b"1", b"2"]
    assert first.transport.late == second.transport.late == []
    assert not site.failures


@LOSSES
async def test_every_will_is_published_once(site: MqttSite, loss: Callable[[MqttClient], None]) -> None:
    witness = await site.connected(client_id="witness")
    await witness.subscribe("gone")
    lost = [await site.connected(client_id=f"c{number}", will=Will("gone", b"%d" % number)) for number in range(9)]
    lose_all(site, *lost, loss=loss)
    await turns(AFTER + 20)
    assert witness.take() == b"".join(published("gone", b"%d" % number) for number in range(9))
    assert site.metrics.connections["mqtt"] == 1


async def test_client_that_returns_before_its_session_ends_resumes_the_session(site: MqttSite) -> None:
    witness = await site.connected(client_id="witness")
    await witness.subscribe("gone")
    for number in range(MAX_TAKEOVERS + 1):
        first, _ = await lasting(site, "first")
        second, answer = await lasting(site, "second", "" if number else "a", Will("gone", b"%d" % number))
        assert is_resumed(answer) == (number > 0)
        lose_all(site, first, second)
    back, answer = await lasting(site, "second")
    assert is_resumed(answer)
    site.world.publish("a", b"1")
    site.node.fanout.flush()
    assert back.take() == b"\x32\6\0\x01a\0\x011"
    assert witness.take() == b"".join(published("gone", b"%d" % number) for number in range(MAX_TAKEOVERS + 1))
    assert site.metrics.mqtt_takeovers == 0
    assert len(site.context.open) == 2


async def test_clean_client_that_returns_before_its_session_ends_is_new(site: MqttSite) -> None:
    first, second = await site.connected(client_id="first"), await site.connected(client_id="second")
    await second.subscribe("a")
    lose_all(site, first, second)
    back = await site.connected(client_id="second")
    assert site.world.publish("a", b"1") == 0
    assert await back.send(PING) == PONG


async def test_lost_connections_do_not_count_for_the_limit_of_an_app() -> None:
    site = MqttSite(app_config({"connections": 2}))
    first, second = await site.connected(client_id="first"), await site.connected(client_id="second")
    lose_all(site, first, second)
    await site.connected(client_id="third")
    await site.connected(client_id="fourth")
    assert site.metrics.connections["mqtt"] == 2


async def test_waiting_sessions_end_when_the_server_stops(site: MqttSite) -> None:
    witness = await site.connected(client_id="witness")
    await witness.subscribe("gone")
    lost = [await site.connected(client_id=f"c{number}", will=Will("gone", b"%d" % number)) for number in range(4)]
    lose_all(site, *lost)
    for client in lost[1:]:
        client.connection.leave(4200, "Server is stopping, reconnect")
    site.node.fanout.flush()
    assert witness.take() == b"".join(published("gone", b"%d" % number) for number in range(4))
