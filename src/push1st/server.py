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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop

from push1st import logs
from push1st.api import Api
from push1st.apps import SOURCES
from push1st.brokers import BROKERS
from push1st.config import Config, Listen, Networks, Ssl
from push1st.eager import settled, spawn
from push1st.errors import ConfigError, Refused
from push1st.fanout import Fanout
from push1st.metrics import Metrics
from push1st.node import Node
from push1st.protocols import PROTOCOLS
from push1st.selfsigned import self_signed
from push1st.transports.http import HttpConnection
from push1st.transports.listener import Listener, Worker
from push1st.transports.sweep import Sweep

BACKLOG = 4096
SPARE_FILES = 64
"""file descriptors kept for other things than connections"""
FAREWELLS = 50
"""connections told to leave in one slice, at least"""
SLICE_SECONDS = 0.1
GRACE = 0.25
"""the part of `drain` in which the server says it is not ready, but still takes connections: load balancers need to see it"""
GC_THRESHOLD = (50_000, 50, 50)
"""Connections make no cycles that outlive them, so the collector has little to find and may look seldom."""
TLS_SECONDS = 10
"""for a client's TLS handshake"""
UNIX_MODE = 0o660
"""of Unix sockets: who may open one may call unsigned, where `api.trust` has `unix`"""
LAST_SECONDS = 5
"""for clients that were told to leave to answer, before their sockets are destroyed"""

log = logs.get("push1st.server")


class SystemClock:
    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time_ns)


def load(registry: dict[str, str], name: str) -> Any:
    """The class a registry names as `module:Class`."""
    module, _, attribute = registry[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def raise_file_limit() -> int:
    """Raises the limit of open files as far as it goes; returns how many connections that allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (ValueError, OSError):  # some systems say unlimited, and mean less
            pass
    return max(0, soft - SPARE_FILES)


class Server:
    """A worker and its listeners."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._servers: list[asyncio.AbstractServer] = []
        self._unix: list[Path] = []
        self._stop = asyncio.Event()
        self._now = asyncio.Event()

    async def start(self) -> None:
        """Listens. Raises ConfigError when an address cannot be had."""
        loop = asyncio.get_running_loop()
        config = self.config
        clock = SystemClock()
        metrics = Metrics()
        fanout = Fanout(loop.call_soon, clock.wall, metrics, lambda: _failed("fan-out"))
        self.node = Node(load(SOURCES, "files")(config.apps), fanout, metrics, clock, secrets.randbits)
        broker = self._broker()
        try:
            await self.node.open(broker, broker, broker, broker, broker, lambda _: None)
        except Refused as wrong:
            raise ConfigError(wrong.text) from None
        codecs = {name: load(PROTOCOLS, name)() for name in PROTOCOLS}
        self._sweep = Sweep(clock.monotonic, lambda: _failed("sweep"), lambda: spawn(self.node.tick()))
        self.worker = Worker(self.node, Api(self.node, config).serve, config, codecs, self._sweep, _failed)
        self._sweep.start()
        contexts: dict[Ssl, ssl.SSLContext | None] = {}
        for entry in (config.server, config.api):
            if entry.ssl not in contexts:
                contexts[entry.ssl] = _context(entry.ssl)
        nobody = Networks()
        for address in config.server.listen:
            listener = Listener(self.worker, False, nobody, config.api.keep_alive_timeout)
            await self._listen(address, listener, contexts[config.server.ssl])
        for address in config.api.listen:
            listener = Listener(self.worker, True, config.api.whitelist, config.api.keep_alive_timeout)
            await self._listen(address, listener, contexts[config.api.ssl])
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLD)

    def _broker(self) -> Any:
        """Broker, roster, users and facts in one."""
        node, url = self.node, self.config.broker
        if url == "memory":
            return load(BROKERS, "memory")(node.stamp)

        hooked = frozenset(app.id for app in self.config.apps if app.enable and (app.hook or app.webhooks))

        def numbered(number: int) -> None:
            node.worker = number

        return load(BROKERS, "redis")(url, node.stamp, secrets.token_hex(8), node.metrics, lambda: hooked, numbered)

    async def _listen(self, address: Listen, listener: Listener, context: ssl.SSLContext | None) -> None:
        loop = asyncio.get_running_loop()

        # A Unix socket needs no TLS: what goes through it does not leave the machine.
        def connection() -> HttpConnection:
            return HttpConnection(listener)

        try:
            if address.scheme == "unix":
                path = Path(address.path)
                _make_room(path)
                self._servers.append(await loop.create_unix_server(connection, str(path), backlog=BACKLOG))
                os.chmod(path, UNIX_MODE)
                self._unix.append(path)
            else:
                self._servers.append(
                    await loop.create_server(
                        connection,
                        address.host or None,
                        address.port,
                        backlog=BACKLOG,
                        ssl=context,
                        ssl_handshake_timeout=TLS_SECONDS if context else None,
                    )
                )
        except OSError as wrong:
            raise ConfigError(f"cannot listen on {address}: {wrong.strerror or wrong}") from wrong

    @property
    def ports(self) -> list[int]:
        """The TCP ports listened on, in the configuration's order."""
        return [s.getsockname()[1] for server in self._servers for s in _sockets(server) if s.family != socket.AF_UNIX]

    def stop(self) -> None:
        """Begins a graceful stop; the second call ends it at once."""
        if self._stop.is_set():
            self._now.set()
        self._stop.set()

    async def run(self) -> None:
        """Serves until `stop`, then drains."""
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
        """Readiness turns false, then no new connections, then clients leave in slices (ARCHITECTURE: stopping)."""
        drain = self.config.server.drain
        worker = self.worker
        self.node.draining = True
        log.info("stopping", connections=len(worker.open), drain=drain)
        if not self.config.demo:
            await asyncio.sleep(drain * GRACE)
        for server in self._servers:
            server.close()
        slices = max(1, int(drain * (1 - GRACE) / SLICE_SECONDS))
        each = max(FAREWELLS, -(-len(worker.open) // slices))
        waiting = list(worker.open)
        while waiting:
            for connection in waiting[:each]:
                connection.leave(4200, "Server is stopping, reconnect")
            del waiting[:each]
            await asyncio.sleep(SLICE_SECONDS if waiting else 0)
        deadline = time.monotonic() + LAST_SECONDS
        while worker.open and time.monotonic() < deadline:
            for connection in list(worker.open):
                connection.leave(4200, "Server is stopping, reconnect")
            await asyncio.sleep(0.02)

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        for connection in list(self.worker.open):
            connection.abort()
        await asyncio.sleep(0)
        self.node.fanout.flush()
        await settled()
        await self.node.close()
        self._sweep.stop()
        for path in self._unix:
            path.unlink(missing_ok=True)
        log.info("stopped")


def run(config: Config, started: Callable[[int], None]) -> None:
    """Runs one worker until it is told to stop. started: called when it listens, with how many connections may be open."""
    connections = raise_file_limit()

    async def main() -> None:
        server = Server(config)
        await server.start()
        started(connections)
        await server.run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def _sockets(server: asyncio.AbstractServer) -> list[socket.socket]:
    return list(getattr(server, "sockets", ()))


def _failed(where: str) -> None:
    log.error("internal error", where=where, exc_info=sys.exception())


def _make_room(path: Path) -> None:
    """Makes the folder of a Unix socket, and removes a socket nobody listens on.

    Raises ConfigError when somebody does, or when a file that is no socket is in the way.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return
    if not path.is_socket():
        raise ConfigError(f"cannot listen on unix://{path}: a file that is no socket is in the way")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise ConfigError(f"cannot listen on unix://{path}: another server does")


def _context(settings: Ssl) -> ssl.SSLContext | None:
    if not settings.enable:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        if settings.cert:
            context.load_cert_chain(settings.cert, settings.key)
        else:
            key, cert = self_signed()
            try:
                context.load_cert_chain(cert, key)
            finally:
                os.unlink(key)
                os.unlink(cert)
            log.warning("TLS with a certificate made now and signed by nobody: clients must be told to accept it")
    except (ssl.SSLError, OSError) as wrong:
        raise ConfigError(f"cannot use the certificate {settings.cert} with the key {settings.key}: {wrong}") from wrong
    return context
