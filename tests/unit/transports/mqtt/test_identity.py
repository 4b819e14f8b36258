"""The identity of an MQTT client: its app, its proof, its rights, and the owner of its client id. Each CONNACK as bytes."""

import asyncio
from typing import Any

import msgspec
import pytest

from push1st.config.model import Authorize
from push1st.errors import Refused
from push1st.hooks import Decision
from push1st.messages import SignedInUser
from push1st.protocols.mqtt.packets import MQTT_5, MQTT_31, MQTT_311
from push1st.transports.mqtt.identity import common_name
from tests.support.loop import turns
from tests.support.mqtt_site import MqttClient, MqttSite
from tests.support.node import app_config
from tests.support.transport import Transport

ACCEPTED = bytes.fromhex("20 02 00 00")
CONNECT = (Authorize(url="http://127.0.0.1/", on=frozenset({"connect"})),)


@pytest.fixture
def site() -> MqttSite:
    return MqttSite()


async def codes(site: MqttSite, **fields: Any) -> tuple[int, int]:
    """Returns the codes of CONNACK in MQTT 3.1.1 and 5.0."""
    old, new = site.client(MQTT_311), site.client(MQTT_5)
    answers = await old.connect("old", **fields), await new.connect("new", **fields)
    assert [one.is_closed() for one in (old, new)] == [bool(one[3]) for one in answers]
    return answers[0][3], answers[1][3]


@pytest.mark.parametrize("username", [None, "", "anything", "app-key", "app-key:", "app-key:pump:7", "no-key:pump"])
async def test_user_name_names_the_app_or_the_default_app_is_used(site: MqttSite, username: str | None) -> None:
    assert await codes(site, username=username) == (0, 0)


async def test_without_a_default_app_the_user_name_must_begin_with_a_key() -> None:
    site = MqttSite(app="")
    assert await codes(site, username="app-key:pump") == (0, 0)
    for username in (None, "", "app-keys", ":app-key", "other"):
        assert await codes(site, username=username) == (4, 0x86)


async def test_reason_of_a_rejection_is_for_mqtt_5_clients_that_accept_it(site: MqttSite) -> None:
    text = b"the password is not an access token"
    assert text in await site.client(MQTT_5).connect(username="x", password=b"y")
    assert await site.client(MQTT_5).connect(username="x", password=b"y", wants_reasons=False) == bytes.fromhex("20 03 00 86 00")
    short = await site.client(MQTT_5).connect(username="x", password=b"y", maximum_packet_size=20)
    assert short == bytes.fromhex("20 03 00 86 00")
    assert await site.client().connect(username="x", password=b"y") == bytes.fromhex("20 02 00 04")


async def test_wrong_passwords(site: MqttSite) -> None:
    for password in (b"secret", b"\xff\xfe", b"a.b.c", site.token("a")[:-1] + b"!", site.token("a") + b"x"):
        assert await codes(site, username="x", password=password) == (4, 0x86)
    assert await codes(site, username="x", password=b"") == (0, 0)


async def test_expired_token(site: MqttSite) -> None:
    token = site.token("a", ttl=10)
    assert await codes(site, username="x", password=token) == (0, 0)
    site.clock.advance(10)
    assert await codes(site, username="x", password=token) == (4, 0x86)
    assert site.metrics.refusals["access-token"] == 2


async def test_token_with_an_origin_is_for_web_pages(site: MqttSite) -> None:
    assert await codes(site, username="x", password=site.token("a", origin="https://a.example")) == (5, 0x87)


async def test_token_with_an_invalid_user(site: MqttSite) -> None:
    assert await codes(site, username="x", password=site.token("a", sub="a\nb")) == (4, 0x86)


async def test_token_of_another_app() -> None:
    site = MqttSite(app_config(), app_config(id="other", key="other-key", secret="other-secret"))
    assert await codes(site, username="other-key", password=site.token("a")) == (4, 0x86)
    assert await codes(site, username="app-key", password=site.token("a")) == (0, 0)


async def test_app_without_anonymous_clients() -> None:
    site = MqttSite(app_config(authorized_only=True))
    assert await codes(site) == (5, 0x87)
    assert await codes(site, username="x", password=site.token("a")) == (0, 0)


async def test_disabled_app() -> None:
    site = MqttSite(app_config(enable=False))
    assert await codes(site, username="app-key") == (5, 0x87)


async def test_enhanced_authentication_is_not_supported(site: MqttSite) -> None:
    answer = await site.client(MQTT_5).connect("c", authentication_method="SCRAM-SHA-1")
    assert answer == bytes.fromhex("20 03 00 8C 00")


async def test_user_of_a_token_is_signed_in(site: MqttSite) -> None:
    client = await site.connected(username="x", password=site.token("a", sub="ann"))
    assert client.connection._session is not None
    user = client.connection._session.client.user
    assert user is not None
    assert user.id == "ann"
    assert site.world.app.sessions("#user-ann") == [client.connection._session.client]


# The backend


async def test_backend_accepts_any_password() -> None:
    site = MqttSite(app_config(authorize=CONNECT))
    for password in (None, b"secret", b"\xff"):
        assert await codes(site, username="x", password=password) == (0, 0)
    assert [one.password for one in site.world.hooks.asked[::2]] == [None, "secret", None]  # type: ignore[union-attr]


async def test_backend_gets_the_claims_of_a_token_and_not_its_text() -> None:
    site = MqttSite(app_config(authorize=CONNECT))
    client = await site.connected(MQTT_5, username="x", password=site.token("private-*", sub="ann"))
    question = site.world.hooks.asked[0]
    assert question.password is None  # type: ignore[union-attr]
    assert b'"claims":{"channel":["private-*"],"sub":"ann","exp":null}' in msgspec.json.encode(question)
    assert (await client.subscribe("private-a", "$user/ann"))[-2:] == b"\0\0"


async def test_backend_gets_a_password_that_only_looks_like_a_token() -> None:
    site = MqttSite(app_config(authorize=CONNECT))
    assert await codes(site, username="x", password=b"a.b.c") == (0, 0)
    assert site.world.hooks.asked[0].password == "a.b.c"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("code", "answers"),
    [(4009, (5, 0x87)), (138, (5, 0x8A)), (133, (2, 0x85)), (134, (4, 0x86)), (142, (5, 0x87)), (503, (3, 0x88))],
)
async def test_backend_rejects_a_client(code: int, answers: tuple[int, int]) -> None:
    site = MqttSite(app_config(authorize=CONNECT))
    site.world.hooks.decision = Decision(Refused(code, "no"))
    assert await codes(site) == answers
    assert site.world.app.tenant.sessions == {}


async def test_client_that_leaves_before_the_decision() -> None:
    site = MqttSite(app_config(authorize=CONNECT))
    site.world.hooks.waits = asyncio.get_running_loop().create_future()
    client = site.client()
    assert await client.connect() == b""
    client.lose()
    site.world.hooks.waits.set_result(None)
    await turns(8)
    assert client.take() == b""
    assert site.world.app.tenant.sessions == {}
    assert site.context.open == set()


# The owner of a client id


async def test_client_id_of_a_user_is_not_taken_over_by_others(site: MqttSite) -> None:
    ann = await site.connected(MQTT_5, "device", username="x", password=site.token("a", sub="ann"))
    for password in (None, site.token("a"), site.token("a", sub="bob")):
        answer = await site.client(MQTT_5).connect("device", username="x", password=password)
        assert answer[3] == 0x87
    assert ann.take() == b""
    await site.connected(MQTT_5, "device", username="x", password=site.token("b", sub="ann"))
    assert ann.take() == bytes.fromhex("e0 01 8e")


async def test_client_id_of_a_token_belongs_to_equal_rights(site: MqttSite) -> None:
    first = await site.connected(MQTT_5, "device", username="x", password=site.token("a", ttl=60))
    assert (await site.client(MQTT_5).connect("device", username="x", password=site.token("b")))[3] == 0x87
    await site.connected(MQTT_5, "device", username="x", password=site.token("a"))
    assert first.take() == bytes.fromhex("e0 01 8e")


async def test_client_id_of_a_name_that_the_backend_accepted() -> None:
    site = MqttSite(app_config(authorize=CONNECT))
    first = await site.connected(MQTT_5, "device", username="app-key:pump")
    assert (await site.client(MQTT_5).connect("device", username="app-key:valve"))[3] == 0x87
    await site.connected(MQTT_5, "device", username="app-key:pump")
    assert first.take() == bytes.fromhex("e0 01 8e")


async def test_client_ids_of_two_apps_are_independent() -> None:
    site = MqttSite(app_config(), app_config(id="other", key="other-key"))
    first = await site.connected(MQTT_31, "device", username="app-key")
    await site.connected(MQTT_31, "device", username="other-key")
    assert await first.send(b"\xc0\0") == b"\xd0\0"


# Certificates


def certificate(*names: str) -> dict[str, object]:
    return {"subject": ((("organizationName", "Shop"),), *((("commonName", name),) for name in names))}


def test_common_name_of_a_certificate() -> None:
    assert common_name(certificate("pump")) == "pump"
    assert common_name(certificate()) == common_name(certificate("a", "b")) == common_name({}) == ""


async def test_common_name_is_the_user_and_makes_the_client_known() -> None:
    site = MqttSite(anonymous_push=frozenset())
    client = await certified(site, "pump")
    session = client.connection._session
    assert session is not None
    assert session.client.user == SignedInUser("pump")
    assert session.push == site.clients.settings.push


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 129])
async def test_common_name_that_is_no_user_id_is_rejected(site: MqttSite, name: str) -> None:
    client = await certified(site, name)
    assert client.connection._session is None


async def test_user_of_a_token_precedes_the_common_name(site: MqttSite) -> None:
    client = await certified(site, "pump", username="x", password=site.token("private-a", sub="operator"))
    assert client.connection._session is not None
    assert client.connection._session.client.user == SignedInUser("operator")


async def certified(site: MqttSite, name: str, **fields: Any) -> MqttClient:
    """Returns a client with a certificate, after its CONNECT."""
    client = MqttClient(site, MQTT_311, Transport(certificate=certificate(name)))
    await client.connect(**fields)
    await turns()
    return client
