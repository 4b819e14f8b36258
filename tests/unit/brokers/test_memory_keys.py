"""The results of publishes with an idempotency key, in memory."""

from unittest.mock import patch

from push1st.brokers import memory_keys
from push1st.brokers.memory_keys import MAX_EXPIRED, KeyedResults
from push1st.messages import Message, Published
from tests.support.node import World

SECOND = 1_000_000_000


def message(app: str = "a") -> Message:
    return Message(app, "c", "e", b"1", 1, 1)


def stored(count: int, app: str = "a", now: int = 0) -> KeyedResults:
    results = KeyedResults(300)
    for number in range(count):
        results.store(message(app), str(number), Published(1), now)
    return results


def count(results: KeyedResults) -> int:
    return sum(map(len, results._apps.values()))


def test_expired_results_are_dropped_without_a_further_publish():
    results = stored(3)
    results.store(message("b"), "k", Published(1), 100 * SECOND)
    results.tick(300 * SECOND - 1)
    assert count(results) == 4
    results.tick(300 * SECOND)
    assert list(results._apps) == ["b"]
    assert results.find(message("b"), "k", 300 * SECOND) is not None
    results.tick(400 * SECOND)
    assert results._apps == {}


def test_a_tick_drops_a_part_of_many_results():
    results = stored(MAX_EXPIRED + 1)
    results.tick(300 * SECOND)
    assert count(results) == 1
    assert results.find(message(), str(MAX_EXPIRED), 300 * SECOND) is None
    results.tick(300 * SECOND)
    assert count(results) == 0


def test_the_oldest_results_above_the_bound_are_dropped():
    with patch.object(memory_keys, "MAX_KEYS", 2):
        results = stored(3)
    assert [results.find(message(), str(number), 1) is not None for number in range(3)] == [False, True, True]


async def test_expired_results_are_dropped_while_nothing_is_published():
    world = World()
    world.memory.publish(message(), key="k")
    world.clock.advance(301)
    world.memory.history.tick()
    assert world.memory._results._apps == {}
