"""Requests and messages between the consoles of all workers, which share one topic of the broker.

Each console is subscribed to the topic `#console` for all consoles, and to a topic of its own. The topics belong to an app that
no source of apps contains, so this app has no clients and no metrics. A console that opens greets the others, and each of them
replies. So every console knows which living nodes have a console, and waits only for these nodes. A console that closes
sends a farewell.

Without a shared broker, and while the broker is away, a worker replies to its own requests only.

The parts of the console handle the frames of other workers inside the function that reads from the broker. So no exception of a
part may leave this module: it would end the connection to the broker, and with it the deliveries to all clients of the worker.
"""

import asyncio
import itertools
import socket
from collections.abc import Callable, Collection, Coroutine, Iterator
from contextlib import suppress
from typing import Any, TypeVar

import msgspec

from push1st import logs
from push1st.brokers import Peers
from push1st.config.model import AppConfig
from push1st.console.nodes import KnownNodes, NodeAbout
from push1st.core.app import App
from push1st.core.controller import TopicHandler
from push1st.core.node import Node
from push1st.eager import MaybeAwaitable, spawn, timeout
from push1st.errors import Refused
from push1st.metrics import AppCounts

APP = TOPIC = "#console"
MAX_PENDING = 200
"""the maximum number of requests of a worker that wait for replies at the same time"""
MAX_SERVED = 100
"""the maximum number of requests of other workers that a worker serves at the same time; it does not reply to further requests"""
MAX_HEARD = 2000
"""the number of known nodes above which the wire forgets the dead ones"""
MAX_QUEUED = 1 << 20
"""the number of bytes that wait for a slow broker above which long messages are not sent. It is less than the number above which
clients cannot publish (`brokers.redis.publishing.MAX_QUEUED`)."""
LONG = 1024
"""the number of bytes above which a message is long"""
RETRY_SECONDS = 1.0
ASK_SECONDS = 2.0
"""the time between two requests for the nodes that have no console"""
GREETING_SECONDS = 0.3
FRESH_SECONDS = 2.0
"""the time for which a node counts as living after its last frame, although no renewal of the lease has named it yet"""
HELLO, FAREWELL = "hello", "farewell"
"""the kinds of the request with which a console greets the others, and of its last message"""

log = logs.get("push1st.console")

T = TypeVar("T")


class Replies(msgspec.Struct):
    """The replies of the workers to a request.

    found: the name of each node that replied, with its reply. The first reply is that of this worker, if the request was for this
    worker too.
    missing: the living nodes with a console that did not reply.
    away: the last error of the broker; "" if the broker is connected.
    """

    found: list[tuple[str, bytes]]
    missing: list[str]
    away: str

    def decoded(self, decode: Callable[[bytes], T]) -> list[tuple[str, T]]:
        """Returns the name of each node that replied, with its decoded reply.

        If a reply cannot be decoded, because its node runs another version of Push1st, the node becomes a missing one.
        """
        found: list[tuple[str, T]] = []
        for node, data in self.found:
            try:
                found.append((node, decode(data)))
            except (msgspec.DecodeError, UnicodeDecodeError):
                self.missing.append(node)
        return found

    def parts(self, size: int) -> "Iterator[Replies]":
        """Yields at most `size` replies at a time. All parts have the same list of missing nodes."""
        for at in range(0, len(self.found), size):
            yield msgspec.structs.replace(self, found=self.found[at : at + size])


class WireRequest(msgspec.Struct, frozen=True, array_like=True, tag="request"):
    """A request. number: a number that the reply repeats. origin: the node that waits for the reply."""

    number: int
    origin: str
    kind: str
    data: bytes


class WireReply(msgspec.Struct, frozen=True, array_like=True, tag="reply"):
    """The reply of the node `origin`."""

    number: int
    origin: str
    data: bytes


class WireMessage(msgspec.Struct, frozen=True, array_like=True, tag="message"):
    """A message without a reply."""

    origin: str
    kind: str
    data: bytes


_decoder = msgspec.msgpack.Decoder(WireRequest | WireReply | WireMessage)


def _lost() -> None:
    """Called for a frame that the broker did not confirm: the request then ends without the replies."""


class PendingRequest:
    """A request that waits for replies. waits_for: the nodes that have not replied yet."""

    __slots__ = ("done", "found", "waits_for")

    def __init__(self, nodes: Collection[str]) -> None:
        self.waits_for = set(nodes)
        self.found: dict[str, bytes] = {}
        self.done = asyncio.Event()

    def reply(self, node: str, data: bytes) -> None:
        self.found[node] = data
        self.leave(node)

    def leave(self, node: str) -> None:
        """Removes a node from those for which the request waits."""
        self.waits_for.discard(node)
        if not self.waits_for:
            self.done.set()


class ConsoleWire:
    """The connection of a worker's console with the consoles of all workers, this worker included.

    name: the name of this worker's node in the broker. number: the number of the worker.
    """

    def __init__(self, node: Node, name: str, number: int) -> None:
        self._node = node
        self._name = name
        server = "" if node.siblings is None else node.siblings.server
        about = NodeAbout(socket.gethostname(), number, server, node.clock.wall() / 1_000_000_000)
        self.nodes = KnownNodes(name, about)
        self._app = App(AppConfig(id=APP, key="", secret=""), node.clock.monotonic(), AppCounts())
        self._served: dict[str, Callable[[bytes], MaybeAwaitable[bytes]]] = {}
        self._handled: dict[str, Callable[[bytes], None]] = {}
        self._pending: dict[int, PendingRequest] = {}
        self._numbers = itertools.count(1)
        self._serving = 0
        self._heard: dict[str, float] = {}
        """the other nodes that have a console, with the times of their last frames (loop's clock)"""
        self._without: set[str] = set()
        """the other nodes that have replied that they have no console, at most `MAX_HEARD`"""
        self._asks_at = 0.0
        """the time (clock of the loop) from which this worker may query the unknown nodes again"""
        self.left: set[str] = set()
        """the nodes that have sent a farewell, at most `MAX_HEARD`"""
        self.is_open = False
        """whether the broker has confirmed the subscriptions to the topics"""

    def serve(self, kind: str, handler: Callable[[bytes], MaybeAwaitable[bytes]]) -> None:
        """Sets the function that replies to requests of a kind. A request for which it raises an exception gets no reply."""
        self._served[kind] = handler

    def handle(self, kind: str, handler: Callable[[bytes], None]) -> None:
        """Sets the function that handles messages of a kind, which have no reply."""
        self._handled[kind] = handler

    async def open(self) -> None:
        """Subscribes to the topics, and greets the other consoles. If the broker is away, tries again until it is not."""
        if not self._node.controller.shared:
            return
        try:
            await self._join()
        except Refused as exc:
            log.warning("console is not connected with other workers", reason=exc.text)
            self._join_again()

    async def _join(self) -> None:
        if not self.is_open:
            handler = TopicHandler(lambda _: b"", self._received)
            for topic in (_topic(self._name), TOPIC):
                await self._node.controller.handle_topic(self._app, topic, handler)
            self.is_open = True
        await self._greet()

    def _join_again(self) -> None:
        spawn(self._retry())

    async def _retry(self) -> None:
        await asyncio.sleep(RETRY_SECONDS)
        try:
            await self._join()
        except Refused:
            self._join_again()

    async def _greet(self) -> None:
        """Greets all other nodes, and waits a moment until the living ones with a console have replied.

        A new node may not know yet which nodes are living. If the broker does not confirm the greeting, it is repeated.
        """
        others = self.peers().nodes or {""}
        hello = WireRequest(next(self._numbers), self._name, HELLO, self.nodes.own)
        pending = await self._collect(hello, TOPIC, others, GREETING_SECONDS, self._join_again)
        for node, about in pending.found.items():
            self._learn(node, about)

    def close(self) -> None:
        """Sends a farewell, so that the other consoles do not wait for this worker, and do not count it as lost."""
        if self.is_open:
            self._publish(TOPIC, WireMessage(self._name, FAREWELL, b""))

    def _learn(self, node: str, about: bytes) -> None:
        if ended := self.nodes.learn(node, about):
            self._forget(ended)

    def _forget(self, node: str) -> None:
        """Stops waiting for the replies of a node that has ended."""
        self._heard.pop(node, None)
        for waiting in self._pending.values():
            waiting.leave(node)

    def peers(self) -> Peers:
        """Returns the other living nodes, and the last error of the broker if it is away."""
        return self._node.controller.peers()

    def consoles(self) -> Collection[str]:
        """Returns the other living nodes that have a console."""
        living = self.peers().nodes
        since = asyncio.get_running_loop().time() - FRESH_SECONDS
        return [node for node, heard in self._heard.items() if node in living or heard >= since]

    def without_console(self) -> set[str]:
        """Returns the other living nodes that have no console.

        A living node that has sent nothing to this worker may have no console, may be starting, or may have just ended. So the
        worker queries such nodes. A later call returns the nodes that have replied that they have no console.
        """
        peers, now = self.peers(), asyncio.get_running_loop().time()
        living = set(peers.nodes)
        if now >= self._asks_at and not peers.away and living.difference(self._heard, self.left, self._without):
            self._asks_at = now + ASK_SECONDS
            spawn(self._ask())
        return self._without & living

    async def _ask(self) -> None:
        with suppress(Refused):
            found = await self._node.controller.without_console()
            if len(self._without) >= MAX_HEARD:
                self._without.clear()
            self._without.update(found)

    async def request(self, kind: str, data: bytes = b"", *, node: str = "", seconds: float = 0.5) -> Replies:
        """Sends a request to all workers, or to one node, and returns the replies that arrive within `seconds`.

        Raises Refused(503) if too many requests wait for replies, and the exceptions of this worker's own function.
        """
        if node == self._name:
            return Replies([(self._name, await self._own(kind, data))], [], "")
        peers = self.peers()
        nodes = [one for one in self.consoles() if node in ("", one)]
        is_joining = self._node.controller.shared and not self.is_open  # replies cannot arrive yet
        if peers.away or is_joining or not nodes:
            found = [] if node else [(self._name, await self._own(kind, data))]
            missing = [node] if node else sorted(peers.nodes) if is_joining and not peers.away else []
            return Replies(found, missing, peers.away)
        asked = WireRequest(next(self._numbers), self._name, kind, data)
        collecting = asyncio.ensure_future(self._collect(asked, _topic(node) if node else TOPIC, nodes, seconds))
        try:
            own = [] if node else [(self._name, await self._own(kind, data))]
        except BaseException:
            collecting.cancel()
            raise
        pending = await collecting
        return Replies(own + sorted(pending.found.items()), sorted(pending.waits_for), self.peers().away)

    def send(self, kind: str, data: bytes, node: str = "") -> int:
        """Sends a message to all workers, or to one node. Returns the number of workers to which the message is sent.

        The message is not sent to other workers while the broker is away, or, if it is a long one, while the broker is slow.
        """
        reached = 0
        if node in ("", self._name):
            reached += self._handle(kind, data)
        if node != self._name:
            others = [one for one in self.consoles() if node in ("", one)]
            if others and self._may_send(data):
                self._publish(_topic(node) if node else TOPIC, WireMessage(self._name, kind, data))
                reached += len(others)
        return reached

    def _may_send(self, data: bytes) -> bool:
        peers = self.peers()
        return not peers.away and (len(data) <= LONG or peers.queued <= MAX_QUEUED)

    def _handle(self, kind: str, data: bytes) -> bool:
        """Calls the function of this worker for a message. Returns whether it has handled the message."""
        handler = self._handled.get(kind)
        if handler is None:  # a console of another version sent it
            return False
        try:
            handler(data)
        except Exception:
            log.exception("console message failed", kind=kind)
            return False
        return True

    async def _own(self, kind: str, data: bytes) -> bytes:
        found = self._served[kind](data)
        return await found if isinstance(found, Coroutine) else found

    async def _collect(
        self, asked: WireRequest, topic: str, nodes: Collection[str], seconds: float, lost: Callable[[], object] = _lost
    ) -> PendingRequest:
        if len(self._pending) >= MAX_PENDING:
            raise Refused(503, "the console waits for too many replies of other workers, try again")
        pending = self._pending[asked.number] = PendingRequest(nodes)
        try:
            self._publish(topic, asked, lost)
            async with timeout(seconds):
                await pending.done.wait()
        except TimeoutError:
            pass
        finally:
            del self._pending[asked.number]
        return pending

    def _publish(self, topic: str, frame: WireRequest | WireReply | WireMessage, lost: Callable[[], object] = _lost) -> None:
        self._node.controller.send_to_topic(self._app, topic, msgspec.msgpack.encode(frame), lost)

    def _received(self, data: bytes) -> None:
        """Handles a frame of the topics, in which this worker's own frames arrive too."""
        try:
            frame = _decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):  # a worker of another version
            return
        if frame.origin == self._name or frame.origin in self.left:
            return
        if isinstance(frame, WireMessage) and frame.kind == FAREWELL:
            if len(self.left) >= MAX_HEARD:
                self.left.clear()
            self.left.add(frame.origin)
            self._forget(frame.origin)  # a reply after the farewell is ignored
            return
        self._heard[frame.origin] = asyncio.get_running_loop().time()
        if len(self._heard) > MAX_HEARD:
            living = self.consoles()
            self._heard = {node: heard for node, heard in self._heard.items() if node in living}
        if isinstance(frame, WireReply):
            pending = self._pending.get(frame.number)
            if pending is not None:
                pending.reply(frame.origin, frame.data)
        elif isinstance(frame, WireMessage):
            self._handle(frame.kind, frame.data)
        elif self._serving < MAX_SERVED:
            spawn(self._reply(frame))

    async def _reply(self, asked: WireRequest) -> None:
        handler = self._served.get(asked.kind)
        if asked.kind == HELLO:
            self._learn(asked.origin, asked.data)
            handler = self._greeted
        if handler is None:  # a console of another version
            return
        self._serving += 1
        try:
            found = handler(asked.data)
            data: Any = await found if isinstance(found, Coroutine) else found
            self._publish(_topic(asked.origin), WireReply(asked.number, self._name, data))
        except Refused:
            pass
        except Exception:  # this worker counts as a missing one
            log.exception("console request failed", kind=asked.kind, origin=asked.origin)
        finally:
            self._serving -= 1

    def _greeted(self, _data: bytes) -> bytes:
        return self.nodes.own


def _topic(node: str) -> str:
    return f"{TOPIC} {node}"
