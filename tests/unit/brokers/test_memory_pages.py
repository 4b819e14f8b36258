"""The records of pages in memory: their expiry, and their bounds in bytes."""

from itertools import count

import pytest

from push1st.brokers import memory_pages
from push1st.brokers.memory_pages import MAX_FORGOTTEN, MemoryPages
from push1st.brokers.pages import FORGOTTEN_SECONDS, MAX_CHANNELS, MAX_PAGE_BYTES, PageBounds, PageRecord, bounded
from push1st.positions import Position
from tests.support.loop import Clock, done

APP, PAGE = "app-a", "page-0123456789abcdef"
BOUNDS = PageBounds(300, 100, "")
_times = count(1)


def record(channels: int = 1) -> PageRecord:
    return PageRecord(next(_times), "#page-at-1", bounded({f"c{n}": Position("e", n) for n in range(channels)}))


def remember(pages: MemoryPages, page: str = PAGE, socket_id: str = "1.1", bounds: PageBounds = BOUNDS) -> bool:
    stored: bool = done(pages.remember(APP, page, socket_id, record(), bounds))
    return stored


def test_page_expires_some_time_after_its_latest_record() -> None:
    clock = Clock()
    pages = MemoryPages(clock.wall)
    remember(pages)
    clock.advance(299)
    remember(pages)
    clock.advance(299)
    assert done(pages.recall(APP, PAGE))
    clock.advance(1)
    assert not done(pages.recall(APP, PAGE))
    assert len(pages) == pages.bytes == 0


def test_expired_pages_make_room_for_new_pages() -> None:
    clock = Clock()
    pages = MemoryPages(clock.wall)
    bounds = PageBounds(300, 20, "192.0.2.1")
    assert remember(pages, f"{PAGE}-1", bounds=bounds)
    assert remember(pages, f"{PAGE}-2", bounds=bounds)
    assert not remember(pages, f"{PAGE}-3", bounds=bounds)
    clock.advance(300)
    assert remember(pages, f"{PAGE}-3", bounds=bounds)
    assert len(pages) == 1


def test_forgotten_connection_may_store_a_record_after_some_time() -> None:
    clock = Clock()
    pages = MemoryPages(clock.wall)
    remember(pages)
    done(pages.forget(APP, PAGE, ["1.1"]))
    clock.advance(FORGOTTEN_SECONDS - 1)
    assert not remember(pages)
    clock.advance(1)
    assert remember(pages)


def test_forgotten_connections_are_bounded() -> None:
    pages = MemoryPages(Clock().wall)
    remember(pages)
    for number in range(MAX_FORGOTTEN + 1):
        done(pages.forget(APP, PAGE, [f"{number}.0"]))
    assert remember(pages, socket_id="0.0")
    assert not remember(pages, socket_id="1.0")


def test_size_of_all_pages_is_the_sum_of_the_sizes_of_the_pages() -> None:
    pages = MemoryPages(Clock().wall)
    for number in range(6):
        remember(pages, socket_id=f"{number}.0")
    done(pages.forget(APP, PAGE, ["4.0"]))
    assert pages.bytes == pages._apps[APP][PAGE].size


def test_pages_above_the_bound_of_bytes_are_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_pages, "MAX_BYTES", 2000)
    pages = MemoryPages(Clock().wall)
    assert remember(pages, f"{PAGE}-1")
    assert remember(pages, f"{PAGE}-2")
    assert not remember(pages, f"{PAGE}-3")


def test_pages_within_the_bound_of_bytes_do_not_grow_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_pages, "MAX_BYTES", 4000)
    pages = MemoryPages(Clock().wall)
    for number in range(3):
        assert remember(pages, f"{PAGE}-{number}")
    size = pages.bytes
    assert not done(pages.remember(APP, f"{PAGE}-0", "1.1", record(200), BOUNDS))
    assert not done(pages.remember(APP, f"{PAGE}-0", "2.2", record(200), BOUNDS))
    assert pages.bytes == size
    assert [*done(pages.recall(APP, f"{PAGE}-0"))] == ["1.1"]
    assert remember(pages, f"{PAGE}-0"), "a record that does not grow is stored"


def test_record_has_at_most_200_channels() -> None:
    assert len(bounded(dict.fromkeys(f"c{n}" for n in range(500)))) == MAX_CHANNELS


def test_record_with_long_channel_names_stays_below_the_bound_of_a_page() -> None:
    pages = MemoryPages(Clock().wall)
    wide = bounded({f"{n:03}" + "ü" * 80: Position("k3F9aQx2bT", 10**18) for n in range(500)})
    former = tuple(f"{n}.{2**32 - n}" for n in range(2**32 - 8, 2**32))
    full = PageRecord(2**40, "#page-at-" + "9" * 24, wide, former, True, True, True)
    assert done(pages.remember(APP, PAGE, "1.1", full, BOUNDS)) is False
    done(pages.remember(APP, PAGE, "1.1", record(), BOUNDS))
    assert done(pages.remember(APP, PAGE, "1.1", full, BOUNDS))
    assert pages.bytes <= MAX_PAGE_BYTES + memory_pages.PAGE_BYTES
