"""Encodes the packets that MQTT clients send, from the structs of `protocols/mqtt/packets.py`."""

from collections.abc import Iterator

from push1st.protocols.mqtt.encode import publish, string, varint
from push1st.protocols.mqtt.packets import (
    MQTT_5,
    MQTT_31,
    ConnectPacket,
    DisconnectPacket,
    PubackPacket,
    PubcompPacket,
    PublishPacket,
    PubrecPacket,
    PubrelPacket,
    SubscribePacket,
    UnsubscribePacket,
)

ACKNOWLEDGEMENTS = {PubackPacket: 0x40, PubrecPacket: 0x50, PubrelPacket: 0x62, PubcompPacket: 0x70}


def framed(first: int, body: bytes) -> bytes:
    """Returns a packet with its fixed header. first: its first byte."""
    return bytes((first,)) + varint(len(body)) + body


def properties(encoded: bytes, version: int) -> bytes:
    """Returns properties with their length; nothing in older versions than 5.0."""
    return varint(len(encoded)) + encoded if version == MQTT_5 else b""


def binary(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def connect(packet: ConnectPacket) -> bytes:
    version = packet.version
    name = b"MQIsdp" if version == MQTT_31 else b"MQTT"
    found = b""
    if packet.session_expiry:
        found += b"\x11" + packet.session_expiry.to_bytes(4, "big")
    if packet.receive_maximum != 65_535:
        found += b"\x21" + packet.receive_maximum.to_bytes(2, "big")
    if packet.maximum_packet_size is not None:
        found += b"\x27" + packet.maximum_packet_size.to_bytes(4, "big")
    if packet.topic_alias_maximum:
        found += b"\x22" + packet.topic_alias_maximum.to_bytes(2, "big")
    if not packet.wants_reasons:
        found += b"\x17\0"
    if packet.authentication_method is not None:
        found += b"\x15" + string(packet.authentication_method)
    flags = packet.clean << 1
    tail = string(packet.client_id)
    if will := packet.will:
        flags |= 4 | will.qos << 3 | will.retain << 5
        more = will.properties
        if will.delay:
            more += b"\x18" + will.delay.to_bytes(4, "big")
        if will.expiry is not None:
            more += b"\x02" + will.expiry.to_bytes(4, "big")
        tail += properties(more, version) + string(will.topic) + binary(will.payload)
    if packet.username is not None:
        flags |= 0x80
        tail += string(packet.username)
    if packet.password is not None:
        flags |= 0x40
        tail += binary(packet.password)
    head = binary(name) + bytes((version, flags)) + packet.keep_alive.to_bytes(2, "big")
    return framed(0x10, head + properties(found, version) + tail)


def message(packet: PublishPacket, version: int) -> bytes:
    """Encodes PUBLISH."""
    template = publish(version, packet.topic, packet.payload, packet.qos, packet.retain, packet.properties, packet.expiry)
    return template.frame(packet.packet_id, packet.dup) if packet.qos else template.head


def acknowledgement(packet: PubackPacket | PubrecPacket | PubrelPacket | PubcompPacket) -> bytes:
    first = ACKNOWLEDGEMENTS[type(packet)]
    reason = bytes((packet.reason,)) if packet.reason else b""
    return b"".join(framed(first, id.to_bytes(2, "big") + reason) for id in packet.packet_ids)


def subscribe(packet: SubscribePacket, version: int) -> bytes:
    found = b"\x0b" + varint(packet.subscription_id) if packet.subscription_id else b""
    body = packet.packet_id.to_bytes(2, "big") + properties(found, version)
    for one in packet.filters:
        body += string(one.filter)
        body += bytes((one.qos | one.no_local << 2 | one.retain_as_published << 3 | one.retain_handling << 4,))
    return framed(0x82, body)


def unsubscribe(packet: UnsubscribePacket, version: int) -> bytes:
    return framed(0xA2, packet.packet_id.to_bytes(2, "big") + properties(b"", version) + b"".join(map(string, packet.filters)))


def disconnect(packet: DisconnectPacket, version: int) -> bytes:
    if version != MQTT_5 or (not packet.reason and packet.session_expiry is None):
        return b"\xe0\0"
    body = bytes((packet.reason,))
    if packet.session_expiry is not None:
        body += properties(b"\x11" + packet.session_expiry.to_bytes(4, "big"), version)
    return framed(0xE0, body)


def publishes(data: bytes) -> Iterator[tuple[int, int, bytes, bytes]]:
    """Yields the first byte, the packet id, the topic and the payload of each PUBLISH of MQTT 3.1.1."""
    while data:
        first, at, size = data[0], 1, data[1] & 0x7F
        while data[at] & 0x80:
            size |= (data[at + 1] & 0x7F) << 7 * at
            at += 1
        body, data = data[at + 1 : at + 1 + size], data[at + 1 + size :]
        end = 2 + int.from_bytes(body[:2], "big")
        with_id = 2 if first & 6 else 0
        yield first, int.from_bytes(body[end : end + with_id], "big"), body[2:end], body[end + with_id :]
