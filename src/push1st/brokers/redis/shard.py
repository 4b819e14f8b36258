"""One shard: the keys of one hash slot, the connection to the server that holds it, and this node's own entries in it.

What this node knows of its own clients is the truth; what the broker has of it follows, command by command. So
whenever that may have come apart (a new connection, a lease that ran out, a server that came back empty) the node
reads its entries, and sends what is different. If only its lease or the state is lost, the node keeps its connection: it is
still subscribed to its topics, and misses no message.

An acknowledged event has to reach every living node. So on a new connection a node publishes only when all other living nodes
are subscribed to their topics on the same server (`nodes_not_here` in `lua/helpers.lua` counts those that are not), or after
`LEASE_SECONDS`. Leases show which nodes are alive. If the server lost the leases, a node uses the last list it received.

What clients wait for (subscribing, signing in) is held back for up to `PATIENCE_SECONDS` when the broker is away, since
most absences are short and clients do not ask twice; publishing is not (`publishing.py`).
"""

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from typing import Any, Literal

import hiredis

from push1st import __version__, logs
from push1st.brokers import Joined, Kept, Recount
from push1st.brokers.redis.entries import NOBODY, Difference, Entries, Key
from push1st.brokers.redis.events_consumer import Consumer, Ledger
from push1st.brokers.redis.joining import ADDED, REFUSED, JoinBatch, JoinBatcher, PendingJoin
from push1st.brokers.redis.resp import Argument, ConnectionLost, RespConnection, pack
from push1st.brokers.redis.logged import LogDedup
from push1st.brokers.redis.publishing import CONFIRM_SECONDS, Batch, PublishBatcher
from push1st.brokers.redis.requests import Requests
from push1st.brokers.redis.scripts import (
    CACHED,
    CONNECT,
    DEFER_LEAVE,
    EVICT_NODE,
    FLUSH_DEFERRED,
    HOLD,
    JOIN,
    LAST_OUT,
    LEAVE,
    MAX_HOOK_EVENTS,
    PUBLISH_CACHED,
    READ_IF_EPOCH,
    REGISTER,
    RENEW,
    SCHEMA,
    SIGN_IN,
    SIGN_OUT,
    Script,
)
from push1st.brokers.redis.servers import CONNECT_SECONDS, Unusable, connect
from push1st.brokers.redis.views import Views
from push1st.brokers.redis.wire import (
    Edge,
    Question,
    decode_message,
    encode_answer,
    encode_event,
    encode_question,
)
from push1st.channels import kind_of
from push1st.config.brokerurl import Address
from push1st.eager import spawn
from push1st.errors import LimitReached, Refused
from push1st.messages import HookEvent, Member, Message, watch_topic
from push1st.metrics import Metrics

LEASE_SECONDS = 10.0
"""from a node's last sign of life until the others may remove its entries"""
BEAT_SECONDS = 3.0
"""between two signs of life, and two looks for nodes that give none"""
RECOVERY_SECONDS = 10.0
"""for all nodes to announce their entries again after the broker lost them; who leaves meanwhile is told to have left then"""
LAST_SECONDS = 3
"""for the last node that stops to deliver the remaining events to hooks"""
PATIENCE_SECONDS = 5
"""for the broker to come back, before what clients wait for is refused"""
SILENT_SECONDS = 5
"""without an answer: then the connection is taken for dead"""
BACKOFF_SECONDS = 2
"""between two attempts to connect, at most"""
MAX_QUEUED_EVER = 64 << 20
"""bytes a slow broker may be behind before the connection is taken for dead: what leaves clients is not refused"""
BURIED = 500
"""entries of a dead node that are removed in one step, or told that were removed without a word"""
FIRST = b"m0"
"""where removing begins (`scripts.EVICT_NODE`)"""
MAX_UNREPORTED = 10_000
"""hook events that wait for the broker to come back; then the oldest are lost"""
TOPICS = 500
"""topics that are subscribed to by one command"""
STATE_LOST = "NOLEASE"
"""the error reply after which a node enters again, on the same connection"""
OTHER_SCHEMA = "SCHEMA"
"""the error reply to a node whose schema is not that of the keys; the schema of the keys follows"""
FAULTS = (STATE_LOST, "NOSCRIPT", "MOVED", "READONLY", "LOADING", "CLUSTERDOWN", "MASTERDOWN", "NOAUTH")
"""error replies after which a server has to be found, or entered, anew"""
MOVING = ("ASK", "TRYAGAIN")
"""error replies while a cluster moves the slot, key by key: its topics are still where they were"""
MOVING_SECONDS = 0.1
"""between two attempts meanwhile"""
AWAY_FOR_LONG = "the broker is away, try again"
HINTS = {
    "MISCONF": "the disk is full or not writable, see the log of the broker; or turn off saving, which push1st does not need",
    "OOM": "raise maxmemory",
}
"""what the administrator of the broker may do about its error replies"""
Gone = tuple[Literal["m", "c", "u"], str, str, str]
"""a member, channel or user that is here no more: app, channel, user"""

log = logs.get("push1st.broker")


class Shard:
    """tag: the hash tag of its keys. node: this node's name, another one after each start.

    stamp: the id and time of a message made here. hooked: the apps that have hooks → the edges that their hooks want
    (`scripts`). pushed: takes the messages of topics.
    """

    def __init__(
        self,
        address: Address,
        tag: str,
        node: str,
        stamp: Callable[[], tuple[int, int]],
        hooked: Callable[[], Mapping[str, str]],
        on_push: Callable[[bytes], None],
        on_event: Callable[[HookEvent], None],
        views: Views,
        metrics: Metrics,
    ) -> None:
        self.address = address
        self._tag = tag
        self._node = node
        self._stamp = stamp
        self._hooked = hooked
        self._pushed = on_push
        self._on_event = on_event
        self._views = views
        self._consumer: Consumer | None = None
        self._ledger = Ledger()
        self._term = 0
        """the term of the ledger (`BASE:term` in `scripts`)"""
        self._unreported: deque[HookEvent] = deque(maxlen=MAX_UNREPORTED)
        self._questions = Requests()
        self.reason = ""
        """why the broker could not be used the last time"""
        self.base = f"{address.prefix}:{{{tag}}}"
        self._sharded = address.how == "cluster"
        self._publish, self._subscribe, self._unsubscribe = (
            ("SPUBLISH", "SSUBSCRIBE", "SUNSUBSCRIBE") if self._sharded else ("PUBLISH", "SUBSCRIBE", "UNSUBSCRIBE")
        )
        self._connection: RespConnection | None = None
        """the connection to the server, before and after this node has entered on it"""
        self._subscribed: RespConnection | None = None
        """the connection on which all topics are subscribed to"""
        self.link: RespConnection | None = None
        """usable, and this node's entries are or will be told on it"""
        self.outlet: RespConnection | None = None
        """the connection for publishing; None until all other living nodes are subscribed on the same server"""
        self._opens_at = 0.0
        """when this node publishes even if other nodes are missing, on the loop's clock"""
        self._least = 0
        """`least` of `nodes_not_here` in `lua/helpers.lua`"""
        self._evicts_at = 0.0
        """when nodes without a lease may be removed, on the loop's clock"""
        self._evicting: set[str] = set()
        """the nodes whose entries this one is removing"""
        self._alive: set[str] = set()
        """the other living nodes, according to the server"""
        self._workers: set[str] | None = None
        """the other living nodes, according to the supervisor; None: it has sent no list"""
        self._task: asyncio.Task[None] | None = None
        self._in_doubt: asyncio.Event
        """set when the connection, the lease or the state is lost"""
        self._retry: asyncio.Event
        """set when the next attempt to connect should not wait any longer"""
        self._waiters: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._publishing = PublishBatcher(self._send_batch, metrics)
        self._joining = JoinBatcher(self._send_step)
        self.inbox = self.topic("", node)
        """where answers come"""
        self._topics = {self.inbox}
        self._entries = Entries()
        self._epoch = ""
        self._untold: dict[Gone, tuple[str, bytes]] = {}
        """who left and the broker may not have heard of it, with socket and info; it matters only if that has lost its state"""
        self._state_lost = False
        """whether it has, since this node was last in it"""
        self._unsure = False
        """whether something was not done that has to be"""
        self._closing = False
        self._recovered_at: float | None = None
        """when views are to be compared with the roster, on the loop's clock"""
        self._beat_at = 0.0
        self.recount: Recount = lambda *_: None
        self.logged = LogDedup()
        """what has been logged; the broker's shards share one"""
        self.numbered: Callable[[int], None] | None = None
        """called with this node's number; where it is set, this shard gives one"""
        self._number = random.randrange(1024)  # noqa: S311 - the first one to ask for
        self.away_since: float | None = None

    # The connection

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._in_doubt = asyncio.Event()
        self._retry = asyncio.Event()
        self.away_since = self._loop.time()
        self._task = self._loop.create_task(self._run())

    async def _run(self) -> None:
        failures = 0
        link: RespConnection | None = None
        while True:
            self._in_doubt.clear()
            try:
                if link is None or not link.alive:
                    link = None
                    link = await connect(self.address, self._tag, f"push1st-{self._node}", self._pushed, self._lost)
                    self._connection = link
                await self._enter(link)
            except asyncio.CancelledError:
                if link is not None:
                    link.abort()
                raise
            except (OSError, TimeoutError, Unusable, ConnectionLost, hiredis.ReplyError) as exc:
                if link is not None and not self._keeps(link, exc):
                    link.abort()
                silent = f"no answer within {CONNECT_SECONDS} s" if isinstance(exc, TimeoutError) else type(exc).__name__
                self.reason = str(exc) or silent
                if not failures and self._is_new(self.reason):
                    log.warning("the broker cannot be used", broker=str(self.address), reason=self.reason, **_hint(self.reason))
                failures += 1
                most = min(BACKOFF_SECONDS, 0.05 * 2 ** min(failures, 10))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(most * random.uniform(0.5, 1)):  # noqa: S311 - nodes retry at different times
                        await self._retry.wait()
                self._retry.clear()
                continue
            if (failures or self.away_since is not None) and self._is_new("connected"):
                log.info("the broker is connected", broker=str(self.address))
            failures = 0
            self.away_since = None
            await self._in_doubt.wait()

    def _keeps(self, link: RespConnection, exc: Exception) -> bool:
        """Whether to keep a connection on which this node cannot enter: the server still publishes and delivers on it."""
        return self.outlet is link and isinstance(exc, hiredis.ReplyError) and not str(exc).startswith(FAULTS)

    def workers(self, nodes: Collection[str]) -> None:
        """See `Redis.workers`."""
        self._workers = {*nodes} - {self._node}
        if self._task is not None:
            self._retry.set()

    def _lost(self) -> None:
        self._connection = self._subscribed = self.outlet = None
        self._doubt()
        if self.away_since is None and not self._closing:
            self.away_since = self._loop.time()
            if self._is_new("away"):
                log.warning("the broker is away", broker=str(self.address))

    def _is_new(self, words: str) -> bool:
        return self.logged.should_log(words, self._tag, self._loop.time())

    def _doubt(self) -> None:
        """Makes `_run` enter again."""
        self._in_doubt.set()
        self.link = None
        if self._consumer is not None:  # another node may become the consumer soon
            self._loop.create_task(self._consumer.stop())

    def _again(self, why: object) -> None:
        """The server has to be found or entered anew."""
        link = self._connection
        if link is None or (self.link is None and str(why).startswith(STATE_LOST)):
            return
        log.info("the broker is entered anew", reason=str(why))
        if str(why).startswith(STATE_LOST):
            self._doubt()
        else:
            link.abort()

    async def close(self) -> None:
        """Takes this node's entries off, and disconnects."""
        if self._task is None:
            return
        self._closing = True
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._stop_reading()
        link, self.link, self.outlet = self.link, None, None
        if link is None or not link.alive:
            if self._connection is not None:
                self._connection.abort()
            return
        try:
            async with asyncio.timeout(CONFIRM_SECONDS):
                if await link.call("GET", self._key("epoch")) != self._epoch.encode():
                    self._ledger.compared_at = 0
                await self._ledger.leave(link, self.base)
                await link.call("DEL", self._key("lease", self._node))
                at: bytes | None = FIRST
                while at is not None:
                    at, _ = await link.call(*self._bury(self._node, at))
            async with asyncio.timeout(LAST_SECONDS):
                await self._hand_on_the_last(link)
        except (TimeoutError, ConnectionLost, hiredis.ReplyError) as exc:
            log.info("this node's entries go with its lease", reason=str(exc))
        link.close()

    async def _hand_on_the_last(self, link: RespConnection) -> None:
        """Delivers the remaining events to hooks if no other node is alive to do it."""
        if self._hooked() and await link.call(*self._evalsha(LAST_OUT), self._node, _ms(LEASE_SECONDS)):
            while await link.call(*self._evalsha(FLUSH_DEFERRED), BURIED):
                continue
            await self._read(last=True).end()

    # Entering: making the broker's entries of this node what they are here

    async def _enter(self, link: RespConnection) -> None:
        new = f"{self._node}-{self._stamp()[0]}"
        wanted = self._number if self.numbered else -1
        others = sorted(self._alive if self._workers is None else self._workers)
        lease, recovery = _ms(LEASE_SECONDS), _ms(RECOVERY_SECONDS)
        self._least = max(1, _ms(LEASE_SECONDS - SILENT_SECONDS)) if self._epoch else 0
        arguments: tuple[Argument, ...] = (self._node, new, self._epoch, lease, recovery, wanted, self._least, SCHEMA, *others)
        try:
            epoch, recovering, number, missing, late = await link.call(*self._evalsha(REGISTER), *arguments)
        except hiredis.ReplyError as exc:
            word, _, found = str(exc).partition(" ")
            if word != OTHER_SCHEMA:
                raise
            raise Unusable(
                f"the keys {self.base}:* have schema {found}, and push1st {__version__} uses schema {SCHEMA}: install a version"
                f" of push1st that uses schema {found}, or set another prefix (?prefix=NAME) in `broker`"
            ) from None
        if self.numbered:
            self._number = number
            self.numbered(number)
        if self._epoch not in ("", epoch.decode()):
            self._state_lost = True
            await self._stop_reading()
            self._ledger.state_lost()
        if self._epoch:
            self._ledger.compared_at = self._loop.time() + RECOVERY_SECONDS
        self._epoch = epoch.decode()
        topics: list[str] = []
        if self._subscribed is not link:
            topics = [*sorted(self._topics - {self.inbox}), self.inbox]  # the inbox last: `is_subscribed` in `lua/helpers.lua`
            for at in range(0, len(topics), TOPICS):
                await link.topics(self._subscribe, [one.encode() for one in topics[at : at + TOPICS]])
        stored = await self._stored(link)
        # From here on nothing waits: what clients do next is told behind this. Who subscribes has waited for it.
        self.link = link
        now = self._loop.time()
        if self._subscribed is not link:
            self._subscribed = link
            self._opens_at = now + LEASE_SECONDS
            self._open(missing)
        if late:  # leases of other nodes may have expired for the same reason
            self._evicts_at = now + LEASE_SECONDS
        for topic in set(topics) - self._topics:
            link.topics(self._unsubscribe, [topic.encode()]).add_done_callback(_ignore)
        for difference in self._entries.differences(stored):
            self._mend(difference)
        self._tell_untold()
        while self._unreported:
            self.report(self._unreported.popleft())
        self._recovered_at = now + recovering / 1000 + 0.1 if recovering > 0 else now
        self._beat_at = now + BEAT_SECONDS
        self.beat(entered=True)
        while self._waiters:
            _, future = self._waiters.popleft()
            if not future.done():
                future.set_result(None)

    def _open(self, missing: int) -> None:
        """Allows publishing, unless other living nodes are missing: they would not receive the events."""
        if not missing or self._loop.time() >= self._opens_at:
            self.outlet = self.link

    def came(self, node: str) -> None:
        """Handles the message that another node has subscribed to its topics."""
        self._alive.add(node)
        if self.outlet is None:
            self.beat()

    async def _stored(self, link: RespConnection) -> dict[str, str]:
        """The broker's copy of this node's entries."""
        stored: dict[str, str] = {}
        cursor = b"0"
        while True:
            cursor, found = await link.call("HSCAN", self._key("n", self._node), cursor, "COUNT", 1000)
            stored |= dict(zip(*[iter(one.decode() for one in found)] * 2, strict=True))
            if cursor == b"0":
                return stored

    async def _mend_all(self, link: RespConnection) -> None:
        """Tells again what was refused. What changes meanwhile is told twice, which does nothing."""
        try:
            stored = await self._stored(link)
        except (ConnectionLost, hiredis.ReplyError) as exc:
            self._told(exc)
            return
        if self.link is link:
            for difference in self._entries.differences(stored):
                self._mend(difference)

    def _tell_untold(self) -> None:
        """A broker that still knows who is here was told who left, as a difference; one that lost its state hears of it so."""
        untold, self._untold = self._untold, {}
        if self._state_lost:
            self._state_lost = False
            for what in ("m", "c", "u"):
                for (kind, app, channel, user_id), (socket_id, info) in untold.items():
                    if kind == what:
                        hooked = self._wants_hook_events(app)
                        self._tell(DEFER_LEAVE, kind, app, channel, user_id, socket_id, *self._stamp(), hooked, info)

    def _mend(self, of: Difference) -> None:
        """Makes the broker's copy of an entry what it is here."""
        if of.what in ("more", "less"):
            self.recount(of.app, of.channel)
        match of.what:
            case "more":
                who = _coming(of.member, "", *self._stamp())
                self._tell(JOIN, *self._join((of.app, of.channel), announced=True), *who)
            case "less":
                self._tell(LEAVE, *self._leaving((of.app, of.channel), of.user_id, ""))
            case "signed in":
                self._tell(SIGN_IN, of.app, of.user_id, "", *self._stamp())
            case "signed out":
                self._tell(SIGN_OUT, of.app, of.user_id, "", *self._stamp())
            case "connections":
                self._tell(CONNECT, of.app, self._entries.connections(of.app), 0)

    def _compare_views(self, link: RespConnection) -> None:
        """Tells clients here what they missed of who came and went."""

        def members(key: tuple[str, str], reply: Any) -> None:
            if isinstance(reply, Exception):
                self._told(reply)
            else:
                members = _members(reply) | self._entries.members(key)  # another node may have removed this node's members
                self._views.compare(key, members, self._entries.alone(key), self._stamp)

        def online(key: tuple[str, str], reply: Any) -> None:
            if isinstance(reply, Exception):
                self._told(reply)
            else:
                self._views.compare_status(key, reply is not None or self._entries.is_signed_in(key), self._stamp)

        for key in self._views.of(self.owns):
            self._send(link, READ_IF_EPOCH, partial(members, key), self._epoch, self._key("m", "/".join(key)), "")
        for key in self._views.watched(self.owns):
            self._send(link, READ_IF_EPOCH, partial(online, key), self._epoch, self._key("u", key[0]), key[1])

    def owns(self, app: str, channel: str) -> bool:
        """Whether a channel's keys are in this shard; set by whoever divides them."""
        return True

    # Time

    def tick(self, now: float) -> None:
        """Deadlines, signs of life, and looks for who gives none. Several times a second."""
        self._publishing.tick(now)
        while self._waiters and self._waiters[0][0] <= now:  # nearly in the order of their deadlines
            _, future = self._waiters.popleft()
            if not future.done():
                future.set_exception(Refused(503, AWAY_FOR_LONG))
        link = self._connection
        if link is None:
            return
        if link.silent(now) > SILENT_SECONDS or link.queued > MAX_QUEUED_EVER:
            self._again("the server does not answer" if link.queued <= MAX_QUEUED_EVER else "the server is too slow")
            return
        if self.link is None:
            return
        if self._recovered_at is not None and self._recovered_at <= now:
            self._recovered_at = None
            self._compare_views(link)
        if self._beat_at <= now or self.outlet is None:
            self._beat_at = now + BEAT_SECONDS
            self.beat()

    def beat(self, *, entered: bool = False) -> None:
        """Sends a sign of life. entered: this is the first one since this node subscribed to its topics."""
        if self.link is not None:
            ledger = (self._term if self._ledger.there is not None else 0) if self._hooked() else -1
            least = "" if self.outlet is not None else self._least
            lease = _ms(LEASE_SECONDS)
            self._send(self.link, RENEW, self._beaten, self._node, lease, ledger, "1" if entered else "0", least)

    def _beaten(self, reply: Any) -> None:
        if isinstance(reply, Exception):
            self._told(reply)
            return
        epoch, recovering, term, dead, gone, missing, alive = reply
        if (epoch or b"").decode() != self._epoch:
            self._again(f"{STATE_LOST} the broker has lost its state")
            return
        if self.outlet is None:
            self._open(missing)
        alive = {node.decode() for node in alive}
        if recovering > 0:
            self._recovered_at = self._loop.time() + recovering / 1000 + 0.1
            alive |= self._alive  # some nodes have no new lease yet
        if self._alive - alive:
            self._ledger.checked_at = self._loop.time() + RECOVERY_SECONDS
        self._alive = alive
        if self._unsure and self.link is not None:
            self._unsure = False
            spawn(self._mend_all(self.link))
        if term <= 0:  # another node has been the consumer in the meantime
            self._ledger.forget()
        self._term = abs(term)
        if term and (self._consumer is None or self._consumer.ended):
            self._consumer = self._read()
        elif not term and self._consumer is not None and not self._consumer.ended:
            self._loop.create_task(self._consumer.stop())
        for name in dead if self._loop.time() >= self._evicts_at else ():
            node = name.decode()
            if node not in self._evicting:
                self._evicting.add(node)
                log.warning("a node is gone", node=node)
                self._remove(node, (FIRST, ()))
        self._settle(gone)

    def _read(self, last: bool = False) -> Consumer:
        apps = [app for app, edges in self._hooked().items() if "s" in edges]
        return Consumer(
            *(self.address, self._tag, self._node, self.base, self._evalsha, LEASE_SECONDS),
            self._ledger,
            apps,
            self._on_event,
            last=last,
        )

    async def _stop_reading(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.stop()

    def _remove(self, node: str, reply: Any) -> None:
        """Removes the entries of a node that is gone, some in each step."""
        if isinstance(reply, Exception):
            self._evicting.discard(node)
            self._told(reply)
            return
        at, fewer = reply
        for app, channel in zip(fewer[::2], fewer[1::2], strict=True):
            self.recount(app.decode(), channel.decode())
        if at is None or self.link is None:
            self._evicting.discard(node)
        else:
            self.link.send(pack(self._bury(node, at)), lambda reply: self._remove(node, reply))

    def _bury(self, node: str, at: bytes) -> tuple[Argument, ...]:
        hooked = "/".join(("", *map("\n".join, self._hooked().items()), ""))
        ids = [self._stamp()[0] for _ in range(BURIED)]
        return (*self._evalsha(EVICT_NODE), node, self._stamp()[1], hooked, at, *ids)

    def _settle(self, reply: Any) -> None:
        """Has told who left while nodes announced their entries again, some in each step."""
        if isinstance(reply, Exception):
            self._told(reply)
        elif reply and self.link is not None:
            self._send(self.link, FLUSH_DEFERRED, self._settle, BURIED)

    # Commands

    def _key(self, *parts: str) -> str:
        return ":".join((self.base, *parts))

    def topic(self, app: str, channel: str) -> str:
        return f"{self.base}:t:{app}/{channel}"

    def _evalsha(self, script: Script) -> tuple[Argument, ...]:
        return "EVALSHA", script.sharded_digest if self._sharded else script.digest, 1, self.base

    def _send(self, link: RespConnection, script: Script, answer: Callable[[Any], None], *args: Argument) -> None:
        link.send(pack((*self._evalsha(script), *args)), answer)

    def _tell(self, script: Script, *args: Argument) -> None:
        """A change nobody waits for. While the broker is away it is not told: entering tells what is different."""
        if self.link is not None:
            self._send(self.link, script, self._told, self._node, *args)

    def _tell_gone(self, gone: dict[Gone, tuple[str, bytes]], script: Script, *args: Argument) -> None:
        """Tells that somebody left; kept as long as the broker may not have heard of it."""

        def told(reply: Any) -> None:
            if isinstance(reply, ConnectionLost) or (isinstance(reply, hiredis.ReplyError) and str(reply).startswith(FAULTS)):
                self._untold |= gone
            self._told(reply)

        if self.link is None:
            self._untold |= gone
        else:
            self._send(self.link, script, told, self._node, *args)

    def _told(self, reply: Any) -> None:
        if isinstance(reply, hiredis.ReplyError):
            if str(reply).startswith(FAULTS):
                self._again(reply)
            elif str(reply).startswith(MOVING):
                self._unsure = True
            elif not self._unsure:  # such as one that is out of memory: trying again at once would not help
                self._unsure = True
                log.error("the broker refused", reason=str(reply), **_hint(str(reply)))

    async def usable(self) -> RespConnection:
        """The link, once there is one. Raises Refused(503)."""
        deadline = self._loop.time() + PATIENCE_SECONDS
        while self.link is None:
            future: asyncio.Future[None] = self._loop.create_future()
            self._waiters.append((deadline, future))
            await future
        return self.link

    async def call(self, *command: Argument, ordered: bool = False) -> Any:
        """The reply to a command that may be done twice. Raises Refused(503)."""
        return await self._until_done(lambda link: link.call(*command, ordered=ordered))

    async def _until_done(self, ask: Callable[[RespConnection], Awaitable[Any]]) -> Any:
        """What `ask` brings, on one link after another if need be. Raises Refused(503)."""
        deadline = self._loop.time() + PATIENCE_SECONDS
        while True:
            link = await self.usable()
            try:
                return await ask(link)
            except ConnectionLost:
                refused = Refused(503, AWAY_FOR_LONG)
            except hiredis.ReplyError as reply:
                refused = Refused(503, f"the broker refused: {reply}")
                if str(reply).startswith(MOVING):
                    await asyncio.sleep(MOVING_SECONDS)
                elif str(reply).startswith(FAULTS):
                    self._again(reply)
                else:
                    raise refused from None
            if self._loop.time() > deadline:
                raise refused

    # Messages

    async def subscribe(self, app: str, channel: str) -> None:
        topic = self.topic(app, channel)
        self._topics.add(topic)
        await self._until_done(lambda link: link.topics(self._subscribe, [topic.encode()]))

    def unsubscribe(self, app: str, channel: str) -> None:
        topic = self.topic(app, channel)
        if topic in self._topics:
            self._topics.discard(topic)
            if self._connection is not None:
                self._connection.topics(self._unsubscribe, [topic.encode()]).add_done_callback(_ignore)

    def publish(self, message: Message, milliseconds: int | None = None) -> "asyncio.Future[int]":
        """See `PublishBatcher`."""
        return self._publishing.publish(self.outlet, message, milliseconds)

    def _send_batch(self, link: RespConnection, batch: Batch, data: bytes, kept: bytes | None) -> None:
        app, channel = batch.app, batch.channel
        if kept is None:
            link.send(pack((self._publish, self.topic(app, channel), data)), batch.published)
            link.send(pack(("HGET", self._key("i", app), channel)), batch.counted)
        else:
            self._send(link, PUBLISH_CACHED, batch.counted, app, channel, data, kept, batch.milliseconds)

    # Questions

    async def ask(self, app: str, channel: str, question: bytes, seconds: float) -> list[bytes]:
        """What the nodes answer that are subscribed to a topic, as far as they do in time. Raises Refused(503)."""
        number = self._questions.next()
        data = encode_question(Question(self.inbox, number, app, channel, question))

        def asked(link: RespConnection) -> Awaitable[int]:
            if self.outlet is not link:  # not all could hear it: one that has the answer might seem not to be there
                raise Refused(503, AWAY_FOR_LONG)
            return link.call(self._publish, self.topic(app, channel), data)

        return await self._questions.answers(number, self._until_done(asked), seconds)

    def answer(self, question: Question, answer: bytes) -> None:
        """Answers what another node asks, or this one."""
        if self._connection is not None:
            data = encode_answer(question.number, answer)
            self._connection.send(pack((self._publish, question.inbox, data)), self._told)

    def answered(self, number: int, answer: bytes) -> None:
        self._questions.answered(number, answer)

    # Hook events

    def report(self, event: HookEvent) -> None:
        """While the broker is away the last hook events are kept."""
        if self.link is None:
            self._unreported.append(event)
        elif event.phase == "held":
            kind, user_id = ("c", "") if event.user_id is None else ("m", event.user_id)
            what = kind, event.app, event.channel, user_id, event.socket_id, event.at, event.user_info
            self._send(self.link, HOLD, self._told, self._node, *what)
        else:
            command = ("XADD", self._key("facts"), "MAXLEN", "~", MAX_HOOK_EVENTS, "*", "fact", encode_event(event))
            self.link.send(pack(command), self._told)

    # The roster

    async def join(self, app: str, channel: str, socket_id: str, member: Member | None, most: int) -> Joined:
        """Raises LimitReached, Refused(503)."""
        kind = kind_of(channel)
        want = "k" if kind.cache else ""
        key = app, channel
        if self._entries.join(key, socket_id, member) and kind.presence:
            want += "m"  # the next ones find them in the view that this one begins
        try:

            async def attempt(link: RespConnection) -> tuple[JoinBatch, PendingJoin]:
                step, coming = self._joining.join(link, key, member, socket_id, self._stamp(), most, want)
                await coming.done
                return step, coming

            step, coming = await self._until_done(attempt)
            if kind.presence:
                self._see(step)
            if coming.way == REFUSED:
                raise LimitReached(403, f"{channel} has {most} members, which is this app's limit")
            self._entries.joined(key, None if member is None else member.user_id)
        except BaseException:
            self.leave(app, channel, socket_id, None if member is None else member.user_id)
            raise
        kept = _kept(step.kept, step.left)
        if not kind.presence:
            return Joined(None, kept)
        if step.everyone is None:  # the first one here was refused
            self._views.begin(key, await self.members(app, channel))
            step.everyone = tuple((self._views.members(key) or {}).values())
        return Joined(step.everyone, kept)

    def _see(self, step: JoinBatch) -> None:
        """Tells those who are on a channel here of those who join it, and the latter who is there.

        Not when the answer comes, but when the first of them goes on: those of an earlier step are on the channel then, and
        none of these is. What the topic brings of them is no news any more.
        """
        if step.seen:
            return
        step.seen = True
        key, follows = step.key, self._views.members(step.key) is not None
        for one in step.coming:
            if one.member is not None and (one.way == ADDED or (follows and one.way != REFUSED)):
                self._views.edge(
                    Edge("+", *key, one.member.user_id, one.socket_id, one.id, one.received, one.member.info), here=True
                )
        if step.found is not None:
            self._views.begin(key, _members(step.found))
        view = self._views.members(key)
        if view is not None:
            step.everyone = tuple(view.values())

    def _send_step(self, step: JoinBatch) -> None:
        if not step.link.alive:
            step.answered(ConnectionLost("the connection to the broker is lost"))
            return
        command = [*self._evalsha(JOIN), self._node, *self._join(step.key, step.most, step.want)]
        for one in step.coming:
            command += _coming(one.member, one.socket_id, one.id, one.received)
        step.link.send_ordered(pack(tuple(command)), step.answered)

    def _join(self, key: Key, most: int = 0, want: str = "", *, announced: bool = False) -> tuple[Argument, ...]:
        return *key, self._entries.subscriptions(key), most, want, self._wants_hook_events(key[0]), "1" if announced else "0"

    def has(self, app: str, channel: str, user_id: str) -> bool:
        """Whether a member is on a channel by a connection of this node."""
        return self._entries.has((app, channel), user_id)

    def is_here(self, edge: Edge) -> bool:
        """Whether this node has a connection of the edge's member, or of its signed-in user."""
        if edge.kind in ("+", "-"):
            return self.has(edge.app, edge.channel, edge.user_id)
        return self._entries.is_signed_in((edge.app, edge.user_id))

    def leave(self, app: str, channel: str, socket_id: str, user_id: str | None) -> None:
        key = app, channel
        self._joining.send(key)
        occupied, seated = self._entries.has(key), self._entries.has(key, user_id)
        gone = self._entries.leave(key, socket_id, user_id)
        if gone is None:
            return
        self._publishing.send(key)
        untold: dict[Gone, tuple[str, bytes]] = {}
        if gone is not NOBODY and seated:
            untold["m", app, channel, gone.user_id] = socket_id, gone.info
        if not self._entries.subscriptions(key):
            self._views.end(key)
            if app in self._hooked() and occupied:
                untold["c", app, channel, ""] = socket_id, b"null"
        self._tell_gone(untold, LEAVE, *self._leaving(key, gone.user_id, socket_id))

    def _leaving(self, key: Key, user_id: str, socket_id: str) -> tuple[Argument, ...]:
        return *key, self._entries.subscriptions(key), user_id, socket_id, *self._stamp(), self._wants_hook_events(key[0])

    def _wants_hook_events(self, app: str) -> str:
        return self._hooked().get(app, "")

    async def subscriptions(self, app: str, channel: str) -> int:
        return int(await self.call("HGET", self._key("i", app), channel) or 0)

    async def users_on(self, app: str, channel: str) -> int:
        return int(await self.call("HLEN", self._key("m", f"{app}/{channel}")))

    async def members(self, app: str, channel: str) -> dict[str, Member]:
        """Members by their ids."""
        return _members(await self.call("HGETALL", self._key("m", f"{app}/{channel}"), ordered=True))

    async def channels(self, app: str, prefix: str) -> dict[str, int]:
        """Subscriptions by channel."""
        pattern = "".join(f"\\{char}" if char in "*?[]\\^-" else char for char in prefix) + "*"
        found: dict[str, int] = {}
        cursor = "0"
        while True:
            more, pairs = await self.call("HSCAN", self._key("i", app), cursor, "MATCH", pattern, "COUNT", 1000)
            found |= {name.decode(): int(count) for name, count in zip(pairs[::2], pairs[1::2], strict=True)}
            cursor = more.decode()
            if cursor == "0":
                return found

    async def kept(self, app: str, channel: str) -> Kept | None:
        """A cache channel's event."""
        return _kept(*await self.call(*self._evalsha(CACHED), self._key("k", f"{app}/{channel}")))

    async def claim(self, app: str, channel: str, seconds: int) -> bool:
        return await self.call("SET", self._key("claim", f"{app}/{channel}"), self._node, "NX", "EX", seconds) is not None

    # Users

    async def sign_in(self, app: str, user_id: str, socket_id: str) -> None:
        self._entries.sign_in((app, user_id), socket_id)
        try:
            await self.call(*self._evalsha(SIGN_IN), self._node, app, user_id, socket_id, *self._stamp(), ordered=True)
            self._entries.signed_in((app, user_id))
        except BaseException:
            self.sign_out(app, user_id, socket_id)
            raise

    def sign_out(self, app: str, user_id: str, socket_id: str) -> None:
        if self._entries.sign_out((app, user_id), socket_id):
            self._tell_gone({("u", app, "", user_id): (socket_id, b"")}, SIGN_OUT, app, user_id, socket_id, *self._stamp())

    async def online(self, app: str, user_ids: list[str]) -> dict[str, bool]:
        """Whether users are online; those whose topics are subscribed to here are followed from here on."""
        found = await self.call("HMGET", self._key("u", app), *user_ids, ordered=True)
        online = {user: count is not None for user, count in zip(user_ids, found, strict=True)}
        for user, is_online in online.items():
            if self.topic(app, watch_topic(user)) in self._topics:
                self._views.watch(app, user, is_online)
        return online

    # Connections of apps

    async def connect(self, app: str, most: int) -> bool:
        """Counts a connection, unless the app has as many as it may. With the broker away for long it is let be."""

        async def ask(link: RespConnection) -> bool:
            self._entries.connect(app)
            try:
                reply = await link.call(*self._evalsha(CONNECT), self._node, app, self._entries.connections(app), most)
            except BaseException:
                self._entries.disconnect(app)  # not here as long as nobody has agreed: entering must not tell of it
                raise
            return bool(reply)

        try:
            admitted: bool = await self._until_done(ask)
        except Refused:
            self._entries.connect(app)
            self._unsure = True
            return True
        if not admitted:
            self.disconnect(app)
        return admitted

    def disconnect(self, app: str) -> None:
        self._entries.disconnect(app)
        self._tell(CONNECT, app, self._entries.connections(app), 0)


def _members(found: dict[bytes, bytes] | list[bytes]) -> dict[str, Member]:
    """Members by their ids, of what a presence channel's key has: `NODES:INFO` by user. Scripts give it as a flat list."""
    pairs = found.items() if isinstance(found, dict) else zip(found[::2], found[1::2], strict=True)
    return {(id := user.decode()): Member(id, held.partition(b":")[2]) for user, held in pairs}


def _coming(member: Member | None, socket_id: str, id: int, received: int) -> tuple[Argument, ...]:
    """Of one that joins, for the script."""
    user_id, info = ("", b"") if member is None else (member.user_id, member.info)
    return user_id, info, socket_id, id, received


def _kept(message: bytes | None, left: int) -> Kept | None:
    """left: milliseconds that it is still kept."""
    return None if message is None or left <= 0 else Kept(decode_message(message), left // 1000)


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


def _hint(reason: str) -> dict[str, str]:
    """Returns the hint for an error reply, as a field of the log."""
    hint = HINTS.get(reason.partition(" ")[0])
    return {} if hint is None else {"hint": hint}


def _ignore(future: "asyncio.Future[None]") -> None:
    future.exception()
