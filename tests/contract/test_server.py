"""A whole server in this process, with real clients and backends, so that `make coverage` measures transports and processes."""

import concurrent.futures
import contextlib
import gc
import json
import os
import re
import shutil
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from websockets.sync.client import connect

from push1st.cli import main
from push1st.transports.tls import Records
from tests.cluster.machine import reconfigure
from tests.contract.inside import Inside, plain_process
from tests.contract.xhr import SUBSCRIBE, XHR, frames, open_session, poll, xhr
from tests.support.process import APP, DEADLINE, merged
from tests.support.pusher_socket import PLAIN, QUERY, pusher_socket
from tests.support.receiver import Receiver

Serve = Callable[..., Any]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Inside]]:
    """Makes servers without starting them."""
    made: list[Inside] = []

    def make(config: dict[str, Any] | None = None, **app: Any) -> Inside:
        base = {"server": {"drain": 0}}
        made.append(Inside(monkeypatch, config=merged(base, config or {}), apps={"app-test": merged(APP, app)}))
        return made[-1]

    yield make
    for server in made:
        shutil.rmtree(server.folder)


def visited(server: Inside, *options: str) -> Callable[[Callable[[], None]], None]:
    """Decorates a function: runs the server, and calls the function as soon as the server is ready."""

    def visit(function: Callable[[], None]) -> None:
        assert server.serve(function, *options) == 0

    return visit


# -- clients


def test_a_pusher_client_and_a_raw_client_receive_what_a_backend_publishes(make: Serve) -> None:
    server = make()

    @visited(server)
    def _() -> None:
        with (
            pusher_socket(server) as client,
            connect(f"{server.ws}/ws/app/app-key/c", **PLAIN) as raw,
        ):
            client.subscribe("c")
            server.until_sessions("c", 2)
            server.publish("c", "e", {"id": 7})
            assert client.expect("e", "c") == {"id": 7}
            assert json.loads(raw.recv(DEADLINE))["data"] == {"id": 7}
        assert server.signed("GET", "/apps/app-test/channels").status == 200
        assert server.get("/metrics").status == 200
        assert server.get("/ready", port=server.unix).status == 200


def test_backend_reads_a_history_and_repeats_a_publish(make: Serve) -> None:
    server = make(history=[{"filter": "chat-", "size": 2}])
    path = "/apps/app-test/channels/chat-a/history"

    @visited(server)
    def _() -> None:
        for number in (1, 2, 3):
            server.publish("chat-a", "e", number)
        event = {"name": "e", "channel": "chat-a", "data": 4}
        for replayed in (None, "true"):
            answer = server.request("POST", "/apps/app-test/events", event, {"Idempotency-Key": "k"})
            assert (answer.status, answer.headers["Idempotent-Replayed"]) == (200, replayed)
        assert [event["data"] for event in server.signed("GET", path).json["events"]] == [3, 4]
        assert main(["history", "--api", server.api, "chat-a"]) == 0
        assert main(["publish", "--api", server.api, "--idempotency-key", "k", "chat-a", "e", "5"]) == 0
        assert server.signed("DELETE", path).body == b"{}"
        assert server.get(path).json["events"] == []


def test_stopping_server_makes_its_clients_reconnect(make: Serve) -> None:
    server = make({"server": {"drain": 1}})
    with contextlib.ExitStack() as stack:
        clients = []

        @visited(server)
        def _() -> None:
            clients.append(stack.enter_context(pusher_socket(server)))

        assert clients[0].close_code() == 4200


def test_server_with_one_worker_reloads_its_apps_and_its_log(make: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    server = make(secret="secret")
    apps = server.folder / "apps" / "more.yml"

    @visited(server)
    def _() -> None:
        with pusher_socket(server) as client:
            apps.write_text("more: { key: more-key, secret: s, webhooks: [ { url: 'http://127.0.0.1:9/' } ] }\n")
            assert main(["reload", "-c", server.config]) == 0
            with pusher_socket(server, "more-key") as more:
                apps.unlink()
                reconfigure(server, {"log": {"level": "debug"}})
                os.kill(os.getpid(), signal.SIGHUP)
                assert more.close_code() == 4003
                server.log.wait_for("reloaded", 2)
            reconfigure(server, {"server": {"drain": 5}})
            assert main(["reload", "-c", server.config]) == 1
            client.subscribe("c")

    assert "app more: added" in capsys.readouterr().out
    assert "push1st reload: nothing was changed: a restart is needed for server.drain" in server.output


def test_a_server_with_tls_and_no_certificate_makes_one(make: Serve) -> None:
    server = make({"server": {"ssl": {"enable": True}}})

    @visited(server)
    def _() -> None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with connect(f"{server.ws.replace('ws:', 'wss:')}/app/app-key?{QUERY}", ssl=context, **PLAIN) as client:
            assert json.loads(client.recv(DEADLINE))["event"] == "pusher:connection_established"


def test_tls_objects_are_freed_with_their_connections(make: Serve) -> None:
    server = make({"server": {"ssl": {"enable": True}}})

    @visited(server)
    def _() -> None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        gc.collect()
        gc.disable()
        try:
            with connect(f"{server.ws.replace('ws:', 'wss:')}/app/app-key?{QUERY}", ssl=context, **PLAIN) as client:
                client.recv(DEADLINE)
            for ending in ("Connection: close\r\n", ""):
                connection = socket.create_connection(("127.0.0.1", server.ws_port), DEADLINE)
                with context.wrap_socket(connection) as caller:
                    caller.sendall(f"GET /health HTTP/1.1\r\nHost: localhost\r\n{ending}\r\n".encode())
                    assert caller.recv(1000)
            deadline = time.monotonic() + DEADLINE
            while any(isinstance(one, Records) for one in gc.get_objects()):
                assert time.monotonic() < deadline, "a TLS object is not freed"
                time.sleep(0.02)
        finally:
            gc.enable()


# -- HTTP fallbacks


def test_a_streaming_session_receives_events_as_lines(make: Serve) -> None:
    server = make()

    @visited(server)
    def _() -> None:
        with xhr(server.ws_port, "xhr_streaming") as stream:
            while (line := stream.readline()).strip(b"h\n") == b"":  # pusher-js needs 2 KB before the first event
                continue
            assert line == b"o\n"
            assert frames(stream.readline())[0]["event"] == "pusher:connection_established"
            with xhr(server.ws_port, "xhr_send", SUBSCRIBE) as sent:
                assert sent.status == 200
            assert frames(stream.readline())[0]["event"] == "pusher_internal:subscription_succeeded"
            server.publish("c", "e", "hello")
            assert frames(stream.readline())[0]["data"] == "hello"


def test_polling_session_gets_events_published_between_two_polls(make: Serve) -> None:
    server = make()

    @visited(server)
    def _() -> None:
        open_session(server.ws_port)
        with xhr(server.ws_port, "xhr_send", SUBSCRIBE) as sent:
            assert sent.status == 200
        assert frames(poll(server.ws_port)[0])[0]["event"] == "pusher_internal:subscription_succeeded"
        for data in ("one", "two"):
            server.publish("c", "e", data)
        received: list[str] = []
        while len(received) < 2:
            received += [frame["data"] for line in poll(server.ws_port) for frame in frames(line)]
        assert received == ["one", "two"]


@pytest.mark.parametrize(
    ("method", "endpoint", "status"), [("OPTIONS", "xhr", 200), ("GET", "xhr", 405), ("POST", "xhr_send", 404)]
)
def test_a_fallback_request_without_a_session(make: Serve, method: str, endpoint: str, status: int) -> None:
    server = make()

    @visited(server)
    def _() -> None:
        assert server.request(method, f"{XHR}/{endpoint}?{QUERY}", port=server.ws_port).status == status


def test_a_second_stream_of_a_session_ends_the_first(make: Serve) -> None:
    server = make()

    @visited(server)
    def _() -> None:
        with xhr(server.ws_port, "xhr_streaming") as first:
            while b"established" not in first.readline():
                continue
            with xhr(server.ws_port, "xhr_streaming") as second:
                assert first.read() == b""
                assert second.status == 200


# -- backends


def test_a_webhook_is_sent_again_until_the_backend_accepts_it(make: Serve) -> None:
    with contextlib.closing(Receiver()) as backend:
        answers = iter([500, 200])
        backend.act = lambda _: next(answers)
        server = make(webhooks=[{"url": backend.url, "events": ["channel_occupied"]}])

        @visited(server)
        def _() -> None:
            with pusher_socket(server) as client:
                client.subscribe("c")
                backend.until(2)

        first, second = backend.got
        assert first.delivery == second.delivery
        assert second.events == [{"name": "channel_occupied", "channel": "c"}]


@pytest.mark.parametrize(("answer", "allowed"), [({"allow": True}, True), ({"allow": False}, False), (500, False)])
def test_backend_authorizes_subscriptions(make: Serve, answer: Any, allowed: bool) -> None:
    with contextlib.closing(Receiver()) as backend:
        backend.act = lambda _: answer
        server = make(authorize=[{"url": backend.url, "on": ["subscribe"]}])

        @visited(server)
        def _() -> None:
            with pusher_socket(server) as client:
                client.request_subscription("private-c")
                expected = "pusher_internal:subscription_succeeded" if allowed else "pusher:subscription_error"
                assert client.receive()["event"] == expected


def test_python_function_authorizes_subscriptions(make: Serve) -> None:
    server = make(authorize=[{"url": "py://rights:may", "on": ["subscribe"]}])
    (server.folder / "rights.py").write_text(
        "def may(question):\n    if question.channel.endswith('broken'): raise ValueError('no')\n    return True\n"
    )

    @visited(server)
    def _() -> None:
        with pusher_socket(server) as client:
            client.request_subscription("private-c")
            assert client.receive()["event"] == "pusher_internal:subscription_succeeded"
            client.request_subscription("private-broken")
            assert client.receive()["event"] == "pusher:subscription_error"
        server.log.wait_for("hook failed")
        server.may_trace = True


# -- the command line


def test_the_command_line_publishes_to_a_subscriber_and_shows_the_event(make: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    server = make()

    @visited(server)
    def _() -> None:
        with concurrent.futures.ThreadPoolExecutor() as others:
            done = others.submit(main, ["subscribe", "-c", server.config, "--count", "1", "presence-c"])
            server.until_sessions("presence-c", 1)
            assert main(["publish", "-c", server.config, "presence-c,c", "e", '{"id": 7}']) == 0
            assert done.result(DEADLINE) == 0

    assert re.search(r'presence-c  e  \{"id": ?7}', capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["publish", "--key", "nobody", "--secret", "wrong", "c", "e"], "answered 401"),
        (["subscribe", "--key", "nobody", "c"], "4001"),
        (["subscribe", "bad channel"], "the server refused"),
    ],
)
def test_command_prints_the_error_of_the_server(
    make: Serve, arguments: list[str], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make()

    @visited(server)
    def _() -> None:
        assert main([arguments[0], "-c", server.config, *arguments[1:]]) == 1
        assert error in server.output


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["publish", "--api", "http://127.0.0.1:1", "c", "e"], "is the server running?"),
        (["publish", "--api", "nonsense", "c", "e"], "is not the address of a server"),
        (["subscribe", "--url", "ws://127.0.0.1:1", "c"], "is the server running?"),
        (["subscribe", "--app", "other", "c"], "app other has no key"),
        (["token", "session", "c", "123.456"], "it comes before the channel"),
        (["token", "session", "123.456", "c"], "others need no token"),
        (["token", "access", "--channel", "bad channel\n"], "channel"),
        (["check", "-c", "nowhere.yml"], "nowhere.yml"),
        (["serve", "-c", "nowhere.yml"], "nowhere.yml"),
        (["reload", "-c", "nowhere.yml"], "nothing was reloaded"),
    ],
)
def test_failed_command_prints_the_reason(arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    assert error in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["serve", "--workers", "none"], "a whole number from 1 to"),
        (["serve", "--worker", "2", "--confg"], "unknown option"),
        (["publish", "c", "e", "data", "more"], "too many arguments"),
    ],
)
def test_a_command_that_is_called_wrongly_ends_with_2(
    arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert error in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["check"]])
def test_command_without_required_arguments_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["version"], "push1st "),
        (["token", "session", "123.456", "presence-c", '{"user_id":"1"}'], "app-key:"),
        (["token", "access", "--channel", "c", "--channel", "d", "--ttl", "60"], "eyJ"),
    ],
)
def test_a_command_needs_no_server(arguments: list[str], shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith(shown) or arguments[1] == "session"


def test_check_lists_the_effective_configuration(make: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    server = make(
        {"server": {"workers": 2}},
        webhooks=[{"url": "http://127.0.0.1:9/", "events": ["channel_occupied"]}],
        hook={"trigger": ["join"], "endpoint": ["http://127.0.0.1:9/"]},
        authorize=[{"url": "py://nowhere:may", "on": ["subscribe"]}],
    )
    assert main(["check", "-c", server.config]) == 0
    out = capsys.readouterr().out
    for words in ("good", "2 workers", "between them", "app app-test", "tells", "asks", "note: "):
        assert words in out


# -- several workers


def test_several_workers_are_one_server_and_are_replaced_by_a_reload(make: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    server = make()

    @visited(server, "--workers", "2")
    def _() -> None:
        clients = []
        with contextlib.ExitStack() as stack:
            for _ in range(8):
                clients.append(stack.enter_context(pusher_socket(server)))
                clients[-1].subscribe("c")
            server.publish("c", "e", "hello")
            for client in clients:
                assert client.receive()["data"] == "hello"
            assert "push1st_workers 2.0" in server.get("/metrics").body.decode()
        assert main(["reload", "-c", server.config]) == 0
        assert main(["reload", "-c", server.config, "--workers"]) == 0
        server.assert_alive()

    assert "reloaded: 2 workers" in capsys.readouterr().out


def test_a_reload_with_a_mistake_changes_nothing(make: Serve) -> None:
    server = make()
    config = (server.folder / "server.yml").read_text()

    @visited(server, "--workers", "2")
    def _() -> None:
        (server.folder / "server.yml").write_text(config + "\nmistake: 1\n")
        assert main(["reload", "-c", server.config]) == 1
        server.log.wait_for("reload refused")
        server.assert_alive()


def test_a_worker_that_dies_is_replaced(make: Serve) -> None:
    server = make()

    @visited(server, "--workers", "2")
    def _() -> None:
        found = re.search(r"worker ready .*pid=(\d+)", server.output)
        assert found
        os.kill(int(found[1]), signal.SIGKILL)
        server.log.wait_for("worker ended")
        server.log.wait_for("worker ready", 3)
        server.assert_alive()


def test_several_workers_need_a_certificate_that_exists(make: Serve) -> None:
    server = make({"server": {"ssl": {"enable": True, "cert": "nowhere.pem", "key": "nowhere.pem"}}})
    with plain_process():
        assert main(["serve", "-c", server.config, "--workers", "2"]) == 1


# -- logs and metrics


def test_the_log_shows_each_rejection_at_level_debug(make: Serve) -> None:
    server = make({"log": {"level": "debug"}})

    @visited(server)
    def _() -> None:
        assert server.signed("GET", "/apps/app-test/channels", secret="wrong").status == 401
        with pusher_socket(server) as client:
            client.request_subscription("private-c", secret="wrong")
            assert client.receive()["event"] == "pusher:subscription_error"
        server.log.wait_for("refused", 2)


@pytest.mark.parametrize(("act", "reason"), [("reset", "unreachable"), ("redirect:http://127.0.0.1:9/", "refused")])
def test_unreachable_backend_is_logged_and_counted(make: Serve, act: str, reason: str) -> None:
    with contextlib.closing(Receiver()) as backend:
        backend.act = lambda _: act
        server = make(authorize=[{"url": backend.url, "on": ["subscribe"]}])

        @visited(server)
        def _() -> None:
            with pusher_socket(server) as client:
                client.request_subscription("private-c")
                assert client.receive()["event"] == "pusher:subscription_error"
            server.log.wait_for("backend gives no answer")
            assert reason in server.get("/metrics").body.decode()


def test_the_api_shows_how_the_hooks_of_an_app_do(make: Serve) -> None:
    with contextlib.closing(Receiver()) as backend:
        server = make(webhooks=[{"url": backend.url, "events": ["channel_occupied"]}])

        @visited(server)
        def _() -> None:
            (endpoint,) = server.get("/apps/app-test/hooks").json["hooks"]
            assert endpoint["queued"] == 0
