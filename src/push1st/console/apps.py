"""The list of apps, with their figures on all workers."""

from typing import Any

import msgspec

from push1st.config.model import AppConfig
from push1st.config.settings import MAX_APPS, app_sources
from push1st.console.appsettings import app_settings_in_words
from push1st.console.cursors import cursor_of, places_of
from push1st.console.endpoints import ConsoleCall, ConsoleContext, ConsoleEndpoint
from push1st.core.figures import app_figures
from push1st.errors import Refused
from push1st.status import AppFigures, sum_of

KIND = "apps"
MAX_LIMIT = 100
MAX_SEARCH = 255
MAX_COUNTED = 1000
"""the maximum number of channels that are counted for an app"""
_ids = msgspec.msgpack.Decoder(list[str])
_figures = msgspec.msgpack.Decoder(dict[str, AppFigures])


class AppList:
    """The endpoints `apps` and `apps/ID`."""

    def __init__(self, context: ConsoleContext) -> None:
        self._context = context
        context.wire.serve(KIND, self._own)
        self.endpoints = (
            ConsoleEndpoint("GET", "apps", self._list),
            ConsoleEndpoint("GET", r"apps/([^/]+)", self._one),
        )

    def _own(self, data: bytes) -> bytes:
        """Returns the figures of apps on this worker, by id. data: the ids."""
        used = self._context.node.used
        return msgspec.msgpack.encode(app_figures([used[id] for id in _ids.decode(data) if id in used]))

    async def _list(self, call: ConsoleCall) -> dict[str, Any]:
        limit = call.number("limit", MAX_LIMIT, MAX_LIMIT) or MAX_LIMIT
        search = call.text("search", MAX_SEARCH).casefold()
        config = self._context.config()
        after = call.text("after", 1000)
        at = _place(after) if after else 0
        found = [app for app in config.apps if not search or _matches(app, search)]
        listed = found[at : at + limit]
        replies = await self._context.wire.request(KIND, msgspec.msgpack.encode([app.id for app in listed]))
        figures = [one for _, one in replies.decoded(_figures.decode)]
        sources = app_sources(config)
        return {
            "apps": [_summary(app, sources.get(app.id), figures) for app in listed],
            "total": len(config.apps),
            "found": len(found),
            "next": cursor_of({"at": str(at + limit)}) if at + limit < len(found) else None,
            "complete": True,
            "examined": len(config.apps),
            "missing": replies.missing,
            "away": replies.away,
        }

    async def _one(self, call: ConsoleCall) -> dict[str, Any]:
        config, id = self._context.config(), call.args[0]
        at, app = next(((at, one) for at, one in enumerate(config.apps) if one.id == id), (0, None))
        if app is None:
            raise Refused(404, f"there is no app {id[:64]!r}")
        replies = await self._context.wire.request(KIND, msgspec.msgpack.encode([id]))
        figures = [one for _, one in replies.decoded(_figures.decode)]
        summary = _summary(app, app_sources(config).get(id), figures)
        return {
            **summary,
            **await self._channels(id),
            "settings": list(app_settings_in_words(config, app, summary["connections"])),
            "unlocated_after": MAX_APPS if at >= MAX_APPS else None,
            "missing": replies.missing,
            "away": replies.away,
        }

    async def _channels(self, app: str) -> dict[str, Any]:
        """Counts the channels of an app on all workers, each once. None: the broker is away."""
        try:
            self._context.require_broker()
            page = await self._context.node.channel_lists.some(app, "", _is_public_name, "", MAX_COUNTED, has_users=False)
        except Refused:
            return {"distinct_channels": None, "has_more_channels": False}
        return {"distinct_channels": len(page.channels), "has_more_channels": bool(page.next)}


def _is_public_name(name: str) -> bool:
    """Returns whether the list of channels shows a name: the channels of signed-in users begin with `#`."""
    return not name.startswith("#")


def _place(cursor: str) -> int:
    text = places_of(cursor).get("at", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def _matches(app: AppConfig, search: str) -> bool:
    return any(search in text.casefold() for text in (app.id, app.name, app.key))


def _summary(app: AppConfig, source: str | None, workers: list[dict[str, AppFigures]]) -> dict[str, Any]:
    own = [one[app.id] for one in workers if app.id in one]
    return {
        "id": app.id,
        "name": app.name,
        "enable": app.enable,
        "key": app.key,
        "secrets": [len(secret.encode()) for secret in app.secrets],
        **{field: sum_of([getattr(one, field) for one in own]) for field in AppFigures.__struct_fields__},
        "source": source,
    }
