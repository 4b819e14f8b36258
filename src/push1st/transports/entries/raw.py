"""Admits raw WebSocket clients, which connect to `/ws/app/KEY/CHANNEL/…?token=…&session=…` (Push1st API, section 7).

The path contains the names of the channels. A client needs an access token (`token`) for protected channels. The value of the
parameter `session` becomes the first part of the client's `socket_id`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from urllib.parse import unquote_to_bytes

from push1st import auth
from push1st.channels import CONTROL
from push1st.core.app import App
from push1st.core.rights import may_subscribe
from push1st.core.session import Session
from push1st.errors import Disconnect, Refused
from push1st.messages import Subscribe
from push1st.transports.admission import admit, params
from push1st.transports.context import EdgeContext
from push1st.transports.handlers import Handshake
from push1st.transports.websocket import WebSocketConnection

MAX_PREFIX_BYTES = 255


class RawEntry:
    """An entry that admits a client by its app key, and subscribes the client to the channels in the path (`entries.Entry`)."""

    statuses: Mapping[int, int] = MappingProxyType({4001: 403, 4003: 403, 4004: 503, 4009: 403, 4100: 503})

    def __init__(self, context: EdgeContext) -> None:
        self._context = context
        server = context.config.server
        self.codec = context.codecs["websocket"]
        self.settings = server.websocket
        self.bases = server.bases("websocket")

    def enter(self, handshake: Handshake, tail: str, connection: WebSocketConnection) -> None:
        try:
            key, *channels = (unquote_to_bytes(part).decode() for part in tail.split("/"))
        except UnicodeDecodeError:
            raise Disconnect(1008, "the path is not UTF-8") from None
        client, ip = handshake.client, handshake.ip
        query = params(client.query, plus="+")
        context = self._context
        app = admit(context, self.settings, key, client.origin, ip, handshake.crowded)
        prefix = query.get("session", "")
        if len(prefix.encode()) > MAX_PREFIX_BYTES or CONTROL.search(prefix):
            raise Disconnect(1008, f"session has at most {MAX_PREFIX_BYTES} bytes and no control characters")
        claims = self._claims(handshake, app, query.get("token", ""))
        push = self.settings.push
        session = Session(context.node, app, connection, self.codec, connection.write, ip, prefix, claims, push)
        connection.open(session)
        decides = app.backend_decides.get("subscribe")
        wanted = [name for name in dict.fromkeys(channels) if name and may_subscribe(session, app.config, name, decides)]
        if not wanted:
            raise Disconnect(1008, "no channel to subscribe to: they need an access token, or their names are not valid")
        session.connect(client, lambda: None)
        for name in wanted:
            session.handle(Subscribe(name))

    def _claims(self, handshake: Handshake, app: App, token: str) -> auth.Claims | None:
        """Returns the rights in a client's access token; None if the client has no valid token.

        token: the access token in the query; "" if the query has no token.
        """
        client = handshake.client
        scheme, _, bearer = (client.authorization or "").partition(" ")
        if scheme.lower() == "bearer":
            token = bearer.strip()
        elif not token and not bearer:  # `Authorization` may be a token without `Bearer`
            token = scheme
        if not token or not app.config.secret:
            return None
        node = self._context.node
        try:
            claims = auth.check_access_token(app.config.secret, app.config.id, token, node.clock.wall() // 1_000_000_000)
        except Refused as refused:
            node.metrics.refusals["access-token"] += 1
            self._log_token(handshake, app, refused.text)
            return None
        if claims.allows_origin(client.origin):
            return claims
        self._log_token(handshake, app, "the access token is for another origin")
        return None

    def _log_token(self, handshake: Handshake, app: App, reason: str) -> None:
        where = {"app": app.config.id, "origin": handshake.client.origin, "ip": handshake.ip}
        self._context.node.refusals.log("access token refused", 401, reason, **where)
