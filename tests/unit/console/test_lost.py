"""The nodes that end without a stop."""

import msgspec

from push1st.console.lost import KEPT_SECONDS, MAX_LOST, LatestLoss, LostNode, LostNodes
from push1st.console.nodes import KnownNodes, NodeAbout

OWN, OLD, NEW = (NodeAbout("web-1", *rest) for rest in ((1, "supervisor", 1), (0, "supervisor", 2), (0, "supervisor", 15)))


def lost_nodes(**others: NodeAbout) -> LostNodes:
    known = KnownNodes("own", OWN)
    for name, about in others.items():
        known.learn(name, msgspec.msgpack.encode(about))
    return LostNodes(known)


def test_node_that_disappears_is_lost_until_it_is_back():
    lost = lost_nodes(b=OLD)
    lost.look(["a", "b"], (), 10)
    assert lost.found() == {}
    lost.look(["a"], (), 20)
    lost.look(["a"], (), 30)
    assert lost.found() == {"b": LostNode(20, OLD)}
    lost.look(["a", "b"], (), 40)
    assert lost.found() == {}


def test_node_that_says_farewell_is_not_lost():
    lost = lost_nodes()
    lost.look(["a", "b"], (), 10)
    lost.look(["a"], {"b"}, 20)
    assert lost.found() == {}


def test_lost_nodes_are_forgotten_in_time():
    lost = lost_nodes()
    lost.look([str(number) for number in range(2 * MAX_LOST)], (), 10)
    lost.look((), (), 20)
    assert len(lost.found()) == MAX_LOST
    lost.look((), (), 20 + KEPT_SECONDS)
    assert lost.found() == {}


def test_lost_node_keeps_the_time_of_its_successor():
    lost = lost_nodes(old=OLD, new=NEW)
    lost.look(["old"], (), 10)
    lost.look([], (), 14)
    assert lost.found() == {"old": LostNode(14, OLD)}
    lost.look(["new"], (), 16)
    lost.look([], {"new"}, 20)
    assert lost.found() == {"old": LostNode(14, OLD, 15)}


def test_worker_learns_what_others_have_lost():
    lost = lost_nodes()
    lost.look(["living"], (), 10)
    lost.learn({"a": LostNode(9, OLD), "living": LostNode(9)})
    lost.learn({"a": LostNode(8, None, 12), "b": LostNode(1)})
    assert lost.found() == {"a": LostNode(8, OLD, 12), "b": LostNode(1)}
    lost.learn({str(number): LostNode(20 + number) for number in range(MAX_LOST)})
    assert lost.found().keys() == {str(number) for number in range(MAX_LOST)}, "the latest ones"


def test_loss_of_the_brokers_state_keeps_its_time_if_the_clock_of_another_worker_is_ahead():
    loss = LatestLoss()
    for now in (100, 200, 300):
        loss.learn(3700, now)
    assert (loss.at, loss.reported) == (100, 3700)
    loss.learn(250, 400)
    assert loss.at == 100
    loss.learn(4000, 450)
    assert (loss.at, loss.reported) == (450, 4000)
