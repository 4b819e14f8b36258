"""What a console knows of the other nodes."""

import msgspec

from push1st.console import nodes
from push1st.console.nodes import LEASE_SECONDS, KnownNodes, NodeAbout

OWN = NodeAbout("web-1", 1, "supervisor", 100)


def known(**others: NodeAbout) -> KnownNodes:
    found = KnownNodes("own", OWN)
    for name, about in others.items():
        assert found.learn(name, msgspec.msgpack.encode(about)) == ""
    return found


def test_worker_whose_number_its_supervisor_gives_to_another_has_ended():
    found = known(old=NodeAbout("web-1", 0, "supervisor", 100), other=NodeAbout("web-1", 0, "other supervisor", 100))
    assert not found.has_ended("old")
    assert found.learn("new", msgspec.msgpack.encode(NodeAbout("web-1", 0, "supervisor", 200))) == "old"
    assert found.learn("new", msgspec.msgpack.encode(NodeAbout("web-1", 0, "supervisor", 200))) == "", "a repeated greeting"
    assert [node for node in ("old", "other", "new", "unknown") if found.has_ended(node)] == ["old"]


def test_worker_knows_that_it_has_replaced_a_lost_node():
    found = known()
    found.learn_lost("old", NodeAbout("web-1", 1, "supervisor", 50))
    assert found.has_ended("old")


def test_workers_without_a_supervisor_never_prove_that_others_have_ended():
    found = known(old=NodeAbout("web-1", 0, "", 100), new=NodeAbout("web-1", 0, "", 200))
    assert not found.has_ended("old")


def test_successor_has_the_place_of_a_node():
    old = NodeAbout("web-1", 0, "supervisor", 100)
    found = known(new=NodeAbout("web-1", 0, "supervisor", 200), far=NodeAbout("web-2", 0, "supervisor", 300))
    assert found.successor(old, 1000, ["new", "far", "unknown"]) == 200
    assert found.successor(old, 1000, ["far"]) == 0
    assert found.successor(NodeAbout("web-1", 1, "supervisor", 50), 1000, []) == 100, "this worker is a successor too"
    assert found.successor(None, 1000, ["new"]) == 0


def test_successor_without_a_supervisor_is_younger_than_the_last_lease():
    old = NodeAbout("web-1", 0, "", 100)
    found = known(new=NodeAbout("web-1", 0, "", 200))
    assert found.successor(old, 200 + LEASE_SECONDS, ["new"]) == 200
    assert found.successor(old, 201 + LEASE_SECONDS, ["new"]) == 0, "another server of the same machine"


def test_reports_of_other_versions_are_left_out_and_their_number_is_bounded(monkeypatch):
    monkeypatch.setattr(nodes, "MAX_KNOWN", 3)
    found = known()
    assert found.learn("other version", b"\xc0") == ""
    assert "other version" not in found
    for number in range(10):
        found.learn(str(number), msgspec.msgpack.encode(NodeAbout("web-1", number, "supervisor", 0)))
        assert sum(str(one) in found for one in range(10)) <= 3
    assert found.get("9") == NodeAbout("web-1", 9, "supervisor", 0)
