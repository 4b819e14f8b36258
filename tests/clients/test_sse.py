"""Server-sent events with other people's clients: curl, EventSource of Node.js, of npm and of Chromium, with nginx in between."""

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.clients.browser import Tab
from tests.support.blackhole import Blackhole, blackhole
from tests.support.nodejs import NodeProcess, node_program
from tests.support.process import APP, DEADLINE, ServerProcess, free_ports, merged, program, running, wait_until
from tests.support.sse import Block, blocks

CONFIG = {"server": {"proto": ["pusher", "websocket", "sse"]}}
KEY = "history-key"
GOOD = "https://good.example"
HISTORY = [{"filter": "small-", "size": 10}, {"size": 1000}]
APPS = {
    "app-history": merged(APP, {"key": KEY, "history": HISTORY, "limits": {"payload": 100_000}}),
    "app-origins": merged(APP, {"key": "origins-key", "origins": [GOOD]}),
    "app-quota": merged(APP, {"key": "quota-key", "limits": {"connections": 1}}),
}


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running(CONFIG, APPS) as process:
        yield process


@pytest.fixture
def proxy(server: ServerProcess, stack: contextlib.ExitStack) -> Blackhole:
    return stack.enter_context(blackhole(server.ws_port))


def publish(server: ServerProcess, channel: str, *values: Any, name: str = "e") -> None:
    for value in values:
        body = {"name": name, "channels": [channel], "data": value}
        assert server.post("/apps/app-history/events", body).status == 200


def until_subscribed(server: ServerProcess, channel: str, count: int = 1) -> None:
    server.until_sessions(channel, count, "app-history")


# curl


class Curl:
    """A running curl; a thread reads the stream."""

    def __init__(self, url: str, *options: str) -> None:
        command = [program("curl"), "--silent", "--show-error", "--no-buffer", "--include", *options, url]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.text = b""
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        while data := os.read(self.process.stdout.fileno(), 65_536):
            self.text += data

    @property
    def head(self) -> str:
        return self.text.partition(b"\r\n\r\n")[0].decode()

    @property
    def blocks(self) -> list[Block]:
        body = self.text.partition(b"\r\n\r\n")[2]
        return blocks(body[: body.rfind(b"\n\n") + 2]) if b"\n\n" in body else []

    def events(self) -> list[Any]:
        """Returns the data of the events, without `resumed`."""
        found = [json.loads(one.data) for one in self.blocks if one.type == "message"]
        return [one["data"] for one in found if one["event"] != "resumed"]

    def until(self, count: int) -> list[Block]:
        wait_until(lambda: len(self.blocks) >= count, f"{count} blocks")
        return self.blocks

    def wait(self) -> int:
        code = self.process.wait(DEADLINE)
        self._thread.join()
        return code

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._thread.join()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def curl(server: ServerProcess, stack: contextlib.ExitStack) -> Callable[..., Curl]:
    def start(path: str, *options: str, port: int = 0, key: str = KEY) -> Curl:
        one = Curl(f"http://127.0.0.1:{port or server.ws_port}/sse/app/{key}/{path}", *options)
        stack.callback(one.close)
        return one

    return start


def test_curl_receives_events_as_they_are_published(server, curl, channel):
    stream = curl(channel)
    stream.until(3)
    assert "content-type: text/event-stream; charset=utf-8" in stream.head.lower()
    publish(server, channel, {"text": "ünïcödé \U0001f980"}, "a\r\nid: forged\r\n\r\n", None)
    wait_until(lambda: len(stream.events()) == 3, "three events")
    assert stream.events() == [{"text": "ünïcödé \U0001f980"}, "a\r\nid: forged\r\n\r\n", None]
    first = stream.blocks[-3]
    assert first.id == json.loads(first.data)["pos"]


def test_the_api_port_serves_streams_too(server, curl, channel):
    stream = curl(channel, port=server.api_port)
    stream.until(3)
    publish(server, channel, 1)
    wait_until(lambda: stream.events() == [1], "the event")


@pytest.mark.parametrize("data", [b'[1,\n"id: x"\r]', b'{\r\n\r\n"a"\r\n:\n1}'])
def test_line_ends_between_json_tokens_forge_no_field(server, curl, channel, data):
    stream = curl(channel)
    stream.until(3)
    body = b'{"name":"e","channels":["%b"],"data":%b}' % (channel.encode(), data)
    assert server.post("/apps/app-history/events", body).status == 200
    wait_until(stream.events, "the event")
    assert stream.events() == [json.loads(data)]
    assert stream.blocks[-1].id.endswith(":1")


@pytest.mark.parametrize("version", ["--http1.0", "--http1.1", "--http2"])
def test_all_versions_of_http_that_curl_offers_work(server, curl, channel, version):
    stream = curl(channel, version)
    stream.until(3)
    publish(server, channel, 1)
    wait_until(lambda: stream.events() == [1], "the event")


def test_head_ends(curl, channel):
    request = curl(channel, "--head")
    assert request.wait() == 0
    assert "200 OK" in request.text.decode()


def test_a_disconnected_curl_leaves_the_channel(server, curl, channel):
    stream = curl(channel)
    until_subscribed(server, channel)
    stream.close()
    until_subscribed(server, channel, 0)


def test_clients_that_send_bytes_or_close_their_side_harm_nobody(server, curl, channel):
    stream = curl(channel)
    stream.until(3)
    request = f"GET /sse/app/{KEY}/{channel} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        half, busy, flood = (stack.enter_context(socket.create_connection(("127.0.0.1", server.ws_port), 10)) for _ in range(3))
        half.sendall(request)
        busy.sendall(request + request)
        flood.sendall(request)
        for one in (half, busy, flood):
            assert one.recv(4096).startswith(b"HTTP/1.1 200 OK")
        half.shutdown(socket.SHUT_WR)
        busy.sendall(b"x" * 1000)
        with contextlib.suppress(OSError):
            for _ in range(100):
                flood.sendall(b"x" * 65_536)
        until_subscribed(server, channel, 2)
        publish(server, channel, 1)
        received = b""
        while b'"data":1' not in received:
            received += busy.recv(4096)
        while half.recv(4096):
            pass
    wait_until(lambda: stream.events() == [1], "the event")
    server.assert_alive()


def test_a_slow_reader_is_cut_off_and_the_others_are_not(server, curl, channel):
    stream = curl(channel)
    stream.until(3)
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", server.ws_port))
        slow.sendall(f"GET /sse/app/{KEY}/{channel} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        until_subscribed(server, channel, 2)
        sent = 0
        while server.session_count(channel, "app-history") == 2:
            assert sent < 400, "40 MB wait for a client that does not read"
            publish(server, channel, "x" * 99_000)
            sent += 1
    wait_until(lambda: len(stream.events()) == sent, "all events", 30)


@pytest.mark.parametrize(
    "id", ["x", "a:1,b:2", "a:" + "9" * 30, "," * 10_000, "a:1" * 2000, "ö", "%00", "-", ":", "1448282893:0:1"]
)
def test_odd_ids_are_unknown_and_harm_nobody(server, curl, channel, id):
    publish(server, channel, 1)
    stream = curl(channel, "--header", f"Last-Event-ID: {id}")
    assert json.loads(stream.until(3)[1].data)["data"]["reason"] == "unknown"
    publish(server, channel, 2)
    wait_until(lambda: stream.events() == [2], "the event")
    server.assert_alive()


def test_an_unknown_position_is_reported_and_not_answered_with_the_latest(server, curl, channel):
    """Live events after the join stand behind the answer, and the answer has the position of the join."""
    publish(server, channel, 1, 2)
    stream = curl(channel, "--header", "Last-Event-ID: other:1")
    _, resumed, position = stream.until(3)[:3]
    data = json.loads(resumed.data)["data"]
    assert (data["recovered"], data["reason"]) == (False, "state-lost")
    assert position.id == data["position"]
    assert position.id.endswith(":2")
    assert stream.events() == []


# Statuses


def test_statuses_that_end_an_event_source(server: ServerProcess, channel: str) -> None:
    def status(path: str, **headers: str) -> int:
        return server.get(f"/sse/app/{path}", headers=headers, port=server.ws_port).status

    assert status(f"other/{channel}") == 404
    assert status(f"{KEY}/private-{channel}") == 401
    assert status(f"origins-key/{channel}", Origin="https://evil.example") == 403
    assert status(f"{KEY}/{channel}?rewind=x") == 400


def test_an_app_over_its_quota_sends_an_empty_stream(server, curl, channel):
    curl(channel, key="quota-key").until(2)
    over = curl(channel, key="quota-key")
    assert over.wait() == 0
    assert "200 OK" in over.head
    (retry,) = over.blocks
    assert retry.retry >= 1000


def test_a_cookie_authorises_pages_of_the_origins_of_the_app(server, curl, channel):
    answer = server.post("/apps/app-origins/token/access/", {"origin": "*", "channel": "*", "ttl": 0})
    cookie = f"Cookie: push1st_token={answer.body.decode()}"
    stream = curl(f"private-{channel}", "--header", cookie, "--header", f"Origin: {GOOD}", key="origins-key")
    stream.until(2)
    for line in (f"access-control-allow-origin: {GOOD}", "access-control-allow-credentials: true", "vary: origin"):
        assert line in stream.head.lower()
    token = server.post("/apps/app-history/token/access/", {"origin": "*", "channel": "*", "ttl": 0}).body.decode()
    refused = curl(f"private-{channel}", "--header", f"Cookie: push1st_token={token}")
    refused.wait()
    assert "401" in refused.head


# EventSource


class Source(Protocol):
    """An EventSource in another program."""

    def next(self, kind: str) -> dict[str, Any]:
        """Returns the next report of a kind: `open`, `error`, or the type of a block; skips other reports."""

    def close(self) -> None: ...


def decoded(report: dict[str, Any]) -> dict[str, Any]:
    """Decodes the data of a block, unless they are positions."""
    if report["on"] not in ("open", "error", "position"):
        report["data"] = json.loads(report["data"])
    return report


class NodeSource:
    def __init__(self, url: str, library: str, *types: str) -> None:
        flags = [] if library else ["--experimental-eventsource"]
        self._node = NodeProcess("event_source.mjs", {"url": url, "library": library, "types": types}, flags)

    def next(self, kind: str) -> dict[str, Any]:
        return decoded(self._node.next(on=kind))

    def close(self) -> None:
        self._node.tell("close")
        self._node.close()


class TabSource:
    def __init__(self, tab: Tab, url: str, *types: str) -> None:
        self._tab = tab
        self._read = 0
        code = """globalThis.reports = []; globalThis.source = new EventSource(%s);
            source.onopen = () => reports.push({on: "open"});
            source.onerror = () => reports.push({on: "error", closed: source.readyState === EventSource.CLOSED});
            for (const type of %s) source.addEventListener(type, (event) =>
                reports.push({on: type, data: event.data, id: event.lastEventId}));
            0"""
        tab.evaluate(code % (json.dumps(url), json.dumps(["message", *types])))

    def next(self, kind: str) -> dict[str, Any]:
        end = time.monotonic() + DEADLINE
        while True:
            for report in self._tab.evaluate(f"reports.slice({self._read})"):
                self._read += 1
                if report["on"] == kind:
                    return decoded(report)
            assert time.monotonic() < end, f"no {kind}: {self._tab.evaluate('reports')}"
            time.sleep(0.01)

    def close(self) -> None:
        self._tab.close()


@pytest.fixture(params=["node", "npm", "chromium"])
def source(request: pytest.FixtureRequest, stack: contextlib.ExitStack) -> Callable[..., Source]:
    """Makes EventSources."""
    kind = request.param
    if kind == "chromium":
        browser = request.getfixturevalue("browser")
    elif kind == "node":
        test = "process.exit(typeof EventSource === 'function' ? 0 : 1)"
        if subprocess.run(
            [node_program(), "--experimental-eventsource", "-e", test], check=False, capture_output=True
        ).returncode:
            pytest.skip("this Node.js has no EventSource")

    def start(port: int, path: str, *types: str, key: str = KEY) -> Source:
        url = f"http://127.0.0.1:{port}/sse/app/{key}/{path}"
        if kind == "chromium":
            made: Source = TabSource(browser.tab(), url, *types)
        else:
            made = NodeSource(url, "eventsource" if kind == "npm" else "", *types)
        stack.callback(made.close)
        return made

    return start


def test_an_event_source_gets_what_it_missed_when_it_reconnects(server, source, proxy, channel):
    """The first cut comes before any event, so the position of an idle channel must be enough."""
    stream = source(proxy.port, channel)
    first = stream.next("message")
    assert first["data"]["data"]["reason"] == "unknown"
    for number in range(3):
        until_subscribed(server, channel)
        proxy.freeze(later=False)
        publish(server, channel, 2 * number)
        proxy.cut()
        publish(server, channel, 2 * number + 1)
        resumed = stream.next("message")
        assert resumed["data"]["data"]["recovered"], resumed
        got = [stream.next("message") for _ in range(2)]
        assert [one["data"]["data"] for one in got] == [2 * number, 2 * number + 1]
        assert [one["id"] for one in got] == [one["data"]["pos"] for one in got]


def test_an_event_source_with_20_channels_gets_what_it_missed_on_each(server, source, proxy, channel):
    names = [f"{channel}-{number}" for number in range(20)]
    stream = source(proxy.port, "/".join(names), "position")
    position = stream.next("position")
    assert position["id"].count(",") == 19
    proxy.freeze(later=False)
    for name in names:
        publish(server, name, name)
    proxy.cut()
    got = [stream.next("message")["data"] for _ in range(40)]
    assert [one["data"]["recovered"] for one in got if one["event"] == "resumed"] == [True] * 20
    assert [one["data"] for one in got if one["event"] == "e"] == names
    publish(server, names[0], "live")
    assert stream.next("message")["data"]["data"] == "live"


@pytest.mark.parametrize("count", [1, 20])
def test_an_event_source_that_lost_its_notification_is_notified_again(server, source, proxy, channel, count):
    """The server must not send an id before it has sent the notifications (`resumed`) of the positions in this id."""
    names = [f"small-{channel}-{number}" for number in range(count)]
    stream = source(proxy.port, "/".join(names), "position")
    stream.next("position")
    proxy.freeze(later=False)
    for _ in range(12):
        server.post("/apps/app-history/events", {"name": "e", "channels": names, "data": 1})
    proxy.cut_next_before(b'"resumed"')
    proxy.cut()
    wait_until(lambda: len(proxy.links) == 3, "the EventSource comes back twice")
    got = [stream.next("message")["data"] for _ in names]
    assert [(one["channel"], one["data"]["reason"]) for one in got] == [(name, "trimmed") for name in names]
    assert stream.next("position")["id"].count(":12") == count
    publish(server, names[-1], "live")
    assert stream.next("message")["data"]["data"] == "live"


def test_repeats_of_several_channels_have_the_same_position(server, source, proxy, channel):
    names = f"{channel}-1", f"{channel}-2"
    stream = source(proxy.port, "/".join(names), "position")
    stream.next("position")
    publish(server, names[0], 1)
    first = stream.next("message")
    while "pos" not in first["data"]:
        first = stream.next("message")
    proxy.cut()
    resumed = stream.next("message")
    assert resumed["data"]["data"]["recovered"]
    again = stream.next("message")
    while again["data"]["event"] == "resumed":
        again = stream.next("message")
    assert again["data"] == first["data"]


def test_many_messages_of_one_second_all_arrive(server, source, channel):
    stream = source(server.ws_port, channel)
    stream.next("message")
    batch = [{"name": "e", "channel": channel, "data": number} for number in range(10)]
    for _ in range(10):
        assert server.post("/apps/app-history/batch_events", {"batch": batch}).status == 200
    assert [stream.next("message")["data"]["data"] for _ in range(100)] == list(range(10)) * 10


def test_an_event_source_receives_named_events(server, source, channel):
    stream = source(server.ws_port, f"{channel}?events=named", "paid", "resumed")
    assert stream.next("resumed")["data"]["channel"] == channel
    publish(server, channel, {"id": 7}, name="paid")
    assert stream.next("paid")["data"] == {"id": 7}
    publish(server, channel, "x", name="error")
    assert stream.next("message")["data"]["event"] == "error"


@pytest.mark.parametrize("path", ["private-{}", "{}?rewind=x"])
def test_an_event_source_gives_up_after_a_final_status(server, source, channel, path):
    assert source(server.ws_port, path.format(channel)).next("error")["closed"]


def test_an_event_source_reconnects_to_an_app_over_its_quota(server, source, curl, channel):
    first = curl(channel, key="quota-key")
    first.until(2)
    stream = source(server.ws_port, channel, key="quota-key")
    assert not stream.next("error")["closed"]
    first.close()
    wait_until(lambda: server.session_count(channel, "app-quota") == 1, "the EventSource comes back", 20)


def test_an_event_source_survives_a_restart_and_learns_that_the_state_is_lost(source, channel):
    with running(CONFIG, APPS) as own:
        stream = source(own.ws_port, channel)
        publish(own, channel, 1)
        stream.next("open")
        stream.next("message")
        own.signal()
        assert not stream.next("error")["closed"]
        own.wait()
        own.start()
        wait_until(lambda: own.session_count(channel, "app-history") == 1, "the EventSource comes back", 30)
        while (message := stream.next("message")["data"])["event"] != "resumed":
            pass
        assert message["data"]["reason"] == "state-lost"


# nginx


@pytest.fixture(scope="module")
def nginx(server: ServerProcess) -> Iterator[int]:
    """Runs an nginx that buffers responses, as its defaults are; returns its port."""
    path = program("nginx")
    folder = Path(tempfile.mkdtemp(prefix="p1-sse-"))
    (port,) = free_ports(1)
    paths = "".join(f"{which}_temp_path {folder / which}; " for which in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ {paths} access_log off; server {{ listen 127.0.0.1:{port};\n"
        f"location / {{ proxy_pass http://127.0.0.1:{server.ws_port}; proxy_buffering on; gzip on; gzip_types *; }} }} }}\n"
    )
    process = subprocess.Popen([path, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")])
    try:
        wait_until(lambda: _answers(port), "nginx answers")
        yield port
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    with contextlib.closing(connection), contextlib.suppress(OSError):
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    return False


def test_a_proxy_that_buffers_responses_holds_back_no_event(server, source, nginx, channel):
    stream = source(nginx, channel)
    stream.next("message")
    for number in range(3):
        publish(server, channel, number)
        assert stream.next("message")["data"]["data"] == number
