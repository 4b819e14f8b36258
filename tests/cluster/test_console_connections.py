"""Connections of all protocols in the console, and their end, on one worker and on two workers."""

import contextlib
import http.client
import socket
import time
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest

from tests.support import mqtt_socket
from tests.support.console import Operator, console
from tests.support.process import APP, DEADLINE, ServerProcess, free_ports, merged, wait_until
from tests.support.pusher_socket import PusherSocket, pusher_socket, sign_in
from tests.support.raw_socket import RawSocket, raw_socket
from tests.support.valkey import Valkey

LIST = "/api/apps/app-test/connections"
XHR = "/pusher/app/app-key/7/01234567/xhr_streaming"
HOSTILE = '<img src=x onerror="alert(1)">'
FIELDS = {
    "id", "client_id", "ip", "user_agent", "origin", "protocol", "since", "user", "channels", "channel_count", "behind", "worker",
}  # fmt: skip


class Place(NamedTuple):
    server: ServerProcess
    operator: Operator
    mqtt: int

    def get(self, path: str) -> dict[str, Any]:
        answer = self.operator.get(path)
        assert answer.status == 200, answer
        found: dict[str, Any] = answer.json
        return found

    def all(self, query: str = "", limit: int = 50) -> list[dict[str, Any]]:
        """Returns the connections of all pages."""
        found: list[dict[str, Any]] = []
        after = ""
        while True:
            page = self.get(f"{LIST}?limit={limit}&after={quote(after)}&{query}")
            assert (page["away"], page["missing"], page["complete"]) == ("", [], True)
            found += page["connections"]
            if page["next"] is None:
                return found
            after = page["next"]

    def until(self, count: int, query: str = "") -> list[dict[str, Any]]:
        """Waits until there is this number of connections, and returns them."""
        wait_until(lambda: len(self.all(query)) == count, f"{count} connections")
        return self.all(query)

    def terminate(self, id: str, body: Any = None, kind: str = "connections") -> dict[str, Any]:
        answer = self.operator.post(f"/api/apps/app-test/{kind}/{quote(id, safe='')}/terminate", body)
        assert answer.status == 200, answer
        found: dict[str, Any] = answer.json
        return found


@pytest.fixture(scope="module", params=[1, 2], ids=["one worker", "two workers"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    (port,) = free_ports(1)
    with contextlib.ExitStack() as stack:
        proto = ["pusher", "websocket", "sse", "mqtt"]
        config: dict[str, Any] = {"server": {"proto": proto, "mqtt": {"listen": f"tcp://127.0.0.1:{port}"}, "drain": 0}}
        if request.param > 1:
            broker = Valkey()
            stack.callback(broker.close)
            config = merged(config, {"broker": broker.url, "server": {"workers": request.param}})
        server, operator = stack.enter_context(console(config, {"app-test": APP, "other": {**APP, "key": "other-key"}}))
        yield Place(server, operator.sign_in(), port)


@contextlib.contextmanager
def stream(server: ServerProcess, method: str, path: str, **headers: str) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", server.ws_port, timeout=DEADLINE)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        assert response.status == 200
        yield response


def pushers(stack: contextlib.ExitStack, place: Place, count: int) -> list[PusherSocket]:
    return [stack.enter_context(pusher_socket(place.server)) for _ in range(count)]


def test_connections_of_all_protocols_are_shown(place: Place) -> None:
    with contextlib.ExitStack() as stack:
        enter, server = stack.enter_context, place.server
        browser = enter(pusher_socket(server, user_agent_header=HOSTILE, origin="https://shop.example"))
        sign_in(browser, "u|1")
        browser.subscribe("news")
        enter(raw_socket(server, "news", query="session=desk"))
        enter(stream(server, "GET", "/sse/app/app-key/news", **{"User-Agent": "events/1"}))
        polling = enter(stream(server, "POST", f"{XHR}?protocol=7", **{"User-Agent": "xhr/1"}))
        device = enter(mqtt_socket.connected(place.mqtt, 5, "device"))
        device.subscribe("news", 0)
        device.subscribe("rooms/+", 0)
        rows = {row["protocol"]: row for row in place.until(5)}
        assert set(rows) == {"pusher", "websocket", "sse", "pusher-xhr", "mqtt5"}
        assert all(set(row) == FIELDS for row in rows.values())
        assert {row["ip"] for row in rows.values()} == {"127.0.0.1"}
        row = rows["pusher"]
        assert (row["id"], row["user"], row["channels"]) == (browser.socket_id, "u|1", ["news"])
        assert (row["user_agent"], row["origin"], row["behind"]) == (HOSTILE, "https://shop.example", 0)
        assert rows["websocket"]["id"].startswith("desk.")
        assert {row["client_id"] for row in rows.values()} == {"", "device"}
        assert (rows["sse"]["user_agent"], rows["sse"]["channels"]) == ("events/1", ["news"])
        assert (rows["pusher-xhr"]["user_agent"], rows["pusher-xhr"]["channel_count"]) == ("xhr/1", 0)
        wait_until(lambda: place.all("protocol=mqtt")[0]["channel_count"] == 2, "both filters")
        device_row = place.all("protocol=mqtt")[0]
        assert (device_row["client_id"], device_row["id"].startswith("device.")) == ("device", True)
        assert (device_row["channels"][0], device_row["user_agent"]) == ("news", "")
        now = time.time()
        assert all(now - 60 < row["since"] <= now + 1 for row in rows.values())
        assert place.terminate(rows["pusher-xhr"]["id"])["found"] == 1
        body = b"".join(polling)
        assert b"4200" in body
    place.until(0)


def test_connections_are_filtered(place: Place) -> None:
    with contextlib.ExitStack() as stack:
        one, two, three = pushers(stack, place, 3)
        sign_in(one, "u1")
        two.subscribe("presence-a", {"user_id": "u1"})
        three.subscribe("b")

        def ids(query: str) -> set[str]:
            return {row["id"] for row in place.all(query)}

        place.until(3)
        assert ids("user=u1") == {one.socket_id, two.socket_id}
        assert ids(f"id={three.socket_id}") == {three.socket_id}
        assert ids("id=1.1") == set()
        assert ids("channel=b") == {three.socket_id}
        assert ids("channel=nothing") == set()
        assert ids("ip=127.0.0.1&protocol=pusher&channel=presence-a") == {two.socket_id}
        assert ids("ip=127.0.0.2") == ids("protocol=sse") == ids("behind=1") == set()
        assert place.get("/api/apps/other/connections")["connections"] == []
        for query in ("protocol=x", "limit=101", "after=x", "behind=x", "after=gaFhoXg"):
            assert place.operator.get(f"{LIST}?{query}").status == 400, query
        assert place.operator.get("/api/apps/nobody/connections").status == 404


def test_client_is_found_by_the_id_that_it_chose(place: Place) -> None:
    with contextlib.ExitStack() as stack:
        for client_id in ("dev1", "dev1.x", "dev", "1.2"):
            stack.enter_context(mqtt_socket.connected(place.mqtt, 5, client_id))
        for session in ("zz", "zz", "zz", "zz.a", "z"):
            stack.enter_context(raw_socket(place.server, "news", query=f"session={session}"))
        place.until(9)
        for client_id in ("dev1", "dev1.x", "1.2"):
            (row,) = place.all(f"id={client_id}")
            assert row["client_id"] == client_id
            assert [one["id"] for one in place.all(f"id={row['id']}")] == [row["id"]]
        found = [row["id"] for row in place.all("id=zz", limit=1)]
        assert len(found) == len(set(found)) == 3
        assert all(id.startswith("zz.") and not id.startswith("zz.a.") for id in found)
        assert place.all("id=dev1.") == place.all("id=de") == place.all("id=dev1&protocol=pusher") == []
        (row,) = place.all("id=dev1")
        assert place.terminate(row["id"])["found"] == 1
        place.until(0, "id=dev1")


def test_pages_have_all_connections(place: Place) -> None:
    with contextlib.ExitStack() as stack:
        clients = pushers(stack, place, 12)
        for client in clients:
            client.subscribe("many")
        place.until(12)
        for query in ("", "channel=many"):
            found = [row["id"] for row in place.all(query, limit=5)]
            assert sorted(found) == sorted(client.socket_id for client in clients)
        page = place.get(f"{LIST}?limit=4")
        shown = {row["id"] for row in page["connections"]}
        ended = {row["id"] for row in page["connections"][1:]}
        for client in clients:
            if client.socket_id in ended:
                client.close()
        place.until(9)
        shown |= {row["id"] for row in place.get(f"{LIST}?limit=50&after={quote(page['next'])}")["connections"]}
        assert {client.socket_id for client in clients} <= shown


def test_slow_consumer_is_shown(place: Place) -> None:
    with socket.socket() as small, contextlib.ExitStack() as stack:
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        small.connect(("127.0.0.1", place.server.ws_port))
        slow = stack.enter_context(pusher_socket(place.server, sock=small, max_queue=1))
        slow.subscribe("flood")
        batch = {"batch": [{"name": "e", "channel": "flood", "data": "x" * 9000}] * 10}

        def behind() -> list[dict[str, Any]]:
            assert place.server.post("/apps/app-test/batch_events", batch).status == 200
            return place.all("behind=1")

        (row,) = wait_until(behind, "the slow consumer")
        assert (row["id"], row["behind"] > 0) == (slow.socket_id, True)
        small.shutdown(socket.SHUT_RDWR)
    place.until(0)


def test_one_connection_is_ended(place: Place) -> None:
    with contextlib.ExitStack() as stack:
        again, ended, stays = pushers(stack, place, 3)
        workers = len({row["worker"] for row in place.until(3)})
        answer = place.terminate(again.socket_id)
        assert (answer["found"], answer["missing"], answer["delivered"] >= workers) == (1, [], True)
        assert place.terminate(ended.socket_id, {"reconnect": False})["found"] == 1
        assert again.close_code() == 4200
        assert ended.close_code() == 4009
        assert [row["id"] for row in place.until(1)] == [stays.socket_id]
        assert stays.round_trip() == []
        path = f"/api/apps/app-test/connections/{ended.socket_id}/terminate"
        assert (place.operator.post(path).status, place.operator.post(path, {"reconnect": 1}).status) == (404, 400)
        assert place.operator.post(path, Push1st_Console=None).status == 403
    wait_until(lambda: f"target={ended.socket_id}" in place.server.output, "the log line")
    assert "action=terminate" in place.server.output


def test_clients_of_other_protocols_are_ended(place: Place) -> None:
    with contextlib.ExitStack() as stack:
        raw: RawSocket = stack.enter_context(raw_socket(place.server, "c"))
        events = stack.enter_context(stream(place.server, "GET", "/sse/app/app-key/c"))
        device = stack.enter_context(mqtt_socket.connected(place.mqtt, 5, "device"))
        old = stack.enter_context(mqtt_socket.connected(place.mqtt, 4, "old"))
        rows = {row["protocol"]: row["id"] for row in place.until(4)}
        assert place.terminate(rows["websocket"], {"reconnect": False})["found"] == 1
        assert raw.close_code() == 4009
        assert place.terminate(rows["sse"])["found"] == 1
        while events.readline():
            pass
        assert place.terminate(rows["mqtt5"], {"reconnect": False})["found"] == 1
        assert device.read_disconnect() == 0x98, "administrative action"
        assert place.terminate(rows["mqtt"])["found"] == 1
        old.expect_end()
    place.until(0)


def test_user_is_ended_on_all_workers(place: Place) -> None:
    with contextlib.ExitStack() as stack:
        *mine, other = pushers(stack, place, 7)
        for client in mine:
            sign_in(client, "u|7/x")
        sign_in(other, "u2")
        place.until(6, f"user={quote('u|7/x')}")
        assert place.terminate("u|7/x", kind="users")["delivered"] >= 1
        assert {client.close_code() for client in mine} == {4009}
        assert {client.connection.close_reason for client in mine} == {"Terminated by an operator"}
        assert other.round_trip() == []
    assert 'action="terminate user"' in place.server.output or "action='terminate user'" in place.server.output
