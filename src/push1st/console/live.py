"""The WebSocket `api/live` of the console."""

import asyncio

from push1st.console.endpoints import ConsoleContext
from push1st.console.sessions import OperatorSession
from push1st.messages import Response
from push1st.transports.answers import error
from push1st.transports.handlers import Handshake, SocketOwner


class Live:
    """The WebSockets of a worker's console. `parts`: all parts of the console."""

    def __init__(self, context: ConsoleContext, parts: object) -> None:
        self._context = context

    def upgrade(
        self, handshake: Handshake, session: OperatorSession, transport: asyncio.Transport, rest: bytes, before: bytes
    ) -> Response | SocketOwner:
        """Serves the handshake of a signed-in operator (see `transports.handlers.UpgradeHandler`).

        session: the session of the operator. The socket ends with 4401 when the session expires (`OperatorSession.expires`).
        """
        return error(404, "the console accepts WebSockets at api/live only")

    def end_session(self, nonce: str) -> None:
        """Closes the sockets of a session that has ended, with 4401."""
