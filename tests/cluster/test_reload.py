"""A reload replaces workers one by one and rejects no connection; an unusable configuration changes nothing."""

import asyncio
import contextlib
import http.client
import itertools
import json
import socket
import subprocess
import threading
import time

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.cluster.machine import (
    again_and_again,
    by_worker,
    children,
    command,
    connect_to,
    engine,
    exists,
    kill,
    machine,
    reconfigure,
    reload,
    start_reload,
    supervisor,
    until_workers,
    workers,
)
from tests.support.process import PUSH1ST, ServerProcess, free_ports, wait_until
from tests.support.pusher_socket import QUERY, pusher_socket


def test_reload_replaces_all_workers_and_keeps_the_engine(own: ServerProcess) -> None:
    before, same = workers(own), engine(own)
    reload(own)
    until_workers(own, 2)
    assert not set(workers(own).values()) & set(before.values())
    assert engine(own) == same


def test_the_command_finds_the_server_by_its_configuration_and_ends_when_it_has_reloaded(own: ServerProcess) -> None:
    before = workers(own)
    reconfigure(own, {"server": {"workers": 3}})
    done = command(own)
    assert (done.returncode, done.stderr) == (0, "")
    assert str(supervisor(own)) in done.stdout
    _, *lines = done.stdout.splitlines()
    assert (lines[0], lines[2]) == ("new workers are needed for server.workers", "reloaded: 3 workers")
    assert "workers are replaced one by one" in lines[1]
    assert len(workers(own)) == 3
    assert not set(workers(own).values()) & set(before.values())
    refused = subprocess.run(
        [*PUSH1ST, "reload", "-c", str(own.folder / "other.yml")], capture_output=True, text=True, timeout=40, check=False
    )
    assert refused.returncode == 1
    assert "nothing was reloaded" in refused.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"server": {"drain": "soon"}}, "server.drain"),
        ({"server": {"ssl": {"enable": True, "key": "server.yml", "cert": "server.yml"}}}, "cannot use the certificate"),
    ],
    ids=["known before a worker starts", "known by a worker"],
)
def test_command_prints_why_nothing_was_reloaded(own: ServerProcess, change: dict, said: str) -> None:
    reconfigure(own, change)
    done = command(own)
    assert done.returncode == 1
    assert said in done.stderr
    assert "reloaded" not in done.stdout
    assert "replaced" not in done.stdout


def test_command_waits_for_a_reload_that_read_the_current_files(own: ServerProcess) -> None:
    with start_reload(own, "--workers"):
        wait_until(lambda: "reloading" in own.output, "it has begun")
        reconfigure(own, {"server": {"workers": 1}})
        done = command(own)
    assert done.stdout.endswith("reloaded: 1 worker\n")


def test_command_prints_the_result_of_its_reload_even_if_the_next_has_begun(own: ServerProcess) -> None:
    reconfigure(own, {"server": {"ssl": {"enable": True, "key": "server.yml", "cert": "server.yml"}}})
    with start_reload(own) as first:
        second = command(own)
        _, said = first.communicate(timeout=40)
    assert "cannot use the certificate" in said
    assert "cannot use the certificate" in second.stderr
    assert (first.returncode, second.returncode) == (1, 1)


def test_a_worker_that_is_just_being_started_is_replaced_too(own: ServerProcess) -> None:
    """The worker has received the former configuration."""
    first = min(workers(own))
    kill(workers(own)[first])
    wait_until(lambda: len(children(supervisor(own))) == 3, "a replacement starts")
    reconfigure(own, {"server": {"pusher": {"activity-timeout": 77}}})
    done = command(own)
    assert done.stdout.endswith("reloaded: 2 workers\n")
    with contextlib.ExitStack() as stack:
        for number in workers(own):
            greeting = connect_to(own, number, stack).frames[0]
            assert json.loads(greeting["data"])["activity_timeout"] == 77


# -- no connection is refused, no event is lost


class Stay:
    """The time of a subscriber on one connection, and the events that it received."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.ended = 0.0
        self.received: set[int] = set()


def test_reload_refuses_no_connection_and_loses_no_acknowledged_publish(own: ServerProcess, channel: str) -> None:
    """Clients connect and disconnect, one calls the API, one publishes; four subscribers reconnect when they are closed."""
    failures: list[str] = []
    published: list[tuple[float, float]] = []
    stays: list[Stay] = []
    over = threading.Event()

    def listen() -> None:
        with pusher_socket(own) as client:
            client.subscribe(channel)
            stay = Stay()
            try:
                while not over.is_set():
                    with contextlib.suppress(TimeoutError):
                        stay.received.add(json.loads(client.receive(0.1)["data"]))
            except ConnectionClosed:
                assert client.connection.close_code == 4200, client.connection.close_code
            stay.ended = time.monotonic()
            stays.append(stay)

    def visit() -> None:
        with pusher_socket(own) as client:
            client.subscribe(f"{channel}-other")

    def call() -> None:
        assert own.get("/health", port=own.ws_port).status == 200

    def publish() -> None:
        began = time.monotonic()
        own.publish(channel, "e", len(published))
        published.append((began, time.monotonic()))

    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(again_and_again(listen, failures))
        stack.callback(over.set)
        visits, calls, _ = (stack.enter_context(again_and_again(action, failures)) for action in (visit, call, publish))
        wait_until(lambda: visits[0] > 5 and calls[0] > 5 and len(published) > 5, "clients are busy")
        reload(own)
        reload(own)
        reloaded = len(published)
        wait_until(lambda: visits[0] > 20 and calls[0] > 20 and len(published) > reloaded + 5, "clients are busy again")
    assert failures == []
    assert visits[0] > 20
    assert calls[0] > 20
    assert len(published) > 50
    assert len(stays) > 4
    for stay in stays:
        # An event confirmed just before the end may still have been on its way between two workers.
        due = {number for number, (began, ended) in enumerate(published) if stay.began < began and ended < stay.ended - 0.1}
        assert due <= stay.received, sorted(due - stay.received)


def test_publisher_on_a_kept_connection_is_notified_before_it_ends(own: ServerProcess, channel: str) -> None:
    """So the publisher loses no call: the last answer has `Connection: close`."""
    over = threading.Event()
    lost: list[str] = []
    renewed = [0]

    def publish() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", own.api_port, timeout=10)
        while not over.is_set():
            try:
                connection.request("POST", "/apps/app-test/events", json.dumps({"name": "e", "channels": [channel], "data": 1}))
                answer = connection.getresponse()
                answer.read()
                if answer.getheader("Connection") == "close":
                    renewed[0] += 1
            except OSError as exc:
                lost.append(repr(exc))
            time.sleep(0.01)
        connection.close()

    threads = [threading.Thread(target=publish) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.2)
        reload(own)
    finally:
        over.set()
        for thread in threads:
            thread.join(20)
    assert lost == []
    assert renewed[0] >= 6


def test_clients_are_disconnected_in_slices() -> None:
    with machine(config={"server": {"drain": 3}}) as server:

        async def client(ended: list[float]) -> None:
            async with connect(f"{server.ws}/app/app-key?{QUERY}", compression=None, ping_interval=None) as connection:
                with contextlib.suppress(ConnectionClosed):
                    while True:
                        await connection.recv()
                assert connection.close_code == 4200, connection.close_code
                ended.append(time.monotonic())

        async def clients() -> list[float]:
            ended: list[float] = []
            tasks = [asyncio.create_task(client(ended)) for _ in range(400)]
            await asyncio.to_thread(wait_until, all_are_there, "400 clients")
            with start_reload(server, "--workers"):
                await asyncio.wait_for(asyncio.gather(*tasks), 30)
            return sorted(ended)

        def all_are_there() -> bool:
            return sum(by_worker(server, "push1st_connections_opened_total").values()) == 400

        ended = asyncio.run(clients())
        slices = 1 + sum(later - earlier > 0.05 for earlier, later in itertools.pairwise(ended))
        assert slices >= 6, f"{slices} slices of 400 clients on 2 workers, of at least 50 each"
        wait_until(lambda: "reloaded" in server.output, "it is over", 20)


# -- effects of the new configuration


def test_an_app_that_is_new_works(own: ServerProcess) -> None:
    (own.folder / "apps" / "more.yml").write_text("more: {key: more-key, secret: more-secret}\n")
    reload(own)
    with pusher_socket(own, "more-key") as client:
        client.subscribe("c")


def test_reload_adds_and_removes_addresses_and_keeps_others(own: ServerProcess) -> None:
    old = own.ws_port
    (new,) = free_ports(1)
    reconfigure(own, {"server": {"listen": [f"tcp://127.0.0.1:{old}", f"tcp://127.0.0.1:{new}"]}})
    reload(own)
    assert "keys=['server.listen']" in own.output
    assert own.get("/health", port=new).status == 200
    assert own.get("/health", port=old).status == 200
    reconfigure(own, {"server": {"listen": f"tcp://127.0.0.1:{new}"}})
    reload(own)
    assert own.get("/health", port=new).status == 200
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", old)).close()


def test_reload_adds_and_removes_workers(own: ServerProcess) -> None:
    reconfigure(own, {"server": {"workers": 3}})
    reload(own)
    until_workers(own, 3)
    reconfigure(own, {"server": {"workers": 1}})
    reload(own)
    until_workers(own, 1)
    for _ in range(20):
        assert own.get("/health", port=own.ws_port).status == 200


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"server": {"drain": "soon"}}, "server.drain"),
        ({"server": {"ssl": {"enable": True, "key": "server.yml", "cert": "server.yml"}}}, "cannot use the certificate"),
        ({"server": {"listen": "tcp://192.0.2.1:1"}}, "cannot listen on tcp://192.0.2.1:1"),
    ],
    ids=["a value that is not allowed", "a certificate that is none", "an address that is not ours"],
)
def test_unusable_configuration_changes_nothing(
    own: ServerProcess, change: dict, said: str, stack: contextlib.ExitStack, channel: str
) -> None:
    client = connect_to(own, 0, stack)
    client.subscribe(channel)
    before = workers(own)
    reconfigure(own, change)
    reload(own, "reload refused, the server runs as before")
    assert said in own.output
    assert workers(own) == before
    kill(before[1])  # new workers start with the former configuration
    wait_until(lambda: len(workers(own)) == 2, "another worker runs", 20)
    until_workers(own, 2)
    own.publish(channel, "e", 1)
    assert client.expect("e", channel) == 1


def test_replaced_workers_leave_no_files_or_processes(own: ServerProcess) -> None:
    before = children(supervisor(own))
    reload(own)
    wait_until(lambda: sum(map(exists, before)) == 1, "only the engine remains of the earlier processes")
    assert len(children(supervisor(own))) == 3


def test_worker_that_dies_again_while_it_is_replaced_keeps_the_sockets_of_the_next(own: ServerProcess) -> None:
    first = workers(own)[0]
    kill(first)
    wait_until(lambda: workers(own).get(0) not in (None, first), "another worker runs")
    until_workers(own, 2)
    second = workers(own)[0]
    starts = own.output.count("worker ready")
    with start_reload(own, "--workers"):
        wait_until(lambda: len(children(supervisor(own))) == 4, "its successor starts")
        kill(second)
        wait_until(lambda: own.output.count("worker ready") >= starts + 2 and "reloaded" in own.output, "the reload is done", 30)
    until_workers(own, 2)
    reload(own)
    until_workers(own, 2)
    assert "internal error" not in own.output
    for _ in range(20):
        assert own.get("/health", port=own.ws_port).status == 200
