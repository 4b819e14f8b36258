"""The server obeys the description of its API: schemathesis makes requests from the description, and checks the answers."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.openapi import operations
from tests.support.process import APP, ServerProcess, merged, running
from tests.support.pusher_socket import pusher_socket

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
)
SEED = 1
SCHEMATHESIS_SECONDS = 240
"""maximum seconds of a run of schemathesis"""
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def busy() -> Iterator[ServerProcess]:
    """Runs a server whose app has subscribers, members, cached events, histories and a hook."""
    hooks = {"webhooks": [{"url": "http://127.0.0.1:1/", "events": ["channel_occupied"]}]}
    app = merged(APP, {"history": [{"filter": ["chat-*"], "size": 100, "ttl": 300}], **hooks})
    with running({"log": {"level": "error"}}, {"app-test": app}) as server, pusher_socket(server) as client:
        client.subscribe("presence-room", {"user_id": "ann"})
        for channel in ("my-channel", "chat-7", "private-cache-last"):
            client.subscribe(channel)
        for channel in ("private-cache-last", "chat-7"):
            server.publish(channel, "said", {"id": 7}, headers={"a": 1})
        yield server


def check_answers(server: ServerProcess, folder: Path, signed: bool, *amount: str) -> None:
    """Lets schemathesis call the server; checks that each answer is described, and that each operation succeeds at least once.

    amount: the options of schemathesis for the number of its calls.
    """
    answers = folder / "answers"
    variables = {"SCHEMATHESIS_HOOKS": "tests.clients.schemathesis_hooks", "ANSWERS": str(answers), "PYTHONPATH": str(ROOT)}
    port = server.ws_port if signed else server.api_port
    options = (
        *("--url", f"http://127.0.0.1:{port}", "--checks", ",".join(CHECKS), "--seed", str(SEED), *amount),
        *("--phases", "examples,coverage,fuzzing", "--continue-on-failure", "--no-color"),
        *("--generation-with-security-parameters", "false", "--generation-database", "none", "--suppress-health-check", "all"),
    )
    done = subprocess.run(
        [Path(sys.executable).with_name("schemathesis"), "run", str(ROOT / "src" / "push1st" / "openapi.yaml"), *options],
        cwd=folder,
        env={**os.environ, **variables, **({"SIGNED": "1"} if signed else {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=SCHEMATHESIS_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    served = {line.rpartition(" ")[0] for line in answers.read_text().splitlines() if line.endswith((" 200", " 202"))}
    # Signed calls go to the listener of the clients, which does not answer calls that only trusted callers may make.
    refused = {"GET /metrics", "GET /status", "GET /openapi.json"} if signed else set()
    assert served == {f"{one.method.upper()} {one.path}" for one in operations()} - refused
    server.assert_alive()


@pytest.mark.timeout(SCHEMATHESIS_SECONDS)
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_server_answers_as_described(busy: ServerProcess, tmp_path: Path, signed: bool) -> None:
    check_answers(busy, tmp_path, signed, "--max-examples", "5")


@pytest.mark.long
@pytest.mark.timeout(SCHEMATHESIS_SECONDS)
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_server_answers_as_described_for_two_minutes(busy: ServerProcess, tmp_path: Path, signed: bool) -> None:
    check_answers(busy, tmp_path, signed, "--max-time", "120")


def test_description_is_for_trusted_callers(server: ServerProcess) -> None:
    answer = server.get("/openapi.json")
    assert (answer.status, answer.json["openapi"], answer.json["servers"]) == (200, "3.1.1", [{"url": "/"}])
    assert server.get("/openapi.json", port=server.unix).status == 200
    assert server.get("/openapi.json", headers={"X-Forwarded-For": "203.0.113.7"}).status == 403
    answer = server.get("/openapi.json", port=server.ws_port)
    assert (answer.status, list(answer.json)) == (403, ["error"])
