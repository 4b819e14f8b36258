"""The positions to which a session moves: acknowledgements in any order, waiting and dropped messages."""

import pytest

from push1st.protocols.mqtt.checkpoints import MAX_CHECKPOINTS, Checkpoints
from push1st.protocols.mqtt.flow import FlowCounts
from push1st.protocols.mqtt.outgoing import Outgoing
from tests.support.mqtt_flow import BOUNDS, NOW, Note


@pytest.fixture
def server() -> Outgoing[Note]:
    server: Outgoing[Note] = Outgoing(BOUNDS, FlowCounts())
    server.attach(100, NOW)
    return server


@pytest.fixture
def checkpoints() -> Checkpoints[int]:
    return Checkpoints()


def test_checkpoint_without_messages_is_reached_at_once(server, checkpoints):
    checkpoints.add(7, server)
    assert checkpoints.reached(server) == 7
    assert checkpoints.reached(server) is None


def test_checkpoint_is_reached_when_all_its_messages_are_acknowledged(server, checkpoints):
    server.send([Note("1"), Note("2"), Note("3")], NOW)
    checkpoints.add(3, server)
    server.puback([3])
    server.puback([1])
    assert checkpoints.reached(server) is None
    server.puback([2])
    assert checkpoints.reached(server) == 3


def test_messages_after_the_checkpoint_do_not_delay_it(server, checkpoints):
    server.send([Note("1")], NOW)
    checkpoints.add(1, server)
    server.send([Note("2")], NOW)
    server.puback([1])
    assert checkpoints.reached(server) == 1


def test_message_with_qos_2_is_received_with_its_pubrec(server, checkpoints):
    server.send([Note("1", 2), Note("2", 1)], NOW)
    checkpoints.add(2, server)
    server.puback([2])
    assert checkpoints.reached(server) is None
    server.pubrec([1])
    assert checkpoints.reached(server) == 2


def test_message_that_waited_at_the_checkpoint_must_be_acknowledged(server, checkpoints):
    server.send([Note(str(n)) for n in range(BOUNDS.inflight + 2)], NOW)
    checkpoints.add(5, server)
    server.puback([1, 2])
    server.fill(NOW)
    assert checkpoints.reached(server) is None
    server.puback([3, 4])
    assert checkpoints.reached(server) is None
    server.puback([5])
    assert checkpoints.reached(server) == 5


def test_dropped_and_discarded_messages_do_not_delay_the_checkpoint(server, checkpoints):
    server.send([Note(str(n)) for n in range(BOUNDS.inflight + 2)], NOW)
    checkpoints.add(5, server)
    server.discard(lambda note: note.text == "4")
    server.send([Note(str(n)) for n in range(5, 5 + BOUNDS.queue)], NOW)  # drops the other waiting message
    server.puback([1, 2, 3])
    server.discard(lambda _: True)
    assert checkpoints.reached(server) == 5


def test_discarded_message_does_not_count_as_one_that_left(server, checkpoints):
    server.send([Note(str(n)) for n in range(BOUNDS.inflight + 2)], NOW)
    checkpoints.add(5, server)
    server.send([Note("late"), Note("late")], NOW)
    server.discard(lambda note: note.text == "late")
    server.puback([1, 2, 3])
    assert server.waiting == 2
    assert checkpoints.reached(server) is None


def test_new_connection_does_not_reach_the_checkpoint(server, checkpoints):
    server.send([Note("1"), Note("2")], NOW)
    checkpoints.add(2, server)
    server.detach()
    server.attach(1, NOW)
    server.puback([1])
    assert checkpoints.reached(server) is None
    server.puback([2])
    assert checkpoints.reached(server) == 2


def test_last_reached_checkpoint_wins(server, checkpoints):
    for number in range(3):
        server.send([Note(str(number))], NOW)
        checkpoints.add(number, server)
    server.puback([1, 2])
    assert checkpoints.reached(server) == 1
    assert len(checkpoints) == 1


def test_first_checkpoint_stays_if_there_are_too_many(server, checkpoints):
    for number in range(10):
        server.send([Note(str(number))], NOW)
        checkpoints.add(number, server)
        assert len(checkpoints) <= MAX_CHECKPOINTS
    server.puback([1])
    assert checkpoints.reached(server) == 0
    while server.inflight:
        server.puback(server.unreceived)
        server.fill(NOW)
    assert checkpoints.reached(server) == 9
