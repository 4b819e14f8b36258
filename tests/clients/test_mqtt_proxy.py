"""The PROXY protocol before MQTT: headers as bytes, TLS after the header, and haproxy with paho-mqtt."""

import contextlib
import socket
import ssl
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.certificates import Authority
from tests.support.paho import V5, V311, paho_client
from tests.support.process import APP, DEADLINE, ServerProcess, free_ports, merged, program, running, wait_until

CONNECT = bytes.fromhex("10 16 00 04 4d 51 54 54 04 82 00 3c 00 01 61 00 07 61 70 70 2d 6b 65 79")
ACCEPTED = bytes.fromhex("20 02 00 00")
NOT_AUTHORIZED = bytes.fromhex("20 02 00 05")
V2 = bytes.fromhex("0d0a0d0a000d0a515549540a")
CLIENT = b"PROXY TCP4 203.0.113.7 203.0.113.1 40000 1883\r\n"
"""a header with the address that the backend of these tests accepts"""
MODULE = """
def decide(question):
    return question.ip == "203.0.113.7" or question.ip == "2001:db8::7"
"""
HEADERS = {
    "v1": CLIENT,
    "v1 over IPv6": b"PROXY TCP6 2001:db8::7 ::1 40000 1883\r\n",
    "v2": V2 + bytes.fromhex("21 11 000c cb007107 cb007101 dc04 075b"),
    "v2 over IPv6": V2 + bytes.fromhex("21 21 0024 20010db8000000000000000000000007" + "00" * 16 + "dc04 22b3"),
    "v2 with TLVs": V2 + bytes.fromhex("21 11 0013 cb007107 cb007101 dc04 075b 010004 6d717474"),
}


class Ports(NamedTuple):
    server: ServerProcess
    tcp: int
    tls: int
    authority: Path


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ports]:
    """Runs a server that requires PROXY headers, and whose backend accepts two addresses."""
    folder = tmp_path_factory.mktemp("proxied")
    (folder / "rights.py").write_text(MODULE)
    authority = Authority(folder)
    cert, key = authority.issue("127.0.0.1")
    tcp, tls = free_ports(2)
    mqtt = {
        "listen": [f"tcp://127.0.0.1:{tcp}", f"tls://127.0.0.1:{tls}"],
        "proxy-protocol": True,
        "ssl": {"cert": str(cert), "key": str(key)},
        "push": ["public"],
        "whitelist": ["203.0.113.0/24", "2001:db8::/32", "127.0.0.1"],
    }
    app = merged(APP, {"authorize": {"url": "py://rights:decide", "on": ["connect"]}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        with running({"server": {"proto": ["mqtt"], "proxies": ["127.0.0.1"], "mqtt": mqtt}}, apps={"app-test": app}) as server:
            yield Ports(server, tcp, tls, authority.certificate)


@contextlib.contextmanager
def connected(port: int, address: str = "127.0.0.1") -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), DEADLINE, source_address=(address, 0)) as connection:
        yield connection


def answer(connection: socket.socket) -> bytes:
    """Returns the answer to CONNECT, or b"" if the server closes the connection."""
    with contextlib.suppress(ConnectionResetError):
        return connection.recv(100)
    return b""


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_address_of_the_header_reaches_the_backend(ports: Ports, header: bytes) -> None:
    with connected(ports.tcp) as connection:
        connection.sendall(header + CONNECT + b"\xc0\0")
        assert connection.recv(4) == ACCEPTED
        assert connection.recv(2) == b"\xd0\0"


def test_header_may_arrive_in_pieces(ports: Ports) -> None:
    with connected(ports.tcp) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in CLIENT + CONNECT:
            connection.sendall(bytes((byte,)))
        assert answer(connection) == ACCEPTED


def test_local_header_keeps_the_address_of_the_peer(ports: Ports) -> None:
    with connected(ports.tcp) as connection:
        connection.sendall(V2 + bytes.fromhex("20 00 0000") + CONNECT)
        assert answer(connection) == NOT_AUTHORIZED


@pytest.mark.parametrize(
    "sent",
    [
        CONNECT,
        b"GET / HTTP/1.1\r\n\r\n",
        b"PROXY TCP4 203.0.113.7\r\n" + CONNECT,
        b"PROXY " + b"x" * 200,
        V2 + b"\x21\x11\xff\xff",
    ],
    ids=["MQTT", "HTTP", "short v1", "long v1", "long v2"],
)
def test_connection_without_a_valid_header_is_closed(ports: Ports, sent: bytes) -> None:
    with connected(ports.tcp) as connection:
        connection.sendall(sent)
        assert answer(connection) == b""


def test_peer_that_is_no_proxy_is_closed(ports: Ports) -> None:
    with connected(ports.tcp, "127.0.0.2") as connection:
        with contextlib.suppress(OSError):
            connection.sendall(CLIENT + CONNECT)
        assert answer(connection) == b""
    metrics = ports.server.get("/metrics").body.decode()
    assert 'push1st_cut_offs_total{reason="proxy-header"} 0.0' not in metrics


def test_whitelist_applies_to_the_address_of_the_header(ports: Ports) -> None:
    with connected(ports.tcp) as connection:
        connection.sendall(CLIENT.replace(b"203.0.113.7", b"198.51.100.1") + CONNECT)
        assert answer(connection) == b""


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("header", [HEADERS["v1"], HEADERS["v2"]], ids=["v1", "v2"])
def test_tls_begins_after_the_header_even_in_the_same_segment(ports: Ports, header: bytes, version: ssl.TLSVersion) -> None:
    context = ssl.create_default_context(cafile=str(ports.authority))
    context.minimum_version = context.maximum_version = version
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with connected(ports.tls) as connection:
        pending = header

        def exchange(step: object) -> bytes:
            nonlocal pending
            while True:
                try:
                    found = step()  # type: ignore[operator]
                except ssl.SSLWantReadError:
                    connection.sendall(pending + outgoing.read())
                    pending = b""
                    data = connection.recv(65_536)
                    assert data, "the server closed the connection"
                    incoming.write(data)
                else:
                    return found if isinstance(found, bytes) else b""

        exchange(tls.do_handshake)
        tls.write(CONNECT)
        connection.sendall(outgoing.read())  # with TLS 1.3, the end of the handshake and the packet arrive together
        assert exchange(lambda: tls.read(100)) == ACCEPTED


def test_many_connections_over_tls_get_their_answers(ports: Ports) -> None:
    context = ssl.create_default_context(cafile=str(ports.authority))
    with contextlib.ExitStack() as stack:
        opened = []
        for _ in range(50):
            raw = stack.enter_context(connected(ports.tls))
            raw.sendall(CLIENT)
            opened.append(stack.enter_context(context.wrap_socket(raw, server_hostname="127.0.0.1")))
        for number, connection in enumerate(opened):
            connection.sendall(CONNECT.replace(b"\0\x01a", b"\0\x01" + bytes((48 + number,))))
        assert [connection.recv(4) for connection in opened] == [ACCEPTED] * 50


def test_failed_tls_handshake_after_the_header_is_closed(ports: Ports) -> None:
    with connected(ports.tls) as connection:
        connection.sendall(CLIENT + CONNECT)
        while piece := answer(connection):
            assert piece[0] == 0x15  # a TLS alert
    ports.server.assert_alive()


def test_stopping_server_closes_connections_without_a_header(tmp_path: Path) -> None:
    own = free_ports(1)[0]
    mqtt = {"listen": f"tcp://127.0.0.1:{own}", "proxy-protocol": True}
    with (
        running({"server": {"proto": ["mqtt"], "drain": 0, "proxies": ["127.0.0.1"], "mqtt": mqtt}}) as server,
        connected(own) as connection,
    ):
        connection.sendall(b"PROXY ")
        server.signal()
        assert answer(connection) == b""
        server.wait()


HAPROXY = """
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen plain1
    bind 127.0.0.1:{0}
    server push1st 127.0.0.1:{3} send-proxy
listen plain2
    bind 127.0.0.1:{1}
    server push1st 127.0.0.1:{3} send-proxy-v2
listen secure
    bind 127.0.0.1:{2}
    server push1st 127.0.0.1:{4} send-proxy-v2 ssl verify none
"""


def test_clients_behind_haproxy(tmp_path: Path) -> None:
    haproxy = program("haproxy")
    *front, plain, secure = free_ports(5)
    mqtt = {"listen": [f"tcp://127.0.0.1:{plain}", f"tls://127.0.0.1:{secure}"], "proxy-protocol": True, "push": ["public"]}
    (tmp_path / "haproxy.cfg").write_text(HAPROXY.format(*front, plain, secure))
    with running({"server": {"proto": ["mqtt"], "proxies": ["127.0.0.1"], "mqtt": mqtt}}):
        process = subprocess.Popen([haproxy, "-db", "-f", str(tmp_path / "haproxy.cfg")], stderr=subprocess.DEVNULL)
        try:
            for port in front:
                wait_until(partial(is_open, port), "haproxy listens")
                for version in (V311, V5):
                    with paho_client(port, version) as client:
                        client.subscribe("a/b")
                        client.publish("a/b", b"hello")
                        assert client.expect() == ("a/b", b"hello")
        finally:
            process.kill()
            process.wait()


def is_open(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
