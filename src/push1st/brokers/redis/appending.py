"""The arguments and the reply of `lua/append.lua`, for a batch with a history or an idempotency key. Pure."""

from typing import Any

from push1st.brokers import KEY_SECONDS
from push1st.brokers.history import COUNTER_SECONDS
from push1st.brokers.redis.publishing import Batch
from push1st.brokers.redis.resp import Argument
from push1st.messages import Published


def append_arguments(batch: Batch, messages: bytes, cached: bytes | None, generation: str, word: str) -> tuple[Argument, ...]:
    """Returns the arguments of `lua/append.lua`.

    messages, cached: the encoded messages of the batch, and its encoded message for the cache.
    word: a new word, which the script uses if the channel has no counter.
    """
    section = batch.section
    size, seconds = (0, 0) if section is None else (section.size, section.ttl)
    return (
        batch.app,
        batch.channel,
        messages,
        len(batch.messages),
        size,
        seconds * 1000,
        max(seconds, COUNTER_SECONDS) * 1000,
        generation,
        word,
        cached or b"",
        "" if cached is None else batch.milliseconds,
        f"{batch.app}/{len(batch.key)}:{batch.key}{batch.channel}" if batch.key else "",
        KEY_SECONDS * 1000,
        batch.messages[-1].id,
    )


def results(reply: Any, generation: str, count: int) -> list[Published]:
    """Returns the results of the messages of a batch. `count`: the number of these messages."""
    if isinstance(reply, bytes):
        subscriptions, epoch, offset, id = reply.decode().split(" ")
        return [Published(int(subscriptions), int(offset), epoch, int(id))]
    subscriptions, word, last = reply
    if not word:
        return [Published(int(subscriptions))] * count
    epoch = generation + word.decode()
    return [Published(int(subscriptions), last - count + 1 + index, epoch) for index in range(count)]
