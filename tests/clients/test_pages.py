"""Pages: an unmodified Pusher client gets the events that it missed, because its URL names a page."""

import contextlib
import json
import secrets
import socket
import urllib.parse
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.process import APP, ServerProcess, merged, running
from tests.support.pusher_socket import PusherSocket, dialled, sign_in

HISTORY: dict[str, Any] = {
    "history": [{"filter": ["news-", "private-", "presence-", "cache-", "#server-to-user-"], "size": 100, "ttl": 60}],
    "resume": {"seconds": 60, "acknowledge": 1},
}


@pytest.fixture(scope="module")
def kept() -> Iterator[ServerProcess]:
    """Runs a server whose app keeps a history."""
    with running(apps={"app-test": merged(APP, HISTORY), "app-plain": merged(APP, {"key": "plain-key"})}) as process:
        yield process


def name() -> str:
    return secrets.token_hex(16)


class Page:
    """A page without a client library: each connection returns all frames."""

    def __init__(self, server: ServerProcess, stack: contextlib.ExitStack) -> None:
        self.server = server
        self.name = name()
        self._stack = stack

    def connect(self, prefix: str = "", key: str = "app-key") -> PusherSocket:
        client = self._stack.enter_context(dialled(self.server, f"/resume/{self.name}{prefix}/app/{key}"))
        client.key = key
        return client.established()


@pytest.fixture
def page(kept: ServerProcess, stack: contextlib.ExitStack) -> Page:
    return Page(kept, stack)


def channel(kind: str = "news-") -> str:
    return kind + secrets.token_hex(4)


def publish(server: ServerProcess, where: str, data: str, **more: Any) -> None:
    body = {"name": "e", "channel": where, "data": data, **more}
    answer = server.post("/apps/app-test/events", body)
    assert answer.status == 200, answer


def join(client: PusherSocket, where: str, user: dict[str, Any] | None = None) -> dict[str, Any]:
    """Subscribes, and returns the data of `pusher:resumed`."""
    client.request_subscription(where, user)
    until(client, "pusher_internal:subscription_succeeded")
    found: dict[str, Any] = client.expect("pusher:resumed", where)
    return found


def until(client: PusherSocket, event: str) -> dict[str, Any]:
    """Returns the next frame of an event; answers pings before it."""
    while True:
        frame = client.receive()
        if frame["event"] == "pusher:ping" and event != "pusher:ping":
            client.send("pusher:pong")
        elif frame["event"] == event:
            return frame


def acknowledge(client: PusherSocket) -> None:
    """Reads until the server requests an acknowledgement, and sends it; returns when the server has stored it."""
    until(client, "pusher:ping")
    client.send("pusher:pong")
    client.round_trip()


def events(client: PusherSocket, count: int) -> list[str]:
    return [until(client, "e")["data"] for _ in range(count)]


def kill(client: PusherSocket) -> None:
    """Ends a connection without a close frame."""
    client.connection.socket.shutdown(socket.SHUT_RDWR)


# The path


@pytest.mark.parametrize("prefix", ["", "/pusher"])
def test_page_is_accepted_on_both_paths(page: Page, prefix: str) -> None:
    where = channel()
    assert join(page.connect(prefix), where)["reason"] == "unknown"


@pytest.mark.parametrize("bad", ["", "a" * 15, "a" * 65, "..", "ä" * 20, "a b" * 8, "%2e" * 8], ids=repr)
def test_invalid_page_name_is_rejected(kept: ServerProcess, bad: str) -> None:
    with dialled(kept, f"/resume/{urllib.parse.quote(bad, safe='%')}/app/app-key") as client:
        assert client.close_code() == 4005


def test_connection_without_a_page_gets_no_resumed(kept: ServerProcess, stack: contextlib.ExitStack) -> None:
    client = stack.enter_context(dialled(kept)).established()
    client.subscribe(channel())
    assert client.round_trip() == []


def test_app_without_a_history_answers_that_it_keeps_nothing(page: Page) -> None:
    client = page.connect(key="plain-key")
    client.subscribe("news-1")
    assert client.expect("pusher:resumed", "news-1") == {"recovered": False, "reason": "no-history"}
    assert client.round_trip() == []


# Recovery


def test_first_subscription_is_unknown(page: Page) -> None:
    where = channel()
    answer = join(page.connect(), where)
    assert answer == {"recovered": False, "reason": "unknown", "position": answer["position"]}
    assert answer["position"].endswith(":0")


def test_page_gets_what_it_missed_after_a_lost_connection(page: Page) -> None:
    where = channel()
    client = page.connect()
    join(client, where)
    publish(page.server, where, "1")
    events(client, 1)
    acknowledge(client)
    kill(client)
    publish(page.server, where, "2")
    publish(page.server, where, "3")
    again = page.connect()
    answer = join(again, where)
    assert answer == {"recovered": True, "replayed": 2, "repeats": True, "position": answer["position"]}
    publish(page.server, where, "4")
    assert events(again, 3) == ["2", "3", "4"]


def test_idle_channel_is_recovered_after_one_acknowledgement(page: Page) -> None:
    where = channel()
    client = page.connect()
    join(client, where)
    acknowledge(client)
    kill(client)
    publish(page.server, where, "1")
    again = page.connect()
    assert join(again, where)["replayed"] == 1
    assert events(again, 1) == ["1"]


def test_page_that_acknowledged_nothing_is_unknown_again(page: Page) -> None:
    where = channel()
    client = page.connect()
    join(client, where)
    kill(client)
    assert join(page.connect(), where)["reason"] == "unknown"


def test_events_that_were_not_acknowledged_are_replayed(page: Page) -> None:
    where = channel()
    client = page.connect()
    join(client, where)
    acknowledge(client)
    publish(page.server, where, "1")
    events(client, 1)
    kill(client)
    again = page.connect()
    answer = join(again, where)
    assert (answer["replayed"], answer["repeats"]) == (1, True)
    assert events(again, 1) == ["1"]


def test_death_during_a_replay_is_harmless(page: Page) -> None:
    where = channel()
    client = page.connect()
    join(client, where)
    acknowledge(client)
    kill(client)
    publish(page.server, where, "1")
    for _ in range(3):
        again = page.connect()
        assert join(again, where)["recovered"]
        kill(again)
    last = page.connect()
    assert join(last, where)["replayed"] == 1
    assert events(last, 1) == ["1"]


def test_channel_that_the_page_left_is_unknown(page: Page) -> None:
    where = channel()
    client = page.connect()
    join(client, where)
    acknowledge(client)
    client.send("pusher:unsubscribe", {"channel": where})
    client.round_trip()
    kill(client)
    assert join(page.connect(), where)["reason"] == "unknown"


def test_graceful_end_is_recovered_without_repeats(page: Page) -> None:
    """The server ends a connection of an app with a terminated user; the client answers the close frame."""
    where = channel()
    client = page.connect()
    sign_in(client, "ann-1")
    join(client, where)
    acknowledge(client)
    publish(page.server, where, "1")
    events(client, 1)
    assert page.server.post("/apps/app-test/users/ann-1/terminate_connections", {}).status == 200
    assert client.close_code() == 4009
    publish(page.server, where, "2")
    again = page.connect()
    answer = join(again, where)
    assert (answer["recovered"], answer["replayed"], answer["repeats"]) == (True, 1, False)
    assert events(again, 1) == ["2"]


def test_end_by_the_client_proves_nothing(page: Page) -> None:
    where = channel()
    client = page.connect()
    join(client, where)
    acknowledge(client)
    publish(page.server, where, "1")
    events(client, 1)
    client.close()
    again = page.connect()
    assert join(again, where)["repeats"]
    assert events(again, 1) == ["1"]


def test_trimmed_history_is_not_recovered(page: Page) -> None:
    where = channel()
    client = page.connect()
    join(client, where)
    acknowledge(client)
    kill(client)
    for number in range(101):
        publish(page.server, where, str(number))
    again = page.connect()
    answer = join(again, where)
    assert (answer["reason"], "replayed" in answer) == ("trimmed", False)
    assert again.round_trip() == []


def test_each_subscription_needs_its_right_again(page: Page) -> None:
    where = channel("private-")
    client = page.connect()
    join(client, where)
    acknowledge(client)
    kill(client)
    again = page.connect()
    again.request_subscription(where, secret="wrong")
    again.expect_refusal(where)
    assert join(again, where)["recovered"]


def test_own_client_events_are_not_replayed(page: Page) -> None:
    where = channel("private-")
    client = page.connect()
    join(client, where)
    acknowledge(client)
    client.send("client-typed", "mine", where)
    client.round_trip()
    publish(page.server, where, "theirs")
    publish(page.server, where, "excluded", socket_id=client.socket_id)
    kill(client)
    again = page.connect()
    assert join(again, where)["replayed"] == 1
    assert events(again, 1) == ["theirs"]


def test_presence_channel_is_recovered_without_joins_and_leaves(page: Page, stack: contextlib.ExitStack) -> None:
    where = channel("presence-")
    client = page.connect()
    join(client, where, {"user_id": "ann"})
    acknowledge(client)
    kill(client)
    other = stack.enter_context(dialled(page.server)).established()
    other.subscribe(where, {"user_id": "bob"})
    other.send("client-typed", "hello", where)
    other.round_trip()
    again = page.connect()
    assert join(again, where, {"user_id": "ann"})["replayed"] == 1
    frame = again.receive()
    assert (frame["event"], frame["data"], frame["user_id"]) == ("client-typed", "hello", "bob")
    assert again.round_trip() == []


def test_cache_channel_gets_its_kept_event_only_if_it_is_not_recovered(page: Page) -> None:
    where = channel("cache-")
    client = page.connect()
    join(client, where)
    client.expect("pusher:cache_miss", where)
    publish(page.server, where, "1")
    events(client, 1)
    acknowledge(client)
    kill(client)
    publish(page.server, where, "2")
    again = page.connect()
    assert join(again, where)["recovered"]
    assert [again.receive()["data"], *again.round_trip()] == ["2"]


def test_events_for_a_user_come_after_the_replay_and_only_once(page: Page) -> None:
    where = "#server-to-user-eve"
    client = page.connect()
    sign_in(client, "eve")
    join(client, where)
    acknowledge(client)
    kill(client)
    publish(page.server, where, "1")
    again = page.connect()
    sign_in(again, "eve")
    publish(page.server, where, "2")  # held until the client subscribes
    assert join(again, where)["replayed"] == 2
    assert events(again, 2) == ["1", "2"]
    assert again.round_trip() == []


@pytest.mark.parametrize("is_known", [True, False])
def test_events_for_a_user_that_exceed_the_bound_of_held_events_come_after_the_replay(page: Page, is_known: bool) -> None:
    user = secrets.token_hex(4)
    where = f"#server-to-user-{user}"
    if is_known:
        client = page.connect()
        sign_in(client, user)
        join(client, where)
        acknowledge(client)
        kill(client)
    again = page.connect()
    sign_in(again, user)
    values = [f"{n}".zfill(3000) for n in range(50)]
    for value in values:
        publish(page.server, where, value)
    answer = join(again, where)
    assert "e" not in [frame["event"] for frame in again.frames]
    assert answer["recovered"] == is_known
    if is_known:
        assert events(again, 50) == values
    else:  # the client loads its state, so it does not need the older events
        latest = [frame["data"] for frame in again.round_trip() if frame["event"] == "e"]
        assert 0 < len(latest) < 50
        assert latest == values[-len(latest) :]
    publish(page.server, where, "last")
    assert events(again, 1) == ["last"]


# Shared names


def test_two_live_connections_with_one_name_are_shared(page: Page) -> None:
    where = channel()
    first = page.connect()
    join(first, where)
    acknowledge(first)
    second = page.connect()
    second.request_subscription(where)
    until(first, "pusher:ping")
    first.send("pusher:pong")
    until(second, "pusher_internal:subscription_succeeded")
    assert second.expect("pusher:resumed", where)["reason"] == "shared"
    kill(second)
    third = page.connect()
    assert join(third, where)["reason"] == "shared"


def test_late_answer_of_a_first_connection_notifies_both(page: Page) -> None:
    where = channel()
    first = page.connect()
    join(first, where)
    acknowledge(first)
    second = page.connect()
    assert join(second, where)["recovered"]  # after a second without an answer
    until(first, "pusher:ping")
    first.send("pusher:pong")
    assert json.loads(until(first, "pusher:resumed")["data"])["reason"] == "shared"
    assert json.loads(until(second, "pusher:resumed")["data"])["reason"] == "shared"


def test_zombie_is_closed_after_ten_seconds(page: Page) -> None:
    where = channel()
    first = page.connect()
    join(first, where)
    acknowledge(first)
    publish(page.server, where, "1")
    events(first, 1)
    second = page.connect()
    assert join(second, where)["replayed"] == 1
    until(first, "pusher:ping")
    assert first.close_code(15) == 4201
    acknowledge(second)
    kill(second)
    publish(page.server, where, "2")
    third = page.connect()
    assert join(third, where)["replayed"] == 1
    assert events(third, 1) == ["2"]


def test_page_that_ends_its_connection_and_connects_at_once_is_not_shared(page: Page) -> None:
    where = channel()
    client = page.connect()
    join(client, where)
    acknowledge(client)
    for _ in range(5):
        client.close()
        client = page.connect()
        assert join(client, where)["recovered"]


def test_connection_that_never_subscribes_is_no_twin(page: Page) -> None:
    where = channel()
    loser = page.connect()
    winner = page.connect()
    assert join(winner, where)["reason"] == "unknown"
    loser.close()
    acknowledge(winner)
    kill(winner)
    assert join(page.connect(), where)["recovered"]
