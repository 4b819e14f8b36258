"""The table of a supervisor's sockets."""

import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from push1st.config.addresses import Listen
from push1st.config.model import ApiConfig, Config, ConsoleConfig, MetricsConfig, ServerConfig, Ssl
from push1st.config.mqtt import Mqtt, MqttSsl
from push1st.errors import ConfigError
from push1st.process.sockets import BALANCED, SocketTable, close_own, flat, tls_settings, with_ports


def config(*listen: Listen, api: tuple[Listen, ...] = ()) -> Config:
    return Config(server=ServerConfig(listen=listen), api=ApiConfig(listen=api))


def mqtt_config(*listen: Listen, proto: frozenset[str] = frozenset({"mqtt"})) -> Config:
    return Config(server=ServerConfig(proto=proto, listen=(), mqtt=Mqtt(listen=listen)), api=ApiConfig(listen=()))


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


# MQTT

TLS = Listen("tls", "127.0.0.1", 0)


def test_mqtt_addresses_are_bound_only_if_the_protocol_is_enabled(table: SocketTable) -> None:
    assert table.bind_missing(mqtt_config(TCP, TLS, proto=frozenset({"pusher"}))) == []
    assert table.bind_missing(mqtt_config(TCP, TLS)) == [("server.mqtt", TCP), ("server.mqtt", TLS)]


def test_slots_have_own_sockets_for_tls_addresses_too(table: SocketTable) -> None:
    config = mqtt_config(TLS)
    table.bind_missing(config)
    first, second = (flat(table.for_slot({}, config)) for _ in range(2))
    assert (first[0].socket is second[0].socket) is not BALANCED
    assert first[0].socket.getsockname() == second[0].socket.getsockname()
    close_own((*first, *second))


def test_real_ports_of_mqtt_addresses_replace_port_0(table: SocketTable) -> None:
    config = mqtt_config(TCP, TLS)
    table.bind_missing(config)
    found = with_ports(config, table.all()).server.mqtt.listen
    assert [one.scheme for one in found] == ["tcp", "tls"]
    assert all(one.port for one in found)


def test_address_in_use_names_the_key_of_mqtt(table: SocketTable) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = Listen("tls", "127.0.0.1", other.getsockname()[1])
        with pytest.raises(ConfigError, match=r"cannot listen on tls://127\.0\.0\.1:.*or change server\.mqtt\.listen"):
            table.bind_missing(mqtt_config(taken))


def test_kernel_probes_mqtt_connections_only(table: SocketTable) -> None:
    server = ServerConfig(proto=frozenset({"mqtt"}), listen=(TCP,), mqtt=Mqtt(listen=(TLS,)))
    table.bind_missing(Config(server=server, api=ApiConfig(listen=())))
    probed = {}
    for one in table.all():
        one.socket.listen()
        with socket.create_connection(one.socket.getsockname()), one.socket.accept()[0] as accepted:
            probed[one.role] = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert (bool(probed["server"]), bool(probed["server.mqtt"])) == (False, True)


def test_tls_settings_of_mqtt_need_a_tls_address() -> None:
    ssl = MqttSsl(cert="/cert")
    for address, expected in ((TLS, ssl), (TCP, None)):
        one = mqtt_config(address)
        one = msgspec.structs.replace(one, server=msgspec.structs.replace(one.server, mqtt=Mqtt(listen=(address,), ssl=ssl)))
        assert tls_settings(one, "server.mqtt") == expected


def test_an_address_for_metrics_is_bound_without_tls_and_gets_its_port(table: SocketTable, tmp_path: Path) -> None:
    unix = Listen("unix", path=str(tmp_path / "metrics"))
    config = Config(server=ServerConfig(listen=()), api=ApiConfig(listen=()), metrics=MetricsConfig(listen=(TCP, unix)))
    assert table.bind_missing(config) == [("metrics", TCP), ("metrics", unix)]
    assert tls_settings(config, "metrics") is None
    found = with_ports(config, table.all()).metrics.listen
    assert found[0].port
    assert found[1] == unix


def test_address_of_the_console_is_bound_only_with_a_password(table: SocketTable) -> None:
    def config(console: ConsoleConfig) -> Config:
        return Config(server=ServerConfig(listen=()), api=ApiConfig(listen=()), console=console)

    off = config(ConsoleConfig(listen=(TCP,), ssl=Ssl(enable=True)))
    assert table.bind_missing(off) == []
    assert tls_settings(off, "console") is None
    assert with_ports(off, []) == off
    on = config(ConsoleConfig(password="x", listen=(TCP,), ssl=Ssl(enable=True)))
    assert tls_settings(on, "console") == Ssl(enable=True)
    assert tls_settings(config(ConsoleConfig(password="x")), "console") is None
    assert table.bind_missing(on) == [("console", TCP)]
    assert with_ports(on, table.all()).console.listen[0].port


def test_address_in_use_names_the_key_of_the_metrics(table: SocketTable) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = Listen("tcp", "127.0.0.1", other.getsockname()[1])
        with pytest.raises(ConfigError, match=r"or change metrics\.listen"):
            table.bind_missing(
                Config(server=ServerConfig(listen=()), api=ApiConfig(listen=()), metrics=MetricsConfig(listen=(taken,)))
            )
