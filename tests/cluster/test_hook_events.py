"""Hooks receive each event once and in order, even if the consumer's node or its connection fails."""

import re
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import pytest

from push1st.brokers.redis.scripts import CLOCK_MS
from push1st.messages import HookEvent
from tests.cluster.machine import GONE_SECONDS, by_worker, connect_to, kill, machine, workers
from tests.cluster.places import ROOM, Backend, Client, Place, fast, nodes, on, until
from tests.support.process import APP, ServerProcess, merged, wait_until
from tests.support.receiver import receiving
from tests.support.valkey import Valkey


def reading(*places: Place) -> Place:
    """Returns the node that delivered hook events."""
    (found,) = [place for place in places if place.hook_events]
    return found


def channels(*places: Place) -> list[str]:
    return [event.channel for place in places for event in place.hook_events]


def cut(valkey: Valkey, place: Place) -> None:
    """Ends the connection of a node's consumer of hook events."""
    (id,) = re.findall(rf"id=(\d+) [^\n]*name=push1st-facts-{place.name} ".encode(), valkey.ask("CLIENT", "LIST"))
    valkey.ask("CLIENT", "KILL", "ID", id.decode())


async def test_consumer_whose_connection_ends_before_its_position_is_saved_delivers_nothing_twice() -> None:
    async with nodes() as (valkey, one, two):
        await on(one, "c")
        await until(lambda: one.hook_events or two.hook_events)
        reader = reading(one, two)

        def on_event(event: HookEvent) -> None:
            reader.hook_events.append(event)
            cut(valkey, reader)

        reader.broker._on_event = on_event
        await on(one, "d")
        await until(lambda: channels(reader) == ["c", "d"])
        reader.broker._on_event = reader.hook_events.append
        await on(one, "e")
        await until(lambda: channels(one, two)[-1:] == ["e"])
        assert channels(one, two) == ["c", "d", "e"]


async def test_consumer_without_the_lease_of_its_node_delivers_nothing() -> None:
    async with nodes() as (valkey, one, two):
        await on(one, "c")
        await until(lambda: one.hook_events or two.hook_events)
        reader, other = (one, two) if one.hook_events else (two, one)
        reader.shards[0].lease.renews_at = float("inf")  # the consumer can notice this only by reading
        valkey.ask("SET", f"{one.shards[0].keys.base}:reader", other.name)
        for name in "defg":
            await on(reader, name)
        await until(lambda: channels(other) == ["d", "e", "f", "g"])
        assert channels(reader) == ["c"]


async def test_hook_events_of_a_broker_that_lost_its_state_are_read_from_their_beginning() -> None:
    async with nodes() as (valkey, one, two):
        await on(one, "c")
        await until(lambda: one.hook_events or two.hook_events)
        base = one.shards[0].keys.base
        valkey.ask("XADD", f"{base}:facts", "99999999999999-0", "fact", "not one")  # as if a clock went back
        await until(lambda: valkey.ask("GET", f"{base}:facts:read").endswith(b"99999999999999-0\r\n"))
        valkey.ask("FLUSHALL")
        await on(two, "d")
        await until(lambda: "d" in channels(one, two))


# Edges alternate and end correctly after any loss

HOLD = 1.0
THERE = {(ROOM, None), (ROOM, "a")}


@asynccontextmanager
async def backed() -> AsyncIterator[tuple[Valkey, Backend, Place, Place, Client]]:
    """Two nodes that send webhooks, and a member: yields the node of the consumer, then the other node."""
    valkey, backend = Valkey(), Backend()
    try:
        places = [await Place(valkey.url, fast(hold=HOLD)).send_edges_to(backend).open() for _ in range(2)]
        client = await on(places[0], ROOM, "a")
        await until(lambda: backend.there == THERE)
        reads = [one.shards[0].hook_events.is_reading for one in places]
        reader, other = places if reads[0] else reversed(places)
        yield valkey, backend, reader, other, client
        assert backend.contradictions == []
        for place in places:
            await place.close()
    finally:
        valkey.close()


def stand_still(place: Place) -> None:
    """Makes the node notice a failure of the broker only by its connection."""
    place.shards[0].lease.renews_at = float("inf")


async def settled(valkey: Valkey, *places: Place) -> None:
    """Waits until all nodes have registered their entries, and no edge is held."""
    base = places[0].shards[0].keys.base
    await until(lambda: all(place.connected for place in places) and valkey.ask("GET", f"{base}:epoch") != b"$-1\r\n")
    await until(lambda: valkey.ask("EXISTS", f"{base}:recovering", f"{base}:held", f"{base}:gone") == b":0\r\n")
    ledgers = [place.shards[0].hook_events.ledger for place in places]
    await until(lambda: all(one.compared_at is None for one in ledgers if one.there is not None))


async def test_member_that_returns_during_a_state_loss_causes_no_edge() -> None:
    async with backed() as (valkey, backend, reader, other, client):
        client.lose()
        await other.broker.settled()
        stand_still(reader)
        valkey.ask("FLUSHALL")
        other.shards[0].lease.renew()
        await until(lambda: valkey.ask("EXISTS", f"{other.shards[0].keys.base}:epoch") == b":1\r\n")
        await on(other, ROOM, "a")
        for _ in range(3):
            other.shards[0].lease.renew()
            await other.broker.settled()
        reader.shards[0].lease.renew()
        await settled(valkey, reader, other)
        assert backend.there == THERE


@pytest.mark.parametrize("returns", [True, False])
async def test_hook_event_lost_with_the_state_of_the_broker_is_replaced(returns: bool) -> None:
    async with backed() as (valkey, backend, reader, other, client):
        assert reader.shards[0].hook_events.consumer is not None
        await reader.shards[0].hook_events.consumer.stop()
        stand_still(reader)
        if returns:
            await on(other, "c")
        else:
            client.lose()
            await other.broker.settled()
            await client.place.broker.settled()
        valkey.ask("FLUSHALL")
        reader.shards[0].lease.renew()
        other.shards[0].lease.renew()
        right = THERE | {("c", None)} if returns else set()
        await until(lambda: backend.there == right, lambda: backend.there)


async def test_consumer_that_stops_after_a_state_loss_saves_its_ledger_for_the_next() -> None:
    async with backed() as (valkey, backend, reader, other, client):
        client.lose()
        await client.place.broker.settled()
        valkey.ask("FLUSHALL")
        base = reader.shards[0].keys.base
        await until(lambda: valkey.ask("GET", f"{base}:reader").endswith(f"{reader.name}\r\n".encode()))
        await until(lambda: valkey.ask("SCARD", f"{base}:nodes") == b":2\r\n")
        await reader.close()
        await on(other, ROOM, "a")
        await settled(valkey, other)
        await until(
            lambda: other.shards[0].hook_events.ledger.there is not None and valkey.ask("EXISTS", f"{base}:ledger") == b":0\r\n"
        )
        assert backend.there == THERE


async def test_node_that_stops_after_the_broker_lost_its_state_is_not_awaited() -> None:
    async with nodes() as (valkey, one, two):
        await on(one, "c")
        base = one.shards[0].keys.base
        valkey.ask("FLUSHALL")
        await until(lambda: valkey.ask("SCARD", f"{base}:nodes") == b":2\r\n")
        assert valkey.ask("EXISTS", f"{base}:away") == b":0\r\n"
        valkey.ask("SADD", f"{base}:away", one.name)
        await one.close()
        assert valkey.ask("EXISTS", f"{base}:away") == b":0\r\n"
        await on(two, "d")


async def test_held_edges_are_released_though_the_clock_of_the_server_was_set_back() -> None:
    async with backed() as (valkey, backend, reader, other, client):
        clock = f"{reader.shards[0].keys.base}:clock"  # only its clock measures the remaining time
        valkey.ask("PEXPIRE", clock, str(CLOCK_MS - 3_600_000))
        client.lose()
        await client.place.broker.settled()
        valkey.ask("PEXPIRE", clock, str(CLOCK_MS))
        await until(lambda: backend.there == set(), lambda: backend.there)
        await on(other, ROOM, "a")
        await until(lambda: backend.there == THERE, lambda: backend.there)


async def test_hook_events_that_a_replica_lacks_are_replaced() -> None:
    async with backed() as (valkey, backend, reader, other, _):
        assert reader.shards[0].hook_events.consumer is not None
        stand_still(reader)
        await reader.shards[0].hook_events.consumer.stop()
        await on(other, "c")
        valkey.ask("XTRIM", f"{other.shards[0].keys.base}:facts", "MAXLEN", "0")
        reader.drop()
        await until(lambda: backend.there == THERE | {("c", None)}, lambda: backend.there)


async def test_a_member_that_returns_on_another_node_while_the_reader_dies_causes_no_edge() -> None:
    async with backed() as (valkey, backend, reader, other, client):
        client.lose()
        await client.place.broker.settled()
        reader.crash()
        valkey.ask("DEL", f"{other.shards[0].keys.base}:lease:{reader.name}")
        await on(other, ROOM, "a")
        await until(lambda: valkey.ask("GET", f"{other.shards[0].keys.base}:reader").endswith(f"{other.name}\r\n".encode()))
        await until(lambda: other.shards[0].hook_events.ledger.there is not None)
        await settled(valkey, other)
        assert backend.there == THERE


async def test_members_that_leave_nodes_without_hooks_cause_edges_when_they_return() -> None:
    """Hooks are added to the configuration, and all nodes are replaced: the old ones report no edges."""
    valkey, backend = Valkey(), Backend()
    backend.there = set(THERE)
    try:
        old, new = Place(valkey.url, fast(hold=HOLD)), Place(valkey.url, fast(hold=HOLD)).send_edges_to(backend)
        old.hooked = {}
        await old.open()
        client = await on(old, ROOM, "a")
        await new.open()
        await until(lambda: new.reads)
        client.lose()
        await old.close()
        await until(lambda: backend.there == set(), lambda: backend.there)
        await on(new, ROOM, "a")
        await until(lambda: backend.there == THERE, lambda: backend.there)
        assert backend.contradictions == []
        await new.close()
    finally:
        valkey.close()


def sent(server: ServerProcess) -> dict[int, float]:
    return by_worker(server, "push1st_hook_attempts_total")


def test_hook_events_are_sent_once_and_in_order_when_their_consumer_is_killed() -> None:
    with receiving() as receiver, ExitStack() as stack:
        hooks = {"webhooks": [{"url": receiver.url, "events": ["channel_occupied"], "concurrency": 1}]}
        server = stack.enter_context(machine(config={"server": {"drain": 0}}, apps={"app-test": merged(APP, hooks)}))
        first = connect_to(server, 0, stack)
        first.subscribe("c0")
        wait_until(lambda: receiver.events, "the first event")
        wait_until(lambda: any(sent(server).values()), "it is counted")
        (reader,) = [number for number, count in sent(server).items() if count]
        client = connect_to(server, 1 - reader, stack)
        there = workers(server)
        for number in range(1, 61):
            client.subscribe(f"c{number}")
            if number == 30:
                kill(there[reader])
        wait_until(lambda: receiver.events[-1]["channel"] == "c60", "the last event", GONE_SECONDS + 10)
        told = [int(event["channel"][1:]) for event in receiver.events]
        assert told == sorted(set(told)), "twice, or in another order"
        assert set(range(31, 61)) <= set(told), "more is lost than the dead one had"
