"""Connections that begin with a PROXY header: the hand-over, deadlines, and the end."""

from typing import Any

import pytest

from push1st.config.addresses import Networks
from push1st.config.model import Config, ServerConfig
from push1st.protocols.mqtt.packets import MQTT_311, ConnectPacket
from push1st.transports.mqtt.connection import MqttConnection
from push1st.transports.mqtt.proxied import ProxyConnection
from tests.support import mqtt_packets as packets
from tests.support.loop import turns
from tests.support.mqtt_site import MqttSite
from tests.support.transport import Transport

HEADER = b"PROXY TCP4 203.0.113.7 203.0.113.1 40000 1883\r\n"
PROXY = ("192.0.2.1", 40_000)


@pytest.fixture
def site() -> MqttSite:
    site = MqttSite()
    proxies = Networks.parse(("192.0.2.1",))
    site.context.config = Config(server=ServerConfig(proxies=proxies, mqtt=site.clients.settings), apps=site.config.apps)
    return site


def opened(site: MqttSite, peer: Any = PROXY) -> tuple[ProxyConnection, Transport]:
    transport = Transport(peer)
    connection = ProxyConnection(site.clients, lambda: MqttConnection(site.clients), None, 10)
    transport.protocol = connection
    connection.connection_made(transport)
    return connection, transport


def receive(transport: Transport, data: bytes) -> bytes:
    """Passes bytes to a connection in pieces of the size that it requests, until the header ends; returns the remaining bytes."""
    while data and isinstance(transport.protocol, ProxyConnection) and not transport.aborted:
        buffer = transport.protocol.get_buffer(65_536)
        size = min(len(buffer), len(data))
        buffer[:size] = data[:size]
        transport.protocol.buffer_updated(size)
        data = data[size:]
    return data


async def test_connection_is_handed_over_with_the_address_of_the_header(site: MqttSite) -> None:
    connection, transport = opened(site)
    connect = packets.connect(ConnectPacket(MQTT_311, "c"))
    assert receive(transport, HEADER + connect) == connect
    assert site.context.open == {transport.protocol} != {connection}
    transport.protocol.data_received(connect)
    await turns()
    assert transport.take() == bytes.fromhex("20 02 00 00")
    assert transport.protocol._session.client.ip == "203.0.113.7"


async def test_header_must_arrive_in_time(site: MqttSite) -> None:
    connection, transport = opened(site)
    receive(transport, HEADER[:20])
    site.pass_seconds(9)
    early = transport.aborted
    site.pass_seconds(3)
    assert (early, transport.aborted) == (False, True)
    connection.connection_lost(None)
    assert site.metrics.cut_offs["silent"] == 1
    assert site.context.open == set()


async def test_peer_that_is_no_proxy_is_rejected(site: MqttSite) -> None:
    _, transport = opened(site, ("192.0.2.2", 40_000))
    assert transport.aborted
    assert site.metrics.cut_offs["proxy-header"] == 1


async def test_invalid_header_is_counted_once(site: MqttSite) -> None:
    connection, transport = opened(site)
    receive(transport, b"GET / HTTP/1.1\r\n")
    assert transport.aborted
    connection.get_buffer(100)
    connection.buffer_updated(1)
    assert site.metrics.cut_offs["proxy-header"] == 1


async def test_connection_that_is_already_reset_is_not_counted(site: MqttSite) -> None:
    _, transport = opened(site, None)
    assert transport.aborted
    assert site.metrics.cut_offs["proxy-header"] == 0


async def test_input_after_a_rejected_address_is_discarded(site: MqttSite) -> None:
    site = MqttSite(whitelist=Networks.parse(("10.0.0.0/8",)))
    client = site.client()
    assert client.is_closed()
    assert await client.send(packets.connect(ConnectPacket(MQTT_311, "c"))) == b""
    assert site.failures == []


async def test_stopping_server_ends_the_connection(site: MqttSite) -> None:
    connection, transport = opened(site)
    connection.leave(4200, "")
    assert transport.aborted
