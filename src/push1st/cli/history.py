"""`push1st history`: prints the kept messages of a channel, which it requests from the HTTP API."""

import json
import sys
from urllib.parse import quote

import msgspec

from push1st.cli.arguments import Arguments
from push1st.cli.backend import backend
from push1st.cli.client import naming_assumed_app, select
from push1st.errors import ClientError
from push1st.positions import Position
from push1st.printable import printable

MOST = 1000
"""the maximum number of events that one request may return"""


class HistoryEvent(msgspec.Struct, frozen=True):
    offset: int
    name: str
    data: msgspec.Raw


class HistoryAnswer(msgspec.Struct, frozen=True):
    """A part of a history, as the API describes it."""

    position: str
    recovered: bool
    events: list[HistoryEvent]
    next: str | None


def run(options: Arguments) -> int:
    """Prints the kept events of a channel: position, name and data, a line each. Raises ConfigError and ClientError."""
    target = select(options)
    sender = backend(target, options)
    path = f"channels/{quote(options.channel, safe='')}/history"
    since, left = options.since, options.limit
    while left > 0:
        params = {"limit": str(min(left, MOST))}
        if since:
            params["since"] = since
        if options.reverse:
            params["reverse"] = "1"
        with naming_assumed_app(target):
            answer = _decode(sender.request("GET", path, params))
        if not answer.recovered:
            print(f"note: some events between {printable(since)} and the first line are not kept", file=sys.stderr)
        epoch = answer.position.partition(":")[0]
        for event in answer.events:
            print(Position(epoch, event.offset), printable(event.name), printable(_text(event.data)), sep="  ")
        left -= len(answer.events)
        if answer.next is None:
            print(f"the position of {printable(options.channel)} is {printable(answer.position)}", file=sys.stderr)
            break
        since = answer.next
    return 0


def _decode(text: str) -> HistoryAnswer:
    try:
        return msgspec.json.decode(text, type=HistoryAnswer)
    except msgspec.DecodeError as exc:
        raise ClientError(f"the server does not speak Push1st's API: {exc}") from exc


def _text(data: msgspec.Raw) -> str:
    """Returns the data of an event as Pusher clients receive it: a text unchanged, any other value as JSON."""
    text = bytes(data).decode()
    return json.loads(text) if text.startswith('"') else text
