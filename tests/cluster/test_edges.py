"""The state that a backend derives from its webhooks: edges alternate and end correctly, even if workers or the broker end.

A leaving edge is held for three seconds. Members that leave and return within this time cause no webhook, even if the broker
loses its state, the workers are replaced, or all processes are restarted in this time.
"""

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.cluster.machine import GONE_SECONDS, children, connect_to, engine, figure, kill, machine, reload, supervisor
from tests.support.process import APP, ServerProcess, merged, running, wait_until
from tests.support.pusher_socket import pusher_socket
from tests.support.receiver import Receiver, receiving
from tests.support.valkey import Valkey

ROOM = "presence-room"
AWAY_SECONDS = 0.3
HELD_SECONDS = 3
"""the time for which a leaving edge is held"""
EDGES = ["channel_occupied", "channel_vacated", "member_added", "member_removed"]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as one:
        yield one


def app(receiver: Receiver) -> dict[str, Any]:
    return {"app-test": merged(APP, {"webhooks": [{"url": receiver.url, "events": EDGES}]})}


class Member:
    """A member that reconnects `AWAY_SECONDS` after a disconnect, to the first server that accepts it."""

    def __init__(self, user: str, servers: list[ServerProcess]) -> None:
        self._user = user
        self._servers = servers
        self._over, self._hops = threading.Event(), threading.Event()
        self.stays = 0
        """number of its joins"""
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            for server in self._servers:
                with contextlib.suppress(ConnectionClosed, OSError), pusher_socket(server) as client:
                    client.subscribe(ROOM, {"user_id": self._user})
                    self.stays += 1
                    while not self._over.is_set() and not self._hops.is_set():
                        with contextlib.suppress(TimeoutError):
                            client.receive(0.1)
            self._hops.clear()
            self._over.wait(AWAY_SECONDS)

    def hop(self) -> None:
        """Leaves and joins again."""
        self._hops.set()

    def leave(self) -> None:
        self._over.set()
        self._thread.join(20)


@contextlib.contextmanager
def members(count: int, *servers: ServerProcess) -> Iterator[list[Member]]:
    there = [Member(f"u{number}", list(servers)) for number in range(count)]
    try:
        wait_until(lambda: all(one.stays for one in there), "all members are present", 20)
        yield there
    finally:
        for one in there:
            one._over.set()
        for one in there:
            one.leave()


def believed(receiver: Receiver) -> set[tuple[str, str]]:
    """Returns the members according to the received webhooks; fails if a webhook changes nothing."""
    there: set[tuple[str, str]] = set()
    for event in receiver.events:
        key = event["channel"], event.get("user_id", "")
        assert (key in there) == (event["name"] in ("channel_vacated", "member_removed")), f"{event} came out of turn"
        there ^= {key}
    return there


def nothing_more(receiver: Receiver, count: int, seconds: float) -> None:
    """Checks that no webhook arrives within this number of seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert len(receiver.events) == count, receiver.events[count:]
        time.sleep(0.1)


def everybody(count: int) -> set[tuple[str, str]]:
    return {(ROOM, ""), *((ROOM, f"u{number}") for number in range(count))}


# The broker loses its state


@pytest.mark.parametrize("command", ["", pytest.param("FLUSHALL", marks=pytest.mark.long)], ids=["killed", "emptied"])
def test_members_that_return_within_the_hold_time_cause_no_webhook_after_a_state_loss(
    receiver: Receiver, stack: contextlib.ExitStack, command: str
) -> None:
    server = stack.enter_context(machine(apps=app(receiver)))
    with room(server):
        wait_until(lambda: believed(receiver) == everybody(10), "all members are present")
    for _ in range(2):  # another worker may become the consumer of hook events each time
        time.sleep(AWAY_SECONDS)
        if command:
            ask(server, command)
        else:
            kill(engine(server))
        time.sleep(AWAY_SECONDS)
        with room(server):
            nothing_more(receiver, 11, 4.5)
    wait_until(lambda: believed(receiver) == set(), "all have left", 2 * GONE_SECONDS)


@contextlib.contextmanager
def room(server: ServerProcess) -> Iterator[None]:
    """Connects ten members, half of them to each worker."""
    with contextlib.ExitStack() as stack:
        for number in range(10):
            connect_to(server, number % 2, stack).subscribe(ROOM, {"user_id": f"u{number}"})
        yield


def ask(server: ServerProcess, command: str) -> None:
    """Sends a command to the embedded engine."""
    (path,) = re.findall(r"(/\S*engine\.sock)", children(supervisor(server))[engine(server)])
    with socket.socket(socket.AF_UNIX) as one:
        one.settimeout(5)
        wait_until(lambda: one.connect_ex(path) == 0, "a new engine listens")
        one.sendall(f"{command}\r\n".encode())
        assert one.recv(100) == b"+OK\r\n"


def engine_of(server: ServerProcess) -> bool:
    return any("engine.sock" in command for command in children(supervisor(server)).values())


# Workers are replaced


@pytest.mark.parametrize("saved", [True, pytest.param(False, marks=pytest.mark.long)], ids=["with a folder", "without a folder"])
def test_reload_causes_no_webhook_for_returning_members(receiver: Receiver, tmp_path: Path, saved: bool) -> None:
    config = {"hooks": {"folder": str(tmp_path)}} if saved else {}
    with machine(config=merged(config, {"server": {"drain": 1}}), apps=app(receiver)) as server, members(20, server) as there:
        wait_until(lambda: believed(receiver) == everybody(20), "all members are present")
        reload(server)
        wait_until(lambda: all(one.stays > 1 for one in there), "all have reconnected", 20)
        nothing_more(receiver, 21, 5)
        assert list(tmp_path.iterdir()) == []
        there[0].leave()
        wait_until(lambda: believed(receiver) == everybody(20) - {(ROOM, "u0")}, "one has left")


def test_rolling_restart_causes_no_webhook_for_returning_members(receiver: Receiver) -> None:
    valkey = Valkey()
    try:
        config = {"broker": f"{valkey.url}?prefix=shop", "server": {"workers": 1, "drain": 1}}
        with running(config, app(receiver)) as one, running(config, app(receiver)) as two, members(20, one, two) as there:
            wait_until(lambda: believed(receiver) == everybody(20), "all members are present")
            for server in (one, two):
                server.stop()
                server.start()
            wait_until(lambda: all(member.stays > 1 for member in there), "all have reconnected", 20)
            nothing_more(receiver, 21, 5)
            assert believed(receiver) == everybody(20)
    finally:
        valkey.close()


def test_restart_of_all_workers_causes_webhooks_only_for_members_that_do_not_return(receiver: Receiver, tmp_path: Path) -> None:
    with machine(config={"hooks": {"folder": str(tmp_path)}, "server": {"drain": 0}}, apps=app(receiver)) as server:
        for _ in range(3):
            before = len(receiver.events)
            with room(server):
                wait_until(lambda: believed(receiver) == everybody(10), "all members are present")
                server.stop()
            assert len(receiver.events) == before + 11
            began = time.monotonic()
            server.start()
            with contextlib.ExitStack() as again:
                for number in range(7):
                    again.enter_context(pusher_socket(server)).subscribe(ROOM, {"user_id": f"u{number}"})
                away = time.monotonic() - began
                wait_until(lambda: believed(receiver) == everybody(7), "three have left", GONE_SECONDS)
                assert list(tmp_path.iterdir()) == []
            if len(receiver.events[before:]) == 14:
                return
            assert away > HELD_SECONDS, receiver.events[before:]  # a slow machine: the members returned too late
            wait_until(lambda: believed(receiver) == set(), "all have left")
        raise AssertionError("the members have not returned in time in three tries: this machine is too slow")


def test_a_stop_of_all_workers_without_a_folder_sends_that_all_have_left(receiver: Receiver) -> None:
    with machine(config={"server": {"drain": 0}}, apps=app(receiver)) as server, room(server):
        wait_until(lambda: believed(receiver) == everybody(10), "all members are present")
        server.stop()
        assert believed(receiver) == set()


# All faults, repeatedly


@pytest.mark.long
def test_edges_alternate_and_end_in_the_true_state_over_engine_kills_and_reloads(receiver: Receiver) -> None:
    random = Random(1)  # noqa: S311 - it has to be repeatable
    with machine(config={"server": {"drain": 1}}, apps=app(receiver)) as server, members(20, server) as there:
        wait_until(lambda: believed(receiver) == everybody(20), "all members are present")
        for _ in range(8):
            what = random.choice(["kill", "empty", "reload"])
            for one in random.sample(there, 8):
                one.hop()
            time.sleep(random.random())
            if what == "kill":
                wait_until(lambda: figure(server, "push1st_workers") == 2 and engine_of(server), "the engine runs")
                kill(engine(server))
            elif what == "empty":
                wait_until(lambda: engine_of(server), "the engine runs")
                ask(server, "FLUSHALL")
            else:
                reload(server)
            time.sleep(4 * random.random())
            believed(receiver)
        for one in there[:10]:
            one.leave()
        right = everybody(20) - {(ROOM, f"u{number}") for number in range(10)}
        wait_until(lambda: believed(receiver) == right, "half have left", 3 * GONE_SECONDS)
        nothing_more(receiver, len(receiver.events), 4)
