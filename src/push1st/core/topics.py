"""The topics to which this worker is subscribed at the broker for its own clients.

The worker subscribes to a channel's topic before its first client joins the channel, and unsubscribes after its last client has
left. While the worker waits for the broker, a client that is about to join is not in the hub yet. So `ClientTopics` counts these
clients, and keeps the worker subscribed to a channel's topic while there are such clients.
"""

from collections import Counter
from contextlib import suppress

from push1st.brokers import Broker
from push1st.core.app import App
from push1st.errors import Refused


class ClientTopics:
    """The topics of this worker's clients, and the number of clients that are about to join each topic."""

    __slots__ = ("_broker", "_wanted")

    def __init__(self) -> None:
        self._broker: Broker
        self._wanted: Counter[tuple[str, str]] = Counter()
        """the number of clients that are about to join a topic and are not in the hub yet, by app id and topic"""

    def open(self, broker: Broker) -> None:
        self._broker = broker

    def want(self, app: App, name: str) -> None:
        """Keeps this worker subscribed for a client that is about to join a topic. Each call needs a later `unwant`."""
        self._wanted[app.config.id, name] += 1

    def unwant(self, app: App, name: str) -> bool:
        """Undoes one call of `want`. If this function returns true, the caller must call `release`."""
        key = app.config.id, name
        self._wanted[key] -= 1
        if not self._wanted[key]:
            del self._wanted[key]
        return not self.is_received(app, name)

    async def subscribe(self, app: App, name: str) -> None:
        """Subscribes to a topic that this worker does not receive yet. Raises Refused(503)."""
        await self._broker.subscribe(app.config.id, name)

    async def release(self, app: App, name: str) -> None:
        """Unsubscribes from a topic if no client of this worker needs the topic."""
        if not self.is_received(app, name) and (app.config.id, name) not in self._wanted:
            with suppress(Refused):  # after a failure, the worker still receives the topic's messages, and ignores them
                await self._broker.unsubscribe(app.config.id, name)

    def is_received(self, app: App, name: str) -> bool:
        """Returns whether this worker receives a topic because its clients are subscribed, or because events are held."""
        return name in app.tenant.channels or (app.held is not None and name in app.held)
