"""What clients on this node know of members and of watched users, so that each edge reaches them once.

An edge may come twice (a node announces its entries again) or not at all (the connection was lost). So edges change
a view, and only what changes it is delivered; and after an absence the view is compared with the roster. A view
begins with the first join of a channel here and ends with the last leave.
"""

from collections.abc import Callable, Iterator

from push1st.brokers import Receive
from push1st.brokers.redis.keys import ChannelKey, UserKey
from push1st.brokers.redis.wire import Edge
from push1st.messages import Member, member_added, member_removed, status_changed, watch_topic

Stamp = Callable[[], tuple[int, int]]


class Views:
    """receive: delivers a message to this node's clients."""

    def __init__(self) -> None:
        self.receive: Receive = lambda _: 0
        self._members: dict[ChannelKey, dict[str, Member]] = {}
        self._online: dict[UserKey, bool] = {}

    # Members of presence channels

    def begin(self, key: ChannelKey, members: dict[str, Member]) -> None:
        """The first clients on a channel are told these members, by their ids."""
        self._members.setdefault(key, members)

    def members(self, key: ChannelKey) -> dict[str, Member] | None:
        """Who is on a channel; None when nobody here follows it."""
        return self._members.get(key)

    def end(self, key: ChannelKey) -> None:
        self._members.pop(key, None)

    def of(self, owns: Callable[[str, str], bool]) -> list[ChannelKey]:
        return [key for key in self._members if owns(*key)]

    def edge(self, edge: Edge, here: bool) -> None:
        """Delivers an edge, if it changes the view.

        here: whether this node has a connection of the member or user. Then a leaving edge is false: another node removed this
        node's entries, because their lease had expired.
        """
        key = edge.app, edge.channel
        view = self._members.get(key)
        if edge.kind == "+":
            member = Member(edge.user_id, edge.info)
            if view is not None:
                if edge.user_id in view:
                    return
                view[edge.user_id] = member
            self.receive(member_added(edge.app, edge.channel, member, edge.id, edge.received, edge.socket_id))
        elif edge.kind == "-":
            if here:
                return
            if view is not None and view.pop(edge.user_id, None) is None:
                return
            self.receive(member_removed(edge.app, edge.channel, edge.user_id, edge.id, edge.received, edge.socket_id))
        elif not here or edge.kind == "on":
            self._status(edge.app, edge.user_id, edge.kind == "on", edge.id, edge.received, edge.socket_id)

    def compare(self, key: ChannelKey, members: dict[str, Member], sockets: dict[str, str], stamp: Stamp) -> None:
        """Delivers what a view missed. sockets: users here with a single connection, which is not told of itself."""
        view = self._members.get(key)
        if view is None:
            return
        for user_id in [one for one in view if one not in members]:
            del view[user_id]
            self.receive(member_removed(*key, user_id, *stamp(), exclude=""))
        for user_id, member in members.items():
            if user_id not in view:
                view[user_id] = member
                self.receive(member_added(*key, member, *stamp(), exclude=sockets.get(user_id, "")))

    # Watched users

    def watch(self, app: str, user_id: str, online: bool) -> None:
        """Begins to follow a user that is watched here."""
        self._online.setdefault((app, user_id), online)

    def status(self, app: str, user_id: str, otherwise: bool) -> bool:
        """Whether a user is online, as far as clients here know."""
        return self._online.get((app, user_id), otherwise)

    def unwatch(self, app: str, user_id: str) -> None:
        self._online.pop((app, user_id), None)

    def watched(self, owns: Callable[[str, str], bool]) -> Iterator[UserKey]:
        return (key for key in list(self._online) if owns(key[0], watch_topic(key[1])))

    def compare_status(self, key: UserKey, online: bool, stamp: Stamp) -> None:
        self._status(*key, online, *stamp(), exclude="")

    def _status(self, app: str, user_id: str, online: bool, id: int, received: int, exclude: str) -> None:
        key = app, user_id
        if key in self._online:
            if self._online[key] == online:
                return
            self._online[key] = online
        self.receive(status_changed(app, user_id, online, id, received, exclude))
