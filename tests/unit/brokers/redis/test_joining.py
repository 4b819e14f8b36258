"""The join batcher: joins of a channel within a turn are one step, and each join gets its own result."""

import asyncio

import hiredis
import pytest

from push1st.brokers.redis.joining import ADDED, MAX_JOINS, REFUSED, JoinBatch, JoinBatcher, PendingJoin
from push1st.brokers.redis.resp import RespConnection
from push1st.messages import Member
from tests.support.loop import turns
from tests.support.transport import Transport

KEY = ("app", "presence-c")


class Desk:
    """A join batcher whose steps the test records and answers."""

    def __init__(self) -> None:
        self.steps: list[JoinBatch] = []
        self.joining = JoinBatcher(self.steps.append)
        self.link = self.another_link()

    def another_link(self) -> RespConnection:
        link = RespConnection(lambda _: None, lambda: None)
        link.connection_made(Transport())
        return link

    def join(self, user: str, key: tuple[str, str] = KEY, want: str = "") -> tuple[JoinBatch, PendingJoin]:
        return self.joining.join(self.link, key, Member(user), f"1.{user}", (1, 2), 0, want)

    @property
    def sent(self) -> list[list[str]]:
        return [[one.member.user_id for one in step.pending if one.member] for step in self.steps]


async def test_joins_of_a_channel_within_a_turn_are_one_step():
    desk = Desk()
    for user, channel in (("a", "presence-c"), ("b", "presence-d"), ("c", "presence-c")):
        desk.join(user, ("app", channel))
    assert desk.sent == []
    await turns()
    desk.join("d")
    await turns()
    assert desk.sent == [["a", "c"], ["b"], ["d"]]


async def test_step_requests_all_that_any_of_its_joins_needs():
    desk = Desk()
    desk.join("a", want="m")
    desk.join("b", want="k")
    await turns()
    assert set(desk.steps[0].want) == {"m", "k"}


async def test_step_has_a_maximum_number_of_joins():
    desk = Desk()
    for number in range(MAX_JOINS + 1):
        desk.join(str(number))
    await turns()
    assert list(map(len, desk.sent)) == [MAX_JOINS, 1]


async def test_joins_on_another_connection_are_another_step():
    desk = Desk()
    desk.join("a")
    desk.link = desk.another_link()
    desk.join("b")
    await turns()
    assert desk.sent == [["a"], ["b"]]


async def test_pending_joins_of_a_channel_can_be_sent_early_once():
    desk = Desk()
    desk.join("a")
    desk.joining.send(KEY)
    desk.joining.send(KEY)
    assert desk.sent == [["a"]]
    desk.join("b")
    await turns()
    assert desk.sent == [["a"], ["b"]]


async def test_each_join_gets_its_own_result():
    desk = Desk()
    ways = [desk.join(user) for user in "abc"]
    await turns()
    desk.steps[0].on_reply([3, [b"x", b"1:null"], b"kept", 7, [ADDED, REFUSED, 0], None])
    await asyncio.gather(*(coming.done for _, coming in ways))
    assert [coming.result for _, coming in ways] == [ADDED, REFUSED, 0]
    assert {step for step, _ in ways} == {desk.steps[0]}
    assert (desk.steps[0].found, desk.steps[0].cached, desk.steps[0].left) == ([b"x", b"1:null"], b"kept", 7)


async def test_a_step_that_failed_fails_for_all_of_it():
    desk = Desk()
    ways = [desk.join(user) for user in "ab"]
    await turns()
    desk.steps[0].on_reply(hiredis.ReplyError("NOLEASE"))
    for _, coming in ways:
        with pytest.raises(hiredis.ReplyError, match="NOLEASE"):
            await coming.done


async def test_cancelled_join_does_not_delay_the_others():
    desk = Desk()
    (_, gone), (_, other) = desk.join("a"), desk.join("b")
    gone.done.cancel()
    await turns()
    desk.steps[0].on_reply([2, None, None, 0, [ADDED, ADDED], None])
    await other.done
    assert gone.done.cancelled()
