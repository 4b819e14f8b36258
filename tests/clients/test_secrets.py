"""A rotation of an app's secret while backends and clients use it: no step rejects anybody, and retiring
ends only the connections that need the old secret."""

import contextlib
import http.client
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any, Self

import pusher
import pytest

from tests.support import mqtt_socket
from tests.support.nodejs import NodeProcess, start_pusher_js, subscribed
from tests.support.process import ServerProcess, free_ports, push1st, running, wait_until
from tests.support.pusher_socket import PusherSocket, ask_to_sign_in, pusher_socket
from tests.support.raw_socket import RawSocket, raw_socket
from tests.support.receiver import Got, receiving
from tests.support.signing import access_token, hmac_hex

ID = "1234"
CLAIMS = {"app": ID, "channel": "private-*"}


class Shop:
    """A server with an app that `push1st app` has added. `key`, `old`: the app's key and first secret."""

    def __init__(self, server: ServerProcess, mqtt_port: int, *webhooks: dict[str, Any]) -> None:
        self.server = server
        self.mqtt_port = mqtt_port
        added = self.app("add")
        self.key: str = added["key"]
        self.old: str = added["secret"]
        if webhooks:
            with open(server.folder / "apps" / f"{ID}.yml", "a") as file:
                file.write(f"  webhooks: {json.dumps(webhooks)}\n")
            push1st("reload", "-c", str(server.folder / "server.yml"))

    def app(self, command: str) -> Any:
        """Runs `push1st app`, which then reloads the server. Returns the result."""
        done = push1st("app", command, ID, "-c", str(self.server.folder / "server.yml"), "--json", "--reload")
        return json.loads(done.stdout)

    def client(self) -> contextlib.AbstractContextManager[PusherSocket]:
        return pusher_socket(self.server, self.key)

    def raw(self, channel: str, secret: str = "") -> contextlib.AbstractContextManager[RawSocket]:
        query = f"token={access_token(CLAIMS, secret)}" if secret else ""
        return raw_socket(self.server, channel, query=query, key=self.key)

    def used(self) -> dict[str, float]:
        """Returns the uses of the secrets of all workers, by place."""
        counts: dict[str, float] = {}
        for line in self.server.get("/metrics").body.decode().splitlines():
            if line.startswith("push1st_secret_used_total{"):
                place = line.partition('place="')[2][0]
                counts[place] = counts.get(place, 0) + float(line.rpartition(" ")[2])
        return counts

    def valid_by(self, got: Got, secret: str) -> bool:
        """Whether Pusher's library accepts a webhook with a secret."""
        library = pusher.Pusher(ID, self.key, secret)
        key, signature = got.headers["x-pusher-key"], got.headers["x-pusher-signature"]
        return library.validate_webhook(key, signature, got.body.decode()) is not None


def subscribe(client: PusherSocket, channel: str, secret: str) -> None:
    client.request_subscription(channel, secret=secret)
    client.expect("pusher_internal:subscription_succeeded", channel)


class Traffic:
    """Backends and clients that use `secret` again and again, in a thread. `failures`: what was rejected."""

    def __init__(self, shop: Shop) -> None:
        self.secret = shop.old
        self.failures: list[BaseException] = []
        self.rounds = 0
        self._shop = shop
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._end.is_set():
            try:
                self._round(self.secret)
            except BaseException as exc:
                self.failures.append(exc)
            self.rounds += 1

    def _round(self, secret: str) -> None:
        shop = self._shop
        address: dict[str, Any] = {"host": "127.0.0.1", "port": shop.server.ws_port, "ssl": False}
        backend = pusher.Pusher(ID, shop.key, secret, **address)
        backend.trigger("private-c", "e", {"n": 1})
        backend.trigger_batch([{"channel": "private-c", "name": "e", "data": "1"}])
        backend.channels_info()
        with shop.client() as client:
            subscribe(client, f"private-{self.rounds}", secret)  # each round causes webhooks
            ask_to_sign_in(client, {"id": "u"}, secret)
            client.expect("pusher:signin_success")
        with shop.raw("private-raw", secret) as raw:
            assert raw.round_trip() == []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def go_on(self) -> None:
        """Waits for two whole rounds without a rejection."""
        rounds = self.rounds
        wait_until(lambda: self.rounds > rounds + 2, "the traffic goes on")
        assert self.failures == []


@contextlib.contextmanager
def serving(workers: int, *webhooks: dict[str, Any]) -> Iterator[Shop]:
    (port,) = free_ports(1)
    mqtt = {"proto": ["pusher", "websocket", "sse", "mqtt"], "mqtt": {"listen": f"tcp://127.0.0.1:{port}"}}
    with running({"server": {"workers": workers, **mqtt}, "log": {"level": "debug"}}) as server:
        yield Shop(server, port, *webhooks)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_no_step_of_a_rotation_rejects_anybody(workers: int, node: Callable[..., NodeProcess]) -> None:
    with receiving() as receiver, serving(workers, {"url": receiver.url}) as shop, Traffic(shop) as traffic:
        server, old = shop.server, shop.old

        def browser(secret: str) -> NodeProcess:
            client = start_pusher_js(node, server, key=shop.key, secret=secret, authorize="self")
            client.next(on="state", state="connected")
            subscribed(client, "private-browser", "e")
            return client

        first = browser(old)
        traffic.go_on()
        new = shop.app("rotate")["secret"]
        traffic.go_on()
        wait_until(lambda: shop.valid_by(receiver.got[-1], new), "webhooks are signed by the new secret")
        rotated = len(receiver.got)
        traffic.secret = new
        traffic.go_on()
        before = shop.used()
        assert before["1"] > 0
        traffic.go_on()
        after = shop.used()
        assert (after["1"], after["0"] > before["0"]) == (before["1"], True)
        second = browser(new)
        shop.app("retire")
        first.next(on="state", state="connecting")
        traffic.go_on()
        assert second.ask("connection")["state"] == "connected"
        with shop.client() as client:
            client.request_subscription("private-c", secret=old)
            assert client.expect_refusal("private-c")["type"] == "AuthError"
        assert server.signed("POST", f"/apps/{ID}/events", {}, key=shop.key, secret=old).status == 401
        retired = len(receiver.got)
        wait_until(lambda: len(receiver.got) > retired, "a webhook after the retirement")
        assert traffic.failures == []
        texts = server.output + server.get("/metrics").body.decode() + server.get(f"/apps/{ID}/hooks").body.decode()
        assert (old in texts, new in texts) == (False, False)
    assert shop.valid_by(receiver.got[0], old)
    assert all(shop.valid_by(got, new) for got in receiver.got[rotated:])


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.long), 2])
def test_retiring_ends_the_connections_that_need_the_secret(workers: int) -> None:
    with contextlib.ExitStack() as stack, serving(workers) as shop:
        enter, server, old = stack.enter_context, shop.server, shop.old
        before, user, public, presence = (enter(shop.client()) for _ in range(4))
        subscribe(before, "private-c", old)
        ask_to_sign_in(user, {"id": "u"}, old)
        user.expect("pusher:signin_success")
        public.subscribe("c")
        presence.request_subscription("presence-c", {"user_id": "u"}, old)
        presence.expect("pusher_internal:subscription_succeeded", "presence-c")
        raw, raw_public = enter(shop.raw("private-c", old)), enter(shop.raw("c"))
        token = access_token(CLAIMS, old)
        device = enter(mqtt_socket.connected(shop.mqtt_port, 5, "d", username=shop.key, password=token.encode()))
        stream = enter(contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.ws_port, timeout=10)))
        stream.request("GET", f"/sse/app/{shop.key}/private-c?token={token}")
        response = stream.getresponse()
        assert response.status == 200
        new = shop.app("rotate")["secret"]
        late, fresh = (enter(shop.client()) for _ in range(2))
        subscribe(late, "private-c", old)
        subscribe(fresh, "private-c", new)
        raw_fresh = enter(shop.raw("private-c", new))
        stay = (public, fresh, raw_public, raw_fresh)
        assert [one.round_trip() for one in (*stay, before, user, late, raw)] == [[]] * 8
        shop.app("retire")
        assert [one.close_code() for one in (before, user, presence, late)] == [4200] * 4
        assert raw.close_code() == 4009
        assert device.read_disconnect() == 0x98  # Administrative action
        while response.readline():
            pass
        assert [one.round_trip() for one in stay] == [[]] * 4
        lines = server.get("/metrics").body.decode().splitlines()
        ends = [float(line.rpartition(" ")[2]) for line in lines if 'cut_offs_total{reason="secret-retired"' in line]
        assert sum(ends) == 7


@pytest.mark.long
def test_queued_webhooks_are_signed_by_the_new_secret() -> None:
    with receiving() as receiver, serving(1, {"url": receiver.url}) as shop, shop.client() as client:
        receiver.act = lambda _: 500
        client.subscribe("room")
        wait_until(lambda: receiver.got, "a failed attempt")
        new = shop.app("rotate")["secret"]
        shop.app("retire")
        failed = len(receiver.got)
        receiver.act = lambda _: 200
        wait_until(lambda: len(receiver.got) > failed, "the next attempt", 20)
        assert shop.valid_by(receiver.got[0], shop.old)
        assert shop.valid_by(receiver.got[-1], new)
        assert receiver.got[0].delivery == receiver.got[-1].delivery


def test_pushers_library_for_node_accepts_a_webhook_by_either_secret(node: Callable[..., Any]) -> None:
    library = node("pusher_webhook.mjs", appId="1", key="app-key", secret="new")
    body = json.dumps({"time_ms": 1, "events": []})
    older = [{"key": "app-key", "secret": "old"}]
    for secret in ("new", "old"):
        headers = {"x-pusher-key": "app-key", "x-pusher-signature": hmac_hex(secret, body), "content-type": "application/json"}
        assert library.ask("read", headers=headers, body=body, older=older)["valid"]
        assert library.ask("read", headers=headers, body=body)["valid"] is (secret == "new")
