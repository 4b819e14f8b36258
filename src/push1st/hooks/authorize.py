"""Asks an app's backend whether a client may connect, subscribe or publish, and keeps its answers for as long as it says.

An answer that does not come in time, or is none, is a no. What is asked is `events.Question`, as JSON or as it stands;
the answer is `{"allow": true}`, with what is to be changed, or `{"allow": false}`, with code and message.
"""

import asyncio
import hashlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence

import msgspec

from push1st import logs
from push1st.config.model import AppConfig
from push1st.errors import Refused
from push1st.hooks import Decision, HookTransport, NotDelivered, Reach, Target, shown
from push1st.hooks.endpoint import Clock
from push1st.hooks.events import Connecting, Question
from push1st.hooks.formats import matcher, target
from push1st.jsontext import decode

MAX_CACHED = 10_000
LOG_SECONDS = 10.0
MAX_MESSAGE = 100
"""characters of a refusal's message: it has to fit into a close frame (RFC 6455 §5.5)"""
CODES = {"connect": 4009}
CODE = 403
"""what a refusal says where the backend does not"""
UNDECIDED = "the app's backend gave no answer"

log = logs.get("push1st.hooks")


class SaidUser(msgspec.Struct):
    id: str | int
    info: msgspec.Raw = msgspec.Raw(b"null")


class AuthorizeReply(msgspec.Struct):
    """What a backend answers."""

    allow: bool
    code: int | None = None
    text: str = msgspec.field(default="", name="message")
    user: SaidUser | None = None
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        self.text = self.text[:MAX_MESSAGE]


_said = msgspec.json.Decoder(AuthorizeReply)
_encode = msgspec.json.Encoder().encode


def asks(app: AppConfig) -> dict[str, Callable[[str], object]]:
    """What an app is asked about, each with whether it is for a channel (`connect`: for "")."""
    return {on: matcher(one.filter) if on != "connect" else matcher(()) for one in app.authorize for on in one.on}


class AuthorizeEndpoint:
    """An endpoint that is asked. cache: seconds."""

    __slots__ = ("cache", "failed_at", "name", "target", "way")

    def __init__(self, target: Target, cache: int) -> None:
        self.target = target
        self.cache = cache
        self.name = shown(target.url)
        self.way: HookTransport | None = None
        self.failed_at = -LOG_SECONDS


class Authorizer:
    """asked: a counter of answers (`Metrics`). folder: where relative paths start."""

    def __init__(self, apps: Sequence[AppConfig], folder: str, clock: Clock, asked: Counter[str], reach: Reach) -> None:
        self._clock = clock
        self._asked = asked
        self._reach = reach
        self._endpoints: dict[tuple[str, str], AuthorizeEndpoint] = {}
        self._cached: OrderedDict[tuple[AuthorizeEndpoint, bytes], tuple[float, Decision]] = OrderedDict()
        for app in apps:
            for one in app.authorize:
                endpoint = AuthorizeEndpoint(target(app, one, folder, one.concurrency), one.cache)
                self._endpoints.update({(app.id, on): endpoint for on in one.on})

    async def ask(self, question: Question) -> Decision:
        """What the backend decided. It is asked only about what `asks` says."""
        on = str(question.__struct_config__.tag)
        endpoint = self._endpoints[question.app, on]
        key = endpoint, _key(question) if endpoint.cache else b""
        if endpoint.cache and (cached := self._cached.get(key)):
            if self._clock.monotonic() < cached[0]:
                self._asked["cached"] += 1
                return cached[1]
            del self._cached[key]
        try:
            said = decode(_said, await self._answer(endpoint, _encode(question)))
            answer = _answer(on, said)
        except NotDelivered as failure:
            return self._undecided(endpoint, "failed" if failure.kind == "refused" else failure.kind, failure.text)
        except (msgspec.DecodeError, RecursionError) as exc:
            return self._undecided(endpoint, "malformed", f"not an answer: {exc}")
        self._asked["refused" if answer.refused else "allowed"] += 1
        if endpoint.cache:
            self._cached[key] = self._clock.monotonic() + endpoint.cache, answer
            if len(self._cached) > MAX_CACHED:
                self._cached.popitem(last=False)
        return answer

    async def _answer(self, endpoint: AuthorizeEndpoint, body: bytes) -> bytes:
        if endpoint.way is None:
            endpoint.way = self._reach(endpoint.target)
        task = asyncio.get_running_loop().create_task(endpoint.way.ask(body))
        done, _ = await asyncio.wait((task,), timeout=endpoint.target.timeout)
        if not done:
            task.add_done_callback(_forgotten)
            task.cancel()
            raise NotDelivered("timed-out", f"no answer within {endpoint.target.timeout:g} s")
        return task.result()

    def _undecided(self, endpoint: AuthorizeEndpoint, kind: str, text: str) -> Decision:
        self._asked[kind] += 1
        now = self._clock.monotonic()
        if now - endpoint.failed_at >= LOG_SECONDS:
            endpoint.failed_at = now
            log.warning("backend gives no answer", app=endpoint.target.app, endpoint=endpoint.name, reason=text)
        return Decision(Refused(503, UNDECIDED))

    async def close(self) -> None:
        ways = {one.way for one in self._endpoints.values() if one.way is not None}
        await asyncio.gather(*(way.close() for way in ways))


def _forgotten(task: asyncio.Task[bytes]) -> None:
    """Nobody waits for it any more, so nobody would look at how it failed."""
    if not task.cancelled():
        task.exception()


def _key(question: Question) -> bytes:
    """What two questions with the same answer have in common.

    Who asks is the user, the credentials of a connection, or else the connection itself: an answer for one connection
    that has shown nothing is not another's.
    """
    if isinstance(question, Connecting) or question.user_id is not None:
        question = msgspec.structs.replace(question, socket_id="")
    return hashlib.sha256(_encode(question)).digest()  # a question may hold as much as a client may publish


def _answer(on: str, said: AuthorizeReply) -> Decision:
    if not said.allow:
        code = said.code or 0
        allowed = 4000 <= code < 5000 if on == "connect" else 400 <= code < 600 or 4300 <= code < 5000
        code = code if allowed else CODES.get(on, CODE)
        if said.text:
            return Decision(Refused(code, said.text))
        return Decision(Refused(code, f"the app does not allow this client to {on}"))
    user = said.user
    return Decision(
        user_id=None if user is None else str(user.id),
        user_info=b"null" if user is None else bytes(user.info).strip(),
        data=None if said.data is msgspec.UNSET else bytes(said.data).strip(),
    )
