"""The nodes that end without a stop."""

from push1st.console.lost import KEPT_SECONDS, MAX_LOST, LostNodes


def test_node_that_disappears_is_lost_until_it_is_back():
    lost = LostNodes()
    lost.look(["a", "b"], (), 10)
    assert lost.found() == {}
    lost.look(["a"], (), 20)
    lost.look(["a"], (), 30)
    assert lost.found() == {"b": 20}
    lost.look(["a", "b"], (), 40)
    assert lost.found() == {}


def test_node_that_says_farewell_is_not_lost():
    lost = LostNodes()
    lost.look(["a", "b"], (), 10)
    lost.look(["a"], {"b"}, 20)
    assert lost.found() == {}


def test_lost_nodes_are_forgotten_in_time():
    lost = LostNodes()
    lost.look([str(number) for number in range(2 * MAX_LOST)], (), 10)
    lost.look((), (), 20)
    assert len(lost.found()) == MAX_LOST
    lost.look((), (), 20 + KEPT_SECONDS)
    assert lost.found() == {}
