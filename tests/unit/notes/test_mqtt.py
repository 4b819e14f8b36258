"""The lines of `push1st check` about MQTT."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from push1st.cli.configuration import listening
from push1st.config.addresses import Listen
from push1st.config.model import ApiConfig, AppConfig, Authorize, Config, ServerConfig
from push1st.config.mqtt import Mqtt, MqttSsl
from push1st.notes import mqtt

ADDRESSES = (Listen("tcp", port=1883), Listen("tls", "::1", 8883), Listen("unix", path="/run/mqtt"))


def config(
    settings: Mqtt | None = None, *, broker: str = "redis://host/0", proto: Sequence[str] = ("pusher", "mqtt"), **app: object
) -> Config:
    server = ServerConfig(proto=frozenset(proto), listen=(), mqtt=settings or Mqtt(listen=ADDRESSES))
    return Config(
        server=server,
        api=ApiConfig(listen=()),
        broker=broker,
        apps=(AppConfig(id="a", key="k", secret="s", **app),),  # type: ignore[arg-type]
    )


def test_each_address_has_a_line_with_the_scheme_of_the_configuration() -> None:
    assert listening(config()) == ["MQTT on tcp://*:1883", "MQTT on tls://[::1]:8883", "MQTT on unix:///run/mqtt"]


def test_a_server_without_mqtt_has_no_line() -> None:
    found = config(proto=("pusher",))
    assert (listening(found), mqtt.lines(found), list(mqtt.notes(found))) == ([], [], [])


def test_a_server_with_mqtt_over_websockets_only_has_the_lines_of_clients() -> None:
    found = config(Mqtt())
    assert listening(found) == []
    assert len(mqtt.lines(found)) == 2
    assert list(mqtt.notes(found))


@pytest.mark.parametrize(
    ("settings", "app", "publish"),
    [
        ({}, "no app for user names without a key", "may not publish: server.mqtt.push is not set"),
        (
            {"app": "a", "anonymous_push": frozenset({"public", "private"})},
            "app a for user names without the key of an app",
            "may publish to public channels",
        ),
        (
            {"anonymous_push": frozenset({"private"})},
            "no app for user names without a key",
            "may not publish: server.mqtt.push has no public",
        ),
    ],
)
def test_default_app_and_rights_of_anonymous_clients_are_shown(settings: dict[str, object], app: str, publish: str) -> None:
    found = config(Mqtt(listen=ADDRESSES, **settings))  # type: ignore[arg-type]
    assert mqtt.lines(found) == [f"MQTT: {app}", f"MQTT: anonymous clients {publish}"]


def test_path_of_websockets_is_shown() -> None:
    found = config(Mqtt(path="/devices/"))
    found = msgspec.structs.replace(found, server=msgspec.structs.replace(found.server, listen=ADDRESSES[:1]))
    assert mqtt.lines(found)[0] == "MQTT: WebSockets with the path /devices or /devices/app/KEY"


def test_required_proxy_header_is_shown() -> None:
    line = "MQTT: connections to tcp:// and tls:// must begin with a PROXY header of one of server.proxies"
    assert mqtt.lines(config(Mqtt(listen=ADDRESSES, proxy_protocol=True)))[0] == line
    assert line not in mqtt.lines(config(Mqtt(listen=ADDRESSES[2:], proxy_protocol=True)))


def test_sessions_that_end_with_the_server_have_a_note() -> None:
    assert "are lost when the server stops" in next(mqtt.notes(config(Mqtt(listen=ADDRESSES[:1]), broker="memory")))


@pytest.mark.parametrize("broker", ["memory", "redis://host/0"])
def test_tls_without_a_certificate_has_a_note(broker: str) -> None:
    noted = "server.mqtt.ssl: there is no certificate"
    assert noted in next(mqtt.notes(config(broker=broker)))
    for settings in (Mqtt(listen=ADDRESSES[:1]), Mqtt(listen=ADDRESSES, ssl=MqttSsl(key="/key", cert="/cert"))):
        assert not any(noted in note for note in mqtt.notes(config(settings, broker=broker)))


@pytest.mark.parametrize(
    ("app", "is_noted"),
    [
        ({}, True),
        ({"authorized_only": True}, False),
        ({"enable": False}, False),
        ({"authorize": (Authorize(url="http://h/", on=frozenset({"connect"})),)}, False),
        ({"authorize": (Authorize(url="http://h/", on=frozenset({"subscribe"})),)}, True),
    ],
)
def test_an_app_with_anonymous_sessions_has_a_note(app: dict[str, Any], is_noted: bool) -> None:
    found = mqtt.notes(config(broker="memory", **app))
    noted = [note for note in found if note.startswith("a: MQTT clients may connect anonymously")]
    assert len(noted) == is_noted


def test_sessions_in_the_embedded_engine_have_a_note() -> None:
    plain = Mqtt(listen=ADDRESSES[:1])
    for broker, is_noted in (("redis://host/0", False), ("embedded:///usr/bin/valkey-server", True)):
        assert any("are lost when the server stops" in note for note in mqtt.notes(config(plain, broker=broker))) == is_noted


def test_sessions_that_end_with_their_connection_have_no_note() -> None:
    assert list(mqtt.notes(config(Mqtt(listen=ADDRESSES[:1], session_expiry=0), broker="memory"))) == []
