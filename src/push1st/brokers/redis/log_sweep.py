"""Removes clients without a session from the logs that they watch.

A worker may die between two steps. Then a client may still watch a log although its session has ended, and the log would exist
forever. From time to time, one node compares the clients of all logs in a shard with the sessions. A client is removed if its
session is missing twice, because a session and its filters are stored one after the other.
"""

import asyncio
import re
from typing import NamedTuple

from push1st.brokers.redis.shard import Shard
from push1st.brokers.redis.shards import Shards
from push1st.eager import spawn
from push1st.errors import Refused

SWEEP_SECONDS = 3600
"""the seconds between two sweeps of a shard"""
SCAN_COUNT = 500
"""the number of keys or clients that one command returns"""
MAX_MISSING = 10_000
"""the maximum number of clients that one sweep removes from the logs of a shard"""


class Watcher(NamedTuple):
    """A client that watches a log. generation: the generation of its connection."""

    app: str
    filter: str
    client_id: str
    generation: int
    is_anonymous: bool


class LogSweep:
    """See the module."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._missing: dict[Shard, list[Watcher]] = {}
        """the clients whose sessions were missing in the last step"""
        self._running: set[Shard] = set()

    def start(self, shard: Shard) -> None:
        """Begins the next step in a shard, unless the last one still runs. Called once a minute."""
        if shard not in self._running:
            self._running.add(shard)
            spawn(self._run(shard))

    async def _run(self, shard: Shard) -> None:
        try:
            await self.step(shard)
        except Refused:  # the broker is away, or does not permit SCAN
            pass
        finally:
            self._running.discard(shard)

    async def step(self, shard: Shard) -> None:
        """Searches the clients without a session, or removes those that the last step has found. Raises Refused(503)."""
        call, missing = shard.connection.call, self._missing.pop(shard, [])
        for one in await self._without_session(missing):
            await shard.logs.unwatch((one.app, one.filter), one.client_id, one.generation, one.is_anonymous)
        if not missing and await call("SET", shard.keys.key("ls"), "", "NX", "PX", SWEEP_SECONDS * 1000):
            self._missing[shard] = await self._search(shard)

    async def _search(self, shard: Shard) -> list[Watcher]:
        call, prefix = shard.connection.call, shard.keys.key("lw")
        pattern = re.sub(r"([\\*?\[\]^])", r"\\\1", prefix) + "*"
        found: list[Watcher] = []
        cursor = b"0"
        while len(found) < MAX_MISSING:
            cursor, keys = await call("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT)
            for key in keys:
                suffix, _, name = key.decode()[len(prefix) :].partition(":")
                found += await self._search_log(shard, key, name, suffix == "a")
            if cursor == b"0":
                break
        return found[:MAX_MISSING]

    async def _search_log(self, shard: Shard, key: bytes, name: str, is_anonymous: bool) -> list[Watcher]:
        """Returns the clients of a log without a session. key: the hash of the clients. name: the app's id and the filter."""
        app, _, filter = name.partition("/")
        found: list[Watcher] = []
        cursor = b"0"
        while True:
            cursor, fields = await shard.connection.call("HSCAN", key, cursor, "COUNT", SCAN_COUNT)
            clients = zip(*[iter(fields)] * 2, strict=True)
            some = [Watcher(app, filter, one.decode(), int(generation), is_anonymous) for one, generation in clients]
            found += await self._without_session(some)
            if cursor == b"0":
                return found

    async def _without_session(self, watchers: list[Watcher]) -> list[Watcher]:
        found: list[Watcher] = []
        for at in range(0, len(watchers), SCAN_COUNT):
            some = watchers[at : at + SCAN_COUNT]
            exist = await asyncio.gather(*map(self._has_session, some))
            found += [one for one, exists in zip(some, exist, strict=True) if not exists]
        return found

    async def _has_session(self, one: Watcher) -> bool:
        shard = self._shards.of(one.app, one.client_id)
        return bool(await shard.connection.call("EXISTS", shard.keys.key("s", f"{one.app}/{one.client_id}")))
