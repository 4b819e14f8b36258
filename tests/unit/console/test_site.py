"""The listener of the console: its deadlines, and the descriptors that it may use."""

import msgspec
import pytest

from push1st.config.model import ConsoleConfig
from push1st.console import Console
from push1st.transports.descriptors import Descriptors
from tests.support.http import statuses
from tests.support.loop import turns
from tests.support.reports import REPORTS
from tests.support.transport import Site

OUTSIDE = ("203.0.113.9", 1234)
PASSWORD = "the password of the operators"


@pytest.fixture
def watched():
    """A worker with a listener of the console."""
    site = Site()
    site.context.config = msgspec.structs.replace(site.config, console=ConsoleConfig(password=PASSWORD))
    site.listener = Console(site.node, site.context, "node", 0, REPORTS).listener(False)
    return site


@pytest.mark.parametrize(
    ("sent", "seconds"),
    [
        (b"", 10),
        (b"POST /api/login HTTP/1.1\r\nHost: 127.0.0.1\r\n", 10),
        (b"POST /api/login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 20\r\n\r\n{", 30),
    ],
    ids=["nothing", "headers", "body"],
)
async def test_slow_requests_end_in_time(watched, sent, seconds):
    connection, transport = watched.connect(OUTSIDE)
    connection.data_received(sent)
    await turns()
    watched.pass_seconds(seconds - 2)
    assert not transport.closed
    watched.pass_seconds(4)
    await turns()
    assert statuses(transport.data) == [408]
    assert b"Content-Security-Policy" in transport.data


@pytest.mark.parametrize(("number", "aborted"), [(45, False), (49, False), (50, True), (57, True)])
async def test_console_does_not_use_the_descriptors_that_are_reserved_for_the_api(watched, number, aborted):
    watched.context.descriptors = Descriptors(lambda: 62, lambda: 30)
    for _ in range(10):
        watched.connect(("127.0.0.1", 1), number=40)
    assert watched.connect(OUTSIDE, number=number)[1].aborted is aborted


async def test_connections_of_one_address_have_a_bound(watched):
    watched.context.descriptors = Descriptors(lambda: 62, lambda: 30)
    made = [watched.connect(OUTSIDE, number=40) for _ in range(40)]
    assert sum(transport.aborted for _, transport in made) == 10


async def test_pipelined_requests_are_answered_in_order(watched):
    get = b"GET %b HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    transport = await watched.ask(get % b"/health" + get % b"/api/session" + get % b"/ready" + get % b"/nothing")
    assert statuses(transport.data) == [200, 401, 200, 404]
