"""Codecs: bytes ⇄ typed commands, replies and messages. Pure; one file for each protocol and one line in `PROTOCOLS`.

A codec has no state: one instance serves every connection of its protocol. As a wire (`hub.Wire`) it encodes a message
once for all subscribers; as a codec it reads commands from and writes replies to one client.
"""

from typing import NamedTuple, Protocol

from push1st.core.hub import Wire
from push1st.messages import Command, Reply


class Parts(NamedTuple):
    """The classes of a protocol, as `module:Class`. entry: its way in over WebSockets (`transports.entries.Entry`), if any."""

    codec: str
    entry: str = ""


PROTOCOLS = {
    "pusher": Parts("push1st.protocols.pusher:Pusher", "push1st.transports.entries.pusher:PusherEntry"),
    "pusher-xhr": Parts("push1st.protocols.pusher_xhr:PusherXhr"),
    "websocket": Parts("push1st.protocols.raw:Raw", "push1st.transports.entries.raw:RawEntry"),
}


class Codec(Wire, Protocol):
    """What a connection needs of its protocol."""

    @property
    def binary(self) -> bool:
        """Whether a binary message is decoded as text; otherwise it ends the connection."""

    def decode(self, text: str) -> Command:
        """One text message from a client.

        Raises Refused for what is answered with an error, Disconnect for what ends the connection.
        """

    def reply(self, reply: Reply) -> bytes:
        """The framed answer, b"" when the protocol has no word for it."""

    def slow(self) -> tuple[int, str]:
        """Close code and reason for a client that does not read what it gets."""
