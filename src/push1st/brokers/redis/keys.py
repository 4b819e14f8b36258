"""Builds the names of a shard's keys and topics, and the commands that run scripts.

All keys of a shard have the same hash tag, so a cluster keeps these keys in one slot. `scripts.py` lists the keys.
"""

from push1st.brokers import ALL_WORKERS
from push1st.brokers.redis.resp import Argument
from push1st.brokers.redis.scripts import Script

ChannelKey = tuple[str, str]
"""the pair of an app's id and a channel's name"""
UserKey = tuple[str, str]
"""the pair of an app's id and a user's id"""
FilterKey = tuple[str, str]
"""the pair of an app's id and the name of a filter or group (`known_filters.py`)"""


class Keys:
    """Builds the names of one shard.

    prefix: the prefix of all keys, from the broker's URL.
    tag: the hash tag of the shard.
    sharded: whether the server is part of a Redis cluster; in a cluster, topics use sharded Pub/Sub (SPUBLISH).
    """

    __slots__ = ("_sharded", "base", "publish", "subscribe", "unsubscribe")

    def __init__(self, prefix: str, tag: str, sharded: bool) -> None:
        self.base = f"{prefix}:{{{tag}}}"
        self._sharded = sharded
        self.publish, self.subscribe, self.unsubscribe = (
            ("SPUBLISH", "SSUBSCRIBE", "SUNSUBSCRIBE") if sharded else ("PUBLISH", "SUBSCRIBE", "UNSUBSCRIBE")
        )

    def key(self, *parts: str) -> str:
        return ":".join((self.base, *parts))

    def topic(self, app: str, channel: str) -> str:
        return f"{self.base}:t:{app}/{channel}"

    @property
    def filters_topic(self) -> str:
        """The topic of all nodes, with requests to all nodes, and the changes of the filters, which the server publishes."""
        return self.topic("", ALL_WORKERS)

    def command(self, script: Script, *arguments: Argument) -> tuple[Argument, ...]:
        """Returns the command that runs a script."""
        return "EVALSHA", script.sharded_digest if self._sharded else script.digest, 1, self.base, *arguments
