"""The arguments of `push1st subscribe --since` and `--rewind`, and what the command makes of the raw frames it receives."""

import argparse
import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from push1st import auth
from push1st.cli import arguments
from push1st.cli.raw import raw_path, receive
from push1st.errors import ClientError, Rejected

RESUMED = {"event": "resumed", "channel": "a", "data": {"recovered": True, "replayed": 1, "position": "k:2"}}
EVENT = {"event": "e", "channel": "a", "data": {"id": 7}, "#msg-id": 5, "#msg-from": "api", "#msg-pos": "k:2"}


def received(*frames: Any, channels: tuple[str, ...] = ("a",), count: int = 0) -> list[Any]:
    """What the command shows of these frames. Frames that are texts are received unchanged."""
    seen: list[Any] = []
    texts: Any = iter([frame if isinstance(frame, str) else json.dumps(frame) for frame in frames])
    receive(
        texts,
        list(channels),
        lambda *event: seen.append(event),
        lambda *one: seen.append(one),
        lambda: seen.append("ready"),
        count,
    )
    return seen


def test_events_are_shown_with_their_positions() -> None:
    assert received(RESUMED, EVENT, EVENT | {"data": "text"}) == [
        ("a", RESUMED["data"]),
        "ready",
        ("k:2", "a", "e", '{"id": 7}'),
        ("k:2", "a", "e", "text"),
    ]


def test_event_without_a_position_is_shown_with_a_dash() -> None:
    assert received({key: value for key, value in EVENT.items() if key != "#msg-pos"})[0][0] == "-"


def test_client_is_ready_when_every_channel_is_resumed() -> None:
    other = RESUMED | {"channel": "b"}
    assert received(RESUMED, RESUMED, other, other, channels=("a", "b")).index("ready") == 3


def test_event_named_resumed_is_an_event() -> None:
    assert received(EVENT | {"event": "resumed"}) == [("k:2", "a", "resumed", '{"id": 7}')]


def test_command_ends_after_a_number_of_events() -> None:
    assert len(received(EVENT, EVENT, EVENT, count=2)) == 2


def test_error_of_the_server_ends_the_command() -> None:
    with pytest.raises(Rejected, match=r"the server reported an error: .*too many"):
        received({"event": "error", "data": {"code": 429, "message": "too many"}})


@pytest.mark.parametrize("frame", ["no JSON", "[]", "{}", "7"])
def test_frame_of_another_protocol_is_reported(frame: str) -> None:
    with pytest.raises(ClientError, match="does not speak Push1st's raw protocol"):
        received(frame)


def test_path_has_the_channels_and_the_positions() -> None:
    path = urlsplit(raw_path("/ws/app/", "id", "key", "", ["a", "b/c"], ["k3F9aQx2bT:7", "-"], "30s"))
    assert path.path == "/ws/app/key/a/b%2Fc"
    assert path.query == "positions=1&since=k3F9aQx2bT:7,-&rewind=30s"


def test_path_has_a_token_for_channels_that_need_one() -> None:
    query = parse_qs(urlsplit(raw_path("/ws/app/", "id", "key", "secret", ["a", "private-b"], None, "5")).query)
    claims = auth.check_access_token(("secret",), "id", query["token"][0], 0)
    assert (claims.allows("private-b"), claims.allows("private-c"), query["rewind"]) == (True, False, ["5"])


def test_each_channel_needs_a_position() -> None:
    with pytest.raises(ClientError, match="--since has 1 positions for 2 channels"):
        raw_path("/ws/app/", "id", "key", "", ["a", "b"], ["k:1"], None)


@pytest.mark.parametrize(("text", "found"), [("k:1", ["k:1"]), ("k:1,-,l:0", ["k:1", "-", "l:0"])])
def test_positions_are_read(text: str, found: list[str]) -> None:
    assert arguments.positions(text) == found


@pytest.mark.parametrize("text", ["", "k", "k:1,", "k:-1", ",", "k:" + "1" * 40])
def test_wrong_position_is_rejected(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"allowed: a position such as"):
        arguments.positions(text)


@pytest.mark.parametrize("text", ["1", "100", "30s"])
def test_a_rewind_is_read(text: str) -> None:
    assert arguments.rewind(text) == text


@pytest.mark.parametrize("text", ["0", "", "s", "-1", "30m", "1s s", "²", "9" * 5000])
def test_wrong_rewind_is_rejected(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="allowed: a number of events, or seconds such as 30s"):
        arguments.rewind(text)


@pytest.mark.parametrize("text", ["0", "", "-1", "1.5", "ten", "9" * 5000])
def test_wrong_limit_is_rejected(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="allowed: a whole number from 1 on"):
        arguments.whole(text)
