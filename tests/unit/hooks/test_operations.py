"""Redriven dead letters join the queues of their endpoints slowly and in order, and are saved when the process stops."""

import asyncio
import json
from pathlib import Path

import pytest

from push1st.config.model import HooksConfig, Webhook
from push1st.errors import Refused
from push1st.hooks import Redrive, operations
from push1st.hooks.deadletters import DEAD_LETTERS
from push1st.hooks.letters import LetterPage
from tests.support.hook_board import Board
from tests.support.loop import turns
from tests.support.node import APP, app_config

A = Webhook(url="http://a/")
B = Webhook(url="http://b/?key=secret")


def board(folder: Path, *webhooks: Webhook) -> Board:
    return Board(*webhooks, config=HooksConfig(folder=str(folder)))


async def with_letters(folder: Path, *channels: str, url: str = "http://a/") -> None:
    """Writes a dead letter for each channel, as a process whose endpoint failed for too long."""
    one = board(folder, A, B)
    endpoint = next(each for each in one.board._of(APP) if each.wanted.target.url == url)
    for channel in channels:
        endpoint._lose("expired", [json.dumps({"name": "channel_occupied", "channel": channel}).encode()], 0)
    await one.board.close(0)


async def page(one: Board, hook: str = "") -> LetterPage:
    return await one.board.operations.letters(APP, hook, "", 100)


async def ids(one: Board) -> list[str]:
    """Returns the ids of the letters, the oldest first."""
    return [letter.id for letter in (await page(one)).letters][::-1]


def channels(one: Board, url: str = "http://a/") -> list[str]:
    return [event["channel"] for _, body in one.at[url].told for event in json.loads(body)["events"]]


async def until_sent(one: Board, count: int, url: str = "http://a/") -> None:
    async with asyncio.timeout(10):
        while url not in one.at or len(one.at[url].names) < count:  # noqa: ASYNC110 - the endpoint sets no event
            await asyncio.sleep(0.01)


async def test_redriven_letters_are_sent_in_their_order(tmp_path: Path) -> None:
    await with_letters(tmp_path, "c1", "c2", "c3")
    one = board(tmp_path, A)
    assert await one.board.operations.redrive(APP, "", (await ids(one))[::-1]) == Redrive(3, {})
    await until_sent(one, 3)
    assert channels(one) == ["c1", "c2", "c3"]
    assert await one.board.operations.redrive(APP, "", await ids(one)) == Redrive(0, {"already redriven": 3})
    await one.board.close(0)


async def test_redriven_events_follow_the_events_that_wait(tmp_path: Path) -> None:
    await with_letters(tmp_path, "c")
    one = board(tmp_path, A)
    one.hang()
    future = one.at["http://a/"].future
    one.on_event("cache-missed", "counted")
    await turns()
    await one.board.operations.redrive(APP, "", await ids(one))
    assert future is not None
    future.set_result(None)
    await until_sent(one, 3)
    names = one.at["http://a/"].names
    assert names == ["cache_miss", "subscription_count", "channel_occupied"]
    await one.board.close(0)


async def test_redrive_is_an_attempt_for_the_events_that_wait(tmp_path: Path) -> None:
    """The letter waits for an event of its channel, which waits for its retry."""
    await with_letters(tmp_path, "c")
    one = board(tmp_path, A)
    one.fail()
    one.on_event("cache-missed")
    one.on_event("cache-missed", channel="d")
    await until_sent(one, 2)
    (details,) = one.board.operations.details(APP)
    assert (details.failing, details.tried_at) == (True, one.clock.wall() / 1_000_000_000)
    one.at["http://a/"].fails = False
    await one.board.operations.redrive(APP, "", await ids(one))
    await turns(20)
    assert channels(one)[2:] in (["c", "d", "c"], ["d", "c", "c"])
    (details,) = one.board.operations.details(APP)
    assert (details.failing, details.status.queued) == (False, 0)
    await one.board.close(0)


async def test_letters_join_the_queues_slowly(tmp_path: Path) -> None:
    await with_letters(tmp_path, *(f"c{number}" for number in range(25)))
    one = board(tmp_path, A)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await one.board.operations.redrive(APP, "", await ids(one))
    assert one.events["queued"] == operations.REDRIVEN_A_STEP
    await until_sent(one, 25)
    assert loop.time() - began >= 2 * operations.STEP_SECONDS
    await one.board.close(0)


async def test_a_stopping_process_saves_redriven_letters(tmp_path: Path) -> None:
    await with_letters(tmp_path, *(f"c{number}" for number in range(25)))
    one = board(tmp_path, A)
    one.fail()
    assert (await one.board.operations.redrive(APP, "", await ids(one))).queued == 25
    await one.board.close(0)
    two = board(tmp_path, A)
    two.board.open(two.board.on_event)
    assert two.status.queued == 25
    with pytest.raises(Refused, match="stops"):
        await one.board.operations.redrive(APP, "", await ids(two))
    await two.board.close(0)


async def test_letters_that_fail_again_become_new_letters(tmp_path: Path) -> None:
    await with_letters(tmp_path, "c")
    one = board(tmp_path, A)
    one.fail()
    (id,) = await ids(one)
    await one.board.operations.redrive(APP, "", [id])
    await until_sent(one, 1)
    (endpoint,) = one.board._of(APP)
    endpoint.give_up()
    assert one.board._store is not None
    while one.board._store._writing is not None:  # noqa: ASYNC110 - a thread writes
        await asyncio.sleep(0)
    letters = (await page(one)).letters
    assert [(letter.id == id, letter.redriven is None) for letter in letters] == [(False, True), (True, False)]
    await one.board.close(0)


def times(one: Board) -> list[int]:
    return [json.loads(body)["time_ms"] for _, body in one.at[A.url].told]


async def test_redriven_events_keep_the_time_of_their_first_attempt(tmp_path: Path) -> None:
    """They keep it in a second failure, over a stop, and in a full queue."""
    one = board(tmp_path, A)
    one.fail()
    one.on_event("occupied")
    await until_sent(one, 1)
    (original,) = times(one)
    one.clock.advance(400)
    (endpoint,) = one.board._of(APP)
    endpoint.wake()
    await until_sent(one, 2)
    assert one.events["expired"] == 1
    await one.board.close(0)

    for _ in range(2):
        one = board(tmp_path, A)
        one.clock.advance(1000)
        one.fail()
        (letter,) = [letter for letter in (await page(one)).letters if letter.redriven is None]
        assert (letter.dead.time_ms, letter.dead.error) == (original, "answered 500")
        await one.board.operations.redrive(APP, "", [letter.id])
        await until_sent(one, 1)
        one.clock.advance(400)
        one.board._of(APP)[0].wake()
        await until_sent(one, 2)
        assert times(one) == [original] * 2
        await one.board.close(0)

    one = Board(A, config=HooksConfig(folder=str(tmp_path), events=1))
    one.hang()
    (id,) = [letter.id for letter in (await page(one)).letters if letter.redriven is None]
    await one.board.operations.redrive(APP, "", [id])
    await one.board.close(0)
    one = Board(A, config=HooksConfig(folder=str(tmp_path), events=1))
    one.clock.advance(5000)
    one.board.open(one.board.on_event)
    await until_sent(one, 1)
    assert times(one) == [original]
    await one.board.close(0)


async def test_redriven_events_that_a_full_queue_drops_keep_their_time(tmp_path: Path) -> None:
    config = HooksConfig(folder=str(tmp_path), events=3)
    one = Board(A, config=config)
    one.hang()
    one.clock.advance(1000)
    (endpoint,) = one.board._of(APP)
    for number in range(3):
        endpoint.put("c", b'{"name":"channel_occupied","channel":"c","n":%d}' % number, operations.SOURCE, number + 1)
    endpoint.put("d", b'{"name":"channel_occupied","channel":"d"}', "1.1")
    endpoint.put("c", b'{"name":"channel_occupied","channel":"c","n":3}', operations.SOURCE, 4)
    await one.board.close(0)
    two = Board(A, config=config)
    letters = (await page(two)).letters
    assert [(letter.dead.time_ms, letter.dead.reason) for letter in letters] == [(4, "overflowed"), (3, "overflowed")]
    await two.board.close(0)


async def test_events_that_a_full_queue_dropped_are_redriven_in_the_order_in_which_they_occurred(tmp_path: Path) -> None:
    """The queue drops the newest event of a connection first."""
    one = Board(A, config=HooksConfig(folder=str(tmp_path), events=4))
    one.hang()
    (endpoint,) = one.board._of(APP)
    for number in range(4):
        endpoint.put("c", b'{"name":"channel_occupied","channel":"c","n":%d}' % number, "1.1")
        one.clock.advance(1)
    for name in "de":
        endpoint.put(name, b'{"name":"channel_occupied","channel":"d"}', f"2.{name}")
    await one.board.close(0)
    two = board(tmp_path, A)
    two.clock.advance(100)
    assert [json.loads(bytes(letter.dead.events[0]))["n"] for letter in (await page(two)).letters] == [2, 3]
    await two.board.operations.redrive(APP, "", await ids(two))
    await until_sent(two, 2)
    assert [json.loads(body)["events"][0]["n"] for _, body in two.at[A.url].told] == [2, 3]
    first, second = times(two)
    assert second == first + 1000
    await two.board.close(0)


async def test_letters_belong_to_their_endpoint(tmp_path: Path) -> None:
    await with_letters(tmp_path, "c1")
    await with_letters(tmp_path, "c2", url=B.url)
    one = board(tmp_path, A, B)
    first, second = one.board.operations.details(APP)
    assert [letter.hook for letter in (await page(one)).letters] == [second.hook, first.hook]
    assert [letter.dead.endpoint for letter in (await page(one, second.hook)).letters] == ["http://b/?…"]
    all_ids = await ids(one)
    assert await one.board.operations.redrive(APP, first.hook, all_ids) == Redrive(1, {"unknown": 1})
    assert await one.board.operations.redrive("other", "", all_ids) == Redrive(0, {"already redriven": 1, "unknown": 1})
    await one.board.close(0)


async def test_letters_of_a_removed_endpoint_are_shown_and_not_redriven(tmp_path: Path) -> None:
    await with_letters(tmp_path, "c")
    one = board(tmp_path, B)
    assert [letter.hook for letter in (await page(one)).letters] == [""]
    assert await one.board.operations.redrive(APP, "", await ids(one)) == Redrive(0, {"endpoint gone": 1})
    await one.board.close(0)
    two = board(tmp_path, A)
    assert (await two.board.operations.redrive(APP, "", await ids(two))).queued == 1
    await two.board.close(0)


async def test_letters_of_earlier_versions_are_redriven(tmp_path: Path) -> None:
    event = {"name": "channel_occupied", "channel": "c"}
    named = {"at": 1.0, "app": APP, "endpoint": "http://a/", "reason": "expired", "events": [event]}
    one = board(tmp_path, A)
    (details,) = one.board.operations.details(APP)
    gone = named | {"app": "", "endpoint": details.hook, "reason": "endpoint-gone"}
    (tmp_path / DEAD_LETTERS).write_text("".join(json.dumps(letter) + "\n" for letter in (named, gone)))
    assert await one.board.operations.redrive(APP, "", await ids(one)) == Redrive(2, {})
    await until_sent(one, 2)
    await one.board.close(0)


async def test_details_show_what_waits(tmp_path: Path) -> None:
    one = board(tmp_path, A)
    (details,) = one.board.operations.details(APP)
    assert (details.oldest, details.next_try, details.last_status) == (None, None, None)
    one.fail()
    one.on_event("occupied")
    await turns(20)
    one.clock.advance(0.5)
    (details,) = one.board.operations.details(APP)
    assert details.oldest == pytest.approx(0.5)
    assert details.next_try is not None
    assert 0.3 < details.next_try <= 0.5
    assert (details.status.last_error, details.last_status) == ("answered 500", 500)
    await one.board.close(0)


async def test_without_a_folder_there_are_no_letters() -> None:
    one = Board(A)
    assert (one.board.operations.folder, await page(one)) == ("", LetterPage((), "", 0))
    with pytest.raises(Refused, match=r"without hooks\.folder"):
        await one.board.operations.redrive(APP, "", ["1"])
    await one.board.close(0)


async def test_removed_endpoints_are_listed_while_their_events_wait(tmp_path: Path) -> None:
    one = board(tmp_path, A, B)
    one.hang()
    one.on_event("cache-missed")
    await turns()
    one.board.configure(app_config(webhooks=(B,)))
    kept, removed = one.board.operations.details(APP)
    assert (kept.status.endpoint, kept.removed, removed.removed) == ("http://b/?…", False, True)
    assert (removed.status.endpoint, removed.status.queued) == ("http://a/", 1)
    future = one.at["http://a/"].future
    assert future is not None
    future.set_result(None)
    await turns(10)
    assert [each.removed for each in one.board.operations.details(APP)] == [False]
    await one.board.close(0)
