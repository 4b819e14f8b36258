"""The list of apps, with their figures on all workers."""

from typing import Any

import msgspec

from push1st.config.model import AppConfig
from push1st.config.settings import app_sources
from push1st.console.cursors import cursor_of, places_of
from push1st.console.endpoints import ConsoleCall, ConsoleContext, ConsoleEndpoint
from push1st.core.figures import app_figures
from push1st.status import AppFigures, sum_of

KIND = "apps"
MAX_LIMIT = 100
MAX_SEARCH = 255
_ids = msgspec.msgpack.Decoder(list[str])
_figures = msgspec.msgpack.Decoder(dict[str, AppFigures])


class AppList:
    """The endpoint `apps`."""

    def __init__(self, context: ConsoleContext) -> None:
        self._context = context
        context.wire.serve(KIND, self._own)
        self.endpoints = (ConsoleEndpoint("GET", "apps", self._list),)

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
        shown = found[at : at + limit]
        replies = await self._context.wire.request(KIND, msgspec.msgpack.encode([app.id for app in shown]))
        figures = [one for _, one in replies.decoded(_figures.decode)]
        sources = app_sources(config)
        return {
            "apps": [_summary(app, sources.get(app.id), figures) for app in shown],
            "total": len(config.apps),
            "next": cursor_of({"at": str(at + limit)}) if at + limit < len(found) else None,
            "complete": True,
            "examined": len(config.apps),
            "missing": replies.missing,
            "away": replies.away,
        }


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
        "limits": app.limits,
        "origins": app.origins,
        "source": source,
    }
