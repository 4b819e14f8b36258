"""Reloads of a server: reads the configuration again after SIGHUP or `push1st reload`, one reload after another.

This module is the same for a supervisor and for a single worker. Each of them gives a function that applies a configuration.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Literal, TextIO

import msgspec

from push1st import logs
from push1st.config.model import Config
from push1st.eager import spawn
from push1st.errors import ConfigError
from push1st.metrics import ReloadCounts
from push1st.process.controlsocket import Reload, Report, Result
from push1st.status import ReloadStatus

Load = Callable[[], Config]
"""A function that reads the configuration again, or raises ConfigError if the configuration is not valid."""

log = logs.get("push1st.server")


class Applied(msgspec.Struct, frozen=True):
    """The effects of a reload.

    how: whether the running workers have applied the configuration, or were replaced.
    lines: the changes, for people.
    problems: the reasons why some workers do not have the new configuration; empty if all workers have it.
    """

    how: Literal["applied", "replaced"]
    lines: tuple[str, ...]
    problems: tuple[str, ...] = ()


Apply = Callable[[Config, bool, Report], Awaitable[Applied]]
"""A function that applies a configuration. Its second argument is whether all workers are replaced in any case.
It raises ConfigError or OSError if the server runs as before."""


class Reloads:
    """The reloads of a server. `load`: the function that reads the configuration. `apply`: the function that applies it."""

    def __init__(self, load: Load, apply: Apply) -> None:
        self._load = load
        self._apply = apply
        self._waiting = False
        self.last: ReloadStatus | None = None
        """the last reload that has ended"""
        self.counts = ReloadCounts()
        self.counts.succeeded_at = time.time()
        self.lock = asyncio.Lock()
        """a lock that is held during a reload, and during the start of the server"""

    async def run(self, command: Reload, report: Report) -> Result:
        """Reloads the configuration after all earlier reloads have ended (`controlsocket.Answer`)."""
        result = await self._run(command, report)
        self.last = ReloadStatus(time.time(), result.problems)
        return result

    async def _run(self, command: Reload, report: Report) -> Result:
        async with self.lock:
            self._waiting = False
            try:
                # Another thread reads the files, because this thread may serve clients.
                config = await asyncio.to_thread(self._load)
                for warning in config.warnings:
                    log.warning("configuration warning", warning=warning)
                applied = await self._apply(config, command.workers, report)
            except (ConfigError, OSError) as exc:
                self.counts.results["refused"] += 1
                problems = tuple(str(exc).splitlines())
                for problem in problems:
                    log.error("reload refused, the server runs as before", problem=problem)
                return Result(problems=problems)
            except Exception:  # a defect must not end the server, which serves as before
                self.counts.results["failed"] += 1
                log.exception("internal error")
                return Result(problems=("an internal error; the server's log has its trace",))
            if applied.problems:
                self.counts.results["failed"] += 1
                for problem in applied.problems:
                    log.error("reload is not complete", problem=problem)
            else:
                self.counts.results[applied.how] += 1
                self.counts.succeeded_at = time.time()
            log.info("reloaded", how=applied.how, changes=list(applied.lines))
            return Result(applied.lines, applied.problems)

    def on_hangup(self, stop: Callable[[], None], terminal: TextIO | None = None) -> Callable[[], None]:
        """Returns the handler of SIGHUP: it reloads, but calls `stop` if the terminal of the server is gone."""
        terminal = terminal or sys.stdin
        had_terminal = terminal.isatty()

        def on_hangup() -> None:
            if had_terminal and not terminal.isatty():
                stop()
            elif not self._waiting:  # a reload that waits reads the newest files
                self._waiting = True
                spawn(self._reload())

        return on_hangup

    async def _reload(self) -> None:
        await self.run(Reload(), lambda _: None)
