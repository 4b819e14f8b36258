"""The inspector on a real server: each kind of event with real clients of all protocols, filters, floods and its end."""

import contextlib
import http.client
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from push1st.core.tap import MAX_RATE, TapKind
from tests.support.console import LivePage, Operator, console, live
from tests.support.paho import paho_client
from tests.support.process import APP, DEADLINE, ServerProcess, free_ports, merged, wait_until
from tests.support.pusher_socket import ask_to_sign_in, pusher_socket, sign_in
from tests.support.raw_socket import raw_socket
from tests.support.receiver import Got, Receiver, receiving

Event = dict[str, Any]
Place = tuple[ServerProcess, Operator]
SECRET = "canary-secret-of-the-app"


class Watching:
    """An operator who watches. events: all events so far."""

    def __init__(self, page: LivePage) -> None:
        self.page = page
        self.events: list[Event] = []
        self.dropped: dict[str, int] = {}

    def receive(self) -> None:
        message = self.page.receive()
        assert "error" not in message, message
        self.events += message["events"]
        for kind, count in message["dropped"].items():
            self.dropped[kind] = self.dropped.get(kind, 0) + count

    def until(self, wanted: Callable[[Event], object], count: int = 1) -> Event:
        """Returns the last of `count` events that fit."""
        deadline = time.monotonic() + DEADLINE
        while len(found := [one for one in self.events if wanted(one)]) < count:
            assert time.monotonic() < deadline, self.events
            self.receive()
        assert len(found) == count, found
        return found[-1]

    def until_kind(self, what: TapKind, **fields: Any) -> Event:
        """Returns the only event of a kind that has these fields."""
        return self.until(lambda one: one["what"] == what and fields.items() <= one.items())


@contextlib.contextmanager
def watching(operator: Operator, **filter: Any) -> Iterator[Watching]:
    with live(operator) as page:
        page.send({"watch": "inspector", "filter": filter})
        assert {"events": [], "dropped": {}}.items() <= page.receive().items()
        yield Watching(page)


def decide(got: Got) -> int | dict[str, Any]:
    """Answers hooks with 500 on `private-broken`, and decides that nobody may subscribe to `private-closed`."""
    if "events" in got.json:
        return 500 if any(event.get("channel") == "broken" for event in got.events) else 200
    return {"allow": got.json.get("channel") != "private-closed", "message": "this channel is closed"}


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as one:
        one.act = decide
        yield one


@pytest.fixture(scope="module")
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def place(receiver: Receiver, port: int) -> Iterator[Place]:
    mqtt = {"listen": f"tcp://127.0.0.1:{port}", "push": ["public"]}
    hook = {"url": receiver.url, "events": ["channel_occupied"], "filter": ["hooked", "broken"]}
    authorize = {"url": receiver.url, "on": ["subscribe"], "filter": ["private-closed", "private-open"]}
    apps = {
        "app-test": merged(APP, {"webhooks": [hook], "authorize": [authorize]}),
        "app-other": {**APP, "key": "other-key", "secret": SECRET},
    }
    config = {"server": {"proto": ["pusher", "websocket", "sse", "mqtt"], "mqtt": mqtt, "drain": 0}}
    with console(config, apps) as (server, operator):
        yield server, operator.sign_in()


# Events


def test_pusher_client_is_shown(place: Place) -> None:
    server, operator = place
    with watching(operator, app="app-test") as seen:
        with pusher_socket(server) as client:
            where = {"socket": client.socket_id, "ip": "127.0.0.1", "protocol": "pusher", "app": "app-test"}
            seen.until_kind("connected", **where)
            client.subscribe("news")
            client.subscribe("presence-room", {"user_id": "ann"})
            seen.until_kind("subscribed", channel="news", **where)
            seen.until_kind("subscribed", channel="presence-room", user="ann", **where)
            sign_in(client, "bob")
            seen.until_kind("signed-in", user="bob", **where)
            client.send("client-typing", {"a": 1}, "presence-room")
            event = seen.until_kind("client-event", channel="presence-room", user="ann", **where)
            assert (event["event"], event["size"], "data" in event) == ("client-typing", 8, False)
            client.send("pusher:unsubscribe", {"channel": "news"})
            seen.until_kind("unsubscribed", channel="news", **where)
        ended = seen.until_kind("disconnected", user="bob", **where)
        assert ended["code"] == 1000
        assert ended["ms"] > 0
        assert not [event for event in seen.events if event["what"] == "cut-off"], "the client closed the connection"
        assert {event["worker"] for event in seen.events} == {seen.events[0]["worker"]}
        assert [event["at"] for event in seen.events] == sorted(event["at"] for event in seen.events)


def test_clients_of_all_other_protocols_are_shown(place: Place, port: int) -> None:
    server, operator = place
    with watching(operator, channel="all", data=True) as seen, watching(operator, what=["connected", "disconnected"]) as ends:
        with raw_socket(server, "all-raw"):
            seen.until_kind("subscribed", channel="all-raw", protocol="websocket")
        stream = http.client.HTTPConnection("127.0.0.1", server.ws_port, timeout=DEADLINE)
        stream.request("GET", "/sse/app/app-key/all-sse")
        assert stream.getresponse().status == 200
        seen.until_kind("subscribed", channel="all-sse", protocol="sse")
        stream.close()
        poll = http.client.HTTPConnection("127.0.0.1", server.ws_port, timeout=DEADLINE)
        poll.request("POST", "/pusher/app/app-key/7/session0/xhr?protocol=7&client=js&version=8", b"")
        assert poll.getresponse().status == 200
        poll.close()
        with paho_client(port, client_id="device") as device:
            device.subscribe("all-mqtt/+/x", "all-mqtt/one")
            assert seen.until_kind("subscribed", channel="all-mqtt.+.x")["socket"].startswith("device.")
            seen.until_kind("subscribed", channel="all-mqtt.one")
            device.publish("all-mqtt/one", b"\xff\x00")
            event = seen.until_kind("client-event", channel="all-mqtt.one")
            assert (event["data"], event["encoding"], event["protocol"]) == ("/wA=", "base64", "mqtt5")
            device.unsubscribe("all-mqtt/+/x")
            seen.until_kind("unsubscribed", channel="all-mqtt.+.x")
        for protocol in ("websocket", "sse", "mqtt5"):
            connected = ends.until_kind("connected", protocol=protocol)
            ended = ends.until_kind("disconnected", socket=connected["socket"])
            assert ended["ms"] > 0
            assert abs(ended["ms"] - 1000 * (ended["at"] - connected["at"])) < 100
        ends.until_kind("connected", protocol="pusher-xhr")


def test_client_is_found_by_the_id_that_it_chose(place: Place, port: int) -> None:
    server, operator = place
    with watching(operator, socket="dev1") as device, watching(operator, socket="zz") as raw:
        with paho_client(port, client_id="dev1") as client, paho_client(port, client_id="dev"), raw_socket(server, "news"):
            client.subscribe("own")
            client.publish("own", b"1")
        with raw_socket(server, "news", query="session=zz"):
            raw.until_kind("subscribed", channel="news")
        raw.until_kind("disconnected")
        device.until_kind("disconnected")
        kinds = [event["what"] for event in device.events]
        assert kinds == ["connected", "subscribed", "client-event", "disconnected"]
        assert {event["client_id"] for event in device.events} == {"dev1"}
        assert all(event["socket"].startswith("dev1.") for event in device.events)
        assert [event["what"] for event in raw.events] == ["connected", "subscribed", "disconnected"]
        assert not any("client_id" in event for event in raw.events)


def test_client_that_resumes_its_session_is_connected_before_it_is_subscribed(place: Place, port: int) -> None:
    _, operator = place
    with paho_client(port, client_id="back", clean=False) as client:
        client.subscribe("one", "two/+", qos=1)
    with watching(operator, socket="back") as seen:
        with paho_client(port, client_id="back", clean=False):
            seen.until_kind("subscribed", channel="two.+")
        seen.until_kind("disconnected")
        assert [event["what"] for event in seen.events] == ["connected", "subscribed", "subscribed", "disconnected"]
    with paho_client(port, client_id="back"):
        pass


def test_event_of_the_api_is_shown_once_whatever_its_subscribers(place: Place) -> None:
    server, operator = place
    with pusher_socket(server) as one, pusher_socket(server) as two, watching(operator, channel="api-", data=True) as seen:
        for client in (one, two):
            client.subscribe("api-news")
        server.publish("api-news", "e", "text")
        event = seen.until_kind("published")
        assert (event["event"], event["data"], event["size"]) == ("e", "text", 6)
        server.publish("api-news", "long", "x" * 5000)
        event = seen.until_kind("published", event="long")
        assert (event["data"], event["cut"], event["size"]) == ("x" * 2048, True, 5002)


def test_rejections_carry_what_the_client_received_and_a_remedy(place: Place) -> None:
    server, operator = place
    with watching(operator, app="app-test", what=["refused", "cut-off"]) as seen:
        with pusher_socket(server) as client:
            client.send("client-x", {}, "news")
            error = client.expect_error()
            event = seen.until_kind("refused", socket=client.socket_id, event="command refused")
            assert (event["code"], event["reason"], event["channel"]) == (error["code"], error["message"], "news")
            assert event["link"].startswith("docs/errors.md#pusher-clients:~:text=client%20events%20are")
            assert event["remedy"].startswith("Use a private or presence channel")
            client.request_subscription("private-x", secret="wrong")
            error = client.expect_refusal("private-x")
            event = seen.until_kind("refused", channel="private-x")
            assert (event["code"], event["reason"]) == (error["status"], error["error"])
            ask_to_sign_in(client, "{}", "wrong")
            client.expect_error()
            assert "code" not in seen.until_kind("refused", event="sign-in refused")
            with contextlib.suppress(ConnectionClosed):
                for _ in range(1000):
                    client.send("no-such-event")
            assert client.close_code() == 1008
            event = seen.until_kind("cut-off", socket=client.socket_id)
            assert (event["code"], event["reason"]) == (1008, "too many bad messages")
        answer = server.post("/apps/app-test/events", {"name": "", "channel": "x", "data": ""})
        event = seen.until_kind("refused", request="POST /apps/app-test/events")
        assert (event["code"], event["reason"]) == (answer.status, answer.json["error"])


def test_rejection_of_the_event_creator_has_its_app(place: Place) -> None:
    _, operator = place
    path = "/api/apps/app-test/events"
    with watching(operator, app="app-test", what=["refused"]) as seen:
        answer = operator.post(path, {"name": "e", "channel": "#bad channel", "data": ""})
        event = seen.until_kind("refused", app="app-test", request=f"POST {path}")
        assert (event["code"], event["reason"]) == (answer.status, answer.json["error"])


def test_handshake_with_a_secret_in_place_of_the_key_is_shown_without_the_secret(place: Place) -> None:
    server, operator = place
    with watching(operator, app="app-test", what=["refused"]) as seen:
        connection = http.client.HTTPConnection("127.0.0.1", server.ws_port, timeout=DEADLINE)
        connection.request("GET", f"/sse/app/{SECRET}/news")
        assert SECRET in connection.getresponse().read().decode()
        connection.close()
        event = seen.until_kind("refused")
        assert SECRET not in str(event)


def test_webhooks_and_decisions_are_shown(place: Place) -> None:
    server, operator = place
    with watching(operator, what=["webhook-delivered", "webhook-failed", "asked"]) as seen, pusher_socket(server) as client:
        client.subscribe("private-open")
        event = seen.until_kind("asked", channel="private-open")
        assert (event["event"], event["socket"], event["ip"], "code" in event) == (
            "subscribe",
            client.socket_id,
            "127.0.0.1",
            False,
        )
        assert event["ms"] > 0
        client.request_subscription("private-closed")
        client.expect_refusal("private-closed")
        event = seen.until_kind("asked", channel="private-closed")
        assert (event["code"], event["reason"]) == (403, "this channel is closed")
        client.subscribe("hooked")
        event = seen.until_kind("webhook-delivered", channel="hooked")
        assert (event["events"], event["attempt"], "reason" in event) == (1, 1, False)
        client.subscribe("broken")
        event = seen.until(lambda one: one["what"] == "webhook-failed" and one["attempt"] == 1)
        assert (event["channel"], event["reason"]) == ("broken", "answered 500")
        assert event["endpoint"].startswith("http://localhost:")


# Filters, floods and the end


def test_workers_send_only_what_the_filter_selects(place: Place) -> None:
    server, operator = place
    with (
        pusher_socket(server) as one,
        pusher_socket(server, "other-key") as two,
        watching(operator, socket=one.socket_id) as own,
        watching(operator, app="app-other") as other,
        watching(operator, channel="*-wanted", what=["published"]) as named,
    ):
        for client in (two, one):
            client.subscribe("filtered")
        for channel in ("not", "is-wanted"):
            server.publish(channel, "e", 1)
        own.until_kind("subscribed")
        other.until_kind("subscribed")
        named.until_kind("published", channel="is-wanted")
        assert [len(seen.events) for seen in (own, other, named)] == [1, 1, 1]


def test_fifth_inspector_and_wrong_filters_are_rejected(place: Place) -> None:
    _, operator = place
    with contextlib.ExitStack() as stack:
        first, *_ = [stack.enter_context(watching(operator)) for _ in range(4)]
        page = stack.enter_context(live(operator))
        for filter, reason in (
            ({"what": ["nothing"]}, "there is no event nothing, the events are connected, disconnected, "),
            ({"ip": "nothing"}, "nothing is not an IP address"),
            ({"app": "nothing"}, "there is no app 'nothing'"),
            ({"user": 1}, "the filter of the inspector is not valid: "),
        ):
            page.send({"watch": "inspector", "filter": filter})
            assert page.receive()["error"].startswith(reason)
        page.send({"watch": "inspector"})
        assert page.receive() == {"error": "4 inspectors are watching, which is the limit: close one"}
        first.page.socket.socket.shutdown(socket.SHUT_RDWR)  # as a browser that is killed
        wait_until(lambda: _is_watching(page), "the watch of the lost page has ended")


def _is_watching(page: LivePage) -> bool:
    page.send({"watch": "inspector"})
    return "error" not in page.receive()


def test_flood_is_counted(place: Place) -> None:
    server, operator = place
    most = MAX_RATE + 1
    batch = [{"name": "e", "channel": f"flood-{number}", "data": "1"} for number in range(10)]
    with watching(operator, channel="flood-") as seen:
        for _ in range(-(-most // 10) + 100):
            assert server.post("/apps/app-test/batch_events", {"batch": batch}).status == 200
        sent = 10 * (-(-most // 10) + 100)
        while len(seen.events) + seen.dropped.get("published", 0) < sent:
            seen.receive()
        assert len(seen.events) + sum(seen.dropped.values()) == sent
