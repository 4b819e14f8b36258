"""The messages to the client of one session: packet ids, the window, waiting messages, and what is sent again.

    QoS 1:  waiting ─▶ in flight (PUBLISH sent) ──PUBACK──▶ done
    QoS 2:  waiting ─▶ in flight (PUBLISH sent) ──PUBREC──▶ in flight (PUBREL sent) ──PUBCOMP──▶ done

See `flow.py` for the terms that both directions share.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, Self

from push1st.protocols.mqtt.flow import RELEASE, FlowBounds, FlowCounts, FlowState, FlowViolation, Item, Release, Sent
from push1st.protocols.mqtt.packets import MAX_PACKET_ID, ReasonCode

CRASH_IDS = 40_503
"""the number of packet ids that a session skips after a crash. The number is 65,535 divided by the golden ratio, so the ids after
several crashes are also far from each other."""


class Outgoing(Generic[Item]):
    """The messages to one client. Without a connection, messages with QoS 1 and 2 wait, and messages with QoS 0 are not kept."""

    __slots__ = ("_again", "_bounds", "_counts", "_inflight", "_next_id", "_waiting", "_waiting_size", "_window")

    def __init__(self, bounds: FlowBounds, counts: FlowCounts) -> None:
        self._bounds = bounds
        self._counts = counts
        self._window = 0
        """the maximum number of messages in flight on this connection; 0 without a connection"""
        self._next_id = 1
        """the first packet id to try for the next message"""
        self._inflight: dict[int, Item | Release] = {}
        """packet id → message, in the order in which the last packet of each message was first sent"""
        self._again: Sequence[int] = ()
        """the ids of messages in flight that do not fit into the window of this connection, and are sent again later"""
        self._waiting: deque[Item] | None = None
        self._waiting_size = 0

    @property
    def inflight(self) -> int:
        """The number of messages in flight."""
        return len(self._inflight)

    @property
    def waiting(self) -> int:
        """The number of messages that wait."""
        return len(self._waiting or ())

    @property
    def _room(self) -> int:
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
        return sent + self.fill(now)

    def detach(self) -> None:
        """Ends the connection."""
        self._window = 0

    def send(self, items: Iterable[Item], now: int) -> list[Sent[Item]]:
        """Accepts messages, and returns the packets to send now, in order. Messages for which the window has no room wait.

        `now`: the time on the wall clock in nanoseconds.

        A message that need not wait is sent even if it has expired: a message with the lifetime 0 reaches a client with room.
        """
        sent = self.fill(now) if self._waiting or self._again else []
        inflight = self._inflight
        room = self._room
        packet_id = self._next_id
        # measured: 0.1 µs for a message; run `python bench/mqtt_flow.py` before changing
        for item in items:
            if not item.qos:
                # [MQTT-4.9.0-3] permits QoS 0 without room.
                if self._window:
                    sent.append((0, item, False))
            elif room > 0:
                room -= 1
                # [MQTT-2.2.1-4], [MQTT-4.3.2-1], [MQTT-4.3.3-1]: an id that is not in use.
                while packet_id in inflight:
                    packet_id = packet_id + 1 if packet_id < MAX_PACKET_ID else 1
                # [MQTT-4.3.2-3], [MQTT-4.3.3-3]: the message is unacknowledged from now on.
                inflight[packet_id] = item
                sent.append((packet_id, item, False))  # [MQTT-4.3.2-2], [MQTT-4.3.3-2]
                packet_id = packet_id + 1 if packet_id < MAX_PACKET_ID else 1
            else:
                self._wait(item, now)
        self._next_id = packet_id
        return sent

    def _wait(self, item: Item, now: int) -> None:
        """Adds a message to the waiting ones. If a bound is exceeded, the oldest waiting messages are dropped."""
        waiting = self._waiting
        if waiting is None:
            waiting = self._waiting = deque()
        waiting.append(item)
        self._waiting_size += item.size
        while len(waiting) > self._bounds.queue or self._waiting_size > self._bounds.queue_size:
            oldest = waiting.popleft()
            self._waiting_size -= oldest.size
            if 0 < oldest.expires <= now:
                self._counts.expired += 1
            else:
                self._counts.queue_full += 1

    def fill(self, now: int) -> list[Sent[Item]]:
        """Returns the waiting packets for which the window has room. The owner calls `fill` after the acknowledgements of a read.

        `now`: the time on the wall clock in nanoseconds.
        """
        sent: list[Sent[Item]] = []
        if self._waiting is None and not self._again:
            return sent
        room = self._room
        if room <= 0:
            return sent  # [MQTT-4.9.0-2]
        inflight = self._inflight
        if self._again:
            first, self._again = self._again[:room], self._again[room:]
            sent += [(packet_id, inflight[packet_id], True) for packet_id in first]
            self._counts.resent += len(first)
            room -= len(first)
        waiting = self._waiting
        if waiting is None:
            return sent
        packet_id = self._next_id
        # [MQTT-4.6.0-5]: in the order of publication.
        while room > 0 and waiting:
            item = waiting.popleft()
            self._waiting_size -= item.size
            # [MQTT-3.3.2-5]: a message that expires before it was sent is deleted.
            if 0 < item.expires <= now:
                self._counts.expired += 1
                continue
            room -= 1
            while packet_id in inflight:
                packet_id = packet_id + 1 if packet_id < MAX_PACKET_ID else 1
            inflight[packet_id] = item
            sent.append((packet_id, item, False))
            packet_id = packet_id + 1 if packet_id < MAX_PACKET_ID else 1
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
            if is_error:
                # [MQTT-4.4.0-2]: an error ends the message.
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
            self._inflight.pop(packet_id, None)
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
        if self._waiting is not None:
            waiting = deque(item for item in self._waiting if not is_obsolete(item))
            self._waiting_size = sum(item.size for item in waiting)
            self._waiting = waiting or None

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

        `after_crash`: whether the state is older than the end of the session's last connection. The client may know packet ids
        that the server has used since then. If the server used such an id for another message, a client that still waits for the
        PUBREL of this id would discard the message as a repetition. So the server continues with distant ids.
        """
        one = cls(bounds, counts)
        one._next_id = (state.next_id + CRASH_IDS - 1) % MAX_PACKET_ID + 1 if after_crash else state.next_id
        one._inflight = {packet_id: RELEASE if item is None else item for packet_id, item in state.inflight}
        for item in state.waiting:
            one._wait(item, 0)
        return one
