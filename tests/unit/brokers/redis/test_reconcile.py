"""Repairs of the broker's copy of a node's entries, and leaves that are deferred after a loss of state."""

import asyncio
from collections.abc import Callable

import hiredis
import pytest

from push1st.errors import Refused
from push1st.messages import Member, Message
from tests.support.loop import turns
from tests.unit.brokers.redis.server import EPOCH, Node, Server, settle

ROOM = "presence-c"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Server]:
    return lambda: Server(monkeypatch)


async def joined(server: Server, node: Node) -> None:
    server.replies["JOIN"] = [1, [b"a", b"1:null"], None, 0, [1], None]
    await node.shard.roster.join("app", ROOM, "1.1", Member("a"), 0)
    server.names()


async def test_copy_that_equals_the_entries_needs_no_change(serve):
    server = serve()
    node = await Node().start()
    await joined(server, node)
    server.replies["HSCAN"] = [b"0", [b"c/app/presence-c", b"1", b"m/app/presence-c\na", b""]]
    server.connections[0].abort()
    await settle()
    assert server.names() == ["REGISTER", "SUBSCRIBE", "HSCAN", "RENEW"]


async def test_entries_that_the_copy_lacks_are_sent_on_the_new_connection(serve):
    server = serve()
    node = await Node().start()
    await joined(server, node)
    server.connections[0].abort()
    await settle()
    sent = [(name, arguments) for name, arguments in server.commands if name == "JOIN"]
    assert [(name, arguments[1:5], arguments[9]) for name, arguments in sent] == [
        ("JOIN", [b"app", b"presence-c", b"1", b"0"], b""),
        ("JOIN", [b"app", b"presence-c", b"1", b"0"], b"a"),
    ]
    assert all(arguments[7] == b"1" for _, arguments in sent), "the script must know that the node registers again"
    assert node.recounted == [("app", ROOM)] * 2


async def test_entries_that_only_the_copy_has_are_removed(serve):
    server = serve()
    node = await Node().start()
    server.names()
    server.replies["HSCAN"] = [b"0", [b"c/app/c", b"2", b"u/app/u", b"", b"q/app", b"3"]]
    server.connections[0].abort()
    await settle()
    assert server.names() == ["REGISTER", "SUBSCRIBE", "HSCAN", "LEAVE", "SIGN_OUT", "CONNECT", "RENEW"]
    assert node.recounted == [("app", "c")]


async def test_rejected_change_is_repaired_after_the_next_renewal(serve):
    server = serve()
    node = await Node().start()
    await joined(server, node)
    server.replies["LEAVE"] = hiredis.ReplyError("OOM command not allowed")
    node.shard.roster.leave("app", ROOM, "1.1", "a")
    await settle()
    assert server.names() == ["LEAVE"]
    server.replies |= {"LEAVE": 0, "HSCAN": [b"0", [b"c/app/presence-c", b"1"]]}
    node.tick(10)
    await settle()
    assert server.names() == ["RENEW", "HSCAN", "LEAVE"]


async def test_leaves_while_the_broker_was_away_are_deferred_if_it_lost_its_state(serve):
    server = serve()
    node = await Node({"app": "s"}).start()
    await joined(server, node)
    server.is_silent = True
    server.connections[0].abort()
    node.shard.roster.leave("app", ROOM, "1.1", "a")
    server.replies["REGISTER"] = [b"epoch-2", 5000, 7, 0, 0, b"Gen02"]
    server.replies["RENEW"] = [b"epoch-2", 5000, 0, [], 0, 0, []]
    server.is_silent = False
    await settle()
    deferred = [arguments[1:5] for name, arguments in server.commands if name == "DEFER_LEAVE"]
    assert deferred == [[b"m", b"app", b"presence-c", b"a"], [b"c", b"app", b"presence-c", b""]]


async def test_leaves_while_the_broker_was_away_are_not_deferred_if_it_kept_its_state(serve):
    server = serve()
    node = await Node({"app": "s"}).start()
    await joined(server, node)
    server.connections[0].abort()
    node.shard.roster.leave("app", ROOM, "1.1", "a")
    await settle()
    assert "DEFER_LEAVE" not in server.names()


async def test_join_whose_members_cannot_be_read_leaves_no_entry(serve):
    """The first join of the node reads the members. If the server rejects it, the next join must read them itself."""
    server = serve()
    node = await Node().start()
    roster = node.shard.roster
    replies = [hiredis.ReplyError("OOM"), [1, None, None, 0, [1], None], hiredis.ReplyError("OOM")]
    server.replies["JOIN"] = lambda _: replies.pop(0)
    first = asyncio.ensure_future(roster.join("app", ROOM, "1.1", Member("a"), 0))
    await asyncio.sleep(0)
    roster._joining.send(("app", ROOM))
    second = asyncio.ensure_future(roster.join("app", ROOM, "1.2", Member("b"), 0))
    results = await asyncio.gather(first, second, return_exceptions=True)
    await settle()
    assert list(map(type, results)) == [Refused, Refused]
    assert list(node.local_roster) == []
    left = [arguments[1:5] for name, arguments in server.commands if name == "LEAVE"]
    assert left == [[b"app", b"presence-c", b"1", b"a"], [b"app", b"presence-c", b"0", b"b"]]


async def test_user_whose_sign_in_the_broker_has_not_confirmed_does_not_leave(serve):
    """Otherwise each sign-in that fails during a long outage would be kept until the broker is back."""
    server = serve()
    node = await Node(patience=0).start()
    server.failures = [OSError("no route")] * 5
    server.connections[0].abort()
    signing_in = asyncio.ensure_future(node.shard.roster.sign_in("app", "u", "1.1"))
    await turns()
    node.tick()
    with pytest.raises(Refused):
        await signing_in
    assert node.shard.roster.unconfirmed_leaves == {}


async def test_renewal_that_shows_another_epoch_makes_the_node_register_again(serve):
    server = serve()
    node = await Node().start()
    server.names()
    replies = [[b"epoch-2", 0, 0, [], 0, 0, []], [EPOCH, 0, 0, [], 0, 0, []]]
    server.replies["RENEW"] = lambda _: replies.pop(0)
    node.tick(10)
    await settle()
    assert server.names() == ["RENEW", "REGISTER", "HSCAN", "RENEW"]


async def test_views_are_compared_when_the_recovery_is_over(serve):
    server = serve()
    node = await Node().start()
    await joined(server, node)
    received: list[Message] = []

    def receive(message: Message) -> int:
        received.append(message)
        return 1

    node.views.receive = receive
    server.replies["READ_IF_EPOCH"] = [b"b", b"1:2"]
    node.shard.lease.recovered_at = 0
    node.tick()
    await settle()
    assert set(node.views.members(("app", ROOM)) or {}) == {"a", "b"}, "a is on this node, so its removal was false"
    assert len(received) == 1
