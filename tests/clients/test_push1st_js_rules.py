"""The rules of clients/js/push1st.js, with a server that does what each rule needs (`scripted`)."""

import itertools
import json
import queue
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.scripted import Peer, Road, ScriptedServer, SocketPeer, StreamPeer, message, resumed, scripted, since
from tests.support.nodejs import NodeProcess
from tests.support.process import free_ports

SOURCE = Path(__file__).parents[2] / "clients" / "js" / "push1st.js"
ROADS: tuple[Road, ...] = ("ws", "sse")
HURRY = 20
"""how many times faster the client connects again"""
HASTE = 30
"""how many times faster the client notices silence, in the tests of silence"""

Start = Callable[..., NodeProcess]


@pytest.fixture(params=ROADS)
def road(request: pytest.FixtureRequest) -> Road:
    found: Road = request.param
    return found


@pytest.fixture
def script(road: Road) -> Iterator[ScriptedServer]:
    with scripted(road) as server:
        yield server


@pytest.fixture
def sockets() -> Iterator[ScriptedServer]:
    with scripted("ws") as server:
        yield server


@pytest.fixture
def streams() -> Iterator[ScriptedServer]:
    with scripted("sse") as server:
        yield server


@pytest.fixture
def start(node: Start) -> Start:
    """Starts a client of a scripted server."""

    def started(server: ScriptedServer, *channels: str, query: str = "", **options: Any) -> NodeProcess:
        url = server.base + query
        flags = ["--experimental-websocket", "--no-warnings"]
        return node("push1st_js.mjs", flags=flags, **{"url": url, "channels": channels or ["c"], "hurry": HURRY, **options})

    return started


def established(server: ScriptedServer, channel: str = "c", position: str = "A:0", reason: str = "unknown") -> Any:
    """Accepts the next connection of a client of one channel, and confirms its subscription."""
    peer = server.accept()
    resumed(peer, channel, position, reason=reason)
    return peer


def reconnected(server: ScriptedServer, peer: Peer) -> Any:
    """Ends a connection; returns the client's next connection."""
    peer.end()
    return server.accept()


def is_silent(server: ScriptedServer, start: Start) -> bool:
    """Returns whether the next connection is that of a further client, because an earlier client does not connect."""
    start(server, "further")
    return "/further?" in server.accept().path


# Positions


def test_a_new_client_has_no_positions(script: ScriptedServer, start: Start) -> None:
    client = start(script, "a", "b")
    peer = script.accept()
    assert since(peer) == "-,-"
    resumed(peer, "a", "A:7", reason="unknown")
    assert client.next(on="gap") == {"on": "gap", "channel": "a", "reason": "unknown", "position": "A:7"}


def test_the_client_sends_the_position_of_each_channel(script: ScriptedServer, start: Start) -> None:
    client = start(script, "a", "b", "c", "d")
    peer = script.accept()
    resumed(peer, "a", "A:7", reason="unknown")
    resumed(peer, "b", "B:0", reason="unknown")
    resumed(peer, "c", reason="no-history")
    message(peer, "b", "e", 1, "B:1")
    message(peer, "c", "e", 2)
    client.next(on="event", channel="c")
    assert client.ask("positions") == {"a": "A:7", "b": "B:1"}
    assert since(reconnected(script, peer)) == "A:7,B:1,-,-"


def test_a_client_may_begin_at_given_positions(script: ScriptedServer, start: Start) -> None:
    start(script, "a", "b", positions={"b": "B:3"})
    assert since(script.accept()) == "-,B:3"


def test_repeats_are_dropped(script: ScriptedServer, start: Start) -> None:
    client = start(script, positions={"c": "A:9"})
    peer = script.accept()
    resumed(peer, "c", "A:11", replayed=4)
    for offset in (8, 9, 10, 11, 10, 12):
        message(peer, "c", "e", offset, f"A:{offset}")
    assert [client.next(on="event")["data"] for _ in range(3)] == [10, 11, 12]


def test_events_without_a_position_are_never_repeats(script: ScriptedServer, start: Start) -> None:
    client = start(script, positions={"c": "A:9"})
    peer = established(script)
    for _ in range(2):
        message(peer, "c", "member_added", 1)
    assert [client.next(on="event")["data"] for _ in range(2)] == [1, 1]


def test_a_callback_that_connects_again_does_not_get_the_event_again(script: ScriptedServer, start: Start) -> None:
    """centrifuge-dart#142, centrifuge-go#150, centrifuge-js#425: a handler that subscribes again got the event twice."""
    client = start(script, events={"again": "reopen"})
    peer = established(script)
    message(peer, "c", "again", 1, "A:1")
    assert since(script.accept()) == "A:1"
    assert client.next(on="event")["position"] == "A:1"


def test_an_epoch_is_not_adopted_without_its_offset(script: ScriptedServer, start: Start) -> None:
    """centrifuge-go#160, centrifuge-js#434: a client took the epoch of an answer, and kept the offset of another epoch."""
    client = start(script, positions={"c": "A:9"})
    peer = script.accept()
    resumed(peer, "c", "B:9", replayed=2)
    client.next(on="resumed", replayed=2)
    assert client.ask("positions") == {"c": "A:9"}
    peer = reconnected(script, peer)
    assert since(peer) == "A:9"
    resumed(peer, "c", "B:9", replayed=2)
    message(peer, "c", "e", 1, "B:8")
    client.next(on="event", data=1)
    assert client.ask("positions") == {"c": "B:8"}


def test_an_event_of_another_epoch_is_no_repeat(script: ScriptedServer, start: Start) -> None:
    client = start(script, positions={"c": "A:9"})
    peer = script.accept()
    resumed(peer, "c", "A:9")
    message(peer, "c", "e", 1, "B:1")
    assert client.next(on="event")["position"] == "B:1"


def test_an_empty_replay_moves_the_position(script: ScriptedServer, start: Start) -> None:
    """The messages in between have expired, or are not for this client."""
    client = start(script, positions={"c": "A:9"})
    peer = script.accept()
    resumed(peer, "c", "A:12")
    client.next(on="resumed")
    assert since(reconnected(script, peer)) == "A:12"


def test_a_cut_during_the_replay_resumes_after_the_last_replayed_event(script: ScriptedServer, start: Start) -> None:
    client = start(script, positions={"c": "A:9"})
    peer = script.accept()
    resumed(peer, "c", "A:12", replayed=3)
    message(peer, "c", "e", 1, "A:10")
    client.next(on="event")
    assert since(reconnected(script, peer)) == "A:10"


@pytest.mark.parametrize("position", ["B:4", ""])
def test_a_gap_drops_the_earlier_position(script: ScriptedServer, start: Start, position: str) -> None:
    """centrifuge-js#385: a client kept its positions after the server had dropped its state."""
    client = start(script, positions={"c": "A:9"})
    peer = script.accept()
    resumed(peer, "c", position, reason="state-lost")
    gap = client.next(on="gap")
    assert (gap["reason"], gap.get("position", "")) == ("state-lost", position)
    assert since(reconnected(script, peer)) == (position or "-")


def test_a_gap_of_a_live_connection_drops_the_earlier_position(script: ScriptedServer, start: Start) -> None:
    client = start(script)
    peer = established(script)
    message(peer, "c", "e", 1, "A:7")
    resumed(peer, "c", "B:0", reason="state-lost")
    client.next(on="gap", reason="state-lost")
    assert client.ask("positions") == {"c": "B:0"}


def test_a_cut_before_rewound_events_makes_a_gap_again(script: ScriptedServer, start: Start) -> None:
    client = start(script, query="?rewind=2")
    peer = script.accept()
    assert "rewind=2&" in peer.path
    resumed(peer, "c", "A:9", reason="unknown", replayed=2)
    client.next(on="gap")
    peer = reconnected(script, peer)
    assert since(peer) == "-"
    resumed(peer, "c", "A:9", reason="unknown", replayed=2)
    for offset in (8, 9):
        message(peer, "c", "e", offset, f"A:{offset}")
    assert [client.next(on="event")["data"] for _ in range(2)] == [8, 9]


@pytest.mark.parametrize("name", ["constructor", "__proto__", "a/b c", "ж"])
def test_any_name_of_a_channel_works(script: ScriptedServer, start: Start, name: str) -> None:
    client = start(script, name, name)
    peer = established(script, name)
    message(peer, name, "e", 1, "A:1")
    client.next(on="event", channel=name)
    peer = reconnected(script, peer)
    assert since(peer) == "A:1"
    assert re.fullmatch(r"/(ws|sse)/app/app-key/[^/]+\?&since=A:1", peer.path)


def test_events_may_have_the_names_of_replies(script: ScriptedServer, start: Start) -> None:
    client = start(script)
    peer = established(script)
    for name in ("resumed", "error", "pong"):
        message(peer, "c", name, {"recovered": False, "reason": "x", "code": 503, "position": "X:1"})
        client.next(on="event", event=name)
    assert client.ask("positions") == {"c": "A:0"}


# Callbacks


def test_an_exception_of_a_callback_does_not_end_the_connection(script: ScriptedServer, start: Start) -> None:
    client = start(script, events={"bad": "throw"})
    peer = established(script)
    message(peer, "c", "bad", 1, "A:1")
    client.next(on="raised", message="of the callback")
    message(peer, "c", "good", 2, "A:2")
    client.next(on="event", event="good")


def test_no_callback_is_called_after_close(script: ScriptedServer, start: Start) -> None:
    client = start(script, events={"last": "close"})
    peer = established(script)
    client.next(on="state", state="connected")
    frames = [{"event": name, "channel": "c", "data": 1, "#msg-id": 1} for name in ("last", "more")]
    if isinstance(peer, StreamPeer):  # in one piece
        peer.write("".join(f"data: {json.dumps(frame)}\n\n" for frame in frames).encode())
    else:
        for frame in frames:
            peer.frame(frame)
    client.next(on="state", state="closed")
    assert client.ask("state") == "closed"
    assert not [one for one in client.seen if one.get("event") == "more"]


def test_states_are_reported_with_their_reasons(sockets: ScriptedServer, start: Start) -> None:
    client = start(sockets)
    peer = established(sockets)
    client.next(on="state", state="connected")
    peer.close(4200, "the server stops")
    assert client.next(on="state") == {"on": "state", "state": "waiting", "reason": "4200 the server stops"}
    client.next(on="state", state="connecting")
    established(sockets)
    client.next(on="state", state="connected")
    client.tell("close")
    client.next(on="state", state="closed")


# Rejections


@pytest.mark.parametrize("code", [4001, 4003, 4009, 4100 - 1, 4300, 1008])
def test_close_codes_that_reject_the_client_are_final(sockets: ScriptedServer, start: Start, code: int) -> None:
    client = start(sockets)
    sockets.accept().close(code, "no")
    client.next(on="state", state="closed")
    error = client.next(on="error")
    assert error["code"] == code
    assert "no" in error["message"]
    assert client.ask("state") == "closed"


@pytest.mark.parametrize("status", [401, 403, 404])
def test_statuses_that_reject_the_client_are_final(streams: ScriptedServer, start: Start, status: int) -> None:
    client = start(streams)
    streams.accept().answer(status, b"the reason")
    client.next(on="state", state="closed")
    assert client.next(on="error") == {"on": "error", "code": status, "message": "the reason"}


@pytest.mark.parametrize("code", [1001, 1011, 4004, 4100, 4200, 4201])
def test_other_close_codes_are_temporary(sockets: ScriptedServer, start: Start, code: int) -> None:
    client = start(sockets)
    sockets.accept().close(code)
    established(sockets)
    client.next(on="gap")


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_other_statuses_are_temporary(streams: ScriptedServer, start: Start, status: int) -> None:
    client = start(streams)
    streams.accept().answer(status)
    established(streams)
    client.next(on="gap")


def test_an_established_client_connects_again_after_1008(sockets: ScriptedServer, start: Start) -> None:
    """The server closes with 1008 when a token expires, and when a client is too slow."""
    client = start(sockets, tokens=["one", "two"])
    peer = established(sockets)
    assert peer.token == "one"
    client.next(on="state", state="connected")
    peer.frame({"event": "error", "data": {"code": 401, "message": "the token has expired"}})
    peer.close(1008)
    peer = sockets.accept()
    assert peer.token == "two"
    peer.close(1008)
    client.next(on="error", code=1008)


def test_a_rejected_channel_does_not_end_the_connection(script: ScriptedServer, start: Start) -> None:
    client = start(script, "c", "private-c")
    peer = established(script)
    peer.frame({"event": "error", "channel": "private-c", "data": {"code": 403, "message": "no token"}})
    assert client.next(on="error") == {"on": "error", "code": 403, "message": "no token", "channel": "private-c"}
    message(peer, "c", "e", 1)
    client.next(on="event")


def test_a_channel_that_is_rejected_for_now_is_subscribed_again(script: ScriptedServer, start: Start) -> None:
    client = start(script, "a", "b")
    peer = established(script, "a")
    message(peer, "a", "e", 1, "A:1")
    peer.frame({"event": "error", "channel": "b", "data": {"code": 503, "message": "the broker is away"}})
    client.next(on="state", state="waiting", reason="the broker is away")
    assert since(script.accept()) == "A:1,-"


def test_frames_after_the_end_of_an_attempt_are_dropped(sockets: ScriptedServer, start: Start) -> None:
    client = start(sockets, "a", late=True)
    peer = established(sockets, "a")
    peer.frame({"event": "error", "channel": "a", "data": {"code": 503, "message": "the broker is away"}})
    established(sockets, "a")
    client.next(on="gap")
    client.next(on="gap")
    assert not [one for one in client.seen if one["on"] == "event"]


# Tokens


def test_a_function_makes_the_token_of_each_connection(script: ScriptedServer, start: Start) -> None:
    start(script, tokens=["one", "two"])
    peer = established(script)
    assert peer.token == "one"
    assert reconnected(script, peer).token == "two"


def test_a_token_may_be_a_text(script: ScriptedServer, start: Start) -> None:
    start(script, token="a+b/c=")
    peer = established(script)
    assert peer.token == "a+b/c="
    assert reconnected(script, peer).token == "a+b/c="


def test_a_token_of_a_stream_is_not_in_its_url(streams: ScriptedServer, start: Start) -> None:
    start(streams, token="one")
    assert "one" not in streams.accept().path


def test_without_its_token_the_client_waits(script: ScriptedServer, start: Start) -> None:
    client = start(script, tokens=[{"error": "the backend is away"}, "two"])
    client.next(on="state", state="waiting", reason="the backend is away")
    assert script.accept().token == "two"


# Reconnecting


def delays(client: NodeProcess, count: int) -> list[float]:
    """Returns the next delays before connections, in milliseconds."""
    return [client.next(on="delay")["ms"] for _ in range(count)]


def test_the_delay_doubles_and_is_random(sockets: ScriptedServer, start: Start) -> None:
    client = start(sockets, hurry=1000)
    assert delays(client, 1) == [0]
    for _ in range(6):
        sockets.accept().close(1001)
    factors = [delay / base for delay, base in zip(delays(client, 6), (1000, 2000, 4000, 8000, 16_000, 16_000), strict=True)]
    assert all(0.5 <= factor <= 1.5 for factor in factors)
    assert len(set(factors)) == 6


def test_the_delay_is_short_again_after_a_subscription(sockets: ScriptedServer, start: Start) -> None:
    client = start(sockets, hurry=1000)
    for _ in range(3):
        sockets.accept().close(1001)
    established(sockets).close(1001)
    assert delays(client, 5)[4] <= 1500


def test_a_stream_sets_the_delay(streams: ScriptedServer, start: Start) -> None:
    client = start(streams, hurry=1000)
    peer = streams.accept()
    peer.write(b"retry: 20000\n\n")
    peer.end()
    assert 10_000 <= delays(client, 2)[1] <= 30_000


def test_a_silent_socket_is_pinged(sockets: ScriptedServer, start: Start) -> None:
    client = start(sockets, haste=HASTE)
    peer: SocketPeer = established(sockets)
    for _ in range(3):
        assert peer.received() == {"event": "ping"}
        peer.frame({"event": "pong"})
    assert client.ask("state") == "connected"
    assert peer.received() == {"event": "ping"}
    client.next(on="state", state="waiting", reason="no answer")
    assert since(sockets.accept()) == "A:0"


def test_a_silent_stream_is_lost(streams: ScriptedServer, start: Start) -> None:
    client = start(streams, haste=HASTE)
    peer = established(streams)
    client.next(on="state", state="connected")
    for _ in range(3):
        peer.write(b":\n\n")
    client.next(on="state", state="waiting", reason="no answer")
    assert since(streams.accept()) == "A:0"


def test_a_connection_without_an_answer_is_lost(script: ScriptedServer, start: Start) -> None:
    client = start(script, haste=HASTE)
    script.accept()
    client.next(on="state", state="waiting", reason="no answer")
    script.accept()


def test_a_closed_client_does_not_connect_again(script: ScriptedServer, start: Start) -> None:
    client = start(script)
    script.accept().end()
    client.next(on="state", state="waiting")
    client.tell("close")
    client.next(on="state", state="closed")
    assert is_silent(script, start)
    assert client.ask("state") == "closed"


def test_a_client_that_is_closed_before_it_has_its_token_does_not_connect(script: ScriptedServer, start: Start) -> None:
    client = start(script, tokens=[{"held": "one"}])
    client.next(on="token")
    client.tell("close")
    client.next(on="state", state="closed")
    client.tell("release")
    assert is_silent(script, start)


def test_close_ends_the_connection(script: ScriptedServer, start: Start) -> None:
    client = start(script)
    peer = established(script)
    client.next(on="state", state="connected")
    client.tell("close")
    peer.wait_closed()


def test_a_failed_handshake_is_tried_again(start: Start) -> None:
    (port,) = free_ports(1)
    nobody = ScriptedServer(f"ws://127.0.0.1:{port}/ws/app/app-key", queue.Queue())
    client = start(nobody)
    for _ in range(2):
        client.next(on="state", state="connecting")
        client.next(on="state", state="waiting", reason="no answer")


# Streams and URLs


def test_a_stream_is_read_in_any_pieces(streams: ScriptedServer, start: Start) -> None:
    client = start(streams)
    peer = established(streams)
    data = "\u2028 \U0001f980 data: {"
    frames = "retry: 1500\n:\n\nevent: position\nid: A:0\ndata: A:0\n\nid: A:1\n"
    frames += f'data: {{"event":"e","channel":"c","data":"{data}","pos":"A:1"}}\n\n'
    client.next(on="gap")
    text = frames.encode()
    places = [0, text.index(b"ata: A"), text.index(b"data: {") + 3, text.index("\u2028".encode()) + 1, len(text) - 2, len(text)]
    for begin, end in itertools.pairwise(places):
        peer.write(text[begin:end])
        time.sleep(0.1)  # so that the client reads the pieces one by one
    assert client.next(on="event")["data"] == data


def test_an_incomplete_event_is_dropped(streams: ScriptedServer, start: Start) -> None:
    client = start(streams)
    peer = established(streams)
    peer.write(b'data: {"event":"e","channel":"c","data":1,"pos":"A:1"}')
    assert since(reconnected(streams, peer)) == "A:0"
    assert not [one for one in client.seen if one["on"] == "event"]


def test_the_query_of_the_url_is_sent(script: ScriptedServer, start: Start) -> None:
    start(script, "a", query="?session=ann%20b&rewind=30s")
    assert script.accept().path.partition("?")[2] == "session=ann%20b&rewind=30s&since=-"


def test_the_source_is_small() -> None:
    """The documentation promises at most 4 KB without comments and indentation."""
    lines = [line.strip() for line in SOURCE.read_text("utf-8").splitlines()]
    assert len("\n".join(line for line in lines if line and not line.startswith("//"))) <= 4096
