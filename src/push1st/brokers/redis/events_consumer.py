"""Reads the hook events of a shard, and delivers these events to the hooks in order. One node of the cluster is the consumer.

The consumer has a lease, and renews this lease before each delivery. If the operating system suspends the process for a while,
the process may read the reply to the renewal too late. If the lease has expired by then, the consumer delivers nothing, because
another node may be the consumer.

The place of an event is the id of the event in the server's stream. In one turn of the event loop, the consumer delivers events
to the hooks, and sends the place of the newest of them to the server. If the process dies before this turn, no backend has
received the events, and the next consumer reads the same events again. If the connection ends before the server stores the place,
this node still has the place in memory. So the next consumer on this node continues after the newest delivered event.

For each channel and member, hooks receive settled edges (`scripts.py`) alternately: entering, leaving, entering. For this order,
the consumer keeps a ledger: the channels and members that exist according to the edges that hooks have received. The consumer
delivers only edges that change the ledger. So edges alternate even if the consumer changes, or the server loses its state.

A node that becomes the consumer builds the ledger from the roster, and adds channels and members whose leaving edge is held back.
Hooks have not received the unread events yet. So the node then undoes, in the ledger, the changes that these events report.

After the server lost its state, the node with the ledger remains the consumer. When all nodes have registered their entries
again, the consumer compares the ledger with the roster, and delivers an edge for each difference. These edges replace the
held-back edges and the unread events that the server lost.

The consumer also compares the ledger after each reconnection, because a replica that became the master may lack recent events.
The consumer also compares the ledger after another node has ended. If that node started before the hooks were configured, it
reported none of its edges.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any, cast

import hiredis
import msgspec

from push1st import logs
from push1st.brokers.redis.bounds import Timings
from push1st.brokers.redis.resp import Argument, ConnectionLost, RespConnection
from push1st.brokers.redis.scripts import READ, TAKE, Script
from push1st.brokers.redis.servers import Unusable, connect
from push1st.brokers.redis.wire import decode_event
from push1st.channels import kind_of
from push1st.config.brokerurl import Address
from push1st.eager import timeout
from push1st.messages import ENTERING, HookEvent, HookEventKind, Phase

MAX_EVENTS = 500
"""the maximum number of events in one read"""
MAX_RELEASED = 500
"""the maximum number of entries of `BASE:held` (`scripts.py`) that one script call releases"""
SCAN_COUNT = 1000
"""the number of fields that one command reads from a hash, or writes to a set"""

SAVED_LEDGER_SECONDS = 60
"""the seconds for which the broker keeps a saved ledger"""

START = b"0-0"
"""an id that is lower than the ids of all events in a stream"""

log = logs.get("push1st.broker")


class Ledger:
    """The channels and members of a shard that exist according to the settled edges that hooks have received.

    When a consumer ends, its node keeps the ledger.

    there: the channels and members, named like the fields of a node's entries (`scripts.py`); None if this node has no ledger.
    apps: the apps whose channels and members the ledger contains.
    place: the id, in the server's stream, of the newest event that was delivered to hooks; `START` before the first event.
    compared_at: the time (loop's clock) at which a comparison with the roster is due after a possible loss of events, or None.
    checked_at: the time (loop's clock) at which a comparison with the roster is due after another node has ended, or None. If
    another node becomes the consumer before this time, the comparison is dropped, because the new consumer builds a new ledger.
    """

    def __init__(self) -> None:
        self.there: set[str] | None = None
        self.apps: set[str] = set()
        self.place = START
        self.compared_at: float | None = None
        self.checked_at: float | None = None

    def is_due(self, now: float) -> bool:
        """Returns whether the ledger must be compared with the roster now."""
        return any(at is not None and at <= now for at in (self.compared_at, self.checked_at))

    def state_lost(self) -> None:
        """Resets the place to `START`, because the Redis server lost its state, and so also the stream of events."""
        self.place = START

    def forget(self) -> None:
        """Drops the ledger, because another node is the consumer now."""
        self.there = None

    async def leave(self, resp: RespConnection, base: str) -> None:
        """Saves the ledger in the broker for the next consumer, if a comparison with the roster is still due."""
        if self.there and self.compared_at is not None:
            key, fields = f"{base}:ledger", list(self.there)
            resp.call("DEL", key)
            for at in range(0, len(fields), SCAN_COUNT):
                await resp.call("SADD", key, *fields[at : at + SCAN_COUNT])
            await resp.call("EXPIRE", key, SAVED_LEDGER_SECONDS)


class Consumer:
    """Reads hook events on its own connection, until `stop` is called, the consumer's lease expires, or the connection ends.

    base: the first part of the names of the shard's keys.
    run: a function that returns the command for a script, without the arguments of the script.
    apps: a function that returns the apps whose hooks receive settled edges; the apps may change with the configuration.
    on_event: a function that takes the events.
    last: whether this node stops and no other node is alive; the consumer then delivers all remaining events and held-back edges.
    """

    def __init__(
        self,
        address: Address,
        tag: str,
        node: str,
        base: str,
        run: Callable[[Script], tuple[Argument, ...]],
        timings: Timings,
        ledger: Ledger,
        apps: Callable[[], Collection[str]],
        on_event: Callable[[HookEvent], None],
        *,
        last: bool = False,
    ) -> None:
        self._address = address
        self._tag = tag
        self._node = node
        self._base = base
        self._stream = f"{base}:facts"
        self._run_script = run
        self._timings = timings
        self._ledger = ledger
        self._apps = apps
        self._on_event = on_event
        self._last = last
        self._task = asyncio.get_running_loop().create_task(self._run())

    @property
    def ended(self) -> bool:
        return self._task.done()

    async def stop(self) -> None:
        self._task.cancel()
        await self.end()

    async def end(self) -> None:
        """Waits until the consumer has ended."""
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        resp = None
        try:
            resp = await connect(self._address, self._tag, f"push1st-facts-{self._node}", lambda _: None, lambda: None)
            await self._begin(resp)
            if self._last:
                await self._finish(resp)
                return
            while await self._more(resp):
                pass
            log.info("another node reads the hook events")
        except (OSError, TimeoutError, Unusable, ConnectionLost, hiredis.ReplyError) as exc:
            log.info("this node stopped reading hook events", reason=str(exc) or type(exc).__name__)
        except asyncio.CancelledError:
            if resp is not None:
                resp.close()  # `close` sends the newest place, if it is queued, and ends the connection
                resp = None
            raise
        finally:
            if resp is not None:
                resp.abort()

    async def _begin(self, resp: RespConnection) -> None:
        """Finds the id of the event after which the consumer reads; builds the ledger if this node has no ledger."""
        ledger = self._ledger
        saved = await self._call(resp, "GET", f"{self._stream}:read") or START
        place = max(ledger.place, saved, key=_order)
        if ledger.there is None:
            ledger.apps = set(self._apps())
            left = await self._call(resp, "SMEMBERS", f"{self._base}:ledger")
            if left:
                ledger.there, ledger.compared_at = {field.decode() for field in left}, 0
            else:
                ledger.there = await self._expected_ledger(resp, place, ledger.apps)
        ledger.place = place

    async def _follow_apps(self, resp: RespConnection) -> None:
        """Adds channels and members of apps with new hooks to the ledger; removes channels and members of apps without hooks."""
        ledger, apps = self._ledger, set(self._apps())
        if ledger.there is None or apps == ledger.apps:
            return
        new = apps - ledger.apps
        expected = await self._expected_ledger(resp, ledger.place, new) if new else set()
        ledger.there = {field for field in ledger.there if field.split("/", 2)[1] in apps} | expected
        ledger.apps = apps

    async def _more(self, resp: RespConnection, wait: bool = True) -> bool:
        """Reads and delivers the next events; returns whether this node is still the consumer."""
        ledger = self._ledger
        block = ("BLOCK", int(self._timings.read * 1000)) if wait else ()
        found = await self._call(resp, "XREAD", "COUNT", MAX_EVENTS, *block, "STREAMS", self._stream, ledger.place)
        await self._follow_apps(resp)
        recovering = await self._save_place(resp)
        if recovering is None or ledger.there is None:
            return False
        if recovering:
            ledger.compared_at = 0
        elif ledger.is_due(asyncio.get_running_loop().time()) and not await self._compare(resp):
            return False
        if not found:
            return wait
        entries = found[self._stream.encode()]
        for _, fields in entries:
            self._deliver_entry(fields)
        ledger.place = entries[-1][0]
        saved = resp.call(*self._reading())
        resp.flush()  # sends the place now: the process may die after this turn of the loop
        async with timeout(self._timings.read_silent):
            return bool((await saved)[0])

    def _reading(self) -> tuple[Argument, ...]:
        lease, hold = int(self._timings.lease * 1000), int(self._timings.hold * 1000)
        released = 0 if self._last else MAX_RELEASED  # the last node reads the held-back edges with `TAKE`
        return *self._run_script(READ), self._node, lease, self._ledger.place, hold, released

    async def _save_place(self, resp: RespConnection) -> int | None:
        """Stores the place of the newest delivered event in the broker, and renews the lease.

        Returns None if another node may be the consumer. Otherwise, if the server has lost its state, returns the milliseconds
        for which this node waits until all nodes have registered their entries again; else 0.
        """
        loop = asyncio.get_running_loop()
        sent_at = loop.time()
        mine, recovering = await self._call(resp, *self._reading())
        return int(recovering) if mine and loop.time() < sent_at + self._timings.lease else None

    async def _finish(self, resp: RespConnection) -> None:
        """Delivers the remaining events and the held-back leaving edges, because the last node stops."""
        if self._ledger.compared_at is not None:  # compares the ledger now, because no other node will register its entries
            self._ledger.compared_at = 0
        while await self._more(resp, wait=False):
            pass
        more = 1
        while more:
            more, taken = await self._call(resp, *self._run_script(TAKE), self._node, MAX_RELEASED)
            for field, held in zip(taken[::2], taken[1::2], strict=True):
                _, socket_id, received, info = held.split(b"\0", 3)
                if self._changes(field.decode(), enters=False):
                    self._on_event(_edge(field.decode(), False, int(received), "held", socket_id.decode(), info))

    # Events

    def _deliver_entry(self, fields: list[bytes]) -> None:
        try:
            self._deliver(dict(zip(fields[::2], fields[1::2], strict=True)))
        except Exception:  # an exception for one event must not stop the next events
            log.exception("hook event skipped")

    def _deliver(self, fields: dict[bytes, bytes]) -> None:
        whole = fields.get(b"fact")
        if whole is not None:  # a node writes an event as one field, a script writes an event as several fields
            self._on_event(decode_event(whole))
            return
        event, way = _event_of(fields)
        if b"a" in way:
            self._on_event(event)
        if b"s" in way or b"h" in way:
            changes = self._changes(_field(event), event.kind in ENTERING)
            if changes and b"s" in way:
                self._on_event(msgspec.structs.replace(event, phase="settled"))

    def _changes(self, field: str, enters: bool) -> bool:
        """Applies an edge to the ledger; returns whether the edge changed the ledger."""
        there = self._ledger.there
        if there is None or (field in there) == enters:
            return False
        (there.add if enters else there.discard)(field)
        return True

    async def _compare(self, resp: RespConnection) -> bool:
        """Delivers the differences between ledger and roster as edges; returns whether this node is still the consumer."""
        ledger = self._ledger
        expected = await self._expected_ledger(resp, ledger.place, ledger.apps)
        recovering, there = await self._save_place(resp), ledger.there
        if recovering is None or there is None:
            return False
        if not recovering:
            ledger.compared_at = ledger.checked_at = None
            now = time.time_ns()
            for field in sorted(there - expected, reverse=True):  # members leave before their channel is vacated
                self._on_event(_edge(field, False, now, "settled"))
            for field in sorted(expected - there):
                self._on_event(_edge(field, True, now, "settled"))
            ledger.there = expected
            resp.call("DEL", f"{self._base}:ledger")
        return True

    async def _expected_ledger(self, resp: RespConnection, place: bytes, apps: Collection[str]) -> set[str]:
        """Returns the correct ledger for apps whose hooks have received the events up to the id `place`, but no later events.

        The ledger contains the channels and members in the roster, and the channels and members whose leaving edge is held back.
        The roster may change while this method reads it, but each change adds an event with an id after `place`. The first such
        event of a member shows whether the member existed at `place`: if it leaves, yes; if it enters, no. The same is
        true of channels.
        """
        there: set[str] = set()
        for app in apps:
            async for channels in self._scan(resp, f"{self._base}:i:{app}"):
                there.update(f"c/{app}/{channel}" for channel in channels)
                presence = [channel for channel in channels if kind_of(channel).presence]
                replies = [resp.call("HKEYS", f"{self._base}:m:{app}/{channel}") for channel in presence]
                async with timeout(self._timings.read_silent):
                    for channel, users in zip(presence, await asyncio.gather(*replies), strict=True):
                        there.update(f"m/{app}/{channel}\n{user.decode()}" for user in users)
        for left in ("held", "gone"):  # read after the roster, because a leave moves a field from the roster to these hashes
            async for fields in self._scan(resp, f"{self._base}:{left}"):
                there.update(field for field in fields if field[0] in "cm" and field.split("/", 2)[1] in apps)
        before: dict[str, bool] = {}
        while entries := await self._call(resp, "XRANGE", self._stream, b"(" + place, "+", "COUNT", MAX_EVENTS):
            for place, fields in entries:  # noqa: B007 - the next XRANGE begins after the last place
                parts = dict(zip(fields[::2], fields[1::2], strict=True))
                if b"k" in parts and parts[b"a"].decode() in apps:
                    event, way = _event_of(parts)
                    before.setdefault(_field(event), not (event.kind in ENTERING and b"s" in way))
        there.update(field for field, is_there in before.items() if is_there)
        return there.difference(field for field, is_there in before.items() if not is_there)

    async def _call(self, resp: RespConnection, *command: Argument) -> Any:
        """Returns the reply to a command. Raises TimeoutError, ConnectionLost, ReplyError."""
        async with timeout(self._timings.read_silent):
            return await resp.call(*command)

    async def _scan(self, resp: RespConnection, key: str) -> AsyncIterator[list[str]]:
        """Yields the fields of a hash in batches."""
        cursor = b"0"
        while True:
            cursor, found = await self._call(resp, "HSCAN", key, cursor, "COUNT", SCAN_COUNT)
            yield [field.decode() for field in found[::2]]
            if cursor == b"0":
                return


def _order(place: bytes) -> tuple[int, ...]:
    return tuple(map(int, place.split(b"-")))


def _event_of(fields: dict[bytes, bytes]) -> tuple[HookEvent, bytes]:
    """Returns the hook event in an entry that a script added to the stream, and the entry's field `w` (`scripts.py`)."""
    kind, app, channel, at, socket_id, user_id = (fields[name].decode() for name in (b"k", b"a", b"c", b"t", b"s", b"u"))
    event = HookEvent(cast(HookEventKind, kind), app, channel, int(at), socket_id, user_id or None, fields[b"i"], phase="at-once")
    return event, fields.get(b"w", b"as")  # entries from scripts of older versions have no `w`


def _field(event: HookEvent) -> str:
    """Returns the field that scripts use for the channel or member of an event (`scripts.py`)."""
    if event.user_id is None:
        return f"c/{event.app}/{event.channel}"
    return f"m/{event.app}/{event.channel}\n{event.user_id}"


def _edge(field: str, enters: bool, at: int, phase: Phase, socket_id: str = "", info: bytes = b"null") -> HookEvent:
    _, app, rest = field.split("/", 2)
    channel, is_member, user_id = rest.partition("\n")
    kind: HookEventKind = "member-added" if is_member else "occupied"
    return HookEvent(
        kind if enters else ENTERING[kind], app, channel, at, socket_id, user_id if is_member else None, info, phase=phase
    )
