"""Describes the keys of configuration sections in tables, and converts sections to structs by these tables.

A `Table` lists the keys of a section. `fill` reads a section by its table. The tables also define the keys without effect, and
the names of environment variables. The module `tables` has all tables.

A reader of a key (`readers`) converts a `Value` to the content of the key's field, or raises a ConfigError.
A key without a value (`key:`) counts as a missing key.
"""

from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from functools import partial
from typing import Any, TypeVar

import msgspec

from push1st.config.tree import COLON, Value, each, name_of, not_allowed
from push1st.errors import ConfigError

Read = Callable[[Value], Any]
Finish = Callable[[Any, Value], Any]
S = TypeVar("S", bound=msgspec.Struct)


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A key of a section. A key contains a value, or a subsection.

    read: the function that reads the key's value.
    table: the keys of the subsection; None if the key contains a value.
    empty: a function that makes the struct of the subsection, if the field of the key is None.
    into: the name of the field that the key sets; "" if the field has the same name as the key.
    flat: whether the keys of the subsection set fields of the outer section's struct. If the key contains a value, `read` returns
    a dictionary from fields to contents.
    dropped: whether the value is only checked, and not stored.
    note: the reason why the key has no effect, or "". The server does not store the value of a key without effect.
    unset: values that only the original Push1st supports, each with a note. This server treats them like a missing value.
    finish: a function that checks or completes the struct of the subsection.
    variable: whether an environment variable may set the key.
    """

    read: Read = lambda value: value
    table: "Table | None" = None
    empty: Callable[[], msgspec.Struct] | None = None
    into: str = ""
    flat: bool = False
    dropped: bool = False
    note: str = ""
    unset: dict[str, str] = {}
    finish: Finish | None = None
    variable: bool = True


Table = dict[str, Key]


def fill(base: S, table: Table, section: Value) -> S:
    """Returns `base` with the values of a section. Raises ConfigError with a line for each problem."""
    return msgspec.structs.replace(base, **changes(base, table, section))


def changes(base: Any, table: Table, section: Value) -> dict[str, Any]:
    """Returns the fields of `base` that a section sets, with their new values."""
    if section.kind == "nothing":
        return {}
    if section.kind != "mapping":
        if section.kind == "text" and COLON.match(section.text):
            raise ConfigError(f"{section}: found a colon without a space after it, allowed: KEY: VALUE")
        useful = [name for name, key in table.items() if not key.note]
        example = f"{section.path.rpartition('.')[2]}: {{ {useful[0]}: … }}" if useful else ""
        names = ", ".join(useful or table)
        raise not_allowed(section, f"a section with the keys {names}{example and ', such as ' + example}", show=False)
    found = each(partial(_change, base, table, name, value) for name, value in section.keys.items())
    return {field: value for change in found for field, value in change.items()}


def _change(base: Any, table: Table, name: str, value: Value) -> dict[str, Any]:
    key = table.get(name)
    if key is None:
        useful = {name: key for name, key in table.items() if not key.note}
        if value.kind == "nothing" and (before := name.partition(":")[0]) in useful:
            raise ConfigError(f"{value}: found {before}: without a space after the colon, allowed: {before}: VALUE")
        if name == "apps" and "credentials" in table:
            raise ConfigError(f"{value}: unknown key, allowed: apps in files of their own, under credentials: [ apps/*.yml ]")
        raise ConfigError(f"{value}: unknown key, {suggestion(name, useful or table)}")
    if value.kind == "nothing" or value.text in key.unset:
        return {}
    field = key.into or name.replace("-", "_")
    if key.table is None:
        new = key.read(value)
    elif key.flat or key.dropped or key.note:
        new = changes(base, key.table, value)
    else:
        struct: msgspec.Struct | None = getattr(base, field)
        if struct is None:
            assert key.empty is not None, "a section whose field may be None names its struct"
            struct = key.empty()
        new = fill(struct, key.table, value)
        new = key.finish(new, value) if key.finish else new
    if key.dropped or key.note:
        return {}
    return dict(new) if key.flat else {field: new}


def suggestion(name: str, allowed: "Table | dict[str, Any]") -> str:
    """Returns a hint: the most similar allowed key, the key of the same name in a subsection, or the list of all allowed keys."""
    near = get_close_matches(name_of(name), allowed, 1)
    sections = {section: key.table or {} for section, key in allowed.items() if isinstance(key, Key) and not key.dropped}
    inside = [f"{section}.{name}" for section, table in sections.items() if name in table and not table[name].note]
    if inside or near:
        return f"did you mean {' or '.join(inside or near)}?"
    return f"allowed: {', '.join(allowed)}"


def nearest(text: str, allowed: Iterable[str]) -> str:
    """Returns a question that suggests the most similar allowed word; "" if no word is similar."""
    near = get_close_matches(text.lower(), allowed, 1)
    return f"; did you mean {near[0]}?" if near else ""


def notes(table: Table, section: Value) -> Iterator[tuple[Value, str]]:
    """Yields each value of a section that has no effect, with the reason."""
    for name, value in section.keys.items():
        key = table.get(name)
        if key is None or value.kind == "nothing":
            continue
        if note := key.note or key.unset.get(value.text):
            yield value, note
        elif key.table is not None:
            yield from notes(key.table, value)


def variables(table: Table, prefix: str = "PUSH1ST") -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yields the names of the environment variables that set keys of a table, each with its path of keys."""
    for name, key in table.items():
        full = prefix if key.flat and key.table is not None else f"{prefix}_{name.replace('-', '_').upper()}"
        if key.note or key.dropped or not key.variable:
            continue
        if key.table is None:
            yield full, (name,)
        else:
            yield from ((variable, (name, *path)) for variable, path in variables(key.table, full))
