"""HTTP fallbacks whose requests arrive at another server than the one that has their session."""

import contextlib
import http.client
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from itertools import count, cycle
from typing import Any

import pytest

from tests.cluster.machine import copy
from tests.support.blackhole import blackhole
from tests.support.nodejs import NodeProcess
from tests.support.process import DEADLINE, ServerProcess, free_ports, running, wait_until
from tests.support.recovering import kept
from tests.support.valkey import Valkey

QUERY = "?protocol=7&client=by-hand&version=1"


class Session:
    """Returns the session id of a test."""

    numbers = count(10_000_000)
    path = ""


@pytest.fixture(autouse=True)
def _session() -> None:
    Session.path = f"/pusher/app/app-key/7/{next(Session.numbers)}"


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[ServerProcess, ServerProcess]]:
    """Runs two servers on one broker."""
    valkey = Valkey()
    try:
        with running({"broker": valkey.url}) as one, running({"broker": valkey.url}) as other:
            yield one, other
    finally:
        valkey.close()


@contextlib.contextmanager
def asked(server: ServerProcess, endpoint: str, body: bytes = b"", query: str = QUERY) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", server.ws_port, timeout=DEADLINE)
    try:
        connection.request("POST", f"{Session.path}/{endpoint}{query}", body)
        with connection.getresponse() as response:
            yield response
    finally:
        connection.close()


def send(server: ServerProcess, event: str, **data: Any) -> int:
    text = json.dumps({"event": event, "data": data})
    with asked(server, "xhr_send", json.dumps([text]).encode()) as response:
        response.read()
        return response.status


def names(chunk: bytes) -> list[str]:
    """Returns the events in a response."""
    found = []
    for line in chunk.splitlines():
        if line.startswith((b"a", b"m")):
            texts = json.loads(line[1:])
            found += [json.loads(text)["event"] for text in (texts if isinstance(texts, list) else [texts])]
    return found


def publish(server: ServerProcess, data: str) -> None:
    answer = server.post("/apps/app-test/events", {"name": "e", "channel": "c", "data": data})
    assert answer.status == 200


def test_message_sent_to_another_server_reaches_the_session(pair: tuple[ServerProcess, ServerProcess]) -> None:
    one, other = pair
    with asked(one, "xhr_streaming") as stream:
        assert stream.readline() == b"o\n"
        assert names(stream.readline()) == ["pusher:connection_established"]
        assert send(other, "pusher:subscribe", channel="c") == 200
        assert names(stream.readline()) == ["pusher_internal:subscription_succeeded"]


def test_stream_on_another_server_continues_the_session(pair: tuple[ServerProcess, ServerProcess]) -> None:
    one, other = pair
    with asked(one, "xhr_streaming") as first:
        assert first.readline() == b"o\n"
        first.readline()
        assert send(one, "pusher:subscribe", channel="c") == 200
        first.readline()
        with asked(other, "xhr_streaming") as second:
            assert first.read() == b""  # this request was displaced
            publish(one, "1")
            publish(other, "2")
            assert names(second.readline() + second.readline()) == ["e", "e"]
            with asked(one, "xhr_streaming") as third:
                assert second.read() == b""
                publish(other, "3")
                assert names(third.readline()) == ["e"]


def test_polls_are_answered_on_each_server(pair: tuple[ServerProcess, ServerProcess]) -> None:
    one, other = pair
    path = cycle((one, other))
    with asked(next(path), "xhr") as response:
        assert response.read().startswith(b"o\n")
    assert send(other, "pusher:subscribe", channel="c") == 200
    got: list[str] = []
    for n in range(4):
        if n:
            publish(one, f"{n}")
        with asked(next(path), "xhr") as response:
            assert response.status == 200
            got += names(response.read())
    assert [name for name in got if name == "e"] == ["e"] * 3


def test_a_poll_waits_at_another_server(pair: tuple[ServerProcess, ServerProcess]) -> None:
    one, other = pair
    with asked(one, "xhr") as response:
        response.read()
    assert send(one, "pusher:subscribe", channel="c") == 200
    with asked(other, "xhr") as response:
        assert names(response.read()) == ["pusher_internal:subscription_succeeded"]
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", other.ws_port, timeout=DEADLINE)) as connection:
        connection.request("POST", f"{Session.path}/xhr{QUERY}", b"")
        publish(one, "1")
        assert names(connection.getresponse().read()) == ["e"]


def test_request_that_is_repeated_at_another_server_ends_the_session_of_a_page(
    pair: tuple[ServerProcess, ServerProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frames of the first response may be lost, and the page must recover them."""
    monkeypatch.setattr(Session, "path", f"/resume/page-0123456789abcdef{Session.path}")
    one, other = pair
    with asked(one, "xhr", query=f"{QUERY}&n=1") as response:
        response.read()
    for server in (one, other):
        with asked(server, "xhr_send", b'["{\\"event\\":\\"pusher:ping\\",\\"data\\":{}}"]', f"?n={2 + (server is other)}"):
            pass
        with asked(server, "xhr", query=f"{QUERY}&n=4") as response:
            frames = response.read()
        assert (b"c[4200" in frames) == (server is other)


def test_unknown_session_is_404_on_each_server(pair: tuple[ServerProcess, ServerProcess]) -> None:
    path = f"/pusher/app/app-key/9/99999999/xhr_send{QUERY}"
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", pair[0].ws_port, timeout=DEADLINE)) as connection:
        connection.request("POST", path, b"[]")
        assert connection.getresponse().status == 404


def test_frames_after_the_loss_of_a_remote_stream_are_stored(pair: tuple[ServerProcess, ServerProcess]) -> None:
    one, other = pair
    with asked(one, "xhr") as response:
        response.read()
    assert send(one, "pusher:subscribe", channel="c") == 200
    with asked(other, "xhr_streaming") as stream:
        assert names(stream.readline()) == ["pusher_internal:subscription_succeeded"]

    def kept() -> bool:
        """The test publishes until the owner has noticed the loss; from then on the owner stores the events."""
        publish(one, "1")
        with asked(one, "xhr") as response:
            return "e" in names(response.read())

    wait_until(kept, "later events are stored for the next request")


def test_stream_of_a_page_ends_if_it_lacks_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server with the stream loses its connection to the broker for a moment. The page must not acknowledge the event."""
    monkeypatch.setattr(Session, "path", f"/resume/page-0123456789abcdef{Session.path}")
    port, app = free_ports(1)[0], kept()
    valkey = Valkey(port=port)
    try:
        with (
            blackhole(port) as link,
            running({"broker": f"redis://127.0.0.1:{port}"}, app) as one,
            running({"broker": f"redis://127.0.0.1:{link.port}"}, app) as other,
        ):
            with asked(one, "xhr") as response:
                response.read()
            assert send(one, "pusher:subscribe", channel="c") == 200
            with asked(other, "xhr_streaming") as stream:
                assert names(stream.readline() + stream.readline()) == [
                    "pusher_internal:subscription_succeeded",
                    "pusher:resumed",
                ]
                link.refuses = True
                link.cut()
                publish(one, "1")
                link.refuses = False
                elsewhere = {"name": "e", "channel": "d", "data": ""}
                wait_until(lambda: other.post("/apps/app-test/events", elsewhere).status == 200, "the broker is connected")
                publish(one, "2")
                assert names(stream.read()) == ["pusher:error"]
    finally:
        valkey.close()


# A server dies


GONE_SECONDS = 12
"""time until a request ends after the server of its session was killed (docs/scaling.md): 3 probes, every 2 or 3 seconds"""


@pytest.fixture
def doomed() -> Iterator[tuple[ServerProcess, ServerProcess]]:
    """Runs two servers on one broker, which the test harms."""
    valkey = Valkey()
    try:
        with running({"broker": valkey.url}) as one, running({"broker": valkey.url}) as other:
            yield one, other
            for server in (one, other):
                if server.process is not None and server.process.poll() is not None:
                    server.start()  # so that the server can stop gracefully
    finally:
        valkey.close()


def killed(server: ServerProcess) -> float:
    server.signal(signal.SIGKILL)
    server.wait()
    return time.monotonic()


@pytest.mark.parametrize("endpoint", ["xhr_streaming", "xhr"])
def test_requests_of_a_session_end_soon_after_its_server_was_killed(
    doomed: tuple[ServerProcess, ServerProcess], endpoint: str
) -> None:
    one, other = doomed
    with asked(one, "xhr") as response:
        response.read()
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", other.ws_port, timeout=GONE_SECONDS)) as connection:
        connection.request("POST", f"{Session.path}/{endpoint}{QUERY}", b"")
        assert (
            send(other, "pusher:unsubscribe", channel="nowhere") == 200
        )  # this request followed the first one, and was answered
        died = killed(one)
        assert connection.getresponse().read().splitlines()[-1].startswith(b"c[4200,")
        assert time.monotonic() - died < GONE_SECONDS


def test_session_is_removed_soon_after_the_server_of_its_stream_was_killed(doomed: tuple[ServerProcess, ServerProcess]) -> None:
    one, other = doomed
    with asked(one, "xhr") as response:
        response.read()
    assert send(one, "pusher:subscribe", channel="c") == 200
    with contextlib.suppress(OSError, http.client.HTTPException), asked(other, "xhr_streaming") as stream:
        assert names(stream.readline()) == ["pusher_internal:subscription_succeeded"]
        killed(other)
        stream.read()
    seconds = GONE_SECONDS + 10  # time for the client's next request
    wait_until(lambda: "c" not in one.signed("GET", "/apps/app-test/channels").json["channels"], "the session is gone", seconds)


# The broker is away


@pytest.mark.parametrize("endpoint", ["xhr_streaming", "xhr"])
def test_session_ends_if_its_reply_is_lost_with_the_broker(endpoint: str) -> None:
    """The messages to the other server are lost, so the client gets the code to reconnect."""
    valkey = Valkey()
    try:
        with running({"broker": valkey.url}) as one, running({"broker": valkey.url}) as other:
            with asked(one, "xhr") as response:
                response.read()
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", other.ws_port, timeout=GONE_SECONDS)) as connection:
                connection.request("POST", f"{Session.path}/{endpoint}{QUERY}", b"")
                assert (
                    send(other, "pusher:unsubscribe", channel="nowhere") == 200
                )  # this request followed the first one, and was answered
                valkey.kill()
                wait_until(lambda: "the broker is away" in one.output and "the broker is away" in other.output, "it is away")
                assert send(one, "pusher:ping") == 200
                valkey.start()
                assert connection.getresponse().read().splitlines()[-1].startswith(b"c[4200,")
            with asked(one, "xhr") as response:
                assert response.read().splitlines()[-1].startswith(b"c[4200,")
    finally:
        valkey.close()


def test_a_new_session_while_the_broker_is_away_is_rejected_with_4100() -> None:
    """After an HTTP status other than 200 pusher-js would retry at once, as long as the broker is away."""
    with contextlib.closing(Valkey()) as valkey, running({"broker": valkey.url}) as server:
        valkey.kill()
        wait_until(lambda: "the broker is away" in server.output, "it is away")
        with asked(server, "xhr") as response:
            assert response.status == 200
            opened, error, closed = response.read().splitlines()
        assert opened == b"o"
        assert json.loads(json.loads(error[1:])[0])["data"]["code"] == 4100
        assert closed.startswith(b"c[4100,")
        valkey.start()


class RoundRobin:
    """A load balancer that alternates between two servers."""

    def __init__(self, ports: list[int]) -> None:
        self._ports = cycle(ports)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.count = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                self.count += 1
                server = socket.create_connection(("127.0.0.1", next(self._ports)))
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=copy, args=(source, sink), daemon=True).start()

    def close(self) -> None:
        self._listening.close()


@pytest.mark.parametrize("transport", ["xhr_streaming", "xhr_polling"])
def test_pusher_js_works_when_its_connections_alternate_between_servers(
    pair: tuple[ServerProcess, ServerProcess], transport: str
) -> None:
    between = RoundRobin([server.ws_port for server in pair])
    options = {"httpHost": "127.0.0.1", "httpPort": between.port, "enabledTransports": [transport]}
    client = NodeProcess(
        "pusher_js.mjs", {"key": "app-key", "client": options, "api": pair[0].api, "authorize": "server", "secret": "secret"}
    )
    try:
        client.next(on="state", state="connected")
        client.tell("subscribe", channel="c", events=["e"])
        client.next(on="subscribed", channel="c")
        for n in range(20):
            publish(pair[n % 2], f"{n}")
            assert client.next(on="event", event="e")["data"] == n
        assert between.count > 1
    finally:
        client.close()
        between.close()
