"""Writes docs/configuration.md from the code: `python docs/generate.py`, or `--check` to ask whether it is up to date.

What may stand at a key is what the reader of that key says when it refuses something, a default is that of the struct
the key fills, and what a key means is in that struct's docstring. `ABOUT` has what a docstring is too short for. A key
with neither is an error here, so that none is forgotten.
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
from push1st.config.load import APP_VARIABLES, ROOT_VARIABLES, SMPP_NOTE, load
from push1st.config.tree import Value
from push1st.errors import ConfigError

PAGE = Path(__file__).with_name("configuration.md")
Path_ = tuple[str, ...]

ABOUT: dict[str, str] = {
    "server.listen": "Where WebSockets and signed API calls are served. `false` switches it off.",
    "server.ssl.enable": "TLS on all addresses of `server.listen`, Unix sockets excepted.",
    "server.ssl.key": "The certificate's private key. Neither key nor certificate: a self-signed one is made at start.",
    "server.ssl.cert": "The certificate, with those between it and the root.",
    "server.proxies": "Proxies from which the server accepts the client's address in `X-Forwarded-For` or `Forwarded`.",
    "server.max-request-payload": (
        "Bytes of one client message, where the protocol does not say otherwise. Where it is set, it also raises every app's "
        "`limits.payload` to it, unless the app sets its own."
    ),
    "server.outbox": "Bytes a connection may be behind. A client that reads too slowly to stay below is cut off.",
    "server.workers": "Processes that serve; `auto` is one a core ([scaling.md](scaling.md)).",
    "server.drain": "Seconds in which clients are told to reconnect when the server stops.",
    "server.app-path": "What stands before the app's key in every WebSocket path.",
    "api.listen": (
        "Addresses of the API. Only these accept unsigned calls. They accept WebSockets too, as `server.listen` does. "
        "`false`: the server listens on `server.listen` only. "
        "A configuration file without the section `api` means `tcp://127.0.0.1:6002`."
    ),
    "api.ssl.enable": "TLS on all addresses of `api.listen`, Unix sockets excepted.",
    "api.ssl.key": "The certificate's private key. Neither key nor certificate: a self-signed one is made at start.",
    "api.ssl.cert": "The certificate, with those between it and the root.",
    "api.path": "What all paths of the API begin with.",
    "api.keep-alive-timeout": "Seconds a connection may be idle between two requests, on every listener. "
    "Answers contain this number (`Keep-Alive: timeout=10`); a proxy must close its idle connections to the server earlier.",
    "api.trust": "Whose unsigned calls are accepted; `[]`: nobody's. `unix` stands for the Unix sockets.",
    "api.whitelist": "Who may connect at all; empty: everyone.",
    "api.interface": "Read, without effect: there is one interface.",
    "broker": (
        "What connects workers and machines: nothing of yours (`memory`: several workers then share a Valkey they bring along; "
        "`embedded://`: the same, by the program at that path), or a Redis or Valkey server, with Sentinel or as a cluster "
        "([scaling.md](scaling.md)). Behind the URL `?prefix=…`, where several installations share one server."
    ),
    "log.format": "`text` for people, `json` for machines: one object a line, on standard error.",
    "log.level": "Events below this level are not logged. At `debug` the server logs each rejection with the text of its answer.",
    "credentials": "The files of apps. Relative paths start at the folder of the configuration file.",
    "APP.enable": "A disabled app refuses its clients with 4003 and its API calls with 403.",
    "APP.name": "For people. By default the app's id.",
    "APP.key": "What clients connect with. Not secret. Each app needs its own.",
    "APP.secret": (
        "What signatures and tokens are made with. Without one the app has public channels only. "
        "At least 32 random bytes: `openssl rand -hex 32`."
    ),
    "APP.channels": "The types of channels the app has. `private` covers `protected`.",
    "APP.origins": (
        "Pages that may connect, by their `Origin`: whole (`https://shop.example`), or a host with or without its port. "
        "Empty or `*`: all pages; there are no other patterns. `check` notes an entry that differs from the form browsers send: "
        "they omit the path and the scheme's default port, and send Punycode. "
        "A client that sends no `Origin` is not a browser, and is accepted."
    ),
    "APP.options.client-messages": "Pusher clients may send client events.",
    "APP.options.subscription-count": "Subscribers of a channel are told how many they are.",
    "APP.options.authorized-only": (
        "A Pusher client that within 10 seconds neither signs in nor joins a channel that needs a signature is closed with 4009."
    ),
    "APP.options.statistic": "Read, without effect.",
    "APP.hook.trigger": "What the hook is told of ([Push1st's hooks](webhooks.md#push1sts-hooks)).",
    "APP.hook.endpoint": "Where it is told.",
    "APP.hook.sign": "Requests carry the app's key and a signature.",
    "APP.hook.http-pipelining": "Read, without effect.",
    "APP.hook.keep-alive": "Read, without effect.",
    "APP.webhooks.url": "Where events are sent.",
    "APP.webhooks.format": "Pusher's, or Push1st's.",
    "APP.webhooks.events": "Which; empty: all of the format.",
    "APP.webhooks.filter": "Channels, by prefix or by a pattern in which `*` stands for anything; empty: all.",
    "APP.webhooks.timeout": "Seconds a delivery may take.",
    "APP.webhooks.batch": "Events a delivery may have.",
    "APP.webhooks.concurrency": "Deliveries at once, each of other channels. Without it 10, and 1 of `py:` and `lua:`.",
    "APP.authorize.url": "Who is asked.",
    "APP.authorize.on": "What it is asked about.",
    "APP.authorize.filter": "Channels it is asked about, by prefix or pattern; empty: all.",
    "APP.authorize.headers": "Headers of each request.",
    "APP.authorize.timeout": "Seconds it has to answer; then the answer is no.",
    "APP.authorize.cache": "Seconds an answer is kept; 0: not at all.",
    "APP.authorize.concurrency": "Processes of a `py:` function.",
    "hooks.events": (
        "Events that may wait for an endpoint. "
        "If the queue is full, events are dropped, first those of the connection that has the most in it."
    ),
    "hooks.bytes": "Bytes that may wait for an endpoint.",
    "hooks.folder": (
        "Where the rest of the queues is saved at a stop, and what is given up is kept (`dead-letters.jsonl`). "
        "Without one both are lost, and counted."
    ),
    "APP.webhooks.headers": "Headers of each request.",
    "ssl": "A place for anchors: `&name` here, `*name` where it is used.",
    "PROTOCOL.path": "The beginning of the protocol's paths; `server.app-path` and the app's key follow.",
    "PROTOCOL.activity-timeout": "Seconds without data from a client after which the server pings it.",
    "PROTOCOL.whitelist": "Addresses that may connect with this protocol; empty: all.",
    "PROTOCOL.push": (
        "Types of channels to which clients of this protocol may publish; `private` includes `protected`. "
        "It has no effect for Pusher clients, which publish if the app has `options.client-messages`."
    ),
}

WEBHOOK = config.Webhook(url="")
AUTHORIZE = config.Authorize(url="")
PLANNED = """
server: { proto: [ pusher, mqtt ] }
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

This page lists all keys. A configuration is one file, usually `server.yml`, and the files with apps.
The key `credentials` lists the latter:

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

`push1st check` reads the configuration as the server does. It prints what would run, or every mistake with its file and line:

```bash
push1st check -c server.yml
```

```text answer
server.yml: good
  WebSockets (pusher and websocket) and signed API calls on ws://*:6001
  API on http://127.0.0.1:6002/apps/, unsigned calls from 127.0.0.0/8, ::1/128, unix; WebSockets too
  app shop  key a-public-key  channels presence, private, protected, public
  note: shop: limits (in brackets those of the original Push1st): payload 10240 (65400), members 100 (unlimited), …
```

- The server rejects a key that is not on this page, and a key that occurs twice in one section.
- A key without a value (`drain:`) has its default, as if it were not in the file.
- A list can have three forms: `[ a, b ]`, `{ a, b }`, or one item a line. A list with one item needs no brackets.
- Relative paths start at the folder of the configuration file.
- Changes take effect when the server is started again, or with several workers by [`push1st reload`](scaling.md#reload).

## The environment

An environment variable overrides the value in the file. Its name is the path of keys in capitals, with `_` for `.` and `-`:
`PUSH1ST_SERVER_DRAIN` is `server.drain`. Items of a list are separated by commas, and `[]` is the empty list.
An empty variable has no effect.
The server rejects a variable that begins with `PUSH1ST_` and is not on this page. Exceptions are the variables that Docker
and Kubernetes set for a service that is called `push1st`.

`PUSH1ST_CONFIG` is the configuration file for commands without `-c`.
`PUSH1ST_APP_…` configures one app. `PUSH1ST_APP_ID` selects it; if no file contains an app with this id, the variables add one.
Without `PUSH1ST_APP_ID` they configure the only app in the files. So a server can run without files:

```bash background
PUSH1ST_APP_ID=shop PUSH1ST_APP_KEY=a-public-key PUSH1ST_APP_SECRET=a-long-random-secret-of-at-least-32-bytes \\
PUSH1ST_SERVER_LISTEN=tcp://127.0.0.1:6001 PUSH1ST_API_LISTEN=tcp://127.0.0.1:6002 push1st serve
```

Without a configuration file and without `PUSH1ST_APP_ID`, `push1st serve` runs the demo: app `app-test`, key `app-key`, secret
`secret`, on 127.0.0.1 only. With a configuration of your own there is no demo app.

"""


def page() -> str:
    parts = [HEAD]
    root = config.Config()
    for title, table, struct, path in (
        ("server", tables.SERVER, root.server, ("server",)),
        (", ".join(f"server.{name}" for name in config.PROTOCOLS), tables.PROTOCOL, None, ("server", "pusher")),
        ("api", tables.API, root.api, ("api",)),
        ("log", tables.LOG, root.log, ("log",)),
        ("hooks", tables.HOOKS, root.hooks, ("hooks",)),
    ):
        parts.append(f"## {title}\n\n")
        if struct is None:
            parts.append(_protocols(root.server))
        else:
            parts.append(_table(table, struct, path))
    rest = {name: key for name, key in tables.ROOT.items() if key.table is None}
    parts.append("## broker, credentials, ssl\n\n" + _table(rest, root, ()))
    parts.append(
        "## An app\n\nA file of `credentials` has any number of apps, each under its id.\n\n"
        + _table(tables.APP, config.AppConfig(id="", key="", secret=""), ("APP",))
    )
    parts.append("### limits\n\nRates are per second. What they are refused with is in [errors.md](errors.md).\n\n")
    parts.append(_table(tables.LIMITS, limits.Limits(), ("APP", "limits")))
    parts.append("### webhooks\n\nA list of sections: [webhooks.md](webhooks.md).\n\n")
    parts.append(_table(tables.WEBHOOK, WEBHOOK, ("APP", "webhooks")))
    parts.append("### authorize\n\nA section, or a list of them: [authorising.md](authorising.md).\n\n")
    parts.append(_table(tables.AUTHORIZE, AUTHORIZE, ("APP", "authorize")))
    parts.append(_without_effect())
    return "".join(parts).rstrip() + "\n"


def _table(table: schema.Table, struct: Any, path: Path_) -> str:
    lines = ["| key | what may stand there | default | meaning |", "| --- | --- | --- | --- |"]
    lines += (_row(*row) for row in _keys(table, struct, path))
    variables = [f"`{name}`" for name in _variables(table, path)]
    if variables:
        lines += ["", f"Variables: {', '.join(variables)}."]
    return "\n".join(lines) + "\n\n"


def _keys(table: schema.Table, struct: Any, path: Path_) -> Iterator[tuple[Path_, schema.Key, Any, Any]]:
    """Path, key, struct and default of every key with an effect, sections opened but for those with a table of their own."""
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
    return path[-1] in (*config.PROTOCOLS, "limits", "webhooks", "authorize") and len(path) == 2


def _row(path: Path_, key: schema.Key, struct: Any, default: Any) -> str:
    shown = ".".join(path[1:] if len(path) > 1 else path)
    return f"| `{shown}` | {_allowed(key)} | {_shown(default)} | {_meaning(path, key, struct)} |"


def _protocols(server: config.ServerConfig) -> str:
    lines = [
        f"| key | what may stand there | {' | '.join(config.PROTOCOLS)} | meaning |",
        "| --- " * (len(config.PROTOCOLS) + 3) + "|",
    ]
    for name, key in tables.PROTOCOL.items():
        field = key.into or name.replace("-", "_")
        defaults = " | ".join(_shown(getattr(getattr(server, one), field)) for one in config.PROTOCOLS)
        about = _meaning(("PROTOCOL", name), key, server.pusher)
        lines.append(f"| `{name}` | {_allowed(key)} | {defaults} | {about} |")
    names = [f"`{name}`" for one in config.PROTOCOLS for name in _variables(tables.PROTOCOL, ("server", one))]
    return "\n".join([*lines, "", f"Variables: {', '.join(names)}."]) + "\n\n"


def _variables(table: schema.Table, path: Path_) -> Iterator[str]:
    """The variables of the keys of a table, in its order."""
    known: Mapping[str, Path_] = APP_VARIABLES if path[:1] == ("APP",) else ROOT_VARIABLES
    below = path[1:] if path[:1] == ("APP",) else path
    for name, where in known.items():
        rest = where[len(below) :]
        if where[: len(below)] == below and rest and rest[0] in table and not _is_own_table((*path, rest[0])):
            yield name


_ALLOWED = re.compile(r"allowed: (.*)\Z", re.DOTALL)


def _allowed(key: schema.Key) -> str:
    """What a reader says it wants, when it gets something that nobody wants."""
    wrong = Value("mapping", "", "", keys={"\x00": Value("other", "", "")})
    for value in (wrong, Value("list", "", "", items=(wrong,)), Value("other", "", "", "\x00"), Value("text", "", "", "\x00")):
        try:
            key.read(value)
        except ConfigError as error:
            found = _ALLOWED.search(str(error))
            if found and not found[1].startswith("a list of"):
                text = found[1].removesuffix(", in quotes").removesuffix(", without control characters")
                return _code(text) + ("; a list" if value.kind == "list" else "")
        except (AttributeError, ValueError):
            continue
    return "anything"


def _code(text: str) -> str:
    """Text for a table's cell, in which a bar or a star would be read as more than itself."""
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
    if isinstance(default, config.Networks):
        return f"`[ {default} ]`" if default else ""
    if isinstance(default, tuple):
        return f"`{', '.join(str(item) for item in default)}`"
    return f"`{default}`"


def _meaning(path: Path_, key: schema.Key, struct: Any) -> str:
    field = key.into or path[-1].replace("-", "_")
    name = ".".join(path)
    about = ABOUT.get(name) or (struct is not None and (_of_field(type(struct), field) or _of_docstring(type(struct), field)))
    if not about:
        sys.exit(f"docs/generate.py: nothing says what {name} means: write it in ABOUT, or in the docstring of its struct")
    about = about.removesuffix(" Does nothing yet.").rstrip(".") + "."
    if any(name == where or name.startswith(f"{where}.") for where in _planned() if where != "server.proto"):
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
        "Files of Push1st load as they are. `push1st check` notes these keys, which have no effect here:\n",
    ]
    for table, path in ((tables.SERVER, "server"), (tables.API, "api"), (tables.LOG, "log")):
        lines += (f"- `{path}.{name}`: {key.note}" for name, key in table.items() if key.note)
    lines += (f"- `api.module.{name}`: {key.note}" for name, key in (tables.API["module"].table or {}).items() if key.note)
    lines += (f"- `{name}` of an app: {key.note}" for name, key in tables.APP.items() if key.note)
    lines.append(f"- an app whose `channels` are `[ smpp ]`: {SMPP_NOTE}")
    lines.append("\nThese values mean that the default applies, or have no effect:\n")
    protocols = f"server.{{{','.join(config.PROTOCOLS)}}}"
    for table, path in ((tables.PROTOCOL, protocols), (tables.API, "api")):
        lines += (f"- `{path}.{name}: {value}`: {note}" for name, key in table.items() for value, note in key.unset.items())
    if planned := _planned():
        lines += [
            "\nAnd what these ask for is not here, or done otherwise:\n",
            *(f"- `{where}`: {text}" for where, text in planned.items()),
        ]
    return "\n".join(lines) + "\n"


@cache
def _planned() -> dict[str, str]:
    """What a configuration that asks for everything is told to be not there yet."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "server.yml").write_text(PLANNED)
        (folder / "app.yml").write_text(PLANNED_APP)
        split = (warning.partition(": ")[2].partition(": ") for warning in load(folder / "server.yml", {}).warnings)
        return {f"APP.{where[4:]}" if where.startswith("app.") else where: text for where, _, text in split}


def main() -> int:
    text = page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text)
        return 0
    if PAGE.exists() and PAGE.read_text() == text:
        return 0
    print(f"{PAGE.name} is out of date: python docs/generate.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
