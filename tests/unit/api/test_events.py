"""`POST /events` (Push1st API, section 3; Pusher protocol, section 9): results, and rejections, which publish nothing."""

import json

import pytest

from push1st.errors import Refused
from push1st.messages import DEFAULT_OPTIONS, MAX_HEADERS_BYTES, Options, Subscribe
from tests.support.loop import done
from tests.support.node import app_config

ENCRYPTED = "private-encrypted-c"


def subscribed(caller, *names):
    session, outlet = caller.world.session(push=frozenset())
    for name in names:
        session.handle(Subscribe(name))
    return session, outlet


# Answers


def test_plain_publish_returns_the_number_of_subscribers(caller):
    subscribed(caller, "a", "b"), subscribed(caller, "a")
    status, answer = caller.event(channels=["a", "b", "c"])
    assert status == 200
    assert answer["channels"] == {"a": 2, "b": 1, "c": 0}
    assert list(answer) == ["channels", "msg-id", "time"]
    assert 0 < answer["msg-id"] < 1 << 63
    assert answer["time"] >= 0


def test_ids_grow(caller):
    assert caller.event()[1]["msg-id"] < caller.event()[1]["msg-id"]


def test_a_signed_call_is_answered_with_an_empty_object(caller):
    assert caller.event(key=True) == (200, {})


@pytest.mark.parametrize("key", [True, False])
def test_publish_with_info_returns_the_requested_attributes(caller, key):
    subscribed(caller, "c")
    asked = {"channels": ["c", "presence-c"], "info": "user_count,subscription_count"}
    assert caller.event(key, **asked) == (
        200,
        {"channels": {"c": {"subscription_count": 1}, "presence-c": {"user_count": 0, "subscription_count": 0}}},
    )


def test_one_channel_may_stand_for_channels(caller):
    assert caller.event(channel="c", channels=...)[1]["channels"] == {"c": 0}


def test_channel_named_twice_gets_the_event_once(caller):
    assert caller.event(channels=["c", "d", "c"])[1]["channels"] == {"c": 0, "d": 0}
    assert [one[0] for one in caller.sent] == ["c", "d"]


# Messages


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ('"x"', b'"x"'),
        ("1", b"1"),
        ("null", b"null"),
        (' {"a" : 1.50, "a":2} ', b'{"a" : 1.50, "a":2}'),
        ('"\\u0436"', b'"\\u0436"'),
        ('"ж"', '"ж"'.encode()),
        ("[[]]", b"[[]]"),
        ('"{}"', b'"{}"'),
    ],
)
def test_data_may_be_any_json_and_is_forwarded_unchanged(caller, text, data):
    assert caller.post("events", f'{{"name":"e","channel":"c","data":{text}}}')[0] == 200
    assert caller.sent == [("c", "e", data, "", DEFAULT_OPTIONS)]


def test_the_last_of_equal_keys_counts(caller):
    assert caller.post("events", '{"name":"a","name":"e","channel":"c","data":1,"data":2}')[0] == 200
    assert caller.sent == [("c", "e", b"2", "", DEFAULT_OPTIONS)]


@pytest.mark.parametrize("socket_id", ["", None, "1.2", "p.1.2", "p.q.1.2", "4294967295.4294967295"])
def test_one_connection_may_be_excluded(caller, socket_id):
    assert caller.event(socket_id=socket_id)[0] == 200
    assert caller.sent[0][3] == (socket_id or "")


def test_the_excluded_is_not_counted(caller):
    (one, outlet), (_, other) = subscribed(caller, "c"), subscribed(caller, "c")
    assert caller.event(socket_id=one.id)[1]["channels"] == {"c": 1}
    caller.world.turns.drain()
    assert (len(outlet.writes), len(other.writes)) == (0, 1)


@pytest.mark.parametrize(
    ("given", "options"),
    [
        (None, DEFAULT_OPTIONS),
        ({}, DEFAULT_OPTIONS),
        ({"ttl": 5}, DEFAULT_OPTIONS),
        ({"ttl": 0.5}, DEFAULT_OPTIONS),
        ({"delivery": "broadcast"}, DEFAULT_OPTIONS),
        ({"delivery": "broadcast", "session": ""}, DEFAULT_OPTIONS),
        ({"delivery": "unicast", "session": "1.2"}, Options(0, "unicast", "1.2")),
        ({"delivery": "multicast", "session": "p"}, Options(0, "multicast", "p")),
    ],
)
def test_options_choose_the_delivery_of_an_event(caller, given, options):
    assert caller.event(options=given)[0] == 200
    assert caller.sent[0][4] == options


@pytest.mark.parametrize(
    ("socket_id", "given", "exclude", "options"),
    [
        ("1.2", {"delivery": "unicast"}, "", Options(0, "unicast", "1.2")),
        ("ann", {"delivery": "multicast", "session": ""}, "", Options(0, "multicast", "ann")),
        ("1.2", {"delivery": "multicast", "session": "ann"}, "1.2", Options(0, "multicast", "ann")),
        ("", {"session": "1.2"}, "1.2", DEFAULT_OPTIONS),
        ("", {"delivery": "broadcast", "session": "no id"}, "no id", DEFAULT_OPTIONS),
        ("3.4", {"delivery": "broadcast", "session": "1.2"}, "3.4", Options(0, "broadcast", "1.2")),
    ],
)
def test_a_socket_id_and_a_session_are_excluded_from_a_broadcast_and_are_targets_otherwise(
    caller, socket_id, given, exclude, options
):
    assert caller.event(socket_id=socket_id, options=given)[0] == 200
    assert caller.sent[0][3:] == (exclude, options)


def test_a_session_of_a_broadcast_is_left_out_and_not_counted(caller):
    (one, outlet), (two, excluded), (_, other) = (subscribed(caller, "c") for _ in range(3))
    assert caller.event(options={"session": one.id})[1]["channels"] == {"c": 2}
    assert caller.event(socket_id=two.id, options={"session": one.id})[1]["channels"] == {"c": 1}
    caller.world.turns.drain()
    assert [len(each.writes) for each in (outlet, excluded, other)] == [0, 1, 1]
    reached = caller.world.node.controller.reach(caller.world.app, "c", two.id, Options(0, "broadcast", one.id))
    assert done(reached) == 1


@pytest.mark.parametrize("key", [False, True], ids=["plain", "signed"])
@pytest.mark.parametrize(
    ("given", "headers"),
    [("{}", b"{}"), (' {"a" : "\\u0436"}\n', b'{"a" : "\\u0436"}'), ("null", b"")],
)
def test_headers_are_forwarded_unchanged(caller, given, headers, key):
    body = f'{{"name":"e","channels":["c","d"],"data":1,"headers":{given}}}'
    assert caller.post("events", body, key)[0] == 200
    assert caller.headers == [headers, headers]


def test_headers_have_a_limit(caller):
    most = MAX_HEADERS_BYTES - len('{"a": ""}')
    assert caller.event(headers={"a": "x" * most})[0] == 200
    status, answer = caller.event(headers={"a": "x" * (most + 1)})
    assert (status, answer["error"]) == (413, "headers has 4097 bytes, the limit is 4096")


def test_events_are_counted(caller):
    caller.event(channels=["a", "b"])
    assert caller.world.metrics.events_in["api"] == 1


@pytest.mark.parametrize("name", ["a/b", "ж", "a b", "c" * 255])
def test_an_unsigned_call_may_name_any_channel(caller, name):
    assert caller.event(channels=[name])[0] == 200
    assert caller.event(key=True, channels=[name])[0] == 400


@pytest.mark.parametrize("name", ["#server-to-user-1", "c" * 164, "private-a_-=@,.;9"])
def test_signed_call_accepts_the_channel_names_of_pusher(caller, name):
    assert caller.event(key=True, channels=[name])[0] == 200


@pytest.mark.parametrize("key", [True, False])
@pytest.mark.parametrize("user_id", ["auth0|1", "ann+shop@example.com", "жук", "u" * 128])
def test_a_user_s_channel_has_any_user_s_id_in_its_name(calling, user_id, key):
    caller = calling(app_config({"channel_name": 20}))
    assert caller.event(key=key, channels=[f"#server-to-user-{user_id}"])[0] == 200


@pytest.mark.parametrize("key", [True, False])
@pytest.mark.parametrize("name", ["#server-to-user-", "#server-to-user-a\nb", "#server-to-user-" + "u" * 129, "#user-1", "#"])
def test_other_names_with_a_number_sign_are_refused(caller, name, key):
    assert caller.event(key=key, channels=[name])[0] == 400


def test_an_encrypted_channel_alone_is_published_to(caller):
    assert caller.event(channels=[ENCRYPTED])[0] == 200


# Rejections

BAD = {
    "no name": {"name": ...},
    "a name that is no text": {"name": 1},
    "an empty name": {"name": ""},
    "a name that is too long": {"name": "n" * 201},
    "a reserved name": {"name": "pusher:error"},
    "a reserved internal name": {"name": "pusher_internal:member_added"},
    "no data": {"data": ...},
    "no channels": {"channels": ...},
    "channels and channel": {"channel": "c"},
    "null for both": {"channels": None, "channel": None},
    "no channel in the list": {"channels": []},
    "too many channels": {"channels": [f"c{n}" for n in range(101)]},
    "channels that are no list": {"channels": "c"},
    "a channel that is no text": {"channels": ["c", 1]},
    "a null channel": {"channels": ["c", None]},
    "an empty channel": {"channels": ["c", ""]},
    "a channel that is too long": {"channels": ["c", "x" * 256]},
    "a channel with a control character": {"channels": ["c", "a\nb"]},
    "an encrypted channel and another": {"channels": [ENCRYPTED, "c"]},
    "an encrypted channel twice": {"channels": [ENCRYPTED, ENCRYPTED]},
    "two encrypted channels": {"channels": [ENCRYPTED, "private-encrypted-cache-d"]},
    "a socket_id that is none": {"socket_id": "x"},
    "a socket_id with one number": {"socket_id": "1"},
    "a socket_id with letters": {"socket_id": "1.a"},
    "a socket_id with a line": {"socket_id": "1.2\n"},
    "a socket_id that is no text": {"socket_id": 1.2},
    "an unknown attribute": {"info": "user_count,subscribers"},
    "an attribute that is no text": {"info": 1},
    "options that are no object": {"options": []},
    "a negative ttl": {"options": {"ttl": -1}},
    "a ttl that is no number": {"options": {"ttl": "5"}},
    "an unknown delivery": {"options": {"delivery": "anycast"}},
    "unicast to nobody": {"options": {"delivery": "unicast"}},
    "multicast to nobody": {"options": {"delivery": "multicast", "session": ""}},
    "a session that is no text": {"options": {"delivery": "unicast", "session": 1}},
    "headers that are a list": {"headers": ["a"]},
    "headers that are a text": {"headers": "{}"},
}


@pytest.mark.parametrize("key", [False, True], ids=["plain", "signed"])
@pytest.mark.parametrize("fields", BAD.values(), ids=BAD.keys())
def test_invalid_event_is_400_and_publishes_nothing(caller, fields, key):
    status, answer = caller.event(key, **fields)
    assert status == 400
    assert len(answer["error"]) > 10
    assert caller.sent == []
    assert caller.world.metrics.events_in["api"] == 0


BODIES = {
    "nothing": b"",
    "no JSON": b"hello",
    "half an object": b'{"name":"e"',
    "a list": b"[]",
    "null": b"null",
    "a form": b"name=e&channel=c&data=x",
    "bytes that are not UTF-8": b'{"name":"e","channel":"c","data":"\xff"}',
    "a name that is not UTF-8": b'{"name":"\xff","channel":"c","data":1}',
    "bytes that are not UTF-8 behind": b'{"name":"e","channel":"c","data":1}\xff',
    "a surrogate": b'{"name":"e","channel":"c","data":"\xed\xa0\x80"}',
    "NaN": b'{"name":"e","channel":"c","data":NaN}',
    "deep data": b'{"name":"e","channel":"c","data":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep nonsense": b"[" * 100_000,
    "two objects": b'{"name":"e","channel":"c","data":1}{}',
    "two byte order marks": b'\xef\xbb\xbf\xef\xbb\xbf{"name":"e","channel":"c","data":1}',
    "UTF-16": '{"name":"e","channel":"c","data":1}'.encode("utf-16"),
}


@pytest.mark.parametrize("key", [True, False])
def test_half_a_surrogate_pair_is_published_as_the_replacement_character(caller, key):
    """JavaScript writes such text if it cuts an emoji (RFC 8259 §8.2); the signature is of the sent bytes."""
    body = rb'{"name":"e","channel":"c","data":{"a":"\ud83d"}}'
    assert caller.post("events", body, key=key)[0] == 200
    body = rb'{"batch":[{"name":"e\ude00","channel":"c","data":"\ud83d"}]}'
    assert caller.post("batch_events", body, key=key)[0] == 200
    assert [(one[1], json.loads(one[2])) for one in caller.sent] == [("e", {"a": "\ufffd"}), ("e\ufffd", "\ufffd")]


@pytest.mark.parametrize("key", [True, False])
def test_a_byte_order_mark_is_ignored(caller, key):
    assert caller.post("events", b'\xef\xbb\xbf{"name":"e","channel":"c","data":"\xd0\xb6"}', key)[0] == 200
    assert caller.sent[0][2] == '"ж"'.encode()


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_a_body_that_is_not_read_is_400_and_publishes_nothing(caller, body):
    status, answer = caller.post("events", body)
    assert status == 400
    assert len(answer["error"]) < 400
    assert caller.sent == []


@pytest.mark.parametrize(
    ("data", "status"),
    [
        ("x" * 10_240, 200),
        ("x" * 10_241, 413),
        ("ж" * 5120, 200),
        ("ж" * 5121, 413),
        ("\n" * 10_240, 200),
        ("\n" * 10_241, 413),
        ("😀" * 2560, 200),
        ({"a": "x" * 10_230}, 200),
        ({"a": "x" * 10_240}, 413),
    ],
)
def test_the_size_of_data_is_limited_as_its_subscribers_see_it(caller, data, status):
    assert caller.event(data=data)[0] == status
    assert len(caller.sent) == (status == 200)


def test_limits_are_the_apps(calling):
    caller = calling(app_config({"payload": 3, "event_name": 3, "channels_per_event": 2, "channel_name": 3}))
    assert caller.event(data="xyz", name="abc", channels=["a", "b"], key=True)[0] == 200
    assert caller.event(data="xyzz")[0] == 413
    assert caller.event(name="abcd")[0] == 400
    assert caller.event(channels=["a", "b", "c"])[0] == 400
    assert caller.event(channels=["abcd"], key=True)[0] == 400


def test_events_may_be_limited_to_so_many_a_second(calling):
    caller = calling(app_config({"publishes": 3}))
    assert [caller.event()[0] for _ in range(4)] == [200, 200, 200, 429]
    caller.world.clock.advance(1)
    assert caller.event(channels=["a", "b"])[0] == 200
    assert caller.event(channels=["a", "b"])[0] == 429
    assert caller.event()[0] == 200


def test_invalid_event_does_not_count_toward_the_rate(calling):
    caller = calling(app_config({"publishes": 1}))
    for _ in range(5):
        assert caller.event(name="pusher:x")[0] == 400
    assert caller.event()[0] == 200


def test_publish_without_broker_is_503_and_logged(calling):
    caller = calling(slow=True)
    caller.world.broker.fail["publish"] = Refused(503, "the broker is away")
    assert caller.event() == (503, {"error": "the broker is away"})
