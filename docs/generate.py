"""Writes docs/configuration.md from the code, and the console's remedies of errors from docs/errors.md.

Run `python docs/generate.py`; with `--check`, it only checks whether both files are up to date.

The permitted values of a key come from the error message of its reader. The default is that of the struct that the key
fills, and the meaning comes from that struct's docstring. `ABOUT` has the texts that are too long for a docstring.
A key without a text is an error, so that the page describes every key.
"""

import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from push1st import limits
from push1st.channels import type_names
from push1st.config import model as config
from push1st.config import schema, tables
from push1st.config.addresses import Networks
from push1st.config.history import HistorySection, Resume
from push1st.config.load import APP_VARIABLES, ROOT_VARIABLES, SMPP_NOTE, load
from push1st.config.tree import Value
from push1st.errors import ConfigError

PAGE = Path(__file__).with_name("configuration.md")
REMEDIES = Path(config.__file__).parents[1] / "console" / "remedies.json"
Path_ = tuple[str, ...]

ABOUT: dict[str, str] = {
    "server.listen": (
        "Addresses that accept WebSockets and signed API calls. "
        "With `false`, the server listens only on the addresses of `api.listen`."
    ),
    "server.ssl.enable": "Whether the addresses of `server.listen` use TLS. Unix sockets never use TLS.",
    "server.ssl.key": (
        "File with the private key of the certificate. Without key and certificate, the server makes a self-signed "
        "certificate at its start."
    ),
    "server.ssl.cert": "File with the certificate, and the intermediate certificates up to the root.",
    "server.proxies": "Proxies from which the server accepts the client's address in `X-Forwarded-For` or `Forwarded`.",
    "server.max-request-payload": (
        "Maximum number of bytes of one client message; the section of a protocol can set another number for this protocol. "
        "If this key is set, it also raises `limits.payload` of each app that does not set `limits.payload` itself."
    ),
    "server.outbox": (
        "Maximum number of bytes that may wait to be sent on one connection. Above it, the server disconnects the client."
    ),
    "server.workers": (
        "Number of processes that serve clients; `auto` starts one process for each core ([scaling.md](scaling.md))."
    ),
    "server.drain": "Number of seconds in which a stopping server disconnects its clients one group after another.",
    "server.app-path": "Part of every path of clients before the app's key.",
    "server.sse.path": "Beginning of the paths of event streams; a path continues with `server.app-path` and the app's key.",
    "server.sse.whitelist": "Addresses that may open event streams; the empty list permits all addresses.",
    "api.listen": (
        "Addresses of the API. Only these addresses accept unsigned calls. These addresses also accept WebSockets. "
        "With `false`, the server listens on `server.listen` only. "
        "If a configuration file has no section `api`, the address is `tcp://127.0.0.1:6002`."
    ),
    "api.ssl.enable": "Whether the addresses of `api.listen` use TLS. Unix sockets never use TLS.",
    "api.ssl.key": (
        "File with the private key of the certificate. Without key and certificate, the server makes a self-signed "
        "certificate at its start."
    ),
    "api.ssl.cert": "File with the certificate, and the intermediate certificates up to the root.",
    "api.path": "Beginning of all paths of the API.",
    "api.keep-alive-timeout": "Number of seconds that an HTTP connection may be idle between two "
    "requests, on all addresses of the server. "
    "Answers contain this number (`Keep-Alive: timeout=10`); a proxy must close its idle connections to the server earlier.",
    "api.trust": (
        "Networks from which the server accepts unsigned calls; `unix` stands for the Unix sockets. "
        "With the empty list `[]`, the server accepts no unsigned calls."
    ),
    "api.whitelist": "Addresses that may connect to `api.listen`; the empty list permits all addresses.",
    "api.interface": "The server reads this key, but the key has no effect, because the API has only one interface.",
    "broker": (
        "Connects workers and machines. With `memory`, the server starts a Valkey if it has several workers; "
        "with `embedded:///PATH`, it starts the program at PATH instead. Other URLs name a Redis or Valkey server, "
        "a Sentinel or a cluster ([scaling.md](scaling.md)). "
        "`?prefix=…` at the end of the URL separates several installations that share one broker."
    ),
    "log.format": "Format of the log on standard error: `text` for people, or `json` with one JSON object in each line.",
    "log.level": (
        "The server logs no events below this level. At the level `debug`, the log has each rejection and the text of its answer."
    ),
    "credentials": "Files that contain the apps. Relative paths start at the folder of the configuration file.",
    "APP.enable": (
        "Whether the app is enabled. The server rejects clients of a disabled app with 4003, and its API calls with 403."
    ),
    "APP.name": "Name of the app for human readers. The default is the app's id.",
    "APP.key": "Public key with which clients connect. Each app needs a different key.",
    "APP.secret": (
        "Secret with which signatures and tokens are made. An app without a secret has public channels only. "
        "While you rotate the secret, write `[ NEW, OLD ]`: the first secret signs webhooks and tokens, and the server accepts "
        "each secret ([rotating a secret](howto-apps.md#rotate-a-secret)). In the variable, a list has brackets, too: "
        "`[NEW,OLD]`. Use at least 32 random bytes: `openssl rand -hex 32`."
    ),
    "APP.channels": "Types of channels that clients of the app may use. `private` includes `protected`.",
    "APP.origins": (
        "Origins of the web pages that may connect: a whole origin (`https://shop.example`), or a host with or without "
        "its port. "
        "The empty list and `*` permit all web pages; there are no other patterns. "
        "`push1st check` prints a note for an entry that differs from the form that browsers send: "
        "browsers omit the path and the scheme's default port, and send Punycode. "
        "The server accepts a client that sends no `Origin`, because such a client is not a browser."
    ),
    "APP.options.client-messages": "Whether Pusher clients may send client events.",
    "APP.options.subscription-count": (
        "Whether the server sends the number of subscribers of a channel to these subscribers when the number changes."
    ),
    "APP.options.authorized-only": (
        "Whether a Pusher client must sign in, or join a channel that needs a signature, within 10 seconds. "
        "If a client does neither, the server closes its connection with 4009. "
        "An MQTT client must have an access token, a certificate, or the permission of a backend (`authorize` on `connect`)."
    ),
    "APP.options.statistic": "The server reads this key, but the key has no effect.",
    "APP.hook.trigger": "Events that the server sends to the endpoints ([Push1st's hooks](webhooks.md#push1sts-hooks)).",
    "APP.hook.endpoint": "URLs, Python functions or Lua scripts that receive the events.",
    "APP.hook.sign": "Whether the requests of hooks contain the app's key and a signature in their headers.",
    "APP.hook.http-pipelining": "The server reads this key, but the key has no effect.",
    "APP.hook.keep-alive": "The server reads this key, but the key has no effect.",
    "APP.webhooks.url": "URL, Python function or Lua script to which the server sends the events.",
    "APP.webhooks.format": (
        "Format of the requests: `pusher` is the format of Pusher, `push1st` the format of the original Push1st."
    ),
    "APP.webhooks.events": "Events that the server sends; the empty list stands for all events of the format.",
    "APP.webhooks.filter": (
        "Channels whose events the server sends, by prefix, or by a pattern in which `*` stands for any text; "
        "the empty list stands for all channels."
    ),
    "APP.webhooks.timeout": "Maximum duration of a delivery in seconds.",
    "APP.webhooks.batch": "Maximum number of events in a delivery.",
    "APP.webhooks.concurrency": (
        "Maximum number of simultaneous deliveries, each for different channels. The default is 10 for URLs, "
        "and 1 for `py:` and `lua:`."
    ),
    "APP.authorize.url": "URL or Python function to which the server sends its requests.",
    "APP.authorize.on": "Actions of clients for which the server sends a request.",
    "APP.authorize.filter": (
        "Channels for which the server sends requests, by prefix or pattern; the empty list stands for all channels."
    ),
    "APP.authorize.headers": "Additional headers of each request.",
    "APP.authorize.timeout": (
        "Number of seconds in which the backend must answer; if it does not answer, the server rejects the client's action."
    ),
    "APP.authorize.cache": (
        "Number of seconds in which the server uses an answer again for equal requests; with 0, it uses each answer once."
    ),
    "APP.authorize.concurrency": "Number of processes in which the server runs a function `py://…`.",
    "hooks.events": (
        "Maximum number of events that may wait for an endpoint. "
        "If the queue of an endpoint is full, the server first drops events of the connection that has the most events in it."
    ),
    "hooks.bytes": "Maximum number of bytes of the events that may wait for an endpoint.",
    "hooks.folder": (
        "Folder in which a stopping server saves waiting events. "
        "If the server gives up an event, it writes the event into the file `dead-letters.jsonl` in this folder. "
        "Without a folder, the server loses these events, and metrics count them."
    ),
    "APP.webhooks.headers": "Additional headers of each request.",
    "metrics.apps": (
        "Maximum number of apps that have [metrics](metrics.md) of their own, for each worker, in the order of first use. "
        'All other apps share the label `app="other"`.'
    ),
    "metrics.listen": (
        "Addresses that serve only `/metrics`, `/health` and `/ready`, without signatures ([metrics.md](metrics.md)). "
        "These addresses do not use TLS, and serve no API and no clients."
    ),
    "metrics.token": (
        "Token of monitoring programs: a request with the header `Authorization: Bearer TOKEN` may read the metrics on "
        "`metrics.listen` and `api.listen`. "
        "If this key is set, `metrics.listen` rejects requests for the metrics without the token."
    ),
    "console.password": (
        "Password of the operators: at least 12 characters, or better its hash, which `push1st console password` prints. "
        "Without this key there is no [console](console.md)."
    ),
    "console.listen": "Addresses of the console, which serve no API and no clients.",
    "console.ssl.enable": "Whether the addresses of `console.listen` use TLS. Unix sockets never use TLS.",
    "console.ssl.key": (
        "File with the private key of the certificate. Without key and certificate, the server makes a self-signed "
        "certificate at its start."
    ),
    "console.ssl.cert": "File with the certificate, and the intermediate certificates up to the root.",
    "console.origin": (
        "Origin of the console in browsers, if a proxy forwards it: `https://console.example.com`. "
        "The default is the address in the browser's own request, which must be an IP address or `localhost`."
    ),
    "console.proxies": "Proxies whose `X-Forwarded-For` names the operator's address, as IP addresses or networks.",
    "ssl": "Section for YAML anchors: define an anchor with `&name` here, and use it with `*name` in other sections.",
    "server.mqtt.listen": (
        "Addresses for MQTT without WebSockets; `tls://` addresses use TLS. The usual ports are 1883 and 8883. "
        "Without this key, or with `false`, the server accepts MQTT over WebSockets only. "
        "`server.proto` must contain `mqtt`, which is not in its default."
    ),
    "server.mqtt.ssl.key": (
        "File with the private key of the certificate. Without key and certificate, the `tls://` addresses use those of "
        "`server.ssl`, even if `server.ssl.enable` is false; without these as well, the server makes a self-signed "
        "certificate at its start."
    ),
    "server.mqtt.ssl.cert": "File with the certificate, and the intermediate certificates up to the root.",
    "server.mqtt.ssl.ca": (
        "File with the certificates of the authorities that sign the certificates of clients. "
        "If this key is set, the server requests a certificate from each client of the `tls://` addresses. "
        "The common name in a certificate is the id of the client's user."
    ),
    "server.mqtt.ssl.verify": (
        "Whether a client must have a certificate, if `ssl.ca` is set. "
        "With `optional`, a client without a certificate can connect too. "
        "The server rejects an invalid certificate in both cases."
    ),
    "server.mqtt.app": (
        "Id of the app of the clients whose user name does not begin with the key of an app. "
        "Without this key, the server rejects such clients."
    ),
    "server.mqtt.path": (
        "Beginning of the paths of MQTT over WebSockets; a path is this key alone, or continues with `server.app-path` and "
        "the app's key."
    ),
    "server.mqtt.activity-timeout": (
        "Maximum keep alive of MQTT 5.0 clients in seconds. "
        "The server uses at most 65535 seconds, because the protocol has two bytes for this number. "
        "Clients of MQTT 3.1.1 and 3.1 choose their keep alive themselves."
    ),
    "server.mqtt.push": (
        "Types of channels to which clients may publish; `private` includes `protected`. "
        "The default is for clients that are not anonymous: without this key, anonymous clients may not publish. "
        "With this key, anonymous clients may publish to public channels if the list contains `public`. "
        "So if you write the default value into the configuration, anonymous clients may publish. "
        "Anonymous clients have no token, no certificate, and no permission of a backend (`authorize` on `connect`)."
    ),
    "server.mqtt.whitelist": "Addresses that may connect with MQTT; the empty list permits all addresses.",
    "server.mqtt.max-request-payload": (
        "Maximum number of bytes of one packet from a client (Maximum Packet Size). "
        "Without this key, `server.max-request-payload` applies."
    ),
    "server.mqtt.session-expiry": (
        "Maximum number of seconds for which the server keeps the session of a disconnected client. "
        "Sessions of MQTT 3.1.1 and 3.1 always end after this time. With 0, each session ends with its connection."
    ),
    "server.mqtt.inflight": (
        "Maximum number of messages with QoS 1 or 2 that are not yet acknowledged, for each client and each direction "
        "(Receive Maximum)."
    ),
    "server.mqtt.queue": (
        "Maximum number of messages with QoS 1 or 2 that wait for a client. "
        "If the queue is full, the server drops its oldest message."
    ),
    "server.mqtt.topic-aliases": "Maximum number of topic aliases of a connection, in each direction; with 0, there are none.",
    "server.mqtt.publishes": (
        "Maximum number of messages that a client publishes in a second. The server does not read from a faster client until "
        "the client is within the limit again."
    ),
    "server.mqtt.event": (
        "Name of the event of each message whose publisher sends no name. "
        "An MQTT 5.0 client sends a name in the user property `event`."
    ),
    "server.mqtt.proxy-protocol": (
        "Whether each connection to a `tcp://` or `tls://` address must begin with a header of the PROXY protocol, "
        "version 1 or 2. "
        "The server accepts such connections from the addresses in `server.proxies` only. "
        "The address in the header is the address of the client; TLS begins after the header."
    ),
    "PROTOCOL.path": "Beginning of the protocol's WebSocket paths; a path continues with `server.app-path` and the app's key.",
    "PROTOCOL.activity-timeout": (
        "Number of seconds without data from a client, after which the server sends a ping to this client."
    ),
    "PROTOCOL.whitelist": "Addresses that may connect with this protocol; the empty list permits all addresses.",
    "PROTOCOL.push": (
        "Types of channels to which raw WebSocket clients may publish; `private` includes `protected`. "
        "The key has no effect for Pusher clients, which may publish if the app has `options.client-messages`."
    ),
}

WEBHOOK = config.Webhook(url="")
AUTHORIZE = config.Authorize(url="")
PLANNED = """
cluster: { listen: "udp://*:8001" }
credentials: [ app.yml ]
"""
PLANNED_APP = """
app:
  key: key
  secret: 0123456789abcdef0123456789abcdef
"""

HEAD = """<!-- Written by docs/generate.py from the code. Do not edit: change the code or docs/generate.py, then run it. -->

# Configuration

This page lists all keys of the configuration.
A configuration consists of one main file, usually `server.yml`, and the files with apps, which the key `credentials` lists:

```yaml file=server.yml
server: { listen: "tcp://*:6001" }
api: { listen: "tcp://127.0.0.1:6002" }
credentials: [ apps/*.yml ]
```

```yaml file=apps/shop.yml
shop:
  key: "a-public-key"
  secret: "a-long-random-secret-of-at-least-32-bytes"
```

`push1st check` reads the configuration in the same way as the server.
The command prints a summary of the configuration, or every mistake with its file and line:

```bash
push1st check -c server.yml
```

```text answer
server.yml: good
  WebSockets (pusher and websocket), server-sent events and signed API calls on ws://*:6001
  API on http://127.0.0.1:6002/apps/, unsigned calls from 127.0.0.0/8, ::1/128, unix; WebSockets and server-sent events too
  app shop  key a-public-key  channels presence, private, protected, public
  note: shop: only if you move from the original Push1st, the server in C++: …
```

- The server rejects a key that is not on this page, and a key that occurs twice in one section.
- A key without a value (such as `drain:`) has its default value, as if the key were not in the file.
- A list can have three forms: `[ a, b ]`, `{ a, b }`, or one item in each line.
  If a key permits several values, one value needs no brackets.
- Relative paths start at the folder of the configuration file.
- A change takes effect when you reload the configuration ([`push1st reload`](scaling.md#reload)), or restart the server.
  A server with one worker must be restarted for changes outside of apps, `ssl` and `log`.

## The environment

An environment variable overrides the value in the file.
The name of the variable contains the path of the key in capitals, with `_` for `.` and `-`:
`PUSH1ST_SERVER_DRAIN` sets `server.drain`.
Items of a list are separated by commas, and `[]` is the empty list.
An empty variable has no effect.
The server rejects a variable that begins with `PUSH1ST_` and is not on this page.
The server ignores the variables that Docker and Kubernetes set for a service with the name `push1st`.

The variable `PUSH1ST_CONFIG` names the configuration file for commands without `-c`.

The variables `PUSH1ST_APP_…` configure one app.
`PUSH1ST_APP_ID` names the id of this app; if no file contains an app with this id, the variables add the app.
Without `PUSH1ST_APP_ID`, the variables configure the only app in the files.
With these variables, a server can run without configuration files:

```bash background
PUSH1ST_APP_ID=shop PUSH1ST_APP_KEY=a-public-key PUSH1ST_APP_SECRET=a-long-random-secret-of-at-least-32-bytes \\
PUSH1ST_SERVER_LISTEN=tcp://127.0.0.1:6001 PUSH1ST_API_LISTEN=tcp://127.0.0.1:6002 push1st serve
```

Without a configuration file and without `PUSH1ST_APP_ID`, `push1st serve` runs the demo on 127.0.0.1.
The demo has the app `app-test` with the key `app-key` and the secret `secret`; this app exists only in the demo.

"""

INTRODUCTIONS = {
    "server.sse": ("Server-sent events are event streams over HTTP, on the addresses of `server.listen` and `api.listen`.\n\n"),
    "server.history": (
        "These keys limit the memory for the [history](#history) of channels, if the server has one worker and no other broker.\n"
        "Redis and Valkey have limits of their own (`maxmemory`).\n\n"
    ),
}
HISTORY = """### history

The value of `history` is a list of sections with these keys.
The first section whose filter fits a channel applies to this channel; without such a section, the channel keeps no history.
By default, no channel keeps a history, because kept messages need memory, and because they may be private.

```yaml file=apps/chat.yml
chat:
  key: "another-public-key"
  secret: "another-random-secret-of-at-least-32-bytes"
  history:
    - { filter: [ "chat-*", "private-orders-*" ], size: 50, ttl: 600 }
    - { filter: [ "presence-game-*" ], size: 20, ttl: 300, client-events: false }
  resume: { seconds: 300, acknowledge: 10 }
```

`push1st check` prints a line for each section.
It also prints a note for a section with which clients often cannot recover, and for a section that never applies.

"""

RESUME = """### resume

A page is one instance of a Pusher client, `new Pusher(…)`.
These keys control the recovery of Pusher clients whose URL names a page with `/resume/PAGE`.
They have no effect on channels without a history.

"""


def page() -> str:
    parts = [HEAD]
    root = config.Config()
    for title, table, struct, path in (
        ("server", tables.SERVER, root.server, ("server",)),
        (", ".join(f"server.{name}" for name in config.MESSAGE_PROTOCOLS), tables.PROTOCOL, None, ("server", "pusher")),
        ("server.mqtt", tables.MQTT, root.server.mqtt, ("server", "mqtt")),
        ("server.sse", tables.SSE, root.server.sse, ("server", "sse")),
        ("server.history", tables.HISTORY_BOUNDS, root.server.history, ("server", "history")),
        ("api", tables.API, root.api, ("api",)),
        ("log", tables.LOG, root.log, ("log",)),
        ("hooks", tables.HOOKS, root.hooks, ("hooks",)),
        ("metrics", tables.METRICS, root.metrics, ("metrics",)),
        ("console", tables.CONSOLE, root.console, ("console",)),
    ):
        parts.append(f"## {title}\n\n{INTRODUCTIONS.get(title, '')}")
        if struct is None:
            parts.append(_protocols(root.server))
        else:
            parts.append(_table(table, struct, path))
    rest = {name: key for name, key in tables.ROOT.items() if key.table is None}
    parts.append("## broker, credentials, ssl\n\n" + _table(rest, root, ()))
    parts.append(
        "## An app\n\nA file of `credentials` contains any number of apps; the id of an app is the name of its section.\n\n"
        + _table(tables.APP, config.AppConfig(id="", key="", secret=""), ("APP",))
    )
    parts.append(
        "### limits\n\nLimits of rates are numbers per second. [errors.md](errors.md) lists the error message for each limit.\n\n"
    )
    parts.append(_table(tables.LIMITS, limits.Limits(), ("APP", "limits")))
    parts.append(
        "### webhooks\n\nThe value of `webhooks` is a list of sections with these keys ([webhooks.md](webhooks.md)).\n\n"
    )
    parts.append(_table(tables.WEBHOOK, WEBHOOK, ("APP", "webhooks")))
    parts.append(
        "### authorize\n\nThe value of `authorize` is a section with these keys, or a list of such sections "
        "([authorising.md](authorising.md)).\n\n"
    )
    parts.append(_table(tables.AUTHORIZE, AUTHORIZE, ("APP", "authorize")))
    parts.append(HISTORY)
    parts.append(_table(tables.HISTORY, HistorySection(), ("APP", "history")))
    parts.append(RESUME)
    parts.append(_table(tables.RESUME, Resume(), ("APP", "resume")))
    parts.append(_without_effect())
    return "".join(parts).rstrip() + "\n"


def _table(table: schema.Table, struct: Any, path: Path_) -> str:
    lines = ["| key | permitted values | default | meaning |", "| --- | --- | --- | --- |"]
    lines += (_row(*row) for row in _keys(table, struct, path))
    variables = [f"`{name}`" for name in _variables(table, path)]
    if variables:
        lines += ["", f"Variables: {', '.join(variables)}."]
    return "\n".join(lines) + "\n\n"


def _keys(table: schema.Table, struct: Any, path: Path_) -> Iterator[tuple[Path_, schema.Key, Any, Any]]:
    """Returns path, key, struct and default of each key with an effect. Sections with a table of their own are left out."""
    for name, key in table.items():
        full = (*path, name)
        if key.note or full[0] == "cluster" or _is_own_table(full):
            continue
        field = key.into or name.replace("-", "_")
        if key.flat and key.table is not None:
            yield from _keys(key.table, struct, full)
        elif key.table is not None:
            if not key.dropped:
                yield from _keys(key.table, getattr(struct, field, None) or (key.empty and key.empty()), full)
        else:
            yield full, key, struct, getattr(struct, field, None)


def _is_own_table(path: Path_) -> bool:
    return path[-1] in (*config.PROTOCOLS, "limits", "webhooks", "authorize", "history", "resume") and len(path) == 2


def _row(path: Path_, key: schema.Key, struct: Any, default: Any) -> str:
    shown = ".".join(path[1:] if len(path) > 1 else path)
    default = "`10` or `1`" if path == ("APP", "webhooks", "concurrency") else _shown(default)  # the struct has 0 for both
    return f"| `{shown}` | {_allowed(key)} | {default} | {_meaning(path, key, struct)} |"


def _protocols(server: config.ServerConfig) -> str:
    lines = [
        f"| key | permitted values | {' | '.join(config.MESSAGE_PROTOCOLS)} | meaning |",
        "| --- " * (len(config.MESSAGE_PROTOCOLS) + 3) + "|",
    ]
    for name, key in tables.PROTOCOL.items():
        field = key.into or name.replace("-", "_")
        defaults = " | ".join(_shown(getattr(getattr(server, one), field)) for one in config.MESSAGE_PROTOCOLS)
        about = _meaning(("PROTOCOL", name), key, server.pusher)
        lines.append(f"| `{name}` | {_allowed(key)} | {defaults} | {about} |")
    names = [f"`{name}`" for one in config.MESSAGE_PROTOCOLS for name in _variables(tables.PROTOCOL, ("server", one))]
    return "\n".join([*lines, "", f"Variables: {', '.join(names)}."]) + "\n\n"


def _variables(table: schema.Table, path: Path_) -> Iterator[str]:
    """Returns the variables of the keys of a table, in the order of the table."""
    known: Mapping[str, Path_] = APP_VARIABLES if path[:1] == ("APP",) else ROOT_VARIABLES
    below = path[1:] if path[:1] == ("APP",) else path
    for name, where in known.items():
        rest = where[len(below) :]
        if where[: len(below)] == below and rest and rest[0] in table and not _is_own_table((*path, rest[0])):
            yield name


_ALLOWED = re.compile(r"allowed: (.*)\Z", re.DOTALL)


def _allowed(key: schema.Key) -> str:
    """Returns the permitted values of a key, from the error of its reader for a value that no key permits."""
    wrong = Value("mapping", "", "", keys={"\x00": Value("other", "", "")})
    for value in (wrong, Value("list", "", "", items=(wrong,)), Value("other", "", "", "\x00"), Value("text", "", "", "\x00")):
        try:
            key.read(value)
        except ConfigError as error:
            found = _ALLOWED.search(str(error))
            if found and not found[1].startswith("a list of"):
                text = found[1].removesuffix(", in quotes").removesuffix(", without control characters")
                return _code(_one_or_several(text, several=value.kind == "list"))
        except (AttributeError, ValueError):
            continue
    return "anything"


def _one_or_several(text: str, *, several: bool) -> str:
    text = re.sub(r"\S*\*\S*", r"`\g<0>`", text)
    words = text.split(" or ")
    if len(words) > 2 and " " not in "".join(words):
        return f"one {'or several ' if several else ''}of {', '.join(words)}"
    if not several:
        return text
    if text == "text":
        return "one or several texts"
    values = text.removesuffix(" or false")
    return f"one or several values: {values}" + ("; or the single value false" if values != text else "")


def _code(text: str) -> str:
    """Text for a table's cell, in which Markdown would interpret a bar or a star."""
    return "`".join(
        part if index % 2 else part.replace("|", "\\|").replace("*", "\\*") for index, part in enumerate(text.split("`"))
    )


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if default is None or default in ("", ()):
        return ""
    if isinstance(default, frozenset):
        order = [*config.PROTOCOLS, *config.TRIGGERS, *type_names]
        return f"`[ {', '.join(sorted(default, key=order.index))} ]`" if default else ""
    if isinstance(default, Networks):
        return f"`[ {default} ]`" if default else ""
    if isinstance(default, tuple):
        return f"`{', '.join(str(item) for item in default)}`"
    return f"`{default}`"


def _meaning(path: Path_, key: schema.Key, struct: Any) -> str:
    field = key.into or path[-1].replace("-", "_")
    name = ".".join(path)
    about = ABOUT.get(name) or (struct is not None and (_of_field(type(struct), field) or _of_docstring(type(struct), field)))
    if not about:
        sys.exit(f"docs/generate.py: no text describes {name}: write it in ABOUT, or in the docstring of its struct")
    about = about.removesuffix(" Does nothing yet.").rstrip(".") + "."
    if any(name == where or name.startswith(f"{where}.") for where in _planned()):
        about += " Does nothing yet."
    return _code(about[:1].upper() + about[1:])


def _of_docstring(struct: type, field: str) -> str:
    """`field: what it is.` in a docstring, up to the next field."""
    text = " ".join((struct.__doc__ or "").split())
    names = "|".join(one.name for one in msgspec.structs.fields(struct))
    found = re.search(rf"(?:^|[ .])(?:\w+, )*{field}(?:, \w+)*: (.*?)(?= (?:{names})(?:, (?:{names}))*: |\Z)", text)
    return found[1] if found else ""


def _of_field(struct: type, field: str) -> str:
    """The text below a field (`Limits`)."""
    source = Path(sys.modules[struct.__module__].__file__ or "").read_text()
    found = re.search(rf'^    {field}: \w+ = [^\n]*\n    """(.*?)"""', source, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def _without_effect() -> str:
    lines = [
        "## Keys without effect\n",
        (
            "This server reads files of the original Push1st unchanged. "
            "The following keys have no effect in this server; `push1st check` prints a note for each of them:\n"
        ),
    ]
    for table, path in ((tables.SERVER, "server"), (tables.API, "api"), (tables.LOG, "log")):
        lines += (f"- `{path}.{name}`: {key.note}" for name, key in table.items() if key.note)
    lines += (f"- `api.module.{name}`: {key.note}" for name, key in (tables.API["module"].table or {}).items() if key.note)
    lines += (f"- `{name}` of an app: {key.note}" for name, key in tables.APP.items() if key.note)
    lines.append(f"- an app whose `channels` are `[ smpp ]`: {SMPP_NOTE}")
    lines.append("\nThe following values have no effect, or select the default:\n")
    protocols = f"server.{{{','.join((*config.MESSAGE_PROTOCOLS, 'mqtt'))}}}"
    for table, path in ((tables.PROTOCOL, protocols), (tables.API, "api")):
        lines += (f"- `{path}.{name}: {value}`: {note}" for name, key in table.items() for value, note in key.unset.items())
    if planned := _planned():
        lines += [
            "\nThe server does not implement the following keys and values, or replaces them by other keys:\n",
            *(f"- `{where}`: {text}" for where, text in planned.items()),
        ]
    return "\n".join(lines) + "\n"


@cache
def _planned() -> dict[str, str]:
    """Returns the warnings for a configuration with every feature that does not exist yet, by key."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "server.yml").write_text(PLANNED)
        (folder / "app.yml").write_text(PLANNED_APP)
        split = (warning.partition(": ")[2].partition(": ") for warning in load(folder / "server.yml", {}).warnings)
        return {f"APP.{where[4:]}" if where.startswith("app.") else where: text for where, _, text in split}


def remedies() -> str:
    """Returns the rows of docs/errors.md that describe messages, close codes and statuses, for the console's inspector.

    Each row has the section's anchor, the message with `…` for values, and the remedy without Markdown.
    """
    found = []
    section = title = ""
    for line in PAGE.with_name("errors.md").read_text().splitlines():
        heading = re.match(r"(##+) (.*)", line)
        if heading:
            section = heading[2] if heading[1] == "##" else section
            title = heading[2]
        row = re.match(r"\| (`?)(.+?)\1 \| (.*) \|$", line)
        if row is None or "`, `" in row[2]:
            continue
        anchor = re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
        if section == "Messages" and row[1]:
            found.append([anchor, row[2], _plain(row[3])])
        elif section in ("HTTP statuses", "Close codes") and row[2].isdecimal():
            meaning, _, what = row[3].partition(" | ")
            found.append([anchor, row[2], _plain(what or meaning)])
    lines = (msgspec.json.encode(one).decode() for one in found)
    return "[\n" + ",\n".join(lines) + "\n]\n"


def _plain(text: str) -> str:
    """Removes links, emphasis and code marks of Markdown. A link that is only a reference becomes the name of its page."""
    text = re.sub(r"([(:] ?)\[[^]]+\]\((\w[\w-]*\.md)[^)]*\)(?=[).]|$)", r"\1see docs/\2", text)
    text = re.sub(r"\[([\w-]+\.md)\]\(\1[^)]*\)", r"docs/\1", text)
    return re.sub(r"\[([^]]+)\]\([^)]*\)|\*([\w ]+)\*", r"\1\2", text).replace("`", "")


def main() -> int:
    files = {PAGE: page(), REMEDIES: remedies()}
    if "--check" not in sys.argv[1:]:
        for path, text in files.items():
            path.write_text(text)
        return 0
    old = [path.name for path, text in files.items() if not path.exists() or path.read_text() != text]
    if old:
        print(f"{', '.join(old)} is out of date: python docs/generate.py", file=sys.stderr)
    return 1 if old else 0


if __name__ == "__main__":
    sys.exit(main())
