"""Endpoints that are Python functions: `py://package.module:function`, sync or async, which run in child processes.

Python searches the folder of the configuration and the working directory for `package`. A child process runs this module.
"""

import asyncio
import importlib
import inspect
import os
import sys
from typing import Any

import msgspec

from push1st.hooks import Target
from push1st.hooks.child import REQUEST, Called, serve
from push1st.hooks.events import Allow, Event, Question, Refuse, Triggered
from push1st.hooks.processes import HookProcesses


class Python(HookProcesses):
    """A `HookTransport` that sends deliveries and requests to a Python function."""

    def __init__(self, target: Target) -> None:
        super().__init__("push1st.hooks.python", target)


def load(app: str, place: str, folder: str, runner: asyncio.Runner) -> Called:
    """Returns a function that calls the user's function with the body of a frame.

    app: the app's id.
    place: the user's function in the form `package.module:function`.
    runner: the runner of the event loop for async functions.
    """
    sys.path[:0] = [folder or os.getcwd(), os.getcwd()]
    module, _, name = place.partition(":")
    function = getattr(importlib.import_module(module), name)

    def run(argument: object) -> Any:
        result = function(argument)
        return runner.run(_awaited(result)) if inspect.isawaitable(result) else result

    def call(kind: bytes, body: bytes) -> bytes:
        if kind == REQUEST:
            return reply_of(run(msgspec.json.decode(body, type=Question)))
        for event in events(app, body):
            run(event)
        return b""

    return call


async def _awaited(result: Any) -> Any:
    return await result


def events(app: str, body: bytes) -> list[Event] | list[Triggered]:
    """Returns the events in the body of a delivery, which has Pusher's or Push1st's format."""
    found = msgspec.json.decode(body)
    if "events" not in found:
        return [msgspec.convert(found, Triggered)]
    return [msgspec.convert(one | {"app": app}, Event) for one in found["events"]]


def reply_of(result: object) -> bytes:
    """Returns a function's result as JSON, in the form of an HTTP endpoint's reply. Raises TypeError for an invalid result."""
    match result:
        case bool():
            return msgspec.json.encode({"allow": result})
        case Allow() | Refuse():
            fields: dict[str, Any] = msgspec.to_builtins(result)
            return msgspec.json.encode({"allow": isinstance(result, Allow), **fields})
    raise TypeError(f"an answer is True, False, Allow(…) or Refuse(…), not {result!r}")


def main() -> None:
    app, place, seconds, folder = sys.argv[1:]
    with asyncio.Runner() as runner:
        serve(lambda: load(app, place, folder, runner), float(seconds))


if __name__ == "__main__":
    main()
