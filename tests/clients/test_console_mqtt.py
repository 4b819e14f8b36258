"""MQTT sessions, retained messages and the history of channels in the console, with paho clients, without and with a broker."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.support.console import Operator, console
from tests.support.paho import PahoClient, paho_client
from tests.support.process import APP, ServerProcess, free_ports, merged, wait_until
from tests.support.valkey import Valkey

SESSIONS = "/api/apps/app-test/mqtt/sessions"
RETAINED = "/api/apps/app-test/mqtt/retained"
CHANNELS = "/api/apps/app-test/channels"
HOSTILE = '<img src=x onerror="alert(1)">\u202e'


class Place(NamedTuple):
    server: ServerProcess
    operator: Operator
    port: int

    def get(self, path: str) -> dict[str, Any]:
        answer = self.operator.get(path)
        assert answer.status == 200, answer
        found: dict[str, Any] = answer.json
        return found

    def all(self, path: str, name: str) -> list[dict[str, Any]]:
        """Returns the entries of all pages of a list."""
        found: list[dict[str, Any]] = []
        after = ""
        while True:
            page = self.get(f"{path}&after={after}")
            found += page[name]
            if page["next"] is None:
                return found
            after = page["next"]


@pytest.fixture(scope="module", params=["one worker", "two workers"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    (port,) = free_ports(1)
    mqtt = {"listen": f"tcp://127.0.0.1:{port}", "push": ["public", "private", "presence"]}
    app = merged(APP, {"history": [{"filter": ["kept-*"], "size": 100, "ttl": 600}], "limits": {"payload": 60_000}})
    with contextlib.ExitStack() as stack:
        config: dict[str, Any] = {"server": {"proto": ["pusher", "mqtt"], "mqtt": mqtt, "drain": 0}}
        if request.param == "two workers":
            broker = Valkey()
            stack.callback(broker.close)
            config = merged(config, {"broker": broker.url, "server": {"workers": 2}})
        server, operator = stack.enter_context(console(config, {"app-test": app}))
        yield Place(server, operator.sign_in(), port)


@contextlib.contextmanager
def absent(place: Place, *clients: str) -> Iterator[None]:
    """Lets clients connect with a lasting session, subscribe and leave."""
    for name in clients:
        with paho_client(place.port, client_id=name, clean=False) as one:
            assert one.subscribe("news/+", qos=1) == [1]
            assert one.subscribe("plain", qos=0) == [0]
    wait_until(lambda: len(place.all(f"{SESSIONS}?state=absent&client={clients[0][:3]}", "sessions")) == len(clients), "absent")
    yield


def end_sessions(place: Place, *clients: str) -> None:
    for name in clients:
        with paho_client(place.port, client_id=name, clean=True):
            pass


def names(sessions: list[dict[str, Any]]) -> list[str]:
    return [one["client"] for one in sessions]


def test_connected_and_absent_sessions_are_listed(place: Place) -> None:
    before = time.time()
    with absent(place, "abs-1", "abs-2"), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(paho_client(place.port, client_id=f"con-{number}")) for number in range(5)]
        clients[0].subscribe("a/b", "a/#", qos=1)
        found = {one["client"]: one for one in place.all(f"{SESSIONS}?limit=2", "sessions")}
        assert sorted(found) == ["abs-1", "abs-2", *(f"con-{number}" for number in range(5))]
        connected, gone = found["con-0"], found["abs-1"]
        assert (connected["state"], connected["expires"], connected["owner"]) == ("connected", None, "anonymous")
        assert sorted(one["filter"] for one in connected["filters"]) == ["a/#", "a/b"]
        assert (connected["filter_count"], connected["waiting"], connected["inflight"]) == (2, 0, 0)
        assert len(connected["worker"]) == 16
        assert before - 1 < connected["since"] < time.time() + 1
        assert (gone["state"], gone["expiry"], gone["worker"], gone["waiting"]) == ("absent", 3600, "", 0)
        assert {one["filter"]: one["qos"] for one in gone["filters"]} == {"news/+": 1, "plain": 0}
        assert gone["expires"] - gone["since"] == pytest.approx(3600, abs=2)
        assert before - 2 < gone["since"] < time.time() + 2
        assert sorted(names(place.all(f"{SESSIONS}?limit=2&state=connected", "sessions"))) == [f"con-{n}" for n in range(5)]
        assert sorted(names(place.all(f"{SESSIONS}?limit=1&state=absent", "sessions"))) == ["abs-1", "abs-2"]
        assert names(place.all(f"{SESSIONS}?client=con-3", "sessions")) == ["con-3"]
        assert place.get(f"{SESSIONS}?client=nobody")["sessions"] == []
    end_sessions(place, "abs-1", "abs-2")


def test_names_of_clients_are_passed_on_unchanged(place: Place) -> None:
    with paho_client(place.port, client_id=HOSTILE):
        assert names(place.all(f"{SESSIONS}?limit=9", "sessions")) == [HOSTILE]


@contextlib.contextmanager
def publisher(place: Place) -> Iterator[PahoClient]:
    with paho_client(place.port) as one:
        yield one


def test_retained_messages_are_listed_and_deleted(place: Place) -> None:
    with publisher(place) as one:
        for number in range(7):
            one.publish(f"rooms/{number}/light", f"on {number}", qos=1, retain=True)
        one.publish("binary", b"\xff\x00", qos=1, retain=True)
        one.publish("large", b"x" * 9000 + "é".encode() * 900, qos=1, retain=True)
        one.until_acknowledged()
        found = {each["topic"]: each for each in place.all(f"{RETAINED}?limit=2", "retained")}
        assert sorted(found) == ["binary", "large", *(f"rooms/{number}/light" for number in range(7))]
        light = found["rooms/3/light"]
        assert light == {"topic": "rooms/3/light", "qos": 1, "bytes": 4, "expires": None, "cached": False}
        assert len(place.all(f"{RETAINED}?prefix=rooms/", "retained")) == 7
        data = {each["topic"]: each for each in place.all(f"{RETAINED}?data=1", "retained")}
        assert (data["rooms/3/light"]["data"], data["rooms/3/light"]["cut"]) == ("on 3", False)
        assert (data["binary"]["data"], data["binary"]["encoding"]) == ("/wA=", "base64")
        assert (data["large"]["bytes"], data["large"]["cut"]) == (10_800, True)
        assert len(data["large"]["data"].encode()) <= 10_000

        assert place.operator.request("DELETE", f"{RETAINED}?topic=rooms/3/light").json == {"deleted": True}
        assert place.operator.request("DELETE", f"{RETAINED}?topic=rooms/3/light").status == 404
        assert place.operator.request("DELETE", RETAINED).status == 404
        one.subscribe("rooms/#")
        assert sorted(one.expect()[0] for _ in range(6)) == [f"rooms/{n}/light" for n in range(7) if n != 3]
        wait_until(lambda: "action=delete-retained" in place.server.output, "the log line of the action")
    for topic in (*found, "rooms/3/light"):
        place.operator.request("DELETE", f"{RETAINED}?topic={topic}")
    assert place.get(RETAINED)["retained"] == []


def test_history_is_shown_in_pages_newest_first(place: Place) -> None:
    path = f"{CHANNELS}/kept-a/history"
    assert place.get(path)["items"] == []
    for number in range(5):
        assert place.server.publish("kept-a", "step", {"n": number}).status == 200
    place.server.publish("kept-a", "large", "x" * 20_000)
    first = place.get(f"{path}?limit=4")
    assert [one["offset"] for one in first["items"]] == [6, 5, 4, 3]
    large, step = first["items"][:2]
    assert (large["cut"], large["bytes"], large["data"]) == (True, 20_002, "x" * 10_000)
    assert (step["event"], step["cut"], step["sender"]) == ("step", False, "api")
    assert first["position"] == f"{first['epoch']}:6"
    assert abs(first["items"][0]["at"] - time.time()) < 60
    second = place.get(f"{path}?limit=4&after={first['next']}")
    assert ([one["offset"] for one in second["items"]], second["next"]) == ([2, 1], None)
    assert place.get(f"{path}?after={first['epoch']}:0")["items"] == []
    answer = place.operator.get(f"{CHANNELS}/other/history")
    assert answer.status == 404
    assert "keeps no history" in answer.json["error"]


def test_wrong_calls_are_refused(place: Place) -> None:
    for path in (f"{SESSIONS}?state=x", f"{SESSIONS}?after=x", f"{RETAINED}?after=x", f"{CHANNELS}/kept-a/history?after=x"):
        assert place.operator.get(path).status == 400, path
    for path in ("mqtt/sessions", "mqtt/retained", "channels/a/history"):
        assert place.operator.get(f"/api/apps/nothing/{path}").status == 404, path
    assert place.operator.request("DELETE", "/api/apps/nothing/mqtt/retained?topic=a").status == 404
