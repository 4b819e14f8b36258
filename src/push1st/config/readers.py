"""Readers of configuration values. A reader converts a `Value` to the content of a field, or raises a ConfigError.

The error contains the value's place, the value, and a description of the allowed values. A reader of a list reports all items
that are not allowed.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from push1st.channels import CONTROL
from push1st.config.addresses import Listen, Networks, network
from push1st.config.brokerurl import ALLOWED as BROKER_URLS
from push1st.config.brokerurl import parse as parse_broker
from push1st.config.model import EMBEDDED, MAX_SECRETS
from push1st.config.schema import Read, nearest
from push1st.config.tree import Value, each, not_allowed
from push1st.errors import ConfigError

_OFF = ("false", "off", "no", "disable", "none")
_FLAGS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_NUMBER = re.compile(r"(0|[1-9][0-9_]{0,17})\Z")
_SURROGATE = re.compile("[\ud800-\udfff]")
_URL_PATH = re.compile(r"[A-Za-z0-9_.~/-]*\Z")
_IDENTIFIER = re.compile(r"[!-~]{1,128}\Z")
_SEPARATORS = frozenset("/?#%:\\\"'")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+\Z")


def scalar(value: Value, allowed: str, *, numbers: bool = False, show: bool = True) -> str:
    """Returns a text that contains no control characters.

    allowed: a description of the allowed values, for the error.
    numbers: whether a number is also allowed; the result is the number as written in the file.
    show: whether the error may contain the value.
    """
    if value.kind not in ("text", "variable", *(["number"] if numbers else [])):
        quotes = f"{allowed}, in quotes" if value.kind in ("number", "flag", "other") else allowed
        raise not_allowed(value, quotes, show=show)
    if CONTROL.search(value.text) or _SURROGATE.search(value.text):
        raise not_allowed(value, f"{allowed}, without control characters", show=show)
    return value.text


def text(allowed: str, pattern: re.Pattern[str] | None = None, *, numbers: bool = False, show: bool = True) -> Read:
    """Returns a reader of texts that match a pattern. The other parameters are as in `scalar`."""

    def read(value: Value) -> str:
        found = scalar(value, allowed, numbers=numbers, show=show)
        if pattern and not pattern.match(found):
            raise not_allowed(value, allowed, show=show)
        return found

    return read


def whole(least: int, most: int, of: str = "", hint: str = "", *, or_zero: bool = False) -> Read:
    """Returns a reader of whole numbers from `least` to `most`. The error contains the unit `of`, and ends with `hint`.

    or_zero: whether the number 0 is also allowed.
    """
    allowed = f"{'0, or ' if or_zero else ''}a whole number {f'of {of} ' if of else ''}from {least} to {most}{hint}"

    def read(value: Value) -> int:
        if value.kind in ("number", "variable") and _NUMBER.match(value.text):
            found = int(value.text)
            if least <= found <= most or (or_zero and found == 0):
                return found
        raise not_allowed(value, allowed)

    return read


def flag(value: Value) -> bool:
    """Reads true or false."""
    found = _FLAGS.get(value.text.lower()) if value.kind in ("flag", "variable") else None
    if found is None:
        quoted = value.kind == "text" and value.text.lower() in _FLAGS
        raise not_allowed(value, "true or false" + (", without quotes" if quoted else nearest(value.text, ("true", "false"))))
    return found


def word(*allowed: str) -> Read:
    """Returns a reader of values that must be one of the words in `allowed`."""

    def read(value: Value) -> str:
        if value.kind not in ("text", "variable") or value.text not in allowed:
            raise not_allowed(value, " or ".join(allowed) + nearest(value.text, allowed))
        return value.text

    return read


def items(value: Value, of: str) -> tuple[Value, ...]:
    """Returns the items of a list.

    In a file, a list is `[ a, b ]`, `{ a, b }`, or a single value. In an environment variable, commas separate the items.
    """
    if value.kind == "list":
        return tuple(item for item in value.items if item.kind != "nothing")
    if value.kind == "variable":
        words = [] if value.text.strip() == "[]" else value.text.split(",")
        return tuple(msgspec.structs.replace(value, text=word.strip()) for word in words)
    if value.kind != "mapping":
        return (value,)
    if any(child.kind != "nothing" for child in value.keys.values()):
        raise not_allowed(value, f"a list of {of}")
    return tuple(msgspec.structs.replace(child, kind="text", path=value.path, text=key) for key, child in value.keys.items())


def listed(read: Read, of: str, *, distinct: bool = False) -> Read:
    """Returns a reader of lists. The reader returns a tuple, or a frozenset if `distinct` is true.

    read: the reader of an item.
    of: the name of the items, for the error.
    """

    def read_all(value: Value) -> Any:
        found = each(partial(read, item) for item in items(value, of))
        return frozenset(found) if distinct else tuple(found)

    return read_all


def words(*allowed: str) -> Read:
    """Returns a reader of lists in which each item must be one of the words in `allowed`."""
    return listed(word(*allowed), " or ".join(allowed), distinct=True)


def parsed(parse: Callable[[str], Any], of: str) -> Read:
    """Returns a reader of texts that `parse` converts. A ValueError of `parse` contains a description of the allowed values."""

    def read(value: Value) -> Any:
        found = scalar(value, of)
        try:
            return parse(found)
        except ValueError as exc:
            raise not_allowed(value, str(exc)) from None

    return read


def off(value: Value | None) -> bool:
    """Returns whether the value of a key `listen` switches the listener off."""
    return value is not None and value.kind in ("flag", "text", "variable") and value.text.lower() in _OFF


def listen(*, tls: bool = False) -> Read:
    """Returns a reader of a listener's addresses. The reader returns an empty tuple if the value switches the listener off.

    tls: whether an address `tls://HOST:PORT` is allowed.
    """
    of = f"tcp://HOST:PORT, {'tls://HOST:PORT, ' if tls else ''}unix://PATH or false"
    read = listed(parsed(partial(Listen.parse, tls=tls), of), "addresses")
    return lambda value: () if off(value) else read(value)


def networks(*, unix: bool = False) -> Read:
    """Returns a reader of lists of networks. If `unix` is true, the word `unix` is allowed as well."""
    of = f"an IP address, a network{' or unix' if unix else ''}"
    read = listed(parsed(lambda found: found if unix and found == "unix" else network(found), of), "networks")

    def read_all(value: Value) -> Networks:
        found = read(value)
        return Networks((net for net in found if net != "unix"), "unix" in found)

    return read_all


def url_path(value: Value) -> str:
    """Reads the path of a URL. Returns the path with a slash at both ends, even if the path in the file has no such slashes."""
    allowed = "a path such as /app/, of letters, digits and _ . ~ - /"
    found = scalar(value, allowed)
    if not _URL_PATH.match(found):
        raise not_allowed(value, allowed)
    inner = "/".join(part for part in found.split("/") if part)
    return f"/{inner}/" if inner else "/"


def identifier(value: Value) -> str:
    """Reads an app's id or key. The characters that separate the parts of a URL or of a signed text are not allowed."""
    allowed = "1 to 128 visible ASCII characters other than / ? # % : \\ and quotes"
    found = scalar(value, allowed, numbers=True, show=False)
    if not _IDENTIFIER.match(found) or _SEPARATORS & set(found):
        raise not_allowed(value, allowed, show=False)
    return found


def secrets(value: Value) -> dict[str, Any]:
    """Reads the secrets of an app: a text, or a list of texts; the first signs. In an environment variable, `[a, b]` is a list.

    A text with commas but without brackets is one secret, because a secret may contain commas.
    """
    allowed = f"a text, or a list of 1 to {MAX_SECRETS} different texts, of which the first signs"
    read = text(allowed, numbers=True, show=False)
    if value.kind == "list":
        words = value.items
    elif value.kind == "variable" and value.text.startswith("[") and value.text.endswith("]"):
        words = tuple(msgspec.structs.replace(value, text=word.strip()) for word in value.text[1:-1].split(","))
    else:
        return {"secret": read(value), "older_secrets": ()}
    first, *older = found = each(partial(read, word) for word in words) or [""]
    if not all(found) or len(found) > MAX_SECRETS or len(set(found)) < len(found):
        raise not_allowed(value, allowed, show=False)
    return {"secret": first, "older_secrets": tuple(older)}


def workers(value: Value) -> int | str:
    """Reads a number of workers, or `auto`."""
    if value.text == "auto":
        return "auto"
    try:
        return int(whole(1, 1024)(value))
    except ConfigError:
        raise not_allowed(value, "a whole number from 1 to 1024, or auto") from None


def broker(value: Value) -> str:
    """Reads the broker: `memory`, the path of an embedded engine, or a URL."""
    allowed = f"memory, {EMBEDDED}/PATH of a valkey-server, or a URL such as {BROKER_URLS}"
    found = scalar(value, allowed, show=False)
    if found != "memory" and not found.startswith(f"{EMBEDDED}/"):
        try:
            parse_broker(found)
        except ValueError as exc:
            raise ConfigError(f"{value}: found {exc}, allowed: {allowed}") from None
    return found


def headers(value: Value) -> tuple[tuple[str, str], ...]:
    """Reads a section of HTTP headers."""
    if value.kind != "mapping":
        raise not_allowed(value, "a section of header names and values", show=False)
    if any(not _HEADER.match(name) for name in value.keys):
        raise ConfigError(f"{value}: found a name that is not allowed for a header, allowed: names such as X-Token")
    read = text("text", numbers=True, show=False)
    return tuple(zip(value.keys, each(partial(read, child) for child in value.keys.values()), strict=True))
