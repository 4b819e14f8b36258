"""`push1st app remove --purge` on running servers, with the embedded engine and without a broker."""

import contextlib
import subprocess
from collections.abc import Iterator

import yaml

from tests.cluster.machine import machine
from tests.support import mqtt_socket
from tests.support.process import APP, PUSH1ST, ServerProcess, free_ports, running
from tests.support.pusher_socket import pusher_socket

GONE = {**APP, "key": "gone-key", "history": {"size": 10, "ttl": 300}}


@contextlib.contextmanager
def serving(workers: int) -> Iterator[ServerProcess]:
    """Runs a server with an app that has a history and an absent MQTT session, and with a connected client of this app."""
    (port,) = free_ports(1)
    config = {"server": {"proto": ["pusher", "mqtt"], "mqtt": {"listen": f"tcp://127.0.0.1:{port}"}}}
    with running(config) if workers == 1 else machine(workers, config) as server:
        (server.folder / "apps" / "gone.yml").write_text(yaml.safe_dump({"gone": GONE}))
        assert push1st(server, "reload").returncode == 0
        assert server.post("/apps/gone/events", {"name": "e", "channels": ["c"], "data": "x"}).status == 200
        with mqtt_socket.connected(port, 4, "device", username="gone-key", clean=False) as device:
            device.subscribe("c", 1)
            device.send(bytes((0xE0, 0)))
            device.expect_end()
        yield server


def push1st(server: ServerProcess, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [*PUSH1ST, *arguments, "-c", str(server.folder / "server.yml")]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_purge_waits_for_the_clients_of_the_app_and_deletes_its_data_in_the_engine() -> None:
    with serving(2) as server, pusher_socket(server, "gone-key") as client:
        client.subscribe("c")
        done = push1st(server, "app", "remove", "gone", "--yes", "--purge")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[-1] == "purged gone: 1 sessions, 0 retained messages, 1 histories"
        assert client.close_code() == 4003
        again = push1st(server, "app", "remove", "gone", "--yes", "--purge", "--json")
        assert again.stdout.splitlines()[-1] == '{"id": "gone", "in_use": 0, "sessions": 0, "retained": 0, "histories": 0}'


def test_without_a_broker_purge_says_where_the_data_are() -> None:
    with serving(1) as server:
        done = push1st(server, "app", "remove", "gone", "--yes", "--purge")
        assert done.returncode == 0
        assert "there is no broker: a server with one worker keeps all data in its memory" in done.stderr
