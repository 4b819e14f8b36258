"""Encodes the messages of channels for MQTT clients that receive frames of their own, with a packet id or a topic alias.

A message is encoded once for all subscriptions with the same properties (`OwnMessage`). For each client, the owner of the session
adds only the packet id. See `hub.OwnWire` for the way of the frames through the fan-out.
"""

from collections.abc import Sequence
from weakref import WeakValueDictionary

from push1st.brokers.sessions import SavedMessage
from push1st.messages import Message, qos_of
from push1st.protocols.mqtt.packets import MQTT_5, MQTT_311
from push1st.protocols.mqtt.wire import DROPPED, SECOND, template

NEVER = 1 << 63


class OwnMessage:
    """A message for subscriptions with the same properties (`flow.Sendable`). All sessions with such subscriptions share this
    object.

    `version`: the version of `head` and `tail`: `MQTT_311` or `MQTT_5`.
    `qos`: the QoS with which the message is delivered. `retain`: RETAIN in the packet.
    `subscription_ids`: the Subscription Identifiers in the packet.
    `head`, `tail`: the bytes before and after the packet id (`encode.PublishTemplate`).
    `size`: the number of bytes of the packet.
    `expires`: when the message expires, on the wall clock in nanoseconds; 0: never.
    """

    __slots__ = (
        "_forms",
        "_until",
        "expires",
        "head",
        "message",
        "qos",
        "retain",
        "saved",
        "size",
        "subscription_ids",
        "tail",
        "version",
    )

    def __init__(
        self,
        message: Message,
        version: int,
        qos: int,
        retain: bool,
        subscription_ids: tuple[int, ...],
        head: bytes,
        tail: bytes,
        now: int,
    ) -> None:
        self.message = message
        self.version = version
        self.qos = qos
        self.retain = retain
        self.subscription_ids = subscription_ids
        self.head = head
        self.tail = tail
        self.size = len(head) + len(tail) + (2 if qos else 0)
        fields = message.mqtt
        self.expires = 0 if fields is None else fields.expires
        self._until = _until(self.expires, now)
        """the time until which `head` and `tail` have the right Message Expiry Interval"""
        self.saved: SavedMessage | None = None
        """the message in the form that the broker stores, when it is first needed"""
        self._forms: dict[tuple[int, bool, tuple[int, ...]], OwnMessage] | None = None

    def form(self, qos: int, retain: bool, subscription_ids: tuple[int, ...], now: int) -> "OwnMessage":
        """Returns the message with other properties. All sessions that share this object share the result.

        `now`: the time on the wall clock in nanoseconds.
        """
        properties = qos, retain, subscription_ids
        if properties == (self.qos, self.retain, self.subscription_ids):
            return self
        forms = self._forms
        if forms is None:
            forms = self._forms = {}
        found = forms.get(properties)
        if found is None:
            data = template(self.message, self.version, *properties, now)
            assert data is not None
            found = forms[properties] = OwnMessage(self.message, self.version, *properties, data.head, data.tail, now)
        return found

    def refresh(self, now: int) -> None:
        """Encodes the message again if its remaining time has changed by a second [MQTT-3.3.2-6].

        `now`: the time on the wall clock in nanoseconds.
        """
        if self.version == MQTT_5 and self.expires and now >= self._until:
            found = template(self.message, MQTT_5, self.qos, self.retain, self.subscription_ids, now)
            assert found is not None
            self.head, self.tail = found.head, found.tail
            self._until = _until(self.expires, now)


def _until(expires: int, now: int) -> int:
    """Returns the time until which the Message Expiry Interval of a packet from the time `now` is right."""
    remaining = -((now - expires) // SECOND)
    return expires - (remaining - 1) * SECOND if remaining > 0 else NEVER


class OwnFrames:
    """The messages of one or more frames, in order. The length is the number of their bytes.

    `no_local`: whether the subscribers do not receive their own messages [MQTT-3.8.3-3].
    `now`: when the last message was encoded, on the wall clock in nanoseconds.
    """

    __slots__ = ("messages", "no_local", "now", "size")

    def __init__(self, messages: tuple[OwnMessage, ...], size: int, no_local: bool, now: int) -> None:
        self.messages = messages
        self.size = size
        self.no_local = no_local
        self.now = now

    def __len__(self) -> int:
        return self.size


EMPTY = OwnFrames((), 0, False, 0)


class MqttOwnWire:
    """The wire of subscriptions with the same properties, whose messages need a packet id, a topic alias or a decision.

    `version`: `MQTT_311`, also for MQTT 3.1, which has the same frames; or `MQTT_5`.
    `qos`: the granted QoS. A message is sent with the lower one of its own QoS and the granted QoS [MQTT-3.8.4-8].
    `no_local`: whether the subscribers do not receive their own messages.
    `retain_as_published`, `subscription_id`, `max_size`: as in `MqttWire`.
    """

    __slots__ = ("__weakref__", "max_size", "name", "no_local", "qos", "retain_as_published", "subscription_ids", "version")

    def __init__(
        self, version: int, qos: int, no_local: bool, retain_as_published: bool, subscription_id: int, max_size: int
    ) -> None:
        self.version = version
        self.name = "mqtt5" if version == MQTT_5 else "mqtt"
        self.qos = qos
        self.no_local = no_local
        self.retain_as_published = retain_as_published
        self.subscription_ids = (subscription_id,) if subscription_id else ()
        self.max_size = max_size

    def message(self, message: Message, now: int) -> OwnFrames:
        """See `hub.Wire`. The result is empty for a message that the subscribers do not get."""
        fields = message.mqtt
        qos = min(self.qos, qos_of(message))
        retain = self.retain_as_published and fields is not None and fields.retain
        own = own_message(message, self.version, qos, retain, self.subscription_ids, now)
        if own is None:
            return EMPTY
        if 0 < self.max_size < own.size:  # [MQTT-3.1.2-24, -25]
            DROPPED["too-large"] += 1
            return EMPTY
        return OwnFrames((own,), own.size, self.no_local, now)

    def join(self, frames: Sequence[OwnFrames]) -> OwnFrames:
        """See `hub.OwnWire`."""
        messages = tuple([message for one in frames for message in one.messages])
        return OwnFrames(messages, sum(map(len, frames)), self.no_local, frames[-1].now)


Properties = tuple[int, int, bool, tuple[int, ...]]
_last: tuple[Message, dict[Properties, OwnMessage | None]] | None = None
"""the last message in its encoded forms, because several wires encode the same message one after another"""


def own_message(
    message: Message, version: int, qos: int, retain: bool, subscription_ids: tuple[int, ...], now: int
) -> OwnMessage | None:
    """Returns a message for clients; None for a message that MQTT clients do not get. The parameters are those of `template`."""
    global _last  # one message, for all wires of the process
    if _last is None or _last[0] is not message:
        _last = message, {}
    known, properties = _last[1], (version, qos, retain, subscription_ids)
    if properties not in known:
        found = template(message, version, qos, retain, subscription_ids, now)
        own = None
        if found is not None:
            own = OwnMessage(message, version, qos, retain, subscription_ids, found.head, found.tail, now)
        known[properties] = own
    return known[properties]


_wires: WeakValueDictionary[tuple[int, int, bool, bool, int, int], MqttOwnWire] = WeakValueDictionary()


def own_wire(
    version: int,
    qos: int,
    no_local: bool = False,
    retain_as_published: bool = False,
    subscription_id: int = 0,
    max_size: int = 0,
) -> MqttOwnWire:
    """Returns the wire with these properties (`MqttOwnWire`). `version`: a protocol level."""
    key = MQTT_5 if version == MQTT_5 else MQTT_311, qos, no_local, retain_as_published, subscription_id, max_size
    found = _wires.get(key)
    if found is None:
        found = _wires[key] = MqttOwnWire(*key)
    return found
