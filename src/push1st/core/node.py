"""The logic of one worker: applies the commands of sessions and the calls of the API to the hub, the roster and the broker.

The order of the steps in each method keeps invariants 1 and 2. No method awaits between reading and changing shared state. A
channel's pending frames are flushed before its subscribers change. After an `await`, a method checks whether the client is still
connected. If the connection has ended, the method undoes its own changes. Parts of the node are in other modules of this package.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING

import msgspec

from push1st.apps import Apps
from push1st.brokers import (
    Broker,
    CachedEvent,
    ChannelLists,
    History,
    HookEvents,
    Joined,
    NodeFilters,
    NodeGroups,
    Occupancy,
    Quotas,
    Roster,
    Users,
)
from push1st.brokers.history import ReplayRequest
from push1st.brokers.local_roster import LocalRoster
from push1st.brokers.retained import Retain, Retained
from push1st.brokers.sessions import Sessions
from push1st.clock import Clock
from push1st.config.model import AppConfig
from push1st.core.agents import ClientAgents
from push1st.core.app import App, Client
from push1st.core.controller import Controller
from push1st.core.counts import Counts
from push1st.core.ending import EndQueue, end_unverified
from push1st.core.fanout import Fanout
from push1st.core.flush_delay import FlushDelay
from push1st.core.hub import Lane, Subscription, Wire, Write
from push1st.core.pages import PageRegistry
from push1st.core.reports import Reports
from push1st.core.siblings import Siblings
from push1st.core.signins import SignIns
from push1st.core.topics import ClientTopics
from push1st.core.wildcards import Wildcards
from push1st.eager import MaybeAwaitable, Suspended, resolve, run_eagerly, spawn
from push1st.errors import Disconnect, LimitReached, Refused
from push1st.hooks import Hooks
from push1st.messages import (
    API,
    DEFAULT_OPTIONS,
    INTERNAL,
    NODE_MESSAGE,
    TERMINATE,
    CacheMissed,
    KeptMessage,
    Member,
    Message,
    MqttFields,
    MqttMessage,
    Options,
    Published,
    Replayed,
    SignedInUser,
    session_topic,
)
from push1st.metrics import Metrics
from push1st.refusals import Refusals

if TYPE_CHECKING:
    from push1st.core.tap import Tap  # only the console imports the module

WORKER_BITS = 10
OPERATOR = b"operator"
MAX_TTL_SECONDS = 1_000_000_000
"""a kept message's maximum time to live; a longer time is reduced to it, so that the time of expiry fits into 64 bits"""


class SessionState(msgspec.Struct, frozen=True):
    """The subscriptions and the user of a session that has ended.

    `subscriptions`: the session's subscriptions by channel name. `topics`: the lanes of the user's topics, by topic name.
    `filters`: the lanes of the session's filters with wildcards, by filter.
    """

    subscriptions: dict[str, Subscription]
    topics: dict[str, Lane]
    filters: dict[str, Lane]
    user: SignedInUser | None


class Node:
    """The node of one worker: it applies commands and API calls to the hub, the fan-out, the broker and the hooks.

    `random`: a function that takes a number of bits, and returns an unpredictable integer of this length.
    `worker`: the number of this worker in the cluster, below 1024.
    """

    def __init__(
        self, apps: Apps, fanout: Fanout, metrics: Metrics, clock: Clock, random: Callable[[int], int], worker: int = 0
    ) -> None:
        self.apps = apps
        self.fanout = fanout
        self.flush_delay = FlushDelay(fanout, clock.monotonic, metrics.flush_delay)
        self.metrics = metrics
        self.refusals = Refusals()
        self.clock = clock
        self.draining = False
        """whether this worker is stopping; a worker that is stopping disconnects its clients and rejects new clients"""
        self.replaced = False
        """whether another worker has taken over this worker's listening sockets; from then on, this worker gets no new clients"""
        self.siblings: Siblings | None = None
        self.status: Callable[[], Awaitable[bytes]] | None = None
        """a function that returns the state of the server as JSON; None until the worker listens"""
        self.max_replay_bytes = 262_144
        """the maximum number of bytes of kept messages that a new subscriber of a channel receives (`ReplayRequest.max_bytes`)"""
        self.max_metric_apps = 200
        """the maximum number of apps with metrics of their own; further apps share the label `other`"""
        self._random = random
        self.worker = worker
        self._last_id = 0
        self.used: dict[str, App] = {}
        """the apps that have been used since the start of this worker, by id; removed apps are missing"""
        self.ending = EndQueue()
        self.agents: ClientAgents | None = None
        """the headers `User-Agent` and `Origin` of clients; None without a console"""
        self.tap: Tap | None = None
        """the object that shows events to operators; None while no operator watches"""
        self.on_configured: list[Callable[[AppConfig], object]] = []
        """functions that are called with each changed configuration of an app and update values derived from the configuration"""
        self.local_roster = LocalRoster()
        self.topics = ClientTopics()
        self.wildcards = Wildcards(fanout, self.used)
        self.controller = Controller(self.used, self.stamp)
        self.counts = Counts(clock, self.stamp)
        self.reports = Reports(clock)
        self.signins = SignIns(self.topics, fanout, clock)
        self.pages = PageRegistry(fanout, self.controller, clock, metrics, self.new_id)
        self._broker: Broker
        self._roster: Roster
        self._quotas: Quotas
        self.hooks: Hooks
        self.history: History
        self.channel_lists: ChannelLists
        self.retained: Retained
        self.sessions: Sessions | None = None
        self.filters: NodeFilters | None = None
        self.groups: NodeGroups | None = None

    async def open(
        self, broker: Broker, roster: Roster, users: Users, quotas: Quotas, hook_events: HookEvents, hooks: Hooks
    ) -> None:
        """Connects to the broker. Publishing and subscribing are possible only after this call. Raises Refused(503)."""
        self._broker, self._roster, self._quotas, self.hooks = broker, roster, quotas, hooks
        self.history = broker.history
        self.channel_lists = broker.channel_lists
        self.retained = broker.retained
        self.sessions = broker.sessions
        self.filters = broker.filters
        self.groups = broker.groups
        self.wildcards.open(self.filters)
        self.topics.open(broker)
        self.controller.open(broker)
        self.counts.open(broker, roster, hook_events)
        self.reports.open(hook_events)
        self.signins.open(users)
        self.pages.open(broker.pages)
        await broker.open(self.receive, hooks.on_event, self.controller.reply, self._recount)

    async def close(self) -> None:
        await self._broker.close()

    # Apps and connections

    def app(self, config: AppConfig) -> App:
        """Returns the app for a configuration, and creates the app on its first use."""
        app = self.used.get(config.id)
        if app is None:
            app = self.used[config.id] = App(config, self.clock.monotonic(), self.metrics.of(config.id))
        return app

    def configure(self, config: AppConfig) -> None:
        """Applies an app's changed configuration. An app source calls this method after storing the new configuration.

        The app keeps its id, and the app's clients stay connected.
        """
        app = self.used.get(config.id)
        if app is not None:
            leaving = app.configure(config, self.clock.monotonic())
            if leaving:
                spawn(end_unverified(self.ending, app, leaving, self.metrics))
        self.refusals.mask(*config.secrets)
        for apply in self.on_configured:
            apply(config)

    def live(self) -> Sequence[App]:
        """Returns the apps that have been used since the start of this worker."""
        return tuple(self.used.values())

    def new_id(self, prefix: str = "") -> str:
        """Returns a new session id: `NUMBER.NUMBER`, or `PREFIX.NUMBER.NUMBER` (Push1st API, section 7)."""
        bits = self._random(64)
        number = f"{bits >> 32}.{bits & 0xFFFFFFFF}"
        return f"{prefix}.{number}" if prefix else number

    def connect(self, app: App, client: Client, is_counted: bool = True) -> Suspended[bool] | None:
        """Registers a session. Raises Disconnect(4004) if the app has reached its limit of connections.

        `is_counted`: whether the connection counts from now on; otherwise the caller calls `admit` later.

        Starts a request to the broker to count the connection, if the app needs the count. If the broker has not replied yet,
        returns the unfinished request, which the caller passes to `admit` or `withdraw`. Otherwise returns None.
        """
        most = app.config.limits.connections
        admission = None
        if app.counts_connections and not is_counted:
            app.uncounted.add(client)
        elif app.counts_connections:
            admitted = run_eagerly(self._quotas.connect(app.config.id, most))
            if isinstance(admitted, Suspended):
                admission = admitted
                app.uncounted.add(client)
            elif not admitted:
                raise app.over_quota(most)
        app.tenant.connect(client, client.prefix)
        if app.secret_use is not None and client.claims is not None:
            app.secret_use.add(client, client.claims.place)
        return admission

    async def admit(self, app: App, client: Client, admission: Suspended[bool] | None = None, replaces: bool = False) -> None:
        """Waits until the broker has counted or rejected a connection. Raises Disconnect(4004).

        `admission`: the request that `connect` has returned; None for a connection that `connect` has not counted.
        `replaces`: whether another connection has ended so that this one takes its place. Then the limit does not apply.
        """
        if admission is None and client not in app.uncounted:
            return
        most = 0 if replaces else app.config.limits.connections
        if not await (admission or self._quotas.connect(app.config.id, most)):
            raise app.over_quota(most)
        if client.closed:  # the connection ended before the broker counted it
            await self._quotas.disconnect(app.config.id)
        app.uncounted.discard(client)

    async def withdraw(self, app: App, client: Client, admission: Suspended[bool]) -> None:
        """Undoes the request to count a connection, if the connection ends before `admit` is called.

        Waits for the broker's reply. If the broker has counted the connection, reduces the count by this connection.

        `admission`: the request, which `connect` has returned.
        """
        with suppress(Disconnect):
            await self.admit(app, client, admission)

    async def disconnect(self, app: App, client: Client, left: SessionState) -> None:
        """Removes a session that has ended from its channels, from its topics, and from the broker's count of connections.

        Pending frames of the session's channels are dropped for this session, and stay pending for other subscribers.
        """
        tenant, id = app.tenant, app.config.id
        lanes = chain((one.lane for one in left.subscriptions.values()), left.topics.values(), left.filters.values())
        self.fanout.forget(client, lanes)
        tenant.disconnect(client, client.prefix)
        if app.secret_use is not None:
            app.secret_use.discard(client)
        held = self.signins.drop_held(app, client)
        for name in left.subscriptions:
            channel = tenant.channels.get(name)
            if channel is not None:
                app.counts.unsubscribes[channel.kind.type] += 1
                tenant.unsubscribe(client, name)
        for name in left.topics:
            tenant.unsubscribe(client, name)
        if left.filters:
            self.wildcards.end(app, client, left.filters)
        if client in app.uncounted:
            app.uncounted.discard(client)
        elif app.counts_connections:
            await self._quotas.disconnect(id)
        for name, subscription in left.subscriptions.items():
            await self._leave(app, client, name, subscription.member)
        if left.user is not None:
            await self.signins.sign_out(app, client, left.user)
        for name in left.topics:
            await self.topics.release(app, name)
        if held:
            await self.signins.end_hold(app, held)
        for name in left.subscriptions if app.config.subscription_count else ():  # last: no other step must wait for a count
            await self.counts.send(app, name)

    # Channels

    async def subscribe(
        self,
        app: App,
        client: Client,
        name: str,
        member: Member | None,
        request: ReplayRequest | None = None,
        wire: Wire | None = None,
        deliver: Write | None = None,
    ) -> tuple[Subscription, Joined]:
        """Subscribes a client to a channel; returns the subscription, and the channel's state at that time. Raises Refused.

        `request`: the part of the channel's history that the client requests; None if the channel keeps no history.
        `wire`, `deliver`: see `Tenant.subscribe`.
        """
        id = app.config.id
        self.topics.want(app, name)
        try:
            if not self.topics.is_received(app, name):
                await self.topics.subscribe(app, name)
            joined = await self._roster.join(id, name, client.id, member, app.config.limits.members, request)
            if client.closed:
                await self._roster.leave(id, name, client.id, _user_id(member))
                raise LimitReached(403, "the connection is closed")
            lane = self.fanout.subscribe(app.tenant, client, name, wire, deliver)
            app.counts.subscribes[app.tenant.channels[name].kind.type] += 1
            if self.tap is not None:
                self.tap.subscribed(app, client, name, member)
            if joined.replay is not None:
                app.tenant.channels[name].begin_at(joined.replay.position)
            if "joined" in app.hook_kinds:
                self.reports.report(app, "joined", name, client.id, member)
            return lane.subscription(member), joined
        finally:
            if self.topics.unwant(app, name):
                await self.topics.release(app, name)

    def replay(self, app: App, client: Client, name: str, cached: CachedEvent | None) -> Replayed | CacheMissed:
        """Returns the reply that follows `Subscribed` on a cache channel: the channel's last event, or `CacheMissed`."""
        if cached is not None:
            return Replayed(cached.message, self.clock.wall())
        if "cache-missed" in app.hook_kinds:
            self.reports.report(app, "cache-missed", name, client.id)
        return CacheMissed(name)

    async def unsubscribe(self, app: App, client: Client, name: str, subscriptions: dict[str, Subscription]) -> None:
        """Ends a subscription after the client's pending frames are written. `subscriptions`: all subscriptions of the client."""
        channel = app.tenant.channels.get(name)
        if channel is not None:
            app.counts.unsubscribes[channel.kind.type] += 1
            self.fanout.flush_lanes(channel.lanes)
        self.fanout.flush_subscriber(client)
        member = subscriptions.pop(name).member
        app.tenant.unsubscribe(client, name)
        if self.tap is not None:
            self.tap.unsubscribed(app, client, name, member)
        await self._leave(app, client, name, member)
        if app.config.subscription_count:
            await self.counts.send(app, name)

    async def _leave(self, app: App, client: Client, name: str, member: Member | None) -> None:
        """Reports that a client has left a channel, removes the client from the roster, and releases the topic.

        If the broker is away, the roster stays unchanged until the node registers with the broker again.
        """
        if "left" in app.hook_kinds:
            self.reports.report(app, "left", name, client.id, member)
        with suppress(Refused):
            await self._roster.leave(app.config.id, name, client.id, _user_id(member))
        await self.topics.release(app, name)

    def _recount(self, id: str, name: str) -> None:
        """Queues a channel's count. Called after this worker has evicted a dead node, or registered its subscriptions again."""
        config = self.apps.by_id(id)
        if config is not None and config.subscription_count and not name.startswith("#"):
            self.counts.later(self.app(config), name)

    async def tick(self) -> None:
        """Sends the subscription counts that are due, and the held frames that are due. Called once a second."""
        now = self.clock.monotonic()
        for app in self.used.values():
            self.signins.tick(app, now)
        self.flush_delay.tick()
        self.pages.tick()
        self.history.tick()
        await self.counts.tick()

    async def terminate(self, app: App, user_id: str, by: bytes = b"app") -> None:
        """Closes all connections of a signed-in user, on all workers. by: for the close reason: b"app", or `OPERATOR`."""
        await resolve(self._broker.publish(Message(app.config.id, session_topic(user_id), TERMINATE, by, *self.stamp())))

    async def members(self, app: App, channel: str, *, local_view: bool = False) -> tuple[Member, ...]:
        """Returns the members of a presence channel. `local_view`: see `Roster.members`."""
        return await self._roster.members(app.config.id, channel, local_view=local_view)

    async def channels(self, app: App, prefix: str = "") -> Sequence[Occupancy]:
        """Returns the occupied channels, except users' channels, whose names begin with `#`."""
        return [one for one in await self._roster.channels(app.config.id, prefix) if not one.channel.startswith("#")]

    async def cached(self, app: App, name: str) -> CachedEvent | None:
        return await self._broker.cached(app.config.id, name)

    async def channel(self, app: App, name: str) -> Occupancy | None:
        return await self._roster.channel(app.config.id, name)

    # Messages

    def stamp(self) -> tuple[int, int]:
        """Returns a new message id, and the wall clock in nanoseconds.

        An id has the time in its upper bits and the number of the worker in its lower bits. Each id is greater than all
        earlier ids of this worker.
        """
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
        key: str = "",
        mqtt: MqttFields | None = None,
        retain: Retain | None = None,
    ) -> MaybeAwaitable[Published]:
        """Sends an event to a channel's subscribers, and to the channel's history. Raises Refused(503) and LimitReached.

        `key`: an idempotency key, or "". `retain`: see `Broker.publish` for both.
        `mqtt`: the fields that only MQTT clients use; None if no MQTT client publishes the event.
        """
        if (tap := self.tap) is not None:
            if tap.counts_only:
                tap.passed[app][sender == API] += 1
            else:
                tap.published(app, channel, event, data, sender, user_id)
        id, now = stamp
        target, name = options.session, app.config.id
        if app.history is not None and options.delivery == "broadcast" and not event.startswith(INTERNAL):
            section = app.history(channel)
            if section is not None and (section.client_events or sender == API):
                ttl = options.ttl
                expires = now + int(min(ttl, MAX_TTL_SECONDS) * 1_000_000_000) if ttl else 0
                kept = KeptMessage(
                    name, channel, event, data, id, now, sender, exclude, "broadcast", target, user_id, headers, expires
                )
                kept.mqtt = mqtt
                return self._broker.publish(kept, section, key, retain)
        if mqtt is not None:
            sent = MqttMessage(
                name, channel, event, data, id, now, sender, exclude, options.delivery, target, user_id, headers, mqtt
            )
            return self._broker.publish(sent, None, key, retain)
        message = Message(name, channel, event, data, id, now, sender, exclude, options.delivery, target, user_id, headers)
        return self._broker.publish(message, None, key) if key else self._broker.publish(message)

    def receive(self, message: Message) -> int:
        """Delivers a message from the broker to this worker's subscribers; returns the number of these subscribers.

        The broker also passes messages that this worker itself has published.
        """
        app = self.used.get(message.app)
        if app is None:
            if message.event == NODE_MESSAGE:  # a topic of the console, which belongs to no app
                self.controller.on_message(message)
            return 0
        if message.event == TERMINATE:
            for client in app.sessions(message.channel):
                if message.data == OPERATOR:
                    client.disconnect(4009, "Terminated by an operator")
                else:
                    client.disconnect(4009, "Terminated by the app")
            return 0
        if app.held is not None and message.channel in app.held:
            app.held.receive(message, self.clock.wall())
        if app.history is not None and type(message) is KeptMessage:
            channel = app.tenant.channels.get(message.channel)
            if channel is not None:
                channel.epoch, channel.offset = message.epoch, message.offset
        count = self.fanout.receive(app.tenant, message)
        if not count and message.event == NODE_MESSAGE:
            self.controller.on_message(message)
        return count


def _user_id(member: Member | None) -> str | None:
    return None if member is None else member.user_id
