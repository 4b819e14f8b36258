"""A TCP proxy that fails like a network: it stops forwarding, drops one direction, or cuts connections at a chosen byte.

A frozen proxy keeps both sockets of each connection open and reads neither of them. So the kernel of the proxy still confirms
bytes that never arrive, like the kernel of a reverse proxy or a load balancer.
"""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Literal

Direction = Literal["up", "down"]
"""from the client to the server, and from the server to the client"""
CHUNK = 65_536
RESET = struct.pack("ii", 1, 0)
"""the value of SO_LINGER with which `close` resets a connection"""


class Link:
    """One connection through the proxy, and its faults.

    moves: whether data is forwarded. left: the bytes to the client after which the connection is cut; None: no cut.
    marker: bytes to the client before which the connection is cut; b"": no cut.
    """

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.moves = threading.Event()
        self.dropped: set[Direction] = set()
        self.left: int | None = None
        self.marker = b""
        self.is_cut = False
        self._tail = b""
        self._lock = threading.Lock()
        self.threads = [
            threading.Thread(target=self._pump, args=[client, server, "up"]),
            threading.Thread(target=self._pump, args=[server, client, "down"]),
        ]

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket, direction: Direction) -> None:
        with contextlib.suppress(OSError):
            while True:
                self.moves.wait()
                data = source.recv(CHUNK)
                self.moves.wait()
                if self.is_cut:
                    return
                if direction == "down":
                    data, cut = self._until_fault(data)
                    if cut:
                        sink.sendall(data)
                        break
                if direction in self.dropped:
                    if not data:
                        return
                    continue
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                    return
                sink.sendall(data)
            self.cut(reset=False)
            return
        self.cut()

    def _until_fault(self, data: bytes) -> tuple[bytes, bool]:
        """Returns the bytes up to the place of the cut, and whether there is one."""
        if self.marker:
            place = (self._tail + data).find(self.marker)
            if place >= 0:
                return data[: max(0, place - len(self._tail))], True
            self._tail = (self._tail + data)[-len(self.marker) + 1 :] if len(self.marker) > 1 else b""
        if self.left is not None:
            if len(data) >= self.left:
                return data[: self.left], True
            self.left -= len(data)
        return data, False

    def cut(self, reset: bool = True) -> None:
        """Ends both sides. reset: the sockets are reset; otherwise they end after the data that is already sent."""
        with self._lock:
            if self.is_cut:
                return
            self.is_cut = True
        self.moves.set()
        for one in (self.client, self.server):
            with contextlib.suppress(OSError):
                if reset:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                one.shutdown(socket.SHUT_RDWR)
        for one in (self.client, self.server):
            one.close()


class Blackhole:
    """The proxy; `port` is its own.

    target: the port to which the proxy forwards. buffer: the bytes of each buffer of its sockets; 0: the kernel's default.
    """

    def __init__(self, target: int, buffer: int = 0) -> None:
        self.target = target
        self._buffer = buffer
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        self.links: list[Link] = []
        """all connections since the start of the proxy, in order"""
        self.refuses = False
        """whether the proxy ends new connections at once"""
        self._is_frozen = False
        self._left: int | None = None
        self._marker = b""
        self._is_closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self._is_closed:
                    client.close()
                    return
                if self.refuses:
                    client.close()
                    continue
                try:
                    server = socket.create_connection(("127.0.0.1", self.target))
                except OSError:
                    client.close()
                    continue
                for one in (client, server):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    if self._buffer:
                        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer)
                        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._buffer)
                with self._lock:
                    link = Link(client, server)
                    link.left, self._left = self._left, None
                    link.marker, self._marker = self._marker, b""
                    if not self._is_frozen:
                        link.moves.set()
                    self.links.append(link)
                link.start()

    @property
    def open_links(self) -> list[Link]:
        return [link for link in self.links if not link.is_cut]

    def freeze(self, *, later: bool = True) -> float:
        """Stops all open connections; returns the time. later: the connections that clients open from now on are stopped too."""
        with self._lock:
            self._is_frozen = later
            for link in self.open_links:
                link.moves.clear()
        return time.monotonic()

    def thaw(self) -> None:
        """Forwards again, also the data that was waiting."""
        with self._lock:
            self._is_frozen = False
            for link in self.links:
                link.moves.set()

    def drop(self, direction: Direction) -> float:
        """Discards all further data of the open connections in one direction; returns the time."""
        with self._lock:
            for link in self.open_links:
                link.dropped.add(direction)
        return time.monotonic()

    def cut(self, *, reset: bool = True) -> float:
        """Ends all open connections; returns the time."""
        at = time.monotonic()
        with self._lock:
            links = self.open_links
        for link in links:
            link.cut(reset)
        return at

    def cut_next_after(self, count: int) -> None:
        """Cuts the next connection when it has forwarded this number of bytes to the client."""
        with self._lock:
            self._left = count

    def cut_next_before(self, marker: bytes) -> None:
        """Cuts the next connection in place of forwarding these bytes to the client."""
        with self._lock:
            self._marker = marker

    def cut_before(self, marker: bytes) -> None:
        """Cuts each open connection in place of forwarding these bytes to the client."""
        with self._lock:
            for link in self.open_links:
                link.marker = marker

    def close(self) -> None:
        self._is_closed = True
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            pass
        self._listener.close()
        self._thread.join()
        for link in self.links:
            link.cut()
            for thread in link.threads:
                thread.join()


@contextlib.contextmanager
def blackhole(target: int, buffer: int = 0) -> Iterator[Blackhole]:
    """Runs a proxy for the length of a `with` block."""
    proxy = Blackhole(target, buffer)
    try:
        yield proxy
    finally:
        proxy.close()
