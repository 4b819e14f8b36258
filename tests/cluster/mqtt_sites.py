"""Servers with an MQTT address that share a broker: the places of the devices of `tests/support/mqtt_devices.py`."""

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tests.cluster.machine import machine
from tests.cluster.machine import workers as workers_of
from tests.support.mqtt_counts import Counts, pending, verify
from tests.support.mqtt_devices import Device, Fleet
from tests.support.process import APP, ServerProcess, free_ports, merged, running, wait_until
from tests.support.valkey import Valkey

SETTLED_SECONDS = 20
"""the maximum seconds until all acknowledged messages have arrived"""


class MqttServer:
    """A server. port: the port for MQTT."""

    def __init__(self, server: ServerProcess, port: int) -> None:
        self.server = server
        self.port = port

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers. The only worker of a server is the process of the server itself."""
        assert self.server.process is not None
        return list(workers_of(self.server).values()) or [self.server.process.pid]

    def kill(self) -> None:
        """Kills the server with its only worker, which then does not run until `start`."""
        self.server.signal(signal.SIGKILL)
        self.server.wait()

    def start(self) -> None:
        self.server.start()

    def pause(self) -> None:
        """Stops all workers with SIGSTOP."""
        for pid in self.pids:
            os.kill(pid, signal.SIGSTOP)

    def go_on(self) -> None:
        for pid in self.pids:
            os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def mqtt_server(
    broker: str | Valkey | None, workers: int = 1, config: Mapping[str, Any] | None = None, **app: Any
) -> Iterator[MqttServer]:
    """Runs a server. broker: its URL; None: the embedded engine. app: changes of the app `app-test`."""
    port = free_ports(1)[0]
    mqtt = {"listen": f"tcp://127.0.0.1:{port}", "push": ["public", "private", "presence"], "publishes": 0, "queue": 100_000}
    base: dict[str, Any] = {"server": {"proto": ["pusher", "websocket", "mqtt"], "mqtt": mqtt, "drain": 0, "outbox": 64 << 20}}
    if broker is not None:
        base["broker"] = broker.url if isinstance(broker, Valkey) else broker
    apps = {"app-test": merged(APP, app)}
    found = merged(base, config or {})
    with running(found, apps) if workers == 1 else machine(workers, found, apps) as server:
        yield MqttServer(server, port)


@contextlib.contextmanager
def mqtt_servers(broker: str | Valkey, count: int = 2, **options: Any) -> Iterator[list[MqttServer]]:
    """Runs servers with one worker each."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(mqtt_server(broker, **options)) for _ in range(count)]


def until_total(sites: Iterable[MqttServer], name: str, value: float) -> None:
    """Waits until a metric, summed over all workers and labels, has a value. name: see `total`."""
    wait_until(lambda: sum(total(site, name) for site in sites) == value, f"{name} is {value}")


def total(server: MqttServer, name: str) -> float:
    """Returns a metric, summed over its labels. name: the name with the beginning of its labels."""
    text = server.server.get("/metrics").body.decode()
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


def settle(
    devices: Fleet,
    receivers: Iterable[Device | Sequence[Device]],
    publishers: Sequence[Device],
    deadline: float = SETTLED_SECONDS,
    **expected: Any,
) -> list[Counts]:
    """Stops the publishers, waits until all acknowledged messages have arrived, and checks the counts; see `verify`."""
    devices.until_acknowledged()
    receivers = tuple(receivers)
    end = time.monotonic() + deadline
    while pending(receivers, publishers) and time.monotonic() < end:
        time.sleep(0.1)
    return verify(receivers, publishers, **expected)


def settle_group(
    devices: Fleet, members: Sequence[Device], publishers: Sequence[Device], deadline: float = SETTLED_SECONDS
) -> Counts:
    """Does the same for the members of a shared group together. Messages of different members have no common order."""
    devices.until_acknowledged()
    end = time.monotonic() + deadline
    while pending([members], publishers) and time.monotonic() < end:
        time.sleep(0.1)
    counts = Counts(members, publishers)
    assert not counts.missing, (counts, counts.missing[:10])
    assert counts.unknown == []
    return counts
