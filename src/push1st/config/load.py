"""Reads the configuration: Push1st's YAML files, and PUSH1ST_… environment variables that override the files.

`load` reads a configuration file; `with_env` applies environment variables to an existing configuration, such as the demo.
Both functions return a `Config`, or raise a single ConfigError. The error has a line for each problem. The line contains the
place, the path of keys, the value that was found, and the allowed values. No line contains a secret, an app's key or a URL.

**Environment.** The name of a variable is the path of keys in capitals, with `_` for `.` and `-`: PUSH1ST_SERVER_DRAIN is
`server.drain`. Items of a list are separated by commas, and `[]` is the empty list. An empty variable has no effect.
PUSH1ST_APP_… configures one app. PUSH1ST_APP_ID selects the app by its id, and adds the app if no file contains it. Without
PUSH1ST_APP_ID the configuration must contain exactly one app, and the variables PUSH1ST_APP_… configure this app. Names of
variables omit the key `options`, as in PUSH1ST_APP_CLIENT_MESSAGES. The command line reads PUSH1ST_CONFIG. Variables that
Kubernetes and Docker set for a service with the name push1st have no effect. Any further variable that begins with PUSH1ST_ is an
error.

`tree` converts texts to values, each with its place (file and line); `schema` and `readers` convert these values to structs.
"""

import glob
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from os.path import realpath
from pathlib import Path
from typing import TypeVar

import msgspec

from push1st.config import console, trust
from push1st.config.addresses import Listen
from push1st.config.listeners import clashes
from push1st.config.model import (
    DEMO_SECRET,
    MESSAGE_PROTOCOLS,
    ApiConfig,
    AppConfig,
    Config,
    ConsoleConfig,
    ProtocolConfig,
    ServerConfig,
    unserved,
)
from push1st.config.model import demo as plain_demo
from push1st.config.mqtt import Mqtt
from push1st.config.origins import note_on
from push1st.config.readers import identifier, off
from push1st.config.schema import Finish, Key, fill, notes, suggestion, variables
from push1st.config.settings import GIVEN, places
from push1st.config.tables import APP, ROOT, fill_app, require_distinct_paths, require_proxies
from push1st.config.tree import Value, each, merged, not_allowed, read, refuse, tree_of, variable
from push1st.errors import ConfigError

APP_ID = "PUSH1ST_APP_ID"
OTHERS = frozenset({"PUSH1ST_CONFIG"})
SHOWN_NAMES = 3
"""the maximum number of soketi's environment variables that a warning lists"""
ROOT_VARIABLES = dict(variables(ROOT))
APP_VARIABLES = dict(variables(APP, "PUSH1ST_APP"))
# For every service, Kubernetes sets NAME_SERVICE_HOST, and Docker sets NAME_PORT=tcp://…; a service's name may be push1st.
_SERVICE = re.compile(r"PUSH1ST(_\w+)?_(SERVICE_(HOST|PORT(_\w+)?)|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)\Z")
_SERVICE_PORT = re.compile(r"PUSH1ST(_\w+)?_PORT\Z")
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://")
_PATTERN = re.compile(r"[*?\[]")

LOCAL_API = ApiConfig(listen=(Listen("tcp", "127.0.0.1", 6002),))
"""The API settings for a configuration file without a section `api`: only this machine can connect to the API."""
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})

CLUSTER_NOTE = "has no effect here: nodes find each other through a Redis or Valkey that all share, not by UDP"
SMPP_NOTE = "has no effect here: it is an app of the SMPP gateway, which this server does not have"
BROKER_NOTE = "; configure broker: redis://HOST:6379/0 on each"

L = TypeVar("L", ServerConfig, ApiConfig, ConsoleConfig, Mqtt)


def load(path: str | Path, env: Mapping[str, str]) -> Config:
    """Reads a file, the files that its key `credentials` lists, and the overriding environment variables. Raises ConfigError."""
    file = Path(path).absolute()
    folder = file.parent
    problems: list[str] = []
    warnings = list(_of_soketi(env))
    root, apps, chosen = _environment(env, problems)
    try:
        below = read(file, file.name, problems)
        warnings += console.overridden(*(tree.at("console", "password") for tree in (below, root)))
        root = merged(below, root)
    except ConfigError as exc:
        problems.append(str(exc))
    sections: list[Value] = []
    files = [str(file)]
    for credentials in _files(file, root, problems, warnings):
        files.append(str(credentials))
        try:
            found = read(credentials, _name(credentials, folder), problems).keys.values()
        except ConfigError as exc:
            problems.append(str(exc))
            continue
        gateways = [section for section in found if _is_smpp(section)]
        warnings += (f"{section}: {SMPP_NOTE}" for section in gateways)
        sections += (section for section in found if section not in gateways)
    api = ApiConfig() if _is_set(root, "api") else LOCAL_API
    base = Config(api=api, folder=str(folder), files=tuple(files))
    return _config(base, root, _overlaid(sections, apps, chosen, problems), folder, problems, warnings)


def with_env(base: Config, env: Mapping[str, str]) -> Config:
    """Applies the environment to a configuration. Relative paths start at the working directory. Raises ConfigError.

    If `base` is the demo and PUSH1ST_APP_ID is set, the result contains nothing of the demo. Settings that no variable sets
    then have the defaults of a configuration file.
    """
    problems: list[str] = []
    root, apps, chosen = _environment(env, problems)
    base = Config() if base.demo and chosen else base
    sections = [_section_of(app) for app in base.apps]
    return _config(
        base, root, _overlaid(sections, apps, chosen, problems), Path.cwd(), problems, [*base.warnings, *_of_soketi(env)]
    )


def demo(env: Mapping[str, str]) -> Config:
    """Returns the configuration of a server without a configuration file: the demo, with the environment applied."""
    return with_env(plain_demo(), env)


def _environment(env: Mapping[str, str], problems: list[str]) -> tuple[Value, Value | None, Value | None]:
    """Reads the environment: returns the tree of the configuration, the section of an app, and the id of that app."""
    root: list[tuple[tuple[str, ...], Value]] = []
    app: list[tuple[tuple[str, ...], Value]] = []
    for name, text in sorted(env.items()):
        if not name.startswith("PUSH1ST_") or name in OTHERS or name == APP_ID or _of_a_service(name, text):
            continue
        if name in ROOT_VARIABLES:
            path, leaves = ROOT_VARIABLES[name], root
        elif name in APP_VARIABLES:
            path, leaves = APP_VARIABLES[name], app
        else:
            allowed = {APP_ID: (), **ROOT_VARIABLES, **APP_VARIABLES}
            problems.append(f"{name}: unknown variable, {suggestion(name, allowed)}")
            continue
        if text:
            leaves.append((path, variable(name, path, text)))
    chosen = variable(APP_ID, ("id",), env[APP_ID]) if env.get(APP_ID) else None
    section = tree_of(app, app[0][1].place) if app else Value("mapping", APP_ID, "") if chosen else None
    return tree_of(root, "the environment"), section, chosen


def _of_soketi(env: Mapping[str, str]) -> Iterator[str]:
    """Yields a warning if variables of soketi are set, because this server ignores these variables."""
    names = sorted(name for name in env if name.startswith("SOKETI_"))
    if names:
        more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
        shown = ", ".join(names[:SHOWN_NAMES])
        yield f"{shown}{more}: variables of soketi have no effect; docs/moving-from-soketi.md lists those of push1st"


def _of_a_service(name: str, text: str) -> bool:
    """Returns whether Kubernetes or Docker has set the variable for a service."""
    return bool(_SERVICE.match(name) or (_SERVICE_PORT.match(name) and _SERVICE_URL.match(text)))


def _files(file: Path, root: Value, problems: list[str], warnings: list[str]) -> Iterator[Path]:
    """Yields each file with apps once, in the order of `credentials`, but never the configuration file itself."""
    credentials = root.at("credentials")
    try:
        patterns = ROOT["credentials"].read(credentials) if credentials and credentials.kind != "nothing" else ()
    except ConfigError:
        return  # `fill` reports this error
    done = {realpath(file)} if patterns else set()
    for pattern in patterns:
        names = sorted(glob.glob(pattern, root_dir=file.parent))
        found = [one for one in (file.parent / name for name in names) if not one.is_dir()]
        if not found and _PATTERN.search(pattern):
            warnings.append(f'{credentials}: "{pattern}" matches no file')
        elif not found:
            problems.append(f'{credentials}: found "{pattern}", which is no file, allowed: a file, or a pattern of files')
        for one in found:
            if realpath(one) not in done:
                done.add(realpath(one))
                yield one


def _is_smpp(section: Value) -> bool:
    """Returns whether a section is an app of Push1st's SMPP gateway: an app whose only channels are `smpp`."""
    channels = section.at("channels")
    return channels is not None and [one.text for one in channels.items or (channels,)] == ["smpp"]


def _name(file: Path, folder: Path) -> str:
    return str(file.relative_to(folder) if file.is_relative_to(folder) else file)


def _overlaid(sections: Sequence[Value], above: Value | None, chosen: Value | None, problems: list[str]) -> list[Value]:
    """Merges the section `above` into the section of the same app; adds `above` as a new app if there is no such section.

    above: the app's section from the environment; None if no variable configures an app.
    chosen: the value of PUSH1ST_APP_ID; None if this variable is not set.
    """
    if above is None:
        return list(sections)
    if chosen is not None:
        try:
            id = identifier(chosen)
        except ConfigError as exc:
            problems.append(str(exc))
            return list(sections)
    elif len({section.path for section in sections}) == 1:
        id = sections[0].path
    else:
        if not problems:  # an earlier problem may have removed apps from the list
            ids = ", ".join(section.path for section in sections) or "none"
            problems.append(f"{above.place}: found apps: {ids}, allowed: exactly one, or {APP_ID} to select one")
        return list(sections)
    above = _moved(above, id)
    if id not in (section.path for section in sections):
        return [*sections, above]
    return [merged(section, above) if section.path == id else section for section in sections]


def _section_of(app: AppConfig) -> Value:
    """Returns a section for an app of the base configuration. The section contains the app's key, so that `_twins` finds
    a second app with this key.
    """
    return Value("mapping", GIVEN, app.id, keys={"key": Value("text", GIVEN, f"{app.id}.key", app.key)})


def _moved(section: Value, path: str) -> Value:
    """Returns a copy of an app's section, with `path` as its path of keys."""
    keys = {key: _moved(child, f"{path}.{key}") for key, child in section.keys.items()}
    return msgspec.structs.replace(section, path=path, keys=keys)


def _config(base: Config, root: Value, sections: list[Value], folder: Path, problems: list[str], warnings: list[str]) -> Config:
    """Makes a `Config` from all sections, and applies the rules that concern several sections. Raises ConfigError."""
    table = ROOT | {
        "server": _finished(ROOT["server"], lambda new, value: _placed_server(new, value, folder)),
        "api": _finished(ROOT["api"], lambda new, value: _placed(new, value, folder, new.ssl.enable)),
        "console": _finished(
            ROOT["console"],
            lambda new, value: _placed(
                console.require_encryption(new, value), value, folder, new.ssl.enable and bool(new.password)
            ),
        ),
        "metrics": _finished(
            ROOT["metrics"], lambda new, value: msgspec.structs.replace(new, listen=_absolute(new.listen, value, folder))
        ),
        "hooks": _finished(
            ROOT["hooks"], lambda new, _: msgspec.structs.replace(new, folder=new.folder and str(folder / new.folder))
        ),
    }
    known = {app.id: app for app in base.apps}
    config: Config
    apps: Sequence[AppConfig]
    _, config, apps, _ = each(
        (
            lambda: refuse(problems),
            lambda: fill(base, table, root),
            lambda: each(partial(_app, known, section) for section in sections),
            lambda: refuse(list(_twins(sections))),
        )
    )
    refuse(list(clashes(config, root)))
    _require_app(config.server.mqtt, apps, root)
    server, apps = _payloads(config.server, apps, root, sections)
    apps = tuple(app if app.secret else msgspec.structs.replace(app, channels=app.channels & {"public"}) for app in apps)
    demo = base.demo and all(app.secret == DEMO_SECRET for app in apps)
    config = msgspec.structs.replace(config, server=server, apps=apps, demo=demo)
    everything = dict.fromkeys((*warnings, *_warnings(config, root, sections)))
    return msgspec.structs.replace(config, warnings=tuple(everything), places=tuple(places(root, sections)))


def _finished(key: Key, finish: Finish) -> Key:
    return msgspec.structs.replace(key, finish=finish)


def _placed_server(server: ServerConfig, section: Value, folder: Path) -> ServerConfig:
    """Returns the struct of the section `server` with absolute paths, after checks of the section. Raises ConfigError."""
    require_proxies(server, section)
    server = _placed(require_distinct_paths(server, section), section, folder, server.ssl.enable)
    mqtt, part = server.mqtt, section.at("mqtt")
    is_secure = mqtt.is_secure and bool(server.mqtt_listen)
    if part and part.kind == "mapping":
        mqtt = _placed(mqtt, part, folder, is_secure)
    if is_secure and not mqtt.ssl.cert and server.ssl.cert:
        mqtt = msgspec.structs.replace(mqtt, ssl=msgspec.structs.replace(mqtt.ssl, key=server.ssl.key, cert=server.ssl.cert))
        if not server.ssl.enable:
            each(partial(_require_file, getattr(mqtt.ssl, name), section.at("ssl", name)) for name in ("key", "cert"))
    return msgspec.structs.replace(server, mqtt=mqtt)


def _placed(part: L, section: Value, folder: Path, is_secure: bool) -> L:
    """Returns the struct of a section with absolute paths. Raises ConfigError if a file that the section names does not exist.

    is_secure: whether the section's listener uses TLS.
    """

    def absolute(name: str) -> str:
        path = getattr(part.ssl, name)
        if path and is_secure and part.listen:
            _require_file(str(folder / path), section.at("ssl", name))
        return str(folder / path) if path else ""

    addresses = _absolute(part.listen, section, folder)
    names = [name for name in ("key", "cert", "ca") if hasattr(part.ssl, name)]
    paths = each(partial(absolute, name) for name in names)
    ssl = msgspec.structs.replace(part.ssl, **dict(zip(names, paths, strict=True)))
    return msgspec.structs.replace(part, listen=addresses, ssl=ssl)


def _absolute(listen: Sequence[Listen], section: Value, folder: Path) -> tuple[Listen, ...]:
    """Returns the addresses of a section's key `listen`, with absolute paths. Raises ConfigError if a path is too long."""
    where = section.at("listen") or section

    def under(address: Listen) -> Listen:
        try:
            return address.under(str(folder))
        except ValueError as exc:
            raise not_allowed(where, str(exc), show=False) from None

    return tuple(each(partial(under, address) for address in listen))


def _require_file(path: str, where: Value | None) -> None:
    if where and not Path(path).is_file():
        raise not_allowed(where, "the path of a file that exists")


def _require_app(mqtt: Mqtt, apps: Sequence[AppConfig], root: Value) -> None:
    """Raises ConfigError if the default app of MQTT is not configured."""
    where = root.at("server", "mqtt", "app")
    if where and mqtt.app and mqtt.app not in (app.id for app in apps):
        raise not_allowed(where, f"the id of an app: {', '.join(app.id for app in apps) or 'none is configured'}")


def _app(known: Mapping[str, AppConfig], section: Value) -> AppConfig:
    if section.kind not in ("mapping", "nothing"):
        raise not_allowed(section, "an app, which is a section under its id, such as shop: { key: …, secret: … }", show=False)
    id = identifier(msgspec.structs.replace(section, kind="text", text=section.path))
    return fill_app(known.get(id) or AppConfig(id=id, key="", secret="", name=id), section)


def _twins(sections: Sequence[Value]) -> Iterator[str]:
    """Yields an error for each app that has the id or the key of an earlier app."""
    ids: dict[str, Value] = {}
    keys: dict[str, Value] = {}
    for section in sections:
        first = ids.setdefault(section.path, section)
        key = section.at("key")
        if first is not section:
            yield f"{section}: found a second app of this id, first at {first.place}, allowed: each id once"
        elif key and key.text and (same := keys.setdefault(key.text, key)) is not key:
            yield f"{key}: found the key of another app, {same.path} at {same.place}, allowed: each key once"


def _payloads(
    server: ServerConfig, apps: Sequence[AppConfig], root: Value, sections: Sequence[Value]
) -> tuple[ServerConfig, Sequence[AppConfig]]:
    """Applies `server.max-request-payload` to each protocol and app whose section sets no limit.

    If the default limit of an app is higher than this value, the app keeps its default.
    """
    if not _is_set(root, "server", "max-request-payload"):
        return server, apps
    size = server.max_payload

    def protocol(name: str) -> ProtocolConfig | Mqtt:
        own: ProtocolConfig | Mqtt = getattr(server, name)
        return own if _is_set(root, "server", name, "max-request-payload") else msgspec.structs.replace(own, max_payload=size)

    def raised(app: AppConfig, section: Value) -> AppConfig:
        if _is_set(section, "limits", "payload") or app.limits.payload >= size:
            return app
        return msgspec.structs.replace(app, limits=msgspec.structs.replace(app.limits, payload=size))

    server = msgspec.structs.replace(server, **{name: protocol(name) for name in (*MESSAGE_PROTOCOLS, "mqtt")})
    return server, [raised(app, section) for app, section in zip(apps, sections, strict=True)]


def _is_set(tree: Value, *keys: str) -> bool:
    value = tree.at(*keys)
    return value is not None and value.kind != "nothing"


def _warnings(config: Config, root: Value, sections: Sequence[Value]) -> Iterator[str]:
    """Yields a warning for each setting that is valid, but has no effect or is probably a mistake."""
    for value, note in (*notes(ROOT, root), *(note for section in sections for note in notes(APP, section))):
        yield f"{value}: {note}"
    seen = set()
    for place, text in _not_yet(config, root):
        if place is not None and text not in seen:
            seen.add(text)
            yield f"{place}: {text}"
    mqtt = config.server.mqtt
    for name in ("server", "api", "console"):
        is_for_mqtt = name == "server" and mqtt.ssl.cert == config.server.ssl.cert
        if _is_set(root, name, "ssl", "cert") and not _is_set(root, name, "ssl", "enable") and not is_for_mqtt:
            yield f"{root.at(name, 'ssl')}: cert and key have no effect without enable: true, so clients connect without TLS"
    yield from console.warnings(config.console, root.at("console"))
    yield from trust.warnings(config, root)
    if mqtt.listen and not config.server.mqtt_listen:
        yield f"{root.at('server', 'mqtt', 'listen')}: has no effect, because server.proto does not contain mqtt"
    if _is_set(root, "server", "mqtt", "ssl") and config.server.mqtt_listen and not mqtt.is_secure:
        yield f"{root.at('server', 'mqtt', 'ssl')}: has no effect without an address tls://… in server.mqtt.listen"
    addresses = (*config.server.listen, *config.api.listen, *config.server.mqtt_listen)
    if config.demo and any(listen.scheme != "unix" and listen.host not in _LOOPBACK for listen in addresses):
        yield f"other machines reach the demo app, whose secret everyone knows; set {APP_ID}, and its key and secret"
    for app, section in zip(config.apps, sections, strict=True):
        if not app.secret:
            yield f"{section}: found no secret, so the app has public channels only"
        for origin in app.origins:
            if note := note_on(origin):
                yield f"{section.at('origins') or section}: {note}"
        for place, url in _endpoints(app, section):
            if url.startswith("lua://") and not (Path(config.folder) / url.removeprefix("lua://")).is_file():
                yield f'{place}: found "{url}", but this file does not exist, so the hook receives no events'
            if url.startswith("lua://") and find_spec("lupa") is None:
                install = f"{sys.executable} -m pip install 'lupa<3'"
                yield f"{place}: hooks in Lua need the package lupa, which is not installed: {install}"
    if reason := unserved(config):
        yield f"{root.at('credentials') or root}: {reason}"


def _endpoints(app: AppConfig, section: Value) -> Iterator[tuple[Value, str]]:
    """Yields the URLs of an app's hooks, each with the configuration value that contains the URL."""
    yield from ((section.at("hook") or section, url) for url in (app.hook.endpoint if app.hook else ()))
    yield from ((section.at("webhooks") or section, webhook.url) for webhook in app.webhooks)


def _not_yet(config: Config, root: Value) -> Iterator[tuple[Value | None, str]]:
    """Yields each setting of a feature that this server does not have, with a note."""
    if _is_set(root, "cluster") and not off(root.at("cluster", "listen")):
        yield root.at("cluster"), CLUSTER_NOTE if config.has_broker else CLUSTER_NOTE + BROKER_NOTE
