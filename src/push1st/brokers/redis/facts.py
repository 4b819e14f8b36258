"""Reads the facts of a shard, on the one node that holds the lease to, and hands them on in order.

Before facts are handed on the server says that the lease is still this node's, and if that was too long ago by the time it is
heard (the process stood still) they are another's by now. The place is noted in the same turn of the loop in which they
were handed on, so before anything of them is on its way to a backend: one that dies before has told nobody, and what it
read is read again; one that dies behind it is not read again. Should the note get lost with the connection, the next
reader of this node goes on where this one was.

Settled edges take turns per channel and member, whatever becomes of the readers and of the server. The reader keeps a ledger
of what hooks believe to be there, and hands on only what changes it. A node that becomes the reader makes its ledger from the
roster: who is there, and who left and is still held back, but for what the facts that were not read yet have changed. After
the server lost its state the node with the ledger goes on reading, and when all nodes have announced their entries it compares
the ledger with the roster in the same way: so what the server forgot (who was held back, facts that nobody had read) is made
up for. The same is done after a new connection, since a replica that took a master's place may lack some of the last facts.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any, cast

import hiredis
import msgspec

from push1st import logs
from push1st.brokers.redis.link import Argument, Link, Lost
from push1st.brokers.redis.scripts import READ, TAKE, Script
from push1st.brokers.redis.servers import Unusable, connect
from push1st.brokers.redis.wire import decode_fact
from push1st.brokerurl import Address
from push1st.channels import kind_of
from push1st.messages import ENTERING, HOLD_SECONDS, Fact, Happening, Phase

FACTS = 500
"""facts read at once"""
BLOCK_MS = 1000
"""for facts to come; less than what makes a server silent"""
SILENT_SECONDS = 5
"""without an answer: then the connection is taken for dead, before others may take this node for it"""
RELEASED = 500
"""leaving edges that are released at once"""
SCANNED = 1000
"""entries that are read at once to make a ledger"""

LEFT_SECONDS = 60
"""for the next reader to take a ledger that was left to it"""

NOWHERE = b"0-0"
"""the place before all facts"""

log = logs.get("push1st.broker")


class Ledger:
    """What hooks believe to be there of a shard, by the settled edges that were handed on up to a place. It outlives readers.

    there: fields as those of a node's entries (`scripts`); None: this node does not know. place: the last fact that was
    handed on. compared_at: when it is to be compared with the roster, on the loop's clock: the server may have lost facts, or all
    its state, and then nodes announce their entries again; None: it need not be.
    """

    def __init__(self) -> None:
        self.there: set[str] | None = None
        self.place = NOWHERE
        self.compared_at: float | None = None

    def state_lost(self) -> None:
        """The places of facts begin again."""
        self.place = NOWHERE

    def forget(self) -> None:
        """Another node hands on facts."""
        self.there = None

    async def leave(self, link: Link, base: str) -> None:
        """Leaves it to the next reader, since this node stops before it was compared: the roster alone does not say it."""
        if self.there and self.compared_at is not None:
            key, fields = f"{base}:ledger", list(self.there)
            link.call("DEL", key)
            for at in range(0, len(fields), SCANNED):
                await link.call("SADD", key, *fields[at : at + SCANNED])
            await link.call("EXPIRE", key, LEFT_SECONDS)


class Reader:
    """Reads until it is stopped, or has no lease any more, or its connection, which is its own, is lost.

    base: of the shard's keys. run: a script as a command, up to its arguments. seconds: of the lease. apps: those whose hooks
    want settled edges. happened: takes the facts. last: there is no other node, and this one stops: it hands on what is left,
    what is held back too, and ends.
    """

    def __init__(
        self,
        address: Address,
        tag: str,
        node: str,
        base: str,
        run: Callable[[Script], tuple[Argument, ...]],
        seconds: float,
        ledger: Ledger,
        apps: Collection[str],
        happened: Callable[[Fact], None],
        *,
        last: bool = False,
    ) -> None:
        self._address = address
        self._tag = tag
        self._node = node
        self._base = base
        self._stream = f"{base}:facts"
        self._run_script = run
        self._seconds = seconds
        self._ledger = ledger
        self._apps = apps
        self._happened = happened
        self._last = last
        self._task = asyncio.get_running_loop().create_task(self._run())

    @property
    def ended(self) -> bool:
        return self._task.done()

    async def stop(self) -> None:
        self._task.cancel()
        await self.end()

    async def end(self) -> None:
        """Returns when it has ended."""
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        link = None
        try:
            link = await connect(self._address, self._tag, f"push1st-facts-{self._node}", lambda _: None, lambda: None)
            await self._begin(link)
            if self._last:
                await self._finish(link)
                return
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

    async def _begin(self, link: Link) -> None:
        """Finds the place where to go on, and makes the ledger, unless this node has it."""
        ledger = self._ledger
        noted = await _answer(link, "GET", f"{self._stream}:read") or NOWHERE
        place = max(ledger.place, noted, key=_order)
        if ledger.there is None:
            left = await _answer(link, "SMEMBERS", f"{self._base}:ledger")
            if left:
                ledger.there, ledger.compared_at = {field.decode() for field in left}, 0
            else:
                ledger.there = await self._truth(link, place)
        ledger.place = place

    async def _more(self, link: Link, wait: bool = True) -> bool:
        """Reads some facts, if there are any; returns whether that is still this node's to do."""
        ledger = self._ledger
        block = ("BLOCK", BLOCK_MS) if wait else ()
        found = await _answer(link, "XREAD", "COUNT", FACTS, *block, "STREAMS", self._stream, ledger.place)
        recovering = await self._note(link)
        if recovering is None or ledger.there is None:
            return False
        if recovering:
            ledger.compared_at = 0
        elif (at := ledger.compared_at) is not None and at <= asyncio.get_running_loop().time() and not await self._compare(link):
            return False
        if not found:
            return wait
        entries = found[self._stream.encode()]
        for _, fields in entries:
            self._hand_on(fields)
        ledger.place = entries[-1][0]
        noted = link.call(*self._reading())
        link.flush()  # not at the end of the turn: see the module
        async with asyncio.timeout(SILENT_SECONDS):
            return bool((await noted)[0])

    def _reading(self) -> tuple[Argument, ...]:
        lease, hold = int(self._seconds * 1000), int(HOLD_SECONDS * 1000)
        released = 0 if self._last else RELEASED  # the last one takes them as they are
        return *self._run_script(READ), self._node, lease, self._ledger.place, hold, released

    async def _note(self, link: Link) -> int | None:
        """Notes the place; milliseconds for which nodes announce their entries, None if another node reads the facts by now."""
        loop = asyncio.get_running_loop()
        asked = loop.time()
        mine, recovering = await _answer(link, *self._reading())
        return int(recovering) if mine and loop.time() < asked + self._seconds else None

    async def _finish(self, link: Link) -> None:
        """Hands on what is left."""
        if self._ledger.compared_at is not None:  # nobody else announces anything
            self._ledger.compared_at = 0
        while await self._more(link, wait=False):
            pass
        more = 1
        while more:
            more, taken = await _answer(link, *self._run_script(TAKE), self._node, RELEASED)
            for field, held in zip(taken[::2], taken[1::2], strict=True):
                _, socket_id, received, info = held.split(b"\0", 3)
                if self._changes(field.decode(), enters=False):
                    self._happened(_edge(field.decode(), False, int(received), "held", socket_id.decode(), info))

    # Facts

    def _hand_on(self, fields: list[bytes]) -> None:
        try:
            self._happen(dict(zip(fields[::2], fields[1::2], strict=True)))
        except Exception:  # one that cannot be read, or that hooks choke on, must not hold up the others
            log.exception("a fact is passed over")

    def _happen(self, fields: dict[bytes, bytes]) -> None:
        whole = fields.get(b"fact")
        if whole is not None:  # as a node reported it; those of scripts come in parts
            self._happened(decode_fact(whole))
            return
        fact, way = _fact_of(fields)
        if b"a" in way:
            self._happened(fact)
        if b"s" in way or b"h" in way:
            changes = self._changes(_field(fact), fact.kind in ENTERING)
            if changes and b"s" in way:
                self._happened(msgspec.structs.replace(fact, phase="settled"))

    def _changes(self, field: str, enters: bool) -> bool:
        """Whether an edge is news for hooks; they believe it from here on."""
        there = self._ledger.there
        if there is None or (field in there) == enters:
            return False
        (there.add if enters else there.discard)(field)
        return True

    async def _compare(self, link: Link) -> bool:
        """Hands on the edges that hooks missed; returns whether that was still this node's to do."""
        ledger = self._ledger
        truth = await self._truth(link, ledger.place)
        recovering, there = await self._note(link), ledger.there
        if recovering is None or there is None:
            return False
        if not recovering:
            ledger.compared_at = None
            now = time.time_ns()
            for field in sorted(there - truth, reverse=True):  # members leave before their channel is empty
                self._happened(_edge(field, False, now, "settled"))
            for field in sorted(truth - there):
                self._happened(_edge(field, True, now, "settled"))
            ledger.there = truth
            link.call("DEL", f"{self._base}:ledger")
        return True

    async def _truth(self, link: Link, place: bytes) -> set[str]:
        """What hooks have to believe when they got all facts up to a place, and none behind it.

        That is who is there, and who is held back. What changes while this is read has a fact behind the place, and of each
        channel and member the first of those says what was so before it.
        """
        there: set[str] = set()
        for app in self._apps:
            async for channels in self._scan(link, f"{self._base}:i:{app}"):
                there.update(f"c/{app}/{channel}" for channel in channels)
                presence = [channel for channel in channels if kind_of(channel).presence]
                asked = [link.call("HKEYS", f"{self._base}:m:{app}/{channel}") for channel in presence]
                async with asyncio.timeout(SILENT_SECONDS):
                    for channel, users in zip(presence, await asyncio.gather(*asked), strict=True):
                        there.update(f"m/{app}/{channel}\n{user.decode()}" for user in users)
        for left in ("held", "gone"):  # behind those who are there: who leaves meanwhile is in either
            async for fields in self._scan(link, f"{self._base}:{left}"):
                there.update(field for field in fields if field[0] in "cm" and field.split("/", 2)[1] in self._apps)
        before: dict[str, bool] = {}
        while entries := await _answer(link, "XRANGE", self._stream, b"(" + place, "+", "COUNT", FACTS):
            for place, fields in entries:  # noqa: B007 - the last one is where to go on
                parts = dict(zip(fields[::2], fields[1::2], strict=True))
                if b"k" in parts:
                    fact, way = _fact_of(parts)
                    before.setdefault(_field(fact), not (fact.kind in ENTERING and b"s" in way))
        there.update(field for field, is_there in before.items() if is_there)
        return there.difference(field for field, is_there in before.items() if not is_there)

    async def _scan(self, link: Link, key: str) -> AsyncIterator[list[str]]:
        """The fields of a hash, some at a time."""
        cursor = b"0"
        while True:
            cursor, found = await _answer(link, "HSCAN", key, cursor, "COUNT", SCANNED)
            yield [field.decode() for field in found[::2]]
            if cursor == b"0":
                return


async def _answer(link: Link, *command: Argument) -> Any:
    """Raises TimeoutError, Lost, ReplyError."""
    async with asyncio.timeout(SILENT_SECONDS):
        return await link.call(*command)


def _order(place: bytes) -> tuple[int, ...]:
    return tuple(map(int, place.split(b"-")))


def _fact_of(fields: dict[bytes, bytes]) -> tuple[Fact, bytes]:
    """A script's fact, and which hooks it is for (`scripts`)."""
    kind, app, channel, at, socket_id, user_id = (fields[name].decode() for name in (b"k", b"a", b"c", b"t", b"s", b"u"))
    fact = Fact(cast(Happening, kind), app, channel, int(at), socket_id, user_id or None, fields[b"i"], phase="at-once")
    return fact, fields.get(b"w", b"as")  # scripts of earlier versions did not say it


def _field(fact: Fact) -> str:
    """As scripts name it."""
    if fact.user_id is None:
        return f"c/{fact.app}/{fact.channel}"
    return f"m/{fact.app}/{fact.channel}\n{fact.user_id}"


def _edge(field: str, enters: bool, at: int, phase: Phase, socket_id: str = "", info: bytes = b"null") -> Fact:
    _, app, rest = field.split("/", 2)
    channel, is_member, user_id = rest.partition("\n")
    kind: Happening = "member-added" if is_member else "occupied"
    return Fact(
        kind if enters else ENTERING[kind], app, channel, at, socket_id, user_id if is_member else None, info, phase=phase
    )
