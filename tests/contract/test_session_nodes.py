"""The sessions of MQTT clients of several nodes, which share a real server."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from push1st.brokers.redis import Redis, session_ends
from push1st.brokers.redis.bounds import Timings
from push1st.brokers.redis.session_state import limits
from push1st.brokers.sessions import (
    DUE_CONFIRM_SECONDS,
    MAX_ABSENT,
    MAX_ADDRESS_ABSENT,
    RETURN_SECONDS,
    Claim,
    Claimed,
    DueSession,
    Owner,
    Progress,
    SavedFlow,
    SavedMessage,
    SavedProgress,
    SavedSession,
    SavedSubscription,
    SavedWill,
)
from push1st.errors import LimitReached, Refused
from push1st.messages import MqttFields, MqttMessage
from push1st.positions import Position
from tests.contract.redis import NOW, cluster, new_prefix, redis_broker, valkey

A, CLIENT = "app-a", "device-1"
HOUR = 3600
USER, OTHER, ANYBODY = Owner("user", "ada"), Owner("user", "eve"), Owner("anonymous")
WILL = SavedWill("wills/ada", b"gone", 1, delay=60)
FILTER = SavedSubscription("a.b", 1, cursor=(Position("e", 3),))
URLS: dict[str, Callable[[], str]] = {"redis": lambda: valkey().url, "redis-cluster": lambda: cluster().url}
TIMINGS = Timings(hold=0, read=0.05, lease=60, renew=0.1, recovery=0.1, silent=0.4)


@pytest.fixture(params=URLS)
def url(request: pytest.FixtureRequest) -> str:
    return URLS[request.param]()


class Node:
    """A node. ended: the clients whose connections on this node another node has taken over, with their generations."""

    def __init__(self, broker: Redis) -> None:
        self.broker = broker
        self.sessions = broker.sessions
        self.sessions.on_taken_over = self._end
        self.sessions.copy_of = lambda _app, client, _generation: self.copies.get(client)
        self.copies: dict[str, SavedSession] = {}
        self.ended: list[tuple[str, int]] = []
        self.saves: SavedSession | None = None
        """the session that this node saves when another node takes a connection over; None: the node does not answer"""

    async def _end(self, app: str, client: str, generation: int) -> None:
        self.ended.append((client, generation))
        if self.saves is None:
            await asyncio.Event().wait()
        elif self.saves.expiry:
            await self.sessions.save(app, client, generation, self.saves)
        else:
            await self.sessions.end(app, client, generation, ())

    async def claim(self, client: str = CLIENT, owner: Owner = USER, expiry: int = HOUR, **more: Any) -> Claimed:
        return await self.sessions.claim(A, client, Claim(owner, expiry=expiry, **more))

    async def store(self, claimed: Claimed, session: SavedSession, client: str = CLIENT) -> bool:
        return await self.sessions.store(A, client, claimed.generation, session)

    async def save(self, claimed: Claimed, session: SavedSession, client: str = CLIENT) -> int:
        return await self.sessions.save(A, client, claimed.generation, session)

    async def due(self, seconds: float = 0) -> list[DueSession]:
        """Returns the due sessions after some seconds on the server's clock, without their generations and filters."""
        for shard in self.broker._shards.all:
            key = shard.keys.key("wall")
            left = await shard.connection.call("PTTL", key)
            if left > 0:
                await shard.connection.call("PEXPIRE", key, left - int(seconds * 1000))
        self.found = await self.sessions.due(0)
        return [msgspec.structs.replace(one, generation=0, watched=()) for one in self.found]

    async def keys(self) -> list[bytes]:
        """Returns the keys of sessions, without the last generations, which expire soon."""
        found: list[bytes] = []
        for shard in self.broker._shards.all:
            keys = await shard.connection.call("KEYS", shard.keys.key("s[sdwpfay]*"))
            for key in await shard.connection.call("KEYS", shard.keys.key("s:*")):
                if await shard.connection.call("PTTL", key) < 0:
                    keys.append(key)
            found += keys
        return found

    async def vanish(self) -> None:
        """Ends the node like a process that is killed: its lease expires."""
        for shard in self.broker._shards.all:
            resp = await shard.connection.close()
            assert resp is not None
            await resp.call("DEL", shard.keys.key("lease", shard.connection.node))
            resp.close()


@asynccontextmanager
async def started(url: str, count: int = 2, is_new: bool = False) -> AsyncIterator[list[Node]]:
    """is_new: whether the nodes have just started: then other nodes may not have registered yet."""
    prefix = new_prefix()
    nodes = [Node(redis_broker(url, node=f"node-{number}", prefix=prefix, timings=TIMINGS)) for number in range(count)]
    try:
        for node in nodes:
            await node.broker.open(lambda _: 0, lambda _: None, lambda *_: b"", lambda *_: None)
            node.sessions.takeovers.seconds = 0.05
            for shard in () if is_new else node.broker._shards.all:
                shard.lease.abandons_at = 0
        yield nodes
    finally:
        for node in nodes:
            await node.broker.close()


async def until(true: Callable[[], Coroutine[Any, Any, bool]]) -> None:
    async with asyncio.timeout(5):
        while not await true():  # noqa: ASYNC110 - the server sets no event
            await asyncio.sleep(0)


def message(data: bytes = b"1") -> MqttMessage:
    return MqttMessage(A, "a.b", "message", data, 1, NOW, mqtt=MqttFields(2))


# Takeover


async def test_other_node_saves_the_session_before_the_claim_returns(url: str) -> None:
    async with started(url) as (first, second):
        earlier = await first.claim()
        first.saves = SavedSession(HOUR, (FILTER,))
        later = await second.claim()
        assert first.ended == [(CLIENT, earlier.generation)]
        assert later.session == first.saves
        assert not later.crashed
        assert later.generation > earlier.generation


async def test_node_that_does_not_answer_loses_the_session(url: str) -> None:
    async with started(url) as (first, second):
        earlier = await first.claim()
        await first.store(earlier, SavedSession(HOUR, (FILTER,)))
        later = await second.claim()
        assert later.session == SavedSession(HOUR, (FILTER,))
        assert later.crashed
        first.saves = SavedSession(0)
        assert not await first.store(earlier, SavedSession(HOUR))
        assert not await first.save(earlier, SavedSession(HOUR))
        assert not await first.sessions.attach(A, CLIENT, earlier.generation)
        assert not await first.sessions.end(A, CLIENT, earlier.generation, ())
        assert await second.store(later, SavedSession(HOUR))


async def test_worker_with_an_earlier_generation_ends_its_connection(url: str) -> None:
    async with started(url) as (first, second):
        earlier = await first.claim()
        await second.claim()
        first.ended.clear()
        first.saves = SavedSession(0)
        await first.store(earlier, SavedSession(HOUR))
        assert (CLIENT, earlier.generation) in first.ended
        first.ended.clear()
        first.sessions.store_progress([Progress(A, CLIENT, earlier.generation, SavedProgress({}))])
        await first.broker.settled()
        assert first.ended == [(CLIENT, earlier.generation)]


async def test_client_without_expiry_is_taken_over(url: str) -> None:
    async with started(url) as (first, second):
        earlier = await first.claim(expiry=0, will=WILL)
        first.saves = SavedSession(0)
        later = await second.claim(expiry=0)
        assert first.ended == [(CLIENT, earlier.generation)]
        assert later.session is None
        assert later.ended is None  # the other node has published the will
        await second.sessions.end(A, CLIENT, later.generation, ())
        assert await second.keys() == []


@pytest.mark.parametrize("expiry", [0, HOUR])
async def test_will_is_dropped_when_a_client_returns_from_a_node_that_does_not_answer(url: str, expiry: int) -> None:
    async with started(url) as (first, second):
        await first.claim(expiry=expiry, will=WILL)
        assert (await second.claim(expiry=expiry)).ended is None
        assert await second.due(HOUR) == []


async def test_clean_start_publishes_the_will_of_a_node_that_does_not_answer(url: str) -> None:
    async with started(url) as (first, second):
        await first.claim(will=WILL)
        later = await second.claim(clean=True)
        assert later.ended is not None
        assert later.ended.will == WILL


async def test_clients_of_another_owner_take_nothing_over(url: str) -> None:
    async with started(url) as (first, second):
        await first.claim(expiry=0)
        for owner in (OTHER, ANYBODY):
            with pytest.raises(Refused, match="another owner"):
                await second.claim(owner=owner, expiry=0)
        assert not first.ended


async def test_claims_of_one_client_on_two_nodes_leave_one_connection(url: str) -> None:
    async with started(url) as nodes:
        connected: dict[int, Node] = {}

        async def connect(node: Node) -> None:
            try:
                claimed = await node.claim()
            except Refused:
                return
            connected[claimed.generation] = node

        for node in nodes:
            node.saves = SavedSession(HOUR)
        await asyncio.gather(*(connect(nodes[number % 2]) for number in range(50)))
        last = max(connected)
        assert await connected[last].sessions.attach(A, CLIENT, last)
        valid = [one for one, node in connected.items() if await node.sessions.store(A, CLIENT, one, SavedSession(HOUR))]
        assert valid == [last]


# Copies of connected clients


async def test_progress_is_part_of_the_session_after_a_crash(url: str) -> None:
    async with started(url) as (first, second):
        claimed = await first.claim()
        await first.store(claimed, SavedSession(HOUR, (FILTER,)))
        cursor = (Position("e", 7),)
        progress = SavedProgress({"a.b": cursor}, SavedFlow(9, ((8, None),), received=((5, 77),)))
        first.sessions.store_progress([Progress(A, CLIENT, claimed.generation, progress)])
        await first.broker.settled()
        found = await second.claim()
        assert found.crashed
        assert found.session is not None
        assert found.session.flow == progress.flow
        assert found.session.subscriptions[0].cursor == cursor


async def test_messages_of_a_resumed_session_are_kept_until_they_are_acknowledged(url: str) -> None:
    async with started(url) as (first, second):
        inflight = ((3, SavedMessage(message(), 2)),)
        await first.save(
            await first.claim(), SavedSession(HOUR, (FILTER,), SavedFlow(4, inflight, (SavedMessage(message(b"2"), 1),)))
        )
        for has_saved in (True, False):
            claimed = await first.claim()
            assert claimed.session is not None
            assert claimed.session.flow.inflight == inflight
            assert len(claimed.session.flow.waiting) == 1
            await first.sessions.attach(A, CLIENT, claimed.generation)
            await first.store(claimed, SavedSession(HOUR, (FILTER,), SavedFlow(10, ((9, None),))))
            progress = SavedProgress({}, SavedFlow(11, ((3, None), (10, None))), has_saved)
            first.sessions.store_progress([Progress(A, CLIENT, claimed.generation, progress)])
            await first.broker.settled()
            later = await second.claim()
            assert later.session is not None
            if has_saved:
                assert later.session.flow == SavedFlow(11, (*inflight, (10, None)), (SavedMessage(message(b"2"), 1),))
                flow = SavedFlow(11, inflight, (SavedMessage(message(b"2"), 1),))
                await second.save(later, SavedSession(HOUR, (FILTER,), flow))
            else:
                assert later.session.flow == SavedFlow(11, ((3, None), (10, None)))


# Steps that run twice, because the reply was lost


def run_twice(node: Node) -> None:
    """Makes the node run each script twice, as after a lost reply."""
    run = node.sessions._run

    async def run_again(*arguments: Any, ordered: bool = False) -> Any:
        await run(*arguments, ordered=ordered)
        return await run(*arguments, ordered=ordered)

    node.sessions._run = run_again  # type: ignore[assignment]


async def test_end_that_runs_twice_is_valid(url: str) -> None:
    async with started(url) as (first, _):
        run_twice(first)
        for filters in ((), ("a.b",)):
            claimed = await first.claim(expiry=0)
            assert await first.sessions.end(A, CLIENT, claimed.generation, filters)
        assert await first.keys() == []


async def test_claim_that_runs_twice_resumes_the_session_once(url: str) -> None:
    async with started(url) as (first, _):
        saved = SavedSession(HOUR, (FILTER,), will=WILL)
        await first.save(await first.claim(), saved)
        run_twice(first)
        for expiry in (0, HOUR):
            claimed = await first.claim(expiry=expiry)
            assert claimed.session == saved
            assert claimed.ended is None


async def test_clean_start_that_runs_twice_returns_the_will_of_the_earlier_session(url: str) -> None:
    async with started(url) as (first, _):
        await first.save(await first.claim(), SavedSession(HOUR, (FILTER,), will=WILL))
        run_twice(first)
        later = msgspec.structs.replace(WILL, payload=b"later")
        claimed = await first.claim(clean=True, will=later)
        assert claimed.session is None
        assert claimed.ended is not None
        assert claimed.ended.will == WILL


# Connections whose node ends while they begin


async def claim_and_vanish(node: Node, **claim: Any) -> None:
    """Ends a node when the server has given it the client id, before the node does anything else."""
    run = node.sessions._run

    async def run_and_vanish(*arguments: Any, ordered: bool = False) -> Any:
        await run(*arguments, ordered=ordered)
        await node.vanish()
        raise Refused(500, "the node has ended")

    node.sessions._run = run_and_vanish  # type: ignore[assignment]
    with pytest.raises(Refused):
        await node.claim(**claim)


async def test_session_of_a_clean_start_exists_from_the_claim_on(url: str) -> None:
    async with started(url) as (first, second):
        await first.save(await first.claim(), SavedSession(HOUR, (FILTER,), SavedFlow(waiting=(SavedMessage(message(), 2),))))
        later = msgspec.structs.replace(WILL, payload=b"later")
        await claim_and_vanish(second, clean=True, expiry=60, will=later)
        found = await first.claim()
        assert found.session == SavedSession(60, will=later)
        assert found.crashed


@pytest.mark.parametrize("expiry", [0, HOUR])
async def test_session_that_a_claim_has_ended_is_due_if_its_node_ends(url: str, expiry: int) -> None:
    """The client may have a new session meanwhile."""
    async with started(url) as (first, second):
        saved = SavedMessage(message(), 2, group="$share/g/a.b")
        claimed = await first.claim()
        await first.sessions.logs.watch(A, CLIENT, claimed.generation, "a.b", False)
        await first.save(claimed, SavedSession(HOUR, (FILTER,), SavedFlow(waiting=(saved,)), WILL))
        await claim_and_vanish(second, clean=True, expiry=expiry)
        new = await first.claim()
        assert await first.due(DUE_CONFIRM_SECONDS - 1) == []
        ended = DueSession(A, CLIENT, USER, WILL, True, returned=(saved,))
        assert await first.due(1) == [ended]
        assert await first.due(DUE_CONFIRM_SECONDS) == [ended]
        await first.sessions.confirm(first.found)
        assert await watchers(first) == 0
        assert await first.due(DUE_CONFIRM_SECONDS) == []
        assert await first.store(new, SavedSession(HOUR))
        assert await first.sessions.end(A, CLIENT, new.generation, ())
        assert await first.keys() == []


async def test_sessions_that_claims_have_ended_are_confirmed_separately(url: str) -> None:
    async with started(url) as (first, second):
        wills = [msgspec.structs.replace(WILL, payload=b"%d" % number) for number in range(3)]
        ended = [(await first.claim(clean=True, will=will)).ended for will in wills]
        assert [one and one.will for one in ended] == [None, *wills[:2]]
        await first.sessions.confirm([one for one in ended[2:] if one])
        assert [one.will for one in await second.due(DUE_CONFIRM_SECONDS)] == [wills[0]]
        await second.sessions.confirm(second.found)
        assert await second.due(DUE_CONFIRM_SECONDS) == []


async def test_claim_returns_no_will_that_another_node_publishes(url: str) -> None:
    async with started(url) as (first, second):
        await first.save(await first.claim(), SavedSession(HOUR, (FILTER,), will=WILL))
        assert await first.due(60) == [DueSession(A, CLIENT, USER, WILL, False)]
        assert (await second.claim(clean=True)).ended is None
        await first.sessions.confirm(first.found)
        assert await second.due() == [DueSession(A, CLIENT, USER, None, True)]


async def test_will_and_expiry_stay_until_the_session_is_resumed(url: str) -> None:
    async with started(url) as (first, second):
        await first.save(await first.claim(), SavedSession(HOUR, (FILTER,), will=WILL))
        later = msgspec.structs.replace(WILL, payload=b"later")
        await first.claim(expiry=0, will=later)
        await first.vanish()
        assert await second.due() == []
        assert await second.due(60) == [DueSession(A, CLIENT, USER, WILL, False)]
        await second.sessions.confirm(second.found)
        assert (await second.claim()).session == SavedSession(HOUR, (FILTER,))


async def test_new_will_and_expiry_count_after_the_session_is_resumed(url: str) -> None:
    async with started(url) as (first, second):
        await first.save(await first.claim(), SavedSession(HOUR, (FILTER,), will=WILL))
        later = msgspec.structs.replace(WILL, payload=b"later")
        claimed = await first.claim(expiry=10, will=later)
        await first.sessions.attach(A, CLIENT, claimed.generation)
        await first.vanish()
        assert await second.due() == []
        assert await second.due(10) == [DueSession(A, CLIENT, USER, later, True)]


async def test_connection_that_ends_before_the_resumption_keeps_the_mark_of_a_crash(url: str) -> None:
    async with started(url) as (first, second):
        await first.store(await first.claim(), SavedSession(HOUR, (FILTER,)))
        for _ in range(2):
            found = await second.claim()
            assert found.crashed
            assert found.session is not None
            await second.save(found, found.session)
        found = await second.claim()
        await second.sessions.attach(A, CLIENT, found.generation)
        await second.save(found, SavedSession(HOUR))
        assert not (await second.claim()).crashed


@pytest.mark.parametrize("clean", [False, True])
async def test_session_without_subscriptions_has_its_progress_after_a_crash(url: str, clean: bool) -> None:
    async with started(url) as (first, second):
        if clean:
            await first.save(await first.claim(), SavedSession(HOUR, (FILTER,)))
        claimed = await first.claim(clean=clean)
        progress = SavedProgress({}, SavedFlow(received=((5, 77),)))
        first.sessions.store_progress([Progress(A, CLIENT, claimed.generation, progress)])
        await first.broker.settled()
        found = await second.claim()
        assert found.crashed
        assert found.session == SavedSession(HOUR, flow=progress.flow)


# Ends of connections


async def watchers(node: Node) -> int:
    shard = node.broker._shards.of(A, "a.b")
    return int(await shard.connection.call("HLEN", shard.keys.key("lw", f"{A}/a.b")))


@pytest.mark.parametrize("expiry", [0, HOUR])
async def test_will_of_a_node_that_ends_before_its_publication_is_due(url: str, expiry: int) -> None:
    async with started(url) as (first, second):
        claimed = await first.claim(expiry=expiry)
        if expiry:
            assert await first.sessions.save(A, CLIENT, claimed.generation, SavedSession(HOUR), WILL)
        else:
            assert await first.sessions.end(A, CLIENT, claimed.generation, (), WILL)
        assert await second.due(DUE_CONFIRM_SECONDS - 1) == []
        assert await second.due(1) == [DueSession(A, CLIENT, USER, WILL, not expiry)]


@pytest.mark.parametrize("expiry", [0, HOUR])
async def test_will_that_the_node_has_published_is_not_due(url: str, expiry: int) -> None:
    async with started(url) as (first, second):
        claimed = await first.claim(expiry=expiry)
        if expiry:
            generation = await first.sessions.save(A, CLIENT, claimed.generation, SavedSession(HOUR), WILL)
        else:
            generation = await first.sessions.end(A, CLIENT, claimed.generation, (), WILL)
        await first.sessions.confirm([DueSession(A, CLIENT, USER, WILL, not expiry, generation=generation)])
        assert await second.due(HOUR - 1) == []


async def test_filters_of_a_session_that_ends_with_its_node_are_removed(url: str) -> None:
    async with started(url) as (first, second):
        await first.save(await first.claim(), SavedSession(HOUR, (FILTER,)))
        claimed = await first.claim(expiry=0)
        await first.sessions.logs.watch(A, CLIENT, claimed.generation, "a.b", False)
        await first.sessions.attach(A, CLIENT, claimed.generation)
        await first.vanish()
        assert await second.due() == []
        assert await second.due(RETURN_SECONDS) == [DueSession(A, CLIENT, USER, None, True)]
        await second.sessions.confirm(second.found)
        assert await watchers(second) == 0
        assert await second.keys() == []


async def test_session_is_deleted_after_its_filters_are_removed(url: str) -> None:
    async with started(url) as (first, second):
        claimed = await first.claim()
        await first.sessions.logs.watch(A, CLIENT, claimed.generation, "a.b", False)
        unwatch = first.sessions.logs.unwatch

        async def fail(*_: Any) -> None:
            raise Refused(503, "the broker is away")

        first.sessions.logs.unwatch = fail  # type: ignore[assignment]
        assert await first.sessions.end(A, CLIENT, claimed.generation, ("a.b",))
        assert await watchers(first) == 1
        assert await second.due(DUE_CONFIRM_SECONDS - 1) == []
        first.sessions.logs.unwatch = unwatch  # type: ignore[method-assign]
        assert await first.due() == []
        assert await watchers(first) == 0
        assert await first.keys() == []


async def test_client_without_expiry_stays_connected_if_its_node_was_taken_for_dead(url: str) -> None:
    async with started(url) as (first, second):
        claimed = await first.claim(expiry=0)
        shard = first.broker._shards.of(A, CLIENT)
        await shard.connection.call("DEL", shard.keys.key("lease", "node-0"))
        assert await second.due() == []
        first.copies[CLIENT] = SavedSession(0)
        shard.connection.fault("NOLEASE test")

        async def is_connected() -> bool:
            return bool(await shard.connection.call("SISMEMBER", shard.keys.key("sn", "node-0"), f"{A}/{CLIENT}"))

        await until(is_connected)
        assert first.ended == []
        assert await first.sessions.end(A, CLIENT, claimed.generation, ())


async def test_copy_that_arrives_after_the_end_of_the_connection_is_not_stored(url: str) -> None:
    async with started(url) as (first, second):
        claimed = await first.claim()
        await first.save(claimed, SavedSession(HOUR, (FILTER,)))
        assert await first.store(claimed, SavedSession(HOUR))
        assert await second.due(HOUR) == [DueSession(A, CLIENT, USER, None, True)]
        assert (await second.claim()).session is None


async def test_session_becomes_absent_although_its_save_was_refused(url: str) -> None:
    async with started(url) as (first, second):
        claimed = await first.claim(will=WILL)
        run = first.sessions._run

        async def refuse(*_: Any, ordered: bool = False) -> Any:
            raise Refused(503, "the broker refused")

        first.sessions._run = refuse  # type: ignore[assignment]
        with pytest.raises(Refused):
            await first.save(claimed, SavedSession(HOUR))
        first.sessions._run = run  # type: ignore[method-assign]
        assert await first.due() == []
        assert await second.due(60) == [DueSession(A, CLIENT, USER, WILL, False)]


# Due sessions


async def test_due_session_that_is_not_confirmed_is_due_again_on_another_node(url: str) -> None:
    async with started(url) as (first, second):
        await first.save(await first.claim(), SavedSession(HOUR, will=WILL))
        assert await first.due(59) == []
        due = DueSession(A, CLIENT, USER, WILL, False)
        assert await first.due(1) == [due]
        assert await second.due(DUE_CONFIRM_SECONDS - 1) == []
        assert await second.due(1) == [due]
        await second.sessions.confirm(second.found)
        assert await first.due(DUE_CONFIRM_SECONDS) == []
        assert await first.due(HOUR) == [DueSession(A, CLIENT, USER, None, True)]
        await first.sessions.confirm(first.found)
        assert await first.keys() == []


async def test_confirmation_changes_no_session_of_a_client_that_is_back(url: str) -> None:
    async with started(url) as (first, second):
        await first.save(await first.claim(), SavedSession(HOUR, will=WILL))
        await first.due(HOUR)
        claimed = await second.claim()
        await first.sessions.confirm(first.found)
        assert await second.store(claimed, SavedSession(HOUR))


async def test_number_of_absent_sessions_is_known_after_each_second(url: str) -> None:
    async with started(url) as (first, second):
        for number in range(5):
            await first.save(await first.claim(str(number)), SavedSession(HOUR), str(number))
        await second.claim("connected")
        for node in (first, second):
            await node.due()
            assert len(node.sessions) == 5


async def test_only_the_clock_of_the_server_counts(url: str) -> None:
    async with started(url) as (first, _):
        await first.save(await first.claim(), SavedSession(HOUR))
        assert await first.sessions.due(NOW + 10 * HOUR * 1_000_000_000) == []


# Nodes that end


async def test_sessions_of_a_dead_node_become_absent(url: str) -> None:
    async with started(url) as (first, second):
        claimed = await first.claim()
        await first.store(claimed, SavedSession(HOUR, (FILTER,)))
        await first.claim("brief", expiry=0)
        await first.vanish()
        assert await second.due() == []
        assert len(second.sessions) == 1
        assert await second.due(HOUR) == [DueSession(A, CLIENT, USER, None, True)]
        await second.sessions.confirm(second.found)
        assert await second.keys() == []


async def test_new_node_waits_until_other_nodes_may_have_registered(url: str) -> None:
    async with started(url, is_new=True) as (first, second):
        await first.claim(expiry=0, will=WILL)
        await first.vanish()
        for _ in range(2):
            assert await second.due(HOUR) == []
        for shard in second.broker._shards.all:
            shard.lease.abandons_at = 0
        assert await second.due() == []
        assert await second.due(HOUR) == [DueSession(A, CLIENT, USER, WILL, True)]


async def test_wills_of_a_dead_node_wait_for_clients_that_return(url: str) -> None:
    async with started(url) as (first, second):
        soon = msgspec.structs.replace(WILL, delay=0)
        for client, expiry in (("brief", 0), ("brief-back", 0), ("lasting", HOUR), ("lasting-back", HOUR)):
            await first.claim(client, expiry=expiry, will=soon)
        await first.vanish()
        assert await second.due() == []
        assert (await second.claim("brief-back", expiry=0)).ended is None
        assert (await second.claim("lasting-back")).ended is None
        assert await second.due(RETURN_SECONDS - 2) == []
        found = await second.due(2)
        assert sorted((one.client_id, one.ended) for one in found) == [("brief", True), ("lasting", False)]
        assert {one.will for one in found} == {soon}


async def test_client_of_a_dead_node_that_returns_before_the_eviction_cancels_its_will(url: str) -> None:
    async with started(url) as (first, second):
        await first.claim(expiry=0, will=WILL)
        await first.vanish()
        claimed = await second.claim(expiry=0)
        assert claimed.ended is None
        assert await second.due(HOUR) == []
        assert await second.sessions.attach(A, CLIENT, claimed.generation)


async def test_will_of_a_stopping_worker_is_due_unless_the_client_returns(url: str) -> None:
    async with started(url) as (first, second):
        for client in ("gone", "back"):
            await first.save(await first.claim(client, expiry=0), SavedSession(0, will=WILL), client)
        ended = (await second.claim("back", expiry=0)).ended
        assert ended is not None
        assert ended.will is None
        await second.sessions.confirm([ended])
        assert await second.due(RETURN_SECONDS - 2) == []
        assert await second.due(2) == [DueSession(A, "gone", USER, WILL, True)]


async def test_node_with_many_sessions_is_evicted_in_steps() -> None:
    async with started(valkey().url) as (first, second):
        await asyncio.gather(*(first.claim(str(number)) for number in range(1200)))
        await first.vanish()
        steps: list[int] = []
        shard = second.broker._shards.all[0]
        run = shard.connection.call

        async def call(*command: Any, ordered: bool = False) -> Any:
            reply = await run(*command, ordered=ordered)
            if command[0] == "EVALSHA":
                steps.append(await run("SCARD", shard.keys.key("sn", "node-0")))
            return reply

        shard.connection.call = call  # type: ignore[method-assign]
        assert await second.due() == []
        assert all(before - after <= 100 for before, after in itertools.pairwise([1200, *steps]))
        assert steps[-1] == 0
        assert len(second.sessions) == 1200


async def test_session_of_a_living_node_that_was_evicted_is_stored_again(url: str) -> None:
    async with started(url) as (first, second):
        claimed = await first.claim()
        first.copies[CLIENT] = SavedSession(HOUR, (FILTER,))
        await first.broker.settled()
        shard = first.broker._shards.of(A, CLIENT)
        await shard.connection.call("DEL", shard.keys.key("lease", "node-0"))
        await second.sessions.due(0)
        assert len(second.sessions) == 1
        shard.connection.fault("NOLEASE test")

        async def is_connected() -> bool:
            return bool(await shard.connection.call("SISMEMBER", shard.keys.key("sn", "node-0"), f"{A}/{CLIENT}"))

        await until(is_connected)
        await second.due(HOUR)
        assert await first.store(claimed, SavedSession(HOUR))


async def test_progress_of_a_node_without_a_lease_is_not_stored(url: str) -> None:
    async with started(url) as (first, _):
        claimed = await first.claim()
        await first.store(claimed, SavedSession(HOUR, (FILTER,)))
        shard = first.broker._shards.of(A, CLIENT)
        await shard.connection.call("DEL", shard.keys.key("lease", "node-0"))
        gaps = first.sessions.logs.gaps
        progress = SavedProgress({"a.b": (Position("e", 9),)})
        first.sessions.store_progress([Progress(A, CLIENT, claimed.generation, progress)])
        await shard.connection.call("PING")
        assert not await shard.connection.call("EXISTS", shard.keys.key("sp", f"{A}/{CLIENT}"))
        assert first.sessions.logs.gaps > gaps


# Loss of the state, and a broker that is away


async def test_connected_clients_keep_their_sessions_when_the_server_loses_its_state(url: str) -> None:
    async with started(url) as (first, second):
        await first.save(await first.claim("absent"), SavedSession(HOUR), "absent")
        claimed = await first.claim()
        first.copies[CLIENT] = SavedSession(HOUR, (FILTER,))
        for shard in first.broker._shards.all:
            for key in await shard.connection.call("KEYS", shard.keys.key("*")):
                await shard.connection.call("DEL", key)

        async def is_stored() -> bool:
            shard = first.broker._shards.of(A, CLIENT)
            return bool(await shard.connection.call("EXISTS", shard.keys.key("s", f"{A}/{CLIENT}")))

        for node in (first, second):
            for shard in node.broker._shards.all:
                shard.lease.renew()
        await until(is_stored)
        first.saves = SavedSession(HOUR, (FILTER,))
        later = await second.claim()
        assert later.generation > claimed.generation
        assert later.session == first.saves
        assert (await second.claim("absent")).session is None


async def test_session_saved_after_a_loss_of_the_state_is_stored(url: str) -> None:
    async with started(url) as (first, _):
        claimed = await first.claim()
        shard = first.broker._shards.of(A, CLIENT)
        for key in await shard.connection.call("KEYS", shard.keys.key("s*")):
            await shard.connection.call("DEL", key)
        assert await first.save(claimed, SavedSession(HOUR, (FILTER,)))
        assert (await first.claim()).session == SavedSession(HOUR, (FILTER,))


async def test_brief_client_is_admitted_without_the_broker_and_claimed_later(url: str) -> None:
    async with started(url) as (first, second):
        shard = first.broker._shards.of(A, CLIENT)
        resp = shard.connection.established
        assert resp is not None
        resp.abort()
        claimed = await first.claim(expiry=0, clean=True)
        assert claimed == Claimed(1)

        async def is_claimed() -> bool:
            return first.sessions._clients[A, CLIENT].generation > 1

        await until(is_claimed)
        first.saves = SavedSession(0)
        await second.claim(expiry=0)
        assert first.ended
        assert await first.sessions.end(A, CLIENT, 1, ())


async def test_session_whose_end_the_broker_missed_becomes_absent(url: str) -> None:
    async with started(url) as (first, second):
        claimed = await first.claim()
        await first.store(claimed, SavedSession(HOUR, (FILTER,)))
        del first.sessions._clients[A, CLIENT]  # as after a call of `save` that failed
        first.broker._shards.of(A, CLIENT).connection.fault("NOLEASE test")

        async def is_absent() -> bool:
            await second.due()
            return len(second.sessions) == 1

        await until(is_absent)
        found = await second.claim()
        assert not first.ended
        assert found.crashed
        assert found.session == SavedSession(HOUR, (FILTER,))


async def test_client_that_connects_while_earlier_sessions_become_absent_stays_connected(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_ends, "MAX_STEP", 1)
    async with started(url) as (first, second):
        shard = first.broker._shards.of(A, CLIENT)
        abandoned = asyncio.ensure_future(first.sessions._ends.abandon(shard, [(A, "other"), (A, CLIENT)]))
        await asyncio.sleep(0)  # the first step is sent
        claimed = await first.claim()
        await abandoned
        first.saves = SavedSession(HOUR)
        await second.claim()
        assert first.ended == [(CLIENT, claimed.generation)]


async def lose_connection(node: Node) -> None:
    """Ends the connections to the server, and waits until the node has compared its clients on new ones."""
    sessions = node.sessions
    for shard in node.broker._shards.all:
        resp = shard.connection.established
        assert resp is not None
        resp.abort()

    async def is_compared() -> bool:
        shards = node.broker._shards.all
        new = [shard.connection.registered_on for shard in shards]
        return None not in new and all(sessions._connections.get(one) is resp for one, resp in zip(shards, new, strict=True))

    await until(is_compared)


async def test_server_with_an_earlier_state_gets_the_sessions_of_connected_clients_again(url: str) -> None:
    async with started(url) as (first, second):
        claimed = await first.claim()
        assert await first.store(claimed, SavedSession(HOUR))  # the state that the server still has
        session = SavedSession(HOUR, (SavedSubscription("a.b", 1),))
        first.copies[CLIENT] = session
        await lose_connection(first)
        shard = first.broker._shards.of(A, CLIENT)

        async def is_stored() -> bool:
            stored = await shard.connection.call("GET", shard.keys.key("ss", f"{A}/{CLIENT}"))
            return b"a.b" in stored and await watchers(first) == 1

        await until(is_stored)
        assert (await second.claim()).session == session


@pytest.mark.parametrize("state", ["unknown", "earlier"])
async def test_progress_of_a_connection_that_the_server_does_not_know_stores_the_session(url: str, state: str) -> None:
    async with started(url) as (first, second):
        claimed = await first.claim()
        session = SavedSession(HOUR, (SavedSubscription("a.b", 1),))
        first.copies[CLIENT] = session
        shard = first.broker._shards.of(A, CLIENT)
        key = shard.keys.key("s", f"{A}/{CLIENT}")
        if state == "unknown":
            for one in (key, shard.keys.key("sg0")):
                await shard.connection.call("DEL", one)
        else:
            await shard.connection.call("HSET", key, "g", "5")
        first.sessions.store_progress([Progress(A, CLIENT, claimed.generation, SavedProgress({}))])
        await first.broker.settled()
        await first.due()
        await first.broker.settled()

        async def is_stored() -> bool:
            return bool(await shard.connection.call("HGET", key, "g") == b"%d" % claimed.generation)

        await until(is_stored)
        assert (await second.claim()).session == session


async def test_session_that_is_not_stored_again_does_not_keep_others_from_it(url: str) -> None:
    async with started(url) as (first, _):
        stored: list[str] = []
        first.copies = {str(number): SavedSession(HOUR) for number in range(3)}
        for client in first.copies:
            await first.claim(client)
        run, failing = first.sessions._store, {"0"}

        async def store(app: str, client: str, *more: Any, **options: Any) -> int:
            if client in failing:
                raise Refused(503, "the broker refused")
            stored.append(client)
            return await run(app, client, *more, **options)

        first.sessions._store = store  # type: ignore[assignment]
        first.sessions._unstored.update([(A, client) for client in first.copies])
        await first.sessions._store_unstored()
        assert sorted(stored) == ["1", "2"]
        failing.clear()
        await first.sessions._store_unstored()
        assert stored[2:] == ["0"]


async def test_copy_has_the_subscriptions_that_changed_while_it_was_stored_again(url: str) -> None:
    async with started(url) as (first, second):
        await first.claim()
        earlier, later = SavedSubscription("a.b", 1, cursor=(Position("e", 1),)), SavedSubscription("c.d", 0)
        first.copies[CLIENT] = SavedSession(HOUR, (earlier,))
        watch = first.sessions.logs.watch

        async def watch_slowly(*arguments: Any) -> Any:
            end = await watch(*arguments)
            first.copies[CLIENT] = SavedSession(HOUR, (later,))
            return end

        first.sessions.logs.watch = watch_slowly  # type: ignore[assignment]
        await first.sessions._store_again((A, CLIENT))
        assert await watchers(first) == 0
        assert (await second.claim()).session == SavedSession(HOUR, (later,))


# Bounds


def test_shard_of_a_cluster_has_twice_its_part_of_the_bounds() -> None:
    assert limits(1).split()[:3] == [str(MAX_ABSENT), str(MAX_ABSENT // 10), str(MAX_ADDRESS_ABSENT)]
    assert limits(16).split()[:3] == ["12500", "1250", "13"]


async def test_oldest_absent_session_ends_above_the_bound() -> None:
    async with started(valkey().url) as (first, _):
        connections = [await first.claim(str(number), ANYBODY, will=WILL) for number in range(4)]
        first.sessions._ends.limits = "100 2 100 1000000 1000000"
        for number, one in enumerate(connections):
            await first.save(one, SavedSession(HOUR, will=WILL), str(number))
        assert sorted((one.client_id, one.is_early, one.will) for one in await first.due()) == [
            ("0", True, WILL),
            ("1", True, WILL),
        ]
        with pytest.raises(LimitReached):
            await first.claim("new", ANYBODY)
        assert (await first.claim("new", USER)).session is None
        assert (await first.claim("0", USER)).session is None
        assert (await first.claim("3", ANYBODY)).session is not None


async def test_absent_sessions_have_a_bound_for_bytes() -> None:
    async with started(valkey().url) as (first, _):
        first.sessions._ends.limits = "100 100 100 2000 2000"
        flow = SavedFlow(2, ((1, SavedMessage(message(b"x" * 1500), 1)),))
        claimed = await first.claim()
        await first.save(claimed, SavedSession(HOUR, flow=flow))
        found = await first.claim()
        assert found.session is not None
        assert found.session.flow.inflight == ()
        assert first.broker.sessions._metrics.mqtt_dropped["over-limit"] == 1
        for number in range(5):
            await first.save(await first.claim(str(number)), SavedSession(HOUR), str(number))
        assert [one.is_early for one in await first.due()] == [True, True]


async def test_server_without_memory_rejects_new_sessions_and_lets_clients_return(url: str) -> None:
    async with started(url) as (first, second):
        await first.save(await first.claim(), SavedSession(HOUR, (FILTER,)))
        shard = first.broker._shards.of(A, CLIENT)
        await shard.connection.call("CONFIG", "SET", "maxmemory", "1")
        try:
            with pytest.raises(Refused, match="OOM"):
                await second.claim(
                    next(one for one in map(str, range(1000)) if second.broker._shards.of(A, one).tag == shard.tag)
                )
            found = await second.claim()
            assert found.session == SavedSession(HOUR, (FILTER,))
            assert await second.save(found, SavedSession(HOUR))
        finally:
            await shard.connection.call("CONFIG", "SET", "maxmemory", "0")
