"""The delay of a sample of the flushes: from the first pending frame to the last write."""

import pytest

from push1st.core import fanout
from push1st.core.flush_delay import FlushDelay
from push1st.metrics import Histogram
from tests.support.node import Stage


@pytest.fixture
def stage():
    return Stage()


@pytest.fixture
def seconds():
    return Histogram()


@pytest.fixture
def delay(stage, seconds):
    return FlushDelay(stage.fanout, stage.world.clock.monotonic, seconds)


def found(seconds: Histogram) -> tuple[int, float]:
    return sum(seconds.counts), round(seconds.sum, 6)


def test_the_delay_is_from_the_first_frame_to_the_last_write(stage, delay, seconds):
    clock = stage.world.clock
    one = stage.client("a", "b")
    delay.arm()
    clock.advance(60)
    stage.publish("a", b"1")
    clock.advance(0.02)
    stage.publish("b", b"2")
    clock.advance(0.01)
    one.on_write = lambda _: clock.advance(0.005)
    stage.turns.end()
    assert found(seconds) == (1, 0.04)
    assert one.received == b"12"


def test_only_a_flush_after_the_call_is_measured(stage, delay, seconds):
    stage.client("a")
    own = stage.fanout.call_soon
    for armed in (False, True, False):
        if armed:
            delay.arm()
        stage.publish("a", b"1")
        stage.turns.end()
        assert stage.fanout.call_soon == own
    assert sum(seconds.counts) == 1


def test_frames_that_are_pending_already_are_not_measured(stage, delay, seconds):
    stage.client("a")
    stage.publish("a", b"1")
    delay.arm()
    delay.arm()
    stage.turns.end()
    assert sum(seconds.counts) == 0
    stage.publish("a", b"2")
    stage.turns.end()
    assert sum(seconds.counts) == 1


def test_direct_frames_are_not_measured(stage, delay, seconds):
    one = stage.client("a")
    delay.arm()
    stage.direct(one, b"1")
    stage.turns.end()
    assert (sum(seconds.counts), one.received) == (0, b"1")
    delay.arm()
    stage.publish("a", b"2")
    stage.turns.end()
    assert sum(seconds.counts) == 1


def test_a_long_flush_counts_when_its_last_subscriber_has_its_frames(stage, delay, seconds, monkeypatch):
    monkeypatch.setattr(fanout, "SLICE_WRITES", 2)
    for _ in range(5):
        stage.client("c")
    delay.arm()
    stage.publish("c", b"1")
    for _ in range(3):
        assert sum(seconds.counts) == 0
        stage.world.clock.advance(0.1)
        stage.turns.end()
    assert found(seconds) == (1, 0.3)


def test_a_flush_that_is_not_finished_counts_once_a_second(stage, delay, seconds):
    stage.client("c")
    delay.arm()
    stage.publish("c", b"1")
    for passed in (0.5, 1.5):
        stage.world.clock.advance(passed)
        delay.tick()
    assert found(seconds) == (1, 2)
    stage.turns.end()
    assert found(seconds) == (2, 4)


def test_frames_that_are_written_at_once_end_the_measurement_in_their_turn(stage, delay, seconds, monkeypatch):
    monkeypatch.setattr(fanout, "MAX_PENDING_BYTES", 5)
    one = stage.client("c")
    delay.arm()
    stage.publish("c", b"123")
    stage.publish("c", b"456")
    stage.turns.end()
    assert one.received == b"123456"
    stage.world.clock.advance(0.6)
    stage.publish("c", b"7")
    stage.turns.end()
    assert found(seconds) == (1, 0)
    stage.world.clock.advance(60)
    delay.tick()
    assert found(seconds) == (1, 0)


def test_a_tick_before_the_end_of_the_turn_ends_a_measurement_without_frames(stage, delay, seconds, monkeypatch):
    monkeypatch.setattr(fanout, "MAX_PENDING_BYTES", 5)
    stage.client("c")
    delay.arm()
    stage.publish("c", b"123")
    stage.publish("c", b"456")
    delay.tick()
    stage.turns.end()
    assert sum(seconds.counts) == 0
    stage.publish("c", b"7")
    stage.world.clock.advance(0.1)
    stage.turns.end()
    assert found(seconds) == (1, 0.1)


def test_measurements_go_on_after_another_function_that_waited_has_failed(stage, delay, seconds):
    def fail() -> None:
        raise KeyError

    stage.client("c")
    stage.fanout.after_flush.append(fail)
    delay.arm()
    stage.publish("c", b"1")
    with pytest.raises(KeyError):
        stage.turns.end()
    delay.tick()
    stage.publish("c", b"2")
    stage.turns.end()
    assert found(seconds) == (1, 0)


def test_two_functions_may_wait_for_a_flush(stage):
    calls = []
    stage.client("c")
    stage.publish("c", b"1")
    stage.fanout.after_flush += [lambda: calls.append(1), lambda: calls.append(2)]
    stage.turns.end()
    assert calls == [1, 2]
    assert stage.fanout.after_flush == []
