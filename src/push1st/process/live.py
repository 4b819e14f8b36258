"""Applies a changed configuration to a running worker: the apps, the certificates and the log. Clients stay connected.

`prepare` reads and checks everything, and has no effect. `apply` cannot fail for a reason that `prepare` could find, and applies
all changes in one turn. All other keys of the configuration are the same as before (`changes.restart_keys`).
"""

import asyncio
import sys
from collections.abc import Mapping, Sequence

import msgspec

from push1st import logs
from push1st.config.model import AppConfig, Config, LogConfig
from push1st.core.appchanges import AppChange, AppChanges
from push1st.errors import ConfigError
from push1st.hooks import TRANSPORTS
from push1st.hooks.dispatcher import transport_class
from push1st.process.certificates import Certificates, Loaded
from push1st.process.sockets import Role
from push1st.transports.context import EdgeContext


class PreparedChange(msgspec.Struct, frozen=True):
    """A configuration that the worker can apply, with the changes of apps and the loaded certificates."""

    config: Config
    apps: Sequence[AppChange]
    certificates: Mapping[Role, Loaded]


class LiveConfig:
    """The configuration of a running worker.

    number: the number of the worker in its lines of the log; None for a single worker.
    """

    def __init__(self, context: EdgeContext, certificates: Certificates, apps: AppChanges, number: int | None) -> None:
        self._context = context
        self._certificates = certificates
        self._apps = apps
        self._number = number
        self._prepared: PreparedChange | None = None
        self._newest = 0
        """the number of calls of `prepare`; an earlier call must not replace the result of a later one"""

    async def prepare(self, config: Config) -> None:
        """Checks a configuration for `apply`. Raises ConfigError if the worker cannot use the configuration."""
        self._prepared = None
        self._newest += 1
        number = self._newest
        # Another thread executes the slow steps: the first import of a library, and the comparison of many apps.
        await asyncio.to_thread(_import_transports, config)
        changes = await asyncio.to_thread(self._apps.compare, config.apps)
        if number != self._newest:
            raise ConfigError("a newer configuration has arrived meanwhile")
        self._prepared = PreparedChange(config, changes, self._certificates.prepare(config))

    def apply(self) -> list[str]:
        """Applies the prepared configuration; returns the effects that the configuration does not show, for people."""
        assert self._prepared is not None
        prepared, self._prepared = self._prepared, None
        config = prepared.config
        context = self._context
        before, context.config = context.config, config
        if before.log != config.log:
            self._set_log(config.log, config.apps)
        lines = self._certificates.apply(prepared.certificates)
        self._apps.apply(config.apps, prepared.apps)
        return lines

    def tick(self) -> None:
        """Called once a second."""
        self._apps.tick()
        self._certificates.tick()

    def _set_log(self, log: LogConfig, apps: tuple[AppConfig, ...]) -> None:
        logs.setup(log.format, log.level, sys.stderr, worker=self._number)
        refusals = self._context.node.refusals
        refusals.enabled = log.level == "debug"
        if refusals.enabled:
            refusals.enable(self._context.node.clock.monotonic, (one for app in apps for one in app.secrets))


def _import_transports(config: Config) -> None:
    """Imports the modules of the transports of all hooks. Raises ConfigError."""
    urls = {url for app in config.apps for url in _urls(app)}
    for scheme in sorted({url.partition("://")[0] for url in urls} & TRANSPORTS.keys()):
        try:
            transport_class(f"{scheme}://")
        except ImportError as exc:
            raise ConfigError(f"hooks with {scheme}:// cannot be used: {exc}") from exc


def _urls(app: AppConfig) -> list[str]:
    endpoints = () if app.hook is None else app.hook.endpoint
    return [*endpoints, *(one.url for one in app.webhooks), *(one.url for one in app.authorize)]
