"""The name of a page in the path of a client: where it may stand, and how the end of such a connection waits."""

import asyncio
from collections.abc import Collection

import pytest
from structlog.testing import capture_logs

from push1st.brokers.pages import PageBounds, PageRecord
from push1st.config.history import HistorySection, Resume
from push1st.core.pages import PageConnection
from push1st.errors import Refused
from push1st.transports import websocket
from push1st.transports.pages import split_page
from tests.support.frames import close, close_of, text
from tests.support.http import Answer, handshake
from tests.support.loop import turns
from tests.support.node import KEY, app_config
from tests.support.transport import Site, Transport
from tests.support.websocket import send
from tests.support.xhr import ask, events

PAGE = "page-0123456789abcdef"


@pytest.fixture
def site() -> Site:
    return Site(app_config(history=(HistorySection(),), resume=Resume()))


@pytest.mark.parametrize(
    ("path", "page", "rest"),
    [
        ("/app/key", None, "/app/key"),
        ("/resume/a/app/key", "a", "/app/key"),
        ("//resume/a/app/key", "a", "/app/key"),
        ("/resume//app/key", "", "/app/key"),
        ("/resume/a", "a", ""),
        ("/resumes/a/app", None, "/resumes/a/app"),
        ("/x/resume/a/app", None, "/x/resume/a/app"),
    ],
)
def test_page_is_the_first_part_of_a_path(path: str, page: str | None, rest: str) -> None:
    assert split_page(path) == (page, rest)


@pytest.mark.parametrize("path", [f"/resume/{PAGE}/app/{KEY}", f"/resume/{PAGE}/pusher/app/{KEY}", f"//resume/{PAGE}//app/{KEY}"])
async def test_connection_of_a_page_belongs_to_its_page(site: Site, path: str) -> None:
    await site.websocket(f"{path}?protocol=7")
    (session,) = site.world.app.tenant.sessions.values()
    page = session.resumption  # type: ignore[attr-defined]  # every subscriber is a session
    assert isinstance(page, PageConnection)
    assert page.name == PAGE


@pytest.mark.parametrize("name", ["", "a" * 15, "a" * 65, "..", "%2e%2e", "a" * 15 + "%C3%A4", "a" * 15 + ".", "a" * 16 + "%00"])
async def test_invalid_name_is_rejected(site: Site, name: str) -> None:
    transport = await site.websocket(f"/resume/{name}/app/{KEY}?protocol=7")
    assert close_of(transport.data.partition(b"\r\n\r\n")[2])[0] == 4005
    answer = Answer((await ask(site, f"/resume/{name}/pusher/app/{KEY}/7/abcdefgh/xhr?protocol=7")).data)
    assert answer.status == 404


async def test_fallback_session_belongs_to_its_page(site: Site) -> None:
    transport = await ask(site, f"/resume/{PAGE}/pusher/app/{KEY}/7/abcdefgh/xhr?protocol=7")
    assert events(transport.data.partition(b"\r\n\r\n")[2])[0] == "o"
    (session,) = site.world.app.tenant.sessions.values()
    page = session.resumption  # type: ignore[attr-defined]  # every subscriber is a session
    assert isinstance(page, PageConnection)
    assert page.name == PAGE


@pytest.mark.parametrize("path", [f"/resume/{PAGE}/ws/app/{KEY}/c", f"/resume/{PAGE}/nothing", f"/resume/{PAGE}"])
async def test_raw_clients_and_other_paths_have_no_pages(site: Site, path: str) -> None:
    assert Answer((await site.ask(handshake(path))).data).status == 404


async def test_log_does_not_contain_the_name_of_a_page(site: Site) -> None:
    site.node.refusals.enable(lambda: 0.0, ())
    with capture_logs() as logs:
        await site.websocket(f"/resume/{PAGE}/app/unknown?protocol=7")
        await site.ask(handshake(f"/resume/{PAGE}/nothing?protocol=7"))
    assert len(logs) == 2
    assert PAGE not in str(logs)


# The end


class Slow:
    """A storage of pages whose writes wait for `wait`."""

    def __init__(self, site: Site) -> None:
        self.wait: asyncio.Future[None] | None = None
        self._memory = site.world.memory.pages
        self.recall = self._memory.recall
        self.forget = self._memory.forget
        site.node.pages.port = self

    def release(self, failure: Refused | None = None) -> None:
        assert self.wait is not None
        if failure is None:
            self.wait.set_result(None)
        else:
            self.wait.set_exception(failure)

    async def remember(
        self, app: str, page: str, socket_id: str, record: PageRecord, bounds: PageBounds, merged: Collection[str] = ()
    ) -> bool:
        if self.wait is not None:
            await self.wait
        return await self._memory.remember(app, page, socket_id, record, bounds, merged)


async def joined(site: Site) -> tuple[Transport, Slow]:
    """Subscribes a client; later writes of its record wait."""
    slow = Slow(site)
    transport = await site.websocket(f"/resume/{PAGE}/app/{KEY}?protocol=7")
    await send(transport, text({"event": "pusher:subscribe", "data": {"channel": "c"}}))
    await turns(8)
    assert site.world.memory.pages.bytes
    slow.wait = asyncio.get_running_loop().create_future()
    return transport, slow


async def test_socket_is_closed_when_the_record_is_stored(site: Site) -> None:
    transport, slow = await joined(site)
    for one in list(site.context.open):
        one.leave(4200, "")
    await send(transport, close(4200))
    await turns(8)
    assert not transport.is_closing()
    slow.release()
    await turns(8)
    assert transport.is_closing()
    (record,) = (await site.world.memory.pages.recall("app-test", PAGE)).values()
    assert (record.is_closed, record.is_exact) == (True, True)


async def test_socket_is_closed_after_a_second_if_the_broker_does_not_confirm(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "RECORD_SECONDS", 0)
    transport, _ = await joined(site)
    for one in list(site.context.open):
        one.leave(4200, "")
    await send(transport, close(4200))
    await turns(8)
    assert transport.is_closing()


async def test_socket_is_closed_if_the_broker_is_away(site: Site) -> None:
    transport, slow = await joined(site)
    for one in list(site.context.open):
        one.leave(4200, "")
    await send(transport, close(4200))
    slow.release(Refused(503, "away"))
    await turns(8)
    assert transport.is_closing()


@pytest.mark.parametrize("code", [1000, 4201])
async def test_close_frame_of_the_client_proves_nothing(site: Site, code: int) -> None:
    transport, slow = await joined(site)
    await send(transport, close(code))
    slow.release()
    await turns(8)
    (record,) = (await site.world.memory.pages.recall("app-test", PAGE)).values()
    assert (record.is_closed, record.is_exact) == (True, False)


async def test_connection_that_is_lost_before_its_answer_is_not_exact(site: Site) -> None:
    transport, slow = await joined(site)
    for one in list(site.context.open):
        one.leave(4200, "")
    transport.protocol.connection_lost(None)
    slow.release()
    await turns(8)
    (record,) = (await site.world.memory.pages.recall("app-test", PAGE)).values()
    assert (record.is_closed, record.is_exact) == (True, False)
