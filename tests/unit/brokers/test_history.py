"""The rules of recovery and of reading a history, which both brokers share."""

from typing import Any

import pytest

from push1st.brokers.history import KeptRun, ReplayRequest, is_expired, lost_reason, page, replay
from push1st.config.history import HistorySection
from push1st.messages import KeptMessage
from push1st.positions import Position

NOW = 1_700_000_000_000_000_000
SECOND = 1_000_000_000


def kept(first: int, last: int, **fields: Any) -> tuple[KeptMessage, ...]:
    """Makes messages with these offsets; each is a second older than the next."""
    return tuple(
        KeptMessage("a", "c", "e", b"%d" % n, n, NOW - (last - n) * SECOND, offset=n, epoch="E", **fields)
        for n in range(first, last + 1)
    )


def request(since: str | None = None, **fields: int) -> ReplayRequest:
    position = None if since is None else Position.parse(since)
    return ReplayRequest(HistorySection(), fields.pop("max_bytes", 1 << 20), position, **fields)


@pytest.mark.parametrize(
    ("since", "first", "last", "reason"),
    [
        (None, 1, 5, "unknown"),
        ("E:5", 1, 5, None),
        ("E:4", 5, 5, None),
        ("E:0", 1, 5, None),
        ("E:3", 5, 9, "trimmed"),
        ("E:4", 5, 9, None),
        ("E:0", 2, 9, "trimmed"),
        ("E:9", 10, 9, None),
        ("E:8", 10, 9, "trimmed"),
        ("E:6", 1, 5, "state-lost"),
        ("F:5", 1, 5, "state-lost"),
        ("F:0", 1, 0, "state-lost"),
        ("E:0", 1, 0, None),
    ],
)
def test_messages_after_a_position_are_lost_for_a_reason(since, first, last, reason):
    position = None if since is None else Position.parse(since)
    assert lost_reason(position, "E", first, last) == reason


@pytest.mark.parametrize(
    ("asked", "reason", "offsets"),
    [
        (request("E:7"), None, [8, 9]),
        (request("E:9"), None, []),
        (request("E:2"), "trimmed", []),
        (request("F:7"), "state-lost", []),
        (request(), "unknown", []),
        (request(rewind=2), "unknown", [8, 9]),
        (request(rewind=100), "unknown", [4, 5, 6, 7, 8, 9]),
        (request("F:7", rewind=1), "state-lost", [9]),
        (request("E:8", rewind=5), None, [9]),
        (request(rewind=100, rewind_seconds=2), "unknown", [7, 8, 9]),
        (request("E:4", rewind_seconds=2), None, [5, 6, 7, 8, 9]),
        (request("E:6", max_bytes=3 * 201), None, [7, 8, 9]),
        (request("E:6", max_bytes=3 * 201 - 1), "too-large", []),
        (request("F:6", rewind=3, max_bytes=2 * 201), "state-lost", [8, 9]),
        (request(rewind=3, max_bytes=200), "unknown", []),
    ],
)
def test_a_request_gets_a_replay(asked, reason, offsets):
    found = replay(asked, "E", 9, KeptRun(kept(4, 9)), NOW)
    assert (found.reason, [one.offset for one in found.messages]) == (reason, offsets)
    assert found.position == Position("E", 9)


def test_a_channel_without_messages_is_at_its_counter():
    assert replay(request("E:9"), "E", 9, KeptRun(()), NOW).reason is None
    assert replay(request("E:8"), "E", 9, KeptRun(()), NOW).reason == "trimmed"
    assert replay(request(rewind=5), "E", 9, KeptRun(()), NOW).messages == ()


def test_a_run_that_was_read_only_in_part_is_enough_for_a_late_position():
    found = replay(request("E:8"), "E", 9, KeptRun(kept(8, 9)), NOW)
    assert (found.reason, [one.offset for one in found.messages]) == (None, [9])


def test_a_message_expires_after_its_own_ttl():
    (message,) = kept(1, 1, expires=NOW)
    assert not is_expired(message, NOW - 1)
    assert is_expired(message, NOW)
    assert not is_expired(kept(1, 1)[0], NOW)


def offsets(since: str | None, limit: int, reverse: bool = False, first: int = 4, last: int = 9) -> tuple[bool, list[int], int]:
    position = None if since is None else Position.parse(since)
    found = page("E", last, kept(first, last), position, limit, reverse, NOW)
    assert (found.position, found.first) == (Position("E", last), first)
    return found.recovered, [one.offset for one in found.messages], 0 if found.next is None else found.next.offset


@pytest.mark.parametrize(
    ("since", "limit", "found"),
    [
        (None, 100, (True, [4, 5, 6, 7, 8, 9], 0)),
        (None, 2, (True, [4, 5], 5)),
        ("E:5", 2, (True, [6, 7], 7)),
        ("E:7", 2, (True, [8, 9], 0)),
        ("E:9", 2, (True, [], 0)),
        ("E:3", 1, (True, [4], 4)),
        ("E:2", 2, (False, [4, 5], 5)),
        ("F:7", 2, (False, [4, 5], 5)),
        ("E:10", 2, (False, [4, 5], 5)),
    ],
)
def test_a_page_begins_after_a_position(since, limit, found):
    assert offsets(since, limit) == found


@pytest.mark.parametrize(
    ("since", "limit", "found"),
    [
        (None, 100, (True, [9, 8, 7, 6, 5, 4], 0)),
        (None, 2, (True, [9, 8], 8)),
        ("E:8", 2, (True, [7, 6], 6)),
        ("E:5", 2, (True, [4], 0)),
        ("E:4", 2, (True, [], 0)),
        ("E:10", 2, (True, [9, 8], 8)),
        ("F:7", 2, (False, [9, 8], 8)),
        ("E:11", 2, (False, [9, 8], 8)),
    ],
)
def test_a_page_in_reverse_ends_before_a_position(since, limit, found):
    assert offsets(since, limit, reverse=True) == found


@pytest.mark.parametrize("reverse", [False, True])
def test_a_channel_without_messages_has_an_empty_page(reverse):
    found = page("E", 0, (), None, 10, reverse, NOW)
    assert (found.position, found.first, found.messages, found.next) == (Position("E", 0), 1, (), None)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_a_loop_over_pages_lists_every_message_once(limit, reverse):
    found: list[int] = []
    since: Position | None = None
    while True:
        part = page("E", 9, kept(4, 9), since, limit, reverse, NOW)
        found += [one.offset for one in part.messages]
        since = part.next
        if since is None:
            break
    assert found == (list(range(9, 3, -1)) if reverse else list(range(4, 10)))


def test_expired_messages_are_not_listed_and_the_next_page_goes_on_after_them():
    messages = (*kept(1, 2, expires=NOW), *kept(3, 4))
    found = page("E", 4, messages, None, 2, False, NOW)
    assert (found.messages, found.next) == ((), Position("E", 2))
