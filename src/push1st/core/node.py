"""One worker's brain: it runs the effects of sessions and API calls on the hub, the roster and the broker.

Its order of steps is what keeps the promises of the fan-out (invariants 1 and 2): what is read from shared state
is changed without an `await` between, a channel's pending frames are settled before its subscribers change, and what
became void during a wait is taken back.
"""

from asyncio import sleep
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

import msgspec

from push1st.apps import Apps
from push1st.brokers import Broker, HookEvents, Joined, Kept, Occupancy, Quotas, Roster, Users
from push1st.channels import kind_of
from push1st.config.model import AppConfig
from push1st.core.fanout import Clock, Fanout
from push1st.core.held import Held
from push1st.core.hub import Lane, Subscriber, Tenant
from push1st.eager import MaybeAwaitable, Suspended, begin, spawn, wait
from push1st.errors import Disconnect, LimitReached, Refused
from push1st.hooks import Hooks
from push1st.hooks.authorize import asks
from push1st.hooks.formats import kinds
from push1st.limits import Bucket
from push1st.messages import (
    API,
    DEFAULT_OPTIONS,
    TERMINATE,
    TOLD,
    CacheMissed,
    HookEvent,
    HookEventKind,
    Member,
    Message,
    Options,
    Publish,
    Replayed,
    User,
    Watched,
    session_topic,
    subscription_count,
    watch_topic,
)
from push1st.metrics import Metrics
from push1st.refusals import Refusals

WORKER_BITS = 10
MANY = 100
COUNT_SECONDS = 5
"""a channel with more than `MANY` subscribers gets a count every `COUNT_SECONDS`, others every second (protocol, section 3)"""
MAX_COUNTED = 1000
"""deliveries of subscription counts in one second, after which `tick` sends further counts; and those of `tick` in a loop turn"""
MAX_TTL = 1 << 53
"""seconds; a longer time to live counts as this one, because brokers store 64 bits"""
SESSIONS = b"sessions"
"""the question who is on a channel"""
REACH = b"reach"
"""the question how many a message goes to, which follows it"""


class Client(Subscriber, Protocol):
    """What the node needs of a session."""

    @property
    def prefix(self) -> str: ...
    @property
    def ip(self) -> str: ...
    @property
    def closed(self) -> bool: ...

    def disconnect(self, code: int, reason: str) -> None: ...


class SessionInfo(msgspec.Struct, frozen=True, array_like=True):
    """A connection on a channel, on whichever worker."""

    id: str
    ip: str


_listed = msgspec.msgpack.Decoder(list[SessionInfo])
_message = msgspec.msgpack.Decoder(Message)


class Listener(msgspec.Struct, frozen=True):
    """What this worker does on a topic of its own: answers a question, hears what is told."""

    answer: Callable[[bytes], bytes]
    hear: Callable[[bytes], None]


class SessionState(msgspec.Struct, frozen=True):
    """What a connection had when it ended. topics: of its user, which are no subscriptions of its own."""

    lanes: dict[str, Lane]
    members: dict[str, Member]
    topics: dict[str, Lane]
    user: User | None


class Siblings(Protocol):
    """The other workers of this machine. number: this one's among them."""

    number: int

    async def metrics(self) -> Sequence[tuple[int, bytes]]:
        """What those that answer in time have counted: their numbers, and `api.server.snapshot`s."""

    async def hooks(self, app: str) -> Sequence[bytes]:
        """How the app's hooks do there: `api.hooks.states`."""


class App:
    """An app on this worker: its configuration, and what the worker knows of it.

    reported: the hook events its hooks want. asks: what its backend has a say in, each with whether it is about a channel.
    """

    __slots__ = ("asks", "config", "held", "publishes", "reads", "reported", "tenant", "uncounted")

    def __init__(self, config: AppConfig, now: float) -> None:
        self.config = config
        self.tenant = Tenant()
        self.held: Held | None = None
        """events for clients that have just signed in; None while there are no such clients"""
        self.uncounted: set[Client] = set()
        """connections of which the broker has not said yet whether the app may have them, or that it may not"""
        self.publishes = Bucket(config.limits.publishes, now)
        self.reads = Bucket(config.limits.reads, now)
        self.reported = kinds(config)
        self.asks = asks(config)


class Node:
    """worker: this worker's number among all, below 1024. random: an unpredictable number of so many bits."""

    def __init__(
        self, apps: Apps, fanout: Fanout, metrics: Metrics, clock: Clock, random: Callable[[int], int], worker: int = 0
    ) -> None:
        self.apps = apps
        self.fanout = fanout
        self.metrics = metrics
        self.refusals = Refusals()
        self.clock = clock
        self.draining = False
        """whether clients are sent away"""
        self.replaced = False
        """whether another worker has taken over this one's listeners, so that only those still here will leave"""
        self.siblings: Siblings | None = None
        self._random = random
        self.worker = worker
        self._last_id = 0
        self._live: dict[str, App] = {}
        self._wanted: Counter[tuple[str, str]] = Counter()
        """topics that joining clients need, before the hub knows them"""
        self._listeners: dict[tuple[str, str], Listener] = {}
        self._uncounted: dict[tuple[str, str], App] = {}
        self._counting = False
        self._counted: set[tuple[str, str]] = set()
        """channels whose subscribers have received a count since the last tick"""
        self._deliveries = 0
        """deliveries of these counts"""
        self._broker: Broker
        self._roster: Roster
        self._users: Users
        self._quotas: Quotas
        self._hook_events: HookEvents
        self.hooks: Hooks

    async def open(
        self, broker: Broker, roster: Roster, users: Users, quotas: Quotas, hook_events: HookEvents, hooks: Hooks
    ) -> None:
        """Connects the broker; before this nothing may be published or subscribed to."""
        self._broker, self._roster, self._users, self._quotas, self._hook_events = broker, roster, users, quotas, hook_events
        self.hooks = hooks
        await broker.open(self.receive, hooks.on_event, self._answer, self._recount)

    async def close(self) -> None:
        await self._broker.close()

    # Apps and connections

    def app(self, config: AppConfig) -> App:
        app = self._live.get(config.id)
        if app is None:
            app = self._live[config.id] = App(config, self.clock.monotonic())
        return app

    def live(self) -> Sequence[App]:
        """The apps that have been used since the start."""
        return tuple(self._live.values())

    def new_id(self, prefix: str = "") -> str:
        """A connection id: `NUMBER.NUMBER`, behind the prefix if there is one (Push1st API, section 7)."""
        bits = self._random(64)
        number = f"{bits >> 32}.{bits & 0xFFFFFFFF}"
        return f"{prefix}.{number}" if prefix else number

    def connect(self, app: App, client: Client) -> Suspended[bool] | None:
        """Raises Disconnect(4004) when the app has all the connections it may have.

        With a broker that has to be asked, what `admit` waits for.
        """
        most = app.config.limits.connections
        asked = None
        if most:
            admitted = begin(self._quotas.connect(app.config.id, most))
            if isinstance(admitted, Suspended):
                asked = admitted
                app.uncounted.add(client)
            elif not admitted:
                raise _over_quota(most)
        app.tenant.connect(client, client.prefix)
        return asked

    async def admit(self, app: App, client: Client, asked: Suspended[bool]) -> None:
        """Waits until it is known whether a connection may be. Raises Disconnect(4004)."""
        if not await asked:
            raise _over_quota(app.config.limits.connections)
        if client.closed:  # it has ended before it was counted
            await self._quotas.disconnect(app.config.id)
        app.uncounted.discard(client)

    async def disconnect(self, app: App, client: Client, left: SessionState) -> None:
        """A connection has ended: it leaves its channels. The others' pending frames are not touched by that."""
        tenant, id = app.tenant, app.config.id
        self.fanout.forget(client, (*left.lanes.values(), *left.topics.values()))
        tenant.disconnect(client, client.prefix)
        held = "" if app.held is None else app.held.drop(client)
        for name in (*left.lanes, *left.topics):
            tenant.unsubscribe(client, name)
        if client in app.uncounted:
            app.uncounted.discard(client)
        elif app.config.limits.connections:
            await self._quotas.disconnect(id)
        for name in left.lanes:
            await self._leave(app, client, name, left.members.get(name))
        if left.user is not None:
            with suppress(Refused):
                await self._users.sign_out(id, left.user.id, client.id)
        for name in left.topics:
            await self._release(app, name)
        if held:
            await self._end_hold(app, held)

    def sessions(self, app: App, channel: str) -> list[Client]:
        """The connections subscribed to a channel, on this worker."""
        found = app.tenant.channels.get(channel)
        return [] if found is None else list(found.subscribers())  # type: ignore[arg-type]  # every subscriber is a Client

    # Channels

    async def listed(self, app: App, channel: str) -> list[SessionInfo]:
        """The connections subscribed to a channel, on all workers that answer in time."""
        answers = await self._broker.ask(app.config.id, channel, SESSIONS)
        return [one for answer in answers for one in _listed.decode(answer)]

    def _answer(self, app: str, channel: str, question: bytes) -> bytes:
        """What another worker asks."""
        live = self._live.get(app)
        listener = self._listeners.get((app, channel))
        if listener is not None:
            return listener.answer(question)
        if question.startswith(REACH):
            return b"0" if live is None else b"%d" % live.tenant.reach(_message.decode(question[len(REACH) :]))
        if question != SESSIONS:  # the listener that the question is for has ended
            return b""
        found = [] if live is None else self.sessions(live, channel)
        return msgspec.msgpack.encode([SessionInfo(client.id, client.ip) for client in found])

    async def subscribe(self, app: App, client: Client, name: str, member: Member | None) -> tuple[Lane, Joined]:
        """Puts a client on a channel: its lane, and what was true when it joined. Raises LimitReached."""
        id = app.config.id
        key = id, name
        self._wanted[key] += 1
        try:
            if not self._listens(app, name):
                await self._broker.subscribe(id, name)
            joined = await self._roster.join(id, name, client.id, member, app.config.limits.members)
            if client.closed:
                await self._roster.leave(id, name, client.id, _user_id(member))
                raise LimitReached(403, "the connection is closed")
            lane = self._join(app, client, name)
            if "joined" in app.reported:
                self.report(app, "joined", name, client.id, member)
            return lane, joined
        finally:
            self._want_less(key)
            await self._release(app, name)

    def replay(self, app: App, client: Client, name: str, kept: Kept | None) -> Replayed | CacheMissed:
        """What a new subscriber of a cache channel is told right after it was told that it is one."""
        if kept is not None:
            return Replayed(kept.message, self.clock.wall())
        if "cache-missed" in app.reported:
            self.report(app, "cache-missed", name, client.id)
        return CacheMissed(name)

    async def unsubscribe(self, app: App, client: Client, name: str, member: Member | None, lanes: dict[str, Lane]) -> None:
        """Takes a client off a channel, and the lane off the client's, once it has got what was due to it."""
        channel = app.tenant.channels.get(name)
        if channel is not None:
            self.fanout.settle_lanes(channel.lanes)
        self.fanout.settle(client)
        lanes.pop(name, None)
        app.tenant.unsubscribe(client, name)
        await self._leave(app, client, name, member)

    async def _leave(self, app: App, client: Client, name: str, member: Member | None) -> None:
        """What is left to do outside of the hub. With the broker away it stays undone there, and nothing else does."""
        if "left" in app.reported:
            self.report(app, "left", name, client.id, member)
        with suppress(Refused):
            await self._roster.leave(app.config.id, name, client.id, _user_id(member))
        await self._release(app, name)
        if app.config.subscription_count:
            await self.count(app, name)

    def _join(self, app: App, client: Client, name: str) -> Lane:
        channel = app.tenant.channels.get(name)
        if channel is not None:
            self.fanout.settle_lanes(channel.lanes)
        return app.tenant.subscribe(client, name)

    def _want_less(self, key: tuple[str, str]) -> None:
        self._wanted[key] -= 1
        if not self._wanted[key]:
            del self._wanted[key]

    def _listens(self, app: App, name: str) -> bool:
        """Whether this worker is subscribed to a topic for its clients."""
        return name in app.tenant.channels or (app.held is not None and name in app.held)

    async def _release(self, app: App, name: str) -> None:
        """Ends the worker's subscription to a topic, if nobody here needs it any more."""
        if not self._listens(app, name) and (app.config.id, name) not in self._wanted:
            with suppress(Refused):  # what still comes reaches nobody
                await self._broker.unsubscribe(app.config.id, name)

    async def count(self, app: App, name: str) -> None:
        """Sends the number of subscribers to a channel's subscribers, if the app opted in (Pusher protocol, section 3).

        The first change is sent at once. `tick` combines later changes into one count, so many clients that subscribe and
        unsubscribe cost no more than one. A channel with more than `MANY` subscribers gets one count in `COUNT_SECONDS`.
        """
        if name.startswith("#") or kind_of(name).presence:
            return
        key = app.config.id, name
        if key in self._counted or self._deliveries >= MAX_COUNTED:
            self._uncounted[key] = app
        else:
            self._deliveries += await self._count(app, key)

    def _recount(self, id: str, name: str) -> None:
        """Has `tick` tell a channel's subscribers how many they are."""
        config = self.apps.by_id(id)
        if config is not None and config.subscription_count and not name.startswith("#"):
            self._uncounted[id, name] = self.app(config)

    async def _count(self, app: App, key: tuple[str, str]) -> int:
        """Sends a channel's count, or leaves that to `tick`; returns the number of subscribers that receive the count."""
        self._counted.add(key)
        try:
            occupancy = await self._roster.channel(*key)
            if occupancy is not None and occupancy.subscriptions > MANY:
                if not await self._roster.claim(*key, COUNT_SECONDS):
                    self._uncounted[key] = app
                    return 0
                occupancy = await self._roster.channel(*key)
            self._uncounted.pop(key, None)
            if occupancy is None:
                return 0
            told = occupancy.subscriptions
            await wait(self._broker.publish(subscription_count(*key, told, *self.stamp())))
            if "counted" in app.reported:
                self._hook_events.report(HookEvent("counted", *key, self.clock.wall(), count=told))
            occupancy = await self._roster.channel(*key)
            if occupancy is not None and occupancy.subscriptions != told:  # another worker may have sent a newer number first
                self._uncounted[key] = app
            return told
        except Refused:
            self._uncounted[key] = app
            return 0

    async def tick(self) -> None:
        """Sends the subscription counts that are due, and frames that were held too long. Called once a second.

        If the broker is slow, no second round begins before the first has ended.
        """
        now = self.clock.monotonic()
        for app in self._live.values():
            held = app.held
            if held is not None:
                for client in held.due(now):
                    spawn(self._end_hold(app, held.deliver(client)))
        if self._counting:
            return
        self._counting = True
        try:
            self._counted.clear()
            self._deliveries = told = 0
            for key, app in list(self._uncounted.items()):
                told += 1 + await self._count(app, key)
                if told >= MAX_COUNTED:  # other work of the loop comes first
                    told = 0
                    await sleep(0)
        finally:
            self._counting = False

    # Hook events

    def report(
        self,
        app: App,
        kind: HookEventKind,
        channel: str,
        socket_id: str = "",
        member: Member | None = None,
    ) -> None:
        """Tells the hooks of what happened; for kinds that are in `app.reported`, and channels that are no user's own."""
        if not channel.startswith("#"):
            user_id, info = (None, b"null") if member is None else (member.user_id, member.info)
            self._hook_events.report(HookEvent(kind, app.config.id, channel, self.clock.wall(), socket_id, user_id, info))

    def report_event(
        self, app: App, event: Publish, data: bytes, stamp: tuple[int, int], socket_id: str, member: Member | None
    ) -> None:
        """Reports a client's event to the hooks, as `report` does.

        data: the published data, which may differ from the event's. stamp: of the message.
        """
        if event.channel.startswith("#"):
            return
        id, now = stamp
        user_id, info = (None, b"null") if member is None else (member.user_id, member.info)
        expires = now // 1_000_000_000 + int(min(event.ttl, MAX_TTL)) if event.ttl else 0
        self._hook_events.report(
            HookEvent(
                "client-event",
                app.config.id,
                event.channel,
                now,
                socket_id,
                user_id,
                info,
                event.event,
                data,
                id=id,
                delivery=event.delivery,
                expires=expires,
                given=event.given,
            )
        )

    # Users

    async def sign_in(self, app: App, client: Client, user: User, held: str = "") -> tuple[dict[str, Lane], Watched]:
        """Signs a client in as a user; returns its topics, and which users of its watchlist are online.

        held: a channel to which the client will subscribe; its events are held until then.
        """
        id = app.config.id
        topics = (session_topic(user.id), *map(watch_topic, user.watchlist))
        wanted = (*topics, held) if held else topics
        for name in wanted:
            self._wanted[id, name] += 1
        signed_in = False
        try:
            for name in wanted:
                if not self._listens(app, name):
                    await self._broker.subscribe(id, name)
            if held:
                self._hold(app, client, held)
            await self._users.sign_in(id, user.id, client.id)
            online = await self._users.online(id, user.watchlist)
            if client.closed:
                raise LimitReached(403, "the connection is closed")
            lanes = {name: self._join(app, client, name) for name in topics}
            signed_in = True
        finally:
            if not signed_in:
                if app.held is not None and app.held.drop(client):
                    await self._end_hold(app, held)
                with suppress(Refused):
                    await self._users.sign_out(id, user.id, client.id)
            for name in wanted:
                self._want_less((id, name))
                await self._release(app, name)
        return lanes, Watched(
            tuple(one for one in user.watchlist if one in online), tuple(one for one in user.watchlist if one not in online)
        )

    async def hold(self, app: App, client: Client, channel: str) -> None:
        """Holds the events of a channel until the client subscribes; the client has signed in before. Raises Refused(503)."""
        key = app.config.id, channel
        self._wanted[key] += 1
        try:
            if not self._listens(app, channel):
                await self._broker.subscribe(*key)
            if not client.closed:
                self._hold(app, client, channel)
        finally:
            self._want_less(key)
            await self._release(app, channel)

    def _hold(self, app: App, client: Client, channel: str) -> None:
        if app.held is None:
            app.held = Held(self._send_held)
        app.held.add(client, channel, self.clock.monotonic())

    def _send_held(self, client: Subscriber, frame: bytes) -> None:
        self.metrics.messages_out += 1
        self.fanout.direct(client, frame)

    def deliver_held(self, app: App, client: Client) -> None:
        """Delivers the held frames of a client that has just subscribed."""
        if app.held is not None and (channel := app.held.deliver(client)):
            spawn(self._end_hold(app, channel))

    async def _end_hold(self, app: App, channel: str) -> None:
        if not app.held:
            app.held = None
        await self._release(app, channel)

    async def terminate(self, app: App, user_id: str) -> None:
        """Ends the connections a user has signed in on, on every worker."""
        await wait(self._broker.publish(Message(app.config.id, session_topic(user_id), TERMINATE, b"{}", *self.stamp())))

    async def members(self, app: App, channel: str, *, told: bool = False) -> tuple[Member, ...]:
        """told: as far as clients here have been told."""
        return await self._roster.members(app.config.id, channel, told=told)

    async def channels(self, app: App, prefix: str = "") -> Sequence[Occupancy]:
        """The occupied channels, but for those of single users."""
        return [one for one in await self._roster.channels(app.config.id, prefix) if not one.channel.startswith("#")]

    async def last(self, app: App, name: str) -> Kept | None:
        return await self._broker.last(app.config.id, name)

    async def channel(self, app: App, name: str) -> Occupancy | None:
        return await self._roster.channel(app.config.id, name)

    # Messages

    def stamp(self) -> tuple[int, int]:
        """A message id and the wall clock, in nanoseconds. Ids begin at the clock, grow, and end in the worker's number."""
        now = self.clock.wall()
        id = now >> WORKER_BITS
        if id <= self._last_id:
            id = self._last_id + 1
        self._last_id = id
        return id << WORKER_BITS | self.worker, now

    def publish(
        self,
        app: App,
        channel: str,
        event: str,
        data: bytes,
        stamp: tuple[int, int],
        sender: str = API,
        exclude: str = "",
        options: Options = DEFAULT_OPTIONS,
        user_id: str | None = None,
        headers: bytes = b"",
    ) -> MaybeAwaitable[int]:
        """Sends an event to a channel's subscribers; the result is how many there are. Raises Refused(503)."""
        id, now = stamp
        target = options.session
        return self._broker.publish(
            Message(app.config.id, channel, event, data, id, now, sender, exclude, options.delivery, target, user_id, headers)
        )

    async def reach(self, app: App, channel: str, exclude: str, options: Options) -> int:
        """How many subscribers an event goes to that is not for all of them: only their workers know."""
        message = Message(app.config.id, channel, "", b"", 0, 0, API, exclude, delivery=options.delivery, target=options.session)
        answers = await self._broker.ask(app.config.id, channel, REACH + msgspec.msgpack.encode(message))
        return sum(map(int, answers))

    # Between workers

    @property
    def shared(self) -> bool:
        """Whether there may be other workers."""
        return self._broker.shared

    async def listen(self, app: App, topic: str, listener: Listener) -> None:
        """Answers what is asked on a topic, and hears what is told there, from here on. Raises Refused(503)."""
        self._listeners[app.config.id, topic] = listener
        try:
            await self._broker.subscribe(app.config.id, topic)
        except Refused:
            await self.unlisten(app, topic)
            raise

    async def unlisten(self, app: App, topic: str) -> None:
        if self._listeners.pop((app.config.id, topic), None) is not None:
            await self._broker.unsubscribe(app.config.id, topic)

    async def ask(self, app: App, topic: str, question: bytes) -> Sequence[bytes]:
        """The answers of those who listen on a topic. Raises Refused(503)."""
        return [answer for answer in await self._broker.ask(app.config.id, topic, question) if answer]

    def tell(self, app: App, topic: str, data: bytes, lost: Callable[[], object]) -> None:
        """Says something to who listens on a topic; what is said in one turn comes in this order.

        lost: called when the broker is away, or has not confirmed it.
        """
        spawn(self._tell(Message(app.config.id, topic, TOLD, data, *self.stamp()), lost))

    async def _tell(self, message: Message, lost: Callable[[], object]) -> None:
        try:
            await wait(self._broker.publish(message))
        except Refused:
            lost()

    def receive(self, message: Message) -> int:
        """What the broker brings, the worker's own messages included."""
        app = self._live.get(message.app)
        if app is None:
            return 0
        if message.event == TERMINATE:
            for client in self.sessions(app, message.channel):
                client.disconnect(4009, "Terminated by the app")
            return 0
        if app.held is not None and message.channel in app.held:
            app.held.receive(message, self.clock.wall())
        count = self.fanout.receive(app.tenant, message)
        if not count and message.event == TOLD and (listener := self._listeners.get((message.app, message.channel))) is not None:
            listener.hear(message.data)
        return count


def _over_quota(most: int) -> Disconnect:
    return Disconnect(4004, f"Over connection quota: this app may have {most}")


def _user_id(member: Member | None) -> str | None:
    return None if member is None else member.user_id
