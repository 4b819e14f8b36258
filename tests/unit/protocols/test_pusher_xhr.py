"""The frames of pusher-js' HTTP fallbacks (protocol, section 10)."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from push1st.errors import Refused
from push1st.messages import Established, Failure, Message, Ping, Pong, Replayed, Subscribe, Subscribed
from push1st.protocols.pusher import Pusher
from push1st.protocols.pusher_xhr import MAX_OLDER, PusherXhr, RequestNumbers, decode_messages, end_frames, whole_frames
from tests.support.frames import frames

codec = PusherXhr()
websocket = Pusher()


def shown(frame: bytes) -> str:
    """Returns the only message of a frame."""
    assert frame.startswith(b"a")
    assert frame.endswith(b"\n")
    assert frame.count(b"\n") == 1
    (text,) = json.loads(frame[1:])
    return str(text)


def on_websocket(frame: bytes) -> str:
    ((_, payload),) = frames(frame)
    return payload.decode()


@given(st.text(), st.text(), st.text())
def test_message_equals_its_websocket_form(channel, event, data):
    message = Message("app", channel, event, json.dumps(data + "\n", ensure_ascii=False).encode(errors="replace"), 1, 2)
    assert shown(codec.message(message, 3)) == on_websocket(websocket.message(message, 3))


MESSAGE = Message("app", "c", "e", b"1", 1, 2)
REPLIES = [Established("1.2", 120), Subscribed("c"), Failure(401, "no\nway"), Ping(), Pong(), Replayed(MESSAGE, 3)]


@pytest.mark.parametrize("reply", REPLIES, ids=lambda reply: type(reply).__name__)
def test_reply_equals_its_websocket_form(reply):
    assert shown(codec.reply(reply)) == on_websocket(websocket.reply(reply))


def test_the_end_is_an_error_frame_and_a_close_frame_with_code_and_reason():
    error, close = end_frames(4001, 'no "app"').splitlines()
    assert json.loads(json.loads(error[1:])[0]) == {"event": "pusher:error", "data": {"code": 4001, "message": 'no "app"'}}
    assert close == b'c[4001,"no \\"app\\""]'


@pytest.mark.parametrize(("code", "announced"), [(4001, False), (1008, True), (4300, True)])
def test_the_end_without_an_error_is_a_close_frame(code, announced):
    assert end_frames(code, "no", announced) == b'c[%d,"no"]\n' % code


def test_client_messages_are_decoded_like_websocket_messages():
    assert codec.decode('{"event":"pusher:subscribe","data":{"channel":"c"}}') == Subscribe("c")
    assert codec.slow() == websocket.slow()


def test_body_is_an_array_of_messages():
    assert decode_messages(b'["a","b"]') == ["a", "b"]
    assert decode_messages(b"[]") == []


@pytest.mark.parametrize("body", [b"", b"{}", b"[1]", b'["a"', b'["\xff"]', b'"a"', b"[" * 100_000])
def test_other_bodies_are_rejected(body):
    with pytest.raises(Refused) as refused:
        decode_messages(body)
    assert refused.value.code == 400


@given(st.binary())
def test_any_body_is_messages_or_refused(body):
    with contextlib.suppress(Refused):
        assert all(isinstance(one, str) for one in decode_messages(body))


# The limit of a response: characters are counted like in JavaScript


@pytest.mark.parametrize(
    ("text", "room", "taken", "left"),
    [
        ("ab\n", 4, "ab\n", 1),
        ("ab\n", 3, "ab\n", 0),
        ("ab\n", 2, "ab\n", -1),
        ("ab\ncd\n", 2, "ab\n", -1),
        ("ab\ncd\n", 3, "ab\ncd\n", -3),
        ("ab\ncd\nef\n", 5, "ab\ncd\n", -1),
        ("üü\ncd\n", 3, "üü\ncd\n", -3),
        ("🦀\ncd\n", 2, "🦀\n", -1),
        ("🦀\ncd\n", 3, "🦀\ncd\n", -3),
        ("a\n", 0, "a\n", -2),
    ],
)
def test_first_frame_that_exceeds_the_space_is_the_last(text, room, taken, left):
    assert whole_frames(text.encode(), room) == (len(taken.encode()), left)


@given(st.lists(st.text(st.sampled_from("xü世🦀"), max_size=9), min_size=1), st.integers(0, 60))
def test_frames_of_any_script_are_counted_alike(lines, room):
    data = "".join(line + "\n" for line in lines)
    end, left = whole_frames(data.encode(), room)
    taken = data.encode()[:end].decode()
    assert taken.endswith("\n")
    assert left == room - len(taken.encode("utf-16-le")) // 2
    before = taken[:-1].rpartition("\n")[0]
    assert left >= 0 or not before or len(before.encode("utf-16-le")) // 2 + 1 <= room
    assert left < 0 or len(taken) == len(data)


@given(st.permutations(range(5, 30)))
def test_request_counts_as_repeated_if_its_number_has_arrived_before(order):
    numbers = RequestNumbers()
    assert [numbers.is_repeated(f"protocol=7&t=1&n={one}") for one in order] == [False] * 25
    assert [numbers.is_repeated(f"n={one}&t=2") for one in order] == [True] * 25
    assert not numbers.is_repeated("t=1&n=31")
    assert not numbers.is_repeated("t=1&n=30")


def test_request_with_a_much_lower_number_counts_as_repeated():
    numbers = RequestNumbers()
    assert not numbers.is_repeated(f"n={10**14}")
    assert not numbers.is_repeated(f"n={10**14 - MAX_OLDER + 1}")
    assert numbers.is_repeated(f"n={10**14 - MAX_OLDER}")


@pytest.mark.parametrize("query", ["", "n=", "n=x", "nn=1", "t=1", "n=1x", "n=-1", f"n={10**15}"])
def test_request_without_a_number_is_not_repeated(query):
    numbers = RequestNumbers()
    assert [numbers.is_repeated(query), numbers.is_repeated(query)] == [False, False]
