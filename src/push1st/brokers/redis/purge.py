"""Deletes the stored data of a removed app, for `push1st app remove --purge`: sessions of MQTT clients, retained messages, cached
events and histories.

A purge has its own connections, and registers no node, so it also runs while no server runs. It searches the keys with SCAN, and
each of its commands handles a bounded number of keys, so that the workers of other apps need not wait.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence

import hiredis

from push1st.brokers import Purged
from push1st.brokers.redis.keys import Keys
from push1st.brokers.redis.resp import ConnectionLost, RespConnection
from push1st.brokers.redis.scripts import CONFIRM_SESSIONS, DROP_RETAINED, UNWATCH_LOG
from push1st.brokers.redis.servers import Unusable, connect, tags
from push1st.brokers.redis.shard_logs import listed_name
from push1st.config.brokerurl import parse
from push1st.errors import Refused

SCAN_COUNT = 500
"""the approximate number of keys that one command examines"""
MAX_STEP = 100
"""the maximum number of sessions or channels that one script handles"""


class RedisPurge:
    """Implements the port `Purge` with a Redis or Valkey server, Sentinels or a Redis cluster. url: the URL of the broker."""

    def __init__(self, url: str) -> None:
        self._address = parse(url)

    async def purge(self, app: str) -> Purged:
        """See `Purge.purge`. Raises Refused(503)."""
        shards: list[_ShardPurge] = []
        try:
            for tag in tags(self._address):
                keys = Keys(self._address.prefix, tag, self._address.how == "cluster")
                resp = await connect(self._address, tag, "push1st-purge", lambda _: None, lambda: None)
                shards.append(_ShardPurge(resp, keys, app))
            return await _purge(shards)
        except (OSError, Unusable, ConnectionLost, hiredis.ReplyError) as exc:  # OSError includes TimeoutError
            reason = str(exc) or "it does not answer"
            raise Refused(503, f"the broker cannot be used: {self._address}: {reason}") from None
        finally:
            for shard in shards:
                shard.resp.close()


async def _purge(shards: Sequence["_ShardPurge"]) -> Purged:
    in_use = sum([await shard.users() for shard in shards])
    ended = 0
    for shard in shards:
        absent, connected = await shard.end_sessions()
        ended += absent
        in_use += connected
    if in_use:
        return Purged(in_use, ended)
    retained = histories = 0
    for shard in shards:
        await shard.drop_logs()
        retained += await shard.drop_retained()
        histories += await shard.drop_histories()
    return Purged(0, ended, retained, histories)


class _ShardPurge:
    """Deletes the data of an app in one shard."""

    def __init__(self, resp: RespConnection, keys: Keys, app: str) -> None:
        self.resp = resp
        self._keys = keys
        self._app = app

    async def users(self) -> int:
        """Returns the number of channels with subscribers, and of signed-in users."""
        return sum([await self.resp.call("HLEN", self._keys.key(kind, self._app)) for kind in ("i", "u")])

    async def end_sessions(self) -> tuple[int, int]:
        """Ends the sessions of absent clients; returns their number, and the number of sessions with a connection."""
        ended = connected = 0
        async for clients in self._names("s"):
            for at in range(0, len(clients), MAX_STEP):
                some = clients[at : at + MAX_STEP]
                states = await asyncio.gather(*(self.resp.call("HMGET", self._key("s", one), "n", "g") for one in some))
                absent = [(one, generation) for one, (node, generation) in zip(some, states, strict=True) if node == b""]
                connected += sum(bool(node) for node, _ in states)
                if absent:
                    arguments = [part for one, generation in absent for part in (self._app, one, generation, "ended")]
                    await self.resp.call(*self._keys.command(CONFIRM_SESSIONS, 0, *arguments))
                    ended += len(absent)
        return ended, connected

    async def drop_logs(self) -> None:
        """Ends all logs, which no session needs any more, and removes the sums of the sizes of logs and sessions."""
        async for filters in self._names("lm"):
            for one in filters:
                await self.resp.call("UNLINK", *(self._key(kind, one) for kind in ("lw", "lwa", "l")))
                arguments = self._app, one, "", 0, "", listed_name(one.decode())
                await self.resp.call(*self._keys.command(UNWATCH_LOG, *arguments))
        await self.resp.call("UNLINK", *(self._keys.key(kind, self._app) for kind in ("lb", "lba")))
        await self.resp.call("HDEL", self._keys.key("sb"), self._app, f"{self._app}/a")

    async def drop_retained(self) -> int:
        """Deletes the retained messages and cached events; returns the number of retained messages."""
        count = 0
        for command, kind in (("HSCAN", "kh"), ("ZSCAN", "kc")):
            cursor = b"0"
            while True:
                cursor, found = await self.resp.call(command, self._keys.key(kind, self._app), cursor, "COUNT", MAX_STEP)
                names = found[::2]
                for at in range(0, len(names), MAX_STEP):
                    some = names[at : at + MAX_STEP]
                    await self.resp.call(*self._keys.command(DROP_RETAINED, self._app, *some))
                count += len(names) if kind == "kh" else 0
                if cursor == b"0":
                    break
        return count

    async def drop_histories(self) -> int:
        """Deletes the histories; returns their number."""
        count = 0
        for kind in ("h", "hm"):
            async for channels in self._names(kind):
                await self.resp.call("UNLINK", *(self._key(kind, one) for one in channels))
                count += len(channels) if kind == "hm" else 0
        return count

    async def _names(self, kind: str) -> AsyncIterator[Sequence[bytes]]:
        """Yields the names in the keys of a kind: the parts of the keys after the app."""
        prefix = self._key(kind, b"")
        pattern, cursor = re.sub(rb"([\\*?\[\]^])", rb"\\\1", prefix) + b"*", b"0"
        while True:
            cursor, found = await self.resp.call("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT)
            if found:
                yield [key[len(prefix) :] for key in found]
            if cursor == b"0":
                return

    def _key(self, kind: str, name: bytes) -> bytes:
        return self._keys.key(kind, self._app).encode() + b"/" + name
