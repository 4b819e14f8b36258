"""The addresses of `server.mqtt.listen`: they are open from the start to the stop of the server, and during a reload."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from push1st.process.tls import self_signed
from tests.cluster.machine import machine, reconfigure, reload, until_workers
from tests.support.paho import PahoClient, paho_client
from tests.support.process import free_ports, running, wait_until
from tests.support.signing import access_token

CONNECT = bytes.fromhex("1015 0004 4d515454 04 82 003c 0000 0007 6170702d6b6579")
"""a CONNECT of MQTT 3.1.1 with a clean session, and with the key of the app as its user name"""
ACCEPTED = bytes.fromhex("20020000")


class MqttServer:
    """A server with a TCP, a TLS and a Unix address for MQTT."""

    def __init__(self, stack: contextlib.ExitStack, workers: int, **settings: object) -> None:
        self.tcp, self.tls = free_ports(2)
        listen = [f"tcp://127.0.0.1:{self.tcp}", f"tls://127.0.0.1:{self.tls}", "unix://mqtt.sock"]
        server = {"proto": ["pusher", "websocket", "mqtt"], "mqtt": {"listen": listen, **settings}}
        process = machine(workers, {"server": server}) if workers > 1 else running({"server": server})
        self.process = stack.enter_context(process)
        self.unix = self.process.folder / "mqtt.sock"

    @property
    def addresses(self) -> list[int | Path]:
        return [self.tcp, self.tls, self.unix]


def connect(address: int | Path) -> socket.socket:
    if isinstance(address, int):
        return socket.create_connection(("127.0.0.1", address), timeout=10)
    found = socket.socket(socket.AF_UNIX)
    try:
        found.connect(str(address))  # with a timeout, it would fail at once if too many connections wait
    except OSError:
        found.close()
        raise
    found.settimeout(10)
    return found


def tls_context(certificate: tuple[str, str] | None = None) -> ssl.SSLContext:
    """Returns a client's context that accepts every server. certificate: the files of the client's key and certificate.

    The client uses TLS 1.2, because with TLS 1.3 the handshake of a client ends before the server checks its certificate.
    """
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    if certificate is not None:
        context.load_cert_chain(certificate[1], certificate[0])
    return context


def is_accepted(connection: socket.socket) -> bool:
    """Sends a CONNECT; returns whether the server accepts the client."""
    connection.sendall(CONNECT)
    return connection.recv(16) == ACCEPTED


def assert_served(server: MqttServer, context: ssl.SSLContext | None = None) -> None:
    for address in (server.tcp, server.unix):
        with connect(address) as connection:
            assert is_accepted(connection)
    with connect(server.tls) as plain, (context or tls_context()).wrap_socket(plain) as connection:
        assert is_accepted(connection)


def is_rejected(server: MqttServer, context: ssl.SSLContext) -> bool:
    """Returns whether the TLS handshake fails."""
    with connect(server.tls) as plain:
        try:
            context.wrap_socket(plain).close()
        except (ssl.SSLError, ConnectionError):
            return True
    return False


def is_refused(address: int | Path) -> bool:
    try:
        connect(address).close()
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    return False


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as made:
        yield made


@pytest.mark.parametrize("workers", [1, 2])
def test_all_addresses_are_served_until_the_server_stops(stack: contextlib.ExitStack, workers: int) -> None:
    server = MqttServer(stack, workers)
    assert_served(server)
    for scheme, port in (("tcp", server.tcp), ("tls", server.tls)):
        assert f"MQTT on {scheme}://127.0.0.1:{port}" in server.process.output
    with connect(server.tcp) as client:
        assert is_accepted(client)
        server.process.signal()
        for address in server.addresses:
            wait_until(lambda: is_refused(address), f"{address} is closed")  # noqa: B023 - used at once
        assert client.recv(1) == b""
    assert server.process.wait() == 0
    assert not server.unix.exists()


def test_reload_applies_the_changes_of_an_app_to_its_clients(stack: contextlib.ExitStack) -> None:
    server = MqttServer(stack, 2)
    file = server.process.folder / "apps" / "more.yml"

    def change(**app: object) -> None:
        file.write_text(yaml.safe_dump({"more": {"key": "more-key", "secret": "more-secret", **app}}))
        reload(server.process)

    def client(secret: str, accepted: bool = True) -> PahoClient:
        password = access_token({"app": "more", "channel": "*"}, secret)
        return stack.enter_context(paho_client(server.tcp, username="more-key", password=password, accepted=accepted))

    change()
    first = client("more-secret")
    change(secret="other-secret")
    assert first.expect_end() == 0x8B
    assert client("more-secret", accepted=False).reason == 0x86
    second = client("other-secret")
    change(enable=False)
    assert second.expect_end() == 0x8B
    assert client("more-secret", accepted=False).reason == 0x87


def test_reload_refuses_no_mqtt_connection_and_closes_addresses_that_the_file_no_longer_has(stack: contextlib.ExitStack) -> None:
    server = MqttServer(stack, 2)
    failures: list[OSError] = []
    connections = 0
    is_over = threading.Event()

    def connect_repeatedly() -> None:
        nonlocal connections
        while not is_over.is_set():
            for address in (server.tls, server.unix):
                try:
                    connect(address).close()
                    connections += 1
                except OSError as exc:
                    failures.append(exc)

    thread = threading.Thread(target=connect_repeatedly)
    thread.start()
    (added,) = free_ports(1)
    try:
        kept = [f"tls://127.0.0.1:{server.tls}", "unix://mqtt.sock"]
        reconfigure(server.process, {"server": {"mqtt": {"listen": [*kept, f"tcp://127.0.0.1:{added}"]}}})
        reload(server.process)
        until_workers(server.process, 2)
    finally:
        is_over.set()
        thread.join()
    assert failures == []
    assert connections > 10
    assert is_refused(server.tcp)
    server.tcp = added
    assert_served(server)


@pytest.mark.parametrize("verify", ["required", "optional"])
def test_a_client_certificate_must_be_signed_by_a_configured_authority(
    stack: contextlib.ExitStack, tmp_path: Path, verify: str
) -> None:
    certificate, stranger = self_signed(tmp_path), self_signed(tmp_path)
    server = MqttServer(stack, 1, ssl={"ca": certificate[1], "verify": verify})
    assert_served(server, tls_context(certificate))
    assert is_rejected(server, tls_context(stranger))
    assert is_rejected(server, tls_context()) is (verify == "required")


@pytest.mark.parametrize(("offered", "selected"), [(["mqtt"], "mqtt"), (["x", "mqtt"], "mqtt"), (["http/1.1"], None), ([], None)])
def test_a_tls_client_may_offer_the_protocol(one_server: MqttServer, offered: list[str], selected: str | None) -> None:
    context = tls_context()
    context.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED
    if offered:
        context.set_alpn_protocols(offered)
    with connect(one_server.tls) as plain, context.wrap_socket(plain) as connection:
        assert connection.selected_alpn_protocol() == selected
        assert connection.version() == "TLSv1.3"
        assert is_accepted(connection)


@pytest.fixture(scope="module")
def one_server() -> Iterator[MqttServer]:
    with contextlib.ExitStack() as made:
        yield MqttServer(made, 1)
