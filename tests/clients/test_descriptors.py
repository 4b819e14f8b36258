"""More clients than file descriptors: the server rejects clients with a reason, and continues to serve others."""

import contextlib
import re
import resource
import socket
import ssl
from collections.abc import Iterator

import pytest

from tests.support.descriptors import LOGGED, crowd
from tests.support.process import ServerProcess, running, wait_until
from tests.support.wire import Wire

FILES = 300


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    with running(files=FILES) as process:
        yield process


def possible(server: ServerProcess) -> int:
    """Returns the number of clients that may be connected, from the log."""
    (found,) = wait_until(
        lambda: re.findall(r"connections_possible=(\d+)", server.output), "the log has the number of connections"
    )
    return int(found)


def crowded(server: ServerProcess) -> float:
    found = re.search(r'(?m)^push1st_cut_offs_total\{reason="crowded"\} (\S+)$', server.get("/metrics").body.decode())
    assert found
    return float(found[1])


def test_clients_are_limited_to_the_logged_number_and_other_requests_work(
    server: ServerProcess, stack: contextlib.ExitStack
) -> None:
    most = possible(server)
    assert FILES - 100 < most < FILES - 64
    first = contextlib.ExitStack()
    with first:
        assert crowd(server, 10, first) == {0: 10}
        assert crowd(server, most + 50, stack) == {0: most - 10, 4100: 60}
        for _ in range(3):
            server.assert_alive()
            server.publish("c", "e", "1")
        assert server.signed("GET", "/apps/app-test/channels", port=server.ws_port).status == 200
        with contextlib.ExitStack() as callers:
            for _ in range(20):
                callers.enter_context(Wire(server.api_port))
            assert server.get("/health").status == 200
        assert crowded(server) == 60
        assert server.output.count(LOGGED) == 1
    assert crowd(server, 20, stack) == {0: 10, 4100: 10}
    assert server.output.count(LOGGED) == 1


def test_connections_without_a_request_stay_within_the_limit(server: ServerProcess, stack: contextlib.ExitStack) -> None:
    for _ in range(FILES + 50):
        stack.enter_context(Wire(server.ws_port))
    wait_until(lambda: crowded(server) > 0, "the connections are rejected")
    server.publish("c", "e", "1")
    assert server.output.count(LOGGED) == 1


def test_unfinished_tls_handshakes_stay_within_the_limit(stack: contextlib.ExitStack) -> None:
    with running({"server": {"ssl": {"enable": True}}}, files=FILES) as server:
        with contextlib.ExitStack() as silent:
            for _ in range(FILES + 50):
                silent.enter_context(socket.create_connection(("127.0.0.1", server.ws_port)))
            wait_until(lambda: crowded(server) > 0, "the connections are rejected")
            server.publish("c", "e", "1")
            assert server.output.count(LOGGED) == 1
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

        def answered() -> bytes:
            try:
                with (
                    socket.create_connection(("127.0.0.1", server.ws_port)) as plain,
                    context.wrap_socket(plain) as secure,
                ):
                    secure.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    return secure.recv(12)
            except OSError:
                return b""

        wait_until(lambda: answered() == b"HTTP/1.1 200", "a client is served again")


def test_one_address_cannot_take_all_connections_and_keeps_its_own(stack: contextlib.ExitStack) -> None:
    with running({"server": {"proxies": ["127.0.0.1"]}}, files=FILES) as server:
        most = possible(server)
        first = stack.enter_context(contextlib.ExitStack())
        told = crowd(server, most + 10, first, "203.0.113.9")
        assert told == {0: most * 7 // 8, 4100: most + 10 - most * 7 // 8}
        assert crowd(server, 10, stack, "203.0.113.10") == {0: 10}
        assert crowd(server, 10, stack) == {0: 10}
        (logged,) = (line for line in server.output.splitlines() if "too many connections of one address" in line)
        assert "203.0.113.9" in logged
        assert "server.proxies" in logged
        assert LOGGED not in server.output
        first.close()
        wait_until(lambda: crowd(server, 1, stack, "203.0.113.9") == {0: 1}, "there is room again")
        stack.close()


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="prlimit is Linux'")
def test_the_limit_may_be_lowered_and_raised_while_the_server_runs(stack: contextlib.ExitStack) -> None:
    with running() as server:
        assert server.process is not None
        _, hard = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (120, hard))
        told = crowd(server, 120, stack)
        assert set(told) == {0, 4100}
        assert 20 < told[0] < 56
        server.assert_alive()
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (min(FILES, hard), hard))
        assert crowd(server, 50, stack) == {0: 50}
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (60, hard))
        wait_until(lambda: "no file descriptors are left" in server.output, "it is logged")
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (min(FILES, hard), hard))
        server.assert_alive()
        stack.close()
