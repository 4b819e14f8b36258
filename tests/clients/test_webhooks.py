"""Webhooks to a backend that fails, stalls, resets or redirects: the requests that arrive, their order, and their number."""

import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pusher
import pytest

from push1st.process.tls import self_signed
from tests.support.process import APP, ServerProcess, free_ports, merged, wait_until
from tests.support.process import running as serving
from tests.support.pusher_socket import pusher_socket
from tests.support.raw_socket import raw_socket
from tests.support.receiver import Got, Receiver, receiving
from tests.support.signing import hmac_hex

EVERYTHING = [
    "channel_occupied",
    "channel_vacated",
    "member_added",
    "member_removed",
    "client_event",
    "cache_miss",
    "subscription_count",
]
COUNTING = {"client-messages": True, "subscription-count": True}


def running(config: dict[str, Any] | None = None, apps: dict[str, Any] | None = None) -> AbstractContextManager[ServerProcess]:
    """Runs a server that stops without waiting for its clients."""
    return serving(merged({"server": {"drain": 0}}, config or {}), apps)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as one:
        yield one


@contextmanager
def telling(
    receiver: Receiver, app: dict[str, Any] | None = None, config: dict[str, Any] | None = None, **webhook: Any
) -> Iterator[ServerProcess]:
    """Runs a server whose app has a webhook to the receiver."""
    webhooks = {"webhooks": [{"url": receiver.url, **webhook}]}
    with running(config, {"app-test": merged(merged(APP, webhooks), app or {})}) as server:
        yield server


def hooks(server: ServerProcess) -> list[dict[str, Any]]:
    answer = server.get("/apps/app-test/hooks")
    assert answer.status == 200, answer
    found: list[dict[str, Any]] = answer.json["hooks"]
    return found


def until_idle(server: ServerProcess) -> None:
    wait_until(lambda: all(one["queued"] == 0 for one in hooks(server)), "nothing is queued")


# Each kind of event, in Pusher's form


def test_each_kind_of_webhook_has_the_form_of_pusher(receiver: Receiver) -> None:
    with telling(receiver, {"options": COUNTING}) as server:
        with pusher_socket(server) as one:
            one.subscribe("presence-room", {"user_id": 7, "user_info": {"name": "A"}})
            one.send("client-hi", {"a": 1}, "presence-room")
            one.subscribe("cache-news")
            one.expect("pusher:cache_miss", "cache-news")
            socket_id = one.socket_id
            receiver.until(6)
        receiver.until(9)
    by_name = {event["name"]: event for event in receiver.events if event["channel"] == "presence-room"}
    assert by_name == {
        "channel_occupied": {"name": "channel_occupied", "channel": "presence-room"},
        "member_added": {"name": "member_added", "channel": "presence-room", "user_id": "7"},
        "client_event": {
            "name": "client_event",
            "channel": "presence-room",
            "event": "client-hi",
            "data": '{"a": 1}',
            "socket_id": socket_id,
            "user_id": "7",
        },
        "member_removed": {"name": "member_removed", "channel": "presence-room", "user_id": "7"},
        "channel_vacated": {"name": "channel_vacated", "channel": "presence-room"},
    }
    assert [event for event in receiver.events if event["channel"] == "cache-news"] == [
        {"name": "channel_occupied", "channel": "cache-news"},
        {"name": "cache_miss", "channel": "cache-news"},
        {"name": "subscription_count", "channel": "cache-news", "subscription_count": 1},
        {"name": "channel_vacated", "channel": "cache-news"},
    ]


def test_webhook_request_equals_the_form_of_pusher(receiver: Receiver) -> None:
    before = time.time()
    with telling(receiver) as server, pusher_socket(server) as one:
        one.subscribe("room")
        (got,) = receiver.until(1)
    assert got.headers["content-type"] == "application/json"
    assert got.headers["x-pusher-key"] == "app-key"
    assert len(got.headers["x-pusher-signature"]) == 64
    assert len(got.delivery) == 32
    assert set(got.json) == {"time_ms", "events"}
    assert before * 1000 - 1 <= got.json["time_ms"] <= time.time() * 1000
    assert got.events == [{"name": "channel_occupied", "channel": "room"}]


def test_library_for_python_validates_the_webhook(receiver: Receiver) -> None:
    with telling(receiver) as server, pusher_socket(server) as one:
        one.subscribe("room")
        (got,) = receiver.until(1)
    library = pusher.Pusher("1234", "app-key", "secret")
    key, signature = got.headers["x-pusher-key"], got.headers["x-pusher-signature"]
    assert library.validate_webhook(key, signature, got.body.decode())["events"] == got.events
    assert library.validate_webhook(key, signature, got.body.decode() + " ") is None
    other = pusher.Pusher("1234", "app-key", "another secret")
    assert other.validate_webhook(key, signature, got.body.decode()) is None


def test_library_for_node_validates_the_webhook(receiver: Receiver, node: Callable[..., Any]) -> None:
    with telling(receiver) as server, pusher_socket(server) as one:
        one.subscribe("room")
        (got,) = receiver.until(1)
    library = node("pusher_webhook.mjs", appId="1234", key="app-key", secret="secret")
    read = library.ask("read", headers=got.headers, body=got.body.decode())
    assert read == {"valid": True, "time": got.json["time_ms"], "events": got.events}
    assert not library.ask("read", headers=got.headers, body=got.body.decode() + " ")["valid"]


def test_page_reload_causes_no_webhook(receiver: Receiver) -> None:
    with telling(receiver) as server:
        for _ in range(3):
            with pusher_socket(server) as one:
                one.subscribe("presence-room", {"user_id": "7"})
            server.until_sessions("presence-room", 0)
        time.sleep(1.5)
        with pusher_socket(server) as one:
            one.subscribe("presence-room", {"user_id": "7"})
            time.sleep(2.5)  # longer than the three seconds in which earlier pages return
            receiver.until_events("channel_occupied", "member_added")
        left = time.monotonic()
        receiver.until_events("channel_occupied", "member_added", "member_removed", "channel_vacated")
        assert 2.5 < receiver.got[-1].at - left < 6


def test_many_that_miss_a_cache_channel_are_one_event(receiver: Receiver) -> None:
    with telling(receiver, events=["cache_miss"]) as server, ExitStack() as stack:
        clients = [stack.enter_context(pusher_socket(server)) for _ in range(5)]
        for one in clients:
            one.subscribe("cache-news")
            one.expect("pusher:cache_miss", "cache-news")
        receiver.until_events("cache_miss")
        clients[0].subscribe("cache-other")
        receiver.until_events("cache_miss", "cache_miss")
        assert [event["channel"] for event in receiver.events] == ["cache-news", "cache-other"]


def test_subscription_counts_are_sent_only_if_the_app_enables_them(receiver: Receiver) -> None:
    with telling(receiver) as server, pusher_socket(server) as one:
        one.subscribe("room")
        receiver.until_events("channel_occupied")
        one.subscribe("other")
        receiver.until_events("channel_occupied", "channel_occupied")


def test_raw_clients_cause_webhooks_too(receiver: Receiver) -> None:
    with telling(receiver) as server, raw_socket(server, "room") as raw:
        raw.publish("room", "hello", {"a": [1]})
        events = receiver.until_events("channel_occupied", "client_event")
    assert (events[1]["event"], json.loads(events[1]["data"])) == ("hello", {"a": [1]})


def test_api_publish_causes_no_client_event_webhook(receiver: Receiver) -> None:
    with telling(receiver, events=["client_event"]) as server, pusher_socket(server) as one:
        one.subscribe("private-room")
        server.publish("private-room", "news", 1)
        one.send("client-last", 1, "private-room")
        events = receiver.until_events("client_event")
    assert events[0]["event"] == "client-last"


def test_server_to_user_channels_cause_no_webhooks(receiver: Receiver) -> None:
    with telling(receiver) as server, pusher_socket(server) as one:
        data = json.dumps({"id": "7"})
        one.send("pusher:signin", {"user_data": data, "auth": f"app-key:{hmac_hex('secret', f'{one.socket_id}::user::{data}')}"})
        one.expect("pusher:signin_success")
        one.subscribe("#server-to-user-7")
        one.subscribe("room")
        assert receiver.until_events("channel_occupied")[0]["channel"] == "room"


# Filters


def test_filter_drops_only_unselected_events_from_each_batch(receiver: Receiver) -> None:
    with receiving() as all_of_it:
        webhooks = [
            {"url": receiver.url, "filter": ["room-", "*-vip"], "events": ["channel_occupied"], "batch": 100},
            {"url": all_of_it.url, "events": ["channel_occupied"], "batch": 100},
        ]
        names = ["room-1", "room", "xroom-1", "a-vip", "vip", "a-vip-b", "Room-2", "room-2"]
        with running(apps={"app-test": merged(APP, {"webhooks": webhooks})}) as server, pusher_socket(server) as one:
            for name in names:
                one.subscribe(name)
            wait_until(lambda: len(all_of_it.events) == len(names), "the other endpoint has all events")
            until_idle(server)
        assert sorted(event["channel"] for event in receiver.events) == ["a-vip", "room-1", "room-2"]
        assert sorted(event["channel"] for event in all_of_it.events) == sorted(names)


def test_only_selected_events_are_sent(receiver: Receiver) -> None:
    with telling(receiver, events=["member_added"]) as server, pusher_socket(server) as one:
        one.subscribe("presence-room", {"user_id": "7"})
        receiver.until_events("member_added")
        until_idle(server)
        receiver.until_events("member_added")


def test_webhook_for_channel_vacated_ignores_reloads(receiver: Receiver) -> None:
    with telling(receiver, events=["channel_vacated"]) as server:
        with pusher_socket(server) as one:
            one.subscribe("room")
        server.until_sessions("room", 0)
        with pusher_socket(server) as one:
            one.subscribe("room")
            time.sleep(4.2)
        assert receiver.got == []
        receiver.until_events("channel_vacated")


# Batches and apps


def test_batches_hold_several_events_when_they_are_on(receiver: Receiver) -> None:
    receiver.act = lambda _: 503
    with telling(receiver, events=["channel_occupied"], batch=50, concurrency=1) as server, pusher_socket(server) as one:
        one.subscribe("first")
        receiver.until(1)
        for number in range(20):
            one.subscribe(f"room-{number}")
        receiver.act = lambda _: 200
        wait_until(lambda: len(receiver.events) == 21, "all events")
    assert len(receiver.accepted) < 6
    assert sorted(event["channel"] for event in receiver.events) == sorted(["first", *(f"room-{number}" for number in range(20))])


def test_without_batches_a_request_has_one_event(receiver: Receiver) -> None:
    with telling(receiver) as server, pusher_socket(server) as one:
        for number in range(10):
            one.subscribe(f"room-{number}")
        receiver.until(10)
    assert all(len(got.events) == 1 for got in receiver.got)


def test_apps_never_share_a_request_and_sign_with_their_own_secret(receiver: Receiver) -> None:
    webhooks = {"webhooks": [{"url": receiver.url, "batch": 100}]}
    other = merged(APP, {"key": "other-key", "secret": "other secret", **webhooks})
    apps = {"app-test": merged(APP, webhooks), "app-other": other}
    with running(apps=apps) as server, pusher_socket(server) as one, pusher_socket(server, "other-key") as two:
        for number in range(10):
            one.subscribe(f"mine-{number}")
            two.subscribe(f"yours-{number}")
        wait_until(lambda: len(receiver.events) >= 20, "all events")
    for got in receiver.got:
        mine = got.headers["x-pusher-key"] == "app-key"
        library = pusher.Pusher("1234", *(("app-key", "secret") if mine else ("other-key", "other secret")))
        assert library.validate_webhook(got.headers["x-pusher-key"], got.headers["x-pusher-signature"], got.body.decode())
        assert {event["channel"].partition("-")[0] for event in got.events} == {"mine" if mine else "yours"}


# Failures


def test_500_then_200_is_one_event_with_one_delivery_id_after_a_second(receiver: Receiver) -> None:
    receiver.act = lambda _: 500 if len(receiver.got) == 1 else 200
    with telling(receiver) as server, pusher_socket(server) as one:
        one.subscribe("room")
        first, second = receiver.until(2)
        until_idle(server)
        (status,) = hooks(server)
    assert first.body == second.body
    assert first.delivery == second.delivery
    assert first.headers["x-pusher-signature"] == second.headers["x-pusher-signature"]
    assert 0.85 < second.at - first.at < 1.6
    assert (status["sent"], status["failed"], status["queued"], status["retrying"]) == (1, 0, 0, 0)
    assert status["last_error"] == "answered 500"


def test_retries_come_after_1_2_and_4_seconds(receiver: Receiver) -> None:
    receiver.act = lambda _: 500 if len(receiver.got) < 4 else 200
    with telling(receiver) as server, pusher_socket(server) as one:
        one.subscribe("room")
        times = [got.at for got in receiver.until(4, deadline=15)]
    waits = [after - before for before, after in pairwise(times)]
    assert [round(wait / want) for wait, want in zip(waits, (1, 2, 4), strict=True)] == [1, 1, 1], waits


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ("stall", "no answer within 1 s"),
        ("reset", ""),
        (404, "answered 404"),
        (302, "answered 302"),
    ],
)
def test_response_other_than_2xx_in_time_is_retried(receiver: Receiver, bad: Any, error: str) -> None:
    receiver.act = lambda _: bad if len(receiver.got) == 1 else 200
    with telling(receiver, timeout=1) as server, pusher_socket(server) as one:
        one.subscribe("room")
        first, second = receiver.until(2)
        until_idle(server)
        assert error in hooks(server)[0]["last_error"]
        assert len(receiver.accepted) == 1
    assert first.delivery == second.delivery


def test_an_answer_without_an_end_is_not_read_to_its_end(receiver: Receiver) -> None:
    receiver.act = lambda _: "flood"
    with telling(receiver) as server, pusher_socket(server) as one:
        one.subscribe("room")
        receiver.until(1)
        until_idle(server)
        assert hooks(server)[0]["sent"] == 1


def test_every_2xx_is_fine(receiver: Receiver) -> None:
    receiver.act = lambda _: (200, 201, 202, 204)[len(receiver.got) % 4]
    with telling(receiver) as server, pusher_socket(server) as one:
        for number in range(8):
            one.subscribe(f"room-{number}")
        receiver.until(8)
        until_idle(server)
        assert hooks(server)[0]["sent"] == 8
        assert len(receiver.got) == 8


def test_redirects_are_not_followed(receiver: Receiver) -> None:
    with receiving() as elsewhere:
        receiver.act = lambda _: f"redirect:{elsewhere.url}" if len(receiver.got) == 1 else 200
        with telling(receiver) as server, pusher_socket(server) as one:
            one.subscribe("room")
            receiver.until(2)
            until_idle(server)
            assert hooks(server)[0]["last_error"] == "answered 307"
        assert elsewhere.got == []


def test_a_failed_event_is_followed_by_the_others_of_its_channel_in_order(receiver: Receiver) -> None:
    refused: list[Got] = []

    def act(got: Got) -> int:
        if got.events[0].get("event") == "client-0" and len(refused) < 2:
            refused.append(got)
            return 500
        return 200

    receiver.act = act
    with telling(receiver, events=["client_event"]) as server, pusher_socket(server) as one:
        for name in ("private-a", "private-b"):
            one.subscribe(name)
        for number in range(5):
            one.send(f"client-{number}", number, "private-a")
        one.send("client-b", 0, "private-b")
        wait_until(lambda: len(receiver.events) == 6, "all events")
    a = [event["event"] for event in receiver.events if event["channel"] == "private-a"]
    assert a == [f"client-{number}" for number in range(5)]
    assert receiver.events[0]["channel"] == "private-b"  # this edge was not held


def test_an_endpoint_that_stalls_delays_only_itself(receiver: Receiver) -> None:
    with receiving() as slow:
        slow.act = lambda _: "stall"
        webhooks = [{"url": slow.url, "timeout": 5}, {"url": receiver.url}]
        with running(apps={"app-test": merged(APP, {"webhooks": webhooks})}) as server, pusher_socket(server) as one:
            for number in range(30):
                one.subscribe(f"room-{number}")
            receiver.until(30, deadline=3)
            one.round_trip()
            stalled, other = hooks(server)
            assert (stalled["queued"], stalled["sent"]) == (30, 0)
            wait_until(lambda: hooks(server)[1]["sent"] == 30, "sent", 2)
            assert other["failed"] == 0
            server.stop_at_once()


def test_unreachable_endpoint_is_logged_with_the_error_of_the_system(receiver: Receiver) -> None:
    with telling(receiver, url=f"http://127.0.0.1:{free_ports(1)[0]}/") as server, pusher_socket(server) as one:
        one.subscribe("room")
        wait_until(lambda: hooks(server)[0]["last_error"], "a failure")
        assert hooks(server)[0]["last_error"] == "cannot connect: Connection refused"


def test_connections_are_kept(receiver: Receiver) -> None:
    with telling(receiver, concurrency=1) as server, pusher_socket(server) as one:
        for number in range(20):
            one.subscribe(f"room-{number}")
        got = receiver.until(20)
    assert len({one.connection for one in got}) == 1


def test_extra_headers_are_sent_and_url_credentials_never_shown(receiver: Receiver) -> None:
    url = receiver.url.replace("http://", "http://ann:hunter2@") + "?token=hunter2"
    webhooks = [{"url": url, "headers": {"X-Shop": "hunter2", "user-agent": "shop", "content-type": "text/plain"}}]
    receiver.act = lambda _: 500 if len(receiver.got) == 1 else 200
    with running(apps={"app-test": merged(APP, {"webhooks": webhooks})}) as server, pusher_socket(server) as one:
        one.subscribe("room")
        got = receiver.until(2)
        answer = server.get("/apps/app-test/hooks")
        metrics = server.get("/metrics")
        assert "hunter2" not in server.output
    assert got[0].headers["x-shop"] == "hunter2"
    assert got[0].headers["user-agent"] == "shop"
    assert [got[0].all.count(name) for name in ("user-agent", "content-type")] == [1, 1]
    assert got[0].headers["content-type"] == "application/json"
    assert got[0].headers["accept-encoding"] == "identity"
    assert got[0].headers["authorization"].startswith("Basic ")
    assert b"hunter2" not in answer.body + metrics.body
    assert answer.json["hooks"][0]["endpoint"].startswith("http://…@localhost:")


# TLS


@contextmanager
def certificate() -> Iterator[tuple[ssl.SSLContext, str]]:
    key, cert = self_signed()
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        yield context, cert
    finally:
        os.unlink(key)
        os.unlink(cert)


def test_certificate_without_a_trusted_authority_is_rejected() -> None:
    with certificate() as (context, _), receiving(context) as receiver, telling(receiver) as server, pusher_socket(server) as one:
        one.subscribe("room")
        wait_until(lambda: hooks(server)[0]["last_error"], "a failure")
        assert "TLS failed" in hooks(server)[0]["last_error"]
        assert receiver.got == []
        server.stop_at_once()


def test_certificate_with_a_trusted_authority_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    with certificate() as (context, cert), receiving(context) as receiver:
        monkeypatch.setenv("SSL_CERT_FILE", cert)
        with telling(receiver) as server, pusher_socket(server) as one:
            one.subscribe("room")
            receiver.until_events("channel_occupied")


# Bounds, the end, and the next start


def test_events_over_the_bound_are_counted_logged_and_stored_as_dead_letters(receiver: Receiver, tmp_path: Path) -> None:
    receiver.act = lambda _: "stall"
    config = {"hooks": {"events": 5, "folder": str(tmp_path)}}
    with telling(receiver, config=config, timeout=60) as server, pusher_socket(server) as one:
        for number in range(8):
            one.subscribe(f"room-{number}")
        one.round_trip()
        (status,) = hooks(server)
        assert (status["queued"], status["failed"]) == (5, 3)
        file = tmp_path / "dead-letters.jsonl"
        wait_until(lambda: file.exists() and len(file.read_text().splitlines()) == 3, "three dead letters")
        letters = [json.loads(line) for line in file.read_text().splitlines()]
        assert [letter["events"] for letter in letters] == [
            [{"name": "channel_occupied", "channel": f"room-{number}"}] for number in (5, 6, 7)
        ]
        assert {(letter["app"], letter["reason"]) for letter in letters} == {("app-test", "overflowed")}
        assert file.stat().st_mode & 0o777 == 0o600
        text = server.get("/metrics").body.decode()
        assert 'push1st_hook_events_total{outcome="overflowed"} 3.0' in text
        assert 'push1st_hook_events_queued{app="app-test"} 5.0' in text
        assert "hook events became dead letters" in server.output
        assert "are lost" not in server.output
        server.stop_at_once()


def test_a_client_that_publishes_without_end_loses_only_its_own_events(receiver: Receiver) -> None:
    def act(_: Got) -> int:
        time.sleep(0.002)
        return 200

    receiver.act = act
    with (
        telling(receiver, config={"hooks": {"events": 100}}, concurrency=2) as server,
        raw_socket(server, "public") as flooding,
        pusher_socket(server) as one,
    ):
        one.subscribe("private-a")
        for group in range(6):
            for number in range(60):
                flooding.publish("public", "flood", 1000 * group + number)
            flooding.round_trip()
            one.send("client-mine", group, "private-a")
            one.subscribe(f"room-{group}")
        one.round_trip()
        until_idle(server)
        assert 'push1st_hook_events_total{outcome="overflowed"} 0.0' not in server.get("/metrics").body.decode()
        mine = [event["data"] for event in receiver.events if event.get("event") == "client-mine"]
        assert mine == [str(group) for group in range(6)]
        rooms = {event["channel"] for event in receiver.events if event["name"] == "channel_occupied"}
        assert rooms >= {f"room-{group}" for group in range(6)}
        flood = [int(event["data"]) for event in receiver.events if event.get("event") == "flood"]
        assert flood == sorted(flood)


def test_a_stop_drains_the_queue(receiver: Receiver) -> None:
    def act(_: Got) -> int:
        time.sleep(0.05)
        return 200

    receiver.act = act
    with telling(receiver, concurrency=1, events=["channel_occupied"]) as server, pusher_socket(server) as one:
        for number in range(20):
            one.subscribe(f"room-{number}")
        one.round_trip()
    assert [event["channel"] for event in receiver.events] == [f"room-{number}" for number in range(20)]


def test_events_left_at_a_stop_are_sent_after_the_next_start_with_their_delivery_id(receiver: Receiver, tmp_path: Path) -> None:
    receiver.act = lambda _: 503
    config = {"hooks": {"folder": str(tmp_path)}}
    events = ["channel_occupied", "client_event"]
    with telling(receiver, config=config, events=events) as server, pusher_socket(server) as one:
        one.subscribe("private-a")
        for number in range(3):
            one.send(f"client-{number}", number, "private-a")
        one.round_trip()
        receiver.until(1)
        server.stop_at_once()
    assert list(tmp_path.glob("saved-*.jsonl"))
    first = receiver.got[0]
    tried = len(receiver.got)
    receiver.act = lambda _: 200
    with telling(receiver, config=config, events=events) as server:
        receiver.until_events("channel_occupied", *["client_event"] * 3)
        assert receiver.got[tried].delivery == first.delivery
        assert receiver.got[tried].body == first.body
        assert [event.get("event") for event in receiver.events] == [None, "client-0", "client-1", "client-2"]
        assert not list(tmp_path.glob("saved-*.jsonl"))
        until_idle(server)


def test_clients_that_return_after_a_restart_cause_no_webhook(receiver: Receiver, tmp_path: Path) -> None:
    config = {"hooks": {"folder": str(tmp_path)}}
    with telling(receiver, config=config) as server, pusher_socket(server) as one:
        one.subscribe("stays")
        one.subscribe("goes")
        receiver.until_events("channel_occupied", "channel_occupied")
    with telling(receiver, config=config) as server, pusher_socket(server) as one:
        one.subscribe("stays")
        events = receiver.until_events("channel_occupied", "channel_occupied", "channel_vacated")
        assert events[-1]["channel"] == "goes"


def test_events_left_at_a_stop_without_a_folder_are_logged_as_lost(receiver: Receiver) -> None:
    receiver.act = lambda _: 503
    with telling(receiver, events=["channel_occupied"]) as server, pusher_socket(server) as one:
        one.subscribe("room")
        receiver.until(1)
        server.stop_at_once()
        assert "hook events are lost" in server.output
        assert "stopped" in server.output


def test_nothing_is_lost_when_the_endpoint_is_down_half_of_the_time() -> None:
    """The soak of the bench, a short one: 1,600 events in 4 seconds."""
    script = Path(__file__).parents[2] / "bench" / "hooks_soak.py"
    command = [sys.executable, str(script), "--seconds", "4", "--events", "1600"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=55)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1600 of 1600 events came" in done.stdout


# GET …/hooks


def test_the_state_of_hooks_is_for_signed_and_trusted_callers(receiver: Receiver) -> None:
    with telling(receiver) as server, pusher_socket(server) as one:
        one.subscribe("room")
        wait_until(lambda: hooks(server)[0]["sent"] == 1, "sent")
        signed = server.signed("GET", "/apps/app-test/hooks", port=server.ws_port)
        assert signed.status == 200
        assert signed.json == {
            "hooks": [
                {
                    "endpoint": receiver.url,
                    "format": "pusher",
                    "queued": 0,
                    "sent": 1,
                    "failed": 0,
                    "retrying": 0,
                    "last_error": None,
                    "last_error_at": None,
                }
            ]
        }
        assert server.get("/apps/app-test/hooks", port=server.ws_port).status == 401


# Push1st's hooks


def test_hooks_of_push1st_come_in_its_format(receiver: Receiver) -> None:
    hook = {"trigger": ["register", "unregister", "join", "leave", "push"], "endpoint": [receiver.url]}
    with running(apps={"app-test": merged(APP, {"hook": hook})}) as server:
        with pusher_socket(server) as one:
            one.subscribe("presence-room", {"user_id": "7", "user_info": {"name": "A"}})
            one.send("client-hi", 1, "presence-room")
            receiver.until(3)
            socket_id = one.socket_id
        got = receiver.until(5, deadline=2)  # at once: hooks of Push1st are not debounced
    assert [(one.json["event"], one.json["channel"], one.json["app"]) for one in got] == [
        (trigger, "presence-room", "app-test") for trigger in ("register", "join", "push", "leave", "unregister")
    ]
    assert [one.json["session"] for one in got] == ["", socket_id, socket_id, socket_id, ""]
    user = {"user-id": "7", "user-info": {"name": "A"}}
    assert [json.loads(one.json["data"]) for one in (got[0], got[1], got[3], got[4])] == [None, user, user, None]
    on_push = json.loads(got[2].json["data"])
    assert (on_push["event"], on_push["channel"], on_push["data"]) == ("client-hi", "presence-room", 1)
    assert all(set(one.json) == {"event", "app", "channel", "session", "data"} for one in got)
    assert all("x-pusher-signature" not in one.headers for one in got)


def test_a_push_hook_has_the_message_as_a_raw_client_sent_it(receiver: Receiver) -> None:
    hook = {"trigger": ["push"], "endpoint": [receiver.url]}
    with (
        running(apps={"app-test": merged(APP, {"hook": hook})}) as server,
        raw_socket(server, "room") as other,
        raw_socket(server, "room", query="session=ann") as one,
    ):
        frame = {"channel": "room", "event": "hello", "data": {"a": [1]}, "headers": {"trace": "7"}, "extra": "x", "other": 1}
        before = time.time_ns()
        one.connection.send(json.dumps({**frame, "options": {"ttl": 60}}))
        seen = other.receive()
        (got,) = receiver.until(1)
    assert (seen["data"], seen["headers"]) == ({"a": [1]}, {"trace": "7"})
    assert "extra" not in seen
    on_push = json.loads(got.json["data"])
    assert before <= on_push.pop("#msg-arrival") <= time.time_ns()
    assert before // 1_000_000_000 + 60 <= on_push.pop("#msg-expired") <= time.time() + 60
    assert on_push.pop("#msg-from") == got.json["session"] == seen["#msg-from"]
    assert got.json["session"].startswith("ann.")
    assert on_push == {
        "channel": "room",
        "event": "hello",
        "data": {"a": [1]},
        "headers": {"trace": "7"},
        "options": {"ttl": 60},
        "extra": "x",
        "#msg-id": seen["#msg-id"],
        "#msg-delivery": "broadcast",
    }


def test_a_hook_of_push1st_is_signed_on_demand(receiver: Receiver) -> None:
    hook = {"trigger": ["join"], "endpoint": receiver.url, "sign": True}
    with running(apps={"app-test": merged(APP, {"hook": hook})}) as server, pusher_socket(server) as one:
        one.subscribe("room")
        (got,) = receiver.until(1)
    assert got.headers["x-pusher-signature"] == hmac_hex("secret", got.body.decode())


def test_hooks_and_webhooks_work_together(receiver: Receiver) -> None:
    with receiving() as push1sts:
        both = {"hook": {"trigger": ["join"], "endpoint": [push1sts.url]}, "webhooks": [{"url": receiver.url}]}
        with running(apps={"app-test": merged(APP, both)}) as server, pusher_socket(server) as one:
            one.subscribe("room")
            receiver.until_events("channel_occupied")
            assert push1sts.until(1)[0].json["event"] == "join"


def test_each_connection_joins_and_leaves(receiver: Receiver) -> None:
    hook = {"trigger": ["join", "leave"], "endpoint": [receiver.url]}
    with running(apps={"app-test": merged(APP, {"hook": hook})}) as server:
        with pusher_socket(server) as one, raw_socket(server, "room"):
            one.subscribe("room")
            one.send("pusher:unsubscribe", {"channel": "room"})
            one.subscribe("room")
            receiver.until(4)
        got = receiver.until(6)
    assert sorted(one.json["event"] for one in got) == ["join"] * 3 + ["leave"] * 3
