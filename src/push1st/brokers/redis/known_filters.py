"""The filters of all nodes, as this node knows them from one shard, and the nodes that need a copy of a message. Pure.

A filter is a field of `BASE:f` (`scripts.py`). Each change of `BASE:f` is published to all nodes (`interest.py`).

There are three kinds of entries. A *filter of a node* has wildcards: its subscribers are connected to the node. A *filter of the
broker* has the node "": the broker keeps the messages of the filter in a log. A *group* has the name `$share/GROUP/FILTER`, and
its value is the number of the group's members on the node. The value of a filter of a node is `ALL_CHANNELS` or
`PUBLIC_CHANNELS`.
"""

from collections.abc import Callable, Collection
from typing import NamedTuple

from push1st.brokers import ALL_CHANNELS, PUBLIC_CHANNELS
from push1st.brokers.watched import group_and_filter
from push1st.channels import kind_of
from push1st.errors import LimitReached
from push1st.filters import FilterTrie, has_wildcard, matches

MAX_APP_FILTERS = 10_000
"""the maximum number of different filters of an app on all nodes; anonymous clients add no filter beyond half of this number"""
MAX_FILTER_GROUPS = 100
"""the maximum number of groups of an app that share one filter: each group needs a copy of each message. Anonymous clients add no
group beyond half of this number."""
MAX_CHANNELS = 10_000
"""the maximum number of channels of an app whose matching filters are kept; with more, all are dropped"""
MAX_COMPARED = 1000
"""the maximum number of these channels that a changed filter is compared with (1 ms); with more, all are dropped"""


class KnownFilter:
    """A filter or a group of an app. nodes: node → value; the node "" is the broker. turn: the number of picks of `pick`."""

    __slots__ = ("name", "nodes", "turn")

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: dict[str, int] = {}
        self.turn = 0

    def pick(self, tried: Collection[str] = ()) -> str:
        """Returns the node that has its turn: a node of a group has one turn for each of its members. Returns "" without a node.

        tried: nodes that are not picked.
        """
        nodes = [(node, count) for node, count in self.nodes.items() if node and node not in tried]
        if not nodes:
            return ""
        self.turn += 1
        turn = self.turn % sum([count for _, count in nodes])
        for node, count in nodes:
            turn -= count
            if turn < 0:
                return node
        raise AssertionError


class KnownMatches(NamedTuple):
    """The entries of an app that match a channel.

    nodes: the nodes with a matching filter.
    logs: the names of the matching filters for which the broker keeps messages.
    groups: the matching groups. The members of a group may change, so the caller reads them at each use.
    """

    nodes: tuple[str, ...] = ()
    logs: tuple[str, ...] = ()
    groups: tuple[KnownFilter, ...] = ()


NO_MATCHING = KnownMatches()


class Searches:
    """Counts the work of all searches. cost: the number of visited nodes of tries, and of entries that were found there."""

    __slots__ = ("cost",)

    def __init__(self) -> None:
        self.cost = 0


class KnownApp:
    """The entries of one app."""

    __slots__ = ("_groups", "_matched", "_searches", "_trie", "filters")

    def __init__(self, searches: Searches) -> None:
        self._searches = searches
        self.filters: dict[str, KnownFilter] = {}
        """the filters and the groups, by name"""
        self._trie: FilterTrie[KnownFilter] = FilterTrie()
        self._groups: FilterTrie[dict[str, KnownFilter]] = FilterTrie()
        """filter → the groups that share it, by name"""
        self._matched: dict[str, KnownMatches] = {}

    def has_room(self, name: str, share: int = 1) -> bool:
        """Whether another filter or group stays within 1 / share of the app's bounds."""
        group, filter = group_and_filter(name)
        if group and len(self._groups.get(filter) or ()) >= MAX_FILTER_GROUPS // share:
            return False
        tries = self._trie, self._groups
        return len(self.filters) < MAX_APP_FILTERS // share and all(trie.has_room(filter, share) for trie in tries)

    def change(self, name: str, node: str, value: int) -> bool:
        """Sets the value of an entry; 0 removes it. Returns whether the node may need messages that it did not need before."""
        known = self.filters.get(name)
        if not value:
            if known is not None and known.nodes.pop(node, None) is not None:
                self._forget(name)
                if not known.nodes:
                    self._drop(name)
            return False
        if known is None:
            known = self._add(name)
        old = known.nodes.get(node)
        known.nodes[node] = value
        if old is None or (old != value and PUBLIC_CHANNELS in (old, value)):
            self._forget(name)
        return old is None or old == PUBLIC_CHANNELS != value

    def _forget(self, name: str) -> None:
        """Forgets the matching filters of the channels that match a filter or group."""
        if len(self._matched) > MAX_COMPARED:
            self._matched.clear()
            return
        filter = group_and_filter(name)[1]
        for channel in [channel for channel in self._matched if matches(filter, channel)]:
            del self._matched[channel]

    def _add(self, name: str) -> KnownFilter:
        known = self.filters[name] = KnownFilter(name)
        group, filter = group_and_filter(name)
        if not group:
            self._trie[filter] = known
            return known
        groups = self._groups.get(filter)
        if groups is None:
            groups = self._groups[filter] = {}
        groups[name] = known
        return known

    def _drop(self, name: str) -> None:
        del self.filters[name]
        group, filter = group_and_filter(name)
        if not group:
            del self._trie[filter]
            return
        groups = self._groups.get(filter)
        assert groups is not None
        del groups[name]
        if not groups:
            del self._groups[filter]

    def match(self, channel: str) -> KnownMatches:
        found = self._matched.get(channel)
        return self._search(channel) if found is None else found

    def _search(self, channel: str) -> KnownMatches:
        if has_wildcard(channel):  # no topic has this name, or the channel belongs to a user (`core/filters.py`)
            return NO_MATCHING
        filters, visited = self._trie.match(channel)
        shared, visited_groups = self._groups.match(channel)
        groups = [one for some in shared for one in some.values()]
        is_public = not kind_of(channel).needs_auth
        nodes = dict.fromkeys(
            node for one in filters for node, value in one.nodes.items() if node and (is_public or value == ALL_CHANNELS)
        )
        logs = [one.name for one in filters if "" in one.nodes]
        found = KnownMatches(tuple(nodes), tuple(logs), tuple(groups))
        self._searches.cost += visited + visited_groups + sum(len(one.nodes) for one in (*filters, *groups))
        if len(self._matched) >= MAX_CHANNELS:
            self._matched.clear()
        self._matched[channel] = found
        return found


class KnownFilters:
    """See the module. on_added: a function that is called with the app of each new filter or group of a node or of the broker."""

    __slots__ = ("_loading", "_searches", "apps", "on_added")

    def __init__(self, searches: Searches) -> None:
        self._searches = searches
        self.on_added: Callable[[str], None] = lambda _: None
        self.apps: dict[str, KnownApp] = {}
        """the apps with entries, by id"""
        self._loading: KnownFilters | None = None
        """the entries that are being read from the server; None if no reading is going on"""

    def change(self, app: str, name: str, node: str, value: int) -> None:
        """Applies a change that the server has published. value: 0 if the entry was removed."""
        if self._loading is not None:
            self._loading.change(app, name, node, value)
        known = self.apps.get(app)
        if known is None:
            if not value:
                return
            known = self.apps[app] = KnownApp(self._searches)
        if known.change(name, node, value):
            self.on_added(app)
        elif not known.filters:
            del self.apps[app]

    def match(self, app: str, channel: str) -> KnownMatches:
        """Returns the entries of an app that match a channel."""
        known = self.apps.get(app)
        return NO_MATCHING if known is None else known.match(channel)

    def logs(self, app: str) -> list[KnownFilter]:
        """Returns the filters with wildcards, and the groups, for which the broker keeps messages."""
        known = self.apps.get(app)
        return [] if known is None else [one for one in known.filters.values() if one.name and "" in one.nodes]

    def find(self, app: str, name: str) -> KnownFilter | None:
        """Returns a filter or a group."""
        known = self.apps.get(app)
        return None if known is None else known.filters.get(name)

    def value(self, app: str, name: str, node: str = "") -> int:
        """Returns the value of an entry; 0 if there is no such entry."""
        found = self.find(app, name)
        return 0 if found is None else found.nodes.get(node, 0)

    def check_room(self, app: str, name: str, is_anonymous: bool) -> None:
        """Raises LimitReached if the app may not have the filter or group. Nodes that add filters at once may exceed it."""
        known = self.apps.get(app)
        if known is None:
            return
        found = known.filters.get(name)
        is_new = found is None or found.nodes.keys() == {""}  # a log counts as a filter only for its own client
        if is_new and not known.has_room(name, 2 if is_anonymous else 1):
            raise LimitReached(403, "the app has too many filters with wildcards")

    # Reading all entries from the server

    def begin_loading(self) -> "KnownFilters":
        """Returns an object that collects all entries. Until `end_loading`, changes apply to it and to the known entries.

        If another reading begins before this one has ended, only the newer one replaces the known entries.
        """
        self._loading = KnownFilters(self._searches)
        return self._loading

    def end_loading(self, collected: "KnownFilters") -> None:
        """Replaces the known entries by the collected ones."""
        if collected is self._loading:
            self.apps, self._loading = collected.apps, None

    def of_nodes(self) -> dict[str, list[tuple[str, str]]]:
        """Returns the apps and names of the entries of each node, without those of the broker."""
        found: dict[str, list[tuple[str, str]]] = {}
        for app, known in self.apps.items():
            for name, one in known.filters.items():
                for node in one.nodes.keys() - {""}:
                    found.setdefault(node, []).append((app, name))
        return found
