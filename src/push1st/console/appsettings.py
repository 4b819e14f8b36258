"""The settings of an app in words, without secrets, for its details in the console. Pure."""

from collections.abc import Iterator
from typing import Any

import msgspec

from push1st.config.model import AppConfig, Config
from push1st.config.settings import settings_of_app
from push1st.hooks import shown
from push1st.printable import readable

LIMITS = {
    "connections": ("Connections at the same time", ""),
    "subscriptions": ("Subscriptions of a connection", ""),
    "members": ("Users on a presence channel", ""),
    "payload": ("Data of an event", ""),
    "channel-name": (
        "Length of a channel name",
        " characters for Pusher clients and signed API calls; 255 bytes for other clients, unsigned calls and this console",
    ),
    "event-name": ("Length of an event name", " characters"),
    "channels-per-event": ("Channels to which one API call publishes", ""),
    "batch": ("Events in one API call (batch)", ""),
    "client-events": ("Client events of a connection", " a second"),
    "publishes": ("Events that API calls publish", " a second"),
    "reads": ("API calls that only read", " a second"),
}
"""the label and the unit of each limit"""
LABELS = {
    "channels": "Kinds of channels that clients may use",
    "origins": "Web pages that may connect",
    "options.client-messages": "Clients may publish",
    "options.subscription-count": "Subscribers receive the number of subscribers",
    "options.authorized-only": "Clients must sign in, or join a channel that needs a signature",
    "webhooks": "Webhooks",
    "hook.trigger": "Events of the hook",
    "hook.endpoint": "Endpoints of the hook",
    "hook.sign": "Requests of the hook have a signature",
    "authorize": "Backends that decide about clients",
    "history": "Channels that keep a history",
    "resume.seconds": "Positions of a page are kept for",
    "resume.acknowledge": "A page acknowledges its events each",
    "resume.pages": "Pages whose positions are kept",
}
"""the label of each other key that is shown; the rest of the dialog has the name, the key and the secrets"""
UNITS = {"resume.seconds": " s", "resume.acknowledge": " s", "timeout": " s", "cache": " s", "ttl": " s"}
EMPTY = {"origins": "all", "filter": "all channels", "events": "all", "concurrency": "default", "rewind": "default"}
"""the meaning of a missing value; "none" for other keys"""


class SettingLine(msgspec.Struct, frozen=True):
    """A line of a value. endpoint: a URL without its secret parts; "" if the line has none."""

    text: str
    endpoint: str = ""


class AppSetting(msgspec.Struct, frozen=True):
    """A setting of an app. key: the path of keys in the app's section. origin: the place that sets it; "" for a default value."""

    key: str
    label: str
    lines: list[SettingLine]
    origin: str


def app_settings_in_words(config: Config, app: AppConfig, connections: int | None) -> Iterator[AppSetting]:
    """Yields the limits of an app, and its other settings.

    connections: the number of open connections; None if it is not known.
    """
    for one in settings_of_app(config, app):
        section, _, name = one.key.partition(".")
        origin = "" if one.origin == "default" else one.origin
        if section == "limits":
            text = _limit(name, one.value)
            if name == "connections" and connections is not None:
                text = f"{connections:,} of {text}" if one.value else f"{connections:,} now, {text}"
            yield AppSetting(one.key, LIMITS[name][0], [SettingLine(text)], origin)
        elif one.key in LABELS and (section != "hook" or app.hook is not None):
            yield AppSetting(one.key, LABELS[one.key], list(_lines(app, one.key, one.value)), origin)


def _limit(name: str, value: int) -> str:
    if not value:
        return "no limit"
    return readable(value) if name == "payload" else f"{value:,}{LIMITS[name][1]}"


def _lines(app: AppConfig, key: str, value: Any) -> Iterator[SettingLine]:
    """Yields the lines of a value. The value does not contain URLs, because a URL may contain a secret."""
    match key:
        case "hook.endpoint":
            yield from (SettingLine("", shown(url)) for url in app.hook.endpoint) if app.hook else ()
        case "webhooks" | "authorize" if value:
            urls = [one.url for one in (app.webhooks if key == "webhooks" else app.authorize)]
            yield from (SettingLine(_parts(one), shown(url)) for one, url in zip(value, urls, strict=True))
        case "history" if value:
            yield from (SettingLine(_parts(one)) for one in value)
        case _:
            yield SettingLine(_text(key, value))


def _parts(one: dict[str, Any]) -> str:
    """Returns the settings of an endpoint, or of a section of the history, in one line."""
    return " · ".join(f"{name.replace('_', '-')}: {_text(name, value)}" for name, value in one.items() if name != "url")


def _text(name: str, value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case list() if value:
            return ", ".join(map(str, value))
        case int() if value or name not in EMPTY:
            return f"{value:,}{UNITS.get(name, '')}"
        case str() if value:
            return value
        case _:
            return EMPTY.get(name, "none")
