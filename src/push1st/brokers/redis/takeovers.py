"""Ends the connections of MQTT clients on other nodes that claim the clients' ids.

A claim that finds a connection on another living node sends a message to the inbox of this node (`lua/claim_session.lua`). The
node ends the connection, saves the session, and sends a message back.
"""

import asyncio
from collections.abc import Awaitable, Callable

from push1st.brokers.redis.resp import pack
from push1st.brokers.redis.shard import Shard
from push1st.brokers.redis.wire import RELEASED, decode_released, decode_take_over
from push1st.eager import spawn

TAKE_OVER_SECONDS = 1
"""the seconds for which a claim waits until another node has saved the session; then the claim takes the stored copy"""


class Takeovers:
    """The takeovers between this node and others.

    end: a function that takes an app's id, a client id and a generation. It ends the connection on this node with this
    generation, and returns when the session is saved.
    """

    def __init__(self, end: Callable[[str, str, int], Awaitable[None]]) -> None:
        self._end = end
        self.seconds: float = TAKE_OVER_SECONDS
        self._waiting: dict[tuple[str, str, int], list[asyncio.Future[None]]] = {}
        """the claims that wait for another node, by app, client id and generation of the earlier connection"""

    async def until_released(self, app: str, client_id: str, generation: int) -> None:
        """Waits until another node has ended an earlier connection, for at most `TAKE_OVER_SECONDS`."""
        loop, key = asyncio.get_running_loop(), (app, client_id, generation)
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.setdefault(key, []).append(future)
        timer = loop.call_later(self.seconds, _resolve, future)
        try:
            await future
        finally:
            timer.cancel()
            waiting = self._waiting[key]
            waiting.remove(future)
            if not waiting:
                del self._waiting[key]

    def requested(self, shard: Shard, data: bytes) -> None:
        """Handles the message of another node that claims the id of a client."""
        spawn(self._release(shard, *decode_take_over(data)))

    async def _release(self, shard: Shard, node: str, generation: int, app: str, client_id: str) -> None:
        await self._end(app, client_id, generation)
        resp = shard.connection.established
        if resp is not None:
            data = bytes((RELEASED,)) + b"\0".join((b"%d" % generation, app.encode(), client_id.encode()))
            resp.send(pack((shard.keys.publish, shard.keys.topic("", node), data)), shard.connection.check)

    def released(self, data: bytes) -> None:
        """Handles the message of another node that has ended a connection."""
        generation, app, client_id = decode_released(data)
        for future in self._waiting.get((app, client_id, generation), ()):
            _resolve(future)


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
