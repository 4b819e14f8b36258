"""Limits of an app: the server rejects excess with the documented code, changes nothing, and counts it.

Slow events (deadlines, a throttle, the ping of the protocol) start with the file, and its last tests check them. So the file
takes as long as the longest wait.
"""

import contextlib
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.nodejs import NodeProcess
from tests.support.process import APP, ServerProcess, merged, running, wait_until
from tests.support.pusher_socket import PusherSocket, dialled, pusher_socket
from tests.support.raw_socket import raw_socket
from tests.support.signing import hmac_hex
from tests.support.wire import CLOSE, TEXT, Wire, frame

LIMITS: dict[str, dict[str, int]] = {
    "quota": {"connections": 1},
    "small": {
        "subscriptions": 3,
        "members": 2,
        "payload": 100,
        "channel-name": 40,
        "event-name": 10,
        "channels-per-event": 2,
        "batch": 3,
        "client-events": 2,
    },
    "slow": {"publishes": 3, "reads": 3},
    "large": {"payload": 1_000_000},
}
APPS = {
    **{f"app-{name}": merged(APP, {"key": f"{name}-key", "limits": limits}) for name, limits in LIMITS.items()},
    "app-counting": merged(APP, {"key": "counting-key", "options": {"subscription-count": True}}),
    "app-authorized": merged(APP, {"key": "authorized-key", "options": {"authorized-only": True}}),
}
LONGEST = 40.0


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """Runs a server that pings clients soon. Only this file uses it, so that the tests know its counters."""
    with running({"server": {"pusher": {"activity-timeout": 1}}}, APPS) as process:
        yield process


@pytest.fixture(scope="module")
def silent(server: ServerProcess) -> Iterator[Wire]:
    """Opens a client that answers no ping."""
    with Wire(server.ws_port, LONGEST).greet() as wire:
        yield wire


@pytest.fixture(scope="module")
def strangers(server: ServerProcess) -> Iterator[tuple[float, dict[str, PusherSocket]]]:
    """Clients of an app that requires authorisation, by the way in which each tries to be authorised, and their start time."""
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        clients = {
            name: stack.enter_context(pusher_socket(server, "authorized-key"))
            for name in ("nothing", "public", "wrong", "private", "presence", "left", "user")
        }
        clients["public"].subscribe("c")
        clients["wrong"].request_subscription("private-c", secret="wrong")
        clients["private"].subscribe("private-c")
        clients["presence"].subscribe("presence-c", {"user_id": "u1"})
        clients["left"].subscribe("private-c")
        clients["left"].send("pusher:unsubscribe", {"channel": "private-c"})
        user = clients["user"]
        signature = hmac_hex("secret", f'{user.socket_id}::user::{{"id":"u1"}}')
        user.send("pusher:signin", {"auth": f"authorized-key:{signature}", "user_data": '{"id":"u1"}'})
        user.expect("pusher:signin_success")
        yield begun, clients


@pytest.fixture(scope="module", autouse=True)
def _begun(silent: Wire, strangers: object) -> None:
    """Starts the slow events before the first test."""


@pytest.fixture
def counted(server: ServerProcess) -> Callable[..., int]:
    """Returns the growth of a counter since the start of the test, or since the last call."""

    def now() -> dict[str, float]:
        text = server.get("/metrics").body.decode()
        return {match[1]: float(match[2]) for match in re.finditer(r"^(push1st_\w+(?:\{[^}]*\})?) (\S+)$", text, re.MULTILINE)}

    before = now()

    def grown(name: str, **label: str) -> int:
        key = f"push1st_{name}_total" + "".join(f'{{{name}="{value}"}}' for name, value in label.items())
        return int(now().get(key, 0) - before.get(key, 0))

    return grown


def signed(server: ServerProcess, app: str, path: str, body: Any = None, query: dict[str, str] | None = None) -> Any:
    method = "GET" if body is None else "POST"
    return server.signed(method, f"/apps/app-{app}/{path}", body, query=query, key=f"{app}-key")


def until_served(server: ServerProcess, call: Callable[[], Any]) -> Any:
    """Returns the first answer other than 429; the allowance of a second is restored within a second."""
    answer: Any = wait_until(lambda: (one := call()).status != 429 and one, "it is served again", 3)
    return answer


# -- connections


def test_a_connection_over_the_quota_is_closed_with_4004_and_counted(server: ServerProcess, counted: Callable[..., int]) -> None:
    with pusher_socket(server, "quota-key") as first, dialled(server, "/app/quota-key") as second:
        assert second.close_code() == 4004
        assert second.connection.close_reason == "Over connection quota: this app may have 1"
        first.round_trip()
    assert counted("refusals", reason="4004") == 1


def test_a_raw_client_over_the_quota_gets_503(server: ServerProcess, counted: Callable[..., int]) -> None:
    def is_free() -> bool:
        return 'push1st_app_connections{app="app-quota"} 0.0' in server.get("/metrics").body.decode()

    wait_until(is_free, "the quota is free")
    with raw_socket(server, "c", key="quota-key"), Wire(server.ws_port) as wire:
        wire.send(
            b"GET /ws/app/quota-key/c HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        status, _, body = wire.response()
        assert (status, json.loads(body)) == (503, {"error": "Over connection quota: this app may have 1"})
    assert counted("refusals", reason="4004") == 1


# -- client events


def test_client_events_over_the_rate_are_answered_with_4301_and_counted_and_the_socket_stays(
    server: ServerProcess, connect: Callable[..., PusherSocket], counted: Callable[..., int], channel: str
) -> None:
    name = f"private-{channel}"
    sender, other = connect("small-key"), connect("small-key")
    for client in (sender, other):
        client.subscribe(name)
    for number in range(8):
        sender.send("client-e", number, name)
    errors = sender.round_trip()
    assert errors
    assert {json.dumps(error["data"]) for error in errors} == {'{"code": 4301, "message": "more than 2 client events a second"}'}
    delivered = other.round_trip()
    assert len(delivered) + len(errors) == 8
    assert counted("refusals", reason="429") == len(errors)
    assert counted("events_in", source="pusher") == len(delivered)

    def again() -> bool:
        sender.send("client-e", {"again": True}, name)
        return sender.round_trip() == []

    wait_until(again, "it may send again", 3)
    assert other.expect("client-e", name) == {"again": True}


# -- API rates


@pytest.mark.parametrize(
    ("path", "body", "query"),
    [
        ("events", {"name": "e", "data": "1", "channels": ["CHANNEL"]}, {}),
        ("batch_events", {"batch": [{"name": "e", "data": "1", "channel": "CHANNEL"}]}, {}),
        ("channels/CHANNEL/events", "1", {"name": "e"}),
    ],
    ids=["events", "batch_events", "the deprecated call"],
)
def test_publishes_over_the_rate_are_429_counted_and_not_delivered(
    server: ServerProcess,
    connect: Callable[..., PusherSocket],
    counted: Callable[..., int],
    channel: str,
    path: str,
    body: Any,
    query: dict[str, str],
) -> None:
    client = connect("slow-key")
    client.subscribe(channel)
    path, body = json.loads(json.dumps([path, body]).replace("CHANNEL", channel))
    until_served(server, lambda: signed(server, "slow", path, body, query))
    answers = [signed(server, "slow", path, body, query) for _ in range(10)]
    refused = [answer for answer in answers if answer.status == 429]
    assert refused
    assert {answer.body for answer in refused} == {b'{"error":"more than 3 published events a second"}'}
    assert len(client.round_trip()) == 11 - len(refused)
    assert counted("refusals", reason="429") >= len(refused)
    assert counted("api_requests", status="429") >= len(refused)


@pytest.mark.parametrize("path", ["events", "batch_events"])
def test_each_channel_and_each_event_of_a_batch_counts(server: ServerProcess, channel: str, path: str) -> None:
    """The rate is three events a second, and each call has three events: so one call passes at once, and then one a second."""
    one = {"name": "e", "data": "1", "channel": channel}
    many = {"name": "e", "data": "1", "channels": [f"{channel}{number}" for number in range(3)]}
    body = many if path == "events" else {"batch": [one] * 3}
    begun = time.monotonic()
    answers = [signed(server, "slow", path, body).status for _ in range(10)]
    assert answers.count(200) <= 1 + (time.monotonic() - begun)


@pytest.mark.parametrize("path", ["channels", "channels/c", "channels/presence-c/users"])
def test_reads_over_the_rate_are_429_and_counted(server: ServerProcess, counted: Callable[..., int], path: str) -> None:
    assert until_served(server, lambda: signed(server, "slow", path)).status == 200
    refused = [answer for answer in (signed(server, "slow", path) for _ in range(10)) if answer.status == 429]
    assert refused
    assert {answer.body for answer in refused} == {b'{"error":"more than 3 reads a second"}'}
    assert counted("refusals", reason="429") >= len(refused)


# -- sizes


LARGE = "é" * 51  # 102 bytes
TOO_LARGE = "The data content of this event exceeds the allowed maximum (100 bytes): it has {} bytes"
"""the text that tests of Pusher's library for PHP expect"""


@pytest.mark.parametrize(
    ("path", "body", "query", "error"),
    [
        ("events", {"name": "e", "data": LARGE, "channels": ["c"]}, {}, TOO_LARGE.format(102)),
        ("events", {"name": "e", "data": {"k": "x" * 93}, "channels": ["c"]}, {}, TOO_LARGE.format(101)),
        (
            "batch_events",
            {"batch": [{"name": "e", "data": "1", "channel": "c"}, {"name": "e", "data": LARGE, "channel": "c"}]},
            {},
            "batch[1]: " + TOO_LARGE.format(102),
        ),
        ("channels/c/events", LARGE.encode(), {"name": "e"}, TOO_LARGE.format(102)),
    ],
    ids=["text", "JSON", "batch", "the deprecated call"],
)
def test_data_over_the_limit_is_413_that_names_limit_and_size_and_is_counted(
    server: ServerProcess, counted: Callable[..., int], path: str, body: Any, query: dict[str, str], error: str
) -> None:
    if not isinstance(body, bytes):
        body = json.dumps(body, separators=(",", ":")).encode()
    answer = signed(server, "small", path, body, query)
    assert (answer.status, answer.json) == (413, {"error": error})
    assert counted("refusals", reason="413") == 1
    assert counted("api_requests", status="413") == 1


def test_data_of_exactly_the_limit_is_accepted(server: ServerProcess, connect: Callable[..., PusherSocket], channel: str) -> None:
    client = connect("small-key")
    client.subscribe(channel)
    for data in ("x" * 100, "é" * 50, "\n" * 100):
        assert signed(server, "small", "events", {"name": "e", "data": data, "channels": [channel]}).status == 200
        assert json.loads(json.dumps(client.receive()["data"])) == data


def test_a_body_over_the_limit_of_the_server_is_413(server: ServerProcess) -> None:
    answer = signed(server, "small", "events", {"name": "e", "data": "x" * 2_000_000, "channels": ["c"]})
    assert answer.status == 413
    assert re.fullmatch(r"a request body has at most \d+ bytes", answer.json["error"])


def test_a_client_event_over_the_limit_is_refused_and_counted_and_the_socket_stays(
    connect: Callable[..., PusherSocket], counted: Callable[..., int], channel: str
) -> None:
    sender, other = connect("small-key"), connect("small-key")
    for client in (sender, other):
        client.subscribe(f"private-{channel}")
    sender.send("client-e", LARGE, f"private-{channel}")
    assert sender.expect_error() == {"code": 4300, "message": "data has 102 bytes, the limit is 100"}
    assert sender.round_trip() == []
    assert other.round_trip() == []
    assert counted("refusals", reason="413") == 1


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        (
            "events",
            {"name": "e", "data": "1", "channels": ["a", "b", "c"]},
            "channels has 3 entries, allowed are 1 to 2",
        ),
        ("events", {"name": "e", "data": "1", "channels": []}, "channels has 0 entries, allowed are 1 to 2"),
        ("events", {"name": "e" * 11, "data": "1", "channel": "c"}, "name has 11 characters, allowed are 1 to 10"),
        (
            "events",
            {"name": "e", "data": "1", "channel": "c" * 41},
            "channel name is 41 characters long, the limit is 40",
        ),
        (
            "batch_events",
            {"batch": [{"name": "e", "data": "1", "channel": "c"}] * 4},
            "Batch too large (4 > 3)",
        ),
        ("batch_events", {"batch": []}, "batch is empty: a batch needs at least one event"),
    ],
    ids=["channels", "no channels", "event name", "channel name", "batch", "no batch"],
)
def test_a_call_over_another_limit_is_400_that_names_it_and_is_counted(
    server: ServerProcess, counted: Callable[..., int], path: str, body: Any, error: str
) -> None:
    answer = signed(server, "small", path, body)
    assert (answer.status, answer.json) == (400, {"error": error})
    assert counted("refusals", reason="400") == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("events", {"name": "e" * 10, "data": "1", "channels": ["a", "c" * 40]}),
        ("batch_events", {"batch": [{"name": "e", "data": "1", "channel": "c"}] * 3}),
    ],
    ids=["events", "batch_events"],
)
def test_a_call_that_is_just_within_its_limits_is_accepted(server: ServerProcess, path: str, body: Any) -> None:
    assert signed(server, "small", path, body).status == 200


# -- subscriptions


def test_members_over_the_limit_are_refused_and_counted_and_the_socket_stays(
    server: ServerProcess, connect: Callable[..., PusherSocket], counted: Callable[..., int], channel: str
) -> None:
    """A present user may add a connection, and another user may use a freed place."""
    name = f"presence-{channel}"
    first, second, again, late = (connect("small-key") for _ in range(4))
    first.subscribe(name, {"user_id": "u1"})
    second.subscribe(name, {"user_id": "u2"})
    assert again.subscribe(name, {"user_id": "u2"})["presence"]["count"] == 2
    late.request_subscription(name, {"user_id": "u3"})
    assert late.expect_refusal(name) == {
        "type": "LimitReached",
        "error": f"{name} has 2 members, which is this app's limit",
        "status": 403,
    }
    assert counted("refusals", reason="LimitReached") == 1
    assert [frame["event"] for frame in first.round_trip()] == ["pusher_internal:member_added"]
    first.close()
    second.expect("pusher_internal:member_removed", name)
    assert late.subscribe(name, {"user_id": "u3"})["presence"]["ids"] == ["u2", "u3"]


def test_subscriptions_over_the_limit_are_refused_and_counted_and_the_socket_stays(
    connect: Callable[..., PusherSocket], counted: Callable[..., int], channel: str
) -> None:
    client = connect("small-key")
    for number in range(3):
        client.subscribe(f"{channel}{number}")
    client.request_subscription(f"{channel}3")
    error = client.expect_refusal(f"{channel}3")
    assert error == {"type": "LimitReached", "error": "a connection may have 3 subscriptions", "status": 403}
    assert counted("refusals", reason="LimitReached") == 1
    client.send("pusher:unsubscribe", {"channel": f"{channel}0"})
    client.subscribe(f"{channel}3")


@pytest.mark.parametrize(
    ("user", "status"),
    [
        ({"user_id": "u" * 128, "user_info": "x" * 850}, 200),
        ({"user_id": "u", "user_info": "x" * 1024}, 413),
        ({"user_id": "u" * 129}, 400),
    ],
    ids=["just within", "too large", "too long an id"],
)
def test_a_presence_user_has_a_largest_size(
    connect: Callable[..., PusherSocket], channel: str, user: dict[str, Any], status: int
) -> None:
    name = f"presence-{channel}"
    client = connect()
    if status == 200:
        assert client.subscribe(name, user)["presence"]["count"] == 1
    else:
        client.request_subscription(name, user)
        assert client.expect_refusal(name)["status"] == status


def test_connection_has_at_most_5000_subscriptions_by_default(server: ServerProcess, channel: str) -> None:
    with Wire(server.ws_port).greet() as wire:
        for group in range(0, 5000, 100):
            names = [f"{channel}-{number}" for number in range(group, group + 100)]
            wire.send(
                b"".join(
                    frame(TEXT, json.dumps({"event": "pusher:subscribe", "data": {"channel": one}}).encode()) for one in names
                )
            )
            assert [wire.receive_json()["channel"] for _ in names] == names
        one_more = frame(TEXT, json.dumps({"event": "pusher:subscribe", "data": {"channel": channel}}).encode())
        wire.send(one_more)
        refusal = wire.receive_json()
        assert refusal["event"] == "pusher:subscription_error"
        why = json.loads(refusal["data"])
        assert (why["type"], why["error"]) == ("LimitReached", "a connection may have 5000 subscriptions")
        wire.send(
            frame(TEXT, json.dumps({"event": "pusher:unsubscribe", "data": {"channel": f"{channel}-0"}}).encode()) + one_more
        )
        while (answer := wire.receive_json())["event"] == "pusher:error":
            pass
        assert answer["event"] == "pusher_internal:subscription_succeeded"


@pytest.mark.parametrize("path", ["/app/{}?protocol=7", "/ws/app/{}/c"])
def test_the_largest_app_does_not_raise_the_limit_of_a_message_for_others(server: ServerProcess, path: str) -> None:
    large = frame(TEXT, json.dumps({"event": "e", "channel": "c", "data": "x" * 900_000}).encode())
    with Wire(server.ws_port).upgrade(path.format("app-key")) as wire:
        wire.send(large[:100_000])
        assert wire.close_code() == 1009
    with Wire(server.ws_port).upgrade(path.format("large-key")) as wire:
        wire.send(large + frame(CLOSE, b"\x03\xe8"))
        assert wire.close_code() == 1000


def test_the_largest_app_does_not_raise_the_limit_of_a_body_for_others(server: ServerProcess) -> None:
    event = {"name": "e", "channels": ["c"], "data": "x" * 900_000}
    answer = server.post("/apps/app-test/events", event)
    assert (answer.status, answer.json["error"][:20]) == (413, "a request body has a")
    assert server.post("/apps/app-large/events", event).status == 200


# -- the subscription count


def count_of(client: PusherSocket) -> int:
    """Returns the next frame, which must be a subscription count."""
    frame = client.receive()
    assert frame["event"] == "pusher_internal:subscription_count", frame
    return int(json.loads(frame["data"])["subscription_count"])


@pytest.mark.parametrize("prefix", ["", "private-", "private-encrypted-"])
def test_each_change_of_the_subscription_count_is_sent(
    server: ServerProcess, connect: Callable[..., PusherSocket], channel: str, prefix: str
) -> None:
    """Clients of each protocol count, and each kind of leave; a rejected subscription does not count."""
    name = prefix + channel
    first, second, third = (connect("counting-key") for _ in range(3))
    first.subscribe(name)
    assert count_of(first) == 1
    second.subscribe(name)
    assert count_of(first) == 2
    second.send("pusher:subscribe", {"channel": name})
    third.subscribe(name)
    assert count_of(first) == 3
    second.send("pusher:unsubscribe", {"channel": name})
    second.send("pusher:unsubscribe", {"channel": name})
    assert count_of(first) == 2
    third.connection.socket.close()
    assert count_of(first) == 1
    if prefix:
        second.round_trip()
        second.request_subscription(name, secret="wrong")
        second.expect_refusal(name)
    else:
        with raw_socket(server, name, key="counting-key") as raw:
            assert raw.expect("pusher_internal:subscription_count", name) == {"subscription_count": 2}
            assert count_of(first) == 2
        assert count_of(first) == 1
    assert first.round_trip() == []


def test_client_that_joins_and_leaves_repeatedly_causes_one_count_a_second(
    server: ServerProcess, stack: contextlib.ExitStack, connect: Callable[..., PusherSocket], channel: str
) -> None:
    watcher = connect("counting-key")
    watcher.subscribe(channel)
    assert count_of(watcher) == 1
    wire = stack.enter_context(Wire(server.ws_port)).upgrade("/app/counting-key?protocol=7")
    wire.receive()
    begun = time.monotonic()
    turn = "".join(
        json.dumps({"event": f"pusher:{what}", "data": {"channel": channel}}) + "\n" for what in ("subscribe", "unsubscribe")
    )
    both = b"".join(frame(TEXT, line.encode()) for line in turn.splitlines())
    for _ in range(40):
        wire.send(both * 5)
        for _ in range(5):
            wire.receive_json()
    assert server.post("/apps/app-counting/events", {"name": "end", "channels": [channel], "data": "1"}).status == 200
    told = list(itertools.takewhile(lambda one: one["event"] != "end", iter(watcher.receive, None)))
    assert len(told) <= 3 + 2 * (time.monotonic() - begun)
    wire.send(frame(TEXT, json.dumps({"event": "pusher:subscribe", "data": {"channel": channel}}).encode()))
    while count_of(watcher) != 2:
        pass


@pytest.mark.parametrize("prefix", ["presence-", "presence-cache-"])
def test_no_subscription_count_is_sent_on_presence_channels(
    connect: Callable[..., PusherSocket], channel: str, prefix: str
) -> None:
    first, second = connect("counting-key"), connect("counting-key")
    for number, client in enumerate((first, second)):
        client.subscribe(prefix + channel, {"user_id": f"u{number}"})
    second.send("pusher:unsubscribe", {"channel": prefix + channel})
    second.round_trip()
    assert not [frame for frame in first.round_trip() if frame["event"] == "pusher_internal:subscription_count"]


def test_no_subscription_count_is_sent_by_default(connect: Callable[..., PusherSocket], channel: str) -> None:
    first, second = connect(), connect()
    for client in (first, second):
        client.subscribe(channel)
    assert first.round_trip() == second.round_trip() == []


def test_pusher_js_keeps_the_subscription_count(
    server: ServerProcess, connect: Callable[..., PusherSocket], node: Callable[..., NodeProcess], channel: str
) -> None:
    address = {"wsHost": "127.0.0.1", "wsPort": server.ws_port}
    client = node("pusher_more.mjs", key="counting-key", secret="secret", client=address)
    client.next(on="state", state="connected")
    client.tell("subscribe", channel=channel)
    assert client.next(on="count", channel=channel)["kept"] == 1
    connect("counting-key").subscribe(channel)
    assert client.next(on="count", channel=channel) == {
        "on": "count",
        "channel": channel,
        "subscription_count": 2,
        "kept": 2,
    }


def test_subscription_count_of_a_large_channel_is_sent_at_most_every_five_seconds_and_ends_correct(
    server: ServerProcess, stack: contextlib.ExitStack, connect: Callable[..., PusherSocket], channel: str
) -> None:
    watcher = connect("counting-key")
    watcher.subscribe(channel)

    def count(deadline: float = 8) -> int:
        frame = watcher.receive(deadline)
        assert frame["event"] == "pusher_internal:subscription_count"
        return int(json.loads(frame["data"])["subscription_count"])

    def join() -> Wire:
        wire = stack.enter_context(Wire(server.ws_port)).upgrade("/app/counting-key?protocol=7")
        wire.receive()
        wire.send(frame(TEXT, json.dumps({"event": "pusher:subscribe", "data": {"channel": channel}}).encode()))
        return wire

    others = [join() for _ in range(110)]
    server.until_sessions(channel, 111, "app-counting")
    while count() != 111:
        pass
    told = time.monotonic()
    for wire in others[:5]:
        wire.send(frame(CLOSE, b"\x03\xe8"))
    server.until_sessions(channel, 106, "app-counting")
    assert watcher.round_trip() == [], "the changes behind the first one over 100 are held back"
    assert count() == 106, "and told as one, with what is so then"
    assert time.monotonic() - told >= 4
    for wire in others[5:15]:
        wire.send(frame(CLOSE, b"\x03\xe8"))
    server.until_sessions(channel, 96, "app-counting")
    while (number := count()) != 96:
        assert number in range(97, 101)
    assert time.monotonic() - told < 8, "at 100 there is no need to wait any more"


# -- slow events that started with the file


@pytest.mark.parametrize("what", ["nothing", "public", "wrong"])
def test_unauthorised_client_is_closed_with_4009_after_ten_seconds_if_it(
    strangers: tuple[float, dict[str, PusherSocket]], what: str
) -> None:
    """`public`: joined a public channel; `wrong`: sent a wrong signature for a private channel."""
    begun, clients = strangers
    client = clients[what]
    assert client.close_code(15) == 4009
    assert client.connection.close_reason == "Connection not authorized within timeout"
    assert time.monotonic() - begun > 9.5


@pytest.mark.parametrize("what", ["private", "presence", "left", "user"])
def test_client_stays_connected_if_it_is(
    strangers: tuple[float, dict[str, PusherSocket]], server: ServerProcess, what: str
) -> None:
    """`left`: joined a private channel and has left it; `user`: signed in."""
    begun, clients = strangers
    wait_until(lambda: time.monotonic() - begun > 11.5, "the deadline has passed", 15)
    clients[what].round_trip()


def test_client_that_is_not_authorised_in_time_is_counted(
    strangers: tuple[float, dict[str, PusherSocket]], server: ServerProcess
) -> None:
    assert 'push1st_cut_offs_total{reason="not-authorized"} 3.0' in server.get("/metrics").body.decode()


def test_the_protocol_s_own_ping_byte_by_byte(silent: Wire) -> None:
    """The server sends it only to clients that did not answer a WebSocket ping (Pusher protocol, section 7)."""
    while (received := silent.receive())[0] != TEXT:
        pass
    assert received[1] == b'{"event":"pusher:ping","data":"{}"}'
