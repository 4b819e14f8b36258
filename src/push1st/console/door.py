"""Signs operators in and out: the sessions of this worker, and the sessions that ended on other workers.

A cookie is valid on every worker without shared state, so each worker must know which sessions ended before their time. A worker
sends the end of a session to all workers, and a new worker requests the ended sessions of the others.
"""

import secrets
from collections.abc import Awaitable

import msgspec

from push1st import logs
from push1st.console.endpoints import ConsoleContext
from push1st.console.live import Live
from push1st.console.login import Login
from push1st.console.sessions import OperatorSession, OperatorSessions
from push1st.errors import Refused
from push1st.messages import Response

ENDED, ALL_ENDED = "session-ended", "sessions-ended"
"""the kinds of the messages between workers: a session has ended, and a request for all ended sessions"""
_ended = msgspec.msgpack.Decoder(dict[str, int])

log = logs.get("push1st.console")


class ConsoleDoor:
    """The sign-in and the sessions of a worker's console."""

    def __init__(self, context: ConsoleContext, login: Login, sessions: OperatorSessions, live: Live) -> None:
        self._clock = context.node.clock
        self._wire = context.wire
        self._login = login
        self._sessions = sessions
        self._live = live
        self._wire.handle(ENDED, self._on_ended)
        self._wire.serve(ALL_ENDED, lambda _: msgspec.msgpack.encode(self._sessions.ended))

    def now(self) -> float:
        return self._clock.wall() / 1_000_000_000

    async def open(self) -> None:
        """Requests the ended sessions of the other workers. Must be called before the console listens."""
        try:
            replies = await self._wire.request(ALL_ENDED)
        except Refused as exc:
            log.warning("console does not know which sessions have ended", reason=exc.text)
            return
        for _, packed in replies.found:
            self._on_ended(packed)

    async def sign_in(self, body: bytes, ip: str) -> OperatorSession | Response:
        """Returns a new session; or the answer, if the password in the body of the request is not accepted."""
        refusal = await self._login.check(body, ip)
        return refusal or self._sessions.begin(secrets.token_urlsafe(16), self.now())

    async def sign_out(self, session: OperatorSession) -> None:
        """Ends a session on all workers."""
        packed = msgspec.msgpack.encode({session.nonce: session.ends})
        self._on_ended(packed)
        try:
            sent = self._wire.send(ENDED, packed)
            if isinstance(sent, Awaitable):
                await sent
        except Refused as exc:
            log.warning("console sign-out not sent to other workers", reason=exc.text)

    def session(self, cookie: str) -> OperatorSession:
        """Returns the session of a cookie. Raises Refused(401)."""
        found = self._sessions.find(cookie, self.now())
        if found is None:
            raise Refused(401, "sign in")
        return found

    def renewed(self, session: OperatorSession) -> OperatorSession | None:
        """See `OperatorSessions.renewed`."""
        return self._sessions.renewed(session, self.now())

    def cookie(self, session: OperatorSession) -> tuple[str, int]:
        """Returns the value of a session's cookie, and the seconds for which the browser keeps it."""
        return self._sessions.value(session), session.expires - int(self.now())

    def _on_ended(self, packed: bytes) -> None:
        for nonce, ends in _ended.decode(packed).items():
            self._sessions.end(nonce, ends, self.now())
            self._live.end_session(nonce)
