"""Ends the sessions of MQTT clients on the server.

A session that ends has filters in logs, and perhaps a will. The server keeps the session until a node has removed the filters,
has published the will, and has confirmed both. If the node does not confirm in time, the server gives the session to any node
again (`lua/due_sessions.lua`). A node repeats a confirmation that has not reached the server.
"""

import asyncio
from collections.abc import Callable, Iterable

from push1st.brokers.redis.context import NodeContext
from push1st.brokers.redis.resp import Argument
from push1st.brokers.redis.scripts import ABANDON_SESSIONS, CONFIRM_SESSIONS, DUE_SESSIONS
from push1st.brokers.redis.session_state import decoded_session, decoded_will, limits, owner_of
from push1st.brokers.redis.shard import Shard
from push1st.brokers.redis.sharded_logs import ShardedLogs
from push1st.brokers.redis.shards import Shards
from push1st.brokers.sessions import DUE_CONFIRM_SECONDS, RETURN_SECONDS, DueSession
from push1st.errors import Refused

MAX_STEP = 100
"""the maximum number of sessions that one script call handles"""
MAX_DUE = 500
"""the maximum number of due sessions of a shard that one call returns"""
MAX_REPEATED = 10_000
"""the maximum number of confirmations that a node repeats; the sessions of further ones are due again"""
UNWATCHED_A_TURN = 100
"""the number of filters that are removed at once"""

ClientKey = tuple[str, str]
"""the pair of an app's id and a client id"""
EndKey = tuple[str, str, int]
"""app, client id and generation of a session that ends"""


def end_key(one: DueSession) -> EndKey:
    return one.app, one.client_id, one.generation


class SessionEnds:
    """See the module.

    is_connected: a function that returns whether this node has a connection of a client, or is claiming the client id in the
    broker for a connection.
    """

    def __init__(
        self, shards: Shards, context: NodeContext, logs: ShardedLogs, is_connected: Callable[[ClientKey], bool]
    ) -> None:
        self._shards = shards
        self._logs = logs
        self._is_connected = is_connected
        self._node = context.node
        self._metrics = context.metrics
        self.limits = limits(len(shards.all))
        self.absent: dict[Shard, int] = {}
        """the numbers of absent sessions in the last replies"""
        self._unconfirmed: dict[EndKey, DueSession] = {}
        """the sessions whose confirmation has not reached the server"""
        self._local: list[DueSession] = []
        """the sessions that `due` returns on this node"""
        self._unsaved: set[ClientKey] = set()
        """the clients whose connection has ended, although the server has not received the end"""

    def add(self, one: DueSession) -> None:
        """Adds a session to those that `due` returns."""
        self._local.append(one)

    def missed(self, key: ClientKey) -> None:
        """Notes that the server has not received the end of a connection."""
        self._unsaved.add(key)

    async def due(self) -> list[DueSession]:
        """See `Sessions.due`."""
        await self._confirm_again()
        await self._abandon_unsaved()
        found, self._local = self._local, []
        shards = [shard for shard in self._shards.all if shard.connection.registered_on is not None]
        for some in await asyncio.gather(*map(self._due, shards)):
            found += [one for one in some if end_key(one) not in self._unconfirmed]
        return found

    async def _due(self, shard: Shard) -> list[DueSession]:
        """Returns the due sessions of a shard."""
        times = DUE_CONFIRM_SECONDS * 1000, "1" if shard.lease.may_abandon else "0", RETURN_SECONDS * 1000
        command = shard.keys.command(DUE_SESSIONS, self._node, MAX_STEP, *times, self.limits)
        found: list[DueSession] = []
        has_more = 1
        while has_more and len(found) < MAX_DUE:
            try:
                has_more, self.absent[shard], items = await shard.connection.call(*command)
            except Refused:  # the broker is away
                break
            for app_id, name, owner, generation, ended, early, will, stored, flow, count in items:
                app, client_id = app_id.decode(), name.decode()
                session = decoded_session(app, client_id, stored, b"", flow)
                one = DueSession(
                    app,
                    client_id,
                    owner_of(owner),
                    decoded_will(app, client_id, will),
                    bool(ended),
                    bool(early),
                    int(generation),
                    returned=() if session is None else session.flow.returned,
                    watched=() if session is None else session.watched,
                )
                found.append(one)
                if early:
                    self._metrics.mqtt_dropped["over-limit"] += int(count) - len(one.returned)
        return found

    async def confirm(self, due: Iterable[DueSession]) -> None:
        """See `Sessions.confirm`. Also removes the filters of ended sessions from the logs."""
        all_due = [*due]
        # First the wills, because the removal of many filters may take long.
        failed = await self._send([(one, "both" if one.ended else "will") for one in all_due if one.will or not one.ended])
        ended = [one for one in all_due if one.ended]
        failed |= await self._unwatch(ended)
        failed |= await self._send([(one, "ended") for one in ended if end_key(one) not in failed])
        for one in all_due:
            if end_key(one) in failed and len(self._unconfirmed) < MAX_REPEATED:
                self._unconfirmed[end_key(one)] = one

    async def _confirm_again(self) -> None:
        if self._unconfirmed:
            due, self._unconfirmed = self._unconfirmed, {}
            await self.confirm(due.values())

    async def _send(self, words: Iterable[tuple[DueSession, str]]) -> set[EndKey]:
        """Sends confirmations. Returns those that the server has not received. words: see `lua/confirm_sessions.lua`."""
        groups: dict[Shard, list[tuple[DueSession, str]]] = {}
        for one, word in words:
            groups.setdefault(self._shards.of(one.app, one.client_id), []).append((one, word))
        failed: set[EndKey] = set()

        async def send(shard: Shard, all_words: list[tuple[DueSession, str]]) -> None:
            for at in range(0, len(all_words), MAX_STEP):
                some = all_words[at : at + MAX_STEP]
                arguments: list[Argument] = [DUE_CONFIRM_SECONDS * 1000]
                for one, word in some:
                    arguments += one.app, one.client_id, one.generation, word
                try:
                    await shard.connection.call(*shard.keys.command(CONFIRM_SESSIONS, *arguments))
                except Refused:
                    failed.update([end_key(one) for one, _ in some])

        await asyncio.gather(*(send(shard, some) for shard, some in groups.items()))
        return failed

    async def _unwatch(self, ended: Iterable[DueSession]) -> set[EndKey]:
        """Removes the filters of ended sessions from the logs. Returns the sessions with filters that are not removed."""
        pairs = [(one, filter) for one in ended for filter in one.watched]
        failed: set[EndKey] = set()
        for at in range(0, len(pairs), UNWATCHED_A_TURN):
            some = pairs[at : at + UNWATCHED_A_TURN]
            calls = [self._logs.unwatch(*end_key(one), filter, one.owner.kind == "anonymous") for one, filter in some]
            for (one, _), result in zip(some, await asyncio.gather(*calls, return_exceptions=True), strict=True):
                if isinstance(result, Refused):
                    failed.add(end_key(one))
                elif isinstance(result, BaseException):
                    raise result
        return failed

    async def _abandon_unsaved(self) -> None:
        """Makes the sessions absent whose end the server has not received, unless their clients are connected again."""
        self._unsaved = {key for key in self._unsaved if not self._is_connected(key)}
        groups: dict[Shard, list[ClientKey]] = {}
        for key in self._unsaved:
            groups.setdefault(self._shards.of(*key), []).append(key)
        for shard, keys in groups.items():
            if shard.connection.registered_on is not None:
                try:
                    await self.abandon(shard, keys[:MAX_STEP])
                except Refused:
                    continue
                self._unsaved.difference_update(keys[:MAX_STEP])

    async def abandon(self, shard: Shard, clients: Iterable[ClientKey]) -> None:
        """Makes the sessions of clients absent whose connections to this node have ended. Raises Refused(503)."""
        keys = [*clients]
        for at in range(0, len(keys), MAX_STEP):
            # A client may have connected during an earlier step.
            gone = [f"{key[0]}/{key[1]}" for key in keys[at : at + MAX_STEP] if not self._is_connected(key)]
            if gone:
                await shard.connection.call(
                    *shard.keys.command(ABANDON_SESSIONS, self._node, RETURN_SECONDS * 1000, self.limits, *gone)
                )
