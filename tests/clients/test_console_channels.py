"""Channels and the event creator in the console, with clients of several protocols, without and with a broker."""

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest

from tests.support.console import Operator, console
from tests.support.process import APP, ServerProcess, merged, wait_until
from tests.support.pusher_socket import pusher_socket, sign_in
from tests.support.raw_socket import raw_socket
from tests.support.valkey import Valkey

CHANNELS = "/api/apps/app-test/channels"
EVENTS = "/api/apps/app-test/events"
HOSTILE = '<img src=x onerror="alert(1)">\u202e &amp; "'


class Place(NamedTuple):
    server: ServerProcess
    operator: Operator

    def get(self, path: str) -> dict[str, Any]:
        answer = self.operator.get(path)
        assert answer.status == 200, answer
        found: dict[str, Any] = answer.json
        return found

    def names(self, query: str = "", limit: int = 3) -> list[str]:
        """Returns the channels of all pages."""
        found: list[str] = []
        after = ""
        while True:
            page = self.get(f"{CHANNELS}?limit={limit}&after={quote(after)}&{query}")
            assert (page["complete"], page["away"]) == (True, "")
            found += [one["name"] for one in page["channels"]]
            if page["next"] is None:
                return found
            after = page["next"]

    def refused(self, path: str, body: Any = None) -> tuple[int, str]:
        answer = self.operator.get(path) if body is None else self.operator.post(path, body)
        return answer.status, answer.json["error"]


@pytest.fixture(scope="module", params=["one worker", "two workers"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with contextlib.ExitStack() as stack:
        config: dict[str, Any] = {"server": {"drain": 0}}
        if request.param == "two workers":
            broker = Valkey()
            stack.callback(broker.close)
            config = merged(config, {"broker": broker.url, "server": {"workers": 2}})
        apps = {"app-test": merged(APP, {"limits": {"payload": 20_000}}), "off": {**APP, "key": "k", "enable": False}}
        server, operator = stack.enter_context(console(config, apps))
        yield Place(server, operator.sign_in())


def test_channels_are_listed_by_beginning_and_kind(place: Place) -> None:
    kinds = {
        "public": ["news", "privates"],
        "private": ["private-a", "private-encrypted-a"],
        "presence": ["presence-a", "presence-cache-a"],
        "encrypted": ["private-encrypted-a"],
        "cache": ["cache-a", "presence-cache-a"],
        "protected": [],
    }
    with pusher_socket(place.server) as socket:
        for name in sorted({name for names in kinds.values() for name in names}):
            socket.request_subscription(name, {"user_id": "u1"} if name.startswith("presence") else None)
        every = {name for names in kinds.values() for name in names}
        wait_until(lambda: set(place.names()) == every, "all channels")
        assert sorted(place.names("kind=public")) == ["cache-a", "news", "privates"]
        for kind in ("private", "presence", "encrypted", "cache", "protected"):
            assert sorted(place.names(f"kind={kind}")) == kinds[kind], kind
        assert sorted(place.names("prefix=pr")) == sorted(name for name in every if name.startswith("pr"))
        assert place.names("prefix=private-e&kind=private") == ["private-encrypted-a"]
        assert place.names("prefix=news&kind=private") == []
        rows = {one["name"]: one for one in place.get(CHANNELS)["channels"]}
        assert rows["presence-cache-a"] == {"name": "presence-cache-a", "kind": "presence cache", "subscriptions": 1, "users": 1}
        assert rows["private-encrypted-a"]["kind"] == "private encrypted"
        assert rows["news"] == {"name": "news", "kind": "public", "subscriptions": 1, "users": None}
    wait_until(lambda: place.names() == [], "no channel")


def test_channel_has_members_cached_event_and_workers(place: Place) -> None:
    name = "presence-cache-room"
    member = {"user_id": "u1", "user_info": {"name": HOSTILE}}
    with pusher_socket(place.server) as one, pusher_socket(place.server) as two:
        one.subscribe(name, member)
        two.subscribe(name, {**member, "user_id": "u2"})
        place.server.publish(name, HOSTILE, {"text": HOSTILE})
        found = place.get(f"{CHANNELS}/{name}")
        assert (found["name"], found["kind"], found["subscriptions"], found["users"]) == (name, "presence cache", 2, 2)
        assert sorted(found["members"], key=lambda one: one["user_id"]) == [member, {**member, "user_id": "u2"}]
        assert found["cache"]["event"] == HOSTILE
        assert json.loads(found["cache"]["data"]) == {"text": HOSTILE}
        assert (found["cache"]["cut"], 1700 < found["cache"]["ttl"] <= 1800) == (False, True)
        assert sum(row["subscriptions"] for row in found["by_worker"]) == 2
        assert (found["missing"], found["away"]) == ([], "")
        place.server.publish(name, "long", "x" * 15_000)
        cached = place.get(f"{CHANNELS}/{name}")["cache"]
        assert (len(cached["data"]), cached["cut"], cached["bytes"]) == (10_000, True, 15_002)
    wait_until(lambda: place.get(f"{CHANNELS}/{name}")["by_worker"] == [], "no subscription")
    gone = place.get(f"{CHANNELS}/{name}")
    assert (gone["subscriptions"], gone["users"], gone["members"], gone["cache"]["event"]) == (0, 0, [], "long")
    plain = place.get(f"{CHANNELS}/nothing")
    assert (plain["users"], plain["members"], plain["cache"]) == (None, None, None)


def test_hostile_name_of_a_raw_client_is_shown_unharmed(place: Place) -> None:
    name = '<img src=x onerror="alert(1)">\u202e'
    with raw_socket(place.server, name):
        wait_until(lambda: place.names() == [name], "the channel")
        assert place.get(f"{CHANNELS}/{quote(name, safe='')}")["subscriptions"] == 1


def test_lists_are_refused_for_wrong_parameters(place: Place) -> None:
    assert place.refused("/api/apps/nobody/channels") == (404, "there is no app 'nobody'")
    assert place.refused(f"{CHANNELS}?kind=x")[0] == 400
    assert place.refused(f"{CHANNELS}?after=x") == (
        400,
        "this page of the list does not exist any more: begin with the first page",
    )
    assert place.refused(f"{CHANNELS}?limit=500")[0] == 400
    assert place.refused(f"{CHANNELS}/%23server-to-user-1") == (400, "channel names that begin with # are reserved")
    assert place.refused(f"{CHANNELS}/%00")[0] == 400


def test_event_is_published_on_a_channel_and_to_a_user(place: Place) -> None:
    with pusher_socket(place.server) as socket:
        sign_in(socket, "user|1")
        socket.subscribe("news")
        socket.request_subscription("#server-to-user-user|1")
        socket.round_trip()
        event = {"name": HOSTILE, "data": json.dumps({"text": HOSTILE}), "channel": "news"}
        answer = place.operator.post(EVENTS, event)
        assert (answer.status, answer.json["channels"]) == (200, {"news": 1})
        assert socket.expect(HOSTILE, "news") == {"text": HOSTILE}
        assert place.operator.post(EVENTS, {"name": "many", "data": {"n": 1}, "channels": ["news", "b"]}).status == 200
        assert socket.expect("many", "news") == {"n": 1}
        answer = place.operator.post(EVENTS, {"name": "mine", "data": {"n": 2}, "user": "user|1"})
        assert (answer.status, answer.json["channels"], answer.json["notes"]) == (200, {"#server-to-user-user|1": 1}, [])
        assert socket.expect("mine", "#server-to-user-user|1") == {"n": 2}
    actions = re.findall(
        r"console action .*(action=.*) app=app-test ip=127.0.0.1 (target=.*?)(?: worker=\d)?\n", place.server.output
    )
    assert actions[-3:] == [
        ("action=publish", "target=news"),
        ("action=publish", "target='news, b'"),
        ("action='publish to user'", "target=user|1"),
    ]
    assert HOSTILE not in place.server.output


def test_answer_notes_which_clients_cannot_subscribe(place: Place) -> None:
    with raw_socket(place.server, "bad%20channel%2Fx") as client:
        place.server.until_sessions("bad channel/x", 1)
        answer = place.operator.post(EVENTS, {"name": "e", "data": "x", "channel": "bad channel/x"})
        assert (answer.status, answer.json["channels"]) == (200, {"bad channel/x": 1})
        (note,) = answer.json["notes"]
        assert note.startswith("Pusher clients cannot subscribe to bad channel/x: channel name 'bad channel/x' has characters ")
        assert client.expect("e", "bad channel/x") == "x"


def test_event_is_refused_like_in_the_http_api(place: Place) -> None:
    event = {"name": "e", "data": "x"}
    assert place.refused(EVENTS, event)[0] == 400
    assert place.refused(EVENTS, {**event, "user": "u", "channel": "c"}) == (400, "user and channel are both given")
    assert place.refused(EVENTS, {**event, "user": 7})[0] == 400
    assert place.refused(EVENTS, {**event, "user": ""})[0] == 400
    assert place.refused(EVENTS, {**event, "channel": "#x"}) == (400, "channel names that begin with # are reserved")
    assert place.refused(EVENTS, {**event, "channel": "c", "name": "pusher:x"})[0] == 400
    assert place.refused(EVENTS, {**event, "channel": "c", "data": "x" * 20_001})[0] == 413
    assert place.refused(EVENTS, b"{")[0] == 400
    assert place.refused(EVENTS, b'{"name":"e","data":"\xff","user":"u"}')[0] == 400
    assert place.refused("/api/apps/off/events", {**event, "channel": "c"}) == (403, "app 'off' is disabled")
    assert place.refused("/api/apps/nobody/events", {**event, "channel": "c"})[0] == 404
    assert place.operator.post(EVENTS, {**event, "channel": "c"}, Push1st_Console=None).status == 403


def test_broker_that_is_away_leaves_the_channels_of_one_worker() -> None:
    broker = Valkey()
    with contextlib.closing(broker), console({"broker": broker.url, "server": {"drain": 0}}) as (server, operator):
        place = Place(server, operator.sign_in())
        with pusher_socket(server) as socket:
            for number in range(5):
                socket.subscribe(f"c{number}")
            socket.subscribe("presence-c", {"user_id": "u"})
            broker.close()
            wait_until(lambda: place.get(CHANNELS)["away"], "the reason")
            page = place.get(f"{CHANNELS}?limit=2")
            assert len(page["channels"]) == 2
            rest = place.get(f"{CHANNELS}?limit=9&after={quote(page['next'])}")
            names = {one["name"] for one in page["channels"] + rest["channels"]}
            assert names == {"presence-c", *(f"c{number}" for number in range(5))}
            (listed,) = place.get(f"{CHANNELS}?prefix=presence-")["channels"]
            assert (listed["subscriptions"], listed["users"]) == (1, None), "as on the channel's own page"
            found = place.get(f"{CHANNELS}/c1")
            assert (found["subscriptions"], len(found["by_worker"]), bool(found["away"])) == (1, 1, True)
            present = place.get(f"{CHANNELS}/presence-c")
            assert (present["subscriptions"], present["users"], present["members"]) == (1, None, None), (
                "the broker has the members"
            )
