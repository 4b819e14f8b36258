"""Dead letters on a server with several workers: each letter is redriven once, whichever worker gets the calls."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from tests.cluster.machine import until_workers
from tests.support.console import Operator, console
from tests.support.process import APP, merged, wait_until
from tests.support.receiver import receiving

LETTERS = "/api/apps/app-test/dead-letters"
COUNT = 120


def test_letters_are_redriven_once_by_several_operators_and_workers() -> None:
    with receiving() as receiver:
        app = merged(APP, {"webhooks": [{"url": receiver.url, "batch": 10}]})
        config = {"server": {"workers": 2, "drain": 0}, "hooks": {"folder": "hooks"}}
        with console(config, {"app-test": app}) as (server, operator):
            until_workers(server, 2)
            lines = [
                {
                    "at": float(number),
                    "app": "app-test",
                    "endpoint": receiver.url,
                    "reason": "expired",
                    "events": [{"name": "channel_occupied", "channel": "c", "number": number}],
                }
                for number in range(COUNT)
            ]
            (server.folder / "hooks" / "dead-letters.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            operator.sign_in()
            operators = [Operator(operator.port) for _ in range(6)]
            for one in operators:
                one.cookie = operator.cookie
            page = operator.get(f"{LETTERS}?limit=200").json
            assert (len(page["letters"]), page["missing"], page["next"]) == (COUNT, [], None)
            chosen = [letter["id"] for letter in page["letters"]]
            assert {letter["id"] for one in operators for letter in one.get(f"{LETTERS}?limit=200").json["letters"]} == {*chosen}
            (hook,) = operator.get("/api/apps/app-test/hooks").json["hooks"]
            assert (hook["endpoint"], hook["queued"]) == (receiver.url, 0)

            def redrive(one: Operator) -> int:
                answer = one.post(f"{LETTERS}/redrive", {"ids": chosen})
                assert answer.status == 200, answer
                queued: int = answer.json["queued"]
                assert queued + answer.json["refused"] == COUNT
                return queued

            with ThreadPoolExecutor() as threads:
                assert sum(threads.map(redrive, operators)) == COUNT
            wait_until(lambda: len(receiver.events) >= COUNT, "all letters")
            numbers = [event["number"] for event in receiver.events]
            assert max(Counter(numbers).values()) == 1
            assert numbers == [*range(COUNT)], "one worker redrives the letters of a machine, in their order"
