"""The history of a channel and repeated publish requests, with real requests over HTTP and with a library of Pusher."""

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from websockets.sync.client import connect as connect_raw

from tests.support.nodejs import NodeProcess
from tests.support.process import APP, DEADLINE, Answer, ServerProcess, merged, running
from tests.support.pusher_socket import PusherSocket, pusher_socket
from tests.support.valkey import Valkey

APPS = {
    "app-test": merged(APP, {"history": [{"filter": ["chat-*", "private-chat-*"], "size": 5, "ttl": 60}]}),
    "app-other": merged(APP, {"key": "other-key"}),
}


@pytest.fixture(scope="module", params=["memory", "valkey"])
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with contextlib.ExitStack() as stack:
        config = {}
        if request.param == "valkey":
            broker = Valkey()
            stack.callback(broker.close)
            config["broker"] = broker.url
        yield stack.enter_context(running(config, APPS))


@pytest.fixture
def chat(channel: str) -> str:
    """A channel that keeps a history."""
    return f"chat-{channel}"


@pytest.fixture
def client(server: ServerProcess, stack: contextlib.ExitStack) -> Callable[[str], PusherSocket]:
    """Makes clients that are subscribed to a channel."""

    def subscribed(channel: str) -> PusherSocket:
        subscriber = stack.enter_context(pusher_socket(server))
        subscriber.subscribe(channel)
        return subscriber

    return subscribed


def history(server: ServerProcess, channel: str, **query: str) -> Any:
    answer = server.signed("GET", f"/apps/app-test/channels/{channel}/history", query=query, port=server.ws_port)
    assert answer.status == 200, answer
    return answer.json


def publish(server: ServerProcess, channels: list[str], data: Any = "x", *, header: str | None = None, **more: Any) -> Answer:
    event = {"name": "e", "channels": channels, "data": data, **more}
    headers = {} if header is None else {"Idempotency-Key": header}
    return server.request("POST", "/apps/app-test/events", event, headers)


def connect_tcp(server: ServerProcess) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.api_port), DEADLINE)


def is_replayed(answer: Answer) -> bool:
    value = answer.headers.get("Idempotent-Replayed")
    assert value in (None, "true")
    return value is not None


# History


def test_backend_reads_what_it_published(server: ServerProcess, chat: str) -> None:
    for number in range(7):
        assert publish(server, [chat], {"number": number}).status == 200
    answer = history(server, chat, limit="2")
    assert [event["data"] for event in answer["events"]] == [{"number": 2}, {"number": 3}]
    assert (answer["first"], answer["recovered"]) == (3, True)
    answer = history(server, chat, since=answer["next"])
    assert [event["offset"] for event in answer["events"]] == [5, 6, 7]
    assert answer["next"] is None
    assert history(server, chat, reverse="1", limit="1")["events"] == answer["events"][-1:]


def test_position_of_an_answer_leads_to_the_later_events(server: ServerProcess, chat: str) -> None:
    before = server.get(f"/apps/app-test/channels/{chat}?info=position").json["position"]
    answer = publish(server, [chat], 1, info="position").json
    publish(server, [chat], 2)
    assert [event["data"] for event in history(server, chat, since=before)["events"]] == [1, 2]
    since = answer["channels"][chat]["position"]
    assert [event["data"] for event in history(server, chat, since=since)["events"]] == [2]


def test_events_of_all_publishers_are_kept(server: ServerProcess, chat: str, client: Callable[[str], PusherSocket]) -> None:
    """The events of the API, of a batch, of a plain body, of a Pusher client and of a raw client."""
    private = f"private-{chat}"
    pusher = client(private)
    publish(server, [private], 1)
    server.signed("POST", "/apps/app-test/batch_events", {"batch": [{"name": "e", "channel": private, "data": 2}]})
    server.request("POST", f"/apps/app-test/channels/{private}/events?name=e", b"3")
    token = server.post("/apps/app-test/token/access", {"channel": private}).body.decode()
    with connect_raw(f"{server.ws}/ws/app/app-key/{private}?token={token}", proxy=None) as raw:
        server.until_sessions(private, 2)
        pusher.send("client-e", {"n": 4}, private)
        json.loads(raw.recv(DEADLINE))
        raw.send(json.dumps({"channel": private, "event": "e", "data": 5}))
        pusher.expect("e", private)
    events = history(server, private)["events"]
    assert [event["data"] for event in events][:3] == [1, 2, "3"]
    assert [event["offset"] for event in events] == [1, 2, 3, 4, 5]
    assert [event["msg-from"] == "api" for event in events] == [True, True, True, False, False]


def test_deleted_history_is_empty_and_publishing_continues(
    server: ServerProcess, chat: str, client: Callable[[str], PusherSocket]
) -> None:
    subscriber = client(chat)
    position = publish(server, [chat], 1, info="position").json["channels"][chat]["position"]
    answer = server.signed("DELETE", f"/apps/app-test/channels/{chat}/history")
    assert (answer.status, answer.body) == (200, b"{}")
    assert history(server, chat, since=position)["recovered"] is False
    publish(server, [chat], 2)
    assert (subscriber.expect("e", chat), subscriber.expect("e", chat)) == (1, 2)
    answer = history(server, chat)
    assert [(event["offset"], event["data"]) for event in answer["events"]] == [(1, 2)]
    assert answer["position"].partition(":")[0] != position.partition(":")[0]


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "channels/other/history", 404, "other keeps no history: set history in the app's configuration"),
        ("GET", "channels/other?info=position", 400, "other keeps no history"),
        ("GET", "channels/chat-a/history?since=x", 400, "since 'x' is not a position"),
        ("GET", "channels/chat-a/history?limit=0", 400, "limit '0' is not a whole number from 1 to 1000"),
        ("GET", "channels/chat-a/history?reverse=2", 400, "reverse '2' is unknown, allowed are 0 and 1"),
        ("POST", "channels/chat-a/history", 405, "POST is not allowed here, DELETE, GET is"),
    ],
)
def test_wrong_call_is_answered_with_its_reason(server: ServerProcess, method: str, path: str, status: int, text: str) -> None:
    answer = server.request(method, f"/apps/app-test/{path}")
    assert answer.status == status
    assert answer.json["error"].startswith(text)


def test_head_of_a_history_has_no_body(server: ServerProcess, chat: str) -> None:
    publish(server, [chat])
    answer = server.request("HEAD", f"/apps/app-test/channels/{chat}/history")
    assert (answer.status, answer.body) == (200, b"")
    assert int(answer.headers["Content-Length"]) > 100


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_unsigned_call_on_the_clients_port_is_401(server: ServerProcess, chat: str, method: str) -> None:
    assert server.request(method, f"/apps/app-test/channels/{chat}/history", port=server.ws_port).status == 401


def test_library_for_node_reads_a_history(server: ServerProcess, chat: str, node: Callable[..., NodeProcess]) -> None:
    address = {"host": "127.0.0.1", "port": server.ws_port, "useTLS": False}
    sdk = node("pusher_server.mjs", appId="app-test", key="app-key", secret="secret", **address)
    assert sdk.ask("call", method="trigger", args=[chat, "e", {"id": 7}, {"info": "position"}])["status"] == 200
    answer = sdk.ask("call", method="get", args=[{"path": f"/channels/{chat}/history", "params": {"limit": 10, "reverse": True}}])
    (event,) = json.loads(answer["body"])["events"]
    assert event["data"] == '{"id":7}'


# Idempotent publishing


def test_repeated_publish_is_delivered_once(server: ServerProcess, chat: str, client: Callable[[str], PusherSocket]) -> None:
    subscriber = client(chat)
    first = publish(server, [chat], 1, idempotency_key="order-7")
    for _ in range(4):
        again = publish(server, [chat], 1, header="order-7")
        assert is_replayed(again)
        assert again.json["channels"] == first.json["channels"] == {chat: 1}
        assert again.json["msg-id"] == first.json["msg-id"]
    assert not is_replayed(publish(server, [chat], 2))
    assert (subscriber.expect("e", chat), subscriber.expect("e", chat)) == (1, 2)
    assert [event["data"] for event in history(server, chat)["events"]] == [1, 2]


def test_repeated_publish_is_delivered_once_without_a_history(
    server: ServerProcess, channel: str, client: Callable[[str], PusherSocket]
) -> None:
    subscriber = client(channel)
    assert not is_replayed(publish(server, [channel], 1, header="k"))
    assert is_replayed(publish(server, [channel], 1, header="k"))
    publish(server, [channel], 2)
    assert (subscriber.expect("e", channel), subscriber.expect("e", channel)) == (1, 2)


def test_repeat_reaches_only_the_channels_that_are_new(
    server: ServerProcess, chat: str, client: Callable[[str], PusherSocket]
) -> None:
    subscriber, other = client(chat), client(f"{chat}-b")
    publish(server, [chat], 1, header="k")
    assert not is_replayed(publish(server, [chat, f"{chat}-b"], 1, header="k"))
    publish(server, [chat, f"{chat}-b"], 2)
    assert [(one.expect("e", name), one.expect("e", name)) for one, name in ((subscriber, chat), (other, f"{chat}-b"))] == [
        (1, 2)
    ] * 2


def test_repeated_batch_and_plain_body_are_delivered_once(
    server: ServerProcess, chat: str, client: Callable[[str], PusherSocket]
) -> None:
    subscriber = client(chat)
    batch = {"batch": [{"name": "e", "channel": chat, "data": number, "idempotency_key": str(number)} for number in (1, 2)]}
    calls: list[tuple[str, Any, dict[str, str]]] = [
        ("/apps/app-test/batch_events", batch, {}),
        ("/apps/app-test/batch_events", {"batch": [{"name": "e", "channel": chat, "data": 3}]}, {"idempotency-key": "k"}),
        (f"/apps/app-test/channels/{chat}/events?name=e", b"4", {"Idempotency-Key": "k"}),
    ]
    for path, body, headers in calls:
        first, again = (server.request("POST", path, body, headers) for _ in range(2))
        assert (first.status, first.body) == (again.status, again.body)
        assert (is_replayed(first), is_replayed(again)) == (False, True)
    publish(server, [chat], 5)
    assert [subscriber.expect("e", chat) for _ in range(5)] == [1, 2, 3, 4, 5]


def test_signed_request_may_have_the_header(server: ServerProcess, chat: str) -> None:
    for replayed in (False, True):
        answer = server.signed(
            "POST", "/apps/app-test/events", {"name": "e", "channels": [chat], "data": 1, "idempotency_key": "k"}
        )
        assert (answer.status, answer.body, is_replayed(answer)) == (200, b"{}", replayed)


def test_apps_have_keys_of_their_own(server: ServerProcess, channel: str) -> None:
    event = {"name": "e", "channels": [channel], "data": 1, "idempotency_key": "k"}
    assert not is_replayed(server.post("/apps/app-test/events", event))
    assert not is_replayed(server.post("/apps/app-other/events", event))


def test_repeats_are_counted(server: ServerProcess, chat: str) -> None:
    before = _repeats(server)
    for _ in range(3):
        publish(server, [chat, f"{chat}-b"], header="k")
    assert _repeats(server) == before + 4


def _repeats(server: ServerProcess) -> int:
    text = server.get("/metrics").body.decode()
    (line,) = (line for line in text.splitlines() if line.startswith("push1st_idempotent_repeats_total"))
    return int(float(line.split()[-1]))


@pytest.mark.parametrize("header", ["", " ", "a b", "a" * 129, "k\u00e9"])
def test_header_that_is_not_a_key_is_400(server: ServerProcess, chat: str, header: str) -> None:
    answer = publish(server, [chat], header=header)
    assert answer.status == 400
    assert answer.json["error"].startswith("Idempotency-Key ")
    assert history(server, chat)["events"] == []


def test_header_that_is_sent_twice_is_400(server: ServerProcess, chat: str) -> None:
    body = json.dumps({"name": "e", "channel": chat, "data": 1})
    with connect_tcp(server) as connection:
        head = f"POST /apps/app-test/events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        connection.sendall(f"{head}Idempotency-Key: a\r\nIdempotency-Key: b\r\n\r\n{body}".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 400 ")


def test_requests_with_and_without_the_header_share_a_connection(
    server: ServerProcess, chat: str, client: Callable[[str], PusherSocket]
) -> None:
    """The server remembers the headers of earlier requests; a remembered request must not get the key of another."""
    subscriber = client(chat)
    with connect_tcp(server) as connection, connection.makefile("rb") as answers:
        for number, header in enumerate(["", "", "Idempotency-Key: k\r\n", "", "Idempotency-Key: k\r\n", "X-Other: k\r\n"]):
            body = json.dumps({"name": "e", "channel": chat, "data": number})
            head = f"POST /apps/app-test/events HTTP/1.1\r\nHost: 127.0.0.1\r\n{header}Content-Length: {len(body)}\r\n\r\n"
            connection.sendall((head + body).encode())
            assert answers.readline() == b"HTTP/1.1 200 OK\r\n"
            length = 0
            while (line := answers.readline()) != b"\r\n":
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split()[-1])
            answers.read(length)
    assert [subscriber.expect("e", chat) for _ in range(5)] == [0, 1, 2, 3, 5]
