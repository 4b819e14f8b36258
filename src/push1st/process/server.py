"""A worker: it builds its components from the configuration, listens, drains and stops (ARCHITECTURE: stopping).

Only this module refers to the concrete classes of the components. Other modules use the components through interfaces.
"""

import asyncio
import gc
import importlib
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from push1st import logs
from push1st.api import Api
from push1st.api.monitoring import MetricsApi
from push1st.apps import SOURCES
from push1st.brokers import BROKERS
from push1st.brokers.memory_history import MemoryHistory
from push1st.brokers.memory_sessions import MemorySessions
from push1st.config.addresses import Networks
from push1st.config.model import Config
from push1st.config.settings import located_key
from push1st.core.appchanges import AppChanges
from push1st.core.fanout import Fanout
from push1st.core.node import Node
from push1st.core.siblings import Siblings
from push1st.eager import join_background, spawn, timeout
from push1st.errors import ConfigError, Refused
from push1st.hooks.dispatcher import HookDispatcher
from push1st.hooks.formats import set_edges
from push1st.metrics import Metrics
from push1st.process import figures
from push1st.process.certificates import Certificates
from push1st.process.live import LiveConfig
from push1st.process.sockets import BACKLOG, GRACE, BoundSocket, Role, close, uses_tls
from push1st.process.system import DeferTwoTurns, Random, SystemClock
from push1st.process.tlscontext import TlsConnection, TlsContext, TlsMqttConnection
from push1st.protocols import PROTOCOLS
from push1st.status import WorkerFigures, WorkerReports, WorkerStatus
from push1st.transports import pages, sse, xhr
from push1st.transports.context import EdgeContext
from push1st.transports.entries import EntryTable
from push1st.transports.handlers import ApiCounts, Handlers, Route, Serve, refuse_upgrade
from push1st.transports.http import HttpConnection
from push1st.transports.listener import Listener, MetricsListener
from push1st.transports.mqtt.clients import MqttClients
from push1st.transports.mqtt.connection import MqttConnection
from push1st.transports.mqtt.proxied import ProxyConnection
from push1st.transports.mqtt.websocket import MqttEntry
from push1st.transports.sweep import Sweep
from push1st.transports.tls import Decryption

MIN_SLICE = 50
"""the minimum number of connections that a stopping server disconnects in one slice"""
SLICE_SECONDS = 0.1
CLOSE_REASON = "Server is stopping, reconnect"
GC_THRESHOLD = (50_000, 50, 50)
"""Thresholds of the garbage collector. Connections create few reference cycles, so the collector can run seldom."""
TLS_SECONDS = 10
"""the time limit for a client's TLS handshake"""
CALLERS_SECONDS = 1
"""The time in which API callers can still send requests over open connections to a worker that is being replaced."""
HOOKS_SECONDS = 5
"""The time in which a stopping server delivers queued hook events; after this time it saves the remaining hook events."""
SUCCESSOR_SECONDS = 2
"""The time for which a stopping server waits for another process to listen on its addresses, before it disconnects clients."""
CLOSE_SECONDS = 5
"""The time in which clients can reply to a close frame, before the server aborts their connections."""
STORE_SECONDS = 7
"""The time in which the broker can store MQTT sessions and wills, after a stopping server has disconnected its clients."""
LAST_SECONDS = 1
"""The time in which the broker can still store them after `STORE_SECONDS`, or after a second signal. `STORE_SECONDS`, this time
and `HOOKS_SECONDS` together are shorter than `pool.END_SECONDS`."""

log = logs.get("push1st.server")


def handlers(context: EdgeContext, serve: Serve, clients: MqttClients, counts: ApiCounts | None = None) -> Handlers:
    """Returns the table of a worker's connection handlers. `serve` and `counts`: see `Handlers`."""
    server = context.config.server
    routes = [
        Route(server.bases("pusher"), xhr.TAIL, xhr.Fallbacks(context), pages.PREFIX),
        Route(server.bases("sse"), sse.TAIL, sse.EventStreams(context)),
    ]
    entries = [named(parts.entry)(context) for parts in PROTOCOLS.values() if parts.entry]
    return Handlers(context, serve, routes, EntryTable(context, entries, (MqttEntry(clients),)).upgrade, counts)


def load(registry: dict[str, str], name: str) -> Any:
    """Returns the class that `registry` contains under `name`."""
    return named(registry[name])


def named(reference: str) -> Any:
    """Returns the class for a reference of the form `module:Class`."""
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


class Server:
    """A worker and its listeners.

    sockets: the sockets to listen on. A worker without siblings owns the sockets, and closes the sockets when it stops listening.
    siblings: the other workers of this server; None for a single worker.
    is_reload: whether the worker belongs to a reload, which must not use a certificate that is not valid.
    """

    def __init__(
        self, config: Config, sockets: list[BoundSocket], siblings: Siblings | None = None, *, is_reload: bool = False
    ) -> None:
        self.config = config
        self._is_reload = is_reload
        self._sockets = sockets
        self._names = [(one.socket.family, one.socket.getsockname()) for one in sockets if one.address.scheme != "unix"]
        self._siblings = siblings
        self.name = secrets.token_hex(8)
        """the name of this worker's node in the broker"""
        self._began = time.monotonic()
        self._broker: Any = None
        self._console: Any = None
        self._workers: Collection[str] | None = None
        self._servers: list[asyncio.AbstractServer] = []
        self._stop = asyncio.Event()
        self._now = asyncio.Event()
        """an asyncio event that the second call of `stop` sets"""
        self._is_stopping = False
        self._disconnected_at = 0.0
        """the time (`time.monotonic`) at which a stopping server has disconnected its clients"""

    async def start(self) -> None:
        """Connects to the broker and listens. Raises ConfigError if the worker cannot connect or cannot listen."""
        loop = asyncio.get_running_loop()
        config = self.config
        clock = SystemClock()
        metrics = Metrics()
        turns = DeferTwoTurns(loop) if config.has_broker else loop
        fanout = Fanout(turns, clock, lambda: _failed("fan-out"))
        source = load(SOURCES, "files")(config.apps)
        self.node = Node(source, fanout, metrics, clock, Random().bits)
        self.node.siblings = self._siblings
        self.node.max_metric_apps = config.metrics.apps
        self.node.max_replay_bytes = config.server.outbox // 4
        if config.log.level == "debug":
            self.node.refusals.enable(clock.monotonic, (secret for app in config.apps for secret in app.secrets))
        try:
            self._hooks = HookDispatcher(
                config.apps,
                config.hooks,
                config.folder,
                clock,
                secrets.randbits,
                metrics.hook_events,
                metrics.hook_attempts,
                metrics.decisions,
                metrics.hook_seconds,
            )
        except OSError as exc:
            where, why = located_key(config, "hooks.folder"), exc.strerror or exc
            raise ConfigError(f"{where}: cannot keep hook events in {config.hooks.folder}: {why}") from exc
        self.node.on_configured.append(self._hooks.configure)
        broker = self._broker = self._open_broker()
        if self._workers is not None:
            broker.workers(self._workers)
        try:
            await self.node.open(broker, broker, broker, broker, broker, self._hooks)
        except Refused as exc:
            raise ConfigError(exc.text) from None
        self._hooks.open(broker.report)
        codecs = {name: named(parts.codec)() for name, parts in PROTOCOLS.items()}
        self._sweep = Sweep(clock.monotonic, lambda: _failed("sweep"), self._each_second, metrics.loop_lag)
        self.context = EdgeContext(self.node, config, codecs, self._sweep, _failed)
        self._mqtt_clients = MqttClients(self.context)
        self._api = Api(self.node, config)
        self._handlers = handlers(self.context, self._api.serve, self._mqtt_clients, self._api)
        self._sweep.start()
        certificates = self._open_certificates()
        changes = AppChanges(self.node, source)
        self.live = LiveConfig(self.context, certificates, changes, None if self._siblings is None else self._siblings.number)
        if config.console.listens:
            from push1st.console import Console  # nothing of the console is imported if it is off

            servers = broker.servers if config.has_broker else None
            own = self._reports(), servers, self._mqtt_clients
            self._console = Console(self.node, self.context, self.name, self._number, *own)
            await self._console.open()
        else:
            self.node.controller.own_without_console = self.name.encode()
        for bound in self._sockets:
            context = certificates.contexts.get(bound.role)
            await self._listen(bound, context if uses_tls(bound.role, bound.address) else None)
        self.context.descriptors.count_own()
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLD)

    async def report(self) -> WorkerStatus:
        """Returns the state of this worker."""
        state = self._broker.state if self.config.has_broker else None
        return await figures.report(self.node, self.context.config, self.name, self._began, self._number, state)

    def _reports(self) -> WorkerReports:
        """Returns the functions that report the state of this worker to its console."""

        def of(measured: figures.Measured) -> WorkerFigures:
            return figures.worker_figures(self.node, self.name, self._began, self._number, self._sweep.late, measured)

        def quick() -> WorkerFigures:
            return of(figures.Measured(figures.resident_bytes(), None))

        async def counted() -> WorkerFigures:
            return of(await asyncio.to_thread(figures.measure))

        return WorkerReports(quick, counted, self.report)

    @property
    def _number(self) -> int:
        return 0 if self._siblings is None else self._siblings.number

    def _each_second(self) -> None:
        spawn(self.node.tick())
        spawn(self._mqtt_clients.tick())
        self.live.tick()
        self.context.check_descriptors()
        if self._console is not None:
            self._console.tick()  # after the parts that clients need

    def _open_broker(self) -> Any:
        """Returns the object that implements all interfaces of `brokers`."""
        node, url = self.node, self.config.broker
        if not self.config.has_broker:
            history = MemoryHistory(self.config.server.history, node.clock.wall, secrets.randbits, node.metrics)
            sessions = MemorySessions(node.clock.wall, secrets.randbits, node.metrics, self.config.server.mqtt)
            return load(BROKERS, "memory")(node.stamp, node.local_roster, history, sessions)

        # For the apps in `hooked`, the broker reports edges (see `Roster`) to the hooks; the node reports all other hook events.
        hooked: dict[str, str] = {}
        for app in self.config.apps:
            set_edges(hooked, app)
        node.on_configured.append(partial(set_edges, hooked))

        def set_number(number: int) -> None:
            node.worker = number

        own = node.stamp, self.name, node.metrics, node.local_roster
        return load(BROKERS, "redis")(url, *own, lambda: hooked, set_number, mqtt=self.config.server.mqtt)

    def _open_certificates(self) -> Certificates:
        """Loads the certificates of the listeners. One `Decryption` limits the decryption time of all of them."""
        decryption = Decryption(self._count_flood, asyncio.get_running_loop().call_soon)
        certificates = Certificates(self.node.metrics, decryption, self._refuse_handshake, self._handshake_failed)
        certificates.open(self.config, must_be_valid=self._is_reload)
        return certificates

    def _count_flood(self) -> None:
        self.node.metrics.cut_offs["flood"] += 1

    def _refuse_handshake(self) -> None:
        self.context.refuse_crowded("server")

    def _handshake_failed(self, reason: str) -> None:
        self.node.metrics.cut_offs["tls"] += 1
        self.node.refusals.log("TLS handshake failed", 0, reason)

    async def _listen(self, bound: BoundSocket, context: TlsContext | None) -> None:
        loop = asyncio.get_running_loop()
        accept = self._factory(bound.role, context is not None)
        if bound.role == "server.mqtt" and self.config.server.mqtt.proxy_protocol and bound.address.scheme != "unix":
            accept, context = self._proxied(accept, context), None

        def connection() -> asyncio.Protocol:
            if context is not None:
                context.has_room = self.context.descriptors.has_room_for_last(bound.role == "api")
            return accept()

        try:
            if bound.address.scheme == "unix":
                server = await loop.create_unix_server(
                    connection,
                    sock=bound.socket,
                    backlog=BACKLOG,
                    cleanup_socket=False,  # type: ignore[call-arg]  # uvloop accepts this on every Python version
                )
            else:
                seconds = TLS_SECONDS if context else None
                server = await loop.create_server(
                    connection, sock=bound.socket, backlog=BACKLOG, ssl=context, ssl_handshake_timeout=seconds
                )
        except OSError as exc:
            raise ConfigError(f"cannot listen on {bound.address}: {exc.strerror or exc}") from exc
        self._servers.append(server)

    def _proxied(self, make: Callable[[], Any], tls: TlsContext | None) -> Callable[[], asyncio.Protocol]:
        """Returns the function that makes the protocol object of an accepted connection that begins with a PROXY header.

        make: the function that makes the protocol object of the connection after the header.
        """

        def tls_context() -> TlsContext:
            assert tls is not None
            tls.has_room = True  # `ProxyConnection` has checked the limit
            return tls

        return partial(ProxyConnection, self._mqtt_clients, make, None if tls is None else tls_context, TLS_SECONDS)  # type: ignore[return-value]  # asyncio accepts every BaseProtocol

    def _factory(self, role: Role, is_secure: bool) -> Callable[[], asyncio.Protocol]:
        """Returns the function that makes the protocol object of an accepted connection."""
        if role == "server.mqtt":
            return partial(TlsMqttConnection if is_secure else MqttConnection, self._mqtt_clients)
        api = self.config.api
        if role == "console":
            return partial(TlsConnection if is_secure else HttpConnection, self._console.listener(is_secure))
        if role == "metrics":
            serve = MetricsApi(self.node, self.config).serve
            serving = Handlers(self.context, serve, (), refuse_upgrade, self._api)
            return partial(HttpConnection, MetricsListener(self.context, serving, False, Networks(), api.keep_alive_timeout))
        trusting = role == "api"
        whitelist = api.whitelist if trusting else Networks()
        listener = Listener(self.context, self._handlers, trusting, whitelist, api.keep_alive_timeout)
        return partial(TlsConnection if is_secure else HttpConnection, listener)

    def workers(self, nodes: Collection[str]) -> None:
        """Sets the names of all living workers that use the embedded engine (`Redis.workers`)."""
        self._workers = nodes
        if self._broker is not None:
            self._broker.workers(nodes)

    def stop(self) -> None:
        """Begins a graceful stop; the second call stops at once."""
        if self._is_stopping:
            self._now.set()
        self._is_stopping = True
        self._stop.set()

    def retire(self) -> None:
        """Begins the graceful end of this worker, which a reload has replaced, or whose slot it has removed."""
        self.node.replaced = True
        self._stop.set()

    async def run(self) -> None:
        """Serves clients until `stop` or `retire` is called, then drains the worker and closes all its components."""
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
        if self._console is not None:
            self._console.close()
        await self._end()

    async def _drain(self) -> None:
        """Closes the listeners and disconnects clients in slices (ARCHITECTURE: stopping).

        A stopping server first reports that it is not ready, and gives load balancers a grace period to notice this. Then the
        server closes its listeners, and waits until another process listens on the addresses, so that clients can reconnect. A
        replaced worker closes its listeners at once. The worker still serves its clients during the grace period.
        """
        drain = self.config.server.drain
        context, node = self.context, self.node
        end = time.monotonic() + drain
        limit = drain + CLOSE_SECONDS + HOOKS_SECONDS
        log.info("stopping", connections=len(context.open), drain=drain, replaced=node.replaced, seconds_at_most=limit)
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
                await self._wait_for_successor(seconds)
        slices = max(1, int((end - time.monotonic()) / SLICE_SECONDS))
        # HTTP connections close last: the server closes each HTTP connection after the next answer, so no request is lost.
        waiting = [one for one in context.open if not isinstance(one, HttpConnection)]
        each = max(MIN_SLICE, -(-len(waiting) // slices))
        if waiting:
            log.info("disconnecting clients", clients=len(waiting))
        while waiting:
            for connection in waiting[:each]:
                connection.leave(4200, CLOSE_REASON)
            del waiting[:each]
            await asyncio.sleep(SLICE_SECONDS if waiting else 0)
        now = self._disconnected_at = time.monotonic()
        patience = now + min(CALLERS_SECONDS, drain * GRACE) if node.replaced else now
        deadline = patience + CLOSE_SECONDS
        if context.open:
            log.info("waiting for connections to close", connections=len(context.open), seconds_at_most=round(deadline - now, 2))
        while context.open and now < deadline:
            for one in list(context.open):
                if now >= patience or not isinstance(one, HttpConnection):
                    one.leave(4200, CLOSE_REASON)
            await asyncio.sleep(0.02)
            now = time.monotonic()

    async def _wait_for_successor(self, seconds: float) -> None:
        """Waits at most `seconds` until another process listens on the addresses of this server.

        If no process listens, the operating system rejects clients that reconnect, and pusher-js retries only after 15 seconds.
        """
        end = time.monotonic() + seconds
        while self._names and time.monotonic() < end:
            await asyncio.sleep(SLICE_SECONDS)
            if all([await _is_listened_on(family, name) for family, name in self._names]):
                return

    def _close(self) -> None:
        for server in self._servers:
            server.close()
        if self._siblings is None:
            close(self._sockets)
            self._sockets.clear()

    async def _end(self) -> None:
        self._close()
        for connection in list(self.context.open):
            connection.abort()
        await asyncio.sleep(0)
        self.context.ends.finish()
        await self._store()
        await self.node.close()  # the node closes before the hooks, because the node may still report hook events
        await self._hooks.close(HOOKS_SECONDS, enough=self._now)
        self._sweep.stop()
        log.info("stopped")

    async def _store(self) -> None:
        """Waits until the broker has all changes of the closed connections, or until the time for these changes is over.

        The broker may be away. Without a limit, the supervisor would kill the worker before the worker saves its hook events.
        """
        storing, at_once = asyncio.ensure_future(self._join()), asyncio.ensure_future(self._now.wait())
        await asyncio.wait((storing, at_once), timeout=SLICE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        seconds = max(0.0, self._disconnected_at + STORE_SECONDS - time.monotonic())
        if not storing.done():
            log.info("waiting for sessions and wills to be stored", seconds_at_most=round(seconds + LAST_SECONDS, 2))
        await asyncio.wait((storing, at_once), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait((storing,), timeout=LAST_SECONDS)
        at_once.cancel()
        if storing.done():
            storing.result()
        else:
            storing.cancel()
            log.warning("some sessions or wills are not confirmed")
        await asyncio.gather(storing, at_once, return_exceptions=True)

    async def _join(self) -> None:
        """Publishes the wills and queued events, and waits until all tasks of the closed connections have ended."""
        await self._mqtt_clients.close()
        self.node.fanout.flush()
        await join_background()


async def _is_listened_on(family: int, name: Any) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            async with timeout(SLICE_SECONDS):
                await asyncio.get_running_loop().sock_connect(probe, name)
        except (OSError, TimeoutError):
            return False
    return True


def _failed(where: str) -> None:
    log.error("internal error", where=where, exc_info=sys.exception())
