"""The broker and the roster of a single worker: nothing to start, nothing to wait for."""

from collections.abc import Callable, Sequence

from push1st.brokers import Occupancy, Receive
from push1st.errors import LimitReached
from push1st.messages import Member, Message, member_added, member_removed


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
    """Broker and roster in one. stamp: the id and the time (wall clock, nanoseconds) of a message made here."""

    def __init__(self, stamp: Callable[[], tuple[int, int]]) -> None:
        self._stamp = stamp
        self._rooms: dict[str, dict[str, Room]] = {}
        self._receive: Receive = lambda _: 0

    async def open(self, receive: Receive) -> None:
        self._receive = receive

    async def close(self) -> None:
        self._rooms.clear()

    async def subscribe(self, app: str, channel: str) -> None:
        pass

    async def unsubscribe(self, app: str, channel: str) -> None:
        pass

    async def publish(self, message: Message) -> int:
        return self._receive(message)

    async def join(self, app: str, channel: str, socket_id: str, member: Member | None, most: int) -> tuple[Member, ...] | None:
        rooms = self._rooms.setdefault(app, {})
        room = rooms.get(channel)
        if room is None:
            room = rooms[channel] = Room()
        if member is None:
            room.subscriptions += 1
            return None
        seat = room.seats.get(member.user_id)
        if seat is None:
            if most and len(room.seats) >= most:
                raise LimitReached(403, f"{channel} has {most} members, which is this app's limit")
            seat = room.seats[member.user_id] = Seat(member)
            self._receive(member_added(app, channel, member, *self._stamp(), exclude=socket_id))
        seat.sockets.add(socket_id)
        room.subscriptions += 1
        return tuple(seat.member for seat in room.seats.values())

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
        room.subscriptions -= 1
        if room.subscriptions <= 0:
            del rooms[channel]

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

    async def members(self, app: str, channel: str) -> tuple[Member, ...]:
        room = self._rooms.get(app, {}).get(channel)
        return () if room is None else tuple(seat.member for seat in room.seats.values())
