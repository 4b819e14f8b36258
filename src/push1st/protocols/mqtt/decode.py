"""Decodes the bytes of a client into packets, in MQTT 3.1, 3.1.1 and 5.0 (§2, §3). Pure.

The decoder keeps the version, the topic aliases and an incomplete packet; it does not know sessions. The decoder keeps at most
one packet, and checks the size of the packet before it keeps the bytes. If the first packet is not a CONNECT, the decoder keeps
nothing.

The last packet may be a `Violation`. In MQTT 5.0 a violation is *malformed* (81) if the packet cannot be parsed, and a *protocol
error* (82) if the packet is not allowed. If the standard permits both codes, the decoder chooses the code that mosquitto chooses.
"""

import re
import struct
from collections.abc import Sequence

from push1st.protocols.mqtt import encode
from push1st.protocols.mqtt.connect import connect
from push1st.protocols.mqtt.fields import (
    IN_ACKNOWLEDGEMENT,
    IN_DISCONNECT,
    IN_PUBLISH,
    IN_SUBSCRIBE,
    IN_UNSUBSCRIBE,
    SESSION_EXPIRY,
    SUBSCRIPTION_ID,
    MessageProperties,
    PacketError,
    Value,
    closing,
    forbidden,
    malformed,
    message_properties,
    properties,
    string,
    text_of,
    two_bytes,
)
from push1st.protocols.mqtt.packets import (
    MQTT_5,
    MQTT_31,
    ClientPacket,
    DisconnectPacket,
    FilterOptions,
    PingreqPacket,
    PubackPacket,
    PubcompPacket,
    PublishPacket,
    PubrecPacket,
    PubrelPacket,
    ReasonCode,
    SubscribePacket,
    UnsubscribePacket,
    Violation,
)
from push1st.protocols.mqtt.topics import SHARE, is_filter, is_topic

MAX_CONNECT_BYTES = 128 * 1024
"""the maximum size of a CONNECT, which the client sends before it knows the Maximum Packet Size"""
MAX_PACKET_FILTERS = 2000
"""the maximum number of filters of one SUBSCRIBE or UNSUBSCRIBE; twice the number of subscriptions that a connection may have"""
MAX_KNOWN = 4096
"""the maximum number of entries in `_topics`, and in `_properties`"""

# Results of earlier checks by their bytes, for all connections, because most clients repeat topics and properties. A full
# dictionary is emptied. measured: a lookup takes 0.1 µs, the checks of a topic 0.6 µs, and those of one user property 0.4 µs.
_topics: dict[bytes, str] = {}
_properties: dict[bytes, MessageProperties] = {}
"""the properties of messages, with their length before them; only properties with at most 127 bytes"""

ACKNOWLEDGEMENTS: dict[int, type[PubackPacket] | type[PubrecPacket] | type[PubrelPacket] | type[PubcompPacket]] = {
    encode.PUBACK: PubackPacket,
    encode.PUBREC: PubrecPacket,
    encode.PUBREL: PubrelPacket,
    encode.PUBCOMP: PubcompPacket,
}

PUBLISH_FLAGS = tuple((flags >> 1 & 3, bool(flags & 1), bool(flags & 8)) for flags in range(16))
"""QoS, RETAIN and DUP for each value of the flags of PUBLISH (§3.3.1)"""

MESSAGE_REASONS = {0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99}
RELEASE_REASONS = {0x00, 0x92}
REASONS = {
    encode.PUBACK: MESSAGE_REASONS,  # [MQTT-3.4.2-1]
    encode.PUBREC: MESSAGE_REASONS,  # [MQTT-3.5.2-1]
    encode.PUBREL: RELEASE_REASONS,  # [MQTT-3.6.2-1]
    encode.PUBCOMP: RELEASE_REASONS,  # [MQTT-3.7.2-1]
}
DISCONNECT_REASONS = {0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99}
"""the reason codes that a client may send [MQTT-3.14.2-1]"""

PUBLISH_TYPE = 3
SERVER_TYPES = {9, 11, 13}
"""the types of SUBACK, UNSUBACK and PINGRESP"""
SUBSCRIBE = 0x82
UNSUBSCRIBE = 0xA2
PINGREQ = 0xC0
PINGRESP = 0xD0
DISCONNECT = 0xE0
FIRST_BYTES = {first >> 4: first for first in (*ACKNOWLEDGEMENTS, SUBSCRIBE, UNSUBSCRIBE, PINGREQ, DISCONNECT)}
"""the first byte of each packet of a client whose flags are fixed, by the packet's type (§2.1.2, §2.1.3)"""

# The ways to decode a packet.
INVALID, MESSAGE, ACKNOWLEDGEMENT, OTHER = range(4)


def _ways() -> bytes:
    """Returns the way to decode each packet, by the packet's first byte."""
    ways = bytearray(256)
    for flags, (qos, _, dup) in enumerate(PUBLISH_FLAGS):
        if qos != 3 and (qos or not dup):  # [MQTT-3.3.1-4, MQTT-3.3.1-2, MQTT3-3.3.1-4, MQTT3-3.3.1-2]
            ways[0x30 | flags] = MESSAGE
    for first in FIRST_BYTES.values():
        ways[first] = ACKNOWLEDGEMENT if first in ACKNOWLEDGEMENTS else OTHER
    return bytes(ways)


WAYS = _ways()

_runs = {first: re.compile(b"(?:%b..)++" % re.escape(bytes((first, 2))), re.DOTALL).match for first in ACKNOWLEDGEMENTS}
"""functions that find the end of consecutive short acknowledgements of one type"""
_PINGREQ = PingreqPacket()


class PacketDecoder:
    """Decodes bytes from a client into packets.

    `max_size`: the Maximum Packet Size for the client.
    `max_aliases`: the Topic Alias Maximum for the client.
    """

    __slots__ = ("_aliases", "_has_ended", "_is_bridge", "_max_aliases", "_max_size", "_needed", "_rest", "version")

    def __init__(self, max_size: int, max_aliases: int) -> None:
        self.version = 0
        """the protocol level of the client; 0 before its CONNECT"""
        self._max_size = max_size
        self._max_aliases = max_aliases
        self._aliases: dict[int, str] | None = None
        """the topics of the client's topic aliases, for the time of the connection [MQTT-3.3.2-7]"""
        self._rest: bytearray | None = None
        """the start of an incomplete packet"""
        self._needed = 0
        """the number of bytes that `_rest` must have before it is decoded again"""
        self._is_bridge = False
        self._has_ended = False

    def feed(self, data: bytes) -> list[ClientPacket]:
        """Returns the packets that are complete now. Nothing follows a `DisconnectPacket` or a `Violation`."""
        if self._has_ended:
            return []
        if self._rest is not None:
            self._rest += data
            if len(self._rest) < self._needed:
                return []
            data, self._rest = bytes(self._rest), None
        packets: list[ClientPacket] = []
        try:
            self._packets(data, 0 if self.version else self._connect(data, packets), packets)
        except PacketError as exc:
            self._has_ended = True
            is_answered = self.version == MQTT_5 and not exc.silent  # MQTT 3.1 and 3.1.1 have no DISCONNECT from the server
            packets.append(Violation(exc.reason, exc.text, encode.disconnect(exc.reason) if is_answered else b""))
        return packets

    def _keep(self, data: bytes, at: int, needed: int) -> int:
        """Keeps an incomplete packet, until it has `needed` bytes. Returns the end of the data."""
        self._rest = bytearray(data[at:])
        self._needed = needed
        return len(data)

    def _connect(self, data: bytes, packets: list[ClientPacket]) -> int:
        """Decodes the first packet, if it is complete. Returns the position after this packet."""
        if not data:
            return 0
        if data[0] >> 4 != 1:  # [MQTT-3.1.0-1, MQTT3-3.1.0-1]
            raise closing("the first packet is not CONNECT")
        size, start = self._size(data, 0)
        if start + size > MAX_CONNECT_BYTES:
            raise closing(f"CONNECT has {start + size} bytes")
        if not start or start + size > len(data):
            return self._keep(data, 0, start + size)
        found = connect(data, start, start + size, data[0] & 15)
        if isinstance(found, Violation):
            packets.append(found)
            self._has_ended = True
            return len(data)
        packet, self._is_bridge = found
        packets.append(packet)
        self.version = packet.version
        return start + size

    def _size(self, data: bytes, at: int) -> tuple[int, int]:
        """Returns the Remaining Length of a packet, and the position after this field.

        If the bytes of the field are not complete, returns the number of bytes that the packet must have, and 0.
        """
        size = 0
        for count in range(1, 5):
            if at + count >= len(data):
                return count + 1, 0
            byte = data[at + count]
            size |= (byte & 0x7F) << 7 * (count - 1)
            if byte < 0x80:
                if not byte and count > 1 and self.version == MQTT_5:  # [MQTT-1.5.5-1]
                    raise malformed("the remaining length is not in its shortest form")
                return size, at + count + 1
        raise closing("the remaining length has more than 4 bytes")  # §2.1.4

    def _packets(self, data: bytes, at: int, packets: list[ClientPacket]) -> None:
        """Decodes all complete packets. PUBLISH and short acknowledgements are decoded here, since a call costs time.

        measured: 0.6 µs for a PUBLISH, 0.05 µs for a PUBACK among others; run `bench/mqtt_codec.py` before changing.
        """
        end = len(data)
        is_5 = self.version == MQTT_5
        unchecked = min(127, self._max_size - 2)
        while at < end:
            first = data[at]
            way = WAYS[first]
            if not way and first < 0x10:
                raise forbidden("the packet type is 0")
            start = at + 2
            if start > end:
                self._keep(data, at, 2)
                return
            size = data[at + 1]
            if size > unchecked:
                if size < 128:
                    pass
                elif start < end and 0 < data[start] < 128:
                    size += (data[start] << 7) - 128
                    start += 1
                else:
                    size, start = self._size(data, at)
                    if not start:
                        self._keep(data, at, size)
                        return
                if start + size - at > self._max_size:  # §3.2.2.3.6
                    raise PacketError(ReasonCode.PACKET_TOO_LARGE, f"the packet has {start + size - at} bytes")
            stop = start + size
            if not way:
                first = self._corrected(first, size)
                way = WAYS[first]
            if stop > end:
                self._keep(data, at, stop - at)
                return
            if way == MESSAGE:
                if size < 2:
                    raise malformed("PUBLISH ends before its topic")
                name = start + 2
                body = name_end = name + (data[start] << 8 | data[start + 1])
                qos, retain, dup = PUBLISH_FLAGS[first & 15]
                packet_id = 0
                if qos:
                    body += 2
                    if body > stop:
                        raise malformed("PUBLISH ends in its topic or packet id")
                    packet_id = data[body - 2] << 8 | data[body - 1]
                    if not packet_id:  # [MQTT-2.2.1-3, MQTT3-2.3.1-1]
                        raise forbidden("the packet id of PUBLISH is 0")
                elif body > stop:
                    raise malformed("PUBLISH ends in its topic")
                topic = _topics.get(data[name:name_end])
                if topic is None:
                    topic = _topic(data[name:name_end])
                if is_5:
                    if body == stop or data[body]:
                        packets.append(self._with_properties(topic, data, body, stop, first, packet_id))
                        at = stop
                        continue
                    body += 1
                if not topic:  # [MQTT-4.7.3-1, MQTT3-4.7.3-1]
                    raise malformed("PUBLISH has neither a topic nor a topic alias")
                if qos:
                    packets.append(PublishPacket(topic, data[body:stop], qos, retain, packet_id, dup))
                else:
                    packets.append(PublishPacket(topic, data[body:stop], 0, retain))
            elif way == ACKNOWLEDGEMENT:
                if size != 2:
                    packets.append(self._acknowledgement(data, start, stop, first))
                elif stop < end and data[stop] == first:
                    stop = self._acknowledgements(data, at, first, packets)
                else:
                    packet_id = data[start] << 8 | data[start + 1]
                    if not packet_id:
                        raise _zero(first)
                    packets.append(ACKNOWLEDGEMENTS[first]((packet_id,)))
            else:
                packets.append(self._other(data, start, stop, first))
                if self._has_ended:
                    return
            at = stop

    def _corrected(self, first: int, size: int) -> int:
        """Returns the first byte of a packet with the right flags. Raises PacketError for wrong flags, except in MQTT 3.1."""
        kind, flags = first >> 4, first & 15
        if self.version == MQTT_31 and kind in FIRST_BYTES:
            return FIRST_BYTES[kind]
        # Wrong flags are malformed (81). But the answer to wrong flags of PUBREL, DISCONNECT, AUTH and CONNACK is 82.
        if kind in (encode.PUBREL >> 4, DISCONNECT >> 4):  # [MQTT-3.6.1-1, MQTT-3.14.1-1, MQTT3-3.6.1-1, MQTT3-3.14.1-1]
            raise forbidden(f"the flags of the packet {first:02X} are not valid")
        if kind in FIRST_BYTES or kind == PUBLISH_TYPE or (flags and kind in SERVER_TYPES):  # [MQTT-2.1.3-1, MQTT3-2.2.2-2]
            raise malformed(f"the flags of the packet {first:02X} are not valid")
        if first == PINGRESP and size:  # mosquitto closes without an answer
            raise closing("PINGRESP is too long")
        # A second CONNECT [MQTT-3.1.0-2, MQTT3-3.1.0-2], AUTH, and the packets of servers.
        raise forbidden(f"a client must not send the packet {first:02X}")

    def _with_properties(self, topic: str, data: bytes, at: int, end: int, first: int, packet_id: int) -> PublishPacket:
        """Decodes the rest of a PUBLISH with properties. `topic`: "" if the packet has only a topic alias."""
        stop = at + 1 + data[at] if at < end and data[at] < 128 else end + 1
        found = _properties.get(data[at:stop]) if stop <= end else None
        if found is None:
            found, stop = message_properties(data, at, end, IN_PUBLISH)
            if stop - at <= 128:
                if len(_properties) >= MAX_KNOWN:
                    _properties.clear()
                _properties[data[at:stop]] = found
        alias = found.alias
        if alias is not None:
            if not 0 < alias <= self._max_aliases:  # [MQTT-3.3.2-8, MQTT-3.3.2-9]
                raise PacketError(ReasonCode.TOPIC_ALIAS_INVALID, f"the topic alias {alias} is not permitted")
            if self._aliases is None:
                self._aliases = {}
            if topic:
                self._aliases[alias] = topic
            else:
                topic = self._aliases.get(alias, "")
                if not topic:  # §3.3.2.3.4
                    raise forbidden(f"the topic alias {alias} has no topic")
        if not topic:  # [MQTT-4.7.3-1]
            raise malformed("PUBLISH has neither a topic nor a topic alias")
        qos, retain, dup = PUBLISH_FLAGS[first & 15]
        return PublishPacket(topic, data[stop:end], qos, retain, packet_id, dup, found.passed_on, found.expiry, found.event)

    def _acknowledgements(self, data: bytes, at: int, first: int, packets: list[ClientPacket]) -> int:
        """Decodes consecutive short acknowledgements of one type as one packet. Returns the position after them."""
        found = _runs[first](data, at)
        assert found is not None
        stop = found.end()
        packet_ids = struct.unpack(f">{(stop - at) // 2}H", found[0])[1::2]
        if 0 in packet_ids:
            if packet_ids[0]:
                packets.append(ACKNOWLEDGEMENTS[first](packet_ids[: packet_ids.index(0)]))
            raise _zero(first)
        packets.append(ACKNOWLEDGEMENTS[first](packet_ids))
        return stop

    def _acknowledgement(self, data: bytes, at: int, end: int, first: int) -> ClientPacket:
        """Decodes an acknowledgement that is not short. Only MQTT 5.0 has such acknowledgements."""
        packet_id, at = two_bytes(data, at, end)
        if self.version != MQTT_5:
            raise malformed(f"the packet {first:02X} is too long")
        if not packet_id:
            raise _zero(first)
        if data[at] not in REASONS[first]:
            raise forbidden(f"the packet {first:02X} must not have the reason code {data[at]:02X}")
        if at + 1 < end:
            _, stop = properties(data, at + 1, end, IN_ACKNOWLEDGEMENT)
            if stop < end:
                raise malformed(f"the packet {first:02X} is too long")
        return ACKNOWLEDGEMENTS[first]((packet_id,), ReasonCode(data[at]))

    def _other(self, data: bytes, at: int, end: int, first: int) -> ClientPacket:
        if first == SUBSCRIBE:
            return self._subscribe(data, at, end)
        if first == UNSUBSCRIBE:
            return self._unsubscribe(data, at, end)
        if first == PINGREQ:
            if at < end:  # mosquitto closes without an answer
                raise closing("PINGREQ is too long")
            return _PINGREQ
        self._has_ended = True
        return self._disconnect(data, at, end)

    def _subscribe(self, data: bytes, at: int, end: int) -> SubscribePacket:
        packet_id, at = _packet_id(data, at, end)
        found: dict[int, Value] = {}
        if self.version == MQTT_5:
            found, at = properties(data, at, end, IN_SUBSCRIBE, ReasonCode.MALFORMED_PACKET)
        filters: list[FilterOptions] = []
        while at < end:
            filter, at = _filter(data, at, end)
            if at == end:
                raise malformed("SUBSCRIBE ends before the options of a filter")
            filters.append(self._options(filter, data[at]))
            _check_number(filters)
            at += 1
        if not filters:  # [MQTT-3.8.3-2, MQTT3-3.8.3-3]
            raise malformed("SUBSCRIBE has no filters")
        subscription_id = found.get(SUBSCRIPTION_ID, 0)
        assert isinstance(subscription_id, int)
        return SubscribePacket(packet_id, tuple(filters), subscription_id)

    def _options(self, filter: str, options: int) -> FilterOptions:
        qos, handling = options & 3, options >> 4 & 3
        # [MQTT-3.8.3-5, MQTT3-3.8.3-4]; §3.8.3.1: QoS 3 and Retain Handling 3
        if options > (0x3F if self.version == MQTT_5 else 2) or qos == 3 or handling == 3:
            raise malformed(f"the options {options:02X} of a filter are not valid")
        if self.version == MQTT_5 and filter.startswith(SHARE) and not filter[len(SHARE) :].partition("/")[2]:
            raise forbidden("a shared subscription has no filter")  # [MQTT-4.8.2-2]
        no_local = bool(options & 4)
        if no_local and filter.startswith(SHARE):  # [MQTT-3.8.3-4]
            raise forbidden("a shared subscription has No Local")
        # A bridge of MQTT 3.1 and 3.1.1 cannot request these options. Without them, the bridge and the server would send messages
        # back and forth.
        is_bridge = self._is_bridge and not filter.startswith(SHARE)
        return FilterOptions(filter, qos, no_local or is_bridge, bool(options & 8) or is_bridge, handling)

    def _unsubscribe(self, data: bytes, at: int, end: int) -> UnsubscribePacket:
        packet_id, at = _packet_id(data, at, end)
        if self.version == MQTT_5:
            _, at = properties(data, at, end, IN_UNSUBSCRIBE, ReasonCode.MALFORMED_PACKET)
        filters: list[str] = []
        while at < end:
            filter, at = _filter(data, at, end)
            filters.append(filter)
            _check_number(filters)
        if not filters:  # [MQTT-3.10.3-2, MQTT3-3.10.3-2]
            raise malformed("UNSUBSCRIBE has no filters")
        return UnsubscribePacket(packet_id, tuple(filters))

    def _disconnect(self, data: bytes, at: int, end: int) -> DisconnectPacket:
        if at == end:
            return DisconnectPacket()
        if self.version != MQTT_5:
            raise malformed("DISCONNECT is too long")
        reason = data[at]
        if reason not in DISCONNECT_REASONS:  # [MQTT-3.14.2-1]
            raise closing(f"a client must not send the reason code {reason:02X} in DISCONNECT")
        found: dict[int, Value] = {}
        if at + 1 < end:
            found, stop = properties(data, at + 1, end, IN_DISCONNECT)
            if stop < end:
                raise malformed("DISCONNECT is too long")
        session_expiry = found.get(SESSION_EXPIRY)
        assert session_expiry is None or isinstance(session_expiry, int)
        return DisconnectPacket(ReasonCode(reason), session_expiry)


def _topic(raw: bytes) -> str:
    """Returns the topic of a message; "" for an empty topic. Raises PacketError for a topic that is not valid."""
    if not raw:
        return ""
    topic = text_of(raw)  # [MQTT-3.3.2-1, MQTT3-3.3.2-1]
    if not is_topic(topic):  # [MQTT-3.3.2-2, MQTT3-3.3.2-2]
        raise malformed("the topic has wildcards, or is too long or too deep")
    if len(_topics) >= MAX_KNOWN:
        _topics.clear()
    _topics[raw] = topic
    return topic


def _check_number(filters: Sequence[object]) -> None:
    """Raises PacketError for a packet with too many filters, because other clients wait while the packet is decoded."""
    if len(filters) > MAX_PACKET_FILTERS:
        raise PacketError(ReasonCode.QUOTA_EXCEEDED, f"a packet may have at most {MAX_PACKET_FILTERS} filters")


def _filter(data: bytes, at: int, end: int) -> tuple[str, int]:
    filter, at = string(data, at, end)  # [MQTT-3.8.3-1, MQTT-3.10.3-1, MQTT3-3.8.3-1, MQTT3-3.10.3-1]
    if not is_filter(filter):
        raise malformed("a filter is empty, too long or too deep, or has a wildcard in the wrong place")
    return filter, at


def _packet_id(data: bytes, at: int, end: int) -> tuple[int, int]:
    packet_id, at = two_bytes(data, at, end)
    if not packet_id:  # [MQTT-2.2.1-3, MQTT3-2.3.1-1]
        raise malformed("the packet id of SUBSCRIBE or UNSUBSCRIBE is 0")
    return packet_id, at


def _zero(first: int) -> PacketError:
    return forbidden(f"the packet id of the packet {first:02X} is 0")  # [MQTT-2.2.1-5]
