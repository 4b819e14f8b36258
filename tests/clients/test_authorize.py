"""A backend that authorizes: it allows, rejects and changes commands of clients, over HTTP or as a function."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.nodejs import NodeProcess
from tests.support.process import APP, ServerProcess, merged, wait_until
from tests.support.process import running as serving
from tests.support.pusher_socket import dialled, pusher_socket
from tests.support.raw_socket import raw_socket
from tests.support.receiver import Act, Got, Receiver, receiving
from tests.support.signing import hmac_hex

EVERYTHING = ["connect", "subscribe", "publish"]


@pytest.fixture
def backend() -> Iterator[Receiver]:
    with receiving() as one:
        one.act = lambda _: {"allow": True}
        yield one


@contextlib.contextmanager
def asking(backend: Receiver, *on: str, **more: Any) -> Iterator[ServerProcess]:
    authorize = {"url": backend.url, "on": list(on or EVERYTHING), **more}
    with serving({"server": {"drain": 0}}, {"app-test": merged(APP, {"authorize": authorize})}) as server:
        yield server


def about(on: str, answer: Any) -> Act:
    """Decides requests of one kind, and allows the others."""
    return lambda got: answer if got.json["on"] == on else {"allow": True}


def questions(backend: Receiver, on: str) -> list[dict[str, Any]]:
    return [got.json for got in backend.got if got.json["on"] == on]


def test_connect_request_to_the_backend_is_signed_and_has_the_credentials(backend: Receiver) -> None:
    with asking(backend, "connect") as server:
        headers = {"Cookie": "session=abc", "Authorization": "Bearer xyz"}
        with pusher_socket(server, additional_headers=headers, origin="https://shop.example") as one:
            (got,) = backend.got
            assert got.json == {
                "on": "connect",
                "app": "app-test",
                "socket_id": one.socket_id,
                "ip": "127.0.0.1",
                "query": "protocol=7&client=js&version=8.6.0&flash=false",
                "origin": "https://shop.example",
                "cookie": "session=abc",
                "authorization": "Bearer xyz",
            }
            assert got.headers["x-pusher-key"] == "app-key"
            assert got.headers["x-pusher-signature"] == hmac_hex("secret", got.body.decode())
        assert "xyz" not in server.output


def test_a_client_that_is_refused_is_closed_before_any_greeting(backend: Receiver) -> None:
    backend.act = lambda _: {"allow": False, "code": 4123, "message": "come back tomorrow"}
    with asking(backend, "connect") as server, dialled(server) as one:
        assert one.expect_error() == {"code": 4123, "message": "come back tomorrow"}
        assert one.close_code() == 4123
        assert one.connection.close_reason == "come back tomorrow"
        assert len(one.frames) == 1


def test_pusher_js_stops_reconnecting_when_the_backend_rejects_it(backend: Receiver, node: Callable[..., NodeProcess]) -> None:
    backend.act = lambda _: {"allow": False, "code": 4009, "message": "no"}
    with asking(backend, "connect") as server:
        client = node("pusher_js.mjs", key="app-key", client={"wsHost": "127.0.0.1", "wsPort": server.ws_port})
        client.next(on="state", state="disconnected")
        assert client.ask("connection") == {"state": "disconnected", "retries": False}
        assert len(backend.got) == 1
        client.close()


def test_user_named_by_the_backend_is_reached_like_a_signed_in_user(backend: Receiver) -> None:
    backend.act = about("connect", {"allow": True, "user": {"id": 7, "info": {"name": "Ann"}}})
    with asking(backend, "connect") as server, pusher_socket(server) as one:
        one.subscribe("#server-to-user-7")
        server.signed("POST", "/apps/app-test/users/7/terminate_connections", {})
        assert one.close_code() == 4009


def test_backend_authorizes_subscriptions_instead_of_a_signature(backend: Receiver) -> None:
    backend.act = lambda got: {"allow": got.json["channel"] != "private-no", "code": 404, "message": "what channel?"}
    with asking(backend, "subscribe") as server, pusher_socket(server) as one:
        for channel in ("private-yes", "public"):
            one.send("pusher:subscribe", {"channel": channel})
            one.expect("pusher_internal:subscription_succeeded", channel)
        one.send("pusher:subscribe", {"channel": "private-no"})
        assert one.expect_refusal("private-no") == {
            "type": "Forbidden",
            "error": "what channel?",
            "status": 404,
        }
        assert one.round_trip() == []


def test_member_is_the_user_that_the_backend_returns(backend: Receiver) -> None:
    backend.act = lambda _: {"allow": True, "user": {"id": "7", "info": {"name": "Ann"}}}
    with asking(backend, "subscribe") as server, pusher_socket(server) as one:
        one.send("pusher:subscribe", {"channel": "presence-room", "channel_data": '{"user_id":"admin"}'})
        data = one.expect("pusher_internal:subscription_succeeded", "presence-room")
        assert data == {"presence": {"ids": ["7"], "hash": {"7": {"name": "Ann"}}, "count": 1}}
    assert backend.got[0].json["channel_data"] == '{"user_id":"admin"}'


def test_backend_changes_and_rejects_client_events(backend: Receiver) -> None:
    def act(got: Got) -> dict[str, Any]:
        data = got.json["data"]
        return {
            "allow": data != "bad",
            "code": 4444,
            "message": "mind your words",
            "data": {"said": data, "by": got.json["socket_id"]},
        }

    backend.act = act
    with asking(backend, "publish") as server, pusher_socket(server) as one, pusher_socket(server) as two:
        for client in (one, two):
            client.subscribe("private-room")
        one.send("client-say", "bad", "private-room")
        assert one.expect_error() == {"code": 4444, "message": "mind your words"}
        one.send("client-say", "good", "private-room")
        assert two.expect("client-say", "private-room") == {"said": "good", "by": one.socket_id}


@pytest.mark.parametrize("bad", ["stall", "reset", 500, b"not json", b"{}"])
def test_backend_without_reply_rejects(backend: Receiver, bad: Any) -> None:
    with asking(backend, timeout=1) as server, pusher_socket(server) as one:
        one.send("pusher:subscribe", {"channel": "private-room"})
        one.expect("pusher_internal:subscription_succeeded", "private-room")
        backend.act = lambda _: bad
        one.send("pusher:subscribe", {"channel": "other"})
        assert one.expect_refusal("other")["status"] == 503
        one.send("client-say", 1, "private-room")
        assert one.expect_error()["code"] == 4300
        with dialled(server) as refused:
            assert refused.close_code() == 4100


def test_waiting_client_does_not_delay_others_and_keeps_the_order_of_its_commands(backend: Receiver) -> None:
    decide = threading.Event()

    def act(got: Got) -> dict[str, Any]:
        if got.json["channel"] == "slow":
            decide.wait(30)
        return {"allow": True}

    backend.act = act
    with asking(backend, "subscribe", timeout=30) as server, pusher_socket(server) as one, pusher_socket(server) as two:
        for channel in ("slow", "fast"):
            one.send("pusher:subscribe", {"channel": channel})
        one.send("pusher:ping")
        wait_until(lambda: backend.got, "the backend got a request")
        try:
            two.subscribe("fast")  # the deadlines of this client are shorter than the wait of the backend
            for _ in range(10):
                two.round_trip()
        finally:
            decide.set()
        assert [one.receive()["event"] for _ in range(3)] == [*["pusher_internal:subscription_succeeded"] * 2, "pusher:pong"]


def test_answers_are_kept_for_the_time_stated(backend: Receiver) -> None:
    with asking(backend, "connect", "subscribe", cache=60) as server:
        for _ in range(3):
            with pusher_socket(server) as one:
                one.subscribe("room")
        assert len(questions(backend, "connect")) == 1
        assert len(questions(backend, "subscribe")) == 3  # no user is signed in, so each connection makes a request of its own
        assert 'push1st_asked_total{answer="cached"} 2.0' in server.get("/metrics").body.decode()


def test_raw_clients_are_authorized_by_the_backend(backend: Receiver) -> None:
    backend.act = lambda got: {"allow": got.json.get("channel") != "private-no"}
    with asking(backend) as server:
        with raw_socket(server, "private-yes", "private-no", "presence-room") as one:
            server.until_sessions("private-yes", 1)
            server.publish("private-yes", "e", 1)
            assert one.expect("e", "private-yes") == 1
            assert server.session_count("private-no") == 0
        with raw_socket(server, "private-no") as none:
            assert none.close_code() == 1008
        backend.act = lambda _: {"allow": False}
        with raw_socket(server, "private-yes") as unwanted:
            assert unwanted.close_code() == 4009


def test_raw_client_joins_its_other_channels_after_a_cached_rejection(backend: Receiver) -> None:
    backend.act = lambda got: {"allow": got.json.get("channel") != "private-no", "user": {"id": "ann"}}
    with asking(backend, "connect", "subscribe", cache=60) as server:
        for _ in range(2):
            with raw_socket(server, "private-no", "private-yes") as one:
                server.until_sessions("private-yes", 1)
                server.publish("private-yes", "e", 1)
                assert one.expect("e", "private-yes") == 1
            server.until_sessions("private-yes", 0)
        assert len(backend.got) == 3


def test_fallback_sessions_are_authorized_by_the_backend(backend: Receiver) -> None:
    with asking(backend, "connect") as server:
        path = "/pusher/app/app-key/123/abcdefgh/xhr?protocol=7&client=js&version=8"
        answer = server.post(path, b"", port=server.ws_port, headers={"Cookie": "session=abc"})
        assert b"o" in answer.body
        assert backend.until(1)[0].json["cookie"] == "session=abc"
        backend.act = lambda _: {"allow": False, "code": 4009, "message": "no"}
        path = path.replace("abcdefgh", "bcdefghi")
        texts = [server.post(path, b"", port=server.ws_port).body for _ in range(2)]
        assert b'c[4009,"no"]' in b"".join(texts)
        assert b"connection_established" not in b"".join(texts)


MODULE = """
import time
from push1st.hooks.events import Allow, Connecting, Publishing, Question, Refuse, Subscribing, User

async def may(question: Question):
    match question:
        case Connecting():
            return "banned" not in question.query
        case Subscribing(channel=channel):
            if channel == "presence-room":
                return Allow(user=User("7", {"name": "Ann"}))
            if channel == "endless":
                while True: pass
            return channel != "no" or Refuse(404, "what channel?")
        case Publishing(data=data):
            return Allow(data={"said": data})
"""


def test_a_function_may_decide(tmp_path: Path) -> None:
    (tmp_path / "deciding.py").write_text(MODULE)
    authorize = {"url": "py://deciding:may", "on": EVERYTHING, "timeout": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        with serving({"server": {"drain": 0}}, {"app-test": merged(APP, {"authorize": authorize})}) as server:
            with dialled(server, query="protocol=7&banned=1") as unwanted:
                assert unwanted.close_code() == 4009
            with pusher_socket(server) as one, pusher_socket(server) as two:
                for client in (one, two):
                    client.send("pusher:subscribe", {"channel": "presence-room"})
                    data = client.expect("pusher_internal:subscription_succeeded", "presence-room")
                    assert data["presence"]["hash"] == {"7": {"name": "Ann"}}
                one.send("pusher:subscribe", {"channel": "no"})
                assert one.expect_refusal("no")["error"] == "what channel?"
                one.send("client-say", [1], "presence-room")
                assert two.expect("client-say", "presence-room") == {"said": [1]}
                one.send("pusher:subscribe", {"channel": "endless"})
                two.round_trip()
                assert one.expect_refusal("endless")["status"] == 503
                one.send("pusher:subscribe", {"channel": "room"})  # in a restarted process
                one.expect("pusher_internal:subscription_succeeded", "room")
