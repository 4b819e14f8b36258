"""Clients of paho-mqtt, whose callbacks become calls that wait."""

import contextlib
import queue
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from tests.support.process import DEADLINE, wait_until

V31, V311, V5 = MQTTProtocolVersion.MQTTv31, MQTTProtocolVersion.MQTTv311, MQTTProtocolVersion.MQTTv5

SESSION_SECONDS = 3600
"""the Session Expiry Interval of a client of MQTT 5.0 that is not clean"""


class PahoClient:
    """A client. reason: the reason code of CONNACK. path: the path of a WebSocket, or of a Unix socket; "": TCP.

    tls: the TLS context of the client; None: no TLS. clean: whether the connection begins a new session; not for MQTT 5.0.
    """

    def __init__(
        self,
        version: MQTTProtocolVersion,
        client_id: str,
        username: str | None,
        password: str | None,
        path: str = "",
        tls: ssl.SSLContext | None = None,
        clean: bool = True,
    ) -> None:
        session = {} if version == V5 else {"clean_session": clean}
        self._connecting: dict[str, Any] = {}
        if version == V5 and not clean:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = SESSION_SECONDS
            self._connecting = {"clean_start": False, "properties": properties}
        self.reason = 0
        self.is_present = False
        transport = "tcp" if not path else "websockets" if path.startswith("/mqtt") else "unix"
        self._host = path if transport == "unix" else "127.0.0.1"
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id, protocol=version, transport=transport, **session)  # type: ignore[arg-type]
        if transport == "websockets":
            self._client.ws_set_options(path)
        if tls is not None:
            self._client.tls_set_context(tls)
        if username is not None or password is not None:
            self._client.username_pw_set(username, password)
        self._sent: list[paho.MQTTMessageInfo] = []
        self._answers: queue.Queue[list[int]] = queue.Queue()
        self._acknowledged: set[int] = set()
        """the packet ids of the acknowledged messages"""
        self.messages: queue.Queue[paho.MQTTMessage] = queue.Queue()
        self.ends: queue.Queue[int] = queue.Queue()
        client = self._client
        client.on_connect = self._connected
        client.on_subscribe = lambda _client, _data, _id, reasons, _properties: self._answers.put([one.value for one in reasons])
        client.on_unsubscribe = lambda _client, _data, _id, reasons, _properties: self._answers.put(
            [one.value for one in reasons]
        )
        client.on_message = lambda _client, _data, message: self.messages.put(message)
        client.on_publish = lambda _client, _data, id, _reason, _properties: self._acknowledged.add(id)
        client.on_disconnect = lambda _client, _data, _flags, reason, _properties: self.ends.put(reason.value)

    def _connected(self, _client: object, _data: object, flags: Any, reason: Any, _properties: object) -> None:
        self.is_present = flags.session_present
        self._answers.put([reason.value])

    def connect(self, port: int) -> int:
        """Connects; returns the reason code of CONNACK."""
        self._client.connect(self._host, port, keepalive=60, **self._connecting)
        self._client.loop_start()
        self.reason = self._answers.get(timeout=DEADLINE)[0]
        return self.reason

    def subscribe(
        self, *filters: str, options: SubscribeOptions | None = None, qos: int = 0, properties: Any = None
    ) -> list[int]:
        """Subscribes; returns the reason codes of SUBACK.

        options, properties: only for MQTT 5.0. The default of the options has the QoS `qos`.
        """
        wanted: Any = [(one, qos) for one in filters]
        if self._client._protocol == V5:
            wanted = [(one, options or SubscribeOptions(qos)) for one in filters]
        self._client.subscribe(wanted, properties=properties)
        return self._answers.get(timeout=DEADLINE)

    def unsubscribe(self, *filters: str) -> list[int]:
        self._client.unsubscribe(list(filters))
        return self._answers.get(timeout=DEADLINE)

    def publish(self, topic: str, payload: bytes | str, **more: Any) -> None:
        sent = self._client.publish(topic, payload, **more)
        kept = (MQTTErrorCode.MQTT_ERR_QUEUE_SIZE, MQTTErrorCode.MQTT_ERR_NO_CONN) if more.get("qos") else ()
        assert sent.rc in (MQTTErrorCode.MQTT_ERR_SUCCESS, *kept)  # paho sends kept messages later
        self._sent.append(sent)

    def until_acknowledged(self) -> None:
        """Waits until the server has acknowledged all messages of this client."""
        # `wait_for_publish` fails for a message that paho has kept while it was not connected, although paho sends it later.
        # After each failed attempt to connect, paho waits twice as long.
        wait_until(lambda: not {sent.mid for sent in self._sent} - self._acknowledged, "all are acknowledged", 4 * DEADLINE)

    def expect(self) -> tuple[str, bytes]:
        """Returns the topic and the payload of the next message."""
        message = self.messages.get(timeout=DEADLINE)
        return message.topic, bytes(message.payload)

    def stay_away(self) -> None:
        """Lets the client not reconnect after the end of its connection."""
        self._client.reconnect_delay_set(60, 60)

    def expect_end(self) -> int:
        """Waits until the server ends the connection; returns the reason code."""
        self.stay_away()
        return self.ends.get(timeout=DEADLINE)

    def set_will(self, topic: str, payload: bytes, **more: Any) -> None:
        """Sets the will, before `connect`. more: further arguments of paho's `will_set`."""
        self._client.will_set(topic, payload, **more)

    def lose(self) -> None:
        """Ends the connection without DISCONNECT."""
        self._client.reconnect_delay_set(60, 60)
        connection: Any = self._client.socket()
        connection.shutdown(socket.SHUT_RDWR)

    def close(self, reason: int = 0) -> None:
        """Ends the connection with DISCONNECT. reason: its reason code; 0 in versions before MQTT 5.0."""
        self._client.disconnect(ReasonCode(PacketTypes.DISCONNECT, identifier=reason) if reason else None)
        self._client.loop_stop()
        self._client._reset_sockets()  # otherwise, the garbage collector may find them before it finds the client


@contextlib.contextmanager
def paho_client(
    port: int,
    version: MQTTProtocolVersion = V5,
    client_id: str = "",
    username: str | None = "app-key",
    password: str | None = None,
    accepted: bool = True,
    path: str = "",
    tls: ssl.SSLContext | None = None,
    clean: bool = True,
    will: tuple[str, bytes] | None = None,
    **more: Any,
) -> Iterator[PahoClient]:
    """Opens a connection.

    accepted: whether the server must accept the client. path, tls, clean: see `PahoClient`. will, more: see
    `PahoClient.set_will`.
    """
    client = PahoClient(version, client_id, username, password, path, tls, clean)
    if will is not None:
        client.set_will(*will, **more)
    try:
        reason = client.connect(port)
        assert (reason == 0) == accepted, reason
        yield client
    finally:
        client.close()
