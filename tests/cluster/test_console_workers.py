"""The console of servers with several workers, on one machine and on two."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.machine import connect_to, kill, reload, until_workers, workers
from tests.support.console import Operator, console, live
from tests.support.process import DEADLINE, ServerProcess, running, wait_until
from tests.support.valkey import Valkey

Machines = list[tuple[ServerProcess, Operator]]


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    found = Valkey()
    yield found
    found.close()


@pytest.fixture(scope="module")
def machines(valkey: Valkey) -> Iterator[Machines]:
    """Two servers with two workers each, which share a broker."""
    with contextlib.ExitStack() as stack:
        found = [
            stack.enter_context(console({"broker": valkey.url, "server": {"workers": 2}, "metrics": {"listen": False}}))
            for _ in range(2)
        ]
        for server, operator in found:
            until_workers(server, 2)
            operator.sign_in()
        yield found


def nodes(operator: Operator, count: int) -> list[dict[str, Any]]:
    """Returns the nodes of the overview, as soon as there are `count`."""

    def complete() -> Any:
        answer = operator.get("/api/overview").json
        return answer["nodes"] if len(answer["nodes"]) == count and not answer["missing"] else None

    found: list[dict[str, Any]] = wait_until(complete, f"{count} nodes")
    return found


def test_overview_and_apps_add_the_workers_of_all_machines(machines: Machines) -> None:
    with contextlib.ExitStack() as stack:
        for server, _ in machines:
            for number in (0, 1):
                connect_to(server, number, stack).subscribe("news")
        for server, operator in machines:
            shown = nodes(operator, 4)
            assert sorted(node["worker"] for node in shown) == [0, 0, 1, 1]
            assert {node["pid"] for node in shown} >= set(workers(server).values())
            assert [node["connections"] for node in shown] == [{"pusher": 1}] * 4
            (app,) = operator.get("/api/apps").json["apps"]
            assert (app["connections"], app["channels"], app["subscriptions"]) == (4, 4, 4), app


def test_cluster_names_all_nodes_and_the_broker(machines: Machines) -> None:
    _, operator = machines[0]
    nodes(operator, 4)
    found = operator.get("/api/cluster").json
    assert [node["state"] for node in found["nodes"]] == ["ready"] * 4
    assert [node["here"] for node in found["nodes"]].count(True) == 1
    assert {node["pid"] for node in found["nodes"]} >= set(workers(machines[0][0]).values())
    assert all(node["lease"] > 0 for node in found["nodes"])
    broker = found["broker"]
    assert (broker["kind"], broker["connected"], found["away"]) == ("shared", True, "")
    (server,) = broker["servers"]
    assert server["version"]
    assert server["memory"] > 0
    assert server["clients"] >= 4


def test_workers_that_stop_are_neither_missing_nor_lost(machines: Machines) -> None:
    server, operator = machines[0]
    before = set(workers(server).values())
    nodes(operator, 4)
    known = operator.get("/api/overview").json["lost"]
    reload(server)
    for _ in range(20):
        answer = operator.get("/api/overview").json
        assert (answer["missing"], [one for one in answer["lost"] if one not in known]) == ([], [])
    assert before.isdisjoint(node["pid"] for node in nodes(operator, 4))


def test_worker_without_the_broker_answers_alone_until_the_broker_is_back(machines: Machines, valkey: Valkey) -> None:
    _, operator = machines[0]
    with live(operator) as page:
        page.send({"watch": "overview", "every": 1})
        page.until(lambda message: len(message["overview"]["nodes"]) == 4)
        kill(valkey.pid, signal.SIGSTOP)
        try:
            alone = page.until(lambda message: message["overview"]["away"])["overview"]
            for path in (
                "cluster",
                "config",
                "apps",
                "apps/app-test/channels",
                "apps/app-test/connections",
                "apps/app-test/hooks",
            ):
                assert operator.get(f"/api/{path}").status == 200, path
            assert len(alone["nodes"]) == 1
            states = [one["state"] for one in operator.get("/api/cluster").json["nodes"]]
            assert (set(states), states.count("ready")) == ({"ready", "unknown"}, 1)
        finally:
            kill(valkey.pid, signal.SIGCONT)
        page.until(lambda message: len(message["overview"]["nodes"]) == 4 and not message["overview"]["away"])


def test_workers_without_a_console_are_counted(valkey: Valkey, machines: Machines) -> None:
    _, operator = machines[0]
    nodes(operator, 4)
    assert operator.get("/api/overview").json["without_console"] == 0
    with running({"broker": valkey.url}):
        wait_until(lambda: operator.get("/api/overview").json["without_console"] == 1, "the worker without a console")
        states = [node["state"] for node in operator.get("/api/cluster").json["nodes"]]
        assert sorted(states) == ["no console", "ready", "ready", "ready", "ready"]


def test_killed_worker_leaves_a_watched_overview_and_its_successor_joins(machines: Machines) -> None:
    server, operator = machines[0]
    nodes(operator, 4)
    with live(operator) as page:
        page.send({"watch": "overview", "every": 1})
        shown = page.until(lambda message: len(message["overview"]["nodes"]) == 4)["overview"]
        own = set(workers(server).values())
        ((other, lost),) = [
            (node["pid"], node["id"]) for node in shown["nodes"] if node["id"] != shown["here"] and node["pid"] in own
        ]
        kill(other)

        def replaced(message: Any) -> bool:
            pids = [node["pid"] for node in message["overview"]["nodes"]]
            return len(pids) == 4 and other not in pids

        page.until(replaced)
        # A lease lasts about as long as the usual deadline.
        page.until(lambda message: lost in [one["id"] for one in message["overview"]["lost"]], 3 * DEADLINE)
