"""The inspector of servers with several workers, on two machines."""

import contextlib
import json
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.cluster.machine import connect_to, kill, until_workers, workers
from tests.support.console import LivePage, Operator, console, live
from tests.support.process import DEADLINE, ServerProcess, wait_until
from tests.support.valkey import Valkey

Machine = tuple[ServerProcess, Operator]


@pytest.fixture(scope="module")
def machines() -> Iterator[list[Machine]]:
    """Two servers with two workers each, which share a broker."""
    valkey = Valkey()
    try:
        with contextlib.ExitStack() as stack:
            config = {"broker": valkey.url, "server": {"workers": 2, "drain": 0}, "metrics": {"listen": False}}
            found = [stack.enter_context(console(config)) for _ in range(2)]
            for server, operator in found:
                until_workers(server, 2)
                operator.sign_in()
            for _, operator in found:
                wait_until(partial(knows_all, operator), "four nodes")
            yield found
    finally:
        valkey.close()


def knows_all(operator: Operator) -> bool:
    return len(operator.get("/api/overview").json["nodes"]) == 4


def watch(page: LivePage, **filter: Any) -> None:
    page.send({"watch": "inspector", "filter": filter})
    assert {"events": [], "dropped": {}}.items() <= page.receive().items()


def until_events(page: LivePage, count: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    deadline = time.monotonic() + DEADLINE
    while len(found) < count:
        assert time.monotonic() < deadline, found
        found += page.receive()["events"]
    return found


def test_events_of_all_workers_of_all_machines_are_shown(machines: list[Machine]) -> None:
    with contextlib.ExitStack() as stack, live(machines[0][1]) as page:
        watch(page, what=["subscribed", "published"], channel="news")
        page.send({"watch": "overview", "every": 60})  # its answer shows that all workers have got the watch before
        page.until(lambda message: "overview" in message)
        for server, _ in machines:
            for number in (0, 1):
                connect_to(server, number, stack).subscribe("news")
        machines[1][0].publish("news", "e", 1)
        events = until_events(page, 5)
        assert sorted(event["what"] for event in events) == ["published"] + ["subscribed"] * 4
        assert len({event["worker"] for event in events}) == 4


def test_killed_worker_of_the_operator_leaves_the_others_to_watch(machines: list[Machine]) -> None:
    server, operator = machines[0]
    killed = set(workers(server).values())
    with live(operator) as page:
        watch(page, what=["published"])
        for pid in killed:
            kill(pid)
        assert page.close_code() is None
    until_workers(server, 2)
    wait_until(lambda: not killed & set(workers(server).values()), "new workers")
    with live(operator) as page:
        watch(page, what=["published"], channel="after")

        def is_shown() -> bool:  # the new workers learn of the other machine a moment after they are ready
            machines[1][0].publish("after", "e", 1)
            try:
                return bool(json.loads(page.socket.recv(timeout=0.2))["events"])
            except TimeoutError:
                return False

        assert wait_until(is_shown, "an event of the other machine")
