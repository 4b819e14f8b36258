"""Graceful stop: first readiness ends, then the server disconnects its clients, then no process or socket is left."""

import contextlib
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.floods import FLOODING, FLOODS, flood
from tests.support.process import DEADLINE, ServerProcess, running, wait_until
from tests.support.pusher_socket import pusher_socket
from tests.support.raw_socket import raw_socket

LAST_SECONDS = 5
"""time for clients that do not answer a close frame"""


@pytest.fixture
def own() -> Iterator[ServerProcess]:
    """Runs a server that the test stops."""
    with running() as process:
        yield process


def has_ended(server: ServerProcess) -> bool:
    return server.process is not None and server.process.poll() is not None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_ends_it_with_exit_code_0(own: ServerProcess, number: signal.Signals) -> None:
    own.signal(number)
    assert own.wait() == 0


def test_server_without_connections_gives_load_balancers_time_and_then_stops() -> None:
    with running({"server": {"drain": 4}}) as server:
        started = time.monotonic()
        server.signal()
        wait_until(lambda: server.get("/ready").status == 503, "readiness turns false")
        assert server.wait() == 0
        assert 1 <= time.monotonic() - started < 4


def test_the_log_names_each_wait_of_a_stop_and_its_end(own: ServerProcess) -> None:
    """The client does not answer the close frame, so the stop makes all its waits."""
    with pusher_socket(own) as client:
        own.signal()
        wait_until(lambda: "waiting for connections to close" in own.output, "the last wait begins")
        own.signal()
        assert own.wait() == 0
        assert client.close_code() in {4200, 1006}
    said = re.findall(r"\[info +\] (.*?) +\[push1st\.server\] (.*)", own.output)
    stop = dict(said)
    assert re.search(r"connections=1 drain=1 .*seconds_at_most=11$", stop["stopping"])
    assert stop["waiting for load balancers to notice the stop"] == "seconds=0.25"
    assert stop["waiting for another process to listen on the addresses"] == "seconds_at_most=0.25"
    assert stop["disconnecting clients"] == "clients=1"
    assert re.fullmatch(r"connections=1 seconds_at_most=5(\.\d+)?", stop["waiting for connections to close"])


@pytest.fixture
def visited() -> Iterator[ServerProcess]:
    """Runs a server with the default drain and one client; the test stops it."""
    with running({"server": {"drain": 10}}) as process, pusher_socket(process):
        yield process


def test_server_is_not_ready_before_it_stops_listening(visited: ServerProcess) -> None:
    """Load balancers poll: the first change they see is the status 503, and not a refused connection."""
    visited.signal()
    seen: list[int] = []
    with contextlib.suppress(ConnectionError):
        while not seen or seen[-1] == 200:
            seen.append(visited.get("/ready").status)
    assert seen
    assert seen[-1] == 503


def test_draining_server_is_alive(visited: ServerProcess) -> None:
    visited.signal()
    wait_until(lambda: visited.get("/ready").status == 503, "it is draining")
    assert visited.get("/health").status == 200


def test_stopping_server_closes_pusher_clients_with_4200(own: ServerProcess) -> None:
    with pusher_socket(own) as client:
        own.signal()
        assert client.close_code() == 4200
        assert [frame["event"] for frame in client.frames] == ["pusher:connection_established"], "no error frame comes first"


def test_raw_clients_are_closed_with_a_code(own: ServerProcess, channel: str) -> None:
    with raw_socket(own, channel) as client:
        own.signal()
        assert client.close_code() in {1001, 1012, 4200}


def test_published_events_are_delivered_before_the_close(own: ServerProcess, channel: str) -> None:
    with pusher_socket(own) as client:
        client.subscribe(channel)
        for number in range(100):
            own.publish(channel, "e", number)
        own.signal()
        assert [client.expect("e", channel) for _ in range(100)] == list(range(100))
        assert client.close_code() == 4200


@pytest.mark.parametrize("name", ["requests", "subscribing"])
def test_stop_under_a_flood_is_in_time_and_delivers_acknowledged_events(own: ServerProcess, channel: str, name: str) -> None:
    channel += name
    over = threading.Event()
    threads = [threading.Thread(target=flood, args=(own.ws_port, *FLOODS[name], over)) for _ in range(FLOODING)]
    with pusher_socket(own) as client:
        client.subscribe(channel)
        for thread in threads:
            thread.start()
        try:
            for number in range(100):
                own.publish(channel, "e", number)
            own.signal()
            assert [client.expect("e", channel) for _ in range(100)] == list(range(100))
            assert client.close_code() == 4200
            assert own.wait(1 + LAST_SECONDS + DEADLINE) == 0
        finally:
            over.set()
            for thread in threads:
                thread.join(DEADLINE)


def test_silent_clients_do_not_delay_the_stop(own: ServerProcess) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(socket.create_connection(("127.0.0.1", own.ws_port)))
            stack.enter_context(socket.create_connection(("127.0.0.1", own.api_port)))
        own.signal()
        assert own.wait(20) == 0


def test_a_second_signal_stops_it_at_once() -> None:
    with running({"server": {"drain": 60}}) as server, contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(pusher_socket(server))
        server.signal()
        wait_until(lambda: server.get("/ready").status == 503, "it is draining")
        started = time.monotonic()
        server.signal()
        server.wait(5)
        assert time.monotonic() - started < 5


def test_no_socket_listens_after_the_stop(own: ServerProcess) -> None:
    own.signal()
    own.wait()
    for port in (own.ws_port, own.api_port):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()
    assert not own.unix.exists()


def test_server_starts_with_the_unix_socket_that_a_crash_left(own: ServerProcess) -> None:
    assert own.process is not None
    own.process.kill()
    own.process.wait()
    assert own.unix.exists()
    own.start()
    assert own.get("/health", port=own.unix).status == 200
