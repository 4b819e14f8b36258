"""A folder that is read-only, full, or temporarily unreachable: no event is lost unnecessarily, and no file remains."""

import asyncio
import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec
import pytest

from push1st.hooks.deadletters import DEAD_LETTERS
from push1st.hooks.letters import Dead
from push1st.hooks.store import Saved, Store
from tests.support.loop import turns
from tests.unit.hooks.faults import full, read_only, without_descriptors

LINES = [Saved("endpoint", (f"c{number}",), (msgspec.Raw(b'"event"'),)) for number in range(3)]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Makes a folder that every user can reach; the folders of pytest are private."""
    with tempfile.TemporaryDirectory(prefix="hooks-") as name:
        yield Path(name)


def taken(one: Store) -> list[Saved]:
    return list(one.saved())


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_saved_events_are_loaded_once(folder: Path) -> None:
    one, two = Store(str(folder)), Store(str(folder))
    assert one.save(LINES) == 3
    assert taken(two) == LINES
    assert taken(one) == []
    assert names(folder) == []


def test_nothing_to_save_makes_no_file(folder: Path) -> None:
    one = Store(str(folder))
    with read_only(folder):
        assert one.save([]) == 0
    assert names(folder) == []


Fault = Callable[[Path], AbstractContextManager[None]]
FAULTS: dict[str, Fault] = {
    "full": lambda _: full(),
    "out of descriptors": lambda _: without_descriptors(),
    "read-only": read_only,
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_failed_write_leaves_no_file(folder: Path, fault: Fault) -> None:
    one = Store(str(folder))
    with fault(folder), pytest.raises(OSError):  # noqa: PT011 - each fault has its own
        one.save(LINES)
    assert names(folder) == []
    assert one.save(LINES) == 3


@pytest.mark.parametrize("name", ["out of descriptors", "read-only"])
def test_a_file_that_cannot_be_loaded_now_is_loaded_later(folder: Path, name: str) -> None:
    one = Store(str(folder))
    one.save(LINES)
    with FAULTS[name](folder), pytest.raises(OSError):  # noqa: PT011 - each fault has its own
        taken(one)
    assert taken(one) == LINES
    assert names(folder) == []


def test_unreadable_file_does_not_block_the_others(folder: Path) -> None:
    one = Store(str(folder))
    (folder / "saved-1-a.jsonl").mkdir()
    one.save(LINES)
    saved = one.saved()
    assert [next(saved) for _ in LINES] == LINES
    with pytest.raises(IsADirectoryError):
        next(saved)


def test_a_file_that_is_being_written_belongs_to_its_writer(folder: Path) -> None:
    one = Store(str(folder))
    with open(folder / ".saved-1-a.jsonl", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert taken(one) == []
    assert names(folder) == [".saved-1-a.jsonl"]
    assert taken(one) == []
    assert names(folder) == []


def test_a_file_that_a_killed_process_was_reading_is_loaded(folder: Path) -> None:
    one = Store(str(folder))
    one.save(LINES)
    (name,) = names(folder)
    (folder / name).rename(folder / f".taken-1-{name}")
    assert taken(one) == LINES
    assert names(folder) == []


# Dead letters


def add_dead_letter(one: Store, *events: bytes) -> None:
    for event in events:
        assert one.add_dead_letter(Dead(1, "app", "endpoint", "expired", (msgspec.Raw(event),))) == 0


def letters(folder: Path) -> list[object]:
    return [json.loads(line)["events"] for line in (folder / DEAD_LETTERS).read_text().splitlines()]


async def tried(one: Store) -> None:
    """Waits until the dead letters are written, or the write has failed."""
    assert one._writing is not None
    await asyncio.wait((one._writing,))
    await turns()


async def test_dead_letters_that_cannot_be_written_are_kept_and_written_later(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = Store(str(folder))
    (folder / DEAD_LETTERS).symlink_to("/dev/full")
    add_dead_letter(one, b"1", b"2")
    await tried(one)
    add_dead_letter(one, b"3")
    assert one._retry_at is not None
    one._retry_at.cancel()
    one._begin()  # as if its time were over
    await tried(one)
    (folder / DEAD_LETTERS).unlink()
    assert await one.close() == 0
    assert letters(folder) == [[1], [2], [3]]
    assert capsys.readouterr().out.count("dead letters cannot be written") == 1


async def test_a_dead_letter_is_written_whole_or_not_at_all(folder: Path) -> None:
    one = Store(str(folder))
    add_dead_letter(one, b"1")
    assert await one.close() == 0
    whole = (folder / DEAD_LETTERS).read_bytes()
    with full(), pytest.raises(OSError, match="too large"):
        one._letters.append(b"x" * 200)
    assert (folder / DEAD_LETTERS).read_bytes() == whole


async def test_dead_letters_that_cannot_be_written_at_the_end_are_counted(folder: Path) -> None:
    one = Store(str(folder))
    (folder / DEAD_LETTERS).symlink_to("/dev/full")
    add_dead_letter(one, b"1", b"2")
    assert await one.close() == 2
