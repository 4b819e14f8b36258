"""The endpoint for the history of a channel: the kept messages, the newest first, and the results of resumptions."""

from collections import Counter

import msgspec

from push1st.console.cursors import NO_CURSOR, shown_data
from push1st.console.endpoints import ConsoleCall, ConsoleContext, ConsoleEndpoint
from push1st.errors import Refused
from push1st.messages import KeptMessage
from push1st.positions import Position

MAX_LIMIT = 100
_counts = msgspec.msgpack.Decoder(dict[str, int]).decode


class HistoryList:
    """The histories of channels."""

    def __init__(self, context: ConsoleContext) -> None:
        self._context = context
        self._node = context.node
        self.endpoints = (ConsoleEndpoint("GET", r"apps/([^/]+)/channels/([^/]+)/history", self._read),)
        context.wire.serve("resumptions", self._resumptions)

    def _resumptions(self, _data: bytes) -> bytes:
        return msgspec.msgpack.encode(dict(self._node.metrics.resumes))

    async def _read(self, call: ConsoleCall) -> object:
        id, name = call.args
        config = self._node.apps.by_id(id)
        if config is None:
            raise Refused(404, f"there is no app {id[:64]!r}")
        history = self._node.app(config).history
        if history is None or history(name) is None:
            raise Refused(404, f"{name[:200]} keeps no history: set history in the app's configuration")
        limit, after = max(1, call.number("limit", 50, MAX_LIMIT)), call.text("after")
        try:
            since = Position.parse(after) if after else None
        except ValueError:
            raise Refused(400, NO_CURSOR) from None
        self._context.require_broker()
        page = await self._node.history.read(id, name, since, limit, True)
        replies = await self._context.wire.request("resumptions")
        resumptions: Counter[str] = Counter()
        for _, counts in replies.decoded(_counts):
            resumptions.update(counts)
        return {
            "items": [_item(message) for message in page.messages],
            "epoch": page.position.epoch,
            "position": str(page.position),
            "first": page.first,
            "recovered": page.recovered,
            "next": None if page.next is None else str(page.next),
            "complete": True,
            "examined": len(page.messages),
            "resumptions": resumptions,
            "missing": replies.missing,
            "away": replies.away,
        }


def _item(message: KeptMessage) -> dict[str, object]:
    size = len(message.data)
    return {
        "offset": message.offset,
        "at": message.received / 1e9,
        "event": message.event,
        "size": size,
        "bytes": size,
        "sender": message.sender,
        **shown_data(message.data),
    }
