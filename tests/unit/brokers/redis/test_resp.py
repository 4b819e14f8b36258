"""The connection to the broker: replies in order, messages between them, and coroutines that resume in time."""

import asyncio
import socket
from collections.abc import Callable

import hiredis
import pytest

from push1st.brokers.redis.resp import ConnectionLost, RespConnection
from tests.support.loop import turns
from tests.support.transport import Transport


class Line:
    """A connection on a transport that stores what is written."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.lost = 0
        self.transport = Transport()
        self.link = RespConnection(self.messages.append, self._lost)
        self.link.connection_made(self.transport)

    def _lost(self) -> None:
        self.lost += 1

    def says(self, *items: bytes) -> None:
        self.link.data_received(b"".join(items))


@pytest.fixture
def line() -> Callable[[], Line]:
    return Line


def message(data: bytes, topic: bytes = b"t") -> bytes:
    return b">3\r\n$7\r\nmessage\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(topic), topic, len(data), data)


def confirmed(kind: bytes, topic: bytes) -> bytes:
    return b">3\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n:1\r\n" % (len(kind), kind, len(topic), topic)


async def test_commands_of_a_turn_are_one_write(line):
    one = line()
    one.link.call("GET", "a")
    one.link.call("SET", "b", 1)
    assert one.transport.writes == []
    await turns()
    assert one.transport.writes == [b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n*3\r\n$3\r\nSET\r\n$1\r\nb\r\n$1\r\n1\r\n"]


async def test_replies_reach_their_commands_in_order_between_messages(line):
    one = line()
    first, second = one.link.call("GET", "a"), one.link.call("GET", "b")
    one.says(message(b"1"), b":1\r\n", message(b"2"), b"$1\r\n")
    one.says(b"x\r\n")
    assert (await first, await second) == (1, b"x")
    assert one.messages == [b"1", b"2"]


async def test_an_error_is_raised_by_its_command_alone(line):
    one = line()
    bad, good = one.link.call("BAD"), one.link.call("PING")
    one.says(b"-ERR unknown\r\n+PONG\r\n")
    with pytest.raises(hiredis.ReplyError, match="ERR unknown"):
        await bad
    assert await good == b"PONG"


async def test_an_error_in_a_script_begins_with_its_code(line):
    """The text of Redis 6.2, and the text of newer servers."""
    one = line()
    old, new = one.link.call("EVALSHA"), one.link.call("EVALSHA")
    one.says(b"-ERR Error running script (call to f_08): @user_script:1: @user_script: 1: -READONLY You can't write.\r\n")
    one.says(b"-READONLY You can't write. script: 08, on @user_script:1.\r\n")
    for reply in (old, new):
        with pytest.raises(hiredis.ReplyError, match=r"^READONLY You can't write"):
            await reply


async def seen_at_reply(one: Line) -> list[bytes]:
    """Waits for an ordered reply; returns the messages delivered before it."""
    await one.link.call("X", ordered=True)
    return list(one.messages)


async def test_ordered_reply_resumes_its_waiter_before_later_messages(line):
    one = line()
    task = asyncio.create_task(seen_at_reply(one))
    await turns()
    one.says(message(b"1"), b":1\r\n", message(b"2"), message(b"3"))
    one.says(message(b"4"))
    assert await task == [b"1"]
    await turns()
    assert one.messages == [b"1", b"2", b"3", b"4"]


async def test_replies_after_an_ordered_reply_keep_their_order(line):
    one = line()
    tasks = [asyncio.create_task(seen_at_reply(one)) for _ in range(3)]
    await turns()
    one.says(b":1\r\n:2\r\n", message(b"1"), b":3\r\n", message(b"2"))
    assert await asyncio.gather(*tasks) == [[], [], [b"1"]]
    await turns()
    assert one.messages == [b"1", b"2"]


async def test_topics_are_confirmed_in_the_place_of_replies(line):
    one = line()
    topics = one.link.topics("SUBSCRIBE", [b"a", b"b"])
    reply = one.link.call("PING")
    one.says(confirmed(b"subscribe", b"a"))
    assert not topics.done()
    one.says(confirmed(b"subscribe", b"b"), b"+PONG\r\n")
    await topics
    assert await reply == b"PONG"


async def test_rejected_topic_raises_the_error_of_the_server(line):
    one = line()
    topics = one.link.topics("SUBSCRIBE", [b"a"])
    one.says(b"-NOPERM no\r\n")
    with pytest.raises(hiredis.ReplyError, match="NOPERM"):
        await topics


async def test_topic_unsubscribed_by_the_server_ends_the_connection(line):
    one = line()
    waiting = one.link.call("PING")
    one.says(confirmed(b"sunsubscribe", b"a"))
    with pytest.raises(ConnectionLost):
        await waiting
    assert one.transport.aborted
    assert one.lost == 1


async def test_lost_connection_fails_waiting_and_later_calls(line):
    one = line()
    waiting = [one.link.call("PING"), one.link.topics("SUBSCRIBE", [b"a"])]
    one.link.connection_lost(None)
    waiting += [one.link.call("PING"), one.link.topics("SUBSCRIBE", [b"a"])]
    for future in waiting:
        with pytest.raises(ConnectionLost):
            await future
    assert one.lost == 1


async def test_malformed_reply_ends_the_connection(line):
    one = line()
    one.says(b"HTTP/1.1 400\r\n")
    assert one.transport.aborted
    assert one.lost == 1


async def test_nothing_is_delivered_after_the_end(line):
    one = line()
    one.link.call("X", ordered=True)
    one.says(b":1\r\n", message(b"1"))
    one.link.abort()
    await turns()
    assert one.messages == []


async def test_silence_counts_only_while_an_answer_is_owed(line):
    one = line()
    now = asyncio.get_running_loop().time()
    assert one.link.silent(now + 100) == 0
    one.link.call("PING")
    assert one.link.silent(now + 100) == pytest.approx(100, abs=1)
    one.says(b"+PONG\r\n")
    assert one.link.silent(now + 100) == 0


async def test_messages_after_an_ordered_reply_are_delivered_even_if_the_connection_has_ended(line):
    one = line()
    task = asyncio.create_task(seen_at_reply(one))
    await turns()
    late = one.link.call("GET", "a")
    one.says(b":1\r\n", message(b"1"), message(b"2"))
    one.link.connection_lost(None)
    assert await task == []
    await turns()
    assert one.messages == [b"1", b"2"]
    with pytest.raises(ConnectionLost):
        await late
    assert one.lost == 1


async def test_messages_sent_before_the_end_are_delivered_even_if_a_write_failed_first():
    ours, theirs = socket.socketpair()
    messages: list[bytes] = []
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    _, link = await loop.create_connection(lambda: RespConnection(messages.append, ended.set), sock=ours)
    theirs.sendall(message(b"1") + message(b"2"))
    theirs.close()
    waiting = link.call("PING")
    link.flush()  # within this turn, so before anything is read: the other end is gone, and this is an error
    with pytest.raises(ConnectionLost):
        await waiting
    await ended.wait()
    assert messages == [b"1", b"2"]
