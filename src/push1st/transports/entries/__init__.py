"""Serves WebSocket handshakes: finds the entry for the path of a handshake, and lets this entry admit the client.

An entry is a class that admits the clients of one protocol. The entry reads the path (and the access token, if its protocol
has one), and creates the session with the client's rights. Each entry has a file in this folder.
`protocols.PROTOCOLS` names the codec and the entry of each protocol.

An entry rejects a client with the exception `Disconnect`, which has a close code. If the entry has an HTTP status for a close
code, the server answers the handshake with this status. If the entry has no status for the close code, the handshake succeeds,
and the server closes the WebSocket. Pusher clients need a close code: if a handshake fails, these clients retry for ever.
"""

import asyncio
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from push1st.config.model import ProtocolConfig
from push1st.errors import Disconnect
from push1st.messages import Response
from push1st.protocols import Codec
from push1st.protocols.websocket import handshake_answer
from push1st.transports.answers import error
from push1st.transports.context import EdgeContext
from push1st.transports.handlers import Handshake, SocketOwner
from push1st.transports.pages import split_page
from push1st.transports.websocket import WebSocketConnection


class Entry(Protocol):
    """Admits the clients of one protocol. A worker has one instance of each entry.

    bases: the prefixes of the paths that the entry serves; empty if the protocol is off.
    settings: the section of the configuration for the protocol.
    statuses: by close code, the HTTP status that rejects the handshake of a client that uses `codec`. Other close codes, and all
    close codes of clients that use another codec, are sent after the handshake.
    """

    codec: Codec
    settings: ProtocolConfig
    bases: tuple[str, ...]
    statuses: Mapping[int, int]

    def enter(self, handshake: Handshake, tail: str, connection: WebSocketConnection) -> None:
        """Creates the session of a client, and opens the connection with this session. Raises Disconnect to reject the client.

        tail: the part of the path after the base.
        """


class SocketEntry(Protocol):
    """Admits the clients of a protocol whose connections are no `WebSocketConnection`. `bases`: as in `Entry`."""

    bases: tuple[str, ...]

    def open(
        self, handshake: Handshake, tail: str, transport: asyncio.Transport, rest: bytes, before: bytes
    ) -> Response | SocketOwner:
        """Takes over the socket of a handshake, or returns the answer that rejects the handshake.

        tail: the part of the path after the base. The other arguments: see `EntryTable.upgrade`.
        """


class EntryTable:
    """The entries of a worker, with their bases (path prefixes). The first base that matches a path determines the entry.

    others: the entries that are used for paths that match no base of `entries`.
    """

    def __init__(self, context: EdgeContext, entries: Sequence[Entry], others: Sequence[SocketEntry] = ()) -> None:
        self._context = context
        self._bases = [(base, entry) for entry in entries for base in entry.bases]
        self._others = [(base, entry) for entry in others for base in entry.bases]
        self._page_bases = context.config.server.bases("pusher")

    def upgrade(self, handshake: Handshake, transport: asyncio.Transport, rest: bytes, before: bytes) -> Response | SocketOwner:
        """Turns an HTTP connection into a WebSocket, or returns the answer that rejects the handshake (`UpgradeHandler`).

        rest: the client's input after the handshake.
        before: the answers to earlier requests, which must be written first.
        """
        page, path = split_page(handshake.path)
        if "//" in path:  # a client may append the path to a base URL that ends in a slash
            page, path = split_page(re.sub("/{2,}", "/", path)) if page is None else (page, re.sub("/{2,}", "/", path))
        if path != handshake.path:
            handshake = msgspec.structs.replace(handshake, path=path, page=page)
        for base, entry in self._bases:
            if path.startswith(base) and (page is None or base in self._page_bases):
                return checked(handshake) or self._enter(entry, handshake, path[len(base) :], transport, rest, before)
        for base, other in self._others:
            if path.startswith(base) and page is None:
                return checked(handshake) or other.open(handshake, path[len(base) :], transport, rest, before)
        return error(404, f"no WebSocket is served at {path[:200]}")

    def _enter(
        self, entry: Entry, handshake: Handshake, tail: str, transport: asyncio.Transport, rest: bytes, before: bytes
    ) -> Response | WebSocketConnection:
        context, switch = self._context, before + handshake_answer(handshake.key)
        connection = WebSocketConnection(context, transport, entry.codec, entry.settings, switch)
        end = None
        try:
            entry.enter(handshake, tail, connection)
        except Disconnect as exc:
            # The traceback refers to this frame, and this frame to the exception. This reference cycle would keep the connection
            # in memory.
            end = exc.with_traceback(None)
            context.node.metrics.refusals[str(end.code)] += 1
            status = entry.statuses.get(end.code) if connection.codec is entry.codec else None
            if status is not None:
                return error(status, end.reason)
        connection.take_over()
        if end is not None:
            where = {"path": handshake.path, "origin": handshake.client.origin, "ip": handshake.ip}
            context.node.refusals.log("handshake refused", end.code, end.reason, **where)
            connection.close(end.code, end.reason)
        if rest:
            context.arrived(connection, rest)
        return connection


def checked(handshake: Handshake) -> Response | None:
    """Returns the answer that rejects a handshake that is not valid; None for a valid handshake."""
    if handshake.method != "GET":
        return error(405, "a WebSocket handshake is a GET", b"Allow: GET\r\n")
    if handshake.version != "13":
        return error(
            426,
            "only WebSocket version 13 is supported",
            b"Sec-WebSocket-Version: 13\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
        )
    if not _valid_key(handshake.key):
        return error(400, "Sec-WebSocket-Key must be 16 bytes in base64")
    return None


def _valid_key(key: str) -> bool:
    try:
        return len(binascii.a2b_base64(key, strict_mode=True)) == 16
    except (binascii.Error, ValueError):
        return False
