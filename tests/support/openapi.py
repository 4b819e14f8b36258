"""The description of the API (`openapi.yaml`), and requests and answers compared with it."""

import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonschema import Draft202012Validator

FILE = Path(__file__).parents[2] / "src" / "push1st" / "openapi.yaml"
METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")


class Operation(NamedTuple):
    """One method of one path. parameters: those of the path and of the method, without references."""

    path: str
    method: str
    content: dict[str, Any]
    parameters: list[dict[str, Any]]


@cache
def description() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.load(FILE.read_text(), Loader=yaml.CSafeLoader)
    return loaded


def resolved(value: dict[str, Any]) -> dict[str, Any]:
    """Returns the object to which a reference leads, or the object itself."""
    while "$ref" in value:
        found: Any = description()
        for name in value["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        value = found
    return value


@cache
def operations() -> list[Operation]:
    return [
        Operation(path, method, item[method], [*map(resolved, item.get("parameters", [])), *_parameters(item[method])])
        for path, item in description()["paths"].items()
        for method in METHODS
        if method in item
    ]


def _parameters(content: dict[str, Any]) -> list[dict[str, Any]]:
    return [resolved(one) for one in content.get("parameters", [])]


def operation_of(method: str, path: str) -> Operation:
    """Returns the operation that serves a request with this path, which has no query."""
    for one in operations():
        if one.method == method.lower() and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", one.path) + "/?", path):
            return one
    raise AssertionError(f"{method} {path} is not described")


def mistakes(schema: dict[str, Any], value: Any) -> list[str]:
    """Returns what a schema of the description rejects in a value."""
    whole = {**schema, "components": description()["components"]}
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(whole).iter_errors(value)]


def answer_schema(operation: Operation, status: int) -> dict[str, Any] | None:
    """Returns the schema of an answer; None if its body has no schema. Fails if the status or the type is not described."""
    answer = resolved(operation.content["responses"][str(status)])
    schema: dict[str, Any] | None = answer["content"]["application/json"].get("schema")
    return schema
