"""The bounds of the cached events and of the times of expiry. `tests/contract/test_retained.py` has the other rules."""

import pytest

from push1st.brokers import memory_retained
from push1st.brokers.memory_retained import MemoryRetained
from push1st.brokers.retained import Retain
from push1st.messages import Message, MqttFields, MqttMessage

NOW = 1_700_000_000_000_000_000
SECOND = 1_000_000_000


def event(channel: str, id: int = 1, data: bytes = b"1") -> Message:
    return Message("a", channel, "e", data, id, NOW)


def message(channel: str, id: int, seconds: int) -> MqttMessage:
    return MqttMessage("a", channel, "e", b"1", id, NOW, mqtt=MqttFields(retain=True, expires=NOW + seconds * SECOND))


@pytest.fixture
def retained() -> MemoryRetained:
    return MemoryRetained(lambda: NOW, 1800 * SECOND)


def test_oldest_cached_events_are_dropped(retained: MemoryRetained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_retained, "MAX_CACHED_EVENTS", 2)
    monkeypatch.setattr(memory_retained, "MAX_CACHED_BYTES", 10)
    for number in range(3):
        retained.cache(event(f"cache-{number}"))
    assert [retained.find("a", f"cache-{number}") is None for number in range(3)] == [True, False, False]
    retained.cache(event("cache-3", data=b"1" * 10))
    assert [retained.find("a", f"cache-{number}") is None for number in range(4)] == [True, True, True, False]


async def test_times_of_expiry_of_replaced_messages_are_removed(retained: MemoryRetained) -> None:
    for id in range(5000):
        retained.retain(message("c", id, seconds=100), Retain())
    assert len(retained._expiries) <= memory_retained.SPARE_EXPIRIES + 1
    retained.tick(NOW + 100 * SECOND)
    assert await retained.names("a") == []
    assert retained.counts() == {}


async def test_one_tick_drops_a_bounded_number_of_messages(retained: MemoryRetained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_retained, "MAX_EXPIRED", 3)
    for id in range(5):
        retained.retain(message(f"c.{id}", id, seconds=1), Retain())
    retained.tick(NOW + 2 * SECOND)
    assert await retained.names("a") == ["c.3", "c.4"]
    retained.tick(NOW + 2 * SECOND)
    assert await retained.names("a") == []


def test_app_without_messages_needs_no_memory(retained: MemoryRetained) -> None:
    retained.retain(message("c", 1, seconds=1), Retain(is_anonymous=True, address="192.0.2.1"))
    retained.retain(MqttMessage("a", "c", "e", b'""', 2, NOW), Retain())
    assert not retained._apps
