"""This node's own entries in a shard: the subscriptions, members, users and connections of its clients. Pure.

These entries are authoritative. The broker has a copy of them, a hash of fields (`BASE:n:NODE` in `scripts.py`). `differences`
compares the copy with the entries.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from push1st.brokers.redis.keys import ChannelKey, UserKey
from push1st.messages import Member


class MemberEntry:
    """A user on a presence channel, and the ids of its connections on this node. confirmed: as in `ChannelEntry`."""

    __slots__ = ("confirmed", "member", "sockets")

    def __init__(self, member: Member) -> None:
        self.member = member
        self.confirmed = False
        self.sockets: set[str] = set()


class ChannelEntry:
    """A channel with subscriptions of this node. confirmed: whether the broker has confirmed any since the first one here."""

    __slots__ = ("confirmed", "members", "subscriptions")

    def __init__(self) -> None:
        self.subscriptions = 0
        self.confirmed = False
        self.members: dict[str, MemberEntry] = {}


NO_MEMBER = Member("")


class Difference(NamedTuple):
    """An entry that differs from the broker's copy. member: missing in the copy. user_id: a user only in the copy."""

    what: Literal["more", "less", "signed in", "signed out", "connections"]
    app: str
    channel: str = ""
    user_id: str = ""
    member: Member | None = None


class Entries:
    def __init__(self) -> None:
        self._channels: dict[ChannelKey, ChannelEntry] = {}
        self._users: dict[UserKey, set[str]] = {}
        self._confirmed: set[UserKey] = set()
        """users signed in here whose sign-in the broker has confirmed"""
        self._connections: dict[str, int] = {}

    # Channels

    def join(self, key: ChannelKey, socket_id: str, member: Member | None) -> bool:
        """Adds a subscription; returns whether it is the first one of its channel. `joined` or `leave` must follow."""
        occupied = self._channels.get(key)
        first = occupied is None
        if occupied is None:
            occupied = self._channels[key] = ChannelEntry()
        occupied.subscriptions += 1
        if member is not None:
            entry = occupied.members.get(member.user_id)
            if entry is None:
                entry = occupied.members[member.user_id] = MemberEntry(member)
            entry.sockets.add(socket_id)
        return first

    def joined(self, key: ChannelKey, user_id: str | None) -> None:
        """Stores that the broker has confirmed a subscription."""
        occupied = self._channels[key]
        occupied.confirmed = True
        if user_id is not None:
            occupied.members[user_id].confirmed = True

    def leave(self, key: ChannelKey, socket_id: str, user_id: str | None) -> Member | None:
        """Removes a subscription. Returns a member that has no other, or NO_MEMBER; None if the subscription was unknown."""
        occupied = self._channels.get(key)
        if occupied is None:
            return None
        gone = NO_MEMBER
        if user_id is not None:
            entry = occupied.members.get(user_id)
            if entry is None or socket_id not in entry.sockets:
                return None
            entry.sockets.discard(socket_id)
            if not entry.sockets:
                del occupied.members[user_id]
                gone = entry.member
        occupied.subscriptions -= 1
        if occupied.subscriptions <= 0:
            del self._channels[key]
        return gone

    def subscriptions(self, key: ChannelKey) -> int:
        occupied = self._channels.get(key)
        return 0 if occupied is None else occupied.subscriptions

    def has(self, key: ChannelKey, user_id: str | None = None) -> bool:
        """Returns whether a channel, or a user on it, has a subscription of this node that the broker has confirmed."""
        occupied = self._channels.get(key)
        if occupied is None or user_id is None:
            return occupied is not None and occupied.confirmed
        entry = occupied.members.get(user_id)
        return entry is not None and entry.confirmed

    def members(self, key: ChannelKey) -> dict[str, Member]:
        """Returns the confirmed members of a channel that have connections on this node, by user id."""
        occupied = self._channels.get(key)
        members = {} if occupied is None else occupied.members
        return {user_id: entry.member for user_id, entry in members.items() if entry.confirmed}

    def alone(self, key: ChannelKey) -> dict[str, str]:
        """Returns the users on a channel that have one connection on this node → the id of that connection."""
        occupied = self._channels.get(key)
        members = {} if occupied is None else occupied.members
        return {user_id: next(iter(entry.sockets)) for user_id, entry in members.items() if len(entry.sockets) == 1}

    # Users, and connections of apps

    def sign_in(self, key: UserKey, socket_id: str) -> None:
        self._users.setdefault(key, set()).add(socket_id)

    def signed_in(self, key: UserKey) -> None:
        """Stores that the broker has confirmed a user's sign-in."""
        if key in self._users:
            self._confirmed.add(key)

    def is_signed_in(self, key: UserKey) -> bool:
        """Returns whether a user is signed in on a connection of this node, and the broker has confirmed that."""
        return key in self._confirmed

    def sign_out(self, key: UserKey, socket_id: str) -> bool:
        """Removes a connection of a signed-in user; returns whether it was the last one on this node."""
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
        """Yields the differences between the entries and the broker's copy. stored: the fields of the copy.

        Unconfirmed channels and members are skipped: their JOIN is repeated on the new connection, with the current number.
        """
        rest = dict(stored)
        for (app, channel), occupied in self._channels.items():
            stored_too = rest.pop(f"c/{app}/{channel}", "0") == str(occupied.subscriptions)
            if not stored_too and occupied.confirmed:
                yield Difference("more", app, channel)
            for user_id, entry in occupied.members.items():
                if rest.pop(f"m/{app}/{channel}\n{user_id}", None) is None and entry.confirmed:
                    yield Difference("more", app, channel, member=entry.member)
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
