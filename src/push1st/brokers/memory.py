"""Broker, roster, users and hook events of a single worker: nothing to start, nothing to wait for."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from push1st.brokers import KEEP_SECONDS, Answer, Joined, Kept, Occupancy, OnEvent, Receive, Recount, keeps
from push1st.channels import kind_of
from push1st.errors import LimitReached
from push1st.messages import HookEvent, HookEventKind, Member, Message, Published, member_added, member_removed, status_changed

MAX_KEPT = 10_000
MAX_KEPT_BYTES = 64 << 20
"""cache channels, and bytes of their events' data, that are kept; the least recently published go first"""


class Seat:
    """A user on a presence channel, and the connections by which it is there."""

    __slots__ = ("member", "sockets")

    def __init__(self, member: Member) -> None:
        self.member = member
        self.sockets: set[str] = set()


class Room:
    """A channel somebody is on."""

    __slots__ = ("seats", "subscriptions")

    def __init__(self) -> None:
        self.subscriptions = 0
        self.seats: dict[str, Seat] = {}


class Memory:
    """Broker, roster, users and hook events in one.

    stamp: returns an id and a time (wall clock, nanoseconds) for a message that the broker makes.
    """

    shared = False

    def __init__(self, stamp: Callable[[], tuple[int, int]]) -> None:
        self._stamp = stamp
        self._rooms: dict[str, dict[str, Room]] = {}
        self._users: dict[str, dict[str, set[str]]] = {}
        self._kept: OrderedDict[tuple[str, str], Message] = OrderedDict()
        self._kept_bytes = 0
        self._receive: Receive = lambda _: 0
        self._on_event: OnEvent = lambda _: None
        self._answer: Answer = lambda *_: b""
        self._claims: dict[tuple[str, str], int] = {}
        self._connections: dict[str, int] = {}

    async def open(self, receive: Receive, on_event: OnEvent, answer: Answer, recount: Recount) -> None:
        self._receive, self._on_event, self._answer = receive, on_event, answer

    def report(self, event: HookEvent) -> None:
        self._on_event(event)

    def _edge(self, kind: HookEventKind, app: str, channel: str, socket_id: str, member: Member | None = None) -> None:
        user_id, info = (None, b"null") if member is None else (member.user_id, member.info)
        self._on_event(HookEvent(kind, app, channel, self._stamp()[1], socket_id, user_id, info))

    async def close(self) -> None:
        self._rooms.clear()
        self._users.clear()
        self._kept.clear()

    async def subscribe(self, app: str, channel: str) -> None:
        pass

    async def unsubscribe(self, app: str, channel: str) -> None:
        pass

    def publish(self, message: Message) -> Published:
        if "cache-" in message.channel and keeps(message):
            self._keep(message)
        return Published(self._receive(message))

    def _keep(self, message: Message) -> None:
        key = message.app, message.channel
        self._drop(key)
        self._kept[key] = message
        self._kept_bytes += len(message.data)
        while len(self._kept) > MAX_KEPT or self._kept_bytes > MAX_KEPT_BYTES:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: tuple[str, str]) -> None:
        message = self._kept.pop(key, None)
        if message is not None:
            self._kept_bytes -= len(message.data)

    async def last(self, app: str, channel: str) -> Kept | None:
        message = self._kept.get((app, channel))
        if message is None:
            return None
        ttl = KEEP_SECONDS - (self._stamp()[1] - message.received) // 1_000_000_000
        if ttl <= 0:
            self._drop((app, channel))
            return None
        return Kept(message, ttl)

    async def ask(self, app: str, channel: str, question: bytes) -> Sequence[bytes]:
        return (self._answer(app, channel, question),)

    async def join(self, app: str, channel: str, socket_id: str, member: Member | None, most: int) -> Joined:
        rooms = self._rooms.setdefault(app, {})
        room = rooms.get(channel)
        if room is None:
            room = rooms[channel] = Room()
            self._edge("occupied", app, channel, socket_id)
        if member is not None:
            seat = room.seats.get(member.user_id)
            if seat is None:
                if most and len(room.seats) >= most:
                    raise LimitReached(403, f"{channel} has {most} members, which is this app's limit")
                seat = room.seats[member.user_id] = Seat(member)
                self._receive(member_added(app, channel, member, *self._stamp(), exclude=socket_id))
                self._edge("member-added", app, channel, socket_id, member)
            seat.sockets.add(socket_id)
        room.subscriptions += 1
        members = tuple(seat.member for seat in room.seats.values()) if kind_of(channel).presence else None
        return Joined(members, await self._kept_of(app, channel))

    async def _kept_of(self, app: str, channel: str) -> Kept | None:
        return await self.last(app, channel) if "cache-" in channel else None

    async def leave(self, app: str, channel: str, socket_id: str, user_id: str | None) -> None:
        rooms = self._rooms.get(app, {})
        room = rooms.get(channel)
        if room is None:
            return
        if user_id is not None:
            seat = room.seats.get(user_id)
            if seat is None or socket_id not in seat.sockets:
                return
            seat.sockets.remove(socket_id)
            if not seat.sockets:
                del room.seats[user_id]
                self._receive(member_removed(app, channel, user_id, *self._stamp(), exclude=socket_id))
                self._edge("member-removed", app, channel, socket_id, seat.member)
        room.subscriptions -= 1
        if room.subscriptions <= 0:
            del rooms[channel]
            self._claims.pop((app, channel), None)
            self._edge("vacated", app, channel, socket_id)

    async def channels(self, app: str, prefix: str = "") -> Sequence[Occupancy]:
        rooms = self._rooms.get(app, {})
        return [
            Occupancy(name, room.subscriptions, len(room.seats))
            for name, room in sorted(rooms.items())
            if name.startswith(prefix)
        ]

    async def channel(self, app: str, channel: str) -> Occupancy | None:
        room = self._rooms.get(app, {}).get(channel)
        return None if room is None else Occupancy(channel, room.subscriptions, len(room.seats))

    async def members(self, app: str, channel: str, *, local_view: bool = False) -> tuple[Member, ...]:
        room = self._rooms.get(app, {}).get(channel)
        return () if room is None else tuple(seat.member for seat in room.seats.values())

    async def claim(self, app: str, channel: str, seconds: int) -> bool:
        key, now = (app, channel), self._stamp()[1]
        if now < self._claims.get(key, 0):
            return False
        self._claims[key] = now + seconds * 1_000_000_000
        return True

    async def connect(self, app: str, most: int) -> bool:
        count = self._connections.get(app, 0)
        if most and count >= most:
            return False
        self._connections[app] = count + 1
        return True

    async def disconnect(self, app: str) -> None:
        self._connections[app] -= 1

    async def sign_in(self, app: str, user_id: str, socket_id: str) -> None:
        sockets = self._users.setdefault(app, {}).setdefault(user_id, set())
        if not sockets:
            self._receive(status_changed(app, user_id, True, *self._stamp(), exclude=socket_id))
        sockets.add(socket_id)

    async def sign_out(self, app: str, user_id: str, socket_id: str) -> None:
        users = self._users.get(app, {})
        sockets = users.get(user_id)
        if sockets is None or socket_id not in sockets:
            return
        sockets.remove(socket_id)
        if not sockets:
            del users[user_id]
            self._receive(status_changed(app, user_id, False, *self._stamp(), exclude=socket_id))

    async def online(self, app: str, user_ids: Sequence[str]) -> frozenset[str]:
        users = self._users.get(app, {})
        return frozenset(user_id for user_id in user_ids if user_id in users)
