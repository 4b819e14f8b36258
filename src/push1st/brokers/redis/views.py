"""Stores members and watched users as reported to the clients on this node, so that each edge reaches these clients once.

An edge may arrive twice, because a node registered again, or never, because the connection was lost. So the node applies each
edge to a view, and delivers the edge only if the edge changes the view. After an outage, the node compares the views with the
roster. The view of a channel starts with the first join on this node, and ends with the last leave on this node.
"""

from collections.abc import Callable, Iterator

from push1st.brokers import Receive
from push1st.brokers.redis.keys import ChannelKey, UserKey
from push1st.brokers.redis.wire import Edge
from push1st.messages import Member, member_added, member_removed, status_changed, watch_topic

Stamp = Callable[[], tuple[int, int]]


class Views:
    """The views of one node. The function `receive` delivers a message to the clients of this node."""

    def __init__(self) -> None:
        self.receive: Receive = lambda _: 0
        self._members: dict[ChannelKey, dict[str, Member]] = {}
        self._online: dict[UserKey, bool] = {}

    # Members of presence channels

    def begin(self, key: ChannelKey, members: dict[str, Member]) -> None:
        """Starts the view of a channel that has no view. `members` contains the members by user id."""
        self._members.setdefault(key, members)

    def members(self, key: ChannelKey) -> dict[str, Member] | None:
        """Returns the members of a channel by user id; None if no client on this node is on the channel."""
        return self._members.get(key)

    def end(self, key: ChannelKey) -> None:
        """Ends the view of a channel."""
        self._members.pop(key, None)

    def of(self, owns: Callable[[str, str], bool]) -> list[ChannelKey]:
        """Returns the channels of a shard that have a view. The function `owns` returns whether a channel is in the shard."""
        return [key for key in self._members if owns(*key)]

    def edge(self, edge: Edge, here: bool) -> None:
        """Delivers an edge, if it changes the view.

        here: whether the edge's member or user has a connection to this node. If so, a leaving edge is wrong,
        and is dropped: another node published the edge, because it evicted this node.
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
        """Compares a channel's view with the members in the roster, and delivers an edge for each difference.

        sockets: a mapping for users with exactly one connection to this node: user → the id of this connection. A connection in
        `sockets` receives no edge that reports its own user as a new member.
        """
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
        """Starts the view of a user that a client on this node watches."""
        self._online.setdefault((app, user_id), online)

    def status(self, app: str, user_id: str, otherwise: bool) -> bool:
        """Returns whether a user is online according to the view; returns `otherwise` if the user has no view."""
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
