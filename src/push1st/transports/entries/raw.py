"""Admits raw WebSocket clients, which connect to `/ws/app/KEY/CHANNEL/…?token=…&session=…` (Push1st API, section 7).

The path contains the names of the channels. A client needs an access token (`token`) for protected channels. The value of the
parameter `session` becomes the first part of the client's `socket_id`. A client with one of the parameters `since`, `rewind` and
`positions` gets frames with positions, and can resume its channels (`path_request`).
"""

from collections.abc import Mapping
from types import MappingProxyType

from push1st.channels import CONTROL
from push1st.core.resuming import BY_POSITION
from push1st.core.session import Session
from push1st.errors import Disconnect, Refused
from push1st.transports import path_request
from push1st.transports.admission import admit
from push1st.transports.context import EdgeContext
from push1st.transports.handlers import Handshake
from push1st.transports.path_request import NO_CHANNEL
from push1st.transports.websocket import WebSocketConnection

MAX_PREFIX_BYTES = 255


class RawEntry:
    """An entry that admits a client by its app key, and subscribes the client to the channels in the path (`entries.Entry`)."""

    statuses: Mapping[int, int] = MappingProxyType({4001: 403, 4003: 403, 4004: 503, 4009: 403, 4100: 503})

    def __init__(self, context: EdgeContext) -> None:
        self._context = context
        server = context.config.server
        self.codec = context.codecs["websocket"]
        self._with_positions = context.codecs["websocket-positions"]
        self.settings = server.websocket
        self.bases = server.bases("websocket")

    def enter(self, handshake: Handshake, tail: str, connection: WebSocketConnection) -> None:
        try:
            self._enter(handshake, tail, connection)
        except Refused as refused:  # this protocol has no frame for an error before the client is admitted
            raise Disconnect(1008, refused.text) from None

    def _enter(self, handshake: Handshake, tail: str, connection: WebSocketConnection) -> None:
        """Admits a client. Raises Disconnect, and Refused for an invalid path or query."""
        client, ip = handshake.client, handshake.ip
        request = path_request.parse(tail, client.query)
        query = request.query
        resumption = None
        if request.resumes:
            # Before the client is admitted: such a client gets a close code, because browsers hide the status from their pages.
            resumption, connection.codec = BY_POSITION, self._with_positions
        context = self._context
        app = admit(context, self.settings, request.key, client.origin, ip, handshake.crowded)
        prefix = query.get("session", "")
        if len(prefix.encode()) > MAX_PREFIX_BYTES or CONTROL.search(prefix):
            raise Refused(400, f"session has at most {MAX_PREFIX_BYTES} bytes and no control characters")
        claims = path_request.claims(context, app, client, ip, query.get("token", ""))
        push, write = self.settings.push, connection.write
        session = Session(context.node, app, connection, connection.codec, write, ip, prefix, claims, push, resumption=resumption)
        connection.open(session)
        wanted = path_request.permitted(session, app, request.channels)
        if not wanted:
            raise Refused(403, NO_CHANNEL)
        if request.resumes:  # such a client also gets an error for each channel that is not permitted
            wanted += [name for name in dict.fromkeys(request.channels) if name not in wanted]
        commands = request.subscriptions(wanted, query.get("since", ""))
        session.connect(client, lambda: None, commands)
