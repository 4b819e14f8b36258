"""The session of one client: its rights and limits, and the order of its commands with a slow broker."""

import json

import pytest

from push1st import auth
from push1st.auth import Claims
from push1st.brokers import Occupancy
from push1st.channels import type_names
from push1st.core.rights import may_subscribe
from push1st.core.session import MAX_PUBLISHES, MAX_REFUSALS, MAX_WAITING_COMMANDS, Session
from push1st.errors import Refused
from push1st.messages import (
    CacheMissed,
    Failure,
    Options,
    Ping,
    Pong,
    Publish,
    SignedIn,
    SignedInUser,
    SignIn,
    Subscribe,
    Subscribed,
    SubscriptionRefused,
    Unsubscribe,
    WatchlistStatus,
)
from push1st.protocols.websocket import text_frame
from tests.support.frames import frames
from tests.support.loop import done, turns
from tests.support.node import APP, KEY, RAW, SECRET, World, app_config, token

ALL = frozenset(("public", "private", "presence"))


def permits(session: Session, channel: str) -> bool:
    """Returns whether the client may subscribe to a channel of its token."""
    return may_subscribe(session, session.app.config, channel, session.app.backend_decides.get("subscribe"))


@pytest.fixture
def client(world):
    return world.session()


def raw(world, *channels: str, push: frozenset[str] = ALL):
    """Makes a raw WebSocket client with an access token for these channels, or without a token."""
    claims = Claims(APP, "*", channels, None) if channels else None
    return world.session(RAW, push=push, claims=claims)


def subscribe(session, name, channel_data=""):
    """Makes a subscription with a valid signature."""
    session.handle(Subscribe(name, token(session, name, channel_data), channel_data))


def refusal(outlet) -> tuple[str, int]:
    assert isinstance(outlet.last, SubscriptionRefused), outlet.last
    return outlet.last.kind, outlet.last.status


def failure(outlet) -> int | None:
    assert isinstance(outlet.last, Failure), outlet.last
    return outlet.last.code


def events(outlet) -> list[bytes]:
    return [payload for _, payload in frames(b"".join(outlet.writes))]


# Subscribing as a Pusher client


def test_a_public_channel_needs_no_signature(client, world):
    session, outlet = client
    session.handle(Subscribe("c"))
    assert outlet.replies == [Subscribed("c", None)]
    assert world.publish("c", b"1") == 1


@pytest.mark.parametrize(
    "name",
    ["private-c", "private-cache-c", "private-encrypted-c", "private-encrypted-cache-c", "protected-c"],
)
def test_valid_signature_joins_a_channel_that_needs_one(client, name):
    session, outlet = client
    subscribe(session, name)
    assert outlet.replies[0] == Subscribed(name, None)


def test_a_signature_may_come_without_the_key(client):
    session, outlet = client
    session.handle(Subscribe("private-c", auth.channel_signature(SECRET, session.id, "private-c")))
    assert outlet.replies == [Subscribed("private-c", None)]


@pytest.mark.parametrize("name", ["private-c", "presence-c", "protected-c", "private-encrypted-c", "presence-cache-c"])
@pytest.mark.parametrize("wrong", ["", "app-key:", "app-key:00", "other:{}", "{}0"])
def test_a_wrong_signature_is_refused_and_the_client_stays(client, world, name, wrong):
    session, outlet = client
    session.handle(Subscribe(name, wrong.format(auth.channel_signature(SECRET, session.id, name))))
    assert refusal(outlet) == ("AuthError", 401)
    assert outlet.closes == []
    assert world.app.tenant.channels == {}


def test_anothers_signature_is_refused(world):
    (one, _), (two, outlet) = world.session(), world.session()
    two.handle(Subscribe("private-c", token(one, "private-c")))
    assert refusal(outlet) == ("AuthError", 401)


def test_a_signature_for_another_channel_is_refused(client):
    session, outlet = client
    session.handle(Subscribe("private-a", token(session, "private-b")))
    assert refusal(outlet) == ("AuthError", 401)


def test_channel_data_is_part_of_the_signed_text(client):
    session, outlet = client
    session.handle(Subscribe("presence-c", token(session, "presence-c", '{"user_id":"u1"}'), '{"user_id":"admin"}'))
    assert refusal(outlet) == ("AuthError", 401)


@pytest.mark.parametrize("name", ["", "a b", "c" * 165, "a/b", "жук", "a:b", "a\n"])
def test_a_name_that_breaks_pushers_rule_is_refused(client, name):
    session, outlet = client
    session.handle(Subscribe(name))
    assert refusal(outlet) == ("Invalid", 400)


@pytest.mark.parametrize("name", ["#server-to-user-1", "#x"])
def test_names_that_begin_with_a_number_sign_are_reserved(client, name):
    session, outlet = client
    session.handle(Subscribe(name, token(session, name)))
    assert refusal(outlet)[1] in (401, 403)
    assert name not in session.subscriptions


@pytest.mark.parametrize("type", type_names)
def test_app_may_allow_only_some_kinds_of_channels(type):
    world = World(app_config(channels=frozenset(type_names) - {type, "private" if type == "protected" else type}))
    session, outlet = world.session()
    subscribe(session, f"{type}-c" if type != "public" else "c", '{"user_id":"1"}' if type == "presence" else "")
    assert refusal(outlet) == ("Forbidden", 403)


def test_app_with_private_channels_has_protected_channels():
    world = World(app_config(channels=frozenset({"private"})))
    session, outlet = world.session()
    subscribe(session, "protected-c")
    assert outlet.replies == [Subscribed("protected-c", None)]


def test_app_without_a_secret_rejects_channels_that_need_a_signature():
    world = World(app_config(secret=""))
    session, outlet = world.session()
    session.handle(Subscribe("private-c", auth.hmac_hex("", f"{session.id}:private-c")))
    assert refusal(outlet) == ("AuthError", 401)


def test_subscribing_twice_is_answered_twice_and_counts_once(client, world):
    session, outlet = client
    session.handle(Subscribe("c"))
    session.handle(Subscribe("c"))
    assert outlet.replies == [Subscribed("c", None)] * 2
    assert done(world.memory.channel(APP, "c")).subscriptions == 1


def test_subscriptions_of_a_connection_may_be_limited():
    world = World(app_config({"subscriptions": 2}))
    session, outlet = world.session()
    for name in ("a", "b", "c"):
        session.handle(Subscribe(name))
    assert refusal(outlet) == ("LimitReached", 403)
    session.handle(Unsubscribe("a"))
    session.handle(Subscribe("c"))
    assert outlet.last == Subscribed("c", None)


def test_a_channel_name_may_be_limited():
    world = World(app_config({"channel_name": 3}))
    session, outlet = world.session()
    session.handle(Subscribe("abcd"))
    assert refusal(outlet) == ("Invalid", 400)


def test_unsubscribed_client_receives_no_further_events(client, world):
    session, outlet = client
    session.handle(Subscribe("c"))
    session.handle(Unsubscribe("c"))
    assert world.publish("c", b"1") == 0
    assert outlet.replies == [Subscribed("c", None)]


def test_unsubscribing_without_a_subscription_changes_nothing(client):
    session, outlet = client
    session.handle(Unsubscribe("c"))
    assert outlet.replies == []


# Presence


def presence(session, data, name="presence-c"):
    subscribe(session, name, data if isinstance(data, str) else json.dumps(data))


def ids(outlet) -> list[str]:
    return [member.user_id for member in outlet.last.members]


def test_new_member_gets_all_members_and_itself(world):
    (one, first), (two, second) = world.session(), world.session()
    presence(one, {"user_id": "u1", "user_info": {"name": "A"}})
    presence(two, {"user_id": "u2"})
    assert ids(first) == ["u1"]
    assert ids(second) == ["u1", "u2"]
    assert [member.info for member in second.last.members] == [b'{"name": "A"}', b"null"]


def test_other_members_are_notified_of_the_first_and_last_connection_of_a_user(world):
    watching, outlet = world.session()
    presence(watching, {"user_id": "w"})
    sessions = [world.session()[0] for _ in range(2)]
    for session in sessions:
        presence(session, {"user_id": "u1"})
    world.turns.drain()
    assert [json.loads(event)["event"] for event in events(outlet)] == ["pusher_internal:member_added"]
    sessions[0].expire()
    world.turns.drain()
    assert len(events(outlet)) == 1
    sessions[1].handle(Unsubscribe("presence-c"))
    world.turns.drain()
    assert [json.loads(event)["event"] for event in events(outlet)] == [
        "pusher_internal:member_added",
        "pusher_internal:member_removed",
    ]


def test_member_is_not_notified_of_itself(world):
    session, outlet = world.session()
    presence(session, {"user_id": "u1"})
    world.turns.drain()
    assert outlet.writes == []


def test_a_user_id_may_be_a_number_and_is_a_text_then(client):
    session, outlet = client
    presence(session, '{"user_id":42}')
    assert ids(outlet) == ["42"]


@pytest.mark.parametrize("user_id", ["auth0|1", "ann+shop@example.com", "Ж \U0001f980"])
def test_user_id_may_have_the_forms_that_apps_use(world, user_id):
    (one, first), (two, _) = world.session(), world.session()
    presence(one, {"user_id": user_id})
    assert ids(first) == [user_id]
    sign_in(two, user_id)
    two.handle(Subscribe(f"#server-to-user-{user_id}"))
    assert world.publish(f"#server-to-user-{user_id}", b"1") == 1


def test_user_info_is_stored_unchanged(client):
    session, outlet = client
    presence(session, '{"user_id":"1","user_info": {"a" : 1.50, "a":"\\u0436"} }')
    assert outlet.last.members[0].info == b'{"a" : 1.50, "a":"\\u0436"}'


@pytest.mark.parametrize(
    "data",
    [
        "",
        "{}",
        "null",
        "[]",
        "x",
        '{"user_id":null}',
        '{"user_id":""}',
        '{"user_id":1.5}',
        '{"user_id":true}',
        '{"user_id":"a\\u0000"}',
        '{"user_id":"' + "u" * 129 + '"}',
        '{"user_id":"\\u0085"}',
        "[" * 1000,
        '{"user_id":"1","user_info":NaN}',
    ],
)
def test_channel_data_that_is_no_member_is_refused_and_the_client_stays(client, data):
    session, outlet = client
    presence(session, data)
    assert refusal(outlet) == ("Invalid", 400)
    assert outlet.failures == []


@pytest.mark.parametrize(
    "data", ["", "x", "null", '{"user-id": 1}', '{"user_id":null}', '{"user_id":""}', '{"user_id":"' + "u" * 129 + '"}']
)
def test_a_lenient_session_subscribes_without_a_user_and_is_no_member(world, data):
    (member, told), (session, outlet) = world.session(), world.session(lenient=True)
    presence(member, {"user_id": "u1"})
    for _ in range(2):
        presence(session, data)
        assert ids(outlet) == ["u1"]
    presence(world.session()[0], {"user_id": "u2"})
    world.turns.drain()
    assert [json.loads(json.loads(event)["data"])["user_id"] for event in events(outlet)] == ["u2"]
    assert done(world.node.channel(world.app, "presence-c")) == Occupancy("presence-c", 3, 2)
    session.handle(Unsubscribe("presence-c"))
    world.turns.drain()
    assert [json.loads(event)["event"] for event in events(told)] == ["pusher_internal:member_added"]
    assert done(world.node.channel(world.app, "presence-c")) == Occupancy("presence-c", 2, 2)


def test_a_lenient_session_with_a_user_is_a_member(world):
    session, outlet = world.session(lenient=True)
    presence(session, {"user_id": 7})
    assert ids(outlet) == ["7"]


def test_a_lenient_session_needs_a_signature_and_keeps_the_limit(world):
    session, outlet = world.session(lenient=True)
    session.handle(Subscribe("presence-c", "wrong", "{}"))
    assert refusal(outlet) == ("AuthError", 401)
    presence(session, '{"a":"' + "x" * 1024 + '"}')
    assert refusal(outlet) == ("Forbidden", 413)


@pytest.mark.parametrize("letter", ["a", "ж"])
def test_channel_data_has_at_most_1024_bytes(client, letter):
    session, outlet = client
    size = len(letter.encode())

    def data(total):
        start, end = '{"user_id":"1","user_info":"', '"}'
        room = total - len(start) - len(end)
        return start + letter * (room // size) + "a" * (room % size) + end

    presence(session, data(1024))
    assert ids(outlet) == ["1"]
    presence(session, data(1025), "presence-d")
    assert refusal(outlet)[1] == 413


def test_members_of_a_channel_are_limited():
    world = World(app_config({"members": 2}))
    for n in range(2):
        presence(world.session()[0], {"user_id": f"u{n}"})
    session, outlet = world.session()
    presence(session, {"user_id": "u2"})
    assert refusal(outlet) == ("LimitReached", 403)
    presence(session, {"user_id": "u0"})
    assert ids(outlet) == ["u0", "u1"]


def test_member_that_subscribes_again_gets_the_members(world):
    (one, first), (two, _) = world.session(), world.session()
    presence(one, {"user_id": "u1"})
    presence(two, {"user_id": "u2"})
    presence(one, {"user_id": "u1"})
    assert ids(first) == ["u1", "u2"]


# Subscribing as a raw client


def test_a_raw_client_joins_public_channels_without_a_token(world):
    session, _ = raw(world)
    session.handle(Subscribe("c"))
    assert "c" in session.subscriptions


@pytest.mark.parametrize("name", ["private-c", "presence-c", "protected-c"])
def test_a_raw_client_needs_a_token_for_other_channels(world, name):
    session, outlet = raw(world)
    assert not permits(session, name)
    session.handle(Subscribe(name, token(session, name)))
    assert refusal(outlet) == ("AuthError", 401)


@pytest.mark.parametrize(
    ("claims", "name", "allowed"),
    [
        (("*",), "private-c", True),
        (("private-c",), "private-c", True),
        (("private-c",), "private-cc", False),
        (("private-c*",), "private-cc", True),
        (("other", "presence-*"), "presence-c", True),
        (("presence-*",), "private-c", False),
        (("*",), "#server-to-user-1", False),
        (("*",), "#x", False),
    ],
)
def test_token_allows_the_channels_it_names(world, claims, name, allowed):
    session, _ = raw(world, *claims)
    assert permits(session, name) is allowed


def test_raw_names_may_be_any_text(world):
    session, _ = raw(world)
    assert permits(session, "a/b c жук")
    assert permits(session, "c" * 255)
    assert not permits(session, "c" * 256)
    assert not permits(session, "ж" * 128)
    assert not permits(session, "a\nb")
    assert not permits(session, "")


def test_raw_client_counts_as_subscriber_and_is_no_member(world):
    session, outlet = raw(world, "*")
    session.handle(Subscribe("presence-c"))
    assert outlet.last == Subscribed("presence-c", ())
    presence(world.session()[0], {"user_id": "u1"})
    world.turns.drain()
    occupancy = done(world.memory.channel(APP, "presence-c"))
    assert (occupancy.subscriptions, occupancy.users) == (2, 1)
    assert [json.loads(event)["event"] for event in events(outlet)] == ["pusher_internal:member_added"]


def test_an_apps_types_bind_raw_clients_too():
    world = World(app_config(channels=frozenset({"public"})))
    session, _ = raw(world, "*")
    assert not permits(session, "private-c")


# Client events of Pusher clients


def member_of(world, name="private-c"):
    session, outlet = world.session()
    subscribe(session, name, '{"user_id":"u1"}' if name.startswith("presence-") else "")
    assert isinstance(outlet.last, Subscribed)
    return session, outlet


@pytest.mark.parametrize("name", ["private-c", "presence-c", "protected-c"])
def test_client_events_reach_the_others_and_not_the_sender(world, name):
    (one, first), (_, second) = member_of(world, name), member_of(world, name)
    one.handle(Publish(name, "client-e", b'{"a":1}'))
    world.turns.drain()
    assert first.writes == []
    (event,) = events(second)
    assert json.loads(event)["data"] == '{"a":1}'


@pytest.mark.parametrize("name", ["private-encrypted-c", "private-encrypted-cache-c"])
def test_client_events_on_encrypted_channels_are_refused(world, name):
    """Such an event would be plain text on a channel whose other events are encrypted."""
    (one, first), (two, second) = world.session(), world.session()
    for session in (one, two):
        subscribe(session, name)
    one.handle(Publish(name, "client-e", b'{"a":1}'))
    world.turns.drain()
    assert (failure(first), first.last.channel) == (403, name)
    assert second.writes == []


def test_a_raw_client_may_publish_to_an_encrypted_channel(world):
    (one, _), (two, outlet) = raw(world, "*"), raw(world, "*")
    for session in (one, two):
        session.handle(Subscribe("private-encrypted-c"))
    one.handle(Publish("private-encrypted-c", "e", b"1"))
    world.turns.drain()
    assert len(events(outlet)) == 1


def test_client_event_on_a_presence_channel_has_the_signed_user_id(world):
    (one, _), (_, outlet) = member_of(world, "presence-c"), member_of(world, "presence-c")
    one.handle(Publish("presence-c", "client-e", b"1"))
    world.turns.drain()
    assert json.loads(events(outlet)[-1])["user_id"] == "u1"


def test_on_other_channels_no_user_is_named(world):
    (one, _), (_, outlet) = member_of(world), member_of(world)
    subscribe(one, "presence-x", '{"user_id":"u1"}')
    one.handle(Publish("private-c", "client-e", b"1"))
    world.turns.drain()
    assert "user_id" not in json.loads(events(outlet)[-1])


def test_client_events_are_rejected_unless_the_app_allows_them():
    world = World(app_config(client_messages=False))
    session, outlet = member_of(world)
    session.handle(Publish("private-c", "client-e", b"1"))
    assert failure(outlet) == 403


def test_client_events_are_not_for_public_channels(client):
    session, outlet = client
    session.handle(Subscribe("c"))
    session.handle(Publish("c", "client-e", b"1"))
    assert failure(outlet) == 403


@pytest.mark.parametrize("name", ["private-other", "", "private-" + "x" * 5000])
def test_client_events_need_a_subscription(world, name):
    session, outlet = member_of(world)
    session.handle(Publish(name, "client-e", b"1"))
    assert failure(outlet) == 403
    assert len(outlet.last.text) < 500


def test_client_event_after_unsubscribing_is_rejected(world):
    session, outlet = member_of(world)
    session.handle(Unsubscribe("private-c"))
    session.handle(Publish("private-c", "client-e", b"1"))
    assert failure(outlet) == 403


@pytest.mark.parametrize("event", ["", "client-" + "x" * 194, "pusher:x", "pusher_internal:member_added"])
def test_event_names_that_may_not_be_are_refused(world, event):
    session, outlet = member_of(world)
    session.handle(Publish("private-c", event, b"1"))
    assert failure(outlet) == 400


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b'"' + b"a" * 100 + b'"', None),
        (b'"' + b"a" * 101 + b'"', 413),
        (b"1" * 100, None),
        (b"1" * 101, 413),
        (b'"' + b"\\u0061" * 100 + b'"', None),
        (b'"' + b"\\u0436" * 51 + b'"', 413),
    ],
)
def test_the_size_of_data_is_limited_as_its_subscribers_see_it(data, code):
    world = World(app_config({"payload": 100}))
    session, outlet = member_of(world)
    session.handle(Publish("private-c", "client-e", data))
    assert getattr(outlet.last, "code", None) == code


def test_client_events_are_limited_to_so_many_a_second(world):
    (session, outlet), (_, other) = member_of(world), member_of(world)
    for _ in range(12):
        session.handle(Publish("private-c", "client-e", b"1"))
    world.turns.drain()
    assert len(events(other)) == 10
    assert [reply.code for reply in outlet.replies[1:]] == [429, 429]
    world.clock.advance(0.5)
    for _ in range(6):
        session.handle(Publish("private-c", "client-e", b"1"))
    world.turns.drain()
    assert len(events(other)) == 15
    assert outlet.closes == []


def test_client_events_may_be_unlimited():
    world = World(app_config({"client_events": 0}))
    session, outlet = member_of(world)
    for _ in range(50):
        session.handle(Publish("private-c", "client-e", b"1"))
    assert outlet.replies == [Subscribed("private-c", None)]


def test_a_broker_that_is_away_refuses_the_event_and_the_client_stays(slow):
    session, outlet = member_of(slow)
    slow.broker.fail["publish"] = Refused(503, "the broker is away")
    session.handle(Publish("private-c", "client-e", b"1"))
    assert failure(outlet) == 503
    assert outlet.closes == []


# Publishing as a raw client


@pytest.mark.parametrize(
    ("push", "name", "allowed"),
    [
        ({"public"}, "c", True),
        ({"private"}, "c", False),
        ({"private"}, "private-c", True),
        ({"private"}, "protected-c", True),
        ({"presence"}, "protected-c", False),
        ({"presence"}, "presence-c", True),
        ((), "c", False),
    ],
)
def test_raw_clients_publish_to_the_types_that_push_allows(world, push, name, allowed):
    session, outlet = raw(world, "*", push=frozenset(push))
    session.handle(Subscribe(name))
    session.handle(Publish(name, "e", b"1"))
    assert (isinstance(outlet.last, Failure) and outlet.last.code == 403) is not allowed


def test_raw_clients_publish_though_client_events_are_off():
    world = World(app_config(client_messages=False))
    session, outlet = raw(world)
    session.handle(Subscribe("c"))
    session.handle(Publish("c", "e", b"1"))
    assert outlet.replies == [Subscribed("c", None)]


def test_raw_clients_publish_where_they_are_subscribed(world):
    session, outlet = raw(world)
    session.handle(Publish("c", "e", b"1"))
    assert failure(outlet) == 403


@pytest.mark.parametrize("event", ["pusher:error", "pusher_internal:member_added"])
def test_reserved_names_are_refused_from_raw_clients_too(world, event):
    session, outlet = raw(world)
    session.handle(Subscribe("c"))
    session.handle(Publish("c", event, b"1"))
    assert failure(outlet) == 400


def test_a_raw_client_may_send_to_one_and_not_to_itself(world):
    (one, _), (two, second), (three, third) = raw(world), raw(world), raw(world)
    for session in (one, two, three):
        session.handle(Subscribe("c"))
    one.handle(Publish("c", "e", b"1", "unicast", two.id))
    one.handle(Publish("c", "e", b"2", "unicast", one.id))
    world.turns.drain()
    assert len(events(second)) == 1
    assert third.writes == []


# Signing in (Pusher protocol, section 5)


def sign_in(session, user_id="u1", watchlist=(), **more):
    data = json.dumps({"id": user_id, "watchlist": list(watchlist)} | more)
    session.handle(SignIn(f"{KEY}:{auth.user_signature(SECRET, session.id, data)}", data))
    return data


def statuses(outlet) -> list[tuple[str, str]]:
    """Returns the watchlist events that a client received."""
    found = []
    for event in events(outlet):
        for one in json.loads(json.loads(event)["data"])["events"]:
            found += [(one["name"], user) for user in one["user_ids"]]
    return found


def test_half_a_surrogate_pair_in_signed_data_is_the_replacement_character(client):
    """The signature is of the unchanged text."""
    session, outlet = client
    presence(session, r'{"user_id":"u1","user_info":{"name":"a\ud83d"}}')
    assert [(one.user_id, json.loads(one.info)) for one in outlet.last.members] == [("u1", {"name": "a\ufffd"})]
    sign_in(session, "u1", user_info="a\ud83d")
    assert isinstance(outlet.last, SignedIn)
    assert json.loads(session.user.info) == "a\ufffd"


def test_sign_in_stores_the_signed_user(client):
    session, outlet = client
    data = sign_in(session)
    assert outlet.replies == [SignedIn(data)]
    assert session.authorized


def test_wrong_signature_rejects_the_sign_in(client):
    session, outlet = client
    session.handle(SignIn(f"{KEY}:00", '{"id":"u1"}'))
    assert failure(outlet) is None
    assert session.user is None
    assert outlet.closes == []


@pytest.mark.parametrize(
    "data",
    [
        "",
        "{}",
        "[]",
        '{"id":1.5}',
        '{"id":true}',
        '{"id":null}',
        '{"id":""}',
        '{"id":"' + "u" * 129 + '"}',
        '{"id":"a\\nb"}',
        "[" * 5000,
    ],
)
def test_user_data_that_is_no_user_is_refused(client, data):
    session, outlet = client
    session.handle(SignIn(auth.user_signature(SECRET, session.id, data), data))
    assert failure(outlet) is None
    assert outlet.failures == []


@pytest.mark.parametrize("id", [1, 0, -1, 2**53, 2**70])
def test_a_user_whose_id_is_a_number_is_signed_in_under_its_text(client, id):
    """The signature is of the sent number; the reply has the id as text, because pusher-js ignores a reply with a number."""
    session, outlet = client
    sign_in(session, id, user_info={"name": "A"}, more="kept")
    assert session.user.id == str(id)
    for _ in range(2):
        user_data = json.loads(outlet.last.user_data)
        assert user_data == {"id": str(id), "watchlist": [], "user_info": {"name": "A"}, "more": "kept"}
        sign_in(session, str(id), user_info={"name": "A"}, more="kept")


def test_a_watchlist_may_have_numbers(world):
    (one, _), (watching, outlet) = world.session(), world.session()
    sign_in(one, 7)
    sign_in(watching, "w", [7, "8", 8])
    assert outlet.last == WatchlistStatus(("7",), ("8",))


def test_signed_in_connection_cannot_change_its_user(client):
    session, outlet = client
    data = sign_in(session)
    sign_in(session, "u2")
    assert failure(outlet) is None
    sign_in(session)
    assert outlet.last == SignedIn(data)


def test_a_users_own_channel_is_for_the_signed_in_user_only(world):
    (one, first), (two, second) = world.session(), world.session()
    sign_in(one, "u1")
    one.handle(Subscribe("#server-to-user-u1"))
    assert first.last == Subscribed("#server-to-user-u1", None)
    for session in (one, two):
        session.handle(Subscribe("#server-to-user-u2"))
    assert refusal(first) == refusal(second) == ("Forbidden", 403)
    assert world.publish("#server-to-user-u1", b"1") == 1


@pytest.mark.parametrize("name", ["#user-u1", "#watch-u1", "#server-to-user-", "#"])
def test_topics_of_users_are_no_channels(client, name):
    session, outlet = client
    sign_in(session, "u1", ["u1"])
    session.handle(Subscribe(name))
    assert refusal(outlet) == ("Forbidden", 403)


def test_presence_channel_uses_the_signed_in_user(client):
    session, outlet = client
    sign_in(session, "u1", user_info={"name": "A"})
    session.handle(Subscribe("presence-c", token(session, "presence-c")))
    assert [(one.user_id, one.info) for one in outlet.last.members] == [("u1", b'{"name": "A"}')]


def test_watchlist_reports_online_users_then_each_change(world):
    (watching, outlet), (one, _), (two, _) = world.session(), world.session(), world.session()
    sign_in(one, "u1")
    sign_in(watching, "w", ["u1", "u2"])
    assert outlet.last == WatchlistStatus(("u1",), ("u2",))
    sign_in(two, "u2")
    one.expire()
    world.turns.drain()
    assert statuses(outlet) == [("online", "u2"), ("offline", "u1")]


def test_a_user_is_online_once_and_offline_with_the_last_connection(world):
    (watching, outlet), (one, _), (two, _) = world.session(), world.session(), world.session()
    sign_in(watching, "w", ["u1"])
    for session in (one, two):
        sign_in(session, "u1")
    one.expire()
    two.expire()
    world.turns.drain()
    assert statuses(outlet) == [("online", "u1"), ("offline", "u1")]


def test_watchlist_over_the_limit_is_cut_and_the_client_notified(client):
    session, outlet = client
    sign_in(session, "w", [f"u{n}" for n in range(101)])
    signed_in, watched, notice = outlet.replies
    assert isinstance(signed_in, SignedIn)
    assert len(watched.offline) == 100
    assert notice.code == 4302


def test_terminating_a_user_closes_only_its_signed_in_connections(world):
    (one, first), (two, second), (three, third) = world.session(), world.session(), world.session()
    sign_in(one, "u1")
    sign_in(two, "u1")
    presence(three, {"user_id": "u1"})
    done(world.node.terminate(world.app, "u1"))
    assert [code for code, _ in first.closes + second.closes] == [4009, 4009]
    assert third.closes == []


def test_ended_signed_in_connection_leaves_no_state(client, world):
    session, _ = client
    sign_in(session, "u1", ["u2", "u3"])
    session.expire()
    world.turns.drain()
    assert world.app.tenant.channels == {}
    assert done(world.memory.online(APP, ["u1"])) == frozenset()


@pytest.mark.parametrize("call", ["subscribe", "sign_in", "online"])
async def test_pending_sign_in_is_undone_when_the_connection_ends(slow, call):
    slow.broker.held = {call}
    session, outlet = slow.session()
    sign_in(session, "ghost", ["u2"])
    await turns()
    session.expire()
    await slow.broker.let_all()
    assert slow.app.tenant.channels == {}
    assert await slow.memory.online(APP, ["ghost"]) == frozenset()
    assert not any(slow.broker.topics.values())
    assert outlet.replies == []


@pytest.mark.parametrize("call", ["subscribe", "sign_in", "online"])
async def test_sign_in_rejected_by_the_broker_leaves_no_state(slow, call):
    slow.broker.fail[call] = Refused(503, "the broker is away")
    session, outlet = slow.session()
    sign_in(session, "u1", ["u2"])
    assert failure(outlet) is None
    slow.broker.fail.clear()
    session.expire()
    assert slow.app.tenant.channels == {}, "the hub has a ghost"
    assert await slow.memory.online(APP, ["u1"]) == frozenset()


async def test_failed_sign_in_keeps_the_frames_of_other_connections(slow):
    """The edge of this member excludes it, and its channel already had pending frames: such a frame is in a list of its own."""
    (watching, outlet), (one, first), (two, _) = slow.session(), slow.session(), slow.session()
    sign_in(watching, "w", ["u1"])
    sign_in(two, "u1")
    slow.turns.drain()
    slow.broker.held = {"sign_in"}
    sign_in(one, "u1", ["u1"])
    await turns()
    two.expire()
    slow.broker.fail["online"] = Refused(503, "the broker is away")
    await slow.broker.let("sign_in")
    assert failure(first) is None
    slow.turns.drain()
    assert slow.failures == []
    assert statuses(outlet)[-3:] == [("offline", "u1"), ("online", "u1"), ("offline", "u1")]


async def test_connection_that_signs_in_while_another_signs_out_receives(slow):
    (one, _), (two, outlet) = slow.session(), slow.session()
    sign_in(one, "w1", ["u1"])
    slow.broker.held = {"subscribe"}
    sign_in(two, "w2", ["u1", "u2"])
    await turns()
    one.expire()
    await slow.broker.let_all()
    three, _ = slow.session()
    sign_in(three, "u1")
    slow.turns.drain()
    assert statuses(outlet) == [("online", "u1")]


# Events to a user between `signin_success` and the subscription of its channel

MINE = "#server-to-user-u1"


def data_of(outlet) -> list:
    return [json.loads(json.loads(event)["data"]) for event in events(outlet)]


@pytest.fixture
def mine(world):
    """Makes a client that has signed in and has not subscribed."""
    session, outlet = world.session()
    sign_in(session)
    return session, outlet


def test_events_to_a_user_are_held_until_its_subscription_and_delivered_once(world, mine):
    session, outlet = mine
    for number in range(3):
        assert world.publish(MINE, b"%d" % number) == 0
    world.turns.drain()
    assert outlet.writes == []
    session.handle(Subscribe(MINE))
    assert outlet.last == Subscribed(MINE, None)
    assert world.publish(MINE, b"3") == 1
    world.turns.drain()
    assert data_of(outlet) == [0, 1, 2, 3]
    assert world.app.held is None


def test_held_events_are_sent_after_subscription_succeeded(world, mine):
    session, outlet = mine
    world.publish(MINE, b"1")
    before = []
    outlet.on_write = lambda: before.append(len(outlet.replies))
    session.handle(Subscribe(MINE))
    world.turns.drain()
    assert before == [len(outlet.replies)]


def test_events_to_a_user_without_a_subscription_are_delivered_after_ten_seconds(world, mine):
    _, outlet = mine
    world.publish(MINE, b"1")
    world.clock.advance(9.9)
    done(world.node.tick())
    world.publish(MINE, b"2")
    world.turns.drain()
    assert outlet.writes == []
    world.clock.advance(0.2)
    done(world.node.tick())
    world.turns.drain()
    assert data_of(outlet) == [1, 2]
    world.publish(MINE, b"3")
    done(world.node.tick())
    world.turns.drain()
    assert data_of(outlet) == [1, 2]
    assert world.app.held is None


def test_each_connection_of_a_user_gets_its_held_events(world, mine):
    (one, first), (two, second) = mine, world.session()
    one.handle(Subscribe(MINE))
    sign_in(two)
    assert world.publish(MINE, b"1") == 1
    two.handle(Subscribe(MINE))
    world.turns.drain()
    assert (data_of(first), data_of(second)) == ([1], [1])


def test_events_that_are_not_for_a_client_are_not_held_for_it(world, mine):
    session, outlet = mine
    other, _ = world.session()
    world.publish(MINE, b"1", exclude=session.id)
    world.publish(MINE, b"2", options=Options(0, "unicast", other.id))
    world.publish(MINE, b"3", options=Options(0, "multicast", "ann"))
    world.publish(MINE, b"4", options=Options(0, "unicast", session.id))
    world.publish("#server-to-user-u2", b"5")
    session.handle(Subscribe(MINE))
    world.turns.drain()
    assert data_of(outlet) == [4]


@pytest.mark.parametrize(("size", "most"), [(1, 100), (20_000, 3), (70_000, 0)], ids=["frames", "bytes", "a large one"])
def test_held_events_are_bounded_and_further_events_flush_them(world, mine, size, most):
    session, outlet = mine
    text = json.dumps("x" * size).encode()
    for _ in range(most):
        world.publish(MINE, text)
    world.turns.drain()
    assert outlet.writes == []
    world.publish(MINE, text)
    world.publish(MINE, text)
    world.turns.drain()
    assert len(events(outlet)) >= max(1, most)
    session.handle(Subscribe(MINE))
    world.turns.drain()
    assert len(events(outlet)) == most + 2


def test_hooks_counts_and_limits_do_not_see_a_client_that_is_about_to_subscribe():
    world = World(app_config({"subscriptions": 1}, subscription_count=True))
    world.app.hook_kinds = frozenset(("joined", "left", "occupied", "vacated", "counted"))
    session, outlet = world.session()
    sign_in(session)
    assert done(world.node.channel(world.app, MINE)) is None
    assert done(world.node.channels(world.app)) == []
    session.handle(Subscribe("c"))
    assert outlet.last == Subscribed("c", None)
    assert [event for event in world.hooks.hook_events if event.channel.startswith("#")] == []


def test_nothing_is_held_for_a_connection_that_has_ended(world, mine):
    session, outlet = mine
    world.publish(MINE, b"1")
    session.expire()
    assert world.app.held is None
    world.clock.advance(20)
    done(world.node.tick())
    world.turns.drain()
    assert outlet.writes == []


def test_a_second_sign_in_holds_events_again(world, mine):
    session, outlet = mine
    world.clock.advance(11)
    done(world.node.tick())
    sign_in(session)
    world.publish(MINE, b"1")
    session.handle(Subscribe(MINE))
    sign_in(session)
    assert world.app.held is None
    world.turns.drain()
    assert data_of(outlet) == [1]


def test_user_signed_in_by_the_backend_gets_no_events_without_a_subscription(world):
    """Such a user gets no `signin_success` either."""
    session, _ = world.session()
    done(world.node.signins.sign_in(world.app, session, SignedInUser("u1")))
    assert world.app.held is None


async def test_signin_success_waits_for_the_topic(slow):
    session, outlet = slow.session()
    slow.broker.held = {"subscribe"}
    sign_in(session)
    while slow.broker.waiting:
        assert outlet.replies == []
        await slow.broker.let("subscribe")
    assert isinstance(outlet.last, SignedIn)
    assert slow.broker.topics[APP, MINE] == 1
    await slow.node.publish(slow.app, MINE, "e", b"1", slow.node.stamp())
    slow.broker.held = {"join"}
    session.handle(Subscribe(MINE))
    await slow.node.publish(slow.app, MINE, "e", b"2", slow.node.stamp())
    await slow.broker.let_all()
    await slow.node.publish(slow.app, MINE, "e", b"3", slow.node.stamp())
    slow.turns.drain()
    assert data_of(outlet) == [1, 2, 3]
    session.expire()
    await turns()
    assert slow.broker.topics[APP, MINE] == 0


@pytest.mark.parametrize("end", ["silence", "close"])
async def test_topic_of_a_user_without_a_subscription_is_released(slow, end):
    session, _ = slow.session()
    sign_in(session)
    assert slow.broker.topics[APP, MINE] == 1
    if end == "close":
        session.expire()
    else:
        slow.clock.advance(11)
        await slow.node.tick()
    await turns()
    assert slow.broker.topics[APP, MINE] == 0


async def test_failed_topic_subscription_rejects_the_sign_in_and_leaves_no_state(slow):
    session, outlet = slow.session()
    sign_in(session)
    slow.clock.advance(11)
    await slow.node.tick()
    slow.broker.fail["subscribe"] = Refused(503, "the broker is away")
    sign_in(session)
    assert failure(outlet) is None
    assert slow.app.held is None
    slow.broker.fail.clear()
    slow.broker.held = {"subscribe"}
    sign_in(session)
    session.expire()
    await slow.broker.let_all()
    assert slow.app.held is None
    assert slow.broker.topics[APP, MINE] == 0


# Cache channels and subscription counts (Pusher protocol, section 3)


def test_cache_channel_sends_its_last_event_or_a_cache_miss(world):
    (one, first), (two, second) = world.session(), world.session()
    one.handle(Subscribe("cache-c"))
    assert first.replies == [Subscribed("cache-c", None), CacheMissed("cache-c")]
    world.publish("cache-c", b"1")
    world.publish("cache-c", b"2")
    two.handle(Subscribe("cache-c"))
    subscribed, replayed = second.replies
    assert subscribed == Subscribed("cache-c", None)
    assert replayed.message.data == b"2"


def test_client_events_are_not_kept(world):
    (one, _), (two, outlet) = world.session(), world.session()
    subscribe(one, "private-cache-c")
    one.handle(Publish("private-cache-c", "client-e", b"1"))
    subscribe(two, "private-cache-c")
    assert outlet.last == CacheMissed("private-cache-c")


def test_subscription_counts_are_sent_only_if_the_app_enables_them():
    world = World(app_config(subscription_count=True))
    (one, outlet), (two, _) = world.session(), world.session()
    one.handle(Subscribe("c"))
    done(world.node.tick())
    two.handle(Subscribe("c"))
    done(world.node.tick())
    two.expire()
    presence(one, {"user_id": "u1"})
    world.turns.drain()
    counts = [json.loads(json.loads(event)["data"])["subscription_count"] for event in events(outlet)]
    assert counts == [1, 2, 1]


# Ping, rejections, floods


def test_a_ping_is_answered(client):
    session, outlet = client
    session.handle(Ping())
    session.handle(Pong())
    assert outlet.replies == [Pong()]


def test_input_rejected_by_a_codec_is_answered(client, world):
    session, outlet = client
    session.refuse(Refused(400, "not JSON"))
    assert outlet.replies == [Failure(400, "not JSON")]
    assert world.metrics.refusals["400"] == 1


def test_client_that_sends_only_bad_commands_is_disconnected(client, world):
    session, outlet = client
    for _ in range(MAX_REFUSALS):
        session.handle(Publish("c", "client-e", b"1"))
    assert outlet.closes == []
    session.handle(Publish("c", "client-e", b"1"))
    assert [code for code, _ in outlet.closes] == [1008]
    assert world.metrics.cut_offs["flood"] == 1
    assert len(outlet.replies) == MAX_REFUSALS


def test_bad_subscriptions_are_a_flood_too(client, world):
    session, outlet = client
    for _ in range(MAX_REFUSALS + 1):
        session.handle(Subscribe("private-c", "wrong"))
    assert [code for code, _ in outlet.closes] == [1008]
    assert session.closed


def test_a_client_that_is_only_too_fast_stays(world):
    session, outlet = member_of(world)
    for _ in range(3 * MAX_REFUSALS):
        session.handle(Publish("private-c", "client-e", b"1"))
    assert outlet.closes == []
    assert not session.closed


def test_a_raw_client_that_publishes_while_the_broker_is_away_stays(slow):
    session, outlet = raw(slow)
    session.handle(Subscribe("c"))
    slow.broker.fail["publish"] = Refused(503, "the broker is away")
    for _ in range(3 * MAX_REFUSALS):
        session.handle(Publish("c", "e", b"1"))
    assert failure(outlet) == 503
    assert outlet.closes == []


def test_a_raw_client_that_floods_is_cut_off(world):
    session, outlet = raw(world)
    session.handle(Subscribe("c"))
    for _ in range(MAX_PUBLISHES + 1):
        session.handle(Publish("c", "e", b"1"))
    assert [code for code, _ in outlet.closes] == [1008]
    assert world.metrics.cut_offs["flood"] == 1
    assert world.metrics.events_in["websocket"] == MAX_PUBLISHES


def test_tolerance_for_bad_commands_recovers_with_time(client, world):
    session, outlet = client
    for _ in range(5):
        for _ in range(MAX_REFUSALS):
            session.refuse(Refused(400, "no"))
        world.clock.advance(1)
    assert outlet.closes == []


# Order, while commands wait


async def test_commands_after_a_waiting_command_are_applied_in_order(slow):
    (one, outlet), (_, other) = slow.session(), member_of(slow, "presence-c")
    slow.broker.held = {"join", "publish", "leave"}
    presence(one, {"user_id": "u2"})
    one.handle(Publish("presence-c", "client-e", b"1"))
    one.handle(Ping())
    one.handle(Unsubscribe("presence-c"))
    one.handle(Publish("presence-c", "client-e", b"2"))
    await turns()
    assert outlet.replies == []
    await slow.broker.let("join")
    assert [type(reply) for reply in outlet.replies] == [Subscribed]
    await slow.broker.let("publish")
    assert [type(reply) for reply in outlet.replies] == [Subscribed, Pong]
    await slow.broker.let("leave")
    assert [type(reply) for reply in outlet.replies] == [Subscribed, Pong, Failure]
    slow.turns.drain()
    assert [json.loads(event)["event"].rpartition(":")[2] for event in events(other)] == [
        "member_added",
        "client-e",
        "member_removed",
    ]


async def test_waiting_client_does_not_delay_others(slow):
    (one, _), (two, outlet) = slow.session(), slow.session()
    two.handle(Subscribe("c"))
    slow.broker.held = {"subscribe"}
    one.handle(Subscribe("other"))
    await turns()
    two.handle(Ping())
    assert outlet.last == Pong()
    await slow.broker.let_all()


async def test_the_queue_is_bounded(slow):
    slow.broker.held = {"subscribe"}
    session, outlet = slow.session()
    session.handle(Subscribe("c"))
    for _ in range(MAX_WAITING_COMMANDS):
        session.handle(Ping())
    assert outlet.closes == []
    session.handle(Ping())
    assert [code for code, _ in outlet.closes] == [4100]
    assert slow.metrics.cut_offs["queue-full"] == 1
    await slow.broker.let_all()
    assert outlet.replies == []


async def test_a_command_that_fails_ends_this_connection_and_no_other(slow):
    (one, outlet), (two, other) = slow.session(), slow.session()
    slow.broker.fail["join"] = ValueError("a defect")
    one.handle(Subscribe("c"))
    assert [code for code, _ in outlet.closes] == [1011]
    assert isinstance(outlet.failures[0], ValueError)
    slow.broker.fail.clear()
    two.handle(Subscribe("c"))
    assert other.last == Subscribed("c", None)


async def test_rejected_command_does_not_end_the_queue(slow):
    slow.broker.held = {"subscribe"}
    session, outlet = slow.session()
    session.handle(Subscribe("c"))
    session.handle(Publish("c", "client-e", b"1"))
    session.handle(Subscribe("private-c", "wrong"))
    session.handle(Ping())
    await slow.broker.let_all()
    assert [type(reply) for reply in outlet.replies] == [Subscribed, Failure, SubscriptionRefused, Pong]


# The end


@pytest.mark.parametrize("call", ["subscribe", "join"])
async def test_waiting_join_is_undone_when_the_connection_ends(slow, call):
    slow.broker.held = {call}
    session, outlet = slow.session()
    presence(session, {"user_id": "ghost"})
    await turns()
    session.expire()
    await slow.broker.let_all()
    assert await slow.memory.channels(APP) == []
    assert await slow.memory.members(APP, "presence-c") == ()
    assert slow.app.tenant.channels == {}
    assert session.id not in slow.app.tenant.sessions
    assert outlet.replies == []


async def test_queued_commands_are_dropped_when_the_connection_ends(slow):
    slow.broker.held = {"subscribe"}
    session, outlet = slow.session()
    session.handle(Subscribe("a"))
    session.handle(Subscribe("b"))
    session.handle(Ping())
    await turns()
    session.expire()
    await slow.broker.let_all()
    assert outlet.replies == []
    assert ("subscribe", "b") not in slow.broker.calls


async def test_waiting_leave_continues_when_the_connection_ends(slow):
    session, _ = member_of(slow, "presence-c")
    slow.broker.held = {"leave"}
    session.handle(Unsubscribe("presence-c"))
    await turns()
    session.expire()
    await slow.broker.let_all()
    assert await slow.memory.channels(APP) == []


async def test_a_leave_and_a_join_that_waits_leave_one_subscription(slow):
    session, outlet = slow.session()
    session.handle(Subscribe("c"))
    slow.broker.held = {"leave"}
    session.handle(Unsubscribe("c"))
    session.handle(Subscribe("c"))
    await slow.broker.let_all()
    occupancy = await slow.memory.channel(APP, "c")
    assert occupancy is not None
    assert occupancy.subscriptions == 1
    assert outlet.replies == [Subscribed("c", None)] * 2


def test_a_closed_session_applies_nothing(client, world):
    session, outlet = client
    session.expire()
    session.handle(Subscribe("c"))
    session.handle(Ping())
    assert outlet.replies == []
    assert world.app.tenant.channels == {}


def test_closing_twice_is_once(client, world):
    session, _ = client
    session.handle(Subscribe("c"))
    session.expire()
    session.expire()
    assert done(world.memory.channels(APP)) == []


def test_a_session_that_ends_leaves_everything(client, world):
    session, outlet = client
    session.handle(Subscribe("c"))
    presence(session, {"user_id": "u1"})
    world.publish("c", b"1")
    session.expire()
    world.turns.drain()
    assert outlet.writes == []
    assert world.app.tenant.sessions == {}
    assert world.app.tenant.channels == {}
    assert done(world.memory.channels(APP)) == []


def test_disconnecting_closes_the_connection(client):
    session, outlet = client
    session.disconnect(4009, "terminated")
    assert outlet.closes == [(4009, "terminated")]
    assert session.closed


def test_a_message_of_a_session_is_framed_by_its_wire(world):
    session, outlet = world.session()
    session.handle(Subscribe("c"))
    world.publish("c", b'"x"', event="e")
    world.turns.drain()
    assert outlet.writes == [text_frame(b'{"event":"e","channel":"c","data":"x"}')]
