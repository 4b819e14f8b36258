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

import msgspec

from push1st import auth
from push1st.channels import PUBLIC, RESERVED, Kind, covers, kind_of, pusher_name_error, user_id_error, wide_name_error
from push1st.core.hub import Lane, Wire, Write
from push1st.core.node import App, Node, SessionState
from push1st.core.outbox import AttachedConnection, Outbox
from push1st.eager import Suspended, spawn
from push1st.errors import Disconnect, LimitReached, Refused
from push1st.hooks import Decision
from push1st.hooks.events import Connecting, Publishing, Subscribing
from push1st.jsontext import decode, encode, string_size
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
    Reply,
    SignedIn,
    SignIn,
    Subscribe,
    Subscribed,
    SubscriptionRefused,
    Unsubscribe,
    User,
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
USER_BYTES = 1024
"""bytes of a presence member's `channel_data` (Pusher protocol, section 8)"""
WATCHLIST = 100
"""users a watchlist may name; the rest is left out, and the client told so (Pusher protocol, section 5)"""


class Outlet(Protocol):
    """The connection, as its session sees it."""

    def send(self, reply: Reply) -> None: ...

    def close(self, code: int, reason: str) -> None: ...

    def fail(self) -> None:
        """Ends the connection after a defect of ours: logs the trace of the exception being handled."""


class ChannelData(msgspec.Struct, gc=False):
    user_id: str | int
    user_info: msgspec.Raw = msgspec.Raw(b"null")


class UserData(msgspec.Struct, gc=False):
    id: str | int
    user_info: msgspec.Raw = msgspec.Raw(b"null")
    watchlist: list[str | int] | None = None


_user_data = msgspec.json.Decoder(UserData)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_channel_data = msgspec.json.Decoder(ChannelData)


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
        self.user: User | None = None
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
                await self._ask_to_connect(visitor)
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

    async def _ask_to_connect(self, visitor: ClientRequest) -> None:
        """Raises Refused when the app's backend does."""
        answer = await self.node.hooks.ask(
            Connecting(
                self.app.config.id,
                self.id,
                self.ip,
                visitor.query,
                visitor.origin,
                visitor.cookie,
                visitor.authorization,
            )
        )
        if answer.refused is None and answer.user_id is not None and not self.closed:
            if wrong := user_id_error(answer.user_id):
                raise Refused(400, wrong)
            self.topics, _ = await self.node.sign_in(self.app, self, user := User(answer.user_id, answer.user_info))
            self.user, self.authorized = user, True
        if not self.closed and answer.refused is not None:
            raise answer.refused

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
                        await self.node.count(self.app, command.channel)
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
        kind = self._permit(command)
        answer = None
        if name not in self.subscriptions and self._is_asked(name):
            answer = await self._ask_to_subscribe(command)
        member = None
        if kind.presence and self.claims is None and self.push is None:
            if answer is not None and answer.user_id is not None:
                member = Member(answer.user_id, answer.user_info)
            elif name not in self.subscriptions or not self._is_asked(name):
                member = self._member(command.channel_data)
            else:
                member = (self.members or {}).get(name)
        if kind.needs_auth:
            self.authorized = True
        if name in self.subscriptions:
            # Others than those whose coming and going it is told of would stay in its list, or be missing from it.
            members = await self.node.members(self.app, name, told=True) if kind.presence and self.push is None else None
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
            self.node.deliver_held(self.app, self)
        if kind.cache:
            self.outlet.send(self.node.replay(self.app, self, name, joined.kept))
        return True

    def _is_asked(self, channel: str) -> bool:
        """Whether the app's backend decides who may subscribe."""
        asked = self.app.asks.get("subscribe")
        return asked is not None and not channel.startswith("#") and bool(asked(channel))

    async def _ask_to_subscribe(self, command: Subscribe) -> Decision:
        """Raises Refused when the app's backend does."""
        user_id = None if self.user is None else self.user.id
        answer = await self.node.hooks.ask(
            Subscribing(self.app.config.id, self.id, self.ip, command.channel, command.channel_data, user_id)
        )
        if answer.refused is not None:
            raise answer.refused
        if answer.user_id is not None and (wrong := user_id_error(answer.user_id)):
            raise Refused(500, wrong)
        return answer

    def permits(self, channel: str) -> bool:
        """Whether a client that brings its rights in a token may subscribe."""
        try:
            self._permit(Subscribe(channel))
        except Refused:
            return False
        return True

    def _permit(self, command: Subscribe) -> Kind:
        """Raises Refused unless this client may subscribe to the channel."""
        name = command.channel
        config = self.app.config
        if name.startswith("#"):
            if self.user is not None and name == user_channel(self.user.id):
                return PUBLIC
            raise Refused(403, "channel names that begin with # are reserved")
        wrong = pusher_name_error(name, config.limits.channel_name) if self.push is None else wide_name_error(name)
        if wrong:
            raise Refused(400, wrong)
        kind = kind_of(name)
        if not covers(config.channels, kind):
            raise Refused(403, f"this app has no {kind.type} channels")
        if not kind.needs_auth or self._is_asked(name):
            return kind
        if self.push is not None:
            if self.claims is None or not self.claims.allows(name):
                raise Refused(401, f"no access token that allows {name}")
        elif not auth.check_channel(config.key, config.secret, self.id, name, command.auth, command.channel_data):
            signed = f"{self.id}:{name}:channel_data" if command.channel_data else f"{self.id}:{name}"
            raise Refused(401, f"Invalid signature: auth must be the app key, a colon and the HMAC SHA256 in hex of {signed}")
        return kind

    def _member(self, channel_data: str) -> Member | None:
        """Returns the member of a subscription; None if it has no user and needs none (`lenient`).

        Raises Refused if the member exceeds the limits (Pusher protocol, section 8).
        """
        user = self.user if not channel_data else None  # without channel_data it is the signed-in user (section 3)
        if (len(channel_data.encode()) if user is None else len(user.info)) > USER_BYTES:
            raise Refused(413, f"channel_data is over {USER_BYTES} bytes")
        if user is not None:
            member = Member(user.id, user.info)
        else:
            try:
                data = decode(_channel_data, channel_data)
            except (msgspec.DecodeError, RecursionError) as error:
                if self.lenient:
                    return None
                raise Refused(400, f'channel_data must be JSON with "user_id" and "user_info": {error}') from error
            member = Member(str(data.user_id), bytes(data.user_info).strip())
        wrong = user_id_error(member.user_id)
        if wrong and not self.lenient:
            raise Refused(400, wrong)
        return None if wrong else member

    async def _unsubscribe(self, name: str) -> None:
        if name in self.subscriptions:
            member = self.members.pop(name, None) if self.members else None
            await self.node.unsubscribe(self.app, self, name, member, self.subscriptions)

    # Signing in

    async def _sign_in(self, command: SignIn) -> None:
        """Pusher protocol, section 5."""
        config = self.app.config
        if not auth.check_user(config.key, config.secret, self.id, command.user_data, command.auth):
            signed = f"{self.id}::user::user_data"
            raise Refused(401, f"Invalid signature: auth must be the app key, a colon and the HMAC SHA256 in hex of {signed}")
        try:
            data = decode(_user_data, command.user_data)
        except (msgspec.DecodeError, RecursionError) as exc:
            raise Refused(400, f'user_data must be JSON with "id", a text or a whole number: {exc}') from exc
        id = str(data.id)
        if wrong := user_id_error(id):
            raise Refused(400, wrong)
        channel = user_channel(id)
        signed_in = SignedIn(command.user_data if isinstance(data.id, str) else _with_id(command.user_data, id))
        if self.user is not None:
            if self.user.id != id:
                raise Refused(401, f"this connection is signed in as {self.user.id!r} already")
            if channel not in self.subscriptions:
                await self.node.hold(self.app, self, channel)
            self.outlet.send(signed_in)
            return
        wanted = list(dict.fromkeys(map(str, data.watchlist or ())))
        watchlist = tuple(one for one in wanted[:WATCHLIST] if not user_id_error(one))
        user = User(id, bytes(data.user_info).strip(), watchlist)
        topics, watched = await self.node.sign_in(self.app, self, user, channel)
        self.user, self.topics, self.authorized = user, topics, True
        self.outlet.send(signed_in)
        if watchlist:
            self.outlet.send(watched)
        if len(wanted) > WATCHLIST:
            self.outlet.send(Failure(4302, f"a watchlist has at most {WATCHLIST} users, the first {WATCHLIST} are watched"))

    # Publishing

    async def _publish(self, command: Publish) -> None:
        config = self.app.config
        limits = config.limits
        channel, event = command.channel, command.event
        kind = kind_of(channel)
        if self.push is None:
            if not config.client_messages:
                raise Refused(403, "client events are not enabled for this app")
            if not kind.needs_auth:
                raise Refused(403, "client events are for private and presence channels")
            if kind.encrypted:
                raise Refused(403, "client events are not allowed on encrypted channels: they would be delivered unencrypted")
        elif not covers(self.push, kind):
            raise Refused(403, f"publishing to {kind.type} channels is not allowed here")
        if channel not in self.subscriptions:
            raise Refused(403, f"not subscribed to {channel[:200]}")
        if not event or len(event) > limits.event_name:
            raise Refused(400, f"an event name has 1 to {limits.event_name} characters")
        if event.startswith(RESERVED):
            raise Refused(400, "event names that begin with pusher: or pusher_internal: are reserved")
        # A decoded string is never longer than its JSON text.
        if len(command.data) > limits.payload and (size := string_size(command.data)) > limits.payload:
            raise Refused(413, f"data has {size} bytes, the limit is {limits.payload}")
        most = limits.client_events if self.push is None else PUBLISHES
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
        if "publish" in self.app.asks and self.app.asks["publish"](channel):
            data = await self._ask_to_publish(command, member)
        node = self.node
        node.metrics.events_in[self.wire.name] += 1
        stamp = node.stamp()
        soon = node.publish(
            self.app,
            channel,
            event,
            data,
            stamp,
            sender=self.id,
            exclude=self.id,
            options=Options(0, command.delivery, command.target),
            user_id=member.user_id if member is not None else None,
            headers=command.headers,
        )
        if not isinstance(soon, int):
            await soon
        if "client-event" in self.app.reported:
            node.report_event(self.app, command, data, stamp, self.id, member)

    async def _ask_to_publish(self, command: Publish, member: Member | None) -> bytes:
        """The data to publish. Raises Refused when the app's backend does, or when the client has left meanwhile."""
        user_id = member.user_id if member is not None else self.user.id if self.user is not None else None
        config = self.app.config
        answer = await self.node.hooks.ask(
            Publishing(config.id, self.id, self.ip, command.channel, command.event, msgspec.Raw(command.data), user_id)
        )
        if answer.refused is not None:
            raise answer.refused
        if command.channel not in self.subscriptions:
            raise Refused(403, f"not subscribed to {command.channel[:200]}")
        data = command.data if answer.data is None else answer.data
        if string_size(data) > config.limits.payload:
            raise Refused(413, f"data has {string_size(data)} bytes, the limit is {config.limits.payload}")
        return data


def _with_id(user_data: str, id: str) -> str:
    """Returns user data with the id as a text, because pusher-js drops a sign-in with any other id."""
    fields = decode(_fields, user_data) | {"id": msgspec.Raw(encode(id))}
    return encode(fields).decode()


def _close_code(code: int) -> int:
    """Returns the close code for a client that the app's backend rejected.

    During the handshake pusher-js reconnects without a pause after 4200 to 4299; after 4100 it waits a second.
    """
    if code == 503 or 4200 <= code < 4300:
        return 4100
    return code if code >= 4000 else 4009
