"""Events held for clients that are about to subscribe; test_session.py has further tests of them."""

import json

import pytest

from push1st.core.held import HELD_SECONDS, MAX_HELD, MAX_HELD_BYTES, Held
from push1st.messages import KeptMessage, Message
from push1st.positions import Position
from tests.support.node import World

CHANNEL = "#server-to-user-u"


@pytest.fixture
def clients():
    world = World()
    return [world.session()[0] for _ in range(3)]


def event(data: bytes = b"1", **more) -> Message:
    return Message("app", CHANNEL, "e", data, 1, 2, **more)


def test_clients_are_due_in_the_order_of_their_events(clients):
    held = Held(lambda *_: None)
    for at, client in enumerate(clients):
        held.add(client, CHANNEL, at)
    held.add(clients[0], CHANNEL, 100)
    assert held.due(HELD_SECONDS - 0.1) == []
    assert held.due(HELD_SECONDS + 1) == clients[:2]
    assert [held.deliver(client) for client in clients] == [CHANNEL] * 3
    assert (len(held), CHANNEL in held, held.drop(clients[0]), held.deliver(clients[0])) == (0, False, "", "")


def test_held_frames_stay_within_both_bounds(clients):
    sent: list[bytes] = []
    held = Held(lambda _, frame: sent.append(frame))
    held.add(clients[0], CHANNEL, 0)
    total = 0
    for size in (*range(0, 20_000, 97), *[1] * 300):
        held.receive(event(b'"' + b"x" * size + b'"'), 3)
        total += 1
        (hold,) = held._channels[CHANNEL].values()
        assert len(hold.frames) <= MAX_HELD
        assert sum(len(frame) for frame, _ in hold.frames) == hold.size <= MAX_HELD_BYTES
        assert len(sent) + len(hold.frames) == total
    held.deliver(clients[0])
    assert len(sent) == total


def test_an_event_is_not_held_for_the_two_clients_that_it_excludes(clients):
    got: dict[str, list[bytes]] = {client.id: [] for client in clients}
    held = Held(lambda client, frame: got[client.id].append(frame))
    for client in clients:
        held.add(client, CHANNEL, 0)
    held.receive(event(exclude=clients[0].id, target=clients[1].id), 3)
    held.receive(event(delivery="unicast", target=clients[1].id), 3)
    for client in clients:
        held.deliver(client)
    assert [len(got[client.id]) for client in clients] == [0, 1, 1]


def test_held_events_that_the_replay_contained_are_not_delivered(clients):
    sent: list[bytes] = []
    held = Held(lambda _, frame: sent.append(frame))
    held.add(clients[0], CHANNEL, 0)
    for offset, epoch in ((4, "e"), (5, "e"), (6, "e"), (1, "f")):
        held.receive(KeptMessage("app", CHANNEL, "e", b"%d" % offset, 1, 2, offset=offset, epoch=epoch), 3)
    held.receive(event(b"9"), 3)
    held.deliver(clients[0], Position("e", 5))
    assert [json.loads(frame[2:])["data"] for frame in sent] == ["6", "1", "9"]


def test_frames_above_the_bound_are_dropped_if_the_client_receives_them_from_the_history(clients):
    sent: list[bytes] = []
    held = Held(lambda _, frame: sent.append(frame))
    held.add(clients[0], CHANNEL, 0, drops=True)
    held.receive(event(b"0"), 3)
    for offset in range(1, MAX_HELD + 2):
        held.receive(KeptMessage("app", CHANNEL, "e", b"%d" % offset, 1, 2, offset=offset, epoch="e"), 3)
    assert [json.loads(frame[2:])["data"] for frame in sent] == ["0"]
    held.deliver(clients[0])
    assert [json.loads(frame[2:])["data"] for frame in sent] == ["0", "100", "101"]
