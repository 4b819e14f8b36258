"""A state machine that drives `Outgoing` through random publishes, acknowledgements, cuts, saves and crashes. No sockets.

The model client keeps the rules of MQTT, but acknowledges messages in any order, late, or on its next connection. Packets travel
in order in both directions; a cut loses the packets that are on their way. The machine sometimes has only few packet ids, so that
sessions use their ids again.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from push1st.protocols.mqtt import outgoing
from push1st.protocols.mqtt.flow import RELEASE, FlowCounts, FlowState, FlowViolation, Sent
from push1st.protocols.mqtt.outgoing import Outgoing
from push1st.protocols.mqtt.packets import MAX_PACKET_ID, ReasonCode
from tests.support.mqtt_flow import BOUNDS, Note

FEW_IDS = BOUNDS.inflight + 1
ERROR = ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR


@dataclass
class Client:
    """The model client: method B of §4.3.3."""

    held: dict[int, str] = field(default_factory=dict)
    """packet id → text of each message with QoS 2 whose PUBREL has not arrived"""
    seen: dict[str, int] = field(default_factory=dict)
    """text → how often the client has accepted the message, without repetitions that the protocol detects"""
    order: dict[str, int] = field(default_factory=dict)
    """the texts in the order of their first arrival since the last crash, with their QoS"""
    due: list[tuple[str, int]] = field(default_factory=list)
    """the acknowledgements that the client has not sent yet: the name and the id of the packet"""
    unacknowledged: set[int] = field(default_factory=set)
    """the ids that count in the client's Receive Maximum"""

    def take(self, packet_id: int, item: Any) -> None:
        """Receives a packet of the server."""
        if item is RELEASE:
            self.held.pop(packet_id, None)
            self.due.append(("PUBCOMP", packet_id))
            return
        if item.qos == 2:
            self.due.append(("PUBREC", packet_id))
        elif item.qos == 1:
            self.due.append(("PUBACK", packet_id))
        if item.qos:
            self.unacknowledged.add(packet_id)
        if item.qos == 2 and packet_id in self.held:
            return
        if item.qos == 2:
            self.held[packet_id] = item.text
        self.see(item)

    def see(self, item: Note) -> None:
        self.order.setdefault(item.text, item.qos)
        self.seen[item.text] = self.seen.get(item.text, 0) + 1


class OutgoingMachine(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = FlowCounts()
        self.server: Outgoing[Note] = Outgoing(BOUNDS, self.counts)
        self.client = Client()
        self.maximum = 0
        """the Receive Maximum of the connection; 0 without a connection"""
        self.down: deque[tuple[int, Any]] = deque()
        """the packets on their way to the client"""
        self.up: deque[tuple[str, int, int]] = deque()
        """the packets on their way to the server: name, packet id, reason code"""
        self.numbers = count(1)
        self.now = 1_000
        self.published: dict[str, Note] = {}
        self.excused: set[str] = set()
        """the messages that the client need not receive"""
        self.began: set[str] = set()
        """the messages whose PUBLISH the server has sent before"""
        self.in_use: dict[int, Any] = {}
        """packet id → the last packet of the server whose acknowledgement the server has not received"""
        self.counted: set[int] = set()
        """the ids that count in the window of this connection"""
        self.saved: FlowState[Note] = FlowState()
        self.since: list[Note] = []
        """the messages that were published after the last save"""
        self.crashes = 0
        self.patch = pytest.MonkeyPatch()

    @initialize(has_few_ids=st.booleans(), next_id=st.integers(1, 5) | st.integers(MAX_PACKET_ID - 5, MAX_PACKET_ID))
    def begin(self, has_few_ids: bool, next_id: int) -> None:
        self.has_few_ids = has_few_ids
        if has_few_ids:
            self.patch.setattr(outgoing, "MAX_PACKET_ID", FEW_IDS)
            next_id = min(next_id, FEW_IDS)
        self.saved = FlowState(next_id=next_id)
        self.server = Outgoing.restore(self.saved, BOUNDS, self.counts, after_crash=False)
        self.connect(100)

    # Packets to the client

    def transmit(self, sent: Sequence[Sent[Note]]) -> None:
        """Checks packets of the server, and puts them on their way."""
        for packet_id, item, dup in sent:
            assert self.maximum, "nothing is sent without a connection"
            if isinstance(item, Note) and not item.qos:
                assert (packet_id, dup) == (0, False)
            else:
                assert 1 <= packet_id <= (FEW_IDS if self.has_few_ids else MAX_PACKET_ID)
                self.check_use(packet_id, item, dup)
            self.down.append((packet_id, item))

    def check_use(self, packet_id: int, item: Any, dup: bool) -> None:
        if isinstance(item, Note):
            # Only a new connection repeats a message, and then with DUP and its id.
            assert dup == (item.text in self.began)
            if dup:
                assert self.in_use[packet_id] is item
                assert packet_id not in self.counted
            else:
                assert packet_id not in self.in_use
                assert not 0 < item.expires <= self.now or item in self.fresh
                self.began.add(item.text)
            self.in_use[packet_id] = item
            self.counted.add(packet_id)
            assert len(self.counted) <= min(self.maximum, BOUNDS.inflight), "the window is exceeded"
        else:
            assert not dup
            assert self.in_use[packet_id] is item

    fresh: tuple[Note, ...] = ()
    """the messages of the current publish"""

    @rule(qos=st.lists(st.integers(1, 2), min_size=2, max_size=4))
    def publish_many(self, qos: list[int]) -> None:
        self.publish(qos, 0, 10)

    @rule(
        qos=st.lists(st.integers(0, 2), min_size=1, max_size=5),
        lifetime=st.sampled_from((0, 1, 20)),
        size=st.sampled_from((1, 10, 40)),
    )
    def publish(self, qos: list[int], lifetime: int, size: int) -> None:
        dropped = self.counts.queue_full
        expires = self.now + lifetime if lifetime else 0
        self.fresh = tuple(Note(f"{next(self.numbers):05d}", one, size, expires) for one in qos)
        for note in self.fresh:
            self.published[note.text] = note
        self.since += [note for note in self.fresh if note.qos]
        sent = self.server.send(self.fresh, self.now)
        self.transmit(sent)
        self.fresh = ()
        passed = [note.text for _, note, _ in sent if not note.qos]
        assert len(passed) == (qos.count(0) if self.maximum else 0)
        if self.counts.queue_full > dropped:
            assert self.server.waiting == BOUNDS.queue or self.server._waiting_size + size > BOUNDS.queue_size - 40
        self.check_bounds()

    def check_bounds(self) -> None:
        assert self.server.waiting <= BOUNDS.queue
        waiting = self.server._waiting or ()
        assert self.server._waiting_size == sum(note.size for note in waiting) <= BOUNDS.queue_size
        assert self.server.inflight == len(self.in_use) <= BOUNDS.inflight
        room = min(self.maximum, BOUNDS.inflight) - len(self.counted)
        if room > 0 and self.maximum:
            assert not waiting, "messages wait although the window has room"
            assert not self.server._again

    # The client

    @rule(most=st.integers(1, 8))
    def take(self, most: int) -> None:
        """The client reads packets."""
        for _ in range(min(most, len(self.down))):
            self.client.take(*self.down.popleft())
            # A late acknowledgement may free a place before the client receives the repetition of the same message.
            assert len(self.client.unacknowledged) <= self.maximum or not self.has_few_ids

    @rule(data=st.data(), most=st.integers(1, 4), refuses=st.sampled_from((False, False, False, True)))
    def acknowledge(self, data: st.DataObject, most: int, refuses: bool) -> None:
        """The client sends some acknowledgements, in any order."""
        for _ in range(min(most, len(self.client.due)) if self.maximum else 0):
            name, packet_id = self.client.due.pop(data.draw(st.integers(0, len(self.client.due) - 1)))
            reason: int = ReasonCode.SUCCESS
            if name == "PUBREC" and refuses and packet_id in self.client.held:
                reason = ERROR
                self.client.seen[self.client.held.pop(packet_id)] -= 1
            if name != "PUBREC" or reason == ERROR:
                self.client.unacknowledged.discard(packet_id)
            self.up.append((name, packet_id, reason))

    @rule(most=st.integers(1, 8))
    def read(self, most: int) -> None:
        """The server reads packets, and sends what the window has room for."""
        packets = [self.up.popleft() for _ in range(min(most, len(self.up)))]
        while packets:
            name, _, reason = packets[0]
            size = next((size for size, one in enumerate(packets) if (one[0], one[2]) != (name, reason)), len(packets))
            self.apply(name, tuple(packet_id for _, packet_id, _ in packets[:size]), reason)
            del packets[:size]
        self.transmit(self.server.fill(self.now))
        self.check_bounds()

    def apply(self, name: str, packet_ids: tuple[int, ...], reason: int) -> None:
        if name == "PUBREC":
            released = self.server.pubrec(packet_ids, reason)
            assert released == (() if reason == ERROR else packet_ids)
            for packet_id in released:
                if self.in_use.get(packet_id, RELEASE) is not RELEASE:
                    del self.in_use[packet_id]
                    self.in_use[packet_id] = RELEASE
                    self.counted.add(packet_id)
                self.down.append((packet_id, RELEASE))
            if reason != ERROR:
                return
        elif name == "PUBACK":
            self.server.puback(packet_ids)
        else:
            self.server.pubcomp(packet_ids)
        for packet_id in packet_ids:
            self.in_use.pop(packet_id, None)
            self.counted.discard(packet_id)

    def break_the_protocol(self, data: st.DataObject) -> None:
        """The client sends a wrong acknowledgement. If the message exists, the server ends the connection."""
        if not self.maximum:
            return
        wrong = [("PUBACK", one) for one, item in self.in_use.items() if item.qos == 2]
        wrong += [("PUBREC", one) for one, item in self.in_use.items() if item.qos == 1]
        wrong += [("PUBCOMP", one) for one, item in self.in_use.items() if item is not RELEASE]
        if not wrong:
            for packet_id in {1, 2, 3, 4} - self.in_use.keys():
                self.server.puback([packet_id])
                self.server.pubcomp([packet_id])
                assert self.server.pubrec((packet_id,)) == (packet_id,)
            return
        name, packet_id = data.draw(st.sampled_from(wrong))
        with pytest.raises(FlowViolation):
            self.apply(name, (packet_id,), ReasonCode.SUCCESS)
        self.cut()

    @rule(what=st.sampled_from(("save", "wait", "unsubscribe", "break", "settle")), number=st.integers(0, 4), data=st.data())
    def disturb(self, what: str, number: int, data: st.DataObject) -> None:
        """Does something that happens less often."""
        match what:
            case "save":
                self.save()
            case "wait":
                self.now += 5 * number
            case "unsubscribe":
                self.unsubscribe(number)
            case "break":
                self.break_the_protocol(data)
            case _:
                self.settle()

    # Connections

    @rule(
        how=st.sampled_from(("cut", "cut", "cut", "move", "crash", "clean")),
        maximum=st.sampled_from((0, 1, 2, 100)),
    )
    def interrupt(self, how: str, maximum: int) -> None:
        """Ends the connection. `maximum`: the Receive Maximum of the next connection; 0: the client does not connect yet."""
        self.cut()
        if how == "clean":
            self.begin_again()
        elif how == "move":
            self.move()
        elif how == "crash" and not self.has_few_ids:
            self.crash()
        if maximum:
            self.connect(maximum)

    @precondition(lambda self: not self.maximum)
    @rule(maximum=st.sampled_from((1, 2, 3, 100)))
    def reconnect(self, maximum: int) -> None:
        self.connect(maximum)

    def connect(self, maximum: int) -> None:
        self.maximum = maximum
        self.counted = {packet_id for packet_id, item in self.in_use.items() if item is RELEASE}
        repeated = list(self.in_use.items())
        sent = self.server.attach(maximum, self.now)
        self.transmit(sent)
        # All PUBRELs, and as many messages as the window permits, each in order, before any new message.
        again = [(packet_id, item) for packet_id, item, dup in sent if dup or item is RELEASE]
        assert [(packet_id, item) for packet_id, item, _ in sent[: len(again)]] == again
        assert [one for one in again if one[1] is RELEASE] == [one for one in repeated if one[1] is RELEASE]
        messages = [one for one in repeated if one[1] is not RELEASE]
        assert [one for one in again if one[1] is not RELEASE] == messages[: len(again) + len(messages) - len(repeated)]
        self.check_bounds()

    def cut(self) -> None:
        """The connection ends, and loses the packets on their way."""
        self.server.detach()
        self.maximum = 0
        self.down.clear()
        self.up.clear()
        self.counted.clear()
        self.client.unacknowledged.clear()
        if self.has_few_ids:
            self.client.due.clear()  # a late acknowledgement could meet another message with the same id

    def begin_again(self) -> None:
        """The client connects with Clean Start: both sides forget the session."""
        self.excused |= self.missing()
        self.counts.expired = self.counts.queue_full = 0
        self.server = Outgoing(BOUNDS, self.counts)
        self.in_use.clear()
        self.client.held.clear()
        self.client.due.clear()
        self.began.clear()
        self.save()

    def unsubscribe(self, filter_number: int) -> None:
        """A fifth of the messages belongs to a subscription that ends."""

        def is_obsolete(note: Note) -> bool:
            if int(note.text) % 5 != filter_number:
                return False
            self.excused.add(note.text)
            return True

        self.server.discard(is_obsolete)
        self.since = [note for note in self.since if note.text not in self.excused]
        self.check_bounds()

    # Workers

    def move(self) -> None:
        """A worker stops in order, and another one continues the session."""
        state = self.server.save()
        self.server = Outgoing.restore(state, BOUNDS, self.counts, after_crash=False)
        assert self.server.save() == state

    def save(self) -> None:
        """The worker saves the session for the case of a crash."""
        self.saved = self.server.save()
        self.since = []

    def crash(self) -> None:
        """The worker dies. Another one continues with the saved state, and with the broker's log of later messages."""
        self.crashes += 1
        # The restored queue may contain messages that the former worker has dropped, and that come before received ones.
        self.check_order()
        self.client.order.clear()
        self.server = Outgoing.restore(self.saved, BOUNDS, self.counts, after_crash=True)
        self.in_use = {packet_id: RELEASE if item is None else item for packet_id, item in self.saved.inflight}
        self.began = {item.text for _, item in self.saved.inflight if item is not None}
        assert self.server.send(self.since, self.now) == []
        self.save()
        self.check_bounds()

    # The end

    def missing(self) -> set[str]:
        """Returns the messages with QoS 1 and 2 that the client has not received, and should receive."""
        expected = {text for text, note in self.published.items() if note.qos}
        return expected - self.excused - self.client.seen.keys()

    def settle(self) -> None:
        """Delivers everything, and checks what the client has received."""
        if not self.maximum:
            self.connect(100)
        for _ in range(100):
            if not (self.down or self.up or self.client.due):
                break
            self.take(len(self.down))
            for name, packet_id in self.client.due:
                self.up.append((name, packet_id, ReasonCode.SUCCESS))
                if name != "PUBREC":
                    self.client.unacknowledged.discard(packet_id)
            self.client.due.clear()
            self.read(len(self.up))
        assert (self.server.inflight, self.server.waiting) == (0, 0)
        missing = self.missing()
        dropped = self.counts.expired + self.counts.queue_full
        assert len(missing) == dropped if not self.crashes else len(missing) <= dropped
        assert sum(not 0 < self.published[text].expires <= self.now for text in missing) <= self.counts.queue_full
        self.check_order()
        for text, times in self.client.seen.items():
            assert times <= 1 or self.published[text].qos == 1 or (self.published[text].qos == 2 and self.crashes)

    def check_order(self) -> None:
        for qos in (0, 1, 2):
            texts = [text for text, one in self.client.order.items() if one == qos]
            assert texts == sorted(texts), "each QoS keeps its order"

    def teardown(self) -> None:
        try:
            self.settle()
        finally:
            self.patch.undo()
