"""The arguments and the reply of `lua/append.lua`, for a batch that needs more than PUBLISH. Pure."""

from collections.abc import Sequence
from typing import Any

from push1st.brokers import KEY_SECONDS
from push1st.brokers.history import COUNTER_SECONDS
from push1st.brokers.redis.publishing import Batch
from push1st.brokers.redis.resp import Argument
from push1st.brokers.redis.retained import RETAIN_ARGUMENTS, retain_arguments
from push1st.messages import Published


def mqtt_arguments(
    inboxes: Sequence[Argument] = (), groups: Sequence[Argument] = (), logs: Sequence[Argument] = ()
) -> tuple[Argument, ...]:
    """Returns the last arguments of `lua/append.lua`; none if all parts are empty.

    inboxes: the batch for inboxes, and the nodes that get this batch. groups: the arguments for groups (`ShardGroups.arguments`).
    logs: the arguments for logs (`ShardLogs.arguments`).
    """
    return (len(inboxes), *inboxes, len(groups), *groups, *logs) if inboxes or groups or logs else ()


def _retain_arguments(batch: Batch, *, is_last: bool) -> tuple[Argument, ...]:
    """Returns the arguments for the retained message. is_last: whether no arguments follow."""
    if batch.retain is not None:
        return retain_arguments(batch.messages[-1], batch.retain)
    return () if is_last else ("",) * RETAIN_ARGUMENTS


def key_of(batch: Batch) -> str:
    """Returns the name of a batch's idempotency key in `BASE:o`."""
    return f"{batch.app}/{len(batch.key)}:{batch.key}{batch.channel}"


def append_arguments(
    batch: Batch, messages: bytes, cached: bytes | None, generation: str, word: str, mqtt: Sequence[Argument] = ()
) -> tuple[Argument, ...]:
    """Returns the arguments of `lua/append.lua`.

    messages, cached: the encoded messages of the batch, and its encoded message for the cache.
    word: a new word, which the script uses if the channel has no counter.
    mqtt: see `mqtt_arguments`.
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
        key_of(batch) if batch.key else "",
        KEY_SECONDS * 1000,
        batch.messages[-1].id,
        *_retain_arguments(batch, is_last=not mqtt),
        *mqtt,
    )


def results(reply: Any, generation: str, count: int, filters: int) -> list[Published]:
    """Returns the results of the messages of a batch. count: the number of these messages. filters: see `Published`."""
    if isinstance(reply, bytes):
        subscriptions, epoch, offset, id = reply.decode().split(" ")
        return [Published(int(subscriptions), int(offset), epoch, int(id))]
    subscriptions, word, last, logs, _ = reply
    if not word:
        return [Published(int(subscriptions), logs=logs, filters=filters)] * count
    epoch = generation + word.decode()
    return [Published(int(subscriptions), last - count + 1 + index, epoch, logs=logs, filters=filters) for index in range(count)]


def trimmed(reply: Any) -> int:
    """Returns the number of messages that logs have dropped because of a publish."""
    return 0 if isinstance(reply, bytes) else int(reply[4])
