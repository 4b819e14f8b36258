"""A proxy between one machine and the broker; it can block the connections, while other machines reach the broker directly.

The proxy blocks in three ways. `swallow` acts like a pulled cable or a packet filter: no byte passes, and neither side learns
that a connection ended. `refuse` ends all connections and accepts none. `cut` ends all connections once. `open` ends the
blocking. Swallowed bytes then arrive late if both ends have kept their connection, and are lost otherwise.
`open(forget=True)` acts like a firewall that lost its state: connections from before stay dead. `forget` does this to one
connection.
"""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

from tests.support.process import DEADLINE

LINGER_NONE = b"\1\0\0\0\0\0\0\0"
"""for SO_LINGER: a close is a reset"""


class Pair:
    """A connection of the machine, and the connection to the broker that belongs to it, if it exists yet."""

    def __init__(self) -> None:
        self.ends: list[End] = []
        self.connecting = False
        self.forgotten = False
        self.said = b""
        """the first bytes that the machine sent"""

    @property
    def broken(self) -> bool:
        return any(end.lost for end in self.ends)

    def abort(self) -> None:
        for end in self.ends:
            end.transport.abort()


class End(asyncio.Protocol):
    """One of the two connections. held: bytes that this side sent and the other side has not received."""

    transport: asyncio.Transport

    def __init__(self, road: "Road", pair: Pair) -> None:
        self.road = road
        self.pair = pair
        self.held: list[bytes] = []
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NONE)
        self.pair.ends.append(self)
        self.road.passes(self.pair)

    def data_received(self, data: bytes) -> None:
        self.held.append(data)
        self.pair.said = self.pair.said or data
        self.road.passes(self.pair)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.road.passes(self.pair)


class Road:
    """path: the broker's Unix socket. The proxy runs in a thread of its own, so that a blocked test does not block the proxy."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._pairs: set[Pair] = set()
        self._connecting: set[asyncio.Task[object]] = set()
        self._swallows = False
        self._server: asyncio.Server | None = None
        self.port = 0
        self.do(self._listen)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def do(self, action: Callable[[], object]) -> None:
        async def act() -> None:
            done = action()
            if asyncio.iscoroutine(done):
                await done

        asyncio.run_coroutine_threadsafe(act(), self._loop).result(DEADLINE)

    def swallow(self) -> None:
        self.do(lambda: setattr(self, "_swallows", True))

    def forget(self, word: bytes) -> None:
        """Swallows all bytes of the connection whose first bytes contain this text."""
        (found,) = [pair for pair in self._pairs if word in pair.said]
        self.do(lambda: setattr(found, "forgotten", True))

    def refuse(self) -> None:
        self.do(self._refuse)

    def cut(self) -> None:
        self.do(self._cut)

    def open(self, *, forget: bool = False) -> None:
        async def opened() -> None:
            self._swallows = False
            for pair in list(self._pairs):
                pair.forgotten |= forget and len(pair.ends) == 2
                self.passes(pair)
            await self._listen()

        self.do(opened)

    def close(self) -> None:
        self.do(self._refuse)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # In the thread of the proxy

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await self._loop.create_server(lambda: End(self, Pair()), "127.0.0.1", self.port, reuse_address=True)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        self._cut()
        await asyncio.sleep(0)  # until the sockets are closed

    def _cut(self) -> None:
        for pair in list(self._pairs):
            pair.abort()

    def passes(self, pair: Pair) -> None:
        """Applies an event of a connection, unless the proxy is blocked."""
        self._pairs.add(pair)
        if self._swallows or pair.forgotten:
            if all(end.lost for end in pair.ends):
                self._pairs.discard(pair)
        elif pair.broken:
            self._pairs.discard(pair)
            pair.abort()
        elif len(pair.ends) == 1:
            if pair.connecting:
                return
            pair.connecting = True
            task = self._loop.create_task(self._connect(pair))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)
        else:
            for end, other in (pair.ends, reversed(pair.ends)):
                held, end.held = end.held, []
                other.transport.writelines(held)

    async def _connect(self, pair: Pair) -> None:
        try:
            await self._loop.create_unix_connection(lambda: End(self, pair), self._path)
        except OSError:
            pair.abort()


@contextlib.contextmanager
def road(path: str) -> Iterator[Road]:
    one = Road(path)
    try:
        yield one
    finally:
        one.close()
