"""Compares two configurations: which keys need new workers, and what the operator reads about the changes.

A running worker applies changed apps, certificates and a changed log in place. All other keys need new workers. This module is
pure; `live` applies the changes. The texts contain the names of keys, and no values, because values may be secrets.
"""

from collections.abc import Iterator

import msgspec

from push1st.config.model import AppConfig, Config, all_disabled, unserved
from push1st.errors import ConfigError

LIVE = frozenset({"apps", "log"})
"""the sections that a running worker applies"""
UNSEEN = frozenset({"demo", "files", "folder", "places", "warnings"})
"""fields that are no keys"""
LIVE_TLS = ("key", "cert", "ca", "verify")
"""the keys of a section `ssl` that a running worker applies"""
NAMES = {"max_payload": "max-request-payload", "anonymous_push": "push", "older_secrets": "secret"}
"""fields whose keys have other names"""
OPTIONS = frozenset({"client_messages", "subscription_count", "authorized_only", "statistic"})
"""fields of an app whose keys are in the section `options`"""
MAX_LINES = 20
"""the maximum number of apps that are named"""


def require_served(old: Config, new: Config) -> None:
    """Raises ConfigError if a configuration without a usable app would replace one that serves clients.

    If a folder of apps is missing for a moment, the new configuration would disconnect all clients, and they would not reconnect.
    A configuration in which all apps are disabled is accepted (`all_disabled`).
    """
    if not all_disabled(new) and (reason := unserved(new)) and not unserved(old):
        raise ConfigError(reason)


def restart_keys(old: Config, new: Config) -> list[str]:
    """Returns the changed keys that need new workers, in the order of the configuration."""
    return [key for key in changed_keys(old, new) if not _is_live(key)]


def changed_keys(old: msgspec.Struct, new: msgspec.Struct) -> list[str]:
    """Returns the keys whose values differ, such as `server.drain`."""
    return list(dict.fromkeys(_differences(old, new, "")))


def described(old: Config, new: Config) -> list[str]:
    """Returns a line for each change that a running worker applies, for people."""
    lines = [key for key in changed_keys(old, new) if _is_live(key) and key != "apps"]
    apps = list(_apps({app.id: app for app in old.apps}, {app.id: app for app in new.apps}))
    if len(apps) > MAX_LINES:
        apps[MAX_LINES:] = [f"and {len(apps) - MAX_LINES} more apps"]
    return lines + apps


def _is_live(key: str) -> bool:
    section, _, name = key.rpartition(".")
    return key.partition(".")[0] in LIVE or (section.endswith(".ssl") and name in LIVE_TLS)


def _differences(old: msgspec.Struct, new: msgspec.Struct, above: str) -> Iterator[str]:
    for field in old.__struct_fields__:
        before, after = getattr(old, field), getattr(new, field)
        if before == after or (not above and field in UNSEEN):
            continue
        name = above + NAMES.get(field, field.replace("_", "-"))
        if isinstance(before, msgspec.Struct) and type(before) is type(after):
            yield from _differences(before, after, f"{name}.")
        else:
            yield f"options.{name}" if isinstance(old, AppConfig) and field in OPTIONS else name


def _apps(old: dict[str, AppConfig], new: dict[str, AppConfig]) -> Iterator[str]:
    for id in dict.fromkeys((*old, *new)):
        before, after = old.get(id), new.get(id)
        if before is None:
            yield f"app {id}: added"
        elif after is None:
            yield f"app {id}: removed, its clients are disconnected"
        elif before.enable and not after.enable:
            yield f"app {id}: disabled, its clients are disconnected"
        elif after.enable and not before.enable:
            yield f"app {id}: enabled"
        elif before != after:
            yield f"app {id}: {', '.join(changed_keys(before, after))}"
