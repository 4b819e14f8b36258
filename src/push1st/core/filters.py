"""The filters with wildcards of an app's subscribers on this worker, and the lanes that a channel's messages reach. Pure.

The server accepts a filter without a check of rights, and delivers only the channels that the subscriber may read. So the
subscribers of a lane have one filter, one wire and the same rights (`FilterRights`). One decision for a channel applies to all
of these subscribers. `Filters` keeps the lanes of each channel, and searches them again after a lane was added or removed.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, cast
from weakref import WeakKeyDictionary, WeakValueDictionary

from push1st import auth
from push1st.channels import covers, kind_of
from push1st.config.model import AppConfig
from push1st.core.hub import Lane, OwnWire, Subscriber, Wire, Write
from push1st.errors import LimitReached
from push1st.filters import FilterTrie, has_wildcard
from push1st.messages import INTERNAL, Message
from push1st.metrics import AppCounts

MAX_APP_FILTERS = 10_000
"""the maximum number of different filters of an app; anonymous subscribers add no filter beyond half of this number"""
MAX_CHANNELS = 10_000
"""the maximum number of channels whose lanes are kept, and of kept decisions; above this number, all are dropped"""
MAX_MATCHES = 1_000_000
"""the maximum number of lanes that are kept for all channels together (8 bytes each)"""
MAX_SEEN = 32_768
"""the maximum number of messages that `SeenMessages` stores; copies of a message arrive within milliseconds of each other"""
MAX_SHARED_RIGHTS = 1000
"""the maximum number of rights that subscribers of one worker share; further subscribers get lanes of their own"""
DROPPED: Final[Counter[str]] = Counter()
"""reason → the number of messages that reached no filter of their app since the process started. The only reason is a channel
name with `+` or `#`, which no topic may contain."""


class FilterRights:
    """The rights of a filter's subscribers to read the channels that match the filter. The object does not change.

    `claims`: the rights in the access token; None without a token.
    `is_granted`: whether the app's backend permits all channels that match the filter.
    """

    __slots__ = ("__weakref__", "claims", "is_granted")

    def __init__(self, claims: auth.Claims | None, is_granted: bool) -> None:
        self.claims = claims
        self.is_granted = is_granted


_rights: WeakValueDictionary[tuple[tuple[str, ...], bool], FilterRights] = WeakValueDictionary()


def rights_of(claims: auth.Claims | None, is_granted: bool) -> FilterRights:
    """Returns the one object for equal rights, or another object if `MAX_SHARED_RIGHTS` are in use (`FilterRights`)."""
    key = (() if claims is None else claims.channels), is_granted
    found = _rights.get(key)
    if found is None:
        found = FilterRights(claims, is_granted)
        if len(_rights) < MAX_SHARED_RIGHTS:
            _rights[key] = found
    return found


class SeenMessages:
    """The messages that filters have received, of all apps. A worker may get several copies of a message from a shared broker.

    An event may be published on several channels with one id, so a message is identified by its id and its channel.
    """

    __slots__ = ("_newer", "_older")

    def __init__(self) -> None:
        self._newer: set[tuple[int, str]] = set()
        self._older: set[tuple[int, str]] = set()

    def add(self, message: Message) -> bool:
        """Stores a message. Returns whether it is new."""
        key = message.id, message.channel
        if key in self._newer or key in self._older:
            return False
        if len(self._newer) >= MAX_SEEN // 2:
            self._older, self._newer = self._newer, set()
        self._newer.add(key)
        return True


Lanes = dict[tuple[Wire, FilterRights], Lane]


class Filters:
    """The filters of one app (`hub.FilterIndex`). `config`, `decides`: see `configure`.

    `seen`: the messages that filters have received; None if the broker sends each message once.
    """

    __slots__ = (
        "_config",
        "_counts",
        "_decided",
        "_decides",
        "_decisions",
        "_kept",
        "_matched",
        "_seen",
        "_trie",
        "cost",
        "receivers",
    )

    def __init__(
        self, config: AppConfig, decides: Callable[[str], object] | None, counts: AppCounts, seen: SeenMessages | None = None
    ) -> None:
        self._counts = counts
        self._seen = seen
        self.receivers: Callable[[Message], Sequence[Lane]] = self.lanes if seen is None else self._new_lanes
        self._trie: FilterTrie[Lanes] = FilterTrie()
        self._matched: OrderedDict[str, tuple[Lane, ...]] = OrderedDict()
        self._decisions: WeakKeyDictionary[FilterRights, dict[str, bool]] = WeakKeyDictionary()
        """the decisions for each channel by rights; they end with the rights, that is, with the last subscriber that has them"""
        self._decided = 0
        """the number of decisions that were added since `_decisions` was last cleared"""
        self.cost = 0
        """the work of all searches: the number of visited nodes and of found lanes"""
        self.configure(config, decides)

    def configure(self, config: AppConfig, decides: Callable[[str], object] | None) -> None:
        """Applies a configuration of the app, so all decisions are made again.

        `decides`: a function that returns whether the app's backend decides about subscriptions to a channel, or None.
        """
        self._config = config
        self._decides = decides
        self._decisions.clear()
        self._decided = 0
        self._forget_matches()

    def __len__(self) -> int:
        return len(self._trie)

    def _forget_matches(self) -> None:
        self._matched.clear()
        self._kept = 0

    # Subscribers

    def lanes_of(self, filter: str) -> list[Lane]:
        """Returns the lanes of a filter."""
        return list((self._trie.get(filter) or {}).values())

    def check_room(self, filter: str, is_anonymous: bool) -> None:
        """Raises LimitReached if the app may not have the filter. `is_anonymous`: whether the subscriber is anonymous."""
        if self._trie.get(filter) is not None:
            return
        share = 2 if is_anonymous else 1
        if len(self._trie) >= MAX_APP_FILTERS // share or not self._trie.has_room(filter, share):
            raise LimitReached(403, "the app has too many filters with wildcards")

    def add(self, subscriber: Subscriber, filter: str, wire: Wire, rights: FilterRights, deliver: Write | None = None) -> Lane:
        """Adds a subscriber to a filter, and returns its lane. `deliver`: see `Tenant.subscribe`."""
        lanes = self._trie.get(filter)
        if lanes is None:
            lanes = self._trie[filter] = {}
        lane = lanes.get((wire, rights))
        if lane is None:
            lane = Lane(self._counts, wire) if deliver is None else Lane(self._counts, wire, cast(OwnWire, wire).join)
            lanes[wire, rights] = lane
            self._forget_matches()
        lane.writes[subscriber] = deliver or subscriber.write
        return lane

    def remove(self, subscriber: Subscriber, filter: str, lane: Lane) -> None:
        """Removes a subscriber from its lane of a filter."""
        lane.writes.pop(subscriber, None)
        lanes = self._trie.get(filter)
        if lane.writes or lanes is None:
            return
        for key in [key for key, one in lanes.items() if one is lane]:
            del lanes[key]
        if not lanes:
            del self._trie[filter]
        self._forget_matches()

    # Messages

    def lanes(self, message: Message) -> Sequence[Lane]:
        """Returns the lanes whose filters match a message's channel, and whose subscribers may read the channel.

        Events of the server itself, such as a change of a channel's members, match no filter.
        """
        if message.event.startswith(INTERNAL):
            return ()
        found = self._matched.get(message.channel)
        return self._search(message.channel) if found is None else found

    def _new_lanes(self, message: Message) -> Sequence[Lane]:
        lanes = self.lanes(message)
        assert self._seen is not None
        return lanes if lanes and self._seen.add(message) else ()

    def lanes_of_channel(self, channel: str) -> Sequence[Lane]:
        """Returns the lanes of a message in a channel (`lanes`)."""
        found = self._matched.get(channel)
        return self._search(channel) if found is None else found

    def _search(self, channel: str) -> Sequence[Lane]:
        if has_wildcard(channel):
            if channel[0] != "#":  # else the channel belongs to a user
                DROPPED["untranslatable"] += 1
            return ()
        found: list[Lane] = []
        matched, visited = self._trie.match(channel)
        for lanes in matched:
            visited += len(lanes)
            found += [lane for (_, rights), lane in lanes.items() if self.may_read(rights, channel)]
        self.cost += visited
        self._matched[channel] = kept = tuple(found)
        self._kept += len(kept)
        while len(self._matched) > MAX_CHANNELS or self._kept > MAX_MATCHES:
            _, dropped = self._matched.popitem(last=False)
            self._kept -= len(dropped)
        return kept

    def all_rights(self, filter: str) -> list[FilterRights]:
        """Returns the rights of the lanes of a filter."""
        return [rights for _, rights in self._trie.get(filter) or ()]

    def rights_of(self, filter: str, lane: Lane) -> FilterRights:
        """Returns the rights of the subscribers of a filter's lane."""
        return next(rights for (_, rights), one in (self._trie.get(filter) or {}).items() if one is lane)

    def may_read(self, rights: FilterRights, channel: str) -> bool:
        """Returns whether subscribers with these rights may read a channel that matches their filter."""
        decisions = self._decisions.get(rights)
        if decisions is None:
            decisions = self._decisions[rights] = {}
        decision = decisions.get(channel)
        if decision is None:
            if self._decided >= MAX_CHANNELS:
                self._decisions.clear()
                self._decided = 0
                decisions = self._decisions[rights] = {}
            self._decided += 1
            decision = decisions[channel] = self._decide(rights, channel)
        return decision

    def _decide(self, rights: FilterRights, channel: str) -> bool:
        kind = kind_of(channel)
        if not covers(self._config.channels, kind):
            return False
        if rights.is_granted or (rights.claims is not None and rights.claims.allows(channel)):
            return True
        return not kind.needs_auth and not (self._decides is not None and self._decides(channel))
