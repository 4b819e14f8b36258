"""The Redis broker on a real server, for the suite that all brokers pass."""

import atexit
from collections.abc import Callable, Mapping
from functools import cache
from itertools import count
from types import MappingProxyType
from typing import Any

from push1st.brokers.local_roster import LocalRoster
from push1st.brokers.redis import Redis
from push1st.brokers.redis.bounds import Timings
from push1st.config.mqtt import Mqtt
from push1st.metrics import Metrics
from tests.support.servers import Cluster
from tests.support.valkey import Valkey

MQTT = Mqtt()
TIMINGS = Timings(hold=0, read=0.05)
"""leaving edges are not held back for long"""
NOW = 1_700_000_000_000_000_000
_prefixes = count(1)


@cache
def valkey() -> Valkey:
    """Starts one server for all tests; each broker has a prefix of its own."""
    server = Valkey()
    atexit.register(server.close)
    return server


@cache
def cluster() -> Cluster:
    """Starts three servers that share the keys, for all tests."""
    servers = Cluster()
    atexit.register(servers.close)
    return servers


def new_prefix() -> str:
    return f"t{next(_prefixes)}"


def redis_broker(
    url: str,
    hooked: Mapping[str, str] = MappingProxyType({"app-a": "s", "app-b": "s"}),
    wall: Callable[[], int] = lambda: NOW,
    node: str = "node",
    prefix: str = "",
    timings: Timings = TIMINGS,
    mqtt: Mqtt = MQTT,
) -> Redis:
    """Makes the broker of one node. wall: returns the wall clock's time in nanoseconds. prefix: "": the node has its own one."""
    numbers = count(1)
    return Redis(
        f"{url}?prefix={prefix or new_prefix()}",
        lambda: (next(numbers), wall()),
        node,
        Metrics(),
        LocalRoster(),
        lambda: hooked,
        lambda _: None,
        timings,
        mqtt,
    )


async def pass_time(broker: Redis, milliseconds: float) -> None:
    """Lets time pass for the server's clock and for the stored messages, but not for leases."""
    script = """
    for _, key in ipairs({KEYS[1] .. ':clock', unpack(redis.call('KEYS', KEYS[1] .. ':k*'))}) do
      local left = redis.call('PTTL', key)
      if left >= 0 then redis.call('PEXPIRE', key, string.format('%.0f', math.max(0, left - ARGV[1]))) end
    end"""
    for shard in broker._shards.all:
        await shard.connection.call("EVAL", script, 1, shard.keys.base, f"{milliseconds:.0f}")


class Settled:
    """A broker whose calls return after all messages that they cause have arrived."""

    def __init__(self, broker: Redis) -> None:
        self._broker = broker
        self.report = broker.report
        self.open = broker.open
        self.close = broker.close
        self.history = broker.history
        self.channel_lists = broker.channel_lists

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._broker, name)

        async def settled(*args: Any) -> Any:
            try:
                return await call(*args)
            finally:
                await self._broker.settled()

        return settled
