"""Registers the filters of this node in a shard, and follows the filters of all nodes.

Every node is subscribed to the topic on which a shard publishes the changes of its filters. The replies and the messages of a
shard share one connection, and arrive in the order in which the server ran the commands. So when a publish is confirmed, the
publisher has received each change that the server made before the publish (decision 0025).
"""

import asyncio
from collections.abc import Awaitable, Sequence

from push1st import logs
from push1st.brokers import PUBLIC_CHANNELS, Receive
from push1st.brokers.redis.connection import ShardConnection
from push1st.brokers.redis.entries import OwnFilters
from push1st.brokers.redis.keys import FilterKey, Keys
from push1st.brokers.redis.known_filters import KnownFilters
from push1st.brokers.redis.resp import RespConnection
from push1st.brokers.redis.scripts import DROP_FILTERS, SET_FILTER
from push1st.brokers.redis.wire import decode_filter
from push1st.brokers.sessions import SHARE
from push1st.errors import Refused

SCANNED = 1000
"""the number of filters that one command reads or drops"""

log = logs.get("push1st.broker")


class Interest:
    """The filters in one shard. own: the filters of this node."""

    def __init__(self, keys: Keys, connection: ShardConnection, own: OwnFilters) -> None:
        self._keys = keys
        self._connection = connection
        self._own = own
        self.known = KnownFilters(own.searches)
        self.is_doubtful = False
        """whether the server lost its state while this node was connected, so that some known filters may not exist any more"""

    def receive(self, data: bytes) -> None:
        """Handles a change of the filters."""
        self.known.change(*decode_filter(data))

    async def load(self, resp: RespConnection) -> None:
        """Reads the filters of all nodes. Raises ConnectionLost, ReplyError. The node is already subscribed to the changes."""
        collected = self.known.begin_loading()
        key, cursor = self._keys.key("f"), b"0"
        while True:
            cursor, found = await resp.call("HSCAN", key, cursor, "COUNT", SCANNED, ordered=True)
            for field, value in zip(found[::2], found[1::2], strict=True):
                try:  # a field may come twice
                    app, node, name = field.decode().split("/", 2)
                    collected.change(app, name, node, int(value))
                except ValueError:  # another version of push1st wrote it, or somebody by hand
                    log.error("a filter of the broker cannot be decoded", field=repr(field), value=repr(value))
            if cursor == b"0":
                break
        self.known.end_loading(collected)
        self.is_doubtful = False
        await self._drop_ended(resp)

    async def _drop_ended(self, resp: RespConnection) -> None:
        """Removes the filters of nodes that are not registered (`lua/drop_filters.lua`)."""
        of_nodes = self.known.of_nodes()
        if of_nodes.keys() - {self._connection.node}:
            for node in await resp.call("SMEMBERS", self._keys.key("nodes")):
                of_nodes.pop(node.decode(), None)
            for node, keys in of_nodes.items():
                for at in range(0, len(keys), SCANNED):
                    names = [one for key in keys[at : at + SCANNED] for one in key]
                    await resp.call(*self._keys.command(DROP_FILTERS, node, *names))

    async def confirmed(self, app: str, name: str) -> None:
        """Sends the value of a filter of this node; returns when the server has confirmed the value. Raises Refused(503)."""
        node = self._connection.node

        def attempt(resp: RespConnection) -> Awaitable[object]:
            return resp.call(*self._keys.command(SET_FILTER, node, *self._arguments(app, name)))

        try:
            await self._connection.until_done(attempt)
        except Refused:
            self._connection.repair_needed = True
            raise

    @property
    def is_registered(self) -> bool:
        """Whether this node is registered in the shard, so that the shard has the values that it has confirmed."""
        return self._connection.registered_on is not None

    def send(self, app: str, name: str) -> None:
        """Sends the value of a filter of this node. No coroutine waits for the reply."""
        self._connection.send_change(SET_FILTER, *self._arguments(app, name))

    def _arguments(self, app: str, name: str) -> tuple[str, str, int]:
        return app, name, self._own.values.get((app, name), 0)


class RedisFilters:
    """The filters and groups of this node, in all shards (`brokers.NodeFilters`). own: their values."""

    def __init__(self, own: OwnFilters, shards: Sequence[Interest]) -> None:
        self._own = own
        self._shards = shards
        self.receive: Receive = lambda _: 0
        self._registering: dict[FilterKey, asyncio.Task[None]] = {}
        """the registrations that the server has not confirmed yet, or has rejected"""

    @property
    def cost(self) -> int:
        return self._own.searches.cost

    def check_room(self, app: str, name: str, is_anonymous: bool) -> None:
        if (app, name) not in self._own.values:
            self._shards[0].known.check_room(app, name, is_anonymous)

    def set(self, app: str, name: str, value: int) -> None:
        key = app, name
        old = self._own.values.get(key, 0)
        if value:
            self._own.values[key] = value
            if not old or self._needs_more(key, old, value):
                self._registering[key] = task = asyncio.get_running_loop().create_task(self._register(key))
                task.add_done_callback(lambda task: self._registered(key, task))
                return
        elif old:
            del self._own.values[key]
            self._registering.pop(key, None)
        if value != old:
            for shard in self._shards:
                shard.send(app, name)

    def _needs_more(self, key: FilterKey, old: int, value: int) -> bool:
        """Whether a filter that is registered must be registered again, before a subscriber gets SUBACK."""
        task = self._registering.get(key)
        is_failed = task is not None and task.done()  # only failed tasks are kept
        has_more_rights = old == PUBLIC_CHANNELS != value and not key[1].startswith(SHARE)
        return is_failed or has_more_rights or (task is None and not all(shard.is_registered for shard in self._shards))

    async def _register(self, key: FilterKey) -> None:
        await asyncio.gather(*(shard.confirmed(*key) for shard in self._shards))

    def _registered(self, key: FilterKey, task: "asyncio.Task[None]") -> None:
        is_failed = not task.cancelled() and task.exception() is not None
        if self._registering.get(key) is task and not is_failed:
            del self._registering[key]

    async def confirmed(self, app: str, name: str) -> None:
        task = self._registering.get((app, name))
        if task is not None:
            await asyncio.shield(task)
