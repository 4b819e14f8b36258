"""The messages with packet ids or topic aliases to one MQTT client: their bytes, and the client's acknowledgements.

A session has an `MqttSender` from its first subscription with an `MqttOwnWire` (`protocols/mqtt/own.py`).
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import msgspec

from push1st.brokers.sessions import SavedFlow, SavedMessage, storable
from push1st.core.session import Session
from push1st.protocols.mqtt import encode
from push1st.protocols.mqtt.checkpoints import Checkpoint
from push1st.protocols.mqtt.flow import FlowBounds, FlowCounts, FlowState, Release, Sent, SentMessage
from push1st.protocols.mqtt.outgoing import Outgoing
from push1st.protocols.mqtt.own import OwnFrames, OwnMessage, own_message
from push1st.protocols.mqtt.packets import PubackPacket, PubcompPacket, PubrecPacket
from push1st.protocols.mqtt.shared import GroupMessage, group_message
from push1st.protocols.mqtt.wire import template
from push1st.transports.mqtt.clients import MqttClients
from push1st.transports.mqtt.overlaps import Overlaps, is_own


class PendingRetained(Protocol):
    """The retained messages that are not sent to the client yet (`retained.py`)."""

    def hold(self, messages: Sequence[OwnMessage]) -> Sequence[OwnMessage]:
        """Keeps the messages of channels whose retained message is not sent yet. Returns the other messages."""

    @property
    def held(self) -> Sequence[OwnMessage]:
        """The messages that `hold` has kept."""

    @property
    def filters(self) -> frozenset[str]:
        """The filters whose retained messages are not sent yet."""

    def go_on(self) -> None:
        """Sends further retained messages, because the window has room again."""


class HeldMessages:
    """The live messages that wait until the session is restored. If the messages exceed a bound, the oldest ones are dropped:
    first messages with QoS 0, and then the others.

    waits: a function that returns whether a message waits; the others are sent at once.
    """

    __slots__ = ("_bounds", "_bytes", "_counts", "_qos_0", "_waits", "messages", "on_ended")

    def __init__(self, bounds: FlowBounds, counts: FlowCounts, waits: Callable[[OwnMessage], bool]) -> None:
        self._waits = waits
        self._bounds = bounds
        self._counts = counts
        self._bytes = 0
        self._qos_0 = 0
        """the number of messages with QoS 0"""
        self.messages: deque[OwnMessage] = deque()
        self.on_ended: Callable[[OwnMessage], None] | None = None
        """see `Outgoing.on_ended`"""

    def add(self, messages: Sequence[OwnMessage], now: int) -> Sequence[OwnMessage]:
        """Adds messages. Returns those that do not wait. now: the time on the wall clock in nanoseconds."""
        others = [one for one in messages if not self._waits(one)]
        if others:
            messages = [one for one in messages if self._waits(one)]
        self.messages += messages
        self._bytes += sum([one.size for one in messages])
        self._qos_0 += sum([not one.qos for one in messages])
        if self._qos_0 and self._is_over(len(self.messages)):
            self._drop_qos_0(now)
        while self._is_over(len(self.messages)):
            self._drop(self.messages.popleft(), now)
        return others

    def withdraw(self, is_withdrawn: Callable[[GroupMessage], bool]) -> list[GroupMessage]:
        """Removes messages of shared filters with QoS 1 and 2, and returns them."""
        found: list[GroupMessage] = []
        others: deque[OwnMessage] = deque()
        for one in self.messages:
            if isinstance(one, GroupMessage) and one.qos and is_withdrawn(one):
                found.append(one)
                self._bytes -= one.size
            else:
                others.append(one)
        self.messages = others
        return found

    def _is_over(self, count: int) -> bool:
        return count > self._bounds.queue or self._bytes > self._bounds.queue_size

    def _drop_qos_0(self, now: int) -> None:
        held, self.messages = self.messages, deque()
        left = len(held)
        for one in held:
            if one.qos or not self._is_over(left):
                self.messages.append(one)
            else:
                left -= 1
                self._qos_0 -= 1
                self._drop(one, now)

    def _drop(self, one: OwnMessage, now: int) -> None:
        """Counts a message that is dropped."""
        self._bytes -= one.size
        if self.on_ended is not None:
            self.on_ended(one)
        if 0 < one.expires <= now:
            self._counts.expired += 1
        else:
            self._counts.queue_full += 1


class MqttSender:
    """The messages to the client of one connection.

    version: the protocol level of the client.
    receive_maximum: the client's Receive Maximum.
    max_size: the maximum size of a packet to the client, in bytes; 0: no maximum.
    max_aliases: the maximum number of topic aliases.
    """

    __slots__ = (
        "_aliases",
        "_client",
        "_clients",
        "_max_aliases",
        "_max_size",
        "_outgoing",
        "_version",
        "held",
        "overlaps",
        "pages",
        "unsent",
    )

    def __init__(
        self, clients: MqttClients, client: Session, version: int, receive_maximum: int, max_size: int, max_aliases: int
    ) -> None:
        self._clients = clients
        self._client = client
        self._version = version
        self._max_size = max_size
        self._max_aliases = max_aliases
        self._aliases: dict[str, int] | None = {} if max_aliases else None
        """channel → topic alias, for the time of the connection"""
        self._outgoing: Outgoing[OwnMessage] = Outgoing(clients.bounds, clients.counts)
        self._outgoing.attach(receive_maximum, 0)
        self.overlaps: Overlaps | None = None
        """the filters of the client that overlap; None without such filters"""
        self.unsent: frozenset[str] = frozenset()
        """the filters whose retained messages were not sent when the connection ended"""
        self.pages: PendingRetained | None = None
        """the retained messages that are not sent yet; None if all are sent"""
        self.held: HeldMessages | None = None
        """the live messages that wait until the session is restored; None if the session is restored or new"""

    def deliver(self, frames: OwnFrames) -> None:
        """Sends the messages of a flush, or lets them wait for room in the client's window."""
        messages: Sequence[OwnMessage] = frames.messages
        if frames.no_local:  # [MQTT-3.8.3-3]
            messages = [one for one in messages if not is_own(self._client, one.message.sender)]
        if self.held is not None:
            messages = self.held.add(messages, frames.now)
            if not messages:
                return
        if self.pages is not None:
            messages = self.pages.hold(messages)
        sent = self._outgoing.send(messages, frames.now)
        if sent:
            data = self._encoded(sent, frames.now)
            if data:
                self._client.write(data)

    def deliver_merged(self, frames: OwnFrames) -> None:
        """Delivers as `deliver` does, for a filter that overlaps other filters of the client."""
        assert self.overlaps is not None
        self.deliver(self.overlaps.merge(frames))

    @property
    def deliveries(self) -> Outgoing[OwnMessage]:
        """The messages that the client has not acknowledged."""
        return self._outgoing

    @property
    def is_holding(self) -> bool:
        """Whether messages wait that are not in `deliveries` yet."""
        return self.held is not None or (self.pages is not None and bool(self.pages.held))

    @property
    def flow(self) -> tuple[int, int]:
        """The number of messages in flight, and the number of waiting messages."""
        return self._outgoing.inflight, self._outgoing.waiting

    @property
    def room(self) -> int:
        """The number of messages with QoS 1 or 2 that can be sent now."""
        return 0 if self._outgoing.is_behind or self.held is not None else self._outgoing.room

    def send(self, messages: Sequence[OwnMessage]) -> None:
        """Sends messages that no lane has delivered."""
        client = self._client
        now = client.node.clock.wall()
        data = self._encoded(self._outgoing.send(messages, now), now)
        if data:
            client.app.counts.bytes_out += len(data)
            client.write(data)

    @property
    def id(self) -> str:
        """The id of the client's session in the core."""
        return self._client.id

    @property
    def version(self) -> int:
        return self._version

    def withdraw(self, is_withdrawn: Callable[[GroupMessage], bool], with_sent: bool) -> list[GroupMessage]:
        """Removes messages of shared filters that were not sent. with_sent: see `Outgoing.withdraw`."""
        found = self._outgoing.withdraw(lambda item: isinstance(item, GroupMessage) and is_withdrawn(item), with_sent)
        held = [] if self.held is None else self.held.withdraw(is_withdrawn)
        return [*cast(list[GroupMessage], found), *held]

    def acknowledge(self, packet: PubackPacket | PubrecPacket | PubcompPacket) -> bool:
        """Handles acknowledgements. Returns false if no message needs the acknowledgements. Raises FlowViolation."""
        outgoing = self._outgoing
        is_expected = outgoing.has(packet.packet_ids)
        if type(packet) is PubackPacket:
            outgoing.puback(packet.packet_ids)
        elif type(packet) is PubcompPacket:
            outgoing.pubcomp(packet.packet_ids)
        else:
            released = outgoing.pubrec(packet.packet_ids, packet.reason)
            if released:
                client = self._client
                client.node.fanout.direct(client, encode.acknowledgements(encode.PUBREL, released), is_ahead=True)
        if outgoing.is_behind:
            self._go_on()
        if self.pages is not None:
            self.pages.go_on()
        return is_expected

    def discard(self, is_obsolete: Callable[[str], bool]) -> None:
        """Discards the waiting messages of some channels. is_obsolete: whether the messages of a channel are discarded."""
        if self._outgoing.waiting:
            self._outgoing.discard(lambda item: is_obsolete(item.message.channel))

    # Sessions that outlive the connection

    def hold(self, waits: Callable[[OwnMessage], bool] = lambda _: True) -> None:
        """Holds live messages until `resume` or `release` is called. waits: see `HeldMessages`."""
        if self.held is None:
            self.held = HeldMessages(self._clients.bounds, self._clients.counts, waits)
            self.held.on_ended = self._outgoing.on_ended

    def release(self) -> None:
        """Sends the messages that `hold` has kept."""
        if self.held is not None:
            messages: Sequence[OwnMessage] = [*self.held.messages]
            self.held = None
            self.send(messages if self.pages is None else self.pages.hold(messages))

    def detach(self) -> None:
        """Ends the connection: later messages with QoS 1 and 2 wait."""
        self._outgoing.detach()
        if self.pages is not None:
            pages, self.pages = self.pages, None
            self.unsent = pages.filters
            self._outgoing.send(pages.held, self._client.node.clock.wall())

    def save(self, received: tuple[tuple[int, int], ...], with_messages: bool = True) -> SavedFlow:
        """Returns the deliveries of the session, with the held messages.

        received: see `FlowState`. with_messages: false for the form without messages (`SavedProgress`).
        """
        if not with_messages:
            outgoing = self._outgoing
            return SavedFlow(outgoing.next_id, tuple([(packet_id, None) for packet_id in outgoing.qos_2]), received=received)
        state = self._outgoing.save(received)
        inflight = tuple([(packet_id, None if one is None else _saved(one)) for packet_id, one in state.inflight])
        held = () if self.held is None else [one for one in self.held.messages if one.qos]
        return SavedFlow(state.next_id, inflight, tuple(map(_saved, (*state.waiting, *held))), received)

    def held_of_groups(self) -> tuple[SavedMessage, ...]:
        """Returns the held messages of groups, which are in no log, if the connection ends before the session is restored."""
        held = () if self.held is None else self.held.messages
        return tuple([_saved(one) for one in held if isinstance(one, GroupMessage) and one.qos])

    def resume(self, flow: SavedFlow, crashed: bool, receive_maximum: int, logged: Sequence[OwnMessage]) -> Checkpoint[None]:
        """Continues the deliveries of a session.

        Sends the unacknowledged packets again, then the waiting messages, the logged messages, and the held live messages.

        flow: the saved deliveries. logged: the messages that were published while the client was absent, in order.

        Returns a checkpoint of the saved deliveries.
        """
        client = self._client
        client.node.fanout.flush_subscriber(client)  # the live messages that may be in the logs, too
        now = client.node.clock.wall()
        # With a shared broker, a saved delivery may contain a message that the logs contain too. The client receives such a
        # message at its place in the logs, because the order of the logs is the order of publication.
        ordered = {_key(one) for one in logged}
        waiting = [one for one in flow.waiting if one.group or (one.message.id, one.message.channel, "") not in ordered]
        flow = msgspec.structs.replace(flow, waiting=tuple(waiting))
        on_ended = self._outgoing.on_ended
        outgoing = self._outgoing = Outgoing.restore(
            _state(flow, self._version, now), self._clients.bounds, self._clients.counts, crashed
        )
        outgoing.on_ended = on_ended
        parts = self._again(outgoing.attach(receive_maximum, now), now)
        checkpoint = Checkpoint(None, outgoing)
        held, self.held = () if self.held is None else self.held.messages, None
        waited = (*(one for _, one in flow.inflight if one is not None), *flow.waiting)
        known = {(one.message.id, one.message.channel, one.group) for one in waited}
        repeated = [one for one in logged if _key(one) in known]
        logged = [one for one in logged if _key(one) not in known]
        known.update(map(_key, logged))
        live: Sequence[OwnMessage] = [one for one in held if _key(one) not in known]
        items = [*logged, *(live if self.pages is None else self.pages.hold(live))]
        if on_ended is not None:
            for one in [*repeated, *(one for one in held if _key(one) in known)]:
                on_ended(one)
        parts.append(self._encoded(outgoing.send(items, now), now))
        client.app.counts.messages_out += len(logged)
        if data := b"".join(parts):
            client.node.fanout.direct(client, data, is_ahead=True)
        return checkpoint

    def _again(self, sent: Sequence[Sent[OwnMessage]], now: int) -> list[bytes]:
        """Returns the bytes of the packets that follow CONNACK [MQTT-4.4.0-1]."""
        parts: list[bytes] = []
        messages: list[SentMessage[OwnMessage]] = []
        for packet_id, item, dup in sent:
            if isinstance(item, Release):
                parts += (self._encoded(messages, now), encode.acknowledgement(encode.PUBREL, packet_id))
                messages = []
            else:
                messages.append((packet_id, item, dup))
        parts.append(self._encoded(messages, now))
        return parts

    # Packets

    def _go_on(self) -> None:
        """Sends waiting messages for which the window has room."""
        client = self._client
        now = client.node.clock.wall()
        data = self._encoded(self._outgoing.fill(now), now)
        if data:
            client.node.fanout.direct(client, data, is_ahead=True)

    def _encoded(self, sent: list[SentMessage[OwnMessage]], now: int) -> bytes:
        """Returns the bytes of packets."""
        if self._aliases is not None or self._max_size:
            return self._encoded_apart(sent, now)
        parts: list[bytes] = []
        # measured: 0.2 µs for a message; run `python bench/mqtt_deliver.py` before changing
        for packet_id, item, dup in sent:
            if item.expires or dup or not packet_id:
                parts.append(_packet(item, packet_id, dup, now))
            else:
                parts += (item.head, packet_id.to_bytes(2, "big"), item.tail)
        return b"".join(parts)

    def _encoded_apart(self, sent: list[SentMessage[OwnMessage]], now: int) -> bytes:
        """Returns the bytes of packets for a client with topic aliases, or with a maximum size of packets."""
        parts: list[bytes] = []
        while sent:
            dropped: list[int] = []
            for packet_id, item, dup in sent:
                frame = self._frame(item, packet_id, dup, now)
                if frame:
                    parts.append(frame)
                    continue
                self._clients.counts.too_large += 1
                if packet_id:
                    dropped.append(packet_id)
            if not dropped:
                break
            self._outgoing.drop(dropped)  # [MQTT-3.1.2-25]
            sent = self._outgoing.fill(now)
        return b"".join(parts)

    def _frame(self, item: OwnMessage, packet_id: int, dup: bool, now: int) -> bytes:
        """Returns the packet of a message; b"" if the packet is too large for the client."""
        if self._aliases is not None:
            channel = item.message.channel
            alias = self._aliases.get(channel, 0)
            if alias or len(self._aliases) < self._max_aliases:
                frame = self._aliased(item, packet_id, dup, now, alias or len(self._aliases) + 1, bool(alias))
                if not 0 < self._max_size < len(frame):
                    self._aliases[channel] = alias or len(self._aliases) + 1
                    return frame
        frame = _packet(item, packet_id, dup, now)
        return b"" if 0 < self._max_size < len(frame) else frame

    def _aliased(self, item: OwnMessage, packet_id: int, dup: bool, now: int, alias: int, is_known: bool) -> bytes:
        """Returns the packet of a message with a topic alias [MQTT-3.3.2-8, -11]."""
        found = template(item.message, self._version, item.qos, item.retain, item.subscription_ids, now, alias, is_known)
        assert found is not None
        return found.frame(packet_id, dup) if packet_id else found.head


def _packet(item: OwnMessage, packet_id: int, dup: bool, now: int) -> bytes:
    item.refresh(now)
    found = encode.PublishTemplate(item.head, item.tail)
    return found.frame(packet_id, dup) if packet_id else found.head


def _saved(item: OwnMessage) -> SavedMessage:
    """Returns a message in the form that the broker stores. Sessions share this object, to save memory."""
    if item.saved is None:
        item.saved = SavedMessage(storable(item.message), item.qos, item.retain, item.subscription_ids, _group(item))
    return item.saved


def _group(item: OwnMessage) -> str:
    """Returns the group of a message; "" for a message of the client's own subscriptions."""
    return item.group if isinstance(item, GroupMessage) else ""


def _state(flow: SavedFlow, version: int, now: int) -> FlowState[OwnMessage]:
    """Returns the deliveries, with messages in a protocol version. now: the wall clock in nanoseconds."""
    inflight: list[tuple[int, OwnMessage | None]] = []
    for packet_id, saved in flow.inflight:
        item = None if saved is None else _own(saved, version, now)
        if saved is None or item is not None:
            inflight.append((packet_id, item))
    waiting = [item for saved in flow.waiting if (item := _own(saved, version, now)) is not None]
    return FlowState(flow.next_id, tuple(inflight), tuple(waiting))


def _own(saved: SavedMessage, version: int, now: int) -> OwnMessage | None:
    if saved.group:
        return group_message(saved.message, saved.group, version, saved.qos, saved.retain, saved.subscription_ids, now)
    return own_message(saved.message, version, saved.qos, saved.retain, saved.subscription_ids, now)


def _key(item: OwnMessage) -> tuple[int, str, str]:
    """Returns a value that is equal for two copies of a message for the same subscriptions."""
    return item.message.id, item.message.channel, _group(item)
