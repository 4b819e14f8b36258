"""Admits clients of the Pusher protocol, which connect to `/app/KEY?protocol=7`, or to `/resume/PAGE/app/KEY?protocol=7` if
they resume. After the handshake, Pusher clients send messages to subscribe to channels (Pusher protocol, section 1).
"""

from collections.abc import Mapping
from types import MappingProxyType

from push1st.core.session import Session
from push1st.errors import Disconnect
from push1st.transports.admission import admit, check_version
from push1st.transports.context import EdgeContext
from push1st.transports.handlers import Handshake
from push1st.transports.pages import connection_of
from push1st.transports.websocket import WebSocketConnection


class PusherEntry:
    """An entry that admits Pusher clients by their app key (see `entries.Entry`)."""

    statuses: Mapping[int, int] = MappingProxyType({})
    """no HTTP statuses, because Pusher clients need close codes"""

    def __init__(self, context: EdgeContext) -> None:
        self._context = context
        server = context.config.server
        self.codec = context.codecs["pusher"]
        self.settings = server.pusher
        self.bases = server.bases("pusher")

    def enter(self, handshake: Handshake, tail: str, connection: WebSocketConnection) -> None:
        key = tail.removesuffix("/")
        if not key or "/" in key:
            raise Disconnect(4005, "Path not found: connect to /app/KEY")
        client, ip = handshake.client, handshake.ip
        check_version(client.query)
        context = self._context
        app = admit(context, self.settings, key, client.origin, ip, handshake.crowded)
        original, base = self.bases
        lenient = original != base and handshake.path.startswith(original)
        page = connection_of(context, handshake.page, ip)
        session = Session(context.node, app, connection, self.codec, connection.write, ip, lenient=lenient, resumption=page)
        if page is not None:
            page.begin(session)
        connection.open(session, page)
        session.connect(client, lambda: connection.established(self.settings.activity_timeout))
