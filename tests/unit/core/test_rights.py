"""The rules for subscribing, publishing and signing in, without a session."""

import contextlib
import json

import msgspec
import pytest

from push1st import auth
from push1st.channels import kind_of
from push1st.config.model import AppConfig
from push1st.core import rights
from push1st.errors import Refused
from push1st.messages import Member, Publish, SignedInUser, SignIn, Subscribe
from tests.support.node import APP, KEY, SECRET, app_config

ID = "1.2"


class Client(msgspec.Struct, frozen=True):
    """A client of the Pusher protocol, unless `push` is set."""

    id: str = ID
    claims: auth.Claims | None = None
    push: frozenset[str] | None = None
    lenient: bool = False
    user: SignedInUser | None = None


PUSHER = Client()
ANY = frozenset(("public", "private", "presence", "protected"))


def raw(*channels: str, push: frozenset[str] = ANY) -> Client:
    return Client(claims=auth.Claims(APP, "*", channels, None), push=push)


def signed(channel: str, channel_data: str = "") -> Subscribe:
    return Subscribe(channel, f"{KEY}:{auth.channel_signature(SECRET, ID, channel, channel_data)}", channel_data)


def code(refused: pytest.ExceptionInfo[Refused]) -> int:
    return refused.value.code


@pytest.mark.parametrize("name", ["private-c", "presence-c", "private-encrypted-c"])
def test_a_signature_allows_a_pusher_client_to_subscribe(name):
    assert rights.to_subscribe(PUSHER, app_config(), signed(name), None) == (kind_of(name), 0)
    with pytest.raises(Refused, match="Invalid signature") as refused:
        rights.to_subscribe(PUSHER, app_config(), Subscribe(name, f"{KEY}:no"), None)
    assert code(refused) == 401


def test_a_signature_of_another_connection_is_rejected():
    other = Client(id="9.9")
    with pytest.raises(Refused, match=r"9\.9:private-c"):
        rights.to_subscribe(other, app_config(), signed("private-c"), None)


@pytest.mark.parametrize(
    ("claims", "name", "allowed"),
    [
        (("*",), "private-c", True),
        (("private-c",), "private-cc", False),
        (("private-c*",), "private-cc", True),
        ((), "private-c", False),
    ],
)
def test_a_token_allows_a_raw_client_to_subscribe(claims, name, allowed):
    client = raw(*claims)
    if allowed:
        assert rights.to_subscribe(client, app_config(), Subscribe(name), None)[0].type == "private"
    else:
        with pytest.raises(Refused, match="no access token") as refused:
            rights.to_subscribe(client, app_config(), Subscribe(name), None)
        assert code(refused) == 401


@pytest.mark.parametrize("client", [PUSHER, raw(), Client(push=ANY)])
def test_a_backend_that_decides_replaces_signature_and_token(client):
    command = Subscribe("private-c")
    assert rights.to_subscribe(client, app_config(), command, "private-c".__eq__)[0].type == "private"
    with pytest.raises(Refused):
        rights.to_subscribe(client, app_config(), command, "private-d".__eq__)


def test_a_backend_is_not_consulted_about_names_that_are_not_allowed():
    def decides(channel: str) -> bool:
        raise AssertionError(channel)

    for name, status in {"a b": 400, "c" * 500: 400, "#server-to-user-1": 403, "#x": 403}.items():
        with pytest.raises(Refused) as refused:
            rights.to_subscribe(PUSHER, app_config(), Subscribe(name), decides)
        assert code(refused) == status
    assert rights.to_subscribe(PUSHER, app_config(), Subscribe("c"), decides)[0].type == "public"


def test_a_signed_in_user_may_subscribe_to_its_own_channel_only():
    client = Client(user=SignedInUser("u1"))
    assert rights.to_subscribe(client, app_config(), Subscribe("#server-to-user-u1"), None)[0].type == "public"
    with pytest.raises(Refused, match="reserved"):
        rights.to_subscribe(client, app_config(), Subscribe("#server-to-user-u2"), None)


def test_an_app_allows_its_own_types_of_channels_only():
    config = app_config(channels=frozenset(("public",)))
    with pytest.raises(Refused, match="no private channels") as refused:
        rights.to_subscribe(PUSHER, config, signed("private-c"), None)
    assert code(refused) == 403


@pytest.mark.parametrize(
    ("channel_data", "expected"),
    [
        ('{"user_id":"u1","user_info":{"a":1}}', Member("u1", b'{"a":1}')),
        ('{"user_id":7}', Member("7")),
        ('{"user_id":"u1","user_info": null }', Member("u1")),
    ],
)
def test_channel_data_names_the_member(channel_data, expected):
    assert rights.member(PUSHER, channel_data) == expected


@pytest.mark.parametrize(
    ("channel_data", "status"),
    [
        ("", 400),
        ("{}", 400),
        ("[" * 900, 400),
        ('{"user_id":"a\\nb"}', 400),
        (json.dumps({"user_id": "u", "user_info": "x" * 1024}), 413),
    ],
)
def test_channel_data_without_a_valid_member_is_rejected(channel_data, status):
    with pytest.raises(Refused) as refused:
        rights.member(PUSHER, channel_data)
    assert code(refused) == status


def test_lenient_client_without_a_valid_member_is_no_member():
    lenient = Client(lenient=True)
    assert rights.member(lenient, "") is None
    assert rights.member(lenient, '{"user_id":"a\\nb"}') is None
    assert rights.member(lenient, '{"user_id":"u1"}') == Member("u1")


def test_without_channel_data_the_signed_in_user_is_the_member():
    client = Client(user=SignedInUser("u1", b'{"a":1}'))
    assert rights.member(client, "") == Member("u1", b'{"a":1}')
    assert rights.member(client, '{"user_id":"u2"}') == Member("u2")


def publish(
    client: Client, config: AppConfig, channel: str, event: str = "client-e", data: bytes = b"1", is_subscribed: bool = True
) -> int:
    """Returns the status of the rejection, 0 without one."""
    try:
        rights.to_publish(client, config, Publish(channel, event, data), is_subscribed)
    except Refused as refused:
        return refused.code
    return 0


@pytest.mark.parametrize(
    ("channel", "status"),
    [("private-c", 0), ("presence-c", 0), ("c", 403), ("private-encrypted-c", 403), ("cache-c", 403), ("private-cache-c", 0)],
)
def test_a_pusher_client_publishes_to_private_channels(channel, status):
    assert publish(PUSHER, app_config(), channel) == status


def test_an_app_without_client_events_rejects_them():
    assert publish(PUSHER, app_config(client_messages=False), "private-c") == 403


@pytest.mark.parametrize(("channel", "status"), [("c", 0), ("private-c", 403)])
def test_a_raw_client_publishes_to_the_types_that_its_listener_allows(channel, status):
    client = raw("*", push=frozenset(("public",)))
    assert publish(client, app_config(client_messages=False), channel, "e") == status


@pytest.mark.parametrize("client", [PUSHER, raw("*")])
def test_a_client_publishes_to_its_own_channels_only(client):
    assert publish(client, app_config(), "private-c", is_subscribed=False) == 403


@pytest.mark.parametrize(
    ("event", "status"),
    [("client-e", 0), ("e" * 10, 0), ("", 400), ("e" * 11, 400), ("pusher:x", 400), ("pusher_internal:x", 400)],
)
def test_event_names_have_limits(event, status):
    config = app_config({"event_name": 20 if event.startswith("pusher") else 10})
    assert publish(PUSHER, config, "private-c", event) == status


@pytest.mark.parametrize(("data", "status"), [(b'"12345678"', 0), (b'"\\u00e9\\u00e9\\u00e9"', 0), (b'"123456789"', 413)])
def test_the_limit_of_data_counts_decoded_bytes(data, status):
    assert publish(PUSHER, app_config({"payload": 8}), "private-c", data=data) == status


def sign_in(user_data: str, client: Client = PUSHER, key: str = KEY) -> rights.Identity:
    return rights.to_sign_in(
        client, app_config(), SignIn(f"{key}:{auth.user_signature(SECRET, client.id, user_data)}", user_data)
    )


def test_a_signed_user_signs_in():
    identity = sign_in('{"id":"u1","user_info":{"a":1},"watchlist":["u2","u2","u3"]}')
    assert identity.user == SignedInUser("u1", b'{"a":1}', ("u2", "u3"))
    assert identity.user_data == '{"id":"u1","user_info":{"a":1},"watchlist":["u2","u2","u3"]}'
    assert not identity.is_cut


def test_an_id_that_is_a_number_becomes_a_text():
    identity = sign_in('{"id":7}')
    assert (identity.user.id, json.loads(identity.user_data)) == ("7", {"id": "7"})


def test_users_over_the_limit_are_cut_off_a_watchlist():
    identity = sign_in(json.dumps({"id": "u", "watchlist": [f"u{n}" for n in range(rights.MAX_WATCHLIST + 1)]}))
    assert len(identity.user.watchlist) == rights.MAX_WATCHLIST
    assert identity.is_cut


def test_invalid_users_are_left_out_of_a_watchlist():
    assert sign_in(json.dumps({"id": "u", "watchlist": ["a\nb", "u2", 3]})).user.watchlist == ("u2", "3")


@pytest.mark.parametrize("user_data", ["", "{}", '{"id":null}', '{"id":"a\\nb"}', "[" * 5000])
def test_user_data_without_a_valid_id_is_rejected(user_data):
    with pytest.raises(Refused) as refused:
        sign_in(user_data)
    assert code(refused) == 400


def test_another_key_does_not_sign_in():
    with pytest.raises(Refused, match="Invalid signature") as refused:
        sign_in('{"id":"u1"}', key="other")
    assert code(refused) == 401


def test_a_connection_keeps_its_user():
    client = Client(user=SignedInUser("u1"))
    assert sign_in('{"id":"u1"}', client).user.id == "u1"
    with pytest.raises(Refused, match="signed in as 'u1' already") as refused:
        sign_in('{"id":"u2"}', client)
    assert code(refused) == 401


TOKEN = auth.Claims(APP, "*", ("private-a",), None)
MQTT = Client(claims=TOKEN, push=frozenset({"public", "private"}), lenient=True, user=SignedInUser("ann"))


@pytest.mark.parametrize(
    ("channel", "is_allowed"),
    [
        ("a", True),
        ("a" * 900, True),
        ("private-a", True),
        ("private-b", False),
        ("#server-to-user-ann", True),
        ("#user-ann", False),
    ],
)
def test_channel_of_a_topic_to_which_a_client_may_subscribe(channel: str, is_allowed: bool) -> None:
    with contextlib.nullcontext() if is_allowed else pytest.raises(Refused):
        rights.to_subscribe_topic(MQTT, app_config(), channel, None)


@pytest.mark.parametrize(
    ("channel", "is_allowed"),
    [
        ("a", True),
        ("private-a", True),
        ("private-b", False),
        ("presence-a", False),
        ("private-encrypted-a", False),
        ("#server-to-user-ann", False),
    ],
)
def test_channel_of_a_topic_to_which_a_client_may_publish(channel: str, is_allowed: bool) -> None:
    with contextlib.nullcontext() if is_allowed else pytest.raises(Refused):
        rights.to_publish_topic(TOKEN, frozenset({"public", "private"}), app_config(), channel, None)


def test_backend_decides_in_place_of_a_token() -> None:
    rights.to_subscribe_topic(MQTT, app_config(), "private-b", lambda _: True)
    rights.to_publish_topic(None, frozenset({"private"}), app_config(), "private-b", lambda _: True)
