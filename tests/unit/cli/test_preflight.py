"""Checks of this machine and this user, which change neither."""

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from push1st.cli.preflight import mistakes, notes, obstacle
from push1st.config.addresses import Listen
from push1st.config.model import ApiConfig, Config, HooksConfig, ServerConfig, Ssl
from push1st.config.mqtt import Mqtt, MqttSsl


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


def test_an_address_that_this_machine_does_not_have_is_a_note() -> None:
    (line,) = machine_notes(Config(server=ServerConfig(listen=(Listen("tcp", "192.0.2.1", 6001),)), api=ApiConfig(listen=())))
    assert line.startswith("cannot listen on tcp://192.0.2.1:6001: ")


def test_an_address_in_use_gets_no_note() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        listen = Listen("tcp", "127.0.0.1", other.getsockname()[1])
        assert machine_notes(Config(server=ServerConfig(listen=(listen,)), api=ApiConfig(listen=()))) == []


def test_the_folder_of_a_unix_socket_is_checked_and_not_created(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    listen = tuple(Listen("unix", path=str(tmp_path / name / "s")) for name in ("file", "new"))
    (line,) = machine_notes(Config(server=ServerConfig(listen=()), api=ApiConfig(listen=listen)))
    assert line == f"cannot listen here on unix://{tmp_path}/file/s: {tmp_path}/file is not a folder"
    assert not (tmp_path / "new").exists()


def test_wrong_certificate_is_an_error_and_unreadable_certificate_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssl = Ssl(True, str(tmp_path / "key"), str(tmp_path / "cert"))
    config = Config(server=ServerConfig(listen=(), ssl=ssl), api=ApiConfig(listen=()))
    said = f"cannot use the certificate {tmp_path}/cert with the key {tmp_path}/key: "
    for name in ("key", "cert"):
        (tmp_path / name).write_text("nothing")
    (line,) = mistakes(config)
    assert line.startswith(said)
    assert machine_notes(config) == []
    monkeypatch.setattr("os.geteuid", lambda: 1000)  # root also checks the permissions of the file, which does not exist
    (tmp_path / "cert").unlink()
    (line,) = notes(config)
    assert line.startswith(said)
    assert mistakes(config) == []


def test_mqtt_certificates_are_checked_too(tmp_path: Path) -> None:
    for name in ("key", "cert", "ca"):
        (tmp_path / name).write_text("nothing")
    ssl = MqttSsl(key=str(tmp_path / "key"), cert=str(tmp_path / "cert"), ca=str(tmp_path / "ca"))
    mqtt = Mqtt(listen=(Listen("tls", "127.0.0.1", 1),), ssl=ssl)
    server = ServerConfig(proto=frozenset({"mqtt"}), listen=(), mqtt=mqtt)
    first, second = mistakes(Config(server=server, api=ApiConfig(listen=())))
    assert first.startswith(f"cannot use the certificate {tmp_path}/cert with the key {tmp_path}/key: ")
    assert second.startswith(f"cannot use the certificates of authorities in {tmp_path}/ca: ")


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
