"""Coroutines that start at once."""

import asyncio
import contextlib

import pytest

from push1st import eager
from push1st.eager import Suspended, join_background, run_eagerly, spawn
from tests.support.loop import turns
from tests.support.process import DEADLINE

pytestmark = pytest.mark.usefixtures("loop_factory")


async def add(a: int, b: int) -> int:
    return a + b


async def after(future: "asyncio.Future[int]") -> int:
    return await future + await future


def test_coroutine_that_does_not_wait_returns_its_result_at_once():
    assert run_eagerly(add(1, 2)) == 3


def test_exception_before_the_first_wait_is_raised_at_once():
    async def fail():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run_eagerly(fail())


async def test_timeout_is_rejected_before_the_first_wait():
    """The timeout would cancel the task of this test, and not the coroutine."""

    async def with_timeout():
        async with eager.timeout(1):
            await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="no timeout"):
        run_eagerly(with_timeout())
    await asyncio.create_task(with_timeout())


async def test_timeout_is_accepted_after_the_first_wait():
    async def with_timeout():
        await asyncio.sleep(0)
        async with eager.timeout(0):
            await asyncio.sleep(DEADLINE)

    rest = run_eagerly(with_timeout())
    assert isinstance(rest, Suspended)
    with pytest.raises(TimeoutError):
        await rest


async def test_waiting_coroutine_returns_an_awaitable():
    future = asyncio.get_running_loop().create_future()
    rest = run_eagerly(after(future))
    assert isinstance(rest, Suspended)
    asyncio.get_running_loop().call_soon(future.set_result, 21)
    assert await rest == 42


async def test_suspended_coroutine_resumes_even_if_its_future_is_done():
    future = asyncio.get_running_loop().create_future()
    rest = run_eagerly(after(future))
    future.set_result(1)
    assert isinstance(rest, Suspended)
    assert await rest == 2


async def test_several_coroutines_may_suspend_on_one_future():
    future = asyncio.get_running_loop().create_future()

    async def wait():
        return await future

    rests = [run_eagerly(wait()) for _ in range(3)]
    future.get_loop().call_soon(future.set_result, 1)
    assert await asyncio.gather(*(rest for rest in rests if isinstance(rest, Suspended))) == [1, 1, 1]


async def test_exception_of_the_future_is_raised_in_the_coroutine():
    future = asyncio.get_running_loop().create_future()

    async def forgiving():
        try:
            await future
        except ValueError:
            return "forgiven"

    rest = run_eagerly(forgiving())
    future.set_exception(ValueError())
    assert isinstance(rest, Suspended)
    assert await rest == "forgiven"


async def test_suspended_coroutine_raises_its_exception():
    async def fail():
        await asyncio.sleep(0)
        raise ValueError("late")

    rest = run_eagerly(fail())
    assert isinstance(rest, Suspended)
    with pytest.raises(ValueError, match="late"):
        await rest


async def test_cancelling_a_suspended_coroutine_cancels_it():
    ended = []

    async def waiting():
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append(True)

    async def rest_of(rest):
        await rest

    task = asyncio.create_task(rest_of(run_eagerly(waiting())))
    await turns()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert ended == [True]


async def test_spawning_a_coroutine_that_does_not_wait_makes_no_task():
    order = []

    async def step():
        order.append("in")

    spawn(step())
    order.append("after")
    assert order == ["in", "after"]
    assert len(asyncio.all_tasks()) == 1


async def test_spawned_coroutine_that_waits_resumes_in_a_referenced_task():
    future = asyncio.get_running_loop().create_future()
    order = []

    async def step():
        order.append("in")
        await future
        order.append("done")

    spawn(step())
    order.append("after")
    await turns()
    assert order == ["in", "after"]
    future.set_result(None)
    await turns()
    assert order == ["in", "after", "done"]
    assert not eager._running


async def test_waiting_for_spawned_coroutines_includes_those_they_spawn():
    done = []

    async def second():
        await asyncio.sleep(0)
        done.append(2)

    async def first():
        await asyncio.sleep(0)
        spawn(second())
        done.append(1)

    spawn(first())
    await join_background()
    assert done == [1, 2]


async def test_spawned_coroutines_start_in_their_order():
    order = []

    async def step(n):
        order.append(n)
        await asyncio.sleep(0)
        order.append(n + 10)

    for n in range(3):
        spawn(step(n))
    await join_background()
    assert order == [0, 1, 2, 10, 11, 12]
