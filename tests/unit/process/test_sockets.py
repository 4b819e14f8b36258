"""The table of a supervisor's sockets."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from push1st.config.model import ApiConfig, Config, Listen, ServerConfig
from push1st.errors import ConfigError
from push1st.process.sockets import BALANCED, SocketTable, close_own, flat


def config(*listen: Listen, api: tuple[Listen, ...] = ()) -> Config:
    return Config(server=ServerConfig(listen=listen), api=ApiConfig(listen=api))


TCP = Listen("tcp", "127.0.0.1", 0)


@pytest.fixture
def table() -> Iterator[SocketTable]:
    made = SocketTable()
    yield made
    made.close()


def test_only_missing_addresses_are_bound(table: SocketTable, tmp_path: Path) -> None:
    unix = Listen("unix", path=str(tmp_path / "a"))
    assert table.bind_missing(config(TCP)) == [("server", TCP)]
    assert table.bind_missing(config(TCP, api=(unix,))) == [("api", unix)]
    assert len(table.all()) == 2


def test_if_one_address_cannot_be_bound_none_is(table: SocketTable, tmp_path: Path) -> None:
    unix = Listen("unix", path=str(tmp_path / "a"))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError):
        table.bind_missing(config(unix, Listen("unix", path=str(tmp_path / "file"))))
    assert table.all() == []
    assert not (tmp_path / "a").exists()


def test_addresses_that_a_new_configuration_lacks_are_closed(table: SocketTable, tmp_path: Path) -> None:
    unix = Listen("unix", path=str(tmp_path / "a"))
    table.bind_missing(config(TCP, unix))
    table.remove_others(config(TCP))
    assert [one.address.scheme for one in table.all()] == ["tcp"]
    assert not (tmp_path / "a").exists()


def test_slots_have_own_sockets_for_tcp_and_share_unix_sockets(table: SocketTable, tmp_path: Path) -> None:
    both = config(TCP, Listen("unix", path=str(tmp_path / "a")))
    table.bind_missing(both)
    slots = [table.for_slot({}, both) for _ in range(2)]
    tcp, unix = zip(*map(flat, slots), strict=True)
    assert len({one.socket.fileno() for one in tcp}) == (2 if BALANCED else 1)
    assert len({one.address.port for one in tcp}) == 1
    assert unix[0] is unix[1]
    for slot in slots:
        close_own(flat(slot))
    assert unix[0].socket.fileno() != -1


def test_a_slot_keeps_its_sockets_for_another_configuration(table: SocketTable) -> None:
    first = config(TCP)
    table.bind_missing(first)
    before = table.for_slot({}, first)
    after = table.for_slot(before, msgspec.structs.replace(first, demo=True))
    assert flat(after) == flat(before)
    close_own(flat(after))
