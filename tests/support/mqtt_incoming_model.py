"""A state machine that drives `Incoming` through random publishes, confirmations, cuts, saves and crashes. No sockets.

The model client keeps the rules of MQTT, but sometimes uses the lowest free packet id, so that it soon uses ids again. Packets
travel in order in both directions; a cut loses the packets that are on their way. The broker confirms messages in any order.
"""

from collections import deque
from dataclasses import dataclass
from itertools import count

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from push1st.protocols.mqtt.flow import FlowCounts, FlowState, FlowViolation
from push1st.protocols.mqtt.incoming import Arrival, Incoming
from push1st.protocols.mqtt.packets import ReasonCode
from tests.support.mqtt_flow import BOUNDS

ERROR = ReasonCode.QUOTA_EXCEEDED
SUCCESS = ReasonCode.SUCCESS


@dataclass
class Publication:
    """A message of the client.

    has_pubrec: whether the client has received PUBREC.
    is_open: whether the message counts in the client's window on this connection.
    """

    number: int
    qos: int
    has_pubrec: bool = False
    is_open: bool = False


@dataclass
class Packet:
    """A packet on its way to the server: PUBLISH, or PUBREL if there is no message."""

    packet_id: int
    message: Publication | None = None
    dup: bool = False


class IncomingMachine(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.server = Incoming(BOUNDS, FlowCounts())
        self.is_connected = False
        self.up: deque[Packet] = deque()
        self.down: deque[tuple[str, int, int]] = deque()
        """the packets on their way to the client: name, packet id, reason code"""
        self.numbers = count(1)
        self.next_id = 1
        self.unfinished: dict[int, Publication] = {}
        """packet id → message, in the order in which the client has sent its last packet"""
        self.accepted: dict[int, Publication] = {}
        """the messages that the server has acknowledged with success"""
        self.rejected: dict[int, Publication] = {}
        self.unanswered: list[tuple[int, int]] = []
        """packet id and QoS of each PUBLISH on this connection without answer, in order of arrival"""
        self.unconfirmed: list[tuple[Arrival, Publication]] = []
        self.published: dict[int, int] = {}
        """number of a message → how often the server has published it"""
        self.arrived: list[int] = []
        """the messages that the server has begun to publish, each once, in order"""
        self.is_exact = True
        """whether no worker has crashed since the session began"""
        self.saved: FlowState = FlowState()

    @initialize(uses_lowest_ids=st.booleans(), repeats=st.booleans())
    def begin(self, uses_lowest_ids: bool, repeats: bool) -> None:
        self.uses_lowest_ids = uses_lowest_ids
        self.repeats = repeats
        self.connect()

    # The client

    @precondition(lambda self: self.is_connected)
    @rule(qos=st.lists(st.integers(1, 2), min_size=1, max_size=4))
    def publish(self, qos: list[int]) -> None:
        for one in qos:
            if sum(message.is_open for message in self.unfinished.values()) >= BOUNDS.inflight:
                return
            packet_id = 1 if self.uses_lowest_ids else self.next_id
            while packet_id in self.unfinished:
                packet_id += 1
            self.next_id = packet_id + 1
            message = self.unfinished[packet_id] = Publication(next(self.numbers), one, is_open=True)
            self.up.append(Packet(packet_id, message))

    @precondition(lambda self: self.is_connected and self.repeats)
    @rule()
    def repeat(self) -> None:
        """The client sends a message with QoS 2 again on the same connection, as old clients do.

        If the broker failed too, the repetition of a rejected message would be a message that the client has given up.
        """
        for packet_id, message in self.unfinished.items():
            if message.qos == 2 and not message.has_pubrec and message.is_open:
                self.up.append(Packet(packet_id, message, dup=True))
                return

    @rule(most=st.integers(1, 6))
    def take(self, most: int) -> None:
        """The client reads packets."""
        for _ in range(min(most, len(self.down))):
            name, packet_id, reason = self.down.popleft()
            message = self.unfinished.get(packet_id)
            if message is None:
                continue
            if name == "PUBCOMP":
                if message.has_pubrec:
                    del self.unfinished[packet_id]
            elif reason == ERROR:
                assert not message.has_pubrec
                self.rejected[message.number] = self.unfinished.pop(packet_id)
            else:
                assert name == ("PUBACK" if message.qos == 1 else "PUBREC")
                assert self.published.get(message.number), "a message is acknowledged only after the broker has confirmed it"
                self.accepted[message.number] = self.unfinished.pop(packet_id)
                if name == "PUBREC":
                    message.has_pubrec = True
                    self.unfinished[packet_id] = message
                    self.up.append(Packet(packet_id))

    # The server

    @rule(most=st.integers(1, 6))
    def read(self, most: int) -> None:
        """The server reads packets."""
        for _ in range(min(most, len(self.up))):
            packet = self.up.popleft()
            packet_id, message = packet.packet_id, packet.message
            if message is None:
                self.server.pubrel((packet_id,))
                self.down.append(("PUBCOMP", packet_id, SUCCESS))
                self.unanswered = [one for one in self.unanswered if one != (packet_id, 2)]
                continue
            arrival = self.server.publish(packet_id, message.qos, packet.dup, message.number)
            if arrival is not None:
                self.unconfirmed.append((arrival, message))
                if message.number not in self.arrived:
                    assert not self.arrived or self.arrived[-1] < message.number, "messages keep their order"
                    self.arrived.append(message.number)
            if message.qos == 1 or (packet_id, 2) not in self.unanswered:
                self.unanswered.append((packet_id, message.qos))
        self.answer()

    def answer(self) -> None:
        for packet_id, qos, reason in self.server.answers():
            assert self.is_connected
            assert self.unanswered.pop(0) == (packet_id, qos), "the answers have the order of the messages"
            self.down.append(("PUBACK" if qos == 1 else "PUBREC", packet_id, reason))
        assert len(self.unanswered) <= len(self.server._answers) <= BOUNDS.inflight

    @precondition(lambda self: self.unconfirmed)
    @rule(data=st.data(), fails=st.sampled_from((False, False, False, True)))
    def confirm(self, data: st.DataObject, fails: bool) -> None:
        """The broker confirms a message, or fails."""
        arrival, message = self.unconfirmed.pop(data.draw(st.integers(0, len(self.unconfirmed) - 1)))
        reason = ERROR if fails and not self.repeats else SUCCESS
        if reason == SUCCESS:
            self.note(message)
        self.server.confirm(arrival, reason)
        self.answer()

    def note(self, message: Publication) -> None:
        self.published[message.number] = self.published.get(message.number, 0) + 1

    # Connections and workers

    def connect(self) -> None:
        """The client connects, and sends again what is unfinished."""
        self.is_connected = True
        for packet_id, message in self.unfinished.items():
            message.is_open = not message.has_pubrec
            self.up.append(Packet(packet_id) if message.has_pubrec else Packet(packet_id, message, dup=True))

    def cut(self) -> None:
        """The connection ends, and loses the packets on their way."""
        self.server.detach()
        self.is_connected = False
        self.up.clear()
        self.down.clear()
        self.unanswered.clear()
        assert self.server.answers() == []

    @rule(reconnects=st.booleans())
    def lose_connection(self, reconnects: bool) -> None:
        self.cut()
        if reconnects:
            self.connect()

    @precondition(lambda self: not self.is_connected)
    @rule()
    def reconnect(self) -> None:
        self.connect()

    @rule(what=st.sampled_from(("begin again", "flood", "move", "save", "save", "crash", "crash", "settle")), data=st.data())
    def disturb(self, what: str, data: st.DataObject) -> None:
        """Does something that happens less often."""
        match what:
            case "begin again":
                self.connect_without_session()
            case "flood":
                self.flood()
            case "move":
                self.move()
            case "save":
                self.save()
            case "crash":
                self.crash(data)
            case _:
                self.settle()

    def connect_without_session(self) -> None:
        """The client connects with Clean Start: both sides forget the session."""
        self.cut()
        self.server = Incoming(BOUNDS, FlowCounts())
        self.unfinished.clear()
        self.unconfirmed.clear()
        self.save()
        self.published.clear()
        self.accepted.clear()
        self.rejected.clear()
        self.is_exact = True
        self.connect()

    def flood(self) -> None:
        """The client exceeds the window, which ends the connection, and begins a new session."""
        for number in range(2 * BOUNDS.inflight):
            try:
                assert self.server.publish(1_000 + number, 2, False, number) is not None
            except FlowViolation:
                break
        else:
            pytest.fail("the window has no bound")
        assert number <= BOUNDS.inflight
        self.connect_without_session()

    def move(self) -> None:
        """A worker stops in order, after the broker's confirmations, and another one continues the session."""
        self.cut()
        for arrival, message in self.unconfirmed:
            self.note(message)
            self.server.confirm(arrival)
        self.unconfirmed.clear()
        state: FlowState = FlowState(received=self.server.save())
        self.server = Incoming.restore(state, BOUNDS, FlowCounts(), after_crash=False)
        assert self.server.save() == state.received
        self.connect()

    def save(self) -> None:
        """The worker saves the session for the case of a crash."""
        self.saved = FlowState(received=self.server.save())

    def crash(self, data: st.DataObject) -> None:
        """The worker dies, before or after the broker has received its messages. Another one continues with the saved state."""
        self.cut()
        for _, message in self.unconfirmed:
            if data.draw(st.booleans()):
                self.note(message)
        self.unconfirmed.clear()
        self.is_exact = False
        self.server = Incoming.restore(self.saved, BOUNDS, FlowCounts(), after_crash=True)
        self.save()
        self.connect()

    # The end

    def settle(self) -> None:
        """Publishes everything, and checks what was published."""
        if not self.is_connected:
            self.connect()
        for _ in range(50):
            if not (self.up or self.down or self.unconfirmed):
                break
            self.read(len(self.up))
            for arrival, message in self.unconfirmed:
                self.note(message)
                self.server.confirm(arrival)
            self.unconfirmed.clear()
            self.answer()
            self.take(len(self.down))
        assert not self.unfinished
        assert self.server._unacknowledged == 0
        for number, message in self.accepted.items():
            times = self.published[number]
            assert times == 1 or message.qos == 1 or not self.is_exact, f"message {number} was published {times} times"
        for number, message in self.rejected.items():
            assert message.qos == 1 or not self.is_exact or number not in self.published

    def teardown(self) -> None:
        self.settle()
