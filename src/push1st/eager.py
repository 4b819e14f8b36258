"""Coroutines that run at once: a coroutine that does not wait finishes without a task.

Most steps of the control road wait for nothing with the memory broker, and for one round trip with Redis. `run_eagerly` runs a
coroutine up to its first wait, in the caller's turn of the loop. Only a coroutine that does wait gets a task, for the rest of it.
Python 3.12 has eager tasks for this; Python 3.11 has not (decision 0014).

The part before the first wait has no current task, so it must not use `asyncio.timeout` or `asyncio.current_task`.
"""

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeAlias, TypeVar

T = TypeVar("T")
MaybeAwaitable: TypeAlias = T | Coroutine[Any, Any, T]
"""A result, or a coroutine that returns it later. A function that seldom waits returns the result and makes no coroutine."""
_running: set[asyncio.Task[Any]] = set()


class Suspended(Generic[T]):
    """A coroutine that `run_eagerly` has started and that waits. Awaiting it runs the rest, and returns the result."""

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
    """Runs `coroutine` up to its first wait. Returns its result, or the rest of it; raises its exceptions."""
    try:
        first = coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    if first is not None:
        # `await future` sets this mark on the future, and a task clears it, to detect `yield` in place of `yield from`. Before
        # this coroutine has a task, another coroutine may await the same future, and must find it without the mark.
        first._asyncio_future_blocking = False
    return Suspended(coroutine, first)


async def _finish(rest: Suspended[Any]) -> None:
    await rest


def spawn(coroutine: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine to its end: now if it does not wait, else in a task. The task is referenced here until it is done."""
    rest = run_eagerly(coroutine)
    if isinstance(rest, Suspended):
        task = asyncio.get_running_loop().create_task(_finish(rest))
        _running.add(task)
        task.add_done_callback(_running.discard)


async def resolve(result: MaybeAwaitable[T]) -> T:
    """Returns a result, and awaits it first if it is a coroutine."""
    return await result if isinstance(result, Coroutine) else result


async def join_background() -> None:
    """Waits until all tasks of `spawn` have ended."""
    while _running:
        await asyncio.wait(_running)
