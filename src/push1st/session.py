"""One client, whatever it speaks: applies its commands in order, checks its rights and its limits. Knows no bytes.

Commands are applied one after another. One that waits (for a broker) holds back those behind it, up to `WAITING` of
them. A refused command is answered and the client stays, unless it keeps on: more than `PATIENCE` refusals a second
are a flood, and end the connection.
"""

import re
from collections import deque
from collections.abc import Iterable
from typing import Protocol

import msgspec

from push1st import auth
from push1st.channels import Kind, kind_of, pusher_name_error, reserved_event, wide_name_error
from push1st.eager import spawn
from push1st.errors import Disconnect, LimitReached, Refused
from push1st.hub import Lane, Wire, Write
from push1st.jsontext import string_size
from push1st.limits import Bucket
from push1st.messages import (
    Command,
    Failure,
    Member,
    Options,
    Ping,
    Pong,
    Publish,
    Reply,
    Subscribe,
    Subscribed,
    SubscriptionRefused,
    Unsubscribe,
)
from push1st.node import App, Node

WAITING = 1000
"""commands a client may have waiting"""
PATIENCE = 100
"""refused commands a second before a client is cut off"""
USER_BYTES = 1024
"""bytes of a presence member's `channel_data` (Pusher protocol, section 8)"""
USER_ID = re.compile(r"[A-Za-z0-9_\-=@,.;]{1,128}\Z")


class Outlet(Protocol):
    """The connection, as its session sees it."""

    def send(self, reply: Reply) -> None: ...

    def close(self, code: int, reason: str) -> None: ...

    def fail(self) -> None:
        """Ends the connection after a defect of ours: logs the trace of the exception being handled."""


class ChannelData(msgspec.Struct, gc=False):
    user_id: str | int
    user_info: msgspec.Raw = msgspec.Raw(b"null")


_channel_data = msgspec.json.Decoder(ChannelData)


class Session:
    """See the module. claims: rights from an access token, on protocols whose clients bring one (else None).

    push: the types of channels an event may be published to, on protocols whose clients publish freely; None where
    they send client events under Pusher's rules.
    """

    __slots__ = (
        "_busy",
        "_events",
        "_patience",
        "_queue",
        "app",
        "claims",
        "closed",
        "id",
        "ip",
        "members",
        "node",
        "outlet",
        "prefix",
        "push",
        "subscriptions",
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
    ) -> None:
        self.node = node
        self.app = app
        self.outlet = outlet
        self.wire = wire
        self.write = write
        self.ip = ip
        self.prefix = prefix
        self.claims = claims
        self.push = push
        self.id = node.new_id(prefix)
        self.subscriptions: dict[str, Lane] = {}
        self.members: dict[str, Member] | None = None
        self.closed = False
        self._busy = False
        self._queue: deque[Command] | None = None
        self._events: Bucket | None = None
        self._patience: Bucket | None = None
        node.connect(app, self)

    @property
    def lanes(self) -> Iterable[Lane]:
        return self.subscriptions.values()

    def disconnect(self, code: int, reason: str) -> None:
        self.outlet.close(code, reason)

    def close(self) -> None:
        """The connection has ended, whoever ended it."""
        if not self.closed:
            self.closed = True
            self._queue = None
            lanes, self.subscriptions = self.subscriptions, {}
            spawn(self._leave(lanes))

    async def _leave(self, lanes: dict[str, Lane]) -> None:
        await self.node.disconnect(self.app, self, lanes, self.members or {})

    # Commands

    def handle(self, command: Command) -> None:
        """Applies a command, behind those before it."""
        if self.closed:
            return
        if not self._busy:
            spawn(self._apply(command))
            return
        if self._queue is None:
            self._queue = deque()
        if len(self._queue) >= WAITING:
            self.node.metrics.cut_offs["queue-full"] += 1
            self.outlet.close(4100, f"more than {WAITING} commands are waiting")
            return
        self._queue.append(command)

    async def _apply(self, command: Command) -> None:
        self._busy = True
        while True:
            try:
                await self._one(command)
            except Refused as refused:
                self.refuse(refused)
            except Disconnect as end:
                self.outlet.close(end.code, end.reason)
            except Exception:
                self.outlet.fail()
            if not self._queue or self.closed:
                break
            command = self._queue.popleft()
        self._busy = False

    def refuse(self, refused: Refused) -> None:
        """Answers a bad command; cuts off who sends nothing else."""
        metrics = self.node.metrics
        metrics.refusals[str(refused.code)] += 1
        now = self.node.clock.monotonic()
        if self._patience is None:
            self._patience = Bucket(PATIENCE, now)
        if self._patience.take(now):
            self.outlet.send(Failure(refused.code, refused.text))
        else:
            metrics.cut_offs["flood"] += 1
            self.outlet.close(1008, "too many bad messages")

    async def _one(self, command: Command) -> None:
        match command:
            case Publish():
                await self._publish(command)
            case Subscribe():
                try:
                    await self._subscribe(command)
                except Refused as refused:
                    self._refuse_subscription(command.channel, refused)
            case Unsubscribe(channel):
                await self._unsubscribe(channel)
            case Ping():
                self.outlet.send(Pong())
            case Pong():
                pass

    # Subscribing

    def _refuse_subscription(self, channel: str, refused: Refused) -> None:
        if self.closed:
            return
        if isinstance(refused, LimitReached):
            kind = "LimitReached"
        else:
            kind = {401: "AuthError", 400: "Invalid"}.get(refused.code, "Forbidden")
        now = self.node.clock.monotonic()
        if self._patience is None:
            self._patience = Bucket(PATIENCE, now)
        if not self._patience.take(now):
            self.refuse(refused)
            return
        self.node.metrics.refusals[kind] += 1
        self.outlet.send(SubscriptionRefused(channel, kind, refused.text, refused.code))

    async def _subscribe(self, command: Subscribe) -> None:
        name = command.channel
        kind = self._permit(command)
        member = None
        if kind.presence and self.claims is None and self.push is None:
            member = self._member(command.channel_data)
        if name in self.subscriptions:
            members = await self.node.members(self.app, name) if member else None
            self.outlet.send(Subscribed(name, members))
            return
        most = self.app.config.limits.subscriptions
        if most and len(self.subscriptions) >= most:
            raise LimitReached(403, f"a connection may have {most} subscriptions")
        lane, members = await self.node.subscribe(self.app, self, name, member)
        self.subscriptions[name] = lane
        if member is not None:
            if self.members is None:
                self.members = {}
            self.members[name] = member
        self.outlet.send(Subscribed(name, members))

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
        wrong = pusher_name_error(name, config.limits.channel_name) if self.push is None else wide_name_error(name)
        if wrong:
            raise Refused(400, wrong)
        if name.startswith("#"):
            raise Refused(403, "channel names that begin with # are reserved")
        kind = kind_of(name)
        if kind.type not in config.channels and not (kind.type == "protected" and "private" in config.channels):
            raise Refused(403, f"this app has no {kind.type} channels")
        if not kind.needs_auth:
            return kind
        if self.push is not None:
            if self.claims is None or not self.claims.allows(name):
                raise Refused(401, f"no access token that allows {name}")
        elif not auth.check_channel(config.key, config.secret, self.id, name, command.auth, command.channel_data):
            raise Refused(401, f"the auth signature for {name} is wrong")
        return kind

    def _member(self, channel_data: str) -> Member:
        if len(channel_data) > USER_BYTES and len(channel_data.encode()) > USER_BYTES:
            raise Refused(413, f"channel_data is over {USER_BYTES} bytes")
        try:
            data = _channel_data.decode(channel_data)
        except (msgspec.DecodeError, RecursionError) as error:
            raise Refused(400, f'channel_data must be JSON with "user_id" and "user_info": {error}') from error
        user_id = str(data.user_id)
        if not USER_ID.match(user_id):
            raise Refused(400, "user_id must be 1 to 128 of A-Za-z0-9_-=@,.;")
        return Member(user_id, bytes(data.user_info).strip())

    async def _unsubscribe(self, name: str) -> None:
        if self.subscriptions.pop(name, None) is not None:
            member = self.members.pop(name, None) if self.members else None
            await self.node.unsubscribe(self.app, self, name, member)

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
        elif kind.type not in self.push and not (kind.type == "protected" and "private" in self.push):
            raise Refused(403, f"publishing to {kind.type} channels is not allowed here")
        if channel not in self.subscriptions:
            raise Refused(403, f"not subscribed to {channel[:200]}")
        if not event or len(event) > limits.event_name:
            raise Refused(400, f"an event name has 1 to {limits.event_name} characters")
        if reserved_event(event):
            raise Refused(400, "event names that begin with pusher: or pusher_internal: are reserved")
        # A decoded string is never longer than its JSON text.
        if len(command.data) > limits.payload and (size := string_size(command.data)) > limits.payload:
            raise Refused(413, f"data has {size} bytes, the limit is {limits.payload}")
        if limits.client_events:
            now = self.node.clock.monotonic()
            if self._events is None:
                self._events = Bucket(limits.client_events, now)
            if not self._events.take(now):
                raise Refused(429, f"more than {limits.client_events} events a second")
        member = self.members.get(channel) if self.members else None
        node = self.node
        node.metrics.events_in[self.wire.name] += 1
        await node.publish(
            self.app,
            channel,
            event,
            command.data,
            node.stamp(),
            sender=self.id,
            exclude=self.id,
            options=Options(0, command.delivery, command.target),
            user_id=member.user_id if member is not None else None,
        )
