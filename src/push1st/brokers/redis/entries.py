"""Stores this node's entries in a shard: the signed-in users, and the number of connections of each app. Pure.

These entries, the local roster (`brokers/local_roster.py`) and the filters (`OwnFilters`) are authoritative. The broker has a
copy of them in two hashes (`BASE:n:NODE` and `BASE:nf:NODE` in `scripts.py`). `differences` compares this copy with them.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

from push1st.brokers.local_roster import LocalRoster
from push1st.brokers.redis.keys import FilterKey, UserKey
from push1st.brokers.redis.known_filters import Searches
from push1st.messages import Member


class Difference(NamedTuple):
    """A difference between this node's entries and the broker's copy.

    member: a member of a presence channel who is missing in the broker's copy.
    channel: a channel, or the name of a filter or group.
    user_id: the user of a sign-in or sign-out, or a member who is only in the broker's copy.
    """

    what: Literal["more", "less", "signed in", "signed out", "connections", "filter"]
    app: str
    channel: str = ""
    user_id: str = ""
    member: Member | None = None


class OwnFilters:
    """The filters and groups of this node, in all shards.

    values: a filter or group of an app → its value. searches: the cost of this node's searches for the filters of all nodes.
    """

    def __init__(self) -> None:
        self.values: dict[FilterKey, int] = {}
        self.searches = Searches()


class Entries:
    def __init__(self) -> None:
        self._users: dict[UserKey, set[str]] = {}
        self._confirmed: set[UserKey] = set()
        """the users whose sign-in on this node the broker has confirmed"""
        self._connections: dict[str, int] = {}

    # The signed-in users, and the connections of apps

    def sign_in(self, key: UserKey, socket_id: str) -> None:
        self._users.setdefault(key, set()).add(socket_id)

    def signed_in(self, key: UserKey) -> None:
        """Stores that the broker has confirmed a user's sign-in."""
        if key in self._users:
            self._confirmed.add(key)

    def is_signed_in(self, key: UserKey) -> bool:
        """Returns whether a user is signed in on this node, and the broker has confirmed the sign-in."""
        return key in self._confirmed

    def sign_out(self, key: UserKey, socket_id: str) -> bool:
        """Removes a connection of a signed-in user; returns whether it was the user's last connection on this node."""
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

    def differences(
        self,
        stored: dict[str, str],
        local_roster: LocalRoster,
        filters: Mapping[FilterKey, int],
        owns: Callable[[str, str], bool],
    ) -> Iterator[Difference]:
        """Yields the differences between this node and the broker's copy.

        Channels and members that the broker has not confirmed are skipped. Calls of `ShardRoster.join` still wait for these
        confirmations, and send the joins again if necessary.
        stored: the broker's copy as a mapping, field → value; the fields of filters begin with `f/`.
        filters: the filters of this node, with their values.
        owns: a function that returns whether a channel is in this shard.
        """
        rest = dict(stored)
        for app, channel, entry in local_roster:
            if not owns(app, channel):
                continue
            is_equal = rest.pop(f"c/{app}/{channel}", "0") == str(entry.subscriptions)
            if not is_equal and entry.confirmed:
                yield Difference("more", app, channel)
            for user_id, user in entry.members.items():
                if rest.pop(f"m/{app}/{channel}\n{user_id}", None) is None and user.confirmed:
                    yield Difference("more", app, channel, member=user.member)
        for app, user_id in self._users:
            if rest.pop(f"u/{app}/{user_id}", None) is None:
                yield Difference("signed in", app, user_id=user_id)
        for app, count in self._connections.items():
            if rest.pop(f"q/{app}", None) != str(count):
                yield Difference("connections", app)
        for (app, name), value in filters.items():
            if rest.pop(f"f/{app}/{name}", None) != str(value):
                yield Difference("filter", app, name)
        for field in sorted(rest, key=lambda field: field[0] != "m"):  # members leave before their channel is vacated
            kind, app, *names = field.split("/", 2)
            if kind == "c":
                yield Difference("less", app, names[0])
            elif kind == "m":
                channel, _, user_id = names[0].partition("\n")
                yield Difference("less", app, channel, user_id)
            elif kind == "u":
                yield Difference("signed out", app, user_id=names[0])
            elif kind == "f":
                yield Difference("filter", app, names[0])
            else:
                yield Difference("connections", app)
