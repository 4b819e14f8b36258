"""Several workers on one machine act as one server, even when some of them die."""

import contextlib
import http.client
import json
import re
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.cluster.machine import (
    by_worker,
    children,
    connect_to,
    engine,
    exists,
    figure,
    kill,
    machine,
    supervisor,
    until_delivered,
    until_workers,
    workers,
)
from tests.support.process import APP, DEADLINE, ServerProcess, merged, running, wait_until
from tests.support.pusher_socket import PLAIN, QUERY, dialled, pusher_socket, sign_in
from tests.support.raw_socket import raw_socket
from tests.support.wire import CLOSE, TEXT, Wire, frame


def test_events_published_at_one_worker_reach_clients_of_all_in_order(
    shared: ServerProcess, channel: str, stack: contextlib.ExitStack
) -> None:
    clients = [connect_to(shared, number, stack) for number in (0, 1)]
    for client in clients:
        client.subscribe(channel)
    for number in range(50):  # each on a connection of its own, so on either worker
        assert shared.publish(channel, "e", number).json["channels"] == {channel: 2}
    for client in clients:
        assert [client.expect("e", channel) for _ in range(50)] == list(range(50))
    assert all(count > 0 for count in by_worker(shared, "push1st_events_in_total").values())


def test_a_client_may_subscribe_to_3000_channels_at_once(shared: ServerProcess) -> None:
    names = [f"many-{number}" for number in range(3000)]
    with Wire(shared.ws_port) as wire:
        wire.greet()
        data = b"".join(
            frame(TEXT, json.dumps({"event": "pusher:subscribe", "data": {"channel": name}}).encode()) for name in names
        )
        writer = threading.Thread(target=wire.send, args=[data])
        writer.start()
        assert [wire.receive_json()["channel"] for _ in names] == names
        writer.join()


@pytest.mark.parametrize("end", [frame(CLOSE, b"\x03\xe8"), b""], ids=["close frame", "end of the stream"])
def test_messages_before_the_end_of_a_connection_are_delivered(shared: ServerProcess, channel: str, end: bytes) -> None:
    with raw_socket(shared, channel) as other, Wire(shared.ws_port) as wire:
        wire.upgrade(f"/ws/app/app-key/{channel}")
        shared.until_sessions(channel, 2)
        frames = [frame(TEXT, json.dumps({"event": "e", "channel": channel, "data": number}).encode()) for number in range(200)]
        wire.send(b"".join(frames) + end)
        wire.socket.shutdown(socket.SHUT_WR)
        assert [other.expect("e", channel) for _ in frames] == list(range(200))
        shared.until_sessions(channel, 1)


def test_headers_targets_and_exclusions_hold_on_all_workers(
    shared: ServerProcess, channel: str, stack: contextlib.ExitStack
) -> None:
    prefix = ".".join("abcdefghij")
    clients = [stack.enter_context(raw_socket(shared, channel, query=f"session={prefix}.{number}")) for number in range(8)]
    shared.until_sessions(channel, 8)
    ids = [session["id"] for session in shared.get(f"/apps/app-test/channels/{channel}").json["sessions"]]
    first, second = (next(id for id in ids if id.startswith(f"{prefix}.{number}.")) for number in (0, 1))
    everybody = {"delivery": "multicast", "session": prefix}
    assert shared.publish(channel, "all", 0, headers={"a": 1}, options=everybody).json["channels"] == {channel: 8}
    assert shared.publish(channel, "one", 1, options={"session": first}).json["channels"] == {channel: 7}
    assert shared.publish(channel, "two", 2, socket_id=first, options={"session": second}).json["channels"] == {channel: 6}
    clients[2].publish(channel, "three", 3, session=second)
    assert shared.publish(channel, "end", 4).json["channels"] == {channel: 8}
    for number, client in enumerate(clients):
        got = [client.receive() for _ in range(5 - (2, 2, 1, 0)[min(number, 3)])]
        assert got[0]["headers"] == {"a": 1}
        events = ["all", *(["one"] if number else []), *(["two"] if number > 1 else []), "end"]
        if number not in (1, 2):
            events.append("three")  # published by a client, which does not wait for a reply
        assert sorted(message["event"] for message in got) == sorted(events)


def test_members_of_a_presence_channel_are_seen_from_both_workers(
    shared: ServerProcess, channel: str, stack: contextlib.ExitStack
) -> None:
    first, second = (connect_to(shared, number, stack) for number in (0, 1))
    first.subscribe(f"presence-{channel}", {"user_id": "one"})
    seen = second.subscribe(f"presence-{channel}", {"user_id": "two"})
    assert sorted(seen["presence"]["ids"]) == ["one", "two"]
    assert first.expect("pusher_internal:member_added", f"presence-{channel}")["user_id"] == "two"


def test_events_to_a_user_before_its_subscription_are_delivered_from_both_workers(
    shared: ServerProcess, channel: str, stack: contextlib.ExitStack
) -> None:
    client, name = connect_to(shared, 0, stack), f"#server-to-user-{channel}"
    sign_in(client, channel)
    for number in range(50):  # each on a connection of its own, so on either worker
        assert shared.publish(name, "e", number).json["channels"] == {name: 0}
    client.subscribe(name)
    assert shared.publish(name, "e", 50).json["channels"] == {name: 1}
    assert [client.expect("e", name) for _ in range(51)] == list(range(51))
    assert client.round_trip() == []


def test_new_connections_are_spread_over_the_workers(shared: ServerProcess, stack: contextlib.ExitStack) -> None:
    before = by_worker(shared, "push1st_connections_opened_total")
    for _ in range(40):
        stack.enter_context(pusher_socket(shared))
    after = by_worker(shared, "push1st_connections_opened_total")
    assert sum(after.values()) - sum(before.values()) == 40
    assert all(after[number] - before.get(number, 0) >= 5 for number in (0, 1)), after


def test_connections_of_an_app_are_those_of_all_workers(own: ServerProcess, stack: contextlib.ExitStack) -> None:
    for number in (0, 1):
        connect_to(own, number, stack)
    count = sum(by_worker(own, "push1st_connections").values())
    for _ in range(10):  # either worker may answer
        assert own.get("/apps/app-test/connections").json == {"connections": count}


def test_one_scrape_has_the_metrics_of_all_workers_each_once(shared: ServerProcess, stack: contextlib.ExitStack) -> None:
    for number in (0, 1):
        connect_to(shared, number, stack)
    for _ in range(10):  # either worker may answer
        text = shared.get("/metrics").body.decode()
        assert text.count("# TYPE push1st_connections gauge") == 1
        assert len(re.findall(r'(?m)^push1st_connections\{protocol="pusher",worker="\d"\} [1-9]', text)) == 2
        assert "push1st_workers 2.0" in text


def test_every_worker_answers_health_and_readiness(shared: ServerProcess) -> None:
    for _ in range(10):
        for port in (shared.ws_port, shared.api_port, shared.unix):
            assert shared.get("/health", port=port).status == 200
            assert shared.get("/ready", port=port).status == 200


def test_log_lines_of_a_worker_have_its_number(own: ServerProcess) -> None:
    own.signal()
    own.wait()
    assert set(re.findall(r"stopped .*\[push1st.server\] *worker=(\d)", own.output)) == {"0", "1"}


def test_port_0_is_one_port_for_all_workers() -> None:
    with running({"server": {"listen": "tcp://127.0.0.1:0", "workers": 3}}) as server:
        until_workers(server, 3)
        (port,) = set(map(int, re.findall(r"ws://127\.0\.0\.1:(\d+)", server.output)))
        server.ws_port = port
        with contextlib.ExitStack() as stack:
            for number in range(3):
                connect_to(server, number, stack)


def test_a_second_server_does_not_get_the_port(shared: ServerProcess) -> None:
    """Workers share their sockets (SO_REUSEPORT), and no other process can join."""
    other = ServerProcess({"server": {"workers": 2, "listen": f"tcp://127.0.0.1:{shared.ws_port}"}})
    with pytest.raises(AssertionError, match=f"cannot listen on tcp://127.0.0.1:{shared.ws_port}"):
        other.start()


def test_start_error_of_a_worker_is_logged_once_and_ends_the_server() -> None:
    server = ServerProcess({"server": {"workers": 3}})
    (server.folder / "key.pem").write_text("no key")
    (server.folder / "cert.pem").write_text("no certificate")
    text = (server.folder / "server.yml").read_text()
    (server.folder / "server.yml").write_text(
        text.replace("server:\n", "server:\n  ssl: {enable: true, key: key.pem, cert: cert.pem}\n")
    )
    with pytest.raises(AssertionError, match="the server ended with 1"):
        server.start()
    assert server.output.count("cannot use the certificate") == 1
    assert "Traceback" not in server.output


# -- the quota of an app is used up on all workers together

ATTEMPTS = 8
"""attempts, each on a connection of its own, so that either worker may answer"""


@pytest.fixture(scope="module")
def full() -> Iterator[ServerProcess]:
    """The app may have two connections, and both are established."""
    with machine(apps={"app-test": merged(APP, {"limits": {"connections": 2}})}) as server, contextlib.ExitStack() as clients:
        for _ in range(2):
            clients.enter_context(pusher_socket(server))
        yield server


def test_connection_over_the_cluster_wide_quota_is_rejected(full: ServerProcess) -> None:
    for _ in range(ATTEMPTS):
        with dialled(full) as client:
            assert client.expect_error()["code"] == 4004  # without a connection_established before
            assert client.close_code() == 4004


@pytest.mark.parametrize("road", ["xhr", "xhr_streaming"])
def test_fallback_session_over_the_cluster_wide_quota_is_rejected(full: ServerProcess, road: str) -> None:
    for number in range(ATTEMPTS):
        path = f"/pusher/app/app-key/1/{road}-session-{number}/{road}?{QUERY}"
        answers = [full.post(path, b"", port=full.ws_port)]
        if road == "xhr":  # the first answer of a session only opens it
            answers.append(full.post(path, b"", port=full.ws_port))
        lines = b"".join(answer.body for answer in answers).splitlines()
        assert [line[:1] for line in lines[:3]] == [b"o", b"a", b"c"]
        assert all(b"4004" in line for line in lines[1:3])


def test_clients_of_each_protocol_count_toward_the_cluster_wide_quota(stack: contextlib.ExitStack) -> None:
    server = stack.enter_context(machine(apps={"app-test": merged(APP, {"limits": {"connections": 3}})}))
    raw = f"{server.ws}/ws/app/app-key/c"
    fallback = f"/pusher/app/app-key/7/%08d/xhr_streaming?{QUERY}"
    stack.enter_context(pusher_socket(server))
    stack.enter_context(connect(raw, **PLAIN))

    def stream(number: int) -> http.client.HTTPResponse:
        connection = stack.enter_context(contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.ws_port, timeout=10)))
        connection.request("POST", fallback % number, b"")
        return stack.enter_context(connection.getresponse())

    there = stream(0)
    assert [there.readline()[:1] for _ in range(2)] == [b"o", b"a"]
    for number in range(1, 5):  # either worker may answer
        assert stream(number).read().splitlines()[-1].startswith(b"c[4004,")
        with connect(raw, **PLAIN) as client:
            with pytest.raises(ConnectionClosed):
                client.recv(5)
            assert client.close_code == 4004
        with dialled(server) as other:
            assert other.expect_error()["code"] == 4004
            assert other.close_code() == 4004


def test_raw_clients_that_are_rejected_for_their_channels_do_not_stay_counted() -> None:
    with machine(apps={"app-test": merged(APP, {"limits": {"connections": 2}})}) as server:
        for _ in range(ATTEMPTS):
            with raw_socket(server, "private-x") as client, pytest.raises(ConnectionClosed):
                client.receive()
            assert client.connection.close_code == 1008
        for _ in range(ATTEMPTS):
            with pusher_socket(server):
                pass


# -- a worker dies


def test_a_worker_that_dies_is_replaced_and_the_clients_of_the_other_stay(
    own: ServerProcess, channel: str, stack: contextlib.ExitStack
) -> None:
    doomed, other = (connect_to(own, number, stack) for number in (0, 1))
    other.subscribe(channel)
    there = workers(own)
    kill(there[0])
    assert doomed.close_code() == 1006
    wait_until(lambda: len(workers(own)) == 2, "another worker runs")
    until_workers(own, 2)
    assert there[0] not in workers(own).values()
    assert figure(own, "push1st_worker_restarts_total") == 1
    connect_to(own, 0, stack).subscribe(channel)
    own.publish(channel, "e", 1)
    assert other.expect("e", channel) == 1


def test_no_connection_is_refused_while_a_dead_worker_is_replaced(own: ServerProcess) -> None:
    """Connections in the socket of the dead worker wait for its replacement."""
    before = workers(own)
    kill(before[0])
    end = time.monotonic() + 3
    while time.monotonic() < end:
        assert own.get("/health", port=own.ws_port).status == 200
    assert len(workers(own)) == 2


def test_a_worker_that_dies_again_and_again_is_started_ever_later(own: ServerProcess) -> None:
    for _ in range(4):
        wait_until(lambda: 0 in workers(own), "worker 0 runs", 20)
        killed = workers(own)[0]
        kill(killed)
        wait_until(lambda pid=killed: workers(own).get(0) != pid, "it has ended")  # type: ignore[misc]
    delays = re.compile(r"worker ended .*again_in=([0-9.]+)")
    wait_until(lambda: len(delays.findall(own.output)) == 4, "the log has four ends")
    assert delays.findall(own.output) == ["0", "0.5", "1.0", "2.0"]
    for _ in range(40):  # the other worker accepts all connections
        assert own.get("/health", port=own.ws_port).status == 200
    until_workers(own, 2)


def test_hung_worker_does_not_hide_the_metrics_of_others(own: ServerProcess) -> None:
    hung, well = workers(own)[0], 1
    kill(hung, signal.SIGSTOP)
    try:
        answer = first_answer(own.api_port, "/metrics")
        assert f'worker="{well}"' in answer
        assert 'worker="0"' not in answer
    finally:
        kill(hung, signal.SIGCONT)


def first_answer(port: int, path: str) -> str:
    """Sends a request on 20 connections, of which some reach the hung worker; returns the first answer."""
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection(("127.0.0.1", port), DEADLINE)) for _ in range(20)]
        for connection in connections:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        ready, _, _ = select.select(connections, [], [], DEADLINE)
        assert ready, "no worker answers"
        answer = b""
        while data := ready[0].recv(65536):
            answer += data
        return answer.decode()


# -- the engine dies


def test_dead_engine_is_replaced_without_effect_on_clients(own: ServerProcess, channel: str, stack: contextlib.ExitStack) -> None:
    clients = [connect_to(own, number, stack) for number in (0, 1)]
    for client in clients:
        client.subscribe(channel)
    before = engine(own)
    kill(before)
    wait_until(lambda: not exists(before) and own.output.count("engine ready") == 2, "another engine is there")
    until_delivered(own, channel, clients)
    assert figure(own, "push1st_engine_restarts_total") == 1


def test_no_worker_waits_for_one_that_died_with_the_engine(own: ServerProcess, channel: str, stack: contextlib.ExitStack) -> None:
    client = connect_to(own, 1, stack)
    client.subscribe(channel)
    kill(workers(own)[0])
    kill(engine(own))
    wait_until(lambda: own.output.count("engine ready") == 2, "another engine is there")
    there = time.monotonic()
    until_delivered(own, channel, [client])
    assert time.monotonic() - there < 5


def test_publishing_fails_loudly_while_the_engine_does_not_answer(
    own: ServerProcess, channel: str, stack: contextlib.ExitStack
) -> None:
    client = connect_to(own, 0, stack)
    client.subscribe(channel)
    stopped = engine(own)
    kill(stopped, signal.SIGSTOP)
    answer = own.post("/apps/app-test/events", {"name": "e", "channels": [channel], "data": "lost"})
    assert answer.status == 503
    kill(stopped)
    wait_until(lambda: own.output.count("engine ready") == 2, "another engine is there")
    until_delivered(own, channel, [client])


# -- the supervisor dies or stops


def test_killed_supervisor_leaves_no_process(own: ServerProcess, stack: contextlib.ExitStack) -> None:
    client = connect_to(own, 0, stack)
    there = children(supervisor(own))
    assert len(there) == 3
    own.signal(signal.SIGKILL)
    own.wait()
    assert client.close_code(2) == 1006
    wait_until(lambda: not any(map(exists, there)), "workers and engine have ended", 2)
    own.start()  # on the same ports, and with the Unix socket file that is left
    until_workers(own, 2)


def test_a_signal_drains_all_workers_and_leaves_nothing(own: ServerProcess, stack: contextlib.ExitStack) -> None:
    clients = [connect_to(own, number, stack) for number in (0, 1)]
    there = children(supervisor(own))
    own.signal()
    assert [client.close_code() for client in clients] == [4200, 4200]
    assert own.wait() == 0
    assert not any(map(exists, there))
    assert not own.unix.exists()
    for port in (own.ws_port, own.api_port):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()


def test_server_is_not_ready_before_it_stops_listening(stack: contextlib.ExitStack) -> None:
    with machine(config={"server": {"drain": 8}}) as server:
        stack.enter_context(pusher_socket(server))
        server.signal()
        seen: list[int] = []
        with contextlib.suppress(ConnectionError):
            while not seen or seen[-1] == 200:
                seen.append(server.get("/ready").status)
        assert seen[-1] == 503
        server.signal()


def test_a_second_signal_stops_it_at_once(stack: contextlib.ExitStack) -> None:
    with machine(config={"server": {"drain": 60}}) as server:
        for _ in range(20):
            stack.enter_context(pusher_socket(server))
        server.signal()
        wait_until(lambda: server.get("/ready").status == 503, "it is draining")
        started = time.monotonic()
        server.signal()
        assert server.wait(5) == 0
        assert time.monotonic() - started < 5


def test_engine_is_private_and_stores_nothing_on_disk(shared: ServerProcess) -> None:
    found = re.search(r"unixsocket:(\S+)", children(supervisor(shared))[engine(shared)])
    assert found
    path = Path(found[1])
    assert path.parent.stat().st_mode & 0o077 == 0
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        for name, value in (("port", "0"), ("save", ""), ("appendonly", "no"), ("maxmemory-policy", "noeviction")):
            client.sendall(f"CONFIG GET {name}\r\n".encode())
            assert client.recv(1000) == f"*2\r\n${len(name)}\r\n{name}\r\n${len(value)}\r\n{value}\r\n".encode()
