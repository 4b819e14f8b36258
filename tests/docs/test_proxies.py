"""The howtos for nginx and Caddy, with the real proxies and the configuration of deploy/."""

import contextlib
import http.client
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from tests.docs.proxies import PROXIES, Proxy, proxied
from tests.support.nodejs import NodeProcess
from tests.support.process import program, wait_until
from tests.support.signing import signed_query


@pytest.fixture(scope="module", params=PROXIES)
def proxy(request: pytest.FixtureRequest) -> Iterator[Proxy]:
    with proxied(request.param) as running:
        yield running


def request(
    proxy: Proxy, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, source: str = "127.0.0.1"
) -> tuple[int, Any]:
    """Returns status and JSON of an answer through the proxy."""
    raw = None if body is None else json.dumps(body)
    connection = http.client.HTTPSConnection(
        "localhost", proxy.port, context=proxy.context, timeout=10, source_address=(source, 0)
    )
    try:
        connection.request(method, path, raw, headers or {})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def signed(proxy: Proxy, path: str, body: Any) -> tuple[int, Any]:
    query = signed_query("POST", path, json.dumps(body).encode(), {}, "app-key", "secret", time.time())
    return request(proxy, "POST", f"{path}?{query}", body)


def raw(proxy: Proxy, channel: str, source: str = "127.0.0.1") -> ClientConnection:
    return connect(f"wss://{proxy.url}/ws/app/app-key/{channel}", ssl=proxy.threads, source_address=(source, 0))


@pytest.mark.parametrize("transports", [["ws", "wss"], ["xhr_streaming"], ["xhr_polling"]], ids=" ".join)
def test_pusher_js_receives_over_tls_an_event_published_over_tls(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, transports: list[str]
) -> None:
    monkeypatch.setenv("NODE_EXTRA_CA_CERTS", str(proxy.certificate))
    where = {"wsHost": "localhost", "wsPort": proxy.port, "wssPort": proxy.port, "httpHost": "localhost", "httpsPort": proxy.port}
    client = {**where, "forceTLS": True, "enabledTransports": transports}
    node = NodeProcess(
        "pusher_js.mjs", {"key": "app-key", "client": client, "authorize": "self", "secret": "secret", "user": {"user_id": "u1"}}
    )
    request.addfinalizer(node.close)
    channel = f"private-{transports[0]}"
    node.tell("subscribe", channel=channel, events=["paid"])
    node.next(on="subscribed", channel=channel)
    for number in range(3):
        assert signed(proxy, "/apps/app-test/events", {"name": "paid", "channels": [channel], "data": {"id": number}}) == (
            200,
            {},
        )
        assert node.next(on="event")["data"] == {"id": number}


def test_a_raw_client_receives_over_tls(proxy: Proxy) -> None:
    with raw(proxy, "greetings") as client:
        proxy.server.until_sessions("greetings", 1)
        proxy.server.publish("greetings", "hello", {"n": 1})
        assert json.loads(client.recv(timeout=10))["data"] == {"n": 1}


def test_server_gets_the_address_of_the_client_and_not_of_the_proxy(proxy: Proxy) -> None:
    with raw(proxy, "addresses", source="127.0.0.3"):
        proxy.server.until_sessions("addresses", 1)
        assert [one["ip"] for one in proxy.server.get("/apps/app-test/channels/addresses").json["sessions"]] == ["127.0.0.3"]


@pytest.mark.parametrize("claimed", [{"X-Forwarded-For": "10.1.2.3"}, {"Forwarded": "for=10.1.2.3"}], ids=["x", "forwarded"])
def test_a_client_cannot_claim_another_address(proxy: Proxy, claimed: dict[str, str]) -> None:
    with connect(
        f"wss://{proxy.url}/ws/app/app-key/claims", ssl=proxy.threads, additional_headers=claimed, source_address=("127.0.0.3", 0)
    ):
        proxy.server.until_sessions("claims", 1)
        assert [one["ip"] for one in proxy.server.get("/apps/app-test/channels/claims").json["sessions"]] == ["127.0.0.3"]


@pytest.mark.parametrize(
    "claimed", [{}, {"X-Forwarded-For": "127.0.0.1"}, {"Forwarded": "for=127.0.0.1"}], ids=["plain", "x", "forwarded"]
)
def test_the_unsigned_api_is_not_reachable(proxy: Proxy, claimed: dict[str, str]) -> None:
    event = {"name": "e", "channels": ["c"], "data": 1}
    status, answer = request(proxy, "POST", "/apps/app-test/events", event, claimed, source="127.0.0.3")
    assert status == 401
    assert "must be signed" in answer["error"]


@pytest.mark.parametrize("path", ["/metrics", "/openapi.json"])
def test_what_only_trusted_callers_get_is_not_reachable(proxy: Proxy, path: str) -> None:
    assert request(proxy, "GET", path)[0] == 403


def test_a_signed_call_is_not_spoilt_by_the_proxy(proxy: Proxy) -> None:
    event = {"name": "e", "channels": ["c"], "data": "ü & =", "info": "subscription_count"}
    assert signed(proxy, "/apps/app-test/events", event) == (200, {"channels": {"c": {"subscription_count": 0}}})


def test_a_large_call_takes_no_longer_than_its_bytes(proxy: Proxy) -> None:
    """If a proxy forwards the body in a second write, that write waits 40 ms for an acknowledgement of the first."""
    event = {"name": "e", "channel": "large", "data": "x" * 10_000}
    connection = http.client.HTTPSConnection("localhost", proxy.port, context=proxy.context, timeout=10)
    with contextlib.closing(connection):
        for events in (2, 10):
            body = json.dumps({"batch": [event] * events})
            took = []
            for _ in range(8):
                query = signed_query("POST", "/apps/app-test/batch_events", body.encode(), {}, "app-key", "secret", time.time())
                began = time.perf_counter()
                connection.request("POST", f"/apps/app-test/batch_events?{query}", body)
                assert json.loads(connection.getresponse().read()) == {}
                took.append(time.perf_counter() - began)
            assert min(took) < 0.03


def test_a_client_may_offer_http_2(proxy: Proxy) -> None:
    """curl --http2 offers HTTP/2 with `Upgrade: h2c` without TLS; the server ignores the offer and gets the body."""
    event = json.dumps({"name": "e", "channels": ["offers"], "data": "x" * 9000, "info": "subscription_count"})
    query = signed_query("POST", "/apps/app-test/events", event.encode(), {}, "app-key", "secret", time.time())
    url = f"http://localhost:{proxy.bare}/apps/app-test/events?{query}"
    for version in ("--http2", "--http1.1"):
        command = [program("curl"), "--silent", "--show-error", version, "--max-time", "10", url, "--data-raw", event]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == {"channels": {"offers": {"subscription_count": 0}}}


@pytest.mark.parametrize("version", ["1.1", "2"])
def test_an_event_stream_arrives_at_once(proxy: Proxy, version: str) -> None:
    """With HTTP/2, all streams of a browser share one connection."""
    channels = [f"stream-{version[0]}-{number}" for number in range(8)]
    urls = [f"https://{proxy.url}/sse/app/app-key/{channel}" for channel in channels]
    options = ["--silent", "--no-buffer", "--parallel", "--cacert", str(proxy.certificate), f"--http{version}"]
    write = ["--write-out", "%{http_version} %{num_connects}\n", "--max-time", "3"]
    with subprocess.Popen([program("curl"), *options, *write, *urls], stdout=subprocess.PIPE, text=True) as streams:
        for channel in channels:
            proxy.server.until_sessions(channel, 1)
            proxy.server.publish(channel, "hello", channel)
        text, _ = streams.communicate(timeout=10)
    for channel in channels:
        assert f'data: {{"event":"hello","channel":"{channel}","data":"{channel}"' in text
    ends = [line.split() for line in text.splitlines() if line.startswith(f"{version} ")]
    assert len(ends) == len(channels)
    assert sum(int(count) for _, count in ends) == (1 if version == "2" else len(channels))


def test_many_clients_are_disconnected_when_the_server_stops(proxy: Proxy, request: pytest.FixtureRequest) -> None:
    """Each client gets the close code 4200 through the proxy. This test is the last, because it stops the server."""
    kind = request.node.callspec.params["proxy"]
    with proxied(kind) as own:
        clients: list[ClientConnection] = [raw(own, "leaving") for _ in range(10)]
        own.server.until_sessions("leaving", 10)
        own.server.signal()
        codes = []
        for client in clients:
            with client:
                close: Callable[[], Any] = client.recv
                with pytest.raises(Exception, match="4200"):
                    close()
                codes.append(client.close_code)
        assert codes == [4200] * 10
        wait_until(lambda: own.server.process is not None and own.server.process.poll() is not None, "the server ends")


def test_nginx_does_not_log_the_name_of_a_page() -> None:
    with proxied("nginx") as running:
        page = "page-0123456789abcdef"
        assert request(running, "GET", f"/resume/{page}/nothing")[0] == 404
        log = running.certificate.with_name("access.log")
        wait_until(lambda: "/resume/" in log.read_text(), "the request is in the log")
        assert '"GET /resume/-/nothing" 404' in log.read_text()
        assert page not in log.read_text()
