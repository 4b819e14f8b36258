"""The messages to the client of one session: packet ids, the window, waiting messages, and repetitions.

    QoS 1:  waiting ─▶ in flight (PUBLISH sent) ──PUBACK──▶ done
    QoS 2:  waiting ─▶ in flight (PUBLISH sent) ──PUBREC──▶ in flight (PUBREL sent) ──PUBCOMP──▶ done

See `flow.py` for the terms that both directions share.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, Self, cast

from push1st.protocols.mqtt.flow import (
    RELEASE,
    FlowBounds,
    FlowCounts,
    FlowState,
    FlowViolation,
    Item,
    Release,
    Sent,
    SentMessage,
)
from push1st.protocols.mqtt.packets import MAX_PACKET_ID, ReasonCode

BLOCK_IDS = 500
BLOCK_WINDOWS = 4
"""A session uses the packet ids of one block again and again. After a crash, it continues with the next block, and after the last
block with the first one. A block has `BLOCK_IDS` ids, or `BLOCK_WINDOWS` times `FlowBounds.inflight` if this number is greater.
So an id is free for a while before it is used again, which checkpoints need (`checkpoints.py`). With the default settings, there
are 131 blocks. With an `inflight` of more than 32,767, there is only one."""


class Outgoing(Generic[Item]):
    """The messages to one client. Without a connection, messages with QoS 1 and 2 wait, and messages with QoS 0 are not kept."""

    __slots__ = (
        "_again",
        "_bounds",
        "_counts",
        "_entered",
        "_first_id",
        "_inflight",
        "_last_id",
        "_next_id",
        "_waiting",
        "_waiting_size",
        "_window",
        "on_ended",
    )

    def __init__(self, bounds: FlowBounds, counts: FlowCounts) -> None:
        self._bounds = bounds
        self._counts = counts
        self.on_ended: Callable[[Item], None] | None = None
        """a function that is called for each message with QoS 1 or 2 that the client has received, or that is dropped"""
        self._window = 0
        """the maximum number of messages in flight on this connection; 0 without a connection"""
        self._next_id = 1
        """the first packet id to try for the next message"""
        self._first_id, self._last_id = _block(1, bounds)
        self._inflight: dict[int, Item | Release] = {}
        """packet id → message, in the order in which the last packet of each message was first sent"""
        self._again: Sequence[int] = ()
        """the ids of messages in flight that do not fit into the window of this connection, and are sent again later"""
        self._waiting: deque[Item] | None = None
        self._waiting_size = 0
        self._entered = 0

    @property
    def inflight(self) -> int:
        """The number of messages in flight."""
        return len(self._inflight)

    @property
    def waiting(self) -> int:
        """The number of messages that wait."""
        return len(self._waiting or ())

    @property
    def entered(self) -> int:
        """The number of messages that have begun to wait, without discarded ones. The oldest of them leave first."""
        return self._entered

    @property
    def unreceived(self) -> list[int]:
        """The packet ids of the messages in flight that the client may not have received."""
        return [packet_id for packet_id, item in self._inflight.items() if item is not RELEASE]

    @property
    def next_id(self) -> int:
        """The first packet id to try for the next message."""
        return self._next_id

    @property
    def qos_2(self) -> list[int]:
        """The packet ids of the messages with QoS 2 in flight."""
        return [packet_id for packet_id, item in self._inflight.items() if item.qos == 2]

    def has(self, packet_ids: Iterable[int]) -> bool:
        """Returns whether one of these packet ids belongs to a message in flight."""
        return not self._inflight.keys().isdisjoint(packet_ids)

    @property
    def is_behind(self) -> bool:
        """Whether messages wait for room in the window."""
        return self._waiting is not None or bool(self._again)

    @property
    def room(self) -> int:
        """The number of messages with QoS 1 or 2 for which the window has room."""
        # [MQTT-3.3.4-9]: a message with QoS 1 or 2 counts until PUBACK, PUBCOMP, or a PUBREC with an error code. A message whose
        # PUBREL is sent again on a new connection counts too, because it may still count in the client.
        return self._window - len(self._inflight) + len(self._again)

    def attach(self, receive_maximum: int, now: int) -> list[Sent[Item]]:
        """Begins a connection, and returns the packets that follow CONNACK: first those that are sent again.

        `receive_maximum`: the client's Receive Maximum.
        `now`: the time on the wall clock in nanoseconds.
        """
        # [MQTT-4.9.0-1]: the window begins again with each connection.
        self._window = min(receive_maximum, self._bounds.inflight)
        room = self._window - sum(item is RELEASE for item in self._inflight.values())
        sent: list[Sent[Item]] = []
        again: list[int] = []
        # [MQTT-4.4.0-1]: every unacknowledged PUBLISH and PUBREL is sent again with its packet id, once for each connection.
        # [MQTT-4.6.0-1], [MQTT-4.6.0-4]: in the original order. [MQTT-4.3.3-7]: a message that was sent does not expire.
        for packet_id, item in self._inflight.items():
            if item is RELEASE:
                # [MQTT-3.3.4-10]: a PUBREL needs no room.
                sent.append((packet_id, item, False))
            elif room > 0:
                room -= 1
                sent.append((packet_id, item, True))  # [MQTT-3.3.1-1]
            else:
                again.append(packet_id)
        self._again = again
        self._counts.resent += len(sent)
        return [*sent, *self.fill(now)]

    def detach(self) -> None:
        """Ends the connection."""
        self._window = 0

    def send(self, items: Iterable[Item], now: int) -> list[SentMessage[Item]]:
        """Accepts messages, and returns the packets to send now, in order. Messages for which the window has no room wait.

        `now`: the time on the wall clock in nanoseconds.

        A message that need not wait is sent even if it has expired: a message with the lifetime 0 reaches a client with room.
        """
        sent = self.fill(now) if self._waiting or self._again else []
        inflight = self._inflight
        room = self.room if self._again else self._window - len(inflight)
        packet_id, first_id, last_id = self._next_id, self._first_id, self._last_id
        # measured: 0.1 µs for a message; run `python bench/mqtt_flow.py` before changing
        for item in items:
            if not item.qos:
                # §4.9 permits QoS 0 without room.
                if self._window:
                    sent.append((0, item, False))
            elif room > 0:
                room -= 1
                # [MQTT-2.2.1-4], [MQTT-4.3.2-1], [MQTT-4.3.3-1]: an id that is not in use.
                while packet_id in inflight:
                    packet_id = packet_id + 1 if packet_id < last_id else first_id
                # [MQTT-4.3.2-3], [MQTT-4.3.3-3]: the message is unacknowledged from now on.
                inflight[packet_id] = item
                sent.append((packet_id, item, False))  # [MQTT-4.3.2-2], [MQTT-4.3.3-2]
                packet_id = packet_id + 1 if packet_id < last_id else first_id
            else:
                self._wait(item, now)
        self._next_id = packet_id
        return sent

    def _wait(self, item: Item, now: int) -> None:
        """Adds a message to the waiting messages. If a bound is exceeded, the oldest waiting messages are dropped."""
        waiting = self._waiting
        if waiting is None:
            waiting = self._waiting = deque()
        waiting.append(item)
        self._entered += 1
        self._waiting_size += item.size
        while len(waiting) > self._bounds.queue or self._waiting_size > self._bounds.queue_size:
            oldest = waiting.popleft()
            self._waiting_size -= oldest.size
            if 0 < oldest.expires <= now:
                self._counts.expired += 1
            else:
                self._counts.queue_full += 1
            if self.on_ended is not None:
                self.on_ended(oldest)

    def fill(self, now: int) -> list[SentMessage[Item]]:
        """Returns the waiting packets for which the window has room. The owner calls `fill` after the acknowledgements of a read.

        `now`: the time on the wall clock in nanoseconds.
        """
        sent: list[SentMessage[Item]] = []
        if self._waiting is None and not self._again:
            return sent
        room = self.room
        if room <= 0:
            return sent  # [MQTT-4.9.0-2]
        inflight = self._inflight
        if self._again:
            first, self._again = self._again[:room], self._again[room:]
            sent += [(packet_id, cast(Item, inflight[packet_id]), True) for packet_id in first]  # `_tidy` removes releases
            self._counts.resent += len(first)
            room -= len(first)
        waiting = self._waiting
        if waiting is None:
            return sent
        packet_id, first_id, last_id = self._next_id, self._first_id, self._last_id
        # [MQTT-4.6.0-5]: in the order of publication.
        while room > 0 and waiting:
            item = waiting.popleft()
            self._waiting_size -= item.size
            # [MQTT-3.3.2-5]: a message that expires before it was sent is deleted.
            if 0 < item.expires <= now:
                self._counts.expired += 1
                if self.on_ended is not None:
                    self.on_ended(item)
                continue
            room -= 1
            while packet_id in inflight:
                packet_id = packet_id + 1 if packet_id < last_id else first_id
            inflight[packet_id] = item
            sent.append((packet_id, item, False))
            packet_id = packet_id + 1 if packet_id < last_id else first_id
        self._next_id = packet_id
        if not waiting:
            self._waiting = None
        return sent

    def puback(self, packet_ids: Iterable[int]) -> None:
        """Ends messages with QoS 1. Ignores unknown ids, and the reason code of the packets [MQTT-4.4.0-2].

        Raises FlowViolation if a message has QoS 2.
        """
        inflight = self._inflight
        for packet_id in packet_ids:
            item = inflight.get(packet_id)
            if item is None:
                continue
            if item.qos != 1:
                raise FlowViolation(ReasonCode.PROTOCOL_ERROR, f"PUBACK for packet {packet_id}, which has QoS 2")
            del inflight[packet_id]
            if self.on_ended is not None:
                self.on_ended(cast(Item, item))
        self._tidy()

    def pubrec(self, packet_ids: Sequence[int], reason: int = ReasonCode.SUCCESS) -> Sequence[int]:
        """Handles the receipts for messages with QoS 2. Returns the packet ids for which the owner sends PUBREL.

        `reason`: the reason code of the packets.

        Raises FlowViolation if a message has QoS 1.
        """
        inflight = self._inflight
        is_error = reason >= ReasonCode.UNSPECIFIED_ERROR
        for packet_id in packet_ids:
            item = inflight.get(packet_id)
            if item is None:
                continue
            if item.qos != 2:
                raise FlowViolation(ReasonCode.PROTOCOL_ERROR, f"PUBREC for packet {packet_id}, which has QoS 1")
            if self.on_ended is not None and item is not RELEASE:
                self.on_ended(cast(Item, item))
            if is_error:
                # [MQTT-4.4.0-2]: after an error, the message is not sent again.
                del inflight[packet_id]
            elif item is not RELEASE:
                # [MQTT-4.3.3-5]: the PUBREL is unacknowledged from now on. [MQTT-4.3.3-6]: the PUBLISH is never sent again.
                # [MQTT-4.6.0-4]: the entry moves to the end, because PUBRELs keep the order of their PUBRECs.
                del inflight[packet_id]
                inflight[packet_id] = RELEASE
        self._tidy()
        # [MQTT-4.3.3-4]. If an id is unknown, or its PUBREL was sent before, the client still needs a PUBREL to free the id.
        return () if is_error else packet_ids

    def pubcomp(self, packet_ids: Iterable[int]) -> None:
        """Ends messages with QoS 2. Ignores unknown ids, and the reason code of the packets.

        Raises FlowViolation if the server has not sent a PUBREL for a message.
        """
        inflight = self._inflight
        for packet_id in packet_ids:
            item = inflight.get(packet_id)
            if item is None:
                continue
            if item is not RELEASE:
                raise FlowViolation(ReasonCode.PROTOCOL_ERROR, f"PUBCOMP for packet {packet_id}, which had no PUBREL")
            del inflight[packet_id]
        self._tidy()

    def drop(self, packet_ids: Iterable[int]) -> None:
        """Ends messages that are too large for the client, as if they had been delivered [MQTT-3.1.2-25]."""
        for packet_id in packet_ids:
            item = self._inflight.pop(packet_id, RELEASE)
            if self.on_ended is not None and item is not RELEASE:
                self.on_ended(cast(Item, item))
        self._tidy()

    def _tidy(self) -> None:
        """Frees the memory of an empty register; removes from `_again` the messages that the client has acknowledged."""
        inflight = self._inflight
        if not inflight:
            self._inflight = {}  # an empty dict keeps the memory of its former entries
        if self._again:
            self._again = [packet_id for packet_id in self._again if inflight.get(packet_id, RELEASE) is not RELEASE]

    def discard(self, is_obsolete: Callable[[Item], bool]) -> None:
        """Discards waiting messages, for example those of a subscription that has ended [MQTT-3.10.4-2].

        Messages in flight are not affected: the server completes their delivery [MQTT-3.10.4-3].
        """
        if self.on_ended is not None:
            for item in self._waiting or ():
                if is_obsolete(item):
                    self.on_ended(item)
        self._remove(is_obsolete)

    def _remove(self, is_obsolete: Callable[[Item], bool]) -> None:
        """Removes waiting messages."""
        if self._waiting is not None:
            waiting = deque(item for item in self._waiting if not is_obsolete(item))
            self._entered -= len(self._waiting) - len(waiting)
            self._waiting_size = sum(item.size for item in waiting)
            self._waiting = waiting or None

    def withdraw(self, is_withdrawn: Callable[[Item], bool], with_sent: bool) -> list[Item]:
        """Removes waiting messages, and returns them in order. The owner delivers them to another client.

        with_sent: whether messages with QoS 1 that the client has not acknowledged are also removed, and returned first.
        """
        found: list[Item] = []
        if with_sent:
            ids = [id for id, item in self._inflight.items() if item.qos == 1 and is_withdrawn(cast(Item, item))]
            found = [cast(Item, self._inflight.pop(id)) for id in ids]
            self._tidy()
        found += [item for item in self._waiting or () if is_withdrawn(item)]
        self._remove(is_withdrawn)
        return found

    def save(self, received: tuple[tuple[int, int], ...] = ()) -> FlowState[Item]:
        """Returns the state of the session. `received`: the result of `Incoming.save`."""
        return FlowState(
            self._next_id,
            tuple((packet_id, None if isinstance(item, Release) else item) for packet_id, item in self._inflight.items()),
            tuple(self._waiting or ()),
            received,
        )

    @classmethod
    def restore(cls, state: FlowState[Item], bounds: FlowBounds, counts: FlowCounts, after_crash: bool) -> Self:
        """Returns the messages of a saved session, without a connection.

        `after_crash`: whether the state is older than the end of the session's last connection. The client may hold packet ids
        that the server has used since then, and no PUBREL ever releases these ids. The client discards any later message with
        such an id as a repetition. So the session continues with the ids of the next block.
        """
        one = cls(bounds, counts)
        one._first_id, one._last_id = _block(state.next_id, bounds)
        if after_crash:
            one._first_id, one._last_id = _block(one._last_id + 1, bounds)
        one._next_id = state.next_id if one._first_id <= state.next_id <= one._last_id else one._first_id
        one._inflight = {packet_id: RELEASE if item is None else item for packet_id, item in state.inflight}
        for item in state.waiting:
            one._wait(item, 0)
        return one


def _block(packet_id: int, bounds: FlowBounds) -> tuple[int, int]:
    """Returns the first and the last id of a packet id's block, or of the first block if no whole block has the packet id."""
    wanted = max(BLOCK_IDS, BLOCK_WINDOWS * bounds.inflight)
    size = max(bounds.inflight, min(wanted, MAX_PACKET_ID // 2))  # at least the window, so that an id is always free
    first = (packet_id - 1) // size * size + 1
    if first + size - 1 > MAX_PACKET_ID:
        first = 1
    return first, first + size - 1
