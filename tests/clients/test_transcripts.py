"""Each event of the Pusher protocol (section 3), byte by byte, on a plain TCP connection.

The expected bytes are fixed, except for socket ids. So the tests show each change of a key, of the order of keys, of an escape
or of a space. The libraries accept most of such changes, but some clients may not. test_limits.py has the slow `pusher:ping`,
with the other waits.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.process import APP, ServerProcess, merged, running
from tests.support.signing import channel_auth, hmac_hex
from tests.support.wire import TEXT, Wire, frame

APPS = {"app-counting": merged(APP, {"key": "counting-key", "options": {"subscription-count": True}})}
GREETING = re.compile(
    rb'\{"event":"pusher:connection_established","data":"\{\\"socket_id\\":\\"(\d+\.\d+)\\",\\"activity_timeout\\":20\}"\}'
)


class Line:
    """A connection whose bytes are compared. key: the key of its app. channel: the name that replaces `CHANNEL`."""

    def __init__(self, wire: Wire, key: str, channel: str) -> None:
        self.wire = wire
        self.key = key
        self.channel = channel
        greeting = GREETING.fullmatch(self.receive())
        assert greeting is not None
        self.socket_id = greeting[1].decode()

    def receive(self) -> bytes:
        """Returns the next text frame; skips WebSocket pings."""
        while True:
            opcode, payload = self.wire.receive()
            if opcode == TEXT:
                return payload

    def expect(self, *texts: str) -> None:
        """Checks that the next frames are exactly these."""
        for text in texts:
            assert self.receive().decode() == text.replace("CHANNEL", self.channel).replace("SOCKET", self.socket_id)

    def send(self, text: str) -> None:
        self.wire.send(frame(TEXT, text.replace("CHANNEL", self.channel).encode()))

    def subscribe(self, channel: str, data: str = "") -> None:
        channel = channel.replace("CHANNEL", self.channel)
        wanted = {"channel": channel}
        if channel.startswith(("private-", "presence-")):
            wanted["auth"] = channel_auth(self.socket_id, channel, data, self.key)
        if data:
            wanted["channel_data"] = data
        self.send(json.dumps({"event": "pusher:subscribe", "data": wanted}))

    def sign_in(self, user_data: str) -> None:
        auth = f"{self.key}:{hmac_hex('secret', f'{self.socket_id}::user::{user_data}')}"
        self.send(json.dumps({"event": "pusher:signin", "data": {"auth": auth, "user_data": user_data}}))


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running(apps=APPS) as process:
        yield process


@pytest.fixture
def line(server: ServerProcess, stack: contextlib.ExitStack, channel: str) -> Callable[..., Line]:
    """Makes connections."""

    def dial(key: str = "app-key") -> Line:
        wire = stack.enter_context(Wire(server.ws_port))
        return Line(wire.upgrade(f"/app/{key}?protocol=7&client=js&version=8.6.0&flash=false"), key, channel)

    return dial


def test_connection_established(line: Callable[..., Line]) -> None:
    line()


def test_subscription_succeeded_on_a_public_channel(line: Callable[..., Line]) -> None:
    one = line()
    one.subscribe("CHANNEL")
    one.expect('{"event":"pusher_internal:subscription_succeeded","channel":"CHANNEL","data":"{}"}')


@pytest.mark.parametrize("prefix", ["private-", "private-encrypted-"])
def test_subscription_succeeded_on_a_private_channel(line: Callable[..., Line], prefix: str) -> None:
    one = line()
    one.subscribe(prefix + "CHANNEL")
    one.expect('{"event":"pusher_internal:subscription_succeeded","channel":"' + prefix + 'CHANNEL","data":"{}"}')


def test_presence_from_the_first_member_to_the_last(line: Callable[..., Line]) -> None:
    """`subscription_succeeded`, `member_added`, `member_removed` and a client event with its `user_id`."""
    first, second = line(), line()
    first.subscribe("presence-CHANNEL", '{"user_id":"u1","user_info":{"name":"A"}}')
    first.expect(
        r'{"event":"pusher_internal:subscription_succeeded","channel":"presence-CHANNEL",'
        r'"data":"{\"presence\":{\"ids\":[\"u1\"],\"hash\":{\"u1\":{\"name\":\"A\"}},\"count\":1}}"}'
    )
    second.subscribe("presence-CHANNEL", '{"user_id":2}')
    second.expect(
        r'{"event":"pusher_internal:subscription_succeeded","channel":"presence-CHANNEL",'
        r'"data":"{\"presence\":{\"ids\":[\"u1\",\"2\"],\"hash\":{\"u1\":{\"name\":\"A\"},\"2\":null},\"count\":2}}"}'
    )
    third = line()
    third.subscribe("presence-CHANNEL", '{"user_id":"u3","user_info":{"name":"C"}}')
    third.send(r'{"event":"client-typing","channel":"presence-CHANNEL","data":{"a":1}}')
    third.send('{"event":"pusher:unsubscribe","data":{"channel":"presence-CHANNEL"}}')
    first.expect(
        r'{"event":"pusher_internal:member_added","channel":"presence-CHANNEL","data":"{\"user_id\":\"2\"}"}',
        r'{"event":"pusher_internal:member_added","channel":"presence-CHANNEL","data":"{\"user_id\":\"u3\",\"user_info\":{\"name\":\"C\"}}"}',
        r'{"event":"client-typing","channel":"presence-CHANNEL","data":"{\"a\":1}","user_id":"u3"}',
        r'{"event":"pusher_internal:member_removed","channel":"presence-CHANNEL","data":"{\"user_id\":\"u3\"}"}',
    )


def test_a_client_event_on_a_private_channel(line: Callable[..., Line]) -> None:
    one, other = line(), line()
    for client in (one, other):
        client.subscribe("private-CHANNEL")
        client.receive()
    other.send(r'{"event":"client-e","channel":"private-CHANNEL","data":"words"}')
    other.send(r'{"event":"client-e","channel":"private-CHANNEL","data":{"quote": "\"", "é": [1, 2.50, null]}}')
    one.expect(
        r'{"event":"client-e","channel":"private-CHANNEL","data":"words"}',
        r'{"event":"client-e","channel":"private-CHANNEL","data":"{\"quote\": \"\\\"\", \"é\": [1, 2.50, null]}"}',
    )


def test_an_application_event(server: ServerProcess, line: Callable[..., Line], channel: str) -> None:
    one = line()
    one.subscribe("CHANNEL")
    one.receive()
    published: list[Any] = ['{"id":1}', "", "plain \U0001f980\n", {"id": 1}, [], 7, None]
    for data in published:
        server.publish(channel, "order.paid", data)
    one.expect(
        r'{"event":"order.paid","channel":"CHANNEL","data":"{\"id\":1}"}',
        r'{"event":"order.paid","channel":"CHANNEL","data":""}',
        r'{"event":"order.paid","channel":"CHANNEL","data":"plain \ud83e\udd80\n"}',
        r'{"event":"order.paid","channel":"CHANNEL","data":"{\"id\": 1}"}',
        r'{"event":"order.paid","channel":"CHANNEL","data":"[]"}',
        r'{"event":"order.paid","channel":"CHANNEL","data":"7"}',
        r'{"event":"order.paid","channel":"CHANNEL","data":"null"}',
    )


def test_subscription_count(line: Callable[..., Line]) -> None:
    one, other = line("counting-key"), line("counting-key")
    one.subscribe("CHANNEL")
    one.receive()
    other.subscribe("CHANNEL")
    one.expect(
        r'{"event":"pusher_internal:subscription_count","channel":"CHANNEL","data":"{\"subscription_count\":1}"}',
        r'{"event":"pusher_internal:subscription_count","channel":"CHANNEL","data":"{\"subscription_count\":2}"}',
    )


def test_cache_miss_and_the_replay(server: ServerProcess, line: Callable[..., Line], channel: str) -> None:
    one, other = line(), line()
    one.subscribe("cache-CHANNEL")
    one.expect(
        '{"event":"pusher_internal:subscription_succeeded","channel":"cache-CHANNEL","data":"{}"}',
        '{"event":"pusher:cache_miss","channel":"cache-CHANNEL","data":"{}"}',
    )
    server.publish(f"cache-{channel}", "order.paid", '{"id":1}')
    other.subscribe("cache-CHANNEL")
    other.expect(
        '{"event":"pusher_internal:subscription_succeeded","channel":"cache-CHANNEL","data":"{}"}',
        r'{"event":"order.paid","channel":"cache-CHANNEL","data":"{\"id\":1}"}',
    )


def test_signin_success_and_watchlist_events(line: Callable[..., Line]) -> None:
    friend, one = line(), line()
    friend.sign_in('{"id":"friend","user_info":{"name":"F"}}')
    friend.expect(
        r'{"event":"pusher:signin_success",'
        r'"data":"{\"user_data\":\"{\\\"id\\\":\\\"friend\\\",\\\"user_info\\\":{\\\"name\\\":\\\"F\\\"}}\"}"}'
    )
    one.sign_in('{"id":"one","watchlist":["friend","nobody"]}')
    one.expect(
        r'{"event":"pusher:signin_success",'
        r'"data":"{\"user_data\":\"{\\\"id\\\":\\\"one\\\",\\\"watchlist\\\":[\\\"friend\\\",\\\"nobody\\\"]}\"}"}',
        r'{"event":"pusher_internal:watchlist_events",'
        r'"data":"{\"events\":[{\"name\":\"online\",\"user_ids\":[\"friend\"]},{\"name\":\"offline\",\"user_ids\":[\"nobody\"]}]}"}',
    )
    friend.wire.socket.close()
    friend.wire.reader.close()
    one.expect(
        r'{"event":"pusher_internal:watchlist_events","data":"{\"events\":[{\"name\":\"offline\",\"user_ids\":[\"friend\"]}]}"}'
    )


def test_an_event_for_a_user(server: ServerProcess, line: Callable[..., Line]) -> None:
    one = line()
    one.sign_in('{"id":"addressee"}')
    one.receive()
    one.send('{"event":"pusher:subscribe","data":{"auth":"","channel":"#server-to-user-addressee"}}')
    one.expect('{"event":"pusher_internal:subscription_succeeded","channel":"#server-to-user-addressee","data":"{}"}')
    server.publish("#server-to-user-addressee", "note", '{"text":"hi"}')
    one.expect(r'{"event":"note","channel":"#server-to-user-addressee","data":"{\"text\":\"hi\"}"}')


def test_subscription_error(line: Callable[..., Line]) -> None:
    one = line()
    one.send('{"event":"pusher:subscribe","data":{"channel":"private-CHANNEL","auth":"app-key:0000"}}')
    one.expect(
        r'{"event":"pusher:subscription_error","channel":"private-CHANNEL",'
        r'"data":"{\"type\":\"AuthError\",\"error\":\"Invalid signature: '
        r'auth must be the app key, a colon and the HMAC SHA256 in hex of SOCKET:private-CHANNEL\",\"status\":401}"}'
    )
    one.expect(
        r'{"event":"pusher:error","data":{"code":null,"message":"Invalid signature: '
        r'auth must be the app key, a colon and the HMAC SHA256 in hex of SOCKET:private-CHANNEL"},"channel":"private-CHANNEL"}'
    )


def test_error_is_the_one_event_whose_data_is_an_object(line: Callable[..., Line]) -> None:
    one = line()
    one.send('{"event":"pusher:signin","data":{"auth":"app-key:0000","user_data":"{\\"id\\":\\"u\\"}"}}')
    one.expect(
        '{"event":"pusher:error","data":{"code":null,"message":"Invalid signature: '
        'auth must be the app key, a colon and the HMAC SHA256 in hex of SOCKET::user::user_data"}}'
    )


def test_error_for_too_many_client_events(line: Callable[..., Line], channel: str) -> None:
    one = line()
    one.subscribe(f"private-{channel}")
    one.receive()
    for _ in range(11):
        one.send('{"event":"client-e","channel":"private-CHANNEL","data":{}}')
    one.expect(
        '{"event":"pusher:error","data":{"code":4301,"message":"more than 10 client events a second"},'
        '"channel":"private-CHANNEL"}'
    )


def test_error_for_a_watchlist_that_is_too_long(line: Callable[..., Line]) -> None:
    one = line()
    one.sign_in(json.dumps({"id": "u", "watchlist": [f"w{number}" for number in range(101)]}))
    for event in (b"pusher:signin_success", b"pusher_internal:watchlist_events"):
        assert one.receive().startswith(b'{"event":"%b"' % event)
    one.expect(
        '{"event":"pusher:error","data":{"code":4302,"message":"a watchlist has at most 100 users, the first 100 are watched"}}'
    )


def test_pong(line: Callable[..., Line]) -> None:
    one = line()
    for text in ('{"event":"pusher:ping","data":{}}', '{"event":"pusher:ping","data":"{}"}', '{"event":"pusher:ping"}'):
        one.send(text)
        one.expect('{"event":"pusher:pong","data":"{}"}')


def test_client_commands_may_have_any_json_form(line: Callable[..., Line]) -> None:
    """Order, spaces, escapes, unknown keys and stringified data are all in use."""
    one = line()
    written: list[Any] = [
        '{"event":"pusher:subscribe","data":{"channel":"CHANNEL"}}',
        ' { "data" : { "auth" : null , "channel" : "CHANNEL" } , "event" : "pusher:subscribe" } ',
        r'{"event":"pusher\u003asubscribe","data":"{\"channel\":\"CHANNEL\"}","more":[1]}',
    ]
    for text in written:
        one.send(text)
        one.expect('{"event":"pusher_internal:subscription_succeeded","channel":"CHANNEL","data":"{}"}')
        one.send('{"event":"pusher:unsubscribe","data":{"channel":"CHANNEL"}}')
