"""A turn of the loop: the input of one connection is processed in slices, so that it delays others little."""

import pytest

from push1st.transports.turn import BACKLOG_SECONDS, INPUT_SECONDS, LONG_READ, NEW_SECONDS, ROUND, Turn
from tests.support.loop import Clock, turns

pytestmark = pytest.mark.usefixtures("loop_factory")


class Connection:
    """A connection with input of several slices; each slice takes `seconds` of the clock."""

    def __init__(self, log: list[str], clock: Clock, name: str, slices: int = 1, seconds: float = 0.0) -> None:
        self.log = log
        self.clock = clock
        self.name = name
        self.slices = slices
        self.seconds = seconds
        self.reading = True
        self.is_new = False
        self.fails_at = -1
        self.kept = b""
        self.aborted = False

    def process(self, data: bytes) -> bool:
        self.is_new = False
        if self.slices == self.fails_at:
            raise ValueError("a defect")
        self.log.append(self.name)
        self.clock.advance(self.seconds)
        self.slices -= 1
        return self.slices > 0

    def keep(self, data: bytes) -> None:
        self.kept += data

    def hold_reading(self, hold: bool) -> None:
        self.reading = not hold

    def abort(self) -> None:
        self.aborted = True


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def failures() -> list[str]:
    return []


@pytest.fixture
def turn(clock, log, failures) -> Turn:
    return Turn(clock.monotonic, lambda: log.append("write"), failures.append)


async def test_backlog_is_processed_in_rotation(turn, clock, log):
    for name in "ab":
        turn.arrived(Connection(log, clock, name, slices=3), b"x")
    await turns(3)
    assert [name for name in log if name != "write"] == ["a", "b", "a", "b", "a", "b"]


async def test_a_backlog_gets_a_bounded_time_of_each_turn(turn, clock, log):
    turn.arrived(Connection(log, clock, "a", slices=100, seconds=BACKLOG_SECONDS / 2), b"x")
    await turns(1)
    assert log == ["a", "write"]
    await turns(1)
    assert log == ["a", "write", "a", "a", "write"]


async def test_a_backlog_gets_as_much_time_as_the_others_took(turn, clock, log):
    turn.arrived(Connection(log, clock, "backlog", slices=1000, seconds=BACKLOG_SECONDS), b"x")
    await turns(1)
    log.clear()
    turn.arrived(Connection(log, clock, "other", seconds=10 * BACKLOG_SECONDS), b"x")
    await turns(1)
    assert log.count("backlog") in (10, 11)  # the sums of floating-point seconds are rounded
    assert log[0] == "other"


async def test_new_input_is_processed_before_the_backlog(turn, clock, log):
    turn.arrived(Connection(log, clock, "backlog", slices=100, seconds=BACKLOG_SECONDS), b"x")
    await turns(1)
    for _ in range(3):
        turn.arrived(Connection(log, clock, "other"), b"x")
        await turns(1)
    assert log == ["backlog", "write", *["other", "backlog", "write"] * 3]


async def test_a_connection_with_a_backlog_is_not_read(turn, clock, log):
    one = Connection(log, clock, "a", slices=3, seconds=BACKLOG_SECONDS)
    turn.arrived(one, b"x")
    await turns(1)
    assert not one.reading
    await turns(1)
    assert not one.reading
    await turns(1)
    assert one.reading


async def test_connection_with_much_input_is_not_read_again_in_the_turn(turn, clock, log):
    one = Connection(log, clock, "a")
    turn.arrived(one, b"x" * LONG_READ)
    assert not one.reading
    await turns(1)
    assert not one.reading
    await turns(1)
    assert one.reading


async def test_long_input_waits_for_the_input_of_others(turn, clock, log):
    for number in range(100):
        turn.arrived(Connection(log, clock, f"long {number}", seconds=BACKLOG_SECONDS), b"x" * LONG_READ)
    turn.arrived(Connection(log, clock, "other"), b"x")
    await turns(1)
    assert log == ["other", "write"]
    await turns(1)
    assert log == ["other", "write", "long 0", "write"]


async def test_new_input_gets_a_bounded_time_of_each_turn(turn, clock, log):
    count = 10 * ROUND
    each = INPUT_SECONDS / ROUND
    many = [Connection(log, clock, str(number), seconds=each) for number in range(count)]
    for one in many:
        turn.arrived(one, b"x")
    await turns(1)
    assert log == [*map(str, range(ROUND)), "write"]
    assert not any(one.reading for one in many[ROUND:])
    assert all(one.kept == b"x" for one in many[ROUND:])
    await turns(12)
    assert [name for name in log if name != "write"] == list(map(str, range(count)))
    assert all(one.reading for one in many)
    assert max(map(len, "".join(name[0] for name in log).split("w"))) <= ROUND + 1


async def test_postponed_input_comes_before_newer_input_and_the_backlog(turn, clock, log):
    turn.arrived(Connection(log, clock, "backlog", slices=100, seconds=BACKLOG_SECONDS), b"x")
    await turns(1)
    for _ in range(ROUND):
        turn.arrived(Connection(log, clock, "first", seconds=INPUT_SECONDS), b"x")
    turn.arrived(Connection(log, clock, "late"), b"x")
    await turns(1)
    log.clear()
    turn.arrived(Connection(log, clock, "new"), b"x")
    await turns(1)
    assert log == ["late", "new", "backlog", "write"]


def crowd(log: list[str], clock: Clock, count: int) -> list[Connection]:
    """Returns new connections whose first input takes a millisecond each."""
    found = [Connection(log, clock, f"new {number}", seconds=0.001) for number in range(count)]
    for one in found:
        one.is_new = True
    return found


async def test_input_of_others_does_not_wait_for_a_crowd_of_new_connections(turn, clock, log):
    many = crowd(log, clock, 1000)
    for one in many:
        turn.arrived(one, b"x")
    await turns(1)
    assert not many[-1].reading
    for number in range(3):
        turn.arrived(Connection(log, clock, "other"), b"x")
        log.clear()
        await turns(1)
        assert log[0] == "other", number


async def test_crowd_of_new_connections_gets_time_of_each_turn_the_newest_first(turn, clock, log):
    many = crowd(log, clock, 100)
    for one in many:
        turn.arrived(one, b"x")
    await turns(1)
    early = [name for name in log if name.startswith("new")]
    assert early == [one.name for one in many[: len(early)]]
    log.clear()
    for number in range(4 * ROUND):
        turn.arrived(Connection(log, clock, f"other {number}", seconds=INPUT_SECONDS / ROUND), b"x")
    await turns(1)
    served = [name for name in log if name.startswith("new")]
    assert len(served) in range(round(NEW_SECONDS / 0.001), round(NEW_SECONDS / 0.001) + 2)
    await turns(30)
    assert [name for name in log if name.startswith("new")] == [one.name for one in reversed(many[len(early) :])]
    assert all(one.reading for one in many)


async def test_time_for_connections_that_end_counts_for_the_turn(turn, clock, log):
    for _ in range(5):
        turn.arrived(Connection(log, clock, "ends", seconds=INPUT_SECONDS * 0.6), b"x")
        turn.catch_up()
    assert log.count("ends") == 2
    await turns(5)
    assert log.count("ends") == 5


async def test_postponed_connection_that_fails_ends(turn, clock, log, failures):
    for _ in range(ROUND):
        turn.arrived(Connection(log, clock, "first", seconds=INPUT_SECONDS), b"x")
    late = Connection(log, clock, "late")
    late.fails_at = 1
    turn.arrived(late, b"x")
    await turns(3)
    assert late.aborted
    assert failures == ["connection"]


async def test_connection_with_little_input_is_read_again(turn, clock, log):
    one = Connection(log, clock, "a")
    turn.arrived(one, b"x" * (LONG_READ - 1))
    assert one.reading


@pytest.mark.parametrize("fails_at", [3, 2, 1])
async def test_a_connection_that_fails_ends_and_delays_no_other(turn, clock, log, failures, fails_at):
    one, two = Connection(log, clock, "a", slices=3), Connection(log, clock, "b", slices=3)
    one.fails_at = fails_at
    turn.arrived(one, b"x")
    turn.arrived(two, b"x")
    await turns(2)
    assert one.aborted
    assert two.slices == 0
    assert failures == ["connection"]
    log.clear()
    await turns(2)
    assert log == []


async def test_catching_up_leaves_the_backlog_to_its_turns(turn, clock, log):
    turn.arrived(Connection(log, clock, "a", slices=3), b"x")
    turn.catch_up()
    turn.catch_up()
    assert log == ["a", "write", "write"]
