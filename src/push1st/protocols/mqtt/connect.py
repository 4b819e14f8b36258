"""Reads CONNECT, in MQTT 3.1, 3.1.1 and 5.0 (§3.1). Pure.

The answer to a CONNECT that breaks the protocol depends on the mistake. The server only closes the connection, or it also sends
CONNACK: in the form of the client's version, or in a fixed form if the version is unknown. The choices are those of mosquitto.
"""

from push1st.protocols.mqtt import encode
from push1st.protocols.mqtt.fields import (
    AUTHENTICATION_DATA,
    AUTHENTICATION_METHOD,
    IN_CONNECT,
    IN_WILL,
    MAXIMUM_PACKET_SIZE,
    RECEIVE_MAXIMUM,
    REQUEST_PROBLEM_INFORMATION,
    SESSION_EXPIRY,
    TOPIC_ALIAS_MAXIMUM,
    MessageProperties,
    PacketError,
    Value,
    binary,
    closing,
    forbidden,
    malformed,
    message_properties,
    properties,
    string,
    text_of,
)
from push1st.protocols.mqtt.packets import (
    MQTT_5,
    MQTT_31,
    MQTT_311,
    ConnackPacket,
    ConnectPacket,
    ReasonCode,
    Violation,
    Will,
)
from push1st.protocols.mqtt.topics import CONTROL, SHARE, is_topic

NAMES = {MQTT_31: b"MQIsdp", MQTT_311: b"MQTT", MQTT_5: b"MQTT"}
"""the protocol name of each protocol level [MQTT-3.1.2-1]"""
MAX_CLIENT_ID_BYTES = 256
BRIDGE = 0x80
"""the bit of the protocol level with which mosquitto's bridges identify themselves"""


USER_NAME_FLAG = 0x80
PASSWORD_FLAG = 0x40
WILL_RETAIN_FLAG = 0x20
WILL_QOS_SHIFT = 3
WILL_FLAG = 0x04
CLEAN_FLAG = 0x02
RESERVED_FLAG = 0x01
"""the connect flags (§3.1.2.3)"""


def connect(data: bytes, at: int, end: int, flags: int) -> tuple[ConnectPacket, bool] | Violation:
    """Reads a CONNECT after its fixed header. Returns the packet, and whether the client is a bridge of MQTT 3.1 or 3.1.1.

    `flags`: the low four bits of the first byte.
    """
    unsupported = ConnackPacket(ReasonCode.UNSUPPORTED_PROTOCOL_VERSION)
    try:
        name, at = binary(data, at, end)
        if at == end:
            raise malformed("the packet ends before the protocol level")
    except PacketError as exc:
        return Violation(exc.reason, exc.text, b"")
    level = data[at]
    version = level & ~BRIDGE
    if version not in NAMES:  # [MQTT-3.1.2-2]; the form of this answer does not depend on the name
        return Violation(unsupported.reason, f"the protocol level {level} is unknown", encode.connack(unsupported, MQTT_5))
    if name not in NAMES.values():  # [MQTT-3.1.2-1]
        return Violation(unsupported.reason, "the protocol name is neither MQTT nor MQIsdp", b"")
    if name != NAMES[version]:
        text = f"the protocol level {level} has another protocol name"
        return Violation(unsupported.reason, text, encode.connack(unsupported, MQTT_311))
    try:
        packet = _packet(data, at + 1, end, version, flags)
    except PacketError as exc:
        # In MQTT 3.1 and 3.1.1 only a rejected client id has a return code [MQTT3-3.1.4-1].
        is_silent = exc.silent or (version != MQTT_5 and exc.reason != ReasonCode.CLIENT_IDENTIFIER_NOT_VALID)
        return Violation(exc.reason, exc.text, b"" if is_silent else encode.connack(ConnackPacket(exc.reason), version))
    return packet, level >= BRIDGE and version != MQTT_5


def _packet(data: bytes, at: int, end: int, version: int, header: int) -> ConnectPacket:
    if at + 3 > end:
        raise closing("the packet ends before the keep alive")
    flags = data[at]
    _check_flags(flags, version, header)
    keep_alive = data[at + 1] << 8 | data[at + 2]
    at += 3
    found: dict[int, Value] = {}
    if version == MQTT_5:
        found, at = properties(data, at, end, IN_CONNECT)
        if AUTHENTICATION_DATA in found and AUTHENTICATION_METHOD not in found:  # §3.1.2.11.10
            raise forbidden("the packet has authentication data without an authentication method")
    client_id, at = _client_id(data, at, end, version, bool(flags & CLEAN_FLAG))
    will = None
    if flags & WILL_FLAG:
        will, at = _will(data, at, end, version, flags)
    username: str | None = None
    password: bytes | None = None
    # MQTT 3.1 permits that the packet ends before a user name or password that its flags announce.
    try:
        if flags & USER_NAME_FLAG and not (version == MQTT_31 and at == end):
            username, at = string(data, at, end)  # [MQTT-3.1.2-17, MQTT-3.1.3-12]
        if flags & PASSWORD_FLAG and not (version == MQTT_31 and at == end):
            password, at = binary(data, at, end)  # [MQTT-3.1.2-19]
    except PacketError as exc:
        raise closing(exc.text) from None
    if at != end:  # [MQTT-3.1.2-16, MQTT-3.1.2-18]
        raise malformed("the packet has bytes after its last field")
    return ConnectPacket(
        version,
        client_id,
        bool(flags & CLEAN_FLAG),
        keep_alive,
        username,
        password,
        will,
        _number(found, SESSION_EXPIRY, 0) if version == MQTT_5 else None,
        _number(found, RECEIVE_MAXIMUM, 65_535),
        _number(found, MAXIMUM_PACKET_SIZE, 0) or None,
        _number(found, TOPIC_ALIAS_MAXIMUM, 0),
        bool(_number(found, REQUEST_PROBLEM_INFORMATION, 1)),
        str(found[AUTHENTICATION_METHOD]) if AUTHENTICATION_METHOD in found else None,
    )


def _check_flags(flags: int, version: int, header: int) -> None:
    """Checks the connect flags and the flags of the fixed header. MQTT 3.1 ignores unused flags."""
    will_qos = flags >> WILL_QOS_SHIFT & 3
    if flags & WILL_FLAG and will_qos == 3:  # [MQTT-3.1.2-12, MQTT3-3.1.2-14]
        raise closing("the QoS of the will is 3")
    if version == MQTT_31:
        return
    if header:  # [MQTT-2.1.3-1, MQTT3-2.2.2-2]
        raise closing("a reserved flag of the fixed header is set")
    if flags & RESERVED_FLAG:  # [MQTT-3.1.2-3, MQTT3-3.1.2-3]
        raise closing("the reserved connect flag is set")
    if not flags & WILL_FLAG and (will_qos or flags & WILL_RETAIN_FLAG):  # [MQTT-3.1.2-11, -13, MQTT3-3.1.2-13, -15]
        raise closing("the packet has a QoS or RETAIN of a will, but no will")
    if version == MQTT_311 and flags & PASSWORD_FLAG and not flags & USER_NAME_FLAG:  # [MQTT3-3.1.2-22]
        raise closing("the packet has a password, but no user name")


def _client_id(data: bytes, at: int, end: int, version: int, clean: bool) -> tuple[str, int]:
    try:
        raw, at = binary(data, at, end)  # [MQTT-3.1.3-3]
    except PacketError as exc:
        raise closing(exc.text) from None
    try:
        text = text_of(raw)
    except PacketError as exc:  # [MQTT-3.1.3-4, MQTT3-3.1.3-4]
        raise PacketError(ReasonCode.CLIENT_IDENTIFIER_NOT_VALID, f"client id: {exc.text}", version != MQTT_5) from None
    if len(raw) > MAX_CLIENT_ID_BYTES:  # [MQTT-3.1.3-8]
        raise PacketError(ReasonCode.CLIENT_IDENTIFIER_NOT_VALID, f"the client id has {len(raw)} bytes")
    if not raw and (version == MQTT_31 or (version == MQTT_311 and not clean)):  # [MQTT3-3.1.3-8]
        raise PacketError(ReasonCode.CLIENT_IDENTIFIER_NOT_VALID, "the client id is empty")
    return text, at


def _will(data: bytes, at: int, end: int, version: int, flags: int) -> tuple[Will, int]:
    """Reads the will [MQTT-3.1.2-9, MQTT3-3.1.2-9]."""
    found = MessageProperties(b"")
    if version == MQTT_5:
        found, at = message_properties(data, at, end, IN_WILL)
    topic, at = string(data, at, end)  # [MQTT-3.1.3-11, MQTT3-3.1.3-10]
    if not is_topic(topic) or topic.startswith((CONTROL, SHARE)):
        raise malformed("the topic of the will is not valid")
    payload, at = binary(data, at, end)
    qos, retain = flags >> WILL_QOS_SHIFT & 3, bool(flags & WILL_RETAIN_FLAG)
    return Will(topic, payload, qos, retain, found.delay, found.passed_on, found.expiry, found.event), at


def _number(found: dict[int, Value], id: int, default: int) -> int:
    value = found.get(id, default)
    assert isinstance(value, int)
    return value
