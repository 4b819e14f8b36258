"""Stores the local roster: this worker's part of the roster, with the subscriptions and members of this worker's clients. Pure.

The node of a worker creates one local roster. Only `Roster.join` and `Roster.leave` change the local roster.
With the memory broker, the local roster is the whole roster. A shared broker has a copy of the local roster; if the two differ,
the local roster is correct. After an outage of the broker, the node compares the two, and repairs the copy.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from push1st.brokers.channel_names import ChannelNames
from push1st.messages import Member

NO_MEMBERS: Mapping[str, "MemberEntry"] = MappingProxyType({})
NO_CHANNELS: Mapping[str, "ChannelEntry"] = MappingProxyType({})


class MemberEntry:
    """A user on a presence channel, with the user's connections, and whether the broker has confirmed the user (`confirmed`)."""

    __slots__ = ("confirmed", "member", "sockets")

    def __init__(self, member: Member) -> None:
        self.member = member
        self.confirmed = False
        self.sockets: set[str] = set()


class ChannelEntry:
    """A channel with subscriptions on this worker.

    subscriptions: the number of the channel's subscriptions on this worker.
    confirmed: whether the broker has confirmed at least one subscription of this entry.
    members: the channel's members on this worker, by user id.
    """

    __slots__ = ("confirmed", "members", "subscriptions")

    def __init__(self) -> None:
        self.subscriptions = 0
        self.confirmed = False
        self.members: Mapping[str, MemberEntry] = NO_MEMBERS

    def add(self, member: Member, socket_id: str) -> None:
        """Adds a connection of a member."""
        if not isinstance(self.members, dict):  # most channels never have a member, so these channels share an empty mapping
            self.members = {}
        user = self.members.get(member.user_id)
        if user is None:
            user = self.members[member.user_id] = MemberEntry(member)
        user.sockets.add(socket_id)

    def remove(self, user_id: str, socket_id: str) -> MemberEntry | None:
        """Removes a connection; returns the member if this connection was the member's last connection, else None."""
        user = self.members[user_id]
        user.sockets.remove(socket_id)
        return self.members.pop(user_id) if not user.sockets and isinstance(self.members, dict) else None


class Departure(NamedTuple):
    """The changes that the removal of a subscription caused.

    member: the member whose last connection on this worker was removed; None if no member was removed.
    member_confirmed: whether the broker had confirmed this member.
    vacated: whether the channel has no other subscription on this worker.
    channel_confirmed: whether the broker had confirmed any of this worker's subscriptions to the channel.
    """

    member: Member | None
    member_confirmed: bool
    vacated: bool
    channel_confirmed: bool


class LocalRoster:
    """This worker's part of the roster: the channels of each app, with their subscriptions and members on this worker."""

    def __init__(self) -> None:
        self._apps: dict[str, dict[str, ChannelEntry]] = {}
        self._names: dict[str, ChannelNames] | None = None
        """the names of each app's channels, for `names`; None until `keep_names` is called"""

    # Written by the roster

    def join(self, app: str, channel: str, socket_id: str, member: Member | None) -> ChannelEntry:
        """Adds a subscription. When the broker has replied, the caller must call `confirm` (success) or `leave` (failure)."""
        channels = self._apps.setdefault(app, {})
        entry = channels.get(channel)
        if entry is None:
            entry = channels[channel] = ChannelEntry()
            if self._names is not None:
                self.names(app).add(channel)
        entry.subscriptions += 1
        if member is not None:
            entry.add(member, socket_id)
        return entry

    def confirm(self, app: str, channel: str, user_id: str | None) -> None:
        """Marks a subscription as confirmed by the broker."""
        entry = self._apps[app][channel]
        entry.confirmed = True
        if user_id is not None:
            entry.members[user_id].confirmed = True

    def leave(self, app: str, channel: str, socket_id: str, user_id: str | None) -> Departure | None:
        """Removes a subscription; returns the changes, or None if the channel or the member's connection is unknown."""
        entry = self.channel(app, channel)
        if entry is None:
            return None
        gone: MemberEntry | None = None
        if user_id is not None:
            try:
                gone = entry.remove(user_id, socket_id)
            except KeyError:
                return None
        entry.subscriptions -= 1
        vacated = entry.subscriptions <= 0
        if vacated:
            channels = self._apps[app]
            del channels[channel]
            if self._names is not None:
                self._names[app].remove(channel)
            if not channels:
                del self._apps[app]
                if self._names is not None:
                    del self._names[app]
        if gone is None:
            return Departure(None, False, vacated, entry.confirmed)
        return Departure(gone.member, gone.confirmed, vacated, entry.confirmed)

    def clear(self) -> None:
        """Removes all subscriptions, because the worker stops."""
        self._apps.clear()
        if self._names is not None:
            self._names.clear()

    def keep_names(self) -> None:
        """Keeps the names of the channels for `names` from now on. This takes long if many channels have subscriptions."""
        if self._names is None:
            self._names = {app: ChannelNames(channels) for app, channels in self._apps.items()}

    # Read by all components

    def channel(self, app: str, channel: str) -> ChannelEntry | None:
        """Returns the entry of a channel; None if the channel has no subscription on this worker."""
        return self.channels(app).get(channel)

    def channels(self, app: str) -> Mapping[str, ChannelEntry]:
        """Returns the channels of an app that have subscriptions on this worker."""
        return self._apps.get(app, NO_CHANNELS)

    def names(self, app: str) -> ChannelNames:
        """Returns the names of the channels of an app that have subscriptions on this worker, in pages."""
        self.keep_names()
        assert self._names is not None
        return self._names.setdefault(app, ChannelNames()) if app in self._apps else ChannelNames()

    def __iter__(self) -> Iterator[tuple[str, str, ChannelEntry]]:
        """Yields the app, the channel and the entry of every channel."""
        for app, channels in self._apps.items():
            for channel, entry in channels.items():
                yield app, channel, entry

    def subscriptions(self, app: str, channel: str) -> int:
        """Returns the number of confirmed and unconfirmed subscriptions to a channel on this worker."""
        entry = self.channel(app, channel)
        return 0 if entry is None else entry.subscriptions

    def members(self, app: str, channel: str) -> dict[str, Member]:
        """Returns the confirmed members of a channel by user id."""
        entry = self.channel(app, channel)
        return {} if entry is None else {id: user.member for id, user in entry.members.items() if user.confirmed}

    def has_member(self, app: str, channel: str, user_id: str) -> bool:
        """Returns whether a user is a confirmed member of a channel."""
        entry = self.channel(app, channel)
        user = None if entry is None else entry.members.get(user_id)
        return user is not None and user.confirmed

    def single_connections(self, app: str, channel: str) -> dict[str, str]:
        """Returns the users that have exactly one connection to a channel on this worker: user id → the id of this connection."""
        entry = self.channel(app, channel)
        members = {} if entry is None else entry.members
        return {id: next(iter(user.sockets)) for id, user in members.items() if len(user.sockets) == 1}
