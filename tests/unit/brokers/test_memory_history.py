"""The bounds of the history in memory. `tests/contract/test_history.py` has the rules that all brokers keep."""

from itertools import count
from typing import Any

from push1st.brokers.history import IDLE_COUNTER_SECONDS, Replay, ReplayRequest
from push1st.brokers.memory_history import MAX_RUNS, OBJECT_BYTES, ROUND_CALLS, SWEPT, MemoryHistory
from push1st.config.history import HistoryBounds, HistorySection
from push1st.messages import KeptMessage
from push1st.metrics import Metrics
from push1st.positions import Position
from tests.support.loop import done

SECOND = 1_000_000_000
SECTION = HistorySection(size=3, ttl=60)


class Memory:
    """A history with a clock that the test moves."""

    def __init__(self, **bounds: int) -> None:
        self.now = 1_700_000_000 * SECOND
        numbers = count(1)
        self.metrics = Metrics()
        self.history = MemoryHistory(HistoryBounds(**bounds), lambda: self.now, lambda _: next(numbers) << 20, self.metrics)

    def append(self, channel: str, data: bytes = b"1", section: HistorySection = SECTION) -> KeptMessage:
        message = KeptMessage("a", channel, "e", data, 1, self.now)
        self.history.append(message, section)
        return message

    def position(self, channel: str, seconds: int = IDLE_COUNTER_SECONDS) -> Position:
        return self.history.replay(("a", channel), ReplayRequest(SECTION, 0, counter_seconds=seconds)).position

    def replay(self, channel: str, after: int, max_bytes: int = 1000) -> Replay:
        epoch = self.position(channel).epoch
        return self.history.replay(("a", channel), ReplayRequest(SECTION, max_bytes, Position(epoch, after)))

    def read(self, channel: str) -> Any:
        return done(self.history.read("a", channel, None, 1000, False))

    def offsets(self, channel: str) -> list[int]:
        return [one.offset for one in self.read(channel).messages]


def test_a_channel_keeps_its_last_messages():
    memory = Memory()
    for _ in range(5):
        memory.append("c")
    assert memory.offsets("c") == [3, 4, 5]
    assert memory.history.bytes == sum(len(one.data) + OBJECT_BYTES for one in memory.read("c").messages)


def test_over_the_bound_of_bytes_the_channel_with_the_oldest_last_message_is_dropped():
    size = 100 + OBJECT_BYTES
    memory = Memory(bytes=3 * size)
    for channel in ("a", "b", "a", "c"):
        memory.append(channel, b"x" * 100)
    assert [memory.offsets(channel) for channel in "abc"] == [[1, 2], [], [1]]
    assert (memory.history.bytes, memory.metrics.history_evicted) == (3 * size, 1)


def test_a_dropped_channel_begins_a_new_epoch():
    memory = Memory(channels=1)
    before = memory.append("a")
    memory.append("b")
    after = memory.append("a")
    assert after.offset == 1
    assert after.epoch != before.epoch
    assert after.epoch[:5] == before.epoch[:5]


def test_counters_without_messages_are_dropped_first_and_never_displace_messages():
    memory = Memory(channels=2)
    memory.append("a")
    memory.append("b")
    lost = memory.position("idle")
    assert memory.position("idle") != lost
    assert memory.offsets("a") == memory.offsets("b") == [1]


def test_the_oldest_counter_is_dropped_for_a_newer_one():
    memory = Memory(channels=2)
    first, second = memory.position("x"), memory.position("y")
    memory.append("z")
    assert memory.position("y") == second
    assert memory.position("x") != first


def test_messages_expire_after_the_last_publish_and_the_counter_stays():
    memory = Memory()
    memory.append("c")
    memory.now += 59 * SECOND
    memory.append("c")
    memory.now += 59 * SECOND
    assert memory.offsets("c") == [1, 2]
    memory.now += SECOND
    assert memory.offsets("c") == []
    assert memory.append("c").offset == 3


def test_the_counter_of_a_channel_without_messages_expires():
    memory = Memory()
    before = memory.position("c", seconds=100)
    memory.now += 99 * SECOND
    assert memory.position("c", seconds=10) == before
    memory.now += 10 * SECOND
    assert memory.position("c", seconds=10) != before


def test_a_use_of_a_counter_renews_it():
    memory = Memory()
    before = memory.position("c", seconds=100)
    for _ in range(10):
        memory.now += 90 * SECOND
        assert memory.position("c", seconds=100) == before


def test_ticks_drop_expired_messages_of_all_channels_in_parts():
    memory = Memory()
    for number in range(2 * SWEPT + 1):
        memory.append(f"c{number}")
    memory.now += 60 * SECOND
    sizes = []
    for _ in range(5):
        memory.history.tick()
        sizes.append(len(memory.history))
    assert sizes == [2 * SWEPT + 1, SWEPT + 1, 1, 0, 0]
    assert memory.history.bytes == 0


def test_a_tick_counts_channels_and_bytes():
    memory = Memory()
    memory.append("a")
    memory.history.tick()
    assert (memory.metrics.history_channels, memory.metrics.history_bytes) == (1, memory.history.bytes)


def test_a_clock_that_goes_back_does_not_change_offsets():
    memory = Memory()
    memory.append("c")
    memory.now -= 1800 * SECOND
    assert memory.append("c").offset == 2
    assert memory.offsets("c") == [1, 2]


def test_a_cleared_channel_begins_a_new_epoch():
    memory = Memory()
    before = memory.append("c")
    done(memory.history.clear("a", "c"))
    assert memory.history.bytes == 0
    after = memory.append("c")
    assert after.offset == 1
    assert after.epoch != before.epoch


def test_the_counter_of_a_channel_with_subscribers_does_not_expire():
    memory = Memory()
    before = memory.position("c", 60)
    memory.history.is_subscribed = lambda app, channel: (app, channel) == ("a", "c")
    for _ in range(10):
        memory.now += 50 * SECOND
        for _ in range(2):
            memory.history.tick()
    memory.history.is_subscribed = lambda *_: False
    memory.now += 30 * SECOND
    assert memory.position("c", 1) == before
    memory.now += 60 * SECOND
    assert memory.position("c") != before


def test_the_counter_of_a_channel_with_subscribers_does_not_expire_before_the_sweep():
    memory = Memory()
    before = memory.position("c", 60)
    memory.history.is_subscribed = lambda *_: True
    memory.now += 3600 * SECOND
    assert memory.position("c") == before


def test_a_run_contains_only_the_messages_that_the_subscriber_gets():
    """The session encodes all messages of the run, which may be ten thousand."""
    memory = Memory()
    section = HistorySection(size=1000)
    epoch = [memory.append("c", section=section) for _ in range(1500)][-1].epoch
    for since, rewind in ((1498, 0), (1500, 0), (400, 2), (400, 0)):
        replay = memory.history.replay(("a", "c"), ReplayRequest(section, 1 << 20, Position(epoch, since), rewind))
        expected = [1499, 1500] if since == 1498 or rewind else []
        assert [one.offset for one in replay.run.messages] == [one.offset for one in replay.messages] == expected


def test_all_counters_are_renewed_in_time():
    """With many channels, a round over all of them took longer than a counter outlives the time of recovery."""
    memory = Memory()
    number = 3 * ROUND_CALLS * SWEPT
    before = [memory.position(f"c{n}", 100 + IDLE_COUNTER_SECONDS) for n in range(number)]
    memory.history.is_subscribed = lambda *_: True
    for _ in range(200):
        memory.now += SECOND
        memory.history.tick()
    memory.history.is_subscribed = lambda *_: False
    memory.now += 100 * SECOND
    assert [memory.position(f"c{n}") for n in range(number)] == before


def test_clients_that_reconnect_together_share_the_run_of_their_replays():
    memory = Memory()
    for _ in range(3):
        memory.append("c")
    first, second, third = (memory.replay("c", after) for after in (1, 1, 2))
    assert first.run is second.run is third.run
    assert [one.offset for one in third.messages] == [3]
    longer = memory.replay("c", 0)
    assert [one.offset for one in longer.messages] == [1, 2, 3]
    assert memory.replay("c", 2).run is longer.run


def test_run_is_not_shared_after_a_further_message_or_a_second():
    memory = Memory()
    for _ in range(2):
        memory.append("c")
    first = memory.replay("c", 1)
    memory.append("c")
    second = memory.replay("c", 1)
    assert [one.offset for one in second.messages] == [2, 3]
    memory.history.tick()
    assert memory.replay("c", 1).run is not second.run
    assert len(first.messages) == 1


def test_run_that_is_too_large_for_a_replay_is_not_shared():
    memory = Memory()
    for _ in range(3):
        memory.append("c")
    assert memory.replay("c", 0, max_bytes=500).reason == "too-large"
    assert len(memory.replay("c", 2).run.messages) == 1


def test_number_of_shared_runs_is_bounded():
    memory = Memory()
    for number in range(2 * MAX_RUNS):
        memory.append(f"c{number}")
        memory.replay(f"c{number}", 0)
    assert len(memory.history._runs) <= MAX_RUNS
