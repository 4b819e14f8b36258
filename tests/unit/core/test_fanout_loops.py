"""The fan-out on a real event loop: asyncio's, and uvloop, which workers run on."""

import asyncio

import pytest

from push1st.core import fanout
from tests.support.loop import LoopTurns, turns
from tests.support.node import Stage

pytestmark = pytest.mark.usefixtures("loop_factory")


@pytest.fixture
def stage():
    return Stage(LoopTurns())


async def test_messages_of_a_turn_are_one_write(stage):
    client = stage.client("c")
    for data in (b"1", b"2", b"3"):
        stage.publish("c", data)
    assert client.writes == []
    await turns(1)
    assert client.writes == [b"123"]


async def test_messages_of_later_turns_are_written_in_order(stage):
    client = stage.client("c")
    for data in (b"1", b"2", b"3"):
        stage.publish("c", data)
        await turns(1)
    assert client.writes == [b"1", b"2", b"3"]


async def test_direct_frame_is_written_after_pending_frames_of_its_connection(stage):
    client = stage.client("c")
    stage.publish("c", b"event")
    stage.direct(client, b"reply")
    await turns(1)
    assert client.received == b"eventreply"


async def test_long_flush_takes_one_slice_of_each_turn(stage):
    clients = [stage.client("c") for _ in range(3 * fanout.SLICE_WRITES)]
    stage.publish("c", b"1")
    counts = []
    for _ in range(3):
        await turns(1)
        counts.append(sum(len(client.writes) for client in clients))
    assert counts == [fanout.SLICE_WRITES, 2 * fanout.SLICE_WRITES, 3 * fanout.SLICE_WRITES]


async def test_flush_that_waits_for_more_messages_is_done_by_its_timer(stage):
    clients = [stage.client("c") for _ in range(100)]
    for data in (b"1", b"2", b"3"):
        stage.publish("c", data)
    await turns(1)
    stage.publish("c", b"4")
    await turns(1)
    assert {client.received for client in clients} == {b"123"}
    written = asyncio.Event()
    clients[-1].on_write = lambda _: written.set()
    async with asyncio.timeout(5):
        await written.wait()
    assert {client.received for client in clients} == {b"1234"}


async def test_publish_within_a_write_is_delivered_in_a_later_turn(stage):
    one, two = stage.client("a"), stage.client("b")
    one.on_write = lambda _: stage.publish("b", b"2")
    stage.publish("a", b"1")
    await turns(1)
    assert (one.writes, two.writes) == ([b"1"], [])
    await turns(1)
    assert two.writes == [b"2"]
