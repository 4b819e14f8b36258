"""Coroutines that start at once."""

import asyncio
import contextlib

import pytest

from push1st import eager
from push1st.eager import Suspended, begin, settled, spawn
from tests.support.loop import turns

pytestmark = pytest.mark.usefixtures("loop_factory")


async def add(a: int, b: int) -> int:
    return a + b


async def after(future: "asyncio.Future[int]") -> int:
    return await future + await future


def test_what_does_not_wait_is_done_at_once():
    assert begin(add(1, 2)) == 3


def test_what_is_raised_before_the_first_wait_is_raised_at_once():
    async def fail():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        begin(fail())


async def test_what_waits_has_a_rest_that_can_be_awaited():
    future = asyncio.get_running_loop().create_future()
    rest = begin(after(future))
    assert isinstance(rest, Suspended)
    asyncio.get_running_loop().call_soon(future.set_result, 21)
    assert await rest == 42


async def test_a_rest_goes_on_where_it_waited_even_if_that_is_over_already():
    future = asyncio.get_running_loop().create_future()
    rest = begin(after(future))
    future.set_result(1)
    assert isinstance(rest, Suspended)
    assert await rest == 2


async def test_several_may_begin_to_wait_for_one_future():
    future = asyncio.get_running_loop().create_future()

    async def wait():
        return await future

    rests = [begin(wait()) for _ in range(3)]
    future.get_loop().call_soon(future.set_result, 1)
    assert await asyncio.gather(*(rest for rest in rests if isinstance(rest, Suspended))) == [1, 1, 1]


async def test_what_the_wait_raises_is_raised_within():
    future = asyncio.get_running_loop().create_future()

    async def forgiving():
        try:
            await future
        except ValueError:
            return "forgiven"

    rest = begin(forgiving())
    future.set_exception(ValueError())
    assert isinstance(rest, Suspended)
    assert await rest == "forgiven"


async def test_a_rest_raises_what_its_coroutine_raises():
    async def fail():
        await asyncio.sleep(0)
        raise ValueError("late")

    rest = begin(fail())
    assert isinstance(rest, Suspended)
    with pytest.raises(ValueError, match="late"):
        await rest


async def test_a_cancelled_rest_cancels_its_coroutine():
    ended = []

    async def waiting():
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append(True)

    async def rest_of(rest):
        await rest

    task = asyncio.create_task(rest_of(begin(waiting())))
    await turns()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert ended == [True]


async def test_spawning_what_does_not_wait_makes_no_task():
    order = []

    async def step():
        order.append("in")

    spawn(step())
    order.append("after")
    assert order == ["in", "after"]
    assert len(asyncio.all_tasks()) == 1


async def test_what_waits_goes_on_in_a_task_that_is_kept():
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


async def test_settled_waits_for_everything_spawned_and_what_that_spawns():
    done = []

    async def second():
        await asyncio.sleep(0)
        done.append(2)

    async def first():
        await asyncio.sleep(0)
        spawn(second())
        done.append(1)

    spawn(first())
    await settled()
    assert done == [1, 2]


async def test_steps_spawned_one_after_another_begin_in_that_order():
    order = []

    async def step(n):
        order.append(n)
        await asyncio.sleep(0)
        order.append(n + 10)

    for n in range(3):
        spawn(step(n))
    await settled()
    assert order == [0, 1, 2, 10, 11, 12]
