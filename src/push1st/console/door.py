"""Signs operators in and out: the sessions of this worker, and the sessions that ended on other workers.

A cookie is valid on every worker without shared state, so each worker must know which sessions ended before their time. A worker
sends the end of a session to all workers until they confirm it, and a new worker requests the ended sessions of the others.
"""

import asyncio
import secrets
from collections.abc import Mapping

import msgspec

from push1st import logs
from push1st.console.endpoints import ConsoleContext
from push1st.console.live import Live
from push1st.console.login import Login
from push1st.console.passwords import PasswordHash
from push1st.console.sessions import OperatorSession, OperatorSessions
from push1st.errors import Refused
from push1st.messages import Response

ENDED = "sessions-ended"
"""the kind of the requests with which workers tell each other the ended sessions that they know"""
TRIED = "sign-in-tried"
"""the kind of the messages with which a worker tells the others who has tried to sign in, so that they count the try too"""
AGAIN_SECONDS = 5.0
_ended = msgspec.msgpack.Decoder(dict[str, int])
_tried = msgspec.msgpack.Decoder(tuple[str, str])

log = logs.get("push1st.console")


class ConsoleDoor:
    """The sign-in and the sessions of a worker's console."""

    def __init__(self, context: ConsoleContext, password: PasswordHash, sessions: OperatorSessions, live: Live) -> None:
        self._clock = context.node.clock
        self._wire = context.wire
        self._name = context.name
        self._login = Login(password, context.node.clock.monotonic, self._tell)
        self._sessions = sessions
        self._live = live
        self._exchanging: asyncio.Task[None] | None = None
        self._wire.serve(ENDED, self._on_ended)
        self._wire.handle(TRIED, self._on_tried)

    def now(self) -> float:
        return self._clock.wall() / 1_000_000_000

    async def open(self) -> None:
        """Requests the ended sessions of the other workers. Must be called before the console listens."""
        await self._exchange("console does not know which sessions have ended")

    async def sign_in(self, body: bytes, ip: str) -> OperatorSession | Response:
        """Returns a new session; or the answer, if the password in the body of the request is not accepted."""
        refusal = await self._login.check(body, ip)
        return refusal or self._sessions.begin(secrets.token_urlsafe(16), self.now())

    async def sign_out(self, session: OperatorSession) -> None:
        """Ends a session on all workers. If some do not confirm the end in time, sends it again until they do."""
        self._end({session.nonce: session.ends})
        await self._exchange("console sign-out not confirmed by other workers")

    async def _exchange(self, warning: str) -> None:
        """Exchanges the ended sessions with all workers. If some do not reply, logs the warning, and repeats it until they do."""
        reason = await self._exchanged()
        if reason:
            log.warning(warning, reason=reason)
            if self._exchanging is None or self._exchanging.done():
                self._exchanging = asyncio.create_task(self._exchange_again())

    async def _exchange_again(self) -> None:
        while True:
            await asyncio.sleep(AGAIN_SECONDS)
            if not await self._exchanged():
                return

    async def _exchanged(self) -> str:
        """Exchanges the ended sessions once. Returns the reason why some workers did not take part; "" if all did."""
        try:
            replies = await self._wire.request(ENDED, msgspec.msgpack.encode(self._sessions.ended))
        except Refused as exc:
            return exc.text
        for _, packed in replies.found:
            self._end(_ended.decode(packed))
        return replies.away or (f"no reply from {', '.join(replies.missing)}" if replies.missing else "")

    def _tell(self, address: str) -> None:
        self._wire.send(TRIED, msgspec.msgpack.encode((self._name, address)))

    def _on_tried(self, packed: bytes) -> None:
        node, address = _tried.decode(packed)
        if node != self._name:
            self._login.count(address)

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

    def _on_ended(self, packed: bytes) -> bytes:
        self._end(_ended.decode(packed))
        return msgspec.msgpack.encode(self._sessions.ended)

    def _end(self, ended: Mapping[str, int]) -> None:
        """Ends sessions on this worker."""
        for nonce, ends in ended.items():
            self._sessions.end(nonce, ends, self.now())
            self._live.end_session(nonce)
