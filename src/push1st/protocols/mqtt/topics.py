"""Topics and filters of MQTT: their rules, their channels, and the trie that finds the filters of a topic (§4.7). Pure.

A topic is the name of a channel with `/` and `.` exchanged. The exchange is its own inverse, and loses nothing. The levels of a
topic are the dotted parts of a channel's name. The one exception is `$user/ID`: the topic of the events to a signed-in user.

All functions treat names as they are: they do not normalize names, and they distinguish upper and lower case [MQTT-4.7.3-4].
"""

import re
from collections.abc import Iterator
from typing import Generic, TypeVar

from push1st.messages import user_channel

Value = TypeVar("Value")

MAX_TOPIC_BYTES = 1024
MAX_SLASHES = 200
"""the maximum number of `/` in a topic or filter; mosquitto has the same bound"""
MAX_PLUSES = 16
"""the maximum number of `+` in a filter: each `+` may double the number of nodes that a search visits"""

MAX_NODES = 50_000
"""the maximum number of nodes of a trie: a search through all of them takes some 30 ms, and they need some 12 MB"""

SHARE = "$share/"
SYS = "$SYS/"
CONTROL = "$CONTROL/"
USER = "$user/"
_USER_CHANNEL = user_channel("")

_EXCHANGED = bytes.maketrans(b"/.", b"./")
_NONCHARACTERS = "".join(chr(plane + last) for plane in range(0, 0x110000, 0x10000) for last in (0xFFFE, 0xFFFF))
_NOT_TEXT = re.compile(f"[\x00-\x1f\x7f-\x9f\ud800-\udfff{_NONCHARACTERS}]")
_WILDCARD = re.compile("[+#]")
_PARTIAL_WILDCARD = re.compile(r"[^/]\+|\+[^/]|[^/]#|#.", re.DOTALL)
"""a wildcard that is not a whole level, or `#` that is not the last level"""


def exchange(name: str) -> str:
    """Exchanges `/` and `.` in a topic, a filter or the name of a channel.

    measured: three times faster than `str.translate`, which looks up each character in a dictionary.
    """
    return name.encode().translate(_EXCHANGED).decode()


def channel_of(topic: str) -> str:
    """Returns the name of a topic's channel."""
    return user_channel(topic[len(USER) :]) if topic.startswith(USER) else exchange(topic)


def topic_of(channel: str) -> str | None:
    """Returns the topic of a channel; None if no topic may have this name [MQTT-3.3.2-2]."""
    topic = USER + channel[len(_USER_CHANNEL) :] if channel.startswith(_USER_CHANNEL) else exchange(channel)
    return None if _WILDCARD.search(topic) else topic


def is_text(text: str) -> bool:
    """Whether a UTF-8 string may be in a packet: it has no control characters, surrogates or U+xFFFE and U+xFFFF.

    MQTT prohibits U+0000 and surrogates [MQTT-1.5.4-1, -2], and discourages the others; mosquitto rejects them all.
    """
    return text.isprintable() or _NOT_TEXT.search(text) is None


def is_within_limits(name: str) -> bool:
    """Whether a topic or filter has at least one character [MQTT-4.7.3-1], and is not too long or too deep."""
    return 0 < len(name.encode()) <= MAX_TOPIC_BYTES and name.count("/") <= MAX_SLASHES


def has_wildcard(name: str) -> bool:
    return _WILDCARD.search(name) is not None


def is_topic(name: str) -> bool:
    """Whether a text may be the topic of a message. The text has passed `is_text`."""
    return is_within_limits(name) and not has_wildcard(name)  # [MQTT-3.3.2-2, MQTT-4.7.0-1]


def is_filter(name: str) -> bool:
    """Whether a text may be a filter. The text has passed `is_text`. The group of a shared filter is not checked."""
    if not is_within_limits(name):
        return False
    if name.startswith(SHARE):
        name = name[len(SHARE) :].partition("/")[2]
    return _PARTIAL_WILDCARD.search(name) is None  # [MQTT-4.7.1-1, MQTT-4.7.1-2]


def share_of(filter: str) -> tuple[str, str] | None:
    """Returns the group and the filter of a shared filter `$share/GROUP/FILTER`; "" and the filter if it is not shared.

    Returns None if the group or the filter is empty, or if the group contains a wildcard [MQTT-4.8.2-1, -2].
    """
    if not filter.startswith(SHARE):
        return "", filter
    group, _, rest = filter[len(SHARE) :].partition("/")
    return None if not group or not rest or has_wildcard(group) else (group, rest)


def matches(filter: str, topic: str) -> bool:
    """Whether a topic matches a filter, which is not shared."""
    if topic[:1] == "$" and filter[:1] in ("+", "#"):  # [MQTT-4.7.2-1]
        return False
    wanted, levels = filter.split("/"), topic.split("/")
    if wanted[-1] == "#":  # `a/#` matches `a` too [MQTT-4.7.1-1]
        wanted.pop()
        if len(levels) < len(wanted):
            return False
    elif len(levels) != len(wanted):
        return False
    return all(one in ("+", level) for one, level in zip(wanted, levels, strict=False))


def overlap(one: str, other: str) -> bool:
    """Whether any topic matches both filters, which are not shared."""
    firsts = one[:1] + other[:1]
    if "$" in firsts and ("+" in firsts or "#" in firsts):  # [MQTT-4.7.2-1]
        return False
    left, right = one.split("/"), other.split("/")
    for a, b in zip(left, right, strict=False):
        if "#" in (a, b):
            return True
        if a != b and "+" not in (a, b):
            return False
    short, long = sorted((left, right), key=len)
    return len(short) == len(long) or long[len(short) :] == ["#"]  # `a/#` matches `a` too [MQTT-4.7.1-1]


class TrieNode(Generic[Value]):
    """One level of the filters in a `FilterTrie`. `value`: the value of the filter that ends here."""

    __slots__ = ("children", "value")

    def __init__(self) -> None:
        self.children: dict[str, TrieNode[Value]] | None = None
        self.value: Value | None = None


class FilterTrie(Generic[Value]):
    """A map from filters to values, which finds the values of all filters that match a topic. No filter is shared, no value None.

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

    def has_room(self, filter: str) -> bool:
        """Whether the trie stays within `MAX_NODES` if the filter shares no nodes with other filters."""
        return self.nodes + filter.count("/") < MAX_NODES

    def __setitem__(self, filter: str, value: Value) -> None:
        node = self._root
        for level in filter.split("/"):
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
        for level in filter.split("/"):
            child = node.children.get(level) if node.children is not None else None
            if child is None:
                return None
            node = child
        return node.value

    def __delitem__(self, filter: str) -> None:
        """Removes a filter, and the nodes that no other filter needs. Raises KeyError if the trie does not have the filter."""
        path = [self._root]
        levels = filter.split("/")
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

    def match(self, topic: str) -> tuple[list[Value], int]:
        """Returns the values of all filters that match a topic, and the number of visited nodes. `topic`: has no wildcards."""
        found: list[Value] = []
        visited = 1
        nodes = [self._root]
        takes_wildcards = topic[:1] != "$"  # [MQTT-4.7.2-1]
        for level in topic.split("/"):
            following: list[TrieNode[Value]] = []
            for node in nodes:
                children = node.children
                if children is None:
                    continue
                if (child := children.get(level)) is not None:
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
                found.append(child.value)  # `a/#` matches `a` too [MQTT-4.7.1-1]
        return found, visited

    def items(self) -> Iterator[tuple[str, Value]]:
        """Yields all filters with their values, in no particular order."""
        pending: list[tuple[str, TrieNode[Value]]] = [("", self._root)]
        while pending:
            name, node = pending.pop()
            for level, child in (node.children or {}).items():
                path = level if node is self._root else f"{name}/{level}"
                if child.value is not None:
                    yield path, child.value
                pending.append((path, child))
