"""Histories while connections to the broker end, and while the broker loses messages: live subscribers miss nothing silently."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from push1st.brokers.history import Replay, ReplayRequest
from push1st.config.history import HistorySection
from push1st.errors import Refused
from push1st.messages import Published
from push1st.positions import Position
from tests.cluster.places import FAST, Client, Place, on, until
from tests.support.blackhole import blackhole
from tests.support.servers import Cluster, Watched, free_port
from tests.support.valkey import Valkey

SECTION = HistorySection(size=2000)
HISTORY = (SECTION,)
CHANNELS = [f"c{n}" for n in range(5)]


class Load:
    """A publisher that publishes the numbers after `after` on all channels, about 200 a second.

    published: the acknowledged numbers by channel.
    """

    def __init__(self, place: Place, after: int = 0) -> None:
        self._place = place
        self._after = after
        self.published: dict[str, list[str]] = {channel: [] for channel in CHANNELS}
        self._over = asyncio.Event()
        self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        number = self._after
        while not self._over.is_set():
            for channel in CHANNELS:
                number += 1
                with contextlib.suppress(Refused):
                    await self._place.publish(channel, b"%d" % number)
                    self.published[channel].append(str(number))
                await asyncio.sleep(0.005)

    async def end(self) -> None:
        self._over.set()
        await self._task


async def replay(place: Place, channel: str, since: Position) -> Replay:
    """Returns what a client that has this position gets when it joins."""
    client = place.client()
    request = ReplayRequest(SECTION, 1 << 20, since)
    joined = await place.broker.join(place.config.id, channel, client.session.id, None, 0, request)
    await place.broker.leave(place.config.id, channel, client.session.id, None)
    assert joined.replay is not None
    return joined.replay


def position(published: Published) -> Position:
    return Position(published.epoch, published.offset)


def gaps(place: Place) -> tuple[int, int]:
    """Returns the numbers of healed and of reported gaps."""
    return place.metrics.gaps_healed, place.metrics.gaps_reported


@asynccontextmanager
async def closing(*places: Place) -> AsyncIterator[None]:
    try:
        yield
        for place in places:
            assert place.failures == []
    finally:
        for place in places:
            await place.close()


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    with contextlib.closing(Valkey(port=free_port())) as server:
        yield server


# The connection of one node ends


@pytest.mark.parametrize("seconds", [1, 8])
async def test_subscribers_miss_nothing_while_the_connection_of_their_node_to_the_broker_is_cut(valkey, seconds):
    with blackhole(valkey.port) as proxy:
        one, two = Place(f"redis://127.0.0.1:{proxy.port}", FAST, HISTORY), Place(valkey.url, FAST, HISTORY)
        await one.open()
        await two.open()
        async with closing(one, two):
            clients = [await on(one, channel) for channel in CHANNELS for _ in range(2)]
            load = Load(two)
            await until(lambda: all(client.messages[channel] for client in clients for channel in client.on))
            proxy.freeze()
            proxy.cut()
            await asyncio.sleep(seconds)
            assert not one.connected
            before = sum(map(len, load.published.values()))
            proxy.thaw()
            await until(lambda: one.connected)
            await load.end()
            assert before > 20 * seconds
            await until(
                lambda: all(client.messages[channel] == load.published[channel] for client in clients for channel in client.on)
            )
            assert [client.gaps for client in clients] == [{}] * len(clients)
            assert gaps(one) == (len(CHANNELS), 0)


async def test_subscribers_miss_nothing_while_their_connections_are_killed_and_clients_join_and_leave(valkey):
    """A deadlock between delivery and recovery occurred when both happened at once (centrifuge#439)."""
    one, two = await Place(valkey.url, FAST, HISTORY).open(), await Place(valkey.url, FAST, HISTORY).open()
    async with closing(one, two):
        staying = [await on(one, channel) for channel in CHANNELS]
        load = Load(two)
        visitors: list[tuple[str, Client]] = []
        for round in range(20):
            channel = CHANNELS[round % len(CHANNELS)]
            visitors.append((channel, one.client()))
            visitors[-1][1].join(channel)
            listed = valkey.ask("CLIENT", "LIST").decode()
            ids = re.findall(rf"id=(\d+) [^\n]*name=push1st-{one.name} ", listed)
            for id in ids:
                valkey.ask("CLIENT", "KILL", "ID", id)
            await until(lambda: visitors[-1][1].replies)
            await asyncio.sleep(0.02 * (round % 4))
        await until(lambda: one.connected)
        await load.end()
        for channel, client in [*zip(CHANNELS, staying, strict=True), *visitors]:
            await until(lambda: client.messages[channel][-1:] == load.published[channel][-1:])  # noqa: B023 - used at once
            first = load.published[channel].index(client.messages[channel][0])
            assert client.messages[channel] == load.published[channel][first:]
            assert client.gaps == {}
        assert all(client.messages[channel] == load.published[channel] for channel, client in zip(CHANNELS, staying, strict=True))
        assert gaps(one)[0] > 0


async def test_messages_that_are_no_longer_kept_after_a_cut_are_reported(valkey):
    history = (HistorySection(size=3),)
    with blackhole(valkey.port) as proxy:
        one, two = Place(f"redis://127.0.0.1:{proxy.port}", FAST, history), Place(valkey.url, FAST, history)
        await one.open()
        await two.open()
        async with closing(one, two):
            trimmed, kept = await on(one, "c"), await on(one, "d")
            proxy.freeze()
            proxy.cut()
            await until(lambda: not one.connected)
            last = [await two.publish("c", b"%d" % n) for n in range(10)][-1]
            for n in range(3):
                await two.publish("d", b"%d" % n)
            proxy.thaw()
            await until(lambda: one.connected)
            await two.publish("c", b"after")
            await until(lambda: trimmed.messages["c"] == ["after"])
            assert trimmed.gaps == {"c": [("trimmed", str(position(last)), 0)]}
            await until(lambda: kept.messages["d"] == ["0", "1", "2"])
            assert kept.gaps == {}
            assert gaps(one) == (1, 1)


# The broker loses its state


@pytest.mark.parametrize("options", [(), ("--appendonly", "yes", "--appendfsync", "always")], ids=["without-aof", "with-aof"])
async def test_broker_that_is_killed_and_restarted_is_reported_to_subscribers_and_to_clients_that_resume(options):
    """Clients got the whole history again, or nothing, after a restart (mercure#586, nchan#190)."""
    with contextlib.closing(Valkey(*options)) as valkey:
        one, two = await Place(valkey.url, FAST, HISTORY).open(), await Place(valkey.url, FAST, HISTORY).open()
        async with closing(one, two):
            clients = [await on(one, "c"), await on(two, "c"), await on(two, "d")]
            old = [await one.publish("c", b"%d" % n) for n in range(5)]
            await until(lambda: all(len(client.messages["c"]) == 5 for client in clients[:2]))
            valkey.kill()
            await until(lambda: not one.connected and not two.connected)
            valkey.start()
            await until(lambda: one.publishes and two.publishes)
            new = await one.publish("c", b"new")
            await until(lambda: all(client.messages["c"][-1] == "new" for client in clients[:2]))
            last = str(Position(new.epoch, new.offset - 1))
            assert new.offset == (6 if options else 1)
            assert [client.gaps for client in clients[:2]] == [{"c": [("state-lost", last, 5)]}] * 2
            assert list(clients[2].gaps) == ["d"]
            assert (gaps(one), gaps(two)) == ((0, 1), (0, 2))
            for published in old:
                assert (await replay(two, "c", position(published))).reason == "state-lost"
            assert (await replay(two, "c", position(new))).reason is None


async def test_lost_keys_of_a_running_broker_are_no_gap_for_subscribers_and_one_for_clients_that_resume(valkey):
    one, two = await Place(valkey.url, FAST, HISTORY).open(), await Place(valkey.url, FAST, HISTORY).open()
    async with closing(one, two):
        clients = [await on(one, "c"), await on(two, "c")]
        old = [await one.publish("c", b"%d" % n) for n in range(5)][-1]
        valkey.ask("FLUSHALL")
        new = [await place.publish("c", place.name.encode()) for place in (one, two)]
        assert [one.offset for one in new] == [1, 2]
        assert len({one.epoch for one in new}) == 1
        await until(lambda: all(len(client.messages["c"]) == 7 for client in clients))
        assert [client.gaps for client in clients] == [{}, {}]
        await until(lambda: one.connected and two.connected)
        assert (await replay(one, "c", position(old))).reason == "state-lost"
        assert (await replay(two, "c", position(new[0]))).reason is None


async def test_replica_that_lacks_messages_and_becomes_master_is_reported(tmp_path: Path):
    """The replica gives the offsets of the lost messages again. A client with these offsets must not count as complete
    (centrifugo#664)."""
    with contextlib.closing(Watched(tmp_path)) as watched:
        one, two = await Place(watched.url, FAST, HISTORY).open(), await Place(watched.url, FAST, HISTORY).open()
        async with closing(one, two):
            client = await on(two, "c")
            await one.publish("c", b"0")
            await until(lambda: b":1\r\n" in watched.replica.ask("EXISTS", f"{one.shards[0].keys.base}:h:{one.config.id}/c"))
            watched.replica.pause()
            watched.master.ask("CLIENT", "KILL", "TYPE", "replica")
            lost = [await one.publish("c", b"%d" % n) for n in range(1, 5)]
            await until(lambda: len(client.messages["c"]) == 5)
            watched.master.kill()
            await until(lambda: not one.connected and not two.connected)
            watched.replica.go_on()
            await until(lambda: one.publishes and two.publishes)
            again = [await one.publish("c", b"again-%d" % n) for n in range(1, 5)]
            assert [published.offset for published in again] == [published.offset for published in lost]
            await until(lambda: client.messages["c"][5:] == [f"again-{n}" for n in range(1, 5)])
            assert client.gaps == {"c": [("state-lost", str(Position(again[0].epoch, again[0].offset - 1)), 5)]}
            for published in lost:
                assert (await replay(two, "c", position(published))).reason == "state-lost"


async def test_master_of_a_cluster_that_is_replaced_by_its_replica_is_reported():
    """The new master has all messages, but no node can know this."""
    with contextlib.closing(Cluster(replicas=True)) as cluster:
        one, two = await Place(cluster.url, FAST, HISTORY).open(), await Place(cluster.url, FAST, HISTORY).open()
        async with closing(one, two):
            client = await on(two, "c")
            old = await one.publish("c", b"0")
            await until(lambda: client.messages["c"] == ["0"])
            shard = two.broker._shard(two.config.id, "c")
            slot = int(cluster.servers[0].ask("CLUSTER", "KEYSLOT", shard.keys.base)[1:])
            (master,) = cluster.holders(slot)
            replica = cluster.replica_of(master)
            replica.ask("CLUSTER", "FAILOVER")
            await until(lambda: cluster.holders(slot) == [replica])
            await until(lambda: client.gaps.get("c"))
            await until(lambda: one.publishes and two.publishes)
            new = await one.publish("c", b"1")
            await until(lambda: client.messages["c"] == ["0", "1"])
            assert client.gaps == {"c": [("state-lost", str(Position(new.epoch, 1)), 1)]}
            assert (await replay(two, "c", position(old))).reason == "state-lost"


# No failure


@pytest.mark.long
async def test_five_minutes_without_a_failure_report_no_gap(valkey):
    """Without any failure, clients were told that messages were missing (centrifugo#1120)."""
    one, two = await Place(valkey.url, FAST, HISTORY).open(), await Place(valkey.url, FAST, HISTORY).open()
    async with closing(one, two):
        clients = [await on(place, channel) for place in (one, two) for channel in CHANNELS]
        loads = Load(one), Load(two, 1_000_000)
        loop = asyncio.get_running_loop()
        end = loop.time() + 300
        while loop.time() < end:
            client = one.client()
            client.join(CHANNELS[0])
            await until(lambda: client.replies)  # noqa: B023 - used at once
            client.lose()
            await asyncio.sleep(0.05)
        for load in loads:
            await load.end()
        due = {channel: sorted(number for load in loads for number in load.published[channel]) for channel in CHANNELS}
        await until(lambda: all(sorted(client.messages[channel]) == due[channel] for client in clients for channel in client.on))
        assert [client.gaps for client in clients] == [{}] * len(clients)
        assert (gaps(one), gaps(two)) == ((0, 0), (0, 0))
