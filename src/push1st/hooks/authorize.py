"""Requests decisions from an app's backend: whether a client may connect, subscribe or publish. Caches the backend's replies.

The server rejects the operation if the backend does not reply in time, or if the reply is not valid. The body of a request
is a struct of the module `events`, as JSON. The reply is `{"allow": true}`, optionally with a user or with data; or it is
`{"allow": false}`, optionally with a code and a message.
"""

import asyncio
import hashlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence

import msgspec

from push1st import logs
from push1st.clock import Clock
from push1st.config.model import QUESTIONS, AppConfig
from push1st.eager import spawn
from push1st.errors import Refused
from push1st.hooks import Decision, HookTap, HookTransport, NotDelivered, OpenTransport, Target, shown
from push1st.hooks.events import MQTT_CODES, Connecting, Question
from push1st.hooks.formats import matcher, target
from push1st.jsontext import decode

MAX_CACHED = 10_000
LOG_SECONDS = 10.0
"""the minimum time between two log events about the same endpoint"""
MAX_MESSAGE = 100
"""the maximum number of characters in the message of a rejection; the message must fit into a close frame (RFC 6455 §5.5)"""
CODES = {"connect": 4009}
CODE = 403
"""the code of a rejection if neither the backend's reply nor `CODES` contains a code for the rejected operation"""
UNDECIDED = "the app's backend gave no answer"

log = logs.get("push1st.hooks")


class ReplyUser(msgspec.Struct):
    id: str | int
    info: msgspec.Raw = msgspec.Raw(b"null")


class AuthorizeReply(msgspec.Struct):
    """The reply of a backend."""

    allow: bool
    code: int | None = None
    text: str = msgspec.field(default="", name="message")
    user: ReplyUser | None = None
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        self.text = self.text[:MAX_MESSAGE]


_decoder = msgspec.json.Decoder(AuthorizeReply)
_encode = msgspec.json.Encoder().encode


def operations(app: AppConfig) -> dict[str, Callable[[str], object]]:
    """Returns the operations that need a decision of the app's backend, each with a filter for the names of channels.

    The filter for the operation `connect` accepts all names, because a client connects to an app, and not to a channel.
    """
    return {on: matcher(one.filter) if on != "connect" else matcher(()) for one in app.authorize for on in one.on}


class AuthorizeEndpoint:
    """An endpoint that makes decisions for an app. The server caches a decision for `cache` seconds."""

    __slots__ = ("cache", "failed_at", "name", "target", "transport")

    def __init__(self, target: Target, cache: int) -> None:
        self.target = target
        self.cache = cache
        self.name = shown(target.url)
        self.transport: HookTransport | None = None
        self.failed_at = -LOG_SECONDS


class Authorizer:
    """Requests the decisions for all apps.

    folder: the base folder of relative paths.
    decisions: the counter of decisions, by result (`Metrics`).
    open_transport: the function that makes the transport of an endpoint; it is called at the first request to this endpoint.
    """

    def __init__(
        self, apps: Sequence[AppConfig], folder: str, clock: Clock, decisions: Counter[str], open_transport: OpenTransport
    ) -> None:
        self._clock = clock
        self._decisions = decisions
        self._open_transport = open_transport
        self._endpoints: dict[tuple[str, str], AuthorizeEndpoint] = {}
        self._cached: OrderedDict[tuple[AuthorizeEndpoint, bytes], tuple[float, Decision]] = OrderedDict()
        self._folder = folder
        self.tap: HookTap | None = None
        self._retired: dict[HookTransport, asyncio.TimerHandle] = {}
        """transports of endpoints that the configuration no longer contains, each with the timer that closes the transport"""
        for app in apps:
            self.configure(app)

    def configure(self, app: AppConfig) -> None:
        """Applies a configuration of an app. An endpoint whose configuration has not changed keeps its cached decisions."""
        old = [self._endpoints.pop((app.id, on)) for on in QUESTIONS if (app.id, on) in self._endpoints]
        known = {(endpoint.target, endpoint.cache): endpoint for endpoint in old}
        used = set()
        for one in app.authorize:
            settings = target(app, one, self._folder, one.concurrency), one.cache
            endpoint = known.get(settings) or AuthorizeEndpoint(*settings)
            used.add(endpoint)
            self._endpoints.update({(app.id, on): endpoint for on in one.on})
        for endpoint in {*old} - used:
            if (transport := endpoint.transport) is not None:  # a request over this transport may still wait for a reply
                later = asyncio.get_running_loop().call_later
                self._retired[transport] = later(endpoint.target.timeout, self._retire, transport)

    def _retire(self, transport: HookTransport) -> None:
        del self._retired[transport]
        spawn(transport.close())

    async def decide(self, question: Question) -> Decision:
        """Returns the backend's decision, from the cache or by a request.

        question: the request for a decision; the request's operation must be in the app's `operations`.
        """
        on = str(question.__struct_config__.tag)
        endpoint = self._endpoints[question.app, on]
        key = endpoint, _key(question) if endpoint.cache else b""
        if endpoint.cache and (cached := self._cached.get(key)):
            if self._clock.monotonic() < cached[0]:
                self._decisions["cached"] += 1
                return cached[1]
            del self._cached[key]
        if self.tap is None:
            return await self._ask(endpoint, question, key)
        started = self._clock.monotonic()
        decision = await self._ask(endpoint, question, key)
        if (tap := self.tap) is not None:
            tap.asked(question, decision, self._clock.monotonic() - started)
        return decision

    async def _ask(self, endpoint: AuthorizeEndpoint, question: Question, key: tuple[AuthorizeEndpoint, bytes]) -> Decision:
        """Returns the backend's decision, by a request. `key`: the decision's key in the cache."""
        try:
            reply = decode(_decoder, await self._request(endpoint, _encode(question)))
            decision = _decision(question, reply)
        except NotDelivered as exc:
            return self._undecided(endpoint, "failed" if exc.kind == "refused" else exc.kind, exc.text)
        except (msgspec.DecodeError, RecursionError) as exc:
            return self._undecided(endpoint, "malformed", f"the reply is not valid: {exc}")
        self._decisions["refused" if decision.refused else "allowed"] += 1
        if endpoint.cache:
            self._cached[key] = self._clock.monotonic() + endpoint.cache, decision
            if len(self._cached) > MAX_CACHED:
                self._cached.popitem(last=False)
        return decision

    async def _request(self, endpoint: AuthorizeEndpoint, body: bytes) -> bytes:
        """Sends a request; returns the body of the reply. Raises NotDelivered."""
        if endpoint.transport is None:
            endpoint.transport = self._open_transport(endpoint.target)
        task = asyncio.get_running_loop().create_task(endpoint.transport.request(body))
        done, _ = await asyncio.wait((task,), timeout=endpoint.target.timeout)
        if not done:
            task.add_done_callback(_ignore_exception)
            task.cancel()
            raise NotDelivered("timed-out", f"no answer within {endpoint.target.timeout:g} s")
        return task.result()

    def _undecided(self, endpoint: AuthorizeEndpoint, kind: str, text: str) -> Decision:
        """Counts and logs a failed request; `kind` is the label of the counter. Returns a rejection."""
        self._decisions[kind] += 1
        now = self._clock.monotonic()
        if now - endpoint.failed_at >= LOG_SECONDS:
            endpoint.failed_at = now
            log.warning("backend gives no answer", app=endpoint.target.app, endpoint=endpoint.name, reason=text)
        return Decision(Refused(503, UNDECIDED))

    async def close(self) -> None:
        for timer in self._retired.values():
            timer.cancel()
        transports = {*self._retired, *(one.transport for one in self._endpoints.values() if one.transport is not None)}
        await asyncio.gather(*(transport.close() for transport in transports))


def _ignore_exception(task: asyncio.Task[bytes]) -> None:
    """Reads the exception of a task for which no caller waits, so that asyncio does not log the exception."""
    if not task.cancelled():
        task.exception()


def _key(question: Question) -> bytes:
    """Returns a key for the cache. If two requests have the same key, the cached decision for one also applies to the other.

    The key for a connecting client contains the query and headers of its request. The key for a signed-in user contains the
    user's id. Other keys contain the connection's id, because a decision for one anonymous connection does not apply to other
    connections.
    """
    if isinstance(question, Connecting) or question.user_id is not None:
        question = msgspec.structs.replace(question, socket_id="")
    return hashlib.sha256(_encode(question)).digest()  # the key is a hash, because a request may contain a whole event


def _decision(question: Question, reply: AuthorizeReply) -> Decision:
    if not reply.allow:
        on = str(question.__struct_config__.tag)
        code = reply.code or 0
        if isinstance(question, Connecting):
            allowed = 4000 <= code < 5000 or (code in MQTT_CODES and question.protocol == "mqtt")
        else:
            allowed = 400 <= code < 600 or 4300 <= code < 5000 or code in MQTT_CODES
        code = code if allowed else CODES.get(on, CODE)
        if reply.text:
            return Decision(Refused(code, reply.text))
        return Decision(Refused(code, f"the app does not allow this client to {on}"))
    user = reply.user
    return Decision(
        user_id=None if user is None else str(user.id),
        user_info=b"null" if user is None else bytes(user.info).strip(),
        data=None if reply.data is msgspec.UNSET else bytes(reply.data).strip(),
    )
