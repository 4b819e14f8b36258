"""Endpoints that are functions in Python: `py://package.module:function`, sync or async, in processes of their own.

The configuration's folder and the working directory are on the path of modules. Run as a program, this is the child.
"""

import asyncio
import importlib
import inspect
import os
import sys
from typing import Any

import msgspec

from push1st.hooks import Target
from push1st.hooks.child import ASK, Called, serve
from push1st.hooks.events import Allow, Event, Question, Refuse, Triggered
from push1st.hooks.processes import Processes


class Python(Processes):
    """A `HookTransport`."""

    def __init__(self, target: Target) -> None:
        super().__init__("push1st.hooks.python", target)


def load(app: str, place: str, folder: str, runner: asyncio.Runner) -> Called:
    """The function, to be called with what frames hold. runner: has the loop in which those that are async run."""
    sys.path[:0] = [folder or os.getcwd(), os.getcwd()]
    module, _, name = place.partition(":")
    function = getattr(importlib.import_module(module), name)

    def run(argument: object) -> Any:
        result = function(argument)
        return runner.run(_awaited(result)) if inspect.isawaitable(result) else result

    def call(kind: bytes, body: bytes) -> bytes:
        if kind == ASK:
            return answered(run(msgspec.json.decode(body, type=Question)))
        for event in events(app, body):
            run(event)
        return b""

    return call


async def _awaited(result: Any) -> Any:
    return await result


def events(app: str, body: bytes) -> list[Event] | list[Triggered]:
    """The events of a body, in either format."""
    found = msgspec.json.decode(body)
    if "events" not in found:
        return [msgspec.convert(found, Triggered)]
    return [msgspec.convert(one | {"app": app}, Event) for one in found["events"]]


def answered(result: object) -> bytes:
    """What a function returned, as an HTTP endpoint would say it. Raises TypeError for what is no answer."""
    match result:
        case bool():
            return msgspec.json.encode({"allow": result})
        case Allow() | Refuse():
            said: dict[str, Any] = msgspec.to_builtins(result)
            return msgspec.json.encode({"allow": isinstance(result, Allow), **said})
    raise TypeError(f"an answer is True, False, Allow(…) or Refuse(…), not {result!r}")


def main() -> None:
    app, place, seconds, folder = sys.argv[1:]
    with asyncio.Runner() as runner:
        serve(lambda: load(app, place, folder, runner), float(seconds))


if __name__ == "__main__":
    main()
