"""Broker, roster, users and facts in a Redis or Valkey server: for several workers, and for several machines.

`Redis` divides apps' channels among shards; everything else is in `shard.py` (entries, lease, recovery), `scripts.py`
(the atomic steps), `link.py` (the connection), `views.py` (each edge once) and `servers.py` (which server). A plain
server is one shard, a cluster several.

Roster and topics share one connection, and what it brings is handled in the order in which the server did it. So a
member list and the edges behind it never overlap, and whoever joins gets what was published after it joined.
"""

import asyncio
from binascii import crc_hqx
from collections.abc import Callable, Sequence

import msgspec

from push1st import logs
from push1st.brokers import KEEP_SECONDS, Happened, Kept, Occupancy, Receive, keeps
from push1st.brokers.redis.servers import tags
from push1st.brokers.redis.shard import Shard
from push1st.brokers.redis.views import Views
from push1st.brokers.redis.wire import EDGE, decode_edge, decode_message, decode_messages
from push1st.brokerurl import parse
from push1st.channels import kind_of
from push1st.messages import Fact, Member, Message, watch_topic

TICK_SECONDS = 0.25
MESSAGES = 0x90
"""the first byte of several messages, at least: a MessagePack array"""

log = logs.get("push1st.broker")


class Redis:
    """url: see `brokerurl.py`. stamp: the id and the time (wall clock, nanoseconds) of a message made here.

    node: a name no other worker has or had. hooked: whether an app has hooks. numbered: called with the number of this
    node among all, below 1024, that ends its message ids.
    """

    def __init__(
        self,
        url: str,
        stamp: Callable[[], tuple[int, int]],
        node: str,
        hooked: Callable[[str], bool],
        numbered: Callable[[int], None],
    ) -> None:
        address = parse(url)
        self._stamp = stamp
        self._views = Views()
        self._receive: Receive = lambda _: 0
        self._happened: Happened = lambda _: None
        self._shards = [Shard(address, tag, node, stamp, hooked, self._pushed, self._views) for tag in tags(address)]
        self._shards[0].numbered = numbered
        for index, shard in enumerate(self._shards):
            shard.owns = lambda app, channel, index=index: self._index(app, channel) == index  # type: ignore[method-assign,misc]
        self._timer: asyncio.TimerHandle | None = None

    def _index(self, app: str, channel: str) -> int:
        many = len(self._shards)
        return 0 if many == 1 else crc_hqx(f"{app}/{channel}".encode(), 0) % many

    def _shard(self, app: str, channel: str) -> Shard:
        return self._shards[self._index(app, channel)]

    # Broker

    async def open(self, receive: Receive, happened: Happened) -> None:
        self._receive, self._happened = receive, happened
        self._views.receive = receive
        for shard in self._shards:
            shard.start()
        self._tick()
        for shard in self._shards:
            await shard.usable()

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(TICK_SECONDS, self._tick)
        now = loop.time()
        for shard in self._shards:
            shard.tick(now)

    async def close(self) -> None:
        for shard in self._shards:
            await shard.close()
        if self._timer is not None:
            self._timer.cancel()

    def _pushed(self, data: bytes) -> None:
        try:
            if data[0] >= MESSAGES:
                for message in decode_messages(data):
                    self._receive(message)
            elif data[0] == EDGE:
                self._views.edge(decode_edge(data))
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError, IndexError) as wrong:
            log.error("a message of the broker cannot be read", reason=str(wrong))  # such as one of another version

    async def subscribe(self, app: str, channel: str) -> None:
        await self._shard(app, channel).subscribe(app, channel)

    async def unsubscribe(self, app: str, channel: str) -> None:
        self._shard(app, channel).unsubscribe(app, channel)

    async def publish(self, message: Message) -> int:
        milliseconds = None
        if "cache-" in message.channel and keeps(message):
            age = self._stamp()[1] - message.received
            milliseconds = max(0, KEEP_SECONDS * 1000 - age // 1_000_000)
        return await self._shard(message.app, message.channel).publish(message, milliseconds)

    async def last(self, app: str, channel: str) -> Kept | None:
        kept = await self._shard(app, channel).kept(app, channel)
        return None if kept is None else Kept(decode_message(kept[0]), kept[1] // 1000)

    # Roster

    async def join(self, app: str, channel: str, socket_id: str, member: Member | None, most: int) -> tuple[Member, ...] | None:
        want = "m" if kind_of(channel).presence else ""
        joined = await self._shard(app, channel).join(app, channel, socket_id, member, most, want)
        return None if member is None else joined.members

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

    async def members(self, app: str, channel: str) -> tuple[Member, ...]:
        found = await self._shard(app, channel).members(app, channel)
        return tuple(Member(user, info) for user, info in found.items())

    # Users

    async def sign_in(self, app: str, user_id: str, socket_id: str) -> None:
        await self._shard(app, watch_topic(user_id)).sign_in(app, user_id, socket_id)

    async def sign_out(self, app: str, user_id: str, socket_id: str) -> None:
        self._shard(app, watch_topic(user_id)).sign_out(app, user_id, socket_id)

    async def online(self, app: str, user_ids: Sequence[str]) -> frozenset[str]:
        shards: dict[int, list[str]] = {}
        for user_id in user_ids:
            shards.setdefault(self._index(app, watch_topic(user_id)), []).append(user_id)
        found: frozenset[str] = frozenset()
        for index, some in shards.items():
            found |= await self._shards[index].online(app, some)
        return found

    # Facts

    def report(self, fact: Fact) -> None:
        self._happened(fact)
