"""pusher-js and laravel-echo, unmodified, whose paths name a page: they get what they missed, over every transport."""

import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pusher
import pytest

from tests.support.blackhole import Blackhole, blackhole
from tests.support.nodejs import MASTER_KEY, NodeProcess, start_pusher_js
from tests.support.process import APP, ServerProcess, merged, running, wait_until

RESUMED = "pusher:resumed"
KEY = "sdk-key"
APPS: dict[str, Any] = {  # the Python library takes no app id but digits
    "1234": merged(
        APP,
        {
            "key": KEY,
            "history": [{"filter": ["news-", "private-", "presence-", "cache-", "#server-to-user-"], "size": 100, "ttl": 60}],
            "resume": {"seconds": 60, "acknowledge": 1},
        },
    )
}
KINDS = ["news-", "private-", "presence-", "cache-", "private-encrypted-"]


@pytest.fixture(scope="module")
def kept() -> Iterator[ServerProcess]:
    with running(apps=APPS) as process:
        yield process


@pytest.fixture
def proxy(kept: ServerProcess) -> Iterator[Blackhole]:
    with blackhole(kept.ws_port) as one:
        yield one


def paths(port: int, transport: str = "ws") -> dict[str, Any]:
    """Returns the options of pusher-js for a page."""
    page = secrets.token_hex(16)
    return {
        "wsHost": "127.0.0.1",
        "httpHost": "127.0.0.1",
        "wsPort": port,
        "httpPort": port,
        "wsPath": f"/resume/{page}",
        "httpPath": f"/resume/{page}/pusher",
        "enabledTransports": [transport],
    }


def start(node: Callable[..., NodeProcess], server: ServerProcess, port: int, where: str, transport: str = "ws") -> NodeProcess:
    """Starts a page that subscribes to a channel, and waits for its first acknowledgement."""
    options = paths(port, transport)
    client = start_pusher_js(node, server, KEY, client=options, user={"user_id": "ann"}, authorize="self")
    client.next(on="state", state="connected")
    client.tell("subscribe", channel=where, events=[RESUMED, "e"])
    assert resumed(client, where)["reason"] == "unknown"
    before = acknowledgements(server)
    client.next(on="message", event="pusher:ping")
    wait_until(lambda: acknowledgements(server) > before, "the server has the acknowledgement")
    return client


def resumed(client: NodeProcess, channel: str) -> dict[str, Any]:
    data: dict[str, Any] = client.next(on="event", channel=channel, event=RESUMED)["data"]
    return data


def resumed_user(client: NodeProcess, channel: str) -> dict[str, Any]:
    """Returns the data of `pusher:resumed` on a user's own channel, on which pusher-js calls no callback for this event."""
    data: dict[str, Any] = client.next(on="message", channel=channel, event=RESUMED)["data"]
    return data


def received(client: NodeProcess, count: int) -> list[Any]:
    return [client.next(on="event", event="e")["data"] for _ in range(count)]


def received_until(client: NodeProcess, last: int) -> list[Any]:
    values = received(client, 1)
    while values[-1] != last:
        values += received(client, 1)
    return values


def acknowledgements(server: ServerProcess) -> float:
    lines = server.get("/metrics").body.decode().splitlines()
    return sum(float(one.split()[-1]) for one in lines if one.startswith("push1st_acknowledgements_total"))


def publish(server: ServerProcess, where: str, *values: int) -> None:
    backend = pusher.Pusher(
        "1234", KEY, "secret", host="127.0.0.1", port=server.api_port, ssl=False, encryption_master_key_base64=MASTER_KEY
    )
    for value in values:
        backend.trigger(where, "e", value)


@pytest.mark.parametrize("kind", KINDS)
def test_pusher_js_gets_what_it_missed_on_a_channel_of_kind(
    kept: ServerProcess, proxy: Blackhole, node: Callable[..., NodeProcess], kind: str
) -> None:
    where = kind + secrets.token_hex(4)
    client = start(node, kept, proxy.port, where)
    publish(kept, where, 1)
    assert received(client, 1) == [1]
    proxy.cut()
    client.next(on="state", state="connecting")
    publish(kept, where, 2, 3)
    answer = resumed(client, where)
    assert answer["recovered"]
    assert received_until(client, 3) in ([1, 2, 3], [2, 3])
    publish(kept, where, 4)
    assert received(client, 1) == [4]


@pytest.mark.parametrize("transport", ["xhr_streaming", "xhr_polling"])
def test_pusher_js_gets_what_it_missed_over(
    kept: ServerProcess, proxy: Blackhole, node: Callable[..., NodeProcess], transport: str
) -> None:
    where = "news-" + secrets.token_hex(4)
    client = start(node, kept, proxy.port, where, transport)
    publish(kept, where, 1)
    assert received(client, 1) == [1]

    def cut() -> bool:  # between two polls there is nothing to cut
        proxy.cut()
        found = client.ask("connection")
        return bool(found["retries"] or found["state"] != "connected")

    wait_until(cut, "the client has noticed it")
    publish(kept, where, 2, 3)
    answer = resumed(client, where)
    assert answer["recovered"]
    assert received_until(client, 3) in ([1, 2, 3], [2, 3])


def test_pusher_js_that_disconnects_and_connects_again_is_recovered(
    kept: ServerProcess, proxy: Blackhole, node: Callable[..., NodeProcess]
) -> None:
    where = "news-" + secrets.token_hex(4)
    client = start(node, kept, proxy.port, where)
    client.tell("disconnect")
    client.next(on="state", state="disconnected")
    publish(kept, where, 1)
    client.tell("connect")
    assert resumed(client, where)["recovered"]
    assert received(client, 1) == [1]


def test_signed_in_user_of_pusher_js_gets_what_it_missed(
    kept: ServerProcess, proxy: Blackhole, node: Callable[..., NodeProcess]
) -> None:
    user = secrets.token_hex(4)
    where = f"#server-to-user-{user}"
    client = node("pusher_more.mjs", key=KEY, secret="secret", client=paths(proxy.port), userData={"id": user})
    client.next(on="state", state="connected")
    before = acknowledgements(kept)
    client.tell("signin", events=["e"])
    assert resumed_user(client, where)["reason"] == "unknown"
    wait_until(lambda: acknowledgements(kept) > before, "the server has the acknowledgement")
    proxy.cut()
    client.next(on="state", state="connecting")
    kept.post("/apps/1234/events", {"name": "e", "channel": where, "data": 1})
    assert resumed_user(client, where)["recovered"]
    assert client.next(on="user_event")["data"] == 1


def test_laravel_echo_gets_what_it_missed(kept: ServerProcess, proxy: Blackhole, node: Callable[..., NodeProcess]) -> None:
    where = "news-" + secrets.token_hex(4)
    client = node("laravel_echo.mjs", key=KEY, client=paths(proxy.port), api=kept.api)
    before = acknowledgements(kept)
    client.tell("listen", kind="channel", name=where, events=[".pusher:resumed", ".e"])
    assert client.next(on="event", event=".pusher:resumed")["data"]["reason"] == "unknown"
    wait_until(lambda: acknowledgements(kept) > before, "the server has the acknowledgement")
    proxy.cut()
    publish(kept, where, 1)
    answer = client.next(on="event", event=".pusher:resumed")["data"]
    assert (answer["recovered"], answer["replayed"]) == (True, 1)
    assert client.next(on="event", event=".e")["data"] == 1
