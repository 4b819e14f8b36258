"""Checks of this machine and this user, which change neither."""

import errno
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from push1st.cli.preflight import mistakes, notes, obstacle
from push1st.config.addresses import Listen
from push1st.config.model import ApiConfig, Config, HooksConfig, ServerConfig, Ssl
from push1st.config.mqtt import Mqtt, MqttSsl
from push1st.errors import ConfigError
from tests.support.certificates import Authority


def test_a_folder_that_does_not_exist_yet_is_no_mistake_and_is_not_created(tmp_path: Path) -> None:
    assert obstacle(tmp_path / "a" / "b") == ""
    assert mistakes(Config(hooks=HooksConfig(folder=str(tmp_path / "a" / "b")))) == []
    assert list(tmp_path.iterdir()) == []


def test_file_at_the_path_of_the_hook_events_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (line,) = mistakes(Config(hooks=HooksConfig(folder=str(tmp_path / "file" / "hooks"))))
    assert line.startswith(
        f"hooks.folder: cannot keep hook events in {tmp_path}/file/hooks: {tmp_path}/file is not a folder, allowed:"
    )


def test_a_host_that_does_not_exist_is_an_error() -> None:
    server = ServerConfig(listen=(Listen("tcp", "-", 6001),))
    config = Config(server=server, api=ApiConfig(listen=()), places=(("server.listen", "server.yml:2"),))
    (line,) = mistakes(config)
    assert line.startswith("server.yml:2: server.listen: cannot listen on tcp://-:6001: ")
    assert machine_notes(config) == []


def test_an_address_that_this_machine_does_not_have_is_a_note() -> None:
    """The configuration may be for another machine."""
    config = Config(server=ServerConfig(listen=(Listen("tcp", "192.0.2.1", 6001),)), api=ApiConfig(listen=()))
    (line,) = machine_notes(config)
    assert line.startswith("server.listen: cannot listen on tcp://192.0.2.1:6001: ")
    assert mistakes(config) == []


def test_an_address_on_which_only_this_user_may_not_listen_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(role: str, address: Listen) -> list[object]:  # root may use each port
        raise ConfigError(f"cannot listen on {address}: denied") from PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr("push1st.cli.preflight.bind", refuse)
    config = Config(server=ServerConfig(listen=(Listen("tcp", port=80),)), api=ApiConfig(listen=()))
    assert machine_notes(config) == ["server.listen: cannot listen on tcp://*:80: denied"]
    assert mistakes(config) == []


@pytest.mark.skipif(sys.platform != "linux", reason="file systems of Linux")
@pytest.mark.parametrize("folder", ["/proc/nope", "/sys/nope/below"])
def test_a_folder_in_which_the_kernel_permits_no_files_is_an_error(folder: str) -> None:
    (line,) = mistakes(Config(server=ServerConfig(listen=()), api=ApiConfig(listen=()), hooks=HooksConfig(folder=folder)))
    assert line.startswith(f"hooks.folder: cannot keep hook events in {folder}: the kernel permits no files in /")


def test_an_address_in_use_gets_no_note() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        listen = Listen("tcp", "127.0.0.1", other.getsockname()[1])
        assert machine_notes(Config(server=ServerConfig(listen=(listen,)), api=ApiConfig(listen=()))) == []


def test_the_folder_of_a_unix_socket_is_checked_and_not_created(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    listen = tuple(Listen("unix", path=str(tmp_path / name)) for name in ("file/s", "new/s", "file"))
    config = Config(server=ServerConfig(listen=()), api=ApiConfig(listen=listen))
    assert mistakes(config) == [
        f"api.listen: cannot listen on unix://{tmp_path}/file/s: {tmp_path}/file is not a folder",
        f"api.listen: cannot listen on unix://{tmp_path}/file: a file that is no socket is in the way",
    ]
    assert machine_notes(config) == []
    assert not (tmp_path / "new").exists()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def with_tls(cert: Path, key: Path) -> Config:
    places = ("server.ssl.key", "server.yml:3"), ("server.ssl.cert", "server.yml:4")
    server = ServerConfig(listen=(), ssl=Ssl(True, str(key), str(cert)))
    return Config(server=server, api=ApiConfig(listen=()), places=places)


PEM = "allowed: a PEM file with a"
DAMAGED = "-----BEGIN {0}-----\nbm90aGluZw==\n-----END {0}-----\n"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("no certificate", "4: server.ssl.cert: cannot use the certificate CERT: the file does not exist"),
        ("no key", "3: server.ssl.key: cannot use the key KEY: the file does not exist"),
        (
            "no PEM certificate",
            f"4: server.ssl.cert: cannot use the certificate CERT: found no certificate in it, {PEM} certificate",
        ),
        (
            "no PEM key",
            f"3: server.ssl.key: cannot use the key KEY: found no private key in it, {PEM} private key",
        ),
        ("damaged certificate", "4: server.ssl.cert: cannot use the certificate CERT: its PEM text is damaged"),
        ("damaged key", "3: server.ssl.key: cannot use the key KEY: its PEM text is damaged"),
        ("another key", "3: server.ssl.key: cannot use the key KEY: it does not belong to the certificate CERT"),
    ],
)
def test_error_about_tls_names_place_file_and_cause(authority: Authority, change: str, line: str) -> None:
    cert, key = authority.issue("a")
    match change:
        case "no certificate":
            cert.unlink()
        case "no key":
            key.unlink()
        case "no PEM certificate":
            cert.write_text("nothing")
        case "no PEM key":
            key.write_text(cert.read_text())
        case "damaged certificate":
            cert.write_text(DAMAGED.format("CERTIFICATE"))
        case "damaged key":
            key.write_text(DAMAGED.format("PRIVATE KEY"))
        case "another key":
            _, key = authority.issue("b")
    config = with_tls(cert, key)
    assert mistakes(config) == [f"server.yml:{line.replace('CERT', str(cert)).replace('KEY', str(key))}"]


def test_file_that_only_this_user_cannot_read_is_a_note(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    cert, key = authority.issue("a")
    config = with_tls(cert, key)

    def refuse(path: Path) -> bytes:  # root may read every file
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert machine_notes(config) == [
        f"server.yml:4: server.ssl.cert: cannot use the certificate {cert}: {os.strerror(errno.EACCES)}"
    ]
    assert mistakes(config) == []


def test_certificate_that_is_not_valid_is_an_error_and_one_that_expires_soon_is_a_note(authority: Authority) -> None:
    """The certificate is valid from two days ago for 30 days."""
    config, day, now = with_tls(*authority.issue("a", days=30)), 86_400, time.time()
    place = f"server.yml:4: server.ssl.cert: cannot use the certificate {config.server.ssl.cert} now: "
    assert [line.startswith(f"{place}it expired on 20") for line in mistakes(config, now + 31 * day)] == [True]
    assert [line.startswith(f"{place}it is valid from 20") for line in mistakes(config, now - 3 * day)] == [True]
    for days, expected in ((0, 0), (15, 0), (17, 1), (29.5, 1)):
        assert mistakes(config, now + days * day) == []
        assert len([line for line in notes(config, now + days * day) if "expires in" in line]) == expected
    soon = f"server.yml:4: server.ssl.cert: the certificate {config.server.ssl.cert} expires in 8 days, on 20"
    assert any(line.startswith(soon) for line in notes(config, now + 21.5 * day))


def test_self_signed_certificate_and_a_file_that_everybody_may_change_are_notes(tmp_path: Path) -> None:
    (tmp_path / "apps.yml").touch()
    (tmp_path / "apps.yml").chmod(0o666)
    server = ServerConfig(listen=(), ssl=Ssl(True))
    config = Config(server=server, api=ApiConfig(listen=()), files=(str(tmp_path / "apps.yml"),))
    first, second = machine_notes(config)
    assert first.startswith("server.ssl.enable: without key and cert, self-signed certificate in use")
    assert second.startswith(f"every user of this machine may change {tmp_path}/apps.yml (")
    assert second.endswith(f" 0666): chmod o-w {tmp_path}/apps.yml")


def test_mqtt_certificates_are_checked_too(tmp_path: Path) -> None:
    for name in ("key", "cert", "ca"):
        (tmp_path / name).write_text("nothing")
    ssl = MqttSsl(key=str(tmp_path / "key"), cert=str(tmp_path / "cert"), ca=str(tmp_path / "ca"))
    mqtt = Mqtt(listen=(Listen("tls", "127.0.0.1", 1),), ssl=ssl)
    server = ServerConfig(proto=frozenset({"mqtt"}), listen=(), mqtt=mqtt)
    first, second = mistakes(Config(server=server, api=ApiConfig(listen=())))
    assert first.startswith(f"server.mqtt.ssl.cert: cannot use the certificate {tmp_path}/cert: found no certificate")
    assert second.startswith(f"server.mqtt.ssl.ca: cannot use the certificates of authorities in {tmp_path}/ca: found no")


def machine_notes(config: Config) -> list[str]:
    return [note for note in notes(config) if not note.startswith("checked as root")]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Makes a folder that every user may enter; the folders of pytest are private."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="what root is reminded of")
def test_root_is_reminded_of_files_that_the_user_of_the_server_may_not_read(folder: Path) -> None:
    files = [folder / name for name in ("server.yml", "shop.yml")]
    for file, mode in zip(files, (0o644, 0o600), strict=True):
        file.touch()
        file.chmod(mode)
    config = Config(server=ServerConfig(listen=()), api=ApiConfig(listen=()), files=tuple(map(str, files)))
    (line,) = notes(config)
    assert line.startswith(
        "checked as root, who may read every file; if the server runs as another user, that user must be able to read "
    )
    assert f"{folder}/shop.yml (root:root 0600)" in line
    assert "server.yml (" not in line
    files[1].chmod(0o644)
    assert list(notes(config)) == []
