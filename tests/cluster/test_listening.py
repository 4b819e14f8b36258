"""Addresses are bound before a worker listens, and only workers share them."""

import contextlib
import fcntl
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from push1st.config.addresses import Listen
from push1st.config.model import Config, ServerConfig
from push1st.errors import ConfigError
from push1st.process import rundir
from push1st.process.sockets import BoundSocket, bind, bind_again, close, with_ports

NOBODY = 65534
"""a user that exists on each system"""


@pytest.fixture
def bound() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def doors(stack: contextlib.ExitStack, text: str, *, shared: bool = False) -> list[BoundSocket]:
    found = bind("server", Listen.parse(text), shared=shared)
    stack.callback(close, found)
    return found


def test_port_0_becomes_the_port_it_is(bound: contextlib.ExitStack) -> None:
    found = doors(bound, "tcp://127.0.0.1:0")
    config = with_ports(Config(server=ServerConfig(listen=(Listen("tcp", "127.0.0.1", 0),))), found)
    assert [one.port for one in config.server.listen] == [found[0].socket.getsockname()[1]]


def test_all_interfaces_have_one_port(bound: contextlib.ExitStack) -> None:
    found = doors(bound, "tcp://*:0")
    assert len({door.socket.getsockname()[1] for door in found}) == 1
    assert len({door.socket.family for door in found}) == len(found)
    assert len(with_ports(Config(), found).server.listen) == 1


@pytest.mark.parametrize("shared", [False, True])
def test_address_in_use_is_rejected_even_if_its_owner_shares_it(bound: contextlib.ExitStack, shared: bool) -> None:
    (other,) = doors(bound, "tcp://127.0.0.1:0", shared=True)
    other.socket.listen()
    with pytest.raises(ConfigError, match=r"cannot listen on tcp://127\.0\.0\.1"):
        bind("server", other.address, shared=shared)


def test_a_shared_address_can_be_bound_again(bound: contextlib.ExitStack) -> None:
    (first,) = doors(bound, "tcp://127.0.0.1:0", shared=True)
    second = bind_again(first)
    bound.callback(second.socket.close)
    assert second.socket.getsockname() == first.socket.getsockname()


def test_bound_address_refuses_connections_before_it_listens(bound: contextlib.ExitStack) -> None:
    (door,) = doors(bound, "tcp://127.0.0.1:0", shared=True)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(door.socket.getsockname()).close()


def test_unix_socket_file_is_removed_when_it_is_closed(tmp_path) -> None:
    found = bind("api", Listen("unix", path=str(tmp_path / "s")))
    with pytest.raises(ConfigError, match="another server does"):
        bind("api", found[0].address)
    close(found)
    assert not (tmp_path / "s").exists()


# -- folders of supervisors


def test_a_supervisor_is_found_while_it_runs_and_by_its_configuration(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    assert rundir.running(None) == {}
    one = rundir.RunDir(str(tmp_path / "server.yml"))
    assert rundir.running(None) == rundir.running(str(tmp_path / "server.yml")) == {int(one.path.name): one.path}
    assert rundir.running("/other.yml") == {}
    assert rundir.described(rundir.running(None)) == f"{one.path.name} ({tmp_path}/server.yml)"
    assert rundir.described({7: tmp_path}) == "7 (no file)"
    assert one.path.stat().st_mode & 0o077 == 0
    one.close()
    assert rundir.running(None) == {}


def test_folder_of_a_killed_supervisor_is_ignored_and_removed_by_the_next_start(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    rundir.RunDir(None).close()
    (base,) = tmp_path.iterdir()
    left = base / "1"
    left.mkdir()
    (left / "configuration").write_text("")
    assert rundir.running(None) == {}
    rundir.RunDir(None).close()
    assert not left.exists()


def test_a_folder_that_others_could_have_made_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    rundir.RunDir(None).close()
    (base,) = tmp_path.iterdir()
    base.chmod(0o777)
    with pytest.raises(ConfigError, match="the server needs a folder"):
        rundir.RunDir(None)
    assert rundir.running(None) == {}


@pytest.fixture
def places(tmp_path: Path, monkeypatch) -> Path:
    """Makes a folder like the folders of systemd for services; the service is called `shop`."""
    monkeypatch.setattr(rundir, "SERVICES", tmp_path / "run")
    monkeypatch.setattr(rundir, "TEMPORARY", ())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "run" / "shop").mkdir(parents=True)
    return tmp_path / "run" / "shop"


def test_a_supervisor_that_systemd_started_is_found_by_its_user(places: Path, monkeypatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(places))
    one = rundir.RunDir("/etc/shop.yml")
    monkeypatch.delenv("RUNTIME_DIRECTORY")
    assert rundir.running("/etc/shop.yml") == rundir.running(None) == {int(one.path.name): one.path}
    one.close()
    assert rundir.running(None) == {}


@pytest.fixture
def nobody() -> Iterator[int]:
    """Runs a process of another user."""
    if os.getuid() != 0 or not Path("/proc/self").exists():
        pytest.skip("needs root, to start a process of another user, and /proc")
    process = subprocess.Popen(["sleep", "60"], user=NOBODY, group=NOBODY, extra_groups=[])
    yield process.pid
    process.kill()
    process.wait()


@pytest.mark.parametrize("owner", [0, NOBODY], ids=["a user names a process of root", "a user names a process of theirs"])
def test_root_finds_the_supervisor_of_another_user_but_no_process_that_is_not_theirs(
    places: Path, monkeypatch, nobody: int, owner: int
) -> None:
    base = places / f"push1st-{NOBODY}"
    folder = base / str(nobody if owner else os.getpid())
    folder.mkdir(parents=True)
    (folder / "configuration").write_text("/etc/shop.yml")
    for one in (base, folder):
        one.chmod(0o700)
        os.chown(one, NOBODY, NOBODY)
    with held(folder):
        assert rundir.running("/etc/shop.yml") == ({nobody: folder} if owner else {})


def test_a_pipe_in_place_of_a_file_does_not_block(places: Path) -> None:
    folder = places / f"push1st-{os.getuid()}" / str(os.getpid())
    folder.mkdir(parents=True)
    folder.parent.chmod(0o700)
    os.mkfifo(folder / "configuration")
    os.mkfifo(folder.parent / "1")
    with held(folder):
        assert rundir.running("/etc/shop.yml") == {}


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Locks the folder, like a running supervisor."""
    lock = os.open(folder, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(lock)
