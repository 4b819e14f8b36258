"""What the servers of a Redis broker report about themselves, on one server and on a cluster."""

import re

from push1st.brokers.redis import Redis
from tests.contract.redis import cluster, redis_broker, valkey

SLOTS = 16_384


async def opened(url: str, node: str = "node") -> Redis:
    broker = redis_broker(url, node=node)
    await broker.open(lambda _: 1, lambda _: None, lambda *_: b"", lambda *_: None)
    return broker


async def test_one_server_reports_itself_and_the_lease_of_the_node() -> None:
    broker = await opened(valkey().url)
    (server,) = await broker.servers.details()
    assert server.address == valkey().path
    assert server.version.split()[0] in ("Valkey", "Redis")
    assert (server.role, server.slots, server.memory_most) == ("master", None, 0)
    assert 0 < server.rtt_ms < 10_000
    assert server.memory > 0
    assert server.clients > 0
    leases = await broker.servers.leases(["node", "nobody"])
    assert list(leases) == ["node"]
    assert leases["node"] > 0
    await broker.close()
    assert await broker.servers.details() == []
    assert await broker.servers.leases(["node"]) == {}


async def test_each_server_of_a_cluster_reports_its_slots() -> None:
    broker = await opened(cluster().url)
    servers = await broker.servers.details()
    assert {one.address for one in servers} == {f"127.0.0.1:{one.port}" for one in cluster().servers}
    assert sum(one.slots or 0 for one in servers) == SLOTS
    assert list(await broker.servers.leases(["node"])) == ["node"]
    await broker.close()


async def test_second_node_loads_no_script_again() -> None:
    def loaded() -> list[bytes]:
        return re.findall(rb"script\|load:calls=(\d+)", valkey().ask("INFO", "commandstats"))

    valkey().ask("SCRIPT", "FLUSH")  # earlier tests may have loaded the scripts of this server
    first = await opened(valkey().url)
    before = loaded()
    second = await opened(valkey().url, "second")
    assert loaded() == before != []
    await first.close()
    await second.close()
