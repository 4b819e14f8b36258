"""Signed-in users: sign-in, the channel of a user, watchlists, termination (Pusher protocol, section 5)."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.support.nodejs import NodeProcess
from tests.support.process import APP, ServerProcess, merged, running, wait_until
from tests.support.pusher_socket import PusherSocket, ask_to_sign_in, sign_in, statuses
from tests.support.signing import channel_auth, hmac_hex

APPS = {"app-other": merged(APP, {"key": "other-key"})}
SECRET = "secret"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running(apps=APPS) as process:
        yield process


@pytest.fixture
def user(channel: str) -> Callable[[str], str]:
    """Makes ids of users that no other test has."""
    return lambda name: f"{name}-{channel}"


def may_join(client: PusherSocket, name: str) -> bool:
    client.send("pusher:subscribe", {"channel": name, "auth": channel_auth(client.socket_id, name, key=client.key)})
    event: str = client.receive()["event"]
    if event == "pusher:subscription_error":
        client.expect_error()
    return event == "pusher_internal:subscription_succeeded"


def terminate(server: ServerProcess, id: str, app: str = "app-test", key: str = "app-key") -> None:
    answer = server.signed("POST", f"/apps/{app}/users/{id}/terminate_connections", key=key)
    assert (answer.status, answer.body) == (200, b"{}")


# -- signing in


def test_user_data_is_returned_as_signed(connect: Callable[..., PusherSocket], user: Callable[[str], str]) -> None:
    client = connect()
    text = '{ "more": [1.50, "\\u00e9"], "id" : "USER", "user_info": {"name": "A"} }'.replace("USER", user("u"))
    ask_to_sign_in(client, text)
    assert client.expect("pusher:signin_success") == {"user_data": text}
    assert client.round_trip() == []


def test_the_signature_may_come_without_the_key(connect: Callable[..., PusherSocket], user: Callable[[str], str]) -> None:
    client = connect()
    text = json.dumps({"id": user("u")})
    client.send("pusher:signin", {"auth": hmac_hex(SECRET, f"{client.socket_id}::user::{text}"), "user_data": text})
    client.expect("pusher:signin_success")


@pytest.mark.parametrize("wrong", ["secret", "socket", "none", "of a channel", "of other data"])
def test_wrong_signature_is_answered_with_an_error_without_a_code(
    connect: Callable[..., PusherSocket], user: Callable[[str], str], wrong: str
) -> None:
    client, other = connect(), connect()
    text = json.dumps({"id": user("u")})
    if wrong == "secret":
        ask_to_sign_in(client, text, secret="wrong")
    elif wrong == "socket":
        ask_to_sign_in(client, text, socket_id=other.socket_id)
    elif wrong == "none":
        client.send("pusher:signin", {"user_data": text})
    elif wrong == "of a channel":
        client.send("pusher:signin", {"user_data": text, "auth": channel_auth(client.socket_id, "private-c", text)})
    else:
        auth = f"app-key:{hmac_hex(SECRET, f'{client.socket_id}::user::{text}')}"
        client.send("pusher:signin", {"user_data": text.replace("u-", "v-"), "auth": auth})
    error = client.expect_error()
    assert error["code"] is None
    assert error["message"].startswith("Invalid signature: ")
    assert not may_join(client, f"#server-to-user-{user('u')}")
    assert client.round_trip() == []


@pytest.mark.parametrize(
    "user_data",
    [
        '{"id":""}',
        '{"id":7.5}',
        '{"id":true}',
        '{"id":null}',
        '{"id":["u"]}',
        "{}",
        "[]",
        '"u"',
        "not json",
        "",
        json.dumps({"id": "u" * 129}),
        json.dumps({"id": "a\nb"}),
        '{"id":"u","watchlist":"v"}',
        '{"id":"u","watchlist":[7.5]}',
    ],
    ids=lambda text: text[:30],
)
def test_user_data_without_a_user_is_rejected_and_the_socket_stays(connect: Callable[..., PusherSocket], user_data: str) -> None:
    client = connect()
    ask_to_sign_in(client, user_data)
    assert client.expect_error()["code"] is None
    assert not may_join(client, "#server-to-user-u")
    assert not may_join(client, "#server-to-user-7.5")
    assert client.round_trip() == []


def test_a_socket_that_is_one_user_cannot_become_another(
    server: ServerProcess, connect: Callable[..., PusherSocket], user: Callable[[str], str]
) -> None:
    client, watcher = connect(), connect()
    sign_in(client, user("one"))
    sign_in(watcher, user("watcher"), watchlist=[user("two")])
    assert statuses(watcher) == {"offline": [user("two")]}
    ask_to_sign_in(client, {"id": user("two")})
    assert client.expect_error()["code"] is None
    assert not may_join(client, f"#server-to-user-{user('two')}")
    assert may_join(client, f"#server-to-user-{user('one')}")
    assert watcher.round_trip() == []
    terminate(server, user("two"))
    client.round_trip()
    terminate(server, user("one"))
    assert client.close_code() == 4009


def test_signing_in_again_as_the_same_user_succeeds_and_changes_nothing(
    connect: Callable[..., PusherSocket], user: Callable[[str], str]
) -> None:
    watcher, client = connect(), connect()
    sign_in(watcher, user("w"), watchlist=[user("u")])
    assert statuses(watcher) == {"offline": [user("u")]}
    for _ in range(3):
        sign_in(client, user("u"))
    assert statuses(watcher) == {"online": [user("u")]}
    client.close()
    assert statuses(watcher) == {"offline": [user("u")]}
    assert watcher.round_trip() == []


# -- the channel of a user


def test_user_joins_its_channel_without_a_signature_and_receives_on_each_socket(
    server: ServerProcess, connect: Callable[..., PusherSocket], user: Callable[[str], str]
) -> None:
    name = f"#server-to-user-{user('u')}"
    sockets = [connect() for _ in range(3)]
    for client in sockets:
        sign_in(client, user("u"))
        client.send("pusher:subscribe", {"auth": "", "channel": name})
        client.expect("pusher_internal:subscription_succeeded", name)
    sign_in(other := connect(), user("v"))
    assert server.signed("POST", "/apps/app-test/events", {"name": "e", "channels": [name], "data": "{}"}).body == b"{}"
    for client in sockets:
        assert client.expect("e", name) == {}
    assert other.round_trip() == []
    sockets[0].send("pusher:unsubscribe", {"channel": name})
    sockets[0].round_trip()
    assert server.publish(name, "e", 1).json["channels"] == {name: 2}
    assert sockets[0].round_trip() == []


def test_the_channel_of_another_user_is_closed(connect: Callable[..., PusherSocket], user: Callable[[str], str]) -> None:
    stranger, client = connect(), connect()
    sign_in(client, user("u"))
    for name in (f"#server-to-user-{user('v')}", "#server-to-user-", "#server-to-user", f"#Server-to-user-{user('u')}"):
        assert not may_join(client, name)
    assert not may_join(stranger, f"#server-to-user-{user('u')}")


def test_other_channel_names_with_a_number_sign_are_rejected(
    connect: Callable[..., PusherSocket], user: Callable[[str], str]
) -> None:
    client = connect()
    sign_in(client, user("u"), watchlist=[user("v")])
    statuses(client)
    for name in ("#", "#c", "#private-c", f"#user-{user('u')}", f"#watch-{user('v')}", f"#watch-{user('u')}"):
        client.send("pusher:subscribe", {"channel": name, "auth": channel_auth(client.socket_id, name)})
        assert client.expect_refusal(name)["status"] == 403


def test_a_client_event_on_the_channel_of_a_user_is_refused(
    connect: Callable[..., PusherSocket], user: Callable[[str], str]
) -> None:
    name = f"#server-to-user-{user('u')}"
    one, other = connect(), connect()
    for client in (one, other):
        sign_in(client, user("u"))
        assert may_join(client, name)
    one.send("client-e", {}, name)
    one.expect_error()
    assert other.round_trip() == []


def test_channels_of_users_are_in_no_list(
    server: ServerProcess, connect: Callable[..., PusherSocket], user: Callable[[str], str]
) -> None:
    client = connect()
    sign_in(client, user("u"), watchlist=[user("v")])
    statuses(client)
    assert may_join(client, f"#server-to-user-{user('u')}")
    assert not [name for name in server.signed("GET", "/apps/app-test/channels").json["channels"] if name.startswith("#")]
    assert not [entry for entry in server.get("/apps/app-test/channels").json if entry["channel"].startswith("#")]


@pytest.mark.parametrize("name", ["#", "#c", "#user-u", "#watch-u", "#server-to-user-"])
def test_backends_publish_to_no_other_name_with_a_number_sign(server: ServerProcess, name: str) -> None:
    for path, body in (
        ("events", {"name": "e", "channels": [name], "data": "1"}),
        ("batch_events", {"batch": [{"name": "e", "channel": name, "data": "1"}]}),
    ):
        answer = server.signed("POST", f"/apps/app-test/{path}", body)
        assert answer.status == 400, answer
        assert "#" in answer.json["error"] or "user id ''" in answer.json["error"]


# -- watchlists


def test_signed_in_user_gets_the_online_and_offline_users_of_its_watchlist(
    connect: Callable[..., PusherSocket], user: Callable[[str], str]
) -> None:
    sign_in(connect(), user("a"))
    sign_in(connect(), user("b"))
    client = connect()
    sign_in(client, user("u"), watchlist=[user(one) for one in "cbad"])
    assert statuses(client) == {"online": [user("b"), user("a")], "offline": [user("c"), user("d")]}
    assert client.round_trip() == []


@pytest.mark.parametrize("more", [{}, {"watchlist": []}, {"watchlist": None}], ids=["none", "empty", "null"])
def test_user_without_a_watchlist_gets_no_watchlist_events(
    connect: Callable[..., PusherSocket], user: Callable[[str], str], more: dict[str, Any]
) -> None:
    client = connect()
    sign_in(client, user("u"), **more)
    sign_in(connect(), user("v"))
    assert client.round_trip() == []


def test_a_watched_user_comes_online_with_its_first_socket_and_goes_offline_with_its_last(
    connect: Callable[..., PusherSocket], user: Callable[[str], str]
) -> None:
    watcher = connect()
    sign_in(watcher, user("w"), watchlist=[user("u"), user("v")])
    assert statuses(watcher) == {"offline": [user("u"), user("v")]}
    sockets = [connect() for _ in range(3)]
    for client in sockets:
        sign_in(client, user("u"))
    assert statuses(watcher) == {"online": [user("u")]}
    sockets.pop(0).close()
    sockets.pop().connection.socket.close()
    assert watcher.round_trip() == []
    sockets.pop().close()
    assert statuses(watcher) == {"offline": [user("u")]}
    sign_in(connect(), user("u"))
    assert statuses(watcher) == {"online": [user("u")]}
    assert watcher.round_trip() == []


def test_watchlist_events_reach_each_socket_of_the_watcher_only(
    connect: Callable[..., PusherSocket], user: Callable[[str], str]
) -> None:
    watchers = [connect(), connect()]
    for watcher in watchers:
        sign_in(watcher, user("w"), watchlist=[user("u")])
        statuses(watcher)
    sign_in(bystander := connect(), user("b"), watchlist=[user("c")])
    statuses(bystander)
    sign_in(client := connect(), user("u"))
    for watcher in watchers:
        assert statuses(watcher) == {"online": [user("u")]}
    assert bystander.round_trip() == []
    assert client.round_trip() == []


def test_user_that_watches_itself_is_online_and_gets_no_further_events(
    connect: Callable[..., PusherSocket], user: Callable[[str], str]
) -> None:
    first, second = connect(), connect()
    sign_in(first, user("u"), watchlist=[user("u")])
    assert statuses(first) == {"online": [user("u")]}
    sign_in(second, user("u"), watchlist=[user("u")])
    assert statuses(second) == {"online": [user("u")]}
    second.close()
    third = connect()
    sign_in(third, user("u"))
    assert first.round_trip() == []


def test_of_a_watchlist_that_is_too_long_the_first_hundred_are_watched(
    connect: Callable[..., PusherSocket], user: Callable[[str], str]
) -> None:
    names = [user(f"u{number}") for number in range(101)]
    watcher = connect()
    sign_in(watcher, user("w"), watchlist=names)
    assert statuses(watcher) == {"offline": names[:100]}
    assert watcher.expect_error()["code"] == 4302
    sign_in(connect(), names[100])
    assert watcher.round_trip() == []
    sign_in(connect(), names[99])
    assert statuses(watcher) == {"online": [names[99]]}


def test_a_watchlist_of_exactly_a_hundred_is_no_overflow(
    connect: Callable[..., PusherSocket], user: Callable[[str], str]
) -> None:
    names = [user(f"u{number}") for number in range(100)]
    watcher = connect()
    sign_in(watcher, user("w"), watchlist=[*names, names[0]])
    assert statuses(watcher) == {"offline": names}
    assert watcher.round_trip() == []


def test_only_signed_in_users_are_online(
    server: ServerProcess, connect: Callable[..., PusherSocket], user: Callable[[str], str], channel: str
) -> None:
    """A member of a presence channel, a failed sign-in, and a user of another app are not online."""
    watcher = connect()
    connect().subscribe(f"presence-{channel}", {"user_id": user("u")})
    ask_to_sign_in(failed := connect(), {"id": user("u")}, secret="wrong")
    failed.expect_error()
    sign_in(connect("other-key"), user("u"))
    sign_in(watcher, user("w"), watchlist=[user("u")])
    assert statuses(watcher) == {"offline": [user("u")]}
    assert watcher.round_trip() == []


# -- terminating


def test_terminating_closes_every_socket_on_which_the_user_has_signed_in_and_no_other(
    server: ServerProcess, connect: Callable[..., PusherSocket], user: Callable[[str], str], channel: str
) -> None:
    name = f"presence-{channel}"
    signed_in = [connect(), connect()]
    member, elsewhere, watcher = connect(), connect("other-key"), connect()
    for client in (*signed_in, elsewhere):
        sign_in(client, user("u"))
    sign_in(watcher, user("w"), watchlist=[user("u")])
    assert statuses(watcher) == {"online": [user("u")]}
    member.subscribe(name, {"user_id": user("u")})
    terminate(server, user("u"))
    for client in signed_in:
        assert client.close_code() == 4009
        assert client.connection.close_reason == "Terminated by the app"
    assert statuses(watcher) == {"offline": [user("u")]}
    for client in (member, elsewhere, watcher):
        assert client.round_trip() == []


def test_terminated_user_may_sign_in_again(
    server: ServerProcess, connect: Callable[..., PusherSocket], user: Callable[[str], str]
) -> None:
    sign_in(first := connect(), user("u"))
    terminate(server, user("u"))
    assert first.close_code() == 4009
    sign_in(second := connect(), user("u"))
    assert second.round_trip() == []


def test_events_sent_before_a_termination_are_delivered_before_the_close(
    server: ServerProcess, connect: Callable[..., PusherSocket], user: Callable[[str], str]
) -> None:
    name = f"#server-to-user-{user('u')}"
    client = connect()
    sign_in(client, user("u"))
    assert may_join(client, name)
    server.publish(name, "goodbye", 1)
    terminate(server, user("u"))
    assert client.expect("goodbye", name) == 1
    assert client.expect_error()["code"] == 4009
    with pytest.raises(ConnectionClosed):
        client.receive()


def test_an_event_between_signin_success_and_the_subscription_is_delivered_once(
    server: ServerProcess, connect: Callable[..., PusherSocket], user: Callable[[str], str]
) -> None:
    name = f"#server-to-user-{user('u')}"
    client = connect()
    sign_in(client, user("u"))
    assert server.publish(name, "paid", 1).json["channels"] == {name: 0}
    assert server.signed("GET", f"/apps/app-test/channels/%23server-to-user-{user('u')}").json == {"occupied": False}
    assert client.round_trip() == []
    client.subscribe(name)
    assert server.publish(name, "paid", 2).json["channels"] == {name: 1}
    assert [client.expect("paid", name) for _ in range(2)] == [1, 2]
    assert client.round_trip() == []


@pytest.mark.long
def test_event_to_a_user_without_a_subscription_is_delivered_after_ten_seconds(
    server: ServerProcess, connect: Callable[..., PusherSocket], user: Callable[[str], str]
) -> None:
    name = f"#server-to-user-{user('u')}"
    client = connect()
    sign_in(client, user("u"))
    server.publish(name, "paid", 1)
    assert client.receive(deadline=15)["event"] == "paid"


# -- the presence shortcut (section 3)


def test_a_signed_in_user_joins_a_presence_channel_without_channel_data(
    server: ServerProcess, connect: Callable[..., PusherSocket], user: Callable[[str], str], channel: str
) -> None:
    name = f"presence-{channel}"
    watcher, client = connect(), connect()
    watcher.subscribe(name, {"user_id": "watcher"})
    sign_in(client, user("u"), user_info={"name": "A"})
    assert client.subscribe(name)["presence"] == {
        "ids": ["watcher", user("u")],
        "hash": {"watcher": None, user("u"): {"name": "A"}},
        "count": 2,
    }
    assert watcher.expect("pusher_internal:member_added", name) == {"user_id": user("u"), "user_info": {"name": "A"}}
    client.send("client-e", {}, name)
    assert watcher.receive() == {"event": "client-e", "channel": name, "data": "{}", "user_id": user("u")}
    assert server.signed("GET", f"/apps/app-test/channels/{name}/users").json == {"users": [{"id": "watcher"}, {"id": user("u")}]}
    client.close()
    assert watcher.expect("pusher_internal:member_removed", name) == {"user_id": user("u")}


def test_channel_data_overrides_the_signed_in_user(
    connect: Callable[..., PusherSocket], user: Callable[[str], str], channel: str
) -> None:
    client = connect()
    sign_in(client, user("u"), user_info={"name": "A"})
    assert client.subscribe(f"presence-{channel}", {"user_id": "other"})["presence"]["hash"] == {"other": None}


def test_client_without_a_sign_in_needs_channel_data(connect: Callable[..., PusherSocket], channel: str) -> None:
    client = connect()
    client.request_subscription(f"presence-{channel}")
    assert client.expect_refusal(f"presence-{channel}")["status"] == 400


def test_a_signed_in_user_that_is_too_large_for_a_member_is_refused_as_one(
    connect: Callable[..., PusherSocket], channel: str
) -> None:
    client = connect()
    sign_in(client, "u", user_info="x" * 1024)
    client.request_subscription(f"presence-{channel}")
    assert client.expect_refusal(f"presence-{channel}")["status"] == 413
    assert client.round_trip() == []


# -- pusher-js


@pytest.fixture
def pusher_js(server: ServerProcess, node: Callable[..., NodeProcess]) -> Callable[..., NodeProcess]:
    """Makes connected pusher-js clients, whose backend is the `pusher` server library."""

    def start(id: str, watchlist: list[str] | None = None, member: Any = None, text: str = "") -> NodeProcess:
        user_data = {"id": id, "user_info": {"name": f"Name of {id}"}, "watchlist": watchlist or []}
        address = {"wsHost": "127.0.0.1", "wsPort": server.ws_port}
        process = node(
            "pusher_more.mjs", key="app-key", secret=SECRET, client=address, userData=user_data, userText=text, member=member
        )
        process.next(on="state", state="connected")
        return process

    return start


def until_joined(server: ServerProcess, id: str) -> None:
    path = f"/apps/app-test/channels/%23server-to-user-{id}"
    wait_until(lambda: server.signed("GET", path).json["occupied"], "the library has joined its user's channel")


def test_pusher_js_signs_in_and_receives_events_of_its_user(
    server: ServerProcess, pusher_js: Callable[..., NodeProcess], user: Callable[[str], str]
) -> None:
    client = pusher_js(user("u"))
    client.tell("signin", events=["paid"])
    client.next(on="message", event="pusher:signin_success")
    assert client.ask("user")["id"] == user("u")
    until_joined(server, user("u"))
    server.publish(f"#server-to-user-{user('u')}", "paid", {"id": 7})
    assert client.next(on="user_event")["data"] == {"id": 7}


def test_pusher_js_receives_events_of_its_user_right_after_its_sign_in(
    server: ServerProcess, pusher_js: Callable[..., NodeProcess], connect: Callable[..., PusherSocket], user: Callable[[str], str]
) -> None:
    """A watcher gets the user's online event before pusher-js has subscribed, and the backend then publishes to the user."""
    watcher = connect()
    sign_in(watcher, "w", watchlist=[user("u")])
    statuses(watcher)
    client = pusher_js(user("u"))
    client.tell("signin", events=["welcome"])
    assert statuses(watcher) == {"online": [user("u")]}
    server.publish(f"#server-to-user-{user('u')}", "welcome", {"id": 7})
    assert client.next(on="user_event")["data"] == {"id": 7}
    until_joined(server, user("u"))
    assert [seen["on"] for seen in client.seen].count("user_event") == 1


def test_pusher_js_signs_in_as_a_user_whose_id_is_a_number(
    server: ServerProcess, pusher_js: Callable[..., NodeProcess], connect: Callable[..., PusherSocket]
) -> None:
    """Backends without a server library send such ids; the library of this test accepts only texts."""
    sign_in(connect(), "90210")
    client = pusher_js("", text='{"id": 90125, "watchlist": [90210, "90211"], "user_info": {"name": "A"}}')
    client.tell("signin", events=["paid"])
    assert client.next(on="online")["users"] == ["90210"]
    assert client.next(on="offline")["users"] == ["90211"]
    until_joined(server, "90125")
    server.publish("#server-to-user-90125", "paid", {"id": 7})
    assert client.next(on="user_event")["data"] == {"id": 7}
    assert client.ask("user")["id"] == "90125"


def test_pusher_js_receives_watchlist_changes(
    pusher_js: Callable[..., NodeProcess], connect: Callable[..., PusherSocket], user: Callable[[str], str]
) -> None:
    sign_in(connect(), user("a"))
    client = pusher_js(user("u"), watchlist=[user("a"), user("b")])
    client.tell("signin")
    assert client.next(on="online")["users"] == [user("a")]
    assert client.next(on="offline")["users"] == [user("b")]
    sign_in(other := connect(), user("b"))
    assert client.next(on="online")["users"] == [user("b")]
    other.close()
    assert client.next(on="offline")["users"] == [user("b")]


def test_pusher_js_gets_an_error_for_a_too_long_watchlist_and_stays_signed_in(
    pusher_js: Callable[..., NodeProcess], user: Callable[[str], str]
) -> None:
    client = pusher_js(user("u"), watchlist=[f"w{number}" for number in range(101)])
    client.tell("signin")
    client.next(on="error", code=4302)
    assert client.ask("user")["id"] == user("u")
    assert client.ask("connection") == {"state": "connected", "retries": False}


def test_pusher_js_joins_a_presence_channel_as_the_user_it_signed_in(
    pusher_js: Callable[..., NodeProcess], user: Callable[[str], str], channel: str
) -> None:
    client = pusher_js(user("u"))
    client.tell("signin")
    client.tell("subscribe", channel=f"presence-{channel}")
    assert client.next(on="subscribed", channel=f"presence-{channel}")["me"] == user("u")


def test_pusher_js_stays_disconnected_after_a_termination(
    server: ServerProcess, pusher_js: Callable[..., NodeProcess], user: Callable[[str], str]
) -> None:
    client = pusher_js(user("u"))
    client.tell("signin")
    client.next(on="message", event="pusher:signin_success")
    terminate(server, user("u"))
    client.next(on="error", code=4009)
    client.next(on="state", state="disconnected")
    assert client.ask("connection") == {"state": "disconnected", "retries": False}
