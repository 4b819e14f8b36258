"""The promises of docs/scaling.md about MQTT clients: what remains when the broker, a worker or the server ends."""

import contextlib
import shutil
import signal
from typing import Any

import pytest

from tests.cluster.machine import engine, exists, kill, machine
from tests.support.paho import V311, paho_client
from tests.support.process import ServerProcess, free_ports, running, wait_until

ALL = ["public", "private", "presence"]


def settings(port: int) -> dict[str, Any]:
    mqtt = {"listen": f"tcp://127.0.0.1:{port}", "push": ALL, "publishes": 0}
    return {"server": {"proto": ["pusher", "websocket", "mqtt"], "mqtt": mqtt}}


@pytest.fixture
def own() -> int:
    """A port for MQTT."""
    return free_ports(1)[0]


def kill_engine(server: ServerProcess) -> None:
    """Kills the embedded engine, and waits for the next one."""
    before, ready = engine(server), server.output.count("engine ready")
    kill(before)
    wait_until(lambda: not exists(before) and server.output.count("engine ready") > ready, "another engine is there", 40)


def test_acknowledged_mqtt_messages_are_delivered_when_the_engine_is_killed(own: int) -> None:
    with machine(2, settings(own)) as server, contextlib.ExitStack() as stack:
        receivers = [stack.enter_context(paho_client(own, V311)) for _ in range(4)]
        for number, receiver in enumerate(receivers):
            assert receiver.subscribe("+" if number % 2 else "kept", qos=1) == [1]
        sender = stack.enter_context(paho_client(own, V311, "sender"))
        for number in range(200):
            sender.publish("kept", str(number), qos=1)
            if number == 100:
                kill_engine(server)
        sender.until_acknowledged()
        for receiver in receivers:
            received: set[int] = set()
            while len(received) < 200:  # some messages come twice if the sender repeats them on a new connection
                received.add(int(receiver.expect()[1]))
            assert received == set(range(200))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_retained_messages_end_with_the_only_worker(own: int, number: signal.Signals) -> None:
    server = ServerProcess(settings(own)).start()
    for is_first in (True, False):
        with paho_client(own, V311) as client:
            if is_first:
                client.publish("lamp", "on", qos=1, retain=True)
                client.until_acknowledged()
            assert client.subscribe("lamp", "end", qos=1) == [1, 1]
            client.publish("end", "")
            assert [client.expect()[0] for _ in range(1 + is_first)] == (["lamp", "end"] if is_first else ["end"])
        server.signal(number)
        server.wait()
        if is_first:
            server.start()
    shutil.rmtree(server.folder)


@pytest.mark.parametrize("qos", [1, 2])
def test_absent_client_receives_acknowledged_messages_when_it_returns(own: int, qos: int) -> None:
    with running(settings(own)), paho_client(own, V311) as sender:
        with paho_client(own, V311, "absent", clean=False) as client:
            client.subscribe("kept", qos=qos)
        for number in range(100):
            sender.publish("kept", str(number), qos=qos)
        sender.until_acknowledged()
        with paho_client(own, V311, "absent", clean=False) as client:
            assert [int(client.expect()[1]) for _ in range(100)] == list(range(100))
            sender.publish("kept", "live", qos=qos)
            assert client.expect()[1] == b"live"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_sessions_end_with_the_only_worker(own: int, number: signal.Signals) -> None:
    server = ServerProcess(settings(own)).start()
    with paho_client(own, V311, "absent", clean=False) as client:
        client.subscribe("kept", qos=1)
    server.signal(number)
    server.wait()
    server.start()
    with paho_client(own, V311) as sender, paho_client(own, V311, "absent", clean=False) as client:
        sender.publish("kept", "x", qos=1)
        sender.until_acknowledged()
        client.subscribe("end", qos=1)
        sender.publish("end", "y", qos=1)
        assert client.expect() == ("end", b"y")
    server.signal(number)
    server.wait()
    shutil.rmtree(server.folder)
