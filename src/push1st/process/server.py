"""One worker: builds everything from the configuration, listens, drains, stops (ARCHITECTURE: layers, stopping).

This is the place where concrete classes are named; all else knows them by their ports.
"""

import asyncio
import gc
import importlib
import os
import resource
import secrets
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from typing import Any, TextIO

import uvloop

from push1st import logs
from push1st.api import Api
from push1st.apps import SOURCES
from push1st.brokers import BROKERS
from push1st.config.model import Config, Networks, Ssl
from push1st.core.fanout import Fanout
from push1st.core.node import Node, Siblings
from push1st.eager import settled, spawn
from push1st.errors import ConfigError, Refused
from push1st.hooks.dispatcher import HookDispatcher
from push1st.hooks.formats import edges
from push1st.metrics import Metrics
from push1st.process.sockets import BACKLOG, GRACE, ROLES, BoundSocket, Role, addresses, bind, close, wait_until_free, with_ports
from push1st.process.tls import NOTE, self_signed
from push1st.protocols import PROTOCOLS
from push1st.transports import xhr
from push1st.transports.context import EdgeContext
from push1st.transports.handlers import Handlers, Route, Serve
from push1st.transports.http import HttpConnection
from push1st.transports.listener import Listener
from push1st.transports.sweep import Sweep
from push1st.transports.tls import Records
from push1st.transports.websocket import upgrade

FAREWELLS = 50
"""connections told to leave in one slice, at least"""
SLICE_SECONDS = 0.1
FAREWELL = "Server is stopping, reconnect"
GC_THRESHOLD = (50_000, 50, 50)
"""Connections make no cycles that outlive them, so the collector has little to find and may look seldom."""
TLS_SECONDS = 10
"""for a client's TLS handshake"""
CALLERS_SECONDS = 1
"""for callers of the API to make their last call, where they can make the next elsewhere"""
HOOKS_SECONDS = 5
"""for hook events that are queued to be sent; what is left is saved"""
SUCCESSOR_SECONDS = 2
"""for the next process to listen on the addresses, before clients are disconnected"""
LAST_SECONDS = 5
"""for clients that were told to leave to answer, before their sockets are destroyed"""

log = logs.get("push1st.server")


class SystemClock:
    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time_ns)


class Random:
    """Unpredictable numbers, fetched from the system many at a time: one is needed for each connection."""

    BYTES = 4096

    def __init__(self) -> None:
        self._bytes = b""
        self._at = 0

    def bits(self, count: int) -> int:
        """A number of so many bits, at most `BYTES` bytes."""
        size = (count + 7) // 8
        start, self._at = self._at, self._at + size
        if self._at > len(self._bytes):
            self._bytes, start, self._at = os.urandom(self.BYTES), 0, size
        return int.from_bytes(self._bytes[start : start + size], "big") >> size * 8 - count


class DeferTwoTurns:
    """Runs things two turns later: what a broker confirms is answered in the next turn, and deliveries come behind answers.

    Decision 0004 says why.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.call_later = loop.call_later

    def call_soon(self, run: Callable[[], None]) -> None:
        self._loop.call_soon(self._loop.call_soon, run)


def handlers(context: EdgeContext, serve: Serve) -> Handlers:
    """Returns the table of a worker's handlers. serve: the API."""
    routes = [Route(context.config.server.bases("pusher"), xhr.TAIL, xhr.Fallbacks(context))]
    return Handlers(context, serve, routes, partial(upgrade, context))


def load(registry: dict[str, str], name: str) -> Any:
    """The class a registry names as `module:Class`."""
    module, _, attribute = registry[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def raise_file_limit() -> None:
    """Raises the limit of open files to the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # some systems report "unlimited", but reject it
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Context(ssl.SSLContext):
    """TLS of a listener. Begins no handshake if there is no file descriptor for the connection.

    A connection has a descriptor during its TLS handshake, but the listener gets the connection only after the handshake.
    has_room: whether there was a descriptor for the connection that was accepted last. refuse: counts a rejected handshake.
    flooded: counts a client that sends only records without data.
    """

    sslobject_class = Records
    has_room: bool
    refuse: Callable[[], None]
    flooded: Callable[[], None]

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *arguments: Any, **options: Any) -> ssl.SSLObject:
        if not self.has_room:
            self.refuse()
            raise ConnectionAbortedError("no file descriptor is left")
        records = super().wrap_bio(incoming, outgoing, *arguments, **options)
        assert isinstance(records, Records)
        records.follow(incoming, self.flooded)
        return records


class Server:
    """A worker and its listeners.

    doors: the sockets to listen on. Without siblings the server owns them, and closes them when it stops listening.
    siblings: the other workers, if any.
    """

    def __init__(self, config: Config, doors: list[BoundSocket], siblings: Siblings | None = None) -> None:
        self.config = config
        self._doors = doors
        self._places = [(door.socket.family, door.socket.getsockname()) for door in doors if door.address.scheme == "tcp"]
        self._siblings = siblings
        self.name = secrets.token_hex(8)
        """the name of its node in the broker"""
        self._broker: Any = None
        self._workers: Collection[str] | None = None
        self._servers: list[asyncio.AbstractServer] = []
        self._stop = asyncio.Event()
        self._now = asyncio.Event()
        self._told = False

    async def start(self) -> None:
        """Listens. Raises ConfigError when an address cannot be had."""
        loop = asyncio.get_running_loop()
        config = self.config
        clock = SystemClock()
        metrics = Metrics()
        turns = DeferTwoTurns(loop) if config.has_broker else loop
        fanout = Fanout(turns, clock, metrics, lambda: _failed("fan-out"))
        self.node = Node(load(SOURCES, "files")(config.apps), fanout, metrics, clock, Random().bits)
        self.node.siblings = self._siblings
        if config.log.level == "debug":
            self.node.refusals.enable(clock.monotonic, (app.secret for app in config.apps))
        try:
            self._hooks = HookDispatcher(
                config.apps,
                config.hooks,
                config.folder,
                clock,
                secrets.randbits,
                metrics.hook_events,
                metrics.hook_attempts,
                metrics.asked,
            )
        except OSError as exc:
            raise ConfigError(f"cannot keep hook events in {config.hooks.folder}: {exc.strerror or exc}") from exc
        broker = self._broker = self._open_broker()
        if self._workers is not None:
            broker.workers(self._workers)
        try:
            await self.node.open(broker, broker, broker, broker, broker, self._hooks)
        except Refused as exc:
            raise ConfigError(exc.text) from None
        self._hooks.open(broker.report)
        codecs = {name: load(PROTOCOLS, name)() for name in PROTOCOLS}
        self._sweep = Sweep(clock.monotonic, lambda: _failed("sweep"), self._each_second)
        self.context = EdgeContext(self.node, config, codecs, self._sweep, _failed)
        self._handlers = handlers(self.context, Api(self.node, config).serve)
        self._sweep.start()
        contexts = self._contexts()
        for door in self._doors:
            await self._listen(door, contexts[door.role])
        self.context.descriptors.count_own()
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLD)

    def _each_second(self) -> None:
        spawn(self.node.tick())
        self.context.check_descriptors()

    def _open_broker(self) -> Any:
        """Broker, roster, users and hook events in one."""
        node, url = self.node, self.config.broker
        if not self.config.has_broker:
            return load(BROKERS, "memory")(node.stamp)

        # What the roster reports itself; the other hook events are reported here, where some hook wants them.
        hooked = {app.id: wanted for app in self.config.apps if app.enable and (wanted := edges(app))}

        def numbered(number: int) -> None:
            node.worker = number

        return load(BROKERS, "redis")(url, node.stamp, self.name, node.metrics, lambda: hooked, numbered)

    def _contexts(self) -> dict[Role, Context | None]:
        """Returns the TLS context of each role's listeners."""
        contexts: dict[Role, Context | None] = {}
        own: tuple[str, str] | None = None
        try:
            for role in ROLES:
                settings = self.config.server.ssl if role == "server" else self.config.api.ssl
                if settings.enable and not settings.cert:
                    if own is None:
                        own = self_signed()
                        log.warning(NOTE)
                    settings = Ssl(True, *own)
                contexts[role] = self._context(settings) if settings.enable else None
        finally:
            for path in own or ():
                os.unlink(path)
        return contexts

    def _context(self, settings: Ssl) -> Context:
        def flooded() -> None:
            self.node.metrics.cut_offs["flood"] += 1

        return _context(settings, lambda: self.context.refuse_crowded("server"), flooded)

    async def _listen(self, door: BoundSocket, context: Context | None) -> None:
        loop = asyncio.get_running_loop()
        config = self.config
        trusting = door.role == "api"
        listener = Listener(
            self.context,
            self._handlers,
            trusting,
            config.api.whitelist if trusting else Networks(),
            config.api.keep_alive_timeout,
        )

        def connection() -> HttpConnection:
            if context is not None:
                context.has_room = self.context.descriptors.has_room_for_last(trusting)
            return HttpConnection(listener)

        try:
            if door.address.scheme == "unix":  # needs no TLS: what goes through it does not leave the machine
                server = await loop.create_unix_server(
                    connection,
                    sock=door.socket,
                    backlog=BACKLOG,
                    cleanup_socket=False,  # type: ignore[call-arg]  # uvloop has it on every Python
                )
            else:
                seconds = TLS_SECONDS if context else None
                server = await loop.create_server(
                    connection, sock=door.socket, backlog=BACKLOG, ssl=context, ssl_handshake_timeout=seconds
                )
        except OSError as exc:
            raise ConfigError(f"cannot listen on {door.address}: {exc.strerror or exc}") from exc
        self._servers.append(server)

    def workers(self, nodes: Collection[str]) -> None:
        """Takes the names of all living nodes on the embedded engine (`Redis.workers`)."""
        self._workers = nodes
        if self._broker is not None:
            self._broker.workers(nodes)

    def stop(self) -> None:
        """Begins a graceful stop; the second call ends it at once."""
        if self._told:
            self._now.set()
        self._told = True
        self._stop.set()

    def retire(self) -> None:
        """Begins to leave to another worker, which already listens on the same sockets."""
        self.node.replaced = True
        self._stop.set()

    async def run(self) -> None:
        """Serves until `stop` or `retire`, then drains."""
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, self.stop)
        await self._stop.wait()
        draining = asyncio.ensure_future(self._drain())
        at_once = asyncio.ensure_future(self._now.wait())
        await asyncio.wait((draining, at_once), return_when=asyncio.FIRST_COMPLETED)
        draining.cancel()
        at_once.cancel()
        await asyncio.gather(draining, at_once, return_exceptions=True)
        await self._end()

    async def _drain(self) -> None:
        """No new connections, then clients leave in slices (ARCHITECTURE: stopping).

        Before a stop, readiness turns false, and load balancers have a grace period to notice it. Then the listeners close, and
        the server waits a moment until another process listens on the addresses, so that clients can reconnect. A worker that is
        replaced closes its listeners at once, and serves the connections that it has just accepted in the grace period.
        """
        drain = self.config.server.drain
        context, node = self.context, self.node
        end = time.monotonic() + drain
        most = drain + LAST_SECONDS + HOOKS_SECONDS
        log.info("stopping", connections=len(context.open), drain=drain, replaced=node.replaced, seconds_at_most=most)
        if node.replaced:
            self._close()
            if drain:
                log.info("serving connections that were just accepted", seconds=drain * GRACE)
            await asyncio.sleep(drain * GRACE)
            node.draining = True
        else:
            node.draining = True
            if drain and not self.config.demo:
                log.info("waiting for load balancers to notice the stop", seconds=drain * GRACE)
                await asyncio.sleep(drain * GRACE)
            self._close()
            if drain and context.open and not self.config.demo:
                seconds = min(drain * GRACE, SUCCESSOR_SECONDS)
                log.info("waiting for another process to listen on the addresses", seconds_at_most=seconds)
                await self._succeeded(seconds)
        slices = max(1, int((end - time.monotonic()) / SLICE_SECONDS))
        # Callers of the API go last: each answer now ends its connection, so who calls at all loses no call.
        waiting = [one for one in context.open if not isinstance(one, HttpConnection)]
        each = max(FAREWELLS, -(-len(waiting) // slices))
        if waiting:
            log.info("disconnecting clients", clients=len(waiting))
        while waiting:
            for connection in waiting[:each]:
                connection.leave(4200, FAREWELL)
            del waiting[:each]
            await asyncio.sleep(SLICE_SECONDS if waiting else 0)
        now = time.monotonic()
        patience = now + min(CALLERS_SECONDS, drain * GRACE) if node.replaced else now
        deadline = patience + LAST_SECONDS
        if context.open:
            log.info("waiting for connections to close", connections=len(context.open), seconds_at_most=round(deadline - now, 2))
        while context.open and now < deadline:
            for one in list(context.open):
                if now >= patience or not isinstance(one, HttpConnection):
                    one.leave(4200, FAREWELL)
            await asyncio.sleep(0.02)
            now = time.monotonic()

    async def _succeeded(self, seconds: float) -> None:
        """Waits until another process listens on the addresses of this one, at most `seconds`.

        A client that reconnects earlier is rejected, and pusher-js retries only after 15 seconds.
        """
        end = time.monotonic() + seconds
        while self._places and time.monotonic() < end:
            await asyncio.sleep(SLICE_SECONDS)
            if all([await _is_listened_on(family, name) for family, name in self._places]):
                return

    def _close(self) -> None:
        for server in self._servers:
            server.close()
        if self._siblings is None:
            close(self._doors)
            self._doors.clear()

    async def _end(self) -> None:
        self._close()
        for connection in list(self.context.open):
            connection.abort()
        await asyncio.sleep(0)
        self.node.fanout.flush()
        await settled()
        await self.node.close()  # first: a hook event that came behind the queues' end would be lost
        await self._hooks.close(HOOKS_SECONDS, enough=self._now)
        self._sweep.stop()
        log.info("stopped")


async def _is_listened_on(family: int, name: Any) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            async with asyncio.timeout(SLICE_SECONDS):
                await asyncio.get_running_loop().sock_connect(probe, name)
        except (OSError, TimeoutError):
            return False
    return True


def run(config: Config, started: Callable[[Config, int], None]) -> None:
    """Runs the only worker until it is told to stop.

    started: called when it listens, with the configuration as it runs, and how many connections may be open.
    """
    raise_file_limit()
    wait_until_free(config, lambda why: log.warning("waiting for the server that has the address to stop", why=why))
    doors = [door for role in ROLES for address in addresses(config, role) for door in bind(role, address)]
    config = with_ports(config, doors)

    async def main() -> None:
        server = Server(config, doors)
        await server.start()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _hung_up(server, sys.stdin))
        started(config, server.context.descriptors.possible)
        await server.run()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
    finally:
        close(doors)


def _hung_up(server: Server, terminal: TextIO) -> Callable[[], None]:
    """What SIGHUP does to the only worker: the end of its terminal ends it; otherwise there is nobody to replace it."""
    had_one = terminal.isatty()

    def hung_up() -> None:
        if had_one and not terminal.isatty():
            server.stop()
        else:
            log.warning("one worker cannot be replaced while it serves: restart it, or run two (server.workers)")

    return hung_up


def _failed(where: str) -> None:
    log.error("internal error", where=where, exc_info=sys.exception())


def _context(settings: Ssl, refuse: Callable[[], None], flooded: Callable[[], None]) -> Context:
    context = Context(ssl.PROTOCOL_TLS_SERVER)
    context.refuse = refuse
    context.flooded = flooded
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(settings.cert, settings.key)
    except (ssl.SSLError, OSError) as exc:
        raise ConfigError(f"cannot use the certificate {settings.cert} with the key {settings.key}: {exc}") from exc
    return context
