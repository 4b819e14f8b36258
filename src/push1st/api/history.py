"""Reads and drops the history of a channel: `GET` and `DELETE /apps/{app}/channels/{channel}/history`.

A reader gets the kept messages in parts. `next` in an answer is the position with which the reader requests the next part.
"""

from collections.abc import Sequence

import msgspec

from push1st.api.call import Call, answer
from push1st.errors import Refused
from push1st.messages import KeptMessage, Response
from push1st.positions import Position

LIMIT = 100
MAX_LIMIT = 1000
"""the default and the maximum of the parameter `limit`"""
MAX_ANSWER_BYTES = 1 << 20
"""the number of bytes of the events in an answer; after these bytes, an answer ends early, and `next` continues it"""
_FLAGS = {"": False, "0": False, "false": False, "1": True, "true": True}


async def read(call: Call) -> Response:
    call.check_reads()
    (name,) = call.args
    call.check_channel_name(name)
    check_history(call, name, 404)
    params = call.params()
    page = await call.node.history.read(call.app.config.id, name, _since(params), _limit(params), _reverse(params))
    following = page.next
    chosen = _first_of(page.messages)
    if len(chosen) < len(page.messages):
        following = Position(page.position.epoch, chosen[-1].offset)
    return answer(
        {
            "position": str(page.position),
            "first": page.first,
            "recovered": page.recovered,
            "events": [_event(message) for message in chosen],
            "next": None if following is None else str(following),
        }
    )


def _first_of(messages: Sequence[KeptMessage]) -> Sequence[KeptMessage]:
    """Returns the first messages: as many as an answer may contain, and at least one."""
    size = 0
    for index, message in enumerate(messages):
        if size > MAX_ANSWER_BYTES:
            return messages[:index]
        size += len(message.data) + len(message.headers)
    return messages


async def clear(call: Call) -> Response:
    """Serves `DELETE …/history`, which drops the kept messages, and makes all earlier positions of the channel invalid.

    The channel may keep no history: before its history is turned on again, positions from the time before must become invalid.
    """
    (name,) = call.args
    call.check_channel_name(name)
    await call.node.history.clear(call.app.config.id, name)
    return answer({})


def check_history(call: Call, name: str, status: int) -> None:
    """Raises Refused with the given status if a channel keeps no history."""
    history = call.app.history
    if history is None or history(name) is None:
        raise Refused(status, f"{name} keeps no history: set history in the app's configuration, with a filter that fits {name}")


def _since(params: dict[str, str]) -> Position | None:
    text = params.get("since", "")
    if not text:
        return None
    try:
        return Position.parse(text)
    except ValueError as exc:
        raise Refused(400, f"since {text[:80]!r} is not a position, such as k3F9aQx2bT:1042") from exc


def _limit(params: dict[str, str]) -> int:
    text = params.get("limit", str(LIMIT))
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_LIMIT)) and 1 <= int(text) <= MAX_LIMIT):
        raise Refused(400, f"limit {text[:80]!r} is not a whole number from 1 to {MAX_LIMIT}")
    return int(text)


def _reverse(params: dict[str, str]) -> bool:
    text = params.get("reverse", "")
    if text not in _FLAGS:
        raise Refused(400, f"reverse {text[:80]!r} is unknown, allowed are 0 and 1")
    return _FLAGS[text]


def _event(message: KeptMessage) -> dict[str, object]:
    """Returns the JSON fields of a kept message. The optional fields are those that a raw client gets with the message."""
    event: dict[str, object] = {
        "offset": message.offset,
        "name": message.event,
        "data": msgspec.Raw(message.data),
        "msg-id": message.id,
        "msg-from": message.sender,
        "time": message.received // 1_000_000,
    }
    if message.user_id is not None:
        event["user_id"] = message.user_id
    if message.headers:
        event["headers"] = msgspec.Raw(message.headers)
    return event
