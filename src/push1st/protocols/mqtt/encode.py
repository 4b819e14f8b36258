"""Encodes the packets that the server sends, in MQTT 3.1, 3.1.1 and 5.0. Pure.

A PUBLISH packet is a template: the bytes before and after its packet id. So the bytes are encoded once for all receivers.
Properties have the order of mosquitto's packets, because the tests of other projects compare bytes.
"""

from collections.abc import Iterable

import msgspec

from push1st.protocols.mqtt.packets import (
    MQTT_5,
    MQTT_31,
    SUCCESS,
    ConnackPacket,
    ReasonCode,
    SubackPacket,
    UnsubackPacket,
)

PUBACK = 0x40
PUBREC = 0x50
PUBREL = 0x62
PUBCOMP = 0x70
"""the first bytes of the acknowledgements (§2.1)"""
PINGRESP = b"\xd0\x00"
DUP = 0x08

RETURN_CODES = {
    ReasonCode.SUCCESS: 0,
    ReasonCode.UNSUPPORTED_PROTOCOL_VERSION: 1,
    ReasonCode.CLIENT_IDENTIFIER_NOT_VALID: 2,
    ReasonCode.SERVER_UNAVAILABLE: 3,
    ReasonCode.QUOTA_EXCEEDED: 3,
    ReasonCode.BAD_USER_NAME_OR_PASSWORD: 4,
}
"""the return codes of CONNACK in MQTT 3.1 and 3.1.1; all other reasons are 5, *not authorized*"""
NOT_AUTHORIZED = 5
FAILURE = 0x80
"""the only negative return code of SUBACK in MQTT 3.1 and 3.1.1 [MQTT3-3.9.3-2]"""


def varint(value: int) -> bytes:
    """Encodes a Variable Byte Integer in its shortest form [MQTT-1.5.5-1]."""
    if value < 0x80:
        return value.to_bytes(1, "big")
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def string(text: str) -> bytes:
    """Encodes a UTF-8 string. `text`: has at most 65,535 bytes."""
    raw = text.encode()
    return len(raw).to_bytes(2, "big") + raw


def user_property(name: str, value: str) -> bytes:
    """Encodes a User Property."""
    return b"\x26" + string(name) + string(value)


def connack(packet: ConnackPacket, version: int) -> bytes:
    """Encodes CONNACK. MQTT 3.1 and 3.1.1 have none of the properties, and MQTT 3.1 has no Session Present."""
    if version != MQTT_5:
        present = packet.session_present and version != MQTT_31
        return bytes((0x20, 2, present, RETURN_CODES.get(packet.reason, NOT_AUTHORIZED)))
    parts: list[bytes] = []
    if packet.topic_alias_maximum:
        parts.append(b"\x22" + packet.topic_alias_maximum.to_bytes(2, "big"))
    if packet.session_expiry is not None:
        parts.append(b"\x11" + packet.session_expiry.to_bytes(4, "big"))
    if packet.assigned_client_id is not None:
        parts.append(b"\x12" + string(packet.assigned_client_id))
    if packet.server_keep_alive is not None:
        parts.append(b"\x13" + packet.server_keep_alive.to_bytes(2, "big"))
    if packet.reason_string is not None:
        parts.append(b"\x1f" + string(packet.reason_string))
    if packet.maximum_packet_size is not None:
        parts.append(b"\x27" + packet.maximum_packet_size.to_bytes(4, "big"))
    if packet.receive_maximum is not None:
        parts.append(b"\x21" + packet.receive_maximum.to_bytes(2, "big"))
    properties = b"".join(parts)
    body = bytes((packet.session_present, packet.reason)) + varint(len(properties)) + properties
    return b"\x20" + varint(len(body)) + body


def suback(packet: SubackPacket, version: int) -> bytes:
    """Encodes SUBACK, with one code for each filter [MQTT-3.8.4-6]."""
    head = packet.packet_id.to_bytes(2, "big")
    if version == MQTT_5:
        body = head + b"\0" + bytes(packet.reasons)
    else:
        body = head + bytes(min(reason, FAILURE) for reason in packet.reasons)
    return b"\x90" + varint(len(body)) + body


def unsuback(packet: UnsubackPacket, version: int) -> bytes:
    """Encodes UNSUBACK, with one code for each filter in MQTT 5.0."""
    body = packet.packet_id.to_bytes(2, "big")
    if version == MQTT_5:
        body += b"\0" + bytes(packet.reasons)
    return b"\xb0" + varint(len(body)) + body


def disconnect(reason: ReasonCode) -> bytes:
    """Encodes DISCONNECT in its short form. Only MQTT 5.0 has a DISCONNECT from the server."""
    return bytes((0xE0, 1, reason))


def acknowledgement(first: int, packet_id: int, reason: ReasonCode = SUCCESS) -> bytes:
    """Encodes PUBACK, PUBREC, PUBREL or PUBCOMP in its shortest form.

    `first`: the first byte of the packet.
    `reason`: must be SUCCESS in MQTT 3.1 and 3.1.1, which have no other acknowledgement.
    """
    if reason:
        return (first << 32 | 0x0300_0000 | packet_id << 8 | reason).to_bytes(5, "big")
    return (first << 24 | 0x02_0000 | packet_id).to_bytes(4, "big")


def acknowledgements(first: int, packet_ids: Iterable[int]) -> bytes:
    """Encodes one short acknowledgement for each packet id, in order. `first`: the first byte of each packet."""
    head = first << 24 | 0x02_0000
    return b"".join([(head | packet_id).to_bytes(4, "big") for packet_id in packet_ids])


class PublishTemplate(msgspec.Struct, frozen=True, gc=False):
    """The bytes of a PUBLISH packet without its packet id.

    `head`: the bytes before the packet id.
    `tail`: the bytes after the packet id; b"" with QoS 0, where the packet has no packet id [MQTT-2.2.1-2].
    """

    head: bytes
    tail: bytes = b""

    def frame(self, packet_id: int, dup: bool = False) -> bytes:
        """Returns the packet with QoS 1 or 2. `dup`: whether the packet is sent again [MQTT-3.3.1-1]."""
        head = (self.head[0] | DUP).to_bytes(1, "big") + self.head[1:] if dup else self.head
        return head + packet_id.to_bytes(2, "big") + self.tail


def publish(
    version: int,
    topic: str,
    payload: bytes,
    qos: int = 0,
    retain: bool = False,
    properties: bytes = b"",
    expiry: int | None = None,
    subscription_ids: tuple[int, ...] = (),
    alias: int = 0,
) -> PublishTemplate:
    """Encodes a message. The fields after `retain` have no effect in MQTT 3.1 and 3.1.1.

    `topic`: "" if the receiver knows the topic by its alias.
    `properties`: encoded properties that are sent unchanged [MQTT-3.3.2-4, -15, -16, -17, -18, -20].
    `expiry`: the remaining time in seconds [MQTT-3.3.2-6].
    `subscription_ids`: the ids of all subscriptions that match [MQTT-3.3.4-3, -4].
    `alias`: the topic alias; 0: none [MQTT-3.3.2-8].
    """
    tail = payload
    if version == MQTT_5:
        if expiry is not None:
            properties += b"\x02" + expiry.to_bytes(4, "big")
        if alias:
            properties = b"\x23" + alias.to_bytes(2, "big") + properties
        if subscription_ids:
            properties = b"".join([b"\x0b" + varint(id) for id in subscription_ids]) + properties
        tail = varint(len(properties)) + properties + payload
    name = string(topic)
    first = 0x30 | qos << 1 | retain
    if qos:
        return PublishTemplate(first.to_bytes(1, "big") + varint(len(name) + 2 + len(tail)) + name, tail)
    return PublishTemplate(first.to_bytes(1, "big") + varint(len(name) + len(tail)) + name + tail)
