"""Many publishes at once, merged into few writes: each subscriber gets its events once and in order.

The requests are pipelined on one connection, so that the server reads many of them in one turn of its loop.
"""

import contextlib
import json
import threading
from collections.abc import Callable
from typing import Any

from tests.support.process import ServerProcess
from tests.support.pusher_socket import PusherSocket, pusher_socket
from tests.support.raw_socket import RawSocket, raw_socket
from tests.support.wire import Wire

COUNT = 300


def publish_all(server: ServerProcess, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sends all requests, then reads all answers; returns the answers."""
    with Wire(server.api_port) as wire:
        requests = []
        for body in bodies:
            data = json.dumps(body).encode()
            requests.append(
                b"POST /apps/app-test/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data)
            )
        writer = threading.Thread(target=wire.send, args=[b"".join(requests)])
        writer.start()
        answers = [wire.response() for _ in bodies]
        writer.join()
    assert {status for status, _, _ in answers} == {200}
    return [json.loads(body) for _, _, body in answers]


def event(channel: str, number: int, **more: Any) -> dict[str, Any]:
    return {"name": "e", "channels": [channel], "data": number, **more}


def numbers(client: PusherSocket | RawSocket) -> list[int]:
    """Returns the data of all received events."""
    return [int(frame["data"]) for frame in client.round_trip()]


def test_a_burst_arrives_whole_and_in_order_on_both_sides(
    server: ServerProcess, connect: Callable[..., PusherSocket], channel: str
) -> None:
    client = connect()
    client.subscribe(channel)
    with raw_socket(server, channel) as raw:
        server.until_sessions(channel, 2)
        answers = publish_all(server, [event(channel, number) for number in range(COUNT)])
        assert [answer["channels"] for answer in answers] == [{channel: 2}] * COUNT
        assert numbers(client) == numbers(raw) == list(range(COUNT))


def test_exclusion_in_a_burst_affects_only_the_named_connection(
    server: ServerProcess, connect: Callable[..., PusherSocket], channel: str
) -> None:
    first, second, third = connect(), connect(), connect()
    for client in (first, second, third):
        client.subscribe(channel)
    excluded = ["", first.socket_id, second.socket_id]
    publish_all(server, [event(channel, number, socket_id=excluded[number % 3]) for number in range(COUNT)])
    assert numbers(first) == [number for number in range(COUNT) if number % 3 != 1]
    assert numbers(second) == [number for number in range(COUNT) if number % 3 != 2]
    assert numbers(third) == list(range(COUNT))


def test_deliveries_of_every_kind_keep_their_order_in_a_burst(server: ServerProcess, channel: str) -> None:
    with (
        raw_socket(server, channel, query="session=desk") as desk,
        raw_socket(server, channel, query="session=door") as door,
    ):
        server.until_sessions(channel, 2)
        sessions = [session["id"] for session in server.get(f"/apps/app-test/channels/{channel}/").json["sessions"]]
        one = next(session for session in sessions if session.startswith("door."))
        kinds: list[dict[str, Any]] = [
            {},
            {"options": {"delivery": "multicast", "session": "desk"}},
            {"options": {"delivery": "unicast", "session": one}},
            {"socket_id": one},
        ]
        publish_all(server, [event(channel, number, **kinds[number % 4]) for number in range(COUNT)])
        assert numbers(desk) == [number for number in range(COUNT) if number % 4 in {0, 1, 3}]
        assert numbers(door) == [number for number in range(COUNT) if number % 4 in {0, 2}]


def test_channels_of_a_burst_do_not_mix(server: ServerProcess, connect: Callable[..., PusherSocket], channel: str) -> None:
    names = [f"{channel}-{number}" for number in range(5)]
    client = connect()
    for name in names[:-1]:
        client.subscribe(name)
    publish_all(server, [event(names[number % 5], number) for number in range(COUNT)])
    frames = client.round_trip()
    for position, name in enumerate(names):
        got = [int(frame["data"]) for frame in frames if frame["channel"] == name]
        assert got == (list(range(position, COUNT, 5)) if name != names[-1] else [])


def test_subscriber_that_joins_within_a_burst_gets_each_later_event_once(server: ServerProcess, channel: str) -> None:
    bursts = 20
    with contextlib.ExitStack() as stack, raw_socket(server, channel) as whole:
        server.until_sessions(channel, 1)

        def publish() -> None:
            for burst in range(bursts):
                publish_all(server, [event(channel, burst * 50 + number) for number in range(50)])

        publisher = threading.Thread(target=publish)
        publisher.start()
        joined: list[PusherSocket] = []
        while publisher.is_alive() and len(joined) < 30:
            client = stack.enter_context(pusher_socket(server))
            client.send("pusher:subscribe", {"channel": channel})
            joined.append(client)
        publisher.join()
        assert numbers(whole) == list(range(bursts * 50))
        for client in joined:
            answer, *rest = client.round_trip()
            assert answer["event"] == "pusher_internal:subscription_succeeded"
            got = [int(frame["data"]) for frame in rest]
            assert got == list(range(bursts * 50 - len(got), bursts * 50)), "all from the first on, to the last"


def test_event_published_after_the_subscription_reply_is_received(
    server: ServerProcess, connect: Callable[..., PusherSocket], channel: str
) -> None:
    for number in range(50):
        client = connect()
        client.subscribe(channel)
        server.publish(channel, "e", number)
        assert client.expect("e", channel) == number


def test_event_published_after_unsubscribing_is_not_received(
    server: ServerProcess, connect: Callable[..., PusherSocket], channel: str
) -> None:
    client, stays = connect(), connect()
    stays.subscribe(channel)
    for number in range(50):
        client.subscribe(channel)
        client.send("pusher:unsubscribe", {"channel": channel})
        assert client.round_trip() == []
        server.publish(channel, "e", number)
        assert client.round_trip() == []
        assert stays.expect("e", channel) == number


def test_disconnect_within_a_burst_does_not_affect_other_clients(server: ServerProcess, channel: str) -> None:
    with raw_socket(server, channel) as stays, contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(pusher_socket(server)).subscribe(channel)
        server.until_sessions(channel, 21)
        leaver = threading.Thread(target=stack.close)
        leaver.start()
        publish_all(server, [event(channel, number) for number in range(COUNT)])
        leaver.join()
        assert numbers(stays) == list(range(COUNT))
