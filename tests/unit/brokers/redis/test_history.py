"""The history of a shard: its generation, its commands, and the server that does not report its run."""

import asyncio
from collections.abc import Callable
from typing import Any

import hiredis
import pytest

from push1st.brokers.history import ReplayRequest
from push1st.brokers.local_roster import LocalRoster
from push1st.brokers.redis import Redis
from push1st.config.history import HistorySection
from push1st.errors import Refused
from push1st.messages import KeptMessage, Member, Message, Published
from push1st.metrics import Metrics
from push1st.positions import Position
from tests.unit.brokers.redis.server import Node, Server, settle

SECTION = HistorySection(size=7, ttl=60)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Server]:
    return lambda: Server(monkeypatch)


def kept(data: bytes = b"1") -> KeptMessage:
    return KeptMessage("app", "c", "e", data, 77, 1)


async def test_batch_with_a_history_is_one_command_with_the_settings_and_the_generation(serve):
    server = serve()
    node = await Node().start()
    server.commands.clear()
    server.replies["APPEND"] = [b"4", b"Word1", 9, 0, 0]
    futures = [node.shard.publish(kept(data), None, SECTION) for data in (b"1", b"2")]
    await settle()
    ((name, arguments),) = server.commands
    assert (name, arguments[:2], arguments[3:8]) == ("APPEND", [b"app", b"c"], [b"2", b"7", b"60000", b"604800000", b"Gen01"])
    assert arguments[9:] == [b"", b"", b"", b"300000", b"77"]
    assert [await one for one in futures] == [Published(4, 8, "Gen01Word1"), Published(4, 9, "Gen01Word1")]


async def test_key_is_named_so_that_no_two_pairs_of_key_and_channel_are_equal(serve):
    server = serve()
    node = await Node().start()
    server.replies["APPEND"] = b"3 Gen01Word1 5 66"
    future = node.shard.publish(kept(), None, SECTION, "k1")
    await settle()
    assert server.commands[-1][1][11] == b"app/2:k1c"
    assert await future == Published(3, 5, "Gen01Word1", repeats=66)


async def test_channel_without_a_history_keeps_its_two_commands(serve):
    server = serve()
    node = await Node().start()
    server.names()
    node.shard.publish(Message("app", "c", "e", b"1", 1, 1))
    await settle()
    assert server.names() == ["PUBLISH", "HGET"]


async def test_join_without_a_history_requests_none(serve):
    server = serve()
    node = await Node().start()
    server.replies["JOIN"] = [1, None, None, 0, [0], None]
    assert (await node.shard.roster.join("app", "c", "1.1", None, 0)).replay is None
    assert server.commands[-1][1][8] == b""


async def test_each_new_word_is_another(serve):
    serve()
    node = await Node().start()
    assert len({node.shard.history.new_word() for _ in range(1000)}) == 1000


def proposal(server: Server) -> list[bytes]:
    """Returns the run id and the proposed generation of the last registration."""
    return [arguments for name, arguments in server.commands if name == "REGISTER"][-1][8:10]


async def test_node_proposes_its_generation_again_to_the_same_run_of_the_server(serve):
    """If the server lost only its keys, all nodes go on with the generation that they have."""
    server = serve()
    node = await Node().start()
    assert proposal(server)[0] == b"run1"
    server.connections[0].abort()
    await settle()
    assert proposal(server) == [b"run1", b"Gen01"]
    assert node.shard.history.generation == "Gen01"


async def test_node_proposes_a_new_generation_to_another_run_of_the_server(serve):
    server = serve()
    node = await Node().start()
    server.run_id = "run2"
    server.replies["REGISTER"] = lambda command: [b"epoch-1", 0, 7, 0, 0, command[4 + 9]]
    server.connections[0].abort()
    await settle()
    run_id, generation = proposal(server)
    assert (run_id, len(generation)) == (b"run2", 5)
    assert generation != b"Gen01"
    assert node.shard.history.generation == generation.decode()


@pytest.fixture
def without_info(serve: Callable[[], Server]) -> Server:
    server = serve()
    server.run_id = ""
    server.replies["REGISTER"] = lambda _: [b"epoch-1", 0, 7, 0, 0, b""]
    return server


async def test_history_is_rejected_with_the_missing_permission_if_the_server_does_not_report_its_run(without_info, capsys):
    node = await Node().start()
    request = ReplayRequest(SECTION, 1000, Position("k3F9aQx2bT", 1))
    calls: list[Any] = [node.shard.roster.join("app", "c", "1.1", None, 0, request) for _ in range(2)]
    calls.append(node.shard.history.read("app", "c", None, 1, False))
    for call in calls:
        with pytest.raises(Refused, match=r"503: the broker does not permit the command INFO.*\+info"):
            await call
    with pytest.raises(Refused, match=r"\+info"):
        node.shard.history.check()
    assert capsys.readouterr().out.count("+info") == 1
    assert list(node.local_roster) == []


async def test_data_of_an_unknown_kind_is_logged_once(capsys):
    """Nodes of different builds may share a broker, and a later build may have further kinds of data."""
    broker = Redis("redis://localhost", lambda: (1, 1), "node", Metrics(), LocalRoster(), dict, lambda _: None)
    for data in (b"\x0eabc", b"\x0eabc", b"\x0fabc", b"\x0e"):
        broker._on_push(0, data)
    logged = capsys.readouterr().out
    assert logged.count("unknown kind") == 2
    assert (logged.count("kind=14"), logged.count("kind=15")) == (1, 1)


@pytest.mark.parametrize("entries", [[b"2-2", b"\xc1"], [b"2-2", b"\x91\x90"], [b"two", b"\x90"]])
async def test_history_that_cannot_be_decoded_counts_as_trimmed(serve, entries):
    """The error ended the connection to the broker, again at each later subscription."""
    server = serve()
    node = await Node().start()
    server.replies["JOIN"] = [1, None, None, 0, [0], [b"Word1", 2, 1, entries]]
    request = ReplayRequest(SECTION, 1000, Position("Gen01Word1", 0))
    replay = (await node.shard.roster.join("app", "c", "1.1", None, 0, request)).replay
    assert replay is not None
    assert (replay.reason, replay.position, list(replay.messages)) == ("trimmed", Position("Gen01Word1", 2), [])
    assert len(server.connections) == 1


async def test_renewals_contain_the_generation(serve):
    """If the server evicted only this key, a new node would use another generation than all others."""
    server = serve()
    node = await Node().start()
    node.shard.lease.renew()
    await settle()
    assert {arguments[5] for name, arguments in server.commands if name == "RENEW"} == {b"run1 Gen01"}


async def test_missed_messages_of_live_subscribers_are_bounded_as_a_replay(serve):
    """Several megabytes at once would disconnect all subscribers of the channel as too slow."""
    server = serve()
    node = await Node().start()
    server.replies["JOIN"] = [1, None, None, 0, [0], [b"Word1", 0, 1, []]]
    server.replies["HEAL"] = [[b"Word1", 3, 1, []]]
    await node.shard.roster.join("app", "c", "1.1", None, 0, ReplayRequest(SECTION, 1000))
    node.shard.following.receive([KeptMessage("app", "c", "e", b"1", 1, 1, offset=3, epoch="Gen01Word1")])
    await settle()
    assert [arguments[2] for name, arguments in server.commands if name == "HEAL"] == [b"1000"]
    (reported,) = node.received
    assert b"too-large" in reported.data


async def test_members_and_history_of_a_join_are_of_one_step(serve):
    """A message between the two was lost for the new subscriber."""
    server = serve()
    node = await Node().start()
    members = [b"ann", b"1:null"]
    replies = [
        hiredis.ReplyError("OOM"),
        [1, None, None, 0, [1], [b"Word1", 5, 6, []]],
        [1, members, None, 0, [0], [b"Word1", 6, 7, []]],
    ]
    server.replies["JOIN"] = lambda _: replies.pop(0)
    server.replies["HGETALL"] = members
    request = ReplayRequest(SECTION, 1000)
    roster = node.shard.roster
    failing = asyncio.ensure_future(roster.join("app", "presence-c", "1.1", Member("bob"), 0, request))
    await asyncio.sleep(0)
    joined = asyncio.ensure_future(roster.join("app", "presence-c", "1.2", Member("ann"), 0, request))
    await settle()
    assert isinstance(failing.exception(), Refused)
    members_of, replay = joined.result().members, joined.result().replay
    assert replay is not None
    assert (members_of, replay.position.offset) == ((Member("ann"),), 6)


async def test_server_without_the_script_is_looked_up_again_at_once(serve):
    """After SCRIPT FLUSH, or on a replica, all publishes failed until the next renewal of the lease."""
    server = serve()
    node = await Node().start()
    replies = [hiredis.ReplyError("NOSCRIPT No matching script"), [b"4", b"Word1", 9, 0, 0]]
    server.replies["APPEND"] = lambda _: replies.pop(0)
    failed = node.shard.publish(kept(), None, SECTION)
    await settle()
    assert isinstance(failed.exception(), Refused)
    published = node.shard.publish(kept(), None, SECTION)
    await settle()
    assert (published.result().offset, len(server.connections)) == (9, 2)
