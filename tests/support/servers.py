"""The kinds of servers that a broker URL may name: a cluster, and a master with a replica and a sentinel."""

import re
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.valkey import Valkey, program

SECONDS = 30


def is_before_7() -> bool:
    """Returns whether the program of `tests.support.valkey` is a Redis without sharded topics."""
    version = subprocess.run([program(), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r" v=(\d+)\.", version)
    assert found, version
    return int(found[1]) < 7


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline, f"not within {SECONDS} seconds"
        time.sleep(0.05)


class Cluster:
    """Masters that share the slots, each with a replica if `replicas` is set."""

    def __init__(self, count: int = 3, *, replicas: bool = False) -> None:
        if is_before_7():
            pytest.skip("push1st needs Redis 7 for a cluster, and BROKER_SERVER is older")
        self.servers: list[Valkey] = []
        self.replicas: list[Valkey] = []
        for _ in range(count * (2 if replicas else 1)):
            server = Valkey(
                *("--cluster-enabled", "yes", "--cluster-port", str(free_port()), "--cluster-node-timeout", "1500"),
                *("--cluster-replica-no-failover", "no", "--repl-diskless-sync-delay", "0"),
                port=free_port(),
            )
            (self.servers if len(self.servers) < count else self.replicas).append(server)
        each = 16384 // count
        first = self.servers[0]
        for n, server in enumerate(self.servers):
            last = 16383 if n == count - 1 else (n + 1) * each - 1
            server.ask("CLUSTER", "ADDSLOTSRANGE", str(n * each), str(last))
        for server in self.all:
            bus = server.ask("CONFIG", "GET", "cluster-port").split(b"\r\n")[4].decode()
            first.ask("CLUSTER", "MEET", "127.0.0.1", str(server.port), bus)
        known = f"cluster_known_nodes:{len(self.all)}".encode()
        wait(lambda: all(b"cluster_state:ok" in server.ask("CLUSTER", "INFO") for server in self.servers))
        wait(lambda: all(known in one.ask("CLUSTER", "INFO") for one in self.all))
        for master, replica in zip(self.servers, self.replicas, strict=False):
            wait(lambda: replica.ask("CLUSTER", "REPLICATE", self.id(master)) == b"+OK\r\n")  # noqa: B023 - used at once
        wait(lambda: all(b"master_link_status:up" in one.ask("INFO", "replication") for one in self.replicas))

    @property
    def all(self) -> list[Valkey]:
        return [*self.servers, *self.replicas]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.all)

    def id(self, server: Valkey) -> str:
        return server.ask("CLUSTER", "MYID").split(b"\r\n")[1].decode()

    def holders(self, slot: int) -> list[Valkey]:
        """Returns the servers that claim a slot; while the slot moves, two servers or none may claim it."""
        return [one for one in self.all if self._holds(one, slot)]

    def is_master(self, server: Valkey) -> bool:
        return server.is_running and b"role:master" in server.ask("INFO", "replication")

    def replica_of(self, master: Valkey) -> Valkey:
        port = f"master_port:{master.port}".encode()
        (found,) = [one for one in self.all if one.is_running and port in one.ask("INFO", "replication")]
        return found

    def _holds(self, server: Valkey, slot: int) -> bool:
        if not self.is_master(server):
            return False
        _, _, answer = server.ask("CLUSTER", "NODES").partition(b"\r\n")
        (line,) = [line for line in answer.decode().splitlines() if "myself" in line]
        ranges = (one.partition("-") for one in line.split()[8:] if "[" not in one)
        return any(int(first) <= slot <= int(last or first) for first, _, last in ranges)

    def close(self) -> None:
        for server in self.all:
            server.close()


Move = Callable[[Cluster, int, Valkey, Valkey], None]
"""a function that moves a slot of a cluster from one master to another"""


def key_by_key(cluster: Cluster, slot: int, source: Valkey, target: Valkey) -> None:
    """Moves a slot like `redis-cli --cluster reshard`."""
    assert target.ask("CLUSTER", "SETSLOT", str(slot), "IMPORTING", cluster.id(source)) == b"+OK\r\n"
    assert source.ask("CLUSTER", "SETSLOT", str(slot), "MIGRATING", cluster.id(target)) == b"+OK\r\n"
    time.sleep(0.3)
    while keys := source.ask("CLUSTER", "GETKEYSINSLOT", str(slot), "1").split(b"\r\n")[2:-1:2]:
        moved = source.ask("MIGRATE", "127.0.0.1", str(target.port), keys[0].decode(), "0", "1000")
        assert moved in (b"+OK\r\n", b"+NOKEY\r\n"), moved
        time.sleep(0.02)
    for server in (target, source, *cluster.all):
        server.ask("CLUSTER", "SETSLOT", str(slot), "NODE", cluster.id(target))


def at_once(cluster: Cluster, slot: int, source: Valkey, target: Valkey) -> None:
    """Moves a slot in one step, like Valkey since version 9."""
    if b"migrateslots" not in source.ask("CLUSTER", "HELP").lower():
        pytest.skip("this server moves slots key by key; Valkey 9 and later move a slot in one step")
    answer = source.ask("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", str(slot), str(slot), "NODE", cluster.id(target))
    assert answer == b"+OK\r\n", answer
    wait(lambda: cluster.holders(slot) == [target])


class Watched:
    """A master, its replica, and the sentinel that promotes the replica when the master fails."""

    def __init__(self, folder: Path) -> None:
        self.master = Valkey(port=free_port())
        self.replica = Valkey(
            "--replicaof", "127.0.0.1", str(self.master.port), "--repl-diskless-sync-delay", "0", port=free_port()
        )
        config = folder / "sentinel.conf"
        config.write_text(
            f"sentinel monitor shop 127.0.0.1 {self.master.port} 1\nsentinel down-after-milliseconds shop 500\n"
            "sentinel failover-timeout shop 5000\n"
        )
        self.sentinel = Valkey(config=config, port=free_port())
        wait(lambda: b"master_link_status:up" in self.replica.ask("INFO", "replication"))
        wait(lambda: b"slaves=1" in self.sentinel.ask("INFO", "sentinel"))

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:1,127.0.0.1:{self.sentinel.port}/shop/0"

    def close(self) -> None:
        for server in (self.sentinel, self.replica, self.master):
            server.close()
