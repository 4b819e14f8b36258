"""Converts YAML texts and environment variables to a tree of values. Each value contains its place, for errors.

The module uses PyYAML's nodes in place of Python objects, because a node contains its line number. The nodes also keep two
notations of the original Push1st's files that Python objects would lose. `{ enable: false, *default-ssl }` merges the aliased
mapping. `{ public, private }` is a mapping without values, and `readers.items` reads such a mapping as a list.

This module contains no list of allowed keys. The module limits the size and depth of a file. The number of values is also
limited, because ten lines of aliases can expand to a billion values. If a file is not YAML, the error quotes
at most one character of the file, to hide secrets.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from push1st.errors import ConfigError

MAX_BYTES = 1 << 20
MAX_DEPTH = 20
MIN_VALUES = 1000
"""The maximum number of values in a file of up to 1000 characters; in a longer file, the maximum is the number of characters."""

ValueKind = Literal["nothing", "text", "number", "flag", "other", "list", "mapping", "variable"]
_TAGS: dict[str, ValueKind] = {"null": "nothing", "str": "text", "int": "number", "bool": "flag"}
_WORDS: dict[ValueKind, str] = {
    "text": "text",
    "number": "a whole number",
    "flag": "true or false",
    "other": "a number or date",
    "variable": "text",
}
_MERGE = "tag:yaml.org,2002:merge"
MAX_SHOWN = 60
MAX_NAME = 128


class Value(msgspec.Struct, frozen=True):
    """A value of the tree.

    kind: the type of the value; `variable` is the text of an environment variable, which the reader of the key converts.
    place: the file and the line, such as `server.yml:12`, or the name of a variable.
    path: the path of keys, such as `server.drain`.
    text: the text of a scalar, as in the file.
    items: the items of a list.
    keys: the keys of a mapping with their values.
    """

    kind: ValueKind
    place: str
    path: str
    text: str = ""
    items: tuple["Value", ...] = ()
    keys: dict[str, "Value"] = {}

    def found(self, show: bool = True) -> str:
        """Describes the value for an error. If `show` is false, the description contains only the type of the value."""
        word = _WORDS.get(self.kind)
        if word is None:
            return "a section of keys" if self.kind == "mapping" else "a list" if self.kind == "list" else "nothing"
        if not show and self.kind != "flag":
            return word
        text = self.text if len(self.text) <= MAX_SHOWN else self.text[:MAX_SHOWN] + "…"
        return f'"{_printable(text)}" ({word})'

    def at(self, *keys: str) -> "Value | None":
        """Returns the value at a path of keys, or None if there is no such value."""
        value: Value | None = self
        for key in keys:
            value = value.keys.get(key) if value else None
        return value

    def __str__(self) -> str:
        return f"{self.place}: {self.path}" if self.path else self.place


def not_allowed(value: Value, allowed: str, *, show: bool = True) -> ConfigError:
    """Returns the error for a value that is not allowed. If `show` is false, the error does not contain the value."""
    return ConfigError(f"{value}: found {value.found(show)}, allowed: {allowed}")


def each(reads: Iterable[Callable[[], Any]]) -> list[Any]:
    """Calls all functions in `reads`; returns the results. Raises one ConfigError with the errors of all failed functions."""
    results, lines = [], []
    for read in reads:
        try:
            results.append(read())
        except ConfigError as exc:
            lines.append(str(exc))
    refuse(lines)
    return results


def refuse(lines: Sequence[str]) -> None:
    """Raises a ConfigError that contains `lines`, unless `lines` is empty."""
    if lines:
        raise ConfigError("\n".join(lines))


def name_of(key: str) -> str:
    """Returns a key as text, for use in an error message.

    The text is "…" if the key contains a colon or a space. A key with a colon may contain a secret: `key:secret`.
    """
    return key if len(key) <= MAX_NAME and key.isprintable() and not {" ", ":"} & set(key) else "…"


def read(file: Path, name: str, problems: list[str]) -> Value:
    """Returns the tree of a file. Raises ConfigError.

    name: the name of the file for errors.
    problems: a list to which the function appends a line for each duplicate key. The function then continues.
    """
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{name}: cannot be read: {getattr(exc, 'strerror', None) or exc}") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{name}: found more than {MAX_BYTES} bytes, allowed: at most that many")
    try:
        return parse(data.decode("utf-8-sig"), name, problems)
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise ConfigError(f"{name}:{line}: found bytes that are not UTF-8, allowed: UTF-8 text") from None


def parse(text: str, name: str, problems: list[str]) -> Value:
    """Returns the tree of a YAML text; an empty text is an empty mapping. `name` and `problems` are as in `read`."""
    try:
        node = _compose(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader), name)
    except _SYNTAX:
        try:
            node = _compose(text, _Loader, name)
        except _SYNTAX as exc:
            raise _syntax_error(exc, name, text) from None
    tree = _Builder(name, max(MIN_VALUES, len(text)), problems).value(node, "") if node else Value("nothing", f"{name}:1", "")
    if tree.kind == "nothing":
        return msgspec.structs.replace(tree, kind="mapping")
    if tree.kind != "mapping":
        raise not_allowed(tree, "a section of keys", show=False)
    return tree


def variable(name: str, path: Iterable[str], text: str) -> Value:
    """Returns the value of an environment variable."""
    return Value("variable", name, ".".join(path), text)


def tree_of(leaves: Iterable[tuple[tuple[str, ...], Value]], place: str, path: str = "") -> Value:
    """Returns a mapping that contains each leaf at its path of keys.

    place: the place of the mapping, for errors.
    path: the path of keys that leads to the mapping.
    """
    groups: dict[str, list[tuple[tuple[str, ...], Value]]] = {}
    for keys, leaf in leaves:
        groups.setdefault(keys[0], []).append((keys[1:], leaf))
    children = {
        key: group[0][1] if group[0][0] == () else tree_of(group, group[0][1].place, f"{path}.{key}" if path else key)
        for key, group in groups.items()
    }
    return Value("mapping", place, path, keys=children)


def merged(below: Value, above: Value) -> Value:
    """Merges two trees. If both trees have a value at a key, the result has the value of `above`.

    If `below` has a scalar where `above` has a section, the result has the scalar, which the reader of the key rejects.
    """
    if above.kind != "mapping" or below.kind == "nothing":
        return above
    if below.kind != "mapping":
        return below
    keys = dict(below.keys)
    for key, value in above.keys.items():
        keys[key] = merged(keys[key], value) if key in keys else value
    return msgspec.structs.replace(below, keys=keys)


class _Builder:
    """Converts nodes to values, and counts the values, because nested aliases can multiply the values.

    limit: the maximum number of values.
    """

    def __init__(self, name: str, limit: int, problems: list[str]) -> None:
        self._name = name
        self._left = limit
        self._problems = problems

    def value(self, node: yaml.Node, path: str, place: str = "", depth: int = 0) -> Value:
        place = place or self._place(node)
        self._left -= 1
        if depth > MAX_DEPTH or self._left < 0:
            raise ConfigError(f"{place}: found aliases that repeat too much, allowed: sections without aliases to themselves")
        if isinstance(node, yaml.MappingNode):
            return Value("mapping", place, path, keys=self._keys(node, path, depth))
        if isinstance(node, yaml.SequenceNode):
            return Value("list", place, path, items=tuple(self.value(item, path, depth=depth + 1) for item in node.value))
        kind = _TAGS.get(node.tag.removeprefix("tag:yaml.org,2002:"), "other")
        return Value(kind, place, path, node.value)

    def _keys(self, node: yaml.MappingNode, path: str, depth: int) -> dict[str, Value]:
        keys: dict[str, Value] = {}
        aliased: dict[str, Value] = {}
        for key, child in node.value:
            if not isinstance(key, yaml.ScalarNode):  # { *alias }
                source = key if _is_nothing(child) else None
            elif key.tag == _MERGE:  # <<: *alias
                source = child
            elif key.tag == "tag:yaml.org,2002:null" and _is_nothing(child):  # { *alias }, where the aliased section is empty
                source = key
            else:
                source = None
            if source is not None:
                for more in self._merge(source, path, depth):
                    aliased = more | aliased
                continue
            if not isinstance(key, yaml.ScalarNode):
                self._problems.append(str(not_allowed(self.value(key, path, depth=depth + 1), "text as a key")))
                continue
            place = self._place(key)
            full = f"{path}.{name_of(key.value)}" if path else name_of(key.value)
            if key.value in keys:
                first = keys[key.value].place
                self._problems.append(f"{place}: {full}: found a second time, first at {first}, allowed: each key once")
                continue
            keys[key.value] = self.value(child, full, place, depth + 1)
        return aliased | keys

    def _merge(self, node: yaml.Node, path: str, depth: int) -> Iterator[dict[str, Value]]:
        source = self.value(node, path, depth=depth + 1)
        for mapping in source.items if source.kind == "list" else (source,):
            if mapping.kind in ("mapping", "nothing"):
                yield mapping.keys
            else:
                self._problems.append(str(not_allowed(mapping, "a section of keys to merge", show=False)))

    def _place(self, node: yaml.Node) -> str:
        return self._name + _line(node.start_mark)


def _line(mark: Any) -> str:
    return f":{mark.line + 1}" if mark else ""


def _is_nothing(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


_BLANK = "\0 \t\r\n\x85\u2028\u2029"


class _Loader(yaml.SafeLoader):
    """Reads `::1` in `[ 127.0.0.1, ::1 ]` as a plain scalar, as YAML 1.2 §7.3.3 requires. PyYAML implements YAML 1.1.

    This loader is slower than PyYAML's loader, so this module uses this loader only after an error of PyYAML's loader.
    """

    def check_value(self) -> bool:
        quoted = self.tokens and isinstance(
            self.tokens[-1], yaml.FlowMappingEndToken | yaml.FlowSequenceEndToken | yaml.ScalarToken
        )
        if self.flow_level and not quoted and self.peek(1) not in _BLANK + ",[]{}":
            return False
        return bool(super().check_value())

    def check_plain(self) -> bool:
        return bool(super().check_plain() or (self.flow_level and self.peek() == ":"))


COLON = re.compile(r"[A-Za-z_][\w-]*:(?!//)\S")
"""a key and a value without a space between them; YAML reads both together as a single text"""
_SYNTAX = (yaml.YAMLError, OverflowError, ValueError)  # OverflowError and ValueError: from escapes such as "\UFFFFFFFF"


def _compose(text: str, loader: Any, name: str) -> yaml.Node | None:
    depth = 0
    for event in yaml.parse(text, Loader=loader):  # checks the depth of the text first, because `compose` is recursive
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                place = name + _line(event.start_mark)
                raise ConfigError(f"{place}: found more than {MAX_DEPTH} levels of sections, allowed: fewer")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return yaml.compose(text, Loader=loader)


def _syntax_error(exc: Exception, name: str, text: str) -> ConfigError:
    """Returns the error for a text that is not YAML. The error describes a frequent mistake, or has PyYAML's text."""
    mark: Any = getattr(exc, "problem_mark", None)
    if mark and (tab := _tab(text, mark.line, mark.column)):
        return ConfigError(f"{name}:{tab}: found a tab, allowed: spaces, because YAML allows no tab before a key or a value")
    if mark and (known := _known_mistake(exc, mark.line, text.splitlines())):
        return ConfigError(f"{name}:{known}")
    # PyYAML's error may quote a part of a secret, so `re.sub` removes quoted text of two or more characters.
    problem = re.sub(r"(['\"]).{2,}\1", "", getattr(exc, "problem", None) or "characters that are not allowed").strip()
    place = name + _line(mark)
    return ConfigError(f"{place}: found no YAML ({problem}), allowed: YAML; text with [ ] {{ }} # & * ! : in it may need quotes")


def _known_mistake(error: Any, line: int, lines: list[str]) -> str:
    """Returns the line number, the description, and the correction of a frequent mistake, as one string; "" for other mistakes.

    line: the line that PyYAML reports, counted from 0. The mistake is often in an earlier line.
    """
    start = error.context_mark.line if error.context_mark else line
    problem, context = error.problem or "", error.context or ""
    of = "" if start == line else f" of line {start + 1}"
    if context == "while scanning a simple key" or problem == "mapping values are not allowed here":
        for number in range(line, max(start - 2, -1), -1):
            if lines[number:] and COLON.match(lines[number].lstrip(" -")):
                return f"{number + 1}: found a colon without a space after it, allowed: KEY: VALUE"
        if context:
            return f"{start + 1}: found a key without a colon, allowed: KEY: VALUE"
        return (
            f"{line + 1}: found a colon too many, or a wrong indentation, allowed: KEY: VALUE; a VALUE with a colon needs quotes"
        )
    if context == "while parsing a flow node" and "<stream end>" in problem:
        return f"{line + 1}: found the end of the file after [ or {{, allowed: one ] or }} for each of them"
    if context in ("while parsing a flow sequence", "while parsing a flow mapping"):
        opened, closed = "[]" if context.endswith("sequence") else "{}"
        allowed = f"commas between the values, and {closed} after the last"
        return f"{line + 1}: found neither a comma nor {closed} for the {opened}{of}, allowed: {allowed}"
    if context == "while scanning a quoted scalar":
        return f"{start + 1}: found a quotation mark without a second one, allowed: text between two of them"
    if context == "while parsing a block mapping" and "<block " in problem.partition("but found")[2]:
        return (
            f"{line + 1}: found an indentation that fits no section, allowed: the same number of spaces for all keys of a section"
        )
    return ""


def _tab(text: str, line: int, column: int) -> int:
    """Returns the number of the line with the tab that causes a syntax error; 0 if no tab causes it.

    line, column: the numbers of the line and the column that PyYAML reports.
    """
    lines = text.splitlines()[: line + 1]
    if lines[line:] and lines[line][column : column + 1] == "\t":
        return line + 1
    return next((number for number, one in enumerate(lines, 1) if "\t" in one[: len(one) - len(one.lstrip())]), 0)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
