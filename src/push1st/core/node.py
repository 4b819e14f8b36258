"""One worker's brain: it runs the effects of sessions and API calls on the hub, the roster and the broker.

Its order of steps is what keeps the promises of the fan-out (invariants 1 and 2): what is read from shared state
is changed without an `await` between, a channel's pending frames are settled before its subscribers change, and what
became void during a wait is taken back.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

import msgspec

from push1st.apps import Apps
from push1st.brokers import Broker, CachedEvent, HookEvents, Joined, Occupancy, Quotas, Roster, Users
from push1st.clock import Clock
from push1st.config.model import AppConfig
from push1st.core.app import App, Client
from push1st.core.controller import Controller
from push1st.core.counts import Counts
from push1st.core.fanout import Fanout
from push1st.core.hub import Lane
from push1st.core.reports import Reports
from push1st.core.signins import SignIns
from push1st.core.topics import ClientTopics
from push1st.eager import MaybeAwaitable, Suspended, resolve, run_eagerly
from push1st.errors import Disconnect, LimitReached, Refused
from push1st.hooks import Hooks
from push1st.messages import (
    API,
    DEFAULT_OPTIONS,
    NODE_MESSAGE,
    TERMINATE,
    CacheMissed,
    Member,
    Message,
    Options,
    Published,
    Replayed,
    SignedInUser,
    session_topic,
)
from push1st.metrics import Metrics
from push1st.refusals import Refusals

WORKER_BITS = 10


class SessionState(msgspec.Struct, frozen=True):
    """What a connection had when it ended. topics: of its user, which are no subscriptions of its own."""

    lanes: dict[str, Lane]
    members: dict[str, Member]
    topics: dict[str, Lane]
    user: SignedInUser | None


class Siblings(Protocol):
    """The other workers of this machine. number: this one's among them."""

    number: int

    async def metrics(self) -> Sequence[tuple[int, bytes]]:
        """What those that answer in time have counted: their numbers, and `api.server.snapshot`s."""

    async def hooks(self, app: str) -> Sequence[bytes]:
        """How the app's hooks do there: `api.hooks.states`."""


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
        self.on_configured: list[Callable[[AppConfig], object]] = []
        """called with each changed configuration of an app: they update what is derived from it outside of `App`"""
        self.topics = ClientTopics()
        self.controller = Controller(self._live, self.stamp)
        self.counts = Counts(clock, self.stamp)
        self.reports = Reports(clock)
        self.signins = SignIns(self.topics, fanout, clock, metrics)
        self._broker: Broker
        self._roster: Roster
        self._quotas: Quotas
        self.hooks: Hooks

    async def open(
        self, broker: Broker, roster: Roster, users: Users, quotas: Quotas, hook_events: HookEvents, hooks: Hooks
    ) -> None:
        """Connects the broker; before this nothing may be published or subscribed to."""
        self._broker, self._roster, self._quotas, self.hooks = broker, roster, quotas, hooks
        self.topics.open(broker)
        self.controller.open(broker)
        self.counts.open(broker, roster, hook_events)
        self.reports.open(hook_events)
        self.signins.open(users)
        await broker.open(self.receive, hooks.on_event, self.controller.reply, self._recount)

    async def close(self) -> None:
        await self._broker.close()

    # Apps and connections

    def app(self, config: AppConfig) -> App:
        app = self._live.get(config.id)
        if app is None:
            app = self._live[config.id] = App(config, self.clock.monotonic())
        return app

    def configure(self, config: AppConfig) -> None:
        """Applies the changed configuration of an app, from the source of apps (`Apps`). Its id and its clients stay.

        A configuration of an app that no client and no call of the API has used yet needs no change here.
        """
        app = self._live.get(config.id)
        if app is not None:
            app.configure(config, self.clock.monotonic())
        self.refusals.mask(config.secret)
        for apply in self.on_configured:
            apply(config)

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
        if app.counts_connections:
            admitted = run_eagerly(self._quotas.connect(app.config.id, most))
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

    async def withdraw(self, app: App, client: Client, asked: Suspended[bool]) -> None:
        """Discounts a connection that has ended before the broker has counted it. asked: the result of `connect`."""
        with suppress(Disconnect):
            await self.admit(app, client, asked)

    async def disconnect(self, app: App, client: Client, left: SessionState) -> None:
        """A connection has ended: it leaves its channels. The others' pending frames are not touched by that."""
        tenant, id = app.tenant, app.config.id
        self.fanout.forget(client, (*left.lanes.values(), *left.topics.values()))
        tenant.disconnect(client, client.prefix)
        held = self.signins.drop_held(app, client)
        for name in (*left.lanes, *left.topics):
            tenant.unsubscribe(client, name)
        if client in app.uncounted:
            app.uncounted.discard(client)
        elif app.counts_connections:
            await self._quotas.disconnect(id)
        for name in left.lanes:
            await self._leave(app, client, name, left.members.get(name))
        if left.user is not None:
            await self.signins.sign_out(app, client, left.user)
        for name in left.topics:
            await self.topics.release(app, name)
        if held:
            await self.signins.end_hold(app, held)

    # Channels

    async def subscribe(self, app: App, client: Client, name: str, member: Member | None) -> tuple[Lane, Joined]:
        """Puts a client on a channel: its lane, and what was true when it joined. Raises LimitReached."""
        id = app.config.id
        self.topics.want(app, name)
        try:
            await self.topics.subscribe(app, name)
            joined = await self._roster.join(id, name, client.id, member, app.config.limits.members)
            if client.closed:
                await self._roster.leave(id, name, client.id, _user_id(member))
                raise LimitReached(403, "the connection is closed")
            lane = self.fanout.subscribe(app.tenant, client, name)
            if "joined" in app.reported:
                self.reports.report(app, "joined", name, client.id, member)
            return lane, joined
        finally:
            await self.topics.unwant(app, name)

    def replay(self, app: App, client: Client, name: str, cached: CachedEvent | None) -> Replayed | CacheMissed:
        """What a new subscriber of a cache channel is told right after it was told that it is one."""
        if cached is not None:
            return Replayed(cached.message, self.clock.wall())
        if "cache-missed" in app.reported:
            self.reports.report(app, "cache-missed", name, client.id)
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
            self.reports.report(app, "left", name, client.id, member)
        with suppress(Refused):
            await self._roster.leave(app.config.id, name, client.id, _user_id(member))
        await self.topics.release(app, name)
        if app.config.subscription_count:
            await self.counts.send(app, name)

    def _recount(self, id: str, name: str) -> None:
        """Sends a channel's count soon, because no other worker sends the current number."""
        config = self.apps.by_id(id)
        if config is not None and config.subscription_count and not name.startswith("#"):
            self.counts.later(self.app(config), name)

    async def tick(self) -> None:
        """Sends the subscription counts that are due, and frames that were held too long. Called once a second."""
        now = self.clock.monotonic()
        for app in self._live.values():
            self.signins.tick(app, now)
        await self.counts.tick()

    async def terminate(self, app: App, user_id: str) -> None:
        """Ends the connections a user has signed in on, on every worker."""
        await resolve(self._broker.publish(Message(app.config.id, session_topic(user_id), TERMINATE, b"{}", *self.stamp())))

    async def members(self, app: App, channel: str, *, local_view: bool = False) -> tuple[Member, ...]:
        """Returns the members of a presence channel. local_view: as the roster's `members`."""
        return await self._roster.members(app.config.id, channel, local_view=local_view)

    async def channels(self, app: App, prefix: str = "") -> Sequence[Occupancy]:
        """The occupied channels, but for those of single users."""
        return [one for one in await self._roster.channels(app.config.id, prefix) if not one.channel.startswith("#")]

    async def cached(self, app: App, name: str) -> CachedEvent | None:
        return await self._broker.cached(app.config.id, name)

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
    ) -> MaybeAwaitable[Published]:
        """Sends an event to a channel's subscribers. Raises Refused(503)."""
        id, now = stamp
        target = options.session
        return self._broker.publish(
            Message(app.config.id, channel, event, data, id, now, sender, exclude, options.delivery, target, user_id, headers)
        )

    def receive(self, message: Message) -> int:
        """What the broker brings, the worker's own messages included."""
        app = self._live.get(message.app)
        if app is None:
            return 0
        if message.event == TERMINATE:
            for client in app.sessions(message.channel):
                client.disconnect(4009, "Terminated by the app")
            return 0
        if app.held is not None and message.channel in app.held:
            app.held.receive(message, self.clock.wall())
        count = self.fanout.receive(app.tenant, message)
        if not count and message.event == NODE_MESSAGE:
            self.controller.on_message(message)
        return count


def _over_quota(most: int) -> Disconnect:
    return Disconnect(4004, f"Over connection quota: this app may have {most}")


def _user_id(member: Member | None) -> str | None:
    return None if member is None else member.user_id
