"""A node on the memory broker, and sessions whose connections store what is written to them."""

import asyncio
import sys
from collections.abc import Callable, Container
from itertools import count
from typing import Any

from push1st import auth
from push1st.apps.files import Files
from push1st.brokers.memory import Memory
from push1st.brokers.memory_history import MemoryHistory
from push1st.brokers.memory_sessions import MemorySessions
from push1st.config.history import HistoryBounds
from push1st.config.model import AppConfig
from push1st.config.mqtt import Mqtt
from push1st.core.fanout import Fanout
from push1st.core.filters import FilterRights, rights_of
from push1st.core.node import Node
from push1st.core.session import Session
from push1st.eager import resolve
from push1st.hooks import Decision, HookOperations, HookTap, Status
from push1st.hooks.events import Question
from push1st.hooks.operations import Operations
from push1st.limits import Limits
from push1st.messages import DEFAULT_OPTIONS, HookEvent, Options, Published, Subscribe, Unsubscribe
from push1st.metrics import Metrics
from push1st.protocols.pusher import Pusher
from push1st.protocols.pusher_xhr import PusherXhr
from push1st.protocols.raw import Raw
from push1st.protocols.raw_positions import RawPositions
from tests.support.broker import SlowBroker
from tests.support.frames import Wire
from tests.support.loop import Clock, LoopTurns, Turns, done

APP, KEY, SECRET = "app-test", "app-key", "secret"
PUSHER = Pusher()
RAW = Raw()
RAW_POSITIONS = RawPositions()
XHR = PusherXhr()


def app_config(limits: dict[str, int] | None = None, **changes: Any) -> AppConfig:
    """Returns the demo app with changes."""
    values: dict[str, Any] = {"id": APP, "key": KEY, "secret": SECRET, "client_messages": True}
    return AppConfig(**(values | {"limits": Limits(**(limits or {}))} | changes))


class Hooks:
    """Hooks that store hook events and authorize requests."""

    def __init__(self) -> None:
        self.hook_events: list[HookEvent] = []
        self.asked: list[Question] = []
        self.decision = Decision()
        self.queues: dict[str, int] = {}
        self.waits: asyncio.Future[None] | None = None
        self.operations: HookOperations = Operations(None, lambda _: (), lambda _: (), lambda *_: None)
        self.tap: HookTap | None = None
        self.lost_app = ""

    def on_event(self, event: HookEvent) -> None:
        self.hook_events.append(event)

    async def decide(self, question: Question) -> Decision:
        """Returns `decision`, after `waits` is done."""
        self.asked.append(question)
        waits = self.waits
        if waits is not None:
            await waits
        return self.decision

    def status(self, app: str) -> list[Status]:
        return []

    def queued(self) -> dict[str, int]:
        return self.queues

    def oldest(self) -> dict[str, float]:
        return {}


class Outlet:
    """The connection of a session: stores replies, closes and writes, and ends like a real connection."""

    def __init__(self, world: "World") -> None:
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

    def has_room(self, size: int) -> bool:
        return True

    def close(self, code: int, reason: str) -> None:
        self.closes.append((code, reason))
        if self.session is not None:
            self.session.expire()

    def fail(self) -> None:
        self.failures.append(sys.exception())
        self.close(1011, "internal error")

    @property
    def last(self) -> Any:
        return self.replies[-1]


class World:
    """A node on the memory broker, or on a slow broker around it, with its clock and turns."""

    def __init__(self, *apps: AppConfig, slow: bool = False, turns: LoopTurns | None = None):
        self.clock = Clock()
        self.turns = Turns()
        self.metrics = Metrics()
        self.random = 0
        self.apps = apps or (app_config(),)
        self.failures: list[BaseException | None] = []
        self.fanout = Fanout(turns or self.turns, self.clock, self._failed)
        self.node = Node(Files(self.apps), self.fanout, self.metrics, self.clock, self._randbits)
        numbers = count(1)
        self.history = MemoryHistory(HistoryBounds(), self.clock.wall, lambda _: next(numbers), self.metrics)
        self.sessions = MemorySessions(self.clock.wall, lambda _: next(numbers), self.metrics, Mqtt())
        self.memory = Memory(self.node.stamp, self.node.local_roster, self.history, self.sessions)
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

    def session(self, wire: Any = None, outlet: Outlet | None = None, **more: Any) -> tuple[Session, Outlet]:
        """Makes a client; by default a Pusher client."""
        outlet = outlet or Outlet(self)
        session = Session(self.node, self.app, outlet, wire or PUSHER, outlet.write, "192.0.2.1", **more)
        outlet.session = session
        return session, outlet

    def publish(self, channel: str, data: bytes, event: str = "e", **more: Any) -> int:
        """Publishes like the API; with the memory broker the call does not wait."""
        published: Published = done(resolve(self.node.publish(self.app, channel, event, data, self.node.stamp(), **more)))
        return published.count


def token(session: Session, channel: str, channel_data: str = "") -> str:
    """Returns the signature that authorises a Pusher client's subscription."""
    return f"{KEY}:{auth.channel_signature(SECRET, session.id, channel, channel_data)}"


class Listening:
    """The outlet of a session; stores what is written. on_write: called with the outlet before each write is stored.

    The outlet drops replies, so that its writes are only the frames of the test.
    """

    def __init__(self) -> None:
        self.session: Session
        self.writes: list[bytes] = []
        self.on_write: Callable[[Listening], object] = lambda _: None

    def write(self, data: bytes) -> None:
        self.on_write(self)
        self.writes.append(data)

    def send(self, reply: object) -> None: ...

    def has_room(self, size: int) -> bool:
        return True

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
    """Sessions on a fan-out, through the node and the memory broker; frames are the data itself."""

    def __init__(self, turns: LoopTurns | None = None) -> None:
        self.world = World(turns=turns)
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

    def watch(
        self, one: Listening, filter: str, rights: FilterRights | None = None, wire: Wire | None = None, anonymous: bool = False
    ) -> None:
        """Subscribes to a filter with wildcards, by default with the right to read public channels."""
        wildcards, mine = self.world.node.wildcards, rights or rights_of(None, False)
        wildcards.subscribe(self.world.app, one.session, filter, wire or one.session.wire, mine, anonymous)

    def unwatch(self, one: Listening, filter: str) -> bool:
        """Ends the subscription to a filter with wildcards."""
        return self.world.node.wildcards.unsubscribe(self.world.app, one.session, filter)

    def lose(self, one: Listening) -> None:
        """Ends the connection."""
        one.session.expire()

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

    def ahead(self, one: Listening, frame: bytes) -> None:
        self.fanout.direct(one.session, frame, is_ahead=True)

    def settle(self, one: Listening) -> None:
        self.fanout.flush_subscriber(one.session)
