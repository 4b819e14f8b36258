"""The output of HTTP connections: deadlines, and the end of a connection."""

import socket

import pytest
from structlog.testing import capture_logs

from push1st.config.model import ApiConfig
from push1st.transports import answers as answers_module
from push1st.transports.http import BODY_SECONDS, HEAD_SECONDS
from push1st.transports.http_output import ANSWER_SECONDS
from push1st.transports.sweep import NEVER
from tests.support.http import Answer, answers, request, statuses
from tests.support.loop import turns
from tests.support.served import Served
from tests.support.transport import Site

OUTSIDE = ("203.0.113.9", 1234)
PROXY = ("10.0.0.1", 1234)
PUBLISH = '{"name":"e","channel":"c","data":"x"}'


@pytest.fixture
def served():
    return Served()


@pytest.fixture
def site(served):
    return Site(serve=served)


# Deadlines


async def test_client_that_sends_nothing_is_disconnected(site):
    _, transport = site.connect()
    site.pass_seconds(HEAD_SECONDS - 1)
    assert not transport.closed
    site.pass_seconds(2)
    assert transport.closed
    assert statuses(transport.data) == [408]
    assert site.metrics.cut_offs["slow-request"] == 1


async def test_only_a_request_that_has_begun_is_a_rejection(site):
    site.node.refusals.enable(lambda: 0.0, ())
    site.connect()
    with capture_logs() as logs:
        site.pass_seconds(HEAD_SECONDS + 1)
        assert logs == []
        connection, _ = site.connect()
        connection.data_received(b"G")
        await turns()
        site.pass_seconds(HEAD_SECONDS + 1)
    assert [(line["event"], line["code"]) for line in logs] == [("request refused", 408)]


async def test_client_with_a_slow_head_is_disconnected(site):
    connection, transport = site.connect()
    connection.data_received(request("GET", "/x"))
    await turns()
    site.pass_seconds(5)
    connection.data_received(b"GET /x")
    await turns()
    for _ in range(HEAD_SECONDS + 2):
        site.pass_seconds(1)
        connection.data_received(b"x")
        await turns(1)
    assert statuses(transport.data) == [200, 408]
    assert transport.closed


async def test_client_with_a_slow_body_is_disconnected(site):
    connection, transport = site.connect()
    connection.data_received(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n")
    await turns()
    for _ in range(BODY_SECONDS - 1):
        site.pass_seconds(1)
        connection.data_received(b"x")
        await turns(1)
    assert not transport.closed
    site.pass_seconds(2)
    assert statuses(transport.data) == [408]
    assert transport.closed


async def test_idle_connection_is_closed_without_a_response(site):
    transport = await site.ask(request("GET", "/x"))
    transport.take()
    site.pass_seconds(site.listener.keep_alive - 1)
    assert not transport.closed
    site.pass_seconds(2)
    assert transport.closed
    assert transport.data == b""


async def test_an_answer_names_the_idle_time_of_a_kept_connection():
    site = Site(api=ApiConfig(keep_alive_timeout=7))
    kept = await site.ask(request("GET", "/health") + request("GET", "/nowhere"))
    assert [(one.headers["connection"], one.headers["keep-alive"]) for one in answers(kept.data)] == [
        ("keep-alive", "timeout=7")
    ] * 2
    last = Answer((await site.ask(request("GET", "/health", None, "Connection: close"))).data)
    assert (last.headers["connection"], "keep-alive" in last.headers) == ("close", False)


@pytest.fixture
def unread(site):
    """Returns a kept connection, its transport, and the client's end of its socket."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection, transport = site.connect(number=ours.fileno())
        yield connection, transport, ours, theirs


async def test_a_connection_with_a_request_that_is_not_read_yet_is_not_idle(site, unread):
    connection, transport, ours, theirs = unread
    connection.data_received(request("GET", "/x"))
    await turns()
    theirs.send(request("GET", "/y"))
    site.pass_seconds(site.listener.keep_alive + 5)
    assert not transport.closed
    connection.data_received(ours.recv(9999))
    await turns()
    assert statuses(transport.data) == [200, 200]
    site.pass_seconds(site.listener.keep_alive + 2)
    assert transport.closed


async def test_leaving_waits_for_a_request_that_is_not_read_yet(site, unread):
    connection, transport, ours, theirs = unread
    connection.data_received(request("GET", "/x"))
    await turns()
    theirs.send(request("GET", "/y"))
    connection.leave(4200, "going")
    assert not transport.closed
    ours.recv(9999)
    connection.leave(4200, "going")
    assert transport.closed


async def test_ended_client_leaves_no_input(site, unread):
    connection, transport, _, theirs = unread
    connection.data_received(request("GET", "/x"))
    await turns()
    theirs.close()
    site.pass_seconds(site.listener.keep_alive + 2)
    assert transport.closed


async def test_a_connection_that_is_used_is_kept(site):
    connection, transport = site.connect()
    for _ in range(10):
        connection.data_received(request("GET", "/x"))
        await turns()
        site.pass_seconds(site.listener.keep_alive - 2)
    assert not transport.closed


async def test_a_request_that_waits_is_not_cut_off(site, served):
    transport = await site.ask(request("GET", "/wait/a"))
    site.pass_seconds(HEAD_SECONDS + ANSWER_SECONDS + 5)
    assert not transport.is_closing()
    await served.answer("/wait/a")
    assert statuses(transport.data) == [200]


async def test_connection_has_its_deadline_again_after_a_waiting_request(site, served):
    transport = await site.ask(request("GET", "/wait/a"))
    site.pass_seconds(20)
    await served.answer("/wait/a")
    site.pass_seconds(site.listener.keep_alive - 2)
    assert not transport.closed
    site.pass_seconds(ANSWER_SECONDS + 5)
    assert transport.closed


async def test_a_client_that_does_not_take_its_last_answer_is_destroyed(site):
    transport = await site.ask(request("GET", "/x", None, "Connection: close"))
    assert transport.closed
    site.pass_seconds(ANSWER_SECONDS - 1)
    assert not transport.aborted
    site.pass_seconds(2)
    assert transport.aborted


async def test_a_client_that_does_not_read_is_destroyed(site):
    connection, transport = site.connect()
    connection.data_received(request("GET", "/x"))
    connection.pause_writing()
    await turns()
    site.pass_seconds(site.listener.keep_alive + 2)
    assert transport.aborted


# The end


async def test_leaving_ends_an_idle_connection(site):
    connection, transport = site.connect()
    connection.leave(4200, "going")
    assert transport.closed


async def test_leaving_waits_for_a_request_that_is_under_way(site, served):
    connection, transport = site.connect()
    connection.data_received(request("GET", "/wait/a"))
    await turns()
    connection.leave(4200, "going")
    assert not transport.closed
    site.node.draining = True
    await served.answer("/wait/a")
    assert statuses(transport.data) == [200]
    assert transport.closed


async def test_leaving_loses_no_answer_to_a_request_that_was_served(site, served):
    connection, transport = site.connect()
    connection.data_received(request("GET", "/x"))
    connection.leave(4200, "going")
    await turns()
    assert len(answers(transport.data)) == len(served.requests)
    assert transport.late == []


async def test_leaving_waits_for_a_request_that_is_not_all_here(site):
    connection, transport = site.connect()
    connection.data_received(b"GET / HT")
    await turns()
    connection.leave(4200, "going")
    assert not transport.closed


async def test_aborting_destroys_the_socket(site):
    connection, transport = site.connect()
    connection.abort()
    assert transport.aborted


async def test_a_connection_that_is_lost_is_forgotten(site):
    connection, _ = site.connect()
    assert site.context.open == {connection}
    connection.connection_lost(None)
    assert site.context.open == set()
    assert connection.due_at == NEVER


async def test_date_header_advances_for_every_kind_of_answer(site, monkeypatch):
    now = [0.0]

    def dated(usegmt: bool) -> str:
        return f"second {now[0]:.0f}"

    monkeypatch.setattr(answers_module, "formatdate", dated)
    site.clock.advance(50_000)
    site.sweep.run()
    await site.ask(request("GET", "/x"))
    for second in range(1, 4):
        now[0] = second
        site.pass_seconds(1)
        transport = await site.ask(request("GET", "/refused") + request("GET", "/x"))
        assert [one.headers["date"] for one in answers(transport.data)] == [f"second {second}"] * 2
