"""The nodes of the cluster, and the broker that connects them."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec

from push1st.console.endpoints import BrokerReports, ConsoleCall, ConsoleContext, ConsoleEndpoint
from push1st.console.nodes import NodeAbout
from push1st.console.wire import Replies
from push1st.eager import timeout
from push1st.status import BrokerDetails, BrokerSummary

KIND = "cluster"
INFO_SECONDS = 5.0
"""the seconds for which a worker keeps the report of the broker's servers"""
BROKER_SECONDS = 1.0
"""the seconds for which a request waits for the broker's servers"""


class NodeFacts(msgspec.Struct, frozen=True, array_like=True):
    """A worker. Its machine and number are in its greeting too, which this worker may have missed.

    pid: the id of the process. state: `ready` or `draining`.
    """

    machine: str
    worker: int
    pid: int
    state: str


class ServerSummary(msgspec.Struct, frozen=True):
    """The broker, from the state of the server (`ServerStatus`)."""

    broker: BrokerSummary


BrokerState: TypeAlias = tuple[list[BrokerDetails], BrokerSummary | None]

_summary = msgspec.json.Decoder(ServerSummary)
_facts = msgspec.msgpack.Decoder(NodeFacts)


class Cluster:
    """The endpoint `cluster`."""

    def __init__(self, context: ConsoleContext) -> None:
        self._context = context
        self._reading: asyncio.Task[BrokerState] | None = None
        """the last read of the broker's state, which all requests share until it is old"""
        self._read_at = 0.0
        context.wire.serve(KIND, self._own)
        self.endpoints = (ConsoleEndpoint("GET", "cluster", self._show),)

    def _own(self, _data: bytes) -> bytes:
        state = "draining" if self._context.node.draining else "ready"
        return msgspec.msgpack.encode(NodeFacts(socket.gethostname(), self._context.number, os.getpid(), state))

    async def _show(self, _call: ConsoleCall) -> dict[str, Any]:
        context = self._context
        replies = await context.wire.request(KIND)
        facts = dict(replies.decoded(_facts.decode))
        nodes = sorted({context.name, *context.wire.peers().nodes, *facts} - context.wire.left)
        leases = await self._leases(nodes)
        return {
            "nodes": [self._node(name, facts.get(name), leases.get(name), replies) for name in nodes],
            "broker": await self._broker(),
            "missing": replies.missing,
            "away": replies.away,
        }

    def _node(self, name: str, facts: NodeFacts | None, lease: float | None, replies: Replies) -> dict[str, Any]:
        """Returns the row of a node.

        The field `here` is whether the node is this worker. The field `state` is `ready`, `draining`, `replaced`, `no answer`,
        `no console`, or `unknown`. It is `unknown` while the broker is away, and for a node from which this worker has received
        no message yet.
        """
        wire = self._context.wire
        about: NodeFacts | NodeAbout | None = facts or wire.nodes.get(name)
        if wire.nodes.has_ended(name):
            silent = "replaced"
        elif replies.away:
            silent = "unknown"
        elif about or name in replies.missing:
            silent = "no answer"
        else:
            silent = "no console" if name in wire.without_console() else "unknown"
        return {
            "id": name,
            "machine": about and about.machine,
            "worker": about and about.worker,
            "pid": facts and facts.pid,
            "lease": lease,
            "here": name == self._context.name,
            "state": facts.state if facts else silent,
        }

    async def _leases(self, nodes: Sequence[str]) -> dict[str, float]:
        ports = self._context.broker
        if ports is None:
            return {}
        try:
            async with timeout(BROKER_SECONDS):
                return await ports.leases(nodes)
        except TimeoutError:
            return {}

    async def _broker(self) -> dict[str, Any] | None:
        """Returns the broker; None with the memory broker."""
        ports = self._context.broker
        if ports is None:
            return None
        details, summary = await self._state(ports)
        count = self._context.node.metrics
        return {
            "kind": summary and summary.kind,
            "url": summary and summary.url,
            "connected": not self._context.wire.peers().away,
            "servers": details,
            "away_seconds": count.broker_away,
            "unconfirmed": count.broker_unconfirmed,
        }

    async def _state(self, ports: BrokerReports) -> BrokerState:
        """Returns the broker's servers and its summary. The requests of `INFO_SECONDS` share one read, unless the read fails."""
        now = self._context.node.clock.monotonic()
        reading = self._reading
        if reading is None or (reading.done() and (now - self._read_at >= INFO_SECONDS or not _has_succeeded(reading))):
            self._read_at = now
            reading = self._reading = asyncio.create_task(self._read(ports))
        return await asyncio.shield(reading)

    async def _read(self, ports: BrokerReports) -> BrokerState:
        details: list[BrokerDetails] = []
        with contextlib.suppress(TimeoutError):
            async with timeout(BROKER_SECONDS):
                details = await ports.details()
        status = self._context.node.status
        found = await status() if status is not None else b""
        return details, _summary.decode(found).broker if found else None


def _has_succeeded(reading: asyncio.Task[BrokerState]) -> bool:
    return not reading.cancelled() and reading.exception() is None and bool(reading.result()[0])
