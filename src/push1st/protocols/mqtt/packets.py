"""The vocabulary of MQTT: one struct for each packet, and the reason codes of MQTT 5.0, without bytes and rules.

`decode.py` makes the packets that clients send, `encode.py` writes the packets that the server sends. In packets
of MQTT 3.1 and 3.1.1, each field that exists only in MQTT 5.0 has its default. Structs hold no lists and no dictionaries, so no
struct can be part of a cycle, and the garbage collector need not visit them.

Citations: [MQTT-3.3.1-4] is a statement of MQTT 5.0, [MQTT3-3.3.1-4] is a statement of MQTT 3.1.1; §3.3 is a section of MQTT 5.0.
"""

from enum import IntEnum

import msgspec

MQTT_31 = 3
MQTT_311 = 4
MQTT_5 = 5
"""the protocol levels (§3.1.2.2) of the versions 3.1, 3.1.1 and 5.0"""

MAX_PACKET_ID = 65_535


class ReasonCode(IntEnum):
    """The reason codes of MQTT 5.0 (§2.4). The code 00 also stands for *Normal disconnection* and *Granted QoS 0*."""

    SUCCESS = 0x00
    GRANTED_QOS_1 = 0x01
    GRANTED_QOS_2 = 0x02
    DISCONNECT_WITH_WILL_MESSAGE = 0x04
    NO_MATCHING_SUBSCRIBERS = 0x10
    NO_SUBSCRIPTION_EXISTED = 0x11
    CONTINUE_AUTHENTICATION = 0x18
    REAUTHENTICATE = 0x19
    UNSPECIFIED_ERROR = 0x80
    MALFORMED_PACKET = 0x81
    PROTOCOL_ERROR = 0x82
    IMPLEMENTATION_SPECIFIC_ERROR = 0x83
    UNSUPPORTED_PROTOCOL_VERSION = 0x84
    CLIENT_IDENTIFIER_NOT_VALID = 0x85
    BAD_USER_NAME_OR_PASSWORD = 0x86
    NOT_AUTHORIZED = 0x87
    SERVER_UNAVAILABLE = 0x88
    SERVER_BUSY = 0x89
    BANNED = 0x8A
    SERVER_SHUTTING_DOWN = 0x8B
    BAD_AUTHENTICATION_METHOD = 0x8C
    KEEP_ALIVE_TIMEOUT = 0x8D
    SESSION_TAKEN_OVER = 0x8E
    TOPIC_FILTER_INVALID = 0x8F
    TOPIC_NAME_INVALID = 0x90
    PACKET_IDENTIFIER_IN_USE = 0x91
    PACKET_IDENTIFIER_NOT_FOUND = 0x92
    RECEIVE_MAXIMUM_EXCEEDED = 0x93
    TOPIC_ALIAS_INVALID = 0x94
    PACKET_TOO_LARGE = 0x95
    MESSAGE_RATE_TOO_HIGH = 0x96
    QUOTA_EXCEEDED = 0x97
    ADMINISTRATIVE_ACTION = 0x98
    PAYLOAD_FORMAT_INVALID = 0x99
    RETAIN_NOT_SUPPORTED = 0x9A
    QOS_NOT_SUPPORTED = 0x9B
    USE_ANOTHER_SERVER = 0x9C
    SERVER_MOVED = 0x9D
    SHARED_SUBSCRIPTIONS_NOT_SUPPORTED = 0x9E
    CONNECTION_RATE_EXCEEDED = 0x9F
    MAXIMUM_CONNECT_TIME = 0xA0
    SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED = 0xA1
    WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED = 0xA2


SUCCESS = ReasonCode.SUCCESS


# Connecting.


class Will(msgspec.Struct, frozen=True, gc=False):
    """The message that the server publishes if the connection ends without a normal DISCONNECT (§3.1.2.5).

    `delay`: the seconds between the end of the connection and the publication.
    The other fields are those of `PublishPacket`.
    """

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    delay: int = 0
    properties: bytes = b""
    expiry: int | None = None
    event: str | None = None


class ConnectPacket(msgspec.Struct, frozen=True, gc=False):
    """A client requests a connection.

    `version`: `MQTT_31`, `MQTT_311` or `MQTT_5`.
    `client_id`: "" if the server must assign an id.
    `clean`: Clean Start, or Clean Session in older versions.
    `keep_alive`: the maximum number of seconds between two packets of the client; 0: no maximum.
    `password`: any bytes.
    `session_expiry`: the seconds for which the session outlives its connection; None in older versions than 5.0.
    `receive_maximum`: the maximum number of messages with QoS 1 and 2 that wait for an acknowledgement of the client.
    `maximum_packet_size`: the maximum number of bytes of a packet to the client; None: no maximum.
    `topic_alias_maximum`: the greatest topic alias in messages to the client.
    `wants_reasons`: Request Problem Information; if false, only CONNACK and DISCONNECT may contain a reason string.
    """

    version: int
    client_id: str
    clean: bool = True
    keep_alive: int = 0
    username: str | None = None
    password: bytes | None = None
    will: Will | None = None
    session_expiry: int | None = None
    receive_maximum: int = 65_535
    maximum_packet_size: int | None = None
    topic_alias_maximum: int = 0
    wants_reasons: bool = True
    authentication_method: str | None = None


class ConnackPacket(msgspec.Struct, frozen=True, gc=False):
    """The server accepts or rejects a connection. A field that is None is not sent; the defaults of MQTT 5.0 are not sent.

    `session_expiry`, `server_keep_alive`: the values in seconds that replace those of the client.
    `assigned_client_id`: the id that the server has made for a client without an id.
    `reason_string`: the reason of a rejection, for the developer of the client.
    """

    reason: ReasonCode = SUCCESS
    session_present: bool = False
    topic_alias_maximum: int = 0
    session_expiry: int | None = None
    assigned_client_id: str | None = None
    server_keep_alive: int | None = None
    reason_string: str | None = None
    maximum_packet_size: int | None = None
    receive_maximum: int | None = None


class DisconnectPacket(msgspec.Struct, frozen=True, gc=False):
    """The client or the server ends the connection. `session_expiry`: the client's new value, in seconds; None: no change."""

    reason: ReasonCode = SUCCESS
    session_expiry: int | None = None


# Messages, and the acknowledgements of QoS 1 (PUBACK) and QoS 2 (PUBREC, PUBREL, PUBCOMP).


class PublishPacket(msgspec.Struct, frozen=True, gc=False):
    """A client publishes a message.

    `topic`: the name of the topic, also if the packet has only a topic alias.
    `packet_id`: 0 with QoS 0.
    `properties`: the encoded properties that receivers get unchanged, in their order: Payload Format Indicator, Content Type,
    Response Topic, Correlation Data, User Properties.
    `expiry`: Message Expiry Interval, in seconds; None: the message does not expire.
    `event`: the value of the first user property `event`.
    """

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    packet_id: int = 0
    dup: bool = False
    properties: bytes = b""
    expiry: int | None = None
    event: str | None = None


class PubackPacket(msgspec.Struct, frozen=True, gc=False):
    """Acknowledges messages with QoS 1.

    `packet_ids`: one id, or the ids of consecutive packets without a reason code.
    """

    packet_ids: tuple[int, ...]
    reason: ReasonCode = SUCCESS


class PubrecPacket(msgspec.Struct, frozen=True, gc=False):
    """The receipt for messages with QoS 2; a reason code of 80 or more ends the message. `packet_ids`: as in `PubackPacket`."""

    packet_ids: tuple[int, ...]
    reason: ReasonCode = SUCCESS


class PubrelPacket(msgspec.Struct, frozen=True, gc=False):
    """Releases the packet ids of messages with QoS 2, after their PUBREC. `packet_ids`: as in `PubackPacket`."""

    packet_ids: tuple[int, ...]
    reason: ReasonCode = SUCCESS


class PubcompPacket(msgspec.Struct, frozen=True, gc=False):
    """Completes messages with QoS 2, after their PUBREL. `packet_ids`: as in `PubackPacket`."""

    packet_ids: tuple[int, ...]
    reason: ReasonCode = SUCCESS


# Subscriptions.


class FilterOptions(msgspec.Struct, frozen=True, gc=False):
    """A topic filter in a SUBSCRIBE, with its options (§3.8.3.1).

    `filter`: the whole filter; a shared one begins with `$share/`.
    `no_local`: whether the client does not receive its own messages.
    `retain_as_published`: whether RETAIN of a message is sent as the publisher has set it.
    `retain_handling`: 0: retained messages are sent; 1: only if the subscription is new; 2: never.
    """

    filter: str
    qos: int = 0
    no_local: bool = False
    retain_as_published: bool = False
    retain_handling: int = 0


class SubscribePacket(msgspec.Struct, frozen=True, gc=False):
    """A client subscribes. `subscription_id`: the number that messages for these filters carry; 0: none."""

    packet_id: int
    filters: tuple[FilterOptions, ...]
    subscription_id: int = 0


class SubackPacket(msgspec.Struct, frozen=True, gc=False):
    """The result of each filter of a SUBSCRIBE: a granted QoS, or a reason code of 80 or more."""

    packet_id: int
    reasons: tuple[int, ...]


class UnsubscribePacket(msgspec.Struct, frozen=True, gc=False):
    packet_id: int
    filters: tuple[str, ...]


class UnsubackPacket(msgspec.Struct, frozen=True, gc=False):
    """The result of each filter of an UNSUBSCRIBE. MQTT 3.1 and 3.1.1 have no place for the reason codes."""

    packet_id: int
    reasons: tuple[int, ...]


class PingreqPacket(msgspec.Struct, frozen=True, gc=False):
    pass


# The end of the input.


class Violation(msgspec.Struct, frozen=True, gc=False):
    """The client has broken the protocol, so the server closes the connection. The decoder ignores all further input.

    `reason`: the reason code, also if the client does not receive it.
    `text`: the mistake and its place, for the log.
    `answer`: the last packet to the client, encoded: CONNACK or DISCONNECT; b"" if the server only closes.
    """

    reason: ReasonCode
    text: str
    answer: bytes


ClientPacket = (
    ConnectPacket
    | PublishPacket
    | PubackPacket
    | PubrecPacket
    | PubrelPacket
    | PubcompPacket
    | SubscribePacket
    | UnsubscribePacket
    | PingreqPacket
    | DisconnectPacket
    | Violation
)
