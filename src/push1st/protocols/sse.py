"""The blocks of server-sent events (HTML standard, section 9.2): messages, `resumed`, positions and heartbeats.

A block is some lines and an empty line. All subscribers of a channel get the same blocks, so a block with the position of its
channel as its `id` is only for streams with one channel. A stream with several channels gets the positions of all its channels
from time to time, in blocks of their own. A browser sends the last id when it reconnects (`Last-Event-ID`).

The envelope of a message always has a field `pos`, which may be null, and the envelopes of the server's own events do not. So a
message that somebody publishes with the name `resumed` or `error` cannot be mistaken for an event of the server.
"""

import msgspec

from push1st.jsontext import encode
from push1st.messages import RESUMED, KeptMessage, Message, Resumed, resumed_data
from push1st.positions import Position

TYPE = b"text/event-stream; charset=utf-8"
HEARTBEAT = b":\n\n"
ENVELOPED = frozenset(("", "error", "open", "position", "resumed"))
"""the names of events that no block has as its type; `EventSource` or the server uses these types. Such an event is sent in an
envelope."""

_LINE_ENDS = bytes.maketrans(b"\r\n", b"  ")
"""replaces line ends by spaces, which JSON text permits; otherwise, the data of a message could add lines to the block"""


class SseWire:
    """Encodes messages as blocks (`hub.Wire`).

    name: the name of the wire.
    has_ids: whether a block has the position of its channel as its id.
    is_named: whether a block has the event's name as its type, and only the event's data as its data. Otherwise, the data is an
    envelope, which is a JSON object with the event's name, channel, data and position.
    """

    __slots__ = ("_has_ids", "_is_named", "name")

    def __init__(self, name: str, has_ids: bool, is_named: bool) -> None:
        self.name = name
        self._has_ids = has_ids
        self._is_named = is_named

    def message(self, message: Message, now: int) -> bytes:
        position = b""
        if type(message) is KeptMessage and message.offset:  # a cached event has no offset
            position = b"%b:%d" % (message.epoch.encode(), message.offset)
        id = b"id: %b\n" % position if position and self._has_ids else b""
        event = message.event
        if event == RESUMED:
            return id + self._resumed(message.channel, message.data)
        if self._is_named and event not in ENVELOPED and not {"\r", "\n", "\0"}.intersection(event):
            return b"%bevent: %b\ndata: %b\n\n" % (id, event.encode(), message.data.translate(_LINE_ENDS))
        envelope = b'{"event":%b,"channel":%b,"data":%b,"pos":%b%b}' % (
            encode(event),
            encode(message.channel),
            message.data,
            b'"%b"' % position if position else b"null",
            message.headers and b',"headers":' + message.headers,
        )
        return b"%bdata: %b\n\n" % (id, envelope.translate(_LINE_ENDS))

    def resumed(self, reply: Resumed) -> bytes:
        """Returns the first block of a channel. It has no id, because the messages up to the reply's position may follow it."""
        return self._resumed(reply.channel, resumed_data(reply))

    def _resumed(self, channel: str, data: bytes) -> bytes:
        name = encode(channel)
        if self._is_named:
            return b'event: resumed\ndata: {"channel":%b,%b\n\n' % (name, data[1:])
        return b'data: {"event":"resumed","channel":%b,"data":%b}\n\n' % (name, data)

    def refused(self, channel: str, code: int, text: str) -> bytes:
        """Returns the block for a channel to which the client may not subscribe. `code`: an HTTP status."""
        data = msgspec.json.encode({"code": code, "message": text})
        return b'data: {"event":"error","channel":%b,"data":%b}\n\n' % (encode(channel), data)


WIRES = {
    (has_ids, is_named): SseWire(("sse" if has_ids else "sse-many") + ("-named" if is_named else ""), has_ids, is_named)
    for has_ids in (True, False)
    for is_named in (True, False)
}
"""the wires by `has_ids` and `is_named`"""


def retry_block(milliseconds: int) -> bytes:
    """Returns the block that sets the time after which the client reconnects."""
    return b"retry: %d\n\n" % milliseconds


def position_block(positions: str) -> bytes:
    """Returns a block that sets the id of the stream. `positions`: a position, or a list of positions.

    The block has a type of its own, so that handlers of messages do not receive it. It also has data, because some clients ignore
    a block that has only an id.
    """
    text = positions.encode()
    return b"event: position\nid: %b\ndata: %b\n\n" % (text, text)


def begin_of(reply: Resumed, since: Position | None) -> Position | None:
    """Returns the position after which the messages that follow a `Resumed` begin; None for a channel without history.

    since: the client's own position.
    """
    if reply.reason is None or reply.position is None:
        return since if reply.reason is None else None
    return Position(reply.position.epoch, max(0, reply.position.offset - reply.replayed - reply.skipped))
