"""Codecs: convert between bytes and typed commands, replies and messages. Pure. A protocol is one file and one line in
`PROTOCOLS`.

A codec has no state: one instance serves every connection of its protocol. As a wire (`hub.Wire`) it encodes a message once for
all subscribers. As a codec it decodes the commands of one client, and encodes the replies to that client.
"""

from typing import NamedTuple, Protocol

from push1st.core.hub import Wire
from push1st.messages import Command, Reply


class Parts(NamedTuple):
    """The classes of a protocol, as `module:Class`. entry: admits its WebSocket clients (`transports.entries.Entry`); "" if it
    has none.
    """

    codec: str
    entry: str = ""


PROTOCOLS = {
    "pusher": Parts("push1st.protocols.pusher:Pusher", "push1st.transports.entries.pusher:PusherEntry"),
    "pusher-xhr": Parts("push1st.protocols.pusher_xhr:PusherXhr"),
    "websocket": Parts("push1st.protocols.raw:Raw", "push1st.transports.entries.raw:RawEntry"),
}


class Codec(Wire, Protocol):
    """The codec of one protocol, for its connections."""

    @property
    def binary(self) -> bool:
        """Whether a binary message is decoded as text; otherwise it ends the connection."""

    def decode(self, text: str) -> Command:
        """Decodes a text message from a client.

        Raises Refused for a message that is answered with an error, and Disconnect for a message that ends the connection.
        """

    def reply(self, reply: Reply) -> bytes:
        """Encodes a reply, with its frame; returns b"" if the protocol has no such reply."""

    def slow(self) -> tuple[int, str]:
        """Returns the close code and the reason for a client that does not read its messages."""
