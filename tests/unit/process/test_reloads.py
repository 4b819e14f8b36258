"""Reloads run one after another, count their results, and change nothing after a mistake."""

import asyncio
import io

import pytest
import structlog.testing

from push1st.config.model import Config
from push1st.errors import ConfigError
from push1st.process.controlsocket import Reload, Report
from push1st.process.reloads import Applied, Reloads


class Server:
    """The two functions that `Reloads` gets, which a test makes fail or wait."""

    def __init__(self) -> None:
        self.loaded = 0
        self.applied: list[bool] = []
        self.mistake: Exception | None = None
        self.result = Applied("applied", ("a change",))
        self.ended = asyncio.Event()
        self.reloads = Reloads(self._load, self._apply)

    def _load(self) -> Config:
        self.loaded += 1
        if self.mistake is not None:
            raise self.mistake
        return Config(warnings=("a warning",))

    async def _apply(self, config: Config, workers: bool, report: Report) -> Applied:
        self.applied.append(workers)
        self.ended.set()
        return self.result


async def test_a_reload_returns_its_changes_and_is_counted() -> None:
    server = Server()
    server.reloads.counts.succeeded_at = 0
    with structlog.testing.capture_logs() as logged:
        result = await server.reloads.run(Reload(), print)
    assert (result.lines, result.problems, server.applied) == (("a change",), (), [False])
    assert server.reloads.counts.results == {"applied": 1}
    assert server.reloads.counts.succeeded_at > 0
    assert [line["event"] for line in logged] == ["configuration warning", "reloaded"]


@pytest.mark.parametrize(
    ("mistake", "problems", "label"),
    [
        (ConfigError("one\ntwo"), ("one", "two"), "refused"),
        (OSError("no file"), ("no file",), "refused"),
        (KeyError("x"), ("an internal error; the server's log has its trace",), "failed"),
    ],
)
async def test_a_mistake_changes_nothing_and_is_reported(mistake: Exception, problems: tuple[str, ...], label: str) -> None:
    server = Server()
    server.mistake, server.reloads.counts.succeeded_at = mistake, 0
    with structlog.testing.capture_logs():
        result = await server.reloads.run(Reload(), print)
    assert (result.lines, result.problems, server.applied) == ((), problems, [])
    assert (server.reloads.counts.results, server.reloads.counts.succeeded_at) == ({label: 1}, 0)


async def test_a_reload_that_some_workers_missed_has_failed() -> None:
    server = Server()
    server.result = Applied("replaced", ("reloaded: 2 workers",), ("worker 1 did not start",))
    with structlog.testing.capture_logs():
        result = await server.reloads.run(Reload(True), print)
    assert (result.problems, server.applied) == (("worker 1 did not start",), [True])
    assert server.reloads.counts.results == {"failed": 1}


async def test_signals_during_a_reload_cause_one_reload_after_it() -> None:
    server = Server()
    hangup = server.reloads.on_hangup(lambda: None, io.StringIO())
    async with server.reloads.lock:
        for _ in range(5):
            hangup()
    async with asyncio.timeout(5):
        await server.ended.wait()
        async with server.reloads.lock:  # a further reload would wait for this lock before
            pass
    assert (server.loaded, server.applied) == (1, [False])


async def test_a_signal_stops_the_server_if_its_terminal_is_gone() -> None:
    class Terminal(io.StringIO):
        there = True

        def isatty(self) -> bool:
            return self.there

    server, terminal, stops = Server(), Terminal(), []
    hangup = server.reloads.on_hangup(lambda: stops.append(1), terminal)
    terminal.there = False
    hangup()
    assert (stops, server.loaded) == ([1], 0)
