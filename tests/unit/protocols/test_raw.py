"""Raw WebSocket frames (Push1st API, section 7)."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from push1st.errors import Disconnect, Refused
from push1st.messages import (
    MAX_HEADERS_BYTES,
    CacheMissed,
    Established,
    Failure,
    Member,
    Message,
    Ping,
    Pong,
    Publish,
    Replayed,
    SignedIn,
    Subscribed,
    SubscriptionRefused,
    WatchlistStatus,
    member_added,
)
from push1st.protocols.raw import Raw
from tests.support.frames import text_of

codec = Raw()


# Server to client


def test_a_message_is_the_documented_bytes():
    message = Message("app", "c", "e", b'{"a": 1}', 1634029747778812625, 1000)
    assert text_of(codec.message(message, 1250)) == (
        '{"event":"e","channel":"c","data":{"a": 1},"#msg-id":1634029747778812625,"#msg-from":"api","#msg-time":250}'
    )


def test_headers_are_forwarded_unchanged():
    message = Message("app", "c", "e", b"1", 7, 0, headers=b'{"a": "\\u0436"}')
    assert text_of(codec.message(message, 3)).endswith('"#msg-from":"api","#msg-time":3,"headers":{"a": "\\u0436"}}')


def test_data_is_forwarded_unchanged():
    for data in (b'"text"', b"1.50", b"null", b'[ 1 , "\\u0436" ]', '{"ж":1}'.encode()):
        assert f',"data":{data.decode()},' in text_of(codec.message(Message("app", "c", "e", data, 1, 0), 0))


def test_the_sender_is_the_publishers_id():
    assert json.loads(text_of(codec.message(Message("app", "c", "e", b"1", 1, 0, "p.q.1.2"), 0)))["#msg-from"] == "p.q.1.2"


def test_a_clock_that_went_back_gives_no_negative_time():
    assert json.loads(text_of(codec.message(Message("app", "c", "e", b"1", 1, 5), 3)))["#msg-time"] == 0


def test_a_member_event_is_an_ordinary_message():
    got = json.loads(text_of(codec.message(member_added("app", "presence-c", Member("u1", b"1"), 7, 0, ""), 0)))
    assert (got["event"], got["data"]) == ("pusher_internal:member_added", {"user_id": "u1", "user_info": 1})


texts = st.text(st.characters(codec="utf-8"), max_size=60)


@given(texts, texts, st.recursive(st.none() | st.integers() | texts, st.lists))
def test_any_message_is_json(event, channel, data):
    got = json.loads(text_of(codec.message(Message("app", channel, event, json.dumps(data).encode(), 1, 0), 0)))
    assert (got["event"], got["channel"], got["data"]) == (event, channel, data)


def test_a_failure_is_an_error_event():
    assert text_of(codec.reply(Failure(403, 'no "c"'))) == '{"event":"error","data":{"code":403,"message":"no \\"c\\""}}'


@pytest.mark.parametrize(
    "reply",
    [
        Established("1.2", 120),
        Subscribed("c"),
        SubscriptionRefused("c", "AuthError", "no", 401),
        SignedIn("{}"),
        WatchlistStatus((), ()),
        CacheMissed("cache-c"),
        Ping(),
        Pong(),
    ],
)
def test_other_replies_are_empty(reply):
    assert codec.reply(reply) == b""


def test_a_replayed_event_is_the_message_it_was():
    message = Message("app", "cache-c", "e", b"1", 7, 100)
    assert codec.reply(Replayed(message, 150)) == codec.message(message, 150)


def test_a_slow_consumer_breaks_a_policy():
    assert codec.slow()[0] == 1008


# Client to server


FROM_CLIENTS = {
    "a message": ('{"channel":"c","event":"e","data":{"a": 1}}', Publish("c", "e", b'{"a": 1}')),
    "without data": ('{"channel":"c","event":"e"}', Publish("c", "e", b"null")),
    "null options": ('{"channel":"c","event":"e","data":1,"options":null}', Publish("c", "e", b"1")),
    "empty options": (
        '{"channel":"c","event":"e","data":1,"options":{}}',
        Publish("c", "e", b"1", given=b',"options":{}'),
    ),
    "a ttl": (
        '{"channel":"c","event":"e","data":1,"options":{"ttl":5}}',
        Publish("c", "e", b"1", ttl=5, given=b',"options":{"ttl":5}'),
    ),
    "unicast": (
        '{"channel":"c","event":"e","data":1,"options":{"delivery":"unicast","session":"1.2"}}',
        Publish("c", "e", b"1", "unicast", "1.2", given=b',"options":{"delivery":"unicast","session":"1.2"}'),
    ),
    "multicast": (
        '{"channel":"c","event":"e","data":1,"options":{"delivery":"multicast","session":"p"}}',
        Publish("c", "e", b"1", "multicast", "p", given=b',"options":{"delivery":"multicast","session":"p"}'),
    ),
    "headers": (
        '{"channel":"c","event":"e","headers": {"a": 1} ,"data":1}',
        Publish("c", "e", b"1", headers=b'{"a": 1}', given=b',"headers":{"a": 1}'),
    ),
    "a broadcast without one": (
        '{"channel":"c","event":"e","data":1,"options":{"session":"1.2"}}',
        Publish("c", "e", b"1", "broadcast", "1.2", given=b',"options":{"session":"1.2"}'),
    ),
    "a socket_id": ('{"channel":"c","event":"e","data":1,"socket_id":"1.2"}', Publish("c", "e", b"1", "broadcast", "1.2")),
    "no socket_id": ('{"channel":"c","event":"e","data":1,"socket_id":""}', Publish("c", "e", b"1")),
    "unicast to a socket_id": (
        '{"channel":"c","event":"e","data":1,"socket_id":"1.2","options":{"delivery":"unicast"}}',
        Publish("c", "e", b"1", "unicast", "1.2", given=b',"options":{"delivery":"unicast"}'),
    ),
    "a session before a socket_id": (
        '{"channel":"c","event":"e","data":1,"socket_id":"1.2","options":{"session":"3.4"}}',
        Publish("c", "e", b"1", "broadcast", "3.4", given=b',"options":{"session":"3.4"}'),
    ),
    "null headers": ('{"channel":"c","event":"e","data":1,"headers":null}', Publish("c", "e", b"1")),
    "no headers": (
        '{"channel":"c","event":"e","data":1,"headers":{}}',
        Publish("c", "e", b"1", headers=b"{}", given=b',"headers":{}'),
    ),
    "extra": ('{"channel":"c","event":"e","data":1,"extra":null}', Publish("c", "e", b"1", given=b',"extra":null')),
    "all that hooks are sent": (
        '{"channel":"c","event":"e","extra":[1],"options":{},"headers":{"a":1},"data":1}',
        Publish("c", "e", b"1", headers=b'{"a":1}', given=b',"headers":{"a":1},"options":{},"extra":[1]'),
    ),
    "as many headers as there may be": (
        '{"channel":"c","event":"e","data":1,"headers":{"a":"%s"}}' % ("x" * (MAX_HEADERS_BYTES - 8)),
        Publish(
            "c",
            "e",
            b"1",
            headers=b'{"a":"%b"}' % (b"x" * (MAX_HEADERS_BYTES - 8)),
            given=b',"headers":{"a":"%b"}' % (b"x" * (MAX_HEADERS_BYTES - 8)),
        ),
    ),
    "unknown fields": ('{"channel":"c","event":"e","data":1,"#msg-from":"api","x":[]}', Publish("c", "e", b"1")),
    "equal keys": ('{"channel":"a","channel":"c","event":"e","data":1,"data":2}', Publish("c", "e", b"2")),
    "whitespace": (' { "channel":"c", "event":"e", "data" :\n[1] } ', Publish("c", "e", b"[1]")),
}


@pytest.mark.parametrize(("text", "command"), FROM_CLIENTS.values(), ids=FROM_CLIENTS.keys())
def test_clients_are_read(text, command):
    assert codec.decode(text) == command


REFUSED = {
    "a list": "[]",
    "a number": "1",
    "null": "null",
    "nothing in it": "{}",
    "no channel": '{"event":"e","data":1}',
    "no event": '{"channel":"c","data":1}',
    "a channel that is no text": '{"channel":1,"event":"e"}',
    "an event that is no text": '{"channel":"c","event":null}',
    "options that are no object": '{"channel":"c","event":"e","options":[]}',
    "an unknown delivery": '{"channel":"c","event":"e","options":{"delivery":"anycast"}}',
    "a socket_id that is no text": '{"channel":"c","event":"e","socket_id":7}',
    "headers that are no object": '{"channel":"c","event":"e","headers":["a"]}',
    "headers that are a text": '{"channel":"c","event":"e","headers":"{}"}',
    "a negative ttl": '{"channel":"c","event":"e","options":{"ttl":-1}}',
    "unicast to nobody": '{"channel":"c","event":"e","options":{"delivery":"unicast"}}',
    "multicast to nobody": '{"channel":"c","event":"e","options":{"delivery":"multicast","session":""}}',
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED.keys())
def test_json_that_is_no_message_is_refused_and_the_client_stays(text):
    with pytest.raises(Refused) as refused:
        codec.decode(text)
    assert refused.value.code == 400


def test_invalid_option_is_named_with_its_path():
    with pytest.raises(Refused, match=re.escape("at `$.options.ttl`")):
        codec.decode('{"channel":"c","event":"e","options":{"ttl":"5"}}')


@pytest.mark.parametrize("field", ["headers", "extra"])
def test_headers_and_extra_are_bounded(field):
    with pytest.raises(Refused) as refused:
        codec.decode(json.dumps({"channel": "c", "event": "e", field: {"a": "x" * MAX_HEADERS_BYTES}}))
    assert refused.value.code == 413


NO_JSON = {
    "nothing": "",
    "a word": "hello",
    "half an object": '{"channel":"c"',
    "more than an object": '{"channel":"c","event":"e"}{"channel":"c","event":"e"}',
    "NaN": '{"channel":"c","event":"e","data":NaN}',
    "a control character": '{"channel":"c","event":"e","data":"\x01"}',
    "half an escape of a surrogate": r'{"channel":"c","event":"e","data":"\udc0"}',
    "a byte order mark": '\ufeff{"channel":"c","event":"e"}',
    "a deep list": '{"channel":"c","event":"e","data":' + "[" * 100_000 + "]" * 100_000 + "}",
    "an escape that is none": r'{"channel":"c","event":"e","data":"\q"}',
}


def test_half_a_surrogate_pair_is_the_replacement_character():
    """JavaScript writes such text if it cuts an emoji (RFC 8259 §8.2)."""
    command = codec.decode(r'{"channel":"c","event":"e\ud83d","data":{"a":"\ud83d"}}')
    assert isinstance(command, Publish)
    assert (command.event, json.loads(command.data)) == ("e\ufffd", {"a": "\ufffd"})


@pytest.mark.parametrize("text", NO_JSON.values(), ids=NO_JSON.keys())
def test_invalid_json_ends_the_connection(text):
    with pytest.raises(Disconnect) as end:
        codec.decode(text)
    assert end.value.code == 1002


@given(st.text(max_size=200))
def test_any_text_is_a_command_refused_or_the_end(text):
    try:
        codec.decode(text)
    except (Refused, Disconnect) as failure:
        assert failure.code in (400, 1002)  # noqa: PT017 - it may as well raise nothing
