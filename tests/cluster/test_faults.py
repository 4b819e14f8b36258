"""Failures of the broker, of connections to it, and of nodes, with a real server that is killed, stopped and emptied."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from push1st.brokers import REQUEST_SECONDS, Receive
from push1st.brokers.redis import bounds, publishing
from push1st.messages import MEMBER_REMOVED, Message, Options, SignedIn, SubscriptionRefused
from push1st.process.system import SystemClock
from tests.cluster.places import ROOM, Place, fast, nodes, on, status, until
from tests.support.valkey import Valkey

Nodes = Callable[..., AbstractAsyncContextManager[tuple[Valkey, Place, Place]]]


async def renewals(place: Place, count: int = 3) -> None:
    """Waits until a node has renewed its lease this number of times."""
    for _ in range(count):
        before = place.shards[0].lease.renews_at
        await until(lambda before=before: place.shards[0].lease.renews_at != before)  # type: ignore[misc]


async def test_members_that_join_two_nodes_at_once_get_each_other_once() -> None:
    async with nodes() as (_, one, two):
        clients = [(one, two)[n % 2].client() for n in range(60)]
        for n, client in enumerate(clients):
            client.join(ROOM, f"u{n // 2}" if n < 20 else f"u{n}")
            if n % 7 == 6:
                await asyncio.sleep(0)
        everybody = {f"u{n}" for n in (*range(10), *range(20, 60))}
        await until(lambda: all(client.members.get(ROOM) == everybody for client in clients))


# The broker


async def test_clients_stay_and_publishing_is_rejected_during_a_broker_outage() -> None:
    async with nodes() as (valkey, one, two):
        client = await on(two, "c")
        valkey.kill()
        await until(lambda: not one.connected and not two.connected)
        assert await status(one.publish("c", b"1")) == 503
        assert not client.session.closed
        await until(lambda: one.metrics.broker_away > 0)
        valkey.start()


async def test_broker_serves_again_after_an_outage() -> None:
    async with nodes() as (valkey, one, two):
        clients = [await on(one, ROOM, "a"), await on(two, ROOM, "b")]
        valkey.kill()
        await until(lambda: not one.connected and not two.connected)
        valkey.start()
        await until(lambda: one.publishes and two.publishes)
        assert await status(one.publish(ROOM, b"1")) == 200
        await until(lambda: [client.messages[ROOM] for client in clients] == [["1"], ["1"]])
        found = await two.node.channel(two.app, ROOM)
        assert found is not None
        assert (found.subscriptions, found.users) == (2, 2)


async def test_no_member_removed_is_sent_when_the_broker_loses_its_state() -> None:
    async with nodes() as (valkey, one, two):
        clients = [await on(one, ROOM, "a"), await on(two, ROOM, "b")]
        valkey.ask("FLUSHALL")
        late = await on(one, ROOM, "c")
        await until(lambda: all(client.members[ROOM] == {"a", "b", "c"} for client in (*clients, late)))
        # A client fails if a member is added twice, or removed without having been added.
        await until(lambda: valkey.ask("EXISTS", f"{one.shards[0].keys.base}:recovering") == b":0\r\n")
        await until(lambda: one.shards[0].lease.recovered_at is None and two.shards[0].lease.recovered_at is None)
        assert [client.members[ROOM] for client in (*clients, late)] == [{"a", "b", "c"}] * 3


async def test_member_that_left_during_a_broker_outage_is_removed_on_all_nodes() -> None:
    async with nodes() as (valkey, one, two):
        staying, leaving = await on(one, ROOM, "a"), await on(two, ROOM, "b")
        await until(lambda: staying.members[ROOM] == {"a", "b"})
        valkey.kill()
        await until(lambda: not one.connected and not two.connected)
        leaving.lose()
        valkey.start()
        await until(lambda: staying.members[ROOM] == {"a"})


async def test_subscription_during_a_broker_outage_is_confirmed_after_it() -> None:
    async with nodes() as (valkey, one, two):
        valkey.kill()
        await until(lambda: not one.connected and not two.connected)
        client = one.client()
        client.join("c")
        await until(lambda: one.shards[0].connection._waiters)
        assert client.on == set()
        valkey.start()
        await until(lambda: client.on == {"c"} and two.publishes)
        assert await status(two.publish("c", b"1")) == 200
        await until(lambda: client.messages["c"] == ["1"])


async def test_subscription_is_rejected_during_a_long_broker_outage() -> None:
    async with nodes(fast(patience=1)) as (valkey, one, _):
        valkey.kill()
        await until(lambda: not one.connected)
        client = one.client()
        client.join("c")
        await until(lambda: client.has(SubscriptionRefused))
        assert client.replies[-1].status == 503
        assert not client.session.closed


async def test_publish_to_a_hung_broker_is_rejected_within_two_seconds() -> None:
    async with nodes() as (valkey, one, _):
        valkey.pause()
        started = time.monotonic()
        assert await status(one.publish("c", b"1")) == 503
        assert time.monotonic() - started < 3
        await until(lambda: one.metrics.broker_unconfirmed == 1)


async def test_hung_connection_is_dropped_and_reconnected() -> None:
    async with nodes(fast(silent=0.3)) as (valkey, one, two):
        client = await on(two, "c")
        valkey.pause()
        await until(lambda: not one.connected and not two.connected)
        valkey.go_on()
        await until(lambda: one.publishes and two.publishes)
        assert await status(one.publish("c", b"1")) == 200
        await until(lambda: client.messages["c"] == ["1"])


async def test_slow_broker_gets_no_further_publishes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "MAX_QUEUED", 1 << 20)
    async with nodes() as (valkey, one, _):
        valkey.pause()
        waiting = []
        for _ in range(200):
            waiting.append(asyncio.ensure_future(status(one.publish("c", b"1" * 50_000))))
            await asyncio.sleep(0)
        link = one.shards[0].connection.registered_on
        assert link is not None
        assert link.queued < (1 << 20) + 100_000
        valkey.go_on()
        statuses = await asyncio.gather(*waiting)
        assert {200, 503} == set(statuses)


# Nodes


async def test_entries_of_a_dead_node_are_evicted_when_its_lease_expires() -> None:
    timings = fast(lease=1)
    async with nodes(timings) as (valkey, one, two):
        staying = await on(one, ROOM, "a")
        dead = await Place(valkey.url, timings).open()
        gone = await on(dead, ROOM, "x/b")
        await on(dead, "c")
        gone.sign_in("x/b")
        await until(lambda: gone.has(SignedIn))
        watching = two.client()
        watching.sign_in("w", "x/b")
        await until(lambda: watching.online == {"x/b"})
        await until(lambda: staying.members[ROOM] == {"a", "x/b"})
        started = time.monotonic()
        dead.crash()
        await until(lambda: staying.members[ROOM] == {"a"} and watching.online == set())
        assert time.monotonic() - started < 1 + 0.05 + 1, "later than the lease and a look"
        assert await two.node.channel(two.app, "c") is None


async def test_entries_of_a_dead_node_are_evicted_in_steps_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_EVICTED", 3)
    async with nodes() as (valkey, one, two):
        staying = [await on(one, ROOM, "a"), await on(two, ROOM, "b")]
        dead = await Place(valkey.url).open()
        for n in range(20):
            await on(dead, ROOM, f"d{n}")
        await until(lambda: all(len(client.members[ROOM]) == 22 for client in staying))
        dead.crash()
        valkey.ask("DEL", f"{one.shards[0].keys.base}:lease:{dead.name}")
        await until(lambda: all(client.members[ROOM] == {"a", "b"} for client in staying))
        found = await one.node.channel(one.app, ROOM)
        assert found is not None
        assert (found.subscriptions, found.users) == (2, 2)


async def test_dead_node_with_any_number_of_entries_is_evicted() -> None:
    async with nodes() as (valkey, one, _):
        base = one.shards[0].keys.base
        had = "for i = 1, 100000 do redis.call('HSET', KEYS[1], 'c/app/' .. i, '1'); redis.call('HSET', KEYS[2], i, '1') end"
        valkey.ask("EVAL", had, "2", f"{base}:n:dead", f"{base}:i:app")
        valkey.ask("SADD", f"{base}:nodes", "dead")
        await until(lambda: valkey.ask("SISMEMBER", f"{base}:nodes", "dead") == b":0\r\n")
        assert valkey.ask("EXISTS", f"{base}:n:dead", f"{base}:i:app") == b":0\r\n"


async def test_running_node_registers_again_after_its_lease_expired() -> None:
    async with nodes() as (valkey, one, two):
        clients = [await on(one, ROOM, "a"), await on(two, ROOM, "b")]
        await until(lambda: clients[0].members[ROOM] == {"a", "b"})
        valkey.ask("DEL", f"{one.shards[0].keys.base}:lease:{one.name}")
        await until(lambda: one.connected and valkey.ask("EXISTS", f"{one.shards[0].keys.base}:lease:{one.name}") == b":1\r\n")
        await until(lambda: [client.members[ROOM] for client in clients] == [{"a", "b"}] * 2)
        found = await two.node.channel(two.app, ROOM)
        assert found is not None
        assert found.users == 2


async def test_clients_of_an_evicted_running_node_get_no_false_member_removed() -> None:
    async with nodes() as (valkey, one, two):
        clients = [await on(one, ROOM, "a"), await on(two, ROOM, "b")]
        await until(lambda: clients[0].members[ROOM] == {"a", "b"})
        one.shards[0].lease.renews_at = float("inf")  # the node stands still, but its socket is read
        valkey.ask("DEL", f"{one.shards[0].keys.base}:lease:{one.name}")
        await until(lambda: clients[1].members[ROOM] == {"b"})
        await one.broker.settled()
        assert clients[0].members[ROOM] == {"a", "b"}
        one.shards[0].lease.renew()
        await until(lambda: clients[1].members[ROOM] == {"a", "b"})
        assert clients[0].members[ROOM] == {"a", "b"}


async def test_nodes_have_numbers_of_their_own() -> None:
    async with nodes() as (_, one, two):
        assert one.node.worker != two.node.worker
        assert {one.node.stamp()[0] & 1023, two.node.stamp()[0] & 1023} == {one.node.worker, two.node.worker}


class LateClock(SystemClock):
    """A wall clock that is set back by hours."""

    @staticmethod
    def wall() -> int:
        return time.time_ns() - 5 * 3_600_000_000_000


async def test_messages_have_one_order_on_all_nodes_even_if_a_clock_goes_back() -> None:
    """Ids are unique and grow within each node; the order of a channel is the order of arrival."""
    async with nodes() as (_, one, two):
        clients = [await on(one, "c"), await on(two, "c")]
        ids: dict[str, int] = {}
        for number in range(20):
            if number == 10:
                two.node.clock = LateClock()
            place = (one, two)[number % 2]
            stamp = place.node.stamp()
            ids[str(number)] = stamp[0]
            assert await status(place.node.publish(place.app, "c", "e", b"%d" % number, stamp)) == 200
        await until(lambda: all(client.messages["c"] == [*ids] for client in clients))
        assert len(set(ids.values())) == 20
        for first in (0, 1):
            own = [ids[str(number)] for number in range(first, 20, 2)]
            assert own == sorted(own), "a node's ids do not grow"


async def test_hook_events_are_read_on_by_another_node_when_the_reader_dies() -> None:
    async with nodes() as (valkey, one, two):
        await on(one, "c")
        await until(lambda: one.hook_events or two.hook_events)
        reader, other = (one, two) if one.hook_events else (two, one)
        assert not other.hook_events
        reader.crash()
        valkey.ask("DEL", f"{one.shards[0].keys.base}:reader")
        await on(other, "d")
        await until(lambda: ("occupied", "d") in [(event.kind, event.channel) for event in other.hook_events])


async def test_hook_events_are_read_on_with_the_next_sign_of_life_when_the_reader_leaves() -> None:
    async with nodes() as (valkey, one, two):
        await on(one, "c")
        await until(lambda: one.hook_events or two.hook_events)
        reader, other = (one, two) if one.hook_events else (two, one)
        assert not other.hook_events
        key = f"{one.shards[0].keys.base}:reader"
        held = valkey.ask("GET", key)
        await reader.close()
        assert valkey.ask("GET", key) != held
        await on(other, "d")
        await until(lambda: ("occupied", "d") in [(event.kind, event.channel) for event in other.hook_events])


# Consistency of the cluster


async def test_app_has_at_most_its_maximum_of_connections_on_all_nodes_together() -> None:
    async with nodes(connections=3) as (_, one, two):
        clients = [place.client() for place in (one, two, one, two)]
        await until(lambda: sum(client.session.closed for client in clients) == 1)
        assert [client.closes for client in clients if client.session.closed] == [[4004]]
        assert [client.entered for client in clients] == [not client.session.closed for client in clients]
        next(client for client in clients if not client.session.closed).lose()
        await one.broker.settled()
        await two.broker.settled()
        fifth = one.client()
        await until(lambda: fifth.entered or fifth.session.closed)
        assert not fifth.session.closed


async def test_rejected_connection_that_ends_before_the_reply_is_not_counted() -> None:
    async with nodes(connections=1) as (_, one, two):
        first = one.client()
        await until(lambda: first.entered)
        for _ in range(3):
            two.client().lose()
        first.lose()
        await until(lambda: not one.app.uncounted and not two.app.uncounted)
        await one.broker.settled()
        await two.broker.settled()
        clients = [two.client(), two.client()]
        await until(lambda: any(client.session.closed for client in clients))
        assert sorted(client.entered for client in clients) == [False, True]


async def test_last_event_of_a_client_precedes_its_leave() -> None:
    async with nodes() as (_, one, two):
        leaving, staying = await on(one, ROOM, "a"), await on(two, ROOM, "b")
        await until(lambda: leaving.members[ROOM] == {"a", "b"})
        seen: list[str] = []
        told = staying._message

        def listen(channel: str, event: str, data: str, id: int) -> None:
            seen.append(event)
            told(channel, event, data, id)

        staying._message = listen  # type: ignore[method-assign]
        publishing = asyncio.ensure_future(one.publish(ROOM, b"1"))
        leaving.lose()  # in the same turn
        await publishing
        await until(lambda: len(seen) == 2)
        assert seen == ["e", MEMBER_REMOVED]


async def test_full_broker_rejects_new_entries_and_accepts_leaves() -> None:
    async with nodes() as (valkey, one, two):
        leaving, staying = await on(one, ROOM, "a"), await on(two, ROOM, "b")
        quiet = await on(one, "c")
        await until(lambda: leaving.members[ROOM] == {"a", "b"})
        links = [place.shards[0].connection.registered_on for place in (one, two)]
        valkey.ask("CONFIG", "SET", "maxmemory", "1")
        refused = two.client()
        refused.join("d")
        await until(lambda: refused.has(SubscriptionRefused))
        leaving.lose()
        quiet.lose()
        await until(lambda: staying.members[ROOM] == {"b"})
        await until(lambda: valkey.ask("HEXISTS", f"{one.shards[0].keys.base}:i:app", "c") == b":0\r\n")
        assert await status(one.publish(ROOM, b"1")) == 200
        await until(lambda: staying.messages[ROOM] == ["1"])
        await until(lambda: len(one.hook_events) + len(two.hook_events) == 6)
        told = [len(place.hook_events) for place in (one, two)]
        await renewals(one)
        assert [place.shards[0].connection.registered_on for place in (one, two)] == links, "their connections were given up"
        assert [len(place.hook_events) for place in (one, two)] == told, "hook events were reported again"
        one.drop()
        await until(lambda: one.connected)


def noting(deliver: Receive, told: list[Message]) -> Receive:
    def receive(message: Message) -> int:
        told.append(message)
        return deliver(message)

    return receive


@asynccontextmanager
async def unsaved(valkey: Valkey) -> AsyncIterator[None]:
    """Makes the server unable to write its snapshot, so that it rejects all writes (MISCONF)."""
    in_its_place = Path(valkey.path).parent / "dump.rdb" / "x"
    in_its_place.mkdir(parents=True)
    valkey.ask("CONFIG", "SET", "save", "3600 1")
    valkey.ask("BGSAVE")
    await until(lambda: valkey.ask("SET", "a", "b").startswith(b"-MISCONF"))
    yield
    in_its_place.rmdir()
    in_its_place.parent.rmdir()
    valkey.ask("BGSAVE")
    await until(lambda: valkey.ask("SET", "a", "b") == b"+OK\r\n")


async def test_broker_that_cannot_save_delivers_events_and_rejects_new_entries(capsys: pytest.CaptureFixture[str]) -> None:
    async with nodes(fast(patience=1, lease=1, backoff=0.1)) as (valkey, one, two):
        clients = [await on(one, ROOM, "a"), await on(two, ROOM, "b")]
        leaving = await on(two, ROOM, "c")
        await until(lambda: clients[0].members[ROOM] == {"a", "b", "c"})
        one.watch_own()
        two.watch_own()
        links = [place.shards[0].connection.registered_on for place in (one, two)]
        told: list[Message] = []
        async with unsaved(valkey):
            refused = one.client()
            refused.join("new")
            await until(lambda: refused.has(SubscriptionRefused))
            assert refused.replies[-1].status == 503
            leaving.lose()
            await until(lambda: not one.connected and not two.connected)  # their leases have expired, and cannot be renewed
            later = two.client()
            later.join("new")
            await until(lambda: later.has(SubscriptionRefused))
            for n, place in enumerate((one, two)):
                assert await status(place.publish(ROOM, b"%d" % n)) == 200
            await until(lambda: all({"0", "1"} <= set(client.messages[ROOM]) for client in clients))
            for place in (one, two):
                place.broker._views.receive = noting(place.broker._views.receive, told)
        await until(lambda: one.connected and two.connected)
        await until(lambda: all(client.members[ROOM] == {"a", "b"} for client in clients))
        assert [place.shards[0].connection.established for place in (one, two)] == links, "their connections were given up"
        joined = await on(one, ROOM, "d")
        await until(lambda: all(client.members[ROOM] == {"a", "b", "d"} for client in (*clients, joined)))
        await renewals(one)
        edges = [(message.event, json.loads(message.data)["user_id"]) for message in told]
        assert edges.count((MEMBER_REMOVED, "c")) == 2
        assert {user for event, user in edges if event == MEMBER_REMOVED} == {"c"}, "somebody who stayed is told to have left"
    assert "hint='the disk is full or not writable" in capsys.readouterr().out


async def test_stopping_node_passes_the_hook_events_lease_at_once() -> None:
    async with nodes() as (_, one, two):
        await on(one, "c")
        await until(lambda: one.hook_events or two.hook_events)
        reader = one if one.hook_events else two
        ended = time.monotonic()
        await reader.close()
        other = two if reader is one else one
        await on(other, "d")
        await until(lambda: ("occupied", "d") in [(event.kind, event.channel) for event in other.hook_events])
        assert time.monotonic() - ended < 5, "only when the lease was over"


async def test_a_users_connections_are_ended_on_every_node() -> None:
    async with nodes() as (_, one, two):
        clients = [one.client(), two.client()]
        for client in clients:
            client.sign_in("u")
        await until(lambda: all(client.has(SignedIn) for client in clients))
        await one.node.terminate(one.app, "u")
        await until(lambda: [client.closes for client in clients] == [[4009], [4009]])


async def test_message_for_one_connection_is_counted_on_its_node() -> None:
    async with nodes() as (_, one, two):
        here, there = await on(one, "c"), await on(two, "c")
        for how, count in (
            (Options(0, "unicast", there.session.id), 1),
            (Options(0, "unicast", "9.9"), 0),
            (Options(), 2),
        ):
            assert await one.node.controller.reach(one.app, "c", "", how) == count
        assert await one.node.controller.reach(one.app, "c", there.session.id, Options()) == 1
        assert await one.node.controller.reach(one.app, "c", here.session.id, Options()) == 1


async def test_only_nodes_with_subscribers_get_a_channels_messages() -> None:
    async with nodes() as (_, one, two):
        await on(one, "c")
        heard: list[str] = []

        def receive(message: Message) -> int:
            heard.append(message.channel)
            return 0

        two.broker._receive = receive
        assert await status(one.publish("c", b"1")) == 200
        await two.broker.settled()
        assert heard == []


# Requests


async def test_request_during_a_broker_outage_is_answered_after_it() -> None:
    async with nodes() as (valkey, one, two):
        client = await on(two, "c")
        valkey.pause()
        asking = asyncio.ensure_future(one.node.controller.listed(one.app, "c"))
        await asyncio.sleep(REQUEST_SECONDS + 0.1)
        valkey.go_on()
        assert [found.id for found in await asking] == [client.session.id]


async def test_requests_after_a_failover_wait_until_all_nodes_are_subscribed() -> None:
    async with nodes() as (valkey, one, _):
        base = one.shards[0].keys.base
        valkey.ask("SADD", f"{base}:nodes", "late")
        valkey.ask("SET", f"{base}:lease:late", "there", "PX", "10000")
        one.drop()
        await until(lambda: one.connected)
        assert await status(one.broker.request(one.config.id, "c", b"")) == 503
        valkey.ask("DEL", f"{base}:lease:late")
        await until(lambda: one.shards[0].connection.publish_connection is not None)
        assert await one.broker.request(one.config.id, "c", b"") == []
