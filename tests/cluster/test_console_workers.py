"""The console of servers with several workers, on one machine and on two."""

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.machine import connect_to, kill, reload, supervisor, until_workers, workers
from tests.cluster.places import Place
from tests.support.console import Operator, console, live
from tests.support.process import DEADLINE, ServerProcess, wait_until
from tests.support.pusher_socket import pusher_socket
from tests.support.valkey import Valkey

Machines = list[tuple[ServerProcess, Operator]]


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    found = Valkey()
    yield found
    found.close()


@pytest.fixture(scope="module")
def machines(valkey: Valkey) -> Iterator[Machines]:
    """A server with two workers, and one with one, which share a broker."""
    with contextlib.ExitStack() as stack:
        found = [
            stack.enter_context(console({"broker": valkey.url, "server": {"workers": count}, "metrics": {"listen": False}}))
            for count in (2, 1)
        ]
        until_workers(found[0][0], 2)
        for _, operator in found:
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
        (one, _), (other, _) = machines
        for number in (0, 1):
            connect_to(one, number, stack).subscribe("news")
        stack.enter_context(pusher_socket(other)).subscribe("news")
        for _, operator in machines:
            shown = nodes(operator, 3)
            assert sorted(node["worker"] for node in shown) == [0, 0, 1]
            assert {node["pid"] for node in shown} == {*workers(one).values(), supervisor(other)}
            assert [node["connections"] for node in shown] == [{"pusher": 1}] * 3
            (app,) = operator.get("/api/apps").json["apps"]
            assert (app["connections"], app["channels"], app["subscriptions"]) == (3, 3, 3), app


def test_cluster_names_all_nodes_and_the_broker(machines: Machines) -> None:
    _, operator = machines[0]
    nodes(operator, 3)
    found = operator.get("/api/cluster").json
    assert [node["state"] for node in found["nodes"]] == ["ready"] * 3
    assert [node["here"] for node in found["nodes"]].count(True) == 1
    assert {node["pid"] for node in found["nodes"]} >= set(workers(machines[0][0]).values())
    assert all(node["lease"] > 0 for node in found["nodes"])
    broker = found["broker"]
    assert (broker["kind"], broker["connected"], found["away"]) == ("shared", True, "")
    (server,) = broker["servers"]
    assert server["version"]
    assert server["memory"] > 0
    assert server["clients"] >= 3


def test_workers_that_stop_are_neither_missing_nor_lost(machines: Machines) -> None:
    server, operator = machines[0]
    before = set(workers(server).values())
    stopped = {node["id"] for node in nodes(operator, 3) if node["pid"] in before}
    known = operator.get("/api/overview").json["lost"]
    reload(server)
    for _ in range(20):
        answer = operator.get("/api/overview").json
        assert stopped.isdisjoint(answer["missing"])
        assert [one for one in answer["lost"] if one not in known] == []
    assert before.isdisjoint(node["pid"] for node in nodes(operator, 3))


def test_worker_without_the_broker_answers_alone_until_the_broker_is_back(machines: Machines, valkey: Valkey) -> None:
    _, operator = machines[0]
    with live(operator) as page:
        page.send({"watch": "overview", "every": 1})
        page.until(lambda message: len(message["overview"]["nodes"]) == 3)
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
        page.until(lambda message: len(message["overview"]["nodes"]) == 3 and not message["overview"]["away"])


def test_workers_without_a_console_are_counted(valkey: Valkey, machines: Machines) -> None:
    _, operator = machines[0]
    nodes(operator, 3)
    assert operator.get("/api/overview").json["without_console"] == 0

    def count_them() -> None:
        wait_until(lambda: operator.get("/api/overview").json["without_console"] == 1, "the worker without a console")
        states = [node["state"] for node in operator.get("/api/cluster").json["nodes"]]
        assert sorted(states) == ["no console", "ready", "ready", "ready"]

    async def beside_another_node() -> None:
        place = await Place(valkey.url).open()
        try:
            await asyncio.to_thread(count_them)
        finally:
            await place.close()

    asyncio.run(beside_another_node())


def test_killed_worker_leaves_a_watched_overview_and_its_successor_joins(machines: Machines) -> None:
    server, operator = machines[0]
    nodes(operator, 3)
    with live(operator) as page:
        page.send({"watch": "overview", "every": 1})
        shown = page.until(lambda message: len(message["overview"]["nodes"]) == 3)["overview"]
        own = set(workers(server).values())
        ((other, lost),) = [
            (node["pid"], node["id"]) for node in shown["nodes"] if node["id"] != shown["here"] and node["pid"] in own
        ]
        kill(other)

        def replaced(message: Any) -> bool:
            pids = [node["pid"] for node in message["overview"]["nodes"]]
            return len(pids) == 3 and other not in pids

        page.until(replaced)
        # A lease lasts about as long as the usual deadline.
        page.until(lambda message: lost in [one["id"] for one in message["overview"]["lost"]], 3 * DEADLINE)
