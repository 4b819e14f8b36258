"""Codecs, which convert between bytes and typed commands, replies and messages. Each protocol has a module, and
a line in `PROTOCOLS`.

A codec keeps no state of connections, so one instance serves every connection of its protocol. A codec encodes a message once
for all subscribers (`hub.Wire`). A codec also decodes each client's commands, and encodes the replies to the client.
"""

from typing import NamedTuple, Protocol

from push1st.core.hub import Wire
from push1st.messages import Command, Reply


class Parts(NamedTuple):
    """The classes of a protocol, in the form `module:Class`.

    `entry`: the class that admits WebSocket clients (`transports.entries.Entry`); "" for a protocol without WebSockets.
    """

    codec: str
    entry: str = ""


PROTOCOLS = {
    "pusher": Parts("push1st.protocols.pusher:Pusher", "push1st.transports.entries.pusher:PusherEntry"),
    "pusher-xhr": Parts("push1st.protocols.pusher_xhr:PusherXhr"),
    "websocket": Parts("push1st.protocols.raw:Raw", "push1st.transports.entries.raw:RawEntry"),
    "websocket-positions": Parts("push1st.protocols.raw_positions:RawPositions"),
}


class Codec(Wire, Protocol):
    """The codec of one protocol; all connections of the protocol use it."""

    @property
    def binary(self) -> bool:
        """Whether a binary message is decoded as text; if false, a binary message ends the connection."""

    def decode(self, text: str) -> Command:
        """Decodes a text message from a client.

        Raises Refused if the server must answer the message with an error, and Disconnect if the message ends the connection.
        """

    def reply(self, reply: Reply) -> bytes:
        """Encodes a reply as a frame; returns b"" if the protocol has no frame for this reply."""

    def slow(self) -> tuple[int, str]:
        """Returns the close code and the close reason for the disconnection of a client that does not read its messages."""
