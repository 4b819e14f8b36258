"""The publish batcher: one broker message for each topic and turn, and the result of each publish."""

import asyncio
from collections.abc import Sequence

import pytest

from push1st.brokers.redis.known_filters import KnownFilter, KnownFilters, Searches
from push1st.brokers.redis.publishing import CONFIRM_SECONDS, MAX_KEPT_BYTES, MAX_KEPT_MESSAGES, MAX_QUEUED, Batch, PublishBatcher
from push1st.brokers.redis.resp import RespConnection, pack
from push1st.brokers.redis.retained import decode_stored
from push1st.brokers.redis.wire import decode_messages
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
        self.searches = Searches()
        self.known = KnownFilters(self.searches)
        self.batches: list[Batch] = []
        self.nodes: list[tuple[str, ...]] = []
        """the nodes of each sent batch"""
        self.copies: list[tuple[str, int]] = []
        """the node and the first message's id of each copy that was sent later than its batch"""
        self.publishing = PublishBatcher(self._send, self._send_copies, self._send_to_group, self.known, self.metrics)
        self.publishing.connection = self.link

    def _send(self, link: RespConnection, batch: Batch, data: bytes, cached: bytes | None) -> None:
        self.ids.append([one.id for one in batch.messages])
        self.keys.append(batch.key)
        self.nodes.append(() if batch.copies is None else batch.copies.nodes)
        self.batches.append(batch)
        if batch.section is None:
            self.sent.append((batch.channel, decode_messages(data), cached))
        link.send(pack(("PUBLISH",)), batch.published)
        link.send(pack(("HGET",)), batch.counted)

    def _send_copies(self, link: RespConnection, batch: Batch, nodes: Sequence[str]) -> None:
        self.copies += [(node, batch.messages[0].id) for node in nodes]
        if nodes:
            link.send(pack(("PUBLISH",)), batch.copied)
        else:
            batch.copied(None)

    def _send_to_group(self, link: RespConnection, batch: Batch, group: KnownFilter) -> int:
        self.copies.append((group.name, batch.messages[0].id))
        link.send(pack(("PUBLISH",)), batch.copied)
        return 1

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
    assert decode_stored(cached, -1, 0) == message(2)


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


async def test_a_batch_has_the_nodes_with_a_matching_filter():
    desk = Desk()
    desk.known.change("app", "a.+", "n1", 1)
    desk.known.change("app", "#", "n2", 1)
    results = [desk.publish(message(n, channel)) for n, channel in ((1, "a.b"), (2, "c"), (3, "a.b"))]
    desk.known.change("app", "c", "n3", 1)  # before the end of the turn
    await turns()
    assert [set(nodes) for nodes in desk.nodes] == [{"n1", "n2"}, {"n2", "n3"}]
    desk.link.data_received(b":0\r\n_\r\n:0\r\n$1\r\n7\r\n")
    assert await asyncio.gather(*results) == [Published(0, filters=2), Published(7, filters=2), Published(0, filters=2)]


async def test_unconfirmed_batches_reach_a_node_whose_filter_is_reported_before_their_replies():
    desk = Desk()
    results = [desk.publish(message(1, "a.b")), desk.publish(message(2, "a.c"))]
    await turns()
    desk.link.data_received(b":0\r\n_\r\n")
    desk.known.change("app", "a.+", "n1", 1)
    desk.known.change("app", "a.#", "n1", 1)
    desk.known.change("other", "a.#", "n2", 1)
    desk.publish(message(3, "a.d"))
    await turns()
    assert desk.copies == [("n1", 2)], "the first batch was confirmed before the filter was registered"
    assert desk.nodes[-1] == ("n1",)
    desk.link.data_received(b":0\r\n_\r\n")
    await turns()
    assert results[0].done()
    assert not results[1].done(), "the copy is confirmed first"
    desk.link.data_received(b":1\r\n")
    assert await results[1] == Published(0, filters=1)


async def test_a_filter_that_returns_causes_no_second_copy():
    desk = Desk()
    desk.publish(message(1, "a"))
    await turns()
    for value in (1, 0, 1):
        desk.known.change("app", "a", "n1", value)
    desk.publish(message(2, "a"))
    await turns()
    for value in (0, 1):
        desk.known.change("app", "a", "n1", value)
    desk.known.change("app", "a", "n2", 1)
    desk.link.data_received(b":0\r\n_\r\n:1\r\n:0\r\n_\r\n")
    assert desk.copies == [("n1", 1), ("n2", 1), ("n2", 2)]


async def test_an_unconfirmed_batch_is_copied_although_the_only_filter_had_ended_when_it_was_sent():
    """The broker has registered the filter again before it runs the second batch."""
    desk = Desk()
    desk.publish(message(1, "a"))
    await turns()
    for value in (1, 0):
        desk.known.change("app", "a", "n1", value)
    result = desk.publish(message(2, "a"))
    await turns()
    desk.known.change("app", "a", "n1", 1)
    desk.link.data_received(b":0\r\n_\r\n" * 2)
    assert desk.copies == [("n1", 1), ("n1", 2)]
    assert not result.done()


async def test_an_unconfirmed_batch_is_not_copied_for_a_filter_that_does_not_match():
    desk = Desk()
    results = [desk.publish(message(n, channel)) for n, channel in ((1, "a"), (2, "b"))]
    await turns()
    desk.known.change("app", "b", "n1", 1)
    desk.link.data_received(b":0\r\n_\r\n" * 2 + b":1\r\n")
    assert desk.copies == [("n1", 2)]
    assert [(await result).filters for result in results] == [0, 1]


async def test_many_added_filters_cause_one_search_for_each_unconfirmed_batch():
    desk = Desk()
    for n in range(10):
        desk.publish(message(n, f"a{n}"))
    await turns()
    for n in range(100):
        desk.known.change("app", f"b{n}", f"n{n}", 1)
    assert desk.searches.cost == 0
    desk.link.data_received(b":0\r\n_\r\n" * 10)
    assert desk.searches.cost == 20, "two visited nodes for each batch"


async def test_a_copy_that_the_broker_rejects_fails_its_batch():
    desk = Desk()
    result = desk.publish(message(1, "a"))
    await turns()
    desk.known.change("app", "a", "n1", 1)
    desk.link.data_received(b":0\r\n_\r\n-ERR no\r\n")
    assert await refusal(result) == "the broker refused: ERR no"


async def test_copies_of_a_topic_keep_the_order_of_its_messages():
    """The broker decides whether it accepts the first message, so its copy does not wait for the reply."""
    desk = Desk()
    desk.publishing.publish(message(1, "a"), idempotency_key="k")
    await turns()
    desk.known.change("app", "a", "n1", 1)
    desk.publish(message(2, "a"))
    await turns()
    assert desk.copies == [("n1", 1)]
    assert desk.nodes == [(), ("n1",)]


async def test_a_search_happens_while_a_message_is_published():
    """So its cost is charged to the publisher."""
    desk = Desk()
    desk.known.change("app", "a.+", "n1", 1)
    desk.publish(message(1, "a.b"))
    cost = desk.searches.cost
    assert cost > 0
    await turns()
    assert desk.searches.cost == cost


async def test_unconfirmed_batches_reach_a_group_that_is_reported_before_their_replies():
    desk = Desk()
    first, second, other = (desk.publish(message(n, channel)) for n, channel in ((1, "a.b"), (2, "a.c"), (3, "b")))
    await turns()
    desk.known.change("app", "$share/g/a.b", "", 1)
    desk.known.change("app", "$share/g/a.b", "n1", 1)
    desk.known.change("app", "$share/h/a.+", "n1", 1)
    desk.known.change("app", "$share/h/a.+", "n2", 1)
    desk.link.data_received(b":1\r\n:1\r\n" * 3)
    assert desk.copies == [("$share/g/a.b", 1), ("$share/h/a.+", 1), ("$share/h/a.+", 2)]
    await turns()
    assert (first.done(), second.done(), other.done()) == (False, False, True)
    desk.link.data_received(b":1\r\n" * 3)
    await turns()
    assert first.done()
    assert second.done()
    later = desk.publish(message(4, "a.b"))
    await turns()
    copies = desk.batches[-1].copies
    assert copies is not None
    assert [one.name for one in copies.groups] == ["$share/g/a.b", "$share/h/a.+"]
    assert len(desk.copies) == 3
    assert not later.done()
