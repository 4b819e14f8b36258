"""laravel-echo over pusher-js, under Node."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.nodejs import NodeProcess
from tests.support.process import ServerProcess


@pytest.fixture
def echo(server: ServerProcess, node: Callable[..., NodeProcess]) -> Callable[..., NodeProcess]:
    def start(user: dict[str, Any] | None = None) -> NodeProcess:
        client = {"wsHost": "127.0.0.1", "wsPort": server.ws_port}
        return node("laravel_echo.mjs", key="app-key", client=client, api=server.api, user=user)

    return start


def listen(client: NodeProcess, kind: str, name: str, **what: Any) -> None:
    client.tell("listen", kind=kind, name=name, **what)
    client.next(on="subscribed", name=name)


def test_receives_an_event_on_a_public_channel(server: ServerProcess, echo: Callable[..., NodeProcess], channel: str) -> None:
    client = echo()
    listen(client, "channel", channel, events=["OrderPaid"])
    server.publish(channel, "App\\Events\\OrderPaid", {"id": 7})
    assert client.next(on="event")["data"] == {"id": 7}


def test_receives_an_event_on_a_private_channel(server: ServerProcess, echo: Callable[..., NodeProcess], channel: str) -> None:
    client = echo()
    listen(client, "private", channel, events=[".order.paid"])
    server.publish(f"private-{channel}", "order.paid", {"id": 7})
    assert client.next(on="event")["data"] == {"id": 7}


def test_does_not_receive_the_event_of_its_own_request(
    server: ServerProcess, echo: Callable[..., NodeProcess], channel: str
) -> None:
    """Laravel's `toOthers()`: the backend publishes with the client's `socket_id`."""
    client = echo()
    listen(client, "channel", channel, events=[".paid"])
    assert server.publish(channel, "paid", 1, socket_id=client.ask("socketId")).json["channels"] == {channel: 0}
    server.publish(channel, "paid", 2)
    assert client.next(on="event")["data"] == 2


def test_receives_members_joins_and_leaves(echo: Callable[..., NodeProcess], channel: str) -> None:
    ann, bob = (echo({"user_id": name, "user_info": {"name": name.title()}}) for name in ("ann", "bob"))
    listen(ann, "presence", channel)
    assert ann.next(on="here")["users"] == [{"name": "Ann"}]
    listen(bob, "presence", channel)
    assert bob.next(on="here")["users"] == [{"name": "Ann"}, {"name": "Bob"}]
    assert ann.next(on="joining")["user"] == {"name": "Bob"}
    bob.tell("leave", name=channel)
    assert ann.next(on="leaving")["user"] == {"name": "Bob"}


@pytest.mark.parametrize("kind", ["private", "presence"])
def test_whispers_to_the_others_of(echo: Callable[..., NodeProcess], channel: str, kind: str) -> None:
    ann, bob = (echo({"user_id": name, "user_info": {}}) for name in ("ann", "bob"))
    for client in (ann, bob):
        listen(client, kind, channel, whispers=["typing"])
    ann.tell("whisper", kind=kind, name=channel, whisper="typing", data={"text": "hello"})
    assert bob.next(on="whisper")["data"] == {"text": "hello"}


def test_rejected_channel_is_one_error_and_others_stay_subscribed(
    server: ServerProcess, echo: Callable[..., NodeProcess], channel: str
) -> None:
    client = echo()
    client.tell("listen", kind="private", name=f"refused-{channel}")
    error = client.next(on="refused", name=f"refused-{channel}")["error"]
    assert (error["type"], error["status"]) == ("AuthError", 401)
    listen(client, "channel", channel, events=[".paid"])
    server.publish(channel, "paid", 1)
    client.next(on="event")
    assert [seen["on"] for seen in client.seen].count("refused") == 1
