"""What tests put in place of clocks, loop turns, sockets, wires and brokers. Nothing here waits for real time."""

import asyncio
import base64
import inspect
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Coroutine
from typing import Any

import pytest
from websockets.frames import Frame, Opcode

from push1st import auth, brokers
from push1st.api import Api
from push1st.apps.files import Files
from push1st.brokers.memory import Memory
from push1st.config.model import ApiConfig, AppConfig, Config, ServerConfig
from push1st.core.fanout import Fanout
from push1st.core.node import Node
from push1st.core.session import Session
from push1st.eager import begin, spawn, wait
from push1st.hooks import Decision, Status
from push1st.hooks.events import Question
from push1st.limits import Limits
from push1st.messages import DEFAULT_OPTIONS, Fact, Message, Options, Request, Response, Subscribe, Unsubscribe
from push1st.metrics import Metrics
from push1st.protocols.pusher import Pusher
from push1st.protocols.pusher_xhr import PusherXhr
from push1st.protocols.raw import Raw
from push1st.transports.http import HttpConnection
from push1st.transports.listener import Listener, Worker
from push1st.transports.sweep import Sweep

APP, KEY, SECRET = "app-test", "app-key", "secret"
WALL = 1_700_000_000


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """For conftest files: an `async def` test runs in a loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in wanted}))
    return True


async def turns(count: int = 4) -> None:
    """Lets the loop go round: time does not pass."""
    for _ in range(count):
        await asyncio.sleep(0)


def done(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that must not wait."""
    result = begin(coroutine)
    assert not hasattr(result, "__await__"), "it waits"
    return result


class Clock:
    """Both clocks of a node, moved by hand."""

    def __init__(self, seconds: float = 1000.0) -> None:
        self.seconds = seconds

    def monotonic(self) -> float:
        return self.seconds

    def wall(self) -> int:
        return WALL * 1_000_000_000 + int(self.seconds * 1_000_000_000)

    def advance(self, seconds: float) -> None:
        self.seconds += seconds


class Timer:
    def __init__(self, seconds: float, run: Callable[[], object], timers: "list[Timer]") -> None:
        self.seconds = seconds
        self.run = run
        self._timers = timers
        timers.append(self)

    def cancel(self) -> None:
        if self in self._timers:
            self._timers.remove(self)


class Turns:
    """A loop's `call_soon` and `call_later`.

    `end` is the end of a turn: it runs what is due, not what that adds. `elapse`: the time has come for all timers.
    """

    def __init__(self) -> None:
        self.due: list[Callable[[], object]] = []
        self.timers: list[Timer] = []

    def call_soon(self, run: Callable[[], object]) -> None:
        self.due.append(run)

    def call_later(self, seconds: float, run: Callable[[], object]) -> Timer:
        return Timer(seconds, run, self.timers)

    def elapse(self) -> None:
        timers = self.timers.copy()
        self.timers.clear()
        for timer in timers:
            timer.run()

    def end(self) -> None:
        due, self.due = self.due, []
        for run in due:
            run()

    def drain(self, most: int = 5000) -> None:
        """Ends turns until nothing is due any more, and no timer runs."""
        while self.due or self.timers:
            assert most, "the turns never end"
            most -= 1
            if not self.due:
                self.elapse()
            self.end()


class LoopTurns:
    """The running loop's."""

    def call_soon(self, run: Callable[[], object]) -> object:
        return asyncio.get_running_loop().call_soon(run)

    def call_later(self, seconds: float, run: Callable[[], object]) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, run)


class Wire:
    """Frames are the data as it is."""

    def __init__(self, name: str = "plain") -> None:
        self.name = name
        self.encoded = 0

    def message(self, message: Message, now: int) -> bytes:
        self.encoded += 1
        return message.data


def app_config(limits: dict[str, int] | None = None, **changes: Any) -> AppConfig:
    """The demo app with changes."""
    values: dict[str, Any] = {"id": APP, "key": KEY, "secret": SECRET, "client_messages": True}
    return AppConfig(**(values | {"limits": Limits(**(limits or {}))} | changes))


class Hooks:
    """Keeps what happened."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []
        self.asked: list[Question] = []
        self.decision = Decision()
        self.waits: asyncio.Future[None] | None = None

    def happened(self, fact: Fact) -> None:
        self.facts.append(fact)

    async def ask(self, question: Question) -> Decision:
        """What `decision` says, once `waits` is done."""
        self.asked.append(question)
        waits = self.waits
        if waits is not None:
            await waits
        return self.decision

    def status(self, app: str) -> list[Status]:
        return []

    def queued(self) -> dict[str, int]:
        return {}


class World:
    """A node on the memory broker, or on another one made of it, with its clock and turns."""

    def __init__(self, *apps: AppConfig, slow: bool = False, turns: LoopTurns | None = None):
        self.clock = Clock()
        self.turns = Turns()
        self.metrics = Metrics()
        self.random = 0
        self.apps = apps or (app_config(),)
        self.failures: list[BaseException | None] = []
        self.fanout = Fanout(turns or self.turns, self.clock, self.metrics, self._failed)
        self.node = Node(Files(self.apps), self.fanout, self.metrics, self.clock, self._randbits)
        self.memory = Memory(self.node.stamp)
        self.broker = SlowBroker(self.memory)
        opened: Any = self.broker if slow else self.memory
        self.hooks = Hooks()
        done(self.node.open(opened, opened, opened, opened, opened, self.hooks))
        self.app = self.node.app(self.apps[0])

    def _failed(self) -> None:
        self.failures.append(sys.exception())

    def _randbits(self, bits: int) -> int:
        self.random += 1
        return 7 << 32 | self.random

    def session(self, wire: Any = None, outlet: "Outlet | None" = None, **more: Any) -> tuple[Session, "Outlet"]:
        """A client: Pusher's without `push`."""
        outlet = outlet or Outlet(self)
        session = Session(self.node, self.app, outlet, wire or PUSHER, outlet.write, "192.0.2.1", **more)
        outlet.session = session
        return session, outlet

    def publish(self, channel: str, data: bytes, event: str = "e", **more: Any) -> int:
        """As the API does; with the memory broker nothing waits."""
        count: int = done(wait(self.node.publish(self.app, channel, event, data, self.node.stamp(), **more)))
        return count


class Listening:
    """A session's outlet that keeps what is written to it. on_write: called with it before each write is kept.

    Replies are dropped, so that what is read are the frames of the test.
    """

    def __init__(self) -> None:
        self.session: Session
        self.writes: list[bytes] = []
        self.on_write: Callable[[Listening], object] = lambda _: None

    def write(self, data: bytes) -> None:
        self.on_write(self)
        self.writes.append(data)

    def send(self, reply: object) -> None: ...

    def close(self, code: int, reason: str) -> None:
        raise AssertionError(f"closed with {code}: {reason}")

    def fail(self) -> None:
        raise AssertionError("a command failed") from sys.exception()

    @property
    def received(self) -> bytes:
        return b"".join(self.writes)

    @property
    def on(self) -> Container[str]:
        return self.session.subscriptions


class Stage:
    """Sessions on a fan-out, through the node and the memory broker, with frames that are the data as it is."""

    def __init__(self) -> None:
        self.world = World()
        self.turns = self.world.turns
        self.metrics = self.world.metrics
        self.fanout = self.world.fanout
        self.tenant = self.world.app.tenant
        self.wire = Wire()

    def client(self, *channels: str, wire: Wire | None = None, prefix: str = "") -> Listening:
        one = Listening()
        world = self.world
        one.session = Session(world.node, world.app, one, wire or self.wire, one.write, "", prefix, None, frozenset())
        for name in channels:
            self.join(one, name)
        return one

    def join(self, one: Listening, name: str) -> None:
        one.session.handle(Subscribe(name))

    def leave(self, one: Listening, name: str) -> None:
        one.session.handle(Unsubscribe(name))

    def lose(self, one: Listening) -> None:
        """The connection is gone."""
        one.session.close()

    def publish(self, channel: str, data: bytes, exclude: Listening | str = "", how: Options = DEFAULT_OPTIONS) -> int:
        out = exclude if isinstance(exclude, str) else exclude.session.id
        return self.world.publish(channel, data, exclude=out, options=how)

    def unicast(self, channel: str, data: bytes, to: Listening | str) -> int:
        target = to if isinstance(to, str) else to.session.id
        return self.publish(channel, data, how=Options(0, "unicast", target))

    def multicast(self, channel: str, data: bytes, prefix: str) -> int:
        return self.publish(channel, data, how=Options(0, "multicast", prefix))

    def direct(self, one: Listening, frame: bytes) -> None:
        self.fanout.direct(one.session, frame)

    def settle(self, one: Listening) -> None:
        self.fanout.settle(one.session)


PUSHER = Pusher()
RAW = Raw()
XHR = PusherXhr()


class Outlet:
    """A connection as its session sees it: keeps what it is told, and ends as a real one does."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.session: Session | None = None
        self.replies: list[Any] = []
        self.closes: list[tuple[int, str]] = []
        self.failures: list[BaseException | None] = []
        self.writes: list[bytes] = []
        self.on_write: Callable[[], object] = lambda: None

    def write(self, data: bytes) -> None:
        self.on_write()
        self.writes.append(data)

    def send(self, reply: Any) -> None:
        if self.session is None or not self.session.closed:
            self.replies.append(reply)

    def close(self, code: int, reason: str) -> None:
        self.closes.append((code, reason))
        if self.session is not None:
            self.session.close()

    def fail(self) -> None:
        self.failures.append(sys.exception())
        self.close(1011, "internal error")

    @property
    def last(self) -> Any:
        return self.replies[-1]


class SlowBroker:
    """The memory broker, and what a network adds to it: calls wait while they are held, and only the topics
    subscribed to are received. Changes of one topic keep their order, as they do on one connection to a broker.

    held: names of calls that wait. calls: what was called, in order. fail: what a call raises, by its name.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []
        self.held: set[str] = set()
        self.fail: dict[str, Exception] = {}
        self.calls: list[tuple[str, str]] = []
        self.topics: Counter[tuple[str, str]] = Counter()
        self._orders: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._memory, name)

    async def _step(self, name: str, channel: str) -> None:
        self.calls.append((name, channel))
        if name in self.held:
            future = asyncio.get_running_loop().create_future()
            self._waiting.append((name, future))
            await future
        if name in self.fail:
            raise self.fail[name]

    @property
    def waiting(self) -> list[str]:
        return [name for name, _ in self._waiting]

    async def let(self, *names: str) -> None:
        """Lets the oldest waiting call of each of these names go on, one after another."""
        for name in names:
            at = self.waiting.index(name)
            self._waiting.pop(at)[1].set_result(None)
            await turns()

    async def let_all(self) -> None:
        """Nothing is held any more."""
        self.held.clear()
        while self._waiting:
            await self.let(self._waiting[0][0])

    async def open(
        self,
        receive: Callable[[Message], int],
        happened: Callable[[Fact], None],
        answer: brokers.Answer,
        recount: brokers.Recount,
    ) -> None:
        def heard(message: Message) -> int:
            return receive(message) if self.topics[message.app, message.channel] else 0

        await self._memory.open(heard, happened, answer, recount)

    def report(self, fact: Fact) -> None:
        self._memory.report(fact)

    async def subscribe(self, app: str, channel: str) -> None:
        async with self._orders[channel]:
            await self._step("subscribe", channel)
            self.topics[app, channel] = 1

    async def unsubscribe(self, app: str, channel: str) -> None:
        async with self._orders[channel]:
            await self._step("unsubscribe", channel)
            self.topics[app, channel] = 0

    async def publish(self, message: Message) -> int:
        await self._step("publish", message.channel)
        return self._memory.publish(message)

    async def join(self, app: str, channel: str, *rest: Any) -> Any:
        await self._step("join", channel)
        return await self._memory.join(app, channel, *rest)

    async def leave(self, app: str, channel: str, *rest: Any) -> None:
        await self._step("leave", channel)
        await self._memory.leave(app, channel, *rest)

    async def channels(self, app: str, prefix: str = "") -> Any:
        await self._step("channels", prefix)
        return await self._memory.channels(app, prefix)

    async def channel(self, app: str, channel: str) -> Any:
        await self._step("channel", channel)
        return await self._memory.channel(app, channel)

    async def members(self, app: str, channel: str, *, told: bool = False) -> Any:
        await self._step("members", channel)
        return await self._memory.members(app, channel, told=told)

    async def last(self, app: str, channel: str) -> Any:
        await self._step("last", channel)
        return await self._memory.last(app, channel)

    async def sign_in(self, app: str, user_id: str, socket_id: str) -> None:
        await self._step("sign_in", user_id)
        await self._memory.sign_in(app, user_id, socket_id)

    async def sign_out(self, app: str, user_id: str, socket_id: str) -> None:
        await self._step("sign_out", user_id)
        await self._memory.sign_out(app, user_id, socket_id)

    async def online(self, app: str, user_ids: Any) -> Any:
        await self._step("online", "")
        return await self._memory.online(app, user_ids)


class Numbered:
    """A socket that has a file descriptor."""

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        return self._number


class Transport(asyncio.Transport):
    """A socket's transport: keeps what is written. After its end nothing more is sent; `late` has what was tried.

    bound: bytes after which its protocol is told to pause writing, at once and within the write, as uvloop does.
    number: of its file descriptor, by default none that is open.
    """

    def __init__(self, peer: object = ("127.0.0.1", 40_000), secure: bool = False, number: int = -1) -> None:
        super().__init__({"peername": peer, "sslcontext": object() if secure else None, "socket": Numbered(number)})
        self.writes: list[bytes] = []
        self.late: list[bytes] = []
        self.closed = False
        self.aborted = False
        self.reading = True
        self.ended = False
        self.high: int | None = None
        self.bound: int | None = None
        self.protocol: Any = None

    @property
    def data(self) -> bytes:
        return b"".join(self.writes)

    def take(self) -> bytes:
        """What was written since the last time."""
        data = self.data
        self.writes.clear()
        return data

    def write(self, data: Any) -> None:
        assert not self.ended, "written behind the end"
        if self.closed or self.aborted:
            self.late.append(bytes(data))
            return
        self.writes.append(bytes(data))
        if self.bound is not None and len(self.data) > self.bound:
            self.bound = None
            self.protocol.pause_writing()

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def can_write_eof(self) -> bool:
        return self.get_extra_info("sslcontext") is None

    def write_eof(self) -> None:
        self.ended = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high


class Site:
    """A worker with one listener, the connections made to it, and a sweep moved by the clock.

    serve: in place of the API. Everything runs in the running loop; `turns()` lets what is due be written.
    """

    def __init__(
        self,
        *apps: AppConfig,
        serve: Callable[[Request], Coroutine[Any, Any, Response]] | None = None,
        server: ServerConfig | None = None,
        api: ApiConfig | None = None,
        trusting: bool = True,
        slow: bool = False,
    ) -> None:
        self.world = World(*apps, slow=slow, turns=LoopTurns())
        self.node = self.world.node
        self.metrics = self.world.metrics
        self.clock = self.world.clock
        self.failures = self.world.failures
        self.config = Config(server=server or ServerConfig(), api=api or ApiConfig(), apps=self.world.apps)
        self.sweep = Sweep(self.clock.monotonic, self._swept_badly, lambda: spawn(self.node.tick()))
        self.serve = serve or Api(self.node, self.config).serve
        codecs: dict[str, Any] = {"pusher": PUSHER, "pusher-xhr": XHR, "websocket": RAW}
        self.worker = Worker(self.node, self.serve, self.config, codecs, self.sweep, self._failed)
        self.listener = Listener(self.worker, trusting, self.config.api.whitelist, self.config.api.keep_alive_timeout)

    def _failed(self, where: str) -> None:
        self.failures.append(sys.exception())

    def _swept_badly(self) -> None:
        self.failures.append(sys.exception())

    def connect(
        self, peer: object = ("127.0.0.1", 40_000), secure: bool = False, number: int = -1
    ) -> tuple[HttpConnection, Transport]:
        transport = Transport(peer, secure, number)
        connection = HttpConnection(self.listener)
        transport.protocol = connection
        connection.connection_made(transport)
        return connection, transport

    async def ask(self, data: bytes, peer: object = ("127.0.0.1", 40_000)) -> Transport:
        """A new connection that sends `data`, and what becomes of it."""
        connection, transport = self.connect(peer)
        connection.data_received(data)
        await turns()
        return transport

    async def websocket(self, path: str, *headers: str, peer: object = ("127.0.0.1", 40_000)) -> Transport:
        """A connection whose handshake has been answered; `transport.protocol` is the WebSocket."""
        transport = await self.ask(handshake(path, *headers), peer)
        assert transport.data.startswith(b"HTTP/1.1 101 "), transport.data
        return transport

    def pass_seconds(self, seconds: int) -> None:
        """Time passes, second by second, as the sweep sees it."""
        for _ in range(seconds):
            self.clock.advance(1)
            self.sweep.run()


def handshake(path: str, *headers: str, method: str = "GET") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: Upgrade", "Upgrade: websocket"]
    given = {header.partition(":")[0].lower() for header in headers}
    if "sec-websocket-version" not in given:
        lines.append("Sec-WebSocket-Version: 13")
    if "sec-websocket-key" not in given:
        lines.append(f"Sec-WebSocket-Key: {base64.b64encode(b'sixteen bytes ok').decode()}")
    return "\r\n".join([*lines, *headers, "", ""]).encode("latin-1")


def request(method: str, path: str, body: bytes | str | None = None, *headers: str, version: str = "1.1") -> bytes:
    body = body.encode() if isinstance(body, str) else body
    lines = [f"{method} {path} HTTP/{version}", "Host: localhost", *headers]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


class Answer:
    """One HTTP response, taken off the front of `data`."""

    def __init__(self, data: bytes, head_only: bool = False) -> None:
        head, separator, rest = data.partition(b"\r\n\r\n")
        assert separator, data
        first, *lines = head.decode("latin-1").split("\r\n")
        found = re.fullmatch(r"HTTP/1\.1 (\d{3}) .+", first)
        assert found, first
        self.status = int(found[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        size = 0 if head_only or self.status in (100, 101) else int(self.headers["content-length"])
        assert len(rest) >= size, data
        self.body, self.rest = rest[:size], rest[size:]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def keeps(self) -> bool:
        return self.headers.get("connection") != "close"


def answers(data: bytes) -> list[Answer]:
    """All responses in what was written."""
    found = []
    while data:
        found.append(Answer(data))
        data = found[-1].rest
    return found


def statuses(data: bytes) -> list[int]:
    return [answer.status for answer in answers(data)]


def masked(opcode: Opcode, data: bytes | str, fin: bool = True) -> bytes:
    """A frame as a client sends it."""
    payload = data.encode() if isinstance(data, str) else data
    return bytes(Frame(opcode, payload, fin).serialize(mask=True))


def text(data: str | object) -> bytes:
    """A text frame of a client: a string as it is, anything else as JSON."""
    return masked(Opcode.TEXT, data if isinstance(data, str) else json.dumps(data))


def close(code: int = 1000, reason: str = "") -> bytes:
    return masked(Opcode.CLOSE, code.to_bytes(2, "big") + reason.encode())


def frames(data: bytes) -> list[tuple[Opcode, bytes]]:
    """What a client reads: opcode and payload of each frame. They must be whole, unmasked and unfragmented."""
    found = []
    while data:
        opcode, size, at = Opcode(data[0] & 15), data[1], 2
        assert data[0] & 0xF0 == 0x80
        if size == 126:
            size, at = int.from_bytes(data[2:4], "big"), 4
        elif size == 127:
            size, at = int.from_bytes(data[2:10], "big"), 10
        assert size < 126 or at > 2
        assert len(data) >= at + size
        found.append((opcode, data[at : at + size]))
        data = data[at + size :]
    return found


def texts(data: bytes) -> list[Any]:
    """The text messages a client reads, decoded from JSON."""
    return [json.loads(payload) for opcode, payload in frames(data) if opcode is Opcode.TEXT]


def close_of(data: bytes) -> tuple[int, str]:
    """Code and reason of the close frame a client reads, which must be there and the last one."""
    *_, (opcode, payload) = frames(data)
    assert opcode is Opcode.CLOSE, opcode
    return int.from_bytes(payload[:2], "big"), payload[2:].decode()


def token(session: Session, channel: str, channel_data: str = "") -> str:
    """What authorises a Pusher client's subscription."""
    return f"{KEY}:{auth.channel_signature(SECRET, session.id, channel, channel_data)}"


def signed(method: str, path: str, body: bytes = b"", params: dict[str, str] | None = None, clock: Clock | None = None) -> str:
    """The query of a signed API call."""
    now = (clock or Clock()).wall() // 1_000_000_000
    query = auth.sign_request(KEY, SECRET, method, path, params or {}, body, now)
    return "&".join(f"{name}={value}" for name, value in query.items())
