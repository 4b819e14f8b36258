"""A state machine that drives `Checkpoints` and `Outgoing` through random publishes, acknowledgements in any order, and cuts.

The log of the session has all messages with QoS 1 and 2. When the session moves to a position of the log, no earlier message may
still need a delivery: after a crash, nobody would send it.
"""

from itertools import count

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from push1st.protocols.mqtt import outgoing
from push1st.protocols.mqtt.checkpoints import MAX_CHECKPOINTS, Checkpoints
from push1st.protocols.mqtt.flow import FlowCounts
from push1st.protocols.mqtt.outgoing import Outgoing
from tests.support.mqtt_flow import BOUNDS, NOW, Note


class CheckpointMachine(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.server: Outgoing[Note] = Outgoing(BOUNDS, FlowCounts())
        self.checkpoints: Checkpoints[int] = Checkpoints()
        self.log: list[Note] = []
        self.position = 0
        self.numbers = count(1)
        self.patch = pytest.MonkeyPatch()

    @initialize()
    def begin(self) -> None:
        self.patch.setattr(outgoing, "MAX_PACKET_ID", BOUNDS.inflight + 1)  # later messages use the same ids
        self.server.attach(100, NOW)

    @rule(qos=st.lists(st.integers(0, 2), min_size=1, max_size=5))
    def publish(self, qos: list[int]) -> None:
        notes = [Note(f"{next(self.numbers):05d}", one) for one in qos]
        self.log += [note for note in notes if note.qos]
        self.server.send(notes, NOW)

    @rule()
    def ask(self) -> None:
        self.checkpoints.add(len(self.log), self.server)
        assert len(self.checkpoints) <= MAX_CHECKPOINTS

    @rule(data=st.data(), most=st.integers(1, 4))
    def acknowledge(self, data: st.DataObject, most: int) -> None:
        """The client acknowledges some messages, in any order."""
        for _ in range(most):
            ids = list(self.server._inflight)
            if not ids:
                break
            packet_id = data.draw(st.sampled_from(ids))
            item = self.server._inflight[packet_id]
            if isinstance(item, Note) and item.qos == 1:
                self.server.puback([packet_id])
            elif isinstance(item, Note):
                self.server.pubrec([packet_id])
            else:
                self.server.pubcomp([packet_id])
        self.server.fill(NOW)

    @rule(number=st.integers(0, 2))
    def unsubscribe(self, number: int) -> None:
        self.server.discard(lambda note: int(note.text) % 3 == number)

    @rule(number=st.integers(0, 2), with_sent=st.booleans())
    def withdraw(self, number: int, with_sent: bool) -> None:
        self.server.withdraw(lambda note: int(note.text) % 3 == number, with_sent)

    @rule(maximum=st.sampled_from((0, 1, 2, 100)))
    def cut(self, maximum: int) -> None:
        """The connection is lost. `maximum`: the Receive Maximum of the next connection; 0: there is none yet."""
        self.server.detach()
        if maximum:
            self.server.attach(maximum, NOW)

    @rule()
    def drop(self) -> None:
        """A message is too large for the client."""
        self.server.drop(list(self.server._inflight)[:1])

    @rule()
    def move(self) -> None:
        position = self.checkpoints.reached(self.server)
        if position is None:
            return
        assert position >= self.position
        self.position = position

    @invariant()
    def no_message_is_lost(self) -> None:
        needed = {*(self.server._waiting or ()), *(one for one in self.server._inflight.values() if isinstance(one, Note))}
        assert needed.isdisjoint(self.log[: self.position])

    def teardown(self) -> None:
        try:
            self.server.detach()
            self.server.attach(100, NOW)
            self.checkpoints.add(len(self.log), self.server)
            for _ in range(100):
                for packet_id, item in list(self.server._inflight.items()):
                    if isinstance(item, Note) and item.qos == 1:
                        self.server.puback([packet_id])
                    else:
                        self.server.pubrec([packet_id])
                        self.server.pubcomp([packet_id])
                self.server.fill(NOW)
                self.move()
            assert self.position == len(self.log), "the last checkpoint is reached"
        finally:
            self.patch.undo()
