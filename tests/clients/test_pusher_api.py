"""Pusher's HTTP API (Pusher protocol, section 9): each method of the `pusher` libraries for Node and Python, with exact answers.

Calls that no library makes are signed by this module. The last tests compare docs/compatibility.md with the tests.
"""

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import pusher
import pytest
from pusher.errors import PusherError
from pusher.http import POST, Request

from tests.support.nodejs import MASTER_KEY, MODULES, NodeProcess, node_program
from tests.support.process import APP, Answer, ServerProcess, merged, running
from tests.support.pusher_socket import PusherSocket, sign_in, statuses
from tests.support.signing import channel_auth, hmac_hex, signed_query

ROOT = Path(__file__).parents[2]

APPS = {
    "1234": merged(APP, {"key": "sdk-key"}),
    "app-off": merged(APP, {"key": "off-key", "enable": False}),
}


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running(apps=APPS) as process:
        yield process


@pytest.fixture
def client(connect: Callable[..., PusherSocket]) -> Callable[[], PusherSocket]:
    """Makes connections to the app of the libraries."""
    return lambda: connect("sdk-key")


@pytest.fixture
def call(server: ServerProcess) -> Callable[..., Answer]:
    """Makes a signed call for the app of the libraries: a POST with a body, a GET without one."""

    def signed(path: str, body: Any = None, query: dict[str, str] | None = None, method: str = "") -> Answer:
        method = method or ("GET" if body is None else "POST")
        return server.signed(method, f"/apps/1234/{path}", body, query=query, key="sdk-key")

    return signed


def event(channel: str, name: str = "e", data: Any = "1", **more: Any) -> dict[str, Any]:
    return {"channel": channel, "name": name, "data": data, **more}


# -- the libraries


class Failed(Exception):
    """The error of a library. kind: the HTTP status, or the library's name for it; text: the error text of the server."""

    def __init__(self, kind: Any, text: str) -> None:
        super().__init__(kind, text)
        self.kind = kind
        self.text = text


class Sdk(Protocol):
    """The calls that both libraries support. Answers are decoded."""

    def trigger(self, channels: Any, event: str, data: Any) -> Any: ...

    def batch(self, events: list[dict[str, Any]]) -> Any: ...

    def channels(self, prefix: str, info: str = "") -> Any: ...

    def channel(self, channel: str, info: str = "") -> Any: ...

    def users(self, channel: str) -> Any: ...

    def send_to_user(self, user: str, event: str, data: Any) -> Any: ...

    def authorize(self, socket_id: str, channel: str, data: Any = None) -> Any: ...

    def authenticate_user(self, socket_id: str, user_data: Any) -> Any: ...


class NodeSdk:
    def __init__(self, start: Callable[..., NodeProcess], port: int) -> None:
        address = {"host": "127.0.0.1", "port": port, "useTLS": False}
        options = {"appId": "1234", "key": "sdk-key", "secret": "secret", "encryptionMasterKeyBase64": MASTER_KEY, **address}
        self.process = start("pusher_server.mjs", **options)
        self.signing = start("pusher_signing.mjs", **options)

    def call(self, method: str, *args: Any) -> Any:
        answer = self.process.ask("call", method=method, args=args)
        if answer["status"] != 200:
            raise Failed(answer["status"], answer["body"])
        return json.loads(answer["body"])

    def get(self, path: str, **query: str) -> Any:
        return self.call("get", {"path": path, "params": {name: value for name, value in query.items() if value}})

    def trigger(self, channels: Any, event: str, data: Any, **params: str) -> Any:
        return self.call("trigger", channels, event, data, params)

    def batch(self, events: list[dict[str, Any]]) -> Any:
        return self.call("triggerBatch", events)

    def channels(self, prefix: str, info: str = "") -> Any:
        return self.get("/channels", filter_by_prefix=prefix, info=info)

    def channel(self, channel: str, info: str = "") -> Any:
        return self.get(f"/channels/{channel}", info=info)

    def users(self, channel: str) -> Any:
        return self.get(f"/channels/{channel}/users")

    def send_to_user(self, user: str, event: str, data: Any) -> Any:
        return self.call("sendToUser", user, event, data)

    def terminate(self, user: str) -> Any:
        return self.call("terminateUserConnections", user)

    def authorize(self, socket_id: str, channel: str, data: Any = None) -> Any:
        return self.signing.ask("sign", method="authorizeChannel", args=[socket_id, channel, data])

    def authenticate_user(self, socket_id: str, user_data: Any) -> Any:
        return self.signing.ask("sign", method="authenticateUser", args=[socket_id, user_data])


class PythonSdk:
    def __init__(self, start: Callable[..., NodeProcess], port: int) -> None:
        self.pusher = pusher.Pusher(
            "1234", "sdk-key", "secret", ssl=False, host="127.0.0.1", port=port, encryption_master_key_base64=MASTER_KEY
        )

    def call(self, method: str, *args: Any) -> Any:
        try:
            return getattr(self.pusher, method)(*args)
        except PusherError as error:
            kinds = {"PusherBadRequest": 400, "PusherBadAuth": 401, "PusherForbidden": 403}
            raise Failed(kinds.get(type(error).__name__, str(error)[:3]), str(error)) from error

    def trigger(self, channels: Any, event: str, data: Any) -> Any:
        return self.call("trigger", channels, event, data)

    def batch(self, events: list[dict[str, Any]]) -> Any:
        return self.call("trigger_batch", events)

    def channels(self, prefix: str, info: str = "") -> Any:
        return self.call("channels_info", prefix, info.split(",") if info else [])

    def channel(self, channel: str, info: str = "") -> Any:
        return self.call("channel_info", channel, info.split(",") if info else [])

    def users(self, channel: str) -> Any:
        return self.call("users_info", channel)

    def send_to_user(self, user: str, event: str, data: Any) -> Any:
        return self.call("send_to_user", user, event, data)

    def authorize(self, socket_id: str, channel: str, data: Any = None) -> Any:
        answer = self.pusher.authenticate(channel, socket_id, data)
        return {name: text.decode() if isinstance(text, bytes) else text for name, text in answer.items()}

    def authenticate_user(self, socket_id: str, user_data: Any) -> Any:
        return self.pusher.authenticate_user(socket_id, user_data)


@pytest.fixture(scope="module")
def started() -> Iterator[Callable[..., NodeProcess]]:
    """Starts processes of Node.js that all tests of this file share."""
    processes: list[NodeProcess] = []

    def start(script: str, **options: Any) -> NodeProcess:
        processes.append(NodeProcess(script, options))
        return processes[-1]

    yield start
    for process in processes:
        process.close()


@pytest.fixture(scope="module")
def node_sdk(server: ServerProcess, started: Callable[..., NodeProcess]) -> NodeSdk:
    return NodeSdk(started, server.ws_port)


@pytest.fixture(scope="module", params=["node", "python"])
def sdk(request: pytest.FixtureRequest, server: ServerProcess, node_sdk: NodeSdk, started: Callable[..., NodeProcess]) -> Sdk:
    return node_sdk if request.param == "node" else PythonSdk(started, server.ws_port)


@pytest.fixture
def busy(client: Callable[[], PusherSocket], channel: str) -> list[PusherSocket]:
    """Subscribes two users with three connections to a presence channel and a public channel."""
    clients = []
    for user in ("1", "1", "2"):
        clients.append(client())
        clients[-1].subscribe(f"presence-{channel}", {"user_id": user})
        clients[-1].subscribe(channel)
    return clients


def test_a_library_triggers_on_a_hundred_channels_at_once(sdk: Sdk, client: Callable[[], PusherSocket], channel: str) -> None:
    names = [f"{channel}-{number}" for number in range(100)]
    one = client()
    one.subscribe(names[0])
    one.subscribe(names[99])
    assert sdk.trigger(names, "e", {"id": 7}) == {}
    assert {one.receive()["channel"] for _ in range(2)} == {names[0], names[99]}


def test_a_library_triggers_a_batch(sdk: Sdk, client: Callable[[], PusherSocket], channel: str) -> None:
    one, other = client(), client()
    for socket in (one, other):
        socket.subscribe(f"{channel}-a")
        socket.subscribe(f"{channel}-b")
    events = [
        event(f"{channel}-a", data={"n": 1}),
        event(f"{channel}-b", "f", {"n": 2}, socket_id=one.socket_id),
        event(f"{channel}-a", "g", {"n": 3}),
    ]
    assert sdk.batch(events) == {}
    assert other.expect("e", f"{channel}-a") == {"n": 1}
    frames = [other.receive() for _ in range(2)]
    assert {(frame["event"], frame["data"].replace(" ", "")) for frame in frames} == {("f", '{"n":2}'), ("g", '{"n":3}')}
    assert [frame["event"] for frame in one.round_trip()] == ["e", "g"]


def test_library_triggers_a_batch_and_gets_the_requested_attributes(sdk: Sdk, busy: object, channel: str) -> None:
    events = [
        event(f"presence-{channel}", info="user_count"),
        event(channel),
        event(channel, info="subscription_count"),
        event(f"presence-{channel}", info="user_count,subscription_count"),
        event(f"{channel}-empty", info="subscription_count"),
    ]
    assert sdk.batch(events) == {
        "batch": [
            {"user_count": 2},
            {},
            {"subscription_count": 3},
            {"user_count": 2, "subscription_count": 3},
            {"subscription_count": 0},
        ]
    }


def test_library_for_node_triggers_and_gets_the_requested_attributes(node_sdk: NodeSdk, busy: object, channel: str) -> None:
    """The library for Python has no such call."""
    names = [f"presence-{channel}", channel]
    assert node_sdk.trigger(names, "e", {}, info="user_count,subscription_count") == {
        "channels": {f"presence-{channel}": {"user_count": 2, "subscription_count": 3}, channel: {"subscription_count": 3}}
    }
    assert node_sdk.trigger(names, "e", {}, info="user_count") == {
        "channels": {f"presence-{channel}": {"user_count": 2}, channel: {}}
    }


def test_a_library_lists_channels_by_prefix_with_their_attributes(sdk: Sdk, busy: object, channel: str) -> None:
    assert sdk.channels(f"presence-{channel}") == {"channels": {f"presence-{channel}": {}}}
    assert sdk.channels(f"presence-{channel}", "user_count") == {"channels": {f"presence-{channel}": {"user_count": 2}}}
    both = {"user_count": 2, "subscription_count": 3}
    assert sdk.channels(f"presence-{channel}", "user_count,subscription_count") == {"channels": {f"presence-{channel}": both}}
    assert sdk.channels(channel, "subscription_count") == {"channels": {channel: {"subscription_count": 3}}}
    assert sdk.channels(f"nothing-{channel}") == {"channels": {}}


def test_library_requests_the_attributes_of_one_channel(sdk: Sdk, busy: object, channel: str) -> None:
    assert sdk.channel(channel) == {"occupied": True}
    assert sdk.channel(channel, "subscription_count") == {"occupied": True, "subscription_count": 3}
    assert sdk.channel(f"presence-{channel}", "user_count") == {"occupied": True, "user_count": 2}
    both = {"occupied": True, "user_count": 2, "subscription_count": 3}
    assert sdk.channel(f"presence-{channel}", "user_count,subscription_count") == both
    assert sdk.channel(f"nothing-{channel}", "subscription_count") == {"occupied": False, "subscription_count": 0}
    assert sdk.channel(f"cache-{channel}", "cache") == {"occupied": False, "cache": None}
    sdk.trigger(f"cache-{channel}", "e", "kept")
    found = sdk.channel(f"cache-{channel}", "cache,subscription_count")
    assert found.pop("cache") in ({"data": "kept", "ttl": ttl} for ttl in range(1795, 1801))
    assert found == {"occupied": False, "subscription_count": 0}


def test_a_library_lists_the_users_of_a_presence_channel(sdk: Sdk, busy: object, channel: str) -> None:
    assert sdk.users(f"presence-{channel}") == {"users": [{"id": "1"}, {"id": "2"}]}
    assert sdk.users(f"presence-{channel}-empty") == {"users": []}


def test_a_library_sends_to_a_user(sdk: Sdk, client: Callable[[], PusherSocket], channel: str) -> None:
    one = client()
    sign_in(one, channel)
    one.send("pusher:subscribe", {"channel": f"#server-to-user-{channel}", "auth": ""})
    one.expect("pusher_internal:subscription_succeeded", f"#server-to-user-{channel}")
    assert sdk.send_to_user(channel, "paid", {"id": 7}) == {}
    assert one.expect("paid", f"#server-to-user-{channel}") == {"id": 7}
    assert sdk.send_to_user(f"{channel}-nobody", "paid", {}) == {}


def test_the_library_for_node_ends_the_connections_of_a_user(
    node_sdk: NodeSdk, client: Callable[[], PusherSocket], channel: str
) -> None:
    """A member of a presence channel with that id has not signed in."""
    one, member = client(), client()
    sign_in(one, channel)
    member.subscribe(f"presence-{channel}", {"user_id": channel})
    assert node_sdk.terminate(channel) == {}
    assert one.close_code() == 4009
    assert member.round_trip() == []
    assert node_sdk.terminate(f"{channel}-nobody") == {}


@pytest.mark.parametrize("id", ["auth0|7", "ann+shop@example.com", "ж/ ?#%"])
def test_the_library_for_node_reaches_a_user_of_any_id(
    node_sdk: NodeSdk, client: Callable[[], PusherSocket], channel: str, id: str
) -> None:
    """The caller of the library escapes the id in the path: the library signs its arguments."""
    one, id = client(), f"{channel}{id}"
    sign_in(one, id)
    name = f"#server-to-user-{id}"
    one.send("pusher:subscribe", {"channel": name, "auth": ""})
    one.expect("pusher_internal:subscription_succeeded", name)
    assert one.subscribe(f"presence-{channel}", {"user_id": id})["presence"]["ids"] == [id]
    assert node_sdk.users(f"presence-{channel}") == {"users": [{"id": id}]}
    assert node_sdk.send_to_user(id, "paid", {"id": 7}) == {}
    assert one.expect("paid", name) == {"id": 7}
    assert node_sdk.terminate(quote(id, safe="")) == {}
    assert one.close_code() == 4009


def test_the_library_for_python_ends_the_connections_of_a_user_by_its_own_request_only(
    server: ServerProcess, started: Callable[..., NodeProcess], client: Callable[[], PusherSocket], channel: str
) -> None:
    """`terminate_user_connections` of the library for Python omits `/apps/{id}` in its path; its generic request does not."""
    sdk = PythonSdk(started, server.ws_port)
    one = client()
    sign_in(one, channel)
    with pytest.raises(Failed) as failed:
        sdk.call("terminate_user_connections", channel)
    assert failed.value.kind == "404"
    assert one.round_trip() == []
    inner = sdk.pusher._pusher_client
    request = Request(inner, POST, f"/apps/1234/users/{channel}/terminate_connections", {})
    assert inner.http.send_request(request) == {}
    assert one.close_code() == 4009


def test_library_for_node_makes_generic_requests(node_sdk: NodeSdk, client: Callable[[], PusherSocket], channel: str) -> None:
    one = client()
    one.subscribe(channel)
    assert node_sdk.call("post", {"path": "/events", "body": event(channel, "paid", '{"id":7}')}) == {}
    assert one.expect("paid", channel) == {"id": 7}
    assert node_sdk.get("/channels", filter_by_prefix=channel) == {"channels": {channel: {}}}


def test_query_signed_by_the_library_for_node_is_valid_for_other_clients(
    server: ServerProcess, node_sdk: NodeSdk, client: Callable[[], PusherSocket], channel: str
) -> None:
    client().subscribe(f"presence-{channel}", {"user_id": "u1"})
    path, params = f"/apps/1234/channels/presence-{channel}", {"info": "user_count"}
    query = node_sdk.signing.ask(
        "sign", method="createSignedQueryString", args=[{"method": "GET", "path": path, "params": params}]
    )
    assert server.get(f"{path}?{query}", port=server.ws_port).json == {"occupied": True, "user_count": 1}


def test_the_library_for_python_may_be_made_from_a_url_or_the_environment(
    server: ServerProcess, client: Callable[[], PusherSocket], channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library for Python reads a port in the host as a part of the name, so the test sets the port separately."""
    url = "http://sdk-key:secret@127.0.0.1/apps/1234"
    monkeypatch.setenv("PUSHER_URL", url)
    one = client()
    one.subscribe(channel)
    for made in (pusher.Pusher.from_url(url, port=server.ws_port), pusher.Pusher.from_env(port=server.ws_port)):
        assert made.trigger(channel, "paid", {"id": 7}) == {}
        assert one.expect("paid", channel) == {"id": 7}


def test_no_method_of_a_library_is_left_out() -> None:
    """`authenticate` of the library for Node is the old name of authorizeChannel; webhooks have tests of their own."""
    node_program()
    source = (MODULES / "pusher" / "lib" / "pusher.js").read_text("utf-8")
    assert set(re.findall(r"^Pusher\.prototype\.(\w+) =", source, re.MULTILINE)) == {
        *("trigger", "triggerBatch", "sendToUser", "terminateUserConnections", "get", "post"),
        *("authorizeChannel", "authenticate", "authenticateUser", "channelSharedSecret", "createSignedQueryString", "webhook"),
    }
    assert {name for name in dir(pusher.Pusher) if not name.startswith("_")} == {
        *("trigger", "trigger_batch", "send_to_user", "terminate_user_connections"),
        *("channels_info", "channel_info", "users_info"),
        *("authenticate", "authenticate_user", "from_url", "from_env", "validate_webhook"),
    }


def test_a_library_authorises_channels_of_every_kind(sdk: Sdk, client: Callable[[], PusherSocket], channel: str) -> None:
    member = {"user_id": "u1", "user_info": {"name": "Ann"}}
    for name, data in (
        (f"private-{channel}", None),
        (f"private-cache-{channel}", None),
        (f"presence-{channel}", member),
        (f"private-encrypted-{channel}", None),
    ):
        one = client()
        answer = sdk.authorize(one.socket_id, name, data)
        assert answer["auth"] == channel_auth(one.socket_id, name, answer.get("channel_data", ""), "sdk-key")
        assert ("shared_secret" in answer) == ("encrypted" in name)
        answer.pop("shared_secret", None)
        one.send("pusher:subscribe", {"channel": name, **answer})
        assert one.receive()["event"] == "pusher_internal:subscription_succeeded"


def test_a_library_makes_the_shared_secret_of_an_encrypted_channel(sdk: Sdk) -> None:
    secret = base64.b64encode(hashlib.sha256(b"private-encrypted-x" + bytes(range(32))).digest()).decode()
    assert sdk.authorize("1.2", "private-encrypted-x") == {
        "auth": f"sdk-key:{hmac_hex('secret', '1.2:private-encrypted-x')}",
        "shared_secret": secret,
    }


def test_a_library_authenticates_users(sdk: Sdk, client: Callable[[], PusherSocket], channel: str) -> None:
    one = client()
    answer = sdk.authenticate_user(one.socket_id, {"id": channel, "user_info": {"name": "A"}, "watchlist": ["nobody"]})
    assert set(answer) == {"auth", "user_data"}
    one.send("pusher:signin", answer)
    assert one.expect("pusher:signin_success") == {"user_data": answer["user_data"]}
    assert statuses(one) == {"offline": ["nobody"]}


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (lambda sdk: sdk.trigger("c", "pusher:e", {}), 400),
        (lambda sdk: sdk.trigger("c" * 165, "e", {}), 400),
        (lambda sdk: sdk.trigger("c", "e", "x" * 10_241), 413),
        (lambda sdk: sdk.batch([event("c", data="x")] * 11), 400),
        (lambda sdk: sdk.batch([]), 400),
        (lambda sdk: sdk.channels("", "user_count"), 400),
        (lambda sdk: sdk.channels("presence-", "age"), 400),
        (lambda sdk: sdk.channel("c", "user_count"), 400),
        (lambda sdk: sdk.channel("c", "cache"), 400),
        (lambda sdk: sdk.users("c"), 400),
    ],
    ids=[
        "a reserved event",
        "a long name",
        "much data",
        "a large batch",
        "an empty batch",
        "users of all channels",
        "an unknown attribute",
        "users of a public channel",
        "the cache of another channel",
        "the users of a public channel",
    ],
)
def test_library_gets_the_error_text_for(sdk: Sdk, asked: Callable[[Sdk], Any], status: int) -> None:
    with pytest.raises(Failed) as failed:
        asked(sdk)
    assert str(failed.value.kind) == str(status)
    assert '"error":"' in failed.value.text


# -- answers, byte by byte


def test_an_answer_has_exactly_these_bytes(call: Callable[..., Answer], channel: str) -> None:
    """Empty maps are `{}` and never `[]`: libraries for PHP and Go distinguish them."""
    empty = f"{channel}-empty"
    expected: list[tuple[tuple[Any, ...], bytes]] = [
        (("events", event(channel)), b"{}"),
        (("events", event(channel, info="user_count")), b'{"channels":{"%b":{}}}' % channel.encode()),
        (("batch_events", {"batch": [event(channel)]}), b"{}"),
        (("batch_events", {"batch": [event(channel, info="user_count")]}), b'{"batch":[{}]}'),
        (("channels", None, {"filter_by_prefix": empty}), b'{"channels":{}}'),
        ((f"channels/{empty}",), b'{"occupied":false}'),
        ((f"channels/cache-{empty}", None, {"info": "cache"}), b'{"occupied":false,"cache":null}'),
        ((f"channels/presence-{empty}/users",), b'{"users":[]}'),
        ((f"users/{empty}/terminate_connections", b""), b"{}"),
        ((f"users/{empty}/terminate_connections", b"{}"), b"{}"),
    ]
    for what, body in expected:
        answer = call(*what)
        assert (answer.status, answer.body) == (200, body), what
        assert answer.headers["Content-Type"] == "application/json; charset=utf-8"


# -- errors


WRONG: list[tuple[str, Any, int]] = [
    ("events", b"", 400),
    ("events", b"[]", 400),
    ("events", b'{"name":"e","channels":["c"],"data":"\xff"}', 400),
    ("events", {"name": "e", "channels": ["c"]}, 400),
    ("events", {"channels": ["c"], "data": "1"}, 400),
    ("events", {"name": "e", "data": "1"}, 400),
    ("events", {"name": "e", "channels": "c", "data": "1"}, 400),
    ("events", {"name": "e", "channels": [], "data": "1"}, 400),
    ("events", {"name": "e", "channels": [7], "data": "1"}, 400),
    ("events", {"name": "e", "channels": ["c"], "channel": "c", "data": "1"}, 400),
    ("events", {"name": "e", "channels": [f"c{number}" for number in range(101)], "data": "1"}, 400),
    ("events", event("c", name=""), 400),
    ("events", event("c", name="e" * 201), 400),
    ("events", event("c", name="pusher_internal:member_added"), 400),
    ("events", event("c", socket_id="1"), 400),
    ("events", event("c", socket_id="1.2.3\n"), 400),
    ("events", event("c", socket_id="a.b"), 400),
    ("events", event("c", socket_id=1.2), 400),
    ("events", event("c", info="age"), 400),
    ("events", event("c", info="user_count,"), 400),
    ("events", event("c", info=["user_count"]), 400),
    ("events", event("c", data="é" * 5121), 413),
    ("events", {"name": "e", "channels": ["private-encrypted-c", "c"], "data": "1"}, 400),
    ("events", {"name": "e", "channels": ["private-encrypted-c", "private-encrypted-d"], "data": "1"}, 400),
    ("batch_events", {}, 400),
    ("batch_events", {"batch": event("c")}, 400),
    ("batch_events", {"batch": [event("c", name="e" * 201)]}, 400),
    ("batch_events", {"batch": [{"name": "e", "channels": ["c"], "data": "1"}]}, 400),
    ("batch_events", {"batch": [event("c", socket_id="x")]}, 400),
    ("batch_events", {"batch": [event("c", info="cache")]}, 400),
    ("channels/a%20b", None, 400),
    ("channels/%E9", None, 404),
    ("channels/presence-%ff/users", None, 404),
    ("users/u/terminate_connections", b'{"reason":"x"}', 400),
    ("users/terminate_connections", b"{}", 404),
    ("event", event("c"), 404),
]


@pytest.mark.parametrize(("path", "body", "status"), WRONG, ids=lambda one: str(one)[:60])
def test_invalid_call_is_answered_with_its_code_and_reason(
    call: Callable[..., Answer], path: str, body: Any, status: int
) -> None:
    answer = call(path, body)
    assert answer.status == status, answer
    assert answer.json["error"]


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "events", "POST"),
        ("PUT", "batch_events", "POST"),
        ("POST", "channels", "GET"),
        ("DELETE", "channels/c", "GET"),
        ("POST", "channels/presence-c/users", "GET"),
        ("GET", "users/u/terminate_connections", "POST"),
        ("GET", "channels/c/events", "POST"),
    ],
)
def test_wrong_method_is_405_and_names_the_right_one(call: Callable[..., Answer], method: str, path: str, allow: str) -> None:
    answer = call(path, method=method)
    assert (answer.status, answer.headers["Allow"]) == (405, allow)


CALLS = [
    ("POST", "events", event("c")),
    ("POST", "batch_events", {"batch": [event("c")]}),
    ("POST", "channels/c/events", b"1"),
    ("GET", "channels", None),
    ("GET", "channels/c", None),
    ("GET", "channels/presence-c/users", None),
    ("POST", "users/u/terminate_connections", b"{}"),
]


@pytest.mark.parametrize(("method", "path", "body"), CALLS, ids=lambda one: str(one)[:30])
def test_each_call_needs_a_valid_signature_of_an_enabled_app(server: ServerProcess, method: str, path: str, body: Any) -> None:
    def status(app: str = "1234", **more: Any) -> int:
        return server.signed(method, f"/apps/{app}/{path}", body, **{"key": "sdk-key", "query": {"name": "e"}, **more}).status

    assert status() in {200, 202}
    assert status(secret="wrong") == 401
    assert status(key="app-key") == 401
    assert status(at=1_353_088_179) == 401
    assert status("4321") == 404
    assert status("app-off", key="off-key") == 403
    assert server.request(method, f"/apps/1234/{path}", body, port=server.ws_port).status == 401


def test_the_libraries_report_an_unknown_app_as_404(server: ServerProcess, node: Callable[..., NodeProcess]) -> None:
    sdk = pusher.Pusher("4321", "sdk-key", "secret", ssl=False, host="127.0.0.1", port=server.ws_port)
    with pytest.raises(PusherError, match=r"404: .*there is no app '4321'"):
        sdk.trigger("c", "e", "x")
    options = {"appId": "4321", "key": "sdk-key", "secret": "secret"}
    process = node("pusher_server.mjs", **options, host="127.0.0.1", port=server.ws_port, useTLS=False)
    answer = process.ask("call", method="trigger", args=["c", "e", "x"])
    assert answer["status"] == 404
    assert "there is no app '4321'" in answer["body"]


@pytest.mark.parametrize("signed_body", [b"", b"{}"], ids=["no body", "another body"])
def test_a_signature_is_for_the_body_it_was_made_for(server: ServerProcess, signed_body: bytes) -> None:
    path = "/apps/1234/events"
    query = signed_query("POST", path, signed_body, {}, "sdk-key", "secret", time.time())
    answer = server.post(f"{path}?{query}", event("c"))
    assert answer.status == 401
    assert "body_md5" in answer.json["error"]


# -- all or nothing


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(
    "wrong",
    [
        event("a b"),
        event("c", name="pusher:e"),
        event("c", name=""),
        event("c", data="x" * 10_241),
        event("c", socket_id="no"),
        event("c", info="age"),
        {"name": "e", "channel": "c"},
        {"channel": "c", "data": "1"},
        7,
    ],
    ids=["channel", "event", "no event", "data", "socket_id", "info", "data missing", "name missing", "no event at all"],
)
def test_batch_with_one_invalid_event_publishes_nothing(
    call: Callable[..., Answer], client: Callable[[], PusherSocket], channel: str, wrong: Any, place: int
) -> None:
    one = client()
    one.subscribe(channel)
    events: list[Any] = [event(channel), event(channel)]
    events.insert(place, wrong)
    answer = call("batch_events", {"batch": events})
    assert answer.status in {400, 413}
    assert f"batch[{place}]" in answer.json["error"]
    assert one.round_trip() == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"channels": ["CHANNEL", "a b"]},
        {"channels": ["CHANNEL", "private-encrypted-c"]},
        {"channels": ["CHANNEL", "#c"]},
        {"channels": ["CHANNEL", ""]},
        {"socket_id": "no"},
        {"info": "age"},
        {"name": "pusher:e"},
        {"data": "x" * 10_241},
        {"options": {"ttl": -1}},
    ],
    ids=lambda one: str(one)[:40],
)
def test_invalid_trigger_publishes_nothing(
    call: Callable[..., Answer], client: Callable[[], PusherSocket], channel: str, wrong: dict[str, Any]
) -> None:
    one = client()
    one.subscribe(channel)
    body = {"name": "e", "data": "1", "channels": ["CHANNEL"], **wrong}
    answer = call("events", json.loads(json.dumps(body).replace("CHANNEL", channel)))
    assert answer.status in {400, 413}
    assert one.round_trip() == []


# -- rare features


def test_an_encrypted_channel_alone_may_be_triggered(sdk: Sdk, client: Callable[[], PusherSocket], channel: str) -> None:
    """Only ciphertext passes through the server."""
    name = f"private-encrypted-{channel}"
    one = client()
    one.subscribe(name)
    assert sdk.trigger(name, "e", {"pin": "1234"}) == {}
    data = one.expect("e", name)
    assert set(data) == {"nonce", "ciphertext"}
    assert len(base64.b64decode(data["nonce"])) == 24


def test_a_batch_may_mix_encrypted_channels(sdk: Sdk, client: Callable[[], PusherSocket], channel: str) -> None:
    names = [f"private-encrypted-{channel}", f"private-encrypted-{channel}-2", channel]
    one = client()
    for name in names:
        one.subscribe(name)
    assert sdk.batch([event(name, data={"pin": "1234"}) for name in names]) == {}
    frames = {frame["channel"]: frame["data"] for frame in one.round_trip()}
    assert set(frames) == set(names)
    assert ["1234" in frames[name] for name in names] == [False, False, True]


def test_the_deprecated_call_publishes_its_body_and_answers_202(
    call: Callable[..., Answer], client: Callable[[], PusherSocket], channel: str
) -> None:
    one, other = client(), client()
    for socket in (one, other):
        socket.subscribe(channel)
    for body in (b'{"id":1}', b'plain \xc3\xa9 "words"', b""):
        assert (answer := call(f"channels/{channel}/events", body, {"name": "e"})).status == 202
        assert answer.json == {}
        assert one.receive() == {"event": "e", "channel": channel, "data": body.decode()}
    assert call(f"channels/{channel}/events", b"1", {"name": "e", "socket_id": one.socket_id}).status == 202
    assert one.round_trip() == []
    assert len(other.round_trip()) == 4


@pytest.mark.parametrize(
    ("query", "status"),
    [({}, 400), ({"name": ""}, 400), ({"name": "pusher:e"}, 400), ({"name": "e", "socket_id": "x"}, 400)],
    ids=str,
)
def test_the_deprecated_call_is_checked(
    call: Callable[..., Answer], client: Callable[[], PusherSocket], channel: str, query: dict[str, str], status: int
) -> None:
    one = client()
    one.subscribe(channel)
    assert call(f"channels/{channel}/events", b"1", query).status == status
    assert one.round_trip() == []


@pytest.mark.parametrize(
    ("query", "body"),
    [
        ({"name": "e", "channel": "CHANNEL", "data": "some words"}, None),
        ({"name": "e", "channels[]": "CHANNEL", "data": "some words"}, {}),
        ({"name": "e", "channel": "CHANNEL"}, {"data": "some words"}),
        ({"name": "not this", "data": "nor this", "channel": "c"}, event("CHANNEL", data="some words")),
    ],
    ids=["all in the query", "a list", "some", "the body goes first"],
)
def test_trigger_parameters_may_be_in_the_query(
    call: Callable[..., Answer], client: Callable[[], PusherSocket], channel: str, query: dict[str, str], body: Any
) -> None:
    one = client()
    one.subscribe(channel)
    query, body = json.loads(json.dumps([query, body]).replace("CHANNEL", channel))
    answer = call("events", body, query, method="POST")
    assert (answer.status, answer.body) == (200, b"{}")
    assert one.receive() == {"event": "e", "channel": channel, "data": "some words"}


def test_socket_excluded_by_the_query_gets_no_event(
    call: Callable[..., Answer], client: Callable[[], PusherSocket], channel: str
) -> None:
    one, other = client(), client()
    for socket in (one, other):
        socket.subscribe(channel)
    body = {"name": "e", "channel": channel, "data": "1"}
    assert call("events", body, {"socket_id": one.socket_id, "info": "subscription_count"}).json == {
        "channels": {channel: {"subscription_count": 2}}
    }
    assert one.round_trip() == []
    assert other.expect("e", channel) == 1


# -- the page docs/compatibility.md

PAGE = ROOT / "docs" / "compatibility.md"


def named_tests(text: str) -> list[tuple[str, str]]:
    """Returns file and name of each test that the page names, as `file.py::test_name`."""
    return re.findall(r"`(test_\w+\.py)::(test_\w+)`", text)


def test_tests_named_by_the_compatibility_page_exist() -> None:
    named = named_tests(PAGE.read_text("utf-8"))
    tests = {file: (ROOT / "tests" / "clients" / file).read_text("utf-8") for file, _ in named}
    assert [(file, name) for file, name in named if f"\ndef {name}(" not in tests[file]] == []


def test_every_feature_of_the_compatibility_page_names_a_test() -> None:
    sections = PAGE.read_text("utf-8").partition("## Deliberate differences")[0].split("\n## ")
    lines = [line for section in sections if not section.startswith("MQTT") for line in section.splitlines()]
    rows = [line for line in lines if line.startswith("| ") and not line.startswith(("| ---", "| feature"))]
    assert len(rows) > 50
    assert [row for row in rows if not named_tests(row)] == []
