"""The consumer of hook events: when it delivers events, when another node has taken over, and how the ledger filters edges."""

import asyncio
from typing import Any

import pytest

from push1st.brokers.redis.bounds import Timings
from push1st.brokers.redis.events_consumer import START, Consumer, Ledger
from push1st.brokers.redis.wire import encode_event
from push1st.config.brokerurl import parse
from push1st.messages import HookEvent, HookEventKind

EVENT = HookEvent("client-event", "app", "c", 1)
ENTRY = [b"fact", encode_event(EVENT)]


class RespConnection:
    """A server that replies to commands by their names, and records the commands in order. leases: the replies to READ."""

    def __init__(self, on_event: list[Any], entries: list[list[bytes]], leases: list[tuple[int, int]], **answers: Any) -> None:
        self.on_event = on_event
        read = [{b"base:facts": [[b"%d-1" % (5 + n), entry] for n, entry in enumerate(entries)]}] if entries else [None]
        self.answers: dict[str, list[Any]] = {"XREAD": read, "READ": list(leases), **answers}

    def call(self, *command: Any) -> "asyncio.Future[Any]":
        future = asyncio.get_running_loop().create_future()
        future.set_result(self.answers[command[0]].pop(0))
        self.on_event.append(command[3] if command[0] == "READ" else command[0])
        return future

    def flush(self) -> None:
        self.on_event.append("flush")


async def read(
    *leases: tuple[int, int],
    seconds: float = 10,
    entries: tuple[list[bytes], ...] = (ENTRY,),
    there: Ledger | None = None,
    apps: tuple[str, ...] = ("app",),
    **answers: Any,
) -> tuple[bool, list[Any], bytes]:
    """Returns whether the consumer continues, what happened, and the last place."""
    on_event: list[Any] = []
    there = there or ledger()
    consumer = Consumer(
        *(parse("redis://localhost"), "0", "node", "base", lambda _: ("READ",), Timings(lease=seconds)),
        there,
        lambda: apps,
        on_event.append,
    )
    await consumer.stop()
    link: Any = RespConnection(on_event, list(entries), list(leases), **answers)
    return await consumer._more(link), on_event, there.place


async def test_position_is_saved_in_the_turn_that_delivers_hook_events() -> None:
    assert await read((1, 0), (1, 0)) == (True, ["XREAD", START, EVENT, b"5-1", "flush"], b"5-1")


@pytest.mark.parametrize(("seconds", "lease"), [(10, 0), (0, 1)], ids=["another node has the lease", "it has run out since"])
async def test_consumer_without_the_lease_delivers_nothing(seconds: float, lease: int) -> None:
    assert await read((lease, 0), seconds=seconds) == (False, ["XREAD", START], START)


async def test_consumer_ends_if_it_loses_its_lease_while_it_saves_its_position() -> None:
    assert await read((1, 0), (0, 0)) == (False, ["XREAD", START, EVENT, b"5-1", "flush"], b"5-1")


async def test_consumer_without_a_ledger_delivers_nothing() -> None:
    assert await read((1, 0), there=Ledger()) == (False, ["XREAD", START], START)


# The ledger


def entry(kind: HookEventKind, way: str, user: str = "", app: str = "app", channel: str = "") -> list[bytes]:
    channel = channel or ("presence-c" if user else "c")
    values = {"k": kind, "a": app, "c": channel, "t": "1", "s": "", "u": user, "i": "null", "w": way}
    return [one.encode() for pair in values.items() for one in pair]


def ledger(*there: str, compared_at: float | None = None) -> Ledger:
    made = Ledger()
    made.there, made.apps, made.compared_at = set(there), {"app"}, compared_at
    return made


def events(on_event: list[Any]) -> list[tuple[str, str, str | None]]:
    return [(one.phase, one.kind, one.user_id) for one in on_event if isinstance(one, HookEvent)]


async def handed_on(*entries: list[bytes], ledger: Ledger) -> list[tuple[str, str, str | None]]:
    _, on_event, _ = await read((1, 0), (1, 0), entries=entries, there=ledger)
    return events(on_event)


async def test_settled_edges_alternate() -> None:
    occupied, vacated = entry("occupied", "s"), entry("vacated", "s")
    told = await handed_on(vacated, occupied, occupied, vacated, vacated, ledger=ledger())
    assert told == [("settled", "occupied", None), ("settled", "vacated", None)]


async def test_edges_at_once_and_settled_edges_are_delivered_separately() -> None:
    returned = [entry("vacated", "a"), entry("occupied", "ar")]
    told = await handed_on(entry("occupied", "as"), *returned, entry("vacated", "a"), entry("vacated", "s"), ledger=ledger())
    assert told == [
        ("at-once", "occupied", None),
        ("settled", "occupied", None),
        ("at-once", "vacated", None),
        ("at-once", "occupied", None),
        ("at-once", "vacated", None),
        ("settled", "vacated", None),
    ]


async def test_ledger_has_members_whose_edge_an_earlier_process_held_back() -> None:
    held, removed = entry("member-added", "h", "u"), entry("member-removed", "s", "u")
    assert await handed_on(held, removed, ledger=ledger()) == [("settled", "member-removed", "u")]
    assert await handed_on(removed, ledger=ledger()) == []


def scan(*fields: str) -> list[Any]:
    return [b"0", [one.encode() for field in fields for one in (field, "1")]]


async def test_ledger_is_compared_with_the_roster_after_all_nodes_have_registered() -> None:
    had = ledger("c/app/a", "c/app/b", "c/app/presence-c", "m/app/presence-c\nu", "m/app/presence-c\nv", compared_at=0)
    unread = [[b"9-1", entry("occupied", "s")], [b"9-2", entry("vacated", "s")], [b"9-3", ENTRY]]
    answers: dict[str, Any] = {
        "HSCAN": [scan("b", "d", "presence-c"), scan("m/app/presence-c\nw"), scan("c/other/x", "u/app/u")],
        "HKEYS": [[b"v", b"x"]],
        "XRANGE": [unread, []],
        "DEL": [1],
    }
    going_on, on_event, _ = await read((1, 0), (1, 0), entries=(), there=had, **answers)
    assert going_on
    assert events(on_event) == [
        ("settled", "member-removed", "u"),
        ("settled", "vacated", None),
        ("settled", "occupied", None),
        ("settled", "member-added", "w"),
        ("settled", "member-added", "x"),
    ]
    assert [one.channel for one in on_event if isinstance(one, HookEvent) and one.user_id is None] == ["a", "d"]
    assert had.compared_at is None


async def test_ledger_gets_the_channels_of_an_app_whose_hooks_are_new() -> None:
    """Without them, the first `channel_vacated` would change nothing, and a comparison would report existing channels."""
    had = ledger("c/app/a")
    unread = [[b"5-1", vacated := entry("vacated", "s", app="new", channel="gone")], [b"5-2", entry("vacated", "s")]]
    answers: dict[str, Any] = {"HSCAN": [scan("b"), scan(), scan()], "XRANGE": [unread, []]}
    entries = (vacated,)
    _, on_event, _ = await read((1, 0), (1, 0), entries=entries, there=had, apps=("app", "new"), **answers)
    assert [(one.kind, one.app, one.channel) for one in on_event if isinstance(one, HookEvent)] == [("vacated", "new", "gone")]
    assert (had.there, had.apps) == ({"c/app/a", "c/new/b"}, {"app", "new"})


async def test_ledger_forgets_the_channels_of_an_app_without_hooks() -> None:
    had = ledger("c/app/a", "m/app/presence-c\nu")
    await read((1, 0), entries=(), there=had, apps=())
    assert (had.there, had.apps) == (set(), set())


async def test_a_ledger_is_not_compared_before_its_time() -> None:
    had = ledger("c/app/a", compared_at=asyncio.get_running_loop().time() + 10)
    going_on, on_event, _ = await read((1, 0), entries=(), there=had)
    assert (going_on, events(on_event)) == (True, [])


async def test_a_ledger_is_not_compared_while_nodes_announce_their_entries() -> None:
    had = ledger("c/app/a")
    going_on, on_event, _ = await read((1, 500), entries=(), there=had)
    assert (going_on, events(on_event), had.compared_at) == (True, [], 0)
