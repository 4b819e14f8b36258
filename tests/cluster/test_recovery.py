"""Members that join and leave while events cannot be delivered: the broker is away, or has lost its state."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from push1st.brokers.redis.shard import Shard
from push1st.errors import LimitReached
from push1st.messages import SignedIn, SubscriptionRefused
from tests.cluster.places import ROOM, Place, fast, nodes, on, status, until
from tests.support.valkey import Valkey


def events(*places: Place) -> list[tuple[str, str, str | None]]:
    """Returns the hook events of all nodes, without client events."""
    return [(event.kind, event.channel, event.user_id) for place in places for event in place.hook_events]


@asynccontextmanager
async def emptied(valkey: Valkey, *places: Place) -> AsyncIterator[None]:
    """Makes the broker lose its state. All nodes have registered when the block begins; the recovery is over when it ends."""
    told = len(events(*places))
    valkey.ask("FLUSHALL")
    await until(lambda: all(place.connected and recovering(valkey, place) for place in places))
    yield
    await until(lambda: not any(recovering(valkey, place) for place in places))
    await until(lambda: all(place.shards[0].lease.recovered_at is None for place in places))
    gone = f"{places[0].shards[0].keys.base}:gone"
    await until(lambda: valkey.ask("EXISTS", gone, f"{gone}:order") == b":0\r\n")
    for place in places:
        await place.broker.settled()
    assert len(events(*places)) >= told


def recovering(valkey: Valkey, place: Place) -> bool:
    epoch = place.shards[0].lease.epoch.encode()
    base = place.shards[0].keys.base
    return valkey.ask("EXISTS", f"{base}:recovering") == b":1\r\n" and epoch in valkey.ask("GET", f"{base}:epoch")


async def test_member_that_leaves_during_registration_is_removed_once() -> None:
    async with nodes() as (valkey, one, two):
        staying, leaving = await on(one, ROOM, "a"), await on(two, ROOM, "b")
        watching, offline = one.client(), two.client()
        offline.sign_in("b")
        await until(lambda: offline.has(SignedIn))
        watching.sign_in("w", "b")
        await until(lambda: watching.online == {"b"})
        await until(lambda: len(events(one, two)) == 3)
        async with emptied(valkey, one, two):
            leaving.lose()
            offline.lose()
        await until(lambda: staying.members[ROOM] == {"a"} and watching.online == set())
        await until(lambda: events(one, two)[3:] == [("member-removed", ROOM, "b")])
        await on(one, "last")
        await until(lambda: events(one, two)[4:] == [("occupied", "last", None)])


async def test_channel_left_during_registration_is_vacated_after_its_members() -> None:
    async with nodes() as (valkey, one, two):
        leaving = [await on(one, ROOM, "a"), await on(two, ROOM, "b"), await on(two, "c")]
        await until(lambda: len(events(one, two)) == 4)
        async with emptied(valkey, one, two):
            for client in leaving:
                client.lose()
        await until(lambda: len(events(one, two)) == 8)
        told = events(one, two)[4:]
        assert {("member-removed", ROOM, "a"), ("member-removed", ROOM, "b")} == set(
            told[: told.index(("vacated", ROOM, None))]
        ) - {("vacated", "c", None)}
        assert ("vacated", "c", None) in told


async def test_deferred_leave_reaches_hooks_at_once_and_with_its_connection() -> None:
    """The comparison of the ledger with the roster replaces settled edges only, and names no connection (decision 0016)."""
    async with nodes() as (valkey, one, two):
        for place in (one, two):
            place.hooked[place.config.id] = "as"
        leaving = await on(two, "c")
        await until(lambda: len(events(one, two)) == 2)
        async with emptied(valkey, one, two):
            leaving.lose()
        await until(lambda: len(events(one, two)) == 4)
        vacated = [event for place in (one, two) for event in place.hook_events if event.kind == "vacated"]
        socket = leaving.session.id
        assert sorted((event.phase, event.socket_id) for event in vacated) == [("at-once", socket), ("settled", socket)]


async def test_member_that_returns_during_registration_causes_no_edge() -> None:
    async with nodes() as (valkey, one, two):
        staying, leaving = await on(one, ROOM, "a"), await on(two, ROOM, "b")
        gone = await on(two, "c")
        await until(lambda: len(events(one, two)) == 4)
        async with emptied(valkey, one, two):
            leaving.lose()
            gone.lose()
            await on(one, ROOM, "b")
            await on(one, "c")
        await on(one, "last")
        await until(lambda: ("occupied", "last", None) in events(one, two))
        assert len(events(one, two)) == 5
        assert staying.members[ROOM] == {"a", "b"}


async def test_connection_that_returns_as_another_user_during_registration_removes_the_former() -> None:
    async with nodes() as (valkey, one, two):
        staying, changing = await on(one, ROOM, "a"), await on(two, ROOM, "b")
        await on(two, ROOM, "c")  # so that its node keeps following the channel
        async with emptied(valkey, one, two):
            changing.leave(ROOM)
            changing.join(ROOM, "d")
            await until(lambda: ROOM in changing.members)
        await until(lambda: all(client.members[ROOM] == {"a", "c", "d"} for client in (staying, changing)))


async def test_member_with_a_connection_on_another_node_is_not_removed() -> None:
    async with nodes() as (valkey, one, two):
        staying, leaving = await on(one, ROOM, "a"), await on(two, ROOM, "b")
        await on(one, ROOM, "b")
        await until(lambda: len(events(one, two)) == 3)
        one.shards[0].lease.renews_at = float("inf")  # the node has not noticed the loss yet
        valkey.ask("FLUSHALL")
        await until(lambda: two.connected and recovering(valkey, two))
        leaving.lose()
        await two.broker.settled()
        one.shards[0].lease.renew()
        async with emptied_again(valkey, one, two):
            pass
        await on(two, "last")
        await until(lambda: events(one, two)[3:] == [("occupied", "last", None)])
        assert staying.members[ROOM] == {"a", "b"}


@asynccontextmanager
async def emptied_again(valkey: Valkey, one: Place, two: Place) -> AsyncIterator[None]:
    await until(lambda: recovering(valkey, one))
    yield
    await until(lambda: not recovering(valkey, one) and not recovering(valkey, two))
    await until(lambda: one.shards[0].lease.recovered_at is None and two.shards[0].lease.recovered_at is None)


async def test_member_that_left_before_a_state_loss_is_removed_once() -> None:
    async with nodes() as (valkey, one, two):
        staying, leaving = await on(one, ROOM, "a"), await on(two, ROOM, "b")
        gone = await on(two, "c")
        await until(lambda: len(events(one, two)) == 4)
        valkey.kill()
        await until(lambda: not one.connected and not two.connected)
        leaving.lose()
        gone.lose()
        valkey.start()
        await until(lambda: staying.members[ROOM] == {"a"})
        await until(lambda: len(events(one, two)) == 6)
        await on(one, "last")
        await until(lambda: ("occupied", "last", None) in events(one, two))
        assert events(one, two)[4:] == [("member-removed", ROOM, "b"), ("vacated", "c", None), ("occupied", "last", None)]


async def test_member_that_leaves_before_nodes_detect_a_state_loss_is_removed_once() -> None:
    async with nodes() as (valkey, one, two):
        staying, leaving = await on(one, ROOM, "a"), await on(two, ROOM, "b")
        await until(lambda: len(events(one, two)) == 3)
        valkey.ask("FLUSHALL")
        leaving.lose()
        await until(lambda: staying.members[ROOM] == {"a"})
        await until(lambda: events(one, two)[3:] == [("member-removed", ROOM, "b")])


async def test_member_that_left_while_its_other_join_waited_in_vain_is_removed() -> None:
    async with nodes(fast(patience=1)) as (valkey, one, two):
        staying, leaving = await on(one, ROOM, "a"), await on(two, ROOM, "b")
        gone = await on(two, "c")
        await until(lambda: len(events(one, two)) == 4)
        valkey.kill()
        await until(lambda: not one.connected and not two.connected)
        waiting = [two.client(), two.client()]
        waiting[0].join(ROOM, "b")
        waiting[1].join("c")
        leaving.lose()
        gone.lose()
        await until(lambda: all(client.has(SubscriptionRefused) for client in waiting))
        valkey.start()
        await until(lambda: staying.members[ROOM] == {"a"})
        await until(lambda: events(one, two)[4:] == [("member-removed", ROOM, "b"), ("vacated", "c", None)])


# Limits


@asynccontextmanager
async def away(valkey: Valkey, place: Place) -> AsyncIterator[None]:
    """Disconnects a node from the broker, which keeps the node's entries."""
    valkey.pause()
    place.drop()
    assert not place.connected
    yield
    await asyncio.sleep(0.05)
    valkey.go_on()


async def test_join_during_a_broker_outage_is_rejected_by_a_full_channel() -> None:
    async with nodes(members=1) as (valkey, one, two):
        await on(two, ROOM, "a")
        await on(one, ROOM, "a")  # so that its node has the topic, and waits only for the roster
        async with away(valkey, one):
            refused, again = one.client(), one.client()
            refused.join(ROOM, "b")
            again.join(ROOM, "a")
        await until(lambda: refused.has(SubscriptionRefused) and ROOM in again.on)
        assert [reply.kind for reply in refused.replies if isinstance(reply, SubscriptionRefused)] == [LimitReached.__name__]
        assert [user.user_id for user in await two.node.members(two.app, ROOM)] == ["a"]
        found = await two.node.channel(two.app, ROOM)
        assert found is not None
        assert (found.subscriptions, found.users) == (3, 1)
        assert [event for event in events(one, two) if event[0].startswith("member-")] == [("member-added", ROOM, "a")]


async def test_member_of_a_stopped_node_that_another_node_rejects_is_removed() -> None:
    async with nodes(members=2) as (valkey, one, two):
        dead = await Place(valkey.url, members=2).open()
        staying = await on(one, ROOM, "a")
        await on(dead, ROOM, "b")
        await until(lambda: staying.members[ROOM] == {"a", "b"} and one.shards[0].lease.recovered_at is None)
        link = one.shards[0].connection.registered_on
        assert link is not None
        link._transport.pause_reading()  # the node receives the eviction after the client's request
        await dead.close()
        await on(two, ROOM, "c")
        refused = one.client()
        refused.join(ROOM, "b")
        await two.broker.settled()
        link._transport.resume_reading()
        await until(lambda: refused.has(SubscriptionRefused))
        await until(lambda: staying.members[ROOM] == {"a", "c"}, lambda: staying.members)


async def test_connection_during_a_broker_outage_is_rejected_by_a_full_app() -> None:
    async with nodes(connections=2) as (valkey, one, two):
        first = two.client()
        await until(lambda: first.entered)
        async with away(valkey, one):
            clients = [one.client() for _ in range(3)]
            assert not any(client.entered for client in clients)
        await until(lambda: sum(client.session.closed for client in clients) == 2)
        assert [client.closes for client in clients if client.session.closed] == [[4004], [4004]]
        await until(lambda: [client.entered for client in clients] == [not client.session.closed for client in clients])


async def test_connection_during_a_long_broker_outage_is_accepted() -> None:
    async with nodes(fast(patience=1), connections=1) as (valkey, one, _):
        async with away(valkey, one):
            client = one.client()
            await until(lambda: client.entered)
        await until(lambda: one.connected)
        refused = one.client()
        await until(lambda: refused.closes == [4004])


# Counts


async def test_count_after_the_eviction_of_a_node_is_sent_once() -> None:
    async with nodes(connections=100) as (valkey, one, two):
        dead = await Place(valkey.url, connections=100).open()
        for place in (one, two):
            place.app.hook_kinds = frozenset({"counted"})
        clients = [await on(one, "c"), await on(two, "c")]
        await on(dead, "c")
        await on(dead, "only-there")
        await until(lambda: [client.counts[-1:] for client in clients] == [[3], [3]])
        dead.crash()
        valkey.ask("DEL", f"{one.shards[0].keys.base}:lease:{dead.name}")
        await until(lambda: valkey.ask("SISMEMBER", f"{one.shards[0].keys.base}:nodes", dead.name) == b":0\r\n")
        for _ in range(3):
            for place in (one, two):
                await place.broker.settled()
                await place.node.tick()
        await until(lambda: [client.counts[-1:] for client in clients] == [[2], [2]])
        assert [client.counts for client in clients] == [[1, 2, 3, 2], [2, 3, 2]]
        told = [
            event.count for place in (one, two) for event in place.hook_events if event.kind == "counted" and event.channel == "c"
        ]
        await until(lambda: told[-1:] == [2])
        assert sorted(told) == [1, 2, 2]


async def test_evicted_running_node_causes_the_correct_count_again() -> None:
    async with nodes(connections=100) as (valkey, one, two):
        clients = [await on(one, "c"), await on(two, "c")]
        one.shards[0].lease.renews_at = float("inf")  # the node stands still, but its socket is read
        valkey.ask("DEL", f"{one.shards[0].keys.base}:lease:{one.name}")
        await until(lambda: valkey.ask("SISMEMBER", f"{two.shards[0].keys.base}:nodes", one.name) == b":0\r\n")
        await two.broker.settled()
        await two.node.tick()
        await until(lambda: clients[1].counts[-1:] == [1])
        one.shards[0].lease.renew()
        await until(lambda: valkey.ask("SISMEMBER", f"{two.shards[0].keys.base}:nodes", one.name) == b":1\r\n" and one.connected)
        await one.node.tick()
        await until(lambda: [client.counts[-1:] for client in clients] == [[2], [2]])


async def test_evicting_a_dead_node_blocks_the_broker_only_briefly() -> None:
    """The most expensive entries are presence channels with many members, of the dead node and of others."""
    had = """
    for i = 1, 50000 do redis.call('HSET', KEYS[1], 'c/app/' .. i, '1'); redis.call('HSET', KEYS[2], i, '2') end
    for i = 1, 20000 do redis.call('HSET', KEYS[3], 'u' .. i, '1:null') end
    for i = 1, 5000 do redis.call('HSET', KEYS[1], 'm/app/presence-x\\nu' .. i, '') end
    """
    async with nodes() as (valkey, one, _):
        base = one.shards[0].keys.base
        valkey.ask("EVAL", had, "3", f"{base}:n:dead", f"{base}:i:app", f"{base}:m:app/presence-x")
        valkey.ask("CONFIG", "SET", "slowlog-log-slower-than", "100000")
        valkey.ask("SLOWLOG", "RESET")
        valkey.ask("SADD", f"{base}:nodes", "dead")
        await until(lambda: valkey.ask("SISMEMBER", f"{base}:nodes", "dead") == b":0\r\n")
        assert valkey.ask("HLEN", f"{base}:m:app/presence-x") == b":15000\r\n"
        assert valkey.ask("HGET", f"{base}:i:app", "7") == b"$1\r\n1\r\n"
        assert valkey.ask("SLOWLOG", "GET") == b"*0\r\n"


async def test_repeated_subscription_after_a_state_loss_gets_the_followed_members(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with nodes() as (valkey, one, two):
        client, _ = await on(one, ROOM, "a"), await on(two, ROOM, "b")
        await until(lambda: client.members[ROOM] == {"a", "b"})
        monkeypatch.setattr(Shard, "tick", lambda *_: None)  # so that no node notices the loss before
        await one.broker.settled()
        valkey.ask("FLUSHALL")
        assert await one.node.members(one.app, ROOM) == ()  # the API returns the state of the broker
        client.members[ROOM] = set()
        client.join(ROOM, "a")
        await until(lambda: client.members[ROOM] == {"a", "b"})


async def test_members_known_to_clients_are_not_compared_with_an_empty_broker() -> None:
    async with nodes() as (valkey, one, two):
        client, _ = await on(one, ROOM, "a"), await on(two, ROOM, "b")
        await until(lambda: client.members[ROOM] == {"a", "b"})
        link = one.shards[0].connection.registered_on
        assert link is not None
        told = client.members[ROOM] = Told(client.members[ROOM])
        epoch = one.shards[0].lease.epoch
        valkey.ask("FLUSHALL")
        one.shards[0].reconciler._compare_views(link)
        await until(lambda: one.shards[0].lease.epoch != epoch and one.connected)
        await one.broker.settled()
        assert told.taken == []


@pytest.mark.parametrize("lost", [True, False])
async def test_node_that_hangs_after_a_state_loss_sends_no_false_edges(
    lost: bool,
) -> None:
    async with nodes() as (valkey, one, two):
        staying, other = await on(one, ROOM, "a"), await on(one, ROOM, "b")
        watching = await on(two, ROOM, "c")
        other.sign_in("b")
        await until(lambda: other.has(SignedIn))
        for client in (staying, watching):
            client.sign_in("w", "b")
        await until(
            lambda: all(client.online == {"b"} and client.members[ROOM] == {"a", "b", "c"} for client in (staying, watching))
        )
        one.watch_own()
        if lost:
            valkey.ask("FLUSHALL")
            await until(lambda: recovering(valkey, one) and recovering(valkey, two) and one.connected and two.connected)
        one.freeze(valkey)
        await until(lambda: watching.members[ROOM] == {"c"} and watching.online == set())
        assert await status(two.publish(ROOM, b"1")) == 200
        one.thaw()
        await until(lambda: watching.members[ROOM] == {"a", "b", "c"} and watching.online == {"b"})
        await one.broker.settled()
        assert one.failures == []
        await until(lambda: all(client.messages[ROOM] == ["1"] for client in (staying, other, watching)))


class Told(set[str]):
    """Members, and the members that were removed from them."""

    def __init__(self, members: set[str]) -> None:
        super().__init__(members)
        self.taken: list[object] = []

    def discard(self, user: object) -> None:
        self.taken.append(user)
        super().discard(user)
