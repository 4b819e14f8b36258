"""Addresses are bound before anybody listens, and shared among workers only."""

import contextlib
import socket
from collections.abc import Iterator

import pytest

from push1st import rundir
from push1st.config import Config, Listen, ServerConfig
from push1st.errors import ConfigError
from push1st.listening import Door, again, bind, close, with_ports


@pytest.fixture
def bound() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def doors(stack: contextlib.ExitStack, text: str, *, shared: bool = False) -> list[Door]:
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
def test_an_address_that_another_has_is_refused_even_if_the_other_would_share_it(
    bound: contextlib.ExitStack, shared: bool
) -> None:
    (other,) = doors(bound, "tcp://127.0.0.1:0", shared=True)
    other.socket.listen()
    with pytest.raises(ConfigError, match=r"cannot listen on tcp://127\.0\.0\.1"):
        bind("server", other.address, shared=shared)


def test_a_shared_address_can_be_bound_again(bound: contextlib.ExitStack) -> None:
    (first,) = doors(bound, "tcp://127.0.0.1:0", shared=True)
    second = again(first)
    bound.callback(second.socket.close)
    assert second.socket.getsockname() == first.socket.getsockname()


def test_a_bound_address_refuses_until_somebody_listens(bound: contextlib.ExitStack) -> None:
    (door,) = doors(bound, "tcp://127.0.0.1:0", shared=True)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(door.socket.getsockname()).close()


def test_a_unix_socket_is_gone_when_it_is_closed(tmp_path) -> None:
    found = bind("api", Listen("unix", path=str(tmp_path / "s")))
    with pytest.raises(ConfigError, match="another server does"):
        bind("api", found[0].address)
    close(found)
    assert not (tmp_path / "s").exists()


# -- where a supervisor is found


def test_a_supervisor_is_found_while_it_runs_and_by_its_configuration(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    assert rundir.running(None) == []
    one = rundir.RunDir(str(tmp_path / "server.yml"))
    assert rundir.running(None) == rundir.running(str(tmp_path / "server.yml")) == [int(one.path.name)]
    assert rundir.running("/other.yml") == []
    assert one.path.stat().st_mode & 0o077 == 0
    one.close()
    assert rundir.running(None) == []


def test_what_a_killed_supervisor_left_is_no_supervisor_and_goes_with_the_next_start(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    rundir.RunDir(None).close()
    (base,) = tmp_path.iterdir()
    left = base / "1"
    left.mkdir()
    (left / "configuration").write_text("")
    assert rundir.running(None) == []
    rundir.RunDir(None).close()
    assert not left.exists()


def test_a_folder_that_others_could_have_made_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    rundir.RunDir(None).close()
    (base,) = tmp_path.iterdir()
    base.chmod(0o777)
    with pytest.raises(ConfigError, match="several workers need a folder"):
        rundir.RunDir(None)
    assert rundir.running(None) == []
