"""Merges the copies of a message that reach an MQTT client through several of its filters: the client gets one copy.

The specification permits one copy for each filter, too (§3.3.4). One copy is shorter, and clients need not detect repetitions.
The copy has the highest QoS of all matching filters [MQTT-3.3.4-2], and all their Subscription Identifiers [MQTT-3.3.4-3, -4].
RETAIN is as published if one of the filters has Retain As Published. The client gets its own message if one of the filters is
without No Local; then only these filters count.

The lanes of overlapping filters have `MqttOwnWire`s, and each lane delivers one copy. All lanes keep the order of messages.
So the first copy of each message is sent, with the properties of all lanes, and the other copies are dropped. Filters that
overlap no other filter of their client keep their wires, so their deliveries cost as much as before.
"""

from collections.abc import Sequence
from typing import NamedTuple

from push1st.core.app import prefix_of
from push1st.core.hub import Wire
from push1st.core.session import Session
from push1st.filters import has_wildcard, matches, overlap
from push1st.messages import Message, qos_of
from push1st.protocols.mqtt.own import MqttOwnWire, OwnFrames, OwnMessage, own_wire
from push1st.protocols.mqtt.wire import MqttWire

MAX_CHANNELS = 1000
"""the maximum number of channels whose matching filters are kept"""
MAX_MERGED = 10_000
"""the maximum number of messages whose further copies are expected; a later copy of an older message would be sent again"""


def is_own(client: Session, id: str) -> bool:
    """Returns whether a socket id belongs to this client: the ids of all its connections begin with its client id."""
    if id == client.id:
        return True
    prefix = client.prefix
    return prefix != "" and id.startswith(prefix) and prefix_of(id) == prefix


class MergedOptions(NamedTuple):
    """The properties of one copy for several filters: those of `MqttOwnWire`, for all filters together."""

    qos: int
    retain_as_published: bool
    subscription_ids: tuple[int, ...]


class Matching(NamedTuple):
    """The filters of a client that match a channel.

    copies: the number of the filters.
    options: the properties of a message for the client.
    own_options: the properties of the client's own messages; None if the client does not get its own messages.
    """

    copies: int
    options: MergedOptions
    own_options: MergedOptions | None


class Overlaps:
    """The filters of one client that overlap. filters: these filters, written as channel names."""

    __slots__ = ("_client", "_further", "_matching", "_version", "filters")

    def __init__(self, client: Session) -> None:
        self._client = client
        self._version = client.app.version
        self._matching: dict[str, Matching] = {}
        self._further: dict[tuple[int, str], int] = {}
        """the number of copies that are still expected, by message id and channel, because one event may have several channels"""
        self.filters: set[str] = set()

    def forget(self) -> None:
        """Discards the derived values, because the filters have changed. No message may be pending for the client."""
        self._matching.clear()
        self._further.clear()

    def merge(self, frames: OwnFrames) -> OwnFrames:
        """Returns the messages of a lane of which the client has no copy yet, with the properties of all matching filters."""
        client, now, further = self._client, frames.now, self._further
        if self._version != client.app.version:  # other lanes may match
            self._version = client.app.version
            self.forget()
        merged: list[OwnMessage] = []
        for item in frames.messages:
            message = item.message
            key = message.id, message.channel
            left = further.pop(key, 0)
            if left:
                if left > 1:
                    further[key] = left - 1
                continue
            matching = self._matching.get(message.channel) or self._find(message)
            if matching.copies > 1:
                further[key] = matching.copies - 1
                if len(further) > MAX_MERGED:
                    del further[next(iter(further))]
            options: MergedOptions | None = matching.options
            if matching.own_options is not options and is_own(client, message.sender):  # [MQTT-3.8.3-3]
                options = matching.own_options
            if options is None:
                continue
            fields = message.mqtt
            retain = options.retain_as_published and fields is not None and fields.retain
            merged.append(item.form(min(options.qos, qos_of(message)), retain, options.subscription_ids, now))
        return OwnFrames(tuple(merged), sum([one.size for one in merged]), False, now)

    def _find(self, message: Message) -> Matching:
        client = self._client
        lanes = client.app.tenant.lanes(message)
        wires = [lane.wire for lane in lanes if client in lane.writes and isinstance(lane.wire, MqttOwnWire)]
        foreign = [wire for wire in wires if not wire.no_local]
        options = _merged(wires)
        own = options if len(foreign) == len(wires) else _merged(foreign) if foreign else None
        found = Matching(len(wires), options, own)
        if len(self._matching) >= MAX_CHANNELS:
            self._matching.clear()
        self._matching[message.channel] = found
        return found


def _merged(wires: Sequence[MqttOwnWire]) -> MergedOptions:
    ids = sorted([id for wire in wires for id in wire.subscription_ids])  # equal ones stay (§3.3.4)
    return MergedOptions(max(wire.qos for wire in wires), any(wire.retain_as_published for wire in wires), tuple(ids))


def overlapping(client: Session, filter: str) -> list[str]:
    """Returns the filters of a client that overlap a new filter. filter: the new filter, written as a channel name."""
    others = client.filters or ()
    if filter.startswith("#") and filter != "#":  # a user's channel, which no filter matches
        return []
    if not has_wildcard(filter):
        return [one for one in others if matches(one, filter)]
    channels = [one for one in client.subscriptions if not has_wildcard(one) and matches(filter, one)]
    return [*(one for one in others if overlap(one, filter)), *channels]


def own_wire_of(wire: Wire) -> MqttOwnWire:
    """Returns the wire of a subscription that overlaps others. It has no maximum size, as packets depend on the other filters."""
    if isinstance(wire, MqttOwnWire):
        ids = wire.subscription_ids
        return own_wire(wire.version, wire.qos, wire.no_local, wire.retain_as_published, ids[0] if ids else 0)
    assert isinstance(wire, MqttWire)
    return own_wire(wire.version, 0, False, wire.retain_as_published, wire.subscription_id)
