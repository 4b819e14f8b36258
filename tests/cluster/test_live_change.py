"""A reload applies apps and the log in the running workers: clients that are not concerned stay connected."""

import contextlib
import http.client
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.cluster.machine import command, connect_to, figure, kill, reconfigure, start_reload, supervisor, until_workers, workers
from tests.contract.xhr import SUBSCRIBE, frames, open_session, xhr
from tests.support import mqtt_socket
from tests.support.process import APP, DEADLINE, PUSH1ST, ServerProcess, free_ports, merged, running, wait_until
from tests.support.pusher_socket import pusher_socket
from tests.support.raw_socket import raw_socket

APPS: dict[str, dict[str, Any]] = {
    "app-test": APP,
    "gone": {**APP, "key": "gone-key"},
    "off": {**APP, "key": "off-key"},
}
CANARY = "canary-0123456789-0123456789-0123456789"


@contextlib.contextmanager
def serving(workers: int) -> Iterator[ServerProcess]:
    (port,) = free_ports(1)
    config = {"server": {"workers": workers, "proto": ["pusher", "websocket", "sse", "mqtt"]}}
    with running(merged(config, {"server": {"mqtt": {"listen": f"tcp://127.0.0.1:{port}"}}}), APPS) as server:
        server.mqtt_port = port  # type: ignore[attr-defined]
        if workers > 1:
            until_workers(server, workers)
        yield server


def write_apps(server: ServerProcess, apps: dict[str, Any]) -> None:
    (server.folder / "apps" / "apps.yml").write_text(yaml.safe_dump(apps))


@pytest.fixture(params=[1, 2], ids=["one worker", "two workers"])
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with serving(request.param) as server:
        yield server


class Stream:
    """An event stream on the channel `c`."""

    def __init__(self, server: ServerProcess, stack: contextlib.ExitStack) -> None:
        connection = stack.enter_context(
            contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.ws_port, timeout=DEADLINE))
        )
        connection.request("GET", "/sse/app/app-key/c")
        self.response = connection.getresponse()
        assert self.response.status == 200

    def expect(self, text: bytes) -> None:
        while text not in (line := self.response.readline()):
            assert line, "the stream has ended"


def test_a_reload_in_place_keeps_the_clients_of_all_protocols(server: ServerProcess) -> None:
    before = workers(server)
    with contextlib.ExitStack() as stack:
        pushers = [stack.enter_context(pusher_socket(server)) for _ in range(4)]
        for pusher in pushers:
            pusher.subscribe("c")
        raw = stack.enter_context(raw_socket(server, "c"))
        device = stack.enter_context(mqtt_socket.connected(server.mqtt_port, 5, "device"))  # type: ignore[attr-defined]
        device.subscribe("c", 1)
        stream = Stream(server, stack)
        open_session(server.ws_port)
        with xhr(server.ws_port, "xhr_send", SUBSCRIBE) as sent:
            assert sent.status == 200
        fallback = stack.enter_context(xhr(server.ws_port, "xhr_streaming"))
        leaving = [stack.enter_context(pusher_socket(server, key)) for key in ("gone-key", "off-key")]
        server.until_sessions("c", 8)

        changed = {**APP, "secret": CANARY, "limits": {"publishes": 5}, "name": "new"}
        write_apps(server, {"app-test": changed, "off": {**APPS["off"], "enable": False}, "more": {**APP, "key": "more-key"}})
        reconfigure(server, {"log": {"level": "debug"}})
        done = command(server)

        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[1:] == [
            "log.level",
            "app app-test: secret, name, limits.publishes",
            "app gone: removed, its clients are disconnected",
            "app off: disabled, its clients are disconnected",
            "app more: added",
            f"reloaded in place: {max(1, len(before))} worker{'s' * (len(before) > 1)}",
        ]
        assert [client.close_code() for client in leaving] == [4003, 4003]
        server.publish("c", "e", {"id": 7})
        for pusher in pushers:
            assert pusher.expect("e", "c") == {"id": 7}
        assert raw.expect("e", "c") == {"id": 7}
        stream.expect(b"id")
        device.discard()
        while not (line := fallback.fp.readline()).startswith(b"a") or frames(line)[0]["event"] != "e":
            assert line
        with pusher_socket(server, "more-key") as more:
            more.subscribe("c")
        for _ in range(4):  # on each worker
            assert server.signed("GET", "/apps/app-test/channels").status == 401
            assert server.signed("GET", "/apps/app-test/channels", secret=CANARY).status == 200
            assert server.get("/apps/gone/channels").status == 404
            assert server.get("/apps/off/channels").status == 403
        statuses = [server.post("/apps/app-test/events", {"name": "e", "channels": ["c"], "data": 1}).status for _ in range(30)]
        assert 429 in statuses
        assert pushers[0].receive()["event"] == "e"
    if before:
        assert workers(server) == before
    assert CANARY not in server.output
    assert CANARY not in done.stdout


def test_keys_that_need_a_restart_change_nothing_with_one_worker(channel: str) -> None:
    with serving(1) as server, pusher_socket(server) as client:
        client.subscribe(channel)
        reconfigure(server, {"server": {"drain": 3, "outbox": 9999}})
        write_apps(server, {"app-test": {**APP, "secret": CANARY}})
        done = command(server)
        assert done.returncode == 1
        assert "a restart is needed for server.drain, server.outbox" in done.stderr
        assert "reload refused" in server.output
        assert server.signed("GET", "/apps/app-test/channels").status == 200, "the apps are as before, too"
        refused = command(server, "--workers")
        assert refused.returncode == 1
        reconfigure(server, {"server": {"drain": 1, "outbox": 1_048_576}})
        assert command(server).returncode == 0
        assert command(server, "--workers").returncode == 1
        assert server.signed("GET", "/apps/app-test/channels", secret=CANARY).status == 200
        assert server.publish(channel, "e", 1).status == 200
        assert client.expect("e", channel) == 1
        text = server.get("/metrics").body.decode()
        assert 'push1st_reloads_total{result="applied"} 1.0' in text
        assert 'push1st_reloads_total{result="refused"} 3.0' in text
        assert figure(server, "push1st_last_reload_success_timestamp_seconds") > 0


def test_a_mistake_changes_nothing_on_any_worker(server: ServerProcess) -> None:
    (server.folder / "apps" / "more.yml").write_text("more: {key: more-key, secret: s, limits: {publishes: many}}\n")
    with pusher_socket(server, "gone-key") as client:
        write_apps(server, {"app-test": APP})
        done = command(server)
        assert done.returncode == 1
        assert "limits.publishes" in done.stderr
        client.subscribe("c")


def test_the_only_app_can_be_disabled_and_enabled_again(server: ServerProcess, channel: str) -> None:
    with pusher_socket(server) as client:
        write_apps(server, {"app-test": {**APP, "enable": False}})
        done = command(server)
        assert (done.returncode, done.stderr) == (0, "")
        assert client.close_code() == 4003
    write_apps(server, {"app-test": APP})
    assert command(server).returncode == 0
    with pusher_socket(server) as client:
        client.subscribe(channel)


def test_a_signal_applies_the_changes_too(server: ServerProcess) -> None:
    with pusher_socket(server, "gone-key") as client:
        write_apps(server, {"app-test": APP})
        kill(supervisor(server), signal.SIGHUP)
        assert client.close_code() == 4003
        wait_until(lambda: "reloaded" in server.output, "the log has the result")


def test_a_worker_that_crashes_after_a_reload_returns_with_the_new_apps(own: ServerProcess) -> None:
    (own.folder / "apps" / "more.yml").write_text("more: {key: more-key, secret: more-secret}\n")
    assert command(own).returncode == 0
    first = workers(own)[0]
    kill(first)
    wait_until(lambda: workers(own).get(0) not in (None, first), "another worker runs")
    until_workers(own, 2)
    with contextlib.ExitStack() as stack:
        for number in (0, 1):
            connect_to(own, number, stack)
        for _ in range(8):
            stack.enter_context(pusher_socket(own, "more-key"))


def test_a_removed_app_that_comes_back_has_its_history_and_retained_messages(server: ServerProcess) -> None:
    apps = {"app-test": APP, "gone": {**APPS["gone"], "history": [{"filter": ["kept"], "size": 5}]}}
    write_apps(server, apps)
    assert command(server).returncode == 0
    event = {"name": "e", "channels": ["kept"], "data": "1"}
    assert server.post("/apps/gone/events", event).status == 200
    for number, some in enumerate(({"app-test": APP}, apps)):
        write_apps(server, some)
        assert command(server).returncode == 0
        assert server.get("/apps/gone/channels").status == (404, 200)[number]
    answer = server.get("/apps/gone/channels/kept/history")
    assert [one["data"] for one in answer.json["events"]] == ["1"]


@pytest.mark.long
def test_a_worker_that_does_not_answer_is_named_and_nothing_changes(own: ServerProcess) -> None:
    (own.folder / "apps" / "more.yml").write_text("more: {key: more-key, secret: more-secret}\n")
    stopped = workers(own)[1]
    kill(stopped, signal.SIGSTOP)
    with start_reload(own) as process:
        _, said = process.communicate(timeout=30)
    kill(stopped, signal.SIGCONT)
    assert process.returncode == 1
    assert "worker 1 did not answer within 10 s" in said
    wait_until(lambda: own.get("/health").status == 200, "it serves")
    for _ in range(8):
        assert own.get("/apps/more/channels").status == 404
    assert command(own).returncode == 0
    assert own.get("/apps/more/channels").status == 200


def test_the_command_finds_the_server_however_its_configuration_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """A relative path, a path with `..`, and a link name the same file."""
    with serving(1) as server:
        (tmp_path / "link.yml").symlink_to(server.folder / "server.yml")
        monkeypatch.chdir(server.folder)
        for name in ("server.yml", "apps/../server.yml", str(tmp_path / "link.yml")):
            done = subprocess.run([*PUSH1ST, "reload", "-c", name], capture_output=True, text=True, timeout=30)
            assert (done.returncode, done.stderr) == (0, ""), name
