"""Signs operators in and out: the sessions of this worker, and the sessions that ended on other workers.

A cookie is valid on every worker without shared state, so each worker must know which sessions ended before their time. A worker
exchanges the ended sessions with the others at its start, when a session ends, and when another worker appears or returns. It
repeats the exchange until the other worker has replied. The worker of the sign-out may die before all have replied, so one of
the others, the one whose name is the first, also exchanges the ends that it learns, and exchanges again when a worker is gone.
"""

import asyncio
import secrets
from collections.abc import Collection, Mapping

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
"""the kind of the requests with which workers exchange ended sessions"""
TRIED = "sign-in-tried"
"""the kind of the messages that make the other workers count a try to sign in, or take back the count (`Login.count`)"""
AGAIN_SECONDS = 5.0
_ended = msgspec.msgpack.Decoder(dict[str, int])
_tried = msgspec.msgpack.Decoder(tuple[str, str, bool])

log = logs.get("push1st.console")


class ConsoleDoor:
    """The sign-in and the sessions of a worker's console. worker: the name of the worker that the console shows."""

    def __init__(self, context: ConsoleContext, password: PasswordHash, sessions: OperatorSessions, live: Live) -> None:
        self._clock = context.node.clock
        self._wire = context.wire
        self._name = context.name
        self.worker = context.worker
        self._login = Login(password, context.node.clock.monotonic, self._tell)
        self._sessions = sessions
        self._live = live
        self._exchanged_with: set[str] = set()
        """the other nodes that have all ended sessions of this worker, and whose ended sessions this worker has"""
        self._consoles: set[str] = set()
        """the other nodes with a console at the last tick"""
        self._exchanging: asyncio.Task[None] | None = None
        self._again_at = 0.0
        self._wire.serve(ENDED, self._on_ended)
        self._wire.handle(TRIED, self._on_tried)

    def now(self) -> float:
        return self._clock.wall() / 1_000_000_000

    async def open(self) -> None:
        """Exchanges the ended sessions with the other workers. Must be called before the console listens."""
        if reason := await self._exchange():
            log.warning("console does not know which sessions have ended", reason=reason)

    def tick(self) -> None:
        """Exchanges the ended sessions with the nodes that have appeared or did not reply before. Called once a second."""
        consoles = set(self._wire.consoles())
        if self._consoles - consoles and self._is_first(consoles):
            self._exchanged_with = set()
        self._consoles = consoles
        self._exchanged_with &= consoles
        now = self._clock.monotonic()
        if consoles == self._exchanged_with or now < self._again_at:
            return
        if self._exchanging is None or self._exchanging.done():
            self._again_at = now + AGAIN_SECONDS
            self._exchanging = asyncio.create_task(self._exchange_with(consoles - self._exchanged_with))

    async def sign_in(self, body: bytes, ip: str) -> OperatorSession | Response:
        """Returns a new session; or the answer, if the password in the body of the request is not accepted."""
        refusal = await self._login.check(body, ip)
        return refusal or self._sessions.begin(secrets.token_urlsafe(16), self.now())

    async def sign_out(self, session: OperatorSession) -> None:
        """Ends a session on all workers. `tick` sends the end again to the workers that do not confirm it in time."""
        self._end({session.nonce: session.ends})
        self._exchanged_with = set()
        if reason := await self._exchange():
            log.warning("console sign-out not confirmed by other workers", reason=reason)

    async def _exchange_with(self, nodes: Collection[str]) -> None:
        for node in nodes:
            await self._exchange(node)

    async def _exchange(self, node: str = "") -> str:
        """Exchanges the ended sessions with all workers, or with a node. Returns why some did not take part; "" if all did."""
        exchanged = self._exchanged_with
        try:
            replies = await self._wire.request(ENDED, msgspec.msgpack.encode(self._sessions.ended), node=node)
        except Refused as exc:
            return exc.text
        for name, ended in replies.decoded(_ended.decode):
            self._end(ended)
            exchanged.add(name)
        return replies.away or (f"no reply from {', '.join(replies.missing)}" if replies.missing else "")

    def _tell(self, address: str, counts: bool) -> None:
        self._wire.send(TRIED, msgspec.msgpack.encode((self._name, address, counts)))

    def _on_tried(self, packed: bytes) -> None:
        node, address, counts = _tried.decode(packed)
        if node != self._name:
            self._login.count(address, counts)

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
        """Ends sessions on this worker. The first worker then exchanges those that it did not know with all others."""
        learnt = False
        for nonce, ends in ended.items():
            learnt |= self._sessions.end(nonce, ends, self.now())
            self._live.end_session(nonce)
        if learnt and self._is_first(self._wire.consoles()):
            self._exchanged_with = set()  # an exchange that still runs lacks these sessions, and changes the replaced set

    def _is_first(self, consoles: Collection[str]) -> bool:
        """Returns whether this worker's name is the first one. consoles: the other nodes with a console."""
        return self._name < min(consoles, default=self._name + "~")
