"""Every key of the configuration: what may stand there, which field it sets, and what is only accepted.

The tables below are the whole truth: reading, unknown keys, notes about keys without effect and the names of
environment variables all follow from them. Names are those of the Push1st API, section 9.

A reader takes a `Value` and returns what belongs in the field, or raises a ConfigError; a list reports every bad item.
Nothing (`key:` with no value) is the same as no key.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from functools import partial
from typing import Any, TypeVar

import msgspec

from push1st.channels import CONTROL, type_names
from push1st.config.brokerurl import ALLOWED as BROKER_URLS
from push1st.config.brokerurl import parse as parse_broker
from push1st.config.model import (
    EMBEDDED,
    PROTOCOLS,
    QUESTIONS,
    TRIGGERS,
    WEBHOOK_EVENTS,
    AppConfig,
    Authorize,
    Hook,
    Listen,
    Networks,
    ServerConfig,
    Ssl,
    Webhook,
    network,
)
from push1st.config.tree import COLON, Value, each, name_of, wrong
from push1st.errors import ConfigError
from push1st.limits import Limits

Read = Callable[[Value], Any]
Finish = Callable[[Any, Value], Any]
S = TypeVar("S", bound=msgspec.Struct)

SECONDS_A_DAY = 86_400
MOST = 2**31 - 1
_OFF = ("false", "off", "no", "disable", "none")
_FLAGS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_NUMBER = re.compile(r"(0|[1-9][0-9_]{0,17})\Z")
_SURROGATE = re.compile("[\ud800-\udfff]")
_URL_PATH = re.compile(r"[A-Za-z0-9_.~/-]*\Z")
_IDENTIFIER = re.compile(r"[!-~]{1,128}\Z")
_APART = frozenset("/?#%:\\\"'")
_PY = r"py://[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*\Z"
_HOOK_URL = re.compile(rf"(https?|lua)://\S+\Z|{_PY}")
_ASK_URL = re.compile(rf"https?://\S+\Z|{_PY}")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+\Z")
_FILTER = re.compile(r".+\Z")


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """What a key may hold: a value (`read`), or a section (`table`), of the struct `empty` makes if there is none.

    into: the field it sets, if not called as the key. flat: the section's fields are those of the struct around it.
    dropped: checked, but not stored. note: why the key has no effect here (then it is dropped too). unset: values of Push1st's
    files that count as a missing value here → the note on each.
    finish: has the last word on the struct of a section. variable: whether the environment may set it.
    """

    read: Read = lambda value: value
    table: "Table | None" = None
    empty: Callable[[], msgspec.Struct] = Hook
    into: str = ""
    flat: bool = False
    dropped: bool = False
    note: str = ""
    unset: dict[str, str] = {}
    finish: Finish | None = None
    variable: bool = True


Table = dict[str, Key]


def fill(base: S, table: Table, section: Value) -> S:
    """`base` with what `section` says."""
    return msgspec.structs.replace(base, **_changes(base, table, section))


def _changes(base: Any, table: Table, section: Value) -> dict[str, Any]:
    if section.kind == "nothing":
        return {}
    if section.kind != "mapping":
        if section.kind == "text" and COLON.match(section.text):
            raise ConfigError(f"{section}: found a colon without a space after it, allowed: KEY: VALUE")
        useful = [name for name, key in table.items() if not key.note]
        example = f"{section.path.rpartition('.')[2]}: {{ {useful[0]}: … }}" if useful else ""
        names = ", ".join(useful or table)
        raise wrong(section, f"a section with the keys {names}{example and ', such as ' + example}", show=False)
    changes = each(partial(_change, base, table, name, value) for name, value in section.keys.items())
    return {field: value for change in changes for field, value in change.items()}


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
        new = _changes(base, key.table, value)
    else:
        there: msgspec.Struct = getattr(base, field) or key.empty()
        new = fill(there, key.table, value)
        new = key.finish(new, value) if key.finish else new
    if key.dropped or key.note:
        return {}
    return dict(new) if key.flat else {field: new}


def suggestion(name: str, allowed: "Table | dict[str, Any]") -> str:
    """Returns a hint: the nearest allowed name, the same name in a section of `allowed`, or all allowed names."""
    near = get_close_matches(name_of(name), allowed, 1)
    sections = {section: key.table or {} for section, key in allowed.items() if isinstance(key, Key) and not key.dropped}
    inside = [f"{section}.{name}" for section, table in sections.items() if name in table and not table[name].note]
    if inside or near:
        return f"did you mean {' or '.join(inside or near)}?"
    return f"allowed: {', '.join(allowed)}"


def nearest(text: str, allowed: Iterable[str]) -> str:
    """Returns a question to append to the allowed words; "" if none of them is similar."""
    near = get_close_matches(text.lower(), allowed, 1)
    return f"; did you mean {near[0]}?" if near else ""


def notes(table: Table, section: Value) -> Iterator[tuple[Value, str]]:
    """The keys present that have no effect here, and why."""
    for name, value in section.keys.items():
        key = table.get(name)
        if key is None or value.kind == "nothing":
            continue
        if note := key.note or key.unset.get(value.text):
            yield value, note
        elif key.table is not None:
            yield from notes(key.table, value)


def variables(table: Table, prefix: str = "PUSH1ST") -> Iterator[tuple[str, tuple[str, ...]]]:
    """The names of the environment variables, each with its path of keys."""
    for name, key in table.items():
        full = prefix if key.flat else f"{prefix}_{name.replace('-', '_').upper()}"
        if key.note or key.dropped or not key.variable:
            continue
        if key.table is None:
            yield full, (name,)
        else:
            yield from ((variable, (name, *path)) for variable, path in variables(key.table, full))


def scalar(value: Value, allowed: str, *, numbers: bool = False, show: bool = True) -> str:
    """Text without control characters; of a number, with `numbers`, its text in the file."""
    if value.kind not in ("text", "variable", *(["number"] if numbers else [])):
        quotes = f"{allowed}, in quotes" if value.kind in ("number", "flag", "other") else allowed
        raise wrong(value, quotes, show=show)
    if CONTROL.search(value.text) or _SURROGATE.search(value.text):
        raise wrong(value, f"{allowed}, without control characters", show=show)
    return value.text


def text(allowed: str, pattern: re.Pattern[str] | None = None, *, numbers: bool = False, show: bool = True) -> Read:
    def read(value: Value) -> str:
        found = scalar(value, allowed, numbers=numbers, show=show)
        if pattern and not pattern.match(found):
            raise wrong(value, allowed, show=show)
        return found

    return read


def whole(least: int, most: int, of: str = "", hint: str = "") -> Read:
    allowed = f"a whole number {f'of {of} ' if of else ''}from {least} to {most}{hint}"

    def read(value: Value) -> int:
        if value.kind not in ("number", "variable") or not _NUMBER.match(value.text) or not least <= int(value.text) <= most:
            raise wrong(value, allowed)
        return int(value.text)

    return read


def flag(value: Value) -> bool:
    found = _FLAGS.get(value.text.lower()) if value.kind in ("flag", "variable") else None
    if found is None:
        quoted = value.kind == "text" and value.text.lower() in _FLAGS
        raise wrong(value, "true or false" + (", without quotes" if quoted else nearest(value.text, ("true", "false"))))
    return found


def word(*allowed: str) -> Read:
    def read(value: Value) -> str:
        if value.kind not in ("text", "variable") or value.text not in allowed:
            raise wrong(value, " or ".join(allowed) + nearest(value.text, allowed))
        return value.text

    return read


def items(value: Value, of: str) -> tuple[Value, ...]:
    """The items of a list: written as one, as `{ bare, words }`, as one value, or with commas in a variable."""
    if value.kind == "list":
        return tuple(item for item in value.items if item.kind != "nothing")
    if value.kind == "variable":
        words = [] if value.text.strip() == "[]" else value.text.split(",")
        return tuple(msgspec.structs.replace(value, text=word.strip()) for word in words)
    if value.kind != "mapping":
        return (value,)
    if any(child.kind != "nothing" for child in value.keys.values()):
        raise wrong(value, f"a list of {of}")
    return tuple(msgspec.structs.replace(child, kind="text", path=value.path, text=key) for key, child in value.keys.items())


def listed(read: Read, of: str, *, distinct: bool = False) -> Read:
    """A tuple of what `read` gives for each item; `distinct`: a frozenset."""

    def read_all(value: Value) -> Any:
        found = each(partial(read, item) for item in items(value, of))
        return frozenset(found) if distinct else tuple(found)

    return read_all


def words(*allowed: str) -> Read:
    return listed(word(*allowed), " or ".join(allowed), distinct=True)


def parsed(parse: Callable[[str], Any], of: str) -> Read:
    """What `parse` makes of a text; its ValueError says what is allowed."""

    def read(value: Value) -> Any:
        found = scalar(value, of)
        try:
            return parse(found)
        except ValueError as error:
            raise wrong(value, str(error)) from None

    return read


def off(value: Value | None) -> bool:
    """Whether an address is switched off."""
    return value is not None and value.kind in ("flag", "text", "variable") and value.text.lower() in _OFF


def listen(value: Value) -> tuple[Listen, ...]:
    if off(value):
        return ()
    return tuple(listed(parsed(Listen.parse, "tcp://HOST:PORT, unix://PATH or false"), "addresses")(value))


def networks(*, unix: bool = False) -> Read:
    of = f"an IP address, a network{' or unix' if unix else ''}"
    read = listed(parsed(lambda found: found if unix and found == "unix" else network(found), of), "networks")

    def read_all(value: Value) -> Networks:
        found = read(value)
        return Networks((net for net in found if net != "unix"), "unix" in found)

    return read_all


def url_path(value: Value) -> str:
    """A path with a slash at both ends, whatever the file says."""
    allowed = "a path such as /app/, of letters, digits and _ . ~ - /"
    found = scalar(value, allowed)
    if not _URL_PATH.match(found):
        raise wrong(value, allowed)
    inner = "/".join(part for part in found.split("/") if part)
    return f"/{inner}/" if inner else "/"


def identifier(value: Value) -> str:
    """An app's id or key: it stands in URLs and before a colon."""
    allowed = "1 to 128 visible ASCII characters other than / ? # % : \\ and quotes"
    found = scalar(value, allowed, numbers=True, show=False)
    if not _IDENTIFIER.match(found) or _APART & set(found):
        raise wrong(value, allowed, show=False)
    return found


def workers(value: Value) -> int | str:
    if value.text == "auto":
        return "auto"
    try:
        return int(whole(1, 1024)(value))
    except ConfigError:
        raise wrong(value, "a whole number from 1 to 1024, or auto") from None


def broker(value: Value) -> str:
    allowed = f"memory, {EMBEDDED}/PATH of a valkey-server, or a URL such as {BROKER_URLS}"
    found = scalar(value, allowed, show=False)
    if found != "memory" and not found.startswith(f"{EMBEDDED}/"):
        try:
            parse_broker(found)
        except ValueError as error:
            raise ConfigError(f"{value}: found {error}, allowed: {allowed}") from None
    return found


def headers(value: Value) -> tuple[tuple[str, str], ...]:
    if value.kind != "mapping":
        raise wrong(value, "a section of header names and values", show=False)
    if any(not _HEADER.match(name) for name in value.keys):
        raise ConfigError(f"{value}: found a name that is none of a header, allowed: names such as X-Token")
    read = text("text", numbers=True, show=False)
    return tuple(zip(value.keys, each(partial(read, child) for child in value.keys.values()), strict=True))


def webhook(value: Value) -> Webhook:
    filled = fill(Webhook(url=""), WEBHOOK, value)
    if not filled.url:
        raise ConfigError(f"{value}.url: found nothing, allowed: http://…, https://…, py://MODULE:FUNCTION or lua://FILE")
    if filled.url.startswith("lua://") and filled.format != "push1st":
        raise ConfigError(
            f"{value}: found lua:// without format: push1st, allowed: that format, which is what Lua is called with"
        )
    if filled.format == "push1st" and filled.batch > 1:
        raise ConfigError(f"{value}.batch: found {filled.batch}, allowed: 1, since this format has no batches")
    known = TRIGGERS if filled.format == "push1st" else WEBHOOK_EVENTS
    if unknown := [event for event in filled.events if event not in known]:
        raise ConfigError(
            f"{value}.events: found {name_of(unknown[0])}, allowed: {' or '.join(known)}{nearest(unknown[0], known)}"
        )
    return filled


def authorize(value: Value) -> Authorize:
    filled = fill(Authorize(url=""), AUTHORIZE, value)
    if not filled.url or not filled.on:
        raise ConfigError(
            f"{value}: found no {'on' if filled.url else 'url'}, allowed: url, and on: connect, subscribe or publish"
        )
    return filled


def _ssl_pair(ssl: Ssl, section: Value) -> Ssl:
    if ssl.enable and bool(ssl.key) != bool(ssl.cert):
        there, missing = ("key", "cert") if ssl.key else ("cert", "key")
        raise ConfigError(f"{section}: found {there} without {missing}, allowed: both, or none for a self-signed certificate")
    return ssl


def paths_apart(server: ServerConfig, section: Value) -> ServerConfig:
    """Raises if two protocols that are on have one path."""
    paths: dict[str, str] = {}
    for name in sorted(server.proto):
        path = getattr(server, name).path
        if path in paths:
            raise ConfigError(f'{section}.{name}.path: found "{path}", as for {paths[path]}, allowed: a path of its own')
        paths[path] = name
    return server


_ANY = Key(dropped=True)
_NO_SMPP = "has no effect here: there is no SMPP gateway"
_PAYLOAD = Key(read=whole(1, 1 << 30, "bytes"), into="max_payload")
_WHITELIST = Key(read=networks())
_TEXTS = listed(text("text", numbers=True), "texts")

SSL: Table = {
    "enable": Key(read=flag),
    "key": Key(read=text("the path of a PEM file")),
    "cert": Key(read=text("the path of a PEM file")),
}

PROTOCOL: Table = {
    "path": Key(read=url_path),
    "activity-timeout": Key(
        read=whole(1, SECONDS_A_DAY, "seconds"),
        unset={"0": "0 means the default here: 120 seconds for Pusher, 3600 for the others"},
    ),
    "whitelist": _WHITELIST,
    "push": Key(read=words(*type_names)),
    "max-request-payload": _PAYLOAD,
}

SERVER: Table = {
    "proto": Key(read=words(*PROTOCOLS)),
    "listen": Key(read=listen),
    "ssl": Key(table=SSL, finish=_ssl_pair),
    "app-path": Key(read=url_path),
    "pusher": Key(table=PROTOCOL),
    "websocket": Key(table=PROTOCOL),
    "mqtt": Key(table=PROTOCOL),
    "max-request-payload": _PAYLOAD,
    "drain": Key(read=whole(0, 3600, "seconds")),
    "workers": Key(read=workers),
    "proxies": Key(read=networks()),
    "outbox": Key(read=whole(4096, 1 << 30, "bytes")),
    "threads": Key(note="has no effect here; use server.workers"),
    "accept": Key(note="has no effect here"),
    "path": Key(note="has no effect here; each protocol has its path"),
    "smpp": Key(table=dict.fromkeys(("path", "enable", "ttl"), _ANY), note=_NO_SMPP),
}

API: Table = {
    "listen": Key(read=listen),
    "ssl": Key(table=SSL, finish=_ssl_pair),
    "path": Key(read=url_path),
    "keep-alive-timeout": Key(read=whole(1, SECONDS_A_DAY, "seconds"), unset={"0": "0 means the default here: 10 seconds"}),
    "whitelist": _WHITELIST,
    "trust": Key(read=networks(unix=True)),
    "interface": Key(read=word("pusher"), dropped=True, unset={"push1st": "push1st has no effect here: there is one interface"}),
    "threads": Key(note="has no effect here; use server.workers"),
    "accept": Key(note="has no effect here"),
    "module": Key(
        table={"smpp": Key(table=dict.fromkeys(("enable", "path", "rps", "webhook"), _ANY), note=_NO_SMPP)},
        dropped=True,
    ),
}

_FAMILY: Table = dict.fromkeys(("adapter", "nodes", "url", "namespace", "podname", "ssl"), _ANY)


def _family(value: Value) -> None:
    """Peers with their adapter, or only a list of them."""
    if value.kind == "mapping":
        _changes(None, _FAMILY, value)


CLUSTER: Table = {
    "ping-interval": _ANY,
    "listen": _ANY,
    "family": Key(read=_family, dropped=True),
    "sync": _ANY,
    "module": _ANY,
}

_SINK = Key(
    table=dict.fromkeys(("tag", "verbose", "pattern", "path", "number", "rotate", "facility", "url"), _ANY),
    note="has no effect here; see log.format and log.level",
)

LOG: Table = {
    "format": Key(read=word("text", "json")),
    "level": Key(read=word("debug", "info", "warning", "error")),
    **dict.fromkeys(("stdout", "file", "syslog", "remote"), _SINK),
}

HOOKS: Table = {
    "events": Key(read=whole(1, MOST)),
    "bytes": Key(read=whole(1, 1 << 40)),
    "folder": Key(read=text("the path of a folder")),
}

ROOT: Table = {
    "server": Key(table=SERVER, finish=paths_apart),
    "api": Key(table=API),
    "broker": Key(read=broker),
    "log": Key(table=LOG),
    "hooks": Key(table=HOOKS),
    "credentials": Key(read=listed(text("the path of a file, or a pattern such as apps/*.yml"), "paths"), dropped=True),
    "cluster": Key(table=CLUSTER, dropped=True),
    "ssl": _ANY,  # a place for anchors
}

_UNLIMITED = frozenset({"connections", "subscriptions", "members", "client_events", "publishes", "reads"})

LIMITS: Table = {
    field.encode_name: Key(
        read=whole(0, MOST, hint=" (0: unlimited)") if field.name in _UNLIMITED else whole(1, MOST), into=field.name
    )
    for field in msgspec.structs.fields(Limits)
}

HOOK: Table = {
    "trigger": Key(read=words(*TRIGGERS)),
    "endpoint": Key(read=listed(text("http://…, https://…, lua://FILE or py://MODULE:FUNCTION", _HOOK_URL, show=False), "URLs")),
    "sign": Key(read=flag),
    "http-pipelining": Key(read=flag, dropped=True),
    "keep-alive": _ANY,
}

_TIMEOUT = Key(read=whole(1, 60, "seconds"))
_CONCURRENCY = Key(read=whole(1, 1000))
_CHANNELS = Key(read=listed(text("a prefix, or a pattern with *", _FILTER), "prefixes or patterns"))

WEBHOOK: Table = {
    "url": Key(read=text("http://…, https://…, py://MODULE:FUNCTION or lua://FILE", _HOOK_URL, show=False)),
    "format": Key(read=word("pusher", "push1st")),
    "events": Key(read=_TEXTS),
    "filter": _CHANNELS,
    "headers": Key(read=headers),
    "timeout": _TIMEOUT,
    "batch": Key(read=whole(1, 10_000)),
    "concurrency": _CONCURRENCY,
}

AUTHORIZE: Table = {
    "url": Key(read=text("http://…, https://… or py://MODULE:FUNCTION", _ASK_URL, show=False)),
    "on": Key(read=words(*QUESTIONS)),
    "filter": _CHANNELS,
    "headers": Key(read=headers),
    "timeout": _TIMEOUT,
    "cache": Key(read=whole(0, SECONDS_A_DAY, "seconds")),
    "concurrency": _CONCURRENCY,
}


def _webhooks(value: Value) -> tuple[Webhook, ...]:
    return _sections(webhook, value, "[ { url: https://HOST/PATH } ]")


def _authorize(value: Value) -> tuple[Authorize, ...]:
    return _sections(authorize, value, "{ url: https://HOST/PATH, on: [ subscribe ] }")


def _sections(read: Callable[[Value], S], value: Value, example: str) -> tuple[S, ...]:
    def one(item: Value) -> S:
        if item.kind not in ("mapping", "nothing"):
            raise wrong(item, f"a list of sections, such as {value.path.rpartition('.')[2]}: {example}", show=False)
        return read(item)

    return tuple(each(partial(one, item) for item in (value.items if value.kind == "list" else (value,))))


def _keyed(app: AppConfig, section: Value) -> AppConfig:
    if not app.key:
        raise ConfigError(f"{section}.key: found nothing, allowed: the key that clients connect with")
    return app


APP: Table = {
    "enable": Key(read=flag),
    "enbale": Key(  # a misspelling in the template of Push1st's package
        read=flag, note="a misspelling of enable, without effect as in Push1st: the app is enabled unless enable: false is set"
    ),
    "name": Key(read=text("text", numbers=True)),
    "key": Key(read=identifier),
    "secret": Key(read=text("text", numbers=True, show=False)),
    "options": Key(
        table={name: Key(read=flag) for name in ("client-messages", "subscription-count", "authorized-only", "statistic")},
        flat=True,
    ),
    "channels": Key(read=words(*type_names)),
    "origins": Key(read=listed(text("an origin such as https://example.com", re.compile(r"\S+\Z")), "origins")),
    "limits": Key(table=LIMITS),
    "hook": Key(table=HOOK),
    "webhooks": Key(read=_webhooks, variable=False),
    "authorize": Key(read=_authorize, variable=False),
}


def fill_app(base: AppConfig, section: Value) -> AppConfig:
    """The app with what its section says."""
    return _keyed(fill(base, APP, section), section)
