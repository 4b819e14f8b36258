"""The publish batcher: one broker message for each topic and turn, and the result of each publish."""

import asyncio

import pytest

from push1st.brokers.redis.publishing import CONFIRM_SECONDS, MAX_KEPT_BYTES, MAX_KEPT_MESSAGES, MAX_QUEUED, Batch, PublishBatcher
from push1st.brokers.redis.resp import RespConnection, pack
from push1st.brokers.redis.wire import decode_message, decode_messages
from push1st.config.history import HistorySection
from push1st.errors import Refused
from push1st.messages import KeptMessage, Message, Published
from push1st.metrics import Metrics
from tests.support.loop import turns
from tests.support.transport import Transport


def message(n: int, channel: str = "c") -> Message:
    return Message("app", channel, "e", b"%d" % n, n, n)


class Desk:
    """A publish batcher on a connection for which the test sends the replies."""

    def __init__(self) -> None:
        self.transport = Transport()
        self.transport.get_write_buffer_size = lambda: self.behind  # type: ignore[method-assign]
        self.behind = 0
        self.link = RespConnection(lambda _: None, lambda: None)
        self.link.connection_made(self.transport)
        self.metrics = Metrics()
        self.ids: list[list[int]] = []
        """the ids of the messages of each sent batch"""
        self.keys: list[str] = []
        self.sent: list[tuple[str, list[Message], bytes | None]] = []
        self.publishing = PublishBatcher(self._send, self.metrics)
        self.publishing.connection = self.link

    def _send(self, link: RespConnection, batch: Batch, data: bytes, cached: bytes | None) -> None:
        self.ids.append([one.id for one in batch.messages])
        self.keys.append(batch.key)
        if batch.section is None:
            self.sent.append((batch.channel, decode_messages(data), cached))
        link.send(pack(("PUBLISH",)), batch.published)
        link.send(pack(("HGET",)), batch.counted)

    def publish(self, one: Message, milliseconds: int | None = None) -> "asyncio.Future[Published]":
        return self.publishing.publish(one, milliseconds)


async def test_messages_of_a_topic_within_a_turn_are_one_broker_message():
    desk = Desk()
    for n, channel in ((1, "a"), (2, "b"), (3, "a")):
        desk.publish(message(n, channel))
    await turns()
    desk.publish(message(4, "a"))
    await turns()
    assert [(channel, [one.id for one in messages]) for channel, messages, _ in desk.sent] == [
        ("a", [1, 3]),
        ("b", [2]),
        ("a", [4]),
    ]
    assert len(desk.transport.writes) == 2


async def test_each_publish_returns_the_count():
    desk = Desk()
    counts = [desk.publish(message(n)) for n in range(3)]
    await turns()
    desk.link.data_received(b":2\r\n$2\r\n17\r\n")
    assert await asyncio.gather(*counts) == [Published(17)] * 3


async def test_channel_without_subscribers_has_count_0():
    desk = Desk()
    count = desk.publish(message(1))
    await turns()
    desk.link.data_received(b":0\r\n_\r\n")
    assert (await count).count == 0


async def test_the_last_message_that_is_kept_is_kept():
    desk = Desk()
    desk.publish(message(1), 5)
    desk.publish(message(2), 7)
    desk.publish(message(3))
    await turns()
    ((_, messages, cached),) = desk.sent
    assert [one.id for one in messages] == [1, 2, 3]
    assert cached is not None
    assert decode_message(cached) == message(2)


async def refusal(future: "asyncio.Future[Published]") -> str:
    with pytest.raises(Refused) as refused:
        await future
    assert refused.value.code == 503
    return refused.value.text


async def test_without_a_connection_publishing_is_rejected():
    desk = Desk()
    desk.publishing.connection = None
    with pytest.raises(Refused, match="503: the broker is away: nothing was published"):
        desk.publish(message(1))


async def test_connection_lost_before_the_end_of_the_turn_publishes_nothing():
    desk = Desk()
    future = desk.publish(message(1))
    desk.link.abort()
    await turns()
    assert await refusal(future) == "the broker is away: nothing was published"
    assert desk.sent == []


async def test_connection_lost_before_the_reply_leaves_the_publish_unconfirmed():
    desk = Desk()
    future = desk.publish(message(1))
    await turns()
    desk.link.connection_lost(None)
    assert "may have been delivered to some" in await refusal(future)


async def test_publish_rejected_by_the_server_is_rejected():
    desk = Desk()
    future = desk.publish(message(1))
    await turns()
    desk.link.data_received(b"-OOM command not allowed\r\n_\r\n")
    assert await refusal(future) == "the broker refused: OOM command not allowed"


async def test_unconfirmed_publish_is_rejected_after_two_seconds_and_counted():
    desk = Desk()
    first = desk.publish(message(1))
    await turns()
    now = asyncio.get_running_loop().time()
    desk.publishing.tick(now + CONFIRM_SECONDS - 0.5)
    assert not first.done()
    desk.publishing.tick(now + CONFIRM_SECONDS + 0.5)
    assert "not confirmed in time" in await refusal(first)
    assert desk.metrics.broker_unconfirmed == 1
    desk.link.data_received(b":1\r\n$1\r\n1\r\n")  # after the timeout


async def test_confirmed_publish_is_not_rejected():
    desk = Desk()
    future = desk.publish(message(1))
    await turns()
    desk.link.data_received(b":1\r\n$1\r\n1\r\n")
    desk.publishing.tick(asyncio.get_running_loop().time() + 100)
    assert await future == Published(1)
    assert desk.metrics.broker_unconfirmed == 0


async def test_slow_server_gets_no_further_publishes():
    desk = Desk()
    desk.behind = MAX_QUEUED + 1
    with pytest.raises(Refused, match="too slow"):
        desk.publish(message(1))


SECTION = HistorySection()


def kept(n: int, data: bytes = b"1") -> KeptMessage:
    return KeptMessage("app", "c", "e", data, n, n)


async def test_messages_with_and_without_a_history_are_batches_in_the_order_of_the_calls():
    desk = Desk()
    for n, section in enumerate((SECTION, SECTION, None, SECTION, None)):
        desk.publishing.publish(kept(n), None, section)
    await turns()
    assert desk.ids == [[0, 1], [2], [3], [4]]
    assert len(desk.transport.writes) == 1


async def test_message_with_a_key_is_a_batch_of_its_own():
    desk = Desk()
    for n, key in enumerate(("", "k", "", "k", "l", "")):
        desk.publishing.publish(kept(n), None, SECTION, key)
    await turns()
    assert desk.ids == [[0], [1], [2], [3], [4], [5]]
    assert desk.keys == ["", "k", "", "k", "l", ""]


async def test_batch_with_a_history_has_a_maximum_length_and_size():
    desk = Desk()
    for n in range(MAX_KEPT_MESSAGES + 1):
        desk.publishing.publish(kept(n), None, SECTION)
    for n in range(4):
        desk.publishing.publish(kept(n, b"x" * (MAX_KEPT_BYTES // 2)), None, SECTION)
    await turns()
    assert list(map(len, desk.ids)) == [MAX_KEPT_MESSAGES, 3, 2]


async def test_batch_without_a_history_has_no_maximum():
    desk = Desk()
    for n in range(5 * MAX_KEPT_MESSAGES):
        desk.publish(message(n))
    await turns()
    assert list(map(len, desk.ids)) == [5 * MAX_KEPT_MESSAGES]


async def test_connection_lost_within_the_turn_fails_also_the_batches_that_were_complete():
    desk = Desk()
    futures = [desk.publishing.publish(kept(0), None, SECTION)]
    desk.link.abort()
    futures.append(desk.publishing.publish(kept(1), None, SECTION, "k"))
    await turns()
    assert [await refusal(future) for future in futures] == ["the broker is away: nothing was published"] * 2
    assert desk.ids == []
