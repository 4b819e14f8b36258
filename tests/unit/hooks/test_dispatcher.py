"""The dispatcher: the endpoints of each hook event, the events that it saves at a stop, and its counters."""

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from push1st.config.model import Hook, HooksConfig, Webhook
from push1st.hooks import Attempt, Decision, Target
from push1st.hooks.events import Question
from push1st.hooks.letters import Dead
from push1st.hooks.store import Store
from push1st.messages import HOLD_SECONDS, HookEvent, Phase
from tests.support.hook_board import Board, HookEndpoint
from tests.support.loop import turns
from tests.support.node import APP, app_config

A = Webhook(url="http://a/")


async def test_hook_event_is_queued_for_each_endpoint_that_selects_it():
    board = Board(A, Webhook(url="http://b/", events=("cache_miss",)), Webhook(url="http://c/", filter=("d",)))
    board.on_event("occupied")
    await turns()
    assert {url: endpoint.names for url, endpoint in board.at.items()} == {"http://a/": ["channel_occupied"]}


async def test_hook_events_of_unknown_apps_and_of_users_are_dropped():
    board = Board(A)
    board.on_event("occupied", app="other")
    board.on_event("occupied", channel="#server-to-user-7")
    await turns()
    assert board.at == {}


async def test_push1st_hooks_get_edges_at_once_and_webhooks_after_debouncing():
    board = Board(A, hook=Hook(trigger=frozenset(("register", "unregister")), endpoint=("http://p/",)))
    board.on_event("occupied", "vacated", "occupied")
    await turns(20)
    assert [json.loads(body)["event"] for _, body in board.at["http://p/"].told] == ["register", "unregister", "register"]
    assert board.at["http://a/"].names == ["channel_occupied"]


async def test_held_edge_is_sent_with_the_next_hook_event_after_its_time():
    board = Board(A)
    board.on_event("occupied", "vacated")
    board.clock.advance(HOLD_SECONDS)
    board.on_event("cache-missed", channel="c")
    await turns(20)
    assert board.at["http://a/"].names == ["channel_occupied", "channel_vacated", "cache_miss"]
    await board.board.close(0)


async def test_subscription_counts_do_not_displace_other_events(tmp_path: Path):
    """A client that subscribes to many channels causes a subscription count on each."""
    board = Board(A, config=HooksConfig(events=100, folder=str(tmp_path)))
    board.hang()
    for number in range(300):
        board.on_event("counted", channel=f"c{number}")
    await turns(10)
    board.board.on_event(HookEvent("occupied", APP, "d", 1, socket_id="1.1"))
    await turns(10)
    assert (board.status.queued, board.events["queued"], board.events["overflowed"]) == (100, 101, 201)
    await board.board.close(0)
    assert any(b'"channel_occupied"' in bytes(event) for line in Store(str(tmp_path)).saved() for event in line.events)


async def test_saved_events_of_one_connection_do_not_displace_other_events_after_a_start(tmp_path: Path):
    config = HooksConfig(events=100, folder=str(tmp_path))
    for number in (1, 2):
        board = Board(A, config=config)
        board.hang()
        board.board.open(lambda _: None)
        await turns(10)
        if number == 1:
            for _ in range(200):
                board.board.on_event(HookEvent("client-event", APP, "c", 1, socket_id="1.1", event="client-e", data=b"1"))
        else:
            board.board.on_event(HookEvent("occupied", APP, "d", 1, socket_id="2.2"))
            assert (board.status.queued, board.events["overflowed"]) == (100, 1)
        await board.board.close(0)
    assert any(b'"channel_occupied"' in bytes(event) for line in Store(str(tmp_path)).saved() for event in line.events)


async def test_a_failure_is_counted_shown_and_keeps_the_event():
    board = Board(A)
    board.fail()
    board.on_event("occupied")
    await turns(10)
    assert (board.status.queued, board.status.retrying, board.status.last_error) == (1, 1, "answered 500")
    assert board.status.last_error_at == board.clock.wall() // 1_000_000_000
    assert (board.attempts, board.events) == ({"refused": 1}, {"queued": 1})
    await board.board.close(0)


@pytest.mark.parametrize("folder", ["", "hooks"])
async def test_log_says_whether_events_are_lost_or_dead_letters_and_counts_all_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.setattr("push1st.hooks.endpoint.LOG_SECONDS", 0)
    board = Board(A, config=HooksConfig(events=1, folder=folder and str(tmp_path / folder)))
    board.fail()
    board.on_event("cache-missed", channel="c")
    await turns(10)
    for number in range(3):
        board.on_event("cache-missed", channel=f"c{number}")
    await turns(10)
    lines = [line for line in capsys.readouterr().out.splitlines() if "overflowed" in line]
    assert [("events=1" in line, "events=2" in line) for line in lines] == [(True, False), (False, True)]
    level, text = ("warning", "hook events became dead letters") if folder else ("error", "hook events are lost")
    assert all(level in line and text in line and "last_error='answered 500'" in line for line in lines)
    await board.board.close(0)
    letters = (tmp_path / "hooks" / "dead-letters.jsonl").read_text().splitlines() if folder else []
    assert {json.loads(letter)["error"] for letter in letters} == ({"answered 500"} if folder else set())


async def test_app_of_lost_events_is_remembered_for_ten_minutes():
    board = Board(A)
    assert board.board.lost_app == ""
    board.board.add_dead_letter(Dead(1, "a", "http://a/", "expired", (msgspec.Raw(b"{}"),)))
    board.clock.advance(599)
    assert board.board.lost_app == "a"
    board.clock.advance(1)
    assert board.board.lost_app == ""
    await board.board.close(0)


async def test_request_in_progress_at_a_stop_is_cancelled_and_sent_again_with_its_id(tmp_path: Path):
    config = HooksConfig(folder=str(tmp_path))
    one = Board(A, config=config)
    one.hang()
    one.on_event("occupied")
    one.on_event("cache-missed", "client-event")
    await turns(10)
    await one.board.close(0)
    assert one.at["http://a/"].closed
    two = Board(A, config=config)
    two.numbers = 100
    two.board.open(two.board.on_event)
    await turns(20)
    assert two.at["http://a/"].told[0] == one.at["http://a/"].told[0]
    assert two.at["http://a/"].names == ["channel_occupied", "cache_miss", "client_event"]
    assert os.listdir(tmp_path) == []
    await two.board.close(0)


async def test_saved_events_have_the_time_of_their_first_attempt_or_of_the_stop(tmp_path: Path):
    config = HooksConfig(folder=str(tmp_path))
    one = Board(A, config=config)
    one.hang()
    one.on_event("occupied")
    await turns(10)
    first = one.clock.wall() // 1_000_000
    one.clock.advance(2)
    one.on_event("cache-missed")
    await one.board.close(0)
    two = Board(A, config=config)
    two.clock.advance(50)
    two.board.open(two.board.on_event)
    two.on_event("client-event")
    await turns(20)
    assert two.at["http://a/"].names == ["channel_occupied", "cache_miss", "client_event"]
    times = [json.loads(body)["time_ms"] - first for _, body in two.at["http://a/"].told]
    assert times == [0, 2000, 50_000]
    await two.board.close(0)


async def test_a_batch_that_was_about_to_be_sent_at_a_stop_is_kept_whole(tmp_path: Path):
    config = HooksConfig(folder=str(tmp_path))
    batched = Webhook(url="http://a/", batch=10)
    one = Board(batched, config=config)
    one.on_event("occupied", "client-event", "cache-missed")
    (endpoint,) = one.board._endpoints[APP]
    endpoint._pump()  # like the end of the turn; the task of the delivery would run in the next turn
    await endpoint.stop()
    await one.board.close(0)
    two = Board(batched, config=config)
    two.board.open(two.board.on_event)
    await turns(10)
    assert two.at["http://a/"].names == ["channel_occupied", "client_event", "cache_miss"]
    await two.board.close(0)


async def test_stop_ends_early_when_its_event_is_set():
    board = Board(A)
    board.fail()
    board.on_event("occupied")
    await turns(10)
    enough = asyncio.Event()
    closing = asyncio.ensure_future(board.board.close(60, enough))
    await turns(10)
    assert not closing.done()
    enough.set()
    await turns(20)
    assert closing.done()
    assert board.events == {"queued": 1, "stopped": 1}


async def test_held_edges_are_saved_at_a_stop(tmp_path: Path):
    config = HooksConfig(folder=str(tmp_path))
    one = Board(A, config=config)
    one.on_event("occupied", "vacated")
    one.on_event("occupied", "vacated", channel="d")
    await turns(10)
    await one.board.close(0)
    two = Board(A, config=config)
    two.board.open(two.board.on_event)
    two.on_event("occupied")
    two.clock.advance(HOLD_SECONDS)
    two.on_event("cache-missed", channel="cache-e")
    await turns(20)
    assert sorted(two.at["http://a/"].names) == ["cache_miss", "channel_vacated"]
    await two.board.close(0)


async def test_held_edges_are_sent_at_a_stop_without_a_folder():
    board = Board(A)
    board.on_event("occupied", "vacated")
    await board.board.close(5)
    assert board.at["http://a/"].names == ["channel_occupied", "channel_vacated"]


@pytest.mark.parametrize(
    ("phase", "names", "push1st"),
    [("at-once", [], ["unregister"]), ("settled", ["channel_vacated"], []), ("held", [], [])],
)
async def test_an_edge_of_a_broker_that_debounces_is_sent_to_the_hooks_of_its_phase(
    phase: Phase, names: list[str], push1st: list[str]
):
    board = Board(A, hook=Hook(trigger=frozenset(("unregister",)), endpoint=("http://p/",)))
    board.board.on_event(HookEvent("vacated", APP, "c", 1, phase=phase))
    await turns(10)
    assert [name for url, endpoint in board.at.items() if url == "http://a/" for name in endpoint.names] == names
    assert [json.loads(body)["event"] for url, one in board.at.items() if url == "http://p/" for _, body in one.told] == push1st
    await board.board.close(0)


async def test_an_edge_that_the_broker_held_back_at_the_stop_is_saved_and_reported_by_the_next_process(tmp_path: Path):
    config = HooksConfig(folder=str(tmp_path))
    one = Board(A, config=config)
    one.board.on_event(HookEvent("vacated", APP, "c", 1, phase="held"))
    await one.board.close(0)
    two = Board(A, config=config)
    reported: list[HookEvent] = []
    two.board.open(reported.append)
    assert reported == [HookEvent("vacated", APP, "c", 1, phase="held")]
    await two.board.close(0)


async def test_saved_events_of_a_removed_endpoint_are_counted(tmp_path: Path):
    config = HooksConfig(folder=str(tmp_path))
    one = Board(A, config=config)
    one.fail()
    one.on_event("occupied")
    await turns(10)
    await one.board.close(0)
    two = Board(Webhook(url="http://b/"), config=config)
    two.board.open(two.board.on_event)
    assert two.events == {"endpoint-gone": 1}
    await two.board.close(0)
    letter = json.loads((tmp_path / "dead-letters.jsonl").read_bytes())
    assert (letter["reason"], letter["events"]) == ("endpoint-gone", [{"name": "channel_occupied", "channel": "c"}])


async def test_running_workers_send_events_saved_by_a_replaced_worker(tmp_path: Path):
    config = HooksConfig(folder=str(tmp_path))
    two = Board(A, config=config, load=0)
    two.board.open(lambda _: None)
    one = Board(A, config=config)
    one.fail()
    one.on_event("occupied")
    await turns(10)
    await one.board.close(0)
    await turns(20)
    assert two.at["http://a/"].names == ["channel_occupied"]
    assert two.at["http://a/"].told[0] == one.at["http://a/"].told[0]
    await two.board.close(0)


@contextmanager
def out_of_reach(folder: Path) -> Iterator[None]:
    """The folder is a file, so that no user can read or write in it."""
    aside = folder.with_name("aside")
    folder.rename(aside)
    folder.write_text("")
    yield
    folder.unlink()
    aside.rename(folder)


async def test_loading_is_retried_with_one_log_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "hooks"
    config = HooksConfig(folder=str(folder))
    one = await failed(Board(A, config=config))
    await one.board.close(0)
    two = Board(A, config=config, load=0)
    with out_of_reach(folder):
        two.board.open(two.board.on_event)
        await turns(20)
    await turns(20)
    assert two.at["http://a/"].names == ["channel_occupied"]
    assert os.listdir(folder) == []
    assert capsys.readouterr().out.count("cannot be loaded") == 1
    await two.board.close(0)


async def failed(board: Board) -> Board:
    """Such a worker has an event that its endpoint did not accept."""
    board.fail()
    board.on_event("occupied")
    await turns(10)
    return board


async def test_saving_at_a_stop_is_retried_for_a_moment(tmp_path: Path) -> None:
    folder = tmp_path / "hooks"
    one = await failed(Board(A, config=HooksConfig(folder=str(folder)), retry=0))
    with out_of_reach(folder):
        closing = asyncio.ensure_future(one.board.close(0))
        await turns(20)
        assert not closing.done()
    await closing
    assert len(os.listdir(folder)) == 1
    assert one.events == {"queued": 1}


async def test_events_that_cannot_be_saved_at_a_stop_are_counted_as_lost_and_leave_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "hooks"
    one = await failed(Board(A, config=HooksConfig(folder=str(folder)), save=0))
    with out_of_reach(folder):
        await one.board.close(0)
    assert os.listdir(folder) == []
    assert one.events == {"queued": 1, "stopped": 1}


async def test_events_left_at_a_stop_without_a_folder_are_counted_as_lost():
    board = Board(A)
    board.fail()
    board.on_event("occupied")
    await turns(10)
    await board.board.close(0)
    assert board.events == {"queued": 1, "stopped": 1}


async def test_a_line_that_cannot_be_read_does_not_stop_the_others(tmp_path: Path):
    config = HooksConfig(folder=str(tmp_path))
    one = Board(A, config=config)
    one.fail()
    one.on_event("occupied")
    await turns(10)
    await one.board.close(0)
    (name,) = os.listdir(tmp_path)
    file = tmp_path / name
    assert file.stat().st_mode & 0o777 == 0o600
    fingerprint = json.loads(file.read_bytes())["endpoint"].encode()
    spoilt = (b"{broken", b'{"endpoint":"\xff"}', b'{"events":' + b"[" * 100_000, b'{"endpoint":"%b"}' % fingerprint)
    file.write_bytes(b"\n".join((*spoilt, file.read_bytes())))
    two = Board(A, config=config)
    two.board.open(two.board.on_event)
    await turns(10)
    assert two.at["http://a/"].names == ["channel_occupied"]
    await two.board.close(0)


def test_unusable_folder_is_an_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Board(A, config=HooksConfig(folder=str(tmp_path / "file")))


async def test_events_over_the_bound_are_dropped_and_counted():
    board = Board(A, config=HooksConfig(events=2))
    board.fail()
    for number in range(5):
        board.on_event("occupied", channel=str(number))
    assert (board.status.queued, board.status.failed) == (2, 3)
    assert board.events == {"queued": 2, "overflowed": 3}
    assert board.board.queued() == {APP: 2}
    await board.board.close(0)


async def test_a_changed_app_gets_new_endpoints_and_keeps_the_queue_of_an_unchanged_one():
    board = Board(A, Webhook(url="http://b/"))
    board.hang()
    board.on_event("cache-missed", channel="one")
    await turns()
    unchanged, removed = board.board._endpoints[APP]
    changed = Webhook(url="http://a/", events=("member_added",))
    board.board.configure(app_config(webhooks=(changed, Webhook(url="http://c/"))))
    assert board.board._endpoints[APP][0] is unchanged
    await turns()
    assert board.at["http://b/"].closed, "its queue was empty"
    assert board.board._retired == {}
    board.on_event("cache-missed", channel="two")
    await turns()
    assert board.at["http://c/"].names == ["cache_miss"]
    assert (len(board.at["http://a/"].told), removed.status().sent) == (1, 1)
    assert (unchanged.status().queued, board.board.queued()) == (1, {APP: 1})


async def test_endpoints_that_differ_only_in_their_events_keep_their_queues():
    one, two = Webhook(url="http://a/", events=("cache_miss",)), Webhook(url="http://a/", events=("channel_occupied",))
    board = Board(one, two)
    board.hang()
    board.on_event("cache-missed", channel="one")
    board.on_event("occupied", channel="two")
    await turns()
    for webhooks in ((one, two), (two,)):
        board.board.configure(app_config(webhooks=webhooks))
        await turns()
        assert board.board.queued() == {APP: 2}
    backend = board.at["http://a/"]
    assert backend.future is not None
    backend.future.set_result(None)
    await turns(10)
    assert board.board.queued() == {APP: 0}
    assert board.board._retired == {}


async def test_a_changed_secret_keeps_the_queue_and_signs_the_next_attempt(monkeypatch):
    opened: list[Target] = []
    open_transport = Board._open_transport

    def opening(self: Board, target: Target) -> HookEndpoint:
        opened.append(target)
        return open_transport(self, target)

    monkeypatch.setattr(Board, "_open_transport", opening)
    board = Board(A)
    board.fail()
    board.on_event("cache-missed", channel="one")
    await turns()
    (endpoint,) = board.board._endpoints[APP]
    first = board.at.pop("http://a/")
    board.board.configure(app_config(webhooks=(A,), secret="new"))
    assert board.board._endpoints[APP] == (endpoint,)
    board.clock.advance(3600)
    endpoint.wake()
    await turns()
    assert [target.secret for target in opened] == ["secret", "new"]
    assert [id for id, _ in board.at["http://a/"].told] == [id for id, _ in first.told]
    assert not first.closed, "a delivery may still wait for its answer"
    await board.board.close(0)
    assert first.closed


async def test_edges_pass_again_after_a_time_without_hooks_for_them():
    board = Board(A)
    board.on_event("occupied")
    board.board.configure(app_config())
    board.on_event("vacated")
    board.board.configure(app_config(webhooks=(A,)))
    board.on_event("occupied")
    await turns()
    assert board.at["http://a/"].names == ["channel_occupied"] * 2


async def test_a_removed_endpoint_sends_its_queue_first(tmp_path: Path):
    board = Board(A, config=HooksConfig(folder=str(tmp_path)))
    board.at["http://a/"] = backend = HookEndpoint()
    backend.future = asyncio.get_running_loop().create_future()
    board.on_event("cache-missed", channel="one")
    await turns()
    board.board.configure(app_config())
    await turns()
    assert not backend.closed
    assert board.board.queued() == {APP: 1}
    backend.future.set_result(None)
    await turns(10)
    assert (backend.closed, backend.names, board.board.queued()) == (True, ["cache_miss"], {})


async def test_a_removed_endpoint_saves_its_queue_at_a_stop(tmp_path: Path):
    board = Board(A, config=HooksConfig(folder=str(tmp_path)))
    board.hang()
    board.on_event("cache-missed", channel="one")
    await turns()
    board.board.configure(app_config())
    await turns()
    await board.board.close(0)
    assert len(list(Store(str(tmp_path)).saved())) == 1


async def test_a_disabled_app_sends_no_further_events():
    board = Board(A)
    board.board.configure(app_config(webhooks=(A,), enable=False))
    board.on_event("cache-missed")
    await turns()
    assert board.at == {}


async def test_deliveries_are_measured_and_the_oldest_event_of_an_app_has_an_age():
    board = Board(A)
    board.fail()
    board.on_event("occupied")
    await turns(10)
    board.clock.advance(7)
    assert sum(board.seconds.counts) == 1
    assert board.board.oldest() == {"app-test": 7}
    await board.board.close(0)


async def test_an_app_without_queued_events_has_the_age_0():
    board = Board(A)
    assert board.board.oldest() == {"app-test": 0}
    await board.board.close(0)


async def test_each_attempt_is_shown_while_an_operator_watches() -> None:
    class Tap:
        def __init__(self) -> None:
            self.attempts: list[Attempt] = []

        def attempted(self, attempt: Attempt) -> None:
            self.attempts.append(attempt)

        def asked(self, question: Question, decision: Decision, seconds: float) -> None: ...

    board = Board(A)
    board.fail()
    board.on_event("occupied")
    await turns()
    board.board.tap = tap = Tap()
    board.clock.advance(2)
    board.on_event("occupied", channel="d")
    await turns()
    board.at["http://a/"].fails = False
    board.clock.advance(5)
    board.on_event("occupied", channel="e")
    await turns()
    found = [(one.channels, one.number, one.error) for one in tap.attempts]
    assert found[0] == (("c",), 2, "answered 500")
    assert (("c",), 3, "") in found
    assert {(one.app, one.endpoint, one.events) for one in tap.attempts} == {(APP, "http://a/", 1)}
    assert tap.attempts[0].size == len(board.at["http://a/"].told[0][1])
