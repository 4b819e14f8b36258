"""Runs coroutines immediately: a coroutine that does not wait finishes without a task.

With the memory broker, most commands do not wait; with Redis, they wait for one round trip. `run_eagerly` runs a coroutine up to
its first wait, in the current turn of the event loop. Only a coroutine that waits gets a task, for its remaining part. Python
3.12 has eager tasks for this purpose, but Python 3.11 has no such tasks (decision 0014).

Before its first wait, a coroutine has no task of its own. `asyncio.timeout` would cancel the task that happens to run, which may
belong to another part of the server. So all code uses `timeout` of this module, which rejects this use.
"""

import asyncio
import sys
from collections.abc import Coroutine, Generator
from types import FrameType
from typing import Any, Generic, TypeAlias, TypeVar

T = TypeVar("T")
MaybeAwaitable: TypeAlias = T | Coroutine[Any, Any, T]
"""A result, or a coroutine that returns the result later. A function returns a coroutine only if it must wait."""
_running: set[asyncio.Task[Any]] = set()


class Suspended(Generic[T]):
    """A coroutine that `run_eagerly` has started and that waits. `await` runs the remaining part, and returns the result."""

    __slots__ = ("_coroutine", "_first")

    def __init__(self, coroutine: Coroutine[Any, Any, T], first: Any) -> None:
        self._coroutine = coroutine
        self._first = first

    def __await__(self) -> Generator[Any, Any, T]:
        waits = self._first
        while True:
            failure = value = None
            if waits is not None:
                waits._asyncio_future_blocking = True
            try:
                value = yield waits
            except BaseException as exc:
                failure = exc
            try:
                waits = self._coroutine.send(value) if failure is None else self._coroutine.throw(failure)
            except StopIteration as done:
                result: T = done.value
                return result


def run_eagerly(coroutine: Coroutine[Any, Any, T]) -> T | Suspended[T]:
    """Runs `coroutine` up to its first wait. Returns the result, or the remaining part of the coroutine."""
    try:
        first = coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    if first is not None:
        # `await` sets `_asyncio_future_blocking`, and the task that runs the coroutine clears this attribute. No task runs this
        # coroutine yet, and another coroutine may await the same future. So the attribute is cleared here, and set again later.
        first._asyncio_future_blocking = False
    return Suspended(coroutine, first)


def timeout(seconds: float) -> asyncio.Timeout:
    """Returns `asyncio.timeout(seconds)`. Raises RuntimeError in a coroutine that `run_eagerly` runs up to its first wait."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is run_eagerly.__code__:
            raise RuntimeError("a coroutine without a task of its own has no timeout: start it with create_task")
        frame = frame.f_back
    return asyncio.timeout(seconds)


async def _finish(rest: Suspended[Any]) -> None:
    await rest


def spawn(coroutine: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine to its end: now if it does not wait, else in a task.

    `_running` refers to the task until the task ends, because asyncio itself keeps only a weak reference to it.
    """
    rest = run_eagerly(coroutine)
    if isinstance(rest, Suspended):
        task = asyncio.get_running_loop().create_task(_finish(rest))
        _running.add(task)
        task.add_done_callback(_running.discard)


async def resolve(result: MaybeAwaitable[T]) -> T:
    """Returns `result`, or the result of the coroutine if `result` is a coroutine."""
    return await result if isinstance(result, Coroutine) else result


async def join_background() -> None:
    """Waits until all tasks that `spawn` created have ended."""
    while _running:
        await asyncio.wait(_running)
