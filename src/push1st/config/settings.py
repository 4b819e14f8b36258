"""Lists the keys of a configuration with their effective values and origins. The list contains no secret.

The origin of a value is the place of its key in a file (`server.yml:12`), the name of an environment variable, an option of the
command, or `default`. `load` stores the places of the keys in the configuration.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from push1st.config.addresses import Listen, Networks
from push1st.config.brokerurl import parse
from push1st.config.model import AppConfig, Config
from push1st.config.schema import Table
from push1st.config.tables import APP, ROOT
from push1st.config.tree import Value

MAX_APPS = 200
"""the number of apps whose places `load` stores, because a server may have 10,000 apps"""
DEFAULT = "default"
GIVEN = "the configuration"
"""the place of values that no file contains: those of the demo"""


class Setting(msgspec.Struct, frozen=True):
    """A key of the configuration.

    key: the path of keys, such as `server.drain`.
    value: the effective value, as in JSON; of a secret only its length, as in `set, 43 bytes`.
    origin: the origin of the value.
    """

    key: str
    value: Any
    origin: str


def places(root: Value, apps: Sequence[Value]) -> Iterator[tuple[str, str]]:
    """Yields the place of each key with a value: the path of keys and the place, and the same for `MAX_APPS` apps.

    root: the tree of the configuration file.
    apps: the sections of the apps. The path of an app is `apps/ID`, and that of one of its keys is `apps/ID/KEY`.
    """
    yield from _places(ROOT, root, "")
    for app in apps[:MAX_APPS]:
        if app.place != GIVEN:
            yield f"apps/{app.path}", app.place
        yield from _places(APP, app, f"apps/{app.path}/")


def _places(table: Table, section: Value, above: str) -> Iterator[tuple[str, str]]:
    for name, value in section.keys.items():
        key = table.get(name)
        if key is None or key.note or key.dropped or value.kind == "nothing" or value.text in key.unset or value.place == GIVEN:
            continue
        if key.table is None:
            yield above + name, value.place
        else:
            yield from _places(key.table, value, f"{above}{name}.")


def settings(config: Config) -> list[Setting]:
    """Returns all keys of a configuration, without the keys of its apps."""
    origins = dict(config.places)
    return [Setting(key, value, origins.get(key, DEFAULT)) for key, value in _settings(ROOT, config, "")]


def located_key(config: Config, *keys: str) -> str:
    """Returns the first of some keys that the configuration sets, with its place, as in `server.yml:12: server.drain`.

    If the configuration sets none of them, the result is the first key, without a place.
    """
    origins = dict(config.places)
    return next((f"{origins[key]}: {key}" for key in keys if key in origins), keys[0])


def app_settings(config: Config) -> dict[str, list[Setting]]:
    """Returns the keys of each app that a file or the environment sets, by the app's id, for at most `MAX_APPS` apps."""
    origins = dict(config.places)
    found = {}
    for app in config.apps[:MAX_APPS]:
        above = f"apps/{app.id}/"
        keys = ((key, value, origins.get(above + key)) for key, value in _settings(APP, app, ""))
        found[app.id] = [Setting(key, value, origin) for key, value, origin in keys if origin is not None]
    return found


def settings_of_app(config: Config, app: AppConfig) -> list[Setting]:
    """Returns all keys of an app. `load` stores the origins for `MAX_APPS` apps only; all keys of others have `DEFAULT`."""
    origins, above = dict(config.places), f"apps/{app.id}/"
    return [Setting(key, value, origins.get(above + key, DEFAULT)) for key, value in _settings(APP, app, "")]


def app_sources(config: Config) -> dict[str, str]:
    """Returns the places of the sections of apps, by the app's id, as far as `load` has stored them."""
    return {key.removeprefix("apps/"): place for key, place in config.places if key.startswith("apps/") and key.count("/") == 1}


def _settings(table: Table, struct: Any, above: str) -> Iterator[tuple[str, Any]]:
    """Yields the keys of a section with their values."""
    for name, key in table.items():
        if key.note or key.dropped or struct is None:
            continue
        field = key.into or name.replace("-", "_")
        if key.table is not None:
            yield from _settings(key.table, struct if key.flat else getattr(struct, field), f"{above}{name}.")
        elif name == "secret":
            yield above + name, set_bytes(struct.secrets)
        elif above + name == "broker":
            yield name, _broker(struct)
        else:
            yield above + name, _shown(struct, field)


def _broker(config: Config) -> str:
    """Returns the address of the broker without its password."""
    return parse(config.broker).all if config.has_broker else config.broker


def _shown(struct: msgspec.Struct, field: str) -> Any:
    """Returns the value of a field for JSON, and only the length of a value that may contain a secret."""
    value = getattr(struct, field)
    return set_bytes(value) if field in getattr(struct, "hidden", ()) else _plain(value)


def _plain(value: Any) -> Any:
    match value:
        case Listen():
            return str(value)
        case Networks():
            return [*map(str, value.nets), *(["unix"] if value.unix else [])]
        case msgspec.Struct():
            return {field: _shown(value, field) for field in value.__struct_fields__}
        case frozenset():
            return sorted(value)
        case tuple():
            return [_plain(one) for one in value]
        case _:
            return value


def set_bytes(value: Any) -> str | None:
    """Describes the lengths of secrets; returns None if no secret is set.

    value: a text, or a tuple of texts or of pairs of texts.
    """
    if isinstance(value, str):
        return f"set, {len(value.encode())} bytes" if value else None
    sizes = [str(len(one.encode() if isinstance(one, str) else "".join(one).encode())) for one in value]
    return f"set, {' and '.join(sizes)} bytes" if sizes else None
