"""Tables of the keys of every section: the allowed values of a key, its field, and a note on a key without effect.

The Push1st API, section 9, defines the names of keys. `docs/generate.py` writes docs/configuration.md from these tables.
"""

import re
from collections.abc import Callable
from functools import partial

import msgspec

from push1st.channels import type_names
from push1st.config import console
from push1st.config.history import HistorySection, Resume
from push1st.config.model import (
    PROTOCOLS,
    QUESTIONS,
    TRIGGERS,
    WEBHOOK_EVENTS,
    AppConfig,
    Authorize,
    Hook,
    ServerConfig,
    Ssl,
    Webhook,
)
from push1st.config.mqtt import MAX_KEEP_ALIVE, Mqtt, MqttSsl
from push1st.config.readers import (
    broker,
    flag,
    headers,
    identifier,
    listed,
    listen,
    networks,
    secrets,
    text,
    url_path,
    whole,
    word,
    words,
    workers,
)
from push1st.config.schema import Key, S, Table, changes, fill, nearest
from push1st.config.tree import Value, each, name_of, not_allowed
from push1st.errors import ConfigError
from push1st.limits import Limits

SECONDS_A_DAY = 86_400
MAX_NUMBER = 2**31 - 1
_PY = r"py://[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*\Z"
_HOOK_URL = re.compile(rf"(https?|lua)://\S+\Z|{_PY}")
_AUTHORIZE_URL = re.compile(rf"https?://\S+\Z|{_PY}")
_FILTER = re.compile(r".+\Z")


def require_key_pair(ssl: Ssl, section: Value) -> Ssl:
    """Raises ConfigError if TLS has a key without a certificate, or a certificate without a key."""
    if ssl.enable:
        _require_both(ssl, section)
    return ssl


def _require_both(ssl: Ssl | MqttSsl, section: Value) -> None:
    if bool(ssl.key) != bool(ssl.cert):
        present, missing = ("key", "cert") if ssl.key else ("cert", "key")
        raise ConfigError(f"{section}: found {present} without {missing}, allowed: both, or none for a self-signed certificate")


def require_frequent_acknowledgements(resume: Resume, section: Value) -> Resume:
    """Raises ConfigError if `acknowledge` is more than a third of `seconds`."""
    most = resume.seconds // 3
    if resume.seconds and resume.acknowledge > most:
        where = section.at("acknowledge") or section
        raise ConfigError(
            f"{where}: found {resume.acknowledge}, allowed: a whole number of seconds from 1 to {most}, "
            f"a third of resume.seconds ({resume.seconds})"
        )
    return resume


def require_mqtt_key_pair(ssl: MqttSsl, section: Value) -> MqttSsl:
    """Raises ConfigError if TLS has only one of key and certificate, or `verify` without `ca`."""
    _require_both(ssl, section)
    if _is_set(section, "verify") and not ssl.ca:
        raise ConfigError(f"{section}: found verify without ca, allowed: both, or none for clients without certificates")
    return ssl


def _is_set(section: Value, key: str) -> bool:
    value = section.at(key)
    return value is not None and value.kind != "nothing"


def complete_mqtt(mqtt: Mqtt, section: Value) -> Mqtt:
    """Sets the fields of `Mqtt` that depend on other keys of its section."""
    return msgspec.structs.replace(
        mqtt,
        activity_timeout=min(mqtt.activity_timeout, MAX_KEEP_ALIVE),
        anonymous_push=mqtt.push if _is_set(section, "push") else frozenset(),
    )


def require_proxies(server: ServerConfig, section: Value) -> None:
    """Raises ConfigError if MQTT requires PROXY headers, but no address may send such a header."""
    where = section.at("mqtt", "proxy-protocol")
    if where and server.mqtt.proxy_protocol and server.mqtt_listen and not server.proxies:
        raise ConfigError(f"{where}: found true without server.proxies, so every client will be refused, allowed: both, or false")


def require_distinct_paths(server: ServerConfig, section: Value) -> ServerConfig:
    """Raises ConfigError if two enabled protocols have the same path."""
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
        unset={"0": "0 means the default here: 120 seconds for Pusher, 3600 for other protocols"},
    ),
    "whitelist": _WHITELIST,
    "push": Key(read=words(*type_names)),
    "max-request-payload": _PAYLOAD,
}

MQTT: Table = {
    "listen": Key(read=listen(tls=True)),
    "ssl": Key(
        table={
            **{name: Key(read=text("the path of a PEM file")) for name in ("key", "cert", "ca")},
            "verify": Key(read=word("required", "optional")),
        },
        finish=require_mqtt_key_pair,
    ),
    "app": Key(read=identifier),
    **PROTOCOL,
    "session-expiry": Key(read=whole(0, 366 * SECONDS_A_DAY, "seconds")),
    "inflight": Key(read=whole(1, 65_535)),
    "queue": Key(read=whole(1, 100_000)),
    "topic-aliases": Key(read=whole(0, 65_535)),
    "publishes": Key(read=whole(0, MAX_NUMBER, hint=" (0: unlimited)")),
    "event": Key(
        read=text(
            "1 to 200 characters that do not begin with pusher: or pusher_internal:",
            re.compile(r"(?!pusher:|pusher_internal:).{1,200}\Z"),
        )
    ),
    "proxy-protocol": Key(read=flag),
}

SSE: Table = {"path": Key(read=url_path), "whitelist": _WHITELIST}

HISTORY_BOUNDS: Table = {"bytes": Key(read=whole(1, 1 << 40, "bytes")), "channels": Key(read=whole(1, MAX_NUMBER))}

SERVER: Table = {
    "proto": Key(read=words(*PROTOCOLS)),
    "listen": Key(read=listen()),
    "ssl": Key(table=SSL, finish=require_key_pair),
    "app-path": Key(read=url_path),
    "pusher": Key(table=PROTOCOL),
    "websocket": Key(table=PROTOCOL),
    "mqtt": Key(table=MQTT, finish=complete_mqtt),
    "sse": Key(table=SSE),
    "max-request-payload": _PAYLOAD,
    "drain": Key(read=whole(0, 3600, "seconds")),
    "workers": Key(read=workers),
    "proxies": Key(read=networks()),
    "outbox": Key(read=whole(4096, 1 << 30, "bytes")),
    "history": Key(table=HISTORY_BOUNDS),
    "threads": Key(note="has no effect here; use server.workers"),
    "accept": Key(note="has no effect here"),
    "path": Key(note="has no effect here; each protocol has its path"),
    "smpp": Key(table=dict.fromkeys(("path", "enable", "ttl"), _ANY), note=_NO_SMPP),
}

API: Table = {
    "listen": Key(read=listen()),
    "ssl": Key(table=SSL, finish=require_key_pair),
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
    """Checks the value of `family`: a section with an adapter and its nodes, or only a list of nodes."""
    if value.kind == "mapping":
        changes(None, _FAMILY, value)


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
    "events": Key(read=whole(1, MAX_NUMBER)),
    "bytes": Key(read=whole(1, 1 << 40)),
    "folder": Key(read=text("the path of a folder")),
}

METRICS: Table = {
    "apps": Key(read=whole(0, 10_000)),
    "listen": Key(read=listen()),
    "token": Key(read=text("16 to 512 visible ASCII characters", re.compile(r"[!-~]{16,512}\Z"), show=False)),
}

CONSOLE: Table = {
    "password": Key(read=console.password),
    "listen": Key(read=listen()),
    "ssl": Key(table=SSL, finish=require_key_pair),
    "origin": Key(read=console.origin),
    "proxies": Key(read=networks()),
}

ROOT: Table = {
    "server": Key(table=SERVER, finish=require_distinct_paths),
    "api": Key(table=API),
    "broker": Key(read=broker),
    "log": Key(table=LOG),
    "hooks": Key(table=HOOKS),
    "metrics": Key(table=METRICS),
    "console": Key(table=CONSOLE),
    "credentials": Key(read=listed(text("the path of a file, or a pattern such as apps/*.yml"), "paths"), dropped=True),
    "cluster": Key(table=CLUSTER, dropped=True),
    "ssl": _ANY,  # in files of the original Push1st, this section contains YAML anchors
}

_UNLIMITED = frozenset({"connections", "subscriptions", "members", "client_events", "publishes", "reads"})

LIMITS: Table = {
    field.encode_name: Key(
        read=whole(0, MAX_NUMBER, hint=" (0: unlimited)") if field.name in _UNLIMITED else whole(1, MAX_NUMBER), into=field.name
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
    "url": Key(read=text("http://…, https://… or py://MODULE:FUNCTION", _AUTHORIZE_URL, show=False)),
    "on": Key(read=words(*QUESTIONS)),
    "filter": _CHANNELS,
    "headers": Key(read=headers),
    "timeout": _TIMEOUT,
    "cache": Key(read=whole(0, SECONDS_A_DAY, "seconds")),
    "concurrency": _CONCURRENCY,
}

HISTORY: Table = {
    "filter": _CHANNELS,
    "size": Key(read=whole(1, 10_000, "messages")),
    "ttl": Key(read=whole(1, 30 * SECONDS_A_DAY, "seconds")),
    "client-events": Key(read=flag),
    "rewind": Key(read=whole(0, 100, "messages")),
}

RESUME: Table = {
    "seconds": Key(read=whole(30, SECONDS_A_DAY, "seconds", or_zero=True)),
    "acknowledge": Key(read=whole(1, 60, "seconds")),
    "pages": Key(read=whole(1, MAX_NUMBER)),
}


def history_section(value: Value) -> HistorySection:
    """Reads a section of `history`."""
    if value.kind == "nothing":  # a dash without a section would keep the messages of all channels
        raise ConfigError(f"{value}: found nothing, allowed: a section, such as {{ filter: [ chat-* ] }}")
    return fill(HistorySection(), HISTORY, value)


def webhook(value: Value) -> Webhook:
    """Reads a section of `webhooks`."""
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
    """Reads a section of `authorize`."""
    filled = fill(Authorize(url=""), AUTHORIZE, value)
    if not filled.url or not filled.on:
        raise ConfigError(
            f"{value}: found no {'on' if filled.url else 'url'}, allowed: url, and on: connect, subscribe or publish"
        )
    return filled


def _webhooks(value: Value) -> tuple[Webhook, ...]:
    return _sections(webhook, value, "[ { url: https://HOST/PATH } ]")


def _authorize(value: Value) -> tuple[Authorize, ...]:
    return _sections(authorize, value, "{ url: https://HOST/PATH, on: [ subscribe ] }")


def _history(value: Value) -> tuple[HistorySection, ...]:
    return _sections(history_section, value, "[ { filter: [ chat-* ], size: 100, ttl: 300 } ]")


def _sections(read: Callable[[Value], S], value: Value, example: str) -> tuple[S, ...]:
    def one(item: Value) -> S:
        if item.kind not in ("mapping", "nothing"):
            raise not_allowed(item, f"a list of sections, such as {value.path.rpartition('.')[2]}: {example}", show=False)
        return read(item)

    return tuple(each(partial(one, item) for item in (value.items if value.kind == "list" else (value,))))


def _require_key(app: AppConfig, section: Value) -> AppConfig:
    if not app.key:
        raise ConfigError(f"{section}.key: found nothing, allowed: the key that clients connect with")
    return app


APP: Table = {
    "enable": Key(read=flag),
    "enbale": Key(  # the configuration template in Push1st's package has this misspelling
        read=flag, note="a misspelling of enable, without effect as in Push1st: the app is enabled unless enable: false is set"
    ),
    "name": Key(read=text("text", numbers=True)),
    "key": Key(read=identifier),
    "secret": Key(read=secrets, flat=True),
    "options": Key(
        table={name: Key(read=flag) for name in ("client-messages", "subscription-count", "authorized-only", "statistic")},
        flat=True,
    ),
    "channels": Key(read=words(*type_names)),
    "origins": Key(read=listed(text("an origin such as https://example.com", re.compile(r"\S+\Z")), "origins")),
    "limits": Key(table=LIMITS),
    "hook": Key(table=HOOK, empty=Hook),
    "webhooks": Key(read=_webhooks, variable=False),
    "authorize": Key(read=_authorize, variable=False),
    "history": Key(read=_history, variable=False),
    "resume": Key(table=RESUME, finish=require_frequent_acknowledgements),
}


def fill_app(base: AppConfig, section: Value) -> AppConfig:
    """Returns the app with the values of its section. Raises ConfigError."""
    return _require_key(fill(base, APP, section), section)
