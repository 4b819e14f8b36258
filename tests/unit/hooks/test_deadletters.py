"""The file of dead letters: pages, ids, marks, and what other processes do with the file meanwhile."""

import errno
import json
import os
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from push1st.hooks import deadletters
from push1st.hooks.deadletters import DEAD_LETTERS, DeadLetters
from push1st.hooks.letters import Dead, LetterPage

NOW = 1_795_000_000.0


def everything(dead: Dead) -> str | None:
    return dead.hook


def lines(*numbers: int, padding: int = 0) -> bytes:
    """Returns a letter for each number; the number is the time of the letter."""
    event = msgspec.Raw(json.dumps({"name": "e", "channel": "c", "data": "x" * padding}).encode())
    letters = [Dead(float(number), "shop", "http://a/", "expired", (event,), "hook") for number in numbers]
    return b"".join(msgspec.json.encode(letter) + b"\n" for letter in letters)


def opened(folder: Path, *numbers: int, padding: int = 0) -> DeadLetters:
    one = DeadLetters(folder)
    for number in numbers:
        one.append(lines(number, padding=padding))
    return one


def times(page: LetterPage) -> list[float]:
    return [letter.dead.at for letter in page.letters]


def ids(one: DeadLetters, limit: int = 100) -> list[str]:
    """Returns the ids of all letters, the oldest first."""
    found, after = list[str](), ""
    while True:
        page = one.page(everything, after, limit)
        found += [letter.id for letter in page.letters]
        if not (after := page.next):
            return found[::-1]


def claim(one: DeadLetters, chosen: Sequence[str]) -> tuple[list[float], Counter[str]]:
    letters, refused = one.claim(chosen, everything, NOW)
    return [letter.dead.at for letter in letters], refused


def test_pages_are_newest_first_and_continue(tmp_path: Path) -> None:
    one = opened(tmp_path, *range(5))
    first = one.page(everything, "", 2)
    assert (times(first), first.examined) == ([4, 3], 2)
    second = one.page(everything, first.next, 2)
    one.append(lines(9))
    third = one.page(everything, second.next, 2)
    assert (times(second), times(third), third.next) == ([2, 1], [0], "")


def test_no_file_is_an_empty_page(tmp_path: Path) -> None:
    one = DeadLetters(tmp_path)
    assert one.page(everything, "", 9) == LetterPage((), "", 0)
    assert one.page(everything, "1:5", 9) == LetterPage((), "", 0)
    assert os.listdir(tmp_path) == []


def test_wrong_cursor_is_refused(tmp_path: Path) -> None:
    for cursor in ("x", "1:", "1:1:1", "1:x"):
        with pytest.raises(ValueError, match=cursor):
            DeadLetters(tmp_path).page(everything, cursor, 9)


def test_a_page_examines_a_bounded_part_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadletters, "MAX_READ", 1000)
    one = opened(tmp_path, *range(50))
    pages, after = 0, ""
    found: list[float] = []
    while True:
        page = one.page(lambda dead: "hook" if dead.at < 3 else None, after, 5)
        assert page.examined <= 1000 // len(lines(0))
        found += times(page)
        pages += 1
        if not (after := page.next):
            break
    assert (found, pages > 5) == ([2, 1, 0], True)


def test_a_line_that_is_too_long_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadletters, "MAX_READ", 1000)
    one = opened(tmp_path, 1, 2)
    one.append(lines(3, padding=3500))
    one.append(lines(4))
    found, after = list[float](), ""
    for _ in range(10):
        page = one.page(everything, after, 9)
        found += times(page)
        if not (after := page.next):
            break
    assert found == [4, 2, 1]
    assert claim(one, ids(one)[:1]) == ([1], {})


def test_letters_are_claimed_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    one = opened(tmp_path, *range(4))
    whole = (tmp_path / DEAD_LETTERS).read_bytes()
    all_ids = ids(one)
    assert claim(one, [all_ids[2], all_ids[0], all_ids[2]]) == ([0, 2], {})
    assert (tmp_path / DEAD_LETTERS).read_bytes().startswith(whole), "nothing is rewritten"
    assert json.loads((tmp_path / DEAD_LETTERS).read_bytes().splitlines()[-1]) == {
        "redriven": [all_ids[0], all_ids[2]],
        "at": NOW,
    }
    assert claim(one, all_ids) == ([1, 3], {"already redriven": 2})
    assert [letter.redriven for letter in one.page(everything, "", 9).letters] == [NOW] * 4


def test_another_process_and_a_later_one_know_the_marks(tmp_path: Path) -> None:
    one, two = opened(tmp_path, *range(3)), DeadLetters(tmp_path)
    all_ids = ids(two)
    assert claim(one, all_ids[:2]) == ([0, 1], {})
    assert claim(two, all_ids) == ([2], {"already redriven": 2})
    assert claim(DeadLetters(tmp_path), all_ids) == ([], {"already redriven": 3})


def test_unknown_ids_and_letters_without_an_endpoint_are_refused(tmp_path: Path) -> None:
    one = opened(tmp_path, 1)
    (id,) = ids(one)
    wrong = ["", "0-0-0", "x", "0-10-" + "0" * 16, "ffffffff-ffffff-" + "0" * 16, id[:-1] + "g"]
    assert claim(one, wrong) == ([], {"unknown": len(wrong)})
    assert one.claim([id], lambda _: None, NOW)[1] == {"unknown": 1}
    assert one.claim([id], lambda _: "", NOW)[1] == {"endpoint gone": 1}
    assert claim(one, [id]) == ([1], {})


def test_too_many_bytes_are_not_claimed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadletters, "MAX_CLAIMED_BYTES", 2 * len(lines(0, padding=60)))
    one = opened(tmp_path, *range(4), padding=60)
    all_ids = ids(one)
    claimed, refused = claim(one, all_ids)
    assert (claimed, refused) == ([0, 1], {"too large together": 2})
    assert claim(one, all_ids)[0] == [2, 3]


def test_letters_and_marks_survive_the_renaming_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = opened(tmp_path, *range(4))
    all_ids = ids(one)
    first = one.page(everything, "", 1)
    claim(one, all_ids[:1])
    monkeypatch.setattr(deadletters, "MAX_DEAD_BYTES", (tmp_path / DEAD_LETTERS).stat().st_size)
    one.append(lines(4))
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path)) == [f"{DEAD_LETTERS}.1"]
    assert times(one.page(everything, first.next, 2)) == [2, 1], "the cursor still works"
    one.append(lines(5))
    assert ids(one)[:4] == all_ids
    assert claim(one, all_ids[:2]) == ([1], {"already redriven": 1})
    two = DeadLetters(tmp_path)
    assert claim(two, ids(two)) == ([2, 3, 4, 5], {"already redriven": 2})


def test_a_mark_after_an_incomplete_line_counts(tmp_path: Path) -> None:
    one = opened(tmp_path, 1)
    with open(tmp_path / DEAD_LETTERS, "ab") as file:
        file.write(lines(2)[:30])  # the process was killed
    (id,) = ids(one)
    assert claim(one, [id]) == ([1], {})
    assert claim(DeadLetters(tmp_path), [id]) == ([], {"already redriven": 1})
    one.append(lines(3))
    assert times(one.page(everything, "", 9)) == [3, 1]


def test_a_mark_that_was_not_written_completely_claims_nothing(tmp_path: Path) -> None:
    one = opened(tmp_path, 1)
    (id,) = ids(one)
    claim(one, [id])
    path = tmp_path / DEAD_LETTERS
    os.truncate(path, path.stat().st_size - 3)
    two = DeadLetters(tmp_path)
    assert claim(two, [id]) == ([1], {}), "its process was killed before it queued the letter"
    assert claim(DeadLetters(tmp_path), [id]) == ([], {"already redriven": 1})


def test_letters_are_not_marked_if_the_disk_does_not_confirm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    one = opened(tmp_path, 1)
    (id,) = ids(one)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="Input/output error"):
            claim(one, [id])
    assert claim(DeadLetters(tmp_path), [id]) == ([1], {})


def test_new_file_with_the_inode_of_a_removed_one_is_read_from_its_beginning(tmp_path: Path) -> None:
    """An equal inode cannot be forced, so the file is rewritten in place, and longer than before."""
    one = opened(tmp_path, *range(3))
    claim(one, ids(one)[:2])
    path = tmp_path / DEAD_LETTERS
    path.write_bytes(b"")
    two = DeadLetters(tmp_path)
    two.append(lines(7) + lines(8))
    first = ids(two)
    assert claim(two, first[:1]) == ([7], {})
    two.append(lines(9, padding=2000))
    assert path.stat().st_size > 2000
    assert claim(one, first) == ([8], {"already redriven": 1})


def test_marks_are_found_in_a_long_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = opened(tmp_path, *range(30))
    all_ids = ids(one)
    for id in all_ids[::3]:
        claim(one, [id])
        one.append(lines(99, padding=50))
    monkeypatch.setattr(deadletters, "MAX_READ", 300)
    assert claim(DeadLetters(tmp_path), all_ids)[1] == {"already redriven": 10}


def test_data_of_clients_cannot_mark_letters(tmp_path: Path) -> None:
    one = opened(tmp_path, 1)
    (id,) = ids(one)
    event = msgspec.json.encode({"data": f'\n{{"redriven":["{id}"],"at":1.0}}\n', "channel": "c"})
    one.append(msgspec.json.encode(Dead(2, "shop", "http://a/", "expired", (msgspec.Raw(event),), "hook")) + b"\n")
    assert claim(DeadLetters(tmp_path), [id]) == ([1], {})


def test_many_processes_redrive_each_letter_once(tmp_path: Path) -> None:
    one = opened(tmp_path, *range(40))
    all_ids = ids(one)
    found: list[float] = []

    def redrive() -> None:
        own = DeadLetters(tmp_path)
        for id in all_ids:
            found.extend(claim(own, [id])[0])

    threads = [threading.Thread(target=redrive) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(40))
