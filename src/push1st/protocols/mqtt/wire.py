"""Encodes the messages of channels for MQTT clients that receive shared frames, which have QoS 0 and no packet id.

A wire is one object for all subscriptions with the same properties, so these subscriptions share each frame (`core/hub.py`).
Subscriptions with different Subscription Identifiers need different bytes, so they have different wires.
"""

from collections import Counter
from typing import Final
from weakref import WeakValueDictionary

from push1st.channels import RESERVED
from push1st.messages import Message
from push1st.protocols.mqtt import encode
from push1st.protocols.mqtt.packets import MQTT_5, MQTT_311
from push1st.protocols.mqtt.payload import payload_of
from push1st.protocols.mqtt.topics import topic_of

SECOND = 1_000_000_000
"""the nanoseconds of a second"""
EVENT = "event"
"""the user property with an event's name, for messages whose publisher is no MQTT client"""


class MqttWire:
    """The wire of subscriptions with the same properties.

    `version`: `MQTT_311`, also for MQTT 3.1, which has the same frames; or `MQTT_5`.
    `retain_as_published`: whether RETAIN is sent as the publisher has set it; otherwise it is 0 [MQTT-3.3.1-12, -13].
    `subscription_id`: the Subscription Identifier; 0: none.
    `max_size`: the maximum size of a packet in bytes; longer packets are not sent [MQTT-3.1.2-24, -25]. 0: no maximum.
    """

    __slots__ = ("__weakref__", "max_size", "name", "retain_as_published", "subscription_id", "version")

    def __init__(self, version: int, retain_as_published: bool, subscription_id: int, max_size: int) -> None:
        self.version = version
        self.name = "mqtt5" if version == MQTT_5 else "mqtt"
        self.retain_as_published = retain_as_published
        self.subscription_id = subscription_id
        self.max_size = max_size

    def message(self, message: Message, now: int) -> bytes:
        """See `hub.Wire`. Returns b"" for a message that MQTT clients do not get, such as a change of a channel's members."""
        fields = message.mqtt
        retain = self.retain_as_published and fields is not None and fields.retain
        ids = (self.subscription_id,) if self.subscription_id else ()
        found = template(message, self.version, 0, retain, ids, now)
        if found is None:
            return b""
        if 0 < self.max_size < len(found.head):
            DROPPED["too-large"] += 1
            return b""
        return found.head


def template(
    message: Message,
    version: int,
    qos: int,
    retain: bool,
    subscription_ids: tuple[int, ...],
    now: int,
    alias: int = 0,
    is_known: bool = False,
) -> encode.PublishTemplate | None:
    """Encodes a message for clients. Returns None for a message that MQTT clients do not get.

    `retain`: RETAIN in the packet. `now`: the time on the wall clock in nanoseconds.
    `alias`: the topic alias; 0: none. `is_known`: whether the client knows the topic by its alias.
    The other parameters are those of `encode.publish`.
    """
    if message.event.startswith(RESERVED):
        return None
    topic, payload = _converted(message)
    if topic is None:
        return None
    if version != MQTT_5:
        return encode.publish(MQTT_311, topic, payload, qos, retain)
    expiry, fields = None, message.mqtt
    if fields is None:
        properties = encode.user_property(EVENT, message.event)
    else:
        properties = fields.properties
        if fields.expires:  # [MQTT-3.3.2-6], rounded up
            expiry = max(0, -((now - fields.expires) // SECOND))
    return encode.publish(MQTT_5, "" if is_known else topic, payload, qos, retain, properties, expiry, subscription_ids, alias)


DROPPED: Final[Counter[str]] = Counter()
"""the number of messages since the start of the process that are too large for a wire; a message counts once for each wire"""

_last: tuple[Message, str | None, bytes] | None = None
"""the last message, with its topic and payload, because several wires encode the same message one after another"""


def _converted(message: Message) -> tuple[str | None, bytes]:
    """Returns the topic and the payload of a message. The topic is None if no topic may have the channel's name."""
    global _last  # one message, for all wires of the process
    if _last is None or _last[0] is not message:
        _last = message, topic_of(message.channel), payload_of(message.data)
    return _last[1], _last[2]


_wires: WeakValueDictionary[tuple[int, bool, int, int], MqttWire] = WeakValueDictionary()


def wire_of(version: int, retain_as_published: bool = False, subscription_id: int = 0, max_size: int = 0) -> MqttWire:
    """Returns the wire with these properties (`MqttWire`). `version`: a protocol level."""
    key = MQTT_5 if version == MQTT_5 else MQTT_311, retain_as_published, subscription_id, max_size
    found = _wires.get(key)
    if found is None:
        found = _wires[key] = MqttWire(*key)
    return found
