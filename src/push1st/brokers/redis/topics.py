"""Subscribes this node to its topics in a shard: the topics of its channels, and its inbox."""

import asyncio
from collections.abc import Collection

from push1st.brokers.redis import bounds
from push1st.brokers.redis.connection import ShardConnection
from push1st.brokers.redis.keys import Keys
from push1st.brokers.redis.resp import RespConnection


class ShardTopics:
    """See the module. `node` is the name of this node, which is also the name of the node's inbox."""

    def __init__(self, keys: Keys, connection: ShardConnection, node: str) -> None:
        self._keys = keys
        self._connection = connection
        self.inbox = keys.topic("", node)
        """the topic on which this node receives replies, and the names of nodes that have just subscribed to their topics"""
        self._names = {self.inbox, keys.filters_topic}

    def __contains__(self, topic: str) -> bool:
        return topic in self._names

    async def subscribe(self, app: str, channel: str) -> None:
        """Returns when the server has confirmed the subscription. Raises Refused(503)."""
        topic = self._keys.topic(app, channel)
        self._names.add(topic)
        await self._connection.until_done(lambda resp: resp.topics(self._keys.subscribe, [topic.encode()]))

    def unsubscribe(self, app: str, channel: str) -> None:
        topic = self._keys.topic(app, channel)
        if topic in self._names:
            self._names.discard(topic)
            if self._connection.established is not None:
                self._give_up(self._connection.established, topic)

    def _give_up(self, resp: RespConnection, topic: str) -> None:
        resp.topics(self._keys.unsubscribe, [topic.encode()]).add_done_callback(_ignore)

    async def subscribe_all(self, resp: RespConnection) -> list[str]:
        """Subscribes to all topics of this node on a new connection; returns these topics. Raises ConnectionLost, ReplyError."""
        topics = [*sorted(self._names - {self.inbox}), self.inbox]  # inbox last: `is_subscribed` (Lua) checks only the inbox
        for at in range(0, len(topics), bounds.MAX_TOPICS):
            names = [one.encode() for one in topics[at : at + bounds.MAX_TOPICS]]
            await resp.topics(self._keys.subscribe, names)
        return topics

    def drop_unneeded(self, resp: RespConnection, topics: Collection[str]) -> None:
        """Unsubscribes from topics that this node no longer needs, because their last subscribers left during `subscribe_all`."""
        for topic in set(topics) - self._names:
            self._give_up(resp, topic)


def _ignore(future: "asyncio.Future[None]") -> None:
    future.exception()
