"""Filters with wildcards, and the trie that finds the filters of a channel (MQTT 5.0 §4.7). Pure.

A filter is compared with the name of a channel, so its levels are separated by dots. `+` stands for one level, and `#` at the end
for any number of levels. `protocols/mqtt/topics.py` exchanges `/` and `.`, and checks the filters of clients.

All functions treat names as they are: they do not normalize names, and they distinguish upper and lower case [MQTT-4.7.3-4].
"""

import re
from collections.abc import Iterator
from typing import Generic, TypeVar

Value = TypeVar("Value")

MAX_PLUSES = 16
"""the maximum number of `+` in a filter: each `+` may double the number of nodes that a search visits"""
MAX_NODES = 50_000
"""the maximum number of nodes of a trie: a search through all of them takes some 30 ms, and they need some 12 MB"""

WILDCARDS = ("+", "#")
_WILDCARD = re.compile("[+#]")


def has_wildcard(name: str) -> bool:
    return _WILDCARD.search(name) is not None


def matches(filter: str, channel: str) -> bool:
    """Whether a channel matches a filter."""
    if channel[:1] == "$" and filter[:1] in ("+", "#"):  # [MQTT-4.7.2-1]
        return False
    wanted, levels = filter.split("."), channel.split(".")
    if wanted[-1] == "#":  # `a.#` matches `a` too (§4.7.1.2)
        wanted.pop()
        if len(levels) < len(wanted):
            return False
    elif len(levels) != len(wanted):
        return False
    return all(one in ("+", level) for one, level in zip(wanted, levels, strict=False))


def overlap(one: str, other: str) -> bool:
    """Whether any channel matches both filters."""
    firsts = one[:1] + other[:1]
    if "$" in firsts and ("+" in firsts or "#" in firsts):  # [MQTT-4.7.2-1]
        return False
    left, right = one.split("."), other.split(".")
    for a, b in zip(left, right, strict=False):
        if "#" in (a, b):
            return True
        if a != b and "+" not in (a, b):
            return False
    short, long = sorted((left, right), key=len)
    if len(short) == len(long):
        return True
    is_empty = len(short) == 1 and "" in (short[0], long[0])  # no channel has the name ""
    return long[len(short) :] == ["#"] and not is_empty  # `a.#` matches `a` too (§4.7.1.2)


class TrieNode(Generic[Value]):
    """One level of the filters in a `FilterTrie`. `value`: the value of the filter that ends here."""

    __slots__ = ("children", "value")

    def __init__(self) -> None:
        self.children: dict[str, TrieNode[Value]] | None = None
        self.value: Value | None = None


class FilterTrie(Generic[Value]):
    """A map from filters to values, which finds the values of all filters that match a channel. No value is None.

    A search visits existing nodes, and at most two for each node of the level above. So the number of nodes bounds the cost of a
    search: the owner adds a filter only if `has_room` permits it. No function is recursive.
    """

    __slots__ = ("_count", "_root", "nodes")

    def __init__(self) -> None:
        self._root: TrieNode[Value] = TrieNode()
        self._count = 0
        self.nodes = 0
        """the number of nodes below the root"""

    def __len__(self) -> int:
        return self._count

    def has_room(self, filter: str, share: int = 1) -> bool:
        """Whether the trie stays within `MAX_NODES // share` if the filter shares no nodes with other filters."""
        return self.nodes + filter.count(".") < MAX_NODES // share

    def __setitem__(self, filter: str, value: Value) -> None:
        node = self._root
        for level in filter.split("."):
            if node.children is None:
                node.children = {}
            child = node.children.get(level)
            if child is None:
                child = node.children[level] = TrieNode()
                self.nodes += 1
            node = child
        self._count += node.value is None
        node.value = value

    def get(self, filter: str) -> Value | None:
        node = self._root
        for level in filter.split("."):
            child = node.children.get(level) if node.children is not None else None
            if child is None:
                return None
            node = child
        return node.value

    def __delitem__(self, filter: str) -> None:
        """Removes a filter, and the nodes that no other filter needs. Raises KeyError if the trie does not have the filter."""
        path = [self._root]
        levels = filter.split(".")
        for level in levels:
            children = path[-1].children
            if children is None or level not in children:
                raise KeyError(filter)
            path.append(children[level])
        if path[-1].value is None:
            raise KeyError(filter)
        path[-1].value = None
        self._count -= 1
        for node, parent, level in zip(reversed(path), reversed(path[:-1]), reversed(levels), strict=False):
            if node.value is not None or node.children:
                break
            assert parent.children is not None
            del parent.children[level]
            self.nodes -= 1
            if not parent.children:
                parent.children = None

    def match(self, channel: str) -> tuple[list[Value], int]:
        """Returns the values of all filters that match a channel, and the number of visited nodes.

        In a channel's name, a level `+` or `#` has no meaning of its own: only wildcards of filters match it.
        """
        found: list[Value] = []
        visited = 1
        nodes = [self._root]
        takes_wildcards = channel[:1] != "$"  # [MQTT-4.7.2-1]
        for level in channel.split("."):
            following: list[TrieNode[Value]] = []
            for node in nodes:
                children = node.children
                if children is None:
                    continue
                if level not in WILDCARDS and (child := children.get(level)) is not None:
                    following.append(child)
                if takes_wildcards:
                    if (child := children.get("+")) is not None:
                        following.append(child)
                    if (child := children.get("#")) is not None and child.value is not None:
                        found.append(child.value)
            takes_wildcards = True
            visited += len(following)
            nodes = following
        for node in nodes:
            if node.value is not None:
                found.append(node.value)
            if node.children is not None and (child := node.children.get("#")) is not None and child.value is not None:
                found.append(child.value)  # `a.#` matches `a` too (§4.7.1.2)
        return found, visited

    def items(self) -> Iterator[tuple[str, Value]]:
        """Yields all filters with their values, in no particular order."""
        pending: list[tuple[str, TrieNode[Value]]] = [("", self._root)]
        while pending:
            name, node = pending.pop()
            for level, child in (node.children or {}).items():
                path = level if node is self._root else f"{name}.{level}"
                if child.value is not None:
                    yield path, child.value
                pending.append((path, child))
