"""The Pusher protocol, byte for byte (Pusher protocol, section 3), and its lenient reading of client messages."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from push1st.errors import Refused
from push1st.messages import (
    CacheMissed,
    Ending,
    Established,
    Failure,
    Member,
    Message,
    Ping,
    Pong,
    Publish,
    Replayed,
    SignedIn,
    SignIn,
    Subscribe,
    Subscribed,
    SubscriptionRefused,
    Unsubscribe,
    WatchlistStatus,
    member_added,
    member_removed,
    status_changed,
    subscription_count,
)
from push1st.protocols.pusher import Pusher
from tests.support.frames import frames, text_of

codec = Pusher()


def event(data: bytes, channel: str = "x", name: str = "order.paid", **more) -> str:
    return text_of(codec.message(Message("app", channel, name, data, 1, 2, **more), 3))


# Server to client: section 3, line by line

REPLIES = {
    "connection_established": (
        Established("123.456", 120),
        r'{"event":"pusher:connection_established","data":"{\"socket_id\":\"123.456\",\"activity_timeout\":120}"}',
    ),
    "subscription_succeeded": (
        Subscribed("public-x"),
        r'{"event":"pusher_internal:subscription_succeeded","channel":"public-x","data":"{}"}',
    ),
    "subscription_succeeded with members": (
        Subscribed("presence-x", (Member("u1", b'{"name":"A"}'), Member("u2"))),
        (
            r'{"event":"pusher_internal:subscription_succeeded","channel":"presence-x","data":"{\"presence\":{'
            r"\"ids\":[\"u1\",\"u2\"],\"hash\":{\"u1\":{\"name\":\"A\"},\"u2\":null},\"count\":2}}"
            r'"}'
        ),
    ),
    "subscription_error": (
        SubscriptionRefused("private-x", "AuthError", "…", 401),
        r'{"event":"pusher:subscription_error","channel":"private-x","data":"{\"type\":\"AuthError\",\"error\":\"…\",\"status\":401}"}',
        '{"event":"pusher:error","data":{"code":null,"message":"…"},"channel":"private-x"}',
    ),
    "the end of a connection": (
        Ending(4009, "Connection is unauthorized"),
        '{"event":"pusher:error","data":{"code":4009,"message":"Connection is unauthorized"}}',
    ),
    "a refused sign-in": (Failure(None, "no"), '{"event":"pusher:error","data":{"code":null,"message":"no"}}'),
    "a refused client event": (
        Failure(403, "no", "private-x"),
        '{"event":"pusher:error","data":{"code":4300,"message":"no"},"channel":"private-x"}',
    ),
    "a notice of its own": (Failure(4302, "too many"), '{"event":"pusher:error","data":{"code":4302,"message":"too many"}}'),
    "signin_success": (
        SignedIn('{"id":"u1"}'),
        r'{"event":"pusher:signin_success","data":"{\"user_data\":\"{\\\"id\\\":\\\"u1\\\"}\"}"}',
    ),
    "watchlist_events": (
        WatchlistStatus(("u2",), ("u3",)),
        (
            r'{"event":"pusher_internal:watchlist_events","data":"{\"events\":[{\"name\":\"online\",\"user_ids\":[\"u2\"]},'
            r'{\"name\":\"offline\",\"user_ids\":[\"u3\"]}]}"}'
        ),
    ),
    "cache_miss": (CacheMissed("cache-x"), '{"event":"pusher:cache_miss","channel":"cache-x","data":"{}"}'),
    "a replayed event": (
        Replayed(Message("app", "cache-x", "order.paid", b'{"id":1}', 1, 2), 3),
        r'{"event":"order.paid","channel":"cache-x","data":"{\"id\":1}"}',
    ),
    "ping": (Ping(), '{"event":"pusher:ping","data":"{}"}'),
    "pong": (Pong(), '{"event":"pusher:pong","data":"{}"}'),
}


@pytest.mark.parametrize(("reply", "texts"), [(one, texts) for one, *texts in REPLIES.values()], ids=REPLIES.keys())
def test_replies_are_the_documented_bytes(reply, texts):
    assert [payload.decode() for _, payload in frames(codec.reply(reply))] == texts


MESSAGES = {
    "an event": (event(b'"{\\"id\\":1}"'), r'{"event":"order.paid","channel":"x","data":"{\"id\":1}"}'),
    "an event with other data than a text": (event(b'{"id":1}'), r'{"event":"order.paid","channel":"x","data":"{\"id\":1}"}'),
    "a client event": (
        event(b'{"a":1}', "presence-x", "client-typing", sender="1.2", user_id="u1"),
        r'{"event":"client-typing","channel":"presence-x","data":"{\"a\":1}","user_id":"u1"}',
    ),
    "member_added": (
        text_of(codec.message(member_added("app", "presence-x", Member("u3", b'{"name":"C"}'), 1, 2, ""), 3)),
        r'{"event":"pusher_internal:member_added","channel":"presence-x","data":"{\"user_id\":\"u3\",\"user_info\":{\"name\":\"C\"}}"}',
    ),
    "subscription_count": (
        text_of(codec.message(subscription_count("app", "x", 42, 1, 2), 3)),
        r'{"event":"pusher_internal:subscription_count","channel":"x","data":"{\"subscription_count\":42}"}',
    ),
    "a watched user's edge": (
        text_of(codec.message(status_changed("app", "u2", True, 1, 2, ""), 3)),
        r'{"event":"pusher_internal:watchlist_events","data":"{\"events\":[{\"name\":\"online\",\"user_ids\":[\"u2\"]}]}"}',
    ),
    "member_removed": (
        text_of(codec.message(member_removed("app", "presence-x", "u3", 1, 2, ""), 3)),
        r'{"event":"pusher_internal:member_removed","channel":"presence-x","data":"{\"user_id\":\"u3\"}"}',
    ),
}


@pytest.mark.parametrize(("text", "documented"), MESSAGES.values(), ids=MESSAGES.keys())
def test_messages_are_the_documented_bytes(text, documented):
    assert text == documented


@pytest.mark.parametrize(("code", "theirs"), [(401, 4300), (429, 4301), (400, 4300), (403, 4300), (413, 4300), (503, 4300)])
def test_error_codes_are_such_that_the_socket_stays_open(code, theirs):
    assert json.loads(text_of(codec.reply(Failure(code, "no"))))["data"]["code"] == theirs


texts = st.text(st.characters(codec="utf-8"), max_size=60)


@given(texts, texts, st.none() | texts, st.recursive(st.none() | st.integers() | texts, st.lists), st.booleans())
def test_any_message_is_json_whose_data_is_a_text(name, channel, user, data, ascii_only):
    text = json.dumps(data, ensure_ascii=ascii_only)
    got = json.loads(event(text.encode(), channel, name, user_id=user))
    assert isinstance(got["data"], str)
    assert (got["data"] if isinstance(data, str) else json.loads(got["data"])) == data
    assert got == {"event": name, "channel": channel, "data": got["data"]} | ({} if user is None else {"user_id": user})


@pytest.mark.parametrize("size", [0, 50, 60, 64, 65, 66, 67, 68, 69, 70, 125, 126, 127, 65_400, 65_480, 65_500, 65_535, 65_536])
def test_frames_of_every_length_are_whole(size):
    assert json.loads(event(b'"' + b"x" * size + b'"'))["data"] == "x" * size


def test_a_member_whose_name_needs_escaping_is_escaped():
    got = json.loads(text_of(codec.reply(Subscribed("presence-x", (Member('a"\\ж', b'"\\u0436\\""'),)))))
    assert json.loads(got["data"])["presence"] == {"ids": ['a"\\ж'], "hash": {'a"\\ж': 'ж"'}, "count": 1}


def test_a_channel_without_members_has_empty_maps():
    got = json.loads(text_of(codec.reply(Subscribed("presence-x", ()))))
    assert json.loads(got["data"]) == {"presence": {"ids": [], "hash": {}, "count": 0}}


def test_members_that_join_together_share_one_frame_of_members():
    members, others = (Member("u1"),), (Member("u1"),)
    first = codec.reply(Subscribed("presence-x", members))
    assert codec.reply(Subscribed("presence-x", members)) is first
    assert json.loads(text_of(codec.reply(Subscribed("presence-y", members))))["channel"] == "presence-y"
    assert codec.reply(Subscribed("presence-x", others)) == first


def test_slow_consumer_gets_a_code_to_reconnect_later():
    code, reason = codec.slow()
    assert 4100 <= code < 4200
    assert reason


# Client to server

SUBSCRIBE = Subscribe("presence-x", "KEY:hex", '{"user_id":"u1","user_info":{"name":"A"}}')
FROM_CLIENTS = {
    "subscribe": (
        r'{"event":"pusher:subscribe","data":{"channel":"presence-x","auth":"KEY:hex","channel_data":"{\"user_id\":\"u1\",\"user_info\":{\"name\":\"A\"}}"}}',
        SUBSCRIBE,
    ),
    "subscribe to a public channel": ('{"event":"pusher:subscribe","data":{"channel":"x"}}', Subscribe("x")),
    "empty fields": ('{"event":"pusher:subscribe","data":{"channel":"x","auth":"","channel_data":""}}', Subscribe("x")),
    "null fields": ('{"event":"pusher:subscribe","data":{"channel":"x","auth":null,"channel_data":null}}', Subscribe("x")),
    "unknown fields": ('{"event":"pusher:subscribe","x":1,"data":{"channel":"x","y":[]}}', Subscribe("x")),
    "data as a string": (r'{"event":"pusher:subscribe","data":"{\"channel\":\"x\",\"auth\":\"k:h\"}"}', Subscribe("x", "k:h")),
    "data as a padded string": (r'{"event":"pusher:subscribe","data" : " {\"channel\":\"x\"} " }', Subscribe("x")),
    "data before the event": ('{"data":{"channel":"x"},"event":"pusher:subscribe"}', Subscribe("x")),
    "whitespace": (' {\n"event" : "pusher:subscribe" ,\t"data" : { "channel" : "x" } }\r\n', Subscribe("x")),
    "the last of equal keys": (
        '{"event":"pusher:ping","event":"pusher:subscribe","data":{"channel":"y","channel":"x"}}',
        Subscribe("x"),
    ),
    "escaped keys": (r'{"\u0065vent":"pusher:subscrib\u0065","data":{"ch\u0061nnel":"x"}}', Subscribe("x")),
    "unsubscribe": ('{"event":"pusher:unsubscribe","data":{"channel":"presence-x"}}', Unsubscribe("presence-x")),
    "unsubscribe as a string": (r'{"event":"pusher:unsubscribe","data":"{\"channel\":\"x\"}"}', Unsubscribe("x")),
    "signin": (
        r'{"event":"pusher:signin","data":{"auth":"KEY:hex","user_data":"{\"id\":\"u1\"}"}}',
        SignIn("KEY:hex", '{"id":"u1"}'),
    ),
    "signin without a signature": (r'{"event":"pusher:signin","data":"{\"user_data\":\"x\"}"}', SignIn("", "x")),
    "ping": ('{"event":"pusher:ping","data":{}}', Ping()),
    "ping with a string": ('{"event":"pusher:ping","data":"{}"}', Ping()),
    "ping without data": ('{"event":"pusher:ping"}', Ping()),
    "pong": ('{"event":"pusher:pong","data":{}}', Pong()),
    "client event": (
        '{"event":"client-typing","channel":"private-x","data":{"a":1}}',
        Publish("private-x", "client-typing", b'{"a":1}'),
    ),
    "client event with a text": (
        '{"event":"client-typing","channel":"private-x","data":"a\\n"}',
        Publish("private-x", "client-typing", b'"a\\n"'),
    ),
    "client event without data": ('{"event":"client-x","channel":"private-x"}', Publish("private-x", "client-x", b"null")),
    "client event with a user": (
        '{"event":"client-x","channel":"presence-x","data":1,"user_id":"admin"}',
        Publish("presence-x", "client-x", b"1"),
    ),
    "client event with odd data": (
        '{"event":"client-x","channel":"private-x","data": {"a":1,"a":1e999} }',
        Publish("private-x", "client-x", b'{"a":1,"a":1e999}'),
    ),
}


@pytest.mark.parametrize(("text", "command"), FROM_CLIENTS.values(), ids=FROM_CLIENTS.keys())
def test_clients_are_read_leniently(text, command):
    assert codec.decode(text) == command


DEEP = 100_000
REFUSED = {
    "nothing": "",
    "no JSON": "hello",
    "half an object": '{"event":"pusher:ping"',
    "more than an object": '{"event":"pusher:ping"}{"event":"pusher:ping"}',
    "a byte order mark": '\ufeff{"event":"pusher:ping"}',
    "a list": "[]",
    "a number": "1",
    "null": "null",
    "no event": '{"data":{}}',
    "an event that is no text": '{"event":1}',
    "a null event": '{"event":null}',
    "a channel that is no text": '{"event":"client-x","channel":1}',
    "subscribe without data": '{"event":"pusher:subscribe"}',
    "subscribe without a channel": '{"event":"pusher:subscribe","data":{}}',
    "subscribe with a list": '{"event":"pusher:subscribe","data":[]}',
    "a channel to subscribe to that is no text": '{"event":"pusher:subscribe","data":{"channel":1}}',
    "a signature that is no text": '{"event":"pusher:subscribe","data":{"channel":"x","auth":1}}',
    "a string with no object in it": '{"event":"pusher:subscribe","data":"x"}',
    "a string in a string": r'{"event":"pusher:subscribe","data":"\"{}\""}',
    "signin without a user": '{"event":"pusher:signin","data":{"auth":"KEY:hex"}}',
    "signin with an object as the user": '{"event":"pusher:signin","data":{"auth":"KEY:hex","user_data":{"id":"u1"}}}',
    "unsubscribe without a channel": '{"event":"pusher:unsubscribe","data":{}}',
    "NaN": '{"event":"client-x","channel":"private-x","data":NaN}',
    "infinity": '{"event":"client-x","channel":"private-x","data":-Infinity}',
    "half an escape of a surrogate": r'{"event":"client-x","channel":"private-x","data":"\ud83"}',
    "a control character": '{"event":"client-x","channel":"private-x","data":"\x01"}',
    "a deep list": '{"event":"client-x","channel":"private-x","data":' + "[" * DEEP + "]" * DEEP + "}",
    "a deep object": '{"event":"client-x","channel":"private-x","data":' + '{"a":' * DEEP + "1" + "}" * DEEP + "}",
    "a deep object to subscribe to": '{"event":"pusher:subscribe","data":{"x":' + "[" * DEEP + "]" * DEEP + "}}",
    "an unknown command": '{"event":"pusher:unknown","data":{}}',
    "an internal event": '{"event":"pusher_internal:member_added","channel":"presence-x","data":{}}',
    "an event that is none of a client's": '{"event":"order.paid","channel":"x","data":{}}',
    "an empty event": '{"event":"","channel":"x","data":{}}',
    "an event in another case": '{"event":"Client-x","channel":"x","data":{}}',
}


def test_half_a_surrogate_pair_is_the_replacement_character():
    """JavaScript writes such text if it cuts an emoji (RFC 8259 §8.2)."""
    command = codec.decode(r'{"event":"client-x","channel":"private-x","data":"a\ud83d"}')
    assert isinstance(command, Publish)
    assert json.loads(command.data) == "a\ufffd"
    command = codec.decode(r'{"event":"pusher:subscribe","data":{"channel":"presence-x","channel_data":"\ud83d"}}')
    assert command == Subscribe("presence-x", "", "\ufffd")
    command = codec.decode(r'{"event":"pusher:subscribe","data":"{\"channel\":\"presence-x\",\"auth\":\"\\ud83d\"}"}')
    assert command == Subscribe("presence-x", "\ufffd")


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED.keys())
def test_invalid_command_is_rejected_with_a_short_text(text):
    with pytest.raises(Refused) as refused:
        codec.decode(text)
    assert refused.value.code == 400
    assert len(refused.value.text) < 400
    codec.reply(Failure(refused.value.code, refused.value.text))


@given(st.text(max_size=200))
def test_any_text_is_a_command_or_refused(text):
    try:
        codec.decode(text)
    except Refused as refused:
        assert refused.code == 400  # noqa: PT017 - it may as well raise nothing
