"""The connections of pages on one worker: when their records are read and written, and when they are pinged."""

import asyncio
import gc
from collections.abc import Collection
from typing import Any

import pytest

from push1st.brokers.memory_pages import MemoryPages
from push1st.brokers.pages import PageBounds, PageRecord
from push1st.config.history import HistorySection, Resume
from push1st.core import resuming
from push1st.core.page import INHERITED_SECONDS
from push1st.core.page_schedule import MAX_CHECKS, SLOTS, PageSchedule
from push1st.core.page_writer import RETRY_SECONDS
from push1st.core.pages import ZOMBIE_SECONDS, PageConnection
from push1st.core.session import Session
from push1st.errors import Refused
from push1st.messages import Ping, Pong, Resumed, Subscribe, Subscribed, SubscriptionRefused, Unsubscribe
from push1st.positions import Position
from tests.support.loop import LoopTurns, done, turns
from tests.support.node import APP, Outlet, World, app_config

PAGE = "page-0123456789abcdef"
RESUME = Resume(seconds=300, acknowledge=10)


class Faulty:
    """The storage in memory; it can be away, and counts its calls."""

    def __init__(self, memory: MemoryPages) -> None:
        self._memory = memory
        self.is_away = False
        self.held: asyncio.Future[None] | None = None
        self.writes = 0

    async def _step(self) -> None:
        if self.held is not None:
            await self.held
        if self.is_away:
            raise Refused(503, "the broker is away, try again")

    async def remember(
        self, app: str, page: str, socket_id: str, record: PageRecord, bounds: PageBounds, merged: Collection[str] = ()
    ) -> bool:
        self.writes += 1
        await self._step()
        return await self._memory.remember(app, page, socket_id, record, bounds, merged)

    async def recall(self, app: str, page: str) -> dict[str, PageRecord]:
        await self._step()
        return await self._memory.recall(app, page)

    async def forget(self, app: str, page: str, socket_ids: Collection[str]) -> None:
        await self._step()
        await self._memory.forget(app, page, socket_ids)


class Site:
    """A worker with pages, whose turns end by hand."""

    def __init__(self, turns: LoopTurns | None = None, resume: Resume = RESUME, **changes: Any) -> None:
        history = (HistorySection(filter=("news",)),)
        self.world = World(app_config(None, **({"history": history, "resume": resume} | changes)), turns=turns)
        self.port = Faulty(self.world.memory.pages)
        self.world.node.pages.port = self.port
        self.metrics = self.world.metrics

    def connect(self, name: str = PAGE) -> tuple[Session, Outlet]:
        page = self.world.node.pages.connection(name, "192.0.2.1")
        session, outlet = self.world.session(resumption=page)
        page.begin(session)
        return session, outlet

    def join(self, channel: str = "news", name: str = PAGE) -> tuple[Session, Outlet]:
        session, outlet = self.connect(name)
        session.handle(Subscribe(channel))
        self.world.turns.drain()
        return session, outlet

    def elapse(self, seconds: float) -> None:
        """Lets time pass, second by second."""
        for _ in range(int(seconds)):
            self.world.clock.advance(1)
            done(self.world.node.tick())
            self.world.turns.drain()

    def acknowledge(self, session: Session, outlet: Outlet) -> None:
        """Lets the server request an acknowledgement, and sends it."""
        before = pings(outlet)
        self.elapse(1)
        assert pings(outlet) == before + 1
        self.pong(session)

    def pong(self, session: Session) -> None:
        session.handle(Pong())
        self.world.turns.drain()

    @property
    def records(self) -> dict[str, PageRecord]:
        found: dict[str, PageRecord] = done(self.world.memory.pages.recall(APP, PAGE))
        return found

    def positions(self, session: Session) -> dict[str, int | None]:
        record = self.records[session.id]
        return {channel: None if position is None else position.offset for channel, position in record.positions.items()}


def pings(outlet: Outlet) -> int:
    return sum(isinstance(one, Ping) for one in outlet.replies)


def resumed(outlet: Outlet) -> list[Resumed]:
    return [one for one in outlet.replies if isinstance(one, Resumed)]


def page_of(session: Session) -> PageConnection:
    page = session.resumption
    assert isinstance(page, PageConnection)
    return page


# Records


def test_connection_that_never_subscribes_writes_no_record() -> None:
    site = Site()
    session, _ = site.connect()
    site.elapse(200)
    session.expire()
    assert site.port.writes == 0


def test_subscriptions_of_one_turn_are_one_write() -> None:
    site = Site(history=(HistorySection(),))
    session, _ = site.connect()
    for number in range(20):
        session.handle(Subscribe(f"c{number}"))
    site.world.turns.drain()
    assert site.port.writes == 1
    assert len(site.positions(session)) == 20


def test_subscription_that_was_not_resumed_has_no_position_until_its_acknowledgement() -> None:
    site = Site()
    session, outlet = site.join()
    assert resumed(outlet)[0].reason == "unknown"
    assert site.positions(session) == {"news": None}
    site.acknowledge(session, outlet)
    assert site.positions(session) == {"news": 0}


@pytest.mark.parametrize("since_tick", [0.1, 0.5, 0.9])
def test_first_acknowledgement_is_requested_within_a_second(since_tick: float) -> None:
    site = Site()
    site.join(name="another-page-0123456789")
    site.world.clock.advance(0.7)  # ticks do not come at whole seconds
    done(site.world.node.tick())
    site.world.clock.advance(since_tick)
    session, outlet = site.connect()
    session.handle(Subscribe("news"))
    for slot in range(1, SLOTS + 1):
        assert pings(outlet) == 0 or slot > SLOTS / 2
        if slot == round((1 - since_tick) * SLOTS):
            done(site.world.node.tick())
        site.world.clock.advance(1 / SLOTS)
        site.world.turns.elapse()
        site.world.turns.end()
    assert pings(outlet) == 1


def test_later_subscription_does_not_postpone_the_first_acknowledgement() -> None:
    site = Site(history=(HistorySection(),))
    session, outlet = site.join()
    site.world.clock.advance(0.5)
    session.handle(Subscribe("other"))
    site.world.clock.advance(0.5)
    done(site.world.node.tick())
    assert pings(outlet) == 1


def test_subscription_during_an_unanswered_ping_requests_an_acknowledgement_soon_after_the_answer() -> None:
    site = Site(history=(HistorySection(),), resume=Resume(acknowledge=10))
    session, outlet = site.join()
    site.elapse(1)
    assert pings(outlet) == 1
    session.handle(Subscribe("other"))
    site.elapse(2)
    assert pings(outlet) == 1
    site.pong(session)
    site.elapse(1)
    assert pings(outlet) == 2


def test_resumed_subscription_keeps_its_first_position_until_an_acknowledgement() -> None:
    site = Site()
    first, outlet = site.join()
    site.acknowledge(first, outlet)
    first.expire()
    site.world.publish("news", b"1")
    second, outlet = site.join()
    assert (resumed(outlet)[0].reason, resumed(outlet)[0].replayed) == (None, 1)
    assert site.positions(second) == {"news": 0}
    site.elapse(RESUME.acknowledge)
    site.pong(second)
    assert site.positions(second) == {"news": 1}


def test_first_record_deletes_the_closed_records() -> None:
    site = Site()
    first, outlet = site.join()
    site.acknowledge(first, outlet)
    first.expire()
    assert site.records[first.id].is_closed
    second, _ = site.join()
    assert [*site.records] == [second.id]
    assert site.records[second.id].sockets == (first.id,)


def test_connection_without_a_record_leaves_no_closed_record() -> None:
    site = Site()
    first, outlet = site.join()
    site.acknowledge(first, outlet)
    first.expire()
    second, _ = site.connect()
    second.expire()
    assert [*site.records] == [first.id]


def test_record_is_written_again_after_a_third_of_its_time() -> None:
    site = Site()
    session, outlet = site.join()
    site.acknowledge(session, outlet)
    writes = site.port.writes
    site.elapse(99)
    assert site.port.writes == writes
    site.elapse(2)
    assert site.port.writes == writes + 1


def test_page_whose_channel_was_idle_for_an_hour_is_recovered() -> None:
    """The position of a connection without events expired (socket.io#5282)."""
    site = Site()
    first, outlet = site.join()
    site.acknowledge(first, outlet)
    site.elapse(3600)
    first.expire()
    site.world.publish("news", b"1")
    _, outlet = site.join()
    assert (resumed(outlet)[0].reason, resumed(outlet)[0].replayed) == (None, 1)


def test_channel_that_the_client_leaves_is_removed_from_the_record() -> None:
    site = Site()
    session, outlet = site.join()
    site.acknowledge(session, outlet)
    session.handle(Unsubscribe("news"))
    site.world.turns.drain()
    assert site.positions(session) == {}


def test_positions_of_channels_that_are_not_subscribed_again_are_removed_after_thirty_seconds() -> None:
    site = Site(history=(HistorySection(),))
    first, outlet = site.join("a")
    first.handle(Subscribe("b"))
    site.acknowledge(first, outlet)
    first.expire()
    second, _ = site.join("a")
    assert site.positions(second) == {"a": 0, "b": 0}
    site.elapse(INHERITED_SECONDS + 1)
    assert site.positions(second) == {"a": 0}


def test_record_is_written_later_if_the_broker_is_away() -> None:
    site = Site()
    session, _ = site.connect()
    session.handle(Subscribe("news"))
    site.port.is_away = True
    site.world.turns.drain()
    assert site.records == {}
    site.port.is_away = False
    site.elapse(RETRY_SECONDS + 1)
    assert [*site.records] == [session.id]


def test_subscription_is_rejected_if_the_records_cannot_be_read() -> None:
    site = Site()
    session, outlet = site.connect()
    site.port.is_away = True
    session.handle(Subscribe("news"))
    assert isinstance(outlet.last, SubscriptionRefused)
    assert outlet.last.status == 503
    site.port.is_away = False
    session.handle(Subscribe("news"))
    assert isinstance(outlet.replies[-2], Subscribed)


def test_last_record_is_written_after_the_write_in_progress() -> None:
    async def scenario() -> None:
        site = Site(LoopTurns())
        session, _ = site.connect()
        session.handle(Subscribe("news"))
        site.port.held = asyncio.get_running_loop().create_future()
        await turns()
        session.expire()
        await turns()
        assert site.port.writes == 1
        site.port.held.set_result(None)
        await turns(8)
        assert site.port.writes == 2
        assert site.records[session.id].is_closed

    asyncio.run(scenario())


def test_pages_above_the_bound_are_counted_and_stay_unknown() -> None:
    site = Site(resume=Resume(seconds=300, acknowledge=10, pages=1))
    site.join()
    session, outlet = site.join(name=PAGE + "-2")
    site.acknowledge(session, outlet)
    session.expire()
    assert site.metrics.refusals["page"] == 2
    _, outlet = site.join(name=PAGE + "-2")
    assert resumed(outlet)[0].reason == "unknown"


# What needs no record


def test_channel_without_a_history_needs_no_record() -> None:
    site = Site()
    _, outlet = site.join("other")
    assert resumed(outlet)[0].reason == "no-history"
    site.elapse(200)
    assert (site.port.writes, pings(outlet)) == (0, 0)


def test_recovery_that_is_turned_off_is_unknown_and_stores_nothing() -> None:
    site = Site(resume=Resume(seconds=0))
    _, outlet = site.join()
    site.elapse(200)
    assert resumed(outlet)[0].reason == "unknown"
    assert (site.port.writes, pings(outlet)) == (0, 0)


def test_number_of_open_pages_is_a_metric() -> None:
    site = Site()
    session, _ = site.connect()
    other, _ = site.join()
    assert site.metrics.pages == 2
    session.expire()
    other.expire()
    assert site.metrics.pages == 0
    assert site.world.node.pages._pages == {}


# Acknowledgements


def test_channel_that_has_not_moved_is_not_acknowledged_again() -> None:
    site = Site()
    session, outlet = site.join()
    site.acknowledge(session, outlet)
    site.elapse(60)
    assert pings(outlet) == 1


def test_moved_channel_is_acknowledged_at_most_every_interval() -> None:
    site = Site()
    session, outlet = site.join()
    site.acknowledge(session, outlet)
    for _ in range(40):
        site.world.publish("news", b"1")
        site.elapse(1)
        site.pong(session) if pings(outlet) > 1 else None
    assert pings(outlet) - 1 == 4
    assert site.metrics.acknowledgements == pings(outlet)


def test_pages_that_subscribe_at_the_same_time_acknowledge_at_different_times() -> None:
    site = Site()
    clients = [site.join(name=f"page-{number:016}") for number in range(50)]
    for session, outlet in clients:
        site.acknowledge(session, outlet) if not pings(outlet) else site.pong(session)
    requests = []
    for _ in range(10):
        site.world.publish("news", b"1")
        before = sum(pings(outlet) for _, outlet in clients)
        site.elapse(1)
        requests.append(sum(pings(outlet) for _, outlet in clients) - before)
        for session, _ in clients:
            site.pong(session)
    assert sum(requests) == 50
    assert max(requests) < 25


def test_no_second_acknowledgement_is_requested_before_the_answer() -> None:
    site = Site()
    _, outlet = site.join()
    site.elapse(60)
    assert pings(outlet) == 1


def test_keepalive_ping_is_counted() -> None:
    site = Site()
    session, _ = site.join()
    page_of(session).pinged()
    site.elapse(1)
    site.pong(session)
    assert site.positions(session) == {"news": None}
    site.pong(session)
    assert site.positions(session) == {"news": 0}


def test_pong_of_a_keepalive_before_the_first_subscription_acknowledges_nothing() -> None:
    site = Site()
    session, outlet = site.connect()
    resuming.ping(session)
    session.handle(Subscribe("news"))
    site.world.turns.drain()
    site.elapse(1)
    assert pings(outlet) == 2
    site.pong(session)
    assert site.positions(session) == {"news": None}
    site.pong(session)
    assert site.positions(session) == {"news": 0}


def test_keepalive_that_is_answered_before_the_first_subscription_is_not_counted() -> None:
    site = Site()
    session, outlet = site.connect()
    site.pong(session)
    resuming.ping(session)
    site.pong(session)
    session.handle(Subscribe("news"))
    site.world.turns.drain()
    site.acknowledge(session, outlet)
    assert site.positions(session) == {"news": 0}


def test_acknowledgement_is_requested_behind_the_pending_frames() -> None:
    site = Site()
    session, outlet = site.join()
    site.acknowledge(session, outlet)
    page_of(session)._acknowledge_at = site.world.clock.monotonic() + 1
    page_of(session)._schedule()
    site.world.publish("news", b"1")
    site.world.clock.advance(1)
    done(site.world.node.tick())
    assert pings(outlet) == 1  # the frame of the event is pending
    site.world.turns.drain()
    assert pings(outlet) == 2
    assert b'"data":"1"' in b"".join(outlet.writes)


# The end


def end(session: Session, code: int, echo: int) -> None:
    page = page_of(session)
    page.closing(code)
    session.expire()
    page.finish(echo=echo)


def test_echo_of_the_close_frame_acknowledges_everything() -> None:
    site = Site()
    session, outlet = site.join()
    site.acknowledge(session, outlet)
    site.world.publish("news", b"1")
    end(session, 4200, 4200)
    assert site.positions(session) == {"news": 1}
    assert site.records[session.id].is_exact
    _, outlet = site.join()
    assert (resumed(outlet)[0].reason, resumed(outlet)[0].replayed, resumed(outlet)[0].repeats) == (None, 0, False)


@pytest.mark.parametrize("echo", [0, 1000, 4201])
def test_other_answer_to_the_close_frame_acknowledges_nothing(echo: int) -> None:
    site = Site()
    session, outlet = site.join()
    site.acknowledge(session, outlet)
    site.world.publish("news", b"1")
    end(session, 4200, echo)
    assert site.positions(session) == {"news": 0}
    assert not site.records[session.id].is_exact


def test_echo_after_an_internal_error_acknowledges_nothing() -> None:
    site = Site()
    session, outlet = site.join()
    site.acknowledge(session, outlet)
    site.world.publish("news", b"1")
    end(session, 1011, 1011)
    assert site.positions(session) == {"news": 0}
    assert site.records[session.id].is_closed
    assert not site.records[session.id].is_exact


def test_last_record_waits_for_the_answer_to_the_close_frame() -> None:
    site = Site()
    session, outlet = site.join()
    site.acknowledge(session, outlet)
    page = page_of(session)
    page.closing(4200)
    session.expire()
    assert not site.records[session.id].is_closed
    ended: list[int] = []
    page.finish(lambda: ended.append(1), 4200)
    assert site.records[session.id].is_closed
    assert ended == [1]


def test_end_of_a_connection_without_subscriptions_needs_no_broker() -> None:
    site = Site()
    session, _ = site.connect()
    site.port.is_away = True
    page = page_of(session)
    page.closing(4200)
    session.expire()
    ended: list[int] = []
    page.finish(lambda: ended.append(1), 4200)
    assert ended == [1]


# Zombies and twins


async def joined(site: Site) -> tuple[Session, Outlet]:
    session, outlet = site.connect()
    session.handle(Subscribe("news"))
    await turns(8)
    return session, outlet


async def tick(site: Site, seconds: int = 1) -> None:
    for _ in range(seconds):
        site.world.clock.advance(1)
        await site.world.node.tick()
        await turns(8)


async def acknowledged(site: Site) -> tuple[Session, Outlet]:
    session, outlet = await joined(site)
    await tick(site)
    session.handle(Pong())
    await turns(8)
    assert site.positions(session) == {"news": 0}
    return session, outlet


async def test_twin_that_answers_at_once_makes_the_page_shared() -> None:
    site = Site(LoopTurns())
    first, one = await acknowledged(site)
    _, two = await joined(site)
    assert resumed(two) == []
    assert pings(one) == 2
    first.handle(Pong())
    await turns(12)
    assert [answer.reason for answer in resumed(two)] == ["shared"]
    assert [answer.reason for answer in resumed(one)] == ["unknown"]
    await tick(site)
    assert all(record.is_shared for record in site.records.values())


async def test_twins_that_begin_at_the_same_time_find_each_other() -> None:
    site = Site(LoopTurns())
    first, one = site.connect()
    second, two = site.connect()
    site.port.held = held = asyncio.get_running_loop().create_future()
    for session in (first, second):
        session.handle(Subscribe("news"))
    held.set_result(None)  # both have read that the page has no records
    await turns(12)
    assert [answer.reason for answer in resumed(one) + resumed(two)] == ["unknown", "unknown"]
    assert pings(one) + pings(two) >= 1
    for _ in range(2):  # the first answers show that both clients are there
        for session in (first, second):
            session.handle(Pong())
        await turns(12)
    await tick(site)
    assert all(record.is_shared for record in site.records.values())


async def test_connection_that_begins_during_a_search_is_not_taken_for_a_zombie() -> None:
    """Both wait for the answer of a client that is gone; the first writes its record before the second reads again."""
    site = Site(LoopTurns())
    zombie, _ = await acknowledged(site)
    first, one = await joined(site)
    second, two = await joined(site)
    zombie.expire()
    await turns(24)
    assert resumed(one)[0].reason is None
    for _ in range(2):
        for session in (first, second):
            session.handle(Pong())
        await turns(12)
    await tick(site, ZOMBIE_SECONDS + 2)
    assert {first.id, second.id} <= {*site.records}
    assert all(site.records[session.id].is_shared for session in (first, second))
    assert [resumed(outlet)[-1].reason for outlet in (one, two)] == ["shared", "shared"]


async def test_connection_whose_client_is_gone_during_its_search_is_no_twin_of_its_successor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A page that loses two connections within a second has only one live connection."""
    site = Site(LoopTurns())
    zombie, _ = await acknowledged(site)
    first, one = await joined(site)
    second, two = await joined(site)
    recall, reads = site.port.recall, []

    async def slow(app: str, page: str) -> dict[str, PageRecord]:
        reads.append(page)
        if len(reads) == 1:  # so that the first connection finds the record of the second
            await turns(20)
        return await recall(app, page)

    monkeypatch.setattr(site.port, "recall", slow)
    zombie.expire()
    await turns(40)
    assert resumed(one)[0].reason is None
    answered = 0
    for _ in range(ZOMBIE_SECONDS + 2):
        while answered < pings(two):
            answered += 1
            second.handle(Pong())
            await turns(12)
        await tick(site)
    assert [answer.reason for answer in resumed(two)] == [None]
    assert not site.records[second.id].is_shared
    assert first.closed


@pytest.mark.parametrize("ends", [False, True])
async def test_search_that_is_cancelled_at_shutdown_does_not_disturb_its_client(ends: bool) -> None:
    site = Site(LoopTurns())
    site.port.held = held = asyncio.get_running_loop().create_future()
    clients = [site.connect() for _ in range(2)]
    for session, _ in clients:
        session.handle(Subscribe("news"))
    held.set_result(None)  # both have read that the page has no records
    await turns(12)
    waiting = [session for session, outlet in clients if pings(outlet)]
    assert waiting
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    for session in waiting:
        session.expire() if ends else session.handle(Pong())
        assert session.closed == ends


async def test_twin_that_answers_during_the_second_read_makes_the_page_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("push1st.core.page_probes.PONG_SECONDS", 0)
    site = Site(LoopTurns())
    first, _ = await acknowledged(site)
    second, two = site.connect()
    search = page_of(second)._registry.probes
    recall, reads = site.port.recall, []

    async def slow(app: str, page: str) -> dict[str, PageRecord]:
        found = await recall(app, page)
        reads.append(found)
        if len(reads) == 2:
            assert search._searches
            first.handle(Pong())
            await turns(12)
        return found

    monkeypatch.setattr(site.port, "recall", slow)
    second.handle(Subscribe("news"))
    await turns(40)
    assert [answer.reason for answer in resumed(two)] == ["shared"]


async def test_twins_that_resumed_from_one_record_are_both_notified() -> None:
    site = Site(LoopTurns())
    earlier, _ = await acknowledged(site)
    earlier.expire()
    await turns(8)
    first, one = site.connect()
    second, two = site.connect()
    site.port.held = held = asyncio.get_running_loop().create_future()
    for session in (first, second):
        session.handle(Subscribe("news"))
    held.set_result(None)
    await turns(12)
    assert [answer.reason for answer in resumed(one) + resumed(two)] == [None, None]
    for _ in range(2):  # the first answers show that both clients are there
        for session in (first, second):
            session.handle(Pong())
        await turns(12)
    assert [resumed(outlet)[-1].reason for outlet in (one, two)] == ["shared", "shared"]


async def test_search_for_twins_is_repeated_if_the_broker_was_away() -> None:
    site = Site(LoopTurns())
    first, _ = await joined(site)
    page = page_of(first)
    twin = PageRecord(1, "#page-at-dead", {"news": Position("e", 1)})
    page._has_sought = False
    site.port.is_away = True
    await page._seek_again()
    site.port.is_away = False
    await site.port.remember(APP, PAGE, "9.9", twin, PageBounds(300, 100, ""))
    for _ in range(RETRY_SECONDS + 2):
        await tick(site)
        first.handle(Pong())
        await turns(8)
    assert page._zombies == ("9.9",)


async def test_twin_whose_answer_was_lost_is_found_before_its_record_is_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("push1st.core.page_probes.PONG_SECONDS", 0)
    site = Site(LoopTurns())
    first, _ = await acknowledged(site)
    _, two = await joined(site)
    await turns(8)
    monkeypatch.setattr("push1st.core.page_probes.PageProbes.answer", lambda *_, **__: None)
    first.handle(Pong())
    await tick(site, ZOMBIE_SECONDS + 1)
    assert first.id in site.records
    assert resumed(two)[-1].reason == "shared"


async def test_twin_that_answers_late_notifies_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("push1st.core.page_probes.PONG_SECONDS", 0)
    site = Site(LoopTurns())
    first, one = await acknowledged(site)
    _, two = await joined(site)
    await turns(8)
    assert [answer.reason for answer in resumed(two)] == [None]
    site.world.clock.advance(2)
    first.handle(Pong())
    await turns(12)
    assert [answer.reason for answer in resumed(one)] == ["unknown", "shared"]
    assert [answer.reason for answer in resumed(two)] == [None, "shared"]


async def test_zombie_is_closed_and_its_record_is_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("push1st.core.page_probes.PONG_SECONDS", 0)
    site = Site(LoopTurns())
    _, one = await acknowledged(site)
    second, two = await joined(site)
    await turns(8)
    assert resumed(two)[0].reason is None
    assert one.closes == []
    await tick(site, ZOMBIE_SECONDS + 1)
    assert [code for code, _ in one.closes] == [4201]
    assert [*site.records] == [second.id]


async def test_new_connection_waits_for_the_last_record_of_a_connection_that_ends() -> None:
    site = Site(LoopTurns())
    first, _ = await acknowledged(site)
    site.world.publish("news", b"1")
    page = page_of(first)
    page.closing(4200)
    first.expire()
    _, two = await joined(site)
    assert resumed(two) == []
    page.finish(echo=4200)
    await turns(12)
    assert (resumed(two)[0].replayed, resumed(two)[0].repeats) == (0, False)


async def test_probe_is_repeated_while_the_worker_may_not_publish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("push1st.core.page_probes.RETRY_SECONDS", 0)
    site = Site(LoopTurns())
    first, _ = await acknowledged(site)
    controller = site.world.node.controller
    failures = [Refused(503, "the broker is away, try again")] * 3

    class Gated:
        handle_topic = controller.handle_topic
        send_to_topic = controller.send_to_topic

        async def request(self, *args: Any) -> Any:
            if failures:
                raise failures.pop()
            return await controller.request(*args)

    probes: Any = site.world.node.pages.probes
    probes._controller = Gated()
    _, two = await joined(site)
    await turns(8)
    first.handle(Pong())
    await turns(12)
    assert [answer.reason for answer in resumed(two)] == ["shared"]


async def test_connection_of_a_dead_worker_is_not_waited_for() -> None:
    site = Site(LoopTurns())
    record = PageRecord(1, "#page-at-dead", {"news": Position("lost", 1)})
    await site.port.remember(APP, PAGE, "9.9", record, PageBounds(300, 100, ""))
    session, outlet = await joined(site)
    assert resumed(outlet)[0].reason == "state-lost"
    await tick(site, ZOMBIE_SECONDS + 1)
    assert [*site.records] == [session.id]


async def test_records_of_zombies_are_deleted_soon_after_the_broker_was_away() -> None:
    """The next check is a minute later, and until then each new connection of the page waits for the zombie."""
    site = Site(LoopTurns(), Resume(seconds=300, acknowledge=60))
    record = PageRecord(1, "#page-at-dead", {"news": Position("lost", 1)})
    await site.port.remember(APP, PAGE, "9.9", record, PageBounds(300, 100, ""))
    session, _ = await joined(site)
    await tick(site)
    session.handle(Pong())
    await tick(site, ZOMBIE_SECONDS - 2)
    site.port.held = held = asyncio.get_running_loop().create_future()
    site.port.is_away = True
    await tick(site, 2)
    held.set_result(None)
    await turns(8)
    site.port.is_away = False
    assert "9.9" in site.records
    await tick(site, RETRY_SECONDS + 1)
    assert [*site.records] == [session.id]


async def test_records_of_zombies_stay_until_the_new_connection_has_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the only records from which a further connection of the page can resume."""
    site = Site(LoopTurns())
    record = PageRecord(1, "#page-at-dead", {"news": Position("lost", 1)})
    await site.port.remember(APP, PAGE, "9.9", record, PageBounds(300, 100, ""))
    remember = site.port.remember

    async def refuse(*_: object) -> bool:
        raise Refused(503, "the broker is away, try again")

    monkeypatch.setattr(site.port, "remember", refuse)
    session, _ = await joined(site)
    await tick(site, ZOMBIE_SECONDS + RETRY_SECONDS + 1)
    assert [*site.records] == ["9.9"]
    monkeypatch.setattr(site.port, "remember", remember)
    await tick(site, 2 * RETRY_SECONDS)
    assert [*site.records] == [session.id]


async def test_connection_that_has_ended_is_freed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The garbage collector runs so seldom that the closed connections of a client with many pages needed 100 MB."""
    monkeypatch.setattr("push1st.core.page_probes.PONG_SECONDS", 0)
    site, name = Site(LoopTurns()), "page-of-a-client-that-leaves"
    sessions = []
    for _ in range(2):  # the second connection searches for the first
        sessions.append(site.connect(name)[0])
        sessions[-1].handle(Subscribe("news"))
        await turns(8)
    while sessions:
        sessions.pop().expire()
    await turns(24)
    assert [one for one in gc.get_objects() if isinstance(one, PageConnection) and one.name == name] == []


# The schedule


class Due:
    def __init__(self) -> None:
        self.due_at = 0
        self.checks = 0

    def check(self) -> None:
        self.checks += 1


def test_a_turn_has_a_bounded_number_of_checks() -> None:
    world = World()
    schedule = PageSchedule(world.fanout, world.clock.monotonic)
    pages = [Due() for _ in range(MAX_CHECKS + 1)]
    for page in pages:
        schedule.watch(page, world.clock.monotonic() + 1)
    world.clock.advance(1)
    schedule.tick()
    assert sum(page.checks for page in pages) == MAX_CHECKS
    world.turns.drain()
    assert sum(page.checks for page in pages) == MAX_CHECKS + 1


def test_checks_are_made_in_their_slots_between_two_ticks() -> None:
    world = World()
    schedule = PageSchedule(world.fanout, world.clock.monotonic)
    pages = [Due() for _ in range(SLOTS)]
    for number, page in enumerate(pages):
        schedule.watch(page, world.clock.monotonic() + number / SLOTS)
    schedule.tick()
    for number in range(1, SLOTS):
        world.clock.advance(1 / SLOTS)
        world.turns.elapse()
        assert sum(page.checks for page in pages) in (number, number + 1)
    world.clock.advance(1 / SLOTS)
    schedule.tick()
    assert [page.checks for page in pages] == [1] * SLOTS


def test_schedule_without_pages_has_no_timer() -> None:
    world = World()
    schedule = PageSchedule(world.fanout, world.clock.monotonic)
    page = Due()
    schedule.watch(page, world.clock.monotonic() + 100)
    schedule.tick()
    assert len(world.turns.timers) == 1
    schedule.forget(page)
    world.turns.elapse()
    schedule.tick()
    assert world.turns.timers == []


def test_timers_of_the_slots_end_if_no_tick_follows() -> None:
    world = World()
    schedule = PageSchedule(world.fanout, world.clock.monotonic)
    schedule.watch(Due(), world.clock.monotonic() + 100)
    schedule.tick()
    world.turns.drain()


def test_cancelled_check_is_not_made_and_the_earliest_time_counts() -> None:
    world = World()
    schedule = PageSchedule(world.fanout, world.clock.monotonic)
    cancelled, one = Due(), Due()
    now = world.clock.monotonic()
    schedule.watch(cancelled, now + 1)
    schedule.forget(cancelled)
    for at in (3, 2, 4):
        schedule.watch(one, now + at)
    for checks in (0, 1, 1, 1):
        world.clock.advance(1)
        schedule.tick()
        assert (cancelled.checks, one.checks) == (0, checks)
