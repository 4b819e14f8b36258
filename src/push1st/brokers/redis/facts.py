"""Reads the facts of a shard, on the one node that holds the lease to, and hands them on in order.

Before facts are handed on the server says that the lease is still this node's, and if that was too long ago by the time it is
heard (the process stood still) they are another's by now. The place is noted in the same turn of the loop in which they
were handed on, so before anything of them is on its way to a backend: one that dies before has told nobody, and what it
read is read again; one that dies behind it is not read again. Should the note get lost with the connection, the next
reader of this node goes on where this one was.
"""

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

NOWHERE = b"0-0"
"""the place before all facts"""

log = logs.get("push1st.broker")


class Reader:
    """Reads until it is stopped, or has no lease any more, or its connection, which is its own, is lost.

    read: the command that asks for the lease and notes how far facts were read, but for that. seconds: of the lease. place:
    where the one before it on this node was. again: whether there was one. happened: takes the facts.
    """

    def __init__(
        self,
        address: Address,
        tag: str,
        node: str,
        stream: str,
        read: tuple[Argument, ...],
        seconds: float,
        place: bytes,
        again: bool,
        happened: Callable[[Fact], None],
    ) -> None:
        self._address = address
        self._tag = tag
        self._node = node
        self._stream = stream
        self._read = read
        self._seconds = seconds
        self.place = place
        """the last fact that was handed on"""
        self._again = again
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
            noted = await _answer(link, "GET", f"{self._stream}:read") or NOWHERE
            if self._again and _order(self.place) < _order(noted):
                self._happened(Fact("read-elsewhere", "", "", 0))
            self.place = max(self.place, noted, key=_order)
            while await self._more(link):
                pass
            log.info("facts are read by another node")
        except (OSError, TimeoutError, Unusable, Lost, hiredis.ReplyError) as wrong:
            log.info("facts are not read any more", reason=str(wrong) or type(wrong).__name__)
        except asyncio.CancelledError:
            if link is not None:
                link.close()  # behind the last note
                link = None
            raise
        finally:
            if link is not None:
                link.abort()

    async def _more(self, link: Link) -> bool:
        """Reads some facts, if there are any; returns whether that is still this node's to do."""
        found = await _answer(link, "XREAD", "COUNT", FACTS, "BLOCK", BLOCK_MS, "STREAMS", self._stream, self.place)
        if not found:
            return True
        loop = asyncio.get_running_loop()
        asked = loop.time()
        if not await _answer(link, *self._read, self.place) or loop.time() >= asked + self._seconds:
            return False
        entries = found[self._stream.encode()]
        for _, fields in entries:
            self._hand_on(dict(zip(fields[::2], fields[1::2], strict=True)))
        self.place = entries[-1][0]
        noted = link.call(*self._read, self.place)
        link.flush()  # not at the end of the turn: see the module
        async with asyncio.timeout(SILENT_SECONDS):
            return bool(await noted)

    def _hand_on(self, fields: dict[bytes, Any]) -> None:
        try:
            self._happened(_fact_of(fields))
        except Exception:  # one that cannot be read, or that hooks choke on, must not hold up the others
            log.exception("a fact is passed over")


async def _answer(link: Link, *command: Argument) -> Any:
    """Raises TimeoutError, Lost, ReplyError."""
    async with asyncio.timeout(SILENT_SECONDS):
        return await link.call(*command)


def _order(place: bytes) -> tuple[int, ...]:
    return tuple(map(int, place.split(b"-")))


def _fact_of(fields: dict[bytes, bytes]) -> Fact:
    """A fact that a node reported is whole; those of scripts come in parts."""
    whole = fields.get(b"fact")
    if whole is not None:
        return decode_fact(whole)
    kind, app, channel, at, socket_id, user_id = (fields[name].decode() for name in (b"k", b"a", b"c", b"t", b"s", b"u"))
    return Fact(cast(Happening, kind), app, channel, int(at), socket_id, user_id or None, fields[b"i"])
