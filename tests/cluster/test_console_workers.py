"""The console of servers with several workers, on one machine and on two."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.cluster.machine import command, connect_to, kill, reload, supervisor, until_workers, workers
from tests.cluster.places import Place
from tests.support.console import Operator, console, live
from tests.support.process import DEADLINE, ServerProcess, running, wait_until
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


def test_overview_names_the_workers_whose_apps_differ_until_the_apps_are_the_same(machines: Machines) -> None:
    (one, operator), (other, _) = machines
    machine = nodes(operator, 3)[0]["machine"]

    def different(count: int) -> Any:
        """Returns the groups in a tuple if there are `count` groups."""
        found = operator.get("/api/overview").json["different_apps"]
        return (found,) if len(found) == count else None

    wait_until(lambda: different(0), "all have the same apps")
    files = [server.folder / "apps" / "more.yml" for server in (other, one)]
    try:
        for file, server, count in ((files[0], other, 2), (files[1], one, 0)):
            file.write_text("more: {key: more-key, secret: a secret of the app more}\n")
            assert command(server).returncode == 0
            (found,) = wait_until(partial(different, count), "the difference")
            if count:
                names = sorted(node["worker"] for node in nodes(operator, 3) if node["pid"] in workers(one).values())
                assert found == [[f"{machine}:{number}" for number in names], [f"{machine}:0"]]
    finally:
        for file, server in zip(files, (other, one), strict=True):
            file.unlink(missing_ok=True)
            command(server)


def test_only_workers_that_say_so_have_no_console(valkey: Valkey, machines: Machines) -> None:
    """A node that has a console may be starting, or have ended just now, so silence proves nothing."""
    _, operator = machines[0]
    nodes(operator, 3)

    def count_them(silent: str) -> None:
        def are_known() -> bool:
            found = {node["id"]: node["state"] for node in operator.get("/api/cluster").json["nodes"]}
            assert found.pop(silent) == "unknown"
            return sorted(found.values()) == ["no console", "ready", "ready", "ready"]

        with running({"broker": valkey.url, "metrics": {"listen": False}}):
            wait_until(lambda: operator.get("/api/overview").json["without_console"] == 1, "the worker without a console")
            wait_until(are_known, "its state on the screen of the cluster, which another worker may answer")

    async def beside_a_silent_node() -> None:
        place = await Place(valkey.url).open()
        try:
            await asyncio.to_thread(count_them, place.name)
        finally:
            await place.close()

    asyncio.run(beside_a_silent_node())
    wait_until(lambda: operator.get("/api/overview").json["without_console"] == 0, "the end of this worker")


def test_overview_names_a_killed_worker_and_its_successor_until_after_a_reload(machines: Machines) -> None:
    server, operator = machines[0]
    nodes(operator, 3)
    with live(operator) as page:
        page.send({"watch": "overview", "every": 1})
        shown = page.until(lambda message: len(message["overview"]["nodes"]) == 3)["overview"]
        own = set(workers(server).values())
        (other,) = [node for node in shown["nodes"] if node["id"] != shown["here"] and node["pid"] in own]
        seen: list[Any] = []

        def is_replaced(message: Any) -> bool:
            seen.append(message["overview"])
            pids = [node["pid"] for node in message["overview"]["nodes"]]
            return len(pids) == 3 and other["pid"] not in pids

        kill(other["pid"])
        after = page.until(is_replaced, 3 * DEADLINE)["overview"]
    (successor,) = [node for node in after["nodes"] if node["id"] not in {one["id"] for one in shown["nodes"]}]
    assert successor["worker"] == other["worker"], "it has the name of the dead worker"
    # The number proves that the process has ended, so nobody waits until its lease expires.
    assert after["silent"] == after["missing"] == []
    (lost,) = [one for one in after["lost"] if one["id"] == other["id"]]
    assert (lost["machine"], lost["worker"]) == (other["machine"], other["worker"])
    assert abs(lost["replaced"] - (after["at"] - successor["uptime"])) < DEADLINE
    assert [one["without_console"] for one in seen] == [0] * len(seen)
    states = {node["id"]: node["state"] for node in operator.get("/api/cluster").json["nodes"]}
    assert states.pop(other["id"], "replaced") == "replaced"
    assert sorted(states.values()) == ["ready"] * 3
    reload(server)
    nodes(operator, 3)
    assert lost in operator.get("/api/overview").json["lost"], "the new workers learn it from the old ones"


def test_overview_shows_that_the_broker_has_lost_its_data(machines: Machines, valkey: Valkey) -> None:
    for _, operator in machines:
        assert operator.get("/api/overview").json["broker_lost_at"] is None
    began = time.time()
    valkey.ask("FLUSHALL")
    for _, operator in machines:
        lost_at = wait_until(lambda operator=operator: operator.get("/api/overview").json["broker_lost_at"], "the loss")  # type: ignore[misc]
        assert began <= lost_at <= time.time()
