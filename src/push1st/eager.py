"""Coroutines that start at once: what does not wait finishes without a task.

Most control steps wait for nothing with the memory broker, and for one round trip with another. `begin` runs a
coroutine up to its first wait, in the caller's turn; only if it does wait is there a task for the rest. Python 3.12
has this as eager tasks; 3.11, which we support, has not.

What runs before the first wait has no current task, so it must not use `asyncio.timeout` or `asyncio.current_task`.
"""

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeAlias, TypeVar

T = TypeVar("T")
MaybeAwaitable: TypeAlias = T | Coroutine[Any, Any, T]
"""A result that is there at once, or the coroutine that will have it: what seldom waits makes no coroutine then."""
_running: set[asyncio.Task[Any]] = set()


class Suspended(Generic[T]):
    """What is left of a coroutine that has begun and waits: an awaitable of its result."""

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
            except BaseException as error:
                failure = error
            try:
                waits = self._coroutine.send(value) if failure is None else self._coroutine.throw(failure)
            except StopIteration as done:
                result: T = done.value
                return result


def begin(coroutine: Coroutine[Any, Any, T]) -> T | Suspended[T]:
    """Runs `coroutine` up to its first wait: its result, or the rest of it. What it raises is raised here."""
    try:
        first = coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    if first is not None:
        # A future is told by whoever waits that it is waited for, and forgets it when a task takes note (asyncio's way to
        # find `yield` without `from`). Until there is a task others may wait for the same future: they must not find it told.
        first._asyncio_future_blocking = False
    return Suspended(coroutine, first)


async def _finish(rest: Suspended[Any]) -> None:
    await rest


def spawn(coroutine: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine to its end: now if it can, else in a task that is kept until it is done."""
    rest = begin(coroutine)
    if isinstance(rest, Suspended):
        task = asyncio.get_running_loop().create_task(_finish(rest))
        _running.add(task)
        task.add_done_callback(_running.discard)


async def wait(soon: MaybeAwaitable[T]) -> T:
    """The result, once it is there."""
    return await soon if isinstance(soon, Coroutine) else soon


async def settled() -> None:
    """Waits until everything spawned has ended."""
    while _running:
        await asyncio.wait(_running)
