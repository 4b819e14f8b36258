"""The filters that sessions watch, and the bound for the logs of one message. Pure."""

from collections import Counter

from push1st.brokers.retained import ANONYMOUS_PART
from push1st.brokers.sessions import MAX_LOGS_OF_MESSAGE, SHARE
from push1st.errors import LimitReached
from push1st.filters import MAX_NODES, has_wildcard
from push1st.messages import user_channel

_USER_CHANNEL = user_channel("")


def group_and_filter(filter: str) -> tuple[str, str]:
    """Returns the group and the filter of a shared filter; "" and the filter if it is not shared."""
    if not filter.startswith(SHARE):
        return "", filter
    group, _, rest = filter[len(SHARE) :].partition("/")
    return group, rest


def is_exact(filter: str) -> bool:
    """Whether a filter, which is not shared, is the name of its only channel. The name of a user's channel begins with `#`."""
    return filter.startswith(_USER_CHANNEL) or not has_wildcard(filter)


class HighestCount:
    """The highest one of several numbers, each of which changes by 1. Neither reading nor changing needs a search."""

    __slots__ = ("_keys", "value")

    def __init__(self) -> None:
        self._keys: Counter[int] = Counter()
        """a value above 0 → how many of the numbers have this value"""
        self.value = 0

    def change(self, new: int, by: int) -> None:
        """Handles the change of a number. new: the number after the change. by: 1 or -1."""
        self._keys[new] += 1
        self._keys[new - by] -= 1
        if new > self.value or not self._keys[self.value]:
            self.value = new


class WatchedFilters:
    """The filters that the sessions of some clients of an app watch, and the maximum number of logs of one message.

    The *shape* of a filter is the places of its wildcards, with the group. Two filters of one shape never match the same channel.
    So a channel has at most its exact logs, and one log for each shape that begins with the channel's first level or a wildcard.

    part: the clients have 1 / part of the app's bounds.
    """

    __slots__ = ("_counts", "_groups", "_most_groups", "_most_shapes", "_part", "_shapes", "nodes")

    def __init__(self, part: int) -> None:
        self._part = part
        self._counts: dict[str, int] = {}
        """filter → number of sessions"""
        self._groups: Counter[str] = Counter()
        """channel → number of shared groups whose filter is exactly the channel"""
        self._shapes: dict[str, Counter[str]] = {}
        """first level, or "" for a wildcard → shape → number of filters"""
        self._most_groups = HighestCount()
        """the highest number of groups of a channel"""
        self._most_shapes = HighestCount()
        """the highest number of shapes of a first level that is no wildcard"""
        self.nodes = 0
        """the number of levels of all filters with wildcards"""

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, filter: str, others: "WatchedFilters") -> None:
        """Adds a filter for one more session. others: the filters of the app's other clients. Raises LimitReached."""
        count = self._counts.get(filter, 0)
        if not count:
            self._check(filter, others)
            self._change(filter, 1)
        self._counts[filter] = count + 1

    def remove(self, filter: str) -> None:
        count = self._counts.get(filter, 0)
        if count > 1:
            self._counts[filter] = count - 1
        elif count:
            del self._counts[filter]
            self._change(filter, -1)

    def _check(self, filter: str, others: "WatchedFilters") -> None:
        group, name = group_and_filter(filter)
        first, shape = _shape(group, name)
        if not shape or shape not in self._shapes.get(first, ()):
            logs = 1 + self._most(name, first, shape)
            most = MAX_LOGS_OF_MESSAGE // self._part
            if logs > most or logs + others._most(name, first, shape) > MAX_LOGS_OF_MESSAGE:
                raise LimitReached(403, f"a message may be kept for at most {most} filters of absent sessions")
        levels = name.count(".") + 1
        if shape and (self.nodes + levels > MAX_NODES // self._part or self.nodes + others.nodes + levels > MAX_NODES):
            raise LimitReached(403, "the sessions of this app have too many filters with wildcards")

    def _most(self, name: str, first: str, shape: str) -> int:
        """Returns the maximum number of logs of a channel that matches a filter. first, shape: see `_shape`."""
        if not self._counts:
            return 0
        wild = len(self._shapes.get("", ()))
        if not shape:
            return self._groups[name] + (name in self._counts) + wild + len(self._shapes.get(first, ()))
        return 1 + self._most_groups.value + wild + (len(self._shapes.get(first, ())) if first else self._most_shapes.value)

    def _change(self, filter: str, by: int) -> None:
        group, name = group_and_filter(filter)
        first, shape = _shape(group, name)
        if not shape:
            if group:
                self._groups[name] += by
                self._most_groups.change(self._groups[name], by)
                if not self._groups[name]:
                    del self._groups[name]
            return
        self.nodes += by * (name.count(".") + 1)
        shapes = self._shapes.setdefault(first, Counter())
        before = len(shapes)
        shapes[shape] += by
        if not shapes[shape]:
            del shapes[shape]
            if not shapes:
                del self._shapes[first]
        if first and len(shapes) != before:
            self._most_shapes.change(len(shapes), by)


class AppFilters:
    """The filters that an app's sessions watch. The filters of anonymous clients count separately, with a part of the bounds."""

    __slots__ = ("_anonymous", "_identified")

    def __init__(self) -> None:
        self._identified = WatchedFilters(1)
        self._anonymous = WatchedFilters(ANONYMOUS_PART)

    def __len__(self) -> int:
        return len(self._identified) + len(self._anonymous)

    def add(self, filter: str, is_anonymous: bool) -> None:
        """Adds a filter for one more session. Raises LimitReached."""
        mine, others = self._identified, self._anonymous
        if is_anonymous:
            mine, others = others, mine
        mine.add(filter, others)

    def remove(self, filter: str, is_anonymous: bool) -> None:
        (self._anonymous if is_anonymous else self._identified).remove(filter)


def _shape(group: str, name: str) -> tuple[str, str]:
    """Returns the first level of a filter, "" for a wildcard, and the shape; "" for the shape of a filter without wildcards."""
    levels = name.split(".")
    first = "" if levels[0] in ("+", "#") else levels[0]
    if is_exact(name):
        return first, ""
    return first, "/".join((group, *(level if level in ("+", "#") else "=" for level in levels)))
