"""Channels with a history that a node follows: how it heals gaps, which gaps it reports, and how it renews counters."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import hiredis
import msgspec
import pytest

from push1st.brokers.redis.following import MAX_ALL_HELD_BYTES, MAX_HELD_BYTES, MAX_HELD_MESSAGES, MIN_CHECKED, ROUND_CALLS
from push1st.brokers.redis.wire import encode_kept
from push1st.messages import RESUMED, KeptMessage, Message
from push1st.positions import Position
from tests.unit.brokers.redis.server import Node, Server, settle

KEY = ("app", "c")
EPOCH = "Gen01Word1"
Told = tuple[str, str, int]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Server]:
    return lambda: Server(monkeypatch)


def batch(first: int, last: int, epoch: str = EPOCH, data: bytes = b"1", channel: str = "c") -> list[KeptMessage]:
    return [KeptMessage("app", channel, "e", data, n, 1, offset=n, epoch=epoch) for n in range(first, last + 1)]


def history(last: int, first: int, *entries: tuple[int, int], word: bytes = b"Word1") -> list[Any]:
    """Returns the reply for one channel. entries: the first and the last offset of each returned entry, newest first."""
    found: list[Any] = []
    for begin, end in entries:
        found += b"%d-%d" % (end, end - begin + 1), encode_kept(batch(begin, end))
    return [word, last, first, found]


def seen(messages: Sequence[Message]) -> list[int | tuple[str, str]]:
    """Returns the offset of each message, and the reason and the position of each reported gap."""
    found: list[int | tuple[str, str]] = []
    for one in messages:
        assert isinstance(one, KeptMessage)
        if one.event == RESUMED:
            told = msgspec.json.decode(one.data)
            assert told["recovered"] is False
            assert told["position"] == f"{one.epoch}:{one.offset}"
            found.append((told["reason"], told["position"]))
        else:
            found.append(one.offset)
    return found


class Followed:
    """A node that follows a channel from an offset on."""

    def __init__(self, server: Server, offset: int = 5) -> None:
        self.server = server
        self.node = Node()
        self._offset = offset

    async def start(self) -> "Followed":
        await self.node.start()
        self.following = self.node.shard.following
        self.following.begin(KEY, Position(EPOCH, self._offset), 360)
        self.server.commands.clear()
        return self

    def receive(self, *batches: list[KeptMessage]) -> None:
        for one in batches:
            self.following.receive(one)

    async def reconnect(self, *meanwhile: list[KeptMessage], **registered: Any) -> None:
        """Reconnects. meanwhile: batches that arrive after the node has subscribed and before it has read the missed messages."""
        replies = self.server.replies["HEAL"]

        def heal(command: Any) -> Any:
            self.receive(*meanwhile)
            return replies

        self.server.replies["HEAL"] = heal
        self.server.connections[-1].abort()
        await settle()

    @property
    def seen(self) -> list[int | tuple[str, str]]:
        return seen(self.node.received)

    @property
    def gaps(self) -> tuple[int, int]:
        """The numbers of healed and of reported gaps."""
        metrics = self.node.context.metrics
        return metrics.gaps_healed, metrics.gaps_reported


# On an unbroken connection


async def test_consecutive_batches_are_delivered(serve):
    followed = await Followed(serve()).start()
    followed.receive(batch(6, 7), batch(8, 8))
    assert (followed.seen, followed.gaps) == ([6, 7, 8], (0, 0))


async def test_batch_of_a_channel_that_nobody_follows_is_delivered(serve):
    followed = await Followed(serve()).start()
    followed.receive(batch(1, 2, channel="d"), batch(9, 9, channel="d"))
    assert (followed.seen, followed.gaps) == ([1, 2, 9], (0, 0))


async def test_messages_that_were_delivered_are_dropped(serve):
    followed = await Followed(serve()).start()
    followed.receive(batch(3, 5), batch(4, 7), batch(7, 7), batch(8, 8))
    assert (followed.seen, followed.gaps) == ([6, 7, 8], (0, 0))


async def test_gap_on_an_unbroken_connection_is_read_and_later_batches_wait(serve):
    server = serve()
    followed = await Followed(server).start()
    server.replies["HEAL"] = [history(9, 1, (9, 9), (7, 8), (6, 6))]
    followed.receive(batch(9, 9), batch(10, 11))
    assert followed.seen == []
    await settle()
    assert (followed.seen, followed.gaps) == ([6, 7, 8, 9, 10, 11], (1, 0))
    ((name, arguments),) = server.commands
    assert (name, arguments[0], arguments[4:]) == ("HEAL", b"Gen01", [b"app", b"c", b"360000", EPOCH.encode(), b"5"])


async def test_copies_for_filters_follow_the_missed_messages(serve):
    server = serve()
    followed = await Followed(server).start()
    server.replies["HEAL"] = [history(9, 1, (9, 9), (7, 8), (6, 6))]
    copies: list[Message] = []
    delivered = followed.node.received

    def receive(one: Message) -> int:
        copies.append(one)
        assert seen(delivered) == [6, 7, 8, 9]
        return 1

    assert not followed.following.hold_copy(batch(8, 8), receive)
    followed.receive(batch(9, 9))
    assert followed.following.hold_copy(batch(9, 9), receive)
    assert copies == []
    await settle()
    assert seen(copies) == [9]
    assert not followed.following.hold_copy(batch(10, 10), receive)


async def test_gap_whose_messages_are_not_kept_is_reported(serve):
    server = serve()
    followed = await Followed(server).start()
    server.replies["HEAL"] = [history(9, 8)]
    followed.receive(batch(9, 9), batch(10, 10))
    await settle()
    assert (followed.seen, followed.gaps) == ([("trimmed", f"{EPOCH}:9"), 10], (0, 1))


async def test_gap_that_the_server_does_not_read_is_reported_before_the_batch(serve):
    server = serve()
    followed = await Followed(server).start()
    server.replies["HEAL"] = hiredis.ReplyError("OOM")
    followed.receive(batch(9, 9))
    await settle()
    assert (followed.seen, followed.gaps) == ([("trimmed", f"{EPOCH}:8"), 9], (0, 1))


async def test_first_message_of_a_new_epoch_follows_without_a_gap(serve):
    """The history was cleared, or the server lost its keys, and the connection stayed: nothing was missed."""
    followed = await Followed(serve()).start()
    followed.receive(batch(6, 6), batch(1, 2, "Gen01Word2"), batch(3, 3, "Gen01Word2"))
    assert (followed.seen, followed.gaps) == ([6, 1, 2, 3], (0, 0))


async def test_later_message_of_a_new_epoch_is_reported_as_a_gap(serve):
    followed = await Followed(serve()).start()
    followed.receive(batch(3, 3, "Gen01Word2"), batch(4, 4, "Gen01Word2"))
    assert (followed.seen, followed.gaps) == ([("state-lost", "Gen01Word2:2"), 3, 4], (0, 1))


async def test_message_of_another_generation_is_reported_as_a_gap(serve):
    followed = await Followed(serve()).start()
    followed.receive(batch(1, 1, "Gen02Word2"))
    assert (followed.seen, followed.gaps) == ([("state-lost", "Gen02Word2:0"), 1], (0, 1))


async def test_join_during_a_read_reports_the_gap_and_drops_what_the_join_has(serve):
    """The new subscriber has the messages up to its position, so nothing before this position may follow."""
    server = serve()
    followed = await Followed(server).start()
    server.replies["HEAL"] = [history(9, 1, (9, 9), (6, 8))]
    followed.receive(batch(9, 9))
    followed.following.begin(KEY, Position(EPOCH, 9), 360)
    await settle()
    followed.receive(batch(10, 10))
    assert (followed.seen, followed.gaps) == ([("trimmed", f"{EPOCH}:9"), 10], (0, 1))


async def test_join_at_the_known_position_reports_nothing(serve):
    followed = await Followed(serve()).start()
    followed.receive(batch(6, 6))
    followed.following.begin(KEY, Position(EPOCH, 6), 360)
    followed.following.begin(KEY, Position("Gen01Word2", 0), 360)
    assert (followed.seen, followed.gaps) == ([6], (0, 0))


async def test_join_that_finds_a_later_position_reports_the_gap(serve):
    followed = await Followed(serve()).start()
    followed.following.begin(KEY, Position(EPOCH, 7), 360)
    followed.following.begin(KEY, Position("Gen01Word2", 3), 360)
    assert followed.seen == [("trimmed", f"{EPOCH}:7"), ("state-lost", "Gen01Word2:3")]


async def test_channel_that_is_left_during_a_read_gets_nothing(serve):
    server = serve()
    followed = await Followed(server).start()
    server.replies["HEAL"] = [history(9, 1, (6, 9))]
    followed.receive(batch(9, 9))
    followed.following.end(KEY)
    await settle()
    assert followed.seen == []


# After a reconnect to the same run of the server


async def test_missed_messages_are_delivered_before_those_that_arrive_meanwhile(serve):
    server = serve()
    followed = await Followed(server).start()
    server.replies["HEAL"] = [history(10, 1, (10, 10), (7, 9), (5, 6))]
    await followed.reconnect(batch(9, 10), batch(11, 12))
    assert (followed.seen, followed.gaps) == ([6, 7, 8, 9, 10, 11, 12], (1, 0))
    assert server.names() == ["REGISTER", "SUBSCRIBE", "HEAL", "HSCAN", "RENEW"]


async def test_node_without_a_history_sends_no_further_command(serve):
    server = serve()
    followed = await Followed(server).start()
    followed.following.end(KEY)
    server.connections[-1].abort()
    await settle()
    assert server.names() == ["REGISTER", "SUBSCRIBE", "HSCAN", "RENEW"]


async def test_channel_that_missed_nothing_continues(serve):
    server = serve()
    followed = await Followed(server).start()
    server.replies["HEAL"] = [history(5, 1)]
    await followed.reconnect(batch(6, 6))
    assert (followed.seen, followed.gaps) == ([6], (0, 0))


async def test_trimmed_messages_are_reported_and_none_of_the_rest_is_delivered(serve):
    server = serve()
    followed = await Followed(server).start()
    server.replies["HEAL"] = [history(10, 8)]
    await followed.reconnect(batch(11, 11))
    assert (followed.seen, followed.gaps) == ([("trimmed", f"{EPOCH}:10"), 11], (0, 1))


async def test_missed_messages_of_too_many_bytes_are_reported(serve):
    server = serve()
    followed = await Followed(server).start()
    server.replies["HEAL"] = [history(10, 1, (9, 10))]
    await followed.reconnect(batch(11, 11))
    assert (followed.seen, followed.gaps) == ([("too-large", f"{EPOCH}:10"), 11], (0, 1))


async def test_lost_counter_is_reported(serve):
    server = serve()
    followed = await Followed(server).start()
    server.replies["HEAL"] = [history(0, 1, word=b"Word2")]
    await followed.reconnect(batch(1, 1, "Gen01Word2"))
    assert (followed.seen, followed.gaps) == ([("state-lost", "Gen01Word2:0"), 1], (0, 1))


async def test_counter_that_went_back_is_reported(serve):
    server = serve()
    followed = await Followed(server).start()
    server.replies["HEAL"] = [history(3, 1)]
    await followed.reconnect(batch(4, 4))
    assert (followed.seen, followed.gaps) == ([("state-lost", f"{EPOCH}:3"), 4], (0, 1))


@pytest.mark.parametrize(
    "meanwhile",
    [
        [batch(n, n) for n in range(11, 11 + MAX_HELD_MESSAGES + 5)],
        [batch(n, n, data=b"x" * (MAX_HELD_BYTES // 10)) for n in range(11, 31)],
    ],
    ids=["messages", "bytes"],
)
async def test_too_many_held_messages_are_dropped_and_reported(serve, meanwhile):
    server = serve()
    followed = await Followed(server).start()
    server.replies["HEAL"] = [history(10, 1, (6, 10))]
    await followed.reconnect(*meanwhile)
    last = meanwhile[-1][-1].offset
    followed.receive(batch(last + 1, last + 1))
    assert (followed.seen, followed.gaps) == ([6, 7, 8, 9, 10, ("trimmed", f"{EPOCH}:{last}"), last + 1], (1, 1))


async def test_dropped_messages_that_the_read_contains_are_no_gap(serve):
    server = serve()
    followed = await Followed(server).start()
    meanwhile = [batch(n, n, data=b"x" * MAX_HELD_BYTES) for n in (6, 7)]
    server.replies["HEAL"] = [history(7, 1, (6, 7))]
    await followed.reconnect(*meanwhile)
    assert (followed.seen, followed.gaps) == ([6, 7], (1, 0))


async def test_connection_that_is_lost_during_the_read_is_healed_on_the_next(serve):
    server = serve()
    followed = await Followed(server).start()
    replies = [lambda: server.connections[-1].abort(), lambda: None]

    def heal(_: Any) -> Any:
        replies.pop(0)()
        return [history(9, 1, (6, 9))]

    server.replies["HEAL"] = heal
    server.connections[-1].abort()
    await settle()
    assert len(server.connections) == 3
    assert (followed.seen, followed.gaps) == ([6, 7, 8, 9], (1, 0))


async def test_many_channels_are_read_in_steps_and_the_rest_is_read_again(serve):
    server = serve()
    followed = await Followed(server).start()
    channels = [f"c{n}" for n in range(450)]
    for channel in channels:
        followed.following.begin(("app", channel), Position(EPOCH, 0), 360)
    sizes: list[int] = []

    def heal(command: Any) -> Any:
        asked = command[8::5]
        sizes.append(len(asked))
        return [history(0, 1, word=b"Word2") for _ in asked[:150]]  # the others are too many bytes

    server.replies["HEAL"] = heal
    server.connections[-1].abort()
    await settle()
    assert sizes == [200, 200, 151, 1]
    assert followed.seen == [("state-lost", "Gen01Word2:0")] * 451


# Another generation


async def test_another_run_of_the_server_is_reported_once_for_each_channel(serve):
    server = serve()
    followed = await Followed(server).start()
    followed.following.begin(("app", "d"), Position("Gen01Word9", 0), 360)
    server.run_id = "run2"
    server.replies["REGISTER"] = [b"epoch-1", 0, 7, 0, 0, b"Gen02"]
    server.replies["HEAL"] = [history(5, 1, (5, 5)), history(0, 1, word=b"Word9")]
    await followed.reconnect(batch(6, 6, "Gen02Word1"))
    followed.receive(batch(7, 7, "Gen02Word1"))
    assert followed.seen == [("state-lost", "Gen02Word1:5"), 6, ("state-lost", "Gen02Word9:0"), 7]
    assert followed.gaps == (0, 2)


async def test_another_generation_on_the_same_connection_is_reported(serve):
    """The server lost its keys, and a new node registered first."""
    server = serve()
    followed = await Followed(server).start()
    server.replies["REGISTER"] = [b"epoch-2", 0, 7, 0, 0, b"Gen02"]
    server.replies["RENEW"] = [b"epoch-2", 0, 0, [], 0, 0, []]
    server.replies["HEAL"] = [history(0, 1, word=b"Word2")]
    followed.node.connection.fault("NOLEASE no lease")
    await settle()
    assert followed.seen == [("state-lost", "Gen02Word2:0")]


async def test_lost_lease_alone_is_no_gap(serve):
    server = serve()
    followed = await Followed(server).start()
    followed.node.connection.fault("NOLEASE no lease")
    await settle()
    assert server.names() == ["REGISTER", "HSCAN", "RENEW"]
    assert followed.seen == []


# Counters


async def test_counters_of_all_channels_are_renewed_and_not_more_often_than_needed(serve):
    server = serve()
    followed = await Followed(server).start()
    for n in range(2 * MIN_CHECKED):
        followed.following.begin(("app", f"c{n}"), Position(EPOCH, 0), 360)
    now = asyncio.get_running_loop().time()
    for second in range(80):
        followed.following.tick(now + second)
    await settle()
    renewed = [channel for name, arguments in server.commands if name == "RENEW_COUNTERS" for channel in arguments[1::3]]
    assert len(renewed) == len(set(renewed)) == 2 * MIN_CHECKED + 1
    server.commands.clear()
    for second in range(90, 110):
        followed.following.tick(now + second)
    await settle()
    assert sum(len(arguments) // 3 for name, arguments in server.commands if name == "RENEW_COUNTERS") == 2 * MIN_CHECKED + 1


@pytest.mark.parametrize("seconds", [120, 360, 3660])
async def test_counter_is_kept_for_its_seconds_whenever_the_last_subscriber_leaves(serve, seconds):
    """Just before a renewal, only three quarters were left: less than the time in which a client may return."""
    server = serve()
    followed = await Followed(server).start()
    followed.following.end(KEY)
    followed.following.begin(KEY, Position(EPOCH, 5), seconds)
    start = asyncio.get_running_loop().time()
    until, least = start + seconds, float(seconds)
    for second in range(2 * seconds):
        followed.following.tick(start + second)
        await settle()
        for name, arguments in server.commands:
            if name == "RENEW_COUNTERS":
                until = start + second + int(arguments[2]) / 1000
        server.commands.clear()
        least = min(least, until - start - second)
    assert least >= seconds - ROUND_CALLS


async def test_later_subscriber_increases_the_seconds_of_the_counter(serve):
    """A reload may increase `resume.seconds` while earlier clients stay on the channel."""
    followed = await Followed(serve()).start()
    followed.following.begin(KEY, Position(EPOCH, 5), 3660)
    followed.following.begin(KEY, Position(EPOCH, 5), 60)
    assert followed.following.channels[KEY].counter_seconds == 3660


async def test_join_after_the_history_was_dropped_moves_the_position(serve):
    """The reconnect would report a loss of the state, although the subscribers have all messages."""
    server = serve()
    followed = await Followed(server).start()
    followed.following.begin(KEY, Position("Gen01Word2", 0), 360)
    server.replies["HEAL"] = [history(0, 1, word=b"Word2")]
    await followed.reconnect(batch(1, 1, "Gen01Word2"))
    assert (followed.seen, followed.gaps) == ([1], (0, 0))


async def test_join_in_another_generation_does_not_hide_the_change(serve):
    followed = await Followed(serve()).start()
    followed.following.begin(KEY, Position("Gen02Word2", 0), 360)
    followed.receive(batch(1, 1, "Gen02Word2"))
    assert followed.seen == [("state-lost", "Gen02Word2:0"), 1]


async def test_history_that_cannot_be_decoded_is_reported_and_the_node_stays_connected(serve):
    """The task that connects the shard ended, so the node did not connect again."""
    server = serve()
    followed = await Followed(server).start()
    server.replies["HEAL"] = [[b"Word1", 7, 1, [b"7-2", b"\xc1"]]]
    await followed.reconnect(batch(8, 8))
    assert (followed.seen, followed.gaps) == ([("trimmed", f"{EPOCH}:7"), 8], (0, 1))
    assert followed.node.connection.registered_on is not None


async def test_channel_whose_history_was_turned_on_later_is_followed(serve):
    """Its subscribers get positions with the messages, so a gap between two positions must not be silent."""
    server = serve()
    followed = await Followed(server).start()
    followed.node.local_roster.join("app", "d", "1.1", None)
    followed.receive(batch(1, 2, channel="d"))
    server.replies["HEAL"] = [history(5, 5)]
    followed.receive(batch(5, 5, channel="d"))
    await settle()
    assert (followed.seen, followed.gaps) == ([1, 2, ("trimmed", f"{EPOCH}:5")], (0, 1))


async def test_held_messages_of_all_channels_are_bounded_together(serve):
    """Ten thousand channels with a megabyte each would be ten gigabytes."""
    server = serve()
    followed = await Followed(server).start()
    following = followed.following
    number = 4 * MAX_ALL_HELD_BYTES // MAX_HELD_BYTES
    for n in range(number):
        following.begin(("app", f"c{n}"), Position(EPOCH, 5), 360)
    following.hold(tuple(following.channels))
    for n in range(number):
        following.receive(batch(6, 6, data=b"x" * (MAX_HELD_BYTES // 2), channel=f"c{n}"))
    held = [messages for one in following.channels.values() for messages in one.held or ()]
    assert sum(len(one.data) for messages in held for one in messages) <= MAX_ALL_HELD_BYTES
    assert following.channels["app", "c0"].dropped == Position(EPOCH, 6)


async def test_fields_of_held_messages_count_for_their_bound(serve, monkeypatch):
    """A thousand messages without data on each of ten thousand channels would be gigabytes."""
    monkeypatch.setattr("push1st.brokers.redis.following.MAX_ALL_HELD_BYTES", 1000)
    followed = await Followed(serve()).start()
    followed.following.hold([KEY])
    followed.receive(batch(6, 6))
    assert followed.following.channels[KEY].dropped is None
    followed.receive(batch(7, 11))
    assert followed.following.channels[KEY].dropped == Position(EPOCH, 11)
