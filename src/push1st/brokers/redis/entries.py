"""What this node has in a shard: its clients' subscriptions, members, users and connections. The truth; pure.

The broker's copy is a hash of fields (`scripts.py`, `BASE:n:NODE`); `differences` says what is wrong with it.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from push1st.brokers.redis.keys import ChannelKey, UserKey
from push1st.messages import Member


class Seat:
    """A user on a presence channel, and this node's connections by which it is there. let: as in `Room`."""

    __slots__ = ("let", "member", "sockets")

    def __init__(self, member: Member) -> None:
        self.member = member
        self.let = False
        self.sockets: set[str] = set()


class Room:
    """A channel somebody on this node is on. let: whether the broker has said so of anybody since it was empty here."""

    __slots__ = ("let", "seats", "subscriptions")

    def __init__(self) -> None:
        self.subscriptions = 0
        self.let = False
        self.seats: dict[str, Seat] = {}


NOBODY = Member("")


class Difference(NamedTuple):
    """Something the broker does not have as it is here. member: who is missing there; user_id: who is no more here."""

    what: Literal["more", "less", "signed in", "signed out", "connections"]
    app: str
    channel: str = ""
    user_id: str = ""
    member: Member | None = None


class Entries:
    def __init__(self) -> None:
        self._rooms: dict[ChannelKey, Room] = {}
        self._users: dict[UserKey, set[str]] = {}
        self._confirmed: set[UserKey] = set()
        """users signed in here whose sign-in the broker has confirmed"""
        self._connections: dict[str, int] = {}

    # Channels

    def join(self, key: ChannelKey, socket_id: str, member: Member | None) -> bool:
        """Adds a subscription, to be followed by `joined` or `leave`; says whether it is the first one of its channel."""
        room = self._rooms.get(key)
        first = room is None
        if room is None:
            room = self._rooms[key] = Room()
        room.subscriptions += 1
        if member is not None:
            seat = room.seats.get(member.user_id)
            if seat is None:
                seat = room.seats[member.user_id] = Seat(member)
            seat.sockets.add(socket_id)
        return first

    def joined(self, key: ChannelKey, user_id: str | None) -> None:
        """The broker has let a subscription be."""
        room = self._rooms[key]
        room.let = True
        if user_id is not None:
            room.seats[user_id].let = True

    def leave(self, key: ChannelKey, socket_id: str, user_id: str | None) -> Member | None:
        """Takes a subscription off. Who is on the channel no more, or NOBODY; None when there was nothing to take off."""
        room = self._rooms.get(key)
        if room is None:
            return None
        gone = NOBODY
        if user_id is not None:
            seat = room.seats.get(user_id)
            if seat is None or socket_id not in seat.sockets:
                return None
            seat.sockets.discard(socket_id)
            if not seat.sockets:
                del room.seats[user_id]
                gone = seat.member
        room.subscriptions -= 1
        if room.subscriptions <= 0:
            del self._rooms[key]
        return gone

    def subscriptions(self, key: ChannelKey) -> int:
        room = self._rooms.get(key)
        return 0 if room is None else room.subscriptions

    def has(self, key: ChannelKey, user_id: str | None = None) -> bool:
        """Whether somebody, or this user, is on a channel by a connection of this node, and the broker has let them be."""
        room = self._rooms.get(key)
        if room is None or user_id is None:
            return room is not None and room.let
        seat = room.seats.get(user_id)
        return seat is not None and seat.let

    def members(self, key: ChannelKey) -> dict[str, Member]:
        """Returns the confirmed members of a channel that have connections on this node, by user id."""
        room = self._rooms.get(key)
        seats = {} if room is None else room.seats
        return {user_id: seat.member for user_id, seat in seats.items() if seat.let}

    def alone(self, key: ChannelKey) -> dict[str, str]:
        """The users on a channel that have a single connection here, and that connection."""
        room = self._rooms.get(key)
        seats = {} if room is None else room.seats
        return {user_id: next(iter(seat.sockets)) for user_id, seat in seats.items() if len(seat.sockets) == 1}

    # Users, and connections of apps

    def sign_in(self, key: UserKey, socket_id: str) -> None:
        self._users.setdefault(key, set()).add(socket_id)

    def signed_in(self, key: UserKey) -> None:
        """Stores that the broker has confirmed a user's sign-in."""
        if key in self._users:
            self._confirmed.add(key)

    def is_signed_in(self, key: UserKey) -> bool:
        """Whether a user is signed in on a connection of this node, and the broker has confirmed it."""
        return key in self._confirmed

    def sign_out(self, key: UserKey, socket_id: str) -> bool:
        """Whether that was the user's last connection here."""
        sockets = self._users.get(key)
        if sockets is None or socket_id not in sockets:
            return False
        sockets.discard(socket_id)
        if sockets:
            return False
        del self._users[key]
        self._confirmed.discard(key)
        return True

    def connect(self, app: str) -> None:
        self._connections[app] = self._connections.get(app, 0) + 1

    def disconnect(self, app: str) -> None:
        count = self._connections.pop(app, 0) - 1
        if count > 0:
            self._connections[app] = count

    def connections(self, app: str) -> int:
        return self._connections.get(app, 0)

    # The broker's copy

    def differences(self, stored: dict[str, str]) -> Iterator[Difference]:
        """stored: the fields of the broker's copy.

        Whom it has not let be yet is neither here nor not here; what it says then is about all of their channel.
        """
        rest = dict(stored)
        for (app, channel), room in self._rooms.items():
            stored_too = rest.pop(f"c/{app}/{channel}", "0") == str(room.subscriptions)
            if not stored_too and room.let:
                yield Difference("more", app, channel)
            for user_id, seat in room.seats.items():
                if rest.pop(f"m/{app}/{channel}\n{user_id}", None) is None and seat.let:
                    yield Difference("more", app, channel, member=seat.member)
        for app, user_id in self._users:
            if rest.pop(f"u/{app}/{user_id}", None) is None:
                yield Difference("signed in", app, user_id=user_id)
        for app, count in self._connections.items():
            if rest.pop(f"q/{app}", None) != str(count):
                yield Difference("connections", app)
        for field in rest:
            kind, app, *names = field.split("/", 2)
            if kind == "c":
                yield Difference("less", app, names[0])
            elif kind == "m":
                channel, _, user_id = names[0].partition("\n")
                yield Difference("less", app, channel, user_id)
            elif kind == "u":
                yield Difference("signed out", app, user_id=names[0])
            else:
                yield Difference("connections", app)
