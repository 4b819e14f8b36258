"""The purge of a removed app. The broker of a single worker has no purge, because its data end with the process."""

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from push1st.brokers import Purged
from push1st.brokers.redis.purge import RedisPurge
from push1st.brokers.retained import Retain
from push1st.brokers.sessions import Claim, Owner, SavedSession, SavedSubscription
from push1st.config.history import HistorySection
from push1st.errors import Refused
from push1st.messages import KeptMessage, MqttFields, MqttMessage
from tests.contract.redis import NOW, cluster, new_prefix, redis_broker, valkey
from tests.support.servers import Watched

A, B = "app-a", "app-b"
APPS = (A, B, "app", "app-a*", "*")
"""the ids resemble each other, and contain wildcards of SCAN"""
FILTERS = ("sensors.kitchen", "sensors.#", "$share/team/sensors.+")
OWNERS = (Owner("user", "ada"), Owner("anonymous"))
DEVICES = 120
SECTION = HistorySection(size=10, ttl=300)


class Filled:
    """A broker with the data of several apps."""

    def __init__(self, url: str) -> None:
        prefix = new_prefix()
        self.url = f"{url}?prefix={prefix}"
        self.broker = redis_broker(url, prefix=prefix)
        self._id = 0

    async def fill(self, app: str, devices: int = 2) -> None:
        for number in range(devices):
            await self.absent(app, f"device-{number}", OWNERS[number % 2], FILTERS if number < 2 else ())
        for number, channel in enumerate(("a", "b/c", "sensors.kitchen")):
            self._id += 1024
            message = MqttMessage(app, channel, "message", b"1", NOW + self._id, NOW, sender="1.1", mqtt=MqttFields(1, True))
            await self.broker.publish(message, None, "", Retain(is_anonymous=number == 1, address="192.0.2.1"))
        for channel in ("h", "i"):
            self._id += 1024
            await self.broker.publish(KeptMessage(app, channel, "e", b"1", NOW + self._id, NOW), SECTION, "")
        self._id += 1024
        await self.broker.publish(KeptMessage(app, "cache-c", "e", b"1", NOW + self._id, NOW), None, "")

    async def connect(self, app: str, client: str, owner: Owner = OWNERS[0]) -> int:
        claimed = await self.broker.sessions.claim(app, client, Claim(owner, expiry=3600))
        return claimed.generation

    async def absent(self, app: str, client: str, owner: Owner, filters: tuple[str, ...]) -> None:
        sessions, generation, subscriptions = self.broker.sessions, await self.connect(app, client, owner), []
        for filter in filters:
            cursor = await sessions.logs.watch(app, client, generation, filter, owner.kind == "anonymous")
            subscriptions.append(SavedSubscription(filter, 1, cursor=cursor))
        await sessions.save(app, client, generation, SavedSession(3600, tuple(subscriptions)))

    async def purge(self, app: str) -> Purged:
        return await RedisPurge(self.url).purge(app)

    async def keys(self) -> dict[str, Any]:
        """Returns the keys of all shards with their types, and the fields of two hashes of all apps."""
        found: dict[str, Any] = {}
        for shard in self.broker._shards.all:
            call, base = shard.connection.call, shard.keys.base
            for key in await call("KEYS", f"{base}:*"):
                found[f"{shard.tag} {key.decode()[len(base) + 1 :]}"] = await call("TYPE", key)
            for kind in ("sb", "f"):
                for field, value in (await call("HGETALL", f"{base}:{kind}")).items():
                    found[f"{shard.tag} {kind}: {field.decode()}"] = value
        return found


@asynccontextmanager
async def filled(url: str) -> AsyncIterator[Filled]:
    site = Filled(url)
    await site.broker.open(lambda _: 1, lambda _: None, lambda *_: b"", lambda *_: None)
    try:
        yield site
    finally:
        await site.broker.close()


SERVERS: dict[str, Callable[[], Any]] = {"redis": valkey, "redis-cluster": cluster}


@pytest.fixture(params=SERVERS)
def url(request: pytest.FixtureRequest) -> str:
    url: str = SERVERS[request.param]().url
    return url


def of(app: str, keys: dict[str, Any]) -> dict[str, Any]:
    """Returns the keys of one app that are not only the generation of an ended session."""
    return {
        key: value
        for key, value in keys.items()
        if f":{app}/" in key or f" {app}/" in key or key.endswith((f":{app}", f" {app}"))
    }


@pytest.mark.parametrize("app", [A, "app-a*", "*"])
async def test_purge_deletes_the_data_of_one_app_and_no_other_data(url: str, app: str) -> None:
    async with filled(url) as site:
        for one in APPS:
            await site.fill(one)
        before = await site.keys()
        assert {key.split()[1].partition(":")[0] for key in of(app, before)} >= {
            "s",
            "ss",
            "l",
            "lm",
            "lw",
            "kh",
            "k",
            "h",
            "hm",
            "sb",
            "f",
        }
        assert await site.purge(app) == Purged(0, 2, 3, 2)
        after = await site.keys()
        left = {key.split()[1].partition(":")[0] for key in of(app, after)}
        assert left == {"s"}, "the generation of an ended session stays for a minute"
        for one in {*APPS} - {app}:
            assert of(one, after) == of(one, before)


async def test_purge_of_many_sessions_runs_in_steps(url: str) -> None:
    async with filled(url) as site:
        await site.fill(A, DEVICES)
        assert (await site.purge(A)).sessions == DEVICES
        assert await site.purge(A) == Purged(0)


async def test_purge_deletes_nothing_else_while_a_client_is_connected(url: str) -> None:
    async with filled(url) as site:
        await site.fill(A)
        generation = await site.connect(A, "connected")
        assert await site.purge(A) == Purged(1, 2)
        assert await site.broker.retained.names(A)
        await site.broker.sessions.end(A, "connected", generation, ())
        assert await site.purge(A) == Purged(0, 0, 3, 2)
        assert not await site.broker.retained.names(A)


async def test_purge_deletes_nothing_else_while_a_channel_has_subscribers(url: str) -> None:
    async with filled(url) as site:
        await site.fill(A)
        await site.broker.join(A, "c", "1.1", None, 0)
        assert (await site.purge(A)).in_use == 1
        await site.broker.leave(A, "c", "1.1", None)
        assert await site.purge(A) == Purged(0, 0, 3, 2)


async def test_an_app_works_again_after_a_purge(url: str) -> None:
    async with filled(url) as site:
        await site.fill(A)
        await site.purge(A)
        await site.fill(A)
        assert await site.purge(A) == Purged(0, 2, 3, 2)


async def test_purge_finds_the_master_through_sentinel(tmp_path: Path) -> None:
    with contextlib.closing(Watched(tmp_path)) as watched:
        async with filled(watched.url) as site:
            await site.fill(A)
            assert await site.purge(A) == Purged(0, 2, 3, 2)


async def test_purge_without_a_broker_is_refused() -> None:
    with pytest.raises(Refused, match=r"the broker cannot be used: server 127\.0\.0\.1:1: "):
        await RedisPurge("redis://127.0.0.1:1").purge(A)
