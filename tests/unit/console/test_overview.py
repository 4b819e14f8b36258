"""The overview: what it costs while nobody watches, and how many answers it makes for several pages."""

import asyncio
from typing import Any

import msgspec
import pytest

from push1st.config.model import ConsoleConfig
from push1st.console import Console
from push1st.console.endpoints import ConsoleCall, ConsoleContext
from push1st.console.overview import Overview
from push1st.console.samples import EVERY_SECONDS
from push1st.console.wire import ConsoleWire
from push1st.errors import Refused
from push1st.process.figures import worker_figures
from push1st.status import WorkerFigures, WorkerReports
from tests.support.loop import turns
from tests.support.transport import Site

CALL = ConsoleCall("GET", (), {}, b"", "127.0.0.1")


class Page:
    """A page that watches."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.send = self.messages.append


class Reported:
    """The figures of a worker. made: how often they were requested."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.made = 0

    def quick(self) -> WorkerFigures:
        self.made += 1
        return worker_figures(self._site.node, "node", 0.0, 0, 0.0, 10)

    async def figures(self) -> WorkerFigures:
        return self.quick()

    @property
    def reports(self) -> WorkerReports:
        def none() -> Any:
            raise AssertionError("the whole report is not requested")

        return WorkerReports(self.quick, self.figures, none)


@pytest.fixture
def site() -> Site:
    return Site()


def overview_of(site: Site, reported: Reported) -> Any:
    wire = ConsoleWire(site.node, "node")
    return Overview(ConsoleContext(site.node, site.context, wire, "node", 0, reported.reports))


def tasks_and_timers() -> tuple[int, int]:
    loop: Any = asyncio.get_running_loop()
    return len(asyncio.all_tasks()), sum(not timer.cancelled() for timer in loop._scheduled)


async def test_unwatched_console_has_no_task_and_no_timer(site):
    before = tasks_and_timers()
    reported = Reported(site)
    site.context.config = msgspec.structs.replace(site.config, console=ConsoleConfig(password="the password of operators"))
    console = Console(site.node, site.context, "node", 0, reported.reports)
    await console.open()
    for _ in range(10 * EVERY_SECONDS):
        site.clock.advance(1)
        console.tick()
    await turns()
    assert tasks_and_timers() == before
    assert reported.made <= 11, "only the samples"


async def test_watch_ends_without_a_trace(site):
    before = tasks_and_timers()
    overview, page = overview_of(site, Reported(site)), Page()
    overview.watch(page, {"watch": "overview"})
    overview.watch(page, {"watch": "overview", "every": 60})
    await turns()
    assert [list(msgspec.json.decode(one)) for one in page.messages] == [["overview"]]
    with pytest.raises(Refused):
        overview.watch(page, {"every": 61})
    overview.unwatch(page)
    overview.unwatch(page)
    await turns()
    assert tasks_and_timers() == before


async def test_ten_pages_cost_what_one_page_costs(site):
    reported = Reported(site)
    overview, pages = overview_of(site, reported), [Page() for _ in range(10)]
    for page in pages:
        overview.watch(page, {})
    await turns()
    assert all(len(page.messages) == 1 for page in pages)
    made = reported.made
    (endpoint,) = overview.endpoints
    for _ in range(10):
        await endpoint.serve(CALL)
    assert reported.made == made
    site.clock.advance(1)
    await endpoint.serve(CALL)
    assert reported.made == made + 1
    for page in pages:
        overview.unwatch(page)
