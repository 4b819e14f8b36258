"""What the servers of a broker report about themselves, for the console: memory, clients, persistence, slots."""

import contextlib
import time
from collections.abc import Sequence
from typing import Any

import hiredis

from push1st.brokers.redis.resp import ConnectionLost
from push1st.brokers.redis.shard import Shard
from push1st.status import BrokerDetails

MAX_LEASES = 1000
"""the maximum number of nodes whose leases are read at once"""


class BrokerServers:
    """The servers of the broker. Both methods wait for the servers without a time limit."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = shards

    async def details(self) -> list[BrokerDetails]:
        """Sends INFO to each server that is connected, and returns what the servers report."""
        found: dict[str, BrokerDetails] = {}
        for shard in self._shards:
            resp = shard.connection.established
            if resp is None or resp.peer in found:
                continue
            with contextlib.suppress(hiredis.ReplyError, ConnectionLost):
                began = time.perf_counter()
                await resp.call("PING")
                rtt = (time.perf_counter() - began) * 1000
                about = _fields(await resp.call("INFO"))
                slots = None
                if about.get("cluster_enabled") == "1":
                    slots = sum(_own_slots(node) for node in (await resp.call("CLUSTER", "NODES")).decode().splitlines())
                found[resp.peer] = _details(resp.peer, about, rtt, slots)
        return list(found.values())

    async def leases(self, nodes: Sequence[str]) -> dict[str, float]:
        """Returns the seconds until the leases of nodes expire, by name; nodes without a lease are missing.

        nodes: at most `MAX_LEASES` of them are read.
        """
        shard = self._shards[0]
        resp = shard.connection.established
        if resp is None:
            return {}
        with contextlib.suppress(hiredis.ReplyError, ConnectionLost):
            sent = [(node, resp.call("PTTL", shard.keys.key("lease", node))) for node in nodes[:MAX_LEASES]]
            return {node: left / 1000 for node, reply in sent if (left := await reply) >= 0}
        return {}


def _fields(info: Any) -> dict[str, str]:
    lines = (line.partition(":") for line in str(info, "utf-8", "replace").splitlines() if ":" in line)
    return {name: value.strip() for name, _, value in lines}


def _own_slots(node: str) -> int:
    """Returns the number of slots in a line of CLUSTER NODES about the server that sends the line; 0 for other servers."""
    words = node.split(" ")
    if len(words) < 8 or "myself" not in words[2]:
        return 0
    total = 0
    for word in words[8:]:
        first, _, last = word.partition("-")
        if first.isdigit():
            total += int(last or first) - int(first) + 1
    return total


def _details(address: str, about: dict[str, str], rtt: float, slots: int | None) -> BrokerDetails:
    def number(name: str) -> int:
        value = about.get(name, "0")
        return int(value) if value.isdigit() else 0

    name = "Valkey" if "valkey_version" in about else "Redis"
    saves = ["append-only file"] if about.get("aof_enabled") == "1" else []
    saves += ["snapshots"] if number("rdb_saves") or number("rdb_last_cow_size") else []
    return BrokerDetails(
        address=address,
        version=f"{name} {about.get('valkey_version') or about.get('redis_version', '')}".strip(),
        role=about.get("role", ""),
        rtt_ms=round(rtt, 3),
        memory=number("used_memory"),
        memory_most=number("maxmemory"),
        policy=about.get("maxmemory_policy", ""),
        persistence=" and ".join(saves) or "no append-only file, no snapshot yet",
        clients=number("connected_clients"),
        ops=number("instantaneous_ops_per_sec"),
        slots=slots,
    )
