"""A worker that serves MQTT clients, whose connections use transports that store what is written."""

from typing import Any

import msgspec
from websockets.frames import Opcode

from push1st import auth
from push1st.config.model import PROTOCOLS, AppConfig, ServerConfig
from push1st.config.mqtt import Mqtt
from push1st.protocols.mqtt.packets import (
    MQTT_311,
    ConnectPacket,
    FilterOptions,
    PublishPacket,
    SubscribePacket,
    UnsubscribePacket,
)
from push1st.transports.mqtt.connection import MqttConnection
from tests.support import mqtt_packets as packets
from tests.support.frames import frames, masked
from tests.support.loop import turns
from tests.support.node import APP, SECRET
from tests.support.signing import access_token
from tests.support.transport import Site, Transport

SETTINGS = Mqtt(app=APP, anonymous_push=Mqtt().push)


class MqttClient:
    """A connection of a client, which sends packets of one version."""

    def __init__(self, site: "MqttSite", version: int, transport: Transport) -> None:
        self.version = version
        self.transport = transport
        self.connection = MqttConnection(site.clients)
        self.transport.protocol = self.connection
        self.connection.connection_made(self.transport)

    async def send(self, data: bytes) -> bytes:
        """Sends bytes; returns what the server writes within this turn of the loop."""
        self.connection.data_received(data)
        await turns()
        return self.take()

    def take(self) -> bytes:
        """Returns the bytes that the server has written since the last call."""
        return self.transport.take()

    def is_closed(self) -> bool:
        """Whether the server has ended the connection."""
        return self.transport.closed or self.transport.ended or self.transport.aborted

    def is_held(self) -> bool:
        """Whether the server does not read from the connection."""
        return not self.transport.reading

    def frames(self) -> list[tuple[Opcode, bytes]]:
        """Returns the frames of the WebSocket that the server has written since the last call of `take` or `frames`."""
        return frames(self.transport.take())

    async def connect(self, client_id: str = "c", **fields: Any) -> bytes:
        """Sends CONNECT; returns the answer."""
        return await self.send(packets.connect(ConnectPacket(self.version, client_id, **fields)))

    async def subscribe(self, *filters: str | FilterOptions, subscription_id: int = 0) -> bytes:
        """Sends SUBSCRIBE with the packet id 1; returns the answer."""
        wanted = tuple(one if isinstance(one, FilterOptions) else FilterOptions(one) for one in filters)
        return await self.send(packets.subscribe(SubscribePacket(1, wanted, subscription_id), self.version))

    async def unsubscribe(self, *filters: str) -> bytes:
        """Sends UNSUBSCRIBE with the packet id 2; returns the answer."""
        return await self.send(packets.unsubscribe(UnsubscribePacket(2, filters), self.version))

    async def publish(self, topic: str, payload: bytes = b"x", **fields: Any) -> bytes:
        """Sends PUBLISH; returns what the client itself receives."""
        return await self.send(packets.message(PublishPacket(topic, payload, **fields), self.version))

    def lose(self) -> None:
        """Ends the connection without DISCONNECT."""
        self.connection.connection_lost(None)


class MqttWebSocketClient(MqttClient):
    """A connection over a WebSocket, after the handshake. answer: the head of the server's answer."""

    def __init__(self, transport: Transport, version: int) -> None:
        self.version = version
        self.transport = transport
        self.connection = transport.protocol
        head, _, rest = transport.take().partition(b"\r\n\r\n")
        self.answer = head.decode().split("\r\n")
        assert rest == b""

    async def send(self, data: bytes) -> bytes:
        return await self.send_frames(masked(Opcode.BINARY, data))

    async def send_frames(self, data: bytes) -> bytes:
        """Sends frames of the WebSocket; returns the payloads of the frames that the server writes within this turn."""
        return await super().send(data)

    def take(self) -> bytes:
        found = frames(self.transport.take())
        return b"".join(payload for opcode, payload in found if opcode is Opcode.BINARY)


class MqttSite(Site):
    """A worker, with one default app and without TLS."""

    def __init__(self, *apps: AppConfig, slow: bool = False, **settings: Any) -> None:
        mqtt = msgspec.structs.replace(SETTINGS, **settings)
        super().__init__(*apps, server=ServerConfig(mqtt=mqtt, proto=frozenset(PROTOCOLS)), slow=slow)

    def client(self, version: int = MQTT_311, peer: object = ("192.0.2.1", 40_000)) -> MqttClient:
        return MqttClient(self, version, Transport(peer))

    async def websocket_client(
        self, *headers: str, path: str = "/mqtt", version: int = MQTT_311, subprotocol: str = "mqtt"
    ) -> MqttWebSocketClient:
        """Opens a WebSocket, whose handshake must succeed."""
        transport = await self.websocket(path, f"Sec-WebSocket-Protocol: {subprotocol}", *headers)
        return MqttWebSocketClient(transport, version)

    async def connected(self, version: int = MQTT_311, client_id: str = "c", **fields: Any) -> MqttClient:
        """Returns a client that the server has accepted."""
        client = self.client(version)
        answer = await client.connect(client_id, **fields)
        assert answer[:4:3] == b"\x20\0", answer.hex(" ")
        return client

    def token(self, *channels: str, origin: str = "*", ttl: int = 0, sub: str | None = None) -> bytes:
        """Returns an access token of the app as a password."""
        if sub is None:
            return auth.access_token(SECRET, APP, origin, list(channels), ttl, self.clock.wall() / 1e9).encode()
        claims = {"app": APP, "origin": origin, "channel": list(channels), "sub": sub}
        return access_token(claims, SECRET).encode()


def published(topic: str, payload: bytes, version: int = MQTT_311, **fields: Any) -> bytes:
    """Returns the PUBLISH packet that a subscriber receives."""
    return packets.message(PublishPacket(topic, payload, **fields), version)
