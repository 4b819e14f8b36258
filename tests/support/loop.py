"""Clocks, timers and turns of the loop that a test moves by hand, and the hook that runs `async def` tests."""

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from push1st.eager import run_eagerly

WALL = 1_700_000_000


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs an `async def` test in a loop of its own: asyncio's, or the one that the fixture `loop_factory` names."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = inspect.signature(pyfuncitem.obj).parameters
    test = pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in wanted})
    factory: Any = pyfuncitem.funcargs.get("loop_factory")
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(test)
    return True


async def turns(count: int = 4) -> None:
    """Runs the loop for this number of turns, without a delay."""
    for _ in range(count):
        await asyncio.sleep(0)


def done(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Returns the result of a coroutine that must not wait."""
    result = run_eagerly(coroutine)
    assert not hasattr(result, "__await__"), "the coroutine waits"
    return result


class Clock:
    """The two clocks of a node; a test moves them."""

    def __init__(self, seconds: float = 1000.0) -> None:
        self.seconds = seconds

    def monotonic(self) -> float:
        return self.seconds

    def wall(self) -> int:
        return WALL * 1_000_000_000 + int(self.seconds * 1_000_000_000)

    def advance(self, seconds: float) -> None:
        self.seconds += seconds


class Ticking:
    """A clock that advances with each call. step: in seconds."""

    def __init__(self, step: float = 0.001) -> None:
        self.now = 0.0
        self.step = step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


class Timer:
    def __init__(self, seconds: float, run: Callable[[], object], timers: "list[Timer]") -> None:
        self.seconds = seconds
        self.run = run
        self._timers = timers
        timers.append(self)

    def cancel(self) -> None:
        if self in self._timers:
            self._timers.remove(self)


class Turns:
    """The `call_soon` and `call_later` of a loop, under the control of a test.

    `end` ends a turn: it runs the functions that are due, and not those that they add. `elapse` runs all timers.
    """

    def __init__(self) -> None:
        self.due: list[Callable[[], object]] = []
        self.timers: list[Timer] = []

    def call_soon(self, run: Callable[[], object]) -> None:
        self.due.append(run)

    def call_later(self, seconds: float, run: Callable[[], object]) -> Timer:
        return Timer(seconds, run, self.timers)

    def elapse(self) -> None:
        timers = self.timers.copy()
        self.timers.clear()
        for timer in timers:
            timer.run()

    def end(self) -> None:
        due, self.due = self.due, []
        for run in due:
            run()

    def drain(self, most: int = 5000) -> None:
        """Ends turns until no function and no timer is due."""
        while self.due or self.timers:
            assert most, "the turns never end"
            most -= 1
            if not self.due:
                self.elapse()
            self.end()


class LoopTurns:
    """The `call_soon` and `call_later` of the running loop."""

    def call_soon(self, run: Callable[[], object]) -> object:
        return asyncio.get_running_loop().call_soon(run)

    def call_later(self, seconds: float, run: Callable[[], object]) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, run)
