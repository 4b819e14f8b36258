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
from push1st.metrics import Metrics
from tests.support.servers import Cluster
from tests.support.valkey import Valkey

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


def redis_broker(
    url: str,
    hooked: Mapping[str, str] = MappingProxyType({"app-a": "s", "app-b": "s"}),
    wall: Callable[[], int] = lambda: NOW,
) -> Redis:
    """Makes the broker of one node, alone under its prefix. `wall`: returns the wall clock's time in nanoseconds."""
    numbers = count(1)
    prefix = f"t{next(_prefixes)}"
    timings = Timings(hold=0, read=0.05)  # leaving edges are not held back for long
    return Redis(
        f"{url}?prefix={prefix}",
        lambda: (next(numbers), wall()),
        "node",
        Metrics(),
        LocalRoster(),
        lambda: hooked,
        lambda _: None,
        timings,
    )


class Settled:
    """A broker whose calls return after all messages that they cause have arrived."""

    def __init__(self, broker: Redis) -> None:
        self._broker = broker
        self.report = broker.report
        self.open = broker.open
        self.close = broker.close
        self.history = broker.history

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._broker, name)

        async def settled(*args: Any) -> Any:
            try:
                return await call(*args)
            finally:
                await self._broker.settled()

        return settled
