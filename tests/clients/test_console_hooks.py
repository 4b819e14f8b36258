"""Hooks and dead letters in the console: a real endpoint fails, and gets its events once it works again."""

import json
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.console import Operator, console
from tests.support.process import APP, ServerProcess, merged, wait_until
from tests.support.pusher_socket import pusher_socket
from tests.support.receiver import Receiver, receiving

QUEUE = 20
CONFIG = {"hooks": {"folder": "hooks", "events": QUEUE}, "server": {"drain": 0}}
LETTERS = "/api/apps/app-test/dead-letters"


def apps(receiver: Receiver, *more: dict[str, Any]) -> dict[str, Any]:
    hook = {"url": receiver.url + "?password=canary-secret", "events": ["channel_occupied"], "concurrency": 1}
    return {"app-test": merged(APP, {"webhooks": [hook, *more]}), "other": {**APP, "key": "another-key"}}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as one:
        yield one


def occupy(server: ServerProcess, *names: str) -> None:
    with pusher_socket(server) as socket:
        for name in names:
            socket.subscribe(name)


def letters(operator: Operator, path: str = LETTERS) -> dict[str, Any]:
    answer = operator.get(path)
    assert answer.status == 200, answer
    found: dict[str, Any] = answer.json
    return found


def all_letters(operator: Operator, limit: int) -> list[dict[str, Any]]:
    """Returns the letters of all pages."""
    found: list[dict[str, Any]] = []
    after = ""
    while True:
        page = letters(operator, f"{LETTERS}?limit={limit}&after={after}")
        found += page["letters"]
        if page["next"] is None:
            return found
        after = page["next"]


def redrive(operator: Operator, *ids: str, endpoint: str = "") -> dict[str, Any]:
    answer = operator.post(f"{LETTERS}/redrive", {"endpoint": endpoint, "ids": ids})
    assert answer.status == 200, answer
    found: dict[str, Any] = answer.json
    return found


def fail(server: ServerProcess, receiver: Receiver, operator: Operator, count: int, prefix: str = "c") -> list[dict[str, Any]]:
    """Stalls the endpoint until `count` events more than its queue holds are dead letters; returns these letters."""
    receiver.act = lambda _: "stall"
    occupy(server, *(f"{prefix}{number:03d}" for number in range(QUEUE + count)))
    wait_until(lambda: len(all_letters(operator, 200)) >= count, f"{count} dead letters")
    return all_letters(operator, 200)


def channels(receiver: Receiver) -> list[str]:
    return [event["channel"] for event in receiver.events]


def test_letters_are_shown_and_redriven_once_the_endpoint_works(receiver: Receiver) -> None:
    with console(CONFIG, apps(receiver)) as (server, operator):
        operator.sign_in()
        assert letters(operator)["letters"] == []
        fail(server, receiver, operator, 15)
        (hook,) = operator.get("/api/apps/app-test/hooks").json["hooks"]
        assert (hook["queued"], hook["failed"], hook["format"]) == (QUEUE, 15, "pusher")
        assert hook["oldest_seconds"] > 0
        assert hook["endpoint"].endswith("/hook?…")

        found = all_letters(operator, 4)
        assert [letter["events"][0]["channel"] for letter in found] == [f"c{number:03d}" for number in range(34, 19, -1)]
        first = found[0]
        assert (first["reason"], first["event"], first["event_count"]) == ("overflowed", "channel_occupied", 1)
        assert json.loads(first["data"]) == {"name": "channel_occupied", "channel": "c034"}
        assert (first["hook"], first["redrivable"], first["redriven"]) == (hook["hook"], True, None)
        assert len(letters(operator, f"{LETTERS}?endpoint={hook['hook']}")["letters"]) == 15
        assert letters(operator, f"{LETTERS}?endpoint={'0' * 32}")["letters"] == []
        assert operator.get("/api/apps/other/dead-letters").json["letters"] == []

        receiver.act = lambda _: 200
        receiver._end.set()
        chosen = [letter["id"] for letter in found]
        assert redrive(operator, *chosen, "unknown", "x.y", endpoint=hook["hook"]) == {
            "queued": 15,
            "refused": 2,
            "refusals": {"unknown": 2},
            "unanswered": 0,
        }
        wait_until(lambda: len(receiver.events) >= QUEUE + 15, "all events")
        redriven = [name for name in channels(receiver) if name >= "c020"]
        assert redriven == [f"c{number:03d}" for number in range(20, 35)], "in the order they had"
        assert redrive(operator, *chosen)["refusals"] == {"already redriven": 15}
        assert {letter["redriven"]["result"] for letter in all_letters(operator, 200)} == {"queued"}
        wait_until(lambda: operator.get("/api/apps/app-test/hooks").json["hooks"][0]["queued"] == 0, "an empty queue")
        assert len(receiver.events) == len(set(channels(receiver)))
        lines = (server.folder / "hooks" / "dead-letters.jsonl").read_text().splitlines()
        assert len(lines) == 16
        wait_until(lambda: "console action" in server.output, "the log line of the action")
        assert "action=redrive" in server.output
        assert "canary-secret" not in server.output + operator.get("/api/apps/app-test/hooks").body.decode()


def test_events_that_wait_are_sent_when_the_endpoint_accepts_one_or_a_redrive_tries_it(receiver: Receiver) -> None:
    """The retries of both endpoints would follow seconds later."""
    quick = {"url": receiver.url + "/quick", "events": ["channel_occupied"]}
    redriven = {"url": receiver.url + "/redriven", "events": ["channel_occupied"], "filter": ["old"]}
    with console(CONFIG, {"app-test": merged(APP, {"webhooks": [quick, redriven]})}) as (server, operator):
        operator.sign_in()
        event = {"name": "channel_occupied", "channel": "letter"}
        letter = {"at": 1.0, "app": "app-test", "endpoint": redriven["url"], "reason": "expired", "events": [event]}
        (server.folder / "hooks" / "dead-letters.jsonl").write_text(json.dumps(letter) + "\n")

        def states() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = operator.get("/api/apps/app-test/hooks").json["hooks"]
            return found

        def accepted(path: str) -> list[str]:
            return sorted(got.events[0]["channel"] for got in list(receiver.accepted) if got.path.endswith(path))

        assert [(one["failing"], one["retrying"]) for one in states()] == [(False, 0)] * 2
        receiver.act = lambda _: 500
        occupy(server, "old1", "old2")
        wait_until(lambda: all((one["next_try_in"] or 0) > 3 for one in states()), "retries that wait for seconds")
        assert [(one["failing"], one["retrying"]) for one in states()] == [(True, 2)] * 2
        now = time.monotonic()
        receiver.act = lambda _: 200
        occupy(server, "new")
        wait_until(lambda: accepted("/quick") == ["new", "old1", "old2"], "the events of the first endpoint")
        assert redrive(operator, letters(operator)["letters"][0]["id"])["queued"] == 1
        wait_until(lambda: accepted("/redriven") == ["letter", "old1", "old2"], "the events of the second endpoint")
        assert time.monotonic() - now < 3, "before their time"
        wait_until(
            lambda: [(one["failing"], one["queued"]) for one in states()] == [(False, 0)] * 2, "endpoints that accept events"
        )


def test_redrive_that_fails_again_makes_letters_with_the_original_time(receiver: Receiver) -> None:
    """New events displace the redriven ones, which wait for an endpoint that still fails."""
    with console(CONFIG, apps(receiver)) as (server, operator):
        operator.sign_in()
        lines = [
            {
                "at": 2000.0 + number,
                "app": "app-test",
                "endpoint": receiver.url + "?…",
                "reason": "expired",
                "events": [{"name": "channel_occupied", "channel": f"old{number}"}],
                "time_ms": 1_000_000 + number,
            }
            for number in range(10)
        ]
        (server.folder / "hooks" / "dead-letters.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        receiver.act = lambda _: 500
        assert redrive(operator, *(letter["id"] for letter in letters(operator)["letters"]))["queued"] == 10
        receiver.until(1)

        def again() -> list[dict[str, Any]]:
            found = all_letters(operator, 200)
            return [one for one in found if one["redrivable"] and one["events"][0]["channel"].startswith("old")]

        for number in range(QUEUE // 2):
            occupy(server, f"new{number}a", f"new{number}b")
        wait_until(again, "redriven letters that failed again")
        (first, *_) = again()
        assert (first["reason"], first["error"]) == ("overflowed", "answered 500")
        assert first["state"] == "channel_occupied"
        assert first["time_ms"] == 1_000_000 + int(first["events"][0]["channel"].removeprefix("old"))
        assert sum(one["redriven"] is not None for one in all_letters(operator, 200)) == 10

        receiver.act = lambda _: 200
        chosen = [letter["id"] for letter in again()]
        assert redrive(operator, *chosen)["queued"] == len(chosen)
        wait_until(lambda: {f"old{number}" for number in range(10)} <= {*channels(receiver)}, "all redriven events")
        assert redrive(operator, *chosen)["refusals"] == {"already redriven": len(chosen)}
        wait_until(lambda: operator.get("/api/apps/app-test/hooks").json["hooks"][0]["queued"] == 0, "an empty queue")
        assert len(channels(receiver)) == len(set(channels(receiver)))
        old = {got.events[0]["channel"]: got.json["time_ms"] for got in receiver.accepted if got.json["time_ms"] < 2_000_000}
        assert old == {f"old{number}": 1_000_000 + number for number in range(10)}


def test_backend_that_compares_time_ms_keeps_the_newest_state(receiver: Receiver) -> None:
    """The queue drops `channel_occupied`; its redrive arrives after `channel_vacated`."""
    hook = {"url": receiver.url, "events": ["channel_occupied", "channel_vacated"], "concurrency": 1}
    config = merged(CONFIG, {"hooks": {"events": 2}})
    with console(config, {"app-test": merged(APP, {"webhooks": [hook]})}) as (server, operator):
        operator.sign_in()
        receiver.act = lambda _: "stall"
        with pusher_socket(server) as stays:
            stays.subscribe("one")
            stays.subscribe("two")
            with pusher_socket(server) as goes:
                goes.subscribe("orders")
                wait_until(lambda: letters(operator)["letters"], "a dead letter")
                receiver.act = lambda _: 200
                receiver._end.set()
                wait_until(lambda: channels(receiver) == ["one", "two"], "the events that waited")
            wait_until(lambda: channels(receiver).count("orders") == 1, "the event of the vacated channel")
        (letter,) = letters(operator)["letters"]
        assert redrive(operator, letter["id"])["queued"] == 1
        wait_until(lambda: channels(receiver).count("orders") == 2, "the redriven event")
        known: dict[str, tuple[int, str]] = {}
        for got in list(receiver.accepted):
            for event in got.events:
                if got.json["time_ms"] >= known.get(event["channel"], (0, ""))[0]:
                    known[event["channel"]] = got.json["time_ms"], event["name"]
        assert known["orders"][1] == "channel_vacated"
        last = receiver.accepted[-1]
        assert (last.events[0]["name"], last.json["time_ms"]) == ("channel_occupied", letter["time_ms"])


def test_removed_endpoint_is_shown_while_its_events_wait(receiver: Receiver) -> None:
    with console(CONFIG, apps(receiver)) as (server, operator):
        operator.sign_in()
        receiver.act = lambda _: "stall"
        occupy(server, "c1", "c2")

        def states() -> list[tuple[bool, int]]:
            return [(one["removed"], one["queued"]) for one in operator.get("/api/apps/app-test/hooks").json["hooks"]]

        wait_until(lambda: states() == [(False, 2)], "two events that wait")
        (server.folder / "apps" / "apps.yml").write_text(json.dumps({"app-test": APP}))
        server.signal(signal.SIGHUP)
        wait_until(lambda: states() == [(True, 2)], "the removed endpoint with its events")
        receiver.act = lambda _: 200
        receiver._end.set()
        wait_until(lambda: states() == [], "no endpoint, because its events are delivered")
        assert sorted(channels(receiver)) == ["c1", "c2"]


def test_letters_are_redriven_at_most_once_over_a_kill(receiver: Receiver) -> None:
    with console(CONFIG, apps(receiver)) as (server, operator):
        operator.sign_in()
        chosen = [letter["id"] for letter in fail(server, receiver, operator, 60)]
        assert redrive(operator, *chosen[:30])["queued"] == 30
        assert server.process is not None
        server.process.kill()
        server.wait()
        receiver.act = lambda _: 200
        receiver._end.set()
        server.start()
        operator.sign_in()
        assert redrive(operator, *chosen) == {
            "queued": 30,
            "refused": 30,
            "refusals": {"already redriven": 30},
            "unanswered": 0,
        }
        wait_until(lambda: len(receiver.events) >= 30, "the other letters")
        assert redrive(operator, *chosen)["queued"] == 0
        wait_until(lambda: operator.get("/api/apps/app-test/hooks").json["hooks"][0]["queued"] == 0, "an empty queue")
        assert max(Counter(channels(receiver)).values()) == 1


def test_redriven_letters_are_sent_after_a_stop_in_between(receiver: Receiver) -> None:
    with console({**CONFIG, "hooks": {"folder": "hooks", "events": 100}}, apps(receiver)) as (server, operator):
        operator.sign_in()
        event = {"name": "channel_occupied", "channel": "c"}
        lines = [
            {
                "at": float(number),
                "app": "app-test",
                "endpoint": receiver.url + "?…",
                "reason": "expired",
                "events": [event | {"n": number}],
            }
            for number in range(50)
        ]
        (server.folder / "hooks" / "dead-letters.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        receiver.act = lambda _: 500
        chosen = [letter["id"] for letter in letters(operator)["letters"]]
        assert redrive(operator, *chosen)["queued"] == 50
        server.signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in server.output, "the stop")
        server.signal(signal.SIGTERM)
        server.wait()
        receiver.act = lambda _: 200
        server.start()
        wait_until(lambda: len(receiver.events) >= 50, "all letters")
        assert [event["n"] for event in receiver.events] == [*range(50)]


def test_folder_that_cannot_be_read_is_named(receiver: Receiver) -> None:
    with console(CONFIG, apps(receiver)) as (server, operator):
        operator.sign_in()
        (server.folder / "hooks" / "dead-letters.jsonl").mkdir()
        answer = operator.get(LETTERS)
        assert (answer.status, answer.json) == (503, {"error": "the folder of hooks cannot be read: Is a directory"})
        shutil.rmtree(server.folder / "hooks")
        assert operator.get("/api/apps/app-test/hooks").json["folder"], "its name does not need the disk"
        assert operator.get(LETTERS).json["letters"] == []


def test_wrong_calls_are_refused(receiver: Receiver) -> None:
    with console({"server": {"drain": 0}}, apps(receiver)) as (_, operator):
        operator.sign_in()
        assert letters(operator) == {
            "letters": [],
            "next": None,
            "complete": True,
            "examined": 0,
            "folder": False,
            "missing": [],
            "failed": [],
            "away": "",
        }
        path = f"{LETTERS}/redrive"
        for body in (b"", b"[]", {"ids": "x"}, {"endpoint": "x"}, {"ids": [1]}, {"ids": ["x"] * 1001}):
            assert operator.post(path, body).status == 400, body
        assert redrive(operator, "0123abcd.1-2-3") == {
            "queued": 0,
            "refused": 1,
            "refusals": {"unknown": 1},
            "unanswered": 0,
        }
        for after in ("x", "!", "gaFhAQ"):
            assert operator.get(f"{LETTERS}?after={after}").status == 400, after
        assert operator.get("/api/apps/nothing/dead-letters").status == 404
        assert operator.get("/api/apps/nothing/hooks").status == 404
