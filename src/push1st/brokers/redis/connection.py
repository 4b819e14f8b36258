"""Keeps a shard connected: reconnects after the loss of a connection, registers the node again, and sends commands.

The states of the connection and the transitions between these states are a table in `states.py`, which this module applies.

An acknowledged event must reach every living node. So a node that has reconnected does not publish until all other living nodes
are subscribed to their topics on the same server (`nodes_not_here` in `lua/helpers.lua`). It waits for `Timings.lease` at most.

While the broker is away, a subscription or a sign-in waits up to `Timings.patience`, because most outages are shorter and clients
do not repeat rejected requests. Publishing does not wait (`publishing.py`).
"""

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import hiredis

from push1st import logs
from push1st.brokers.redis.bounds import MAX_UNSENT_BYTES, Timings
from push1st.brokers.redis.keys import Keys
from push1st.brokers.redis.logged import LogDedup
from push1st.brokers.redis.resp import Argument, ConnectionLost, OnPush, RespConnection, pack
from push1st.brokers.redis.scripts import Script
from push1st.brokers.redis.servers import CONNECT_SECONDS, Unusable, connect
from push1st.brokers.redis.states import (
    PUBLISHING,
    REGISTERED,
    TRANSITIONS,
    ConnectionAction,
    ConnectionEvent,
    ConnectionState,
)
from push1st.config.brokerurl import Address
from push1st.eager import timeout
from push1st.errors import Refused

STATE_LOST = "NOLEASE"
"""the first word of the error reply to a node whose lease has expired, or whose server has lost its state"""
FAULTS = (STATE_LOST, "NOSCRIPT", "MOVED", "READONLY", "LOADING", "CLUSTERDOWN", "MASTERDOWN", "NOAUTH")
"""the first words of error replies after which the node registers again, or looks up the server again"""
MOVING = ("ASK", "TRYAGAIN")
"""the first words of error replies while a cluster moves the keys of a slot; after a pause, the node sends the command again"""
AWAY_FOR_LONG = "the broker is away, try again"
HINTS = {
    "MISCONF": "the disk is full or not writable, see the log of the broker; do not turn off saving if clients use MQTT sessions",
    "OOM": "raise maxmemory",
}
"""the first words of error replies → the advice in the log for the administrator of the broker"""

log = logs.get("push1st.broker")


def _ignore(_: object) -> None:
    pass


class ShardConnection:
    """Keeps one shard connected. After the loss of a connection, a new `RespConnection` replaces the old one.

    tag: the hash tag of the shard.
    node: the name of this node.
    on_push: a function that takes the messages of topics.
    register: a function that registers the node on a connection; the function calls `registered` after all steps that may fail.
    suspended: a function that is called when the lease or the connection is lost.
    """

    def __init__(
        self,
        address: Address,
        tag: str,
        node: str,
        keys: Keys,
        on_push: OnPush,
        register: Callable[[RespConnection], Awaitable[None]],
        suspended: Callable[[], None],
        log_dedup: LogDedup,
        timings: Timings,
    ) -> None:
        self._address = address
        self._tag = tag
        self.node = node
        self._keys = keys
        self._on_push = on_push
        self._register = register
        self._log_dedup = log_dedup
        self._timings = timings
        self.state = ConnectionState.AWAY
        self.reason = ""
        """the reason for the last failed attempt to connect or to register"""
        self.established: RespConnection | None = None
        """the connection to the server, even before the node is registered on it; None without a connection"""
        self.registered_on: RespConnection | None = None
        """the connection to the server while the node is registered on it, else None"""
        self.publish_connection: RespConnection | None = None
        """the connection to the server while the node may publish, else None"""
        self.on_publish_connection: Callable[[RespConnection | None], None] = _ignore
        """a function that is called with each new value of `publish_connection`"""
        self.repair_needed = False
        """whether the server rejected a change, so that the server's copy of this node's entries is wrong"""
        self._is_reported_away = True
        self._gate_opens_at = 0.0
        self._waiters: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop
        self._unregistered = asyncio.Event()
        self._retry = asyncio.Event()
        """set when the next attempt to connect must start at once"""
        self._actions: dict[ConnectionAction, Callable[[RespConnection | None], None]] = {
            ConnectionAction.START_GATE: self._start_gate,
            ConnectionAction.RESUME_CALLS: self._resume_calls,
            ConnectionAction.SUSPEND: lambda _: suspended(),
            ConnectionAction.ABORT: _abort,
            ConnectionAction.REPORT_AWAY: self._report_away,
        }

    # States

    def _apply(self, event: ConnectionEvent) -> None:
        """Applies the row of `TRANSITIONS` for the current state and an event: changes the state, and runs the actions."""
        row = TRANSITIONS.get((self.state, event))
        if row is None:
            return
        self.state, actions = row
        resp = self.established
        self.registered_on = resp if self.state in REGISTERED else None
        self.publish_connection = resp if self.state in PUBLISHING else None
        self.on_publish_connection(self.publish_connection)
        (self._unregistered.clear if self.state in REGISTERED else self._unregistered.set)()
        for action in actions:
            self._actions[action](resp)

    def registered(self, missing: int) -> None:
        """Allows commands, because the node is registered. On a new connection, passes `missing` to `nodes_missing`."""
        is_new = self.state is ConnectionState.REGISTERING
        self._apply(ConnectionEvent.REGISTERED)
        if is_new:
            self.nodes_missing(missing)

    def nodes_missing(self, missing: int) -> None:
        """Allows publishing if no living node would miss events (`missing` is 0), or after a wait of `Timings.lease`."""
        if not missing or self._loop.time() >= self._gate_opens_at:
            self._apply(ConnectionEvent.ALL_SUBSCRIBED)

    def fault(self, reason: object) -> None:
        """Makes the node register or connect again. `reason` is the error reply of the server, or a text for the log."""
        event = ConnectionEvent.LEASE_LOST if str(reason).startswith(STATE_LOST) else ConnectionEvent.FAULT
        if (self.state, event) in TRANSITIONS:
            log.info("the node registers with the broker again", reason=str(reason))
            self._apply(event)

    def _lost(self) -> None:
        self.established = None
        self._apply(ConnectionEvent.DISCONNECTED)

    def _start_gate(self, _: object) -> None:
        self._gate_opens_at = self._loop.time() + self._timings.lease

    def _resume_calls(self, _: object) -> None:
        while self._waiters:
            _, future = self._waiters.popleft()
            if not future.done():
                future.set_result(None)

    def _report_away(self, _: object) -> None:
        self._is_reported_away = True
        if self._should_log("away"):
            log.warning("the broker is away", broker=str(self._address))

    def _should_log(self, words: str) -> bool:
        return self._log_dedup.should_log(words, self._tag, self._loop.time())

    # Connecting

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._run())

    def retry(self) -> None:
        """Ends the pause before the next attempt to connect."""
        if self._task is not None:
            self._retry.set()

    async def close(self) -> RespConnection | None:
        """Stops reconnecting. Returns the connection if the node is registered, else ends the connection and returns None."""
        resp = self.registered_on
        self._apply(ConnectionEvent.CLOSE)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        return resp

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                await self._register(self.established or await self._connect())
            except asyncio.CancelledError:
                self._apply(ConnectionEvent.CLOSE)
                raise
            except (OSError, TimeoutError, Unusable, ConnectionLost, hiredis.ReplyError) as exc:
                self._failed(exc, is_first=not failures)
                failures += 1
                pause = min(self._timings.backoff, 0.05 * 2 ** min(failures, 10))
                with contextlib.suppress(TimeoutError):
                    async with timeout(pause * random.uniform(0.5, 1)):  # noqa: S311 - nodes retry at different times
                        await self._retry.wait()
                self._retry.clear()
                continue
            if (failures or self._is_reported_away) and self._should_log("connected"):
                log.info("the broker is connected", broker=str(self._address))
            failures = 0
            self._is_reported_away = False
            await self._unregistered.wait()

    async def _connect(self) -> RespConnection:
        resp = await connect(self._address, self._tag, f"push1st-{self.node}", self._on_push, self._lost)
        if not resp.alive:
            raise ConnectionLost("the connection to the broker is lost")
        self.established = resp
        self._apply(ConnectionEvent.CONNECTED)
        return resp

    def _failed(self, exc: Exception, *, is_first: bool) -> None:
        """Handles a failed attempt to connect or to register."""
        is_rejected = isinstance(exc, hiredis.ReplyError) and not str(exc).startswith(FAULTS)
        self._apply(ConnectionEvent.REJECTED if is_rejected else ConnectionEvent.FAILED)
        silent = f"no answer within {CONNECT_SECONDS} s" if isinstance(exc, TimeoutError) else type(exc).__name__
        self.reason = str(exc) or silent
        if is_first and self._should_log(self.reason):
            log.warning("the broker cannot be used", broker=str(self._address), reason=self.reason, **hint(self.reason))

    def tick(self, now: float) -> None:
        """Rejects calls that have waited too long, and ends the connection to a server that is silent or too slow."""
        while self._waiters and self._waiters[0][0] <= now:  # almost sorted: a call that waits twice keeps its deadline
            _, future = self._waiters.popleft()
            if not future.done():
                future.set_exception(Refused(503, AWAY_FOR_LONG))
        resp = self.established
        if resp is None:
            return
        if resp.queued > MAX_UNSENT_BYTES:
            self.fault("the server is too slow")
        elif resp.silent(now) > self._timings.silent:
            self.fault("the server does not answer")

    # Commands

    def send(self, resp: RespConnection, script: Script, on_reply: Callable[[Any], None], *arguments: Argument) -> None:
        resp.send(pack(self._keys.command(script, *arguments)), on_reply)

    def send_change(self, script: Script, *arguments: Argument) -> None:
        """Sends a change of this node's entries; no coroutine waits for the reply.

        The node sends no change while it is not registered, because the next registration sends all differences to the server.
        """
        if self.registered_on is not None:
            self.send(self.registered_on, script, self.check, self.node, *arguments)

    def check(self, reply: Any) -> None:
        """Handles the reply to a command if no coroutine waits for this reply."""
        if isinstance(reply, hiredis.ReplyError):
            if str(reply).startswith(FAULTS):
                self.fault(reply)
            elif str(reply).startswith(MOVING):
                self.repair_needed = True
            elif not self.repair_needed:  # logs once until the next repair: a server with full memory rejects many changes
                self.repair_needed = True
                log.error("the broker refused", reason=str(reply), **hint(str(reply)))

    async def usable(self) -> RespConnection:
        """Returns the connection as soon as the node is registered on it. Raises Refused(503)."""
        deadline = self._loop.time() + self._timings.patience
        while self.registered_on is None:
            future: asyncio.Future[None] = self._loop.create_future()
            self._waiters.append((deadline, future))
            await future
        return self.registered_on

    async def call(self, *command: Argument, ordered: bool = False) -> Any:
        """Returns the reply to a command that may safely run twice. Raises Refused(503). `resp.py` describes `ordered`."""
        return await self.until_done(lambda resp: resp.call(*command, ordered=ordered))

    async def until_done(self, attempt: Callable[[RespConnection], Awaitable[Any]]) -> Any:
        """Returns the result of `attempt`; calls `attempt` again if the connection or the lease was lost. Raises Refused(503)."""
        deadline = self._loop.time() + self._timings.patience
        while True:
            resp = await self.usable()
            try:
                return await attempt(resp)
            except ConnectionLost:
                refused = Refused(503, AWAY_FOR_LONG)
            except hiredis.ReplyError as reply:
                refused = Refused(503, f"the broker refused: {reply}")
                if str(reply).startswith(MOVING):
                    await asyncio.sleep(self._timings.moving)
                elif str(reply).startswith(FAULTS):
                    self.fault(reply)
                else:
                    raise refused from None
            if self._loop.time() > deadline:
                raise refused


def _abort(resp: RespConnection | None) -> None:
    if resp is not None:
        resp.abort()


def hint(reason: str) -> dict[str, str]:
    """Returns the advice for an error reply as a field of the log; no field if there is no advice."""
    found = HINTS.get(reason.partition(" ")[0])
    return {} if found is None else {"hint": found}
