"""Servers of the kinds a broker's URL may name: a cluster, and a master with a replica and a sentinel."""

import socket
import time
from collections.abc import Callable
from pathlib import Path

from tests.valkey import Valkey

SECONDS = 30


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
    """Three masters that share the slots."""

    def __init__(self, count: int = 3) -> None:
        self.servers = []
        for _ in range(count):
            bus = str(free_port())
            self.servers.append(
                Valkey("--cluster-enabled", "yes", "--cluster-port", bus, "--cluster-node-timeout", "2000", port=free_port())
            )
        each = 16384 // count
        first = self.servers[0]
        for n, server in enumerate(self.servers):
            last = 16383 if n == count - 1 else (n + 1) * each - 1
            server.ask("CLUSTER", "ADDSLOTSRANGE", str(n * each), str(last))
            bus = server.ask("CONFIG", "GET", "cluster-port").split(b"\r\n")[4].decode()
            first.ask("CLUSTER", "MEET", "127.0.0.1", str(server.port), bus)
        wait(lambda: all(b"cluster_state:ok" in server.ask("CLUSTER", "INFO") for server in self.servers))
        wait(lambda: all(f"cluster_known_nodes:{count}".encode() in one.ask("CLUSTER", "INFO") for one in self.servers))

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers)

    def close(self) -> None:
        for server in self.servers:
            server.close()


class Watched:
    """A master, its replica, and the sentinel that makes the replica the master when the first is gone."""

    def __init__(self, folder: Path) -> None:
        self.master = Valkey(port=free_port())
        self.replica = Valkey("--replicaof", f"127.0.0.1 {self.master.port}", "--repl-diskless-sync-delay", "0", port=free_port())
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
