"""The console: web pages for the operators of a server, with a JSON API of their own (operations, section A).

A worker creates a `Console` if `console.password` is set; otherwise, it imports nothing from this package. Each part of the
console is a class that takes a `ConsoleContext` and has `endpoints`.
"""

import asyncio
from collections.abc import Callable

from push1st.config.addresses import Networks
from push1st.console.apps import AppList
from push1st.console.assets import Assets
from push1st.console.channels import ChannelList
from push1st.console.cluster import Cluster
from push1st.console.configuration import Configuration
from push1st.console.connections import ConnectionList
from push1st.console.door import ConsoleDoor
from push1st.console.endpoints import BrokerReports, ConsoleContext, ConsolePart
from push1st.console.events import EventCreator
from push1st.console.guard import Guard
from push1st.console.history import HistoryList
from push1st.console.hooks import HookList
from push1st.console.inspector import Inspector
from push1st.console.live import Live
from push1st.console.mqtt import MqttLists
from push1st.console.overview import Overview
from push1st.console.passwords import stored
from push1st.console.sessions import OperatorSessions
from push1st.console.site import KEEP_ALIVE_SECONDS, ConsoleHandlers, ConsoleListener, Site
from push1st.console.version import Version
from push1st.console.wire import ConsoleWire
from push1st.core.node import Node
from push1st.status import WorkerReports
from push1st.transports.context import EdgeContext
from push1st.transports.mqtt.clients import MqttClients

PARTS: tuple[Callable[[ConsoleContext], ConsolePart], ...] = (
    Version,
    AppList,
    ChannelList,
    ConnectionList,
    EventCreator,
    HookList,
    HistoryList,
    MqttLists,
    Inspector,
    Cluster,
    Configuration,
)


class Console:
    """The console of a worker. Parameters: see `ConsoleContext`."""

    def __init__(
        self,
        node: Node,
        edge: EdgeContext,
        name: str,
        number: int,
        reports: WorkerReports,
        broker: BrokerReports | None = None,
        clients: MqttClients | None = None,
    ) -> None:
        self._wire = ConsoleWire(node, name, number)
        context = ConsoleContext(node, edge, self._wire, name, number, reports, broker, clients)
        self._overview = Overview(context)
        parts = [self._overview, *(part(context) for part in PARTS)]
        self._edge = edge
        self._endpoints = [endpoint for part in parts for endpoint in part.endpoints]
        self._live = Live(context, parts)
        self._assets = Assets()
        config = edge.config.console
        self._origin = config.origin
        password = stored(config.password)
        self._cookie_name = password.cookie_name
        self._door = ConsoleDoor(context, password, OperatorSessions(password.key), self._live)

    async def open(self) -> None:
        """Connects the console with those of the other workers. Must be called before the console listens."""
        await self._wire.open()
        await asyncio.gather(self._door.open(), self._overview.open())

    def close(self) -> None:
        """Sends a farewell to the other consoles, because this worker stops. Must be called before the broker is closed."""
        self._wire.close()

    def tick(self) -> None:
        """Takes a sample if one is due, looks for lost nodes, and exchanges ended sessions. Called once a second."""
        self._overview.tick()
        self._door.tick()

    def listener(self, has_tls: bool) -> ConsoleListener:
        """Returns the settings for the connections to a listening address. `has_tls`: whether the address uses TLS."""
        guard = Guard(self._origin, has_tls, self._cookie_name)
        site = Site(self._edge, self._door, self._live, self._assets, guard, self._endpoints)
        return ConsoleListener(self._edge, ConsoleHandlers(self._edge, site), False, Networks(), KEEP_ALIVE_SECONDS)
