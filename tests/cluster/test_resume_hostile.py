"""Hostile names of pages and hostile positions: the server answers each, and neither the server nor its broker needs more memory.

The addresses of this machine have no bound on their pages. So the server takes the client's address from a header, as behind a
proxy, and all clients of a test have one address.
"""

import contextlib
import itertools
import json
import re
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from push1st.brokers.pages import MAX_CHANNELS_BYTES, MAX_PAGE_BYTES
from tests.support.blackhole import RESET, blackhole
from tests.support.process import DEADLINE, ServerProcess, merged, running, wait_until
from tests.support.pusher_socket import QUERY
from tests.support.recovering import ACKNOWLEDGE, CONFIG, PageClient, kept, until_joined
from tests.support.valkey import Valkey
from tests.support.wire import HANDSHAKE, TEXT, frame

AT_ONCE = 100
"""the number of connections that are open at the same time"""
BEHIND_A_PROXY = merged(CONFIG, {"server": {"proxies": ["127.0.0.0/8"]}})
ADDRESS = b"X-Forwarded-For: 203.0.113.7\r\n"
MEGABYTE = 1 << 20
LONG = (pytest.mark.long, pytest.mark.timeout(1500))


@pytest.fixture(params=["memory", "Valkey"])
def broker(request: pytest.FixtureRequest) -> Iterator[Valkey | None]:
    """The Valkey that is the broker of the server; None for a broker in the server's memory."""
    if request.param == "memory":
        yield None
        return
    with contextlib.closing(Valkey()) as server:
        yield server


def configured(broker: Valkey | None) -> dict[str, object]:
    return BEHIND_A_PROXY if broker is None else BEHIND_A_PROXY | {"broker": f"{broker.url}?prefix=shop"}


def used_bytes(server: ServerProcess, broker: Valkey | None) -> tuple[int, int]:
    """Returns the bytes of the server's process, and those that Valkey uses for its data."""
    assert server.process is not None
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())
    assert found
    return int(found[1]) << 10, 0 if broker is None else broker.used_memory


def visit(server: ServerProcess, names: Sequence[str], channels: Sequence[str]) -> None:
    """Connects a page for each name; it subscribes to the channels, gets its answers, and resets the connection."""
    frames = b"".join(
        frame(TEXT, json.dumps({"event": "pusher:subscribe", "data": {"channel": name}}).encode()) for name in channels
    )
    for at in range(0, len(names), AT_ONCE):
        opened = [socket.create_connection(("127.0.0.1", server.ws_port), DEADLINE) for _ in names[at : at + AT_ONCE]]
        for name, one in zip(names[at:], opened, strict=False):
            head = f"GET /resume/{name}/app/app-key?{QUERY} HTTP/1.1\r\n".encode() + ADDRESS + HANDSHAKE
            one.sendall(head + b"\r\n" + frames)
        for one in opened:
            data = b""
            while data.count(b"pusher:resumed") < len(channels):
                more = one.recv(65_536)
                assert more, data
                data += more
            assert data.count(b"unknown") == len(channels)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)  # a closed connection would keep its port for a minute
            one.close()


def page_names() -> Iterator[str]:
    return map("page-of-one-client-{:06}".format, itertools.count())


def rejected(server: ServerProcess) -> float:
    """Returns the number of records that the broker has not stored because of a bound."""
    found = re.search(r'(?m)^push1st_refusals_total\{reason="page"\} ([0-9.]+)$', server.get("/metrics").body.decode())
    assert found
    return float(found[1])


# Names of pages


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory of a process is read from /proc")
@pytest.mark.parametrize(
    ("broker", "count", "pages", "width"),
    [
        pytest.param("memory", 800, 200, MAX_CHANNELS_BYTES, id="memory-wide"),
        pytest.param("Valkey", 2000, 2000, 0, id="Valkey-some"),
        pytest.param("memory", 100_000, 100_000, 0, id="memory-many", marks=LONG),
        pytest.param("Valkey", 100_000, 100_000, 0, id="Valkey-many", marks=LONG),
    ],
    indirect=["broker"],
)
def test_pages_of_one_address_use_bounded_memory(broker: Valkey | None, count: int, pages: int, width: int) -> None:
    """For one address, the broker stores only a tenth of the app's pages; the broker stores nothing for the other names.

    width: the bytes of the channels of each page. Without the bound, the second half of the pages needs 6 MB of the server's
    memory if the pages are wide, and 50 MB if they are many; 1000 narrow pages need 0.4 MB of Valkey's memory.
    """
    channels = [f"{number:03}".ljust(128, "x") for number in range(width // 160)] or ["c"]
    names = page_names()
    with running(configured(broker), kept(resume={"pages": pages})) as server:
        visit(server, [*itertools.islice(names, AT_ONCE)], ["c"])  # the memory that only the first clients need
        first = used_bytes(server, broker)
        visit(server, [*itertools.islice(names, count // 2)], channels)  # many more pages than one address may have
        full = used_bytes(server, broker)
        visit(server, [*itertools.islice(names, count // 2)], channels)
        last = used_bytes(server, broker)
        wait_until(lambda: rejected(server) > 0, "pages are not stored")
        filled = pages // 10 * (MAX_PAGE_BYTES if width else 2048)
        assert full[0] - first[0] < filled + 16 * MEGABYTE  # 100 clients at once need the most
        assert full[1] - first[1] < filled + MEGABYTE
        assert last[0] - full[0] < 4 * MEGABYTE
        assert last[1] - full[1] < MEGABYTE // 4


def test_page_above_the_bound_is_never_recovered(broker: Valkey | None, channel: str) -> None:
    with running(configured(broker), kept(resume={"pages": 1})) as server, blackhole(server.ws_port) as proxy:
        visit(server, [next(page_names())], [channel])
        with PageClient(proxy.port, [channel]) as further:
            for times in (1, 2):
                until_joined([further], times)
                time.sleep(2 * ACKNOWLEDGE)
                proxy.cut()
            assert further.log.answers(channel)[:2] == ["unknown", "unknown"]


# Odd names and positions

BAD_NAME = rb"HTTP/1.1 101 .*\x88.\x0f\xa5Path not found: the name of a page has 16 to 64 characters"
"""a close frame with the code 4005"""
NOT_HTTP = rb"HTTP/1.1 400 .*not an HTTP/1.1 request"
TOO_LONG = rb"HTTP/1.1 431 "
UNKNOWN = rb'HTTP/1.1 [12]0[01] .*{"event":"resumed","channel":"c","data":{"recovered":false,"reason":"unknown"'
NAMES = {
    "": BAD_NAME,
    "x" * 15: BAD_NAME,
    "x" * 65: BAD_NAME,
    "..": BAD_NAME,
    "%2e%2e%2f" * 3: BAD_NAME,
    "x" * 16 + "%00": BAD_NAME,
    "x" * 16 + "%0a": BAD_NAME,
    "%c3%a4" * 16: BAD_NAME,
    "x" * 5000: BAD_NAME,
    "x" * 17_000: TOO_LONG,
    "ä" * 16: NOT_HTTP,
    "x" * 16 + "\0": NOT_HTTP,
}
POSITIONS = {
    f"k3F9aQx2bT:{10**30}": UNKNOWN,
    "k3F9aQx2bT:-1": UNKNOWN,
    "," * 10_000: UNKNOWN,
    "k3F9aQx2bT:1," * 300: UNKNOWN,
    "%00": UNKNOWN,
    "%f0%9f%98%80": UNKNOWN,
    "\0": NOT_HTTP,
    "ä": NOT_HTTP,
}


def requests() -> Iterator[tuple[bytes, bytes]]:
    """Returns hostile requests, and a regular expression for the answer to each."""
    for name, answer in NAMES.items():
        yield f"GET /resume/{name}/app/app-key?{QUERY} HTTP/1.1\r\n".encode() + HANDSHAKE, answer
        sent = answer.replace(BAD_NAME, rb"HTTP/1.1 404 .*the name of a page has 16 to 64 characters")
        yield f"POST /resume/{name}/pusher/app/app-key/1/abcdefgh/xhr_streaming HTTP/1.1\r\nHost: localhost\r\n".encode(), sent
    for since, answer in POSITIONS.items():
        yield f"GET /ws/app/app-key/c/?positions=1&since={since} HTTP/1.1\r\n".encode() + HANDSHAKE, answer
        yield f"GET /sse/app/app-key/c?since={since} HTTP/1.1\r\nHost: localhost\r\n".encode(), answer
        id = f"GET /sse/app/app-key/c HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: {since}\r\n".encode()
        yield id, UNKNOWN if since == "ä" else answer


def exchange(server: ServerProcess, request: bytes, answer: bytes) -> None:
    """Sends a request, and reads until its answer has come."""
    with socket.create_connection(("127.0.0.1", server.ws_port), DEADLINE) as one:
        one.sendall(request + b"\r\n")
        data = b""
        while not re.match(answer, data, re.DOTALL):
            more = one.recv(65_536)
            assert more, (request[:100], data)
            data += more
        assert b"connection_established" not in data
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def test_odd_names_and_positions_are_answered_and_use_no_memory(broker: Valkey | None) -> None:
    with running(configured(broker), kept()) as server:
        used = []
        for _ in range(2):  # the first half fills the caches, and lets the garbage collector run
            for request, answer in [*requests()] * 100:
                exchange(server, request, answer)
            used.append(used_bytes(server, broker))
        assert used[1][0] - used[0][0] < 2 * MEGABYTE
        assert used[1][1] - used[0][1] < MEGABYTE // 4
        server.assert_alive()
