"""The outbox of a session: the order of its items, its bounds, and the effect of an item that exceeds a bound."""

import pytest

from push1st.core.outbox import Outbox, OutboxPolicy


class Owner:
    """An owner and its connection, which has room for `room` items."""

    def __init__(self, room: int = 0) -> None:
        self.room = room
        self.sent: list[str] = []
        self.resumed: list[list[str]] = []
        self.ends = 0

    def on_full(self) -> None:
        self.ends += 1

    def take(self, item: str) -> str | None:
        if not self.room:
            return item
        self.room -= 1
        self.sent.append(item)
        return None

    def resume(self, items: list[str]) -> list[str]:
        self.resumed.append(items)
        return [item for item in items if self.take(item)]


@pytest.fixture
def owner() -> Owner:
    return Owner()


def outbox(owner: Owner, *, max_size: int = 10, max_items: int = 0, drops_oldest: bool = False) -> Outbox[str]:
    return Outbox(OutboxPolicy(max_size, len, max_items, drops_oldest), owner)


def write(box: Outbox[str], *items: str) -> None:
    for item in items:
        box.write(item)


def test_items_without_a_connection_wait_in_order(owner):
    box = outbox(owner)
    write(box, "a", "bb", "c")
    assert (list(box), box.size, len(box)) == (["a", "bb", "c"], 4, 3)


def test_attach_sends_waiting_items_first(owner):
    box = outbox(owner)
    write(box, "a", "b")
    owner.room = 9
    box.attach(owner)
    write(box, "c")
    assert owner.sent == ["a", "b", "c"]
    assert owner.resumed == [["a", "b"]]
    assert (list(box), box.size) == ([], 0)


def test_attach_of_an_empty_outbox_resumes_nothing(owner):
    outbox(owner).attach(owner)
    assert owner.resumed == []


def test_items_wait_while_the_connection_has_no_room(owner):
    box = outbox(owner)
    owner.room = 1
    box.attach(owner)
    write(box, "a", "b")
    owner.room = 9
    write(box, "c")
    assert owner.sent == ["a"]
    assert list(box) == ["b", "c"]
    box.resume()
    assert owner.sent == ["a", "b", "c"]
    assert box.size == 0


def test_items_that_a_connection_does_not_resume_keep_their_place(owner):
    box = outbox(owner)
    write(box, "a", "bb", "c")
    owner.room = 1
    box.attach(owner)
    write(box, "d")
    assert owner.sent == ["a"]
    assert (list(box), box.size) == (["bb", "c", "d"], 4)


def test_the_rest_of_an_item_waits():
    class Narrow(Owner):
        def take(self, item: str) -> str | None:
            self.sent.append(item[:2])
            return item[2:] or None

    narrow = Narrow()
    box = outbox(narrow)
    box.attach(narrow)
    write(box, "abc", "d")
    assert narrow.sent == ["ab"]
    assert (list(box), box.size) == (["c", "d"], 2)


def test_resume_without_a_connection_keeps_the_items(owner):
    box = outbox(owner)
    write(box, "a")
    box.resume()
    assert list(box) == ["a"]


def test_detached_session_stores_later_items(owner):
    box = outbox(owner)
    owner.room = 9
    box.attach(owner)
    assert box.is_attached
    box.detach(until=5)
    write(box, "a")
    assert (box.is_attached, box.until, list(box), owner.sent) == (False, 5, ["a"], [])


def test_the_item_that_passes_the_bound_is_the_last_one(owner):
    """The outbox accepts the item that exceeds the bound, like the write buffer of a socket."""
    box = outbox(owner, max_size=3)
    write(box, "aa", "bb", "c")
    assert list(box) == ["aa", "bb"]
    assert (box.is_full, owner.ends) == (True, 1)
    owner.room = 9
    box.attach(owner)
    write(box, "d")
    assert owner.sent == ["aa", "bb"], "an item after the gap was sent"


def test_a_cleared_outbox_takes_items_again(owner):
    box = outbox(owner, max_size=3)
    write(box, "aaaa", "b")
    box.clear()
    assert (list(box), box.size, box.is_full) == ([], 0, False)
    write(box, "c")
    assert list(box) == ["c"]


def test_oldest_items_are_dropped_by_a_policy_that_drops_oldest(owner):
    box = outbox(owner, max_size=5, drops_oldest=True)
    write(box, "aa", "bb", "c", "ddd")
    assert (list(box), box.size, box.dropped, owner.ends) == (["c", "ddd"], 4, 2, 0)


def test_an_item_over_the_bound_drops_all_items(owner):
    box = outbox(owner, max_size=3, drops_oldest=True)
    write(box, "a", "bbbb")
    assert (list(box), box.size, box.dropped) == ([], 0, 2)


def test_the_number_of_items_is_bounded_too(owner):
    box = outbox(owner, max_items=2, drops_oldest=True)
    write(box, "a", "b", "c")
    assert (list(box), box.dropped) == (["b", "c"], 1)
    ends = outbox(owner, max_items=2)
    write(ends, "a", "b", "c", "d")
    assert (list(ends), owner.ends) == (["a", "b", "c"], 1)


def test_items_are_taken_out_and_put_back_in_order(owner):
    box = outbox(owner)
    write(box, "a", "b", "c")
    first, *others = box.take_all()
    assert (first, box.size) == ("a", 0)
    write(box, "d")
    box.restore(others)
    assert (list(box), box.size) == (["b", "c", "d"], 3)
