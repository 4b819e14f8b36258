"""Applies changed configurations of apps while the worker runs. `AppChanges._apply` has a line for each effect of a change.

Most effects follow from `Node.configure`: a live `App` gets its new configuration. Then the functions in `Node.on_configured`
renew the values that other objects have derived from the configuration. Clients stay connected, and their next commands follow
the new configuration. This module adds the effects on connections: the clients of a removed or disabled app leave in slices.

A removed app stays in the worker until its last client has left. Its history, retained messages and sessions stay in the broker
until their own expiry. If the app is added again before they expire, it has them again.
`push1st app remove --purge` deletes them in the broker.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import msgspec

from push1st.apps import ChangingApps
from push1st.config.model import AppConfig
from push1st.core.app import App, Client
from push1st.core.node import Node
from push1st.eager import spawn

FORGET_SECONDS = 60
"""The time for which a removed app stays after its last client has left. Until then, the broker has confirmed the last
unsubscriptions; a later app with this id must not begin before."""
ENDED = "App is disabled"


class AppChange(NamedTuple):
    """The configurations of an app. `old` is None for an added app, and `new` is None for a removed app."""

    old: AppConfig | None
    new: AppConfig | None


class AppChanges:
    """The changes of apps in one worker. `source`: the app source of the node."""

    def __init__(self, node: Node, source: ChangingApps) -> None:
        self._node = node
        self._source = source
        self._ending: dict[str, tuple[AppConfig, int]] = {}
        """removed and disabled apps by id, each with the number of seconds for which it had no clients"""
        self._unapplied: set[str] = set()
        """the ids of apps whose last change has failed because of a defect; the next reload applies them again"""
        self._leaving: set[str] = set()
        """the ids of the apps whose clients are being disconnected"""

    def compare(self, apps: Sequence[AppConfig]) -> list[AppChange]:
        """Returns the differences from the current apps. Another thread may call this method, because many apps need long."""
        old = {app.id: app for app in self._source.all()}
        new = {app.id: app for app in apps}
        ids = dict.fromkeys((*old, *new, *self._unapplied))
        found = [AppChange(old.get(id), new.get(id)) for id in ids if old.get(id) != new.get(id) or id in self._unapplied]
        return [change for change in found if change.old is not None or change.new is not None]

    def apply(self, apps: Sequence[AppConfig], changes: Iterable[AppChange]) -> None:
        """Replaces all apps in one turn. `changes`: the result of `compare` for these apps.

        If the change of an app raises an exception, the other apps change, and then this method raises the exception.
        """
        self._source.replace(apps)
        waiting = {(change.new or cast(AppConfig, change.old)).id: change for change in changes}
        self._unapplied |= waiting.keys()
        failed: Exception | None = None
        for id, change in waiting.items():
            try:
                self._apply(change.old, change.new)
                self._unapplied.discard(id)
            except Exception as exc:  # a defect that concerns one app
                failed = failed or exc
        if failed is not None:
            raise failed

    def _apply(self, old: AppConfig | None, new: AppConfig | None) -> None:
        """Applies the change of one app. This method has a line for each effect of a change."""
        config = new or msgspec.structs.replace(cast(AppConfig, old), enable=False)
        self._node.configure(config)  # rights, limits, hooks, authorize, history and routes
        if config.enable:
            self._ending.pop(config.id, None)
        else:
            self._ending[config.id] = config, 0
            self._disconnect(config.id)

    def _disconnect(self, id: str) -> bool:
        """Disconnects the clients of a disabled or removed app; returns whether the app has clients."""
        app = self._node.used.get(id)
        if app is None or not app.tenant.sessions:
            return False
        if id not in self._leaving:
            self._leaving.add(id)
            spawn(self._end(app))
        return True

    async def _end(self, app: App) -> None:
        def end(client: Client) -> bool:
            if app.config.enable:  # the app was enabled again after this task began
                return False
            client.disconnect(4003, ENDED)
            return True

        await self._node.ending.end(cast(Iterable[Client], app.tenant.sessions.values()), end)
        self._leaving.discard(app.config.id)

    def tick(self) -> None:
        """Disconnects clients whose connections began just before their app ended, and forgets apps. Called once a second."""
        for id, (config, seconds) in [*self._ending.items()]:
            self._ending[id] = config, 0 if self._disconnect(id) else seconds + 1
            if seconds >= FORGET_SECONDS and self._source.by_id(id) is None and self._forget(config):
                del self._ending[id]

    def _forget(self, config: AppConfig) -> bool:
        """Forgets a removed app, unless clients or groups still use it; returns whether the app is forgotten."""
        app = self._node.used.get(config.id)
        if app is not None and (app.tenant.sessions or app.filters is not None or app.groups or app.held is not None):
            return False
        self._node.used.pop(config.id, None)
        nothing = msgspec.structs.replace(config, hook=None, webhooks=(), authorize=())
        for apply in self._node.on_configured:
            apply(nothing)
        return True
