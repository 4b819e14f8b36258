"""The faulty proxy of the recovery tests (tests/support/blackhole.py) fails as it is told to, and not otherwise."""

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.support.blackhole import Blackhole, blackhole
from tests.support.process import DEADLINE, wait_until


class Echo:
    """A server that sends back what it receives."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.ended = 0
        """the number of connections that clients ended"""
        self.is_over = False
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    def _accept(self) -> None:
        while not self.is_over:
            one, _ = self.listener.accept()
            self.threads.append(threading.Thread(target=self._serve, args=[one]))
            self.threads[-1].start()

    def _serve(self, one: socket.socket) -> None:
        with one, contextlib.suppress(OSError):
            while data := one.recv(65_536):
                one.sendall(data)
        self.ended += 1

    def close(self) -> None:
        self.is_over = True
        socket.create_connection(("127.0.0.1", self.port)).close()
        for thread in self.threads:
            thread.join()
        self.listener.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Blackhole]:
    with blackhole(echo.port) as made:
        yield made


@pytest.fixture
def client(proxy: Blackhole) -> Iterator[socket.socket]:
    with dial(proxy) as one:
        yield one


def dial(proxy: Blackhole) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), DEADLINE)


def echoed(client: socket.socket, data: bytes) -> bytes:
    client.sendall(data)
    return client.recv(65_536)


def is_silent(client: socket.socket) -> bool:
    client.settimeout(0.1)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(DEADLINE)
    return False


def is_ended(client: socket.socket) -> bool:
    with contextlib.suppress(ConnectionError):
        return client.recv(1) == b""
    return True


def test_frozen_connections_stay_open_and_go_on_with_all_data(proxy: Blackhole, client: socket.socket) -> None:
    assert echoed(client, b"a") == b"a"
    proxy.freeze()
    client.sendall(b"b")
    assert is_silent(client)
    with dial(proxy) as other:
        other.sendall(b"c")
        assert is_silent(other)
        proxy.thaw()
        assert other.recv(9) == b"c"
    assert client.recv(9) == b"b"


def test_new_connections_may_be_spared_from_a_freeze(proxy: Blackhole, client: socket.socket) -> None:
    assert echoed(client, b"a") == b"a"
    proxy.freeze(later=False)
    client.sendall(b"b")
    with dial(proxy) as other:
        assert echoed(other, b"c") == b"c"
    assert is_silent(client)


def test_data_that_was_sent_to_a_frozen_connection_is_lost_with_a_cut(proxy: Blackhole, client: socket.socket) -> None:
    assert echoed(client, b"a") == b"a"
    proxy.freeze()
    client.sendall(b"b")
    proxy.cut()
    assert is_ended(client)


@pytest.mark.parametrize("reset", [True, False])
def test_cut_ends_both_sides(proxy: Blackhole, client: socket.socket, echo: Echo, reset: bool) -> None:
    assert echoed(client, b"a") == b"a"
    proxy.cut(reset=reset)
    assert is_ended(client)
    wait_until(lambda: echo.ended == 1, "the server sees the end")


def test_one_direction_is_dropped(proxy: Blackhole, client: socket.socket, echo: Echo) -> None:
    assert echoed(client, b"a") == b"a"
    proxy.drop("down")
    client.sendall(b"b")
    assert is_silent(client)
    assert echo.ended == 0


def test_connection_is_cut_after_a_number_of_bytes(proxy: Blackhole, client: socket.socket) -> None:
    assert echoed(client, b"a") == b"a"
    proxy.cut_next_after(3)
    with dial(proxy) as other:
        assert echoed(other, b"ab") == b"ab"
        assert echoed(other, b"cde") == b"c"
        assert is_ended(other)
    assert echoed(client, b"abcd") == b"abcd"


def test_connection_is_cut_before_a_marker(proxy: Blackhole, client: socket.socket) -> None:
    assert echoed(client, b"a") == b"a"
    proxy.cut_before(b"stop")
    assert echoed(client, b"b st") == b"b st"
    assert echoed(client, b"op c") == b""


def test_next_connection_is_cut_before_a_marker(proxy: Blackhole, client: socket.socket) -> None:
    assert echoed(client, b"a") == b"a"
    proxy.cut_next_before(b"stop")
    with dial(proxy) as other:
        assert echoed(other, b"x stop y") == b"x "
        assert is_ended(other)
    assert echoed(client, b"x stop y") == b"x stop y"


def test_end_of_one_side_is_forwarded(proxy: Blackhole, client: socket.socket) -> None:
    client.sendall(b"a")
    client.shutdown(socket.SHUT_WR)
    assert client.recv(9) == b"a"
    assert client.recv(9) == b""
