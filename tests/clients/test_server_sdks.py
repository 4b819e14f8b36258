"""The `pusher` server libraries for Node and Python: the same suite over both, on both ports."""

import json
from collections.abc import Callable
from typing import Any, Protocol

import pusher
import pytest
from pusher.errors import PusherError

from tests.support.nodejs import NodeProcess
from tests.support.process import ServerProcess
from tests.support.pusher_socket import PusherSocket
from tests.support.signing import hmac_hex


class Failed(Exception):
    """The error of the library, by the status of the server."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Sdk(Protocol):
    """The calls that both libraries support. Answers are decoded."""

    def trigger(self, channels: Any, event: str, data: Any, socket_id: str | None = None) -> Any: ...

    def channels(self, **query: str) -> Any: ...

    def channel(self, channel: str, **query: str) -> Any: ...

    def authorize(self, socket_id: str, channel: str, data: dict[str, Any] | None = None) -> dict[str, str]: ...


class NodeSdk:
    def __init__(self, start: Callable[..., NodeProcess], port: int, secret: str) -> None:
        address = {"host": "127.0.0.1", "port": port, "useTLS": False}
        self.process = start("pusher_server.mjs", appId="1234", key="sdk-key", secret=secret, **address)

    def call(self, method: str, *args: Any) -> Any:
        answer = self.process.ask("call", method=method, args=args)
        if answer["status"] != 200:
            raise Failed(answer["status"])
        return json.loads(answer["body"])

    def trigger(self, channels: Any, event: str, data: Any, socket_id: str | None = None) -> Any:
        return self.call("trigger", channels, event, data, {"socket_id": socket_id} if socket_id else {})

    def channels(self, **query: str) -> Any:
        return self.call("get", {"path": "/channels", "params": query})

    def channel(self, channel: str, **query: str) -> Any:
        return self.call("get", {"path": f"/channels/{channel}", "params": query})

    def authorize(self, socket_id: str, channel: str, data: dict[str, Any] | None = None) -> dict[str, str]:
        answer: dict[str, str] = self.process.ask("authorize", socketId=socket_id, channel=channel, data=data)
        return answer


STATUS_OF = {"PusherBadRequest": 400, "PusherBadAuth": 401, "PusherForbidden": 403, "PusherBadStatus": 0}


class PythonSdk:
    def __init__(self, start: Callable[..., NodeProcess], port: int, secret: str) -> None:
        self.pusher = pusher.Pusher("1234", "sdk-key", secret, ssl=False, host="127.0.0.1", port=port)

    def call(self, method: str, *args: Any) -> Any:
        try:
            return getattr(self.pusher, method)(*args)
        except PusherError as error:
            raise Failed(STATUS_OF[type(error).__name__]) from error

    def trigger(self, channels: Any, event: str, data: Any, socket_id: str | None = None) -> Any:
        return self.call("trigger", channels, event, data, socket_id)

    def channels(self, **query: str) -> Any:
        return self.call(
            "channels_info", query.get("filter_by_prefix"), query.get("info", "").split(",") if query.get("info") else []
        )

    def channel(self, channel: str, **query: str) -> Any:
        return self.call("channel_info", channel, query.get("info", "").split(",") if query.get("info") else [])

    def authorize(self, socket_id: str, channel: str, data: dict[str, Any] | None = None) -> dict[str, str]:
        answer: dict[str, str] = self.pusher.authenticate(channel, socket_id, data)
        return answer


@pytest.fixture(params=[NodeSdk, PythonSdk], ids=["node", "python"])
def sdk_class(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=["ws_port", "api_port"])
def sdk(request: pytest.FixtureRequest, sdk_class: Any, server: ServerProcess, node: Callable[..., NodeProcess]) -> Sdk:
    made: Sdk = sdk_class(node, getattr(server, request.param), "secret")
    return made


@pytest.fixture
def sdk_client(connect: Callable[..., PusherSocket]) -> Callable[[], PusherSocket]:
    """Makes connections to the app of the libraries."""
    return lambda: connect("sdk-key")


def test_trigger_reaches_a_channel(sdk: Sdk, sdk_client: Callable[[], PusherSocket], channel: str) -> None:
    client = sdk_client()
    client.subscribe(channel)
    assert sdk.trigger(channel, "paid", {"id": 7}) == {}
    assert client.expect("paid", channel) == {"id": 7}


def test_trigger_reaches_many_channels(sdk: Sdk, sdk_client: Callable[[], PusherSocket], channel: str) -> None:
    names = [f"{channel}-{number}" for number in range(3)]
    client = sdk_client()
    for name in names:
        client.subscribe(name)
    assert sdk.trigger(names, "paid", {"id": 7}) == {}
    received = [client.receive() for _ in names]
    assert sorted(frame["channel"] for frame in received) == names


def test_trigger_passes_over_the_excluded_socket(sdk: Sdk, sdk_client: Callable[[], PusherSocket], channel: str) -> None:
    origin, other = sdk_client(), sdk_client()
    for client in (origin, other):
        client.subscribe(channel)
    sdk.trigger(channel, "paid", {}, origin.socket_id)
    assert other.expect("paid", channel) == {}
    assert origin.round_trip() == []


def test_channels_are_found_by_prefix(sdk: Sdk, sdk_client: Callable[[], PusherSocket], channel: str) -> None:
    client = sdk_client()
    for prefix in ("", "private-", "presence-"):
        client.subscribe(prefix + channel, {"user_id": "u1"} if prefix == "presence-" else None)
    assert sdk.channels(filter_by_prefix=f"private-{channel}") == {"channels": {f"private-{channel}": {}}}


def test_channels_have_their_user_count(sdk: Sdk, sdk_client: Callable[[], PusherSocket], channel: str) -> None:
    presence = f"presence-{channel}"
    for number in (1, 2, 2):
        sdk_client().subscribe(presence, {"user_id": f"u{number}"})
    answer = sdk.channels(filter_by_prefix=presence, info="user_count")
    assert answer == {"channels": {presence: {"user_count": 2}}}


def test_no_channels_are_an_empty_object(sdk: Sdk, channel: str) -> None:
    assert sdk.channels(filter_by_prefix=f"no-{channel}") == {"channels": {}}


def test_occupied_channel_is_reported_as_occupied(sdk: Sdk, sdk_client: Callable[[], PusherSocket], channel: str) -> None:
    client = sdk_client()
    client.subscribe(f"presence-{channel}", {"user_id": "u1"})
    assert sdk.channel(f"presence-{channel}", info="user_count") == {"occupied": True, "user_count": 1}


def test_a_channel_without_subscribers_is_not_occupied(sdk: Sdk, channel: str) -> None:
    assert sdk.channel(channel) == {"occupied": False}


@pytest.mark.parametrize("data", [None, {"user_id": "u1", "user_info": {"name": "Ann"}}], ids=["private", "presence"])
def test_authorization_of_the_library_opens(
    sdk: Sdk, sdk_client: Callable[[], PusherSocket], channel: str, data: dict[str, Any] | None
) -> None:
    name = f"{'presence' if data else 'private'}-{channel}"
    client = sdk_client()
    client.send("pusher:subscribe", {"channel": name, **sdk.authorize(client.socket_id, name, data)})
    client.expect("pusher_internal:subscription_succeeded", name)


def test_authorization_of_the_library_and_of_the_api_are_the_same(sdk: Sdk, server: ServerProcess) -> None:
    answer = server.post("/apps/1234/token/session/", {"session": "1.2", "channel": "private-x"})
    assert sdk.authorize("1.2", "private-x")["auth"] == f"sdk-key:{answer.body.decode()}"
    assert answer.body.decode() == hmac_hex("secret", "1.2:private-x")


def test_a_wrong_secret_is_refused_with_401(
    sdk_class: Any, server: ServerProcess, node: Callable[..., NodeProcess], channel: str
) -> None:
    sdk: Sdk = sdk_class(node, server.ws_port, "not the secret")
    with pytest.raises(Failed) as failed:
        sdk.trigger(channel, "paid", {})
    assert failed.value.status == 401
