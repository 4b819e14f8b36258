"""MQTT clients on presence channels, and their subscriptions in the API, in counts and in limits."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.support.nodejs import NodeProcess, start_pusher_js
from tests.support.paho import V5, V311, PahoClient, paho_client
from tests.support.process import APP, ServerProcess, free_ports, merged, running
from tests.support.pusher_socket import pusher_socket, sign_in, statuses
from tests.support.raw_socket import raw_socket
from tests.support.signing import access_token

VERSIONS = pytest.mark.parametrize("version", [V311, V5])


@pytest.fixture(scope="module")
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def server(port: int) -> Iterator[ServerProcess]:
    """Runs a server with an MQTT address."""
    mqtt = {"listen": f"tcp://127.0.0.1:{port}", "push": ["public", "presence"]}
    apps = {
        "app-counting": merged(APP, {"key": "counting-key", "options": {"subscription-count": True}}),
        "app-small": merged(APP, {"key": "small-key", "limits": {"members": 1}}),
    }
    with running({"server": {"proto": ["pusher", "websocket", "mqtt"], "mqtt": mqtt}}, apps=apps) as process:
        yield process


def claims(user: str | None = None, app: str = "app-test") -> str:
    """Returns the access token of a client that may read all channels. user: the user's id; None: no user."""
    return access_token({"app": app, "channel": "*"} | ({} if user is None else {"sub": user}))


def device(port: int, user: str | None, version: Any = V5, app: str = "app-test") -> AbstractContextManager[PahoClient]:
    key = {"app-test": "app-key", "app-small": "small-key", "app-counting": "counting-key"}[app]
    return paho_client(port, version, username=key, password=claims(user, app))


def users(server: ServerProcess, channel: str) -> list[str]:
    answer = server.signed("GET", f"/apps/app-test/channels/{channel}/users")
    assert answer.status == 200, answer
    return sorted(one["id"] for one in answer.json["users"])


def occupancy(server: ServerProcess, channel: str) -> dict[str, Any]:
    info = "subscription_count" + (",user_count" if channel.startswith("presence-") else "")
    answer = server.signed("GET", f"/apps/app-test/channels/{channel}", query={"info": info})
    assert answer.status == 200, answer
    found: dict[str, Any] = answer.json
    return found


@VERSIONS
def test_user_with_several_connections_is_one_member(server: ServerProcess, port: int, version: Any, channel: str) -> None:
    name = f"presence-{channel}"
    with pusher_socket(server) as watcher:
        watcher.subscribe(name, {"user_id": "watcher"})
        with device(port, "ann", version) as one:
            assert one.subscribe(name) == [0]
            assert watcher.expect("pusher_internal:member_added", name)["user_id"] == "ann"
            with device(port, "ann", version) as two:
                assert two.subscribe(name) == [0]
                assert users(server, name) == ["ann", "watcher"]
                assert occupancy(server, name) == {"occupied": True, "user_count": 2, "subscription_count": 3}
            server.until_sessions(name, 2)
            assert watcher.round_trip() == []
            assert users(server, name) == ["ann", "watcher"]
            one.unsubscribe(name)
            assert watcher.expect("pusher_internal:member_removed", name) == {"user_id": "ann"}
            assert one.subscribe(name) == [0]
            assert watcher.expect("pusher_internal:member_added", name)["user_id"] == "ann"
        assert watcher.expect("pusher_internal:member_removed", name) == {"user_id": "ann"}
        assert users(server, name) == ["watcher"]


def test_client_without_a_user_is_counted_and_is_no_member(server: ServerProcess, port: int, channel: str) -> None:
    name = f"presence-{channel}"
    with pusher_socket(server) as watcher, device(port, None) as client:
        watcher.subscribe(name, {"user_id": "watcher"})
        assert client.subscribe(name) == [0]
        assert watcher.round_trip() == []
        assert occupancy(server, name) == {"occupied": True, "user_count": 1, "subscription_count": 2}
        client.publish(name, '{"on":true}')
        assert client.expect() == (name, b'{"on":true}')
        assert watcher.expect("message", name) == {"on": True}


def test_filter_with_wildcards_makes_no_member_and_no_subscription(server: ServerProcess, port: int, channel: str) -> None:
    name = f"presence-{channel}.1"
    with device(port, "ann") as client, device(port, "bob") as other:
        assert client.subscribe("#", f"presence-{channel}/+") == [0, 0]
        assert occupancy(server, name) == {"occupied": False, "user_count": 0, "subscription_count": 0}
        other.subscribe(name.replace(".", "/"))
        assert users(server, name) == ["bob"]
        assert occupancy(server, name) == {"occupied": True, "user_count": 1, "subscription_count": 1}
        other.publish(name.replace(".", "/"), "x")
        assert client.expect() == (name.replace(".", "/"), b"x")
        client.subscribe(name.replace(".", "/"))
        assert users(server, name) == ["ann", "bob"]
        client.unsubscribe("#", f"presence-{channel}/+")
        assert users(server, name) == ["ann", "bob"]


def test_pusher_js_sees_an_mqtt_client_join_and_leave(
    server: ServerProcess, port: int, node: Callable[..., NodeProcess], channel: str
) -> None:
    name = f"presence-{channel}"
    watcher = start_pusher_js(node, server, user={"user_id": "watcher"}, authorize="server")
    watcher.next(on="state", state="connected")
    watcher.tell("subscribe", channel=name)
    watcher.next(on="subscribed", channel=name)
    with device(port, "ann") as client:
        client.subscribe(name)
        assert watcher.next(on="member_added")["member"]["id"] == "ann"
        assert watcher.ask("members", channel=name)["count"] == 2
    assert watcher.next(on="member_removed")["member"]["id"] == "ann"


MODULE = """
from push1st.hooks.events import Allow, Connecting, Subscribing, User

def decide(question):
    match question:
        case Connecting(protocol="mqtt"):
            return Allow(user=User(question.username, {"name": question.username.title()}))
        case Subscribing(channel="presence-other"):
            return Allow(user=User("guest", {"name": "Guest"}))
        case _:
            return True
"""


def test_backend_decides_about_the_id_and_the_data_of_a_member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = free_ports(1)[0]
    (tmp_path / "presences.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    app = merged(APP, {"authorize": {"url": "py://presences:decide", "on": ["connect", "subscribe"], "filter": ["presence-"]}})
    mqtt = {"listen": f"tcp://127.0.0.1:{own}"}
    with (
        running({"server": {"proto": ["pusher", "mqtt"], "mqtt": mqtt}}, apps={"app-test": app}) as server,
        paho_client(own, username="app-key:ann") as client,
    ):
        assert client.subscribe("presence-other") == [0]
        assert client.subscribe("presence-room") == [0]
        assert users(server, "presence-other") == ["guest"]
        assert users(server, "presence-room") == ["ann"]
        with pusher_socket(server) as watcher:
            joined = watcher.subscribe("presence-other", {"user_id": "unused"})
            assert joined["presence"] == {"count": 1, "ids": ["guest"], "hash": {"guest": {"name": "Guest"}}}
            watcher.subscribe("presence-room", {"user_id": "watcher"})
            assert watcher.frames[-1]["data"].count('"ann":{"name":"Ann"}') == 1


def test_members_over_the_limit_are_rejected(server: ServerProcess, port: int, channel: str) -> None:
    name = f"presence-{channel}"
    with device(port, "ann", app="app-small") as ann, device(port, "ann", app="app-small") as same:
        assert ann.subscribe(name) == [0]
        assert same.subscribe(name) == [0]
        with device(port, "bob", app="app-small") as bob, device(port, "bob", V311, app="app-small") as older:
            assert bob.subscribe(name) == [0x97]
            assert older.subscribe(name) == [0x80]
        with device(port, None, app="app-small") as anonymous:
            assert anonymous.subscribe(name) == [0]


def test_absent_session_is_no_member_and_no_subscription(server: ServerProcess, port: int, channel: str) -> None:
    name = f"presence-{channel}"

    def lasting() -> AbstractContextManager[PahoClient]:
        return paho_client(port, V311, channel, password=claims("ann"), clean=False)

    with pusher_socket(server) as watcher:
        watcher.subscribe(name, {"user_id": "watcher"})
        with lasting() as client:
            client.subscribe(name, qos=1)
            assert watcher.expect("pusher_internal:member_added", name)["user_id"] == "ann"
        assert watcher.expect("pusher_internal:member_removed", name) == {"user_id": "ann"}
        assert occupancy(server, name) == {"occupied": True, "user_count": 1, "subscription_count": 1}
        assert 'push1st_mqtt_sessions{state="absent"} 1.0' in server.get("/metrics").body.decode()
        server.publish(name, "e", "21.5")
        assert watcher.expect("e", name) == 21.5
        with lasting() as client:
            assert watcher.expect("pusher_internal:member_added", name)["user_id"] == "ann"
            assert client.expect() == (name, b"21.5")
            assert users(server, name) == ["ann", "watcher"]
            client.unsubscribe(name)
        with paho_client(port, V311, channel, password=claims("ann")):
            assert 'push1st_mqtt_sessions{state="absent"} 0.0' in server.get("/metrics").body.decode()


def test_subscription_counts_include_exact_filters_only(server: ServerProcess, port: int, channel: str) -> None:
    with pusher_socket(server, "counting-key") as watcher:
        watcher.subscribe(channel)
        assert watcher.expect("pusher_internal:subscription_count", channel) == {"subscription_count": 1}
        with device(port, None, app="app-counting") as client:
            client.subscribe("#", channel)
            client.subscribe(channel)
            assert watcher.expect("pusher_internal:subscription_count", channel) == {"subscription_count": 2}
            with raw_socket(server, channel, key="counting-key"):
                assert watcher.expect("pusher_internal:subscription_count", channel) == {"subscription_count": 3}
                assert client.messages.empty()
            assert watcher.expect("pusher_internal:subscription_count", channel) == {"subscription_count": 2}
        assert watcher.expect("pusher_internal:subscription_count", channel) == {"subscription_count": 1}


def test_user_is_online_while_it_is_connected(server: ServerProcess, port: int) -> None:
    with pusher_socket(server) as watcher:
        sign_in(watcher, "watcher", watchlist=["olga"])
        assert statuses(watcher) == {"offline": ["olga"]}
        with device(port, "olga"):
            assert statuses(watcher) == {"online": ["olga"]}
        assert statuses(watcher) == {"offline": ["olga"]}


def test_event_to_a_user_reaches_all_its_devices(server: ServerProcess, port: int) -> None:
    with device(port, "uma") as one, device(port, "uma", V311) as two, device(port, "vera") as other:
        for client in (one, two):
            assert client.subscribe("$user/uma") == [0]
        assert other.subscribe("$user/uma") == [0x87]
        server.publish("#server-to-user-uma", "e", "hello")
        for client in (one, two):
            assert client.expect() == ("$user/uma", b"hello")
        other.subscribe("end")
        other.publish("end", "end")
        assert other.expect() == ("end", b"end")
