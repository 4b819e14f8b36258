"""One client, whatever its protocol: applies its commands in order, checks its rights and its limits. Knows no bytes.

A session begins with its first connection. `detach` ends it with that connection, unless the session has an outbox
(`core/outbox.py`). With an outbox the session stays subscribed, and keeps what is due to it until `attach` or `expire`.

Commands are applied one after another. A command that waits (for a broker) holds back the commands after it, at most `WAITING`.
A transport that can stop reading stops earlier. A refused command is answered, and the client stays connected. More than
`PATIENCE` refusals a second are a flood, and end the connection, unless the commands are only too fast or the broker is away.
"""

from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, Protocol

from push1st import auth
from push1st.channels import user_id_error
from push1st.core import decisions, rights
from push1st.core.app import App
from push1st.core.hub import Lane, Wire, Write
from push1st.core.node import Node, SessionState
from push1st.core.outbox import AttachedConnection, Outbox
from push1st.eager import Suspended, spawn
from push1st.errors import Disconnect, LimitReached, Refused
from push1st.limits import Bucket
from push1st.messages import (
    ClientRequest,
    Command,
    Failure,
    Member,
    Options,
    Ping,
    Pong,
    Publish,
    Published,
    Reply,
    SignedIn,
    SignedInUser,
    SignIn,
    Subscribe,
    Subscribed,
    SubscriptionRefused,
    Unsubscribe,
    user_channel,
)

WAITING = 1000
"""commands a client may have waiting"""
PATIENCE = 100
"""refused commands a second before a client is cut off"""
MAX_CHARGES = 100
"""charges a second (`Session.charge`) that a client may cause in the long run"""
CHARGE_SECONDS = 60
"""a client may use the charges of this many seconds at once"""
PUBLISHES = 1000
"""events a second from a client that may publish freely (Push1st has no such limit): more is a flood"""


class Outlet(Protocol):
    """The connection, as its session sees it."""

    def send(self, reply: Reply) -> None: ...

    def close(self, code: int, reason: str) -> None: ...

    def fail(self) -> None:
        """Ends the connection after a defect of ours: logs the trace of the exception being handled."""


class Session:
    """See the module.

    outlet: the connection, or the owner of the outbox. write: takes the output of the fan-out: the connection's `write`, or the
    outbox's. outbox: for a session that outlives its connections.

    claims: rights from an access token, on protocols whose clients bring one (else None).

    push: the types of channels an event may be published to, on protocols whose clients publish freely; None where
    they send client events under Pusher's rules.

    lenient: whether a client may subscribe to a presence channel without a user, as in Push1st. The client then receives the
    channel's events, but is not a member.
    """

    __slots__ = (
        "_asked",
        "_busy",
        "_charged",
        "_events",
        "_patience",
        "_when_idle",
        "app",
        "authorized",
        "claims",
        "closed",
        "id",
        "ip",
        "lenient",
        "members",
        "node",
        "outbox",
        "outlet",
        "push",
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
        self.id = node.new_id(prefix)
        self.subscriptions: dict[str, Lane] = {}
        self.members: dict[str, Member] | None = None
        self.user: SignedInUser | None = None
        self.topics: dict[str, Lane] | None = None
        self.authorized = False
        """whether it has signed in, or joined a channel that needs a signature"""
        self.closed = False
        self._busy = False
        self._charged = 0.0
        self.waiting: deque[Command] | None = None
        """commands after a command that waits"""
        self._when_idle: Callable[[], None] | None = None
        self._events: Bucket | None = None
        self._patience: Bucket | None = None
        self._asked = node.connect(app, self)

    @property
    def prefix(self) -> str:
        """The part of the id that the client chose; "" without one."""
        return self.id.rpartition(".")[0].rpartition(".")[0]

    @property
    def lanes(self) -> Collection[Lane]:
        return self.subscriptions.values() if self.topics is None else (*self.subscriptions.values(), *self.topics.values())

    def disconnect(self, code: int, reason: str) -> None:
        self.outlet.close(code, reason)

    def mute(self, write: Write) -> None:
        """Discards output from now on, because the connection is lost but its last commands are not applied yet.

        write: discards frames.
        """
        self.write = write
        lanes = self.lanes
        self.node.fanout.forget(self, lanes)
        for lane in lanes:
            lane.writes[self] = write

    # Connections

    def attach(self, connection: AttachedConnection[Any]) -> None:
        """Sends what the outbox kept on a new connection, and then all that follows. The session must have an outbox."""
        assert self.outbox is not None
        self.outbox.attach(connection)

    def detach(self, until: float = 0) -> None:
        """Handles the end of the connection: the outbox keeps what follows. Without an outbox the session expires now.

        until: when the session expires, in seconds on the node's `Clock.monotonic`. The owner of the outbox calls `expire` then.
        A time that is over expires the session now.
        """
        outbox = self.outbox
        if outbox is not None:
            outbox.detach(until)
            if until > self.node.clock.monotonic():
                return
        self.expire()

    def expire(self) -> None:
        """Ends the session: it leaves its channels, and takes no command any more.

        The outbox stays with its owner, which may have a last answer for the client's next request.
        """
        if not self.closed:
            self.closed = True
            self.waiting = None
            left = SessionState(self.subscriptions, self.members or {}, self.topics or {}, self.user)
            self.subscriptions, self.topics = {}, None
            spawn(self.node.disconnect(self.app, self, left))
            asked, self._asked = self._asked, None
            if asked is not None:
                spawn(self._withdraw(asked))

    async def _withdraw(self, asked: Suspended[bool]) -> None:
        """Waits until the broker has counted a connection, and takes it out of the count: it was rejected in the meantime."""
        with suppress(Disconnect):
            await self.node.admit(self.app, self, asked)

    def enter(self, visitor: ClientRequest, let_in: Callable[[], None]) -> None:
        """Calls `let_in` as soon as the client is in: now, or when the broker has counted it and the app's backend agreed.

        Commands wait for that.
        """
        if self._asked is None and "connect" not in self.app.asks:
            let_in()
            return
        self._busy = True
        spawn(self._enter(visitor, let_in))

    async def _enter(self, visitor: ClientRequest, let_in: Callable[[], None]) -> None:
        try:
            if self._asked is not None:
                asked, self._asked = self._asked, None
                await self.node.admit(self.app, self, asked)
            if "connect" in self.app.asks and not self.closed:
                await self._request_connect(visitor)
            if not self.closed:
                let_in()
        except Disconnect as end:
            if not self.closed:
                self.node.metrics.refusals[str(end.code)] += 1
                self.outlet.close(end.code, end.reason)
        except Refused as refused:
            self.node.metrics.cut_offs["refused-by-app"] += 1
            self.outlet.close(_close_code(refused.code), refused.text)
        except Exception:
            self.outlet.fail()
        if self.waiting and not self.closed:
            await self._apply(self.waiting.popleft())
        else:
            self._rest()

    async def _request_connect(self, visitor: ClientRequest) -> None:
        """Raises Refused if the app's backend rejects the client."""
        decision = await decisions.connect(self.node.hooks, self.app, self, visitor)
        if decision.refused is None and decision.user_id is not None and not self.closed:
            if error := user_id_error(decision.user_id):
                raise Refused(400, error)
            user = SignedInUser(decision.user_id, decision.user_info)
            self.topics, _ = await self.node.signins.sign_in(self.app, self, user)
            self.user, self.authorized = user, True
        if not self.closed and decision.refused is not None:
            raise decision.refused

    # Commands

    def handle(self, command: Command) -> None:
        """Applies a command, behind those before it."""
        if self.closed:
            return
        if not self._busy:
            spawn(self._apply(command))
            return
        if self.waiting is None:
            self.waiting = deque()
        if len(self.waiting) >= WAITING:
            self.node.metrics.cut_offs["queue-full"] += 1
            self.outlet.close(4100, f"more than {WAITING} commands are waiting")
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
        self._rest()

    def _rest(self) -> None:
        self._busy = False
        if self._when_idle is not None:
            run, self._when_idle = self._when_idle, None
            run()

    def is_busy(self, when_idle: Callable[[], None]) -> bool:
        """Returns whether a command waits. If so, `when_idle` is called once, when no command waits any more."""
        if self._busy:
            self._when_idle = when_idle
        return self._busy

    def refuse(self, refused: Refused, failure: Failure | None = None) -> None:
        """Answers a bad command, with `failure` if it is given; disconnects a client that sends too many bad commands."""
        metrics = self.node.metrics
        metrics.refusals[str(refused.code)] += 1
        self._log("command refused", refused, failure.channel if failure is not None else None)
        if self._is_patient():
            self.outlet.send(failure or Failure(refused.code, refused.text, refused.channel))
        # Who only sends good events too fast stays (Pusher protocol, section 4), or while the broker is away: unanswered.
        elif refused.code in (429, 503):
            self.charge()
        else:
            metrics.cut_offs["flood"] += 1
            self.outlet.close(1008, "too many bad messages")

    def _log(self, event: str, refused: Refused, channel: str | None) -> None:
        where = {"channel": channel, "app": self.app.config.id, "socket_id": self.id, "ip": self.ip}
        self.node.refusals.log(event, refused.code, refused.text, **where)

    def log_end(self, code: int, reason: str) -> None:
        """Logs that the server ends the connection, unless the server is draining."""
        if not self.node.draining:
            self.node.refusals.log("connection closed", code, reason, app=self.app.config.id, socket_id=self.id, ip=self.ip)

    def charge(self) -> None:
        """Charges the client for a command or frame that costs the server time and has no lasting effect.

        These are pings and pongs, small fragments, unsubscribing, subscribing again, signing in, and rejected events that are
        not answered any more. No other limit bounds them. Disconnects a client that sends more than `MAX_CHARGES` a second for
        long. New subscriptions are not charged: `limits.subscriptions` bounds them.
        """
        if self.closed:
            return
        now = self.node.clock.monotonic()
        # A token bucket as one number (the time at which it is full again), because nearly every client needs one.
        self._charged = max(self._charged, now) + 1 / MAX_CHARGES
        if self._charged > now + CHARGE_SECONDS:
            self.node.metrics.cut_offs["flood"] += 1
            self.outlet.close(1008, f"more than {MAX_CHARGES} pings or commands without effect a second")

    def _is_patient(self) -> bool:
        now = self.node.clock.monotonic()
        if self._patience is None:
            self._patience = Bucket(PATIENCE, now)
        return self._patience.take(now)

    async def _one(self, command: Command) -> None:
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
                await self._unsubscribe(channel)
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
                self.charge()

    # Subscribing

    def _refuse_subscription(self, channel: str, refused: Refused) -> None:
        if self.closed:
            return
        if isinstance(refused, LimitReached):
            kind = "LimitReached"
        else:
            kind = {401: "AuthError", 400: "Invalid", 503: "Unavailable"}.get(refused.code, "Forbidden")
        if not self._is_patient():
            self.refuse(refused)
            return
        self.node.metrics.refusals[kind] += 1
        self._log("subscription refused", refused, channel)
        self.outlet.send(SubscriptionRefused(channel, kind, refused.text, refused.code))
        if self.push is not None and not self.subscriptions and not self.waiting:
            self.outlet.close(1008, "no channel to subscribe to: the app's backend allowed none")

    async def _subscribe(self, command: Subscribe) -> bool:
        """Whether the client was not subscribed to the channel already."""
        name = command.channel
        kind = rights.to_subscribe(self, self.app.config, command, self.app.asks.get("subscribe"))
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
                member = (self.members or {}).get(name)
        if kind.needs_auth:
            self.authorized = True
        if name in self.subscriptions:
            # Others than those whose coming and going it is told of would stay in its list, or be missing from it.
            members = await self.node.members(self.app, name, local_view=True) if kind.presence and self.push is None else None
            self.outlet.send(Subscribed(name, members))
            return False
        most = self.app.config.limits.subscriptions
        if most and len(self.subscriptions) >= most:
            raise LimitReached(403, f"a connection may have {most} subscriptions")
        lane, joined = await self.node.subscribe(self.app, self, name, member)
        self.subscriptions[name] = lane
        if member is not None:
            if self.members is None:
                self.members = {}
            self.members[name] = member
        self.outlet.send(Subscribed(name, joined.members))
        if name.startswith("#"):
            self.node.signins.deliver_held(self.app, self)
        if kind.cache:
            self.outlet.send(self.node.replay(self.app, self, name, joined.cached))
        return True

    def permits(self, channel: str) -> bool:
        """Whether a client that brings its rights in a token may subscribe."""
        try:
            rights.to_subscribe(self, self.app.config, Subscribe(channel), self.app.asks.get("subscribe"))
        except Refused:
            return False
        return True

    async def _unsubscribe(self, name: str) -> None:
        if name in self.subscriptions:
            member = self.members.pop(name, None) if self.members else None
            await self.node.unsubscribe(self.app, self, name, member, self.subscriptions)

    # Signing in

    async def _sign_in(self, command: SignIn) -> None:
        """Pusher protocol, section 5."""
        identity = rights.to_sign_in(self, self.app.config, command)
        user = identity.user
        channel = user_channel(user.id)
        if self.user is not None:
            if channel not in self.subscriptions:
                await self.node.signins.hold(self.app, self, channel)
            self.outlet.send(SignedIn(identity.user_data))
            return
        topics, watched = await self.node.signins.sign_in(self.app, self, user, channel)
        self.user, self.topics, self.authorized = user, topics, True
        self.outlet.send(SignedIn(identity.user_data))
        if user.watchlist:
            self.outlet.send(watched)
        if identity.is_cut:
            limit = rights.WATCHLIST
            self.outlet.send(Failure(4302, f"a watchlist has at most {limit} users, the first {limit} are watched"))

    # Publishing

    async def _publish(self, command: Publish) -> None:
        config = self.app.config
        channel = command.channel
        rights.to_publish(self, config, command, channel in self.subscriptions)
        most = config.limits.client_events if self.push is None else PUBLISHES
        if most:
            now = self.node.clock.monotonic()
            if self._events is None:
                self._events = Bucket(most, now)
            if not self._events.take(now):
                if self.push is not None:
                    self.node.metrics.cut_offs["flood"] += 1
                    raise Disconnect(1008, f"more than {most} messages a second")
                raise Refused(429, f"more than {most} client events a second")
        member = self.members.get(channel) if self.members else None
        data = command.data
        node = self.node
        if "publish" in self.app.asks and self.app.asks["publish"](channel):
            user_id = member.user_id if member is not None else self.user.id if self.user is not None else None
            data = await decisions.publish(node.hooks, self.app, self, command, user_id)
            if channel not in self.subscriptions:
                raise Refused(403, f"not subscribed to {channel[:200]}")
        node.metrics.events_in[self.wire.name] += 1
        stamp = node.stamp()
        published = node.publish(
            self.app,
            channel,
            command.event,
            data,
            stamp,
            sender=self.id,
            exclude=self.id,
            options=Options(0, command.delivery, command.target),
            user_id=member.user_id if member is not None else None,
            headers=command.headers,
        )
        if not isinstance(published, Published):
            await published
        if "client-event" in self.app.reported:
            node.reports.client_event(self.app, command, data, stamp, self.id, member)


def _close_code(code: int) -> int:
    """Returns the close code for a client that the app's backend rejected.

    During the handshake pusher-js reconnects without a pause after 4200 to 4299; after 4100 it waits a second.
    """
    if code == 503 or 4200 <= code < 4300:
        return 4100
    return code if code >= 4000 else 4009
