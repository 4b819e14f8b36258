"""The contract of a broker with its roster and users. A new implementation is one line in `IMPLEMENTATIONS`."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from push1st.brokers import ALL_WORKERS, Broker, HookEvents, Occupancy, Quotas, Roster, Users
from push1st.brokers.local_roster import LocalRoster
from push1st.brokers.memory import Memory
from push1st.brokers.memory_history import MemoryHistory
from push1st.brokers.memory_sessions import MemorySessions
from push1st.config.history import HistoryBounds
from push1st.config.mqtt import Mqtt
from push1st.eager import resolve
from push1st.errors import LimitReached
from push1st.messages import MEMBER_ADDED, MEMBER_REMOVED, WATCHLIST_EVENTS, HookEvent, Member, Message, watch_topic
from push1st.metrics import Metrics
from tests.contract.redis import Settled, cluster, redis_broker, valkey

A, B = "app-a", "app-b"
NOW = 1_700_000_000_000_000_000
ROOM = "presence-c"


@asynccontextmanager
async def memory() -> AsyncIterator[Any]:
    numbers = count(1)
    history = MemoryHistory(HistoryBounds(), lambda: NOW, lambda _: next(numbers), Metrics())
    sessions = MemorySessions(lambda: NOW, lambda _: next(numbers), Metrics(), Mqtt())
    yield Memory(lambda: (next(numbers), NOW), LocalRoster(), history, sessions)


@asynccontextmanager
async def redis() -> AsyncIterator[Any]:
    yield Settled(redis_broker(valkey().url))


@asynccontextmanager
async def redis_cluster() -> AsyncIterator[Any]:
    yield Settled(redis_broker(cluster().url))


Implementation = Callable[[], AbstractAsyncContextManager[Any]]
IMPLEMENTATIONS: dict[str, Implementation] = {"memory": memory, "redis": redis, "redis-cluster": redis_cluster}


class Heard:
    """An open broker with its roster and users, and the messages and hook events that it delivered."""

    def __init__(self, one: Any) -> None:
        self.broker: Broker = one
        self.roster: Roster = one
        self.users: Users = one
        self.quotas: Quotas = one
        self.hook_events: HookEvents = one
        self.messages: list[Message] = []
        self.on_event: list[HookEvent] = []

    def receive(self, message: Message) -> int:
        self.messages.append(message)
        return 1

    def answer(self, app: str, channel: str, question: bytes) -> bytes:
        return f"{app} {channel} ".encode() + question

    async def publish(self, message: Message) -> int:
        return (await resolve(self.broker.publish(message))).count

    def edges(self, channel: str = ROOM) -> list[tuple[str, str]]:
        """Returns the presence edges of a channel, in order: `+` or `-`, and the user."""
        words = {MEMBER_ADDED: "+", MEMBER_REMOVED: "-"}
        return [
            (words[one.event], msgspec.json.decode(one.data)["user_id"])
            for one in self.messages
            if one.channel == channel and one.event in words
        ]

    async def have_happened(self, count: int) -> None:
        """Waits for hook events, which may arrive later than messages."""
        for _ in range(1000):
            if len(self.on_event) >= count:
                break
            await asyncio.sleep(0.01)

    def edges_reported(self, channel: str = ROOM) -> list[tuple[str, str | None]]:
        return [(one.kind, one.user_id) for one in self.on_event if one.channel == channel]

    async def join(
        self, socket: str, user: str | None = None, channel: str = ROOM, app: str = A, most: int = 0, info: bytes = b"1"
    ) -> tuple[Member, ...] | None:
        joined = await self.roster.join(app, channel, socket, None if user is None else Member(user, info), most)
        return joined.members

    async def leave(self, socket: str, user: str | None = None, channel: str = ROOM, app: str = A) -> None:
        await self.roster.leave(app, channel, socket, user)


@asynccontextmanager
async def opened(implementation: Implementation) -> AsyncIterator[Heard]:
    async with implementation() as one:
        heard = Heard(one)
        broker = heard.broker
        await broker.open(heard.receive, heard.on_event.append, heard.answer, lambda *_: None)
        for app in (A, B):
            for channel in (ROOM, "c", "cache-c", watch_topic("u1")):
                await broker.subscribe(app, channel)
        yield heard
        await broker.close()


@pytest.fixture(params=list(IMPLEMENTATIONS.values()), ids=list(IMPLEMENTATIONS))
def implementation(request: pytest.FixtureRequest) -> Any:
    return request.param


def message(n: int, channel: str = "c", app: str = A) -> Message:
    return Message(app, channel, "e", b"%d" % n, n, n)


# Messages


async def test_a_message_arrives_as_it_was_published(implementation):
    full = Message(A, "c", "e", b'{"a":"\xd0\xb6"}', 1 << 62, 7, "1.2", "3.4", "multicast", "p.q", "u1", b'{"h":1}')
    async with opened(implementation) as heard:
        await heard.publish(full)
        assert heard.messages == [full]


async def test_publishing_returns_the_number_of_subscribers(implementation):
    async with opened(implementation) as heard:
        await heard.join("1.1", channel="c")
        assert await heard.publish(message(1)) == 1


async def test_messages_of_a_topic_arrive_in_order(implementation):
    async with opened(implementation) as heard:
        for n in range(100):
            await heard.publish(message(n))
        assert [one.id for one in heard.messages] == list(range(100))


async def test_messages_published_at_once_arrive_once_each(implementation):
    async with opened(implementation) as heard:
        await asyncio.gather(*(heard.publish(message(n)) for n in range(50)))
        assert sorted(one.id for one in heard.messages) == list(range(50))


async def test_subscribing_twice_is_once(implementation):
    async with opened(implementation) as heard:
        await heard.broker.subscribe(A, "c")
        await heard.publish(message(1))
        assert len(heard.messages) == 1


async def test_unsubscribing_from_an_unknown_topic_is_ignored(implementation):
    async with opened(implementation) as heard:
        await heard.broker.unsubscribe(A, "nowhere")


async def test_unsubscribed_topic_may_be_subscribed_again(implementation):
    async with opened(implementation) as heard:
        await heard.broker.unsubscribe(A, "c")
        await heard.broker.subscribe(A, "c")
        await heard.publish(message(1))
        assert [one.id for one in heard.messages] == [1]


async def test_every_worker_that_is_subscribed_answers_a_question(implementation):
    async with opened(implementation) as heard:
        assert list(await heard.broker.request(A, "c", b"what")) == [b"app-a c what"]


async def test_request_to_all_workers_needs_no_subscription(implementation):
    async with opened(implementation) as heard:
        assert list(await heard.broker.request("", ALL_WORKERS, b"what")) == [b" #filters what"]


# The last event of a cache channel


def kept(data: bytes, received: int = NOW, **more: Any) -> Message:
    return Message(A, "cache-c", "e", data, 1, received, **more)


async def test_cache_is_empty_at_first(implementation):
    async with opened(implementation) as heard:
        assert await heard.broker.cached(A, "cache-c") is None


async def test_the_last_event_of_a_cache_channel_is_kept_for_half_an_hour(implementation):
    async with opened(implementation) as heard:
        await heard.publish(kept(b"1"))
        await heard.publish(kept(b"2", NOW - 60_000_000_000))
        found = await heard.broker.cached(A, "cache-c")
        assert found is not None
        assert found.message == kept(b"2", NOW - 60_000_000_000)
        assert found.ttl in (1740, 1739)
        assert await heard.broker.cached(B, "cache-c") is None


@pytest.mark.parametrize(
    "message",
    [
        kept(b"1", NOW - 1801 * 1_000_000_000),
        kept(b"1", sender="1.2"),
        kept(b"1", delivery="unicast", target="1.2"),
        Message(A, "c", "e", b"1", 1, NOW),
        Message(A, "cachefoo", "e", b"1", 1, NOW),
        Message(A, "cache-c", MEMBER_ADDED, b"{}", 1, NOW),
    ],
    ids=["old", "of a client", "for one", "on another channel", "on one that is named alike", "an edge"],
)
async def test_other_events_are_not_kept(implementation, message):
    async with opened(implementation) as heard:
        await heard.publish(message)
        assert await heard.broker.cached(A, message.channel) is None


async def test_join_of_a_cache_channel_returns_the_cached_event(implementation):
    async with opened(implementation) as heard:
        assert (await heard.roster.join(A, "cache-c", "1.1", None, 0)).cached is None
        await heard.publish(kept(b"1"))
        joined = await heard.roster.join(A, "cache-c", "1.2", None, 0)
        assert joined.cached is not None
        assert joined.cached.message == kept(b"1")
        assert joined.cached.ttl in (1800, 1799)


# Signed-in users


async def test_a_user_is_online_from_the_first_connection_to_the_end_of_the_last(implementation):
    async with opened(implementation) as heard:
        online = []
        for step, socket in (
            ("in", "1.1"),
            ("in", "1.2"),
            ("in", "1.2"),
            ("out", "1.1"),
            ("out", "9.9"),
            ("out", "1.2"),
            ("out", "1.2"),
        ):
            await (heard.users.sign_in if step == "in" else heard.users.sign_out)(A, "u1", socket)
            online.append(bool(await heard.users.online(A, ["u1", "u2"])))
        assert online == [True, True, True, True, True, False, False]
        edges = [msgspec.json.decode(one.data)["events"] for one in heard.messages]
        assert edges == [[{"name": "online", "user_ids": ["u1"]}], [{"name": "offline", "user_ids": ["u1"]}]]
        assert {(one.channel, one.event) for one in heard.messages} == {(watch_topic("u1"), WATCHLIST_EVENTS)}


async def test_users_are_separate_for_each_app(implementation):
    async with opened(implementation) as heard:
        await heard.users.sign_in(A, "u1", "1.1")
        assert await heard.users.online(B, ["u1"]) == frozenset()
        assert await heard.users.online(A, []) == frozenset()


# Claims and quotas


async def test_a_channel_is_claimed_once_within_the_time(implementation):
    async with opened(implementation) as heard:
        assert [await heard.roster.claim(A, name, 100) for name in ("c", "c", "d")] == [True, False, True]


async def test_app_has_at_most_its_maximum_of_connections(implementation):
    async with opened(implementation) as heard:
        assert [await heard.quotas.connect(app, 2) for app in (A, A, A, B)] == [True, True, False, True]
        await heard.quotas.disconnect(A)
        assert [await heard.quotas.connect(A, 2) for _ in range(2)] == [True, False]


# Occupancy


async def test_channel_is_empty_at_first(implementation):
    async with opened(implementation) as heard:
        assert await heard.roster.channel(A, "c") is None
        assert await heard.roster.channels(A) == []
        assert await heard.roster.members(A, ROOM) == ()


async def test_subscriptions_are_counted(implementation):
    async with opened(implementation) as heard:
        assert await heard.join("1.1", channel="c") is None
        await heard.join("1.2", channel="c")
        assert await heard.roster.channel(A, "c") == Occupancy("c", 2)
        await heard.leave("1.1", channel="c")
        assert await heard.roster.channel(A, "c") == Occupancy("c", 1)
        await heard.leave("1.2", channel="c")
        assert await heard.roster.channel(A, "c") is None


async def test_users_are_counted_apart_from_subscriptions(implementation):
    async with opened(implementation) as heard:
        for socket, user in (("1.1", "u1"), ("1.2", "u1"), ("1.3", "u2"), ("1.4", None)):
            await heard.join(socket, user)
        assert await heard.roster.channel(A, ROOM) == Occupancy(ROOM, 4, 2)


async def test_channels_are_listed_by_name_and_prefix(implementation):
    async with opened(implementation) as heard:
        for channel in ("b", "presence-a", "a", "presence-b"):
            await heard.join("1.1", "u" if channel.startswith("presence-") else None, channel)
        assert [one.channel for one in await heard.roster.channels(A)] == ["a", "b", "presence-a", "presence-b"]
        assert list(await heard.roster.channels(A, "presence-")) == [Occupancy("presence-a", 1, 1), Occupancy("presence-b", 1, 1)]
        assert list(await heard.roster.channels(A, "none")) == []


async def test_a_prefix_is_no_pattern(implementation):
    async with opened(implementation) as heard:
        await heard.join("1.1", channel="abc")
        for prefix in ("*", "a*", "a?c", "[a]", "a.c", "\\"):
            assert list(await heard.roster.channels(A, prefix)) == []


async def test_apps_have_channels_of_their_own(implementation):
    async with opened(implementation) as heard:
        await heard.join("1.1", "u1", app=A)
        await heard.join("1.1", "u1", app=B)
        await heard.leave("1.1", "u1", app=A)
        assert await heard.roster.channel(A, ROOM) is None
        assert await heard.roster.channel(B, ROOM) == Occupancy(ROOM, 1, 1)


async def test_leaving_an_empty_channel_is_ignored(implementation):
    async with opened(implementation) as heard:
        await heard.leave("1.1", channel="nowhere")
        await heard.leave("1.1", "u1")
        assert heard.messages == []


@pytest.mark.parametrize("user", ["u1", "u2"])
async def test_unknown_member_removes_no_other_member(implementation, user):
    async with opened(implementation) as heard:
        await heard.join("1.1", "u1")
        await heard.leave("9.9", user)
        assert await heard.roster.channel(A, ROOM) == Occupancy(ROOM, 1, 1)
        assert heard.edges() == [("+", "u1")]


async def test_a_new_member_gets_all_members_itself_included(implementation):
    async with opened(implementation) as heard:
        assert await heard.join("1.1", "u1", info=b'{"a":1}') == (Member("u1", b'{"a":1}'),)
        assert await heard.join("1.2", "u2", info=b"null") == (Member("u1", b'{"a":1}'), Member("u2", b"null"))
        assert set(await heard.roster.members(A, ROOM)) == {Member("u1", b'{"a":1}'), Member("u2", b"null")}


async def test_a_subscription_without_a_member_gets_all_members(implementation):
    async with opened(implementation) as heard:
        assert await heard.join("1.1") == ()
        await heard.join("1.2", "u1")
        assert await heard.join("1.3") == (Member("u1", b"1"),)
        assert await heard.join("1.4", channel="c") is None


async def test_a_users_second_connection_is_no_second_member(implementation):
    async with opened(implementation) as heard:
        await heard.join("1.1", "u1")
        assert await heard.join("1.2", "u1") == (Member("u1", b"1"),)
        assert heard.edges() == [("+", "u1")]


async def test_user_is_offline_after_its_last_connection(implementation):
    async with opened(implementation) as heard:
        await heard.join("1.1", "u1")
        await heard.join("1.2", "u1")
        await heard.leave("1.1", "u1")
        assert heard.edges() == [("+", "u1")]
        assert len(await heard.roster.members(A, ROOM)) == 1
        await heard.leave("1.2", "u1")
        assert heard.edges() == [("+", "u1"), ("-", "u1")]
        assert await heard.roster.members(A, ROOM) == ()


async def test_an_edge_is_not_for_the_connection_that_causes_it(implementation):
    async with opened(implementation) as heard:
        await heard.join("1.1", "u1")
        await heard.leave("1.1", "u1")
        assert [one.exclude for one in heard.messages] == ["1.1", "1.1"]


async def test_an_edge_is_a_message_of_the_channel_with_an_id_of_its_own(implementation):
    async with opened(implementation) as heard:
        await heard.join("1.1", "u1", info=b'{"a":1}')
        await heard.leave("1.1", "u1")
        added, removed = heard.messages
        assert (added.app, added.channel, added.event) == (A, ROOM, MEMBER_ADDED)
        assert msgspec.json.decode(added.data) == {"user_id": "u1", "user_info": {"a": 1}}
        assert (removed.event, removed.data) == (MEMBER_REMOVED, b'{"user_id":"u1"}')
        assert added.id < removed.id


async def test_subscriptions_without_a_member_cause_no_edges(implementation):
    async with opened(implementation) as heard:
        await heard.join("1.1")
        await heard.leave("1.1")
        assert heard.edges() == []


async def test_edges_are_in_order_with_the_channels_messages(implementation):
    async with opened(implementation) as heard:
        await heard.join("1.1", "u1")
        await heard.publish(message(1, ROOM))
        await heard.leave("1.1", "u1")
        assert [one.event for one in heard.messages] == [MEMBER_ADDED, "e", MEMBER_REMOVED]


async def test_channel_has_at_most_its_maximum_of_members(implementation):
    async with opened(implementation) as heard:
        for n in range(2):
            await heard.join(f"1.{n}", f"u{n}", most=2)
        with pytest.raises(LimitReached):
            await heard.join("1.2", "u2", most=2)
        assert await heard.roster.channel(A, ROOM) == Occupancy(ROOM, 2, 2)
        assert heard.edges() == [("+", "u0"), ("+", "u1")]


async def test_members_that_join_together_get_all_earlier_members_and_cause_one_edge_each(implementation):
    async with opened(implementation) as heard:
        await heard.join("1.0", "u0")
        lists = await asyncio.gather(*(heard.join(f"1.{n}", f"u{n}") for n in (1, 2, 3)))
        for n, members in enumerate(lists, 1):
            assert {f"u{k}" for k in range(n + 1)} <= {member.user_id for member in members or ()}
        assert heard.edges() == [("+", f"u{n}") for n in range(4)]
        assert await heard.roster.channel(A, ROOM) == Occupancy(ROOM, 4, 4)


async def test_members_that_join_together_are_accepted_up_to_the_limit(implementation):
    async with opened(implementation) as heard:
        joins = (heard.join(f"1.{n}", f"u{n % 3}", most=2) for n in range(5))
        results = await asyncio.gather(*joins, return_exceptions=True)
        assert [isinstance(one, LimitReached) for one in results] == [False, False, True, False, False]
        assert await heard.roster.channel(A, ROOM) == Occupancy(ROOM, 4, 2)


async def test_full_channel_accepts_further_connections_of_its_members(implementation):
    async with opened(implementation) as heard:
        await heard.join("1.1", "u1", most=1)
        assert await heard.join("1.2", "u1", most=1) == (Member("u1", b"1"),)


async def test_full_channel_accepts_subscribers_that_are_no_members(implementation):
    async with opened(implementation) as heard:
        await heard.join("1.1", "u1", most=1)
        await heard.join("1.2", most=1)
        assert await heard.roster.channel(A, ROOM) == Occupancy(ROOM, 2, 1)


async def test_leaving_member_frees_its_place(implementation):
    async with opened(implementation) as heard:
        await heard.join("1.1", "u1", most=1)
        await heard.leave("1.1", "u1")
        await heard.join("1.2", "u2", most=1)
        assert heard.edges() == [("+", "u1"), ("-", "u1"), ("+", "u2")]


# Any interleaving

sockets = st.integers(0, 5)
users = st.integers(0, 2)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("join"), sockets, users),
        st.tuples(st.just("join"), sockets, st.none()),
        st.tuples(st.just("leave"), sockets, st.none()),
        st.tuples(st.just("publish"), st.none(), st.none()),
    ),
    max_size=40,
)


def test_over_any_interleaving_edges_alternate_and_counts_are_right(implementation):
    """All examples use one broker, which takes long to open in a cluster. Each has a channel of its own."""
    numbers = count(1)
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        heard = runner.run(stack.enter_async_context(opened(implementation)))

        @settings(max_examples=150)
        @given(plan=steps, most=st.integers(0, 2))
        def check(plan, most):
            runner.run(play(heard, f"presence-{next(numbers)}", plan, most))

        check()
        runner.run(stack.aclose())


async def play(heard: Heard, room: str, plan: list[Any], most: int) -> None:
    """Runs the steps in a new channel, and then leaves it."""
    on: dict[int, str | None] = {}
    expected: list[tuple[str, str]] = []
    await heard.broker.subscribe(A, room)
    for step, socket, user in plan:
        if step == "publish":
            await heard.publish(message(1, room))
        elif step == "join" and socket not in on:
            name = None if user is None else f"u{user}"
            there = set(filter(None, on.values()))
            if name is not None and most and name not in there and len(there) >= most:
                with pytest.raises(LimitReached):
                    await heard.join(f"1.{socket}", name, room, most=most)
                continue
            members = await heard.join(f"1.{socket}", name, room, most=most)
            assert {one.user_id for one in members or ()} == (there | {name}) - {None}
            on[socket] = name
            if name is not None and name not in there:
                expected.append(("+", name))
        elif step == "leave" and socket in on:
            name = on.pop(socket)
            await heard.leave(f"1.{socket}", name, room)
            if name is not None and name not in on.values():
                expected.append(("-", name))
        there = set(filter(None, on.values()))
        assert await heard.roster.channel(A, room) == (Occupancy(room, len(on), len(there)) if on else None)
        assert {one.user_id for one in await heard.roster.members(A, room)} == there
    assert heard.edges(room) == expected
    for user in {user for _, user in expected}:
        signs = "".join(sign for sign, of in expected if of == user)
        assert signs.startswith("+")
        assert "++" not in signs
        assert "--" not in signs
    for socket, name in on.items():
        await heard.leave(f"1.{socket}", name, room)
    await heard.broker.unsubscribe(A, room)
    heard.messages.clear()


# Hook events


async def test_a_reported_hook_event_happens_once(implementation):
    async with opened(implementation) as heard:
        event = HookEvent(
            "client-event", A, "private-c", NOW, "1.2", "u1", b'{"a":1}', "client-e", b'{"b":2}', 0, 7, "unicast", 9, b',"x":1'
        )
        heard.hook_events.report(event)
        await heard.have_happened(1)
        assert heard.on_event == [event]


async def test_edges_of_a_channel_are_reported(implementation):
    async with opened(implementation) as heard:
        await heard.join("1.1", channel="c")
        await heard.join("1.2", channel="c")
        await heard.leave("1.1", channel="c")
        await heard.leave("1.2", channel="c")
        await heard.have_happened(2)
        assert heard.edges_reported("c") == [("occupied", None), ("vacated", None)]


async def test_edges_of_members_are_reported_between_those_of_the_channel(implementation):
    async with opened(implementation) as heard:
        await heard.join("1.1", "u1", info=b'{"name":"Ann"}')
        await heard.join("1.2", "u1")
        await heard.leave("1.1", "u1")
        await heard.leave("1.2", "u1")
        await heard.have_happened(4)
        assert heard.edges_reported() == [
            ("occupied", None),
            ("member-added", "u1"),
            ("member-removed", "u1"),
            ("vacated", None),
        ]
        assert [one.user_info for one in heard.on_event] == [b"null", b'{"name":"Ann"}', b'{"name":"Ann"}', b"null"]


async def test_an_edge_that_an_earlier_process_held_back_is_held_again(implementation):
    async with opened(implementation) as heard:
        heard.hook_events.report(HookEvent("member-removed", A, ROOM, NOW, "1.1", "u1", b'{"name":"Ann"}', phase="held"))
        await heard.have_happened(1)
        assert [(one.kind, one.user_id, one.user_info) for one in heard.on_event] == [("member-removed", "u1", b'{"name":"Ann"}')]


async def test_a_member_that_is_refused_is_no_edge(implementation):
    async with opened(implementation) as heard:
        await heard.join("1.1", "u1")
        with pytest.raises(LimitReached):
            await heard.join("1.2", "u2", most=1)
        await heard.have_happened(2)
        assert heard.edges_reported() == [("occupied", None), ("member-added", "u1")]
