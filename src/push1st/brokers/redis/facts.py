"""Reads the facts of a shard, on the one node that holds the lease to, and hands them on in order, at least once."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import hiredis

from push1st import logs
from push1st.brokers.redis.link import Argument, Link, Lost
from push1st.brokers.redis.servers import Unusable, connect
from push1st.brokers.redis.wire import decode_fact
from push1st.brokerurl import Address
from push1st.messages import Fact, Happening

FACTS = 500
"""facts read at once"""
BLOCK_MS = 1000
"""for facts to come; less than what makes a server silent"""
SILENT_SECONDS = 5
"""without an answer: then the connection is taken for dead, before others may take this node for it"""

log = logs.get("push1st.broker")


class Reader:
    """Reads until it is stopped or its connection, which is its own, is lost. happened: takes the facts.

    read: the command that notes how far they were read, but for that.
    """

    def __init__(
        self,
        address: Address,
        tag: str,
        node: str,
        stream: str,
        read: tuple[Argument, ...],
        happened: Callable[[Fact], None],
    ) -> None:
        self._address = address
        self._tag = tag
        self._node = node
        self._stream = stream
        self._read = read
        self._happened = happened
        self._task = asyncio.get_running_loop().create_task(self._run())

    @property
    def ended(self) -> bool:
        return self._task.done()

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        link = None
        try:
            link = await connect(self._address, self._tag, f"push1st-facts-{self._node}", lambda _: None, lambda: None)
            position = await _answer(link, "GET", f"{self._stream}:read") or b"0"
            while True:
                found = await _answer(link, "XREAD", "COUNT", FACTS, "BLOCK", BLOCK_MS, "STREAMS", self._stream, position)
                if found:
                    entries = found[self._stream.encode()]
                    for _, fields in entries:
                        self._hand_on(dict(zip(fields[::2], fields[1::2], strict=True)))
                    position = entries[-1][0]
                    await _answer(link, *self._read, position)
        except (OSError, TimeoutError, Unusable, Lost, hiredis.ReplyError) as wrong:
            log.info("facts are not read any more", reason=str(wrong) or type(wrong).__name__)
        finally:
            if link is not None:
                link.abort()

    def _hand_on(self, fields: dict[bytes, Any]) -> None:
        try:
            self._happened(_fact_of(fields))
        except Exception:  # one that cannot be read, or that hooks choke on, must not hold up the others
            log.exception("a fact is passed over")


async def _answer(link: Link, *command: Argument) -> Any:
    """Raises TimeoutError, Lost, ReplyError."""
    async with asyncio.timeout(SILENT_SECONDS):
        return await link.call(*command)


def _fact_of(fields: dict[bytes, bytes]) -> Fact:
    """A fact that a node reported is whole; those of scripts come in parts."""
    whole = fields.get(b"fact")
    if whole is not None:
        return decode_fact(whole)
    kind, app, channel, at, socket_id, user_id = (fields[name].decode() for name in (b"k", b"a", b"c", b"t", b"s", b"u"))
    return Fact(cast(Happening, kind), app, channel, int(at), socket_id, user_id or None, fields[b"i"])
