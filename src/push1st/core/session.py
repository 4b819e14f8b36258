"""The session of one client, in any protocol: applies the client's commands in order, within the client's rights and limits.

A session begins with its first connection. A session without an outbox (`core/outbox.py`) ends with its connection. A session
with an outbox stays subscribed without a connection, and the outbox keeps the output until `attach` or `expire` is called.

A session applies its commands one after another. While a command waits for a broker or a backend, up to `MAX_WAITING_COMMANDS`
later commands are queued. A transport that can stop reading its socket does so before the queue is full. The answer to a rejected
command is an error, and the client stays connected. A client with more than `MAX_REFUSALS` rejected commands a second is
disconnected. There are two exceptions: events above `limits.client_events`, and commands that fail because the broker is away.
For these, a client is disconnected only if it sends them fast for a long time (`Session.charge`).
"""

from collections import deque
from collections.abc import Callable, Collection
from typing import Any

from push1st import auth
from push1st.core import decisions, resuming, rights
from push1st.core.agents import ClientAgent
from push1st.core.app import App, Outlet, prefix_of
from push1st.core.hub import Lane, LanesOf, Subscription, Wire, Write
from push1st.core.node import Node, SessionState
from push1st.core.outbox import AttachedConnection, Outbox
from push1st.eager import spawn
from push1st.errors import Disconnect, LimitReached, Refused
from push1st.limits import Bucket
from push1st.messages import (
    DEFAULT_OPTIONS,
    ClientRequest,
    Command,
    Failure,
    Member,
    Options,
    Ping,
    Pong,
    Publish,
    Published,
    SignedIn,
    SignedInUser,
    SignIn,
    Subscribe,
    Subscribed,
    SubscriptionRefused,
    Unsubscribe,
    user_channel,
)

MAX_WAITING_COMMANDS = 1000
"""the maximum number of commands of one client that are queued while an earlier command waits"""
MAX_REFUSALS = 100
"""the maximum number of rejected commands a second; a client that exceeds this number is disconnected"""
MAX_CHARGES = 100
"""the maximum number of charges a second (`Session.charge`); a client that exceeds this number for a long time is disconnected"""
CHARGE_SECONDS = 60
"""the number of seconds for which a client saves unused charges; the client may use all saved charges at once"""
MAX_PUBLISHES = 1000
"""the maximum number of events a second of a raw client; a client that exceeds this number is disconnected"""
_KINDS = {401: "AuthError", 400: "Invalid", 503: "Unavailable"}


class Session:
    """A client's subscriptions, its user, its queued commands, and the state of its limits.

    `outlet`: the object that sends replies: the connection, or the owner of the outbox.
    `write`: the function that sends the output of the fan-out: the `write` of the connection or of the outbox.
    `prefix`: the part of the session's id that the client has chosen.
    `claims`: the rights that the client's access token grants; None for a client without a token.
    `push`: the types of channels to which a raw client may publish; None for a Pusher client.
    `lenient`: whether the client may subscribe to a presence channel, and receive the channel's events, without being a member.
    `resumption`: the way in which the client resumes its channels; None for a client that cannot resume.
    `outbox`: the outbox of a session that outlives its connections; None for any other session. `is_counted`: see `Node.connect`.
    """

    __slots__ = (
        "_admission",
        "_busy",
        "_charged",
        "_events",
        "_refusals",
        "_when_idle",
        "agent",
        "app",
        "authorized",
        "claims",
        "closed",
        "filters",
        "id",
        "ip",
        "lenient",
        "node",
        "outbox",
        "outlet",
        "push",
        "resumption",
        "subscriptions",
        "topics",
        "user",
        "waiting",
        "wire",
        "write",
    )

    def __init__(
        self,
        node: Node,
        app: App,
        outlet: Outlet,
        wire: Wire,
        write: Write,
        ip: str,
        prefix: str = "",
        claims: auth.Claims | None = None,
        push: frozenset[str] | None = None,
        lenient: bool = False,
        outbox: Outbox[Any] | None = None,
        resumption: resuming.Resumption | None = None,
        is_counted: bool = True,
    ) -> None:
        self.node = node
        self.app = app
        self.outlet = outlet
        self.wire = wire
        self.write = write
        self.ip = ip
        self.claims = claims
        self.push = push
        self.lenient = lenient
        self.outbox = outbox
        self.resumption = resumption
        self.id = node.new_id(prefix)
        self.subscriptions: dict[str, Subscription] = {}
        self.user: SignedInUser | None = None
        self.topics: dict[str, Lane] | None = None
        self.filters: dict[str, Lane] | None = None
        self.authorized = False
        self.agent: ClientAgent | None = None
        self.closed = self._busy = False
        self._charged = 0.0
        self.waiting: deque[Command] | None = None
        """commands that are queued while an earlier command waits; None if no command was ever queued"""
        self._when_idle: Callable[[], None] | None = None
        self._events: Bucket | None = None
        self._refusals: Bucket | None = None
        self._admission = node.connect(app, self, is_counted)

    @property
    def prefix(self) -> str:
        """The part of the session's id that the client chose; "" if the client chose none."""
        return prefix_of(self.id)

    @property
    def lanes(self) -> Collection[Lane]:
        if not self.topics and not self.filters:
            return LanesOf(self.subscriptions)
        return LanesOf(self.subscriptions, (self.topics or {}, self.filters or {}))

    def disconnect(self, code: int, reason: str) -> None:
        self.outlet.close(code, reason)

    def mute(self, write: Write) -> None:
        """Discards further output, because the connection is lost. Commands that have already arrived are still applied.

        `write`: a function that discards frames.
        """
        self.write = write
        lanes = self.lanes
        self.node.fanout.forget(self, lanes)
        for lane in lanes:
            lane.writes[self] = write

    def attach(self, connection: AttachedConnection[Any]) -> None:
        """Sends the items of the outbox, and then all further output, on a new connection. The session must have an outbox."""
        assert self.outbox is not None
        self.outbox.attach(connection)

    def detach(self, until: float = 0) -> None:
        """Handles the end of the connection: the outbox keeps further output. Without an outbox the session expires now.

        `until`: the time at which the session expires, in seconds on the node's `Clock.monotonic`. If `until` is in the past, the
        session expires now; otherwise the owner of the outbox calls `expire` at the time `until`.
        """
        if self.outbox is not None:
            self.outbox.detach(until)
            if until > self.node.clock.monotonic():
                return
        self.expire()

    def expire(self) -> None:
        """Ends the session: the session leaves its channels, and applies no further command.

        The owner keeps the outbox, and may still send the items of the outbox with the answer to the client's next request.
        """
        if not self.closed:
            self.closed = True
            self.waiting = None
            left = SessionState(self.subscriptions, self.topics or {}, self.filters or {}, self.user)
            self.subscriptions, self.topics, self.filters = {}, None, None
            resuming.ended(self)
            spawn(self.node.disconnect(self.app, self, left))
            admission, self._admission = self._admission, None
            if admission is not None:
                spawn(self.node.withdraw(self.app, self, admission))

    def connect(self, request: ClientRequest, on_admitted: Callable[[], None], commands: Collection[Command] = ()) -> None:
        """Admits the client: at once, or after the broker has counted the connection and the backend has accepted the client.

        `request`: the client's query and headers, for the backend. `on_admitted`: a function that is called when the client is
        admitted; the client's commands wait until then. `commands`: the commands that the request contains.
        """
        if commands:
            self.waiting = deque(commands)
        if self.node.agents is not None:
            self.agent = self.node.agents.of(request)
        if self._admission is None and "connect" not in self.app.backend_decides and request.user is None:
            on_admitted()
            if self.waiting:
                spawn(self._apply(self.waiting.popleft()))
            return
        self._busy = True
        spawn(self._connect(request, on_admitted))

    async def _connect(self, request: ClientRequest, on_admitted: Callable[[], None]) -> None:
        try:
            if self._admission is not None:
                admission, self._admission = self._admission, None
                await self.node.admit(self.app, self, admission)
            if not self.closed:
                await self._identify(request)
            if not self.closed:
                on_admitted()
        except Disconnect as end:
            if not self.closed:
                self.node.metrics.refusals[str(end.code)] += 1
                self.outlet.close(end.code, end.reason)
        except Refused as refused:
            if not self.closed:
                self.node.metrics.cut_offs["refused-by-app"] += 1
                self.outlet.close(decisions.close_code(refused.code), refused.text)
        except Exception:
            self.outlet.fail()
        if self.waiting and not self.closed:
            await self._apply(self.waiting.popleft())
        else:
            self._finish()

    async def _identify(self, request: ClientRequest) -> None:
        """Signs the client in as the user in the backend's decision, or as the user of its request. Raises Refused."""
        user = request.user
        if "connect" in self.app.backend_decides:
            user = await decisions.connect(self.node.hooks, self.app, self, request) or user
        if user is not None and not self.closed:
            self.topics, _ = await self.node.signins.sign_in(self.app, self, user)
            self.user, self.authorized = user, True

    # Commands

    def handle(self, command: Command) -> None:
        """Applies a command as soon as all earlier commands are applied."""
        if self.closed:
            return
        if not self._busy:
            resuming.ponged(self) if isinstance(command, Pong) else spawn(self._apply(command))  # pongs need no coroutine
            return
        if self.waiting is None:
            self.waiting = deque()
        if len(self.waiting) >= MAX_WAITING_COMMANDS:
            self.node.metrics.cut_offs["queue-full"] += 1
            self.outlet.close(4100, f"more than {MAX_WAITING_COMMANDS} commands are waiting")
            return
        self.waiting.append(command)

    async def _apply(self, command: Command) -> None:
        self._busy = True
        while True:
            try:
                await self._one(command)
            except Refused as refused:
                if not self.closed:
                    self.refuse(refused)
            except Disconnect as end:
                self.outlet.close(end.code, end.reason)
            except Exception:
                self.outlet.fail()
            if not self.waiting or self.closed:
                break
            command = self.waiting.popleft()
        self._finish()

    def _finish(self) -> None:
        """Marks the session as idle after its last command, and calls the function that `is_busy` has stored."""
        self._busy = False
        if self._when_idle is not None:
            run, self._when_idle = self._when_idle, None
            run()

    def is_busy(self, when_idle: Callable[[], None]) -> bool:
        """If a command is unfinished, returns true, and calls `when_idle` once, after the last command."""
        if self._busy:
            self._when_idle = when_idle
        return self._busy

    def refuse(self, refused: Refused, failure: Failure | None = None) -> None:
        """Answers a rejected command; disconnects a client with too many rejected commands.

        `failure`: the answer; by default, the answer has the code, text and channel of the exception.
        """
        self.node.metrics.refusals[str(refused.code)] += 1
        event = "command refused" if failure is None or failure.code is not None else "sign-in refused"
        self._count(event, refused, failure.channel if failure is not None else None)
        if self._may_be_refused():
            self.outlet.send(failure or Failure(refused.code, refused.text, refused.channel))
        # The client exceeds `MAX_REFUSALS`. The command gets no answer. Errors 429 (an event above the rate limit; Pusher
        # protocol, section 4) and 503 (the broker is away) are charged. After any other error, the client is disconnected.
        elif refused.code in (429, 503):
            self.charge()
        else:
            self.node.metrics.cut_offs["flood"] += 1
            self.outlet.close(1008, "too many bad messages")

    def _count(self, event: str, refused: Refused, channel: str | None) -> None:
        self.app.counts.refusals += 1
        where = {"channel": channel, "app": self.app.config.id, "socket_id": self.id, "ip": self.ip}
        self.node.refusals.log(event, refused.code, refused.text, **where)

    def log_end(self, code: int, reason: str) -> None:
        """Logs that this worker ends the connection, unless the worker is draining."""
        if not self.node.draining:
            self.node.refusals.log("connection closed", code, reason, app=self.app.config.id, socket_id=self.id, ip=self.ip)

    def charge(self) -> None:
        """Charges the client for a command or frame that costs the server time and has no lasting effect.

        Pings, pongs, small fragments, unsubscribing, subscribing again, signing in, and rejected commands that get no answer are
        charged, because no other limit bounds them. New subscriptions are not charged, because `limits.subscriptions` bounds
        them. A client that exceeds `MAX_CHARGES` a second for a long time is disconnected.
        """
        if self.closed:
            return
        now = self.node.clock.monotonic()
        # Nearly every client has this token bucket. To save memory, it is one number: the time at which the bucket is full again.
        self._charged = max(self._charged, now) + 1 / MAX_CHARGES
        if self._charged > now + CHARGE_SECONDS:
            self.node.metrics.cut_offs["flood"] += 1
            self.outlet.close(1008, f"more than {MAX_CHARGES} pings or commands without effect a second")

    def _may_be_refused(self) -> bool:
        """Counts a rejected command. Returns whether the client is still within `MAX_REFUSALS`."""
        now = self.node.clock.monotonic()
        if self._refusals is None:
            self._refusals = Bucket(MAX_REFUSALS, now)
        return self._refusals.take(now)

    async def _one(self, command: Command) -> None:
        """Applies one command. Raises Refused and Disconnect."""
        match command:
            case Publish(channel):
                try:
                    await self._publish(command)
                except Refused as refused:
                    if not self.closed:
                        self.refuse(refused, Failure(refused.code, refused.text, channel))
            case Subscribe():
                try:
                    is_new = await self._subscribe(command)
                except Refused as refused:
                    self._refuse_subscription(command.channel, refused)
                else:
                    if not is_new:
                        self.charge()
                    elif self.app.config.subscription_count:
                        await self.node.counts.send(self.app, command.channel)
            case Unsubscribe(channel):
                self.charge()
                if channel in self.subscriptions:
                    if self.resumption is not None:
                        self.resumption.unsubscribed(channel)
                    await self.node.unsubscribe(self.app, self, channel, self.subscriptions)
            case SignIn():
                self.charge()
                try:
                    await self._sign_in(command)
                except Refused as refused:
                    if not self.closed:
                        self.refuse(refused, Failure(None, refused.text))
            case Ping():
                self.outlet.send(Pong())
                self.charge()
            case Pong():
                resuming.ponged(self)

    # Subscribing

    def _refuse_subscription(self, channel: str, refused: Refused) -> None:
        if self.closed:
            return
        if self.push is None and not self._may_be_refused():  # raw clients and streams subscribe once, so they cannot flood
            self.refuse(refused)
            return
        kind = "LimitReached" if isinstance(refused, LimitReached) else _KINDS.get(refused.code, "Forbidden")
        self.node.metrics.refusals[kind] += 1
        self._count("subscription refused", refused, channel)
        self.outlet.send(SubscriptionRefused(channel, kind, refused.text, refused.code))
        if self.push is not None and not self.subscriptions and not self.waiting:
            self.outlet.close(1008, "no channel to subscribe to: the app's backend allowed none")

    async def _subscribe(self, command: Subscribe) -> bool:
        """Subscribes the client to a channel; returns whether this is a new subscription. Raises Refused."""
        name = command.channel
        kind, place = rights.to_subscribe(self, self.app.config, command, self.app.backend_decides.get("subscribe"))
        is_decided = decisions.is_decided(self.app, name)
        decision = None
        if is_decided and name not in self.subscriptions:
            decision = await decisions.subscribe(self.node.hooks, self.app, self, command, self.user)
        member = None
        if kind.presence and self.claims is None and self.push is None:
            if decision is not None and decision.user_id is not None:
                member = Member(decision.user_id, decision.user_info)
            elif name not in self.subscriptions or not is_decided:
                member = rights.member(self, command.channel_data)
            else:
                member = self.subscriptions[name].member
        if kind.needs_auth:
            self.app.authorize(self, place)
        if name in self.subscriptions:
            members = None
            if kind.presence and self.push is None:
                # The client gets this worker's list of members, because this worker later sends changes of this list.
                members = await self.node.members(self.app, name, local_view=True)
            self.outlet.send(Subscribed(name, members))
            return False
        most = self.app.config.limits.subscriptions
        if most and len(self.subscriptions) >= most:
            raise LimitReached(403, f"a connection may have {most} subscriptions")
        request = await resuming.replay_request(self, command)
        self.subscriptions[name], joined = await self.node.subscribe(self.app, self, name, member, request)
        self.outlet.send(Subscribed(name, joined.members))
        resuming.send_earlier(self, kind, name, request, joined)
        return True

    async def _sign_in(self, command: SignIn) -> None:
        """Signs the client in as a user (Pusher protocol, section 5). Raises Refused."""
        identity = rights.to_sign_in(self, self.app.config, command)
        self.app.authorize(self, identity.place)
        channel = user_channel((user := identity.user).id)
        if self.user is not None:
            if channel not in self.subscriptions:
                await self.node.signins.hold(self.app, self, channel)
            self.outlet.send(SignedIn(identity.user_data))
            return
        topics, watched = await self.node.signins.sign_in(self.app, self, user, channel)
        self.user, self.topics = user, topics
        self.outlet.send(SignedIn(identity.user_data))
        if user.watchlist:
            self.outlet.send(watched)
        if identity.is_cut:
            limit = rights.MAX_WATCHLIST
            self.outlet.send(Failure(4302, f"a watchlist has at most {limit} users, the first {limit} are watched"))

    # Publishing

    async def _publish(self, command: Publish) -> None:
        """Publishes an event that the client has sent. Raises Refused, or Disconnect if a raw client publishes too fast."""
        channel = command.channel
        rights.to_publish(self, self.app.config, command, channel in self.subscriptions)
        most = self.app.config.limits.client_events if self.push is None else MAX_PUBLISHES
        if most:
            now = self.node.clock.monotonic()
            if self._events is None or self._events.rate != most:
                self._events = Bucket(most, now)
            if not self._events.take(now):
                if self.push is not None:
                    self.node.metrics.cut_offs["flood"] += 1
                    raise Disconnect(1008, f"more than {most} messages a second")
                raise Refused(429, f"more than {most} client events a second")
        node, data, member = self.node, command.data, self.subscriptions[channel].member
        if "publish" in self.app.backend_decides and self.app.backend_decides["publish"](channel):
            user_id = member.user_id if member is not None else self.user.id if self.user is not None else None
            data = await decisions.publish(node.hooks, self.app, self, command, user_id)
            if channel not in self.subscriptions:
                raise Refused(403, f"not subscribed to {channel[:200]}")
        self.app.counts.events_in[self.wire.name] += 1
        stamp = node.stamp()
        is_plain = command.delivery == "broadcast" and not command.target and not command.ttl
        published = node.publish(
            self.app,
            channel,
            command.event,
            data,
            stamp,
            self.id,
            self.id,
            DEFAULT_OPTIONS if is_plain else Options(command.ttl, command.delivery, command.target),
            None if member is None else member.user_id,
            command.headers,
        )
        if not isinstance(published, Published):
            await published
        if "client-event" in self.app.hook_kinds:
            node.reports.client_event(self.app, command, data, stamp, self.id, member)
