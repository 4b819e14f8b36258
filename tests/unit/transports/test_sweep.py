"""The sweep, one timer for each worker: the times of visits, and their distribution over turns."""

import asyncio

import pytest

from push1st.metrics import Histogram
from push1st.transports.sweep import LOOK_SECONDS, NEVER, READ_TURNS, Sweep
from tests.support.loop import Clock, turns


class Thing:
    """A watched object: returns the next of `answers` at each visit."""

    def __init__(self, *answers: float | None) -> None:
        self.due_at = NEVER
        self.looks: list[float] = []
        self.answers = list(answers)

    def due(self, now: float) -> float | None:
        self.looks.append(now)
        return self.answers.pop(0) if self.answers else None


class Slow(Thing):
    """An object whose visit takes half of the time of a turn."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def due(self, now: float) -> float | None:
        self.clock.advance(LOOK_SECONDS / 2)
        return super().due(now)


class Sweeping:
    def __init__(self) -> None:
        self.clock = Clock(100.0)
        self.errors = 0
        self.seconds = 0
        self.sweep = Sweep(self.clock.monotonic, self.failed, self.second)

    def failed(self) -> None:
        self.errors += 1

    def second(self) -> None:
        self.seconds += 1

    def to(self, seconds: float) -> None:
        self.clock.seconds = seconds
        self.sweep.run()


@pytest.fixture
def at():
    return Sweeping()


def test_no_connection_is_visited_before_its_time(at):
    thing = Thing()
    at.sweep.watch(thing, 103)
    at.to(102.9)
    assert thing.looks == []
    at.to(103)
    assert thing.looks == [103]


def test_a_time_within_a_second_is_kept_under_the_next(at):
    thing = Thing()
    at.sweep.watch(thing, 102.1)
    assert thing.due_at == 103


def test_connections_with_the_same_deadline_share_its_number(at):
    one, two = Thing(), Thing()
    at.sweep.watch(one, 1000.1)
    at.sweep.watch(two, 1000.9)
    assert one.due_at is two.due_at


def test_a_time_that_is_over_is_the_next_second(at):
    thing = Thing()
    at.sweep.watch(thing, 3)
    at.to(101)
    assert thing.looks == [101]


def test_connection_is_visited_once_unless_it_returns_another_time(at):
    thing = Thing(None)
    at.sweep.watch(thing, 101)
    at.to(101)
    at.to(200)
    assert thing.looks == [101]
    assert thing.due_at == NEVER


def test_visit_may_return_the_time_of_the_next(at):
    thing = Thing(105, None)
    at.sweep.watch(thing, 101)
    for second in range(101, 110):
        at.to(second)
    assert thing.looks == [101, 105]


def test_seconds_that_were_slept_over_are_caught_up_with(at):
    things = [Thing() for _ in range(5)]
    for n, thing in enumerate(things):
        at.sweep.watch(thing, 101 + n)
    at.to(200)
    assert [thing.looks for thing in things] == [[200]] * 5


def test_watching_again_moves_the_time(at):
    thing = Thing()
    at.sweep.watch(thing, 101)
    at.sweep.watch(thing, 105)
    at.to(101)
    assert thing.looks == []
    at.sweep.watch(thing, 103)
    at.to(103)
    assert thing.looks == [103]


def test_forgotten_connection_is_not_visited(at):
    thing = Thing()
    at.sweep.watch(thing, 101)
    at.sweep.forget(thing)
    at.to(200)
    assert thing.looks == []
    assert thing.due_at == NEVER


def test_forgetting_an_unwatched_connection_changes_nothing(at):
    at.sweep.forget(Thing())


def test_now_is_the_clock_as_of_the_last_run(at):
    at.clock.advance(0.7)
    assert at.sweep.now == 100
    at.sweep.run()
    assert at.sweep.now == pytest.approx(100.7)


def test_failed_visit_is_reported_and_does_not_stop_others(at):
    class Broken(Thing):
        def due(self, now):
            raise ValueError

    broken, fine = Broken(), Thing()
    at.sweep.watch(broken, 101)
    at.sweep.watch(fine, 101)
    at.to(101)
    assert at.errors == 1
    assert fine.looks == [101]


def test_visit_may_forget_another_connection_of_the_same_second(at):
    other = Thing()

    class Killer(Thing):
        def due(self, now):
            at.sweep.forget(other)

    at.sweep.watch(Killer(), 101)
    at.sweep.watch(other, 101)
    at.to(101)
    assert other.looks == []


def test_visit_may_move_another_connection_of_the_same_second(at):
    other = Thing()

    class Mover(Thing):
        def due(self, now):
            at.sweep.watch(other, 104)

    at.sweep.watch(Mover(), 101)
    at.sweep.watch(other, 101)
    at.to(101)
    at.to(103)
    assert other.looks == []
    at.to(104)
    assert other.looks == [104]


async def test_many_looks_are_spread_over_turns(at):
    things = [Slow(at.clock) for _ in range(5)]
    for thing in things:
        at.sweep.watch(thing, 101)
    at.to(101)
    assert sum(bool(thing.looks) for thing in things) == 2
    await turns(1)
    assert sum(bool(thing.looks) for thing in things) == 4
    await turns(1)
    assert all(thing.looks == [101] for thing in things)


async def test_connection_forgotten_while_queued_is_not_visited(at):
    for _ in range(2):
        at.sweep.watch(Slow(at.clock), 101)
    two = Thing()
    at.sweep.watch(two, 101)
    at.to(101)
    at.sweep.forget(two)
    await turns()
    assert two.looks == []


async def test_sweep_ticks_until_it_is_stopped(at):
    at.sweep.start()
    timer = at.sweep._timer
    assert isinstance(timer, asyncio.TimerHandle)
    at.sweep.stop()
    assert timer.cancelled()
    at.sweep.stop()


async def tick(at, seconds: float) -> None:
    """Runs the timer at that time, and the loop turns until the visits are done."""
    at.clock.seconds = seconds
    at.sweep._tick()
    at.sweep.stop()
    await turns(READ_TURNS + 1)


async def test_sockets_are_read_between_the_timer_and_the_looks(at):
    thing = Thing()
    at.sweep.watch(thing, 101)
    at.clock.seconds = 101
    at.sweep._tick()
    at.sweep.stop()
    for _ in range(READ_TURNS):
        assert thing.looks == []
        await turns(1)
    await turns(1)
    assert thing.looks == [101]


async def test_first_tick_after_a_standstill_visits_no_connection(at):
    thing = Thing()
    at.sweep.watch(thing, 105)
    await tick(at, 101)
    await tick(at, 120)
    assert thing.looks == []
    assert at.sweep.now == 120
    at.sweep.watch(thing, 130)  # its client had sent data
    await tick(at, 121)
    assert thing.looks == []
    await tick(at, 122)
    await tick(at, 130)
    await tick(at, 131)
    assert thing.looks == [131]
    assert at.seconds == 6


async def test_a_process_that_is_always_late_looks_every_other_tick(at):
    thing = Thing()
    at.sweep.watch(thing, 105)
    for seconds in (110, 120, 130):
        await tick(at, seconds)
    assert thing.looks == [120]


def test_something_may_be_done_each_second(at):
    for second in (101, 102, 110):
        at.to(second)
    assert at.seconds == 3


async def test_the_lag_of_the_event_loop_is_measured_at_each_tick():
    lag, clock = Histogram(), Clock(100.0)
    sweep = Sweep(clock.monotonic, lambda: None, lambda: None, lag)
    sweep.start()
    clock.advance(1.3)
    sweep._tick()
    clock.advance(0.9)
    sweep._tick()
    sweep.stop()
    assert (lag.counts[-4:], round(lag.sum, 6)) == ([1, 0, 0, 0], 0.3)
    assert lag.counts[0] == 1
