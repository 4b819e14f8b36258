"""Keeps the sessions of MQTT clients on the server, with copies of the sessions of connected clients.

The name of a client determines the shard of its session. A step of a session is one script, which compares the generation of the
connection (`lua/claim_session.lua` and others). So a worker that was stopped for a while changes nothing any more.

Only the server's clock counts: for the end of sessions, for wills, and for generations. The generations of a server that has lost
its state are greater than those before the loss, because they begin with the time on the server's clock.

After each registration with the server, a node compares its clients with the server's copy of its sessions, and stores those that
are missing. So connected clients keep their sessions when the server loses its state. The sessions of absent clients are lost.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Any

import msgspec

from push1st import logs
from push1st.brokers.redis.absent import absent_sessions
from push1st.brokers.redis.context import NodeContext
from push1st.brokers.redis.resp import Argument
from push1st.brokers.redis.scripts import (
    CLAIM_SESSION,
    END_SESSION,
    SAVE_SESSION,
    STORE_PROGRESS,
    STORE_SESSION,
    Script,
)
from push1st.brokers.redis.session_ends import ClientKey, SessionEnds
from push1st.brokers.redis.session_state import (
    bytes_of,
    decoded_session,
    decoded_will,
    encode,
    owner_of,
    owner_word,
    will_fields,
    without_messages,
)
from push1st.brokers.redis.shard import Shard
from push1st.brokers.redis.sharded_logs import ShardedLogs
from push1st.brokers.redis.shards import Shards
from push1st.brokers.redis.takeovers import Takeovers
from push1st.brokers.sessions import (
    DUE_CONFIRM_SECONDS,
    RETURN_SECONDS,
    Claim,
    Claimed,
    Cursor,
    DueSession,
    Progress,
    SavedSession,
    SavedSubscription,
    SavedWill,
    ignore_takeover,
    no_copy,
)
from push1st.eager import spawn
from push1st.errors import LimitReached, Refused

MAX_ROUNDS = 20
"""the maximum number of connections on other nodes that one claim takes over, before another connection gets the client id"""
MAX_STEP = 500
"""the number of names that one call reads"""
STORED_A_TURN = 100
"""the number of sessions that are stored again before other work gets its turn"""
DROPPED = 2
"""the reply of `lua/save_session.lua` if the messages exceed a bound"""
TO_CONFIRM = 2
"""the reply of `lua/end_session.lua` if the session waits for its confirmation"""
UNCLAIMED = 1
"""the generation of a connection that was admitted while the broker was away; all other generations are greater"""

log = logs.get("push1st.broker")


class ClaimedClient:
    """A client that is connected to this node. generation: the generation of its connection, or `UNCLAIMED`."""

    __slots__ = ("claim", "generation")

    def __init__(self, claim: Claim, generation: int) -> None:
        self.claim = claim
        self.generation = generation


class RedisSessions:
    """Implements the port `Sessions`."""

    def __init__(self, shards: Shards, context: NodeContext, logs: ShardedLogs) -> None:
        self.shared = True
        self.logs = logs
        self.on_taken_over: Callable[[str, str, int], Awaitable[None]] = ignore_takeover
        self.copy_of: Callable[[str, str, int], SavedSession | None] = no_copy
        self.absent = partial(absent_sessions, shards)
        self._shards = shards
        self._node = context.node
        self._metrics = context.metrics
        self._ends = SessionEnds(shards, context, logs, lambda key: key in self._clients or key in self._claiming)
        self._clients: dict[ClientKey, ClaimedClient] = {}
        self._claiming: dict[ClientKey, object] = {}
        """the clients with a claim that waits for the broker; the value identifies the claim"""
        self._unstored: set[ClientKey] = set()
        """the connected clients whose sessions the server may not have, or has in an earlier state"""
        self._is_storing = False
        self._connections: dict[Shard, object] = {}
        """the connections to the server on which the clients were compared"""
        self.takeovers = Takeovers(self._end_connection)
        for shard in shards.all:
            shard.on_registered = self._registered

    def __len__(self) -> int:
        return sum(self._ends.absent.values())

    async def _run(self, app: str, client_id: str, script: Script, *arguments: Argument, ordered: bool = False) -> Any:
        """Runs a script in the shard of a client. Raises Refused(503). `ordered`: see `resp.py`."""
        shard = self._shards.of(app, client_id)
        return await shard.connection.call(*shard.keys.command(script, self._node, app, client_id, *arguments), ordered=ordered)

    # Connections

    async def claim(self, app: str, client_id: str, claim: Claim) -> Claimed:
        key, token = (app, client_id), object()
        is_brief = claim.clean and not claim.expiry
        if is_brief and self._shards.of(app, client_id).connection.registered_on is None:
            return self._admit_unclaimed(key, claim)
        self._claiming[key] = token
        try:
            return await self._claim(key, claim, token)
        except Refused as refused:
            if refused.code == 503:
                self._ends.missed(key)  # the server may have given the client id to this node
                if is_brief and self._claiming.get(key) is token:
                    return self._admit_unclaimed(key, claim)
            raise
        finally:
            if self._claiming.get(key) is token:
                del self._claiming[key]

    def _admit_unclaimed(self, key: ClientKey, claim: Claim) -> Claimed:
        """Admits a client whose session ends with its connection, although the broker is away. The node claims the id later."""
        self._clients[key] = ClaimedClient(claim, UNCLAIMED)
        return Claimed(UNCLAIMED)

    async def _claim(self, key: ClientKey, claim: Claim, token: object) -> Claimed:
        app, client_id = key
        described = (
            owner_word(claim.owner),
            claim.address,
            "1" if claim.clean else "0",
            claim.expiry * 1000,
            *will_fields(claim.will),
            secrets.token_hex(8),
            encode(SavedSession(claim.expiry)),
        )
        ended, result, reply = "", b"held", []
        for _ in range(MAX_ROUNDS):
            more = ended, self._ends.limits, DUE_CONFIRM_SECONDS * 1000
            result, *reply = await self._run(app, client_id, CLAIM_SESSION, *described, *more, ordered=True)
            if result != b"held":
                break
            ended = reply[0].decode()
            await self.takeovers.until_released(app, client_id, int(ended))
            if self._claiming.get(key) is not token:  # otherwise the older connection would get the client id
                raise Refused(503, "another connection has the client id")
        if result == b"owner":
            raise Refused(403, "the client id has a session of another owner")
        if result == b"limit":
            raise LimitReached(403, "the maximum number of sessions of absent clients is reached")
        if result == b"held":
            raise Refused(503, "too many connections use the client id")
        return self._claimed(key, claim, reply)

    def _claimed(self, key: ClientKey, claim: Claim, reply: Sequence[Any]) -> Claimed:
        """Handles the reply to a claim."""
        app, client_id = key
        word, resumes, crashed, has_ended, owner, known, *stored, will = reply
        generation = int(word)
        self._clients[key] = ClaimedClient(claim, generation)
        session, last = decoded_session(app, client_id, *stored), decoded_will(app, client_id, will)
        if resumes:
            session = msgspec.structs.replace(session or SavedSession(claim.expiry), will=last)
            return Claimed(generation, session, bool(crashed))
        if not has_ended:
            return Claimed(generation)
        returned, watched = ((), ()) if session is None else (session.flow.returned, session.watched)
        ended = DueSession(app, client_id, owner_of(owner), last, True, False, int(known), returned, watched)
        return Claimed(generation, ended=ended)

    async def attach(self, app: str, client_id: str, generation: int) -> bool:
        return self._checked(app, client_id, generation, await self._store(app, client_id, generation, None))

    async def store(self, app: str, client_id: str, generation: int, session: SavedSession) -> bool:
        return self._checked(app, client_id, generation, await self._store(app, client_id, generation, session))

    async def _store(
        self, app: str, client_id: str, generation: int, session: SavedSession | None, is_again: bool = False
    ) -> int:
        """Stores a copy of a session, or that the resumption is complete if `session` is None.

        is_again: whether the server may have taken this node for dead.
        """
        owner, address = self._owner(app, client_id)
        if session is None:
            state: tuple[Argument, ...] = 0, "", "", 0, 0
        else:
            data = encode(msgspec.structs.replace(session, will=None, flow=without_messages(session.flow)))
            will, delay = will_fields(session.will)
            state = session.expiry * 1000, data, will, delay, bytes_of(client_id, owner, session, data, will)
        described = owner, address, *state, "1" if is_again else "0"
        return int(await self._run(app, client_id, STORE_SESSION, generation, *described))

    def _owner(self, app: str, client_id: str) -> tuple[str, str]:
        """Returns the owner and the address of a connected client; empty texts without the client."""
        known = self._clients.get((app, client_id))
        return ("", "") if known is None else (owner_word(known.claim.owner), known.claim.address)

    async def _end_connection(self, app: str, client_id: str, generation: int) -> None:
        """Ends a connection on this node that another node takes over."""
        await self.on_taken_over(app, client_id, generation)

    def _checked(self, app: str, client_id: str, generation: int, result: int) -> bool:
        """Returns whether a generation is valid. If it is not, ends the connection. result: the reply of a script."""
        if not result:
            spawn(self._end_connection(app, client_id, generation))
        return bool(result)

    async def save(self, app: str, client_id: str, generation: int, session: SavedSession, will: SavedWill | None = None) -> int:
        owner, address = self._owner(app, client_id)
        generation = self._left(app, client_id, generation)
        if generation == UNCLAIMED:
            return generation
        flow, (last, delay) = session.flow, will_fields(will or session.will)
        data = encode(msgspec.structs.replace(session, will=None, flow=without_messages(flow)))
        count = len(flow.waiting) + sum(one is not None for _, one in flow.inflight)
        messages = encode(flow) if count else b""
        size = bytes_of(client_id, owner, session, data, last)
        described = owner, address, session.expiry * 1000, data, last, delay, size
        least = 0 if session.expiry else RETURN_SECONDS * 1000
        bounded = messages, len(messages), count, self._ends.limits, least, "" if will is None else DUE_CONFIRM_SECONDS * 1000
        try:
            result = await self._run(app, client_id, SAVE_SESSION, generation, *described, *bounded)
        except Refused:
            self._ends.missed((app, client_id))
            raise
        if result == DROPPED:
            self._metrics.mqtt_dropped["over-limit"] += count
        return generation if result else 0

    async def end(
        self, app: str, client_id: str, generation: int, filters: Collection[str], will: SavedWill | None = None
    ) -> int:
        owner = owner_of(self._owner(app, client_id)[0].encode())
        generation = self._left(app, client_id, generation)
        if generation == UNCLAIMED:
            return generation
        watched = tuple(filters)
        data = encode(SavedSession(0, tuple([SavedSubscription(one, 1) for one in watched]))) if watched else b""
        state = data, will_fields(will)[0], DUE_CONFIRM_SECONDS * 1000
        try:
            result, flow = await self._run(app, client_id, END_SESSION, generation, *state)
        except Refused:
            self._ends.missed((app, client_id))
            raise
        if result != TO_CONFIRM:
            return generation if result else 0
        session = decoded_session(app, client_id, data or encode(SavedSession(0)), b"", flow)
        returned = () if session is None else session.flow.returned
        ended = DueSession(app, client_id, owner, None, True, False, generation, returned, watched)
        if returned:  # the confirmation of the will ends the session, so the messages are not confirmed
            self._ends.add(ended if will is None else msgspec.structs.replace(ended, generation=0, watched=()))
        elif will is None:
            await self._ends.confirm([ended])
        return generation

    def _left(self, app: str, client_id: str, generation: int) -> int:
        """Removes the client of a connection that ends. Returns the generation of the connection's claim."""
        known = self._clients.get((app, client_id))
        if known is None:
            return generation
        if generation in (known.generation, UNCLAIMED):
            del self._clients[app, client_id]
        return known.generation if generation == UNCLAIMED else generation

    def store_progress(self, changed: Sequence[Progress]) -> None:
        groups: dict[Shard, list[Progress]] = {}
        for one in changed:
            groups.setdefault(self._shards.of(one.app, one.client_id), []).append(one)
        for shard, some in groups.items():
            for at in range(0, len(some), STORED_A_TURN):
                self._send_progress(shard, some[at : at + STORED_A_TURN])

    def _send_progress(self, shard: Shard, changed: Sequence[Progress]) -> None:
        connection = shard.connection
        if connection.registered_on is None:
            return

        def on_reply(reply: Any) -> None:
            if isinstance(reply, Exception):
                connection.check(reply)
                return
            refused, unknown = reply
            for place in refused:
                one = changed[place]
                self._checked(one.app, one.client_id, one.generation, 0)
            self._unstored.update([(changed[place].app, changed[place].client_id) for place in unknown])

        arguments: list[Argument] = [self._node]
        for one in changed:
            arguments += one.app, one.client_id, one.generation, encode(one.saved), "1" if one.saved.has_saved else "0"
        connection.send(connection.registered_on, STORE_PROGRESS, on_reply, *arguments)

    # Absent clients

    async def due(self, now: int) -> list[DueSession]:
        del now  # only the server's clock counts
        if self._unstored and not self._is_storing:
            spawn(self._store_unstored())
        return await self._ends.due()

    async def confirm(self, due: Collection[DueSession]) -> None:
        await self._ends.confirm(due)

    # Registrations of the node

    def _registered(self, shard: Shard) -> None:
        spawn(self._compare(shard))
        self.logs.recovered(shard)

    async def _compare(self, shard: Shard) -> None:
        """Compares the clients of this node with the server's copy, and sends each difference.

        On a new connection, the server may have earlier states of the sessions. So the node then stores all sessions again.
        """
        resp = shard.connection.established
        is_new = self._connections.get(shard) not in (None, resp)
        try:
            stored = await self._stored(shard)
            of_shard = [key for key in self._clients if self._shards.of(*key) is shard]
            await self._ends.abandon(shard, stored)
        except Refused as refused:  # the next registration compares again
            log.info("the sessions of this node are not compared", reason=refused.text)
            return
        self._connections[shard] = resp
        self._unstored.update([key for key in of_shard if is_new or key not in stored])
        await self._store_unstored()

    async def _stored(self, shard: Shard) -> set[ClientKey]:
        """Returns the clients whose sessions the server has for this node."""
        found: set[ClientKey] = set()
        key, cursor = shard.keys.key("sn", self._node), b"0"
        while True:
            cursor, some = await shard.connection.call("SSCAN", key, cursor, "COUNT", MAX_STEP)
            for app, _, client_id in [one.decode().partition("/") for one in some]:
                found.add((app, client_id))
            if cursor == b"0":
                return found

    async def _store_unstored(self) -> None:
        """Stores the sessions that the server may not have. Sessions that the server refuses are stored at the next tick."""
        if self._is_storing:
            return
        self._is_storing = True
        try:
            unstored, self._unstored = [*self._unstored], set()
            for at in range(0, len(unstored), STORED_A_TURN):
                some = unstored[at : at + STORED_A_TURN]
                for key, result in zip(
                    some, await asyncio.gather(*map(self._store_again, some), return_exceptions=True), strict=True
                ):
                    if isinstance(result, LimitReached):
                        log.info("the session of a client is not stored again", client_id=key[1][:64], reason=result.text)
                    elif isinstance(result, Refused):
                        self._unstored.add(key)
                    elif isinstance(result, BaseException):
                        raise result
        finally:
            self._is_storing = False

    async def _store_again(self, key: ClientKey) -> None:
        """Stores the session of a connected client that the server may not have. Raises Refused."""
        known = self._clients.get(key)
        if known is None or key in self._claiming:
            return
        if known.generation == UNCLAIMED:
            token = self._claiming[key] = object()
            try:
                claimed = await self._claim(key, known.claim, token)
                if claimed.ended is not None:
                    self._ends.add(claimed.ended)
            finally:
                if self._claiming.get(key) is token:
                    del self._claiming[key]
            return
        session, ends = self.copy_of(*key, known.generation), dict[str, Cursor | None]()
        is_anonymous = known.claim.owner.kind == "anonymous"
        for filter in () if session is None else session.watched:
            ends[filter] = await self.logs.watch(*key, known.generation, filter, is_anonymous)
        session = self.copy_of(*key, known.generation)  # the subscriptions may have changed during the request
        if session is None or self._clients.get(key) is not known:
            return
        kept = []
        for one in session.subscriptions:
            if one.cursor is not None and one.filter in ends:
                kept.append(msgspec.structs.replace(one, cursor=_valid(one.cursor, ends[one.filter])))
            else:
                kept.append(one)
        removed = ends.keys() - {*session.watched}
        session = msgspec.structs.replace(session, subscriptions=tuple(kept))
        self._checked(*key, known.generation, await self._store(*key, known.generation, session, is_again=True))
        for filter in removed:
            await self.logs.unwatch(*key, known.generation, filter, is_anonymous)


def _valid(cursor: Cursor, end: Cursor | None) -> Cursor | None:
    """Returns a cursor, with the ends of those parts of the log that the server has lost."""
    if end is None or len(end) != len(cursor):
        return end
    return tuple([old if old.epoch == new.epoch else new for old, new in zip(cursor, end, strict=True)])
