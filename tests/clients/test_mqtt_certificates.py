"""Certificates of MQTT clients over TLS: the common name is the user, with paho-mqtt. Also MQTT over a Unix socket."""

import contextlib
import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.certificates import Authority
from tests.support.paho import V5, V31, V311, paho_client
from tests.support.process import APP, DEADLINE, ServerProcess, free_ports, merged, running, wait_until

CONNECT = bytes.fromhex("10 16 00 04 4d 51 54 54 04 82 00 3c 00 01 61 00 07 61 70 70 2d 6b 65 79")
ACCEPTED = bytes.fromhex("20 02 00 00")
MODULE = """
from push1st.hooks.events import Connecting

def decide(question):
    match question:
        case Connecting(certificate=name, password=password):
            return name == "pump-1" and password is None
        case _:
            return question.user_id == "pump-1"
"""


class Site(NamedTuple):
    """required: the port that requires certificates; optional: the port of a server that accepts clients without."""

    server: ServerProcess
    authority: Authority
    port: int


def context(site: Site, *names: str, authority: Authority | None = None, days: int = 1) -> ssl.SSLContext:
    """Returns the TLS context of a client whose certificate has these common names."""
    made = ssl.create_default_context(cafile=str(site.authority.certificate))
    made.verify_flags &= ~ssl.VERIFY_X509_STRICT
    made.load_cert_chain(*(authority or site.authority).issue(*names, days=days))
    return made


def bare(site: Site) -> ssl.SSLContext:
    """Returns the TLS context of a client without a certificate."""
    made = ssl.create_default_context(cafile=str(site.authority.certificate))
    made.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return made


@contextlib.contextmanager
def site_with(folder: Path, **settings: object) -> Iterator[Site]:
    (folder / "rights.py").write_text(MODULE)
    authority = Authority(folder)
    cert, key = authority.issue("127.0.0.1")
    port = free_ports(1)[0]
    tls = {"cert": str(cert), "key": str(key), "ca": str(authority.certificate), **settings}
    apps = {
        "app-closed": merged(APP, {"key": "closed-key", "options": {"authorized-only": True}}),
        "app-decided": merged(
            APP,
            {
                "key": "decided-key",
                "authorize": {"url": "py://rights:decide", "on": ["connect", "subscribe"], "filter": ["private-"]},
            },
        ),
    }
    mqtt = {"listen": f"tls://127.0.0.1:{port}", "ssl": tls}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        with running({"server": {"proto": ["mqtt"], "mqtt": mqtt}}, apps=apps) as server:
            yield Site(server, authority, port)


@pytest.fixture(scope="module")
def required(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_with(tmp_path_factory.mktemp("required")) as site:
        yield site


@pytest.fixture(scope="module")
def optional(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_with(tmp_path_factory.mktemp("optional"), verify="optional") as site:
        yield site


def is_accepted(site: Site, tls: ssl.SSLContext) -> bool:
    """Returns whether the server answers CONNECT. With TLS 1.3, a client gets the alert after its own handshake."""
    with (
        contextlib.suppress(OSError),
        socket.create_connection(("127.0.0.1", site.port), DEADLINE) as raw,
        tls.wrap_socket(raw, server_hostname="127.0.0.1") as connection,
    ):
        connection.sendall(CONNECT)
        return connection.recv(4) == ACCEPTED
    return False


@pytest.mark.parametrize("version", [V31, V311, V5])
def test_common_name_is_the_user(required: Site, version: object) -> None:
    name = f"pump-{version}"
    with paho_client(required.port, version, tls=context(required, name)) as client:  # type: ignore[arg-type]
        refused = 0x87 if version == V5 else 0x80
        assert client.subscribe(f"$user/{name}", "$user/other", "public", "private-a", "presence-a") == [
            0,
            refused,
            0,
            refused,
            refused,
        ]
        required.server.publish(f"#server-to-user-{name}", "order", "on")
        assert client.expect() == (f"$user/{name}", b"on")
        assert required.server.post(f"/apps/app-test/users/{name}/terminate_connections", {}).status == 200
        assert client.expect_end() != 0


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_invalid_certificates_are_rejected(required: Site, optional: Site, tmp_path: Path, version: ssl.TLSVersion) -> None:
    stranger = Authority(tmp_path, "stranger")
    for site in (required, optional):
        good = context(site, "pump")
        good.maximum_version = version
        assert is_accepted(site, good)
        for tls in (context(site, "pump", days=-1), context(site, "pump", authority=stranger)):
            tls.maximum_version = version
            assert not is_accepted(site, tls)
        none = bare(site)
        none.maximum_version = version
        assert is_accepted(site, none) == (site is optional)


def test_failed_handshake_is_counted(required: Site, tmp_path: Path) -> None:
    def count() -> float:
        found = re.search(r'cut_offs_total{reason="tls"} (\S+)', required.server.get("/metrics").body.decode())
        return float(found[1]) if found else 0

    before = count()
    assert not is_accepted(required, context(required, "pump", authority=Authority(tmp_path, "stranger")))
    wait_until(lambda: count() == before + 1, "the handshake is counted")
    distrustful = ssl.create_default_context()
    distrustful.check_hostname = False
    with pytest.raises(ssl.SSLCertVerificationError), socket.create_connection(("127.0.0.1", required.port)) as connection:
        distrustful.wrap_socket(connection)
    wait_until(lambda: count() == before + 2, "the client's alert is counted")


def test_client_without_a_certificate_is_anonymous(optional: Site) -> None:
    with (
        paho_client(optional.port, tls=bare(optional)) as anonymous,
        paho_client(optional.port, V311, tls=context(optional, "pump")) as device,
    ):
        assert anonymous.subscribe("a", "$user/pump") == [0, 0x87]
        assert device.subscribe("a") == [0]
        anonymous.publish("a", "not permitted")
        device.publish("a", "from the device")
        assert anonymous.expect() == device.expect() == ("a", b"from the device")


def test_certificate_needs_no_password_and_no_other_password_is_ignored(required: Site) -> None:
    with (
        paho_client(required.port, username="closed-key", tls=context(required, "pump")),
        paho_client(required.port, password="wrong", accepted=False, tls=context(required, "pump")) as wrong,
    ):
        assert wrong.reason == 0x86


def test_token_adds_rights_to_a_certificate(required: Site) -> None:
    body = {"origin": "*", "channel": ["private-a"], "ttl": 0}
    token = required.server.post("/apps/app-test/token/access", body).body.decode()
    with paho_client(required.port, password=token, tls=context(required, "pump")) as client:
        assert client.subscribe("private-a", "private-b", "$user/pump") == [0, 0x87, 0]


def test_client_id_belongs_to_the_common_name(required: Site) -> None:
    pump = context(required, "pump")
    with (
        paho_client(required.port, client_id="device", tls=pump) as first,
        paho_client(required.port, client_id="device", accepted=False, tls=context(required, "valve")) as other,
    ):
        assert other.reason == 0x87
        with paho_client(required.port, client_id="device", tls=pump):
            assert first.expect_end() == 0x8E


@pytest.mark.parametrize("names", [(), ("one", "two"), ("a\nb",)], ids=["none", "two", "control"])
def test_certificate_whose_common_name_is_no_user_id_is_rejected(required: Site, names: tuple[str, ...]) -> None:
    with paho_client(required.port, accepted=False, tls=context(required, *names)) as client:
        assert client.reason == 0x87


def test_backend_gets_the_common_name(required: Site) -> None:
    with paho_client(required.port, username="decided-key", tls=context(required, "pump-1")) as client:
        assert client.subscribe("private-a") == [0]
    with paho_client(required.port, username="decided-key", accepted=False, tls=context(required, "pump-2")) as other:
        assert other.reason == 0x87


def test_presence_member_is_the_common_name(required: Site) -> None:
    body = {"origin": "*", "channel": ["presence-*"], "ttl": 0}
    token = required.server.post("/apps/app-test/token/access", body).body.decode()
    with paho_client(required.port, password=token, tls=context(required, "pump")) as client:
        client.subscribe("presence-hall")
        answer = required.server.get("/apps/app-test/channels/presence-hall/users")
        assert b'"pump"' in answer.body


# Unix sockets


@pytest.mark.parametrize("version", [V31, V311, V5])
def test_unix_socket(version: object) -> None:
    mqtt = {"listen": "unix://mqtt.socket", "push": ["public"], "whitelist": ["10.0.0.0/8"]}
    with running({"server": {"proto": ["mqtt"], "drain": 0, "mqtt": mqtt}}) as server:
        path = str(Path(server.folder) / "mqtt.socket")
        wait_until(lambda: Path(path).exists(), "the server listens on the Unix socket")
        with paho_client(1, version, path=path) as client, paho_client(1, V311, path=path) as other:  # type: ignore[arg-type]
            assert client.subscribe("a/b") == other.subscribe("a/b") == [0]
            client.publish("a/b", "hello")
            assert client.expect() == other.expect() == ("a/b", b"hello")
            server.signal()
            client.expect_end()
            server.wait()
