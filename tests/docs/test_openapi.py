"""The description of the API has the routes of the server, the statuses of the errors page, and the examples of the API page."""

import itertools
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import yaml
from openapi_spec_validator import OpenAPIV31SpecValidator

from push1st.api import ROUTES, SERVER
from push1st.api.metrics import OPENMETRICS, TEXT
from tests.docs.pages import ROOT, blocks
from tests.support.openapi import FILE, Operation, answer_schema, description, mistakes, operation_of, operations, resolved

ELSEWHERE = {409, 426}
"""statuses of HTTP fallbacks and WebSockets"""
OF_APPS = {401, 403, 404, 429, 503}
"""statuses that only calls for an app have"""
MORE = {
    "/metrics": {401, 403},
    "/status": {403, 503},
    "/openapi.json": {403},
    "/ready": {503},
    "/up": {503},
    "/accept-traffic": {503},
}


def name(operation: Operation) -> str:
    return f"{operation.method.upper()} {operation.path}"


def test_description_obeys_the_specification() -> None:
    assert [error.message for error in OpenAPIV31SpecValidator(description()).iter_errors()] == []


def test_no_key_of_the_description_stands_twice() -> None:
    """A second key would silently replace the first one."""
    twice = []
    waiting: list[Any] = [yaml.compose(FILE.read_text(), yaml.SafeLoader)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, yaml.MappingNode):
            keys = Counter(key.value for key, _ in node.value)
            twice += [f"{key} before line {node.end_mark.line + 1}" for key, count in keys.items() if count > 1]
            waiting += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
    assert twice == []


def test_operations_are_the_routes_of_the_server() -> None:
    routes = {("/apps/*/" + "/".join(parts), method) for parts, methods in ROUTES.items() for method in methods}
    about_server = {(path, "GET") for path in SERVER}
    described = {(re.sub(r"\{\w+\}", "*", one.path), one.method.upper()) for one in operations()}
    assert described == routes | about_server


def test_operation_ids_are_unique() -> None:
    ids = [one.content["operationId"] for one in operations()]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("operation", operations(), ids=name)
def test_operation_has_the_statuses_of_the_errors_page(operation: Operation) -> None:
    table = (ROOT / "docs" / "errors.md").read_text().partition("## HTTP statuses")[2].partition("##")[0]
    all_statuses = set(map(int, re.findall(r"^\| (\d{3}) \|", table, re.MULTILINE))) - ELSEWHERE
    expected = all_statuses if operation.path.startswith("/apps/") else all_statuses - OF_APPS | MORE.get(operation.path, set())
    found = set(map(int, operation.content["responses"]))
    assert found - {200, 202} == expected
    assert len(found & {200, 202}) == 1


@pytest.mark.parametrize("operation", operations(), ids=name)
def test_only_calls_for_an_app_may_be_signed(operation: Operation) -> None:
    security = operation.content.get("security", description()["security"])
    signature = {"auth_key", "auth_timestamp", "auth_version", "auth_signature"}
    if operation.method == "post":
        signature.add("body_md5")
    expected = [set(), signature] if operation.path.startswith("/apps/") else []
    if operation.path == "/metrics":
        expected = [set(), {"metrics_token"}]
    assert [set(one) for one in security] == expected
    assert signature <= set(description()["components"]["securitySchemes"])


def test_metrics_have_the_described_formats() -> None:
    served = {one.partition(b";")[0].decode() for one in (TEXT, OPENMETRICS)}
    assert set(operation_of("GET", "/metrics").content["responses"]["200"]["content"]) == served


# -- examples


def media_types() -> Iterator[tuple[str, dict[str, Any]]]:
    for one in operations():
        bodies = [one.content.get("requestBody", {}), *map(resolved, one.content["responses"].values())]
        for body in bodies:
            for media in body.get("content", {}).values():
                yield name(one), media


def examples() -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Yields a name, the schema and the value of each example of a body or a parameter."""
    for where, media in media_types():
        values = [one["value"] for one in media.get("examples", {}).values()] + [
            media[key] for key in ("example",) if key in media
        ]
        for value in values:
            yield where, media.get("schema", {}), value
    for operation in operations():
        for parameter in operation.parameters:
            if "example" in parameter:
                yield f"{name(operation)} {parameter['name']}", parameter["schema"], parameter["example"]


def test_examples_of_the_description_fit_their_schemas() -> None:
    assert [(where, value, errors) for where, schema, value in examples() if (errors := mistakes(schema, value))] == []


def test_each_answer_has_an_example() -> None:
    assert sorted({where for where, media in media_types() if not {"example", "examples"} & media.keys()}) == []


def calls() -> Iterator[tuple[str, dict[str, str], Any]]:
    """Yields each curl command of the API page: its options, and the JSON of its answer; None for an answer of another kind."""
    found = blocks(ROOT / "docs" / "api.md")
    for block, following in itertools.pairwise(found):
        if block.language != "bash":
            continue
        lines = [line for line in block.text.replace("\\\n", " ").splitlines() if re.search(r"\bcurl\b", line)]
        for line in lines:
            is_shown = line == lines[-1] and following.language == "json" and following.says("answer")
            answer = json.loads(following.text.replace("…", "k3F9aQx2bT")) if is_shown else None
            yield line, options(line.partition("curl")[2].partition(" > ")[0].partition(" | ")[0]), answer


def options(command: str) -> dict[str, str]:
    """Returns the options of curl by their letters, and the address as `url`."""
    words = iter(shlex.split(command))
    found: dict[str, str] = {}
    for word in words:
        if word in ("-d", "-H", "-X"):
            found[word] = next(words)
        elif not word.startswith("-"):
            found["url"] = word
    return found


def test_calls_of_the_api_page_are_described() -> None:
    seen = set()
    for line, curl, answer in calls():
        address = urlsplit(curl["url"])
        operation = operation_of(curl.get("-X", "POST" if "-d" in curl else "GET"), address.path)
        seen.add(operation.content["operationId"])
        body = curl.get("-d")
        if body is not None and body.startswith("{"):
            schema = operation.content["requestBody"]["content"]["application/json"]["schema"]
            wrong = mistakes(schema, json.loads(body.replace("$id", "1")))
            assert bool(wrong) == (answer is not None and "error" in answer), (line, wrong)
        parameters = {one["name"]: one["schema"] for one in operation.parameters if one["in"] == "query"}
        for key, value in parse_qsl(address.query.partition("$query")[0].replace("$next", "k:1")):
            schema = parameters[key]
            assert mistakes(schema, int(value) if schema.get("type") == "integer" else value) == [], line
        if answer is not None:
            expected = answer_schema(operation, 400 if "error" in answer else 200)
            assert expected is not None
            assert mistakes(expected, answer) == [], line
    assert seen == {one.content["operationId"] for one in operations()} - NOT_ON_THE_PAGE


NOT_ON_THE_PAGE = {"up", "acceptTraffic", "metrics", "status", "listHooks"}
"""operations of which the API page has no command: some have two names, and others have pages of their own"""
