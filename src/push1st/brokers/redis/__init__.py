"""Implements the broker for several workers and machines with a Redis or Valkey server, which keeps the state of the cluster.

`shards.py` divides the channels of all apps among shards. `shard.py` lists the modules of a shard. `scripts.py` lists the keys
in the server, and loads the Lua scripts. `resp.py` is a connection to a server, and `servers.py` finds the server of a shard.

The roster and the topics of a shard share one connection. So replies and messages arrive in the order in which the Redis server
ran the commands. A member list includes all joins and leaves that the Redis server ran before it made the list. The edges of
later joins and leaves arrive after the list. A new subscriber receives every message that is published after its join.
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any

import msgspec

from push1st import logs
from push1st.brokers import (
    CACHE_TTL_SECONDS,
    REQUEST_SECONDS,
    CachedEvent,
    Joined,
    NodeFilters,
    NodeGroups,
    Occupancy,
    OnEvent,
    OnRequest,
    Receive,
    Recount,
    is_cached,
)
from push1st.brokers.history import ReplayRequest
from push1st.brokers.local_roster import LocalRoster
from push1st.brokers.redis.bounds import Timings
from push1st.brokers.redis.channel_lists import RedisLists
from push1st.brokers.redis.context import NodeContext
from push1st.brokers.redis.details import BrokerServers
from push1st.brokers.redis.entries import OwnFilters
from push1st.brokers.redis.groups import RedisGroups
from push1st.brokers.redis.interest import RedisFilters
from push1st.brokers.redis.logged import LogDedup
from push1st.brokers.redis.pages import RedisPages
from push1st.brokers.redis.sessions import RedisSessions
from push1st.brokers.redis.shard import Shard
from push1st.brokers.redis.sharded_history import ShardedHistory
from push1st.brokers.redis.sharded_logs import ShardedLogs
from push1st.brokers.redis.sharded_retained import ShardedRetained
from push1st.brokers.redis.shards import Shards
from push1st.brokers.redis.views import Views
from push1st.brokers.redis.wire import (
    COPY,
    EDGE,
    FILTER,
    GROUP,
    KEPT,
    MESSAGES,
    MQTT_MESSAGES,
    NODE,
    RELEASED,
    REPLY,
    REQUEST,
    TAKE_OVER,
    decode_copy,
    decode_edge,
    decode_kept,
    decode_messages,
    decode_mqtt_messages,
    decode_node,
    decode_reply,
    decode_request,
    split_kept,
)
from push1st.brokers.retained import Retain, Retained
from push1st.channels import kind_of
from push1st.config.brokerurl import parse
from push1st.config.history import HistorySection
from push1st.config.mqtt import Mqtt
from push1st.eager import run_eagerly
from push1st.errors import Refused
from push1st.messages import HookEvent, Member, Message, Published, watch_topic
from push1st.metrics import Metrics
from push1st.status import BrokerStatus

TIMINGS = Timings()
MQTT = Mqtt()
WATCHING = watch_topic("")

log = logs.get("push1st.broker")

SAMPLED = 16
"""the node measures the delay of one in this number of batches that it receives"""


class Redis:
    """Implements the ports `Broker`, `Roster`, `Users`, `Quotas` and `HookEvents`.

    url: the URL of the broker (`config/brokerurl.py`).
    stamp: a function that returns the id of a new message, and the wall clock's time in nanoseconds.
    node: the name of this node; each start of a worker makes a new name.
    local_roster: the local roster of this worker.
    hooked: a function that returns a mapping: app with hooks → the edges that these hooks receive, as letters (`scripts.py`).
    numbered: a function that is called with this node's number (below 1024); the node's message ids end in this number.
    timings: the durations of leases, waits and retries.
    mqtt: the settings of MQTT.
    """

    shared = True
    retained: Retained

    def __init__(
        self,
        url: str,
        stamp: Callable[[], tuple[int, int]],
        node: str,
        metrics: Metrics,
        local_roster: LocalRoster,
        hooked: Callable[[], Mapping[str, str]],
        numbered: Callable[[int], None],
        timings: Timings = TIMINGS,
        mqtt: Mqtt = MQTT,
    ) -> None:
        self._stamp = stamp
        self._views = Views()
        self._receive: Receive = lambda _: 0
        self._on_event: OnEvent = lambda _: None
        self._on_request: OnRequest = lambda *_: b""
        self._recount: Recount = lambda *_: None
        own = OwnFilters()
        context = NodeContext(
            node,
            stamp,
            hooked,
            lambda event: self._on_event(event),
            lambda app, channel: self._recount(app, channel),
            lambda message: self._receive(message),
            local_roster,
            own,
            self._views,
            metrics,
            mqtt,
            LogDedup(),
            timings,
        )
        self._shards = Shards(parse(url), context, self._on_push, numbered)
        self.peers = self._shards.peers
        self.servers = BrokerServers(self._shards.all)
        self._shard: Callable[[str, str], Shard] = self._shards.of
        filters = RedisFilters(own, [shard.interest for shard in self._shards.all])
        self.filters: NodeFilters = filters
        self.groups: NodeGroups = RedisGroups(self._shards, filters)
        self.pages = RedisPages(self._shards)
        self.channel_lists = RedisLists(self._shards)
        self.history = ShardedHistory(self._shards)
        self.logs = ShardedLogs(self._shards)
        self.sessions = RedisSessions(self._shards, context, self.logs)
        self.retained = ShardedRetained(self._shards, lambda: stamp()[1])
        self._lag = metrics.broker_lag
        self._pushed = 0
        self._unknown: set[int] = set()
        """the first bytes of data of unknown kinds that were logged"""

    # Broker

    async def open(self, receive: Receive, on_event: OnEvent, on_request: OnRequest, recount: Recount) -> None:
        self._receive, self._on_event, self._on_request, self._recount = receive, on_event, on_request, recount
        self._views.receive = receive
        await self._shards.open()

    async def close(self) -> None:
        await self._shards.close()

    def workers(self, nodes: Collection[str]) -> None:
        """Stores the supervisor's complete list of living nodes, and tries at once to connect to the server.

        Only a supervisor that runs the embedded engine (`process/engine.py`) sends this list: when a node starts or ends, and
        when the engine is ready. After a new connection, this node does not publish until the nodes in the list are subscribed to
        their topics. It does not wait for nodes that are not in the list.
        """
        self._shards.workers(nodes)

    async def settled(self) -> None:
        """Returns when the server has replied to all earlier commands of this node."""
        for reply in [run_eagerly(shard.connection.call("PING")) for shard in self._shards.all]:
            await reply

    async def state(self) -> BrokerStatus:
        """See `Shards.state`."""
        return await self._shards.state()

    def _on_push(self, index: int, data: bytes) -> None:
        """Handles the data of a message from a topic. `index` is the index of the topic's shard."""
        try:
            kind = data[0]
            if kind >= MESSAGES:
                received = (decode_messages if kind != MQTT_MESSAGES else decode_mqtt_messages)(data)
                self._pushed += 1
                if not self._pushed % SAMPLED:
                    self._measure(received)
                for message in received:
                    self._receive(message)
            elif kind == EDGE:
                edge = decode_edge(data)
                # Before version 7.2, Redis sends the edge of this node's own join before the reply to the join. This edge is
                # dropped if the channel has no view yet. The reply then contains all members, for the first client on this node.
                if edge.kind != "+" or self._views.members((edge.app, edge.channel)) is not None:
                    self._views.edge(edge, self._shards.all[index].roster.is_here(edge))
            elif kind == REQUEST:
                request = decode_request(data)
                self._shards.all[index].requests.reply(request, self._on_request(request.app, request.channel, request.request))
            elif kind == REPLY:
                self._shards.all[index].requests.replied(*decode_reply(data))
            elif kind == COPY:
                copies = decode_copy(data)
                if data[1] != KEPT or not self._shards.all[index].following.hold_copy(copies, self.filters.receive):
                    for message in copies:
                        self.filters.receive(message)
            elif kind == GROUP:
                self._shards.all[index].groups.arrived(data)
            elif kind == FILTER:
                self._shards.all[index].interest.receive(data)
            elif kind == TAKE_OVER:
                self.sessions.takeovers.requested(self._shards.all[index], data)
            elif kind == RELEASED:
                self.sessions.takeovers.released(data)
            elif kind == NODE:
                self._shards.all[index].lease.node_subscribed(decode_node(data))
            elif kind == KEPT:
                epoch, first, messages = split_kept(data)
                kept = decode_kept(messages, first, epoch)
                self._pushed += 1
                if not self._pushed % SAMPLED:
                    self._measure(kept)
                self._shards.all[index].following.receive(kept)
            elif kind not in self._unknown:
                self._unknown.add(kind)
                log.error("data of the broker is of an unknown kind", kind=kind, hint="install one version on all machines")
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError, IndexError) as exc:  # another version of push1st sent it
            log.error("data of the broker cannot be decoded", reason=str(exc))

    def _measure(self, messages: Sequence[Message]) -> None:
        """Measures the time from a publish to the arrival of its message. The clocks of two machines may differ."""
        self._lag.observe(max(0, self._stamp()[1] - messages[0].received) * 1e-9)

    async def subscribe(self, app: str, channel: str) -> None:
        await self._shard(app, channel).topics.subscribe(app, channel)

    async def unsubscribe(self, app: str, channel: str) -> None:
        if channel.startswith(WATCHING):
            self._views.unwatch(app, channel.removeprefix(WATCHING))
        self._shard(app, channel).topics.unsubscribe(app, channel)

    def publish(
        self, message: Message, section: HistorySection | None = None, key: str = "", retain: Retain | None = None
    ) -> Coroutine[Any, Any, Published]:
        """Queues a message at once; the returned coroutine waits until the broker has confirmed the message."""
        milliseconds = None
        if "cache-" in message.channel and is_cached(message):
            age = self._stamp()[1] - message.received
            milliseconds = max(0, CACHE_TTL_SECONDS * 1000 - age // 1_000_000)
        try:
            shard = self._shard(message.app, message.channel)
            if section is not None:
                shard.history.check()
            return _published(shard.publish(message, milliseconds, section, key, retain))
        except Refused as refused:
            return _refused(refused)

    async def cached(self, app: str, channel: str) -> CachedEvent | None:
        return await self._shard(app, channel).roster.cached(app, channel) if kind_of(channel).cache else None

    async def request(self, app: str, channel: str, request: bytes) -> Sequence[bytes]:
        return await self._shard(app, channel).requests.send(app, channel, request, REQUEST_SECONDS)

    # Roster

    async def join(
        self, app: str, channel: str, socket_id: str, member: Member | None, limit: int, request: ReplayRequest | None = None
    ) -> Joined:
        return await self._shard(app, channel).roster.join(app, channel, socket_id, member, limit, request)

    async def leave(self, app: str, channel: str, socket_id: str, user_id: str | None) -> None:
        self._shard(app, channel).roster.leave(app, channel, socket_id, user_id)

    async def channels(self, app: str, prefix: str = "") -> Sequence[Occupancy]:
        found: dict[str, int] = {}
        for shard in self._shards.all:
            found |= await shard.roster.channels(app, prefix)
        presence = [name for name in found if kind_of(name).presence]
        counts = await asyncio.gather(*(self._shard(app, name).roster.user_count(app, name) for name in presence))
        users = dict(zip(presence, counts, strict=True))
        return [Occupancy(name, count, users.get(name, 0)) for name, count in sorted(found.items())]

    async def channel(self, app: str, channel: str) -> Occupancy | None:
        roster = self._shard(app, channel).roster
        subscriptions = await roster.subscriptions(app, channel)
        if not subscriptions:
            return None
        users = await roster.user_count(app, channel) if kind_of(channel).presence else 0
        return Occupancy(channel, subscriptions, users)

    async def members(self, app: str, channel: str, *, local_view: bool = False) -> tuple[Member, ...]:
        view = self._views.members((app, channel)) if local_view else None
        return tuple((await self._shard(app, channel).roster.members(app, channel) if view is None else view).values())

    async def claim(self, app: str, channel: str, seconds: int) -> bool:
        return await self._shard(app, channel).roster.claim(app, channel, seconds)

    # Quotas

    async def connect(self, app: str, limit: int) -> bool:
        return await self._shard(app, "").roster.connect(app, limit)

    async def disconnect(self, app: str) -> None:
        self._shard(app, "").roster.disconnect(app)

    # Users

    async def sign_in(self, app: str, user_id: str, socket_id: str) -> None:
        await self._shard(app, watch_topic(user_id)).roster.sign_in(app, user_id, socket_id)

    async def sign_out(self, app: str, user_id: str, socket_id: str) -> None:
        self._shard(app, watch_topic(user_id)).roster.sign_out(app, user_id, socket_id)

    async def online(self, app: str, user_ids: Sequence[str]) -> frozenset[str]:
        shards: dict[Shard, list[str]] = {}
        for user_id in user_ids:
            shards.setdefault(self._shard(app, watch_topic(user_id)), []).append(user_id)
        online: dict[str, bool] = {}
        for shard, some in shards.items():
            online |= await shard.roster.online(app, some)
        # The views also contain the edges that arrived while this method waited for the shards' replies.
        return frozenset(user for user, first in online.items() if self._views.status(app, user, first))

    # Hook events

    def report(self, event: HookEvent) -> None:
        self._shard(event.app, event.channel).hook_events.report(event)


async def _published(future: "asyncio.Future[Published]") -> Published:
    return await future


async def _refused(refused: Refused) -> Published:
    raise refused
