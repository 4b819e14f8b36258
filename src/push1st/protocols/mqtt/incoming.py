"""The client's own messages with QoS 1 and 2 in one session: acknowledgements in order, and repetitions with QoS 2.

The server publishes a message with QoS 2 when PUBLISH arrives (method B of §4.3.3 in MQTT 5.0), and holds its id until PUBREL:

    QoS 1:  PUBLISH ─▶ unconfirmed ──broker──▶ PUBACK
    QoS 2:  PUBLISH ─▶ unconfirmed ──broker──▶ PUBREC, id held ──PUBREL──▶ PUBCOMP

The broker may confirm messages in any order. See `flow.py` for the terms that both directions share.
"""

from collections.abc import Sequence
from typing import Any, Self

from push1st.protocols.mqtt.flow import FlowBounds, FlowCounts, FlowState, FlowViolation
from push1st.protocols.mqtt.packets import ReasonCode

MAX_ARRIVALS = 2
"""the maximum number of arrivals of the same PUBLISH with QoS 2 on one connection; a PUBLISH with DUP does not count"""
MAX_HELD_WINDOWS = 50
"""the maximum number of held packet ids, as a multiple of `FlowBounds.inflight`. A client that loses its own state never releases
its ids."""
UNCONFIRMED = -1


class Arrival:
    """A PUBLISH with QoS 1 or 2.

    `content`: a checksum of the topic and the payload.
    `reason`: the reason code of the answer, or `UNCONFIRMED`.
    `times`: the number of arrivals on this connection; repetitions with DUP do not count. 0: the packet arrived on an earlier
    connection.
    `is_queued`: whether PUBACK or PUBREC must still be sent on this connection.
    """

    __slots__ = ("content", "is_queued", "packet_id", "qos", "reason", "times")

    def __init__(self, packet_id: int, qos: int, content: int, reason: int) -> None:
        self.packet_id = packet_id
        self.qos = qos
        self.content = content
        self.reason = reason
        self.times = 0
        self.is_queued = False


class Incoming:
    """The packet ids of one client's messages.

    `has_window`: whether the client obeys a Receive Maximum. MQTT 3.1 and 3.1.1 have no Receive Maximum. In these versions, the
    owner limits the messages without PUBACK or PUBREC with `is_full`, and `MAX_HELD_WINDOWS` limits the messages without PUBREL.
    """

    __slots__ = ("_answers", "_bounds", "_counts", "_doubtful", "_held", "_unacknowledged", "has_window")

    def __init__(self, bounds: FlowBounds, counts: FlowCounts, has_window: bool = True) -> None:
        self._bounds = bounds
        self._counts = counts
        self.has_window = has_window
        self._answers: list[Arrival] = []
        """the messages of this connection without PUBACK or PUBREC, in order of arrival, each once"""
        self._held: dict[int, Arrival] = {}
        """packet id → message with QoS 2 without PUBREL"""
        self._doubtful: frozenset[int] = frozenset()
        """the held ids whose PUBREL the server may have forgotten in a crash"""
        self._unacknowledged = 0
        """the number of messages of this connection without PUBACK, PUBCOMP, or a PUBREC with an error code"""

    @property
    def held(self) -> int:
        """The number of messages with QoS 2 without PUBREL."""
        return len(self._held)

    @property
    def is_full(self) -> bool:
        """Whether the window is full of messages of this connection without PUBACK or PUBREC."""
        return len(self._answers) >= self._bounds.inflight

    def detach(self) -> None:
        """Ends the connection. The broker may still confirm messages of the connection later."""
        self._answers = []
        self._unacknowledged = 0
        for arrival in self._held.values():
            arrival.times = 0

    def publish(self, packet_id: int, qos: int, dup: bool = False, content: int = 0) -> Arrival | None:
        """Handles a PUBLISH with QoS 1 or 2. Returns the message to publish; None for the repetition of an earlier message.

        `content`: a checksum of the topic and the payload, which all workers compute alike; not needed with QoS 1.

        For each message to publish, the owner later calls `confirm`. After `confirm`, and after a repetition, the owner calls
        `answers`.

        Raises FlowViolation if the client has too many unacknowledged messages, or repeats a message too often.
        """
        held = self._held.get(packet_id) if qos == 2 else None
        if held is not None:
            is_new = packet_id in self._doubtful and (not dup or content != held.content)
            if self._doubtful:
                self._doubtful -= {packet_id}
            if not is_new:
                # [MQTT-4.3.3-10]: acknowledged, and not published again.
                self._repeat(held, dup, content)
                return None
            # A crash has lost the PUBREL of an earlier message with this id. [MQTT-3.3.1-1]: a repetition has DUP. But the new
            # message may have been sent before the crash, too. So a packet with DUP is a new message if its content differs.
            del self._held[packet_id]
        # [MQTT-4.3.2-5]: with QoS 1 the packet is a new message, even with DUP.
        arrival = Arrival(packet_id, qos, content, UNCONFIRMED)
        self._accept(arrival)
        if qos == 2:
            self._hold(arrival)
        return arrival

    def _accept(self, arrival: Arrival) -> None:
        """Counts a message that arrives on this connection for the first time, and queues its answer."""
        # [MQTT-3.3.4-7]: the client obeys the Receive Maximum of CONNACK. The second condition is for clients that send PUBREL
        # before PUBREC: their messages do not count as unacknowledged any more, but their PUBRECs still wait.
        if self.has_window and (self._unacknowledged >= self._bounds.inflight or self.is_full):
            text = f"more than {self._bounds.inflight} unacknowledged messages"
            raise FlowViolation(ReasonCode.RECEIVE_MAXIMUM_EXCEEDED, text)
        self._unacknowledged += 1
        arrival.times = 1
        arrival.is_queued = True
        self._answers.append(arrival)

    def _hold(self, arrival: Arrival) -> None:
        held = self._held
        if len(held) >= MAX_HELD_WINDOWS * self._bounds.inflight:
            # The ids of this connection are fewer than the bound if the client obeys the Receive Maximum. So an older id exists.
            oldest = next((packet_id for packet_id, one in held.items() if not one.times), 0)
            if not oldest:
                raise FlowViolation(ReasonCode.RECEIVE_MAXIMUM_EXCEEDED, f"more than {len(held)} messages without PUBREL")
            del held[oldest]
            self._counts.forgotten += 1
        held[arrival.packet_id] = arrival

    def _repeat(self, arrival: Arrival, dup: bool, content: int) -> None:
        if not arrival.times:
            self._accept(arrival)
            return
        if not dup and content == arrival.content:
            arrival.times += 1
            if arrival.times > MAX_ARRIVALS:
                raise FlowViolation(ReasonCode.PROTOCOL_ERROR, f"PUBLISH {arrival.packet_id} is sent again and again without DUP")
        # One PUBREC answers all repetitions that arrive before it.
        if not arrival.is_queued:
            arrival.is_queued = True
            self._answers.append(arrival)

    def confirm(self, arrival: Arrival, reason: int = ReasonCode.SUCCESS) -> None:
        """Completes the publication of a message, even if the connection of the message has ended.

        `reason`: the reason code for PUBACK or PUBREC; 80 or more if the message was not published.
        """
        arrival.reason = reason
        if reason >= ReasonCode.UNSPECIFIED_ERROR and self._held.get(arrival.packet_id) is arrival:
            # [MQTT-4.3.3-9]: the next message with this id is a new one.
            del self._held[arrival.packet_id]

    def answers(self) -> list[tuple[int, int, int]]:
        """Returns the answers that can be sent now, each as packet id, QoS and reason code: PUBACK with QoS 1, PUBREC with QoS 2.

        [MQTT-4.6.0-2], [MQTT-4.6.0-3]: the answers have the order in which the messages arrived.
        """
        ready = []
        handled = 0
        for arrival in self._answers:
            if arrival.reason == UNCONFIRMED:
                break
            handled += 1
            arrival.is_queued = False
            if not arrival.times:
                continue  # the client has sent PUBREL before PUBREC
            if arrival.qos == 1 or arrival.reason >= ReasonCode.UNSPECIFIED_ERROR:
                self._unacknowledged -= 1
            ready.append((arrival.packet_id, arrival.qos, arrival.reason))
        del self._answers[:handled]
        return ready

    def pubrel(self, packet_ids: Sequence[int]) -> None:
        """Releases packet ids. The owner sends PUBCOMP for each of them, with success, even if the id is unknown.

        [MQTT-4.3.3-11]: PUBREL is always answered. [MQTT-4.3.3-12]: the next message with such an id is a new one.
        """
        for packet_id in packet_ids:
            arrival = self._held.pop(packet_id, None)
            if arrival is not None and arrival.times:
                arrival.times = 0
                self._unacknowledged -= 1
                if arrival.is_queued and arrival.reason != UNCONFIRMED:
                    # The client has received a PUBREC. A second PUBREC could seem to answer the next message with the same id.
                    self._answers.remove(arrival)
        if self._doubtful:
            self._doubtful = self._doubtful.difference(packet_ids)
        if not self._held:
            self._held = {}  # an empty dict keeps the memory of its former entries

    def save(self) -> tuple[tuple[int, int], ...]:
        """Returns the held packet ids and the contents of their messages, for `FlowState.received`.

        The ids of unconfirmed messages are not included: if the broker did not publish such a message, its repetition must be
        published.
        """
        return tuple((packet_id, one.content) for packet_id, one in self._held.items() if one.reason != UNCONFIRMED)

    @classmethod
    def restore(cls, state: FlowState[Any], bounds: FlowBounds, counts: FlowCounts, after_crash: bool) -> Self:
        """Returns the packet ids of a saved session.

        `after_crash`: whether the state is older than the end of the session's last connection. The client may then have released
        some of the held ids. So a PUBLISH with a held id is a new message, unless the packet has DUP and the same content.
        """
        one = cls(bounds, counts)
        one._held = {packet_id: Arrival(packet_id, 2, content, ReasonCode.SUCCESS) for packet_id, content in state.received}
        if after_crash:
            one._doubtful = frozenset(one._held)
        return one
