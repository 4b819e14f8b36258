"""Broker, roster, users and hook events in a Redis or Valkey server: for several workers, and for several machines.

`Redis` divides apps' channels among shards; everything else is in `shard.py` (entries, lease, recovery), `scripts.py`
(the atomic steps), `resp.py` (the connection), `publishing.py` and `joining.py` (what goes out at the end of a turn),
`views.py` (each edge once), `events_consumer.py` (what hooks are told) and `servers.py` (which server). A plain server is one
shard, a cluster several.

Roster and topics share one connection, and what it brings is handled in the order in which the server did it. So a
member list and the edges behind it never overlap, and whoever joins gets what was published after it joined.
"""

import asyncio
from binascii import crc_hqx
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from push1st import logs
from push1st.brokers import ASK_SECONDS, KEEP_SECONDS, Answer, Joined, Kept, Occupancy, OnEvent, Receive, Recount, keeps
from push1st.brokers.redis.servers import tags
from push1st.brokers.redis.shard import Shard
from push1st.brokers.redis.views import Views
from push1st.brokers.redis.wire import (
    ANSWER,
    EDGE,
    NODE,
    QUESTION,
    decode_answer,
    decode_edge,
    decode_messages,
    decode_node,
    decode_question,
)
from push1st.channels import kind_of
from push1st.config.brokerurl import parse
from push1st.errors import Refused
from push1st.messages import HookEvent, Member, Message, watch_topic
from push1st.metrics import Metrics

TICK_SECONDS = 0.25
WATCHING = watch_topic("")
MESSAGES = 0x90
"""the first byte of several messages, at least: a MessagePack array"""

log = logs.get("push1st.broker")


class Redis:
    """url: see `brokerurl.py`. stamp: the id and the time (wall clock, nanoseconds) of a message made here.

    node: a name no other worker has or had. hooked: the apps that have hooks → the edges that their hooks want (`scripts`).
    numbered: called with the number of this node among all, below 1024, that ends its message ids.
    """

    shared = True

    def __init__(
        self,
        url: str,
        stamp: Callable[[], tuple[int, int]],
        node: str,
        metrics: Metrics,
        hooked: Callable[[], Mapping[str, str]],
        numbered: Callable[[int], None],
    ) -> None:
        address = parse(url)
        self._stamp = stamp
        self._views = Views()
        self._receive: Receive = lambda _: 0
        self._on_event: OnEvent = lambda _: None
        self._answer: Answer = lambda *_: b""
        self._metrics = metrics
        self._shards: list[Shard] = []
        for index, tag in enumerate(tags(address)):
            on_push = partial(self._pushed, index)
            self._shards.append(Shard(address, tag, node, stamp, hooked, on_push, self._hand_on, self._views, metrics))
        self._shards[0].numbered = numbered
        for index, shard in enumerate(self._shards):
            shard.logged = self._shards[0].logged
            shard.owns = partial(self._is_in, index)  # type: ignore[method-assign]
        self._timer: asyncio.TimerHandle | None = None

    def _is_in(self, index: int, app: str, channel: str) -> bool:
        return self._index(app, channel) == index

    def _hand_on(self, event: HookEvent) -> None:
        self._on_event(event)

    def _index(self, app: str, channel: str) -> int:
        many = len(self._shards)
        return 0 if many == 1 else crc_hqx(f"{app}/{channel}".encode(), 0) % many

    def _shard(self, app: str, channel: str) -> Shard:
        return self._shards[self._index(app, channel)]

    # Broker

    async def open(self, receive: Receive, on_event: OnEvent, answer: Answer, recount: Recount) -> None:
        self._receive, self._on_event, self._answer = receive, on_event, answer
        self._views.receive = receive
        for shard in self._shards:
            shard.recount = recount
            shard.start()
        self._tick()
        for shard in self._shards:
            try:
                await shard.usable()
            except Refused:
                await self.close()
                raise Refused(503, f"the broker cannot be used: {shard.address}: {shard.reason}") from None

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(TICK_SECONDS, self._tick)
        now = loop.time()
        if any(shard.outlet is None for shard in self._shards):
            self._metrics.broker_away += TICK_SECONDS
        for shard in self._shards:
            shard.tick(now)

    async def close(self) -> None:
        for shard in self._shards:
            await shard.close()
        if self._timer is not None:
            self._timer.cancel()

    def workers(self, nodes: Collection[str]) -> None:
        """Takes the complete list of living nodes from the supervisor, and retries the connection at once.

        The supervisor has this list only with the embedded engine. It sends the list when a node starts or ends, and when the
        engine is ready. A node waits for no node outside this list before it publishes.
        """
        for shard in self._shards:
            shard.workers(nodes)

    async def settled(self) -> None:
        """Returns when everything caused here before has arrived here."""
        for shard in self._shards:
            await shard.call("PING")

    def _pushed(self, index: int, data: bytes) -> None:
        try:
            if data[0] >= MESSAGES:
                for message in decode_messages(data):
                    self._receive(message)
            elif data[0] == EDGE:
                edge = decode_edge(data)
                # Servers before Redis 7.2 send the edge of a join from here before its reply. Until the reply, no client here
                # follows the channel, and the first one receives all members with the reply.
                if edge.kind != "+" or self._views.members((edge.app, edge.channel)) is not None:
                    self._views.edge(edge, self._shards[index].is_here(edge))
            elif data[0] == QUESTION:
                asked = decode_question(data)
                self._shards[index].answer(asked, self._answer(asked.app, asked.channel, asked.question))
            elif data[0] == ANSWER:
                self._shards[index].answered(*decode_answer(data))
            elif data[0] == NODE:
                self._shards[index].came(decode_node(data))
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError, IndexError) as exc:
            log.error("a message of the broker cannot be read", reason=str(exc))  # such as one of another version

    async def subscribe(self, app: str, channel: str) -> None:
        await self._shard(app, channel).subscribe(app, channel)

    async def unsubscribe(self, app: str, channel: str) -> None:
        if channel.startswith(WATCHING):
            self._views.unwatch(app, channel.removeprefix(WATCHING))
        self._shard(app, channel).unsubscribe(app, channel)

    def publish(self, message: Message) -> Coroutine[Any, Any, int]:
        """What is published is on its way when this returns; the coroutine waits for what becomes of it."""
        milliseconds = None
        if "cache-" in message.channel and keeps(message):
            age = self._stamp()[1] - message.received
            milliseconds = max(0, KEEP_SECONDS * 1000 - age // 1_000_000)
        try:
            return _counted(self._shard(message.app, message.channel).publish(message, milliseconds))
        except Refused as refused:
            return _refused(refused)

    async def last(self, app: str, channel: str) -> Kept | None:
        return await self._shard(app, channel).kept(app, channel)

    async def ask(self, app: str, channel: str, question: bytes) -> Sequence[bytes]:
        return await self._shard(app, channel).ask(app, channel, question, ASK_SECONDS)

    # Roster

    async def join(self, app: str, channel: str, socket_id: str, member: Member | None, most: int) -> Joined:
        return await self._shard(app, channel).join(app, channel, socket_id, member, most)

    async def leave(self, app: str, channel: str, socket_id: str, user_id: str | None) -> None:
        self._shard(app, channel).leave(app, channel, socket_id, user_id)

    async def channels(self, app: str, prefix: str = "") -> Sequence[Occupancy]:
        found: dict[str, int] = {}
        for shard in self._shards:
            found |= await shard.channels(app, prefix)
        presence = [name for name in found if kind_of(name).presence]
        counts = await asyncio.gather(*(self._shard(app, name).users_on(app, name) for name in presence))
        users = dict(zip(presence, counts, strict=True))
        return [Occupancy(name, count, users.get(name, 0)) for name, count in sorted(found.items())]

    async def channel(self, app: str, channel: str) -> Occupancy | None:
        shard = self._shard(app, channel)
        subscriptions = await shard.subscriptions(app, channel)
        if not subscriptions:
            return None
        users = await shard.users_on(app, channel) if kind_of(channel).presence else 0
        return Occupancy(channel, subscriptions, users)

    async def members(self, app: str, channel: str, *, local_view: bool = False) -> tuple[Member, ...]:
        view = self._views.members((app, channel)) if local_view else None
        return tuple((await self._shard(app, channel).members(app, channel) if view is None else view).values())

    async def claim(self, app: str, channel: str, seconds: int) -> bool:
        return await self._shard(app, channel).claim(app, channel, seconds)

    # Quotas

    async def connect(self, app: str, most: int) -> bool:
        return await self._shard(app, "").connect(app, most)

    async def disconnect(self, app: str) -> None:
        self._shard(app, "").disconnect(app)

    # Users

    async def sign_in(self, app: str, user_id: str, socket_id: str) -> None:
        await self._shard(app, watch_topic(user_id)).sign_in(app, user_id, socket_id)

    async def sign_out(self, app: str, user_id: str, socket_id: str) -> None:
        self._shard(app, watch_topic(user_id)).sign_out(app, user_id, socket_id)

    async def online(self, app: str, user_ids: Sequence[str]) -> frozenset[str]:
        shards: dict[int, list[str]] = {}
        for user_id in user_ids:
            shards.setdefault(self._index(app, watch_topic(user_id)), []).append(user_id)
        online: dict[str, bool] = {}
        for index, some in shards.items():
            online |= await self._shards[index].online(app, some)
        # What has changed since the first shard answered is known from the edges.
        return frozenset(user for user, first in online.items() if self._views.status(app, user, first))

    # Hook events

    def report(self, event: HookEvent) -> None:
        self._shard(event.app, event.channel).report(event)


async def _counted(future: "asyncio.Future[int]") -> int:
    return await future


async def _refused(refused: Refused) -> int:
    raise refused
