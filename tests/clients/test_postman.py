"""The Postman collection, and the requests of the collection of the original Push1st, run by newman."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.nodejs import MODULES, node_program
from tests.support.openapi import operation_of, operations
from tests.support.process import APP, ServerProcess, merged, running
from tests.support.pusher_socket import pusher_socket

COLLECTION = Path(__file__).parents[2] / "docs" / "push1st.postman_collection.json"
NEWMAN = MODULES / "newman" / "bin" / "newman.js"
NEWMAN_SECONDS = 60
BASE = "{{api-server}}/{{app-id}}"
ORIGINAL = {
    "TriggerEvent": f"POST {BASE}/events",
    "GetSessionToken": f"POST {BASE}/token/session/",
    "GetAccessToken": f"POST {BASE}/token/access/",
    "Get Channels": f"GET {BASE}/channels/",
    "Get Channel info": f"GET {BASE}/channels/{{{{channel}}}}/",
}
"""the requests of the original Push1st's collection, by their names"""
BODIES = {
    "TriggerEvent": {"name": "event_name", "channels": ["my-channel"], "socket_id": "", "data": "event data payload"},
    "GetSessionToken": {"session": "1234", "channel": "private-user.1", "data": ""},
    "GetAccessToken": {"origin": "*", "channel": "*", "ttl": 0},
}


@pytest.fixture(scope="module")
def busy() -> Iterator[ServerProcess]:
    """Runs a server with a subscriber of `my-channel`, and with a history."""
    app = merged(APP, {"history": [{"filter": ["chat-*"], "size": 100, "ttl": 300}]})
    with running(apps={"app-test": app}) as server, pusher_socket(server) as client:
        client.subscribe("my-channel")
        yield server


def newman(collection: Path, folder: Path, **variables: str) -> list[dict[str, Any]]:
    """Runs a collection with these variables (`_` stands for `-`); returns its requests with their answers.

    Fails if an assertion of the collection fails.
    """
    report = folder / "report.json"
    options = [word for name, value in variables.items() for word in ("--env-var", f"{name.replace('_', '-')}={value}")]
    done = subprocess.run(
        [node_program(), NEWMAN, "run", collection, *options, "--reporters", "cli,json", "--reporter-json-export", report],
        capture_output=True,
        text=True,
        check=False,
        timeout=NEWMAN_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    executions: list[dict[str, Any]] = json.loads(report.read_text())["run"]["executions"]
    return executions


def requests(items: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for item in items:
        if "request" in item:
            yield item
        yield from requests(item.get("item", []))


def call_of(item: dict[str, Any]) -> str:
    return f"{item['request']['method']} {item['request']['url']['raw']}"


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_collection_works(busy: ServerProcess, tmp_path: Path, signed: bool) -> None:
    """The signed calls go to the listener of the clients, which accepts no unsigned call. A path has a character to escape."""
    if signed:
        variables = {"api_server": f"http://127.0.0.1:{busy.ws_port}/apps", "secret": "secret", "idempotency_key": "signed"}
    else:
        variables = {"api_server": f"{busy.api}/apps"}
    done = newman(COLLECTION, tmp_path, server=busy.api, user="jürgen", **variables)
    assert len(done) == len(list(requests(json.loads(COLLECTION.read_text())["item"])))
    for one in done:
        assert one["assertions"], one["item"]["name"]
        assert one["response"]["code"] in (200, 202), one["item"]["name"]


def test_collection_has_the_names_and_variables_of_the_original() -> None:
    collection = json.loads(COLLECTION.read_text())
    assert collection["info"]["schema"].endswith("/v2.1.0/collection.json")
    assert {item["name"]: call_of(item) for item in collection["item"] if "request" in item} == ORIGINAL
    values = {one["key"]: one["value"] for one in collection["variable"]}
    assert values["api-server"].endswith("/apps")
    assert (values["app-id"], values["secret"]) == ("app-test", "")


def test_collection_has_each_call_of_the_description() -> None:
    found = set()
    for item in requests(json.loads(COLLECTION.read_text())["item"]):
        method, address = call_of(item).split(" ")
        path = address.partition("?")[0].replace("{{api-server}}", "/apps").replace("{{server}}", "")
        found.add(operation_of(method, path).content["operationId"])
    assert found == {one.content["operationId"] for one in operations()} - {"up", "acceptTraffic"}


def test_requests_of_the_original_work(busy: ServerProcess, tmp_path: Path) -> None:
    collection = tmp_path / "original.json"
    items = [
        {
            "name": name,
            "request": {
                "method": call.partition(" ")[0],
                "url": call.partition(" ")[2],
                "header": [{"key": "Content-Type", "value": "application/json"}],
                **({"body": {"mode": "raw", "raw": json.dumps(BODIES[name])}} if name in BODIES else {}),
            },
        }
        for name, call in ORIGINAL.items()
    ]
    schema = "https://schema.getpostman.com/json/collection/v2.1.0/collection.json"
    collection.write_text(json.dumps({"info": {"name": "original", "schema": schema}, "item": items}))
    done = newman(collection, tmp_path, api_server=f"{busy.api}/apps", app_id="app-test", channel="my-channel")
    assert {one["item"]["name"]: one["response"]["code"] for one in done} == dict.fromkeys(ORIGINAL, 200)
