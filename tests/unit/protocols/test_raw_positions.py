"""Frames of raw WebSocket clients that can resume."""

import json

import pytest

from push1st.messages import (
    CacheMissed,
    Failure,
    KeptMessage,
    Message,
    Ping,
    Pong,
    Publish,
    Replayed,
    Resumed,
    Subscribed,
    SubscriptionRefused,
    gap,
)
from push1st.positions import Position
from push1st.protocols.raw import Raw
from push1st.protocols.raw_positions import RawPositions
from tests.support.frames import text_of

codec = RawPositions()
MESSAGE = Message("app", "c", "e", b'{"a": 1}', 1634029747778812625, 1000, headers=b'{"h":1}')
KEPT = KeptMessage("app", "c", "e", b'{"a": 1}', 1634029747778812625, 1000, headers=b'{"h":1}', offset=1042, epoch="k3F9aQx2bT")


def test_a_kept_message_has_its_position():
    assert text_of(codec.message(KEPT, 1250)) == (
        '{"event":"e","channel":"c","data":{"a": 1},"#msg-id":1634029747778812625,"#msg-from":"api","#msg-time":250,'
        '"#msg-pos":"k3F9aQx2bT:1042","headers":{"h":1}}'
    )


def test_a_message_of_a_channel_without_history_has_no_position():
    assert codec.message(MESSAGE, 1250) == Raw().message(MESSAGE, 1250)


def test_a_cached_event_has_no_position():
    cached = KeptMessage("app", "cache-c", "e", b"1", 7, 1000)
    assert codec.reply(Replayed(cached, 1250)) == Raw().message(Message("app", "cache-c", "e", b"1", 7, 1000), 1250)


def test_clients_without_positions_get_kept_messages_as_any_message():
    assert Raw().message(KEPT, 1250) == Raw().message(MESSAGE, 1250)


def test_a_recovered_channel_begins_with_resumed():
    assert text_of(codec.reply(Resumed("c", None, 3, False, Position("k3F9aQx2bT", 1042)))) == (
        '{"event":"resumed","channel":"c","data":{"recovered":true,"replayed":3,"repeats":false,"position":"k3F9aQx2bT:1042"}}'
    )


def test_a_channel_that_is_not_recovered_begins_with_the_reason():
    assert json.loads(text_of(codec.reply(Resumed('"ж"', "trimmed", position=Position("E", 0))))) == {
        "event": "resumed",
        "channel": '"ж"',
        "data": {"recovered": False, "reason": "trimmed", "position": "E:0"},
    }


GAP = gap("app", "c", "state-lost", Position("E", 7), 1, 2)


def test_a_gap_is_the_same_event():
    assert codec.message(GAP, 9) == codec.reply(Resumed("c", "state-lost", position=Position("E", 7)))


def test_clients_without_positions_get_no_frame_for_a_gap():
    assert Raw().message(GAP, 9) == b""


def test_a_rejected_subscription_is_an_error_with_its_channel():
    assert text_of(codec.reply(SubscriptionRefused("c", "Unavailable", "the broker is away", 503))) == (
        '{"event":"error","channel":"c","data":{"code":503,"message":"the broker is away"}}'
    )


@pytest.mark.parametrize("reply", [Failure(403, "no"), Subscribed("c"), CacheMissed("cache-c")])
def test_other_replies_are_as_without_positions(reply):
    assert codec.reply(reply) == Raw().reply(reply)


def test_clients_send_the_same_frames_as_without_positions():
    assert codec.decode('{"channel":"c","event":"e","data":1}') == Publish("c", "e", b"1")
    assert codec.slow() == Raw().slow()


def test_a_ping_has_an_answer():
    assert codec.decode('{ "event": "ping" }') == Ping()
    assert text_of(codec.reply(Pong())) == '{"event":"pong"}'


@pytest.mark.parametrize("text", ['{"event":"ping","channel":"c"}', '{"event":"ping","channel":"c","data":1}'])
def test_an_event_may_have_the_name_ping(text):
    command = codec.decode(text)
    assert isinstance(command, Publish)
    assert command.event == "ping"
