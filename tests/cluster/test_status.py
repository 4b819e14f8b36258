"""`push1st status` with real servers: by the control socket and by the API, with one worker and with several."""

import json
import os
import re
import signal
import subprocess
from typing import Any

import pytest

from tests.support.console import Operator
from tests.support.paho import V5, paho_client
from tests.support.process import APP, DEADLINE, PUSH1ST, ServerProcess, free_ports, push1st, running, wait_until
from tests.support.pusher_socket import pusher_socket
from tests.support.valkey import Valkey

CANARY = "canary-4711-with-more-than-32-bytes-of-text"
HIDDEN = {
    **APP,
    "secret": [f"{CANARY}-a", f"{CANARY}-b"],
    "key": "hidden-key",
    "webhooks": [{"url": f"http://u:{CANARY}-c@127.0.0.1:9/", "headers": {"Authorization": f"{CANARY}-d"}}],
    "hook": {"trigger": ["join"], "endpoint": [f"http://u:{CANARY}-e@127.0.0.1:9/"]},
    "authorize": [{"url": f"http://u:{CANARY}-f@127.0.0.1:9/", "on": ["subscribe"], "headers": {"X-Key": f"{CANARY}-g"}}],
}


def status(server: ServerProcess, *options: str, code: int = 0) -> Any:
    """Returns the state of a server as JSON."""
    return json.loads(push1st("status", "--json", *(options or ("-c", str(server.folder / "server.yml"))), code=code).stdout)


def until_ready(server: ServerProcess, workers: int) -> Any:
    """Waits until all workers have started; returns the state of the server. workers: their number."""
    command = [*PUSH1ST, "status", "--json", "-c", str(server.folder / "server.yml")]

    def ready() -> Any:
        found = json.loads(subprocess.run(command, capture_output=True, check=False, timeout=DEADLINE).stdout)
        return found if found["ready"] and len(found["workers"]) == workers else None

    return wait_until(ready, "all workers answer")


@pytest.mark.parametrize("workers", [1, 2])
def test_status_shows_the_same_by_the_control_socket_and_by_the_api(workers: int) -> None:
    with running({"server": {"workers": workers}}) as server:
        until_ready(server, workers)
        with pusher_socket(server, "app-key") as client:
            client.subscribe("hall")
            server.publish("hall", "greeting", "hello")
            for found in (status(server), status(server, "--api", server.api)):
                assert (found["ready"], found["complete"], len(found["workers"])) == (True, True, workers)
                assert found["unanswered"] == []
                assert found["connections"] == {"pusher": 1}
                assert found["counters"]["events_in"] == 1
                (app,) = found["apps"]
                assert (app["id"], app["connections"], app["channels"], app["subscriptions"]) == ("app-test", 1, 1, 1)
                assert (app["events_in"], app["messages_out"], app["refusals"]) == (1, 1, 0)
                assert app["source"] == "apps/apps.yml:1"
                assert app["secrets"] == [6]
                assert found["broker"]["kind"] == ("memory" if workers == 1 else "embedded")
                assert found["broker"]["nodes"] == workers
                (drain,) = [one for one in found["settings"] if one["key"] == "server.drain"]
                assert drain["value"] == 1
                assert drain["origin"].startswith("server.yml:")
        text = push1st("status", "-c", str(server.folder / "server.yml")).stdout
        assert "  ready  up " in text
        assert len(text.splitlines()) <= 30


def test_no_answer_contains_a_secret() -> None:
    port, page = free_ports(2)
    config = {
        "log": {"level": "debug"},
        "console": {"password": f"{CANARY}-console", "listen": f"tcp://127.0.0.1:{page}"},
        "metrics": {"token": f"{CANARY}-token"},
        "server": {"proto": ["pusher", "mqtt"], "mqtt": {"listen": f"tcp://127.0.0.1:{port}"}},
    }
    with running(config, {"hidden": HIDDEN}) as server:
        file = str(server.folder / "server.yml")
        with paho_client(port, V5, "device", f"hidden-key:{CANARY}-name", f"{CANARY}-password", accepted=False):
            pass
        with pusher_socket(server, "hidden-key") as client:  # the backends do not answer, and the log has their failures
            client.send("pusher:subscribe", {"channel": "private-c", "auth": f"hidden-key:{CANARY}-h"})
            assert client.receive()["event"] == "pusher:subscription_error"
        assert server.post("/apps/hidden/events", {"name": "e", "channels": ["c"], "data": "1"}).status == 200
        wait_until(lambda: "hook" in server.output, "a hook has failed")
        token = push1st("token", "access", "-c", file, "--app", "hidden").stdout.strip()
        answers = [
            push1st("status", "-c", file).stdout,
            push1st("status", "-c", file, "--json").stdout,
            *(server.get(path).body.decode() for path in ("/status", "/metrics", "/openapi.json", "/apps/hidden/hooks")),
            push1st("app", "list", "-c", file, "--json").stdout,
            push1st("app", "show", "-c", file, "hidden").stdout,
            push1st("reload", "-c", file).stdout,
            push1st("status", "--api", f"http://u:{CANARY}-url@127.0.0.1:1", code=2).stderr,
            push1st("check", "-c", file).stdout,
            push1st("check", "-c", file, "--json").stdout,
            push1st("token", "check", "-c", file, token).stdout,
            push1st("token", "check", "-c", file, "--json", token).stdout,
            push1st("token", "check", "-c", file, f"{CANARY}-a", code=1).stdout,
            *console_answers(Operator(page)),
        ]
        assert "set, 45 and 45 bytes" in answers[0]
        assert [answer for answer in (*answers, server.output) if "canary" in answer] == []


def console_answers(operator: Operator) -> list[str]:
    """Returns answers of the console, before and after the sign-in, without the cookies."""
    paths = ("/", "/api/session", "/api/version", "/api/config", "/api/apps", "/api/overview", "/openapi.json")
    answers = [operator.post("/api/login", {"password": "wrong"}), *map(operator.get, paths)]
    operator.sign_in(f"{CANARY}-console")
    answers += [operator.post("/api/login", {"password": f"{CANARY}-console"}), *map(operator.get, paths)]
    return [answer.body.decode() for answer in answers]


def test_a_worker_that_does_not_answer_is_shown_as_such() -> None:
    with running({"server": {"workers": 2}}) as server:
        stopped = until_ready(server, 2)["workers"][1]
        os.kill(stopped["pid"], signal.SIGSTOP)
        try:
            found = status(server, code=1)
            assert (found["ready"], found["complete"], found["unanswered"]) == (False, False, [stopped["worker"]])
            assert len(found["workers"]) == 1
            text = push1st("status", "-c", str(server.folder / "server.yml"), code=1).stdout
            assert "NOT READY" in text
            assert "does not answer" in text
        finally:
            os.kill(stopped["pid"], signal.SIGCONT)
        until_ready(server, 2)


def test_workers_answer_after_a_request_during_which_the_broker_hung() -> None:
    valkey = Valkey()
    try:
        with running({"broker": valkey.url, "server": {"workers": 2}}) as server:
            pids = [one["pid"] for one in until_ready(server, 2)["workers"]]
            valkey.pause()
            try:
                found = json.loads(server.get("/status").body)
            finally:
                valkey.go_on()
            assert (found["complete"], found["broker"]["reason"]) == (True, "the broker does not answer")
            found = until_ready(server, 2)
            assert [one["pid"] for one in found["workers"]] == pids
            assert "worker hangs" not in server.output
    finally:
        valkey.close()


def test_the_last_reload_is_shown_with_its_problems() -> None:
    with running() as server:
        assert status(server)["reload"] is None
        file = server.folder / "server.yml"
        text = file.read_text()
        file.write_text(text + "\nmistake: 1\n")
        push1st("reload", "-c", str(file), code=1)
        (problem,) = status(server)["reload"]["problems"]
        assert "mistake" in problem
        file.write_text(text)
        push1st("reload", "-c", str(file))
        assert status(server)["reload"]["problems"] == []


def test_the_state_is_for_trusted_callers_only() -> None:
    (port,) = free_ports(1)
    metrics = {"listen": f"tcp://127.0.0.1:{port}", "token": f"{CANARY}-token"}
    with running({"metrics": metrics, "api": {"trust": []}}) as server:
        token = {"Authorization": f"Bearer {CANARY}-token"}
        assert server.get("/metrics", headers=token).status == 200
        answer = server.get("/status", headers=token)
        assert answer.status == 403
        assert "the status is for trusted callers" in answer.json["error"]
        assert server.get("/status", port=port, headers=token).status == 404


def test_without_a_server_the_command_ends_with_2_and_a_sentence() -> None:
    (port,) = free_ports(1)
    failed = push1st("status", "--api", f"http://127.0.0.1:{port}", code=2)
    assert failed.stdout == ""
    assert failed.stderr.startswith(f"push1st status: no answer from http://127.0.0.1:{port}: ")
    server = ServerProcess()
    file = str(server.folder / "server.yml")
    failed = push1st("status", "-c", file, code=2)
    assert f"no server was found: no server of this user runs with {file}; no answer from unix://" in failed.stderr
    assert "no answer from http://127.0.0.1:" in failed.stderr


def test_machines_of_one_broker_are_nodes_and_an_outage_is_shown(valkey: Valkey) -> None:
    with running({"broker": valkey.url}) as one, running({"broker": valkey.url}) as two:
        found = status(one)
        broker = found["broker"]
        assert (broker["kind"], broker["connected"], broker["reason"]) == ("shared", True, "")
        assert broker["url"].endswith(", without a password, database 0, prefix push1st")
        (server,) = broker["servers"]
        assert server["role"] == "master"
        assert re.fullmatch(r"\d+\.\d+\.\d+", server["version"])
        assert 0 < server["round_trip"] < 1
        wait_until(lambda: status(two)["broker"]["nodes"] == 2, "both machines are nodes")
        valkey.kill()
        wait_until(lambda: not status(one)["broker"]["connected"], "the outage is shown")
        assert "AWAY: " in push1st("status", "-c", str(one.folder / "server.yml")).stdout
        valkey.start()
        wait_until(lambda: status(one)["broker"]["connected"], "the broker is connected again", 20)


@pytest.mark.parametrize("workers", [1, 2])
def test_certificates_are_shown_with_the_days_that_they_are_valid(workers: int) -> None:
    with running({"server": {"ssl": {"enable": True}, "workers": workers}}) as server:
        (certificate,) = until_ready(server, workers)["certificates"]
        assert certificate["listener"] == "server"
        assert certificate["days"] == 364
        assert "certificate of server: 364 days left" in push1st("status", "-c", str(server.folder / "server.yml")).stdout
